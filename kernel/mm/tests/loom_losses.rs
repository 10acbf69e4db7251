//! Models of the notes of lost frames: the very code of `mm::losses`.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p mm --release --test loom_losses`.
//!
//! Property: whoever takes for the last time, after every handler has returned, completes what earlier takers got: each frame
//! that was noted is taken by somebody. What a handler did before it noted a frame is seen by who takes it.
//!
//! | model | property |
//! |---|---|
//! | `a_handler_notes_twice_against_the_taker` | … where the row grows while it is taken |
//! | `two_handlers_make_one_row_longer_against_the_taker` | … where two CPUs make it longer at once |
//! | `two_handlers_and_two_slots_against_the_taker` | … where two CPUs want the same free slot |
//! | `a_handler_without_a_slot_against_the_taker`, `two_handlers_…` | … where whole blocks are marked |
#![cfg(any(loom, shuttle))]

use mm::addr::{PageSize, Pfn, PfnRange};
use mm::losses::{Loss, Losses, Taken};
use mm::sync::Arc;
use mm::sync::model::{Bound, UnsafeCell, explore_as, thread};

const BLOCK: u64 = PageSize::Size2M.nr_pages();
/// The one device: three blocks.
const DEVICE: u64 = 2 * BLOCK;
/// Frames of the models, and the handler that notes each.
const NR_FRAMES: usize = 3;

struct Machine<const N: usize> {
    losses: Losses<N>,
    /// Written by the handler of a frame before it notes it, read by who takes it; the checker reports a race between the two.
    before: [UnsafeCell<bool>; NR_FRAMES],
    frames: [u64; NR_FRAMES],
}

// SAFETY: `before` is what the models check: the checker ends a model where two threads reach a cell without order.
unsafe impl<const N: usize> Sync for Machine<N> {}
// SAFETY: as above.
unsafe impl<const N: usize> Send for Machine<N> {}

impl<const N: usize> Machine<N> {
    fn new(frames: [u64; NR_FRAMES]) -> Arc<Self> {
        let device = PfnRange::new(Pfn::new(DEVICE), 3 * BLOCK).unwrap();
        Arc::new(Self {
            losses: Losses::new([device]),
            before: core::array::from_fn(|_| UnsafeCell::new(false)),
            frames,
        })
    }

    /// The handler of CPU `cpu`: notes these of the frames, one after the other.
    fn handle(&self, cpu: usize, which: &[usize]) {
        for &nr in which {
            // SAFETY: one handler writes each, and who takes the frame reads it afterwards; the checker checks exactly that.
            self.before[nr].with_mut(|before| unsafe { *before = true });
            let first = Pfn::new(self.frames[nr]);
            self.losses.note(Loss { first, nr_pages: 1, cpu, by_kernel: false, joined: false });
        }
    }

    /// Takes; marks what it got of the frames. `alone`: each frame of the model has a block for itself, so that who takes the
    /// block takes what was noted.
    fn take(&self, got: &mut [bool; NR_FRAMES], alone: bool) {
        self.losses.take(&mut |taken| {
            let (range, exact) = match taken {
                Taken::Frames(loss) => (loss.first.as_u64()..loss.first.as_u64() + loss.nr_pages, true),
                Taken::Block(frames) => (frames.start().as_u64()..frames.end().as_u64(), alone),
                Taken::Strays { .. } => panic!("every frame of the models is the device's"),
            };
            for nr in (0..NR_FRAMES).filter(|&nr| range.contains(&self.frames[nr])) {
                got[nr] = true;
                if exact {
                    // SAFETY: as in `handle`.
                    self.before[nr].with(|before| assert!(unsafe { *before }, "taken before it was noted"));
                }
            }
        });
    }
}

/// Handlers on threads of their own, each noting these frames, against a taker that comes at any time and once more after
/// all of them.
fn explore<const N: usize>(
    name: &str,
    frames: [u64; NR_FRAMES],
    full: &[usize],
    handlers: &'static [&'static [usize]],
    alone: bool,
) {
    let full = full.to_vec();
    explore_as(&format!("loom_losses::{name}"), Bound::Preemptions(3), move || {
        let machine = Machine::<N>::new(frames);
        machine.handle(0, &full);
        let running: Vec<_> = handlers
            .iter()
            .enumerate()
            .map(|(at, which)| {
                let machine = machine.clone();
                thread::spawn(move || machine.handle(at + 1, which))
            })
            .collect();
        let mut got = [false; NR_FRAMES];
        machine.take(&mut got, alone);
        running.into_iter().for_each(|handler| handler.join().unwrap());
        machine.take(&mut got, alone);
        let noted = full.iter().chain(handlers.iter().copied().flatten());
        noted.for_each(|&nr| assert!(got[nr], "frame {:#x} is forgotten", machine.frames[nr]));
    });
}

/// Three frames in a row.
const ROW: [u64; NR_FRAMES] = [DEVICE, DEVICE + 1, DEVICE + 2];
/// Three frames that do not touch, in one block.
const APART: [u64; NR_FRAMES] = [DEVICE, DEVICE + 7, DEVICE + 20];
/// One in each block.
const BLOCKS: [u64; NR_FRAMES] = [DEVICE, DEVICE + BLOCK, DEVICE + 2 * BLOCK];

/// Stores to the slot: initial value, 2 notes, 2 takes.
/// covers: P2
#[test]
fn a_handler_notes_twice_against_the_taker() {
    explore::<1>("a_handler_notes_twice_against_the_taker", ROW, &[], &[&[0, 1]], false);
}

/// Stores to the slot: initial value, 3 notes, 2 takes; to the word of the bitmap, and to its flag: initial value, 1 mark, 2 takes.
/// covers: P2
#[test]
fn two_handlers_make_one_row_longer_against_the_taker() {
    explore::<1>("two_handlers_make_one_row_longer_against_the_taker", ROW, &[1], &[&[0], &[2]], false);
}

/// Stores to a slot: initial value, 2 notes, 2 takes.
/// covers: P2
#[test]
fn two_handlers_and_two_slots_against_the_taker() {
    explore::<2>("two_handlers_and_two_slots_against_the_taker", APART, &[], &[&[0], &[1]], false);
}

/// Stores to the word of the bitmap, and to its flag: initial value, 1 mark, 2 takes.
/// covers: P2
#[test]
fn a_handler_without_a_slot_against_the_taker() {
    explore::<0>("a_handler_without_a_slot_against_the_taker", BLOCKS, &[], &[&[0]], true);
}

/// Stores to the word of the bitmap, and to its flag: initial value, 2 marks, 2 takes.
/// covers: P2
#[test]
fn two_handlers_without_a_slot_against_the_taker() {
    explore::<0>("two_handlers_without_a_slot_against_the_taker", BLOCKS, &[], &[&[0], &[1]], true);
}

/// One finds the slot free, or taken. Stores to the slot: initial value, 2 notes, 2 takes; to the word of the bitmap, and to its
/// flag: initial value, 2 marks, 2 takes.
/// covers: P2
#[test]
fn two_handlers_and_one_slot_against_the_taker() {
    explore::<1>("two_handlers_and_one_slot_against_the_taker", BLOCKS, &[2], &[&[0], &[1]], true);
}
