//! gup-fast against what takes pages, tables and metadata away.
//!
//! Two things must not happen: a pin is taken through an entry that was known to be gone (the interrupt of the shootdown
//! was pending before the reference was taken), and a pinned page has no metadata, or belongs to somebody else.

use std::rc::Rc;
use std::sync::Arc;

use mm::addr::{PAGE_SIZE, PfnRange};
use mm::gup::{self, GupFlags, RangeArray};
use mm::machine::Machine;
use mm::mutant::Mutant;
use mm::space::Access;

use super::{Scenario, Stage};
use crate::board::{Board, Shape, Space, page};
use crate::conductor::{self, Program};
use crate::fault::Fault::Mm;

const FAST: GupFlags = GupFlags::FAST_ONLY.union(GupFlags::WRITE);

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "gup-against-zap",
        what: "CPU 1 pins a page that CPU 0 unmaps",
        faults: &[Mm(Mutant::NoEntryRecheck)],
        shape: Shape::small(2),
        stage: |board| {
            let space = board.space(2);
            pinners(board, &space, unmaps(0, 1), |board, space| pin(board, space, 0, 1))
        },
    },
    Scenario {
        name: "gup-against-table",
        what: "CPU 1 pins a page of a table that CPU 0 unmaps and frees",
        faults: &[
            Mm(Mutant::NoUpperRecheck),
            Mm(Mutant::TableFreedBeforeSync),
            Mm(Mutant::GupIrqsOn),
            Mm(Mutant::NoShootdown),
            Mm(Mutant::CpuMissing),
            Mm(Mutant::ReferenceFromZero),
        ],
        shape: Shape::small(2),
        stage: |board| {
            let space = two_pages(board);
            pinners(board, &space, unmaps(0, 2), |board, space| pin(board, space, 1, 1))
        },
    },
    Scenario {
        name: "gup-run-against-table",
        what: "CPU 1 pins two pages as a run, of a table that CPU 0 unmaps and frees",
        faults: &[Mm(Mutant::NoUpperRecheck), Mm(Mutant::TableFreedBeforeSync)],
        shape: Shape::small(2),
        stage: |board| {
            let space = two_pages(board);
            pinners(board, &space, unmaps(0, 2), |board, space| pin(board, space, 0, 2))
        },
    },
    Scenario {
        name: "gup-against-huge-zap",
        what: "CPU 1 pins a page of a huge leaf that CPU 0 unmaps",
        faults: &[Mm(Mutant::NoEntryRecheck)],
        shape: Shape::huge(2),
        stage: |board| {
            let space = board.space(1024);
            pinners(board, &space, unmaps(0, 512), |board, space| pin(board, space, 3, 1))
        },
    },
    Scenario {
        name: "gup-after-anew",
        what: "CPU 1 pins a page twice, which CPU 0 unmaps and maps again in between: its metadata is made anew",
        faults: &[Mm(Mutant::RecentNotEmptied)],
        shape: Shape::huge(2),
        stage: |board| {
            let space = board.space(512);
            board.map(&space, 512, 1);
            let again = |board: &Board, space: &Arc<Space>| {
                space.unmap(page(0), 512 * PAGE_SIZE).expect("it is mapped");
                board.map(space, 0, 512);
                space.handle_fault(page(0), Access::Write).expect("the page is there");
            };
            pinners(board, &space, again, |board, space| {
                pin(board, space, 0, 1);
                pin(board, space, 0, 1);
            })
        },
    },
    Scenario {
        name: "gup-against-two-zaps",
        what: "CPU 1 pins a page, and a run, while CPUs 0 and 2 unmap one page each",
        faults: &[],
        shape: Shape::small(3),
        stage: |board| {
            let space = board.space(3);
            let mut stage = pinners(board, &space, unmaps(0, 1), |board, space| {
                pin_any(board, space, 0, 1);
                pin_any(board, space, 1, 2);
            });
            let (theirs, also) = (board.clone(), space.clone());
            stage.programs[2] = Box::new(move || unmaps(1, 1)(&theirs, &also));
            stage
        },
    },
];

