//! The pmem driver: from a range of persistent memory to an attached device.
//!
//! # Protocol
//! Attaching is a row of steps. Each makes one thing, which undoes itself when it is dropped, and they are dropped
//! in the opposite order; so wherever the row ends early, nothing is left over.
//!
//! | step | makes | undone by |
//! |---|---|---|
//! | check | nothing: refuses a bad name, a bad range, what is not supported | |
//! | claim | a [`Claim`] on the frames: nobody else uses them | giving it back |
//! | map | a [`DirectMapping`]: the kernel can read and write them, and looks for the device's own [`area`] | unmapping, with a shootdown |
//! | page map | a [`RegisteredMap`]: their pages can have metadata | killing and forgetting it |
//! | queue | a [`Queue`]: sectors can be read and written | refusing and waiting |
//! | alloc_dax | a live DAX device, or none where the CPU cannot have one | killing it |
//! | add_host | an [`Entry`]: the DAX device belongs to the block device of this name | taking it back |
//! | register_block | an [`Entry`]: the block device | taking it back |
//! | bad blocks | nothing of its own: the list in the area is read, and the one that the caller knows | |
//! | announce | an [`Announced`] name: others can find the device | taking the name back |
//!
//! What can refuse cheaply comes before what is expensive to make. The DAX device belongs to the pmem device before
//! it is added to its host, so that an error right there finds the real object and unwinds it. What has a name is found
//! ([`PmemDriver::find_block`], [`PmemDriver::find_dax`]) only once it is announced: nobody reads a sector before its
//! driver knows that it is lost.
//!
//! Removal ([`PmemDevice::remove`]) takes a device apart and drops the parts one by one, each after what has to be
//! done before it: stop requests, kill the DAX device, take the mappings away, shoot down, wait for pins. The order
//! of the fields of [`Parts`] is the order in which they may go.
//!
//! Linux: `drivers/nvdimm/pmem.c`, `pmem_attach_disk`.

pub mod area;
pub mod badblocks;
pub mod block;
mod guards;
mod look;
pub mod memory;
mod registry;
pub mod removal;
#[cfg(test)]
mod tests;

pub use guards::{Announced, DirectMapping, Names, Queue, RegisteredMap};
pub use registry::{Entry, Registry};

use alloc::vec::Vec;
use core::fmt;

use dax::device::{DataCache, DaxDevice, DaxError, Live, alloc_dax, check_supported};
use mm::addr::{Pfn, PfnRange};
use mm::context::MmContext;
use mm::machine::Machine;
use mm::meta::RegisterError;
use mm::pagemap::{DevPagemap, MemoryKind, PagemapError};
use mm::sync::Arc;

use self::area::{Area, AreaError};
use self::badblocks::SectorRun;
use self::block::{BlockDevice, BlockError};
use self::memory::{MapFailed, PmemHost};
use crate::claim::{Claim, Claims, Taken};
use crate::nfit::DeviceFlags;

/// Longest name of a device, in bytes.
pub const MAX_NAME_BYTES: usize = 32;

/// The steps of attaching, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Refuse what can be refused cheaply.
    Check,
    /// Claim the frames.
    Claim,
    /// Map them for the kernel.
    Map,
    /// Register the page map.
    PageMap,
    /// Set up the block path.
    Queue,
    /// Make the DAX device.
    AllocDax,
    /// Add it to its host: the block device of this name.
    AddHost,
    /// Register the block device.
    RegisterBlock,
    /// Take in the list of bad blocks.
    BadBlocks,
    /// Let others find the device.
    Announce,
}

impl Step {
    /// All steps, in their order.
    pub const ALL: [Self; 10] = [
        Self::Check,
        Self::Claim,
        Self::Map,
        Self::PageMap,
        Self::Queue,
        Self::AllocDax,
        Self::AddHost,
        Self::RegisterBlock,
        Self::BadBlocks,
        Self::Announce,
    ];

