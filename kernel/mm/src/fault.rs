//! Page faults: from an address to the largest leaf that address, data, folio and poison allow.
//!
//! A fault holds the address space shared. The provider finds the data and calls back to install it while it holds its
//! own guarantee that the data stays (so a device cannot die between the look and the install). Two faults on one page
//! race by compare-and-swap; the loser gives its reference back and is content.
//!
//! A provider that wants to know which pages are stored to ([`VmOps::notes_stores`](crate::vma::VmOps::notes_stores))
//! gets a read-only leaf from a load, and is told before a store makes it writable (Linux: `page_mkwrite`,
//! `pfn_mkwrite`).
//!
//! Linux: `mm/memory.c`, `handle_mm_fault`; `drivers/dax/device.c`, `dev_dax_huge_fault`.

use crate::addr::{PAGE_SHIFT, PAGE_SIZE, PageSize, Pfn, VirtAddr};
use crate::entry::Prot;
use crate::machine::Machine;
use crate::meta::{MetaError, Owner};
use crate::pagemap::MapState;
use crate::space::AddressSpace;
use crate::table::InstallError;
use crate::trace::{Kind, Mark, mark};
use crate::vma::{Access, FaultError, FaultRequest, FaultTarget, SigBusCause, Vma, Vmas};

impl<M: Machine> AddressSpace<M> {
    /// Serves a page fault.
    ///
    /// # Errors
    /// See [`FaultError`].
    pub fn handle_fault(&self, va: VirtAddr, access: Access) -> Result<(), FaultError> {
        let vmas = self.read();
        self.fault_locked(&vmas, va, access)
    }

    pub(crate) fn fault_locked(&self, vmas: &Vmas<M>, va: VirtAddr, access: Access) -> Result<(), FaultError> {
        mark!(self.mm().machine, Mark::new(Kind::Faulted, va.as_u64(), access as u64));
        let vma = vmas.find(va).ok_or(FaultError::NotMapped(va))?;
        if !vma.allows(access) {
            return Err(FaultError::AccessDenied(va));
        }
        if let Some(found) = self.table().walk(va)
            && (access != Access::Write || found.entry.is_writable())
            && (access != Access::Exec || found.entry.prot().exec)
        {
            // Another CPU was faster, or this CPU's TLB was behind a widening of the rights.
            return Ok(());
        }
        let page = va.align_down(PAGE_SIZE);
        let request = FaultRequest {
            addr: page,
            offset_pages: vma.offset_at(page),
            write: access == Access::Write,
            max_size: self.largest_leaf(vma, page),
        };
        vma.ops.fault(&request, &mut |target| self.install(vma, &request, target))
    }

    /// The largest leaf that stays inside the VMA and whose address and offset are aligned alike.
    fn largest_leaf(&self, vma: &Vma<M>, page: VirtAddr) -> PageSize {
        let fits = |size: PageSize| {
            let start = page.align_down(size.bytes());
            let congruent = ((page.as_u64() >> PAGE_SHIFT) ^ vma.offset_at(page)) & (size.nr_pages() - 1) == 0;
            let inside = vma.range.start() <= start && start.as_u64() + size.bytes() <= vma.range.end().as_u64();
            congruent && inside && (size != PageSize::Size1G || self.mm().machine.has_1g_leaves())
        };
        PageSize::ALL.into_iter().rev().find(|&size| fits(size)).unwrap_or(PageSize::Size4K)
    }

