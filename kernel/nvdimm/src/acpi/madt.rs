//! The Multiple APIC Description Table: which CPUs there are (ACPI 6.5 §5.2.12).

use arrayvec::ArrayVec;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::sdt::Header;
use super::{AcpiInfo, AcpiNotice, root};

/// How many CPUs are kept; each further one is reported.
pub const MAX_CPUS: usize = 64;

/// A CPU that can be started: its entry says that it is enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Identifier of its local APIC, the destination of its IPIs.
    pub apic_id: u32,
    /// The processor's number in the firmware's own objects.
    pub acpi_uid: u32,
}

/// The interrupt controllers.
#[derive(Clone, Debug, Default)]
pub struct Madt {
    /// Physical address of each CPU's local APIC registers.
    pub local_apic_base: u64,
    /// The CPUs that can be started, in the table's order. The one that boots is among them, not always first.
    pub cpus: ArrayVec<Cpu, MAX_CPUS>,
    /// How many CPUs are listed that cannot be started.
    pub nr_disabled: u32,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fixed {
    header: Header,
    local_apic_base: U32,
    flags: U32,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct EntryHeader {
    kind: u8,
    length: u8,
}

/// Type 0: a CPU whose local APIC has an identifier of 8 bits.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct LocalApic {
    header: EntryHeader,
    acpi_uid: u8,
    apic_id: u8,
    flags: U32,
}

/// Type 5: a local APIC address of 64 bits, which replaces that of the table's fixed part.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct LocalApicAddress {
    header: EntryHeader,
    reserved: [u8; 2],
    base: U64,
}

/// Type 9: a CPU whose local APIC has an identifier of 32 bits.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct LocalX2Apic {
    header: EntryHeader,
    reserved: [u8; 2],
    apic_id: U32,
    flags: U32,
    acpi_uid: U32,
}

/// Bit of a CPU's flags: it is ready for use.
const ENABLED: u32 = 1;

/// Reads a table into `info`.
pub(super) fn read(bytes: &[u8], info: &mut AcpiInfo<'_>) -> Result<(), AcpiNotice> {
    let (_, table) = root::check(bytes, b"APIC", size_of::<Fixed>())?;
    let Ok((fixed, _)) = Fixed::ref_from_prefix(table) else {
        return Ok(()); // Unreachable: `check` has compared the length.
    };
    let mut madt = Madt { local_apic_base: fixed.local_apic_base.get().into(), ..Madt::default() };
    let mut offset = size_of::<Fixed>();
    while let Ok((header, _)) = EntryHeader::ref_from_prefix(&table[offset..]) {
        let (length, left_bytes) = (usize::from(header.length), table.len() - offset);
        if length < size_of::<EntryHeader>() || length > left_bytes {
            info.note(AcpiNotice::MadtEntry { offset, claimed_bytes: header.length, left_bytes });
            break;
        }
        if let Err(notice) = read_entry(&mut madt, offset, header.kind, &table[offset..offset + length]) {
            info.note(notice);
        }
        offset += length;
    }
    info.madt = Some(madt);
    Ok(())
}

fn read_entry(madt: &mut Madt, offset: usize, kind: u8, entry: &[u8]) -> Result<(), AcpiNotice> {
    match kind {
        0 => {
            let cpu: &LocalApic = view(offset, kind, entry)?;
            add_cpu(madt, cpu.apic_id.into(), cpu.acpi_uid.into(), cpu.flags.get())
        }
        5 => {
            let address: &LocalApicAddress = view(offset, kind, entry)?;
            madt.local_apic_base = address.base.get();
            Ok(())
        }
        9 => {
            let cpu: &LocalX2Apic = view(offset, kind, entry)?;
            add_cpu(madt, cpu.apic_id.get(), cpu.acpi_uid.get(), cpu.flags.get())
        }
        // I/O APICs, overrides and NMI lines: no device of ours interrupts through them.
        _ => Ok(()),
    }
}

fn view<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    offset: usize,
    kind: u8,
    entry: &[u8],
) -> Result<&T, AcpiNotice> {
    // An entry's length came from 8 bits.
    let claimed_bytes = entry.len() as u8;
    T::ref_from_prefix(entry).map(|(view, _)| view).map_err(|_| AcpiNotice::MadtEntryShort {
        offset,
        kind,
        claimed_bytes,
    })
}

fn add_cpu(madt: &mut Madt, apic_id: u32, acpi_uid: u32, flags: u32) -> Result<(), AcpiNotice> {
    if flags & ENABLED == 0 {
        madt.nr_disabled = madt.nr_disabled.saturating_add(1);
        return Ok(());
    }
    if madt.cpus.iter().any(|cpu| cpu.apic_id == apic_id) {
        return Err(AcpiNotice::CpuTwice { apic_id });
    }
    madt.cpus.try_push(Cpu { apic_id, acpi_uid }).map_err(|_| AcpiNotice::TooManyCpus { apic_id })
}
