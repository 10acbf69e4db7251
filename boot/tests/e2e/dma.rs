//! Devices that do DMA, and machines in which they must not: without an IOMMU, and with one that does not reach far enough.

use crate::support::{ask, assert_good, exit, has, has_line, machine, records, refused, run, shell, start_shell, tail};
use boot::backing::Nvdimm;
use boot::cli::Mode;
use boot::ktap::{self, Verdict};
use boot::machine::Machine;
use boot::size::{GIB, MIB};

/// All tests of DMA are skipped, with `reason`, and say so; the devices are found, and not used.
fn nothing_does_dma(machine: &Machine, reason: &str) -> Vec<String> {
    let tests = Machine { mode: Mode::Test, append: vec!["tests=dma.*".into()], ..machine.clone() };
    let outcome = run(&tests);
    assert_good(&outcome);
    let report = ktap::parse(&outcome.console);
    let names: Vec<_> = report.tests.iter().map(|test| test.name.as_str()).collect();
    for part in ["dma.iommu.", "dma.edu.", "dma.nvme."] {
        assert!(names.iter().any(|name| name.starts_with(part)), "{part:?}: {names:?}");
    }
    for test in &report.tests {
        assert_eq!(test.verdict, Verdict::Skipped(reason.into()), "{}", test.name);
    }
    for device in ["edu: ", "nvme: "] {
        let words = [device, "no IOMMU translates for it", "it is not used"];
        assert!(has_line(&outcome, &words), "{words:?}: {}", tail(&outcome));
    }
    for topic in ["iommu", "edu", "nvme", "dma_mapped", "dma_fault"] {
        assert!(records(&outcome, topic).is_empty(), "@{topic}: {}", tail(&outcome));
    }
    outcome.console
}

/// The commands say in one line why there is nothing, and everything else works.
fn the_rest_works(machine: &Machine, reason: &str) {
    let mut guest = start_shell(&Machine { mode: Mode::Shell, ..machine.clone() });
    for line in ["dma", "iommu walk edu0 0x1000", "iommu walk nvme0 0x1000"] {
        assert_eq!(refused(&mut guest, line), format!("error: {reason}: no device does DMA"), "{line:?}");
    }
    ask(&mut guest, "attach 0");
    ask(&mut guest, "pmem write 0 4096 hello");
    has(&ask(&mut guest, "pmem read 0 4096 5"), &["hello"]);
    ask(&mut guest, "remove 0");
    assert_good(&exit(guest));
}

/// Its tables could not name the NVDIMM's last frames: that is found out before anything is mapped.
// covers: D1
#[test]
fn an_iommu_that_does_not_reach_the_nvdimm_is_not_used() {
    // It begins above 4 GiB, and ends above 512 GiB.
    let narrow = Machine { smp: 2, iommu_bits: 39, pmem: vec![Nvdimm::temporary(600 * GIB)], ..machine() };
    let line = "the IOMMU reaches 39 bits of address, 40 are needed";
    let reason = format!("there is no IOMMU that can be used ({line})");
    let console = nothing_does_dma(&narrow, &reason);
    let told: Vec<_> = console.iter().filter(|text| text.contains(line) && text.contains("iommu: ")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    has(told[0], &["unit 0 at ", "it is not used, and no device behind it"]);
    the_rest_works(&narrow, &reason);
    // Where everything lies below, the same one is used.
    let enough = Machine { pmem: vec![Nvdimm::temporary(64 * MIB)], ..narrow };
    let mut guest = start_shell(&Machine { mode: Mode::Shell, ..enough });
    has(&ask(&mut guest, "dma"), &["edu0 at ", "nvme0 at "]);
    let outcome = exit(guest);
    assert_good(&outcome);
    assert_eq!(records(&outcome, "iommu")[0].number("bits"), Some(39));
}

#[test]
fn without_an_iommu_no_device_does_dma() {
    let without = Machine { smp: 2, iommu: false, pmem: vec![Nvdimm::temporary(64 * MIB)], ..machine() };
    let console = nothing_does_dma(&without, "there is no IOMMU");
    let told = console.iter().filter(|line| line.contains("no device does DMA to persistent memory")).count();
    assert_eq!(told, 1, "lines about it");
    the_rest_works(&without, "there is no IOMMU");
}

#[test]
fn the_commands_answer_good_words_and_refuse_others_with_one_line() {
    let mut guest = start_shell(&Machine { smp: 2, pmem: vec![Nvdimm::temporary(64 * MIB)], ..shell() });
    let listed = ask(&mut guest, "dma");
    has(
        &listed,
        &["edu0 at ", "nvme0 at ", "domain ", "the driver's own", "@dma device=edu0", "@dma_mapping device=nvme0"],
    );
    // The rings are mapped, and nothing is at address 0.
    let mapped = listed.split_whitespace().find_map(|word| word.strip_prefix("iova=")).expect("a mapping");
    has(&ask(&mut guest, &format!("iommu walk nvme0 {mapped}")), &["level ", "reaches 0x", ", a leaf of 4096 bytes"]);
    has(&ask(&mut guest, "iommu walk edu0 0x0"), &["level ", "reaches nothing"]);
    for (line, answer) in [
        ("dma now", "expected: dma, with nothing behind it"),
        ("iommu", "expected: iommu walk DEVICE ADDRESS"),
        ("iommu walk", "expected: iommu walk DEVICE ADDRESS"),
        ("iommu walk nvme0", "expected: iommu walk DEVICE ADDRESS"),
        ("iommu run nvme0 0x0", "expected: iommu walk DEVICE ADDRESS"),
        ("iommu walk nvme0 0x0 0x0", "expected: iommu walk DEVICE ADDRESS"),
        ("iommu walk nvme9 0x0", "there is no device \"nvme9\" that does DMA (dma lists them)"),
        ("iommu walk nvme0 4096", "\"4096\": expected 0x and up to 16 hexadecimal digits"),
        ("iommu walk nvme0 0x", "\"0x\": expected 0x and up to 16 hexadecimal digits"),
        ("iommu walk nvme0 0x+5", "\"0x+5\": expected 0x and up to 16 hexadecimal digits"),
        ("iommu walk nvme0 0xdog", "\"0xdog\": expected 0x and up to 16 hexadecimal digits"),
        (
            "iommu walk nvme0 0x10000000000000000",
            "\"0x10000000000000000\": expected 0x and up to 16 hexadecimal digits",
        ),
    ] {
        assert_eq!(refused(&mut guest, line), format!("error: {answer}"), "{line:?}");
    }
    // The highest address of all is none of the domain's, and no harm.
    assert_eq!(ask(&mut guest, "iommu walk nvme0 0xffffffffffffffff"), "reaches nothing");
    assert_good(&exit(guest));
}
