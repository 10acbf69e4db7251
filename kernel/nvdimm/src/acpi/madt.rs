//! The Multiple APIC Description Table: which CPUs there are (ACPI 6.5 §5.2.12).

use arrayvec::ArrayVec;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::sdt::Header;
use super::{AcpiInfo, AcpiNotice, root};

/// How many CPUs are kept; each further one is reported.
pub const MAX_CPUS: usize = 64;

/// The identifiers that stand for every CPU, where one has 32 bits and where it has 8.
const EVERYONE: u32 = u32::MAX;
const EVERYONE_OF_8_BITS: u32 = 0xff;

/// A CPU that can be started: its entry says that it is enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Identifier of its local APIC, the destination of its IPIs.
    pub apic_id: u32,
    /// The processor's number in the firmware's own objects.
    pub acpi_uid: u32,
}

impl Cpu {
    /// Can an interrupt be sent to it alone? An interrupt command's destination has 8 bits, or 32 with x2APIC, and with all
    /// of them set it is every CPU (SDM vol. 3A §11.6.2.1, §11.12.9).
    pub fn is_reachable(&self, x2apic: bool) -> bool {
        self.apic_id < if x2apic { EVERYONE } else { EVERYONE_OF_8_BITS }
    }
}

/// An I/O APIC: what turns the lines of devices into interrupts of CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// Physical address of its registers.
    pub base: u64,
    /// The number of its first line, as the machine counts them.
    pub first_line: u32,
}

/// How many are kept; the kernel uses one line of one.
pub const MAX_IO_APICS: usize = 8;

/// Where a line of the old interrupt controllers arrives, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Override {
    /// The line's old number.
    pub irq: u8,
    /// Its number now.
    pub line: u32,
    /// Polarity and trigger mode, as the table has them.
    pub flags: u16,
}

/// The interrupt controllers.
#[derive(Clone, Debug, Default)]
pub struct Madt {
    /// Physical address of each CPU's local APIC registers.
    pub local_apic_base: u64,
    /// The CPUs that can be started, in the table's order. The one that boots should be among them, and need not be first.
    pub cpus: ArrayVec<Cpu, MAX_CPUS>,
    /// How many CPUs are listed that cannot be started.
    pub nr_disabled: u32,
    /// The I/O APICs.
    pub io_apics: ArrayVec<IoApic, MAX_IO_APICS>,
    /// Lines that arrive elsewhere than at their old number.
    pub overrides: ArrayVec<Override, 16>,
}

impl Madt {
    /// The CPUs that can be started beside the one that boots, which has the APIC `boot_apic`.
    pub fn others(&self, boot_apic: u32) -> impl Iterator<Item = &Cpu> {
        self.cpus.iter().filter(move |cpu| cpu.apic_id != boot_apic)
    }

    /// How many CPUs there may be in all. The one that boots is one of them, whether or not the table names it.
    pub fn nr_cpus(&self, boot_apic: u32) -> usize {
        1 + self.others(boot_apic).count()
    }

    /// Where a line of the old controllers arrives: the I/O APIC, its line there, and whether it is active low. `None` where no
    /// I/O APIC can have that line. Of a line
    /// that no entry names, at the same number; the interrupt of ACPI's own events is active low then (ACPI 6.5 §5.2.9,
    /// `SCI_INT`).
    pub fn route(&self, irq: u16) -> Option<(IoApic, u32, bool)> {
        let moved = self.overrides.iter().find(|moved| u16::from(moved.irq) == irq);
        let (line, flags) = moved.map_or((u32::from(irq), 0), |moved| (moved.line, moved.flags));
        let of = self.io_apics.iter().filter(|io| io.first_line <= line).max_by_key(|io| io.first_line)?;
        let line = Some(line - of.first_line).filter(|line| *line < MAX_LINES)?;
        Some((*of, line, flags & POLARITY != ACTIVE_HIGH))
    }
}

/// An I/O APIC's own registers have numbers of 8 bits, and each line has two of them, from 0x10 on (Intel 82093AA, §3.2). How
/// many of them there are says the I/O APIC.
const MAX_LINES: u32 = (0x100 - 0x10) / 2;

/// Of an override's flags: polarity, and the one of the three that is not active low for this interrupt.
const POLARITY: u16 = 0b11;
const ACTIVE_HIGH: u16 = 0b01;

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

/// Type 1: an I/O APIC.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct IoApicEntry {
    header: EntryHeader,
    id: u8,
    reserved: u8,
    base: U32,
    first_line: U32,
}

/// Type 2: a line that arrives elsewhere.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct OverrideEntry {
    header: EntryHeader,
    bus: u8,
    irq: u8,
    line: U32,
    flags: U16,
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
            let found = Cpu { apic_id: cpu.apic_id.into(), acpi_uid: cpu.acpi_uid.into() };
            add_cpu(madt, found, cpu.flags.get(), EVERYONE_OF_8_BITS, offset)
        }
        1 => {
            let io: &IoApicEntry = view(offset, kind, entry)?;
            // One more than there is room for goes without a word: one line of one of them is used.
            let _ = madt.io_apics.try_push(IoApic { base: io.base.get().into(), first_line: io.first_line.get() });
            Ok(())
        }
        2 => {
            let moved: &OverrideEntry = view(offset, kind, entry)?;
            let _ =
                madt.overrides.try_push(Override { irq: moved.irq, line: moved.line.get(), flags: moved.flags.get() });
            Ok(())
        }
        5 => {
            let address: &LocalApicAddress = view(offset, kind, entry)?;
            madt.local_apic_base = address.base.get();
            Ok(())
        }
        9 => {
            let cpu: &LocalX2Apic = view(offset, kind, entry)?;
            let found = Cpu { apic_id: cpu.apic_id.get(), acpi_uid: cpu.acpi_uid.get() };
            add_cpu(madt, found, cpu.flags.get(), EVERYONE, offset)
        }
        // NMI lines and what else no device of ours interrupts through.
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

/// Takes in the CPU of the entry at `offset`; `everyone` is the identifier that no CPU has in an entry of its type.
fn add_cpu(madt: &mut Madt, cpu: Cpu, flags: u32, everyone: u32, offset: usize) -> Result<(), AcpiNotice> {
    if flags & ENABLED == 0 {
        madt.nr_disabled = madt.nr_disabled.saturating_add(1);
        return Ok(());
    }
    let apic_id = cpu.apic_id;
    if apic_id == everyone {
        return Err(AcpiNotice::CpuIsEveryone { offset, apic_id });
    }
    if madt.cpus.iter().any(|cpu| cpu.apic_id == apic_id) {
        return Err(AcpiNotice::CpuTwice { apic_id });
    }
    madt.cpus.try_push(cpu).map_err(|_| AcpiNotice::TooManyCpus { apic_id })
}
