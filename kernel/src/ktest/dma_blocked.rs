//! Tests of NVMe reads whose DMA the IOMMU blocks: what the disk says of them, what the driver answers, what becomes of the
//! memory, and what a storm of them costs.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dax::removal::Method;
use iommu::domain::Owner as MappingOwner;
use iommu::fault::Reason;
use iommu::throttle::{PER_WINDOW, WINDOW_NS};
use mm::machine::Machine;
use mm::region::UseError;
use nvme::completion::Status;

use crate::io::dma::{self, DmaError, DmaTarget, Unasked};
use crate::io::nvme::{self as driver, Direction, Disk, IoError};
use crate::ktest::dma::{Owner, compare, compare_either, fill};
use crate::ktest::dma_nvme::{AT_ONCE, in_words, pages, with};
use crate::ktest::fixtures::{Device, here, no_problems, others, page, spawn_in, wait_until};
use crate::ktest::test::{Test, check, check_eq};
use crate::mem::machine::mm;
use crate::pmem::devices;
use crate::task::sched;
use crate::task::tcb::Task;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test { name: "dma.nvme.a_blocked_read_is_no_success", covers: "D3 D4", run: |ctx| with(ctx, no_success) },
    Test { name: "dma.nvme.revoked_in_flight", covers: "D2 D3 D5", run: |ctx| with(ctx, revoked_in_flight) },
    Test { name: "dma.nvme.a_storm_of_faults_is_bounded", covers: "D4 D6", run: |ctx| with(ctx, storm) },
];

/// The disk itself says that all is well, and has moved nothing.
fn no_success(disk: &Disk, device: &Device) -> Result<(), String> {
    const PAGES: u64 = 4;
    const ON_DISK: u64 = 7000;
    let owner = Owner::new(device, PAGES)?;
    let region = owner.register(disk.dma())?;
    fill(device, 0, PAGES, 10);
    disk.transfer(Direction::Write, &region, pages(disk, ON_DISK, PAGES, 0)).map_err(in_words)?;
    fill(device, 0, PAGES, 500);
    let (key, stale) = (region.key(), Unasked::of(&region));
    drop(region);
    let transfer = disk.start(Direction::Read, &stale, pages(disk, ON_DISK, PAGES, 0)).map_err(in_words)?;
    wait_until(|| transfer.device_says().is_some());
    check_eq!(transfer.device_says(), Some(Status::SUCCESS), "what the disk says");
    compare(device, 0, PAGES, 500).map_err(|error| format!("a blocked read has stored: {error}"))?;
    let error = transfer.wait().err();
    let Some(IoError::Dma(DmaError::Fault(record))) = error else {
        return Err(format!("a read that was blocked was answered by {error:?}"));
    };
    check_eq!(record.fault.source, disk.dma().source(), "who");
    check_eq!(record.fault.reason, Reason::NotWritable, "why");
    let range = stale.iova()..stale.iova() + page(PAGES);
    check!(range.contains(&record.fault.address), "{:#x} is not in {range:x?}", record.fault.address);
    let meant = MappingOwner { tag: key, start: range.start, bytes: page(PAGES), revoked: true };
    check_eq!(record.owner, Some(meant), "whose");
    let line = format!("{}", DmaError::Fault(record));
    let whose = format!(", in registration {key} of dma (made at kernel/src/ktest/dma");
    let is_whole = line.starts_with("the device says it is done, but ") && line.ends_with(", which is over");
    check!(is_whole && line.contains(&whose), "the line: {line}");
    // The same read where it is allowed.
    let region = owner.register(disk.dma())?;
    disk.transfer(Direction::Read, &region, pages(disk, ON_DISK, PAGES, 0)).map_err(in_words)?;
    compare(device, 0, PAGES, 10)
}

/// A driver that has heard of nothing, and goes on reading to where a registration was.
struct Stubborn {
    stop: AtomicBool,
    good: AtomicU64,
    failed: AtomicU64,
    /// A read has succeeded after one had failed.
    came_back: AtomicBool,
}

