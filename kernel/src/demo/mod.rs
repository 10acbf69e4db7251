//! The demonstration: a device is used from every CPU, pulled out under that load by range, attached again, and pulled
//! out frame by frame. What each cost is put side by side. Then it is used without a load: every step is made to fail
//! once, sectors are written, a page is lost. It comes back with a file system, and is pulled out from under that. At last
//! memory modules leave without a word, with files on the one and devices that transfer to the other.
//! May import: cpu, console, mem, task, trap, io, pmem, ktest.

mod books;
mod desk;
mod files;
mod gate;
mod host_request;
mod load;
mod outcome;
mod page;
mod verdict;

use alloc::format;
use alloc::string::String;
use core::sync::atomic::Ordering;

use dax::removal::{Method, RemovalReport};
use mm::addr::{PAGE_SHIFT, PfnRange};

use self::books::{Books, Removed};
use self::load::Load;
use self::verdict::{Acts, Round, Verdict};
use crate::console::{self, report};
use crate::cpu::percpu;
use crate::pmem::devices;
use crate::task::sched;

/// Frames that the per-frame baseline covers, from the beginning of the pages that every CPU maps with 4 KiB leaves.
/// Each costs a shootdown, and each shootdown waits until the host runs every CPU: so many end within a second where
/// four CPUs share two of the host's. How many it is, is printed.
const BASELINE_FRAMES: u64 = 64;
const _: () = assert!(BASELINE_FRAMES << PAGE_SHIFT <= load::SMALL_BYTES);

/// What whoever starts a demonstration has promised.
#[derive(Clone, Copy, Debug, Default)]
pub struct Promised {
    /// Grants what is asked for within so many seconds; 0: never. See [`host_request`].
    pub host_requests_s: u64,
    /// Sends the end of a line before each act, which waits for it.
    pub steps: bool,
}

/// Runs the demonstration; answers whether the verdict is good.
pub fn run(promised: Promised) -> bool {
    let verdict = match rounds(promised) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::bad(reason),
    };
    verdict.print();
    verdict.is_good()
}

fn rounds(promised: Promised) -> Result<Verdict, String> {
    let Promised { host_requests_s, steps } = promised;
    let slots = devices::slots();
    let Some(slot) = slots.first() else {
        log::info!("no NVDIMM was found: there is nothing to pull out (start with --pmem 1G)");
        return Err("no-nvdimm".into());
    };
    log::info!("{} CPUs, {} NVDIMMs; {} is the one that will go", percpu::online().len(), slots.len(), slot.name);
    devices::check_writable(0)?;
    let before = Books::now();
    // Further devices stay where they are, and the bystanders use them.
    for (at, slot) in slots.iter().enumerate().skip(1).filter(|(_, slot)| slot.dimm().is_none()) {
        if let Err(error) = devices::attach(at) {
            log::warn!("{}: {error}; it is left out", slot.name);
        }
    }
    act(1, "by_range", steps);
    let ranged = round(Method::Ranged)?;
    outcome::tell_round("ranged", &ranged);
    let nr_frames = BASELINE_FRAMES.min(slot.frames.nr_pages());
    let frames = PfnRange::new(slot.frames.start(), nr_frames).ok_or("a device without frames")?;
    log::info!(
        "the per-frame baseline covers {nr_frames} of {} frames; the rest goes by range",
        slot.frames.nr_pages()
    );
    act(2, "per_frame", steps);
    let per_frame = round(Method::PerFrame(frames))?;
    outcome::tell_round("per-frame", &per_frame);
    act(3, "page", steps);
    let page = page::run(host_requests_s)?;
    outcome::tell_page(&page);
    act(4, "files", steps);
    let files = files::run()?;
    outcome::tell_files("files", &files);
    for at in (1..slots.len()).filter(|&at| devices::block(at).is_ok()) {
        let report = devices::remove(at, Method::Ranged).map_err(|error| format!("{error}"))?;
        books::was_well(&report)?;
    }
    act(5, "lent", steps);
    let lent = page::lent()?;
    act(6, "desk", steps);
    let desk = desk::run(host_requests_s)?;
    desk.iter().for_each(outcome::tell_desk);
    let acts = Acts { page, files, lent, desk };
    Ok(Verdict::new(slot.frames, ranged, per_frame, &acts, (&before, &Books::now())))
}

/// Says which act begins, for whoever waits for the end; before that, if it stops at each, waits to be told to go on.
fn act(number: usize, name: &str, steps: bool) {
    const ACTS: usize = 6;
    if steps {
        report!("next n={number} of={ACTS} name={name}");
        wait_for_the_end_of_a_line();
    }
    report!("act n={number} of={ACTS} name={name}");
}

/// Reads the serial console up to the end of a line.
fn wait_for_the_end_of_a_line() {
    const POLL_NS: u64 = 2_000_000;
    loop {
        match console::try_read() {
            Some(b'\r' | b'\n') => return,
            Some(_) => {}
            None => sched::sleep_ns(POLL_NS),
        }
    }
}

/// One round: attach, load, remove under load, see who ended and who went on.
fn round(method: Method) -> Result<Round, String> {
    devices::attach(0).map_err(|error| format!("{error}"))?;
    let load = Load::start()?;
    load.warm_up();
    let counters = &load.counters;
    log::info!(
        "under load: {} tasks use the device, {} do not; {} pages pinned, {} accesses, {} mappings so far",
        load.users.len(),
        load.bystanders.len(),
        counters.pins.load(Ordering::Relaxed),
        counters.accesses.load(Ordering::Relaxed),
        counters.maps.load(Ordering::Relaxed),
    );
    let all_use_it = gate::none_has_ended(load.users.iter());
    let report = devices::remove(0, method).map_err(|error| format!("{error}"))?;
    let ended_by_sigbus = load.join_users();
    load.wait_for_bystanders(100 * load.bystanders.len() as u64);
    let went_on = load.stop();
    print_users(&report);
    // Only now, when nobody is at it any more.
    all_use_it?;
    Ok(Round {
        removed: Removed::from(&*report),
        users: load.users.len(),
        ended_by_sigbus,
        bystanders: load.bystanders.len(),
        went_on,
        pins: load.counters.pins.load(Ordering::Relaxed),
        wrong_stamps: load.counters.wrong_stamps.load(Ordering::Relaxed),
    })
}

fn print_users(report: &RemovalReport) {
    for (step, problem) in report.problems() {
        log::warn!("{}: step {step}: {problem}", report.device);
    }
    log::info!(
        "{}: gone; {} mappings in {} address spaces were taken away, {} folios with {} pins were waited for",
        report.device,
        report.users.len(),
        report.nr_spaces(),
        report.drained.found.folios,
        report.drained.found.pins,
    );
}
