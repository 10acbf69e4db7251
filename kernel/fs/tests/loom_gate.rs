//! The gate of an inode's faults, and letting go of an inode, under the model checker. Run with
//! `RUSTFLAGS="--cfg loom" cargo test -p fs --release --test loom_gate`.
//!
//! | model | property |
//! |---|---|
//! | `a_fault_against_who_breaks_the_layout` | Once blocks are freed no fault has them installed, nor installs them ever after; a fault for other pages is not turned away |
//! | `two_who_let_go` | An inode that nobody has open is freed, once |
//! | `one_who_lets_go_against_one_who_opens` | … and never while somebody has it open |
#![cfg(any(loom, shuttle))]

use fs::gate::{Evictor, Gate, Handles};
use fs::mutant::Faults;
use mm::sync::model::{Bound, UnsafeCell, explore, thread};
use mm::sync::{Arc, Mutex};

/// A page of a file, as faults and who frees its block see it: the gate alone orders who reaches these.
struct Page {
    gate: Gate,
    installed: UnsafeCell<bool>,
    freed: UnsafeCell<bool>,
}

// SAFETY: the cells are what the model checks: the checker fails the test where two threads reach one without order.
unsafe impl Sync for Page {}

impl Page {
    /// One fault for the page: F1 to F3.
    fn fault(&self) {
        let Some(_inside) = self.gate.enter(4, 5) else { return };
        // SAFETY: there is one task that faults, and who frees the block waits until it has left; the checker checks exactly that.
        let freed = self.freed.with(|freed| unsafe { *freed });
        // SAFETY: as above.
        self.installed.with_mut(|installed| unsafe { *installed = !freed });
    }

    /// C1 to C4.
    fn free(&self) {
        let _closed = self.gate.begin_close(3, 6);
        while self.gate.has_inside() {
            thread::yield_now();
        }
        // SAFETY: as in `fault`.
        self.installed.with_mut(|installed| unsafe { *installed = false });
        // SAFETY: as in `fault`.
        self.freed.with_mut(|freed| unsafe { *freed = true });
    }
}

/// covers: E2
#[test]
fn a_fault_against_who_breaks_the_layout() {
    explore(Bound::None, || {
        let gate = Gate::new(Faults::default());
        let page = Arc::new(Page { gate, installed: UnsafeCell::new(false), freed: UnsafeCell::new(false) });
        let task = {
            let page = page.clone();
            thread::spawn(move || {
                page.fault();
                assert!(page.gate.enter(6, 7).is_some(), "a page that nobody has closed");
                page.fault();
            })
        };
        page.free();
        task.join().unwrap();
        page.fault();
        // SAFETY: nobody else is left.
        let is_installed = page.installed.with(|installed| unsafe { *installed });
        assert!(!is_installed, "a page whose block was freed can be reached");
    });
}

/// An inode without a name.
struct Inode {
    handles: Handles,
    /// The table of inodes: is it there?
    table: Mutex<bool>,
    /// Read by who has it open, outside the lock; written by who frees it.
    freed: UnsafeCell<u32>,
}

// SAFETY: as for `Page`.
unsafe impl Sync for Inode {}

impl Inode {
    /// Somebody has it open.
    fn new() -> Arc<Self> {
        let handles = Handles::new(Faults::default());
        handles.open();
        Arc::new(Self { handles, table: Mutex::new(true), freed: UnsafeCell::new(0) })
    }

    /// As who opens it by a way that leads to it: looks it up, uses it, closes it.
    fn open_for_a_moment(&self) {
        {
            let table = self.table.lock();
            if !*table {
                return;
            }
            self.handles.open();
        }
        // SAFETY: it is not freed while it is open; the checker checks exactly that.
        self.freed.with(|freed| assert_eq!(unsafe { *freed }, 0, "used after it was freed"));
        self.close();
    }

    /// As who drops a handle, and reaps.
    fn close(&self) {
        if self.handles.close() {
            self.reap();
        }
    }

    /// As `Mounted::let_go_of`.
    fn reap(&self) {
        {
            let table = self.table.lock();
            if !*table || self.handles.ask() != Evictor::Ours {
                return;
            }
        }
        // Here it is saved.
        thread::yield_now();
        let mut table = self.table.lock();
        if !self.handles.may_go() {
            return;
        }
        // SAFETY: as above.
        self.freed.with_mut(|freed| unsafe { *freed += 1 });
        *table = false;
        self.handles.end();
    }

    fn check(&self) {
        assert!(!*self.table.lock(), "it is still there");
        // SAFETY: nobody else is left.
        self.freed.with(|freed| assert_eq!(unsafe { *freed }, 1, "times it was freed"));
    }
}

/// Stores to `leaving`: initial value, 2 turns asked for, 1 given back.
/// covers: E8
#[test]
fn two_who_let_go() {
    explore(Bound::None, || {
        let inode = Inode::new();
        let other = {
            let inode = inode.clone();
            thread::spawn(move || inode.reap())
        };
        inode.close();
        other.join().unwrap();
        inode.check();
    });
}

/// Stores to `leaving`: initial value, 3 turns asked for, 2 given back; to the count of handles: initial value, 2 opened, 2
/// closed.
/// covers: E8
#[test]
fn one_who_lets_go_against_one_who_opens() {
    explore(Bound::Preemptions(4), || {
        let inode = Inode::new();
        let opener = {
            let inode = inode.clone();
            thread::spawn(move || inode.open_for_a_moment())
        };
        inode.close();
        opener.join().unwrap();
        inode.check();
    });
}
