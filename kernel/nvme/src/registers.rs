//! The controller's registers, at the beginning of BAR 0 (1.4 §3.1).

use core::fmt;

/// CAP, 64 bits.
pub const CAPABILITIES: u64 = 0x00;
/// VS.
pub const VERSION: u64 = 0x08;
/// INTMS: a set bit silences an interrupt.
pub const MASK_INTERRUPTS: u64 = 0x0c;
/// CC.
pub const CONFIGURATION: u64 = 0x14;
/// CSTS.
pub const STATUS: u64 = 0x1c;
/// AQA: entries of the admin queues.
pub const ADMIN_ENTRIES: u64 = 0x24;
/// ASQ, 64 bits.
pub const ADMIN_SUBMISSION: u64 = 0x28;
/// ACQ, 64 bits.
pub const ADMIN_COMPLETION: u64 = 0x30;
/// The first doorbell.
pub const DOORBELLS: u64 = 0x1000;
/// What everything but doorbells takes, in bytes.
pub const LEN_BYTES: u64 = 0x1000;

/// CC of a controller that works: enabled, NVM command set, pages of 4 KiB, entries of 64 and 16 bytes.
pub const ENABLED: u32 = 1 | 6 << 16 | 4 << 20;
/// CC of one that is to stop.
pub const DISABLED: u32 = 0;
/// Bytes of a page, as [`ENABLED`] says it.
pub const PAGE_BYTES: u64 = 4096;

/// The unit of CAP.TO, in nanoseconds.
const TIMEOUT_UNIT_NS: u64 = 500_000_000;

/// What the controller can, from CAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(pub u64);

/// Why a controller cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// Its registers read as all ones.
    Gone,
    /// It does not know the NVM command set.
    NoNvm,
    /// Its smallest page, in bytes, is larger than ours.
    Pages(u64),
    /// Its queues have at most so many entries, and so many are needed.
    Entries(u32, u16),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("its registers do not answer"),
            Self::NoNvm => f.write_str("it does not know the NVM command set"),
            Self::Pages(bytes) => write!(f, "its pages have at least {bytes} bytes, expected {PAGE_BYTES}"),
            Self::Entries(most, needed) => write!(f, "its queues have at most {most} entries, {needed} are needed"),
        }
    }
}

impl core::error::Error for Unusable {}

impl Capabilities {
    /// MQES: the most entries of a queue, up to 65,536.
    #[must_use]
    pub const fn most_entries(self) -> u32 {
        (self.0 as u32 & 0xffff) + 1
    }
    /// TO: how long CSTS.RDY may take to follow CC.EN, in nanoseconds; never less than one unit.
    #[must_use]
    pub const fn timeout_ns(self) -> u64 {
        let units = self.0 >> 24 & 0xff;
        (if units == 0 { 1 } else { units }) * TIMEOUT_UNIT_NS
    }
    /// DSTRD: from one doorbell to the next, in bytes.
    #[must_use]
    pub const fn stride(self) -> u64 {
        4 << (self.0 >> 32 & 0xf)
    }
    /// MPSMIN: the smallest page, in bytes.
    #[must_use]
    pub const fn min_page_bytes(self) -> u64 {
        4096 << (self.0 >> 48 & 0xf)
    }
    /// Can it be used with queues of so many entries?
    ///
    /// # Errors
    /// [`Unusable`].
    pub const fn check(self, entries: u16) -> Result<(), Unusable> {
        if self.0 == u64::MAX {
            return Err(Unusable::Gone);
        }
        // CSS, whose first bit is the NVM command set.
        if self.0 >> 37 & 1 == 0 {
            return Err(Unusable::NoNvm);
        }
        if self.min_page_bytes() > PAGE_BYTES {
            return Err(Unusable::Pages(self.min_page_bytes()));
        }
        if self.most_entries() < entries as u32 {
            return Err(Unusable::Entries(self.most_entries(), entries));
        }
        Ok(())
    }
    /// Where queue `id` is told its submission queue's tail.
    #[must_use]
    pub const fn tail_doorbell(self, id: u16) -> u64 {
        DOORBELLS + 2 * id as u64 * self.stride()
    }
    /// Where queue `id` is told its completion queue's head.
    #[must_use]
    pub const fn head_doorbell(self, id: u16) -> u64 {
        self.tail_doorbell(id) + self.stride()
    }
    /// Where the doorbells of the queues up to `id` end, in bytes from the BAR's beginning.
    #[must_use]
    pub const fn doorbells_end(self, id: u16) -> u64 {
        self.head_doorbell(id) + 4
    }
}

/// CSTS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u32);

impl Status {
    /// The device does not answer: all ones are read where nothing is.
    #[must_use]
    pub const fn is_gone(self) -> bool {
        self.0 == u32::MAX
    }
    /// RDY.
    #[must_use]
    pub const fn is_ready(self) -> bool {
        self.0 & 1 != 0
    }
    /// CFS: an error from which only a reset helps.
    #[must_use]
    pub const fn is_fatal(self) -> bool {
        self.0 & 2 != 0
    }
}

/// VS in words: `1.4.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version(pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0 >> 16, self.0 >> 8 & 0xff, self.0 & 0xff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::string::ToString;

    /// As QEMU 7.2 has it: 2,048 entries, 7.5 s, doorbells of 4 bytes, NVM, pages of 4 KiB and up.
    const QEMU: Capabilities = Capabilities(0x0040_0020_0f01_07ff);

    #[test]
    fn the_fields_of_the_capabilities() {
        assert_eq!((QEMU.most_entries(), QEMU.timeout_ns(), QEMU.stride()), (2048, 7_500_000_000, 4));
        assert_eq!((QEMU.min_page_bytes(), QEMU.check(32)), (4096, Ok(())));
        assert_eq!((QEMU.tail_doorbell(0), QEMU.head_doorbell(0)), (0x1000, 0x1004));
        assert_eq!((QEMU.tail_doorbell(1), QEMU.head_doorbell(1), QEMU.doorbells_end(1)), (0x1008, 0x100c, 0x1010));
        let wide = Capabilities(QEMU.0 | 2 << 32);
        assert_eq!((wide.stride(), wide.head_doorbell(1)), (16, 0x1030));
        assert_eq!(Capabilities(0).timeout_ns(), TIMEOUT_UNIT_NS);
    }

    #[test]
    fn who_cannot_be_used_says_why() {
        assert_eq!(Capabilities(u64::MAX).check(2), Err(Unusable::Gone));
        assert_eq!(Capabilities(QEMU.0 & !(1 << 37)).check(2), Err(Unusable::NoNvm));
        assert_eq!(Capabilities(QEMU.0 | 1 << 48).check(2), Err(Unusable::Pages(8192)));
        let short = Capabilities(QEMU.0 & !0xffff | 15).check(32).expect_err("too short");
        assert_eq!(short.to_string(), "its queues have at most 16 entries, 32 are needed");
    }

    #[test]
    fn the_bits_of_status_and_version() {
        assert!(Status(1).is_ready() && !Status(1).is_fatal() && Status(3).is_fatal() && Status(u32::MAX).is_gone());
        assert_eq!(Version(0x0001_0400).to_string(), "1.4.0");
    }
}
