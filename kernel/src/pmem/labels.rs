//! What QEMU's NVDIMMs are asked for: their label areas, and an NFIT that has changed since boot.
//!
//! Firmware offers both by a method of ACPI (`_DSM`, ACPI 6.5 §9.19.8). QEMU's method writes its arguments into a page and
//! the page's address to a port, and finds the answer in the page when the write is done (QEMU `docs/specs/acpi_nvdimm.rst`);
//! so it can be asked without an interpreter of that method. Which port that is stands in the firmware's programs. On a machine
//! that is not QEMU nobody is asked.

use alloc::vec::Vec;
use core::ptr;
use core::sync::atomic::{Ordering, fence};

use media::{Medium, Unreadable, end_of};
use mm::addr::{PAGE_SIZE, Pfn};
use nvdimm::acpi::aml;
use spin::Once;

use crate::bringup::fwcfg;
use crate::mem::{layout, memory};

/// Where the page's address is written; not set where no program of the firmware names the port.
static PORT: Once<u16> = Once::new();
const REVISION: u32 = 1;
const LABEL_SIZE: u32 = 4;
const GET_LABELS: u32 = 5;
/// Who answers for all NVDIMMs, and its function that gives the NFIT from an offset.
const ROOT: u32 = 0x1_0000;
const READ_NFIT: u32 = 1;
/// The status of a table that has changed while it was read.
const CHANGED: u32 = 0x100;
/// The largest table that is read, in bytes; and how often it is begun anew.
const LARGEST_NFIT: usize = 1 << 20;
const ATTEMPTS: usize = 16;
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
        memory::alloc_zeroed_below_4g().map(Self)
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
        if let Some(&port) = PORT.get() {
            // SAFETY: the port is QEMU's, as the firmware says; what QEMU then reads and writes is this page, which no Rust
            // object is in.
            unsafe { arch::port::write_u32(port, self.0.addr().as_u64() as u32) };
        }
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

/// Finds the port in the firmware's programs. Called once.
pub fn find(programs: &[&[u8]]) {
    match aml::nvdimm_port(programs) {
        Ok(port) => port.into_iter().for_each(|port| {
            PORT.call_once(|| port);
        }),
        Err(fault) => log::warn!(target: "nfit", "{fault}"),
    }
}

/// Is there somebody who can be asked?
pub fn can_ask() -> bool {
    PORT.get().is_some() && fwcfg::is_present()
}

/// The NFIT as it is now, but for its header; `None` where there is nobody to ask.
///
/// # Errors
/// Why it cannot be read.
pub fn read_nfit() -> Result<Option<Vec<u8>>, &'static str> {
    if !can_ask() {
        return Ok(None);
    }
    let page = Page::new().ok_or("there is no memory below 4 GiB through which it could be asked for")?;
    let mut body = Vec::new();
    for _ in 0..ATTEMPTS {
        body.clear();
        loop {
            let (len, status) = page.ask(ROOT, READ_NFIT, &[body.len() as u32]);
            let part = (len as usize).checked_sub(ANSWER_HEAD).filter(|part| *part <= PAGE_SIZE as usize - ANSWER_HEAD);
            match (status, part) {
                (0, Some(0)) => return Ok(Some(body)),
                (0, Some(part)) if body.len() + part <= LARGEST_NFIT => {
                    body.extend((0..part).map(|at| page.byte(ANSWER_HEAD + at)));
                }
                (CHANGED, _) => break,
                _ => return Err("the answer is not understood"),
            }
        }
    }
    Err("it changes all the time")
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
        if !can_ask() {
            return Ok(None);
        }
        let page =
            Page::new().ok_or("there is no memory below 4 GiB through which its label area could be asked for")?;
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
