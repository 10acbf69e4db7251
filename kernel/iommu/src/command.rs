//! Commands to the unit: what it is to forget (VT-d §6.5.2).

use mm::addr::{PAGE_SHIFT, PhysAddr};

use crate::source::SourceId;

/// What the context cache is to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// Everything.
    Global,
    /// All devices of a domain.
    Domain {
        /// The domain.
        domain: u16,
    },
    /// One device.
    Device {
        /// The domain that it was in: the cache is tagged with it.
        domain: u16,
        /// The device.
        source: SourceId,
    },
}

/// What the IOTLB and the paging-structure caches are to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Iotlb {
    /// Everything.
    Global,
    /// All translations of a domain.
    Domain {
        /// The domain.
        domain: u16,
    },
    /// Those of a range: `2^mask` pages, naturally aligned.
    Pages {
        /// The domain.
        domain: u16,
        /// I/O virtual address of the first byte, aligned to the range.
        address: u64,
        /// log2 of the number of pages; at most what the unit
        /// [takes](crate::caps::Capabilities::max_mask), which ignores commands that ask for more.
        mask: u8,
        /// Only leaves were changed: what the unit remembers of tables stays.
        leaf_only: bool,
    },
}

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Context entries were changed.
    Context(Context),
    /// Second-level entries were changed. Reads and writes that were translated before are drained.
    Iotlb(Iotlb),
    /// When everything before it is done, `value` is stored at `address`.
    Wait {
        /// Where, aligned to 4 bytes.
        address: PhysAddr,
        /// What.
        value: u32,
        /// Nothing behind it is begun before it is done.
        fence: bool,
    },
}

/// Bit fields of the lower half.
const TYPE_CONTEXT: u64 = 1;
const TYPE_IOTLB: u64 = 2;
const TYPE_WAIT: u64 = 5;
const DRAIN: u64 = 3 << 6;
const STATUS_WRITE: u64 = 1 << 5;
const FENCE: u64 = 1 << 6;

const fn granularity(nr: u64) -> u64 {
    nr << 4
}
const fn of_domain(domain: u16) -> u64 {
    (domain as u64) << 16
}

impl Command {
    /// The 128-bit descriptor, lower half first.
    pub fn descriptor(&self) -> [u64; 2] {
        match *self {
            Self::Context(Context::Global) => [TYPE_CONTEXT | granularity(1), 0],
            Self::Context(Context::Domain { domain }) => [TYPE_CONTEXT | granularity(2) | of_domain(domain), 0],
            Self::Context(Context::Device { domain, source }) => {
                [TYPE_CONTEXT | granularity(3) | of_domain(domain) | u64::from(source.bits()) << 32, 0]
            }
            Self::Iotlb(Iotlb::Global) => [TYPE_IOTLB | granularity(1) | DRAIN, 0],
            Self::Iotlb(Iotlb::Domain { domain }) => [TYPE_IOTLB | granularity(2) | DRAIN | of_domain(domain), 0],
            Self::Iotlb(Iotlb::Pages { domain, address, mask, leaf_only }) => [
                TYPE_IOTLB | granularity(3) | DRAIN | of_domain(domain),
                address & !0xfff | u64::from(mask & 0x3f) | u64::from(leaf_only) << 6,
            ],
            Self::Wait { address, value, fence } => {
                let flags = STATUS_WRITE | if fence { FENCE } else { 0 };
                [TYPE_WAIT | flags | u64::from(value) << 32, address.as_u64() & !3]
            }
        }
    }

    /// The command that makes the unit forget a naturally aligned block of `2^order` pages of `domain` from page number
    /// `page` on, and which tables led there: its range, or the whole domain where the range is larger than one command can name.
    #[inline]
    pub const fn block(domain: u16, page: u64, order: u32, limit: Limit) -> Self {
        Self::Iotlb(match limit {
            Limit::Mask(most) if order <= most as u32 => {
                Iotlb::Pages { domain, address: page << PAGE_SHIFT, mask: order as u8, leaf_only: false }
            }
            _ => Iotlb::Domain { domain },
        })
    }
}

/// How large a range one command names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// None: only whole domains.
    DomainOnly,
    /// At most 2 to this power of pages.
    Mask(u8),
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_bits_of_the_specification() {
        let source = SourceId { bus: 0, device: 4, function: 0 };
        let cases = [
            (Command::Context(Context::Global), [0x11, 0]),
            (Command::Context(Context::Domain { domain: 3 }), [0x3_0021, 0]),
            (Command::Context(Context::Device { domain: 3, source }), [0x20_0003_0031, 0]),
            (Command::Iotlb(Iotlb::Global), [0xd2, 0]),
            (Command::Iotlb(Iotlb::Domain { domain: 0xffff }), [0xffff_00e2, 0]),
            (
                Command::Iotlb(Iotlb::Pages { domain: 1, address: 0x4000_0000, mask: 18, leaf_only: false }),
                [0x1_00f2, 0x4000_0012],
            ),
            (Command::Iotlb(Iotlb::Pages { domain: 1, address: 0x1000, mask: 0, leaf_only: true }), [0x1_00f2, 0x1040]),
            (
                Command::Wait { address: PhysAddr::new(0x12_3458), value: 0xabcd, fence: true },
                [0xabcd_0000_0065, 0x12_3458],
            ),
        ];
        for (command, bits) in cases {
            assert_eq!(command.descriptor(), bits, "{command:?}");
        }
    }

    #[test]
    fn a_block_that_one_command_cannot_name_is_the_whole_domain() {
        let whole = Command::Iotlb(Iotlb::Domain { domain: 7 });
        assert_eq!(Command::block(7, 1 << 19, 19, Limit::Mask(18)), whole);
        assert_eq!(Command::block(7, 1, 0, Limit::DomainOnly), whole);
        assert_ne!(Command::block(7, 1 << 18, 18, Limit::Mask(18)), whole);
    }
}
