//! A small machine for host tests: an emulated machine, a device whose frames carry stamps, address spaces.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod cached;
pub mod gup_rig;
pub mod pin_unmap;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use mm::addr::{PAGE_SIZE, PageSize, Pfn, PfnRange, VirtAddr};
use mm::context::MmContext;
use mm::entry::Prot;
use mm::gup::{self, GupError, GupFlags, RangeArray};
use mm::machine::{CpuId, IrqOff, Machine};
use mm::mapping::Mapping;
use mm::meta::MetaStore;
use mm::pagemap::{DevPagemap, MemoryKind};
use mm::space::{Access, AddressSpace, FaultError, FaultRequest, FaultTarget, MapError, SigBusCause, VmOps};
use mm::sync::{Arc, RwLock};
use testkit::emu::{self, Config, EmuMachine, Fault};

/// The machine of the emulated machine.
pub type EmuContext = MmContext<EmuMachine>;
/// One of its address spaces.
pub type Space = AddressSpace<EmuMachine>;

/// First frame of the first device: 4 GiB, as for a small NVDIMM.
pub const DEVICE_START: Pfn = Pfn::new(0x10_0000);
/// Where tests map things: 1 GiB-aligned.
pub const BASE: VirtAddr = VirtAddr::new(0x40_0000_0000);

/// The address of the page `nr` pages after [`BASE`].
pub fn page(nr: u64) -> VirtAddr {
    VirtAddr::new(BASE.as_u64() + nr * PAGE_SIZE)
}

/// What a frame holds when nobody has written to it.
pub fn stamp_of(pfn: Pfn) -> u64 {
    pfn.as_u64() ^ 0x5a5a_0000_0000_0000
}

/// A machine on a machine with `cpus` CPUs, whose interrupts reach its shootdown.
pub fn machine(cpus: usize) -> (EmuMachine, Arc<EmuContext>) {
    machine_with(Config { cpus, ..Config::default() })
}

/// A machine on a machine of the given shape.
pub fn machine_with(config: Config) -> (EmuMachine, Arc<EmuContext>) {
    let mm = emu::context_on(config);
    (mm.machine.clone(), mm)
}

/// A device: frames in a row, served to faults with leaves of at most `largest`.
pub struct Device {
    /// The reverse map.
    pub mapping: Arc<Mapping<EmuMachine>>,
    /// The page map.
    pub pages: Arc<DevPagemap>,
    /// First frame.
    pub first: Pfn,
    /// Length in frames.
    pub nr_pages: u64,
    kind: MemoryKind,
    largest: PageSize,
    /// Held shared around an install, as an SRCU read side would be.
    alive: RwLock<bool>,
    /// Set while no new mapping may be made.
    pub refuse_maps: AtomicBool,
    /// Set where it promises leaves of `largest`, as a device-dax file does that was opened so.
    promises: AtomicBool,
    /// Set where it wants to know what is stored to.
    notes: AtomicBool,
    noted: Mutex<Vec<(u64, u64)>>,
}

impl Device {
    /// A device of `nr_pages` frames from `first` on.
    pub fn new(mm: &Arc<EmuContext>, first: Pfn, nr_pages: u64, kind: MemoryKind, largest: PageSize) -> Arc<Self> {
        let range = PfnRange::new(first, nr_pages).expect("a device is not empty");
        let pages = DevPagemap::new(kind, [range]).expect("one range");
        mm.meta.register(&pages).expect("the frames are free");
        Arc::new(Self {
            mapping: Mapping::new(mm, &pages),
            pages,
            first,
            nr_pages,
            kind,
            largest,
            alive: RwLock::new(true),
            refuse_maps: AtomicBool::new(false),
            promises: AtomicBool::new(false),
            notes: AtomicBool::new(false),
            noted: Mutex::default(),
        })
    }

    /// A device-dax of `nr_pages` at the usual place with all leaf sizes.
    pub fn dax(mm: &Arc<EmuContext>, nr_pages: u64) -> Arc<Self> {
        Self::new(mm, DEVICE_START, nr_pages, MemoryKind::DevDax, PageSize::Size1G)
    }

