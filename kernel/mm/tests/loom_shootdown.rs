//! Models of the shootdown: the very code of `mm::shootdown` and `mm::tlb` under every interleaving that loom can
//! tell apart, with a ring of two generations.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p mm --release --test loom_shootdown`. What every model states is
//! the same sentence: *when `sync` has returned, no CPU uses the old translation any more, and what they did with it
//! is ordered before whatever the sender does next.* The next owner's write to the page is that "next". See
//! `docs/proofs.md` for which deliberate fault each model catches.
#![cfg(any(loom, shuttle))]

mod loom_machine;

use loom_machine::{Bare, LoomMachine, be, explore, va};
use mm::addr::{PAGE_SIZE, PageSize, Pfn, VirtAddr, VirtRange};
use mm::machine::{IrqOff, Machine, Point};
use mm::shootdown::{Dispatched, Round};
use mm::sync::model::{sized, thread};
use mm::sync::{Arc, AtomicUsize, Ordering};
use mm::tlb::{FlushRange, TlbState};

/// Two pages of one page table.
const PAGES: [(VirtAddr, u64); 2] = [(va(0, 0), 0), (va(0, 1), 1)];

/// Takes the page at `va` away; when this returns, its frame belongs to somebody else.
fn zap(bare: &Bare, space: &Arc<TlbState>, (va, frame): (VirtAddr, u64)) {
    clear_and_flush(bare, space, va);
    bare.machine.reuse_data(Pfn::new(frame));
}

fn clear_and_flush(bare: &Bare, space: &Arc<TlbState>, va: VirtAddr) {
    clear(bare, space, va).sync();
}

/// Takes the page at `va` away and sends the round on its way.
fn clear<'b>(bare: &'b Bare, space: &Arc<TlbState>, va: VirtAddr) -> Dispatched<'b, LoomMachine> {
    let table = bare.page_table(space);
    bare.machine.entry(table, va.index(1)).swap(0, Ordering::AcqRel);
    let range = VirtRange::new(va, PAGE_SIZE).unwrap();
    let mut round = Round::new();
    round.issue(space, FlushRange::Pages { range, stride: PageSize::Size4K }, false);
    round.dispatch(&bare.shootdown, &bare.machine)
}

/// CPUs of a model that needs two.
const CPUS: usize = sized(2, 3);

/// What a CPU does in a model.
type Part = Box<dyn FnOnce(&Bare) + Send>;

/// Runs `first` on CPU 0 and `other` on each of the others. A CPU that has done its part takes interrupts until all
/// have.
fn run(bare: &Arc<Bare>, first: Part, other: impl Fn(&Bare) + Clone + Send + 'static) {
    let others = (1..CPUS).map(|_| Box::new(other.clone()) as Part);
    run_parts(bare, std::iter::once(first).chain(others).collect());
}

