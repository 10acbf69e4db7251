//! What the parser hands out.

use alloc::vec::Vec;
use core::fmt::{self, Write};

use bitflags::{Bits, Flags, bitflags};
use media::set::{Member, SetCookies};

use super::memory_map::Taken;
use super::notice::Notice;

/// How many persistent ranges are kept, the lowest; more are each reported and left alone.
pub const MAX_RANGES: usize = 32;
/// How many memory devices are kept, over all ranges.
pub const MAX_DEVICES: usize = 64;
/// How many notices are kept: one for each range and each device, and more. Where there are more, the least serious
/// ones give way, and are only counted.
pub const MAX_NOTICES: usize = MAX_RANGES + MAX_DEVICES + 32;
/// Ranges begin and end on a multiple of this many bytes.
pub const PAGE_BYTES: u64 = 4096;

/// Some physical addresses in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// First address.
    pub base: u64,
    /// How many bytes.
    pub len_bytes: u64,
}

impl ByteRange {
    /// The address after the last byte, or the highest address there is where the sum would wrap.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.base.saturating_add(self.len_bytes)
    }

    /// Whether the two have a byte in common. An empty range overlaps nothing.
    #[must_use]
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.len_bytes != 0 && other.len_bytes != 0 && self.base < other.end() && other.base < self.end()
    }

    /// The whole pages inside the range; `None` if there is none.
    #[must_use]
    pub fn trimmed_to_pages(&self) -> Option<Self> {
        let base = self.base.checked_next_multiple_of(PAGE_BYTES)?;
        let end = self.end() & !(PAGE_BYTES - 1);
        (base < end).then(|| Self { base, len_bytes: end - base })
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} + {:#x} bytes", self.base, self.len_bytes)
    }
}

/// What the parser holds the table's ranges against.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    /// Width of a physical address, from CPUID leaf 0x8000_0008. Values above 52 count as 52.
    pub phys_bits: u8,
    /// What somebody else has, see [`MemoryMap`](super::MemoryMap). Of those that overlap a range the first is named.
    pub taken: &'a [Taken],
}

impl Limits<'_> {
    /// The first address that the CPU cannot reach.
    #[must_use]
    pub fn phys_end(&self) -> u64 {
        1 << self.phys_bits.min(52)
    }
}

bitflags! {
    /// How a range may be mapped (UEFI 2.10 §7.2.3), from the SPA range structure.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MemoryAttributes: u64 {
        /// Uncached.
        const UC = 0x1;
        /// Write combining.
        const WC = 0x2;
        /// Write through.
        const WT = 0x4;
        /// Write back: the only one under which the caches and the write-back instructions work as DAX needs.
        const WB = 0x8;
        /// Uncached, exported.
        const UCE = 0x10;
        /// Write protected.
        const WP = 0x1000;
        /// Read protected.
        const RP = 0x2000;
        /// Execute protected.
        const XP = 0x4000;
        /// Non-volatile.
        const NV = 0x8000;
        /// More reliable than other memory.
        const MORE_RELIABLE = 0x10000;
        /// Read only.
        const RO = 0x20000;
        const _ = !0;
    }

    /// State of a memory device at boot (ACPI 6.5 §5.2.26.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DeviceFlags: u16 {
        /// The last save to the device's medium failed: data was lost.
        const SAVE_FAILED = 1 << 0;
        /// The last restore from the device's medium failed: data was lost.
        const RESTORE_FAILED = 1 << 1;
        /// The platform's flush at the last power loss failed: data was lost.
        const FLUSH_FAILED = 1 << 2;
        /// The device is not armed: what is written now may not survive a power loss.
        const NOT_ARMED = 1 << 3;
        /// The device has reported a health event.
        const HEALTH_EVENT = 1 << 4;
        /// The device will report health events.
        const HEALTH_ENABLED = 1 << 5;
        /// The firmware did not map the device into the range.
        const MAP_FAILED = 1 << 6;
        const _ = !0;
    }

    /// What the platform does when the power fails (ACPI 6.5 §5.2.26.9). All clear if the table does not say.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct PlatformCapabilities: u32 {
        /// The CPU's caches are flushed to the devices on power loss.
        const CACHE_FLUSH = 1 << 0;
        /// The memory controller's queues are flushed to the devices on power loss.
        const MEMORY_FLUSH = 1 << 1;
        /// Byte-addressable ranges can be mirrored.
        const MIRRORING = 1 << 2;
        const _ = !0;
    }
}

