//! A small machine for host tests: an emulated machine, devices with device-dax over them, address spaces.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::sync::Arc;

use dax::devdax::{DevDax, OpenOptions};
use dax::device::{DataCache, DaxError, Live, alloc_dax};
use dax::kill::{KillReport, Phase};
use dax::removal::{Cause, Problem, RemovalEnv, RemovalWatch, StepRecord, Target, Waiting};
use mm::addr::{PAGE_SIZE, PageSize, Pfn, PfnRange, VirtAddr, VirtRange};
use mm::context::MmContext;
use mm::entry::Prot;
use mm::gup::{self, GupError, GupFlags, RangeArray};
use mm::machine::IrqOff;
use mm::pagemap::{DevPagemap, MemoryKind};
use mm::region::{RegionInfo, TakeBack};
use mm::space::{Access, AddressSpace, FaultError, MapError, VmOps};
use testkit::emu::{self, EmuMachine};

/// The machine of the emulated machine.
pub type EmuContext = MmContext<EmuMachine>;
/// One of its address spaces.
pub type Space = AddressSpace<EmuMachine>;

/// First frame of the device: 4 GiB.
pub const START: u64 = 0x10_0000;
/// Pages in 1 GiB.
pub const GIB: u64 = 1 << 18;
/// Where tests map things: 1 GiB-aligned.
pub const BASE: u64 = 0x40_0000_0000;

/// The address of the page `nr` pages after [`BASE`].
pub fn page(nr: u64) -> VirtAddr {
    VirtAddr::new(BASE + nr * PAGE_SIZE)
}

pub fn frames(start: u64, nr_pages: u64) -> PfnRange {
    PfnRange::new(Pfn::new(start), nr_pages).unwrap()
}

/// A machine on a machine with `cpus` CPUs, whose interrupts reach its shootdown.
pub fn machine(cpus: usize) -> (EmuMachine, Arc<EmuContext>) {
    let mm = emu::context(cpus);
    (mm.machine.clone(), mm)
}

/// An attached device with device-dax over it.
pub struct Attached {
    pub live: Live,
    pub dev: Arc<DevDax<EmuMachine>>,
    pub map: Arc<DevPagemap>,
}

/// Attaches a device over `ranges`.
pub fn attach(mm: &Arc<EmuContext>, ranges: &[PfnRange], alignment: PageSize) -> Result<Attached, DaxError> {
    let map = DevPagemap::new(MemoryKind::DevDax, ranges.iter().copied()).unwrap();
    let live = alloc_dax("dax0.0", &map, DataCache::Coherent, &mm.ledger)?;
    let dev = DevDax::new(mm, live.device(), alignment)?;
    mm.meta.register(&map).unwrap();
    Ok(Attached { live, dev, map })
}

/// One range of `nr_pages` frames at the usual place.
pub fn attach_one(mm: &Arc<EmuContext>, nr_pages: u64) -> Attached {
    attach(mm, &[frames(START, nr_pages)], PageSize::Size4K).unwrap()
}

impl Attached {
    /// What [`dax::removal::remove`] takes.
    pub fn target(self) -> Target<EmuMachine> {
        Target {
            name: "dax0.0".into(),
            map: self.map,
            dax: Some(self.live),
            mappings: vec![self.dev.mapping().clone()],
        }
    }
    pub fn file(&self, options: OpenOptions) -> Arc<dyn VmOps<EmuMachine>> {
        self.dev.open(options).unwrap()
    }
}

pub fn space(mm: &Arc<EmuContext>, name: &str) -> Arc<Space> {
    AddressSpace::new(mm, name).unwrap()
}

/// Maps `nr_pages` of the file from offset 0 on at [`BASE`].
pub fn map(space: &Arc<Space>, file: &Arc<dyn VmOps<EmuMachine>>, nr_pages: u64) -> Result<(), MapError> {
    space.map(page(0), nr_pages * PAGE_SIZE, Prot::USER_WRITE, file, 0)
}

/// Loads `space` on the current CPU.
pub fn load(mm: &EmuContext, space: Option<&Arc<Space>>) {
    mm.shootdown.switch_to(&IrqOff::new(&mm.machine), space.map(|space| space.tlb()));
}

/// A space that is loaded on a CPU until this is dropped.
pub struct Loaded {
    mm: Arc<EmuContext>,
    cpu: usize,
    /// `None` only while it is dropped.
    space: Option<Arc<Space>>,
}

impl Loaded {
    /// A new space with `nr_pages` of `file` mapped at [`BASE`], loaded on `cpu`.
    pub fn new(mm: &Arc<EmuContext>, cpu: usize, file: &Arc<dyn VmOps<EmuMachine>>, nr_pages: u64) -> Self {
        let space = mm.machine.on_cpu(cpu, || {
            let space = space(mm, &format!("task{cpu}"));
            map(&space, file, nr_pages).unwrap();
            load(mm, Some(&space));
            space
        });
        Self { mm: mm.clone(), cpu, space: Some(space) }
    }
    pub fn space(&self) -> &Arc<Space> {
        self.space.as_ref().unwrap()
    }
    pub fn store(&self, va: VirtAddr, stamp: u64) -> Result<(), FaultError> {
        self.mm.machine.on_cpu(self.cpu, || store(&self.mm.machine, self.space(), va, stamp))
    }
    pub fn fetch(&self, va: VirtAddr) -> Result<u64, FaultError> {
        self.mm.machine.on_cpu(self.cpu, || fetch(&self.mm.machine, self.space(), va))
    }
    pub fn pin(&self, va: VirtAddr, nr_pages: u64, flags: GupFlags) -> Result<Vec<PfnRange>, GupError> {
        self.mm.machine.on_cpu(self.cpu, || pin(self.space(), va, nr_pages, flags))
    }
    pub fn unpin(&self, runs: &[PfnRange]) {
        self.mm.machine.on_cpu(self.cpu, || unpin(&self.mm, runs));
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.mm.machine.on_cpu(self.cpu, || {
            load(&self.mm, None);
            // What it maps is given back on the same CPU.
            drop(self.space.take());
        });
    }
}

