//! A device's memory as the file system sees it, and the kernel as its host.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::fmt;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

use dax::device::{DaxDevice, DaxError, LiveGuard, Registration, State};
use dax::holder::{Holder, NotifyError, NotifyFlags, Role};
use fs::error::FsError;
use fs::mounted::{FIRST_COMPLAINT_NS, FREEZE_TIMEOUT_NS, Host, Mounted, Source};
use fs::pmem::{Pmem, check_bounds};
use fs::presence::{Leaving, Presence};
use mm::addr::{PAGE_SIZE, Pfn, VirtRange};
use mm::machine::Machine;
use mm::pagemap::MemoryKind;
use mm::space::SigBusCause;
use nvdimm::pmem::block::{BlockDevice, BlockError, SECTOR_BYTES};
use nvdimm::pmem::memory::FlushError;

use crate::mem::layout;
use crate::mem::machine::{KernelMachine, Space, mm};
use crate::pmem::devices;
use crate::task::sched;
use crate::task::tcb::{self, SigBus};

/// The bytes of a device, through the direct map. Each access holds the device alive.
struct DeviceMemory {
    device: Arc<DaxDevice>,
    /// Whose fence says that what was written back lasts.
    block: Arc<BlockDevice<KernelMachine>>,
}

impl DeviceMemory {
    fn live(&self) -> Result<LiveGuard<'_>, FsError> {
        self.device.read_lock().map_err(|_| FsError::DeviceGone)
    }

    /// Has a page that shares a byte with these lost its contents?
    fn any_lost(&self, offset: u64, len: u64) -> Result<bool, FsError> {
        let live = self.live()?;
        let (mut page, end) = (offset & !(PAGE_SIZE - 1), offset + len);
        while page < end {
            let want = (end - page).next_multiple_of(PAGE_SIZE);
            let row = live.direct_access(page, want).map_err(|_| FsError::Media(page))?;
            if self.device.pagemap().any_poisoned(row.start(), row.nr_pages()) {
                return Ok(true);
            }
            page += row.nr_pages() * PAGE_SIZE;
        }
        Ok(false)
    }

    /// Writes whole pages through the block path, which heals what was lost of them (P3).
    fn write_anew(&self, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        let whole = offset.is_multiple_of(PAGE_SIZE) && (bytes.len() as u64).is_multiple_of(PAGE_SIZE);
        if !whole {
            return Err(FsError::Media(offset));
        }
        self.block.write(offset / SECTOR_BYTES, bytes).map_err(|error| match error {
            BlockError::NoSuchDevice | BlockError::Gone | BlockError::NotDurable(FlushError::Gone) => {
                FsError::DeviceGone
            }
            BlockError::NotDurable(_) => FsError::NotDurable,
            _ => FsError::Media(offset),
        })
    }

    /// Calls `each` with the place of each part of the bytes that lies in a row, and the part's place among them. The
    /// device is alive meanwhile, so that they are mapped.
    fn parts(
        &self,
        offset: u64,
        len: usize,
        each: &mut dyn FnMut(*mut u8, core::ops::Range<usize>),
    ) -> Result<(), FsError> {
        let live = self.live()?;
        check_bounds(offset, len, self.device.size_bytes())?;
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let (page, inside) = (at & !(PAGE_SIZE - 1), at % PAGE_SIZE);
            let want = (inside + (len - done) as u64).next_multiple_of(PAGE_SIZE);
            let row = live.direct_access(page, want).map_err(|_| FsError::Media(at))?;
            let part = ((row.nr_pages() * PAGE_SIZE - inside) as usize).min(len - done);
            let base: *mut u8 = layout::direct_ptr(row.start().addr());
            each(base.wrapping_add(inside as usize), done..done + part);
            done += part;
        }
        Ok(())
    }
}

