//! The kernel's own page tables: one kernel half, shared by every address space.
//!
//! Built once at boot, when the loader's tables are abandoned: the image by segment (text read-execute, constants
//! read-only, data read-write and no-execute: nothing is both writable and executable), RAM in the direct map with
//! the largest leaves, stacks with guard pages. All kernel leaves are global. Every address space copies the root's upper
//! 256 entries once: the tables below them are shared. A root entry changes after boot only where a large device comes or goes,
//! and then in all roots.

mod look;
mod roots;
mod run;

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bootloader_api::info::MemoryRegionKind;
use mm::addr::{ENTRIES, PAGE_SIZE, PageSize, Pfn, PfnRange, PhysAddr, VirtAddr};
use mm::entry::{Entry, Prot};
use mm::machine::GROUP;
use mm::sync::Mutex;
use spin::Once;

pub use self::look::path;
use self::roots::KERNEL_ROOT;
pub use self::roots::{drop_root, for_each_root, init_root, is_link};
use self::run::Run;
use crate::mem::{image, layout, machine, memory};

/// Kernel data: writable, never executable.
pub const DATA: Prot = Prot { write: true, exec: false, user: false };
/// Kernel constants: neither writable nor executable.
const CONSTANT: Prot = Prot { write: false, exec: false, user: false };
/// Write-through and cache-disable bits of a leaf: device registers.
const UNCACHED: u64 = 1 << 3 | 1 << 4;
static ROOT: Once<Pfn> = Once::new();
static GIB_LEAVES: AtomicBool = AtomicBool::new(false);
/// One writer of the kernel half at a time. Interrupts stay on: a large device takes a while, and nobody in an interrupt
/// handler maps anything.
static WRITER: Mutex<()> = Mutex::new(());
/// Entries in use of the table below each root entry of the kernel half. Where there are none, a large device's leaves are
/// stored without a look at what was there. Changes under [`WRITER`].
static IN_USE: [AtomicU64; KERNEL_ROOT.end - KERNEL_ROOT.start] =
    [const { AtomicU64::new(0) }; KERNEL_ROOT.end - KERNEL_ROOT.start];

/// Why a range cannot be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// No frame for a table.
    OutOfMemory,
    /// Something is mapped there.
    Occupied,
    /// The range does not fit the direct map.
    OutOfRange,
}

impl core::fmt::Display for MapError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::OutOfMemory => "no memory for page tables",
            Self::Occupied => "the range overlaps something that is mapped",
            Self::OutOfRange => "the range is beyond the direct map",
        })
    }
}

/// The live entry `index` of the table page `table`.
#[inline]
pub fn entry(table: Pfn, index: usize) -> &'static AtomicU64 {
    // Put together from bits that cannot meet, and the index cut to a table's: nothing is left to check at run time,
    // which every walk would pay for at every level.
    let at = layout::DIRECT_MAP | table.addr().as_u64();
    // SAFETY: a table page is RAM in the direct map; the CPU accesses it too, so it is only ever seen as atomics.
    let entries = unsafe { &*(at as *const [AtomicU64; ENTRIES]) };
    &entries[index % ENTRIES]
}

/// As [`entry`], by the table's address. A sum in place of the bits put together: whoever comes from the entry above has
/// a sum already, and it stays one addition. It cannot wrap, for table pages are RAM in the direct map.
#[inline(always)]
#[expect(clippy::transmute_ptr_to_ref, reason = "`&*` asks at run time whether the pointer is null, at every level")]
pub fn entry_at(table: PhysAddr, index: usize) -> &'static AtomicU64 {
    let at = layout::DIRECT_MAP.wrapping_add(table.as_u64()) as *const [AtomicU64; ENTRIES];
    // SAFETY: as in `entry`. A table's address is a page's, below the end of the direct map, which is in the upper half:
    // the sum is aligned and not null.
    let entries = unsafe { core::mem::transmute::<*const [AtomicU64; ENTRIES], &'static [AtomicU64; ENTRIES]>(at) };
    &entries[index % ENTRIES]
}

