//! The table DMAR: which units there are, and for which devices (VT-d §8).
//!
//! Lengths and pointers are the firmware's, so each is compared with the bytes that there are. What is wrong costs as
//! little as it can: a table whose frame is wrong is refused as a whole, a structure that is wrong is left out, and a
//! structure whose length leads nowhere ends the walk. Each has a notice of one line.

use core::fmt;

use alloc::vec::Vec;

use arrayvec::ArrayVec;
use mm::addr::{PAGE_SIZE, PhysAddr};

use crate::source::SourceId;

/// How many units are kept.
pub const MAX_UNITS: usize = 8;
/// How many scopes of one unit, or of one reserved region, are kept.
pub const MAX_SCOPES: usize = 16;
/// How many reserved regions are kept.
pub const MAX_RESERVED: usize = 8;
/// How many notices are kept; later ones are only counted.
pub const MAX_NOTICES: usize = 16;
/// How many bridges lie between a bus and a device, at most.
pub const MAX_PATH: usize = 8;

/// Bytes before the first structure.
const FIXED: usize = 48;

/// Why the table was refused as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// There are fewer bytes than the fixed part takes.
    Short {
        /// How many there are.
        have_bytes: usize,
    },
    /// It is another table.
    Signature {
        /// What it is.
        found: [u8; 4],
    },
    /// The length in its header is less than its fixed part, or more than the bytes that there are.
    Length {
        /// What it claims, in bytes.
        claimed_bytes: u32,
        /// How many bytes there are.
        have_bytes: usize,
    },
    /// The bytes do not add up to zero.
    Checksum {
        /// What they add up to.
        sum: u8,
    },
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Short { have_bytes } => write!(f, "DMAR: table has {have_bytes} bytes, it takes at least {FIXED}"),
            Self::Signature { found } => write!(f, "DMAR: the table's signature is \"{}\"", found.escape_ascii()),
            Self::Length { claimed_bytes, have_bytes } => write!(
                f,
                "DMAR: table claims {claimed_bytes} bytes; it must be at least {FIXED} and there are {have_bytes}"
            ),
            Self::Checksum { sum } => {
                write!(f, "DMAR: table has a bad checksum: its bytes add up to {sum:#04x}, not to 0")
            }
        }
    }
}

impl core::error::Error for TableError {}

/// Something that is wrong with a part of the table. `Display` gives one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A structure of a length that leads nowhere: the walk ends.
    Structure {
        /// Where it begins, in bytes from the table's beginning.
        offset: usize,
        /// Its length, as it claims.
        claimed_bytes: u16,
        /// How many bytes of the table are left.
        left_bytes: usize,
    },
    /// A structure that is too short for its type: it is left out.
    StructureShort {
        /// Where it begins.
        offset: usize,
        /// Its type.
        kind: u16,
        /// How long it is, in bytes.
        bytes: u16,
    },
    /// Registers at an address where there can be none: the unit is left out.
    Registers {
        /// Where its structure begins.
        offset: usize,
        /// The address.
        address: u64,
    },
    /// A second unit at the same address, or a second one for all devices of a segment: it is left out.
    UnitTwice {
        /// Where its structure begins.
        offset: usize,
    },
    /// A scope whose length is wrong, or odd: it and the rest of its structure's are left out.
    Scope {
        /// Where it begins.
        offset: usize,
        /// Its length, as it claims.
        claimed_bytes: u8,
        /// How many bytes of its structure are left.
        left_bytes: usize,
    },
    /// A scope that names no device: no path, or a device or function that no bus has. It is left out.
    NoDevice {
        /// Where it begins.
        offset: usize,
    },
    /// A unit for no device: not for all, and no scope.
    NoScope {
        /// Where its structure begins.
        offset: usize,
    },
    /// A reserved region that is empty, or that wraps, or that is not whole pages: it is left out.
    Region {
        /// Where its structure begins.
        offset: usize,
        /// Its first byte.
        base: u64,
        /// Its last byte.
        limit: u64,
    },
    /// More of a kind than we keep.
    TooMany {
        /// Where the structure or scope begins.
        offset: usize,
        /// Of what.
        what: &'static str,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Structure { offset, claimed_bytes, left_bytes } => write!(
                f,
                "DMAR: structure at {offset:#x} claims {claimed_bytes} bytes where {left_bytes} are left; rest not read"
            ),
            Self::StructureShort { offset, kind, bytes } => {
                write!(f, "DMAR: structure at {offset:#x} (type {kind}) has {bytes} bytes, too few; skipped")
            }
            Self::Registers { offset, address } => write!(
                f,
                "DMAR: unit at {offset:#x} has its registers at {address:#x}; a multiple of 4096 above 0 is expected; \
                 skipped"
            ),
            Self::UnitTwice { offset } => write!(f, "DMAR: unit at {offset:#x} is there already; skipped"),
            Self::Scope { offset, claimed_bytes, left_bytes } => write!(
                f,
                "DMAR: scope at {offset:#x} claims {claimed_bytes} bytes where {left_bytes} are left; rest of the \
                 structure not read"
            ),
            Self::NoDevice { offset } => write!(f, "DMAR: scope at {offset:#x} names no device; skipped"),
            Self::NoScope { offset } => write!(f, "DMAR: unit at {offset:#x} is for no device"),
            Self::Region { offset, base, limit } => write!(
                f,
                "DMAR: reserved region at {offset:#x} goes from {base:#x} to {limit:#x}; whole pages are expected; \
                 skipped"
            ),
            Self::TooMany { offset, what } => {
                write!(f, "DMAR: there are more {what} than we keep: that at {offset:#x} is left out")
            }
        }
    }
}

