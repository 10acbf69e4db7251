//! Stress: gup and plain accesses on every CPU, against mappings that come, go, change their rights, split and join,
//! and against removal of the device.
//!
//! # What betrays a wrong translation
//! Address spaces that all CPUs share are divided into *slots*. A slot maps one of several alternatives, each a piece
//! of the device that belongs to this slot alone; its owner changes it from time to time. A word says which one it is,
//! and whether it is being changed. Whoever uses the slot looks at that word before and after: where it was stable,
//! the frame must be that of the alternative it names, and an error is a fault; where it was not, the frame must still
//! be one of the slot's own. And each page carries a stamp that follows from its offset in the device, which is read
//! through the mapping or, while the page is pinned, through the direct map.
//!
//! Everything is counted, nothing is timed. `stress=full` on the command line makes it a million.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dax::removal::Method;
use mm::addr::{PageSize, Pfn, PfnRange, VirtAddr};
use mm::entry::Prot;
use mm::failure::{FailureKind, memory_failure};
use mm::gup::{GupError, GupFlags, RangeArray, get_user_pages_fast, pin_user_pages_fast, put_page, unpin};
use mm::machine::CpuId;
use mm::space::{Access, MapError, SigBusCause, VmOps};
use spin::Mutex;

use crate::bringup::options::{self, Stress};
use crate::cpu::percpu;
use crate::ktest::fixtures::{
    BASE, Books, Device, Random, new_space, no_problems, page, read_frame, spawn_in, stamp, wait_until, write_frame,
};
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::mem::machine::{KernelMachine, Space, mm};
use crate::pmem::devices;
use crate::task::tcb::{Signal, Task};
use crate::task::{sched, user};

/// The tests of this file.
pub const TESTS: &[Test] = &[Test {
    name: "stress.gup_against_zap_and_removal",
    covers: "G1 G3 G8 R7 R10 R12",
    run: |ctx| Device::with(ctx, 2 << 20, stress),
}];

/// Address spaces, each loaded on every CPU.
const NR_SPACES: usize = 2;
/// Pieces of the device that take turns in one slot.
const NR_ALTERNATIVES: u64 = 3;
/// Pages of a slot of small leaves.
const SMALL_PAGES: u64 = 16;
const LARGE_PAGES: u64 = PageSize::Size2M.nr_pages();
/// How many times in a row a task does its work before the others of its CPU have their turn.
const TURNS_PER_YIELD: u64 = 8;

/// How much is done.
#[derive(Clone, Copy)]
struct Plan {
    /// Times that the device goes and comes back.
    cycles: u64,
    /// gup calls before it goes, at least.
    gups: u64,
    /// Changes of slots before it goes, at least.
    changes: u64,
}

impl Plan {
    fn of(stress: Stress) -> Self {
        match stress {
            Stress::Short => Self { cycles: 3, gups: 8_000, changes: 40 },
            Stress::Full => Self { cycles: 20, gups: 60_000, changes: 200 },
        }
    }
}

/// A part of an address space that maps one of its alternatives.
struct Slot {
    space: Arc<Space>,
    ops: Arc<dyn VmOps<KernelMachine>>,
    va: VirtAddr,
    size: PageSize,
    nr_pages: u64,
    /// First page of the first alternative; the others follow it.
    first_page: u64,
    /// Number of changes begun and ended, so odd while it is being changed, times 256, plus the alternative.
    word: AtomicU64,
}

impl Slot {
    fn len_bytes(&self) -> u64 {
        page(self.nr_pages)
    }

    fn address(&self, n: u64) -> VirtAddr {
        VirtAddr::new(self.va.as_u64() + page(n))
    }

    /// Acquire; pairs with the Release in `change`: who sees a change ended sees what it changed.
    fn look(&self) -> u64 {
        self.word.load(Ordering::Acquire)
    }

    fn is_stable(before: u64, after: u64) -> bool {
        before == after && (before >> 8).is_multiple_of(2)
    }

    /// First page of an alternative.
    fn alternative(&self, word: u64) -> u64 {
        self.first_page + (word & 0xff) * self.nr_pages
    }