/// Runs each part on a CPU of its own.
fn run_parts(bare: &Arc<Bare>, parts: Vec<Part>) {
    let left = Arc::new(AtomicUsize::new(parts.len()));
    let part = |cpu, part: Part| {
        let (bare, left) = (bare.clone(), left.clone());
        move || {
            be(cpu);
            part(&bare);
            left.fetch_sub(1, Ordering::AcqRel);
            // With nothing loaded a CPU gets no interrupt. (And loom is not fair among three CPUs that all wait.)
            while bare.machine.has_root() && left.load(Ordering::Acquire) > 0 {
                bare.machine.relax();
            }
        }
    };
    let mut parts = parts.into_iter().enumerate();
    let (_, first) = parts.next().expect("CPU 0 does something");
    let threads: Vec<_> = parts.map(|(cpu, other)| thread::spawn(part(cpu, other))).collect();
    part(0, first)();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// A machine of `cpus` CPUs, and a space that CPUs from `first` on have loaded, with both pages in their TLBs.
fn loaded_on(cpus: usize, first: usize) -> (Arc<Bare>, Arc<TlbState>) {
    let bare = Bare::new(cpus);
    let space = bare.space(1, &PAGES);
    for cpu in first..cpus {
        be(cpu);
        bare.load(Some(&space));
        PAGES.iter().for_each(|page| _ = bare.machine.access(page.0));
    }
    be(0);
    (bare, space)
}

fn go_idle(bare: &Bare) {
    bare.shootdown.enter_lazy(&IrqOff::new(&bare.machine));
}

fn wake(bare: &Bare) {
    bare.shootdown.leave_lazy(&IrqOff::new(&bare.machine));
}

/// The CPU whose part this is zaps a page.
fn zaps(space: &Arc<TlbState>, page: usize) -> Part {
    let space = space.clone();
    Box::new(move |bare| zap(bare, &space, PAGES[page]))
}

fn use_page(bare: &Bare, page: usize) {
    bare.machine.access(PAGES[page].0);
}

// covers: G2, G3
#[test]
fn a_zap_against_a_cpu_that_uses_the_page() {
    explore(4, || {
        let (bare, space) = loaded_on(CPUS, 1);
        let other = |bare: &Bare| {
            use_page(bare, 0);
            bare.machine.poll();
            use_page(bare, 0);
        };
        run(&bare, zaps(&space, 0), other);
    });
}

// covers: G2, R12
#[test]
fn two_shootdowns_at_once() {
    explore(3, || {
        let (bare, space) = loaded_on(CPUS, 0);
        let part = |mine: usize| {
            let space = space.clone();
            move |bare: &Bare| {
                use_page(bare, 1 - mine);
                zap(bare, &space, PAGES[mine]);
                use_page(bare, 1 - mine);
                use_page(bare, mine);
            }
        };
        let mut parts: Vec<Part> = vec![Box::new(part(0)), Box::new(part(1))];
        // The others use what those take away.
        parts.extend((2..CPUS).map(|cpu| Box::new(move |bare: &Bare| use_page(bare, cpu % 2)) as Part));
        run_parts(&bare, parts);
    });
}

// covers: G2, G3
#[test]
fn two_rounds_in_flight_against_one_receiver() {
    explore(4, || {
        // CPU 0 has other things to do than this space. Two of its tasks have a round under way at the same time.
        let (bare, space) = loaded_on(CPUS, 1);
        let ours = space.clone();
        let sender = move |bare: &Bare| {
            let first = clear(bare, &ours, PAGES[0].0);
            let second = clear(bare, &ours, PAGES[1].0);
            first.sync();
            bare.machine.reuse_data(Pfn::new(PAGES[0].1));
            second.sync();
            bare.machine.reuse_data(Pfn::new(PAGES[1].1));
        };
        let other = |bare: &Bare| {
            bare.machine.poll();
            use_page(bare, 0);
            use_page(bare, 1);
        };
        run(&bare, Box::new(sender), other);
    });
}

// covers: G3
#[test]
fn a_shootdown_against_a_cpu_that_loads_the_space() {
    explore(4, || {
        let (bare, space) = loaded_on(CPUS, CPUS);
        // A CPU may fetch translations ahead of need from the moment that it has the root.
        bare.machine.set_watcher(|machine, point| {
            if point == Point::SwitchLoaded {
                machine.fill(PAGES[0].0);
            }
        });
        let theirs = space.clone();
        let other = move |bare: &Bare| {
            bare.load(Some(&theirs));
            use_page(bare, 0);
            bare.machine.poll();
            use_page(bare, 0);
        };
        run(&bare, zaps(&space, 0), other);
    });
}

// covers: G3
#[test]
fn a_shootdown_against_a_cpu_that_leaves_the_space() {
    explore(3, || {
        let (bare, space) = loaded_on(CPUS, 1);
        let theirs = space.clone();
        let other = move |bare: &Bare| {
            use_page(bare, 0);
            bare.load(None);
            bare.load(Some(&theirs));
            use_page(bare, 0);
        };
        run(&bare, zaps(&space, 0), other);
    });
}

// covers: G3
#[test]
fn a_shootdown_against_an_idle_cpu_that_wakes() {
    explore(4, || {
        let (bare, space) = loaded_on(CPUS, 1);
        (1..CPUS).for_each(|cpu| {
            be(cpu);
            go_idle(&bare);
        });
        be(0);
        let other = |bare: &Bare| {
            wake(bare);
            use_page(bare, 0);
        };
        run(&bare, zaps(&space, 0), other);
    });
}

// covers: G3
#[test]
fn a_shootdown_against_a_cpu_that_goes_idle_and_wakes() {
    explore(3, || {
        let (bare, space) = loaded_on(CPUS, 1);
        let other = |bare: &Bare| {
            use_page(bare, 0);
            go_idle(bare);
            wake(bare);
            use_page(bare, 0);
        };
        run(&bare, zaps(&space, 0), other);
    });
}

// covers: G3
#[test]
fn a_shootdown_against_an_idle_cpu_that_loads_the_space() {
    explore(3, || {
        let (bare, space) = loaded_on(CPUS, CPUS);
        let before = bare.space(2, &[]);
        (1..CPUS).for_each(|cpu| {
            be(cpu);
            bare.load(Some(&before));
            go_idle(&bare);
        });
        be(0);
        bare.machine.set_watcher(|machine, point| {
            if point == Point::SwitchLoaded {
                machine.fill(PAGES[0].0);
            }
        });
        let theirs = space.clone();
        let other = move |bare: &Bare| {
            bare.load(Some(&theirs));
            use_page(bare, 0);
        };
        run(&bare, zaps(&space, 0), other);
    });
}

// covers: G3
#[test]
fn more_rounds_than_the_ring_remembers_against_a_cpu_that_catches_up() {
    explore(3, || {
        let (bare, space) = loaded_on(CPUS, 1);
        (1..CPUS).for_each(|cpu| {
            be(cpu);
            go_idle(&bare);
        });
        be(0);
        let ours = space.clone();
        let sender = move |bare: &Bare| {
            // Three generations, of which the ring remembers two. The last one writes over the slot of the first.
            zap(bare, &ours, PAGES[0]);
            clear_and_flush(bare, &ours, PAGES[1].0);
            zap(bare, &ours, PAGES[1]);
        };
        let other = |bare: &Bare| {
            wake(bare);
            use_page(bare, 0);
            use_page(bare, 1);
        };
        run(&bare, Box::new(sender), other);
    });
}

/// CPU 0 unlinks the page table of the space, shoots down and frees it.
fn frees_the_table(space: &Arc<TlbState>) -> Part {
    let space = space.clone();
    Box::new(move |bare| {
        let table = bare.page_table(&space);
        bare.machine.entry(space.root(), 0).swap(0, Ordering::AcqRel);
        let range = VirtRange::new(va(0, 0), 2 * PAGE_SIZE).unwrap();
        let mut round = Round::new();
        round.issue(&space, FlushRange::Pages { range, stride: PageSize::Size4K }, true);
        round.dispatch(&bare.shootdown, &bare.machine).sync();
        bare.machine.free_table(table);
    })
}

// covers: G3
#[test]
fn a_table_page_is_freed_after_every_walk_through_it() {
    explore(4, || {
        let (bare, space) = loaded_on(CPUS, 1);
        let other = |bare: &Bare| {
            use_page(bare, 0);
            bare.machine.poll();
            use_page(bare, 1);
        };
        run(&bare, frees_the_table(&space), other);
    });
}

// covers: G3
#[test]
fn a_table_page_is_freed_after_an_idle_cpu_has_forgotten_it() {
    explore(3, || {
        let (bare, space) = loaded_on(CPUS, 1);
        (1..CPUS).for_each(|cpu| {
            be(cpu);
            go_idle(&bare);
        });
        be(0);
        // An idle CPU may still walk ahead of need.
        let other = |bare: &Bare| _ = bare.machine.fill(PAGES[1].0);
        run(&bare, frees_the_table(&space), other);
    });
}
