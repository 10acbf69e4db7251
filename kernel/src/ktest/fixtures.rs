//! What the tests of memory management share: a device to map, tasks with address spaces, stamps, and the books that
//! every test must leave as it found them.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dax::devdax::OpenOptions;
use dax::removal::{Method, RemovalReport};
use dax::slot::SlotError;
use mm::addr::{PAGE_SHIFT, PAGE_SIZE, PageSize, Pfn, PfnRange, VirtAddr};
use mm::entry::Prot;
use mm::ledger::Snapshot;
use mm::machine::{CpuId, CpuMask};
use mm::meta::LiveFolio;
use mm::space::VmOps;

use crate::cpu::percpu;
pub use crate::ktest::random::Random;
use crate::ktest::test::Ctx;
use crate::mem::machine::{KernelMachine, Space, mm};
use crate::mem::{books, layout};
use crate::pmem::devices::{self, DeviceError};
use crate::task::sched;
use crate::task::tcb::{Signal, Task};

/// Where tests map things: a multiple of 1 GiB with room above.
pub const BASE: VirtAddr = VirtAddr::new(0x40_0000_0000);

/// What is held at a moment: the ledger, and frames of RAM. Kernel stacks are kept for the next tasks and not counted.
pub struct Books {
    ledger: Snapshot,
    frames: u64,
}

impl Books {
    /// What is held now.
    pub fn now() -> Self {
        Self { ledger: mm().ledger_snapshot(), frames: books::frames() }
    }

    /// Frames of RAM.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Fails with the name of everything of which there is more or less now.
    pub fn compare(&self) -> Result<(), String> {
        let now = Self::now();
        let mut leaks = String::new();
        for (kind, delta) in now.ledger.diff(&self.ledger) {
            leaks.push_str(&format!(" {kind} {delta:+}"));
        }
        match now.frames as i64 - self.frames as i64 {
            0 => {}
            delta => leaks.push_str(&format!(" ram_frames {delta:+}")),
        }
        if leaks.is_empty() { Ok(()) } else { Err(format!("the books are not as before:{leaks}")) }
    }
}

/// The first NVDIMM's device, attached as device-dax for one test.
pub struct Device {
    /// Its frames.
    pub frames: PfnRange,
}

impl Device {
    /// Attaches it, does `work`, removes it unless the test has, and compares the books: whatever the test left over
    /// is named. Skipped where there is no NVDIMM of at least `min_bytes`, or where it is in use.
    pub fn with(
        ctx: &mut Ctx,
        min_bytes: u64,
        work: impl FnOnce(&mut Ctx, &Self) -> Result<(), String>,
    ) -> Result<(), String> {
        Self::with_leaf(ctx, min_bytes, PageSize::Size2M, work)
    }

    /// As [`with`](Self::with), which asks for a device that leaves of 2 MiB fit: here it is leaves of `leaf`. A device
    /// begins where the machine has put it.
    pub fn with_leaf(
        ctx: &mut Ctx,
        min_bytes: u64,
        leaf: PageSize,
        work: impl FnOnce(&mut Ctx, &Self) -> Result<(), String>,
    ) -> Result<(), String> {
        let Some(slot) = devices::slots().first() else {
            ctx.skip("there is no NVDIMM");
            return Ok(());
        };
        if slot.frames.nr_pages() << PAGE_SHIFT < min_bytes {
            ctx.skip(format!("NVDIMM 0 has fewer than {} MiB", min_bytes >> 20));
            return Ok(());
        }
        if !slot.frames.start().is_aligned(leaf) {
            ctx.skip(format!("NVDIMM 0 does not begin at a multiple of {leaf}"));
            return Ok(());
        }
        if let Err(reason) = devices::check_writable(0) {
            ctx.skip(reason);
            return Ok(());
        }
        if devices::block(0).is_ok() {
            ctx.skip("NVDIMM 0 is in use");
            return Ok(());
        }
        let before = Books::now();
        devices::attach(0).map_err(|error| format!("attach: {error}"))?;
        let worked = work(ctx, &Self { frames: slot.frames });
        // A pin that is left would let the removal wait for ever.
        let pins = give_back_pins();
        let removed = match devices::remove(0, Method::Ranged) {
            Ok(report) => no_problems(&report),
            Err(DeviceError::DeviceSlot(SlotError::Empty)) => Ok(()),
            Err(error) => Err(format!("removal: {error}")),
        };
        worked.and(pins).and(removed).and_then(|()| before.compare())
    }

