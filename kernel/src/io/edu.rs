//! QEMU's `edu` device: a DMA engine with a buffer of its own (QEMU, `docs/specs/edu.txt`).
//!
//! The engine translates the address in memory when a transfer *ends*, 100 ms after its start; so for that long it is
//! certain that a transfer is in flight and has touched nothing. That is time of the device: where the host takes the CPU
//! away for so long, it has passed. Its registers say that it has ended, and never whether
//! it was blocked: that is for [`Watch`] to say.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use mm::machine::Machine;
use mm::space::Access;
use spin::Once;
use virtio_drivers::transport::pci::bus::DeviceFunction;

use crate::console::report;
use crate::io::dma::{DmaDevice, DmaError, DmaTarget, Watch};
use crate::io::pci::{self, Registers};
use crate::mem::machine::mm;
use crate::task::sched;

/// Its vendor and device number.
const PCI_ID: (u16, u16) = (0x1234, 0x11e8);
/// Identification: `0xRRrr00ed`, major and minor version.
const IDENTIFICATION: u64 = 0x00;
/// Where a transfer reads, where it writes, how many bytes; 64 bits each.
const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const COUNT: u64 = 0x90;
/// Bit 0 starts a transfer and stays set until it has ended; bit 1 is its direction.
const COMMAND: u64 = 0x98;
/// Registers that are used, in bytes.
const REGISTER_BYTES: u64 = 0xa0;

const RUN: u64 = 1;
const TO_MEMORY: u64 = 2;

/// Where the engine has its buffer.
const BUFFER: u64 = 0x40000;
/// Bytes of the buffer. Transfers are kept below its size: the last byte stays unused.
pub const BUFFER_BYTES: u64 = 4096;
/// What a transfer takes, in nanoseconds of the device's time.
pub const TRANSFER_NS: u64 = 100_000_000;
/// How long one is waited for that nobody else bounds, in nanoseconds: patience alone, with a host that does much else.
pub const PATIENCE_NS: u64 = 600 * TRANSFER_NS;
/// How often the register is looked at, in nanoseconds.
const LOOK_EVERY_NS: u64 = 1_000_000;

/// Which way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// From memory into the device's buffer: the device reads memory.
    ToDevice,
    /// From the device's buffer to memory: the device writes memory.
    ToMemory,
}

/// Why a transfer did not happen, or is not known to have.
#[derive(Debug)]
pub enum EduError {
    /// Another one is under way.
    Busy,
    /// It does not lie in the buffer: where in it, how many bytes.
    OutsideBuffer(u64, u64),
    /// It does not lie in the target: where in it, how many bytes, how many the target has.
    OutsideTarget(u64, u64, u64),
    /// It has not ended within this many nanoseconds. The engine goes on.
    Late(u64),
    /// It was blocked, or its target has been revoked meanwhile.
    Dma(DmaError),
}

impl fmt::Display for EduError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => f.write_str("the engine is busy"),
            Self::OutsideBuffer(at, bytes) => {
                let most = BUFFER_BYTES - 1;
                write!(f, "{bytes} bytes at {at} of the device's buffer; expected 1 to {most}, below {most}")
            }
            Self::OutsideTarget(at, bytes, len) => write!(f, "{bytes} bytes at {at} of a target that has {len}"),
            Self::Late(ns) => write!(f, "the transfer has not ended within {} ms", ns / 1_000_000),
            Self::Dma(error) => write!(f, "{error}"),
        }
    }
}

impl From<DmaError> for EduError {
    fn from(error: DmaError) -> Self {
        Self::Dma(error)
    }
}

/// The device.
pub struct Edu {
    registers: Registers,
    dma: Arc<DmaDevice>,
    /// Somebody has a transfer that he has not waited for.
    taken: AtomicBool,
}

static EDU: Once<Arc<Edu>> = Once::new();

/// The device, if there is one that can be used.
pub fn device() -> Option<&'static Arc<Edu>> {
    EDU.get()
}

/// Finds the first such device, and says what it is or why it is not used. Called once, when the IOMMU works.
pub fn find() {
    let Some(&function) = pci::find(PCI_ID.0, PCI_ID.1).first() else { return };
    match Edu::new(function) {
        Ok(edu) => {
            let dma = edu.dma();
            report!("edu name={} pci={} buffer_bytes={BUFFER_BYTES}", dma.name(), dma.source());
            EDU.call_once(|| Arc::new(edu));
        }
        Err(reason) => log::warn!(target: "edu", "pci {function}: {reason}; it is not used"),
    }
}

