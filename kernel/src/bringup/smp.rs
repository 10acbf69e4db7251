//! All CPUs: starting them, and a first interrupt to each.

use alloc::boxed::Box;
use core::sync::atomic::Ordering;

use arch::features::Features;
use arch::tables::{CpuTables, NR_IST};
use arch::trampoline::{self, Start};
use arch::{apic, cpu, mce, percpu as area, tlb};
use mm::addr::{PAGE_SIZE, PhysAddr, VirtAddr};
use mm::entry::{Entry, Prot};
use mm::machine::{CpuId, CpuMask};
use nvdimm::acpi::Cpu;

use crate::console::report;
use crate::cpu::ipi::{self, VECTOR_APIC_ERROR, VECTOR_SPURIOUS, VECTOR_TEST, VECTOR_TIMER};
use crate::cpu::{percpu, time};
use crate::mem::kstack::Stack;
use crate::mem::{layout, machine, memory, paging};
use crate::task::runner::{self, Runner};
use crate::task::sched;

/// How long a CPU has to start, in nanoseconds.
const START_NS: u64 = 1_000_000_000;
/// How long CPUs have to answer a test interrupt, in nanoseconds.
const ANSWER_NS: u64 = 1_000_000_000;

/// Stacks for the exceptions that have their own, for one CPU. They live for ever.
pub fn interrupt_stack_tops() -> [u64; NR_IST] {
    core::array::from_fn(|_| {
        let stack = Stack::new().expect("no memory for interrupt stacks");
        let top = stack.top();
        core::mem::forget(stack);
        top
    })
}

/// Brings this CPU's own parts up, with interrupts off: tables, features, APIC. Its area is installed.
fn init_this_cpu(tables: &'static mut CpuTables, features: &Features) {
    // SAFETY: the interrupt stacks are this CPU's; interrupts are off. The kernel's page tables are loaded, which give
    // each page the rights that its use needs.
    unsafe {
        tables.load();
        features.enable();
        if features.mca {
            mce::init();
        }
    }
    apic::init_cpu(VECTOR_TIMER, VECTOR_APIC_ERROR, VECTOR_SPURIOUS);
    percpu::this().apic_id.store(apic::id(), Ordering::Relaxed);
}

fn go_online() {
    machine::go_online();
    ipi::go_online();
}

/// Takes the machine over from the firmware: other CPUs stop, old timers end. On the loader's page tables, with
/// interrupts off; the early descriptor tables are loaded.
pub fn quiesce(features: &Features) {
    arch::port::silence_legacy_devices();
    // SAFETY: the loader's direct map holds the registers, which are below 4 GiB; `init_boot_cpu` gives them a place
    // of their own before that map goes.
    unsafe { apic::init(features.x2apic, layout::DIRECT_MAP + apic::physical_base()) };
    apic::init_cpu(VECTOR_TIMER, VECTOR_APIC_ERROR, VECTOR_SPURIOUS);
    // The firmware's idle loop executes instructions, which count in deterministic mode.
    apic::send_init_to_all_others();
}

/// Lets every CPU be halted for a moment.
///
/// QEMU's deterministic mode runs the CPUs in turns, by a clock that it starts anew when it finds all of them halted.
/// How long the firmware ran differs from boot to boot; from here on everything repeats exactly.
pub fn halt_once() {
    let before = percpu::this().ticks.load(Ordering::Relaxed);
    apic::timer_arm(1000);
    while percpu::this().ticks.load(Ordering::Relaxed) == before {
        cpu::irq_enable_and_halt();
        cpu::irq_disable();
    }
}

/// Brings the boot CPU up: its final tables, APIC and timer. The context is made.
///
/// # Panics
/// When the APIC's registers cannot be mapped.
pub fn init_boot_cpu(features: &Features) {
    let registers = paging::map_registers(PhysAddr::new(apic::physical_base()));
    let registers = registers.unwrap_or_else(|error| panic!("the local APIC cannot be mapped: {error}"));
    // SAFETY: just mapped, uncached, for ever.
    unsafe { apic::init(features.x2apic, registers.as_u64()) };
    init_this_cpu(Box::leak(Box::new(CpuTables::new(interrupt_stack_tops()))), features);
    time::calibrate_timer();
    go_online();
    ipi::set_up();
}

/// What a starting CPU finds.
struct Arrival {
    area: *mut Runner,
    tables: Option<CpuTables>,
    stack: Option<Stack>,
    features: Features,
    name: alloc::string::String,
}

/// Starts the given CPUs, in this order, after the boot CPU, which is none of them. Answers how many did not come.
pub fn start_others<'c>(others: impl Iterator<Item = &'c Cpu>, features: &Features) -> usize {
    let mut missing = 0;
    let Some(low) = memory::low_pages(2) else {
        log::error!("no memory below 1 MiB for the start-up code: one CPU only");
        return others.count();
    };
    let root = low.checked_add(PAGE_SIZE).unwrap_or(low);
    let tables = startup_tables(low, root);
    let mut id = 1;
    for other in others {
        let apic_id = other.apic_id;
        if !other.is_reachable(apic::is_x2apic()) {
            missing += 1;
            report!("cpu id={id} apic={apic_id} state=dead");
            log::error!("the CPU with APIC id {apic_id} is not started: without x2APIC an id is from 0 to 254");
        } else if start_one(id, apic_id, low, root, features) {
            report!("cpu id={id} apic={apic_id} state=online");
            id += 1;
        } else {
            missing += 1;
            report!("cpu id={id} apic={apic_id} state=dead");
            log::error!("the CPU with APIC id {apic_id} did not start");
            if percpu::get(id).is_some() {
                // It may still come; its number is not used again.
                id += 1;
            }
        }
    }
    if missing == 0 {
        // A CPU that comes late would need them.
        paging::drop_root(root.pfn());
        tables.into_iter().for_each(|table| memory::free(table, 0));
    }
    missing
}

