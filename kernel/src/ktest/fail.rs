//! Tests of failing: each step and each allocation of attach and removal, bad blocks that are kept, machine checks.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use arch::mce::BankError;
use dax::inject::{Fault, Place};
use dax::removal::{Method, Step};
use mm::addr::{PAGE_SHIFT, PAGE_SIZE, PageSize, Pfn, PfnRange};
use mm::failure::{FailureKind, memory_failure};
use mm::ledger::Kind;
use mm::losses::SLOTS;
use mm::space::{Access, FaultError, SigBusCause};
use nvdimm::pmem::area::AREA_PAGES;
use nvdimm::pmem::badblocks::SectorRun;
use nvdimm::pmem::block::{BlockError, SECTOR_BYTES};

use crate::cpu::percpu;
use crate::ktest::fixtures::{BASE, Books, Device, at, new_space, no_problems, page};
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::mem::machine::{Space, mm};
use crate::mem::memory;
use crate::mem::reserve::{self, FAULTS};
use crate::pmem::devices::{self, ATTACH_STEPS};
use crate::pmem::lost;
use crate::task::sched;
use crate::task::tcb::Signal;
use crate::trap::memory_error::{self, Loss, Verdict, judge};

const MIB2: u64 = PageSize::Size2M.bytes();
/// VMAs in each of the two spaces that a removal meets: more than it lists at a time where memory is short.
const VMAS: u64 = 12;
/// More allocations than an attach or a removal makes.
const TOO_MANY: u64 = 10_000;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test { name: "fail.attach.every_step", covers: "A4 A6", run: |ctx| on_free_device(ctx, attach_steps) },
    Test { name: "fail.attach.every_allocation", covers: "A6", run: |ctx| on_free_device(ctx, attach_allocations) },
    Test { name: "fail.remove.every_step", covers: "A6 R5", run: |ctx| on_free_device(ctx, remove_steps) },
    Test { name: "fail.remove.every_allocation", covers: "A6 R5", run: |ctx| on_free_device(ctx, remove_allocations) },
    Test {
        name: "fail.remove.without_any_memory",
        covers: "A6 R5",
        run: |ctx| on_free_device(ctx, remove_without_memory),
    },
    Test { name: "fail.attach.a_name_that_is_taken", covers: "", run: |ctx| Device::with(ctx, MIB2, twice) },
    Test { name: "fail.remove.what_is_not_attached", covers: "", run: not_attached },
    Test { name: "fail.badblocks.outlive_the_device", covers: "P1 P3", run: |ctx| on_free_device(ctx, kept) },
    Test { name: "fail.badblocks.own_area", covers: "M5", run: |ctx| on_free_device(ctx, own_area) },
    Test { name: "fail.poison.outside_every_device", covers: "P4", run: outside },
    Test { name: "fail.mce.verdicts", covers: "P2", run: verdicts },
    Test { name: "fail.mce.every_handler", covers: "P1 P2 P3", run: |ctx| raised_here(ctx, every_handler) },
    Test { name: "fail.mce.more_than_slots", covers: "P1 P2 P3", run: |ctx| raised_here(ctx, more_than_slots) },
];

/// Does `work` where NVDIMM 0 is not in use, and compares the books.
fn on_free_device(ctx: &mut Ctx, work: fn(&mut Ctx) -> Result<(), String>) -> Result<(), String> {
    match devices::slots().first() {
        None => ctx.skip("there is no NVDIMM"),
        Some(_) if devices::block(0).is_ok() => ctx.skip("NVDIMM 0 is in use"),
        Some(_) => {
            if let Err(reason) = devices::check_writable(0) {
                ctx.skip(reason);
                return Ok(());
            }
            let before = Books::now();
            let worked = work(ctx);
            for place in Place::ALL {
                FAULTS.disarm(place);
            }
            worked.and(before.compare())?;
            check_eq!(reserve::used(), 0, "bytes of the reserve that were not given back");
        }
    }
    Ok(())
}

