//! Address spaces: VMAs, faults, map, unmap, protect.
//!
//! # Protocol
//! One readers-writer lock for each space. A fault (and gup's slow path) holds it *shared*, so that faults go on in
//! parallel, in different VMAs and in the same one; map, unmap, protect and a zap from outside hold it
//! *exclusively*.
//!
//! | lock, in rank order | may wait for a shootdown while holding it? |
//! |---|---|
//! | 1 address space, exclusive | yes: nobody who must acknowledge a shootdown waits for it with interrupts off |
//! | 1 address space, shared | no need: nothing is removed under it |
//! | 2 provider's liveness guard (SRCU) | no |
//! | 3 reverse map of a mapping | no |
//! | 4 page metadata | no |
//!
//! An `unmap` waits for its shootdown under the lock, so that the addresses cannot be used for something else while
//! another CPU still translates them in the old way. A zap from outside ([`unmap_mapping_range`]) covers many
//! spaces with one round and therefore leaves each lock before that round; an `unmap` that meets such an open round
//! adds a full flush of its own.
//!
//! [`unmap_mapping_range`]: crate::mapping::unmap_mapping_range

use alloc::collections::BTreeMap;

use crate::account::{DEFAULT_LIMIT_PAGES, PinAccount};
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, PageSize, PhysAddr, VirtAddr, VirtRange};
use crate::context::MmContext;
use crate::entry::Prot;
use crate::gather::{Gather, ZapStats};
use crate::ledger::Kind;
use crate::lock_check;
use crate::machine::{Machine, Point};
pub use crate::mapping::Mapping;
use crate::mutant::Mutant;
use crate::pagemap::MemoryKind;
use crate::shootdown::{FlushRange, TlbState};
use crate::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use crate::table::{Found, Table};
pub use crate::vma::{Access, FaultError, FaultRequest, FaultTarget, MapError, SigBusCause, VmOps};
use crate::vma::{Vma, Vmas};

/// First address that can be mapped: the page at 0 stays free, so that whoever follows a null pointer faults. Under a
/// checker, whose page tables have two entries, it is one of two pages, and is not spared.
pub const USER_START: VirtAddr = VirtAddr::new(if cfg!(any(loom, shuttle)) { 0 } else { PAGE_SIZE });

/// An address space: a page table and the VMAs that say what belongs into it.
///
/// A task maps a device, and touches it:
/// ```
/// use mm::addr::{PAGE_SIZE, PageSize, Pfn, VirtAddr};
/// use testkit::emu::{self, Frames, Task};
/// use mm::entry::Prot;
/// use mm::space::{AddressSpace, FaultError};
///
/// let mm = emu::context(2);
/// let device = Frames::new(&mm, Pfn::new(0x10_0000), 512);
/// let (space, va) = (AddressSpace::new(&mm, "task").unwrap(), VirtAddr::new(0x40_0000_0000));
/// space.map(va, PageSize::Size2M.bytes(), Prot::USER_WRITE, &device.ops(), 0).unwrap();
/// assert_eq!(space.translate(va), None, "pages come with faults");
///
/// let task = Task::start(&space, 1);
/// task.store(va, 42).unwrap();
/// assert_eq!(space.translate(va).unwrap().size, PageSize::Size2M, "the largest leaf that fits");
///
/// space.unmap(va, PAGE_SIZE).unwrap();
/// assert_eq!(task.load(va), Err(FaultError::NotMapped(va)));
/// ```
pub struct AddressSpace<M: Machine> {
    mm: Arc<MmContext<M>>,
    tlb: Arc<TlbState>,
    /// That of `tlb`: gup-fast has it from here with one load.
    root: PhysAddr,
    /// Shared with the reports that name the space, so that these need no memory for it.
    name: alloc::sync::Arc<str>,
    /// Who pays for what is pinned through it; opened when it is first asked for.
    account: Mutex<Option<Arc<PinAccount>>>,
    vmas: RwLock<Vmas<M>>,
}

