//! The context of all that `mm` manages: one machine with its page metadata, its ledger and its shootdowns.

use alloc::collections::BTreeMap;

use crate::addr::Pfn;
use crate::ledger::{Kind, Ledger, Snapshot};
use crate::machine::Machine;
use crate::meta::MetaStore;
use crate::pagemap::DevPagemap;
use crate::pins::PinLedger;
use crate::region::Regions;
use crate::shootdown::Shootdown;
#[cfg(all(debug_assertions, not(loom)))]
use crate::space::AddressSpace;
use crate::space::Mapping;
use crate::sync::{Arc, AtomicU64, Mutex, Ordering, Weak};
use crate::trace::{self, Mark, mark};

/// Everything that belongs to one machine. The kernel has one; each host test makes its own.
pub struct MmContext<M: Machine> {
    /// The machine below.
    pub machine: M,
    /// Page metadata, by frame number.
    pub meta: MetaStore,
    /// What is held, by kind.
    pub ledger: Arc<Ledger>,
    /// Shootdown state and statistics.
    pub shootdown: Shootdown,
    /// Who holds which pins, while it is switched on.
    pub pins: PinLedger,
    /// Long-term pins that can be taken back.
    pub regions: Regions<M>,
    next_id: AtomicU64,
    /// The mappings (files, devices), those over a page map side by side: how a folio's owner is found again from its
    /// metadata, and how a removal finds them.
    mappings: Mutex<BTreeMap<MappingName, Weak<Mapping<M>>>>,
    /// The address spaces by number, for [`reach`](crate::reach).
    #[cfg(all(debug_assertions, not(loom)))]
    spaces: Mutex<BTreeMap<u64, Weak<AddressSpace<M>>>>,
}

/// What a mapping goes by: the address of its page map, which is that map's own for as long as a mapping over it lives,
/// and its number.
type MappingName = (usize, u64);

fn name_of(map: &DevPagemap, id: u64) -> MappingName {
    (core::ptr::from_ref(map).addr(), id)
}

impl<M: Machine> MmContext<M> {
    /// A context around `machine`, which has `nr_cpus` CPUs.
    pub fn new(machine: M, nr_cpus: usize) -> Arc<Self> {
        let ledger = Arc::new(Ledger::new());
        Arc::new(Self {
            machine,
            meta: MetaStore::for_cpus(Arc::clone(&ledger), nr_cpus),
            ledger,
            shootdown: Shootdown::new(nr_cpus),
            pins: PinLedger::new(),
            regions: Regions::new(),
            next_id: AtomicU64::new(1),
            mappings: Mutex::new(BTreeMap::new()),
            #[cfg(all(debug_assertions, not(loom)))]
            spaces: Mutex::new(BTreeMap::new()),
        })
    }

    /// A number that was never given out before; not 0.
    pub(crate) fn new_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn alloc_table(&self) -> Option<Pfn> {
        let table = self.machine.alloc_table()?;
        self.ledger.charge(Kind::TablePages, 1);
        Some(table)
    }

    pub(crate) fn free_table(&self, table: Pfn) {
        mark!(self.machine, Mark::new(trace::Kind::TableFreed, table.as_u64(), 0));
        self.machine.free_table(table);
        self.ledger.charge(Kind::TablePages, -1);
    }

    pub(crate) fn add_mapping(&self, mapping: &Arc<Mapping<M>>) {
        let name = name_of(mapping.pagemap(), mapping.id());
        self.mappings.lock().insert(name, Arc::downgrade(mapping));
    }

    pub(crate) fn remove_mapping(&self, mapping: &Mapping<M>) {
        self.mappings.lock().remove(&name_of(mapping.pagemap(), mapping.id()));
    }

    /// The mapping over `map` numbered `id`, as page metadata names it; `None` when it is gone.
    pub fn find_mapping(&self, map: &DevPagemap, id: u64) -> Option<Arc<Mapping<M>>> {
        self.mappings.lock().get(&name_of(map, id))?.upgrade()
    }

    /// Calls `each` with every mapping over `map` that was made before this call and is still there, oldest first, with no
    /// lock held. It needs no memory. Work is proportional to the mappings over `map`.
    pub fn for_each_mapping(&self, map: &DevPagemap, each: &mut dyn FnMut(&Arc<Mapping<M>>)) {
        let end = name_of(map, self.new_id());
        let mut next = name_of(map, 0);
        while next < end {
            let found = {
                let mappings = self.mappings.lock();
                let Some((&(name, id), mapping)) = mappings.range(next..end).next() else { return };
                next = (name, id + 1);
                mapping.upgrade()
            };
            if let Some(mapping) = found {
                each(&mapping);
            }
        }
    }

    #[cfg(all(debug_assertions, not(loom)))]
    pub(crate) fn add_space(&self, space: &Arc<AddressSpace<M>>) {
        self.spaces.lock().insert(space.id(), Arc::downgrade(space));
    }

    #[cfg(all(debug_assertions, not(loom)))]
    pub(crate) fn remove_space(&self, id: u64) {
        self.spaces.lock().remove(&id);
    }

    /// The first address space with a number above `after` that somebody has, and its number.
    #[cfg(all(debug_assertions, not(loom)))]
    pub(crate) fn next_space(&self, after: u64) -> Option<Arc<AddressSpace<M>>> {
        self.spaces.lock().range(after + 1..).find_map(|(_, space)| space.upgrade())
    }

    /// The ledger at this moment, with references and pins summed from the live page metadata. Work is
    /// proportional to the live metadata.
    pub fn ledger_snapshot(&self) -> Snapshot {
        let totals = self.meta.totals();
        self.ledger.snapshot().with(Kind::References, totals.refs as i64).with(Kind::Pins, totals.pins as i64)
    }
}
