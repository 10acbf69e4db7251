//! Describes a machine and what it boots, and starts a guest.

use crate::backing::{Dimm, Nvdimm, VirtioPmem};
use crate::build;
use crate::cli::{Accel, LEAST_MEM_BYTES, Mode};
use crate::console::{Dialect, Echo};
use crate::error::Error;
use crate::guest::Guest;
use crate::machine::{Boots, Machine};
use crate::outcome::Outcome;
use crate::paths::Profile;
use crate::size::{self, GIB, MIB, PAGE_BYTES};
use anyhow::{Result as Checked, ensure};
use std::path::PathBuf;
use std::time::Duration;

/// A machine that is being described: see [`Guest::builder`]. It begins with 4 CPUs, 512 MiB of RAM, no device, our own kernel
/// with its shell, and 300 s.
///
/// ```no_run
/// use boot::Guest;
/// use boot::size::{GIB, MIB};
///
/// # fn main() -> Result<(), boot::Error> {
/// let mut guest = Guest::builder().cpus(2).memory(256 * MIB).nvdimm(GIB).start()?;
/// let attached = guest.shell("attach 0")?.record("attached")?;
/// assert_eq!(attached.field::<u64>("size")?, GIB);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "it is started by `start` or `run`"]
pub struct Builder {
    machine: Machine,
    dialect: Dialect,
    echo: Echo,
    is_built: bool,
}

impl Default for Builder {
    fn default() -> Self {
        let machine = Machine {
            pmem: Vec::new(),
            iommu: false,
            edu: false,
            nvme: Some(0),
            mode: Mode::Shell,
            ..Machine::default()
        };
        machine.into()
    }
}

/// Goes on from a machine that was described otherwise.
impl From<Machine> for Builder {
    fn from(machine: Machine) -> Self {
        let dialect = if machine.boots.is_unplug() { Dialect::default() } else { Dialect::foreign() };
        Self { machine, dialect, echo: Echo::Off, is_built: false }
    }
}

/// The machine.
impl Builder {
    /// CPUs: 1 to 64 for our own kernel.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.machine.smp = cpus;
        self
    }

    /// RAM in bytes, whole MiB; our own kernel needs 100 MiB.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.machine.mem_bytes = bytes;
        self
    }

    /// One more NVDIMM: a size in bytes, or one whose contents are kept ([`Nvdimm::kept`]).
    pub fn nvdimm(mut self, nvdimm: impl Into<Nvdimm>) -> Self {
        self.machine.pmem.push(nvdimm.into());
        self
    }

    /// One more memory module that can leave ([`Guest::hand`]): a size in bytes, or one whose contents are kept.
    pub fn dimm(mut self, dimm: impl Into<Dimm>) -> Self {
        self.machine.dimms.push(dimm.into());
        self
    }

    /// One more virtio-pmem device: a size in bytes, or a [`VirtioPmem`].
    pub fn virtio_pmem(mut self, lent: impl Into<VirtioPmem>) -> Self {
        self.machine.virtio_pmem.push(lent.into());
        self
    }

    /// An NVMe disk of so many bytes, whose contents go with the run.
    pub fn nvme(mut self, bytes: u64) -> Self {
        self.machine.nvme = Some(bytes);
        self
    }

    /// An IOMMU (Intel VT-d) before all devices but the virtio ones.
    pub fn iommu(mut self) -> Self {
        self.machine.iommu = true;
        self
    }

    /// QEMU's `edu`, a device with a DMA engine.
    pub fn edu(mut self) -> Self {
        self.machine.edu = true;
        self
    }

    /// Instructions are counted, and time follows from them.
    pub fn deterministic(mut self) -> Self {
        self.machine.deterministic = true;
        self
    }

    /// What runs the guest's instructions; QEMU's own emulation unless asked otherwise.
    pub fn accel(mut self, accel: Accel) -> Self {
        self.machine.accel = accel;
        self
    }

    /// One more feature that the CPU is to have or not, in QEMU's words: `clflush=off`.
    pub fn cpu_feature(mut self, feature: impl Into<String>) -> Self {
        self.machine.cpu.push(feature.into());
        self
    }

    /// More words for QEMU's command line, as they are: devices that are not here.
    pub fn qemu(mut self, words: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.machine.qemu.extend(words.into_iter().map(Into::into));
        self
    }

    /// How long the guest may take in all; `None`: for ever.
    pub fn time_limit(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.machine.timeout = limit.into();
        self
    }

    /// Where the console goes besides memory; nowhere unless asked.
    pub fn echo(mut self, echo: Echo) -> Self {
        self.echo = echo;
        self
    }
}

