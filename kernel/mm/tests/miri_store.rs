//! The page metadata with two threads, small enough for Miri: it sees each access to memory that was freed, each race
//! on plain memory, and old values of atomics. `cargo +nightly miri test -p mm --test miri_store`; see
//! `docs/testing.md`. On stable Rust the same tests run at full speed, and see what the assertions see.
#![cfg(not(any(loom, shuttle)))]

use std::sync::{Arc, Barrier};
use std::thread;

use mm::addr::{PageSize, Pfn, PfnRange};
use mm::ledger::{Kind, Ledger};
use mm::meta::{Leaves, MetaStore, Owner};
use mm::pagemap::{DevPagemap, MemoryKind};

/// So often each race is run: a run under Miri is repeated with other seeds.
const ROUNDS: usize = if cfg!(miri) { 6 } else { 2_000 };
/// Pages of the one run.
const RUN: u64 = 3;
const FIRST: Pfn = Pfn::new(512);

struct EmuContext {
    store: MetaStore,
    ledger: Arc<Ledger>,
    map: Arc<DevPagemap>,
}

fn machine() -> EmuContext {
    machine_of(2048)
}

fn machine_of(nr_pages: u64) -> EmuContext {
    let ledger = Arc::new(Ledger::new());
    let store = MetaStore::new(ledger.clone());
    let range = PfnRange::new(Pfn::new(0), nr_pages).expect("some frames");
    let map = DevPagemap::new(MemoryKind::DevDax, [range]).expect("a range");
    store.register(&map).expect("a free place");
    EmuContext { store, ledger, map }
}

fn owner(mapping: u64) -> Owner {
    Owner { mapping, offset: 0 }
}

impl EmuContext {
    fn get(&self, pfn: Pfn, size: PageSize, mapping: u64) {
        self.store.get_or_create(pfn, size, owner(mapping), 1).expect("the map is alive");
    }

    fn get_run(&self, mapping: u64) {
        let run = self.store.get_or_create_run(FIRST, RUN, PageSize::Size4K, PageSize::Size4K, owner(mapping));
        assert_eq!(run.expect("the map is alive").nr_pages, RUN);
    }

    fn put_run(&self) {
        self.store.put_run(FIRST, RUN, PageSize::Size4K);
    }

    /// Runs both at once, [`ROUNDS`] times, each time after `before`; nothing is left afterwards.
    fn race(&self, before: impl Fn() + Sync, one: impl Fn() + Sync, other: impl Fn() + Sync) {
        let line = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    line.wait();
                    one();
                    line.wait();
                }
            });
            for _ in 0..ROUNDS {
                before();
                line.wait();
                other();
                line.wait();
                assert!(self.map.is_drained());
                assert_eq!((self.ledger.count(Kind::Folios), self.ledger.count(Kind::MetadataBytes)), (0, 0));
            }
        });
    }
}

/// Each holds a reference on every page of a chunk and drops it by the run: the last one frees the chunk, and the other
/// looks at nothing in it once it owns nothing there. covers: G8
#[test]
fn two_put_the_run_of_a_chunk_at_once() {
    let machine = machine();
    let twice = || (1..=2).for_each(|mapping| machine.get_run(mapping));
    machine.race(twice, || machine.put_run(), || machine.put_run());
}

/// The same where another makes the pages anew while their last holder leaves. covers: G8, R10
#[test]
fn a_run_is_put_while_it_is_made_anew() {
    let machine = machine();
    let make_and_put = || {
        machine.get_run(2);
        machine.put_run();
    };
    machine.race(|| machine.get_run(1), || machine.put_run(), make_and_put);
}

/// The same for a large folio, of which each holds a reference. covers: G8
#[test]
fn two_put_a_large_folio_at_once() {
    let machine = machine();
    let twice = || (1..=2).for_each(|mapping| machine.get(FIRST, PageSize::Size2M, mapping));
    let put = || machine.store.put(FIRST, 1);
    machine.race(twice, put, || machine.store.put_run(FIRST, 512, PageSize::Size2M));
}

/// The leaves of three large folios are given back at once, while another leaves the middle one. covers: G8
#[test]
fn large_leaves_are_given_back_against_one_who_leaves() {
    let machine = machine();
    let folio = |nth: u64| Pfn::new(512 * nth);
    let before = || {
        (0..3).for_each(|nth| machine.get(folio(nth), PageSize::Size2M, 1));
        machine.get(folio(1), PageSize::Size2M, 2);
    };
    let leaves = [Leaves { first: folio(0), nr: 3, size: PageSize::Size2M }];
    machine.race(before, || machine.store.put_leaves(&leaves), || machine.store.put(folio(1), 1));
}

/// More large folios than there are in a block of their metadata come and go, one by one and at once. covers: R10
#[test]
fn blocks_of_metadata_become_full_and_empty() {
    const FOLIOS: u64 = 127;
    let machine = machine_of(FOLIOS * 512);
    let folio = |nth: u64| Pfn::new(512 * nth);
    let idle = || (machine.ledger.count(Kind::Folios), machine.ledger.count(Kind::MetadataBytes)) == (0, 0);
    for _ in 0..if cfg!(miri) { 1 } else { 2 } {
        (0..FOLIOS).for_each(|nth| machine.get(folio(nth), PageSize::Size2M, 1));
        // Out of the block that is full, and in again.
        for nth in [3, 125, 126] {
            machine.store.put(folio(nth), 1);
            machine.get(folio(nth), PageSize::Size2M, 2);
        }
        let rest = |first, nr| Leaves { first: folio(first), nr, size: PageSize::Size2M };
        machine.store.put_leaves(&[rest(0, 100), rest(101, FOLIOS - 101)]);
        assert_eq!(machine.map.live_folios(), 1);
        machine.store.put(folio(100), 1);
        assert!(idle());
    }
}

/// Both unpin the same run. covers: G8
#[test]
fn two_unpin_the_run_of_a_chunk_at_once() {
    let machine = machine();
    let pin_both = || {
        (1..=2).for_each(|mapping| machine.get_run(mapping));
        for page in 0..RUN {
            // SAFETY: the references that were just taken keep the page.
            let folio = unsafe { machine.store.lookup(FIRST.add(page)) }.expect("held");
            folio.page.try_pin(2).expect("held");
        }
        (1..=2).for_each(|_| machine.put_run());
    };
    let unpin = || machine.store.unpin_run(FIRST, RUN);
    machine.race(pin_both, unpin, unpin);
}

/// A look at a page that dies, while a neighbour keeps its chunk. covers: G1
#[test]
fn a_speculative_reference_against_the_last_put() {
    let machine = machine();
    let neighbour = FIRST.add(1);
    let hold = || {
        machine.get(neighbour, PageSize::Size4K, 1);
        machine.get(FIRST, PageSize::Size4K, 1);
    };
    let look = || {
        // SAFETY: the neighbour's reference keeps the chunk; it is dropped here, after the look.
        let folio = unsafe { machine.store.lookup(FIRST) }.expect("the chunk is there");
        if folio.page.try_pin(1).is_ok() {
            assert_eq!(folio.page.owner(), owner(1));
            machine.store.unpin(FIRST, 1);
        }
        machine.store.put(neighbour, 1);
    };
    machine.race(hold, look, || machine.store.put(FIRST, 1));
}