    /// As [`Device::dax`], with leaves of at most `largest`.
    pub fn dax_with(mm: &Arc<EmuContext>, nr_pages: u64, largest: PageSize) -> Arc<Self> {
        Self::new(mm, DEVICE_START, nr_pages, MemoryKind::DevDax, largest)
    }

    /// No fault is served from now on, and none is under way.
    pub fn kill(&self) {
        *self.alive.write() = false;
    }

    /// Serves faults again.
    pub fn revive(&self) {
        *self.alive.write() = true;
    }

    /// Promises from now on leaves of its largest size.
    pub fn promise_leaves(&self) {
        self.promises.store(true, Ordering::SeqCst);
    }

    /// Notes from now on to what tasks store.
    pub fn note_stores(&self) {
        self.notes.store(true, Ordering::SeqCst);
    }

    /// First page and number of pages of what was noted since this was last asked.
    pub fn take_noted(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut *self.noted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// As address spaces see it.
    pub fn ops(self: &Arc<Self>) -> Arc<dyn VmOps<EmuMachine>> {
        self.clone()
    }

    /// The frame at an offset.
    pub fn pfn(&self, offset_pages: u64) -> Pfn {
        self.first.add(offset_pages)
    }
}

impl VmOps<EmuMachine> for Device {
    fn fault(
        &self,
        request: &FaultRequest,
        install: &mut dyn FnMut(FaultTarget) -> Result<(), FaultError>,
    ) -> Result<(), FaultError> {
        let alive = self.alive.read();
        let gone = |cause| Err(FaultError::SigBus { addr: request.addr, len_bytes: PAGE_SIZE, cause });
        if !*alive {
            return gone(SigBusCause::DeviceGone);
        }
        if request.offset_pages >= self.nr_pages {
            return gone(SigBusCause::BeyondEnd);
        }
        // The largest leaf whose frames are all the device's.
        let inside = |size: &PageSize| {
            let start = request.offset_pages & !(size.nr_pages() - 1);
            *size <= self.largest && start + size.nr_pages() <= self.nr_pages
        };
        let size = PageSize::ALL.into_iter().rev().find(inside).unwrap_or(PageSize::Size4K);
        install(FaultTarget { pfn: self.pfn(request.offset_pages), size })
    }

    fn mmap(&self, _offset_pages: u64, _nr_pages: u64, insert: &mut dyn FnMut()) -> Result<(), MapError> {
        if self.refuse_maps.load(Ordering::SeqCst) {
            return Err(MapError::Refused(SigBusCause::DeviceGone));
        }
        insert();
        Ok(())
    }

    fn mapping(&self) -> &Arc<Mapping<EmuMachine>> {
        &self.mapping
    }

    fn kind(&self) -> MemoryKind {
        self.kind
    }

    fn notes_stores(&self) -> bool {
        self.notes.load(Ordering::SeqCst)
    }

    fn alignment(&self) -> PageSize {
        if self.promises.load(Ordering::SeqCst) { self.largest } else { PageSize::Size4K }
    }

    fn stores_begin(&self, first: u64, nr_pages: u64) {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).push((first, nr_pages));
    }
}

/// What a provider calls with what it has found.
pub type Install<'a> = &'a mut dyn FnMut(FaultTarget) -> Result<(), FaultError>;

/// A device, but for how it serves a fault.
struct Through<F> {
    device: Arc<Device>,
    fault: F,
}

