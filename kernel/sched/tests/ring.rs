//! The ring of notes, on one CPU and with threads.
#![cfg(not(loom))]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use sched::ring::{Ring, SLOTS};

#[test]
fn notes_are_read_in_their_order() {
    let ring: Ring = Ring::new();
    assert_eq!(ring.pop(), None);
    // More often round than once.
    for nr in 0..5 * SLOTS as u64 {
        assert!(ring.push([nr, 7]) && ring.push([nr, 8]));
        assert_eq!((ring.pop(), ring.pop(), ring.pop()), (Some([nr, 7]), Some([nr, 8]), None));
    }
    assert_eq!(ring.nr_notes(), 10 * SLOTS);
    assert_eq!(ring.take_lost(), 0);
}

#[test]
fn what_finds_no_room_is_counted() {
    let ring: Ring = Ring::new();
    let pushed = (0..SLOTS as u64 + 3).filter(|&nr| ring.push([nr, nr])).count();
    assert_eq!(pushed, SLOTS);
    assert_eq!((ring.take_lost(), ring.take_lost()), (3, 0));
    assert_eq!(ring.pop(), Some([0, 0]), "the oldest stays");
    assert!(ring.push([99, 99]));
    assert!(!ring.push([100, 100]));
    let rest: Vec<_> = std::iter::from_fn(|| ring.pop()).collect();
    assert_eq!((rest.len(), rest.last()), (SLOTS, Some(&[99, 99])));
    assert_eq!(ring.take_lost(), 1);
}

#[test]
fn three_writers_and_a_reader_lose_nothing_in_silence() {
    const EACH: u64 = 20_000;
    let ring: Ring = Ring::new();
    let (lost, running) = (AtomicUsize::new(0), AtomicBool::new(true));
    let mut found = [0u64; 3];
    let mut last = [0u64; 3];
    let mut read = || {
        while let Some([nr, check]) = ring.pop() {
            assert_eq!(check, !nr, "a torn note");
            let (writer, nr) = ((nr % 3) as usize, nr / 3);
            assert!(nr > last[writer], "writer {writer}: {nr} after {}", last[writer]);
            last[writer] = nr;
            found[writer] += 1;
        }
    };
    thread::scope(|scope| {
        let write = |writer: u64| {
            for nr in 1..=EACH {
                let nr = 3 * nr + writer;
                if !ring.push([nr, !nr]) {
                    lost.fetch_add(1, Ordering::Relaxed);
                    thread::yield_now();
                }
            }
        };
        let writers: Vec<_> = (0..3).map(|writer| scope.spawn(move || write(writer))).collect();
        scope.spawn(|| {
            writers.into_iter().for_each(|writer| writer.join().expect("a writer"));
            running.store(false, Ordering::Release);
        });
        while running.load(Ordering::Acquire) {
            read();
        }
    });
    read();
    let counted = ring.take_lost();
    assert_eq!(counted, lost.into_inner());
    assert_eq!(found.iter().sum::<u64>() + counted as u64, 3 * EACH);
}
