//! What the scheduler keeps for each CPU: the tasks that want to run there, and the one that does.
//!
//! It lies in the CPU's own area, right behind what every room sees of it ([`PerCpu`]): the running task is one load
//! away.

use core::ops::Deref;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64};

use arch::percpu as area;
use mm::machine::CpuId;

use crate::cpu::lock::IrqLock;
use crate::cpu::percpu::{self, PerCpu};
use crate::task::sched::RunQueue;
use crate::task::tcb::Task;

/// One CPU's area, whole: see [`install`].
#[derive(Debug)]
#[repr(C)]
pub struct Runner {
    cpu: PerCpu,
    /// The interrupt that is ending should switch tasks.
    pub need_resched: AtomicBool,
    /// How many timer interrupts found such a switch asked for and not made, since the last one.
    pub put_off: AtomicU32,
    /// The running task, for the task itself: see [`crate::task::sched::with_current`].
    pub current: AtomicPtr<Task>,
    /// Tasks that want to run here.
    pub queue: IrqLock<RunQueue>,
    /// Task switches made.
    pub switches: AtomicU64,
}

impl Runner {
    /// The area of CPU `id`.
    pub const fn new(id: CpuId) -> Self {
        Self {
            cpu: PerCpu::new(id),
            need_resched: AtomicBool::new(false),
            put_off: AtomicU32::new(0),
            current: AtomicPtr::new(core::ptr::null_mut()),
            queue: IrqLock::new(RunQueue::new()),
            switches: AtomicU64::new(0),
        }
    }
}

impl Deref for Runner {
    type Target = PerCpu;
    fn deref(&self) -> &PerCpu {
        &self.cpu
    }
}

/// Makes `area` the one of the CPU that calls, for ever. The only caller of [`percpu::install`]: every CPU's area is a
/// [`Runner`].
///
/// # Safety
/// Called once on each CPU, with an area of its own.
pub unsafe fn install(area: *mut Runner) {
    // SAFETY: the runner begins with its CPU's part, and lives for ever by this function's contract.
    unsafe { percpu::install(area.cast()) };
}

/// This CPU's.
#[inline]
pub fn this() -> &'static Runner {
    // SAFETY: `install` has put the address of a runner there before anything that calls this runs.
    unsafe { &*area::this().cast::<Runner>() }
}

/// That of CPU `id`, once that CPU has started.
pub fn get(id: CpuId) -> Option<&'static Runner> {
    let area = percpu::area_of(id).cast::<Runner>();
    // SAFETY: null, or a runner that `install` was given, which lives for ever.
    unsafe { area.as_ref() }
}

/// All of them, by rising number.
pub fn all() -> impl Iterator<Item = &'static Runner> {
    percpu::all().filter_map(|cpu| get(cpu.id()))
}
