//! What taking translations away costs: unmap, the sender's side of a shootdown, flushes.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mm::addr::{PAGE_SIZE, PageSize, VirtRange};
use mm::gather::ZapStats;
use mm::ledger::Kind;
use mm::machine::{CpuId, IrqOff};
use mm::meta::Owner;
use mm::shootdown::{FlushRange, Round};
use mm::space::Access;

use crate::bench::figures::{Bound, Cost, Figures, once};
use crate::bench::flush;
use crate::cpu::{ipi, time};
use crate::ktest::fixtures::{BASE, Device, at, here, new_space, others, page, run_in, spawn_in, wait_until};
use crate::mem::machine::{Space, mm};
use crate::mem::{memory, paging};
use crate::task::tcb::Task;
use crate::task::{sched, user};

const GIB: u64 = PageSize::Size1G.bytes();
const MIB2: u64 = PageSize::Size2M.bytes();
/// How often others may run before what an unmap has left for later must be done.
const PATIENCE: u64 = 100_000;
/// How often what takes longer is done.
const REPEATS: u64 = 5;
/// Rounds where each takes a few thousand instructions.
const TURNS: u64 = 64;
/// Blocks of frames that are taken one after the other: many, so that it matters little how large a block they are cut from.
const FRAMES: u64 = 1024;

/// Measures zaps of `device`, which has at least 1 GiB.
pub fn run(figures: &mut Figures, device: &Device) -> Result<(), String> {
    frames(figures)?;
    puts(figures, device)?;
    unmap_gib(figures, device, PageSize::Size4K)?;
    unmap_gib(figures, device, PageSize::Size2M)?;
    if paging::has_gib_leaves() {
        unmap_gib(figures, device, PageSize::Size1G)?;
    }
    unmap_one(figures, device)?;
    flush::run(figures, device)?;
    shootdown(figures, device)
}

/// Does `work` in a task that has a new space loaded, which maps `len` bytes of the device with leaves of `size`.
pub fn in_space<R: Send + 'static>(
    device: &Device,
    (len, size): (u64, PageSize),
    work: impl FnOnce(&Arc<Space>) -> Result<R, String> + Send + 'static,
) -> Result<R, String> {
    let space = new_space("bench")?;
    device.map(&space, BASE, 0, len, size)?;
    let inner = Arc::clone(&space);
    run_in(here(), &space, move || work(&inner))
}

/// Lets `nr` pages from page `first` on be present.
pub fn populate(space: &Space, first: u64, nr: u64) -> Result<(), String> {
    space.populate(at(page(first)), page(nr), Access::Write).map_err(|error| format!("populate: {error}"))
}

fn unmap(space: &Arc<Space>, first: u64, nr: u64) -> Result<(u64, ZapStats), String> {
    let (cost, result) = once(|| space.unmap(at(page(first)), page(nr)));
    result.map(|zapped| (cost, zapped)).map_err(|error| format!("unmap: {error}"))
}

/// What it costs to take and to give back what a zap frees: a page table, and the metadata of 512 pages.
fn frames(figures: &mut Figures) -> Result<(), String> {
    for (order, what) in [(0, "page_table"), (2, "metadata_chunk")] {
        let mut costs = (Vec::new(), Vec::new());
        for _ in 0..REPEATS {
            // Beforehand: the heap is another matter.
            let mut taken = Vec::with_capacity(FRAMES as usize);
            let (take, ()) = once(|| taken.extend((0..FRAMES).map_while(|_| memory::alloc(order))));
            let (give, ()) = once(|| taken.iter().for_each(|&pfn| memory::free(pfn, order)));
            if taken.len() as u64 != FRAMES {
                return Err(format!("no memory for {FRAMES} blocks of order {order}"));
            }
            costs.0.push(take);
            costs.1.push(give);
        }
        figures.median_of(&format!("frames_take_{what}"), (costs.0, FRAMES), Bound::None, "");
        figures.median_of(&format!("frames_give_{what}"), (costs.1, FRAMES), Bound::None, "");
    }
    Ok(())
}

