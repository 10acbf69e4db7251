//! QEMU's command line for machines of every kind.

use super::*;
use crate::cli::Cli;
use clap::Parser;

fn line(machine: &Machine) -> String {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let backings: Vec<_> = machine
        .pmem
        .iter()
        .enumerate()
        .map(|(index, nvdimm)| nvdimm.prepare(dir.path(), index).expect("ready"))
        .collect();
    let virtio_backings: Vec<_> = machine
        .virtio_pmem
        .iter()
        .enumerate()
        .map(|(index, lent)| lent.prepare(dir.path(), index).expect("ready"))
        .collect();
    let dimm_backings: Vec<_> =
        machine.dimms.iter().enumerate().map(|(index, dimm)| dimm.prepare(dir.path(), index).expect("ready")).collect();
    let firmware = Firmware { code: "code".into(), vars: "vars".into() };
    let files = Files {
        disk: machine.image().is_some().then_some((Path::new("a,b"), &firmware)),
        qmp_socket: Path::new("qmp"),
        backings: &backings,
        dimm_backings: &dimm_backings,
        virtio_backings: &virtio_backings,
        nvme: (machine.nvme_bytes() > 0).then_some(Path::new("disk,0")),
    };
    machine.arguments(&files).expect("arguments").join(" ")
}

#[test]
fn the_default_machine_has_one_nvdimm_in_a_file() {
    let line = line(&Machine::default());
    for part in [
        "-machine q35,nvdimm=on",
        "-accel tcg",
        "-smp 4",
        "-m size=512M,slots=1,maxmem=3072M",
        "size=1073872896,id=pmem0",
        "label-size=131072",
        "string=mode=demo host_requests=60",
        "file=a,,b",
    ] {
        assert!(line.contains(part), "{part:?} is not in {line}");
    }
    assert!(!line.contains("icount") && !line.contains("phys-bits") && !line.contains(" -S"));
}

#[test]
fn six_tebibytes_are_addressable_and_fit_below_maxmem() {
    let machine = Machine { pmem: vec![Nvdimm::temporary(6 << 40)], ..Machine::default() };
    assert_eq!(machine.phys_bits(), 43);
    assert!(line(&machine).contains("memory-backend-ram,reserve=off"));
    let larger = Machine { pmem: vec![Nvdimm::temporary(24 << 40)], ..Machine::default() };
    assert_eq!(larger.phys_bits(), 45);
}

#[test]
fn devices_that_do_dma_stand_behind_the_iommu() {
    let with = line(&Machine::default());
    for part in ["-device edu,dma_mask=0xffffffffffffffff ", "if=none,id=nvme0,format=raw,file=disk,,0 ", "drive=nvme0"]
    {
        assert!(with.contains(part), "{part:?} is not in {with}");
    }
    let first = with.find("-device ").expect("a device");
    assert!(with[first..].starts_with("-device intel-iommu,aw-bits=48 "), "{with}");
    let without = line(&Machine { iommu: false, edu: false, nvme: Some(0), ..Machine::default() });
    assert!(!without.contains("iommu") && !without.contains("edu") && !without.contains("nvme"), "{without}");
    let counted = Machine { deterministic: true, ..Machine::default() };
    assert!(line(&counted).contains("edu") && !line(&counted).contains("nvme"));
    assert!(line(&Machine { nvme: Some(GIB), ..counted }).contains("nvme"));
}

#[test]
fn many_cpus_have_more_time_before_they_count_as_hung() {
    let timeout = |args: &[&str]| {
        let options = Cli::parse_from(std::iter::once(&"run-qemu.sh").chain(args)).options;
        Machine::from_options(&options).expect("a good machine").timeout.map(|timeout| timeout.as_secs())
    };
    assert_eq!([timeout(&[]), timeout(&["--smp", "64"])], [Some(300), Some(960)]);
    assert_eq!([timeout(&["--smp", "64", "--timeout", "5"]), timeout(&["--mode", "shell"])], [Some(5), None]);
}

#[test]
fn an_nvdimm_that_is_not_armed_says_so_and_no_other_does() {
    let asked = |args: &[&str]| {
        let options = Cli::parse_from(std::iter::once(&"run-qemu.sh").chain(args)).options;
        Machine::from_options(&options)
    };
    let line = line(&asked(&["--unarmed", "--pmem", "1G", "--pmem", "1G"]).expect("a good machine"));
    assert!(
        line.contains("id=nvdimm0,label-size=131072,unarmed=on ") && line.matches("unarmed").count() == 1,
        "{line}"
    );
    assert!(asked(&["--unarmed", "--pmem", "none"]).is_err());
}

