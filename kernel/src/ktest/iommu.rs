//! Tests of what devices reach of memory, by QEMU's `edu`, whose transfers are in flight for 100 ms before they touch
//! anything: so what happens meanwhile is certain, unless the host takes the CPU away for so long. A test that needs a
//! transfer in flight is repeated then.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use dax::removal::{Method, RemovalReport, Step};
use iommu::domain::Owner;
use iommu::entry::Rights;
use iommu::fault::Reason;
use mm::account::PinAccount;
use mm::addr::{PAGE_SHIFT, PAGE_SIZE, PageSize, Pfn, PfnRange};
use mm::entry::Prot;
use mm::gup::GupFlags;
use mm::pins::PinnedPages;
use mm::region::{Notice, RegionOwner, Terms, UseError};
use mm::space::Access;

use crate::io::dma::{DmaError, DmaRegion, DmaTarget, FaultRecord, Unasked};
use crate::io::edu::{self, Direction, Edu, EduError};
use crate::io::vtd;
use crate::ktest::fixtures::{
    BASE, Device, at, here, new_space, no_problems, page, read_frame, spawn_in, stamp, wait_until, write_frame,
};
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::mem::machine::{KernelMachine, Space, mm};
use crate::pmem::devices;
use crate::task::sched;

const MIB2: u64 = PageSize::Size2M.bytes();
/// Pages that are mapped.
const PAGES: u64 = 64;
/// Bytes of a transfer.
const BYTES: u64 = 64;
/// Where in the device's buffer.
const PLACE: u64 = 128;
/// How long a transfer is waited for, in nanoseconds.
const BOUND_NS: u64 = edu::PATIENCE_NS;
/// Rounds of a test whose transfer has to be in flight when something happens: a host that is slow in each of them stops for
/// longer than it runs.
const MOST_ROUNDS: u32 = 64;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test { name: "dma.iommu.registered_pages_are_reached", covers: "D1", run: |ctx| with_edu(ctx, reached) },
    Test { name: "dma.iommu.other_addresses_are_blocked", covers: "D1 D4", run: |ctx| with_edu(ctx, blocked) },
    Test { name: "dma.iommu.rights_are_kept", covers: "D1", run: |ctx| with_edu(ctx, rights) },
    Test { name: "dma.iommu.revoked_in_flight", covers: "D2 D3 D4 D5", run: |ctx| with_edu(ctx, revoked_in_flight) },
    Test { name: "dma.iommu.given_back_in_flight", covers: "D2 D3", run: |ctx| with_edu(ctx, given_back_in_flight) },
    Test { name: "dma.iommu.transient_pins_are_waited_for", covers: "D5", run: |ctx| with_edu(ctx, transient) },
    Test { name: "dma.iommu.many_registrations_by_range", covers: "D2 D7", run: |ctx| with_edu(ctx, many) },
    Test { name: "dma.iommu.too_much_is_refused", covers: "", run: |ctx| with_edu(ctx, too_much) },
    Test { name: "dma.iommu.registered_against_a_removal", covers: "D5", run: |ctx| with_edu(ctx, against_a_removal) },
];

/// A task's memory on the first NVDIMM, and who registers it.
struct Rig<'d> {
    device: &'d Device,
    edu: &'static Arc<Edu>,
    space: Arc<Space>,
    account: Arc<PinAccount>,
    owner: Arc<dyn RegionOwner>,
}

