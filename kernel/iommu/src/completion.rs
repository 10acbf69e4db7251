//! What stands against a device's word that its transfer has ended well (D4).
//!
//! A disk does not know that a write of its was blocked: QEMU's NVMe controller ends such a read with success. So what the
//! IOMMU and the kernel have counted is compared between the start of a transfer and its end.

use crate::mutant::Mutant;

/// What was counted of a device, and of the unit in front of it, up to some moment.
///
/// ```
/// use iommu::completion::{Against, Counts};
///
/// let before = Counts { faults: 3, overflows: 1, halts: 0 };
/// assert_eq!(before.against(&before), None);
/// let after = Counts { faults: 4, ..before };
/// assert_eq!(after.against(&before), Some(Against::Fault));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Faults of the device.
    pub faults: u64,
    /// How often the unit had no record free: the faults that it lost may have been of any device.
    pub overflows: u64,
    /// How often the device lost its right to do DMA: what it does then leaves no fault.
    pub halts: u64,
}

/// What stands against a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Against {
    /// The device had no right to do DMA in between.
    Halt,
    /// Something that the device did was blocked.
    Fault,
    /// Faults were lost.
    FaultsLost,
}

impl Counts {
    /// What of it speaks against a transfer that began when `before` was counted; the worst first.
    #[inline]
    pub fn against(&self, before: &Self) -> Option<Against> {
        if Mutant::CompletionBelieved.is_on() {
            return None;
        }
        if self.halts != before.halts {
            return Some(Against::Halt);
        }
        if self.faults != before.faults {
            return Some(Against::Fault);
        }
        (self.overflows != before.overflows).then_some(Against::FaultsLost)
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    /// covers: D4
    #[test]
    fn whatever_was_counted_meanwhile_stands_against_it() {
        let before = Counts { faults: 7, overflows: 2, halts: 1 };
        assert_eq!(before.against(&before), None);
        for (after, against) in [
            (Counts { faults: 8, ..before }, Against::Fault),
            (Counts { overflows: 3, ..before }, Against::FaultsLost),
            (Counts { halts: 2, ..before }, Against::Halt),
            // A fault tells which registration it was; that some were lost tells nothing more.
            (Counts { faults: 8, overflows: 3, ..before }, Against::Fault),
            (Counts { faults: 8, overflows: 3, halts: 2 }, Against::Halt),
        ] {
            assert_eq!(after.against(&before), Some(against), "{after:?}");
        }
    }
}
