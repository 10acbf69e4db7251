//! Deliberate faults, so that the tests can be tested.
//!
//! A test that never failed proves little. Each [`Mutant`] is one fault that a protocol of this package must not
//! have; the code asks [`Mutant::is_on`] at the one place where the fault would be. In the kernel the answer is the
//! constant `false` and nothing of it is compiled. In host tests (feature `emu`, or loom) it is read once from the
//! environment variable `MM_MUTANT`, so that one build of the tests runs against every fault. `docs/proofs.md`
//! says which named test catches which.

macro_rules! mutants {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A deliberate fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutant { $($(#[$doc])* $name,)* }
        impl Mutant {
            /// All faults.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
            /// The word that switches the fault on.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

mutants! {
    /// No CPU is interrupted after a zap.
    NoShootdown = "no_shootdown",
    /// The sender does not flush its own CPU.
    NoLocalFlush = "no_local_flush",
    /// The handler acknowledges first and flushes then.
    AckBeforeFlush = "ack_before_flush",
    /// The acknowledgement orders nothing.
    RelaxedAck = "relaxed_ack",
    /// The handler flushes first and looks then which requests it has answered.
    RequestReadLate = "request_read_late",
    /// gup-fast does not read the leaf again once it has its reference.
    NoEntryRecheck = "no_entry_recheck",
    /// gup-fast does not read the entry above the leaf again.
    NoUpperRecheck = "no_upper_recheck",
    /// gup-fast walks with interrupts on.
    GupIrqsOn = "gup_irqs_on",
    /// A speculative reference may be the first one.
    ReferenceFromZero = "reference_from_zero",
    /// Dropping a reference orders nothing.
    RelaxedPut = "relaxed_put",
    /// The one who drops the last reference frees the metadata without looking again under the lock.
    RetireNoRecheck = "retire_no_recheck",
    /// An unlinked table page is freed before the shootdown is acknowledged.
    TableFreedBeforeSync = "table_freed_before_sync",
    /// The mapping's reference is dropped before the shootdown is acknowledged.
    PageFreedBeforeSync = "page_freed_before_sync",
    /// A range that does not end on a leaf's boundary is rounded down to it.
    RangeRoundedDown = "range_rounded_down",
    /// The CPU with the highest number is left out of a round.
    CpuMissing = "cpu_missing",
    /// An idle CPU uses its address space again without catching up.
    LazyNotCaughtUp = "lazy_not_caught_up",
    /// An idle CPU is not interrupted although a table page is freed.
    LazySkippedForTables = "lazy_skipped_for_tables",
    /// A CPU that loads an address space enters itself into the set only afterwards.
    SwitchEntersLate = "switch_enters_late",
    /// A CPU that loads an address space passes for idle until it has done so.
    SwitchStaysLazy = "switch_stays_lazy",
    /// Splitting a huge leaf to remove a part of it flushes nothing.
    SplitNoFlush = "split_no_flush",
    /// A change of rights flushes nothing.
    ProtectNoFlush = "protect_no_flush",
    /// A receiver that is further behind than the ring remembers flushes only the latest range.
    RingOverflowIgnored = "ring_overflow_ignored",
    /// An unpin takes off two pins.
    UnpinTwice = "unpin_twice",
    /// `start + len` is added without a check.
    WrappedRange = "wrapped_range",
    /// gup-fast pins for writing what may only be read.
    WriteThroughReadOnly = "write_through_read_only",
    /// A failure after partial success is reported in place of the count.
    PartialSuccessLost = "partial_success_lost",
}

impl Mutant {
    /// Is this fault built in?
    #[cfg(any(test, feature = "emu", loom))]
    pub fn is_on(self) -> bool {
        chosen() == Some(self)
    }

    /// Is this fault built in? Never, here.
    #[cfg(not(any(test, feature = "emu", loom)))]
    #[inline(always)]
    pub const fn is_on(self) -> bool {
        let _ = self;
        false
    }
}

/// The fault named by `MM_MUTANT`.
///
/// # Panics
/// Where the name is none of ours: a run that tests nothing must not pass for one that does.
#[cfg(any(test, feature = "emu", loom))]
fn chosen() -> Option<Mutant> {
    static CHOSEN: std::sync::OnceLock<Option<Mutant>> = std::sync::OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let name = std::env::var("MM_MUTANT").ok().filter(|name| !name.is_empty())?;
        let known = Mutant::ALL.iter().copied().find(|mutant| mutant.name() == name);
        Some(known.unwrap_or_else(|| panic!("MM_MUTANT={name} names no fault of mm::mutant")))
    })
}
