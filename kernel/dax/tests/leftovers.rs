//! A removal ends, whatever a holder leaves mapped, and whatever it answers.
#![cfg(not(loom))]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::*;
use dax::devdax::OpenOptions;
use dax::holder::{Holder, NotifyError, NotifyFlags, Role};
use dax::removal::{Method, Step, remove};
use mm::addr::{PAGE_SIZE, PageSize, Pfn, PfnRange};
use mm::entry::Prot;
use mm::gup::GupFlags;
use mm::machine::Point;
use mm::pagemap::{DevPagemap, MemoryKind};
use mm::reach::find_leaf;
use mm::space::{Access, FaultError, FaultRequest, FaultTarget, MapError, Mapping, SigBusCause, VmOps};
use testkit::emu::{EmuMachine, Event};

/// A file that a holder lets others map. It asks nobody whether the device lives.
struct Careless {
    mapping: Arc<Mapping<EmuMachine>>,
    map: Arc<DevPagemap>,
}

impl Careless {
    fn over(mm: &Arc<EmuContext>, map: &Arc<DevPagemap>) -> Arc<dyn VmOps<EmuMachine>> {
        Arc::new(Self { mapping: Mapping::new(mm, map), map: map.clone() })
    }
}

impl VmOps<EmuMachine> for Careless {
    fn fault(
        &self,
        request: &FaultRequest,
        install: &mut dyn FnMut(FaultTarget) -> Result<(), FaultError>,
    ) -> Result<(), FaultError> {
        let pfn = self.map.ranges()[0].start().add(request.offset_pages);
        install(FaultTarget { pfn, size: PageSize::Size4K })
    }
    fn mmap(&self, _: u64, _: u64, insert: &mut dyn FnMut()) -> Result<(), MapError> {
        insert();
        Ok(())
    }
    fn mapping(&self) -> &Arc<Mapping<EmuMachine>> {
        &self.mapping
    }
    fn kind(&self) -> MemoryKind {
        self.map.kind()
    }
}

/// A holder that does nothing but answer.
struct Answers(Result<(), NotifyError>);

impl Holder for Answers {
    fn name(&self) -> &str {
        "careless"
    }
    fn notify_failure(&self, _: u64, _: u64, _: NotifyFlags) -> Result<(), NotifyError> {
        self.0
    }
}

/// A wait without end fails the test, by the number of its rounds.
fn bound_waits(emu: &EmuMachine, cpu: usize) {
    emu.at(cpu, Event::Relax, 10_000, || panic!("the removal waits for ever"));
}

/// covers: R5 R10 N14
#[test]
fn what_a_holder_leaves_mapped_is_taken_away_whatever_it_answers() {
    for answer in [Ok(()), Err(NotifyError::Io), Err(NotifyError::NotSupported), Err(NotifyError::Corrupted)] {
        let (emu, mm) = machine(3);
        let attached = attach_one(&mm, 1024);
        let (device, map) = (attached.live.device().clone(), attached.map.clone());
        let held = device.register_holder(Role::Owner, Arc::new(Answers(answer))).unwrap();
        let file = Careless::over(&mm, &map);
        let tasks = [1, 2].map(|cpu| Loaded::new(&mm, cpu, &file, 64));
        (0..8).for_each(|nr| tasks[0].store(page(3 * nr), nr).unwrap());
        bound_waits(&emu, 0);
        let report = emu.on_cpu(0, || remove(&mm, attached.target(), Method::Ranged, &mut Env::default()));
        let fact = |step, name| report.step(step).unwrap().facts.get(name);
        assert_eq!(report.problems().count(), 0, "{report}");
        assert_eq!(fact(Step::Invalidate, "left_by_holders"), Some(1), "the other task has no page: {report}");
        assert_eq!(report.users.iter().map(|user| user.space_id).collect::<Vec<_>>(), [tasks[0].space().id()]);
        assert_eq!(report.cost.zap.leaves, 8);
        assert!(map.is_drained() && find_leaf(&mm, &map).is_none());
        emu.assert_no_stale();
        let gone = FaultError::SigBus { addr: page(3), len_bytes: PAGE_SIZE, cause: SigBusCause::DeviceGone };
        assert_eq!(tasks[0].fetch(page(3)), Err(gone));
        drop(held);
    }
}

/// The holder has let go of the device, and nobody has it open: yet it is not idle.
/// covers: R6 R10
#[test]
fn a_device_that_nobody_holds_and_somebody_maps_is_not_idle() {
    let (emu, mm) = machine(2);
    let attached = attach_one(&mm, 64);
    let task = Loaded::new(&mm, 1, &Careless::over(&mm, &attached.map), 16);
    task.store(page(2), 1).unwrap();
    bound_waits(&emu, 0);
    let report = emu.on_cpu(0, || remove(&mm, attached.target(), Method::Ranged, &mut Env::default()));
    assert!(!report.idle);
    assert_eq!(report.cost.zap.leaves, 1);
    // Its mapping is over a page map that is gone: nothing of its successor, over the same frames, is let in.
    let again = attach_one(&mm, 64);
    let gone = FaultError::SigBus { addr: page(2), len_bytes: PAGE_SIZE, cause: SigBusCause::DeviceGone };
    assert_eq!(task.store(page(2), 1), Err(gone));
    assert_eq!(find_leaf(&mm, &again.map), None);
}

