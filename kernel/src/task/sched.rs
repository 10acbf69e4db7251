//! The scheduler: round-robin on each CPU, preemptive, tasks never migrate.
//!
//! A CPU's queue is touched by others only to add a task; the CPU itself chooses and switches, with interrupts off.
//! The timer runs only where it is needed: while a task runs and another waits for the CPU, or until the first
//! sleeper's time. A switch that an interrupt asks for happens when the handler is done, on the interrupted task's own
//! stack, unless preemption is off.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::Ordering;

use ::sched::queue::{self, Chosen};
use arch::cpu::{self, IrqSave};
use arch::{apic, context, percpu as area};
use mm::lock_check;
use mm::machine::{CpuId, IrqOff};

use crate::console::ring;
use crate::cpu::ipi::{self, VECTOR_TIMER};
use crate::cpu::{percpu, time};
use crate::mem::kstack::Stack;
use crate::mem::machine::{self, Space};
use crate::task::tcb::{Exit, State, Task};
use crate::task::{runner, watch};

/// How long a task runs while another waits for its CPU, in nanoseconds.
pub const SLICE_NS: u64 = 1_000_000;

/// How often the timer finds at most that a switch that was asked for is put off, since the running task holds a lock.
const MOST_PUT_OFF: u32 = 40;

/// How a timer ticks: does another task wait for the CPU, and is something watched?
type Rhythm = (bool, bool);

/// The tasks of one CPU.
#[derive(Debug)]
pub struct RunQueue {
    /// Who runs, who waits for what; times are in nanoseconds.
    tasks: queue::RunQueue<Task>,
    /// The timer is armed for this time; 0 when it is not.
    armed_for: u64,
    /// The timer ticks, which it does in deterministic mode: in the rhythm of a shared CPU, or of one that is not, and of one
    /// that [watches](watch) or not.
    rhythm: Option<Rhythm>,
    /// When the current task began its turn.
    slice_start: u64,
}

impl RunQueue {
    /// No tasks.
    pub const fn new() -> Self {
        Self { tasks: queue::RunQueue::new(), armed_for: 0, rhythm: None, slice_start: 0 }
    }

    /// What the current task is called.
    pub fn current_name(&self) -> Option<String> {
        self.tasks.current().map(|task| task.name.clone())
    }

    fn is_idle(&self) -> bool {
        self.tasks.is_idle()
    }

    /// Does another task wait for the CPU?
    fn is_shared(&self) -> bool {
        self.tasks.has_ready() && !self.is_idle()
    }

    fn rhythm_now(&self) -> Rhythm {
        (self.is_shared(), watch::is_on())
    }

    /// Arms the timer for the next thing to do, or stops it. Only on the queue's own CPU.
    fn arm(&mut self) {
        if time::is_deterministic() && !self.is_idle() {
            match self.rhythm {
                // A tick that finds nothing to do stops it.
                Some(rhythm) if rhythm == self.rhythm_now() => {}
                Some(_) => self.tick_from(time::since_first_line_ns()),
                None => {
                    apic::timer_mode(VECTOR_TIMER, true);
                    self.tick_from(time::since_first_line_ns());
                }
            }
            return;
        }
        if self.rhythm.is_some() {
            return;
        }
        let turn = self.is_shared().then_some(self.slice_start + slice_ns(self.slice_start));
        let look = (watch::is_on() && area::cpu() == 0).then(|| self.look_by());
        let next = turn.into_iter().chain(self.tasks.next_wake()).chain(look).min().unwrap_or(0);
        if next == self.armed_for {
            return;
        }
        self.armed_for = next;
        match next {
            0 => apic::timer_arm(0),
            _ => apic::timer_arm(time::timer_ticks(next.saturating_sub(time::since_first_line_ns()))),
        }
    }

    /// When the watch looks next at the latest: a timer that is armed for it already stays so.
    fn look_by(&self) -> u64 {
        let latest = time::since_first_line_ns() + watch::PERIOD_NS;
        if self.armed_for == 0 { latest } else { self.armed_for.min(latest) }
    }

    /// Lets the timer tick, in a rhythm that depends on `now`: see [`passes_turn`].
    fn tick_from(&mut self, now: u64) {
        let (shared, watched) = self.rhythm_now();
        self.rhythm = Some((shared, watched));
        // All CPUs' ticks become shorter together: none of them would have a turn besides a CPU 0 that ticks alone.
        let slice = if watched { slice_ns(now) * watch::PERIOD_NS / (2 * SLICE_NS) } else { slice_ns(now) };
        let factor = (arch::percpu::cpu() as u64 + 1) * if shared || watched { 1 } else { LONE_SLICES };
        apic::timer_arm(time::timer_ticks(slice * factor));
    }

