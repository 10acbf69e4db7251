//! One line for each thing that is wrong with the chain of tables.

use core::fmt;

use super::madt::MAX_CPUS;
use super::sdt::TableError;

/// Why there is no list of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootError {
    /// No memory is known at the root pointer's address.
    RsdpUnreadable {
        /// Its physical address.
        base: u64,
    },
    /// What lies there is not a root pointer.
    RsdpSignature {
        /// Its physical address.
        base: u64,
    },
    /// The root pointer's bytes do not add up to zero.
    RsdpChecksum {
        /// What they add up to, modulo 256.
        sum: u8,
    },
    /// Neither root table is sound.
    NoRootTable,
}

impl fmt::Display for RootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::RsdpUnreadable { base } => {
                write!(f, "no memory is known at the RSDP's address {base:#x}")
            }
            Self::RsdpSignature { base } => {
                write!(f, "there is no RSDP at {base:#x}: its signature is missing")
            }
            Self::RsdpChecksum { sum } => {
                write!(f, "the RSDP has a bad checksum: its bytes add up to {sum:#04x}, not to 0")
            }
            Self::NoRootTable => f.write_str("neither the XSDT nor the RSDT can be used"),
        }
    }
}

/// Something that is wrong with a table, and that costs that table or less. `Display` gives one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiNotice {
    /// The part of the RSDP that points to the XSDT is faulty; the RSDT is used.
    RsdpExtension,
    /// A root table points to no memory that is known, or is longer than any table.
    Unreadable {
        /// The physical address.
        base: u64,
    },
    /// A table is faulty as a whole.
    Table {
        /// Which one.
        signature: [u8; 4],
        /// What is wrong with it.
        error: TableError,
    },
    /// The root table's length is not a whole number of entries.
    RootTail {
        /// How many bytes are left over.
        left_bytes: usize,
    },
    /// More tables of one kind than we can hold.
    TooMany {
        /// Which kind.
        signature: [u8; 4],
    },
    /// An entry of the MADT has length zero or goes beyond the table's end: the walk ends.
    MadtEntry {
        /// Where it begins, in bytes from the table's beginning.
        offset: usize,
        /// How long it claims to be, in bytes.
        claimed_bytes: u8,
        /// How many bytes of the table are left.
        left_bytes: usize,
    },
    /// An entry of the MADT is too short for its type: it is skipped.
    MadtEntryShort {
        /// Where it begins, in bytes from the table's beginning.
        offset: usize,
        /// Its type.
        kind: u8,
        /// How long it is, in bytes.
        claimed_bytes: u8,
    },
    /// An entry of the SRAT has no length, or goes beyond the table's end: the walk ends.
    SratEntry {
        /// Where it begins, in bytes from the table's beginning.
        offset: usize,
        /// How long it claims to be, in bytes.
        claimed_bytes: u8,
        /// How many bytes of the table are left.
        left_bytes: usize,
    },
    /// An entry of the SRAT is too short for a range of memory: it is skipped.
    SratEntryShort {
        /// Where it begins, in bytes from the table's beginning.
        offset: usize,
        /// How long it is, in bytes.
        claimed_bytes: u8,
    },
    /// A range of the SRAT is empty or wraps: it is skipped.
    SratRange {
        /// Where its entry begins, in bytes from the table's beginning.
        offset: usize,
        /// Its first byte.
        base: u64,
        /// Its length in bytes.
        len_bytes: u64,
    },
    /// More ranges for memory that is plugged in than we can hold.
    TooManyHotRanges {
        /// The first byte of the one that is left out.
        base: u64,
    },
    /// The FADT's block of events has more bytes than there are I/O ports from its first one on: no events are told.
    EventPorts {
        /// Its first port.
        port: u16,
        /// Its length in bytes.
        len_bytes: u8,
    },
    /// More CPUs than we can hold.
    TooManyCpus {
        /// Local APIC identifier of the one that is left out.
        apic_id: u32,
    },
    /// An entry of the MADT gives an enabled CPU the APIC identifier that stands for all of them: it is skipped.
    CpuIsEveryone {
        /// Where it begins, in bytes from the table's beginning.
        offset: usize,
        /// The identifier.
        apic_id: u32,
    },
    /// Two entries name the same local APIC: the second is skipped.
    CpuTwice {
        /// The local APIC's identifier.
        apic_id: u32,
    },
}

impl fmt::Display for AcpiNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::RsdpExtension => f.write_str("the RSDP's second part is faulty; the RSDT is used, not the XSDT"),
            Self::Unreadable { base } => {
                write!(f, "no table can be read at {base:#x}, to which a root table points; skipped")
            }
            Self::Table { signature, error } => {
                write!(f, "{}: {error}; table not used", signature.escape_ascii())
            }
            Self::RootTail { left_bytes } => {
                write!(f, "the root table ends with {left_bytes} bytes that are no entry; ignored")
            }
            Self::TooMany { signature } => {
                write!(f, "there are more tables \"{}\" than we read; skipped", signature.escape_ascii())
            }
            Self::MadtEntry { offset, claimed_bytes, left_bytes } => write!(
                f,
                "MADT: entry at {offset:#x} claims {claimed_bytes} bytes where {left_bytes} are left; rest not read"
            ),
            Self::MadtEntryShort { offset, kind, claimed_bytes } => {
                write!(f, "MADT: entry at {offset:#x} (type {kind}) has {claimed_bytes} bytes, too few; skipped")
            }
            Self::SratEntry { offset, claimed_bytes, left_bytes } => write!(
                f,
                "SRAT: entry at {offset:#x} claims {claimed_bytes} bytes where {left_bytes} are left; rest not read"
            ),
            Self::SratEntryShort { offset, claimed_bytes } => {
                write!(f, "SRAT: entry at {offset:#x} (memory) has {claimed_bytes} bytes, too few; skipped")
            }
            Self::SratRange { offset, base, len_bytes } => {
                write!(f, "SRAT: entry at {offset:#x}: {len_bytes:#x} bytes at {base:#x} are no range; skipped")
            }
            Self::TooManyHotRanges { base } => {
                write!(f, "SRAT: the range at {base:#x} is left out: there is room for {}", super::MAX_HOT_RANGES)
            }
            Self::EventPorts { port, len_bytes } => {
                write!(f, "FADT: {len_bytes} bytes of events at I/O port {port:#x} go beyond the last port; not used")
            }
            Self::TooManyCpus { apic_id } => {
                write!(f, "MADT: the CPU with APIC {apic_id} is left out: there is room for {MAX_CPUS}")
            }
            Self::CpuIsEveryone { offset, apic_id } => {
                write!(f, "MADT: entry at {offset:#x}: APIC {apic_id} is no CPU's, but stands for all; skipped")
            }
            Self::CpuTwice { apic_id } => {
                write!(f, "MADT: the CPU with APIC {apic_id} is listed twice")
            }
        }
    }
}
