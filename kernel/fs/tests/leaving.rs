//! The device is told to leave while something is under way: a mount, an unmount, a change that does not end, a long
//! write, a long read. No removal waits for ever: that is counted in rounds of waiting.

mod rig;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use dax::kill::{KillReport, Phase};
use dax::removal::{Method, RemovalReport, RemovalWatch, Step, Target, remove};
use fs::calls::CHUNK_BYTES;
use fs::error::{FsError, ShutdownReason};
use fs::freeze::FreezeHolder;
use fs::mount::MakeOptions;
use fs::mounted::{Mounted, Source};
use fs::pmem::Pmem;
use mm::addr::PAGE_SIZE;
use mm::machine::{Machine, Point};
use mm::reach::find_leaf;
use mm::space::{Access, FaultError, SigBusCause};
use rig::*;
use testkit::emu::{EmuMachine, Event};
use testkit::removal::NoDriver;
use testkit::sim::SimPmem;

type Hook = Box<dyn FnMut() + Send>;

/// A memory in which something happens at each read or store by CPU 0, and which counts.
struct Watched {
    sim: Arc<SimPmem>,
    emu: EmuMachine,
    at: Mutex<Option<Hook>>,
    stored: AtomicU64,
    written_back: AtomicU64,
}

impl Watched {
    fn new(emu: &EmuMachine, sim: &Arc<SimPmem>) -> Arc<Self> {
        let (stored, written_back) = Default::default();
        Arc::new(Self { sim: sim.clone(), emu: emu.clone(), at: Mutex::default(), stored, written_back })
    }
    fn at_each_access(&self, hook: impl FnMut() + Send + 'static) {
        *self.at.lock().unwrap() = Some(Box::new(hook));
    }
    fn accessed(&self) {
        if self.emu.cpu() == 0
            && let Some(hook) = &mut *self.at.lock().unwrap()
        {
            hook();
        }
    }
}

impl Pmem for Watched {
    fn len_bytes(&self) -> u64 {
        self.sim.len_bytes()
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), FsError> {
        self.accessed();
        self.sim.read(offset, buf)
    }
    fn store(&self, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        self.accessed();
        self.stored.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        self.sim.store(offset, bytes)
    }
    fn write_back(&self, offset: u64, len: u64) {
        self.written_back.fetch_add(len, Ordering::SeqCst);
        self.sim.write_back(offset, len);
    }
    fn fence(&self) -> Result<(), FsError> {
        self.sim.fence()
    }
}

/// Calls when the holders have been told.
struct Told<'t>(Option<Box<dyn FnOnce() + 't>>);

impl RemovalWatch<EmuMachine> for Told<'_> {
    fn phase(&mut self, phase: Phase, _: &KillReport) {
        if phase == Phase::Told
            && let Some(told) = self.0.take()
        {
            told();
        }
    }
}

/// Removes the device; `told` is called between the phases "told" and "dead". A wait without end fails the test.
fn remove_telling(emu: &EmuMachine, device: Device, told: impl FnOnce()) -> RemovalReport {
    emu.at(emu.cpu(), Event::Relax, 10_000, || panic!("the removal waits for ever"));
    let Device { name, mm, live, map, .. } = device;
    let target = Target { name, map, dax: Some(live), mappings: vec![] };
    remove(&mm, target, Method::Ranged, &mut NoDriver(Told(Some(Box::new(told)))))
}

fn left_by_holders(report: &RemovalReport) -> Option<u64> {
    report.step(Step::Invalidate).and_then(|step| step.facts.get("left_by_holders"))
}

fn device_with_file(mm: &Arc<EmuContext>, pages: u64) -> Device {
    let device = Device::new(mm, "pmem0", START, 512);
    let fs = device.mount().unwrap();
    let file = fs.create(&cx(), "a", true).unwrap();
    fs.write(&cx(), &file, 0, &vec![1; (pages * PAGE_SIZE) as usize]).unwrap();
    drop(file);
    fs.unmount(&cx()).unwrap();
    device
}