    /// The word for machine-readable lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Claim => "claim",
            Self::Map => "map",
            Self::PageMap => "page_map",
            Self::Queue => "queue",
            Self::AllocDax => "alloc_dax",
            Self::AddHost => "add_host",
            Self::RegisterBlock => "register_block",
            Self::BadBlocks => "bad_blocks",
            Self::Announce => "announce",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a step of attaching failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttachError {
    /// The name is empty, too long, or not of lower-case letters, digits, `-`, `_` and `.`.
    BadName,
    /// A device of this name is attached.
    NameTaken,
    /// The frames are in use.
    Taken(Taken),
    /// The kernel could not map the frames.
    Map(MapFailed),
    /// The device has no range, or two that share a frame.
    Pagemap(PagemapError),
    /// The store of page metadata refused the page map.
    Register(RegisterError),
    /// A bad block is not on the device.
    BadBlock(BlockError),
    /// There is no DAX device, for a reason other than the CPU's cache.
    Dax(DaxError),
    /// A fault was injected.
    Injected(Step),
    /// The memory has left meanwhile: what the steps before have found came from nowhere.
    Gone,
    /// Memory ran out during the step.
    OutOfMemory,
    /// The area for the device's own records cannot be made.
    Area(AreaError),
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadName => write!(f, "a name is 1 to {MAX_NAME_BYTES} lower-case letters, digits, '-', '_' and '.'"),
            Self::NameTaken => f.write_str("a device of this name is attached already"),
            Self::Taken(error) => error.fmt(f),
            Self::Map(error) => error.fmt(f),
            Self::Pagemap(error) => error.fmt(f),
            Self::Register(error) => error.fmt(f),
            Self::BadBlock(error) => write!(f, "list of bad blocks: {error}"),
            Self::Dax(error) => error.fmt(f),
            Self::Injected(_) => f.write_str("it was made to fail"),
            Self::Gone => f.write_str("the memory has left"),
            Self::OutOfMemory => f.write_str("memory ran out"),
            Self::Area(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for AttachError {}

macro_rules! from_error {
    ($($error:ty => $variant:ident,)*) => {
        $(impl From<$error> for AttachError {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        })*
    };
}

from_error! {
    Taken => Taken,
    MapFailed => Map,
    PagemapError => Pagemap,
    RegisterError => Register,
    BlockError => BadBlock,
    DaxError => Dax,
}

/// What is to be attached.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    /// The device's name.
    pub name: &'a str,
    /// Its frames, in any order, disjoint. Sectors and offsets run through them from the lowest frame up.
    pub ranges: &'a [PfnRange],
    /// What the memory is used for.
    pub kind: MemoryKind,
    /// Sectors that are known to be lost.
    pub bad_blocks: &'a [SectorRun],
    /// Why the memory takes no writes; `None` where it takes them.
    pub read_only: Option<DeviceFlags>,
}

/// Called before each step; `Err` ends the attach. So the kernel reports the steps, injects faults, and says that
/// memory has run out.
pub type Supervisor<'a> = &'a mut dyn FnMut(Step) -> Result<(), Refused>;

/// Why an attach is not to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The step that would begin now is to fail.
    Injected,
    /// The step that has just ended ran out of memory.
    OutOfMemory,
}

/// The driver: what all its devices share.
pub struct PmemDriver<M: Machine> {
    mm: Arc<MmContext<M>>,
    host: Arc<dyn PmemHost>,
    claims: Arc<Claims>,
    names: Arc<Names>,
    hosts: Arc<Registry<DaxDevice>>,
    disks: Arc<Registry<BlockDevice<M>>>,
    cache: DataCache,
}

impl<M: Machine> PmemDriver<M> {
    /// A driver that maps through `host`, on a CPU whose data cache is as `cache` says.
    pub fn new(mm: &Arc<MmContext<M>>, host: Arc<dyn PmemHost>, cache: DataCache) -> Self {
        let claims = Claims::new(&mm.ledger);
        let (names, hosts, disks) = (Arc::default(), Arc::default(), Arc::default());
        Self { mm: Arc::clone(mm), host, claims, names, hosts, disks, cache }
    }

    /// A driver for the same machine, with the same names, claims and cache, which maps through another `host`: for
    /// devices of another provider.
    pub fn sibling(&self, host: Arc<dyn PmemHost>) -> Self {
        let (mm, claims, names) = (Arc::clone(&self.mm), Arc::clone(&self.claims), Arc::clone(&self.names));
        let (hosts, disks) = (Arc::clone(&self.hosts), Arc::clone(&self.disks));
        Self { mm, host, claims, names, hosts, disks, cache: self.cache }
    }

    /// Who has claimed which frames.
    pub fn claims(&self) -> &Arc<Claims> {
        &self.claims
    }

