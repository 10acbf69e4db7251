//! Tests of shootdowns on real TLBs: nobody uses a translation after it was taken away, and nobody is interrupted who
//! need not be. They count rounds, never time.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mm::addr::{PageSize, VirtAddr};
use mm::entry::Prot;
use mm::machine::{CpuId, CpuMask, IrqOff};
use mm::space::Access;
use mm::tlb::FULL_FLUSH_ABOVE;

use crate::ktest::fixtures::{
    BASE, Device, Spinners, at, new_space, other_cpu, others, page, run_in, segv, spawn_in, stamp, wait_until,
    write_frame,
};
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::mem::machine::{Space, mm};
use crate::task::tcb::{Signal, State, Task};
use crate::task::wait::WaitQueue;
use crate::task::{runner, sched, user};

const MIB2: u64 = PageSize::Size2M.bytes();

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test { name: "mm.tlb.no_read_after_unmap_4k", covers: "R10", run: |ctx| Device::with(ctx, MIB2, stale_4k) },
    Test { name: "mm.tlb.no_read_after_unmap_2m", covers: "R10", run: |ctx| Device::with(ctx, MIB2, stale_2m) },
    Test {
        name: "mm.tlb.no_read_after_unmap_of_a_part",
        covers: "R10",
        run: |ctx| Device::with(ctx, MIB2, stale_part),
    },
    Test { name: "mm.tlb.no_store_after_protect", covers: "G7", run: |ctx| Device::with(ctx, MIB2, stale_rights) },
    Test { name: "mm.tlb.no_old_contents_after_remap", covers: "R10", run: |ctx| Device::with(ctx, MIB2, stale_frame) },
    Test { name: "mm.tlb.interrupts_off_hold_it_up", covers: "G2", run: |ctx| Device::with(ctx, MIB2, waits) },
    Test { name: "mm.tlb.only_loaded_cpus_are_interrupted", covers: "", run: |ctx| Device::with(ctx, MIB2, targets) },
    Test { name: "mm.tlb.idle_cpus_are_left_alone", covers: "G3", run: |ctx| Device::with(ctx, MIB2, lazy) },
    Test { name: "mm.tlb.many_pages_are_one_full_flush", covers: "", run: |ctx| Device::with(ctx, MIB2, full_flush) },
    Test { name: "mm.tlb.switching_cpus_see_no_old_page", covers: "", run: |ctx| Device::with(ctx, MIB2, switching) },
];

/// Rounds of the tests in which two CPUs race.
const ROUNDS: u64 = 64;

/// What a task that uses a page and one that takes it away tell each other.
#[derive(Default)]
struct Race {
    /// Accesses that succeeded.
    served: AtomicU64,
    /// The page is taken away: the call has returned.
    gone: AtomicBool,
    /// Accesses that began afterwards and succeeded all the same.
    late: AtomicU64,
}

/// Uses a page until that fails; answers whether it failed as it should.
fn use_until_gone(race: &Race, access: Use) -> bool {
    loop {
        // Acquire; pairs with the Release in `race_rounds`: an access that begins after this load begins afterwards.
        let late = race.gone.load(Ordering::Acquire);
        match access.make() {
            Ok(()) if late => {
                race.late.fetch_add(1, Ordering::Relaxed);
                return false;
            }
            Ok(()) => {
                race.served.fetch_add(1, Ordering::Release);
            }
            Err(signal) => return signal == segv(access.va),
        }
    }
}

/// The access that a racing task makes.
#[derive(Clone, Copy)]
struct Use {
    /// Where.
    va: VirtAddr,
    /// A store?
    store: bool,
}

impl Use {
    fn make(self) -> Result<(), Signal> {
        if self.store { user::write_u64(self.va, 1) } else { user::read_u64(self.va).map(|_| ()) }
    }
}

