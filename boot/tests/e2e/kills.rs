//! The machine is killed while tasks write to a file system: everything that was acknowledged is there afterwards, and
//! each step happened wholly or not at all.
//!
//! The backing file's pages are the host's, and stay when QEMU dies: what a kill leaves is every store up to some
//! instruction, of each CPU. So this is about the order of stores, and recovery on a real machine; which cache lines
//! survive a power cut is what `kernel/fs/tests/crash*.rs` is about.
//!
//! A boot takes seconds, and the few microseconds in which a step could be half done are hard to hit. So QEMU is also
//! stopped at many moments before it is killed, and what it would have left there is judged in the same way.

use crate::support::{assert_good, command, exit, shell, start};
use boot::backing::{LABEL_BYTES, Nvdimm};
use boot::fsimage;
use boot::guest::Guest;
use boot::machine::Machine;
use boot::records::{self, Record};
use boot::size::MIB;
use fs::load::{Files, Known, Load};
use fs::mount::{MountOptions, mount};
use fs::pmem::Pmem;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use testkit::sim::{Random, SimPmem};

pub(crate) const TASKS: usize = 3;
/// Small, so that the journal is emptied every hundred steps or so.
pub(crate) const SIZE: u64 = 4 * MIB;
/// Steps of a task that may be durable and not yet acknowledged: the guest acknowledges every fourth, a dying QEMU takes
/// what it has not yet written with it, and what it has written before a look may not have been read yet, which is
/// thousands of lines where the host is busy.
const MOST_LOST: u64 = 10_000;
/// Looks before each kill.
const LOOKS: u64 = 40;

/// How many kills, and their seed.
fn plan() -> (u64, u64) {
    let kills = if std::env::var_os("UNPLUG_FULL").is_some() { 50 } else { 2 };
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let seed = number("UNPLUG_KILL_SEED").unwrap_or_else(|| RandomState::new().hash_one(0) % 1_000_000);
    (number("UNPLUG_KILLS").unwrap_or(kills), seed)
}

pub(crate) struct Victim {
    pub(crate) image: PathBuf,
    /// Of the present boot's load.
    pub(crate) seed: u64,
    /// Of each task a state that it has had or gone past.
    pub(crate) known: [Known; TASKS],
}

impl Victim {
    fn load(&self, task: usize) -> Load {
        Load { seed: self.seed, task: task as u64 }
    }

    /// A guest with the device attached, which has been told to begin.
    fn begin(&self, steps: u64) -> Guest {
        let nvdimm = Nvdimm::kept(&self.image, None, SIZE).unwrap_or_else(|error| panic!("{error:#}"));
        let mut guest = start(&Machine { smp: 2, pmem: vec![nvdimm], ..shell() });
        guest.prompt().unwrap_or_else(|error| panic!("{error:#}"));
        command(&mut guest, "attach 0 fsdax");
        guest.send(&format!("fsload 0 {} {TASKS} {steps}", self.seed)).unwrap_or_else(|error| panic!("{error:#}"));
        guest
    }

    /// How many steps of each task the console says are durable.
    pub(crate) fn acked(lines: &[String]) -> [u64; TASKS] {
        let mut acked = [0; TASKS];
        let of_load = |record: &Record| Some((record.number("task")?, record.number("acked")?));
        for (task, nr) in records::of_topic(lines, "fsload").filter_map(|record| of_load(&record)) {
            acked[task as usize] = acked[task as usize].max(nr);
        }
        acked
    }

    /// Boots, looks at what is there at moments that follow from `random`, and kills QEMU at another. Answers what was
    /// acknowledged.
    /// `early`: in the mount and its recovery, or soon after it.
    fn kill(&mut self, random: &mut Random, early: bool) -> [u64; TASKS] {
        let mut guest = self.begin(0);
        for _ in 0..if early { 0 } else { LOOKS } {
            for _ in 0..random.below(3) {
                let heard = guest.line("an acknowledgement", |line| line.starts_with("@fsload task="));
                heard.unwrap_or_else(|error| panic!("{error:#}"));
            }
            spin(random.below(2_000));
            guest.freeze().unwrap_or_else(|error| panic!("{error:#}"));
            // What was said before it stopped is there.
            let acked = Self::acked(&guest.console().lines());
            let bytes = device(&self.image);
            guest.thaw().unwrap_or_else(|error| panic!("{error:#}"));
            self.judge(bytes, acked);
        }
        spin(random.below(if early { 30_000 } else { 3_000 }));
        let console = guest.console();
        drop(guest);
        console.wait_end(None).unwrap_or_else(|gone| panic!("{gone:?}"));
        let lines = console.lines();
        assert!(!lines.iter().any(|line| line.contains("failed=") || line.starts_with("error")), "{:?}", lines.last());
        Self::acked(&lines)
    }

