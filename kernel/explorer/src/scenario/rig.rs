//! An IOMMU with a device in a domain: `testkit`'s unit, whose stale translations persist, with a mark before each step of the
//! code under test. Each schedule has one of its own.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use iommu::caps::Capabilities;
use iommu::command::Command;
use iommu::completion::Counts;
use iommu::contexts::Contexts;
use iommu::domain::{Domain, Mapping};
use iommu::entry::Rights;
use iommu::hardware::Hardware;
use iommu::queue::QueueError;
use iommu::source::SourceId;
use mm::addr::{PAGE_SHIFT, PAGE_SIZE, Pfn, PfnRange};
use mm::sync::AtomicU64;
use testkit::iommu::{Make, Unit};

use super::Stage;
use crate::board::Space;
use crate::conductor::{self, Program};

/// The device.
const DEVICE: SourceId = SourceId { bus: 0, device: 4, function: 0 };
/// Its domain.
const DOMAIN: u16 = 5;
/// A unit of 39 bits, so that a walk is of three tables, with memory for as many as a scenario needs.
const UNIT: Make = Make { tables: 24, bits: 39, ..Make::WHOLE };
/// Frames of mappings that are in nobody's way: aligned to 1 GiB.
const ELSEWHERE: u64 = 1 << 20;
/// What a device stores.
pub(super) const STORED: u64 = 0xd3a;
/// What a page holds that was given to somebody else.
pub(super) const ANOTHERS: u64 = 0xa11e;

/// The unit as the code under test has it.
pub(super) struct Marked(Arc<Unit>);

impl Hardware for Marked {
    fn alloc_table(&self) -> Option<Pfn> {
        conductor::in_one_step(|| self.0.alloc_table())
    }
    fn free_table(&self, table: Pfn) {
        conductor::step("frees a device's table");
        conductor::in_one_step(|| self.0.free_table(table));
    }
    fn entry(&self, table: Pfn, index: usize) -> &AtomicU64 {
        conductor::step("looks at a device's entry");
        conductor::in_one_step(|| self.0.entry(table, index))
    }
    fn write_back(&self, table: Pfn, first: usize, count: usize) {
        conductor::step("writes entries back");
        conductor::in_one_step(|| self.0.write_back(table, first, count));
    }
    fn invalidate(&self, commands: &[Command]) -> Result<(), QueueError> {
        conductor::step("tells the unit to forget");
        let told = conductor::in_one_step(|| self.0.invalidate(commands));
        conductor::step("has its answer");
        told
    }
    fn relax(&self) {
        conductor::relax();
    }
}

/// The unit, the device and its domain.
pub(super) struct Rig {
    pub(super) unit: Arc<Unit>,
    pub(super) contexts: Contexts<Marked>,
    domain: RefCell<Option<Arc<Domain<Marked>>>>,
    /// The mapping that all is about has been ended.
    pub(super) gone: Cell<bool>,
}

impl Rig {
    /// The usual one.
    pub(super) fn new() -> Rc<Self> {
        Self::of(UNIT, UNIT.bits)
    }
    /// One that remembers that nothing is mapped.
    pub(super) fn caching() -> Rc<Self> {
        Self::of(Make { caching_mode: true, ..UNIT }, UNIT.bits)
    }
    /// One whose device has `2^bits` bytes of addresses.
    pub(super) fn small(bits: u8) -> Rc<Self> {
        Self::of(UNIT, bits)
    }

    fn of(make: Make, bits: u8) -> Rc<Self> {
        let unit = make.build();
        let hw = Arc::new(Marked(unit.clone()));
        let limits = make.capabilities();
        let contexts = Contexts::new(hw.clone(), limits.caching_mode).expect("memory for a table");
        unit.set_root(contexts.root());
        let levels = limits.check(make.bits).expect("such tables");
        let domain = Domain::new(hw, DOMAIN, levels, &Capabilities { address_bits: bits, ..limits });
        let domain = domain.expect("memory for a table");
        contexts.attach(DEVICE, &domain).expect("it is in no domain");
        Rc::new(Self { unit, contexts, domain: RefCell::new(Some(domain)), gone: Cell::new(false) })
    }

