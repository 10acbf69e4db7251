//! Taking a device away from everybody, in one order, without a way to fail.
//!
//! Invariant: *clear the entry, shoot down, then free*. The steps are [`Step`]; why each comes where it does:
//!
//! | step | before the next, because |
//! |---|---|
//! | 1 stop_io | a transfer under way would need metadata and the direct map |
//! | 2 kill_dax | a device that is alive answers faults: an invalidated page would come back |
//! | 3 invalidate | a shootdown drops what the tables no longer say, nothing else |
//! | 4 shootdown | until every CPU has answered, a walk may read the tables and take references |
//! | 5 drain | a page that is held has metadata, and is written to |
//! | 6 free_metadata | the metadata names the frames that the direct map reaches |
//! | 7 unmap_direct_map | whoever attaches the device next must not find it reachable |
//! | 8 release | |
//!
//! Long-term pins are registrations ([`mm::region`]), and are taken back in two halves. Their owners are asked at the end
//! of step 2: from then on no page map lets a new one in, so nobody is missed; and their grace period goes by while
//! steps 3 and 4 are done. What they have not given back is revoked in step 5, before its wait for pins: later than the
//! shootdown, so that no walk can pin for another. A device that reaches the pages of one is cut off then, by range
//! ([`mm::region::device`]). So that wait is for transient pins alone.
//!
//! # It ends
//! Invariant, at the end of step 4: *no leaf of the device can be reached from any page table, and none can become so*,
//! whatever any holder has answered or failed to do. Step 3 goes over every mapping made over the page map, and not over
//! what somebody says is mapped. A fault that takes its reference on a page before the page map dies, in step 2, holds its
//! address space, and step 3 waits for it there; one that comes later gets no reference, also where the page is held
//! already. So what step 5 waits for are pins from before, which only become fewer. Debug builds walk every page table
//! and look.
//!
//! Work is proportional to the mapped extents (VMAs and the table pages and leaves under them): nothing looks at
//! each frame of the device. The baseline that does is [`Method::PerFrame`].

mod end;
mod report;
mod step;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use mm::addr::VirtRange;
use mm::context::MmContext;
use mm::failure::fail_each_frame;
use mm::gather::{Gather, ZapStats};
use mm::machine::{Machine, has_room};
use mm::mapping::{unmap_each, unmap_leftovers};
use mm::pagemap::DevPagemap;
use mm::region::{RegionInfo, TakeBack};
use mm::space::{AddressSpace, Mapping};

pub use self::report::{Cause, Cost, Drained, Method, PinFound, Registration, RemovalReport, TaskFound, User, Waiting};
pub use self::step::{Facts, Fields, Problem, Step, StepRecord};
use crate::device::{Dead, Live, is_idle};
use crate::holder::NotifyFlags;
use crate::kill::{KillReport, Phase, kill_dax_as};
use crate::mutant::Mutant;

/// What is removed.
pub struct Target<M: Machine> {
    /// The device's name, for the report.
    pub name: String,
    /// Its page map, registered.
    pub map: Arc<DevPagemap>,
    /// Its DAX device; `None` where it came up without, which leaves the steps the same.
    pub dax: Option<Live>,
    /// The device's own files. Whoever maps one of them is in the report, whether or not a page is installed there. What
    /// its holders let others map is found by the page map ([`MmContext::for_each_mapping`]), and is in the report where a
    /// holder has not taken it apart.
    pub mappings: Vec<Arc<Mapping<M>>>,
}

/// What the driver of the device does for a removal, and who is told of it.
pub trait RemovalEnv<M: Machine> {
    /// Who is told.
    type Watch: RemovalWatch<M>;
    /// The same.
    fn watch(&mut self) -> &mut Self::Watch;
    /// Refuses new I/O and waits for what is under way; answers how many requests that were.
    ///
    /// # Errors
    /// What could not be done: recorded, and the removal goes on.
    fn stop_io(&mut self) -> Result<u64, Problem>;
    /// Takes the device out of the kernel's direct map; answers how many leaves that were.
    ///
    /// # Errors
    /// As for [`stop_io`](Self::stop_io).
    fn unmap_direct_map(&mut self) -> Result<u64, Problem>;
    /// Gives up the claim on the device's range and its name.
    ///
    /// # Errors
    /// As for [`stop_io`](Self::stop_io).
    fn release(&mut self) -> Result<(), Problem>;
}