fn with_edu(ctx: &mut Ctx, work: impl FnOnce(&Rig<'_>) -> Result<(), String>) -> Result<(), String> {
    let Some(edu) = edu::device() else {
        ctx.skip(vtd::why_none().unwrap_or("there is no edu device that does DMA"));
        return Ok(());
    };
    Device::with(ctx, MIB2, |_, device| {
        let space = new_space("owner")?;
        device.map(&space, BASE, 0, page(PAGES), PageSize::Size4K)?;
        let account = mm().pins.open_account("owner", 1 << 20);
        let owner: Arc<dyn RegionOwner> = Arc::new(|_: &Notice| ());
        work(&Rig { device, edu, space, account, owner })?;
        // Registrations are gone with the test: what tables are left lead to the next one.
        let stats = edu.dma().domain().stats();
        let levels = u64::from(edu.dma().domain().levels().count());
        check!(stats.tables <= 2 * levels, "{} tables are left for {} mappings", stats.tables, stats.mappings);
        Ok(())
    })
}

impl Rig<'_> {
    fn register(&self, first: u64, nr_pages: u64, flags: GupFlags) -> Result<DmaRegion, String> {
        let terms = Terms { flags, grace_ns: 0, account: &self.account };
        let start = at(page(first));
        let region = self.edu.dma().register(&self.space, start, nr_pages, &terms, Arc::downgrade(&self.owner));
        region.map_err(|error| format!("register: {error}"))
    }

    /// Fills the place in the device's buffer from a page, which has to be registered.
    fn fill_buffer(&self, region: &DmaRegion, offset: u64) -> Result<(), String> {
        let done = self.edu.transfer(Direction::ToDevice, (region, offset), PLACE, BYTES);
        done.map_err(|error| format!("to the device: {error}"))
    }

    /// The page's first words.
    fn words(&self, nr: u64) -> u64 {
        read_frame(self.device.pfn(nr))
    }

    fn remove(&self) -> Result<Arc<RemovalReport>, String> {
        let report = devices::remove(0, Method::Ranged).map_err(|error| format!("removal: {error}"))?;
        no_problems(&report)?;
        Ok(report)
    }

    /// Once it has been removed: attaches it, and maps it as it was.
    fn attach_again(&self) -> Result<(), String> {
        devices::attach(0).map_err(|error| format!("attach: {error}"))?;
        // The old mapping is of the file that is gone.
        self.space.unmap(BASE, page(PAGES)).map_err(|error| format!("unmap: {error}"))?;
        self.device.map(&self.space, BASE, 0, page(PAGES), PageSize::Size4K)
    }

    fn last_fault(&self) -> Option<FaultRecord> {
        let mut last = None;
        self.edu.dma().for_each_fault(&mut |record| last = Some(record.clone()));
        last
    }
}

/// Repeats a round, which removes the device and says whether that came while its transfer was in flight.
fn while_in_flight(rig: &Rig<'_>, round: fn(&Rig<'_>) -> Result<bool, String>) -> Result<(), String> {
    for _ in 0..MOST_ROUNDS {
        if round(rig)? {
            return Ok(());
        }
        rig.attach_again()?;
    }
    Err(format!("in none of {MOST_ROUNDS} rounds was the transfer in flight when the device went: nothing is tested"))
}

fn fact(report: &RemovalReport, name: &str) -> Option<u64> {
    report.step(Step::Drain).and_then(|record| record.facts.get(name))
}

/// Scattered pages, mapped to one range: each is reached at its place.
fn reached(rig: &Rig<'_>) -> Result<(), String> {
    for nr in 0..PAGES {
        write_frame(rig.device.pfn(nr), stamp(nr, 1));
    }
    let region = rig.register(0, PAGES, GupFlags::WRITE)?;
    check_eq!(region.len_bytes(), page(PAGES), "bytes of the range");
    for (from, to) in [(3, 40), (63, 0)] {
        rig.fill_buffer(&region, page(from))?;
        let done = rig.edu.transfer(Direction::ToMemory, (&region, page(to)), PLACE, BYTES);
        done.map_err(|error| format!("to memory: {error}"))?;
        check_eq!(rig.words(to), stamp(from, 1), "what page {to} holds");
    }
    check_eq!(rig.words(1), stamp(1, 1), "a page that no transfer was for");
    let walk = rig.edu.dma().domain().walk(region.iova() + page(40));
    let reaches = walk.reaches.map(|(address, ..)| address.pfn());
    check_eq!(reaches, Some(rig.device.pfn(40)), "where the IOMMU leads");
    Ok(())
}

