//! Random sequences of everything an address space can do, against a reference model that is a list of mapped
//! ranges and the set of pages that must be present. After every step the page tables, the reverse map, the page
//! metadata, the ledger and all emulated TLBs must agree with it.
#![cfg(not(loom))]

mod common;
mod model;

use std::collections::BTreeMap;

use common::{Device, EmuContext, Space, load_from, page, store_to};
use mm::addr::{PAGE_SIZE, PageSize, Pfn, PfnRange, VirtAddr};
use mm::entry::Prot;
use mm::gather::Gather;
use mm::gup::{GupError, GupFlags};
use mm::ledger::Kind;
use mm::mapping::unmap_mapping_range;
use mm::space::{AddressSpace, FaultError, MapError};
use mm::sync::Arc;
use model::{Area, CPUS, DEVICE_PAGES, LANDMARKS, Model, Op, SPACES, Spot, op};
use proptest::prelude::*;
use proptest::test_runner::{FailurePersistence, FileFailurePersistence};
use testkit::emu::EmuMachine;

struct Rig {
    emu: EmuMachine,
    mm: Arc<EmuContext>,
    device: Arc<Device>,
    spaces: Vec<Arc<Space>>,
    models: Vec<Model>,
    /// Which space each CPU has loaded, and whether it idles.
    loaded: [Option<usize>; CPUS],
    idle: [bool; CPUS],
    pins: Vec<Vec<PfnRange>>,
    stamps: BTreeMap<Pfn, u64>,
    next_stamp: u64,
}