/// What the kernel hears of a removal, and says to it. A driver hands it through as it is: what is declared here is
/// declared nowhere else.
pub trait RemovalWatch<M: Machine> {
    /// A step is about to begin. `Err` makes its first attempt fail: that is recorded, and the step is done all the
    /// same, because those after it rely on it. Here faults are injected.
    ///
    /// # Errors
    /// What is recorded.
    fn begin(&mut self, step: Step) -> Result<(), Problem> {
        let _ = step;
        Ok(())
    }
    /// Why the device is removed. Asked once, before the first step.
    fn cause(&mut self) -> Cause {
        Cause::Asked
    }
    /// The kill of the DAX device has come so far. At [`Phase::Told`] the device is still alive, and what the holders
    /// answered is in `kill`.
    fn phase(&mut self, phase: Phase, kill: &KillReport) {
        let _ = (phase, kill);
    }
    /// Calls `each` with every task that has an address space: the space's number, the task's, and its name. Without
    /// an answer the report names no tasks.
    fn for_each_task(&mut self, each: &mut dyn FnMut(u64, u64, &str)) {
        let _ = each;
    }
    /// The tasks of `space` have lost `range`. Called after the shootdown, once for each VMA.
    fn lost(&mut self, space: &Arc<AddressSpace<M>>, range: VirtRange) {
        let _ = (space, range);
    }
    /// The owner of a registration is about to be asked to give it back.
    fn asked(&mut self, region: &RegionInfo<'_>) {
        let _ = region;
    }
    /// A registration was revoked, for its owner has not given it back in time; or one of its uses takes long.
    fn taking_back(&mut self, told: &TakeBack<'_>) {
        let _ = told;
    }
    /// The removal waits for pins: called when it begins to wait and, ever more seldom, while it does. Here is the
    /// place to say so.
    fn waiting(&mut self, waiting: &Waiting) {
        let _ = waiting;
    }
    /// A step is done: for the console.
    fn observe(&mut self, record: &StepRecord) {
        let _ = record;
    }
    /// The first four steps are done, which `so_far` has: no translation of the device is left. For what is better said when
    /// nothing is urgent any more.
    fn unreachable(&mut self, so_far: &RemovalReport) {
        let _ = so_far;
    }
    /// Transfers of devices that were blocked since boot, where that is known.
    fn blocked_transfers(&mut self) -> u64 {
        0
    }
    /// Instructions that this CPU has executed, where they are counted, without those that went into what was said. It may go
    /// back a little, where another CPU says something meanwhile.
    fn instructions(&mut self) -> u64 {
        0
    }
}

/// Hears nothing.
impl<M: Machine> RemovalWatch<M> for () {}

/// Removes the device. Every step is done, whatever the ones before it met; the report says what that was.
///
/// Must not be called with interrupts off, with a lock that a task needs to give back a pin, or from inside a reader
/// of the device ([`LiveGuard`](crate::device::LiveGuard)).
///
/// A device is removed once because its [`Live`] handle exists once; who may use it is decided by
/// [`DeviceSlot`](crate::slot::DeviceSlot).
///
/// ```
/// use std::sync::Arc;
/// use dax::devdax::{DevDax, OpenOptions};
/// use dax::device::{DataCache, alloc_dax};
/// use dax::removal::{Method, Problem, RemovalEnv, Step, Target, remove};
/// use mm::addr::{PAGE_SIZE, PageSize, Pfn, VirtAddr};
/// use testkit::emu::{self, EmuMachine, Frames, Task};
/// use mm::entry::Prot;
/// use mm::space::{AddressSpace, VmOps};
///
/// /// A driver without I/O and without a direct map; nobody hears of the removal.
/// struct Driver(());
/// impl RemovalEnv<EmuMachine> for Driver {
///     type Watch = ();
///     fn watch(&mut self) -> &mut () { &mut self.0 }
///     fn stop_io(&mut self) -> Result<u64, Problem> { Ok(0) }
///     fn unmap_direct_map(&mut self) -> Result<u64, Problem> { Ok(0) }
///     fn release(&mut self) -> Result<(), Problem> { Err("the name is stuck".into()) }
/// }
///
/// let mm = emu::context(2);
/// let map = Frames::new(&mm, Pfn::new(0x10_0000), 512).map.clone();
/// let live = alloc_dax("dax0.0", &map, DataCache::Coherent, &mm.ledger).unwrap();
/// let dev = DevDax::new(&mm, live.device(), PageSize::Size4K).unwrap();
/// let file: Arc<dyn VmOps<_>> = dev.open(OpenOptions::default()).unwrap();
/// let (space, va) = (AddressSpace::new(&mm, "task").unwrap(), VirtAddr::new(0x40_0000_0000));
/// space.map(va, 8 * PAGE_SIZE, Prot::USER_WRITE, &file, 0).unwrap();
/// let task = Task::start(&space, 1);
/// task.store(va, 1).unwrap();
///
/// let target = Target { name: "dax0.0".into(), map, dax: Some(live), mappings: vec![dev.mapping().clone()] };
/// let report = remove(&mm, target, Method::Ranged, &mut Driver(()));
/// assert!(task.load(va).is_err());
/// assert_eq!((report.cost.zap.leaves, &*report.users[0].name), (1, "task"));
/// // Every step is done; what one of them could not do is on record.
/// assert_eq!(report.step(Step::Shootdown).unwrap().facts.get("ipis"), Some(1));
/// assert_eq!(report.step(Step::Release).unwrap().problem, Some("the name is stuck".into()));
/// ```
pub fn remove<M: Machine, E: RemovalEnv<M>>(
    mm: &Arc<MmContext<M>>,
    target: Target<M>,
    method: Method,
    env: &mut E,
) -> RemovalReport {
    let cause = env.watch().cause();
    let report = RemovalReport { device: target.name, method, cause, ..RemovalReport::default() };
    let (map, mappings) = (target.map, target.mappings);
    let mut removal = Removal { mm, env, report, map, mappings, dead: None, has_registrations: false, aside: (0, 0) };
    let mut going = Going { live: target.dax, gather: Some(Gather::new(mm)), spaces: Vec::new() };
    for step in Step::ALL {
        removal.step(step, &mut going);
        if step == Step::Shootdown {
            if cfg!(debug_assertions) {
                removal.assert_unreachable();
            }
            removal.env.watch().unreachable(&removal.report);
        }
    }
    removal.report
}