impl Pmem for DeviceMemory {
    fn len_bytes(&self) -> u64 {
        self.device.size_bytes()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), FsError> {
        check_bounds(offset, buf.len(), self.device.size_bytes())?;
        // What has lost its contents is not read (P3): that would be a machine check.
        if self.any_lost(offset, buf.len() as u64)? {
            return Err(FsError::Media(offset));
        }
        self.parts(offset, buf.len(), &mut |from, part| {
            let to = &mut buf[part];
            // SAFETY: `parts` gives mapped bytes of the device. Tasks may store there meanwhile, as to any shared
            // memory: `copy` reads bytes whatever they are, and `to` is ours alone.
            unsafe { ptr::copy(from, to.as_mut_ptr(), to.len()) };
        })
    }

    fn store(&self, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        check_bounds(offset, bytes.len(), self.device.size_bytes())?;
        if self.any_lost(offset, bytes.len() as u64)? {
            return self.write_anew(offset, bytes);
        }
        self.parts(offset, bytes.len(), &mut |to, part| {
            let from = &bytes[part];
            match <[u8; 8]>::try_from(from) {
                Ok(word) if offset.is_multiple_of(8) => {
                    // SAFETY: mapped bytes of the device, aligned, and device memory belongs to no Rust object. One
                    // store, because whoever recovers relies on the word being old or new.
                    unsafe { AtomicU64::from_ptr(to.cast()) }.store(u64::from_le_bytes(word), Ordering::Relaxed);
                }
                // SAFETY: the same.
                _ => unsafe { ptr::copy(from.as_ptr(), to, from.len()) },
            }
        })
    }

    fn renew(&self, offset: u64, len: u64) -> Result<(), FsError> {
        check_bounds(offset, len as usize, self.device.size_bytes())?;
        if !self.any_lost(offset, len)? {
            return Ok(());
        }
        for page in (offset..offset + len).step_by(PAGE_SIZE as usize) {
            if self.any_lost(page, PAGE_SIZE)? {
                self.write_anew(page, &[0; PAGE_SIZE as usize])?;
            }
        }
        Ok(())
    }

    fn write_back(&self, offset: u64, len: u64) {
        // A device that has gone has no lines left to write back; the caller hears of it at the next store.
        let _ = self.parts(offset, len as usize, &mut |at, part| {
            // SAFETY: mapped bytes of the device; only their addresses are used.
            arch::cache::write_back(unsafe { core::slice::from_raw_parts(at, part.len()) });
        });
    }

    fn fence(&self) -> Result<(), FsError> {
        let _live = self.live()?;
        self.block.flush_for_holder().map_err(|error| match error {
            BlockError::NotDurable(FlushError::Gone) => FsError::DeviceGone,
            _ => FsError::NotDurable,
        })
    }
}

/// Of memory that may leave without a word, whether it was there all the time: its block path knows.
struct There(Arc<BlockDevice<KernelMachine>>);

impl Presence for There {
    fn is_there(&self) -> bool {
        self.0.is_there()
    }
}

/// This kernel.
struct Kernel;

impl Host<KernelMachine> for Kernel {
    fn line(&self, line: fmt::Arguments<'_>) {
        log::info!(target: "fs", "{line}");
    }
    fn lost(&self, space: &Arc<Space>, range: VirtRange, cause: SigBusCause) {
        let (name, addr, len_bytes) = (space.name(), range.start(), range.len_bytes());
        crate::console::report!("lost space={} name={name} addr={addr} len={len_bytes} cause={cause}", space.id());
        tcb::for_each_with_space(&mut |of, task| {
            if of == space.id() {
                task.send_signal(SigBus { addr, len_bytes, cause }.into());
            }
        });
    }
    fn current_space(&self) -> Option<u64> {
        sched::with_current(|task| task.space().map(|space| space.id())).flatten()
    }
    fn pinned_by(&self, pfn: Pfn) -> Option<String> {
        let now = mm().machine.now_ns();
        let mut by = None;
        let frame = mm::addr::PfnRange::new(pfn, 1)?;
        mm().pins.for_each(&mut |record| {
            if record.holds_any(frame) {
                by = Some(format!("{}", record.describe(now)));
            }
        });
        by
    }
}

