//! The counts: what is refused, and misuse, which stops the kernel and names the page.

use super::*;

fn held_page() -> (Rig, Pfn) {
    let rig = Rig::new();
    rig.device(MemoryKind::DevDax, &[range(0x1000, B1)]);
    let pfn = Pfn::new(0x1234);
    rig.store.get_or_create(pfn, KIB4, owner(0x234), 1).expect("in the device");
    // A neighbour keeps the chunk, so that the count alone must betray the misuse.
    rig.store.get_or_create(pfn.add(1), KIB4, owner(0x235), 1).expect("in the device");
    (rig, pfn)
}

/// covers: G8
#[test]
#[should_panic(expected = "page 0x1234 (4KiB): put without a get (references 0, pins 0)")]
fn a_put_too_many() {
    let (rig, pfn) = held_page();
    rig.store.put(pfn, 1);
    rig.store.put(pfn, 1);
}

/// covers: G8
#[test]
#[should_panic(expected = "page 0x1234: put without a get: nobody holds it")]
fn a_put_where_nothing_is() {
    let (rig, pfn) = held_page();
    rig.store.put(pfn.add(1), 1);
    rig.store.put(pfn, 1);
    rig.store.put(pfn, 1);
}

/// covers: G8
#[test]
#[should_panic(expected = "page 0x1234 (4KiB): put without a get (references 1, pins 0)")]
fn two_puts_at_once_of_one_reference() {
    let (rig, pfn) = held_page();
    rig.store.put(pfn, 2);
}

/// covers: G8
#[test]
#[should_panic(expected = "page 0x1234 (4KiB): unpin without a pin (references 2, pins 0)")]
fn an_unpin_without_a_pin() {
    let (rig, pfn) = held_page();
    _ = rig.store.get_mapped(pfn, 1);
    rig.store.unpin(pfn, 1);
}

/// covers: G8
#[test]
#[should_panic(expected = "page 0x1234 (4KiB): put without a get (references 1, pins 1)")]
fn a_pin_put_as_a_plain_reference() {
    let (rig, pfn) = held_page();
    rig.store.with_page(pfn, |page| page.try_pin(1)).expect("live").expect("room");
    rig.store.put(pfn, 1);
    rig.store.put(pfn, 1);
}

/// covers: G8
#[test]
#[should_panic(expected = "page 0x1236 (4KiB): put without a get (references 0, pins 0)")]
fn a_run_put_too_far() {
    let (rig, pfn) = held_page();
    rig.store.get_or_create(pfn.add(2), KIB4, owner(0x236), 1).expect("in the device");
    rig.store.put(pfn.add(2), 1);
    rig.store.put_run(pfn, 3, KIB4);
}

/// covers: G8
#[test]
#[should_panic(expected = "page 0x40000 (1GiB): put without a get (references 2, pins 0)")]
fn a_run_put_twice_over_a_large_folio() {
    let rig = Rig::new();
    rig.device(MemoryKind::DevDax, &[range(0, 2 * B1)]);
    let run = rig.store.get_or_create_run(Pfn::new(B1), 2 * B2, MIB2, GIB1, owner(0)).expect("in the device");
    assert_eq!(run, Run { nr_pages: 2 * B2, folio: GIB1, leaf: MIB2 });
    rig.store.put_run(Pfn::new(B1), 3 * B2, MIB2);
}

/// covers: G8
#[test]
fn a_count_does_not_overflow() {
    let (rig, pfn) = held_page();
    rig.store.get_mapped(pfn, MAX_REFS - 1).expect("room for all but one");
    let counts = || rig.store.inspect(pfn).expect("live").counts;
    assert_eq!(counts(), Counts { refs: MAX_REFS, pins: 0 });
    let attempt = |nr| rig.store.with_page(pfn, |page| (page.try_get(nr), page.try_pin(nr))).expect("live");
    assert_eq!(attempt(1), (Err(GetError::Overflow), Err(GetError::Overflow)));
    assert_eq!(attempt(u32::MAX), (Err(GetError::Overflow), Err(GetError::Overflow)));
    assert_eq!(rig.store.get_or_create(pfn, KIB4, owner(0), 1), Err(MetaError::Overflow));
    assert_eq!(counts(), Counts { refs: MAX_REFS, pins: 0 }, "a refusal changes nothing");
    // A run stops before the page that is full.
    rig.store.put(pfn.add(1), 1);
    let run = rig.store.get_or_create_run(Pfn::new(0x1230), 16, KIB4, KIB4, owner(0x230)).expect("in the device");
    assert_eq!(run.nr_pages, 4);
    rig.store.put_run(Pfn::new(0x1230), 4, KIB4);
    rig.store.put(pfn, MAX_REFS);
    rig.assert_idle();
}

