    /// **The rule** (G1; steps 3 to 5 of `gup/mod.rs`): takes `nr` references on `page`, and then looks whether the entries are
    /// still what they were when it was found. To be written.
    ///
    /// What there is:
    /// - `page.try_take_at_once::<PIN>(nr)` takes them at the first attempt and answers whether it has: for `AT_ONCE`.
    ///   `self.take(page, nr)` takes them or answers an error: for the other. Neither raises a count from zero.
    ///   `AT_ONCE` is the attempt that comes first, at the first try or not at all: any bit that has changed is a change, also an
    ///   accessed or dirty bit that the CPU has set meanwhile. Whoever fails so comes again without it, and looks closer.
    /// - `entries.are_unchanged::<AT_ONCE>()` looks at what led to the page again; `above`, where there is one, is the entry that
    ///   leads to the leaf's table, and has `still_leads_there::<AT_ONCE>()`.
    ///
    /// What is wanted: [`Taken::Refused`] where no reference could be taken, [`Taken::Stale`] where they were taken and something
    /// has changed (the caller gives them back), else [`Taken::Kept`]. No loop: interrupts are off.
    ///
    /// The tests stop the walk at two places, and let another CPU in there: say
    /// `self.mm().machine.reached(Point::GupLeafRead)` before the references are taken, and
    /// `self.mm().machine.reached(Point::GupPinned)` when they are. Of `entries` the method `first` is for traces, and not needed.
    #[inline(always)]
    #[allow(unused_variables)]
    pub(super) fn take_and_recheck<const AT_ONCE: bool>(
        &self,
        page: &Page,
        nr: u32,
        entries: impl Recheck,
        above: Option<Seen<'_>>,
    ) -> Taken {
        todo!("lab 5: take the references, and look again")
    }