/// The live entries of group `group` of the table page `table`.
#[inline(always)]
pub fn entries(table: Pfn, group: usize) -> [&'static AtomicU64; GROUP] {
    let at = layout::DIRECT_MAP | table.addr().as_u64();
    // SAFETY: as in `entry`.
    let groups = unsafe { &*(at as *const [[AtomicU64; GROUP]; ENTRIES / GROUP]) };
    groups[group % (ENTRIES / GROUP)].each_ref()
}

/// Which bits all entries of `table` have in common, and which any of them has. Nobody else can reach the table any more.
pub fn all_and_any(table: Pfn) -> (Entry, Entry) {
    let at = layout::DIRECT_MAP | table.addr().as_u64();
    // SAFETY: a table page is RAM in the direct map; it is not in use, so its entries are plain numbers.
    let groups = unsafe { &*(at as *const [[u64; 32]; ENTRIES / 32]) };
    // By groups, and one after the other, so that an entry costs one operation with a word of memory in each.
    let all = groups.iter().fold(u64::MAX, |all, group| group.iter().fold(all, |all, entry| all & entry));
    let any = groups.iter().fold(0, |any, group| group.iter().fold(any, |any, entry| any | entry));
    (Entry::from_bits(all), Entry::from_bits(any))
}

fn load(table: Pfn, index: usize) -> Entry {
    Entry::from_bits(entry(table, index).load(Ordering::Acquire))
}

/// The kernel's root table.
///
/// # Panics
/// Before [`build`].
pub fn root() -> Pfn {
    *ROOT.get().expect("the kernel's page tables are not built yet")
}

/// May 1 GiB leaves be used?
pub fn has_gib_leaves() -> bool {
    GIB_LEAVES.load(Ordering::Relaxed)
}

/// Builds the kernel half: direct map of RAM, the image, and the empty tables below the root for stacks, registers and
/// whatever physical addresses `phys_bits` allows. Does not load it. Answers the number of direct-map leaves.
///
/// # Errors
/// [`MapError`]: not enough memory, or a memory map that overlaps itself.
pub fn build(phys_bits: u8, gib_leaves: bool) -> Result<u64, MapError> {
    GIB_LEAVES.store(gib_leaves, Ordering::Relaxed);
    let new = memory::alloc_zeroed().ok_or(MapError::OutOfMemory)?;
    ROOT.call_once(|| new);
    // Every root copies these entries.
    let direct_bytes = (1u64 << phys_bits.min(63)).min(layout::DIRECT_MAP_BYTES);
    let root_span = 1u64 << 39;
    let direct = (0..direct_bytes.div_ceil(root_span)).map(|n| layout::DIRECT_MAP + n * root_span);
    for va in direct.chain([layout::STACKS, layout::REGISTERS, layout::KERNEL_IMAGE]) {
        let table = memory::alloc_zeroed().ok_or(MapError::OutOfMemory)?;
        roots::set_table(VirtAddr::new(va), table);
    }
    let mut leaves = 0;
    for_each_run(memory::is_ram, |run| {
        leaves += map(layout::direct(run.start().addr()), run, DATA, 0, &mut 0)?;
        Ok(())
    })?;
    // Firmware tables may lie in reserved regions; nothing there is ever written.
    for_each_run(memory::is_reserved, |run| {
        leaves += map(layout::direct(run.start().addr()), run, CONSTANT, 0, &mut 0)?;
        Ok(())
    })?;
    map_image()?;
    Ok(leaves)
}