/// What goes, and is handed from step to step.
struct Going<M: Machine> {
    /// The DAX device, before its death.
    live: Option<Live>,
    /// What was taken out of the page tables, until it is freed.
    gather: Option<Gather<M>>,
    /// The address spaces of the report's users, by rising number, until their tasks are told.
    spaces: Vec<Arc<AddressSpace<M>>>,
}

/// A removal under way.
struct Removal<'a, M: Machine, E> {
    mm: &'a Arc<MmContext<M>>,
    env: &'a mut E,
    report: RemovalReport,
    map: Arc<DevPagemap>,
    mappings: Vec<Arc<Mapping<M>>>,
    /// The DAX device, between its death and the release.
    dead: Option<Dead>,
    /// When owners were asked there were registrations of it.
    has_registrations: bool,
    /// Nanoseconds and instructions of the present step that went into saying so, and are not the step's own.
    aside: (u64, u64),
}

impl<M: Machine, E: RemovalEnv<M>> Removal<'_, M, E> {
    fn step(&mut self, step: Step, going: &mut Going<M>) {
        let mut facts = Facts::default();
        let (ns, instructions) = (self.mm.machine.now_ns(), self.env.watch().instructions());
        self.aside = (0, 0);
        let refused = self.env.watch().begin(step).err();
        let problem = self.work(step, going, &mut facts).err().or(refused);
        let record = StepRecord {
            step,
            ns: self.mm.machine.now_ns() - ns - self.aside.0,
            instructions: self.env.watch().instructions().saturating_sub(instructions + self.aside.1),
            facts,
            problem,
        };
        self.env.watch().observe(&record);
        self.report.steps.push(record);
    }

    /// What is done in each step.
    fn work(&mut self, step: Step, going: &mut Going<M>, facts: &mut Facts) -> Result<(), Problem> {
        match step {
            Step::StopIo => self.stop_io(facts),
            Step::KillDax => self.kill_dax(going, facts),
            Step::Invalidate => self.invalidate(going, facts),
            Step::Shootdown => self.shoot_down(going, facts),
            Step::Drain => self.drain(going, facts),
            Step::FreeMetadata => self.free_metadata(facts),
            Step::UnmapDirectMap => self.unmap_direct_map(facts),
            Step::Release => self.release(),
        }
    }

    /// Adds what `work` costs to one of the report's sums.
    fn metered<R>(
        &mut self,
        sum: fn(&mut RemovalReport) -> &mut Cost,
        work: impl FnOnce(&Arc<MmContext<M>>) -> (ZapStats, R),
    ) -> R {
        let flushes = self.mm.shootdown.stats();
        let (ns, instructions) = (self.mm.machine.now_ns(), self.env.watch().instructions());
        let (zap, result) = work(self.mm);
        let cost = Cost {
            zap,
            instructions: self.env.watch().instructions().saturating_sub(instructions),
            ns: self.mm.machine.now_ns() - ns,
            flushes: self.mm.shootdown.stats().since(flushes),
        };
        sum(&mut self.report).add(cost);
        result
    }

    /// The sum for work by range.
    fn ranged_sum(&self) -> fn(&mut RemovalReport) -> &mut Cost {
        match self.report.method {
            Method::Ranged => |report| &mut report.cost,
            Method::PerFrame(_) => |report| &mut report.rest,
        }
    }

    fn stop_io(&mut self, facts: &mut Facts) -> Result<(), Problem> {
        facts.note("requests_waited_for", self.env.stop_io()?);
        Ok(())
    }

    fn kill_dax(&mut self, going: &mut Going<M>, facts: &mut Facts) -> Result<(), Problem> {
        facts.note("dax_devices", u64::from(going.live.is_some()));
        if let Some(live) = going.live.take() {
            let Self { mm, env, aside, report, .. } = self;
            let flags = match report.cause {
                Cause::Gone if !Mutant::GoneToldAsLeaving.is_on() => NotifyFlags::GONE,
                _ => NotifyFlags::PRE_REMOVE,
            };
            let mut observe = |phase, kill: &KillReport| {
                let (ns, instructions) = (mm.machine.now_ns(), env.watch().instructions());
                env.watch().phase(phase, kill);
                aside.0 += mm.machine.now_ns() - ns;
                aside.1 += env.watch().instructions().saturating_sub(instructions);
            };
            let (dead, kill) = kill_dax_as(live, flags, &mut || mm.machine.relax(), &mut observe);
            facts.note("holders_told", kill.answers.len() as u64);
            facts.note("holders_failed", kill.answers.iter().filter(|answer| answer.result.is_err()).count() as u64);
            facts.note("readers_waited_for", kill.readers.readers_found);
            facts.note("users", dead.device().nr_users());
            self.report.kill = Some(kill);
            self.dead = Some(dead);
        }
        // From here on the device's pages can only become fewer: no fault, no transfer makes metadata for another.
        self.mm.meta.kill(&self.map);
        // And no registration comes that is not asked for.
        let asked = self.ask(facts);
        // What is mapped keeps the file open, but not always the device: the third question is for a device without DAX,
        // and for files of a holder that has let go. It costs a look at a number for each file.
        self.report.idle = is_idle(self.dead.as_ref()) && asked == 0 && !self.is_mapped();
        facts.note("idle", u64::from(self.report.idle));
        Ok(())
    }

    /// Does anybody map a file over the device, whoever made it?
    fn is_mapped(&self) -> bool {
        let mut mapped = false;
        self.mm.for_each_mapping(&self.map, &mut |mapping| mapped |= mapping.nr_vmas() != 0);
        mapped
    }

    fn invalidate(&mut self, going: &mut Going<M>, facts: &mut Facts) -> Result<(), Problem> {
        let Some(gather) = going.gather.as_mut().filter(|_| !self.report.idle) else { return Ok(()) };
        if let Method::PerFrame(frames) = self.report.method {
            facts.note("frames_failed", frames.nr_pages());
            self.metered(|report| &mut report.cost, |mm| (fail_each_frame(mm, frames), ()));
        }
        let (map, mappings) = (Arc::clone(&self.map), core::mem::take(&mut self.mappings));
        let (mut extents, mut left) = (0, 0);
        let (mut users, mut spaces) = (Vec::new(), Vec::<Arc<AddressSpace<M>>>::new());
        self.metered(self.ranged_sum(), |mm| {
            // Who has lost something is remembered as long as there is memory for it; it is taken away in any case.
            if mm.machine.may_grow() {
                _ = users.try_reserve_exact(mappings.iter().map(|mapping| mapping.nr_vmas()).sum());
            }
            let mut found = |space: &Arc<AddressSpace<M>>, range| {
                extents += 1;
                let is_new = spaces.last().is_none_or(|last| !Arc::ptr_eq(last, space));
                if !has_room(&mm.machine, &mut users) || is_new && !has_room(&mm.machine, &mut spaces) {
                    return;
                }
                users.push(User::new(space, range));
                if is_new {
                    spaces.push(Arc::clone(space));
                }
            };
            // Offset 0, length all: the whole device, however many ranges it has.
            mappings.iter().for_each(|mapping| unmap_each(mapping, 0, u64::MAX, gather, &mut found));
            // And what a holder has left, whatever it has answered: nobody else would take it away.
            mm.for_each_mapping(&map, &mut |mapping| {
                let own = mappings.iter().any(|own| Arc::ptr_eq(own, mapping));
                if !own && mapping.nr_vmas() != 0 && !Mutant::LeftoversStay.is_on() {
                    unmap_leftovers(mapping, gather, &mut |space, range| {
                        left += 1;
                        found(space, range);
                    });
                }
            });
            (ZapStats::default(), ())
        });
        users.sort_unstable_by_key(|user| (user.space_id, user.range.start()));
        spaces.sort_unstable_by_key(|space| space.id());
        (self.report.users, going.spaces) = (users, spaces);
        self.name_tasks();
        self.report.users_not_named = extents - self.report.users.len() as u64;
        facts.note("mappings", mappings.len() as u64);
        facts.note("extents", extents);
        facts.note("left_by_holders", left);
        facts.note("extents_not_named", self.report.users_not_named);
        facts.note("address_spaces", self.report.nr_spaces() as u64);
        facts.note("tasks", self.report.nr_tasks);
        facts.note("entries_visited", gather.stats().entries_visited + self.report.cost.zap.entries_visited);
        Ok(())
    }

    /// Puts the tasks of these users into the report, as many as there is memory for.
    fn name_tasks(&mut self) {
        let Self { mm, env, report, .. } = self;
        env.watch().for_each_task(&mut |space_id, id, name| {
            if report.users.binary_search_by_key(&space_id, |user| user.space_id).is_err() {
                return;
            }
            report.nr_tasks += 1;
            if has_room(&mm.machine, &mut report.tasks)
                && let Some(task) = TaskFound::new(&mm.machine, space_id, id, name)
            {
                report.tasks.push(task);
            }
        });
    }

    fn shoot_down(&mut self, going: &mut Going<M>, facts: &mut Facts) -> Result<(), Problem> {
        let Some(gather) = &mut going.gather else { return Ok(()) };
        let before = self.mm.shootdown.stats();
        self.metered(self.ranged_sum(), |_| {
            gather.shoot_down();
            (ZapStats::default(), ())
        });
        let flushes = self.mm.shootdown.stats().since(before);
        facts.note("rounds", gather.stats().rounds);
        facts.note("ipis", gather.stats().ipis);
        facts.note("page_flushes", flushes.page_flushes);
        facts.note("full_flushes", flushes.full_flushes);
        Ok(())
    }

    fn drain(&mut self, going: &mut Going<M>, facts: &mut Facts) -> Result<(), Problem> {
        if let Some(gather) = going.gather.take() {
            self.metered(self.ranged_sum(), |_| (gather.finish(), ()));
        }
        let spaces = core::mem::take(&mut going.spaces);
        for users in self.report.users.chunk_by(|one, next| one.space_id == next.space_id) {
            let id = users.first().map(|user| user.space_id);
            if let Ok(nth) = spaces.binary_search_by_key(&id, |space| Some(space.id())) {
                users.iter().for_each(|user| self.env.watch().lost(&spaces[nth], user.range));
            }
        }
        drop(spaces);
        let zap = match self.report.method {
            Method::Ranged => self.report.cost.zap,
            Method::PerFrame(_) => self.report.rest.zap,
        };
        facts.note("leaves", zap.leaves);
        facts.note("pages", zap.nr_pages);
        facts.note("table_pages", zap.table_pages);
        self.take_back(facts);
        self.wait_for_pins();
        let Drained { found, ns, .. } = &self.report.drained;
        facts.note("folios_waited_for", found.folios);
        facts.note("pins_waited_for", found.pins);
        facts.note("wait_ns", *ns);
        Ok(())
    }

    fn free_metadata(&mut self, facts: &mut Facts) -> Result<(), Problem> {
        facts.note("ranges", self.map.ranges().len() as u64);
        self.mm.meta.unregister(&self.map).map_err(|error| Problem(format!("{error}")))
    }

    fn unmap_direct_map(&mut self, facts: &mut Facts) -> Result<(), Problem> {
        facts.note("leaves", self.env.unmap_direct_map()?);
        Ok(())
    }

    fn release(&mut self) -> Result<(), Problem> {
        drop(self.dead.take());
        self.env.release()
    }
}

impl From<&str> for Problem {
    fn from(text: &str) -> Self {
        Self(text.to_string())
    }
}