/// In each round: map, let another CPU use the page, take it away, and see that no use succeeds once that is done.
fn race_rounds(
    ctx: &mut Ctx,
    space: &Arc<Space>,
    access: Use,
    prepare: impl Fn() -> Result<(), String>,
    take_away: impl Fn() -> Result<(), String>,
) -> Result<(), String> {
    let Some(cpu) = other_cpu(ctx) else { return Ok(()) };
    let mut served = 0;
    for round in 0..ROUNDS {
        prepare()?;
        let race = Arc::new(Race::default());
        let there = Arc::clone(&race);
        let ended = Arc::new(AtomicBool::new(false));
        let well = Arc::clone(&ended);
        let task = spawn_in(cpu, space, move || {
            well.store(use_until_gone(&there, access), Ordering::Release);
            Ok(())
        });
        wait_until(|| race.served.load(Ordering::Acquire) > round % 8 || task.exit().is_some());
        take_away()?;
        // Release; pairs with the Acquire in `use_until_gone`.
        race.gone.store(true, Ordering::Release);
        check_eq!(sched::join(&task), Ok(()), "end of the racing task");
        check_eq!(race.late.load(Ordering::Relaxed), 0, "accesses after the page was gone, in round {round}");
        check!(ended.load(Ordering::Acquire), "round {round}: the access failed with another signal or address");
        served += race.served.load(Ordering::Relaxed);
    }
    ctx.note(format_args!("{ROUNDS} rounds, {served} accesses in time, none late"));
    Ok(())
}

/// Maps `len` bytes with leaves of `size`, and unmaps `gone` bytes from `skip` on, under a reader's feet.
fn stale_read(ctx: &mut Ctx, device: &Device, size: PageSize, (skip, gone): (u64, u64)) -> Result<(), String> {
    let space = new_space("stale")?;
    let fail = |what: &str, error: &dyn core::fmt::Display| format!("{what}: {error}");
    let prepare = || {
        space.unmap(BASE, MIB2).map_err(|error| fail("clean up", &error))?;
        device.map(&space, BASE, 0, MIB2, size)
    };
    let take_away = || space.unmap(at(skip), gone).map(|_| ()).map_err(|error| fail("unmap", &error));
    race_rounds(ctx, &space, Use { va: at(skip + 64), store: false }, prepare, take_away)
        // The address that a fault reports is that of the access.
        .map_err(|error| format!("{size}: {error}"))
}

fn stale_4k(ctx: &mut Ctx, device: &Device) -> Result<(), String> {
    stale_read(ctx, device, PageSize::Size4K, (page(3), page(1)))
}

fn stale_2m(ctx: &mut Ctx, device: &Device) -> Result<(), String> {
    stale_read(ctx, device, PageSize::Size2M, (0, MIB2))
}

fn stale_part(ctx: &mut Ctx, device: &Device) -> Result<(), String> {
    stale_read(ctx, device, PageSize::Size2M, (page(77), page(1)))
}

fn stale_rights(ctx: &mut Ctx, device: &Device) -> Result<(), String> {
    let space = new_space("rights")?;
    device.map(&space, BASE, 0, page(8), PageSize::Size4K)?;
    let protect = |prot| space.protect(BASE, page(8), prot).map(|_| ()).map_err(|error| format!("protect: {error}"));
    let store = Use { va: at(page(5)), store: true };
    race_rounds(ctx, &space, store, || protect(Prot::USER_WRITE), || protect(Prot::USER_READ))
}

/// Pages that take turns at one address.
const TURNS: u64 = 16;

/// Is this what one of the pages has that were mapped while the announced round went from `announced` to `now`? The map of
/// the next round may have come meanwhile, which is announced a little later.
fn is_of(value: u64, announced: u64, now: u64) -> bool {
    (announced..=now + 1).any(|round| value == stamp(round % TURNS, 1))
}

/// Pages take turns at one address; a reader never sees one from before the one that was announced.
fn stale_frame(ctx: &mut Ctx, device: &Device) -> Result<(), String> {
    let Some(cpu) = other_cpu(ctx) else { return Ok(()) };
    for n in 0..TURNS {
        write_frame(device.pfn(n), stamp(n, 1));
    }
    let space = new_space("remap")?;
    let (current, seen, stop) = (AtomicU64::new(0), AtomicU64::new(u64::MAX), AtomicBool::new(false));
    let shared = Arc::new((current, seen, stop, AtomicU64::new(0)));
    let there = Arc::clone(&shared);
    let reader = spawn_in(cpu, &space, move || {
        let (current, seen, stop, wrong) = &*there;
        while !stop.load(Ordering::Acquire) {
            let announced = current.load(Ordering::Acquire);
            // Nothing is mapped for a moment in each round.
            let Ok(value) = user::read_u64(BASE) else { continue };
            let now = current.load(Ordering::Acquire);
            if !is_of(value, announced, now) {
                wrong.fetch_add(1, Ordering::Relaxed);
            }
            if announced == now && value == stamp(now % TURNS, 1) {
                seen.store(now, Ordering::Release);
            }
        }
        Ok(())
    });
    let (current, seen, stop, wrong) = &*shared;
    let mut result = Ok(());
    for round in 0..2 * ROUNDS {
        let step = || {
            space.unmap(BASE, page(1)).map_err(|error| format!("unmap: {error}"))?;
            device.map(&space, BASE, page(round % TURNS), page(1), PageSize::Size4K)
        };
        result = result.and(step());
        // Release; pairs with the Acquire of the reader.
        current.store(round, Ordering::Release);
        // The reader has the new translation, if only one that is not the old one.
        wait_until(|| result.is_err() || seen.load(Ordering::Acquire) == round);
    }
    stop.store(true, Ordering::Release);
    check_eq!(sched::join(&reader), Ok(()), "end of the reader");
    result?;
    check_eq!(wrong.load(Ordering::Relaxed), 0, "reads of a page that was no longer mapped");
    Ok(())
}

