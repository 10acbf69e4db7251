//! Memory modules that leave a machine while it runs, and come back; and NVDIMMs that are plugged into it.
//!
//! QEMU's monitor serves one connection at a time, so each act has its own, which ends at once. A module is pulled out as it
//! leaves a guest that never agreed: by the two stores that a guest itself would make last, from the monitor.

use crate::backing::{LABEL_BYTES, qemu_value};
use crate::console::Console;
use crate::error::Error;
use crate::qmp::Qmp;
use serde_json::json;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Where QEMU's q35 has the registers of its slots (`include/hw/acpi/ich9.h`): the slot is selected in the first, and let go
/// by a bit of the second.
const SELECT: u16 = 0xa00;
const CONTROL: u16 = 0xa14;
const EJECT: u8 = 8;

/// What the memory of module `index` is called.
pub(crate) fn backend(index: usize) -> String {
    format!("module{index}")
}

fn id(index: usize) -> String {
    format!("dimm{index}")
}

/// The module `index` for QEMU's command line: in the slot of that number.
pub(crate) fn device(index: usize) -> String {
    format!("pc-dimm,memdev={},id={},slot={index}", backend(index), id(index))
}

type Result<T> = std::result::Result<T, Error>;

/// What the machine is not as it has to be for an act.
fn otherwise<T>(what: String) -> Result<T> {
    Err(Error::Machine(what))
}

/// The hand that pulls and plugs.
#[derive(Debug)]
pub struct Hotplug {
    qmp_socket: PathBuf,
    /// Where each module was that was pulled.
    addresses: Mutex<BTreeMap<usize, u64>>,
}

impl Hotplug {
    /// For the machine whose monitor listens here.
    #[must_use]
    pub fn new(qmp_socket: &Path) -> Arc<Self> {
        Arc::new(Self { qmp_socket: qmp_socket.to_path_buf(), addresses: Mutex::default() })
    }

    /// A connection to the monitor, for what is not here. Others wait for its end.
    ///
    /// # Errors
    /// When QEMU has ended.
    pub fn monitor(&self) -> Result<Qmp> {
        Qmp::connect(&self.qmp_socket)
    }

    /// Pulls module `index` out, without a word to the guest.
    ///
    /// # Errors
    /// When it is not there, or QEMU does not let it go.
    pub fn pull(&self, index: usize) -> Result<()> {
        let mut qmp = self.monitor()?;
        let Some(address) = address(&mut qmp, index)? else { return otherwise(format!("module {index} is not there")) };
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).insert(index, address);
        // With the CPUs stopped, so that none of them selects another slot in between.
        qmp.execute("stop", json!({}))?;
        let pulled =
            [format!("o /4 {SELECT:#x} {index}"), format!("o /1 {CONTROL:#x} {EJECT}")].iter().try_for_each(|line| {
                match qmp.monitor(line)?.trim() {
                    "" => Ok(()),
                    said => Err(Error::Monitor(format!("it says {said:?}"))),
                }
            });
        qmp.execute("cont", json!({}))?;
        pulled?;
        match self::address(&mut qmp, index)? {
            None => Ok(()),
            Some(_) => otherwise(format!("module {index} is there still")),
        }
    }

    /// Puts module `index` back, where it was.
    ///
    /// # Errors
    /// When it is there, or QEMU does not take it.
    pub fn put(&self, index: usize) -> Result<()> {
        let mut device = json!({ "driver": "pc-dimm", "memdev": backend(index), "id": id(index), "slot": index });
        if let Some(address) = self.addresses.lock().unwrap_or_else(PoisonError::into_inner).get(&index) {
            device["addr"] = json!(address);
        }
        self.monitor()?.execute("device_add", device).map(drop)
    }

    /// Asks the guest for module `index`.
    ///
    /// # Errors
    /// When it is not there.
    pub fn ask_for(&self, index: usize) -> Result<()> {
        self.monitor()?.execute("device_del", json!({ "id": id(index) })).map(drop)
    }

    /// Is module `index` there?
    ///
    /// # Errors
    /// When QEMU has ended.
    pub fn has(&self, index: usize) -> Result<bool> {
        Ok(address(&mut self.monitor()?, index)?.is_some())
    }

    /// Plugs in a new module over a file, which is made; its number is its slot.
    ///
    /// # Errors
    /// When QEMU does not take it.
    pub fn plug_module(&self, index: usize, file: &Path, size_bytes: u64) -> Result<()> {
        let mut qmp = self.monitor()?;
        add_file(&mut qmp, &backend(index), file, size_bytes)?;
        drop(qmp);
        // Another may have been there, elsewhere.
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).remove(&index);
        self.put(index)
    }

    /// Plugs in an NVDIMM of this size over a file, which is made.
    ///
    /// # Errors
    /// As [`plug_module`](Self::plug_module).
    pub fn plug_nvdimm(&self, name: &str, file: &Path, size_bytes: u64) -> Result<()> {
        let (mut qmp, memory) = (self.monitor()?, format!("{name}-memory"));
        add_file(&mut qmp, &memory, file, size_bytes + LABEL_BYTES)?;
        let device = json!({ "driver": "nvdimm", "memdev": memory, "id": name, "label-size": LABEL_BYTES });
        qmp.execute("device_add", device).map(drop)
    }
}

