//! What a removal found, as a value.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::panic::Location;

use mm::addr::{PfnRange, VirtRange};
use mm::gather::ZapStats;
use mm::machine::{Machine, has_room};
use mm::meta::LiveFolio;
use mm::pins::PinRecord;
use mm::region::{RegionInfo, Revoked};
use mm::shootdown::ShootdownStats;
use mm::space::AddressSpace;

use super::step::{Problem, Step, StepRecord};
use crate::holder::Answer;
use crate::kill::KillReport;

/// How existing mappings are invalidated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Method {
    /// By range: work for each mapped extent, one shootdown for all.
    #[default]
    Ranged,
    /// By `memory_failure` for each of these frames, with a shootdown each: what the range is compared with. What
    /// is mapped elsewhere goes by range afterwards.
    PerFrame(PfnRange),
}

/// Why a device is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Cause {
    /// Somebody wants it removed, and it works until then.
    #[default]
    Asked,
    /// The host has said that it wants it back, and it works until then.
    Announced,
    /// It has left without a word: nothing of it can be read or written any more.
    Gone,
}

impl Cause {
    /// The word for machine-readable lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Announced => "announced",
            Self::Gone => "gone",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One VMA that mapped the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Number of the address space.
    pub space_id: u64,
    /// Its name: that of the space itself, which all its VMAs share.
    pub name: Arc<str>,
    /// Where the device was mapped.
    pub range: VirtRange,
}

impl User {
    pub(super) fn new<M: Machine>(space: &AddressSpace<M>, range: VirtRange) -> Self {
        Self { space_id: space.id(), name: Arc::clone(space.shared_name()), range }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (space {}) at {}..{}", self.name, self.space_id, self.range.start(), self.range.end())
    }
}

/// A task whose address space mapped the device. What it does next with the mapping answers SIGBUS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskFound {
    /// Number of its address space.
    pub space_id: u64,
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: String,
}

impl TaskFound {
    /// `None` where there is no memory for the name.
    pub(super) fn new<M: Machine>(machine: &M, space_id: u64, id: u64, name: &str) -> Option<Self> {
        Some(Self { space_id, id, name: copy_of(machine, name)? })
    }
}

impl fmt::Display for TaskFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (task {}, space {})", self.name, self.id, self.space_id)
    }
}

/// Pins that were waited for, as the pin ledger knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinFound {
    /// Name of the address space through which the pages were pinned.
    pub owner: String,
    /// Where in the code.
    pub place: &'static Location<'static>,
    /// How old they were when the wait began, in nanoseconds.
    pub age_ns: u64,
    /// How many pages.
    pub nr_pages: u64,
}

impl PinFound {
    /// `None` where there is no memory for the name.
    pub(super) fn new<M: Machine>(machine: &M, record: &PinRecord, now_ns: u64) -> Option<Self> {
        let owner = copy_of(machine, &record.owner)?;
        let (age_ns, nr_pages) = (now_ns.saturating_sub(record.since_ns), record.nr_pages());
        Some(Self { owner, place: record.place, age_ns, nr_pages })
    }
}

impl fmt::Display for PinFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { owner, place, age_ns, nr_pages } = self;
        let (file, line) = (place.file(), place.line());
        write!(f, "{nr_pages} pages of {owner}, pinned at {file}:{line} {} us before", age_ns / 1000)
    }
}

/// A copy, where there is memory for it.
pub(super) fn copy_of<M: Machine>(machine: &M, text: &str) -> Option<String> {
    let mut copy = String::new();
    if !machine.may_grow() || copy.try_reserve_exact(text.len()).is_err() {
        return None;
    }
    copy.push_str(text);
    Some(copy)
}

/// A long-term pin of the device, whose owner was asked to give it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Its number.
    pub key: u64,
    /// Whose it was.
    pub owner: String,
    /// Where in the code it was made.
    pub place: &'static Location<'static>,
    /// How many pages.
    pub nr_pages: u64,
    /// How long its owner had, in nanoseconds.
    pub grace_ns: u64,
    /// Its owner did not give it back in time: it was revoked.
    pub revoked: bool,
}

impl fmt::Display for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, owner, nr_pages, grace_ns, revoked, .. } = self;
        write!(f, "registration {key} of {owner} ({nr_pages} pages): ")?;
        match revoked {
            true => write!(f, "revoked after {grace_ns} ns"),
            false => f.write_str("given back in time"),
        }
    }
}

/// What it cost to invalidate mappings: clear, shoot down, give back. Waiting for pins is not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Entries, leaves, tables, rounds, interrupts.
    pub zap: ZapStats,
    /// Flushes on all CPUs meanwhile, those of other shootdowns included.
    pub flushes: ShootdownStats,
    /// Nanoseconds.
    pub ns: u64,
    /// Instructions of this CPU, where they are counted.
    pub instructions: u64,
}

