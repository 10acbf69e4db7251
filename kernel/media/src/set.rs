//! The interleave set of a range: which NVDIMMs are behind it, as one number that its labels name.
//!
//! Labels are kept on the NVDIMM, and move with it. One that names another set was made for other NVDIMMs, or for another
//! order of them: what it gives out lies elsewhere.
//!
//! Linux: `acpi_nfit_init_interleave_set` in `drivers/acpi/nfit/core.c` (the numbers), `create_namespace_pmem` in
//! `drivers/nvdimm/namespace_devs.c` (what labels are held against).

use alloc::vec::Vec;

use crate::fletcher;

/// One NVDIMM of a set, by what the NFIT says of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Where its part begins, counted from the range's base, in bytes.
    pub region_offset_bytes: u64,
    /// Serial number.
    pub serial_number: u32,
    /// Who made it.
    pub vendor_id: u16,
    /// When it was made.
    pub manufacturing_date: u16,
    /// Where it was made.
    pub manufacturing_location: u8,
}

impl Member {
    /// What labels of version 1.1 know of it: offset, serial number, padding.
    fn short(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.region_offset_bytes.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.serial_number.to_le_bytes());
        bytes
    }

    /// What those of version 1.2 know.
    fn long(&self) -> [u8; 48] {
        let mut bytes = [0; 48];
        bytes[..16].copy_from_slice(&self.short());
        bytes[12..14].copy_from_slice(&self.vendor_id.to_le_bytes());
        bytes[14..16].copy_from_slice(&self.manufacturing_date.to_le_bytes());
        bytes[16] = self.manufacturing_location;
        bytes
    }
}

/// The numbers of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetCookies {
    short: u64,
    long: u64,
    /// As early versions of Linux sorted the members: by the bytes of their offsets, the lowest of which comes first.
    badly_sorted: u64,
}

impl SetCookies {
    /// Those of a set of these NVDIMMs, in any order; `None` where there are none.
    #[must_use]
    pub fn of(members: &[Member]) -> Option<Self> {
        if members.is_empty() {
            return None;
        }
        let mut members = members.to_vec();
        let sum = |bytes: Vec<u8>| fletcher::checksum(&bytes, bytes.len());
        members.sort_by_key(|member| member.region_offset_bytes);
        let short = sum(members.iter().flat_map(Member::short).collect());
        let long = sum(members.iter().flat_map(Member::long).collect());
        members.sort_by_key(|member| member.region_offset_bytes.to_le_bytes());
        let badly_sorted = sum(members.iter().flat_map(Member::short).collect());
        Some(Self { short, long, badly_sorted })
    }

    /// What labels below an index block of this version, major and minor, are to name.
    #[must_use]
    pub fn expected(&self, version: (u16, u16)) -> u64 {
        // Version 1.0 is not 1.1 for Linux either.
        if version == (1, 1) { self.short } else { self.long }
    }

    /// Is it this set that a label with this cookie was made for?
    #[must_use]
    pub fn is_named_by(&self, version: (u16, u16), cookie: u64) -> bool {
        cookie == self.expected(version) || cookie == self.badly_sorted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(region_offset_bytes: u64, serial_number: u32) -> Member {
        Member { region_offset_bytes, serial_number, ..Member::default() }
    }

    /// The label areas of the images that Linux made (`boot/tests/media`) name this one.
    #[test]
    fn the_first_nvdimm_of_qemu_has_the_cookie_that_linux_writes() {
        let set = SetCookies::of(&[Member { vendor_id: 0x8086, ..member(0, 0x0012_3456) }]).unwrap();
        assert_eq!(set.expected((1, 1)), 0x0024_68ac_0012_3456);
        assert!(set.is_named_by((1, 1), 0x0024_68ac_0012_3456));
        // In another slot it has another serial number.
        let other = SetCookies::of(&[member(0, 0x0012_3457)]).unwrap();
        assert!(!other.is_named_by((1, 1), 0x0024_68ac_0012_3456));
    }

    /// Words of 32 bits: the low half is their sum, the high half the sum of what that was after each of them.
    #[test]
    fn labels_of_version_1_2_know_the_maker_as_well() {
        let one = Member { vendor_id: 2, manufacturing_date: 3, manufacturing_location: 4, ..member(0, 1) };
        let low: u64 = 1 + 0x3_0002 + 4;
        // Twelve words: of these the third, the fourth and the fifth are not zero.
        let high = 1 + 0x3_0003 + 8 * low;
        let set = SetCookies::of(&[one]).unwrap();
        assert_eq!(set.expected((1, 2)), (high << 32) | low);
        assert_eq!(set.expected((1, 0)), set.expected((1, 2)));
        assert!(set.is_named_by((1, 2), (high << 32) | low) && !set.is_named_by((1, 1), (high << 32) | low));
        for other in [
            Member { vendor_id: 9, ..one },
            Member { manufacturing_date: 9, ..one },
            Member { manufacturing_location: 9, ..one },
        ] {
            let other = SetCookies::of(&[other]).unwrap();
            assert_ne!(other.expected((1, 2)), set.expected((1, 2)), "{other:?}");
            assert_eq!(other.expected((1, 1)), set.expected((1, 1)), "{other:?}");
        }
    }

    #[test]
    fn the_order_of_the_members_is_that_of_their_offsets() {
        // By their bytes 0x100 comes before 0x1.
        let (first, second) = (member(0x1, 7), member(0x100, 9));
        let set = SetCookies::of(&[first, second]).unwrap();
        assert_eq!(SetCookies::of(&[second, first]), Some(set));
        let swapped = SetCookies::of(&[member(0x1, 9), member(0x100, 7)]).unwrap();
        assert_ne!(swapped.expected((1, 1)), set.expected((1, 1)));
        let bytes = [second.short(), first.short()].concat();
        let compatible = fletcher::checksum(&bytes, bytes.len());
        assert_ne!(compatible, set.expected((1, 1)));
        assert!(set.is_named_by((1, 1), compatible));
        assert_eq!(SetCookies::of(&[]), None);
    }
}