/// `device` as a provider whose faults go through `fault`.
pub fn through(
    device: &Arc<Device>,
    fault: impl Fn(&Device, &FaultRequest, Install<'_>) -> Result<(), FaultError> + Send + Sync + 'static,
) -> Arc<dyn VmOps<EmuMachine>> {
    Arc::new(Through { device: device.clone(), fault })
}

impl<F> VmOps<EmuMachine> for Through<F>
where
    F: Fn(&Device, &FaultRequest, Install<'_>) -> Result<(), FaultError> + Send + Sync,
{
    fn fault(&self, request: &FaultRequest, install: Install<'_>) -> Result<(), FaultError> {
        (self.fault)(&self.device, request, install)
    }

    fn mmap(&self, offset_pages: u64, nr_pages: u64, insert: &mut dyn FnMut()) -> Result<(), MapError> {
        self.device.mmap(offset_pages, nr_pages, insert)
    }

    fn mapping(&self) -> &Arc<Mapping<EmuMachine>> {
        self.device.mapping()
    }

    fn kind(&self) -> MemoryKind {
        self.device.kind()
    }
}

/// The space that each CPU of each machine has loaded: as in a kernel, where the running task owns it.
static LOADED: Mutex<BTreeMap<(usize, CpuId), Arc<Space>>> = Mutex::new(BTreeMap::new());

/// Loads `space` on the current CPU, which owns it until it loads another.
pub fn load(mm: &EmuContext, space: Option<&Arc<Space>>) {
    mm.shootdown.switch_to(&IrqOff::new(&mm.machine), space.map(|space| space.tlb()));
    let key = (std::ptr::from_ref(mm).addr(), mm.machine.cpu());
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let old = match space {
        Some(space) => loaded.insert(key, Arc::clone(space)),
        None => loaded.remove(&key),
    };
    // Dropping a space takes time, and may wait for other CPUs.
    drop(loaded);
    drop(old);
}

/// The current CPU goes idle, with what it has loaded.
pub fn go_idle(mm: &EmuContext) {
    mm.shootdown.enter_lazy(&IrqOff::new(&mm.machine));
}

/// The current CPU works again.
pub fn wake(mm: &EmuContext) {
    mm.shootdown.leave_lazy(&IrqOff::new(&mm.machine));
}

/// A space with `nr_pages` of `device` mapped at [`BASE`] from offset 0, loaded on `cpus`.
pub fn space_with(mm: &Arc<EmuContext>, device: &Arc<Device>, nr_pages: u64, cpus: &[CpuId]) -> Arc<Space> {
    let space = AddressSpace::new(mm, "test").expect("memory for a root");
    space.map(BASE, nr_pages * PAGE_SIZE, Prot::USER_WRITE, &device.ops(), 0).expect("nothing is mapped yet");
    for &cpu in cpus {
        mm.machine.on_cpu(cpu, || load(mm, Some(&space)));
    }
    space
}

/// How an access ended.
pub type Accessed<T> = Result<T, FaultError>;

/// A user load: through the TLB, and through the fault handler where that is needed.
pub fn load_from(space: &Space, emu: &EmuMachine, va: VirtAddr) -> Accessed<u64> {
    with_faults(space, va, Access::Read, || emu.read(va, true))
}

/// A user store.
pub fn store_to(space: &Space, emu: &EmuMachine, va: VirtAddr, stamp: u64) -> Accessed<()> {
    with_faults(space, va, Access::Write, || emu.write(va, stamp, true))
}

fn with_faults<T>(
    space: &Space,
    va: VirtAddr,
    access: Access,
    mut attempt: impl FnMut() -> Result<T, Fault>,
) -> Accessed<T> {
    for _ in 0..4 {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(_) => space.handle_fault(va, access)?,
        }
    }
    panic!("the access at {va} faults again and again");
}

/// Pins pages and gives the runs.
pub fn pin(space: &Space, va: VirtAddr, nr_pages: u64, flags: GupFlags) -> Result<Vec<PfnRange>, GupError> {
    let mut runs = [None; 64];
    let mut sink = RangeArray::new(&mut runs);
    let nr = gup::pin_user_pages_fast(space, va, nr_pages, flags, &mut sink)?;
    let runs: Vec<_> = sink.iter().collect();
    assert_eq!(runs.iter().map(|run| run.nr_pages()).sum::<u64>(), nr, "the runs hold what was counted");
    Ok(runs)
}

/// Gives back what [`pin`] gave.
pub fn unpin(mm: &EmuContext, runs: &[PfnRange]) {
    for run in runs {
        gup::unpin(mm, run.start(), run.nr_pages());
    }
}

/// References and pins of the folio that covers `pfn`; zeroes where there is none.
pub fn counts(meta: &MetaStore, pfn: Pfn) -> (u32, u32) {
    meta.inspect(pfn).map_or((0, 0), |folio| (folio.counts.refs, folio.counts.pins))
}
