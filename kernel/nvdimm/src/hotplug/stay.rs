//! A module's stay in its slot, and memory that answers no success for bytes from nowhere.
//!
//! A module leaves without a word: from one instruction to the next, loads give 0 and stores are dropped, and no exception
//! comes. It may even come back in the middle of a copy. So whoever has copied looks *afterwards* whether it was there all
//! the while.
//!
//! # Protocol
//! ```text
//!  a copy                                   a stay ends, and the next begins
//!  1 copy                                   a the module leaves; another is plugged in: "inserted" is set
//!  2 read the slot's flags:                 b the number of the stay is taken away
//!    enabled, and not "inserted"?           c notice is taken: "inserted" is clear
//!  3 is the number of the stay still mine?  d the next stay gets a number of its own
//! ```
//! A copy after a finds "inserted" at 2, until c; and what reads 2 after c finds b at 3. So a copy that passes both was made
//! while the module was there, from its first byte to its last. Each of these is needed: looking before the copy misses
//! what leaves during it, without "inserted" what has come back counts as never gone, with 3 before 2 the number is looked
//! at too early, and with c before b there is a moment at which nothing tells.
//!
//! The flags are read under the registers' lock, which orders 2 against c.
//!
//! A slot may have one module today and another tomorrow, at other addresses. So a stay is that of a range: memory beside
//! it is not there by it, whatever the flags say.

use mm::addr::{PAGE_SIZE, Pfn, PfnRange};
use mm::machine::Machine;
use mm::sync::{Arc, AtomicU64, Ordering, fence};

use super::{Hotplug, Module, Status};
use crate::mutant::Mutant;
use crate::nfit::ByteRange;
use crate::pmem::PmemDriver;
use crate::pmem::memory::{FlushError, MapFailed, MediaError, PmemHost, PmemMemory};

/// Nobody stays.
const NONE: u64 = 0;

/// One slot, and the stay that goes on there.
pub struct Place {
    hotplug: Arc<Hotplug>,
    slot: u32,
    /// Its number, or [`NONE`].
    stay: AtomicU64,
    /// Base and length of the module whose stay that is. Changed only while nobody stays.
    range: [AtomicU64; 2],
    /// Of the last stay.
    last: AtomicU64,
}

/// A module's time in its slot. It does not keep the module there.
#[derive(Clone)]
pub struct Stay {
    place: Arc<Place>,
    number: u64,
    range: ByteRange,
}

impl Place {
    /// A slot at which nobody has looked.
    pub fn new(hotplug: &Arc<Hotplug>, slot: u32) -> Arc<Self> {
        let [stay, last, base, len_bytes] = [NONE, NONE, 0, 0].map(AtomicU64::new);
        Arc::new(Self { hotplug: Arc::clone(hotplug), slot, stay, range: [base, len_bytes], last })
    }

    /// The slot's number.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// All slots.
    pub fn hotplug(&self) -> &Arc<Hotplug> {
        &self.hotplug
    }

    /// How the slot stands.
    pub fn status(&self) -> Status {
        self.hotplug.status(self.slot)
    }

    /// Begins a stay of what is in the slot now, and ends the one before; answers what that is. `None`: nothing is there. One
    /// caller at a time.
    pub fn begin(&self) -> Option<Module> {
        let late = Mutant::StayEndedLate.is_on();
        if !late {
            self.end();
        }
        loop {
            let (module, status) = self.hotplug.take_notice(self.slot)?;
            // Where it was changed for another meanwhile, once more.
            if !status.inserted {
                if late {
                    self.end();
                }
                let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
                // Release; pairs with the Acquire fence in `current`: who reads of this range finds the last stay ended.
                fence(Ordering::Release);
                let ByteRange { base, len_bytes } = module.range;
                self.range[0].store(base, Ordering::Relaxed);
                self.range[1].store(len_bytes, Ordering::Relaxed);
                self.stay.store(number, Ordering::Release);
                return Some(module);
            }
        }
    }

    /// Ends the stay: nobody is told from now on that the module is there.
    pub fn end(&self) {
        self.stay.store(NONE, Ordering::SeqCst);
    }

    /// The stay that goes on; the module may have left without a word. For an interrupt handler, too.
    pub fn current(self: &Arc<Self>) -> Option<Stay> {
        // Acquire; pairs with the Release in `begin`: the range is this stay's, or that of a later one.
        let number = self.stay.load(Ordering::Acquire);
        let range =
            ByteRange { base: self.range[0].load(Ordering::Relaxed), len_bytes: self.range[1].load(Ordering::Relaxed) };
        fence(Ordering::Acquire);
        // Whoever changes the range has ended this stay before. Then nobody is told that it goes on.
        let is_whole = number != NONE && self.stay.load(Ordering::Relaxed) == number;
        is_whole.then(|| Stay { place: Arc::clone(self), number, range })
    }

