//! Labs 1 to 4: page tables and shootdown.

use super::{Check, Lab, Place, Point};

pub static WALK_BY_HAND: Lab = Lab {
    number: 1,
    name: "walk-by-hand",
    title: "A page table, read by hand",
    minutes: 45,
    parts: &[],
    guest: "",
    devices: false,
    points: &[
        Point {
            what: "a page of 4 KiB is found",
            points: 2,
            check: Check::Answers("small.physical small.size"),
            hint: "Four entries lead to a page of 4 KiB: bits 47 to 39 of the address number the first, 38 to 30, 29 to 21 and 20 to 12 the others. The low 12 bits of the address are added to bits 12 to 51 of the last entry; bit 63 and the low 12 bits of an entry are no address.",
        },
        Point {
            what: "a page of 2 MiB is found",
            points: 2,
            check: Check::Answers("middle.physical middle.size"),
            hint: "An entry of level 2 with bit 7 set is a leaf: the walk ends there, and the low 21 bits of the address are the offset in the page, not 12.",
        },
        Point {
            what: "a page of 1 GiB is found",
            points: 2,
            check: Check::Answers("large.physical large.size"),
            hint: "An entry of level 3 with bit 7 set is a leaf: the walk ends there, and the low 30 bits of the address are the offset in the page, not 12.",
        },
        Point {
            what: "addresses that lead nowhere are known",
            points: 2,
            check: Check::Answers("gap.level hole.level"),
            hint: "The walk ends at the first entry with bit 0 clear, and an entry that is not in the dump is zero. Levels are counted from the root, which is 4, down to 1: there is no level 0.",
        },
        Point {
            what: "what may be stored to is known",
            points: 1,
            check: Check::Answers("small.store middle.store large.store locked.store"),
            hint: "A store needs bit 1 in every entry on the way, the leaf among them: who looks at the upper ones alone finds everything writable.",
        },
        Point {
            what: "a page that may only be read is found",
            points: 1,
            check: Check::Answers("locked.physical locked.size"),
            hint: "It is found like any other page of 4 KiB: rights are bits of the entry beside the address.",
        },
    ],
};

pub static WAIT: Lab = Lab {
    number: 4,
    name: "wait",
    title: "The shootdown's wait",
    minutes: 90,
    parts: &[Place { name: "the wait", file: "kernel/mm/src/shootdown.rs" }],
    guest: "mm.tlb.*",
    devices: false,
    points: &[
        Point {
            what: "two CPUs that shoot at each other both get through",
            points: 1,
            check: Check::Host(&["lab_wait::two_cpus_that_shoot_at_each_other_both_get_through"]),
            hint: "Call self.machine.relax() in each turn of the wait: it lets in what waits for this CPU, and gives the others their turn. Without it two that wait for each other wait for ever.",
        },
        Point {
            what: "a CPU that has not answered is waited for",
            points: 2,
            check: Check::Host(&["lab_wait::a_cpu_that_has_not_answered_is_waited_for"]),
            hint: "When wait_for_all returns, the caller frees the page: so it waits until each CPU's ack says that it has flushed, and the request alone says nothing.",
        },
        Point {
            what: "every CPU is waited for",
            points: 2,
            check: Check::Host(&["lab_wait::every_cpu_is_waited_for"]),
            hint: "The answer of one CPU says nothing of the others: go through all of self.waiting, and wait for each.",
        },
        Point {
            what: "a later answer is an answer, too",
            points: 1,
            check: Check::Host(&["lab_wait::a_later_answer_is_an_answer_too"]),
            hint: "Requests that meet are answered by one run of the handler, so ack may jump over your number: wait until it is at least that, not until it is equal.",
        },
        Point {
            what: "nobody waits for what others ask later",
            points: 1,
            check: Check::Host(&["lab_wait::nobody_waits_for_what_others_ask_later"]),
            hint: "request grows with every round of anybody: read it once, before you wait. Who reads it anew in each turn waits for rounds that are not its own, and under load for ever.",
        },
        Point {
            what: "what the other CPU did before its answer comes before what the sender does next",
            points: 2,
            check: Check::Loom(&[
                "loom_shootdown::a_zap_against_a_cpu_that_uses_the_page",
                "loom_shootdown::two_shootdowns_at_once",
            ]),
            hint: "The load that sees the answer has to be Acquire: it pairs with the Release store of ack in handle_ipi. With Relaxed the page is freed while the other CPU's last use of it is still on its way.",
        },
        Point {
            what: "the kernel's own tests of the TLB pass in the guest",
            points: 1,
            check: Check::Guest(&[
                "mm.tlb.no_read_after_unmap_4k",
                "mm.tlb.interrupts_off_hold_it_up",
                "mm.tlb.idle_cpus_are_left_alone",
                "mm.tlb.switching_cpus_see_no_old_page",
            ]),
            hint: "On four CPUs with real TLBs a shootdown is not what it should be: the line below says which test, and it is in kernel/src/ktest/mm_tlb.rs.",
        },
    ],
};