/// covers: G8
#[test]
fn references_of_a_mapping_that_do_not_fit_are_refused_and_none_is_taken() {
    let (rig, pfn) = held_page();
    let refs = |pfn| rig.store.inspect(pfn).expect("live").counts.refs;
    assert_eq!(rig.store.get_mapped(pfn, MAX_REFS), Err(MetaError::Overflow));
    assert_eq!(refs(pfn), 1);
    // A run that meets a full page behind one that is not.
    rig.store.get_mapped(pfn.add(1), MAX_REFS - 1).expect("room for all but one");
    assert_eq!(rig.store.get_run(pfn, 2, KIB4), Err(MetaError::Overflow));
    assert_eq!((refs(pfn), refs(pfn.add(1))), (1, MAX_REFS));
    rig.store.put(pfn.add(1), MAX_REFS);
    rig.store.put(pfn, 1);
    rig.assert_idle();
}

/// covers: G8
#[test]
#[should_panic(expected = "page 0x1234: get without a reference (references 0)")]
fn a_further_reference_from_zero() {
    let (rig, pfn) = held_page();
    rig.store.put(pfn, 1);
    _ = rig.store.get_mapped(pfn, 1);
}

/// covers: G1
#[test]
fn a_speculative_reference_never_starts_from_zero() {
    let (rig, pfn) = held_page();
    // SAFETY: the test owns a reference on the page, and then on its neighbour in the same chunk.
    let page = unsafe { rig.store.lookup(pfn) }.expect("live").page;
    rig.store.put(pfn, 1);
    assert_eq!((page.try_get(1), page.try_pin(1)), (Err(GetError::Zero), Err(GetError::Zero)));
    assert!(rig.store.with_page(pfn, |_| ()).is_none() && rig.store.inspect(pfn).is_none());
}

#[test]
fn a_leak_has_a_name() {
    let (rig, pfn) = held_page();
    rig.store.with_page(pfn, |page| page.try_pin(2)).expect("live").expect("room");
    assert_eq!(format!("{}", rig.live()[0]), "page 0x1234 4KiB refs=3 pins=2 mapping=7 offset=0x234");
    assert_eq!(rig.store.totals(), Totals { folios: 2, refs: 4, pins: 2 });
    rig.store.unpin(pfn, 2);
    rig.store.put_run(pfn, 2, KIB4);
    rig.assert_idle();
}

/// A look at the metadata of `pfn`, of which the test owns a reference or that of a neighbour.
fn page(rig: &Rig, pfn: Pfn) -> &Page {
    // SAFETY: the word of the caller.
    unsafe { rig.store.lookup(pfn) }.expect("live").page
}

/// covers: G1
#[test]
fn one_attempt_at_a_reference_or_a_pin_starts_from_one_and_ends_at_the_limit() {
    let (rig, pfn) = held_page();
    let page = page(&rig, pfn);
    assert!(page.try_take_at_once::<false>(1) && page.try_take_at_once::<true>(1));
    assert_eq!((page.refs(), page.pins()), (3, 1));
    assert!(page.try_get(MAX_REFS - 4).is_ok() && page.try_take_at_once::<true>(1));
    assert_eq!((page.refs(), page.pins()), (MAX_REFS, 2));
    assert!(!page.try_take_at_once::<false>(1) && !page.try_take_at_once::<true>(1));
    rig.store.unpin(pfn, 2);
    rig.store.put(pfn, MAX_REFS - 2);
    assert!(!page.try_take_at_once::<false>(1) && !page.try_take_at_once::<true>(1), "nobody holds it");
    assert_eq!((page.refs(), page.pins()), (0, 0));
}

