//! The list of bad blocks on the device.

use super::*;
use crate::nfit::DeviceFlags;
use crate::pmem::area::{AREA_BYTES, AREA_PAGES, AreaError};

/// A host whose ranges keep their contents when they are mapped again.
#[derive(Default)]
struct Keeper {
    memory: Mutex<Option<Arc<Memory>>>,
}

impl PmemHost for Keeper {
    fn map(&self, range: PfnRange) -> Result<Arc<dyn PmemMemory>, MapFailed> {
        let mut kept = self.memory.lock();
        let memory = kept.get_or_insert_with(|| {
            let len = (range.nr_pages() * 4096) as usize;
            Arc::new(Memory {
                live: Mutex::new(vec![0; len]),
                durable: Mutex::new(vec![0; len]),
                pending: Mutex::default(),
                mapped: AtomicBool::new(false),
                lost: Mutex::default(),
                during_write: Mutex::default(),
            })
        });
        assert!(!memory.mapped.swap(true, Ordering::SeqCst), "mapped twice");
        Ok(Arc::clone(memory) as Arc<dyn PmemMemory>)
    }
    fn unmap(&self, _: PfnRange) {
        let memory = self.memory();
        assert!(memory.mapped.swap(false, Ordering::SeqCst), "unmapped twice");
        // The next mapping is after a power cut: what was not written back and fenced is gone.
        memory.pending.lock().clear();
        *memory.live.lock() = memory.durable.lock().clone();
    }
}

impl Keeper {
    fn memory(&self) -> Arc<Memory> {
        Arc::clone(self.memory.lock().as_ref().unwrap())
    }
    fn damage(&self, at: u64) {
        self.memory().live.lock()[at as usize] ^= 0x40;
        self.memory().durable.lock()[at as usize] ^= 0x40;
    }
}

const PAGES: u64 = 64;
const AREA: u64 = PAGES * 4096 - AREA_BYTES;

struct Kept {
    mm: EmuContext,
    host: Arc<Keeper>,
    driver: PmemDriver<EmuMachine>,
    pages: u64,
}

fn kept() -> Kept {
    kept_of(PAGES)
}

fn kept_of(pages: u64) -> Kept {
    let mm = MmContext::new(EmuMachine::with_cpus(1), 1);
    let host = Arc::new(Keeper::default());
    let driver = PmemDriver::new(&mm, Arc::clone(&host) as Arc<dyn PmemHost>, DataCache::Coherent);
    Kept { mm, host, driver, pages }
}

impl Kept {
    fn range(&self) -> PfnRange {
        frames(0x100000, self.pages)
    }
    fn attach(&self) -> PmemDevice<EmuMachine> {
        self.driver.attach(&config(&[self.range()]), &mut |_| Ok(())).unwrap()
    }
    fn create(&self) -> Result<(), AttachError> {
        self.driver.create_area("pmem0", self.range())
    }
    fn bad(&self) -> Vec<SectorRun> {
        self.attach().block().bad_blocks()
    }
}

fn run(first: u64, nr_sectors: u64) -> SectorRun {
    SectorRun { first, nr_sectors }
}

/// covers: P3
#[test]
fn the_next_attach_knows_what_was_lost() {
    let kept = kept();
    assert_eq!(kept.attach().block().area(), None, "nothing is written to a device that nobody asked for it");
    kept.create().unwrap();
    let device = kept.attach();
    assert_eq!(device.size_bytes(), (PAGES - AREA_PAGES) * 4096);
    assert_eq!(device.dax().unwrap().size_bytes(), device.size_bytes());
    device.block().add_bad(run(3, 2)).unwrap();
    // A page fails, as by a machine check.
    mm::failure::memory_failure(&kept.mm, Pfn::new(0x100005), mm::failure::FailureKind::Media).unwrap();
    device.block().keep_bad_blocks();
    drop(device);
    let device = kept.attach();
    assert_eq!(device.block().bad_blocks(), [run(3, 2), run(40, 8)]);
    assert_eq!(device.pagemap().poisoned(), [Pfn::new(0x100005)]);
    assert!(is_lost(&device, 41) && is_lost(&device, 3) && !is_lost(&device, 5));
    // A write of all of it heals the page; that lasts too.
    device.block().write(40, &sectors(1, 8)).unwrap();
    drop(device);
    assert_eq!(kept.bad(), [run(3, 2)]);
    kept.attach().block().write(0, &sectors(1, 8)).unwrap();
    assert_eq!(kept.bad(), []);
}

#[test]
fn a_damaged_copy_leaves_the_list_before_it() {
    let kept = kept();
    kept.create().unwrap();
    let device = kept.attach();
    device.block().add_bad(run(1, 1)).unwrap();
    device.block().add_bad(run(9, 1)).unwrap();
    assert_eq!(device.block().area().map(|area| area.sequence), Some(3));
    drop(device);
    // List 3 is in the copy of odd numbers, the second one. Any byte of it counts.
    for at in [0, 8, 16, 24, 32, 63, 64, 72] {
        kept.host.damage(AREA + AREA_BYTES / 2 + at);
        assert_eq!(kept.bad(), [run(1, 1)], "byte {at}");
        kept.host.damage(AREA + AREA_BYTES / 2 + at);
    }
    assert_eq!(kept.bad(), [run(1, 1), run(9, 1)]);
    // With both copies gone the device has no area any more, and its last bytes again.
    kept.host.damage(AREA);
    kept.host.damage(AREA + AREA_BYTES / 2);
    assert_eq!(kept.attach().size_bytes(), PAGES * 4096);
}

