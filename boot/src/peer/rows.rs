//! Which figure of Linux belongs to which of ours, and why one stands alone.

use super::results::Figure;
use std::collections::BTreeMap;

/// A line of the table.
#[derive(Debug)]
pub struct Row {
    /// What is measured, for people.
    pub what: &'static str,
    /// The peer's name for it (`boot/peer/guest/init`); `None` where Linux has none.
    pub linux: Option<&'static str>,
    /// Our `bench`'s name for it; `None` where it has none.
    pub ours: Option<&'static str>,
    /// What a reader has to know of the comparison, or why there is none.
    pub note: &'static str,
}

const fn row(what: &'static str, linux: &'static str, ours: Option<&'static str>, note: &'static str) -> Row {
    Row { what, linux: Some(linux), ours, note }
}

const CALLED: &str = "a called function on both sides";
const STRUCT_PAGES: &str = "Linux makes a `struct page` for each 4 KiB";
const DEDUPLICATED: &str = "Linux's default: most `struct page`s of a 2 MiB leaf share a frame";
const NO_REFERENCE: &str = "a leaf of device memory holds no reference to its page in these kernels; ours does";
const OWN: &str = "no partner: on Linux it is what the `struct page`s cost; compare the idle removals";
const LARGE: &str = "with 4 KiB leaves Linux would need 96 GiB of `struct page`s";
const FAILURE: &str = "ours takes the page out of the page tables, and answers who had it";
const NOT_IN_BENCH: &str = "ours is not in `bench` by itself: there it is measured with registering and pinning";

