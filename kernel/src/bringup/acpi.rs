//! The firmware's tables, read through the bootloader's mapping of physical memory.
//!
//! What is in the tables, and what is wrong with them, the package `nvdimm` finds out: it only ever sees slices.
//! Here is the one thing that it cannot do itself: turn a physical address that the firmware wrote down into such
//! a slice, and refuse to where the firmware's own memory map does not say that a table can lie there.

use bootloader_api::info::{MemoryRegion, MemoryRegionKind};
use nvdimm::acpi::{AcpiInfo, PhysMemory, RootError};
use nvdimm::nfit::{ByteRange, MemoryMap, Owner};

/// UEFI memory types (UEFI 2.10, table 7.6) that may hold tables: reserved, runtime services (code, data), ACPI
/// reclaim, ACPI non-volatile storage. None of them is ever given to the frame allocator.
const UEFI_TABLE_KINDS: [u32; 5] = [0, 5, 6, 9, 10];
/// UEFI memory types of device registers.
const UEFI_REGISTER_KINDS: [u32; 2] = [11, 12];
/// UEFI memory type of what the firmware keeps to itself and does not say what for.
const UEFI_RESERVED: u32 = 0;
/// UEFI memory type of persistent memory. It is not RAM: the NFIT describes the same range.
const UEFI_PERSISTENT: u32 = 14;
/// E820 types that may hold tables: reserved, ACPI reclaim, ACPI non-volatile storage.
const E820_TABLE_KINDS: [u32; 3] = [2, 3, 4];
/// E820 type of what the firmware keeps to itself.
const E820_RESERVED: u32 = 2;
/// E820 type of persistent memory.
const E820_PERSISTENT: u32 = 7;

/// The parts of physical memory in which tables may lie.
pub struct FirmwareMemory<'b> {
    phys_offset: u64,
    regions: &'b [MemoryRegion],
}

impl<'b> FirmwareMemory<'b> {
    /// Firmware memory as the bootloader describes and maps it.
    ///
    /// # Safety
    /// For as long as the value lives, each address in `regions` must be mapped at `phys_offset` above itself, and
    /// nothing may write to memory of the firmware's own kinds there.
    pub unsafe fn new(phys_offset: u64, regions: &'b [MemoryRegion]) -> Self {
        Self { phys_offset, regions }
    }

    /// The end of the region at `base`, if a table may lie there.
    fn table_region_end(&self, base: u64) -> Option<u64> {
        let holds = |region: &&MemoryRegion| {
            (region.start..region.end).contains(&base)
                && match region.kind {
                    MemoryRegionKind::UnknownUefi(kind) => UEFI_TABLE_KINDS.contains(&kind),
                    MemoryRegionKind::UnknownBios(kind) => E820_TABLE_KINDS.contains(&kind),
                    _ => false,
                }
        };
        self.regions.iter().find(holds).map(|region| region.end)
    }
}

impl PhysMemory for FirmwareMemory<'_> {
    fn bytes(&self, base: u64, len_bytes: u64) -> Option<&[u8]> {
        let end = base.checked_add(len_bytes)?;
        // A table may lie across regions that touch. Each step moves on, since a region holds its own beginning.
        let mut known = base;
        while known < end {
            known = self.table_region_end(known)?;
        }
        let first = usize::try_from(base.checked_add(self.phys_offset)?).ok()?;
        let len = usize::try_from(len_bytes).ok()?;
        if base == 0 || len == 0 {
            return None;
        }
        // SAFETY: every byte of the range lies in a region of the memory map, so by the contract of `new` it is
        // mapped at this address and nothing writes to it while `self` is borrowed. It is below 2^63 bytes, as the
        // sum of the address and the length did not wrap and regions end below 2^52.
        Some(unsafe { core::slice::from_raw_parts(first as *const u8, len) })
    }
}

/// Reads the tables and says on the console what was found and what is wrong with it.
///
/// # Errors
/// There is no list of tables: the caller goes on with one CPU and without an NVDIMM.
pub fn discover<'m>(memory: &'m FirmwareMemory<'_>, rsdp: u64) -> Result<AcpiInfo<'m>, RootError> {
    let info = nvdimm::acpi::discover(memory, rsdp)?;
    for notice in &info.notices {
        log::warn!(target: "firmware", "{notice}");
    }
    if info.notices_dropped != 0 {
        log::warn!(target: "firmware", "{} more faults", info.notices_dropped);
    }
    let (nr_cpus, nr_disabled) = info.madt.as_ref().map_or((0, 0), |madt| (madt.cpus.len(), madt.nr_disabled));
    log::info!(
        target: "firmware",
        "{} tables: {nr_cpus} CPUs ({nr_disabled} more disabled), {} NFIT, {}",
        info.nr_tables,
        info.nfits.len(),
        if info.pm_timer.is_some() { "PM timer" } else { "no PM timer" },
    );
    Ok(info)
}

/// What the memory map says of every address, for those who look for persistent memory.
pub fn memory_map(regions: &[MemoryRegion]) -> MemoryMap {
    use MemoryRegionKind::{Bootloader, UnknownBios, UnknownUefi, Usable};
    let mut map = MemoryMap::default();
    for region in regions {
        let range = ByteRange { base: region.start, len_bytes: region.end.saturating_sub(region.start) };
        match region.kind {
            UnknownUefi(UEFI_PERSISTENT) | UnknownBios(E820_PERSISTENT) => map.add_persistent(range),
            UnknownUefi(kind) if UEFI_REGISTER_KINDS.contains(&kind) => map.add(range, Owner::Registers),
            UnknownUefi(UEFI_RESERVED) | UnknownBios(E820_RESERVED) => map.add(range, Owner::Reserved),
            Usable | Bootloader | UnknownUefi(_) | UnknownBios(_) => map.add(range, Owner::Ram),
            _ => map.add(range, Owner::Reserved),
        }
    }
    map
}
