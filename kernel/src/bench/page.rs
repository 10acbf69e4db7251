//! What one page costs: to touch it for the first time, and to lose it.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mm::addr::PageSize;
use mm::failure::{FailureKind, memory_failure};

use crate::bench::figures::{Bound, Figures, once};
use crate::bench::zap::{in_space, populate};
use crate::ktest::fixtures::{BASE, Device, at, here, new_space, page, run_in, spawn_in, wait_until};
use crate::mem::machine::{Space, mm};
use crate::task::wait::WaitQueue;
use crate::task::{sched, user};

const MIB2: u64 = PageSize::Size2M.bytes();
/// How often, after one time that does not count.
const REPEATS: u64 = 64;

/// Measures single pages of `device`. Last: it leaves lost pages behind.
pub fn run(figures: &mut Figures, device: &Device) -> Result<(), String> {
    first_touch(figures, device)?;
    // What a medium has lost stays lost, so that comes last.
    for (kind, name) in [
        (FailureKind::PreRemove, "memory_failure_before_removal_called"),
        (FailureKind::Media, "memory_failure_called"),
    ] {
        let costs = lose(device, kind)?;
        figures.median(name, costs, Bound::at_most(4000), "6,560");
    }
    Ok(())
}

/// A store to a page that is mapped and absent, beside others that are present: the fault, the page's metadata, its leaf,
/// and the store again.
fn first_touch(figures: &mut Figures, device: &Device) -> Result<(), String> {
    let costs = in_space(device, (MIB2, PageSize::Size4K), |_| {
        let touch = |nr: u64| {
            let (cost, stored) = once(|| user::write_u64(at(page(nr)), nr));
            stored.map(|()| cost).map_err(|signal| format!("page {nr}: {signal}"))
        };
        // The first one makes the table and the block of metadata.
        touch(0)?;
        (1..=REPEATS).map(touch).collect::<Result<Vec<_>, _>>()
    })?;
    figures.median("first_touch_4k", costs, Bound::at_most(600), "");
    Ok(())
}

/// A task that has a space and its pages, and sleeps.
struct Mapper {
    task: Arc<crate::task::tcb::Task>,
    queue: Arc<WaitQueue>,
    stop: Arc<AtomicBool>,
}

impl Mapper {
    fn start(space: &Arc<Space>) -> Self {
        let (queue, stop) = (Arc::new(WaitQueue::new()), Arc::new(AtomicBool::new(false)));
        let asleep = Arc::new(AtomicU64::new(0));
        let (inner_queue, inner_stop, inner_asleep) = (Arc::clone(&queue), Arc::clone(&stop), Arc::clone(&asleep));
        let task = spawn_in(here(), space, move || {
            let read = user::read_u64(BASE);
            inner_asleep.store(1, Ordering::Release);
            inner_queue.wait_until(|| inner_stop.load(Ordering::Acquire));
            read.map(|_| ())
        });
        wait_until(|| asleep.load(Ordering::Acquire) != 0);
        Self { task, queue, stop }
    }

    fn end(self) -> Result<(), String> {
        self.stop.store(true, Ordering::Release);
        self.queue.wake_all();
        sched::join(&self.task).map_err(|signal| format!("the mapper: {signal}"))
    }
}

/// The loss of a page that one task maps, which sleeps; called from another, with an address space of its own.
fn lose(device: &Device, kind: FailureKind) -> Result<Vec<u64>, String> {
    let (space, caller) = (new_space("mapper")?, new_space("caller")?);
    device.map(&space, BASE, 0, MIB2, PageSize::Size4K)?;
    populate(&space, 0, REPEATS + 1)?;
    let (mapper, first) = (Mapper::start(&space), device.pfn(0));
    let costs = run_in(here(), &caller, move || {
        let lose = |nr: u64| {
            let (cost, failed) = once(|| memory_failure(mm(), first.add(nr), kind).map(|failed| failed.users.len()));
            if failed == Ok(1) { Ok(cost) } else { Err(format!("failure of frame {}: {failed:?}", first.add(nr))) }
        };
        lose(REPEATS)?;
        (0..REPEATS).map(lose).collect::<Result<Vec<_>, _>>()
    });
    mapper.end().and(costs)
}
