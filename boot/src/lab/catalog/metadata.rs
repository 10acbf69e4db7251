//! Lab 6: page metadata.

use super::{Check, Lab, Place, Point};

pub static ON_DEMAND: Lab = Lab {
    number: 6,
    name: "metadata-on-demand",
    title: "Page metadata that exists only when needed",
    minutes: 120,
    parts: &[
        Place { name: "retire", file: "kernel/mm/src/meta/mod.rs" },
        Place { name: "prune", file: "kernel/mm/src/meta/tree.rs" },
    ],
    guest: "dax.idle.*",
    devices: false,
    points: &[
        Point {
            what: "a page's metadata comes with the first reference and goes with the last",
            points: 2,
            check: Check::Host(&["lab_metadata::a_pages_metadata_goes_with_its_last_reference"]),
            hint: "Who drops the last reference of a page of 4 KiB has retire_pages take its life out of the chunk, and of a chunk without lives nothing stays.",
        },
        Point {
            what: "a large folio's metadata goes, too",
            points: 2,
            check: Check::Host(&["lab_metadata::a_large_folios_metadata_goes_too"]),
            hint: "A large folio hangs in the slot of its block: under the lock find it again, and where its size fits and its count is still zero, bury it.",
        },
        Point {
            what: "no table is left above what has gone",
            points: 2,
            check: Check::Host(&["lab_metadata::no_table_is_left_above_what_has_gone"]),
            hint: "Prune from the bottom to the top: a table none of whose slots is in use goes, its parent has one slot less in use, and may be empty by that.",
        },
        Point {
            what: "a table that others use stays",
            points: 2,
            check: Check::Host(&["lab_metadata::a_table_that_others_use_stays"]),
            hint: "A table goes only where is_bare says that none of its slots is in use: neighbours hang in the same tables, and keep them.",
        },
        Point {
            what: "who is dead is looked at again under the lock",
            points: 1,
            check: Check::Model(&[
                "loom_meta::last_put_against_making_a_large_folio_anew",
                "loom_meta::last_put_against_making_a_page_anew",
                "loom_meta::a_walk_against_its_neighbours",
            ]),
            hint: "Between your last put and the lock somebody else may bury the folio and plant another in its place: look again from the root, and bury only what has your size and a count of zero.",
        },
        Point {
            what: "an idle device has no metadata in the guest",
            points: 1,
            check: Check::Guest(&["dax.idle.takes_almost_nothing", "dax.idle.metadata_goes_with_its_last_user"]),
            hint: "On the real kernel a device that nobody uses any more keeps metadata: the line below says which test, and it is in kernel/src/ktest/dax_pages.rs.",
        },
    ],
};
