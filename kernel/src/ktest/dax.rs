//! Tests of removal: idle, by range, frame by frame, under pins, twice; and that a device comes back as it went.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dax::devdax::OpenOptions;
use dax::device::State;
use dax::holder::{Holder, NotifyError, NotifyFlags, Role};
use dax::range::WHOLE;
use dax::removal::{Method, RemovalReport, Step, Waiting};
use dax::slot::SlotError;
use mm::addr::{PAGE_SIZE, PageSize, Pfn, PfnRange};
use mm::entry::Prot;
use mm::gup::{GupError, GupFlags, PageArray, pin_user_pages_fast};
use mm::pagemap::MemoryKind;
use mm::pins::PinnedPages;
use mm::space::{Access, FaultError, MapError, SigBusCause, VmOps};
use spin::Mutex;

use crate::cpu::percpu;
use crate::ktest::fixtures::{
    BASE, Device, Spinners, at, here, new_space, no_problems, others, page, read_frame, run_in, spawn_in, stamp,
    wait_until, write_frame,
};
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::mem::machine::{KernelMachine, Space, mm};
use crate::mem::{layout, paging};
use crate::pmem::devices::{self, DeviceError};
use crate::task::tcb::Signal;
use crate::task::{sched, user};

const MIB2: u64 = PageSize::Size2M.bytes();

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test { name: "dax.removal.idle_does_no_failure_work", covers: "R6", run: |ctx| Device::with(ctx, MIB2, idle) },
    Test { name: "dax.removal.steps_come_in_order", covers: "R1 R5", run: |ctx| Device::with(ctx, MIB2, steps) },
    Test {
        name: "dax.removal.one_round_for_all_spaces",
        covers: "R1 R2",
        run: |ctx| Device::with(ctx, 64 * MIB2, one_round),
    },
    Test {
        name: "dax.removal.work_follows_extents",
        covers: "R2 R4",
        run: |ctx| Device::with(ctx, 2 * MIB2, follows_extents),
    },
    Test { name: "dax.removal.users_get_sigbus", covers: "R7 R10", run: |ctx| Device::with(ctx, 4 * MIB2, sigbus) },
    Test {
        name: "dax.removal.waits_for_a_pin_and_names_it",
        covers: "R5 R12 L7",
        run: |ctx| Device::with(ctx, MIB2, pinned),
    },
    Test { name: "dax.removal.meanwhile_nothing_new", covers: "R12 G4", run: |ctx| Device::with(ctx, MIB2, meanwhile) },
    Test { name: "dax.removal.two_devices_at_once", covers: "R7 R12", run: |ctx| Device::with(ctx, MIB2, two_at_once) },
    Test { name: "dax.removal.happens_once", covers: "R12", run: |ctx| Device::with(ctx, MIB2, once) },
    Test {
        name: "dax.removal.per_frame_has_the_same_effect",
        covers: "R3",
        run: |ctx| Device::with(ctx, 8 * MIB2, baseline),
    },
    Test {
        name: "dax.removal.comes_back_with_its_contents",
        covers: "R10",
        run: |ctx| Device::with(ctx, MIB2, comes_back),
    },
    Test {
        name: "dax.removal.holder_is_told_while_alive",
        covers: "R9 N1 N3",
        run: |ctx| Device::with(ctx, MIB2, holder),
    },
];

/// Removes the device by range; fails where a step met a problem.
fn remove() -> Result<Arc<RemovalReport>, String> {
    let report = devices::remove(0, Method::Ranged).map_err(|error| format!("removal: {error}"))?;
    no_problems(&report)?;
    Ok(report)
}

/// The SIGBUS of an access at `va` to a device that has gone.
fn gone(va: mm::addr::VirtAddr) -> Signal {
    Signal::SigBus { addr: va.align_down(PAGE_SIZE), len_bytes: PAGE_SIZE, cause: SigBusCause::DeviceGone }
}

