//! A page table to be read by hand: made from a seed by the kernel's own `mm` on the emulated machine, whose walk also says
//! what is right.

use anyhow::{Context, Result, ensure};
use mm::addr::{ENTRIES, PAGE_SIZE, PageSize, Pfn, VirtAddr};
use mm::entry::{Entry, Prot};
use mm::machine::Machine;
use mm::space::AddressSpace;
use mm::sync::Ordering;
use std::collections::BTreeMap;
use std::fmt::Write;
use testkit::emu::{self, Cached, Frames, Task};

/// Where the device's frames begin, and how many there are: 3 GiB.
const FIRST_FRAME: u64 = 0x10_0000;
const NR_FRAMES: u64 = 3 << 18;
const GIB: u64 = 1 << 30;
const MIB2: u64 = 1 << 21;
/// Pages of an area of small ones.
const SMALL_PAGES: u64 = 8;

/// What is right about an address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Truth {
    /// It leads to a page.
    Page {
        /// The physical address.
        physical: u64,
        /// The leaf's size.
        size: PageSize,
        /// A store is allowed.
        store: bool,
    },
    /// It leads nowhere: the walk ends at an entry of this level that is not present.
    Nothing {
        /// From 4 down to 1.
        level: u8,
    },
}

/// A page table as text, and what is asked about it.
#[derive(Debug)]
pub struct Dump {
    /// Every table, with the entries that are not zero.
    pub text: String,
    /// Addresses by what they are called, and what is right about each.
    pub asked: BTreeMap<&'static str, (u64, Truth)>,
}

/// Numbers that a seed makes (SplitMix64, Steele and others, OOPSLA 2014).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    /// An address in a part of 512 GiB that no other area has: each has the numbers from its `nth` on, 25 apart.
    fn address(&mut self, nth: u64) -> u64 {
        ((1 + nth * 25 + self.below(25)) << 39) + (self.below(510) << 30)
    }
}

/// Makes the page table of a seed.
///
/// # Errors
/// `mm` does not do what it is asked to: a fault of ours.
pub fn make(seed: u64) -> Result<Dump> {
    let mut numbers = Numbers(seed);
    let mm = emu::context(1);
    let device = Frames::new(&mm, Pfn::new(FIRST_FRAME), NR_FRAMES);
    let space = AddressSpace::new(&mm, "student").map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let map = |va: u64, bytes: u64, prot: Prot, page: u64| {
        space.map(VirtAddr::new(va), bytes, prot, &device.ops(), page).map_err(|error| anyhow::anyhow!("{error:?}"))
    };
    let large = numbers.address(0);
    map(large, GIB, Prot::USER_WRITE, numbers.below(3) << 18)?;
    let middle = numbers.address(1) + numbers.below(500) * MIB2;
    map(middle, MIB2, Prot::USER_WRITE, (1 + numbers.below(1000)) << 9)?;
    // At an offset that no larger leaf has in common with the address.
    let small = numbers.address(2) + numbers.below(500) * MIB2 + numbers.below(500) * PAGE_SIZE;
    map(small, SMALL_PAGES * PAGE_SIZE, Prot::USER_WRITE, ((1 + numbers.below(700)) * 1001) | 1)?;
    let locked = numbers.address(3) + numbers.below(500) * MIB2 + numbers.below(500) * PAGE_SIZE;
    map(locked, SMALL_PAGES * PAGE_SIZE, Prot::USER_READ, ((1 + numbers.below(700)) * 1003) | 1)?;

    let task = Task::start(&space, 0);
    let touched = numbers.below(SMALL_PAGES / 2) * PAGE_SIZE;
    for va in [large, middle, small + touched, locked + touched] {
        task.load(VirtAddr::new(va)).map_err(|error| anyhow::anyhow!("{error:?}"))?;
    }
    let mut inside = |bytes: u64| numbers.below(bytes);
    let ask = BTreeMap::from([
        ("gap", small ^ (1 << 46) ^ inside(PAGE_SIZE)),
        ("hole", small + (SMALL_PAGES - 1) * PAGE_SIZE + inside(PAGE_SIZE)),
        ("large", large + inside(GIB)),
        ("locked", locked + touched + inside(PAGE_SIZE)),
        ("middle", middle + inside(MIB2)),
        ("small", small + touched + inside(PAGE_SIZE)),
    ]);
    let asked = ask.into_iter().map(|(name, va)| Ok((name, (va, truth(&task, va)?))));
    let asked = asked.collect::<Result<BTreeMap<_, _>>>()?;
    Ok(Dump { text: text(&task), asked })
}

