//! What is compared before and after, to see whether anything was lost.

use core::sync::atomic::{AtomicI64, Ordering};

use crate::mem::{heap, kstack, memory};

/// Frames that come and go by themselves, and are counted elsewhere.
static APART: AtomicI64 = AtomicI64::new(0);

/// So many more frames, or fewer, are left out of [`frames`]: tables of the IOMMU, of which a domain keeps those on the way to
/// the next mapping. Its own statistics count them.
pub fn set_apart(more: i64) {
    APART.fetch_add(more, Ordering::Relaxed);
}

/// Frames in use, but for those that come and go by themselves: stacks that wait for the next task, slabs of small objects,
/// and what was [set apart](set_apart).
pub fn frames() -> u64 {
    let counted = memory::used_frames() - kstack::frames() - heap::slab_frames();
    counted.saturating_add_signed(-APART.load(Ordering::Relaxed))
}
