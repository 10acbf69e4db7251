//! Memory modules that leave without a word: no copy from nowhere is a success, wherever in it the module leaves, comes back,
//! or is taken notice of.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dax::device::DataCache;
use dax::removal::Method;
use mm::addr::{PAGE_SIZE, Pfn, PfnRange};
use mm::context::MmContext;
use mm::ledger::Kind;
use mm::pagemap::MemoryKind;
use nvdimm::hotplug::presence::{REMEMBERED, all_there};
use nvdimm::hotplug::stay::{self, Place};
use nvdimm::hotplug::{Ejected, Hotplug, Module, ModuleError, Registers, Status, free_windows};
use nvdimm::nfit::{ByteRange, Limits, Owner, Taken};
use nvdimm::pmem::block::{BlockError, SECTOR_BYTES};
use nvdimm::pmem::memory::{FlushError, MapFailed, PmemHost, PmemMemory};
use nvdimm::pmem::{AttachError, Config, PmemDriver, Step};
use nvdimm::virtio_pmem::RegionError;
use testkit::emu::EmuMachine;
use testkit::hotplug::{ModuleBytes, Slots};

const BASE: u64 = 1 << 32;
const LEN: u64 = 256 << 10;

/// Maps one module's bytes.
struct Kernel {
    bytes: Arc<ModuleBytes>,
    ledger: Arc<mm::ledger::Ledger>,
}

impl PmemHost for Kernel {
    fn map(&self, _: PfnRange) -> Result<Arc<dyn PmemMemory>, MapFailed> {
        self.ledger.charge(Kind::DirectMapLeaves, 1);
        Ok(Arc::clone(&self.bytes) as Arc<dyn PmemMemory>)
    }
    fn unmap(&self, _: PfnRange) {
        self.ledger.charge(Kind::DirectMapLeaves, -1);
    }
}

struct Bench {
    slots: Arc<Slots>,
    place: Arc<Place>,
    bytes: Arc<ModuleBytes>,
    mm: Arc<MmContext<EmuMachine>>,
    kernel: Arc<Kernel>,
    driver: PmemDriver<EmuMachine>,
}

/// A machine with a module in slot 1 whose stay goes on.
fn bench() -> Bench {
    let slots = Slots::new(3);
    slots.cold(1, BASE, LEN);
    let hotplug = Arc::new(Hotplug::new(Arc::clone(&slots) as Arc<dyn Registers>, 3));
    let place = Place::new(&hotplug, 1);
    assert!(place.current().is_none() && !place.has_left());
    assert_eq!(place.begin().map(|module| module.range), Some(ByteRange { base: BASE, len_bytes: LEN }));
    let bytes = ModuleBytes::new(&slots, 1, vec![0x5a; LEN as usize]);
    let mm = testkit::emu::context(2);
    let kernel = Arc::new(Kernel { bytes: Arc::clone(&bytes), ledger: Arc::clone(&mm.ledger) });
    let base = PmemDriver::new(&mm, Arc::clone(&kernel) as Arc<dyn PmemHost>, DataCache::Coherent);
    let driver = stay::driver(&base, Arc::clone(&kernel) as Arc<dyn PmemHost>, &place);
    Bench { slots, place, bytes, mm, kernel, driver }
}

fn frames() -> PfnRange {
    PfnRange::new(Pfn::new(BASE / PAGE_SIZE), LEN / PAGE_SIZE).unwrap()
}

fn config(ranges: &[PfnRange]) -> Config<'_> {
    Config { name: "dimm0", ranges, kind: MemoryKind::FsDax, bad_blocks: &[], read_only: None }
}

impl Bench {
    fn attach(&self) -> Result<nvdimm::pmem::PmemDevice<EmuMachine>, AttachError> {
        self.driver.attach(&config(&[frames()]), &mut |_: Step| Ok(())).map_err(|(_, error)| error)
    }
    /// The module leaves just before the access with this number.
    fn pull_before(&self, access: u64) {
        let slots = Arc::clone(&self.slots);
        self.slots.before(access, move || slots.pull(1));
    }
    /// It leaves, comes back, and is taken notice of.
    fn replace_before(&self, access: u64) {
        let (slots, place) = (Arc::clone(&self.slots), Arc::clone(&self.place));
        self.slots.before(access, move || {
            slots.pull(1);
            slots.put(1, BASE, LEN);
            place.begin();
        });
    }
}