impl Edu {
    fn new(function: DeviceFunction) -> Result<Self, String> {
        let registers = pci::map_bar(function, 0, REGISTER_BYTES).map_err(|error| format!("BAR 0 {error}"))?;
        pci::enable_registers(function);
        let found = registers.read_u32(IDENTIFICATION);
        if found & 0xff != 0xed {
            return Err(format!("its identification is {found:#010x}, expected one that ends in ed"));
        }
        let dma = DmaDevice::attach("edu0", function).map_err(|error| format!("{error}"))?;
        Ok(Self { registers, dma, taken: AtomicBool::new(false) })
    }

    /// The device as the IOMMU knows it: what to register memory with.
    pub fn dma(&self) -> &Arc<DmaDevice> {
        &self.dma
    }

    /// Starts a transfer of `bytes` bytes between `offset` of `target` and `at` of the buffer. It ends [`TRANSFER_NS`] later.
    ///
    /// # Errors
    /// [`EduError`]; then nothing is started.
    pub fn start<'t>(
        &'t self,
        direction: Direction,
        (target, offset): (&'t dyn DmaTarget, u64),
        at: u64,
        bytes: u64,
    ) -> Result<Transfer<'t>, EduError> {
        if bytes == 0 || at.checked_add(bytes).is_none_or(|end| end >= BUFFER_BYTES) {
            return Err(EduError::OutsideBuffer(at, bytes));
        }
        let (iova, len) = (target.iova(), target.len_bytes());
        if offset.checked_add(bytes).is_none_or(|end| end > len) {
            return Err(EduError::OutsideTarget(offset, bytes, len));
        }
        target.check(match direction {
            Direction::ToMemory => Access::Write,
            Direction::ToDevice => Access::Read,
        })?;
        if self.taken.swap(true, Ordering::Acquire) {
            return Err(EduError::Busy);
        }
        // From here on dropping it gives back the turn.
        let transfer = Transfer { edu: self, target, watch: Some(self.dma.watch()) };
        if self.is_running() {
            return Err(EduError::Busy);
        }
        let (memory, buffer) = (iova + offset, BUFFER + at);
        let (from, to, command) = match direction {
            Direction::ToDevice => (memory, buffer, RUN),
            Direction::ToMemory => (buffer, memory, RUN | TO_MEMORY),
        };
        self.registers.write_u64(SOURCE, from);
        self.registers.write_u64(DESTINATION, to);
        self.registers.write_u64(COUNT, bytes);
        self.registers.write_u64(COMMAND, command);
        Ok(transfer)
    }

    /// Is a transfer under way, whoever has started it?
    pub fn is_running(&self) -> bool {
        self.registers.read_u64(COMMAND) & RUN != 0
    }

    /// Transfers, and waits for it, at most [`PATIENCE_NS`].
    ///
    /// # Errors
    /// [`EduError`].
    pub fn transfer(
        &self,
        direction: Direction,
        target: (&dyn DmaTarget, u64),
        at: u64,
        bytes: u64,
    ) -> Result<(), EduError> {
        self.start(direction, target, at, bytes)?.wait(PATIENCE_NS)
    }
}

/// A transfer under way. Dropping it stops nothing: the engine is busy until it has ended, and what it may still reach is
/// for the IOMMU to say.
#[must_use = "whether the bytes have arrived is known after `wait`"]
pub struct Transfer<'t> {
    edu: &'t Edu,
    target: &'t dyn DmaTarget,
    watch: Option<Watch>,
}

impl Transfer<'_> {
    /// Is the device done? Not that anything was transferred: see [`wait`](Self::wait).
    pub fn is_over(&self) -> bool {
        !self.edu.is_running()
    }

    /// Waits until the device is done, at most `bound_ns`, and answers whether the bytes are where they belong: the device
    /// itself cannot tell. Called from a task.
    ///
    /// # Errors
    /// [`EduError::Late`], [`EduError::Dma`].
    pub fn wait(mut self, bound_ns: u64) -> Result<(), EduError> {
        let machine = &mm().machine;
        let deadline = machine.now_ns().saturating_add(bound_ns);
        while !self.is_over() {
            if machine.now_ns() >= deadline {
                return Err(EduError::Late(bound_ns));
            }
            sched::sleep_ns(LOOK_EVERY_NS);
        }
        let watch = self.watch.take();
        watch.map_or(Ok(()), |watch| watch.end(self.target)).map_err(EduError::Dma)
    }
}

impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        self.edu.taken.store(false, Ordering::Release);
    }
}
