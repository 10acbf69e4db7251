//! Power cuts in each operation on its own: every image that the medium may hold at each of its fences, as far as the
//! bound allows (`UNPLUG_FULL` raises it); above it images chosen with a printed seed. Also with the journal on another
//! device, and for what tasks store through mappings.

mod common;
mod rig;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{Model, Thing, difference, read_all};
use fs::check::check;
use fs::error::FsError;
use fs::format::{BLOCK_SIZE, ROOT_INO};
use fs::mount::{MakeOptions, MountOptions, make, mount};
use fs::pmem::Pmem;
use fs::volume::Volume;
use mm::addr::PAGE_SIZE;
use rig::{Device, START, Task, cx, page, rig};
use testkit::sim::{Counts, Limits, SimPmem};

/// A part of the memory: two devices that lose power together.
struct Window {
    sim: Arc<SimPmem>,
    base: u64,
    len: u64,
}

impl Pmem for Window {
    fn len_bytes(&self) -> u64 {
        self.len
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), FsError> {
        fs::pmem::check_bounds(offset, buf.len(), self.len)?;
        self.sim.read(self.base + offset, buf)
    }
    fn store(&self, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        fs::pmem::check_bounds(offset, bytes.len(), self.len)?;
        self.sim.store(self.base + offset, bytes)
    }
    fn write_back(&self, offset: u64, len: u64) {
        self.sim.write_back(self.base + offset, len);
    }
    fn fence(&self) -> Result<(), FsError> {
        self.sim.fence()
    }
}

/// Blocks of the file system, and of the journal on another device.
const BLOCKS: u64 = 320;
const LOG_BLOCKS: u64 = 16;

/// The memory, as a file system sees it.
struct Medium {
    sim: Arc<SimPmem>,
    data: Arc<dyn Pmem>,
    log: Option<Arc<dyn Pmem>>,
}

impl Medium {
    fn new(bytes: Vec<u8>, external: bool) -> Self {
        let sim = Arc::new(SimPmem::from_bytes(bytes));
        let window = |first: u64, nr: u64| -> Arc<dyn Pmem> {
            Arc::new(Window { sim: sim.clone(), base: first * BLOCK_SIZE, len: nr * BLOCK_SIZE })
        };
        let (data, log) = (window(0, BLOCKS), external.then(|| window(BLOCKS, LOG_BLOCKS)));
        Self { sim, data, log }
    }
    fn mount(&self) -> Result<Volume, FsError> {
        mount(&self.data, &MountOptions { log: self.log.clone(), ..MountOptions::default() })
    }
}

