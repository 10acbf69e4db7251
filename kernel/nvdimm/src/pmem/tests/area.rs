//! The list of bad blocks on the device.

use super::*;
use std::boxed::Box;
use std::sync::atomic::AtomicUsize;

use crate::nfit::DeviceFlags;
use crate::pmem::area::{AREA_BYTES, AREA_PAGES, AreaError};
use crate::virtio_pmem::{self, RequestQueue};

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
    lose(&device, run(3, 2));
    // A page fails, as by a machine check.
    mm::failure::memory_failure(&kept.mm, Pfn::new(0x100005), mm::failure::FailureKind::Media).unwrap();
    device.block().keep_bad_blocks();
    drop(device);
    let device = kept.attach();
    assert_eq!(device.block().bad_blocks(), [run(3, 2), run(40, 8)]);
    // A page of which one sector is lost can be mapped no more than one of which all is: there is one list.
    let any = |page: u64| device.pagemap().any_poisoned(Pfn::new(0x100000 + page), 1);
    assert_eq!([0, 1, 4, 5, 6].map(any), [true, false, false, true, false]);
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
    lose(&device, run(1, 1));
    lose(&device, run(9, 1));
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
    lose(&device, run(1, 1));
    let memory = kept.host.memory();
    let cut = Arc::clone(&memory);
    let before = memory.durable.lock().clone();
    // The cut comes with the next write: what is fenced after it does not reach the medium.
    *memory.during_write.lock() = Some(alloc::boxed::Box::new(move || *cut.lost.lock() = Some(AREA + AREA_BYTES / 2)));
    lose(&device, run(9, 1));
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

/// Puts a header and runs into both copies, as somebody else may have done.
fn forge(kept: &Kept, sequence: u64, nr_sectors: u64, runs: &[(u64, u64)]) {
    let crc = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);
    for copy in 0..2 {
        let mut bytes = vec![0; 64 + 16 * runs.len()];
        bytes[..8].copy_from_slice(b"UNPLGBAD");
        bytes[8..12].copy_from_slice(&1u32.to_le_bytes());
        bytes[16..24].copy_from_slice(&(sequence ^ copy).to_le_bytes());
        bytes[24..32].copy_from_slice(&nr_sectors.to_le_bytes());
        bytes[32..36].copy_from_slice(&(runs.len() as u32).to_le_bytes());
        for (at, (first, nr)) in runs.iter().enumerate() {
            bytes[64 + 16 * at..][..8].copy_from_slice(&first.to_le_bytes());
            bytes[72 + 16 * at..][..8].copy_from_slice(&nr.to_le_bytes());
        }
        let sum = crc.checksum(&bytes);
        bytes[12..16].copy_from_slice(&sum.to_le_bytes());
        let at = (kept.pages * 4096 - AREA_BYTES + copy * AREA_BYTES / 2) as usize;
        for memory in [&kept.host.memory().live, &kept.host.memory().durable] {
            memory.lock()[at..at + bytes.len()].copy_from_slice(&bytes);
        }
    }
}

/// covers: X3, M5
#[test]
fn a_list_takes_the_memory_of_its_runs_whatever_they_say() {
    let kept = kept();
    drop(kept.attach());
    let nr_sectors = (PAGES - AREA_PAGES) * 8;
    // All of the device, twice; runs that wrap; runs that are nowhere; what reaches out of the device.
    let odd = [
        (0, nr_sectors),
        (0, nr_sectors),
        (u64::MAX, 1),
        (1, u64::MAX),
        (nr_sectors - 1, 2),
        (nr_sectors + 128, 1),
        (5, 0),
        (0, 0),
    ];
    forge(&kept, 6, nr_sectors, &odd);
    let device = kept.attach();
    assert_eq!(device.block().bad_blocks(), [run(0, nr_sectors)]);
    assert_eq!(device.pagemap().lost().unwrap().len(), 1, "one run for all pages");
    assert_eq!(device.block().area().map(|area| (area.sequence, area.lost_pages)), Some((7, 0)));
    // It can be healed in the middle, by which it becomes two.
    device.block().write(16, &sectors(1, 8)).unwrap();
    assert_eq!(device.block().bad_blocks(), [run(0, 16), run(24, nr_sectors - 24)]);
    drop(device);
    // A sequence number after which there is none is nobody's list.
    forge(&kept, u64::MAX - 1, nr_sectors, &[(0, 8)]);
    let device = kept.attach();
    assert_eq!((device.block().area().map(|area| area.sequence), kept.pages), (Some(u64::MAX - 1), PAGES));
    lose(&device, run(64, 1));
    drop(device);
    let after = kept.attach().block().area().map(|area| area.sequence);
    assert_eq!(after, Some(u64::MAX - 1), "what would have no successor is not believed");
}