fn arm(place: Place, number: u64) {
    FAULTS.arm(Fault::once(place, number));
}

fn attach() -> Result<(), String> {
    devices::attach_supervised(0, &mut |_| Ok(())).map(drop).map_err(|error| format!("{error}"))
}

fn remove() -> Result<(), String> {
    let report = devices::remove_quietly(0, Method::Ranged).map_err(|error| format!("removal: {error}"))?;
    no_problems(&report)
}

/// A walk through faults, and what it has met.
struct Walk {
    before: Books,
    faults: u64,
    /// What was left over, after which of them.
    leaks: Vec<String>,
}

impl Walk {
    fn new() -> Self {
        Self { before: Books::now(), faults: 0, leaks: Vec::new() }
    }

    fn compare(&mut self, what: &str) {
        self.leaks.extend(self.before.compare().err().map(|error| format!("{what}: {error}")));
    }

    /// After a fault: looks whether the books are as before, and whether the device can be attached and removed.
    fn comes_again(&mut self, what: &str) -> Result<(), String> {
        self.faults += 1;
        self.compare(what);
        attach().map_err(|error| format!("attach after {what}: {error}"))?;
        remove().map_err(|error| format!("removal after {what}: {error}"))?;
        self.compare(&format!("attach and removal after {what}"));
        Ok(())
    }

    /// Says how many there were, and fails where anything was left.
    fn end(self, ctx: &Ctx, what: &str) -> Result<(), String> {
        let Self { faults, leaks, .. } = self;
        ctx.note(format_args!("{what}: {faults} faults injected, {} leaks", leaks.len()));
        crate::console::report!("inject what={} faults={faults} leaks={}", what.replace(' ', "_"), leaks.len());
        check!(faults > 0, "{what}: nothing was injected");
        leaks.into_iter().next().map_or(Ok(()), Err)
    }
}

fn attach_steps(ctx: &mut Ctx) -> Result<(), String> {
    let mut walk = Walk::new();
    for step in 1..=ATTACH_STEPS as u64 {
        arm(Place::Attach, step);
        let error = attach().err().ok_or_else(|| format!("step {step} did not fail"))?;
        check!(error.ends_with("was made to fail"), "step {step}: {error}");
        walk.comes_again(&format!("step {step} of attach"))?;
    }
    walk.end(ctx, "steps of attach")
}

fn attach_allocations(ctx: &mut Ctx) -> Result<(), String> {
    let mut walk = Walk::new();
    for number in 1..TOO_MANY {
        arm(Place::Alloc, number);
        let result = attach();
        if FAULTS.disarm(Place::Alloc) {
            result?;
            remove()?;
            return walk.end(ctx, "allocations of attach");
        }
        check!(result.is_err(), "the attach went on without allocation {number}");
        walk.comes_again(&format!("allocation {number} of attach"))?;
    }
    Err("the attach has no end".into())
}

/// Two spaces with [`VMAS`] mappings each, a page of each installed.
fn load() -> Result<Vec<Arc<Space>>, String> {
    let device = Device { frames: devices::slots()[0].frames };
    let spaces = [new_space("first")?, new_space("second")?];
    for space in &spaces {
        for vma in 0..VMAS {
            // Not side by side, so that neither frames nor tables make one run.
            device.map(space, at(vma * MIB2), page(3 * vma), page(2), PageSize::Size4K)?;
            space.populate(at(vma * MIB2), page(1), Access::Write).map_err(|error| format!("populate: {error:?}"))?;
        }
    }
    Ok(spaces.into())
}