/// covers: G8
#[test]
#[should_panic(expected = "page 0x1234 (4KiB): put without a get (references 3, pins 2)")]
fn more_puts_than_plain_references_beside_pins() {
    let (rig, pfn) = held_page();
    page(&rig, pfn).try_pin(2).expect("room");
    rig.store.put(pfn, 2);
}

/// So many that the borrow makes the rest look sound.
/// covers: G8
#[test]
#[should_panic(expected = "page 0x1234 (4KiB): put without a get (references 3, pins 1)")]
fn a_put_of_more_than_there_can_be() {
    let (rig, pfn) = held_page();
    page(&rig, pfn).try_pin(1).expect("room");
    page(&rig, pfn).try_get(1).expect("room");
    rig.store.put(pfn, u32::MAX);
}

/// One reference more than there can be, and no pin: what no verb leaves behind, made from a broken put.
fn past_the_limit() -> (Rig, Pfn) {
    let (rig, pfn) = held_page();
    page(&rig, pfn).try_pin(1).expect("room");
    assert!(page(&rig, pfn).sub::<false>(2 + MAX_REFS + 1).is_err());
    assert_eq!(page(&rig, pfn).counts(), Counts { refs: MAX_REFS + 1, pins: 0 });
    (rig, pfn)
}

/// covers: G8
#[test]
#[should_panic(expected = "page 0x1234 (4KiB): a get found a broken count (references 2147483648, pins 0)")]
fn a_get_of_a_broken_count() {
    let (rig, pfn) = past_the_limit();
    _ = page(&rig, pfn).try_get(1);
}

/// covers: G8
#[test]
#[should_panic(expected = "page 0x1234 (4KiB): put without a get (references 2147483648, pins 0)")]
fn a_run_put_over_a_broken_count() {
    let (rig, pfn) = past_the_limit();
    rig.store.put_run(pfn, 2, KIB4);
}

/// covers: G8
#[test]
fn a_run_is_put_at_the_limit_and_beside_pins() {
    let (rig, pfn) = held_page();
    page(&rig, pfn).try_pin(1).expect("room");
    page(&rig, pfn).try_get(MAX_REFS - 2).expect("room");
    page(&rig, pfn.add(1)).try_get(MAX_REFS - 1).expect("room");
    rig.store.put_run(pfn, 2, KIB4);
    assert_eq!((page(&rig, pfn).refs(), page(&rig, pfn.add(1)).refs()), (MAX_REFS - 1, MAX_REFS - 1));
    rig.store.unpin(pfn, 1);
    rig.store.put(pfn, MAX_REFS - 2);
    rig.store.put(pfn.add(1), MAX_REFS - 1);
    rig.assert_idle();
}

/// What was taken of a run before it met a full folio is given back, leaf by leaf.
#[test]
fn a_run_of_large_leaves_that_meets_a_full_folio_takes_nothing() {
    let rig = Rig::new();
    rig.device(MemoryKind::DevDax, &[range(0, B1)]);
    for head in [0, B2] {
        rig.store.get_or_create(Pfn::new(head), MIB2, owner(head), 1).expect("in the device");
    }
    rig.store.get_mapped(Pfn::new(B2), MAX_REFS - 1).expect("room for all but one");
    assert_eq!(rig.store.get_run(Pfn::new(0), 2 * B2, MIB2), Err(MetaError::Overflow));
    let refs: Vec<_> = rig.live().iter().map(|folio| folio.counts.refs).collect();
    assert_eq!(refs, [1, MAX_REFS]);
    rig.store.put(Pfn::new(0), 1);
    rig.store.put(Pfn::new(B2), MAX_REFS);
    rig.assert_idle();
}

// ---- between the last put and the retirement ----

