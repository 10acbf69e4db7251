//! The machine that measures Linux: the same emulator, CPU and mode as ours, but for what follows.
//!
//! One CPU: with two of them the peer does not boot in this mode. One nanosecond of the guest's time for each instruction
//! instead of 64: its timer interrupts 250 times a second of that time, and would else come every 62,500 instructions
//! and be in the figures. And the options on its command line, all of which make it faster or quieter.

use super::guest::Guest;
use super::packages::Kernel;
use super::{CPU, SIZES_GIB, guest};
use crate::backing::qemu_value;
use crate::guest::ends_with_us;
use crate::size::{GIB, MIB};
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
/// RAM: the struct pages of 16 GiB are 256 MiB.
const MEM: &str = "4G,slots=16,maxmem=128G";
/// Where the first NVDIMM lies.
const FIRST: u64 = 8 * GIB;
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

/// Each size with each leaf; the small ones have the low addresses.
fn nvdimms() -> Vec<Nvdimm> {
    let mut address = FIRST;
    let kinds = SIZES_GIB.iter().flat_map(|&gib| ["4K", "2M", "1G"].map(|leaf| (leaf, gib)));
    kinds
        .map(|(leaf, gib)| {
            let nvdimm = Nvdimm { leaf, gib, address };
            address += nvdimm.bytes().next_multiple_of(GIB);
            nvdimm
        })
        .collect()
}

/// The command line without the files.
fn arguments() -> Vec<String> {
    let mut args: Vec<String> = ["-nodefaults", "-no-user-config", "-no-reboot"].map(String::from).into();
    let mut pair = |option: &str, value: String| args.extend([option.into(), value]);
    pair("-display", "none".into());
    pair("-serial", "stdio".into());
    pair("-machine", "q35,nvdimm=on".into());
    pair("-cpu", format!("max,{}", CPU.join(",")));
    pair("-accel", "tcg".into());
    pair("-icount", "shift=0,sleep=off".into());
    pair("-rtc", "base=2024-01-01,clock=vm".into());
    pair("-smp", "1".into());
    pair("-m", MEM.into());
    for (index, nvdimm) in nvdimms().iter().enumerate() {
        let address = nvdimm.address;
        pair("-device", format!("nvdimm,id=nvdimm{index},memdev=pmem{index},addr={address}"));
    }
    let devices = nvdimms();
    let named = devices.iter().map(|nvdimm| format!("{}:{}:{:#x}", nvdimm.leaf, nvdimm.gib, nvdimm.address));
    pair("-append", format!("{OPTIONS} peer.devices={}", named.collect::<Vec<_>>().join(",")));
    args
}

/// What the figures depend on, in one word: the packages, the sources, the machine and QEMU.
///
/// # Errors
/// When a source cannot be read, or there is no QEMU.
pub fn recipe(kernel: &Kernel) -> Result<String> {
    let mut parts = vec![format!("{kernel:?}"), qemu_version()?, arguments().join(" ")];
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
pub fn run(guest: &Guest, scratch: &Path) -> Result<Vec<String>> {
    let mut command = Command::new("qemu-system-x86_64");
    // A memory stands before the device that has it.
    for (index, nvdimm) in nvdimms().iter().enumerate() {
        let (path, bytes) = (scratch.join(format!("pmem{index}")), nvdimm.bytes());
        File::create(&path)?.set_len(bytes).with_context(|| path.display().to_string())?;
        let path = qemu_value(&path)?;
        let object = format!("memory-backend-file,id=pmem{index},mem-path={path},share=on,align=2M,size={bytes}");
        command.args(["-object", &object]);
    }
    command.args(arguments()).arg("-kernel").arg(&guest.vmlinuz).arg("-initrd").arg(&guest.initrd);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    ends_with_us(&mut command);
    let mut qemu = Ended(command.spawn().context("qemu-system-x86_64 cannot be started")?);
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
        let all = nvdimms();
        assert_eq!(all.len(), 9);
        assert!(all.iter().all(|nvdimm| nvdimm.address.is_multiple_of(GIB)));
        assert!(all.windows(2).all(|pair| pair[0].address + pair[0].bytes() <= pair[1].address));
    }

    #[test]
    fn the_machine_is_ours_but_for_what_is_said() {
        let line = arguments().join(" ");
        for part in
            ["-machine q35,nvdimm=on", "-cpu max,la57=off,erms=off", "-accel tcg", "sleep=off", "peer.devices=4K:1:0x"]
        {
            assert!(line.contains(part), "{part:?} is not in {line}");
        }
    }
}