/// Attaches, loads, removes with a fault armed, looks that nothing is left; answers the steps that met a problem.
fn remove_under_load(place: Place, number: u64) -> Result<Vec<Step>, String> {
    attach()?;
    let spaces = load()?;
    arm(place, number);
    let report = devices::remove_quietly(0, Method::Ranged).map_err(|error| format!("removal: {error}"))?;
    check_eq!(report.steps.len(), Step::ALL.len(), "steps done");
    check_eq!(report.users.len() as u64 + report.users_not_named, 2 * VMAS, "extents found");
    for space in &spaces {
        for vma in 0..VMAS {
            check!(space.translate(at(vma * MIB2)).is_none(), "a translation is left");
            let fault = space.handle_fault(at(vma * MIB2), Access::Read);
            check!(matches!(fault, Err(FaultError::SigBus { .. })), "a fault was answered {fault:?}");
        }
    }
    let kept = devices::last_removal(0).map_err(|error| format!("{error}"))?;
    check_eq!(kept.as_ref(), Some(&report), "the report that is kept");
    let problems = report.problems().map(|(step, _)| step).collect();
    Ok(problems)
}

fn remove_steps(ctx: &mut Ctx) -> Result<(), String> {
    let mut walk = Walk::new();
    for step in Step::ALL {
        let problems = remove_under_load(Place::Remove, step.number() as u64)?;
        check_eq!(problems, [step], "steps that met a problem");
        walk.comes_again(&format!("step {step} of removal"))?;
    }
    walk.end(ctx, "steps of removal")
}

fn remove_allocations(ctx: &mut Ctx) -> Result<(), String> {
    let mut walk = Walk::new();
    for number in 1..TOO_MANY {
        let problems = remove_under_load(Place::Alloc, number)?;
        check_eq!(problems, [], "steps that met a problem without allocation {number}");
        if FAULTS.disarm(Place::Alloc) {
            return walk.end(ctx, "allocations of removal");
        }
        check_eq!(reserve::used(), 0, "bytes of the reserve that the report holds");
        walk.comes_again(&format!("allocation {number} of removal"))?;
    }
    Err("the removal has no end".into())
}

/// No allocation of the removal finds memory, and none of the copy of its report: all of both is from the reserve. The
/// report is kept there, and is whole but for names; it goes from there when there is memory, or is in the way.
fn remove_without_memory(ctx: &mut Ctx) -> Result<(), String> {
    let last = || devices::last_removal(0).map_err(|error| format!("{error}"));
    let mut walk = Walk::new();
    for memory_comes_back in [true, false] {
        attach()?;
        let spaces = load()?;
        FAULTS.arm(Fault::from_on(Place::Alloc, 1));
        let report = devices::remove_quietly(0, Method::Ranged).map_err(|error| format!("removal: {error}"))?;
        no_problems(&report)?;
        check_eq!(report.steps.len(), Step::ALL.len(), "steps done");
        check_eq!(report.users.len() as u64 + report.users_not_named, 2 * VMAS, "extents found");
        check_eq!(last()?, Some(Arc::clone(&report)), "the report that is kept");
        check!(reserve::used() > 0, "the report is kept elsewhere than in the reserve");
        let text = format!("{report}");
        check!(Step::ALL.iter().all(|step| text.contains(step.name())), "a step is not in the report: {text}");
        let fault = spaces[1].handle_fault(at(0), Access::Read);
        check!(matches!(fault, Err(FaultError::SigBus { .. })), "a fault was answered {fault:?}");
        drop(spaces);
        if memory_comes_back {
            check!(FAULTS.disarm(Place::Alloc), "the fault was not armed any more");
            attach()?;
            check_eq!(last()?, Some(Arc::clone(&report)), "the report, once there is memory");
        } else {
            check!(attach().is_err(), "an attach went on without memory");
            check!(FAULTS.disarm(Place::Alloc), "the fault was not armed any more");
            check_eq!(last()?, None, "the report, once the reserve is needed for something else");
            attach()?;
        }
        drop(report);
        check_eq!(reserve::used(), 0, "bytes of the reserve that the report holds");
        remove()?;
        walk.comes_again("a removal without any memory")?;
    }
    walk.end(ctx, "removals without any memory")
}

fn twice(_: &mut Ctx, _: &Device) -> Result<(), String> {
    check_eq!(attach(), Err("step check: a device of this name is attached already".into()), "a second attach");
    Ok(())
}

