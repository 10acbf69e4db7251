//! What the kernel's parts do to each other, as events: the vocabulary of its traces.
//!
//! `mm` raises a [`Mark`] by [`Machine::mark`](crate::machine::Machine::mark) at each step that another CPU could come
//! between, beside the [`Point`](crate::machine::Point)s at which a test machine lets another CPU act. By default nothing
//! comes of it, and nothing is left of it in the code. A machine that records makes an [`Event`] of it: which CPU, and when.
//!
//! Each event is raised *before* what it announces can be seen by others ([`Kind::Shootdown`], [`Kind::Acknowledged`]) or
//! *after* it has been seen ([`Kind::Received`], [`Kind::Synced`]): so time stamps that agree across CPUs are in the order
//! of cause and effect. [`Kind::Sent`] says a number that is known only once the receiver can see it; a receiver that is at it
//! already may answer first.
//!
//! Linux: `include/trace/events/tlb.h`, `irq_vectors.h`, `mmap.h`.

pub mod lanes;

use crate::addr::{Pfn, VirtRange};
use crate::machine::CpuId;

/// What an event is about, for who wants to see some of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// gup and its fast path.
    Gup,
    /// Translations and tables that are taken away.
    Zap,
    /// Shootdowns: interrupts between CPUs, flushes, acknowledgements.
    Ipi,
    /// Page faults.
    Fault,
    /// References and pins that are given back, and pins that were taken with the lock.
    Pin,
    /// What a device is let reach.
    Dma,
    /// The steps of a removal.
    Removal,
}

impl Group {
    /// All of them.
    pub const ALL: [Self; 7] = [Self::Gup, Self::Zap, Self::Ipi, Self::Fault, Self::Pin, Self::Dma, Self::Removal];

    /// Its word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Gup => "gup",
            Self::Zap => "zap",
            Self::Ipi => "ipi",
            Self::Fault => "fault",
            Self::Pin => "pin",
            Self::Dma => "dma",
            Self::Removal => "removal",
        }
    }
}

/// Does an event begin something that takes time, end it, or neither?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It begins what the [`Span`] says.
    Begins(Span),
    /// It ends it.
    Ends(Span),
    /// A moment.
    Moment,
}

/// What takes time on a CPU, and has a beginning and an end among the events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// One call of gup.
    Gup,
    /// Translations of one address space are taken out.
    Zap,
    /// A shootdown, from its dispatch until all have acknowledged.
    Shootdown,
    /// A run of the shootdown handler.
    Handler,
}

impl Span {
    /// Its word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Gup => "gup",
            Self::Zap => "zap",
            Self::Shootdown => "shootdown",
            Self::Handler => "handler",
        }
    }
}

/// Makes [`Kind`] of a list: name, word, group, role, and what the two arguments are.
macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $group:ident, $role:expr, [$a:literal, $b:literal];)*) => {
        /// What has happened. The two arguments of each are named by [`Kind::arguments`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Kind { $($(#[$doc])* $name,)* }

        impl Kind {
            /// All of them, by number.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Does `work` for this kind, which it then knows when it is compiled.
            #[inline(always)]
            pub fn known<W: ForKind>(self, work: W) {
                match self { $(Self::$name => work.work::<{ Self::$name as u8 }>(),)* }
            }
            /// Its word, in lanes and on the console.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }
            /// What it is about.
            pub const fn group(self) -> Group {
                match self { $(Self::$name => Group::$group,)* }
            }
            /// What it begins or ends.
            pub const fn role(self) -> Role {
                match self { $(Self::$name => $role,)* }
            }
            /// What its arguments are, in a few words; an empty one has none.
            pub const fn arguments(self) -> [&'static str; 2] {
                match self { $(Self::$name => [$a, $b],)* }
            }
        }
    };
}

/// What is to be done for a kind that is a constant where it is done; see [`Kind::known`].
pub trait ForKind {
    /// For the kind of this number.
    fn work<const KIND: u8>(self);
}

