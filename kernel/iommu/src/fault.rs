//! What the unit says of a transfer that it blocked (VT-d §7.1.3, §11.4.7.6).

use core::fmt;

pub use crate::source::SourceId;

/// What the device wanted to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To write memory.
    Write,
    /// To read memory.
    Read,
    /// Something of newer devices: a page request, or an atomic operation.
    Other,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Write => "write",
            Self::Read => "read",
            Self::Other => "request",
        })
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// Why a transfer was blocked, by the number that the unit records.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
            /// A number that we have no word for.
            Unknown(u8),
        }

        impl Reason {
            /// From the number.
            pub const fn from_number(number: u8) -> Self {
                match number {
                    $($number => Self::$name,)*
                    other => Self::Unknown(other),
                }
            }
            /// The number.
            pub const fn number(self) -> u8 {
                match self {
                    $(Self::$name => $number,)*
                    Self::Unknown(other) => other,
                }
            }
        }

        impl fmt::Display for Reason {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$name => f.write_str($text),)*
                    Self::Unknown(other) => write!(f, "reason {other:#x}"),
                }
            }
        }
    };
}

reasons! {
    /// The bus has no context table.
    NoRoot = 0x1, "no context table for its bus";
    /// The device is in no domain.
    NoContext = 0x2, "in no domain";
    /// The context entry says what the unit cannot do.
    BadContext = 0x3, "its context entry is not valid";
    /// The address has more bits than the domain's.
    BeyondWidth = 0x4, "the address has too many bits";
    /// Nothing is mapped there for writing.
    NotWritable = 0x5, "not mapped for writing";
    /// Nothing is mapped there for reading.
    NotReadable = 0x6, "not mapped for reading";
    /// A table could not be read.
    BadTable = 0x7, "a translation table could not be read";
    /// The root table could not be read.
    BadRootTable = 0x8, "the root table could not be read";
    /// The context table could not be read.
    BadContextTable = 0x9, "the context table could not be read";
    /// A bit of the root entry is set that must not be.
    ReservedInRoot = 0xa, "a reserved bit in the root entry";
    /// A bit of the context entry is set that must not be.
    ReservedInContext = 0xb, "a reserved bit in the context entry";
    /// A bit of a second-level entry is set that must not be, such as one of an address that is too high.
    ReservedInEntry = 0xc, "a reserved bit, or too high an address, in a translation entry";
    /// The kind of request is blocked by the context entry.
    KindBlocked = 0xd, "a kind of request that its context entry blocks";
    /// An interrupt with reserved bits.
    InterruptReserved = 0x20, "an interrupt with reserved bits";
    /// An interrupt beyond the remapping table.
    InterruptIndex = 0x21, "an interrupt beyond the remapping table";
    /// An interrupt whose remapping entry is not present.
    InterruptNotPresent = 0x22, "an interrupt that is not remapped";
    /// The remapping table could not be read.
    InterruptTable = 0x23, "the interrupt remapping table could not be read";
    /// A reserved bit in the remapping entry.
    InterruptEntry = 0x24, "a reserved bit in an interrupt remapping entry";
    /// An interrupt in the old format.
    InterruptCompatible = 0x25, "an interrupt in the old format, which is blocked";
    /// An interrupt of a device that it is not for.
    InterruptSource = 0x26, "an interrupt of another device than it is for";
}

/// A blocked transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The device.
    pub source: SourceId,
    /// The page that it wanted: an I/O virtual address, the lowest 12 bits zero.
    pub address: u64,
    /// What it wanted to do there.
    pub kind: Kind,
    /// Why it may not.
    pub reason: Reason,
}

/// The bit of a fault record's upper half that says that there is one. Writing it as 1 clears it.
pub const RECORDED: u64 = 1 << 63;

impl Fault {
    /// From the two halves of a fault recording register; `None` where [no fault](RECORDED) is recorded.
    pub const fn decode(low: u64, high: u64) -> Option<Self> {
        if high & RECORDED == 0 {
            return None;
        }
        let kind = match (high >> 62 & 1, high >> 28 & 1) {
            (0, 0) => Kind::Write,
            (1, 0) => Kind::Read,
            _ => Kind::Other,
        };
        Some(Self {
            source: SourceId::from_bits(high as u16),
            address: low & !0xfff,
            kind,
            reason: Reason::from_number((high >> 32) as u8),
        })
    }
    /// The two halves of the register that records it.
    pub const fn encode(self) -> (u64, u64) {
        let kind = match self.kind {
            Kind::Write => 0,
            Kind::Read => 1 << 62,
            Kind::Other => 1 << 62 | 1 << 28,
        };
        let high = RECORDED | kind | (self.reason.number() as u64) << 32 | self.source.bits() as u64;
        (self.address & !0xfff, high)
    }
}

/// One line: who, what, where and why not.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} at {:#x} blocked: {}", self.source, self.kind, self.address, self.reason)
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;

    #[test]
    fn a_record_is_read_and_told_in_one_line() {
        let fault = Fault::decode(0x4000_0000, 1 << 63 | 1 << 62 | 6 << 32 | 0x0020).unwrap();
        assert_eq!(fault.to_string(), "00:04.0 read at 0x40000000 blocked: not mapped for reading");
        assert_eq!(Fault::decode(0, 0x7fff_ffff_ffff_ffff), None);
        assert_eq!(Fault::decode(0, 1 << 63 | 0x77 << 32).unwrap().reason.to_string(), "reason 0x77");
    }

    proptest! {
        #[test]
        fn any_record_is_read(low: u64, high: u64) {
            let Some(fault) = Fault::decode(low, high) else {
                prop_assert_eq!(high & RECORDED, 0);
                return Ok(());
            };
            let (again_low, again_high) = fault.encode();
            prop_assert_eq!(Fault::decode(again_low, again_high), Some(fault));
            prop_assert_eq!(Reason::from_number(fault.reason.number()), fault.reason);
            prop_assert!(!fault.to_string().contains('\n'));
        }
    }
}