    /// Bytes that can be mapped.
    pub fn size_bytes(&self) -> u64 {
        self.frames.nr_pages() << PAGE_SHIFT
    }

    /// The frame of a page of the device.
    pub fn pfn(&self, page: u64) -> Pfn {
        self.frames.start().add(page)
    }

    /// The device as a file that is mapped with leaves of at most `size`, and cut wherever a page ends.
    pub fn open(&self, size: PageSize) -> Result<Arc<dyn VmOps<KernelMachine>>, String> {
        self.open_as(OpenOptions { max_leaf: size, ..OpenOptions::default() })
    }

    /// The device as a file that promises leaves of `size` alone.
    pub fn open_exactly(&self, size: PageSize) -> Result<Arc<dyn VmOps<KernelMachine>>, String> {
        self.open_as(OpenOptions::exactly(size))
    }

    fn open_as(&self, options: OpenOptions) -> Result<Arc<dyn VmOps<KernelMachine>>, String> {
        let file = devices::file(0).map_err(|error| format!("no file: {error}"))?;
        let file = file.open(options).map_err(|error| format!("open: {error}"))?;
        Ok(file)
    }

    /// Maps `len` bytes from byte `offset` of the device on at `va`, writable, with leaves of `size`.
    pub fn map(&self, space: &Arc<Space>, va: VirtAddr, offset: u64, len: u64, size: PageSize) -> Result<(), String> {
        self.map_as(space, va, offset, len, (size, Prot::USER_WRITE))
    }

    /// As [`map`](Self::map), with given rights.
    pub fn map_as(
        &self,
        space: &Arc<Space>,
        va: VirtAddr,
        offset: u64,
        len: u64,
        (size, prot): (PageSize, Prot),
    ) -> Result<(), String> {
        let ops = self.open(size)?;
        space.map(va, len, prot, &ops, offset >> PAGE_SHIFT).map_err(|error| format!("map at {va}: {error}"))
    }
}

/// Gives back every pin that is left; fails with the pages' names if there were any.
fn give_back_pins() -> Result<(), String> {
    let mut left: Vec<LiveFolio> = Vec::new();
    mm().meta.for_each_live(&mut |folio| {
        if folio.counts.pins != 0 {
            left.push(folio);
        }
    });
    for folio in &left {
        mm().meta.unpin(folio.head, folio.counts.pins);
    }
    if left.is_empty() { Ok(()) } else { Err(format!("pins were left: {left:?}")) }
}

/// Fails where a step of a removal met a problem.
pub fn no_problems(report: &RemovalReport) -> Result<(), String> {
    match report.problems().next() {
        Some((step, problem)) => Err(format!("removal, step {step}: {problem}")),
        None => Ok(()),
    }
}

/// A new address space.
pub fn new_space(name: &str) -> Result<Arc<Space>, String> {
    Space::new(mm(), name).map_err(|error| format!("no address space: {error}"))
}

/// The address `bytes` above [`BASE`].
pub const fn at(bytes: u64) -> VirtAddr {
    VirtAddr::new(BASE.as_u64() + bytes)
}

/// A task on `cpu` that has `space` loaded while it does `work`.
pub fn spawn_in(
    cpu: CpuId,
    space: &Arc<Space>,
    work: impl FnOnce() -> Result<(), Signal> + Send + 'static,
) -> Arc<Task> {
    sched::spawn("test", cpu, Some(Arc::clone(space)), work)
}

