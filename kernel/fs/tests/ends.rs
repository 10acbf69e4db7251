//! A removal ends, and leaves nothing: random holders that answer early, late, wrongly or not at all, that mount, unmount,
//! fault and pin, at every point of a removal at which anybody else may act.
//!
//! In a debug build the removal itself looks, at the end of step 4, whether a page table leads to the device. A removal
//! that waits for ever is found by the number of its rounds of waiting after all that it may wait for has been given back.
//! Some thousands of steps; `UNPLUG_FULL=1`: a million.

mod rig;
mod strays;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use dax::device::{DaxDevice, Registration};
use dax::holder::{Holder, NotifyError, NotifyFlags, Role};
use dax::kill::{KillReport, Phase};
use dax::removal::{Method, Problem, RemovalWatch, Step, StepRecord, Target, Waiting, remove};
use fs::error::FsError;
use fs::freeze::FreezeHolder;
use fs::mounted::{Mounted, Source};
use fs::pmem::Pmem;
use mm::addr::{PAGE_SIZE, PfnRange};
use mm::entry::Prot;
use mm::gup::GupFlags;
use mm::machine::Point;
use mm::pagemap::{DevPagemap, MapState};
use mm::reach::find_leaf;
use mm::space::{Access, VmOps};
use proptest::prelude::*;
use proptest::test_runner::{FailurePersistence, FileFailurePersistence, TestRunner};
use rig::*;
use strays::*;
use testkit::emu::{Background, EmuMachine, Event};
use testkit::removal::NoDriver;
use testkit::sim::SimPmem;

/// The CPU of a mount that takes its time.
const MOUNTER: usize = 3;
/// Rounds of waiting that a removal may need once nobody holds anything that it waits for.
const ROUNDS: u64 = 2_000;

/// A holder of which nothing is to be expected.
struct Stray {
    rig: Weak<Rig>,
    answer: usize,
    ready: AtomicBool,
    /// Told when it was ready, or not.
    told: Mutex<Option<bool>>,
}

impl Holder for Stray {
    fn name(&self) -> &str {
        "stray"
    }
    fn notify_failure(&self, _: u64, _: u64, flags: NotifyFlags) -> Result<(), NotifyError> {
        if flags.contains(NotifyFlags::PRE_REMOVE) {
            *self.told.lock().unwrap() = Some(self.ready.load(Ordering::SeqCst));
        }
        // It takes its time, in which others act.
        if let Some(rig) = self.rig.upgrade() {
            (0..self.answer).for_each(|_| rig.tick());
        }
        match self.answer {
            0 => Ok(()),
            1 => Err(NotifyError::Io),
            2 => Err(NotifyError::NotSupported),
            3 => Err(NotifyError::NoSuchAddress),
            _ => Err(NotifyError::Corrupted),
        }
    }
}

type Mounting = (Arc<AtomicBool>, Background<Result<Arc<Fs>, FsError>>);

struct Rig {
    emu: EmuMachine,
    mm: Arc<EmuContext>,
    map: Arc<DevPagemap>,
    dax: Arc<DaxDevice>,
    sim: Arc<SimPmem>,
    kernel: Arc<Kernel>,
    tasks: Vec<Task>,
    files: [Arc<dyn VmOps<EmuMachine>>; 2],
    mounts: Mutex<Vec<Arc<Fs>>>,
    mounting: Mutex<Option<Mounting>>,
    pins: Mutex<Vec<Vec<PfnRange>>>,
    strays: Mutex<Vec<(Registration, Arc<Stray>)>>,
    /// What is still to be done, each at so many points after the one before it.
    schedule: Mutex<VecDeque<(u8, Op)>>,
    /// An operation is under way: none comes in the middle of it.
    busy: AtomicBool,
    /// The holders are being told: the file system may be frozen, or be about to be.
    telling: AtomicBool,
    rounds: AtomicU64,
    steps: AtomicU64,
}

/// A medium with the file on it.
fn image() -> Arc<SimPmem> {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = IMAGE.get_or_init(|| {
        let (_emu, mm) = rig(1);
        let device = Device::new(&mm, "pmem0", START, DEVICE_PAGES);
        let fs = device.mount().unwrap();
        let file = fs.create(&cx(), "a", true).unwrap();
        fs.write(&cx(), &file, 0, &[1; (FILE_PAGES * PAGE_SIZE) as usize]).unwrap();
        drop(file);
        fs.unmount(&cx()).unwrap();
        device.sim.bytes()
    });
    Arc::new(SimPmem::from_bytes(bytes.clone()))
}

