//! Models of the page metadata: the very code of `mm::meta`, with tables of two slots, under every interleaving
//! that loom can tell apart.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p mm --release --test loom_meta`. With `MM_MUTANT=NAME` in the
//! environment a deliberate fault is built in, and the model named beside it must fail:
//!
//! | model | property | mutant that it catches |
//! |---|---|---|
//! | `last_put_against_making_a_large_folio_anew` | a folio is freed once, by whoever finds it dead under the lock; the next life begins after all use of the last | `retire_no_recheck`, `relaxed_put` |
//! | `last_put_against_making_a_page_anew` | the same for an order-0 page; its chunk stays while a life is on its way out | `relaxed_put` |
//! | `a_folio_changes_its_size_while_its_last_holder_leaves` | the last holder never frees what took the folio's place | `relaxed_put` |
//! | `two_leave_and_one_comes` | the same with two holders, of whom either may be the last, and by the run | `retire_no_recheck`, `relaxed_put`, `put_looked_at_again` |
//! | `a_put_looks_at_nothing_behind_it` | who has given up a reference uses nothing behind it: the other may have freed it | `put_looked_at_again`, `relaxed_put` |
//! | `leaves_against_making_and_leaving` | who gives back leaves of large folios under the lock, and who leaves without it, free a folio once, and nothing that is held | `leaf_put_buries`, `relaxed_put` |
//! | `speculative_get_against_last_put` | a reference is had before the count reaches zero or not at all | `reference_from_zero` |
//! | `pin_against_drain` | a removal that has seen the page map drained comes after the last use of every pin | `relaxed_put` |
//! | `killing_against_making` | once a page map is killed its counter only falls | — |
//! | `a_walk_against_its_neighbours` | tables on the way to a held folio stay, whatever happens beside it | — |
#![cfg(any(loom, shuttle))]

use std::sync::Arc;

use mm::addr::{PageSize, Pfn, PfnRange};
use mm::ledger::{Kind, Ledger};
use mm::meta::{Leaves, MetaError, MetaStore, Owner, UnregisterError};
use mm::pagemap::{DevPagemap, MemoryKind};
use mm::sync::model::{AtomicBool, Bound, UnsafeCell, explore, explore_as, sized, thread};
use mm::sync::{Mutex, Ordering};

/// First frames of two 2 MiB blocks of the same 1 GiB. The tables have two slots, so a frame number may use the
/// lowest bit of each level alone.
const BLOCK: [u64; 2] = [0, 512];

const OLD: Owner = Owner { mapping: 1, offset: 0 };
const NEW: Owner = Owner { mapping: 2, offset: 0 };

struct EmuContext {
    store: MetaStore,
    ledger: Arc<Ledger>,
    map: Arc<DevPagemap>,
    /// What the device holds at [`BLOCK`]`[0]`: loom reports two who use it without order between them.
    contents: UnsafeCell<()>,
}

// SAFETY: loom watches each access to `contents`, and ends the model where two are not ordered.
unsafe impl Sync for EmuContext {}

impl EmuContext {
    fn new() -> Arc<Self> {
        let ledger = Arc::new(Ledger::new());
        let store = MetaStore::new(Arc::clone(&ledger));
        let range = PfnRange::new(Pfn::new(0), 1 << 18).expect("1 GiB");
        let map = DevPagemap::new(MemoryKind::DevDax, [range]).expect("a range");
        store.register(&map).expect("a free place");
        Arc::new(Self { store, ledger, map, contents: UnsafeCell::new(()) })
    }
    fn get(&self, pfn: u64, want: PageSize, owner: Owner) -> PageSize {
        self.store.get_or_create(Pfn::new(pfn), want, owner, 1).expect("the map is alive").1
    }
    fn put(&self, pfn: u64) {
        self.store.put(Pfn::new(pfn), 1);
    }
    /// Uses the device alone: nobody else may use it without being ordered before or after.
    fn use_alone(&self) {
        self.contents.with_mut(|_| ());
    }
    /// Uses the device beside others who do so.
    fn use_shared(&self) {
        self.contents.with(|_| ());
    }
    /// For the holder of a reference: uses the device alone if the folio came to life for `NEW`.
    fn use_if_new(&self, pfn: u64) {
        // SAFETY: the caller holds a reference.
        let folio = unsafe { self.store.lookup(Pfn::new(pfn)) }.expect("held");
        if folio.page.owner().mapping == NEW.mapping {
            self.use_alone();
        }
    }
    fn assert_idle(&self) {
        assert!(self.map.is_drained());
        assert_eq!(self.ledger.count(Kind::Folios), 0);
        assert_eq!(self.ledger.count(Kind::MetadataBytes), 0);
    }
}

/// Holders of an old life.
const LEAVING: usize = sized(1, 3);

/// The old life's holder uses the device and leaves; another makes (or finds) a folio there. `pages` are held
/// throughout.
fn put_against_make(old: PageSize, new: PageSize, neighbour: Option<u64>) {
    let name = format!("loom_meta::put_against_make({old}, {new}, {neighbour:?})").replace(' ', "");
    leave_against_make(&name, (old, new), neighbour, |machine| machine.put(BLOCK[0]));
}

