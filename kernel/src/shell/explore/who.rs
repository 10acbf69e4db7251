//! `who`: who maps, pins, has registered, reaches by DMA, and owns a page frame.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use arrayvec::ArrayVec;
use fs::lock_order::Context;
use fs::owner::Owner;
use mm::addr::{PAGE_SHIFT, PAGE_SIZE, Pfn, PfnRange, VirtAddr};
use mm::machine::Machine;
use mm::pagemap::DevPagemap;
use mm::pins::Word;

use super::files::{self, KernelMapping};
use super::frame::Facts;
use super::words::{count, frame};
use crate::console::{self, report};
use crate::io::dma;
use crate::mem::machine::mm;
use crate::pmem::{devices, mounts};

/// Of each sort so many are shown.
const SHOWN: usize = 16;
/// Leaves of the IOMMU that are looked at for each device.
const LOOKS: u32 = 4096;

/// The command.
pub fn run(args: &[&str]) -> Result<(), String> {
    let [word] = args else { return Err("expected: who PFN".into()) };
    let pfn = frame(word)?;
    let facts = Facts::of(pfn);
    let Some(map) = &facts.map else {
        console::line(format_args!(
            "frame {pfn}: no page map has it, so nobody maps, pins or owns it as persistent memory"
        ));
        reached(pfn, &[]);
        return Ok(());
    };
    let found = mappings_of(map, pfn);
    console::line(format_args!("frame {pfn}: {}", found.owner));
    let mapped: usize = found.mappings.iter().map(|(mapping, page)| mapped(pfn, mapping, *page)).sum();
    let pinned = pinned(pfn);
    let keys = registered(map, pfn);
    let reached = reached(pfn, &keys);
    console::line(format_args!(
        "{}, {}, {}, {}",
        count(mapped as u64, "mapping"),
        count(pinned, "pin holder"),
        count(keys.len() as u64, "registration"),
        count(reached, "DMA mapping")
    ));
    Ok(())
}

/// The mappings that have a frame, each with the page of it that this is; and whose it is, in words.
pub struct Mappings {
    /// The mappings.
    pub mappings: ArrayVec<(Arc<KernelMapping>, u64), SHOWN>,
    /// Whose it is.
    pub owner: String,
}

/// The mappings through which `pfn` of `map` may be mapped: the device's own as device-dax, or that of the file which owns
/// the block, and of whoever its metadata names.
pub fn mappings_of(map: &Arc<DevPagemap>, pfn: Pfn) -> Mappings {
    let mut found = Mappings { mappings: ArrayVec::new(), owner: String::from("nobody is known to own it") };
    for at in 0..devices::slots().len() {
        if let Ok(file) = devices::file(at)
            && Arc::ptr_eq(file.device().pagemap(), map)
            && let Some(page) = map.page_of(pfn)
        {
            found.owner = format!("page {page} of {} as device-dax", devices::slots()[at].name);
            found.add(Arc::clone(file.mapping()), page);
        }
    }
    for (at, mounted) in mounts::all() {
        if Arc::ptr_eq(mounted.device().pagemap(), map)
            && let Some(page) = map.page_of(pfn)
        {
            found.of_file_system(at, &mounted, page << PAGE_SHIFT);
        }
    }
    if let Some(folio) = mm().meta.inspect(pfn)
        && let Some(mapping) = mm().find_mapping(map, folio.owner.mapping)
    {
        found.add(mapping, folio.owner.offset.saturating_add(pfn.as_u64() - folio.head.as_u64()));
    }
    found
}

impl Mappings {
    fn add(&mut self, mapping: Arc<KernelMapping>, page: u64) {
        if self.mappings.iter().all(|(known, _)| known.id() != mapping.id()) {
            _ = self.mappings.try_push((mapping, page));
        }
    }

    fn of_file_system(&mut self, at: usize, mounted: &mounts::Fs, offset: u64) {
        let name = &devices::slots()[at].name;
        let found = match mounted.owner_of(&Context::new(), offset) {
            Ok(Some(found)) => found,
            Ok(None) => {
                self.owner = format!("no file of {name} that is in memory owns it");
                return;
            }
            Err(error) => {
                self.owner = format!("the file system of {name} does not say whose it is: {error}");
                return;
            }
        };
        let page = found.page;
        self.owner = match found.owner {
            Owner::Metadata => format!("metadata of the file system on {name}"),
            Owner::Data { ino, .. } => format!("page {page} of {}", files::name(at, mounted, ino)),
            Owner::Directory { ino } => format!("entries of the directory with inode {ino} on {name}"),
            Owner::Mapping { ino } => format!("a mapping block of inode {ino} on {name}"),
            Owner::Attribute { ino } => format!("attributes of inode {ino} on {name}"),
        };
        if let Owner::Data { ino, .. } = found.owner {
            let path = files::path(mounted, ino);
            report!("who_owns device={name} ino={ino} page={page} path={}", Word(path.as_deref().unwrap_or("none")));
        }
        if let Some(mapping) = found.mapping {
            self.add(mapping, page);
        }
    }
}