#[test]
fn each_slot_says_what_is_in_it_and_what_is_to_become_of_it() {
    let bench = bench();
    let hotplug = bench.place.hotplug();
    assert_eq!([0, 1, 2].map(|slot| hotplug.status(slot).enabled), [false, true, false]);
    assert!(hotplug.module(0).is_none());
    bench.slots.put(2, 5 << 32, 1 << 33);
    let range = ByteRange { base: 5 << 32, len_bytes: 1 << 33 };
    let inserted = Status { enabled: true, inserted: true, asked_for: false };
    assert_eq!(hotplug.module(2), Some((Module { range, proximity: 0 }, inserted)));
    assert_eq!(hotplug.take_notice(2).map(|(_, status)| status.inserted), Some(false));
    bench.slots.ask_for(2);
    assert!(hotplug.status(2).asked_for);
    hotplug.refuse(2);
    assert_eq!((hotplug.status(2).asked_for, bench.slots.reports()), (false, vec![(2, 3, 0x82)]));
    bench.slots.ask_for(2);
    hotplug.take_request(2);
    assert_eq!((hotplug.status(2).asked_for, hotplug.eject_known(2)), (false, Ejected::Went));
    assert!(hotplug.module(2).is_none());
    assert!(hotplug.status(1).enabled, "another slot's module has gone");
}

// covers: S4
#[test]
fn a_module_that_took_the_place_of_the_one_asked_for_is_not_ejected() {
    let bench = bench();
    let hotplug = bench.place.hotplug();
    bench.slots.ask_for(1);
    bench.slots.pull(1);
    assert_eq!(hotplug.eject_known(1), Ejected::HadLeft, "nothing is there");
    // The wish is about the module that has left.
    hotplug.drop_request(1);
    bench.slots.put(1, BASE, LEN);
    assert_eq!((hotplug.status(1).asked_for, bench.slots.reports()), (false, vec![]));
    assert_eq!(hotplug.eject_known(1), Ejected::HadLeft, "nobody has taken notice of this one");
    assert!(bench.slots.has(1), "another module was thrown out");
    bench.place.begin();
    assert_eq!((hotplug.eject_known(1), bench.slots.has(1)), (Ejected::Went, false));
    bench.slots.put(1, BASE, LEN);
    assert!(hotplug.eject(1) && !bench.slots.has(1), "without asking whose it is");
}

// covers: S2
#[test]
fn a_stay_is_that_of_one_range_and_nothing_else_is_there_by_it() {
    let bench = bench();
    let stay = bench.place.current().unwrap();
    let of = |base: u64, len: u64| PfnRange::new(Pfn::new(base / PAGE_SIZE), len / PAGE_SIZE).unwrap();
    assert_eq!(stay.range(), ByteRange { base: BASE, len_bytes: LEN });
    assert_eq!(stay.frames(), Some(frames()));
    for (frames, is_of) in [
        (of(BASE, LEN), true),
        (of(BASE, LEN - PAGE_SIZE), false),
        (of(BASE + PAGE_SIZE, LEN - PAGE_SIZE), false),
        (of(BASE, LEN + PAGE_SIZE), false),
        (of(BASE - PAGE_SIZE, LEN), false),
        (of(2 * BASE, LEN), false),
    ] {
        assert_eq!(stay.is_of(frames), is_of, "{frames:?}");
    }
    // In the same slot comes a module that is elsewhere, or of another size: what was there is not.
    for (base, len) in [(2 * BASE, LEN), (BASE, 2 * LEN), (BASE, LEN / 2)] {
        bench.slots.pull(1);
        bench.slots.put(1, base, len);
        bench.place.begin();
        let now = bench.place.current().unwrap();
        assert!(now.goes_on() && !stay.goes_on());
        assert_eq!((now.range().base, now.range().len_bytes), (base, len));
        assert_eq!(bench.attach().err(), Some(AttachError::Map(MapFailed::Gone)), "{base:#x} {len:#x}");
        assert_eq!(bench.driver.look("dimm0", frames(), |_| ()), Err(AttachError::Map(MapFailed::Gone)));
    }
    bench.slots.pull(1);
    bench.slots.put(1, BASE, LEN);
    bench.place.begin();
    drop(bench.attach().expect("it is back"));
}

