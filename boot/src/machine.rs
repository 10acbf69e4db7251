//! The machine that QEMU is asked for: a plain description, and its command line.

use crate::backing::{Dimm, Kind, LABEL_BYTES, Nvdimm, OverFile, Ready, VirtioPmem, qemu_value};
use crate::cli::{Accel, Mode, Options, Switch};
use crate::host_request;
use crate::hotplug;
use crate::paths::{self, Firmware, Profile};
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
    /// What it boots.
    pub boots: Boots,
    /// Which of our kernels that is: those with trace points, and with faults, have images of their own.
    pub build: Profile,
    /// More words for QEMU's command line, as they are.
    pub qemu: Vec<String>,
    /// How long the guest may take before it counts as hung.
    pub timeout: Option<Duration>,
}

/// What a machine boots.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Boots {
    /// Our kernel, of the disk image that is found for [`Machine::build`].
    #[default]
    Unplug,
    /// Our kernel, of this disk image.
    UnplugFrom(PathBuf),
    /// Another kernel, by way of the firmware (UEFI), from this disk image.
    Disk(PathBuf),
    /// Another kernel, which QEMU loads itself: Linux, or an ELF file for multiboot or PVH.
    Kernel {
        /// Its file.
        kernel: PathBuf,
        /// Linux's initial file system, or multiboot's modules.
        initrd: Option<PathBuf>,
        /// Its command line.
        command_line: String,
    },
}

impl Boots {
    /// Is it our own kernel?
    #[must_use]
    pub fn is_unplug(&self) -> bool {
        matches!(self, Self::Unplug | Self::UnplugFrom(_))
    }
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
            boots: Boots::Unplug,
            build: Profile::Dev,
            qemu: Vec::new(),
            timeout: Some(Duration::from_secs(300)),
        }
    }
}

