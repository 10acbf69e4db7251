//! Tests of the NVMe driver: data between a disk and persistent memory, requests that cannot be, and a device that answers
//! nonsense or not at all.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use dax::removal::{Method, Step};
use mm::addr::PageSize;
use nvme::completion::{Completion, Status};

use crate::io::dma::DmaRegion;
use crate::io::nvme::{self as driver, Blocks, Direction, Disk, Failure, IoError, Limits};
use crate::io::vtd;
use crate::ktest::dma::{Owner, clear, compare, compare_words, fill, is_clear};
use crate::ktest::fixtures::{Device, here, no_problems, page, spawn_in, wait_until};
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::pmem::devices;
use crate::task::sched;
use crate::task::tcb::Signal;

const MIB2: u64 = PageSize::Size2M.bytes();
/// Pages that are registered.
const PAGES: u64 = 160;
/// How many commands are in flight at most.
pub const AT_ONCE: u64 = 16;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test { name: "dma.nvme.from_pmem_to_disk_and_back", covers: "D1", run: |ctx| with(ctx, there_and_back) },
    Test { name: "dma.nvme.pieces_of_every_shape", covers: "D1", run: |ctx| with(ctx, shapes) },
    Test { name: "dma.nvme.transient_pins", covers: "D1", run: |ctx| with(ctx, transient) },
    Test { name: "dma.nvme.many_in_flight", covers: "", run: |ctx| with(ctx, many) },
    Test { name: "dma.nvme.nobody_waits", covers: "", run: |ctx| with(ctx, nobody_waits) },
    Test { name: "dma.nvme.what_cannot_be_is_one_error", covers: "", run: |ctx| with(ctx, what_cannot_be) },
    Test { name: "dma.nvme.nonsense_resets_the_controller", covers: "", run: |ctx| with(ctx, nonsense) },
    Test { name: "dma.nvme.no_answer_resets_the_controller", covers: "", run: |ctx| with(ctx, no_answer) },
    Test {
        name: "dma.nvme.a_removal_waits_for_pins_until_the_reset",
        covers: "D5",
        run: |ctx| with(ctx, held_until_reset),
    },
    Test { name: "dma.nvme.without_its_rings_it_is_reset", covers: "", run: |ctx| with(ctx, without_rings) },
    Test { name: "dma.nvme.a_revoked_target_is_refused", covers: "D4", run: |ctx| with(ctx, revoked) },
];

/// A disk and an NVDIMM, or the reason why not.
pub fn with(ctx: &mut Ctx, work: fn(&Disk, &Device) -> Result<(), String>) -> Result<(), String> {
    let Some(disk) = driver::disks().first() else {
        ctx.skip(vtd::why_none().unwrap_or("there is no NVMe disk behind an IOMMU"));
        return Ok(());
    };
    Device::with(ctx, MIB2, |_, device| work(disk, device))
}

/// An error as a line.
pub fn in_words(error: IoError) -> String {
    format!("{error}")
}

/// Pages on the disk, and in the target.
pub fn pages(disk: &Disk, on_disk: u64, nr_pages: u64, in_target: u64) -> Blocks {
    let block = disk.limits().block_bytes;
    Blocks { lba: page(on_disk) / block, count: page(nr_pages) / block, offset: page(in_target) }
}

fn there_and_back(disk: &Disk, device: &Device) -> Result<(), String> {
    check_eq!(disk.name(), "nvme0", "the first disk");
    let owner = Owner::new(device, PAGES)?;
    let region = owner.register(disk.dma())?;
    // 1 page, 2, 3, and what needs a long list.
    for (nth, nr_pages) in [1, 2, 3, 64].into_iter().enumerate() {
        let (mark, half) = (1000 * (nth as u64 + 1), PAGES / 2);
        fill(device, 0, nr_pages, mark);
        clear(device, half, nr_pages + 1);
        let on_disk = 10 + 100 * nth as u64;
        disk.transfer(Direction::Write, &region, pages(disk, on_disk, nr_pages, 0)).map_err(in_words)?;
        disk.flush().map_err(in_words)?;
        disk.transfer(Direction::Read, &region, pages(disk, on_disk, nr_pages, half)).map_err(in_words)?;
        compare(device, half, nr_pages, mark)?;
        // The pages beside them are as they were.
        is_clear(device, half + nr_pages, 0..1)?;
    }
    // What came first is there still.
    disk.transfer(Direction::Read, &region, pages(disk, 10, 1, 4)).map_err(in_words)?;
    compare(device, 4, 1, 1000)
}