/// CPU 0 does `first`, CPU 1 `other`, and both have the space loaded.
fn pinners(
    board: &Rc<Board>,
    space: &Arc<Space>,
    first: impl FnOnce(&Board, &Arc<Space>) + 'static,
    other: impl FnOnce(&Board, &Arc<Space>) + 'static,
) -> Stage {
    (0..board.cpus()).for_each(|cpu| board.warm(cpu, space, &[]));
    let (mine, ours) = (board.clone(), space.clone());
    let (theirs, also) = (board.clone(), space.clone());
    let mut programs: Vec<Program> =
        vec![Box::new(move || first(&mine, &ours)), Box::new(move || other(&theirs, &also))];
    programs.resize_with(board.cpus(), || Box::new(|| ()));
    Stage::of(vec![space.clone()], programs)
}

/// Two pages, and something else near them: so what is unlinked with them is their table, and none above it. (A walk does
/// not see that of a table two levels up, and need not: see [`mm::gup`].)
fn two_pages(board: &Board) -> Arc<Space> {
    let space = board.space(2);
    board.map(&space, 512, 1);
    space
}

/// Unmaps pages; each that nobody holds afterwards gets its next owner.
fn unmaps(first: u64, nr: u64) -> impl Fn(&Board, &Arc<Space>) + 'static {
    move |board, space| {
        conductor::note(|| format!("unmaps page {first} and in all {nr}"));
        space.unmap(page(first), nr * PAGE_SIZE).expect("it is mapped");
        conductor::note(|| "the unmap has returned".into());
        (first..first + nr.min(4)).for_each(|nr| board.reuse(nr));
    }
}

/// Pins pages of which one CPU unmaps all, and does nothing else that this one is interrupted for: see [`pin_any`]. So once
/// the interrupt is pending there is no pin.
fn pin(board: &Board, space: &Arc<Space>, first: u64, nr: u64) {
    let known = pin_any(board, space, first, nr);
    assert!(
        !known,
        "CPU {} pinned page {first} through an entry that was known to be gone: the interrupt of its unmap was pending",
        board.emu.cpu(),
    );
}

/// Pins pages without a lock, uses what there is, and lets it go. Answers whether something was pinned although an interrupt
/// was pending before the (last) reference was taken.
fn pin_any(board: &Board, space: &Arc<Space>, first: u64, nr: u64) -> bool {
    let mut runs = [None; 4];
    let mut sink = RangeArray::new(&mut runs);
    conductor::forget();
    conductor::note(|| format!("pins page {first} and in all {nr}"));
    if gup::pin_user_pages_fast(space, page(first), nr, FAST, &mut sink).is_err() {
        conductor::note(|| "gets none".into());
        return false;
    }
    let known = conductor::knew();
    for run in sink.iter() {
        conductor::note(|| format!("has pinned frame {} and in all {}", run.start(), run.nr_pages()));
        conductor::step("uses what it has pinned");
        use_pinned(board, run, first);
        gup::unpin(&board.mm, run.start(), run.nr_pages());
    }
    known
}

fn use_pinned(board: &Board, run: PfnRange, first: u64) {
    for nth in 0..run.nr_pages() {
        let frame = run.start().add(nth);
        let folio = board.mm.meta.inspect(frame);
        let pins = folio.map_or(0, |folio| folio.counts.pins);
        assert!(pins > 0, "frame {frame} is pinned, and has no metadata that says so: it was freed");
        let (stamp, nr) = (board.emu.stamp(frame), frame.as_u64() - board.frame(0).as_u64());
        assert!(
            nr >= 4 || stamp == board.stamp(nr),
            "pinned frame {frame} (page {first}) holds {stamp:#x}: it is another's"
        );
    }
}
