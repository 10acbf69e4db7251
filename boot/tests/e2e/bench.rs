//! The measurements: every figure that has a bound keeps it. Instructions are counted, so this does not depend on the
//! machine that the tests run on.

use crate::support::{assert_good, has_line, machine, records, run, tail};
use boot::backing::Nvdimm;
use boot::cli::Mode;
use boot::machine::Machine;
use boot::size::{GIB, TIB};

/// Figures that the specification bounds: each is measured, whatever else is.
const BOUNDED: [&str; 15] = [
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
    "attach_idle_1024_mib",
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

/// Attaching and removing an idle device is bounded by its steps and a leaf a GiB, whatever its size; the kernel's test
/// counts the instructions.
// covers: R2 R4 R6
#[test]
fn an_idle_device_costs_its_steps_at_a_gibibyte_and_at_six_tebibytes() {
    for size in [GIB, 6 * TIB] {
        let append = vec!["tests=dax.idle.*".into()];
        let pmem = vec![Nvdimm::temporary(size)];
        let outcome = run(&Machine { mode: Mode::Test, deterministic: true, smp: 2, pmem, append, ..machine() });
        assert_good(&outcome);
        assert!(has_line(&outcome, &["ok 2 dax.idle.costs_its_steps # covers"]), "{}", tail(&outcome));
    }
}
