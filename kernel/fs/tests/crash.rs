//! Power cuts: after every operation of a random sequence, images that the medium may hold at each fence are mounted,
//! checked, and compared with the states that are allowed: everything that was acknowledged, and the operation under
//! way wholly or not at all (bytes that it overwrites in place: each old or new).

mod common;

use common::{Model, Op, apply, difference, new_fs, pmem, random_op, read_all};
use fs::check::check;
use fs::error::FsError;
use fs::format::{BLOCK_SIZE, INLINE_EXTENTS, ROOT_INO};
use fs::mount::{MountOptions, mount};
use fs::mutant::{Faults, Mutant};
use std::sync::Arc;
use testkit::sim::{Counts, Limits, Random, Recorder, SimPmem};

/// One sequence of operations on a file system of `blocks` blocks. Answers what was looked at, and the first
/// violation.
struct Run {
    seed: u64,
    blocks: u64,
    nr_ops: u64,
    /// Small changes before the sequence, which fill a part of the journal.
    filler: u64,
    faults: Faults,
    limits: Limits,
}

impl Run {
    fn new(seed: u64, faults: Faults) -> Self {
        let limits = Limits { per_point: 24, torn: 6, seed };
        Self { seed, blocks: 288, nr_ops: 30, filler: 420 + 9 * (seed % 10), faults, limits }
    }

    fn go(&self) -> (Counts, Option<String>) {
        let sim = new_fs(self.blocks);
        let options = MountOptions { faults: self.faults, ..MountOptions::default() };
        let (mut random, mut model) = (Random::new(self.seed), Model::default());
        let mut counts = Counts::default();
        let mut volume = mount(&pmem(&sim), &options).expect("it is new");
        // The journal is small. It is filled in part first, so that the sequence comes to its end and goes on.
        let ino = volume.create(ROOT_INO, b"filler", true).unwrap();
        for nr in 0..self.filler {
            volume.truncate(ino, nr).unwrap();
        }
        model.apply(&Op::Create(b"filler".to_vec())).unwrap();
        model.apply(&Op::Truncate(b"filler".to_vec(), self.filler - 1)).unwrap();
        let mut recorder = sim.record();
        for nr in 0..self.nr_ops {
            let mut op = random_op(&mut random, 24 * BLOCK_SIZE);
            let mut next = model.clone();
            while next.apply(&op).is_err() {
                op = random_op(&mut random, 24 * BLOCK_SIZE);
                next = model.clone();
            }
            let done = apply(&mut volume, &op);
            match done {
                Ok(()) => sim.mark(1),
                Err(FsError::NoSpace) => break,
                Err(error) => return (counts, Some(format!("operation {nr}, {op:?}: {error}"))),
            }
            let states = [model.clone(), next.clone()];
            let (more, violation) = self.crash(&mut recorder, &sim, &states, &op);
            counts.points += more.points;
            counts.exhausted += more.exhausted;
            counts.images += more.images;
            if let Some(violation) = violation {
                return (counts, Some(format!("seed {}, operation {nr}, {}: {violation}", self.seed, brief(&op))));
            }
            model = next;
        }
        (counts, None)
    }

    fn crash(
        &self,
        recorder: &mut Recorder,
        sim: &Arc<SimPmem>,
        states: &[Model; 2],
        op: &Op,
    ) -> (Counts, Option<String>) {
        let mut violation = None;
        let counts = recorder.crash_images(sim, self.limits, &mut |image, mark| {
            let states = if mark == 1 { &states[1..] } else { &states[..] };
            violation = self.recover(image.to_vec(), states, op);
            violation.is_none()
        });
        (counts, violation)
    }

    fn recover(&self, image: Vec<u8>, states: &[Model], op: &Op) -> Option<String> {
        let sim = Arc::new(SimPmem::from_bytes(image));
        // With the same fault, for those that are in recovery.
        let options = MountOptions { faults: self.faults, ..MountOptions::default() };
        let mut volume = match mount(&pmem(&sim), &options) {
            Ok(volume) => volume,
            Err(error) => return Some(format!("cannot be mounted: {error}")),
        };
        let got = match read_all(&mut volume) {
            Ok(got) => got,
            Err(error) => return Some(format!("cannot be read: {error}")),
        };
        let allowed = |state: &Model| {
            difference(&got, state, &|path, at, byte| states.len() == 2 && overwritten(op, states, path, at, byte))
        };
        let differences: Vec<_> = states.iter().filter_map(allowed).collect();
        if differences.len() == states.len() {
            return Some(format!("after recovery: {}", differences.join("; or: ")));
        }
        if let Err(error) = tails_are_zero(&mut volume, &got) {
            return Some(error);
        }
        let report = check(&pmem(&sim), None);
        (!report.is_clean()).then(|| format!("checker: {:?}", report.problems))
    }
}