impl DeviceFlags {
    /// Any of these: data were lost, or what is written will be. The range takes no writes.
    pub const READ_ONLY: Self = Self::SAVE_FAILED
        .union(Self::RESTORE_FAILED)
        .union(Self::FLUSH_FAILED)
        .union(Self::NOT_ARMED)
        .union(Self::MAP_FAILED);
    /// What is told of a device: it is as it should not be. That it will report health events is as it should be.
    pub const TOLD: Self = Self::READ_ONLY.union(Self::HEALTH_EVENT);
}

/// Writes the names of flags, in lower case, and the bits that have none as a number.
fn write_names<B: Flags<Bits: fmt::LowerHex + PartialEq>>(flags: &B, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (mut names, mut separator) = (flags.iter_names(), "");
    for (name, _) in names.by_ref() {
        f.write_str(separator)?;
        name.chars().try_for_each(|c| f.write_char(if c == '_' { ' ' } else { c.to_ascii_lowercase() }))?;
        separator = ", ";
    }
    let rest = names.remaining().bits();
    if rest != B::Bits::EMPTY {
        write!(f, "{separator}{rest:#x}")
    } else if separator.is_empty() {
        f.write_str("none")
    } else {
        Ok(())
    }
}

impl fmt::Display for MemoryAttributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_names(self, f)
    }
}

impl fmt::Display for PlatformCapabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_names(self, f)
    }
}

/// The flags that are told, in words.
impl fmt::Display for DeviceFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (flag, text) in [
            (Self::SAVE_FAILED, "failed to save its data"),
            (Self::RESTORE_FAILED, "failed to restore its data"),
            (Self::FLUSH_FAILED, "was not flushed"),
            (Self::NOT_ARMED, "is not armed"),
            (Self::HEALTH_EVENT, "has reported a health event"),
            (Self::MAP_FAILED, "was not mapped by the firmware"),
        ] {
            if self.contains(flag) {
                write!(f, "{separator}{text}")?;
                separator = ", ";
            }
        }
        Ok(())
    }
}

/// What an SPA range is for (ACPI 6.5 §5.2.26.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeKind {
    /// Byte-addressable persistent memory: what the pmem driver attaches.
    Persistent,
    /// Volatile memory.
    Volatile,
    /// Registers of an NVDIMM.
    ControlRegion,
    /// Data windows of an NVDIMM that is read in blocks.
    BlockWindow,
    /// A disk image of the firmware's in volatile memory.
    VolatileDisk,
    /// A compact disc image of the firmware's in volatile memory.
    VolatileCd,
    /// A disk image of the firmware's in persistent memory.
    PersistentDisk,
    /// A compact disc image of the firmware's in persistent memory.
    PersistentCd,
}

impl RangeKind {
    /// The kinds, each with its GUID as it lies in memory: the first three groups little-endian.
    pub const GUIDS: [(Self, [u8; 16]); 8] = [
        (Self::Persistent, guid(0x66f0d379, 0xb4f3, 0x4074, 0xac43_0d3318b78cdb)),
        (Self::Volatile, guid(0x7305944f, 0xfdda, 0x44e3, 0xb16c_3f22d252e5d0)),
        (Self::ControlRegion, guid(0x92f701f6, 0x13b4, 0x405d, 0x910b_299367e8234c)),
        (Self::BlockWindow, guid(0x91af0530, 0x5d86, 0x470e, 0xa6b0_0a2db9408249)),
        (Self::VolatileDisk, guid(0x77ab535a, 0x45fc, 0x624b, 0x5560_f7b281d1f96e)),
        (Self::VolatileCd, guid(0x3d5abd30, 0x4175, 0x87ce, 0x6d64_d2ade523c4bb)),
        (Self::PersistentDisk, guid(0x5cea02c9, 0x4d07, 0x69d3, 0x269f_4496fbe096f9)),
        (Self::PersistentCd, guid(0x08018188, 0x42cd, 0xbb48, 0x100f_5387d53ded3d)),
    ];

