//! Labs 7 and 8: what is taken away from those who use it.

use super::{Check, Lab, Place, Point};

pub static RANGED: Lab = Lab {
    number: 7,
    name: "ranged-removal",
    title: "A ranged removal",
    minutes: 120,
    parts: &[Place { name: "unmap each", file: "kernel/mm/src/mapping.rs" }],
    guest: "dax.removal.*",
    devices: false,
    points: &[
        Point {
            what: "the range goes from everybody and nothing else does",
            points: 2,
            check: Check::Host(&["lab_removal::the_range_goes_from_everybody_and_nothing_else_does"]),
            hint: "Of a VMA only the part that maps the offsets is taken out: for_each_part answers it as part.range. What lies beside it in the same VMA stays.",
        },
        Point {
            what: "everybody who maps it is told",
            points: 1,
            check: Check::Host(&["lab_removal::everybody_who_maps_it_is_told"]),
            hint: "each hears of every part that maps the range, whether or not a page is installed there: a task that has not touched it yet is a user, too.",
        },
        Point {
            what: "one shootdown serves all address spaces",
            points: 2,
            check: Check::Host(&["stale::one_round_serves_all_address_spaces"]),
            hint: "Everything goes into the caller's one gather, which the caller finishes: a gather for each space is a shootdown for each, and that is what a ranged removal is there to save.",
        },
        Point {
            what: "what others map in between stays",
            points: 2,
            check: Check::Host(&["extents::what_others_map_in_between_stays"]),
            hint: "Parts are taken as one only where nothing else is mapped in between: Together::take_in answers whether that is so, and where it says no, the last one is taken out and the next begins.",
        },
        Point {
            what: "what lies side by side goes with its tables at once",
            points: 1,
            check: Check::Host(&["extents::vmas_side_by_side_go_with_the_tables_that_they_alone_use"]),
            hint: "VMAs side by side go as one, with the tables that they alone use, at the highest level: one look for all of them. Keep the parts together with Together before you take them out.",
        },
        Point {
            what: "a VMA that is cut meanwhile goes as a whole",
            points: 1,
            check: Check::Host(&["stale::a_mapping_that_is_cut_while_its_users_are_listed_is_unmapped_whole"]),
            hint: "The list was made without the space's lock and may be old: look again, under the lock, at what now lies in the listed ranges (vmas.for_each_part), and take that.",
        },
        Point {
            what: "devices are removed in the guest",
            points: 1,
            check: Check::Guest(&[
                "dax.removal.one_round_for_all_spaces",
                "dax.removal.work_follows_extents",
                "dax.removal.users_get_sigbus",
                "dax.removal.comes_back_with_its_contents",
            ]),
            hint: "On the real kernel a device's removal is not what it should be: the line below says which test, and it is in kernel/src/ktest/dax.rs.",
        },
    ],
};

pub static REVOKE: Lab = Lab {
    number: 8,
    name: "revoke-under-dma",
    title: "A registration is revoked under DMA",
    minutes: 120,
    parts: &[Place { name: "close", file: "kernel/mm/src/region/mod.rs" }],
    guest: "dma.iommu.*",
    devices: true,
    points: &[
        Point {
            what: "what is given back is off the lists and can be used by nobody",
            points: 1,
            check: Check::Host(&["region::a_registration_holds_its_pages_until_its_owner_gives_it_back"]),
            hint: "Close the gate, so that no use begins; give the pins back by dropping what is in self.pins; take the registration off the lists (self.mm.regions.take_off).",
        },
        Point {
            what: "a use in flight is waited for",
            points: 2,
            check: Check::Host(&["region::a_use_in_flight_is_waited_for"]),
            hint: "A closed gate lets nobody in, and who is in works on: wait_for_uses before anything is taken away.",
        },
        Point {
            what: "the device is cut off before the pages are given back",
            points: 3,
            check: Check::Host(&["region::a_device_is_cut_off_before_the_pages_are_given_back"]),
            hint: "A device has translations of its own and no gate stops it: cut_off takes them away, and it comes before the pins are given back, or a transfer in flight reaches pages that are somebody else's by then.",
        },
        Point {
            what: "who comes second waits, too",
            points: 1,
            check: Check::Host(&["region::an_owner_that_lets_go_while_it_is_revoked_comes_second"]),
            hint: "gate.close answers None to who comes second, and what is behind the gate is not given back yet: wait_released before you return, for your caller takes the pages to be free.",
        },
        Point {
            what: "it is said to be over only when it is",
            points: 1,
            check: Check::Host(&["lab_revoke::it_is_said_to_be_over_only_when_it_is"]),
            hint: "set_released is the last step of all: it tells who came second that everything is given back, so it comes after the device, the pins and the lists.",
        },
        Point {
            what: "no interleaving with a device or a removal is wrong",
            points: 1,
            check: Check::Model(&[
                "loom_region::a_device_that_is_let_in_against_a_revocation",
                "loom_region::a_registration_against_a_removal",
            ]),
            hint: "In some order of steps the pages are given back while somebody reaches them: close, wait for uses, cut off the device, give back, in this order.",
        },
        Point {
            what: "transfers of a real device are cut off in the guest",
            points: 1,
            check: Check::Guest(&[
                "dma.iommu.registered_pages_are_reached",
                "dma.iommu.rights_are_kept",
                "dma.iommu.many_registrations_by_range",
                "dma.iommu.registered_against_a_removal",
            ]),
            hint: "With an IOMMU and a DMA engine a revocation is not what it should be: the line below says which test, and it is in kernel/src/ktest/iommu.rs.",
        },
    ],
};