    /// Is it over although nobody has ended it: has the module left without a word? For an interrupt handler, too.
    pub fn has_left(&self) -> bool {
        self.stay.load(Ordering::Acquire) != NONE && !self.is_unchanged()
    }

    /// Is there a module, and the same as when notice was taken? A no is asked for twice: whoever reaches the registers
    /// from outside, by a monitor, may have selected another slot in the middle. What has really changed stays so until
    /// notice is taken, and then the number tells.
    fn is_unchanged(&self) -> bool {
        let look = || {
            let status = self.status();
            status.enabled && (!status.inserted || Mutant::ReturnUnseen.is_on())
        };
        look() || look()
    }
}

impl Stay {
    /// Where the module is.
    pub fn range(&self) -> ByteRange {
        self.range
    }

    /// Is it the stay of just these frames? A module that is smaller, larger or elsewhere is another one.
    pub fn is_of(&self, frames: PfnRange) -> bool {
        let ByteRange { base, len_bytes } = self.range;
        frames.start().addr().as_u64() == base && frames.nr_pages() * PAGE_SIZE == len_bytes
            || Mutant::RangeNotAsked.is_on()
    }

    /// The module's frames, as far as they are whole.
    pub fn frames(&self) -> Option<PfnRange> {
        let first = self.range.base.div_ceil(PAGE_SIZE);
        PfnRange::new(Pfn::new(first), (self.range.end() / PAGE_SIZE).checked_sub(first)?)
    }

    /// Was the module there all the time until now? Once the answer was no it is never yes again.
    pub fn goes_on(&self) -> bool {
        let place = &*self.place;
        let is_mine = || place.stay.load(Ordering::SeqCst) == self.number;
        if Mutant::StayAskedFirst.is_on() {
            return is_mine() && place.is_unchanged();
        }
        // In this order: see the module's head.
        place.is_unchanged() && is_mine()
    }
}

/// Memory of a module: what was copied counts if the module was there all the while.
struct Removable {
    memory: Arc<dyn PmemMemory>,
    stay: Stay,
}

impl Removable {
    fn copied(&self, copy: impl FnOnce() -> Result<(), MediaError>) -> Result<(), MediaError> {
        if Mutant::PresenceAskedFirst.is_on() {
            return if self.stay.goes_on() { copy() } else { Err(MediaError::Gone) };
        }
        let copied = copy();
        // Whatever it was: of a module that has left nothing is known to be lost.
        if self.stay.goes_on() { copied } else { Err(MediaError::Gone) }
    }
}

impl PmemMemory for Removable {
    fn read(&self, offset_bytes: u64, into: &mut [u8]) -> Result<(), MediaError> {
        self.copied(|| self.memory.read(offset_bytes, into))
    }
    fn write(&self, offset_bytes: u64, from: &[u8]) -> Result<(), MediaError> {
        self.copied(|| self.memory.write(offset_bytes, from))
    }
    fn fence(&self) -> Result<(), FlushError> {
        self.memory.fence()?;
        if self.stay.goes_on() { Ok(()) } else { Err(FlushError::Gone) }
    }
    fn is_there(&self) -> bool {
        self.stay.goes_on()
    }
}

/// The kernel, for the module of one slot: maps as the kernel does what a stay that goes on is that of.
struct Host {
    kernel: Arc<dyn PmemHost>,
    place: Arc<Place>,
}

impl PmemHost for Host {
    fn map(&self, range: PfnRange) -> Result<Arc<dyn PmemMemory>, MapFailed> {
        let stay = self.place.current().filter(|stay| stay.is_of(range) && stay.goes_on());
        let stay = stay.ok_or(MapFailed::Gone)?;
        let memory = self.kernel.map(range)?;
        Ok(Arc::new(Removable { memory, stay }))
    }
    fn unmap(&self, range: PfnRange) {
        self.kernel.unmap(range);
    }
}

/// A driver for the module of one slot, whose memory is mapped through `kernel`. It shares names, claims and the CPU's
/// data cache with `base`, and attaches by the same steps.
pub fn driver<M: Machine>(base: &PmemDriver<M>, kernel: Arc<dyn PmemHost>, place: &Arc<Place>) -> PmemDriver<M> {
    base.sibling(Arc::new(Host { kernel, place: Arc::clone(place) }))
}
