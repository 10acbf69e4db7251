//! The Unplug kernel: bring-up, traps, tasks, console, in-kernel tests and the demonstration.
//!
//! The order of bring-up is this file. It begins on the loader's stack and page tables, builds its own, abandons the
//! loader's, starts all CPUs, and then everything else is a task.
#![no_std]
#![no_main]

extern crate alloc;

mod bench;
mod bringup;
mod console;
mod cpu;
mod demo;
mod io;
mod ktest;
mod mem;
mod pmem;
mod shell;
mod task;
mod trap;
#[cfg(feature = "zoo")]
mod zoo;

use arch::features::Features;
use arch::tables::{CpuTables, NR_IST};
use bootloader_api::config::Mapping;
use bootloader_api::{BootInfo, BootloaderConfig};
use dax::device::DataCache;
use mm::addr::PhysAddr;
use spin::Once;

use crate::bringup::options::{self, Mode, Options};
use crate::bringup::{acpi, fwcfg, memory_map, smp};
use crate::console::{report, ring};
use crate::cpu::{exit, lock, percpu, time};
use crate::io::{dma, edu, nvme, vtd};
use crate::mem::kstack::Stack;
use crate::mem::{heap, image, layout, machine, memory, paging, reserve};
use crate::pmem::{contents, departure, devices, dimms, lost, mounts};
use crate::shell::runs::Runs;
use crate::task::runner::{self, Runner};
use crate::task::{sched, services, tcb};
use crate::trap::events;
use crate::trap::memory_error::{self, Listener};
use crate::trap::vectors;

static BOOTLOADER_CONFIG: BootloaderConfig = {
    let mut config = BootloaderConfig::new_default();
    // Everything at a fixed address: two boots of the same image look alike.
    config.mappings.physical_memory = Some(Mapping::FixedAddress(layout::DIRECT_MAP));
    config.mappings.kernel_base = Mapping::FixedAddress(layout::KERNEL_IMAGE);
    config.mappings.kernel_stack = Mapping::FixedAddress(layout::LOADER_STACK);
    config.mappings.boot_info = Mapping::FixedAddress(layout::LOADER_INFO);
    config.mappings.framebuffer = Mapping::FixedAddress(layout::LOADER_FRAMEBUFFER);
    // A quarter of it is used, but where nothing is optimised (docs/labs): the memory of an early structure is copied.
    config.kernel_stack_size = 512 << 10;
    config
};

bootloader_api::entry_point!(start, config = &BOOTLOADER_CONFIG);

/// What the later stages need of what the first found out.
struct Found {
    features: Features,
    /// Identifier of the APIC of the CPU that boots. The second stage wants it before it has mapped the registers anew.
    boot_apic: u32,
    rsdp: Option<u64>,
    heap_bytes: usize,
    direct_map_leaves: u64,
    boot_stack: lock::IrqLock<Option<Stack>>,
}

static FOUND: Once<Found> = Once::new();

fn found() -> &'static Found {
    FOUND.get().expect("the first stage of the bring-up is over")
}

/// First stage: on the loader's stack and page tables.
fn start(boot: &'static mut BootInfo) -> ! {
    time::start();
    console::init();
    report!("unplug version={}", env!("CARGO_PKG_VERSION"));
    early_tables();
    let features = Features::detect();
    // Before anything of it is used.
    if let Some(missing) = features.missing() {
        console::line(format_args!("unplug: this CPU has no {missing}; the kernel does not run without"));
        exit::now(exit::BAD_CONFIGURATION);
    }
    smp::quiesce(&features);
    let boot_apic = arch::apic::id();
    options::set(read_options());
    if options::get().deterministic {
        smp::halt_once();
        time::start();
        // Exactly one nanosecond for each tick: what could be measured would be off by a rounding.
        time::set_tsc_rate(1_000_000_000);
    } else {
        time::calibrate_tsc();
    }
    // The loader maps the direct map, the stack and this block where the configuration above says.
    let base = boot.kernel_image_offset;
    // SAFETY: the loader leaves the file in RAM that it marks as its own, and does not run any more.
    unsafe { image::init(PhysAddr::new(boot.kernel_addr), boot.kernel_len, base) };
    report!("kernel base={base:#x}");
    // Not before that line: whoever names the places of an epitaph needs it.
    if options::get().tty && options::get().mode == Mode::Shell {
        console::for_people();
    }
    let lost = memory::init_map(&boot.memory_regions);
    if lost > 0 {
        log::warn!(target: "memory", "{lost} regions of the memory map are not used: the list is full");
    }
    if memory::ram_bytes().1 < memory::MIN_RAM_BYTES {
        too_little_memory();
    }
    match memory::init_frames() {
        Ok(frames) => {
            let memory::FrameSummary { ranges, given_up, bitmaps } = frames;
            log::info!(target: "memory", "{ranges} ranges of usable RAM, {bitmaps} frames of bitmaps");
            if given_up > 0 {
                log::warn!(target: "memory", "{given_up} frames are not used: too many ranges");
            }
        }
        Err(error) => panic!("the memory map makes no sense: {error}"),
    }
    let heap_bytes = heap::init().unwrap_or_else(|| too_little_memory());
    let direct_map_leaves = match paging::build(features.phys_bits, features.gib_pages) {
        Ok(leaves) => leaves,
        Err(error) => panic!("the kernel's page tables cannot be built: {error}"),
    };
    let stack = Stack::new().unwrap_or_else(|| too_little_memory());
    let stack_top = stack.top();
    let rsdp = boot.rsdp_addr.into_option();
    FOUND.call_once(|| Found {
        features,
        boot_apic,
        rsdp,
        heap_bytes,
        direct_map_leaves,
        boot_stack: lock::IrqLock::new(Some(stack)),
    });
    // SAFETY: the new root maps the image where it is, the direct map where the loader had it, and the new stack.
    // Nothing of the loader's stack is used again.
    unsafe { arch::tlb::load_root_and_stack(paging::root().addr().as_u64(), stack_top, on_own_tables) }
}

