//! The deliberate faults of this package, as [`mutants`] explains them; `DAX_MUTANT` names one.

mutants::mutants! {
    "DAX_MUTANT";
    /// A synchronizer reads the counter with a plain load. Caught by `loom_srcu`, all tests.
    SrcuPlainRead = "srcu_plain_read",
    /// A reader does not look at the index again. Caught by `loom_srcu::a_reader_that_read_an_old_index_is_waited_for` and
    /// `shuttle:loom_srcu::a_reader_that_read_an_old_index_is_waited_for`.
    SrcuNoRecheck = "srcu_no_recheck",
    /// Leaving orders nothing. Caught by `loom_srcu`, all tests.
    SrcuRelaxedUnlock = "srcu_relaxed_unlock",
    /// A synchronizer does not flip the index. Caught by
    /// `srcu::waits_for_a_reader_that_began_before_and_for_none_that_began_after`.
    SrcuNoFlip = "srcu_no_flip",
    /// The device dies before its holders are told. Caught by
    /// `device::kill_tells_the_holder_while_alive_then_clears_then_waits_then_forgets`.
    KillClearsFirst = "kill_clears_first",
    /// Nobody waits for the readers. Caught by
    /// `device::kill_tells_the_holder_while_alive_then_clears_then_waits_then_forgets` and
    /// `removal::a_fault_in_flight_is_waited_for_and_what_it_installs_is_found`.
    KillDoesNotWait = "kill_does_not_wait",
    /// A new user is let in while the holders are told. Caught by
    /// `device::one_owner_and_nobody_new_on_a_dying_device`.
    DyingLetsUsersIn = "dying_lets_users_in",
    /// A holder that takes its time to get ready does not look whether the removal has begun meanwhile. Caught by
    /// `loom_holder`, all tests, and `device::a_holder_that_gets_ready_is_told_or_hears_that_it_is_too_late`.
    ReadyNotRechecked = "ready_not_rechecked",
    /// It looks, but not under the lock under which the removal begins. Caught by
    /// `loom_holder::a_holder_that_gets_ready_against_a_kill`.
    ReadyUnlocked = "ready_unlocked",
    /// A removal takes away what its device's own files map, and nothing that a holder has left. Caught by
    /// `leftovers::what_a_holder_leaves_mapped_is_taken_away_whatever_it_answers`.
    LeftoversStay = "leftovers_stay",
    /// The whole device is not recognised before its end is computed. Caught by `range`, two tests.
    WholeNotRecognised = "whole_not_recognised",
    /// The last byte of a range is lost. Caught by `range`, two tests.
    LastByteLost = "last_byte_lost",
    /// A reader does not look whether the device is alive. Caught by
    /// `device::kill_tells_the_holder_while_alive_then_clears_then_waits_then_forgets` and others.
    DeadLetsReadersIn = "dead_lets_readers_in",
    /// A mapping is entered into the reverse map without anything that keeps the device alive. Caught by
    /// `removal::a_mapping_that_is_being_made_is_waited_for_and_found`.
    MmapUnguarded = "mmap_unguarded",
    /// A removal does not wait for pins. Caught by `removal::waits_for_pins_before_the_metadata_goes`.
    DrainDoesNotWait = "drain_does_not_wait",
    /// A removal asks for long-term pins and does not take them back. Caught by
    /// `registrations::an_owner_that_does_nothing_cannot_hold_a_removal_up`.
    PinsNotTakenBack = "pins_not_taken_back",
    /// The holders of a device that has gone are told that it is about to leave, and go on writing to it. Caught by
    /// `removal::the_holders_of_a_device_that_has_gone_hear_that_it_has`.
    GoneToldAsLeaving = "gone_told_as_leaving",
    /// The owners of registrations of a device that has gone have their time all the same. Caught by
    /// `registrations::nobody_is_waited_for_where_the_device_has_gone`.
    GraceForGone = "grace_for_gone",
    /// Who waits for the end of a removal does not. Caught by `slot::a_second_removal_is_refused_or_waits`.
    SecondDoesNotWait = "second_does_not_wait",
}