/// The holder is told while the mount reads; the mount goes on while the device is still alive.
/// covers: N14 R7 R10
#[test]
fn a_mount_that_is_under_way_when_the_device_is_told_to_leave_comes_to_nothing() {
    let (emu, mm) = rig(3);
    let before = mm.ledger_snapshot();
    emu.clone().on_cpu(0, || {
        let device = device_with_file(&mm, 4);
        let (map, sim) = (device.map.clone(), device.sim.clone());
        let go_on = Arc::new(AtomicBool::new(false));
        let slow = Slow { sim: sim.clone(), emu: emu.clone(), go_on: go_on.clone() };
        let source = Source { pmem: Arc::new(slow), ..device.source() };
        let mounting = emu.start(1, {
            let mm = mm.clone();
            move || Mounted::mount(&mm, source)
        });
        assert!(!mounting.is_finished(), "it waits in its first read");
        let mut mapped = None;
        let report = remove_telling(&emu, device, || {
            go_on.store(true, Ordering::SeqCst);
            // Were it mounted, a task would map it, and touch a page.
            let fs = emu.finish(mounting);
            if let Ok(fs) = &fs {
                let task = Task::with(&mm, 2, &fs.open(&cx(), "a").unwrap(), 4);
                task.space.handle_fault(page(1), Access::Write).unwrap();
                mapped = Some(task);
            }
            assert_eq!(fs.err(), Some(FsError::DeviceGone));
        });
        assert_eq!(report.kill.as_ref().unwrap().answers[0].to_string(), "pmem0: I/O error");
        assert_eq!((report.problems().count(), left_by_holders(&report)), (0, None), "{report}");
        assert!(report.idle && find_leaf(&mm, &map).is_none());
        assert_clean(&sim);
        // What it had begun on the medium it has brought to rest: as after an unmount.
        let again = Device::attach(&mm, "pmem0", START, sim);
        let fs = again.mount().unwrap();
        assert_eq!(fs.stat(&cx(), "a").unwrap().size, 4 * PAGE_SIZE);
        fs.unmount(&cx()).unwrap();
        assert!(again.remove().is_empty());
    });
    assert_no_leak(&mm, before);
}

/// The same for the journal's device: the file system would be without it from its first change on.
/// covers: N13 N14
#[test]
fn a_mount_whose_journals_device_is_told_to_leave_comes_to_nothing() {
    let (emu, mm) = rig(3);
    emu.clone().on_cpu(0, || {
        let log: Arc<dyn Pmem> = Arc::new(SimPmem::new(1 << 18));
        let options = MakeOptions { log: Some(log.clone()), ..MakeOptions::default() };
        let mut device = Device::make(&mm, "pmem0", START, 512, &options);
        device.checked.log = Some(log.clone());
        let logs = Device::attach(&mm, "pmem1", 3 * START, Arc::new(SimPmem::new(1 << 18)));
        let Device { name, mm: _, live, map, sim: _, kernel: _, checked } = logs;
        // There is no file system on it.
        std::mem::forget(checked);
        let go_on = Arc::new(AtomicBool::new(false));
        let slow = Slow { sim: device.sim.clone(), emu: emu.clone(), go_on: go_on.clone() };
        let source = Source { pmem: Arc::new(slow), log: Some((live.device().clone(), log)), ..device.source() };
        let mounting = emu.start(1, {
            let mm = mm.clone();
            move || Mounted::mount(&mm, source)
        });
        let told = Told(Some(Box::new(|| {
            go_on.store(true, Ordering::SeqCst);
            assert_eq!(emu.finish(mounting).err(), Some(FsError::DeviceGone));
        })));
        let target = Target { name, map, dax: Some(live), mappings: vec![] };
        let report = remove(&mm, target, Method::Ranged, &mut NoDriver(told));
        assert_eq!(report.kill.unwrap().answers[0].to_string(), "pmem0-log: I/O error");
        assert_eq!(device.live.device().nr_holders(), 0, "it has let go of the other device too");
    });
}

/// covers: E1 N14
#[test]
fn a_file_is_open_when_an_unmount_looks_or_cannot_be_opened() {
    let (emu, mm) = rig(3);
    emu.clone().on_cpu(0, || {
        let device = device_with_file(&mm, 4);
        let watched = Watched::new(&emu, &device.sim);
        let fs = Mounted::mount(&mm, Source { pmem: watched.clone(), ..device.source() }).unwrap();
        let opening = Arc::new(Mutex::new(None));
        watched.at_each_access({
            let (emu, fs, opening) = (emu.clone(), fs.clone(), opening.clone());
            move || {
                // In the middle of what an unmount does to the medium, where it waits for the metadata, and for long.
                let mut opening = opening.lock().unwrap();
                let opener = opening.get_or_insert_with(|| {
                    let fs = fs.clone();
                    emu.start(1, move || fs.open(&cx(), "a"))
                });
                (0..8).for_each(|_| _ = emu.let_run(1, opener));
            }
        });
        fs.unmount(&cx()).unwrap();
        *watched.at.lock().unwrap() = None;
        let opener = opening.lock().unwrap().take().expect("an unmount writes to the medium");
        let opened = emu.finish(opener);
        assert_eq!(opened.err(), Some(FsError::ShutDown(ShutdownReason::ForcedUnmount)));
        device.assert_clean();
    });
}

