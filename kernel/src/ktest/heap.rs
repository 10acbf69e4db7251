//! Tests of the heap where memory ends: what can be refused is refused, and what is given back is there again.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use iommu::entry::Rights;
use mm::addr::{ENTRIES, PAGE_SIZE, PageSize, Pfn, PfnRange};
use mm::entry::Prot;
use mm::space::{Access, FaultError, MapError};

use crate::console::command::Command;
use crate::io::{edu, vtd};
use crate::ktest::fixtures::{Books, Device, at, new_space, page};
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::mem::{heap, kstack, memory};
use crate::pmem::bytes;
use crate::shell::jobs;
use crate::task::sched;

const MIB2: u64 = PageSize::Size2M.bytes();

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "mem.exhausted.a_mapping_is_refused_and_nothing_is_lost",
        covers: "A6",
        run: |ctx| Device::with(ctx, MIB2, refused),
    },
    Test {
        name: "mem.exhausted.a_device_is_refused_and_nothing_is_lost",
        covers: "A6",
        run: |ctx| Device::with(ctx, MIB2, no_tables),
    },
    Test { name: "mem.exhausted.a_command_has_no_task", covers: "A6", run: no_task },
    Test { name: "mem.exhausted.a_stack_is_refused_where_memory_lies_in_pieces", covers: "A6", run: no_list_of_stacks },
    Test { name: "mem.heap.slabs_go_back", covers: "", run: slabs_go_back },
];

/// How long a task sleeps that only keeps its stack.
const SITS_NS: u64 = 1_000_000;
/// Pieces of memory that are put by, at most.
const MOST_PIECES: usize = 64;
/// What `zero` asks for at most, in bytes.
const MUCH: usize = 1 << 20;
/// Frames of those that are put by that nobody takes here, not even for a moment.
const KEPT: u64 = 32;
/// Frames that are left before memory is short, at least.
const LEFT: u64 = 256;

/// All frames but [`LEFT`] and those that are put by, in the largest pieces that there are; given back when it is dropped.
struct Hog(Vec<(Pfn, u32)>);

impl Hog {
    fn take() -> Self {
        // Room for all of it beforehand: a list that grows takes memory itself.
        let mut hog = Self(Vec::with_capacity(4096));
        for order in (0..=mm::frame::MAX_ORDER).rev() {
            while hog.0.len() < hog.0.capacity() && memory::leaves_enough(order) {
                let Some(pfn) = memory::alloc(order) else { break };
                hog.0.push((pfn, order));
            }
        }
        let mut left = 0;
        while left < LEFT
            && let Some((pfn, order)) = hog.0.pop()
        {
            left += 1 << order;
            memory::free(pfn, order);
        }
        hog
    }

    /// The same, and of the frames that are left no two lie side by side: who wants more than one in a row gets none.
    fn take_scattered() -> Self {
        let mut hog = Self::take();
        // Lists for them beforehand.
        let mut given = Vec::with_capacity(4096);
        while memory::stats().is_some_and(|stats| stats.free > KEPT)
            && hog.0.len() < hog.0.capacity()
            && given.len() < given.capacity()
        {
            match memory::alloc(0) {
                Some(pfn) if pfn.as_u64() % 2 == 1 => given.push(pfn),
                Some(pfn) => hog.0.push((pfn, 0)),
                None => break,
            }
        }
        given.into_iter().for_each(|pfn| memory::free(pfn, 0));
        hog
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        self.0.drain(..).for_each(|(pfn, order)| memory::free(pfn, order));
    }
}

/// A task maps one page after another until memory is short: it is told so, what it has stays, and the kernel goes on.
fn refused(ctx: &mut Ctx, device: &Device) -> Result<(), String> {
    const MOST: u64 = 100_000;
    let space = new_space("greedy")?;
    let before = Books::now();
    let hog = Hog::take();
    let map = |nth: u64| device.map(&space, at(page(2 * nth)), 0, PAGE_SIZE, PageSize::Size4K);
    let mapped = (0..MOST).map(map).take_while(Result::is_ok).count() as u64;
    check!(mapped < MOST, "{MOST} mappings, and memory is not short");
    check!(memory::is_short(), "a mapping was refused, and memory is not short");
    let again = map(mapped);
    let expected = format!("{}", MapError::OutOfMemory);
    check!(again.as_ref().is_err_and(|error| error.contains(&expected)), "the next one is answered by {again:?}");
    let cut = space.protect(at(0), MIB2, Prot::USER_WRITE);
    check!(cut.is_ok(), "rights of whole mappings change without memory: {cut:?}");
    check_eq!(
        space.populate(at(0), PAGE_SIZE, Access::Write),
        Err(FaultError::OutOfMemory),
        "a fault that needs a table"
    );
    drop(hog);
    space.populate(at(0), PAGE_SIZE, Access::Write).map_err(|error| format!("a fault afterwards: {error}"))?;
    ctx.note(format_args!("{mapped} mappings with the memory that was left"));
    // What gives memory back needs none, nor two frames in a row.
    let hog = Hog::take_scattered();
    let unmapped = space.unmap(at(0), page(2 * mapped));
    drop(hog);
    unmapped.map_err(|error| format!("unmap: {error}"))?;
    before.compare()
}

