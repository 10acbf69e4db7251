//! Models of gup-fast against what takes pages away: the very code of `mm::gup`, `mm::space`, `mm::table`,
//! `mm::gather` and `mm::meta`, with tables of two entries and two levels.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p mm --release --test loom_gup`. Two properties, in every model:
//!
//! 1. *A pin keeps its page.* Who has seen that nobody holds a page (no metadata is left after the unmap) and then
//!    gives it to the next owner comes after every use by every pin.
//! 2. *A pin is never taken through an entry that is known to be gone.* A walk that could know, before it takes its
//!    reference, that the entry has been cleared (the interrupt of the shootdown is on its way to it) fails.
//!
//! Besides, every table page that a walk may still touch is there.
#![cfg(any(loom, shuttle))]

mod loom_machine;

use std::cell::Cell;

use loom_machine::{LoomMachine, be, bring_up, explore, va};
use mm::addr::{PAGE_SIZE, PageSize, Pfn, PfnRange, VirtAddr};
use mm::context::MmContext;
use mm::entry::Prot;
use mm::gup::{self, GupFlags, PageArray, RangeArray};
use mm::machine::{IrqOff, Point};
use mm::mapping::Mapping;
use mm::pagemap::{DevPagemap, MemoryKind};
use mm::space::{Access, AddressSpace, FaultError, FaultRequest, FaultTarget, MapError, VmOps};
use mm::sync::model::{self, AtomicBool, sized, thread};
use mm::sync::{Arc, Ordering};
use mm::tlb::TlbState;

/// A file whose page n is frame n.
struct Identity {
    mapping: Arc<Mapping<LoomMachine>>,
    leaf: PageSize,
}

impl VmOps<LoomMachine> for Identity {
    fn fault(
        &self,
        request: &FaultRequest,
        install: &mut dyn FnMut(FaultTarget) -> Result<(), FaultError>,
    ) -> Result<(), FaultError> {
        install(FaultTarget { pfn: Pfn::new(request.offset_pages), size: self.leaf })
    }
    fn mmap(&self, _offset_pages: u64, _nr_pages: u64, insert: &mut dyn FnMut()) -> Result<(), MapError> {
        insert();
        Ok(())
    }
    fn mapping(&self) -> &Arc<Mapping<LoomMachine>> {
        &self.mapping
    }
    fn kind(&self) -> MemoryKind {
        MemoryKind::DevDax
    }
}

/// CPUs, of which all but one pin, and how often each does so.
const CPUS: usize = sized(2, 3);
const PINS: usize = sized(1, 2);

struct EmuContext {
    mm: Arc<MmContext<LoomMachine>>,
    space: Arc<AddressSpace<LoomMachine>>,
    file: Arc<dyn VmOps<LoomMachine>>,
}

model::thread_local! {
    /// Whether the walk that is under way on this CPU could know that a shootdown has begun.
    static KNEW: Cell<bool> = Cell::new(false);
}

fn knew(known: bool) {
    KNEW.with(|cell| cell.set(known));
}

fn knows() -> bool {
    KNEW.with(Cell::get)
}

impl EmuContext {
    /// `nr_pages` pages from `va(0, 0)` on (two levels of tables, three where there are huge leaves, because a root has
    /// none), present in leaves of `leaf`; the CPUs but 0 have the space loaded.
    fn new(nr_pages: u64, leaf: PageSize) -> Arc<Self> {
        be(0);
        let mm = MmContext::new(LoomMachine::new(CPUS, if leaf == PageSize::Size4K { 2 } else { 3 }), CPUS);
        let weak = Arc::downgrade(&mm);
        mm.machine.set_handler(move |machine| {
            if let Some(mm) = weak.upgrade() {
                mm.shootdown.handle_ipi(&IrqOff::new(machine));
            }
        });
        bring_up(&mm.machine, &mm.shootdown);
        mm.machine.set_watcher(|machine, point| {
            if point == Point::GupLeafRead {
                knew(machine.interrupt_is_pending());
            }
        });
        let frames = PfnRange::new(Pfn::new(0), 1024).unwrap();
        let map = DevPagemap::new(MemoryKind::DevDax, [frames]).unwrap();
        mm.meta.register(&map).unwrap();
        let file: Arc<dyn VmOps<LoomMachine>> = Arc::new(Identity { mapping: Mapping::new(&mm, &map), leaf });
        let space = AddressSpace::new(&mm, "model").unwrap();
        space.map(va(0, 0), nr_pages * PAGE_SIZE, Prot::USER_WRITE, &file, 0).unwrap();
        for page in 0..nr_pages.min(2) {
            space.handle_fault(va(0, page), Access::Write).unwrap();
        }
        let machine = Arc::new(Self { mm, space, file });
        machine.others_load(Some(machine.space.tlb()));
        machine
    }