/// What a scope names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScopeKind {
    /// A device.
    Endpoint,
    /// A bridge, and all that is behind it.
    Bridge,
    /// An I/O APIC.
    IoApic,
    /// A timer that sends messages.
    Hpet,
    /// A device that ACPI's namespace names.
    Namespace,
    /// A type of a later revision.
    Other(u8),
}

/// A device or bridge, by the way to it: from a bus, through bridges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// What it is.
    pub kind: ScopeKind,
    /// Its number, for I/O APICs and timers.
    pub id: u8,
    /// The bus on which the path begins.
    pub bus: u8,
    /// Device and function on each bus of the way; at least one. All but the last are bridges.
    pub path: ArrayVec<(u8, u8), MAX_PATH>,
}

/// The buses behind a bridge, `first` to `last`, as its registers say. `None`: it is no bridge.
pub type Behind<'b> = &'b dyn Fn(SourceId) -> Option<(u8, u8)>;

impl Scope {
    /// Is `source` what this names, or behind it?
    fn covers(&self, source: SourceId, behind: Behind<'_>) -> bool {
        let mut bus = self.bus;
        let Some(((device, function), bridges)) = self.path.split_last() else { return false };
        for (device, function) in bridges {
            let bridge = SourceId { bus, device: *device, function: *function };
            let Some((first, _)) = behind(bridge) else { return false };
            bus = first;
        }
        let named = SourceId { bus, device: *device, function: *function };
        match self.kind {
            ScopeKind::Bridge => {
                named == source || behind(named).is_some_and(|(first, last)| (first..=last).contains(&source.bus))
            }
            _ => named == source,
        }
    }
}

/// A remapping unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its registers: at least one page.
    pub registers: PhysAddr,
    /// It is for all devices of the segment that no other unit is for.
    pub include_all: bool,
    /// PCI segment.
    pub segment: u16,
    /// The devices that it is for.
    pub scopes: Vec<Scope>,
}

/// Memory that devices use before the system takes over, and may go on using: it has to be mapped one to one for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// First byte.
    pub base: PhysAddr,
    /// Last byte.
    pub limit: PhysAddr,
    /// PCI segment.
    pub segment: u16,
    /// The devices.
    pub scopes: Vec<Scope>,
}

