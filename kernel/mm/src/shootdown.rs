//! Shootdown: making sure that no CPU still uses a translation that has been taken out of a page table.
//!
//! # Protocol
//! Each address space has a [`TlbState`]: the set of CPUs that have it loaded, a *generation* that grows by one
//! with every zap, and a ring that remembers which range each of the latest generations took away. Each CPU has
//! two sequence numbers, `request` and `ack`.
//!
//! ```text
//!  sender (a task, interrupts on)                 receiver (any CPU that has the space loaded)
//!  1 clear the entry
//!  2 issue:    ring[gen + 1] = range
//!              gen += 1; fence; read the CPU set
//!  3 dispatch: ++request[cpu]; IPI                a request = what `request` holds now
//!              flush our own CPU meanwhile        b flush all generations up to the space's present one
//!  4 sync:     ticket = request[cpu], at least ours
//!              wait until ack[cpu] >= ticket      c ack = the value read in a
//!  5 free tables, references, blocks
//! ```
//!
//! There is no mailbox to overflow: requests that meet are answered by one run of the handler, because *a* is
//! read before *b*. What can overflow is the ring; a receiver that is more than [`RING`] generations behind, or
//! that meets a slot which is being rewritten, flushes everything instead.
//!
//! The acknowledgement is never early: it says that the flush is done *and*, because the handler cannot run
//! while interrupts are off, that every gup-fast walk which could have seen the old entry has ended (G2). An
//! acknowledgement before the flush would be safe only if neither table pages nor data were freed after it.
//!
//! # A CPU that switches while a round is under way
//! ```text
//!  sender                                         switching CPU (interrupts off)
//!  1 clear the entry                              a cpus |= me
//!  2 gen += 1; fence                              b fence; g = gen
//!  3 read cpus                                    c load the root (flushes); flushed up to g
//! ```
//! If 3 does not see *a*, then *c* comes after 1 and the walker cannot find the old entry. If it does, the CPU is
//! interrupted, at the latest when it turns interrupts on after the switch.
//!
//! Linux: `arch/x86/mm/tlb.c` (`tlb_gen`, `switch_mm_irqs_off`, `flush_tlb_func`).

mod look;

use alloc::boxed::Box;
use alloc::vec::Vec;

pub use self::look::CpuLook;
use crate::addr::{Pfn, PhysAddr, VirtAddr};
use crate::lock_check;
use crate::machine::{self, CpuId, CpuMask, IrqOff, Machine, Point};
use crate::mutant::Mutant;
use crate::sync::{Arc, AtomicU32, AtomicU64, Ordering, RawMutex, fence};
pub use crate::tlb::{FULL_FLUSH_ABOVE, FlushRange, RING, TlbState};
use crate::trace::{Kind, Mark, mark};

/// What one CPU knows about its own TLB. Written by that CPU alone, but for `request`.
#[derive(Debug)]
#[repr(align(64))]
struct CpuTlb {
    /// How many times this CPU has been asked to flush.
    request: AtomicU64,
    /// The highest request that has been answered.
    ack: AtomicU64,
    /// 1 while the CPU idles with a space still loaded that it does not use.
    lazy: AtomicU32,
    /// Locked by this CPU with interrupts off, and for a moment by whoever [looks](Shootdown::look), with interrupts off
    /// too: so nobody waits long for it, and it waits for nobody.
    loaded: RawMutex<Loaded>,
}

#[derive(Debug, Default)]
struct Loaded {
    space: Option<Arc<TlbState>>,
    /// The generation of `space` up to which this CPU has flushed.
    flushed: u64,
    /// The same of the kernel half.
    kernel_flushed: u64,
}

/// Counts of what shootdowns cost, since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShootdownStats {
    /// Rounds dispatched.
    pub rounds: u64,
    /// Interrupts sent to other CPUs.
    pub ipis: u64,
    /// Single pages flushed, on all CPUs.
    pub page_flushes: u64,
    /// Full flushes, on all CPUs.
    pub full_flushes: u64,
}

impl ShootdownStats {
    /// What was added since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            rounds: self.rounds - earlier.rounds,
            ipis: self.ipis - earlier.ipis,
            page_flushes: self.page_flushes - earlier.page_flushes,
            full_flushes: self.full_flushes - earlier.full_flushes,
        }
    }
}