/// Calls `each` with the maximal runs of adjacent regions of a kind, rounded outwards to pages.
fn for_each_run(
    wanted: impl Fn(MemoryRegionKind) -> bool,
    mut each: impl FnMut(PfnRange) -> Result<(), MapError>,
) -> Result<(), MapError> {
    let mut bounds: arrayvec::ArrayVec<(u64, u64), 256> = memory::regions()
        .iter()
        .filter(|region| wanted(region.kind))
        .map(|region| (region.start / PAGE_SIZE, region.end.div_ceil(PAGE_SIZE)))
        .collect();
    bounds.sort_unstable();
    let mut run: Option<(u64, u64)> = None;
    for (start, end) in bounds.into_iter().map(Some).chain([None]).map(|bound| bound.unwrap_or((u64::MAX, u64::MAX))) {
        match &mut run {
            Some((_, run_end)) if start <= *run_end => *run_end = end.max(*run_end),
            _ => {
                if let Some((from, to)) = run.replace((start, end))
                    && let Some(pages) = PfnRange::new(Pfn::new(from), to - from)
                {
                    each(pages)?;
                }
            }
        }
    }
    Ok(())
}

/// Maps the image by segment; its frames are where the loader's tables say.
fn map_image() -> Result<(), MapError> {
    let loader_root = PhysAddr::new(arch::cpu::root_table()).pfn();
    let mut result = Ok(());
    image::for_each_segment(|range, prot| {
        for page in 0..range.nr_pages() {
            let va = VirtAddr::new(range.start().as_u64() + page * PAGE_SIZE);
            if let Some((leaf, size)) = lookup(loader_root, va)
                && result.is_ok()
            {
                let inside = (va.as_u64() % size.bytes()) / PAGE_SIZE;
                result = PfnRange::new(leaf.pfn().add(inside), 1)
                    .ok_or(MapError::OutOfRange)
                    .and_then(|frame| map(va, frame, prot, 0, &mut 0))
                    .map(|_| ());
            }
        }
    });
    result
}

/// The leaf that maps `va` under `root`, and its size. Lock-free.
pub fn lookup(root: Pfn, va: VirtAddr) -> Option<(Entry, PageSize)> {
    let mut table = root;
    for level in (1..=4).rev() {
        let found = load(table, va.index(level));
        if found.is_leaf(level) {
            return PageSize::from_level(level).map(|size| (found, size));
        }
        if !found.is_table(level) {
            return None;
        }
        table = found.pfn();
    }
    None
}

/// Is the kernel address `va` mapped at this moment?
pub fn is_mapped(va: u64) -> bool {
    va >= layout::KERNEL_HALF && ROOT.get().is_none_or(|&root| lookup(root, VirtAddr::new(va)).is_some())
}

/// All entries of the table page `table`.
fn all(table: Pfn) -> &'static [AtomicU64; ENTRIES] {
    // SAFETY: as in `entry`.
    unsafe { &*((layout::DIRECT_MAP | table.addr().as_u64()) as *const [AtomicU64; ENTRIES]) }
}

/// Counts entries of the table below a root entry that were filled, or, with a negative number, emptied.
fn count_in_use(va: VirtAddr, level: u8, delta: i64) {
    if level == 3 {
        let nr = &IN_USE[va.index(4) - KERNEL_ROOT.start];
        // The writers' lock is held, or this is the boot.
        nr.store(nr.load(Ordering::Relaxed).wrapping_add_signed(delta), Ordering::Relaxed);
    }
}

/// Maps `frames` at `va` with the largest leaves that fit; answers how many. `done_pages` is how far it came, for
/// who wants to undo what was done before an error.
fn map(va: VirtAddr, frames: PfnRange, prot: Prot, extra_bits: u64, done_pages: &mut u64) -> Result<u64, MapError> {
    let mut leaves = 0;
    for_each_leaves(va, frames, |run| {
        if !run.put_back(prot, extra_bits) {
            run.fill(table_for(run.va, run.size)?, prot, extra_bits)?;
        }
        *done_pages += run.nr_pages();
        leaves += run.nr_leaves as u64;
        Ok(())
    })?;
    Ok(leaves)
}

