//! Random mappings, revocations and transfers against a plain model: a device reaches exactly what is mapped.

mod common;

use std::collections::BTreeMap;

use common::{DEVICE, Rig, run};
use iommu::domain::{INTERRUPT_WINDOW, MapError, Mapping};
use iommu::entry::Rights;
use mm::addr::{PAGE_SIZE, PfnRange};
use mm::sync::{Arc, Mutex};
use proptest::prelude::*;
use testkit::iommu::{Make, Point, Unit};

/// A step of a test.
#[derive(Clone, Debug)]
enum Step {
    Map {
        runs: Vec<PfnRange>,
        write: bool,
    },
    /// One of those that there are, or were.
    Revoke {
        which: usize,
    },
    RevokeSome {
        which: usize,
        nr: usize,
    },
    /// A transfer to or near a page of one that there is, or was.
    Access {
        which: usize,
        page: u64,
        write: bool,
    },
}

fn runs() -> impl Strategy<Value = Vec<PfnRange>> {
    let start =
        prop_oneof![0u64..1 << 20, (0u64..1 << 11).prop_map(|nth| nth << 9), (0u64..64).prop_map(|nth| nth << 18)];
    let nr = prop_oneof![
        8 => 1u64..8,
        4 => 500u64..1100,
        1 => (1u64..4, -3i64..3).prop_map(|(gib, more)| (gib << 18).wrapping_add_signed(more)),
    ];
    proptest::collection::vec((start, nr).prop_map(|(start, nr)| run(start, nr)), 1..6)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (runs(), any::<bool>()).prop_map(|(runs, write)| Step::Map { runs, write }),
        2 => any::<usize>().prop_map(|which| Step::Revoke { which }),
        1 => (any::<usize>(), 0usize..20).prop_map(|(which, nr)| Step::RevokeSome { which, nr }),
        6 => (any::<usize>(), any::<u64>(), any::<bool>())
            .prop_map(|(which, page, write)| Step::Access { which, page, write }),
    ]
}

fn make() -> impl Strategy<Value = Make> {
    (any::<[bool; 6]>(), prop_oneof![Just(39u8), Just(48)], prop_oneof![Just(None), (0u8..20).prop_map(Some)]).prop_map(
        |([pieces, paging_caches, caching_mode, coherent, large_2m, large_1g], bits, max_mask)| Make {
            tables: 1 << 15,
            pieces,
            paging_caches,
            caching_mode,
            coherent,
            large_2m,
            // No unit has these alone.
            large_1g: large_1g && large_2m,
            bits,
            max_mask,
            records: 1,
        },
    )
}

/// What the model knows of a mapping.
struct Known {
    mapping: Arc<Mapping>,
    runs: Vec<PfnRange>,
    write: bool,
    live: bool,
}

impl Known {
    fn pages(&self) -> u64 {
        self.mapping.bytes() / PAGE_SIZE
    }
    fn frame(&self, mut nth: u64) -> u64 {
        for run in &self.runs {
            if nth < run.nr_pages() {
                return run.start().add(nth).as_u64();
            }
            nth -= run.nr_pages();
        }
        panic!("beyond the mapping");
    }
}

struct Model {
    rig: Rig,
    all: Vec<Known>,
    /// Live ones by first page: the index in `all`.
    live: BTreeMap<u64, usize>,
}

impl Model {
    fn map(&mut self, runs: &[PfnRange], write: bool) {
        let rights = if write { Rights::all() } else { Rights::READ };
        let mapping = match self.rig.domain.map(runs, rights, self.all.len() as u64) {
            Ok(mapping) => mapping,
            Err(MapError::Full { .. } | MapError::TooLarge { .. } | MapError::NoMemory) => return,
            Err(error) => panic!("{error}"),
        };
        let pages: u64 = runs.iter().map(|run| run.nr_pages()).sum();
        let first = mapping.address() / PAGE_SIZE;
        let (start, end) = (mapping.address(), mapping.address() + mapping.bytes());
        assert_eq!((mapping.bytes(), start % PAGE_SIZE), (pages * PAGE_SIZE, 0));
        assert!(first > 0 && (end <= INTERRUPT_WINDOW.0 || start >= INTERRUPT_WINDOW.1), "{mapping:?}");
        let before = self.live.range(..first + pages).next_back().map(|(_, nth)| &self.all[*nth]);
        assert!(before.is_none_or(|known| known.mapping.address() + known.mapping.bytes() <= start), "they overlap");
        self.live.insert(first, self.all.len());
        self.all.push(Known { mapping: Arc::new(mapping), runs: runs.to_vec(), write, live: true });
    }

