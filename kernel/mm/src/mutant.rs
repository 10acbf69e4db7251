//! The deliberate faults of this package, as [`mutants`] explains them; `MM_MUTANT` names one.

mutants::mutants! {
    "MM_MUTANT";
    /// No CPU is interrupted after a zap. Caught by `stale::no_cpu_reaches_a_page_after_its_unmap` and
    /// `loom_shootdown::a_zap_against_a_cpu_that_uses_the_page` and
    /// `shuttle:loom_shootdown::a_zap_against_a_cpu_that_uses_the_page`.
    NoShootdown = "no_shootdown",
    /// An unmap shoots down first and clears the entries then, and nobody flushes after that. Caught by
    /// `stale::the_entries_are_cleared_before_any_cpu_flushes`.
    FlushBeforeClear = "flush_before_clear",
    /// Who cleans a second range in a space interrupts only the CPUs that had the space loaded at the first. Caught by
    /// `clean::a_cpu_that_has_come_between_two_ranges_is_told_too`.
    EarlierTargets = "earlier_targets",
    /// Who takes a page out of all page tables and finds it taken out by somebody else does not wait for the other's
    /// shootdown. Caught by `stale::a_page_that_somebody_else_has_taken_out_is_waited_for`.
    OpenRoundLeft = "open_round_left",
    /// The sender does not flush its own CPU. Caught by `stale::every_page_of_a_range_is_flushed` and
    /// `loom_shootdown::two_shootdowns_at_once` and
    /// `shuttle:loom_shootdown::two_shootdowns_at_once`.
    NoLocalFlush = "no_local_flush",
    /// The handler acknowledges first and flushes then. Caught by `stale::the_acknowledgement_comes_after_the_flush`
    /// and `loom_shootdown::a_table_page_is_freed_after_every_walk_through_it` and
    /// `shuttle:loom_shootdown::a_table_page_is_freed_after_every_walk_through_it`.
    AckBeforeFlush = "ack_before_flush",
    /// The acknowledgement orders nothing. Caught by `loom_shootdown::a_zap_against_a_cpu_that_uses_the_page`.
    RelaxedAck = "relaxed_ack",
    /// The handler flushes first and looks then which requests it has answered. Caught by
    /// `stale::a_request_that_comes_during_the_flush_is_not_acknowledged_with_it` and
    /// `loom_shootdown::two_rounds_in_flight_against_one_receiver` and
    /// `shuttle:loom_shootdown::two_rounds_in_flight_against_one_receiver`.
    RequestReadLate = "request_read_late",
    /// gup-fast does not read the leaf again once it has its reference. Caught by
    /// `gup::an_entry_that_is_zapped_before_the_recheck_is_not_pinned` and `loom_gup::gup_fast_against_zap` and
    /// `gup::a_run_ends_before_an_entry_that_is_zapped_meanwhile` and
    /// `gup::small_leaves_over_one_large_folio_are_pinned_together_and_checked_together` and
    /// `shuttle:loom_gup::gup_fast_against_zap`.
    NoEntryRecheck = "no_entry_recheck",
    /// gup-fast does not read the entry above the leaf again. Caught by
    /// `gup::a_page_table_that_is_unlinked_before_the_recheck_is_not_pinned_through` and
    /// `loom_gup::gup_fast_against_freeing_the_table_page` and
    /// `gup::a_run_through_a_table_that_is_unlinked_meanwhile_is_given_back` and
    /// `loom_gup::gup_fast_of_a_run_against_freeing_the_table_page` and
    /// `shuttle:loom_gup::gup_fast_against_freeing_the_table_page`.
    NoUpperRecheck = "no_upper_recheck",
    /// gup-fast walks with interrupts on. Caught by `gup::nothing_that_a_walk_may_touch_is_freed_during_it`.
    GupIrqsOn = "gup_irqs_on",
    /// gup-fast keeps interrupts off for all of a request. Caught by
    /// `gup_bounds::interrupts_are_off_for_a_bounded_number_of_steps` and
    /// `gup_bounds::a_shootdown_in_the_middle_of_a_large_request_is_answered_before_its_end`.
    IrqsOffForAll = "irqs_off_for_all",
    /// A listing of live folios holds the store's lock for all of a range. Caught by
    /// `mm::meta::tests::a_listing_holds_the_lock_for_a_bounded_number_of_looks`.
    ListedAtOnce = "listed_at_once",
    /// A speculative reference may be the first one. Caught by `loom_meta::speculative_get_against_last_put` and
    /// `loom_gup::gup_fast_against_zap` and
    /// `shuttle:loom_meta::speculative_get_against_last_put`.
    ReferenceFromZero = "reference_from_zero",
    /// Dropping a reference orders nothing. Caught by `loom_meta::pin_against_drain` and
    /// `loom_gup::gup_fast_against_zap`.
    RelaxedPut = "relaxed_put",
    /// Who has dropped a reference of a page looks at its count again. Caught by
    /// `loom_meta::a_put_looks_at_nothing_behind_it` and `loom_meta::two_leave_and_one_comes`.
    PutLookedAtAgain = "put_looked_at_again",
    /// The one who drops the last reference frees the metadata without looking again under the lock. Caught by
    /// `loom_meta::last_put_against_making_a_large_folio_anew` and
    /// `shuttle:loom_meta::last_put_against_making_a_large_folio_anew`.
    RetireNoRecheck = "retire_no_recheck",
    /// An unlinked table page is freed before the shootdown is acknowledged. Caught by
    /// `stale::table_pages_are_freed_after_every_cpu_has_forgotten_them` and
    /// `loom_gup::gup_fast_against_freeing_the_table_page` and
    /// `shuttle:loom_gup::gup_fast_against_freeing_the_table_page`.
    TableFreedBeforeSync = "table_freed_before_sync",
    /// The mapping's reference is dropped before the shootdown is acknowledged. Caught by
    /// `gup::a_page_keeps_the_reference_of_its_mapping_until_every_cpu_has_answered`.
    PageFreedBeforeSync = "page_freed_before_sync",
    /// The metadata of a block that a page table mapped as a whole goes although somebody else uses a page of it. Caught
    /// by `gup::a_pin_outlives_the_unmap_of_its_whole_block`.
    BlockNotLookedAt = "block_not_looked_at",
    /// Who gives back leaves by the run buries a folio that somebody else still holds. Caught by
    /// `gup::a_pin_outlives_the_unmap_of_many_large_leaves` and `loom_meta::leaves_against_making_and_leaving`.
    LeafPutBuries = "leaf_put_buries",
    /// VMAs are taken as one also where something else is mapped in between. Caught by
    /// `extents::what_others_map_in_between_stays`.
    JoinedOverOthers = "joined_over_others",
    /// A range that does not end on a leaf's boundary is rounded down to it. Caught by
    /// `stale::every_page_of_a_range_is_flushed`.
    RangeRoundedDown = "range_rounded_down",
    /// The CPU with the highest number is left out of a round. Caught by `stale::no_cpu_reaches_a_page_after_its_unmap`
    /// and `loom_shootdown::a_zap_against_a_cpu_that_uses_the_page` and
    /// `shuttle:loom_shootdown::a_zap_against_a_cpu_that_uses_the_page`.
    CpuMissing = "cpu_missing",
    /// An idle CPU uses its address space again without catching up. Caught by
    /// `stale::an_idle_cpu_is_left_alone_and_catches_up` and
    /// `loom_shootdown::a_shootdown_against_an_idle_cpu_that_wakes` and
    /// `shuttle:loom_shootdown::a_shootdown_against_an_idle_cpu_that_wakes`.
    LazyNotCaughtUp = "lazy_not_caught_up",
    /// An idle CPU is not interrupted although a table page is freed. Caught by
    /// `stale::an_idle_cpu_must_answer_when_table_pages_are_freed` and
    /// `loom_shootdown::a_table_page_is_freed_after_an_idle_cpu_has_forgotten_it` and
    /// `shuttle:loom_shootdown::a_table_page_is_freed_after_an_idle_cpu_has_forgotten_it`.
    LazySkippedForTables = "lazy_skipped_for_tables",
    /// A CPU that loads an address space enters itself into the set only afterwards. Caught by
    /// `stale::a_cpu_that_loads_the_space_during_a_round_takes_part_in_it` and
    /// `loom_shootdown::a_shootdown_against_a_cpu_that_loads_the_space` and
    /// `shuttle:loom_shootdown::a_shootdown_against_a_cpu_that_loads_the_space`.
    SwitchEntersLate = "switch_enters_late",
    /// A CPU that loads an address space passes for idle until it has done so. Caught by
    /// `stale::an_idle_cpu_that_loads_the_space_does_not_pass_for_idle` and
    /// `loom_shootdown::a_shootdown_against_an_idle_cpu_that_loads_the_space` and
    /// `shuttle:loom_shootdown::a_shootdown_against_an_idle_cpu_that_loads_the_space`.
    SwitchStaysLazy = "switch_stays_lazy",
    /// Splitting a huge leaf to remove a part of it flushes nothing. Caught by
    /// `leaves::a_part_of_a_huge_leaf_goes_and_the_rest_stays` and `properties::the_same_with_smaller_leaves`.
    SplitNoFlush = "split_no_flush",
    /// A change of rights flushes nothing. Caught by `stale::a_right_that_was_taken_away_cannot_be_used` and
    /// `properties::page_tables_metadata_and_tlbs_agree_with_the_model`.
    ProtectNoFlush = "protect_no_flush",
    /// Pages are cleaned without a flush. Caught by `clean::a_page_that_was_cleaned_is_stored_to_after_a_fault_only`.
    CleanNoFlush = "clean_no_flush",
    /// A receiver that is further behind than the ring remembers flushes only the latest range. Caught by
    /// `stale::a_cpu_that_missed_more_rounds_than_the_ring_remembers_forgets_everything` and
    /// `loom_shootdown::more_rounds_than_the_ring_remembers_against_a_cpu_that_catches_up` and
    /// `shuttle:loom_shootdown::more_rounds_than_the_ring_remembers_against_a_cpu_that_catches_up`.
    RingOverflowIgnored = "ring_overflow_ignored",
    /// An unpin takes off two pins. Caught by `gup_refused::every_pin_is_given_back_once`.
    UnpinTwice = "unpin_twice",
    /// `start + len` is added without a check. Caught by `gup_refused::bad_ranges_are_clear_errors_on_every_path`.
    WrappedRange = "wrapped_range",
    /// gup-fast pins for writing what may only be read. Caught by
    /// `gup_refused::a_read_only_mapping_is_not_pinned_for_writing`.
    WriteThroughReadOnly = "write_through_read_only",
    /// A failure after partial success is reported in place of the count. Caught by
    /// `gup::an_error_after_a_part_gives_the_part` and
    /// `properties::page_tables_metadata_and_tlbs_agree_with_the_model`.
    PartialSuccessLost = "partial_success_lost",
    /// Metadata is freed, and a CPU that has looked it up last goes on using it. Caught by
    /// `loom_gup::gup_fast_after_the_metadata_of_pages_was_made_anew` and
    /// `loom_gup::gup_fast_after_the_metadata_of_a_folio_was_made_anew` and
    /// `shuttle:loom_gup::gup_fast_after_the_metadata_of_a_folio_was_made_anew`.
    RecentNotEmptied = "recent_not_emptied",
    /// What a CPU has looked up last serves for every block. Caught by
    /// `gup_paths::pages_of_two_blocks_in_turn_are_each_found`.
    RecentOfAnyBlock = "recent_of_any_block",
    /// Of an area that was cut in two while a removal listed who maps the device, only one part is unmapped. Caught by
    /// `stale::a_mapping_that_is_cut_while_its_users_are_listed_is_unmapped_whole`.
    CutAreaMissed = "cut_area_missed",
    /// Promoting a table to a huge leaf flushes one address of its span. Caught by
    /// `leaves::what_promotion_replaced_is_forgotten`.
    PromoteFlushesOnePage = "promote_flushes_one_page",
    /// A request for all pages or none that fails keeps those it had pinned. Caught by
    /// `region::a_long_term_request_gives_back_everything_where_it_meets_a_file_system` and
    /// `pins::memory_that_runs_out_for_the_list_leaves_nothing_pinned`.
    PartKept = "part_kept",
    /// The sum of what an owner has pinned and what it wants wraps. Caught by
    /// `mm::account::tests::a_limit_holds_for_sums_that_would_wrap_too`.
    LimitWraps = "limit_wraps",
    /// A use of a registration does not look whether it was closed meanwhile. Caught by
    /// `loom_region::a_use_against_a_revocation` and `loom_region::two_uses_against_a_revocation` and
    /// `shuttle:loom_region::a_use_against_a_revocation`.
    UseNotRechecked = "use_not_rechecked",
    /// The end of a use orders nothing. Caught by `loom_region::a_use_against_a_revocation` and
    /// `loom_region::two_uses_against_a_revocation`.
    RelaxedUseEnd = "relaxed_use_end",
    /// A revocation does not wait for uses in flight. Caught by `loom_region::a_use_against_a_revocation` and
    /// `region::a_use_in_flight_is_waited_for` and
    /// `shuttle:loom_region::a_use_against_a_revocation`.
    RevokeDoesNotWait = "revoke_does_not_wait",
    /// Who comes second to end a registration returns before its pages are given back. Caught by
    /// `loom_region::the_owner_against_the_kernel` and `region::an_owner_that_lets_go_while_it_is_revoked_comes_second` and
    /// `shuttle:loom_region::the_owner_against_the_kernel`.
    SecondCloserDoesNotWait = "second_closer_does_not_wait",
    /// The pages of a registration are given back before its device is cut off. Caught by
    /// `region::a_device_is_cut_off_before_the_pages_are_given_back` and
    /// `loom_region::a_device_that_is_let_in_against_a_revocation` and
    /// `shuttle:loom_region::a_device_that_is_let_in_against_a_revocation`.
    DeviceLeftIn = "device_left_in",
    /// Who lets a device in is no use of the registration any more when it puts the device in its place. Caught by
    /// `loom_region::a_device_that_is_let_in_against_a_revocation` and
    /// `shuttle:loom_region::a_device_that_is_let_in_against_a_revocation`.
    DeviceAdmittedLate = "device_admitted_late",
    /// A registration does not look, once it is on the list, whether its device is being removed. Caught by
    /// `region::a_registration_that_a_removal_could_not_ask_for_is_refused` and
    /// `loom_region::a_registration_against_a_removal` and
    /// `shuttle:loom_region::a_registration_against_a_removal`.
    RegistrationNotRechecked = "registration_not_rechecked",
    /// A registration is revoked at once, without a grace period. Caught by
    /// `region::an_owner_that_does_nothing_has_its_grace_period_and_no_more`.
    NoGrace = "no_grace",
    /// A lost frame for which there is no slot is dropped. Caught by
    /// `losses::what_is_taken_covers_what_was_noted_and_no_more_than_it_must` and
    /// `loom_losses::two_handlers_without_a_slot_against_the_taker`.
    LossDropped = "loss_dropped",
    /// Of lost frames in two blocks only the first block is marked. Caught by
    /// `losses::what_is_taken_covers_what_was_noted_and_no_more_than_it_must`.
    LossFirstBlockOnly = "loss_first_block_only",
    /// A handler makes a row of lost frames longer by a plain store. Caught by
    /// `loom_losses::two_handlers_make_one_row_longer_against_the_taker`.
    LossGrownByStore = "loss_grown_by_store",
    /// A handler looks whether a slot is free and stores then. Caught by
    /// `loom_losses::two_handlers_and_two_slots_against_the_taker`.
    LossClaimedByStore = "loss_claimed_by_store",
    /// A slot is read, and emptied by a store. Caught by
    /// `loom_losses::two_handlers_make_one_row_longer_against_the_taker` and
    /// `loom_losses::a_handler_notes_twice_against_the_taker`.
    LossTakenByStore = "loss_taken_by_store",
    /// A note of lost frames orders nothing. Caught by `loom_losses::a_handler_notes_twice_against_the_taker`.
    LossRelaxed = "loss_relaxed",
    /// A handler says that some block is marked before it marks one. Caught by
    /// `loom_losses::a_handler_without_a_slot_against_the_taker`.
    LossFlagBeforeBlock = "loss_flag_before_block",
    /// A handler says that some block is marked by a plain store. Caught by
    /// `loom_losses::two_handlers_without_a_slot_against_the_taker`.
    LossFlagStored = "loss_flag_stored",
    /// Address 0 can be mapped. Caught by `leaves::address_zero_is_never_mapped`.
    MapsAddressZero = "maps_address_zero",
    /// A mapping that promises leaves of one size is cut anywhere. Caught by
    /// `leaves::a_mapping_that_promises_one_leaf_size_is_cut_between_its_leaves`.
    LeavesAreCut = "leaves_are_cut",
}