    /// A tick has come: stops the timer if nobody needs it, and changes its rhythm now and then.
    fn ticked(&mut self, now: u64) {
        if self.is_idle() {
            apic::timer_mode(VECTOR_TIMER, false);
            self.rhythm = None;
        } else if self.rhythm != Some(self.rhythm_now()) || slice_ns(now).is_multiple_of(TICKS_PER_RHYTHM) {
            self.tick_from(now);
        }
    }
}

/// A task that has its CPU for itself, in deterministic mode, is interrupted every so many slices.
const LONE_SLICES: u64 = 16;
/// A rhythm lasts so many ticks, on average.
const TICKS_PER_RHYTHM: u64 = 8;

/// How long the slice that begins at `start` lasts, in nanoseconds: between one and two times [`SLICE_NS`], as if at
/// random. In deterministic mode QEMU gives another CPU its turn whenever a timer runs out. Were all slices alike, each
/// turn would last as long as the one before: a CPU that once had just time to set its timer anew would never get more.
fn slice_ns(start: u64) -> u64 {
    SLICE_NS + (start.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % SLICE_NS
}

/// A new task on `cpu`, ready to run. For a task that the kernel cannot do without; what is asked for from outside is
/// [tried](try_spawn).
///
/// # Panics
/// When there is no memory for its stack, or the CPU is not online.
pub fn spawn(
    name: &str,
    cpu: CpuId,
    space: Option<Arc<Space>>,
    work: impl FnOnce() -> Exit + Send + 'static,
) -> Arc<Task> {
    try_spawn(name, cpu, space, work).unwrap_or_else(|error| panic!("task \"{name}\": {error}"))
}

/// There is no stack for a task.
#[derive(Debug)]
pub struct NoStack;

impl fmt::Display for NoStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("out of memory: there is none for a task")
    }
}

/// A new task on `cpu`, ready to run.
///
/// # Errors
/// [`NoStack`]; `work` is dropped then.
///
/// # Panics
/// When the CPU is not online.
pub fn try_spawn(
    name: &str,
    cpu: CpuId,
    space: Option<Arc<Space>>,
    work: impl FnOnce() -> Exit + Send + 'static,
) -> Result<Arc<Task>, NoStack> {
    let task = Task::new(name, cpu, space, Some(Box::new(work))).ok_or(NoStack)?;
    make_ready(&task, State::Ready);
    Ok(task)
}

/// Makes this context the idle task of its CPU: it runs on `stack`, which is the task's from now on.
pub fn become_idle(name: &str, stack: Stack) {
    let task = Task::on_stack(name, area::cpu(), stack, None, None);
    let this = runner::this();
    let mut queue = this.queue.lock();
    this.current.store(Arc::as_ptr(&task).cast_mut(), Ordering::Relaxed);
    queue.tasks.become_idle(task);
}

/// Runs tasks on this CPU whenever there are any, and halts when there are none.
pub fn idle_loop() -> ! {
    loop {
        // Interrupts are on here: what their handlers noted can be printed.
        ring::drain();
        cpu::irq_disable();
        schedule();
        let nothing_to_do = !runner::this().queue.lock().tasks.has_ready();
        if nothing_to_do {
            cpu::irq_enable_and_halt();
        } else {
            cpu::irq_enable();
        }
    }
}

/// The running task; `None` before there are tasks.
pub fn current() -> Option<Arc<Task>> {
    runner::this().queue.lock().tasks.current().cloned()
}

/// Shows the running task to `see`: cheaper than [`current`]. `None` before there are tasks.
#[inline]
pub fn with_current<R>(see: impl FnOnce(&Task) -> R) -> Option<R> {
    // SAFETY: null, or the task that runs this code: the queue holds a reference while it does, and it is the one that
    // is asking, so it is the same for all of this function.
    unsafe { runner::this().current.load(Ordering::Relaxed).as_ref() }.map(see)
}

/// The running task of CPU `cpu`, for an epitaph: does not wait for a lock.
pub fn peek_current<R>(cpu: CpuId, see: impl FnOnce(&Task) -> R) -> Option<R> {
    let cpu = runner::get(cpu)?;
    // SAFETY: called by the panic path alone, when every other CPU has stopped.
    unsafe { cpu.queue.force_unlock() };
    cpu.queue.lock().tasks.current().map(|task| see(task))
}

/// Lets other tasks of this CPU run and, where the CPUs take turns, other CPUs.
pub fn yield_now() {
    if time::is_deterministic() {
        cpu::pause();
    }
    let _irq = IrqSave::new();
    schedule();
}

/// [`yield_now`] where that is allowed: in a task, with interrupts on and preemption not off.
#[inline]
pub fn yield_if_allowed() {
    if cpu::irqs_on() && area::preempt_count() == 0 && !runner::this().current.load(Ordering::Relaxed).is_null() {
        yield_now();
    }
}