    /// May the page of the device at `n` in the slot have been `found`, between two looks?
    fn may_be(&self, (before, after): (u64, u64), n: u64, found: u64) -> bool {
        if Self::is_stable(before, after) {
            found == self.alternative(before) + n
        } else {
            (0..NR_ALTERNATIVES).any(|other| found == self.alternative(other) + n)
        }
    }

    /// Says that a change begins, makes it, and says that it has ended with alternative `next`. Only by the owner.
    fn change<E>(&self, next: u64, make: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let word = self.word.load(Ordering::Relaxed);
        let changes = word >> 8;
        self.word.store((changes + 1) << 8 | (word & 0xff), Ordering::SeqCst);
        make()?;
        self.word.store((changes + 2) << 8 | next, Ordering::Release);
        Ok(())
    }

    fn map(&self, alternative: u64) -> Result<(), MapError> {
        self.space.map(self.va, self.len_bytes(), Prot::USER_WRITE, &self.ops, self.alternative(alternative))
    }
}

/// What all tasks of one cycle share.
struct Arena {
    device: PfnRange,
    slots: Vec<Slot>,
    counts: Counts,
    /// The device has gone, or something is wrong: everybody ends.
    stop: AtomicBool,
    /// The first thing that was wrong.
    fault: Mutex<Option<String>>,
}

/// What was done, in all cycles or in one.
#[derive(Default)]
struct Counts {
    gups: AtomicU64,
    pages: AtomicU64,
    accesses: AtomicU64,
    changes: AtomicU64,
    promotions: AtomicU64,
}

/// Why a task ends.
#[derive(Debug)]
enum End {
    /// The device has gone, or everybody ends.
    Gone,
    /// Something is wrong.
    Fault(String),
}

impl Arena {
    /// Slots of both sizes for every CPU in every space, all mapped.
    fn new(device: &Device, nr_cpus: u64) -> Result<Arc<Self>, String> {
        let (small, large) = (device.open(PageSize::Size4K)?, device.open(PageSize::Size2M)?);
        let mut slots = Vec::new();
        for nr_space in 0..NR_SPACES as u64 {
            let space = new_space(&format!("shared {nr_space}"))?;
            for cpu in 0..nr_cpus {
                let nth = nr_space * nr_cpus + cpu;
                for (size, ops, nr_pages) in
                    [(PageSize::Size4K, &small, SMALL_PAGES), (PageSize::Size2M, &large, LARGE_PAGES)]
                {
                    let above = if size == PageSize::Size2M { PageSize::Size1G.bytes() } else { 0 };
                    let first = if size == PageSize::Size2M { small_pages(nr_cpus) } else { 0 };
                    slots.push(Slot {
                        space: Arc::clone(&space),
                        ops: Arc::clone(ops),
                        va: VirtAddr::new(BASE.as_u64() + above + cpu * page(nr_pages)),
                        size,
                        nr_pages,
                        first_page: first + nth * NR_ALTERNATIVES * nr_pages,
                        word: AtomicU64::new(0),
                    });
                }
            }
        }
        for slot in &slots {
            slot.map(0).map_err(|error| format!("map at {}: {error}", slot.va))?;
        }
        let (counts, stop, fault) = (Counts::default(), AtomicBool::new(false), Mutex::new(None));
        Ok(Arc::new(Self { device: device.frames, slots, counts, stop, fault }))
    }

    /// The page of the device that a frame is.
    fn page_of(&self, pfn: Pfn) -> u64 {
        pfn.as_u64().wrapping_sub(self.device.start().as_u64())
    }

    /// The slots of the CPU that owns them.
    fn owned(&self, cpu: CpuId) -> impl Iterator<Item = &Slot> {
        let per_space = self.slots.len() / NR_SPACES;
        (0..NR_SPACES).flat_map(move |space| &self.slots[space * per_space + 2 * cpu..][..2])
    }

