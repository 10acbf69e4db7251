//! What the NFITs say of the machine's NVDIMMs: told at boot, and in detail when somebody asks.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use mm::addr::PfnRange;
use nvdimm::nfit::{self, ByteRange, DeviceFlags, Level, Limits, MemoryDevice, Nfit, PersistentRange};
use nvdimm::pmem;
use spin::Mutex;

use crate::console;

/// The newest.
static NFIT: Mutex<Option<Arc<Nfit>>> = Mutex::new(None);

/// Reads the NFITs, and says what they hold and what is wrong with them. Called once, at boot.
pub fn find(tables: &[&[u8]], limits: Limits<'_>) -> Arc<Nfit> {
    let nfit = Arc::new(nfit::parse(tables.iter().copied(), limits));
    say(&nfit, 0, &|_| true);
    *NFIT.lock() = Some(Arc::clone(&nfit));
    nfit
}

/// The same for a table that takes the place of those, of which only the ranges that are new are told.
pub fn find_again(table: &[u8], limits: Limits<'_>, is_new: &dyn Fn(&PersistentRange) -> bool) -> Arc<Nfit> {
    let nfit = Arc::new(nfit::parse([table], limits));
    let known = nfit.ranges.iter().filter(|range| !is_new(range)).count();
    say(&nfit, known, is_new);
    let before = NFIT.lock().replace(Arc::clone(&nfit));
    drop(before);
    nfit
}

/// Tells what is wrong with a table, and of these of its ranges, which are numbered from `first` on.
fn say(nfit: &Nfit, first: usize, wanted: &dyn Fn(&PersistentRange) -> bool) {
    for notice in &nfit.notices {
        match notice.level() {
            Level::Normal => log::info!(target: "nfit", "{notice}"),
            Level::Strange | Level::Refused | Level::Serious => log::warn!(target: "nfit", "{notice}"),
        }
    }
    match (nfit.notices_dropped, nfit.serious_dropped) {
        (0, _) => {}
        (more, 0) => log::warn!(target: "nfit", "{more} more faults"),
        (more, serious) => log::warn!(target: "nfit", "{more} more faults, {serious} of them serious"),
    }
    for (id, range) in (first..).zip(nfit.ranges.iter().filter(|range| wanted(range))) {
        log::info!(target: "nfit", "NVDIMM {id}: {} MiB from {:#x}, range {} of the table", range.len_bytes >> 20, range.base, range.range_index);
        console::report!(
            "nvdimm id={id} base={:#x} size={} devices={} range_index={} read_only={}",
            range.base,
            range.len_bytes,
            range.nr_devices,
            range.range_index,
            u8::from(range.read_only().is_some())
        );
        if let Some(why) = range.read_only() {
            log::warn!(target: "nfit", "NVDIMM {id} takes no writes: a memory device behind it {why}");
        }
    }
    if nfit.ranges.is_empty() {
        log::info!(target: "nfit", "no NVDIMM found");
    }
}

/// Prints all that the table says of the NVDIMM that has these frames, and what the platform does for persistence; or that
/// it says nothing, of a virtio-pmem device or a module, which have none for it.
///
/// # Errors
/// There is no table.
pub fn describe(frames: Option<PfnRange>) -> Result<(), String> {
    let nfit = NFIT.lock().clone().ok_or("no table was read")?;
    // A namespace is a part of one.
    let has = |range: &PersistentRange, first| pmem::frames_of(range).is_some_and(|all| all.contains(first));
    let range = frames.and_then(|frames| nfit.ranges.iter().find(|range| has(range, frames.start())));
    let Some(range) = range else {
        // A virtio-pmem device, or a module.
        console::line(format_args!("the NFIT says nothing of it"));
        return Ok(());
    };
    let domain = range.proximity_domain.map_or_else(|| String::from("none"), |domain| format!("{domain}"));
    let PersistentRange { range_index, nr_devices, .. } = *range;
    console::line(format_args!(
        "range {range_index} ({}), proximity domain {domain}, attributes {}, {nr_devices} memory devices",
        range.bytes(),
        range.attributes,
    ));
    nfit.devices_of(range).for_each(describe_device);
    console::line(format_args!("platform capabilities: {}", nfit.platform));
    Ok(())
}

fn describe_device(device: &MemoryDevice) {
    let serial = device.serial_number.map_or_else(|| String::from("unknown"), |serial| format!("{serial:#010x}"));
    let state = if device.flags.intersects(DeviceFlags::TOLD) { format!("{}", device.flags) } else { "good".into() };
    let (handle, physical_id, ways) = (device.handle, device.physical_id, device.interleave_ways);
    let part = ByteRange { base: device.region_offset_bytes, len_bytes: device.region_len_bytes };
    console::line(format_args!(
        "memory device {handle} ({}), serial {serial}, SMBIOS handle {physical_id:#x}, part {part}, ways {ways}, state {state}",
        handle.place(),
    ));
}
