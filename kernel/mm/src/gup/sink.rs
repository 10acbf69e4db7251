//! Where gup puts what it has pinned.

use crate::addr::{Pfn, PfnRange};

/// Where results go: frames one by one, or runs of frames.
pub trait PinSink {
    /// Does a run cost a step for each of its pages, and not one for all?
    const BY_PAGE: bool;
    /// Room for at least this many more pages.
    fn room(&self) -> u64;
    /// Stores a run of pinned frames; the caller has asked for the room.
    fn push(&mut self, first: Pfn, nr_pages: u64);
    /// Stores one pinned frame if there is room for it, and says whether there was: one look for both.
    #[inline]
    fn push_one(&mut self, pfn: Pfn) -> bool {
        let room = self.room() != 0;
        if room {
            self.push(pfn, 1);
        }
        room
    }
}

/// Results as an array of frames.
#[derive(Debug)]
pub struct PageArray<'a> {
    pages: &'a mut [Pfn],
    len: usize,
}

impl<'a> PageArray<'a> {
    /// Fills `pages` from the front.
    #[inline]
    pub fn new(pages: &'a mut [Pfn]) -> Self {
        Self { pages, len: 0 }
    }
    /// The frames pinned.
    pub fn as_slice(&self) -> &[Pfn] {
        &self.pages[..self.len]
    }
}

impl PinSink for PageArray<'_> {
    const BY_PAGE: bool = true;
    #[inline]
    fn room(&self) -> u64 {
        // Never more than there are.
        self.pages.len().wrapping_sub(self.len) as u64
    }
    #[inline]
    fn push(&mut self, first: Pfn, nr_pages: u64) {
        let room = &mut self.pages[self.len..][..nr_pages as usize];
        let mut next = first;
        // By groups, which the compiler does without a loop: two instructions a page. Nothing can wrap, for the frames
        // exist.
        const GROUP: usize = 16;
        let (groups, rest) = room.as_chunks_mut::<GROUP>();
        for group in groups {
            for (nth, page) in group.iter_mut().enumerate() {
                *page = Pfn::new(next.as_u64().wrapping_add(nth as u64));
            }
            next = Pfn::new(next.as_u64().wrapping_add(GROUP as u64));
        }
        for page in rest {
            *page = next;
            next = Pfn::new(next.as_u64().wrapping_add(1));
        }
        self.len += nr_pages as usize;
    }
    #[inline(always)]
    fn push_one(&mut self, pfn: Pfn) -> bool {
        let Some(page) = self.pages.get_mut(self.len) else { return false };
        *page = pfn;
        // Not past the number of pages, which was just seen to be greater.
        self.len = self.len.wrapping_add(1);
        true
    }
}

/// Results as runs of frames: the cost does not grow with the pages inside a huge leaf (G6). Frames that follow
/// each other melt into one run.
#[derive(Debug)]
pub struct RangeArray<'a> {
    ranges: &'a mut [Option<PfnRange>],
    len: usize,
}

impl<'a> RangeArray<'a> {
    /// Fills `ranges` from the front.
    #[inline]
    pub fn new(ranges: &'a mut [Option<PfnRange>]) -> Self {
        Self { ranges, len: 0 }
    }
    /// Makes the last run longer, if these frames go on with it.
    fn extend(&mut self, first: Pfn, nr_pages: u64) -> bool {
        if let Some(Some(last)) = self.ranges[..self.len].last_mut()
            && last.end() == first
            && let Some(longer) = PfnRange::new(last.start(), last.nr_pages() + nr_pages)
        {
            *last = longer;
            return true;
        }
        false
    }
    /// The runs pinned.
    pub fn iter(&self) -> impl Iterator<Item = PfnRange> + '_ {
        self.ranges[..self.len].iter().flatten().copied()
    }
}

impl PinSink for RangeArray<'_> {
    const BY_PAGE: bool = false;
    #[inline]
    fn room(&self) -> u64 {
        if self.len < self.ranges.len() { u64::MAX } else { 0 }
    }
    #[inline]
    fn push(&mut self, first: Pfn, nr_pages: u64) {
        if self.len == 0 || !self.extend(first, nr_pages) {
            self.ranges[self.len] = PfnRange::new(first, nr_pages);
            self.len = self.len.wrapping_add(1);
        }
    }
}
