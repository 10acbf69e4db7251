//! The machine that QEMU is asked for: a plain description, and its command line.

use crate::backing::{Dimm, LABEL_BYTES, Nvdimm, Ready, VirtioPmem, qemu_value};
use crate::cli::{Accel, Mode, Options, Switch};
use crate::host_request;
use crate::hotplug;
use crate::paths::Firmware;
use crate::size::{GIB, MIB};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The default NVDIMM's size, in bytes.
pub const DEFAULT_PMEM_BYTES: u64 = GIB;
/// The size of a new `--dimm-file`, in bytes.
pub const DEFAULT_DIMM_BYTES: u64 = GIB;

/// The default NVMe disk's size, in bytes.
pub const DEFAULT_NVME_BYTES: u64 = 64 * MIB;

/// Bits of the addresses that the IOMMU translates, unless a test wants others.
const IOMMU_BITS: u8 = 48;

/// A machine, and what its kernel is to do.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Number of CPUs.
    pub smp: u32,
    /// RAM in bytes.
    pub mem_bytes: u64,
    /// The NVDIMMs, in the order of their addresses.
    pub pmem: Vec<Nvdimm>,
    /// The virtio-pmem devices.
    pub virtio_pmem: Vec<VirtioPmem>,
    /// An IOMMU (VT-d) stands before all devices; the virtio ones go round it.
    pub iommu: bool,
    /// Bits of the addresses that it translates: 39 or 48.
    pub iommu_bits: u8,
    /// QEMU's `edu`, a device with a DMA engine, is there.
    pub edu: bool,
    /// Bytes of an NVMe disk, whose contents go with the run; 0 for none. `None` is the default: see
    /// [`Machine::nvme_bytes`].
    pub nvme: Option<u64>,
    /// Memory modules, which can leave and come back; in the machine's first slots, and at the lowest addresses: what comes
    /// after them begins wherever they end.
    pub dimms: Vec<Dimm>,
    /// What may be plugged in while the guest runs, beside all of those.
    pub spare: Spare,
    /// What the CPU is to have or not, in QEMU's words: `clflush=off`.
    pub cpu: Vec<String>,
    /// What runs the guest's instructions.
    pub accel: Accel,
    /// Count instructions instead of time.
    pub deterministic: bool,
    /// What the kernel does.
    pub mode: Mode,
    /// What lies on the NVDIMMs is written over, and their labels are not looked at.
    pub force: bool,
    /// More boot options, each `key=value`.
    pub append: Vec<String>,
    /// Raw ACPI tables for the guest.
    pub acpitables: Vec<PathBuf>,
    /// Start with the CPUs stopped, and listen for gdb here: a character device in QEMU's words.
    pub gdb: Option<String>,
    /// Raise the machine check that the demonstration asks for. Not in deterministic mode, in which it would come at
    /// another instruction each time.
    pub grants_host_requests: bool,
    /// How long the guest may take before it counts as hung.
    pub timeout: Option<Duration>,
}

/// Room for what is plugged in while the guest runs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Spare {
    /// Slots.
    pub slots: usize,
    /// Bytes, each device with its alignment.
    pub bytes: u64,
    /// NVDIMMs may come, although there may be none at the beginning.
    pub nvdimms: bool,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            smp: 4,
            mem_bytes: 512 * MIB,
            pmem: vec![Nvdimm::temporary(DEFAULT_PMEM_BYTES)],
            virtio_pmem: Vec::new(),
            dimms: Vec::new(),
            iommu: true,
            iommu_bits: IOMMU_BITS,
            edu: true,
            nvme: None,
            spare: Spare::default(),
            cpu: Vec::new(),
            accel: Accel::Tcg,
            deterministic: false,
            mode: Mode::Demo,
            force: false,
            append: Vec::new(),
            acpitables: Vec::new(),
            gdb: None,
            grants_host_requests: true,
            timeout: Some(Duration::from_secs(300)),
        }
    }
}

