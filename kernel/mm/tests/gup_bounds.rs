//! What is bounded: the references on one folio, and the time for which gup-fast keeps interrupts off.
#![cfg(not(loom))]

mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use common::gup_rig::{FAST, Rig, Running, rig};
use common::{BASE, Device, counts, machine, page, pin, space_with, store_to, unpin};
use mm::addr::{PAGE_SIZE, PageSize, Pfn};
use mm::entry::Prot;
use mm::failure::{FailureKind, memory_failure};
use mm::gather::Gather;
use mm::gup::{self, GupError, GupFlags, IRQS_OFF_STEPS, PageArray, PinSink, RangeArray};
use mm::machine::{Machine, Point};
use mm::mapping::unmap_mapping_range;
use mm::meta::MAX_REFS;
use mm::pins::PinnedPages;
use mm::space::{Access, FaultError};
use mm::sync::Arc;
use testkit::emu::Event;

/// Pages of a 1 GiB leaf.
const GIB_PAGES: u64 = 1 << 18;

/// Pins the folio behind the first page as often as there is room for, less `but`; answers how many pins that are.
fn fill(rig: &Rig, but: u32) -> u32 {
    let nr = MAX_REFS - counts(&rig.mm.meta, rig.device.pfn(0)).0 - but;
    rig.mm.meta.with_page(rig.device.pfn(0), |folio| folio.try_pin(nr)).expect("live").expect("room");
    nr
}

// covers: G8, L5
#[test]
fn plain_pins_of_one_huge_leaf_past_the_limit_of_its_count_are_a_refused_request() {
    let rig = rig(GIB_PAGES, PageSize::Size1G);
    let too_many = GupError::TooManyRefs(BASE);
    let held = || counts(&rig.mm.meta, rig.device.pfn(0));
    rig.emu.on_cpu(0, || {
        let whole = || pin(&rig.space, BASE, GIB_PAGES, GupFlags::WRITE);
        // 8,191 times all of it; of the mapping there is one reference more.
        let runs: Vec<_> = (0..8191).map(|_| whole().expect("room for all of it")).collect();
        let full = (1 + 8191 * GIB_PAGES as u32, 8191 * GIB_PAGES as u32);
        assert_eq!(held(), full);
        assert_eq!(whole(), Err(too_many));
        assert!(too_many.to_string().contains("too many references on the page at"), "{too_many}");
        // Whatever the answer is to be put in, and by whichever way.
        let mut frames = vec![Pfn::new(0); GIB_PAGES as usize];
        let flags = GupFlags::WRITE;
        let by_page = gup::pin_user_pages_fast(&rig.space, BASE, GIB_PAGES, flags, &mut PageArray::new(&mut frames));
        assert_eq!(held(), (full.0 + by_page.unwrap() as u32, full.1 + by_page.unwrap() as u32), "the part that fits");
        frames[..by_page.unwrap() as usize].iter().for_each(|&pfn| gup::unpin(&rig.mm, pfn, 1));
        let mut runs_of = [None; 2];
        let got = gup::get_user_pages_fast(&rig.space, BASE, GIB_PAGES, flags, &mut RangeArray::new(&mut runs_of));
        assert_eq!(got, Err(too_many), "plain references are counted by the same word");
        rig.mm.pins.exempt_reserved(true);
        assert_eq!(PinnedPages::pin(&rig.space, BASE, GIB_PAGES, flags).err(), Some(too_many));
        assert_eq!(
            pin(&rig.space, BASE, GIB_PAGES, FAST),
            Err(GupError::NotPresent(BASE)),
            "the fast path says no more"
        );
        assert_eq!((held(), rig.space.account().exempt_pages()), (full, 0), "nothing is pinned, nothing charged");
        // What there is room for can be had, to the last one.
        let rest = fill(&rig, 1);
        let last = pin(&rig.space, BASE, 1, flags).unwrap();
        assert_eq!(held().0, MAX_REFS);
        assert_eq!(pin(&rig.space, page(7), 1, flags), Err(GupError::TooManyRefs(page(7))));
        assert_eq!(PinnedPages::pin(&rig.space, page(7), 1, flags).err(), Some(GupError::TooManyRefs(page(7))));
        unpin(&rig.mm, &last);
        rig.mm.meta.unpin(rig.device.pfn(0), rest);
        runs.iter().for_each(|runs| unpin(&rig.mm, runs));
        assert_eq!(held(), (1, 0));
    });
}

