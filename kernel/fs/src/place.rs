//! Where a file's new blocks go: so that the file stays in one piece, and so that large leaves can map it.
//!
//! A leaf needs the place in the file and the frame to agree modulo its size. Blocks are at multiples of 2 MiB where the
//! file is at one and is large. A file that has a whole 1 GiB, by its size, has that in one free 1 GiB of the device where
//! there is one: the first block that comes to be decides, and all others, in whatever order, take their places beside it.

use crate::error::FsError;
use crate::format::{BLOCK_SIZE, GIANT_BLOCKS, HUGE_BLOCKS};
use crate::node::{Change, Node};
use crate::space::Run;

/// Blocks for a hole of `want` blocks at `logical`: after the blocks before it where they are free, so that the file
/// stays in one piece; at a multiple of 2 MiB where the file is at one and is large.
pub(crate) fn take_for(
    node: &Node,
    change: &mut Change<'_>,
    logical: u64,
    want: u64,
    size: u64,
) -> Result<Run, FsError> {
    let at_huge = logical.is_multiple_of(HUGE_BLOCKS);
    let large = want >= HUGE_BLOCKS || at_huge && size >= HUGE_BLOCKS * BLOCK_SIZE;
    if !(at_huge && large)
        && let Some(before) = logical.checked_sub(1)
        && let Some(goal) = node.piece(before, logical).physical
    {
        // Up to the next multiple of 2 MiB only: from there on whole areas are looked for.
        let room = if large { HUGE_BLOCKS - logical % HUGE_BLOCKS } else { want };
        if let Some(run) = change.store.take_at(change.tx, goal + 1, want.min(room))? {
            return Ok(run);
        }
    }
    if large
        && at_huge
        && let Some(run) = take_in_giant(node, change, logical, want, size)?
    {
        return Ok(run);
    }
    let want = if large && !at_huge { want.min(HUGE_BLOCKS - logical % HUGE_BLOCKS) } else { want };
    change.store.take(change.tx, want, change.hint, large && at_huge)
}

/// A whole free area of 2 MiB for the one at `logical`; `None` where there is none.
pub(crate) fn take_whole(
    node: &Node,
    change: &mut Change<'_>,
    logical: u64,
    size: u64,
) -> Result<Option<Run>, FsError> {
    match take_in_giant(node, change, logical, HUGE_BLOCKS, size)? {
        Some(run) => Ok(Some(run)),
        None => change.store.take_whole(change.tx, change.hint),
    }
}

/// Up to `want` blocks for `logical`, which is at a multiple of 2 MiB, at their place in the 1 GiB that a giant leaf would
/// map; `None` where there is no such place, or it is in use.
fn take_in_giant(
    node: &Node,
    change: &mut Change<'_>,
    logical: u64,
    want: u64,
    size: u64,
) -> Result<Option<Run>, FsError> {
    let start = logical & !(GIANT_BLOCKS - 1);
    let end = start + GIANT_BLOCKS;
    if size / BLOCK_SIZE < end {
        return Ok(None);
    }
    // What is there of it, by its first run.
    let mut there = node.piece(start, end);
    if there.physical.is_none() && start + there.len < end {
        there = node.piece(start + there.len, end);
    }
    let giant = match there.physical {
        Some(first) => first.checked_sub(there.logical - start).filter(|giant| giant.is_multiple_of(GIANT_BLOCKS)),
        None => change.store.free_giant(change.tx)?,
    };
    match giant {
        Some(giant) => change.store.take_areas_at(change.tx, giant + (logical - start), want.min(end - logical)),
        None => Ok(None),
    }
}
