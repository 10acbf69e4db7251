//! The mounted file systems: at most one for each device.
//!
//! A mounted file system is its device's DAX holder, so a removal tells it by itself. What is left to do here, after the
//! device has gone, is to let go of what was mounted: its calls fail by then, its mappings fault with SIGBUS, and a file
//! that a task still has open keeps no more than memory of the kernel.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use dax::device::State;
use dax::holder::NotifyFlags;
use fs::check;
use fs::error::FsError;
use fs::layout::{Label, Layout};
use fs::lock_order::Context;
use fs::mount::{MakeOptions, make};
use fs::mounted::Mounted;
use fs::superblock::{self, Renewed};
use mm::addr::{PAGE_SIZE, Pfn};
use spin::Mutex;

use crate::cpu::time;
use crate::mem::machine::KernelMachine;
use crate::pmem::devices::{self, News};
use crate::pmem::{fs_device, slots};

/// A mounted file system of this kernel.
pub type Fs = Mounted<KernelMachine>;
/// An open file of one.
pub type File = fs::handle::File<KernelMachine>;

/// By slot of the device. Never held while a file system works.
static MOUNTS: Mutex<BTreeMap<usize, Arc<Fs>>> = Mutex::new(BTreeMap::new());

/// Listens to the devices from now on: what is mounted from them ends with them. Called once.
pub fn start() {
    devices::listen(|news| match news {
        News::HoldersTold(at) => report_notification(at),
        News::Gone(at) => device_gone(at),
    });
}

/// Could a file system be made on device `at`: is it attached for one, and not mounted?
///
/// # Errors
/// One clear line.
pub fn can_be_made(at: usize) -> Result<(), String> {
    not_mounted(at)?;
    fs_device::memory(at).map(drop)
}

/// Makes an empty file system on device `at`, which is attached for one and not mounted. What it held is lost.
///
/// # Errors
/// One clear line.
pub fn mkfs(at: usize, label: Label) -> Result<Layout, String> {
    not_mounted(at)?;
    devices::check_writable(at)?;
    let owned = fs_device::own(at, "mkfs")?;
    fs_device::unused(at)?;
    let mut uuid = [0; 16];
    uuid[..8].copy_from_slice(&time::since_first_line_ns().to_le_bytes());
    uuid[8] = at as u8;
    let options = MakeOptions { uuid, label, ..MakeOptions::default() };
    make(&owned.memory, &options).map_err(|error| format!("mkfs: {error}"))
}

/// Mounts the file system on device `at`, which is attached for one. What was mounted there from a device that has gone
/// is let go of.
///
/// # Errors
/// One clear line.
pub fn mount(at: usize) -> Result<Arc<Fs>, String> {
    not_mounted(at)?;
    // A mount recovers what the last one left, and there is none for reading only.
    devices::check_writable(at)?;
    let mounted = fs_device::mount(at)?;
    let before = {
        let mut mounts = MOUNTS.lock();
        match mounts.get(&at) {
            // Of the device's successor: ours is of one that has gone meanwhile.
            Some(other) if !is_gone(other) => Some(Arc::clone(&mounted)),
            _ => mounts.insert(at, Arc::clone(&mounted)),
        }
    };
    before.iter().for_each(give_up);
    // A removal shuts it down first, and looks into the table when it is done: it finds it there, or we see it here.
    if is_gone(&mounted) {
        let_go(at, &mounted);
        return Err(format!("device {at} left while it was being mounted"));
    }
    slots::forget_use(at);
    Ok(mounted)
}

/// Is it of no use any more: shut down, or without its device?
fn is_gone(mounted: &Fs) -> bool {
    mounted.shutdown_reason().is_some() || mounted.device().state() == State::Dead
}

/// The file system that is mounted from device `at`.
///
/// # Errors
/// One clear line.
pub fn get(at: usize) -> Result<Arc<Fs>, String> {
    MOUNTS.lock().get(&at).cloned().ok_or_else(|| format!("nothing is mounted from device {at} (try mount {at})"))
}

/// All of them, by slot.
pub fn all() -> Vec<(usize, Arc<Fs>)> {
    MOUNTS.lock().iter().map(|(&at, mounted)| (at, Arc::clone(mounted))).collect()
}

