//! The life of a DAX device: attach, use, tell, kill, let go.
#![cfg(not(loom))]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use dax::device::{DataCache, DaxDevice, DaxError, Live, Registration, State, alloc_dax, check_supported, is_idle};
use dax::holder::{Holder, NotifyError, NotifyFlags, Role};
use dax::kill::{Phase, kill_dax};
use dax::range::WHOLE;
use mm::addr::{Pfn, PfnRange};
use mm::ledger::{Kind, Ledger};
use mm::pagemap::{DevPagemap, MemoryKind};

/// Two ranges, 16 and 8 pages long, given in falling order.
fn map(kind: MemoryKind) -> Arc<DevPagemap> {
    let range = |start, nr| PfnRange::new(Pfn::new(start), nr).unwrap();
    DevPagemap::new(kind, [range(0x9000, 8), range(0x1000, 16)]).unwrap()
}

fn device(ledger: &Arc<Ledger>) -> Live {
    alloc_dax("dax0.0", &map(MemoryKind::DevDax), DataCache::Coherent, ledger).unwrap()
}

fn never() {
    panic!("there is nobody to wait for");
}

/// Offset, length, flags; the device's state meanwhile, and whether it could be read.
type Seen = (u64, u64, NotifyFlags, State, bool);

/// Notes what it is told, and what it saw of the device while it was told.
#[derive(Default)]
struct Witness {
    device: Mutex<Weak<DaxDevice>>,
    seen: Mutex<Vec<Seen>>,
    answer: Option<NotifyError>,
    /// Its own registration, to be dropped while it is told.
    let_go: Mutex<Option<Registration>>,
}

impl Witness {
    fn of(live: &Live) -> Arc<Self> {
        let witness = Self::default();
        *witness.device.lock().unwrap() = Arc::downgrade(live.device());
        Arc::new(witness)
    }
}

impl Holder for Witness {
    fn name(&self) -> &str {
        "witness"
    }
    fn notify_failure(&self, offset: u64, len: u64, flags: NotifyFlags) -> Result<(), NotifyError> {
        let device = self.device.lock().unwrap().upgrade().unwrap();
        let works = device.read_lock().and_then(|live| live.direct_access(0, 4096)).is_ok();
        self.seen.lock().unwrap().push((offset, len, flags, device.state(), works));
        drop(self.let_go.lock().unwrap().take());
        self.answer.map_or(Ok(()), Err)
    }
}

/// A holder without the operation.
struct Mute;
impl Holder for Mute {
    fn name(&self) -> &str {
        "mute"
    }
}

/// covers: A1 A3 A5
#[test]
fn an_aliasing_data_cache_is_refused_at_run_time_but_not_for_device_dax() {
    let ledger = Arc::new(Ledger::new());
    let refused = alloc_dax("pmem0", &map(MemoryKind::FsDax), DataCache::Aliasing, &ledger).unwrap_err();
    assert_eq!(refused, DaxError::NotSupported);
    assert_eq!(refused.to_string(), "not supported: the data cache of this CPU aliases");
    // The same answer before anything is built.
    assert_eq!(check_supported(MemoryKind::FsDax, DataCache::Aliasing), Err(DaxError::NotSupported));
    assert_eq!(ledger.count(Kind::DaxDevices), 0);
    for (kind, cache) in [
        (MemoryKind::DevDax, DataCache::Aliasing),
        (MemoryKind::DevDax, DataCache::Coherent),
        (MemoryKind::FsDax, DataCache::Coherent),
    ] {
        let live = alloc_dax("pmem0", &map(kind), cache, &ledger).unwrap();
        assert_eq!(live.device().state(), State::Alive);
        assert_eq!(ledger.count(Kind::DaxDevices), 1);
    }
    assert_eq!(ledger.count(Kind::DaxDevices), 0);
}

/// covers: R8
#[test]
fn direct_access_runs_through_all_ranges_in_order() {
    let live = device(&Arc::new(Ledger::new()));
    assert_eq!(live.device().size_bytes(), 24 * 4096);
    let guard = live.device().read_lock().unwrap();
    let run = |page: u64, pages: u64| {
        guard.direct_access(page * 4096, pages * 4096).map(|run| (run.start().as_u64(), run.nr_pages()))
    };
    assert_eq!(run(0, 24), Ok((0x1000, 16)));
    assert_eq!(run(15, 2), Ok((0x100f, 1)));
    assert_eq!(run(16, 8), Ok((0x9000, 8)));
    assert_eq!(run(23, 1), Ok((0x9007, 1)));
    assert_eq!(guard.offset_of(Pfn::new(0x9007)), Some(23 * 4096));
    assert_eq!(guard.offset_of(Pfn::new(0x9008)), None);
    let out = Err(DaxError::OutOfRange { size: 24 * 4096 });
    assert_eq!(run(23, 2), out);
    assert_eq!(run(24, 1), out);
    assert_eq!(run(0, 0), out);
    assert_eq!(guard.direct_access(4096, u64::MAX - 4095).map(|_| (0, 0)), out);
    let misaligned = Err(DaxError::Misaligned { required: 4096 });
    assert_eq!(guard.direct_access(1, 4096), misaligned);
    assert_eq!(guard.direct_access(0, WHOLE), misaligned);
}

