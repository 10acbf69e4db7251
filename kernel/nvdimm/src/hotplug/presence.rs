//! Is the memory there at all of some frames? Asked of each module once, however many runs of frames are in it: the answer is
//! in its slot's registers, and a transfer may be to hundreds of thousands of pages far apart.

use arrayvec::ArrayVec;
use mm::addr::{Pfn, PfnRange};

/// So many parts are remembered; where frames change between more of them, some are asked again.
pub const REMEMBERED: usize = 16;

/// Is the memory there at all of these frames? `around` answers for one frame: a range around it at all of which the memory is
/// there, or `None`. What it has answered it is not asked again, up to [`REMEMBERED`] ranges.
///
/// # Panics
/// It answers a range in which the frame is not.
pub fn all_there(runs: &[PfnRange], mut around: impl FnMut(Pfn) -> Option<PfnRange>) -> bool {
    // The one that was last of use is first.
    let mut parts: ArrayVec<PfnRange, REMEMBERED> = ArrayVec::new();
    for run in runs {
        let mut at = run.start();
        // A run may go over several that touch.
        while at < run.end() {
            let part = match parts.iter().position(|part| part.contains(at)) {
                Some(nth) => parts.remove(nth),
                None => {
                    let Some(part) = around(at) else { return false };
                    assert!(part.contains(at), "{at:?} is not in {part:?}");
                    if parts.is_full() {
                        parts.pop();
                    }
                    part
                }
            };
            parts.insert(0, part);
            at = part.end();
        }
    }
    true
}