    /// All CPUs but 0 load a space.
    fn others_load(&self, space: Option<&Arc<TlbState>>) {
        for cpu in 1..CPUS {
            be(cpu);
            self.mm.shootdown.switch_to(&IrqOff::new(&self.mm.machine), space);
        }
        be(0);
    }

    /// Pins two pages as a run, uses what there is, and lets it go. Answers how many.
    fn pin_two_and_use(&self, va: VirtAddr) -> u64 {
        let mut runs = [None];
        let mut sink = RangeArray::new(&mut runs);
        knew(false);
        let Ok(nr) = gup::pin_user_pages_fast(&self.space, va, 2, GupFlags::FAST_ONLY, &mut sink) else { return 0 };
        for run in sink.iter() {
            (0..run.nr_pages()).for_each(|page| self.mm.machine.use_data(run.start().add(page)));
            gup::unpin(&self.mm, run.start(), run.nr_pages());
        }
        nr
    }

    /// Pins the page at `va` without a lock, uses it, and lets it go. Answers the frame.
    fn pin_and_use(&self, va: VirtAddr) -> Option<Pfn> {
        let mut runs = [None];
        let mut sink = RangeArray::new(&mut runs);
        knew(false);
        gup::pin_user_pages_fast(&self.space, va, 1, GupFlags::FAST_ONLY, &mut sink).ok()?;
        let pfn = sink.iter().next()?.start();
        self.mm.machine.use_data(pfn);
        gup::unpin(&self.mm, pfn, 1);
        Some(pfn)
    }

    /// As [`pin_and_use`](Self::pin_and_use), against an unmap: after its shootdown has begun no pin is taken.
    fn pin_unless_known(&self, va: VirtAddr) -> Option<Pfn> {
        let pfn = self.pin_and_use(va)?;
        assert!(!knows(), "a page was pinned through an entry that was known to be gone");
        Some(pfn)
    }

    /// Unmaps; every page of `frames` that nobody holds afterwards gets its next owner.
    fn unmap(&self, va: VirtAddr, nr_pages: u64, frames: &[u64]) {
        self.space.unmap(va, nr_pages * PAGE_SIZE).unwrap();
        for &frame in frames {
            if self.mm.meta.inspect(Pfn::new(frame)).is_none() {
                self.mm.machine.reuse_data(Pfn::new(frame));
            }
        }
    }

