//! Real threads on the real tree: what the models of `tests/loom_meta.rs` prove for two slots, at full width.

use std::thread;

use super::*;

/// Threads make, find, pin and drop folios of changing size in the same few blocks. Nothing may be lost, doubled
/// or left over. covers: G8, R12
#[test]
fn threads_make_and_retire_the_same_folios() {
    const ROUNDS: u64 = 30_000;
    let rig = Rig::new();
    let map = rig.device(MemoryKind::DevDax, &[range(0, B1), range(B1, B1 / 2)]);
    thread::scope(|scope| {
        for thread in 0..4_u64 {
            let store = &rig.store;
            scope.spawn(move || {
                let mut random = thread + 1;
                for _ in 0..ROUNDS {
                    // A linear congruence; the high bits are the good ones.
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let bits = random >> 33;
                    let pfn = Pfn::new(B1 - 2 + bits % 4 + (bits >> 8) % 2 * B2);
                    let want = [KIB4, KIB4, MIB2, GIB1][(bits >> 4) as usize % 4];
                    let (head, size) = store.get_or_create(pfn, want, owner(pfn.as_u64()), 2).expect("in the device");
                    // SAFETY: this thread owns two references.
                    let folio = unsafe { store.lookup(pfn) }.expect("held");
                    assert_eq!((folio.head, folio.size, folio.page.head()), (head, size, head));
                    assert_eq!(folio.owner_of(pfn), owner(pfn.as_u64()));
                    folio.page.try_pin(1).expect("held");
                    store.put(pfn, 1);
                    store.unpin(pfn, 1);
                    store.put_run(pfn, 1, KIB4);
                }
            });
        }
    });
    assert!(map.is_drained());
    rig.assert_idle();
    assert!(rig.store.kill(&map));
    rig.store.unregister(&map).expect("drained");
}

/// Runs of order-0 pages, by all threads over the same chunks. covers: R12
#[test]
fn threads_fill_and_empty_the_same_chunks() {
    let rig = Rig::new();
    let map = rig.device(MemoryKind::DevDax, &[range(100, 4 * B2)]);
    thread::scope(|scope| {
        for thread in 0..4_u64 {
            let store = &rig.store;
            scope.spawn(move || {
                for round in 0..2_000_u64 {
                    let mut held = Vec::new();
                    let end = 100 + 2 * B2 + 33 * thread;
                    let mut pfn = Pfn::new(100 + (thread * 57 + round) % 400);
                    while pfn.as_u64() < end {
                        let run = store
                            .get_or_create_run(pfn, end - pfn.as_u64(), KIB4, KIB4, owner(pfn.as_u64()))
                            .expect("in the device");
                        held.push((pfn, run.nr_pages));
                        pfn = pfn.add(run.nr_pages);
                    }
                    for (first, nr_pages) in held {
                        store.put_run(first, nr_pages, KIB4);
                    }
                }
            });
        }
    });
    assert!(map.is_drained());
    rig.assert_idle();
}
