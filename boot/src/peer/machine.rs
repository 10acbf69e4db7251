//! The machine that measures Linux: the same emulator, CPU and mode as ours, but for what follows.
//!
//! One CPU: with two of them the peer does not boot in this mode. One nanosecond of the guest's time for each instruction
//! instead of 64: its timer interrupts 250 times a second of that time, and would else come every 62,500 instructions
//! and be in the figures. And the options on its command line, all of which make it faster or quieter.

use super::guest::Guest;
use super::packages::Kernel;
use super::{CPU, LARGE_GIB, SIZES_GIB, guest};
use crate::backing::{LARGEST_FILE_BYTES, qemu_value};
use crate::size::{GIB, MIB, TIB};
use crate::spawn::spawn;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How the kernel is asked to run: no mitigations, no clearing of pages that are given out, nothing printed.
const OPTIONS: &str = "console=ttyS0 quiet loglevel=1 nokaslr tsc=reliable nowatchdog audit=0 panic=-1 \
                       random.trust_cpu=on mitigations=off init_on_alloc=0";
/// And where devices are behind an IOMMU: each invalidation before the unmap returns, none put off.
const IOMMU_OPTIONS: &str = "intel_iommu=on iommu.strict=1";
/// A guest that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(1800);

/// An NVDIMM whose memory is mapped with leaves of one size.
#[derive(Debug)]
struct Nvdimm {
    leaf: &'static str,
    gib: u64,
    address: u64,
}

impl Nvdimm {
    /// Its size: what can be mapped begins at the first multiple of a leaf, but of 2 MiB at least, behind a header.
    fn bytes(&self) -> u64 {
        self.gib * GIB + if self.leaf == "1G" { GIB } else { 2 * MIB }
    }
}

/// What is measured in one boot.
#[derive(Clone, Copy, Debug)]
pub enum Boot {
    /// Everything, on devices of up to 16 GiB, which lie as low as they can: the tree in which Linux finds the device of a
    /// frame is the deeper, the higher the address.
    Small,
    /// A device of 6 TiB with leaves of 1 GiB. With smaller ones its `struct page`s would not fit into RAM.
    Large,
    /// Mappings for a device behind an IOMMU. The other boots have none, so that their figures do not depend on it.
    Iommu,
}

impl Boot {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Small, Self::Large, Self::Iommu];

    fn word(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Large => "large",
            Self::Iommu => "iommu",
        }
    }

    /// The kernel's options.
    fn options(self) -> String {
        match self {
            Self::Small | Self::Large => OPTIONS.into(),
            Self::Iommu => format!("{OPTIONS} {IOMMU_OPTIONS}"),
        }
    }

    /// Its devices but for the NVDIMMs. The IOMMU comes first: QEMU asks it about those that come later only. `edu` is one
    /// for which Linux has no driver.
    fn devices(self) -> &'static [&'static str] {
        match self {
            Self::Small | Self::Large => &[],
            Self::Iommu => &["intel-iommu,aw-bits=48", "edu"],
        }
    }

    /// Its NVDIMMs, by address.
    fn nvdimms(self) -> Vec<Nvdimm> {
        // QEMU has no memory for devices below 1 TiB where it does not all fit there.
        let mut address = if let Self::Small = self { 8 * GIB } else { 2 * TIB };
        let kinds: Vec<_> = match self {
            Self::Small => SIZES_GIB.iter().flat_map(|&gib| ["4K", "2M", "1G"].map(|leaf| (leaf, gib))).collect(),
            Self::Large => vec![("1G", LARGE_GIB)],
            Self::Iommu => Vec::new(),
        };
        let nvdimm = |(leaf, gib)| {
            let nvdimm = Nvdimm { leaf, gib, address };
            address += nvdimm.bytes().next_multiple_of(GIB);
            nvdimm
        };
        kinds.into_iter().map(nvdimm).collect()
    }

    /// Addresses of more than 40 bits, and RAM: the `struct page`s of 16 GiB are 256 MiB, the page tables of those of
    /// 6 TiB 200.
    fn size(self) -> (&'static str, &'static str) {
        match self {
            Self::Small => ("", "4G,slots=16,maxmem=128G"),
            Self::Large => (",phys-bits=44", "4G,slots=1,maxmem=8T"),
            Self::Iommu => ("", "4G"),
        }
    }
}

/// The command line without the files.
fn arguments(boot: Boot) -> Vec<String> {
    let (nvdimms, (bits, mem)) = (boot.nvdimms(), boot.size());
    let mut args: Vec<String> = ["-nodefaults", "-no-user-config", "-no-reboot"].map(String::from).into();
    let mut pair = |option: &str, value: String| args.extend([option.into(), value]);
    pair("-display", "none".into());
    pair("-serial", "stdio".into());
    pair("-machine", "q35,nvdimm=on".into());
    pair("-cpu", format!("max,{}{bits}", CPU.join(",")));
    pair("-accel", "tcg".into());
    pair("-icount", "shift=0,sleep=off".into());
    pair("-rtc", "base=2024-01-01,clock=vm".into());
    pair("-smp", "1".into());
    pair("-m", mem.into());
    boot.devices().iter().for_each(|device| pair("-device", (*device).into()));
    for (index, nvdimm) in nvdimms.iter().enumerate() {
        let address = nvdimm.address;
        pair("-device", format!("nvdimm,id=nvdimm{index},memdev=pmem{index},addr={address}"));
    }
    let named = nvdimms.iter().map(|nvdimm| format!("{}:{}:{:#x}", nvdimm.leaf, nvdimm.gib, nvdimm.address));
    pair(
        "-append",
        format!("{} peer.boot={} peer.devices={}", boot.options(), boot.word(), named.collect::<Vec<_>>().join(",")),
    );
    args
}