/// Single blocks, and ranges that begin and end inside pages.
fn shapes(disk: &Disk, device: &Device) -> Result<(), String> {
    let owner = Owner::new(device, PAGES)?;
    let region = owner.register(disk.dma())?;
    let Limits { block_bytes, nr_blocks, max_transfer_bytes } = disk.limits();
    fill(device, 0, 4, 50);
    let words = block_bytes as usize / 8;
    // The last block of the disk, from the second half of a page into the middle of another.
    let last = |offset| Blocks { lba: nr_blocks - 1, count: 1, offset };
    clear(device, 8, 3);
    disk.transfer(Direction::Write, &region, last(page(1) - block_bytes)).map_err(in_words)?;
    disk.transfer(Direction::Read, &region, last(page(8) + 64)).map_err(in_words)?;
    compare_words(device, 8, 8..8 + words, (50, 512 - words))?;
    is_clear(device, 8, 0..8)?;
    is_clear(device, 8, 8 + words..512)?;
    // Two pages' worth that touch three.
    let across = |offset| Blocks { lba: 4096, count: 2 * 4096 / block_bytes, offset };
    disk.transfer(Direction::Write, &region, across(0)).map_err(in_words)?;
    clear(device, 8, 3);
    disk.transfer(Direction::Read, &region, across(page(8) + 64)).map_err(in_words)?;
    compare_words(device, 8, 8..512, (50, 0))?;
    compare_words(device, 9, 0..8, (50, 504))?;
    compare_words(device, 9, 8..512, (51, 0))?;
    compare_words(device, 10, 0..8, (51, 504))?;
    is_clear(device, 10, 8..512)?;
    // As much as one command takes, but for an odd beginning.
    let largest = max_transfer_bytes.min(page(PAGES - 4)) / block_bytes;
    let whole = |offset| Blocks { lba: 0, count: largest, offset };
    fill(device, 0, PAGES, 9000);
    disk.transfer(Direction::Write, &region, whole(0)).map_err(in_words)?;
    disk.transfer(Direction::Read, &region, whole(512)).map_err(in_words)?;
    (0..largest * block_bytes / 4096).try_for_each(|nth| {
        compare_words(device, nth, 64..512, (9000 + nth, 0))?;
        compare_words(device, nth + 1, 0..64, (9000 + nth, 448))
    })
}

fn transient(disk: &Disk, device: &Device) -> Result<(), String> {
    let owner = Owner::new(device, PAGES)?;
    fill(device, 0, 4, 300);
    clear(device, 20, 4);
    let from = owner.pin(disk.dma(), 0, 4)?;
    disk.transfer(Direction::Write, &from, pages(disk, 2000, 4, 0)).map_err(in_words)?;
    drop(from);
    let to = owner.pin(disk.dma(), 20, 4)?;
    disk.transfer(Direction::Read, &to, pages(disk, 2000, 4, 0)).map_err(in_words)?;
    drop(to);
    compare(device, 20, 4, 300)
}

/// As many as there is room for, each its own page.
fn many(disk: &Disk, device: &Device) -> Result<(), String> {
    let owner = Owner::new(device, PAGES)?;
    let region = owner.register(disk.dma())?;
    for round in 0..4 {
        let mark = 7000 + 100 * round;
        fill(device, 0, AT_ONCE, mark);
        clear(device, AT_ONCE, AT_ONCE);
        all_at_once(disk, &region, Direction::Write, 0)?;
        all_at_once(disk, &region, Direction::Read, AT_ONCE)?;
        // In the other order.
        (0..AT_ONCE).try_for_each(|nth| compare(device, AT_ONCE + nth, 1, mark + nth))?;
    }
    Ok(())
}

fn all_at_once(disk: &Disk, region: &DmaRegion, direction: Direction, first: u64) -> Result<(), String> {
    let start = |nth| disk.start(direction, region, pages(disk, 3000 + 2 * nth, 1, first + nth));
    let transfers: Vec<_> = (0..AT_ONCE).map(start).collect::<Result<_, _>>().map_err(in_words)?;
    let more = start(0).err();
    check!(matches!(more, Some(IoError::QueueFull)), "one more: {more:?}");
    transfers.into_iter().rev().try_for_each(driver::Transfer::wait).map_err(in_words)
}

/// Who does not wait takes no slot for ever, and nobody else's answer.
fn nobody_waits(disk: &Disk, device: &Device) -> Result<(), String> {
    let owner = Owner::new(device, PAGES)?;
    let region = owner.register(disk.dma())?;
    fill(device, 0, 1, 80);
    for nth in 0..5 * AT_ONCE {
        let started = disk.start(Direction::Write, &region, pages(disk, 4000, 1, 0));
        match started {
            Ok(transfer) => drop(transfer),
            Err(IoError::QueueFull) => {}
            Err(error) => return Err(in_words(error)),
        }
        clear(device, 1, 1);
        disk.transfer(Direction::Write, &region, pages(disk, 4001, 1, 0)).map_err(in_words)?;
        disk.transfer(Direction::Read, &region, pages(disk, 4001, 1, 1)).map_err(in_words)?;
        compare(device, 1, 1, 80).map_err(|error| format!("round {nth}: {error}"))?;
    }
    all_at_once(disk, &region, Direction::Write, 0)
}