    /// The block device of this name, if a device of it is attached and not leaving.
    pub fn find_block(&self, name: &str) -> Option<Arc<BlockDevice<M>>> {
        self.names.is_taken(name).then(|| self.disks.find(name)).flatten()
    }

    /// The DAX device that the block device of this name has, as for [`find_block`](Self::find_block).
    pub fn find_dax(&self, name: &str) -> Option<Arc<DaxDevice>> {
        self.names.is_taken(name).then(|| self.hosts.find(name)).flatten()
    }

    /// Attaches a device. Work does not grow with its size, but for the kernel's mapping of it.
    ///
    /// # Errors
    /// The step that failed and why; everything that the steps before it made has been undone.
    pub fn attach(
        &self,
        config: &Config<'_>,
        supervisor: Supervisor<'_>,
    ) -> Result<PmemDevice<M>, (Step, AttachError)> {
        let mut step = Step::Check;
        self.steps(config, supervisor, &mut step).map_err(|error| (step, error))
    }

    /// The steps. Each local variable undoes itself, the last one first, if a later step fails.
    fn steps(
        &self,
        config: &Config<'_>,
        supervisor: Supervisor<'_>,
        at: &mut Step,
    ) -> Result<PmemDevice<M>, AttachError> {
        let mut begin = |step| {
            match supervisor(step) {
                // It was the step before this one.
                Err(Refused::OutOfMemory) => return Err(AttachError::OutOfMemory),
                Err(Refused::Injected) => *at = step,
                Ok(()) => {
                    *at = step;
                    return Ok(());
                }
            }
            Err(AttachError::Injected(step))
        };
        begin(Step::Check)?;
        let (map, with_dax) = self.check(config)?;
        begin(Step::Claim)?;
        let claims: Vec<_> = claim_all(&self.claims, config)?;
        begin(Step::Map)?;
        let ranges = map.ranges().iter();
        let mappings: Vec<_> = ranges.map(|range| DirectMapping::new(&self.host, *range)).collect::<Result<_, _>>()?;
        // What the device has for its own records is no part of it for anybody else.
        let area = Area::find(&mappings);
        begin(Step::PageMap)?;
        let map = match &area {
            Some(_) => page_map(config, area::without(map.ranges()))?,
            None => map,
        };
        let registered = RegisteredMap::new(&self.mm, Arc::clone(&map))?;
        begin(Step::Queue)?;
        let memory = mappings.iter().map(|mapping| Arc::clone(mapping.memory()));
        let segments = map.ranges().iter().copied().zip(memory);
        let queue = Queue::new(BlockDevice::new(&self.mm, &map, segments, area).read_only(config.read_only));
        begin(Step::AllocDax)?;
        let dax = if with_dax { Some(alloc_dax(config.name, &map, self.cache, &self.mm.ledger)?) } else { None };
        begin(Step::AddHost)?;
        let add_host = |dax: &Live| self.hosts.add(config.name, dax.device()).ok_or(AttachError::NameTaken);
        let host = dax.as_ref().map(add_host).transpose()?;
        begin(Step::RegisterBlock)?;
        let disk = self.disks.add(config.name, queue.device()).ok_or(AttachError::NameTaken)?;
        begin(Step::BadBlocks)?;
        queue.device().load_bad_blocks(config.bad_blocks)?;
        begin(Step::Announce)?;
        // What was found in it so far, a list of bad blocks or none, counts from here on.
        if !queue.device().is_there() {
            return Err(AttachError::Gone);
        }
        let announced = self.names.take(config.name).ok_or(AttachError::NameTaken)?;
        let parts = Parts { announced, disk, host, queue, dax, pagemap: registered, mappings, claims };
        Ok(PmemDevice { parts })
    }

    /// Makes the area in which a device keeps its list of bad blocks, in its last bytes. The device is not attached;
    /// from its next attach on it is smaller by that much. What was in those bytes is lost.
    ///
    /// # Errors
    /// The frames are in use, or cannot be mapped; or see [`AreaError`].
    pub fn create_area(&self, name: &str, range: PfnRange) -> Result<(), AttachError> {
        let _claim = self.claims.claim(range, name)?;
        let mapping = DirectMapping::new(&self.host, range)?;
        Area::create(&[mapping]).map_err(AttachError::Area)
    }