// covers: G8
#[test]
fn small_pages_before_one_without_room_are_pinned_and_none_behind_it() {
    let rig = rig(24, PageSize::Size4K);
    let full = rig.device.pfn(11);
    rig.mm.meta.with_page(full, |page| page.try_get(MAX_REFS - 1)).expect("live").expect("room");
    rig.emu.on_cpu(0, || {
        // Whole groups of entries, and some that are left over at the end.
        let runs = pin(&rig.space, BASE, 21, GupFlags::WRITE).expect("the part that can be had");
        let pinned = (0..24).filter(|&nr| counts(&rig.mm.meta, rig.device.pfn(nr)).1 != 0);
        assert_eq!(pinned.collect::<Vec<_>>(), (0..11).collect::<Vec<_>>());
        assert_eq!(runs.iter().map(|run| run.nr_pages()).sum::<u64>(), 11);
        unpin(&rig.mm, &runs);
    });
    rig.mm.meta.put(full, MAX_REFS - 1);
}

// covers: G5, G8
#[test]
fn a_full_count_behind_a_part_that_was_pinned_gives_the_part() {
    let rig = rig(4, PageSize::Size4K);
    rig.emu.on_cpu(0, || {
        let nr = MAX_REFS - 1;
        rig.mm.meta.with_page(rig.device.pfn(2), |page| page.try_pin(nr)).expect("live").expect("room");
        for flags in [FAST, GupFlags::WRITE] {
            let runs = pin(&rig.space, page(0), 4, flags).unwrap();
            assert_eq!((runs[0].start(), runs[0].nr_pages(), runs.len()), (rig.device.pfn(0), 2, 1));
            unpin(&rig.mm, &runs);
        }
        let all = PinnedPages::pin(&rig.space, page(0), 4, GupFlags::WRITE);
        assert_eq!(all.err(), Some(GupError::TooManyRefs(page(2))));
        assert_eq!([0, 1, 2, 3].map(|nr| rig.pins(nr)), [0, 0, nr, 0]);
        rig.mm.meta.unpin(rig.device.pfn(2), nr);
    });
}

/// A leaf is split, a table promoted, a page faulted in and a page lost while the count has no room: nothing stops.
// covers: G8
#[test]
fn references_of_a_mapping_that_find_no_room_in_the_count_are_refused() {
    let rig = rig(512, PageSize::Size2M);
    let refs = || counts(&rig.mm.meta, rig.device.pfn(0)).0;
    let other = space_with(&rig.mm, &rig.device, 512, &[]);
    rig.emu.on_cpu(0, || {
        // A fault.
        let pins = fill(&rig, 0);
        assert_eq!(other.handle_fault(page(3), Access::Read), Err(FaultError::TooManyRefs(page(3))));
        assert!(FaultError::TooManyRefs(BASE).to_string().contains("too many references"));
        // A split: the leaf goes as a whole, and what was not to go faults in again.
        rig.space.unmap(page(1), PAGE_SIZE).unwrap();
        assert_eq!((refs(), rig.space.translate(page(2))), (MAX_REFS - 1, None));
        rig.space.handle_fault(page(2), Access::Write).unwrap();
        assert_eq!(refs(), MAX_REFS);
        rig.mm.meta.unpin(rig.device.pfn(0), pins);
        // Small leaves over the same folio, each with a reference.
        other.populate(BASE, 512 * PAGE_SIZE, Access::Write).unwrap();
        other.protect(page(0), PAGE_SIZE, Prot::USER_READ).unwrap();
        other.protect(page(0), PAGE_SIZE, Prot::USER_WRITE).unwrap();
        assert_eq!(refs(), 1 + 512, "the leaf was split");
    });
    let pins = fill(&rig, 0);
    rig.emu.on_cpu(0, || {
        // Its page is lost all the same, whatever its count is.
        let lost = memory_failure(&rig.mm, rig.device.pfn(9), FailureKind::Media).unwrap();
        assert!(!lost.users.is_empty(), "who maps it is told");
        assert!(rig.mm.meta.inspect(rig.device.pfn(9)).unwrap().poisoned);
        assert_eq!(other.translate(page(9)), None);
    });
    rig.mm.meta.unpin(rig.device.pfn(0), pins);
    rig.emu.assert_no_stale();
}

