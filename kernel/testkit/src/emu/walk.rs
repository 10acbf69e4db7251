//! Loads and stores of an emulated CPU, and what a test may look at afterwards.

use core::fmt;

use super::EmuMachine;
use super::cpu::{Caches, PathEntry, TlbEntry, shift};
use mm::addr::{ENTRIES, PAGE_SIZE, PageSize, Pfn, VirtAddr};
use mm::entry::Entry;
use mm::machine::{CpuId, Machine};
use mm::sync::{AtomicU64, Ordering};

/// A page fault, as the error code and CR2 tell it (SDM vol. 3A §4.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The address.
    pub va: VirtAddr,
    /// A translation was there, but did not allow the access.
    pub present: bool,
    /// A store.
    pub write: bool,
    /// With user rights.
    pub user: bool,
}

/// A translation that a CPU's TLB holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cached {
    /// First byte of the page.
    pub va: VirtAddr,
    /// Its size.
    pub size: PageSize,
    /// The frame that it leads to.
    pub pfn: Pfn,
    /// Stores are allowed.
    pub write: bool,
    /// User accesses are allowed.
    pub user: bool,
}

impl fmt::Display for Cached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rights = if self.write { "rw" } else { "r" };
        write!(f, "{} ({} {rights}) -> {}", self.va, self.size, self.pfn)
    }
}

/// What a load or store asks for.
#[derive(Clone, Copy)]
struct Access {
    va: VirtAddr,
    write: bool,
    user: bool,
}

impl Access {
    fn fault(self, present: bool) -> Fault {
        Fault { va: self.va, present, write: self.write, user: self.user }
    }
    fn allowed(self, write: bool, user: bool) -> bool {
        (write || !self.write) && (user || !self.user)
    }
}

/// Sets `bits` in the live entry unless it is no longer `seen`, as a CPU's walker does; answers what it now holds.
fn set_bits(live: &AtomicU64, seen: Entry, dirty: bool) -> Result<Entry, ()> {
    let wanted = seen.with_accessed(dirty);
    if wanted == seen {
        return Ok(seen);
    }
    live.compare_exchange(seen.bits(), wanted.bits(), Ordering::SeqCst, Ordering::SeqCst)
        .map(|_| wanted)
        .map_err(|_| ())
}

impl EmuMachine {
    /// The current CPU loads from the page at `va`, with user rights or the kernel's: the stamp of the frame that
    /// its TLB (or else the page table) leads to.
    ///
    /// # Errors
    /// The page fault that the CPU would raise.
    pub fn read(&self, va: VirtAddr, user: bool) -> Result<u64, Fault> {
        self.access(Access { va, write: false, user }).map(|pfn| self.inner.memory.stamp(pfn))
    }

    /// The current CPU stores `stamp` to the page at `va`.
    ///
    /// # Errors
    /// The page fault that the CPU would raise.
    pub fn write(&self, va: VirtAddr, stamp: u64, user: bool) -> Result<(), Fault> {
        self.access(Access { va, write: true, user }).map(|pfn| self.inner.memory.set_stamp(pfn, stamp))
    }

    /// The current CPU fetches the translation of `va` ahead of need: it walks as for a load and fills its caches,
    /// without any fault. A real CPU may do so at any time.
    pub fn prefetch(&self, va: VirtAddr) {
        let cpu = self.cpu();
        let mut caches = self.cpu_state(cpu).caches();
        // No translation, no fault: a speculation that comes to nothing.
        let _ = self.walk_and_fill(&mut caches, Access { va, write: false, user: false });
    }

    fn access(&self, access: Access) -> Result<Pfn, Fault> {
        self.event(super::Event::Access);
        let cpu = self.cpu();
        // An interrupt is taken between instructions.
        self.deliver(cpu);
        let mut caches = self.cpu_state(cpu).caches();
        let cached = caches.lookup(access.va);
        if let Some(hit) = cached
            && access.allowed(hit.write, hit.user)
            && (!access.write || hit.leaf.is_dirty())
        {
            return Ok(frame_of(access.va, hit));
        }
        if let Some(hit) = cached
            && !access.allowed(hit.write, hit.user)
        {
            // The fault drops what the CPU remembers of this address (SDM vol. 3A §4.10.4.1), so that the retry
            // sees the page table.
            caches.flush_page(access.va);
            return Err(access.fault(true));
        }
        let filled = self.walk_and_fill(&mut caches, access)?;
        Ok(frame_of(access.va, filled))
    }

