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
use core::sync::atomic::{AtomicBool, Ordering};

use dax::removal::Cause;
use dax::slot::SlotError;
use media::probe::What;
use mm::addr::{PAGE_SIZE, PfnRange};
use mm::pagemap::MemoryKind;
use nvdimm::hotplug::{Ejected, Status};
use nvdimm::nfit;
use nvdimm::pmem::frames_of;
use spin::Once;

use crate::console::report;
use crate::cpu::time;
use crate::pmem::devices::{self, DeviceError, slots};
use crate::pmem::dimms::{self, Dimm};
use crate::pmem::slots::{self as list, LeftAs, Provider, Slot};
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

/// Deals with what is to be seen of one slot: all of it, for no other event may come.
fn look(dimm: &'static Dimm) {
    if dimm.has_left() {
        gone(dimm);
    }
    if dimm.has_new(dimm.place.status()) {
        arrived(dimm);
    }
    // What has just arrived may be asked for already.
    match dimm.place.status() {
        Status { asked_for: true, enabled: true, .. } => asked_for(dimm),
        // It has left, and the next one is not meant.
        Status { asked_for: true, enabled: false, .. } => dimm.place.hotplug().drop_request(dimm.place.slot()),
        _ => {}
    }
}

/// The slot of the module whose stay that is, by its number. Others may be of modules that were in there at some time.
fn slot_of(dimm: &Dimm) -> Option<usize> {
    let stay = dimm.place.current()?;
    let is_it = |slot: &Slot| slot.dimm().is_some_and(|other| core::ptr::eq(other, dimm)) && stay.is_of(slot.frames);
    slots().iter().position(is_it)
}

/// Remembers how the device is used, for when it comes back.
fn remember(at: usize) {
    let Ok(kind) = devices::kind_in_use(at) else { return };
    let mounted = mounts::get(at).is_ok();
    let mut left = slots()[at].left_as.lock();
    // It may leave again before it was mounted again.
    let not_yet = left.is_some_and(|left| left.kind == kind && left.mounted);
    *left = Some(LeftAs { kind, mounted: mounted || not_yet });
}

/// Removes the device of slot `at`; a removal of somebody else's that is under way is waited for. Says whether there was one.
/// Nothing is attached there then, or it was attached since.
fn take_away(at: usize, cause: Cause) -> bool {
    let mut was_removed = false;
    loop {
        match devices::remove_because(at, cause) {
            Ok(_) => return true,
            // Its translations go meanwhile, and not before may the module.
            Err(DeviceError::DeviceSlot(SlotError::Removing)) => {
                was_removed = true;
                devices::wait_for_removal(at);
            }
            Err(_) => return was_removed,
        }
    }
}

/// The module has left without a word.
fn gone(dimm: &'static Dimm) {
    let Some(at) = slot_of(dimm) else {
        dimm.end_stay();
        return;
    };
    remember(at);
    // First, and nothing is said before: until then there are translations of what is not there.
    let removed = take_away(at, Cause::Gone);
    // Only now, so that whoever has begun to attach it meanwhile has found that it is not there.
    left(dimm, at, dimm.end_stay(), removed);
}

/// Says that a module has left without a word, and that its device is no more.
fn left(dimm: &Dimm, at: usize, noticed_ns: u64, removed: bool) {
    let (slot, name) = (dimm.place.slot(), &slots()[at].name);
    log::warn!(target: "hotplug", "{name}: the module has left slot {slot} without a word");
    if !removed {
        log::info!(target: "hotplug", "{name}: no device was attached");
    }
    departed(at, slot, Cause::Gone, noticed_ns, removed);
}

