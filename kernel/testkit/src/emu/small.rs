//! What an example or a host test begins with: a context in one line, frames to map, a task that uses them.

use std::sync::Arc;

use super::{Config, EmuMachine, Fault};
use mm::addr::{PAGE_SIZE, PageSize, Pfn, PfnRange, VirtAddr};
use mm::context::MmContext;
use mm::machine::{CpuId, IrqOff};
use mm::mapping::Mapping;
use mm::pagemap::{DevPagemap, MemoryKind};
use mm::space::{Access, AddressSpace, FaultError, FaultRequest, FaultTarget, MapError, SigBusCause, VmOps};

/// Faults of one access after which it is taken to fault for ever.
const MAX_FAULTS: usize = 4;

/// An emulated machine with `cpus` CPUs, and what belongs to it: see [`context_on`].
pub fn context(cpus: usize) -> Arc<MmContext<EmuMachine>> {
    context_on(Config { cpus, ..Config::default() })
}

/// An emulated machine of the given shape, and what belongs to it. All its CPUs are online, and its shootdown interrupt
/// has its handler.
///
/// # Panics
/// As [`EmuMachine::new`].
pub fn context_on(config: Config) -> Arc<MmContext<EmuMachine>> {
    let emu = EmuMachine::new(config);
    let mm = MmContext::new(emu.clone(), config.cpus);
    let weak = Arc::downgrade(&mm);
    emu.set_ipi_handler(move || {
        if let Some(mm) = weak.upgrade() {
            mm.shootdown.handle_ipi(&IrqOff::new(&mm.machine));
        }
    });
    for cpu in 0..config.cpus {
        emu.on_cpu(cpu, || mm.shootdown.cpu_online(&IrqOff::new(&mm.machine)));
    }
    mm
}

/// The simplest provider there is: frames in a row, the first at offset 0, alive for ever. With leaves of any size.
/// For one with a life see the package `dax`.
pub struct Frames {
    /// The page map that has them.
    pub map: Arc<DevPagemap>,
    /// Who maps them.
    pub mapping: Arc<Mapping<EmuMachine>>,
    range: PfnRange,
}

impl Frames {
    /// `nr_pages` frames from `first` on, registered as device-dax.
    ///
    /// # Panics
    /// Where there are none, or another page map has one of them.
    pub fn new(mm: &Arc<MmContext<EmuMachine>>, first: Pfn, nr_pages: u64) -> Arc<Self> {
        let range = PfnRange::new(first, nr_pages).expect("there is a frame");
        let map = DevPagemap::new(MemoryKind::DevDax, [range]).expect("one range");
        mm.meta.register(&map).expect("the frames are nobody else's");
        Arc::new(Self { mapping: Mapping::new(mm, &map), map, range })
    }
    /// As [`AddressSpace::map`] takes it.
    pub fn ops(self: &Arc<Self>) -> Arc<dyn VmOps<EmuMachine>> {
        self.clone()
    }
}

impl VmOps<EmuMachine> for Frames {
    fn fault(
        &self,
        request: &FaultRequest,
        install: &mut dyn FnMut(FaultTarget) -> Result<(), FaultError>,
    ) -> Result<(), FaultError> {
        let pfn = self.range.start().add(request.offset_pages);
        let inside = |size: &PageSize| {
            let head = pfn.align_down(*size);
            head >= self.range.start() && head.add(size.nr_pages()) <= self.range.end()
        };
        match PageSize::ALL.into_iter().rev().find(inside) {
            Some(size) => install(FaultTarget { pfn, size }),
            None => {
                let cause = SigBusCause::BeyondEnd;
                Err(FaultError::SigBus { addr: request.addr, len_bytes: PAGE_SIZE, cause })
            }
        }
    }

    fn mmap(&self, _offset_pages: u64, _nr_pages: u64, insert: &mut dyn FnMut()) -> Result<(), MapError> {
        insert();
        Ok(())
    }

    fn mapping(&self) -> &Arc<Mapping<EmuMachine>> {
        &self.mapping
    }

    fn kind(&self) -> MemoryKind {
        self.map.kind()
    }
}

/// A task that runs in an address space, on one CPU, until this is dropped. Its accesses go through the CPU's TLB, and
/// their faults to the address space.
pub struct Task {
    cpu: CpuId,
    /// `None` only while it is dropped.
    space: Option<Arc<AddressSpace<EmuMachine>>>,
}

impl Task {
    /// Loads `space` on `cpu`, which runs nothing else.
    ///
    /// # Panics
    /// As [`EmuMachine::on_cpu`].
    pub fn start(space: &Arc<AddressSpace<EmuMachine>>, cpu: CpuId) -> Self {
        let task = Self { cpu, space: Some(Arc::clone(space)) };
        task.run(|space| {
            let mm = space.mm();
            mm.shootdown.switch_to(&IrqOff::new(&mm.machine), Some(space.tlb()));
        });
        task
    }

    /// The address space that it runs in.
    ///
    /// # Panics
    /// Never.
    pub fn space(&self) -> &Arc<AddressSpace<EmuMachine>> {
        self.space.as_ref().expect("a task has a space until it is dropped")
    }

    /// Has it do something: `work` runs on its CPU.
    pub fn run<R>(&self, work: impl FnOnce(&Arc<AddressSpace<EmuMachine>>) -> R) -> R {
        let space = self.space();
        space.mm().machine.on_cpu(self.cpu, || work(space))
    }

    /// It loads from the page at `va`: the frame's stamp.
    ///
    /// # Errors
    /// The fault that could not be served, which would be the task's signal.
    pub fn load(&self, va: VirtAddr) -> Result<u64, FaultError> {
        self.access(va, Access::Read, |emu| emu.read(va, true))
    }

    /// It stores `stamp` to the page at `va`.
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    pub fn store(&self, va: VirtAddr, stamp: u64) -> Result<(), FaultError> {
        self.access(va, Access::Write, |emu| emu.write(va, stamp, true))
    }

    fn access<T>(
        &self,
        va: VirtAddr,
        access: Access,
        attempt: impl Fn(&EmuMachine) -> Result<T, Fault>,
    ) -> Result<T, FaultError> {
        self.run(|space| {
            for _ in 0..MAX_FAULTS {
                match attempt(&space.mm().machine) {
                    Ok(done) => return Ok(done),
                    Err(_) => space.handle_fault(va, access)?,
                }
            }
            panic!("the access at {va} faults again and again");
        })
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let Some(space) = self.space.take() else { return };
        let mm = Arc::clone(space.mm());
        mm.machine.on_cpu(self.cpu, || {
            mm.shootdown.switch_to(&IrqOff::new(&mm.machine), None);
            // What it maps is given back on the same CPU.
            drop(space);
        });
    }
}
