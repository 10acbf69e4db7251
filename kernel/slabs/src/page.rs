//! Slabs themselves: a page of objects, with its record in front, and the slabs of a class that have objects left.

use core::ptr::NonNull;

use crate::PAGE_BYTES;
use crate::class::Class;

/// Bytes of a page before its first object.
pub const HEAD_BYTES: usize = 64;
/// In each slab's record, so that what never came from a slab is seen.
const MAGIC: u32 = 0x534c_4142;

/// A free object: the beginning of the list behind it.
type Link = Option<NonNull<u8>>;

/// Free objects, the last one given back first.
#[derive(Default)]
pub struct Chain {
    first: Link,
    len: usize,
}

// SAFETY: the objects of a list are the list's own; nothing else points to them.
unsafe impl Send for Chain {}

impl Chain {
    pub const fn new() -> Self {
        Self { first: None, len: 0 }
    }

    #[inline]
    pub const fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub fn pop(&mut self) -> Option<NonNull<u8>> {
        let object = self.first?;
        // SAFETY: the object is the list's, and `push` has put the link there.
        self.first = unsafe { object.cast::<Link>().read() };
        self.len -= 1;
        Some(object)
    }

    /// # Safety
    /// `object` is the caller's and becomes the list's: at least 16 bytes, aligned to 16.
    #[inline]
    pub unsafe fn push(&mut self, object: NonNull<u8>) {
        // SAFETY: by this function's contract.
        unsafe { object.cast::<Link>().write(self.first) };
        self.first = Some(object);
        self.len += 1;
    }
}

/// A slab's record, at the beginning of its page.
#[repr(C, align(64))]
struct Head {
    magic: u32,
    class: u32,
    /// Objects given back.
    free: Chain,
    /// Objects, from the first, that were ever taken: behind them nothing has been written yet.
    carved: usize,
    next: Option<NonNull<Head>>,
    previous: Option<NonNull<Head>>,
}

const _: () = assert!(size_of::<Head>() == HEAD_BYTES);

impl Head {
    /// Objects that can be taken.
    fn left(&self, class: Class) -> usize {
        self.free.len() + class.per_page() - self.carved
    }
}

/// The slabs of a class in which objects are left.
pub struct Pile {
    first: Option<NonNull<Head>>,
    /// How many of them have no object in use.
    nr_empty: usize,
}

// SAFETY: a pile's records are reached through it alone.
unsafe impl Send for Pile {}

impl Pile {
    pub const fn new() -> Self {
        Self { first: None, nr_empty: 0 }
    }

    /// No slab has an object left.
    pub const fn is_bare(&self) -> bool {
        self.first.is_none()
    }

    /// Makes a slab of a page.
    ///
    /// # Safety
    /// The page is the caller's and becomes the pile's.
    pub unsafe fn add(&mut self, page: NonNull<u8>, class: Class) {
        let head = page.cast::<Head>();
        let record = Head {
            magic: MAGIC,
            class: class.index() as u32,
            free: Chain::new(),
            carved: 0,
            next: None,
            previous: None,
        };
        // SAFETY: the page is ours, and its beginning is large and aligned enough for a record.
        unsafe { head.write(record) };
        self.link(head);
        self.nr_empty += 1;
    }

    fn link(&mut self, mut head: NonNull<Head>) {
        // SAFETY: records of this pile, which the caller has locked; `head` is not the first one, which is in the list.
        unsafe {
            head.as_mut().next = self.first;
            head.as_mut().previous = None;
            if let Some(mut first) = self.first {
                first.as_mut().previous = Some(head);
            }
        }
        self.first = Some(head);
    }

    fn unlink(&mut self, head: NonNull<Head>) {
        // SAFETY: as in `link`; the neighbours are other records than this one.
        unsafe {
            let (next, previous) = (head.as_ref().next, head.as_ref().previous);
            match previous {
                Some(mut previous) => previous.as_mut().next = next,
                None => self.first = next,
            }
            if let Some(mut next) = next {
                next.as_mut().previous = previous;
            }
        }
    }

    /// Takes a batch of objects out of the first slab, or as many as it has. None where there is no slab.
    pub fn take(&mut self, class: Class) -> Chain {
        let mut taken = Chain::new();
        let Some(mut place) = self.first else { return taken };
        // SAFETY: a record of this pile, of which there is no other reference now.
        let head = unsafe { place.as_mut() };
        if head.left(class) == class.per_page() {
            self.nr_empty -= 1;
        }
        while taken.len() < class.batch() {
            let object = match head.free.pop() {
                Some(object) => object,
                None if head.carved < class.per_page() => {
                    head.carved += 1;
                    let offset = HEAD_BYTES + (head.carved - 1) * class.bytes();
                    // SAFETY: inside the page, whose address is that of the record.
                    unsafe { place.cast::<u8>().add(offset) }
                }
                None => break,
            };
            // SAFETY: a free object of this slab, which nobody else has.
            unsafe { taken.push(object) };
        }
        if head.left(class) == 0 {
            self.unlink(place);
        }
        taken
    }

    /// Puts objects back into their slabs; answers the pages of those in which none is in use any more, but for one that the
    /// pile keeps.
    ///
    /// # Panics
    /// An object is none of this class.
    pub fn put(&mut self, objects: &mut Chain, class: Class) -> Chain {
        let mut empty = Chain::new();
        while let Some(object) = objects.pop() {
            let inside = object.as_ptr().addr() % PAGE_BYTES;
            // SAFETY: the page of an object begins with its slab's record.
            let mut place = unsafe { object.sub(inside) }.cast::<Head>();
            // SAFETY: a record of this class, whose pile is locked, and of which there is no other reference now.
            let head = unsafe { place.as_mut() };
            let place_is_right =
                inside >= HEAD_BYTES && (inside - HEAD_BYTES).is_multiple_of(class.bytes()) && head.magic == MAGIC;
            assert!(
                place_is_right && head.class == class.index() as u32,
                "freed what is no object of {} bytes",
                class.bytes()
            );
            let left = head.left(class);
            assert!(left < class.per_page(), "freed an object twice: its slab has all of them back");
            // SAFETY: a free object of this slab, which nobody has any more.
            unsafe { head.free.push(object) };
            if left == 0 {
                self.link(place);
            }
            if left + 1 == class.per_page() {
                if self.nr_empty == 0 {
                    self.nr_empty = 1;
                } else {
                    self.unlink(place);
                    // SAFETY: no object of the page is in use or in a list: it is a piece of memory.
                    unsafe { empty.push(place.cast()) };
                }
            }
        }
        empty
    }
}
