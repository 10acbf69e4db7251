//! The conductor: runs the programs of all CPUs on this thread, and decides at each mark which of them goes on.
//!
//! A *mark* is a place where another CPU may go on first: each [`Event`] of the emulated machine, each lock before it is
//! taken, and each [`step`]. Between two marks a CPU is alone.
//!
//! | a CPU | goes on |
//! |---|---|
//! | has come to a mark | may, and does unless the strategy says otherwise |
//! | waits (`relax`, a lock that is taken) | not before another has come to a mark, or an interrupt is pending that it takes |
//! | has ended its program | only to take an interrupt that is pending |
//!
//! Whoever goes on takes its pending interrupt first, if its interrupts are on.

use std::cell::{Cell, RefCell};
use std::fmt;

use mm::addr::VirtAddr;
use mm::lock_check;
use mm::machine::{CpuId, Point};
use mm::sync::hosted::{self, LockStep};
use testkit::emu::{EmuMachine, Event, Seat};

use crate::coroutine::{self, Coroutine};
use crate::schedule::{Schedule, Switch};
use crate::strategy::{Choice, Pilot};

/// Marks of one schedule after which it counts as endless.
const MOST_MARKS: u32 = 200_000;
/// Turns in which everybody waits, and nobody does anything, after which they wait for ever.
const DRY_TURNS: u32 = 8;

/// What a CPU has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// An event of the machine.
    Event(Event),
    /// A lock, which it is about to take.
    Lock,
    /// A lock that another has.
    LockTaken,
    /// It has looked at a word, and is about to change it.
    Between,
    /// A place that the program itself has named.
    Step(&'static str),
    /// The end of its program.
    Over,
}

impl Mark {
    fn waits(self) -> bool {
        matches!(self, Self::Event(Event::Relax) | Self::LockTaken)
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Event(Event::Entry) => "looks at an entry",
            Self::Event(Event::Access) => "loads or stores",
            Self::Event(Event::Relax) => "waits",
            Self::Event(Event::IrqDisable) => "interrupts off",
            Self::Event(Event::IrqEnable) => "interrupts on",
            Self::Event(Event::IpiSent) => "has sent the interrupt",
            Self::Event(Event::IpiTaken) => "takes the interrupt",
            Self::Event(Event::IpiDone) => "is back from the interrupt",
            Self::Event(Event::Flush) => "flushes",
            Self::Event(Event::Flushed) => "has flushed",
            Self::Event(Event::LoadRoot) => "has loaded a root",
            Self::Event(Event::AllocTable) => "takes a table page",
            Self::Event(Event::FreeTable) => "frees a table page",
            Self::Event(Event::At(point)) => return write!(f, "at {point:?}"),
            Self::Lock => "takes a lock",
            Self::LockTaken => "waits for a lock",
            Self::Between => "has looked at a word",
            Self::Step(name) => name,
            Self::Over => "has ended",
        })
    }
}

/// A line of what has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Who.
    pub cpu: CpuId,
    /// The number of its mark; `None` for what it says of itself.
    pub mark: Option<u32>,
    /// What.
    pub what: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Ready,
    Waits,
    Over,
}

#[derive(Clone, Copy, Debug)]
struct Lane {
    doing: Doing,
    marks: u32,
    /// An interrupt was pending when gup-fast was last about to take a reference.
    knew: bool,
}

struct State {
    machine: Option<EmuMachine>,
    pilot: Pilot,
    current: CpuId,
    lanes: Vec<Lane>,
    taken: Vec<Switch>,
    marks: u32,
    dry: u32,
    /// What a CPU's walker fetches as soon as it has a new root.
    fetched: Vec<VirtAddr>,
    trace: Option<Vec<Line>>,
    stuck: Option<String>,
}

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
    static STATE: RefCell<Option<State>> = const { RefCell::new(None) };
}

/// What one CPU does.
pub type Program = Box<dyn FnOnce()>;

/// What is to be run.
pub struct Act {
    /// By CPU.
    pub programs: Vec<Program>,
    /// The machine that they are CPUs of, if they need one.
    pub machine: Option<EmuMachine>,
    /// Addresses whose translations a CPU fetches ahead of need as soon as it has a new root.
    pub fetched: Vec<VirtAddr>,
}

/// How a schedule went.
#[derive(Debug)]
pub struct Done {
    /// What struck. Nothing of the act may be touched any more then, and this thread has to end.
    pub struck: Option<String>,
    /// Where it departed from the usual.
    pub schedule: Schedule,
    /// Marks of all CPUs.
    pub marks: u32,
    /// What has happened, if it was to be noted.
    pub trace: Vec<Line>,
    /// Who has decided.
    pub pilot: Pilot,
}