fn not_attached(ctx: &mut Ctx) -> Result<(), String> {
    let beyond = devices::slots().len();
    let error = devices::remove_quietly(beyond, Method::Ranged).map(drop).map_err(|error| format!("{error}"));
    check_eq!(error, Err(format!("there is no NVDIMM {beyond} (there are {beyond})")), "removal of what is not there");
    if beyond == 0 || devices::block(0).is_ok() {
        ctx.note(format_args!("no NVDIMM that is not attached"));
        return Ok(());
    }
    let error = devices::remove_quietly(0, Method::Ranged).map(drop).map_err(|error| format!("{error}"));
    check_eq!(error, Err("no device is attached here".into()), "removal of what is not attached");
    Ok(())
}

/// The first page that the test poisons: its third.
const LOST_PAGE: u64 = 2;

fn kept(_: &mut Ctx) -> Result<(), String> {
    let frames = devices::slots()[0].frames;
    if PfnRange::new(frames.start(), frames.nr_pages()).is_none_or(|range| range.nr_pages() <= AREA_PAGES + 4) {
        return Err("the device is too small for the test".into());
    }
    devices::set_area(0, true)?;
    let worked = kept_in_area();
    let removed = if devices::block(0).is_ok() { remove() } else { Ok(()) };
    worked.and(removed).and(devices::set_area(0, false))
}

fn kept_in_area() -> Result<(), String> {
    let frames = devices::slots()[0].frames;
    let lost = [SectorRun { first: LOST_PAGE * 8, nr_sectors: 8 }];
    let block = |()| devices::block(0).map_err(|error| format!("{error}"));
    let bad = |()| block(()).map(|block| block.bad_blocks());
    attach()?;
    check_eq!(block(())?.nr_sectors(), (frames.nr_pages() - AREA_PAGES) * 8, "sectors beside the area");
    let pfn = frames.start().add(LOST_PAGE);
    memory_failure(mm(), pfn, FailureKind::Media).map_err(|error| format!("{error}"))?;
    lost::keep_bad_blocks(PfnRange::new(pfn, 1).expect("one frame"));
    remove()?;
    attach()?;
    check_eq!(bad(())?, lost, "bad blocks after the next attach");
    let mut page_bytes = [0; PAGE_SIZE as usize];
    let read = block(())?.read(LOST_PAGE * 8, &mut page_bytes);
    check_eq!(read, Err(BlockError::Io { sector: LOST_PAGE * 8 }), "a read of what is lost");
    let space = new_space("bad blocks")?;
    Device { frames }.map(&space, BASE, page(LOST_PAGE), page(1), PageSize::Size4K)?;
    let fault = space.handle_fault(BASE, Access::Read);
    let sigbus = FaultError::SigBus { addr: BASE, len_bytes: PAGE_SIZE, cause: SigBusCause::Poisoned };
    check_eq!(fault, Err(sigbus), "a load from what is lost");
    block(())?.write(LOST_PAGE * 8, &page_bytes).map_err(|error| format!("a full write: {error}"))?;
    check_eq!(space.handle_fault(BASE, Access::Read), Ok(()), "a load after a full write");
    remove()?;
    attach()?;
    check_eq!(bad(())?, [], "bad blocks after a full write and an attach");
    let taken = devices::set_area(0, false);
    check!(
        taken.as_ref().is_err_and(|line| line.ends_with("is attached (remove 0 first)")),
        "dropped while attached: {taken:?}"
    );
    remove()
}

/// A page of the area itself is lost: it belongs to the device, and the list goes to the other copy.
fn own_area(_: &mut Ctx) -> Result<(), String> {
    devices::set_area(0, true)?;
    let worked = own_area_loses();
    let removed = if devices::block(0).is_ok() { remove() } else { Ok(()) };
    worked.and(removed).and(devices::set_area(0, false))
}