/// Does `work` in a task of its own on `cpu`, with `space` loaded, and waits for its answer.
pub fn run_in<R: Send + 'static>(
    cpu: CpuId,
    space: &Arc<Space>,
    work: impl FnOnce() -> Result<R, String> + Send + 'static,
) -> Result<R, String> {
    let answer = Arc::new(spin::Mutex::new(Err(String::from("the task did not answer"))));
    let there = Arc::clone(&answer);
    let task = spawn_in(cpu, space, move || {
        let result = work();
        *there.lock() = result;
        Ok(())
    });
    sched::join(&task).map_err(|signal| format!("the task ended by {signal}"))?;
    core::mem::replace(&mut *answer.lock(), Err(String::new()))
}

/// This CPU, on which the tests' own task runs.
pub fn here() -> CpuId {
    arch::percpu::cpu()
}

/// The other CPUs.
pub fn others() -> CpuMask {
    percpu::online().without(here())
}

/// One other CPU; skips the test where there is none.
pub fn other_cpu(ctx: &mut Ctx) -> Option<CpuId> {
    let other = others().iter().next();
    if other.is_none() {
        ctx.skip("there is one CPU only");
    }
    other
}

/// Waits until `done`.
pub fn wait_until(mut done: impl FnMut() -> bool) {
    while !done() {
        arch::cpu::pause();
        sched::yield_now();
    }
}

/// Tasks that keep an address space loaded on their CPUs: they never wait and never sleep until they are told to end.
pub struct Spinners {
    tasks: Vec<Arc<Task>>,
    stop: Arc<AtomicBool>,
}

impl Spinners {
    /// One on each of `cpus`. Each has read the word at `va`, so its CPU has the translation.
    pub fn start(cpus: CpuMask, space: &Arc<Space>, va: VirtAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ready = Arc::new(AtomicU64::new(0));
        let spinner = |cpu| {
            let (stop, ready) = (Arc::clone(&stop), Arc::clone(&ready));
            spawn_in(cpu, space, move || {
                let read = crate::task::user::read_u64(va);
                ready.fetch_add(1, Ordering::Release);
                while !stop.load(Ordering::Acquire) {
                    arch::cpu::pause();
                }
                read.map(|_| ())
            })
        };
        let tasks: Vec<_> = cpus.iter().map(spinner).collect();
        wait_until(|| ready.load(Ordering::Acquire) == tasks.len() as u64);
        Self { tasks, stop }
    }

    /// Ends them. Fails where one could not read its word.
    pub fn stop(self) -> Result<(), String> {
        self.stop.store(true, Ordering::Release);
        self.tasks.iter().try_for_each(|task| sched::join(task).map_err(|signal| format!("a spinner: {signal}")))
    }
}

/// What a page of the device carries in the tests that stamp it: it follows from the page and from `round`.
pub fn stamp(page: u64, round: u64) -> u64 {
    (page ^ 0x5ca1_ab1e_0000_0000).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) ^ round
}

/// The first eight bytes of a frame of the device, through the direct map. The frame is pinned, or the device is
/// attached and nobody removes it meanwhile.
pub fn read_frame(pfn: Pfn) -> u64 {
    let pointer: *const u64 = layout::direct_ptr(pfn.addr());
    // SAFETY: the device's direct map is there as long as it is attached, and a removal waits for pins. Device memory
    // belongs to no Rust object; others may store meanwhile, hence volatile.
    unsafe { pointer.read_volatile() }
}

/// Stores the first eight bytes of a frame of the device; as [`read_frame`].
pub fn write_frame(pfn: Pfn, value: u64) {
    let pointer: *mut u64 = layout::direct_ptr(pfn.addr());
    // SAFETY: as in `read_frame`.
    unsafe { pointer.write_volatile(value) };
}

/// The fault of an access to `va`, where nothing is mapped or not so.
pub const fn segv(va: VirtAddr) -> Signal {
    Signal::SigSegv { addr: va }
}

/// Offset of page `page`, in bytes.
pub const fn page(page: u64) -> u64 {
    page * PAGE_SIZE
}
