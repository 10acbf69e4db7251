//! Random verbs against a map of folios. After every step the store lists exactly the model's folios, the page
//! maps count them, and the memory is exactly what those folios need.

use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Modelled {
    size: PageSize,
    refs: u32,
    pins: u32,
    offset: u64,
}

/// The store's contract, said in the plainest way.
struct Model {
    ranges: Vec<PfnRange>,
    folios: BTreeMap<u64, Modelled>,
}

impl Model {
    fn covering(&mut self, pfn: u64) -> Option<(u64, &mut Modelled)> {
        let (&head, folio) = self.folios.range_mut(..=pfn).next_back()?;
        (pfn < head + folio.size.nr_pages()).then_some((head, folio))
    }
    fn size_for(&self, pfn: u64, want: PageSize, offset: u64) -> Option<PageSize> {
        let range = self.ranges.iter().find(|range| range.contains(Pfn::new(pfn)))?;
        let fits = |size: &&PageSize| {
            let head = pfn & !(size.nr_pages() - 1);
            let end = head + size.nr_pages();
            **size <= want
                && range.start().as_u64() <= head
                && end <= range.end().as_u64()
                && offset >= pfn - head
                && self.folios.range(head..end).next().is_none()
        };
        PageSize::ALL.iter().rev().find(fits).copied()
    }
    fn get(&mut self, pfn: u64, want: PageSize, offset: u64, refs: u32) -> Option<(u64, PageSize)> {
        if let Some((head, folio)) = self.covering(pfn) {
            folio.refs += refs;
            return Some((head, folio.size));
        }
        let size = self.size_for(pfn, want, offset)?;
        let head = pfn & !(size.nr_pages() - 1);
        self.folios.insert(head, Modelled { size, refs, pins: 0, offset: offset - (pfn - head) });
        Some((head, size))
    }
    fn drop(&mut self, pfn: u64, refs: u32, pins: u32) {
        let (head, folio) = self.covering(pfn).expect("the test owns what it drops");
        folio.refs -= refs;
        folio.pins -= pins;
        if folio.refs == 0 {
            self.folios.remove(&head);
        }
    }
}

/// What the test owns: one reference for each leaf over a run, or pins.
#[derive(Clone, Copy, Debug)]
enum Holding {
    Run { first: u64, nr_pages: u64, leaf: PageSize },
    Pins { first: u64, nr_pages: u64 },
}

#[derive(Clone, Debug)]
enum Step {
    Get {
        pfn: u64,
        want: PageSize,
        refs: u32,
    },
    GetRun {
        pfn: u64,
        leaves: u64,
        leaf: PageSize,
        want: PageSize,
    },
    /// Pin the n-th run that is held, up to so many pages of it.
    Pin(usize, u64),
    /// Take the n-th run's references once more.
    Again(usize),
    Drop(usize),
}

/// Frames near every edge: of the ranges, of 2 MiB and 1 GiB blocks, of a 512 GiB slot.
fn ranges() -> ([PfnRange; 2], [PfnRange; 2]) {
    let far = 1 << 27;
    let first = [range(B1 - 16, 2 * B1 + 16 + B2 + 40), range(far - 600, 1200)];
    let second = [range(3 * B1 + B2 + 40, 100), range(0x40, 3)];
    (first, second)
}

fn frames() -> impl Strategy<Value = u64> {
    let (first, second) = ranges();
    let starts: Vec<_> = first.iter().chain(&second).flat_map(|r| [r.start().as_u64(), r.end().as_u64() - 1]).collect();
    let edges = [B1, 2 * B1, 2 * B1 + B2, 3 * B1, 3 * B1 + B2, 1 << 27];
    let near = proptest::sample::select(starts.into_iter().chain(edges).collect::<Vec<_>>());
    (near, -6..600_i64).prop_map(|(near, by)| near.saturating_add_signed(by))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = || prop_oneof![5 => Just(KIB4), 3 => Just(MIB2), 1 => Just(GIB1)];
    let step = prop_oneof![
        3 => (frames(), size(), 1..4_u32).prop_map(|(pfn, want, refs)| Step::Get { pfn, want, refs }),
        4 => (frames(), 1..1100_u64, size(), size())
            .prop_map(|(pfn, leaves, leaf, want)| Step::GetRun { pfn, leaves, leaf, want }),
        2 => (any::<usize>(), 1..700_u64).prop_map(|(n, most)| Step::Pin(n, most)),
        1 => any::<usize>().prop_map(Step::Again),
        6 => any::<usize>().prop_map(Step::Drop),
    ];
    proptest::collection::vec(step, 1..40)
}

struct Run {
    rig: Rig,
    maps: [Arc<DevPagemap>; 2],
    model: Model,
    held: Vec<Holding>,
}

impl Run {
    fn new() -> Self {
        let rig = Rig::new();
        let (first, second) = ranges();
        let maps = [rig.device(MemoryKind::DevDax, &first), rig.device(MemoryKind::FsDax, &second)];
        let model = Model { ranges: first.into_iter().chain(second).collect(), folios: BTreeMap::new() };
        Self { rig, maps, model, held: Vec::new() }
    }

