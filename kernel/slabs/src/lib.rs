//! Slabs: memory for small objects, in size classes over pages, with a cache for each CPU (Linux: `mm/slub.c`; Bonwick and
//! Adams, "Magazines and Vmem", USENIX 2001).
//!
//! A *slab* is a page of objects of one [class]. An object is taken from the CPU's own cache and given back to it, without
//! a lock: a few loads and stores. A cache has two lists for each class, of at most [`batch`](class::Class::batch) objects each; one list at a
//! time moves between it and the slabs, under the class's lock. A slab in which no object is in use goes back to where its
//! page came from, but for one of each class.
//!
//! What is free costs nothing but itself: the list goes through the objects. A slab's own record is at the beginning of
//! its page, so that an object's slab is found by its address.
//!
//! # Who may call
//! Whoever calls stays on the CPU that it names, and nothing else on that CPU calls meanwhile: interrupts are off, or no
//! handler allocates. That is why `alloc` and `free` are unsafe.
#![no_std]

pub mod class;
mod page;

use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::mutex::SpinMutex;

use self::class::{Class, NR_CLASSES};
use self::page::{Chain, Pile};

/// Bytes of a slab.
pub const PAGE_BYTES: usize = 4096;

/// Where the pages come from.
///
/// # Safety
/// A page that [`page`](Self::page) answers is 4 KiB of memory, aligned to its size, that nobody else uses until it is given
/// back.
pub unsafe trait Pages {
    /// A page; `None` where there is none. Its contents are undefined.
    fn page(&self) -> Option<NonNull<u8>>;

    /// Takes a page back.
    ///
    /// # Safety
    /// It came from [`page`](Self::page), and nobody uses it any more.
    unsafe fn give_back(&self, page: NonNull<u8>);
}

/// What one CPU has of one class.
struct Magazines {
    /// The list that objects are taken from and given back to.
    loaded: Chain,
    /// Empty, or full.
    spare: Chain,
}

/// What one CPU has put by. Only that CPU looks into it.
#[repr(align(64))]
struct Cache {
    magazines: UnsafeCell<[Magazines; NR_CLASSES]>,
    /// Bytes of objects handed out, less those given back, on this CPU: negative where it frees what others took.
    bytes: AtomicU64,
}

// SAFETY: the cell is touched by its CPU alone, one call at a time (contract of `alloc` and `free`).
unsafe impl Sync for Cache {}

/// Slabs of all classes, for up to `CPUS` CPUs.
pub struct Slabs<P: Pages, const CPUS: usize> {
    pages: P,
    piles: [SpinMutex<Pile>; NR_CLASSES],
    caches: [Cache; CPUS],
    nr_pages: AtomicU64,
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of objects in use, in sizes of their classes.
    pub used_bytes: u64,
    /// Pages that are slabs.
    pub nr_pages: u64,
}

impl<P: Pages, const CPUS: usize> Slabs<P, CPUS> {
    /// No slab yet: they come as they are needed.
    pub const fn new(pages: P) -> Self {
        Self {
            pages,
            piles: [const { SpinMutex::new(Pile::new()) }; NR_CLASSES],
            caches: [const {
                Cache {
                    magazines: UnsafeCell::new(
                        [const { Magazines { loaded: Chain::new(), spare: Chain::new() } }; NR_CLASSES],
                    ),
                    bytes: AtomicU64::new(0),
                }
            }; CPUS],
            nr_pages: AtomicU64::new(0),
        }
    }

    /// An object of this class; `None` where its slabs have none left and there is no page.
    ///
    /// # Safety
    /// The caller runs on `cpu`, and nothing else calls this or [`free`](Self::free) for `cpu` before it returns.
    ///
    /// # Panics
    /// `cpu` is not below `CPUS`.
    #[inline]
    pub unsafe fn alloc(&self, cpu: usize, class: Class) -> Option<NonNull<u8>> {
        let cache = &self.caches[cpu];
        // SAFETY: nobody else looks into this CPU's cache meanwhile, by this function's contract.
        let magazines = unsafe { &mut (*cache.magazines.get())[class.index()] };
        let object = match magazines.loaded.pop() {
            Some(object) => object,
            None => self.refill(magazines, class)?,
        };
        cache.count(class.bytes() as u64);
        Some(object)
    }

