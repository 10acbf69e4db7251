//! The deliberate faults of this package, as [`mutants`] explains them; `SCHED_MUTANT` names one.

mutants::mutants! {
    "SCHED_MUTANT";
    /// A task that was woken before it had gone, and never left its CPU, stays a ready one. Caught by
    /// `loom_park::a_waker_against_a_task_that_parks` and `queue::who_is_woken_before_it_has_gone_goes_on_as_a_running_task`.
    WokenStaysReady = "woken_stays_ready",
    /// A waker looks first whether the task is parked, and leaves its token then. Caught by
    /// `loom_park::a_waker_against_a_task_that_parks`.
    TokenLeftLate = "token_left_late",
    /// A task that parks does not look for a token. Caught by `loom_park::a_waker_against_a_task_that_parks` and
    /// `queue::a_token_that_came_first_is_taken_in_place_of_parking`.
    TokenIgnored = "token_ignored",
    /// A token orders nothing. Caught by `loom_park::a_waker_against_a_task_that_parks`.
    TokenRelaxed = "token_relaxed",
    /// A waker does not look whether the task is parked. Caught by `loom_park::two_wakers_of_one_task` and
    /// `queue::every_task_is_in_one_place`.
    WokenTwice = "woken_twice",
    /// A task that has parked goes on when its turn ends. Caught by `queue::every_task_is_in_one_place`.
    ParkedGoesOn = "parked_goes_on",
    /// A task that enters itself among those who wait does not ask again. Caught by
    /// `loom_park::a_change_against_a_task_that_waits_for_it`.
    WaitsWithoutAsking = "waits_without_asking",
    /// A task asks before it enters itself among those who wait. Caught by
    /// `loom_park::a_change_against_a_task_that_waits_for_it`.
    EnteredLate = "entered_late",
    /// A writer takes its slot of the ring by a load and a store. Caught by `loom_ring::two_writers_and_a_reader`.
    RingNotClaimed = "ring_not_claimed",
    /// A writer says that a slot is full before it has filled it. Caught by `loom_ring::a_writer_and_a_reader`.
    RingFullEarly = "ring_full_early",
    /// A reader frees a slot before it has read it. Caught by `loom_ring::a_ring_that_is_full_and_read`.
    RingFreedEarly = "ring_freed_early",
    /// That a slot is full orders nothing. Caught by `loom_ring::a_writer_and_a_reader`.
    RingRelaxed = "ring_relaxed",
    /// What finds the ring full is not counted. Caught by `loom_ring::a_ring_that_is_full_and_read` and
    /// `ring::what_finds_no_room_is_counted`.
    RingLossNotCounted = "ring_loss_not_counted",
    /// A recorder's writer does not say that it is at the slot. Caught by `loom_recorder::a_slot_that_is_written_again`.
    RecorderNotBusy = "recorder_not_busy",
    /// It takes a slot that another is writing. Caught by `loom_recorder::an_interrupt_comes_round_to_the_slot` and
    /// `recorder::who_comes_round_to_a_slot_that_is_being_written_loses_its_event`.
    RecorderTakesBusy = "recorder_takes_busy",
    /// A writer that was switched away writes over an event of a whole ring later. Caught by
    /// `recorder::what_is_missing_is_counted` and `loom_recorder::an_interrupt_comes_round_to_the_slot`.
    RecorderTakesLater = "recorder_takes_later",
    /// That it is at the slot, and its words, come in any order. Caught by `loom_recorder::a_slot_that_is_written_again`.
    RecorderNoFence = "recorder_no_fence",
    /// It says that the slot holds its event before it does. Caught by `loom_recorder::a_slot_that_is_written_again`.
    RecorderFullEarly = "recorder_full_early",
    /// That the slot holds its event orders nothing. Caught by `loom_recorder::a_slot_that_is_written_again`.
    RecorderRelaxed = "recorder_relaxed",
    /// Whom it loses is not counted. Caught by `loom_recorder::an_interrupt_comes_round_to_the_slot` and
    /// `recorder::who_comes_round_to_a_slot_that_is_being_written_loses_its_event`.
    RecorderLossNotCounted = "recorder_loss_not_counted",
    /// A recorder's reader does not look at the turn again. Caught by `loom_recorder::a_slot_that_is_written_again`.
    RecorderNotLookedAgain = "recorder_not_looked_again",
}