fn mapped(pfn: Pfn, mapping: &KernelMapping, page: u64) -> usize {
    let (users, nr) = mapping.some_users::<SHOWN>(page, 1);
    for ((space, range), from) in &users {
        let va = VirtAddr::new(range.start().as_u64() + ((page - from) << PAGE_SHIFT));
        let leaf = space.translate(va).filter(|found| found.pfn_at(va) == pfn);
        let there = leaf.map_or_else(|| "not touched yet".into(), |found| format!("by a leaf of {}", found.size));
        let (id, name) = (space.id(), space.name());
        console::line(format_args!("mapped at {va} of {name} (space {id}), {there}"));
        report!("who pfn={pfn} by=mapping space={id} name={} addr={va} leaf={}", Word(name), u8::from(leaf.is_some()));
    }
    if nr > users.len() {
        console::line(format_args!("... and {} more mappings", nr - users.len()));
    }
    nr
}

fn pinned(pfn: Pfn) -> u64 {
    let Some(frame) = PfnRange::new(pfn, 1) else { return 0 };
    let (mut records, mut nr) = (ArrayVec::<_, SHOWN>::new(), 0);
    mm().pins.for_each(&mut |record| {
        if record.holds_any(frame) {
            nr += 1;
            if !records.is_full() {
                records.push((
                    record.owner.clone(),
                    record.place,
                    record.since_ns,
                    record.nr_pages(),
                    record.registration,
                ));
            }
        }
    });
    let now = mm().machine.now_ns();
    for (owner, place, since, pages, registration) in &records {
        let age_ns = now.saturating_sub(*since);
        let term = registration.map_or_else(String::new, |key| format!(", for registration {key}"));
        let (file, line) = (place.file(), place.line());
        console::line(format_args!(
            "pinned by {owner} {} ms ago at {file}:{line}, with {}{term}",
            age_ns / 1_000_000,
            count(*pages, "page")
        ));
        report!("who pfn={pfn} by=pin name={} place={file}:{line} age_ns={age_ns} pages={pages}", Word(owner));
    }
    if nr > records.len() as u64 {
        console::line(format_args!("... and {} more pin holders", nr - records.len() as u64));
    }
    nr
}

/// A registration over the frame: its number, and where in its I/O addresses the frame is.
struct Registered {
    key: u64,
    offset: u64,
}

fn registered(map: &DevPagemap, pfn: Pfn) -> ArrayVec<Registered, SHOWN> {
    let mut keys = ArrayVec::new();
    mm().regions.for_each_over(map, pfn, &mut |region, va| {
        let mut offset = 0;
        for run in region.frames {
            if run.contains(pfn) {
                offset += (pfn.as_u64() - run.start().as_u64()) * PAGE_SIZE;
                break;
            }
            offset += run.nr_pages() * PAGE_SIZE;
        }
        let (key, owner, space) = (region.key, region.owner, region.space);
        let state = if region.deadline_ns.is_some() { "asked" } else { "live" };
        console::line(format_args!("registered at {va} of {owner} (space {space}): registration {key}, {state}"));
        report!("who pfn={pfn} by=registration key={key} space={space} name={} addr={va} state={state}", Word(owner));
        _ = keys.try_push(Registered { key, offset });
    });
    keys
}

/// Devices that reach the frame by DMA. Where that is because of a registration its runs say so; what is mapped for another
/// reason is walked, up to a bound.
fn reached(pfn: Pfn, keys: &[Registered]) -> u64 {
    let mut nr = 0;
    for device in dma::devices() {
        let mut left = LOOKS;
        device.domain().for_each(&mut |mapping| {
            let iova = match keys.iter().find(|known| known.key == mapping.tag) {
                Some(known) => Some(mapping.address.saturating_add(known.offset)),
                None => iova_in(device, mapping.address, mapping.bytes, pfn, &mut left),
            };
            if let Some(iova) = iova {
                nr += 1;
                let whose = dma::Whose(mapping.tag);
                let revoked = if mapping.revoked { ", which is being taken away" } else { "" };
                console::line(format_args!(
                    "{} reaches it at I/O address {iova:#x} ({}), {whose}{revoked}",
                    device.name(),
                    mapping.rights
                ));
                report!(
                    "who pfn={pfn} by=dma device={} iova={iova:#x} rights={} whose={}",
                    Word(device.name()),
                    mapping.rights,
                    whose.word()
                );
            }
        });
        if left == 0 {
            console::line(format_args!("{} has more mappings than are looked through (dma lists them)", device.name()));
        }
    }
    nr
}

/// Where the mapping leads to `pfn`; the looks that are left go down with each leaf.
fn iova_in(device: &dma::DmaDevice, start: u64, bytes: u64, pfn: Pfn, left: &mut u32) -> Option<u64> {
    let end = start.saturating_add(bytes);
    let mut at = start;
    while at < end && *left > 0 {
        *left -= 1;
        let (byte, _, leaf) = device.domain().walk(at).reaches?;
        let into = at & (leaf - 1);
        let first = byte.as_u64() - into;
        let wanted = pfn.addr().as_u64();
        if wanted >= first && wanted - first < leaf {
            return Some(at - into + (wanted - first)).filter(|&iova| iova >= start && iova < end);
        }
        at = (at - into).saturating_add(leaf);
    }
    None
}
