//! Tests of the platform: page tables, traps, heap, console arithmetic, interrupts between CPUs.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use core::sync::atomic::Ordering;

use arch::features::Features;
use mm::addr::{PAGE_SIZE, PageSize, PfnRange, PhysAddr, VirtAddr};

use crate::bringup::{memory_map, smp};
use crate::console::ring;
use crate::cpu::{percpu, time};
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::mem::{books, heap, image, kstack, layout, memory, paging};
use crate::task::sched;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test { name: "platform.paging.nothing_is_writable_and_executable", covers: "", run: write_xor_execute },
    Test { name: "platform.paging.segments_have_their_rights", covers: "", run: segment_rights },
    Test { name: "platform.paging.lower_half_is_empty", covers: "", run: lower_half_is_empty },
    Test { name: "platform.paging.device_maps_and_unmaps_in_leaves", covers: "", run: device_leaves },
    Test { name: "platform.paging.overlap_is_refused", covers: "", run: overlap_is_refused },
    Test { name: "platform.cpu.protections_are_on", covers: "", run: protections_are_on },
    Test { name: "platform.stack.guard_is_unmapped", covers: "", run: guard_is_unmapped },
    Test { name: "platform.stack.what_is_kept_is_counted", covers: "", run: kept_stacks },
    Test { name: "platform.trap.breakpoint_returns", covers: "", run: breakpoint_returns },
    Test { name: "platform.trap.an_unused_vector_is_a_note", covers: "", run: unused_vector },
    Test { name: "platform.heap.big_blocks_are_frames", covers: "", run: |_| undisturbed(big_blocks_are_frames) },
    Test { name: "platform.memory.frames_come_back", covers: "", run: |_| undisturbed(frames_come_back) },
    Test { name: "platform.memory.the_map_is_shown_whole", covers: "", run: map_is_whole },
    Test { name: "platform.time.is_monotonic", covers: "", run: time_is_monotonic },
    Test { name: "platform.smp.every_cpu_answers", covers: "", run: every_cpu_answers },
    Test { name: "platform.options.bad_words_get_one_line", covers: "", run: bad_options },
];

fn write_xor_execute(_: &mut Ctx) -> Result<(), String> {
    let mut bad = None;
    let mut executable = 0;
    paging::for_each_leaf(|va, entry, _| {
        let prot = entry.prot();
        executable += u64::from(prot.exec);
        if (prot.exec && prot.write) || prot.user {
            bad.get_or_insert((va, entry));
        }
    });
    check!(bad.is_none(), "a leaf of the kernel half is wrong: {bad:?}");
    check!(executable > 0, "no leaf is executable, so the walk saw nothing");
    Ok(())
}

fn segment_rights(_: &mut Ctx) -> Result<(), String> {
    let mut result = Ok(());
    let mut pages = 0;
    image::for_each_segment(|range, prot| {
        for page in 0..range.nr_pages() {
            let va = VirtAddr::new(range.start().as_u64() + page * PAGE_SIZE);
            let found = paging::lookup(paging::root(), va).map(|(entry, _)| entry.prot());
            pages += 1;
            if found != Some(prot) && result.is_ok() {
                result = Err(format!("page {va}: expected {prot:?}, found {found:?}"));
            }
        }
    });
    check!(pages > 0, "the image has no segments");
    result?;
    let here = write_xor_execute as fn(&mut Ctx) -> Result<(), String> as usize as u64;
    let text = paging::lookup(paging::root(), VirtAddr::new(here)).map(|(entry, _)| entry.prot());
    check!(text.is_some_and(|prot| prot.exec && !prot.write), "this code is mapped with {text:?}");
    Ok(())
}

fn lower_half_is_empty(_: &mut Ctx) -> Result<(), String> {
    for index in 0..256 {
        check_eq!(paging::entry(paging::root(), index).load(Ordering::Relaxed), 0, "root entry {index}");
    }
    check!(!paging::is_mapped(0), "address 0 is mapped");
    Ok(())
}

/// A physical range that no machine of ours has: the last GiB that the CPU and the direct map can name.
fn unused_range(skip_pages: u64, nr_pages: u64) -> Result<PfnRange, String> {
    let bits = Features::detect().phys_bits.min(46);
    let start = PhysAddr::new((1 << bits) - (3 << 30) + skip_pages * PAGE_SIZE).pfn();
    PfnRange::new(start, nr_pages).ok_or_else(|| String::from("the range is empty"))
}

