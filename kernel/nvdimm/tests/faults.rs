//! Every step and every allocation of attach and of removal fails once; after each nothing is left, and the device
//! comes again.
//!
//! The allocator of this test program counts the allocations of a thread that asks for it. Like the kernel's, it has a
//! reserve: an allocation that is made to fail is served all the same, and the thread is short of memory from there on.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write;
use std::sync::{Arc, Mutex};

use dax::devdax::{DevDax, OpenOptions};
use dax::device::DataCache;
use dax::removal::{Method, Problem, RemovalReport, RemovalWatch, Step as RemovalStep};
use mm::addr::{PAGE_SIZE, PageSize, Pfn, PfnRange, VirtAddr};
use mm::context::MmContext;
use mm::entry::Prot;
use mm::ledger::Kind;
use mm::pagemap::MemoryKind;
use mm::space::{Access, AddressSpace, VmOps};
use nvdimm::pmem::memory::{FlushError, MapFailed, MediaError, PmemHost, PmemMemory};
use nvdimm::pmem::{AttachError, Config, PmemDevice, PmemDriver, Refused, Step};
use testkit::emu::EmuMachine;

thread_local! {
    /// Allocations until one fails; 0 while none is to.
    static COUNTDOWN: Cell<u64> = const { Cell::new(0) };
    static SHORT: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match COUNTDOWN.get() {
            0 => {}
            1 => {
                COUNTDOWN.set(0);
                SHORT.set(true);
            }
            left => COUNTDOWN.set(left - 1),
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(ptr, layout) };
    }
}

struct Memory(Mutex<Vec<u8>>);

impl PmemMemory for Memory {
    fn read(&self, offset_bytes: u64, into: &mut [u8]) -> Result<(), MediaError> {
        into.copy_from_slice(&self.0.lock().unwrap()[offset_bytes as usize..][..into.len()]);
        Ok(())
    }
    fn write(&self, offset_bytes: u64, from: &[u8]) -> Result<(), MediaError> {
        self.0.lock().unwrap()[offset_bytes as usize..][..from.len()].copy_from_slice(from);
        Ok(())
    }
    fn fence(&self) -> Result<(), FlushError> {
        Ok(())
    }
}

struct Host(Arc<mm::ledger::Ledger>);

impl PmemHost for Host {
    fn map(&self, range: PfnRange) -> Result<Arc<dyn PmemMemory>, MapFailed> {
        self.0.charge(Kind::DirectMapLeaves, 1);
        Ok(Arc::new(Memory(Mutex::new(vec![0; (range.nr_pages() * PAGE_SIZE) as usize]))))
    }
    fn unmap(&self, _: PfnRange) {
        self.0.charge(Kind::DirectMapLeaves, -1);
    }
}

type EmuContext = Arc<MmContext<EmuMachine>>;

struct Bench {
    mm: EmuContext,
    driver: PmemDriver<EmuMachine>,
    ranges: [PfnRange; 2],
}

impl Bench {
    fn new() -> Self {
        let mm = testkit::emu::context(2);
        let driver = PmemDriver::new(&mm, Arc::new(Host(Arc::clone(&mm.ledger))), DataCache::Coherent);
        let frames = |start, nr| PfnRange::new(Pfn::new(start), nr).unwrap();
        Self { mm, driver, ranges: [frames(0x10_0000, 64), frames(0x20_0000, 64)] }
    }

    fn attach(&self, fail: Option<Step>) -> Result<PmemDevice<EmuMachine>, (Step, AttachError)> {
        let config =
            Config { name: "pmem0", ranges: &self.ranges, kind: MemoryKind::DevDax, bad_blocks: &[], read_only: None };
        let device = self.driver.attach(&config, &mut |step| match fail {
            _ if SHORT.get() => Err(Refused::OutOfMemory),
            Some(bad) if bad == step => Err(Refused::Injected),
            _ => Ok(()),
        })?;
        if SHORT.get() { Err((Step::Announce, AttachError::OutOfMemory)) } else { Ok(device) }
    }

    /// Removes a device that two spaces map in many places, in both of its ranges.
    fn remove_under_load(&self, mut watch: Watch) -> RemovalReport {
        let device = self.attach(None).unwrap();
        let file = DevDax::new(&self.mm, device.dax().unwrap(), PageSize::Size4K).unwrap();
        let ops: Arc<dyn VmOps<EmuMachine>> = file.open(OpenOptions::exactly(PageSize::Size4K)).unwrap();
        let spaces = ["one", "two"].map(|name| AddressSpace::new(&self.mm, name).unwrap());
        for space in &spaces {
            for vma in 0..VMAS {
                space.map(va(vma), PAGE_SIZE, Prot::USER_WRITE, &ops, APART * vma).unwrap();
                space.populate(va(vma), PAGE_SIZE, Access::Write).unwrap();
            }
        }
        drop(ops);
        let mappings = vec![Arc::clone(file.mapping())];
        drop(file);
        watch.machine = Some(self.mm.machine.clone());
        COUNTDOWN.set(watch.allocation);
        let report = device.remove(mappings, Method::Ranged, &mut watch);
        self.mm.machine.limit_growth(u64::MAX);
        assert_eq!(report.steps.len(), RemovalStep::ALL.len());
        assert_eq!(report.users.len() as u64 + report.users_not_named, 2 * VMAS);
        assert!(spaces.iter().all(|space| (0..VMAS).all(|vma| space.translate(va(vma)).is_none())));
        report
    }