/// The shootdown state of a machine.
#[derive(Debug)]
pub struct Shootdown {
    cpus: Box<[CpuTlb]>,
    /// The kernel half, which is in every address space: its CPU set holds every CPU that is online.
    kernel: TlbState,
    /// Up to this many single flushes; more become one full flush.
    full_flush_above: AtomicU64,
    rounds: AtomicU64,
    ipis: AtomicU64,
    page_flushes: AtomicU64,
    full_flushes: AtomicU64,
}

impl Shootdown {
    /// For a machine with `nr_cpus` CPUs, none of which has anything loaded.
    pub fn new(nr_cpus: usize) -> Self {
        let cpu = |_| CpuTlb {
            request: AtomicU64::new(0),
            ack: AtomicU64::new(0),
            lazy: AtomicU32::new(0),
            loaded: RawMutex::new(Loaded::default()),
        };
        Self {
            cpus: (0..nr_cpus).map(cpu).collect(),
            kernel: TlbState::new(u64::MAX, Pfn::new(0)),
            full_flush_above: AtomicU64::new(FULL_FLUSH_ABOVE),
            rounds: AtomicU64::new(0),
            ipis: AtomicU64::new(0),
            page_flushes: AtomicU64::new(0),
            full_flushes: AtomicU64::new(0),
        }
    }

    /// From now on up to `nr` pages are flushed one by one, and more by one full flush; [`FULL_FLUSH_ABOVE`] at first.
    /// Either is right at any time, so it may be changed at any time.
    pub fn set_full_flush_above(&self, nr: u64) {
        self.full_flush_above.store(nr, Ordering::Relaxed);
    }

    /// What shootdowns have cost so far.
    pub fn stats(&self) -> ShootdownStats {
        ShootdownStats {
            rounds: self.rounds.load(Ordering::Relaxed),
            ipis: self.ipis.load(Ordering::Relaxed),
            page_flushes: self.page_flushes.load(Ordering::Relaxed),
            full_flushes: self.full_flushes.load(Ordering::Relaxed),
        }
    }