/// While a CPU that has the space loaded keeps its interrupts off, as gup-fast does, no unmap of it returns.
fn waits(ctx: &mut Ctx, device: &Device) -> Result<(), String> {
    const LOOKS: u64 = 20_000;
    let Some(cpu) = other_cpu(ctx) else { return Ok(()) };
    let space = new_space("waits")?;
    device.map(&space, BASE, 0, page(1), PageSize::Size4K)?;
    let shared = Arc::new((AtomicBool::new(false), AtomicBool::new(false), AtomicBool::new(false)));
    let there = Arc::clone(&shared);
    let walker = spawn_in(cpu, &space, move || {
        let (inside, returned, early) = &*there;
        let read = user::read_u64(BASE);
        let irq = IrqOff::new(&mm().machine);
        let sent = mm().shootdown.stats().ipis;
        inside.store(true, Ordering::Release);
        // From when the interrupt was sent the unmap waits for us.
        while mm().shootdown.stats().ipis == sent {
            arch::cpu::pause();
        }
        for _ in 0..LOOKS {
            if returned.load(Ordering::Acquire) {
                early.store(true, Ordering::Release);
            }
            arch::cpu::pause();
        }
        drop(irq);
        read.map(|_| ())
    });
    let (inside, returned, early) = &*shared;
    wait_until(|| inside.load(Ordering::Acquire));
    let zapped = space.unmap(BASE, page(1)).map_err(|error| format!("unmap: {error}"))?;
    returned.store(true, Ordering::Release);
    check_eq!(sched::join(&walker), Ok(()), "end of the walker");
    check_eq!(zapped.ipis, 1, "interrupts sent");
    check!(!early.load(Ordering::Acquire), "the unmap returned while the walker had its interrupts off");
    Ok(())
}

/// Rounds in which all CPUs that spin in a space run their spinner at once, sooner or later.
const ROUNDS_TO_MEET_ALL: usize = 100;

fn targets(ctx: &mut Ctx, device: &Device) -> Result<(), String> {
    let all: alloc::vec::Vec<CpuId> = others().iter().collect();
    if all.is_empty() {
        ctx.skip("there is one CPU only");
        return Ok(());
    }
    let space = new_space("targets")?;
    device.map(&space, BASE, 0, page(64), PageSize::Size4K)?;
    let populate = |n| space.populate(at(page(n)), page(1), Access::Read).map_err(|error| format!("populate: {error}"));
    let unmap = |n| space.unmap(at(page(n)), page(1)).map_err(|error| format!("unmap: {error}"));
    populate(40)?;
    let nobody = unmap(40)?;
    check_eq!((nobody.rounds, nobody.ipis), (1, 0), "(rounds, interrupts) where nobody has it loaded");
    for nr in 1..=all.len() {
        let cpus = all[..nr].iter().fold(CpuMask::EMPTY, |mask, &cpu| mask.union(CpuMask::single(cpu)));
        let spinners = Spinners::start(cpus, &space, BASE);
        check_eq!(space.tlb().cpus(), cpus, "CPUs that have the space loaded");
        // A CPU that another task has for a moment has not loaded the space and is left alone: so fewer are right at times,
        // more never, and all of them before long.
        let mut most = 0;
        for _ in 0..ROUNDS_TO_MEET_ALL {
            populate(nr as u64)?;
            let zapped = unmap(nr as u64)?;
            check!(zapped.rounds == 1 && zapped.ipis <= nr as u64, "{zapped:?} for CPUs {cpus:?}");
            most = most.max(zapped.ipis);
            if most == nr as u64 {
                break;
            }
        }
        spinners.stop()?;
        check_eq!(most, nr as u64, "interrupts for CPUs {cpus:?}");
    }
    // A CPU that has another space loaded is not asked.
    let stranger = new_space("stranger")?;
    device.map(&stranger, BASE, 0, page(1), PageSize::Size4K)?;
    let spinners = Spinners::start(others(), &stranger, BASE);
    populate(50)?;
    let zapped = unmap(50)?;
    spinners.stop()?;
    check_eq!((zapped.rounds, zapped.ipis), (1, 0), "(rounds, interrupts) while others run another space");
    Ok(())
}

