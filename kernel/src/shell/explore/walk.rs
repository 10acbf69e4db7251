//! `walk`: what the CPU reads on its way through a page table, with the bits of each entry named (Intel SDM vol. 3A §4.5.4,
//! tables 4-15 to 4-20).

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use mm::addr::{PAGE_SIZE, PageSize, Pfn, VirtAddr};
use mm::entry::Entry;
use mm::look::{Step, Walk};

use super::words::{address, leaf_word, rights};
use super::{frame, spaces};
use crate::console::{self, report};
use crate::mem::machine::Space;
use crate::mem::{layout, paging};

/// The command.
pub fn run(args: &[&str]) -> Result<(), String> {
    let (space, va) = match args {
        [va] => (None, address(va)?),
        [id, va] => (Some(spaces::find(id)?), address(va)?),
        _ => return Err("expected: walk ADDRESS, or walk ID ADDRESS".into()),
    };
    if !is_canonical(va) {
        return Err(format!("{va} is not canonical: with four levels bits 63 to 48 of an address must equal bit 47"));
    }
    let walk = of(space.as_ref(), va);
    match &space {
        Some(space) => console::line(format_args!("{va} in space {} ({})", space.id(), space.name())),
        None => console::line(format_args!("{va} in the kernel's own table")),
    }
    let id = space.as_ref().map_or(0, |space| space.id());
    walk.iter().for_each(|step| show(step, id, va));
    match leaf_of(&walk) {
        Some((entry, size)) => {
            let pfn = entry.pfn().add((va.as_u64() & (size.bytes() - 1)) / PAGE_SIZE);
            let byte = pfn.addr().as_u64() + va.as_u64() % PAGE_SIZE;
            console::line(format_args!("reaches byte {byte:#x}, in frame {pfn}, through a leaf of {size}"));
            frame::tell(pfn);
        }
        None => console::line(format_args!("{}", ends_nowhere(space.as_ref(), va))),
    }
    Ok(())
}

/// Is it an address that a CPU with four levels translates?
const fn is_canonical(va: VirtAddr) -> bool {
    let high = va.as_u64() >> 47;
    high == 0 || high == u64::MAX >> 47
}

/// The steps at `va`, which is canonical: of a space, or of the kernel's own table.
pub fn of(space: Option<&Arc<Space>>, va: VirtAddr) -> Walk {
    match space {
        Some(space) if va.as_u64() < layout::KERNEL_HALF => space.walk(va),
        Some(space) => paging::path(space.tlb().root(), va),
        None => paging::path(paging::root(), va),
    }
}

/// The leaf in which a walk ends.
pub fn leaf_of(walk: &Walk) -> Option<(Entry, PageSize)> {
    let last = walk.last().filter(|last| last.entry.is_leaf(last.level))?;
    PageSize::from_level(last.level).map(|size| (last.entry, size))
}

fn show(step: &Step, space: u64, va: VirtAddr) {
    let Step { level, table, index, entry } = *step;
    let (kind, leads) = match PageSize::from_level(level) {
        Some(size) if entry.is_leaf(level) => (leaf_word(size), format!("a leaf of {size} at frame {}", entry.pfn())),
        _ if entry.is_table(level) => ("table", format!("the table in frame {}", entry.pfn())),
        _ if entry.is_present() => ("wrong", "nowhere: a leaf on this level is a reserved bit's fault".into()),
        _ => ("empty", "nowhere".into()),
    };
    console::line(format_args!(
        "  level {level} ({}): entry {index} of the table in frame {table} is {:#x}: {leads}; {}",
        name_of(level),
        entry.bits(),
        bits(entry, level).join(", ")
    ));
    report!(
        "walk space={space} addr={va} level={level} table={table} index={index} entry={:#x} kind={kind} pfn={}",
        entry.bits(),
        if entry.is_present() { entry.pfn() } else { Pfn::new(0) }
    );
}

/// What the manual calls an entry of this level.
const fn name_of(level: u8) -> &'static str {
    match level {
        1 => "PTE",
        2 => "PDE",
        3 => "PDPTE",
        _ => "PML4E",
    }
}

/// The bits of an entry but for the frame, as the manual names them.
fn bits(entry: Entry, level: u8) -> Vec<String> {
    let has = |bit: u32| entry.bits() & 1 << bit != 0;
    if !entry.is_present() {
        let rest = entry.bits();
        let ignored = (rest != 0).then(|| format!("{rest:#x} in bits that the CPU ignores"));
        return ["not present".into()].into_iter().chain(ignored).collect();
    }
    let leaf = entry.is_leaf(level);
    let pat = if level == 1 { 7 } else { 12 };
    let words = [
        (true, if has(1) { "writable" } else { "read-only" }),
        (true, if has(2) { "user" } else { "supervisor" }),
        (has(3), "write-through (PWT)"),
        (has(4), "cache disabled (PCD)"),
        (has(5), "accessed"),
        (leaf && has(6), "dirty"),
        (level > 1 && has(7), "page size (PS)"),
        (leaf && has(pat), "PAT"),
        (leaf && has(8), "global"),
        (has(63), "no execute (XD)"),
    ];
    let mut named: Vec<String> = ["present".into()]
        .into_iter()
        .chain(words.into_iter().filter(|word| word.0).map(|word| word.1.into()))
        .collect();
    let (software, key) = (entry.bits() >> 9 & 0b111, entry.bits() >> 59 & 0b1111);
    named.extend((software != 0).then(|| format!("{software:#b} in bits 11 to 9, which are the software's")));
    named.extend((leaf && key != 0).then(|| format!("protection key {key}")));
    named
}

/// Why a walk that ends nowhere does, and what an access would meet.
fn ends_nowhere(space: Option<&Arc<Space>>, va: VirtAddr) -> String {
    let Some(space) = space.filter(|_| va.as_u64() < layout::KERNEL_HALF) else {
        return "reaches nothing: an access would be the end of the kernel".into();
    };
    let vmas = space.vmas_from::<1>(va);
    match vmas.first().filter(|vma| vma.range.contains(va)) {
        Some(vma) => format!(
            "reaches nothing yet: {}..{} maps {}, {}, and the first access faults the page in",
            vma.range.start(),
            vma.range.end(),
            spaces::behind(vma),
            rights(vma.prot)
        ),
        None => "reaches nothing, and nothing is mapped there: an access is SIGSEGV".into(),
    }
}
