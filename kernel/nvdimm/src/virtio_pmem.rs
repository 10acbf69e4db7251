//! virtio-pmem: persistent memory that a hypervisor lends, as a second provider beside the pmem driver's NVDIMMs.
//!
//! The memory is ordinary memory to the guest's CPUs; its contents are a file of the host, which the host keeps in its
//! page cache. So writing back cache lines is not enough: stores last when the *host* has written its file, and the
//! guest asks for that by a **flush request** on the device's only queue. Here is what is the same on every kernel:
//! the region's checks, the request and its answer, and what an error means. The queue itself is a
//! [`RequestQueue`] that the kernel supplies.
//!
//! # Errors of a flush
//! A host that could not write its file says so *once*: it may count the pages as written afterwards, so that the next
//! flush succeeds although data is lost. After the first error nothing that this device says about durability is worth
//! anything. So the error stays: every later write and flush of the device answers it too
//! ([`BlockError::NotDurable`](crate::pmem::block::BlockError::NotDurable)), until the device is removed and attached
//! again, by whoever has looked after the data. Reading goes on.
//!
//! Virtio 1.2 §5.19. Linux: `drivers/nvdimm/virtio_pmem.c`, `nd_virtio.c`.

use core::fmt;

use mm::addr::{Pfn, PfnRange};
use mm::machine::Machine;
use mm::sync::{Arc, Mutex};

use crate::nfit::{Limits, PAGE_BYTES, Taken};
use crate::pmem::PmemDriver;
use crate::pmem::memory::{FlushError, MapFailed, MediaError, PmemHost, PmemMemory};

/// The virtio device number.
pub const DEVICE_ID: u16 = 27;
/// The number of the only queue.
pub const REQUEST_QUEUE: u16 = 0;
/// The request: a little-endian 32-bit type, of which there is one, `FLUSH`.
const FLUSH: [u8; 4] = 0_u32.to_le_bytes();

/// What the device's configuration space says: where its memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Physical address of the first byte.
    pub start: u64,
    /// Length in bytes.
    pub len_bytes: u64,
}

/// Why a region cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionError {
    /// It has no byte.
    Empty,
    /// An end is not a multiple of the page size.
    Misaligned,
    /// Its end is beyond 64 bits, or beyond the CPU's physical addresses.
    Unreachable {
        /// How many address bits the CPU has.
        phys_bits: u8,
    },
    /// Something else is there.
    Overlaps(Taken),
}

impl fmt::Display for RegionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("its length is zero"),
            Self::Misaligned => write!(f, "its ends are not multiples of {PAGE_BYTES} bytes"),
            Self::Unreachable { phys_bits } => write!(f, "its end is beyond the CPU's {phys_bits} address bits"),
            Self::Overlaps(other) => write!(f, "it overlaps {other}"),
        }
    }
}

impl core::error::Error for RegionError {}

impl Region {
    /// The region, from the first 16 bytes of the configuration space as little-endian words.
    #[must_use]
    pub fn from_words(words: [u32; 4]) -> Self {
        let [start_low, start_high, len_low, len_high] = words.map(u64::from);
        Self { start: start_high << 32 | start_low, len_bytes: len_high << 32 | len_low }
    }

    /// Its frames, if it can be used.
    ///
    /// # Errors
    /// [`RegionError`].
    pub fn frames(&self, limits: Limits<'_>) -> Result<PfnRange, RegionError> {
        let unreachable = RegionError::Unreachable { phys_bits: limits.phys_bits };
        if self.len_bytes == 0 {
            return Err(RegionError::Empty);
        }
        if !(self.start | self.len_bytes).is_multiple_of(PAGE_BYTES) {
            return Err(RegionError::Misaligned);
        }
        let end = self.start.checked_add(self.len_bytes).ok_or(unreachable)?;
        if end > 1 << limits.phys_bits.min(52) {
            return Err(unreachable);
        }
        if let Some(other) = limits.taken.iter().find(|other| other.range.base < end && self.start < other.range.end())
        {
            return Err(RegionError::Overlaps(*other));
        }
        PfnRange::new(Pfn::new(self.start / PAGE_BYTES), self.len_bytes / PAGE_BYTES).ok_or(unreachable)
    }
}

