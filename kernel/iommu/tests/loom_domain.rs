//! Models of domains: the very code of `iommu::domain` and `iommu::contexts` against a device's walk, with tables of two entries.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p iommu --release --test loom_domain`. What every model states is the same
//! sentence: *when a revocation has returned, whoever has ended the mapping, no device uses its pages or the tables that led
//! there, and what a device did with them is ordered before whatever comes next.* The next owner's write to the page is that
//! "next"; freeing a table writes it. See `docs/proofs.md` for which deliberate fault each model catches.
#![cfg(any(loom, shuttle))]

use iommu::caps::{Capabilities, Levels};
use iommu::command::{Command, Context, Iotlb};
use iommu::contexts::Contexts;
use iommu::domain::{Domain, MapError, Mapping, Revocation};
use iommu::entry::{ContextEntry, Entry, Rights, RootEntry};
use iommu::hardware::Hardware;
use iommu::queue::QueueError;
use iommu::source::SourceId;
use iommu::{index, order};
use mm::addr::{ENTRIES, PAGE_SHIFT, Pfn, PfnRange};
use mm::sync::model::thread::{self, JoinHandle};
use mm::sync::model::{Bound, UnsafeCell, explore};
use mm::sync::{Arc, AtomicU64, Mutex, Ordering};

/// Frames for tables, and for data behind them.
const TABLES: u64 = 10;
const PAGES: u64 = 4;
const DEVICE: SourceId = SourceId { bus: 0, device: 0, function: 0 };

/// A table: written by who frees it or takes it, read by every other use.
struct Table {
    entries: [AtomicU64; ENTRIES],
    life: UnsafeCell<bool>,
}

/// What the unit remembers. Its lock is held for a whole transfer: an invalidation waits for those that are under way, as
/// the hardware does.
#[derive(Default)]
struct Caches {
    context: Option<Pfn>,
    /// Page number, frame.
    iotlb: Vec<(u64, u64)>,
    /// Level of the entry, page number shifted by its order, the table that it leads to.
    tables: Vec<(u8, u64, Pfn)>,
}

struct Unit {
    tables: Vec<Table>,
    data: Vec<UnsafeCell<u64>>,
    free: Mutex<Vec<u64>>,
    caches: Mutex<Caches>,
    /// Where the root table is, if devices are found through it.
    root: core::sync::atomic::AtomicU64,
}

// SAFETY: the cells are what the models check: the checker ends a model where two threads reach one without order.
unsafe impl Sync for Unit {}
// SAFETY: as above.
unsafe impl Send for Unit {}

impl Unit {
    fn new() -> Arc<Self> {
        let table = |_| Table { entries: core::array::from_fn(|_| AtomicU64::new(0)), life: UnsafeCell::new(false) };
        Arc::new(Self {
            tables: (0..TABLES).map(table).collect(),
            data: (0..PAGES).map(UnsafeCell::new).collect(),
            free: Mutex::new((0..TABLES).rev().collect()),
            caches: Mutex::new(Caches::default()),
            root: core::sync::atomic::AtomicU64::new(u64::MAX),
        })
    }

    /// A use of a table.
    fn table(&self, table: Pfn) -> &Table {
        let table = &self.tables[table.as_u64() as usize];
        // SAFETY: read beside other readers, or the checker ends the model.
        table.life.with(|used| assert!(unsafe { *used }, "a table is used that is free"));
        table
    }
    fn read(&self, table: Pfn, index: usize) -> u64 {
        self.table(table).entries[index].load(Ordering::Acquire)
    }
    /// Somebody takes a table, or frees it: alone.
    fn turn(&self, table: u64, used: bool) {
        // SAFETY: written alone, or the checker ends the model.
        self.tables[table as usize].life.with_mut(|life| unsafe {
            assert_ne!(*life, used);
            *life = used;
        });
    }

    /// The page is another's now, who writes it.
    fn reuse(&self, frame: u64) {
        // SAFETY: written alone, or the checker ends the model.
        self.data[(frame - TABLES) as usize].with_mut(|data| unsafe { *data += 1 });
    }