/// The task waits, and its CPU idles with the task's space still loaded.
fn idles(task: &Task) -> bool {
    let idle = format!("idle/{}", task.cpu);
    task.state() == State::Parked
        && runner::get(task.cpu).is_some_and(|cpu| cpu.queue.lock().current_name().is_some_and(|name| name == idle))
}

fn lazy(ctx: &mut Ctx, device: &Device) -> Result<(), String> {
    const PAGES: u64 = 24;
    let Some(cpu) = other_cpu(ctx) else { return Ok(()) };
    let space = new_space("lazy")?;
    device.map(&space, BASE, 0, page(PAGES), PageSize::Size4K)?;
    // In the second turn the CPU falls further behind than the ring of ranges remembers.
    for nr in [1, PAGES] {
        let unprotect = space.protect(BASE, page(PAGES), Prot::USER_WRITE).map(|_| ());
        check_eq!(unprotect, Ok(()), "rights");
        let shared = Arc::new((AtomicBool::new(false), WaitQueue::new(), AtomicU64::new(0)));
        let there = Arc::clone(&shared);
        let sleeper = spawn_in(cpu, &space, move || {
            let (go_on, queue, late) = &*there;
            // Its CPU has every translation, writable.
            (0..nr).try_for_each(|n| user::write_u64(at(page(n)), n))?;
            queue.wait_until(|| go_on.load(Ordering::Acquire));
            let stored = (0..nr).filter(|&n| user::write_u64(at(page(n)), 1) != Err(segv(at(page(n))))).count();
            late.store(stored as u64, Ordering::Release);
            Ok(())
        });
        wait_until(|| idles(&sleeper));
        let mut ipis = 0;
        for n in 0..nr {
            let zapped = space.protect(at(page(n)), page(1), Prot::USER_READ);
            ipis += zapped.map_err(|error| format!("protect: {error}"))?.ipis;
        }
        let (go_on, queue, late) = &*shared;
        go_on.store(true, Ordering::Release);
        queue.wake_all();
        check_eq!(sched::join(&sleeper), Ok(()), "end of the sleeper");
        check_eq!(ipis, 0, "interrupts to an idle CPU for {nr} changes of rights");
        check_eq!(late.load(Ordering::Acquire), 0, "stores by old rights once the CPU was back");
    }
    tables_are_told(&space, cpu)
}

/// Where a table page goes, even an idle CPU is asked: it may still walk there by speculation (G3).
fn tables_are_told(space: &Arc<Space>, cpu: CpuId) -> Result<(), String> {
    let shared = Arc::new((AtomicBool::new(false), WaitQueue::new()));
    let there = Arc::clone(&shared);
    let sleeper = spawn_in(cpu, space, move || {
        user::read_u64(BASE)?;
        there.1.wait_until(|| there.0.load(Ordering::Acquire));
        Ok(())
    });
    wait_until(|| idles(&sleeper));
    let zapped = space.unmap(BASE, MIB2).map_err(|error| format!("unmap: {error}"));
    shared.0.store(true, Ordering::Release);
    shared.1.wake_all();
    check_eq!(sched::join(&sleeper), Ok(()), "end of the sleeper");
    let zapped = zapped?;
    check!(zapped.table_pages > 0, "no table page went: {zapped:?}");
    check_eq!(zapped.ipis, 1, "interrupts to an idle CPU where a table page goes");
    Ok(())
}

