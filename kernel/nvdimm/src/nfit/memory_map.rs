//! Where no NVDIMM can be: what the firmware's memory map leaves for memory, and who has the rest.
//!
//! An NVDIMM is not in the map at all, or is there as persistent memory. So above 4 GiB everything may be one that the
//! map does not give to something else. Below 4 GiB the map leaves out the devices' registers and the windows of PCI as
//! well (they are in no table that can be read without an AML interpreter): there only what it calls persistent may.

use alloc::vec::Vec;
use core::fmt;

use super::types::ByteRange;

/// The interrupt controllers' registers, and the addresses that stand for an interrupt: the I/O APICs' pages and the
/// local APICs' (Intel SDM, volume 3, §11.4.1 and §11.11.1; 82093AA data sheet, §3.0).
const APICS: [ByteRange; 2] =
    [ByteRange { base: 0xfec0_0000, len_bytes: 0x10_0000 }, ByteRange { base: 0xfee0_0000, len_bytes: 0x10_0000 }];
/// Up to here, what the map does not name belongs to devices.
const DEVICES_END: u64 = 1 << 32;

/// Who has some physical addresses. Where several have an address, the first of them is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// The interrupt controllers.
    Apic,
    /// A PCI function, or what lies behind a PCI bridge.
    Pci,
    /// RAM, whatever for.
    Ram,
    /// The firmware has reserved it.
    Reserved,
    /// The map says that there are registers of a device.
    Registers,
    /// Below 4 GiB, and the map does not name it.
    Hole,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Apic => "the interrupt controllers' registers",
            Self::Pci => "a PCI window",
            Self::Ram => "RAM",
            Self::Reserved => "memory that the firmware has reserved",
            Self::Registers => "device registers",
            Self::Hole => "device addresses: below 4 GiB the memory map has nothing there",
        })
    }
}

/// Some physical addresses at which no NVDIMM can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Where.
    pub range: ByteRange,
    /// Whose they are.
    pub by: Owner,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.by, self.range)
    }
}

/// The memory map in the making.
#[derive(Clone, Debug, Default)]
pub struct MemoryMap {
    taken: Vec<Taken>,
    persistent: Vec<ByteRange>,
}

impl MemoryMap {
    /// Adds what somebody has.
    pub fn add(&mut self, range: ByteRange, by: Owner) {
        self.taken.push(Taken { range, by });
    }

    /// Adds what the map calls persistent memory.
    pub fn add_persistent(&mut self, range: ByteRange) {
        self.persistent.push(range);
    }

    /// All that is taken; of ranges that overlap the one comes first whose owner is to be named.
    #[must_use]
    pub fn taken(mut self) -> Vec<Taken> {
        APICS.into_iter().for_each(|range| self.add(range, Owner::Apic));
        let holes = self.holes();
        self.taken.extend(holes.into_iter().map(|range| Taken { range, by: Owner::Hole }));
        self.taken.sort_by_key(|taken| taken.by);
        self.taken
    }

