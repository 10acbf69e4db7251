//! What the labels make of the NVDIMMs' ranges: a device for each namespace, and one for a range without any.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use media::namespace::{Listing, Mode, Namespace, list};
use mm::addr::{PAGE_SIZE, PfnRange};
use mm::pagemap::MemoryKind;
use nvdimm::nfit::{DeviceFlags, Nfit};
use nvdimm::pmem::{self, PmemDriver};

use crate::bringup::options;
use crate::mem::machine::KernelMachine;
use crate::pmem::devices::Slot;
use crate::pmem::labels::Labels;

/// A range of the NFIT.
pub struct Range {
    frames: PfnRange,
    /// Why it takes no writes; `None` where it takes them.
    read_only: Option<DeviceFlags>,
    /// Of the one NVDIMM behind it; `None` where there are several, or none is named.
    handle: Option<u32>,
}

/// The ranges of the table that can be used.
pub fn ranges(nfit: &Nfit) -> Vec<Range> {
    let range = |range| {
        let mut devices = nfit.devices_of(range);
        let (first, more) = (devices.next(), devices.next());
        let handle = first.filter(|_| more.is_none()).map(|device| device.handle.0);
        Some(Range { frames: pmem::frames_of(range)?, read_only: range.read_only(), handle })
    };
    nfit.ranges.iter().filter_map(range).collect()
}

/// What becomes a slot.
pub struct Given {
    /// The device's name.
    pub name: String,
    /// The frames of its data.
    pub frames: PfnRange,
    /// Why its memory takes no writes; `None` where it takes them.
    pub read_only: Option<DeviceFlags>,
    /// The namespace that it is, and the number of its region; `None` for a whole range without labels.
    pub namespace: Option<(usize, Namespace)>,
}

/// Divides the ranges by their labels. What the labels say and cannot be is left alone, with a line.
pub fn split(driver: &PmemDriver<KernelMachine>, ranges: Vec<Range>) -> Vec<Given> {
    let mut all = Vec::new();
    for (region, range) in ranges.into_iter().enumerate() {
        let name = format!("pmem{region}");
        let listing = if options::get().force { None } else { labelled(driver, &name, &range) };
        let namespaces = listing.map(|listing| listing.namespaces).unwrap_or_default();
        if namespaces.is_empty() {
            all.push(Given { name, frames: range.frames, read_only: range.read_only, namespace: None });
        }
        all.extend(namespaces.into_iter().filter_map(|namespace| given(region, &range, namespace)));
    }
    all
}

/// What the labels of a range say; `None` where there are none.
fn labelled(driver: &PmemDriver<KernelMachine>, name: &str, range: &Range) -> Option<Listing> {
    let labels = Labels::of(range.handle?)?;
    media::label::read(&labels)?;
    let looked = driver.look(name, range.frames, |medium| list(medium, Some(&labels), 0));
    let listing = looked.map_err(|error| log::warn!(target: "media", "{name}: labels: {error}")).ok()?;
    for notice in &listing.notices {
        log::warn!(target: "media", "{name}: {notice}");
    }
    Some(listing)
}

/// The device of a namespace: its data where they are bytes in a row, else all of it, and nobody attaches it.
fn given(region: usize, range: &Range, namespace: Namespace) -> Option<Given> {
    let (start, len) = namespace.data().unwrap_or((namespace.start, namespace.len_bytes));
    let frames = PfnRange::new(range.frames.start().add(start / PAGE_SIZE), len / PAGE_SIZE)?;
    let name = block_device(region, &namespace);
    let (id, mode) = (namespace.id, namespace.mode().name());
    log::info!(target: "media", "{name}: namespace{region}.{id}, {mode}, {len} bytes at {start:#x} of NVDIMM {region}");
    Some(Given { name, frames, read_only: range.read_only, namespace: Some((region, namespace)) })
}

/// The name of the block device of a namespace, as in Linux.
pub fn block_device(region: usize, namespace: &Namespace) -> String {
    let sector = if namespace.mode() == Mode::Sector { "s" } else { "" };
    match namespace.id {
        0 => format!("pmem{region}{sector}"),
        id => format!("pmem{region}.{id}{sector}"),
    }
}

impl Slot {
    /// Its mode; `None` for a range without labels.
    pub fn mode(&self) -> Option<Mode> {
        self.namespace.as_ref().map(|(_, namespace)| namespace.mode())
    }

    /// May it be used so? A namespace is what its mode says; a raw one and a range without labels are for anything.
    ///
    /// # Errors
    /// One clear line.
    pub fn allows(&self, kind: MemoryKind) -> Result<(), String> {
        match (self.mode(), kind) {
            (Some(mode @ Mode::FsDax), MemoryKind::DevDax) | (Some(mode @ Mode::DevDax), MemoryKind::FsDax) => {
                Err(format!("{} is a namespace for {}", self.name, mode.name()))
            }
            _ => Ok(()),
        }
    }

    /// Why nobody uses it: its bytes are not what they seem.
    pub fn left_alone(&self) -> Option<String> {
        let (_, namespace) = self.namespace.as_ref()?;
        match namespace.fault {
            Some(why) => Some(format!("{why}; it is left alone")),
            None if namespace.mode() == Mode::Sector => Some(
                "a namespace in sector mode, whose block translation table is not used here; it is left alone".into(),
            ),
            None => None,
        }
    }
}
