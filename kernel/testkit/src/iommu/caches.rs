//! What the unit remembers, and how it is told to forget.

use std::collections::{HashMap, HashSet};

use iommu::caps::Levels;
use iommu::entry::Rights;
use iommu::order;
use iommu::source::SourceId;
use mm::addr::{PAGE_SHIFT, Pfn};

use super::Counts;

/// A context entry that was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) domain: u16,
    pub(super) root: Pfn,
    pub(super) levels: Levels,
}

/// A translation that was used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cached {
    /// First page, and log2 of the pages.
    pub(super) page: u64,
    pub(super) order: u32,
    pub(super) pfn: Pfn,
    pub(super) rights: Rights,
}

/// All caches.
#[derive(Default)]
pub(super) struct Caches {
    pub(super) contexts: HashMap<SourceId, Found>,
    /// By device, domain, and page number and order of what is kept.
    pub(super) iotlb: HashMap<(SourceId, u16, u64, u32), Cached>,
    /// By domain, level of the entry, and page number shifted by its order: the table that it leads to.
    pub(super) tables: HashMap<(u16, u8, u64), Pfn>,
    /// By device, domain and page number.
    pub(super) nothing: HashSet<(SourceId, u16, u64)>,
}

/// Does `2^order` pages from `page` on have something in common with `2^mask` from `first` on? Both aligned.
fn meet((page, order): (u64, u32), (first, mask): (u64, u32)) -> bool {
    let larger = order.max(mask);
    page >> larger == first >> larger
}

impl Caches {
    /// The cache that leads to a table.
    pub(super) fn leads_to(&self, table: Pfn) -> Option<&'static str> {
        if self.tables.values().any(|led| *led == table) {
            return Some("paging-structure cache");
        }
        self.contexts.values().any(|found| found.root == table).then_some("context cache")
    }

    /// What is cached for an address.
    pub(super) fn translation(&self, source: SourceId, page: u64) -> Option<Cached> {
        let mut all = self.iotlb.iter().filter(|((of, ..), _)| *of == source);
        all.find(|(_, cached)| cached.page >> cached.order == page >> cached.order).map(|(_, cached)| *cached)
    }

    /// A 128-bit descriptor (VT-d §6.5.2), read anew from its bits.
    pub(super) fn obey(&mut self, [low, high]: [u64; 2], max_mask: Option<u8>, counts: &mut Counts) {
        let (granularity, domain) = (low >> 4 & 3, (low >> 16) as u16);
        match low & 0xf {
            1 => {
                assert_eq!((low & 0xfffc_0000_0000_ffc0, high), (0, 0), "reserved bits of a context command");
                counts.contexts += 1;
                let source = SourceId::from_bits((low >> 32) as u16);
                self.contexts.retain(|of, found| match granularity {
                    1 => false,
                    2 => found.domain != domain,
                    3 => found.domain != domain || *of != source,
                    _ => panic!("a context command of granularity 0"),
                });
            }
            2 => {
                assert_eq!((low & 0xffff_ffff_0000_ff00, high & 0xf80), (0, 0), "reserved bits of an IOTLB command");
                let (mask, leaf_only) = ((high & 0x3f) as u32, high >> 6 & 1 != 0);
                let first = high >> PAGE_SHIFT;
                match granularity {
                    1 => counts.globals += 1,
                    2 => counts.domains += 1,
                    3 if max_mask.is_none_or(|most| mask > most.into()) => {
                        counts.ignored += 1;
                        return;
                    }
                    3 => {
                        counts.ranges += 1;
                        assert!(first.is_multiple_of(1 << mask), "a range that is not aligned to its size");
                    }
                    _ => panic!("an IOTLB command of granularity 0"),
                }
                let named = |of: u16, at: (u64, u32)| {
                    granularity == 1 || of == domain && (granularity == 2 || meet(at, (first, mask)))
                };
                self.iotlb.retain(|(_, of, ..), cached| !named(*of, (cached.page, cached.order)));
                self.nothing.retain(|(_, of, page)| !named(*of, (*page, 0)));
                if !(leaf_only && granularity == 3) {
                    self.tables.retain(|(of, level, at), _| {
                        let order = order(*level);
                        !named(*of, (at << order, order))
                    });
                }
            }
            other => panic!("a command of type {other}, which has no place here"),
        }
    }
}