/// A page that somebody holds has its metadata, dying or not. It is not mapped again for all that.
/// covers: R1 R10
#[test]
fn a_page_that_is_held_is_not_mapped_again_once_the_page_map_is_dying() {
    let (_emu, mm) = machine(2);
    let attached = attach_one(&mm, 64);
    let file = Careless::over(&mm, &attached.map);
    let tasks = [0, 1].map(|cpu| Loaded::new(&mm, cpu, &file, 16));
    let pinned = tasks[0].pin(page(2), 1, GupFlags::WRITE).unwrap();
    assert!(mm.meta.kill(&attached.map));
    let gone = FaultError::SigBus { addr: page(2), len_bytes: PAGE_SIZE, cause: SigBusCause::DeviceGone };
    assert_eq!(tasks[1].fetch(page(2)), Err(gone), "a second mapping of a page that is held");
    assert!(tasks[1].pin(page(2), 1, GupFlags::WRITE).is_err());
    unpin(&mm, &pinned);
}

/// The fault has its reference and not yet its leaf when the page map dies: it has the address space locked, and is waited for.
/// covers: R1 R12
#[test]
fn a_careless_fault_that_is_under_way_is_waited_for_where_it_has_the_space_locked() {
    let (emu, mm) = machine(3);
    let attached = attach_one(&mm, 64);
    let map = attached.map.clone();
    let task = Loaded::new(&mm, 1, &Careless::over(&mm, &map), 16);
    let done = Arc::new(AtomicBool::new(false));
    let removal = Arc::new(std::sync::Mutex::new(None));
    bound_waits(&emu, 0);
    // As it makes the table for its leaf, which is the last thing before it.
    emu.at(1, Event::AllocTable, 1, {
        let (emu, mm, removal, done) = (emu.clone(), mm.clone(), removal.clone(), done.clone());
        move || {
            let background = emu.start(0, move || {
                let report = remove(&mm, attached.target(), Method::Ranged, &mut Env::default());
                done.store(true, Ordering::SeqCst);
                report
            });
            *removal.lock().unwrap() = Some(background);
        }
    });
    emu.on_cpu(1, || task.space().handle_fault(page(5), Access::Write)).unwrap();
    assert!(removal.lock().unwrap().is_some(), "the fault makes no table");
    assert!(!done.load(Ordering::SeqCst), "it did not wait for the fault");
    let report = emu.on_cpu(1, || emu.finish(removal.lock().unwrap().take().unwrap()));
    assert_eq!(report.cost.zap.leaves, 1);
    assert!(find_leaf(&mm, &map).is_none() && map.is_drained());
}

/// Between the listing of who maps a file and the look at its address space another mapping of it is made, and a page
/// touched there: too late.
/// covers: R1 R12
#[test]
fn a_careless_mapping_that_comes_behind_the_listing_gets_no_page() {
    let (emu, mm) = machine(2);
    let attached = attach_one(&mm, 64);
    let (map, file) = (attached.map.clone(), Careless::over(&mm, &attached.map));
    let task = Loaded::new(&mm, 1, &file, 16);
    task.store(page(1), 1).unwrap();
    let late = Arc::new(AtomicBool::new(false));
    emu.at(0, Event::At(Point::UsersListed), 2, {
        let (emu, space, late) = (emu.clone(), task.space().clone(), late.clone());
        move || {
            emu.on_cpu(1, || {
                space.map(page(32), 16 * PAGE_SIZE, Prot::USER_WRITE, &file, 0).unwrap();
                late.store(space.handle_fault(page(33), Access::Write).is_err(), Ordering::SeqCst);
            });
        }
    });
    bound_waits(&emu, 0);
    let report = emu.on_cpu(0, || remove(&mm, attached.target(), Method::Ranged, &mut Env::default()));
    assert!(late.load(Ordering::SeqCst), "a page was let in");
    assert_eq!(report.cost.zap.leaves, 1);
    assert!(find_leaf(&mm, &map).is_none());
}

/// The check at the end of step 4 sees what is there, in whatever space, and of this device alone.
#[test]
fn a_leaf_is_found_and_named() {
    let (_emu, mm) = machine(2);
    let (one, other) = (attach_one(&mm, 64), attach(&mm, &[frames(2 * START, 1024)], PageSize::Size2M).unwrap());
    assert_eq!(find_leaf(&mm, &one.map), None);
    let task = Loaded::new(&mm, 1, &other.file(OpenOptions::exactly(PageSize::Size2M)), 1024);
    task.store(page(600), 1).unwrap();
    assert_eq!(find_leaf(&mm, &one.map), None);
    let leaf = find_leaf(&mm, &other.map).unwrap();
    assert_eq!((leaf.space.as_str(), leaf.va, leaf.pfn), ("task1", page(512), Pfn::new(2 * START + 512)));
    assert_eq!((leaf.space_id, leaf.size), (task.space().id(), PageSize::Size2M));
    assert!(leaf.to_string().starts_with("task1 (space "), "{leaf}");
    // A frame in the middle of the leaf is enough.
    let inner = DevPagemap::new(MemoryKind::DevDax, [PfnRange::new(Pfn::new(2 * START + 700), 1).unwrap()]).unwrap();
    assert!(find_leaf(&mm, &inner).is_some());
    drop(task);
    assert_eq!(find_leaf(&mm, &other.map), None);
}
