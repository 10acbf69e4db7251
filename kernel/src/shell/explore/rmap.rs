//! `rmap`: who maps a device or a page frame, as the reverse maps of the mappings over it say.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use mm::addr::{PAGE_SHIFT, Pfn};
use mm::pagemap::DevPagemap;
use mm::pins::Word;

use super::words::{Place, count, frame, number};
use crate::console::{self, report};
use crate::mem::machine::mm;
use crate::pmem::devices;
use crate::shell::explore::files::KernelMapping;
use crate::shell::explore::who;

/// Extents of one mapping that are shown.
const SHOWN: usize = 32;

/// The command. A number below that of the slots is a device's, as in every other command; frames of persistent memory are
/// far above.
pub fn run(args: &[&str]) -> Result<(), String> {
    let [word] = args else { return Err("expected: rmap DEVICE, or rmap PFN".into()) };
    let numbered = || number(word).ok().and_then(|nr| usize::try_from(nr).ok());
    let slot = devices::slot_named(word).or_else(numbered).filter(|&at| at < devices::slots().len());
    let Some(at) = slot else { return of_frame(frame(word)?) };
    let slot = &devices::slots()[at];
    let gone = || format!("{} is not attached: nobody maps it", slot.name);
    // Its first frames may be the driver's own.
    let map = devices::block(at).ok().and_then(|_| map_in(slot.frames)).ok_or_else(gone)?;
    let mut nr = 0;
    mm().for_each_mapping(&map, &mut |mapping| nr += show(mapping, 0, u64::MAX));
    total(nr, &format!("of {}", slot.name));
    Ok(())
}

/// The page map that has frames of this range.
fn map_in(frames: mm::addr::PfnRange) -> Option<Arc<DevPagemap>> {
    let mut found = None;
    mm().meta.for_each_map(&mut |map| {
        let ours = map.ranges().iter().find(|range| range.overlaps(frames));
        found = found.or(ours.map(|range| range.start()));
    });
    mm().meta.find_map(found?)
}

fn of_frame(pfn: Pfn) -> Result<(), String> {
    let Some(map) = mm().meta.find_map(pfn) else {
        return Err(match Place::of(pfn) {
            Some(place) => format!("frame {pfn} of {} has no page map: nobody maps it", place.name()),
            None => format!("frame {pfn} is not persistent memory: it has no reverse map"),
        });
    };
    let mut nr = 0;
    for (mapping, page) in who::mappings_of(&map, pfn).mappings {
        nr += show(&mapping, page, 1);
    }
    total(nr, &format!("of frame {pfn}"));
    Ok(())
}

fn total(nr: usize, what: &str) {
    console::line(format_args!("{} {what}", count(nr as u64, "mapping")));
}

fn show(mapping: &KernelMapping, first: u64, nr_pages: u64) -> usize {
    let (users, nr) = mapping.some_users::<SHOWN>(first, nr_pages);
    for ((space, range), from) in &users {
        let (id, name, start, end) = (space.id(), space.name(), range.start(), range.end());
        let last = from + (range.len_bytes() >> PAGE_SHIFT) - 1;
        console::line(format_args!(
            "mapping {}: pages {from} to {last} at {start}..{end} of {name} (space {id})",
            mapping.id()
        ));
        report!(
            "rmap mapping={} first={from} last={last} space={id} name={} start={start} end={end}",
            mapping.id(),
            Word(name)
        );
    }
    if nr > users.len() {
        console::line(format_args!("mapping {}: ... and {} more", mapping.id(), nr - users.len()));
    }
    nr
}
