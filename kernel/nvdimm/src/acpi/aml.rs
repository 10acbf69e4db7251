//! What is read of the firmware's own programs, the DSDT and the SSDTs, without running them: which I/O ports a few named
//! things have.
//!
//! A program in AML (ACPI 6.5 §20) is run by an interpreter, and there is none here. But where QEMU's registers for memory
//! that is plugged in and out are, and where its NVDIMMs are asked, stands there in constants, under names that have not
//! changed since they exist (`hw/acpi/memory_hotplug.c`, `hw/acpi/nvdimm.c`). So the bytes are searched for the operator
//! and the name, and what follows is decoded with its bounds checked: a length beyond the end, an operand that is no
//! constant, a descriptor of another shape is one line, and the thing counts as not there.

use core::fmt;

/// The registers by which memory modules come and go, and for how many slots they are (QEMU
/// `docs/specs/acpi_mem_hotplug.txt`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryHotplug {
    /// The first I/O port of the block.
    pub port: u16,
    /// How many slots there are.
    pub nr_slots: u32,
}

/// More slots than any machine has: QEMU's limit.
const MOST_SLOTS: u64 = 256;
/// Ports of the block.
const BLOCK_PORTS: u8 = 0x18;

/// Why something that is named in a program cannot be used. `Display` gives one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AmlFault {
    /// The name.
    pub name: [u8; 4],
    /// Where it stands, in bytes from the table's beginning.
    pub offset: usize,
    /// What is wrong, and what was expected.
    pub what: &'static str,
}

impl fmt::Display for AmlFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, offset, what } = self;
        write!(f, "AML: \"{}\" at {offset:#x}: {what}; not used", name.escape_ascii())
    }
}

const EXT: u8 = 0x5b;
const DEVICE: u8 = 0x82;
const OP_REGION: u8 = 0x80;
const NAME: u8 = 0x08;
const BUFFER: u8 = 0x11;
const IO_SPACE: u64 = 1;

/// Bytes of a program and a place in them. What is not there is `None`, never a panic.
#[derive(Clone, Copy)]
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn number(&mut self, len: usize) -> Option<u64> {
        let bytes = self.bytes.get(self.at..self.at.checked_add(len)?)?;
        self.at += len;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// A constant (ACPI 6.5 §20.2.3).
    fn constant(&mut self) -> Option<u64> {
        match self.byte()? {
            0 => Some(0),
            1 => Some(1),
            0x0a => self.number(1),
            0x0b => self.number(2),
            0x0c => self.number(4),
            0x0e => self.number(8),
            _ => None,
        }
    }

    /// The body of a package, whose length stands in front of it and counts itself (ACPI 6.5 §20.2.4).
    fn package(&mut self) -> Option<Cursor<'a>> {
        let start = self.at;
        let lead = self.byte()?;
        let len = match lead >> 6 {
            0 => u64::from(lead & 0x3f),
            more => u64::from(lead & 0xf) | self.number(usize::from(more))? << 4,
        };
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        let body = Cursor { bytes: self.bytes.get(..end)?, at: self.at };
        (self.at <= end).then_some(body)
    }

    /// The last part of a name (ACPI 6.5 §20.2.2).
    fn last_of_name(&mut self) -> Option<[u8; 4]> {
        while matches!(self.bytes.get(self.at)?, b'\\' | b'^') {
            self.at += 1;
        }
        let parts = match self.bytes.get(self.at)? {
            0x2e => {
                self.at += 1;
                2
            }
            0x2f => {
                self.at += 1;
                usize::from(self.byte()?)
            }
            _ => 1,
        };
        self.at = self.at.checked_add(parts.checked_sub(1)?.checked_mul(4)?)?;
        let last = *self.bytes.get(self.at..)?.first_chunk()?;
        self.at += 4;
        Some(last)
    }
}

/// Every place in `program` where `first` begins, and what is behind it.
fn places<'a>(program: &'a [u8], first: &'a [u8]) -> impl Iterator<Item = Cursor<'a>> {
    let found = program.windows(first.len()).enumerate().filter(move |(_, bytes)| *bytes == first);
    found.map(move |(at, _)| Cursor { bytes: program, at: at + first.len() })
}

