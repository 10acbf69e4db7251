//! The end: stop every CPU, say what happened, leave QEMU with a status of its own.
//!
//! Nothing here allocates or waits for a lock: whoever holds one has been stopped.

use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicUsize, Ordering};

use arch::trap::TrapFrame;
use arch::{apic, backtrace, cpu, percpu as area};

use crate::console::{self, report};
use crate::cpu::percpu::{self, PerCpu};
use crate::cpu::{exit, ipi, time};
use crate::mem::image::Symbolised;
use crate::mem::paging;
use crate::task::sched;

/// What ends the kernel.
pub enum Cause<'a> {
    /// `panic!`, a failed assertion, an overflow.
    Message(&'a PanicInfo<'a>),
    /// An exception that nobody handles.
    Trap {
        /// The registers.
        frame: &'a TrapFrame,
        /// In words.
        what: fmt::Arguments<'a>,
    },
}

/// CPU that panics, plus one; 0 while none does.
static PANICKING: AtomicUsize = AtomicUsize::new(0);

/// How long the other CPUs have to stop, in nanoseconds.
const STOP_NS: u64 = 50_000_000;

/// Has some CPU begun to panic?
pub fn is_panicking() -> bool {
    PANICKING.load(Ordering::Acquire) != 0
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    die(Cause::Message(info))
}

/// Prints the epitaph and ends the machine.
pub fn die(cause: Cause<'_>) -> ! {
    cpu::irq_disable();
    let has_area = area::is_installed();
    let me = if has_area { area::cpu() } else { 0 };
    match PANICKING.compare_exchange(0, me + 1, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {}
        Err(first) if first == me + 1 => nested(cause),
        // Another CPU is at it; its NMI finds us here.
        Err(_) => cpu::halt_forever(),
    }
    if has_area && ipi::is_up() {
        stop_others(me);
    }
    // SAFETY: every other CPU has stopped, or does not answer any more.
    unsafe { console::seize() };
    report!("panic cpu={me}");
    print_cause(&cause);
    if has_area {
        print_running(me);
    }
    print_backtrace(&cause);
    for other in percpu::all().filter(|other| other.id() != me) {
        print_other(other);
    }
    report!("epitaph end");
    arch::port::qemu_exit(exit::PANIC)
}

/// A panic inside the panic: the shortest way out.
fn nested(cause: Cause<'_>) -> ! {
    // SAFETY: as in `die`.
    unsafe { console::seize() };
    console::line(format_args!("panic: another one while the epitaph was printed"));
    if let Cause::Message(info) = cause
        && let Some(place) = info.location()
    {
        console::line(format_args!("  at {place}"));
    }
    report!("epitaph end");
    arch::port::qemu_exit(exit::PANIC)
}

/// Sends an NMI to every other CPU and waits, not for ever, until each has noted where it was.
fn stop_others(me: usize) {
    apic::send_nmi_to_all_others();
    let deadline = time::since_first_line_ns() + STOP_NS;
    let running = |cpu: &&PerCpu| {
        cpu.id() != me && cpu.online.load(Ordering::Acquire) && cpu.stopped_rip.load(Ordering::Acquire) == 0
    };
    while percpu::all().any(|cpu| running(&cpu)) && time::since_first_line_ns() < deadline {
        cpu::pause();
    }
}

/// The NMI handler of a CPU that another one stops: notes where it was, and halts for good.
pub fn stop_this_cpu(frame: &TrapFrame) -> ! {
    let this = percpu::this();
    this.stopped_rbp.store(frame.rbp, Ordering::Relaxed);
    // Release; pairs with the Acquire in `stop_others`.
    this.stopped_rip.store(frame.rip, Ordering::Release);
    cpu::halt_forever()
}

fn print_cause(cause: &Cause<'_>) {
    match cause {
        Cause::Message(info) => {
            match info.location() {
                Some(place) => console::line(format_args!("panic: {} ({place})", info.message())),
                None => console::line(format_args!("panic: {}", info.message())),
            }
            // What the general registers held is gone: whoever panics has called its way here.
            let (stack, table, fault) = (cpu::stack_pointer(), cpu::root_table(), cpu::fault_address());
            console::line(format_args!("  rsp {stack:#018x}  cr2 {fault:#018x}  cr3 {table:#018x}"));
        }
        Cause::Trap { frame, what } => {
            console::line(format_args!("panic: {what}"));
            print_registers(frame);
        }
    }
}

fn print_registers(frame: &TrapFrame) {
    let f = frame;
    console::line(format_args!("  rip {}", Symbolised(f.rip)));
    for (names, values) in [
        (["rax", "rbx", "rcx", "rdx"], [f.rax, f.rbx, f.rcx, f.rdx]),
        (["rsi", "rdi", "rbp", "rsp"], [f.rsi, f.rdi, f.rbp, f.rsp]),
        (["r8 ", "r9 ", "r10", "r11"], [f.r8, f.r9, f.r10, f.r11]),
        (["r12", "r13", "r14", "r15"], [f.r12, f.r13, f.r14, f.r15]),
        (["cr2", "cr3", "flg", "err"], [cpu::fault_address(), cpu::root_table(), f.rflags, f.error]),
    ] {
        let [a, b, c, d] = names;
        let [va, vb, vc, vd] = values;
        console::line(format_args!("  {a} {va:#018x}  {b} {vb:#018x}  {c} {vc:#018x}  {d} {vd:#018x}"));
    }
}

fn print_running(cpu: usize) {
    if percpu::get(cpu).is_none() {
        return;
    }
    let named = sched::peek_current(cpu, |task| console::line(format_args!("  in {task:?}")));
    if named.is_none() {
        console::line(format_args!("  before the first task"));
    }
}

/// May the 16 bytes at `va` be read? In the kernel half only what is mapped.
fn is_readable(va: u64) -> bool {
    paging::is_mapped(va) && paging::is_mapped(va + 15)
}

fn print_backtrace(cause: &Cause<'_>) {
    let rbp = match cause {
        Cause::Message(_) => cpu::frame_pointer(),
        Cause::Trap { frame, .. } => frame.rbp,
    };
    console::line(format_args!("  backtrace, innermost first:"));
    print_frames(rbp);
}

/// Prints the return addresses from the frame pointer `rbp` outwards; a recursion is one line.
fn print_frames(rbp: u64) {
    let mut last = (0, 0);
    let flush = |(address, count): (u64, u32)| match count {
        0 => {}
        1 => console::line(format_args!("    {}", Symbolised(address))),
        _ => console::line(format_args!("    {}, {count} times", Symbolised(address))),
    };
    backtrace::walk(rbp, is_readable, |return_address| {
        // It is after the call, which may be the function's last instruction.
        let address = return_address - 1;
        if last.0 == address {
            last.1 += 1;
        } else {
            flush(last);
            last = (address, 1);
        }
    });
    flush(last);
}

fn print_other(other: &PerCpu) {
    let id = other.id();
    let rip = other.stopped_rip.load(Ordering::Acquire);
    if !other.online.load(Ordering::Acquire) {
        return;
    }
    if rip == 0 {
        console::line(format_args!("CPU {id}: does not answer"));
        return;
    }
    console::line(format_args!("CPU {id}: at {}", Symbolised(rip)));
    sched::peek_current(id, |task| console::line(format_args!("  in {task:?}")));
    print_frames(other.stopped_rbp.load(Ordering::Relaxed));
}