    /// Ends some, and has the device look at them as soon as the unit says that it has forgotten them.
    fn revoke(&mut self, which: &[usize]) {
        let ending: Vec<_> = which.iter().filter(|nth| self.all[**nth].live).copied().collect();
        let ended: Arc<Mutex<Vec<(u64, u64)>>> = Arc::new(Mutex::new(Vec::new()));
        let looked = ended.clone();
        *ended.lock() = ending.iter().map(|nth| (self.all[*nth].mapping.address(), self.all[*nth].pages())).collect();
        self.rig.unit.watch(move |unit: &Unit, point| {
            let pages = looked.lock().clone();
            for (address, nr) in pages {
                for nth in [0, nr / 2, nr - 1] {
                    let result = unit.device_reads(DEVICE, address + nth * PAGE_SIZE);
                    assert!(point != Point::Done || result.is_err(), "{result:?} after the invalidation");
                }
            }
        });
        let mappings: Vec<&Mapping> = which.iter().map(|nth| &*self.all[*nth].mapping).collect();
        let done = match mappings[..] {
            [one] => self.rig.domain.revoke(one),
            _ => self.rig.domain.revoke_all(&mappings),
        };
        self.rig.unit.unwatch();
        let mut unique = ending.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!((done.ranges, done.first, done.failed), (unique.len() as u64, !unique.is_empty(), None));
        assert_eq!(done.commands, done.ranges);
        for nth in unique {
            self.all[nth].live = false;
            self.live.remove(&(self.all[nth].mapping.address() / PAGE_SIZE));
        }
    }

    fn access(&self, which: usize, page: u64, write: bool) {
        let known = &self.all[which];
        // Some before the mapping and behind it.
        let nth = (page % (known.pages() + 4)).wrapping_sub(2);
        let at = (known.mapping.address() / PAGE_SIZE).wrapping_add(nth);
        let address = at.wrapping_mul(PAGE_SIZE);
        if at >= 1 << (self.rig.domain.levels().bits() - 12)
            || (INTERRUPT_WINDOW.0..INTERRUPT_WINDOW.1).contains(&address)
        {
            return;
        }
        let owner = self.live.range(..=at).next_back().map(|(first, nth)| (at - first, &self.all[*nth]));
        let owner = owner.filter(|(nth, known)| *nth < known.pages());
        let wanted = owner.filter(|(_, known)| known.write || !write).map(|(nth, known)| known.frame(nth));
        let unit = &self.rig.unit;
        let reached = match write {
            true => unit.device_writes(DEVICE, address, 1),
            false => unit.device_reads(DEVICE, address).map(|(at, _)| at),
        };
        assert_eq!(reached.ok().map(|at| at.pfn().as_u64()), wanted, "{address:#x}");
        let walked = self.rig.domain.walk(address).reaches.map(|(at, ..)| at.pfn().as_u64());
        assert_eq!(walked, owner.map(|(nth, known)| known.frame(nth)));
        let found = self.rig.domain.owner_of(address).filter(|owner| !owner.revoked);
        assert_eq!(found.map(|owner| owner.start), owner.map(|(_, known)| known.mapping.address()));
    }

    fn step(&mut self, step: Step) {
        let nr = self.all.len();
        match step {
            Step::Map { runs, write } => self.map(&runs, write),
            _ if nr == 0 => {}
            Step::Revoke { which } => self.revoke(&[which % nr]),
            Step::RevokeSome { which, nr: some } => {
                self.revoke(&(0..some).map(|nth| (which.wrapping_add(nth * nth)) % nr).collect::<Vec<_>>());
            }
            Step::Access { which, page, write } => self.access(which % nr, page, write),
        }
    }

    /// Everything goes, and gives its tables back.
    fn end(self) {
        let live = self.live.len() as u64;
        let done = self.rig.domain.close();
        assert_eq!((done.ranges, done.failed), (live, None));
        let stats = self.rig.domain.stats();
        assert_eq!((stats.mappings, stats.bytes, stats.mapped), (0, 0, self.all.len() as u64));
        assert_eq!(stats.tables, self.rig.unit.tables_in_use() - 2);
        self.all.iter().for_each(|known| self.rig.assert_blocked(&known.mapping, 0));
        self.rig.contexts.detach(DEVICE).unwrap();
        drop(self.rig.domain);
        assert_eq!(self.rig.unit.tables_in_use(), 2);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        if std::env::var_os("UNPLUG_FULL").is_some() { 5000 } else { 150 }
    ))]

    // covers: D1, D2, D7
    #[test]
    fn a_device_reaches_exactly_what_is_mapped(make in make(), space in 31u8..49, steps in proptest::collection::vec(step(), 1..60)) {
        let mut model = Model { rig: Rig::with_space(make, space.min(make.bits)), all: Vec::new(), live: BTreeMap::new() };
        steps.into_iter().for_each(|step| model.step(step));
        model.end();
    }
}