    /// Starts a task on `cpu`, in the address space numbered `nr_space`, that does `work` until that ends.
    fn spawn(self: &Arc<Self>, cpu: CpuId, nr_space: usize, (work, seed): (Work, u64)) -> Arc<Task> {
        let per_space = self.slots.len() / NR_SPACES;
        let first = nr_space * per_space;
        let mut worker = Worker { cpu, first, nr_slots: per_space, random: Random(seed | 1) };
        let arena = Arc::clone(self);
        spawn_in(cpu, &self.slots[first].space, move || {
            let mut turns: u64 = 0;
            let end = loop {
                if arena.stop.load(Ordering::Acquire) {
                    break End::Gone;
                }
                if let Err(end) = work(&arena, &mut worker) {
                    break end;
                }
                turns += 1;
                // So that a change waits for a few turns of the others, not for the ends of their time slices.
                if turns.is_multiple_of(TURNS_PER_YIELD) {
                    sched::yield_now();
                }
            };
            if let End::Fault(fault) = end {
                arena.fault.lock().get_or_insert(format!("CPU {cpu}: {fault}"));
                arena.stop.store(true, Ordering::Release);
            }
            Ok(())
        })
    }
}

/// Pages of the device that the slots of small leaves use.
fn small_pages(nr_cpus: u64) -> u64 {
    (NR_SPACES as u64 * nr_cpus * NR_ALTERNATIVES * SMALL_PAGES).next_multiple_of(LARGE_PAGES)
}

/// Pages of the device that all slots use.
fn all_pages(nr_cpus: u64) -> u64 {
    small_pages(nr_cpus) + NR_SPACES as u64 * nr_cpus * NR_ALTERNATIVES * LARGE_PAGES
}

/// One task's own state.
struct Worker {
    cpu: CpuId,
    /// The first of its address space's slots.
    first: usize,
    nr_slots: usize,
    random: Random,
}

impl Worker {
    /// Any slot of its address space.
    fn pick<'a>(&mut self, arena: &'a Arena) -> &'a Slot {
        &arena.slots[self.first + self.random.below(self.nr_slots as u64) as usize]
    }
}

/// What a task does over and over.
type Work = fn(&Arena, &mut Worker) -> Result<(), End>;

/// Pins a few pages of a slot, looks at them as a device would, and gives them back.
fn gup_work(arena: &Arena, worker: &mut Worker) -> Result<(), End> {
    let slot = worker.pick(arena);
    let random = &mut worker.random;
    let n = random.below(slot.nr_pages);
    let nr = 1 + random.below(SMALL_PAGES.min(slot.nr_pages - n));
    let mut flags = GupFlags::empty();
    for (flag, one_in) in [(GupFlags::WRITE, 2), (GupFlags::FAST_ONLY, 4)] {
        flags.set(flag, random.one_in(one_in));
    }
    let pin = !random.one_in(8);
    let mut ranges = [None; SMALL_PAGES as usize];
    let mut sink = RangeArray::new(&mut ranges);
    let before = slot.look();
    let gup = if pin { pin_user_pages_fast } else { get_user_pages_fast };
    let got = gup(&slot.space, slot.address(n), nr, flags, &mut sink);
    let after = slot.look();
    arena.counts.gups.fetch_add(1, Ordering::Relaxed);
    let result = match got {
        Ok(got) => {
            arena.counts.pages.fetch_add(got, Ordering::Relaxed);
            look_at_pins(arena, slot, (before, after), n, &sink)
        }
        Err(GupError::SigBus(_, SigBusCause::DeviceGone)) => Err(End::Gone),
        Err(GupError::NotPresent(_)) if flags.contains(GupFlags::FAST_ONLY) => Ok(()),
        Err(_) if !Slot::is_stable(before, after) => Ok(()),
        Err(error) => Err(End::Fault(format!("gup in a slot that is mapped: {error}"))),
    };
    for run in sink.iter() {
        if pin { unpin(mm(), run.start(), run.nr_pages()) } else { put_page(mm(), run.start(), run.nr_pages()) }
    }
    result
}

fn look_at_pins(arena: &Arena, slot: &Slot, looks: (u64, u64), n: u64, pinned: &RangeArray<'_>) -> Result<(), End> {
    let mut n = n;
    for run in pinned.iter() {
        for pfn in (0..run.nr_pages()).map(|inside| run.start().add(inside)) {
            let found = arena.page_of(pfn);
            if !slot.may_be(looks, n, found) {
                return Err(End::Fault(format!("page {n} of slot {} is page {found} of the device", slot.va)));
            }
            let carries = read_frame(pfn);
            if carries != stamp(found, 0) {
                return Err(End::Fault(format!("page {found} carries {carries:#x}, pinned at {}", slot.address(n))));
            }
            n += 1;
        }
    }
    Ok(())
}