kinds! {
    /// gup is called: an address, and how many pages are wanted.
    GupBegun = "gup", Gup, Role::Begins(Span::Gup), ["va", "pages"];
    /// gup-fast has read a present leaf, and has no reference yet: the entry, and how many pages it wants.
    EntryRead = "read", Gup, Role::Moment, ["entry", "pages"];
    /// It has its references, and has not read the entries again.
    RefTaken = "ref", Gup, Role::Moment, ["pfn", "pages"];
    /// It cannot have them without a lock.
    RefRefused = "refused", Gup, Role::Moment, ["pfn", "pages"];
    /// It has looked again, and the entries are what they were.
    Kept = "kept", Gup, Role::Moment, ["pfn", "pages"];
    /// It has looked again, and an entry has changed: the references go back.
    Stale = "stale", Gup, Role::Moment, ["pfn", "pages"];
    /// gup returns, with so many pages; none where it has failed.
    GupDone = "got", Gup, Role::Ends(Span::Gup), ["pages", ""];
    /// The translations of a range are being taken out of one address space: its ends.
    ZapBegun = "zap", Zap, Role::Begins(Span::Zap), ["start", "end"];
    /// A leaf has been cleared.
    Cleared = "clear", Zap, Role::Moment, ["pfn", "pages"];
    /// A table page has been unlinked, with everything below it: its frame and its level.
    Unlinked = "unlink", Zap, Role::Moment, ["table", "level"];
    /// The range has no translation any more. Nothing is freed yet.
    ZapDone = "zapped", Zap, Role::Ends(Span::Zap), ["start", "end"];
    /// The references of leaves that were cleared are given back: so many leaves since the gather began.
    LeavesPut = "put", Zap, Role::Moment, ["leaves", ""];
    /// A table page is freed.
    TableFreed = "free", Zap, Role::Moment, ["table", ""];
    /// A shootdown begins: which CPUs may hold a translation (bit n for CPU n, the sender's own too), and whether tables are
    /// freed after it.
    Shootdown = "shoot", Ipi, Role::Begins(Span::Shootdown), ["cpus", "tables"];
    /// A CPU was asked to flush, and is interrupted next: which, and the number of the request, counted for that CPU.
    Sent = "ipi", Ipi, Role::Moment, ["to", "request"];
    /// The handler runs: the last request that it answers.
    Received = "recv", Ipi, Role::Begins(Span::Handler), ["request", ""];
    /// Pages were flushed, from an address on; no number for all there are.
    Flushed = "flush", Ipi, Role::Moment, ["va", "pages"];
    /// The handler is done, and says so: the last request that it has answered.
    Acknowledged = "ack", Ipi, Role::Ends(Span::Handler), ["request", ""];
    /// All who were asked have acknowledged.
    Synced = "sync", Ipi, Role::Ends(Span::Shootdown), ["cpus", ""];
    /// An address space was loaded: its root, 0 for none.
    Switched = "switch", Ipi, Role::Moment, ["root", ""];
    /// A page fault is served: the address, and 1 for a store, 2 for a fetch.
    Faulted = "fault", Fault, Role::Moment, ["va", "access"];
    /// Pages were pinned with the address space locked.
    PinnedSlow = "pin", Pin, Role::Moment, ["pfn", "pages"];
    /// Pins or plain references of gup are given back.
    Unpinned = "unpin", Pin, Role::Moment, ["pfn", "pages"];
    /// Pages were mapped for a device: an I/O virtual address.
    DmaMapped = "dmamap", Dma, Role::Moment, ["iova", "bytes"];
    /// A device is cut off from them.
    DmaRevoked = "dmacut", Dma, Role::Moment, ["iova", "bytes"];
    /// A step of a removal is over: its number, and whether it met a problem.
    RemovalStep = "step", Removal, Role::Moment, ["step", "problem"];
}

impl Kind {
    /// The kind whose word this is.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.word() == word)
    }
    /// The kind with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
    /// Its bit in a set of kinds.
    #[inline(always)]
    pub const fn bit(self) -> u64 {
        1 << self as u8
    }
}