fn full_flush(ctx: &mut Ctx, device: &Device) -> Result<(), String> {
    let Some(cpu) = other_cpu(ctx) else { return Ok(()) };
    let space = new_space("flush")?;
    device.map(&space, BASE, 0, page(128), PageSize::Size4K)?;
    let spinners = Spinners::start(CpuMask::single(cpu), &space, at(page(100)));
    let mut found = alloc::vec::Vec::new();
    for nr in [1, FULL_FLUSH_ABOVE, FULL_FLUSH_ABOVE + 1] {
        space.populate(BASE, page(nr), Access::Read).map_err(|error| format!("populate: {error}"))?;
        let before = mm().shootdown.stats();
        space.protect(BASE, page(nr), Prot::USER_READ).map_err(|error| format!("protect: {error}"))?;
        let cost = mm().shootdown.stats().since(before);
        found.push((nr, cost.page_flushes, cost.full_flushes));
    }
    spinners.stop()?;
    let expected = [(1, 1, 0), (FULL_FLUSH_ABOVE, FULL_FLUSH_ABOVE, 0), (FULL_FLUSH_ABOVE + 1, 0, 1)];
    check_eq!(found, expected, "(pages, single flushes, full flushes) on the CPU that has the space loaded");
    Ok(())
}

/// Reads of a worker in a turn of its: the first ones fill the TLB, and a page is taken away and another one mapped before
/// the last.
const READS: u64 = 1000;

/// What workers on a CPU that switches between two spaces see.
#[derive(Default)]
struct Switching {
    /// The round whose page has been mapped in the first space.
    current: AtomicU64,
    turns: AtomicU64,
    /// Reads of the first space.
    served: AtomicU64,
    wrong: AtomicU64,
    stop: AtomicBool,
}

impl Switching {
    /// Reads the space that is loaded, turn after turn; `is_one` is the one in which pages take turns. The other one has the
    /// page behind them.
    fn work(&self, is_one: bool) {
        while !self.stop.load(Ordering::Acquire) {
            for _ in 0..READS {
                let announced = self.current.load(Ordering::Acquire);
                // An error is legal: nothing is mapped for a moment in each round.
                let Ok(value) = user::read_u64(BASE) else { continue };
                let now = self.current.load(Ordering::Acquire);
                let is_legal = if is_one { is_of(value, announced, now) } else { value == stamp(TURNS, 1) };
                if !is_legal {
                    self.wrong.fetch_add(1, Ordering::Relaxed);
                }
                self.served.fetch_add(u64::from(is_one), Ordering::Release);
            }
            self.turns.fetch_add(1, Ordering::Release);
            sched::yield_now();
        }
    }
}

/// A CPU that switches between two spaces all the time, while pages take turns at one address of one of them: a translation
/// that stays behind shows the page of an earlier round, or the other space's.
fn switching(ctx: &mut Ctx, device: &Device) -> Result<(), String> {
    let Some(cpu) = other_cpu(ctx) else { return Ok(()) };
    (0..=TURNS).for_each(|n| write_frame(device.pfn(n), stamp(n, 1)));
    let (one, two) = (new_space("one")?, new_space("two")?);
    device.map(&one, BASE, 0, page(1), PageSize::Size4K)?;
    device.map(&two, BASE, page(TURNS), page(1), PageSize::Size4K)?;
    let shared = Arc::new(Switching::default());
    let tasks = [(&one, true), (&two, false)].map(|(space, is_one)| {
        let shared = Arc::clone(&shared);
        spawn_in(cpu, space, move || {
            shared.work(is_one);
            Ok(())
        })
    });
    let mut result = Ok(());
    for round in 1..=ROUNDS {
        // When the CPU switches, or amid a turn.
        let (count, more) =
            if round % 2 == 0 { (&shared.turns, 1 + round % 3) } else { (&shared.served, 37 * round % READS) };
        let goal = count.load(Ordering::Acquire) + more;
        wait_until(|| count.load(Ordering::Acquire) >= goal);
        let step = || {
            one.unmap(BASE, page(1)).map_err(|error| format!("unmap: {error}"))?;
            device.map(&one, BASE, page(round % TURNS), page(1), PageSize::Size4K)
        };
        result = result.and(step());
        // Release; pairs with the Acquire of the workers.
        shared.current.store(round, Ordering::Release);
    }
    shared.stop.store(true, Ordering::Release);
    for task in &tasks {
        check_eq!(sched::join(task), Ok(()), "end of {task:?}");
    }
    result?;
    check_eq!(
        shared.wrong.load(Ordering::Relaxed),
        0,
        "reads of a page that was no longer mapped, or of the other space's"
    );
    // And gone is gone, for a task that comes later.
    one.unmap(BASE, page(1)).map_err(|error| format!("unmap: {error}"))?;
    let va: VirtAddr = BASE;
    run_in(cpu, &one, move || {
        check_eq!(user::read_u64(va), Err(segv(va)), "after the last unmap");
        Ok(())
    })
}