/// Waits for [`unpark`]; returns at once where it came already.
///
/// # Panics
/// With interrupts off: whoever would unpark us may need this CPU.
pub fn park() {
    park_with(|| {});
}

/// [`park`], with `between` run once everybody sees that the task is parked, and before it is: there, with interrupts
/// off, another CPU may already wake it.
pub(crate) fn park_with(between: impl FnOnce()) {
    assert!(cpu::irqs_on(), "a task parked with interrupts off");
    lock_check::might_sleep("a wake-up");
    let _irq = IrqSave::new();
    let parks = runner::this().queue.lock().tasks.begin_park();
    if !parks {
        return;
    }
    between();
    schedule();
    runner::this().queue.lock().tasks.end_park();
}

/// Lets a task that is parked, or is about to park, go on.
pub fn unpark(task: &Arc<Task>) {
    queue::unpark(&**task, || make_ready(task, State::Parked));
}

/// Sleeps for `ns` nanoseconds or a little more.
pub fn sleep_ns(ns: u64) {
    assert!(cpu::irqs_on(), "a task slept with interrupts off");
    lock_check::might_sleep("a time");
    let _irq = IrqSave::new();
    let sleeps = runner::this().queue.lock().tasks.begin_sleep(time::since_first_line_ns() + ns);
    if sleeps {
        schedule();
    }
}

/// Puts the task into its CPU's queue if its state is `from`.
fn make_ready(task: &Arc<Task>, from: State) {
    let target = runner::get(task.cpu).expect("a task's CPU is online");
    let here = task.cpu == area::cpu();
    {
        let mut queue = target.queue.lock();
        if !queue.tasks.wake(task, from) {
            return;
        }
        if here {
            queue.arm();
            if queue.is_idle() {
                target.need_resched.store(true, Ordering::Relaxed);
            }
        }
    }
    if !here {
        ipi::send(task.cpu, ipi::VECTOR_RESCHEDULE);
    }
}

/// The timer interrupt: wakes sleepers, ends turns.
pub fn on_timer() {
    let this = runner::this();
    this.ticks.fetch_add(1, Ordering::Relaxed);
    if area::cpu() == 0 {
        watch::look();
    }
    // Whether or not the interrupt came for that. Others, such as shootdowns, come in bursts.
    if this.need_resched.load(Ordering::Relaxed) {
        this.put_off.fetch_add(1, Ordering::Relaxed);
    }
    let now = time::since_first_line_ns();
    let mut queue = this.queue.lock();
    let queue = &mut *queue;
    queue.armed_for = 0;
    let woke = queue.tasks.wake_due(now);
    if queue.rhythm.is_some() {
        queue.ticked(now);
    }
    let turn_over = queue.tasks.has_ready() && now.saturating_sub(queue.slice_start) >= SLICE_NS;
    if turn_over || (woke && queue.is_idle()) {
        this.need_resched.store(true, Ordering::Relaxed);
    } else {
        queue.arm();
    }
}

/// Does the CPU that has just been interrupted by its timer give its turn to the next one?
///
/// In deterministic mode QEMU's CPUs take turns on one host thread (`accel/tcg/tcg-accel-ops-rr.c`). A turn lasts until
/// the next timer of any CPU runs out; the CPUs behind have no time left then, and the first one begins anew. So the
/// first CPU that works would have all the time there is, but for what it gives away by `pause`, and by setting its
/// timer, which ends its turn as well (`softmmu/cpu-timers.c`, `qemu_timer_notify_cb`). Hence: the timer of a CPU that works
/// ticks by itself, and is not set at each switch; the first CPUs tick more often than those behind; and of so many ticks
/// as there are CPUs from this one on, it keeps one turn, as if at random. A task that sleeps wakes at a tick, too, where
/// another works.
///
/// Read in the sources of QEMU 7.2 and seen in its effects; not measured there.
pub fn passes_turn() -> bool {
    if !time::is_deterministic() {
        return false;
    }
    let behind = u64::from(percpu::online().len()).saturating_sub(arch::percpu::cpu() as u64);
    !(slice_ns(time::since_first_line_ns()) >> 3).is_multiple_of(behind.max(1))
}

/// The interrupt by which another CPU says that it has added a task to our queue.
pub fn on_reschedule() {
    let this = runner::this();
    let mut queue = this.queue.lock();
    if queue.is_idle() {
        this.need_resched.store(true, Ordering::Relaxed);
    }
    if !queue.is_idle() || watch::is_on() {
        queue.arm();
    }
}

/// Lets CPU 0's timer follow a change of what is [watched](watch::begin).
pub fn rearm() {
    let _irq = IrqSave::new();
    if area::cpu() == 0 {
        runner::this().queue.lock().arm();
    } else {
        ipi::send(0, ipi::VECTOR_RESCHEDULE);
    }
}