/// The files of one run, named on the command line.
#[derive(Debug)]
pub struct Files<'a> {
    /// The disk image.
    pub image: &'a Path,
    /// The firmware; `vars` is this run's own copy.
    pub firmware: &'a Firmware,
    /// Where QEMU's monitor listens.
    pub qmp_socket: &'a Path,
    /// The NVDIMMs' backings, as many as [`Machine::pmem`].
    pub backings: &'a [Ready],
    /// The modules' backings, as many as [`Machine::dimms`].
    pub dimm_backings: &'a [Ready],
    /// The virtio-pmem devices' backings, as many as [`Machine::virtio_pmem`].
    pub virtio_backings: &'a [Ready],
    /// What is behind the NVMe disk, where there is one.
    pub nvme: Option<&'a Path>,
}

impl Machine {
    /// The machine that the command line describes.
    ///
    /// # Errors
    /// One line about a file that was named and cannot be used.
    pub fn from_options(options: &Options) -> Result<Self> {
        let mut sizes = options.pmem.clone();
        // Before a file is made for them.
        let asked = sizes.iter().copied().filter(|size| *size != 0).map(Nvdimm::temporary).collect();
        let asked =
            Self { pmem: asked, mem_bytes: options.mem, smp: options.smp, mode: options.mode, ..Self::default() };
        asked.check_number()?;
        asked.check_window()?;
        asked.check_job()?;
        let mut pmem = Vec::new();
        if let Some(file) = &options.pmem_file {
            let first = (!sizes.is_empty()).then(|| sizes.remove(0));
            pmem.push(Nvdimm::kept(&std::path::absolute(file)?, first, DEFAULT_PMEM_BYTES)?);
        } else if sizes.is_empty() {
            sizes.push(DEFAULT_PMEM_BYTES);
        }
        pmem.extend(sizes.into_iter().filter(|size| *size != 0).map(Nvdimm::temporary));
        let mut modules = options.dimm.clone();
        let mut dimms = Vec::new();
        if let Some(file) = &options.dimm_file {
            let first = (!modules.is_empty()).then(|| modules.remove(0));
            dimms.push(Dimm::kept(&std::path::absolute(file)?, first, DEFAULT_DIMM_BYTES)?);
        }
        dimms.extend(modules.into_iter().map(Dimm::temporary));
        // What falls off the desk in the demonstration, unless something else was asked for; in whole GiB, so that what
        // comes after them is aligned as without them.
        if dimms.is_empty() && options.mode == Mode::Demo && !options.pmem.contains(&0) {
            dimms.extend([DEFAULT_DIMM_BYTES; 2].map(Dimm::temporary));
        }
        if options.unarmed {
            let first = pmem.first_mut().context("--unarmed is about the first NVDIMM, and there is none")?;
            first.unarmed = true;
        }
        for table in &options.acpitable {
            let opened = std::fs::File::open(table).and_then(|file| file.metadata());
            let meta = opened.with_context(|| format!("--acpitable {}", table.display()))?;
            ensure!(meta.is_file(), "--acpitable {}: not a regular file", table.display());
        }
        let patient = options.debug || options.mode == Mode::Shell;
        let seconds = options.timeout.unwrap_or(if patient { 0 } else { 300.max(15 * u64::from(options.smp)) });
        let machine = Self {
            smp: options.smp,
            mem_bytes: options.mem,
            pmem,
            virtio_pmem: options.virtio_pmem.iter().copied().map(VirtioPmem::new).collect(),
            iommu: options.iommu == Switch::On,
            iommu_bits: IOMMU_BITS,
            edu: options.edu == Switch::On,
            nvme: options.nvme,
            dimms,
            spare: Spare::default(),
            cpu: Vec::new(),
            accel: options.accel,
            deterministic: options.deterministic,
            mode: options.mode,
            force: options.force,
            append: options.append.clone(),
            acpitables: options.acpitable.clone(),
            gdb: options.debug.then(|| "tcp::1234".into()),
            grants_host_requests: true,
            timeout: (seconds != 0).then(|| Duration::from_secs(seconds)),
        };
        machine.check_number()?;
        machine.check_window()?;
        machine.check_job()?;
        Ok(machine)
    }