    /// Walks from the deepest table that the paging-structure caches know.
    fn walk_and_fill(&self, caches: &mut Caches, access: Access) -> Result<TlbEntry, Fault> {
        let va = access.va;
        'again: loop {
            let Some(root) = caches.root else {
                return Err(access.fault(false));
            };
            let levels = self.levels();
            let (mut level, mut path) = (1..levels)
                .find_map(|level| caches.paths.get(&(level, va.as_u64() >> shift(level + 1))).map(|&p| (level, p)))
                .unwrap_or((levels, PathEntry { table: root, write: true, user: true }));
            loop {
                let live = self.live_entry(path.table, va.index(level));
                let seen = Entry::from_bits(live.load(Ordering::SeqCst));
                if !seen.is_present() {
                    return Err(access.fault(false));
                }
                let (write, user) = (path.write && seen.is_writable(), path.user && seen.is_user());
                if seen.is_table(level) {
                    if set_bits(live, seen, false).is_err() {
                        continue 'again;
                    }
                    level -= 1;
                    path = PathEntry { table: seen.pfn(), write, user };
                    caches.paths.insert((level, va.as_u64() >> shift(level + 1)), path);
                    continue;
                }
                let size = PageSize::from_level(level).expect("a leaf is in a table of level 1 to 3");
                if !access.allowed(write, user) {
                    return Err(access.fault(true));
                }
                let Ok(leaf) = set_bits(live, seen, access.write) else {
                    continue 'again;
                };
                let entry = TlbEntry { leaf, size, write, user, global: !leaf.is_user() };
                caches.tlb.insert((size, va.as_u64() >> shift(level)), entry);
                return Ok(entry);
            }
        }
    }

    /// An entry for the CPU's walker: no hook, no note, but a walk into a freed page is caught.
    fn live_entry(&self, table: Pfn, index: usize) -> &AtomicU64 {
        match self.inner.memory.entry(table, index) {
            Some(entry) => entry,
            None => self.broken_rule(format_args!("its walker reached {table}, which is no table page in use")),
        }
    }

    /// The stamp that a data frame holds.
    pub fn stamp(&self, pfn: Pfn) -> u64 {
        self.inner.memory.stamp(pfn)
    }

    /// Stamps a data frame, as a device would.
    pub fn set_stamp(&self, pfn: Pfn, stamp: u64) {
        self.inner.memory.set_stamp(pfn, stamp);
    }

    /// Table pages in use, the kernel half's not counted.
    pub fn live_tables(&self) -> usize {
        self.inner.memory.live_tables()
    }

    /// Lets table pages run out: at most `limit` may be in use from now on.
    pub fn limit_tables(&self, limit: usize) {
        self.inner.memory.set_table_limit(limit);
    }

    /// Whether a freed table page is handed out again at the very next allocation (`false` at first: as late as
    /// can be, so that it stays poisoned).
    pub fn reuse_tables_at_once(&self, reuse: bool) {
        self.inner.memory.set_reuse_at_once(reuse);
    }

    /// The root that a CPU has loaded.
    pub fn loaded_root(&self, cpu: CpuId) -> Option<Pfn> {
        self.cpu_state(cpu).caches().root
    }

    /// What the page table says of `va`, past all caches and without touching accessed bits.
    pub fn translate(&self, root: Pfn, va: VirtAddr) -> Option<(Entry, PageSize)> {
        let mut table = root;
        for level in (1..=self.levels()).rev() {
            let entry = Entry::from_bits(self.live_entry(table, va.index(level)).load(Ordering::SeqCst));
            if entry.is_leaf(level) {
                return Some((entry, PageSize::from_level(level)?));
            }
            if !entry.is_table(level) {
                return None;
            }
            table = entry.pfn();
        }
        None
    }

    /// Every leaf of the user half, in rising order of address.
    pub fn leaves(&self, root: Pfn) -> Vec<(VirtAddr, PageSize, Entry)> {
        let mut found = Vec::new();
        self.collect(root, self.levels(), 0, &mut found);
        found
    }

    fn collect(&self, table: Pfn, level: u8, base: u64, found: &mut Vec<(VirtAddr, PageSize, Entry)>) {
        for (index, entry) in self.present(table, level) {
            let va = base + ((index as u64) << shift(level));
            if entry.is_leaf(level) {
                let size = PageSize::from_level(level).expect("a leaf is in a table of level 1 to 3");
                found.push((VirtAddr::new(va), size, entry));
            } else {
                self.collect(entry.pfn(), level - 1, va, found);
            }
        }
    }

    /// The present entries of a table page of `level`; of a root, those of the user half.
    fn present(&self, table: Pfn, level: u8) -> Vec<(usize, Entry)> {
        let Some(page) = self.inner.memory.page(table) else {
            self.broken_rule(format_args!("a live entry points to {table}, which is no table page in use"));
        };
        let last = if level == self.levels() { ENTRIES / 2 } else { ENTRIES };
        let read = page[..last].iter().map(|live| Entry::from_bits(live.load(Ordering::SeqCst)));
        read.enumerate().filter(|(_, entry)| entry.is_present()).collect()
    }

    /// Table pages that are reachable from `root` through the user half, `root` included.
    pub fn reachable_tables(&self, root: Pfn) -> Vec<Pfn> {
        let mut tables = vec![root];
        let mut level = self.levels();
        let mut from = 0;
        while level > 1 {
            let to = tables.len();
            for at in from..to {
                let below = self.present(tables[at], level).into_iter().filter(|(_, entry)| entry.is_table(level));
                tables.extend(below.map(|(_, entry)| entry.pfn()));
            }
            from = to;
            level -= 1;
        }
        tables
    }

    /// What the TLB of `cpu` holds of the user half, in rising order of address.
    pub fn cached(&self, cpu: CpuId) -> Vec<Cached> {
        self.snapshot(cpu).1
    }

    /// The root that `cpu` has loaded and what its TLB holds of the user half, at one moment.
    pub fn snapshot(&self, cpu: CpuId) -> (Option<Pfn>, Vec<Cached>) {
        let caches = self.cpu_state(cpu).caches();
        let user = caches.tlb.iter().filter(|(_, entry)| !entry.global);
        let mut all: Vec<_> = user
            .map(|(&(size, page), entry)| Cached {
                va: VirtAddr::new(page << shift(size.level())),
                size,
                pfn: entry.leaf.pfn(),
                write: entry.write,
                user: entry.user,
            })
            .collect();
        all.sort_by_key(|cached| (cached.va, cached.size));
        (caches.root, all)
    }

    /// Cached translations of `cpu` that the page table which it has loaded no longer backs: another frame, no
    /// frame, or more rights than the page table grants. Empty after every completed shootdown.
    pub fn stale(&self, cpu: CpuId) -> Vec<Cached> {
        let root = self.loaded_root(cpu);
        let backed = |cached: &Cached| {
            let Some((entry, size)) = root.and_then(|root| self.translate(root, cached.va)) else {
                return false;
            };
            let within = (cached.va.as_u64() & (size.bytes() - 1)) / PAGE_SIZE;
            // A leaf that grew since (a promotion) backs what was cached of its parts; one that shrank backs
            // nothing, because the rest of the old one may be gone.
            size >= cached.size
                && entry.pfn().add(within) == cached.pfn
                && (entry.is_writable() || !cached.write)
                && (entry.is_user() || !cached.user)
        };
        self.cached(cpu).into_iter().filter(|cached| !backed(cached)).collect()
    }

    /// Fails when any CPU holds a stale translation, or a path to a table page that is not in use.
    ///
    /// # Panics
    /// With the CPU, the address and the frame.
    #[track_caller]
    pub fn assert_no_stale(&self) {
        for cpu in 0..self.cpu_count() {
            let stale = self.stale(cpu);
            assert!(stale.is_empty(), "CPU {cpu} holds a stale translation: {}", stale[0]);
        }
        self.assert_paths_live();
    }

    /// Fails when the paging-structure caches of any CPU, idle ones included, lead to a table page that is not in
    /// use.
    ///
    /// # Panics
    /// With the CPU and the table page.
    #[track_caller]
    pub fn assert_paths_live(&self) {
        for cpu in 0..self.cpu_count() {
            let caches = self.cpu_state(cpu).caches();
            for path in caches.paths.values() {
                let live = self.inner.memory.is_live(path.table);
                assert!(live, "CPU {cpu}'s paging-structure caches lead to the freed table page {}", path.table);
            }
        }
    }

    /// CPUs whose TLB leads to any frame of `pfn .. pfn + nr_pages`: after a shootdown and before the frames are
    /// used again there must be none.
    pub fn who_reaches(&self, pfn: Pfn, nr_pages: u64) -> Vec<CpuId> {
        let reaches = |cpu: &CpuId| {
            self.cached(*cpu).iter().any(|cached| {
                let (first, last) = (cached.pfn.as_u64(), cached.pfn.as_u64() + cached.size.nr_pages());
                first < pfn.as_u64() + nr_pages && pfn.as_u64() < last
            })
        };
        (0..self.cpu_count()).filter(reaches).collect()
    }
}

fn frame_of(va: VirtAddr, entry: TlbEntry) -> Pfn {
    entry.leaf.pfn().add((va.as_u64() & (entry.size.bytes() - 1)) / PAGE_SIZE)
}
