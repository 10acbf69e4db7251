//! Tests of traces, in the kernel that is built with them: what is recorded, in which order, and what it costs.
//!
//! What they leave in the recorders can be looked at afterwards: `test trace.race.*` in the shell, then `trace show`.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use mm::addr::{PageSize, Pfn};
use mm::gup::{GupFlags, PageArray, pin_user_pages_fast, unpin};
use mm::machine::{CpuId, CpuMask, Machine};
use mm::space::Access;
use mm::trace::{EVERY, Event, Kind, Mark, named};

use crate::cpu::{percpu, time, trace};
use crate::ktest::fixtures::{
    BASE, Device, Spinners, at, here, new_space, other_cpu, others, page, run_in, spawn_in, wait_until,
};
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::mem::machine::{Space, mm};
use crate::task::sched;

const MIB2: u64 = PageSize::Size2M.bytes();

/// The tests of this file; none where nothing is recorded.
pub const TESTS: &[Test] = if trace::BUILT_IN { ALL } else { &[] };

const ALL: &[Test] = &[
    Test { name: "trace.gup.in_order", covers: "T2", run: |ctx| Device::with(ctx, MIB2, gup_in_order) },
    Test { name: "trace.zap.in_order", covers: "T2", run: |ctx| Device::with(ctx, MIB2, zap_in_order) },
    Test { name: "trace.ipi.cause_before_effect", covers: "T2", run: |ctx| Device::with(ctx, MIB2, ipis_in_order) },
    Test { name: "trace.race.gup_against_zap", covers: "T2", run: |ctx| Device::with(ctx, MIB2, gup_against_zap) },
    Test { name: "trace.off.records_nothing", covers: "", run: |ctx| Device::with(ctx, MIB2, off) },
    Test { name: "trace.kinds.only_those_asked_for", covers: "", run: |ctx| Device::with(ctx, MIB2, some_kinds) },
    Test { name: "trace.ring.keeps_the_latest", covers: "", run: latest_are_kept },
    Test { name: "trace.clock.agrees", covers: "", run: clocks_agree },
    Test { name: "trace.cost.of_an_event", covers: "", run: cost_of_an_event },
];

/// What is recorded of these kinds while `work` runs, from a clean slate.
fn recorded(kinds: u64, work: impl FnOnce() -> Result<(), String>) -> Result<Vec<Event>, String> {
    trace::clear();
    trace::record_only(kinds);
    let worked = work();
    trace::record_only(0);
    worked?;
    trace::latest(trace::KEPT).ok_or_else(|| "no memory for the events".into())
}

/// The kinds of the events on `cpu`, in their order.
fn kinds_on(events: &[Event], cpu: CpuId) -> Vec<Kind> {
    events.iter().filter(|event| event.cpu == cpu).map(|event| event.mark.kind).collect()
}

/// A space with one page of the device at [`BASE`].
fn one_page(device: &Device) -> Result<Arc<Space>, String> {
    pages(device, 1)
}

fn pages(device: &Device, nr: u64) -> Result<Arc<Space>, String> {
    let space = new_space("traced")?;
    device.map(&space, BASE, 0, page(nr), PageSize::Size4K)?;
    space.populate(BASE, page(nr), Access::Write).map_err(|error| format!("populate: {error}"))?;
    Ok(space)
}

/// Pins the page at [`BASE`] without a lock and lets go of it; `false` where there is none.
fn pin_once(space: &Space) -> bool {
    let mut frames = [Pfn::new(0)];
    let flags = GupFlags::WRITE | GupFlags::FAST_ONLY;
    let pinned = pin_user_pages_fast(space, BASE, 1, flags, &mut PageArray::new(&mut frames)).is_ok();
    if pinned {
        unpin(mm(), frames[0], 1);
    }
    pinned
}

fn gup_in_order(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let space = one_page(device)?;
    let (inner, cpu) = (Arc::clone(&space), here());
    let kinds = named(["gup", "pin"]).map_err(|word| format!("{word} is no kind"))?;
    let events = recorded(kinds, || {
        run_in(cpu, &space, move || if pin_once(&inner) { Ok(()) } else { Err("the page was not pinned".into()) })
    })?;
    let expected = [Kind::GupBegun, Kind::EntryRead, Kind::RefTaken, Kind::Kept, Kind::GupDone, Kind::Unpinned];
    check_eq!(kinds_on(&events, cpu), expected, "events of one gup and its end");
    let pfn = device.pfn(0).as_u64();
    let arguments: Vec<_> = events.iter().map(|event| event.mark.arguments).collect();
    check_eq!(arguments[0], [BASE.as_u64(), 1], "address, pages");
    check_eq!((arguments[2], arguments[5]), ([pfn, 1], [pfn, 1]), "frames of the reference, and of the unpin");
    check!(events.is_sorted_by_key(|event| event.ns), "stamps of one CPU go back: {events:?}");
    Ok(())
}