impl<M: Machine> AddressSpace<M> {
    /// An empty space, called `name` in messages.
    ///
    /// # Errors
    /// [`FaultError::OutOfMemory`]: no frame for the root table.
    pub fn new(mm: &Arc<MmContext<M>>, name: &str) -> Result<Arc<Self>, FaultError> {
        let root = mm.alloc_table().ok_or(FaultError::OutOfMemory)?;
        mm.machine.init_root(root);
        mm.ledger.charge(Kind::AddressSpaces, 1);
        let space = Arc::new(Self {
            mm: Arc::clone(mm),
            tlb: Arc::new(TlbState::new(mm.new_id(), root)),
            root: root.addr(),
            name: alloc::sync::Arc::from(name),
            account: Mutex::new(None),
            vmas: RwLock::new(Vmas(BTreeMap::new())),
        });
        #[cfg(all(debug_assertions, not(loom)))]
        mm.add_space(&space);
        Ok(space)
    }

    /// Number of the space; not 0.
    pub fn id(&self) -> u64 {
        self.tlb.id()
    }
    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// The same, for one who keeps it.
    pub fn shared_name(&self) -> &alloc::sync::Arc<str> {
        &self.name
    }
    /// The context it belongs to.
    pub fn mm(&self) -> &Arc<MmContext<M>> {
        &self.mm
    }
    /// The account of its owner: of all that is pinned through it, long or short, unless another is given. It has the
    /// space's name and the usual limit ([`DEFAULT_LIMIT_PAGES`]).
    pub fn account(&self) -> Arc<PinAccount> {
        let open = || self.mm.pins.open_account(&self.name, DEFAULT_LIMIT_PAGES);
        Arc::clone(self.account.lock().get_or_insert_with(open))
    }
    /// What [`Shootdown::switch_to`](crate::shootdown::Shootdown::switch_to) loads.
    pub fn tlb(&self) -> &Arc<TlbState> {
        &self.tlb
    }
    /// Address of the root table.
    #[inline(always)]
    pub(crate) fn root(&self) -> PhysAddr {
        self.root
    }
    /// One past the last user address.
    #[inline]
    pub fn user_end(&self) -> VirtAddr {
        // The lower half of the canonical addresses. The top page stays free, as on Linux: a system call at its
        // very end would return to a non-canonical address (`TASK_SIZE_MAX`).
        VirtAddr::new(self.half_end().as_u64() - PAGE_SIZE)
    }

    /// One past the lower half of the canonical addresses: the tables of this half belong to this space alone.
    pub(crate) fn half_end(&self) -> VirtAddr {
        VirtAddr::new(1 << (12 + 9 * u32::from(self.mm.machine.levels()) - 1))
    }