    fn step(&mut self, step: Step) {
        let store = &self.rig.store;
        match step {
            Step::Get { pfn, want, refs } => {
                let got = store.get_or_create(Pfn::new(pfn), want, owner(pfn - 5), refs);
                let expected = self.model.get(pfn, want, pfn - 5, refs);
                assert_eq!(got.ok().map(|(head, size)| (head.as_u64(), size)), expected);
                let one = Holding::Run { first: pfn, nr_pages: 1, leaf: KIB4 };
                self.held.extend((0..refs).filter(|_| expected.is_some()).map(|_| one));
            }
            Step::GetRun { pfn, leaves, leaf, want } => {
                let (first, nr_pages) = (pfn & !(leaf.nr_pages() - 1), leaves << leaf.order());
                self.get_run(first, nr_pages, leaf, want);
            }
            Step::Pin(n, most) if !self.held.is_empty() => {
                if let Holding::Run { first, nr_pages, .. } = self.held[n % self.held.len()] {
                    self.pin(first, nr_pages.min(most));
                }
            }
            Step::Again(n) if !self.held.is_empty() => {
                if let Holding::Run { first, nr_pages, leaf } = self.held[n % self.held.len()] {
                    store.get_run(Pfn::new(first), nr_pages, leaf).expect("room");
                    for leaf_first in (first..first + nr_pages).step_by(leaf.nr_pages() as usize) {
                        self.model.covering(leaf_first).expect("held").1.refs += 1;
                    }
                    self.held.push(Holding::Run { first, nr_pages, leaf });
                }
            }
            Step::Drop(n) if !self.held.is_empty() => {
                let holding = self.held.swap_remove(n % self.held.len());
                self.drop(holding);
            }
            _ => {}
        }
    }

    fn get_run(&mut self, first: u64, nr_pages: u64, leaf: PageSize, want: PageSize) {
        // Owned from its first frame on, or from further back.
        let offset = if first.is_multiple_of(3) { 0 } else { first };
        let got = self.rig.store.get_or_create_run(Pfn::new(first), nr_pages, leaf, want, owner(offset));
        let Some((head, folio)) = self.model.get(first, want.max(leaf), offset, 1) else {
            assert_eq!(got, Err(MetaError::NoPageMap));
            return;
        };
        let run = got.expect("the model has it");
        let leaf = leaf.min(folio);
        assert_eq!((run.folio, run.leaf), (folio, leaf));
        assert!(
            run.nr_pages >= leaf.nr_pages() && run.nr_pages <= nr_pages && run.nr_pages.is_multiple_of(leaf.nr_pages())
        );
        let block_end = |size: PageSize| (first & !(size.nr_pages() - 1)) + size.nr_pages();
        let reach = if folio == KIB4 {
            let range = self.model.ranges.iter().find(|range| range.contains(Pfn::new(first))).expect("found");
            block_end(MIB2).min(range.end().as_u64())
        } else {
            head + folio.nr_pages()
        };
        assert_eq!(run.nr_pages, (reach - first).min(nr_pages), "as far as one folio or one chunk reaches");
        for next in (first..first + run.nr_pages).step_by(leaf.nr_pages() as usize).skip(1) {
            let made = self.model.get(next, folio, offset + (next - first), 1).expect("in the same range");
            assert_eq!(made.1, folio);
        }
        self.held.push(Holding::Run { first, nr_pages: run.nr_pages, leaf });
    }

    fn pin(&mut self, first: u64, nr_pages: u64) {
        for pfn in first..first + nr_pages {
            // SAFETY: the test owns a reference on the folio.
            let folio = unsafe { self.rig.store.lookup(Pfn::new(pfn)) }.expect("held");
            folio.page.try_pin(1).expect("held");
            let (head, model) = self.model.covering(pfn).expect("held");
            (model.refs, model.pins) = (model.refs + 1, model.pins + 1);
            assert_eq!((folio.head.as_u64(), folio.size), (head, model.size));
            assert_eq!(folio.owner_of(Pfn::new(pfn)).offset, model.offset + (pfn - head));
        }
        self.held.push(Holding::Pins { first, nr_pages });
    }

    fn drop(&mut self, holding: Holding) {
        match holding {
            Holding::Run { first, nr_pages, leaf } => {
                self.rig.store.put_run(Pfn::new(first), nr_pages, leaf);
                for pfn in (first..first + nr_pages).step_by(leaf.nr_pages() as usize) {
                    self.model.drop(pfn, 1, 0);
                }
            }
            Holding::Pins { first, nr_pages } => {
                self.rig.store.unpin_run(Pfn::new(first), nr_pages);
                (first..first + nr_pages).for_each(|pfn| self.model.drop(pfn, 1, 1));
            }
        }
    }

    fn check(&self) {
        let seen = self.rig.live().into_iter().map(|folio| {
            let Counts { refs, pins } = folio.counts;
            (folio.head.as_u64(), Modelled { size: folio.size, refs, pins, offset: folio.owner.offset })
        });
        let seen: Vec<_> = seen.collect();
        let expected: Vec<_> = self.model.folios.iter().map(|(&head, &folio)| (head, folio)).collect();
        assert_eq!(seen, expected);
        for map in &self.maps {
            let here = expected.iter().filter(|&&(head, _)| map.contains(Pfn::new(head))).count() as u64;
            assert_eq!(map.live_folios(), here);
        }
        self.rig.assert_in_proportion();
    }
}

proptest! {
    /// covers: G8, R8, R10
    #[test]
    fn the_store_agrees_with_the_model(steps in steps()) {
        let mut run = Run::new();
        for step in steps {
            run.step(step);
            run.check();
        }
        while let Some(holding) = run.held.pop() {
            run.drop(holding);
            run.check();
        }
        run.rig.assert_idle();
    }
}
