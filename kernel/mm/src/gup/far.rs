//! Pages whose frames are far from each other: each is looked up by itself, in a loop that has nothing else in it.

use super::recheck::{Seen, Taken};
use super::{PinSink, Walk};
use crate::entry::Entry;
use crate::machine::{IrqOff, Machine};
use crate::meta::{Far, FarFound};

impl<M: Machine, const PIN: bool> Walk<'_, M, PIN> {
    /// Up to `most` pages from that at `index` on, page by page, as long as no frame follows the one before it. What needs a
    /// closer look is left to [`run`](Self::run): a count that another CPU changes meanwhile, a folio of 1 GiB. Answers how
    /// many, and whether the fast path may go on behind them.
    #[inline(never)]
    pub(super) fn scattered<S: PinSink>(
        &self,
        irq: &IrqOff<'_, M>,
        above: Seen<'_>,
        (index, most): (usize, usize),
        sink: &mut S,
    ) -> (usize, bool) {
        let (machine, table, request) = (irq.machine(), above.entry.pfn(), self.request);
        let (mut far, mut in_a_row) = (Far::default(), Entry::EMPTY);
        let mut done = 0;
        while done < most {
            let this = Seen::read(machine.entry(table, index.wrapping_add(done)));
            if this.entry == in_a_row || !this.entry.has(request.rights()) {
                break;
            }
            let pfn = this.entry.pfn();
            // SAFETY: interrupts are off, and each frame was read from a present entry in this walk.
            let page = match unsafe { self.mm().meta.lookup_far(pfn, &mut far) } {
                FarFound::Small(page) | FarFound::Large(page) => page,
                FarFound::Other => break,
            };
            if !self.tolerates(page) {
                break;
            }
            match self.take_and_recheck::<true>(page, 1, this, Some(above)) {
                Taken::Kept if sink.push_one(pfn) => {}
                Taken::Kept => {
                    self.give_back(pfn, 1);
                    break;
                }
                Taken::Stale => {
                    self.give_back(pfn, 1);
                    return (done, false);
                }
                Taken::Refused => break,
            }
            in_a_row = this.entry.next_page();
            done = done.wrapping_add(1);
        }
        (done, true)
    }
}
