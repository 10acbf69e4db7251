//! The deliberate faults of this package, as [`mutants`] explains them; `IOMMU_MUTANT` names one.

mutants::mutants! {
    "IOMMU_MUTANT";
    /// A revocation invalidates nothing. Caught by `domain::after_a_revocation_a_device_reaches_nothing` and
    /// `properties::a_device_reaches_exactly_what_is_mapped` and
    /// `loom_domain::a_revocation_against_a_device` and `shuttle:loom_domain::a_revocation_against_a_device`.
    NoInvalidation = "no_invalidation",
    /// The unit is told first, and the entries are cleared then. Caught by
    /// `domain::tables_are_freed_after_the_wait` and
    /// `loom_domain::a_revocation_against_a_device` and `shuttle:loom_domain::a_revocation_against_a_device`.
    InvalidatedFirst = "invalidated_first",
    /// The range of an invalidation is rounded down. Caught by `domain::after_a_revocation_a_device_reaches_nothing` and
    /// `properties::a_device_reaches_exactly_what_is_mapped`.
    RangeTooShort = "range_too_short",
    /// An invalidation names another domain. Caught by `domain::after_a_revocation_a_device_reaches_nothing` and
    /// `properties::a_device_reaches_exactly_what_is_mapped`.
    WrongDomain = "wrong_domain",
    /// Cleared entries are not written back. Caught by `domain::after_a_revocation_a_device_reaches_nothing`.
    NotWrittenBack = "not_written_back",
    /// Tables are freed before the unit has forgotten them. Caught by `domain::tables_are_freed_after_the_wait` and
    /// `loom_domain::a_table_is_freed_after_every_walk_through_it` and
    /// `shuttle:loom_domain::a_table_is_freed_after_every_walk_through_it`.
    FreedBeforeWait = "freed_before_wait",
    /// Addresses are used again before the unit has forgotten them. Caught by
    /// `domain::addresses_are_used_again_after_the_wait`.
    AddressEarly = "address_early",
    /// Where a table was unlinked others map again before the unit has forgotten it. Caught by
    /// `domain::a_mapping_made_during_a_revocation_is_reached_at_once` and
    /// `loom_domain::a_mapping_against_a_revocation_beside_it` and
    /// `shuttle:loom_domain::a_mapping_against_a_revocation_beside_it`.
    SpanNotBarred = "span_not_barred",
    /// The unit is told of the block alone where a table was unlinked that spans more. Caught by
    /// `domain::tables_that_others_have_left_go_with_the_one_above_them`.
    UnlinkedNotTold = "unlinked_not_told",
    /// A mapping takes the place of an empty table that the unit may remember. Caught by
    /// `domain::a_large_mapping_where_an_empty_table_was_left_is_reached`.
    LeftTablesStay = "left_tables_stay",
    /// A table is unlinked although others have entries in it. Caught by
    /// `domain::neighbours_in_one_table_are_left_alone`.
    SharedTableUnlinked = "shared_table_unlinked",
    /// Who comes second to revoke a mapping returns at once. Caught by `domain::who_comes_second_waits_too` and
    /// `loom_domain::two_revocations_of_one_mapping` and `shuttle:loom_domain::two_revocations_of_one_mapping`.
    SecondDoesNotWait = "second_does_not_wait",
    /// Who closes a domain does not wait for those who are revoking. Caught by
    /// `loom_domain::a_revocation_against_the_end_of_the_domain` and
    /// `shuttle:loom_domain::a_revocation_against_the_end_of_the_domain`.
    CloseDoesNotWait = "close_does_not_wait",
    /// Who had a mapping that is over revokes the next one at its address. Caught by
    /// `domain::addresses_are_used_again_after_the_wait`.
    StaleHandle = "stale_handle",
    /// What the unit did not say that it has forgotten is freed. Caught by
    /// `domain::what_the_unit_did_not_forget_is_never_used_again`.
    LostFreed = "lost_freed",
    /// A device that leaves its domain is forgotten by the context cache alone. Caught by
    /// `contexts::a_device_that_has_left_reaches_nothing` and
    /// `loom_domain::a_device_that_leaves_against_its_transfers` and
    /// `shuttle:loom_domain::a_device_that_leaves_against_its_transfers`.
    ContextOnly = "context_only",
    /// A unit that remembers that nothing is mapped is not told of a mapping. Caught by
    /// `domain::a_unit_that_remembers_that_nothing_is_there_is_told_of_a_mapping`.
    MapNotTold = "map_not_told",
    /// A leaf orders nothing. Caught by `loom_domain::a_mapping_against_a_device`.
    RelaxedLeaf = "relaxed_leaf",
    /// Every mapping may be read and written. Caught by `domain::two_owners_of_one_page_have_each_their_rights` and
    /// `properties::a_device_reaches_exactly_what_is_mapped`.
    RightsIgnored = "rights_ignored",
    /// The interrupt window is mapped. Caught by `domain::neither_address_zero_nor_the_interrupt_window_is_mapped`.
    WindowHandedOut = "window_handed_out",
    /// Leaves of 1 GiB are used whatever the unit can do. Caught by `domain::leaves_are_as_large_as_the_unit_allows`.
    LeafTooLarge = "leaf_too_large",
    /// A device that says its transfer has ended well is believed, whatever was counted meanwhile. Caught by
    /// `iommu::completion::tests::whatever_was_counted_meanwhile_stands_against_it`.
    CompletionBelieved = "completion_believed",
    /// A unit's fault status is read once, before its records are taken. Caught by
    /// `iommu::records::tests::whenever_another_fault_comes_it_is_told_or_said_to_be_lost`.
    StatusReadOnce = "status_read_once",
}