impl Rig {
    fn make(emu: &EmuMachine, mm: &Arc<EmuContext>, device: &Device, schedule: &[(u8, Op)]) -> Arc<Self> {
        let dax = device.live.device().clone();
        Arc::new(Self {
            emu: emu.clone(),
            mm: mm.clone(),
            map: device.map.clone(),
            sim: device.sim.clone(),
            kernel: device.kernel.clone(),
            tasks: (0..TASKS).map(|nr| Task::new(mm, nr + 1)).collect(),
            files: [false, true].map(|careful| StrayFile::over(mm, &dax, careful)),
            dax,
            mounts: Mutex::default(),
            mounting: Mutex::default(),
            pins: Mutex::default(),
            strays: Mutex::default(),
            schedule: Mutex::new(schedule.iter().cloned().collect()),
            busy: AtomicBool::new(false),
            telling: AtomicBool::new(false),
            rounds: AtomicU64::new(0),
            steps: AtomicU64::new(0),
        })
    }

    fn source(&self, pmem: Arc<dyn Pmem>) -> Source<EmuMachine> {
        Source {
            name: "pmem0".into(),
            device: self.dax.clone(),
            part: None,
            pmem,
            log: None,
            host: self.kernel.clone(),
            freeze_timeout_ns: 60,
            first_complaint_ns: u64::MAX,
        }
    }

    /// The latest file system; `None` too where an operation on it would wait for a thaw, perhaps that of the removal.
    fn fs(&self) -> Option<Arc<Fs>> {
        let fs = self.mounts.lock().unwrap().last().cloned()?;
        (!self.telling.load(Ordering::SeqCst) && fs.freeze_holders() == (0, 0)).then_some(fs)
    }

    /// A point at which others may act.
    fn tick(&self) {
        if self.busy.swap(true, Ordering::SeqCst) {
            return;
        }
        loop {
            let due = {
                let mut schedule = self.schedule.lock().unwrap();
                match schedule.front_mut() {
                    Some((0, _)) => schedule.pop_front(),
                    Some((left, _)) => {
                        *left -= 1;
                        None
                    }
                    None => None,
                }
            };
            let Some((_, op)) = due else { break };
            self.apply(&op);
        }
        self.busy.store(false, Ordering::SeqCst);
    }

    /// The removal waits. Once all is done that was to be done, nobody holds anything any more.
    fn waits(&self) {
        self.tick();
        let rounds = self.rounds.fetch_add(1, Ordering::SeqCst);
        if self.schedule.lock().unwrap().is_empty() || rounds > ROUNDS {
            self.give_back();
        }
        assert!(rounds <= 2 * ROUNDS, "the removal waits for ever");
    }

    /// Everything that a removal waits for.
    fn give_back(&self) {
        let mounting = self.mounting.lock().unwrap().take();
        if let Some(mounting) = mounting {
            self.finish(mounting);
        }
        let pins = core::mem::take(&mut *self.pins.lock().unwrap());
        pins.iter().for_each(|runs| self.emu.on_cpu(1, || unpin(&self.mm, runs)));
    }

    fn finish(&self, (go_on, mounting): Mounting) {
        go_on.store(true, Ordering::SeqCst);
        if let Ok(fs) = self.emu.finish(mounting) {
            self.mounts.lock().unwrap().push(fs);
        }
    }

    fn apply(&self, op: &Op) {
        self.steps.fetch_add(1, Ordering::SeqCst);
        match *op {
            Op::Mount => {
                let mounted = self.emu.on_cpu(1, || Mounted::mount(&self.mm, self.source(self.sim.clone())));
                self.mounts.lock().unwrap().extend(mounted);
            }
            Op::MountSlowly => self.mount_slowly(),
            Op::GoOn => {
                let mounting = self.mounting.lock().unwrap().take();
                mounting.into_iter().for_each(|mounting| self.finish(mounting));
            }
            Op::Unmount => {
                if let Some(fs) = self.fs() {
                    // Busy, more often than not.
                    _ = self.emu.on_cpu(1, || fs.unmount(&cx()));
                }
            }
            Op::Map { task, at } => {
                let open = self.fs().and_then(|fs| self.emu.on_cpu(1, || fs.open(&cx(), "a")).ok());
                if let Some(file) = open {
                    self.map(task, at, &file.ops());
                }
            }
            Op::MapStray { task, at, careful } => self.map(task, at, &self.files[usize::from(careful)]),
            Op::Unmap { task, at } => {
                let space = &self.tasks[task].space;
                let len = FILE_PAGES * PAGE_SIZE;
                self.emu.on_cpu(task + 1, || space.unmap(page(at * FILE_PAGES), len)).unwrap();
                if let Some(fs) = self.fs() {
                    self.emu.on_cpu(1, || fs.reap(&cx()));
                }
            }
            Op::Fault { task, page: nr, write } => {
                let access = if write { Access::Write } else { Access::Read };
                // Whatever comes of it: while the file system is frozen, nothing.
                _ = self.emu.on_cpu(task + 1, || self.tasks[task].space.handle_fault(page(nr), access));
            }
            Op::Pin { task, page, nr } => self.pin(task, page, nr),
            Op::Unpin { which } => {
                let mut pins = self.pins.lock().unwrap();
                if !pins.is_empty() {
                    let at = which % pins.len();
                    let runs = pins.swap_remove(at);
                    drop(pins);
                    self.emu.on_cpu(1, || unpin(&self.mm, &runs));
                }
            }
            Op::Freeze => {
                if let Some(fs) = self.fs() {
                    _ = self.emu.on_cpu(1, || fs.freeze(FreezeHolder::User));
                }
            }
            Op::Thaw => self.thaw(),
            Op::Register { .. } | Op::GetReady { .. } | Op::LetGo { .. } => self.hold(op),
            Op::Told => {
                let told = self.dax.notify_failure(DEVICE_PAGES * PAGE_SIZE, 1, NotifyFlags::empty());
                assert_eq!(told.is_err(), self.dax.read_lock().is_err());
            }
        }
    }

