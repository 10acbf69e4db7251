//! The flight recorder, on one CPU and with a reader on another.
#![cfg(not(any(loom, shuttle)))]

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use sched::recorder::{Between, Recorded, Recorder};

fn words(nr: u64) -> [u64; 3] {
    [nr, !nr, nr ^ 0x55]
}

fn tag(nr: u64) -> u64 {
    nr % 255 + 1
}

fn all<const N: usize>(recorder: &Recorder<N>) -> Vec<u64> {
    recorder.held().filter_map(|at| recorder.read(at)).map(|event| event.words[0]).collect()
}

#[test]
fn the_latest_are_kept_in_their_order() {
    let recorder = Recorder::<8>::new();
    assert_eq!((recorder.held(), recorder.read(0)), (0..0, None));
    for nr in 0..5 {
        assert!(recorder.push(tag(nr), words(nr)));
    }
    assert_eq!(all(&recorder), [0, 1, 2, 3, 4]);
    for nr in 5..21 {
        assert!(recorder.push(tag(nr), words(nr)));
    }
    assert_eq!((recorder.written(), recorder.lost(), recorder.held()), (21, 0, 13..21));
    assert_eq!(all(&recorder), (13..21).collect::<Vec<_>>());
    assert_eq!(recorder.read(12), None, "overwritten");
    assert_eq!(recorder.read(21), None, "not written yet");
    assert_eq!(recorder.read(20), Some(Recorded { tag: 21, words: words(20) }));
}

#[test]
fn who_comes_round_to_a_slot_that_is_being_written_loses_its_event() {
    let recorder = Recorder::<4>::new();
    // Taken away in the middle of its words; the CPU goes on with others.
    let done = recorder.push_interrupted(tag(0), words(0), |at| {
        if at == Between::Words {
            let kept = (1..=6).filter(|&nr| recorder.push(tag(nr), words(nr))).collect::<Vec<_>>();
            assert_eq!(kept, [1, 2, 3, 5, 6], "the fourth has come round");
            assert_eq!(recorder.read(4), None);
        }
    });
    assert!(done);
    assert_eq!((recorder.lost(), recorder.written()), (1, 7));
    // The ring is past what was switched away, and says nothing in its place.
    assert_eq!(all(&recorder), [3, 5, 6]);
}

/// Wherever a writer is switched away, and the ring comes round to its slot once or twice: what can be read is whole, in its
/// order, and what cannot is counted.
/// Who clears while somebody looks may have seen later events than he has: there are none then, and no fewer.
#[test]
fn the_events_since_one_that_is_to_come_are_none() {
    let recorder = Recorder::<4>::new();
    (0..6).for_each(|nr| assert!(recorder.push(tag(nr), words(nr))));
    assert_eq!(recorder.since(0), (2..6, 0..6));
    assert_eq!(recorder.since(5), (5..6, 5..6));
    assert_eq!(recorder.since(6), (6..6, 6..6));
    assert_eq!(recorder.since(9), (9..9, 9..9));
}

#[test]
fn what_is_missing_is_counted() {
    const N: u64 = 4;
    let places = [Between::TakenAndBusy, Between::BusyAndFilled, Between::Words, Between::FilledAndFull];
    for (place, nr_inside) in places.into_iter().flat_map(|place| (0..=2 * N + 1).map(move |nr| (place, nr))) {
        let recorder = Recorder::<{ N as usize }>::new();
        let mut kept = 0;
        let done = recorder.push_interrupted(tag(0), words(0), |at| {
            if at == place {
                kept = (1..=nr_inside).filter(|&nr| recorder.push(tag(nr), words(nr))).count() as u64;
            }
        });
        let lost = nr_inside - kept + u64::from(!done);
        assert_eq!(recorder.lost(), lost, "{place:?}, {nr_inside} inside");
        let read = all(&recorder);
        assert!(read.is_sorted(), "{place:?}, {nr_inside} inside: {read:?}");
        assert!(
            read.len() as u64 + lost >= N.min(nr_inside + 1),
            "{place:?}, {nr_inside} inside: {read:?}, {lost} lost"
        );
        // And the slot is free again.
        let more: Vec<_> = (100..100 + N).filter(|&nr| recorder.push(tag(nr), words(nr))).collect();
        assert_eq!((more.len() as u64, all(&recorder)), (N, (100..100 + N).collect()), "{place:?}, {nr_inside} inside");
    }
}

#[test]
fn a_reader_sees_whole_events_or_none() {
    const EVENTS: u64 = 200_000;
    let recorder = Recorder::<16>::new();
    let running = AtomicBool::new(true);
    let mut seen = 0_u64;
    thread::scope(|scope| {
        scope.spawn(|| {
            for nr in 0..EVENTS {
                assert!(recorder.push(tag(nr), words(nr)));
            }
            running.store(false, Ordering::Release);
        });
        let mut goes_on = true;
        while goes_on {
            goes_on = running.load(Ordering::Acquire);
            for at in recorder.held() {
                if let Some(found) = recorder.read(at) {
                    assert_eq!(found, Recorded { tag: tag(at) as u8, words: words(at) }, "event {at}");
                    seen += 1;
                }
            }
        }
    });
    assert!(seen >= 16, "{seen} events were seen");
    assert_eq!(all(&recorder), (EVENTS - 16..EVENTS).collect::<Vec<_>>());
}
