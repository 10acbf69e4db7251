//! Tests of the shell's commands to explore with: what they find is what was done.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use dax::removal::Method;
use fs::freeze::FreezeHolder;
use mm::addr::{PAGE_SIZE, PageSize, VirtAddr, VirtRange};
use mm::machine::IrqOff;
use mm::shootdown::CpuLook;

use crate::ktest::fixtures::{Books, Device, at, other_cpu, page, wait_until};
use crate::ktest::fs::{cx, numbered, said, with_fs};
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::mem::machine::mm;
use crate::pmem::devices;
use crate::pmem::mounts::Fs;
use crate::shell;
use crate::shell::explore::{files, frame, held, rmap, spaces, tasks, tlb, walk, who};
use crate::task::sched;

/// The tests.
pub const TESTS: &[Test] = &[
    Test { name: "explore.walk.every_level_and_the_page_behind", covers: "T1", run: walk_to_a_page },
    Test { name: "explore.page.counts_and_users_are_what_was_done", covers: "T1", run: counts_and_users },
    Test { name: "explore.task.leaves_are_of_the_size_that_was_asked_for", covers: "T1", run: leaf_sizes },
    Test { name: "explore.tlb.an_idle_cpu_is_behind_until_it_works_again", covers: "T1", run: lazy_cpu },
    Test {
        name: "explore.file.a_task_maps_it_and_it_goes_by_its_path",
        covers: "T1",
        run: |ctx| with_fs(ctx, &[0], mapped_file),
    },
    Test {
        name: "explore.file.a_frozen_one_does_not_hold_up_the_shell",
        covers: "T1",
        run: |ctx| with_fs(ctx, &[0], frozen_file),
    },
    Test {
        name: "explore.file.of_two_behind_one_pin_neither_is_cut",
        covers: "T1",
        run: |ctx| with_fs(ctx, &[0], two_files_one_pin),
    },
    Test { name: "explore.input.what_makes_no_sense_is_refused", covers: "T1", run: bad_input },
    Test { name: "explore.removal.waits_for_a_plain_pin", covers: "T1", run: removal_and_plain_pin },
    Test { name: "explore.removal.takes_a_long_term_pin_back", covers: "T1", run: removal_and_long_term_pin },
];

const MIB: u64 = 1 << 20;
/// Where `task map` puts what has no place of its own.
const FIRST: &str = "0x4000000000";

/// Gives a line to the command, as the shell does.
fn run(line: &str) -> Result<(), String> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let (name, args) = words.split_first().ok_or("an empty line")?;
    let command = match *name {
        "task" => tasks::run,
        "walk" => walk::run,
        "page" => frame::run,
        "who" => who::run,
        "rmap" => rmap::run,
        "tlb" => tlb::run,
        "space" => spaces::run,
        name => {
            let of_files = shell::fs::COMMANDS.iter().find(|command| command.name == name);
            of_files.ok_or_else(|| format!("{name}: no such command"))?.run
        }
    };
    command(args).map_err(|error| format!("{line}: {error}"))
}

/// Does `work` with a device and a task `alpha`, which is ended.
fn with_task(ctx: &mut Ctx, work: impl FnOnce(&mut Ctx, &Device) -> Result<(), String>) -> Result<(), String> {
    Device::with(ctx, 16 * MIB, |ctx, device| {
        let worked = run("task new alpha").and_then(|()| work(ctx, device));
        tasks::end_all();
        worked
    })
}

fn walk_to_a_page(ctx: &mut Ctx) -> Result<(), String> {
    with_task(ctx, |_, device| {
        run("task map alpha 0 pages=3 leaf=4k write force")?;
        run(&format!("task write alpha {FIRST} 0x1234"))?;
        run(&format!("task read alpha {FIRST}"))?;
        let space = spaces::find("alpha")?;
        check_eq!(spaces::find(&format!("{}", space.id()))?.id(), space.id(), "the space by its number");
        let steps = walk::of(Some(&space), at(0));
        let levels: Vec<_> = steps.iter().map(|step| step.level).collect();
        check_eq!(levels, [4, 3, 2, 1], "levels");
        let (entry, size) = walk::leaf_of(&steps).ok_or("no leaf")?;
        check_eq!((entry.pfn(), size), (device.pfn(0), PageSize::Size4K), "the leaf");
        check!(entry.is_accessed() && entry.is_dirty() && entry.is_writable() && entry.is_user(), "{entry:?}");
        let untouched = walk::of(Some(&space), at(page(1)));
        check!(untouched.len() == 4 && walk::leaf_of(&untouched).is_none(), "an untouched page: {untouched:?}");
        // The kernel half is the same through both roots.
        let kernel = VirtAddr::new(run as *const () as u64);
        let (own, through) = (walk::of(None, kernel), walk::of(Some(&space), kernel));
        check!(walk::leaf_of(&own).is_some(), "the kernel's text is mapped: {own:?}");
        check_eq!(walk::leaf_of(&own), walk::leaf_of(&through), "the kernel's text");
        [0, 1, 2].iter().try_for_each(|&nr| run(&format!("walk alpha {}", at(page(nr)))))?;
        run(&format!("walk {kernel}"))?;
        run("space alpha")?;
        run("task unmap alpha 0x4000000000 3")?;
        check!(walk::leaf_of(&walk::of(Some(&space), at(0))).is_none(), "a leaf after the unmap");
        Ok(())
    })
}

