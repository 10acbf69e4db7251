//! Persistent memory of any size that holds what is not zero, and counts what is done to it.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use fs::error::FsError;
use fs::pmem::{LINE, Pmem, check_bounds};

const PAGE: u64 = 4096;

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    pub reads: u64,
    pub bytes_read: u64,
    pub stores: u64,
    pub lines: u64,
    pub fences: u64,
}

#[derive(Default)]
pub struct Sparse {
    len: u64,
    pages: Mutex<BTreeMap<u64, Vec<u8>>>,
    counts: [AtomicU64; 5],
}

impl Sparse {
    pub fn new(len: u64) -> Self {
        Self { len, ..Self::default() }
    }
    pub fn done(&self) -> Done {
        let [reads, bytes_read, stores, lines, fences] =
            self.counts.each_ref().map(|count| count.load(Ordering::Relaxed));
        Done { reads, bytes_read, stores, lines, fences }
    }
    /// What `work` does to it.
    pub fn count(&self, work: impl FnOnce()) -> Done {
        let before = self.done();
        work();
        let after = self.done();
        Done {
            reads: after.reads - before.reads,
            bytes_read: after.bytes_read - before.bytes_read,
            stores: after.stores - before.stores,
            lines: after.lines - before.lines,
            fences: after.fences - before.fences,
        }
    }
    fn add(&self, count: usize, nr: u64) {
        self.counts[count].fetch_add(nr, Ordering::Relaxed);
    }
}

/// Page, offset in it, bytes of the caller's.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let part = ((PAGE - at % PAGE) as usize).min(len - done);
        done += part;
        (part != 0).then(|| (at / PAGE, (at % PAGE) as usize, done - part..done))
    })
}

impl Pmem for Sparse {
    fn len_bytes(&self) -> u64 {
        self.len
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), FsError> {
        check_bounds(offset, buf.len(), self.len)?;
        self.add(0, 1);
        self.add(1, buf.len() as u64);
        let pages = self.pages.lock().unwrap();
        for (page, at, part) in parts(offset, buf.len()) {
            match pages.get(&page) {
                Some(bytes) => buf[part.clone()].copy_from_slice(&bytes[at..at + part.len()]),
                None => buf[part].fill(0),
            }
        }
        Ok(())
    }
    fn store(&self, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        check_bounds(offset, bytes.len(), self.len)?;
        self.add(2, 1);
        let mut pages = self.pages.lock().unwrap();
        for (page, at, part) in parts(offset, bytes.len()) {
            let bytes = &bytes[part];
            if pages.contains_key(&page) || bytes.iter().any(|&byte| byte != 0) {
                let there = pages.entry(page).or_insert_with(|| vec![0; PAGE as usize]);
                there[at..at + bytes.len()].copy_from_slice(bytes);
            }
        }
        Ok(())
    }
    fn write_back(&self, offset: u64, len: u64) {
        if len != 0 {
            self.add(3, (offset + len - 1) / LINE - offset / LINE + 1);
        }
    }
    fn fence(&self) -> Result<(), FsError> {
        self.add(4, 1);
        Ok(())
    }
}
