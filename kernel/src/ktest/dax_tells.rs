//! Tests of who is told of a page that is lost.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mm::addr::PageSize;
use mm::pagemap::sectors_of;
use mm::run_set::Run;

use crate::ktest::dax_pages::poisoned;
use crate::ktest::fixtures::{BASE, Device, at, here, new_space, page, spawn_in, wait_until};
use crate::ktest::test::{Ctx, Test, check_eq};
use crate::mem::machine::mm;
use crate::task::tcb::Exit;
use crate::task::{sched, user};
use crate::trap::memory_error;

const MIB2: u64 = PageSize::Size2M.bytes();

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test { name: "dax.failure.tells_who_has_the_page", covers: "P1 M5", run: |ctx| Device::with(ctx, MIB2, tells) },
    Test { name: "dax.failure.tells_of_the_rest_of_a_page", covers: "P1", run: |ctx| Device::with(ctx, MIB2, rest) },
];

/// A page is lost: whoever maps it hears of it without touching it, and without ever having done so; so does who has
/// registered it. Who maps another page does not.
fn tells(_: &mut Ctx, device: &Device) -> Result<(), String> {
    use mm::gup::GupFlags;
    use mm::region::{MemoryRegion, Notice, RegionOwner, Terms};
    let (ready, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    // First and number of the pages that each of them maps at BASE; and whether it touches them before.
    let mut tasks = alloc::vec::Vec::new();
    for (name, (first, nr), touches) in
        [("reader", (0, 8), true), ("mapper", (2, 4), false), ("owner", (3, 2), true), ("other", (4, 4), true)]
    {
        let space = new_space(name)?;
        device.map(&space, BASE, page(first), page(nr), PageSize::Size4K)?;
        let (ready, stop) = (Arc::clone(&ready), Arc::clone(&stop));
        let task = spawn_in(here(), &space, move || {
            if touches {
                user::read_u64(BASE)?;
            }
            ready.fetch_add(1, Ordering::Release);
            while !stop.load(Ordering::Acquire) {
                user::check_signal()?;
                sched::yield_now();
            }
            Ok(())
        });
        tasks.push((task, space));
    }
    wait_until(|| ready.load(Ordering::Acquire) == tasks.len() as u64);
    // The owner keeps its registration and has unmapped the page.
    let owner = &tasks[2].1;
    let account = mm().pins.open_account("owner", 8);
    let listener: Arc<dyn RegionOwner> = Arc::new(|_: &Notice| ());
    let terms = Terms { flags: GupFlags::WRITE, grace_ns: 0, account: &account };
    let region = MemoryRegion::register(owner, BASE, 2, &terms, Arc::downgrade(&listener));
    let region = region.map_err(|error| format!("register: {error}"))?;
    owner.unmap(BASE, page(1)).map_err(|error| format!("unmap: {error}"))?;
    memory_error::fail(device.pfn(3));
    for ((task, _), addr) in tasks.iter().zip([at(page(3)), at(page(1)), BASE]) {
        check_eq!(sched::join(task), Err(poisoned(addr)), "end of {task:?}");
    }
    stop.store(true, Ordering::Release);
    check_eq!(sched::join(&tasks[3].0), Ok(()), "end of who maps other pages");
    drop(region);
    drop(tasks);
    // The same again is no news.
    late(device, 3, Ok(()))
}

/// A page that was lost in part goes altogether: whoever maps it hears of that.
fn rest(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let pfn = device.pfn(5);
    let map = mm().meta.find_map(pfn).ok_or("no page map")?;
    let sectors = sectors_of(pfn, 1).ok_or("no sectors")?;
    map.lose(Run::with_len(sectors.first(), 1).ok_or("no run")?);
    drop(map);
    late(device, 5, Err(poisoned(BASE)))?;
    late(device, 5, Ok(()))
}

/// A task maps page `n` and does not touch it; then the page fails. Is the task's end as expected?
fn late(device: &Device, n: u64, expected: Exit) -> Result<(), String> {
    let space = new_space("late")?;
    device.map(&space, BASE, page(n), page(1), PageSize::Size4K)?;
    let (ready, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (is_ready, has_failed) = (Arc::clone(&ready), Arc::clone(&failed));
    let task = spawn_in(here(), &space, move || {
        is_ready.store(true, Ordering::Release);
        while !has_failed.load(Ordering::Acquire) {
            sched::yield_now();
        }
        user::check_signal()
    });
    wait_until(|| ready.load(Ordering::Acquire));
    memory_error::fail(device.pfn(n));
    failed.store(true, Ordering::Release);
    check_eq!(sched::join(&task), expected, "end of who maps page {n}");
    Ok(())
}