/// Calls `each` with the runs of leaves that map `frames` at `va`.
fn for_each_leaves(
    va: VirtAddr,
    frames: PfnRange,
    mut each: impl FnMut(&Run) -> Result<(), MapError>,
) -> Result<(), MapError> {
    let (mut va, mut pfn, mut left) = (va, frames.start(), frames.nr_pages());
    while left > 0 {
        let run = Run::first_of(va, pfn, left);
        each(&run)?;
        va = VirtAddr::new(va.as_u64().wrapping_add(run.nr_pages() * PAGE_SIZE));
        pfn = pfn.add(run.nr_pages());
        left -= run.nr_pages();
    }
    Ok(())
}

/// The table whose entry maps a leaf of `size` at `va`; missing tables are made.
fn table_for(va: VirtAddr, size: PageSize) -> Result<Pfn, MapError> {
    let mut table = root();
    if let Some((parked, false)) = roots::table_of(va) {
        roots::put_in_empty(va, parked);
    }
    for level in ((size.level() + 1)..=4).rev() {
        let found = load(table, va.index(level));
        if found.is_leaf(level) {
            return Err(MapError::Occupied);
        }
        if found.is_table(level) {
            table = found.pfn();
            continue;
        }
        let new = memory::alloc_zeroed().ok_or(MapError::OutOfMemory)?;
        // Release; pairs with the Acquire in `load`: the table is zeroed before it is reachable.
        entry(table, va.index(level)).store(Entry::table(new, false).bits(), Ordering::Release);
        count_in_use(va, level, 1);
        table = new;
    }
    Ok(table)
}

/// Tables that were unlinked, as a list through themselves: taking a mapping away needs no memory. The link is the
/// number of the next frame in the first entry, where a CPU that still walks there finds it not present.
struct Detached(Option<Pfn>);

impl Detached {
    const SHIFT: u32 = 12;

    /// Adds an empty table that no other table points to any more.
    fn push(&mut self, table: Pfn) {
        let next = self.0.map_or(0, |next| next.as_u64() << Self::SHIFT);
        entry(table, 0).store(next, Ordering::Relaxed);
        self.0 = Some(table);
    }

    /// Takes one out. No CPU walks there any more.
    fn pop(&mut self) -> Option<Pfn> {
        let table = self.0?;
        let next = entry(table, 0).load(Ordering::Relaxed) >> Self::SHIFT;
        self.0 = (next != 0).then(|| Pfn::new(next));
        Some(table)
    }
}

/// Clears every leaf that [`map`] has made for `frames` at `va`; tables that become empty are unlinked and put into `tables`.
/// Answers the number of leaves. A run of leaves costs a store for each and a walk for all.
///
/// # Panics
/// They are not there.
fn unmap(va: VirtAddr, frames: PfnRange, tables: &mut Detached) -> u64 {
    let mut leaves = 0;
    let done = for_each_leaves(va, frames, |run| {
        leaves += run.nr_leaves as u64;
        let mut path = [root(); 5];
        path[3] = load(path[4], run.va.index(4)).pfn();
        if run.size == PageSize::Size1G {
            // The tables right below the root stay, in the roots or parked.
            run.take_out(path[3]);
            return Ok(());
        }
        for level in (run.size.level()..3).rev() {
            path[level as usize] = load(path[level as usize + 1], run.va.index(level + 1)).pfn();
        }
        run.clear(path[run.size.level() as usize]);
        for level in run.size.level()..3 {
            let (table, above) = (path[level as usize], path[level as usize + 1]);
            if all(table).iter().any(|entry| entry.load(Ordering::Relaxed) != 0) {
                break;
            }
            entry(above, run.va.index(level + 1)).store(0, Ordering::Release);
            count_in_use(run.va, level + 1, -1);
            tables.push(table);
        }
        Ok(())
    });
    debug_assert_eq!(done, Ok(()));
    leaves
}