/// Reads a stamp through the mapping; stores a word beside it and reads it back.
fn access_work(arena: &Arena, worker: &mut Worker) -> Result<(), End> {
    let slot = worker.pick(arena);
    let n = worker.random.below(slot.nr_pages);
    let value = worker.random.0;
    let va = slot.address(n);
    // A word of its own, so that CPUs do not overwrite each other's.
    let own = VirtAddr::new(va.as_u64() + 8 + 8 * worker.cpu as u64);
    let before = slot.look();
    let results = [user::read_u64(va), user::write_u64(own, value).map(|()| value), user::read_u64(own)];
    let after = slot.look();
    arena.counts.accesses.fetch_add(results.len() as u64, Ordering::Relaxed);
    let stable = Slot::is_stable(before, after);
    for result in results {
        match result {
            Err(Signal::SigBus { cause: SigBusCause::DeviceGone, .. }) => return Err(End::Gone),
            Err(signal) if stable => {
                return Err(End::Fault(format!("access to {va}, which is mapped: {signal}")));
            }
            _ => {}
        }
    }
    let seen = |found: u64| (0..NR_ALTERNATIVES).find(|&other| found == stamp(slot.alternative(other) + n, 0));
    match results[0].map(seen) {
        Ok(None) => return Err(End::Fault(format!("a foreign stamp at {va}"))),
        Ok(Some(other)) if stable && other != before & 0xff => {
            return Err(End::Fault(format!("the stamp of alternative {other} at {va}, where {} is", before & 0xff)));
        }
        _ => {}
    }
    if stable && results[2] != Ok(value) {
        return Err(End::Fault(format!("{:?} where {value} was stored, at {own}", results[2])));
    }
    Ok(())
}

/// Changes one of the slots that this CPU owns.
fn change_work(arena: &Arena, worker: &mut Worker) -> Result<(), End> {
    let nth = worker.random.below(2 * NR_SPACES as u64) as usize;
    let Some(slot) = arena.owned(worker.cpu).nth(nth) else { return Err(End::Gone) };
    let next = worker.random.below(NR_ALTERNATIVES);
    let same = slot.look() & 0xff;
    arena.counts.changes.fetch_add(1, Ordering::Relaxed);
    match worker.random.below(4) {
        0 => slot.change(next, || {
            unmap(slot, 0, slot.nr_pages)?;
            slot.map(next).map_err(map_end)
        }),
        1 => slot.change(same, || {
            let protect = |prot| slot.space.protect(slot.va, slot.len_bytes(), prot).map_err(map_end);
            protect(Prot::USER_READ)?;
            protect(Prot::USER_WRITE).map(drop)
        }),
        // A hole, and the whole again.
        2 => slot.change(next, || {
            let hole = worker.random.below(slot.nr_pages);
            unmap(slot, hole, 1)?;
            unmap(slot, 0, slot.nr_pages)?;
            slot.map(next).map_err(map_end)
        }),
        _ => split_and_join(arena, slot, &mut worker.random),
    }
}

fn unmap(slot: &Slot, first: u64, nr: u64) -> Result<(), End> {
    slot.space.unmap(slot.address(first), page(nr)).map(drop).map_err(map_end)
}

fn map_end(error: MapError) -> End {
    match error {
        MapError::Refused(SigBusCause::DeviceGone) => End::Gone,
        error => End::Fault(format!("map, unmap or protect: {error}")),
    }
}

