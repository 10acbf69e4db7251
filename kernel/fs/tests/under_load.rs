//! Removal under load: tasks on two file systems map, store, pin, write, truncate and unlink on CPUs of their own while
//! the device of one file system is pulled out.

mod rig;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use fs::error::FsError;
use mm::addr::PAGE_SIZE;
use mm::entry::Prot;
use mm::gup::{GupError, GupFlags};
use mm::machine::Machine;
use mm::space::{Access, FaultError, MapError, SigBusCause};
use rig::*;
use testkit::emu::{Background, EmuMachine};

/// Pages that a worker maps.
const PAGES: u64 = 48;

/// One worker's file system, CPU, and how far it is.
#[derive(Clone)]
struct Worker {
    emu: EmuMachine,
    mm: Arc<EmuContext>,
    fs: Arc<Fs>,
    cpu: usize,
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    /// The address spaces of its tasks.
    spaces: Arc<Mutex<BTreeSet<u64>>>,
}

impl Worker {
    fn start(&self) -> Background<Result<(), FsError>> {
        let worker = self.clone();
        self.emu.start(self.cpu, move || {
            // From here on it runs beside the others: `start` comes back at the first wait.
            worker.mm.machine.relax();
            let mut done = Ok(());
            while done.is_ok() && !worker.stop.load(Ordering::SeqCst) {
                done = worker.round(worker.rounds.fetch_add(1, Ordering::SeqCst));
            }
            // What it held is let go of, also on a device that is gone.
            worker.fs.reap(&cx());
            done
        })
    }

    fn round(&self, nr: u64) -> Result<(), FsError> {
        let fs = &self.fs;
        let name = format!("file{}-{}", self.cpu, nr % 3);
        let file = match fs.open(&cx(), &name) {
            Err(FsError::NotFound) => fs.create(&cx(), &name, true)?,
            file => file?,
        };
        fs.write(&cx(), &file, nr % 7 * 1000, &vec![nr as u8; (PAGES * PAGE_SIZE / 2) as usize])?;
        fs.truncate(&cx(), &file, PAGES * PAGE_SIZE)?;
        let task = Task::new(&self.mm, self.cpu);
        self.spaces.lock().unwrap().insert(task.space.id());
        let mapped = task.space.map(page(0), PAGES * PAGE_SIZE, Prot::USER_WRITE, &file.ops(), 0);
        if let Err(error) = mapped {
            assert!(matches!(error, MapError::Refused(SigBusCause::ShutDown | SigBusCause::DeviceGone)), "{error}");
            return Err(FsError::DeviceGone);
        }
        for page_nr in 0..PAGES {
            self.touch(&task, page_nr * 5 % PAGES);
        }
        let pinned = task.pin(nr % PAGES, 4, GupFlags::WRITE);
        let synced = fs.fsync(&cx(), &file);
        match pinned {
            Ok(runs) => unpin(&self.mm, &runs),
            Err(GupError::SigBus(..)) => {}
            Err(error) => panic!("{error}"),
        }
        // Not before the pins are given back: the removal waits for them.
        synced?;
        fs.punch(&cx(), &file, 3 * PAGE_SIZE + 10, 9 * PAGE_SIZE)?;
        fs.truncate(&cx(), &file, nr % 13 * 3000)?;
        if nr % 4 == 1 {
            fs.unlink(&cx(), &name)?;
        }
        drop((task, file));
        fs.reap(&cx());
        Ok(())
    }

    fn touch(&self, task: &Task, nr: u64) {
        match task.space.handle_fault(page(nr), Access::Write) {
            Ok(()) | Err(FaultError::SigBus { cause: SigBusCause::ShutDown | SigBusCause::DeviceGone, .. }) => {}
            Err(error) => panic!("CPU {}: {error}", self.cpu),
        }
    }

    /// Lets it go on until it has done `nr` more rounds.
    fn let_go_on(&self, nr: u64) {
        let enough = self.rounds.load(Ordering::SeqCst) + nr;
        while self.rounds.load(Ordering::SeqCst) < enough {
            self.emu.deliver(0);
            std::thread::yield_now();
        }
    }
}

