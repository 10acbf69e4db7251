//! CPUs that load an address space, go idle and wake, against zaps.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use mm::addr::PAGE_SIZE;
use mm::machine::Machine;
use mm::mutant::Mutant;
use mm::tlb::RING;

use super::{Scenario, Stage};
use crate::board::{Board, Shape, Space, page};
use crate::conductor::{self, Program};
use crate::fault::Fault::Mm;

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "switch-against-unmap",
        what: "CPU 1 loads the space, and fetches ahead, while CPU 0 unmaps a page",
        faults: &[Mm(Mutant::SwitchEntersLate)],
        shape: Shape::small(2),
        stage: |board| {
            let space = board.space(2);
            board.warm(0, &space, &[0, 1]);
            race(board, &space, vec![0], |board, space| board.load(Some(space))).fetching(vec![page(0)])
        },
    },
    Scenario {
        name: "idle-switch-against-unmap",
        what: "CPU 1, which idles, loads the space, and fetches ahead, while CPU 0 unmaps a page",
        faults: &[Mm(Mutant::SwitchStaysLazy), Mm(Mutant::SwitchEntersLate)],
        shape: Shape::small(2),
        stage: |board| {
            let space = board.space(2);
            board.warm(0, &space, &[0, 1]);
            let other = board.empty_space();
            board.emu.on_cpu(1, || {
                board.load(Some(&other));
                board.go_idle();
            });
            let mut stage =
                race(board, &space, vec![0], |board, space| board.load(Some(space))).fetching(vec![page(0)]);
            stage.spaces.push(other);
            stage
        },
    },
    Scenario {
        name: "wake-against-unmap",
        what: "CPU 1 idles with the space loaded, and wakes, while CPU 0 unmaps a page",
        faults: &[Mm(Mutant::LazyNotCaughtUp)],
        shape: Shape::small(2),
        stage: |board| {
            let space = idle(board, 2);
            race(board, &space, vec![0], |board, _| board.wake())
        },
    },
    Scenario {
        name: "wake-against-many-unmaps",
        what: "CPU 1 idles, and wakes, while CPU 0 unmaps more pages one by one than the ring remembers",
        faults: &[Mm(Mutant::RingOverflowIgnored), Mm(Mutant::LazyNotCaughtUp)],
        shape: Shape::small(2),
        stage: |board| {
            let nr = RING as u64 + 2;
            let space = idle(board, 2 * nr);
            // From the top down and apart, so that no range happens to cover an earlier one.
            race(board, &space, (0..nr).rev().map(|nr| 2 * nr).collect(), |board, _| board.wake())
        },
    },
    Scenario {
        name: "idle-against-table",
        what: "CPU 1 idles, and may walk ahead of need, while CPU 0 unmaps and frees a table",
        faults: &[Mm(Mutant::LazySkippedForTables)],
        shape: Shape::small(2),
        stage: |board| {
            let space = idle(board, 2);
            let (theirs, ours) = (board.clone(), space.clone());
            let unmap: Program = Box::new(move || _ = ours.unmap(page(0), 2 * PAGE_SIZE).expect("it is mapped"));
            let walks: Program = Box::new(move || {
                conductor::step("fetches ahead of need");
                theirs.emu.prefetch(page(1));
            });
            Stage::of(vec![space.clone()], vec![unmap, walks])
        },
    },
    Scenario {
        name: "leave-against-unmap",
        what: "CPU 1 leaves the space and loads it again, while CPU 0 unmaps a page",
        faults: &[Mm(Mutant::SwitchEntersLate)],
        shape: Shape::small(2),
        stage: |board| {
            let space = board.space(2);
            (0..2).for_each(|cpu| board.warm(cpu, &space, &[0, 1]));
            race(board, &space, vec![0], |board, space| {
                board.load(None);
                board.load(Some(space));
            })
            .fetching(vec![page(0)])
        },
    },
];

/// A space that CPU 0 uses, and CPU 1 has loaded while it idles, with pages in its TLB.
fn idle(board: &Rc<Board>, nr_pages: u64) -> Arc<Space> {
    let space = board.space(nr_pages);
    let all: Vec<u64> = (0..nr_pages).collect();
    (0..2).for_each(|cpu| board.warm(cpu, &space, &all));
    board.emu.on_cpu(1, || board.go_idle());
    space
}

/// CPU 0 unmaps pages one after the other; CPU 1 does `other`, and then loads from the first of them.
fn race(
    board: &Rc<Board>,
    space: &Arc<Space>,
    pages: Vec<u64>,
    other: impl FnOnce(&Board, &Arc<Space>) + 'static,
) -> Stage {
    let gone = Rc::new(Cell::new(false));
    let first = pages[0];
    let (mine, ours, flag) = (board.clone(), space.clone(), gone.clone());
    let unmaps: Program = Box::new(move || {
        for nr in pages {
            conductor::note(|| format!("unmaps page {nr}"));
            ours.unmap(page(nr), PAGE_SIZE).expect("it is mapped");
            flag.set(true);
            mine.reuse(nr);
        }
    });
    let (theirs, also) = (board.clone(), space.clone());
    let loads: Program = Box::new(move || {
        other(&theirs, &also);
        for _ in 0..2 {
            conductor::step("loads a page");
            let was_gone = gone.get();
            if let Ok(stamp) = theirs.emu.read(page(first), true) {
                let cpu = theirs.emu.cpu();
                assert!(!was_gone, "CPU {cpu} read {stamp:#x} at {} after its unmap", page(first));
            }
        }
    });
    Stage::of(vec![space.clone()], vec![unmaps, loads])
}