fn idle(_: &mut Ctx, device: &Device) -> Result<(), String> {
    // Somebody has used it, and has gone.
    let space = new_space("guest")?;
    device.map(&space, BASE, 0, page(4), PageSize::Size4K)?;
    space.populate(BASE, page(4), Access::Write).map_err(|error| format!("populate: {error}"))?;
    drop(space);
    let before = mm().shootdown.stats();
    let report = remove()?;
    check!(report.idle, "the device does not count as idle");
    check_eq!(report.cost.zap, mm::gather::ZapStats::default(), "failure work");
    check_eq!((report.users.len(), report.drained.rounds), (0, 0), "(users, rounds of waiting)");
    // The direct map's shootdown is the only one.
    check_eq!(mm().shootdown.stats().since(before).rounds, 1, "shootdowns");
    Ok(())
}

fn steps(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let space = new_space("user")?;
    device.map(&space, BASE, 0, page(4), PageSize::Size4K)?;
    space.populate(BASE, page(4), Access::Write).map_err(|error| format!("populate: {error}"))?;
    let report = remove()?;
    let done: Vec<Step> = report.steps.iter().map(|record| record.step).collect();
    check_eq!(done, Step::ALL, "steps of the report");
    let fact = |step, name| report.step(step).and_then(|record| record.facts.get(name));
    check_eq!(fact(Step::KillDax, "dax_devices"), Some(1), "DAX devices killed");
    check_eq!(fact(Step::Invalidate, "extents"), Some(1), "extents invalidated");
    check_eq!(fact(Step::Shootdown, "rounds"), Some(1), "rounds of shootdown");
    check_eq!(fact(Step::Drain, "leaves"), Some(4), "leaves given back");
    check_eq!(report.users.first().map(|user| &*user.name), Some("user"), "who mapped it");
    let text = format!("{report}");
    check!(Step::ALL.iter().all(|step| text.contains(step.name())), "a step is not in the report: {text}");
    Ok(())
}

fn one_round(_: &mut Ctx, device: &Device) -> Result<(), String> {
    const SPACES: u64 = 24;
    let spaces = (0..SPACES)
        .map(|n| {
            let space = new_space(&format!("space {n}"))?;
            device.map(&space, BASE, n * MIB2, MIB2, PageSize::Size2M)?;
            device.map(&space, at(MIB2), 0, page(3), PageSize::Size4K)?;
            space.populate(BASE, MIB2 + page(3), Access::Write).map_err(|error| format!("populate: {error}"))?;
            Ok(space)
        })
        .collect::<Result<Vec<_>, String>>()?;
    // Every other CPU has another one of them loaded.
    let spinners: Vec<_> = others()
        .iter()
        .map(|cpu| Spinners::start(mm::machine::CpuMask::single(cpu), &spaces[cpu % spaces.len()], BASE))
        .collect();
    let report = remove();
    spinners.into_iter().try_for_each(Spinners::stop)?;
    let report = report?;
    let zap = report.cost.zap;
    check_eq!((report.nr_spaces(), report.users.len()), (24, 48), "(spaces, mappings) that were found");
    check_eq!(zap.leaves, SPACES * 4, "leaves that were taken away");
    check_eq!((zap.rounds, zap.ipis), (1, u64::from(others().len())), "(rounds, interrupts) for all of them");
    for space in &spaces {
        check_eq!(space.translate(BASE), None, "a leaf of {}", space.name());
    }
    Ok(())
}

fn follows_extents(ctx: &mut Ctx, device: &Device) -> Result<(), String> {
    let space = new_space("extents")?;
    // One page at each end of the device, whatever its size.
    let last = page(device.frames.nr_pages() - 1);
    device.map(&space, BASE, 0, PAGE_SIZE, PageSize::Size4K)?;
    device.map(&space, at(last), last, PAGE_SIZE, PageSize::Size4K)?;
    for va in [BASE, at(last)] {
        space.populate(va, PAGE_SIZE, Access::Write).map_err(|error| format!("populate: {error}"))?;
    }
    let zap = remove()?.cost.zap;
    // Each extent has at most three table pages of its own below the root.
    let most = 2 * (3 * 512 + 4);
    check_eq!((zap.leaves, zap.nr_pages), (2, 2), "(leaves, pages) of two extents");
    check!(zap.entries_visited <= most, "{} entries were visited for two extents", zap.entries_visited);
    ctx.note(format_args!("{} entries for 2 extents of {} frames", zap.entries_visited, device.frames.nr_pages()));
    Ok(())
}