/// A mapping for DMA that needs more tables than there are frames before memory is short, and fewer than there are with those
/// that are put by: it is refused, and they are there for whom they were put by.
fn no_tables(ctx: &mut Ctx, device: &Device) -> Result<(), String> {
    const FRAMES: usize = 64;
    const TABLES: u64 = 300;
    let Some(edu) = edu::device() else {
        ctx.skip(vtd::why_none().unwrap_or("there is no edu device that does DMA"));
        return Ok(());
    };
    let domain = edu.dma().domain();
    // No run fills a table, so none is a leaf of 2 MiB.
    let run = PfnRange::new(device.frames.start(), ENTRIES as u64 - 1).ok_or("no frames")?;
    let runs = vec![run; TABLES as usize];
    let map = || domain.map(&runs, Rights::READ, u64::MAX);
    let mut frames = Vec::with_capacity(4 * LEFT as usize);
    let hog = Hog::take();
    while !memory::is_short() && frames.len() < frames.capacity() {
        frames.extend(memory::alloc(0));
    }
    let was_short = memory::is_short();
    frames.drain(frames.len() - FRAMES..).for_each(|frame| memory::free(frame, 0));
    let (tables, refused) = (domain.stats().tables, map());
    let (left, is_short) = (domain.stats().tables, memory::is_short());
    drop(hog);
    frames.into_iter().for_each(|frame| memory::free(frame, 0));
    let refused = refused.map(|mapping| domain.revoke(&mapping));
    check!(was_short, "there is memory for more: {} frames", 4 * LEFT);
    check_eq!(refused, Err(iommu::domain::MapError::NoMemory), "a mapping with {TABLES} tables");
    check!(!is_short, "memory is short: what was made of the mapping is there still");
    // Those on the way to the next mapping may stay.
    let levels = u64::from(domain.levels().count());
    check!(left <= tables + levels, "{left} tables are left, {tables} there were");
    let mapping = map().map_err(|error| format!("a mapping afterwards: {error}"))?;
    let revoked = domain.revoke(&mapping);
    check!(revoked.tables >= TABLES - 1, "{} tables, meant were {TABLES}", revoked.tables);
    Ok(())
}

/// The list of stacks that are free grows to two frames in a row, and more. Where there are single ones alone there is no stack,
/// however many frames that are.
fn no_list_of_stacks(ctx: &mut Ctx) -> Result<(), String> {
    /// From so many stacks on the next one wants a longer list than a frame is.
    const FRAME_OF_THEM: u64 = PAGE_SIZE / size_of::<u64>() as u64;
    const SINGLE: usize = 4096;
    if memory::stats().is_none_or(|stats| stats.free < (128 << 20) / PAGE_SIZE) {
        ctx.skip("there is no RAM for that many stacks");
        return Ok(());
    }
    let mut stacks = Vec::with_capacity(2 * FRAME_OF_THEM as usize);
    while !(kstack::nr_made() >= FRAME_OF_THEM && kstack::nr_made().is_power_of_two()) {
        if stacks.len() == stacks.capacity() {
            ctx.skip("there are too many stacks already");
            return Ok(());
        }
        stacks.push(kstack::Stack::new().ok_or("no stack")?);
    }
    let made = kstack::nr_made();
    let (mut single, mut given) = (Vec::with_capacity(SINGLE), Vec::with_capacity(SINGLE));
    let (mut pairs, mut more) = (Vec::with_capacity(SINGLE), Vec::with_capacity(made as usize + 1));
    single.extend((0..SINGLE).map_while(|_| memory::alloc(0)));
    let hog = Hog::take();
    single.retain(|pfn| {
        pfn.as_u64() % 2 == 0 || {
            given.push(*pfn);
            false
        }
    });
    given.drain(..).for_each(|pfn| memory::free(pfn, 0));
    while pairs.len() < pairs.capacity()
        && let Some(pfn) = memory::alloc(1)
    {
        pairs.push(pfn);
    }
    let is_short = memory::is_short();
    // Those that are free already come first.
    while more.len() < more.capacity()
        && let Some(stack) = kstack::Stack::new()
    {
        more.push(stack);
    }
    let refused = more.len() < more.capacity();
    let made_since = kstack::nr_made() - made;
    drop((more, hog));
    pairs.into_iter().for_each(|pfn| memory::free(pfn, 1));
    single.into_iter().for_each(|pfn| memory::free(pfn, 0));
    check!(!is_short, "memory is short: a stack is refused for that");
    check!(refused && made_since == 0, "{made_since} stacks more were made, with a list of {made}");
    stacks.push(kstack::Stack::new().ok_or("no stack afterwards")?);
    check_eq!(kstack::nr_made(), made + 1, "stacks, once there is memory in one piece");
    Ok(())
}