/// What the emulated CPU finds at an address.
fn truth(task: &Task, va: u64) -> Result<Truth> {
    let machine = &task.space().mm().machine;
    let at = VirtAddr::new(va);
    if task.run(|_| machine.read(at, true)).is_err() {
        return Ok(Truth::Nothing { level: ends_at(task, at) });
    }
    let covers = |cached: &Cached| cached.va.as_u64() <= va && va - cached.va.as_u64() < cached.size.bytes();
    let found = machine.cached(0).into_iter().rfind(covers);
    let found = found.context("what a CPU has read is in its TLB")?;
    let physical = found.pfn.addr().as_u64() + (va - found.va.as_u64());
    ensure!(found.user, "a student's page is the user's");
    Ok(Truth::Page { physical, size: found.size, store: found.write })
}

/// The level of the first entry on the way that is not present.
fn ends_at(task: &Task, va: VirtAddr) -> u8 {
    let machine = &task.space().mm().machine;
    let (mut table, mut level) = (root(task), machine.levels());
    loop {
        let entry = Entry::from_bits(machine.entry(table, va.index(level)).load(Ordering::Relaxed));
        if !entry.is_present() || level == 1 {
            return level;
        }
        (table, level) = (entry.pfn(), level - 1);
    }
}

fn root(task: &Task) -> Pfn {
    task.space().tlb().root()
}

/// The tables, each before those that it leads to.
fn text(task: &Task) -> String {
    let machine = &task.space().mm().machine;
    let mut text = String::new();
    let mut tables = vec![(root(task), machine.levels())];
    while let Some((table, level)) = tables.pop() {
        let note = if level == machine.levels() { ", to which CR3 points" } else { "" };
        let _ = writeln!(text, "page at physical address {:#x}{note}:", table.addr().as_u64());
        // The upper half of the root is the kernel's.
        let end = if level == machine.levels() { ENTRIES / 2 } else { ENTRIES };
        for index in 0..end {
            let entry = Entry::from_bits(machine.entry(table, index).load(Ordering::Relaxed));
            if entry.bits() != 0 {
                let _ = writeln!(text, "  entry {index:>3}  {:#018x}", entry.bits());
            }
            if entry.is_table(level) {
                tables.push((entry.pfn(), level - 1));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// covers: T5
    #[test]
    fn a_seed_makes_one_table_with_every_kind_of_leaf_and_two_holes() {
        for seed in 0..50 {
            let dump = make(seed).expect("a table");
            assert_eq!(dump.text, make(seed).expect("again").text);
            let size = |name: &str| match dump.asked[name].1 {
                Truth::Page { size, store, .. } => Some((size, store)),
                Truth::Nothing { .. } => None,
            };
            assert_eq!(size("small"), Some((PageSize::Size4K, true)), "seed {seed}");
            assert_eq!(size("locked"), Some((PageSize::Size4K, false)));
            assert_eq!(size("middle"), Some((PageSize::Size2M, true)), "seed {seed}");
            assert_eq!(size("large"), Some((PageSize::Size1G, true)), "seed {seed}");
            assert_eq!(dump.asked["hole"].1, Truth::Nothing { level: 1 });
            assert!(matches!(dump.asked["gap"].1, Truth::Nothing { level: 2.. }));
        }
        assert_ne!(make(1).expect("one").text, make(2).expect("another").text);
    }
}
