//! What an address space remembers for the TLBs: who has it loaded, and what was taken away lately.
//!
//! See [`crate::shootdown`] for the protocol.

use crate::addr::{PageSize, Pfn, VirtAddr, VirtRange};
use crate::machine::CpuMask;
use crate::mutant::Mutant;
use crate::sync::{AtomicU32, AtomicU64, Ordering, RawMutex, fence};

/// How many generations a ring remembers.
pub const RING: usize = if cfg!(any(loom, shuttle)) { 2 } else { 8 };

/// Up to this many single flushes; more become one full flush, unless
/// [`set_full_flush_above`](crate::shootdown::Shootdown::set_full_flush_above) says otherwise.
///
/// Measured (`docs/benchmarks.md`, `kernel/src/bench/flush.rs`): in the emulator both cost the same at 30 pages where
/// nothing else is in use, and at 59 where 64 other pages have to be walked for again.
pub const FULL_FLUSH_ABOVE: u64 = 33;

/// What to flush: a value, so that it can be stored, merged and compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushRange {
    /// Every translation of the address space.
    All,
    /// The pages of a range, each leaf being at least `stride` large.
    Pages {
        /// What to flush.
        range: VirtRange,
        /// The smallest leaf that was removed: one flush for each.
        stride: PageSize,
    },
}

impl FlushRange {
    /// The number of single-page flushes; more than [`FULL_FLUSH_ABOVE`] are done as one full flush.
    #[inline]
    pub fn nr_flushes(self) -> u64 {
        match self {
            Self::All => u64::MAX,
            Self::Pages { range, stride } => {
                let first = range.start().align_down(stride.bytes()).as_u64();
                if Mutant::RangeRoundedDown.is_on() {
                    return (range.end().as_u64() - first) / stride.bytes() - 1;
                }
                (range.end().as_u64() - first).div_ceil(stride.bytes())
            }
        }
    }
    /// The smallest request that covers both.
    #[must_use]
    #[inline]
    pub fn merge(self, other: Self) -> Self {
        match (self, other) {
            (Self::Pages { range: a, stride: s }, Self::Pages { range: b, stride: t }) => {
                let start = a.start().min(b.start());
                let end = a.end().max(b.end());
                match VirtRange::new(start, end.as_u64() - start.as_u64()) {
                    Some(range) => Self::Pages { range, stride: s.min(t) },
                    None => Self::All,
                }
            }
            _ => Self::All,
        }
    }
}

/// One remembered range. `generation` is 0 while the slot is being written (a sequence lock).
#[derive(Debug)]
struct RingSlot {
    generation: AtomicU64,
    start: AtomicU64,
    end: AtomicU64,
    /// Level of the smallest leaf, or 0 for "all".
    level: AtomicU32,
}

impl RingSlot {
    fn new() -> Self {
        Self {
            generation: AtomicU64::new(0),
            start: AtomicU64::new(0),
            end: AtomicU64::new(0),
            level: AtomicU32::new(0),
        }
    }

    #[inline]
    fn write(&self, generation: u64, what: FlushRange) {
        let (start, end, level) = match what {
            FlushRange::All => (0, 0, 0),
            FlushRange::Pages { range, stride } => (range.start().as_u64(), range.end().as_u64(), stride.level()),
        };
        self.generation.store(0, Ordering::Relaxed);
        // Release; pairs with the Acquire fence in `read`: a reader that sees a new field sees the 0 as well.
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
        self.level.store(u32::from(level), Ordering::Relaxed);
        // Release; pairs with the first Acquire load in `read`.
        self.generation.store(generation, Ordering::Release);
    }

    /// The range of `generation`, or `All` where the slot holds another one or is being written.
    #[inline]
    fn read(&self, generation: u64) -> FlushRange {
        // Acquire; pairs with the Release store at the end of `write`.
        let held = |order| self.generation.load(order) == generation || Mutant::RingOverflowIgnored.is_on();
        if !held(Ordering::Acquire) {
            return FlushRange::All;
        }
        let start = self.start.load(Ordering::Relaxed);
        let end = self.end.load(Ordering::Relaxed);
        let level = self.level.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        if !held(Ordering::Relaxed) {
            return FlushRange::All;
        }
        let range = VirtRange::new(VirtAddr::new(start), end.wrapping_sub(start));
        match (range, PageSize::from_level(level as u8)) {
            (Some(range), Some(stride)) => FlushRange::Pages { range, stride },
            _ => FlushRange::All,
        }
    }
}

/// The side of an address space that shootdowns see. Kept alive by every CPU that has it loaded.
#[derive(Debug)]
pub struct TlbState {
    pub(crate) id: u64,
    pub(crate) root: Pfn,
    /// Bit n: CPU n has the space loaded.
    pub(crate) cpus: AtomicU64,
    /// Grows by one with each issue. Starts at 1.
    pub(crate) generation: AtomicU64,
    /// Issued rounds whose sync is not done.
    pub(crate) pending: AtomicU64,
    ring: [RingSlot; RING],
    /// One writer of the ring at a time.
    publishing: RawMutex<()>,
}

impl TlbState {
    /// State of a space with root table `root`, loaded nowhere. `id` is not 0 and not used twice.
    pub fn new(id: u64, root: Pfn) -> Self {
        Self {
            id,
            root,
            cpus: AtomicU64::new(0),
            generation: AtomicU64::new(1),
            pending: AtomicU64::new(0),
            ring: core::array::from_fn(|_| RingSlot::new()),
            publishing: RawMutex::new(()),
        }
    }
    /// Number of the address space.
    #[inline]
    pub fn id(&self) -> u64 {
        self.id
    }
    /// The root table.
    #[inline]
    pub fn root(&self) -> Pfn {
        self.root
    }
    /// The CPUs that have the space loaded at this moment.
    #[inline]
    pub fn cpus(&self) -> CpuMask {
        CpuMask::from_bits(self.cpus.load(Ordering::Relaxed))
    }
    /// Is a round issued whose sync is not done? Then an address of this space may not be handed out again
    /// without a round of its own, even if nothing is found mapped there.
    #[inline]
    pub fn has_pending(&self) -> bool {
        self.pending.load(Ordering::Acquire) != 0
    }

    /// What `generation` took away; `All` where the ring has forgotten it.
    #[inline]
    pub(crate) fn taken(&self, generation: u64) -> FlushRange {
        self.ring[generation as usize % RING].read(generation)
    }

    #[inline]
    pub(crate) fn publish(&self, what: FlushRange) {
        let _one_writer = self.publishing.lock();
        let next = self.generation.load(Ordering::Relaxed) + 1;
        self.ring[next as usize % RING].write(next, what);
        // Release; pairs with the Acquire load in `catch_up`: whoever sees the generation sees its slot and the
        // cleared entries before it.
        self.generation.store(next, Ordering::Release);
    }
}