/// Fills the page at `root` as a root table that maps the page at `low` at its own address, and the kernel. Answers
/// the tables below it.
fn startup_tables(low: PhysAddr, root: PhysAddr) -> [mm::addr::Pfn; 3] {
    let tables = core::array::from_fn(|_| memory::alloc_zeroed().expect("no memory for start-up tables"));
    // SAFETY: the page is usable RAM that nobody else was given.
    unsafe { layout::direct_ptr::<u8>(root).write_bytes(0, PAGE_SIZE as usize) };
    paging::init_root(root.pfn());
    let va = VirtAddr::new(low.as_u64());
    let mut table = root.pfn();
    for (next, level) in tables.into_iter().zip([4, 3, 2]) {
        paging::entry(table, va.index(level)).store(Entry::table(next, false).bits(), Ordering::Release);
        table = next;
    }
    let code = Entry::leaf(low.pfn(), mm::addr::PageSize::Size4K, Prot { write: false, exec: true, user: false });
    paging::entry(table, va.index(1)).store(code.bits(), Ordering::Release);
    tables
}

fn start_one(id: CpuId, apic_id: u32, low: PhysAddr, root: PhysAddr, features: &Features) -> bool {
    if id >= mm::machine::MAX_CPUS {
        return false;
    }
    let stack = Stack::new().expect("no memory for a CPU's stack");
    let stack_top = stack.top();
    // Leaked: a CPU that comes late must find it.
    let arrival = Box::leak(Box::new(Arrival {
        area: Box::into_raw(Box::new(Runner::new(id))),
        tables: Some(CpuTables::new(interrupt_stack_tops())),
        stack: Some(stack),
        features: *features,
        name: alloc::format!("idle/{id}"),
    }));
    let start =
        Start { root: root.as_u64() as u32, stack_top, entry: arrive, argument: core::ptr::from_mut(arrival) as usize };
    // SAFETY: the page is below 1 MiB, ours, and in the direct map; no CPU is in it now.
    unsafe { trampoline::install(low.as_u64() as u32, layout::direct_ptr(low), &start) };
    apic::send_init(apic_id);
    wait_ns(100_000, || false);
    for patience_ns in [1_000_000, START_NS] {
        apic::send_startup(apic_id, (low.as_u64() >> 12) as u8);
        if wait_ns(patience_ns, || percpu::get(id).is_some()) {
            break;
        }
    }
    wait_ns(START_NS, || percpu::get(id).is_some_and(|cpu| cpu.online.load(Ordering::Acquire)))
}

/// Waits until `done`, or until `ns` have passed. Answers whether it was done.
fn wait_ns(ns: u64, done: impl Fn() -> bool) -> bool {
    let deadline = time::since_first_line_ns() + ns;
    while !done() {
        if time::since_first_line_ns() >= deadline {
            return false;
        }
        cpu::pause();
    }
    true
}

/// A started CPU's first Rust code, on its own stack, with interrupts off, on the start-up tables.
extern "C" fn arrive(argument: usize) -> ! {
    // SAFETY: `start_one` made it for this CPU alone and does not touch it any more. The kernel half is the
    // same under the kernel's root.
    let arrival = unsafe {
        tlb::load_root(paging::root().addr().as_u64());
        &mut *(argument as *mut Arrival)
    };
    // A second start-up interrupt is ignored by a CPU that runs; one that began twice would find nothing here.
    let (Some(tables), Some(stack)) = (arrival.tables.take(), arrival.stack.take()) else { cpu::halt_forever() };
    // SAFETY: the area was made for this CPU.
    unsafe { runner::install(arrival.area) };
    init_this_cpu(Box::leak(Box::new(tables)), &arrival.features);
    sched::become_idle(&arrival.name, stack);
    go_online();
    sched::idle_loop()
}

/// Sends a test interrupt to every other CPU and waits until each has answered. Answers the CPUs that did not.
pub fn test_interrupts() -> CpuMask {
    let me = area::cpu();
    let others = percpu::online().without(me);
    let before: arrayvec::ArrayVec<(CpuId, u64), { mm::machine::MAX_CPUS }> =
        others.iter().map(|id| (id, percpu::get(id).map_or(0, |cpu| cpu.test_ipis.load(Ordering::Acquire)))).collect();
    others.iter().for_each(|id| ipi::send(id, VECTOR_TEST));
    let silent =
        |&(id, count): &(CpuId, u64)| percpu::get(id).is_none_or(|cpu| cpu.test_ipis.load(Ordering::Acquire) == count);
    wait_ns(ANSWER_NS, || !before.iter().any(silent));
    before.iter().copied().filter(silent).fold(CpuMask::EMPTY, |mask, (id, _)| mask.union(CpuMask::single(id)))
}