/// The table.
pub const ROWS: &[Row] = &[
    row("pin one 4 KiB page", "pin_4k", Some("pin_4k_called"), CALLED),
    row("unpin it", "unpin_4k", Some("unpin_4k"), "ours is part of its caller, in a loop; Linux's a called function"),
    row("pin one page under a 2 MiB leaf", "pin_2m", Some("pin_2m_called"), CALLED),
    row("… under a 1 GiB leaf", "pin_1g", Some("pin_1g_called"), CALLED),
    row(
        "pin 512 pages over 4 KiB leaves into an array, each",
        "pin_512_of_4k_each",
        Some("pin_512_of_4k_array_each"),
        "",
    ),
    row("unpin them, each", "unpin_512_of_4k_each", Some("unpin_512_of_4k_one_by_one_each"), ""),
    row(
        "pin 512 pages under a 2 MiB leaf into an array, each",
        "pin_512_of_2m_each",
        Some("pin_512_under_2m_array_each"),
        "",
    ),
    row(
        "unpin them, each",
        "unpin_512_of_2m_each",
        Some("unpin_512_under_2m_one_by_one_each"),
        "Linux joins the pages of a folio; ours one by one",
    ),
    Row {
        what: "pin 512 pages under a 2 MiB leaf as one range, all",
        linux: None,
        ours: Some("pin_512_under_2m_range"),
        note: "Linux answers pins with arrays only",
    },
    row(
        "pin one 4 KiB page for long",
        "pin_longterm_4k",
        None,
        "ours is a registration of a range, which `bench` does not measure",
    ),
    row("unmap 1 GiB of 4 KiB pages, each", "unmap_1g_of_4k_each", Some("unmap_4k_each_page"), NO_REFERENCE),
    row("unmap 1 GiB of 2 MiB leaves, each", "unmap_1g_of_2m_each", Some("unmap_2m_each_leaf"), NO_REFERENCE),
    row("unmap a 1 GiB leaf", "unmap_1g_of_1g_each", Some("unmap_1g_each_leaf"), NO_REFERENCE),
    row("map 1 GiB for a device, a 1 GiB leaf", "iommu_map_1g", None, NOT_IN_BENCH),
    row("unmap it for the device, one invalidation", "iommu_unmap_1g", None, NOT_IN_BENCH),
    row("map 1 GiB for a device, 2 MiB leaves", "iommu_map_1g_of_2m", None, NOT_IN_BENCH),
    row("unmap it for the device, one invalidation", "iommu_unmap_1g_of_2m", None, NOT_IN_BENCH),
    row(
        "map 262,144 scattered pages for a device, each",
        "iommu_map_4k_scattered_each",
        Some("dma_map_scattered_4k_each_page"),
        "ours in one call; Linux's `iommu_map` of each page",
    ),
    row(
        "unmap them for the device as one range, one invalidation, each",
        "iommu_unmap_4k_scattered_each",
        Some("dma_revoke_scattered_4k_each_page"),
        "Linux gives the tables away unread: whoever calls has to know which pages those were",
    ),
    row(
        "… page by page as VFIO does, looked up, 512 with one invalidation, each",
        "iommu_unmap_4k_scattered_by_512_each",
        None,
        NOT_IN_BENCH,
    ),
    row(
        "… page by page, with an invalidation each, each",
        "iommu_unmap_4k_scattered_one_by_one_each",
        None,
        NOT_IN_BENCH,
    ),
    row(
        "`memory_failure`, nobody told",
        "memory_failure_late",
        Some("memory_failure_called"),
        "Linux's default: no signal, and the page stays mapped; ours unmaps it",
    ),
    row("`memory_failure`, with SIGBUS", "memory_failure_early", Some("memory_failure_called"), FAILURE),
    row("attach 1 GiB, 4 KiB leaves", "attach_4k_1g", Some("attach_1_gib"), STRUCT_PAGES),
    row("attach 16 GiB, 4 KiB leaves", "attach_4k_16g", Some("attach_16_gib"), STRUCT_PAGES),
    row("attach 1 GiB, 2 MiB leaves", "attach_2m_1g", Some("attach_1_gib"), DEDUPLICATED),
    row("attach 4 GiB, 2 MiB leaves", "attach_2m_4g", Some("attach_4_gib"), DEDUPLICATED),
    row("attach 16 GiB, 2 MiB leaves", "attach_2m_16g", Some("attach_16_gib"), DEDUPLICATED),
    row("attach 16 GiB, 1 GiB leaves", "attach_1g_16g", Some("attach_16_gib"), "of a 1 GiB leaf"),
    row("remove 1 GiB, idle, 4 KiB leaves", "removal_4k_1g", Some("idle_removal_1_gib"), ""),
    row("remove 16 GiB, idle, 4 KiB leaves", "removal_4k_16g", Some("idle_removal_16_gib"), ""),
    row("remove 1 GiB, idle, 2 MiB leaves", "removal_2m_1g", Some("idle_removal_1_gib"), DEDUPLICATED),
    row("remove 4 GiB, idle, 2 MiB leaves", "removal_2m_4g", Some("idle_removal_4_gib"), DEDUPLICATED),
    row("remove 16 GiB, idle, 2 MiB leaves", "removal_2m_16g", Some("idle_removal_16_gib"), DEDUPLICATED),
    row("remove 16 GiB, idle, 1 GiB leaves", "removal_1g_16g", Some("idle_removal_16_gib"), ""),
    row("attach 6 TiB, 1 GiB leaves", "attach_1g_6t", Some("attach_6_tib"), LARGE),
    row("remove 6 TiB, idle, 1 GiB leaves", "removal_1g_6t", Some("idle_removal_6_tib"), LARGE),
    row(
        "remove 4 GiB that is mapped with 4 KiB pages, each",
        "removal_mapped_4k_4g_each",
        Some("removal_4k_each_page"),
        "ours is loaded by 4 CPUs, which are interrupted; Linux's by none",
    ),
    row("remove 1 GiB that is mapped with 2 MiB leaves", "removal_mapped_2m_1g", None, OWN),
    row("remove 16 GiB mapped with 1 GiB leaves, each", "removal_mapped_1g_16g_each", None, OWN),
    row(
        "remove a device with 4,096 mappings: each",
        MAPPING_ADDS,
        Some("removal_of_4096_extents_each"),
        "Linux: 2 MiB each, the slope from 256 to 4,096; ours above an idle removal",
    ),
];

/// Our name of what Linux's guest calls `linux`.
#[cfg(feature = "report")]
#[must_use]
pub fn ours_of(linux: &str) -> Option<&'static str> {
    ROWS.iter().find(|row| row.linux == Some(linux))?.ours
}

/// A figure that is made of two others.
const MAPPING_ADDS: &str = "removal_each_further_extent";

