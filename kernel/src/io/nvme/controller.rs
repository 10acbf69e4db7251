//! An NVMe controller: started, stopped, reset; its admin queue, and the one I/O queue (1.4 §7.6.1, §7.3).
//!
//! # A reset
//! Whoever finds that the controller does not answer, or writes what cannot be, resets it: end its queues, stop it, wait until it says that
//! it has stopped, *then* fail what was in flight, and start it anew. A command that fails earlier would say that its
//! memory is no longer written while it still is. One that does not stop loses the right to do DMA, and is not used any
//! more. (Linux: `nvme_timeout`, `nvme_dev_disable`.)

use alloc::string::String;
use alloc::sync::Arc;

use mm::machine::Machine;
use mm::pins::Word;
use mm::sync::{Mutex, SleepLock};
use nvme::command::Submission;
use nvme::completion::Completion;
use nvme::registers::{self as regs, Capabilities, Status, Version};
use nvme::ring::{Outcome, Ticket};
use virtio_drivers::transport::pci::bus::DeviceFunction;

use crate::console::report;
use crate::io::dma::DmaDevice;
use crate::io::nvme::error::{Failure, IoError};
use crate::io::nvme::rings::{self, ENTRIES, Reach, Rings, SLOTS, Shared};
use crate::io::pci::{self, Registers};
use crate::mem::machine::mm;

/// How long a command may take, in nanoseconds; as in Linux. An admin command has as long.
pub const ANSWER_WITHIN_NS: u64 = 30_000_000_000;
/// How long a controller that is to be reset has to end each of its queues, in nanoseconds.
const END_WITHIN_NS: u64 = 1_000_000_000;
/// In so many rounds of waiting the controller is asked once whether it still works.
const ROUNDS_PER_LOOK: u64 = 4096;
/// The number of the only I/O queue.
const QUEUE: u16 = 1;

/// Is it used?
#[derive(Clone, Copy)]
enum State {
    Works,
    /// It is being reset: whoever wants something waits for that.
    Stopped,
    Dead(Failure),
}

/// The I/O queue, and what has become of it.
struct Io {
    rings: Rings<SLOTS>,
    state: State,
    /// How often it was reset.
    resets: u64,
    /// Why it was the last time.
    why: Failure,
}

/// A controller.
pub struct Controller {
    function: DeviceFunction,
    registers: Registers,
    caps: Capabilities,
    dma: Arc<DmaDevice>,
    shared: Shared,
    /// Who has this is the only one who starts and stops it.
    admin: SleepLock<Rings<1>>,
    io: Mutex<Io>,
}

/// Waits until `done` answers something, at most `bound_ns`; `None` then.
pub fn wait_for<R>(bound_ns: u64, mut done: impl FnMut(u64) -> Option<R>) -> Option<R> {
    let machine = &mm().machine;
    let deadline = machine.now_ns().saturating_add(bound_ns);
    for round in 1.. {
        if let Some(answer) = done(round) {
            return Some(answer);
        }
        if machine.now_ns() >= deadline {
            return None;
        }
        machine.relax();
    }
    None
}

impl Controller {
    /// Takes over a controller from whoever had it, and starts it. Called from a task.
    ///
    /// # Errors
    /// Why it cannot be used, in words; it is stopped then, and does no DMA.
    pub fn new(name: &str, function: DeviceFunction) -> Result<Self, String> {
        let map = |bytes| pci::map_bar(function, 0, bytes).map_err(|error| alloc::format!("BAR 0 {error}"));
        let first = map(regs::LEN_BYTES)?;
        // The firmware may have used it: until it has stopped it does no DMA.
        pci::enable_registers(function);
        let caps = Capabilities(first.read_u64(regs::CAPABILITIES));
        caps.check(ENTRIES).map_err(|error| alloc::format!("{error}"))?;
        let registers = map(caps.doorbells_end(QUEUE))?;
        stop(&registers, caps).map_err(|failure| alloc::format!("{failure}"))?;
        let dma = DmaDevice::attach(name, function).map_err(|error| alloc::format!("{error}"))?;
        let Some(memory) = dma.own_memory(rings::ORDER) else {
            dma.forbid();
            return Err("no memory for its rings".into());
        };
        let this = Self {
            function,
            registers,
            caps,
            dma,
            shared: Shared::new(memory),
            admin: SleepLock::new(Rings::new(0, rings::ADMIN_SUBMISSION, rings::ADMIN_COMPLETION)),
            io: Mutex::new(Io {
                rings: Rings::new(QUEUE, rings::SUBMISSION, rings::COMPLETION),
                state: State::Stopped,
                resets: 0,
                why: Failure::Gone,
            }),
        };
        let started = this.start(&mut this.admin());
        if let Err(failure) = started {
            this.give_up(failure);
            return Err(alloc::format!("{failure}"));
        }
        Ok(this)
    }

