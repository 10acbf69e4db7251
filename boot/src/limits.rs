//! What a machine can have: how much memory, at which addresses, how many devices, and how large for what job.

use crate::backing::LABEL_BYTES;
use crate::cli::Mode;
use crate::machine::Machine;
use crate::size::{self, GIB, KIB, MIB, TIB};
use anyhow::{Result, ensure};

/// The physical addresses that the kernel's direct map has room for, in bytes (`kernel/src/mem/layout.rs`).
const DIRECT_MAP_BYTES: u64 = 64 * TIB;

/// How many NVDIMMs the kernel keeps at most (`kernel/nvdimm/src/nfit/types.rs`).
const MOST_NVDIMMS: usize = 32;
/// How many devices fit on QEMU's PCI bus beside what every machine has there.
const MOST_ON_PCI: usize = 29;

/// How many memory modules a machine is given at most: so many can come back beside all the others.
const MOST_DIMMS: usize = 16;

/// How many bytes of boot options the kernel reads at most (`kernel/src/bringup/options.rs`).
const MOST_OPTION_BYTES: usize = 1024;

/// What the demonstration uses of the first device, in bytes: what all CPUs share, and what each has for itself
/// (`kernel/src/demo/load.rs`).
const DEMO_SHARED_BYTES: u64 = 4 * MIB;
const DEMO_CPU_BYTES: u64 = 4 * MIB;

/// What its last act uses of each of the two modules that fall, in bytes, likewise: a file that all CPUs map, and what each CPU's
/// tasks write beside the file system's own (`kernel/src/demo/files.rs`; the registrations of `desk.rs` are smaller).
const DESK_SHARED_BYTES: u64 = 3 * MIB;
const DESK_CPU_BYTES: u64 = 256 * KIB;

/// Where RAM and devices go that do not fit below 4 GiB.
const ABOVE: u64 = 4 * GIB;
/// HyperTransport has the addresses from here to 1 TiB on AMD's CPUs, one of which QEMU emulates: what does not end below
/// begins at 1 TiB (QEMU 7.2, `pc_set_amd_above_4g_mem_start`).
const HYPER_TRANSPORT: u64 = 1012 * GIB;
/// What QEMU keeps behind the window for PCI (`Q35_PCI_HOST_HOLE64_SIZE_DEFAULT`).
const PCI_BYTES: u64 = 32 * GIB;

impl Machine {
    /// Refuses what the job cannot be done with, before anything is built or booted for it.
    ///
    /// # Errors
    /// One line.
    pub(crate) fn check_job(&self) -> Result<()> {
        let (what, needed) = match self.mode {
            Mode::Demo => ("the demonstration", DEMO_SHARED_BYTES + u64::from(self.smp) * DEMO_CPU_BYTES),
            Mode::Bench => ("bench", GIB),
            Mode::Test | Mode::Shell => return Ok(()),
        };
        let with = if self.smp == 1 { "1 CPU".into() } else { format!("{} CPUs", self.smp) };
        // What the last act does without, it does not look at.
        let falls = self.mode == Mode::Demo && self.iommu && self.edu && self.dimms.len() > 1;
        let each = DESK_SHARED_BYTES + u64::from(self.smp) * DESK_CPU_BYTES;
        for (dimm, which) in self.dimms.iter().zip(["first", "second"]).filter(|_| falls) {
            ensure!(
                dimm.size_bytes >= each,
                "the demonstration needs memory modules of {} with {with}, and the {which} one has {}",
                size::show(each),
                size::show(dimm.size_bytes)
            );
        }
        let lent = self.virtio_pmem.first().map(|lent| lent.size_bytes);
        let lent = lent.or(self.dimms.first().map(|dimm| dimm.size_bytes));
        let Some(has) = self.pmem.first().map(|nvdimm| nvdimm.size_bytes).or(lent) else { return Ok(()) };
        ensure!(
            has >= needed,
            "{what} needs a device of {} with {with}, and the first one has {}",
            size::show(needed),
            size::show(has)
        );
        Ok(())
    }

    pub(crate) fn check_number(&self) -> Result<()> {
        let (nvdimms, lent) = (self.pmem.len(), self.virtio_pmem.len());
        ensure!(nvdimms <= MOST_NVDIMMS, "--pmem: {nvdimms} NVDIMMs, and the kernel keeps {MOST_NVDIMMS}");
        let dimms = self.dimms.len();
        ensure!(dimms <= MOST_DIMMS, "--dimm: {dimms} modules, and there is room for {MOST_DIMMS}");
        let room = MOST_ON_PCI - usize::from(self.edu) - usize::from(self.nvme_bytes() > 0);
        ensure!(lent <= room, "--virtio-pmem: {lent} devices, and PCI has room for {room}");
        Ok(())
    }

