//! gup and registrations by two threads, small enough for Miri: `cargo +nightly miri test -p mm --test
//! threads_gup`. Plain tests, too.
#![cfg(not(loom))]

mod common;

use std::thread;

use common::gup_rig::rig;
use common::{page, pin, unpin};
use mm::addr::{PAGE_SIZE, PageSize};
use mm::gup::GupFlags;
use mm::region::{MemoryRegion, Notice, RegionOwner, Terms};
use mm::space::Access;
use mm::sync::Weak;

/// Times that a race is run.
const ROUNDS: usize = if cfg!(miri) { 2 } else { 50 };

struct Nobody;

impl RegionOwner for Nobody {
    fn asked(&self, _: &Notice) {}
}

// covers: G2, G8
#[test]
fn pins_against_the_unmap_of_their_pages() {
    for _ in 0..ROUNDS {
        let rig = rig(2, PageSize::Size4K);
        thread::scope(|scope| {
            scope.spawn(|| {
                rig.emu.on_cpu(0, || {
                    // As long as the pages are mapped, and once more.
                    while let Ok(runs) = pin(&rig.space, page(0), 2, GupFlags::WRITE) {
                        unpin(&rig.mm, &runs);
                        rig.emu.poll();
                    }
                });
            });
            scope.spawn(|| rig.emu.on_cpu(1, || _ = rig.space.unmap(page(0), 2 * PAGE_SIZE).expect("a range")));
        });
        assert_eq!(rig.device.pages.live_folios(), 0);
        rig.emu.assert_no_stale();
    }
}

// covers: L6, G8
#[test]
fn the_uses_of_a_registration_against_its_revocation() {
    for _ in 0..ROUNDS {
        let rig = rig(2, PageSize::Size4K);
        let account = rig.space.account();
        let terms = Terms { flags: GupFlags::WRITE, grace_ns: 0, account: &account };
        let register = || MemoryRegion::register(&rig.space, page(0), 2, &terms, Weak::<Nobody>::new());
        let region = rig.emu.on_cpu(0, register).expect("two pages");
        let engine = region.reference();
        thread::scope(|scope| {
            scope.spawn(|| {
                while let Ok(transfer) = engine.access(Access::Read) {
                    assert_eq!(transfer.frame(1), Some(rig.device.pfn(1)));
                    assert!(rig.pins(1) != 0, "used after it was given back");
                }
            });
            scope.spawn(|| {
                rig.emu.on_cpu(1, || {
                    let (map, ranges) = (&rig.device.pages, rig.device.pages.ranges());
                    assert_eq!(rig.mm.regions.ask(map, ranges, &mut |_| ()).asked, 1);
                    rig.mm.regions.take_back(&rig.mm.machine, map, ranges, &mut |_| ());
                });
            });
        });
        assert_eq!((rig.mm.meta.totals().pins, account.exempt_pages()), (0, 0));
        rig.emu.on_cpu(0, || drop(region));
    }
}