// covers: G8
#[test]
fn a_promotion_that_finds_no_room_in_the_count_leaves_the_table() {
    let rig = rig(512, PageSize::Size2M);
    rig.emu.on_cpu(0, || {
        // A page that is taken away from outside and faults in again leaves 512 small leaves over one folio.
        let mut gather = Gather::new(&rig.mm);
        unmap_mapping_range(&rig.device.mapping, 5, 1, &mut gather);
        gather.finish();
        rig.space.handle_fault(page(5), Access::Write).unwrap();
        let pins = fill(&rig, 0);
        assert_eq!(rig.space.promote(BASE, 512 * PAGE_SIZE), Ok(0));
        assert_eq!(counts(&rig.mm.meta, rig.device.pfn(0)), (MAX_REFS, pins));
        rig.mm.meta.unpin(rig.device.pfn(0), pins);
        assert_eq!(rig.space.promote(BASE, 512 * PAGE_SIZE), Ok(1));
    });
    rig.emu.assert_no_stale();
}

/// A sink that counts the steps between two moments at which interrupts were on.
struct Probe<'r, const BY_PAGE: bool> {
    rig: &'r Rig,
    /// How often interrupts were turned off so far.
    sections: Arc<AtomicU64>,
    now: (u64, u64),
    most: u64,
}

impl<'r, const BY_PAGE: bool> Probe<'r, BY_PAGE> {
    fn new(rig: &'r Rig) -> Self {
        let sections = Arc::new(AtomicU64::new(0));
        for nth in 1..=64 {
            let sections = sections.clone();
            rig.emu.at(0, Event::IrqDisable, nth, move || _ = sections.fetch_add(1, Ordering::SeqCst));
        }
        Self { rig, sections, now: (0, 0), most: 0 }
    }
}

impl<const BY_PAGE: bool> PinSink for Probe<'_, BY_PAGE> {
    const BY_PAGE: bool = BY_PAGE;
    fn room(&self) -> u64 {
        u64::MAX
    }
    fn push(&mut self, _: Pfn, nr_pages: u64) {
        if self.rig.emu.irqs_on() {
            return;
        }
        let section = self.sections.load(Ordering::SeqCst);
        let before = if self.now.0 == section { self.now.1 } else { 0 };
        self.now = (section, before + if BY_PAGE { nr_pages } else { 1 });
        self.most = self.most.max(self.now.1);
    }
}

/// Looks at entries of page tables, at most, between two moments at which interrupts were on, in `f` on CPU 0.
fn most_looks(rig: &Rig, f: impl FnOnce()) -> (u64, u64) {
    let found: Arc<Mutex<Vec<u64>>> = Arc::default();
    let began = Arc::new(AtomicU64::new(0));
    for nth in 1..=64 {
        let (emu, start) = (rig.emu.clone(), began.clone());
        rig.emu.at(0, Event::IrqDisable, nth, move || start.store(emu.stats().entry_looks, Ordering::SeqCst));
        let (emu, start, list) = (rig.emu.clone(), began.clone(), found.clone());
        rig.emu.at(0, Event::IrqEnable, nth, move || {
            list.lock().unwrap().push(emu.stats().entry_looks - start.load(Ordering::SeqCst));
        });
    }
    f();
    let found = found.lock().unwrap();
    (found.iter().copied().max().unwrap_or(0), found.len() as u64)
}