/// Unmounts; the device can be removed idle, or mounted again.
///
/// # Errors
/// One clear line. Where a file is open or mapped, a page of it is held, or it is frozen, it goes on being mounted.
pub fn unmount(at: usize) -> Result<(), String> {
    let mounted = get(at)?;
    let ended = mounted.unmount(&Context::new());
    if ended == Err(FsError::Busy) {
        return Err("umount: busy (a file is open or mapped, a page of one is pinned, or it is frozen)".into());
    }
    // What is there may be another one by now, where this one was shut down meanwhile.
    drop(take_out(at, &mounted));
    ended.map_err(|error| format!("unmounted, but: {error}"))
}

/// Looks for damage in the file system on device `at`, which is not mounted. Nothing is changed.
///
/// # Errors
/// One clear line where it cannot be looked at. Damage is in the report.
pub fn fsck(at: usize) -> Result<check::Report, String> {
    not_mounted(at)?;
    Ok(check::check(&fs_device::own(at, "fsck")?.memory, None))
}

/// Writes a superblock anew that device `at` has lost, or that is damaged, from the other one; nothing is mounted there.
/// `None`: both are whole.
///
/// # Errors
/// One clear line; also where the device takes no writes, whatever its superblocks are like.
pub fn repair(at: usize) -> Result<Option<Renewed>, String> {
    not_mounted(at)?;
    devices::check_writable(at)?;
    let renewed =
        superblock::repair(&*fs_device::own(at, "fsck")?.memory).map_err(|error| format!("not repaired: {error}"))?;
    match renewed {
        Some(Renewed { result: Err(_), .. }) => Err(renewed.map_or_else(String::new, |renewed| format!("{renewed}"))),
        _ => Ok(renewed),
    }
}

/// Nothing must be mounted from device `at`, but from one that has gone since: that is let go of.
fn not_mounted(at: usize) -> Result<(), String> {
    let Ok(mounted) = get(at) else { return Ok(()) };
    if !is_gone(&mounted) {
        return Err(format!("device {at} is mounted (umount {at} first)"));
    }
    let_go(at, &mounted);
    Ok(())
}

/// Gives up a file system that is gone, unless somebody was faster.
fn let_go(at: usize, mounted: &Arc<Fs>) {
    take_out(at, mounted).iter().for_each(give_up);
}

/// Takes this one out of the table, if it is still there.
fn take_out(at: usize, mounted: &Arc<Fs>) -> Option<Arc<Fs>> {
    let mut mounts = MOUNTS.lock();
    let ours = mounts.get(&at).is_some_and(|other| Arc::ptr_eq(other, mounted));
    ours.then(|| mounts.remove(&at)).flatten()
}

fn give_up(mounted: &Arc<Fs>) {
    if let Err(error) = mounted.unmount(&Context::new()) {
        log::error!(target: "fs", "{}: cannot be let go of: {error}", mounted.name());
    }
}

/// Holders of device `at` have been told that it goes away: says what the file system met. Nothing is mounted: nothing.
fn report_notification(at: usize) {
    let Ok(mounted) = get(at) else { return };
    if let Some(report) = mounted.last_notification() {
        crate::console::report!("notify fs={} {report}", mounted.name());
    }
}

/// Device `at` has gone: lets go of what was mounted from it.
fn device_gone(at: usize) {
    let Ok(mounted) = get(at) else { return };
    // One that was mounted again meanwhile, from the device's successor, is not meant.
    if is_gone(&mounted) {
        let_go(at, &mounted);
    }
}

/// A page has lost its contents: tells the holders of the device that has it. Answers how many were told.
pub fn media_failure(pfn: Pfn) -> usize {
    for at in 0..devices::slots().len() {
        let Ok(device) = devices::dax(at) else { continue };
        let mut offset = 0;
        for range in device.pagemap().ranges() {
            if range.contains(pfn) {
                offset += (pfn.as_u64() - range.start().as_u64()) * PAGE_SIZE;
                let flags = NotifyFlags::ACTION_REQUIRED.union(NotifyFlags::MUST_KILL);
                let answers = device.notify_failure(offset, PAGE_SIZE, flags).unwrap_or_default();
                for answer in &answers {
                    log::warn!(target: "fs", "holder {answer}");
                }
                return answers.len();
            }
            offset += range.nr_pages() * PAGE_SIZE;
        }
    }
    0
}