// covers: S2
#[test]
fn a_run_over_two_modules_is_there_if_both_are_and_each_is_asked_once_for_all_runs() {
    let slots = Slots::new(2);
    (0..2).for_each(|nth| slots.cold(nth, BASE + nth as u64 * LEN, LEN));
    let hotplug = Arc::new(Hotplug::new(Arc::clone(&slots) as Arc<dyn Registers>, 2));
    let places = [0, 1].map(|slot| Place::new(&hotplug, slot));
    places.iter().for_each(|place| assert!(place.begin().is_some()));
    let of = |first: u64, nr| PfnRange::new(Pfn::new(BASE / PAGE_SIZE + first), nr).unwrap();
    let around = |at| {
        let stay = places.iter().filter_map(Place::current).find(|stay| stay.frames().unwrap().contains(at))?;
        if stay.goes_on() { stay.frames() } else { None }
    };
    // What it costs to ask one.
    let accesses = |runs: &[PfnRange]| {
        let before = slots.accesses();
        (all_there(runs, around), slots.accesses() - before)
    };
    let pages = LEN / PAGE_SIZE;
    let (is_there, one) = accesses(&[of(0, 1)]);
    assert!(is_there && one > 0);
    for runs in [vec![of(pages - 1, 2)], vec![of(0, 2 * pages)], (0..2 * pages).rev().map(|nth| of(nth, 1)).collect()] {
        assert_eq!(accesses(&runs), (true, 2 * one), "{runs:?}");
    }
    // Back and forth between the two.
    let far_apart: Vec<_> = (0..pages).flat_map(|nth| [of(nth, 1), of(pages + nth, 1)]).collect();
    assert_eq!(accesses(&far_apart), (true, 2 * one));
    // Beyond the second there is nothing.
    assert!(!accesses(&[of(2 * pages - 1, 2)]).0 && !accesses(&[of(2 * pages, 1)]).0);
    slots.pull(1);
    assert!(!accesses(&[of(pages - 1, 2)]).0 && !accesses(&far_apart).0, "one of the two has left");
    assert!(accesses(&[of(0, pages)]).0, "the other is there");
    slots.put(1, BASE + LEN, LEN);
    assert!(!accesses(&[of(pages - 1, 2)]).0, "it is another one until notice is taken");
    assert!(places[1].begin().is_some());
    assert!(accesses(&[of(pages - 1, 2)]).0);
    // Of more parts than are remembered all are found all the same, and those that were of use lately are not asked again.
    let nr = REMEMBERED as u64 + 1;
    let (mut asked, parts) = (0, |nth: u64| of(nth * 8, 8));
    let runs: Vec<_> = (0..nr).flat_map(|nth| [of(nth * 8, 1), of(nth * 8 + 7, 1), of(7, 1)]).collect();
    assert!(all_there(&runs, |at| {
        asked += 1;
        (0..nr).map(parts).find(|part| part.contains(at))
    }));
    assert_eq!(asked, nr, "ranges that were asked");
}

/// A reader that is told of a stay while one module takes the place of the other never puts the range of one to the number
/// of the other.
#[test]
fn whoever_looks_while_modules_change_sees_the_range_of_the_stay_that_it_is_told_of() {
    let bench = bench();
    let range = |nr: u64| ByteRange { base: BASE * (1 + nr % 2), len_bytes: LEN * (1 + nr % 2) };
    let (seen, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                if let Some(stay) = bench.place.current() {
                    let ByteRange { base, len_bytes } = stay.range();
                    assert_eq!(base / BASE, len_bytes / LEN, "{base:#x} {len_bytes:#x}");
                    seen.fetch_add(1, Ordering::Release);
                }
            }
        });
        let (mut changes, before) = (0, seen.load(Ordering::Acquire));
        while changes < 5_000 || seen.load(Ordering::Acquire) < before + 1_000 {
            let ByteRange { base, len_bytes } = range(changes);
            bench.slots.pull(1);
            bench.slots.put(1, base, len_bytes);
            bench.place.begin();
            changes += 1;
        }
        done.store(true, Ordering::Release);
    });
}