/// covers: G8, R12
#[test]
fn a_dead_large_folio_is_buried_by_who_needs_its_place_and_its_last_holder_leaves_the_next_alone() {
    let rig = Rig::new();
    let map = rig.device(MemoryKind::DevDax, &[range(0, B1)]);
    let get = |want| rig.store.get_or_create(Pfn::new(3), want, owner(3), 1).expect("in the device");
    for next in [MIB2, KIB4] {
        get(MIB2);
        // Its last holder has subtracted, and has not come to the lock.
        assert!(page(&rig, Pfn::new(3)).sub::<false>(1).is_err());
        assert_eq!((map.live_folios(), rig.live()), (1, vec![]));
        assert_eq!(get(next).1, next, "another in its place");
        assert_eq!((map.live_folios(), rig.live().len()), (1, 1));
        rig.store.retire(Pfn::new(3), MIB2);
        assert_eq!((map.live_folios(), rig.live().len()), (1, 1), "which lives");
        rig.store.put(Pfn::new(3), 1);
        rig.assert_idle();
    }
    // A dead one of another size than its own is not for this holder to bury.
    get(GIB1);
    assert!(page(&rig, Pfn::new(3)).sub::<false>(1).is_err());
    rig.store.retire(Pfn::new(3), MIB2);
    assert_eq!(map.live_folios(), 1);
    rig.store.retire(Pfn::new(3), GIB1);
    assert!(map.is_drained());
    rig.assert_idle();
}

/// A block of which every entry of a page table is given back goes as a whole, whatever covers it.
#[test]
fn a_block_goes_as_a_whole() {
    let rig = Rig::new();
    rig.device(MemoryKind::DevDax, &[range(0, 2 * B2)]);
    let fill = |first: u64, want| {
        rig.store.get_or_create_run(Pfn::new(first), B2, KIB4, want, owner(first)).expect("in the device");
        let edge = rig.store.with_page(Pfn::new(first), Page::is_edge).expect("live");
        assert!(!edge, "the block is wholly inside the device");
        rig.store.put_blocks(&[Pfn::new(first)]) == 0
    };
    for first in [0, B2] {
        assert!(fill(first, KIB4));
        rig.assert_idle();
        assert!(fill(first, MIB2));
        rig.assert_idle();
    }
    // One page that somebody else holds too: nothing is done.
    rig.store.get_or_create(Pfn::new(9), KIB4, owner(9), 1).expect("in the device");
    assert!(!fill(0, KIB4));
    assert_eq!(rig.live().len() as u64, B2);
    rig.store.put_run(Pfn::new(0), B2, KIB4);
    rig.store.put(Pfn::new(9), 1);
    rig.assert_idle();
}

/// Who has ended a life of a page in it, and has not come to the lock, will look for the block.
/// covers: G8
#[test]
fn a_block_stays_for_all_who_have_yet_to_come_to_the_lock() {
    let rig = Rig::new();
    rig.device(MemoryKind::DevDax, &[range(0, 2 * B2)]);
    let fill = || {
        let run = rig.store.get_or_create_run(Pfn::new(0), B2, KIB4, KIB4, owner(0)).expect("in the device");
        assert_eq!(run.nr_pages, B2);
    };
    fill();
    for _ in 0..2 {
        assert!(page(&rig, Pfn::new(7)).sub::<false>(1).is_err());
        rig.store.get_or_create(Pfn::new(7), KIB4, owner(7), 1).expect("alive again");
    }
    assert_eq!(rig.store.put_blocks(&[Pfn::new(0)]), 1, "nothing is done");
    assert_eq!(rig.live().len() as u64, B2);
    rig.store.retire(Pfn::new(7), KIB4);
    rig.store.put_run(Pfn::new(0), B2, KIB4);
    assert_ne!(rig.ledger.count(Kind::MetadataBytes), 0, "one has yet to come");
    rig.store.retire(Pfn::new(7), KIB4);
    rig.assert_idle();
    // And nothing is remembered of them.
    fill();
    assert_eq!(rig.store.put_blocks(&[Pfn::new(0)]), 0);
    rig.assert_idle();
}
