//! Files of what is mounted: what a task that is driven maps of them, and what they are called.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use dax::range::ByteSpan;
use fs::lock_order::Context;
use mm::addr::{PAGE_SHIFT, PAGE_SIZE, PfnRange, VirtAddr, VirtRange};
use mm::pagemap::DevPagemap;

use super::held;
use crate::mem::machine::{KernelMachine, Space};
use crate::pmem::mounts::{self, File, Fs};
use crate::pmem::{devices, slots};
use crate::shell::jobs;

/// A mapping of this kernel.
pub type KernelMapping = mm::space::Mapping<KernelMachine>;

/// A file, opened to be mapped; and its pages.
///
/// # Errors
/// One clear line.
pub fn open(at: usize, path: &str) -> Result<(Arc<File>, u64), String> {
    let (fs, context) = (mounts::get(at)?, Context::new());
    let about = |error| format!("{path}: {error}");
    let file = fs.open(&context, path).map_err(about)?;
    let size = fs.stat(&context, path).map_err(about)?.size;
    Ok((file, size.div_ceil(1 << PAGE_SHIFT)))
}

/// What an inode is called: by its path, where the directories on the way are in memory.
pub fn name(at: usize, fs: &Fs, ino: u64) -> String {
    let device = devices::slots().get(at).map_or("?", |slot| &slot.name);
    match path(fs, ino) {
        Some(path) => format!("{path} (inode {ino}) on {device}"),
        None => format!("the file with inode {ino} on {device}"),
    }
}

/// A path to an inode, as it is typed.
pub fn path(fs: &Fs, ino: u64) -> Option<String> {
    let path = fs.path_of(&Context::new(), ino).ok().flatten()?;
    Some(format!("{}", path.escape_ascii()))
}

/// The file that is mapped through `mapping`, in words; `None` where it is a device's own, or of what is not mounted any more.
pub fn mapped_by(mapping: &KernelMapping) -> Option<String> {
    mounts::all().into_iter().find_map(|(at, fs)| {
        let is_its = Arc::ptr_eq(fs.device().pagemap(), mapping.pagemap());
        let ino = is_its.then(|| fs.file_mapped_by(&Context::new(), mapping)).flatten()?;
        Some(name(at, &fs, ino))
    })
}

/// Lets go of files that nobody has open any more: their last mapping has gone. Where a task still has pages of a device pinned
/// it would be waited for, and its files wait for that; where the device is frozen they wait for the thaw.
pub fn settle() {
    let thawed = mounts::all().into_iter().filter(|(_, fs)| fs.freeze_holders() == (0, 0));
    for (at, fs) in thawed {
        let is_free = |slot: &slots::Slot| held::in_the_way(slot.frames).is_none();
        if devices::slots().get(at).is_some_and(is_free) {
            fs.reap(&Context::new());
        }
    }
}

/// Fails where one of these bytes is in a page of a file that is frozen: a fault there waits for the thaw, and with it the
/// shell, which alone can thaw. Not so a job.
///
/// # Errors
/// The device.
pub fn refuse_while_frozen(space: &Space, start: VirtAddr, nr_bytes: u64) -> Result<(), String> {
    let first = start.align_down(PAGE_SIZE);
    let from_first = nr_bytes.checked_add(start.as_u64() - first.as_u64());
    let whole = from_first.and_then(|bytes| bytes.checked_next_multiple_of(PAGE_SIZE));
    // What is no range nobody can fault at, and is refused for that.
    let range = whole.and_then(|bytes| VirtRange::new(first, bytes));
    let Some(range) = range.filter(|_| !jobs::is_one()) else { return Ok(()) };
    let frozen = mounts::all().into_iter().filter(|(_, fs)| fs.freeze_holders() != (0, 0));
    for (at, fs) in frozen {
        let mut from = range.start();
        while let Some(vma) = space.vmas_from::<1>(from).first().filter(|vma| vma.range.start() < range.end()) {
            if Arc::ptr_eq(fs.device().pagemap(), vma.mapping.pagemap()) {
                return Err(format!("device {at} is frozen, and a fault would wait for its thaw (thaw {at} first)"));
            }
            from = vma.range.end();
        }
    }
    Ok(())
}

/// Fails where a pin that is held here is of device `at`: a file that was removed meanwhile would wait for it.
///
/// # Errors
/// The pin, in words.
pub fn refuse_unmount(at: usize) -> Result<(), String> {
    match devices::slots().get(at).and_then(|slot| held::in_the_way(slot.frames)) {
        Some((nr, what)) if mounts::get(at).is_ok() => {
            Err(format!("umount: busy: {what} is held (task unpin {nr} first)"))
        }
        _ => Ok(()),
    }
}

/// The bytes of a device that frames are. Frames side by side are one run, whatever is on them: other files, another device.
fn spans(map: &DevPagemap, run: PfnRange) -> impl Iterator<Item = ByteSpan> {
    map.ranges().iter().filter_map(move |range| {
        let first = run.start().max(range.start());
        let nr_pages = run.end().min(range.end()).as_u64().checked_sub(first.as_u64())?;
        ByteSpan::from_len(map.page_of(first)? << PAGE_SHIFT, nr_pages << PAGE_SHIFT)
    })
}

/// Fails where a pin that is held here is of the file at `path`: who gives its blocks back would wait for it, and the shell,
/// which alone gives the pin back, with him.
///
/// # Errors
/// The pin, in words.
pub fn refuse_while_pinned(at: usize, fs: &Fs, path: &str) -> Result<(), String> {
    let Ok(stat) = fs.stat(&Context::new(), path) else { return Ok(()) };
    let has = |bytes| fs.has_any_of(&Context::new(), stat.ino, bytes) == Ok(true);
    for pin in held::plain() {
        if pin.frames.iter().any(|run| spans(fs.device().pagemap(), *run).any(has)) {
            let (nr, what) = (pin.nr, pin.words);
            let device = &devices::slots()[at].name;
            return Err(format!(
                "{what} is held, of {path} on {device}, and this waits for it (task unpin {nr} first, or add &)"
            ));
        }
    }
    Ok(())
}
