//! Tests of PCI's configuration space and of a virtio-pmem device, where there is one.

use alloc::format;
use alloc::string::String;
use alloc::vec;

use dax::removal::Method;
use mm::ledger::Kind;
use mm::pagemap::MemoryKind;
use nvdimm::pmem::block::{BlockError, SECTOR_BYTES};
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};

use crate::io::pci;
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::mem::books;
use crate::mem::machine::mm;
use crate::pmem::bytes;
use crate::pmem::devices::{self, DeviceError};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test { name: "virtio.pci.configuration_space_answers", covers: "", run: configuration_space },
    Test { name: "virtio.pmem.attaches_for_file_systems_and_flushes", covers: "A7", run: attach_and_flush },
    Test { name: "virtio.pmem.leaves_nothing_and_attaches_again", covers: "A6 A7 R10", run: leaves_nothing },
];

const SECTOR: usize = SECTOR_BYTES as usize;

fn configuration_space(_: &mut Ctx) -> Result<(), String> {
    let at = |bus, device, function| pci::Ports.read_word(DeviceFunction { bus, device, function }, 0);
    let bridge = at(0, 0, 0);
    check!(!matches!(bridge as u16, 0 | 0xffff), "there is no host bridge: {bridge:#x}");
    check_eq!(at(255, 31, 7), u32::MAX, "a function that does not exist");
    let (vendor, device) = (bridge as u16, (bridge >> 16) as u16);
    let found = pci::find(vendor, device);
    check!(
        found.first() == Some(&DeviceFunction { bus: 0, device: 0, function: 0 }),
        "the walk does not find the host bridge first: {found:?}"
    );
    Ok(())
}

/// The first virtio-pmem device that nobody has attached; says why not otherwise.
fn lent_slot(ctx: &mut Ctx) -> Option<usize> {
    let at = devices::slots().iter().position(|slot| slot.provider() == "virtio-pmem");
    match at {
        None => ctx.skip("no virtio-pmem device (start with --virtio-pmem 64M)"),
        Some(at) if devices::block(at).is_ok() => ctx.skip("the virtio-pmem device is in use"),
        Some(at) => return Some(at),
    }
    None
}

fn in_words(error: impl core::fmt::Display) -> String {
    format!("{error}")
}

fn attach_and_flush(ctx: &mut Ctx) -> Result<(), String> {
    let Some(at) = lent_slot(ctx) else { return Ok(()) };
    let slot = &devices::slots()[at];
    devices::attach_as(at, slot.kind()).map_err(in_words)?;
    let block = devices::block(at).map_err(in_words)?;
    let result = write_and_read(at);
    let removed = devices::remove(at, Method::Ranged).map_err(in_words)?;
    result?;
    check_eq!(removed.problems().count(), 0, "problems of the removal");
    check_eq!(block.flush(), Err(BlockError::NoSuchDevice), "a flush after the removal");
    check_eq!(block.read(0, &mut [0; SECTOR]), Err(BlockError::NoSuchDevice), "a read after the removal");
    Ok(())
}

fn write_and_read(at: usize) -> Result<(), String> {
    let block = devices::block(at).map_err(in_words)?;
    let maps = &mut vec![];
    mm().meta.for_each_map(&mut |map| maps.push((map.kind(), map.ranges()[0])));
    check!(maps.contains(&(MemoryKind::FsDax, devices::slots()[at].frames)), "its page map is not fsdax: {maps:?}");
    match (devices::has_dax(at).map_err(in_words)?, devices::file(at)) {
        (true, Err(DeviceError::ForFileSystem)) | (false, Err(DeviceError::Dax(_))) => {}
        (has_dax, file) => return Err(format!("DAX {has_dax}, and a file: {}", file.is_ok())),
    }
    let last = block.nr_sectors() - 1;
    for (sector, fill) in [(0, 0x5a), (1, 0xa5), (last, 0x3c)] {
        block.write(sector, &[fill; SECTOR]).map_err(|error| format!("write of sector {sector}: {error}"))?;
    }
    block.flush().map_err(|error| format!("flush: {error}"))?;
    for (sector, fill) in [(0, 0x5a), (1, 0xa5), (last, 0x3c)] {
        let mut back = [0; SECTOR];
        block.read(sector, &mut back).map_err(|error| format!("read of sector {sector}: {error}"))?;
        check!(back == [fill; SECTOR], "sector {sector} holds {:#x}, not {fill:#x}", back[0]);
    }
    Ok(())
}

fn leaves_nothing(ctx: &mut Ctx) -> Result<(), String> {
    let Some(at) = lent_slot(ctx) else { return Ok(()) };
    // Once, so that the tables that stay below the kernel's root exist.
    let round = |kind| -> Result<(), String> {
        devices::attach_as(at, kind).map_err(in_words)?;
        bytes::write(at, 4090, b"across two pages")?;
        check_eq!(bytes::read(at, 4090, 16)?, b"across two pages", "what was written");
        devices::remove(at, Method::Ranged).map_err(in_words)?;
        Ok(())
    };
    round(MemoryKind::FsDax)?;
    let books = || (mm().ledger_snapshot(), books::frames());
    let (ledger, frames) = books();
    for kind in [MemoryKind::FsDax, MemoryKind::DevDax, MemoryKind::FsDax] {
        round(kind)?;
        let (ledger_now, frames_now) = books();
        for &counted in Kind::ALL {
            check_eq!(ledger_now.count(counted), ledger.count(counted), "{counted} after {kind}");
        }
        check_eq!(frames_now, frames, "frames of RAM after {kind}");
    }
    Ok(())
}