/// The device's queue, as the kernel reaches it.
pub trait RequestQueue: Send + Sync {
    /// Makes the queue ready, from whatever state the device is in.
    ///
    /// # Errors
    /// [`FlushError`], and the queue is as after [`stop`](Self::stop) then.
    fn start(&self) -> Result<(), FlushError>;

    /// Takes the queue away: afterwards the device touches no memory of the kernel's own.
    fn stop(&self);

    /// Sends a request and waits for the answer; says how many bytes of it the device wrote. Callers that come at the
    /// same time are served one after the other.
    ///
    /// # Errors
    /// [`FlushError::Gone`] where there is no device any more, or the queue was not started;
    /// [`FlushError::NoAnswer`] where none came in time.
    fn transact(&self, request: &[u8; 4], answer: &mut [u8; 4]) -> Result<usize, FlushError>;
}

/// A queue that is started, until this is dropped.
struct Running(Arc<dyn RequestQueue>);

impl Running {
    fn start(queue: &Arc<dyn RequestQueue>) -> Result<Self, FlushError> {
        queue.start()?;
        Ok(Self(Arc::clone(queue)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// One device's memory: that of the kernel below, and the request that makes it last.
struct Lent {
    memory: Arc<dyn PmemMemory>,
    queue: Arc<dyn RequestQueue>,
    /// The first error of a flush.
    failed: Mutex<Option<FlushError>>,
}

impl Lent {
    fn request_flush(&self) -> Result<(), FlushError> {
        let mut answer = [0; 4];
        let written = self.queue.transact(&FLUSH, &mut answer)?;
        if written < answer.len() {
            return Err(FlushError::ShortAnswer { bytes: written });
        }
        match u32::from_le_bytes(answer) {
            0 => Ok(()),
            code => Err(FlushError::Refused { code }),
        }
    }
}

impl PmemMemory for Lent {
    fn read(&self, offset_bytes: u64, into: &mut [u8]) -> Result<(), MediaError> {
        self.memory.read(offset_bytes, into)
    }
    fn write(&self, offset_bytes: u64, from: &[u8]) -> Result<(), MediaError> {
        self.memory.write(offset_bytes, from)
    }
    fn fence(&self) -> Result<(), FlushError> {
        // What this CPU has stored is in memory first, for a host that writes it out from there.
        self.memory.fence()?;
        if let Some(error) = *self.failed.lock() {
            return Err(error);
        }
        let result = self.request_flush();
        let mut failed = self.failed.lock();
        // Another CPU's flush may have failed meanwhile. The host says so to one of the two, and both have lost.
        if failed.is_none() {
            *failed = result.err();
        }
        failed.map_or(Ok(()), Err)
    }
}

/// The kernel, for one virtio-pmem device: maps as the kernel does, and starts the queue with it.
struct LendingHost {
    kernel: Arc<dyn PmemHost>,
    queue: Arc<dyn RequestQueue>,
    running: Mutex<Option<Running>>,
}

impl PmemHost for LendingHost {
    fn map(&self, range: PfnRange) -> Result<Arc<dyn PmemMemory>, MapFailed> {
        assert!(self.running.lock().is_none(), "a virtio-pmem device has one range, and it is mapped");
        // First what is cheap and can refuse.
        let running = Running::start(&self.queue).map_err(MapFailed::NoFlush)?;
        let memory = self.kernel.map(range)?;
        *self.running.lock() = Some(running);
        Ok(Arc::new(Lent { memory, queue: Arc::clone(&self.queue), failed: Mutex::new(None) }))
    }
    fn unmap(&self, range: PfnRange) {
        self.kernel.unmap(range);
        // Stopped after the lock is free again.
        let running = self.running.lock().take();
        drop(running);
    }
}

/// A driver for one virtio-pmem device, whose queue is `queue` and whose memory is mapped through `kernel`. It shares
/// names, claims and the CPU's data cache with `base`.
///
/// The device attaches by the pmem driver's own steps, so that page map, block path, `alloc_dax` and removal are the
/// same for both providers, and so is what happens where the CPU cannot have DAX: the device comes up without it. A
/// queue that cannot be started fails [`Step::Map`](crate::pmem::Step::Map).
pub fn driver<M: Machine>(
    base: &PmemDriver<M>,
    kernel: Arc<dyn PmemHost>,
    queue: Arc<dyn RequestQueue>,
) -> PmemDriver<M> {
    base.sibling(Arc::new(LendingHost { kernel, queue, running: Mutex::new(None) }))
}