/// The physical address of a page is no address for a device; nor is one behind a registration.
fn blocked(rig: &Rig<'_>) -> Result<(), String> {
    write_frame(rig.device.pfn(0), stamp(0, 2));
    write_frame(rig.device.pfn(1), stamp(1, 2));
    let region = rig.register(0, 1, GupFlags::WRITE)?;
    rig.fill_buffer(&region, 0)?;
    let before = rig.edu.dma().nr_faults();
    let physical = rig.device.pfn(1).addr().as_u64();
    let behind = region.iova() + PAGE_SIZE;
    for (nr, target) in [physical, behind].map(|iova| Unasked { iova, len_bytes: PAGE_SIZE }).iter().enumerate() {
        let transfer = rig.edu.start(Direction::ToMemory, (target, 0), PLACE, BYTES);
        let transfer = transfer.map_err(|error| format!("start: {error}"))?;
        wait_until(|| transfer.is_over());
        // Here is the lie: the device is done, and says nothing.
        check_eq!(rig.words(1), stamp(1, 2), "a page that is not registered");
        let fault = match transfer.wait(BOUND_NS) {
            Err(EduError::Dma(DmaError::Fault(record))) => record,
            other => return Err(format!("a transfer to {:#x} was answered by {other:?}", target.iova)),
        };
        check_eq!(fault.fault.reason, Reason::NotWritable, "why");
        check_eq!(fault.fault.address, target.iova & !(PAGE_SIZE - 1), "where");
        check_eq!(fault.owner, None, "whose");
        check_eq!(rig.edu.dma().nr_faults(), before + 1 + nr as u64, "faults of the device");
    }
    // What is registered works on.
    rig.fill_buffer(&region, 0)
}

/// One page, registered by two: each has its own rights.
fn rights(rig: &Rig<'_>) -> Result<(), String> {
    write_frame(rig.device.pfn(0), stamp(0, 3));
    write_frame(rig.device.pfn(1), stamp(1, 3));
    // To read what is mapped for reading alone, the task maps it so.
    let reader = new_space("reader")?;
    rig.device.map_as(&reader, BASE, 0, page(2), (PageSize::Size4K, Prot::USER_READ))?;
    let terms = Terms { flags: GupFlags::empty(), grace_ns: 0, account: &rig.account };
    let for_reading = rig.edu.dma().register(&reader, BASE, 1, &terms, Arc::downgrade(&rig.owner));
    let for_reading = for_reading.map_err(|error| format!("register: {error}"))?;
    let for_writing = rig.register(0, 2, GupFlags::WRITE)?;
    check!(for_reading.iova() != for_writing.iova(), "two registrations have one range");
    rig.fill_buffer(&for_writing, page(1))?;
    // The driver does not let it come to that.
    match rig.edu.transfer(Direction::ToMemory, (&for_reading, 0), PLACE, BYTES) {
        Err(EduError::Dma(DmaError::Use(UseError::ReadOnly { key }))) => check_eq!(key, for_reading.key(), "whose"),
        other => return Err(format!("a store to what is registered for reading was answered by {other:?}")),
    }
    let refused = rig.edu.transfer(Direction::ToMemory, (&Unasked::of(&for_reading), 0), PLACE, BYTES);
    let Err(EduError::Dma(DmaError::Fault(record))) = refused else {
        return Err(format!("a store to what is registered for reading was answered by {refused:?}"));
    };
    check_eq!(rig.words(0), stamp(0, 3), "the page");
    check_eq!(record.fault.reason, Reason::NotWritable, "why");
    let expected = Owner { tag: for_reading.key(), start: for_reading.iova(), bytes: PAGE_SIZE, revoked: false };
    check_eq!(record.owner, Some(expected), "whose");
    rig.fill_buffer(&for_reading, 0)?;
    let done = rig.edu.transfer(Direction::ToMemory, (&for_writing, page(1)), PLACE, BYTES);
    done.map_err(|error| format!("by the other registration: {error}"))?;
    check_eq!(rig.words(1), stamp(0, 3), "the page that was written");
    Ok(())
}