/// At the end of an interrupt, with interrupts off: switches if that was asked for and is allowed. Not away from a task that
/// holds a spin lock, where that is counted (debug builds): until its turn comes again everybody who wants the lock would spend
/// theirs on spinning for it. It is looked at again soon. (Linux: `spin_lock` turns preemption off, `include/linux/spinlock_api_smp.h`.)
///
/// Not for ever: who holds a counted lock may spin for one that nobody counts, such as those of the crate `spin`, and whose holder
/// waits for this CPU.
pub fn preempt_if_needed() {
    const SOON_NS: u64 = 50_000;
    let this = runner::this();
    if !this.need_resched.load(Ordering::Relaxed) || area::preempt_count() != 0 || percpu::in_interrupt() {
        return;
    }
    if lock_check::locks_held() == 0 || this.put_off.load(Ordering::Relaxed) >= MOST_PUT_OFF {
        schedule();
    } else if !time::is_deterministic() {
        // Once: interrupts that come sooner than that, one after the other, would put it off for as long as they come.
        let soon = time::since_first_line_ns() + SOON_NS;
        let mut queue = this.queue.lock();
        if queue.armed_for == 0 || queue.armed_for > soon {
            queue.armed_for = soon;
            apic::timer_arm(time::timer_ticks(SOON_NS));
        }
    }
}

/// Chooses the next task and switches to it. Interrupts are off; returns when this task's turn comes again.
fn schedule() {
    let this = runner::this();
    let (previous, next) = {
        let mut queue = this.queue.lock();
        let queue = &mut *queue;
        this.need_resched.store(false, Ordering::Relaxed);
        this.put_off.store(0, Ordering::Relaxed);
        let chosen = queue.tasks.choose();
        if matches!(chosen, Chosen::Nothing) {
            return;
        }
        queue.slice_start = time::since_first_line_ns();
        let Chosen::Switch(previous, next) = chosen else {
            queue.arm();
            return;
        };
        let pointers = (Arc::as_ptr(&previous), Arc::as_ptr(&next));
        load_space(&next);
        this.current.store(pointers.1.cast_mut(), Ordering::Relaxed);
        queue.arm();
        pointers
    };
    this.switches.fetch_add(1, Ordering::Relaxed);
    // SAFETY: both tasks live: the next one is current; the previous one is in the queue, has just ended, is an idle
    // task, or is parked or asleep, and then whoever will wake it, or its own stack, holds a reference. Both are tasks
    // of this CPU, so nobody else touches their stack pointers.
    unsafe { context::switch((*previous).saved_rsp.get(), *(*next).saved_rsp.get()) };
    finish_switch();
}

/// Drops the task that ended and switched to us. Its stack is no longer in use.
fn finish_switch() {
    let dead = runner::this().queue.lock().tasks.take_dead();
    drop(dead);
}

/// Loads the address space of `next`. A task without one runs on whatever is loaded, lazily.
///
/// Whoever has a space loaded must own a reference to it. A space is loaded on a CPU only while a task of that CPU
/// uses it, and that task owns the reference: `end` unloads the space before it lets go.
fn load_space(next: &Task) {
    let Some(mm) = machine::try_mm() else { return };
    let irq = IrqOff::new(&mm.machine);
    match next.space() {
        Some(space) => mm.shootdown.switch_to(&irq, Some(space.tlb())),
        None => mm.shootdown.enter_lazy(&irq),
    }
}

/// Where a task's first switch arrives.
pub extern "C" fn first_entry(_: usize) -> ! {
    finish_switch();
    cpu::irq_enable();
    let work = current().and_then(|task| task.take_work()).expect("a task runs its work once");
    end(work())
}

/// Ends the running task.
fn end(exit: Exit) -> ! {
    let me = current().expect("a task ends itself");
    // Here, with interrupts on: it may own what takes time to give back.
    drop(me.take_sigbus_handler());
    if let Some(space) = me.take_space() {
        let mm = machine::mm();
        {
            let irq = IrqOff::new(&mm.machine);
            mm.shootdown.switch_to(&irq, None);
        }
        // Dropped here, with interrupts on: the last reference tears the space down.
        drop(space);
    }
    if let Err(signal) = exit {
        log::info!(target: "tasks", "{} on CPU {} is ended by {}", me.name, me.cpu, signal.in_words());
        crate::console::report!("task id={} name={} cpu={} exit={signal}", me.id, me.name, me.cpu);
    }
    me.set_exit(exit);
    me.joiners.wake_all();
    drop(me);
    cpu::irq_disable();
    runner::this().queue.lock().tasks.end_current();
    schedule();
    unreachable!("a task that has ended was scheduled again");
}

/// Waits until `task` has ended; answers how.
pub fn join(task: &Arc<Task>) -> Exit {
    task.joiners.wait_until(|| task.exit().is_some());
    task.exit().unwrap_or(Ok(()))
}
