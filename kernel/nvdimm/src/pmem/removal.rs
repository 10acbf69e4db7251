//! Removing a pmem device: [`dax::removal::remove`] with the driver's own parts in its steps.

use alloc::vec::Vec;

use dax::device::DaxDevice;
use dax::removal::{self, Method, Problem, RemovalEnv, RemovalReport, RemovalWatch, Target};
use mm::context::MmContext;
use mm::ledger::Kind;
use mm::machine::Machine;
use mm::space::Mapping;
use mm::sync::Arc;

use super::block::BlockDevice;
use super::guards::{Announced, DirectMapping, Queue};
use super::registry::Entry;
use super::{Parts, PmemDevice};
use crate::claim::Claim;

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
    mm: &'a Arc<MmContext<M>>,
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
    type Watch = W;
    fn watch(&mut self) -> &mut W {
        self.watch
    }
    fn stop_io(&mut self) -> Result<u64, Problem> {
        (self.disk, self.host) = (None, None);
        Ok(self.queue.stop(|| self.mm.machine.relax()).readers_found)
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
}