/// Takes one page out of its leaf, which splits a large one; brings it back; and joins the leaf. All that while the
/// slot maps the same frames, so nobody else may notice.
fn split_and_join(arena: &Arena, slot: &Slot, random: &mut Random) -> Result<(), End> {
    let n = random.below(slot.nr_pages);
    let pfn = arena.device.start().add(slot.alternative(slot.look()) + n);
    if memory_failure(mm(), pfn, FailureKind::PreRemove).is_err() {
        // The page map goes before the device can be attached again.
        return Err(End::Gone);
    }
    if slot.size == PageSize::Size4K {
        return Ok(());
    }
    // Half of the time only a part comes back, and the leaf stays split.
    let nr = if random.one_in(2) { slot.nr_pages } else { n + 1 };
    match slot.space.populate(slot.va, page(nr), Access::Write) {
        Ok(()) => {}
        Err(mm::space::FaultError::SigBus { cause: SigBusCause::DeviceGone, .. }) => return Err(End::Gone),
        Err(error) => return Err(End::Fault(format!("populate of a slot that is mapped: {error}"))),
    }
    let promoted = slot.space.promote(slot.va, slot.len_bytes()).map_err(map_end)?;
    arena.counts.promotions.fetch_add(promoted, Ordering::Relaxed);
    Ok(())
}

/// One cycle on an attached device, up to its removal from under all tasks. The counts are of this cycle.
fn cycle(device: &Device, plan: Plan, nr: u64) -> Result<Counts, String> {
    let cpus = percpu::online();
    let arena = Arena::new(device, u64::from(cpus.len()))?;
    let mut tasks = Vec::new();
    for cpu in cpus.iter() {
        let kinds: [(Work, usize); 4] =
            [(gup_work, 0), (gup_work, 1), (access_work, cpu % NR_SPACES), (change_work, 0)];
        for (kind, (work, space)) in kinds.into_iter().enumerate() {
            let seed = (nr << 32 | (cpu as u64) << 8 | kind as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            tasks.push(arena.spawn(cpu, (space + cpu) % NR_SPACES, (work, seed)));
        }
    }
    let counts = &arena.counts;
    let enough =
        || counts.gups.load(Ordering::Relaxed) >= plan.gups && counts.changes.load(Ordering::Relaxed) >= plan.changes;
    wait_until(|| arena.stop.load(Ordering::Acquire) || enough());
    let removed = devices::remove(0, Method::Ranged).map_err(|error| format!("removal: {error}"));
    arena.stop.store(true, Ordering::Release);
    for task in &tasks {
        check_eq!(sched::join(task), Ok(()), "end of {task:?}");
    }
    if let Some(fault) = arena.fault.lock().take() {
        return Err(format!("cycle {nr}: {fault}"));
    }
    let report = removed?;
    no_problems(&report)?;
    // Each CPU may have been about to map one of its slots anew, and was refused: it did not get to another one.
    let fewest = arena.slots.len() - cpus.len() as usize;
    check!(
        report.users.len() >= fewest,
        "the removal found {} mappings, at least {fewest} were there",
        report.users.len()
    );
    let arena = Arc::try_unwrap(arena).map_err(|_| "a task that has ended still uses the arena")?;
    Ok(arena.counts)
}

fn stress(ctx: &mut Ctx, device: &Device) -> Result<(), String> {
    let plan = Plan::of(options::get().stress);
    let pages = all_pages(u64::from(percpu::online().len()));
    if pages > device.frames.nr_pages() {
        ctx.skip(format!("NVDIMM 0 has fewer than {} MiB", page(pages) >> 20));
        return Ok(());
    }
    // Nobody overwrites the stamps: they last for all cycles.
    (0..pages).for_each(|n| write_frame(device.pfn(n), stamp(n, 0)));
    let mut sums = [0; 5];
    let mut books: Option<Books> = None;
    for nr in 0..plan.cycles {
        if nr > 0 {
            devices::attach(0).map_err(|error| format!("attach: {error}"))?;
        }
        let Counts { gups, pages, accesses, changes, promotions } = cycle(device, plan, nr)?;
        for (sum, count) in sums.iter_mut().zip([gups, pages, accesses, changes, promotions]) {
            *sum += count.into_inner();
        }
        // Zero after each removal, not only at the end.
        match &books {
            Some(books) => books.compare()?,
            None => books = Some(Books::now()),
        }
    }
    let [gups, pages, accesses, changes, promotions] = sums;
    ctx.note(format_args!(
        "{} cycles: {gups} gup calls, {pages} pages, {accesses} accesses, {changes} changes, {promotions} promotions",
        plan.cycles
    ));
    check!(gups >= plan.cycles * plan.gups, "{gups} gup calls");
    check!(changes > 0 && accesses > 0, "{changes} changes, {accesses} accesses");
    Ok(())
}
