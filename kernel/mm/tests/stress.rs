//! Everything at once: four CPUs, each a thread of the host, load, store, pin, map, unmap, protect, promote, switch
//! and idle, while a fifth removes the device under them, again and again. Which interleavings happen differs from
//! run to run; what must hold does not. `UNPLUG_FULL=1` runs ten times as long.
#![cfg(not(loom))]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{
    Device, EmuContext, Space, go_idle, load, load_from, machine, page, pin, stamp_of, store_to, unpin, wake,
};
use mm::addr::{PAGE_SIZE, PageSize};
use mm::entry::Prot;
use mm::gather::Gather;
use mm::gup::{GupError, GupFlags};
use mm::ledger::Kind;
use mm::machine::Machine;
use mm::mapping::unmap_mapping_range;
use mm::space::{AddressSpace, FaultError};
use mm::sync::Arc;
use testkit::emu::{Cached, EmuMachine};

const WORKERS: usize = 4;
/// Each CPU maps, unmaps and protects its own part of the address range, and uses all of it.
const OWN: u64 = 1024;
const PAGES: u64 = WORKERS as u64 * OWN;
/// Accesses and pins that succeed, and removals, that there must be at least.
const HITS: u64 = 5_000;
const REMOVALS: u64 = 8;

/// Tells the others when its thread panics.
struct Alarm<'a>(&'a AtomicBool);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::SeqCst);
        }
    }
}

/// A sequence of numbers that is the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        // xorshift64*, Vigna 2016.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }
}

struct Rig {
    emu: EmuMachine,
    mm: Arc<EmuContext>,
    device: Arc<Device>,
    spaces: Vec<Arc<Space>>,
    /// CPUs that idle, and so may remember what they will not use.
    idle: [AtomicBool; WORKERS],
    done: AtomicBool,
    /// Some CPU has panicked.
    failed: AtomicBool,
    /// Accesses and pins that succeeded, so that the test knows that it tested something.
    hits: AtomicU64,
    /// Removals.
    removals: AtomicU64,
}

impl Rig {
    /// Page n of the address range is always page n of the device, so everybody knows what a page must hold.
    fn check_access(&self, space: &Space, nr: u64, write: bool) {
        let pfn = self.device.pfn(nr);
        let result = if write {
            store_to(space, &self.emu, page(nr), stamp_of(pfn))
        } else {
            load_from(space, &self.emu, page(nr)).map(|stamp| assert_eq!(stamp, stamp_of(pfn), "page {nr}"))
        };
        match result {
            Ok(()) => _ = self.hits.fetch_add(1, Ordering::Relaxed),
            Err(FaultError::NotMapped(_) | FaultError::SigBus { .. } | FaultError::AccessDenied(_)) => {}
            Err(error) => panic!("page {nr}: {error}"),
        }
    }

    fn check_pin(&self, space: &Space, nr: u64, len: u64, flags: GupFlags) {
        match pin(space, page(nr), len, flags) {
            Ok(runs) => {
                let mut next = nr;
                for run in &runs {
                    assert_eq!(run.start(), self.device.pfn(next), "page {next}");
                    next += run.nr_pages();
                    let folio = self.mm.meta.inspect(run.start()).expect("a pinned page has metadata");
                    assert!(folio.counts.pins > 0, "{folio}");
                }
                self.hits.fetch_add(1, Ordering::Relaxed);
                self.emu.poll();
                unpin(&self.mm, &runs);
            }
            Err(GupError::OutOfMemory | GupError::BadRange | GupError::NoPages | GupError::NotSupported(_)) => {
                panic!("page {nr}, {len} pages")
            }
            Err(_) => {}
        }
    }

    /// No CPU that has `space` loaded remembers a translation of the pages, or (with `rights`) a right to store.
    fn check_forgotten(&self, space: &Space, first: u64, nr_pages: u64, rights: bool) {
        let (from, to) = (page(first), page(first + nr_pages));
        for cpu in 0..WORKERS {
            // Once it is seen awake it has caught up.
            if self.idle[cpu].load(Ordering::SeqCst) {
                continue;
            }
            let (root, cached) = self.emu.snapshot(cpu);
            let hit = |cached: &&Cached| {
                let end = cached.va.as_u64() + cached.size.bytes();
                cached.va < to && from.as_u64() < end && (cached.write || !rights)
            };
            let cached = cached.iter().find(hit).filter(|_| root == Some(space.tlb().root()));
            assert!(cached.is_none(), "CPU {cpu} remembers {}", cached.unwrap());
        }
    }