/// References that go page by page, as where a page table is not full: the last ones, with the metadata; and those of
/// pages that somebody else holds too.
fn puts(figures: &mut Figures, device: &Device) -> Result<(), String> {
    let (meta, first, nr) = (&mm().meta, device.pfn(0), PageSize::Size2M.nr_pages());
    let small = PageSize::Size4K;
    for (holders, what) in [(1, "last"), (2, "shared")] {
        let mut total = 0;
        for _ in 0..TURNS {
            for _ in 0..holders {
                let run = meta.get_or_create_run(first, nr, small, small, Owner::default());
                if run.map(|run| run.nr_pages) != Ok(nr) {
                    return Err(format!("references on {nr} pages: {run:?}"));
                }
            }
            total += once(|| meta.put_run(first, nr, small)).0;
            (1..holders).for_each(|_| meta.put_run(first, nr, small));
        }
        figures.cost(&format!("put_512_{what}_per_page"), Cost::of(total, TURNS * nr), Bound::None, "");
    }
    Ok(())
}

/// What an unmap takes.
struct Unmap {
    /// To make the leaves.
    fault: u64,
    /// From the call to its return.
    call: u64,
    /// Until tables and metadata have been given back, which may be later.
    in_all: u64,
    zapped: ZapStats,
}

fn measure_unmap(space: &Arc<Space>, nr: u64) -> Result<Unmap, String> {
    let held = || (mm().ledger.count(Kind::TablePages), mm().ledger.count(Kind::MetadataBytes));
    let before = held();
    let (fault, populated) = once(|| populate(space, 0, nr));
    populated?;
    let start = time::cost();
    let (call, zapped) = unmap(space, 0, nr)?;
    for _ in 0..PATIENCE {
        let now = held();
        if now.0 <= before.0 && now.1 <= before.1 {
            return Ok(Unmap { fault, call, in_all: time::cost() - start, zapped });
        }
        sched::yield_now();
    }
    Err(format!("{nr} pages were unmapped, and of tables and metadata {:?} instead of {before:?} are left", held()))
}

fn unmap_gib(figures: &mut Figures, device: &Device, size: PageSize) -> Result<(), String> {
    let nr = PageSize::Size1G.nr_pages();
    let leaves = nr / size.nr_pages();
    // 262,144 small pages are many enough.
    let repeats = if size == PageSize::Size4K { 1 } else { REPEATS };
    let once = |_| in_space(device, (GIB, size), move |space| measure_unmap(space, nr));
    let unmaps = (0..repeats).map(once).collect::<Result<Vec<_>, _>>()?;
    if let Some(other) = unmaps.iter().find(|unmap| (unmap.zapped.nr_pages, unmap.zapped.leaves) != (nr, leaves)) {
        return Err(format!("1 GiB of {size} leaves: {:?}", other.zapped));
    }
    let leaf = format!("{size}").replace("iB", "").to_lowercase();
    let one = if size == PageSize::Size4K { "page" } else { "leaf" };
    let (bound, in_all_bound, linux) = match size {
        PageSize::Size4K => (Bound::at_most_hundredths(70), Bound::at_most_hundredths(250), "89"),
        _ => (Bound::None, Bound::None, ""),
    };
    let of = |cost: fn(&Unmap) -> u64| (unmaps.iter().map(cost).collect::<Vec<_>>(), leaves);
    figures.median_of(&format!("populate_{leaf}_each_{one}"), of(|unmap| unmap.fault), Bound::None, "");
    figures.median_of(&format!("unmap_{leaf}_each_{one}"), of(|unmap| unmap.call), bound, linux);
    figures.median_of(&format!("unmap_{leaf}_each_{one}_in_all"), of(|unmap| unmap.in_all), in_all_bound, "");
    let rounds = unmaps.iter().map(|unmap| unmap.zapped.rounds).max().unwrap_or(0);
    figures.add(&format!("unmap_{leaf}_rounds"), "rounds", Cost::of(rounds, 1), Bound::at_most(1), "");
    Ok(())
}

/// One page out of many, on one CPU: no table page goes with it. Each turn cuts one more piece off, so no two are the same act:
/// the figure is what one is on the average.
fn unmap_one(figures: &mut Figures, device: &Device) -> Result<(), String> {
    let costs = in_space(device, (MIB2, PageSize::Size4K), |space| {
        populate(space, 0, 2 * TURNS + 1)?;
        (0..TURNS).map(|turn| unmap(space, 2 * turn, 1).map(|(cost, _)| cost)).collect::<Result<Vec<_>, _>>()
    })?;
    figures.cost("unmap_one_4k_of_many", Cost::of(costs.iter().sum(), TURNS), Bound::None, "");
    Ok(())
}