fn zap_in_order(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let space = one_page(device)?;
    let cpu = here();
    let events = recorded(named(["zap"]).map_err(String::from)?, || {
        space.unmap(BASE, page(1)).map_err(|error| format!("unmap: {error}")).map(drop)
    })?;
    let kinds = kinds_on(&events, cpu);
    let place = |kind| kinds.iter().position(|found| *found == kind).ok_or_else(|| format!("no {kind:?} in {kinds:?}"));
    // One of a page table that nothing else is in: it is unlinked as a whole, and what it maps is found when it is freed.
    let (begun, done, freed) = (place(Kind::ZapBegun)?, place(Kind::ZapDone)?, place(Kind::TableFreed)?);
    let taken = place(Kind::Unlinked).or_else(|_| place(Kind::Cleared))?;
    check!(begun < taken && taken < done && done < freed, "a table is freed before its time: {kinds:?}");
    Ok(())
}

/// The stamp of the one event of `kind` on `cpu`.
fn stamp_of(events: &[Event], cpu: CpuId, kind: Kind) -> Result<Event, String> {
    let found = events.iter().filter(|event| event.cpu == cpu && event.mark.kind == kind).collect::<Vec<_>>();
    match found[..] {
        [one] => Ok(*one),
        _ => Err(format!("CPU {cpu}: expected one {kind:?}, found {}: {events:?}", found.len())),
    }
}

fn ipis_in_order(ctx: &mut Ctx, device: &Device) -> Result<(), String> {
    if other_cpu(ctx).is_none() {
        return Ok(());
    }
    let (space, cpus, me) = (one_page(device)?, others(), here());
    let spinners = Spinners::start(cpus, &space, BASE);
    let events = recorded(named(["ipi"]).map_err(String::from)?, || {
        space.unmap(BASE, page(1)).map_err(|error| format!("unmap: {error}")).map(drop)
    });
    spinners.stop()?;
    let events = events?;
    let (begun, synced) = (stamp_of(&events, me, Kind::Shootdown)?, stamp_of(&events, me, Kind::Synced)?);
    check_eq!(CpuMask::from_bits(synced.mark.arguments[0]), cpus, "CPUs that were waited for");
    for cpu in cpus.iter() {
        let mut sent = events.iter().filter(|event| event.mark.kind == Kind::Sent);
        let sent =
            sent.find(|event| event.mark.arguments[0] == cpu as u64).ok_or_else(|| format!("none to CPU {cpu}"))?;
        let (received, acked) = (stamp_of(&events, cpu, Kind::Received)?, stamp_of(&events, cpu, Kind::Acknowledged)?);
        let flushed = stamp_of(&events, cpu, Kind::Flushed)?;
        check_eq!((sent.cpu, sent.mark.arguments[1]), (me, received.mark.arguments[0]), "sender and request");
        check_eq!(acked.mark.arguments[0], received.mark.arguments[0], "request that was acknowledged");
        let stamps = [begun.ns, sent.ns, received.ns, flushed.ns, acked.ns, synced.ns];
        check!(stamps.is_sorted(), "CPU {cpu}: begun, sent, received, flushed, acknowledged, synced: {stamps:?}");
    }
    Ok(())
}

/// Of a task between two pins.
const PAUSES: u64 = 500;

/// The others pin a page for as long as they can, and it is taken away meanwhile.
fn gup_against_zap(ctx: &mut Ctx, device: &Device) -> Result<(), String> {
    if other_cpu(ctx).is_none() {
        return Ok(());
    }
    // Of two, so that the other one keeps the table, and this one's leaf is cleared and not unlinked with it.
    let space = pages(device, 2)?;
    let kinds = EVERY & !Kind::Switched.bit();
    let pinned = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    let events = recorded(kinds, || {
        // Two are enough to see, and leave a CPU that has nothing to do with it.
        for cpu in others().iter().take(2) {
            let (inner, pinned) = (Arc::clone(&space), Arc::clone(&pinned));
            tasks.push(spawn_in(cpu, &space, move || {
                while pin_once(&inner) {
                    pinned.fetch_add(1, Ordering::Release);
                    // Fewer of them before the zap, which is what one wants to see.
                    (0..PAUSES).for_each(|_| arch::cpu::pause());
                }
                Ok(())
            }));
        }
        wait_until(|| pinned.load(Ordering::Acquire) > 0);
        let unmapped = space.unmap(BASE, page(1)).map_err(|error| format!("unmap: {error}")).map(drop);
        tasks.iter().try_for_each(|task| sched::join(task).map_err(|signal| format!("a pinning task: {signal}")))?;
        unmapped
    })?;
    let (me, last) =
        (here(), |cpu, kind| events.iter().rev().find(|event| event.cpu == cpu && event.mark.kind == kind));
    let zapped = last(me, Kind::ZapDone).ok_or("the zap was not recorded")?;
    let synced = last(me, Kind::Synced).ok_or("no shootdown was recorded")?;
    let kept = events.iter().filter(|event| event.mark.kind == Kind::Kept && event.cpu != me);
    let late = kept.filter(|event| event.ns > synced.ns).count();
    check_eq!(late, 0, "references that were kept after the shootdown");
    check!(zapped.ns > 0, "the zap has no stamp");
    ctx.note(format_args!("{} pins before the page went, {} events", pinned.load(Ordering::Relaxed), events.len()));
    Ok(())
}