    pub(crate) fn table(&self) -> Table<'_, M> {
        Table { mm: &self.mm, tlb: &self.tlb }
    }

    /// Shared access: faults and gup. Spins with `relax`, so that a holder on this CPU can run.
    #[track_caller]
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Vmas<M>> {
        self.assert_may_wait();
        #[cfg(not(loom))]
        loop {
            if let Some(guard) = self.vmas.try_read() {
                return guard;
            }
            self.mm.machine.relax();
        }
        #[cfg(loom)]
        self.vmas.read()
    }

    /// Exclusive access: map, unmap, protect, zap.
    #[track_caller]
    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Vmas<M>> {
        self.assert_may_wait();
        #[cfg(not(loom))]
        loop {
            if let Some(guard) = self.vmas.try_write() {
                return guard;
            }
            self.mm.machine.relax();
        }
        #[cfg(loom)]
        self.vmas.write()
    }

    /// Whoever has the space locked may be waiting for a shootdown, and so for this CPU.
    #[inline]
    #[track_caller]
    fn assert_may_wait(&self) {
        debug_assert!(self.mm.machine.irqs_on(), "an address space was locked with interrupts off");
        lock_check::might_sleep("an address space");
    }

    fn user_range(&self, va: VirtAddr, len_bytes: u64) -> Result<VirtRange, MapError> {
        let range = VirtRange::new(va, len_bytes).ok_or(MapError::BadRange)?;
        if range.end() > self.user_end() { Err(MapError::BadRange) } else { Ok(range) }
    }

    /// Maps `len_bytes` of `ops` from `offset_pages` on at `va`. Nothing is installed: pages come with faults.
    ///
    /// # Errors
    /// See [`MapError`]; nothing is changed then.
    pub fn map(
        self: &Arc<Self>,
        va: VirtAddr,
        len_bytes: u64,
        prot: Prot,
        ops: &Arc<dyn VmOps<M>>,
        offset_pages: u64,
    ) -> Result<(), MapError> {
        let range = self.user_range(va, len_bytes)?;
        if va < USER_START && !Mutant::MapsAddressZero.is_on() {
            return Err(MapError::AtZero);
        }
        let align = ops.alignment();
        let offset_bytes = offset_pages.checked_mul(PAGE_SIZE).ok_or(MapError::BadRange)?;
        if [va.as_u64(), len_bytes, offset_bytes].iter().any(|n| n & (align.bytes() - 1) != 0) {
            return Err(MapError::Misaligned(align));
        }
        offset_bytes.checked_add(len_bytes).ok_or(MapError::BadRange)?;
        if prot.write && !ops.takes_writes() {
            return Err(MapError::ReadOnly);
        }
        let mut vmas = self.write();
        if vmas.first_in(range).is_some() {
            return Err(MapError::Occupied);
        }
        if !self.mm.machine.may_grow() {
            return Err(MapError::OutOfMemory);
        }
        let mut inserted = Ok(());
        ops.mmap(offset_pages, range.nr_pages(), &mut || {
            self.mm.machine.reached(Point::MapAdmitted);
            inserted = self.insert(&mut vmas, range, Prot { user: true, ..prot }, ops, offset_pages);
        })?;
        inserted
    }

    fn insert(
        self: &Arc<Self>,
        vmas: &mut Vmas<M>,
        range: VirtRange,
        prot: Prot,
        ops: &Arc<dyn VmOps<M>>,
        offset_pages: u64,
    ) -> Result<(), MapError> {
        let rmap = ops.mapping().insert(self, offset_pages, range).ok_or(MapError::OutOfMemory)?;
        self.mm.ledger.charge(Kind::Mappings, 1);
        let mapping = ops.mapping().id();
        vmas.0.insert(range.start(), Vma { range, prot, offset_pages, mapping, ops: Arc::clone(ops), rmap });
        Ok(())
    }

    /// Cuts the VMAs that reach out of `range`, so that one begins at each of its ends.
    ///
    /// # Errors
    /// [`MapError::CutsLeaf`], [`MapError::OutOfMemory`]; nothing is cut then.
    fn cut_at_ends(self: &Arc<Self>, vmas: &mut Vmas<M>, range: VirtRange) -> Result<(), MapError> {
        let low = cut_at(vmas, range.start())?;
        let high = cut_at(vmas, range.end())?;
        for start in low.into_iter().chain(high) {
            // For both cuts, where it is the same one.
            let has_room = vmas.0.get(&start).is_none_or(|vma| vma.ops.mapping().make_room(2));
            if !has_room || !self.mm.machine.may_grow() {
                return Err(MapError::OutOfMemory);
            }
        }
        if let Some(start) = low {
            self.cut(vmas, start, range.start());
        }
        if let Some(start) = high {
            // Where it is the same one, what is left to cut begins where it was cut first.
            self.cut(vmas, if low == high { range.start() } else { start }, range.end());
        }
        Ok(())
    }

    /// Cuts the VMA that begins at `start` in two, so that one begins at `at`, a page inside it.
    fn cut(self: &Arc<Self>, vmas: &mut Vmas<M>, start: VirtAddr, at: VirtAddr) {
        let Some(vma) = vmas.0.remove(&start) else {
            return;
        };
        let halves = VirtRange::new(start, at.as_u64() - start.as_u64())
            .zip(VirtRange::new(at, vma.range.end().as_u64() - at.as_u64()));
        let Some((low, high)) = halves else { unreachable!("a VMA is cut at a page inside it") };
        let parts = [(vma.offset_pages, low), (vma.offset_at(at), high)];
        let rmaps = vma.ops.mapping().replace(vma.rmap, self, parts);
        self.mm.ledger.charge(Kind::Mappings, 1);
        for ((offset_pages, range), rmap) in parts.into_iter().zip(rmaps) {
            let (prot, mapping, ops) = (vma.prot, vma.mapping, Arc::clone(&vma.ops));
            let part = Vma { range, prot, offset_pages, mapping, ops, rmap };
            vmas.0.insert(range.start(), part);
        }
    }

    /// Ends every mapping in the range, cutting VMAs that reach out of it. When it returns no CPU can reach the
    /// pages through this range, and their references are given back. A range in which nothing is mapped is no
    /// error, as on Linux.
    ///
    /// A mapping whose provider promises leaves of one size ([`VmOps::alignment`]) goes leaf by leaf: half of one cannot
    /// be unmapped, for what is left could be mapped by smaller leaves only (Linux: `may_split` of a device-dax file).
    ///
    /// # Errors
    /// [`MapError::BadRange`], [`MapError::CutsLeaf`], and [`MapError::OutOfMemory`] where a VMA is to be cut; nothing is
    /// changed then.
    pub fn unmap(self: &Arc<Self>, va: VirtAddr, len_bytes: u64) -> Result<ZapStats, MapError> {
        let range = self.user_range(va, len_bytes)?;
        let mut gather = Gather::new(&self.mm);
        let mut vmas = self.write();
        self.cut_at_ends(&mut vmas, range)?;
        // They stay on the map until nobody reaches the pages: a list of them would need memory, and this gives memory back.
        let mut next = vmas.first_in(range);
        if next.is_some() {
            if Mutant::FlushBeforeClear.is_on() {
                gather.issue(&self.tlb, FlushRange::All, true);
                gather.shoot_down();
            }
            let window = vmas.window(range, self.half_end());
            self.table().zap(range, window, &mut gather);
        }
        self.close_open_rounds(&mut gather);
        gather.shoot_down();
        // Up to here some CPU may have stored through the old translation: whoever cleans pages finds us, and waits.
        while let Some(vma) = next.and_then(|start| vmas.0.remove(&start)) {
            next = vmas.first_in(range);
            vma.ops.mapping().remove(vma.rmap);
            self.mm.ledger.charge(Kind::Mappings, -1);
        }
        drop(vmas);
        Ok(gather.finish())
    }

    /// A round that somebody else has issued for this space and not yet synced may cover addresses that we are about to
    /// hand out again, or whose rights we have narrowed: join it with a full flush of our own.
    pub(crate) fn close_open_rounds(&self, gather: &mut Gather<M>) {
        if self.tlb.has_pending() && !gather.has_issued(&self.tlb) {
            gather.issue(&self.tlb, FlushRange::All, true);
        }
    }

    /// The same for one who may have issued his own for this space in an earlier hold of its lock: the CPUs that have come to
    /// it since then are not among those that he interrupts, and may use what the other one has taken out.
    pub(crate) fn close_open_rounds_again(&self, gather: &mut Gather<M>) {
        if self.tlb.has_pending() && gather.has_issued(&self.tlb) && !Mutant::EarlierTargets.is_on() {
            gather.include_present(&self.tlb);
        }
        self.close_open_rounds(gather);
    }

    /// Changes the rights of every VMA in the range, cutting those that reach out of it.
    ///
    /// # Errors
    /// As for [`unmap`](Self::unmap); [`MapError::ReadOnly`] where memory in the range takes no writes and is to be
    /// writable. Nothing is changed then. A hole in the range is skipped.
    pub fn protect(self: &Arc<Self>, va: VirtAddr, len_bytes: u64, prot: Prot) -> Result<ZapStats, MapError> {
        let range = self.user_range(va, len_bytes)?;
        let prot = Prot { user: true, ..prot };
        let mut gather = Gather::new(&self.mm);
        let mut vmas = self.write();
        if prot.write && vmas.overlapping(range).any(|vma| !vma.ops.takes_writes()) {
            return Err(MapError::ReadOnly);
        }
        self.cut_at_ends(&mut vmas, range)?;
        let mut narrow = false;
        for (_, vma) in vmas.0.range_mut(range.start()..range.end()) {
            vma.prot = prot;
            narrow |= vma.ops.notes_stores();
        }
        self.table().protect(range, prot, narrow, &mut gather);
        // What somebody else has taken out and not yet shot down is out of our table, but not out of the TLBs: a store
        // through it must not succeed once we have returned.
        self.close_open_rounds(&mut gather);
        gather.shoot_down();
        drop(vmas);
        Ok(gather.finish())
    }

    /// Faults in every page of the range, which lets the first accesses go without.
    ///
    /// # Errors
    /// That of the first page that could not be served; the pages before it stay.
    pub fn populate(&self, va: VirtAddr, len_bytes: u64, access: Access) -> Result<(), FaultError> {
        let range = self.user_range(va, len_bytes).map_err(|_| FaultError::NotMapped(va))?;
        let mut at = range.start();
        while at < range.end() {
            let vmas = self.read();
            self.fault_locked(&vmas, at, access)?;
            let step = self.table().walk(at).map_or(PageSize::Size4K, |found| found.size);
            drop(vmas);
            at = at.align_down(step.bytes()).checked_add(step.bytes()).ok_or(FaultError::NotMapped(at))?;
        }
        Ok(())
    }

    /// Replaces tables full of small leaves by huge leaves wherever `range` covers a whole huge page whose frames lie
    /// in one folio, side by side and with the same rights (Linux: `MADV_COLLAPSE`). Answers how many tables went.
    ///
    /// # Errors
    /// [`MapError::BadRange`].
    pub fn promote(&self, va: VirtAddr, len_bytes: u64) -> Result<u64, MapError> {
        let range = self.user_range(va, len_bytes)?;
        let mut gather = Gather::new(&self.mm);
        let vmas = self.write();
        let mut promoted = 0;
        for size in [PageSize::Size2M, PageSize::Size1G] {
            if size == PageSize::Size1G && !self.mm.machine.has_1g_leaves() {
                continue;
            }
            let mut at = range.start().as_u64().next_multiple_of(size.bytes());
            while at + size.bytes() <= range.end().as_u64() {
                let inside = |vma: &&Vma<M>| at + size.bytes() <= vma.range.end().as_u64();
                // A leaf never reaches out of its VMA, even where the next one maps what follows.
                if vmas.find(VirtAddr::new(at)).filter(inside).is_some() {
                    promoted += u64::from(self.table().promote(VirtAddr::new(at), size, &mut gather));
                }
                at += size.bytes();
            }
        }
        gather.shoot_down();
        drop(vmas);
        drop(gather);
        Ok(promoted)
    }

    /// Pages of `range` that are mapped at this moment and whose memory is of a kind that `is` wanted.
    pub(crate) fn count_pages(&self, range: VirtRange, is: &dyn Fn(MemoryKind) -> bool) -> u64 {
        let inside = |vma: &Vma<M>| {
            let (start, end) = (vma.range.start().max(range.start()), vma.range.end().min(range.end()));
            (end.as_u64() - start.as_u64()) >> PAGE_SHIFT
        };
        self.read().overlapping(range).filter(|vma| is(vma.ops.kind())).map(inside).sum()
    }

    /// The leaf that maps `va` at this moment, for reports and tests.
    pub fn translate(&self, va: VirtAddr) -> Option<Found> {
        if va >= self.user_end() {
            return None;
        }
        let _vmas = self.read();
        self.table().walk(va)
    }
}