/// A change does not end, so that the freeze fails; what has been taken away is touched again before the walk is over.
/// covers: N5 N6 N12 R7
#[test]
fn after_a_freeze_that_failed_no_fault_comes_in_behind_the_walk() {
    let (emu, mm) = rig(3);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 512);
        let watched = Watched::new(&emu, &device.sim);
        let source = Source { pmem: watched.clone(), freeze_timeout_ns: 500, ..device.source() };
        let fs = Mounted::mount(&mm, source).unwrap();
        let files = ["a", "b"].map(|name| fs.create(&cx(), name, true).unwrap());
        files.iter().for_each(|file| fs.write_all(&cx(), file, 0, &[1; 4 * PAGE_SIZE as usize]).unwrap());
        let tasks = [Task::with(&mm, 1, &files[0], 4), Task::with(&mm, 2, &files[1], 4)];
        tasks.iter().for_each(|task| (0..4).for_each(|nr| task.store(nr, nr).unwrap()));
        let context = cx();
        let stuck = fs.begin_write(&context).unwrap();
        // The second file is about to be taken away: the first one has been.
        let space = tasks[0].space.clone();
        let again = Arc::new(Mutex::new(None));
        emu.at(0, Event::At(Point::UsersListed), 2, {
            let (emu, again) = (emu.clone(), again.clone());
            move || {
                assert!(space.translate(page(2)).is_none());
                let fault = emu.on_cpu(1, || space.handle_fault(page(2), Access::Write));
                *again.lock().unwrap() = Some(fault);
            }
        });
        watched.written_back.store(0, Ordering::SeqCst);
        let (map, kernel) = (device.map.clone(), device.kernel.clone());
        let report = remove_telling(&emu, device, || ());
        let shut = FaultError::SigBus { addr: page(2), len_bytes: PAGE_SIZE, cause: SigBusCause::ShutDown };
        assert_eq!(*again.lock().unwrap(), Some(Err(shut)), "a page came in behind the walk");
        assert_eq!(left_by_holders(&report), Some(0), "{report}");
        assert!(find_leaf(&mm, &map).is_none() && map.is_drained());
        let notified = fs.last_notification().unwrap();
        assert_eq!((notified.frozen, &notified.errors[..]), (false, &[("freeze", FsError::Busy)][..]));
        assert_eq!((notified.leaves, notified.told), (8, 2), "{notified}");
        assert_eq!(fs.shutdown_reason(), Some(ShutdownReason::ForcedUnmount));
        assert!(kernel.said("notified: 6/7 shut down: forced unmount"));
        // What tasks had stored was written back all the same.
        assert!(watched.written_back.load(Ordering::SeqCst) >= 8 * PAGE_SIZE);
        drop(stuck);
    });
    emu.assert_no_stale();
}

/// covers: N5
#[test]
fn a_freeze_waits_for_a_part_of_a_long_write() {
    const PARTS: u64 = 3;
    let (emu, mm) = rig(2);
    emu.clone().on_cpu(0, || {
        let blocks = (PARTS + 1) * CHUNK_BYTES / PAGE_SIZE;
        let device = Device::new(&mm, "pmem0", START, blocks);
        let watched = Watched::new(&emu, &device.sim);
        let source = Source { pmem: watched.clone(), freeze_timeout_ns: u64::MAX / 2, ..device.source() };
        let fs = Mounted::mount(&mm, source).unwrap();
        let file = fs.create(&cx(), "a", true).unwrap();
        watched.stored.store(0, Ordering::SeqCst);
        let freezing = Arc::new(Mutex::new(None));
        watched.at_each_access({
            let (emu, fs, freezing, watched) = (emu.clone(), fs.clone(), freezing.clone(), Arc::downgrade(&watched));
            move || {
                freezing.lock().unwrap().get_or_insert_with(|| {
                    let (fs, watched) = (fs.clone(), watched.clone());
                    emu.start(1, move || {
                        fs.freeze(FreezeHolder::User).unwrap();
                        let stored = watched.upgrade().unwrap().stored.load(Ordering::SeqCst);
                        // Reading goes on: the writer does not keep the file locked while it waits.
                        let mut some = [0; 16];
                        let nr = fs.read(&cx(), &fs.open(&cx(), "a").unwrap(), PAGE_SIZE, &mut some).unwrap();
                        fs.thaw(FreezeHolder::User).unwrap();
                        (stored, some[..nr].to_vec())
                    })
                });
            }
        });
        let bytes: Vec<_> = (0..PARTS * CHUNK_BYTES + 5000).map(|at| (at / 999) as u8 | 1).collect();
        fs.write(&cx(), &file, 100, &bytes).unwrap();
        let (stored, read) = emu.finish(freezing.lock().unwrap().take().unwrap());
        // Of the data no more than a part, and some metadata with it.
        assert!((1..=CHUNK_BYTES + CHUNK_BYTES / 8).contains(&stored), "frozen after {stored} bytes");
        assert_eq!(read, bytes[PAGE_SIZE as usize - 100..][..16]);
        *watched.at.lock().unwrap() = None;
        let mut back = vec![0; bytes.len()];
        assert_eq!(fs.read(&cx(), &file, 100, &mut back), Ok(bytes.len()));
        assert!(back == bytes, "what was written is what is read");
        fs.reap(&cx());
    });
}

