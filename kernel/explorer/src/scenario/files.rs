//! A file system on DAX: what cuts a file short, and what freezes, against tasks that use it.
//!
//! Each schedule mounts the same small medium anew. Whoever has come back from a truncation may give the block to another file,
//! so no CPU reaches its page any more, by whatever way.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use dax::device::{DataCache, Live, alloc_dax};
use dax::removal::{Method, Target, remove};
use fs::check::check;
use fs::error::FsError;
use fs::format::{BLOCK_SIZE, ROOT_INO};
use fs::freeze::FreezeHolder;
use fs::handle::File;
use fs::lock_order::Context;
use fs::mount::{MakeOptions, MountOptions, make, mount};
use fs::mounted::{Host, Mounted, Source};
use fs::mutant::Mutant;
use fs::pmem::Pmem;
use mm::addr::{PAGE_SIZE, Pfn, PfnRange, VirtRange};
use mm::entry::Prot;
use mm::gup::{self, GupFlags, PageArray, pin_user_pages_fast};
use mm::machine::Machine;
use mm::pagemap::{DevPagemap, MemoryKind};
use mm::space::{Access, FaultError, SigBusCause};
use testkit::emu::EmuMachine;
use testkit::removal::NoDriver;
use testkit::sim::SimPmem;

use super::{Scenario, Stage};
use crate::board::{Board, Shape, Space, page};
use crate::conductor::{self, Program};
use crate::fault::Fault::Fs;

/// First frame of the medium: none of the board's.
const FIRST: Pfn = Pfn::new(0x30_0000);
/// Its blocks, each of which is a page.
const BLOCKS: u64 = 128;
/// The file.
const NAME: &str = "file";
/// Longer than any schedule.
const NEVER_NS: u64 = u64::MAX / 2;

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "load-against-truncate",
        what: "CPU 1 loads from a page of a file that CPU 0 truncates",
        faults: &[Fs(Mutant::NotUnmapped)],
        shape: Shape::small(2),
        stage: |board| truncated(board, true, loads),
    },
    Scenario {
        name: "fault-against-truncate",
        what: "CPU 1 faults on a page of a file that CPU 0 truncates",
        faults: &[Fs(Mutant::NotUnmapped)],
        shape: Shape::small(2),
        stage: |board| truncated(board, false, loads),
    },
    Scenario {
        name: "pin-against-truncate",
        what: "CPU 1 pins a page of a file that CPU 0 truncates",
        faults: &[Fs(Mutant::PinsNotWaitedFor)],
        shape: Shape::small(2),
        stage: |board| truncated(board, true, pins),
    },
    Scenario {
        name: "write-against-removal",
        what: "CPU 1 writes to a file system that a user has frozen, and whose device CPU 0 removes",
        faults: &[Fs(Mutant::UserFreezeStays)],
        shape: Shape::small(2),
        stage: frozen,
    },
    Scenario {
        name: "two-thaws",
        what: "CPUs 0 and 1 thaw a file system that both the kernel and a user have frozen",
        faults: &[Fs(Mutant::ThawsOverlap)],
        shape: Shape::small(2),
        stage: thawed,
    },
];

type System = Mounted<EmuMachine>;
type Open = Arc<File<EmuMachine>>;

/// The medium, whose own locks nobody holds at a mark.
struct Medium(SimPmem);

impl Pmem for Medium {
    fn len_bytes(&self) -> u64 {
        self.0.len_bytes()
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), FsError> {
        conductor::in_one_step(|| self.0.read(offset, buf))
    }
    fn store(&self, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        conductor::in_one_step(|| self.0.store(offset, bytes))
    }
    fn write_back(&self, offset: u64, len: u64) {
        conductor::in_one_step(|| self.0.write_back(offset, len));
    }
    fn fence(&self) -> Result<(), FsError> {
        conductor::in_one_step(|| self.0.fence())
    }
}

impl Medium {
    /// A file system with a file of one block.
    fn new() -> Arc<Self> {
        static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
        let image = IMAGE.get_or_init(|| {
            let sim = Arc::new(SimPmem::new((BLOCKS * BLOCK_SIZE) as usize));
            let pmem: Arc<dyn Pmem> = sim.clone();
            make(&pmem, &MakeOptions::default()).expect("there is room for a file system");
            let mut volume = mount(&pmem, &MountOptions::default()).expect("it was just made");
            let ino = volume.create(ROOT_INO, NAME.as_bytes(), true).expect("there is room for a file");
            volume.write(ino, 0, &[1; BLOCK_SIZE as usize]).expect("there is room for a block");
            volume.unmount().expect("the medium takes it");
            sim.bytes()
        });
        Arc::new(Self(SimPmem::from_bytes(image.clone())))
    }
}