/// covers: N1
#[test]
fn kill_tells_the_holder_while_alive_then_clears_then_waits_then_forgets() {
    let ledger = Arc::new(Ledger::new());
    let live = device(&ledger);
    let device = Arc::clone(live.device());
    let witness = Witness::of(&live);
    let registration = device.register_holder(Role::Owner, witness.clone()).unwrap();
    // A reader from before, which looks around in every round in which it is waited for.
    let reader = Mutex::new(Some(device.read_lock().unwrap()));
    let phases = Mutex::new(Vec::new());
    let mut observe = |phase, _: &_| phases.lock().unwrap().push((phase, device.state(), device.nr_holders()));
    let mut relax = || {
        assert_eq!(phases.lock().unwrap().last().unwrap().0, Phase::Dead, "waits at the wrong time");
        assert!(device.read_lock().is_err(), "a new reader came in");
        drop(reader.lock().unwrap().take());
    };
    let (dead, report) = kill_dax(live, &mut relax, &mut observe);
    assert_eq!(
        *phases.lock().unwrap(),
        [
            (Phase::Dying, State::Dying, 1),
            (Phase::Told, State::Dying, 1),
            (Phase::Dead, State::Dead, 1),
            (Phase::ReadersGone, State::Dead, 1),
            (Phase::HoldersCleared, State::Dead, 0),
        ]
    );
    assert_eq!(*witness.seen.lock().unwrap(), [(0, WHOLE, NotifyFlags::PRE_REMOVE, State::Dying, true)]);
    assert_eq!((report.readers.readers_found, report.readers.waits, report.holders_cleared), (1, 1, 1));
    assert_eq!(report.answers.len(), 1);
    assert_eq!(report.answers[0].to_string(), "witness: done");
    assert!(reader.lock().unwrap().is_none());
    assert_eq!(ledger.count(Kind::Holders), 0);
    drop((registration, dead));
    assert_eq!(ledger.count(Kind::DaxDevices), 0);
}

/// covers: N2 R9
#[test]
fn answers_of_no_holder_a_mute_one_and_several() {
    let live = device(&Arc::new(Ledger::new()));
    let device = Arc::clone(live.device());
    assert_eq!(device.notify_failure(0, 4096, NotifyFlags::empty()), Ok(vec![]));
    let _mute = device.register_holder(Role::Observer, Arc::new(Mute)).unwrap();
    let mut failing = Witness { answer: Some(NotifyError::Corrupted), ..Witness::default() };
    *failing.device.get_mut().unwrap() = Arc::downgrade(&device);
    let _failing = device.register_holder(Role::Owner, Arc::new(failing)).unwrap();
    let answers = device.notify_failure(4096, 8192, NotifyFlags::ACTION_REQUIRED).unwrap();
    let answers: Vec<_> = answers.iter().map(ToString::to_string).collect();
    assert_eq!(answers, ["mute: not supported", "witness: metadata is corrupt"]);
    // A holder's error is recorded and changes nothing.
    let (_dead, report) = kill_dax(live, &mut never, &mut |_, _| ());
    assert_eq!(report.answers.len(), 2);
    assert_eq!(device.notify_failure(0, 4096, NotifyFlags::empty()), Err(NotifyError::NoSuchDevice));
}

/// covers: N15
#[test]
fn a_second_notification_and_a_late_letting_go_are_legal() {
    let ledger = Arc::new(Ledger::new());
    let live = device(&ledger);
    let device = Arc::clone(live.device());
    let registration = device.register_holder(Role::Owner, Arc::new(Mute)).unwrap();
    let (dead, _) = kill_dax(live, &mut never, &mut |_, _| ());
    assert_eq!(device.notify_failure(0, WHOLE, NotifyFlags::PRE_REMOVE), Err(NotifyError::NoSuchDevice));
    assert_eq!(ledger.count(Kind::Holders), 0);
    assert!(!dead.is_idle());
    drop(registration);
    assert_eq!(ledger.count(Kind::Holders), 0);
    assert!(dead.is_idle());
}

