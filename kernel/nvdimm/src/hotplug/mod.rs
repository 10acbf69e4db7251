//! Memory modules that are plugged in and out while the machine runs (`pc-dimm`), as a third provider beside the NVDIMMs
//! and virtio-pmem.
//!
//! | module | what it does |
//! |---|---|
//! | here | the registers through which QEMU says which slot has a module, and what is to become of it |
//! | [`stay`] | one module's time in a slot: whoever copies from it hears whether it was there all the while |
//! | [`presence`] | the same for who has transferred to frames that may be of several modules |
//!
//! # The registers
//! One block of I/O ports for all slots: a slot is selected by a store, and the others then mean that slot. So whoever
//! selects keeps everybody else away until he has read: [`Registers::with`].
//!
//! | offset | read | written |
//! |---|---|---|
//! | 0x00 | low half of the base | which slot |
//! | 0x04 | high half of the base | event of a report (`_OST`) |
//! | 0x08, 0x0c | halves of the length | 0x08: status of a report |
//! | 0x10 | proximity domain | |
//! | 0x14, one byte | bit 0: a module is there; 1: it was plugged in, and nobody has taken notice; 2: it is asked for | 2: notice taken of 1; 4: of 2; 8: the module may go, which it does at once |
//!
//! QEMU `docs/specs/acpi_mem_hotplug.txt`, `hw/acpi/memory_hotplug.c`.

pub mod presence;
pub mod stay;

use alloc::vec::Vec;
use core::fmt;

use mm::addr::{PAGE_SIZE, Pfn, PfnRange};
use mm::sync::Arc;

use crate::nfit::{ByteRange, Limits};
use crate::virtio_pmem::{Region, RegionError};

const SELECT: u16 = 0x00;
const BASE: u16 = 0x00;
const OST_EVENT: u16 = 0x04;
const LENGTH: u16 = 0x08;
const OST_STATUS: u16 = 0x08;
const PROXIMITY: u16 = 0x10;
const FLAGS: u16 = 0x14;

const ENABLED: u8 = 1;
const INSERTED: u8 = 2;
const ASKED_FOR: u8 = 4;
const EJECT: u8 = 8;

/// The event of a report that is about a request to let a module go (ACPI 6.5 §6.3.5: ejection request).
const EVENT_EJECT: u32 = 3;
/// Its status: the module cannot go, for it is in use (ACPI 6.5 §6.3.5).
const STATUS_IN_USE: u32 = 0x82;
/// Its status: the removal has begun (the same: ejection in progress).
const STATUS_GOING: u32 = 0x84;

/// The block of registers.
pub trait Registers: Send + Sync {
    /// Calls `work` once, while nobody else uses a register. It may come from an interrupt handler.
    fn with(&self, work: &mut dyn FnMut(&mut dyn Io));
}

/// A register at an offset in the block.
pub trait Io {
    /// Reads one byte.
    fn read_u8(&mut self, offset: u16) -> u8;
    /// Reads 32 bits.
    fn read_u32(&mut self, offset: u16) -> u32;
    /// Writes one byte.
    fn write_u8(&mut self, offset: u16, value: u8);
    /// Writes 32 bits.
    fn write_u32(&mut self, offset: u16, value: u32);
}

/// How a slot stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// A module is there.
    pub enabled: bool,
    /// It was plugged in, and nobody has [taken notice](Hotplug::take_notice).
    pub inserted: bool,
    /// The host asks for it.
    pub asked_for: bool,
}

impl Status {
    fn of(flags: u8) -> Self {
        let has = |bit| flags & bit != 0;
        Self { enabled: has(ENABLED), inserted: has(INSERTED), asked_for: has(ASKED_FOR) }
    }
}

/// What became of a module that [may go](Hotplug::eject_known).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ejected {
    /// It went.
    Went,
    /// It had left before without a word, and nothing was done.
    HadLeft,
    /// The slot does not let it go.
    Stays,
}

/// A module in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// Where it is.
    pub range: ByteRange,
    /// To which proximity domain it belongs.
    pub proximity: u32,
}

/// Why a module cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleError {
    /// Its range cannot be one of a device.
    Region(RegionError),
    /// It lies where no memory may be plugged in.
    NotHotPluggable,
}

impl fmt::Display for ModuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Region(error) => error.fmt(f),
            Self::NotHotPluggable => f.write_str("it is in no range of the SRAT in which memory may be plugged in"),
        }
    }
}

impl Module {
    /// Its frames, if it can be used: nobody else has them, and the SRAT's `hot` ranges have all of it.
    ///
    /// # Errors
    /// [`ModuleError`].
    pub fn frames(&self, limits: Limits<'_>, hot: &[ByteRange]) -> Result<PfnRange, ModuleError> {
        let ByteRange { base, len_bytes } = self.range;
        let frames = Region { start: base, len_bytes }.frames(limits).map_err(ModuleError::Region)?;
        let inside = |hot: &ByteRange| hot.base <= base && self.range.end() <= hot.end();
        if hot.iter().any(inside) { Ok(frames) } else { Err(ModuleError::NotHotPluggable) }
    }
}

/// All slots.
pub struct Hotplug {
    registers: Arc<dyn Registers>,
    nr_slots: u32,
}

impl Hotplug {
    /// The slots behind these registers.
    pub fn new(registers: Arc<dyn Registers>, nr_slots: u32) -> Self {
        Self { registers, nr_slots }
    }