    /// Refuses boot options of which the kernel would not see the end.
    ///
    /// # Errors
    /// One line.
    pub(crate) fn check_options(&self) -> Result<()> {
        let bytes = if self.boots.is_unplug() { self.boot_options().len() } else { 0 };
        ensure!(
            bytes <= MOST_OPTION_BYTES,
            "the boot options have {bytes} bytes in all, and the kernel reads {MOST_OPTION_BYTES}"
        );
        Ok(())
    }

    pub(crate) fn check_window(&self) -> Result<()> {
        let fits = self.window_end().is_some_and(|end| end <= DIRECT_MAP_BYTES);
        let end = size::show(DIRECT_MAP_BYTES);
        ensure!(fits, "--pmem, --dimm: that much ends above {end}, the end of the kernel's direct map");
        Ok(())
    }

    /// Bytes that every backing takes in the window for persistent memory, with room to be aligned; `None` beyond 64 bits.
    fn window_bytes(&self) -> Option<u64> {
        let nvdimms = self.pmem.iter().map(|nvdimm| (nvdimm.size_bytes, LABEL_BYTES + nvdimm.align_bytes()));
        let lent = self.virtio_pmem.iter().map(|lent| (lent.size_bytes, GIB));
        let dimms = self.dimms.iter().map(|dimm| (dimm.size_bytes, GIB.max(dimm.align_bytes())));
        let spare = (self.spare.slots != 0).then_some((self.spare.bytes, 0));
        let dimms = dimms.chain(spare);
        nvdimms.chain(lent).chain(dimms).try_fold(0u64, |sum, (size, more)| sum.checked_add(size)?.checked_add(more))
    }

    /// Where the window for persistent memory ends at most, in bytes of physical address; `None` beyond 64 bits.
    fn window_end(&self) -> Option<u64> {
        let end = self.window_end_from(ABOVE)?;
        if end.checked_add(PCI_BYTES)? < HYPER_TRANSPORT { Some(end) } else { self.window_end_from(TIB) }
    }

    /// The same where what does not fit below 4 GiB begins at `start`.
    fn window_end_from(&self, start: u64) -> Option<u64> {
        // RAM comes first, and QEMU leaves 1 GiB for each slot's alignment. The ends of both are rounded up to 1 GiB.
        let around = self.mem_bytes + self.nr_slots() as u64 * GIB + 2 * GIB;
        start.checked_add(self.window_bytes()?)?.checked_add(around)
    }

    /// As [`Machine::window_bytes`], of a machine that has been checked.
    pub(crate) fn hotplug_bytes(&self) -> u64 {
        self.window_bytes().unwrap_or(u64::MAX)
    }

    /// How many devices have memory in that window.
    pub(crate) fn nr_slots(&self) -> usize {
        self.pmem.len() + self.virtio_pmem.len() + self.dimms.len() + self.spare.slots
    }