    /// This CPU takes part from now on: it handles the shootdown interrupt.
    pub fn cpu_online<M: Machine>(&self, irq: &IrqOff<'_, M>) {
        self.kernel.cpus.fetch_or(1 << irq.cpu(), Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let mut loaded = self.cpus[irq.cpu()].loaded.lock();
        loaded.kernel_flushed = self.kernel.generation.load(Ordering::Acquire);
        irq.machine().flush_global();
    }

    /// Loads an address space on this CPU (or the kernel's own tables) and catches up with its shootdowns.
    pub fn switch_to<M: Machine>(&self, irq: &IrqOff<'_, M>, new: Option<&Arc<TlbState>>) {
        let cpu = &self.cpus[irq.cpu()];
        let bit = 1 << irq.cpu();
        let mut loaded = cpu.loaded.lock();
        let same = match (&loaded.space, new) {
            (Some(old), Some(new)) => old.id == new.id,
            (None, None) => true,
            _ => false,
        };
        if same {
            self.leave_lazy_locked(irq, &mut loaded);
            return;
        }
        let enter = |loaded: &mut Loaded| {
            // Before our bit shows in the new space: a sender that sees the bit must not take us for idle and skip us.
            cpu.lazy.store(0, Ordering::SeqCst);
            if let Some(new) = new {
                // SeqCst with the fence below; pairs with the fence in `Round::issue`: see the protocol above.
                new.cpus.fetch_or(bit, Ordering::SeqCst);
                fence(Ordering::SeqCst);
                loaded.flushed = new.generation.load(Ordering::Acquire);
            }
        };
        if !Mutant::SwitchEntersLate.is_on() {
            enter(&mut loaded);
        }
        if Mutant::SwitchStaysLazy.is_on() {
            cpu.lazy.store(1, Ordering::SeqCst);
        }
        irq.machine().load_root(new.map(|tlb| tlb.root));
        irq.machine().reached(Point::SwitchLoaded);
        mark!(irq.machine(), Mark::new(Kind::Switched, root_of(new).as_u64(), 0));
        if Mutant::SwitchEntersLate.is_on() {
            enter(&mut loaded);
        }
        if Mutant::SwitchStaysLazy.is_on() {
            cpu.lazy.store(0, Ordering::SeqCst);
        }
        irq.machine().set_loaded(root_of(new));
        let old = core::mem::replace(&mut loaded.space, new.cloned());
        if let Some(old) = old {
            // Release; pairs with the Acquire of the set in `Round::issue`: a sender that does not see our bit
            // any more sees everything that this CPU did while it had the space loaded.
            old.cpus.fetch_and(!bit, Ordering::AcqRel);
        }
    }

    /// This CPU goes idle with its address space still loaded. It will not be interrupted for shootdowns that
    /// free no table page; [`leave_lazy`](Self::leave_lazy) or [`switch_to`](Self::switch_to) catches up.
    pub fn enter_lazy<M: Machine>(&self, irq: &IrqOff<'_, M>) {
        let cpu = &self.cpus[irq.cpu()];
        irq.machine().set_loaded(root_of(None));
        // Release; pairs with the Acquire load in `dispatch`: walks made before are visible to who skips us.
        cpu.lazy.store(1, Ordering::Release);
    }

    /// This CPU uses its loaded address space again.
    pub fn leave_lazy<M: Machine>(&self, irq: &IrqOff<'_, M>) {
        let mut loaded = self.cpus[irq.cpu()].loaded.lock();
        self.leave_lazy_locked(irq, &mut loaded);
    }

    fn leave_lazy_locked<M: Machine>(&self, irq: &IrqOff<'_, M>, loaded: &mut Loaded) {
        let cpu = &self.cpus[irq.cpu()];
        if cpu.lazy.load(Ordering::Relaxed) == 0 {
            return;
        }
        cpu.lazy.store(0, Ordering::SeqCst);
        // Pairs with the fence in `Round::issue`: either the sender sees that we are not lazy, or we see its
        // generation here.
        fence(Ordering::SeqCst);
        if !Mutant::LazyNotCaughtUp.is_on() {
            self.catch_up(irq, loaded);
        }
        irq.machine().set_loaded(root_of(loaded.space.as_ref()));
    }

    /// The shootdown interrupt's handler, on the CPU that was interrupted. Takes no lock that another CPU can
    /// hold for longer than a [`look`](Self::look), which has interrupts off and waits for nobody; and logs nothing.
    pub fn handle_ipi<M: Machine>(&self, irq: &IrqOff<'_, M>) {
        let cpu = &self.cpus[irq.cpu()];
        // Acquire; pairs with the AcqRel increment in `dispatch`: the generations issued before each request
        // counted here are visible to the flush below.
        let mut request = cpu.request.load(Ordering::Acquire);
        mark!(irq.machine(), Mark::new(Kind::Received, request, 0));
        if Mutant::AckBeforeFlush.is_on() {
            cpu.ack.store(request, Ordering::Release);
        }
        self.flush_local(irq);
        if Mutant::RequestReadLate.is_on() {
            request = cpu.request.load(Ordering::Acquire);
        }
        // Before its sender can see it.
        mark!(irq.machine(), Mark::new(Kind::Acknowledged, request, 0));
        // Release; pairs with the Acquire load in `sync`: the flush, and every walk before this interrupt, is
        // over for whoever sees the number.
        let order = if Mutant::RelaxedAck.is_on() { Ordering::Relaxed } else { Ordering::Release };
        cpu.ack.store(request, order);
    }

    /// Flushes on this CPU whatever its loaded space and the kernel half have taken away.
    fn flush_local<M: Machine>(&self, irq: &IrqOff<'_, M>) {
        let mut loaded = self.cpus[irq.cpu()].loaded.lock();
        let generation = self.kernel.generation.load(Ordering::Acquire);
        if loaded.kernel_flushed < generation {
            irq.machine().flush_global();
            mark!(irq.machine(), Mark::new(Kind::Flushed, 0, 0));
            self.full_flushes.fetch_add(1, Ordering::Relaxed);
            loaded.kernel_flushed = generation;
        }
        self.catch_up(irq, &mut loaded);
    }

    fn catch_up<M: Machine>(&self, irq: &IrqOff<'_, M>, loaded: &mut Loaded) {
        let Some(space) = &loaded.space else { return };
        // Acquire; pairs with the Release store in `publish`.
        let generation = space.generation.load(Ordering::Acquire);
        let behind = generation - loaded.flushed;
        if behind == 0 {
            return;
        }
        // Where the ring has forgotten one of them, that is the oldest, which comes first and ends it.
        let mut what = space.taken(generation);
        for older in (generation - behind + 1)..generation {
            if what == FlushRange::All {
                break;
            }
            what = what.merge(space.taken(older));
        }
        self.flush(irq, what);
        loaded.flushed = generation;
    }

    fn flush<M: Machine>(&self, irq: &IrqOff<'_, M>, what: FlushRange) {
        let mark = |va: VirtAddr, nr| mark!(irq.machine(), Mark::new(Kind::Flushed, va.as_u64(), nr));
        match what {
            FlushRange::Pages { range, stride }
                if what.nr_flushes() <= self.full_flush_above.load(Ordering::Relaxed) =>
            {
                let mut va = range.start().align_down(stride.bytes());
                let mut left = what.nr_flushes();
                self.page_flushes.fetch_add(left, Ordering::Relaxed);
                while left > 0 {
                    irq.machine().flush_page(va);
                    // Cannot wrap into another flush: the count ends the loop.
                    va = VirtAddr::new(va.as_u64().wrapping_add(stride.bytes()));
                    left -= 1;
                }
                mark(range.start(), what.nr_flushes());
            }
            _ => {
                irq.machine().flush_all();
                mark(VirtAddr::new(0), 0);
                self.full_flushes.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// What gup-fast asks for: the root of the space that is in use. No two spaces that are alive have the same, and a space
/// lives as long as a CPU has it loaded.
fn root_of(space: Option<&Arc<TlbState>>) -> PhysAddr {
    space.map_or(PhysAddr::new(0), |tlb| tlb.root.addr())
}

/// A round that is being put together: entries are cleared, nothing is flushed yet.
#[derive(Debug, Default)]
#[must_use = "translations stay in the TLBs until the round is dispatched and synced"]
pub struct Round {
    /// The first space, which is the only one for a plain `munmap`: no allocation then.
    first: Option<Arc<TlbState>>,
    more: Vec<Arc<TlbState>>,
    targets: CpuMask,
    frees_tables: bool,
}

impl Round {
    /// An empty round. It costs nothing until something is issued.
    pub fn new() -> Self {
        Self::default()
    }

    /// Is there nothing to flush?
    pub fn is_empty(&self) -> bool {
        self.first.is_none() && self.targets.is_empty()
    }

    /// Is there room for one more space?
    pub(crate) fn has_room<M: Machine>(&mut self, machine: &M) -> bool {
        self.first.is_none() || machine::has_room(machine, &mut self.more)
    }

    /// How often something has been issued.
    #[inline]
    pub(crate) fn nr_issued(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }

    /// Has something been issued for `space`?
    pub fn covers(&self, space: &TlbState) -> bool {
        self.first.iter().chain(&self.more).any(|issued| issued.id == space.id)
    }

    /// Adds what was just cleared in one address space. `frees_tables`: a table page was unlinked, so that even
    /// idle CPUs, which may still read it speculatively, must answer.
    pub fn issue(&mut self, space: &Arc<TlbState>, what: FlushRange, frees_tables: bool) {
        space.pending.fetch_add(1, Ordering::AcqRel);
        space.publish(what);
        // Pairs with the fences in `switch_to` and `leave_lazy`.
        fence(Ordering::SeqCst);
        self.targets = self.targets.union(CpuMask::from_bits(space.cpus.load(Ordering::Acquire)));
        self.frees_tables |= frees_tables;
        match self.first {
            None => self.first = Some(Arc::clone(space)),
            Some(_) => self.more.push(Arc::clone(space)),
        }
    }

    /// The CPUs that have `space` loaded now answer, too: what was [issued](Self::issue) for it is of an earlier moment. They
    /// flush all that was published for it until then.
    pub(crate) fn include_present(&mut self, space: &TlbState) {
        // Pairs with the fences in `switch_to` and `leave_lazy`.
        fence(Ordering::SeqCst);
        self.targets = self.targets.union(CpuMask::from_bits(space.cpus.load(Ordering::Acquire)));
    }

    /// Adds a change of the kernel half: every CPU flushes everything, global translations included.
    pub fn issue_kernel(&mut self, shootdown: &Shootdown) {
        shootdown.kernel.publish(FlushRange::All);
        fence(Ordering::SeqCst);
        self.targets = self.targets.union(CpuMask::from_bits(shootdown.kernel.cpus.load(Ordering::Acquire)));
        self.frees_tables = true;
    }

    /// The CPUs to interrupt, as seen from CPU `me`.
    #[inline]
    fn others(&self, me: CpuId) -> CpuMask {
        let others = self.targets.without(me);
        if Mutant::NoShootdown.is_on() {
            return CpuMask::EMPTY;
        }
        if Mutant::CpuMissing.is_on() {
            return others.iter().last().map_or(others, |last| others.without(last));
        }
        others
    }

    /// Interrupts the CPUs that may hold a stale translation and, while they flush, flushes this one.
    ///
    /// # Panics
    /// When interrupts are off: two CPUs that wait for each other's acknowledgement would wait for ever.
    #[inline(always)]
    pub fn dispatch<'s, M: Machine>(self, shootdown: &'s Shootdown, machine: &'s M) -> Dispatched<'s, M> {
        assert!(machine.irqs_on(), "a shootdown was dispatched with interrupts off");
        let irq = IrqOff::new(machine);
        mark!(machine, Mark::new(Kind::Shootdown, self.targets.bits(), self.frees_tables.into()));
        let mut waiting = CpuMask::EMPTY;
        let mut nr_ipis = 0;
        for cpu in self.others(irq.cpu()).iter() {
            let target = &shootdown.cpus[cpu];
            // Acquire; pairs with the Release in `enter_lazy`.
            let may_skip = !self.frees_tables || Mutant::LazySkippedForTables.is_on();
            if may_skip && target.lazy.load(Ordering::Acquire) != 0 {
                continue;
            }
            // AcqRel; the Release half pairs with the Acquire load in `handle_ipi`.
            let before = target.request.fetch_add(1, Ordering::AcqRel);
            mark!(machine, Mark::new(Kind::Sent, cpu as u64, before.wrapping_add(1)));
            waiting = waiting.union(CpuMask::single(cpu));
            nr_ipis += 1;
        }
        if nr_ipis != 0 {
            machine.send_shootdown_ipi(waiting);
            shootdown.ipis.fetch_add(u64::from(nr_ipis), Ordering::Relaxed);
        }
        shootdown.rounds.fetch_add(1, Ordering::Relaxed);
        if self.targets.contains(irq.cpu()) && !Mutant::NoLocalFlush.is_on() {
            shootdown.flush_local(&irq);
        }
        Dispatched { shootdown, machine, first: self.first, more: self.more, waiting, nr_ipis }
    }
}

/// A round on its way: other CPUs have been interrupted.
#[must_use = "nothing may be freed before `sync` has returned"]
pub struct Dispatched<'s, M: Machine> {
    shootdown: &'s Shootdown,
    machine: &'s M,
    first: Option<Arc<TlbState>>,
    more: Vec<Arc<TlbState>>,
    /// The CPUs that were asked.
    waiting: CpuMask,
    nr_ipis: u32,
}

impl<M: Machine> Dispatched<'_, M> {
    /// How many CPUs were interrupted.
    pub fn nr_ipis(&self) -> u32 {
        self.nr_ipis
    }

    /// Waits until every interrupted CPU has flushed. Afterwards the old translations are gone everywhere, and
    /// every gup-fast walk that could have used them has ended.
    ///
    /// # Panics
    /// When interrupts are off.
    #[inline(always)]
    pub fn sync(self) {
        assert!(self.machine.irqs_on(), "a shootdown was waited for with interrupts off");
        lock_check::might_sleep("a shootdown");
        self.wait_for_all();
        mark!(self.machine, Mark::new(Kind::Synced, self.waiting.bits(), 0));
        for space in self.first.iter().chain(&self.more) {
            space.pending.fetch_sub(1, Ordering::AcqRel);
        }
    }

    // lab 4 begin: the wait
    /// Step 4 of the protocol: waits until every CPU in `waiting` has answered what it was asked, or more.
    #[inline(always)]
    fn wait_for_all(&self) {
        for cpu in self.waiting.iter() {
            let cpu = &self.shootdown.cpus[cpu];
            // Our own request, or a later one: a number that has stopped growing for us, since it is read once.
            let ticket = cpu.request.load(Ordering::Relaxed);
            // Acquire; pairs with the Release store in `handle_ipi`.
            while cpu.ack.load(Ordering::Acquire) < ticket {
                self.machine.relax();
            }
        }
    }
    // lab 4 end
}
