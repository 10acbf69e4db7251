//! Bitmaps in storage that someone else owns.

use crate::sync::{AtomicU64, Ordering};

const WORD_BITS: usize = 64;
/// Enough for 2^30 bits: 4 TiB of RAM in one range.
const MAX_LEVELS: usize = 5;

/// Where a bitmap lies: `len` bits from word `first` of the storage on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Flat {
    first: u32,
    len: u32,
}

impl Flat {
    /// Words for `len` bits.
    pub(super) const fn words(len: usize) -> usize {
        len.div_ceil(WORD_BITS)
    }
    /// A bitmap of `len` bits at word `first`.
    pub(super) fn new(first: usize, len: usize) -> Self {
        let fit = |n| u32::try_from(n).expect("a RAM range of less than 4 TiB");
        Self { first: fit(first), len: fit(len) }
    }
    fn word<'s>(&self, storage: &'s [AtomicU64], index: usize) -> (&'s AtomicU64, u64) {
        debug_assert!(index < self.len as usize);
        (&storage[self.first as usize + index / WORD_BITS], 1 << (index % WORD_BITS))
    }
    /// Is bit `index` set?
    #[inline]
    pub(super) fn get(&self, storage: &[AtomicU64], index: usize) -> bool {
        let (word, bit) = self.word(storage, index);
        word.load(Ordering::Relaxed) & bit != 0
    }
    /// Sets or clears bit `index`; answers what it was. Atomic: neighbours may change at the same time.
    pub(super) fn replace(&self, storage: &[AtomicU64], index: usize, value: bool) -> bool {
        let (word, bit) = self.word(storage, index);
        // Relaxed: who hands a frame on does so under a lock or by the same bit's owner.
        let old = if value { word.fetch_or(bit, Ordering::Relaxed) } else { word.fetch_and(!bit, Ordering::Relaxed) };
        old & bit != 0
    }
}

/// A bitmap that finds its lowest set bit in one look for each power of 64: above the bits are words that say
/// which words below them are not zero. Changed only under the allocator's lock.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Indexed {
    bits: Flat,
}

/// The levels of a bitmap of `len` bits: the number of bits of each, lowest first.
fn levels(len: usize) -> impl Iterator<Item = usize> {
    let mut next = Some(len);
    core::iter::from_fn(move || {
        let bits = next?;
        let words = Flat::words(bits);
        next = (words > 1).then_some(words);
        Some(bits)
    })
}

impl Indexed {
    /// Words for `len` bits with their index.
    pub(super) fn words(len: usize) -> usize {
        levels(len).map(Flat::words).sum()
    }
    /// A bitmap of `len` bits at word `first`.
    pub(super) fn new(first: usize, len: usize) -> Self {
        assert!(levels(len).count() <= MAX_LEVELS, "a RAM range of less than 4 TiB");
        Self { bits: Flat::new(first, len) }
    }
    /// Is bit `index` set? `false` outside.
    #[inline]
    pub(super) fn get(&self, storage: &[AtomicU64], index: usize) -> bool {
        index < self.bits.len as usize && self.bits.get(storage, index)
    }
    /// Sets bit `index`.
    pub(super) fn set(&self, storage: &[AtomicU64], index: usize) {
        self.change(storage, index, |word, bit| (word | bit, word == 0));
    }
    /// Clears bit `index`.
    pub(super) fn clear(&self, storage: &[AtomicU64], index: usize) {
        self.change(storage, index, |word, bit| (word & !bit, word == bit));
    }
    /// Changes the word with bit `index`, and goes on with the bit above that stands for it where `change` says so.
    #[inline]
    fn change(&self, storage: &[AtomicU64], mut index: usize, change: impl Fn(u64, u64) -> (u64, bool)) {
        debug_assert!(index < self.bits.len as usize);
        let (mut first, mut len) = (self.bits.first as usize, self.bits.len as usize);
        loop {
            let word = &storage[first + index / WORD_BITS];
            let (new, go_on) = change(word.load(Ordering::Relaxed), 1 << (index % WORD_BITS));
            word.store(new, Ordering::Relaxed);
            if !go_on || len <= WORD_BITS {
                return;
            }
            let words = Flat::words(len);
            (first, len, index) = (first + words, words, index / WORD_BITS);
        }
    }
    /// The lowest set bit.
    pub(super) fn first(&self, storage: &[AtomicU64]) -> Option<usize> {
        let mut below = [0; MAX_LEVELS];
        let (mut depth, mut first, mut len) = (0, self.bits.first as usize, self.bits.len as usize);
        while len > WORD_BITS {
            below[depth] = first;
            (depth, first, len) = (depth + 1, first + Flat::words(len), Flat::words(len));
        }
        // The top level is one word; each bit found says which word to look at one level down.
        let mut index = 0;
        for &first in core::iter::once(&first).chain(below[..depth].iter().rev()) {
            let word = storage[first + index].load(Ordering::Relaxed);
            if word == 0 {
                return None;
            }
            index = index * WORD_BITS + word.trailing_zeros() as usize;
        }
        Some(index)
    }
}