    fn worker(&self, cpu: usize, rounds: u64) {
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15 + cpu as u64);
        let mut at = cpu % self.spaces.len();
        load(&self.mm, Some(&self.spaces[at]));
        // At least so many, and until enough has met.
        for round in 0.. {
            let met = self.hits.load(Ordering::Relaxed) >= HITS && self.removals.load(Ordering::Relaxed) >= REMOVALS;
            if round >= rounds && met || self.failed.load(Ordering::SeqCst) {
                break;
            }
            let space = &self.spaces[at];
            match numbers.below(32) {
                0..=8 => self.check_access(space, numbers.below(PAGES), false),
                9..=16 => self.check_access(space, numbers.below(PAGES), true),
                17..=19 => self.check_pin(space, numbers.below(PAGES), 1 + numbers.below(12), GupFlags::FAST_ONLY),
                20..=22 => self.check_pin(space, numbers.below(PAGES), 1 + numbers.below(12), GupFlags::WRITE),
                23..=28 => self.change(cpu, space, &mut numbers),
                29 => _ = space.promote(page(0), PAGES * PAGE_SIZE).unwrap(),
                30 => {
                    at = (at + 1) % self.spaces.len();
                    load(&self.mm, Some(&self.spaces[at]));
                }
                _ => {
                    self.idle[cpu].store(true, Ordering::SeqCst);
                    go_idle(&self.mm);
                    self.emu.poll();
                    wake(&self.mm);
                    self.idle[cpu].store(false, Ordering::SeqCst);
                }
            }
        }
        load(&self.mm, None);
    }

    /// Changes what is mapped in the CPU's own part, where nobody else does.
    fn change(&self, cpu: usize, space: &Arc<Space>, numbers: &mut Numbers) {
        let base = cpu as u64 * OWN;
        let (nr, len) = (base + numbers.below(OWN - 12), 1 + numbers.below(12));
        let prot = if numbers.below(4) == 0 { Prot::USER_READ } else { Prot::USER_WRITE };
        match numbers.below(16) {
            0..=3 => {
                space.unmap(page(nr), len * PAGE_SIZE).unwrap();
                self.check_forgotten(space, nr, len, false);
            }
            4 => {
                space.unmap(page(base), OWN * PAGE_SIZE).unwrap();
                self.check_forgotten(space, base, OWN, false);
            }
            5..=7 => {
                space.protect(page(nr), len * PAGE_SIZE, Prot::USER_READ).unwrap();
                self.check_forgotten(space, nr, len, true);
                space.protect(page(nr), len * PAGE_SIZE, prot).unwrap();
            }
            // Where something is mapped already the answer is an error, which is as good.
            8..=12 => _ = space.map(page(nr), len * PAGE_SIZE, prot, &self.device.ops(), nr),
            _ => {
                let nr = base + numbers.below(2) * 512;
                _ = space.map(page(nr), 512 * PAGE_SIZE, prot, &self.device.ops(), nr);
            }
        }
    }

    /// Takes the device away from everybody, and gives it back.
    fn remove(&self) {
        self.device.kill();
        let mut gather = Gather::new(&self.mm);
        unmap_mapping_range(&self.device.mapping, 0, u64::MAX, &mut gather);
        gather.finish();
        // Some CPUs hold pins for a moment. While they last they are waited for; no new ones can come.
        while self.device.pages.live_folios() > 0 {
            assert!(!self.failed.load(Ordering::SeqCst), "another CPU has failed, and may hold pins");
            self.emu.relax();
        }
        let who = self.emu.who_reaches(self.device.first, self.device.nr_pages);
        assert!(who.is_empty(), "CPUs {who:?} reach a device that has been removed");
        self.removals.fetch_add(1, Ordering::Relaxed);
        self.device.revive();
    }
}

fn rounds(usual: u64) -> u64 {
    if std::env::var_os("UNPLUG_FULL").is_some() { 10 * usual } else { usual }
}

// covers: G1, G2, G3, R10, R12
#[test]
fn a_device_is_removed_under_everything_that_uses_it() {
    for largest in [PageSize::Size4K, PageSize::Size2M] {
        let (emu, mm) = machine(WORKERS + 1);
        let device = Device::dax_with(&mm, PAGES, largest);
        (0..PAGES).for_each(|nr| emu.set_stamp(device.pfn(nr), stamp_of(device.pfn(nr))));
        let spaces = (0..2).map(|_| AddressSpace::new(&mm, "stress").unwrap()).collect();
        let idle = [const { AtomicBool::new(false) }; WORKERS];
        let (done, failed) = (AtomicBool::new(false), AtomicBool::new(false));
        let (hits, removals) = (AtomicU64::new(0), AtomicU64::new(0));
        let rig = Rig { emu, mm, device, spaces, idle, done, failed, hits, removals };
        let left = AtomicU64::new(WORKERS as u64);
        std::thread::scope(|scope| {
            for cpu in 0..WORKERS {
                let (rig, left) = (&rig, &left);
                scope.spawn(move || {
                    let _alarm = Alarm(&rig.failed);
                    rig.emu.on_cpu(cpu, || rig.worker(cpu, rounds(30_000)));
                    if left.fetch_sub(1, Ordering::SeqCst) == 1 {
                        rig.done.store(true, Ordering::SeqCst);
                    }
                });
            }
            let remover = &rig;
            scope.spawn(move || {
                let _alarm = Alarm(&remover.failed);
                remover.emu.on_cpu(WORKERS, || {
                    while !remover.done.load(Ordering::SeqCst) && !remover.failed.load(Ordering::SeqCst) {
                        remover.remove();
                        // Time for the others to use it again.
                        (0..100).for_each(|_| remover.emu.relax());
                    }
                });
            });
        });
        let (hits, removals) = (rig.hits.load(Ordering::Relaxed), rig.removals.load(Ordering::Relaxed));
        println!("{largest} leaves: {hits} accesses and pins, {removals} removals");
        rig.emu.assert_no_stale();
        let Rig { emu, mm, mut spaces, .. } = rig;
        spaces.clear();
        let ledger = mm.ledger_snapshot();
        for &kind in Kind::ALL.iter().filter(|&&kind| kind != Kind::PageMaps) {
            assert_eq!(ledger.count(kind), 0, "{kind}");
        }
        assert_eq!(emu.live_tables(), 0);
    }
}