/// What the table says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dmar {
    /// Bits of a physical address that a device can reach: 1 to 64.
    pub host_address_width: u8,
    /// Interrupt remapping is supported.
    pub interrupt_remapping: bool,
    /// The units.
    pub units: Vec<Unit>,
    /// Reserved regions (RMRR).
    pub reserved: Vec<Reserved>,
    /// What is wrong with it, in the order in which it was found.
    pub notices: Vec<Notice>,
    /// How many notices there was no room for.
    pub notices_dropped: u32,
}

impl Dmar {
    /// The unit that a device of segment 0 is behind, if it can be told without asking bridges; else the one
    /// for all.
    pub fn unit_of(&self, bus: u8, device: u8, function: u8) -> Option<&Unit> {
        self.unit_behind(0, SourceId { bus, device, function }, &|_| None)
    }

    /// The same for any segment; `behind` is asked for the buses behind bridges.
    pub fn unit_behind(&self, segment: u16, source: SourceId, behind: Behind<'_>) -> Option<&Unit> {
        let mut units = self.units.iter().filter(|unit| unit.segment == segment);
        let named = units.clone().find(|unit| unit.scopes.iter().any(|scope| scope.covers(source, behind)));
        named.or_else(|| units.find(|unit| unit.include_all))
    }

    fn note(&mut self, notice: Notice) {
        if push(&mut self.notices, MAX_NOTICES, notice).is_err() {
            self.notices_dropped = self.notices_dropped.saturating_add(1);
        }
    }
}

/// There are as many as are kept.
struct Full;

/// Appends, where that makes no more than `most`: the lists are kept by a kernel whose stacks are small.
fn push<T>(list: &mut Vec<T>, most: usize, item: T) -> Result<(), Full> {
    if list.len() >= most {
        return Err(Full);
    }
    list.push(item);
    Ok(())
}

/// Little-endian numbers of a structure whose length was compared before.
fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}
fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([byte(bytes, at), byte(bytes, at + 1)])
}
fn quad(bytes: &[u8], at: usize) -> u64 {
    (0..8).fold(0, |value, nth| value | u64::from(byte(bytes, at + nth)) << (8 * nth))
}

/// Reads the table from `bytes`, which begin with it and may go on behind it.
///
/// # Errors
/// The table cannot be used at all. What is wrong with a part of it is a [`Notice`].
pub fn parse(bytes: &[u8]) -> Result<Dmar, TableError> {
    let table = framed(bytes)?;
    let mut dmar = Dmar {
        host_address_width: byte(table, 36).saturating_add(1).min(64),
        interrupt_remapping: byte(table, 37) & 1 != 0,
        ..Dmar::default()
    };
    let mut offset = FIXED;
    while offset < table.len() {
        let rest = &table[offset..];
        let claimed_bytes = if rest.len() < 4 { 0 } else { word(rest, 2) };
        let len = usize::from(claimed_bytes);
        if len < 4 || len > rest.len() {
            dmar.note(Notice::Structure { offset, claimed_bytes, left_bytes: rest.len() });
            break;
        }
        if let Err(notice) = structure(&mut dmar, offset, &rest[..len]) {
            dmar.note(notice);
        }
        offset += len;
    }
    Ok(dmar)
}

/// The table, cut to the length that it claims.
fn framed(bytes: &[u8]) -> Result<&[u8], TableError> {
    let have_bytes = bytes.len();
    if have_bytes < FIXED {
        return Err(TableError::Short { have_bytes });
    }
    let found = [bytes[0], bytes[1], bytes[2], bytes[3]];
    if found != *b"DMAR" {
        return Err(TableError::Signature { found });
    }
    let claimed_bytes = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    let len = usize::try_from(claimed_bytes).ok().filter(|len| *len >= FIXED);
    let table = len.and_then(|len| bytes.get(..len)).ok_or(TableError::Length { claimed_bytes, have_bytes })?;
    match table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) {
        0 => Ok(table),
        sum => Err(TableError::Checksum { sum }),
    }
}

