//! Registrations: uses, and who gives them back, against a revocation.
//!
//! A registration of page 0 is all that holds its frame. Whoever has come back from ending it may give the frame to somebody
//! else; and must not come back sooner.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, Weak};

use mm::addr::{PAGE_SIZE, Pfn};
use mm::gup::GupFlags;
use mm::machine::Machine;
use mm::mutant::Mutant;
use mm::region::{MemoryRegion, Notice, RegionError, RegionOwner, RegionRef, Terms};
use mm::space::Access;
use testkit::emu::EmuMachine;

use super::{Scenario, Stage};
use crate::board::{Board, File, Shape, Space, page};
use crate::conductor::{self, Program};
use crate::fault::Fault::Mm;

/// A registration on the board's machine.
pub(super) type Registration = MemoryRegion<EmuMachine>;

/// First frame of a device that is removed: none of the board's.
const REMOVED: Pfn = Pfn::new(0x20_0000);
/// Pages that an account may pin.
const LIMIT: u64 = 64;

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "use-against-revoke",
        what: "CPU 1 uses a registration, twice, that CPU 0 takes back",
        faults: &[Mm(Mutant::UseNotRechecked), Mm(Mutant::RevokeDoesNotWait)],
        shape: Shape::small(2),
        stage: |board| {
            let (space, region) = registered(board);
            let gone = Rc::new(Cell::new(false));
            let programs = vec![takes_back(board, &gone), uses(board, &gone, region.reference())];
            Stage::of(vec![space], programs).ends(move |_| drop(region))
        },
    },
    Scenario {
        name: "use-against-give-back",
        what: "CPUs 1 and 2 use a registration that its owner, CPU 0, gives back",
        faults: &[Mm(Mutant::UseNotRechecked), Mm(Mutant::RevokeDoesNotWait)],
        shape: Shape::small(3),
        stage: |board| {
            let (space, region) = registered(board);
            let gone = Rc::new(Cell::new(false));
            let uses = || uses(board, &gone, region.reference());
            let others = [uses(), uses()];
            let mut programs = vec![gives_back(board, &gone, region)];
            programs.extend(others);
            Stage::of(vec![space], programs)
        },
    },
    Scenario {
        name: "give-back-against-revoke",
        what: "CPU 1 gives back a registration that CPU 0 takes back, while CPU 2 uses it",
        faults: &[Mm(Mutant::SecondCloserDoesNotWait), Mm(Mutant::RevokeDoesNotWait)],
        shape: Shape::small(3),
        stage: |board| {
            let (space, region) = registered(board);
            let gone = Rc::new(Cell::new(false));
            let uses = uses(board, &gone, region.reference());
            Stage::of(vec![space], vec![takes_back(board, &gone), gives_back(board, &gone, region), uses])
        },
    },
    Scenario {
        name: "register-against-removal",
        what: "CPU 1 registers a page of a device that CPU 0 removes",
        faults: &[Mm(Mutant::RegistrationNotRechecked)],
        shape: Shape::small(2),
        stage: register_against_removal,
    },
];

/// Registers page 0.
pub(super) fn register(
    board: &Board,
    space: &Arc<Space>,
    owner: Weak<dyn RegionOwner>,
) -> Result<Registration, RegionError> {
    let account = board.mm.pins.open_account("explored", LIMIT);
    let terms = Terms { flags: GupFlags::WRITE, grace_ns: 0, account: &account };
    MemoryRegion::register(space, page(0), 1, &terms, owner)
}

/// An owner that has ended, and has left its registration behind.
pub(super) fn nobody() -> Weak<dyn RegionOwner> {
    Weak::<fn(&Notice)>::new()
}

/// Page 0 is registered, and nobody maps it.
pub(super) fn registered(board: &Board) -> (Arc<Space>, Registration) {
    let space = board.space(2);
    let region = register(board, &space, nobody()).expect("the page is there");
    space.unmap(page(0), PAGE_SIZE).expect("it is mapped");
    (space, region)
}

/// Takes back all registrations of the board's file, as a removal does.
pub(super) fn take_back(board: &Board) {
    let map = board.file.page_map();
    board.mm.regions.ask(map, map.ranges(), &mut |_| ());
    board.mm.regions.take_back(&board.mm.machine, map, map.ranges(), &mut |_| ());
}

