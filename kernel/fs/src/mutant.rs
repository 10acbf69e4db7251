//! The deliberate faults of this package, as [`mutants`] explains them. The code asks [`Faults::has`]: a file system has
//! the fault that it is mounted with, or else the one that `FS_MUTANT` names.

mutants::mutants! {
    "FS_MUTANT";
    /// No fence between a file's new data and the journal record that makes them part of the file. Caught by
    /// `crash::every_surviving_image_recovers_to_an_allowed_state`.
    DataNotFenced = "data_not_fenced",
    /// No fence after the journal record: the operation answers before it is durable. Caught by
    /// `crash::every_surviving_image_recovers_to_an_allowed_state`.
    CommitNotFenced = "commit_not_fenced",
    /// The journal record is not written back. Caught by `crash::every_surviving_image_recovers_to_an_allowed_state`.
    CommitNotWrittenBack = "commit_not_written_back",
    /// The journal record is written before the new data are on the medium. Caught by
    /// `crash::every_surviving_image_recovers_to_an_allowed_state`.
    CommitBeforeData = "commit_before_data",
    /// Structures are changed in place before the record of the change is durable. Caught by
    /// `crash::every_surviving_image_recovers_to_an_allowed_state`.
    HomeBeforeCommit = "home_before_commit",
    /// The changes in place are not written back, and yet the journal starts anew. Caught by
    /// `crash::every_surviving_image_recovers_to_an_allowed_state`.
    HomeNotWrittenBack = "home_not_written_back",
    /// The journal starts anew without a fence after the changes in place. Caught by
    /// `crash::every_surviving_image_recovers_to_an_allowed_state`.
    CheckpointNotFenced = "checkpoint_not_fenced",
    /// Recovery does not look at a record's checksum. Caught by
    /// `crash::every_surviving_image_recovers_to_an_allowed_state`.
    ChecksumSkipped = "checksum_skipped",
    /// Recovery takes a record of an older epoch. Caught by
    /// `crash::every_surviving_image_recovers_to_an_allowed_state`.
    EpochIgnored = "epoch_ignored",
    /// A file grows over what its last block held beyond the old end. Caught by
    /// `crash::every_surviving_image_recovers_to_an_allowed_state`.
    TailNotZeroed = "tail_not_zeroed",
    /// A metadata block that is freed may be reused for data while the journal still holds changes to it. Caught by
    /// `crash::sound_recovery_of_what_the_special_cases_do`.
    FreedMetadataReused = "freed_metadata_reused",
    /// A punch in a full file system makes one of the blocks that it frees a mapping block, and writes that before the
    /// journal record is durable. Caught by `crash::sound_recovery_of_what_the_special_cases_do`.
    FreedBlockWrittenEarly = "freed_block_written_early",
    /// Recovery does not look at the list of inodes that are to be cut or freed. Caught by
    /// `crash::sound_recovery_of_what_the_special_cases_do`.
    PendingForgotten = "pending_forgotten",
    /// Blocks are freed while their pages are pinned. Caught by
    /// `layouts::truncate_waits_for_a_transient_pin_and_frees_nothing_meanwhile` and
    /// `layouts::an_orphan_pin_outlives_its_task_and_the_file_waits_for_it`.
    PinsNotWaitedFor = "pins_not_waited_for",
    /// Blocks are freed while their pages are mapped. Caught by
    /// `layouts::truncate_and_punch_end_all_access_before_they_return`.
    NotUnmapped = "not_unmapped",
    /// `fsync` writes back first and write-protects then. Caught by
    /// `sync::a_store_that_races_with_a_sync_is_written_back_or_noted`.
    ProtectedLate = "protected_late",
    /// `fsync` takes a page that is pinned for clean. Caught by `sync::a_page_that_is_pinned_stays_dirty`.
    PinnedForgotten = "pinned_forgotten",
    /// What a sync that failed was to write back is forgotten. Caught by
    /// `sync::what_a_sync_could_not_make_durable_is_for_the_next_one` and
    /// `sync::what_a_last_close_could_not_save_is_for_who_has_opened_the_file_meanwhile`.
    NotesLost = "notes_lost",
    /// Two CPUs let go of the same inode. Caught by `letting_go::of_two_who_let_go_of_a_file_one_frees_it` and
    /// `loom_gate::two_who_let_go`.
    LetGoTwice = "let_go_twice",
    /// Who lets go of an inode does not look again whether somebody has opened it. Caught by
    /// `loom_gate::one_who_lets_go_against_one_who_opens`.
    OpenedNotLookedFor = "opened_not_looked_for",
    /// Who finds that somebody has opened the inode keeps the turn to let go of it. Caught by
    /// `loom_gate::one_who_lets_go_against_one_who_opens`.
    TurnKept = "turn_kept",
    /// A fault looks whether its page is closed, and counts itself in a second step. Caught by
    /// `loom_gate::a_fault_against_who_breaks_the_layout`.
    EnteredInTwoSteps = "entered_in_two_steps",
    /// Who breaks a layout does not wait for the faults that are inside. Caught by
    /// `loom_gate::a_fault_against_who_breaks_the_layout`.
    InsideNotWaitedFor = "inside_not_waited_for",
    /// Of two thaws at once none takes itself for the last. Caught by `doors::of_two_thaws_at_once_one_is_the_last`.
    ThawsOverlap = "thaws_overlap",
    /// A change asks first whether the file system is shut down, and then whether it is frozen. Caught by
    /// `loom_freeze::a_change_against_a_freeze_that_ends_in_a_shutdown` and
    /// `shuttle:loom_freeze::a_change_against_a_freeze_that_ends_in_a_shutdown`.
    ShutdownAskedFirst = "shutdown_asked_first",
    /// A change looks whether the file system is frozen before it counts itself. Caught by
    /// `loom_freeze::a_change_against_a_freeze_and_a_thaw` and
    /// `shuttle:loom_freeze::a_change_against_a_freeze_and_a_thaw`.
    WriterCountedLate = "writer_counted_late",
    /// Nothing is frozen before a removal. Caught by
    /// `notify::before_a_removal_all_tasks_are_told_the_file_system_is_shut_down_and_every_freeze_is_lifted`.
    RemovalNotFrozen = "removal_not_frozen",
    /// What a user had frozen stays frozen when the device leaves. Caught by
    /// `notify::before_a_removal_all_tasks_are_told_the_file_system_is_shut_down_and_every_freeze_is_lifted`.
    UserFreezeStays = "user_freeze_stays",
    /// Before a removal only the current task is told. Caught by
    /// `notify::before_a_removal_all_tasks_are_told_the_file_system_is_shut_down_and_every_freeze_is_lifted`.
    OnlyCurrentTold = "only_current_told",
    /// A removal marks pages as poisoned. Caught by
    /// `notify::before_a_removal_all_tasks_are_told_the_file_system_is_shut_down_and_every_freeze_is_lifted`.
    PoisonedOnRemoval = "poisoned_on_removal",
    /// After a removal the file system goes on. Caught by
    /// `notify::before_a_removal_all_tasks_are_told_the_file_system_is_shut_down_and_every_freeze_is_lifted`.
    RemovalNotShutDown = "removal_not_shut_down",
    /// A mount is done without asking whether the device leaves. Caught by
    /// `leaving::a_mount_that_is_under_way_when_the_device_is_told_to_leave_comes_to_nothing`.
    BornUnasked = "born_unasked",
    /// An unmount lets files be opened between its look and its end. Caught by
    /// `leaving::a_file_is_open_when_an_unmount_looks_or_cannot_be_opened`.
    UnmountLetsIn = "unmount_lets_in",
    /// After a freeze that failed the file system is shut down at the end of the walk only. Caught by
    /// `leaving::after_a_freeze_that_failed_no_fault_comes_in_behind_the_walk`.
    UnfrozenWalk = "unfrozen_walk",
    /// A write keeps the right to change the file system, and so keeps a freeze out, until all of it is done. Caught by
    /// `leaving::a_freeze_waits_for_a_part_of_a_long_write`.
    WriteAtOneGo = "write_at_one_go",
    /// A read keeps the device alive until all of it is done. Caught by
    /// `leaving::a_removal_waits_for_a_part_of_a_long_read`.
    ReadAtOneGo = "read_at_one_go",
    /// Metadata in the range makes a removal a failure. Caught by
    /// `notify::metadata_is_passed_over_before_a_removal_and_shuts_down_after_a_failure`.
    MetadataEndsRemoval = "metadata_ends_removal",
    /// Whether the memory is there is asked before a copy, not after it. Caught by
    /// `gone::wherever_the_memory_leaves_nothing_answers_success_and_what_was_acknowledged_is_there`.
    ThereAskedFirst = "there_asked_first",
    /// A fence does not ask whether the memory is there. Caught by
    /// `gone::wherever_the_memory_leaves_an_fsync_answers_success_for_what_is_there`.
    FenceDoesNotAsk = "fence_does_not_ask",
    /// What tasks have stored is written back to a device that has gone. Caught by
    /// `gone::a_device_that_has_gone_is_neither_read_nor_written_and_all_tasks_are_told`.
    GoneWrittenBack = "gone_written_back",
}

/// The fault that a mounted file system has, if any.
pub type Faults = mutants::Choice<Mutant>;