/// Runs one schedule to its end.
///
/// # Panics
/// A schedule runs on this thread already.
pub fn conduct(act: Act, pilot: Pilot, traced: bool) -> Done {
    assert!(!ON.get(), "one schedule at a time");
    let lane = Lane { doing: Doing::Ready, marks: 0, knew: false };
    let lanes = vec![lane; act.programs.len()];
    let mut cpus: Vec<Seated> =
        act.programs.into_iter().enumerate().map(|(cpu, program)| Seated::new(cpu, &act.machine, program)).collect();
    let mut state = State {
        machine: act.machine,
        pilot,
        current: 0,
        lanes,
        taken: Vec::new(),
        marks: 0,
        dry: 0,
        fetched: act.fetched,
        trace: traced.then(Vec::new),
        stuck: None,
    };
    state.begin();
    state.machine.iter().for_each(|machine| machine.conduct(true));
    STATE.set(Some(state));
    ON.set(true);
    hosted::watch(Some(at_lock));
    let struck = run(&mut cpus);
    hosted::watch(None);
    ON.set(false);
    let state = STATE.take().expect("it was put there");
    state.machine.iter().for_each(|machine| machine.conduct(false));
    for cpu in cpus {
        if struck.is_some() { cpu.coroutine.abandon() } else { cpu.coroutine.retire() }
    }
    Done {
        struck,
        schedule: Schedule(state.taken),
        marks: state.marks,
        trace: state.trace.unwrap_or_default(),
        pilot: state.pilot,
    }
}

/// A CPU that is not on, with what belongs to its place on this thread.
struct Seated {
    coroutine: Coroutine,
    seat: Seat,
    held: i64,
}

impl Seated {
    fn new(cpu: CpuId, machine: &Option<EmuMachine>, program: Program) -> Self {
        let machine = machine.clone();
        let body = move || match machine {
            None => life(program),
            Some(machine) => machine.on_cpu(cpu, || life(program)),
        };
        Self { coroutine: Coroutine::new(body), seat: Seat::default(), held: 0 }
    }

    fn resume(&mut self) -> bool {
        self.seat.swap();
        self.held = lock_check::exchange(self.held);
        let ended = self.coroutine.resume();
        self.held = lock_check::exchange(self.held);
        self.seat.swap();
        ended
    }
}

/// The program, and afterwards interrupts until all have ended theirs.
fn life(program: Program) {
    poll();
    program();
    while mark(Mark::Over) {}
}

fn run(cpus: &mut [Seated]) -> Option<String> {
    loop {
        let current = STATE.with_borrow(|state| state.as_ref().map_or(0, |state| state.current));
        if cpus[current].resume() {
            break;
        }
        if let Some(said) = coroutine::struck().or_else(|| STATE.with_borrow_mut(|state| state.as_mut()?.stuck.take()))
        {
            return Some(said);
        }
    }
    // All have ended; the others have yet to leave.
    ON.set(false);
    let ended = STATE.with_borrow(|state| state.as_ref().map_or(0, |state| state.current));
    for (_, cpu) in cpus.iter_mut().enumerate().filter(|(cpu, _)| *cpu != ended) {
        if !cpu.resume() {
            return Some(coroutine::struck().unwrap_or_else(|| "a CPU that has ended goes on".into()));
        }
    }
    None
}

/// What becomes of a CPU that has come to a mark.
enum Verdict {
    GoesOn,
    GivesWay,
    AllOver,
}

/// The running CPU has come to a mark. Comes back when it goes on; `false` where no schedule is under way, or its end has
/// come.
pub fn mark(what: Mark) -> bool {
    if !ON.get() {
        return false;
    }
    match with_state(|state| state.come_to(what)) {
        Verdict::GoesOn => {}
        Verdict::GivesWay => coroutine::give_way(),
        Verdict::AllOver => return false,
    }
    // It may be the end that it is resumed for.
    if !ON.get() {
        return false;
    }
    poll();
    if what == Mark::Event(Event::At(Point::GupLeafRead)) {
        with_state(|state| {
            let cpu = state.current;
            state.lanes[cpu].knew = state.machine.as_ref().is_some_and(|machine| machine.is_pending(cpu));
        });
    }
    true
}

/// An event of an emulated machine: see [`EmuMachine::set_conductor`].
pub fn at_event(_cpu: CpuId, event: Event) -> bool {
    if event == Event::At(Point::SwitchLoaded) && ON.get() {
        let (machine, fetched) = with_state(|state| (state.machine.clone(), state.fetched.clone()));
        machine.iter().for_each(|machine| fetched.iter().for_each(|va| machine.prefetch(*va)));
    }
    mark(Mark::Event(event))
}

fn at_lock(step: LockStep) {
    mark(match step {
        LockStep::Before => Mark::Lock,
        LockStep::Taken => Mark::LockTaken,
        LockStep::Between => Mark::Between,
    });
}

/// A mark that a program sets by itself.
pub fn step(name: &'static str) {
    mark(Mark::Step(name));
}

/// The running CPU waits for another.
pub fn relax() {
    mark(Mark::Event(Event::Relax));
}