/// More than the owner may have, than its address space has, or than the device's has: one line, and nothing is registered.
fn too_much(rig: &Rig<'_>) -> Result<(), String> {
    let dma = rig.edu.dma();
    let before = dma.domain().stats();
    let refused = |first, nr_pages| {
        let terms = Terms { flags: GupFlags::WRITE, grace_ns: 0, account: &rig.account };
        let region = dma.register(&rig.space, at(page(first)), nr_pages, &terms, Arc::downgrade(&rig.owner));
        region.err().map(|error| format!("{error}"))
    };
    rig.account.set_limit_pages(3);
    mm().pins.exempt_reserved(false);
    let over = refused(0, 4);
    let allowed = rig.register(0, 3, GupFlags::WRITE).map(drop);
    mm().pins.exempt_reserved(true);
    rig.account.set_limit_pages(1 << 20);
    check_eq!(over.as_deref(), Some("over the owner's pin limit: 4 pages wanted, 0 of 3 used"), "over the limit");
    allowed?;
    check!(refused(PAGES - 1, 2).is_some(), "a page that is not mapped was registered");
    let bits = dma.domain().levels().bits();
    let all = PfnRange::new(Pfn::new(0), 1 << (u32::from(bits) - PAGE_SHIFT)).ok_or("frames")?;
    let error = dma.domain().map(&[all], Rights::READ, 0).err().map(|error| format!("{error}"));
    let line = format!("{} bytes are more than the I/O address space of {bits} bits", 1_u64 << bits);
    check_eq!(error, Some(line), "all of the I/O address space");
    let (now, used) = (dma.domain().stats(), rig.account.used_pages());
    check_eq!(
        (now.mappings, now.mapped, used),
        (before.mappings, before.mapped + 1, 0),
        "(mappings, mapped, pages used)"
    );
    let mut left = 0;
    mm().regions.for_each(&mut |_| left += 1);
    check_eq!(left, 0, "registrations");
    Ok(())
}

/// The device goes while a store to it is in flight: it does not land, and its end is no success.
fn revoked_in_flight(rig: &Rig<'_>) -> Result<(), String> {
    while_in_flight(rig, revoked_once)
}

fn revoked_once(rig: &Rig<'_>) -> Result<bool, String> {
    for nr in 0..PAGES {
        write_frame(rig.device.pfn(nr), stamp(nr, 4));
    }
    let region = rig.register(0, PAGES, GupFlags::WRITE)?;
    let (key, iova) = (region.key(), region.iova());
    rig.fill_buffer(&region, page(7))?;
    let transfer = rig.edu.start(Direction::ToMemory, (&region, page(5)), PLACE, BYTES);
    let transfer = transfer.map_err(|error| format!("start: {error}"))?;
    let report = rig.remove()?;
    if transfer.is_over() {
        return Ok(false);
    }
    check_eq!(fact(&report, "registrations_revoked"), Some(1), "registrations revoked");
    check_eq!(fact(&report, "device_ranges_revoked"), Some(1), "ranges");
    check_eq!(fact(&report, "invalidation_commands"), Some(1), "commands for {PAGES} pages");
    check_eq!(rig.edu.dma().domain().walk(iova + page(5)).reaches, None, "where the IOMMU leads");
    let faults = rig.edu.dma().nr_faults();
    match transfer.wait(BOUND_NS) {
        Err(EduError::Dma(DmaError::Use(UseError::Revoked { key: named }))) => check_eq!(named, key, "registration"),
        other => return Err(format!("a transfer whose registration was revoked was answered by {other:?}")),
    }
    check_eq!(rig.edu.dma().nr_faults(), faults + 1, "faults");
    let record = rig.last_fault().ok_or("no fault is on record")?;
    check_eq!(record.fault.address, iova + page(5), "where");
    check_eq!(record.owner, Some(Owner { tag: key, start: iova, bytes: page(PAGES), revoked: true }), "whose");
    drop(region);
    devices::attach(0).map_err(|error| format!("attach: {error}"))?;
    for nr in 0..PAGES {
        check_eq!(rig.words(nr), stamp(nr, 4), "page {nr} once the device is back");
    }
    Ok(true)
}

