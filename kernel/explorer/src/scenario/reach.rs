//! Loads and stores against what takes translations away: once the taker has come back, no CPU gets through.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use mm::addr::{PAGE_SIZE, VirtAddr};
use mm::entry::Prot;
use mm::gather::Gather;
use mm::machine::Machine;
use mm::mapping::{clean_mapping_range, unmap_mapping_range};
use mm::mutant::Mutant;
use mm::space::{Access, VmOps};

use super::{Scenario, Stage};
use crate::board::{Board, Shape, Space, page};
use crate::conductor::{self, Program};
use crate::fault::Fault::Mm;

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "load-against-unmap",
        what: "CPUs 1 and 2 load from a page that CPU 0 unmaps",
        faults: &[
            Mm(Mutant::NoShootdown),
            Mm(Mutant::CpuMissing),
            Mm(Mutant::NoLocalFlush),
            Mm(Mutant::AckBeforeFlush),
            Mm(Mutant::PageFreedBeforeSync),
            Mm(Mutant::FlushBeforeClear),
        ],
        shape: Shape::small(3),
        stage: |board| {
            let space = board.space(2);
            (0..3).for_each(|cpu| board.warm(cpu, &space, &[0, 1]));
            let gone = Gone::default();
            let taker = takes(board, &space, &gone, &[0], |_, space| unmap(space, 0, 1));
            let reader = || loads(board, &gone, 0, 2);
            Stage::of(vec![space.clone()], vec![taker, reader(), reader()])
        },
    },
    Scenario {
        name: "load-against-table",
        what: "CPU 1 loads through a table that CPU 0 unmaps and frees",
        faults: &[
            Mm(Mutant::FlushBeforeClear),
            Mm(Mutant::NoShootdown),
            Mm(Mutant::CpuMissing),
            Mm(Mutant::AckBeforeFlush),
            Mm(Mutant::TableFreedBeforeSync),
        ],
        shape: Shape::small(2),
        stage: |board| {
            let space = board.space(2);
            (0..2).for_each(|cpu| board.warm(cpu, &space, &[0, 1]));
            let gone = Gone::default();
            let taker = takes(board, &space, &gone, &[0, 1], |_, space| unmap(space, 0, 2));
            let reader = loads(board, &gone, 1, 2);
            Stage::of(vec![space.clone()], vec![taker, reader])
        },
    },
    Scenario {
        name: "two-zaps",
        what: "CPUs 0 and 2 take a page each from outside, at once, while CPU 1 loads from both",
        faults: &[
            Mm(Mutant::RequestReadLate),
            Mm(Mutant::NoShootdown),
            Mm(Mutant::CpuMissing),
            Mm(Mutant::AckBeforeFlush),
        ],
        shape: Shape::small(3),
        stage: |board| {
            let space = board.space(3);
            (0..3).for_each(|cpu| board.warm(cpu, &space, &[0, 1]));
            let (first, second) = (Gone::default(), Gone::default());
            let one = takes(board, &space, &first, &[0], |board, _| zap(board, 0, 1));
            let two = takes(board, &space, &second, &[1], |board, _| zap(board, 1, 1));
            let (theirs, ours) = (board.clone(), space.clone());
            let reader: Program = Box::new(move || {
                load(&theirs, &first, 0);
                load(&theirs, &second, 1);
                drop(ours);
            });
            Stage::of(vec![space.clone()], vec![one, reader, two])
        },
    },
    Scenario {
        name: "two-unmaps",
        what: "CPUs 0 and 1 unmap a page each of one space, and load from the other's",
        faults: &[Mm(Mutant::FlushBeforeClear), Mm(Mutant::NoLocalFlush), Mm(Mutant::NoShootdown)],
        shape: Shape::small(2),
        stage: |board| {
            let space = board.space(3);
            (0..2).for_each(|cpu| board.warm(cpu, &space, &[0, 1]));
            let (first, second) = (Gone::default(), Gone::default());
            let part = |mine: (&Gone, u64), other: (&Gone, u64)| -> Program {
                let take = takes(board, &space, mine.0, &[mine.1], move |_, space| unmap(space, mine.1, 1));
                let (board, (gone, nr)) = (board.clone(), (other.0.clone(), other.1));
                Box::new(move || {
                    load(&board, &gone, nr);
                    take();
                    load(&board, &gone, nr);
                })
            };
            let programs = vec![part((&first, 0), (&second, 1)), part((&second, 1), (&first, 0))];
            Stage::of(vec![space.clone()], programs)
        },
    },
    Scenario {
        name: "load-against-split",
        what: "CPU 1 loads from a huge leaf of which CPU 0 unmaps one page",
        faults: &[Mm(Mutant::SplitNoFlush), Mm(Mutant::NoShootdown)],
        shape: Shape::huge(2),
        stage: |board| {
            let space = board.space(512);
            (0..2).for_each(|cpu| board.warm(cpu, &space, &[0]));
            let gone = Gone::default();
            let taker = takes(board, &space, &gone, &[], |_, space| unmap(space, 0, 1));
            Stage::of(vec![space.clone()], vec![taker, loads(board, &gone, 0, 2)])
        },
    },
    Scenario {
        name: "load-against-promotion",
        what: "CPU 1 loads small pages that CPU 0 makes one huge leaf, and then unmaps",
        faults: &[Mm(Mutant::PromoteFlushesOnePage)],
        shape: Shape::huge(2),
        stage: |board| {
            let space = board.space(1024);
            // A hole that is filled again leaves small leaves over one large folio.
            zap(board, 1, 1);
            space.handle_fault(page(1), Access::Write).expect("the page is there");
            (0..2).for_each(|cpu| board.warm(cpu, &space, &[1, 3]));
            let gone = Gone::default();
            let taker = takes(board, &space, &gone, &[1, 3], |_, space| {
                space.promote(page(0), 512 * PAGE_SIZE).expect("it is mapped");
                unmap(space, 0, 512);
            });
            Stage::of(vec![space.clone()], vec![taker, loads(board, &gone, 3, 2)])
        },
    },
    Scenario {
        name: "cut-against-zap",
        what: "CPU 1 unmaps a page in the middle of what CPU 0 takes from outside",
        faults: &[Mm(Mutant::CutAreaMissed)],
        shape: Shape::small(2),
        stage: |board| {
            let space = board.space(3);
            (0..2).for_each(|cpu| board.warm(cpu, &space, &[0, 2]));
            let gone = Gone::default();
            let taker = takes(board, &space, &gone, &[0, 2], |board, _| zap(board, 0, u64::MAX));
            let ours = space.clone();
            let cutter: Program = Box::new(move || unmap(&ours, 1, 1));
            Stage::of(vec![space.clone()], vec![taker, cutter])
        },
    },
    Scenario {
        name: "store-against-protect",
        what: "CPU 1 stores to a page of which CPU 0 takes away the right to store",
        faults: &[Mm(Mutant::ProtectNoFlush)],
        shape: Shape::small(2),
        stage: |board| {
            let space = board.space(2);
            (0..2).for_each(|cpu| board.warm(cpu, &space, &[0]));
            let gone = Gone::default();
            let taker = takes(board, &space, &gone, &[], |_, space| {
                space.protect(page(0), PAGE_SIZE, Prot::USER_READ).expect("it is mapped");
            });
            Stage::of(vec![space.clone()], vec![taker, stores(board, &gone, "its rights were taken away")])
        },
    },
    Scenario {
        name: "store-against-clean",
        what: "CPU 1 stores to a page that CPU 0 cleans",
        faults: &[Mm(Mutant::CleanNoFlush)],
        shape: Shape { notes_stores: true, ..Shape::small(2) },
        stage: |board| {
            let space = board.space(2);
            (0..2).for_each(|cpu| board.warm(cpu, &space, &[0]));
            let gone = Gone::default();
            let taker = takes(board, &space, &gone, &[], |board, _| {
                let mut gather = Gather::new(&board.mm);
                clean_mapping_range(board.file.mapping(), 0, 1, &mut gather);
                gather.finish();
            });
            Stage::of(vec![space.clone()], vec![taker, stores(board, &gone, "it was cleaned, without a fault")])
        },
    },
];