/// A user store on the current CPU, through its TLB, with faults served.
pub fn store(emu: &EmuMachine, space: &Space, va: VirtAddr, stamp: u64) -> Result<(), FaultError> {
    for _ in 0..4 {
        if emu.write(va, stamp, true).is_ok() {
            return Ok(());
        }
        space.handle_fault(va, Access::Write)?;
    }
    panic!("a store at {va} faults again and again");
}

/// A user load on the current CPU.
pub fn fetch(emu: &EmuMachine, space: &Space, va: VirtAddr) -> Result<u64, FaultError> {
    for _ in 0..4 {
        if let Ok(stamp) = emu.read(va, true) {
            return Ok(stamp);
        }
        space.handle_fault(va, Access::Read)?;
    }
    panic!("a load at {va} faults again and again");
}

/// Pins pages and gives the runs.
pub fn pin(space: &Space, va: VirtAddr, nr_pages: u64, flags: GupFlags) -> Result<Vec<PfnRange>, GupError> {
    let mut runs = [None; 16];
    let mut sink = RangeArray::new(&mut runs);
    gup::pin_user_pages_fast(space, va, nr_pages, flags, &mut sink)?;
    Ok(sink.iter().collect())
}

pub fn unpin(mm: &EmuContext, runs: &[PfnRange]) {
    runs.iter().for_each(|run| gup::unpin(mm, run.start(), run.nr_pages()));
}

type OnWait<'a> = Box<dyn FnMut(&Waiting) + 'a>;
type OnStep<'a> = Box<dyn FnMut(&StepRecord) + 'a>;

/// What stands around a removal, and what it was told.
#[derive(Default)]
pub struct Env<'a> {
    /// The console: one line for each step, and for each call in between.
    pub log: Vec<String>,
    pub lost: Vec<(String, VirtRange)>,
    /// Steps of the environment that fail.
    /// Phases of the kill, and what the holders had answered by then.
    pub phases: Vec<(Phase, Vec<String>)>,
    /// All tasks: the number of their address space, their own, their name.
    pub tasks: Vec<(u64, u64, &'static str)>,
    pub fail: Vec<&'static str>,
    pub on_wait: Option<OnWait<'a>>,
    pub on_step: Option<OnStep<'a>>,
    /// Why the device is removed.
    pub cause: Cause,
    /// Transfers of devices that were blocked: one for each registration that is revoked. And how often it was asked for.
    pub blocked: u64,
    pub blocked_asked: u64,
}

impl Env<'_> {
    fn try_step(&mut self, name: &'static str) -> Result<(), Problem> {
        self.log.push(name.into());
        if self.fail.contains(&name) { Err(Problem(format!("injected into {name}"))) } else { Ok(()) }
    }
}

impl RemovalEnv<EmuMachine> for Env<'_> {
    type Watch = Self;
    fn watch(&mut self) -> &mut Self {
        self
    }
    fn stop_io(&mut self) -> Result<u64, Problem> {
        self.try_step("stop_io").map(|()| 3)
    }
    fn unmap_direct_map(&mut self) -> Result<u64, Problem> {
        self.try_step("unmap_direct_map").map(|()| 1)
    }
    fn release(&mut self) -> Result<(), Problem> {
        self.try_step("release")
    }
}

impl RemovalWatch<EmuMachine> for Env<'_> {
    fn cause(&mut self) -> Cause {
        self.cause
    }
    fn phase(&mut self, phase: Phase, kill: &KillReport) {
        self.phases.push((phase, kill.answers.iter().map(ToString::to_string).collect()));
    }
    fn for_each_task(&mut self, each: &mut dyn FnMut(u64, u64, &str)) {
        self.tasks.iter().for_each(|(space, id, name)| each(*space, *id, name));
    }
    fn lost(&mut self, space: &Arc<Space>, range: VirtRange) {
        self.log.push("lost".into());
        self.lost.push((space.name().into(), range));
    }
    fn asked(&mut self, region: &RegionInfo<'_>) {
        self.log.push(format!("asked {}", region.owner));
    }
    fn taking_back(&mut self, told: &TakeBack<'_>) {
        self.log.push(match told {
            TakeBack::Waits(region) => format!("waits for a use of {}", region.owner),
            TakeBack::Revoked(revoked) => {
                self.blocked += 1;
                format!("revoked {}", revoked.region.owner)
            }
        });
    }
    fn blocked_transfers(&mut self) -> u64 {
        self.blocked_asked += 1;
        self.blocked
    }
    fn waiting(&mut self, waiting: &Waiting) {
        self.log.push("waiting".into());
        if let Some(on_wait) = &mut self.on_wait {
            on_wait(waiting);
        }
    }
    fn observe(&mut self, record: &StepRecord) {
        self.log.push(format!("{}: done", record.step));
        if let Some(on_step) = &mut self.on_step {
            on_step(record);
        }
    }
}