/// Who is told: nobody.
struct Deaf;

impl Host<EmuMachine> for Deaf {
    fn line(&self, line: fmt::Arguments<'_>) {
        conductor::note(|| line.to_string());
    }
    fn lost(&self, _: &Arc<Space>, _: VirtRange, _: SigBusCause) {}
}

/// A device with a file system that is mounted.
struct Rig {
    medium: Arc<Medium>,
    map: Arc<DevPagemap>,
    live: Cell<Option<Live>>,
    system: Arc<System>,
    file: Cell<Option<Open>>,
    /// The truncation has come back.
    gone: Cell<bool>,
}

impl Rig {
    fn new(board: &Board) -> Rc<Self> {
        let frames = PfnRange::new(FIRST, BLOCKS).expect("there are frames");
        let map = DevPagemap::new(MemoryKind::FsDax, [frames]).expect("one range");
        let live = alloc_dax("explored", &map, DataCache::Coherent, &board.mm.ledger).expect("it is supported");
        board.mm.meta.register(&map).expect("they are nobody else's");
        let medium = Medium::new();
        let source = Source {
            name: "explored".into(),
            device: live.device().clone(),
            part: None,
            pmem: medium.clone(),
            log: None,
            host: Arc::new(Deaf),
            freeze_timeout_ns: NEVER_NS,
            first_complaint_ns: NEVER_NS,
        };
        let system = Mounted::mount(&board.mm, source).expect("it is a file system");
        let file = system.open(&Context::new(), NAME).expect("it has that file");
        let (live, file) = (Cell::new(Some(live)), Cell::new(Some(file)));
        Rc::new(Self { medium, map, live, system, file, gone: Cell::new(false) })
    }

    /// A handle on the file, while the rig has one.
    fn file(&self) -> Open {
        let file = self.file.take().expect("it is open until the end");
        self.file.set(Some(file.clone()));
        file
    }

    /// Removes the device, with whatever is on it.
    fn remove(&self, board: &Board) {
        let dax = self.live.take();
        let target = Target { name: "explored".into(), map: self.map.clone(), dax, mappings: Vec::new() };
        let report = remove(&board.mm, target, Method::Ranged, &mut NoDriver(()));
        let problem = report.problems().next().map(|(step, problem)| format!("{step:?}: {problem:?}"));
        assert!(problem.is_none(), "the removal says {problem:?}");
    }

    /// Nobody uses the file any more: unmounts, and takes the device away.
    fn end(&self, board: &Board) {
        drop(self.file.take());
        self.system.reap(&Context::new());
        self.system.unmount(&Context::new()).expect("nothing is open");
        if let Some(live) = self.live.take() {
            drop(live);
            board.mm.meta.unregister(&self.map).expect("nobody uses it any more");
        }
    }
}

/// A space that maps the file's page, which is not installed yet; both CPUs have it loaded.
fn mapped(board: &Rc<Board>, rig: &Rig) -> Arc<Space> {
    let space = board.empty_space();
    space.map(page(0), PAGE_SIZE, Prot::USER_WRITE, &rig.file().ops(), 0).expect("nothing is mapped there");
    (0..2).for_each(|cpu| board.warm(cpu, &space, &[]));
    space
}

/// CPU 0 truncates the file; CPU 1 does `other`, and has the page in its TLB before if it `is_there`.
fn truncated(board: &Rc<Board>, is_there: bool, other: fn(&Board, &Rc<Rig>, &Arc<Space>)) -> Stage {
    let rig = Rig::new(board);
    let space = mapped(board, &rig);
    if is_there {
        space.handle_fault(page(0), Access::Write).expect("the page is there");
        board.warm(1, &space, &[0]);
    }
    let mine = rig.clone();
    let truncates: Program = Box::new(move || {
        conductor::note(|| "truncates the file".into());
        mine.system.truncate(&Context::new(), &mine.file(), 0).expect("it can be cut");
        mine.gone.set(true);
        conductor::note(|| "the truncation has returned".into());
    });
    let (board, theirs, ours) = (board.clone(), rig.clone(), space.clone());
    let other: Program = Box::new(move || other(&board, &theirs, &ours));
    let ours = space.clone();
    Stage::of(vec![space], vec![truncates, other]).ends(move |board| {
        let mapped = ours.translate(page(0));
        assert!(mapped.is_none(), "at the end a page table leads to a block that was freed");
        leave(board, &ours);
        rig.end(board);
    })
}