/// As before, but its owner gives it back; and a read: what the device has is not what was on the page afterwards.
fn given_back_in_flight(rig: &Rig<'_>) -> Result<(), String> {
    for nr in [0, 1] {
        write_frame(rig.device.pfn(nr), stamp(nr, 5));
    }
    let region = rig.register(0, 1, GupFlags::WRITE)?;
    let other = rig.register(1, 1, GupFlags::WRITE)?;
    rig.fill_buffer(&other, 0)?;
    let reference = Gone(region.reference(), region.iova());
    let transfer = rig.edu.start(Direction::ToDevice, (&reference, 0), PLACE, BYTES);
    let transfer = transfer.map_err(|error| format!("start: {error}"))?;
    drop(region);
    // The page is somebody else's by now.
    write_frame(rig.device.pfn(0), 0xdead);
    match transfer.wait(BOUND_NS) {
        Err(EduError::Dma(DmaError::Use(UseError::GivenBack { .. }))) => {}
        other => return Err(format!("a transfer whose registration was given back was answered by {other:?}")),
    }
    let done = rig.edu.transfer(Direction::ToMemory, (&other, 0), PLACE, BYTES);
    done.map_err(|error| format!("to memory: {error}"))?;
    check!(rig.words(1) != 0xdead, "the device has read a page that was given back");
    Ok(())
}

/// Where a registration was, for who goes on using it.
struct Gone(mm::region::RegionRef<KernelMachine>, u64);

impl DmaTarget for Gone {
    fn iova(&self) -> u64 {
        self.1
    }
    fn len_bytes(&self) -> u64 {
        PAGE_SIZE
    }
    fn check(&self, access: Access) -> Result<(), DmaError> {
        Ok(self.0.check(access)?)
    }
    fn frames(&self) -> &[PfnRange] {
        &[]
    }
}

/// What is pinned for one transfer is waited for: it lands before the device has gone.
fn transient(rig: &Rig<'_>) -> Result<(), String> {
    while_in_flight(rig, waited_for_once)
}

fn waited_for_once(rig: &Rig<'_>) -> Result<bool, String> {
    write_frame(rig.device.pfn(0), stamp(0, 6));
    write_frame(rig.device.pfn(9), 0);
    let region = rig.register(0, 1, GupFlags::WRITE)?;
    rig.fill_buffer(&region, 0)?;
    drop(region);
    let (edu, inside) = (rig.edu, Arc::clone(&rig.space));
    let started = Arc::new(core::sync::atomic::AtomicBool::new(false));
    let says = Arc::clone(&started);
    let task = spawn_in(here(), &rig.space, move || {
        let pins = PinnedPages::pin(&inside, at(page(9)), 1, GupFlags::WRITE).expect("a page that is mapped");
        let pins = edu.dma().map_pins(pins, true).expect("room in the domain");
        let transfer = edu.start(Direction::ToMemory, (&pins, 0), PLACE, BYTES).expect("nobody else uses the engine");
        says.store(true, core::sync::atomic::Ordering::Release);
        transfer.wait(BOUND_NS).expect("a removal waits for it");
        Ok(())
    });
    wait_until(|| started.load(core::sync::atomic::Ordering::Acquire));
    let report = rig.remove()?;
    let is_over = !edu.is_running();
    check_eq!(sched::join(&task), Ok(()), "end of the task");
    check!(is_over, "the device has gone under a transfer");
    let waited_for = fact(&report, "pins_waited_for");
    if waited_for == Some(0) {
        // It had ended before they were counted.
        return Ok(false);
    }
    check_eq!(waited_for, Some(1), "pins that were waited for");
    devices::attach(0).map_err(|error| format!("attach: {error}"))?;
    check_eq!(rig.words(9), stamp(0, 6), "the page once the device is back");
    Ok(true)
}

