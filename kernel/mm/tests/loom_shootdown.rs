//! Models of the shootdown: the very code of `mm::shootdown` and `mm::tlb` under every interleaving that loom can
//! tell apart, with a ring of two generations.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p mm --release --test loom_shootdown`. What every model states is
//! the same sentence: *when `sync` has returned, no CPU uses the old translation any more, and what they did with it
//! is ordered before whatever the sender does next.* The next owner's write to the page is that "next". See
//! `docs/proofs.md` for which deliberate fault each model catches.
#![cfg(loom)]

mod modelled;

use loom::sync::atomic::Ordering;
use loom::thread;
use mm::addr::{PAGE_SIZE, PageSize, Pfn, VirtAddr, VirtRange};
use mm::machine::{IrqOff, Machine};
use mm::shootdown::Round;
use mm::sync::Arc;
use mm::tlb::{FlushRange, TlbState};
use modelled::{Bare, be, explore, va};

/// Two pages of one page table.
const PAGES: [(VirtAddr, u64); 2] = [(va(0, 0), 0), (va(0, 1), 1)];

/// Takes the page at `va` away; when this returns, its frame belongs to somebody else.
fn zap(bare: &Bare, space: &Arc<TlbState>, (va, frame): (VirtAddr, u64)) {
    let table = bare.page_table(space);
    bare.machine.entry(table, va.index(1)).swap(0, Ordering::AcqRel);
    let range = VirtRange::new(va, PAGE_SIZE).unwrap();
    let mut round = Round::new();
    round.issue(space, FlushRange::Pages { range, stride: PageSize::Size4K }, false);
    round.dispatch(&bare.shootdown, &bare.machine).sync();
    bare.machine.reuse_data(Pfn::new(frame));
}

/// Runs `other` on CPU 1 beside `this` on CPU 0. A CPU that has done its part waits, with interrupts on, until the
/// other one has too.
fn both(bare: &Arc<Bare>, this: impl FnOnce(&Bare), other: impl FnOnce(&Bare) + Send + 'static) {
    let done = Arc::new([loom::sync::atomic::AtomicBool::new(false), loom::sync::atomic::AtomicBool::new(false)]);
    let (theirs, flags) = (bare.clone(), done.clone());
    let thread = thread::spawn(move || {
        be(1);
        other(&theirs);
        flags[1].store(true, Ordering::Release);
        while !flags[0].load(Ordering::Acquire) {
            theirs.machine.relax();
        }
    });
    this(bare);
    done[0].store(true, Ordering::Release);
    while !done[1].load(Ordering::Acquire) {
        bare.machine.relax();
    }
    thread.join().unwrap();
}

// covers: G2, G3
#[test]
fn a_zap_against_a_cpu_that_uses_the_page() {
    explore(3, || {
        let bare = Bare::new(2);
        let space = bare.space(1, &PAGES);
        be(1);
        bare.load(Some(&space));
        bare.machine.access(PAGES[0].0);
        be(0);
        let ours = space.clone();
        both(&bare, |bare| zap(bare, &ours, PAGES[0]), move |bare| {
            bare.machine.access(PAGES[0].0);
            bare.machine.access(PAGES[0].0);
        });
        let _ = space;
    });
}

// covers: G2, R12
#[test]
fn two_shootdowns_at_once() {
    explore(2, || {
        let bare = Bare::new(2);
        let space = bare.space(1, &PAGES);
        for cpu in [1, 0] {
            be(cpu);
            bare.load(Some(&space));
            PAGES.iter().for_each(|page| _ = bare.machine.access(page.0));
        }
        let (ours, theirs) = (space.clone(), space);
        both(&bare, |bare| zap(bare, &ours, PAGES[0]), move |bare| zap(bare, &theirs, PAGES[1]));
    });
}

// covers: G3
#[test]
fn a_shootdown_against_a_cpu_that_loads_the_space() {
    explore(3, || {
        let bare = Bare::new(2);
        let space = bare.space(1, &PAGES);
        let (ours, theirs) = (space.clone(), space);
        both(&bare, |bare| zap(bare, &ours, PAGES[0]), move |bare| {
            bare.load(Some(&theirs));
            bare.machine.access(PAGES[0].0);
            bare.machine.access(PAGES[0].0);
        });
    });
}

