//! Tasks: what runs. Each has a CPU for life, a kernel stack, and perhaps an address space.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

pub use ::sched::queue::State;
use ::sched::queue::{self, Life};
use mm::addr::VirtAddr;
use mm::machine::CpuId;
use mm::space::{FaultError, SigBusCause};
use spin::Once;

use crate::cpu::lock::IrqLock;
use crate::mem::kstack::Stack;
use crate::mem::machine::Space;
use crate::task::wait::WaitQueue;

/// Why a task was ended. A task's function returns it; nothing is ever unwound or torn down half-way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The memory behind a mapping is gone.
    SigBus {
        /// First address that is lost.
        addr: VirtAddr,
        /// How many bytes are lost there.
        len_bytes: u64,
        /// Why.
        cause: SigBusCause,
    },
    /// An access to what is not mapped, or not so.
    SigSegv {
        /// The address.
        addr: VirtAddr,
    },
    /// No memory for a page table or page metadata.
    OutOfMemory,
    /// Somebody asked the task to end.
    Killed,
}

impl From<FaultError> for Signal {
    fn from(error: FaultError) -> Self {
        match error {
            FaultError::NotMapped(addr) | FaultError::AccessDenied(addr) => Self::SigSegv { addr },
            FaultError::SigBus { addr, len_bytes, cause } => Self::SigBus { addr, len_bytes, cause },
            // As Linux answers it.
            FaultError::TooManyRefs(_) | FaultError::OutOfMemory => Self::OutOfMemory,
        }
    }
}

impl fmt::Display for Signal {
    /// As the value of a machine-readable line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SigBus { addr, len_bytes, cause } => {
                write!(f, "sigbus addr={addr} len={len_bytes} cause={cause}")
            }
            Self::SigSegv { addr } => write!(f, "sigsegv addr={addr}"),
            Self::OutOfMemory => f.write_str("out-of-memory"),
            Self::Killed => f.write_str("killed"),
        }
    }
}

impl Signal {
    /// The same for people.
    pub fn in_words(&self) -> impl fmt::Display {
        struct Words(Signal);
        impl fmt::Display for Words {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    Signal::SigBus { addr, len_bytes, cause } => {
                        let why = match cause {
                            SigBusCause::DeviceGone => "its device is gone",
                            SigBusCause::Poisoned => "the page is lost",
                            SigBusCause::BeyondEnd => "it lies beyond the end",
                            SigBusCause::ShutDown => "its file system is shut down",
                            SigBusCause::NoSpace => "its file system has no space left",
                        };
                        write!(f, "SIGBUS at {addr}, {len_bytes} bytes: {why}")
                    }
                    Signal::SigSegv { addr } => write!(f, "SIGSEGV: nothing that it may use at {addr}"),
                    Signal::OutOfMemory => f.write_str("a lack of memory for its page tables"),
                    Signal::Killed => f.write_str("a request to end"),
                }
            }
        }
        Words(*self)
    }
}

/// What a SIGBUS tells: which memory is lost, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SigBus {
    /// First address that is lost.
    pub addr: VirtAddr,
    /// How many bytes are lost there.
    pub len_bytes: u64,
    /// Why.
    pub cause: SigBusCause,
}

impl SigBus {
    /// Is the byte at `va` among what is lost?
    pub fn contains(&self, va: VirtAddr) -> bool {
        va.as_u64().checked_sub(self.addr.as_u64()).is_some_and(|offset| offset < self.len_bytes)
    }
}

impl From<SigBus> for Signal {
    fn from(SigBus { addr, len_bytes, cause }: SigBus) -> Self {
        Self::SigBus { addr, len_bytes, cause }
    }
}

/// What a task wants after a SIGBUS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// To go on with its other work. The signal is consumed.
    GoOn,
    /// To end. The signal stays, and every later user access answers it.
    End,
}

/// What a task does about a SIGBUS. It runs in the task, with interrupts on, and may sleep and access user memory; a
/// SIGBUS that it meets itself is not caught. See [`catch_sigbus`](crate::task::user::catch_sigbus).
pub type SigBusHandler = Box<dyn FnMut(&SigBus) -> Choice + Send>;