/// References and pins of a page of the device.
fn counts(device: &Device, page: u64) -> Option<(u32, u32)> {
    frame::Facts::of(device.pfn(page)).folio.map(|folio| (folio.counts.refs, folio.counts.pins))
}

fn counts_and_users(ctx: &mut Ctx) -> Result<(), String> {
    with_task(ctx, |_, device| {
        run("task map alpha 0 pages=3 leaf=4k")?;
        check_eq!(counts(device, 1), None, "before anybody touches it");
        run("task read alpha 0x4000001000")?;
        check_eq!(counts(device, 1), Some((1, 0)), "touched");
        run("task pin alpha 0x4000001000 2")?;
        check_eq!(counts(device, 1), Some((2, 1)), "pinned");
        check_eq!(counts(device, 2), Some((2, 1)), "pinned, and touched by that");
        let facts = frame::Facts::of(device.pfn(1));
        check_eq!(facts.place.map(|place| (place.at, place.page)), Some((0, 1)), "where it is");
        let found = who::mappings_of(&facts.map.ok_or("no page map")?, device.pfn(1)).mappings;
        let (mapping, offset) = found.first().ok_or("no mapping")?;
        let (users, nr) = mapping.some_users::<4>(*offset, 1);
        check_eq!((found.len(), *offset, nr), (1, 1, 1), "mappings, page, users");
        let ((space, range), from) = users.first().ok_or("nobody maps it")?;
        check_eq!((space.name(), range.start(), *from), ("alpha", at(0), 0), "who maps it");
        for command in ["page", "who", "rmap"] {
            run(&format!("{command} {}", device.pfn(1)))?;
        }
        run("rmap 0")?;
        let (pin, _) = held::in_the_way(device.frames).ok_or("the pin is not in the way of a removal")?;
        run(&format!("task unpin {pin}"))?;
        check!(held::in_the_way(device.frames).is_none(), "it is given back and still in the way");
        check_eq!(counts(device, 1), Some((1, 0)), "given back");
        run("task unmap alpha 0x4000001000 1")?;
        check_eq!(counts(device, 1), None, "unmapped");
        Ok(())
    })
}

fn mapped_file(_: &mut Ctx, mounted: &[Arc<Fs>]) -> Result<(), String> {
    let fs = &mounted[0];
    fs.mkdir(&cx(), "/d").map_err(said("mkdir"))?;
    drop(numbered(fs, "/d/a", 4)?);
    fs.reap(&cx());
    run("task new alpha")?;
    let worked = maps_it(fs);
    tasks::end_all();
    files::settle();
    worked
}

fn maps_it(fs: &Arc<Fs>) -> Result<(), String> {
    run("task map alpha 0 /d/a offset=1 write")?;
    run("task pin alpha 0x4000001000 1 write")?;
    let space = spaces::find("alpha")?;
    let vma = space.vmas_from::<1>(at(0)).pop().ok_or("nothing is mapped")?;
    check_eq!((vma.range.len_bytes(), vma.offset_pages), (3 * PAGE_SIZE, 1), "what is mapped");
    check!(spaces::behind(&vma).starts_with("/d/a (inode "), "the mapping: {}", spaces::behind(&vma));
    let pfn = space.translate(at(PAGE_SIZE)).ok_or("no leaf")?.pfn_at(at(PAGE_SIZE));
    let owner = who::mappings_of(fs.device().pagemap(), pfn).owner;
    check!(owner.starts_with("page 2 of /d/a (inode "), "the page: {owner}");
    run(&format!("who {pfn}"))?;
    // What would wait for the pin, here.
    check!(files::refuse_while_pinned(0, fs, "/d/a").is_err(), "a truncation of what is pinned");
    check!(files::refuse_while_pinned(0, fs, "/d").is_ok(), "one of something else");
    check!(files::refuse_unmount(0).is_err(), "an unmount");
    fs.unlink(&cx(), "/d/a").map_err(said("unlink"))?;
    run("task unmap alpha 0x4000000000 3")?;
    // Nobody has it open: it goes with the pin, and not before.
    let free = || fs.statfs().map(|sizes| sizes.free_blocks).map_err(said("statfs"));
    let before = free()?;
    let (pin, _) = held::in_the_way(devices::slots()[0].frames).ok_or("the pin is not there any more")?;
    run(&format!("task unpin {pin}"))?;
    check_eq!(free()?, before + 4, "free blocks after the unpin");
    fs.rmdir(&cx(), "/d").map_err(said("rmdir"))
}

