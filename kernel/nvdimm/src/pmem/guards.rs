//! The things that a pmem device is made of. Each undoes itself when it is dropped.

use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};

use dax::srcu::GracePeriod;
use mm::addr::PfnRange;
use mm::context::MmContext;
use mm::machine::Machine;
use mm::meta::{RegisterError, UnregisterError};
use mm::pagemap::DevPagemap;
use mm::sync::{Arc, Mutex};

use super::block::BlockDevice;
use super::memory::{MapFailed, PmemHost, PmemMemory};

/// A range in the kernel's direct map.
#[must_use = "the range is unmapped when this is dropped"]
pub struct DirectMapping {
    host: Arc<dyn PmemHost>,
    range: PfnRange,
    memory: Arc<dyn PmemMemory>,
}

impl DirectMapping {
    pub(super) fn new(host: &Arc<dyn PmemHost>, range: PfnRange) -> Result<Self, MapFailed> {
        let memory = host.map(range)?;
        Ok(Self { host: Arc::clone(host), range, memory })
    }
    /// What is mapped.
    pub fn range(&self) -> PfnRange {
        self.range
    }
    pub(super) fn memory(&self) -> &Arc<dyn PmemMemory> {
        &self.memory
    }
}

impl Drop for DirectMapping {
    fn drop(&mut self) {
        self.host.unmap(self.range);
    }
}

/// A page map that the store of page metadata knows.
#[must_use = "the page map is unregistered when this is dropped"]
pub struct RegisteredMap<M: Machine> {
    mm: Arc<MmContext<M>>,
    map: Arc<DevPagemap>,
}

impl<M: Machine> RegisteredMap<M> {
    pub(super) fn new(mm: &Arc<MmContext<M>>, map: Arc<DevPagemap>) -> Result<Self, RegisterError> {
        mm.meta.register(&map)?;
        Ok(Self { mm: Arc::clone(mm), map })
    }
    pub(super) fn mm(&self) -> &Arc<MmContext<M>> {
        &self.mm
    }
    /// The page map.
    pub fn map(&self) -> &Arc<DevPagemap> {
        &self.map
    }
}

impl<M: Machine> Drop for RegisteredMap<M> {
    /// # Panics
    /// If a page of the device is still in use: whoever takes a device apart unmaps it and waits for its pins first,
    /// and what comes next would take the memory away under the user's feet.
    fn drop(&mut self) {
        self.mm.meta.kill(&self.map);
        match self.mm.meta.unregister(&self.map) {
            // A removal may have unregistered it already.
            Ok(()) | Err(UnregisterError::NotRegistered) => {}
            Err(error @ UnregisterError::Busy(_)) => panic!("pmem: page map dropped while in use: {error}"),
        }
    }
}

/// A block device that takes requests for as long as this lives.
#[must_use = "the device takes no more requests when this is dropped"]
pub struct Queue<M: Machine> {
    device: Arc<BlockDevice<M>>,
}

impl<M: Machine> Queue<M> {
    pub(super) fn new(device: BlockDevice<M>) -> Self {
        Self { device: Arc::new(device) }
    }
    /// The device.
    pub fn device(&self) -> &Arc<BlockDevice<M>> {
        &self.device
    }
    /// Stops new requests and waits for those under way. `relax` is called in every round of waiting.
    pub fn stop(&self, relax: impl FnMut()) -> GracePeriod {
        self.device.stop(relax)
    }
}

impl<M: Machine> Drop for Queue<M> {
    fn drop(&mut self) {
        if self.device.is_open() {
            self.device.stop(core::hint::spin_loop);
        }
    }
}

/// The names of all devices that are attached.
#[derive(Debug, Default)]
pub struct Names {
    taken: Mutex<BTreeSet<String>>,
}

impl Names {
    /// Whether a device of this name is attached.
    pub fn is_taken(&self, name: &str) -> bool {
        self.taken.lock().contains(name)
    }
    /// Takes a name; `None` where it is taken.
    pub(super) fn take(self: &Arc<Self>, name: &str) -> Option<Announced> {
        self.taken
            .lock()
            .insert(name.to_string())
            .then(|| Announced { names: Arc::clone(self), name: name.to_string() })
    }
}

/// A device that can be found by its name.
#[must_use = "the name is free again when this is dropped"]
#[derive(Debug)]
pub struct Announced {
    names: Arc<Names>,
    name: String,
}

impl Announced {
    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.names.taken.lock().remove(&self.name);
    }
}
