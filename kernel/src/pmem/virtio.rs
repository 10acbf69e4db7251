//! virtio-pmem devices on PCI: found, set up, and asked to flush.
//!
//! The crate `virtio-drivers` serves for the transport (capabilities, registers) and for the ring of requests; what a
//! virtio-pmem device is, it does not know, and that is in [`nvdimm::virtio_pmem`]. A request is polled for: interrupts
//! stay off at the device.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::NonNull;

use mm::addr::{PAGE_SIZE, Pfn, PhysAddr};
use mm::machine::Machine;
use mm::sync::{SleepLock, SleepLockGuard};
use nvdimm::nfit::Limits;
use nvdimm::pmem::memory::FlushError;
use nvdimm::virtio_pmem::{self, REQUEST_QUEUE, Region, RequestQueue};
use virtio_drivers::device::common::Feature;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction, PciRoot};
use virtio_drivers::transport::pci::{PciTransport, VIRTIO_VENDOR_ID};
use virtio_drivers::transport::{DeviceStatus, Transport};
use virtio_drivers::{BufferDirection, Hal};

use crate::io::pci::{self, Ports};
use crate::mem::machine::mm;
use crate::mem::{layout, memory, paging};

/// PCI device numbers of modern virtio devices begin here (virtio 1.2 §4.1.2).
const PCI_ID_BASE: u16 = 0x1040;
/// virtio-mem's device number. See [`Presented`].
const KNOWN_TO_THE_CRATE: u16 = 24;
/// Descriptors of the queue: a request and its answer, as a power of two.
const QUEUE_SIZE: usize = 2;
/// How long an answer may take. The host writes out a file, which may be large and on a slow disk.
const ANSWER_WITHIN_NS: u64 = 120_000_000_000;
/// In so many rounds of waiting the device is asked whether it still works.
const ROUNDS_PER_LOOK: u64 = 4096;
/// How many rounds a reset may take.
const RESET_ROUNDS: usize = 1 << 20;
/// The status of a device that works.
const WORKS: DeviceStatus = DeviceStatus::ACKNOWLEDGE
    .union(DeviceStatus::DRIVER)
    .union(DeviceStatus::FEATURES_OK)
    .union(DeviceStatus::DRIVER_OK);

/// A virtio-pmem device that was found: its memory, and its queue.
pub struct Found {
    /// What its configuration space says.
    pub region: Region,
    /// Its queue, not started.
    pub queue: Arc<Queue>,
}

/// Finds every virtio-pmem device and says what it is, or why it cannot be used. Called once, at boot.
pub fn find(limits: Limits<'_>) -> Vec<(mm::addr::PfnRange, Arc<Queue>)> {
    let mut usable = Vec::new();
    for function in pci::find(VIRTIO_VENDOR_ID, PCI_ID_BASE + virtio_pmem::DEVICE_ID) {
        let found = match set_up(function) {
            Ok(found) => found,
            Err(reason) => {
                log::warn!(target: "virtio", "pci {function}: {reason}; it is not used");
                continue;
            }
        };
        let Region { start, len_bytes } = found.region;
        crate::console::report!("virtio_pmem id={} pci={function} base={start:#x} size={len_bytes}", usable.len());
        match found.region.frames(limits) {
            Ok(frames) => usable.push((frames, found.queue)),
            Err(error) => {
                log::warn!(target: "virtio", "pci {function}: memory at {start:#x}+{len_bytes:#x}: {error}; it is not used");
            }
        }
    }
    usable
}

/// Reaches the device's registers and reads its configuration. It is left reset.
fn set_up(function: DeviceFunction) -> Result<Found, alloc::string::String> {
    pci::enable(function);
    let mut root = PciRoot::new(Presented);
    let transport = PciTransport::new::<Hardware, _>(&mut root, function).map_err(|error| alloc::format!("{error}"))?;
    let mut device = Device { transport, running: None };
    device.negotiate().map_err(|error| alloc::format!("{error}"))?;
    let words = device.transport.read_consistent(|| device.transport.read_config_space::<[u32; 4]>(0));
    let region = Region::from_words(words.map_err(|error| alloc::format!("{error}"))?);
    device.stop();
    Ok(Found { region, queue: Arc::new(Queue { device: SleepLock::new(device) }) })
}