fn frozen_file(_: &mut Ctx, mounted: &[Arc<Fs>]) -> Result<(), String> {
    let fs = &mounted[0];
    drop(numbered(fs, "/a", 2)?);
    fs.reap(&cx());
    run("task new alpha")?;
    let worked = while_frozen().and_then(|()| unlinked_while_frozen(fs));
    // Before anybody lets go of what waits for it.
    while fs.freeze_holders().1 > 0 {
        fs.thaw(FreezeHolder::User).map_err(said("thaw"))?;
    }
    tasks::end_all();
    files::settle();
    worked
}

fn while_frozen() -> Result<(), String> {
    run("task map alpha 0 /a at=0x4000001000")?;
    run("freeze 0")?;
    let refused = |line: &str| run(line).err().ok_or_else(|| format!("\"{line}\" was done"));
    for line in [
        "task read alpha 0x4000001000",
        "task read alpha 0x4000001008",
        "task read alpha 0x4000000ff9",
        "task read alpha 0x4000001ffc",
        "task write alpha 0x4000001001 1",
        "task pin alpha 0x4000001008 1",
        "task pin alpha 0x4000000000 2",
    ] {
        let error = refused(line)?;
        check!(error.contains("is frozen"), "{error}");
    }
    let error = refused("task read alpha 0x4000000ff8")?;
    check!(!error.contains("is frozen"), "in front of the file: {error}");
    run("task unmap alpha 0x4000001000 2")?;
    run("thaw 0")
}

/// Who lets go of it would change the file system, and wait for the thaw.
fn unlinked_while_frozen(fs: &Arc<Fs>) -> Result<(), String> {
    let free = || fs.statfs().map(|sizes| sizes.free_blocks).map_err(said("statfs"));
    run("task map alpha 0 /a")?;
    run("rm 0 /a")?;
    run("freeze 0")?;
    let before = free()?;
    run("task unmap alpha 0x4000000000 2")?;
    let error = run("umount 0").err().ok_or("what is frozen was unmounted")?;
    check!(error.contains("busy"), "{error}");
    check_eq!(free()?, before, "free blocks while it is frozen");
    run("thaw 0")?;
    check_eq!(free()?, before + 2, "free blocks after the thaw");
    Ok(())
}

fn two_files_one_pin(_: &mut Ctx, mounted: &[Arc<Fs>]) -> Result<(), String> {
    let fs = &mounted[0];
    for path in ["/a", "/b", "/c"] {
        drop(numbered(fs, path, 1)?);
    }
    fs.reap(&cx());
    run("task new alpha")?;
    let worked = pins_two();
    tasks::end_all();
    files::settle();
    worked
}

fn pins_two() -> Result<(), String> {
    run("task map alpha 0 /a at=0x4000000000 pages=1")?;
    run("task map alpha 0 /b at=0x4000001000 pages=1")?;
    run("task pin alpha 0x4000000000 2")?;
    let pins = held::plain();
    let runs: Vec<_> = pins.iter().flat_map(|pin| &pin.frames).map(|run| run.nr_pages()).collect();
    check_eq!(runs, [2], "the runs: the files lie side by side");
    for line in ["truncate 0 /a 0", "truncate 0 /b 0", "punch 0 /b 0 4096", "rm 0 /b", "mv 0 /c /b"] {
        let Err(error) = run(line) else { return Err(format!("\"{line}\" was done")) };
        check!(error.contains("is held"), "{error}");
    }
    // Behind them.
    run("truncate 0 /c 0")
}

