//! What a removal costs: linear in the extents, whatever the size of the device and of the leaves; and so many interrupts
//! as there are other CPUs, never more.
#![cfg(not(loom))]

mod common;

use common::*;
use dax::devdax::OpenOptions;
use dax::removal::{Method, Step, remove};
use mm::addr::{PAGE_SIZE, PageSize};
use mm::entry::Prot;
use mm::space::Access;

/// Extents at first, and then twice as many.
const EXTENTS: u64 = 64;
const CPUS: usize = 4;

/// What one removal took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Took {
    /// Looks at page-table entries, by every part of the removal.
    looks: u64,
    leaves: u64,
    rounds: u64,
    ipis: u64,
}

/// Removes a device of `device_pages` that one space maps by `extents` VMAs of one leaf of `size` each, no two of them
/// side by side. Every other CPU has the space loaded.
fn removal(device_pages: u64, size: PageSize, extents: u64) -> Took {
    let (emu, mm) = machine(CPUS);
    // Frames that are aligned for the largest leaf.
    let attached = attach(&mm, &[frames(1 << 28, device_pages)], PageSize::Size4K).unwrap();
    let file = attached.file(OpenOptions::exactly(size));
    let space = space(&mm, "task");
    for nth in 0..extents {
        let first = 2 * nth * size.nr_pages();
        space.map(page(first), size.nr_pages() * PAGE_SIZE, Prot::USER_WRITE, &file, first).unwrap();
        space.handle_fault(page(first), Access::Write).unwrap();
        assert_eq!(space.translate(page(first)).unwrap().size, size);
    }
    drop(file);
    (1..CPUS).for_each(|cpu| emu.on_cpu(cpu, || load(&mm, Some(&space))));
    emu.reset_stats();
    let report = emu.on_cpu(0, || remove(&mm, attached.target(), Method::Ranged, &mut Env::default()));
    let looks = emu.stats().entry_looks;
    assert_eq!(report.problems().count(), 0);
    assert_eq!(report.step(Step::Invalidate).unwrap().facts.get("extents"), Some(extents));
    assert_eq!(report.cost.zap.ipis, emu.stats().ipis_sent, "interrupts that the report does not know of");
    assert_eq!(report.cost.zap.nr_pages, extents * size.nr_pages());
    (1..CPUS).for_each(|cpu| emu.on_cpu(cpu, || load(&mm, None)));
    let zap = report.cost.zap;
    Took { looks: looks + zap.entries_visited, leaves: zap.leaves, rounds: zap.rounds, ipis: zap.ipis }
}

/// covers: R2 R4
#[test]
fn work_is_linear_in_the_extents_and_the_interrupts_do_not_grow_with_them() {
    // Room for twice the extents, and the gaps, of the largest leaves.
    let device = 4 * EXTENTS * GIB;
    for size in PageSize::ALL {
        let (once, twice) = (removal(device, size, EXTENTS), removal(device, size, 2 * EXTENTS));
        for (took, extents) in [(once, EXTENTS), (twice, 2 * EXTENTS)] {
            assert_eq!((took.leaves, took.rounds, took.ipis), (extents, 1, CPUS as u64 - 1), "{size}: {took:?}");
        }
        assert!(once.looks >= EXTENTS, "{size}: nothing was counted: {once:?}");
        assert!(twice.looks <= 2 * once.looks, "{size}: {once:?}, for twice as many {twice:?}");
    }
}

/// The same number of extents: a leaf of 1 GiB, with 262,144 frames inside, costs no more than one of 4 KiB.
/// covers: R2 R4
#[test]
fn work_does_not_grow_with_the_frames_inside_an_extent() {
    let device = 2 * EXTENTS * GIB;
    let [small, medium, large] =
        [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G].map(|size| removal(device, size, EXTENTS));
    // The small ones lie in one table page; the medium ones take one for each 1 GiB.
    assert!(large.looks <= small.looks.max(medium.looks), "{small:?} {medium:?} {large:?}");
    assert!(medium.looks <= 2 * small.looks, "{small:?} {medium:?}");
}

/// covers: R2 R4
#[test]
fn work_does_not_grow_with_the_device() {
    const TIB: u64 = 1 << 28;
    for size in [PageSize::Size4K, PageSize::Size2M] {
        let took = [GIB, 6 * TIB].map(|device_pages| removal(device_pages, size, EXTENTS));
        assert_eq!(took[0], took[1], "{size}");
    }
}