/// The power fails in the middle of a list: the one before it counts.
#[test]
fn a_power_cut_in_the_middle_leaves_the_list_before_it() {
    let kept = kept();
    kept.create().unwrap();
    let device = kept.attach();
    device.block().add_bad(run(1, 1)).unwrap();
    let memory = kept.host.memory();
    let cut = Arc::clone(&memory);
    let before = memory.durable.lock().clone();
    // The cut comes with the next write: what is fenced after it does not reach the medium.
    *memory.during_write.lock() = Some(alloc::boxed::Box::new(move || *cut.lost.lock() = Some(AREA + AREA_BYTES / 2)));
    device.block().add_bad(run(9, 1)).unwrap();
    *memory.lost.lock() = None;
    assert_eq!(device.block().area().map(|area| (area.sequence, area.stale)), Some((2, true)));
    drop(device);
    assert_eq!(memory.durable.lock()[..AREA as usize], before[..AREA as usize]);
    assert_eq!(kept.bad(), [run(1, 1)]);
}

#[test]
fn more_runs_than_there_is_room_for_are_cut_off_and_that_is_said() {
    const MOST: u64 = 2044;
    let kept = kept_of(2 * MOST + 2 + AREA_PAGES);
    kept.create().unwrap();
    let device = kept.attach();
    let poison = |nth: u64| assert!(device.pagemap().poison(Pfn::new(0x100000 + 2 * nth)));
    (0..MOST).for_each(poison);
    device.block().keep_bad_blocks();
    assert_eq!(device.block().area().map(|area| area.cut), Some(false));
    poison(MOST);
    device.block().keep_bad_blocks();
    assert_eq!(device.block().area().map(|area| (area.cut, area.stale)), Some((true, false)));
    assert_eq!(device.block().bad_blocks().len() as u64, MOST + 1);
    drop(device);
    assert_eq!(kept.bad().len() as u64, MOST);
}

#[test]
fn an_area_is_made_once_and_only_where_there_is_room() {
    let kept = kept();
    assert_eq!(kept.driver.destroy_area("pmem0", kept.range()), Err(AttachError::Area(AreaError::Missing)));
    kept.create().unwrap();
    assert_eq!(kept.create(), Err(AttachError::Area(AreaError::Exists)));
    let device = kept.attach();
    assert!(matches!(kept.create(), Err(AttachError::Taken(_))), "the device is attached");
    drop(device);
    kept.driver.destroy_area("pmem0", kept.range()).unwrap();
    assert_eq!(kept.attach().size_bytes(), PAGES * 4096);
    for nr_pages in [1, AREA_PAGES] {
        let bench = bench(DataCache::Coherent);
        let error = bench.driver.create_area("pmem0", frames(0x100000, nr_pages)).unwrap_err();
        assert_eq!(
            error.to_string(),
            alloc::format!(
                "the device is smaller than its own metadata: {} bytes, and the area alone takes 65536",
                nr_pages * 4096
            )
        );
        bench.assert_nothing_left("after a refusal");
        // It is used without.
        let small = bench.attach(&config(&[frames(0x100000, nr_pages)])).unwrap();
        assert_eq!(small.size_bytes(), nr_pages * 4096);
    }
}

/// The list of what is lost is known, and stays in memory: the area is on the device.
// covers: M4
#[test]
fn a_device_that_takes_no_writes_is_read_and_nothing_is_stored() {
    let kept = kept();
    let range = [kept.range()];
    kept.driver.create_area("pmem0", range[0]).unwrap();
    let before = kept.host.memory().live.lock().clone();
    let bad = [SectorRun { first: 24, nr_sectors: 1 }];
    let why = DeviceFlags::NOT_ARMED | DeviceFlags::RESTORE_FAILED;
    let config = Config { bad_blocks: &bad, read_only: Some(why), ..config(&range) };
    let device = kept.driver.attach(&config, &mut |_| Ok(())).unwrap();
    let (block, refused) = (device.block(), Err(BlockError::ReadOnly(why)));
    assert_eq!(block.read(0, &mut sectors(0, 3)), Ok(()));
    assert_eq!(
        [block.write(0, &sectors(1, 3)), block.write(24, &sectors(1, 1)), block.flush()],
        [refused, refused, Ok(())]
    );
    let line = "the device takes no writes: a memory device behind it failed to restore its data, is not armed";
    assert_eq!(block.write(0, &sectors(1, 1)).unwrap_err().to_string(), line);
    assert!(is_lost(&device, 24) && !device.dax().unwrap().pagemap().takes_writes());
    block.keep_bad_blocks();
    assert!(*kept.host.memory().live.lock() == before, "something was stored");
    // The same, where it takes writes.
    drop(device);
    let device = kept.driver.attach(&Config { read_only: None, ..config }, &mut |_| Ok(())).unwrap();
    assert!(device.dax().unwrap().pagemap().takes_writes());
    assert!(*kept.host.memory().live.lock() != before, "the list was not stored");
    assert_eq!(device.block().write(0, &sectors(1, 3)), Ok(()));
}