fn off(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let space = one_page(device)?;
    let inner = Arc::clone(&space);
    let events = recorded(0, || {
        run_in(here(), &space, move || {
            check!(pin_once(&inner), "the page was not pinned");
            inner.unmap(BASE, page(1)).map_err(|error| format!("unmap: {error}")).map(drop)
        })
    })?;
    check_eq!(events, [], "events while nothing is recorded");
    check_eq!(trace::counts().events, 0, "events that were counted");
    Ok(())
}

fn some_kinds(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let space = one_page(device)?;
    let inner = Arc::clone(&space);
    let events = recorded(Kind::Kept.bit() | Kind::ZapBegun.bit(), || {
        run_in(here(), &space, move || {
            check!(pin_once(&inner), "the page was not pinned");
            inner.unmap(at(0), page(1)).map_err(|error| format!("unmap: {error}")).map(drop)
        })
    })?;
    let kinds: Vec<_> = events.iter().map(|event| event.mark.kind).collect();
    check_eq!(kinds, [Kind::Kept, Kind::ZapBegun], "events of two kinds");
    Ok(())
}

fn latest_are_kept(_: &mut Ctx) -> Result<(), String> {
    const MORE: u64 = 100;
    let kept = trace::KEPT as u64;
    let events = recorded(Kind::Faulted.bit(), || {
        (0..kept + MORE).for_each(|nr| mm().machine.mark(Mark::new(Kind::Faulted, nr, 0)));
        Ok(())
    })?;
    let numbers: Vec<_> = events.iter().map(|event| event.mark.arguments[0]).collect();
    check!(numbers.iter().copied().eq(MORE..kept + MORE), "not the latest {kept}: {:?}", numbers.first());
    let counts = trace::counts();
    check_eq!((counts.events, counts.overwritten), (kept + MORE, MORE), "events, and overwritten ones");
    trace::clear();
    check_eq!(trace::counts().events, 0, "events after a clear");
    check_eq!(trace::latest(5).map(|events| events.len()), Some(0), "events after a clear");
    Ok(())
}

/// No CPU's clock is behind what another has read before.
fn clocks_agree(ctx: &mut Ctx) -> Result<(), String> {
    const READS: u64 = 20_000;
    let shared = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
    let read = |cpu| {
        let shared = Arc::clone(&shared);
        sched::spawn("clock", cpu, None, move || {
            let (latest, warp) = &*shared;
            for _ in 0..READS {
                // Acquire and AcqRel: what has been read elsewhere was read before.
                let before = latest.load(Ordering::Acquire);
                let now = arch::cpu::rdtsc();
                warp.fetch_max(before.saturating_sub(now), Ordering::Relaxed);
                latest.fetch_max(now, Ordering::AcqRel);
            }
            Ok(())
        })
    };
    let tasks: Vec<_> = percpu::online().iter().map(read).collect();
    tasks.iter().try_for_each(|task| sched::join(task).map_err(|signal| format!("a reader: {signal}")))?;
    check_eq!(shared.1.load(Ordering::Relaxed), 0, "ticks by which a clock was behind another");
    ctx.note(format_args!("{} CPUs, {READS} reads each", tasks.len()));
    Ok(())
}

/// What an event may cost, in instructions.
const EVENT: u64 = 30;

fn cost_of_an_event(ctx: &mut Ctx) -> Result<(), String> {
    const EVENTS: u64 = 1000;
    let cost = |kinds| {
        trace::record_only(kinds);
        let once = || {
            let start = time::cost();
            (0..EVENTS).for_each(|nr| mm().machine.mark(Mark::new(Kind::Faulted, core::hint::black_box(nr), 1)));
            time::cost() - start
        };
        // The least: no interrupt came.
        let least = (0..20).map(|_| once()).min().unwrap_or(0);
        trace::record_only(0);
        least
    };
    let (on, off) = (cost(Kind::Faulted.bit()), cost(0));
    let each = (on.saturating_sub(off) + EVENTS / 2) / EVENTS;
    ctx.note(format_args!("an event: {each} {} more than none, which is {}", time::cost_unit(), off / EVENTS));
    check!(!time::is_deterministic() || each <= EVENT, "{each} instructions for an event; expected at most {EVENT}");
    trace::clear();
    Ok(())
}