/// First address of the VMA that has to be cut, so that one begins at `at`.
fn cut_at<M: Machine>(vmas: &Vmas<M>, at: VirtAddr) -> Result<Option<VirtAddr>, MapError> {
    let Some(vma) = vmas.find(at).filter(|vma| vma.range.start() < at) else { return Ok(None) };
    let size = vma.ops.alignment();
    if at.is_aligned(size.bytes()) || Mutant::LeavesAreCut.is_on() {
        return Ok(Some(vma.range.start()));
    }
    Err(MapError::CutsLeaf(size))
}

impl<M: Machine> Drop for AddressSpace<M> {
    fn drop(&mut self) {
        #[cfg(all(debug_assertions, not(loom)))]
        self.mm.remove_space(self.id());
        // No CPU has it loaded: whoever loads a space owns a reference to it. So nothing is sent, and the gather
        // frees at once; but for a round that somebody else has open, which keeps its own references.
        let mut gather = Gather::new(&self.mm);
        let vmas = core::mem::replace(&mut *self.write(), Vmas(BTreeMap::new()));
        for (_, vma) in vmas.0 {
            vma.ops.mapping().remove(vma.rmap);
            self.mm.ledger.charge(Kind::Mappings, -1);
        }
        if let Some(all) = VirtRange::new(VirtAddr::new(0), self.half_end().as_u64()) {
            self.table().zap(all, (all.start(), all.end()), &mut gather);
        }
        drop(gather);
        self.mm.machine.drop_root(self.tlb.root());
        self.mm.free_table(self.tlb.root());
        self.mm.ledger.charge(Kind::AddressSpaces, -1);
    }
}
