//! The emulated machine itself: what it remembers, what it forgets, and what it refuses. Every other host test
//! rests on this.
#![cfg(not(loom))]

use std::panic::{AssertUnwindSafe, catch_unwind};

use mm::addr::{PageSize, Pfn, VirtAddr};
use mm::entry::{Entry, Prot};
use mm::machine::{CpuMask, Machine};
use mm::sync::Ordering;
use testkit::emu::{Config, EmuMachine, Event};

const VA: VirtAddr = VirtAddr::new(0x4000_0000);
const FRAME: Pfn = Pfn::new(0x10_0000);

/// A root with tables down to `size`, and a leaf of that size at `VA`; answers all tables, the root first.
fn map(emu: &EmuMachine, size: PageSize, prot: Prot) -> Vec<Pfn> {
    let root = emu.alloc_table().unwrap();
    emu.init_root(root);
    let mut tables = vec![root];
    for level in (size.level() + 1..=emu.levels()).rev() {
        let table = emu.alloc_table().unwrap();
        set(emu, *tables.last().unwrap(), level, Entry::table(table, true));
        tables.push(table);
    }
    set(emu, *tables.last().unwrap(), size.level(), Entry::leaf(FRAME, size, prot));
    tables
}

fn set(emu: &EmuMachine, table: Pfn, level: u8, entry: Entry) {
    emu.entry(table, VA.index(level)).store(entry.bits(), Ordering::SeqCst);
}

/// The message of the panic that `f` ends with.
fn panic_of(f: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(f)).expect_err("the machine let it pass");
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

#[test]
fn a_stale_translation_lives_until_it_is_flushed() {
    for size in PageSize::ALL {
        let emu = EmuMachine::with_cpus(2);
        let tables = map(&emu, size, Prot::USER_WRITE);
        emu.load_root(Some(tables[0]));
        emu.write(VA, 7, true).unwrap();
        set(&emu, *tables.last().unwrap(), size.level(), Entry::EMPTY);
        assert_eq!(emu.read(VA, true), Ok(7), "the TLB still translates");
        assert_eq!(emu.stale(0).len(), 1);
        emu.on_cpu(1, || emu.flush_page(VA));
        assert_eq!(emu.read(VA, true), Ok(7), "another CPU's flush changes nothing here");
        emu.flush_page(VA);
        let fault = emu.read(VA, true).unwrap_err();
        assert!(!fault.present && fault.user && !fault.write && fault.va == VA);
    }
}

#[test]
fn flushing_one_small_page_leaves_its_neighbour_and_drops_a_huge_one_whole() {
    let emu = EmuMachine::default();
    let tables = map(&emu, PageSize::Size2M, Prot::USER_READ);
    emu.load_root(Some(tables[0]));
    let inside = VirtAddr::new(VA.as_u64() + 0x5000);
    emu.set_stamp(FRAME.add(5), 55);
    assert_eq!(emu.read(inside, true), Ok(55));
    emu.flush_page(VirtAddr::new(VA.as_u64() + 0x1f_f000));
    assert!(emu.cached(0).is_empty());
}

#[test]
fn paging_structure_caches_outlive_the_entry_above_until_any_page_is_flushed() {
    let emu = EmuMachine::default();
    let tables = map(&emu, PageSize::Size4K, Prot::USER_READ);
    emu.load_root(Some(tables[0]));
    emu.set_stamp(FRAME, 1);
    emu.set_stamp(FRAME.add(1), 2);
    let next = VirtAddr::new(VA.as_u64() + 0x1000);
    emu.entry(tables[3], next.index(1))
        .store(Entry::leaf(FRAME.add(1), PageSize::Size4K, Prot::USER_READ).bits(), Ordering::SeqCst);
    emu.read(VA, true).unwrap();
    // The page table is unlinked, but the CPU remembers the way into it.
    set(&emu, tables[2], 2, Entry::EMPTY);
    assert_eq!(emu.read(next, true), Ok(2));
    // Flushing an address far away drops all of the paging-structure caches, and not the TLB's translation.
    emu.flush_page(VirtAddr::new(0));
    assert_eq!(emu.read(VA, true), Ok(1));
    assert!(emu.prefetch_fails(VirtAddr::new(VA.as_u64() + 0x2000)));
    emu.flush_all();
    assert!(emu.read(VA, true).is_err());
}

