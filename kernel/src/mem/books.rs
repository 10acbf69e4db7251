//! What is compared before and after, to see whether anything was lost.

use crate::mem::{heap, kstack, memory};

/// Frames in use, but for those that come and go by themselves: stacks that wait for the next task, slabs of small objects.
pub fn frames() -> u64 {
    memory::used_frames() - kstack::frames() - heap::slab_frames()
}