    /// The kind that a GUID stands for; `None` for one that we do not know.
    #[must_use]
    pub fn from_guid(bytes: &[u8; 16]) -> Option<Self> {
        Self::GUIDS.iter().find(|(_, guid)| guid == bytes).map(|(kind, _)| *kind)
    }

    /// Whether a table of a machine in order has such ranges, which are no concern of ours.
    #[must_use]
    pub const fn is_normal(self) -> bool {
        matches!(self, Self::Volatile | Self::ControlRegion | Self::BlockWindow | Self::VolatileDisk | Self::VolatileCd)
    }

    /// Whether the firmware keeps an image of its own in the range, which is to be left alone.
    #[must_use]
    pub const fn is_firmware_image(self) -> bool {
        matches!(self, Self::PersistentDisk | Self::PersistentCd)
    }
}

impl fmt::Display for RangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Persistent => "persistent memory",
            Self::Volatile => "volatile memory",
            Self::ControlRegion => "an NVDIMM control region",
            Self::BlockWindow => "an NVDIMM block data window",
            Self::VolatileDisk => "a volatile virtual disk",
            Self::VolatileCd => "a volatile virtual CD",
            Self::PersistentDisk => "a persistent virtual disk",
            Self::PersistentCd => "a persistent virtual CD",
        })
    }
}

/// Puts a GUID into its byte order in memory: three little-endian groups, then two big-endian ones.
const fn guid(a: u32, b: u16, c: u16, d: u64) -> [u8; 16] {
    let (a, b, c, d) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes(), d.to_be_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]]
}

/// A GUID that is printed in its usual form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guid(pub [u8; 16]);

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let g = &self.0;
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-",
            u32::from_le_bytes([g[0], g[1], g[2], g[3]]),
            u16::from_le_bytes([g[4], g[5]]),
            u16::from_le_bytes([g[6], g[7]]),
            u16::from_be_bytes([g[8], g[9]]),
        )?;
        g[10..].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A device's place in the machine (ACPI 6.5 §5.2.26.3): from bit 0 on, four bits each for the slot, the channel, the
/// controller and the socket, and twelve for the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceHandle(pub u32);

impl DeviceHandle {
    /// The place, in words.
    #[must_use]
    pub const fn place(self) -> DevicePlace {
        DevicePlace(self)
    }
}

/// A [`DeviceHandle`] that is printed in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevicePlace(DeviceHandle);

impl fmt::Display for DevicePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.0.0;
        let part = |low: u32| bits >> low & 0xf;
        let (node, socket) = (bits >> 16 & 0xfff, part(12));
        write!(f, "node {node}, socket {socket}, controller {}, channel {}, slot {}", part(8), part(4), part(0))
    }
}

impl fmt::Display for DeviceHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A persistent range that may be attached: whole pages, which the CPU can reach, clear of RAM and of its like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PersistentRange {
    /// First address, a multiple of [`PAGE_BYTES`].
    pub base: u64,
    /// Length in bytes, a multiple of [`PAGE_BYTES`] and not zero.
    pub len_bytes: u64,
    /// The table's own name for the range.
    pub range_index: u16,
    /// NUMA node, where the table gives one.
    pub proximity_domain: Option<u32>,
    /// How the range may be mapped.
    pub attributes: MemoryAttributes,
    /// The states of all devices behind the range together, of those that are not listed too.
    pub flags: DeviceFlags,
    /// How many devices are behind the range, listed or not.
    pub nr_devices: u32,
    /// The length that the table gives, in bytes, before the range was cut to whole pages.
    pub(super) claimed_bytes: u64,
    /// Which of the tables it came from.
    pub(super) table: u8,
}

