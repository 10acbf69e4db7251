//! What can be seen of an address space while its tasks run: each level of a walk, its mappings, the leaves that are
//! there. For reports and tools; nothing is changed, and no page's metadata is touched.
//!
//! Each look takes the space's lock shared, as a fault does, and answers a bounded number of facts: whoever prints them does
//! so when the lock is free again.

use arrayvec::ArrayVec;

use crate::addr::{ENTRIES, PageSize, Pfn, VirtAddr, VirtRange};
use crate::entry::{Entry, Prot};
use crate::machine::Machine;
use crate::mapping::Mapping;
use crate::space::AddressSpace;
use crate::sync::Arc;
use crate::table::span_bytes;

/// One step of a walk: an entry as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Level of the table, 5 to 1.
    pub level: u8,
    /// The table.
    pub table: Pfn,
    /// Number of the entry in it.
    pub index: usize,
    /// What was read there.
    pub entry: Entry,
}

/// From the root down to a leaf, or to the entry that leads nowhere.
pub type Walk = ArrayVec<Step, 5>;

/// One mapping of an address space, at the moment of a look.
pub struct VmaInfo<M: Machine> {
    /// Where.
    pub range: VirtRange,
    /// What it allows.
    pub prot: Prot,
    /// Offset of its first page in what it maps, in base pages.
    pub offset_pages: u64,
    /// What it maps.
    pub mapping: Arc<Mapping<M>>,
    /// What its addresses, and the places where it can be cut, are multiples of.
    pub alignment: PageSize,
}

/// The leaves of a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeafCount {
    /// Leaves of 4 KiB, 2 MiB and 1 GiB.
    pub by_size: [u64; 3],
    /// Entries that were looked at.
    pub looks: u64,
    /// The look ended before the range did: there may be more.
    pub cut_short: bool,
}

impl<M: Machine> AddressSpace<M> {
    /// What the CPU's walker would read at `va`, an address of the user half; nothing for any other address.
    ///
    /// ```
    /// use mm::addr::{PAGE_SIZE, Pfn, VirtAddr};
    /// use mm::entry::Prot;
    /// use mm::space::AddressSpace;
    /// use testkit::emu::{self, Frames, Task};
    ///
    /// let mm = emu::context(1);
    /// let device = Frames::new(&mm, Pfn::new(0x10_0000), 8);
    /// let (space, va) = (AddressSpace::new(&mm, "task").unwrap(), VirtAddr::new(0x40_0000_0000));
    /// space.map(va, 8 * PAGE_SIZE, Prot::USER_WRITE, &device.ops(), 0).unwrap();
    /// assert_eq!(space.walk(va).len(), 1, "the root's entry is empty");
    /// Task::start(&space, 0).store(va, 1).unwrap();
    /// let walk = space.walk(va);
    /// assert_eq!(walk.len(), 4);
    /// assert_eq!(walk[3].entry.pfn(), Pfn::new(0x10_0000));
    /// ```
    pub fn walk(&self, va: VirtAddr) -> Walk {
        let mut walk = Walk::new();
        if va >= self.half_end() {
            return walk;
        }
        // So that nobody frees a table meanwhile.
        let _vmas = self.read();
        let machine = &self.mm().machine;
        let mut table = self.root().pfn();
        for level in (1..=machine.levels()).rev() {
            let index = va.index(level) % ENTRIES;
            let entry = Entry::from_bits(machine.peek(table, index));
            walk.push(Step { level, table, index, entry });
            if !entry.is_table(level) {
                break;
            }
            table = entry.pfn();
        }
        walk
    }

    /// The first mappings that reach beyond `from`, rising, as many as the answer has room for.
    pub fn vmas_from<const N: usize>(&self, from: VirtAddr) -> ArrayVec<VmaInfo<M>, N> {
        let vmas = self.read();
        let first = vmas.find(from).map_or(from, |vma| vma.range.start());
        let info = |vma: &crate::vma::Vma<M>| VmaInfo {
            range: vma.range,
            prot: vma.prot,
            offset_pages: vma.offset_pages,
            mapping: Arc::clone(vma.ops.mapping()),
            alignment: vma.ops.alignment(),
        };
        vmas.0.range(first..).map(|(_, vma)| info(vma)).take(N).collect()
    }

    /// How many mappings there are.
    pub fn nr_vmas(&self) -> usize {
        self.read().0.len()
    }

    /// Counts the leaves that share an address with `range`, looking at no more than about `most` entries.
    pub fn count_leaves(&self, range: VirtRange, most: u64) -> LeafCount {
        let mut count = LeafCount::default();
        let range = (range.start().as_u64(), range.end().as_u64().min(self.half_end().as_u64()));
        let _vmas = self.read();
        self.count_below((self.root().pfn(), self.mm().machine.levels(), 0), range, most, &mut count);
        count
    }

    fn count_below(
        &self,
        (table, level, base): (Pfn, u8, u64),
        (start, end): (u64, u64),
        most: u64,
        count: &mut LeafCount,
    ) {
        let span = span_bytes(level);
        for index in 0..ENTRIES {
            let va = base + index as u64 * span;
            if va >= end {
                return;
            }
            if va + span <= start {
                continue;
            }
            if count.looks >= most {
                count.cut_short = true;
                return;
            }
            count.looks += 1;
            let entry = Entry::from_bits(self.mm().machine.peek(table, index));
            if entry.is_leaf(level) {
                count.by_size[usize::from(level) - 1] += 1;
            } else if entry.is_table(level) {
                self.count_below((entry.pfn(), level - 1, va), (start, end), most, count);
            }
        }
    }
}
