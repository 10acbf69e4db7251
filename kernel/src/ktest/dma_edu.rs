//! Tests of the `edu` device: transfers into persistent memory and out of it.

use alloc::format;
use alloc::string::String;
use core::sync::atomic::{AtomicBool, Ordering};

use dax::removal::Method;
use mm::addr::{PageSize, PfnRange};
use mm::machine::Machine;
use mm::region::UseError;
use mm::space::Access;

use crate::io::dma::{DmaError, DmaRegion, DmaTarget};
use crate::io::edu::{self, BUFFER_BYTES, Direction, Edu, EduError, PATIENCE_NS, TRANSFER_NS};
use crate::io::vtd;
use crate::ktest::dma::{Owner, clear, compare, compare_words, fill, is_clear};
use crate::ktest::fixtures::{Device, at, here, no_problems, others, page, run_in};
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::mem::machine::mm;
use crate::pmem::devices;
use crate::task::user;

const MIB2: u64 = PageSize::Size2M.bytes();
/// Pages that are registered.
const PAGES: u64 = 8;
/// Half of the buffer.
const HALF: u64 = BUFFER_BYTES / 2;
const HALF_WORDS: usize = HALF as usize / 8;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test { name: "dma.edu.through_the_buffer_and_back", covers: "D1", run: |ctx| with(ctx, through_and_back) },
    Test { name: "dma.edu.to_and_from_what_a_task_maps", covers: "D1", run: |ctx| with(ctx, what_a_task_maps) },
    Test { name: "dma.edu.a_transfer_ends_after_its_time", covers: "", run: |ctx| with(ctx, ends_after_its_time) },
    Test { name: "dma.edu.what_cannot_be_is_one_error", covers: "", run: |ctx| with(ctx, what_cannot_be) },
    Test { name: "dma.edu.a_revoked_target_is_refused", covers: "D4", run: |ctx| with(ctx, revoked) },
    Test {
        name: "dma.edu.a_target_that_is_revoked_between_two_looks_is_no_success",
        covers: "D4",
        run: |ctx| with(ctx, revoked_between_looks),
    },
];

/// The device and an NVDIMM, or the reason why not.
fn with(ctx: &mut Ctx, work: fn(&Edu, &Device) -> Result<(), String>) -> Result<(), String> {
    let Some(edu) = edu::device() else {
        ctx.skip(vtd::why_none().unwrap_or("there is no edu device behind an IOMMU"));
        return Ok(());
    };
    Device::with(ctx, MIB2, |_, device| work(edu, device))
}

fn in_words(error: EduError) -> String {
    format!("{error}")
}

fn through_and_back(edu: &Edu, device: &Device) -> Result<(), String> {
    let owner = Owner::new(device, PAGES)?;
    let region = owner.register(edu.dma())?;
    fill(device, 0, 2, 7);
    clear(device, 2, 4);
    // Half a page into the lower half of the buffer, and from another page into the upper one.
    edu.transfer(Direction::ToDevice, (&region, 0), 0, HALF).map_err(in_words)?;
    edu.transfer(Direction::ToDevice, (&region, page(1)), HALF, HALF - 8).map_err(in_words)?;
    // Out of it into the middle of a page, and across two.
    edu.transfer(Direction::ToMemory, (&region, page(2) + HALF), 0, HALF).map_err(in_words)?;
    edu.transfer(Direction::ToMemory, (&region, page(4) - HALF / 2), HALF, HALF - 8).map_err(in_words)?;
    is_clear(device, 2, 0..HALF_WORDS)?;
    compare_words(device, 2, HALF_WORDS..2 * HALF_WORDS, (7, 0))?;
    let (half, words) = (HALF_WORDS / 2, 2 * HALF_WORDS);
    is_clear(device, 3, 0..words - half)?;
    compare_words(device, 3, words - half..words, (8, 0))?;
    compare_words(device, 4, 0..half - 1, (8, half))?;
    is_clear(device, 4, half - 1..words)?;
    compare(device, 0, 2, 7)
}

/// What the device writes a task reads by its own mapping, and the other way about.
fn what_a_task_maps(edu: &Edu, device: &Device) -> Result<(), String> {
    let owner = Owner::new(device, PAGES)?;
    let region = owner.register(edu.dma())?;
    clear(device, 0, 2);
    let cpu = others().iter().next().unwrap_or(here());
    let wrote = run_in(cpu, &owner.space, || {
        (0..16).try_for_each(|nth| user::write_u64(at(nth * 8), nth + 100)).map_err(|signal| format!("{signal}"))
    });
    wrote?;
    edu.transfer(Direction::ToDevice, (&region, 0), 64, 128).map_err(in_words)?;
    edu.transfer(Direction::ToMemory, (&region, page(1) + 8), 64, 128).map_err(in_words)?;
    run_in(cpu, &owner.space, || {
        for nth in 0..16 {
            let found = user::read_u64(at(page(1) + 8 + nth * 8)).map_err(|signal| format!("{signal}"))?;
            check_eq!(found, nth + 100, "word {nth} of what the device wrote");
        }
        Ok(())
    })
}