    /// How many there are.
    pub fn nr_slots(&self) -> u32 {
        self.nr_slots
    }

    /// Selects a slot, and does `work` before anybody selects another.
    fn selected<R>(&self, slot: u32, work: impl FnOnce(&mut dyn Io) -> R) -> R {
        let (mut work, mut result) = (Some(work), None);
        self.registers.with(&mut |io| {
            io.write_u32(SELECT, slot);
            result = work.take().map(|work| work(io));
        });
        match result {
            Some(result) => result,
            None => unreachable!("`with` calls what it is given"),
        }
    }

    /// How `slot` stands.
    pub fn status(&self, slot: u32) -> Status {
        Status::of(self.selected(slot, |io| io.read_u8(FLAGS)))
    }

    /// The module in `slot`, and how it stands; `None` where there is none.
    pub fn module(&self, slot: u32) -> Option<(Module, Status)> {
        self.selected(slot, read)
    }

    /// Takes notice of a module that was plugged in: the slot says so no more. What is there then.
    pub fn take_notice(&self, slot: u32) -> Option<(Module, Status)> {
        self.selected(slot, |io| {
            io.write_u8(FLAGS, INSERTED);
            read(io)
        })
    }

    /// Takes notice of the host's wish for a module that has left since, and says nothing: the next module in the slot is
    /// not meant. (In QEMU the wish outlives the module.)
    pub fn drop_request(&self, slot: u32) {
        self.selected(slot, |io| io.write_u8(FLAGS, ASKED_FOR));
    }

    /// Takes notice of the host's wish for a module, and says that it will go:
    /// [`eject_known`](Self::eject_known) lets it.
    pub fn take_request(&self, slot: u32) {
        self.selected(slot, |io| {
            io.write_u8(FLAGS, ASKED_FOR);
            report(io, STATUS_GOING);
        });
    }

    /// The module of which notice was taken may go. One that was plugged in since then stays, for it is another.
    pub fn eject_known(&self, slot: u32) -> Ejected {
        self.selected(slot, |io| {
            let before = Status::of(io.read_u8(FLAGS));
            if !before.enabled || before.inserted {
                return Ejected::HadLeft;
            }
            io.write_u8(FLAGS, EJECT);
            if Status::of(io.read_u8(FLAGS)).enabled { Ejected::Stays } else { Ejected::Went }
        })
    }

    /// Whatever is in the slot may go, known or not. Says whether it has.
    pub fn eject(&self, slot: u32) -> bool {
        self.selected(slot, |io| {
            io.write_u8(FLAGS, EJECT);
            !Status::of(io.read_u8(FLAGS)).enabled
        })
    }

    /// Takes notice of the host's wish, and refuses: the module stays. The host hears why (`_OST`).
    pub fn refuse(&self, slot: u32) {
        self.selected(slot, |io| {
            io.write_u8(FLAGS, ASKED_FOR);
            report(io, STATUS_IN_USE);
        });
    }
}

/// Where modules may still come: the parts of the `hot` ranges of the SRAT that the CPU can reach and that neither `limits`
/// nor `used` has, as whole pages, in rising order, disjoint, no two of them touching.
pub fn free_windows(hot: &[ByteRange], limits: Limits<'_>, used: &[PfnRange]) -> Vec<PfnRange> {
    let end_of_all = limits.phys_end() / PAGE_SIZE;
    let inner = |range: &ByteRange| (range.base.div_ceil(PAGE_SIZE), (range.end() / PAGE_SIZE).min(end_of_all));
    let outer = |range: &ByteRange| (range.base / PAGE_SIZE, range.end().div_ceil(PAGE_SIZE));
    let mut kept: Vec<_> = limits.taken.iter().map(|taken| outer(&taken.range)).collect();
    kept.extend(used.iter().map(|frames| (frames.start().as_u64(), frames.end().as_u64())));
    let (hot, kept) = (joined(hot.iter().map(inner).collect()), joined(kept));
    let mut free = Vec::new();
    for (mut at, end) in hot {
        for &(first, after) in kept.iter().take_while(|(first, _)| *first < end) {
            free.extend(pages(at, first));
            at = at.max(after);
        }
        free.extend(pages(at, end));
    }
    free
}

/// The ranges in rising order, those that overlap or touch made one.
fn joined(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.retain(|(first, after)| first < after);
    ranges.sort_unstable();
    ranges.dedup_by(|next, last| {
        let is_one = next.0 <= last.1;
        if is_one {
            last.1 = last.1.max(next.1);
        }
        is_one
    });
    ranges
}

fn pages(first: u64, after: u64) -> Option<PfnRange> {
    PfnRange::new(Pfn::new(first), after.checked_sub(first)?)
}

/// What becomes of a request (ACPI 6.5 §6.3.5, `_OST`).
fn report(io: &mut dyn Io, status: u32) {
    io.write_u32(OST_EVENT, EVENT_EJECT);
    // The report is complete, and the host hears of it, with this one.
    io.write_u32(OST_STATUS, status);
}

fn read(io: &mut dyn Io) -> Option<(Module, Status)> {
    let status = Status::of(io.read_u8(FLAGS));
    let mut wide = |low| u64::from(io.read_u32(low + 4)) << 32 | u64::from(io.read_u32(low));
    let range = ByteRange { base: wide(BASE), len_bytes: wide(LENGTH) };
    let proximity = io.read_u32(PROXIMITY);
    status.enabled.then_some((Module { range, proximity }, status))
}
