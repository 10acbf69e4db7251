//! How the demonstration loses a page: by a machine check that its host raises.
//!
//! The kernel says what it wishes for, in a line for programs. Who reads the console may grant it, through QEMU's monitor.
//! Where nobody does, the kernel raises the machine check itself. In deterministic mode it does so at once: a command of
//! the host's would come at another instruction in each run.

use alloc::string::String;

use mm::addr::{PAGE_SIZE, Pfn};

use super::load::wait_until;
use crate::memory_error::{self, Loss};
use crate::{report, time};

/// How long a wish can be granted.
const GRANTED_WITHIN_NS: u64 = 4_000_000_000;
/// How long the page may take to go, once the machine check is raised. A wish that was granted at the last moment is
/// waited for, so that no machine check comes twice.
const DEALT_WITH_WITHIN_NS: u64 = 2_000_000_000;

/// Loses one frame by a machine check; answers what its handler has noted. The page is taken away.
///
/// # Errors
/// No machine check was handled for this frame.
pub fn lose(frame: Pfn) -> Result<Loss, String> {
    // What came before this is of no interest.
    memory_error::take_dealt_with();
    if !time::is_deterministic() {
        let addr = frame.addr().as_u64();
        log::info!("the host is asked for a machine check: {PAGE_SIZE} bytes from {addr:#x}");
        report!("wish what=machine_check addr={addr:#x} len={PAGE_SIZE} within_ns={GRANTED_WITHIN_NS}");
        if let Some(loss) = wait_for(frame, GRANTED_WITHIN_NS + DEALT_WITH_WITHIN_NS) {
            return Ok(loss);
        }
        log::info!("nobody grants the wish: the kernel raises the machine check itself");
    }
    memory_error::raise(frame)?;
    wait_for(frame, DEALT_WITH_WITHIN_NS).ok_or_else(|| "no machine check was handled for the lost page".into())
}

/// Waits until a machine check for this frame is dealt with; `None` where none was.
fn wait_for(frame: Pfn, within_ns: u64) -> Option<Loss> {
    let end_ns = time::since_first_line_ns() + within_ns;
    let mut found = None;
    wait_until(|| {
        found = memory_error::take_dealt_with().filter(|loss| loss.first == frame);
        found.is_some() || time::since_first_line_ns() >= end_ns
    });
    found
}