    /// The controller as the IOMMU knows it.
    pub fn dma(&self) -> &Arc<DmaDevice> {
        &self.dma
    }

    /// Which version it follows.
    pub fn version(&self) -> Version {
        Version(self.registers.read_u32(regs::VERSION))
    }

    /// How often it was reset.
    pub fn resets(&self) -> u64 {
        self.io.lock().resets
    }

    fn admin(&self) -> mm::sync::SleepLockGuard<'_, Rings<1>> {
        self.admin.take(|| mm().machine.relax())
    }

    fn reach(&self) -> Reach<'_> {
        Reach { shared: &self.shared, registers: &self.registers, caps: self.caps }
    }

    /// From stopped to working. The I/O rings are empty.
    fn start(&self, admin: &mut Rings<1>) -> Result<(), Failure> {
        if !self.dma.allow() {
            return Err(Failure::NoDma);
        }
        admin.reset(&self.shared);
        let entries = u32::from(ENTRIES - 1);
        self.registers.write_u32(regs::MASK_INTERRUPTS, u32::MAX);
        self.registers.write_u32(regs::ADMIN_ENTRIES, entries << 16 | entries);
        self.registers.write_u64(regs::ADMIN_SUBMISSION, self.shared.iova(rings::ADMIN_SUBMISSION));
        self.registers.write_u64(regs::ADMIN_COMPLETION, self.shared.iova(rings::ADMIN_COMPLETION));
        self.registers.write_u32(regs::CONFIGURATION, regs::ENABLED);
        wait_until_ready(&self.registers, self.caps, true)?;
        let (submission, completion) = (self.shared.iova(rings::SUBMISSION), self.shared.iova(rings::COMPLETION));
        self.command(admin, ANSWER_WITHIN_NS, Submission::create_completion(QUEUE, ENTRIES, completion))?;
        self.command(admin, ANSWER_WITHIN_NS, Submission::create_submission(QUEUE, ENTRIES, submission))?;
        self.io.lock().state = State::Works;
        Ok(())
    }

    /// An admin command, from beginning to end.
    fn command(&self, admin: &mut Rings<1>, bound_ns: u64, command: Submission) -> Result<Completion, Failure> {
        let failure = Failure::NoAnswer(bound_ns);
        let ticket = admin.submit(self.reach(), |_| command).ok_or(failure)?;
        let answered = wait_for(bound_ns, |round| {
            let reaped = admin.reap(self.reach()).map_err(Failure::from).and_then(|()| self.look(round));
            match (reaped, admin.pair().outcome(&ticket)) {
                (_, Outcome::Done(completion)) => Some(Ok(completion)),
                (Err(failure), _) => Some(Err(failure)),
                (Ok(()), _) => None,
            }
        });
        // Where it is not done, so that the queue has room once it has been reset.
        admin.pair().abandon(&ticket);
        let completion = answered.unwrap_or(Err(failure))?;
        if completion.status.is_success() { Ok(completion) } else { Err(Failure::Refused(completion.status)) }
    }

    /// Ends the I/O queues, and with them what is in flight, while the controller still works; as long as it does. They are
    /// deleted before the controller is disabled (1.4 §7.6.2).
    fn end_queues(&self, admin: &mut Rings<1>, failure: Failure) {
        if matches!(failure, Failure::Gone | Failure::Fatal) {
            return;
        }
        let ends = [Submission::delete_submission(QUEUE), Submission::delete_completion(QUEUE)];
        let ended = ends.into_iter().try_for_each(|end| self.command(admin, END_WITHIN_NS, end).map(|_| ()));
        if let Err(error) = ended {
            log::debug!(target: "nvme", "{}: its queues are not ended: {error}", self.dma.name());
        }
    }

    /// Asks the controller now and then whether it still works.
    fn look(&self, round: u64) -> Result<(), Failure> {
        if !round.is_multiple_of(ROUNDS_PER_LOOK) {
            return Ok(());
        }
        match Status(self.registers.read_u32(regs::STATUS)) {
            status if status.is_gone() => Err(Failure::Gone),
            status if status.is_fatal() => Err(Failure::Fatal),
            _ => Ok(()),
        }
    }

    /// What `command` makes the controller write to the page for it.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn identify(
        &self,
        command: impl FnOnce(u64) -> Submission,
    ) -> Result<[u8; nvme::identify::LEN_BYTES], Failure> {
        let mut admin = self.admin();
        self.shared.zero(rings::IDENTIFY);
        self.command(&mut admin, ANSWER_WITHIN_NS, command(self.shared.iova(rings::IDENTIFY)))?;
        Ok(self.shared.identify_page())
    }

    /// Hands an I/O command to the controller; `make` makes it, given the slot's PRP list.
    ///
    /// # Errors
    /// [`IoError::QueueFull`], [`IoError::Dead`].
    pub fn submit(&self, make: impl Fn(List<'_>) -> Submission) -> Result<Ticket, IoError> {
        let mut looked = false;
        loop {
            {
                let mut io = self.io.lock();
                match io.state {
                    State::Works => {
                        let list = |slot| List { shared: &self.shared, slot };
                        match io.rings.submit(self.reach(), |slot| make(list(slot))) {
                            Some(ticket) => return Ok(ticket),
                            None if looked => return Err(IoError::QueueFull),
                            None => {}
                        }
                    }
                    State::Dead(failure) => return Err(IoError::Dead(failure)),
                    State::Stopped => {
                        drop(io);
                        drop(self.admin());
                        continue;
                    }
                }
            }
            // A command that nobody waits for may be done. If what the device wrote is nonsense, all of them are.
            let _ = self.take_all();
            looked = true;
        }
    }

    /// How the command of `ticket` goes, in round `round` of waiting for it. `None`: it is in flight.
    pub fn ask(&self, ticket: &Ticket, round: u64) -> Option<Result<Completion, IoError>> {
        let (looked, outcome, resets, why) = {
            let mut io = self.io.lock();
            let reaped = io.rings.reap(self.reach()).map_err(Failure::from);
            (reaped.and_then(|()| self.look(round)), io.rings.pair().outcome(ticket), io.resets, io.why)
        };
        if let Err(failure) = looked {
            self.reset(resets, failure);
        }
        match outcome {
            Outcome::Pending => None,
            Outcome::Done(completion) => Some(Ok(completion)),
            Outcome::Lost => Some(Err(IoError::Reset(why))),
        }
    }

    /// What the device says of the command of `ticket`, once it says anything; nobody has asked for its end then. For tests.
    pub fn peek(&self, ticket: &Ticket) -> Option<Completion> {
        let mut io = self.io.lock();
        // Nonsense is left to who asks for the end.
        io.rings.reap(self.reach()).ok()?;
        io.rings.pair().answer(ticket)
    }

    /// The command of `ticket` had no answer in time.
    pub fn give_up_waiting(&self, ticket: &Ticket, bound_ns: u64) -> Result<Completion, IoError> {
        let resets = self.resets();
        // It may have come at the last moment, or somebody else has reset the controller.
        if let Some(answer) = self.ask(ticket, 1) {
            return answer;
        }
        self.reset(resets, Failure::NoAnswer(bound_ns));
        self.ask(ticket, 1).unwrap_or(Err(IoError::Reset(Failure::NoAnswer(bound_ns))))
    }

    /// Nobody waits for the command of `ticket` any more.
    pub fn abandon(&self, ticket: &Ticket) {
        self.io.lock().rings.pair().abandon(ticket);
    }

    /// Takes what the device has written although nobody waits for it.
    ///
    /// # Errors
    /// [`IoError::Reset`]: it was nonsense.
    pub fn take_all(&self) -> Result<(), IoError> {
        let (reaped, resets) = {
            let mut io = self.io.lock();
            (io.rings.reap(self.reach()), io.resets)
        };
        reaped.map_err(|broken| {
            self.reset(resets, broken.into());
            IoError::Reset(broken.into())
        })
    }

    /// Writes the next completion entry, as a device could that writes what it should not. For tests.
    pub fn forge(&self, entry: Completion) {
        self.io.lock().rings.forge(self.reach(), entry);
    }

    /// Has the device hear of no I/O command until the next reset. For tests.
    pub fn hush(&self) {
        self.io.lock().rings.hush();
    }

    /// Resets it, unless somebody has done so since `resets` was read.
    fn reset(&self, resets: u64, failure: Failure) {
        let mut admin = self.admin();
        {
            let mut io = self.io.lock();
            if io.resets != resets || matches!(io.state, State::Dead(_)) {
                return;
            }
            io.state = State::Stopped;
        }
        let name = self.dma.name();
        log::warn!(target: "nvme", "{name}: {failure}; the controller is reset");
        let why = alloc::format!("{failure}");
        report!("nvme name={name} pci={} state=reset why={}", self.function, Word(&why));
        self.end_queues(&mut admin, failure);
        let stopped = stop(&self.registers, self.caps);
        if stopped.is_err() {
            // So that it writes nowhere once its commands have failed.
            self.dma.forbid();
        }
        {
            let mut io = self.io.lock();
            // With their memory: who asks for a command meanwhile must not find what was answered before.
            io.rings.reset(&self.shared);
            (io.resets, io.why) = (resets + 1, failure);
        }
        if let Err(failure) = stopped.and_then(|()| self.start(&mut admin)) {
            log::warn!(target: "nvme", "{name}: {failure}; it is not used any more");
            self.give_up(failure);
        }
    }

    /// It is not used any more.
    fn give_up(&self, failure: Failure) {
        self.dma.forbid();
        self.io.lock().state = State::Dead(failure);
    }
}