/// The files of one run, named on the command line.
#[derive(Debug)]
pub struct Files<'a> {
    /// The disk image, and the firmware that boots it; its `vars` are this run's own copy. `None` where QEMU loads the
    /// kernel itself.
    pub disk: Option<(&'a Path, &'a Firmware)>,
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
    /// The machine that the command line describes. No file is made for it: see [`make_files`](Self::make_files).
    ///
    /// # Errors
    /// One line about a file that was named and cannot be used, or about what no machine has or the job cannot be done with.
    pub fn from_options(options: &Options) -> Result<Self> {
        let mut pmem = devices(&options.pmem, options.pmem_file.as_deref(), DEFAULT_PMEM_BYTES)?;
        if options.pmem.is_empty() && options.pmem_file.is_none() {
            pmem.push(Nvdimm::temporary(DEFAULT_PMEM_BYTES));
        }
        let mut dimms = devices(&options.dimm, options.dimm_file.as_deref(), DEFAULT_DIMM_BYTES)?;
        // What falls off the desk in the demonstration, unless something else was asked for; in whole GiB, so that what
        // comes after them is aligned as without them.
        let is_asked = !options.dimm.is_empty() || options.dimm_file.is_some();
        if !is_asked && options.mode == Mode::Demo && !options.pmem.contains(&0) {
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
            boots: Boots::Unplug,
            build: options.build(),
            qemu: Vec::new(),
            timeout: (seconds != 0).then(|| Duration::from_secs(seconds)),
        };
        machine.check_number()?;
        machine.check_window()?;
        machine.check_job()?;
        Ok(machine)
    }

    /// Makes the files that contents are to be kept in, where they are not there yet.
    ///
    /// # Errors
    /// One line that names the file.
    pub fn make_files(&self) -> Result<()> {
        self.pmem.iter().try_for_each(Nvdimm::make)?;
        self.dimms.iter().try_for_each(Dimm::make)
    }

    /// Bytes of the NVMe disk that is there. In deterministic mode there is none unless it was asked for: a host thread
    /// reads its file, and so it answers at another instruction each time.
    #[must_use]
    pub fn nvme_bytes(&self) -> u64 {
        self.nvme.unwrap_or(if self.deterministic { 0 } else { DEFAULT_NVME_BYTES })
    }

    /// The disk image that it boots; `None` where QEMU loads a kernel itself.
    #[must_use]
    pub fn image(&self) -> Option<PathBuf> {
        match &self.boots {
            Boots::Unplug => Some(paths::image_of(self.build)),
            Boots::UnplugFrom(image) | Boots::Disk(image) => Some(image.clone()),
            Boots::Kernel { .. } => None,
        }
    }

    /// The ELF file, with its symbols, of our kernel in that image; `None` of another kernel.
    #[must_use]
    pub fn kernel(&self) -> Option<PathBuf> {
        match (&self.boots, self.build) {
            (Boots::Unplug, Profile::Dev | Profile::Release) => Some(paths::kernel()),
            (Boots::Unplug, profile) => Some(paths::kernel_in(&paths::image_of(profile))),
            (Boots::UnplugFrom(image), _) => Some(paths::kernel_in(image)),
            (Boots::Disk(_) | Boots::Kernel { .. }, _) => None,
        }
    }

    /// Is the kernel told that its requests are granted?
    pub(crate) fn promises_host_requests(&self) -> bool {
        self.grants_host_requests && self.mode == Mode::Demo && !self.deterministic && self.boots.is_unplug()
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
    /// When a path is not UTF-8, or our kernel would not read all of its boot options.
    pub fn arguments(&self, files: &Files<'_>) -> Result<Vec<String>> {
        self.check_options()?;
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
        self.kernel_of_choice(files, &mut args)?;
        args.pair("-qmp", format!("unix:{},server=on,wait=off", qemu_value(files.qmp_socket)?));
        args.0.extend(self.qemu.iter().cloned());
        Ok(args.0)
    }

    /// What it boots, and what that is told.
    fn kernel_of_choice(&self, files: &Files<'_>, args: &mut Arguments) -> Result<()> {
        if let Some((image, firmware)) = files.disk {
            let (code, vars) = (qemu_value(&firmware.code)?, qemu_value(&firmware.vars)?);
            args.pair("-drive", format!("if=pflash,unit=0,format=raw,readonly=on,file={code}"));
            args.pair("-drive", format!("if=pflash,unit=1,format=raw,file={vars}"));
            args.pair("-drive", format!("if=none,id=disk,format=raw,readonly=on,file={}", qemu_value(image)?));
            args.pair("-device", "virtio-blk-pci,drive=disk,bootindex=0");
        }
        match &self.boots {
            Boots::Unplug | Boots::UnplugFrom(_) => {
                let options = self.boot_options().replace(',', ",,");
                args.pair("-fw_cfg", format!("name=opt/unplug/cmdline,string={options}"));
            }
            Boots::Disk(_) => {}
            Boots::Kernel { kernel, initrd, command_line } => {
                args.pair("-kernel", utf8(kernel)?);
                if let Some(initrd) = initrd {
                    args.pair("-initrd", utf8(initrd)?);
                }
                args.pair("-append", command_line);
            }
        }
        Ok(())
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

/// A path as a word of its own: no comma of it has a meaning.
fn utf8(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

/// The devices of one kind, of these sizes (0 is none): the first one is kept in `file` if there is one, which says its size, or
/// will get `default_bytes`, where no size is given.
fn devices<K: Kind>(sizes: &[u64], file: Option<&Path>, default_bytes: u64) -> Result<Vec<OverFile<K>>> {
    let mut sizes = sizes.iter().copied().filter(|size| *size != 0);
    let kept = file.map(|file| OverFile::kept(&std::path::absolute(file)?, sizes.next(), default_bytes)).transpose()?;
    Ok(kept.into_iter().chain(sizes.map(OverFile::temporary)).collect())
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
mod tests;