fn sigbus(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let reached = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for cpu in percpu::online().iter() {
        for (n, size) in [PageSize::Size4K, PageSize::Size2M].into_iter().enumerate() {
            let space = new_space(&format!("user {cpu}.{n}"))?;
            device.map(&space, BASE, n as u64 * MIB2, MIB2, size)?;
            let reached = Arc::clone(&reached);
            // An address inside a page: the signal names the page.
            let va = at(page(9) + 40);
            let task = spawn_in(cpu, &space, move || {
                user::write_u64(va, 1)?;
                reached.fetch_add(1, Ordering::Release);
                loop {
                    user::read_u64(va)?;
                    arch::cpu::pause();
                }
            });
            tasks.push((task, gone(va)));
        }
    }
    let (stop, turns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (seen, counted) = (Arc::clone(&stop), Arc::clone(&turns));
    let bystander = spawn_in(here(), &new_space("bystander")?, move || {
        while !seen.load(Ordering::Acquire) {
            counted.fetch_add(1, Ordering::Release);
            sched::yield_now();
        }
        Ok(())
    });
    wait_until(|| reached.load(Ordering::Acquire) == tasks.len() as u64);
    let report = remove()?;
    for (task, expected) in &tasks {
        check_eq!(sched::join(task), Err(*expected), "end of {task:?}");
    }
    let before = turns.load(Ordering::Acquire);
    wait_until(|| turns.load(Ordering::Acquire) > before);
    stop.store(true, Ordering::Release);
    check_eq!(sched::join(&bystander), Ok(()), "end of the task that does not use the device");
    check_eq!(report.users.len(), tasks.len(), "users in the report");
    check!(!paging::is_mapped(layout::direct(device.pfn(0).addr()).as_u64()), "the direct map is still there");
    Ok(())
}

/// A task that keeps pages pinned until it is told to let go.
struct PinHolder {
    task: Arc<crate::task::tcb::Task>,
    release: Arc<AtomicBool>,
    space: Arc<Space>,
}

impl PinHolder {
    /// Maps three pages and pins them, on the last CPU.
    fn start(device: &Device) -> Result<Self, String> {
        let space = new_space("holder")?;
        device.map(&space, BASE, 0, page(8), PageSize::Size4K)?;
        let (ready, release) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (told, until, inner) = (Arc::clone(&ready), Arc::clone(&release), Arc::clone(&space));
        let cpu = percpu::online().iter().last().unwrap_or(0);
        let task = spawn_in(cpu, &space, move || {
            let pins = PinnedPages::pin(&inner, at(page(1)), 3, GupFlags::WRITE);
            told.store(true, Ordering::Release);
            wait_until(|| until.load(Ordering::Acquire));
            pins.map(drop).map_err(|_| Signal::Killed)
        });
        wait_until(|| ready.load(Ordering::Acquire));
        Ok(Self { task, release, space })
    }
}

fn pinned(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let PinHolder { task, release, space } = PinHolder::start(device)?;
    let notices: Mutex<Vec<Waiting>> = Mutex::new(Vec::new());
    let report = devices::remove_watched(0, Method::Ranged, &mut |waiting| {
        notices.lock().push(waiting.clone());
        // Only now: the removal waits, and has said for what.
        release.store(true, Ordering::Release);
    });
    release.store(true, Ordering::Release);
    check_eq!(sched::join(&task), Ok(()), "end of the task that held the pins");
    let report = report.map_err(|error| format!("removal: {error}"))?;
    no_problems(&report)?;
    let notices = notices.lock();
    let first = notices.first().ok_or("the removal did not wait")?;
    check_eq!((first.folios, first.refs, first.pins), (3, 3, 3), "(folios, references, pins) waited for");
    let named: Vec<Pfn> = first.some.iter().map(|folio| folio.head).collect();
    check_eq!(named, [1, 2, 3].map(|n| device.pfn(n)), "pages that the removal names");
    check_eq!(&report.drained.found, first, "what the report says it waited for");
    let pins: Vec<_> = report.drained.pins.iter().map(|pin| (pin.owner.as_str(), pin.nr_pages)).collect();
    check_eq!(pins, [(space.name(), 3)], "(owner, pages) of the pins in the report");
    check!(report.drained.pins[0].place.file().ends_with("ktest/dax.rs"), "the pins' place: {report}");
    let tasks: Vec<_> = report.tasks.iter().map(|found| found.id).collect();
    check_eq!(tasks, [task.id], "tasks in the report");
    let kept = devices::last_removal(0).map_err(|error| format!("{error}"))?;
    check!(kept.is_some_and(|kept| Arc::ptr_eq(&kept, &report)), "the report was not kept");
    check!(format!("{report}").contains("3 of them pins"), "the report does not speak of the pins: {report}");
    check_eq!(space.translate(at(page(1))), None, "the pinned page's leaf");
    Ok(())
}

/// What is tried while a removal waits: every way to something new is closed, every way to let go is open.
fn attempts(space: &Arc<Space>, ops: &Arc<dyn VmOps<KernelMachine>>) -> Result<(), String> {
    let removing = Err(SlotError::Removing);
    let refused = |result: Result<(), DeviceError>| match result {
        Err(DeviceError::DeviceSlot(error)) => Err(error),
        _ => Ok(()),
    };
    check_eq!(refused(devices::remove(0, Method::Ranged).map(drop)), removing, "a second removal");
    check_eq!(refused(devices::file(0).map(drop)), removing, "the file");
    check_eq!(refused(devices::block(0).map(drop)), removing, "the block path");
    check!(devices::attach(0).is_err(), "the device was attached while it goes");
    let mapped = space.map(at(MIB2), page(1), Prot::USER_WRITE, ops, 0);
    check_eq!(mapped, Err(MapError::Refused(SigBusCause::DeviceGone)), "a new mapping");
    let fault = space.handle_fault(at(page(1)), Access::Read);
    let expected = FaultError::SigBus { addr: at(page(1)), len_bytes: PAGE_SIZE, cause: SigBusCause::DeviceGone };
    check_eq!(fault, Err(expected), "a fault on the pinned page");
    let mut frames = [Pfn::new(0); 1];
    let pin = pin_user_pages_fast(space, at(page(1)), 1, GupFlags::WRITE, &mut PageArray::new(&mut frames));
    check_eq!(pin, Err(GupError::SigBus(at(page(1)), SigBusCause::DeviceGone)), "a further pin");
    check!(space.unmap(at(page(7)), page(1)).is_ok(), "an unmap");
    Ok(())
}

fn meanwhile(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let PinHolder { task, release, space } = PinHolder::start(device)?;
    let ops = device.open(PageSize::Size4K)?;
    let dax = Arc::clone(devices::file(0).map_err(|error| format!("{error}"))?.device());
    let mut tried = Err("the removal did not wait".into());
    let removed = devices::remove_watched(0, Method::Ranged, &mut |_| {
        if !release.load(Ordering::Acquire) {
            // On another CPU where there is one, with the space loaded.
            let (inner, ops) = (Arc::clone(&space), Arc::clone(&ops));
            let cpu = others().iter().next().unwrap_or(here());
            tried = run_in(cpu, &space, move || attempts(&inner, &ops));
            release.store(true, Ordering::Release);
        }
    });
    check_eq!(sched::join(&task), Ok(()), "end of the task that held the pins");
    removed.map_err(|error| format!("removal: {error}")).and_then(|report| no_problems(&report))?;
    tried?;
    check_eq!(dax.state(), State::Dead, "state of the device");
    Ok(())
}

fn once(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let space = new_space("user")?;
    device.map(&space, BASE, 0, page(16), PageSize::Size4K)?;
    space.populate(BASE, page(16), Access::Write).map_err(|error| format!("populate: {error}"))?;
    let removed = Arc::new(AtomicU64::new(0));
    let remover = |cpu| {
        let removed = Arc::clone(&removed);
        sched::spawn("remover", cpu, None, move || {
            match devices::remove(0, Method::Ranged) {
                Ok(_) => drop(removed.fetch_add(1, Ordering::Relaxed)),
                Err(DeviceError::DeviceSlot(SlotError::Removing | SlotError::Empty)) => {}
                Err(error) => panic!("a removal that is not the first answers: {error}"),
            }
            Ok(())
        })
    };
    // Two on each CPU.
    let tasks: Vec<_> = percpu::online().iter().chain(percpu::online().iter()).map(remover).collect();
    for task in &tasks {
        check_eq!(sched::join(task), Ok(()), "end of {task:?}");
    }
    check_eq!(removed.load(Ordering::Relaxed), 1, "removals that took place");
    let again = devices::remove(0, Method::Ranged).map(drop);
    check!(matches!(again, Err(DeviceError::DeviceSlot(SlotError::Empty))), "a removal of nothing answers {again:?}");
    Ok(())
}

fn two_at_once(ctx: &mut Ctx, device: &Device) -> Result<(), String> {
    match devices::slots().get(1) {
        None => ctx.skip("there is one device"),
        Some(_) if devices::block(1).is_ok() => ctx.skip("device 1 is in use"),
        Some(_) => {
            devices::attach_as(1, MemoryKind::DevDax).map_err(|error| format!("attach: {error}"))?;
            let worked = remove_both(device);
            let left = devices::remove(1, Method::Ranged);
            worked?;
            check!(matches!(left, Err(DeviceError::DeviceSlot(SlotError::Empty))), "device 1 was left");
        }
    }
    Ok(())
}

fn remove_both(device: &Device) -> Result<(), String> {
    let space = new_space("user of both")?;
    device.map(&space, BASE, 0, page(16), PageSize::Size4K)?;
    let other = devices::file(1).map_err(|error| format!("{error}"))?;
    let other: Arc<dyn VmOps<KernelMachine>> =
        other.open(OpenOptions::default()).map_err(|error| format!("{error}"))?;
    space.map(at(MIB2), page(16), Prot::USER_WRITE, &other, 0).map_err(|error| format!("map: {error}"))?;
    drop(other);
    for va in [BASE, at(MIB2)] {
        space.populate(va, page(16), Access::Write).map_err(|error| format!("populate: {error}"))?;
    }
    // Both begin only when both are there.
    let there = Arc::new(AtomicU64::new(0));
    let mut cpus = percpu::online().iter();
    let removers = [0, 1].map(|slot| {
        let there = Arc::clone(&there);
        let cpu = cpus.next().unwrap_or(here());
        sched::spawn("remover", cpu, None, move || {
            there.fetch_add(1, Ordering::AcqRel);
            wait_until(|| there.load(Ordering::Acquire) == 2);
            let report = devices::remove(slot, Method::Ranged).map_err(|_| Signal::Killed)?;
            match report.users.len() == 1 && report.problems().count() == 0 {
                true => Ok(()),
                false => Err(Signal::Killed),
            }
        })
    });
    for task in &removers {
        check_eq!(sched::join(task), Ok(()), "end of {task:?}");
    }
    for va in [BASE, at(MIB2)] {
        let fault = space.handle_fault(va, Access::Read);
        let gone = FaultError::SigBus { addr: va, len_bytes: PAGE_SIZE, cause: SigBusCause::DeviceGone };
        check_eq!((space.translate(va), fault), (None, Err(gone)), "what is at {va}");
    }
    Ok(())
}

/// What one removal left behind, for comparison.
#[derive(Debug, PartialEq, Eq)]
struct Effect {
    users: Vec<String>,
    leaves: u64,
    nr_pages: u64,
    accesses: Vec<Result<u64, Signal>>,
}

/// Two spaces with pages of both sizes, removed by `method`.
fn effect(device: &Device, method: Method) -> Result<(Effect, u64), String> {
    let spaces = [new_space("one")?, new_space("two")?];
    for space in &spaces {
        device.map(space, BASE, 0, page(16), PageSize::Size4K)?;
        device.map(space, at(MIB2), MIB2, page(8), PageSize::Size4K)?;
        space.populate(BASE, page(16), Access::Write).map_err(|error| format!("populate: {error}"))?;
        space.populate(at(MIB2), page(8), Access::Write).map_err(|error| format!("populate: {error}"))?;
    }
    let report = devices::remove(0, method).map_err(|error| format!("removal: {error}"))?;
    no_problems(&report)?;
    let mut accesses = Vec::new();
    for space in &spaces {
        accesses.extend(run_in(here(), space, || {
            Ok([at(0), at(page(15)), at(MIB2), at(MIB2 + page(7)), at(page(16))].map(user::read_u64))
        })?);
    }
    let users = report.users.iter().map(|user| format!("{} {}", user.name, user.range.start())).collect();
    let (method, rest) = (report.cost.zap, report.rest.zap);
    let (leaves, nr_pages) = (method.leaves + rest.leaves, method.nr_pages + rest.nr_pages);
    Ok((Effect { users, leaves, nr_pages, accesses }, method.rounds))
}

fn baseline(ctx: &mut Ctx, device: &Device) -> Result<(), String> {
    let (ranged, one) = effect(device, Method::Ranged)?;
    devices::attach(0).map_err(|error| format!("attach: {error}"))?;
    let frames = PfnRange::new(device.pfn(0), 2048).ok_or("no frames")?;
    let (per_frame, many) = effect(device, Method::PerFrame(frames))?;
    check_eq!(per_frame, ranged, "the effect frame by frame, against that by range");
    check_eq!(ranged.leaves, 48, "leaves that went");
    // Nobody who maps it is left to ask for 2,024 of the frames; the others take a shootdown each.
    check_eq!((one, many), (1, 24), "shootdowns (by range, frame by frame)");
    ctx.note(format_args!("{one} shootdown by range, {many} frame by frame"));
    Ok(())
}

fn comes_back(_: &mut Ctx, device: &Device) -> Result<(), String> {
    write_frame(device.pfn(3), stamp(3, 1));
    for round in 0..4 {
        let space = new_space("user")?;
        device.map(&space, BASE, 0, page(8), PageSize::Size4K)?;
        run_in(here(), &space, move || {
            check_eq!(user::read_u64(at(page(3))), Ok(stamp(3, round + 1)), "contents in round {round}");
            check_eq!(user::write_u64(at(page(3)), stamp(3, round + 2)), Ok(()), "store in round {round}");
            Ok(())
        })?;
        remove()?;
        let va = at(page(3));
        run_in(here(), &space, move || {
            check_eq!(user::read_u64(va), Err(gone(va)), "access between two attachments");
            Ok(())
        })?;
        devices::attach(0).map_err(|error| format!("attach: {error}"))?;
        // The old mapping is of the device that went: it does not come back to life.
        run_in(here(), &space, move || {
            check_eq!(user::read_u64(va), Err(gone(va)), "access through the old mapping");
            Ok(())
        })?;
    }
    check_eq!(read_frame(device.pfn(3)), stamp(3, 5), "contents at the end");
    Ok(())
}

/// Writes down what it is told, and whether the device worked at that moment.
struct Notebook {
    told: Mutex<Vec<(u64, u64, NotifyFlags, bool)>>,
    device: Arc<dax::device::DaxDevice>,
}

impl Holder for Notebook {
    fn name(&self) -> &str {
        "notebook"
    }
    fn notify_failure(&self, offset: u64, len: u64, flags: NotifyFlags) -> Result<(), NotifyError> {
        let works = self.device.read_lock().is_ok();
        self.told.lock().push((offset, len, flags, works));
        Ok(())
    }
}

fn holder(_: &mut Ctx, _: &Device) -> Result<(), String> {
    let dax = Arc::clone(devices::file(0).map_err(|error| format!("{error}"))?.device());
    let notebook = Arc::new(Notebook { told: Mutex::new(Vec::new()), device: Arc::clone(&dax) });
    let registered = dax.register_holder(Role::Owner, Arc::clone(&notebook) as Arc<dyn Holder>);
    let registered = registered.map_err(|error| format!("register: {error}"))?;
    let report = remove()?;
    let expected = [(0, WHOLE, NotifyFlags::PRE_REMOVE, true)];
    check_eq!(*notebook.told.lock(), expected, "(offset, length, flags, device works) that the holder was told");
    let told = report.kill.as_ref().map_or(0, |kill| kill.answers.len());
    check_eq!(told, 1, "answers in the report");
    check!(dax.read_lock().is_err(), "the device works after its removal");
    // Letting go of a device that has gone is legal.
    drop(registered);
    Ok(())
}
