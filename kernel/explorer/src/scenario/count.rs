//! References and pins of one folio against each other, and faults of one page.

use std::cell::Cell;
use std::rc::Rc;

use mm::addr::{PAGE_SIZE, PageSize};
use mm::gup::{self, GupFlags, PageArray, pin_user_pages_fast};
use mm::machine::Machine;
use mm::meta::Owner;
use mm::mutant::Mutant;
use mm::space::Access;

use super::{Scenario, Stage};
use crate::board::{Board, Shape, page};
use crate::conductor::{self, Program};
use crate::fault::Fault::Mm;

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "get-against-last-put",
        what: "CPU 1 asks for a reference of a page whose last one CPU 0 drops",
        faults: &[Mm(Mutant::ReferenceFromZero)],
        shape: Shape::small(2),
        stage: |board| held(board, PageSize::Size4K),
    },
    Scenario {
        name: "get-against-last-put-huge",
        what: "CPU 1 asks for a reference of a folio of 2 MiB whose last one CPU 0 drops",
        faults: &[Mm(Mutant::RetireNoRecheck)],
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
    Scenario {
        name: "two-pins",
        what: "CPU 1 holds a pin of a page that CPU 0 has pinned as well, and unpins",
        faults: &[Mm(Mutant::UnpinTwice)],
        shape: Shape::small(2),
        stage: two_pins,
    },
];

/// Each pins the page; when both have, CPU 0 gives its pin back, and CPU 1 looks after its own.
fn two_pins(board: &Rc<Board>) -> Stage {
    let space = board.space(2);
    (0..2).for_each(|cpu| board.warm(cpu, &space, &[]));
    let (held, given_back) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
    let program = |unpins: bool| -> Program {
        let (board, space) = (board.clone(), space.clone());
        let (held, given_back) = (held.clone(), given_back.clone());
        Box::new(move || {
            let mut frames = [board.frame(0)];
            let got = pin_user_pages_fast(&space, page(0), 1, GupFlags::FAST_ONLY, &mut PageArray::new(&mut frames));
            assert_eq!(got, Ok(1), "a page that is mapped is pinned");
            let (mine, others) = if unpins { (&given_back, &held) } else { (&held, &given_back) };
            let until = |flag: &Cell<bool>| {
                while !flag.get() {
                    board.emu.relax();
                }
            };
            if unpins {
                until(others);
            } else {
                mine.set(true);
                until(others);
                conductor::step("looks after its pin");
                let pins = board.mm.meta.inspect(frames[0]).map_or(0, |folio| folio.counts.pins);
                assert!(pins > 0, "frame {} counts no pin, and CPU 1 holds one", frames[0]);
            }
            conductor::note(|| "gives its pin back".into());
            gup::unpin(&board.mm, frames[0], 1);
            mine.set(true);
        })
    };
    Stage::of(vec![space.clone()], vec![program(true), program(false)])
}

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