fn own_area_loses() -> Result<(), String> {
    let frames = devices::slots()[0].frames;
    // List 1 is in the second copy, whose header is in the ninth page.
    let header = frames.start().add(frames.nr_pages() - AREA_PAGES + 8);
    let area = || devices::block(0).map(|block| block.area()).map_err(|error| format!("{error}"));
    attach()?;
    check_eq!(area()?.map(|area| (area.sequence, area.lost_pages)), Some((1, 0)), "the area");
    let refused = memory_failure(mm(), header, FailureKind::Media).map(drop);
    check!(refused.is_err(), "the area has a page map");
    memory_error::fail(header);
    check_eq!(area()?.map(|area| (area.sequence, area.lost_pages)), Some((2, 1 << 8)), "the area that has lost a page");
    remove()?;
    attach()?;
    check_eq!(area()?.map(|area| (area.sequence, area.lost_pages)), Some((2, 1 << 8)), "the same at the next attach");
    remove()
}

fn outside(_: &mut Ctx) -> Result<(), String> {
    let ram = memory::regions().iter().find(|region| memory::is_ram(region.kind)).ok_or("no RAM")?;
    for pfn in [ram.start >> 12, (1 << 40) - 1, (1 << 52) - 1].map(mm::addr::Pfn::new) {
        let refused = memory_failure(mm(), pfn, FailureKind::Media).map(drop);
        let line = refused.err().map(|error| format!("{error}"));
        check_eq!(line, Some(format!("frame {pfn} belongs to no registered device")), "a frame outside every device");
    }
    check_eq!(mm().ledger.count(Kind::Folios), 0, "folios made by a refusal");
    Ok(())
}

fn verdicts(_: &mut Ctx) -> Result<(), String> {
    const MEMORY: u64 = 0xbd00_0000_0000_00c0;
    let hole = (1 << 51) + 0x3210;
    let good = BankError { bank: 9, status: MEMORY, addr: Some(hole), misc: Some(0x8c), is_restartable: true };
    let judged = |change: fn(&mut BankError)| {
        let mut error = good;
        change(&mut error);
        judge(&error)
    };
    let first = mm::addr::Pfn::new(hole >> 12);
    check_eq!(judge(&good), Verdict::Lost(first, 0), "an error in a page");
    check_eq!(judged(|e| e.misc = None), Verdict::Lost(first, 0), "one of a cache line");
    check_eq!(
        judged(|e| e.addr = Some(u64::MAX)),
        Verdict::Lost(mm::addr::Pfn::new(u64::MAX >> 12), 0),
        "the last one"
    );
    check_eq!(judged(|e| e.misc = Some(0x95)), Verdict::Lost(mm::addr::Pfn::new(1 << 39), 9), "one of 2 MiB");
    check_eq!(judged(|e| e.status &= !(1 << 61)), Verdict::Corrected, "a corrected one");
    let fatal = |verdict, word: &str| match verdict {
        Verdict::Fatal(reason) if reason.contains(word) => Ok(()),
        other => Err(format!("expected a fatal error that says {word:?}, found {other:?}")),
    };
    fatal(judged(|e| e.status |= 1 << 57), "context")?;
    fatal(judged(|e| e.is_restartable = false), "continued")?;
    fatal(judged(|e| e.addr = None), "no address")?;
    fatal(judged(|e| e.addr = Some(32 << 20)), "RAM")
}

fn raised_here(ctx: &mut Ctx, work: fn(&mut Ctx) -> Result<(), String>) -> Result<(), String> {
    if !arch::mce::can_raise() {
        ctx.skip("this machine keeps its machine-check registers to itself");
        return Ok(());
    }
    on_free_device(ctx, work)
}