    /// The device reads the page at page number `page`: its frame, where it is not blocked. The tables begin at `root`,
    /// or where the context entry says.
    fn transfer(&self, page: u64, root: Option<Pfn>) -> Option<u64> {
        let mut caches = self.caches.lock();
        let cached = caches.iotlb.iter().find(|(at, _)| *at == page).map(|(_, frame)| *frame);
        let frame = match cached {
            Some(frame) => frame,
            None => {
                let root = root.or_else(|| self.context(&mut caches))?;
                let frame = self.walk(&mut caches, page, root)?;
                caches.iotlb.push((page, frame));
                frame
            }
        };
        // SAFETY: read beside other readers, or the checker ends the model.
        self.data[(frame - TABLES) as usize].with(|data| _ = unsafe { *data });
        Some(frame)
    }

    fn context(&self, caches: &mut Caches) -> Option<Pfn> {
        if let Some(root) = caches.context {
            return Some(root);
        }
        let root = Pfn::new(self.root.load(core::sync::atomic::Ordering::Relaxed));
        let table = RootEntry { low: self.read(root, 0), high: 0 }.table()?;
        let entry = ContextEntry { low: self.read(table, 0), high: self.read(table, 1) };
        caches.context = entry.is_present().then(|| entry.root());
        caches.context
    }

    fn walk(&self, caches: &mut Caches, page: u64, root: Pfn) -> Option<u64> {
        let cached = |level: u8| {
            let found = caches.tables.iter().find(|(of, at, _)| (*of, *at) == (level, page >> order(level)));
            found.map(|(_, _, table)| (level - 1, *table))
        };
        let (mut level, mut table) = (2..=3).find_map(cached).unwrap_or((3, root));
        loop {
            let entry = Entry::from_bits(self.read(table, index(page, level)));
            if !entry.is_present() {
                return None;
            }
            if entry.is_leaf(level) {
                return Some(entry.pfn().as_u64());
            }
            caches.tables.push((level, page >> order(level), entry.pfn()));
            (level, table) = (level - 1, entry.pfn());
        }
    }
}

impl Hardware for Unit {
    fn alloc_table(&self) -> Option<Pfn> {
        let table = self.free.lock().pop()?;
        self.turn(table, true);
        self.tables[table as usize].entries.iter().for_each(|entry| entry.store(0, Ordering::Relaxed));
        Some(Pfn::new(table))
    }
    fn free_table(&self, table: Pfn) {
        self.turn(table.as_u64(), false);
        self.free.lock().push(table.as_u64());
    }
    fn entry(&self, table: Pfn, index: usize) -> &AtomicU64 {
        &self.table(table).entries[index]
    }
    fn write_back(&self, _: Pfn, _: usize, _: usize) {}
    fn invalidate(&self, commands: &[Command]) -> Result<(), QueueError> {
        let mut caches = self.caches.lock();
        for command in commands {
            match *command {
                Command::Iotlb(Iotlb::Pages { address, mask, .. }) => {
                    let first = address >> PAGE_SHIFT;
                    let meets = |at: u64, order: u32| {
                        let larger = order.max(mask.into());
                        (at << order) >> larger == first >> larger
                    };
                    caches.iotlb.retain(|(page, _)| !meets(*page, 0));
                    caches.tables.retain(|(level, at, _)| !meets(*at, order(*level)));
                }
                Command::Iotlb(Iotlb::Domain { .. } | Iotlb::Global) => {
                    caches.iotlb.clear();
                    caches.tables.clear();
                }
                Command::Context(Context::Device { .. }) => caches.context = None,
                _ => unreachable!("{command:?}"),
            }
        }
        Ok(())
    }
    fn relax(&self) {
        thread::yield_now();
    }
}

/// A domain of eight pages: three levels of two entries.
struct Rig {
    unit: Arc<Unit>,
    domain: Arc<Domain<Unit>>,
}

const FIRST: u64 = TABLES;