fn brief(op: &Op) -> String {
    match op {
        Op::Write(path, at, bytes) => {
            format!("Write({:?}, {at}, {} bytes)", String::from_utf8_lossy(path), bytes.len())
        }
        Op::Create(path) | Op::Mkdir(path) | Op::Unlink(path) => format!("a name {:?}", String::from_utf8_lossy(path)),
        op => format!("{op:?}"),
    }
}

/// May this byte be there although the state says otherwise: was it being overwritten in place?
fn overwritten(op: &Op, states: &[Model], path: &[u8], at: usize, byte: u8) -> bool {
    let touched = match op {
        Op::Write(name, from, bytes) => {
            at as u64 >= *from && (at as u64) < from + bytes.len() as u64 && alias(states, name, path)
        }
        Op::Punch(name, from, len) => at as u64 >= *from && (at as u64) < from + len && alias(states, name, path),
        _ => false,
    };
    let is_one_of = |state: &Model| {
        let Some(common::Thing::File(nr)) = state.paths.get(path) else { return false };
        state.files[nr].get(at) == Some(&byte)
    };
    touched && states.iter().any(is_one_of)
}

fn alias(states: &[Model], a: &[u8], b: &[u8]) -> bool {
    states.iter().any(|state| state.paths.get(a) == state.paths.get(b))
}

/// What lies behind the end of a file does not come to light when the file grows.
fn tails_are_zero(volume: &mut fs::volume::Volume, model: &Model) -> Result<(), String> {
    for (&ino, bytes) in model.files.iter().filter(|(_, bytes)| !(bytes.len() as u64).is_multiple_of(BLOCK_SIZE)) {
        let size = bytes.len() as u64;
        let end = size.next_multiple_of(BLOCK_SIZE);
        volume.truncate(ino, end).map_err(|error| format!("cannot grow: {error}"))?;
        let mut tail = vec![0; (end - size) as usize];
        volume.read(ino, size, &mut tail).map_err(|error| format!("cannot read: {error}"))?;
        if tail.iter().any(|&byte| byte != 0) {
            return Err(format!("inode {ino} shows old bytes behind its old end of {size}"));
        }
        volume.truncate(ino, size).map_err(|error| format!("cannot shrink: {error}"))?;
    }
    Ok(())
}

#[test]
fn every_surviving_image_recovers_to_an_allowed_state() {
    let seeds = std::env::var("FS_CRASH_SEEDS").ok().and_then(|nr| nr.parse().ok()).unwrap_or(6);
    let mut all = Counts::default();
    for seed in 1..=seeds {
        let (counts, violation) = Run::new(seed, Faults::default()).go();
        assert_eq!(violation, None);
        all.points += counts.points;
        all.exhausted += counts.exhausted;
        all.images += counts.images;
    }
    println!("{seeds} seeds: {} points ({} exhausted), {} images", all.points, all.exhausted, all.images);
    assert!(all.images > 5_000);
}

/// Each deliberate fault is caught by the very check that the sound file system passes.
#[test]
fn every_mutant_is_caught() {
    let mut survivors = Vec::new();
    // Those before the first that has to do with mapped files; see `layouts` and `notify` for the rest.
    let end = Mutant::ALL.iter().position(|&mutant| mutant == Mutant::PinsNotWaitedFor).unwrap();
    for &mutant in &Mutant::ALL[..end] {
        let caught = (1..=10).find_map(|seed| {
            let faults = Faults::with(mutant);
            let run = match mutant {
                Mutant::FreedMetadataReused => return reuse(seed, faults),
                Mutant::PendingForgotten => return pending(faults),
                Mutant::FreedBlockWrittenEarly => return punch_where_nothing_is_free(faults),
                _ => Run::new(seed, faults),
            };
            run.go().1
        });
        match caught {
            Some(how) => println!("{mutant:?}: {how}"),
            None => survivors.push(mutant),
        }
    }
    assert_eq!(survivors, []);
}

/// A directory of many blocks goes, a file takes its blocks, the power goes before the journal is emptied: is the
/// file's data whole?
fn reuse(seed: u64, faults: Faults) -> Option<String> {
    let sim = new_fs(288);
    let options = MountOptions { faults, ..MountOptions::default() };
    let mut volume = mount(&pmem(&sim), &options).unwrap();
    let dir = volume.mkdir(ROOT_INO, b"d").unwrap();
    for nr in 0..70 {
        let name = format!("{nr}{}", "x".repeat(60));
        volume.create(dir, name.as_bytes(), true).unwrap();
        let gone = volume.unlink(dir, name.as_bytes()).unwrap().unwrap();
        volume.free(gone).unwrap();
    }
    // The journal starts anew here, so that what follows fits into one epoch.
    volume.quiesce().unwrap();
    volume.resume().unwrap();
    volume.create(dir, b"last", true).unwrap();
    let gone = volume.unlink(dir, b"last").unwrap().unwrap();
    volume.free(gone).unwrap();
    let gone = volume.rmdir(ROOT_INO, b"d").unwrap();
    volume.free(gone).unwrap();
    let file = volume.create(ROOT_INO, b"f", true).unwrap();
    let bytes = vec![seed as u8 | 1; 200 * 4096];
    let len = volume.write(file, 0, &bytes).unwrap();
    let size = volume.stat(file).unwrap().size as usize;
    let image = Arc::new(SimPmem::from_bytes(sim.bytes()));
    let mut again = mount(&pmem(&image), &options).unwrap();
    let mut got = vec![0; size];
    again.read(file, 0, &mut got).unwrap();
    (got[..len] != bytes[..len]).then(|| "a replay has overwritten a file's data".into())
}