impl Stubborn {
    /// Reads pages of the disk into the target's from `first` on, again and again.
    fn work(&self, disk: &Disk, target: &Unasked, (on_disk, nr_pages, first): (u64, u64, u64)) {
        while !self.stop.load(Ordering::Relaxed) {
            match disk.transfer(Direction::Read, target, pages(disk, on_disk, nr_pages, first)) {
                Ok(()) => {
                    self.good.fetch_add(1, Ordering::Relaxed);
                    if self.failed.load(Ordering::Relaxed) > 0 {
                        self.came_back.store(true, Ordering::Relaxed);
                    }
                }
                Err(_) => _ = self.failed.fetch_add(1, Ordering::Relaxed),
            }
        }
    }
}

/// The device goes while the queue is full of reads to it, and is read to afterwards, too: nothing lands any more.
fn revoked_in_flight(disk: &Disk, device: &Device) -> Result<(), String> {
    const EACH: u64 = 16;
    const PAGES: u64 = AT_ONCE * EACH;
    /// The last ones are the stubborn driver's.
    const LAST: u64 = PAGES - EACH;
    const ON_DISK: u64 = 8000;
    let (new, old, later) = (20_000, 30_000, 40_000);
    let owner = Owner::new(device, PAGES)?;
    let region = owner.register(disk.dma())?;
    fill(device, 0, PAGES, new);
    for nth in 0..AT_ONCE {
        let blocks = pages(disk, ON_DISK + nth * EACH, EACH, nth * EACH);
        disk.transfer(Direction::Write, &region, blocks).map_err(in_words)?;
    }
    fill(device, 0, PAGES, old);
    let (stop, came_back) = (AtomicBool::new(false), AtomicBool::new(false));
    let stubborn = Arc::new(Stubborn { stop, good: AtomicU64::new(0), failed: AtomicU64::new(0), came_back });
    let (itself, target) = (Arc::clone(&stubborn), Unasked::of(&region));
    let task = spawn_in(others().iter().next().unwrap_or(here()), &owner.space, move || {
        let disk = driver::disks().first().expect("the disk of this test");
        itself.work(disk, &target, (ON_DISK + LAST, EACH, LAST));
        Ok(())
    });
    wait_until(|| stubborn.good.load(Ordering::Relaxed) >= 2);
    let worked = (|| {
        let start = |nth| disk.start(Direction::Read, &region, pages(disk, ON_DISK + nth * EACH, EACH, nth * EACH));
        let transfers: Vec<_> = (0..AT_ONCE - 1).map(start).collect::<Result<_, _>>().map_err(in_words)?;
        let report = devices::remove(0, Method::Ranged).map_err(|error| format!("removal: {error}"))?;
        devices::attach(0).map_err(|error| format!("attach: {error}"))?;
        no_problems(&report)?;
        compare_either(device, 0, PAGES, [old, new])?;
        // What lands from here on is seen.
        fill(device, 0, PAGES, later);
        for transfer in transfers {
            match transfer.wait() {
                Err(IoError::Dma(DmaError::Use(UseError::Revoked { key }))) => check_eq!(key, region.key(), "whose"),
                other => return Err(format!("a read whose registration was revoked was answered by {other:?}")),
            }
        }
        let failed = stubborn.failed.load(Ordering::Relaxed);
        wait_until(|| stubborn.failed.load(Ordering::Relaxed) >= failed + 64);
        compare(device, 0, PAGES, later)
    })();
    stubborn.stop.store(true, Ordering::Relaxed);
    check_eq!(sched::join(&task), Ok(()), "end of the stubborn driver");
    worked?;
    check!(!stubborn.came_back.load(Ordering::Relaxed), "a read after the revocation was answered with success");
    compare(device, 0, PAGES, later)
}

/// Looks all the while, from another CPU where there is one, whether each fault is said, or is going to be.
struct Auditor {
    task: Arc<Task>,
    astray: Arc<AtomicU64>,
}