/// Until it ends it has touched nothing, and the device is busy.
fn ends_after_its_time(edu: &Edu, device: &Device) -> Result<(), String> {
    let owner = Owner::new(device, PAGES)?;
    let region = owner.register(edu.dma())?;
    fill(device, 0, 1, 1);
    edu.transfer(Direction::ToDevice, (&region, 0), 0, HALF).map_err(in_words)?;
    clear(device, 1, 1);
    let began_ns = mm().machine.now_ns();
    let transfer = edu.start(Direction::ToMemory, (&region, page(1)), 0, HALF).map_err(in_words)?;
    let second = edu.start(Direction::ToMemory, (&region, page(2)), 0, HALF).err();
    check!(matches!(second, Some(EduError::Busy)), "a second transfer: {second:?}");
    let untouched = is_clear(device, 1, 0..HALF_WORDS);
    // Where the host has taken the CPU away for so long, it is over, and nothing can be said of before.
    if !transfer.is_over() {
        untouched?;
        let late = transfer.wait(0).err();
        check!(matches!(late, Some(EduError::Late(0)) | None), "a wait of no time: {late:?}");
        // Nobody waits for it any more, and the engine goes on.
        let third = edu.start(Direction::ToMemory, (&region, page(2)), 0, HALF).err();
        let may_be_over = late.is_none() || mm().machine.now_ns() - began_ns >= TRANSFER_NS;
        check!(matches!(third, Some(EduError::Busy)) || may_be_over, "a third one: {third:?}");
    } else {
        transfer.wait(0).map_err(in_words)?;
    }
    while edu.is_running() {
        crate::task::sched::sleep_ns(TRANSFER_NS / 10);
    }
    let ns = mm().machine.now_ns() - began_ns;
    // The device counts whole milliseconds.
    check!(ns + 1_000_000 >= TRANSFER_NS, "it ended after {ns} ns");
    compare_words(device, 1, 0..HALF_WORDS, (1, 0))?;
    edu.transfer(Direction::ToMemory, (&region, page(2)), 0, HALF).map_err(in_words)
}

fn what_cannot_be(edu: &Edu, device: &Device) -> Result<(), String> {
    let owner = Owner::new(device, PAGES)?;
    let region = owner.register(edu.dma())?;
    let len = page(PAGES);
    let cases = [
        (0, 0, 0, "0 bytes at 0 of the device's buffer; expected 1 to 4095, below 4095"),
        (0, 0, BUFFER_BYTES, "4096 bytes at 0 of the device's buffer; expected 1 to 4095, below 4095"),
        (0, HALF, HALF, "2048 bytes at 2048 of the device's buffer; expected 1 to 4095, below 4095"),
        (0, u64::MAX, 8, "8 bytes at 18446744073709551615 of the device's buffer; expected 1 to 4095, below 4095"),
        (len - 7, 0, 8, "8 bytes at 32761 of a target that has 32768"),
        (u64::MAX, 0, 8, "8 bytes at 18446744073709551615 of a target that has 32768"),
    ];
    for (offset, at, bytes, line) in cases {
        let error = edu.start(Direction::ToDevice, (&region, offset), at, bytes).err().map(in_words);
        check_eq!(error.as_deref(), Some(line), "{bytes} bytes at {at}, offset {offset}");
    }
    edu.transfer(Direction::ToDevice, (&region, len - 8), 0, 8).map_err(in_words)
}

fn revoked(edu: &Edu, device: &Device) -> Result<(), String> {
    let owner = Owner::new(device, PAGES)?;
    let region = owner.register(edu.dma())?;
    edu.transfer(Direction::ToDevice, (&region, 0), 0, HALF).map_err(in_words)?;
    let report = devices::remove(0, Method::Ranged).map_err(|error| format!("removal: {error}"))?;
    no_problems(&report)?;
    let refused = edu.start(Direction::ToDevice, (&region, 0), 0, HALF).err();
    check!(matches!(refused, Some(EduError::Dma(_))), "a transfer afterwards: {refused:?}");
    Ok(())
}

/// A registration whose memory is removed, and there again, when it is asked for its frames: after the first look at a
/// transfer's end, and before it is asked whether that memory is there.
struct Leaves<'r> {
    region: &'r DmaRegion,
    left: AtomicBool,
}

impl DmaTarget for Leaves<'_> {
    fn iova(&self) -> u64 {
        self.region.iova()
    }
    fn len_bytes(&self) -> u64 {
        self.region.len_bytes()
    }
    fn check(&self, access: Access) -> Result<(), DmaError> {
        self.region.check(access)
    }
    fn frames(&self) -> &[PfnRange] {
        if !self.left.swap(true, Ordering::Relaxed) {
            devices::remove(0, Method::Ranged).expect("the device of this test is there");
            devices::attach(0).expect("it is not in use");
        }
        self.region.frames()
    }
}

/// Between the two looks of a transfer's end there is time for a whole departure and a return, and what is there then is
/// not what the transfer went to.
fn revoked_between_looks(edu: &Edu, device: &Device) -> Result<(), String> {
    let owner = Owner::new(device, PAGES)?;
    let region = owner.register(edu.dma())?;
    let target = Leaves { region: &region, left: AtomicBool::new(false) };
    let transfer = edu.start(Direction::ToDevice, (&target, 0), 0, HALF).map_err(in_words)?;
    let end = transfer.wait(PATIENCE_NS);
    check!(target.left.load(Ordering::Relaxed), "nobody asked for the frames");
    match end {
        Err(EduError::Dma(DmaError::Use(UseError::Revoked { key }))) => check_eq!(key, region.key(), "whose"),
        other => return Err(format!("a transfer whose registration was revoked between the looks: {other:?}")),
    }
    Ok(())
}