impl Rig {
    fn new(largest: PageSize) -> Self {
        let (emu, mm) = common::machine(CPUS);
        let device = Device::dax_with(&mm, DEVICE_PAGES, largest);
        let spaces = (0..SPACES).map(|_| AddressSpace::new(&mm, "p").unwrap()).collect();
        let models = (0..SPACES).map(|_| Model::default()).collect();
        Self {
            emu,
            mm,
            device,
            spaces,
            models,
            loaded: [None; CPUS],
            idle: [false; CPUS],
            pins: Vec::new(),
            stamps: BTreeMap::new(),
            next_stamp: 1,
        }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Map { space, at, len, offset, write } => self.map(space, at, len, offset, write),
            Op::Unmap { space, at, len } => self.unmap(space, self.models[space].at(at), len),
            Op::Protect { space, at, len, write } => self.protect(space, self.models[space].at(at), len, write),
            Op::Load { cpu, at } => self.touch(cpu, at, false),
            Op::Store { cpu, at } => self.touch(cpu, at, true),
            Op::Pin { cpu, space, at, len, write, no_fault } => {
                let mut flags = if write { GupFlags::WRITE } else { GupFlags::empty() };
                flags.set(GupFlags::NO_FAULT, no_fault);
                self.pin(cpu, space, self.models[space].at(at), len, flags);
            }
            Op::Unpin { which } => {
                if !self.pins.is_empty() {
                    let runs = self.pins.swap_remove(which % self.pins.len());
                    common::unpin(&self.mm, &runs);
                }
            }
            Op::Invalidate { offset, len } => self.invalidate(offset, len),
            Op::Populate { space, at, len } => self.populate(space, self.models[space].at(at), len.min(1100)),
            // Which leaves say it changes; what is mapped does not.
            Op::Promote { space, at, len } => {
                let va = page(self.models[space].at(at));
                self.emu.on_cpu(1, || self.spaces[space].promote(va, len * PAGE_SIZE)).unwrap();
            }
            Op::Switch { cpu, to } => {
                let space = to.map(|to| self.spaces[to].clone());
                self.emu.on_cpu(cpu, || common::load(&self.mm, space.as_ref()));
                self.loaded[cpu] = to;
                self.idle[cpu] = false;
            }
            Op::Idle { cpu } => {
                self.emu.on_cpu(cpu, || common::go_idle(&self.mm));
                self.idle[cpu] = true;
            }
            Op::Wake { cpu } => {
                self.emu.on_cpu(cpu, || common::wake(&self.mm));
                self.idle[cpu] = false;
            }
        }
    }

    fn map(&mut self, space: usize, at: u64, len: u64, offset: u64, write: bool) {
        let prot = if write { Prot::USER_WRITE } else { Prot::USER_READ };
        let result = self.spaces[space].map(page(at), len * PAGE_SIZE, prot, &self.device.ops(), offset);
        let model = &mut self.models[space];
        let taken = model.areas.iter().any(|(&start, area)| start < at + len && at < area.end);
        assert_eq!(result, if taken { Err(MapError::Occupied) } else { Ok(()) });
        if !taken {
            model.areas.insert(at, Area { end: at + len, offset, write });
        }
    }

    fn unmap(&mut self, space: usize, at: u64, len: u64) {
        self.emu.on_cpu(0, || self.spaces[space].unmap(page(at), len * PAGE_SIZE)).unwrap();
        let model = &mut self.models[space];
        model.cut(at);
        model.cut(at + len);
        model.areas.retain(|&start, _| !(at..at + len).contains(&start));
        model.take_present(at, at + len);
    }

    fn protect(&mut self, space: usize, at: u64, len: u64, write: bool) {
        let prot = if write { Prot::USER_WRITE } else { Prot::USER_READ };
        self.emu.on_cpu(1, || self.spaces[space].protect(page(at), len * PAGE_SIZE, prot)).unwrap();
        let model = &mut self.models[space];
        model.cut(at);
        model.cut(at + len);
        for (_, area) in model.areas.range_mut(at..at + len) {
            area.write = write;
        }
    }

    fn populate(&mut self, space: usize, at: u64, len: u64) {
        let access = mm::space::Access::Read;
        let result = self.emu.on_cpu(0, || self.spaces[space].populate(page(at), len * PAGE_SIZE, access));
        let bad = (at..at + len).find_map(|at| self.expect_access(space, at, false).err().map(|error| (at, error)));
        assert_eq!(result, bad.map_or(Ok(()), |(_, error)| Err(error)));
        let end = bad.map_or(at + len, |(at, _)| at);
        let mut at = at;
        while at < end {
            at = self.now_present(space, at);
        }
    }

    fn touch(&mut self, cpu: usize, at: Spot, write: bool) {
        let Some(space) = self.loaded[cpu].filter(|_| !self.idle[cpu]) else { return };
        let at = self.models[space].at(at);
        let (va, stamp) = (page(at), self.next_stamp);
        self.next_stamp += 1;
        let result = self.emu.on_cpu(cpu, || {
            if write {
                store_to(&self.spaces[space], &self.emu, va, stamp).map(|()| stamp)
            } else {
                load_from(&self.spaces[space], &self.emu, va)
            }
        });
        match self.expect_access(space, at, write) {
            Err(error) => assert_eq!(result, Err(error)),
            Ok(pfn) => {
                if write {
                    self.stamps.insert(pfn, stamp);
                }
                assert_eq!(result, Ok(self.stamps.get(&pfn).copied().unwrap_or(0)), "{pfn} at {va}");
                self.now_present(space, at);
            }
        }
    }

    /// The frame that an access reaches, or the error that its task is told.
    fn expect_access(&self, space: usize, at: u64, write: bool) -> Result<Pfn, FaultError> {
        let Some((start, area)) = self.models[space].area(at) else {
            return Err(FaultError::NotMapped(page(at)));
        };
        if write && !area.write {
            return Err(FaultError::AccessDenied(page(at)));
        }
        let offset = area.offset + (at - start);
        if offset >= DEVICE_PAGES {
            let cause = mm::space::SigBusCause::BeyondEnd;
            return Err(FaultError::SigBus { addr: page(at), len_bytes: PAGE_SIZE, cause });
        }
        Ok(self.device.pfn(offset))
    }

    /// The page at `at` has been touched: whatever leaf now maps it belongs to what must stay. Answers where that
    /// leaf ends.
    fn now_present(&mut self, space: usize, at: u64) -> u64 {
        let root = self.spaces[space].tlb().root();
        let (_, size) = self.emu.translate(root, page(at)).expect("a page that was just used is mapped");
        let start = (page(at).align_down(size.bytes()).as_u64() - page(0).as_u64()) / PAGE_SIZE;
        self.models[space].add_present(start, start + size.nr_pages());
        start + size.nr_pages()
    }

    fn pin(&mut self, cpu: usize, space: usize, at: u64, len: u64, flags: GupFlags) {
        let write = flags.contains(GupFlags::WRITE);
        let result = self.emu.on_cpu(cpu, || common::pin(&self.spaces[space], page(at), len, flags));
        // The pages that can be had before the first that cannot.
        let present = |at: u64| self.models[space].is_present(at);
        let mut want = Vec::new();
        let mut error = None;
        for at in at..at + len {
            match self.expect_access(space, at, write) {
                Ok(_) if flags.contains(GupFlags::NO_FAULT) && !present(at) => {
                    error = Some(GupError::NotPresent(page(at)));
                }
                Ok(pfn) => want.push(pfn),
                Err(FaultError::SigBus { addr, .. }) if flags.contains(GupFlags::NO_FAULT) => {
                    error = Some(GupError::NotPresent(addr));
                }
                Err(other) => error = Some(gup_error(other)),
            }
            if error.is_some() {
                break;
            }
        }
        match result {
            Ok(runs) => {
                let got: Vec<_> = runs.iter().flat_map(|run| (0..run.nr_pages()).map(|i| run.start().add(i))).collect();
                assert_eq!(got, want, "pages pinned from {}", page(at));
                self.pins.push(runs);
            }
            Err(got) => assert_eq!((Some(got), want.len()), (error, 0)),
        }
        for i in 0..want.len() as u64 {
            self.now_present(space, at + i);
        }
    }

    fn invalidate(&mut self, offset: u64, len: u64) {
        let mut gather = Gather::new(&self.mm);
        self.emu.on_cpu(2, || {
            unmap_mapping_range(&self.device.mapping, offset, len, &mut gather);
            gather.finish()
        });
        for model in &mut self.models {
            for (start, area) in model.areas.clone() {
                let from = offset.max(area.offset);
                let to = (offset + len).min(area.offset + (area.end - start));
                if from < to {
                    model.take_present(start + (from - area.offset), start + (to - area.offset));
                }
            }
        }
    }

    /// Everything agrees.
    fn check(&self) {
        self.emu_is_not_stale();
        let mut mapped: BTreeMap<Pfn, u32> = BTreeMap::new();
        for (space, model) in self.spaces.iter().zip(&self.models) {
            let mut seen: Vec<(u64, u64)> = Vec::new();
            for (va, size, leaf) in self.emu.leaves(space.tlb().root()) {
                let start = (va.as_u64() - page(0).as_u64()) / PAGE_SIZE;
                let (_, area) = model.area(start).unwrap_or_else(|| panic!("{va}: a {size} leaf outside every area"));
                assert!(start + size.nr_pages() <= area.end, "{va}: a {size} leaf reaches out of its area");
                let offset = model.offset(start).unwrap();
                assert_eq!(leaf.pfn(), self.device.pfn(offset), "{va}: wrong frame");
                assert_eq!(leaf.is_writable(), area.write, "{va}: wrong rights");
                assert!(leaf.is_user() && !leaf.prot().exec);
                *mapped.entry(self.head_of(leaf.pfn())).or_default() += 1;
                match seen.last_mut() {
                    Some(last) if last.1 == start => last.1 += size.nr_pages(),
                    _ => seen.push((start, start + size.nr_pages())),
                }
            }
            let present: Vec<_> = model.present.iter().map(|(&start, &end)| (start, end)).collect();
            assert_eq!(seen, present, "the pages that are mapped");
        }
        self.check_counts(mapped);
        self.check_reverse_map();
    }

    fn emu_is_not_stale(&self) {
        // An idle CPU may remember what it will flush before it goes on; but not the way to a freed table page.
        for cpu in (0..CPUS).filter(|&cpu| !self.idle[cpu]) {
            let stale = self.emu.stale(cpu);
            assert!(stale.is_empty(), "CPU {cpu} holds a stale translation: {}", stale[0]);
        }
        self.emu.assert_paths_live();
    }

    fn head_of(&self, pfn: Pfn) -> Pfn {
        self.mm.meta.inspect(pfn).unwrap_or_else(|| panic!("{pfn} is in use without metadata")).head
    }

    fn check_counts(&self, mapped: BTreeMap<Pfn, u32>) {
        let mut pinned: BTreeMap<Pfn, u32> = BTreeMap::new();
        for run in self.pins.iter().flatten() {
            for i in 0..run.nr_pages() {
                *pinned.entry(self.head_of(run.start().add(i))).or_default() += 1;
            }
        }
        let mut live = 0;
        self.mm.meta.for_each_live(&mut |folio| {
            let pins = pinned.get(&folio.head).copied().unwrap_or(0);
            let leaves = mapped.get(&folio.head).copied().unwrap_or(0);
            assert_eq!(folio.counts.pins, pins, "pins of {}", folio.head);
            assert_eq!(folio.counts.refs, leaves + pins, "references of {}", folio.head);
            assert!(folio.counts.refs > 0);
            live += 1;
        });
        assert_eq!(self.device.pages.live_folios(), live);
        let tables: usize = self.spaces.iter().map(|space| self.emu.reachable_tables(space.tlb().root()).len()).sum();
        assert_eq!(self.emu.live_tables(), tables, "a table page that nothing leads to is not freed");
        assert_eq!(self.mm.ledger.count(Kind::TablePages), tables as i64);
        assert_eq!(self.mm.ledger.count(Kind::Folios), live as i64);
    }

    fn check_reverse_map(&self) {
        let areas: usize = self.models.iter().map(|model| model.areas.len()).sum();
        assert_eq!(self.device.mapping.nr_vmas(), areas);
        assert_eq!(self.mm.ledger.count(Kind::Mappings), areas as i64);
        for offset in LANDMARKS {
            let mut want: Vec<_> = Vec::new();
            for (space, model) in self.spaces.iter().zip(&self.models) {
                for (&start, area) in &model.areas {
                    if area.offset <= offset && offset < area.offset + (area.end - start) {
                        want.push((space.id(), page(start)));
                    }
                }
            }
            let users = self.device.mapping.users(offset, 1);
            let mut got: Vec<_> = users.into_iter().map(|(space, va)| (space.id(), va)).collect();
            got.sort();
            want.sort();
            assert_eq!(got, want, "who maps offset {offset}");
        }
    }

    /// Everything is given back: nothing is left.
    fn finish(mut self) {
        for runs in std::mem::take(&mut self.pins) {
            common::unpin(&self.mm, &runs);
        }
        for cpu in 0..CPUS {
            self.emu.on_cpu(cpu, || common::load(&self.mm, None));
        }
        self.spaces.clear();
        assert_eq!(self.emu.live_tables(), 0);
        assert_eq!(self.device.pages.live_folios(), 0);
        let left = self.mm.ledger_snapshot();
        for &kind in Kind::ALL {
            let want = i64::from(kind == Kind::PageMaps);
            assert_eq!(left.count(kind), want, "{kind} after the end");
        }
    }
}

