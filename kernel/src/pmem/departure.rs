//! What is done when memory leaves or arrives while the kernel runs. A task of its own does it, which sleeps until somebody
//! wakes it: the timer that watches modules, or an event of the machine.
//!
//! | what is seen | what is done |
//! |---|---|
//! | a module has left without a word | its device is removed, for the cause *gone* |
//! | the host asks for one | an orderly removal, then it may go; or a refusal, where that is the policy |
//! | one was plugged in | notice is taken; its device is attached, as it was when it left |
//! | an NVDIMM was plugged in | the new NFIT is read; what is new in it becomes a device |
//!
//! The order in each, and why: `docs/departure.md`.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use dax::removal::Cause;
use media::probe::What;
use mm::addr::{PAGE_SIZE, PfnRange};
use mm::pagemap::MemoryKind;
use nvdimm::nfit;
use nvdimm::pmem::frames_of;
use spin::{Mutex, Once};

use crate::console::report;
use crate::cpu::time;
use crate::pmem::devices::{self, slots};
use crate::pmem::dimms::{self, Dimm};
use crate::pmem::slots::{self as list, Provider, Slot};
use crate::pmem::{contents, labels, mounts, namespaces, nvdimms};
use crate::task::sched;
use crate::task::tcb::{Exit, Task};
use crate::trap::events;

/// Of the first block of events: a module was plugged in, or is asked for; an NVDIMM was plugged in (QEMU
/// `include/hw/acpi/acpi_dev_interface.h`).
const MODULES: u32 = 1 << 3;
const NVDIMMS: u32 = 1 << 4;

static WORKER: Once<Arc<Task>> = Once::new();
/// Somebody wants everything to be looked at, event or not.
static LOOK_AT_ALL: AtomicBool = AtomicBool::new(false);
/// How each device was used when it left: what for, and whether it was mounted. By slot.
static LEFT_AS: Mutex<Vec<(usize, MemoryKind, bool)>> = Mutex::new(Vec::new());

/// Starts the task, where memory can come or go at all. Called once, when tasks run.
pub fn start() {
    if dimms::all().is_empty() && !labels::can_ask() {
        return;
    }
    WORKER.call_once(|| sched::spawn("hotplug", 0, None, work));
    dimms::wake_by(wake);
    if !events::start(MODULES | NVDIMMS, wake) {
        log::warn!(target: "hotplug", "no interrupt tells of memory that arrives or is asked for: `arrivals` looks");
    }
    // It enables them, and sees to what has come already.
    wake();
}

/// Wakes the task: also from an interrupt handler.
fn wake() {
    if let Some(worker) = WORKER.get() {
        sched::unpark(worker);
    }
}

/// Looks at everything once, whether or not an event has told.
pub fn look_at_all() {
    LOOK_AT_ALL.store(true, Ordering::Release);
    wake();
}

fn work() -> Exit {
    loop {
        let told = events::take();
        let all = LOOK_AT_ALL.swap(false, Ordering::Acquire);
        for dimm in dimms::all() {
            look(dimm);
        }
        if all || told & NVDIMMS != 0 {
            new_nvdimms();
        }
        // What has come since it was taken interrupts at once.
        events::enable();
        sched::park();
    }
}

/// Deals with what is to be seen of one slot.
fn look(dimm: &'static Dimm) {
    if dimm.has_left() {
        gone(dimm);
    }
    let status = dimm.place.status();
    if dimm.place.current().is_none() {
        if status.enabled {
            arrived(dimm);
        }
    } else if status.asked_for {
        asked_for(dimm);
    }
}

/// The slot whose module this is, by its number; there may be several whose module was in there at some time.
fn slot_of(dimm: &Dimm) -> Option<usize> {
    let is_it = |slot: &Slot| slot.dimm().is_some_and(|other| core::ptr::eq(other, dimm));
    let of_this = || slots().iter().enumerate().filter(|(_, slot)| is_it(slot));
    let attached = of_this().find(|&(at, _)| devices::not_attached(at).is_err());
    attached.or_else(|| of_this().last()).map(|(at, _)| at)
}

/// Remembers how the device is used, for when it comes back.
fn remember(at: usize) {
    let Ok(kind) = devices::kind_in_use(at) else { return };
    let mounted = mounts::get(at).is_ok();
    let mut left = LEFT_AS.lock();
    left.retain(|&(other, ..)| other != at);
    left.push((at, kind, mounted));
}

fn forget(at: usize) {
    LEFT_AS.lock().retain(|&(other, ..)| other != at);
}

/// The module has left without a word.
fn gone(dimm: &'static Dimm) {
    let Some(at) = slot_of(dimm) else {
        dimm.end_stay();
        return;
    };
    let (slot, name) = (dimm.place.slot(), &slots()[at].name);
    log::warn!(target: "hotplug", "{name}: the module has left slot {slot} without a word");
    remember(at);
    let removed = devices::remove_because(at, Cause::Gone);
    if let Err(error) = &removed {
        log::info!(target: "hotplug", "{name}: {error}: nothing is to be removed");
    }
    // Only now, so that whoever has begun to attach it meanwhile has found that it is not there.
    let noticed_ns = dimm.end_stay();
    departed(at, slot, Cause::Gone, noticed_ns, removed.is_ok());
}

