//! Traces: the latest events of each CPU, in a kernel that is built for it (cargo's feature `trace`). In any other nothing of
//! this is left, neither code nor memory.
//!
//! Stamps are of the time-stamp counter, as it is: it is the same on all CPUs under QEMU, and `trace.clock.agrees` tests that.

use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::{cpu, percpu as area};
use mm::machine::{CpuId, MAX_CPUS};
use mm::trace::{Event, ForKind, Kind, Mark};
use sched::recorder::Recorder;

use crate::cpu::{percpu, time};

/// Is this kernel built with trace points?
pub const BUILT_IN: bool = cfg!(feature = "trace");

/// Events that are kept of each CPU: 64 KiB.
pub const KEPT: usize = 2048;

/// The kinds that are recorded, a bit each.
static KINDS: AtomicU64 = AtomicU64::new(0);
static RECORDERS: [Recorder<KEPT>; MAX_CPUS] = [const { Recorder::new() }; MAX_CPUS];
/// By CPU, the first event that counts: those before it were cleared away.
static FIRST: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Records these kinds from now on, and no others; see [`Kind::bit`]. Any CPU may have begun an event of the old ones.
pub fn record_only(kinds: u64) {
    KINDS.store(kinds, Ordering::Relaxed);
}

/// The kinds that are recorded.
pub fn recorded() -> u64 {
    KINDS.load(Ordering::Relaxed)
}

/// Records `mark`, if its kind is to be.
#[inline(always)]
pub fn mark(mark: Mark) {
    if BUILT_IN && KINDS.load(Ordering::Relaxed) & mark.kind.bit() != 0 {
        mark.kind.known(Record(mark.arguments));
    }
}

/// To be recorded, with these arguments.
struct Record([u64; 2]);

impl ForKind for Record {
    #[inline(always)]
    fn work<const KIND: u8>(self) {
        record::<KIND>(self.0[0], self.0[1]);
    }
}

/// Out of line, so that a trace point in the fast path is a test and a call; one for each kind, so that nothing but the
/// arguments has to be handed over.
#[inline(never)]
fn record<const KIND: u8>(a: u64, b: u64) {
    let now = cpu::rdtsc();
    // A CPU's number is less than there are recorders. The tag is not 0.
    RECORDERS[area::cpu() % MAX_CPUS].push(u64::from(KIND) + 1, [now, a, b]);
}

/// Forgets what was recorded.
pub fn clear() {
    for (recorder, first) in RECORDERS.iter().zip(&FIRST) {
        first.store(recorder.written(), Ordering::Relaxed);
    }
}

/// How many events there were since the last [`clear`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All of them.
    pub events: u64,
    /// Those that newer ones took the place of.
    pub overwritten: u64,
    /// Those that were lost, since boot: see [`Recorder::push`].
    pub lost: u64,
}

/// The events of one CPU that count, by number: those that are held, and those that there were.
fn of(cpu: CpuId) -> (Range<u64>, Range<u64>) {
    // Read first: what is cleared meanwhile counts once more.
    let first = FIRST[cpu].load(Ordering::Relaxed);
    RECORDERS[cpu].since(first)
}

/// The counts of all CPUs.
pub fn counts() -> Counts {
    let mut counts = Counts::default();
    for cpu in percpu::all() {
        let (held, all) = of(cpu.id());
        counts.events += all.end - all.start;
        counts.overwritten += held.start - all.start;
        counts.lost += RECORDERS[cpu.id()].lost();
    }
    counts
}

/// The latest `most` events of all CPUs, at most [`KEPT`], by their time; those of one CPU that were stamped at the same moment
/// in their order. `None` where there is no memory for them.
pub fn latest(most: usize) -> Option<Vec<Event>> {
    let most = most.min(KEPT);
    let mut events = Vec::new();
    for cpu in percpu::all() {
        let (held, _) = of(cpu.id());
        // So many of each are enough, whoever has the latest ones.
        let start = held.start.max(held.end.saturating_sub(most as u64));
        events.try_reserve((held.end - start) as usize).ok()?;
        let read = |at| {
            let found = RECORDERS[cpu.id()].read(at)?;
            let ([tsc, a, b], kind) = (found.words, Kind::from_number(found.tag.checked_sub(1)?)?);
            Some(Event { ns: time::ns_at(tsc), cpu: cpu.id(), mark: Mark::new(kind, a, b) })
        };
        events.extend((start..held.end).filter_map(read));
    }
    events.sort_by_key(|event| event.ns);
    events.drain(..events.len().saturating_sub(most));
    Some(events)
}