fn leaf_sizes(ctx: &mut Ctx) -> Result<(), String> {
    with_task(ctx, |_, _| {
        run("task map alpha 0 pages=512 offset=512 leaf=2m at=0x4000200000")?;
        run("task map alpha 0 pages=2 leaf=4k at=0x4000000000")?;
        run("task read alpha 0x4000201000")?;
        run("task read alpha 0x4000001000")?;
        let space = spaces::find("alpha")?;
        let leaves = |start, bytes| {
            let range = VirtRange::new(start, bytes).ok_or("no range")?;
            Ok::<_, String>(space.count_leaves(range, u64::MAX).by_size)
        };
        check_eq!(leaves(at(2 * MIB), 2 * MIB)?, [0, 1, 0], "leaves of the second");
        check_eq!(leaves(at(0), page(2))?, [1, 0, 0], "leaves of the first");
        // Half of a large leaf cannot be unmapped, and what has no place of its own goes where nothing is.
        check!(run("task unmap alpha 0x4000200000 1").is_err(), "a leaf was cut");
        run("task map alpha 0 pages=1 offset=4 leaf=4k")?;
        check!(
            space.vmas_from::<1>(at(page(2))).first().is_some_and(|vma| vma.range.start() == at(page(2))),
            "its place"
        );
        Ok(())
    })
}

fn look(cpu: usize) -> Result<CpuLook, String> {
    mm().shootdown.look(&IrqOff::new(&mm().machine), cpu).ok_or_else(|| format!("no CPU {cpu}"))
}

fn lazy_cpu(ctx: &mut Ctx) -> Result<(), String> {
    let Some(cpu) = other_cpu(ctx) else { return Ok(()) };
    with_task(ctx, |_, _| {
        run("task map alpha 0 pages=4 leaf=4k")?;
        let read = |nr: u64| run(&format!("task read alpha {} cpu={cpu}", at(page(nr))));
        (0..4).try_for_each(read)?;
        let id = spaces::find("alpha")?.id();
        wait_until(|| look(cpu).is_ok_and(|look| look.lazy));
        let idle = look(cpu)?;
        check_eq!((idle.space, idle.is_up_to_date()), (Some(id), true), "the CPU that has read");
        // No table goes with it, so that nobody wakes the CPU.
        run("task unmap alpha 0x4000001000 1")?;
        let behind = look(cpu)?;
        check_eq!((behind.lazy, behind.requests), (true, idle.requests), "a CPU that idles");
        check_eq!(behind.generation, behind.flushed + 1, "generations");
        run("tlb")?;
        read(0)?;
        let after = look(cpu)?;
        check!(after.flushed >= behind.generation, "not caught up: {after:?}");
        check!(read(1).is_err(), "it still reads what was unmapped");
        Ok(())
    })
}

/// What is refused, each in one line, with nothing done.
const REFUSED: &[&str] = &[
    "task",
    "task dance",
    "task new 7up",
    "task new alpha",
    "task new abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz",
    "task map alpha",
    "task map nobody 0",
    "task map 0 0",
    "task map alpha 99",
    "task map alpha 0 pages=0",
    "task map alpha 0 pages=18446744073709551615",
    "task map alpha 0 pages=0xffffffffffffffff0",
    "task map alpha 0 pages=1 offset=18446744073709551615",
    "task map alpha 0 pages=1 pages=2",
    "task map alpha 0 colour=red",
    "task map alpha 0 leaf=8k",
    "task map alpha 0 pages=1 leaf=2m",
    "task map alpha 0 pages=1 at=0",
    "task map alpha 0 pages=1 at=0x4000000001",
    "task map alpha 0 pages=1 at=0x800000000000",
    "task map alpha 0 pages=1 at=0xffffffffffffffff",
    "task map alpha 0 pages=1 at=0xfffffffffffff000",
    "task unmap alpha 0 0",
    "task unmap alpha 0xfffffffffffff000 2",
    "task unmap alpha 0x4000000000 18446744073709551615",
    "task protect alpha 0x4000000000 1 dance",
    "task protect alpha 0xfffffffffffff000 1 write",
    "task read alpha 0",
    "task read alpha 0x4000000000",
    "task read alpha 0x7fffffffffff",
    "task read alpha 0x800000000000",
    "task read alpha 0xffff800000000000",
    "task read alpha 0xffffffffffffffff",
    "task read alpha 0x4000000000 cpu=64",
    "task read alpha 0x4000000000 cpu=18446744073709551615",
    "task read alpha 0x4000000000 0x1",
    "task write alpha 0x4000000000",
    "task write alpha 0x4000000000 1",
    "task write alpha 0xffff800000000000 1",
    "task pin alpha 0x4000000000 0",
    "task pin alpha 0x4000000000 1",
    "task pin alpha 0x4000000000 1 longterm",
    "task pin alpha 0x4000000000 18446744073709551615",
    "task pin alpha 0xffff800000000000 1",
    "task pin alpha 0xffffffffffffffff 1 longterm write",
    "task pin alpha 0x4000000000 1 dance",
    "task unpin 18446744073709551615",
    "task unpin x",
    "task end nobody",
    "walk",
    "walk 0x800000000000",
    "walk 0x7fffffffffffffff",
    "walk alpha",
    "walk nobody 0",
    "walk alpha 0xffff7fffffffffff",
    "page",
    "page -1",
    "page 0x10000000000",
    "page 18446744073709551615",
    "who 18446744073709551615",
    "rmap 18446744073709551615",
    "rmap 99999",
    "space nobody",
    "space 18446744073709551615",
    "tlb 1",
];