// covers: G2
#[test]
fn interrupts_are_off_for_a_bounded_number_of_steps() {
    assert_eq!(IRQS_OFF_STEPS, 512, "the docs say so");
    const NR: u64 = 4096;
    // Small leaves, from the middle of a page table on: twice a look at each leaf, and the walks.
    let small = rig(NR + 100, PageSize::Size4K);
    small.emu.on_cpu(0, || {
        let mut runs = Vec::new();
        let (looks, sections) = most_looks(&small, || runs = pin(&small.space, page(100), NR, FAST).unwrap());
        assert_eq!((runs.len(), runs[0].nr_pages()), (1, NR), "one run all the same");
        assert!(looks <= 2 * IRQS_OFF_STEPS + 24, "{looks} looks with interrupts off");
        assert!(sections >= NR / IRQS_OFF_STEPS, "interrupts came on {sections} times");
        unpin(&small.mm, &runs);
    });
    // Frames under huge leaves that are written one by one; as a range a leaf is one step.
    let large = rig(NR, PageSize::Size2M);
    large.emu.on_cpu(0, || {
        let mut sink = Probe::<true>::new(&large);
        assert_eq!(gup::pin_user_pages_fast(&large.space, page(7), NR - 7, FAST, &mut sink), Ok(NR - 7));
        assert!(sink.most <= IRQS_OFF_STEPS && sink.sections.load(Ordering::SeqCst) >= 8, "{} frames", sink.most);
        let mut sink = Probe::<false>::new(&large);
        assert_eq!(gup::pin_user_pages_fast(&large.space, page(0), NR, FAST, &mut sink), Ok(NR));
        assert_eq!(
            (sink.most, sink.sections.load(Ordering::SeqCst)),
            (8, 2),
            "eight leaves at once, after one attempt"
        );
        gup::unpin(&large.mm, large.device.pfn(0), NR);
        gup::unpin(&large.mm, large.device.pfn(7), NR - 7);
    });
    // More of them than there may be steps.
    let (nr, by) = (IRQS_OFF_STEPS + 88, PageSize::Size2M.nr_pages());
    let many = rig(nr * by, PageSize::Size2M);
    many.emu.on_cpu(0, || {
        let mut sink = Probe::<false>::new(&many);
        assert_eq!(gup::pin_user_pages_fast(&many.space, page(0), nr * by, FAST, &mut sink), Ok(nr * by));
        assert_eq!(sink.most, IRQS_OFF_STEPS, "leaves at once");
        gup::unpin(&many.mm, many.device.pfn(0), nr * by);
    });
}

// covers: G2, R12
#[test]
fn a_shootdown_in_the_middle_of_a_large_request_is_answered_before_its_end() {
    const NR: u64 = 4096;
    let (emu, mm) = machine(2);
    let device = Device::dax_with(&mm, 4 << 18, PageSize::Size4K);
    let space = space_with(&mm, &device, NR + 1, &[0, 1]);
    (0..=NR).for_each(|nr| store_to(&space, &emu, page(nr), nr).unwrap());
    let rig = Rig { emu, mm, device, space };
    rig.emu.on_cpu(0, || {
        let unmap = Running::default();
        let (emu, other, started) = (rig.emu.clone(), rig.unmap(NR, 1), unmap.clone());
        rig.emu.at(0, Event::At(Point::GupPinned), 700, move || {
            let unmap = emu.start(1, other);
            assert!(!unmap.is_finished() && emu.is_pending(0), "the unmap waits for this CPU");
            *started.lock().unwrap() = Some(unmap);
        });
        let (pinned, mm) = (Arc::new(AtomicU64::new(0)), rig.mm.clone());
        let at_interrupt = pinned.clone();
        rig.emu.at(0, Event::IpiTaken, 1, move || at_interrupt.store(mm.meta.totals().pins, Ordering::SeqCst));
        let runs = pin(&rig.space, page(0), NR, FAST).unwrap();
        let answered_at = pinned.load(Ordering::SeqCst);
        assert!((700..=1024).contains(&answered_at), "answered when {answered_at} of {NR} pages were pinned");
        assert_eq!(runs[0].nr_pages(), NR);
        unpin(&rig.mm, &runs);
        rig.finish(&unmap);
    });
}
