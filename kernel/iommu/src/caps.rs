//! What a unit can do: the capability registers (VT-d §11.4.2, §11.4.3).

use core::fmt;

use mm::addr::PAGE_SHIFT;

use crate::INDEX_BITS;

/// How many levels a domain's tables have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Levels {
    /// 39 bits of address.
    Three,
    /// 48 bits.
    Four,
    /// 57 bits.
    Five,
}

impl Levels {
    /// All, fewest first.
    pub const ALL: [Self; 3] = [Self::Three, Self::Four, Self::Five];

    /// The level of the root table: 3, 4 or 5.
    #[inline]
    pub const fn count(self) -> u8 {
        match self {
            Self::Three => 3,
            Self::Four => 4,
            Self::Five => 5,
        }
    }
    /// Bits of an I/O virtual address: 39, 48 or 57.
    pub const fn bits(self) -> u8 {
        (PAGE_SHIFT + INDEX_BITS * self.count() as u32) as u8
    }
    /// The address width in a context entry: 1, 2 or 3.
    pub const fn width_code(self) -> u8 {
        self.count() - 2
    }
    /// From the address width of a context entry.
    pub const fn from_width_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Three),
            2 => Some(Self::Four),
            3 => Some(Self::Five),
            _ => None,
        }
    }
}

/// Why a unit cannot be used. One line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// Its addresses are too narrow.
    Width {
        /// Bits of the addresses that it translates.
        reaches: u8,
        /// Bits that are needed.
        needed: u8,
    },
    /// It translates with no number of levels that we know.
    Levels {
        /// The bits of the register that name them.
        sagaw: u8,
    },
    /// It has no invalidation queue.
    NoQueue,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Width { reaches, needed } => {
                write!(f, "the IOMMU reaches {reaches} bits of address, {needed} are needed")
            }
            Self::Levels { sagaw } => {
                write!(f, "the IOMMU has tables of none of 3, 4 or 5 levels (its register says {sagaw:#x})")
            }
            Self::NoQueue => f.write_str("the IOMMU has no invalidation queue, which is needed"),
        }
    }
}

impl core::error::Error for Unusable {}

/// What a unit can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Version of the architecture: major in bits 4 to 7, minor in bits 0 to 3.
    pub version: u32,
    /// How many domain numbers there are: 16 to 65,536.
    pub nr_domains: u32,
    /// Bits of the addresses that it translates (MGAW): 1 to 64.
    pub address_bits: u8,
    /// Bits of the physical addresses that its entries may hold. The register does not say: as many as
    /// [`address_bits`](Self::address_bits), but for what the DMAR table says ([`with_host_bits`](Self::with_host_bits)).
    pub host_bits: u8,
    /// Which numbers of levels it walks (SAGAW): bit 1 for three, 2 for four, 3 for five.
    pub sagaw: u8,
    /// Leaves of 2 MiB.
    pub large_2m: bool,
    /// Leaves of 1 GiB.
    pub large_1g: bool,
    /// It may cache that nothing is mapped, so that mapping needs an invalidation too; domain 0 is not ours then.
    pub caching_mode: bool,
    /// Stores wait in a buffer of the chipset until they are flushed; an invalidation does that.
    pub write_buffer: bool,
    /// Invalidates by range of addresses.
    pub page_selective: bool,
    /// The largest range of one command: so many pages, as log2.
    pub max_mask: u8,
    /// How many fault records there are: 1 to 256.
    pub nr_fault_records: u16,
    /// Where they are, in bytes from the first register.
    pub fault_offset: u32,
    /// Where the IOTLB registers are, in bytes from the first register.
    pub iotlb_offset: u32,
    /// Its walker snoops the CPU's caches.
    pub coherent: bool,
    /// It has an invalidation queue.
    pub queued: bool,
    /// It remaps interrupts.
    pub interrupt_remapping: bool,
    /// It lets requests of a device through as they are, if told so.
    pub pass_through: bool,
}

impl Capabilities {
    /// From the registers CAP, ECAP and VER.
    pub const fn decode(cap: u64, ecap: u64, version: u32) -> Self {
        let address_bits = (cap >> 16 & 0x3f) as u8 + 1;
        Self {
            version: version & 0xff,
            nr_domains: 1 << (4 + 2 * if cap & 7 > 6 { 6 } else { cap & 7 }),
            address_bits,
            host_bits: if address_bits > 52 { 52 } else { address_bits },
            sagaw: (cap >> 8 & 0x1f) as u8,
            large_2m: cap >> 34 & 1 != 0,
            large_1g: cap >> 35 & 1 != 0,
            caching_mode: cap >> 7 & 1 != 0,
            write_buffer: cap >> 4 & 1 != 0,
            page_selective: cap >> 39 & 1 != 0,
            max_mask: (cap >> 48 & 0x3f) as u8,
            nr_fault_records: (cap >> 40 & 0xff) as u16 + 1,
            fault_offset: (cap >> 24 & 0x3ff) as u32 * 16,
            iotlb_offset: (ecap >> 8 & 0x3ff) as u32 * 16,
            coherent: ecap & 1 != 0,
            queued: ecap >> 1 & 1 != 0,
            interrupt_remapping: ecap >> 3 & 1 != 0,
            pass_through: ecap >> 6 & 1 != 0,
        }
    }