/// What is answered, whatever the number.
const ANSWERED: &[&str] = &[
    "walk 0",
    "walk 0x7fffffffffff",
    "walk 0xffff800000000000",
    "walk 0xffffffffffffffff",
    "walk alpha 0",
    "walk alpha 0x7fffffffffff",
    "walk alpha 0xffffffffffffffff",
    "page 0",
    "page 0xfffff",
    "page 0xffffffffff",
    "who 0",
    "who 0xffffffffff",
    "rmap 0",
    "rmap pmem0",
    "task unmap alpha 0x4000000000 1",
    "task protect alpha 0x4000000000 1 write",
    "space",
    "space alpha",
    "tlb",
    "task list",
];

fn bad_input(ctx: &mut Ctx) -> Result<(), String> {
    with_task(ctx, |_, _| {
        let before = Books::now();
        for line in REFUSED {
            let Err(error) = run(line) else { return Err(format!("\"{line}\" was done")) };
            check!(!error.contains('\n'), "\"{line}\" is refused in more than one line: {error}");
        }
        ANSWERED.iter().try_for_each(|line| run(line))?;
        before.compare()
    })
}

fn removal_and_plain_pin(ctx: &mut Ctx) -> Result<(), String> {
    with_task(ctx, |_, device| {
        run("task map alpha 0 pages=2 leaf=4k")?;
        run("task pin alpha 0x4000000000 1")?;
        let (pin, _) = held::in_the_way(device.frames).ok_or("the pin is not in the way")?;
        let (waits, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (its_waits, its_done) = (Arc::clone(&waits), Arc::clone(&done));
        let remover = sched::spawn("remover", arch::percpu::cpu(), None, move || {
            let removed = devices::remove_watched(0, Method::Ranged, &mut |_| its_waits.store(true, Ordering::Release));
            its_done.store(removed.is_ok(), Ordering::Release);
            Ok(())
        });
        wait_until(|| waits.load(Ordering::Acquire) || remover.exit().is_some());
        check!(remover.exit().is_none(), "the removal did not wait for the pin");
        // The others go on meanwhile: nothing is mapped any more, and the page is there for the pin alone.
        check!(run("task read alpha 0x4000001000").is_err(), "a read of a device that goes away");
        check!(run("task pin alpha 0x4000001000 1").is_err(), "a new pin of a device that goes away");
        check_eq!(counts(device, 0), Some((1, 1)), "the page");
        run(&format!("who {}", device.pfn(0)))?;
        run("space alpha")?;
        check!(!done.load(Ordering::Acquire), "the removal is over");
        run(&format!("task unpin {pin}"))?;
        sched::join(&remover).map_err(|signal| format!("the remover ended by {signal}"))?;
        check!(done.load(Ordering::Acquire), "the removal failed");
        check!(run("task read alpha 0x4000000000").is_err(), "a read of a device that has gone");
        run(&format!("page {}", device.pfn(0)))?;
        run("space alpha")
    })
}

fn removal_and_long_term_pin(ctx: &mut Ctx) -> Result<(), String> {
    with_task(ctx, |_, device| {
        run("task map alpha 0 pages=2 leaf=4k")?;
        run("task pin alpha 0x4000000000 2 longterm")?;
        run(&format!("who {}", device.pfn(1)))?;
        check_eq!(counts(device, 1), Some((2, 1)), "registered");
        check!(held::in_the_way(device.frames).is_none(), "a registration is in the way of a removal");
        let report = devices::remove(0, Method::Ranged).map_err(|error| format!("{error}"))?;
        check!(report.problems().next().is_none(), "the removal met a problem");
        check_eq!(counts(device, 1), None, "after the removal");
        run("task list")
    })
}