/// Maps device memory `frames` in the direct map, writable and never executable. Answers the number of leaves.
///
/// # Errors
/// [`MapError`]; then nothing is mapped.
pub fn map_device(frames: PfnRange) -> Result<u64, MapError> {
    if frames.end().addr().as_u64() > layout::DIRECT_MAP_BYTES {
        return Err(MapError::OutOfRange);
    }
    let mut done_pages = 0;
    let result = {
        let _one_writer = WRITER.lock();
        map(layout::direct(frames.start().addr()), frames, DATA, 0, &mut done_pages)
    };
    if result.is_err()
        && let Some(ours) = PfnRange::new(frames.start(), done_pages)
    {
        unmap_device(ours);
    }
    result
}

/// Takes device memory out of the direct map and frees the tables. Answers the number of leaves. When it returns, no
/// CPU has a translation of the range. Call from a task, with interrupts on.
pub fn unmap_device(frames: PfnRange) -> u64 {
    let start = layout::direct(frames.start().addr());
    let mut tables = Detached(None);
    let leaves = {
        let _one_writer = WRITER.lock();
        unmap(start, frames, &mut tables)
    };
    machine::flush_kernel();
    while let Some(table) = tables.pop() {
        memory::free(table, 0);
    }
    leaves
}

/// Maps one fresh frame of kernel data at `va`.
///
/// # Errors
/// [`MapError`].
pub fn map_data_page(va: VirtAddr, frame: Pfn) -> Result<(), MapError> {
    let _one_writer = WRITER.lock();
    map(va, PfnRange::new(frame, 1).ok_or(MapError::OutOfRange)?, DATA, 0, &mut 0).map(|_| ())
}

/// Maps the page of device registers at `addr`, uncached, for ever; answers where.
///
/// # Errors
/// [`MapError`].
pub fn map_registers(addr: PhysAddr) -> Result<VirtAddr, MapError> {
    map_register_pages(addr, 1)
}

/// As [`map_registers`], for `nr_pages` pages in a row.
///
/// # Errors
/// [`MapError`].
pub fn map_register_pages(addr: PhysAddr, nr_pages: u64) -> Result<VirtAddr, MapError> {
    static NEXT: AtomicU64 = AtomicU64::new(layout::REGISTERS);
    let frames = PfnRange::new(addr.pfn(), nr_pages).ok_or(MapError::OutOfRange)?;
    let va = VirtAddr::new(NEXT.fetch_add(nr_pages * PAGE_SIZE, Ordering::Relaxed));
    let _one_writer = WRITER.lock();
    // Small leaves, whatever the alignment: what lies beside the registers is none of our business.
    for page in 0..nr_pages {
        let frame = PfnRange::new(frames.start().add(page), 1).ok_or(MapError::OutOfRange)?;
        map(VirtAddr::new(va.as_u64() + page * PAGE_SIZE), frame, DATA, UNCACHED, &mut 0)?;
    }
    Ok(va)
}

/// Calls `each` with every leaf of the kernel half: its address, the entry, its size. Nobody changes them meanwhile, so that it
/// must not either, nor wait.
pub fn for_each_leaf(mut each: impl FnMut(VirtAddr, Entry, PageSize)) {
    fn visit(
        table: Pfn,
        level: u8,
        base: u64,
        range: core::ops::Range<usize>,
        each: &mut dyn FnMut(VirtAddr, Entry, PageSize),
    ) {
        for index in range {
            let found = load(table, index);
            let va = base | (index as u64) << (12 + 9 * (u32::from(level) - 1));
            if let Some(size) = PageSize::from_level(level)
                && found.is_leaf(level)
            {
                each(VirtAddr::new(va), found, size);
            } else if found.is_table(level) {
                visit(found.pfn(), level - 1, va, 0..ENTRIES, each);
            }
        }
    }
    // Tables are unlinked under it, and freed later: what is reached here stays.
    let _no_writer = WRITER.lock();
    visit(root(), 4, 0xffff_0000_0000_0000, KERNEL_ROOT, &mut each);
}
