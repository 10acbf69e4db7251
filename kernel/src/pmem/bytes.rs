//! Any bytes of a device, by way of its sectors.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use media::btt::Table;
use mm::machine::Machine;
use mm::sync::SleepLock;
use nvdimm::pmem::block::{BlockDevice, BlockError, SECTOR_BYTES};

use crate::mem::machine::{KernelMachine, mm};
use crate::pmem::slots::{Slot, slots};
use crate::pmem::{contents, devices};

/// The most bytes at once.
const MOST: usize = 64 << 10;

/// Reads `len` bytes at `offset_bytes` of slot `at` through the block path; where that is a namespace in sector mode, which
/// nobody attaches, by its block translation table.
///
/// # Errors
/// One clear line.
pub fn read(at: usize, offset_bytes: u64, len: usize) -> Result<Vec<u8>, String> {
    check_len(len)?;
    if let Some(parent) = slots().get(at).and_then(Slot::in_sectors) {
        return contents::look(at, |medium| {
            let table = Table::open(medium, parent).map_err(|fault| format!("{fault}"))?;
            let mut bytes = zeroes(len)?;
            table.read(medium, offset_bytes, &mut bytes).map_err(|error| format!("{error}"))?;
            Ok(bytes)
        })?;
    }
    let (block, first, skip, mut sectors) = sectors_around(at, offset_bytes, len)?;
    block.read(first, &mut sectors).map_err(|error| in_bytes(&error))?;
    sectors.truncate(skip + len);
    sectors.drain(..skip);
    Ok(sectors)
}

/// Writes bytes at `offset_bytes` of slot `at` through the block path. Durable when it returns.
///
/// # Errors
/// One clear line.
pub fn write(at: usize, offset_bytes: u64, bytes: &[u8]) -> Result<(), String> {
    // What lies around the bytes in their sectors is read and written back: of two who do that at once one would be lost.
    static WRITING: SleepLock<()> = SleepLock::new(());
    let _one_at_a_time = WRITING.take(|| mm().machine.relax());
    let (block, first, skip, mut sectors) = sectors_around(at, offset_bytes, bytes.len())?;
    block.read(first, &mut sectors).map_err(|error| in_bytes(&error))?;
    sectors[skip..][..bytes.len()].copy_from_slice(bytes);
    block.write(first, &sectors).map_err(|error| in_bytes(&error))
}

/// The error, for somebody who thinks in bytes.
pub fn in_bytes(error: &BlockError) -> String {
    match error {
        BlockError::OutOfRange { nr_sectors } => {
            format!("out of range: the device has {} bytes", nr_sectors * SECTOR_BYTES)
        }
        BlockError::Io { sector } => {
            let first = sector * SECTOR_BYTES;
            format!("I/O error: the contents of bytes {first}..{} are lost", first + SECTOR_BYTES)
        }
        _ => format!("{error}"),
    }
}

/// So many zeroes, which lie in one piece.
///
/// # Errors
/// There is no memory for them: one clear line.
pub fn zeroes(len: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| format!("out of memory: there are no {len} bytes in one piece"))?;
    bytes.resize(len, 0);
    Ok(bytes)
}

fn check_len(len: usize) -> Result<(), String> {
    if len == 0 || len > MOST { Err(format!("a length of {len} bytes; expected 1 to {MOST}")) } else { Ok(()) }
}

type Sectors = (Arc<BlockDevice<KernelMachine>>, u64, usize, Vec<u8>);

/// The block device, the first sector of a byte range, the bytes before the range in it, and room for all of them.
fn sectors_around(at: usize, offset_bytes: u64, len: usize) -> Result<Sectors, String> {
    check_len(len)?;
    let block = devices::block(at).map_err(|error| format!("{error}"))?;
    let skip = (offset_bytes % SECTOR_BYTES) as usize;
    let bytes = (skip + len).next_multiple_of(SECTOR_BYTES as usize);
    Ok((block, offset_bytes / SECTOR_BYTES, skip, zeroes(bytes)?))
}