/// Runs what is one step of the hardware: there is no mark in it. No lock that it takes may be held at a mark.
pub fn in_one_step<R>(work: impl FnOnce() -> R) -> R {
    let was_on = ON.replace(false);
    let done = work();
    ON.set(was_on);
    done
}

/// Says something in the running CPU's lane.
pub fn note(what: impl FnOnce() -> String) {
    if ON.get() {
        with_state(|state| {
            let cpu = state.current;
            if let Some(trace) = &mut state.trace {
                trace.push(Line { cpu, mark: None, what: what() });
            }
        });
    }
}

/// Forgets what [`knew`] would answer.
pub fn forget() {
    with_state(|state| state.lanes[state.current].knew = false);
}

/// Was an interrupt pending for the running CPU when its gup-fast was last about to take a reference? Then the entry that
/// it had read was known to be gone.
pub fn knew() -> bool {
    with_state(|state| state.lanes[state.current].knew)
}

fn with_state<R>(f: impl FnOnce(&mut State) -> R) -> R {
    STATE.with_borrow_mut(|state| f(state.as_mut().expect("a schedule is under way")))
}

/// Takes the running CPU's interrupt.
fn poll() {
    // Without a clone of the handle, which is for the rare case.
    let pending = with_state(|state| {
        let machine = state.machine.as_ref()?;
        machine.would_be_interrupted(state.current).then(|| machine.clone())
    });
    if let Some(machine) = pending {
        machine.poll();
    }
}

impl State {
    /// Somebody begins: mark 0 of CPU 0.
    fn begin(&mut self) {
        let all = u64::MAX >> (64 - self.lanes.len());
        // Nobody is kept from going on.
        let at = Choice { cpu: 0, mark: 0, candidates: all, usual: 0, forced: true };
        self.choose(&at);
    }

    fn choose(&mut self, at: &Choice) {
        self.current = self.pilot.choose(at);
        if self.current != at.usual {
            self.taken.push(Switch { cpu: at.cpu, mark: at.mark, next: self.current });
        }
    }

    fn come_to(&mut self, what: Mark) -> Verdict {
        let cpu = self.current;
        self.marks += 1;
        self.lanes[cpu].marks += 1;
        let mark = self.lanes[cpu].marks;
        if let Some(trace) = &mut self.trace {
            trace.push(Line { cpu, mark: Some(mark), what: what.to_string() });
        }
        self.lanes[cpu].doing = match what {
            Mark::Over => Doing::Over,
            what if what.waits() => Doing::Waits,
            _ => Doing::Ready,
        };
        if !what.waits() {
            self.dry = 0;
            self.wake();
        }
        if self.marks > MOST_MARKS {
            return self.stuck(format!("no end after {MOST_MARKS} marks"));
        }
        let mut candidates = self.candidates();
        if candidates == 0 {
            if self.lanes.iter().all(|lane| lane.doing == Doing::Over) {
                return Verdict::AllOver;
            }
            // A lock that was given back since is no mark: they look once more.
            self.dry += 1;
            if self.dry > DRY_TURNS {
                return self.stuck(self.who_waits());
            }
            self.wake();
            candidates = self.candidates();
        }
        let forced = candidates & 1 << cpu == 0;
        let usual = if forced { after(cpu, candidates) } else { cpu };
        self.choose(&Choice { cpu, mark, candidates, usual, forced });
        if self.current == cpu { Verdict::GoesOn } else { Verdict::GivesWay }
    }

    fn wake(&mut self) {
        for lane in &mut self.lanes {
            if lane.doing == Doing::Waits {
                lane.doing = Doing::Ready;
            }
        }
    }

    fn candidates(&self) -> u64 {
        let interrupted = |cpu| self.machine.as_ref().is_some_and(|machine| machine.would_be_interrupted(cpu));
        let can = |(cpu, lane): (usize, &Lane)| {
            if lane.doing == Doing::Ready || interrupted(cpu) { 1 << cpu } else { 0 }
        };
        self.lanes.iter().enumerate().map(can).sum()
    }

    fn stuck(&mut self, what: String) -> Verdict {
        self.stuck = Some(what);
        Verdict::GivesWay
    }

    fn who_waits(&self) -> String {
        let waits = self.lanes.iter().enumerate().filter(|(_, lane)| lane.doing == Doing::Waits);
        let waiting: Vec<String> = waits.map(|(cpu, _)| format!("CPU {cpu}")).collect();
        format!(
            "{} for ever",
            match waiting.as_slice() {
                [one] => format!("{one} waits"),
                all => format!("{} wait", all.join(" and ")),
            }
        )
    }
}

/// The next of the candidates after `cpu`, round about.
fn after(cpu: CpuId, candidates: u64) -> CpuId {
    let above = candidates & !(u64::MAX >> (63 - cpu));
    let among = if above != 0 { above } else { candidates };
    among.trailing_zeros() as CpuId
}
