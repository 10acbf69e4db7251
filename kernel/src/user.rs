//! User memory, as a task sees it: every access can end in a [`Signal`], which the task's work passes on with `?`.

use mm::addr::VirtAddr;
use mm::space::Access;

use crate::sched;
use crate::task::{Signal, Task};

/// The signal that somebody has sent to the running task, if any.
///
/// # Errors
/// That signal.
pub fn check_signal() -> Result<(), Signal> {
    match sched::with_current(Task::pending_signal).flatten() {
        Some(signal) => Err(signal),
        None => Ok(()),
    }
}

/// Why the access that has just failed did.
fn why(va: VirtAddr) -> Signal {
    // Where no fault happened the range was not in the user half.
    sched::with_current(Task::take_fault).flatten().unwrap_or(Signal::SigSegv { addr: va })
}

/// Reads eight bytes.
///
/// # Errors
/// A signal: the access cannot be completed, or somebody has sent one.
pub fn read_u64(va: VirtAddr) -> Result<u64, Signal> {
    check_signal()?;
    arch::user::read_u64(va.as_u64()).map_err(|_| why(va))
}

/// Writes eight bytes.
///
/// # Errors
/// As for [`read_u64`].
pub fn write_u64(va: VirtAddr, value: u64) -> Result<(), Signal> {
    check_signal()?;
    arch::user::write_u64(va.as_u64(), value).map_err(|_| why(va))
}

/// Copies from user memory.
///
/// # Errors
/// As for [`read_u64`]; the first bytes may have been copied.
pub fn copy_from(to: &mut [u8], from: VirtAddr) -> Result<(), Signal> {
    check_signal()?;
    arch::user::copy_from(to, from.as_u64()).map_err(|_| why(from))
}

/// Copies to user memory.
///
/// # Errors
/// As for [`read_u64`]; the first bytes may have been copied.
pub fn copy_to(to: VirtAddr, from: &[u8]) -> Result<(), Signal> {
    check_signal()?;
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
