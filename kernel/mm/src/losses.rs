//! Notes of lost frames: what a machine-check handler leaves for the task that calls
//! [`memory_failure`](crate::failure::memory_failure).
//!
//! A machine check comes anywhere, on any CPU, with whatever lock held: its handler can neither wait nor allocate. It
//! writes into memory that was set aside when the kernel started, and more can come than there is room for one by one.
//! Nothing is forgotten even then:
//!
//! 1. A few *slots* hold one exact row of frames each. What touches or overlaps a row makes that row longer, so that a
//!    module that fails row by row, and a task that reports one page again and again, need one slot.
//! 2. Where every slot is taken by another row, the *blocks* of 2 MiB that hold the frames are marked in the bitmap of
//!    their device: they are lost as a whole, with up to 511 frames each that nobody has reported. A bit is all that is
//!    needed, whatever comes after it.
//! 3. What is in no device has no bit. It is counted, and the last of it is kept: nobody's memory is lost there.
//!
//! The memory for that is [`SLOTS`] words, and 64 bytes for each GiB of a device.
//!
//! # Protocol
//! ```text
//!  handler (several at once)                        taker (one at a time)
//!  N1 grows a slot's row, or claims a free slot     T1 empties each slot by a swap
//!     by compare-and-exchange of its word
//!  N2 else marks the blocks in the bitmap           T2 clears "some block is marked" by a swap,
//!  N3 and then says that some block is marked       T3 and then empties the bitmap by swaps
//!  N4 interrupts its CPU, which wakes the taker
//! ```
//! T3 comes after T2 as N3 comes after N2: a block that T3 misses was marked before an N3 that T2 has not cleared, and the
//! taker, which N4 wakes, comes again. N3 is a read-modify-write, so that T2 is ordered after each N3 that came before it,
//! and not only after the last.
//!
//! No step waits for another CPU: a handler may interrupt the taker between any two of its steps, and a compare-and-exchange
//! that fails has met another's that did not.
//!
//! Model: `tests/loom_losses.rs`. Linux: `arch/x86/kernel/cpu/mce/genpool.c` and `memory_failure_queue` of
//! `mm/memory-failure.c`, both of which drop what there is no room for.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::addr::{PageSize, Pfn, PfnRange};
use crate::machine::{CpuId, MAX_CPUS};
use crate::mutant::Mutant;
use crate::sync::{AtomicU64, Ordering};

/// How many rows are kept exactly.
pub const SLOTS: usize = 16;
/// Frames of a block.
const BLOCK_PAGES: u64 = PageSize::Size2M.nr_pages();

/// A row of lost frames, and who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The first lost frame.
    pub first: Pfn,
    /// How many are lost; at least 1.
    pub nr_pages: u64,
    /// Whose handler it was.
    pub cpu: CpuId,
    /// The kernel itself has raised the machine check, for a test or a demonstration.
    pub by_kernel: bool,
    /// More than one machine check has reported parts of it; [`cpu`](Self::cpu) and [`by_kernel`](Self::by_kernel) tell of
    /// the first.
    pub joined: bool,
}

impl Loss {
    /// A physical address has 52 bits.
    const FIRST_BITS: u32 = 40;
    const NR_BITS: u32 = 15;
    const JOINED: u64 = 1 << 55;
    const CPU_AT: u32 = 56;
    const BY_KERNEL: u64 = 1 << 62;
    const IS_NOTED: u64 = 1 << 63;
    /// The longest row that a slot can hold: 128 MiB.
    pub const MAX_PAGES: u64 = 1 << Self::NR_BITS;

    fn end(self) -> u64 {
        self.first.as_u64().saturating_add(self.nr_pages)
    }

    /// In one word, which is never 0; `None` where it does not fit.
    ///
    /// | bits | value |
    /// |---|---|
    /// | 0 to 39 | first frame |
    /// | 40 to 54 | number of frames, less 1 |
    /// | 55 | several machine checks |
    /// | 56 to 61 | CPU |
    /// | 62 | by the kernel |
    /// | 63 | 1: something is noted |
    fn word(self) -> Option<u64> {
        let fits = (1..=Self::MAX_PAGES).contains(&self.nr_pages) && self.end() <= 1 << Self::FIRST_BITS;
        let flags = if self.joined { Self::JOINED } else { 0 } | if self.by_kernel { Self::BY_KERNEL } else { 0 };
        let nr = self.nr_pages.wrapping_sub(1) << Self::FIRST_BITS;
        fits.then_some(self.first.as_u64() | nr | flags | (self.cpu as u64) << Self::CPU_AT | Self::IS_NOTED)
    }