    /// Takes a reference on the folio and maps it with the largest leaf that address, target and folio allow.
    fn install(&self, vma: &Vma<M>, request: &FaultRequest, target: FaultTarget) -> Result<(), FaultError> {
        if request.write && self.table().walk(request.addr).is_some() {
            // Its reference is there already.
            self.allow_stores(vma, request.addr);
            return Ok(());
        }
        let congruent =
            |size: PageSize| ((request.addr.as_u64() >> PAGE_SHIFT) ^ target.pfn.as_u64()) & (size.nr_pages() - 1) == 0;
        let limit = request.max_size.min(target.size);
        let want = PageSize::ALL.into_iter().rev().find(|&size| size <= limit && congruent(size));
        let want = want.unwrap_or(PageSize::Size4K);
        let mapping = vma.ops.mapping();
        let map = mapping.pagemap();
        debug_assert!(map.contains(target.pfn), "{} is not of the page map that it is mapped through", target.pfn);
        let gone = |cause| FaultError::SigBus { addr: request.addr, len_bytes: PAGE_SIZE, cause };
        // Whatever the provider thinks. A removal kills the page map and takes the address spaces after that: it waits for
        // this fault, or this fault finds it here. (The store asks the same of the page map that has the frame now, which
        // may be this one's successor.)
        if map.state() != MapState::Live {
            return Err(gone(SigBusCause::DeviceGone));
        }
        let owner = Owner { mapping: mapping.id(), offset: request.offset_pages };
        let meta = &self.mm().meta;
        // Metadata for one more folio is memory for good, and can be refused, as a page table is.
        if !self.mm().machine.may_grow() && meta.inspect(target.pfn).is_none() {
            return Err(FaultError::OutOfMemory);
        }
        let (_, folio) = meta.get_or_create(target.pfn, want, owner, 1).map_err(|error| match error {
            MetaError::OutOfMemory => FaultError::OutOfMemory,
            MetaError::Overflow => FaultError::TooManyRefs(request.addr),
            _ => gone(SigBusCause::DeviceGone),
        })?;
        // The reference is on the folio, so it serves any leaf within it: go down until one fits.
        let Some(mut size) = self.largest_healthy(target.pfn, want.min(folio)) else {
            meta.put(target.pfn, 1);
            return Err(gone(SigBusCause::Poisoned));
        };
        let notes = vma.ops.notes_stores();
        let prot = Prot { write: vma.prot.write && (request.write || !notes), ..vma.prot };
        if notes {
            // So that no more is noted than becomes writable.
            size = size.min(self.table().room(request.addr));
        }
        loop {
            let leaf_va = request.addr.align_down(size.bytes());
            if notes && prot.write {
                vma.ops.stores_begin(vma.offset_at(leaf_va), size.nr_pages());
            }
            match self.table().install(leaf_va, target.pfn.align_down(size), size, prot) {
                Ok(()) => return Ok(()),
                Err(InstallError::TableInTheWay) => match size.smaller() {
                    Some(smaller) => size = smaller,
                    None => unreachable!("a table below a page table"),
                },
                Err(InstallError::Occupied(..)) => {
                    meta.put(target.pfn, 1);
                    if request.write {
                        self.allow_stores(vma, request.addr);
                    }
                    return Ok(());
                }
                Err(InstallError::OutOfMemory) => {
                    meta.put(target.pfn, 1);
                    return Err(FaultError::OutOfMemory);
                }
            }
        }
    }

    /// Makes the leaf at `va`, which a store has found write-protected, writable. No shootdown: whoever still has the
    /// narrower rights in its TLB faults, and finds the wider ones.
    fn allow_stores(&self, vma: &Vma<M>, va: VirtAddr) {
        self.table().widen(va, vma.prot, &mut |size| {
            if vma.ops.notes_stores() {
                vma.ops.stores_begin(vma.offset_at(va.align_down(size.bytes())), size.nr_pages());
            }
        });
    }

    /// The largest leaf of at most `limit` around `pfn` that holds no poisoned page; `None` where `pfn` itself is
    /// one. The caller owns a reference on the folio.
    fn largest_healthy(&self, pfn: Pfn, limit: PageSize) -> Option<PageSize> {
        let meta = &self.mm().meta;
        if !meta.owned(pfn, "fault").page.is_poisoned() {
            return Some(limit);
        }
        let map = meta.find_map(pfn)?;
        let healthy = |size: PageSize| !map.any_poisoned(pfn.align_down(size), size.nr_pages());
        PageSize::ALL.into_iter().rev().find(|&size| size <= limit && healthy(size))
    }
}