    /// How many physical address bits the CPU needs so that every NVDIMM can be addressed, and PCI behind them. 40 is what
    /// QEMU's emulated CPU has by itself.
    #[must_use]
    pub fn phys_bits(&self) -> u32 {
        let end = self.window_end().and_then(|end| end.checked_add(PCI_BYTES)).unwrap_or(u64::MAX);
        (64 - end.leading_zeros()).max(40)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::Nvdimm;
    use crate::cli::Cli;
    use crate::machine::Boots;
    use crate::size::PAGE_BYTES;
    use clap::Parser;
    use std::path::Path;

    /// Behind the window QEMU keeps 32 GiB for PCI, which have to be addressable too, or it does not start.
    #[test]
    fn what_comes_behind_the_window_counts() {
        let bits = |size| Machine { pmem: vec![Nvdimm::temporary(size)], ..Machine::default() }.phys_bits();
        for (size, wanted) in [
            (GIB, 40),
            (900 * GIB, 40),
            // It does not end below the addresses of HyperTransport, and moves to 1 TiB: with PCI above 2 TiB.
            (985 * GIB, 41),
            (1000 * GIB, 42),
            (3050 * GIB, 43),
            (7150 * GIB, 44),
        ] {
            assert_eq!(bits(size), wanted, "{size}");
        }
    }

    fn from_line(args: &[&str]) -> Result<Machine> {
        Machine::from_options(&Cli::parse_from(std::iter::once(&"run-qemu.sh").chain(args)).options)
    }

    // covers: X4
    #[test]
    fn more_devices_than_the_kernel_keeps_are_refused() {
        let many = |option, count| [option, "64M"].repeat(count);
        assert!(from_line(&many("--pmem", MOST_NVDIMMS)).is_ok());
        let error = from_line(&many("--pmem", MOST_NVDIMMS + 1)).expect_err("too many").to_string();
        assert_eq!(error, "--pmem: 33 NVDIMMs, and the kernel keeps 32");
        let with = |count, more: &[&'static str]| from_line(&[&many("--virtio-pmem", count), more].concat());
        for (more, most) in [(&[][..], 27), (&["--edu=off"], 28), (&["--edu=off", "--nvme", "none"], 29)] {
            assert!(with(most, more).is_ok());
            let error = with(most + 1, more).expect_err("too many").to_string();
            assert_eq!(error, format!("--virtio-pmem: {} devices, and PCI has room for {most}", most + 1));
        }
    }

    // covers: X4
    #[test]
    fn more_boot_options_than_the_kernel_reads_are_refused() {
        let with = |words: &str, boots| Machine { append: vec![words.into()], boots, ..Machine::default() };
        let room = MOST_OPTION_BYTES - with("", Boots::Unplug).boot_options().len() - 1;
        assert!(with(&"x".repeat(room), Boots::Unplug).check_options().is_ok());
        let error = with(&"x".repeat(room + 1), Boots::Unplug).check_options().expect_err("too many").to_string();
        assert_eq!(error, "the boot options have 1025 bytes in all, and the kernel reads 1024");
        // Another kernel is told nothing by them.
        assert!(with(&"x".repeat(room + 1), Boots::Disk("disk".into())).check_options().is_ok());
        let kernel = include_str!("../../kernel/src/bringup/options.rs");
        assert!(kernel.contains(&format!("pub const MAX_BYTES: usize = {MOST_OPTION_BYTES};")));
    }

    // covers: X4
    #[test]
    fn a_device_that_is_too_small_for_the_job_is_refused() {
        let check = |args: &[&str]| from_line(args).and_then(|machine| machine.check_job());
        for size in ["4K", "1M", "2M", "16M"] {
            let error = check(&["--pmem", size]).expect_err("too small").to_string();
            let line = format!("the demonstration needs a device of 20M with 4 CPUs, and the first one has {size}");
            assert_eq!(error, line);
            assert!(
                check(&["--pmem", size, "--mode", "shell"]).is_ok()
                    && check(&["--pmem", size, "--mode", "test"]).is_ok()
            );
        }
        assert!(check(&["--pmem", "16M", "--smp", "3"]).is_ok() && check(&["--pmem", "20M"]).is_ok());
        assert!(check(&["--pmem", "none"]).is_ok() && check(&["--pmem", "none", "--virtio-pmem", "16M"]).is_err());
        let bench = Machine { mode: Mode::Bench, ..from_line(&["--pmem", "512M"]).expect("a machine") };
        assert!(bench.check_job().expect_err("too small").to_string().starts_with("bench needs a device of 1G"));
    }

    // covers: X4
    #[test]
    fn a_module_that_is_too_small_for_the_last_act_is_refused() {
        for (args, line) in [
            (&["--dimm", "64M", "--dimm", "2M"][..], "of 4M with 4 CPUs, and the second one has 2M"),
            (&["--dimm", "4K", "--dimm", "64M"], "of 4M with 4 CPUs, and the first one has 4K"),
            (&["--dimm", "16M", "--dimm", "16M", "--smp", "64"], "of 19M with 64 CPUs, and the first one has 16M"),
        ] {
            let error = from_line(args).expect_err("too small").to_string();
            assert_eq!(error, format!("the demonstration needs memory modules {line}"));
            // Where that act is left out, and where somebody else says what is done, they are as good as others.
            for more in [&["--edu=off"][..], &["--iommu=off"], &["--mode", "shell"], &["--mode", "test"]] {
                assert!(from_line(&[args, more].concat()).is_ok(), "{more:?}");
            }
        }
        for args in [&["--dimm", "4M", "--dimm", "4M", "--dimm", "4K"][..], &["--dimm", "4K"], &["--dimm", "none"]] {
            assert!(from_line(args).is_ok(), "{args:?}");
        }
    }

    /// What was asked for is looked at as a whole before a file is made for a part of it.
    #[test]
    fn a_machine_that_is_refused_leaves_no_file_behind() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let [pmem, dimm, foreign] = ["pmem", "dimm", "foreign"].map(|name| directory.path().join(name));
        std::fs::write(&foreign, [1; 4096]).expect("written");
        let [pmem, dimm, foreign] = [&pmem, &dimm, &foreign].map(|path| path.to_str().expect("UTF-8"));
        let files = ["--pmem-file", pmem, "--dimm-file", dimm, "--mode", "shell"];
        let many = ["--dimm", "64M"].repeat(MOST_DIMMS + 1);
        for (args, word) in [
            ([&files[..], &["--dimm", "64T"]].concat(), "above 64T"),
            ([&files[..], &["--pmem", "64T"]].concat(), "above 64T"),
            ([&files[..], &many].concat(), "--dimm: 17 modules, and there is room for 16"),
            ([&files[..4], &["--dimm", "1M", "--dimm", "1M"]].concat(), "memory modules of 4M"),
            ([&files[..4], &["--pmem", "1M"]].concat(), "a device of 20M"),
            (
                vec!["--mode", "shell", "--pmem-file", pmem, "--dimm-file", directory.path().to_str().unwrap()],
                "directory",
            ),
            (vec!["--pmem-file", pmem, "--dimm-file", foreign], "holds data of an unknown kind"),
            ([&files[..], &["--acpitable", "/no/such/table"]].concat(), "--acpitable"),
        ] {
            let cli = Cli::parse_from(std::iter::once(&"run-qemu.sh").chain(&args));
            let error = format!("{:#}", crate::run::machine(&cli, &cli.options).expect_err("refused"));
            assert!(error.contains(word), "{args:?}: {error}");
            let made = std::fs::read_dir(directory.path()).expect("listed").count() - 1;
            assert_eq!(made, 0, "{args:?}");
        }
        let cli = Cli::parse_from(std::iter::once("run-qemu.sh").chain(files));
        crate::run::machine(&cli, &cli.options).expect("a machine");
        assert!(Path::new(pmem).exists() && Path::new(dimm).exists());
    }

    /// The kernel's constants, as its sources have them.
    #[test]
    fn what_is_said_of_the_kernel_is_so() {
        let source = |path: &str| std::fs::read_to_string(crate::paths::root().join(path)).expect("a source");
        let types = source("kernel/nvdimm/src/nfit/types.rs");
        assert!(types.contains(&format!("pub const MAX_RANGES: usize = {MOST_NVDIMMS};")));
        let load = source("kernel/src/demo/load.rs");
        assert!(load.contains("pub const SMALL_BYTES: u64 = 4 << 20;") && DEMO_SHARED_BYTES == 4 << 20);
        assert!(load.contains("\nconst LARGE_BYTES: u64 = 4 << 20;") && DEMO_CPU_BYTES == 4 << 20);
        let files = source("kernel/src/demo/files.rs");
        for line in ["SHARED_PAGES: u64 = 512;", "RECORDS: u64 = 16;", "SCRATCH_PAGES: u64 = 3;"] {
            assert!(files.contains(&format!("\nconst {line}")), "{line}");
        }
        const { assert!(512 * PAGE_BYTES < DESK_SHARED_BYTES && 2 * (16 + 3) * PAGE_BYTES < DESK_CPU_BYTES) };
        let desk = source("kernel/src/demo/desk.rs");
        assert!(desk.contains("\nconst PAGES: u64 = 64;") && 2 * 64 * PAGE_BYTES < DESK_SHARED_BYTES);
        let layout = source("kernel/src/mem/layout.rs");
        assert!(layout.contains("1 << 46") && DIRECT_MAP_BYTES == 1 << 46);
    }

    #[test]
    fn what_the_kernel_cannot_map_is_refused() {
        let asked = |sizes: &[&str]| {
            let args = sizes.iter().flat_map(|size| ["--pmem", size]);
            Machine::from_options(&Cli::parse_from(std::iter::once("run-qemu.sh").chain(args)).options)
        };
        assert!(asked(&["60T"]).is_ok());
        for sizes in [&["64T"][..], &["32T", "32T"], &["9999999T"], &["16777215T", "16777215T"]] {
            let error = asked(sizes).expect_err("it cannot be mapped");
            assert!(error.to_string().contains("above 64T"), "{error}");
        }
    }
}
