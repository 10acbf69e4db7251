//! A device's transfers against what takes its translations away.
//!
//! Whoever has come back from ending a mapping gives the frame to somebody else, who writes to it. The device must not store
//! to it after that, whatever its unit remembers. The unit has detectors of its own: a table that is freed while a cache leads
//! to it, or that somebody uses who should not.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use iommu::Mutant;
use iommu::domain::{Domain, Mapping};
use iommu::entry::Rights;
use mm::addr::{PAGE_SIZE, Pfn};
use mm::mutant::Mutant as Of;
use mm::region::UseError;
use mm::region::device::{CutOff, DeviceAccess};
use mm::region::gate::By;

use super::region::{is_over, registered, take_back};
use super::rig::{Marked, Rig, STORED, run};
use super::{Scenario, Stage};
use crate::board::{Board, Shape};
use crate::conductor::{self, Program};
use crate::fault::Fault::{Iommu, Mm};

/// What the mapping that is ended leads to: its last frame.
const FRAME: Pfn = Pfn::new(0x1000);
/// What another leads to.
const OTHER: Pfn = Pfn::new(0x2000);
/// Pages of a table, and of the table above it.
const TABLE: u64 = 512;
const ABOVE: u64 = TABLE * TABLE;

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "dma-against-revoke",
        what: "a device stores to a mapping that CPU 0 revokes, and to one beside it",
        faults: &[
            Iommu(Mutant::NoInvalidation),
            Iommu(Mutant::InvalidatedFirst),
            Iommu(Mutant::RangeTooShort),
            Iommu(Mutant::WrongDomain),
            Iommu(Mutant::NotWrittenBack),
            Iommu(Mutant::SharedTableUnlinked),
        ],
        shape: Shape::with_device(1),
        stage: |_| {
            let rig = Rig::new();
            let mapping = rig.map(FRAME, 2);
            let beside = rig.map(OTHER, 1);
            // The next mapping will not need the table: it stays for the one beside alone.
            rig.map_elsewhere(TABLE);
            let (device, theirs) = (rig.transfers(&mapping, FRAME, 2), rig.clone());
            let device: Program = Box::new(move || {
                device();
                let at = beside.address();
                assert!(theirs.transfer(at) == Some(OTHER), "the device is blocked at {at:#x}, which is mapped");
            });
            let mapping = Rc::new(mapping);
            rig.stage(Vec::new(), vec![revokes(&rig, &mapping), device], FRAME)
        },
    },
    Scenario {
        name: "dma-against-table",
        what: "a device stores to the only mapping of a table, which CPU 0 revokes, and frees the table",
        faults: &[
            Iommu(Mutant::NoInvalidation),
            Iommu(Mutant::InvalidatedFirst),
            Iommu(Mutant::WrongDomain),
            Iommu(Mutant::FreedBeforeWait),
        ],
        shape: Shape::with_device(1),
        stage: |_| {
            let (rig, mapping) = alone();
            let device = rig.transfers(&mapping, FRAME, 3);
            let (mine, mapping) = (rig.clone(), mapping);
            let revokes: Program = Box::new(move || {
                let freed = mine.domain().revoke(&mapping).tables;
                assert!(freed == 1, "the table of the mapping goes with it: {freed} were freed");
                mine.give_away(FRAME);
            });
            rig.stage(Vec::new(), vec![revokes, device], FRAME)
        },
    },
    Scenario {
        name: "dma-against-left-table",
        what: "a device stores where a mapping has left an empty table, which goes with one that CPU 0 revokes",
        faults: &[Iommu(Mutant::UnlinkedNotTold), Iommu(Mutant::FreedBeforeWait), Iommu(Mutant::NoInvalidation)],
        shape: Shape::with_device(1),
        stage: left_table,
    },
    Scenario {
        name: "dma-against-silence",
        what: "a device stores to a mapping that CPU 0 revokes, and the unit does not answer",
        faults: &[Iommu(Mutant::LostFreed), Iommu(Mutant::FreedBeforeWait)],
        shape: Shape::with_device(1),
        stage: |_| {
            let (rig, mapping) = alone();
            let device = rig.transfers(&mapping, FRAME, 2);
            let (mine, mapping) = (rig.clone(), mapping);
            let revokes: Program = Box::new(move || {
                mine.unit.fail(true);
                let done = mine.domain().revoke(&mapping);
                assert!(done.failed.is_some(), "the unit did not answer, and nobody says so");
                // Nobody gets the frame, nor the table.
            });
            let ours = rig.clone();
            Stage::of(Vec::new(), vec![revokes, device]).ends(move |_| {
                ours.unit.fail(false);
                ours.end(FRAME, 1);
            })
        },
    },
    Scenario {
        name: "two-revocations",
        what: "CPUs 0 and 1 revoke one mapping, to which a device stores",
        faults: &[Iommu(Mutant::SecondDoesNotWait), Iommu(Mutant::NoInvalidation)],
        shape: Shape::with_device(2),
        stage: |_| {
            let rig = Rig::new();
            let mapping = Rc::new(rig.map(FRAME, 1));
            let device = rig.transfers(&mapping, FRAME, 3);
            rig.stage(Vec::new(), vec![revokes(&rig, &mapping), revokes(&rig, &mapping), device], FRAME)
        },
    },
    Scenario {
        name: "close-against-revoke",
        what: "CPU 0 closes the domain of a mapping that CPU 1 revokes, and to which a device stores",
        faults: &[Iommu(Mutant::CloseDoesNotWait)],
        shape: Shape::with_device(2),
        stage: |_| {
            let rig = Rig::new();
            let mapping = Rc::new(rig.map(FRAME, 1));
            let (mine, device) = (rig.clone(), rig.transfers(&mapping, FRAME, 3));
            let closes: Program = Box::new(move || {
                mine.domain().close();
                mine.give_away(FRAME);
            });
            rig.stage(Vec::new(), vec![closes, revokes(&rig, &mapping), device], FRAME)
        },
    },
    Scenario {
        name: "dma-against-detach",
        what: "a device stores while CPU 0 takes it out of its domain, and drops the domain",
        faults: &[Iommu(Mutant::ContextOnly)],
        shape: Shape::with_device(1),
        stage: |_| {
            let rig = Rig::new();
            let mapping = rig.map(FRAME, 1);
            let (mine, device) = (rig.clone(), rig.transfers(&mapping, FRAME, 3));
            let leaves: Program = Box::new(move || {
                mine.detach();
                mine.drop_domain();
                mine.give_away(FRAME);
            });
            rig.stage(Vec::new(), vec![leaves, device], FRAME)
        },
    },
    Scenario {
        name: "map-against-revoke",
        what: "CPU 1 maps where the only address there is belongs to what CPU 0 revokes, twice; a device stores",
        faults: &[Iommu(Mutant::AddressEarly), Iommu(Mutant::StaleHandle)],
        shape: Shape::with_device(2),
        stage: map_against_revoke,
    },
    Scenario {
        name: "map-against-unlink",
        what: "CPU 1 maps where CPU 0 unlinks a table, through which a device stores",
        faults: &[Iommu(Mutant::SpanNotBarred), Iommu(Mutant::FreedBeforeWait)],
        shape: Shape::with_device(2),
        stage: map_against_unlink,
    },
    Scenario {
        name: "dma-against-map",
        what: "a device stores before and after CPU 0 maps, and its unit remembers that nothing was there",
        faults: &[Iommu(Mutant::MapNotTold)],
        shape: Shape::with_device(1),
        stage: |_| {
            let rig = Rig::caching();
            let told = Rc::new(Cell::new(None));
            let (mine, theirs, tells) = (rig.clone(), rig.clone(), told.clone());
            let maps: Program = Box::new(move || tells.set(Some(mine.map(FRAME, 1).address())));
            let device: Program = Box::new(move || {
                for _ in 0..3 {
                    let at = told.get();
                    let reached = theirs.transfer(at.unwrap_or(PAGE_SIZE));
                    assert!(
                        at.is_none() || reached == Some(FRAME),
                        "the device is blocked at what it was told is mapped"
                    );
                }
            });
            rig.stage(Vec::new(), vec![maps, device], FRAME)
        },
    },
    Scenario {
        name: "transfer-against-revoke",
        what: "CPU 1 has a device store to a mapping that CPU 0 revokes; whatever comes, the device says that all went well",
        faults: &[Iommu(Mutant::CompletionBelieved)],
        shape: Shape::with_device(2),
        stage: transfer_against_revoke,
    },
    Scenario {
        name: "admit-against-revoke",
        what: "CPU 1 lets a device into a registration that CPU 0 takes back",
        faults: &[Mm(Of::DeviceAdmittedLate), Mm(Of::DeviceLeftIn), Iommu(Mutant::NoInvalidation)],
        shape: Shape::with_device(2),
        stage: admit_against_revoke,
    },
];

