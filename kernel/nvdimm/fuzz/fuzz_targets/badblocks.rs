#![no_main]
//! A device whose last 64 KiB are whatever the input says, with a checksum that is right or not. It attaches; what it says
//! is lost lies on it, in no more pieces than the list has; writes, losses and another attach keep it that way.

use std::sync::{Arc, Mutex};

use crc::{CRC_32_ISCSI, Crc};
use dax::device::DataCache;
use libfuzzer_sys::fuzz_target;
use mm::addr::{PAGE_SIZE, Pfn, PfnRange};
use mm::pagemap::MemoryKind;
use mm::run_set::Run;
use nvdimm::pmem::area::{AREA_BYTES, AREA_PAGES};
use nvdimm::pmem::badblocks::SectorRun;
use nvdimm::pmem::memory::{FlushError, MapFailed, MediaError, PmemHost, PmemMemory};
use nvdimm::pmem::{Config, PmemDevice, PmemDriver};
use testkit::emu::{self, EmuMachine};

const FIRST: u64 = 0x10_0000;

struct Memory(Mutex<Vec<u8>>);

impl PmemMemory for Memory {
    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), MediaError> {
        into.copy_from_slice(&self.0.lock().unwrap()[at as usize..][..into.len()]);
        Ok(())
    }
    fn write(&self, at: u64, from: &[u8]) -> Result<(), MediaError> {
        self.0.lock().unwrap()[at as usize..][..from.len()].copy_from_slice(from);
        Ok(())
    }
    fn fence(&self) -> Result<(), FlushError> {
        Ok(())
    }
}

struct Host(Arc<Memory>);

impl PmemHost for Host {
    fn map(&self, _: PfnRange) -> Result<Arc<dyn PmemMemory>, MapFailed> {
        Ok(self.0.clone())
    }
    fn unmap(&self, _: PfnRange) {}
}

/// The input, eaten from the front; zeroes behind its end.
struct Input<'i>(&'i [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }
    /// A number near something that matters.
    fn number(&mut self, nr_sectors: u64) -> u64 {
        let low = u64::from(self.byte());
        match self.byte() % 8 {
            0 => low,
            1 => nr_sectors.wrapping_sub(low),
            2 => nr_sectors.wrapping_add(low),
            3 => u64::MAX - low,
            4 => 1 << (low % 64),
            5 => low * 8,
            6 => (1 << 63) + low,
            _ => (0..7).fold(low, |number, _| number << 8 | u64::from(self.byte())),
        }
    }
}

/// A copy of the list.
fn copy(input: &mut Input<'_>, nr_sectors: u64) -> Vec<u8> {
    let nr_runs = u64::from(input.byte() % 24);
    let mut bytes = vec![0; 64 + 16 * nr_runs as usize];
    bytes[..8].copy_from_slice(b"UNPLGBAD");
    bytes[8..12].copy_from_slice(&1u32.to_le_bytes());
    bytes[16..24].copy_from_slice(&input.number(nr_sectors).to_le_bytes());
    bytes[24..32].copy_from_slice(&nr_sectors.to_le_bytes());
    bytes[32..36].copy_from_slice(&(nr_runs as u32).to_le_bytes());
    for run in bytes[64..].chunks_exact_mut(8) {
        run.copy_from_slice(&input.number(nr_sectors).to_le_bytes());
    }
    for _ in 0..input.byte() % 4 {
        // A field that is not what it should be.
        let (at, value) = (usize::from(input.byte() % 64), input.byte());
        bytes[at] = value;
    }
    if input.byte() % 8 != 0 {
        bytes[12..16].fill(0);
        let crc = Crc::<u32>::new(&CRC_32_ISCSI).checksum(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    }
    bytes
}

/// What is lost, which is looked at in every way that there is.
fn lost(device: &PmemDevice<EmuMachine>) -> Vec<SectorRun> {
    let (block, map) = (device.block(), device.pagemap());
    let runs = block.bad_blocks();
    assert!(runs.windows(2).all(|pair| pair[0].end() < pair[1].first), "not rising, or touching: {runs:?}");
    assert!(runs.iter().all(|run| run.nr_sectors != 0 && run.end() <= block.nr_sectors()), "outside: {runs:?}");
    for page in 0..block.nr_sectors() / 8 {
        let meets = |run: &SectorRun| run.first < (page + 1) * 8 && page * 8 < run.end();
        let expected = runs.iter().any(meets);
        assert_eq!(map.any_poisoned(Pfn::new(FIRST + page), 1), expected, "page {page}");
        assert_eq!(block.read(page * 8, &mut [0; 4096]).is_err(), expected, "page {page}");
    }
    runs
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let nr_pages = AREA_PAGES + 1 + u64::from(input.byte() % 64);
    let nr_sectors = (nr_pages - AREA_PAGES) * 8;
    let mut bytes = vec![0; (nr_pages * PAGE_SIZE) as usize];
    for nr in 0..2 {
        let copy = copy(&mut input, nr_sectors);
        let at = bytes.len() - AREA_BYTES as usize + nr * AREA_BYTES as usize / 2;
        bytes[at..at + copy.len()].copy_from_slice(&copy);
    }
    let mm = emu::context(1);
    let host = Arc::new(Host(Arc::new(Memory(Mutex::new(bytes)))));
    let driver = PmemDriver::new(&mm, host, DataCache::Coherent);
    let range = PfnRange::new(Pfn::new(FIRST), nr_pages).unwrap();
    let config = Config { name: "pmem0", ranges: &[range], kind: MemoryKind::DevDax, bad_blocks: &[], read_only: None };
    let attach = || driver.attach(&config, &mut |_| Ok(())).expect("a list is believed as far as it can be");
    let device = attach();
    assert!(lost(&device).len() <= 24, "more pieces than the list has");
    for _ in 0..input.byte() % 16 {
        let (first, nr) = (input.number(nr_sectors), input.number(nr_sectors));
        match input.byte() % 3 {
            0 => {
                let run = (FIRST * 8).checked_add(first).and_then(|first| Run::with_len(first, nr));
                run.map(|run| device.pagemap().lose(run));
                device.block().keep_bad_blocks();
            }
            1 => _ = device.block().write(first, &vec![1; (nr % 64 * 512) as usize]),
            _ => _ = device.block().lose_own(Pfn::new(FIRST.wrapping_add(first % (nr_pages + 1)))),
        }
    }
    let (before, status) = (lost(&device), device.block().area());
    drop(device);
    let device = attach();
    // But for a list after which there can be none, what was known is known again.
    if status.is_some_and(|status| status.sequence < u64::MAX - 64 && !status.stale) {
        assert_eq!(lost(&device), before);
        assert_eq!(device.block().area().map(|area| area.lost_pages.count_ones() <= 16), Some(true));
    }
});