/// All CPUs leave the space, in which nothing is mapped any more.
fn leave(board: &Board, space: &Arc<Space>) {
    (0..board.cpus()).for_each(|cpu| board.emu.on_cpu(cpu, || board.load(None)));
    space.unmap(page(0), PAGE_SIZE).expect("it is mapped");
}

/// Loads from the page, as a task does.
fn loads(board: &Board, rig: &Rc<Rig>, space: &Arc<Space>) {
    for _ in 0..3 {
        conductor::step("loads a page");
        let was_gone = rig.gone.get();
        let Ok(stamp) = board.emu.read(page(0), true) else {
            let served = space.handle_fault(page(0), Access::Read);
            conductor::note(|| format!("faults: {}", said(&served)));
            continue;
        };
        let cpu = board.emu.cpu();
        conductor::note(|| format!("loads {stamp:#x}"));
        assert!(!was_gone, "CPU {cpu} loads from a block of the file after the truncation that has freed it");
    }
}

fn said(served: &Result<(), FaultError>) -> &'static str {
    match served {
        Ok(()) => "is served",
        Err(FaultError::SigBus { .. }) => "is a SIGBUS",
        Err(_) => "is not served",
    }
}

/// Pins the page without a lock, and keeps the pin for a while.
fn pins(board: &Board, rig: &Rc<Rig>, space: &Arc<Space>) {
    let mut frames = [FIRST];
    let flags = GupFlags::FAST_ONLY.union(GupFlags::WRITE);
    if pin_user_pages_fast(space, page(0), 1, flags, &mut PageArray::new(&mut frames)) != Ok(1) {
        conductor::note(|| "gets no pin".into());
        return;
    }
    conductor::note(|| "has pinned the page".into());
    for _ in 0..3 {
        conductor::step("uses what it has pinned");
        let cpu = board.emu.cpu();
        assert!(!rig.gone.get(), "CPU {cpu} has a block of the file pinned that a truncation has freed");
    }
    gup::unpin(&board.mm, frames[0], 1);
}

/// A user has frozen the file system, and nobody will thaw it.
fn frozen(board: &Rc<Board>) -> Stage {
    let rig = Rig::new(board);
    rig.system.freeze(FreezeHolder::User).expect("no change is under way");
    let (mine, theirs, on) = (rig.clone(), rig.clone(), board.clone());
    let removes: Program = Box::new(move || {
        conductor::note(|| "removes the device".into());
        mine.remove(&on);
        conductor::note(|| "the device is gone".into());
    });
    let writes: Program = Box::new(move || {
        conductor::note(|| "writes to the file".into());
        let written = theirs.system.write(&Context::new(), &theirs.file(), 0, b"x");
        assert!(written.is_err(), "a write to a file system that is frozen until it is gone is done");
        conductor::note(|| written.map_or_else(|error| error.to_string(), |_| String::new()));
    });
    Stage::of(Vec::new(), vec![removes, writes]).ends(move |board| {
        let holders = rig.system.freeze_holders();
        assert!(holders == (0, 0), "a file system whose device has left is frozen by {holders:?}");
        rig.end(board);
    })
}

/// Two freezes hold, of which each CPU lifts one: who lifts the last has the medium taken as mounted again, before a change.
fn thawed(board: &Rc<Board>) -> Stage {
    let rig = Rig::new(board);
    let both = [FreezeHolder::Kernel, FreezeHolder::User];
    both.iter().for_each(|holder| rig.system.freeze(*holder).expect("no change is under way"));
    let thaws = |holder: FreezeHolder| -> Program {
        let rig = rig.clone();
        Box::new(move || {
            conductor::step("thaws");
            rig.system.thaw(holder).expect("it has frozen it");
        })
    };
    let programs = both.into_iter().map(thaws).collect();
    Stage::of(Vec::new(), programs).ends(move |board| {
        // The block behind the first is new: of a medium at rest it is known how many are free.
        rig.system.write(&Context::new(), &rig.file(), BLOCK_SIZE, b"x").expect("it is thawed");
        let medium: Arc<dyn Pmem> = rig.medium.clone();
        let report = check(&medium, None);
        assert!(
            report.is_clean(),
            "after the last thaw and a change the medium passes for one at rest: {:?}",
            report.problems
        );
        rig.end(board);
    })
}
