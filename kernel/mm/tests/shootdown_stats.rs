//! The figures of shootdowns: what was added since an earlier look, and that each figure counts what it says.
#![cfg(not(loom))]

mod common;

use common::{Device, machine, page, space_with, store_to};
use mm::addr::{PAGE_SIZE, PageSize};
use mm::gather::ZapStats;
use mm::shootdown::{FULL_FLUSH_ABOVE, ShootdownStats};

/// No sum, product or quotient of these is the difference, nor is the difference of any two other fields.
#[test]
fn since_is_the_difference_of_each_figure() {
    let earlier = ShootdownStats { rounds: 3, ipis: 50, page_flushes: 700, full_flushes: 11_000 };
    let later = ShootdownStats { rounds: 13, ipis: 170, page_flushes: 2_100, full_flushes: 26_000 };
    let added = ShootdownStats { rounds: 10, ipis: 120, page_flushes: 1_400, full_flushes: 15_000 };
    assert_eq!(later.since(earlier), added);
    assert_eq!(later.since(ShootdownStats::default()), later);
    assert_eq!(later.since(later), ShootdownStats::default());
}

/// On three CPUs: rounds that flush page by page, and one that flushes everything; each figure as the machine saw it.
#[test]
fn each_figure_counts_what_it_says() {
    let (emu, mm) = machine(3);
    let many = FULL_FLUSH_ABOVE + 1;
    let device = Device::dax_with(&mm, 4 * many, PageSize::Size4K);
    let space = space_with(&mm, &device, 3 * many, &[0, 1, 2]);
    let use_pages = || {
        for cpu in 0..3 {
            emu.on_cpu(cpu, || (0..3 * many).for_each(|nr| store_to(&space, &emu, page(nr), nr).unwrap()));
        }
    };
    // What came before is not counted, and there is some of each.
    use_pages();
    space.unmap(page(2 * many - 1), 2 * PAGE_SIZE).unwrap();
    space.unmap(page(0), many * PAGE_SIZE).unwrap();
    let before = mm.shootdown.stats();
    assert!(before.rounds > 0 && before.ipis > 0 && before.page_flushes > 0 && before.full_flushes > 0, "{before:?}");
    emu.reset_stats();
    for nr in [2 * many + 2, 2 * many + 5] {
        space.unmap(page(nr), 2 * PAGE_SIZE).unwrap();
    }
    space.unmap(page(2 * many + 7), PAGE_SIZE).unwrap();
    space.unmap(page(many), (many - 2) * PAGE_SIZE).unwrap();
    let cost = mm.shootdown.stats().since(before);
    let small = FULL_FLUSH_ABOVE - 1;
    let wanted = ShootdownStats { rounds: 4, ipis: 8, page_flushes: 3 * (2 + 2 + 1 + small), full_flushes: 0 };
    assert_eq!(cost, wanted);
    space.unmap(page(2 * many + 8), (many - 8) * PAGE_SIZE).unwrap();
    let all = mm.shootdown.stats().since(before);
    let seen = emu.stats();
    assert_eq!((all.ipis, all.page_flushes, all.full_flushes), (seen.ipis_sent, seen.page_flushes, seen.full_flushes));
    assert_eq!(all.rounds, 5);
}

/// As the figures of several zaps are summed for a report.
#[test]
fn figures_of_zaps_are_added_each_to_its_own() {
    let some = |base: u64| ZapStats {
        entries_visited: base,
        leaves: 10 * base,
        nr_pages: 100 * base,
        table_pages: 1_000 * base,
        rounds: 10_000 * base,
        ipis: 100_000 * base,
    };
    let mut sum = some(3);
    sum.add(some(4));
    assert_eq!(sum, some(7));
    sum.add(ZapStats::default());
    assert_eq!(sum, some(7));
}