// covers: G3
#[test]
fn a_shootdown_against_a_cpu_that_leaves_the_space() {
    explore(3, || {
        let bare = Bare::new(2);
        let space = bare.space(1, &PAGES);
        be(1);
        bare.load(Some(&space));
        bare.machine.access(PAGES[0].0);
        be(0);
        let ours = space.clone();
        both(&bare, |bare| zap(bare, &ours, PAGES[0]), move |bare| {
            bare.machine.access(PAGES[0].0);
            bare.load(None);
            bare.load(Some(&space));
            bare.machine.access(PAGES[0].0);
        });
    });
}

// covers: G3
#[test]
fn a_shootdown_against_an_idle_cpu_that_wakes() {
    explore(3, || {
        let bare = Bare::new(2);
        let space = bare.space(1, &PAGES);
        be(1);
        bare.load(Some(&space));
        bare.machine.access(PAGES[0].0);
        bare.shootdown.enter_lazy(&IrqOff::new(&bare.machine));
        be(0);
        both(&bare, |bare| zap(bare, &space, PAGES[0]), |bare| {
            bare.shootdown.leave_lazy(&IrqOff::new(&bare.machine));
            bare.machine.access(PAGES[0].0);
        });
    });
}

// covers: G3
#[test]
fn a_shootdown_against_a_cpu_that_goes_idle() {
    explore(3, || {
        let bare = Bare::new(2);
        let space = bare.space(1, &PAGES);
        be(1);
        bare.load(Some(&space));
        be(0);
        both(&bare, |bare| zap(bare, &space, PAGES[0]), |bare| {
            bare.machine.access(PAGES[0].0);
            bare.shootdown.enter_lazy(&IrqOff::new(&bare.machine));
            bare.shootdown.leave_lazy(&IrqOff::new(&bare.machine));
            bare.machine.access(PAGES[0].0);
        });
    });
}

// covers: G3
#[test]
fn a_shootdown_against_an_idle_cpu_that_loads_the_space() {
    explore(3, || {
        let bare = Bare::new(2);
        let space = bare.space(1, &PAGES);
        let other = bare.space(2, &[]);
        be(1);
        bare.load(Some(&other));
        bare.shootdown.enter_lazy(&IrqOff::new(&bare.machine));
        be(0);
        let (ours, theirs) = (space.clone(), space);
        both(&bare, |bare| zap(bare, &ours, PAGES[0]), move |bare| {
            bare.load(Some(&theirs));
            bare.machine.access(PAGES[0].0);
            bare.machine.access(PAGES[0].0);
        });
    });
}

// covers: G3
#[test]
fn more_rounds_than_the_ring_remembers_against_a_cpu_that_catches_up() {
    explore(2, || {
        let bare = Bare::new(2);
        let pages = [(va(0, 0), 0), (va(0, 1), 1)];
        let space = bare.space(1, &pages);
        be(1);
        bare.load(Some(&space));
        pages.iter().for_each(|page| _ = bare.machine.access(page.0));
        bare.shootdown.enter_lazy(&IrqOff::new(&bare.machine));
        be(0);
        let ours = space.clone();
        both(
            &bare,
            move |bare| {
                // Three generations, of which the ring remembers two; the last is of the first page again.
                zap(bare, &ours, pages[0]);
                zap(bare, &ours, pages[1]);
                zap(bare, &ours, pages[1]);
            },
            move |bare| {
                bare.shootdown.leave_lazy(&IrqOff::new(&bare.machine));
                pages.iter().for_each(|page| _ = bare.machine.access(page.0));
            },
        );
    });
}

// covers: G3
#[test]
fn a_table_page_is_freed_after_every_walk_through_it() {
    explore(3, || {
        let bare = Bare::new(2);
        let space = bare.space(1, &PAGES);
        be(1);
        bare.load(Some(&space));
        be(0);
        let ours = space.clone();
        both(
            &bare,
            move |bare| {
                let table = bare.page_table(&ours);
                bare.machine.entry(ours.root(), 0).swap(0, Ordering::AcqRel);
                let range = VirtRange::new(va(0, 0), 2 * PAGE_SIZE).unwrap();
                let mut round = Round::new();
                round.issue(&ours, FlushRange::Pages { range, stride: PageSize::Size4K }, true);
                round.dispatch(&bare.shootdown, &bare.machine).sync();
                bare.machine.free_table(table);
            },
            |bare| {
                bare.machine.access(PAGES[0].0);
                bare.machine.access(PAGES[1].0);
            },
        );
        let _ = space;
    });
}