/// Registrations of every kind of range: each is one range and one command, however many pages it has.
fn many(rig: &Rig<'_>) -> Result<(), String> {
    // Every second page, so that no two are a run.
    let space = new_space("scattered")?;
    for nr in 0..PAGES / 2 {
        rig.device.map(&space, at(page(nr)), page(2 * nr), PAGE_SIZE, PageSize::Size4K)?;
    }
    let terms = Terms { flags: GupFlags::WRITE, grace_ns: 0, account: &rig.account };
    let scattered = rig.edu.dma().register(&space, BASE, PAGES / 2, &terms, Arc::downgrade(&rig.owner));
    let scattered = scattered.map_err(|error| format!("register: {error}"))?;
    let mut regions = alloc::vec![scattered];
    for nr in 0..15 {
        regions.push(rig.register(nr, 1 + nr, GupFlags::WRITE)?);
    }
    let mut ranges: Vec<_> = regions.iter().map(|region| (region.iova(), region.iova() + region.len_bytes())).collect();
    ranges.sort_unstable();
    check!(ranges.is_sorted_by(|one, next| one.1 <= next.0), "ranges overlap: {ranges:x?}");
    check_eq!(regions[0].len_bytes() >> PAGE_SHIFT, PAGES / 2, "pages of one range");
    let report = rig.remove()?;
    check_eq!(fact(&report, "registrations_revoked"), Some(16), "registrations revoked");
    check_eq!(fact(&report, "device_ranges_revoked"), Some(16), "ranges");
    check_eq!(fact(&report, "invalidation_commands"), Some(16), "commands");
    Ok(())
}

/// Registrations come and go on another CPU while the device is removed: none is left, in either list.
fn against_a_removal(rig: &Rig<'_>) -> Result<(), String> {
    const ROUNDS: u64 = 8;
    for round in 0..ROUNDS {
        let (edu, inside, account) = (rig.edu, Arc::clone(&rig.space), Arc::clone(&rig.account));
        let made = Arc::new(core::sync::atomic::AtomicU64::new(0));
        let counts = Arc::clone(&made);
        let cpu = crate::ktest::fixtures::others().iter().next().unwrap_or(here());
        let task = spawn_in(cpu, &rig.space, move || {
            let owner: Arc<dyn RegionOwner> = Arc::new(|_: &Notice| ());
            let terms = Terms { flags: GupFlags::WRITE, grace_ns: 0, account: &account };
            let mut held = Vec::new();
            while let Ok(region) = edu.dma().register(&inside, BASE, 1 + round, &terms, Arc::downgrade(&owner)) {
                counts.fetch_add(1, core::sync::atomic::Ordering::Release);
                held.push(region);
                if held.len() > 4 {
                    drop(held.remove(0));
                }
                sched::yield_now();
            }
            Ok(())
        });
        wait_until(|| made.load(core::sync::atomic::Ordering::Acquire) > 2 + round);
        rig.remove()?;
        check_eq!(sched::join(&task), Ok(()), "end of the task");
        let mut left = 0;
        mm().regions.for_each(&mut |_| left += 1);
        rig.edu.dma().domain().for_each(&mut |_| left += 1);
        check_eq!(left, 0, "registrations and mappings after the removal");
        if round + 1 < ROUNDS {
            rig.attach_again()?;
        }
    }
    Ok(())
}