fn device_leaves(_: &mut Ctx) -> Result<(), String> {
    let used = memory::used_frames();
    // 1 GiB, 2 MiB and one page, aligned: one leaf of each size where the CPU has all three.
    let gib = PageSize::Size1G.nr_pages();
    let ragged = unused_range(0, gib + 512 + 1)?;
    let expected = if paging::has_gib_leaves() { 3 } else { 512 + 1 + 1 };
    check_eq!(paging::map_device(ragged), Ok(expected), "leaves that map 1 GiB + 2 MiB + 4 KiB");
    let last = layout::direct(ragged.end().addr()).as_u64() - 1;
    check!(paging::is_mapped(last), "the last byte is not mapped");
    check!(!paging::is_mapped(last + 1), "a byte beyond the end is mapped");
    check_eq!(paging::unmap_device(ragged), expected, "leaves that were unmapped");
    check!(!paging::is_mapped(last), "the last byte is still mapped");
    check_eq!(memory::used_frames(), used, "frames in use afterwards");
    // A start in the middle of everything: 4 KiB leaves up to the next 2 MiB.
    let crooked = unused_range(1, 511 + 512)?;
    check_eq!(paging::map_device(crooked), Ok(511 + 1), "leaves that map 511 pages and 2 MiB");
    check_eq!(paging::unmap_device(crooked), 512, "leaves that were unmapped");
    check_eq!(memory::used_frames(), used, "frames in use afterwards");
    Ok(())
}

fn overlap_is_refused(_: &mut Ctx) -> Result<(), String> {
    let used = memory::used_frames();
    let first = unused_range(8, 4)?;
    let around = unused_range(0, 16)?;
    check_eq!(paging::map_device(first), Ok(4), "leaves of the first range");
    check_eq!(paging::map_device(around), Err(paging::MapError::Occupied), "mapping around it");
    let before = layout::direct(around.start().addr()).as_u64();
    check!(!paging::is_mapped(before), "the refused attempt left a page mapped");
    check!(paging::is_mapped(layout::direct(first.start().addr()).as_u64()), "the first range is gone");
    check_eq!(paging::unmap_device(first), 4, "leaves of the first range");
    check_eq!(memory::used_frames(), used, "frames in use afterwards");
    Ok(())
}

fn protections_are_on(_: &mut Ctx) -> Result<(), String> {
    let features = Features::detect();
    for cpu in percpu::online().iter() {
        let seen = alloc::sync::Arc::new(spin::Mutex::new(None));
        let there = alloc::sync::Arc::clone(&seen);
        let task = sched::spawn("registers", cpu, None, move || {
            *there.lock() = Some(Features::read_back());
            Ok(())
        });
        check_eq!(sched::join(&task), Ok(()), "end of the task on CPU {cpu}");
        let expected = Some((true, true, features.smep, features.smap, features.global_pages));
        check_eq!(*seen.lock(), expected, "(WP, NXE, SMEP, SMAP, PGE) on CPU {cpu}");
    }
    Ok(())
}

fn guard_is_unmapped(_: &mut Ctx) -> Result<(), String> {
    let me = sched::current().ok_or("there is no current task")?;
    let here = arch::cpu::stack_pointer();
    let stack = me.stack();
    check!((stack.bottom()..stack.top()).contains(&here), "the stack pointer {here:#x} is not in the task's stack");
    for page in 0..kstack::STACK_BYTES / PAGE_SIZE {
        check!(paging::is_mapped(stack.bottom() + page * PAGE_SIZE), "page {page} of the stack is not mapped");
    }
    let below = stack.bottom() - 1;
    check!(!paging::is_mapped(below), "the byte below the stack is mapped");
    check!(kstack::is_guard(below), "the byte below the stack is not known as a guard");
    check!(!kstack::is_guard(stack.bottom()), "the lowest byte of the stack is taken for a guard");
    Ok(())
}

/// So many stacks that the list of the free ones takes frames too, as a demonstration on 32 CPUs makes them. Once only,
/// for the next time they are there already; what the tasks of an earlier test give back meanwhile is no fault.
fn kept_stacks(_: &mut Ctx) -> Result<(), String> {
    const STACKS: usize = 300;
    let others = books::frames;
    let before = others();
    let stacks: Option<vec::Vec<_>> = (0..STACKS).map(|_| kstack::Stack::new()).collect();
    check!(stacks.is_some(), "no memory for {STACKS} stacks");
    drop(stacks);
    let after = others();
    check!(after <= before, "{} frames are kept for stacks, and are not counted", after - before);
    Ok(())
}

fn breakpoint_returns(_: &mut Ctx) -> Result<(), String> {
    let before = percpu::this().breakpoints.load(Ordering::Relaxed);
    arch::cpu::breakpoint();
    arch::cpu::breakpoint();
    check_eq!(percpu::this().breakpoints.load(Ordering::Relaxed), before + 2, "breakpoints that were seen");
    Ok(())
}

/// Does `work`, which compares what is in use before and after, until nobody else has allocated or freed in between: the
/// tasks of an earlier test are dropped by their own CPUs, some time after they were joined. That comes to an end; what
/// is really lost is lost in every try.
fn undisturbed(work: fn() -> Result<(), String>) -> Result<(), String> {
    const TRIES: u64 = 1000;
    let mut tried = work();
    for _ in 1..TRIES {
        if tried.is_ok() {
            break;
        }
        sched::yield_now();
        tried = work();
    }
    tried
}

