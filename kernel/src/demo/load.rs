//! The load of the demonstration: tasks on every CPU that map, read, write, pin and unpin a device, and tasks that have
//! nothing to do with it.
//!
//! Every page that a task uses carries a stamp at its beginning: a number that follows from the page's offset in the
//! device. A wrong translation betrays itself by a wrong stamp, whether the page is read through a mapping or, while it
//! is pinned, through the kernel's direct map.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dax::devdax::OpenOptions;
use mm::addr::{PAGE_SHIFT, PAGE_SIZE, PageSize, Pfn, VirtAddr};
use mm::entry::Prot;
use mm::gup::{GupError, GupFlags, PageArray, pin_user_pages_fast, unpin};
use mm::machine::CpuId;
use mm::pins::PinnedPages;
use mm::region::{MemoryRegion, Notice, RegionError, RegionOwner, Terms};
use mm::space::{Access, MapError, SigBusCause, VmOps};

use super::gate::{Gate, wait_for_count};
use crate::cpu::{percpu, time};
use crate::ktest::random::Random;
use crate::mem::layout;
use crate::mem::machine::{KernelMachine, Space, mm};
use crate::pmem::devices;
use crate::task::tcb::{Exit, Signal, Task};
use crate::task::{sched, user};

/// Where every task maps the device.
const BASE: VirtAddr = VirtAddr::new(0x40_0000_0000);
/// Where the mapping task maps and unmaps its second window.
const WINDOW: VirtAddr = VirtAddr::new(0x80_0000_0000);
/// Bytes at the beginning of the device that every CPU's tasks map with 4 KiB leaves, all of them the same.
pub const SMALL_BYTES: u64 = 4 << 20;
/// Bytes of the device that each CPU maps with 2 MiB leaves, behind those.
const LARGE_BYTES: u64 = 4 << 20;
/// Where some tasks hold the shared pages.
const HELD: VirtAddr = VirtAddr::new(0xc0_0000_0000);
/// Most pages pinned at a time.
const BATCH: u64 = 16;

/// How long a transfer holds its pins, in nanoseconds.
const TRANSFER_NS: u64 = 100_000_000;
/// What the owner of a registration has to give it back, in nanoseconds.
const GRACE_NS: u64 = 20_000_000;

/// What the tasks count while they run.
#[derive(Default)]
pub struct Counters {
    /// Pages pinned and given back.
    pub pins: AtomicU64,
    /// Words read and written through mappings.
    pub accesses: AtomicU64,
    /// Mappings made and taken away.
    pub maps: AtomicU64,
    /// Rounds of the tasks that have nothing to do with the device.
    pub bystanders: AtomicU64,
    /// Stamps that were wrong. Must stay 0.
    pub wrong_stamps: AtomicU64,
    /// Where tasks that have gone around wait for the others.
    gate: Gate,
    stop: AtomicBool,
}

/// The load, running.
pub struct Load {
    /// Tasks that use the device which is to go.
    pub users: Vec<Arc<Task>>,
    /// Tasks that do not.
    pub bystanders: Vec<Arc<Task>>,
    /// What they count.
    pub counters: Arc<Counters>,
}

