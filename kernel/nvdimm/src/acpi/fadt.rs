//! The Fixed ACPI Description Table, for what we use of it: the power management timer, where general-purpose events are
//! told, and the firmware's own program, the DSDT (ACPI 6.5 §5.2.9, §4.8.3.3 and §4.8.4).

use super::{AcpiNotice, root};

/// A counter that goes up 3,579,545 times each second from the moment the machine is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmTimer {
    /// The I/O port; reading 32 bits from it gives the count.
    pub port: u16,
    /// How wide the count is: 24 or 32 bits.
    pub bits: u8,
}

/// Where the machine says that something has happened to its hardware: the first block of general-purpose events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events {
    /// The I/O port of the first status byte; as many bytes behind the last of them begin those that enable.
    pub gpe0_port: u16,
    /// Bytes of status.
    pub status_bytes: u8,
    /// The interrupt by which they are told (SCI), as the old interrupt controllers number it.
    pub sci: u16,
    /// The I/O port of the power management control; bit 0 says that events are told at all.
    pub control_port: u16,
    /// The I/O port to which [`enable`](Self::enable) is written so that they are; 0 where there is none.
    pub command_port: u16,
    /// What is written there.
    pub enable: u8,
}

impl Events {
    /// The I/O port of the first byte that enables: the whole block is below the end of the ports.
    pub fn enable_port(&self) -> u16 {
        self.gpe0_port.saturating_add(self.status_bytes.into())
    }
}

/// What the table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fadt {
    pub(super) pm_timer: Option<PmTimer>,
    /// Or why its events cannot be used.
    pub(super) events: Result<Option<Events>, AcpiNotice>,
    /// Physical address of the DSDT; 0 where there is none.
    pub(super) dsdt: u64,
}

/// Offset of the DSDT's address, 4 bytes; and of one that replaces it, 8 bytes.
const DSDT: usize = 40;
const X_DSDT: usize = 140;
/// Offset of the interrupt's number, 2 bytes.
const SCI_INT: usize = 46;
/// Offsets of the command port, 4 bytes, and of the command, 1 byte.
const SMI_CMD: usize = 48;
const ACPI_ENABLE: usize = 52;
/// Offset of the control port, 4 bytes.
const PM1A_CNT_BLK: usize = 64;
/// Offset of the timer's port, 4 bytes.
const PM_TMR_BLK: usize = 76;
/// Offset of the events' port, 4 bytes; of a generic address that replaces it, 12 bytes; of the block's length, 1 byte.
const GPE0_BLK: usize = 80;
const X_GPE0_BLK: usize = 220;
const GPE0_BLK_LEN: usize = 92;
/// Offset of the timer's width in bytes, 1 byte; it is 4, or 0 if there is no timer.
const PM_TMR_LEN: usize = 91;
/// Offset of the flags, 4 bytes.
const FLAGS: usize = 112;
/// Bit of the flags: the count has 32 bits.
const TMR_VAL_EXT: u32 = 1 << 8;
/// Length of the table in ACPI 1.0, which has all that we cannot do without, in bytes.
const FIXED_BYTES: usize = 116;
/// A generic address in I/O ports (ACPI 6.5, table 5.1).
const IO_PORTS: u64 = 1;

/// What the table says of the timer, of events and of the DSDT. A port beyond the 16 bits that ports have is none.
pub(super) fn read(bytes: &[u8]) -> Result<Fadt, AcpiNotice> {
    let (_, table) = root::check(bytes, b"FACP", FIXED_BYTES)?;
    let number = |at: usize, len: usize| {
        let bytes = at.checked_add(len).and_then(|end| table.get(at..end));
        bytes.map_or(0, |bytes| bytes.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte)))
    };
    let port = |number: u64| u16::try_from(number).ok().filter(|port| *port != 0);
    let bits = if number(FLAGS, 4) as u32 & TMR_VAL_EXT == 0 { 24 } else { 32 };
    let pm_timer =
        port(number(PM_TMR_BLK, 4)).filter(|_| number(PM_TMR_LEN, 1) == 4).map(|port| PmTimer { port, bits });
    // Where both are given they are the same: the wide one may be in memory, which the narrow one is not.
    let wide = Some(number(X_GPE0_BLK + 4, 8)).filter(|_| number(X_GPE0_BLK, 1) == IO_PORTS);
    let gpe0 = port(number(GPE0_BLK, 4)).or_else(|| port(wide?));
    let len_bytes = number(GPE0_BLK_LEN, 1) as u8;
    // Of the control 16 bits are read.
    let control = port(number(PM1A_CNT_BLK, 4)).filter(|port| *port != u16::MAX);
    let events = match gpe0.zip(control).filter(|_| len_bytes >= 2) {
        Some((port, _)) if u32::from(port) + u32::from(len_bytes) > 1 << 16 => {
            Err(AcpiNotice::EventPorts { port, len_bytes })
        }
        Some((gpe0_port, control_port)) => Ok(Some(Events {
            gpe0_port,
            status_bytes: len_bytes / 2,
            sci: number(SCI_INT, 2) as u16,
            control_port,
            command_port: port(number(SMI_CMD, 4)).unwrap_or(0),
            enable: number(ACPI_ENABLE, 1) as u8,
        })),
        None => Ok(None),
    };
    let dsdt = Some(number(X_DSDT, 8)).filter(|base| *base != 0).unwrap_or(number(DSDT, 4));
    Ok(Fadt { pm_timer, events, dsdt })
}
