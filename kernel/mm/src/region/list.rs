//! The lists of registrations: one for each page map, so that a removal looks at those of its own device and no others.
//!
//! A registration whose pages lie on several devices is on the list of each. Who wants all of them finds it once, on the
//! list of the device with its first page.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::Region;
use crate::addr::PfnRange;
use crate::context::MmContext;
use crate::machine::{Machine, has_room};
use crate::pagemap::MapId;
use crate::sync::Arc;

/// The registrations that have pages of one page map, by rising key.
struct OfMap<M: Machine> {
    id: MapId,
    regions: Vec<Arc<Region<M>>>,
}

/// All lists, in no order; none is empty.
pub(super) struct Lists<M: Machine> {
    by_map: Vec<OfMap<M>>,
}

impl<M: Machine> Lists<M> {
    pub(super) fn new() -> Self {
        Self { by_map: Vec::new() }
    }

    /// Each registration once.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Region<M>>> {
        self.by_map.iter().flat_map(|list| {
            list.regions.iter().filter(|region| region.maps.first().is_none_or(|&home| home == list.id))
        })
    }

    /// Those of one page map, by rising key.
    pub(super) fn of(&self, id: Option<MapId>) -> &[Arc<Region<M>>] {
        self.by_map.iter().find(|list| Some(list.id) == id).map_or(&[], |list| &list.regions)
    }

    /// Puts a registration on its lists; on all or, where memory is short, on none. Says which.
    pub(super) fn put(&mut self, machine: &M, region: &Arc<Region<M>>) -> bool {
        let put = region.maps.iter().all(|&id| self.put_on(machine, id, region));
        if !put {
            self.take(region);
        }
        put
    }

    fn put_on(&mut self, machine: &M, id: MapId, region: &Arc<Region<M>>) -> bool {
        let known = self.by_map.iter().position(|list| list.id == id);
        let nth = known.unwrap_or(self.by_map.len());
        if known.is_none() {
            if !has_room(machine, &mut self.by_map) {
                return false;
            }
            self.by_map.push(OfMap { id, regions: Vec::new() });
        }
        let list = &mut self.by_map[nth].regions;
        if !has_room(machine, list) {
            self.forget_empty(nth);
            return false;
        }
        let at = list.partition_point(|other| other.key < region.key);
        list.insert(at, Arc::clone(region));
        true
    }

    /// Takes a registration off every list that it is on. Says whether it was on one.
    pub(super) fn take(&mut self, region: &Region<M>) -> bool {
        let mut taken = false;
        for &id in &region.maps {
            let Some(nth) = self.by_map.iter().position(|list| list.id == id) else { continue };
            let list = &mut self.by_map[nth].regions;
            if let Ok(at) = list.binary_search_by_key(&region.key, |other| other.key) {
                // Whoever takes it off has a reference of his own: nothing is dropped under the lock.
                list.remove(at);
                taken = true;
            }
            self.forget_empty(nth);
        }
        taken
    }

    fn forget_empty(&mut self, nth: usize) {
        if self.by_map[nth].regions.is_empty() {
            self.by_map.swap_remove(nth);
        }
    }
}

/// The page maps that have pages of these runs, in the order of the runs, each once. `None` where memory is short.
pub(super) fn maps_of<M: Machine>(mm: &MmContext<M>, runs: &[PfnRange]) -> Option<Box<[MapId]>> {
    let mut maps = Vec::new();
    for &run in runs {
        let mut at = run.start();
        while at < run.end() {
            // Its pages are pinned, so its page map is registered, if perhaps dying.
            let Some(map) = mm.meta.find_map(at) else { break };
            let (Some(range), Some(id)) = (map.range_of(at), map.id()) else { break };
            if !maps.contains(&id) {
                if !has_room(&mm.machine, &mut maps) {
                    return None;
                }
                maps.push(id);
            }
            at = range.end();
        }
    }
    Some(maps.into_boxed_slice())
}