impl Drop for Controller {
    /// One that is not used after all is stopped, and does no DMA.
    fn drop(&mut self) {
        let _stopped = stop(&self.registers, self.caps);
        self.dma.forbid();
    }
}

/// A slot's PRP list.
pub struct List<'c> {
    shared: &'c Shared,
    slot: usize,
}

impl List<'_> {
    /// Where the device has it.
    pub fn iova(&self) -> u64 {
        self.shared.list(self.slot)
    }
    /// Writes an entry.
    pub fn put(&self, at: usize, entry: u64) {
        self.shared.put_in_list(self.slot, at, entry);
    }
}

/// Stops a controller, whatever state it is in: afterwards it reads and writes nothing.
fn stop(registers: &Registers, caps: Capabilities) -> Result<(), Failure> {
    registers.write_u32(regs::CONFIGURATION, regs::DISABLED);
    wait_until_ready(registers, caps, false)
}

fn wait_until_ready(registers: &Registers, caps: Capabilities, ready: bool) -> Result<(), Failure> {
    let bound_ns = caps.timeout_ns();
    let done = wait_for(bound_ns, |_| match Status(registers.read_u32(regs::STATUS)) {
        status if status.is_gone() => Some(Err(Failure::Gone)),
        // A controller that is to stop may have failed before.
        status if ready && status.is_fatal() => Some(Err(Failure::Fatal)),
        status => (status.is_ready() == ready).then_some(Ok(())),
    });
    done.unwrap_or(Err(Failure::Stuck(bound_ns)))
}
