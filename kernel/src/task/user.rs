//! User memory, as a task sees it: every access can end in a [`Signal`], which the task's work passes on with `?`; and
//! a SIGBUS, which it may catch.

use alloc::boxed::Box;

use mm::addr::VirtAddr;
use mm::space::Access;

use crate::task::sched;
use crate::task::tcb::{Choice, SigBus, SigBusHandler, Signal, Task};

/// From now on `handler` is asked whenever a SIGBUS comes to the running task: by an access of its own to memory that is
/// lost, or sent by somebody else.
///
/// - It says [`Choice::GoOn`]: the signal is consumed. An access to what is lost answers it to its caller, who has to
///   leave that memory alone: each further access to it asks again. An access elsewhere goes on as if nothing was.
/// - It says [`Choice::End`]: the handler is forgotten, and this and every later access answers the signal.
pub fn catch_sigbus(handler: impl FnMut(&SigBus) -> Choice + Send + 'static) {
    let before = sched::current().and_then(|task| task.set_sigbus_handler(Box::new(handler)));
    drop(before);
}

/// Asks the running task's handler, if it has one, about a SIGBUS.
fn ask(task: &Task, mut handler: SigBusHandler, lost: SigBus) -> Choice {
    let choice = handler(&lost);
    match choice {
        Choice::GoOn => {
            let signal = Signal::from(lost);
            log::info!(target: "tasks", "{} on CPU {} catches {}", task.name, task.cpu, signal.in_words());
            crate::console::report!("task id={} name={} cpu={} caught={signal}", task.id, task.name, task.cpu);
            let replaced = task.set_sigbus_handler(handler);
            if let Some(newer) = replaced {
                // It has chosen another handler for the next time.
                drop(task.set_sigbus_handler(newer));
            }
        }
        Choice::End => {
            drop(task.take_sigbus_handler());
            task.send_signal(lost.into());
        }
    }
    choice
}

/// Delivers what somebody has sent to the running task. A SIGBUS that was caught is the answer.
#[inline]
fn deliver() -> Result<Option<SigBus>, Signal> {
    match sched::with_current(Task::pending_signal).flatten() {
        None => Ok(None),
        Some(signal) => deliver_slowly(signal),
    }
}

#[cold]
fn deliver_slowly(signal: Signal) -> Result<Option<SigBus>, Signal> {
    let Some(task) = sched::current() else { return Err(signal) };
    if !matches!(signal, Signal::SigBus { .. }) {
        return Err(signal);
    }
    let Some(handler) = task.take_sigbus_handler() else { return Err(signal) };
    let Some(lost) = task.take_pending_sigbus() else {
        // One that cannot be caught has taken its place.
        drop(task.set_sigbus_handler(handler));
        return Err(task.pending_signal().unwrap_or(signal));
    };
    match ask(&task, handler, lost) {
        Choice::GoOn => Ok(Some(lost)),
        Choice::End => Err(lost.into()),
    }
}

/// The signal that somebody has sent to the running task, if any. A SIGBUS that its handler catches is none.
///
/// # Errors
/// That signal.
pub fn check_signal() -> Result<(), Signal> {
    deliver().map(drop)
}

/// [`check_signal`] before an access at `va`: fails, too, where that is in what is lost, so that the handler is not
/// asked a second time for it.
#[inline]
fn check_before(va: VirtAddr) -> Result<(), Signal> {
    match deliver()? {
        Some(lost) if lost.contains(va) => Err(lost.into()),
        _ => Ok(()),
    }
}

/// Why the access that has just failed did. The task's handler is asked about a SIGBUS.
fn why(va: VirtAddr) -> Signal {
    // Where no fault happened the range was not in the user half.
    let signal = sched::with_current(Task::take_fault).flatten().unwrap_or(Signal::SigSegv { addr: va });
    if let Signal::SigBus { addr, len_bytes, cause } = signal
        && let Some(task) = sched::current()
        && let Some(handler) = task.take_sigbus_handler()
    {
        ask(&task, handler, SigBus { addr, len_bytes, cause });
    }
    signal
}

/// Reads eight bytes.
///
/// # Errors
/// A signal: the access cannot be completed, or somebody has sent one.
pub fn read_u64(va: VirtAddr) -> Result<u64, Signal> {
    check_before(va)?;
    arch::user::read_u64(va.as_u64()).map_err(|_| why(va))
}

/// Writes eight bytes.
///
/// # Errors
/// As for [`read_u64`].
pub fn write_u64(va: VirtAddr, value: u64) -> Result<(), Signal> {
    check_before(va)?;
    arch::user::write_u64(va.as_u64(), value).map_err(|_| why(va))
}

/// Copies from user memory.
///
/// # Errors
/// As for [`read_u64`]; the first bytes may have been copied.
pub fn copy_from(to: &mut [u8], from: VirtAddr) -> Result<(), Signal> {
    check_before(from)?;
    arch::user::copy_from(to, from.as_u64()).map_err(|_| why(from))
}

/// Copies to user memory.
///
/// # Errors
/// As for [`read_u64`]; the first bytes may have been copied.
pub fn copy_to(to: VirtAddr, from: &[u8]) -> Result<(), Signal> {
    check_before(to)?;
    arch::user::copy_to(to.as_u64(), from).map_err(|_| why(to))
}

/// What a page fault's error code says about the access (SDM vol. 3A, figure 4-12).
pub fn access_of(error_code: u64) -> Access {
    const WRITE: u64 = 1 << 1;
    const FETCH: u64 = 1 << 4;
    match error_code {
        code if code & FETCH != 0 => Access::Exec,
        code if code & WRITE != 0 => Access::Write,
        _ => Access::Read,
    }
}
