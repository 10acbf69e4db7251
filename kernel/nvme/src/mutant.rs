//! The deliberate faults of this package, as [`mutants`] explains them; `NVME_MUTANT` names one.

mutants::mutants! {
    "NVME_MUTANT";
    /// A completion's command id is not held against the number of commands. Caught by
    /// `ring::an_index_out_of_range_is_one_clear_line` and `properties::no_completion_leads_outside`.
    CommandNotChecked = "command_not_checked",
    /// A completion of an earlier command in the same slot counts for the one that is there now. Caught by
    /// `ring::a_completion_that_comes_twice_is_not_the_next_commands`.
    GenerationNotChecked = "generation_not_checked",
    /// The phase stays as it is at the end of the completion queue. Caught by `ring::round_and_round`.
    PhaseStays = "phase_stays",
    /// The slot of a command whose owner has gone is free at once. Caught by
    /// `ring::an_abandoned_command_keeps_its_slot_until_it_is_done`.
    AbandonedIsFree = "abandoned_is_free",
    /// What was in flight at a reset stays in flight. Caught by `ring::a_reset_fails_what_was_in_flight`.
    ResetForgets = "reset_forgets",
    /// The queue's number in a completion is not looked at. Caught by `ring::an_index_out_of_range_is_one_clear_line`.
    QueueNotChecked = "queue_not_checked",
    /// Two pages are a list. Caught by `properties::prps_name_every_byte_once`.
    SecondPageAsList = "second_page_as_list",
    /// The list leaves out the second page. Caught by `properties::prps_name_every_byte_once`.
    ListFromTheThirdPage = "list_from_the_third_page",
}
