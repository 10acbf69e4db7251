//! The Fixed ACPI Description Table, for the one thing that we use of it: the power management timer
//! (ACPI 6.5 §5.2.9 and §4.8.3.3).

use super::{AcpiNotice, root};

/// A counter that goes up 3,579,545 times each second from the moment the machine is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmTimer {
    /// The I/O port; reading 32 bits from it gives the count.
    pub port: u16,
    /// How wide the count is: 24 or 32 bits.
    pub bits: u8,
}

/// Offset of the timer's port, 4 bytes.
const PM_TMR_BLK: usize = 76;
/// Offset of the timer's width in bytes, 1 byte; it is 4, or 0 if there is no timer.
const PM_TMR_LEN: usize = 91;
/// Offset of the flags, 4 bytes.
const FLAGS: usize = 112;
/// Bit of the flags: the count has 32 bits.
const TMR_VAL_EXT: u32 = 1 << 8;
/// Length of the table in ACPI 1.0, which has all that we read, in bytes.
const FIXED_BYTES: usize = 116;

/// The timer, if the table has one at an I/O port.
pub(super) fn read(bytes: &[u8]) -> Result<Option<PmTimer>, AcpiNotice> {
    let (_, table) = root::check(bytes, b"FACP", FIXED_BYTES)?;
    let word = |at: usize| table[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    let port = u16::try_from(word(PM_TMR_BLK)).ok().filter(|port| *port != 0 && table[PM_TMR_LEN] == 4);
    let bits = if word(FLAGS) & TMR_VAL_EXT == 0 { 24 } else { 32 };
    Ok(port.map(|port| PmTimer { port, bits }))
}