fn add_file(qmp: &mut Qmp, name: &str, file: &Path, size_bytes: u64) -> Result<()> {
    let path = qemu_value(file).map_err(Error::machine)?.replace(",,", ",");
    let object =
        json!({ "qom-type": "memory-backend-file", "id": name, "mem-path": path, "share": true, "size": size_bytes });
    qmp.execute("object-add", object).map(drop)
}

/// Where module `index` is; `None` where it is not there.
fn address(qmp: &mut Qmp, index: usize) -> Result<Option<u64>> {
    let all = qmp.execute("query-memory-devices", json!({}))?;
    let ours = all.as_array().into_iter().flatten().map(|device| &device["data"]).find(|data| data["id"] == id(index));
    Ok(ours.and_then(|data| data["addr"].as_u64()))
}

/// Moments at random.
#[derive(Debug)]
struct Moments(u64);

impl Moments {
    /// Up to `most` from now.
    fn next(&mut self, most: Duration) -> Duration {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        most.mul_f64(((mixed ^ mixed >> 31) >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

/// Starts a thread that pulls module 0 out and puts it back, once in each period of length `every`: it leaves at a random moment
/// of the period's first half, and is away for at most the other. The first period begins when the kernel says for the first
/// time that a device is attached or has arrived; the last one is the one in which the guest ends, or in which the module cannot
/// be pulled or put back, because somebody else has done it. Says which seed the moments follow from.
pub(crate) fn pull_at_random(hand: Arc<Hotplug>, console: Arc<Console>, every: Duration, seed: Option<u64>) {
    let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(0) % 1_000_000);
    eprintln!("run-qemu: the first module is pulled once in every {every:?}, --seed {seed}");
    let mut moments = Moments(seed);
    thread::spawn(move || {
        let begun = |line: &str| line.starts_with("@attached ") || line.starts_with("@arrived ");
        if console.wait_line(0, None, begun).is_err() {
            return;
        }
        loop {
            let (before, away) = (moments.next(every / 2), moments.next(every / 2));
            thread::sleep(before);
            if let Err(error) = hand.pull(0) {
                return eprintln!("run-qemu: the first module is not pulled: {error:#}");
            }
            eprintln!("run-qemu: the first module is pulled");
            thread::sleep(away);
            if let Err(error) = hand.put(0) {
                return eprintln!("run-qemu: the first module is not put back: {error:#}");
            }
            eprintln!("run-qemu: the first module is put back");
            thread::sleep(every - before - away);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_follow_from_the_seed_and_stay_inside() {
        let moments = |seed| {
            let mut moments = Moments(seed);
            (0..100).map(|_| moments.next(Duration::from_secs(2))).collect::<Vec<_>>()
        };
        let first = moments(7);
        assert_eq!(first, moments(7));
        assert_ne!(first, moments(8));
        assert!(first.iter().all(|moment| *moment < Duration::from_secs(2)));
        assert!(first.iter().any(|moment| *moment < Duration::from_millis(300)));
        assert!(first.iter().any(|moment| *moment > Duration::from_millis(1700)));
    }
}
