//! A device as something to be looked at, attached or not: what lies on it is known before anybody writes.

use alloc::vec::Vec;

use media::{Medium, Unreadable};
use mm::addr::{PAGE_SIZE, PfnRange};
use mm::machine::Machine;

use super::area::Area;
use super::badblocks::SectorRun;
use super::block::{BlockDevice, BlockError, SECTOR_BYTES};
use super::guards::DirectMapping;
use super::{AttachError, PmemDriver};

/// A range that is mapped for as long as somebody looks. What its own list says is lost is not read.
struct Mapped {
    mapping: DirectMapping,
    lost: Vec<SectorRun>,
}

impl Medium for Mapped {
    fn len_bytes(&self) -> u64 {
        self.mapping.range().nr_pages() * PAGE_SIZE
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let end = offset.checked_add(into.len() as u64).filter(|&end| end <= self.len_bytes()).ok_or(Unreadable)?;
        let (first, end) = (offset / SECTOR_BYTES, end.div_ceil(SECTOR_BYTES));
        if self.lost.iter().any(|run| run.first < end && first < run.end()) {
            return Err(Unreadable);
        }
        self.mapping.memory().read(offset, into).map_err(|_| Unreadable)
    }
}

impl<M: Machine> PmemDriver<M> {
    /// Shows `work` the bytes of a range that is not attached, to the last one: the device's own area too.
    ///
    /// # Errors
    /// The frames are in use, or cannot be mapped.
    pub fn look<R>(&self, name: &str, range: PfnRange, work: impl FnOnce(&dyn Medium) -> R) -> Result<R, AttachError> {
        let _claim = self.claims.claim(range, name)?;
        let mappings = [DirectMapping::new(&self.host, range)?];
        let mut lost = Vec::new();
        if let Some(area) = Area::find(&mappings) {
            area.load(&mut |run| lost.push(run));
        }
        let [mapping] = mappings;
        Ok(work(&Mapped { mapping, lost }))
    }
}

impl<M: Machine> BlockDevice<M> {
    /// Shows `work` the bytes of the device: without its area, which is no part of it. The device stays for as long.
    ///
    /// # Errors
    /// [`BlockError::NoSuchDevice`].
    pub fn look<R>(&self, work: impl FnOnce(&dyn Medium) -> R) -> Result<R, BlockError> {
        let _request = self.enter()?;
        Ok(work(&Attached { device: self, is_sound: self.is_sound() }))
    }
}

/// An attached device. What is lost is not read.
struct Attached<'a, M: Machine> {
    device: &'a BlockDevice<M>,
    /// Nothing was lost when the looking began, so that not every read has to ask.
    is_sound: bool,
}

impl<M: Machine> Medium for Attached<'_, M> {
    fn len_bytes(&self) -> u64 {
        self.device.nr_sectors() * SECTOR_BYTES
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let end = offset.checked_add(into.len() as u64).filter(|&end| end <= self.len_bytes()).ok_or(Unreadable)?;
        let first = offset / SECTOR_BYTES;
        if !self.is_sound && self.device.first_lost(first, end.div_ceil(SECTOR_BYTES) - first).is_some() {
            return Err(Unreadable);
        }
        self.device.peek(offset, into).map_err(|_| Unreadable)
    }
}