    fn from_word(word: u64) -> Option<Self> {
        (word & Self::IS_NOTED != 0).then(|| Self {
            first: Pfn::new(word & ((1 << Self::FIRST_BITS) - 1)),
            nr_pages: (word >> Self::FIRST_BITS) % Self::MAX_PAGES + 1,
            cpu: (word >> Self::CPU_AT) as usize % MAX_CPUS,
            by_kernel: word & Self::BY_KERNEL != 0,
            joined: word & Self::JOINED != 0,
        })
    }

    /// The two as one row; `None` where a frame between them is in neither.
    fn join(self, other: Self) -> Option<Self> {
        if other.first.as_u64() > self.end() || self.first.as_u64() > other.end() {
            return None;
        }
        let first = self.first.min(other.first);
        let nr_pages = self.end().max(other.end()) - first.as_u64();
        // Who reports the very same again adds nothing.
        let same = (self.first, self.nr_pages, self.cpu, self.by_kernel)
            == (other.first, other.nr_pages, other.cpu, other.by_kernel);
        Some(Self { first, nr_pages, joined: self.joined || !same, ..self })
    }
}

const _: () = assert!(MAX_CPUS == 1 << 6, "bits 56 to 61 are a CPU's number");
const _: () = assert!(BLOCK_PAGES <= Loss::MAX_PAGES);

/// How a loss was noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noted {
    /// In a slot: just these frames.
    Exactly,
    /// The blocks of 2 MiB that hold them are lost.
    Blocks,
    /// All that is kept is one frame of it, and how many there were: it is, at least in part, in no device.
    Stray,
}

/// What the taker takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// These frames have been reported.
    Frames(Loss),
    /// Frames of this block have been reported when every slot was taken: all of it is lost.
    Block(PfnRange),
    /// So many losses, at least in part in no device, had no other place; the last began with this frame.
    Strays {
        /// First frame of the last one.
        last: Pfn,
        /// How many; [`MAX_STRAYS`] is "that many or more".
        count: u64,
    },
}

/// The highest number of strays that is told apart.
pub const MAX_STRAYS: u64 = (1 << 12) - 1;

/// One device's bitmap.
struct Area {
    frames: PfnRange,
    /// One bit for each block that has a frame of the device, by rising number.
    blocks: Box<[AtomicU64]>,
    /// Not 0: some block may be marked.
    is_marked: AtomicU64,
}

impl Area {
    fn new(frames: PfnRange) -> Self {
        let nr_blocks = frames.end().as_u64().div_ceil(BLOCK_PAGES) - Self::block(frames.start().as_u64());
        let blocks = (0..nr_blocks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { frames, blocks, is_marked: AtomicU64::new(0) }
    }

    fn block(frame: u64) -> u64 {
        frame / BLOCK_PAGES
    }

    /// Marks the blocks of what is lost in here. Answers how many of the lost frames that are.
    fn mark(&self, loss: Loss) -> u64 {
        let (first, end) = (self.frames.start().max(loss.first).as_u64(), self.frames.end().as_u64().min(loss.end()));
        if first >= end {
            return 0;
        }
        if Mutant::LossFlagBeforeBlock.is_on() {
            self.is_marked.fetch_or(1, Ordering::Release);
        }
        let last = if Mutant::LossFirstBlockOnly.is_on() { first } else { end - 1 };
        for block in Self::block(first)..=Self::block(last) {
            let nr = block - Self::block(self.frames.start().as_u64());
            // N2. Release; pairs with T3: what the handler did before is seen by who takes the block.
            self.blocks[(nr / 64) as usize].fetch_or(1 << (nr % 64), Ordering::Release);
        }
        // N3. Release; pairs with T2.
        if Mutant::LossFlagStored.is_on() {
            self.is_marked.store(1, Ordering::Release);
        } else if !Mutant::LossFlagBeforeBlock.is_on() {
            self.is_marked.fetch_or(1, Ordering::Release);
        }
        end - first
    }

    fn take(&self, each: &mut dyn FnMut(Taken)) {
        // T2. Acquire; pairs with N3. Cheap where there is nothing, which is always.
        if self.is_marked.swap(0, Ordering::Acquire) == 0 {
            return;
        }
        let first = Self::block(self.frames.start().as_u64());
        for (word, at) in self.blocks.iter().zip((first..).step_by(64)) {
            // T3. Acquire; pairs with N2.
            let mut bits = word.swap(0, Ordering::Acquire);
            while bits != 0 {
                let block = at + u64::from(bits.trailing_zeros());
                bits &= bits - 1;
                let start = self.frames.start().as_u64().max(block * BLOCK_PAGES);
                let end = self.frames.end().as_u64().min((block + 1) * BLOCK_PAGES);
                if let Some(frames) = PfnRange::new(Pfn::new(start), end - start) {
                    each(Taken::Block(frames));
                }
            }
        }
    }
}

/// Where losses are noted; `SLOTS` rows exactly.
pub struct Losses<const N: usize = SLOTS> {
    slots: [AtomicU64; N],
    areas: Box<[Area]>,
    /// Bits 0 to 51: the first frame of the last one; 52 to 63: how many, where not so many that it does not matter.
    strays: AtomicU64,
}

const STRAY_AT: u32 = 52;

impl<const N: usize> Losses<N> {
    /// Nothing is lost. `devices`: the frames that may ever be a device's; disjoint.
    pub fn new(devices: impl IntoIterator<Item = PfnRange>) -> Self {
        let areas: Vec<Area> = devices.into_iter().map(Area::new).collect();
        Self {
            slots: core::array::from_fn(|_| AtomicU64::new(0)),
            areas: areas.into_boxed_slice(),
            strays: AtomicU64::new(0),
        }
    }