fn what_cannot_be(disk: &Disk, device: &Device) -> Result<(), String> {
    let owner = Owner::new(device, PAGES)?;
    let region = owner.register(disk.dma())?;
    let Limits { nr_blocks, block_bytes, max_transfer_bytes } = disk.limits();
    let (target, most) = (page(PAGES), max_transfer_bytes / block_bytes);
    let resets = disk.resets();
    let cases = [
        (0, 0, 0, "a transfer of no blocks".into()),
        (nr_blocks, 1, 0, format!("blocks {nr_blocks} and 0 more, the disk has {nr_blocks}")),
        (u64::MAX, 2, 0, format!("blocks {} and 1 more, the disk has {nr_blocks}", u64::MAX)),
        (
            0,
            most + 1,
            0,
            format!("{} bytes in one command, at most {max_transfer_bytes} are allowed", (most + 1) * block_bytes),
        ),
        (0, 1, target, format!("{block_bytes} bytes at {target} of a target that has {target}")),
        (0, 1, u64::MAX, format!("{block_bytes} bytes at {} of a target that has {target}", u64::MAX)),
        (0, 1, 2, "offset 2 in the target is no multiple of 4".into()),
    ];
    for (lba, count, offset, line) in cases {
        let error = disk.transfer(Direction::Write, &region, Blocks { lba, count, offset }).err();
        check_eq!(error.map(in_words), Some(line), "{count} blocks from {lba} on, offset {offset}");
    }
    check_eq!(disk.resets(), resets, "resets");
    disk.transfer(Direction::Write, &region, pages(disk, 0, 1, 0)).map_err(in_words)
}

/// The disk does what it did before.
fn works(disk: &Disk, device: &Device, region: &DmaRegion, mark: u64) -> Result<(), String> {
    fill(device, 0, 3, mark);
    clear(device, 3, 3);
    disk.transfer(Direction::Write, region, pages(disk, 5000, 3, 0)).map_err(in_words)?;
    disk.transfer(Direction::Read, region, pages(disk, 5000, 3, 3)).map_err(in_words)?;
    compare(device, 3, 3, mark)
}

/// Completions that cannot be, as a device would write them: one clear line, a reset, and on it goes.
fn nonsense(disk: &Disk, device: &Device) -> Result<(), String> {
    let owner = Owner::new(device, PAGES)?;
    let region = owner.register(disk.dma())?;
    let good = Completion { result: 0, sq_head: 0, sq_id: 1, command: 0, phase: true, status: Status::SUCCESS };
    let cases = [
        (Completion { command: 0xffff, ..good }, "with command id 0xffff, whose slot is not below 16"),
        (Completion { command: 3, ..good }, "of command 0x0003, which is not in flight"),
        (Completion { sq_id: 513, ..good }, "for submission queue 513, expected 1"),
        (Completion { sq_head: 40_000, ..good }, "with submission queue head 40000, and the queue has 32 entries"),
    ];
    for (nth, (entry, line)) in cases.into_iter().enumerate() {
        works(disk, device, &region, 100 * nth as u64)?;
        let resets = disk.resets();
        disk.forge_completion(entry);
        let error = disk.take_completions().err().map(in_words);
        let line = format!("the device wrote a completion {line}; the controller was reset");
        check_eq!(error, Some(line), "what is said of it");
        check_eq!(disk.resets(), resets + 1, "resets");
        works(disk, device, &region, 100 * nth as u64 + 50)?;
    }
    Ok(())
}

/// A command that is not answered in time: all that are in flight fail, and the disk works afterwards.
fn no_answer(disk: &Disk, device: &Device) -> Result<(), String> {
    /// Of which the device hears.
    const HEARD: u64 = AT_ONCE / 2;
    let owner = Owner::new(device, PAGES)?;
    let region = owner.register(disk.dma())?;
    let resets = disk.resets();
    let start = |nth: u64| disk.start(Direction::Read, &region, pages(disk, 6000 + 64 * nth, 64, 64)).map_err(in_words);
    let heard = (0..HEARD).map(start).collect::<Result<Vec<_>, _>>()?;
    disk.hush();
    let mut unheard = (HEARD..AT_ONCE).map(start).collect::<Result<Vec<_>, _>>()?;
    let is_lost = |error: &IoError| matches!(error, IoError::Reset(Failure::NoAnswer(0)));
    let error = unheard.pop().and_then(|last| last.wait_within(0).err());
    check!(error.as_ref().is_some_and(is_lost), "the command: {error:?}");
    let ends: Vec<_> = unheard.into_iter().map(|transfer| transfer.wait().err()).collect();
    check!(ends.iter().all(|end| end.as_ref().is_some_and(is_lost)), "those behind it: {ends:?}");
    // These were answered before, or they were not.
    let ends: Vec<_> = heard.into_iter().filter_map(|transfer| transfer.wait().err()).collect();
    check!(ends.iter().all(is_lost), "those before it: {ends:?}");
    check_eq!(disk.resets(), resets + 1, "resets");
    works(disk, device, &region, 1)
}