    fn thaw(&self) {
        let fs = self.mounts.lock().unwrap().last().cloned();
        if let Some(fs) = fs.filter(|_| !self.telling.load(Ordering::SeqCst)) {
            _ = self.emu.on_cpu(1, || fs.thaw(FreezeHolder::User));
        }
    }

    fn mount_slowly(&self) {
        let mut mounting = self.mounting.lock().unwrap();
        if mounting.is_none() {
            let go_on = Arc::new(AtomicBool::new(false));
            let slow = Slow { sim: self.sim.clone(), emu: self.emu.clone(), go_on: go_on.clone() };
            let (mm, source) = (self.mm.clone(), self.source(Arc::new(slow)));
            let background = self.emu.start(MOUNTER, move || Mounted::mount(&mm, source));
            *mounting = Some((go_on, background));
        }
    }

    fn map(&self, task: usize, at: u64, file: &Arc<dyn VmOps<EmuMachine>>) {
        let (space, len) = (&self.tasks[task].space, FILE_PAGES * PAGE_SIZE);
        // Occupied, or the device is gone.
        _ = self.emu.on_cpu(task + 1, || space.map(page(at * FILE_PAGES), len, Prot::USER_WRITE, file, 0));
    }

    fn pin(&self, task: usize, nr: u64, nr_pages: u64) {
        // A pin comes again and again while faults are turned away.
        if self.telling.load(Ordering::SeqCst)
            || self.mounts.lock().unwrap().iter().any(|fs| fs.freeze_holders() != (0, 0))
        {
            return;
        }
        if let Ok(runs) = self.tasks[task].pin(nr, nr_pages, GupFlags::WRITE) {
            self.pins.lock().unwrap().push(runs);
        }
    }

    fn hold(&self, op: &Op) {
        let mut strays = self.strays.lock().unwrap();
        match *op {
            Op::Register { answer, ready } => {
                let rig = self.this();
                let stray = Arc::new(Stray { rig, answer, ready: AtomicBool::new(false), told: Mutex::default() });
                if let Ok(registration) = self.dax.register_holder(Role::Observer, stray.clone()) {
                    if ready {
                        registration.confirm(|| stray.ready.store(true, Ordering::SeqCst)).unwrap();
                    }
                    strays.push((registration, stray));
                }
            }
            Op::GetReady { which } if !strays.is_empty() => {
                let (registration, stray) = &strays[which % strays.len()];
                let told = *stray.told.lock().unwrap();
                let confirmed = registration.confirm(|| stray.ready.store(true, Ordering::SeqCst));
                assert!(confirmed.is_err() || told.is_none(), "ready after it was told");
            }
            Op::LetGo { which } if !strays.is_empty() => {
                let at = which % strays.len();
                let gone = strays.swap_remove(at);
                drop(strays);
                drop(gone);
            }
            _ => {}
        }
    }

    fn this(&self) -> Weak<Self> {
        RIG.with_borrow(Clone::clone)
    }
}

thread_local! {
    /// The rig of the case that this thread runs.
    static RIG: std::cell::RefCell<Weak<Rig>> = const { std::cell::RefCell::new(Weak::new()) };
}

/// What stands around the removal: each call of it is a point.
struct Around(Arc<Rig>);

impl RemovalWatch<EmuMachine> for Around {
    fn begin(&mut self, _: Step) -> Result<(), Problem> {
        self.0.tick();
        Ok(())
    }
    fn phase(&mut self, phase: Phase, _: &KillReport) {
        match phase {
            Phase::Dying => self.0.tick(),
            // Told from here on, until the next phase.
            _ => self.0.telling.store(false, Ordering::SeqCst),
        }
        match phase {
            Phase::Dying => self.0.telling.store(true, Ordering::SeqCst),
            _ => self.0.tick(),
        }
    }
    fn waiting(&mut self, _: &Waiting) {
        self.0.tick();
    }
    fn observe(&mut self, _: &StepRecord) {
        self.0.tick();
    }
}

