//! Pins of one CPU against unmaps of another, by two threads; small enough for Miri.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use mm::addr::{PAGE_SIZE, PageSize};
use mm::entry::Prot;
use mm::gup::GupFlags;
use testkit::emu::Config;

use super::{Device, machine_with, page, pin, space_with, store_to, unpin};

/// Unmaps, each with a shootdown, against twice as many pins.
const ROUNDS: u64 = if cfg!(miri) { 1 } else { 100 };

/// CPU 1 pins runs of `nr_pages`, by the lockless walk where `fast`, while CPU 0 unmaps the first page, or all of them,
/// and maps them anew. Nothing is left in the end.
pub fn pins_against_unmaps(nr_pages: u64, unmapped: u64, flags: GupFlags) {
    let (emu, mm) = machine_with(Config { cpus: 2, table_pages: 16, ..Config::default() });
    let device = emu.on_cpu(0, || Device::dax_with(&mm, 64, PageSize::Size4K));
    let space = emu.on_cpu(0, || space_with(&mm, &device, nr_pages, &[0, 1]));
    let done = AtomicBool::new(false);
    let touch = || (0..nr_pages).for_each(|nr| store_to(&space, &emu, page(nr), nr).unwrap());
    thread::scope(|scope| {
        let pinner = scope.spawn(|| {
            emu.on_cpu(1, || {
                for _ in 0..2 * ROUNDS {
                    // What it was refused it was refused for a reason: the page was not there.
                    if let Ok(runs) = pin(&space, page(0), nr_pages, flags) {
                        assert_eq!(runs[0].start(), device.pfn(0));
                        unpin(&mm, &runs);
                    }
                    emu.poll();
                    thread::yield_now();
                }
                // Shootdowns still want their answers.
                while !done.load(Ordering::Relaxed) {
                    emu.poll();
                    thread::yield_now();
                }
            });
        });
        emu.on_cpu(0, || {
            for _ in 0..ROUNDS {
                touch();
                space.unmap(page(0), unmapped * PAGE_SIZE).unwrap();
                space.map(page(0), unmapped * PAGE_SIZE, Prot::USER_WRITE, &device.ops(), 0).unwrap();
            }
            done.store(true, Ordering::Relaxed);
            while !pinner.is_finished() {
                emu.poll();
                thread::yield_now();
            }
            space.unmap(page(0), nr_pages * PAGE_SIZE).unwrap();
        });
    });
    let totals = mm.meta.totals();
    assert_eq!((totals.folios, totals.refs, totals.pins), (0, 0, 0));
    emu.assert_no_stale();
}