/// covers: X3
#[test]
fn a_list_for_which_there_is_no_memory_is_a_refusal() {
    let kept = kept();
    drop(kept.attach());
    forge(&kept, 6, (PAGES - AREA_PAGES) * 8, &[(0, 8)]);
    kept.mm.machine.limit_growth(0);
    let refused = kept.driver.attach(&config(&[kept.range()]), &mut |_| Ok(())).map(drop).unwrap_err();
    assert_eq!((refused.0, refused.1.to_string().as_str()), (Step::BadBlocks, "memory ran out"));
    kept.mm.machine.limit_growth(u64::MAX);
    assert_eq!(kept.bad(), [run(0, 8)]);
}

/// covers: M5
#[test]
fn what_the_area_itself_loses_belongs_to_the_device_and_that_copy_is_not_trusted() {
    let kept = kept();
    kept.create().unwrap();
    let device = kept.attach();
    let block = Arc::clone(device.block());
    let area_page = |page: u64| Pfn::new(0x100000 + PAGES - AREA_PAGES + page);
    let state = || block.area().map(|area| (area.sequence, area.lost_pages)).unwrap();
    lose(&device, run(3, 1));
    assert_eq!(state(), (2, 0));
    assert!(!block.lose_own(Pfn::new(0x100000)), "not the area's");
    // List 2 is in the first copy. A page of the other one is lost: that is known, and nothing has to be written.
    assert!(block.lose_own(area_page(9)));
    assert_eq!(state(), (2, 1 << 9));
    let listed: Vec<_> = block.area().unwrap().lost_sectors(block.nr_sectors()).collect();
    assert_eq!(listed, [run(block.nr_sectors() + 72, 8)]);
    // The next list goes there, and writes all of it.
    kept.host.memory().live.lock()[(AREA + 9 * 4096) as usize] = 0x77;
    lose(&device, run(9, 1));
    assert_eq!((state(), kept.host.memory().live.lock()[(AREA + 9 * 4096) as usize]), ((3, 0), 0));
    // List 3 is in the second copy. Its header is lost: the list is written to the first one, with that loss on it.
    assert!(block.lose_own(area_page(8)));
    assert_eq!(state(), (4, 1 << 8));
    drop((block, device));
    let device = kept.attach();
    assert_eq!(device.block().area().map(|area| (area.sequence, area.lost_pages)), Some((4, 1 << 8)));
    assert_eq!(device.block().bad_blocks(), [run(3, 1), run(9, 1)], "the device has lost no more than before");
    // It is forgotten with the list that makes that copy whole again.
    device.block().write(0, &sectors(1, 8)).unwrap();
    assert_eq!(device.block().area().map(|area| (area.sequence, area.lost_pages)), Some((5, 0)));
    drop(device);
    assert_eq!(kept.bad(), [run(9, 1)]);
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

type Meanwhile = Box<dyn FnOnce() + Send>;

/// Somebody who keeps the memory, and is waited for.
#[derive(Default)]
struct Asked {
    nr: AtomicUsize,
    /// Called once, in the middle of the next request.
    meanwhile: Mutex<Option<Meanwhile>>,
}

impl RequestQueue for Asked {
    fn start(&self) -> Result<(), FlushError> {
        Ok(())
    }
    fn stop(&self) {}
    fn transact(&self, _: &[u8; 4], answer: &mut [u8; 4]) -> Result<usize, FlushError> {
        mm::lock_check::might_sleep("an answer");
        self.nr.fetch_add(1, Ordering::SeqCst);
        let meanwhile = self.meanwhile.lock().take();
        meanwhile.into_iter().for_each(|meanwhile| meanwhile());
        *answer = [0; 4];
        Ok(4)
    }
}

/// Nobody holds a spin lock while he waits; and the area may lose what was just written.
// covers: A7 P3
#[test]
fn a_list_in_lent_memory_waits_for_its_keeper_without_a_lock() {
    let (kept, asked) = (kept(), Arc::new(Asked::default()));
    let kernel = Arc::clone(&kept.host) as Arc<dyn PmemHost>;
    let driver = virtio_pmem::driver(&kept.driver, kernel, Arc::clone(&asked) as Arc<dyn RequestQueue>);
    driver.create_area("pmem0", kept.range()).unwrap();
    let attach = || driver.attach(&config(&[kept.range()]), &mut |_| Ok(())).unwrap();
    let device = attach();
    lose(&device, run(3, 1));
    let block = Arc::clone(device.block());
    let state = || block.area().map(|area| (area.sequence, area.lost_pages, area.stale)).unwrap();
    assert_eq!(state(), (2, 0, false));
    let before = asked.nr.load(Ordering::SeqCst);
    // List 3 goes to the second copy, whose header is lost before it lasts: list 4 goes to the first one.
    let theirs = Arc::clone(&block);
    let header = Pfn::new(0x100000 + PAGES - AREA_PAGES / 2);
    let loses = move || assert!(theirs.lose_own(header));
    *asked.meanwhile.lock() = Some(Box::new(loses));
    lose(&device, run(9, 1));
    assert_eq!((state(), asked.nr.load(Ordering::SeqCst) - before), ((4, 1 << 8, false), 2));
    drop((block, device));
    assert_eq!(attach().block().bad_blocks(), [run(3, 1), run(9, 1)]);
}
