//! References of one folio against each other, and faults of one page.

use std::rc::Rc;

use mm::addr::{PAGE_SIZE, PageSize};
use mm::meta::Owner;
use mm::mutant::Mutant;
use mm::space::Access;

use super::{Scenario, Stage};
use crate::board::{Board, Shape, page};
use crate::conductor::{self, Program};

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "get-against-last-put",
        what: "CPU 1 asks for a reference of a page whose last one CPU 0 drops",
        faults: &[Mutant::ReferenceFromZero],
        shape: Shape::small(2),
        stage: |board| held(board, PageSize::Size4K),
    },
    Scenario {
        name: "get-against-last-put-huge",
        what: "CPU 1 asks for a reference of a folio of 2 MiB whose last one CPU 0 drops",
        faults: &[Mutant::RetireNoRecheck],
        shape: Shape::huge(2),
        stage: |board| held(board, PageSize::Size2M),
    },
    Scenario {
        name: "put-against-put",
        what: "three CPUs drop the three references of one folio",
        faults: &[],
        shape: Shape::huge(3),
        stage: |board| {
            take(board, PageSize::Size2M, 3);
            let puts = || -> Program {
                let board = board.clone();
                Box::new(move || board.mm.meta.put(board.frame(0), 1))
            };
            Stage::of(Vec::new(), vec![puts(), puts(), puts()])
        },
    },
    Scenario {
        name: "install-against-install",
        what: "two CPUs fault on one page, which CPU 2 unmaps",
        faults: &[],
        shape: Shape::small(3),
        stage: |board| {
            let space = board.space(1);
            board.map(&space, 1, 1);
            (0..3).for_each(|cpu| board.warm(cpu, &space, &[0]));
            let faults = || -> Program {
                let space = space.clone();
                // It may be unmapped by then.
                Box::new(move || _ = space.handle_fault(page(1), Access::Write))
            };
            let ours = space.clone();
            let unmap: Program = Box::new(move || _ = ours.unmap(page(1), PAGE_SIZE).expect("it is mapped"));
            let also = space.clone();
            Stage::of(vec![space.clone()], vec![faults(), faults(), unmap]).ends(move |board| {
                let left = board.mm.meta.inspect(board.frame(1)).map(|folio| folio.counts.refs);
                assert!(also.translate(page(1)).is_none(), "page 1 is mapped after its unmap");
                assert!(
                    left.is_none(),
                    "frame {} has {} references after its unmap",
                    board.frame(1),
                    left.unwrap_or(0)
                );
            })
        },
    },
];

/// So many references on the folio of `size` at frame 0.
fn take(board: &Board, size: PageSize, refs: u32) {
    let owner = Owner { mapping: 1, offset: 0 };
    board.mm.meta.get_or_create(board.frame(0), size, owner, refs).expect("there is memory");
}

/// CPU 0 drops the last reference; CPU 1 takes one of its own, which is good until it drops it.
fn held(board: &Rc<Board>, size: PageSize) -> Stage {
    take(board, size, 1);
    let (mine, theirs) = (board.clone(), board.clone());
    let puts: Program = Box::new(move || mine.mm.meta.put(mine.frame(0), 1));
    let gets: Program = Box::new(move || {
        take(&theirs, size, 1);
        conductor::step("uses its reference");
        let frame = theirs.frame(0);
        let refs = theirs.mm.meta.inspect(frame).map_or(0, |folio| folio.counts.refs);
        assert!(refs > 0, "CPU 1 has a reference of frame {frame}, which has no metadata any more");
        theirs.mm.meta.put(frame, 1);
    });
    Stage::of(Vec::new(), vec![puts, gets])
}
