//! What can be seen of each CPU's TLB, while the machine runs.

use super::Shootdown;
use crate::machine::{CpuId, IrqOff, Machine};
use crate::sync::Ordering;

/// One CPU's side of the shootdowns, at the moment of a look. The numbers belong together only as far as nothing happens
/// meanwhile: who wants them to agree lets the machine come to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuLook {
    /// Number of the address space that is loaded; `None`: the kernel's own tables.
    pub space: Option<u64>,
    /// It idles with that space loaded, does not use it, and catches up before it does.
    pub lazy: bool,
    /// The space's latest generation, which grows by one with each zap; 0 where none is loaded.
    pub generation: u64,
    /// The generation up to which this CPU has flushed; 0 where none is loaded.
    pub flushed: u64,
    /// The latest generation of the kernel half.
    pub kernel_generation: u64,
    /// The same as `flushed`, of the kernel half.
    pub kernel_flushed: u64,
    /// How often it was asked, by interrupt, to flush.
    pub requests: u64,
    /// How many of these it has answered. One run of the handler may answer several.
    pub answered: u64,
}

impl CpuLook {
    /// Has it flushed all that was taken away? A CPU that is [lazy](Self::lazy) may be behind, and rightly.
    pub fn is_up_to_date(&self) -> bool {
        self.flushed == self.generation && self.kernel_flushed == self.kernel_generation
    }
}

impl Shootdown {
    /// Looks at `cpu` from this one; `None`: there is no such CPU. Holds the other CPU up for a few loads at most.
    ///
    /// ```
    /// use mm::machine::IrqOff;
    /// use mm::space::AddressSpace;
    /// use testkit::emu::{self, Task};
    ///
    /// let mm = emu::context(2);
    /// let space = AddressSpace::new(&mm, "task").unwrap();
    /// let _task = Task::start(&space, 1);
    /// let look = |cpu| mm.shootdown.look(&IrqOff::new(&mm.machine), cpu);
    /// assert_eq!(look(1).unwrap().space, Some(space.id()));
    /// assert_eq!(look(0).unwrap().space, None);
    /// assert_eq!(look(2), None);
    /// ```
    pub fn look<M: Machine>(&self, _irq: &IrqOff<'_, M>, cpu: CpuId) -> Option<CpuLook> {
        let cpu = self.cpus.get(cpu)?;
        // Read first: then it is no more than `requests`.
        let answered = cpu.ack.load(Ordering::Acquire);
        let loaded = cpu.loaded.lock();
        let space = loaded.space.as_ref();
        Some(CpuLook {
            space: space.map(|space| space.id),
            lazy: cpu.lazy.load(Ordering::Relaxed) != 0,
            generation: space.map_or(0, |space| space.generation.load(Ordering::Relaxed)),
            flushed: space.map_or(0, |_| loaded.flushed),
            kernel_generation: self.kernel.generation.load(Ordering::Relaxed),
            kernel_flushed: loaded.kernel_flushed,
            requests: cpu.request.load(Ordering::Relaxed),
            answered,
        })
    }
}