/// The kernel raises a machine check on each CPU, each for two pages of its own: the handler there notes just that.
fn every_handler(_: &mut Ctx) -> Result<(), String> {
    let first = devices::slots()[0].frames.start().add(LOST_PAGE);
    attach()?;
    memory_error::take_dealt_with();
    for cpu in percpu::online().iter() {
        let pfn = first.add(2 * cpu as u64);
        let raised = Arc::new(AtomicBool::new(false));
        let done = Arc::clone(&raised);
        let raise = sched::spawn("raise", cpu, None, move || {
            let has_raised = arch::mce::raise(pfn.addr().as_u64(), PAGE_SHIFT + 1);
            done.store(has_raised && arch::cpu::irqs_on(), Ordering::Relaxed);
            Ok(())
        });
        check_eq!(sched::join(&raise), Ok(()), "the task that raises it");
        check!(raised.load(Ordering::Relaxed), "CPU {cpu} did not raise a machine check, or has interrupts off");
        let loss = loop {
            match memory_error::take_dealt_with() {
                Some(loss) => break loss,
                None => sched::yield_now(),
            }
        };
        let noted = Loss { first: pfn, nr_pages: 2, cpu, by_kernel: true, joined: false };
        check_eq!(loss, noted, "what the handler noted");
    }
    let lost = SectorRun { first: LOST_PAGE * 8, nr_sectors: 16 * percpu::online().len() as u64 };
    let block = devices::block(0).map_err(|error| format!("{error}"))?;
    check_eq!(block.bad_blocks(), [lost], "what is lost");
    drop(block);
    heal(&[lost])?;
    remove()
}

/// Writes all of what is lost.
fn heal(lost: &[SectorRun]) -> Result<(), String> {
    let block = devices::block(0).map_err(|error| format!("{error}"))?;
    for run in lost {
        let zeroes = alloc::vec![0; (run.nr_sectors * SECTOR_BYTES) as usize];
        block.write(run.first, &zeroes).map_err(|error| format!("a full write: {error}"))?;
    }
    check_eq!(block.bad_blocks(), [], "what is lost after a full write");
    Ok(())
}

/// More machine checks than there are notes come on one CPU before anybody can look at one: those that have a slot are lost
/// page by page, two that touch are one row, and the blocks of the others are lost as a whole. The kernel goes on.
fn more_than_slots(_: &mut Ctx) -> Result<(), String> {
    let frames = devices::slots()[0].frames;
    check!(frames.nr_pages() >= 4 * MIB2 / PAGE_SIZE, "the device is too small for the test");
    let before = memory_error::rows_dealt_with();
    attach()?;
    let first = frames.start().add(LOST_PAGE);
    // Every other page from the third on, and one more beside the last of them; then three in a whole block of 2 MiB.
    let block = Pfn::new(frames.start().as_u64().next_multiple_of(PageSize::Size2M.nr_pages())).add(MIB2 / PAGE_SIZE);
    let mut wanted: Vec<Pfn> = (0..SLOTS as u64).map(|nr| first.add(2 * nr)).collect();
    wanted.push(first.add(2 * SLOTS as u64 - 1));
    wanted.extend([3, 200, 511].map(|nr| block.add(nr)));
    let nr_wanted = wanted.len();
    // On the CPU of the task that deals with them, which cannot run meanwhile.
    let raise = sched::spawn("raise", 0, None, move || {
        let _irq = arch::cpu::IrqSave::new();
        let raised = wanted.iter().filter(|pfn| arch::mce::raise(pfn.addr().as_u64(), PAGE_SHIFT)).count();
        if raised == nr_wanted { Ok(()) } else { Err(Signal::Killed) }
    });
    check_eq!(sched::join(&raise), Ok(()), "the task that raises them");
    // One for each slot, and one block.
    while memory_error::rows_dealt_with() < before + SLOTS as u64 + 1 {
        sched::yield_now();
    }
    let run = |pfn: Pfn, nr_pages: u64| SectorRun {
        first: (pfn.as_u64() - frames.start().as_u64()) * 8,
        nr_sectors: 8 * nr_pages,
    };
    let mut lost: Vec<SectorRun> = (0..SLOTS as u64).map(|nr| run(first.add(2 * nr), 1)).collect();
    if let Some(last) = lost.last_mut() {
        last.nr_sectors += 8;
    }
    lost.push(run(block, MIB2 / PAGE_SIZE));
    let device = devices::block(0).map_err(|error| format!("{error}"))?;
    check_eq!(device.bad_blocks(), lost, "what is lost");
    drop(device);
    heal(&lost)?;
    remove()
}
