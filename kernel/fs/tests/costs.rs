//! How much is done: counts of stores, write-backs, fences, reads and looks, never of time.

mod rig;
mod sparse;

use std::sync::Arc;

use dax::device::Live;
use dax::holder::NotifyFlags;
use dax::range::WHOLE;
use fs::format::ROOT_INO;
use fs::mount::{MakeOptions, MountOptions, make, mount};
use fs::pmem::Pmem;
use mm::addr::PAGE_SIZE;
use mm::gup::GupFlags;
use rig::*;
use sparse::{Done, Sparse};
use testkit::sim::Stats;

fn cost(device: &Device, work: impl FnOnce()) -> Stats {
    let before = device.sim.stats();
    work();
    let after = device.sim.stats();
    Stats {
        stores: after.stores - before.stores,
        lines: after.lines - before.lines,
        fences: after.fences - before.fences,
    }
}

#[test]
fn a_four_kilobyte_write_and_fsync_takes_two_fences_and_few_lines() {
    let (_emu, mm) = rig(1);
    let device = Device::new(&mm, "pmem0", START, 16 * 1024);
    let fs = device.mount().unwrap();
    let file = fs.create(&cx(), "log", true).unwrap();
    let page_of = |nr: u8| vec![nr | 1; PAGE_SIZE as usize];
    fs.write(&cx(), &file, 0, &page_of(1)).unwrap();
    let write = |at: u64| {
        fs.write(&cx(), &file, at * PAGE_SIZE, &page_of(at as u8)).unwrap();
        fs.fsync(&cx(), &file).unwrap();
    };
    let say = |what: &str, cost: Stats| {
        println!(
            "4 KiB {what}, then fsync: {} fences, {} lines written back (64 of them data), {} stores",
            cost.fences, cost.lines, cost.stores
        );
        cost
    };
    let append = say("appended", cost(&device, || write(1)));
    let over = say("overwritten", cost(&device, || write(1)));
    assert_eq!((append.fences, over.fences), (2, 2));
    assert!(append.lines <= 64 + 24 && over.lines <= 64 + 12);
    // Now and then the journal is emptied, for two fences more.
    let many = cost(&device, || (2..8002).for_each(write));
    println!("8000 of them, appended: {} fences, {} lines", many.fences, many.lines);
    assert!(many.fences > 2 * 8000 && many.fences <= 2 * 8000 + 8000 / 100, "{} fences", many.fences);
    assert!(many.lines <= 8000 * (64 + 24), "{} lines", many.lines);
    // Stored by a task: there is nothing to commit.
    let task = Task::with(&mm, 0, &file, 1);
    task.store(0, 1).unwrap();
    let synced = say("stored through a mapping", cost(&device, || assert!(fs.fsync(&cx(), &file).unwrap().fenced)));
    assert_eq!((synced.fences, synced.lines), (1, 64));
}

#[test]
fn a_mount_of_a_clean_file_system_does_not_depend_on_the_devices_size() {
    let cost = |len: u64| {
        let sparse = Arc::new(Sparse::new(len));
        let pmem: Arc<dyn Pmem> = sparse.clone();
        make(&pmem, &MakeOptions::default()).unwrap();
        let mut volume = mount(&pmem, &MountOptions::default()).unwrap();
        let ino = volume.create(ROOT_INO, b"a", true).unwrap();
        volume.write(ino, 0, b"hello").unwrap();
        volume.unmount().unwrap();
        sparse.count(|| {
            let mut volume = mount(&pmem, &MountOptions::default()).unwrap();
            assert!(volume.nr_owned_runs() < 8);
            assert_eq!(volume.resolve(b"a"), Ok(ino));
        })
    };
    let small = cost(16 << 20);
    println!("mount: {small:?}");
    assert_eq!(small, cost(1 << 40));
    assert!(small.bytes_read < 128 * 1024);
}

/// A file system on sparse memory with one file of `extents` runs of `pages` pages, each followed by a hole as long.
struct Holes {
    _live: Live,
    sparse: Arc<Sparse>,
    fs: Arc<Fs>,
    file: Open,
}

impl Holes {
    fn new(mm: &Arc<EmuContext>, extents: u64, pages: u64) -> Self {
        let sparse = Arc::new(Sparse::new((extents * pages + 8192) * PAGE_SIZE));
        let pmem: Arc<dyn Pmem> = sparse.clone();
        make(&pmem, &MakeOptions::default()).unwrap();
        let mut volume = mount(&pmem, &MountOptions::default()).unwrap();
        let ino = volume.create(ROOT_INO, b"holes", true).unwrap();
        for nr in 0..extents {
            volume.write(ino, nr * 2 * pages * PAGE_SIZE, &vec![0; (pages * PAGE_SIZE) as usize]).unwrap();
        }
        assert_eq!(volume.runs(ino, 0, u64::MAX).unwrap().len() as u64, extents);
        volume.unmount().unwrap();
        let (live, fs) = mount_over(mm, pmem);
        let file = fs.open(&cx(), "holes").unwrap();
        Self { _live: live, sparse, fs, file }
    }
}

