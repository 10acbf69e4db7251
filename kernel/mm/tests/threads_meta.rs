//! Page metadata by two threads, small enough for Miri, which sees a use of what was freed wherever it is:
//! `cargo +nightly miri test -p mm --test threads_meta`. Plain tests, too.
#![cfg(not(loom))]

use std::sync::Arc;
use std::thread;

use mm::addr::{PageSize, Pfn, PfnRange};
use mm::ledger::{Kind, Ledger};
use mm::meta::{MetaStore, Owner};
use mm::pagemap::{DevPagemap, MemoryKind};

/// First frame of the device: 1 GiB-aligned.
const FIRST: u64 = 1 << 18;
/// Pages of the run that both hold: few, for Miri makes a chunk of 512 of them in any case.
const NR_PAGES: u64 = 4;
/// Times that the race is run.
const ROUNDS: usize = if cfg!(miri) { 3 } else { 500 };

/// Both threads hold each folio of a run, and each gives it up in its own way.
fn two_leave(leaf: PageSize, nr_pages: u64, leave: [fn(&MetaStore, u64); 2]) {
    let ledger = Arc::new(Ledger::new());
    let store = MetaStore::new(Arc::clone(&ledger));
    let range = PfnRange::new(Pfn::new(FIRST), 1 << 18).expect("1 GiB");
    let map = DevPagemap::new(MemoryKind::DevDax, [range]).expect("a range");
    store.register(&map).expect("a free place");
    for _ in 0..ROUNDS {
        for _ in leave {
            let run = store.get_or_create_run(Pfn::new(FIRST), nr_pages, leaf, leaf, Owner::default()).expect("memory");
            assert_eq!(run.nr_pages, nr_pages, "one chunk");
        }
        thread::scope(|scope| {
            let store = &store;
            for leave in leave {
                scope.spawn(move || leave(store, nr_pages));
            }
        });
        assert!(map.is_drained());
        assert_eq!(ledger.count(Kind::MetadataBytes), 0);
    }
}

fn by_the_run(store: &MetaStore, nr_pages: u64) {
    store.put_run(Pfn::new(FIRST), nr_pages, PageSize::Size4K);
}

fn by_the_page(store: &MetaStore, nr_pages: u64) {
    (0..nr_pages).for_each(|nr| store.put(Pfn::new(FIRST + nr), 1));
}

fn by_the_large_leaf(store: &MetaStore, nr_pages: u64) {
    store.put_run(Pfn::new(FIRST), nr_pages, PageSize::Size2M);
}

/// covers: G8, R10
#[test]
fn a_legal_put_uses_no_metadata_that_the_other_put_has_freed() {
    two_leave(PageSize::Size4K, NR_PAGES, [by_the_run, by_the_run]);
    two_leave(PageSize::Size4K, NR_PAGES, [by_the_run, by_the_page]);
    two_leave(PageSize::Size4K, NR_PAGES, [by_the_page, by_the_page]);
}

/// covers: G8, R10
#[test]
fn a_legal_put_of_a_large_folio_uses_no_metadata_that_the_other_put_has_freed() {
    two_leave(PageSize::Size2M, 512, [by_the_large_leaf, by_the_large_leaf]);
}

/// A pin's end against the end of the mapping. covers: G8, R10
#[test]
fn an_unpin_uses_no_metadata_that_the_last_put_has_freed() {
    let ledger = Arc::new(Ledger::new());
    let store = MetaStore::new(Arc::clone(&ledger));
    let range = PfnRange::new(Pfn::new(FIRST), 1 << 18).expect("1 GiB");
    let map = DevPagemap::new(MemoryKind::DevDax, [range]).expect("a range");
    store.register(&map).expect("a free place");
    for _ in 0..ROUNDS {
        let owner = Owner::default();
        store.get_or_create_run(Pfn::new(FIRST), NR_PAGES, PageSize::Size4K, PageSize::Size4K, owner).expect("memory");
        for nr in 0..NR_PAGES {
            store.with_page(Pfn::new(FIRST + nr), |page| page.try_pin(1)).expect("live").expect("room");
        }
        thread::scope(|scope| {
            scope.spawn(|| store.unpin_run(Pfn::new(FIRST), NR_PAGES));
            scope.spawn(|| by_the_run(&store, NR_PAGES));
        });
        assert!(map.is_drained());
        assert_eq!(ledger.count(Kind::MetadataBytes), 0);
    }
}
