//! This kernel, as the pmem driver sees it: the direct map, and copies that last.

use alloc::sync::Arc;

use mm::addr::{PAGE_SIZE, PfnRange};
use mm::ledger::Kind;
use nvdimm::pmem::memory::{FlushError, MapFailed, MediaError, PmemHost, PmemMemory};

use crate::mem::machine::mm;
use crate::mem::{layout, paging};

/// Maps ranges of persistent memory into the direct map.
pub struct Host;

impl PmemHost for Host {
    fn map(&self, range: PfnRange) -> Result<Arc<dyn PmemMemory>, MapFailed> {
        let leaves = paging::map_device(range).map_err(|error| match error {
            paging::MapError::OutOfMemory => MapFailed::OutOfMemory,
            _ => MapFailed::NoRoom,
        })?;
        mm().ledger.charge(Kind::DirectMapLeaves, leaves as i64);
        Ok(Arc::new(Window { frames: range }))
    }

    fn unmap(&self, range: PfnRange) {
        let leaves = paging::unmap_device(range);
        mm().ledger.charge(Kind::DirectMapLeaves, -(leaves as i64));
    }
}

/// A mapped range. The driver uses it only between `map` and `unmap`.
struct Window {
    frames: PfnRange,
}

impl Window {
    /// The bytes from `offset_bytes` on.
    ///
    /// # Panics
    /// Where they are not all inside the range: the driver has checked that.
    fn pointer(&self, offset_bytes: u64, len: usize) -> *mut u8 {
        let end = offset_bytes.checked_add(len as u64);
        assert!(
            end.is_some_and(|end| end <= self.frames.nr_pages() * PAGE_SIZE),
            "pmem access of {len} bytes at {offset_bytes:#x} outside the device"
        );
        let base: *mut u8 = layout::direct_ptr(self.frames.start().addr());
        base.wrapping_add(offset_bytes as usize)
    }
}

impl PmemMemory for Window {
    fn read(&self, offset_bytes: u64, into: &mut [u8]) -> Result<(), MediaError> {
        let from = self.pointer(offset_bytes, into.len());
        // SAFETY: the driver uses a window only while it is mapped, and `pointer` has checked the bounds. Other CPUs
        // and tasks may store there meanwhile, as to any shared memory: `copy` reads bytes whatever they are, and
        // `into` is ours alone.
        unsafe { core::ptr::copy(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    fn write(&self, offset_bytes: u64, from: &[u8]) -> Result<(), MediaError> {
        let to = self.pointer(offset_bytes, from.len());
        // SAFETY: as for `read`; device memory belongs to no Rust object.
        unsafe { core::ptr::copy(from.as_ptr(), to, from.len()) };
        // SAFETY: the bytes were written just now and are mapped. Only their addresses are used.
        arch::cache::write_back(unsafe { core::slice::from_raw_parts(to, from.len()) });
        Ok(())
    }

    fn fence(&self) -> Result<(), FlushError> {
        arch::cache::fence();
        Ok(())
    }
}