/// An area, descriptor tables and stacks for the boot CPU until it has its own, so that even an early fault leaves an
/// epitaph.
fn early_tables() {
    #[repr(align(16))]
    struct Early([[u8; 16 << 10]; NR_IST]);
    static mut STACKS: Early = Early([[0; 16 << 10]; NR_IST]);
    static mut AREA: Runner = Runner::new(0);
    static mut TABLES: Option<CpuTables> = None;
    // SAFETY: called once, by the only CPU that runs; each static is used through these pointers alone.
    unsafe {
        runner::install(&raw mut AREA);
        let stacks = &raw mut STACKS;
        let tops = core::array::from_fn(|n| (&raw mut (*stacks).0[n]).add(1) as u64);
        let tables = &raw mut TABLES;
        (*tables).insert(CpuTables::new(tops)).load();
    }
}

fn read_options() -> Options {
    let (bytes, len) = fwcfg::read_file::<{ options::MAX_BYTES }>("opt/unplug/cmdline").unwrap_or_default();
    let mut all_known = true;
    let mut complain = |args: core::fmt::Arguments<'_>| {
        all_known = false;
        console::line(format_args!("options: {args}"));
    };
    let options = Options::read(&bytes, len, &mut complain);
    // Whoever gave a word wanted something of it: what follows would not be what was asked for.
    if !all_known {
        exit::now(exit::BAD_CONFIGURATION);
    }
    log::set_max_level(if options.quiet { log::LevelFilter::Warn } else { options.log });
    options
}

fn too_little_memory() -> ! {
    let (_, usable) = memory::ram_bytes();
    console::line(format_args!(
        "unplug: too little memory: {} MiB are usable, {} MiB are needed",
        usable >> 20,
        memory::MIN_RAM_BYTES >> 20
    ));
    exit::now(exit::BAD_CONFIGURATION)
}

/// Second stage: on our own stack and page tables; one CPU, interrupts off, no tasks.
extern "C" fn on_own_tables() -> ! {
    let Found { features, boot_apic, rsdp, heap_bytes, direct_map_leaves, boot_stack } = found();
    let options = options::get();
    let (ram, usable) = memory::ram_bytes();
    report!("memory ram_bytes={ram} usable_bytes={usable} heap_bytes={heap_bytes}");
    log::info!(target: "memory", "{} MiB of RAM, {} MiB usable; {} KiB of heap for odd sizes", ram >> 20, usable >> 20, heap_bytes >> 10);
    log::info!(target: "paging", "our own page tables: {direct_map_leaves} leaves map RAM, the loader's tables are left behind");
    memory_map::print(memory::regions());
    print_features(features);
    // SAFETY: the direct map holds every region of the memory map that may hold tables, and nobody writes there.
    let firmware = unsafe { acpi::FirmwareMemory::new(layout::DIRECT_MAP, memory::regions()) };
    let tables = rsdp.and_then(|rsdp| match acpi::discover(&firmware, rsdp) {
        Ok(info) => Some(info),
        Err(error) => {
            log::warn!(target: "acpi", "no tables: {error}");
            None
        }
    });
    let madt = tables.as_ref().and_then(|info| info.madt.as_ref());
    machine::init(madt.map_or(1, |madt| madt.nr_cpus(*boot_apic)).min(mm::machine::MAX_CPUS));
    services::start();
    time::set_deterministic(options.deterministic);
    let cache = if options.dax_aliasing { DataCache::Aliasing } else { DataCache::Coherent };
    mounts::start();
    devices::find(tables.as_ref(), features.phys_bits, cache);
    if let Some((events, madt)) = tables.as_ref().and_then(|info| info.events).zip(madt) {
        events::find(events, madt);
    }
    smp::init_boot_cpu(features);
    vectors::handle_iommu_faults(dma::on_interrupt);
    vtd::start(tables.as_ref().and_then(|info| info.dmar), bits_of_memory());
    let (tsc_hz, timer_hz) = time::rates();
    log::info!(target: "time", "time-stamp counter {} kHz, local timer {} kHz", tsc_hz / 1000, timer_hz / 1000);
    let stack = boot_stack.lock().take().expect("the boot CPU's stack is taken once");
    sched::become_idle("idle/0", stack);
    report!("cpu id=0 apic={boot_apic} state=online");
    let missing = smp::start_others(madt.into_iter().flat_map(|madt| madt.others(*boot_apic)), features);
    let cpus = percpu::online();
    let (nr_cpus, deterministic) = (cpus.len(), u8::from(options.deterministic));
    log::info!(target: "smp", "{nr_cpus} CPUs run, {missing} did not start");
    report!("boot cpus={nr_cpus} missing={missing} ram_bytes={ram} deterministic={deterministic}");
    sched::spawn("main", 0, None, main_task);
    sched::idle_loop()
}