/// Our own kernel.
impl Builder {
    /// What it does: the shell unless asked otherwise.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.machine.mode = mode;
        self
    }

    /// It runs those of its tests whose names fit, `mm.*` or `*`, and ends: see [`Outcome::ktap`].
    pub fn tests(self, names: &str) -> Self {
        self.mode(Mode::Test).option(format!("tests={names}"))
    }

    /// One more boot option, `key=value`.
    pub fn option(mut self, option: impl Into<String>) -> Self {
        self.machine.append.push(option.into());
        self
    }

    /// Which of our kernels.
    pub fn profile(mut self, profile: Profile) -> Self {
        self.machine.build = profile;
        self
    }

    /// The kernel in this disk image, instead of the one that is found ([`paths::image_of`](crate::paths::image_of)).
    pub fn image(mut self, image: impl Into<PathBuf>) -> Self {
        self.machine.boots = Boots::UnplugFrom(image.into());
        self
    }

    /// Kernel and disk image are brought up to date first, by the project's own `run-qemu.sh build`, which says on standard
    /// error what it does: the first time it takes minutes.
    pub fn built(mut self) -> Self {
        self.is_built = true;
        self
    }
}

/// Another kernel.
impl Builder {
    /// A kernel that QEMU loads itself, without firmware: Linux, or an ELF file for multiboot or PVH. All that comes on the
    /// first serial line is its console, without terminal escapes.
    pub fn kernel(mut self, kernel: impl Into<PathBuf>) -> Self {
        self.machine.boots = Boots::Kernel { kernel: kernel.into(), initrd: None, command_line: String::new() };
        self.dialect = Dialect::foreign();
        self
    }

    /// Its initial file system.
    ///
    /// # Panics
    /// Without [`Builder::kernel`] before.
    pub fn initrd(mut self, file: impl Into<PathBuf>) -> Self {
        let Boots::Kernel { initrd, .. } = &mut self.machine.boots else { panic!("initrd() comes after kernel()") };
        *initrd = Some(file.into());
        self
    }

    /// Its command line: `console=ttyS0` for Linux.
    ///
    /// # Panics
    /// Without [`Builder::kernel`] before.
    pub fn command_line(mut self, line: impl Into<String>) -> Self {
        let Boots::Kernel { command_line, .. } = &mut self.machine.boots else {
            panic!("command_line() comes after kernel()")
        };
        *command_line = line.into();
        self
    }

    /// Another kernel in this disk image, which the firmware (UEFI) boots. The firmware speaks first: see
    /// [`Builder::begins_with`].
    pub fn disk(mut self, image: impl Into<PathBuf>) -> Self {
        self.machine.boots = Boots::Disk(image.into());
        self.dialect = Dialect::foreign();
        self
    }

    /// How the kernel's first line begins: what comes before is kept apart.
    pub fn begins_with(mut self, words: impl Into<String>) -> Self {
        self.dialect.first = words.into();
        self
    }

    /// What its shell prints in column 0 when it waits for a command, for [`Guest::prompt`] and [`Guest::command`].
    pub fn prompt(mut self, prompt: impl Into<String>) -> Self {
        self.dialect.prompt = prompt.into();
        self
    }
}

impl Builder {
    /// Starts the guest.
    ///
    /// # Errors
    /// [`Error::Machine`]: what such a machine does not have, a file that is not there, or QEMU that cannot be started.
    pub fn start(self) -> Result<Guest, Error> {
        self.check().map_err(Error::machine)?;
        if self.is_built {
            build::by_the_front_door(self.machine.build)?;
        }
        Guest::start_with(&self.machine, self.echo, self.dialect)
    }

