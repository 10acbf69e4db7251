//! `space`: the address spaces that tasks have, and one of them as a map.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use mm::addr::{PAGE_SHIFT, PageSize, VirtAddr};
use mm::look::VmaInfo;
use mm::machine::CpuMask;
use mm::pagemap::MemoryKind;
use mm::pins::Word;

use super::files;
use super::tasks;
use super::words::{Place, count, leaf_word, number, rights};
use crate::console::{self, report};
use crate::mem::machine::{KernelMachine, Space};
use crate::task::tcb;

/// Mappings that are asked for at a time.
const AT_ONCE: usize = 16;
/// Mappings of a space that are shown.
const SHOWN: usize = 64;
/// Entries that are looked at for the leaves of one mapping.
const LOOKS: u64 = 1 << 16;
/// Spaces that are listed.
const SPACES: usize = 64;

/// A space, and who has it.
struct Listed {
    space: Arc<Space>,
    /// Tasks of the kernel that have it at this moment.
    tasks: u64,
}

/// The spaces that tasks of the kernel have, and those of the tasks that are driven from here; by number.
fn all() -> (Vec<Listed>, u64) {
    let (mut listed, mut more) = (Vec::<Listed>::new(), 0);
    let mut add = |space: Arc<Space>, tasks: u64| match listed.iter().position(|known| known.space.id() == space.id()) {
        Some(at) => listed[at].tasks += tasks,
        None if listed.len() < SPACES => listed.push(Listed { space, tasks }),
        None => more += 1,
    };
    tasks::all().into_iter().for_each(|driven| add(Arc::clone(&driven.space), 0));
    tcb::for_each_with_space(&mut |_, task| {
        if let Some(space) = task.space() {
            add(space, 1);
        }
    });
    listed.sort_unstable_by_key(|known| known.space.id());
    (listed, more)
}

/// The space with this number or this name; one that is driven from here goes first.
///
/// # Errors
/// There is none.
pub fn find(word: &str) -> Result<Arc<Space>, String> {
    if let Ok(driven) = tasks::find(word) {
        return Ok(Arc::clone(&driven.space));
    }
    let id = number(word).ok();
    let mut found = None;
    tcb::for_each_with_space(&mut |space, task| {
        if found.is_none() && (Some(space) == id || task.space().is_some_and(|space| space.name() == word)) {
            found = task.space();
        }
    });
    found.ok_or_else(|| format!("there is no address space \"{word}\" (space lists them)"))
}

/// The command.
pub fn run(args: &[&str]) -> Result<(), String> {
    match args {
        [] => list(),
        [word] => show(&find(word)?),
        _ => return Err("expected: space, or space ID".into()),
    }
    Ok(())
}

/// CPUs as `0,2`, or `none`.
pub fn cpus(mask: CpuMask) -> String {
    let numbers: Vec<_> = mask.iter().map(|cpu| format!("{cpu}")).collect();
    if numbers.is_empty() { "none".into() } else { numbers.join(",") }
}

fn list() {
    let (listed, more) = all();
    for Listed { space, tasks } in &listed {
        let (id, name, vmas, loaded) = (space.id(), space.name(), space.nr_vmas(), cpus(space.tlb().cpus()));
        console::line(format_args!(
            "space {id}: {name}, {}, {} in it, loaded on CPUs: {loaded}",
            count(vmas as u64, "mapping"),
            count(*tasks, "task"),
        ));
        report!("space id={id} name={} vmas={vmas} tasks={tasks} cpus={loaded}", Word(name));
    }
    if listed.is_empty() {
        console::line(format_args!("no task has an address space (task new makes one)"));
    }
    if more > 0 {
        console::line(format_args!("... and {more} more"));
    }
}

fn show(space: &Arc<Space>) {
    let (id, name, root) = (space.id(), space.name(), space.tlb().root());
    let loaded = cpus(space.tlb().cpus());
    console::line(format_args!("space {id}: {name}, root table in frame {root}, loaded on CPUs: {loaded}"));
    let (mut from, mut shown) = (VirtAddr::new(0), 0);
    while shown < SHOWN {
        let vmas = space.vmas_from::<AT_ONCE>(from);
        let Some(last) = vmas.last() else { break };
        from = last.range.end();
        shown += vmas.len();
        vmas.iter().for_each(|vma| show_one(space, vma));
    }
    match space.nr_vmas() {
        0 => console::line(format_args!("  nothing is mapped")),
        nr if nr > shown => console::line(format_args!("  ... and {} more", nr - shown)),
        _ => {}
    }
}

/// What a mapping has behind it.
pub fn behind(vma: &VmaInfo<KernelMachine>) -> String {
    let map = vma.mapping.pagemap();
    if map.kind() == MemoryKind::FsDax
        && let Some(file) = files::mapped_by(&vma.mapping)
    {
        return file;
    }
    let place = map.ranges().first().and_then(|range| Place::of(range.start()));
    let left = if place.is_none_or(|place| place.has_left) || map.id().is_none() { ", which has left" } else { "" };
    format!("{}{left}", place.map_or("a device", |place| place.name()))
}

fn show_one(space: &Arc<Space>, vma: &VmaInfo<KernelMachine>) {
    let (start, end) = (vma.range.start(), vma.range.end());
    let leaves = space.count_leaves(vma.range, LOOKS);
    let [small, medium, large] = leaves.by_size;
    let least = if leaves.cut_short { "at least " } else { "" };
    let first = vma.offset_pages;
    let last = first + (vma.range.len_bytes() >> PAGE_SHIFT) - 1;
    let alignment = match vma.alignment {
        PageSize::Size4K => String::new(),
        size => format!(", cut at multiples of {size} only"),
    };
    let kind = vma.mapping.pagemap().kind();
    console::line(format_args!(
        "  {start}..{end} {} pages {first} to {last} of {} ({kind}, mapping {}){alignment}: {least}{small} leaves of 4KiB, {medium} of 2MiB, {large} of 1GiB",
        rights(vma.prot),
        behind(vma),
        vma.mapping.id(),
    ));
    report!(
        "space id={} start={start} end={end} rights={} first={first} mapping={} align={} 4k={small} 2m={medium} 1g={large} complete={}",
        space.id(),
        rights(vma.prot),
        vma.mapping.id(),
        leaf_word(vma.alignment),
        u8::from(!leaves.cut_short)
    );
}
