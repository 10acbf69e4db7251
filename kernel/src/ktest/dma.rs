//! What the tests of devices that do DMA share: memory of the NVDIMM that is registered for a device, and whole pages of
//! words that say where they belong.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use mm::account::PinAccount;
use mm::addr::{PAGE_SIZE, PageSize, Pfn};
use mm::gup::GupFlags;
use mm::pins::PinnedPages;
use mm::region::{Notice, RegionOwner, Terms};

use crate::io::dma::{DmaDevice, DmaPins, DmaRegion};
use crate::ktest::fixtures::{BASE, Device, at, new_space, page, stamp};
use crate::mem::layout;
use crate::mem::machine::{Space, mm};

/// Words of a page.
const WORDS: usize = PAGE_SIZE as usize / 8;

/// An address space with the first pages of the NVDIMM in it, and who is told of a removal.
pub struct Owner {
    /// The space.
    pub space: Arc<Space>,
    account: Arc<PinAccount>,
    listener: Arc<dyn RegionOwner>,
    nr_pages: u64,
}

impl Owner {
    /// With `nr_pages` pages from [`BASE`] on.
    pub fn new(device: &Device, nr_pages: u64) -> Result<Self, String> {
        let space = new_space("dma")?;
        device.map(&space, BASE, 0, page(nr_pages), PageSize::Size4K)?;
        let account = mm().pins.open_account("dma", nr_pages);
        Ok(Self { space, account, listener: Arc::new(|_: &Notice| ()), nr_pages })
    }

    /// Registers all of it, for a device that may write there.
    #[track_caller]
    pub fn register(&self, dma: &Arc<DmaDevice>) -> Result<DmaRegion, String> {
        let terms = Terms { flags: GupFlags::WRITE, grace_ns: 0, account: &self.account };
        let owner = Arc::downgrade(&self.listener);
        dma.register(&self.space, BASE, self.nr_pages, &terms, owner).map_err(|error| format!("register: {error}"))
    }

    /// Pins some pages for one transfer.
    #[track_caller]
    pub fn pin(&self, dma: &Arc<DmaDevice>, first: u64, nr_pages: u64) -> Result<DmaPins, String> {
        let pins = PinnedPages::pin(&self.space, at(page(first)), nr_pages, GupFlags::WRITE);
        let pins = pins.map_err(|error| format!("pin: {error}"))?;
        dma.map_pins(pins, true).map_err(|error| format!("map: {error}"))
    }
}

fn word(pfn: Pfn, index: usize) -> *mut u64 {
    assert!(index < WORDS);
    layout::direct_ptr::<u64>(pfn.addr()).wrapping_add(index)
}

/// What word `index` of a page has that carries the mark `mark`.
fn expected(mark: u64, index: usize) -> u64 {
    stamp(mark, index as u64)
}

/// Fills pages of the device from `first` on; the first one gets the mark `mark`, the next one the next.
pub fn fill(device: &Device, first: u64, nr_pages: u64, mark: u64) {
    for nth in 0..nr_pages {
        for index in 0..WORDS {
            let value = expected(mark + nth, index);
            // SAFETY: the device is attached for the whole test, so its direct map is there; device memory belongs to no
            // Rust object, and what else stores there (a device) is what is tested, hence volatile.
            unsafe { word(device.pfn(first + nth), index).write_volatile(value) };
        }
    }
}

/// Zeroes pages of the device.
pub fn clear(device: &Device, first: u64, nr_pages: u64) {
    for nth in 0..nr_pages {
        // SAFETY: as in `fill`.
        (0..WORDS).for_each(|index| unsafe { word(device.pfn(first + nth), index).write_volatile(0) });
    }
}

/// Fails unless words `words` of page `at` are those from word `from` on of a page with the mark `mark`.
pub fn compare_words(
    device: &Device,
    at: u64,
    words: core::ops::Range<usize>,
    (mark, from): (u64, usize),
) -> Result<(), String> {
    for (index, meant) in words.zip(from..) {
        // SAFETY: as in `fill`.
        let found = unsafe { word(device.pfn(at), index).read_volatile() };
        let wanted = expected(mark, meant);
        if found != wanted {
            return Err(format!("page {at}, word {index}: expected {wanted:#x}, found {found:#x}"));
        }
    }
    Ok(())
}

/// Fails unless pages from `first` on are filled as [`fill`] does it.
pub fn compare(device: &Device, first: u64, nr_pages: u64, mark: u64) -> Result<(), String> {
    (0..nr_pages).try_for_each(|nth| compare_words(device, first + nth, 0..WORDS, (mark + nth, 0)))
}

/// Fails unless each word of pages from `first` on is as with one of two marks.
pub fn compare_either(device: &Device, first: u64, nr_pages: u64, marks: [u64; 2]) -> Result<(), String> {
    for (nth, index) in (0..nr_pages).flat_map(|nth| (0..WORDS).map(move |index| (nth, index))) {
        // SAFETY: as in `fill`.
        let found = unsafe { word(device.pfn(first + nth), index).read_volatile() };
        if !marks.iter().any(|mark| expected(mark + nth, index) == found) {
            return Err(format!("page {}, word {index}: {found:#x} is neither old nor new", first + nth));
        }
    }
    Ok(())
}

/// Fails unless words `words` of page `at` are zero.
pub fn is_clear(device: &Device, at: u64, words: core::ops::Range<usize>) -> Result<(), String> {
    for index in words {
        // SAFETY: as in `fill`.
        let found = unsafe { word(device.pfn(at), index).read_volatile() };
        if found != 0 {
            return Err(format!("page {at}, word {index}: expected nothing, found {found:#x}"));
        }
    }
    Ok(())
}
