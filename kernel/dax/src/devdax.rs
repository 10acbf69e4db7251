//! Device-dax: the whole device as one file that tasks open and map.
//!
//! It has no blocks that could move, so its pages may be pinned for as long as anybody likes; only the removal of
//! the device needs them back. A fault installs the largest leaf that the mapping, the frames and the opener allow.
//!
//! Linux: `drivers/dax/device.c`.

use alloc::sync::Arc;
use alloc::vec::Vec;

use mm::addr::{PAGE_SHIFT, PAGE_SIZE, PageSize, Pfn, PfnRange, VirtAddr};
use mm::context::MmContext;
use mm::machine::Machine;
use mm::pagemap::{DevPagemap, MemoryKind};
use mm::space::{AddressSpace, FaultError, FaultRequest, FaultTarget, MapError, Mapping, SigBusCause, VmOps};

use crate::device::{DaxDevice, DaxError, DaxUse};
use crate::mutant::Mutant;

/// A DAX device as a file.
///
/// ```
/// use std::sync::Arc;
/// use dax::devdax::{DevDax, OpenOptions};
/// use dax::device::{DataCache, alloc_dax};
/// use mm::addr::{PAGE_SIZE, PageSize, Pfn, VirtAddr};
/// use testkit::emu::{self, Frames, Task};
/// use mm::entry::Prot;
/// use mm::space::{AddressSpace, FaultError, SigBusCause, VmOps};
///
/// let mm = emu::context(1);
/// let map = &Frames::new(&mm, Pfn::new(0x10_0000), 512).map;
/// let live = alloc_dax("dax0.0", map, DataCache::Coherent, &mm.ledger).unwrap();
/// let file: Arc<dyn VmOps<_>> =
///     DevDax::new(&mm, live.device(), PageSize::Size4K).unwrap().open(OpenOptions::default()).unwrap();
///
/// let (space, va) = (AddressSpace::new(&mm, "task").unwrap(), VirtAddr::new(0x40_0000_0000));
/// space.map(va, 2 * PAGE_SIZE, Prot::USER_WRITE, &file, 0).unwrap();
/// let task = Task::start(&space, 0);
/// task.store(va, 1).unwrap();
/// drop(live); // which kills the device
/// let second = VirtAddr::new(va.as_u64() + PAGE_SIZE);
/// let sigbus = FaultError::SigBus { addr: second, len_bytes: PAGE_SIZE, cause: SigBusCause::DeviceGone };
/// assert_eq!(task.load(second), Err(sigbus));
/// ```
pub struct DevDax<M: Machine> {
    device: Arc<DaxDevice>,
    mapping: Arc<Mapping<M>>,
    alignment: PageSize,
    nr_pages: u64,
}

impl<M: Machine> DevDax<M> {
    /// The file over `device`. Mappings of it have addresses, lengths and offsets that are multiples of `alignment`;
    /// what the device has beyond a multiple of it cannot be mapped.
    ///
    /// # Errors
    /// [`DaxError::Misaligned`] where a range of frames does not begin at a multiple of `alignment`, or one that is
    /// not the last does not end at one: leaves of that size would not fit. [`DaxError::OutOfRange`] where the
    /// device is smaller than one such leaf.
    pub fn new(mm: &Arc<MmContext<M>>, device: &Arc<DaxDevice>, alignment: PageSize) -> Result<Arc<Self>, DaxError> {
        check_alignment(device, alignment)?;
        let nr_pages = (device.size_bytes() >> PAGE_SHIFT) & !(alignment.nr_pages() - 1);
        if nr_pages == 0 {
            return Err(DaxError::OutOfRange { size: device.size_bytes() });
        }
        Ok(Arc::new(Self {
            device: Arc::clone(device),
            mapping: Mapping::new(mm, device.pagemap()),
            alignment,
            nr_pages,
        }))
    }
    /// The device.
    pub fn device(&self) -> &Arc<DaxDevice> {
        &self.device
    }
    /// Who maps it: what a removal takes apart.
    pub fn mapping(&self) -> &Arc<Mapping<M>> {
        &self.mapping
    }
    /// Bytes that can be mapped.
    pub fn size_bytes(&self) -> u64 {
        self.nr_pages << PAGE_SHIFT
    }
    /// What addresses, lengths and offsets of mappings must be multiples of.
    pub fn alignment(&self) -> PageSize {
        self.alignment
    }

    /// The largest leaf that the device's frames carry throughout, but for a part of one at its end: the strictest
    /// alignment that it can be opened with.
    pub fn largest_leaf(&self) -> PageSize {
        let fits = |size: &PageSize| check_alignment(&self.device, *size).is_ok();
        PageSize::ALL.into_iter().rev().find(fits).unwrap_or(PageSize::Size4K)
    }