/// As many bits has the highest physical address of RAM and of the devices that were found.
fn bits_of_memory() -> u8 {
    let ram = memory::regions().iter().filter(|region| memory::is_ram(region.kind)).map(|region| region.end);
    let devices = devices::slots().iter().map(|slot| slot.frames.end().addr().as_u64());
    let end = ram.chain(devices).max().unwrap_or(1);
    (u64::BITS - end.saturating_sub(1).leading_zeros()) as u8
}

fn print_features(features: &Features) {
    let mut used = alloc::string::String::new();
    let mut lacking = alloc::string::String::new();
    for (name, present) in features.used() {
        let list = if present { &mut used } else { &mut lacking };
        if !list.is_empty() {
            list.push(',');
        }
        list.push_str(name);
    }
    let write_back = arch::cache::choose(features);
    log::info!(target: "cpu", "uses {}", used.replace(',', ", ").replace('_', " "));
    if !lacking.is_empty() {
        log::info!(target: "cpu", "does without {}", lacking.replace(',', ", ").replace('_', " "));
    }
    report!(
        "features used={used} lacking={} write_back={write_back} apic={} phys_bits={}",
        if lacking.is_empty() { "none" } else { &lacking },
        if features.x2apic { "x2apic" } else { "xapic" },
        features.phys_bits
    );
}

/// Stops where something lies on an NVDIMM that what is to be run would write over.
fn refuse_foreign() {
    if let Err(line) = contents::ask_for_all(false) {
        report!("verdict result=bad reason=foreign-medium");
        console::line(format_args!("unplug: {line}"));
        exit::now(exit::BAD_CONFIGURATION);
    }
}

/// Third stage: a task like every other.
fn main_task() -> tcb::Exit {
    let silent = smp::test_interrupts();
    let others = percpu::online().len() - 1;
    log::info!(target: "smp", "{} of {others} other CPUs have acknowledged an interrupt", others - silent.len());
    report!("ipi sent={others} silent={}", silent.len());
    assert!(silent.is_empty(), "CPUs {silent:?} do not answer interrupts");
    let frames = devices::slots().iter().map(|slot| slot.frames);
    memory_error::start(
        frames.chain(dimms::free_windows()),
        Listener {
            holders: |pfn| {
                mounts::media_failure(pfn);
            },
            mapped: lost::for_each_place,
            own: lost::lose_own,
            devices: lost::keep_bad_blocks,
        },
    );
    dma::start();
    dma::ask_presence(dimms::are_there);
    edu::find();
    nvme::find();
    departure::start();
    let options = options::get();
    options.inject.into_iter().for_each(|fault| reserve::FAULTS.arm(fault));
    ring::drain();
    let glob = &options.tests;
    if options.mode == Mode::Test && ktest::runner::names(glob).is_empty() {
        console::line(format_args!("options: no test's name matches \"{glob}\" (the shell's test --list names them)"));
        exit::now(exit::BAD_CONFIGURATION);
    }
    let selection = bench::Selection::parse(&options.bench).unwrap_or_else(|error| {
        console::line(format_args!("options: {error}"));
        exit::now(exit::BAD_CONFIGURATION)
    });
    // The shell writes nothing by itself.
    if options.mode != Mode::Shell {
        refuse_foreign();
    }
    // The search switches it on by itself, run by run.
    #[cfg(feature = "zoo")]
    if options.mode != Mode::Zoo {
        options.zoo.bug.into_iter().for_each(zoo::switch_on);
    }
    match options.mode {
        #[cfg(feature = "zoo")]
        Mode::Zoo => exit::now(if zoo::run() { exit::SUCCESS } else { exit::FAILURE }),
        Mode::Test => {
            let summary = ktest::runner::run(&options.tests);
            exit::now(if summary.failed == 0 { exit::SUCCESS } else { exit::FAILURE })
        }
        // Whoever types there promises nothing: no request is granted.
        Mode::Shell => {
            let runs = Runs {
                tests: |glob| ktest::runner::run(glob).failed,
                list: ktest::runner::names,
                demo: || demo::run(demo::Promised::default()),
            };
            shell::run(runs, options.columns, options.tty);
        }
        Mode::Demo => {
            let promised = demo::Promised { host_requests_s: options.host_requests_s, steps: options.step };
            exit::now(if demo::run(promised) { exit::SUCCESS } else { exit::FAILURE })
        }
        Mode::Bench => exit::now(if bench::run(selection) { exit::SUCCESS } else { exit::FAILURE }),
    }
}
