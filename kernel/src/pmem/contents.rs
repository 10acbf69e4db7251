//! What lies on a device, and who may write over it.
//!
//! Whoever would write over all of a device, or over a part of it that somebody else may need, asks here first. The answer
//! is one line with what was found; `force`, a word in the shell and a boot option, goes on. For who asks for every device
//! at once, what the demonstration, the tests or the benchmarks of this boot have left behind is nobody's; who asks for one
//! is told of it.

use alloc::format;
use alloc::string::String;
use core::sync::atomic::{AtomicU64, Ordering};

use media::Medium;
use media::namespace::Mode;
use media::probe::{Findings, What, first_data, probe};
use nvdimm::pmem::area::AREA_BYTES;
use nvdimm::pmem::block::SECTOR_BYTES;

use crate::bringup::options;
use crate::pmem::devices;
use crate::pmem::slots::{Slot, slots};

/// How much is written over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// All of it, or what makes the rest worthless: nothing may lie there.
    Everything,
    /// The last bytes, for the device's own area: nothing may lie there, least of all in those bytes.
    Area,
    /// Bytes that were named: what is not known, or ours, is their owner's affair.
    Bytes,
}

/// Slots whose contents are of a run of this boot, one bit each.
static LEFT_BEHIND: AtomicU64 = AtomicU64::new(0);

fn bit(at: usize) -> u64 {
    1_u64.checked_shl(at as u32).unwrap_or(0)
}

/// Somebody uses slot `at` by hand: from here on what lies there is his.
pub fn in_hand(at: usize) {
    LEFT_BEHIND.fetch_and(!bit(at), Ordering::Relaxed);
}

/// Shows `work` the bytes of slot `at`: through its sectors where it is attached, else through a mapping of its own.
///
/// # Errors
/// One clear line.
pub fn look<R>(at: usize, work: impl FnOnce(&dyn Medium) -> R) -> Result<R, String> {
    match devices::block(at) {
        Ok(block) => block.look(work).map_err(|error| format!("{error}")),
        Err(_) => {
            let slot = devices::slot(at).map_err(|error| format!("{error}"))?;
            slot.driver().look(&slot.name, slot.frames, work).map_err(|error| format!("{error}"))
        }
    }
}

/// What the labels make of a slot: a namespace, or a range of whose labels none is believed.
fn named(slot: &Slot) -> Option<What> {
    let namespace = slot.namespace.as_ref()?;
    Some(if namespace.label.is_some() { What::Namespace(namespace.mode()) } else { What::Labels })
}

/// What lies in slot `at`. A namespace that is not for a file system is something by itself: its bytes are of a kind that
/// only their owner knows.
///
/// # Errors
/// It cannot be looked at.
pub fn found(at: usize) -> Result<Findings, String> {
    let mut findings = Findings::default();
    let slot = slots().get(at);
    if let Some(what) = slot.and_then(named).filter(|what| *what != What::Namespace(Mode::FsDax)) {
        findings.add(what, 0);
    }
    look(at, |medium| probe(medium))?.iter().for_each(|found| findings.add(found.what, found.at));
    // An attached device does not have its own area among its sectors.
    if let Some(block) = devices::block(at).ok().filter(|block| block.area().is_some()) {
        findings.add(What::OurList, block.nr_sectors() * SECTOR_BYTES);
    }
    Ok(findings)
}

/// Refuses where slot `at` is a namespace that nobody uses.
///
/// # Errors
/// One line with the reason.
pub fn not_left_alone(at: usize) -> Result<(), String> {
    match slots().get(at).and_then(|slot| Some((slot, slot.left_alone()?))) {
        Some((slot, why)) => Err(format!("{}: {why}", slot.name)),
        None => Ok(()),
    }
}

/// Refuses to write over what lies in slot `at`, unless `force` is said here or among the boot options.
///
/// # Errors
/// One line with what was found; or the memory takes no writes, or is a namespace that is left alone, `force` or not.
pub fn ask(at: usize, over: Over, force: bool) -> Result<(), String> {
    devices::check_writable(at)?;
    not_left_alone(at)?;
    if force || options::get().force {
        return Ok(());
    }
    let mut findings = found(at)?;
    if over == Over::Area
        && findings.is_empty()
        && let Some(found) = look(at, |medium| {
            let end = medium.len_bytes();
            first_data(medium, end.saturating_sub(AREA_BYTES), end)
        })?
    {
        findings.add(found.what, found.at);
    }
    let free = if over == Over::Bytes { !findings.has_foreign() } else { findings.is_empty() };
    if free { Ok(()) } else { Err(refusal(at, &findings)) }
}

fn refusal(at: usize, findings: &Findings) -> String {
    let name = slots().get(at).map_or("", |slot| &slot.name);
    format!("{name} holds {findings}: nothing was written (force writes over it)")
}

/// The same for every slot, on behalf of the demonstration, the tests or the benchmarks, which use all of them; and
/// namespaces are not for them. What they leave behind is theirs until somebody attaches it by hand.
///
/// # Errors
/// One line with what was found, or with why a device cannot be looked at.
pub fn ask_for_all(force: bool) -> Result<(), String> {
    let all = || slots().iter().enumerate();
    let theirs = |at| LEFT_BEHIND.load(Ordering::Relaxed) & bit(at) != 0;
    if !force && !options::get().force {
        // Nothing is written to what takes no writes, nor to what is not there.
        for (at, slot) in all().filter(|&(at, slot)| !theirs(at) && slot.read_only.is_none() && slot.is_in()) {
            let mut findings = Findings::default();
            named(slot).into_iter().for_each(|what| findings.add(what, 0));
            let found = found(at).map_err(|error| format!("{} cannot be looked at: {error}", slot.name))?;
            found.iter().for_each(|found| findings.add(found.what, found.at));
            if !findings.is_empty() {
                return Err(refusal(at, &findings));
            }
        }
    }
    // A device that is attached is not theirs: they find that out by themselves.
    let free = all().filter(|&(at, _)| devices::block(at).is_err()).fold(0, |bits, (at, _)| bits | bit(at));
    LEFT_BEHIND.fetch_or(free, Ordering::Relaxed);
    Ok(())
}

/// Says what lies on a device that was attached just now.
pub fn report(at: usize) {
    let Ok(findings) = found(at) else { return };
    let name = slots().get(at).map_or("", |slot| &slot.name);
    for found in findings.iter() {
        crate::console::report!("media device={name} found={} at={:#x}", found.what.name(), found.at);
    }
    if !findings.is_empty() {
        log::info!("{name}: holds {findings}");
    }
}