    /// Who maps this frame, and where, whether or not anybody has touched it: who hears that it is lost. Nobody where the
    /// device does not have it, or is dead.
    pub fn places_of(&self, pfn: Pfn) -> Vec<(Arc<AddressSpace<M>>, VirtAddr)> {
        let Ok(live) = self.device.read_lock() else { return Vec::new() };
        live.offset_of(pfn).map_or_else(Vec::new, |offset| self.mapping.places(offset >> PAGE_SHIFT))
    }

    /// Opens the file.
    ///
    /// # Errors
    /// [`DaxError::NoSuchDevice`] once the removal of the device has begun. [`DaxError::Misaligned`] where the device's
    /// frames cannot carry the alignment that is asked for: see [`new`](Self::new).
    pub fn open(self: &Arc<Self>, options: OpenOptions) -> Result<Arc<File<M>>, DaxError> {
        let user = self.device.open()?;
        check_alignment(&self.device, options.alignment)?;
        let alignment = self.alignment.max(options.alignment);
        Ok(Arc::new(File { user, dev: Arc::clone(self), alignment, max_leaf: options.max_leaf.max(alignment) }))
    }
}

/// Do leaves of this size fit the device's frames, but for a part of one at its end?
fn check_alignment(device: &DaxDevice, alignment: PageSize) -> Result<(), DaxError> {
    let ranges = device.pagemap().ranges();
    let last = ranges.len() - 1;
    let fits = |(at, range): (usize, &PfnRange)| {
        range.start().is_aligned(alignment) && (at == last || range.end().is_aligned(alignment))
    };
    match ranges.iter().enumerate().all(fits) {
        true => Ok(()),
        false => Err(DaxError::Misaligned { required: alignment.bytes() }),
    }
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// Stricter alignment for this opener's mappings; the device's own holds in any case.
    pub alignment: PageSize,
    /// No leaf larger than this (but never smaller than the alignment): to compare sizes on one device.
    pub max_leaf: PageSize,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { alignment: PageSize::Size4K, max_leaf: PageSize::Size1G }
    }
}

impl OpenOptions {
    /// Mappings aligned to `size` and made of leaves of just that size, where the frames allow it.
    pub fn exactly(size: PageSize) -> Self {
        Self { alignment: size, max_leaf: size }
    }
}

/// An open device-dax file. Each VMA that maps it keeps it open.
pub struct File<M: Machine> {
    user: DaxUse,
    dev: Arc<DevDax<M>>,
    alignment: PageSize,
    max_leaf: PageSize,
}

impl<M: Machine> File<M> {
    /// The device behind it.
    pub fn device(&self) -> &Arc<DaxDevice> {
        &self.user
    }
    /// The page map of the device.
    pub fn pagemap(&self) -> &Arc<DevPagemap> {
        self.user.pagemap()
    }
}

fn sigbus(request: &FaultRequest, cause: SigBusCause) -> FaultError {
    FaultError::SigBus { addr: request.addr, len_bytes: PAGE_SIZE, cause }
}

impl<M: Machine> VmOps<M> for File<M> {
    fn fault(
        &self,
        request: &FaultRequest,
        install: &mut dyn FnMut(FaultTarget) -> Result<(), FaultError>,
    ) -> Result<(), FaultError> {
        // Held until the entry is there: whoever kills the device waits for us, and finds the entry.
        let live = self.user.read_lock().map_err(|_| sigbus(request, SigBusCause::DeviceGone))?;
        if request.offset_pages >= self.dev.nr_pages {
            return Err(sigbus(request, SigBusCause::BeyondEnd));
        }
        let (pfn, size) = live.leaf_at(request.offset_pages).map_err(|_| sigbus(request, SigBusCause::BeyondEnd))?;
        if size == PageSize::Size4K && self.pagemap().any_poisoned(pfn, 1) {
            return Err(sigbus(request, SigBusCause::Poisoned));
        }
        install(FaultTarget { pfn, size: size.min(self.max_leaf) })
    }

    fn mmap(&self, offset_pages: u64, nr_pages: u64, insert: &mut dyn FnMut()) -> Result<(), MapError> {
        // Held until the mapping is in the reverse map, for the same reason.
        let live = self.user.read_lock().map_err(|_| MapError::Refused(SigBusCause::DeviceGone))?;
        let _live = (!Mutant::MmapUnguarded.is_on()).then_some(live);
        match offset_pages.checked_add(nr_pages) {
            Some(end) if end <= self.dev.nr_pages => insert(),
            _ => return Err(MapError::Refused(SigBusCause::BeyondEnd)),
        }
        Ok(())
    }

    fn mapping(&self) -> &Arc<Mapping<M>> {
        &self.dev.mapping
    }

    fn kind(&self) -> MemoryKind {
        self.user.kind()
    }

    fn takes_writes(&self) -> bool {
        self.pagemap().takes_writes()
    }

    fn alignment(&self) -> PageSize {
        self.alignment
    }
}
