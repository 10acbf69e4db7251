//! Lab 5: pins.

use super::{Check, Lab, Place, Point};

pub static LOOK_AGAIN: Lab = Lab {
    number: 5,
    name: "look-again",
    title: "gup-fast looks again",
    minutes: 90,
    parts: &[Place { name: "look again", file: "kernel/mm/src/gup/recheck.rs" }],
    guest: "mm.gup.*",
    devices: false,
    points: &[
        Point {
            what: "a page that stays is pinned once",
            points: 1,
            check: Check::Host(&["lab_look_again::a_page_that_stays_is_pinned_once"]),
            hint: "Where nothing has changed the answer is Kept, with nr references taken and not one more. Where none could be taken it is Refused.",
        },
        Point {
            what: "an entry that was cleared before the reference is noticed",
            points: 1,
            check: Check::Host(&["lab_look_again::an_entry_that_goes_before_the_reference_is_noticed"]),
            hint: "The entry is looked at again: what the walk has read may be gone by the time that the reference is taken.",
        },
        Point {
            what: "an entry that was cleared behind the reference is noticed",
            points: 2,
            check: Check::Host(&["lab_look_again::an_entry_that_goes_behind_the_reference_is_noticed"]),
            hint: "First the reference, then the look: what was looked at before the reference was taken proves nothing about the moment after it.",
        },
        Point {
            what: "a page table that was unlinked is noticed",
            points: 2,
            check: Check::Host(&["lab_look_again::a_table_that_is_unlinked_is_noticed"]),
            hint: "The leaf alone is not enough: a table is unlinked as a whole, and its own entries stay as they were. Look at the entry above, too, where there is one.",
        },
        Point {
            what: "a reference that is not kept is given back",
            points: 1,
            check: Check::Host(&["lab_look_again::a_reference_that_is_not_kept_is_given_back"]),
            hint: "Refused says that there is no reference, and nobody gives one back. Where one was taken and something has changed the answer is Stale.",
        },
        Point {
            what: "accessed and dirty bits are no change",
            points: 1,
            check: Check::Host(&["lab_look_again::accessed_and_dirty_bits_are_no_change"]),
            hint: "The CPU sets accessed and dirty at any moment, and the translation stays what it was: are_unchanged and still_leads_there know that where AT_ONCE is passed on, a comparison of bits does not.",
        },
        Point {
            what: "no interleaving of pins with an unmap is wrong",
            points: 1,
            check: Check::Model(&[
                "loom_gup::gup_fast_against_zap",
                "loom_gup::gup_fast_against_freeing_the_table_page",
            ]),
            hint: "Some order of steps of the walk and the unmap gives a pin through an entry that is known to be gone. Draw the two columns at the head of gup/mod.rs, and put your steps into the left one.",
        },
        Point {
            what: "the kernel's own tests of pins pass in the guest",
            points: 1,
            check: Check::Guest(&[
                "mm.gup.pins_are_counted_exactly",
                "mm.gup.huge_leaves_are_one_range",
                "mm.gup.loaded_space_goes_fast",
                "mm.gup.a_pin_outlives_its_mapping",
                "mm.gup.every_cpu_pins_one_page",
            ]),
            hint: "On the real page table, with four CPUs, pins are not what they should be: the line below says which test, and it is in kernel/src/ktest/mm_gup.rs.",
        },
    ],
};
