//! How a unit's fault records are taken (VT-d §7.2, §11.4.4.1).
//!
//! A unit has few records, and while one waits the next fault of another device sets *overflow* and is lost; QEMU's unit
//! then drops every fault until somebody clears that bit, and interrupts no more. A fault may come at any moment, also
//! between the read of the status and the moment at which the record is free. So the status is read **again** after the
//! records were taken, until it says nothing any more: whoever goes by the first look alone may leave a unit behind that has
//! lost a fault, says so to nobody, and records none.

use crate::Mutant;
use crate::fault::Fault;

/// Of the fault status: records were lost, since there was no free one. Writing it as 1 clears it.
pub const OVERFLOW: u32 = 1;
/// Of the fault status: a record waits.
pub const PENDING: u32 = 1 << 1;

/// So often the status is read in one go. A device that faults all the while keeps nobody for longer: it may be an interrupt
/// handler.
pub const TURNS: u32 = 4;

/// The registers of a unit that tell of faults.
pub trait Registers {
    /// The fault status.
    fn status(&self) -> u32;
    /// Clears these bits of it.
    fn clear_status(&self, bits: u32);
    /// How many records there are.
    fn nr_records(&self) -> u64;
    /// Takes record `nr`, if it holds one: its two halves. It is free for the next then.
    fn take(&self, nr: u64) -> Option<[u64; 2]>;
}

/// Calls `each` with every fault that is recorded, and `None` each time that some were lost; one caller at a time. Whether
/// the unit has nothing more to say: else it was asked [`TURNS`] times, and there is more.
pub fn take_all<R: Registers>(registers: &R, each: &mut dyn FnMut(Option<Fault>)) -> bool {
    let turns = if Mutant::StatusReadOnce.is_on() { 1 } else { TURNS };
    for _ in 0..turns {
        let status = registers.status();
        if status & (OVERFLOW | PENDING) == 0 {
            return true;
        }
        let found = (0..registers.nr_records()).filter_map(|nr| registers.take(nr));
        found.filter_map(|[low, high]| Fault::decode(low, high)).for_each(|fault| each(Some(fault)));
        if status & OVERFLOW != 0 {
            registers.clear_status(OVERFLOW);
            each(None);
        }
    }
    registers.status() & (OVERFLOW | PENDING) == 0
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    extern crate std;
    use super::*;
    use crate::fault::{Kind, Reason, SourceId};
    use core::cell::{Cell, RefCell};
    use std::vec::Vec;

    fn fault(device: u8) -> Fault {
        let source = SourceId { bus: 0, device, function: 0 };
        Fault { source, address: 0x1000, kind: Kind::Write, reason: Reason::NotWritable }
    }

    /// A unit as QEMU's: records in a ring, and dropped while overflow is set. Faults come before accesses of given numbers.
    struct Unit {
        records: RefCell<Vec<Option<Fault>>>,
        next: Cell<usize>,
        overflow: Cell<bool>,
        accesses: Cell<u64>,
        comes_before: Vec<u64>,
        /// So many were lost since overflow was last cleared, and so many of which the bit has told.
        lost: Cell<u64>,
        dropped: Cell<u64>,
    }

    impl Unit {
        fn new(nr_records: usize, comes_before: Vec<u64>) -> Self {
            let records = RefCell::new(std::vec![None; nr_records]);
            let (next, overflow, accesses) = (Cell::new(0), Cell::new(false), Cell::new(0));
            Self { records, next, overflow, accesses, comes_before, lost: Cell::new(0), dropped: Cell::new(0) }
        }
        fn blocks(&self, fault: Fault) {
            let (mut records, next) = (self.records.borrow_mut(), self.next.get());
            if self.overflow.get() || records[next].is_some() {
                self.overflow.set(true);
                self.lost.set(self.lost.get() + 1);
                self.dropped.set(self.dropped.get() + 1);
                return;
            }
            records[next] = Some(fault);
            self.next.set((next + 1) % records.len());
        }
        fn access(&self) {
            let nr = self.accesses.replace(self.accesses.get() + 1);
            self.comes_before.iter().filter(|at| **at == nr).for_each(|_| self.blocks(fault(1)));
        }
    }

    impl Registers for Unit {
        fn status(&self) -> u32 {
            self.access();
            let pending = self.records.borrow().iter().any(Option::is_some);
            let bit = |is_set, bit| if is_set { bit } else { 0 };
            bit(self.overflow.get(), OVERFLOW) | bit(pending, PENDING)
        }
        fn clear_status(&self, bits: u32) {
            self.access();
            if bits & OVERFLOW != 0 {
                self.overflow.set(false);
                self.lost.set(0);
            }
        }
        fn nr_records(&self) -> u64 {
            self.records.borrow().len() as u64
        }
        fn take(&self, nr: u64) -> Option<[u64; 2]> {
            self.access();
            // A fault may also come before the record is free.
            let found = self.records.borrow()[nr as usize];
            found?;
            self.access();
            let (low, high) = self.records.borrow_mut()[nr as usize].take()?.encode();
            Some([low, high])
        }
    }

    /// What was told: faults, and how often that some were lost.
    fn told(unit: &Unit) -> (u64, u64, bool) {
        let (mut faults, mut losses) = (0, 0);
        let is_all = take_all(unit, &mut |found| match found {
            Some(_) => faults += 1,
            None => losses += 1,
        });
        (faults, losses, is_all)
    }

    // covers: D6
    #[test]
    fn whenever_another_fault_comes_it_is_told_or_said_to_be_lost() {
        for nr_records in 1..=3 {
            for at in 0..24 {
                let unit = Unit::new(nr_records, std::vec![at]);
                unit.blocks(fault(0));
                let (faults, losses, is_all) = told(&unit);
                let came = unit.accesses.get() > at;
                let lost = unit.dropped.get();
                assert!(
                    is_all && !unit.overflow.get(),
                    "{nr_records} records, before access {at}: a unit that is full"
                );
                assert_eq!(faults + lost, 1 + u64::from(came), "{nr_records} records, before access {at}");
                assert_eq!(losses, lost, "{nr_records} records, before access {at}: lost, and nobody was told");
                // And the next one is recorded.
                unit.accesses.set(1000);
                unit.blocks(fault(2));
                assert_eq!((told(&unit), unit.lost.get()), ((1, 0, true), 0), "{nr_records} records, {at}");
            }
        }
    }

    #[test]
    fn a_device_that_faults_all_the_while_keeps_nobody() {
        let unit = Unit::new(1, (0..1000).collect());
        let (faults, losses, is_all) = told(&unit);
        assert!(!is_all && faults + losses <= 2 * u64::from(TURNS) && unit.accesses.get() < 50, "{faults} {losses}");
        // Once it stops, all of it is told.
        unit.accesses.set(1000);
        assert!(told(&unit).2 && !unit.overflow.get());
        assert_eq!(told(&unit), (0, 0, true));
    }
}