    /// The same, with physical addresses of `bits`, as the [DMAR table](crate::dmar::Dmar::host_address_width) says.
    #[must_use]
    pub const fn with_host_bits(mut self, bits: u8) -> Self {
        self.host_bits = if bits > 52 { 52 } else { bits };
        self
    }

    /// Does it walk tables of so many levels?
    pub const fn walks(&self, levels: Levels) -> bool {
        self.sagaw >> levels.width_code() & 1 != 0
    }

    /// The highest level of a table that may hold leaves: 1, 2 or 3.
    pub const fn leaf_level(&self) -> u8 {
        match (self.large_2m, self.large_1g) {
            (true, true) => 3,
            (true, false) => 2,
            // 1 GiB without 2 MiB exists in no unit; the walk of ours goes level by level.
            (false, _) => 1,
        }
    }

    /// Can domains be made whose addresses, and the memory behind them, have `needed_bits`? Four levels before five
    /// and three: an address space that is large is one in which an address is used again late.
    ///
    /// # Errors
    /// What is missing, before anything is mapped.
    pub fn check(&self, needed_bits: u8) -> Result<Levels, Unusable> {
        if !self.queued {
            return Err(Unusable::NoQueue);
        }
        let reaches = |levels: Levels| levels.bits().min(self.address_bits).min(self.host_bits);
        let wanted = [Levels::Four, Levels::Five, Levels::Three];
        let walked = || wanted.into_iter().filter(|levels| self.walks(*levels));
        match walked().find(|levels| reaches(*levels) >= needed_bits) {
            Some(levels) => Ok(levels),
            None => Err(match walked().map(reaches).max() {
                Some(reaches) => Unusable::Width { reaches, needed: needed_bits },
                None => Unusable::Levels { sagaw: self.sagaw },
            }),
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    /// As QEMU 7.2 has them with `aw-bits=48`.
    const CAP: u64 = 0x00d2_008c_222f_0686;
    const ECAP: u64 = 0x0000_0000_00f0_0f42;

    #[test]
    fn the_registers_of_qemu_are_read() {
        let caps = Capabilities::decode(CAP, ECAP, 0x10);
        assert_eq!((caps.nr_domains, caps.address_bits, caps.sagaw), (65536, 48, 0b110));
        assert_eq!((caps.large_2m, caps.large_1g, caps.caching_mode), (true, true, true));
        assert_eq!((caps.page_selective, caps.max_mask, caps.nr_fault_records), (true, 18, 1));
        assert_eq!((caps.fault_offset, caps.iotlb_offset), (0x220, 0xf0));
        assert_eq!((caps.coherent, caps.queued, caps.pass_through), (false, true, true));
    }

    #[test]
    fn a_unit_that_is_too_narrow_is_refused_with_one_line() {
        let caps = Capabilities::decode(CAP, ECAP, 0x10);
        assert_eq!(caps.check(48), Ok(Levels::Four));
        assert_eq!(caps.check(30), Ok(Levels::Four), "a larger space than is needed");
        let narrow = Capabilities { address_bits: 39, host_bits: 39, sagaw: 0b10, ..caps };
        assert_eq!(narrow.check(39), Ok(Levels::Three));
        let refused = narrow.check(41).unwrap_err();
        assert_eq!(refused.to_string(), "the IOMMU reaches 39 bits of address, 41 are needed");
        assert_eq!(caps.with_host_bits(40).check(41), Err(Unusable::Width { reaches: 40, needed: 41 }));
        let five = Capabilities { address_bits: 57, host_bits: 52, sagaw: 0b1100, ..caps };
        assert_eq!((five.check(48), five.check(52)), (Ok(Levels::Four), Ok(Levels::Five)));
        assert_eq!(Capabilities { sagaw: 1, ..caps }.check(30), Err(Unusable::Levels { sagaw: 1 }));
        assert_eq!(Capabilities { queued: false, ..caps }.check(30), Err(Unusable::NoQueue));
    }

    #[test]
    fn no_register_value_panics() {
        for bit in 0..64 {
            for base in [0, u64::MAX, CAP] {
                let caps = Capabilities::decode(base ^ 1 << bit, base ^ 1 << bit, u32::MAX);
                assert!(caps.nr_domains >= 16 && caps.nr_domains <= 65536 && (1..=3).contains(&caps.leaf_level()));
                let _ = caps.check(48);
            }
        }
    }
}