/// A mapping that has its table for itself, and the next one will not need it.
fn alone() -> (Rc<Rig>, Mapping) {
    let rig = Rig::new();
    let mapping = rig.map(FRAME, 1);
    rig.map_elsewhere(TABLE);
    (rig, mapping)
}

/// Revokes a mapping, and gives its frame to somebody else.
fn revokes(rig: &Rc<Rig>, mapping: &Rc<Mapping>) -> Program {
    let (rig, mapping) = (rig.clone(), mapping.clone());
    Box::new(move || {
        conductor::note(|| format!("revokes the mapping at {:#x}", mapping.address()));
        let done = rig.domain().revoke(&mapping);
        assert!(done.failed.is_none(), "the unit answers");
        rig.give_away(FRAME);
    })
}

fn left_table(_: &Rc<Board>) -> Stage {
    let rig = Rig::new();
    let first = rig.map(OTHER, 1);
    let left = first.address();
    rig.domain().revoke(&first);
    // It lies in the table beside that one: its frames are not aligned, so that they are no leaf of 2 MiB.
    let mapping = rig.map(FRAME, TABLE);
    rig.map_elsewhere(ABOVE);
    let (theirs, device) = (rig.clone(), rig.transfers(&mapping, FRAME, 2));
    let device: Program = Box::new(move || {
        assert!(theirs.transfer(left).is_none(), "the device stores at {left:#x}, which is not mapped");
        device();
    });
    let mine = rig.clone();
    let revokes: Program = Box::new(move || {
        let freed = mine.domain().revoke(&mapping).tables;
        assert!(freed == 3, "both tables and the one above them: {freed} were freed");
        mine.give_away(FRAME);
    });
    rig.stage(Vec::new(), vec![revokes, device], FRAME)
}

