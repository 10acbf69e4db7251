//! The machine is killed while tasks write to a file system: everything that was acknowledged is there afterwards, and
//! each step happened wholly or not at all.
//!
//! The backing file's pages are the host's, and stay when QEMU dies: what a kill leaves is every store up to some
//! instruction, of each CPU. So this is about the order of stores, and recovery on a real machine; which cache lines
//! survive a power cut is what `kernel/fs/tests/crash*.rs` is about.

use crate::support::{assert_good, command, exit, shell, start};
use boot::backing::{LABEL_BYTES, Nvdimm};
use boot::fsimage;
use boot::guest::Guest;
use boot::machine::Machine;
use boot::records::{self, Record};
use boot::size::MIB;
use fs::load::{Files, Load};
use fs::mount::{MountOptions, mount};
use fs::pmem::Pmem;
use fs::sim::{Random, SimPmem};
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

const TASKS: usize = 3;
/// Small, so that the journal is emptied every hundred steps or so.
const SIZE: u64 = 4 * MIB;
/// Steps of a task that may be durable and not yet acknowledged: the guest acknowledges every fourth, and a dying QEMU
/// takes what it has not yet written with it.
const MOST_LOST: u64 = 12;

/// How many kills, and their seed.
fn plan() -> (u64, u64) {
    let kills = if std::env::var_os("UNPLUG_FULL").is_some() { 50 } else { 3 };
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let seed = number("UNPLUG_KILL_SEED").unwrap_or_else(|| RandomState::new().hash_one(0) % 1_000_000);
    (number("UNPLUG_KILLS").unwrap_or(kills), seed)
}

struct Victim {
    image: PathBuf,
    seed: u64,
    /// The step that comes next, for each task.
    next: [u64; TASKS],
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
        let [a, b, c] = self.next;
        guest.send(&format!("fsload 0 {} {steps} {a} {b} {c}", self.seed)).unwrap_or_else(|error| panic!("{error:#}"));
        guest
    }

    /// How many steps of each task the console says are durable.
    fn acked(&self, lines: &[String]) -> [u64; TASKS] {
        let mut acked = self.next;
        let of_load = |record: &Record| Some((record.number("task")?, record.number("acked")?));
        for (task, nr) in records::of_topic(lines, "fsload").filter_map(|record| of_load(&record)) {
            acked[task as usize] = acked[task as usize].max(nr);
        }
        acked
    }

    /// Boots, lets the load run until a moment that follows from `random`, and kills QEMU. Answers what was
    /// acknowledged.
    fn kill(&self, random: &mut Random) -> [u64; TASKS] {
        let mut guest = self.begin(0);
        // One time in five in the mount and its recovery, or soon after it.
        let lines = if random.below(5) == 0 { 0 } else { 1 + random.below(60) };
        let delay = Duration::from_micros(random.below(if lines == 0 { 30_000 } else { 3_000 }));
        for _ in 0..lines {
            let heard = guest.line("an acknowledgement", |line| line.starts_with("@fsload task="));
            let line = heard.unwrap_or_else(|error| panic!("{error:#}"));
            assert!(!line.contains("failed="), "{line}");
        }
        let start = Instant::now();
        while start.elapsed() < delay {
            std::hint::spin_loop();
        }
        let console = guest.console();
        drop(guest);
        console.wait_end(None).unwrap_or_else(|gone| panic!("{gone:?}"));
        let lines = console.lines();
        assert!(!lines.iter().any(|line| line.contains("failed=") || line.starts_with("error")), "{:?}", lines.last());
        self.acked(&lines)
    }

    /// Looks at the image, without writing to it: the next step of each task.
    fn judge(&self, acked: [u64; TASKS]) -> [u64; TASKS] {
        check(&self.image);
        let mut bytes = std::fs::read(&self.image).expect("the image can be read");
        bytes.truncate(bytes.len() - LABEL_BYTES as usize);
        let pmem: Arc<dyn Pmem> = Arc::new(SimPmem::from_bytes(bytes));
        let mut volume = mount(&pmem, &MountOptions::default()).unwrap_or_else(|error| panic!("{error}"));
        let mut next = acked;
        for (task, next) in next.iter_mut().enumerate() {
            let load = self.load(task);
            let files = Files::read(&mut volume, &load.dir()).unwrap_or_else(|error| panic!("{error}"));
            *next = load.find(&files, acked[task], MOST_LOST).unwrap_or_else(|error| panic!("{error}"));
        }
        next
    }
}

/// The host's checker has nothing to say.
fn check(image: &Path) {
    let words = ["run-qemu".as_ref(), "fs".as_ref(), "check".as_ref(), image.as_os_str()];
    let status = fsimage::job(words.map(ToOwned::to_owned)).expect("its own words").expect("it can be opened");
    assert_eq!(status, 0, "the checker finds problems in {}", image.display());
}

#[test]
fn whatever_was_acknowledged_is_there_after_a_kill() {
    let (kills, seed) = plan();
    println!("{kills} kills, UNPLUG_KILL_SEED={seed}");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let image = directory.path().join("image");
    let size = SIZE.to_string();
    let words = ["run-qemu", "fs", "make", image.to_str().expect("UTF-8"), "--size", &size];
    assert_eq!(fsimage::job(words.map(Into::into)).expect("its own words").expect("made"), 0);
    let mut victim = Victim { image, seed, next: [0; TASKS] };
    let mut random = Random::new(seed);
    let (mut more, mut early) = (0, 0);
    for kill in 0..kills {
        let acked = victim.kill(&mut random);
        let next = victim.judge(acked);
        println!("kill {kill}: acknowledged {acked:?}, found {next:?}");
        more += (0..TASKS).map(|task| next[task] - acked[task]).sum::<u64>();
        early += u64::from(acked == victim.next);
        victim.next = next;
    }
    println!("{more} steps were durable and not yet acknowledged; {early} kills came before the first acknowledgement");
    // It goes on from there, comes to an end, and is unmounted.
    let mut guest = victim.begin(20);
    guest
        .line("the unmount", |line| line == "@fsload unmounted device=pmem0")
        .unwrap_or_else(|error| panic!("{error:#}"));
    guest.prompt().unwrap_or_else(|error| panic!("{error:#}"));
    let acked = victim.acked(&guest.console().lines());
    assert_good(&exit(guest));
    assert_eq!(acked, victim.next.map(|next| next + 20));
    let found = victim.judge(acked);
    let same = |task| victim.load(task).after(found[task]) == victim.load(task).after(acked[task]);
    assert!((0..TASKS).all(same), "{found:?} after {acked:?}");
}