/// The same with another way to leave.
fn leave_against_make(name: &str, sizes: (PageSize, PageSize), neighbour: Option<u64>, put: fn(&EmuContext)) {
    let (old, new) = sizes;
    explore_as(name, Bound::None, move || {
        let machine = EmuContext::new();
        if let Some(neighbour) = neighbour {
            machine.get(neighbour, PageSize::Size4K, OLD);
        }
        (0..LEAVING).for_each(|_| assert_eq!(machine.get(BLOCK[0], old, OLD), old));
        let leave = |_| {
            let machine = Arc::clone(&machine);
            thread::spawn(move || {
                machine.use_shared();
                put(&machine);
            })
        };
        let leaving: Vec<_> = (0..LEAVING).map(leave).collect();
        let size = machine.get(BLOCK[0], new, NEW);
        assert!(size == old || size == new);
        machine.use_if_new(BLOCK[0]);
        machine.put(BLOCK[0]);
        leaving.into_iter().for_each(|thread| thread.join().unwrap());
        if let Some(neighbour) = neighbour {
            machine.put(neighbour);
        }
        machine.assert_idle();
    });
}

/// covers: G8, R10
#[test]
fn last_put_against_making_a_large_folio_anew() {
    put_against_make(PageSize::Size2M, PageSize::Size2M, None);
}

/// covers: G8, R10
#[test]
fn last_put_against_making_a_page_anew() {
    put_against_make(PageSize::Size4K, PageSize::Size4K, None);
    // With the neighbour held there are more lives than pages for a moment.
    put_against_make(PageSize::Size4K, PageSize::Size4K, Some(BLOCK[0] + 1));
}

/// covers: G8
#[test]
fn a_folio_changes_its_size_while_its_last_holder_leaves() {
    put_against_make(PageSize::Size2M, PageSize::Size4K, None);
    put_against_make(PageSize::Size1G, PageSize::Size4K, None);
}

/// covers: G8, R10
#[test]
fn two_leave_and_one_comes() {
    for size in [PageSize::Size4K, PageSize::Size2M] {
        let name = format!("loom_meta::two_leave_and_one_comes({size})").replace(' ', "");
        // Three threads: with more switches than this by force loom takes minutes and finds no more.
        explore_as(&name, Bound::Preemptions(3), move || {
            let machine = EmuContext::new();
            machine.get(BLOCK[0], size, OLD);
            let one = |_| {
                let machine = Arc::clone(&machine);
                machine.get(BLOCK[0], size, OLD);
                thread::spawn(move || {
                    machine.use_shared();
                    machine.put(BLOCK[0]);
                })
            };
            let ones: Vec<_> = (0..LEAVING).map(one).collect();
            let other = {
                let machine = Arc::clone(&machine);
                thread::spawn(move || {
                    machine.use_shared();
                    machine.store.put_run(Pfn::new(BLOCK[0]), 1, PageSize::Size4K);
                })
            };
            machine.get(BLOCK[0], size, NEW);
            machine.use_if_new(BLOCK[0]);
            machine.store.put_run(Pfn::new(BLOCK[0]), 1, PageSize::Size4K);
            ones.into_iter().for_each(|one| one.join().unwrap());
            other.join().unwrap();
            machine.assert_idle();
        });
    }
}

/// Two holders of one page, and nobody else of its chunk: it is freed between the other's subtraction and whatever that
/// one does next. By the run, as an unmap does, and by the page. covers: G8, R10
#[test]
fn a_put_looks_at_nothing_behind_it() {
    type Put = fn(&EmuContext);
    let puts: [Put; 2] =
        [|machine| machine.store.put_run(Pfn::new(BLOCK[0]), 1, PageSize::Size4K), |machine| machine.put(BLOCK[0])];
    for (nr, (one, other)) in [(puts[0], puts[0]), (puts[0], puts[1]), (puts[1], puts[1])].into_iter().enumerate() {
        for size in [PageSize::Size4K, PageSize::Size2M] {
            explore_as(&format!("loom_meta::a_put_looks_at_nothing_behind_it({nr},{size})"), Bound::None, move || {
                let machine = EmuContext::new();
                machine.get(BLOCK[0], size, OLD);
                machine.get(BLOCK[0], size, OLD);
                let theirs = Arc::clone(&machine);
                let thread = thread::spawn(move || one(&theirs));
                other(&machine);
                thread.join().unwrap();
                machine.assert_idle();
            });
        }
    }
}

/// Who gives back leaves of large folios drops and buries under the lock, and others without it. covers: G8, R10
#[test]
fn leaves_against_making_and_leaving() {
    const LARGE: PageSize = PageSize::Size2M;
    let leaves = |machine: &EmuContext| machine.store.put_leaves(&[Leaves::one(Pfn::new(BLOCK[0]), LARGE)]);
    for new in [LARGE, PageSize::Size4K] {
        let name = format!("loom_meta::leaves_against_making({new})");
        leave_against_make(&name, (LARGE, new), None, leaves);
    }
    explore_as("loom_meta::leaves_against_leaving", Bound::None, move || {
        let machine = EmuContext::new();
        (0..2).for_each(|_| assert_eq!(machine.get(BLOCK[0], LARGE, OLD), LARGE));
        let theirs = Arc::clone(&machine);
        let thread = thread::spawn(move || leaves(&theirs));
        machine.use_shared();
        machine.put(BLOCK[0]);
        thread.join().unwrap();
        machine.assert_idle();
    });
}