/// The removal's CPU comes to a point, now and ever after.
fn watch(rig: &Arc<Rig>, event: Event) {
    let weak = Arc::downgrade(rig);
    rig.emu.at(0, event, 1, move || {
        if let Some(rig) = weak.upgrade() {
            if event == Event::Relax {
                rig.waits()
            } else {
                rig.tick()
            }
            watch(&rig, event);
        }
    });
}

/// Runs a case; answers how many steps it had.
fn run(case: &Case) -> u64 {
    let (emu, mm) = rig(TASKS + 2);
    let before = mm.ledger_snapshot();
    let steps = emu.clone().on_cpu(0, || {
        let device = Device::attach(&mm, "pmem0", START, image());
        let rig = Rig::make(&emu, &mm, &device, &case.during);
        RIG.set(Arc::downgrade(&rig));
        case.before.iter().for_each(|op| rig.apply(op));
        let fs = rig.fs().filter(|_| case.stuck);
        let context = cx();
        // A change that does not end: the freeze fails.
        let stuck = fs.as_ref().and_then(|fs| fs.begin_write(&context).ok());
        removed(&rig, device);
        drop(stuck);
        drop(fs);
        let steps = rig.steps.load(Ordering::SeqCst);
        tear_down(&emu, rig);
        steps
    });
    emu.assert_no_stale();
    assert_no_leak(&mm, before);
    steps
}

fn removed(rig: &Arc<Rig>, device: Device) {
    watch(rig, Event::Relax);
    watch(rig, Event::At(Point::UsersListed));
    let Device { name, live, map, checked, .. } = device;
    let target = Target { name, map, dax: Some(live), mappings: vec![] };
    let report = remove(&rig.mm, target, Method::Ranged, &mut NoDriver(Around(rig.clone())));
    assert_eq!(report.problems().count(), 0, "{report}");
    assert_eq!((rig.map.state(), rig.map.live_folios()), (MapState::Unregistered, 0));
    assert_eq!(find_leaf(&rig.mm, &rig.map), None);
    for (_, stray) in rig.strays.lock().unwrap().iter() {
        let (told, ready) = (*stray.told.lock().unwrap(), stray.ready.load(Ordering::SeqCst));
        assert_eq!(told, Some(ready), "who is ready was ready when it was told");
    }
    for task in &rig.tasks {
        (0..SLOTS * FILE_PAGES).for_each(|nr| {
            let fault = rig.emu.on_cpu(task.cpu, || task.space.handle_fault(page(nr), Access::Read));
            assert!(fault.is_err() || task.space.translate(page(nr)).is_none(), "page {nr} is there");
        });
    }
    // What is on the medium is whole.
    drop(checked);
}

fn tear_down(emu: &EmuMachine, rig: Arc<Rig>) {
    rig.give_back();
    rig.strays.lock().unwrap().clear();
    let rig = Arc::try_unwrap(rig).unwrap_or_else(|_| panic!("somebody has the rig"));
    let Rig { tasks, mounts, files, .. } = rig;
    emu.on_cpu(1, || {
        drop((tasks, files));
        for fs in mounts.into_inner().unwrap() {
            while fs.freeze_holders().1 > 0 {
                fs.thaw(FreezeHolder::User).unwrap();
            }
            fs.reap(&cx());
            fs.unmount(&cx()).unwrap();
        }
    });
}

/// Where failures are kept, but for those of a deliberate fault.
fn persistence() -> Option<Box<dyn FailurePersistence>> {
    let deliberate = ["FS_MUTANT", "DAX_MUTANT", "MM_MUTANT"].into_iter().any(|name| std::env::var_os(name).is_some());
    (!deliberate).then(|| Box::new(FileFailurePersistence::Direct("tests/ends.regressions")) as _)
}

/// covers: R1 R5 R7 R10 R12 N1 N5 N14 N15
#[test]
fn a_removal_ends_and_leaves_nothing_whatever_holders_do() {
    let full = std::env::var_os("UNPLUG_FULL").is_some();
    let wanted = if full { 1_000_000 } else { 5_000 };
    let steps = AtomicU64::new(0);
    while steps.load(Ordering::SeqCst) < wanted {
        let config = ProptestConfig { cases: 64, failure_persistence: persistence(), ..ProptestConfig::default() };
        let mut runner = TestRunner::new(config);
        let result = runner.run(&case(), |case| {
            steps.fetch_add(run(&case), Ordering::SeqCst);
            Ok(())
        });
        result.unwrap_or_else(|error| panic!("{error}\n{runner}"));
    }
    println!("{} steps", steps.load(Ordering::SeqCst));
}
