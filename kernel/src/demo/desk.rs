//! The last act: the chassis falls off the desk. Two memory modules leave without a word while everybody uses them: on the
//! one is a file system, with databases, mapped files and callers; the other one is registered for devices, an `edu` has a
//! transfer in flight and an NVMe disk reads into it. Afterwards `edu` is set to work once more at the address that it had, as a
//! device would that nobody has told: the IOMMU blocks that.
//!
//! The host pulls the modules where it grants requests, and puts them back: then what was on them is looked at. Otherwise the
//! kernel lets them go by itself, by the same two stores, and they stay away.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use dax::removal::{Cause, RemovalReport};
use mm::addr::{PAGE_SIZE, PageSize, VirtAddr};
use mm::entry::Prot;
use mm::gup::GupFlags;
use mm::pagemap::MemoryKind;
use mm::region::{Notice, RegionOwner, Terms};
use mm::space::VmOps;

use super::books::{self, Removed};
use super::files::{self, FilesAct};
use super::gate::wait_until;
use super::host_request;
use crate::cpu::time;
use crate::io::dma::{self, DmaError, DmaRegion, DmaTarget, FaultRecord, Unasked};
use crate::io::edu::{self, Direction, Edu, EduError};
use crate::io::nvme::{self, IoError};
use crate::mem::machine::{KernelMachine, Space, mm};
use crate::pmem::dimms::Dimm;
use crate::pmem::{bytes, devices, mounts};
use crate::task::sched;
use crate::task::tcb::Task;

/// Where the modules' memory is mapped for the devices.
const BASE: VirtAddr = VirtAddr::new(0x40_0000_0000);
/// Pages that are registered.
const PAGES: u64 = 64;
/// Pages of one read of the disk.
const READ_PAGES: u64 = 8;
/// What `edu` writes, where, and how long a transfer is waited for.
const EDU_PAGE: u64 = PAGES - 1;
const EDU_BYTES: u64 = 64;
const EDU_PLACE: u64 = 256;
const BOUND_NS: u64 = 10 * edu::TRANSFER_NS;
/// Reads of the disk until it counts as being under way.
pub const WARM_READS: u64 = 4;
/// What the page holds before that. What the device writes is something else: the first bytes of another page.
const EDU_MARK: [u8; 8] = [0xa5; 8];
/// A page that no device reads or writes.
const KEPT_PAGE: u64 = PAGES;
const KEPT: &[u8] = b"what was there before the fall";

/// What came of the act.
pub struct DeskAct {
    /// The files and those who use them.
    pub files: FilesAct,
    /// The modules were put back.
    pub is_back: bool,
    /// `edu` says that its transfer was done, and it counts as failed, for this reason.
    pub edu: Result<(), String>,
    /// Something of it has landed; `None` where the module stays away, or was perhaps still there when the transfer ended.
    pub edu_landed: Option<bool>,
    /// What the IOMMU has recorded of the transfer afterwards.
    pub fault: Result<FaultRecord, String>,
    /// Reads of a disk that were done before the fall, and by what the next one was refused; `None` where there is no disk.
    pub disk: Option<(u64, DmaError)>,
    /// Transfers that the IOMMU has blocked.
    pub blocked: u64,
    /// What was written before is there; `None` where the modules stay away.
    pub kept: Option<bool>,
}

fn said<E: core::fmt::Display>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("desk: {what}: {error}")
}

/// The modules that can fall: the slots' numbers, and the modules.
fn modules() -> Vec<(usize, &'static Dimm)> {
    let slots = devices::slots().iter().enumerate();
    // The slot of one that has left may have another one by now.
    let there = slots.filter(|(_, slot)| slot.is_in()).filter_map(|(at, slot)| Some((at, slot.dimm()?)));
    there.filter(|(_, dimm)| dimm.place.status().enabled).collect()
}

/// The act; `None` where the machine has no two modules, or no device that does DMA. `host_requests_s`: see
/// [`host_request`].
pub fn run(host_requests_s: u64) -> Result<Option<DeskAct>, String> {
    let (modules, edu) = (modules(), edu::device());
    let (&[for_devices, for_files, ..], Some(edu)) = (&modules[..], edu) else {
        log::info!("nothing falls off the desk: that takes two memory modules, an IOMMU and an edu device");
        return Ok(None);
    };
    let transfers = Transfers::start(for_devices.0, edu)?;
    let fallen = [for_devices, for_files];
    let mut seen = None;
    let mut leave = || {
        seen = Some(transfers.fall(&fallen, host_requests_s)?);
        books::was_well(&*report_of(for_devices.0)?).map_err(said("with transfers in flight"))?;
        Ok(Removed::from(&*report_of(for_files.0)?))
    };
    let (load, files) = files::use_and_lose(for_files.0, &mut leave)?;
    let seen = seen.ok_or("desk: nothing has fallen")?;
    let mut act = DeskAct {
        is_back: false,
        edu: seen.edu,
        edu_landed: None,
        fault: seen.fault,
        disk: seen.disk,
        blocked: seen.blocked,
        kept: None,
        files,
    };
    if host_requests_s != 0 && put_back(&fallen, for_files.0, host_requests_s)? {
        act.is_back = true;
        mounts::unmount(for_files.0)?;
        books::remove_well(for_files.0).map_err(said("it is back"))?;
        act.files.found = Some(files::come_back(for_files.0, &load)?);
        let found = bytes::read(for_devices.0, EDU_PAGE * PAGE_SIZE, 8)?;
        act.edu_landed = seen.cut_off.then_some(found != EDU_MARK);
        act.kept = Some(bytes::read(for_devices.0, KEPT_PAGE * PAGE_SIZE, KEPT.len())? == KEPT);
        books::remove_well(for_devices.0).map_err(said("it is back"))?;
    }
    Ok(Some(act))
}