/// What there is to be seen: the tree with its contents, and attributes by path.
#[derive(Clone, Default)]
struct State {
    model: Model,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

fn state(volume: &mut Volume) -> Result<State, FsError> {
    let model = read_all(volume)?;
    let mut attributes = BTreeMap::new();
    for (path, thing) in &model.paths {
        if let Thing::File(ino) = thing {
            attributes.insert(path.clone(), volume.attributes(*ino)?);
        }
    }
    Ok(State { model, attributes })
}

/// How the image differs from both states; `None` where it is one of them, but for bytes that were overwritten in
/// place.
fn violation(image: &[u8], states: &[State], external: bool) -> Option<String> {
    let medium = Medium::new(image.to_vec(), external);
    let mut volume = match medium.mount() {
        Ok(volume) => volume,
        Err(error) => return Some(format!("cannot be mounted: {error}")),
    };
    let got = match state(&mut volume) {
        Ok(got) => got,
        Err(error) => return Some(format!("cannot be read: {error}")),
    };
    let either = |path: &[u8], at: usize, byte: u8| {
        let has = |state: &State| match state.model.paths.get(path) {
            Some(Thing::File(nr)) => state.model.files[nr].get(at) == Some(&byte),
            _ => false,
        };
        states.len() == 2 && states.iter().any(has)
    };
    let differs = |want: &State| {
        let attributes = (got.attributes != want.attributes).then(|| "attributes".to_string());
        difference(&got.model, &want.model, &either).or(attributes)
    };
    let differences: Vec<_> = states.iter().filter_map(differs).collect();
    if differences.len() == states.len() {
        return Some(differences.join("; or: "));
    }
    // It goes on, and what it does then is sound too.
    if let Err(error) = volume.create(ROOT_INO, b"afterwards", true) {
        return Some(format!("no file can be made: {error}"));
    }
    let report = check(&medium.data, medium.log.as_ref());
    (!report.is_clean()).then(|| format!("checker: {:?}", report.problems))
}

type Work = fn(&mut Volume) -> Result<(), FsError>;

/// An operation: what is there before, and what it does.
struct Case {
    name: &'static str,
    before: Work,
    work: Work,
}

fn ino(volume: &mut Volume, path: &str) -> u64 {
    volume.resolve(path.as_bytes()).expect("the case has made it")
}

fn file(volume: &mut Volume, name: &str, bytes: &[u8]) -> u64 {
    let ino = volume.create(ROOT_INO, name.as_bytes(), true).expect("there is room");
    volume.write(ino, 0, bytes).expect("there is room");
    ino
}

/// A file of `nr` runs of one block each.
fn holes(volume: &mut Volume, nr: u64) -> u64 {
    let ino = file(volume, "holes", b"");
    (0..nr).for_each(|at| _ = volume.write(ino, at * 2 * BLOCK_SIZE, &[at as u8 | 1; 40]).expect("there is room"));
    ino
}

fn free_all(volume: &mut Volume, gone: Option<u64>) -> Result<(), FsError> {
    gone.map_or(Ok(()), |ino| volume.free(ino))
}

macro_rules! cases {
    ($($name:literal: |$v:ident| $before:block => $work:expr,)*) => {
        &[$(Case { name: $name, before: |$v| { $before; Ok(()) }, work: |$v| $work },)*]
    };
}

const CASES: &[Case] = cases! {
    "create": |v| { file(v, "a", b"x") } => v.create(ROOT_INO, b"b", true).map(drop),
    "create: the inode table grows": |v| { for nr in 0..61 { file(v, &format!("{nr}"), b""); } }
        => v.create(ROOT_INO, b"b", true).map(drop),
    "create: the directory grows": |v| { for nr in 0..12 { file(v, &format!("{nr:0250}"), b""); } }
        => v.create(ROOT_INO, &[b'b'; 255], true).map(drop),
    "mkdir": |v| { v.mkdir(ROOT_INO, b"d")? } => { let d = ino(v, "d"); v.mkdir(d, b"e").map(drop) },
    "link": |v| { file(v, "a", b"x") } => { let a = ino(v, "a"); v.link(a, ROOT_INO, b"b") },
    "unlink, open": |v| { file(v, "a", &[7; 9000]) } => v.unlink(ROOT_INO, b"a").map(drop),
    "unlink and free": |v| { file(v, "a", &[7; 9000]) }
        => { let gone = v.unlink(ROOT_INO, b"a")?; free_all(v, gone) },
    "rmdir": |v| { let d = v.mkdir(ROOT_INO, b"d")?; v.create(d, b"x", true)?; v.unlink(d, b"x")? }
        => { let gone = v.rmdir(ROOT_INO, b"d")?; v.free(gone) },
    "rename": |v| { file(v, "a", b"x") } => v.rename((ROOT_INO, b"a"), (ROOT_INO, b"b")).map(drop),
    "rename over a file": |v| { file(v, "a", b"x"); file(v, "b", &[9; 5000]) }
        => { let gone = v.rename((ROOT_INO, b"a"), (ROOT_INO, b"b"))?; free_all(v, gone) },
    "rename of a directory": |v| { let d = v.mkdir(ROOT_INO, b"d")?; v.mkdir(d, b"e")?; v.mkdir(ROOT_INO, b"f")? }
        => { let (d, f) = (ino(v, "d"), ino(v, "f")); v.rename((d, b"e"), (f, b"g")).map(drop) },
    "write of a new file": |v| { file(v, "a", b"") } => { let a = ino(v, "a"); v.write(a, 0, &[5; 300]).map(drop) },
    "append": |v| { file(v, "a", &[4; 300]) } => { let a = ino(v, "a"); v.write(a, 300, &[5; 200]).map(drop) },
    "overwrite": |v| { file(v, "a", &[4; 300]) } => { let a = ino(v, "a"); v.write(a, 100, &[5; 150]).map(drop) },
    "write behind a hole": |v| { file(v, "a", &[4; 300]) }
        => { let a = ino(v, "a"); v.write(a, 3 * BLOCK_SIZE + 7, &[5; 60]).map(drop) },
    "write: a mapping block": |v| { holes(v, 8) }
        => { let a = ino(v, "holes"); v.write(a, 100 * BLOCK_SIZE, b"x").map(drop) },
    "write: two runs become one": |v| { let a = file(v, "a", &[4; 12_288]); v.punch(a, 4096, 4096)? }
        => { let a = ino(v, "a"); v.write(a, 5000, &[5; 60]).map(drop) },
    "truncate longer": |v| { file(v, "a", &[4; 300]) } => { let a = ino(v, "a"); v.truncate(a, 9000) },
    "truncate shorter": |v| { file(v, "a", &[4; 9000]) } => { let a = ino(v, "a"); v.truncate(a, 100) },
    "truncate: mapping blocks go": |v| { holes(v, 12) } => { let a = ino(v, "holes"); v.truncate(a, 50) },
    "truncate in steps": |v| { holes(v, 120) } => { let a = ino(v, "holes"); v.truncate(a, 50) },
    "punch": |v| { file(v, "a", &[4; 30_000]) } => { let a = ino(v, "a"); v.punch(a, 4096, 8192) },
    "punch inside a block": |v| { file(v, "a", &[4; 300]) } => { let a = ino(v, "a"); v.punch(a, 50, 100) },
    "attributes": |v| { file(v, "a", b"x") } => { let a = ino(v, "a"); v.set_attributes(a, b"colour=red") },
    "other attributes": |v| { let a = file(v, "a", b"x"); v.set_attributes(a, b"colour=red")? }
        => { let a = ino(v, "a"); v.set_attributes(a, b"shape=round") },
    "no attributes": |v| { let a = file(v, "a", b"x"); v.set_attributes(a, b"colour=red")? }
        => { let a = ino(v, "a"); v.set_attributes(a, b"") },
    "fault in a hole": |v| { let a = file(v, "a", b"x"); v.truncate(a, 9000)? }
        => { let a = ino(v, "a"); v.map_block(a, 1, true).map(drop) },
    "freeze": |v| { file(v, "a", b"x") } => v.quiesce(),
    "freeze and thaw": |v| { file(v, "a", b"x") } => v.quiesce().and_then(|()| v.resume()),
};

/// One case: on a medium at rest, or with the last operation's changes in place still in the cache.
fn cut_power(case: &Case, at_rest: bool, external: bool, limits: Limits) -> Counts {
    let medium = Medium::new(vec![0; ((BLOCKS + LOG_BLOCKS) * BLOCK_SIZE) as usize], external);
    let options = MakeOptions { uuid: *b"0123456789abcdef", log: medium.log.clone(), ..MakeOptions::default() };
    make(&medium.data, &options).unwrap();
    let mut volume = medium.mount().unwrap();
    let mut recorder = medium.sim.record();
    (case.before)(&mut volume).unwrap();
    if at_rest {
        volume.quiesce().unwrap();
        volume.resume().unwrap();
        volume.quiesce().unwrap();
    }
    // What is still in the cache stays there.
    recorder.skip(&medium.sim);
    let before = state(&mut volume).unwrap();
    (case.work)(&mut volume).unwrap_or_else(|error| panic!("{}: {error}", case.name));
    medium.sim.mark(1);
    let states = [before, state(&mut volume).unwrap()];
    let mut found = None;
    let counts = recorder.crash_images(&medium.sim, limits, &mut |image, mark| {
        found = violation(image, if mark == 1 { &states[1..] } else { &states }, external);
        found.is_none()
    });
    assert_eq!(found, None, "{}, at rest: {at_rest}, seed {}", case.name, limits.seed);
    counts
}

fn seed() -> u64 {
    std::env::var("FS_CRASH_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

fn each(external: bool) {
    let full = std::env::var_os("UNPLUG_FULL").is_some();
    let limits = Limits { per_point: if full { 4096 } else { 128 }, torn: if full { 64 } else { 8 }, seed: seed() };
    println!("seed {}; at most {} images for a point, and {} torn ones", limits.seed, limits.per_point, limits.torn);
    let mut all = Counts::default();
    for case in CASES {
        // The long version looks at both.
        for at_rest in [true, false].into_iter().filter(|at_rest| full || *at_rest == external) {
            let Counts { points, exhausted, images } = cut_power(case, at_rest, external, limits);
            println!("{:<32} {points:>2} points, {exhausted:>2} of them all images: {images} images", case.name);
            assert!(points >= 2 && images >= points);
            all.points += points;
            all.exhausted += exhausted;
            all.images += images;
        }
    }
    println!("{} points, {} of them all images: {} images", all.points, all.exhausted, all.images);
}

#[test]
fn each_operation_happened_wholly_or_not_at_all() {
    each(false);
}

#[test]
fn with_the_journal_on_another_device_too() {
    each(true);
}

/// What a task has stored is, line by line, there or not before `fsync`, and there after it.
#[test]
fn what_a_task_has_stored_is_durable_after_fsync() {
    let (_emu, mm) = rig(1);
    let device = Device::new(&mm, "pmem0", START, 320);
    let fs = device.mount().unwrap();
    let file = fs.create(&cx(), "a", true).unwrap();
    fs.write(&cx(), &file, 0, &vec![1; 2 * PAGE_SIZE as usize]).unwrap();
    fs.truncate(&cx(), &file, 3 * PAGE_SIZE).unwrap();
    let task = Task::with(&mm, 0, &file, 3);
    let mut recorder = device.sim.record();
    // An old page, and one that the fault makes. The emulated machine has no bytes: they are stored here.
    let stores = [(0, 128, 2_u8), (0, 130, 3), (1, 4000, 4), (2, 64, 5)];
    for (nr, at, byte) in stores {
        task.store(nr, 1).unwrap();
        let pfn = task.space.translate(page(nr)).unwrap().pfn_at(page(nr));
        device.sim.store((pfn.as_u64() - START) * PAGE_SIZE + at, &[byte; 8]).unwrap();
    }
    assert!(fs.fsync(&cx(), &file).unwrap().fenced);
    device.sim.mark(1);
    let (mut old, mut all) = (0, 0);
    let limits = Limits { per_point: 4096, torn: 64, seed: seed() };
    let counts = recorder.crash_images(&device.sim, limits, &mut |image, mark| {
        let sim = Arc::new(SimPmem::from_bytes(image.to_vec()));
        let pmem: Arc<dyn Pmem> = sim.clone();
        let mut volume = mount(&pmem, &MountOptions::default()).unwrap();
        let ino = volume.resolve(b"a").unwrap();
        let mut got = vec![0; 3 * PAGE_SIZE as usize];
        volume.read(ino, 0, &mut got).unwrap();
        let has = |(nr, at, byte): (u64, u64, u8)| got[(nr * PAGE_SIZE + at) as usize] == byte;
        // The second store has overwritten a part of the first.
        let nr = stores.into_iter().filter(|&store| has(store)).count();
        assert!(mark == 0 || nr == stores.len(), "{nr} of 4 stores are there after fsync");
        old += u64::from(nr == 0);
        all += u64::from(nr == stores.len());
        let report = check(&pmem, None);
        assert!(report.is_clean(), "{report:?}");
        true
    });
    println!("{counts:?}: nothing in {old}, everything in {all}");
    assert!(old > 0 && all > 0 && counts.exhausted > 0);
    fs.reap(&cx());
}