/// How a task ended: with its work done, or by a signal.
pub type Exit = Result<(), Signal>;

/// What a task does. Its answer is how it ends.
pub type Work = Box<dyn FnOnce() -> Exit + Send>;

/// A task.
pub struct Task {
    /// Number, not used twice.
    pub id: u64,
    /// What it is called on the console.
    pub name: String,
    /// The only CPU that runs it.
    pub cpu: CpuId,
    stack: Stack,
    /// Stack pointer while it does not run. Written by its CPU alone, with interrupts off.
    pub(crate) saved_rsp: UnsafeCell<u64>,
    life: Life,
    work: IrqLock<Option<Work>>,
    space: IrqLock<Option<Arc<Space>>>,
    /// The number of its address space, also after its end.
    space_id: Option<u64>,
    /// A signal that somebody else has sent.
    pending: IrqLock<Option<Signal>>,
    has_pending: AtomicBool,
    /// Locks that it holds; counted in debug builds ([`mm::lock_check`]).
    pub(crate) locks_held: AtomicI64,
    /// What it does about a SIGBUS; not here while it runs.
    sigbus_handler: IrqLock<Option<SigBusHandler>>,
    /// The signal of the last user access that failed.
    fault: IrqLock<Option<Signal>>,
    exit: Once<Exit>,
    /// Who waits for the end.
    pub(crate) joiners: WaitQueue,
    /// User accesses that faulted and were resolved.
    pub faults: AtomicU64,
}

impl queue::Task for Task {
    fn life(&self) -> &Life {
        &self.life
    }
}

// SAFETY: `saved_rsp` is touched only by the task's own CPU with interrupts off; the rest is Sync.
unsafe impl Sync for Task {}

impl Task {
    /// A task that has never run. `None` when there is no stack for it.
    pub fn new(name: &str, cpu: CpuId, space: Option<Arc<Space>>, work: Option<Work>) -> Option<Arc<Self>> {
        Some(Self::on_stack(name, cpu, Stack::new()?, space, work))
    }

