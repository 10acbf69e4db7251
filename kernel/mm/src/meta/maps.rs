//! The page maps that a store knows, by number and by frame.

use alloc::vec::Vec;
use core::fmt;

use crate::addr::{Pfn, PfnRange};
use crate::pagemap::{DevPagemap, MapId, MapState};
use crate::sync::Arc;

/// Why a page map was not registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterError {
    /// It is registered already, here or in another store.
    AlreadyRegistered,
    /// This range of frames belongs to a registered page map.
    Overlap(PfnRange),
    /// All 65,536 numbers are taken.
    TooMany,
}

impl fmt::Display for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyRegistered => f.write_str("the page map is registered already"),
            Self::Overlap(range) => {
                write!(f, "frames {}..{} belong to another page map", range.start(), range.end())
            }
            Self::TooMany => f.write_str("too many page maps"),
        }
    }
}

impl core::error::Error for RegisterError {}

/// Why a page map was not unregistered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnregisterError {
    /// The store does not know it.
    NotRegistered,
    /// This many of its folios are live.
    Busy(u64),
}

impl fmt::Display for UnregisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRegistered => f.write_str("the page map is not registered"),
            Self::Busy(folios) => write!(f, "{folios} folios of the page map are live"),
        }
    }
}

impl core::error::Error for UnregisterError {}

/// The registered page maps. Inside the store's lock.
#[derive(Default)]
pub(super) struct Maps {
    /// By number.
    by_id: Vec<Option<Arc<DevPagemap>>>,
    /// All ranges, rising and disjoint.
    ranges: Vec<(PfnRange, MapId)>,
}

impl Maps {
    /// Gives `map` a number and lets it live.
    pub(super) fn add(&mut self, map: &Arc<DevPagemap>) -> Result<MapId, RegisterError> {
        if map.state() != MapState::Unregistered {
            return Err(RegisterError::AlreadyRegistered);
        }
        let overlap = map.ranges().iter().find_map(|&new| {
            let after = self.ranges.partition_point(|&(range, _)| range.end() <= new.start());
            self.ranges.get(after).filter(|(range, _)| range.overlaps(new))
        });
        if let Some(&(range, _)) = overlap {
            return Err(RegisterError::Overlap(range));
        }
        let index = self.by_id.iter().position(Option::is_none).unwrap_or(self.by_id.len());
        let id = MapId(u16::try_from(index).map_err(|_| RegisterError::TooMany)?);
        if index == self.by_id.len() {
            self.by_id.push(None);
        }
        self.by_id[index] = Some(Arc::clone(map));
        self.ranges.extend(map.ranges().iter().map(|&range| (range, id)));
        self.ranges.sort_unstable_by_key(|(range, _)| range.start());
        map.set_live(id);
        Ok(id)
    }
    /// Forgets `map`, which has no live folio.
    pub(super) fn remove(&mut self, map: &DevPagemap) -> Result<(), UnregisterError> {
        let id = self.number_of(map).ok_or(UnregisterError::NotRegistered)?;
        if !map.is_drained() {
            return Err(UnregisterError::Busy(map.live_folios()));
        }
        self.ranges.retain(|&(_, owner)| owner != id);
        self.by_id[usize::from(id.0)] = None;
        while let Some(None) = self.by_id.last() {
            self.by_id.pop();
        }
        map.set_unregistered();
        Ok(())
    }
    /// The number of `map`, if this store has given it one.
    pub(super) fn number_of(&self, map: &DevPagemap) -> Option<MapId> {
        let id = map.id()?;
        let known = self.by_id.get(usize::from(id.0))?.as_ref()?;
        core::ptr::eq(&**known, map).then_some(id)
    }
    /// The page map with this number, as a live page's metadata has it.
    pub(super) fn by_id(&self, id: MapId) -> Option<&Arc<DevPagemap>> {
        self.by_id.get(usize::from(id.0))?.as_ref()
    }
    /// The page map of `pfn`, and the range that holds it.
    pub(super) fn find(&self, pfn: Pfn) -> Option<(&Arc<DevPagemap>, PfnRange)> {
        let after = self.ranges.partition_point(|(range, _)| range.start() <= pfn);
        let &(range, id) = self.ranges.get(after.checked_sub(1)?)?;
        let map = self.by_id[usize::from(id.0)].as_ref()?;
        range.contains(pfn).then_some((map, range))
    }
    /// The first range that ends behind `pfn`.
    pub(super) fn range_at_or_after(&self, pfn: Pfn) -> Option<PfnRange> {
        let first = self.ranges.partition_point(|(range, _)| range.end() <= pfn);
        self.ranges.get(first).map(|&(range, _)| range)
    }
    /// The page map with the lowest number that is at least `from`, and that number.
    pub(super) fn at_or_after(&self, from: usize) -> Option<(usize, &Arc<DevPagemap>)> {
        (from..).zip(self.by_id.get(from..)?).find_map(|(nr, map)| Some((nr, map.as_ref()?)))
    }
}