    /// Bytes of the NVMe disk that is there. In deterministic mode there is none unless it was asked for: a host thread
    /// reads its file, and so it answers at another instruction each time.
    #[must_use]
    pub fn nvme_bytes(&self) -> u64 {
        self.nvme.unwrap_or(if self.deterministic { 0 } else { DEFAULT_NVME_BYTES })
    }

    /// Is the kernel told that its requests are granted?
    pub(crate) fn promises_host_requests(&self) -> bool {
        self.grants_host_requests && self.mode == Mode::Demo && !self.deterministic
    }

    /// The kernel's boot options, in the form in which they go through fw_cfg.
    #[must_use]
    pub fn boot_options(&self) -> String {
        let mut words = vec![format!("mode={}", self.mode.word())];
        if self.deterministic {
            words.push("deterministic=1".into());
        }
        if self.force {
            words.push("force=1".into());
        }
        if self.promises_host_requests() {
            words.push(format!("host_requests={}", host_request::PATIENCE_S));
        }
        words.extend(self.append.iter().filter(|word| !word.is_empty()).cloned());
        words.join(" ")
    }

    /// QEMU's whole command line, without the program's name.
    ///
    /// # Errors
    /// When a path is not UTF-8.
    pub fn arguments(&self, files: &Files<'_>) -> Result<Vec<String>> {
        let mut args = Arguments::default();
        self.board(&mut args);
        for (index, ready) in files.dimm_backings.iter().enumerate() {
            args.pair("-object", format!("{},id={}", ready.object, hotplug::backend(index)));
            args.pair("-device", hotplug::device(index));
        }
        for (index, ready) in files.backings.iter().enumerate() {
            args.pair("-object", format!("{},id=pmem{index}", ready.object));
            let unarmed = if self.pmem.get(index).is_some_and(|nvdimm| nvdimm.unarmed) { ",unarmed=on" } else { "" };
            let device = format!("nvdimm,memdev=pmem{index},id=nvdimm{index},label-size={LABEL_BYTES}{unarmed}");
            args.pair("-device", device);
        }
        for (index, ready) in files.virtio_backings.iter().enumerate() {
            args.pair("-object", format!("{},id=vpmem{index}", ready.object));
            args.pair("-device", format!("virtio-pmem-pci,memdev=vpmem{index},id=virtio-pmem{index}"));
        }
        if self.edu {
            // Without the mask it cuts addresses to 28 bits, without a word.
            args.pair("-device", "edu,dma_mask=0xffffffffffffffff");
        }
        if let Some(file) = files.nvme {
            args.pair("-drive", format!("if=none,id=nvme0,format=raw,file={}", qemu_value(file)?));
            args.pair("-device", "nvme,serial=unplug0,drive=nvme0");
        }
        for table in &self.acpitables {
            args.pair("-acpitable", format!("file={}", qemu_value(table)?));
        }
        let (code, vars) = (qemu_value(&files.firmware.code)?, qemu_value(&files.firmware.vars)?);
        args.pair("-drive", format!("if=pflash,unit=0,format=raw,readonly=on,file={code}"));
        args.pair("-drive", format!("if=pflash,unit=1,format=raw,file={vars}"));
        args.pair("-drive", format!("if=none,id=disk,format=raw,readonly=on,file={}", qemu_value(files.image)?));
        args.pair("-device", "virtio-blk-pci,drive=disk,bootindex=0");
        args.pair("-fw_cfg", format!("name=opt/unplug/cmdline,string={}", self.boot_options().replace(',', ",,")));
        args.pair("-qmp", format!("unix:{},server=on,wait=off", qemu_value(files.qmp_socket)?));
        Ok(args.0)
    }

