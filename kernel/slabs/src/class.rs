//! Size classes: which size serves a request.

use core::alloc::Layout;

use crate::PAGE_BYTES;
use crate::page::HEAD_BYTES;

/// Number of classes.
pub const NR_CLASSES: usize = 24;

/// Bytes of an object of each class, rising: all of them multiples of 16, in steps of a quarter at most, and so that little
/// of a page is left over where a class has few objects.
const BYTES: [u16; NR_CLASSES] = [
    16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 672, 800, 1008, 1152, 1344, 1536,
    2016,
];

/// The largest object.
pub const MAX_BYTES: usize = BYTES[NR_CLASSES - 1] as usize;
/// The largest alignment: that of the first object of a page.
pub const MAX_ALIGN: usize = HEAD_BYTES;
/// Bytes in which sizes are counted.
const STEP: usize = 16;

/// For each size in steps of 16 bytes, the smallest class that it fits into.
const OF_SIZE: [u8; MAX_BYTES / STEP + 1] = {
    let mut of_size = [0; MAX_BYTES / STEP + 1];
    let (mut size, mut class) = (0, 0);
    while size < of_size.len() {
        if size * STEP > BYTES[class] as usize {
            class += 1;
        }
        of_size[size] = class as u8;
        size += 1;
    }
    of_size
};

/// A size class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class(u8);

impl Class {
    /// The class that serves a request; `None` where it is larger than [`MAX_BYTES`] or aligned to more than
    /// [`MAX_ALIGN`], or no class has objects of that alignment and size.
    #[inline]
    pub fn of(layout: &Layout) -> Option<Self> {
        if layout.size() > MAX_BYTES || layout.align() > MAX_ALIGN {
            return None;
        }
        let class = Self(OF_SIZE[layout.size().div_ceil(STEP)]);
        if layout.align() <= STEP { Some(class) } else { class.aligned(layout.align()) }
    }

    /// This class, or the next one whose objects are multiples of `align`.
    #[cold]
    fn aligned(self, align: usize) -> Option<Self> {
        (self.0..NR_CLASSES as u8).map(Self).find(|class| class.bytes().is_multiple_of(align))
    }

    /// All of them, the smallest first.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..NR_CLASSES as u8).map(Self)
    }

    /// Its number.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Bytes of an object.
    #[inline]
    pub const fn bytes(self) -> usize {
        BYTES[self.0 as usize] as usize
    }

    /// Objects of a page.
    #[inline]
    pub const fn per_page(self) -> usize {
        (PAGE_BYTES - HEAD_BYTES) / self.bytes()
    }

    /// Objects of a list that moves between a CPU and the slabs: those of a page, 32 at most.
    #[inline]
    pub const fn batch(self) -> usize {
        let all = self.per_page();
        if all < 32 { all } else { 32 }
    }
}