    /// Looks at a copy of the image: it holds what was acknowledged, and whole steps. Answers what each task has there.
    pub(crate) fn judge(&mut self, bytes: Vec<u8>, acked: [u64; TASKS]) -> [Files; TASKS] {
        let pmem: Arc<dyn Pmem> = Arc::new(SimPmem::from_bytes(bytes));
        let report = fs::check::check(&pmem, None);
        assert!(report.is_clean(), "{:?}", report.problems);
        let mut volume = mount(&pmem, &MountOptions::default()).unwrap_or_else(|error| panic!("{error}"));
        std::array::from_fn(|task| {
            let load = self.load(task);
            let files = Files::read(&mut volume, &load.dir()).unwrap_or_else(|error| panic!("{error}"));
            let known = &mut self.known[task];
            let acked = acked[task].max(known.nr);
            load.find(known, &files, acked, MOST_LOST).unwrap_or_else(|error| panic!("{error}"));
            files
        })
    }

    /// The next boot begins with what this one has left.
    pub(crate) fn begin_anew(&mut self, left: [Files; TASKS]) {
        self.seed += 1;
        self.known = left.map(|files| Known { nr: 0, files });
    }
}

/// Lets so many microseconds pass. Which does not matter: every moment is as good as any other.
pub(crate) fn spin(us: u64) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_micros(us) {
        std::hint::spin_loop();
    }
}

/// The image as it is, by the command that a user has.
fn check(image: &Path) -> Vec<u8> {
    let words = ["run-qemu".as_ref(), "fs".as_ref(), "check".as_ref(), image.as_os_str()];
    let status = fsimage::job(words.map(ToOwned::to_owned)).expect("its own words").expect("it can be opened");
    assert_eq!(status, 0, "the checker finds problems in {}", image.display());
    device(image)
}

/// What the image holds of the NVDIMM's own bytes: its labels come behind them.
fn device(image: &Path) -> Vec<u8> {
    let mut bytes = std::fs::read(image).expect("the image can be read");
    bytes.truncate(bytes.len() - LABEL_BYTES as usize);
    bytes
}

#[test]
fn whatever_was_acknowledged_is_there_after_a_kill() {
    let (kills, seed) = plan();
    println!("{kills} kills, {LOOKS} looks before each, UNPLUG_KILL_SEED={seed}");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let image = directory.path().join("image");
    let size = SIZE.to_string();
    let words = ["run-qemu", "fs", "make", image.to_str().expect("UTF-8"), "--size", &size];
    assert_eq!(fsimage::job(words.map(Into::into)).expect("its own words").expect("made"), 0);
    let mut victim = Victim { image, seed, known: Default::default() };
    let mut random = Random::new(seed);
    for kill in 0..kills {
        let acked = victim.kill(&mut random, kill % 5 == 3);
        let left = victim.judge(check(&victim.image), acked);
        println!("kill {kill}: acknowledged {acked:?}, found {:?}", victim.known.each_ref().map(|known| known.nr));
        victim.begin_anew(left);
    }
    // It goes on from there, comes to an end, and is unmounted.
    let mut guest = victim.begin(20);
    let unmounted = guest.line("the unmount", |line| line == "@fsload unmounted device=pmem0");
    unmounted.unwrap_or_else(|error| panic!("{error:#}"));
    guest.prompt().unwrap_or_else(|error| panic!("{error:#}"));
    let acked = Victim::acked(&guest.console().lines());
    assert_good(&exit(guest));
    assert_eq!(acked, [20; TASKS]);
    let left = victim.judge(check(&victim.image), acked);
    for (task, files) in left.iter().enumerate() {
        victim.known[task].go_on(&victim.load(task), 20);
        assert_eq!(*files, victim.known[task].files, "task {task}");
    }
}
