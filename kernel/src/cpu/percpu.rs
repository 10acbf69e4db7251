//! What each CPU has for itself.

use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use arch::percpu as area;
use mm::machine::{CpuId, CpuMask, MAX_CPUS};

/// One CPU's area, as far as every room knows it. GS points to it, and the scheduler's part follows it.
#[derive(Debug)]
#[repr(C)]
pub struct PerCpu {
    head: area::Head,
    /// APIC id, for interrupts to this CPU.
    pub apic_id: AtomicU32,
    /// Takes interrupts and runs tasks.
    pub online: AtomicBool,
    /// Depth of interrupt handlers (exceptions do not count).
    interrupts: AtomicU32,
    /// Timer interrupts taken.
    pub ticks: AtomicU64,
    /// Test interrupts answered.
    pub test_ipis: AtomicU64,
    /// Rounds of waiting, see `KernelMachine::relax`.
    pub relaxed: AtomicU64,
    /// Breakpoints taken, for a test.
    pub breakpoints: AtomicU64,
    /// Where this CPU was stopped by a panic elsewhere: instruction pointer and frame pointer, 0 while it runs.
    pub stopped_rip: AtomicU64,
    /// See [`stopped_rip`](Self::stopped_rip).
    pub stopped_rbp: AtomicU64,
}

// SAFETY: `head` is written before the area is published and then by its own CPU alone; the rest is atomic or locked.
unsafe impl Sync for PerCpu {}
// SAFETY: as above.
unsafe impl Send for PerCpu {}

impl PerCpu {
    /// The area of CPU `id`.
    pub const fn new(id: CpuId) -> Self {
        Self {
            head: area::Head::new(id),
            apic_id: AtomicU32::new(0),
            online: AtomicBool::new(false),
            interrupts: AtomicU32::new(0),
            ticks: AtomicU64::new(0),
            test_ipis: AtomicU64::new(0),
            relaxed: AtomicU64::new(0),
            breakpoints: AtomicU64::new(0),
            stopped_rip: AtomicU64::new(0),
            stopped_rbp: AtomicU64::new(0),
        }
    }

    /// Its number.
    pub fn id(&self) -> CpuId {
        self.head.cpu()
    }
}

/// The areas by CPU number; null where there is none.
static AREAS: [AtomicPtr<PerCpu>; MAX_CPUS] = [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_CPUS];

/// Makes `area` the one of the CPU that calls, for ever.
///
/// # Safety
/// Called once on each CPU, with an area of its own. Whoever keeps more behind it is its only caller, and can rely on it.
pub unsafe fn install(area: *mut PerCpu) {
    // SAFETY: the area begins with its head and lives for ever, by this function's contract.
    let id = unsafe {
        area::install(area.cast());
        (*area).id()
    };
    // Release; pairs with the Acquire in `area_of`.
    AREAS[id].store(area, Ordering::Release);
}

/// Where the area of CPU `id` begins, as [`install`] was given it; null before that CPU has started.
pub fn area_of(id: CpuId) -> *mut PerCpu {
    AREAS.get(id).map_or(core::ptr::null_mut(), |area| area.load(Ordering::Acquire))
}

/// The area of CPU `id`, once that CPU has started.
pub fn get(id: CpuId) -> Option<&'static PerCpu> {
    let area = area_of(id);
    // SAFETY: null or an area that lives for ever.
    unsafe { area.as_ref() }
}

/// All areas, by rising number.
pub fn all() -> impl Iterator<Item = &'static PerCpu> {
    (0..MAX_CPUS).filter_map(get)
}

/// The CPUs that are online.
pub fn online() -> CpuMask {
    all()
        .filter(|cpu| cpu.online.load(Ordering::Acquire))
        .fold(CpuMask::EMPTY, |mask, cpu| mask.union(CpuMask::single(cpu.id())))
}

/// This CPU's area.
#[inline]
pub fn this() -> &'static PerCpu {
    // SAFETY: installed before anything that calls this runs; the head is the first field.
    unsafe { &*area::this().cast::<PerCpu>() }
}

/// Runs the code of an interrupt handler: while it lives, nothing may be printed.
pub struct InInterrupt(());

impl InInterrupt {
    /// Enters.
    pub fn enter() -> Self {
        this().interrupts.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for InInterrupt {
    fn drop(&mut self) {
        this().interrupts.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Is this code called from an interrupt handler?
pub fn in_interrupt() -> bool {
    area::is_installed() && this().interrupts.load(Ordering::Relaxed) != 0
}