/// Whether the taker has come back.
#[derive(Clone, Default)]
struct Gone(Rc<Cell<bool>>);

fn unmap(space: &Arc<Space>, first: u64, nr: u64) {
    conductor::note(|| format!("unmaps page {first} and in all {nr}"));
    space.unmap(page(first), nr * PAGE_SIZE).expect("it is mapped");
}

/// Takes pages out of every space.
fn zap(board: &Board, first: u64, nr: u64) {
    conductor::note(|| format!("takes page {first} from outside"));
    let mut gather = Gather::new(&board.mm);
    unmap_mapping_range(board.file.mapping(), first, nr, &mut gather);
    gather.finish();
}

/// `take`, after which no CPU's TLB leads to the frames of `pages` any more.
fn takes(
    board: &Rc<Board>,
    space: &Arc<Space>,
    gone: &Gone,
    pages: &[u64],
    take: impl FnOnce(&Board, &Arc<Space>) + 'static,
) -> Program {
    let (board, space, gone, pages) = (board.clone(), space.clone(), gone.clone(), pages.to_vec());
    Box::new(move || {
        take(&board, &space);
        gone.0.set(true);
        conductor::note(|| "has come back".into());
        for nr in pages {
            let frame = board.frame(nr);
            let reached = board.emu.who_reaches(frame, 1);
            assert!(
                reached.is_empty(),
                "CPU {} still has page {nr}, frame {frame}, in its TLB after its unmap",
                reached[0]
            );
            board.reuse(nr);
        }
    })
}

