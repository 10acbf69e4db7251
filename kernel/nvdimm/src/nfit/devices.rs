//! The memory devices behind the ranges: their states, and whether what is said of them can be.

use media::set::Member;

use super::types::{DeviceFlags, DeviceHandle, MAX_DEVICES, MemoryDevice, PersistentRange};
use super::{ByteRange, Notice, Parser, raw};

impl Parser<'_> {
    /// Tells of a device's state, wherever it stands, and takes it in if the range that it lies behind was taken in.
    pub(super) fn read_device(&mut self, table: u8, map: &raw::MemoryDeviceMap) {
        let (handle, range_index) = (DeviceHandle(map.handle.get()), map.range_index.get());
        let flags = DeviceFlags::from_bits_retain(map.flags.get());
        let device = MemoryDevice {
            handle,
            physical_id: map.physical_id.get(),
            range_index,
            region_len_bytes: map.region_size.get(),
            region_offset_bytes: map.region_offset.get(),
            interleave_ways: map.interleave_ways.get(),
            flags,
            serial_number: None,
            member: None,
            control_index: map.control_index.get(),
            table,
        };
        if flags.intersects(DeviceFlags::TOLD) {
            self.nfit.note(Notice::DeviceState { handle, range_index, flags });
        }
        let Some(range) = self.nfit.ranges.iter().copied().find(|range| device.is_behind(range)) else { return };
        for range in self.nfit.ranges.iter_mut().filter(|range| device.is_behind(range)) {
            range.flags |= flags;
        }
        let same = |other: &&MemoryDevice| other.handle == handle && other.is_behind(&range);
        if self.nfit.devices.iter().any(|other| same(&other)) {
            return self.nfit.note(Notice::DeviceTwice { handle, range_index });
        }
        for range in self.nfit.ranges.iter_mut().filter(|range| device.is_behind(range)) {
            range.nr_devices = range.nr_devices.saturating_add(1);
        }
        if let Some(notice) = too_large(&device, &range) {
            self.nfit.note(notice);
        }
        if self.nfit.devices.len() < MAX_DEVICES {
            self.nfit.devices.push(device);
        } else {
            self.nfit.note(Notice::TooManyDevices { handle });
        }
    }

    /// Gives the devices that a control region describes their serial number, and what labels name them by.
    pub(super) fn read_control(&mut self, table: u8, control: &raw::ControlRegion) {
        let control_index = control.control_index.get();
        for device in &mut self.nfit.devices {
            if control_index != 0 && (device.table, device.control_index) == (table, control_index) {
                device.serial_number = Some(control.serial_number.get());
                device.member = Some(Member {
                    region_offset_bytes: device.region_offset_bytes,
                    serial_number: control.serial_number.get(),
                    vendor_id: control.vendor_id.get(),
                    manufacturing_date: control.manufacturing_date.get(),
                    manufacturing_location: control.manufacturing_location,
                });
            }
        }
    }

    /// Holds the devices against each other, once all are known.
    pub(super) fn check_devices(&mut self) {
        for at in 0..self.nfit.ranges.len() {
            let range = &self.nfit.ranges[at];
            let ways = self.nfit.devices_of(range).map(|device| device.interleave_ways).max().unwrap_or(0);
            if u32::from(ways) > range.nr_devices {
                let (range_index, nr_devices) = (range.range_index, range.nr_devices);
                self.nfit.note(Notice::InterleaveWays { range_index, ways, nr_devices });
            }
        }
        for at in 0..self.nfit.devices.len() {
            let device = self.nfit.devices[at];
            if let Some(other) = self.nfit.devices[..at].iter().find(|other| are_two_with_one_handle(other, &device)) {
                let range_indices = [other.range_index, device.range_index];
                self.nfit.note(Notice::HandleTaken { handle: device.handle, range_indices });
            }
        }
    }
}

/// The notice to give if a device's part does not fit into the range.
fn too_large(device: &MemoryDevice, range: &PersistentRange) -> Option<Notice> {
    let part = ByteRange { base: device.region_offset_bytes, len_bytes: device.region_len_bytes };
    let fits = part.base.checked_add(part.len_bytes).is_some_and(|end| end <= range.claimed_bytes);
    let (handle, range_index, range_bytes) = (device.handle, device.range_index, range.claimed_bytes);
    (!fits).then_some(Notice::RegionTooLarge { handle, range_index, part, range_bytes })
}

/// Whether two entries have the same handle and cannot be the same device. A device may well have several entries, for
/// each range that it has a part in.
fn are_two_with_one_handle(one: &MemoryDevice, other: &MemoryDevice) -> bool {
    let differ = |a: Option<u32>, b: Option<u32>| matches!((a, b), (Some(a), Some(b)) if a != b);
    let physical_id = |device: &MemoryDevice| Some(u32::from(device.physical_id)).filter(|id| *id != 0);
    one.handle == other.handle
        && (differ(physical_id(one), physical_id(other)) || differ(one.serial_number, other.serial_number))
}