impl Rig {
    /// Nothing is mapped.
    fn empty() -> Self {
        let unit = Unit::new();
        // Commands by range of up to 2^2 pages.
        let limits = Capabilities::decode(1 << 39 | 2 << 48 | 14 << 16, 2, 0x10).with_host_bits(40);
        let domain = Domain::new(unit.clone(), 1, Levels::Three, &limits).unwrap();
        Self { unit, domain }
    }
    /// Pages 1 to 3 are somebody's who is not looked at.
    fn new() -> Self {
        let rig = Self::empty();
        let low = [rig.map(3, 1), rig.map(3, 2)];
        assert_eq!(low.map(|low| low.address() >> PAGE_SHIFT), [1, 2]);
        rig
    }
    /// Maps data page `nth` and those behind it, `nr` in all.
    fn map(&self, nth: u64, nr: u64) -> Mapping {
        let frames = PfnRange::new(Pfn::new(FIRST + nth), nr).unwrap();
        self.domain.map(&[frames], Rights::all(), nth).unwrap()
    }
    /// One page, at the page number that is expected.
    fn at(&self, page: u64, nth: u64) -> Arc<Mapping> {
        let mapping = self.map(nth, 1);
        assert_eq!(mapping.address() >> PAGE_SHIFT, page);
        Arc::new(mapping)
    }
    /// The last addresses are somebody's, and the next search begins anew: no table stays for it.
    fn fill(&self) {
        assert_eq!(self.map(2, 2).address() >> PAGE_SHIFT, 6);
    }
    /// A device that reads the pages at these page numbers.
    fn device(&self, pages: &'static [u64]) -> JoinHandle<()> {
        let (unit, root) = (self.unit.clone(), self.domain.root());
        thread::spawn(move || pages.iter().for_each(|page| _ = unit.transfer(*page, Some(root))))
    }
    fn tables_in_use(&self) -> u64 {
        TABLES - self.unit.free.lock().len() as u64
    }
    /// Nothing was lost, and nothing freed twice.
    fn end(self) {
        assert_eq!(self.domain.stats().tables, self.tables_in_use());
        *self.unit.caches.lock() = Caches::default();
        drop(self.domain);
        assert_eq!(self.unit.free.lock().len() as u64, TABLES);
    }
}

const BOUND: Bound = Bound::Preemptions(4);

// covers: D2, D3
#[test]
fn a_revocation_against_a_device() {
    explore(BOUND, || {
        let rig = Rig::new();
        let mapping = rig.at(4, 0);
        let _beside = rig.at(5, 1);
        let device = rig.device(&[4, 5, 4]);
        assert!(rig.domain.revoke(&mapping).first);
        rig.unit.reuse(FIRST);
        assert_eq!(rig.unit.transfer(5, Some(rig.domain.root())), Some(FIRST + 1), "the neighbour is still there");
        device.join().unwrap();
        rig.end();
    });
}

// covers: D2
#[test]
fn a_table_is_freed_after_every_walk_through_it() {
    explore(BOUND, || {
        let rig = Rig::new();
        let mapping = rig.at(4, 0);
        rig.fill();
        let device = rig.device(&[4, 5, 4]);
        assert_eq!(rig.domain.revoke(&mapping).tables, 1);
        rig.unit.reuse(FIRST);
        device.join().unwrap();
        rig.end();
    });
}

// covers: D1
#[test]
fn a_mapping_against_a_device() {
    explore(BOUND, || {
        let rig = Rig::new();
        // The table is there: the leaf alone says that the page is ready.
        let _beside = rig.at(4, 1);
        let device = rig.device(&[5, 5]);
        rig.unit.reuse(FIRST);
        let mapping = rig.at(5, 0);
        assert_eq!(rig.unit.transfer(5, Some(rig.domain.root())), Some(FIRST), "it is there once it is made");
        device.join().unwrap();
        assert!(rig.domain.revoke(&mapping).first);
        rig.end();
    });
}

// covers: D2
#[test]
fn two_revocations_of_one_mapping() {
    explore(BOUND, || {
        let rig = Rig::new();
        let mapping = rig.at(4, 0);
        let device = rig.device(&[4]);
        // Each gives the page to the next owner once it has its answer; of these one comes after the other.
        let owner = Arc::new(Mutex::new(()));
        let revokes = |unit: Arc<Unit>, domain: Arc<Domain<Unit>>, mapping: Arc<Mapping>, owner: Arc<Mutex<()>>| {
            let done = domain.revoke(&mapping);
            let _next = owner.lock();
            unit.reuse(FIRST);
            done
        };
        let other = {
            let (unit, domain, mapping, owner) = (rig.unit.clone(), rig.domain.clone(), mapping.clone(), owner.clone());
            thread::spawn(move || revokes(unit, domain, mapping, owner))
        };
        let first = revokes(rig.unit.clone(), rig.domain.clone(), mapping, owner);
        let second = other.join().unwrap();
        assert!(first.first != second.first && first.and(second).ranges == 1, "one of them ends it");
        device.join().unwrap();
        rig.end();
    });
}

