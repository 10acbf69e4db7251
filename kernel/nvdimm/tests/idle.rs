//! Attaching and removing a device that nobody uses: the same steps, looks and allocations, whatever its size.
//!
//! The kernel's own mapping is the one thing that grows, by a leaf a GiB. It is made by the host, which here counts how
//! often it is called; in the guest `dax.idle.costs_its_steps` and the benchmarks count the instructions of all of it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dax::device::DataCache;
use dax::removal::{Facts, Method, RemovalWatch, StepRecord};
use mm::addr::{Pfn, PfnRange};
use mm::context::MmContext;
use mm::machine::IrqOff;
use mm::pagemap::MemoryKind;
use nvdimm::pmem::memory::{FlushError, MapFailed, MediaError, PmemHost, PmemMemory};
use nvdimm::pmem::{Config, PmemDriver};
use testkit::emu::{EmuMachine, Stats};

thread_local! {
    /// Allocations of this thread, and their bytes.
    static ALLOCATED: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (times, bytes) = ALLOCATED.get();
        ALLOCATED.set((times + 1, bytes + layout.size() as u64));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(ptr, layout) };
    }
}

/// What the host and its memory were asked to do.
#[derive(Default)]
struct Asked {
    calls: AtomicU64,
    bytes: AtomicU64,
}

impl Asked {
    fn count(&self, bytes: usize) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Memory of any size: zeroes.
struct Memory(Arc<Asked>);

impl PmemMemory for Memory {
    fn read(&self, _: u64, into: &mut [u8]) -> Result<(), MediaError> {
        self.0.count(into.len());
        into.fill(0);
        Ok(())
    }
    fn write(&self, _: u64, from: &[u8]) -> Result<(), MediaError> {
        self.0.count(from.len());
        Ok(())
    }
    fn fence(&self) -> Result<(), FlushError> {
        self.0.count(0);
        Ok(())
    }
}

struct Host(Arc<Asked>);

impl PmemHost for Host {
    fn map(&self, _: PfnRange) -> Result<Arc<dyn PmemMemory>, MapFailed> {
        self.0.count(0);
        Ok(Arc::new(Memory(Arc::clone(&self.0))))
    }
    fn unmap(&self, _: PfnRange) {
        self.0.count(0);
    }
}

#[derive(Default)]
struct Watch(Vec<(&'static str, Facts)>);

impl RemovalWatch<EmuMachine> for Watch {
    fn observe(&mut self, record: &StepRecord) {
        self.0.push((record.step.name(), record.facts.clone()));
    }
}

/// Allocations, their bytes, looks at entries, flushes, interrupts, calls of the host, bytes read and written.
type Took = ((u64, u64), Stats, (u64, u64), Vec<(&'static str, Facts)>);

fn attached_and_removed(nr_pages: u64) -> Took {
    let machine = EmuMachine::with_cpus(4);
    let mm = MmContext::new(machine.clone(), 4);
    (0..4).for_each(|cpu| machine.on_cpu(cpu, || mm.shootdown.cpu_online(&IrqOff::new(&mm.machine))));
    let asked = Arc::new(Asked::default());
    let driver = PmemDriver::new(&mm, Arc::new(Host(Arc::clone(&asked))), DataCache::Coherent);
    let ranges = [PfnRange::new(Pfn::new(1 << 28), nr_pages).unwrap()];
    let config = Config { name: "pmem0", ranges: &ranges, kind: MemoryKind::DevDax, bad_blocks: &[], read_only: None };
    machine.reset_stats();
    let (before, mut watch) = (ALLOCATED.get(), Watch::default());
    let device = driver.attach(&config, &mut |_| Ok(())).unwrap();
    assert_eq!(device.size_bytes(), nr_pages << 12);
    let report = device.remove(Vec::new(), Method::Ranged, &mut watch);
    assert!(report.idle);
    let after = ALLOCATED.get();
    let calls = (asked.calls.load(Ordering::Relaxed), asked.bytes.load(Ordering::Relaxed));
    ((after.0 - before.0, after.1 - before.1), machine.stats(), calls, watch.0)
}

/// covers: R2 R4 R6
#[test]
fn an_idle_device_of_six_tebibytes_takes_the_steps_of_one_of_a_gibibyte() {
    let gib = attached_and_removed(1 << 18);
    let tebibytes = attached_and_removed(6 << 28);
    assert!(gib.0.0 > 10 && gib.2.0 > 2, "nothing was counted: {gib:?}");
    assert_eq!(gib, tebibytes);
}