impl Cost {
    pub(super) fn add(&mut self, other: Self) {
        self.zap.add(other.zap);
        self.flushes.rounds += other.flushes.rounds;
        self.flushes.ipis += other.flushes.ipis;
        self.flushes.page_flushes += other.flushes.page_flushes;
        self.flushes.full_flushes += other.flushes.full_flushes;
        self.ns += other.ns;
        self.instructions += other.instructions;
    }

    /// The figures by name, for a table.
    pub fn rows(&self) -> [(&'static str, u64); 10] {
        [
            ("entries_visited", self.zap.entries_visited),
            ("leaves", self.zap.leaves),
            ("pages", self.zap.nr_pages),
            ("table_pages", self.zap.table_pages),
            ("rounds", self.zap.rounds),
            ("ipis", self.zap.ipis),
            ("page_flushes", self.flushes.page_flushes),
            ("full_flushes", self.flushes.full_flushes),
            ("ns", self.ns),
            ("instructions", self.instructions),
        ]
    }
}

/// Folios of the device that somebody still holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// For how long they have been waited for, in nanoseconds.
    pub ns: u64,
    /// How many there are.
    pub folios: u64,
    /// References on them, pins included.
    pub refs: u64,
    /// Pins on them.
    pub pins: u64,
    /// The first few.
    pub some: Vec<LiveFolio>,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ns, folios, refs, pins, some } = self;
        write!(
            f,
            "waiting since {} ms for {folios} folios with {refs} references, {pins} of them pins",
            ns / 1_000_000
        )?;
        some.iter().try_for_each(|folio| write!(f, "; {folio}"))
    }
}

/// The wait of [`Step::Drain`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// What was still held when the mappings' own references were given back.
    pub found: Waiting,
    /// Whose pins those were, where the pin ledger is switched on.
    pub pins: Vec<PinFound>,
    /// How long it was waited for, in nanoseconds.
    pub ns: u64,
    /// Rounds of waiting.
    pub rounds: u64,
}

/// What a removal found and did. It has no error: what went wrong is in the steps' records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemovalReport {
    /// The device's name.
    pub device: String,
    /// How mappings were invalidated.
    pub method: Method,
    /// Why it was removed.
    pub cause: Cause,
    /// Nobody used the device: there was nothing to invalidate.
    pub idle: bool,
    /// The steps, all of them, in order.
    pub steps: Vec<StepRecord>,
    /// Holders and readers; `None` without a DAX device.
    pub kill: Option<KillReport>,
    /// Who mapped the device: one entry for each VMA, ordered by space and address.
    pub users: Vec<User>,
    /// Further VMAs, for whose names memory was missing. They have lost the device like the others.
    pub users_not_named: u64,
    /// The tasks of these address spaces, as many as there was memory for.
    pub tasks: Vec<TaskFound>,
    /// How many there are.
    pub nr_tasks: u64,
    /// What invalidating cost by the chosen method.
    pub cost: Cost,
    /// With [`Method::PerFrame`]: what the rest cost, by range.
    pub rest: Cost,
    /// Long-term pins that were asked for, as many as there was memory for.
    pub registrations: Vec<Registration>,
    /// The wait for pins.
    pub drained: Drained,
}

impl RemovalReport {
    /// The record of `step`, once it is done.
    pub fn step(&self, step: Step) -> Option<&StepRecord> {
        self.steps.iter().find(|record| record.step == step)
    }
    /// What could not be done.
    pub fn problems(&self) -> impl Iterator<Item = (Step, &Problem)> {
        self.steps.iter().filter_map(|record| Some((record.step, record.problem.as_ref()?)))
    }
    /// Address spaces that mapped the device, each once.
    pub fn nr_spaces(&self) -> usize {
        self.users.chunk_by(|one, next| one.space_id == next.space_id).count()
    }
    /// Remembers a registration that is asked for, if there is memory for it.
    pub(super) fn note_registration<M: Machine>(&mut self, machine: &M, region: &RegionInfo<'_>) {
        if !has_room(machine, &mut self.registrations) {
            return;
        }
        let RegionInfo { key, place, nr_pages, grace_ns, .. } = *region;
        let Some(owner) = copy_of(machine, region.owner) else { return };
        self.registrations.push(Registration { key, owner, place, nr_pages, grace_ns, revoked: false });
    }
    /// Remembers that it was revoked.
    pub(super) fn note_revoked(&mut self, revoked: &Revoked<'_>) {
        let known = self.registrations.iter_mut().find(|known| known.key == revoked.region.key);
        if let Some(known) = known {
            known.revoked = true;
            known.grace_ns = revoked.after_ns;
        }
    }
    /// Time of all steps, in nanoseconds.
    pub fn ns(&self) -> u64 {
        self.steps.iter().map(|record| record.ns).sum()
    }
    /// Instructions of all steps, where they are counted.
    pub fn instructions(&self) -> u64 {
        self.steps.iter().map(|record| record.instructions).sum()
    }
    /// Instructions of the steps up to the shootdown, after which there is no translation of the device, where they are
    /// counted.
    pub fn instructions_until_unreachable(&self) -> u64 {
        let until = self.steps.iter().filter(|record| record.step <= Step::Shootdown);
        until.map(|record| record.instructions).sum()
    }
}