/// The kinds of which any word names one: a kind's own word, or its group's, which comes first. An error is the word that
/// names nothing.
///
/// ```
/// use mm::trace::{Kind, named};
///
/// assert_eq!(named(["ack", "recv"]), Ok(Kind::Acknowledged.bit() | Kind::Received.bit()));
/// assert_eq!(named(["dma"]), Ok(Kind::DmaMapped.bit() | Kind::DmaRevoked.bit()));
/// assert_eq!(named(["ack", "nack"]), Err("nack"));
/// ```
///
/// # Errors
/// The first word that is no kind and no group.
pub fn named<'w>(words: impl IntoIterator<Item = &'w str>) -> Result<u64, &'w str> {
    words.into_iter().try_fold(0, |set, word| {
        let of_group = Kind::ALL.iter().filter(|kind| kind.group().word() == word);
        let bits = of_group.fold(0, |bits, kind| bits | kind.bit());
        match (bits, Kind::from_word(word)) {
            (0, None) => Err(word),
            (0, Some(kind)) => Ok(set | kind.bit()),
            _ => Ok(set | bits),
        }
    })
}

/// Every kind.
pub const EVERY: u64 = (1 << Kind::ALL.len()) - 1;

/// Raises a mark, in a function whose machine is `M`.
macro_rules! mark {
    ($machine:expr, $mark:expr) => {
        if M::TRACES {
            $machine.mark($mark);
        }
    };
}
pub(crate) use mark;

/// One thing that has happened. Made where it happens; the machine knows where and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// What.
    pub kind: Kind,
    /// Its arguments, as [`Kind::arguments`] names them.
    pub arguments: [u64; 2],
}

impl Mark {
    /// With both arguments.
    #[inline(always)]
    pub const fn new(kind: Kind, a: u64, b: u64) -> Self {
        Self { kind, arguments: [a, b] }
    }
    /// About a range of addresses.
    #[inline(always)]
    pub const fn range(kind: Kind, range: VirtRange) -> Self {
        Self::new(kind, range.start().as_u64(), range.end().as_u64())
    }
    /// About `nr` pages from `pfn` on.
    #[inline(always)]
    pub const fn pages(kind: Kind, pfn: Pfn, nr: u64) -> Self {
        Self::new(kind, pfn.as_u64(), nr)
    }
}

/// A mark with its place and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When: nanoseconds since the console came up, on a clock that all CPUs share.
    pub ns: u64,
    /// Where.
    pub cpu: CpuId,
    /// What.
    pub mark: Mark,
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    #[test]
    fn each_kind_has_a_word_and_a_number_of_its_own() {
        let words: BTreeSet<_> = Kind::ALL.iter().map(|kind| kind.word()).collect();
        assert_eq!(words.len(), Kind::ALL.len());
        for (number, &kind) in Kind::ALL.iter().enumerate() {
            assert_eq!(Kind::from_number(number as u8), Some(kind));
            assert_eq!(Kind::from_word(kind.word()), Some(kind));
            assert_eq!(kind.bit() & EVERY, kind.bit());
            assert!(kind.word().len() <= 7, "{kind:?}: too long for a lane");
        }
        assert_eq!(Kind::from_number(Kind::ALL.len() as u8), None);
        assert_eq!(Kind::from_word(""), None);
    }

    #[test]
    fn what_begins_ends() {
        for span in [Span::Gup, Span::Zap, Span::Shootdown, Span::Handler] {
            let with = |role| Kind::ALL.iter().filter(|kind| kind.role() == role).count();
            assert_eq!((with(Role::Begins(span)), with(Role::Ends(span))), (1, 1), "{span:?}");
        }
    }

    #[test]
    fn words_name_kinds_and_groups() {
        assert_eq!(named([]), Ok(0));
        assert_eq!(named(Group::ALL.map(Group::word)), Ok(EVERY));
        assert_eq!(named(["fault"]), Ok(Kind::Faulted.bit()));
        // A group's word is also that of one of its kinds: the group is meant.
        assert_eq!(named(["gup"]).map(u64::count_ones), Ok(7));
        assert_eq!(named(["kept", "gup2", "nothing"]), Err("gup2"));
    }
}