/// The device reaches what was just mapped.
fn is_reached(rig: &Rig, made: &Mapping, frame: Pfn) {
    let reached = rig.transfer(made.address());
    assert!(
        reached == Some(frame),
        "frame {frame} is mapped at {:#x}, where the device {}",
        made.address(),
        reached.map_or("is blocked".into(), |other| format!("reaches frame {other}"))
    );
}

/// Maps as soon as there is room, and then a device reaches it.
fn maps_other(rig: &Rc<Rig>) -> Program {
    let rig = rig.clone();
    Box::new(move || {
        for _ in 0..4 {
            conductor::step("tries to map");
            let Ok(made) = rig.domain().map(&[run(OTHER, 1)], Rights::all(), 2) else { continue };
            conductor::note(|| format!("has mapped frame {OTHER} at {:#x}", made.address()));
            (0..2).for_each(|_| is_reached(&rig, &made, OTHER));
            return;
        }
    })
}

fn map_against_revoke(_: &Rc<Board>) -> Stage {
    // Two pages of addresses, of which the first is never mapped.
    let rig = Rig::small(13);
    let mapping = Rc::new(rig.map(FRAME, 1));
    let device = rig.transfers(&mapping, FRAME, 2);
    let (first, mine) = (revokes(&rig, &mapping), rig.clone());
    let revokes: Program = Box::new(move || {
        first();
        conductor::note(|| "revokes it again".into());
        let again = mine.domain().revoke(&mapping);
        assert!(!again.first, "a mapping that was over is revoked once more");
    });
    rig.stage(Vec::new(), vec![revokes, maps_other(&rig), device], FRAME)
}