    /// Takes an object back.
    ///
    /// # Safety
    /// As for [`alloc`](Self::alloc); that has answered `object` for the same class, on any CPU, and nobody uses it any more.
    ///
    /// # Panics
    /// `cpu` is not below `CPUS`.
    #[inline]
    pub unsafe fn free(&self, cpu: usize, class: Class, object: NonNull<u8>) {
        let cache = &self.caches[cpu];
        // SAFETY: as in `alloc`.
        let magazines = unsafe { &mut (*cache.magazines.get())[class.index()] };
        if magazines.loaded.len() >= class.batch() {
            self.unload(magazines, class);
        }
        // SAFETY: the object is the caller's, as large as its class, and nobody uses it.
        unsafe { magazines.loaded.push(object) };
        cache.count((class.bytes() as u64).wrapping_neg());
    }

    /// The loaded list is empty: the spare one takes its place, or one from the slabs.
    #[cold]
    fn refill(&self, magazines: &mut Magazines, class: Class) -> Option<NonNull<u8>> {
        core::mem::swap(&mut magazines.loaded, &mut magazines.spare);
        if let Some(object) = magazines.loaded.pop() {
            return Some(object);
        }
        let mut pile = self.piles[class.index()].lock();
        if pile.is_bare() {
            // Under the lock, so that two CPUs that come at once take one page and not two.
            let page = self.pages.page()?;
            self.nr_pages.fetch_add(1, Ordering::Relaxed);
            // SAFETY: the page is ours, by the contract of `Pages`.
            unsafe { pile.add(page, class) };
        }
        magazines.loaded = pile.take(class);
        drop(pile);
        magazines.loaded.pop()
    }

    /// The loaded list is full: it becomes the spare one, and what was spare goes back to the slabs.
    #[cold]
    fn unload(&self, magazines: &mut Magazines, class: Class) {
        let old = core::mem::replace(&mut magazines.spare, core::mem::take(&mut magazines.loaded));
        self.put(old, class);
    }

    fn put(&self, mut objects: Chain, class: Class) {
        let mut empty = self.piles[class.index()].lock().put(&mut objects, class);
        while let Some(page) = empty.pop() {
            self.nr_pages.fetch_sub(1, Ordering::Relaxed);
            // SAFETY: it came from there, and no object of it is in use, or in anybody's list.
            unsafe { self.pages.give_back(page) };
        }
    }

    /// Gives what `cpu` has put by back to the slabs, and the pages of those that are empty to where they came from.
    ///
    /// # Safety
    /// As for [`alloc`](Self::alloc).
    ///
    /// # Panics
    /// `cpu` is not below `CPUS`.
    pub unsafe fn drain(&self, cpu: usize) {
        for class in Class::all() {
            // SAFETY: as in `alloc`.
            let magazines = unsafe { &mut (*self.caches[cpu].magazines.get())[class.index()] };
            self.put(core::mem::take(&mut magazines.loaded), class);
            self.put(core::mem::take(&mut magazines.spare), class);
        }
    }

    /// Where the pages come from.
    pub const fn pages(&self) -> &P {
        &self.pages
    }

    /// What is in use at this moment; while others allocate it may be off by what they do.
    pub fn usage(&self) -> Usage {
        let used = self.caches.iter().fold(0u64, |sum, cache| sum.wrapping_add(cache.bytes.load(Ordering::Relaxed)));
        Usage { used_bytes: used, nr_pages: self.nr_pages.load(Ordering::Relaxed) }
    }
}

impl Cache {
    /// Only this CPU writes it: no exchange is needed.
    #[inline]
    fn count(&self, bytes: u64) {
        self.bytes.store(self.bytes.load(Ordering::Relaxed).wrapping_add(bytes), Ordering::Relaxed);
    }
}
