//! A small rig for host tests: an emulated machine, devices with file systems on them, tasks.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use dax::device::{DataCache, Live, alloc_dax};
use dax::removal::Target;
use fs::check::check;
use fs::error::FsError;
use fs::handle::File;
use fs::lock_order::Context;
use fs::mount::{MakeOptions, make};
use fs::mounted::{Host, Mounted, Source};
use fs::pmem::Pmem;
use mm::addr::{PAGE_SIZE, Pfn, PfnRange, VirtAddr, VirtRange};
use mm::context::MmContext;
use mm::entry::Prot;
use mm::gup::{self, GupError, GupFlags, RangeArray};
use mm::ledger::Snapshot;
use mm::machine::{IrqOff, Machine};
use mm::pagemap::{DevPagemap, MemoryKind};
use mm::space::{Access, AddressSpace, FaultError, SigBusCause};
use testkit::emu::{self, EmuMachine};
use testkit::removal::NoDriver;
use testkit::sim::SimPmem;

pub type EmuContext = MmContext<EmuMachine>;
pub type Space = AddressSpace<EmuMachine>;
pub type Fs = Mounted<EmuMachine>;
pub type Open = Arc<File<EmuMachine>>;

/// First frame of the first device: 4 GiB.
pub const START: u64 = 0x10_0000;
/// Where tests map things.
pub const BASE: u64 = 0x40_0000_0000;

pub fn page(nr: u64) -> VirtAddr {
    VirtAddr::new(BASE + nr * PAGE_SIZE)
}

pub fn rig(cpus: usize) -> (EmuMachine, Arc<EmuContext>) {
    let mm = emu::context(cpus);
    (mm.machine.clone(), mm)
}

/// What the kernel was told.
#[derive(Default)]
pub struct Kernel {
    pub lines: Mutex<Vec<String>>,
    /// Space, first address, length, cause.
    pub lost: Mutex<Vec<(u64, u64, u64, SigBusCause)>>,
    pub current: Mutex<Option<u64>>,
    pub pins: Mutex<BTreeMap<Pfn, String>>,
}

impl Kernel {
    pub fn said(&self, words: &str) -> bool {
        self.lines.lock().unwrap().iter().any(|line| line.contains(words))
    }
}

impl Host<EmuMachine> for Kernel {
    fn line(&self, line: fmt::Arguments<'_>) {
        self.lines.lock().unwrap().push(line.to_string());
    }
    fn lost(&self, space: &Arc<Space>, range: VirtRange, cause: SigBusCause) {
        self.lost.lock().unwrap().push((space.id(), range.start().as_u64(), range.len_bytes(), cause));
    }
    fn current_space(&self) -> Option<u64> {
        *self.current.lock().unwrap()
    }
    fn pinned_by(&self, pfn: Pfn) -> Option<String> {
        self.pins.lock().unwrap().get(&pfn).cloned()
    }
}

/// A device with a file system on it.
pub struct Device {
    pub name: String,
    pub mm: Arc<EmuContext>,
    pub live: Live,
    pub map: Arc<DevPagemap>,
    pub sim: Arc<SimPmem>,
    pub kernel: Arc<Kernel>,
    pub checked: Checked,
}

/// The checker runs over these bytes when the test is done with them, unless it has failed.
pub struct Checked {
    sim: Arc<SimPmem>,
    /// The journal's device, if it is another one.
    pub log: Option<Arc<dyn Pmem>>,
    /// Is the medium damaged on purpose?
    pub damaged: bool,
}

impl Checked {
    pub fn new(sim: &Arc<SimPmem>) -> Self {
        Self { sim: sim.clone(), log: None, damaged: false }
    }
}

impl Drop for Checked {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let pmem: Arc<dyn Pmem> = self.sim.clone();
            let report = check(&pmem, self.log.as_ref());
            assert_ne!(report.is_clean(), self.damaged, "{report:#?}");
        }
    }
}