/// Says that a device has departed: how long after the notice no CPU had a translation of it any more, and all was done.
fn departed(at: usize, slot: u32, cause: Cause, noticed_ns: u64, removed: bool) {
    let (device, since) = (&slots()[at], |ns: u64| ns.saturating_sub(noticed_ns));
    let unreachable_ns = if removed { since(device.shot_down_ns()) } else { 0 };
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
    let device = at.map_or("none", |at| &slots()[at].name);
    if dimm.keep.load(Ordering::Relaxed) {
        log::info!(target: "hotplug", "{name}: the host asks for slot {slot}, and the policy is to keep it");
        report!("departure device={device} slot={slot} answer=refused");
        hotplug.refuse(slot);
        return;
    }
    log::info!(target: "hotplug", "{name}: the host asks for slot {slot}");
    report!("departure device={device} slot={slot} answer=accepted");
    hotplug.take_request(slot);
    at.into_iter().for_each(remember);
    let mut removed = at.is_some_and(|at| take_away(at, Cause::Announced));
    // It was watched until then: it may have left without a word in the middle of an orderly removal.
    let has_left = dimm.has_left();
    // Nobody is told from here on that it is there: it may go.
    let ended_ns = dimm.end_stay();
    // Nobody can attach it any more; who has done so before that must not keep a translation.
    removed |= at.is_some_and(|at| take_away(at, Cause::Gone));
    // What is there by now may be another one, which is not ours to let go.
    let ejected = if has_left { Ejected::HadLeft } else { hotplug.eject_known(slot) };
    match (ejected, at) {
        (Ejected::Went, Some(at)) => departed(at, slot, Cause::Announced, noticed_ns, removed),
        (Ejected::HadLeft, Some(at)) => left(dimm, at, ended_ns, removed),
        (Ejected::Went | Ejected::HadLeft, None) => {}
        (Ejected::Stays, _) => {
            log::error!(target: "hotplug", "{name}: slot {slot} does not let its module go");
            if at.is_some() {
                dimm.begin_stay();
            }
        }
    }
}

/// A module was plugged in.
fn arrived(dimm: &'static Dimm) {
    let Some(module) = dimm.begin_stay() else { return };
    match dimms::usable(dimm, &module).and_then(|frames| place_for(dimm, frames)) {
        Some((at, is_back)) => {
            if !is_back {
                dimms::say(&slots()[at]);
            }
            bring_up(at, is_back);
        }
        None => dimm.leave_unused(),
    }
    dimm.arrived();
}

/// The slot for a module at these frames: that which it had, if it was there before, or a new one. Says which. `None`: somebody
/// else has the frames, or there is no room for more.
fn place_for(dimm: &'static Dimm, frames: PfnRange) -> Option<(usize, bool)> {
    let known = slot_of(dimm);
    let itself = known.map(|at| &slots()[at]);
    let other = list::in_the_way(frames, itself);
    if !dimms::is_free(other, dimm) {
        return None;
    }
    let new = || list::add(dimms::slot_of(list::driver(), slots(), frames, dimm));
    known.map(|at| (at, true)).or_else(|| new().map(|at| (at, false)))
}

/// Attaches a device that has arrived: one that was here before as it was used then, and mounted if it was.
fn bring_up(at: usize, is_back: bool) {
    let slot = &slots()[at];
    let left = *slot.left_as.lock();
    let (kind, mount) = match left {
        Some(LeftAs { kind, mounted }) => (kind, mounted),
        // It was not attached when it left: nor is it now.
        None if is_back => return say_arrived(slot, None, false),
        None => (usual_kind(at), false),
    };
    if let Err(error) = devices::attach_as(at, kind) {
        log::error!(target: "hotplug", "{}: has arrived, and is not attached: {error}", slot.name);
        return say_arrived(slot, None, false);
    }
    contents::report(at);
    let mounted = mount.then(|| mounts::mount(at));
    if let Some(Err(error)) = &mounted {
        log::error!(target: "hotplug", "{}: was mounted when it left, and is not: {error}", slot.name);
    }
    // Only what has become as it was is forgotten: another time it may.
    if !matches!(mounted, Some(Err(_))) {
        list::forget_use(at);
    }
    let mounted = matches!(mounted, Some(Ok(_)));
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
    // What has left has its addresses no more.
    let is_free = |frames: PfnRange| list::in_the_way(frames, None).is_none();
    let is_new = |range: &nfit::PersistentRange| frames_of(range).is_some_and(is_free);
    let nfit = nvdimms::find_again(&table, devices::limits(), &is_new);
    let ranges = namespaces::ranges_if(&nfit, &is_new);
    let first = slots().iter().filter_map(|slot| slot.region).max().map_or(0, |last| last + 1);
    for given in namespaces::split(list::driver(), first, ranges) {
        if let Some(at) = list::add(Slot::new(given, Provider::Nvdimm)) {
            bring_up(at, false);
        }
    }
}