trait PrefetchFails {
    fn prefetch_fails(&self, va: VirtAddr) -> bool;
}
impl PrefetchFails for EmuMachine {
    fn prefetch_fails(&self, va: VirtAddr) -> bool {
        let before = self.cached(self.cpu()).len();
        self.prefetch(va);
        self.cached(self.cpu()).len() == before
    }
}

#[test]
fn accessed_and_dirty_bits_are_set_by_the_walker() {
    let emu = EmuMachine::default();
    let tables = map(&emu, PageSize::Size4K, Prot::USER_WRITE);
    emu.load_root(Some(tables[0]));
    let leaf = || emu.translate(tables[0], VA).unwrap().0;
    assert!(!leaf().is_accessed());
    emu.read(VA, true).unwrap();
    assert!(leaf().is_accessed() && !leaf().is_dirty());
    emu.write(VA, 1, true).unwrap();
    assert!(leaf().is_dirty());
}

#[test]
fn rights_are_those_of_the_cached_translation() {
    let emu = EmuMachine::default();
    let tables = map(&emu, PageSize::Size4K, Prot::USER_READ);
    emu.load_root(Some(tables[0]));
    assert!(emu.write(VA, 1, true).unwrap_err().present);
    assert!(emu.read(VirtAddr::new(u64::MAX - 0xfff), true).unwrap_err().present, "the kernel half is not the user's");
    assert!(emu.read(VirtAddr::new(u64::MAX - 0xfff), false).is_ok());
    // A right that was taken away stays usable until the flush; one that was granted is found after one fault.
    emu.read(VA, true).unwrap();
    set(&emu, tables[3], 1, Entry::leaf(FRAME, PageSize::Size4K, Prot::USER_WRITE));
    emu.write(VA, 1, true).unwrap_err();
    emu.write(VA, 1, true).unwrap();
    set(&emu, tables[3], 1, Entry::leaf(FRAME, PageSize::Size4K, Prot::USER_READ));
    emu.write(VA, 2, true).unwrap();
    assert_eq!(emu.stale(0).len(), 1);
}

#[test]
fn loading_a_root_forgets_all_but_global_translations() {
    let emu = EmuMachine::new(Config { levels: 5, ..Config::default() });
    let tables = map(&emu, PageSize::Size4K, Prot::USER_READ);
    emu.load_root(Some(tables[0]));
    emu.read(VA, true).unwrap();
    emu.read(VirtAddr::new(u64::MAX - 0xfff), false).unwrap();
    emu.load_root(None);
    assert!(emu.cached(0).is_empty());
    assert!(emu.read(VirtAddr::new(u64::MAX - 0xfff), false).is_ok(), "a global translation stays");
    emu.flush_global();
    assert!(emu.read(VirtAddr::new(u64::MAX - 0xfff), false).is_err());
}

#[test]
fn an_interrupt_waits_for_interrupts_to_come_on() {
    let emu = EmuMachine::with_cpus(3);
    let (at, taken) = (emu.clone(), std::sync::Arc::new(std::sync::Mutex::new(Vec::new())));
    let log = taken.clone();
    emu.set_ipi_handler(move || {
        assert!(!at.irqs_on());
        log.lock().unwrap().push(at.cpu());
    });
    emu.on_cpu(0, || {
        emu.on_cpu(2, || emu.irq_disable());
        emu.send_shootdown_ipi(CpuMask::from_bits(0b110));
        emu.relax();
        assert_eq!(*taken.lock().unwrap(), [1], "a waiting CPU lets the others take theirs");
        assert!(emu.is_pending(2) && !emu.deliver(2));
        emu.on_cpu(2, || emu.irq_enable());
        assert_eq!(*taken.lock().unwrap(), [1, 2]);
        assert!(emu.on_cpu(2, || emu.irqs_on()));
    });
    assert_eq!(emu.stats().ipis_sent, 2);
    assert_eq!(emu.stats().ipis_taken, 2);
}

