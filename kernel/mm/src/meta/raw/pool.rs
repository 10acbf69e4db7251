//! Where the metadata of large folios lies: in blocks of one page, each with a bit for each place that is taken.
//!
//! They come and go by the thousand, under the store's lock alone. So a place costs a few instructions here, where the heap
//! would find its class, its CPU and its slab for each. A block in which nothing is used any more is given back at once.

use alloc::boxed::Box;

use crate::meta::page::Page;

/// Bytes of a block.
const BLOCK_BYTES: usize = 4096;
/// Pages of metadata in one: all but two, in whose room the head is.
const PLACES: usize = BLOCK_BYTES / size_of::<Page>() - 2;

/// A block. All zero: none is taken, and no place has a holder.
#[repr(C, align(4096))]
struct Block {
    pages: [Page; PLACES],
    /// Bit n: place n is taken.
    taken: [u64; 2],
    /// Its neighbours in the list of blocks with room; null at the ends.
    next: *mut Self,
    previous: *mut Self,
}

const _: () = assert!(size_of::<Block>() == BLOCK_BYTES && PLACES == 126);
/// The bits of all places.
const FULL: [u64; 2] = [u64::MAX, (1 << (PLACES - 64)) - 1];

/// What metadata holds that was freed, where that is kept: see [`crate::sync::hosted`]. No count is so.
#[cfg(feature = "hosted")]
pub(super) const FREED: u8 = 0xa5;

/// The blocks of one store.
pub(super) struct Pool {
    /// First of those with room.
    first: *mut Block,
}

// SAFETY: a pool's blocks are reached through it alone, and through the pages that it has handed out.
unsafe impl Send for Pool {}

impl Default for Pool {
    fn default() -> Self {
        Self { first: core::ptr::null_mut() }
    }
}

impl Pool {
    /// A page without a holder; `None` when memory is exhausted. It stays where it is until [`put`](Self::put).
    pub(super) fn take(&mut self) -> Option<*mut Page> {
        if self.first.is_null() {
            // SAFETY: all-zero bytes are a valid block: atomic integers, integers and null pointers. It is not of size zero.
            let block = Box::into_raw(unsafe { allocate_zeroed::<Block>()? });
            self.link(block);
        }
        let block = self.first;
        // SAFETY: a block of this pool, which the caller has to itself; pages that are in use are not touched.
        unsafe {
            let taken = &mut (*block).taken;
            let word = usize::from(taken[0] == FULL[0]);
            let bit = taken[word].trailing_ones() as usize;
            taken[word] |= 1 << bit;
            if *taken == FULL {
                self.unlink(block);
            }
            let page = (&raw mut (*block).pages).cast::<Page>().add(64 * word + bit);
            #[cfg(feature = "hosted")]
            page.write_bytes(0, 1);
            Some(page)
        }
    }

    /// Takes a page back.
    ///
    /// # Safety
    /// [`take`](Self::take) of this pool has handed it out; its count is zero, and nobody looks at it any more.
    #[inline]
    pub(super) unsafe fn put(&mut self, page: *mut Page) {
        let nth = page.addr() % BLOCK_BYTES / size_of::<Page>();
        let block = page.map_addr(|addr| addr & !(BLOCK_BYTES - 1)).cast::<Block>();
        // SAFETY: a block is a page in size and alignment, so that is where this one begins; `page` was derived from it.
        let taken = unsafe { &mut (*block).taken };
        let was_full = *taken == FULL;
        debug_assert!(taken[nth / 64] & 1 << (nth % 64) != 0, "metadata was given back twice");
        taken[nth / 64] &= !(1 << (nth % 64));
        let is_empty = *taken == [0, 0];
        #[cfg(feature = "hosted")]
        if crate::sync::hosted::is_watched() {
            // SAFETY: nobody looks at it any more (the caller's word), and integers may be anything.
            unsafe { page.write_bytes(FREED, 1) };
        }
        if was_full {
            self.link(block);
        }
        if is_empty {
            self.unlink(block);
            // SAFETY: it is from `Box::into_raw`, in no list, and none of its pages is in use.
            let block = unsafe { Box::from_raw(block) };
            #[cfg(feature = "hosted")]
            if crate::sync::hosted::is_watched() {
                return crate::sync::hosted::keep(block);
            }
            drop(block);
        }
    }

    #[cold]
    fn link(&mut self, block: *mut Block) {
        // SAFETY: blocks of this pool, which the caller has to itself; `block` is not in the list.
        unsafe {
            (*block).next = self.first;
            (*block).previous = core::ptr::null_mut();
            if let Some(first) = self.first.as_mut() {
                first.previous = block;
            }
        }
        self.first = block;
    }

    #[cold]
    fn unlink(&mut self, block: *mut Block) {
        // SAFETY: as in `link`; `block` is in the list.
        unsafe {
            let (next, previous) = ((*block).next, (*block).previous);
            match previous.as_mut() {
                Some(previous) => previous.next = next,
                None => self.first = next,
            }
            if let Some(next) = next.as_mut() {
                next.previous = previous;
            }
        }
    }
}

/// A zeroed `T`, or `None` when memory is exhausted.
///
/// # Safety
/// All-zero bytes are a valid `T`, and `T` is not of size zero.
pub(super) unsafe fn allocate_zeroed<T>() -> Option<Box<T>> {
    #[cfg(test)]
    if !tests::may_allocate() {
        return None;
    }
    let layout = core::alloc::Layout::new::<T>();
    // SAFETY: the size is not zero (the caller's word). The memory, if any, has the layout of `T` and comes from
    // the global allocator, which is what `Box` frees it to; zeroes are a valid `T` (the caller's word).
    unsafe {
        let raw = alloc::alloc::alloc_zeroed(layout).cast::<T>();
        (!raw.is_null()).then(|| Box::from_raw(raw))
    }
}

/// Memory that runs out when a test wants it to.
#[cfg(all(test, not(loom)))]
pub(crate) mod tests {
    use core::cell::Cell;

    use crate::meta::raw::pool::{PLACES, Pool};

    std::thread_local! {
        /// So many more allocations of this thread succeed; `None` for all.
        static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    }

    /// Lets only `left` more allocations of this thread succeed (`None`: all).
    pub(crate) fn limit_allocations(left: Option<u32>) {
        LEFT.set(left);
    }

    #[test]
    fn every_place_of_a_block_is_taken_before_there_is_another() {
        let mut pool = Pool::default();
        limit_allocations(Some(1));
        let pages: std::vec::Vec<_> = core::iter::from_fn(|| pool.take()).collect();
        limit_allocations(None);
        assert_eq!(pages.len(), PLACES);
        // SAFETY: they are from this pool, none has a holder, and nobody looks at one.
        pages.into_iter().for_each(|page| unsafe { pool.put(page) });
        assert!(pool.first.is_null(), "nothing is in use, and a block is left");
    }

    pub(super) fn may_allocate() -> bool {
        match LEFT.get() {
            None => true,
            Some(left) => {
                LEFT.set(Some(left.saturating_sub(1)));
                left != 0
            }
        }
    }
}