/// Says that a device has departed: how long after the notice no CPU had a translation of it any more, and all was done.
fn departed(at: usize, slot: u32, cause: Cause, noticed_ns: u64, removed: bool) {
    let (device, since) = (&slots()[at], |ns: u64| ns.saturating_sub(noticed_ns));
    let unreachable_ns = if removed { since(device.shot_down_ns.load(Ordering::Relaxed)) } else { 0 };
    report!(
        "departed device={} slot={slot} cause={cause} noticed_ns={noticed_ns} unreachable_after_ns={unreachable_ns} \
         done_after_ns={}",
        device.name,
        since(time::since_first_line_ns())
    );
}

/// The host asks for the module.
fn asked_for(dimm: &'static Dimm) {
    let noticed_ns = time::since_first_line_ns();
    let (slot, hotplug) = (dimm.place.slot(), dimm.place.hotplug());
    let at = slot_of(dimm);
    let name = at.map_or("a module that is not used", |at| &slots()[at].name);
    if dimm.keep.load(Ordering::Relaxed) {
        log::info!(target: "hotplug", "{name}: the host asks for slot {slot}, and the policy is to keep it");
        report!("departure device={} slot={slot} answer=refused", at.map_or("none", |at| &slots()[at].name));
        hotplug.refuse(slot);
        return;
    }
    log::info!(target: "hotplug", "{name}: the host asks for slot {slot}");
    report!("departure device={} slot={slot} answer=accepted", at.map_or("none", |at| &slots()[at].name));
    hotplug.take_request(slot);
    let removed = at.is_some_and(|at| {
        remember(at);
        devices::remove_because(at, Cause::Announced).is_ok()
    });
    // Nobody is told from here on that it is there: it may go.
    dimm.end_stay();
    if !hotplug.eject(slot) {
        log::error!(target: "hotplug", "{name}: slot {slot} does not let its module go");
        dimm.place.begin();
        return;
    }
    if let Some(at) = at {
        departed(at, slot, Cause::Announced, noticed_ns, removed);
    }
}

/// A module was plugged in.
fn arrived(dimm: &'static Dimm) {
    let Some(module) = dimm.place.begin() else { return };
    let Some(frames) = dimms::usable(dimm, &module) else { return };
    let is_it = |slot: &Slot| slot.frames == frames && slot.dimm().is_some_and(|other| core::ptr::eq(other, dimm));
    let known = slots().iter().position(is_it);
    let new = || dimms::slot_of(list::driver(), slots(), frames, dimm).and_then(list::add);
    if let Some(at) = known.or_else(new) {
        bring_up(at, known.is_some());
    }
}

/// Attaches a device that has arrived: one that was here before as it was used then, and mounted if it was.
fn bring_up(at: usize, is_back: bool) {
    let slot = &slots()[at];
    let left = LEFT_AS.lock().iter().find(|&&(other, ..)| other == at).copied();
    forget(at);
    let (kind, mount) = match left {
        Some((_, kind, mounted)) => (kind, mounted),
        // It was not attached when it left: nor is it now.
        None if is_back => return say_arrived(slot, None, false),
        None => (usual_kind(at), false),
    };
    if let Err(error) = devices::attach_as(at, kind) {
        log::error!(target: "hotplug", "{}: has arrived, and is not attached: {error}", slot.name);
        return say_arrived(slot, None, false);
    }
    contents::report(at);
    let mounted = mount && {
        let mounted = mounts::mount(at);
        if let Err(error) = &mounted {
            log::error!(target: "hotplug", "{}: was mounted when it left, and is not: {error}", slot.name);
        }
        mounted.is_ok()
    };
    say_arrived(slot, Some(kind), mounted);
}

/// What a device is for that was never seen before: what lies on it says so, if it is a file system of ours.
fn usual_kind(at: usize) -> MemoryKind {
    let ours = contents::found(at).is_ok_and(|found| found.iter().any(|found| found.what == What::OurFileSystem));
    let allowed = slots()[at].allows(MemoryKind::FsDax).is_ok();
    if ours && allowed { MemoryKind::FsDax } else { slots()[at].kind() }
}

fn say_arrived(slot: &Slot, kind: Option<MemoryKind>, mounted: bool) {
    let size = slot.frames.nr_pages() * PAGE_SIZE;
    let kind = kind.map_or("none", MemoryKind::name);
    log::info!(target: "hotplug", "{}: has arrived", slot.name);
    report!(
        "arrived device={} provider={} base={} size={size} kind={kind} mounted={}",
        slot.name,
        slot.provider(),
        slot.frames.start().addr(),
        u8::from(mounted)
    );
}

/// NVDIMMs may have been plugged in: what the new NFIT has, and no slot, becomes a device.
fn new_nvdimms() {
    let body = match labels::read_nfit() {
        Ok(Some(body)) => body,
        Ok(None) => return,
        Err(why) => return log::error!(target: "nfit", "the new NFIT cannot be read: {why}"),
    };
    let table = nfit::table_of(&body);
    let has = |frames: PfnRange| slots().iter().any(|slot| slot.frames.overlaps(frames));
    let is_new = |range: &nfit::PersistentRange| frames_of(range).is_some_and(|frames| !has(frames));
    let nfit = nvdimms::find_again(&table, devices::limits(), &is_new);
    let ranges = namespaces::ranges_if(&nfit, &is_new);
    let first = slots().iter().filter_map(|slot| slot.region).max().map_or(0, |last| last + 1);
    for given in namespaces::split(list::driver(), first, ranges) {
        if let Some(at) = list::add(Slot::new(given, Provider::Nvdimm)) {
            bring_up(at, false);
        }
    }
}