    /// Starts the guest, and waits for its end.
    ///
    /// # Errors
    /// As [`Builder::start`]. However the guest ended, hanging for instance, is no error but in the outcome.
    pub fn run(self) -> Result<Outcome, Error> {
        self.start()?.finish()
    }

    fn check(&self) -> Checked<()> {
        let machine = &self.machine;
        let whole = machine.mem_bytes.is_multiple_of(MIB) && machine.mem_bytes <= 512 * GIB && machine.mem_bytes != 0;
        ensure!(whole, "RAM of {} bytes: it is up to 512G, in whole megabytes", machine.mem_bytes);
        let sizes = machine.pmem.iter().map(|nvdimm| nvdimm.size_bytes);
        let sizes = sizes.chain(machine.dimms.iter().map(|dimm| dimm.size_bytes));
        for bytes in sizes.chain(machine.virtio_pmem.iter().map(|lent| lent.size_bytes)) {
            let is_pages = bytes != 0 && bytes.is_multiple_of(PAGE_BYTES);
            ensure!(is_pages, "a memory device of {bytes} bytes: it is pages of {PAGE_BYTES} bytes, one at least");
        }
        ensure!(machine.smp != 0, "a machine has a CPU at least");
        match &machine.boots {
            Boots::Unplug | Boots::UnplugFrom(_) => {
                ensure!(machine.smp <= 64, "{} CPUs: the kernel knows 64 at most", machine.smp);
                let least = size::show(LEAST_MEM_BYTES);
                let has = size::show(machine.mem_bytes);
                ensure!(machine.mem_bytes >= LEAST_MEM_BYTES, "RAM of {has}: the kernel needs {least}");
                let bad = machine.append.iter().find(|option| option.chars().any(|c| c == ',' || c.is_control()));
                ensure!(bad.is_none(), "{bad:?}: a boot option has no comma and no control character");
                machine.check_window()?;
                machine.check_job()?;
            }
            Boots::Disk(_) => {}
            Boots::Kernel { kernel, initrd, .. } => {
                for file in [Some(kernel), initrd.as_ref()].into_iter().flatten() {
                    ensure!(file.is_file(), "there is no file {}", file.display());
                }
            }
        }
        machine.check_number()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// covers: T5
    #[test]
    fn a_machine_that_makes_no_sense_is_one_line_before_anything_starts() {
        let machine = Guest::builder;
        let refused = |builder: Builder| {
            let error = builder.start().expect_err("refused");
            assert!(matches!(error, Error::Machine(_)), "{error}");
            error.to_string()
        };
        for (builder, words) in [
            (machine().cpus(0), "a CPU at least"),
            (machine().cpus(65), "knows 64 at most"),
            (machine().memory(MIB + 1), "in whole megabytes"),
            (machine().memory(64 * MIB), "RAM of 64M: the kernel needs 100M"),
            (machine().nvdimm(0), "one at least"),
            (machine().dimm(4097), "4097 bytes"),
            (machine().option("a=1,2"), "no comma"),
            (machine().image("/nowhere/a.img"), "there is no disk image at /nowhere/a.img"),
            (machine().disk("/nowhere/a.img"), "there is no disk image at /nowhere/a.img"),
            (machine().kernel("/nowhere/vmlinuz"), "there is no file /nowhere/vmlinuz"),
            (machine().kernel("/dev/null").initrd("/nowhere/initrd"), "there is no file /dev/null"),
            (machine().virtio_pmem(MIB).mode(Mode::Demo), "the demonstration needs"),
        ] {
            let line = refused(builder);
            assert!(line.contains(words) && !line.contains('\n'), "{words:?} is not in {line:?}");
        }
    }

    #[test]
    fn a_machine_has_what_was_asked_for_and_nothing_else() {
        let Builder { machine, .. } = Guest::builder();
        assert!(machine.pmem.is_empty() && !machine.iommu && !machine.edu && machine.nvme_bytes() == 0);
        let Builder { machine, .. } = Guest::builder().nvdimm(GIB).nvdimm(2 * GIB).tests("mm.*").option("quiet=1");
        assert_eq!(machine.pmem, [Nvdimm::temporary(GIB), Nvdimm::temporary(2 * GIB)]);
        assert_eq!(machine.boot_options(), "mode=test tests=mm.* quiet=1");
    }
}