    /// Notes what is lost. Waits for nobody, asks for no memory: for a machine-check handler. Where it has returned, whoever
    /// [takes](Self::take) next gets these frames, unless somebody has taken them meanwhile.
    pub fn note(&self, loss: Loss) -> Noted {
        if loss.word().is_some() {
            if self.slots.iter().any(|slot| grow(slot, loss)) || self.slots.iter().any(|slot| claim(slot, loss)) {
                return Noted::Exactly;
            }
            if Mutant::LossDropped.is_on() {
                return Noted::Exactly;
            }
        }
        if self.areas.iter().map(|area| area.mark(loss)).sum::<u64>() == loss.nr_pages {
            return Noted::Blocks;
        }
        self.note_stray(loss.first);
        Noted::Stray
    }

    fn note_stray(&self, frame: Pfn) {
        let frame = frame.as_u64() & ((1 << STRAY_AT) - 1);
        let counted = |old: u64| Some(frame | ((old >> STRAY_AT) + 1).min(MAX_STRAYS) << STRAY_AT);
        // Release; pairs with the Acquire in `take`. It cannot fail: the closure always has an answer.
        let _ = self.strays.fetch_update(Ordering::Release, Ordering::Relaxed, counted);
    }

    /// Takes what was noted. One taker at a time.
    pub fn take(&self, each: &mut dyn FnMut(Taken)) {
        for slot in &self.slots {
            // T1. AcqRel; pairs with the exchanges of `grow` and `claim`.
            let word = if Mutant::LossTakenByStore.is_on() {
                let word = slot.load(Ordering::Acquire);
                slot.store(0, Ordering::Release);
                word
            } else {
                slot.swap(0, Ordering::AcqRel)
            };
            if let Some(loss) = Loss::from_word(word) {
                each(Taken::Frames(loss));
            }
        }
        self.areas.iter().for_each(|area| area.take(each));
        // Acquire; pairs with the Release in `note_stray`.
        let strays = self.strays.swap(0, Ordering::Acquire);
        if strays != 0 {
            each(Taken::Strays { last: Pfn::new(strays & ((1 << STRAY_AT) - 1)), count: strays >> STRAY_AT });
        }
    }
}

/// N1: makes the row of the slot longer by what is lost, where the two touch.
fn grow(slot: &AtomicU64, loss: Loss) -> bool {
    let mut old = slot.load(Ordering::Relaxed);
    loop {
        let joined = Loss::from_word(old).and_then(|there| there.join(loss)?.word());
        let Some(word) = joined else { return false };
        if Mutant::LossGrownByStore.is_on() {
            slot.store(word, Ordering::Release);
            return true;
        }
        // Also where the word stays what it is: the exchange makes sure that nobody has taken it meanwhile.
        match slot.compare_exchange(old, word, note_ordering(), Ordering::Relaxed) {
            Ok(_) => return true,
            Err(now) => old = now,
        }
    }
}

/// N1: makes it the row of the slot, where that is free.
fn claim(slot: &AtomicU64, loss: Loss) -> bool {
    let Some(word) = loss.word() else { return false };
    if Mutant::LossClaimedByStore.is_on() {
        let is_free = slot.load(Ordering::Relaxed) == 0;
        if is_free {
            slot.store(word, Ordering::Release);
        }
        return is_free;
    }
    slot.compare_exchange(0, word, note_ordering(), Ordering::Relaxed).is_ok()
}

/// Release: what the handler did before it noted a loss comes before what the taker does with it. AcqRel, so that this holds
/// for each of those who have made the row longer.
fn note_ordering() -> Ordering {
    if Mutant::LossRelaxed.is_on() { Ordering::Relaxed } else { Ordering::AcqRel }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn loss(first: u64, nr_pages: u64) -> Loss {
        Loss { first: Pfn::new(first), nr_pages, cpu: 3, by_kernel: false, joined: false }
    }

    fn taken<const N: usize>(losses: &Losses<N>) -> Vec<Taken> {
        let mut all = Vec::new();
        losses.take(&mut |taken| all.push(taken));
        all
    }

    fn range(start: u64, nr_pages: u64) -> PfnRange {
        PfnRange::new(Pfn::new(start), nr_pages).expect("a range of the test")
    }

    /// covers: P2
    #[test]
    fn a_word_holds_a_loss_and_is_never_zero() {
        for first in [0, 5, (1 << 40) - 32768] {
            for nr_pages in [1, 512, 32768] {
                for (cpu, by_kernel, joined) in [(0, false, false), (63, true, true), (17, true, false)] {
                    let loss = Loss { first: Pfn::new(first), nr_pages, cpu, by_kernel, joined };
                    let word = loss.word().expect("it fits");
                    assert_ne!(word, 0);
                    assert_eq!(Loss::from_word(word), Some(loss));
                }
            }
        }
        assert_eq!(Loss::from_word(0), None);
        for too_big in [loss(1, 32769), loss(1 << 40, 1), loss((1 << 40) - 1, 2), loss(u64::MAX >> 12, 1), loss(1, 0)] {
            assert_eq!(too_big.word(), None, "{too_big:?}");
        }
    }

    /// covers: P2
    #[test]
    fn what_touches_or_overlaps_is_one_row() {
        let losses: Losses<2> = Losses::new([]);
        for (first, nr_pages) in [(100, 2), (102, 1), (98, 2), (101, 1), (97, 8)] {
            assert_eq!(losses.note(loss(first, nr_pages)), Noted::Exactly);
        }
        assert_eq!(taken(&losses), [Taken::Frames(Loss { joined: true, ..loss(97, 8) })]);
        assert_eq!(losses.note(loss(100, 2)), Noted::Exactly);
        assert_eq!(losses.note(loss(100, 2)), Noted::Exactly, "the very same once more");
        assert_eq!(losses.note(loss(103, 1)), Noted::Exactly, "not beside it");
        assert_eq!(taken(&losses), [Taken::Frames(loss(100, 2)), Taken::Frames(loss(103, 1))]);
        assert_eq!(taken(&losses), []);
    }

    /// covers: P2
    #[test]
    fn a_row_longer_than_a_slot_can_hold_is_two() {
        let losses: Losses<2> = Losses::new([]);
        losses.note(loss(0, Loss::MAX_PAGES));
        losses.note(loss(Loss::MAX_PAGES, 1));
        assert_eq!(taken(&losses), [Taken::Frames(loss(0, 32768)), Taken::Frames(loss(32768, 1))]);
    }

    /// covers: P2
    #[test]
    fn where_every_slot_is_taken_whole_blocks_are_lost() {
        // Neither end of the device is that of a block.
        let losses: Losses<1> = Losses::new([range(1000, 2000), range(100_000, 512)]);
        assert_eq!(losses.note(loss(1, 1)), Noted::Exactly);
        assert_eq!(losses.note(loss(1001, 1)), Noted::Blocks, "its first block");
        assert_eq!(losses.note(loss(1002, 1)), Noted::Blocks, "the same");
        assert_eq!(losses.note(loss(2559, 2)), Noted::Blocks, "two blocks");
        assert_eq!(losses.note(loss(2999, 1)), Noted::Blocks, "its last block");
        assert_eq!(losses.note(loss(100_000, 1)), Noted::Blocks, "another device");
        let blocks = [range(1000, 24), range(2048, 512), range(2560, 440), range(100_000, 352)];
        let mut expected = Vec::from([Taken::Frames(loss(1, 1))]);
        expected.extend(blocks.map(Taken::Block));
        assert_eq!(taken(&losses), expected);
        assert_eq!(taken(&losses), []);
    }

    /// covers: P2, P4
    #[test]
    fn what_is_in_no_device_is_counted() {
        let losses: Losses<1> = Losses::new([range(1000, 24)]);
        losses.note(loss(1, 1));
        assert_eq!(losses.note(loss(1023, 2)), Noted::Stray, "a part of it is");
        assert_eq!(losses.note(loss(u64::MAX >> 12, 1)), Noted::Stray, "no physical address");
        let strays = Taken::Strays { last: Pfn::new(u64::MAX >> 12), count: 2 };
        assert_eq!(taken(&losses), [Taken::Frames(loss(1, 1)), Taken::Block(range(1000, 24)), strays]);
        (0..5000).for_each(|_| assert_eq!(losses.note(loss(1 << 41, 1)), Noted::Stray));
        assert_eq!(taken(&losses), [Taken::Strays { last: Pfn::new(1 << 41), count: MAX_STRAYS }]);
    }
}