/// Lets every other CPU answer what it has been asked.
fn wait_for_answers() {
    let mm = mm();
    let has_answered = |cpu| {
        let look = mm.shootdown.look(&IrqOff::new(&mm.machine), cpu);
        look.is_none_or(|look| look.answered == look.requests)
    };
    while !others().iter().all(has_answered) {
        core::hint::spin_loop();
    }
}

/// One round for the first `nr` pages, without the wait for the others' answers; answers what that cost and how many interrupts
/// were sent.
fn sent(space: &Arc<Space>, nr: u64) -> (u64, u32) {
    let mm = mm();
    let what = VirtRange::new(BASE, page(nr))
        .map_or(FlushRange::All, |range| FlushRange::Pages { range, stride: PageSize::Size4K });
    let (dispatch, dispatched) = once(|| {
        let mut round = Round::new();
        round.issue(space.tlb(), what, false);
        round.dispatch(&mm.shootdown, &mm.machine)
    });
    let nr_ipis = dispatched.nr_ipis();
    wait_for_answers();
    let (sync, ()) = once(|| dispatched.sync());
    (dispatch + sync, nr_ipis)
}

/// Tasks that have a space loaded and in use, on CPUs that are halted: they take shootdown interrupts, and execute
/// nothing otherwise.
pub struct Halted {
    tasks: Vec<Arc<Task>>,
    stop: Arc<AtomicBool>,
}

impl Halted {
    /// Starts one on every other CPU, and waits until all are halted. `space` has a page at [`BASE`].
    pub fn start(space: &Arc<Space>) -> Self {
        Self::start_each(core::slice::from_ref(space))
    }

    /// The same, with the spaces in turn.
    pub fn start_each(spaces: &[Arc<Space>]) -> Self {
        let (stop, ready) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let halted = |(cpu, space): (CpuId, &Arc<Space>)| {
            let (stop, ready) = (Arc::clone(&stop), Arc::clone(&ready));
            spawn_in(cpu, space, move || {
                let read = user::read_u64(BASE);
                ready.fetch_add(1, Ordering::Release);
                loop {
                    arch::cpu::irq_disable();
                    if stop.load(Ordering::Acquire) {
                        break;
                    }
                    arch::cpu::irq_enable_and_halt();
                }
                arch::cpu::irq_enable();
                read.map(|_| ())
            })
        };
        let tasks: Vec<_> = others().iter().zip(spaces.iter().cycle()).map(halted).collect();
        wait_until(|| ready.load(Ordering::Acquire) == tasks.len() as u64);
        Self { tasks, stop }
    }

    /// Ends them.
    pub fn stop(self) -> Result<(), String> {
        self.stop.store(true, Ordering::Release);
        others().iter().for_each(|cpu| ipi::send(cpu, ipi::VECTOR_TEST));
        self.tasks.iter().try_for_each(|task| sched::join(task).map_err(|signal| format!("a halted task: {signal}")))
    }
}

/// A shootdown of one page to the other CPUs: what the sender executes, but for the wait. That is issue and dispatch,
/// up to where the wait begins, and what sync does where all have answered. The CPUs take turns on one host
/// thread, so a turn may end in between and bring another CPU's instructions in: the median of many is the figure.
fn shootdown(figures: &mut Figures, device: &Device) -> Result<(), String> {
    let nr_others = others().len();
    let space = new_space("shot")?;
    device.map(&space, BASE, 0, PAGE_SIZE, PageSize::Size4K)?;
    populate(&space, 0, 1)?;
    let halted = Halted::start(&space);
    let inner = Arc::clone(&space);
    let measured = run_in(here(), &space, move || {
        sent(&inner, 1);
        let rounds: Vec<(u64, u32)> = (0..TURNS).map(|_| sent(&inner, 1)).collect();
        Ok(rounds.into_iter().unzip::<u64, u32, Vec<_>, Vec<_>>())
    });
    halted.stop()?;
    let (costs, ipis) = measured?;
    if let Some(other) = ipis.iter().find(|ipis| **ipis != nr_others) {
        return Err(format!("{other} interrupts for {nr_others} CPUs"));
    }
    let name = format!("shootdown_one_page_to_{nr_others}_cpus");
    figures.median(&name, costs, if nr_others == 3 { Bound::at_most(350) } else { Bound::None }, "");
    let bound = Bound::at_most(u64::from(nr_others));
    figures.add(&format!("{name}_ipis"), "interrupts", Cost::of(u64::from(nr_others), 1), bound, "");
    Ok(())
}