pub static WALK: Lab = Lab {
    number: 2,
    name: "walk",
    title: "The walk",
    minutes: 60,
    parts: &[Place { name: "walk", file: "kernel/mm/src/table.rs" }],
    guest: "mm.map.*",
    devices: false,
    points: &[
        Point {
            what: "a small page is found",
            points: 2,
            check: Check::Host(&["lab_walk::a_small_page_is_found"]),
            hint: "Begin at self.tlb.root() with the highest level, take the entry that va.index(level) numbers, and go down a level with each table, to level 1.",
        },
        Point {
            what: "addresses far apart lead to pages of their own",
            points: 1,
            check: Check::Host(&["lab_walk::addresses_far_apart_lead_to_pages_of_their_own"]),
            hint: "Each level has bits of the address of its own: va.index is asked anew with the level that the walk is at.",
        },
        Point {
            what: "large leaves are found at their level",
            points: 3,
            check: Check::Host(&["lab_walk::large_leaves_are_found_at_their_level"]),
            hint: "A leaf may be an entry of level 3 (1 GiB) or 2 (2 MiB): entry.is_leaf(level) says so, the walk ends there, and the size is that of the level.",
        },
        Point {
            what: "what is not mapped is not found",
            points: 2,
            check: Check::Host(&["lab_walk::what_is_not_mapped_is_not_found"]),
            hint: "An entry that is not present leads nowhere, on level 1 as on the others: the answer is None, whatever else is in it.",
        },
        Point {
            what: "machines with five levels are walked, too",
            points: 1,
            check: Check::Host(&["lab_walk::five_levels_are_walked_too"]),
            hint: "How many levels there are is the machine's business: ask self.mm.machine.levels().",
        },
        Point {
            what: "the kernel's own tests of mappings pass in the guest",
            points: 1,
            check: Check::Guest(&[
                "mm.map.leaf_4k_reaches_its_frame",
                "mm.map.leaf_2m_reaches_its_frames",
                "mm.map.holes_stay_holes",
                "mm.map.a_part_of_a_2m_leaf_goes",
            ]),
            hint: "On the real page table the walk finds something else: the line below says which test, and it is in kernel/src/ktest/mm_map.rs.",
        },
    ],
};

pub static INSTALL_AND_ZAP: Lab = Lab {
    number: 3,
    name: "install-and-zap",
    title: "Install and zap, in the right order",
    minutes: 120,
    parts: &[
        Place { name: "clear", file: "kernel/mm/src/table.rs" },
        Place { name: "install", file: "kernel/mm/src/table.rs" },
        Place { name: "zap", file: "kernel/mm/src/table.rs" },
    ],
    guest: "mm.*",
    devices: false,
    points: &[
        Point {
            what: "what is mapped is reached, and what is unmapped is not",
            points: 1,
            check: Check::Host(&["lab_install::what_is_mapped_is_reached_and_what_is_unmapped_is_not"]),
            hint: "install puts Entry::leaf into the slot of its level's table, and zap visits the range, which clears each leaf.",
        },
        Point {
            what: "who comes second leaves the first one's entry as it is",
            points: 2,
            check: Check::Host(&["install_race::who_comes_second_leaves_the_leaf_as_it_is"]),
            hint: "Two CPUs may serve a fault at the same place: the slot changes by compare-and-swap from zero, and who loses answers Occupied. A look and then a store writes over what came in between.",
        },
        Point {
            what: "a table that stands in the way is told from a leaf",
            points: 1,
            check: Check::Host(&["install_race::a_table_that_stands_where_a_huge_leaf_was_to_go_is_made_use_of"]),
            hint: "Where a large leaf was to go and a table stands the answer is TableInTheWay: the caller comes again with a smaller leaf. Occupied is for a leaf.",
        },
        Point {
            what: "no CPU reaches a page after its unmap",
            points: 2,
            check: Check::Host(&["stale::no_cpu_reaches_a_page_after_its_unmap"]),
            hint: "What was cleared is still in the TLBs: note it for the flush (self.flush in clear), and issue what was noted (self.issue in zap).",
        },
        Point {
            what: "the entries are cleared before any CPU flushes",
            points: 1,
            check: Check::Host(&["stale::the_entries_are_cleared_before_any_cpu_flushes"]),
            hint: "Clear first, then issue: a CPU that flushes before the entry is cleared reads it again at once, and nobody tells it a second time.",
        },
        Point {
            what: "each reference of a leaf is given back once",
            points: 1,
            check: Check::Host(&["lab_install::each_reference_is_given_back_once"]),
            hint: "A leaf owns a reference on its page: hand the entry that you have taken out to self.gather.leaf, which gives the reference back after the shootdown. Not for an entry that was not there.",
        },
        Point {
            what: "no interleaving of a zap with pins is wrong",
            points: 1,
            check: Check::Model(&[
                "loom_gup::gup_fast_against_zap",
                "loom_gup::gup_fast_against_freeing_the_table_page",
            ]),
            hint: "In some order of steps a page is used after it was given back, or pinned through an entry that is gone: the entry first, then the flush, and what is freed last of all.",
        },
        Point {
            what: "the kernel's own tests of memory pass in the guest",
            points: 1,
            check: Check::Guest(&[
                "mm.map.leaf_4k_reaches_its_frame",
                "mm.map.a_part_of_a_2m_leaf_goes",
                "mm.map.the_space_takes_its_tables_along",
                "mm.tlb.no_read_after_unmap_4k",
                "mm.tlb.no_old_contents_after_remap",
            ]),
            hint: "On the real page table with four CPUs something is left, or gone: the line below says which test, and it is in kernel/src/ktest/mm_map.rs or mm_tlb.rs.",
        },
    ],
};