/// The body of the device of this name.
fn device<'a>(program: &'a [u8], name: &[u8; 4]) -> Option<Result<Cursor<'a>, AmlFault>> {
    places(program, &[EXT, DEVICE]).find_map(|at| {
        // The name stands behind the length, which is looked at once it is known whose it is.
        let mut after = at;
        let lead = after.byte()?;
        after.at = after.at.checked_add(usize::from(lead >> 6))?;
        (after.last_of_name()? == *name).then_some(())?;
        let fault = AmlFault { name: *name, offset: at.at, what: "a length beyond the end of the table" };
        let body = at.clone().package().filter(|body| after.at <= body.bytes.len());
        Some(body.map(|body| Cursor { at: after.at, ..body }).ok_or(fault))
    })
}

/// What is behind the definition of `name` in this body.
fn named<'a>(body: Cursor<'a>, name: &'a [u8; 4]) -> Option<Cursor<'a>> {
    let mut first = [NAME; 5];
    first[1..].copy_from_slice(name);
    let at = body.bytes.get(body.at..)?.windows(5).position(|bytes| bytes == first)?;
    Some(Cursor { bytes: body.bytes, at: body.at + at + 5 })
}

/// The ports of the first I/O descriptor of a resource template, as first, last and number (ACPI 6.5 §6.4.2.5).
fn io_ports(mut template: Cursor<'_>) -> Option<(u16, u16, u8)> {
    loop {
        let tag = template.byte()?;
        let len = if tag & 0x80 != 0 { template.number(2)? as usize } else { usize::from(tag & 7) };
        match tag {
            // I/O port descriptor: what it decodes, first, last, alignment, number.
            0x47 => {
                template.byte()?;
                let (first, last) = (template.number(2)? as u16, template.number(2)? as u16);
                template.byte()?;
                return Some((first, last, template.byte()?));
            }
            // The end.
            0x79 => return None,
            _ => template.at = template.at.checked_add(len)?,
        }
    }
}

/// The registers for memory that is plugged in and out; `None` where no program names them.
///
/// # Errors
/// They are named, and what is said of them is not what it has to be.
pub fn memory_hotplug(programs: &[&[u8]]) -> Result<Option<MemoryHotplug>, AmlFault> {
    let Some(registers) = programs.iter().find_map(|program| device(program, b"MHPD")) else { return Ok(None) };
    let registers = registers?;
    let fault = |name: &[u8; 4], what| AmlFault { name: *name, offset: registers.at, what };
    let template = named(registers, b"_CRS").and_then(|mut crs| {
        (crs.byte()? == BUFFER).then_some(())?;
        let mut body = crs.package()?;
        body.constant().map(|_| body)
    });
    let ports = template.and_then(io_ports).ok_or(fault(b"MHPD", "no resources with an I/O port"))?;
    let (port, last, number) = ports;
    if port == 0 || port != last || number < BLOCK_PORTS || port.checked_add(BLOCK_PORTS.into()).is_none() {
        return Err(fault(b"MHPD", "its I/O ports are not 24 at one place"));
    }
    let slots = programs.iter().find_map(|program| device(program, b"MHPC"));
    let slots = slots.ok_or(fault(b"MHPC", "the device that says how many slots there are is missing"))??;
    let nr_slots = named(slots, b"MDNR").and_then(|mut value| value.constant());
    match nr_slots {
        Some(nr_slots) if nr_slots <= MOST_SLOTS => Ok(Some(MemoryHotplug { port, nr_slots: nr_slots as u32 })),
        _ => Err(fault(b"MDNR", "the number of slots is no constant of at most 256")),
    }
}

/// The I/O port to which the address of a page is written that asks QEMU's NVDIMMs something (QEMU
/// `docs/specs/acpi_nvdimm.rst`); `None` where no program names it.
///
/// # Errors
/// As for [`memory_hotplug`].
pub fn nvdimm_port(programs: &[&[u8]]) -> Result<Option<u16>, AmlFault> {
    let region = [EXT, OP_REGION, b'N', b'P', b'I', b'O'];
    let Some(mut at) = programs.iter().find_map(|program| places(program, &region).next()) else { return Ok(None) };
    let fault = AmlFault { name: *b"NPIO", offset: at.at, what: "it is not 4 I/O ports at a constant place" };
    let space = at.byte().map(u64::from);
    let (port, len) = (at.constant(), at.constant());
    match (space, port.and_then(|port| u16::try_from(port).ok()), len) {
        (Some(IO_SPACE), Some(port), Some(4)) if port != 0 && port < u16::MAX - 4 => Ok(Some(port)),
        _ => Err(fault),
    }
}