/// Configuration space in which a virtio-pmem device has the number of a virtio-mem device: the crate knows none for
/// virtio-pmem and refuses what it does not know, although its transport is the same for all of them.
struct Presented;

impl ConfigurationAccess for Presented {
    fn read_word(&self, function: DeviceFunction, register: u8) -> u32 {
        let ids = |number: u16| u32::from(PCI_ID_BASE + number) << 16 | u32::from(VIRTIO_VENDOR_ID);
        match (register, Ports.read_word(function, register)) {
            (0, word) if word == ids(virtio_pmem::DEVICE_ID) => ids(KNOWN_TO_THE_CRATE),
            (_, word) => word,
        }
    }
    fn write_word(&mut self, function: DeviceFunction, register: u8, value: u32) {
        Ports.write_word(function, register, value);
    }
    unsafe fn unsafe_clone(&self) -> Self {
        Self
    }
}

/// The request queue of one device, for all CPUs.
pub struct Queue {
    device: SleepLock<Device>,
}

impl Queue {
    /// Waits for the others. Their requests may take long, so this CPU's other tasks run meanwhile.
    fn lock(&self) -> SleepLockGuard<'_, Device> {
        self.device.take(|| mm().machine.relax())
    }
}

impl RequestQueue for Queue {
    fn start(&self) -> Result<(), FlushError> {
        let mut device = self.lock();
        let started = device.start();
        if started.is_err() {
            device.stop();
        }
        started
    }
    fn stop(&self) {
        self.lock().stop();
    }
    fn transact(&self, request: &[u8; 4], answer: &mut [u8; 4]) -> Result<usize, FlushError> {
        self.lock().transact(request, answer)
    }
}

struct Device {
    /// Never dropped: dropping it waits for a reset without bound.
    transport: PciTransport,
    running: Option<Running>,
}

/// What exists while the queue is started. The device may store to it until it is reset.
struct Running {
    ring: VirtQueue<Hardware, QUEUE_SIZE>,
    buffers: Buffers,
    /// A request is under way whose answer nobody waits for any more.
    stuck: bool,
}

impl Device {
    /// Resets the device, and waits until it says so.
    fn reset(&mut self) -> Result<(), FlushError> {
        self.transport.set_status(DeviceStatus::empty());
        let is_reset = (0..RESET_ROUNDS).any(|_| {
            arch::cpu::pause();
            self.transport.get_status() == DeviceStatus::empty()
        });
        if is_reset { Ok(()) } else { Err(FlushError::Gone) }
    }

    /// Resets the device, and agrees on the one feature that is needed: virtio 1.
    fn negotiate(&mut self) -> Result<(), FlushError> {
        self.reset()?;
        let agreed = self.transport.begin_init(Feature::VERSION_1);
        let accepted = self.transport.get_status().contains(DeviceStatus::FEATURES_OK);
        if agreed == Feature::VERSION_1 && accepted { Ok(()) } else { Err(FlushError::NoQueue) }
    }

    fn start(&mut self) -> Result<(), FlushError> {
        self.negotiate()?;
        // Reset: it does not know of an old ring any more.
        self.running = None;
        let mut ring =
            VirtQueue::new(&mut self.transport, REQUEST_QUEUE, false, false).map_err(|_| FlushError::NoQueue)?;
        ring.set_dev_notify(false);
        let buffers = Buffers::new().ok_or(FlushError::NoQueue)?;
        self.running = Some(Running { ring, buffers, stuck: false });
        self.transport.finish_init();
        Ok(())
    }

    fn stop(&mut self) {
        match self.reset() {
            Ok(()) => self.running = None,
            // It could still store to the ring: better lost than overwritten under somebody else's feet.
            Err(_) => core::mem::forget(self.running.take()),
        }
    }

