//! Where a file's new blocks go: so that the file stays in one piece, and so that large leaves can map it.
//!
//! A leaf needs the place in the file and the frame to agree modulo its size. Blocks are at multiples of 2 MiB where the
//! file is at one and is large. A file that has a whole 1 GiB, by its size, has that in one free 1 GiB of the device where
//! there is one: the first 2 MiB of it decide, and all others, in whatever order, take their places beside them.

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
    if let Some(goal) = in_giant(node, change, logical, size, large && at_huge)? {
        let store = change.store;
        let run = match large && at_huge {
            true => store.take_areas_at(change.tx, goal, want.min(GIANT_BLOCKS - logical % GIANT_BLOCKS))?,
            false => store.take_at(change.tx, goal, want.min(HUGE_BLOCKS - logical % HUGE_BLOCKS))?,
        };
        if let Some(run) = run {
            return Ok(run);
        }
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
    let goal = in_giant(node, change, logical, size, true)?;
    let run = goal.map(|goal| change.store.take_areas_at(change.tx, goal, HUGE_BLOCKS)).transpose()?.flatten();
    match run {
        Some(run) => Ok(Some(run)),
        None => change.store.take_whole(change.tx, change.hint),
    }
}

/// The place of block `logical` in the 1 GiB that a giant leaf would map; `None` where the file has none. `begins`: where
/// nothing is there of it yet, it begins with this block.
fn in_giant(
    node: &Node,
    change: &mut Change<'_>,
    logical: u64,
    size: u64,
    begins: bool,
) -> Result<Option<u64>, FsError> {
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
        None if begins => change.store.free_giant(change.tx)?,
        None => None,
    };
    Ok(giant.map(|giant| giant + (logical - start)))
}