    /// Runs `this` on CPU 0 beside `other` on the others, which then take interrupts until CPU 0 is done.
    fn race(self: &Arc<Self>, this: impl FnOnce(&Self), other: impl Fn(&Self) + Clone + Send + 'static) {
        let done = Arc::new(AtomicBool::new(false));
        let pinner = |cpu| {
            let (theirs, flag, other) = (self.clone(), done.clone(), other.clone());
            thread::spawn(move || {
                be(cpu);
                (0..PINS).for_each(|_| other(&theirs));
                while !flag.load(Ordering::Acquire) {
                    mm::machine::Machine::relax(&theirs.mm.machine);
                }
                theirs.mm.shootdown.switch_to(&IrqOff::new(&theirs.mm.machine), None);
            })
        };
        let threads: Vec<_> = (1..CPUS).map(pinner).collect();
        this(self);
        done.store(true, Ordering::Release);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

// covers: G1, G2, G3
#[test]
fn gup_fast_against_zap() {
    explore(4, || {
        let machine = EmuContext::new(2, PageSize::Size4K);
        // Page 1 stays mapped, so that page 0's own entry is what is cleared.
        machine.race(|machine| machine.unmap(va(0, 0), 1, &[0]), |machine| _ = machine.pin_unless_known(va(0, 0)));
        assert!(machine.mm.meta.inspect(Pfn::new(0)).is_none(), "neither the mapping nor the pin is left");
    });
}

// covers: G1, G2, G3
#[test]
fn gup_fast_against_zap_and_reuse_of_the_page() {
    explore(4, || {
        let machine = EmuContext::new(2, PageSize::Size4K);
        let again = |machine: &EmuContext| {
            machine.unmap(va(0, 0), 1, &[0]);
            // Another page at the same address.
            machine.space.map(va(0, 0), PAGE_SIZE, Prot::USER_WRITE, &machine.file, 512).unwrap();
            machine.space.handle_fault(va(0, 0), Access::Write).unwrap();
        };
        machine.race(again, |machine| {
            let frame = machine.pin_unless_known(va(0, 0));
            assert!(matches!(frame.map(Pfn::as_u64), None | Some(0 | 512)), "{frame:?}");
        });
        let held = |frame| machine.mm.meta.inspect(Pfn::new(frame)).map(|folio| folio.counts.refs);
        assert_eq!((held(0), held(512)), (None, Some(1)));
    });
}

// covers: G1, G2, G3
#[test]
fn gup_fast_against_freeing_the_table_page() {
    explore(4, || {
        let machine = EmuContext::new(2, PageSize::Size4K);
        // The page table goes as a whole, and with it the entries that the walk reads.
        machine.race(|machine| machine.unmap(va(0, 0), 2, &[0, 1]), |machine| _ = machine.pin_unless_known(va(0, 1)));
        let totals = machine.mm.meta.totals();
        assert_eq!((totals.folios, totals.refs, totals.pins), (0, 0, 0));
    });
}

// covers: G1, G2, G3, G5
#[test]
fn gup_fast_of_a_run_against_zap_of_its_second_page() {
    explore(3, || {
        let machine = EmuContext::new(2, PageSize::Size4K);
        machine.race(
            |machine| machine.unmap(va(0, 1), 1, &[1]),
            |machine| assert!(machine.pin_two_and_use(va(0, 0)) > 0, "the first page was there all the time"),
        );
        let totals = machine.mm.meta.totals();
        assert_eq!((totals.folios, totals.refs, totals.pins), (1, 1, 0));
    });
}

// covers: G1, G2, G3, G5
#[test]
fn gup_fast_of_a_run_against_freeing_the_table_page() {
    explore(3, || {
        let machine = EmuContext::new(2, PageSize::Size4K);
        machine.race(
            |machine| machine.unmap(va(0, 0), 2, &[0, 1]),
            |machine| {
                let nr = machine.pin_two_and_use(va(0, 0));
                assert!(nr == 0 || !knows(), "pages were pinned through a table that was known to be gone");
            },
        );
        let totals = machine.mm.meta.totals();
        assert_eq!((totals.folios, totals.refs, totals.pins), (0, 0, 0));
    });
}

// covers: G1, G6
#[test]
fn gup_fast_against_splitting_a_huge_leaf() {
    explore(4, || {
        let machine = EmuContext::new(512, PageSize::Size2M);
        // A part of the huge leaf goes: it becomes a table, of which one entry is cleared.
        machine.race(|machine| machine.unmap(va(0, 0), 1, &[]), |machine| _ = machine.pin_unless_known(va(0, 0)));
        let folio = machine.mm.meta.inspect(Pfn::new(0)).expect("the rest is mapped");
        assert_eq!((folio.counts.refs, folio.counts.pins), (1, 0), "the one leaf that is left");
    });
}

// covers: G1, G6
#[test]
fn gup_fast_against_promoting_to_a_huge_leaf() {
    explore(4, || {
        let machine = EmuContext::new(512, PageSize::Size2M);
        // A hole that is filled again leaves small leaves over one large folio.
        machine.others_load(None);
        let mut gather = mm::gather::Gather::new(&machine.mm);
        mm::mapping::unmap_mapping_range(machine.file.mapping(), 0, 1, &mut gather);
        gather.finish();
        machine.space.handle_fault(va(0, 0), Access::Write).unwrap();
        machine.others_load(Some(machine.space.tlb()));
        let promote = |machine: &EmuContext| {
            assert_eq!(machine.space.promote(va(0, 0), 512 * PAGE_SIZE), Ok(1));
        };
        machine.race(promote, |machine| {
            // Through the old table or the new leaf, it is the same frame.
            let frame = machine.pin_and_use(va(0, 1));
            assert!(matches!(frame.map(Pfn::as_u64), None | Some(1)), "{frame:?}");
        });
        let folio = machine.mm.meta.inspect(Pfn::new(0)).expect("it is mapped");
        assert_eq!((folio.counts.refs, folio.counts.pins), (1, 0), "the huge leaf alone");
    });
}

/// Each CPU has looked up the metadata of a leaf of this size last, which then goes with the leaf, and is made anew.
fn made_anew(leaf: PageSize) {
    let machine = EmuContext::new(leaf.nr_pages(), leaf);
    for cpu in 1..CPUS {
        be(cpu);
        assert_eq!(machine.pin_and_use(va(0, 0)), Some(Pfn::new(0)));
    }
    be(0);
    let again = move |machine: &EmuContext| {
        machine.space.unmap(va(0, 0), leaf.bytes()).unwrap();
        machine.space.map(va(0, 0), leaf.bytes(), Prot::USER_WRITE, &machine.file, 0).unwrap();
        machine.space.handle_fault(va(0, 0), Access::Write).unwrap();
    };
    machine.race(again, |machine| {
        // The interrupt is taken here, or by the pin: so the pin comes after the new metadata, or before. (A yield, without which
        // loom does not let who waits for the interrupt go on.)
        mm::machine::Machine::relax(&machine.mm.machine);
        let frame = machine.pin_and_use(va(0, 0));
        assert!(matches!(frame.map(Pfn::as_u64), None | Some(0)), "{frame:?}");
    });
    let held = machine.mm.meta.inspect(Pfn::new(0)).map(|folio| folio.counts);
    assert_eq!(held.map(|counts| (counts.refs, counts.pins)), Some((1, 0)));
}

// covers: G1, G2, G3
#[test]
fn gup_fast_after_the_metadata_of_pages_was_made_anew() {
    explore(3, || made_anew(PageSize::Size4K));
}

// covers: G1, G2, G3
#[test]
fn gup_fast_after_the_metadata_of_a_folio_was_made_anew() {
    explore(3, || made_anew(PageSize::Size2M));
}

// covers: G1, G2, G3, G5
#[test]
fn gup_fast_of_pages_far_apart_against_zap_of_the_second() {
    explore(3, || {
        let machine = EmuContext::new(1, PageSize::Size4K);
        machine.space.map(va(0, 1), PAGE_SIZE, Prot::USER_WRITE, &machine.file, 512).unwrap();
        machine.space.handle_fault(va(0, 1), Access::Write).unwrap();
        machine.race(
            |machine| machine.unmap(va(0, 1), 1, &[512]),
            |machine| {
                let mut frames = [Pfn::new(0); 2];
                let mut sink = PageArray::new(&mut frames);
                let nr = gup::pin_user_pages_fast(&machine.space, va(0, 0), 2, GupFlags::FAST_ONLY, &mut sink);
                assert!(nr.is_ok(), "the first page was there all the time");
                for &pfn in sink.as_slice() {
                    machine.mm.machine.use_data(pfn);
                    gup::unpin(&machine.mm, pfn, 1);
                }
            },
        );
        let totals = machine.mm.meta.totals();
        assert_eq!((totals.folios, totals.refs, totals.pins), (1, 1, 0));
    });
}
