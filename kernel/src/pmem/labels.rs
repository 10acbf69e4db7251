//! The label areas of QEMU's NVDIMMs.
//!
//! Firmware offers them by a method of ACPI (`_DSM`, ACPI 6.5 §9.20.6). QEMU's method writes its arguments into a page and
//! the page's address to a port, and finds the answer in the page when the write is done (QEMU `docs/specs/acpi_nvdimm.rst`);
//! so it can be asked without an interpreter of that method. On a machine that is not QEMU nobody is asked.

use core::ptr;
use core::sync::atomic::{Ordering, fence};

use media::{Medium, Unreadable, end_of};
use mm::addr::{PAGE_SIZE, Pfn};

use crate::bringup::fwcfg;
use crate::mem::{layout, memory};

/// Where the page's address is written.
const PORT: u16 = 0xa18;
const REVISION: u32 = 1;
const LABEL_SIZE: u32 = 4;
const GET_LABELS: u32 = 5;
/// Words before the arguments: handle, revision, function.
const HEAD_WORDS: usize = 3;
/// Before the data of an answer: its length, and a status.
const ANSWER_HEAD: usize = 8;
/// Bytes that are asked for at once: what a page certainly holds.
const AT_ONCE: usize = 2048;
/// The status of an NVDIMM without a label area: the function is not supported.
const UNSUPPORTED: u32 = 1;
/// The largest area that is read.
const LARGEST: u64 = 16 << 20;

/// A page through which QEMU is asked.
struct Page(Pfn);

impl Page {
    /// A page that a port of 32 bits can name.
    fn new() -> Option<Self> {
        let page = Self(memory::alloc_zeroed()?);
        (page.0.addr().as_u64() <= u64::from(u32::MAX)).then_some(page)
    }

    fn word(&self, at: usize) -> *mut u32 {
        let base: *mut u32 = layout::direct_ptr(self.0.addr());
        base.wrapping_add(at % (PAGE_SIZE as usize / 4))
    }

    /// Asks; answers length and status. The data are in the page.
    fn ask(&self, handle: u32, function: u32, arguments: &[u32]) -> (u32, u32) {
        let words = [handle, REVISION, function].into_iter().chain(arguments.iter().copied());
        for (at, word) in words.enumerate() {
            // SAFETY: RAM of ours in the direct map, and `word` stays inside the page.
            unsafe { ptr::write_volatile(self.word(at), word.to_le()) };
        }
        fence(Ordering::SeqCst);
        // SAFETY: the port is QEMU's, or nobody's; what QEMU then reads and writes is this page, which no Rust object is in.
        unsafe { arch::port::write_u32(PORT, self.0.addr().as_u64() as u32) };
        fence(Ordering::SeqCst);
        // SAFETY: as above.
        let [len, status] = [0, 1].map(|at| u32::from_le(unsafe { ptr::read_volatile(self.word(at)) }));
        (len, status)
    }

    fn byte(&self, at: usize) -> u8 {
        let base: *const u8 = layout::direct_ptr(self.0.addr());
        // SAFETY: RAM of ours in the direct map, inside the page.
        unsafe { ptr::read_volatile(base.wrapping_add(at % PAGE_SIZE as usize)) }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        memory::free(self.0, 0);
    }
}

/// The label area of one NVDIMM.
pub struct Labels {
    page: Page,
    handle: u32,
    len_bytes: u64,
}

impl Labels {
    /// That of the NVDIMM of this handle; `None` where there is none, or nobody to ask.
    ///
    /// # Errors
    /// There may be one, and it cannot be read, for this reason.
    pub fn of(handle: u32) -> Result<Option<Self>, &'static str> {
        if !fwcfg::is_present() {
            return Ok(None);
        }
        let page = Page::new().ok_or("there is no memory through which its label area could be asked for")?;
        // Length, status, size, and how much can be asked for at once.
        match page.ask(handle, LABEL_SIZE, &[]) {
            (16, 0) => {}
            // Where nobody answers, what was asked is still there.
            (_, UNSUPPORTED) => return Ok(None),
            _ => return Err("its label area was asked for, and the answer is not understood"),
        }
        // SAFETY: RAM of ours in the direct map.
        let [size, at_once] = [2, 3].map(|at| u32::from_le(unsafe { ptr::read_volatile(page.word(at)) }));
        match u64::from(size) {
            0 => Ok(None),
            len_bytes if len_bytes <= LARGEST && at_once as usize >= AT_ONCE => {
                Ok(Some(Self { page, handle, len_bytes }))
            }
            _ => Err("its label area is larger than what is read here, or is given out in too small pieces"),
        }
    }
}

impl Medium for Labels {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        end_of(offset, into.len() as u64, self.len_bytes)?;
        for (nth, part) in into.chunks_mut(AT_ONCE).enumerate() {
            // Both are below the size of the area, which has 32 bits.
            let (from, len) = ((offset + (nth * AT_ONCE) as u64) as u32, part.len());
            if self.page.ask(self.handle, GET_LABELS, &[from, len as u32]) != ((ANSWER_HEAD + len) as u32, 0) {
                return Err(Unreadable);
            }
            for (at, byte) in part.iter_mut().enumerate() {
                *byte = self.page.byte(ANSWER_HEAD + at);
            }
        }
        Ok(())
    }
}

// What was asked stays in the page where nobody answers.
const _: () = assert!(REVISION == UNSUPPORTED);
const _: () = assert!(AT_ONCE + ANSWER_HEAD + 4 * HEAD_WORDS < PAGE_SIZE as usize);