    /// The domain, while there is one.
    pub(super) fn domain(&self) -> Arc<Domain<Marked>> {
        self.domain.borrow().clone().expect("the domain is there until it is dropped")
    }
    /// The rig has it no more.
    pub(super) fn drop_domain(&self) {
        drop(self.domain.take());
    }
    /// The device is in no domain any more.
    pub(super) fn detach(&self) {
        self.contexts.detach(DEVICE).expect("the unit answers");
    }

    /// Maps `nr_pages` frames in a row, the last of which is `last`.
    pub(super) fn map(&self, last: Pfn, nr_pages: u64) -> Mapping {
        let first = Pfn::new(last.as_u64() + 1 - nr_pages);
        self.domain().map(&[run(first, nr_pages)], Rights::all(), 1).expect("there is room")
    }
    /// Maps `nr_pages` frames that are somewhere else, so that the next mapping will be behind their addresses.
    pub(super) fn map_elsewhere(&self, nr_pages: u64) {
        let _stays = self.map(Pfn::new(ELSEWHERE + nr_pages - 1), nr_pages);
    }

    /// The device stores a word: the frame that it reached, where it was not blocked. It is one step, as the unit drains
    /// what is under way before it says that it has forgotten something.
    pub(super) fn transfer(&self, address: u64) -> Option<Pfn> {
        conductor::step("begins a transfer");
        let reached = conductor::in_one_step(|| self.unit.device_writes(DEVICE, address, STORED));
        let reached = reached.ok().map(|at| Pfn::new(at.as_u64() >> PAGE_SHIFT));
        conductor::note(|| match reached {
            Some(frame) => format!("stores to frame {frame} at {address:#x}"),
            None => format!("is blocked at {address:#x}"),
        });
        reached
    }

    /// The mapping is over: its frame is another's, who writes to it.
    pub(super) fn give_away(&self, frame: Pfn) {
        conductor::in_one_step(|| self.unit.store(frame.addr(), ANOTHERS));
        conductor::note(|| format!("frame {frame} is given to somebody else"));
        self.gone.set(true);
    }
    /// What the frame holds.
    pub(super) fn word(&self, frame: Pfn) -> u64 {
        conductor::in_one_step(|| self.unit.memory(frame.addr()))
    }
    /// What was counted of the device so far.
    pub(super) fn counts(&self) -> Counts {
        conductor::in_one_step(|| Counts { faults: self.unit.nr_faults(), ..Counts::default() })
    }

    /// The device stores to the last page of the mapping, `frame`, so many times: not once it is over.
    pub(super) fn transfers(self: &Rc<Self>, mapping: &Mapping, frame: Pfn, times: usize) -> Program {
        let (rig, at) = (self.clone(), mapping.address() + mapping.bytes() - PAGE_SIZE);
        Box::new(move || {
            for _ in 0..times {
                let was_gone = rig.gone.get();
                let reached = rig.transfer(at);
                assert!(
                    !(was_gone && reached == Some(frame)),
                    "the device stored to frame {frame} at {at:#x} after its mapping was over"
                );
            }
        })
    }

    /// What the frame holds at the end is its next owner's, and all tables are given back but `lost`.
    pub(super) fn end(self: &Rc<Self>, frame: Pfn, lost: u64) {
        let word = self.word(frame);
        assert!(
            !self.gone.get() || word == ANOTHERS,
            "frame {frame} was given to somebody else, and holds {word:#x}: the device has stored to it"
        );
        self.detach();
        self.drop_domain();
        let left = self.unit.tables_in_use();
        assert!(
            left == 2 + lost,
            "at the end {left} tables of the unit are in use: expected the root and one for contexts"
        );
    }

    /// A stage of these programs, which ends as [`end`](Self::end) says.
    pub(super) fn stage(self: &Rc<Self>, spaces: Vec<Arc<Space>>, programs: Vec<Program>, frame: Pfn) -> Stage {
        let rig = self.clone();
        Stage::of(spaces, programs).ends(move |_| rig.end(frame, 0))
    }
}

/// A run of frames.
pub(super) fn run(first: Pfn, nr_pages: u64) -> PfnRange {
    PfnRange::new(first, nr_pages).expect("there are frames")
}