/// covers: N15
#[test]
fn a_holder_may_let_go_while_it_is_told() {
    let ledger = Arc::new(Ledger::new());
    let live = device(&ledger);
    let witness = Witness::of(&live);
    let registration = live.device().register_holder(Role::Owner, witness.clone()).unwrap();
    *witness.let_go.lock().unwrap() = Some(registration);
    let (dead, report) = kill_dax(live, &mut never, &mut |_, _| ());
    assert_eq!((report.answers.len(), report.holders_cleared), (1, 0));
    assert_eq!(ledger.count(Kind::Holders), 0);
    assert!(dead.is_idle());
}

/// covers: R6
#[test]
fn idle_is_a_question_for_the_dead() {
    // `Live` has no `is_idle`; that this does not compile is the doc test in the package's root.
    assert!(is_idle(None), "no DAX device at all counts as idle");
    let (dead, _) = kill_dax(device(&Arc::new(Ledger::new())), &mut never, &mut |_, _| ());
    assert!(is_idle(Some(&dead)));
    let live = device(&Arc::new(Ledger::new()));
    let open = live.device().open().unwrap();
    let (dead, _) = kill_dax(live, &mut never, &mut |_, _| ());
    assert!(!is_idle(Some(&dead)));
    assert_eq!(open.open().unwrap_err(), DaxError::NoSuchDevice);
    drop(open);
    assert!(is_idle(Some(&dead)));
}

#[test]
fn one_owner_and_nobody_new_on_a_dying_device() {
    /// Tries to come in while the device is dying.
    struct Late(Mutex<Weak<DaxDevice>>, Mutex<Vec<DaxError>>);
    impl Holder for Late {
        fn name(&self) -> &str {
            "late"
        }
        fn notify_failure(&self, _: u64, _: u64, _: NotifyFlags) -> Result<(), NotifyError> {
            let device = self.0.lock().unwrap().upgrade().unwrap();
            let mut refused = self.1.lock().unwrap();
            refused.push(device.open().unwrap_err());
            refused.push(device.register_holder(Role::Observer, Arc::new(Mute)).unwrap_err());
            Ok(())
        }
    }
    let ledger = Arc::new(Ledger::new());
    let live = device(&ledger);
    let late = Arc::new(Late(Mutex::new(Arc::downgrade(live.device())), Mutex::default()));
    let _owner = live.device().register_holder(Role::Owner, late.clone()).unwrap();
    let _observer = live.device().register_holder(Role::Observer, Arc::new(Mute)).unwrap();
    assert_eq!(live.device().register_holder(Role::Owner, Arc::new(Mute)).unwrap_err(), DaxError::Busy);
    assert_eq!((live.device().nr_holders(), live.device().nr_users()), (2, 2));
    let device = Arc::clone(live.device());
    drop(live);
    assert_eq!(device.state(), State::Dead, "a driver that drops its handle kills the device");
    assert_eq!(*late.1.lock().unwrap(), [DaxError::NoSuchDevice; 2]);
    assert_eq!(ledger.count(Kind::Holders), 0);
    assert_eq!(ledger.count(Kind::DaxDevices), 0);
}

/// A holder that takes its time to get ready, as a mount does.
/// covers: N1 N14
#[test]
fn a_holder_that_gets_ready_is_told_or_hears_that_it_is_too_late() {
    let ready = AtomicBool::new(false);
    let get_ready = |registration: &Registration| registration.confirm(|| ready.store(true, Ordering::SeqCst));
    let ledger = Arc::new(Ledger::new());
    let live = device(&ledger);
    let early = live.device().register_holder(Role::Owner, Arc::new(Mute)).unwrap();
    assert_eq!(get_ready(&early), Ok(()));
    assert!(ready.swap(false, Ordering::SeqCst));
    let late = live.device().register_holder(Role::Observer, Arc::new(Mute)).unwrap();
    let mut refused = 0;
    let (dead, report) = kill_dax(live, &mut never, &mut |_, _| {
        // In every phase: once the removal has begun it is too late.
        assert_eq!(get_ready(&late), Err(DaxError::NoSuchDevice));
        refused += 1;
    });
    assert_eq!((report.answers.len(), refused), (2, 5));
    assert!(!ready.load(Ordering::SeqCst), "ready, and told before");
    drop((early, late, dead));
    assert_eq!(ledger.count(Kind::Holders), 0);
}