    /// Gives the area up: from its next attach on the device has those bytes again, which are zero then.
    ///
    /// # Errors
    /// As for [`create_area`](Self::create_area).
    pub fn destroy_area(&self, name: &str, range: PfnRange) -> Result<(), AttachError> {
        let _claim = self.claims.claim(range, name)?;
        let mapping = DirectMapping::new(&self.host, range)?;
        Area::destroy(&[mapping]).map_err(AttachError::Area)
    }

    /// Refuses what can be refused before anything is made, and says whether there will be a DAX device.
    fn check(&self, config: &Config<'_>) -> Result<(Arc<DevPagemap>, bool), AttachError> {
        let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-_.".contains(&c);
        if !(1..=MAX_NAME_BYTES).contains(&config.name.len()) || !config.name.bytes().all(allowed) {
            return Err(AttachError::BadName);
        }
        if self.names.is_taken(config.name) {
            return Err(AttachError::NameTaken);
        }
        let with_dax = match check_supported(config.kind, self.cache) {
            Ok(()) => true,
            // The block path does not need it.
            Err(DaxError::NotSupported) => false,
            Err(error) => return Err(error.into()),
        };
        Ok((page_map(config, config.ranges.iter().copied())?, with_dax))
    }
}

fn page_map(config: &Config<'_>, ranges: impl IntoIterator<Item = PfnRange>) -> Result<Arc<DevPagemap>, PagemapError> {
    match config.read_only {
        None => DevPagemap::new(config.kind, ranges),
        Some(_) => DevPagemap::read_only(config.kind, ranges),
    }
}

fn claim_all(claims: &Arc<Claims>, config: &Config<'_>) -> Result<Vec<Claim>, Taken> {
    config.ranges.iter().map(|range| claims.claim(*range, config.name)).collect()
}

/// The parts of a device, in the order in which they may go. Dropping all of them at once is right for a device
/// that nobody uses.
pub struct Parts<M: Machine> {
    /// Its name.
    pub announced: Announced,
    /// Its block device's place among those that can be found.
    pub disk: Entry<BlockDevice<M>>,
    /// The same for its DAX device, if it has one.
    pub host: Option<Entry<DaxDevice>>,
    /// Its block path. Stops when dropped.
    pub queue: Queue<M>,
    /// Its DAX device, if it has one. Dies when dropped.
    pub dax: Option<Live>,
    /// Its page map. No page may be in use when it is dropped.
    pub pagemap: RegisteredMap<M>,
    /// The kernel's mapping of it, range by range.
    pub mappings: Vec<DirectMapping>,
    /// Its frames.
    pub claims: Vec<Claim>,
}

/// An attached device. Dropping it detaches it, which is allowed while nobody has a page of it in use.
#[must_use = "the device is detached when this is dropped"]
pub struct PmemDevice<M: Machine> {
    parts: Parts<M>,
}

impl<M: Machine> fmt::Debug for PmemDevice<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PmemDevice").field("name", &self.name()).finish_non_exhaustive()
    }
}

impl<M: Machine> PmemDevice<M> {
    /// The name.
    pub fn name(&self) -> &str {
        self.parts.announced.name()
    }
    /// The block path, which works with and without DAX.
    pub fn block(&self) -> &Arc<BlockDevice<M>> {
        self.parts.queue.device()
    }
    /// The DAX device; `None` where the CPU cannot have one for this kind of memory.
    pub fn dax(&self) -> Option<&Arc<DaxDevice>> {
        self.parts.dax.as_ref().map(Live::device)
    }
    /// The page map.
    pub fn pagemap(&self) -> &Arc<DevPagemap> {
        self.parts.pagemap.map()
    }
    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.block().nr_sectors() * block::SECTOR_BYTES
    }
    /// Takes the device apart, for its removal.
    pub fn into_parts(self) -> Parts<M> {
        self.parts
    }
}

/// The frames of a range that the NFIT reports, whose ends are multiples of the page size.
///
/// `None` for a range that is empty or goes beyond 52 bits, which the parser never hands out.
#[must_use]
pub fn frames_of(range: &crate::nfit::PersistentRange) -> Option<PfnRange> {
    let page = crate::nfit::PAGE_BYTES;
    PfnRange::new(Pfn::new(range.base / page), range.len_bytes / page)
}
