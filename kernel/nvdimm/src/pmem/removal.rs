//! Removing a pmem device: [`dax::removal::remove`] with the driver's own parts in its steps.

use alloc::vec::Vec;

use dax::device::DaxDevice;
use dax::kill::{KillReport, Phase};
use dax::removal::{self, Method, Problem, RemovalEnv, RemovalReport, StepRecord, Target, Waiting};
use mm::addr::VirtRange;
use mm::ledger::Kind;
use mm::machine::Machine;
use mm::region::{RegionInfo, TakeBack};
use mm::space::{AddressSpace, Mapping};
use mm::sync::Arc;
use mm::world::Mm;

use super::block::BlockDevice;
use super::guards::{Announced, DirectMapping, Queue};
use super::registry::Entry;
use super::{Parts, PmemDevice};
use crate::claim::Claim;

/// What the kernel wants to hear of a removal. See [`RemovalEnv`], whose methods these are.
pub trait RemovalWatch<M: Machine> {
    /// A step is about to begin; `Err` makes its first attempt fail.
    ///
    /// # Errors
    /// What is recorded.
    fn begin(&mut self, step: removal::Step) -> Result<(), Problem> {
        let _ = step;
        Ok(())
    }
    /// The kill of the DAX device has come so far.
    fn phase(&mut self, phase: Phase, kill: &KillReport) {
        let _ = (phase, kill);
    }
    /// Calls `each` with every task that has an address space: the space's number, the task's, and its name.
    fn for_each_task(&mut self, each: &mut dyn FnMut(u64, u64, &str)) {
        let _ = each;
    }
    /// The tasks of `space` have lost `range`.
    fn lost(&mut self, space: &Arc<AddressSpace<M>>, range: VirtRange) {
        let _ = (space, range);
    }
    /// The owner of a registration is about to be asked to give it back.
    fn asked(&mut self, region: &RegionInfo<'_>) {
        let _ = region;
    }
    /// A registration was revoked, or one of its uses takes long.
    fn taking_back(&mut self, told: &TakeBack<'_>) {
        let _ = told;
    }
    /// The removal waits for pins.
    fn waiting(&mut self, waiting: &Waiting) {
        let _ = waiting;
    }
    /// A step is done.
    fn observe(&mut self, record: &StepRecord) {
        let _ = record;
    }
    /// Instructions that this CPU has executed, where they are counted.
    fn instructions(&mut self) -> u64 {
        0
    }
}

/// Hears nothing.
impl<M: Machine> RemovalWatch<M> for () {}

impl<M: Machine> PmemDevice<M> {
    /// Removes the device from under everybody who uses it. `mappings` is everything through which its pages may be
    /// mapped, such as its device-dax file.
    ///
    /// It cannot fail; what a step could not do is in the report. The conditions of [`removal::remove`] hold.
    pub fn remove<W: RemovalWatch<M>>(
        self,
        mappings: Vec<Arc<Mapping<M>>>,
        method: Method,
        watch: &mut W,
    ) -> RemovalReport {
        let Parts { announced, disk, host, queue, dax, pagemap, mappings: direct, claims } = self.into_parts();
        let mm = Arc::clone(pagemap.mm());
        let target = Target { name: announced.name().into(), map: Arc::clone(pagemap.map()), dax, mappings };
        let mut env = Env { mm: &mm, disk: Some(disk), host, queue, direct, announced: Some(announced), claims, watch };
        // `pagemap` outlives the removal, which has unregistered it by then.
        removal::remove(&mm, target, method, &mut env)
    }
}

struct Env<'a, M: Machine, W> {
    mm: &'a Arc<Mm<M>>,
    /// What finds the block device by its name, and the DAX device.
    disk: Option<Entry<BlockDevice<M>>>,
    host: Option<Entry<DaxDevice>>,
    queue: Queue<M>,
    direct: Vec<DirectMapping>,
    announced: Option<Announced>,
    claims: Vec<Claim>,
    watch: &'a mut W,
}

impl<M: Machine, W: RemovalWatch<M>> RemovalEnv<M> for Env<'_, M, W> {
    fn begin(&mut self, step: removal::Step) -> Result<(), Problem> {
        self.watch.begin(step)
    }
    fn stop_io(&mut self) -> Result<u64, Problem> {
        (self.disk, self.host) = (None, None);
        Ok(self.queue.stop(|| self.mm.machine.relax()).readers_found)
    }
    fn phase(&mut self, phase: Phase, kill: &KillReport) {
        self.watch.phase(phase, kill);
    }
    fn for_each_task(&mut self, each: &mut dyn FnMut(u64, u64, &str)) {
        self.watch.for_each_task(each);
    }
    fn lost(&mut self, space: &Arc<AddressSpace<M>>, range: VirtRange) {
        self.watch.lost(space, range);
    }
    fn asked(&mut self, region: &RegionInfo<'_>) {
        self.watch.asked(region);
    }
    fn taking_back(&mut self, told: &TakeBack<'_>) {
        self.watch.taking_back(told);
    }
    fn waiting(&mut self, waiting: &Waiting) {
        self.watch.waiting(waiting);
    }
    fn unmap_direct_map(&mut self) -> Result<u64, Problem> {
        // The kernel charges the leaves of its own mapping; what other devices do meanwhile is not told apart.
        let before = self.mm.ledger.count(Kind::DirectMapLeaves);
        self.direct.clear();
        Ok(u64::try_from(before - self.mm.ledger.count(Kind::DirectMapLeaves)).unwrap_or(0))
    }
    fn release(&mut self) -> Result<(), Problem> {
        self.claims.clear();
        self.announced = None;
        Ok(())
    }
    fn observe(&mut self, record: &StepRecord) {
        self.watch.observe(record);
    }
    fn instructions(&mut self) -> u64 {
        self.watch.instructions()
    }
}