fn gup_error(error: FaultError) -> GupError {
    match error {
        FaultError::NotMapped(va) => GupError::NotMapped(va),
        FaultError::AccessDenied(va) => GupError::AccessDenied(va),
        FaultError::SigBus { addr, cause, .. } => GupError::SigBus(addr, cause),
        FaultError::TooManyRefs(va) => GupError::TooManyRefs(va),
        FaultError::OutOfMemory => GupError::OutOfMemory,
    }
}

fn run(largest: PageSize, ops: &[Op]) {
    let mut rig = Rig::new(largest);
    // Something to begin with, so that short sequences find it.
    for op in [
        Op::Switch { cpu: 0, to: Some(0) },
        Op::Switch { cpu: 1, to: Some(0) },
        Op::Switch { cpu: 2, to: Some(1) },
        Op::Map { space: 0, at: 0, len: 1030, offset: 0, write: true },
        Op::Map { space: 1, at: 510, len: 6, offset: 1022, write: true },
    ] {
        rig.apply(&op);
    }
    for op in ops {
        rig.apply(op);
        rig.check();
    }
    rig.finish();
}

/// Where failures are kept, as seeds that are run first from then on; not those of a deliberate fault.
fn persistence() -> Option<Box<dyn FailurePersistence>> {
    let deliberate = std::env::var_os("MM_MUTANT").is_some();
    (!deliberate).then(|| Box::new(FileFailurePersistence::Direct(REGRESSIONS)) as _)
}