/// The neighbour's reference keeps the chunk, so that a look at a dead page is allowed. covers: G1
#[test]
fn speculative_get_against_last_put() {
    explore(Bound::None, || {
        let machine = EmuContext::new();
        let neighbour = BLOCK[0] + 1;
        machine.get(neighbour, PageSize::Size4K, OLD);
        machine.get(BLOCK[0], PageSize::Size4K, OLD);
        let speculating = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || {
                // SAFETY: the model holds the neighbour until this thread has ended.
                let folio = unsafe { machine.store.lookup(Pfn::new(BLOCK[0])) }.expect("the chunk is there");
                if folio.page.try_get(1).is_ok() {
                    assert_eq!(folio.page.owner(), OLD);
                    assert!(!machine.map.is_drained());
                    machine.put(BLOCK[0]);
                }
            })
        };
        machine.put(BLOCK[0]);
        speculating.join().unwrap();
        assert_eq!(machine.map.live_folios(), 1, "the neighbour");
        machine.put(neighbour);
        machine.assert_idle();
    });
}

/// A pinner that found the page through an entry, against the removal that takes the entry away. The pinner's
/// interrupts are a lock that the shootdown waits for. covers: G1, R1, R12
#[test]
fn pin_against_drain() {
    explore(Bound::None, || {
        let machine = EmuContext::new();
        let entry = Arc::new(AtomicBool::new(true));
        let interrupts = Arc::new(Mutex::new(()));
        machine.get(BLOCK[0], PageSize::Size2M, OLD);
        let pinner = {
            let (machine, entry, interrupts) = (Arc::clone(&machine), Arc::clone(&entry), Arc::clone(&interrupts));
            thread::spawn(move || {
                let off = interrupts.lock();
                let present = entry.load(Ordering::Acquire);
                if present {
                    // SAFETY: interrupts are off and the entry was present in this walk.
                    let folio = unsafe { machine.store.lookup(Pfn::new(BLOCK[0])) }.expect("the entry holds it");
                    folio.page.try_pin(1).expect("the entry holds it");
                }
                drop(off);
                if present {
                    machine.use_alone();
                    machine.store.unpin(Pfn::new(BLOCK[0]), 1);
                }
            })
        };
        entry.store(false, Ordering::Release);
        drop(interrupts.lock());
        assert!(machine.store.kill(&machine.map));
        machine.put(BLOCK[0]);
        while !machine.map.is_drained() {
            thread::yield_now();
        }
        machine.use_alone();
        machine.store.unregister(&machine.map).expect("drained");
        pinner.join().unwrap();
        machine.assert_idle();
    });
}

/// covers: R12
#[test]
fn killing_against_making() {
    explore(Bound::None, || {
        let machine = EmuContext::new();
        let maker = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || {
                let made = machine.store.get_or_create(Pfn::new(BLOCK[0]), PageSize::Size2M, OLD, 1);
                match made {
                    Ok(_) => machine.put(BLOCK[0]),
                    Err(error) => assert!(matches!(error, MetaError::Dying | MetaError::NoPageMap)),
                }
            })
        };
        assert!(machine.store.kill(&machine.map));
        let live = machine.map.live_folios();
        let unregistered = machine.store.unregister(&machine.map);
        match unregistered {
            Ok(()) => assert!(machine.map.is_drained()),
            Err(error) => assert_eq!((error, live), (UnregisterError::Busy(1), 1), "the counter has risen"),
        }
        maker.join().unwrap();
        machine.assert_idle();
    });
}

/// Two models: together they would make more stores to one slot than loom shows a load. covers: G1
#[test]
fn a_walk_against_its_neighbours() {
    for (neighbour, size) in [(BLOCK[1], PageSize::Size2M), (BLOCK[0] + 1, PageSize::Size4K)] {
        let name = format!("loom_meta::a_walk_against_its_neighbours({size})").replace(' ', "");
        explore_as(&name, Bound::None, move || {
            let machine = EmuContext::new();
            machine.get(BLOCK[0], PageSize::Size4K, OLD);
            let beside = {
                let machine = Arc::clone(&machine);
                thread::spawn(move || {
                    // In more rounds for shuttle.
                    for _ in 0..sized(1, 3) {
                        machine.get(neighbour, size, NEW);
                        machine.put(neighbour);
                    }
                })
            };
            // SAFETY: this thread holds a reference on the page.
            let folio = unsafe { machine.store.lookup(Pfn::new(BLOCK[0])) }.expect("held");
            assert_eq!((folio.size, folio.page.owner()), (PageSize::Size4K, OLD));
            machine.put(BLOCK[0]);
            beside.join().unwrap();
            machine.assert_idle();
        });
    }
}