    /// What is left of any device, by name.
    fn left(&self, when: &str) -> Vec<String> {
        let ledger = self.mm.ledger_snapshot();
        let kinds = Kind::ALL.iter().map(|&kind| (kind, ledger.count(kind))).filter(|&(_, count)| count != 0);
        let mut left: Vec<_> = kinds.map(|(kind, count)| format!("{count} {kind} {when}")).collect();
        self.driver.claims().for_each(|range, by| left.push(format!("{by} still has {range:?} {when}")));
        left
    }
}

/// A walk through faults, and what it has met.
#[derive(Default)]
struct Walk {
    faults: usize,
    leaks: Vec<String>,
}

impl Walk {
    /// After a fault: looks whether anything is left, and whether the device comes again.
    fn comes_again(&mut self, bench: &Bench, when: &str) {
        COUNTDOWN.set(0);
        SHORT.set(false);
        self.faults += 1;
        self.leaks.extend(bench.left(when));
        let device = bench.attach(None).unwrap_or_else(|(step, error)| panic!("{when}: {step}: {error}"));
        drop(device);
        self.leaks.extend(bench.left(&format!("after the attach {when}")));
    }

    /// Says how many there were, on the standard error itself: what a test that passes prints is not shown.
    fn end(self, what: &str, at_least: usize) {
        let Self { faults, leaks } = self;
        let line = format!("\n{what}: {faults} faults injected, {} leaks\n", leaks.len());
        std::io::stderr().write_all(line.as_bytes()).expect("the standard error takes a line");
        assert!(faults >= at_least, "{what}: {faults} faults, fewer than {at_least}");
        assert_eq!(leaks, [""; 0], "{what}");
    }
}

const VMAS: u64 = 12;
/// Pages from one VMA's page of the device to the next one's: half of them are in each range.
const APART: u64 = 10;

fn va(vma: u64) -> VirtAddr {
    VirtAddr::new(0x40_0000_0000 + vma * PageSize::Size2M.bytes())
}

#[derive(Default)]
struct Watch {
    fail: Option<RemovalStep>,
    allocation: u64,
    machine: Option<EmuMachine>,
}

impl RemovalWatch<EmuMachine> for Watch {
    fn begin(&mut self, step: RemovalStep) -> Result<(), Problem> {
        // As in the kernel: once memory is short, no list grows that can do without.
        if let Some(machine) = self.machine.as_ref().filter(|_| SHORT.get()) {
            machine.limit_growth(0);
        }
        if self.fail == Some(step) { Err("made to fail".into()) } else { Ok(()) }
    }
}

/// covers: A4 A6
#[test]
fn every_step_of_attach() {
    let (bench, mut walk) = (Bench::new(), Walk::default());
    for step in Step::ALL {
        assert_eq!(bench.attach(Some(step)).unwrap_err(), (step, AttachError::Injected(step)));
        walk.comes_again(&bench, &format!("after step {step} failed"));
    }
    walk.end("steps of attach", Step::ALL.len());
}

/// covers: A6
#[test]
fn every_allocation_of_attach() {
    let (bench, mut walk) = (Bench::new(), Walk::default());
    for number in 1.. {
        COUNTDOWN.set(number);
        let result = bench.attach(None);
        if COUNTDOWN.replace(0) != 0 {
            drop(result.expect("no allocation failed"));
            return walk.end("allocations of attach", 10);
        }
        let (_, error) = result.unwrap_err();
        assert_eq!(error, AttachError::OutOfMemory, "allocation {number}");
        walk.comes_again(&bench, &format!("after allocation {number} failed"));
    }
}

/// covers: A6 R5 R8
#[test]
fn every_step_of_removal() {
    let (bench, mut walk) = (Bench::new(), Walk::default());
    for step in RemovalStep::ALL {
        let report = bench.remove_under_load(Watch { fail: Some(step), ..Watch::default() });
        let met: Vec<_> = report.problems().map(|(step, _)| step).collect();
        assert_eq!(met, [step]);
        walk.comes_again(&bench, &format!("after step {step} failed"));
    }
    walk.end("steps of removal", RemovalStep::ALL.len());
}

/// covers: A6 R5
#[test]
fn every_allocation_of_removal() {
    let (bench, mut walk) = (Bench::new(), Walk::default());
    for allocation in 1.. {
        let report = bench.remove_under_load(Watch { allocation, ..Watch::default() });
        assert_eq!(report.problems().count(), 0, "allocation {allocation}");
        if COUNTDOWN.replace(0) != 0 {
            return walk.end("allocations of removal", 10);
        }
        walk.comes_again(&bench, &format!("after allocation {allocation} failed"));
    }
}
