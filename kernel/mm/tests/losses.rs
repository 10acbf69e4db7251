//! Notes of lost frames: whatever is noted, and whenever somebody takes, every frame is taken, and frames that nobody has
//! reported only where there was no slot.
#![cfg(not(loom))]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use mm::addr::{PageSize, Pfn, PfnRange};
use mm::losses::{Loss, Losses, Noted, Taken};
use proptest::prelude::*;

const BLOCK: u64 = PageSize::Size2M.nr_pages();
/// Two devices side by side, whose edges are no block's.
const DEVICES: [(u64, u64); 2] = [(700, 3000), (3700, 1000)];
const SLOTS: usize = 3;

fn devices() -> [PfnRange; 2] {
    DEVICES.map(|(start, nr_pages)| PfnRange::new(Pfn::new(start), nr_pages).expect("a device of the test"))
}

fn loss(first: u64, nr_pages: u64, cpu: usize) -> Loss {
    Loss { first: Pfn::new(first), nr_pages, cpu, by_kernel: false, joined: false }
}

/// What was noted since the last take, and what has come out.
#[derive(Default)]
struct Books {
    reported: BTreeSet<u64>,
    strays: Vec<u64>,
    /// Blocks that hold a frame for which there was no slot.
    without_slot: BTreeSet<u64>,
}

impl Books {
    fn note(&mut self, losses: &Losses<SLOTS>, loss: Loss) {
        let frames = loss.first.as_u64()..loss.first.as_u64() + loss.nr_pages;
        let of_a_device = |&frame: &u64| devices().iter().any(|device| device.contains(Pfn::new(frame)));
        match losses.note(loss) {
            Noted::Exactly => self.reported.extend(frames),
            noted => {
                let known: Vec<u64> = frames.clone().filter(of_a_device).collect();
                assert_eq!(noted == Noted::Blocks, known.len() as u64 == loss.nr_pages, "{loss:?}");
                if noted == Noted::Stray {
                    self.strays.push(loss.first.as_u64());
                }
                self.without_slot.extend(known.iter().map(|frame| frame / BLOCK));
                self.reported.extend(known);
            }
        }
    }

    /// Takes, and compares.
    fn take(&mut self, losses: &Losses<SLOTS>) {
        let (mut taken, mut strays) = (BTreeSet::new(), None);
        losses.take(&mut |what| match what {
            Taken::Frames(loss) => {
                let frames = loss.first.as_u64()..loss.first.as_u64() + loss.nr_pages;
                assert!(frames.clone().all(|frame| self.reported.contains(&frame)), "{loss:?} was not reported");
                taken.extend(frames);
            }
            Taken::Block(frames) => {
                let (start, end) = (frames.start().as_u64(), frames.end().as_u64());
                assert!(self.without_slot.contains(&(start / BLOCK)), "no frame of {frames:?} lacked a slot");
                assert_eq!(start / BLOCK, (end - 1) / BLOCK, "{frames:?} is no block");
                assert!(
                    devices().iter().any(|device| device.start() <= frames.start() && frames.end() <= device.end())
                );
                taken.extend(start..end);
            }
            Taken::Strays { last, count } => strays = Some((last.as_u64(), count)),
        });
        assert!(self.reported.is_subset(&taken), "{:?} are forgotten", self.reported.difference(&taken));
        assert_eq!(strays, self.strays.last().map(|&last| (last, self.strays.len() as u64)));
        *self = Self::default();
    }
}

/// A loss; `None`: somebody takes.
fn step() -> impl Strategy<Value = Option<Loss>> {
    // Frames of both devices, between them, and around; many that touch.
    let first = prop_oneof![600..4800u64, (0..40u64).prop_map(|nr| 680 + nr), Just(1 << 41), Just((1 << 40) - 1)];
    let nr_pages = prop_oneof![3 => Just(1u64), 1 => 1..4u64, 1 => 500..520u64];
    prop_oneof![
        9 => (first, nr_pages, 0..4usize).prop_map(|(first, nr_pages, cpu)| Some(loss(first, nr_pages, cpu))),
        1 => Just(None),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]
    /// covers: P2
    #[test]
    fn what_is_taken_covers_what_was_noted_and_no_more_than_it_must(steps in prop::collection::vec(step(), 1..60)) {
        let losses: Losses<SLOTS> = Losses::new(devices());
        let mut books = Books::default();
        for step in steps {
            match step {
                Some(loss) => books.note(&losses, loss),
                None => books.take(&losses),
            }
        }
        books.take(&losses);
    }
}

/// Handlers on three CPUs note as fast as they can while somebody takes.
/// covers: P2
#[test]
fn nothing_that_three_cpus_note_is_forgotten() {
    let losses: Losses<SLOTS> = Losses::new(devices());
    let done = AtomicBool::new(false);
    let mut taken = BTreeSet::new();
    let take = |taken: &mut BTreeSet<u64>| {
        losses.take(&mut |what| match what {
            Taken::Frames(loss) => taken.extend(loss.first.as_u64()..loss.first.as_u64() + loss.nr_pages),
            Taken::Block(frames) => taken.extend(frames.start().as_u64()..frames.end().as_u64()),
            Taken::Strays { .. } => panic!("every frame of this test is a device's"),
        });
    };
    std::thread::scope(|scope| {
        let handlers: Vec<_> = (0..3u64)
            .map(|cpu| {
                let losses = &losses;
                // Each frame once: what is forgotten does not come again. Neighbours come from different CPUs.
                scope.spawn(move || {
                    for nr in (0..1300u64).map(|nr| nr * 7 % 1300) {
                        losses.note(loss(700 + 3 * nr + cpu, 1, cpu as usize));
                    }
                })
            })
            .collect();
        let watch = scope.spawn(|| {
            handlers.into_iter().for_each(|handler| handler.join().expect("a handler"));
            done.store(true, Ordering::Release);
        });
        while !done.load(Ordering::Acquire) {
            take(&mut taken);
        }
        watch.join().expect("who waits for the handlers");
    });
    take(&mut taken);
    let expected: BTreeSet<u64> = (700..700 + 3900).collect();
    assert!(expected.is_subset(&taken), "{:?} are forgotten", expected.difference(&taken));
}