/// An unlinked file that was open when the power went is freed.
fn pending(faults: Faults) -> Option<String> {
    let sim = new_fs(288);
    let options = MountOptions { faults, ..MountOptions::default() };
    let mut volume = mount(&pmem(&sim), &options).unwrap();
    let ino = volume.create(ROOT_INO, b"f", true).unwrap();
    let free = volume.statfs().unwrap().free_blocks;
    volume.write(ino, 0, &[1; 9000]).unwrap();
    volume.unlink(ROOT_INO, b"f").unwrap();
    drop(volume);
    let mut volume = mount(&pmem(&sim), &options).unwrap();
    (volume.statfs().unwrap().free_blocks != free).then(|| "the blocks of an unlinked file are not free".into())
}

/// A hole in the middle of a run takes one more extent than the inode has room for, and no block is free: the power goes
/// at each fence.
fn punch_where_nothing_is_free(faults: Faults) -> Option<String> {
    const BLOCK: usize = BLOCK_SIZE as usize;
    let sim = new_fs(288);
    let options = MountOptions { faults, ..MountOptions::default() };
    let mut volume = mount(&pmem(&sim), &options).unwrap();
    let [ino, filler] = [&b"f"[..], b"filler"].map(|name| volume.create(ROOT_INO, name, true).unwrap());
    for nr in 0..INLINE_EXTENTS as u64 {
        volume.write(ino, nr * 8 * BLOCK_SIZE, &[nr as u8 | 1; 5 * BLOCK]).unwrap();
    }
    let free = volume.statfs().unwrap().free_blocks as usize;
    assert_eq!(volume.write(filler, 0, &vec![1; free * BLOCK]), Ok(free * BLOCK));
    let mut old = vec![0; volume.stat(ino).unwrap().size as usize];
    volume.read(ino, 0, &mut old).unwrap();
    let hole = BLOCK..4 * BLOCK;
    let mut recorder = sim.record();
    volume.punch(ino, hole.start as u64, hole.len() as u64).unwrap();
    sim.mark(1);
    assert_eq!(volume.statfs().unwrap().free_blocks, 2, "three blocks less one for extents");
    let mut violation = None;
    recorder.crash_images(&sim, Limits { per_point: 64, torn: 16, seed: 1 }, &mut |image, mark| {
        let image = Arc::new(SimPmem::from_bytes(image.to_vec()));
        let mut got = vec![1; old.len()];
        let mounted = mount(&pmem(&image), &options);
        if let Err(error) = mounted.and_then(|mut volume| volume.read(ino, 0, &mut got)) {
            violation = Some(format!("cannot be read: {error}"));
        }
        let is_right = |at: usize| got[at] == if hole.contains(&at) { 0 } else { old[at] };
        let bad = (0..old.len()).find(|&at| !is_right(at) && (mark == 1 || got[at] != old[at]));
        violation = violation.take().or(bad.map(|at| format!("byte {at} is neither old nor zero")));
        let report = check(&pmem(&image), None);
        violation = violation.take().or((!report.is_clean()).then(|| format!("checker: {:?}", report.problems)));
        violation.is_none()
    });
    violation
}

#[test]
fn sound_recovery_of_what_the_special_cases_do() {
    assert_eq!(reuse(1, Faults::default()), None);
    assert_eq!(pending(Faults::default()), None);
    assert_eq!(punch_where_nothing_is_free(Faults::default()), None);
}

/// Recovery is itself interrupted: recovered again, the outcome is the same.
#[test]
fn a_recovery_that_is_cut_short_is_repeated() {
    for seed in 1..=4 {
        let sim = new_fs(288);
        let (mut volume, mut model, mut random) = (common::mounted(&sim), Model::default(), Random::new(seed));
        for _ in 0..30 {
            let op = random_op(&mut random, 24 * BLOCK_SIZE);
            if apply(&mut volume, &op).is_ok() {
                model.apply(&op).unwrap();
            }
        }
        drop(volume);
        let image = Arc::new(SimPmem::from_bytes(sim.bytes()));
        let mut recorder = image.record();
        drop(common::mounted(&image));
        let limits = Limits { per_point: 64, torn: 16, seed };
        let run = Run::new(seed, Faults::default());
        let op = Op::Create(Vec::new());
        let mut violation = None;
        recorder.crash_images(&image, limits, &mut |image, _| {
            violation = run.recover(image.to_vec(), &[model.clone()], &op);
            violation.is_none()
        });
        assert_eq!(violation, None);
    }
}
