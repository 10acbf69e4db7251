//! The driver on an emulated machine, with a memory that loses what was not written back and fenced.

extern crate std;

mod area;
mod attach;
mod block;
mod removal;
mod virtio;

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use std::sync::atomic::{AtomicBool, Ordering};

use dax::removal::{Method, RemovalWatch, StepRecord};
use mm::addr::PageSize;
use mm::ledger::Kind;
use mm::meta::Owner;
use mm::sync::Mutex;
use testkit::emu::EmuMachine;
use testkit::nfit::NfitBuilder;

use super::memory::{FlushError, MediaError, PmemMemory};
use super::*;

type EmuContext = Arc<MmContext<EmuMachine>>;

type Meanwhile = alloc::boxed::Box<dyn FnOnce() + Send>;

/// One mapped range. `live` is what the CPU sees, `durable` what a power cut leaves.
struct Memory {
    live: Mutex<Vec<u8>>,
    durable: Mutex<Vec<u8>>,
    /// Written back, and not yet fenced: offset and length.
    pending: Mutex<Vec<(usize, usize)>>,
    mapped: AtomicBool,
    /// Offset of a byte that the medium has lost.
    lost: Mutex<Option<u64>>,
    /// Called once, in the middle of the next write.
    during_write: Mutex<Option<Meanwhile>>,
}

impl Memory {
    fn assert_mapped(&self) {
        assert!(self.mapped.load(Ordering::SeqCst), "memory touched that is not mapped");
    }
    fn check_lost(&self, offset: u64, len: usize) -> Result<(), MediaError> {
        match *self.lost.lock() {
            Some(lost) if (offset..offset + len as u64).contains(&lost) => Err(MediaError::Lost { offset_bytes: lost }),
            _ => Ok(()),
        }
    }
}

impl PmemMemory for Memory {
    fn read(&self, offset_bytes: u64, into: &mut [u8]) -> Result<(), MediaError> {
        self.assert_mapped();
        self.check_lost(offset_bytes, into.len())?;
        into.copy_from_slice(&self.live.lock()[offset_bytes as usize..][..into.len()]);
        Ok(())
    }
    fn write(&self, offset_bytes: u64, from: &[u8]) -> Result<(), MediaError> {
        self.assert_mapped();
        self.check_lost(offset_bytes, from.len())?;
        if let Some(meanwhile) = self.during_write.lock().take() {
            meanwhile();
        }
        self.live.lock()[offset_bytes as usize..][..from.len()].copy_from_slice(from);
        self.pending.lock().push((offset_bytes as usize, from.len()));
        Ok(())
    }
    fn fence(&self) -> Result<(), FlushError> {
        self.assert_mapped();
        for (at, len) in self.pending.lock().drain(..) {
            self.durable.lock()[at..at + len].copy_from_slice(&self.live.lock()[at..at + len]);
        }
        Ok(())
    }
}

/// A kernel that maps ranges, of which one fence orders all.
#[derive(Default)]
struct Host {
    ranges: Mutex<Vec<(PfnRange, Arc<Memory>)>>,
    ledger: Mutex<Option<Arc<mm::ledger::Ledger>>>,
    /// Fails to map the range that begins here.
    refuse: Mutex<Option<Pfn>>,
    events: Mutex<Vec<&'static str>>,
}

impl Host {
    fn memory(&self, pfn: u64) -> Arc<Memory> {
        let ranges = self.ranges.lock();
        Arc::clone(&ranges.iter().rev().find(|(range, _)| range.contains(Pfn::new(pfn))).unwrap().1)
    }
    fn charge(&self, nr: i64) {
        self.ledger.lock().as_ref().unwrap().charge(Kind::DirectMapLeaves, nr);
    }
}

impl PmemHost for Host {
    fn map(&self, range: PfnRange) -> Result<Arc<dyn PmemMemory>, MapFailed> {
        if *self.refuse.lock() == Some(range.start()) {
            return Err(MapFailed::NoRoom);
        }
        self.events.lock().push("map");
        self.charge(1);
        let len = (range.nr_pages() * 4096) as usize;
        let memory = Arc::new(Memory {
            live: Mutex::new(vec![0; len]),
            durable: Mutex::new(vec![0; len]),
            pending: Mutex::default(),
            mapped: AtomicBool::new(true),
            lost: Mutex::default(),
            during_write: Mutex::default(),
        });
        self.ranges.lock().push((range, Arc::clone(&memory)));
        Ok(memory)
    }
    fn unmap(&self, range: PfnRange) {
        self.events.lock().push("unmap");
        self.charge(-1);
        let memory = self.memory(range.start().as_u64());
        assert!(memory.mapped.swap(false, Ordering::SeqCst), "unmapped twice");
    }
}

struct Bench {
    mm: EmuContext,
    host: Arc<Host>,
    driver: PmemDriver<EmuMachine>,
}

fn bench(cache: DataCache) -> Bench {
    let mm = testkit::emu::context(2);
    let host = Arc::new(Host::default());
    *host.ledger.lock() = Some(Arc::clone(&mm.ledger));
    let driver = PmemDriver::new(&mm, Arc::clone(&host) as Arc<dyn PmemHost>, cache);
    Bench { mm, host, driver }
}

fn frames(start: u64, nr_pages: u64) -> PfnRange {
    PfnRange::new(Pfn::new(start), nr_pages).unwrap()
}

fn config<'a>(ranges: &'a [PfnRange]) -> Config<'a> {
    Config { name: "pmem0", ranges, kind: MemoryKind::DevDax, bad_blocks: &[], read_only: None }
}

impl Bench {
    fn attach(&self, config: &Config<'_>) -> Result<PmemDevice<EmuMachine>, (Step, AttachError)> {
        self.driver.attach(config, &mut |_| Ok(()))
    }
    fn usual(&self) -> PmemDevice<EmuMachine> {
        self.attach(&config(&[frames(0x100000, 16)])).unwrap()
    }
    /// Nothing of any device is left.
    fn assert_nothing_left(&self, when: &str) {
        let ledger = self.mm.ledger_snapshot();
        for kind in Kind::ALL {
            assert_eq!(ledger.count(*kind), 0, "{kind} {when}");
        }
        self.driver.claims().for_each(|range, by| panic!("{by} still has {range:?} {when}"));
        assert!(!self.driver.names.is_taken("pmem0"), "the name is taken {when}");
        for (_, memory) in self.host.ranges.lock().iter() {
            assert!(!memory.mapped.load(Ordering::SeqCst), "a mapping is left {when}");
        }
    }
}

fn sectors(fill: u8, nr: usize) -> Vec<u8> {
    (0..nr * 512).map(|i| fill.wrapping_add((i / 512) as u8)).collect()
}

/// The device, which is of one range, has lost these sectors, and keeps them on its list.
fn lose(device: &PmemDevice<EmuMachine>, run: SectorRun) {
    let first = device.pagemap().ranges()[0].start().as_u64() * 8 + run.first;
    device.pagemap().lose(mm::run_set::Run::with_len(first, run.nr_sectors).unwrap());
    device.block().keep_bad_blocks();
}

fn is_lost(device: &PmemDevice<EmuMachine>, sector: u64) -> bool {
    let mut buffer = [0; 512];
    match device.block().read(sector, &mut buffer) {
        Ok(()) => false,
        Err(error) => {
            assert_eq!(error, BlockError::Io { sector });
            true
        }
    }
}
