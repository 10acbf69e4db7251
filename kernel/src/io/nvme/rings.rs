//! The memory that a controller and its driver share, and a pair of queues in it.

use core::sync::atomic::{Ordering, fence};

use mm::addr::PAGE_SIZE;
use nvme::command::{self, Submission};
use nvme::completion::{self, Completion, LAST_WORD};
use nvme::identify;
use nvme::registers::Capabilities;
use nvme::ring::{Broken, Pair, Ticket};

use crate::io::dma::OwnMemory;
use crate::io::pci::Registers;

/// Commands that are in flight at most.
pub const SLOTS: usize = 16;
/// Entries of each ring: more than there are slots, and no more than a page has.
pub const ENTRIES: u16 = 32;
/// The order of the shared memory.
pub const ORDER: u32 = 5;

/// Pages of the shared memory.
pub const ADMIN_SUBMISSION: u64 = 0;
/// See [`ADMIN_SUBMISSION`].
pub const ADMIN_COMPLETION: u64 = 1;
/// See [`ADMIN_SUBMISSION`].
pub const SUBMISSION: u64 = 2;
/// See [`ADMIN_SUBMISSION`].
pub const COMPLETION: u64 = 3;
/// What the controller says of itself.
pub const IDENTIFY: u64 = 4;
/// The PRP list of each slot, a page each.
const LISTS: u64 = 8;

const _: () = {
    assert!(LISTS + SLOTS as u64 <= 1 << ORDER && SLOTS < ENTRIES as usize);
    assert!(ENTRIES as usize * command::ENTRY_BYTES <= PAGE_SIZE as usize);
};

/// The shared memory.
pub struct Shared(OwnMemory);

impl Shared {
    /// Around `memory`, of order [`ORDER`].
    pub fn new(memory: OwnMemory) -> Self {
        assert!(memory.len_bytes() >= PAGE_SIZE << ORDER, "too little memory for the rings");
        Self(memory)
    }

    /// Where the device has a page.
    pub fn iova(&self, page: u64) -> u64 {
        self.0.iova() + page * PAGE_SIZE
    }

    /// Where the device has a slot's PRP list.
    pub fn list(&self, slot: usize) -> u64 {
        self.iova(LISTS + slot as u64)
    }

    /// Word `index` of a page.
    ///
    /// # Panics
    /// Beyond the end: places come from our own rings.
    fn word<T>(&self, page: u64, index: usize) -> *mut T {
        let inside = (index * size_of::<T>()) as u64;
        assert!(inside < PAGE_SIZE && page < 1 << ORDER, "word {index} of page {page}");
        self.0.ptr().wrapping_add((page * PAGE_SIZE + inside) as usize).cast()
    }

    fn put(&self, page: u64, index: usize, value: u32) {
        // SAFETY: `word` is aligned and inside memory that is this driver's until it is dropped, and no Rust object. The
        // device may read or write there at any time, hence volatile.
        unsafe { self.word::<u32>(page, index).write_volatile(value) }
    }

    fn get(&self, page: u64, index: usize) -> u32 {
        // SAFETY: as in `put`.
        unsafe { self.word::<u32>(page, index).read_volatile() }
    }

    /// Writes an entry of a slot's PRP list.
    pub fn put_in_list(&self, slot: usize, at: usize, entry: u64) {
        // SAFETY: as in `put`.
        unsafe { self.word::<u64>(LISTS + slot as u64, at).write_volatile(entry) }
    }

    /// Zeroes a page.
    pub fn zero(&self, page: u64) {
        (0..PAGE_SIZE as usize / 4).for_each(|index| self.put(page, index, 0));
    }

    /// What the device has written to the page for [`IDENTIFY`].
    pub fn identify_page(&self) -> [u8; identify::LEN_BYTES] {
        let mut page = [0; identify::LEN_BYTES];
        for (index, bytes) in page.chunks_exact_mut(4).enumerate() {
            bytes.copy_from_slice(&self.get(IDENTIFY, index).to_le_bytes());
        }
        page
    }
}

/// Where a pair of queues is reached: its memory and its doorbells.
#[derive(Clone, Copy)]
pub struct Reach<'c> {
    /// The shared memory.
    pub shared: &'c Shared,
    /// The doorbells among the registers.
    pub registers: &'c Registers,
    /// How far they are apart.
    pub caps: Capabilities,
}

/// A pair of queues with their pages.
pub struct Rings<const N: usize> {
    pair: Pair<N>,
    /// The device does not hear of commands, until the next reset: for tests.
    is_hushed: bool,
    submission: u64,
    completion: u64,
}

impl<const N: usize> Rings<N> {
    /// Queue `id`, with a page for each ring.
    pub const fn new(id: u16, submission: u64, completion: u64) -> Self {
        Self { pair: Pair::new(id, ENTRIES), is_hushed: false, submission, completion }
    }

    /// The arithmetic.
    pub fn pair(&mut self) -> &mut Pair<N> {
        &mut self.pair
    }

    /// Hands a command to the device, which `make` makes for the slot that it gets. `None` where all slots are taken.
    pub fn submit(&mut self, reach: Reach<'_>, make: impl FnOnce(usize) -> Submission) -> Option<Ticket> {
        let ticket = self.pair.begin()?;
        let words = make(ticket.slot()).words(ticket.id());
        for (at, word) in words.into_iter().enumerate() {
            reach.shared.put(self.submission, usize::from(ticket.place()) * command::WORDS + at, word);
        }
        // The entry and its list are there before the device hears of them.
        fence(Ordering::SeqCst);
        if !self.is_hushed {
            reach.registers.write_u32(reach.caps.tail_doorbell(self.pair.id()), u32::from(ticket.tail()));
        }
        Some(ticket)
    }

    /// Tells the device of no command until the next [`reset`](Self::reset), as if it had stopped listening.
    pub fn hush(&mut self) {
        self.is_hushed = true;
    }

    /// Takes what the device has written, at most as many entries as the ring has: a device that goes on and on does not
    /// keep anybody here.
    ///
    /// # Errors
    /// [`Broken`], and what comes after it is left where it is.
    pub fn reap(&mut self, reach: Reach<'_>) -> Result<(), Broken> {
        let mut taken = Ok(());
        let mut nr = 0;
        while nr < ENTRIES && taken.is_ok() {
            let first = usize::from(self.pair.head()) * completion::WORDS;
            let last = reach.shared.get(self.completion, first + LAST_WORD);
            if !self.pair.is_new(last) {
                break;
            }
            // The device writes the last word last: what is in front of it is read after it.
            fence(Ordering::Acquire);
            let word = |at| reach.shared.get(self.completion, first + at);
            taken = self.pair.take([word(0), word(1), word(2), last]).map(|_| ());
            nr += 1;
        }
        if nr > 0 {
            reach.registers.write_u32(reach.caps.head_doorbell(self.pair.id()), u32::from(self.pair.head()));
        }
        taken
    }

    /// Empties both rings. The device is stopped, or has not started.
    pub fn reset(&mut self, shared: &Shared) {
        self.pair.reset();
        self.is_hushed = false;
        shared.zero(self.submission);
        shared.zero(self.completion);
    }

    /// Writes the next completion entry, as a device could that writes what it should not.
    pub fn forge(&mut self, reach: Reach<'_>, entry: Completion) {
        let words = Completion { phase: self.pair.phase(), ..entry }.encode();
        let first = usize::from(self.pair.head()) * completion::WORDS;
        for (at, word) in words.into_iter().enumerate() {
            reach.shared.put(self.completion, first + at, word);
        }
    }
}
