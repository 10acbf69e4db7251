//! Devices: how a transfer is translated.

use iommu::caps::Levels;
use iommu::entry::{ContextEntry, Entry, Rights, RootEntry};
use iommu::fault::{Fault, Kind, Reason};
use iommu::source::SourceId;
use iommu::{index, order};
use mm::addr::{PAGE_SHIFT, Pfn, PhysAddr};

use super::caches::{Cached, Found};
use super::{Relaxed, State, Unit};

impl Unit {
    /// The device writes a word: says where it went.
    ///
    /// # Errors
    /// It was blocked, which is recorded too.
    pub fn device_writes(&self, source: SourceId, address: u64, value: u64) -> Result<PhysAddr, Fault> {
        let mut state = self.state.lock();
        let at = self.transfer(&mut state, source, address, Kind::Write)?;
        state.memory.insert(at.as_u64() & !7, value);
        Ok(at)
    }

    /// The device reads a word: says from where, and what.
    ///
    /// # Errors
    /// As [`device_writes`](Self::device_writes).
    pub fn device_reads(&self, source: SourceId, address: u64) -> Result<(PhysAddr, u64), Fault> {
        let mut state = self.state.lock();
        let at = self.transfer(&mut state, source, address, Kind::Read)?;
        Ok((at, state.memory.get(&(at.as_u64() & !7)).copied().unwrap_or(0)))
    }

    fn transfer(&self, state: &mut State, source: SourceId, address: u64, kind: Kind) -> Result<PhysAddr, Fault> {
        let result = self.translate(state, source, address, kind);
        result.map_err(|reason| {
            let fault = Fault { source, address: address & !0xfff, kind, reason };
            state.nr_faults += 1;
            if state.records.len() < self.make.records {
                state.records.push(fault);
            } else {
                state.overflow = true;
            }
            fault
        })
    }

    fn translate(&self, state: &mut State, source: SourceId, address: u64, kind: Kind) -> Result<PhysAddr, Reason> {
        let (page, offset) = (address >> PAGE_SHIFT, address & 0xfff);
        // A store there is an interrupt.
        assert!(!(0xfee0_0000..0xfef0_0000).contains(&address), "a device was told to use the interrupt window");
        let reason = if kind == Kind::Write { Reason::NotWritable } else { Reason::NotReadable };
        let wanted = if kind == Kind::Write { Rights::WRITE } else { Rights::READ };
        let reached = match state.caches.translation(source, page) {
            Some(cached) => cached,
            None => {
                let found = self.context(state, source)?;
                if state.caches.nothing.contains(&(source, found.domain, page)) {
                    return Err(reason);
                }
                match self.walk(state, found, page)? {
                    Some(leaf) if leaf.rights.contains(wanted) => self.keep(state, source, found, page, leaf),
                    Some(_) => return Err(reason),
                    None => {
                        if self.make.caching_mode {
                            state.caches.nothing.insert((source, found.domain, page));
                        }
                        return Err(reason);
                    }
                }
            }
        };
        if !reached.rights.contains(wanted) {
            return Err(reason);
        }
        let pfn = reached.pfn.add(page - reached.page);
        Ok(PhysAddr::new(pfn.addr().as_u64() | offset))
    }

    /// The IOTLB keeps the leaf, or the piece of it that was used.
    fn keep(&self, state: &mut State, source: SourceId, found: Found, page: u64, leaf: Cached) -> Cached {
        let kept = match self.make.pieces {
            true => Cached { page, order: 0, pfn: leaf.pfn.add(page - leaf.page), rights: leaf.rights },
            false => leaf,
        };
        state.caches.iotlb.insert((source, found.domain, kept.page, kept.order), kept);
        kept
    }

    /// Which domain a device is in.
    fn context(&self, state: &mut State, source: SourceId) -> Result<Found, Reason> {
        if let Some(found) = state.caches.contexts.get(&source) {
            return Ok(*found);
        }
        let root = Pfn::new(self.root.load(Relaxed));
        let at = 2 * usize::from(source.bus);
        let bus = RootEntry { low: self.read(root, at), high: self.read(root, at + 1) };
        if bus.high != 0 || bus.low & 0xffe != 0 {
            return Err(Reason::ReservedInRoot);
        }
        let table = bus.table().ok_or(Reason::NoRoot)?;
        let at = 2 * usize::from(source.devfn());
        // The half that says "present" comes first: the other was written before it.
        let low = self.read(table, at);
        let context = ContextEntry { low, high: self.read(table, at + 1) };
        if !context.is_present() {
            return Err(Reason::NoContext);
        }
        if low & 0xff0 != 0 || context.high & !0xff_ff7f != 0 {
            return Err(Reason::ReservedInContext);
        }
        let width = context.levels().filter(|levels| self.make.capabilities().walks(*levels));
        let levels: Levels = width.ok_or(Reason::BadContext)?;
        let found = Found { domain: context.domain(), root: context.root(), levels };
        state.caches.contexts.insert(source, found);
        Ok(found)
    }

    /// Down the tables, from the lowest that is remembered; the leaf, if there is one.
    fn walk(&self, state: &mut State, found: Found, page: u64) -> Result<Option<Cached>, Reason> {
        let top = found.levels.count();
        if page >> (found.levels.bits().min(self.make.bits) - PAGE_SHIFT as u8) != 0 {
            return Err(Reason::BeyondWidth);
        }
        let remembered = |level: u8| {
            let table = state.caches.tables.get(&(found.domain, level, page >> order(level)));
            table.map(|table| (level - 1, *table))
        };
        let (mut level, mut table) = (2..=top).find_map(remembered).unwrap_or((top, found.root));
        loop {
            let entry = Entry::from_bits(self.read(table, index(page, level)));
            if !entry.is_present() {
                return Ok(None);
            }
            if entry.bits() >> self.make.bits != 0 {
                return Err(Reason::ReservedInEntry);
            }
            if entry.is_leaf(level) {
                let order = order(level);
                let allowed = level == 1 || level == 2 && self.make.large_2m || level == 3 && self.make.large_1g;
                if !allowed || entry.pfn().as_u64() & ((1 << order) - 1) != 0 {
                    return Err(Reason::ReservedInEntry);
                }
                let first = page >> order << order;
                return Ok(Some(Cached { page: first, order, pfn: entry.pfn(), rights: entry.rights() }));
            }
            if self.make.paging_caches {
                state.caches.tables.insert((found.domain, level, page >> order(level)), entry.pfn());
            }
            (level, table) = (level - 1, entry.pfn());
        }
    }
}
