//! The deliberate faults of this package, as [`mutants`] explains them; `NVDIMM_MUTANT` names one.

mutants::mutants! {
    "NVDIMM_MUTANT";
    /// Whether a module is there is looked at before a copy, not after it. Caught by
    /// `hotplug::what_was_copied_after_the_module_left_is_no_success`.
    PresenceAskedFirst = "presence_asked_first",
    /// A module that has left and come back counts as one that never left. Caught by
    /// `hotplug::a_module_that_has_come_back_is_not_the_one_that_left`.
    ReturnUnseen = "return_unseen",
    /// The number of the stay is looked at before the slot's flags. Caught by
    /// `hotplug::a_stay_ends_for_good_wherever_the_next_one_begins`.
    StayAskedFirst = "stay_asked_first",
    /// Notice of the next module is taken before the stay of the last one has ended. Caught by
    /// `hotplug::a_stay_ends_for_good_wherever_the_next_one_begins`.
    StayEndedLate = "stay_ended_late",
    /// A stay counts as that of every range. Caught by
    /// `hotplug::a_stay_is_that_of_one_range_and_nothing_else_is_there_by_it`.
    RangeNotAsked = "range_not_asked",
}