#[test]
fn memory_may_come_where_the_cpu_reaches_and_nobody_is() {
    const MIB: u64 = 1 << 20;
    let hot = |base, len_bytes| ByteRange { base, len_bytes };
    let taken = |base, len_bytes| Taken { range: hot(base, len_bytes), by: Owner::Ram };
    let frames = |base: u64, len: u64| PfnRange::new(Pfn::new(base / PAGE_SIZE), len / PAGE_SIZE).unwrap();
    let free = |ranges: &[ByteRange], taken: &[Taken], used: &[PfnRange]| {
        let windows = free_windows(ranges, Limits { phys_bits: 40, taken }, used);
        windows.iter().map(|w| (w.start().addr().as_u64(), w.nr_pages() * PAGE_SIZE)).collect::<Vec<_>>()
    };
    let one = [hot(BASE, 64 * MIB)];
    assert_eq!(free(&one, &[], &[]), [(BASE, 64 * MIB)]);
    assert_eq!(free(&[], &[], &[]), []);
    // In the middle, at an end, beyond both ends, in any order.
    let used = [frames(BASE + 48 * MIB, MIB), frames(BASE, MIB), frames(BASE + 2 * MIB, 2 * MIB)];
    let left = [(MIB, MIB), (4 * MIB, 44 * MIB), (49 * MIB, 15 * MIB)].map(|(at, len)| (BASE + at, len));
    assert_eq!(free(&one, &[], &used), left);
    assert_eq!(free(&one, &[taken(BASE + 63 * MIB, 4 * MIB)], &used[1..2]), [(BASE + MIB, 62 * MIB)]);
    assert_eq!(free(&one, &[], &[frames(BASE - MIB, 66 * MIB)]), []);
    // Ranges that overlap, contain each other or touch are one; each frame is in one window.
    let many = [hot(BASE + 32 * MIB, 64 * MIB), hot(BASE, 64 * MIB), hot(BASE + MIB, MIB), hot(BASE + 96 * MIB, MIB)];
    assert_eq!(free(&many, &[], &[]), [(BASE, 97 * MIB)]);
    assert_eq!(free(&many, &[], &used[1..2]), [(BASE + MIB, 96 * MIB)]);
    // What the CPU does not reach is none, up to the highest address that a table can hold.
    let end = 1 << 40;
    assert_eq!(free(&[hot(end - MIB, 2 * MIB), hot(end, MIB)], &[], &[]), [(end - MIB, MIB)]);
    assert_eq!(free(&[hot(end - MIB, u64::MAX - end)], &[], &[]), [(end - MIB, MIB)]);
    assert_eq!(free(&[hot(u64::MAX - MIB, MIB)], &[], &[]), []);
    // Whole pages: those of a window lie in it, those of somebody else are his.
    assert_eq!(free(&[hot(BASE + 1, 3 * PAGE_SIZE)], &[], &[]), [(BASE + PAGE_SIZE, 2 * PAGE_SIZE)]);
    let byte = [taken(BASE + PAGE_SIZE, 1)];
    assert_eq!(free(&[hot(BASE, 3 * PAGE_SIZE)], &byte, &[]), [(BASE, PAGE_SIZE), (BASE + 2 * PAGE_SIZE, PAGE_SIZE)]);
    assert_eq!(free(&[hot(BASE + 1, 1)], &[], &[]), []);
}