    /// The same, on a given stack.
    pub(crate) fn on_stack(
        name: &str,
        cpu: CpuId,
        stack: Stack,
        space: Option<Arc<Space>>,
        work: Option<Work>,
    ) -> Arc<Self> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        // A task without work is an idle task: it already runs on its stack.
        let rsp = match work {
            // SAFETY: the stack is mapped, and nobody else's.
            Some(_) => unsafe { arch::context::prepare_stack(stack.top(), crate::task::sched::first_entry, 0) },
            None => 0,
        };
        let space_id = space.as_ref().map(|space| space.id());
        let task = Arc::new(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            name: name.into(),
            cpu,
            stack,
            saved_rsp: UnsafeCell::new(rsp),
            life: Life::new(),
            work: IrqLock::new(work),
            space: IrqLock::new(space),
            space_id,
            pending: IrqLock::new(None),
            has_pending: AtomicBool::new(false),
            locks_held: AtomicI64::new(0),
            sigbus_handler: IrqLock::new(None),
            fault: IrqLock::new(None),
            exit: Once::new(),
            joiners: WaitQueue::new(),
            faults: AtomicU64::new(0),
        });
        if space_id.is_some() {
            WITH_SPACE.lock().insert(task.id, Arc::downgrade(&task));
        }
        task
    }

    /// Where it is in its life, at this moment.
    pub fn state(&self) -> State {
        self.life.state()
    }

    /// Its kernel stack.
    pub fn stack(&self) -> &Stack {
        &self.stack
    }

    pub(crate) fn take_work(&self) -> Option<Work> {
        self.work.lock().take()
    }

    /// Its address space; `None` for a task of the kernel alone, and after its end.
    pub fn space(&self) -> Option<Arc<Space>> {
        self.space.lock().clone()
    }

    pub(crate) fn take_space(&self) -> Option<Arc<Space>> {
        self.space.lock().take()
    }

    /// Sends a signal: the task sees it at its next user access or [`check_signal`](crate::task::user::check_signal). The
    /// first one stays, but for a SIGBUS, which can be caught: one that cannot takes its place.
    pub fn send_signal(&self, signal: Signal) {
        let mut pending = self.pending.lock();
        let stays = match (*pending, signal) {
            (None, _) => false,
            (Some(Signal::SigBus { .. }), new) => matches!(new, Signal::SigBus { .. }),
            (Some(_), _) => true,
        };
        if !stays {
            *pending = Some(signal);
        }
        // Release; pairs with the Acquire in `pending_signal`. Under the lock, so that it agrees with what is there.
        self.has_pending.store(true, Ordering::Release);
    }

    /// Takes the SIGBUS that somebody has sent, if any.
    pub(crate) fn take_pending_sigbus(&self) -> Option<SigBus> {
        let mut pending = self.pending.lock();
        let Some(Signal::SigBus { addr, len_bytes, cause }) = *pending else { return None };
        *pending = None;
        self.has_pending.store(false, Ordering::Release);
        Some(SigBus { addr, len_bytes, cause })
    }

    pub(crate) fn take_sigbus_handler(&self) -> Option<SigBusHandler> {
        self.sigbus_handler.lock().take()
    }

    /// Answers what was there: the caller drops it, outside the lock.
    pub(crate) fn set_sigbus_handler(&self, handler: SigBusHandler) -> Option<SigBusHandler> {
        self.sigbus_handler.lock().replace(handler)
    }

    /// The signal that somebody has sent, if any. One load where there is none.
    #[inline]
    pub fn pending_signal(&self) -> Option<Signal> {
        // Acquire; pairs with the Release in `send_signal`.
        if !self.has_pending.load(Ordering::Acquire) {
            return None;
        }
        *self.pending.lock()
    }

    /// Remembers why the user access that is under way fails.
    pub fn set_fault(&self, signal: Signal) {
        *self.fault.lock() = Some(signal);
    }

    /// Why the last user access failed.
    pub fn take_fault(&self) -> Option<Signal> {
        self.fault.lock().take()
    }

    pub(crate) fn set_exit(&self, exit: Exit) {
        self.exit.call_once(|| exit);
    }

    /// How it ended, once it has.
    pub fn exit(&self) -> Option<Exit> {
        self.exit.get().copied()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if self.space_id.is_some() {
            WITH_SPACE.lock().remove(&self.id);
        }
    }
}

/// The tasks that have an address space, or had one until they ended, by number.
static WITH_SPACE: IrqLock<BTreeMap<u64, Weak<Task>>> = IrqLock::new(BTreeMap::new());

/// Calls `each` with every task that has an address space, and the space's number, oldest first. A task that comes or
/// ends meanwhile may be missed. Asks for no memory.
pub fn for_each_with_space(each: &mut dyn FnMut(u64, &Task)) {
    for_each_listed(&mut |task| {
        let space = task.space.lock().as_ref().map(|space| space.id());
        if let Some(space) = space {
            each(space, task);
        }
    });
}

/// The same with those that have lost a device and are at their end because of it, or past it, as long as somebody
/// wants to know how they ended: a task may be gone before a removal has come to ask whom it has ended.
pub fn for_each_user(each: &mut dyn FnMut(u64, &Task)) {
    for_each_listed(&mut |task| {
        let concerned = match task.exit() {
            None => true,
            Some(Err(Signal::SigBus { cause, .. })) => cause == SigBusCause::DeviceGone,
            Some(_) => false,
        };
        if let Some(space) = task.space_id.filter(|_| concerned) {
            each(space, task);
        }
    });
}

fn for_each_listed(each: &mut dyn FnMut(&Task)) {
    let mut next = 0;
    loop {
        // The lock is open again before anything is dropped: a task may be the last to hold its space.
        let found = WITH_SPACE.lock().range(next..).next().map(|(&id, task)| (id, task.upgrade()));
        let Some((id, task)) = found else { return };
        next = id + 1;
        if let Some(task) = task {
            each(&task);
        }
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {} \"{}\" on CPU {}", self.id, self.name, self.cpu)
    }
}