impl Auditor {
    fn start(owner: &Owner, stop: &Arc<AtomicBool>) -> Self {
        let astray = Arc::new(AtomicU64::new(0));
        let (ends, most) = (Arc::clone(stop), Arc::clone(&astray));
        let accounted = || {
            let told = dma::told();
            told.singly + told.as_number + told.unsaid
        };
        let task = spawn_in(others().iter().next().unwrap_or(here()), &owner.space, move || {
            let mut seen = accounted();
            while !ends.load(Ordering::Relaxed) {
                let before = core::mem::replace(&mut seen, accounted());
                most.fetch_max(before.saturating_sub(seen), Ordering::Relaxed);
                sched::yield_now();
            }
            Ok(())
        });
        Self { task, astray }
    }
    /// How many were neither, at most, once it was told to stop.
    fn join(self) -> Result<u64, String> {
        check_eq!(sched::join(&self.task), Ok(()), "end of the auditor");
        Ok(self.astray.load(Ordering::Relaxed))
    }
}

/// Blocked reads, as fast as the driver goes.
fn storm(disk: &Disk, device: &Device) -> Result<(), String> {
    const READS: u64 = 10_000;
    let owner = Owner::new(device, 1)?;
    let region = owner.register(disk.dma())?;
    let stale = Unasked::of(&region);
    drop(region);
    fill(device, 0, 1, 60);
    let faults = || disk.dma().nr_faults();
    let is_over = || !dma::told().masked && dma::told().unsaid == 0;
    // Nothing is left of what was before.
    wait_until(is_over);
    let (before, began_ns, nr_before) = (dma::told(), mm().machine.now_ns(), faults());
    let (turns, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (counts, ends) = (Arc::clone(&turns), Arc::clone(&stop));
    let bystander = spawn_in(here(), &owner.space, move || {
        while !ends.load(Ordering::Relaxed) {
            counts.fetch_add(1, Ordering::Relaxed);
            sched::yield_now();
        }
        Ok(())
    });
    let auditor = Auditor::start(&owner, &stop);
    let blocked = (0..READS / 1000).try_for_each(|round| {
        let turns_before = turns.load(Ordering::Relaxed);
        (0..1000).try_for_each(|_| read_blocked(disk, &stale))?;
        check!(turns.load(Ordering::Relaxed) > turns_before, "thousand {round}: no turn for the bystander");
        Ok(())
    });
    stop.store(true, Ordering::Relaxed);
    check_eq!(sched::join(&bystander), Ok(()), "end of the bystander");
    let astray = auditor.join()?;
    blocked?;
    check_eq!(astray, 0, "faults that were neither said nor unsaid for a while");
    check!(faults() >= nr_before + READS, "{} faults for {READS} reads", faults() - nr_before);
    wait_until(is_over);
    let (after, ns) = (dma::told(), mm().machine.now_ns() - began_ns);
    let told = after.singly - before.singly + after.as_number - before.as_number;
    check_eq!(told, faults() - nr_before, "faults that were told, one by one or as a number");
    let interrupts = after.interrupts - before.interrupts;
    let most = u64::from(PER_WINDOW + 1) * (2 + ns / WINDOW_NS);
    check!((1..=most).contains(&interrupts), "{interrupts} interrupts in {ns} ns, at most {most} are allowed");
    let lines = after.singly - before.singly + after.numbers - before.numbers;
    let most = (dma::LINES_PER_SECOND + 16) * (2 + ns / 1_000_000_000);
    check!(lines <= most, "{lines} lines in {ns} ns, at most {most} are allowed");
    compare(device, 0, 1, 60)?;
    log::info!(target: "dma", "{READS} blocked reads in {ns} ns: {interrupts} interrupts, {lines} lines");
    // Then a single one is told as ever.
    read_blocked(disk, &stale)?;
    wait_until(|| is_over() && dma::told().interrupts > after.interrupts);
    let last = dma::told();
    check_eq!((last.masked, last.as_number), (false, after.as_number), "(masked, told as a number)");
    check!(last.singly > after.singly, "it was not told");
    Ok(())
}

/// A read of one page that has to fail by a fault.
fn read_blocked(disk: &Disk, stale: &Unasked) -> Result<(), String> {
    match disk.transfer(Direction::Read, stale, pages(disk, 9000, 1, 0)) {
        Err(IoError::Dma(DmaError::Fault(_) | DmaError::FaultsLost)) => Ok(()),
        other => Err(format!("a read that was blocked was answered by {other:?}")),
    }
}