/// covers: R7 R10 R12 E7 N5
#[test]
fn one_of_two_devices_is_pulled_out_under_load() {
    let (emu, mm) = rig(7);
    let before = mm.ledger_snapshot();
    emu.clone().on_cpu(0, || {
        let devices = [Device::new(&mm, "pmem0", START, 2048), Device::new(&mm, "pmem1", 2 * START, 2048)];
        let mounted = devices.each_ref().map(|device| device.mount().unwrap());
        let worker = |which: usize, cpu| Worker {
            emu: emu.clone(),
            mm: mm.clone(),
            fs: mounted[which].clone(),
            cpu,
            stop: Arc::default(),
            rounds: Arc::default(),
            spaces: Arc::default(),
        };
        // One task on each that maps a file all the time.
        let idlers = [0, 1].map(|nr: usize| {
            let file = mounted[nr].create(&cx(), "idle", true).unwrap();
            mounted[nr].write(&cx(), &file, 0, b"x").unwrap();
            let task = Task::with(&mm, 5 + nr, &file, 1);
            task.store(0, nr as u64).unwrap();
            (task, file)
        });
        let workers = [worker(0, 1), worker(0, 2), worker(1, 3), worker(1, 4)];
        let running = workers.each_ref().map(Worker::start);
        workers.iter().for_each(|worker| worker.let_go_on(8));
        let [leaving, staying] = devices;
        let (sim, kernels) = (leaving.sim.clone(), [leaving.kernel.clone(), staying.kernel.clone()]);
        assert_eq!(leaving.remove(), [""; 0]);
        // The others never notice.
        workers[2..].iter().for_each(|worker| worker.let_go_on(8));
        workers.iter().for_each(|worker| worker.stop.store(true, Ordering::SeqCst));
        for (cpu, running) in (1..).zip(running) {
            match (cpu, emu.finish(running)) {
                (1 | 2, Err(FsError::ShutDown(_) | FsError::DeviceGone)) | (3 | 4, Ok(())) => {}
                (cpu, ended) => panic!("the worker on CPU {cpu} ended with {ended:?}"),
            }
        }
        // Those that are told are those that used the device, and nobody else. Which of the workers map something at
        // that moment is a matter of chance.
        let told: BTreeSet<_> = kernels[0].lost.lock().unwrap().iter().map(|lost| lost.0).collect();
        let idle = idlers[0].0.space.id();
        let users = workers[..2].iter().flat_map(|worker| worker.spaces.lock().unwrap().clone());
        let users: BTreeSet<_> = users.chain([idle]).collect();
        assert!(told.is_subset(&users) && told.contains(&idle), "{told:?} were told; {users:?} had used the device");
        assert!(idlers[0].0.cause(0).is_some() && idlers[1].0.fetch(0) == Ok(1));
        let lost = kernels[0].lost.lock().unwrap().len() as u64;
        assert_eq!(lost, mounted[0].last_notification().unwrap().told);
        assert!(kernels[1].lost.lock().unwrap().is_empty());
        drop(idlers);
        let [gone, stays] = mounted;
        gone.unmount(&cx()).unwrap();
        stays.unmount(&cx()).unwrap();
        staying.assert_clean();
        assert!(staying.remove().is_empty());
        // The device comes back: the file system is whole.
        assert_clean(&sim);
        let again = Device::attach(&mm, "pmem0", START, sim);
        let fs = again.mount().unwrap();
        fs.mkdir(&cx(), "back").unwrap();
        fs.unmount(&cx()).unwrap();
        again.assert_clean();
        assert!(again.remove().is_empty());
    });
    emu.assert_no_stale();
    assert_no_leak(&mm, before);
}

/// The walk before a removal costs by what is there: extents and leaves, and one round of shootdown for all of it.
/// covers: R2
#[test]
fn the_walk_costs_by_extents() {
    let cost = |files: u64| {
        let (_emu, mm) = rig(1);
        let device = Device::new(&mm, "pmem0", START, 4096);
        let fs = device.mount().unwrap();
        let task = Task::new(&mm, 0);
        for nr in 0..files {
            let file = fs.create(&cx(), &format!("f{nr}"), true).unwrap();
            fs.write(&cx(), &file, 0, &[1; 8 * PAGE_SIZE as usize]).unwrap();
            task.map(nr * 8, &file, 0, 8);
            (0..8).for_each(|page| task.store(nr * 8 + page, 1).unwrap());
        }
        assert!(device.remove().is_empty());
        let report = fs.last_notification().unwrap();
        (report.extents - report.metadata, report.mappings, report.leaves, report.rounds)
    };
    assert_eq!(cost(4), (4, 4, 32, 1));
    assert_eq!(cost(32), (32, 32, 256, 1));
}