/// A caller that is told how much was written knows what is durable; the reason comes with the next call.
#[test]
fn a_long_write_that_a_shutdown_cuts_short_answers_how_much_was_written() {
    let (emu, mm) = rig(1);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 4 * CHUNK_BYTES / PAGE_SIZE);
        let watched = Watched::new(&emu, &device.sim);
        let fs = Mounted::mount(&mm, Source { pmem: watched.clone(), ..device.source() }).unwrap();
        let file = fs.create(&cx(), "a", true).unwrap();
        watched.stored.store(0, Ordering::SeqCst);
        watched.at_each_access({
            let (fs, watched) = (Arc::downgrade(&fs), Arc::downgrade(&watched));
            move || {
                if watched.upgrade().unwrap().stored.load(Ordering::SeqCst) > 3 * CHUNK_BYTES / 2 {
                    fs.upgrade().unwrap().shut_down(ShutdownReason::ForcedUnmount);
                }
            }
        });
        let down = Err(FsError::ShutDown(ShutdownReason::ForcedUnmount));
        assert_eq!(fs.write(&cx(), &file, 0, &vec![1; 3 * CHUNK_BYTES as usize]), Ok(2 * CHUNK_BYTES as usize));
        assert_eq!(fs.write(&cx(), &file, 0, &[1]), down);
        *watched.at.lock().unwrap() = None;
    });
}

/// One that cannot be done is refused as a whole, before a part of it is written.
#[test]
fn a_long_write_beyond_the_largest_file_writes_nothing() {
    let (_emu, mm) = rig(1);
    let device = Device::new(&mm, "pmem0", START, 512);
    let fs = device.mount().unwrap();
    let file = fs.create(&cx(), "a", true).unwrap();
    let bytes = vec![1; CHUNK_BYTES as usize + 1];
    assert_eq!(fs.write(&cx(), &file, fs::format::MAX_FILE - CHUNK_BYTES, &bytes), Err(FsError::TooLarge));
    assert_eq!(fs.stat(&cx(), "a").unwrap().size, 0);
}

/// covers: N1 N5
#[test]
fn a_removal_waits_for_a_part_of_a_long_read() {
    const PARTS: u64 = 16;
    let (emu, mm) = rig(2);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 512);
        let watched = Watched::new(&emu, &device.sim);
        let source = Source { pmem: watched.clone(), freeze_timeout_ns: u64::MAX / 2, ..device.source() };
        let fs = Mounted::mount(&mm, source).unwrap();
        let file = fs.create(&cx(), "a", true).unwrap();
        // Holes, but for a block in each part.
        (0..PARTS).for_each(|nr| fs.write_all(&cx(), &file, nr * CHUNK_BYTES, &[1]).unwrap());
        fs.truncate(&cx(), &file, PARTS * CHUNK_BYTES).unwrap();
        let (device, removing) = (Mutex::new(Some(device)), Arc::new(Mutex::new(None)));
        watched.at_each_access({
            let (emu, removing) = (emu.clone(), removing.clone());
            move || {
                let mut removing = removing.lock().unwrap();
                let removal = removing.get_or_insert_with(|| {
                    let device = device.lock().unwrap().take().unwrap();
                    emu.start(1, move || device.remove())
                });
                // It looks at what it waits for, again and again.
                (0..8).for_each(|_| _ = emu.let_run(1, removal));
            }
        });
        // Between two parts the reader waits for who has tried for long; which of the two the host runs first is its affair.
        for nth in 1..=64 {
            let (at, removing) = (emu.clone(), removing.clone());
            emu.at(0, Event::Relax, nth, move || {
                _ = removing.lock().unwrap().as_ref().map(|removal| at.let_run(1, removal))
            });
        }
        let mut buf = vec![0; (PARTS * CHUNK_BYTES) as usize];
        let read = fs.read(&cx(), &file, 0, &mut buf);
        let answered = emu.finish(removing.lock().unwrap().take().unwrap());
        assert_eq!(read, Err(FsError::ShutDown(ShutdownReason::ForcedUnmount)), "the removal waited for all of it");
        assert!(answered.is_empty(), "{answered:?}");
        *watched.at.lock().unwrap() = None;
    });
}
