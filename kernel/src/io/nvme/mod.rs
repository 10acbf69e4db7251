//! NVMe disks: data straight between the disk and pages that somebody has registered or pinned.
//!
//! One admin queue and one I/O queue for each controller, namespace 1, polled. What is only bytes and arithmetic is in the
//! package [`nvme`]; here are registers, memory and time. A driver is handed I/O virtual addresses and knows no others.
//! The end of a transfer is believed when nothing stands against it: see [`Transfer::wait`].

pub mod error;

mod controller;
mod rings;

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use mm::pins::Word;
use mm::space::Access;
use nvme::command::Submission;
use nvme::completion::{Completion, Status};
use nvme::identify;
use nvme::prp;
pub use nvme::request::Limits;
use nvme::ring::Ticket;
use spin::Once;

use self::controller::{ANSWER_WITHIN_NS, Controller};
pub use self::error::{Failure, IoError};
use crate::console::report;
use crate::io::dma::{DmaDevice, DmaTarget, Watch};
use crate::io::pci;

/// Mass storage, non-volatile memory, NVM Express.
const PCI_CLASS: (u8, u8, u8) = (1, 8, 2);
/// The namespace that is used.
const NAMESPACE: u32 = 1;

/// A disk.
pub struct Disk {
    controller: Controller,
    limits: Limits,
}

static DISKS: Once<Vec<Arc<Disk>>> = Once::new();

/// The disks that can be used: `nvme0`, `nvme1`, …
pub fn disks() -> &'static [Arc<Disk>] {
    DISKS.get().map_or(&[], Vec::as_slice)
}

/// Finds the disks, and says what each is or why it is not used. Called once, from a task, when the IOMMU works.
pub fn find() {
    DISKS.call_once(|| {
        let mut disks = Vec::new();
        // By its number among all of them: the IOMMU knows those that are not used by their names, too.
        for (nr, function) in pci::find_class(PCI_CLASS).into_iter().enumerate() {
            match Disk::new(&format!("nvme{nr}"), function) {
                Ok(disk) => disks.push(Arc::new(disk)),
                Err(reason) => log::warn!(target: "nvme", "pci {function}: {reason}; it is not used"),
            }
        }
        disks
    });
}

/// Which way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// From the disk: the device writes memory.
    Read,
    /// To the disk: the device reads memory.
    Write,
}

/// Blocks of the disk, and where in the target they come from or go to.
#[derive(Clone, Copy, Debug)]
pub struct Blocks {
    /// The first block.
    pub lba: u64,
    /// How many.
    pub count: u64,
    /// Byte in the target: a multiple of four.
    pub offset: u64,
}

impl Disk {
    fn new(name: &str, function: virtio_drivers::transport::pci::bus::DeviceFunction) -> Result<Self, String> {
        let controller = Controller::new(name, function)?;
        let page = controller.identify(Submission::identify_controller).map_err(|failure| format!("{failure}"))?;
        let identity = identify::Controller::parse(&page).map_err(|error| format!("{error}"))?;
        let of_namespace = |page| Submission::identify_namespace(NAMESPACE, page);
        let page = controller.identify(of_namespace).map_err(|failure| format!("{failure}"))?;
        let namespace = identify::Namespace::parse(&page).map_err(|error| format!("{error}"))?;
        let limits = Limits::new(&identity, namespace);
        let Limits { nr_blocks, block_bytes, max_transfer_bytes } = limits;
        report!(
            "nvme name={name} pci={function} version={} model={} serial={} blocks={nr_blocks} block_bytes={block_bytes} max_transfer_bytes={max_transfer_bytes} write_cache={} state=works",
            controller.version(),
            Word(&identity.model),
            Word(&identity.serial),
            u8::from(identity.has_write_cache)
        );
        Ok(Self { controller, limits })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.controller.dma().name()
    }

    /// The disk as the IOMMU knows it: what to register memory with.
    pub fn dma(&self) -> &Arc<DmaDevice> {
        self.controller.dma()
    }

    /// How many blocks it has, how large they are, and how much one command transfers.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// How often its controller was reset since boot.
    pub fn resets(&self) -> u64 {
        self.controller.resets()
    }

