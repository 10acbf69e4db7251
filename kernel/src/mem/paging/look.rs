//! A walk that can be looked at.

use arch::cpu::IrqSave;
use mm::addr::{Pfn, VirtAddr};
use mm::look::{Step, Walk};

use super::load;

/// What the CPU's walker would read at `va` under `root`, an address of the kernel half. Lock-free: while interrupts are off
/// no table of that half is freed, for its shootdown asks every CPU.
pub fn path(root: Pfn, va: VirtAddr) -> Walk {
    let _irq = IrqSave::new();
    let (mut walk, mut table) = (Walk::new(), root);
    for level in (1..=4).rev() {
        let index = va.index(level);
        let entry = load(table, index);
        walk.push(Step { level, table, index, entry });
        if !entry.is_table(level) {
            break;
        }
        table = entry.pfn();
    }
    walk
}