/// The removal of device `at`, which has gone.
fn report_of(at: usize) -> Result<Arc<RemovalReport>, String> {
    let report = devices::last_removal(at).map_err(said("the removal"))?.ok_or("desk: no removal is on record")?;
    match report.cause {
        Cause::Gone => Ok(report),
        other => Err(format!("desk: the removal's cause is {other}")),
    }
}

/// What the devices are at.
struct Transfers {
    at: usize,
    edu: &'static Arc<Edu>,
    region: Arc<DmaRegion>,
    space: Arc<Space>,
    reader: Option<(Arc<Task>, Arc<Reads>)>,
    /// Asked, and does nothing.
    _owner: Arc<dyn RegionOwner>,
}

/// What the task that reads the disk has seen.
#[derive(Default)]
struct Reads {
    done: AtomicU64,
    error: spin::Mutex<Option<IoError>>,
}

/// What the devices saw.
struct Seen {
    edu: Result<(), String>,
    fault: Result<FaultRecord, String>,
    /// The module had left before the transfer could end.
    cut_off: bool,
    disk: Option<(u64, DmaError)>,
    blocked: u64,
}

impl Transfers {
    /// Registers pages of the module, and starts to read the disk into them.
    fn start(at: usize, edu: &'static Arc<Edu>) -> Result<Self, String> {
        devices::attach_as(at, MemoryKind::DevDax).map_err(said("attach"))?;
        bytes::write(at, KEPT_PAGE * PAGE_SIZE, KEPT)?;
        bytes::write(at, EDU_PAGE * PAGE_SIZE, &EDU_MARK)?;
        let file = devices::file(at).map_err(said("no file"))?;
        let file = file.open(dax::devdax::OpenOptions::exactly(PageSize::Size4K)).map_err(said("open"))?;
        let ops: Arc<dyn VmOps<KernelMachine>> = file;
        let space = Space::new(mm(), "transfers").map_err(said("address space"))?;
        space.map(BASE, 2 * PAGES * PAGE_SIZE, Prot::USER_WRITE, &ops, 0).map_err(said("map"))?;
        let account = mm().pins.open_account("transfers", 2 * PAGES);
        let owner: Arc<dyn RegionOwner> = Arc::new(|_: &Notice| ());
        let terms = Terms { flags: GupFlags::WRITE, grace_ns: 0, account: &account };
        let region = edu.dma().register(&space, BASE, PAGES, &terms, Arc::downgrade(&owner));
        let region = Arc::new(region.map_err(said("register"))?);
        // The device has something of its own to write.
        let filled = edu.transfer(Direction::ToDevice, (&*region, 0), EDU_PLACE, EDU_BYTES);
        filled.map_err(said("to the device"))?;
        let reader = nvme::disks().first().map(|disk| read_disk(disk, &space, &terms, &owner)).transpose()?;
        Ok(Self { at, edu, region, space, reader, _owner: owner })
    }

