//! The kernel as `mm`'s machine: real registers, live page tables, real interrupts.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::{cpu, percpu as area, tlb};
use mm::addr::{Pfn, PhysAddr, VirtAddr};
use mm::entry::Entry;
use mm::held;
use mm::machine::{CpuId, CpuMask, GROUP, Machine};
use mm::world::Mm;
use spin::Once;

use crate::bringup::smp;
use crate::cpu::{percpu, time};
use crate::mem::{memory, paging, reserve};
use crate::task::sched;

/// The machine that this kernel runs on. There is one; its state is the hardware's.
#[derive(Debug)]
pub struct KernelMachine(());

/// A waiter gives its CPU to another task once in so many rounds. Rarely: a turn of the other tasks takes milliseconds,
/// another CPU's answer microseconds; and the timer takes the CPU away in any case.
const RELAXES_PER_YIELD: u64 = 1024;

/// An address space of this kernel.
pub type Space = mm::space::AddressSpace<KernelMachine>;

static WORLD: Once<Arc<Mm<KernelMachine>>> = Once::new();

/// Makes the world for `nr_cpus` CPUs. Called once, when the heap works and the CPUs are counted.
pub fn init(nr_cpus: usize) {
    WORLD.call_once(|| Mm::new(KernelMachine(()), nr_cpus)).pins.switch(true);
    held::count_by(count_locks);
}

/// Adds to the number of locks that the running task holds. An interrupt handler counts on the task that it
/// interrupted, and has none left when it ends.
fn count_locks(change: i64) -> i64 {
    sched::with_current(|task| {
        let held = task.locks_held.load(Ordering::Relaxed) + change;
        task.locks_held.store(held, Ordering::Relaxed);
        held
    })
    .unwrap_or(0)
}

/// The world.
///
/// # Panics
/// Before [`init`].
pub fn mm() -> &'static Arc<Mm<KernelMachine>> {
    WORLD.get().expect("the world is not made yet")
}

/// The world, if it is made.
pub fn try_mm() -> Option<&'static Arc<Mm<KernelMachine>>> {
    WORLD.get()
}

impl Machine for KernelMachine {
    #[inline]
    fn cpu(&self) -> CpuId {
        area::cpu()
    }
    #[inline]
    fn irq_disable(&self) -> bool {
        cpu::irq_disable()
    }
    #[inline]
    fn irq_enable(&self) {
        cpu::irq_enable();
    }
    #[inline]
    fn irqs_on(&self) -> bool {
        cpu::irqs_on()
    }
    #[inline(always)]
    fn loaded(&self) -> PhysAddr {
        PhysAddr::new(area::loaded())
    }
    #[inline(always)]
    fn set_loaded(&self, root: PhysAddr) {
        area::set_loaded(root.as_u64());
    }
    fn relax(&self) {
        held::assert_none("something");
        cpu::pause();
        // What is waited for is mostly on another CPU and soon done; now and then it is a task of this one.
        if percpu::this().relaxed.fetch_add(1, Ordering::Relaxed).is_multiple_of(RELAXES_PER_YIELD) {
            sched::yield_if_allowed();
        }
    }

    fn may_grow(&self) -> bool {
        reserve::may_grow()
    }

    fn alloc_table(&self) -> Option<Pfn> {
        memory::alloc_zeroed()
    }
    fn free_table(&self, table: Pfn) {
        memory::free(table, 0);
    }
    #[inline]
    fn entry(&self, table: Pfn, index: usize) -> &AtomicU64 {
        paging::entry(table, index)
    }
    #[inline(always)]
    fn entry_at(&self, table: PhysAddr, index: usize) -> &AtomicU64 {
        paging::entry_at(table, index)
    }
    #[inline(always)]
    fn entries(&self, table: Pfn, group: usize) -> [&AtomicU64; GROUP] {
        paging::entries(table, group)
    }
    #[inline]
    fn all_and_any(&self, detached: Pfn) -> (Entry, Entry) {
        paging::all_and_any(detached)
    }
    fn init_root(&self, root: Pfn) {
        paging::init_root(root);
    }
    fn has_1g_leaves(&self) -> bool {
        paging::has_gib_leaves()
    }

    fn load_root(&self, root: Option<Pfn>) {
        let root = root.unwrap_or_else(paging::root);
        // SAFETY: every root has the same kernel half (`init_root`), so code, stack and data stay where they are.
        unsafe { tlb::load_root(root.addr().as_u64()) };
    }
    #[inline]
    fn flush_page(&self, va: VirtAddr) {
        tlb::flush_page(va.as_u64());
    }
    #[inline]
    fn flush_all(&self) {
        tlb::flush_non_global();
    }
    fn flush_global(&self) {
        tlb::flush_everything();
    }
    fn send_shootdown_ipi(&self, cpus: CpuMask) {
        smp::send_to(cpus, smp::VECTOR_SHOOTDOWN);
    }

    fn now_ns(&self) -> u64 {
        time::since_first_line_ns()
    }
}
