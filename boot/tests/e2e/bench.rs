//! The measurements: every row is there, and none is worse than what is stored in the tree. Instructions are counted, so this
//! does not depend on the machine that the tests run on.

use crate::support::{assert_good, has_line, machine, records, run, tail};
use boot::backing::Nvdimm;
use boot::bench::baseline::{Baseline, Change, IN_TREE, Subject, of_tree};
use boot::bench::figures::{self, Kind};
use boot::bench::{ANNOUNCE, BENCH_PATIENCE_S, PMEM_BYTES, unknown_misses, was_measured};
use boot::cli::Mode;
use boot::machine::Machine;
use boot::outcome::Status;
use boot::paths::Profile;
use boot::size::{GIB, TIB};
use std::time::Duration;

/// Rows that have a goal: each is measured, whatever else is.
const ROWS: [&str; 33] = [
    "pin_4k_called",
    "unpin_4k",
    "pin_2m_called",
    "pin_1g_called",
    "pin_512_of_4k_array_each",
    "pin_512_of_4k_range_each",
    "pin_512_scattered_each",
    "pin_512_under_2m_range",
    "pin_512_under_2m_array_each",
    "gup_fast_irqs_off_most",
    "gup_slow_over_fast",
    "unmap_4k_each_page",
    "unmap_4k_each_page_in_all",
    "unmap_4k_rounds",
    "shootdown_one_page_to_3_cpus",
    "shootdown_one_page_to_3_cpus_ipis",
    "first_touch_4k",
    "memory_failure_called",
    "attach_6_gib",
    "idle_removal_6_gib",
    "attach_6_tib",
    "idle_removal_6_tib",
    "removal_6_tib_over_6_gib",
    "removal_of_16_extents_each",
    "removal_of_256_extents_each",
    "removal_of_4096_extents_each",
    "removal_of_16384_extents_each",
    "removal_of_65536_extents_each",
    "removal_of_65536_leaves_of_one_vma_each",
    "removal_6_tib_mapped_1g",
    "removal_4k_each_page",
    "removal_4k_ipis",
    "per_frame_over_ranged",
];

/// A goal that is missed is known to be, and no figure is worse by more than one percent than the one in the tree.
// covers: R2 R3
#[test]
fn every_row_is_measured_and_none_is_worse_than_what_is_stored() {
    let pmem = PMEM_BYTES.map(Nvdimm::temporary).to_vec();
    // Patience alone: a host with other work to do takes several times as long.
    let timeout = Some(Duration::from_secs(BENCH_PATIENCE_S));
    let machine = Machine { mode: Mode::Bench, deterministic: true, pmem, timeout, ..machine() };
    let stored = Baseline::read_for(&of_tree(), &Subject::of(&machine, Profile::Dev)).expect("the tree's baseline");
    let outcome = run(&machine);
    let figures = figures::of_console(&outcome.console).unwrap_or_else(|error| panic!("{error:#}\n{}", tail(&outcome)));
    let unmeasured: Vec<_> =
        ROWS.iter().filter(|name| !figures.get(**name).is_some_and(|row| row.kind != Kind::None)).collect();
    assert!(unmeasured.is_empty(), "no row with a goal: {unmeasured:?}\n{}", tail(&outcome));
    let worse: Vec<_> = stored.changes(&figures).into_iter().filter(Change::is_worse).collect();
    let lines: Vec<_> = worse.iter().map(ToString::to_string).collect();
    assert!(
        worse.is_empty(),
        "worse by more than 1 % (row, {IN_TREE}, now):\n{}\nIf that is meant, say so and store it: {ANNOUNCE}",
        lines.join("\n")
    );
    let unknown = unknown_misses(&figures, Some(&stored));
    assert!(unknown.is_empty(), "goals that are missed and not known to be ({IN_TREE}): {unknown:?}");
    // Whatever was missed, everything was measured.
    assert!(was_measured(&outcome.status), "{}", tail(&outcome));
}

/// A group that there is not: one line, and nothing is measured.
#[test]
fn an_unknown_group_is_refused() {
    let append = vec!["bench=gup+nothing".into()];
    let outcome = run(&Machine { mode: Mode::Bench, deterministic: true, smp: 1, append, ..machine() });
    assert!(matches!(outcome.status, Status::Refused(_)), "{}", tail(&outcome));
    assert!(has_line(&outcome, &["options: option \"bench\" cannot be \"gup+nothing\"", "perframe"]));
    assert!(records(&outcome, "bench").is_empty());
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