/// What cutting a file off costs: the medium, looks at the page metadata, looks at page-table entries.
fn cut(extents: u64, pages: u64, touched: u64) -> (Done, u64, u64) {
    let (emu, mm) = rig(1);
    let holes = Holes::new(&mm, extents, pages);
    let task = Task::with(&mm, 0, &holes.file, extents * 2 * pages);
    (0..touched).for_each(|nr| task.store(nr * 2 * pages, 1).unwrap());
    // Another file is in use all the time, so that it does not suffice to see that nobody uses the device.
    let other = holes.fs.create(&cx(), "other", true).unwrap();
    holes.fs.write(&cx(), &other, 0, b"x").unwrap();
    task.map(extents * 2 * pages, &other, 0, 1);
    task.store(extents * 2 * pages, 1).unwrap();
    emu.reset_stats();
    let done = holes.sparse.count(|| holes.fs.truncate(&cx(), &holes.file, 0).unwrap());
    (done, holes.fs.folio_looks(), emu.stats().entry_looks)
}

/// Truncating is linear in the file's extents and in what is in use of them. Of pages there is one bit each in the free
/// map, and nothing else.
#[test]
fn a_truncate_costs_by_extents_and_by_what_is_in_use_not_by_pages() {
    let (small, large) = (cut(16, 16, 0), cut(16, 1024, 0));
    println!("16 extents of 16 pages: {small:?}");
    println!("16 extents of 1024 pages: {large:?}");
    // One 2 MiB area, that of the other file, is in use.
    assert!(small.1 >= 1 && large.1 <= 16 * 4 + 512, "{large:?}");
    // An entry for each 2 MiB of addresses below a table that there is.
    assert!(large.2 <= small.2 + 16 * 2 * 1024 / 512, "{large:?}");
    // 512 bits to a line: once in the journal, once in their place.
    let bits = 16 * 1024 / 512;
    assert!(large.0.lines <= small.0.lines + 2 * bits + 16, "{large:?}");
    assert!(large.0.stores <= small.0.stores + 8 && large.0.fences <= small.0.fences + 2, "{large:?}");
    // Four times the extents.
    let more = cut(64, 16, 0);
    println!("64 extents of 16 pages: {more:?}");
    assert!(more.0.lines <= 4 * small.0.lines && more.1 <= 64 * 4 + 512 && more.2 <= 4 * small.2, "{more:?}");
    // One page in use in each: only 2 MiB areas that are in use are looked at page by page.
    let (used, wide) = (cut(16, 16, 16), cut(16, 1024, 16));
    println!("the same with a page of each in use: {used:?}; {wide:?}");
    assert!(used.1 <= small.1 + 16 * 512 && wide.1 <= large.1 + 16 * 512, "{wide:?}");
}

/// Looks at the page metadata for a truncate of `EXTENTS` extents, of which `pins` have a page pinned; the pins end one
/// by one.
fn cut_pinned(pins: u64) -> u64 {
    const EXTENTS: u64 = 64;
    let (emu, mm) = rig(3);
    emu.clone().on_cpu(0, || {
        let holes = Holes::new(&mm, EXTENTS, 1);
        let task = Task::with(&mm, 1, &holes.file, EXTENTS * 2);
        let pinned: Vec<_> = (0..pins).map(|nr| task.pin(nr * 2, 1, GupFlags::WRITE).unwrap()).collect();
        let cutter = emu.start(2, {
            let (fs, file) = (holes.fs.clone(), holes.file.clone());
            move || fs.truncate(&cx(), &file, 0)
        });
        for runs in &pinned {
            assert!(!emu.let_run(2, &cutter), "a page is pinned");
            unpin(&mm, runs);
        }
        emu.finish(cutter).unwrap();
        assert_eq!(holes.fs.stat(&cx(), "holes").unwrap().blocks, 0);
        holes.fs.folio_looks()
    })
}

/// However many pins there are, and whenever they end, they are looked for twice.
#[test]
fn a_truncate_costs_by_the_pins_found_also_where_they_end_one_by_one() {
    let (few, many) = (cut_pinned(4), cut_pinned(32));
    println!("looks with 4 pins: {few}, with 32: {many}");
    assert!(few > 0 && many <= 2 * few, "{few} looks with 4 pins, {many} with 32");
}

/// The walk before a removal: the same.
#[test]
fn a_removal_costs_by_extents_and_by_what_is_in_use_not_by_pages() {
    let remove = |extents: u64, pages: u64| {
        let (emu, mm) = rig(1);
        let holes = Holes::new(&mm, extents, pages);
        let task = Task::with(&mm, 0, &holes.file, extents * 2 * pages);
        (0..extents).for_each(|nr| task.store(nr * 2 * pages, 1).unwrap());
        emu.reset_stats();
        let device = holes.fs.device().clone();
        device.notify_failure(0, WHOLE, NotifyFlags::PRE_REMOVE).unwrap();
        let report = holes.fs.last_notification().unwrap();
        assert_eq!((report.leaves, report.rounds), (extents, 1), "{report}");
        (report.extents - report.metadata, emu.stats().entry_looks)
    };
    let (small, large, more) = (remove(16, 16), remove(16, 1024), remove(64, 16));
    println!("extents and looks: {small:?}, with 64 times the pages {large:?}, with 4 times the extents {more:?}");
    assert_eq!((small.0, large.0, more.0), (16, 16, 64));
    assert!(more.1 <= 4 * small.1, "{more:?}");
    // One table for each 2 MiB that is mapped, and its 512 entries.
    assert!(large.1 <= 16 * (512 + 8) + small.1, "{large:?}");
}