#[test]
fn a_module_is_where_memory_may_be_plugged_in_and_nobody_else_is() {
    let hot = [ByteRange { base: 1 << 32, len_bytes: 1 << 32 }];
    let limits = Limits { phys_bits: 40, taken: &[] };
    let of = |base, len_bytes| Module { range: ByteRange { base, len_bytes }, proximity: 0 }.frames(limits, &hot);
    assert_eq!(of(1 << 32, 1 << 30).map(PfnRange::nr_pages), Ok(1 << 18));
    assert_eq!(of(1 << 32, 1 << 32).map(PfnRange::nr_pages), Ok(1 << 20));
    for (base, len) in [(0, 1 << 30), ((1 << 32) - 4096, 8192), (1 << 32, (1 << 32) + 4096), (1 << 33, 4096)] {
        assert_eq!(of(base, len), Err(ModuleError::NotHotPluggable), "{base:#x} {len:#x}");
    }
    assert_eq!(of(1 << 32, 0), Err(ModuleError::Region(RegionError::Empty)));
    assert_eq!(of((1 << 32) + 1, 4096), Err(ModuleError::Region(RegionError::Misaligned)));
    for (base, len) in [(1 << 41, 4096), (u64::MAX - 4095, 4096), (1 << 32, u64::MAX - 4095)] {
        assert_eq!(of(base, len), Err(ModuleError::Region(RegionError::Unreachable { phys_bits: 40 })));
    }
    let none = Module { range: hot[0], proximity: 0 }.frames(limits, &[]);
    assert_eq!(none, Err(ModuleError::NotHotPluggable), "where nothing is said, nothing may be");
}

// covers: S2
#[test]
fn what_was_copied_after_the_module_left_is_no_success() {
    // Before the very copy, which so comes from nowhere, and behind it, which is as bad: nobody can tell.
    for access in 0..2 {
        let bench = bench();
        let device = bench.attach().unwrap();
        let block = Arc::clone(device.block());
        let mut buf = [0; SECTOR_BYTES as usize];
        assert_eq!((block.read(0, &mut buf), buf[0]), (Ok(()), 0x5a));
        bench.pull_before(access);
        assert_eq!(block.read(0, &mut buf), Err(BlockError::Gone), "access {access}");
        assert!(bench.place.has_left() && !block.is_there());
        assert_eq!(block.write(0, &buf), Err(BlockError::Gone));
        assert_eq!(block.flush(), Err(BlockError::NotDurable(FlushError::Gone)));
        // Nothing is known to be lost: it may come back.
        assert_eq!(block.bad_blocks(), []);
        drop(device);
    }
}

// covers: S2
#[test]
fn a_module_that_has_come_back_is_not_the_one_that_left() {
    let bench = bench();
    let device = bench.attach().unwrap();
    let block = Arc::clone(device.block());
    let mut buf = [0; SECTOR_BYTES as usize];
    bench.pull_before(0);
    let slots = Arc::clone(&bench.slots);
    bench.slots.before(1, move || slots.put(1, BASE, LEN));
    assert_eq!((block.read(0, &mut buf), buf[0]), (Err(BlockError::Gone), 0), "read from nowhere");
    assert!(bench.place.has_left(), "it is noticed, although one is there");
    assert_eq!(block.read(0, &mut buf), Err(BlockError::Gone));
    drop(device);
}

// covers: S2
#[test]
fn a_stay_ends_for_good_wherever_the_next_one_begins() {
    let back = || {
        let bench = bench();
        let stay = bench.place.current().unwrap();
        assert!(stay.goes_on());
        bench.slots.pull(1);
        bench.slots.put(1, BASE, LEN);
        (bench, stay)
    };
    // Notice is taken in the middle of an answer: before the look at the flags, and behind it.
    for behind in [false, true] {
        let (bench, stay) = back();
        let place = Arc::clone(&bench.place);
        let begin = move || assert!(place.begin().is_some());
        if behind {
            bench.slots.behind(0, begin)
        } else {
            bench.slots.before(0, begin)
        }
        assert!(!stay.goes_on() && !stay.goes_on());
        assert!(bench.place.current().unwrap().goes_on());
    }
    // An answer is asked for in the middle of taking notice: before the flags are changed, and behind that.
    for behind in [false, true] {
        let (bench, stay) = back();
        let asked = stay.clone();
        let ask = move || assert!(!asked.goes_on());
        if behind {
            bench.slots.behind(0, ask)
        } else {
            bench.slots.before(0, ask)
        }
        assert!(bench.place.begin().is_some());
        assert!(!stay.goes_on());
    }
}