/// A disk that does not answer has pages pinned for a transfer: a removal waits for them until the driver gives the transfer
/// up, and for no longer. Nothing lands afterwards.
fn held_until_reset(disk: &Disk, device: &Device) -> Result<(), String> {
    const NR: u64 = 4;
    const ON_DISK: u64 = 7500;
    let (on_disk, in_memory) = (600, 700);
    let owner = Arc::new(Owner::new(device, NR)?);
    let region = owner.register(disk.dma())?;
    fill(device, 0, NR, on_disk);
    disk.transfer(Direction::Write, &region, pages(disk, ON_DISK, NR, 0)).map_err(in_words)?;
    drop(region);
    fill(device, 0, NR, in_memory);
    let resets = disk.resets();
    let (started, waits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (its_owner, says, is_waited_for) = (Arc::clone(&owner), Arc::clone(&started), Arc::clone(&waits));
    let task = spawn_in(here(), &owner.space, move || {
        let disk = driver::disks().first().expect("the disk of this test");
        let pins = its_owner.pin(disk.dma(), 0, NR).expect("pages that are mapped");
        disk.hush();
        let transfer = disk.start(Direction::Read, &pins, pages(disk, ON_DISK, NR, 0)).expect("room in the queue");
        says.store(true, Ordering::Release);
        wait_until(|| is_waited_for.load(Ordering::Acquire));
        // So long it would be waited for, if it were for real: the bound is the driver's.
        match transfer.wait_within(0) {
            Err(IoError::Reset(Failure::NoAnswer(0))) => Ok(()),
            _ => Err(Signal::Killed),
        }
    });
    wait_until(|| started.load(Ordering::Acquire));
    let removed = devices::remove_watched(0, Method::Ranged, &mut |_| waits.store(true, Ordering::Release));
    // Whoever it was that did not wait, the task ends.
    let has_waited = waits.swap(true, Ordering::AcqRel);
    check_eq!(sched::join(&task), Ok(()), "end of the task whose command is not answered");
    let report = removed.map_err(|error| format!("removal: {error}"))?;
    no_problems(&report)?;
    check!(has_waited, "the removal did not say that it waits for the pages of a transfer");
    let pins = report.step(Step::Drain).and_then(|record| record.facts.get("pins_waited_for"));
    check!(pins.is_some_and(|pins| pins > 0), "pins that were waited for: {pins:?}");
    check_eq!(disk.resets(), resets + 1, "resets");
    devices::attach(0).map_err(|error| format!("attach: {error}"))?;
    compare(device, 0, NR, in_memory)?;
    // The command that nobody heard of is not heard of later, either.
    let owner = Owner::new(device, PAGES)?;
    let region = owner.register(disk.dma())?;
    disk.transfer(Direction::Write, &region, pages(disk, ON_DISK + NR, 1, 8)).map_err(in_words)?;
    compare(device, 0, NR, in_memory)
}

/// A controller that cannot reach its own rings says so itself.
fn without_rings(disk: &Disk, device: &Device) -> Result<(), String> {
    let owner = Owner::new(device, PAGES)?;
    let region = owner.register(disk.dma())?;
    works(disk, device, &region, 1)?;
    let resets = disk.resets();
    clear(device, 10, 1);
    disk.break_dma();
    let error = disk.transfer(Direction::Read, &region, pages(disk, 5000, 1, 10)).err();
    check!(matches!(error, Some(IoError::Reset(Failure::Fatal))), "a read without DMA: {error:?}");
    is_clear(device, 10, 0..512)?;
    check_eq!(disk.resets(), resets + 1, "resets");
    works(disk, device, &region, 2)
}

fn revoked(disk: &Disk, device: &Device) -> Result<(), String> {
    let owner = Owner::new(device, PAGES)?;
    let region = owner.register(disk.dma())?;
    works(disk, device, &region, 4)?;
    let report = devices::remove(0, Method::Ranged).map_err(|error| format!("removal: {error}"))?;
    no_problems(&report)?;
    let refused = disk.start(Direction::Read, &region, pages(disk, 5000, 1, 0)).err();
    check!(matches!(refused, Some(IoError::Dma(_))), "a transfer afterwards: {refused:?}");
    Ok(())
}
