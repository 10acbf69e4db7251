//! What a machine can have: how much memory, at which addresses, how many devices, and how large for what job.

use crate::backing::LABEL_BYTES;
use crate::cli::Mode;
use crate::machine::Machine;
use crate::size::{self, GIB, MIB, TIB};
use anyhow::{Result, ensure};

/// The physical addresses that the kernel's direct map has room for, in bytes (`kernel/src/mem/layout.rs`).
const DIRECT_MAP_BYTES: u64 = 64 * TIB;

/// How many NVDIMMs the kernel keeps at most (`kernel/nvdimm/src/nfit/types.rs`).
const MOST_NVDIMMS: usize = 32;
/// How many devices fit on QEMU's PCI bus beside what every machine has there.
const MOST_ON_PCI: usize = 29;

/// How many memory modules a machine is given at most: so many can come back beside all the others.
const MOST_DIMMS: usize = 16;

/// What the demonstration uses of the first device, in bytes: what all CPUs share, and what each has for itself
/// (`kernel/src/demo/load.rs`).
const DEMO_SHARED_BYTES: u64 = 4 * MIB;
const DEMO_CPU_BYTES: u64 = 4 * MIB;

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
        let lent = self.virtio_pmem.first().map(|lent| lent.size_bytes);
        let lent = lent.or(self.dimms.first().map(|dimm| dimm.size_bytes));
        let Some(has) = self.pmem.first().map(|nvdimm| nvdimm.size_bytes).or(lent) else { return Ok(()) };
        let with = if self.smp == 1 { "1 CPU".into() } else { format!("{} CPUs", self.smp) };
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
    use clap::Parser;

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

    /// The kernel's constants, as its sources have them.
    #[test]
    fn what_is_said_of_the_kernel_is_so() {
        let source = |path: &str| std::fs::read_to_string(crate::paths::root().join(path)).expect("a source");
        let types = source("kernel/nvdimm/src/nfit/types.rs");
        assert!(types.contains(&format!("pub const MAX_RANGES: usize = {MOST_NVDIMMS};")));
        let load = source("kernel/src/demo/load.rs");
        assert!(load.contains("pub const SMALL_BYTES: u64 = 4 << 20;") && DEMO_SHARED_BYTES == 4 << 20);
        assert!(load.contains("\nconst LARGE_BYTES: u64 = 4 << 20;") && DEMO_CPU_BYTES == 4 << 20);
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
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("kept");
        let args = ["run-qemu.sh", "--pmem", "64T", "--pmem-file", file.to_str().expect("UTF-8")];
        assert!(Machine::from_options(&Cli::parse_from(args).options).is_err() && !file.exists());
    }
}