/// The DAX device `at`, which is attached for a file system.
fn for_file_system(at: usize) -> Result<Arc<DaxDevice>, String> {
    let device = devices::dax(at).map_err(|error| format!("{error}"))?;
    match device.kind() {
        MemoryKind::FsDax => Ok(device),
        MemoryKind::DevDax => Err(format!("device {at} is not attached for a file system (attach {at} fsdax)")),
    }
}

/// The same, where no page of it is mapped or pinned: tasks can still have some of a file system that was shut down, and would
/// store to files of the next one.
///
/// # Errors
/// One clear line.
pub fn unused(at: usize) -> Result<Arc<DaxDevice>, String> {
    let device = for_file_system(at)?;
    match device.pagemap().live_folios() {
        0 => Ok(device),
        nr => Err(format!(
            "tasks still map or hold pages of device {at} ({nr} folios), of what was mounted there before: they have to end first, \
             or the device has to be removed"
        )),
    }
}

/// The bytes of device `at`, which is attached for a file system.
///
/// # Errors
/// One clear line.
pub fn memory(at: usize) -> Result<Arc<dyn Pmem>, String> {
    let device = for_file_system(at)?;
    let block = devices::block(at).map_err(|error| format!("{error}"))?;
    let memory = Arc::new(DeviceMemory { device, block: Arc::clone(&block) });
    // Others cannot leave by themselves, and nobody asks.
    let may_leave = devices::slots().get(at).is_some_and(|slot| slot.dimm().is_some());
    Ok(if may_leave { Leaving::new(memory, Arc::new(There(block))) } else { memory })
}

/// Who works on a device's contents as a whole, and is told of nothing: with the device gone each access says so.
struct Worker(&'static str);

impl Holder for Worker {
    fn name(&self) -> &str {
        self.0
    }

    fn notify_failure(&self, _: u64, _: u64, _: NotifyFlags) -> Result<(), NotifyError> {
        Ok(())
    }
}

/// A device that nobody else mounts, makes a file system on, or looks at, for as long as this lives.
pub struct Owned {
    /// Its bytes.
    pub memory: Arc<dyn Pmem>,
    _registration: Registration,
}

/// Owns device `at`, which is attached for a file system, for `what`: a mount owns it from its first step on, before it can be
/// found as mounted.
///
/// # Errors
/// One clear line.
pub fn own(at: usize, what: &'static str) -> Result<Owned, String> {
    let registered = for_file_system(at)?.register_holder(Role::Owner, Arc::new(Worker(what)));
    Owned::by(at, registered.map_err(|error| if error == DaxError::Busy { owned(at) } else { format!("{error}") })?)
}

impl Owned {
    /// The bytes of device `at`, of which this is the registration.
    ///
    /// # Errors
    /// One clear line; also where device `at` is another one by now.
    pub fn by(at: usize, registration: Registration) -> Result<Self, String> {
        let memory = memory(at)?;
        // What is found by the number is the same device, and not its successor, as long as this one lives.
        match registration.device().state() {
            State::Alive => Ok(Self { memory, _registration: registration }),
            _ => Err(format!("device {at} has left meanwhile")),
        }
    }
}

fn owned(at: usize) -> String {
    format!("device {at} is mounted, or is being mounted, checked or made a file system on; try again")
}

/// Mounts the file system on device `at`, which is attached for one. By way of [`mounts`](crate::pmem::mounts), so that it
/// is found again.
///
/// # Errors
/// One clear line.
pub fn mount(at: usize) -> Result<Arc<Mounted<KernelMachine>>, String> {
    let device = unused(at)?;
    let pmem = memory(at)?;
    let source = Source {
        name: devices::slots()[at].name.clone(),
        pmem,
        device,
        part: None,
        log: None,
        host: Arc::new(Kernel),
        freeze_timeout_ns: FREEZE_TIMEOUT_NS,
        first_complaint_ns: FIRST_COMPLAINT_NS,
    };
    Mounted::mount(mm(), source).map_err(|error| match error {
        FsError::NoFileSystem => format!("{error} (mkfs {at} makes one)"),
        FsError::Busy => owned(at),
        _ => format!("{error}"),
    })
}