#[test]
fn a_slot_whose_module_is_changed_while_notice_is_taken_is_looked_at_again() {
    let bench = bench();
    bench.slots.pull(1);
    assert!(bench.place.begin().is_none() && bench.place.current().is_none());
    let other = 2 * BASE;
    let slots = Arc::clone(&bench.slots);
    bench.slots.put(1, BASE, LEN);
    bench.slots.before(0, move || {
        slots.pull(1);
        slots.put(1, other, LEN);
    });
    assert_eq!(bench.place.begin().map(|module| module.range.base), Some(other));
    bench.place.end();
    assert!(bench.place.current().is_none() && !bench.place.has_left(), "whoever ends a stay need not be told");
}

/// Attaches, writes, reads, flushes and makes an area, with the module leaving (or replaced) just before access `access`: what
/// was answered before that is right, and after it there is no success. Says whether it left at all.
fn vanish(access: u64, replaced: bool) -> bool {
    let bench = bench();
    if replaced {
        bench.replace_before(access)
    } else {
        bench.pull_before(access)
    }
    let left = || bench.slots.accesses() - start(&bench) > access;
    let sound = |what: &str, result: Result<(), String>| match (result, left()) {
        (Ok(()), true) => panic!("{what} is a success, and the module left at access {access}"),
        (Err(error), false) => panic!("{what}: {error}, and the module is there"),
        _ => {}
    };
    let device = match bench.attach() {
        Ok(device) => device,
        Err(error) => {
            assert!(left() && matches!(error, AttachError::Gone | AttachError::Map(MapFailed::Gone)), "{error}");
            assert_eq!(bench.mm.ledger.count(Kind::DirectMapLeaves), 0);
            return true;
        }
    };
    sound("the attach", Ok(()));
    let block = Arc::clone(device.block());
    let mut buf = [0; 2 * SECTOR_BYTES as usize];
    for round in 0..3 {
        let fill = 1 + round;
        let wrote = block.write(7, &[fill; 2 * SECTOR_BYTES as usize]);
        sound("a write", wrote.map_err(|error| error.to_string()));
        let read = block.read(7, &mut buf);
        sound("a read", read.map_err(|error| error.to_string()));
        if read.is_ok() {
            assert_eq!(buf, [fill; 2 * SECTOR_BYTES as usize]);
            assert_eq!(bench.bytes.bytes()[7 * 512..9 * 512], buf, "what was acknowledged is in the file");
        }
        sound("a flush", block.flush().map_err(|error| error.to_string()));
        let looked = block.look(|medium| medium.read(0, &mut [0; 64]));
        sound(
            "a look",
            looked.map_err(|error| error.to_string()).and_then(|read| read.map_err(|_| "unreadable".into())),
        );
    }
    let report = device.remove(Vec::new(), Method::Ranged, &mut ());
    assert_eq!(report.problems().count(), 0);
    assert_eq!(bench.mm.ledger.count(Kind::DirectMapLeaves), 0);
    let vanished = left();
    bench.slots.forget();
    // Back again, it is attached like one that was never seen.
    if !bench.slots.has(1) {
        bench.slots.put(1, BASE, LEN);
    }
    assert!(bench.place.begin().is_some());
    let again = bench.attach().unwrap();
    again.block().read(0, &mut buf).unwrap();
    assert_eq!(buf[0], 0x5a);
    drop((again, bench.kernel));
    vanished
}

/// Accesses before anybody could set something up: those of `bench`.
fn start(_: &Bench) -> u64 {
    1
}

// covers: S2
#[test]
fn whenever_it_leaves_nothing_answers_success_afterwards() {
    for replaced in [false, true] {
        let mut access = 0;
        // At every access that there is, until it stays for the whole of it.
        while vanish(access, replaced) {
            access += 1;
        }
        assert!((30..1000).contains(&access), "replaced {replaced}: it was over after {access} accesses");
    }
}

#[test]
fn a_module_that_is_not_there_is_not_attached() {
    let bench = bench();
    bench.slots.pull(1);
    assert_eq!(bench.attach().err(), Some(AttachError::Map(MapFailed::Gone)));
    let looked = bench.driver.look("dimm0", frames(), |_| ());
    assert_eq!(looked, Err(AttachError::Map(MapFailed::Gone)));
    bench.place.end();
    assert_eq!(bench.attach().err(), Some(AttachError::Map(MapFailed::Gone)));
}