    /// A transfer is started, the modules fall, and everybody is asked what he has seen.
    fn fall(&self, fallen: &[(usize, &'static Dimm)], host_requests_s: u64) -> Result<Seen, String> {
        if let Some((task, reads)) = &self.reader {
            wait_until(|| reads.done.load(Ordering::Relaxed) >= WARM_READS || task.exit().is_some());
        }
        let (blocked, began_ns) = (dma::nr_blocked(), time::since_first_line_ns());
        let target = (&*self.region as &dyn DmaTarget, EDU_PAGE * PAGE_SIZE);
        let transfer = self.edu.start(Direction::ToMemory, target, EDU_PLACE, EDU_BYTES).map_err(said("edu"))?;
        let name = &devices::slots()[self.at].name;
        log::info!("the chassis falls off the desk, with a transfer to {name} in flight");
        pull(fallen, host_requests_s);
        // It ends no earlier than that long after its start; the host may take its time.
        let cut_off = fallen[0].1.last_notice_ns() < began_ns + edu::TRANSFER_NS;
        let edu = match transfer.wait(BOUND_NS) {
            Ok(()) => Ok(()),
            Err(EduError::Dma(error @ (DmaError::Use(_) | DmaError::Fault(_) | DmaError::Gone))) => {
                Err(format!("{error}"))
            }
            Err(error) => return Err(said("edu")(error)),
        };
        let fault = self.transfer_unasked();
        let disk = self.reader.as_ref().map(|(task, reads)| {
            _ = sched::join(task);
            match reads.error.lock().take() {
                Some(IoError::Dma(error)) => Ok((reads.done.load(Ordering::Relaxed), error)),
                Some(error) => Err(said("the disk")(error)),
                None => Err("desk: the disk: nothing has ended its reads".into()),
            }
        });
        self.space.unmap(BASE, 2 * PAGES * PAGE_SIZE).map_err(said("unmap"))?;
        Ok(Seen { edu, fault, cut_off, disk: disk.transpose()?, blocked: dma::nr_blocked() - blocked })
    }

    /// The device goes on with an address that it does not have any more. What the IOMMU has recorded of it.
    fn transfer_unasked(&self) -> Result<FaultRecord, String> {
        let target = Unasked::of(&*self.region);
        match self.edu.transfer(Direction::ToMemory, (&target, EDU_PAGE * PAGE_SIZE), EDU_PLACE, EDU_BYTES) {
            Err(EduError::Dma(DmaError::Fault(record))) => Ok(record),
            Ok(()) => Err("it was done".into()),
            Err(error) => Err(format!("{error}")),
        }
    }
}

/// Starts a task that reads the disk into a registration of its own, until it is told that this is over.
fn read_disk(
    disk: &'static Arc<nvme::Disk>,
    space: &Arc<Space>,
    terms: &Terms<'_>,
    owner: &Arc<dyn RegionOwner>,
) -> Result<(Arc<Task>, Arc<Reads>), String> {
    let region = disk.dma().register(space, BASE, READ_PAGES, terms, Arc::downgrade(owner));
    let region = region.map_err(said("register for the disk"))?;
    let (reads, account) = (Arc::<Reads>::default(), Arc::clone(terms.account));
    let (counts, cpu) = (Arc::clone(&reads), arch::percpu::cpu());
    let task = sched::spawn("disk-reader", cpu, None, move || {
        let _held = account;
        let count = READ_PAGES * PAGE_SIZE / disk.limits().block_bytes;
        loop {
            let blocks = nvme::Blocks { lba: 0, count, offset: 0 };
            if let Err(error) = disk.transfer(nvme::Direction::Read, &region, blocks) {
                *counts.error.lock() = Some(error);
                return Ok(());
            }
            counts.done.fetch_add(1, Ordering::Relaxed);
            sched::yield_now();
        }
    });
    Ok((task, reads))
}

/// Pulls the modules out, or has the host do it, and waits until each is known to be gone.
fn pull(fallen: &[(usize, &'static Dimm)], host_requests_s: u64) {
    for (_, dimm) in fallen {
        host_request::ask("pull", dimm.place.slot(), host_requests_s);
    }
    let deadline = time::since_first_line_ns().saturating_add(host_requests_s * 1_000_000_000);
    for (at, dimm) in fallen {
        let gone = || dimm.place.current().is_none();
        wait_until(|| gone() || time::since_first_line_ns() >= deadline);
        if !gone() {
            if host_requests_s != 0 {
                log::info!("nobody pulls {}: the kernel lets it go by itself", devices::slots()[*at].name);
            }
            dimm.place.hotplug().eject(dimm.place.slot());
            wait_until(gone);
        }
    }
}

/// Has the host put the modules back, and waits until the kernel has dealt with them. Are they back? Their devices are attached
/// then, and device `for_files` is mounted.
///
/// # Errors
/// They were put back, and are not used as they were.
fn put_back(fallen: &[(usize, &'static Dimm)], for_files: usize, host_requests_s: u64) -> Result<bool, String> {
    let before: Vec<_> = fallen.iter().map(|(_, dimm)| dimm.arrivals()).collect();
    for (_, dimm) in fallen {
        host_request::ask("put", dimm.place.slot(), host_requests_s);
    }
    let deadline = time::since_first_line_ns().saturating_add(host_requests_s * 1_000_000_000);
    let all_came = || fallen.iter().zip(&before).all(|((_, dimm), &before)| dimm.arrivals() > before);
    let are_in = || fallen.iter().all(|(_, dimm)| dimm.place.status().enabled);
    wait_until(|| all_came() || (time::since_first_line_ns() >= deadline && !are_in()));
    if !all_came() {
        log::info!("nobody puts the modules back: what is on them is not looked at");
        return Ok(false);
    }
    let name = |at: usize| &devices::slots()[at].name;
    if let Some((at, _)) = fallen.iter().find(|(at, _)| devices::not_attached(*at).is_ok()) {
        return Err(format!("desk: {} was put back, and is not attached", name(*at)));
    }
    if mounts::get(for_files).is_err() {
        return Err(format!("desk: {} was put back, and is not mounted", name(for_files)));
    }
    Ok(true)
}
