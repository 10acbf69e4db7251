//! From the firmware's root pointer to the tables that the kernel reads: the NFIT, the MADT, the FADT and the DMAR.
//!
//! The chain is RSDP → XSDT (or RSDT) → tables, each link a physical address that the firmware wrote down
//! (ACPI 6.5 §5.2.5 to §5.2.8). Each is followed only as far as [`PhysMemory`] vouches for the bytes there, and
//! what is wrong costs its own table only:
//!
//! | fault | what is lost |
//! |---|---|
//! | RSDP not readable, or its signature or checksum wrong | everything: [`RootError`] |
//! | XSDT wrong | nothing if the RSDT is sound, else everything |
//! | an entry of the XSDT points to nothing readable | that entry |
//! | a table's length or checksum is wrong | that table |
//! | an entry of the MADT of length zero, or one that goes beyond its end | that entry and all after it |
//!
//! Why this and not the `acpi` crate: that one trusts the tables' lengths and pointers (it subtracts a header from
//! a length that may be less, and an entry of length zero in the MADT makes its iterator go round for ever), which
//! suits firmware that is what it should be. A kernel that promises one line for each bad table needs the bounds.

pub mod aml;
mod fadt;
mod madt;
mod notice;
mod root;
pub mod sdt;
mod srat;
#[cfg(test)]
mod tests;

pub use fadt::{Events, PmTimer};
pub use madt::{Cpu, IoApic, MAX_CPUS, Madt, Override};
pub use notice::{AcpiNotice, RootError};
pub use srat::MAX_HOT_RANGES;

use arrayvec::ArrayVec;

use crate::nfit::ByteRange;

/// How many NFITs are kept. There should be one; a second may have been added by hand.
pub const MAX_NFITS: usize = 4;
/// How many of the firmware's own programs are kept: the DSDT, and SSDTs.
pub const MAX_PROGRAMS: usize = 16;
/// How many notices are kept; later ones are only counted.
pub const MAX_NOTICES: usize = 16;
/// No table that we read is longer than this many bytes: a longer one has a wrong length.
pub const MAX_TABLE_BYTES: u64 = 16 << 20;

/// Physical memory, as far as it may be read.
pub trait PhysMemory {
    /// The bytes at a physical address; `None` unless each of them is memory that is mapped and does not change.
    fn bytes(&self, base: u64, len_bytes: u64) -> Option<&[u8]>;
}

/// What the tables say.
#[derive(Clone, Debug, Default)]
pub struct AcpiInfo<'m> {
    /// Each NFIT, unchecked, for [`crate::nfit::parse`] to judge: it has a line for each fault.
    pub nfits: ArrayVec<&'m [u8], MAX_NFITS>,
    /// The DMA remapping table, unchecked but for its head: the driver of the IOMMU judges it.
    pub dmar: Option<&'m [u8]>,
    /// The interrupt controllers, and with them the CPUs.
    pub madt: Option<Madt>,
    /// The power management timer, which counts at 3.579545 MHz.
    pub pm_timer: Option<PmTimer>,
    /// Where events are told, such as memory that is plugged in.
    pub events: Option<Events>,
    /// The firmware's own programs, for [`aml`] to look for constants in.
    pub programs: ArrayVec<&'m [u8], MAX_PROGRAMS>,
    /// Where memory may be plugged in.
    pub hot_ranges: ArrayVec<ByteRange, MAX_HOT_RANGES>,
    /// How many tables the root table lists.
    pub nr_tables: u32,
    /// What was found wrong, in the order in which it was found.
    pub notices: ArrayVec<AcpiNotice, MAX_NOTICES>,
    /// How many notices there was no room for.
    pub notices_dropped: u32,
}

impl AcpiInfo<'_> {
    fn note(&mut self, notice: AcpiNotice) {
        if self.notices.try_push(notice).is_err() {
            self.notices_dropped = self.notices_dropped.saturating_add(1);
        }
    }
}

/// Follows the root pointer at physical address `rsdp` and reads the tables that the kernel needs.
///
/// # Errors
/// If no root table can be found, as there is nothing to read then. Faults further on are notices.
pub fn discover<M: PhysMemory>(memory: &M, rsdp: u64) -> Result<AcpiInfo<'_>, RootError> {
    let mut info = AcpiInfo::default();
    let root = root::find(memory, rsdp, &mut info)?;
    if !root.tail().is_empty() {
        info.note(AcpiNotice::RootTail { left_bytes: root.tail().len() });
    }
    for base in root.entries() {
        info.nr_tables = info.nr_tables.saturating_add(1);
        read_table(memory, base, &mut info);
    }
    Ok(info)
}

/// Takes in the table at `base` if it is of a kind that we read.
fn read_table<'m, M: PhysMemory>(memory: &'m M, base: u64, info: &mut AcpiInfo<'m>) {
    let Some((signature, bytes)) = root::table_at(memory, base) else {
        return info.note(AcpiNotice::Unreadable { base });
    };
    let result = match &signature {
        b"NFIT" => info.nfits.try_push(bytes).map_err(|_| AcpiNotice::TooMany { signature }),
        b"APIC" if info.madt.is_some() => Err(AcpiNotice::TooMany { signature }),
        b"APIC" => madt::read(bytes, info),
        b"DMAR" if info.dmar.is_some() => Err(AcpiNotice::TooMany { signature }),
        b"DMAR" => {
            info.dmar = Some(bytes);
            Ok(())
        }
        b"FACP" if info.pm_timer.is_none() => fadt::read(bytes).and_then(|fadt| {
            info.pm_timer = fadt.pm_timer;
            match fadt.events {
                Ok(events) => info.events = events,
                Err(notice) => info.note(notice),
            }
            // The one program that no root table lists.
            add_dsdt(memory, fadt.dsdt, info)
        }),
        b"SSDT" => root::check(bytes, b"SSDT", sdt::HEADER_BYTES).and_then(|(_, program)| add(program, info)),
        b"SRAT" => srat::read(bytes, info),
        _ => Ok(()),
    };
    if let Err(notice) = result {
        info.note(notice);
    }
}

fn add_dsdt<'m, M: PhysMemory>(memory: &'m M, base: u64, info: &mut AcpiInfo<'m>) -> Result<(), AcpiNotice> {
    if base == 0 {
        return Ok(());
    }
    let (_, bytes) = root::table_at(memory, base).ok_or(AcpiNotice::Unreadable { base })?;
    let (_, program) = root::check(bytes, b"DSDT", sdt::HEADER_BYTES)?;
    add(program, info)
}

fn add<'m>(program: &'m [u8], info: &mut AcpiInfo<'m>) -> Result<(), AcpiNotice> {
    info.programs.try_push(program).map_err(|_| AcpiNotice::TooMany { signature: *b"SSDT" })
}
