//! What the demonstration asks of its host: a machine check, by which it loses a page; and that memory modules are pulled out
//! and put back.
//!
//! Where the boot option `host_requests=` promises that somebody reads the console and grants requests, the kernel says
//! what it asks for, in a line for programs, and who reads it grants it, through QEMU's monitor. Elsewhere, and where the
//! promise is not kept, the kernel raises the machine check itself. In deterministic mode nothing is promised: a command
//! of the host's would come at another instruction in each run.

use mm::addr::{PAGE_SHIFT, PAGE_SIZE, Pfn};

use super::gate::wait_until;
use crate::console::report;
use crate::cpu::time;
use crate::trap::memory_error::{self, Loss};

/// How much longer than a request can be granted the kernel waits: one that was granted at the last moment is still dealt
/// with, so that no machine check comes twice.
const GRACE_NS: u64 = 2_000_000_000;

/// Loses one frame by a machine check, raised by whoever grants requests within `host_requests_s` seconds, if that is not
/// 0. Answers what its handler has noted; `None` where nobody can raise one, and the frame was lost without. The page is
/// taken away.
pub fn lose(frame: Pfn, host_requests_s: u64) -> Option<Loss> {
    // What came before this is of no interest.
    memory_error::take_dealt_with();
    if host_requests_s != 0 {
        let within_ns = host_requests_s * 1_000_000_000;
        let addr = frame.addr().as_u64();
        log::info!("the host is asked for a machine check: {PAGE_SIZE} bytes from {addr:#x}");
        report!("host_request what=machine_check addr={addr:#x} len={PAGE_SIZE} within_ns={within_ns}");
        let granted = wait_for(frame, within_ns + GRACE_NS);
        if granted.is_some() {
            return granted;
        }
        log::info!("nobody grants the request: the kernel raises the machine check itself");
    }
    if !arch::mce::raise(frame.addr().as_u64(), PAGE_SHIFT) {
        log::warn!(
            "this machine keeps its machine-check registers to itself: the page is lost without a machine check"
        );
        memory_error::fail(frame);
        return None;
    }
    // Its handler has run.
    wait_for(frame, u64::MAX)
}

/// Asks for something that is done to a slot for memory modules, `pull` or `put`, within so many seconds, if that is not 0.
pub fn ask(what: &str, slot: u32, host_requests_s: u64) {
    if host_requests_s != 0 {
        let within_ns = host_requests_s * 1_000_000_000;
        log::info!("the host is asked to {what} the memory module of slot {slot}");
        report!("host_request what={what} slot={slot} within_ns={within_ns}");
    }
}

/// Waits until a machine check for this frame is dealt with; `None` where none was.
fn wait_for(frame: Pfn, within_ns: u64) -> Option<Loss> {
    let end_ns = time::since_first_line_ns().saturating_add(within_ns);
    let mut found = None;
    wait_until(|| {
        found = memory_error::take_dealt_with().filter(|loss| loss.first == frame);
        found.is_some() || time::since_first_line_ns() >= end_ns
    });
    found
}
