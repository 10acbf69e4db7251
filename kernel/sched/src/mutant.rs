//! Deliberate faults, so that the tests can be tested (as `mm::mutant` does for its package).
//!
//! The code asks [`Mutant::is_on`] at the one place where the fault would be. Without the feature `mutants` the
//! answer is the constant `false` and nothing of it is compiled. With it, the fault is read once from the
//! environment variable `SCHED_MUTANT`, so that one build of the tests runs against every fault.

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
}

impl Mutant {
    /// Is this fault built in?
    #[cfg(feature = "mutants")]
    pub fn is_on(self) -> bool {
        chosen() == Some(self)
    }

    /// Is this fault built in? Never, here.
    #[cfg(not(feature = "mutants"))]
    #[inline(always)]
    pub const fn is_on(self) -> bool {
        let _ = self;
        false
    }
}

/// The fault named by `SCHED_MUTANT`.
///
/// # Panics
/// Where the name is none of ours: a run that tests nothing must not pass for one that does.
#[cfg(feature = "mutants")]
fn chosen() -> Option<Mutant> {
    static CHOSEN: std::sync::OnceLock<Option<Mutant>> = std::sync::OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let name = std::env::var("SCHED_MUTANT").ok().filter(|name| !name.is_empty())?;
        let known = Mutant::ALL.iter().copied().find(|mutant| mutant.name() == name);
        Some(known.unwrap_or_else(|| panic!("SCHED_MUTANT={name} names no fault of sched::mutant")))
    })
}
