//! The write load of the kill test, on the host: what it says of an image is right, and wrong images are found.

mod rig;

use std::sync::Arc;

use fs::error::FsError;
use fs::load::{Files, Known, Load, Step};
use fs::mount::{MountOptions, mount};
use fs::pmem::Pmem;
use rig::{Device, START, assert_clean, cx, rig};
use testkit::sim::{Limits, SimPmem};

const LOADS: [Load; 3] = [Load { seed: 42, task: 0 }, Load { seed: 42, task: 1 }, Load { seed: 42, task: 2 }];

fn files(image: &[u8]) -> [Files; 3] {
    let pmem: Arc<dyn Pmem> = Arc::new(SimPmem::from_bytes(image.to_vec()));
    let mut volume = mount(&pmem, &MountOptions::default()).unwrap();
    LOADS.map(|load| Files::read(&mut volume, &load.dir()).unwrap())
}

/// Power cuts during the load: the next step is found for each task, and to go on from there comes out right.
#[test]
fn the_next_step_is_found_after_a_power_cut_at_any_fence() {
    let (_emu, mm) = rig(1);
    let device = Device::new(&mm, "pmem0", START, 512);
    let fs = device.mount().unwrap();
    LOADS.iter().for_each(|load| fs.prepare_load(&cx(), load).unwrap());
    let mut recorder = device.sim.record();
    let mut now = LOADS.map(|_| Files::default());
    let mut known = LOADS.map(|_| Known::default());
    let mut images = 0;
    for nr in 0..60 {
        for (task, load) in LOADS.iter().enumerate() {
            let step = load.step(&now[task], nr);
            fs.do_load_step(&cx(), load, &step).unwrap();
            now[task].apply(&step);
            let limits = Limits { per_point: 6, torn: 2, seed: nr };
            let counts = recorder.crash_images(&device.sim, limits, &mut |image, _| {
                let got = files(image);
                for (other, load) in LOADS.iter().enumerate() {
                    // Those before it in this round have done one more.
                    let acked = nr + u64::from(other < task);
                    let mut state = known[other].clone();
                    let next = load.find(&mut state, &got[other], acked, 1);
                    let next = next.unwrap_or_else(|error| panic!("{error}; {step:?}"));
                    known[other].go_on(load, acked);
                    // A step that changed nothing cannot be told from one that was not done.
                    assert!(other == task || next == acked || state.files == known[other].files);
                }
                true
            });
            images += counts.images;
        }
    }
    assert!(images > 1000);
    assert_eq!(files(&device.sim.bytes()), now);
    for (load, now) in LOADS.iter().zip(now) {
        assert_eq!(fs.read_load(&cx(), load).unwrap(), now);
    }
    assert_clean(&device.sim);
}

/// Steps of every kind come up.
#[test]
fn the_load_is_varied() {
    let (load, mut files, mut kinds) = (Load { seed: 7, task: 0 }, Files::default(), [0; 6]);
    for nr in 0..500 {
        let step = load.step(&files, nr);
        kinds[match step {
            Step::Create(_) => 0,
            Step::Write(..) => 1,
            Step::Truncate(..) => 2,
            Step::Punch(..) => 3,
            Step::Rename(..) => 4,
            Step::Unlink(_) => 5,
        }] += 1;
        files.apply(&step);
    }
    assert!(kinds.iter().all(|&nr| nr >= 15), "{kinds:?}");
}

/// What a broken file system would leave is told from what a sound one may leave.
#[test]
fn images_that_lack_something_are_found_out() {
    let load = Load { seed: 42, task: 1 };
    let (mut files, mut halves) = (Files::default(), 0);
    let mut known = Known::default();
    for nr in 0..200 {
        known.go_on(&load, nr);
        let find = |got: &Files, acked, most| load.find(&mut known.clone(), got, acked, most);
        assert_eq!(find(&files, nr, 0), Ok(nr));
        // An acknowledged step is missing; that makes a difference where the step did.
        let step = load.step(&files, nr);
        let mut next = files.clone();
        next.apply(&step);
        if next != files && !matches!(step, Step::Write(..) | Step::Punch(..)) {
            assert!(find(&files, nr + 1, 0).is_err(), "{step:?} is missing");
        }
        // A byte of some file has changed.
        let mut wrong = next.clone();
        if let Some(bytes) = wrong.0.values_mut().find(|bytes| !bytes.is_empty()) {
            bytes[0] ^= 0xf0;
            // Unless the next step writes there.
            let (name, _) = next.0.iter().find(|(_, bytes)| !bytes.is_empty()).unwrap();
            let there = |step: &Step| match step {
                Step::Write(other, 0, _) | Step::Punch(other, 0, _) => other == name,
                _ => false,
            };
            assert!(find(&wrong, nr + 1, 0).is_err() || there(&load.step(&next, nr + 1)));
        }
        // Half a rename: both names, or neither.
        if let Step::Rename(from, to) = &step
            && from != to
        {
            let (mut both, mut neither) = (next.clone(), next.clone());
            both.0.insert(from.clone(), next.0[to].clone());
            neither.0.remove(to);
            assert!(find(&both, nr, 1).is_err() && find(&neither, nr, 1).is_err());
            halves += 1;
        }
        files = next;
    }
    assert!(halves > 5);
}

/// Somebody's own files where a load works: it has none so large, and asks for no memory for them.
#[test]
fn a_file_that_is_none_of_the_loads_is_an_error() {
    let (_emu, mm) = rig(1);
    let device = Device::new(&mm, "pmem0", START, 512);
    let fs = device.mount().unwrap();
    fs.prepare_load(&cx(), &LOADS[0]).unwrap();
    let file = fs.create(&cx(), &format!("{}/large", LOADS[0].dir()), true).unwrap();
    fs.truncate(&cx(), &file, fs::format::MAX_FILE).unwrap();
    drop(file);
    assert_eq!(fs.read_load(&cx(), &LOADS[0]).map(drop), Err(FsError::TooLarge));
    fs.reap(&cx());
    fs.unmount(&cx()).unwrap();
    let mut volume = mount(&(device.sim.clone() as Arc<dyn Pmem>), &MountOptions::default()).unwrap();
    assert_eq!(Files::read(&mut volume, &LOADS[0].dir()).map(drop), Err(FsError::TooLarge));
}