    fn transact(&mut self, request: &[u8; 4], answer: &mut [u8; 4]) -> Result<usize, FlushError> {
        let Self { transport, running } = self;
        let Running { ring, buffers, stuck } = running.as_mut().ok_or(FlushError::Gone)?;
        if *stuck || transport.get_status() != WORKS {
            return Err(FlushError::Gone);
        }
        let (sent, received) = buffers.pair();
        sent.copy_from_slice(request);
        // SAFETY: the buffers lie in a frame that is ours until the device has been reset, and nobody looks at them
        // until `pop_used` has succeeded or the device has been reset.
        let token = unsafe { ring.add(&[sent], &mut [received]) }.map_err(|_| FlushError::NoQueue)?;
        if ring.should_notify() {
            transport.notify(REQUEST_QUEUE);
        }
        if let Err(error) = wait_for(transport, ring) {
            *stuck = true;
            return Err(error);
        }
        let (sent, received) = buffers.pair();
        // SAFETY: the buffers are those of `add`.
        let popped = unsafe { ring.pop_used(token, &[sent], &mut [received]) };
        let Ok(written) = popped else {
            *stuck = true;
            return Err(FlushError::Gone);
        };
        answer.copy_from_slice(received);
        Ok(written as usize)
    }
}

/// Waits for an answer.
fn wait_for(transport: &PciTransport, ring: &VirtQueue<Hardware, QUEUE_SIZE>) -> Result<(), FlushError> {
    let machine = &mm().machine;
    let deadline = machine.now_ns().saturating_add(ANSWER_WITHIN_NS);
    for round in 1_u64.. {
        if ring.can_pop() {
            break;
        }
        if round.is_multiple_of(ROUNDS_PER_LOOK) {
            if transport.get_status() != WORKS {
                return Err(FlushError::Gone);
            }
            if machine.now_ns() > deadline {
                return Err(FlushError::NoAnswer);
            }
        }
        machine.relax();
    }
    Ok(())
}

/// A frame for a request and its answer: memory that the device may store to for as long as it likes.
struct Buffers(Pfn);

impl Buffers {
    fn new() -> Option<Self> {
        memory::alloc_zeroed().map(Self)
    }

    /// The request, and the answer.
    fn pair(&mut self) -> (&mut [u8; 4], &mut [u8; 4]) {
        let base: *mut [u8; 4] = layout::direct_ptr(self.0.addr());
        // SAFETY: the frame is RAM in the direct map, ours alone, and the two arrays are apart. The device stores to
        // the second one only between `add` and `pop_used`, when nobody has these references.
        unsafe { (&mut *base, &mut *base.add(64)) }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        memory::free(self.0, 0);
    }
}

/// What the crate needs of this kernel: frames, and where physical addresses are mapped.
struct Hardware;

/// The order of a block of at least `pages` frames.
fn order(pages: usize) -> u32 {
    pages.next_power_of_two().trailing_zeros()
}

// SAFETY: frames come from the allocator, zeroed, are ours until they are given back, and are in the direct map;
// registers are mapped afresh for each call.
unsafe impl Hal for Hardware {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (u64, NonNull<u8>) {
        let Some(pfn) = memory::alloc(order(pages)) else {
            // The crate takes the address 0 for "no memory".
            return (0, NonNull::dangling());
        };
        let base: *mut u8 = layout::direct_ptr(pfn.addr());
        // SAFETY: RAM, ours, in the direct map.
        unsafe { base.write_bytes(0, pages * PAGE_SIZE as usize) };
        (pfn.addr().as_u64(), NonNull::new(base).expect("the direct map is not at address 0"))
    }

    unsafe fn dma_dealloc(paddr: u64, _: NonNull<u8>, pages: usize) -> i32 {
        memory::free(PhysAddr::new(paddr).pfn(), order(pages));
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: u64, size: usize) -> NonNull<u8> {
        let inside = paddr % PAGE_SIZE;
        let nr_pages = (inside + size as u64).div_ceil(PAGE_SIZE);
        let mapped = paging::map_register_pages(PhysAddr::new(paddr - inside), nr_pages);
        let base = mapped.unwrap_or_else(|error| panic!("registers at {paddr:#x} cannot be mapped: {error}"));
        NonNull::new((base.as_u64() + inside) as *mut u8).expect("registers are not mapped at address 0")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> u64 {
        let va = buffer.cast::<u8>().as_ptr() as u64;
        assert!(
            (layout::DIRECT_MAP..layout::DIRECT_MAP + layout::DIRECT_MAP_BYTES).contains(&va),
            "a buffer for a device is not in the direct map"
        );
        va - layout::DIRECT_MAP
    }

    unsafe fn unshare(_: u64, _: NonNull<[u8]>, _: BufferDirection) {}
}
