//! The measurements: every figure that has a bound keeps it. Instructions are counted, so this does not depend on the
//! machine that the tests run on.

use crate::support::{assert_good, machine, records, run, tail};
use boot::cli::Mode;
use boot::machine::Machine;

/// Figures that the specification bounds: each is measured, whatever else is.
const BOUNDED: [&str; 14] = [
    "gup_fast_4k",
    "unpin",
    "gup_fast_512_4k_array_per_page",
    "gup_fast_512_2m_array_per_page",
    "gup_fast_512_2m_range",
    "gup_slow_over_fast",
    "unmap_1g_of_4K_per_leaf",
    "unmap_1g_of_4K_rounds",
    "shootdown_one_page_to_3_cpus",
    "shootdown_one_page_to_3_cpus_ipis",
    "remove_idle_1024_mib",
    "remove_linear_1024_mib",
    "remove_1g_of_4K_ranged_1024_mib_ipis",
    "per_frame_over_ranged_1g_of_4K_1024_mib",
];

// covers: R2 R3
#[test]
fn every_figure_keeps_its_bound() {
    let outcome = run(&Machine { mode: Mode::Bench, deterministic: true, ..machine() });
    let figures: Vec<_> =
        records(&outcome, "bench").into_iter().filter(|figure| figure.get("name").is_some()).collect();
    let missed: Vec<_> =
        figures.iter().filter(|figure| figure.number("met") != Some(1)).map(ToString::to_string).collect();
    assert!(missed.is_empty(), "missed: {missed:#?}");
    let unmeasured: Vec<_> = BOUNDED
        .iter()
        .filter(|name| {
            !figures.iter().any(|figure| figure.get("name") == Some(name) && figure.get("kind") != Some("none"))
        })
        .collect();
    assert!(unmeasured.is_empty(), "no figure with a bound: {unmeasured:?}\n{}", tail(&outcome));
    assert_good(&outcome);
}
