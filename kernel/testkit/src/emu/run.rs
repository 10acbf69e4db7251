//! Who plays which CPU, when interrupts are taken, and how a waiting CPU lets the others act.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::{EmuMachine, Event};
use mm::machine::{CpuId, Machine};

/// Waits in a row after which a CPU is taken to be waiting for ever. Each lets every other thread run.
const MAX_WAITS: u64 = 5_000_000;

thread_local! {
    /// The CPUs that this thread plays, innermost last.
    static PLAYING: RefCell<Vec<CpuId>> = const { RefCell::new(Vec::new()) };
    static TOKEN: u64 = next_token();
    static WAITS: Cell<u64> = const { Cell::new(0) };
}

fn next_token() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The CPUs that somebody plays who shares a thread with others, and is not on at the moment.
#[derive(Debug, Default)]
pub struct Seat(Vec<CpuId>);

impl Seat {
    /// Changes places with who is on.
    pub fn swap(&mut self) {
        PLAYING.with_borrow_mut(|playing| std::mem::swap(playing, &mut self.0));
    }
}

/// The CPU that this thread plays.
pub(super) fn playing() -> Option<CpuId> {
    PLAYING.with_borrow(|stack| stack.last().copied())
}

/// What tells this thread from all others.
pub(super) fn thread_token() -> u64 {
    TOKEN.with(|token| *token)
}

/// Plays a CPU until it is dropped.
struct Playing<'e> {
    player: Option<&'e AtomicU64>,
}

impl Drop for Playing<'_> {
    fn drop(&mut self) {
        PLAYING.with_borrow_mut(|stack| stack.pop());
        if let Some(player) = self.player {
            player.store(0, Ordering::SeqCst);
        }
    }
}

/// Code that runs on another CPU, on a thread of its own.
#[must_use = "join it, so that what fails there fails the test"]
pub struct Background<R> {
    thread: thread::JoinHandle<R>,
}

impl<R> Background<R> {
    /// Waits for the end of the code and gives its result. A panic there goes on here. The calling CPU takes no
    /// interrupts meanwhile: have its interrupts' work done before, or use [`EmuMachine::finish`].
    pub fn join(self) -> R {
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Has the code ended?
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}

impl EmuMachine {
    /// The CPU that this thread plays; 0 for the thread that made the machine, where it never said. Any other thread
    /// has to say: it would turn off the interrupts of a CPU that somebody else plays.
    pub(super) fn current_cpu(&self) -> CpuId {
        match playing() {
            Some(cpu) => cpu,
            None if thread_token() == self.inner.maker || thread::panicking() => 0,
            None => {
                self.inner.broken.store(thread_token(), Ordering::SeqCst);
                panic!("a thread that plays no CPU does what only a CPU can do");
            }
        }
    }

    /// Plays CPU `cpu` while `f` runs, waiting first until no other thread plays it.
    ///
    /// # Panics
    /// When the machine has no such CPU, or another thread never stops playing it.
    pub fn on_cpu<R>(&self, cpu: CpuId, f: impl FnOnce() -> R) -> R {
        let mut tries = 0;
        let _playing = loop {
            // First, so that a thread that works on and on ends as well, not only one that waits.
            self.stop_if_broken();
            if let Some(playing) = self.try_play(cpu) {
                break playing;
            }
            tries += 1;
            assert!(tries < MAX_WAITS, "another thread plays CPU {cpu} for ever");
            thread::yield_now();
        };
        f()
    }

    fn try_play(&self, cpu: CpuId) -> Option<Playing<'_>> {
        let player = &self.cpu_state(cpu).player;
        let token = thread_token();
        let player = match player.compare_exchange(0, token, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => Some(player),
            Err(owner) if owner == token => None,
            Err(_) => return None,
        };
        PLAYING.with_borrow_mut(|stack| stack.push(cpu));
        Some(Playing { player })
    }

