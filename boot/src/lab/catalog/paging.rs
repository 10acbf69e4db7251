//! Labs 1 to 4: page tables and shootdown.

use super::{Check, Lab, Point};

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