/// What the page at `offset_pages` of device `at` carries.
fn stamp(at: usize, offset_pages: u64) -> u64 {
    0x5ca1_ab1e_0000_0000 ^ ((at as u64) << 40) ^ offset_pages.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A part of a device and how it is mapped: offset and length in bytes, size of the leaves.
type Part = (u64, u64, PageSize);

/// What a task does with its worker.
type Work = fn(Worker) -> Exit;

/// One task's view of its part of a device.
struct Worker {
    at: usize,
    cpu: CpuId,
    space: Arc<Space>,
    ops: Arc<dyn VmOps<KernelMachine>>,
    /// First page of its part of the device.
    first_page: u64,
    nr_pages: u64,
    counters: Arc<Counters>,
    random: Random,
}

impl Worker {
    /// A worker with an address space of its own in which `len` bytes of device `at` from `offset` on are mapped with
    /// leaves of `size`, or smaller ones where the device's frames do not carry those.
    fn new(
        name: &str,
        at: usize,
        cpu: CpuId,
        (offset, len, size): Part,
        counters: &Arc<Counters>,
    ) -> Result<Self, String> {
        let fail = |what: &str, error: &dyn core::fmt::Display| format!("{name}: {what}: {error}");
        let file = devices::file(at).map_err(|error| fail("no device", &error))?;
        let file =
            file.open(OpenOptions::exactly(size.min(file.largest_leaf()))).map_err(|error| fail("open", &error))?;
        let ops: Arc<dyn VmOps<KernelMachine>> = file;
        let space = Space::new(mm(), name).map_err(|error| fail("address space", &error))?;
        let first_page = offset >> PAGE_SHIFT;
        space.map(BASE, len, Prot::USER_WRITE, &ops, first_page).map_err(|error| fail("map", &error))?;
        let random = Random(0x1234_5678_9abc_def1 ^ ((cpu as u64) << 32) ^ first_page);
        let nr_pages = len >> PAGE_SHIFT;
        Ok(Self { at, cpu, space, ops, first_page, nr_pages, counters: Arc::clone(counters), random })
    }

    fn start(self, name: &str, work: Work) -> Arc<Task> {
        let space = Arc::clone(&self.space);
        sched::spawn(name, self.cpu, Some(space), move || work(self))
    }

    fn address(&self, page: u64) -> VirtAddr {
        VirtAddr::new(BASE.as_u64() + (page << PAGE_SHIFT))
    }

    fn check(&self, page: u64, found: u64) {
        if found != stamp(self.at, self.first_page + page) {
            self.counters.wrong_stamps.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Looks at the stamps of pinned pages, the first of which is `page`, through the direct map.
    fn check_pinned(&self, page: u64, pinned: &PinnedPages<KernelMachine>) {
        let frames = pinned.frames().iter().flat_map(|run| (0..run.nr_pages()).map(|nr| run.start().add(nr)));
        frames.zip(page..).for_each(|(pfn, page)| self.check(page, read_pinned(pfn)));
    }

    /// Stamps every page of its part.
    fn stamp_all(&self) -> Result<(), Signal> {
        (0..self.nr_pages)
            .try_for_each(|page| user::write_u64(self.address(page), stamp(self.at, self.first_page + page)))
    }

    /// Maps and populates the pages that all CPUs share, with 4 KiB leaves.
    fn hold_shared_pages(&self) -> Result<(), Signal> {
        let gone = Signal::SigBus { addr: HELD, len_bytes: SMALL_BYTES, cause: SigBusCause::DeviceGone };
        let file = devices::file(self.at).map_err(|_| gone)?;
        let file = file.open(OpenOptions::exactly(PageSize::Size4K)).map_err(|_| gone)?;
        let ops: Arc<dyn VmOps<KernelMachine>> = file;
        self.space.map(HELD, SMALL_BYTES, Prot::USER_WRITE, &ops, 0).map_err(|_| gone)?;
        Ok(self.space.populate(HELD, SMALL_BYTES, Access::Read)?)
    }

    /// It has gone around often enough: waits for the others.
    fn is_warm(&self) -> Result<(), Signal> {
        self.counters.gate.pass()
    }
}

/// The answer of gup to a task: what Linux would deliver as a signal ends the task.
pub fn signal_of(error: GupError) -> Signal {
    match error {
        GupError::SigBus(addr, cause) => Signal::SigBus { addr, len_bytes: PAGE_SIZE, cause },
        GupError::TooManyRefs(_) | GupError::OutOfMemory => Signal::OutOfMemory,
        GupError::NotMapped(addr) | GupError::AccessDenied(addr) | GupError::NotPresent(addr) => {
            Signal::SigSegv { addr }
        }
        _ => Signal::SigSegv { addr: BASE },
    }
}

/// The first eight bytes of a pinned frame, read through the direct map, as a device would read them.
pub fn read_pinned(pfn: Pfn) -> u64 {
    let pointer: *const u64 = layout::direct_ptr(pfn.addr());
    // SAFETY: the frame is pinned, and a removal unmaps the direct map only when no pin is left. It is aligned, and
    // device memory belongs to no Rust object; others may store meanwhile, hence volatile.
    unsafe { pointer.read_volatile() }
}

/// Pins runs of 4 KiB pages by gup-fast, looks at them as a device would, and gives them back.
fn pin_work(mut worker: Worker) -> Exit {
    worker.stamp_all()?;
    let mut turns = 0_u64;
    loop {
        user::check_signal()?;
        let nr = 1 + worker.random.below(BATCH);
        let page = worker.random.below(worker.nr_pages - nr);
        let mut frames = [Pfn::new(0); BATCH as usize];
        let mut sink = PageArray::new(&mut frames);
        let start = worker.address(page);
        let got = pin_user_pages_fast(&worker.space, start, nr, GupFlags::WRITE, &mut sink).map_err(signal_of)?;
        for (&pfn, page) in sink.as_slice().iter().zip(page..) {
            worker.check(page, read_pinned(pfn));
            unpin(mm(), pfn, 1);
        }
        worker.counters.pins.fetch_add(got, Ordering::Relaxed);
        turns += 1;
        if turns == 64 {
            worker.is_warm()?;
        }
    }
}

/// Holds pins for as long as a slow transfer by a device would, and looks at the pages before and after. A removal has
/// to wait for it, and says for whom it waits.
fn transfer_work(mut worker: Worker) -> Exit {
    worker.stamp_all()?;
    worker.is_warm()?;
    loop {
        user::check_signal()?;
        let page = worker.random.below(worker.nr_pages - BATCH);
        let pinned =
            PinnedPages::pin(&worker.space, worker.address(page), BATCH, GupFlags::WRITE).map_err(signal_of)?;
        worker.check_pinned(page, &pinned);
        sched::sleep_ns(TRANSFER_NS);
        worker.check_pinned(page, &pinned);
        worker.counters.pins.fetch_add(BATCH, Ordering::Relaxed);
    }
}

/// Registers pages for as long as it likes, and reads them as a network card would that has the key to them. The kernel
/// asks for them before the device goes; this one does not listen, and loses them.
fn stream_work(worker: Worker) -> Exit {
    worker.stamp_all()?;
    let account = worker.space.account();
    let owner: Arc<dyn RegionOwner> = Arc::new(|_: &Notice| ());
    let terms = Terms { flags: GupFlags::empty(), grace_ns: GRACE_NS, account: &account };
    let region = MemoryRegion::register(&worker.space, worker.address(0), BATCH, &terms, Arc::downgrade(&owner));
    let region = region.map_err(|error| match error {
        RegionError::Pin(error) => signal_of(error),
        RegionError::Grace { .. } => Signal::Killed,
    })?;
    let (engine, mut page) = (region.reference(), 0);
    worker.is_warm()?;
    while let Ok(transfer) = engine.access(Access::Read) {
        if let Some(pfn) = transfer.frame(page) {
            worker.check(page, read_pinned(pfn));
        }
        drop(transfer);
        page = (page + 1) % BATCH;
        give_way();
    }
    // Its mapping has gone with the device, as everybody's.
    user::read_u64(worker.address(0)).map(drop)
}

/// Reads stamps and writes words through 2 MiB or 1 GiB leaves.
///
/// Besides, it maps the shared pages and keeps them mapped without touching them. So a removal finds these mappings
/// loaded on every CPU however long it takes, while the tasks that touch the pages come to their end.
fn read_write_work(mut worker: Worker) -> Exit {
    worker.hold_shared_pages()?;
    let stamped = worker.nr_pages.min(LARGE_BYTES >> PAGE_SHIFT);
    for page in 0..stamped {
        user::write_u64(worker.address(page), stamp(worker.at, worker.first_page + page))?;
    }
    let mut turns = 0_u64;
    loop {
        let page = worker.random.below(stamped);
        worker.check(page, user::read_u64(worker.address(page))?);
        // A word of its own in each page, so that CPUs do not overwrite each other's.
        let word = VirtAddr::new(worker.address(page).as_u64() + 8 + 8 * worker.cpu as u64);
        user::write_u64(word, turns)?;
        if user::read_u64(word)? != turns {
            worker.counters.wrong_stamps.fetch_add(1, Ordering::Relaxed);
        }
        worker.counters.accesses.fetch_add(3, Ordering::Relaxed);
        turns += 1;
        if turns == 64 {
            worker.is_warm()?;
        }
    }
}

/// Maps and unmaps a second window on its pages, over and over.
fn map_work(mut worker: Worker) -> Exit {
    let mut turns = 0_u64;
    loop {
        let nr = 1 + worker.random.below(BATCH);
        let page = worker.random.below(worker.nr_pages - nr);
        let len = nr << PAGE_SHIFT;
        match worker.space.map(WINDOW, len, Prot::USER_WRITE, &worker.ops, worker.first_page + page) {
            Ok(()) => {
                let seen = user::read_u64(WINDOW);
                let unmapped = worker.space.unmap(WINDOW, len);
                assert!(unmapped.is_ok(), "what was mapped can be unmapped: {unmapped:?}");
                // The pin tasks stamp these pages; until they have, they are zero or from an earlier boot.
                seen?;
                worker.counters.maps.fetch_add(1, Ordering::Relaxed);
            }
            // The device is going: what is mapped already says how this task ends.
            Err(MapError::Refused(_)) => {}
            Err(error) => panic!("task on CPU {}: map: {error}", worker.cpu),
        }
        user::read_u64(worker.address(page))?;
        turns += 1;
        if turns == 4 {
            worker.is_warm()?;
        }
    }
}

/// Has nothing to do with the device that goes; with a second NVDIMM it uses that one.
fn bystander_work(counters: &Counters, worker: Option<Worker>) -> Exit {
    if let Some(worker) = &worker {
        worker.stamp_all()?;
    }
    let mut turns = 0_u64;
    while !counters.stop.load(Ordering::Acquire) {
        if let Some(worker) = &worker {
            let page = turns % worker.nr_pages;
            worker.check(page, user::read_u64(worker.address(page))?);
        }
        counters.bystanders.fetch_add(1, Ordering::Relaxed);
        turns += 1;
        if turns == 4 {
            counters.gate.pass()?;
        }
        give_way();
    }
    Ok(())
}

/// To other tasks of this CPU and, where the CPUs take turns on one host thread, to other CPUs. Where each CPU has a host thread
/// this sleeps: the guest may have more CPUs than the host, and one that does nothing but give way would use a host's CPU that
/// another could work on.
pub fn give_way() {
    const REST_NS: u64 = 1_000_000;
    if time::is_deterministic() {
        arch::cpu::pause();
        sched::yield_now();
    } else {
        sched::sleep_ns(REST_NS);
    }
}

/// The whole GiB of a device that a task maps with one leaf, or with smaller ones: the last that fits. Offset in bytes.
fn whole_gib(size_bytes: u64) -> Option<u64> {
    const GIB: u64 = 1 << 30;
    (size_bytes / GIB).checked_sub(1).map(|gib| gib * GIB)
}

/// A device that stays, large enough for the bystanders to use.
fn other_device() -> Option<usize> {
    let is_large_enough = |at: &usize| devices::file(*at).is_ok_and(|file| file.size_bytes() >= SMALL_BYTES);
    (1..devices::slots().len()).filter(|&at| devices::check_writable(at).is_ok()).find(is_large_enough)
}

impl Load {
    /// Starts tasks on every CPU. They use device 0; the bystanders use another one where there is one.
    ///
    /// # Errors
    /// One clear line; tasks that were started go on, and `stop` ends the bystanders.
    pub fn start() -> Result<Self, String> {
        let counters = Arc::new(Counters::default());
        let file = devices::file(0).map_err(|error| format!("{error}"))?;
        let (size, leaf) = (file.size_bytes(), file.largest_leaf());
        if leaf < PageSize::Size1G {
            log::info!(
                "the device begins at a multiple of {leaf}, and not of more: it is mapped with such leaves at most"
            );
        }
        let nr_cpus = percpu::online().len() as u64;
        let needed = SMALL_BYTES + nr_cpus * LARGE_BYTES;
        if size < needed {
            return Err(format!("the device has {size} bytes; {nr_cpus} CPUs need {needed}"));
        }
        let mut load = Self { users: Vec::new(), bystanders: Vec::new(), counters };
        // The largest leaf first: the size of a folio is that of the first leaf that maps it.
        if let Some(offset) = whole_gib(size).filter(|_| crate::mem::paging::has_gib_leaves()) {
            load.huge(offset)?;
        }
        for cpu in percpu::online().iter() {
            load.start_on(cpu)?;
        }
        let last = nr_cpus as CpuId - 1;
        let worker = Worker::new("transfer", 0, last, (0, SMALL_BYTES, PageSize::Size4K), &load.counters)?;
        load.users.push(worker.start("transfer", transfer_work));
        let worker = Worker::new("stream", 0, 0, (0, SMALL_BYTES, PageSize::Size4K), &load.counters)?;
        load.users.push(worker.start("stream", stream_work));
        Ok(load)
    }

    fn huge(&mut self, offset: u64) -> Result<(), String> {
        let name = "gib-0";
        let worker = Worker::new(name, 0, 0, (offset, 1 << 30, PageSize::Size1G), &self.counters)?;
        worker.space.populate(BASE, PAGE_SIZE, Access::Write).map_err(|error| format!("{name}: {error}"))?;
        self.users.push(worker.start(name, read_write_work));
        Ok(())
    }

    fn start_on(&mut self, cpu: CpuId) -> Result<(), String> {
        let counters = &self.counters;
        let small = (0, SMALL_BYTES, PageSize::Size4K);
        let large = (SMALL_BYTES + cpu as u64 * LARGE_BYTES, LARGE_BYTES, PageSize::Size2M);
        let kinds: [(&str, Part, Work); 3] =
            [("pin", small, pin_work), ("rw", large, read_write_work), ("map", small, map_work)];
        for (kind, part, work) in kinds {
            let name = format!("{kind}-{cpu}");
            self.users.push(Worker::new(&name, 0, cpu, part, counters)?.start(&name, work));
        }
        let name = format!("bystander-{cpu}");
        let worker = match other_device() {
            None => None,
            Some(at) => Some(Worker::new(&name, at, cpu, small, counters)?),
        };
        let space = worker.as_ref().map(|worker| Arc::clone(&worker.space));
        let counters = Arc::clone(counters);
        self.bystanders.push(sched::spawn(&name, cpu, space, move || bystander_work(&counters, worker)));
        Ok(())
    }

    /// Waits until every task has gone around, and lets all go on together.
    pub fn warm_up(&self) {
        self.counters.gate.open(self.users.iter().chain(&self.bystanders));
    }

    /// Waits until the bystanders have gone around `turns` times more, together.
    pub fn wait_for_bystanders(&self, turns: u64) {
        let goal = self.counters.bystanders.load(Ordering::Relaxed) + turns;
        wait_for_count(&self.counters.bystanders, goal, &self.bystanders);
    }

    /// Waits for the end of every user of the device; answers how many ended by SIGBUS because it has gone.
    pub fn join_users(&self) -> usize {
        let by_sigbus = |task: &&Arc<Task>| matches!(sched::join(task), Err(Signal::SigBus { .. }));
        self.users.iter().filter(by_sigbus).count()
    }

    /// Ends the bystanders; answers how many ended with their work done.
    pub fn stop(&self) -> usize {
        // Release; pairs with the Acquire in `bystander_work`.
        self.counters.stop.store(true, Ordering::Release);
        self.bystanders.iter().filter(|task| sched::join(task) == Ok(())).count()
    }
}