/// A DAX device of `len_bytes` from frame `start` on.
fn dax_of(mm: &EmuContext, name: &str, start: u64, len_bytes: u64) -> (Arc<DevPagemap>, Live) {
    let range = PfnRange::new(Pfn::new(start), len_bytes / PAGE_SIZE).unwrap();
    let map = DevPagemap::new(MemoryKind::FsDax, [range]).unwrap();
    let live = alloc_dax(name, &map, DataCache::Coherent, &mm.ledger).unwrap();
    mm.meta.register(&map).unwrap();
    (map, live)
}

fn source_of(name: &str, live: &Live, pmem: Arc<dyn Pmem>, kernel: Arc<Kernel>) -> Source<EmuMachine> {
    Source {
        name: name.into(),
        device: live.device().clone(),
        part: None,
        pmem,
        log: None,
        host: kernel,
        freeze_timeout_ns: 10_000,
        first_complaint_ns: 1_000,
    }
}

/// Mounts what is on a memory of whatever kind, from [`START`] on.
#[allow(dead_code, reason = "not every test program needs it")]
pub fn mount_over(mm: &Arc<EmuContext>, pmem: Arc<dyn Pmem>) -> (Live, Arc<Fs>) {
    let (_map, live) = dax_of(mm, "pmem0", START, pmem.len_bytes());
    let fs = Mounted::mount(mm, source_of("pmem0", &live, pmem, Arc::default())).unwrap();
    (live, fs)
}

impl Device {
    /// `blocks` frames from `start` on, over what `sim` holds.
    pub fn attach(mm: &Arc<EmuContext>, name: &str, start: u64, sim: Arc<SimPmem>) -> Self {
        let (map, live) = dax_of(mm, name, start, sim.len_bytes());
        let checked = Checked::new(&sim);
        Self { name: name.into(), mm: mm.clone(), live, map, sim, kernel: Arc::default(), checked }
    }

    /// As [`attach`](Self::attach), with a new file system of `blocks` blocks.
    pub fn new(mm: &Arc<EmuContext>, name: &str, start: u64, blocks: u64) -> Self {
        Self::make(mm, name, start, blocks, &MakeOptions::default())
    }

    pub fn make(mm: &Arc<EmuContext>, name: &str, start: u64, blocks: u64, options: &MakeOptions) -> Self {
        let sim = Arc::new(SimPmem::new((blocks * PAGE_SIZE) as usize));
        let pmem: Arc<dyn Pmem> = sim.clone();
        make(&pmem, options).unwrap();
        Self::attach(mm, name, start, sim)
    }

    pub fn source(&self) -> Source<EmuMachine> {
        source_of(&self.name, &self.live, self.sim.clone(), self.kernel.clone())
    }

    pub fn mount(&self) -> Result<Arc<Fs>, FsError> {
        Mounted::mount(&self.mm, self.source())
    }

    /// Removes the device; the problems that the report names.
    pub fn remove(self) -> Vec<String> {
        let target = Target { name: self.name, map: self.map, dax: Some(self.live), mappings: vec![] };
        let report = dax::removal::remove(&self.mm, target, dax::removal::Method::Ranged, &mut NoDriver(()));
        let answers = report.kill.iter().flat_map(|kill| &kill.answers);
        let failed = answers.filter(|answer| answer.result.is_err()).map(ToString::to_string);
        report.problems().map(|(step, problem)| format!("{step:?}: {problem:?}")).chain(failed).collect()
    }

    pub fn assert_clean(&self) {
        assert_clean(&self.sim);
    }
}

type Hook = Box<dyn FnOnce() + Send>;

/// A memory in which something happens at the next read, or at the next fence, which is not confirmed then; or one read of the
/// next ones fails, or stores to some bytes do.
#[allow(dead_code, reason = "not every test program needs it")]
pub struct Hooked {
    pub sim: Arc<SimPmem>,
    at_read: Mutex<Option<Hook>>,
    /// How many reads come before the one that fails.
    reads_left: Mutex<Option<u64>>,
    /// Bytes that take no stores.
    refused: Mutex<Range<u64>>,
    at_fence: Mutex<Option<Hook>>,
}