/// A copy of a list, where there is memory for it and for each `copy` of an element.
pub(super) fn copy_list<M: Machine, T>(machine: &M, list: &[T], copy: impl Fn(&T) -> Option<T>) -> Option<Vec<T>> {
    let mut copies = Vec::new();
    if !machine.may_grow() || copies.try_reserve_exact(list.len()).is_err() {
        return None;
    }
    for element in list {
        copies.push(copy(element)?);
    }
    Some(copies)
}

impl RemovalReport {
    /// A copy; `None` where there is not enough memory for the whole of it. For a report whose parts lie where they
    /// cannot stay.
    pub fn try_clone<M: Machine>(&self, machine: &M) -> Option<Self> {
        let text = |text: &str| copy_of(machine, text);
        let kill = match &self.kill {
            None => None,
            Some(kill) => Some(KillReport {
                answers: copy_list(machine, &kill.answers, |answer| {
                    Some(Answer { holder: text(&answer.holder)?, result: answer.result })
                })?,
                readers: kill.readers,
                holders_cleared: kill.holders_cleared,
            }),
        };
        let found = &self.drained.found;
        let found = Waiting { some: copy_list(machine, &found.some, |folio| Some(*folio))?, ..*found };
        let pins = copy_list(machine, &self.drained.pins, |pin| Some(PinFound { owner: text(&pin.owner)?, ..*pin }))?;
        Some(Self {
            device: text(&self.device)?,
            method: self.method,
            cause: self.cause,
            idle: self.idle,
            steps: copy_list(machine, &self.steps, |record| record.try_clone(machine))?,
            kill,
            users: copy_list(machine, &self.users, |user| Some(user.clone()))?,
            users_not_named: self.users_not_named,
            tasks: copy_list(machine, &self.tasks, |task| Some(TaskFound { name: text(&task.name)?, ..*task }))?,
            nr_tasks: self.nr_tasks,
            cost: self.cost,
            rest: self.rest,
            registrations: copy_list(machine, &self.registrations, |known| {
                Some(Registration { owner: text(&known.owner)?, ..*known })
            })?,
            drained: Drained { found, pins, ..self.drained },
        })
    }

    fn fmt_cost(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut zap = self.cost.zap;
        zap.add(self.rest.zap);
        writeln!(
            f,
            "  cleared {} leaves of {} pages and {} table pages, looking at {} entries; {} shootdowns, {} IPIs",
            zap.leaves, zap.nr_pages, zap.table_pages, zap.entries_visited, zap.rounds, zap.ipis
        )
    }
}

/// Several lines of plain words: the steps, each with its time, then who and what was found.
impl fmt::Display for RemovalReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cause = match self.cause {
            Cause::Asked => "",
            Cause::Announced => ", which the host wants back",
            Cause::Gone => ", which has gone",
        };
        writeln!(f, "removal of {}{cause}{}", self.device, if self.idle { " (idle)" } else { "" })?;
        for record in &self.steps {
            writeln!(f, "  {record}; {} us", record.ns / 1000)?;
        }
        for answer in self.kill.iter().flat_map(|kill| &kill.answers) {
            writeln!(f, "  holder {answer}")?;
        }
        for user in &self.users {
            writeln!(f, "  mapped by {user}")?;
        }
        if self.users_not_named > 0 {
            writeln!(f, "  mapped by {} more, for whose names memory was missing", self.users_not_named)?;
        }
        for task in &self.tasks {
            writeln!(f, "  used by {task}")?;
        }
        if !self.idle {
            self.fmt_cost(f)?;
        }
        for pin in &self.drained.pins {
            writeln!(f, "  waited for {pin}")?;
        }
        for registration in &self.registrations {
            writeln!(f, "  {registration}")?;
        }
        if self.drained.found.folios > 0 {
            writeln!(f, "  pins: {} {} ms in all", self.drained.found, self.drained.ns / 1_000_000)?;
        }
        Ok(())
    }
}
