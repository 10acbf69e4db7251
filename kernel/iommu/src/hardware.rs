//! What this package needs of the unit below it.

use mm::addr::Pfn;
use mm::sync::AtomicU64;

use crate::command::Command;
use crate::queue::QueueError;

/// Memory for tables, and the way to the unit. Reached by static dispatch.
pub trait Hardware: Send + Sync + 'static {
    /// A table frame full of zeros, which the unit's walker sees as zeros too. `None`: no memory.
    fn alloc_table(&self) -> Option<Pfn>;
    /// Gives a table back: only when no translation can reach it any more.
    fn free_table(&self, table: Pfn);
    /// The live entry, 8 bytes at `index` (0 to 511), which the unit's walker reads.
    fn entry(&self, table: Pfn, index: usize) -> &AtomicU64;
    /// Makes stores to these entries visible to a walker that does not snoop the CPU's caches
    /// ([`coherent`](crate::caps::Capabilities::coherent) is false); nothing to do otherwise.
    fn write_back(&self, table: Pfn, first: usize, count: usize);
    /// Hands the commands to the unit, all stores to entries before them, and waits until it has done all of them.
    ///
    /// # Errors
    /// The queue is stuck, or the unit did not answer in time: it may go on using what it has cached.
    fn invalidate(&self, commands: &[Command]) -> Result<(), QueueError>;
    /// Called in every loop that waits for another CPU.
    fn relax(&self);
}