/// Reads one structure, whose bytes are all there, and the 4 of its header at least.
fn structure(dmar: &mut Dmar, offset: usize, bytes: &[u8]) -> Result<(), Notice> {
    let kind = word(bytes, 0);
    let fixed = match kind {
        0 => 16,
        1 => 24,
        // Devices that translate by themselves, NUMA nodes, names: nothing that we use.
        _ => return Ok(()),
    };
    if bytes.len() < fixed {
        return Err(Notice::StructureShort { offset, kind, bytes: bytes.len() as u16 });
    }
    match kind {
        0 => unit(dmar, offset, bytes, fixed),
        _ => reserved(dmar, offset, bytes, fixed),
    }
}

fn unit(dmar: &mut Dmar, offset: usize, bytes: &[u8], fixed: usize) -> Result<(), Notice> {
    let address = quad(bytes, 8);
    if address == 0 || !address.is_multiple_of(PAGE_SIZE) || address >> 52 != 0 {
        return Err(Notice::Registers { offset, address });
    }
    let (registers, segment) = (PhysAddr::new(address), word(bytes, 6));
    let include_all = byte(bytes, 4) & 1 != 0;
    let same = |unit: &Unit| unit.registers == registers || include_all && unit.include_all && unit.segment == segment;
    if dmar.units.iter().any(same) {
        return Err(Notice::UnitTwice { offset });
    }
    let scopes = scopes(dmar, offset, bytes, fixed);
    if scopes.is_empty() && !include_all {
        dmar.note(Notice::NoScope { offset });
    }
    let unit = Unit { registers, include_all, segment, scopes };
    push(&mut dmar.units, MAX_UNITS, unit).map_err(|_| Notice::TooMany { offset, what: "units" })
}

fn reserved(dmar: &mut Dmar, offset: usize, bytes: &[u8], fixed: usize) -> Result<(), Notice> {
    let (base, limit) = (quad(bytes, 8), quad(bytes, 16));
    let whole = base.is_multiple_of(PAGE_SIZE) && limit % PAGE_SIZE == PAGE_SIZE - 1;
    if !whole || base >= limit || limit >> 52 != 0 {
        return Err(Notice::Region { offset, base, limit });
    }
    let scopes = scopes(dmar, offset, bytes, fixed);
    let (base, limit) = (PhysAddr::new(base), PhysAddr::new(limit));
    let region = Reserved { base, limit, segment: word(bytes, 6), scopes };
    push(&mut dmar.reserved, MAX_RESERVED, region).map_err(|_| Notice::TooMany { offset, what: "reserved regions" })
}

/// The scopes behind the `fixed` part of a structure that begins at `offset`.
fn scopes(dmar: &mut Dmar, offset: usize, bytes: &[u8], fixed: usize) -> Vec<Scope> {
    let mut scopes = Vec::new();
    let mut at = fixed;
    while at < bytes.len() {
        let (rest, offset) = (&bytes[at..], offset + at);
        let (claimed_bytes, left_bytes) = (byte(rest, 1), rest.len());
        let len = usize::from(claimed_bytes);
        if len < 6 || len > left_bytes || !len.is_multiple_of(2) {
            dmar.note(Notice::Scope { offset, claimed_bytes, left_bytes });
            break;
        }
        match scope(&rest[..len]) {
            None => dmar.note(Notice::NoDevice { offset }),
            Some(scope) => {
                if push(&mut scopes, MAX_SCOPES, scope).is_err() {
                    dmar.note(Notice::TooMany { offset, what: "scopes" });
                }
            }
        }
        at += len;
    }
    scopes
}

/// One scope; `None` where it names no device.
fn scope(bytes: &[u8]) -> Option<Scope> {
    let kind = match byte(bytes, 0) {
        1 => ScopeKind::Endpoint,
        2 => ScopeKind::Bridge,
        3 => ScopeKind::IoApic,
        4 => ScopeKind::Hpet,
        5 => ScopeKind::Namespace,
        other => ScopeKind::Other(other),
    };
    let mut path = ArrayVec::new();
    for hop in bytes[6..].chunks_exact(2) {
        if hop[0] > 31 || hop[1] > 7 || path.try_push((hop[0], hop[1])).is_err() {
            return None;
        }
    }
    (!path.is_empty()).then_some(Scope { kind, id: byte(bytes, 4), bus: byte(bytes, 5), path })
}