// covers: D2
#[test]
fn two_revocations_of_neighbours_that_share_a_table() {
    explore(BOUND, || {
        let rig = Rig::new();
        let mappings = [rig.at(4, 0), rig.at(5, 1)];
        rig.fill();
        let device = rig.device(&[4, 5]);
        let before = rig.tables_in_use();
        let other = {
            let (unit, domain, mapping) = (rig.unit.clone(), rig.domain.clone(), mappings[1].clone());
            thread::spawn(move || {
                let done = domain.revoke(&mapping);
                unit.reuse(FIRST + 1);
                done
            })
        };
        let done = rig.domain.revoke(&mappings[0]);
        rig.unit.reuse(FIRST);
        let done = done.and(other.join().unwrap());
        device.join().unwrap();
        assert_eq!((done.ranges, done.tables), (2, 1), "the table goes with the last, whoever that is");
        assert_eq!(rig.tables_in_use(), before - 1);
        rig.end();
    });
}

// covers: D1
#[test]
fn a_mapping_against_a_revocation_beside_it() {
    explore(BOUND, || {
        let rig = Rig::new();
        let mapping = rig.at(4, 0);
        rig.fill();
        assert_eq!(rig.unit.transfer(4, Some(rig.domain.root())), Some(FIRST));
        let other = {
            let (unit, domain) = (rig.unit.clone(), rig.domain.clone());
            thread::spawn(move || {
                let frames = PfnRange::new(Pfn::new(FIRST + 1), 1).unwrap();
                match domain.map(&[frames], Rights::all(), 1) {
                    Ok(made) => {
                        let page = made.address() >> PAGE_SHIFT;
                        let reached = unit.transfer(page, Some(domain.root()));
                        assert_eq!(reached, Some(FIRST + 1), "page {page} is not reached once it is mapped");
                        Some(made)
                    }
                    Err(error) => {
                        assert!(matches!(error, MapError::Full { .. }), "{error}");
                        None
                    }
                }
            })
        };
        assert!(rig.domain.revoke(&mapping).first);
        rig.unit.reuse(FIRST);
        let _made = other.join().unwrap();
        rig.end();
    });
}

// covers: D2, D5
#[test]
fn a_revocation_against_the_end_of_the_domain() {
    explore(BOUND, || {
        let rig = Rig::empty();
        let mapping = rig.at(1, 0);
        let device = rig.device(&[1, 1]);
        let other = {
            let (domain, mapping) = (rig.domain.clone(), mapping.clone());
            thread::spawn(move || domain.revoke(&mapping))
        };
        let closed = rig.domain.close();
        rig.unit.reuse(FIRST);
        let done = closed.and(other.join().unwrap());
        device.join().unwrap();
        assert_eq!((done.ranges, rig.domain.close()), (1, Revocation::default()));
        rig.end();
    });
}

// covers: D1, D5
#[test]
fn a_mapping_against_the_end_of_the_domain() {
    explore(BOUND, || {
        let rig = Rig::new();
        let device = rig.device(&[4, 4]);
        let other = {
            let domain = rig.domain.clone();
            thread::spawn(move || {
                let frames = PfnRange::new(Pfn::new(FIRST), 1).unwrap();
                domain.map(&[frames], Rights::all(), 1)
            })
        };
        let _closed = rig.domain.close();
        rig.unit.reuse(FIRST);
        let made = other.join().unwrap();
        assert!(matches!(made, Ok(_) | Err(MapError::Closed)), "{made:?}");
        device.join().unwrap();
        assert_eq!(
            rig.unit.transfer(4, Some(rig.domain.root())),
            None,
            "made, and closed with the others, or not made"
        );
        rig.end();
    });
}

// covers: D1, D2
#[test]
fn a_device_that_leaves_against_its_transfers() {
    explore(BOUND, || {
        let rig = Rig::new();
        let _mapping = rig.at(4, 0);
        let contexts = Contexts::new(rig.unit.clone(), false).unwrap();
        rig.unit.root.store(contexts.root().as_u64(), core::sync::atomic::Ordering::Relaxed);
        contexts.attach(DEVICE, &rig.domain).unwrap();
        let Rig { unit, domain } = rig;
        let device = {
            let unit = unit.clone();
            thread::spawn(move || [4, 4].map(|page| unit.transfer(page, None)))
        };
        assert_eq!(contexts.detach(DEVICE), Ok(true));
        // The mapping was not revoked: its tables go with the domain, and the page is another's.
        drop(domain);
        unit.reuse(FIRST);
        assert_eq!(TABLES - unit.free.lock().len() as u64, 2, "the root table and a context table");
        device.join().unwrap();
    });
}