impl PersistentRange {
    /// The addresses that the range covers.
    #[must_use]
    pub const fn bytes(&self) -> ByteRange {
        ByteRange { base: self.base, len_bytes: self.len_bytes }
    }

    /// Why the range takes no writes: what is wrong with the devices behind it. `None` where it takes them.
    #[must_use]
    pub fn read_only(&self) -> Option<DeviceFlags> {
        let why = self.flags & DeviceFlags::READ_ONLY;
        (!why.is_empty()).then_some(why)
    }
}

/// The part of one memory device that lies behind a persistent range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryDevice {
    /// The device's place in the machine.
    pub handle: DeviceHandle,
    /// SMBIOS type 17 handle; zero for none.
    pub physical_id: u16,
    /// The range that it lies behind, see [`PersistentRange::range_index`].
    pub range_index: u16,
    /// How much of the device is in the range, in bytes.
    pub region_len_bytes: u64,
    /// Where this part begins, counted from the range's base, in bytes.
    pub region_offset_bytes: u64,
    /// How many devices share the range line by line; 0 and 1 mean that none do.
    pub interleave_ways: u16,
    /// State at boot.
    pub flags: DeviceFlags,
    /// Serial number, where a control region gives one.
    pub serial_number: Option<u32>,
    /// What the labels of the range are to name it by, where a control region says it.
    pub(super) member: Option<Member>,
    /// The control region that describes the device; zero for none.
    pub(super) control_index: u16,
    /// Which of the tables it came from.
    pub(super) table: u8,
}

impl MemoryDevice {
    /// Whether the device lies behind the range. None is known to lie behind a range of index zero.
    #[must_use]
    pub fn is_behind(&self, range: &PersistentRange) -> bool {
        self.range_index != 0 && (self.table, self.range_index) == (range.table, range.range_index)
    }
}

/// How many structures there were of the kinds that only concern devices we do not drive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OtherStructures {
    /// Interleave structures.
    pub interleaves: u32,
    /// SMBIOS structures.
    pub smbios: u32,
    /// Control regions.
    pub control_regions: u32,
    /// Block data windows.
    pub block_windows: u32,
    /// Flush hint structures.
    pub flush_hints: u32,
}

/// What the tables say, and what is wrong with them.
#[derive(Clone, Debug)]
pub struct Nfit {
    /// The ranges that may be attached, by rising address.
    pub ranges: Vec<PersistentRange>,
    /// The devices behind those ranges.
    pub devices: Vec<MemoryDevice>,
    /// What the platform does when the power fails.
    pub platform: PlatformCapabilities,
    /// How many other structures there were.
    pub others: OtherStructures,
    /// What was found wrong or strange, in the order in which it was found.
    pub notices: Vec<Notice>,
    /// How many notices there was no room for.
    pub notices_dropped: u32,
    /// How many of those were [serious](super::Level::Serious): there is no other sort among those that were kept then.
    pub serious_dropped: u32,
}

impl Nfit {
    /// Nothing, with room for the most that is kept.
    pub(super) fn with_room() -> Self {
        Self {
            ranges: Vec::with_capacity(MAX_RANGES),
            devices: Vec::with_capacity(MAX_DEVICES),
            platform: PlatformCapabilities::default(),
            others: OtherStructures::default(),
            notices: Vec::with_capacity(MAX_NOTICES),
            notices_dropped: 0,
            serious_dropped: 0,
        }
    }

    /// The memory devices behind a range.
    pub fn devices_of<'a>(&'a self, range: &'a PersistentRange) -> impl Iterator<Item = &'a MemoryDevice> {
        self.devices.iter().filter(|device| device.is_behind(range))
    }

    /// What the labels of a range are to name: the interleave set behind it. `None` where no device is behind it, or one of
    /// them is not listed or has no control region.
    #[must_use]
    pub fn interleave_set(&self, range: &PersistentRange) -> Option<SetCookies> {
        let members: Vec<Member> = self.devices_of(range).map(|device| device.member).collect::<Option<_>>()?;
        if members.len() as u64 != u64::from(range.nr_devices) {
            return None;
        }
        SetCookies::of(&members)
    }
}