fn big_blocks_are_frames() -> Result<(), String> {
    let (heap_before, _) = heap::usage();
    let frames_before = memory::used_frames();
    let big = vec![0x5au8; 1 << 20];
    check_eq!(heap::usage().0, heap_before, "bytes of the small heap");
    check!(
        memory::used_frames() >= frames_before + 256,
        "1 MiB took only {} frames",
        memory::used_frames() - frames_before
    );
    check!(big.iter().all(|&byte| byte == 0x5a), "the block does not hold what was stored");
    drop(big);
    check_eq!(memory::used_frames(), frames_before, "frames in use afterwards");
    let small = vec![1u8; 100];
    check!(heap::usage().0 > heap_before, "100 bytes did not come from the small heap");
    drop(small);
    check_eq!(heap::usage().0, heap_before, "bytes of the small heap afterwards");
    Ok(())
}

fn frames_come_back() -> Result<(), String> {
    let before = memory::used_frames();
    for order in [0, 3, 9] {
        let pfn = memory::alloc(order).ok_or_else(|| format!("no frames of order {order}"))?;
        check_eq!(pfn.as_u64() % (1 << order), 0, "alignment of {pfn} of order {order}");
        check_eq!(memory::used_frames(), before + (1 << order), "frames in use");
        memory::free(pfn, order);
    }
    check_eq!(memory::used_frames(), before, "frames in use afterwards");
    Ok(())
}

/// A handler prints nothing: it leaves a note, which a task prints.
fn unused_vector(_: &mut Ctx) -> Result<(), String> {
    const UNUSED: u8 = 0x77;
    // Tasks do not migrate: both times it is the same CPU's.
    let before = ring::nr_notes();
    arch::apic::send_to_self(UNUSED);
    let arrived = (0..100_000).any(|_| {
        arch::cpu::pause();
        ring::nr_notes() > before
    });
    check!(arrived, "no note of the interrupt");
    ring::drain();
    Ok(())
}

/// What is shown of the memory map: each byte of it once, in rising order, and no two lines that could be one.
fn map_is_whole(_: &mut Ctx) -> Result<(), String> {
    let regions = memory::regions();
    let runs = memory_map::joined(regions);
    let bytes = |pairs: &mut dyn Iterator<Item = (u64, u64)>| pairs.map(|(start, end)| end - start).sum::<u64>();
    let shown = bytes(&mut runs.iter().map(|&(start, end, _)| (start, end)));
    check_eq!(shown, bytes(&mut regions.iter().map(|region| (region.start, region.end))), "bytes");
    for pair in runs.windows(2) {
        let [(_, end, before), (start, _, after)] = pair else { continue };
        check!(end < start || end == start && before != after, "{pair:x?} overlap, or are one");
    }
    let usable = runs.iter().filter(|(.., what)| *what == memory_map::Use::Usable);
    check_eq!(bytes(&mut usable.map(|&(start, end, _)| (start, end))), memory::ram_bytes().1, "usable bytes");
    Ok(())
}

fn time_is_monotonic(_: &mut Ctx) -> Result<(), String> {
    let mut last = time::since_first_line_ns();
    for _ in 0..1000 {
        let now = time::since_first_line_ns();
        check!(now >= last, "time went back from {last} to {now} ns");
        last = now;
    }
    let start = time::since_first_line_ns();
    sched::sleep_ns(1_000_000);
    let slept = time::since_first_line_ns() - start;
    check!(slept >= 1_000_000, "a sleep of 1 ms lasted {slept} ns");
    Ok(())
}

fn every_cpu_answers(_: &mut Ctx) -> Result<(), String> {
    let silent = smp::test_interrupts();
    check!(silent.is_empty(), "no answer from {silent:?}");
    Ok(())
}

fn bad_options(_: &mut Ctx) -> Result<(), String> {
    let mut lines = alloc::vec::Vec::new();
    let mut complain = |args: core::fmt::Arguments<'_>| lines.push(format!("{args}"));
    let text = "mode=test tests=platform.* colour=red deterministic=2 quiet= deterministic=1";
    let options = crate::bringup::options::Options::parse(text, &mut complain);
    check_eq!(lines.len(), 3, "complaints, one for each bad word: {lines:?}");
    check!(lines[0].contains("unknown option \"colour\""), "the first complaint is {:?}", lines[0]);
    check_eq!(options.mode, crate::bringup::options::Mode::Test, "mode");
    check_eq!(options.tests.as_str(), "platform.*", "tests");
    check!(options.deterministic && !options.quiet, "good words around bad ones were lost: {options:?}");
    // Of more bytes than there is room for the last word may be half of one, which means something else.
    for (bytes, len, expected) in [
        (&b"quiet=1 columns=10"[..], 18, None),
        (b"quiet=1 columns=10", 19, Some("19 bytes of boot options (allowed: 18)")),
        (b"quiet=1\xff", 8, Some("not text")),
    ] {
        lines.clear();
        let mut complain = |args: core::fmt::Arguments<'_>| lines.push(format!("{args}"));
        let options = crate::bringup::options::Options::read(bytes, len, &mut complain);
        check_eq!(options.quiet, expected.is_none(), "quiet, of {len} bytes");
        check_eq!(
            lines.iter().map(String::as_str).collect::<alloc::vec::Vec<_>>(),
            alloc::vec::Vec::from_iter(expected),
            "complaints"
        );
    }
    Ok(())
}