/// What must be once a registration is over: its page is nobody's.
pub(super) fn is_over(board: &Board, gone: &Cell<bool>) {
    gone.set(true);
    let (cpu, frame) = (board.emu.cpu(), board.frame(0));
    conductor::note(|| "the registration is over".into());
    let pins = board.mm.meta.inspect(frame).map_or(0, |folio| folio.counts.pins);
    assert!(pins == 0, "CPU {cpu} has ended the registration, and frame {frame} is pinned");
    board.reuse(0);
}

fn takes_back(board: &Rc<Board>, gone: &Rc<Cell<bool>>) -> Program {
    let (board, gone) = (board.clone(), gone.clone());
    Box::new(move || {
        conductor::note(|| "takes all registrations back".into());
        take_back(&board);
        is_over(&board, &gone);
    })
}

fn gives_back(board: &Rc<Board>, gone: &Rc<Cell<bool>>, region: Registration) -> Program {
    let (board, gone) = (board.clone(), gone.clone());
    Box::new(move || {
        conductor::note(|| "gives the registration back".into());
        region.deregister();
        is_over(&board, &gone);
    })
}

/// Two transfers of an engine, each of which is a use.
fn uses(board: &Rc<Board>, gone: &Rc<Cell<bool>>, engine: RegionRef<EmuMachine>) -> Program {
    let (board, gone) = (board.clone(), gone.clone());
    Box::new(move || {
        for _ in 0..2 {
            conductor::step("begins a use");
            let (cpu, was_gone) = (board.emu.cpu(), gone.get());
            let Ok(used) = engine.access(Access::Write) else {
                conductor::note(|| "is refused".into());
                continue;
            };
            assert!(!was_gone, "CPU {cpu} begins a use of the registration after it was over");
            let frame = used.frame(0).expect("it has a page");
            conductor::step("uses the page");
            let (stamp, pins) =
                (board.emu.stamp(frame), board.mm.meta.inspect(frame).map_or(0, |folio| folio.counts.pins));
            assert!(pins > 0, "CPU {cpu} uses frame {frame}, which holds {stamp:#x}: it was given back during the use");
            conductor::note(|| "the use ends".into());
        }
    })
}

/// The device has frames of its own, for a page map that is dying never lives again.
fn register_against_removal(board: &Rc<Board>) -> Stage {
    let shape = Shape::small(2);
    let file = File::new(&board.mm, REMOVED, 2, shape);
    let space = board.empty_space();
    board.map_file(&space, &file, 0, 2);
    space.handle_fault(page(0), Access::Write).expect("the page is there");
    (0..2).for_each(|cpu| board.warm(cpu, &space, &[]));
    let region = Rc::new(RefCell::new(None));
    let (mine, theirs, map) = (board.clone(), board.clone(), file.page_map().clone());
    let removes: Program = Box::new(move || {
        conductor::note(|| "removes the device".into());
        mine.mm.meta.kill(&map);
        mine.mm.regions.ask(&map, map.ranges(), &mut |_| ());
        mine.mm.regions.take_back(&mine.mm.machine, &map, map.ranges(), &mut |_| ());
        conductor::note(|| "no registration is left".into());
    });
    let (made, ours) = (region.clone(), space.clone());
    let registers: Program = Box::new(move || {
        conductor::note(|| "registers page 0".into());
        match register(&theirs, &ours, nobody()) {
            Ok(region) => _ = made.borrow_mut().insert(region),
            Err(error) => conductor::note(|| error.to_string()),
        }
    });
    let ours = space.clone();
    Stage::of(vec![space], vec![removes, registers]).ends(move |board| {
        if let Some(region) = region.borrow_mut().take() {
            let usable = region.reference().access(Access::Read).is_ok();
            assert!(!usable, "a registration outlives the removal of its device");
        }
        (0..board.cpus()).for_each(|cpu| board.emu.on_cpu(cpu, || board.load(None)));
        ours.unmap(page(0), 2 * PAGE_SIZE).expect("it is mapped");
        board.mm.meta.unregister(file.page_map()).expect("nobody uses it any more");
    })
}