#[allow(dead_code, reason = "not every test program needs all")]
impl Hooked {
    pub fn new(sim: &Arc<SimPmem>) -> Arc<Self> {
        Arc::new(Self {
            sim: sim.clone(),
            at_read: Mutex::default(),
            reads_left: Mutex::default(),
            refused: Mutex::default(),
            at_fence: Mutex::default(),
        })
    }

    /// From now on stores to these bytes fail, and to no others.
    pub fn refuse_stores(&self, to: Range<u64>) {
        *self.refused.lock().unwrap() = to;
    }

    /// Lets the read fail that comes after so many others; `None`: none. Was there one that had not come yet?
    pub fn fail_read_after(&self, reads: Option<u64>) -> bool {
        std::mem::replace(&mut *self.reads_left.lock().unwrap(), reads).is_some()
    }

    pub fn at_next_read(&self, hook: impl FnOnce() + Send + 'static) {
        *self.at_read.lock().unwrap() = Some(Box::new(hook));
    }

    pub fn fail_next_fence(&self, hook: impl FnOnce() + Send + 'static) {
        *self.at_fence.lock().unwrap() = Some(Box::new(hook));
    }
}

impl Pmem for Hooked {
    fn len_bytes(&self) -> u64 {
        self.sim.len_bytes()
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), FsError> {
        let hook = self.at_read.lock().unwrap().take();
        hook.into_iter().for_each(|hook| hook());
        let mut left = self.reads_left.lock().unwrap();
        match left.as_mut() {
            Some(0) => {
                *left = None;
                return Err(FsError::Media(offset));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        self.sim.read(offset, buf)
    }
    fn store(&self, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        let refused = self.refused.lock().unwrap();
        match offset < refused.end && refused.start < offset + bytes.len() as u64 {
            true => Err(FsError::Media(offset)),
            false => self.sim.store(offset, bytes),
        }
    }
    fn write_back(&self, offset: u64, len: u64) {
        self.sim.write_back(offset, len);
    }
    fn fence(&self) -> Result<(), FsError> {
        let hook = self.at_fence.lock().unwrap().take();
        match hook {
            Some(hook) => {
                hook();
                Err(FsError::NotDurable)
            }
            None => self.sim.fence(),
        }
    }
}

/// A memory whose reads wait until they may go on.
#[allow(dead_code, reason = "not every test program needs it")]
pub struct Slow {
    pub sim: Arc<SimPmem>,
    pub emu: EmuMachine,
    pub go_on: Arc<AtomicBool>,
}

impl Pmem for Slow {
    fn len_bytes(&self) -> u64 {
        self.sim.len_bytes()
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), FsError> {
        while !self.go_on.load(Ordering::SeqCst) {
            self.emu.relax();
        }
        self.sim.read(offset, buf)
    }
    fn store(&self, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        self.sim.store(offset, bytes)
    }
    fn write_back(&self, offset: u64, len: u64) {
        self.sim.write_back(offset, len);
    }
    fn fence(&self) -> Result<(), FsError> {
        self.sim.fence()
    }
}

/// A file system whose journal is on a second device.
pub fn with_log(mm: &Arc<EmuContext>) -> (Device, Live, Arc<Fs>) {
    let log = Arc::new(SimPmem::new(1 << 18));
    let options = MakeOptions { log: Some(log.clone()), ..MakeOptions::default() };
    let mut device = Device::make(mm, "pmem0", START, 512, &options);
    device.checked.log = Some(log.clone());
    let map = DevPagemap::new(MemoryKind::FsDax, [PfnRange::new(Pfn::new(3 * START), 64).unwrap()]).unwrap();
    let live = alloc_dax("pmem1", &map, DataCache::Coherent, &mm.ledger).unwrap();
    let mut source = device.source();
    source.log = Some((live.device().clone(), log));
    let fs = Mounted::mount(mm, source).unwrap();
    (device, live, fs)
}

pub fn assert_clean(sim: &Arc<SimPmem>) {
    let pmem: Arc<dyn Pmem> = Arc::new(SimPmem::from_bytes(sim.bytes()));
    let report = check(&pmem, None);
    assert!(report.is_clean(), "{report:#?}");
}

/// Nothing is held that was not held before.
pub fn assert_no_leak(mm: &EmuContext, before: Snapshot) {
    let now = mm.ledger_snapshot();
    let leaks: Vec<_> = now.diff(&before).map(|(kind, nr)| format!("{kind} {nr:+}")).collect();
    assert!(leaks.is_empty(), "leaked: {leaks:?}");
}

/// A task: an address space that is loaded on a CPU until this is dropped.
pub struct Task {
    pub mm: Arc<EmuContext>,
    pub cpu: usize,
    pub space: Arc<Space>,
}

impl Task {
    pub fn new(mm: &Arc<EmuContext>, cpu: usize) -> Self {
        let space = AddressSpace::new(mm, &format!("task{cpu}")).unwrap();
        mm.machine.on_cpu(cpu, || mm.shootdown.switch_to(&IrqOff::new(&mm.machine), Some(space.tlb())));
        Self { mm: mm.clone(), cpu, space }
    }
    /// Maps `nr_pages` of the file from `first` on at page `at`.
    pub fn map(&self, at: u64, file: &Open, first: u64, nr_pages: u64) {
        self.space.map(page(at), nr_pages * PAGE_SIZE, Prot::USER_WRITE, &file.ops(), first).unwrap();
    }
    /// As a task that has mapped, and closed the file.
    pub fn with(mm: &Arc<EmuContext>, cpu: usize, file: &Open, nr_pages: u64) -> Self {
        let task = Self::new(mm, cpu);
        task.map(0, file, 0, nr_pages);
        task
    }
    pub fn store(&self, nr: u64, stamp: u64) -> Result<(), FaultError> {
        self.mm.machine.on_cpu(self.cpu, || {
            for _ in 0..4 {
                if self.mm.machine.write(page(nr), stamp, true).is_ok() {
                    return Ok(());
                }
                self.space.handle_fault(page(nr), Access::Write)?;
            }
            panic!("a store faults again and again");
        })
    }
    pub fn fetch(&self, nr: u64) -> Result<u64, FaultError> {
        self.mm.machine.on_cpu(self.cpu, || {
            for _ in 0..4 {
                if let Ok(stamp) = self.mm.machine.read(page(nr), true) {
                    return Ok(stamp);
                }
                self.space.handle_fault(page(nr), Access::Read)?;
            }
            panic!("a load faults again and again");
        })
    }
    pub fn cause(&self, nr: u64) -> Option<SigBusCause> {
        match self.fetch(nr) {
            Err(FaultError::SigBus { cause, .. }) => Some(cause),
            _ => None,
        }
    }
    pub fn pin(&self, nr: u64, nr_pages: u64, flags: GupFlags) -> Result<Vec<PfnRange>, GupError> {
        self.mm.machine.on_cpu(self.cpu, || {
            let mut runs = [None; 16];
            let mut sink = RangeArray::new(&mut runs);
            gup::pin_user_pages_fast(&self.space, page(nr), nr_pages, flags, &mut sink)?;
            Ok(sink.iter().collect())
        })
    }
    /// Unmaps everything, as an exit does.
    pub fn exit(self) {}
}

impl Drop for Task {
    fn drop(&mut self) {
        self.mm.machine.on_cpu(self.cpu, || self.mm.shootdown.switch_to(&IrqOff::new(&self.mm.machine), None));
    }
}

pub fn unpin(mm: &EmuContext, runs: &[PfnRange]) {
    runs.iter().for_each(|run| gup::unpin(mm, run.start(), run.nr_pages()));
}

pub fn cx() -> Context {
    Context::new()
}