fn loads(board: &Rc<Board>, gone: &Gone, nr: u64, times: usize) -> Program {
    let (board, gone) = (board.clone(), gone.clone());
    Box::new(move || (0..times).for_each(|_| load(&board, &gone, nr)))
}

/// A load, which must fault where the page was gone before it began.
fn load(board: &Board, gone: &Gone, nr: u64) {
    conductor::step("loads a page");
    let was_gone = gone.0.get();
    let freed = board.mm.meta.inspect(board.frame(nr)).is_none();
    if freed {
        // Nobody holds it, so its next owner may have it.
        board.reuse(nr);
    }
    let Ok(stamp) = load_through_tlb(board, page(nr)) else { return };
    let (cpu, va) = (board.emu.cpu(), page(nr));
    assert!(!was_gone, "CPU {cpu} read {stamp:#x} at {va} after its unmap");
    assert!(!freed, "CPU {cpu} read {stamp:#x} at {va}, of a frame that was free");
}

fn load_through_tlb(board: &Board, va: VirtAddr) -> Result<u64, ()> {
    let result = board.emu.read(va, true);
    conductor::note(|| match result {
        Ok(stamp) => format!("loads {stamp:#x} at {va}"),
        Err(_) => format!("faults at {va}"),
    });
    result.map_err(|_| ())
}

fn stores(board: &Rc<Board>, gone: &Gone, why: &'static str) -> Program {
    let (board, gone) = (board.clone(), gone.clone());
    Box::new(move || {
        for _ in 0..2 {
            conductor::step("stores to a page");
            let was_gone = gone.0.get();
            let stored = board.emu.write(page(0), board.stamp(0), true).is_ok();
            conductor::note(|| format!("{} at {}", if stored { "stores" } else { "faults" }, page(0)));
            let cpu = board.emu.cpu();
            assert!(!(was_gone && stored), "CPU {cpu} stored at {} after {why}", page(0));
        }
    })
}
