//! The ledger: what the kernel holds, by kind. After a removal every device kind reads zero.
//!
//! Counters are charged where a thing is created and discharged where it is dropped, by the owner itself, so a
//! leak has a name. Pins and references are not counted here on the fast path: they are summed from the live
//! page metadata when a snapshot is taken (see `meta::MetaStore::totals`).

use core::fmt;

use crate::sync::{AtomicI64, Ordering};

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Kind { $($(#[$doc])* $name,)* }
        impl Kind {
            /// All kinds, in the order in which they are printed.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
            /// The word printed on the console.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

kinds! {
    /// Page-table pages of user address spaces, roots included.
    TablePages = "table_pages",
    /// Bytes of page metadata (folio slots and the tables that lead to them).
    MetadataBytes = "metadata_bytes",
    /// Folios whose reference count is not zero.
    Folios = "folios",
    /// References on folios (mappings and pins).
    References = "references",
    /// Pins on folios.
    Pins = "pins",
    /// Long-term pins: registrations whose pages are pinned.
    Registrations = "registrations",
    /// VMAs that map a device.
    Mappings = "mappings",
    /// Entries in reverse maps.
    ReverseMap = "reverse_map",
    /// Page maps that are registered.
    PageMaps = "page_maps",
    /// DAX devices that exist.
    DaxDevices = "dax_devices",
    /// Holders registered with a DAX device.
    Holders = "holders",
    /// Claims on physical ranges.
    Claims = "claims",
    /// Leaves of the kernel's direct map of device memory.
    DirectMapLeaves = "direct_map_leaves",
    /// Address spaces that exist.
    AddressSpaces = "address_spaces",
    /// Locks held by tasks that ended.
    Locks = "locks",
}

/// The counters. One for each machine.
///
/// ```
/// use testkit::emu;
/// use mm::ledger::Kind;
/// use mm::space::AddressSpace;
///
/// let mm = emu::context(1);
/// let before = mm.ledger_snapshot();
/// let space = AddressSpace::new(&mm, "task").unwrap();
/// let held: Vec<_> = mm.ledger_snapshot().diff(&before).collect();
/// assert_eq!(held, [(Kind::TablePages, 1), (Kind::AddressSpaces, 1)]);
/// drop(space);
/// assert_eq!(mm.ledger_snapshot().diff(&before).count(), 0, "nothing stays behind");
/// ```
#[derive(Debug)]
pub struct Ledger {
    counts: [AtomicI64; Kind::ALL.len()],
}

impl Default for Ledger {
    fn default() -> Self {
        Self::new()
    }
}

impl Ledger {
    /// All zero.
    pub fn new() -> Self {
        Self { counts: core::array::from_fn(|_| AtomicI64::new(0)) }
    }
    /// Adds `nr` (negative to discharge).
    #[inline]
    pub fn charge(&self, kind: Kind, nr: i64) {
        // Relaxed: a statistic; whoever compares two snapshots has synchronised by other means.
        self.counts[kind as usize].fetch_add(nr, Ordering::Relaxed);
    }
    /// The present count of one kind.
    pub fn count(&self, kind: Kind) -> i64 {
        self.counts[kind as usize].load(Ordering::Relaxed)
    }
    /// All counts at this moment.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { counts: core::array::from_fn(|i| self.counts[i].load(Ordering::Relaxed)) }
    }
}

/// Counts at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    counts: [i64; Kind::ALL.len()],
}

impl Snapshot {
    /// The count of one kind.
    pub fn count(&self, kind: Kind) -> i64 {
        self.counts[kind as usize]
    }
    /// The same snapshot with the count of `kind` replaced (for the kinds that are summed on demand).
    #[must_use]
    pub fn with(mut self, kind: Kind, count: i64) -> Self {
        self.counts[kind as usize] = count;
        self
    }
    /// What grew (or shrank) since `earlier`, by kind; empty when nothing leaked.
    pub fn diff<'a>(&'a self, earlier: &'a Self) -> impl Iterator<Item = (Kind, i64)> + 'a {
        Kind::ALL.iter().map(|&kind| (kind, self.count(kind) - earlier.count(kind))).filter(|&(_, delta)| delta != 0)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