    /// The board, the CPUs, the memory and the devices that every run has.
    fn board(&self, args: &mut Arguments) {
        args.0.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(String::from));
        // `nvdimm=on` makes QEMU write an NFIT of its own. A machine without NVDIMMs has none, and then a table that was
        // handed over with --acpitable is the only one.
        let nvdimm = if self.pmem.is_empty() && !self.spare.nvdimms { "off" } else { "on" };
        args.pair("-machine", format!("q35,nvdimm={nvdimm}"));
        args.pair("-accel", if self.accel == Accel::Kvm { "kvm" } else { "tcg" });
        let bits = self.phys_bits();
        let mut cpu = if bits > 40 { format!("max,phys-bits={bits}") } else { "max".into() };
        self.cpu.iter().for_each(|feature| cpu.extend([",", feature]));
        args.pair("-cpu", cpu);
        args.pair("-smp", self.smp.to_string());
        let slots = self.nr_slots();
        args.pair(
            "-m",
            match slots {
                0 => format!("size={}M", self.mem_bytes / MIB),
                _ => {
                    let max = (self.mem_bytes + self.hotplug_bytes()).next_multiple_of(GIB) / MIB;
                    format!("size={}M,slots={slots},maxmem={max}M", self.mem_bytes / MIB)
                }
            },
        );
        args.pair("-display", "none");
        if self.iommu {
            // Before every device that it is to stand before. Its 39 bits by default do not reach an NVDIMM at 1 TiB.
            args.pair("-device", format!("intel-iommu,aw-bits={}", self.iommu_bits));
        }
        args.pair("-device", "isa-debug-exit,iobase=0xf4,iosize=0x04");
        args.pair("-chardev", "stdio,id=console,signal=off");
        args.pair("-serial", "chardev:console");
        if self.deterministic {
            args.pair("-icount", "shift=6,sleep=off");
            args.pair("-rtc", "base=2024-01-01,clock=vm");
        }
        if let Some(place) = &self.gdb {
            args.pair("-gdb", place.clone());
            args.0.push("-S".into());
        }
    }
}

/// A command line under construction.
#[derive(Default)]
struct Arguments(Vec<String>);

impl Arguments {
    fn pair(&mut self, option: &str, value: impl Into<String>) {
        self.0.push(option.into());
        self.0.push(value.into());
    }
}

#[cfg(test)]
mod tests {
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
        let dimm_backings: Vec<_> = machine
            .dimms
            .iter()
            .enumerate()
            .map(|(index, dimm)| dimm.prepare(dir.path(), index).expect("ready"))
            .collect();
        let firmware = Firmware { code: "code".into(), vars: "vars".into() };
        let files = Files {
            image: Path::new("a,b"),
            firmware: &firmware,
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
        for part in
            ["-device edu,dma_mask=0xffffffffffffffff ", "if=none,id=nvme0,format=raw,file=disk,,0 ", "drive=nvme0"]
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
        assert_eq!((kept.dimms.len(), file.metadata().expect("made").len()), (1, 32 * MIB));
        assert_eq!(Dimm::kept(&file, None, GIB).expect("opened").size_bytes, 32 * MIB);
        let other = Dimm::kept(&file, Some(MIB), GIB).expect_err("another size").to_string();
        assert!(other.contains("holds a module of 32M, not of 1M"), "{other}");
    }

    #[test]
    fn deterministic_counts_instructions_and_tells_the_kernel() {
        let line = line(&Machine { deterministic: true, append: vec!["log=debug".into()], ..Machine::default() });
        assert!(line.contains("-icount shift=6,sleep=off"), "{line}");
        assert!(line.contains("string=mode=demo deterministic=1 log=debug"), "{line}");
    }
}