/// From the package's directory, in which its tests run.
const REGRESSIONS: &str = "tests/properties.regressions";

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1000,
        max_shrink_iters: 20_000,
        failure_persistence: persistence(),
        ..ProptestConfig::default()
    })]

    /// With leaves of all sizes.
    // covers: G3, G4, G5, G6, G7, G8, R10
    #[test]
    fn page_tables_metadata_and_tlbs_agree_with_the_model(ops in prop::collection::vec(op(), 1..40)) {
        run(PageSize::Size1G, &ops);
    }

    /// With leaves of at most 2 MiB, where a 1 GiB-aligned range has page directories that come and go.
    // covers: G3, G6, R10
    #[test]
    fn the_same_with_smaller_leaves(ops in prop::collection::vec(op(), 1..40)) {
        run(PageSize::Size2M, &ops);
    }

    /// With 4 KiB leaves alone.
    // covers: G3, R10
    #[test]
    fn the_same_with_the_smallest_leaves(ops in prop::collection::vec(op(), 1..40)) {
        run(PageSize::Size4K, &ops);
    }
}

/// The addresses that a sequence uses stay in the user half, whatever was drawn.
#[test]
fn positions_lie_in_the_user_half() {
    assert!(page(LANDMARKS[7] + 3 + (1 << 18)) < VirtAddr::new(1 << 47));
}

/// A failure is kept in a file that the tree has, and is there for the next run.
#[test]
fn failures_are_kept() {
    let kept = std::fs::read_to_string(REGRESSIONS).expect("the tree has the file, and tests run beside it");
    assert!(kept.starts_with("# Seeds of failures"), "{kept}");
    let file = std::env::temp_dir().join(format!("{}-{}", std::process::id(), "properties.regressions"));
    std::fs::write(&file, &kept).unwrap();
    let name: &'static str = file.to_str().unwrap().to_string().leak();
    let mut persistence: Box<dyn FailurePersistence> = Box::new(FileFailurePersistence::Direct(name));
    let before = persistence.load_persisted_failures2(None).len();
    let fail = |persistence| {
        let config = ProptestConfig { failure_persistence: Some(persistence), ..ProptestConfig::default() };
        proptest::test_runner::TestRunner::new(config).run(&(0..1000_u64), |nr| {
            prop_assert!(nr > 1000, "never so");
            Ok(())
        })
    };
    assert!(fail(persistence).is_err());
    persistence = Box::new(FileFailurePersistence::Direct(name));
    let after = persistence.load_persisted_failures2(None).len();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(after, before + 1);
}