/// Where there is no stack for a task, a command that would begin one is refused, and one that is waited for runs all the same.
fn no_task(_: &mut Ctx) -> Result<(), String> {
    static RAN: AtomicU64 = AtomicU64::new(0);
    static COMMAND: Command = Command {
        name: "count",
        args: "",
        help: "",
        example: "",
        run: |_| {
            RAN.fetch_add(1, Ordering::Relaxed);
            Ok(())
        },
    };
    let words = [String::from(COMMAND.name)];
    let end = Arc::new(AtomicBool::new(false));
    // Room beforehand, as above.
    let (mut frames, mut tasks) = (Vec::with_capacity(4 * LEFT as usize), Vec::with_capacity(1024));
    let (ran, jobs) = (RAN.load(Ordering::Relaxed), jobs::count());
    let hog = Hog::take();
    while !memory::is_short() && frames.len() < frames.capacity() {
        frames.extend(memory::alloc(0));
    }
    // Those whose stacks are free already.
    while tasks.len() < tasks.capacity() {
        let ends = Arc::clone(&end);
        let task = sched::try_spawn("sitter", arch::percpu::cpu(), None, move || {
            while !ends.load(Ordering::Relaxed) {
                sched::sleep_ns(SITS_NS);
            }
            Ok(())
        });
        match task {
            Ok(task) => tasks.push(task),
            Err(_) => break,
        }
    }
    let (is_full, is_short) = (tasks.len() == tasks.capacity(), memory::is_short());
    let refused = jobs::start(&COMMAND, &words);
    // Nor is there a piece for so much among the frames that are put by.
    let order = MUCH.ilog2() - PAGE_SIZE.ilog2();
    let pieces: Vec<_> = core::iter::from_fn(|| memory::alloc(order)).take(MOST_PIECES).collect();
    let zeroes = bytes::zeroes(MUCH).map(drop);
    let is_all = pieces.len() < MOST_PIECES;
    pieces.into_iter().for_each(|piece| memory::free(piece, order));
    let waited_for = jobs::watch(&COMMAND, &words);
    drop(hog);
    frames.into_iter().for_each(|frame| memory::free(frame, 0));
    end.store(true, Ordering::Relaxed);
    for task in &tasks {
        check_eq!(sched::join(task), Ok(()), "end of a task");
    }
    check!(is_short && !is_full, "there is memory for more: {} tasks", tasks.len());
    check_eq!(refused, Err(format!("{}", sched::NoStack)), "a job without a stack");
    check_eq!(jobs::count(), jobs, "jobs");
    check!(is_all && zeroes.is_err_and(|why| why.contains("out of memory")), "{MUCH} bytes in one piece were had");
    check_eq!(
        (waited_for, RAN.load(Ordering::Relaxed) - ran),
        (Ok(()), 1),
        "a command that is waited for, and its runs"
    );
    Ok(())
}

/// What many small objects took comes back as frames.
fn slabs_go_back(_: &mut Ctx) -> Result<(), String> {
    const OBJECTS: usize = 20_000;
    let before = heap::slab_frames();
    let objects: Vec<alloc::boxed::Box<[u64; 8]>> = (0..OBJECTS).map(|_| alloc::boxed::Box::new([1; 8])).collect();
    let most = heap::slab_frames();
    check!(most >= before + (OBJECTS * 64) as u64 / PAGE_SIZE, "{OBJECTS} objects took {} frames", most - before);
    drop(objects);
    // A CPU keeps two lists of each class, and each class a page; what others free or take meanwhile is theirs.
    let left = heap::slab_frames();
    check!(left <= before + 16, "{} frames are left of what the objects took", left - before);
    Ok(())
}
