//! What the labels make of the NVDIMMs' ranges: a device for each namespace, and one for a range without any.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use media::info::Parent;
use media::label;
use media::namespace::{Mode, Namespace, Region, Why, list_read};
use media::set::SetCookies;
use mm::addr::{PAGE_SIZE, PfnRange};
use mm::pagemap::MemoryKind;
use nvdimm::nfit::{DeviceFlags, Nfit, PersistentRange};
use nvdimm::pmem::{self, PmemDriver};

use crate::bringup::options;
use crate::mem::machine::KernelMachine;
use crate::pmem::labels::Labels;
use crate::pmem::slots::Slot;

/// A range of the NFIT.
pub struct Range {
    frames: PfnRange,
    /// Why it takes no writes; `None` where it takes them.
    read_only: Option<DeviceFlags>,
    /// Of the one NVDIMM behind it; `None` where there are several, or none is named.
    handle: Option<u32>,
    /// What its labels are to name; `None` where the table does not say enough of the NVDIMMs behind it.
    set: Option<SetCookies>,
}

/// The ranges of the table that can be used.
pub fn ranges(nfit: &Nfit) -> Vec<Range> {
    ranges_if(nfit, &|_| true)
}

/// Those of them that `wanted` takes.
pub fn ranges_if(nfit: &Nfit, wanted: &dyn Fn(&PersistentRange) -> bool) -> Vec<Range> {
    let range = |range: &PersistentRange| {
        let mut devices = nfit.devices_of(range);
        let (first, more) = (devices.next(), devices.next());
        let handle = first.filter(|_| more.is_none()).map(|device| device.handle.0);
        Some(Range {
            frames: pmem::frames_of(range)?,
            read_only: range.read_only(),
            handle,
            set: nfit.interleave_set(range),
        })
    };
    nfit.ranges.iter().filter(|range| wanted(range)).filter_map(range).collect()
}

/// What becomes a slot.
pub struct Given {
    /// The device's name.
    pub name: String,
    /// The frames of its data.
    pub frames: PfnRange,
    /// Why its memory takes no writes; `None` where it takes them.
    pub read_only: Option<DeviceFlags>,
    /// The number of its region, which is that of its range among the NFIT's; `None` for what the NFIT does not name.
    pub region: Option<usize>,
    /// The namespace that it is; `None` for a whole range without labels.
    pub namespace: Option<Namespace>,
}

impl Given {
    /// All of what a provider has that knows no labels.
    pub fn whole(name: String, frames: PfnRange) -> Self {
        Self { name, frames, read_only: None, region: None, namespace: None }
    }
}

/// Divides the ranges by their labels; regions are numbered from `first` on. What the labels say and cannot be is left alone,
/// with a line.
pub fn split(driver: &PmemDriver<KernelMachine>, first: usize, ranges: Vec<Range>) -> Vec<Given> {
    let mut all = Vec::new();
    for (region, range) in (first..).zip(ranges) {
        let name = format!("pmem{region}");
        let namespaces = if options::get().force { Vec::new() } else { labelled(driver, &name, &range) };
        if namespaces.is_empty() {
            let (frames, read_only) = (range.frames, range.read_only);
            all.push(Given { name, frames, read_only, region: Some(region), namespace: None });
        }
        all.extend(namespaces.into_iter().filter_map(|namespace| given(region, &range, namespace)));
    }
    all
}

/// What the labels of a range say; nothing where there are none in use. Where that cannot be found out, the range is one
/// namespace that is left alone.
fn labelled(driver: &PmemDriver<KernelMachine>, name: &str, range: &Range) -> Vec<Namespace> {
    let left_alone = |why| vec![Namespace::left_alone(range.frames.nr_pages() * PAGE_SIZE, Why::Label(why))];
    let area = match range.handle.map_or(Ok(None), Labels::of) {
        Ok(labels) => labels.and_then(|labels| label::read(&labels)),
        Err(why) => {
            log::warn!(target: "media", "{name}: {why}; it is left alone");
            return left_alone(why);
        }
    };
    let Some(area) = area else { return Vec::new() };
    let region = Region { dpa: 0, base: range.frames.start().addr().as_u64(), set: range.set };
    match driver.look(name, range.frames, |medium| list_read(medium, Some(area), region)) {
        Ok(listing) => {
            listing.notices.iter().for_each(|notice| log::warn!(target: "media", "{name}: {notice}"));
            listing.namespaces
        }
        Err(error) => {
            log::warn!(target: "media", "{name}: it has labels, and cannot be looked at: {error}; it is left alone");
            left_alone("it has labels, and could not be looked at")
        }
    }
}

/// The device of a namespace: its data where they are bytes in a row, else all of it, and nobody attaches it.
fn given(region: usize, range: &Range, namespace: Namespace) -> Option<Given> {
    let (start, len) = namespace.data().unwrap_or((namespace.start, namespace.len_bytes));
    let frames = PfnRange::new(range.frames.start().add(start / PAGE_SIZE), len / PAGE_SIZE)?;
    let name = namespace.block_device(region);
    let (id, mode) = (namespace.id, namespace.mode().name());
    log::info!(target: "media", "{name}: namespace{region}.{id}, {mode}, {len} bytes at {start:#x} of NVDIMM {region}");
    Some(Given { name, frames, read_only: range.read_only, region: Some(region), namespace: Some(namespace) })
}

impl Slot {
    /// Its mode; `None` for a range without labels.
    pub fn mode(&self) -> Option<Mode> {
        self.namespace.as_ref().map(Namespace::mode)
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
        let namespace = self.namespace.as_ref()?;
        match namespace.fault {
            Some(why) => Some(format!("{why}; it is left alone")),
            None if namespace.mode() == Mode::Sector => Some(
                "a namespace in sector mode: `pmem read` reads its sectors, and a write would need the log of its block translation table; it is left alone"
                    .into(),
            ),
            None => None,
        }
    }

    /// What its block translation table is to name, where its bytes are reached by one.
    pub fn in_sectors(&self) -> Option<Parent> {
        let namespace = self.namespace.as_ref().filter(|namespace| namespace.fault.is_none())?;
        let parent = namespace.raw_uuid().map_or(Parent::Unlabelled, Parent::Label);
        (namespace.mode() == Mode::Sector).then_some(parent)
    }
}