#[test]
fn freed_tables_are_guarded() {
    let emu = EmuMachine::with_cpus(2);
    let tables = map(&emu, PageSize::Size4K, Prot::USER_READ);
    emu.on_cpu(1, || {
        emu.load_root(Some(tables[0]));
        emu.read(VA, true).unwrap();
    });
    assert!(panic_of(|| emu.free_table(tables[0])).contains("loaded as its root"));
    assert!(panic_of(|| emu.free_table(tables[3])).contains("paging-structure caches of CPU 1"));
    let emu = EmuMachine::with_cpus(2);
    let tables = map(&emu, PageSize::Size4K, Prot::USER_READ);
    emu.on_cpu(1, || {
        emu.irq_disable();
        emu.entry(tables[2], 0);
    });
    assert!(panic_of(|| emu.free_table(tables[2])).contains("may be walking"));
    emu.on_cpu(1, || emu.irq_enable());
    let kept = emu.entry(tables[2], 3) as *const _ as usize;
    emu.free_table(tables[2]);
    assert!(panic_of(|| emu.free_table(tables[2])).contains("not in use"));
    assert!(panic_of(|| _ = emu.entry(tables[2], 3)).contains("no table page in use"));
    assert_ne!(kept, 0);
}

#[test]
fn waiting_with_interrupts_off_stops_the_machine() {
    let emu = EmuMachine::default();
    emu.irq_disable();
    assert!(panic_of(|| emu.relax()).contains("interrupts off"));
}

#[test]
fn a_write_through_a_reference_kept_too_long_is_found() {
    let emu = EmuMachine::default();
    emu.reuse_tables_at_once(true);
    let table = emu.alloc_table().unwrap();
    let kept = emu.entry(table, 9);
    emu.free_table(table);
    assert!(Entry::from_bits(kept.load(Ordering::SeqCst)).is_present(), "freed pages are poisoned");
    kept.store(0, Ordering::SeqCst);
    assert!(panic_of(|| _ = emu.alloc_table()).contains("written to after it was freed"));
}

#[test]
fn tables_run_out_where_a_test_says_so() {
    let emu = EmuMachine::default();
    map(&emu, PageSize::Size4K, Prot::USER_READ);
    assert_eq!(emu.live_tables(), 4);
    emu.limit_tables(4);
    assert_eq!(emu.alloc_table(), None);
    emu.limit_tables(5);
    assert!(emu.alloc_table().is_some());
}

#[test]
fn a_hook_runs_at_the_event_it_was_hung_on() {
    let emu = EmuMachine::default();
    let tables = map(&emu, PageSize::Size4K, Prot::USER_READ);
    let other = emu.clone();
    let table = tables[3];
    emu.at(0, Event::Entry, 2, move || {
        other.on_cpu(1, || other.entry(table, 7).store(42, Ordering::SeqCst));
    });
    assert_eq!(emu.entry(table, 7).load(Ordering::SeqCst), 0);
    assert!(panic_of(|| emu.assert_hooks_ran()).contains("Entry"));
    assert_eq!(emu.entry(table, 7).load(Ordering::SeqCst), 42);
    emu.assert_hooks_ran();
}

#[test]
fn code_on_another_cpu_comes_back_when_it_waits() {
    let emu = EmuMachine::with_cpus(2);
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = done.clone();
    emu.set_ipi_handler(move || flag.store(true, std::sync::atomic::Ordering::SeqCst));
    emu.on_cpu(0, || {
        emu.irq_disable();
        let (other, flag) = (emu.clone(), done.clone());
        let waiting = emu.start(1, move || {
            other.send_shootdown_ipi(CpuMask::single(0));
            while !flag.load(std::sync::atomic::Ordering::SeqCst) {
                other.relax();
            }
            17
        });
        assert!(!waiting.is_finished() && emu.is_pending(0));
        emu.irq_enable();
        assert_eq!(emu.finish(waiting), 17);
    });
}
