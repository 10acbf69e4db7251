//! The bug zoo: classic faults of real systems, each of which a kernel that is built for it can be given by name.
//!
//! This is the list, for the kernel and for the host side. The faults themselves are among the deliberate faults of
//! the packages ([`mutants`](../mutants/index.html)); what a fault is about, where a real system had it, and what one sees is
//! in `docs/zoo`, a page for each. A product has none of them: the kernel's feature `zoo` builds them in.
//!
//! What of the search knows neither machine nor scenario is here as well: schedules, and all of them that have few switches.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod exhaustive;
pub mod schedule;

/// A fault that can be switched on by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bug {
    /// What is given to `--bug`, and the name of its page in `docs/zoo`.
    pub name: &'static str,
    /// The package whose deliberate fault it is.
    pub package: &'static str,
    /// The word of the fault there.
    pub fault: &'static str,
    /// What is wrong, in a line.
    pub what: &'static str,
    /// What makes it strike.
    pub shown_by: ShownBy,
}

/// What makes a fault strike, and says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShownBy {
    /// A few CPUs, each of which does one thing, in an order that has to be found: a scenario of the guest's explorer.
    Schedule(&'static str),
    /// Any order does: an in-kernel test, which fails.
    Test(&'static str),
}

impl Bug {
    /// The one of this name.
    pub fn find(name: &str) -> Option<&'static Self> {
        BUGS.iter().find(|bug| bug.name == name)
    }
}

const fn schedule(name: &'static str, fault: &'static str, scenario: &'static str, what: &'static str) -> Bug {
    Bug { name, package: "mm", fault, what, shown_by: ShownBy::Schedule(scenario) }
}

/// All of them, in the order in which they are best looked at.
pub static BUGS: &[Bug] = &[
    schedule(
        "no-look-again",
        "no_entry_recheck",
        "gup-against-unmap",
        "gup-fast takes its reference and does not read the entry again",
    ),
    schedule(
        "leaf-only-look-again",
        "no_upper_recheck",
        "gup-against-table",
        "gup-fast reads the leaf again, and not the entry that led to its table",
    ),
    schedule(
        "reference-from-zero",
        "reference_from_zero",
        "get-against-last-put",
        "a speculative reference may be the first one: of a page that is already free",
    ),
    schedule(
        "put-judged-by-second-look",
        "put_looked_at_again",
        "put-against-put",
        "who has dropped a reference reads the count again, of a page that it no longer owns",
    ),
    schedule(
        "flush-before-clear",
        "flush_before_clear",
        "read-against-unmap",
        "an unmap flushes first and clears the entries then",
    ),
    schedule(
        "freed-before-flush",
        "page_freed_before_sync",
        "read-against-unmap",
        "an unmap gives the page back before every CPU has forgotten it",
    ),
    schedule(
        "table-freed-before-flush",
        "table_freed_before_sync",
        "gup-against-table",
        "an unmap frees the page table before every walk through it has ended",
    ),
    schedule(
        "ack-before-flush",
        "ack_before_flush",
        "flush-against-unmap",
        "the handler of a shootdown acknowledges first and flushes then",
    ),
    schedule(
        "lazy-cpu-forgotten",
        "lazy_not_caught_up",
        "idle-against-unmap",
        "an idle CPU is not interrupted for a shootdown, and does not catch up when it wakes",
    ),
    schedule(
        "mask-read-too-early",
        "switch_enters_late",
        "switch-against-unmap",
        "a CPU loads an address space before it stands in the mask that a shootdown reads",
    ),
    schedule("unpin-by-wrong-owner", "unpin_twice", "two-pins", "an unpin gives back a pin of somebody else's as well"),
    Bug {
        name: "truncate-before-unmap",
        package: "fs",
        fault: "not_unmapped",
        what: "a truncate frees blocks that tasks still map",
        shown_by: ShownBy::Test("fs.mmap.truncate_unmaps"),
    },
    Bug {
        name: "iotlb-not-invalidated",
        package: "iommu",
        fault: "no_invalidation",
        what: "a revocation takes a device's translations out of the tables, and not out of the IOTLB",
        shown_by: ShownBy::Test("dma.nvme.a_blocked_read_is_no_success"),
    },
    Bug {
        name: "completion-believed",
        package: "iommu",
        fault: "completion_believed",
        what: "a disk that says its read has ended well is believed, although the IOMMU has blocked it",
        shown_by: ShownBy::Test("dma.nvme.a_blocked_read_is_no_success"),
    },
    Bug {
        name: "freeze-not-undone",
        package: "fs",
        fault: "user_freeze_stays",
        what: "a file system that a user had frozen stays frozen when its device has left",
        shown_by: ShownBy::Test("fs.removal.lifts_a_users_freeze"),
    },
];