#[test]
fn no_nvdimm_leaves_the_nfit_to_the_user() {
    let line = line(&Machine { pmem: vec![], acpitables: vec!["nfit.bin".into()], ..Machine::default() });
    assert!(line.contains("nvdimm=off") && line.contains("-acpitable file=nfit.bin"), "{line}");
    assert!(!line.contains("maxmem") && !line.contains("-object"), "{line}");
}

#[test]
fn a_virtio_pmem_device_has_room_beside_the_nvdimms_and_without_them() {
    let lent = vec![VirtioPmem::new(64 * MIB), VirtioPmem { size_bytes: 4096, can_flush: false }];
    let both = line(&Machine { virtio_pmem: lent.clone(), ..Machine::default() });
    for part in [
        "slots=3,maxmem=5120M",
        "vpmem0,share=on,size=67108864,id=vpmem0",
        "virtio-pmem-pci,memdev=vpmem0",
        "memory-backend-ram,reserve=off,size=4096,id=vpmem1",
    ] {
        assert!(both.contains(part), "{part:?} is not in {both}");
    }
    let alone = line(&Machine { pmem: vec![], virtio_pmem: lent, ..Machine::default() });
    assert!(alone.contains("nvdimm=off") && alone.contains("slots=2,maxmem="), "{alone}");
}

#[test]
fn modules_are_in_files_in_the_first_slots_and_there_is_room_for_more() {
    let asked = |args: &[&str]| {
        let options = Cli::parse_from(std::iter::once(&"run-qemu.sh").chain(args)).options;
        Machine::from_options(&options).expect("a good machine")
    };
    let two = line(&asked(&["--dimm", "64M", "--dimm", "1G"]));
    for part in [
        "slots=3,maxmem=6144M",
        "dimm0,share=on,align=2097152,size=67108864,id=module0",
        "pc-dimm,memdev=module0,id=dimm0,slot=0",
        "align=1073741824,size=1073741824,id=module1",
        "pc-dimm,memdev=module1,id=dimm1,slot=1",
    ] {
        assert!(two.contains(part), "{part:?} is not in {two}");
    }
    let spare = Spare { slots: 2, bytes: 4 * GIB, nvdimms: true };
    let room = line(&Machine { pmem: vec![], spare, ..Machine::default() });
    assert!(room.contains("nvdimm=on") && room.contains("slots=2,maxmem=5120M"), "{room}");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("kept");
    let kept = asked(&["--dimm", "32M", "--dimm-file", file.to_str().expect("UTF-8")]);
    kept.make_files().expect("made");
    assert_eq!((kept.dimms.len(), file.metadata().expect("made").len()), (1, 32 * MIB));
}

#[test]
fn the_demonstration_has_two_modules_unless_something_else_is_asked_for() {
    let sizes = |args: &[&str]| {
        let options = Cli::parse_from(std::iter::once(&"run-qemu.sh").chain(args)).options;
        let machine = Machine::from_options(&options).expect("a good machine");
        machine.dimms.iter().map(|dimm| dimm.size_bytes).collect::<Vec<_>>()
    };
    assert_eq!(sizes(&[]), [GIB; 2]);
    assert_eq!(sizes(&["--dimm", "64M"]), [64 * MIB]);
    for args in [&["--dimm", "none"][..], &["--pmem", "none"], &["--mode", "shell"], &["--mode", "test"]] {
        assert_eq!(sizes(args), [0; 0], "{args:?}");
    }
}

#[test]
fn deterministic_counts_instructions_and_tells_the_kernel() {
    let line = line(&Machine { deterministic: true, append: vec!["log=debug".into()], ..Machine::default() });
    assert!(line.contains("-icount shift=6,sleep=off"), "{line}");
    assert!(line.contains("string=mode=demo deterministic=1 log=debug"), "{line}");
}

/// covers: T5
#[test]
fn another_kernel_is_loaded_without_firmware_and_told_what_the_caller_says() {
    let initrd = Some("initrd".into());
    let boots = Boots::Kernel { kernel: "a,b/vmlinuz".into(), initrd, command_line: "console=ttyS0 x=1,2".into() };
    let line = line(&Machine { boots, qemu: vec!["-device".into(), "virtio-rng-pci".into()], ..Machine::default() });
    for part in ["-kernel a,b/vmlinuz -initrd initrd -append console=ttyS0 x=1,2 ", " -device virtio-rng-pci"] {
        assert!(line.contains(part), "{part:?} is not in {line}");
    }
    assert!(!line.contains("pflash") && !line.contains("opt/unplug") && !line.contains("id=disk"), "{line}");
}

/// covers: T5
#[test]
fn a_disk_with_another_kernel_is_booted_by_the_firmware_and_told_nothing() {
    let line = line(&Machine { boots: Boots::Disk("a,b".into()), ..Machine::default() });
    assert!(line.contains("pflash") && line.contains("file=a,,b") && !line.contains("opt/unplug"), "{line}");
}