/// What the figures of whole removals with 256 and with 4,096 mappings say of one.
pub fn derive(figures: &mut BTreeMap<String, Figure>) {
    for counted in ["", "_tasks"] {
        let of = |nr: f64| {
            figures.get(&format!("removal_of_{nr}_extents_each{counted}")).map(|each| (each, each.value * nr))
        };
        let (Some((_, few)), Some((each, many))) = (of(256.0), of(4096.0)) else { continue };
        let value = (many - few) / f64::from(4096 - 256);
        let derived = Figure { value, least_most: (value, value), ..each.clone() };
        figures.insert(format!("{MAPPING_ADDS}{counted}"), derived);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths;
    use std::fs;

    /// Does a text literal of the source, with anything in place of `{…}`, give the name?
    fn gives(literal: &str, name: &str) -> bool {
        let Some((before, rest)) = literal.split_once('{') else { return literal == name };
        let Some((_, after)) = rest.split_once('}') else { return false };
        let Some(left) = name.strip_prefix(before) else { return false };
        (1..=left.len()).any(|at| left.is_char_boundary(at) && gives(after, &left[at..]))
    }

    /// The literals of the bench's sources that can be names.
    fn names() -> Vec<String> {
        let place = paths::root().join("kernel/src/bench");
        let sources = fs::read_dir(place).expect("the bench").flatten().map(|entry| fs::read_to_string(entry.path()));
        let literal =
            |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_{}".contains(c));
        let mut names = Vec::new();
        for source in sources {
            names.extend(source.expect("read").split('"').filter(|text| literal(text)).map(String::from));
        }
        // A pattern that is all pattern would be anything.
        names.retain(|name| name.starts_with(|c: char| c.is_ascii_lowercase()));
        names
    }

    #[test]
    fn each_figure_of_ours_is_one_that_the_bench_prints() {
        let known = names();
        assert!(known.len() > 20, "{known:?}");
        for name in ROWS.iter().filter_map(|row| row.ours) {
            assert!(known.iter().any(|literal| gives(literal, name)), "the bench does not print {name}");
        }
    }

    #[test]
    fn a_pattern_gives_its_names_and_no_other() {
        assert!(gives("attach_idle_{mib}_mib", "attach_idle_1024_mib") && gives("unpin", "unpin"));
        assert!(gives("remove_1g_of_4K_{word}_{mib}_mib", "remove_1g_of_4K_ranged_1024_mib"));
        assert!(!gives("attach_idle_{mib}_mib", "attach_idle__mib") && !gives("unpin", "unpin_4k"));
    }

    /// What the guest prints is spelled in its own two sources.
    #[test]
    fn each_figure_of_linux_is_one_that_the_guest_prints() {
        let place = paths::root().join("boot/peer/guest");
        let init = fs::read_to_string(place.join("init")).expect("the guest's first program");
        let program = fs::read_to_string(place.join("peerbench.c")).expect("the guest's program");
        for name in ROWS.iter().filter_map(|row| row.linux).filter(|name| *name != MAPPING_ADDS) {
            let whole = init.contains(&format!(" {name} ")) || init.contains(&name.replace("4096", "${extents}"));
            // with pin 4k …, with idle 4k_${gib}g …
            let composed = ["pin_longterm_", "unpin_512_of_", "pin_512_of_", "unpin_", "pin_", "attach_", "removal_"];
            let composed = composed.iter().any(|start| {
                let rest = name.strip_prefix(start).map(|rest| rest.trim_end_matches("_each"));
                let leaf = rest.and_then(|rest| rest.split('_').next());
                program.contains(&format!("\"{start}%s")) && leaf.is_some_and(|leaf| ["4k", "2m", "1g"].contains(&leaf))
            });
            assert!(whole || composed, "{name}");
        }
    }

    #[test]
    fn a_row_without_a_partner_says_why() {
        for row in ROWS.iter().filter(|row| row.linux.is_none() || row.ours.is_none()) {
            assert!(!row.note.is_empty(), "{}", row.what);
        }
    }

    #[test]
    fn what_each_mapping_adds_is_the_slope() {
        let figure = |value| Figure { value, least_most: (value, value), turns: 3, counted: "caller".into() };
        let mut figures = BTreeMap::from([
            ("removal_of_256_extents_each".to_string(), figure(1000.0)),
            ("removal_of_4096_extents_each".to_string(), figure(100.0)),
        ]);
        derive(&mut figures);
        assert_eq!(figures[MAPPING_ADDS].value, (409_600.0 - 256_000.0) / 3840.0);
        assert!(!figures.contains_key("removal_each_further_extent_tasks"));
    }
}