    /// Starts a transfer. Sixteen commands can be in flight.
    ///
    /// # Errors
    /// [`IoError::Request`], [`IoError::Dma`] where the target is gone, [`IoError::QueueFull`], [`IoError::Dead`]; nothing is
    /// started then.
    pub fn start<'t>(
        &'t self,
        direction: Direction,
        target: &'t dyn DmaTarget,
        blocks: Blocks,
    ) -> Result<Transfer<'t>, IoError> {
        let Blocks { lba, count, offset } = blocks;
        let (iova, bytes) = self.limits.check((lba, count), (target.iova(), target.len_bytes()), offset)?;
        target.check(match direction {
            Direction::Read => Access::Write,
            Direction::Write => Access::Read,
        })?;
        // Before the device can touch anything.
        let watch = self.dma().watch();
        let ticket = self.controller.submit(|list| {
            let built = prp::build(iova, bytes, list.iova(), |at, entry| list.put(at, entry));
            let prps = built.expect("a request that was looked at");
            match direction {
                Direction::Read => Submission::read(NAMESPACE, lba, count as u32, prps),
                Direction::Write => Submission::write(NAMESPACE, lba, count as u32, prps),
            }
        })?;
        Ok(Transfer { disk: self, against: Some((watch, target)), ticket: Some(ticket) })
    }

    /// Transfers, and waits for it.
    ///
    /// # Errors
    /// [`IoError`], but for a full queue: that is waited for.
    pub fn transfer(&self, direction: Direction, target: &dyn DmaTarget, blocks: Blocks) -> Result<(), IoError> {
        self.when_there_is_room(|| self.start(direction, target, blocks))?.wait()
    }

    /// Waits until everything that was written before, and answered, lasts.
    ///
    /// # Errors
    /// [`IoError`].
    pub fn flush(&self) -> Result<(), IoError> {
        let ticket = self.when_there_is_room(|| self.controller.submit(|_| Submission::flush(NAMESPACE)))?;
        Transfer { disk: self, against: None, ticket: Some(ticket) }.wait()
    }

    fn when_there_is_room<R>(&self, mut start: impl FnMut() -> Result<R, IoError>) -> Result<R, IoError> {
        let started = controller::wait_for(ANSWER_WITHIN_NS, |_| match start() {
            Err(IoError::QueueFull) => None,
            started => Some(started),
        });
        started.unwrap_or(Err(IoError::QueueFull))
    }

    /// Takes what the device has written although nobody waits for it.
    ///
    /// # Errors
    /// [`IoError::Reset`]: it was nonsense.
    pub fn take_completions(&self) -> Result<(), IoError> {
        self.controller.take_all()
    }

    /// Writes the next completion entry, as a device could that writes what it should not. For tests.
    pub fn forge_completion(&self, entry: Completion) {
        self.controller.forge(entry);
    }

    /// Has the device hear of no command until the next reset, as one does that has stopped listening. For tests.
    pub fn hush(&self) {
        self.controller.hush();
    }

    /// Takes DMA from the controller until its next reset, which it then asks for. For tests.
    pub fn break_dma(&self) {
        self.dma().forbid();
    }
}

/// A command in flight. Dropping it stops nothing: it goes on without anybody who waits for it, and what the device may still
/// reach is for the IOMMU to say.
#[must_use = "whether the bytes have arrived is known after `wait`"]
pub struct Transfer<'t> {
    disk: &'t Disk,
    /// What has to say nothing against it; a flush moves no data.
    against: Option<(Watch, &'t dyn DmaTarget)>,
    ticket: Option<Ticket>,
}

impl Transfer<'_> {
    /// The status that the device has answered with, once it has, without a look at anything else: not to be believed.
    /// For tests.
    pub fn device_says(&self) -> Option<Status> {
        Some(self.disk.controller.peek(self.ticket.as_ref()?)?.status)
    }

    /// Waits for the end as long as a disk may take, 30 s.
    ///
    /// # Errors
    /// As [`wait_within`](Self::wait_within).
    pub fn wait(self) -> Result<(), IoError> {
        self.wait_within(ANSWER_WITHIN_NS)
    }

    /// Waits for the end at most `bound_ns`; then the controller is reset. The device's word is not enough: blocked
    /// transfers end with success. So it is asked first whether the target was revoked meanwhile, and whether a fault of
    /// this device stands against it.
    ///
    /// # Errors
    /// [`IoError`].
    pub fn wait_within(mut self, bound_ns: u64) -> Result<(), IoError> {
        let Some(ticket) = self.ticket.take() else { return Ok(()) };
        let controller = &self.disk.controller;
        let answer = controller::wait_for(bound_ns, |round| controller.ask(&ticket, round));
        let answer = answer.unwrap_or_else(|| controller.give_up_waiting(&ticket, bound_ns));
        if let Some((watch, target)) = self.against.take() {
            watch.end(target)?;
        }
        let status = answer?.status;
        if status.is_success() { Ok(()) } else { Err(IoError::Device(status)) }
    }
}

impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = &self.ticket {
            self.disk.controller.abandon(ticket);
        }
    }
}
