//! The probe on the real device: what it sees, what it refuses, and what it costs.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use media::probe::{What, probe};
use nvdimm::pmem::block::SECTOR_BYTES;
use spin::Once;

use crate::cpu::time;
use crate::ktest::fixtures::{Device, other_cpu, wait_until};
use crate::ktest::test::{Ctx, Test, check_eq};
use crate::pmem::contents::{self, Over};
use crate::pmem::{bytes, devices};
use crate::task::sched;

/// What a probe may cost more than an attach without one, in instructions, whatever the device's size.
const PROBE: u64 = 6_000;

/// The tests of this area.
pub const TESTS: &[Test] = &[
    Test { name: "media.probe.costs_no_more_than_its_bound", covers: "M1", run: costs },
    Test {
        name: "media.bytes.two_writers_of_one_sector",
        covers: "",
        run: |ctx| Device::with(ctx, 1 << 20, two_writers),
    },
    Test { name: "media.refusal.names_what_is_there", covers: "M1", run: refuses },
];

/// Sets the sectors that are looked at to zero, but for `text` at byte `offset`.
fn put(device: &Device, offset: u64, text: &[u8]) -> Result<(), String> {
    let block = devices::block(0).map_err(|error| format!("{error}"))?;
    let write = |at: u64, bytes: &[u8]| block.write(at, bytes).map_err(|error| format!("sector {at}: {error}"));
    let sectors = device.size_bytes() / SECTOR_BYTES;
    let page = [0; 4096];
    for first in [0, 8, 128, sectors - 128, sectors - 64, sectors - 8] {
        write(first, &page)?;
    }
    let step = sectors / media::probe::SAMPLES / 8 * 8;
    (0..media::probe::SAMPLES).try_for_each(|nth| write(nth * step, &page))?;
    let mut sector = [0; SECTOR_BYTES as usize];
    sector[(offset % SECTOR_BYTES) as usize..][..text.len()].copy_from_slice(text);
    write(offset / SECTOR_BYTES, &sector)
}

fn costs(ctx: &mut Ctx) -> Result<(), String> {
    Device::with(ctx, 1 << 20, |ctx, device| {
        put(device, 0, &[])?;
        let block = devices::block(0).map_err(|error| format!("{error}"))?;
        let (mut cost, mut findings) = (u64::MAX, media::probe::Findings::default());
        // The least of some: in between the timer may come.
        for _ in 0..4 {
            let start = time::cost();
            findings = block.look(|medium| probe(medium)).map_err(|error| format!("{error}"))?;
            cost = cost.min(time::cost() - start);
        }
        ctx.note(format_args!("a probe of {} MiB: {cost} {}", device.size_bytes() >> 20, time::cost_unit()));
        if !findings.is_empty() {
            return Err(format!("on a device of zeroes: {findings}"));
        }
        if !time::is_deterministic() {
            ctx.skip("costs are counted in deterministic mode");
        } else if cost > PROBE {
            return Err(format!("{cost} instructions, more than {PROBE}"));
        }
        Ok(())
    })
}

/// Bytes beside those that are written stay, also where somebody else writes them meanwhile: a long write begins in the sector
/// in which short ones end.
fn two_writers(ctx: &mut Ctx, _: &Device) -> Result<(), String> {
    const ROUNDS: u64 = 50;
    let Some(cpu) = other_cpu(ctx) else { return Ok(()) };
    let (is_over, answer) = (Arc::new(AtomicBool::new(false)), Arc::new(Once::new()));
    let (until, answer_to) = (Arc::clone(&is_over), Arc::clone(&answer));
    let written = Arc::new(AtomicU64::new(0));
    let written_to = Arc::clone(&written);
    let other = sched::spawn("long", cpu, None, move || {
        let long = vec![1; 48 << 10];
        answer_to.call_once(|| {
            while !until.load(Ordering::Acquire) {
                bytes::write(0, 8, &long)?;
                written_to.fetch_add(1, Ordering::Release);
            }
            Ok::<_, String>(())
        });
        Ok(())
    });
    wait_until(|| written.load(Ordering::Acquire) > 0);
    let short = (1..=ROUNDS).try_for_each(|round| {
        bytes::write(0, 0, &round.to_le_bytes())?;
        let so_far = written.load(Ordering::Acquire);
        wait_until(|| written.load(Ordering::Acquire) > so_far);
        let found = bytes::read(0, 0, 8)?;
        if found == round.to_le_bytes() { Ok(()) } else { Err(format!("in round {round} there is {found:?}")) }
    });
    is_over.store(true, Ordering::Release);
    check_eq!(sched::join(&other), Ok(()), "end of the other task");
    short.and(answer.get().cloned().unwrap_or_else(|| Err("no answer".into())))
}

fn refuses(ctx: &mut Ctx) -> Result<(), String> {
    Device::with(ctx, 1 << 20, |_, device| {
        let last = device.size_bytes() - 4096;
        for (offset, text, what, bytes_are_free) in [
            (0, &b"XFSB"[..], What::Xfs, false),
            (0, b"UPSB", What::OurFileSystem, true),
            (last, b"BTT_ARENA_INFO\0\0", What::Info("BTT", true), false),
            (100, b"x", What::Data, true),
        ] {
            put(device, offset, text)?;
            let found = contents::found(0)?;
            if found.iter().all(|found| found.what != what) {
                return Err(format!("{what:?}: {found}"));
            }
            let refused = contents::ask(0, Over::Everything, false).err().unwrap_or_default();
            if !refused.contains("pmem0 holds") || contents::ask(0, Over::Everything, true).is_err() {
                return Err(format!("{what:?}: {refused:?}"));
            }
            if contents::ask(0, Over::Bytes, false).is_ok() != bytes_are_free {
                return Err(format!("{what:?}: bytes that are named"));
            }
        }
        put(device, 0, &[])?;
        contents::ask(0, Over::Everything, false)
    })
}