fn map_against_unlink(_: &Rc<Board>) -> Stage {
    // Four tables of addresses. The first is full, and the two behind the mapping's as well.
    let rig = Rig::small(23);
    (0..9).for_each(|order| rig.map_elsewhere(1 << order));
    let mapping = Rc::new(rig.map(FRAME, 1));
    (0..2).for_each(|_| rig.map_elsewhere(TABLE));
    let device = rig.transfers(&mapping, FRAME, 2);
    rig.stage(Vec::new(), vec![revokes(&rig, &mapping), maps_other(&rig), device], FRAME)
}

fn transfer_against_revoke(_: &Rc<Board>) -> Stage {
    let rig = Rig::new();
    let mapping = Rc::new(rig.map(FRAME, 1));
    let (asked, done) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
    let until = |flag: Rc<Cell<bool>>| {
        move || {
            while !flag.get() {
                conductor::relax();
            }
        }
    };
    let (theirs, asks, comes) = (rig.clone(), asked.clone(), until(done.clone()));
    let reads: Program = Box::new(move || {
        let before = theirs.counts();
        conductor::note(|| "has the device store".into());
        asks.set(true);
        comes();
        let against = theirs.counts().against(&before);
        conductor::note(|| format!("hears that all went well; against that stands {against:?}"));
        // By then it may be another's, and hold what that one has stored: it was there for all that.
        let stored = theirs.gone.get() || theirs.word(FRAME) == STORED;
        let blocked = theirs.counts() != before;
        assert!(
            against.is_some() || stored && !blocked,
            "CPU 1 believes the device, whose transfer was blocked: nothing has come to frame {FRAME}"
        );
    });
    let (device, at, comes) = (rig.clone(), mapping.address(), until(asked));
    let device: Program = Box::new(move || {
        comes();
        device.transfer(at);
        done.set(true);
        conductor::note(|| "says that all went well".into());
    });
    rig.stage(Vec::new(), vec![revokes(&rig, &mapping), reads, device], FRAME)
}

/// What a registration has of a device.
struct Translations {
    domain: Arc<Domain<Marked>>,
    mapping: Mapping,
}

impl DeviceAccess for Translations {
    fn revoke(self: Box<Self>, _: By) -> CutOff {
        let done = self.domain.revoke(&self.mapping);
        CutOff { ranges: done.ranges, leaves: done.leaves, commands: done.commands, ns: 0 }
    }
}

fn admit_against_revoke(board: &Rc<Board>) -> Stage {
    let (space, region) = registered(board);
    let (rig, frame) = (Rig::new(), board.frame(0));
    let at = Rc::new(Cell::new(None));
    let (mine, ours) = (board.clone(), rig.clone());
    let takes: Program = Box::new(move || {
        conductor::note(|| "takes the registration back".into());
        take_back(&mine);
        is_over(&mine, &ours.gone);
        ours.give_away(frame);
    });
    let (theirs, tells) = (rig.clone(), at.clone());
    let admits: Program = Box::new(move || {
        let map = |runs: &[_], _| -> Result<Box<dyn DeviceAccess>, UseError> {
            let domain = theirs.domain();
            let mapping = domain.map(runs, Rights::all(), 1).expect("there is room");
            tells.set(Some(mapping.address()));
            Ok(Box::new(Translations { domain, mapping }))
        };
        let admitted = region.admit(map).is_ok();
        conductor::note(|| format!("the device {}", if admitted { "is let in" } else { "is not let in" }));
        conductor::step("keeps the registration");
        drop(region);
    });
    let stores = rig.clone();
    let device: Program = Box::new(move || {
        for _ in 0..3 {
            let was_gone = stores.gone.get();
            // The driver has told it no address yet: it does something else.
            let reached = stores.transfer(at.get().unwrap_or(2 * PAGE_SIZE));
            assert!(
                !(was_gone && reached == Some(frame)),
                "the device stored to frame {frame}, which was given back: it was not cut off"
            );
        }
    });
    rig.stage(vec![space], vec![takes, admits, device], frame)
}
