//! The world that `mm` manages: one machine with its page metadata, its ledger and its shootdowns.

use alloc::collections::BTreeMap;

use crate::addr::Pfn;
use crate::ledger::{Kind, Ledger, Snapshot};
use crate::machine::Machine;
use crate::meta::MetaStore;
use crate::pins::PinLedger;
use crate::region::Regions;
use crate::shootdown::Shootdown;
use crate::space::Mapping;
use crate::sync::{Arc, AtomicU64, Mutex, Ordering, Weak};

/// Everything that belongs to one machine. The kernel has one; each host test makes its own.
pub struct Mm<M: Machine> {
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
    /// The mappings (files, devices) by number: how a folio's owner is found again from its metadata.
    mappings: Mutex<BTreeMap<u64, Weak<Mapping<M>>>>,
}

impl<M: Machine> Mm<M> {
    /// A world around `machine`, which has `nr_cpus` CPUs.
    pub fn new(machine: M, nr_cpus: usize) -> Arc<Self> {
        let ledger = Arc::new(Ledger::new());
        Arc::new(Self {
            machine,
            meta: MetaStore::new(Arc::clone(&ledger)),
            ledger,
            shootdown: Shootdown::new(nr_cpus),
            pins: PinLedger::new(),
            regions: Regions::new(),
            next_id: AtomicU64::new(1),
            mappings: Mutex::new(BTreeMap::new()),
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
        self.machine.free_table(table);
        self.ledger.charge(Kind::TablePages, -1);
    }

    pub(crate) fn add_mapping(&self, mapping: &Arc<Mapping<M>>) {
        self.mappings.lock().insert(mapping.id(), Arc::downgrade(mapping));
    }

    pub(crate) fn remove_mapping(&self, id: u64) {
        self.mappings.lock().remove(&id);
    }

    /// The mapping numbered `id`, as page metadata names it; `None` when it is gone.
    pub fn find_mapping(&self, id: u64) -> Option<Arc<Mapping<M>>> {
        self.mappings.lock().get(&id)?.upgrade()
    }

    /// The ledger at this moment, with references and pins summed from the live page metadata. Work is
    /// proportional to the live metadata.
    pub fn ledger_snapshot(&self) -> Snapshot {
        let totals = self.meta.totals();
        self.ledger.snapshot().with(Kind::References, totals.refs as i64).with(Kind::Pins, totals.pins as i64)
    }
}
