//! What taking translations away costs: unmap, the sender's side of a shootdown, flushes, and the loss of one page.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mm::addr::{PAGE_SIZE, PageSize, VirtRange};
use mm::failure::{FailureKind, memory_failure};
use mm::gather::ZapStats;
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
/// Rounds where each takes a few thousand instructions.
const TURNS: u64 = 64;

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
    shootdown(figures, device)?;
    // Last: it leaves lost pages behind.
    failure(figures, device)
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
        let (take, taken) = once(|| (0..TURNS).map_while(|_| memory::alloc(order)).collect::<Vec<_>>());
        let (give, ()) = once(|| taken.iter().for_each(|&pfn| memory::free(pfn, order)));
        if taken.len() as u64 != TURNS {
            return Err(format!("no memory for {TURNS} blocks of order {order}"));
        }
        figures.cost(&format!("frames_take_{what}"), Cost::of(take, TURNS), Bound::None, "");
        figures.cost(&format!("frames_give_{what}"), Cost::of(give, TURNS), Bound::None, "");
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

fn unmap_gib(figures: &mut Figures, device: &Device, size: PageSize) -> Result<(), String> {
    let nr = PageSize::Size1G.nr_pages();
    let (fault, (cost, zapped)) = in_space(device, (GIB, size), move |space| {
        let (fault, populated) = once(|| populate(space, 0, nr));
        populated?;
        Ok((fault, unmap(space, 0, nr)?))
    })?;
    let leaves = nr / size.nr_pages();
    if zapped.nr_pages != nr || zapped.leaves != leaves {
        return Err(format!("1 GiB of {size} leaves: {zapped:?}"));
    }
    let name = format!("{size}").replace("iB", "");
    figures.cost(&format!("populate_1g_of_{name}_per_leaf"), Cost::of(fault, leaves), Bound::None, "");
    let (bound, linux) = if size == PageSize::Size4K { (Bound::AtMost(8), "89") } else { (Bound::None, "") };
    figures.cost(&format!("unmap_1g_of_{name}_per_leaf"), Cost::of(cost, leaves), bound, linux);
    figures.add(&format!("unmap_1g_of_{name}_rounds"), "rounds", Cost::of(zapped.rounds, 1), Bound::AtMost(1), "");
    Ok(())
}

/// One page out of many, on one CPU: no table page goes with it.
fn unmap_one(figures: &mut Figures, device: &Device) -> Result<(), String> {
    let total = in_space(device, (MIB2, PageSize::Size4K), |space| {
        populate(space, 0, 2 * TURNS + 1)?;
        (0..TURNS).map(|turn| unmap(space, 2 * turn, 1).map(|(cost, _)| cost)).sum::<Result<u64, _>>()
    })?;
    figures.cost("unmap_one_4k", Cost::of(total, TURNS), Bound::None, "");
    Ok(())
}

/// The loss of a page that one space maps. Linux's figures are those of its own `memory_failure`.
fn failure(figures: &mut Figures, device: &Device) -> Result<(), String> {
    for (kind, name) in [(FailureKind::PreRemove, "pre_remove"), (FailureKind::Media, "media")] {
        let first = device.pfn(0);
        let total = in_space(device, (MIB2, PageSize::Size4K), move |space| {
            populate(space, 0, TURNS)?;
            let mut total = 0;
            for turn in 0..TURNS {
                let (cost, failed) =
                    once(|| memory_failure(mm(), first.add(turn), kind).map(|failed| failed.users.len()));
                if failed != Ok(1) {
                    return Err(format!("failure of frame {}: {failed:?}", first.add(turn)));
                }
                total += cost;
            }
            Ok(total)
        })?;
        let name = format!("memory_failure_{name}");
        figures.cost(&name, Cost::of(total, TURNS), Bound::AtMost(6560), "6,560 to 22,000");
    }
    Ok(())
}

/// One round for the first `nr` pages, without the wait for its end; answers what that cost and how many interrupts
/// were sent. The round is synced.
fn sent(space: &Arc<Space>, nr: u64) -> (u64, u32) {
    let mm = mm();
    let what = VirtRange::new(BASE, page(nr))
        .map_or(FlushRange::All, |range| FlushRange::Pages { range, stride: PageSize::Size4K });
    let start = time::cost();
    let mut round = Round::new();
    round.issue(space.tlb(), what, false);
    let dispatched = round.dispatch(&mm.shootdown, &mm.machine);
    let cost = time::cost() - start;
    let nr_ipis = dispatched.nr_ipis();
    dispatched.sync();
    (cost, nr_ipis)
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
        let (stop, ready) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let halted = |cpu| {
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
        let tasks: Vec<_> = others().iter().map(halted).collect();
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
/// up to where the wait begins, and what sync does where there is nothing to wait for. The CPUs take turns on one host
/// thread, so a turn may end in between and bring another CPU's instructions in: the least of many is the figure.
fn shootdown(figures: &mut Figures, device: &Device) -> Result<(), String> {
    let nr_others = others().len();
    let space = new_space("shot")?;
    device.map(&space, BASE, 0, PAGE_SIZE, PageSize::Size4K)?;
    populate(&space, 0, 1)?;
    let halted = Halted::start(&space);
    let inner = Arc::clone(&space);
    let measured = run_in(here(), &space, move || {
        let rounds: Vec<(u64, u32)> = (0..TURNS).map(|_| sent(&inner, 1)).collect();
        let least = rounds.iter().map(|&(cost, _)| cost).min().unwrap_or(0);
        let most_ipis = rounds.iter().map(|&(_, ipis)| ipis).max().unwrap_or(0);
        let round = Round::new().dispatch(&mm().shootdown, &mm().machine);
        let (sync, ()) = once(|| round.sync());
        Ok((least + sync, most_ipis))
    });
    halted.stop()?;
    let (cost, ipis) = measured?;
    if ipis != nr_others {
        return Err(format!("{ipis} interrupts for {nr_others} CPUs"));
    }
    let name = format!("shootdown_one_page_to_{nr_others}_cpus");
    figures.cost(&name, Cost::of(cost, 1), if nr_others == 3 { Bound::AtMost(600) } else { Bound::None }, "");
    let bound = Bound::AtMost(u64::from(nr_others));
    figures.add(&format!("{name}_ipis"), "interrupts", Cost::of(u64::from(ipis), 1), bound, "");
    Ok(())
}
