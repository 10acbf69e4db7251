//! The deliberate faults of this package, as [`mutants`] explains them; `IOMMU_MUTANT` names one.

mutants::mutants! {
    "IOMMU_MUTANT";
    /// A revocation invalidates nothing. Caught by `domain::after_a_revocation_a_device_reaches_nothing`.
    NoInvalidation = "no_invalidation",
    /// The range of an invalidation is rounded down. Caught by `domain::after_a_revocation_a_device_reaches_nothing`.
    RangeTooShort = "range_too_short",
    /// Tables are freed before the unit has forgotten them. Caught by `domain::tables_are_freed_after_the_wait`.
    FreedBeforeWait = "freed_before_wait",
    /// A device that leaves its domain is forgotten by the context cache alone. Caught by
    /// `contexts::a_device_that_has_left_reaches_nothing`.
    ContextOnly = "context_only",
    /// An invalidation names another domain. Caught by `domain::after_a_revocation_a_device_reaches_nothing`.
    WrongDomain = "wrong_domain",
    /// Addresses are used again before the unit has forgotten them. Caught by
    /// `domain::addresses_are_used_again_after_the_wait`.
    AddressEarly = "address_early",
    /// Who comes second to revoke a mapping returns at once. Caught by `domain::who_comes_second_waits_too`.
    SecondDoesNotWait = "second_does_not_wait",
    /// The interrupt window is mapped. Caught by `domain::neither_address_zero_nor_the_interrupt_window_is_mapped`.
    WindowHandedOut = "window_handed_out",
    /// Leaves of 1 GiB are used whatever the unit can do. Caught by `domain::leaves_are_as_large_as_the_unit_allows`.
    LeafTooLarge = "leaf_too_large",
}