/// What the figures depend on, in one word: the packages, the sources, the machine and QEMU.
///
/// # Errors
/// When a source cannot be read, or there is no QEMU.
pub fn recipe(kernel: &Kernel) -> Result<String> {
    let mut parts = vec![format!("{kernel:?}"), qemu_version()?];
    parts.extend(Boot::ALL.map(|boot| arguments(boot).join(" ")));
    for (_, file) in guest::sources() {
        parts.push(fs::read_to_string(&file).with_context(|| file.display().to_string())?);
    }
    Ok(hash(&parts))
}

/// The version of QEMU, in its own words.
///
/// # Errors
/// When it cannot be started.
pub fn qemu_version() -> Result<String> {
    let said = Command::new("qemu-system-x86_64").arg("--version").output().context("qemu-system-x86_64")?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let version = said.lines().next().and_then(|line| line.split(" version ").nth(1)).unwrap_or("unknown");
    Ok(version.split_whitespace().next().unwrap_or("unknown").into())
}

/// A short word for a long text. Another compiler's library may give another: then it is made, or measured, anew.
pub fn hash(parts: &[String]) -> String {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Ends QEMU, however this ends.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It has mostly ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots the guest, and answers its console's lines when it has ended.
///
/// # Errors
/// When QEMU cannot be started, or the guest takes too long.
pub fn run(guest: &Guest, boot: Boot, scratch: &Path) -> Result<Vec<String>> {
    let mut command = Command::new("qemu-system-x86_64");
    // A memory stands before the device that has it.
    for (index, nvdimm) in boot.nvdimms().iter().enumerate() {
        let bytes = nvdimm.bytes();
        let from = if bytes > LARGEST_FILE_BYTES {
            "memory-backend-ram,reserve=off".into()
        } else {
            let path = scratch.join(format!("pmem{index}"));
            File::create(&path)?.set_len(bytes).with_context(|| path.display().to_string())?;
            format!("memory-backend-file,mem-path={},share=on,align=2M", qemu_value(&path)?)
        };
        command.args(["-object", &format!("{from},id=pmem{index},size={bytes}")]);
    }
    command.args(arguments(boot)).arg("-kernel").arg(&guest.vmlinuz).arg("-initrd").arg(&guest.initrd);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut qemu = Ended(spawn(command).context("qemu-system-x86_64 cannot be started")?);
    let stdout = qemu.0.stdout.take().context("QEMU's output")?;
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(|line| line.ok()) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_string()).is_err() {
                break;
            }
        }
    });
    let (deadline, mut console) = (Instant::now() + PATIENCE, Vec::new());
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => console.push(line),
            Err(RecvTimeoutError::Disconnected) => return Ok(console),
            Err(RecvTimeoutError::Timeout) => {
                let last = console.last().map_or("nothing", String::as_str);
                bail!("Linux did not end in {} s; its last line: {last}", PATIENCE.as_secs());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_nvdimm_lies_over_another_and_each_begins_at_a_gibibyte() {
        let all = Boot::Small.nvdimms();
        assert_eq!((all.len(), Boot::Large.nvdimms().len(), Boot::Iommu.nvdimms().len()), (9, 1, 0));
        assert!(all.iter().all(|nvdimm| nvdimm.address.is_multiple_of(GIB)));
        assert!(all.windows(2).all(|pair| pair[0].address + pair[0].bytes() <= pair[1].address));
    }

    #[test]
    fn the_machine_is_ours_but_for_what_is_said() {
        let line = arguments(Boot::Small).join(" ");
        for part in
            ["-machine q35,nvdimm=on", "-cpu max,la57=off,erms=off", "-accel tcg", "sleep=off", "peer.devices=4K:1:0x"]
        {
            assert!(line.contains(part), "{part:?} is not in {line}");
        }
    }

    /// The figures of the other boots are measured without an IOMMU.
    #[test]
    fn one_boot_alone_has_an_iommu_and_it_is_strict() {
        for boot in Boot::ALL {
            let line = arguments(boot).join(" ");
            for part in ["-device intel-iommu,aw-bits=48 -device edu", " intel_iommu=on iommu.strict=1 "] {
                assert_eq!(line.contains(part), matches!(boot, Boot::Iommu), "{part:?} in {line}");
            }
        }
    }

    #[test]
    fn the_guest_knows_each_boot_by_its_word() {
        let [.., init] = guest::sources().map(|(_, file)| fs::read_to_string(file).expect("a source"));
        for boot in Boot::ALL {
            assert!(init.contains(&format!("@peer done={}\"", boot.word())), "{boot:?}");
            assert!(arguments(boot).last().is_some_and(|line| line.contains(&format!("peer.boot={} ", boot.word()))));
        }
    }
}