    /// What is below 4 GiB and in no range.
    fn holes(&self) -> Vec<ByteRange> {
        let taken = self.taken.iter().map(|taken| taken.range);
        let mut named: Vec<_> = taken.chain(self.persistent.iter().copied()).collect();
        named.push(ByteRange { base: DEVICES_END, len_bytes: 0 });
        named.sort_unstable_by_key(|range| range.base);
        let (mut holes, mut end) = (Vec::new(), 0);
        for range in named {
            let next = range.base.min(DEVICES_END);
            if end < next {
                holes.push(ByteRange { base: end, len_bytes: next - end });
            }
            end = end.max(range.end());
        }
        holes
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use proptest::prelude::*;

    use super::*;

    const OWNERS: [Owner; 6] = [Owner::Apic, Owner::Pci, Owner::Ram, Owner::Reserved, Owner::Registers, Owner::Hole];

    fn bytes(base: u64, len_bytes: u64) -> ByteRange {
        ByteRange { base, len_bytes }
    }

    /// Whose the byte is, by the first range that has it.
    fn owner_of(taken: &[Taken], byte: u64) -> Option<Owner> {
        taken.iter().find(|taken| taken.range.overlaps(&bytes(byte, 1))).map(|taken| taken.by)
    }

    /// The map of a small machine: 1 GiB of RAM with a reserved page, PCI's configuration space, and RAM above 4 GiB.
    #[test]
    fn what_the_map_leaves_out_below_4_gib_belongs_to_devices() {
        let mut map = MemoryMap::default();
        map.add(bytes(0, 0xa_0000), Owner::Ram);
        map.add(bytes(0x10_0000, 0x3ff0_0000), Owner::Ram);
        map.add(bytes(0x3f00_0000, 0x1000), Owner::Reserved);
        map.add(bytes(0xb000_0000, 0x1000_0000), Owner::Reserved);
        map.add(bytes(0x1_0000_0000, 0x4000_0000), Owner::Ram);
        map.add(bytes(0x80_0000_0000, 0x10_0000), Owner::Pci);
        map.add_persistent(bytes(0x5000_0000, 0x1000_0000));
        let taken = map.taken();
        for (byte, owner) in [
            (0, Some(Owner::Ram)),
            (0xa_0000, Some(Owner::Hole)),
            (0x3f00_0000, Some(Owner::Ram)),
            (0x4000_0000, Some(Owner::Hole)),
            (0x5000_0000, None),
            (0x5fff_ffff, None),
            (0x6000_0000, Some(Owner::Hole)),
            (0xb000_0000, Some(Owner::Reserved)),
            (0xfebf_ffff, Some(Owner::Hole)),
            (0xfec0_0000, Some(Owner::Apic)),
            (0xfee0_0fff, Some(Owner::Apic)),
            (0xfed0_0000, Some(Owner::Hole)),
            (0xffff_ffff, Some(Owner::Hole)),
            (0x1_0000_0000, Some(Owner::Ram)),
            (0x1_4000_0000, None),
            (0x80_000f_ffff, Some(Owner::Pci)),
            (u64::MAX - 1, None),
        ] {
            assert_eq!(owner_of(&taken, byte), owner, "{byte:#x}");
        }
        let one = Taken { range: bytes(0xb000_0000, 0x1000), by: Owner::Reserved };
        assert_eq!(one.to_string(), "memory that the firmware has reserved (0xb0000000 + 0x1000 bytes)");
    }

    proptest! {
        /// Whatever the map says: below 4 GiB a byte is taken unless it is persistent memory and nothing else; above, a
        /// byte is taken if somebody has it.
        #[test]
        fn nothing_is_free_that_somebody_has(
            ranges in prop::collection::vec((0..1_u64 << 33, 0..1_u64 << 30, 0..7_usize), 0..30),
            looks in prop::collection::vec(0..1_u64 << 34, 20),
        ) {
            let mut map = MemoryMap::default();
            for &(base, len, what) in &ranges {
                match OWNERS.get(what) {
                    Some(&owner) => map.add(bytes(base, len), owner),
                    None => map.add_persistent(bytes(base, len)),
                }
            }
            let taken = map.taken();
            let ends = ranges.iter().flat_map(|(base, len, _)| [*base, base + len, (base + len).saturating_sub(1)]);
            for byte in looks.into_iter().chain(ends) {
                let has = |wanted: fn(usize) -> bool| {
                    ranges.iter().any(|&(base, len, what)| (base..base + len).contains(&byte) && wanted(what))
                };
                let free = (byte >= DEVICES_END || has(|what| what == 6)) && !has(|what| what < 6)
                    && !APICS.iter().any(|apics| apics.overlaps(&bytes(byte, 1)));
                prop_assert_eq!(owner_of(&taken, byte).is_none(), free, "{:#x}", byte);
            }
        }
    }
}