    /// Runs `f` on CPU `cpu`, on a thread of its own, and comes back once `f` has ended or waits in
    /// [`relax`](Machine::relax) for something that only others can do.
    ///
    /// # Panics
    /// When the caller plays no CPU: others would take it for idle.
    pub fn start<R: Send + 'static>(&self, cpu: CpuId, f: impl FnOnce() -> R + Send + 'static) -> Background<R> {
        assert!(playing().is_some(), "say which CPU the caller is, by `on_cpu`, before others run beside it");
        let before = self.cpu_state(cpu).waits.load(Ordering::SeqCst);
        let started = Arc::new(AtomicBool::new(false));
        let (emu, flag) = (self.clone(), started.clone());
        let thread = thread::spawn(move || {
            emu.on_cpu(cpu, || {
                flag.store(true, Ordering::SeqCst);
                f()
            })
        });
        let waits = || self.cpu_state(cpu).waits.load(Ordering::SeqCst) > before;
        while !thread.is_finished() {
            if started.load(Ordering::SeqCst) && waits() {
                break;
            }
            thread::yield_now();
        }
        Background { thread }
    }

    /// Lets `background`, which runs on CPU `cpu` and waits there, look again at what it waits for; answers whether it
    /// has ended.
    pub fn let_run<R>(&self, cpu: CpuId, background: &Background<R>) -> bool {
        let waits = || self.cpu_state(cpu).waits.load(Ordering::SeqCst);
        // The wait that is under way may have begun before what the caller has just done; the next one has not.
        let enough = waits() + 2;
        while !background.is_finished() && waits() < enough {
            thread::yield_now();
        }
        background.is_finished()
    }

    /// Waits for the end of `background`, taking this CPU's interrupts meanwhile.
    pub fn finish<R>(&self, background: Background<R>) -> R {
        while !background.is_finished() && self.inner.broken.load(Ordering::SeqCst) == 0 {
            self.deliver_others();
            if self.irqs_on() {
                self.deliver(self.cpu());
            }
            thread::yield_now();
        }
        background.join()
    }

    /// Takes the pending shootdown interrupt of `cpu` there, if there is one and the CPU's interrupts are on;
    /// answers whether it was taken. Plays the CPU where it is not the current one.
    pub fn deliver(&self, cpu: CpuId) -> bool {
        let state = self.cpu_state(cpu);
        let mut taken = false;
        while state.pending.load(Ordering::SeqCst) && state.irqs_on.load(Ordering::SeqCst) {
            let Some(_playing) = self.try_play(cpu) else {
                break;
            };
            // Looked at again now that no other thread can play this CPU.
            if !state.irqs_on.swap(false, Ordering::SeqCst) {
                break;
            }
            if state.pending.swap(false, Ordering::SeqCst) {
                self.count(|c| &c.ipis_taken, 1);
                self.event(Event::IpiTaken);
                if let Some(handler) = self.inner.handler.get() {
                    handler();
                }
                state.forget_walk();
                taken = true;
            }
            state.irqs_on.store(true, Ordering::SeqCst);
            self.event(Event::IpiDone);
        }
        taken
    }

    /// Takes the current CPU's pending interrupt, if its interrupts are on: what happens between two instructions.
    pub fn poll(&self) {
        self.deliver(self.cpu());
    }

    /// Does a shootdown interrupt wait for `cpu`?
    pub fn is_pending(&self, cpu: CpuId) -> bool {
        self.cpu_state(cpu).pending.load(Ordering::SeqCst)
    }

    /// Would `cpu` take an interrupt if it went on?
    pub fn would_be_interrupted(&self, cpu: CpuId) -> bool {
        let state = self.cpu_state(cpu);
        state.pending.load(Ordering::SeqCst) && state.irqs_on.load(Ordering::SeqCst)
    }

    /// Takes the pending interrupts of all other CPUs that can take them and that nobody else plays.
    fn deliver_others(&self) -> bool {
        let me = self.cpu();
        let mut any = false;
        for cpu in (0..self.cpu_count()).filter(|&cpu| cpu != me) {
            any |= self.deliver(cpu);
        }
        any
    }

    pub(super) fn wait_a_little(&self) {
        self.stop_if_broken();
        let me = self.cpu();
        if !self.irqs_on() {
            self.broken_rule(format_args!("waits with its interrupts off"));
        }
        if self.conducted(Event::Relax) {
            self.deliver(me);
            return;
        }
        if self.deliver(me) | self.deliver_others() {
            WAITS.set(0);
            return;
        }
        self.cpu_state(me).waits.fetch_add(1, Ordering::SeqCst);
        WAITS.set(WAITS.get() + 1);
        if WAITS.get() > MAX_WAITS {
            WAITS.set(0);
            self.broken_rule(format_args!("waits for ever; {}", self.who_is_pending()));
        }
        thread::yield_now();
    }

    /// For the message of a wait without end.
    fn who_is_pending(&self) -> String {
        let waiting: Vec<_> = (0..self.cpu_count()).filter(|&cpu| self.is_pending(cpu)).collect();
        if waiting.is_empty() {
            "no interrupt is pending".into()
        } else {
            format!("CPUs {waiting:?} did not take their interrupt")
        }
    }

    pub(super) fn not_waiting(&self) {
        WAITS.set(0);
    }

    fn stop_if_broken(&self) {
        let broken_by = self.inner.broken.load(Ordering::SeqCst);
        let by_other = broken_by != 0 && broken_by != thread_token() && !thread::panicking();
        assert!(!by_other, "CPU {} stops: another CPU found a broken rule", self.cpu());
    }
}
