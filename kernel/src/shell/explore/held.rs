//! `task pin`, `task unpin`: pins that a task holds until it is told otherwise.
//!
//! | pin | is | a removal of the device |
//! |---|---|---|
//! | plain | [`PinnedPages`], as for one transfer | waits until it is given back, however long that takes |
//! | `longterm` | a [`MemoryRegion`] | asks for it and, since nobody here answers, takes it back after the grace period |
//!
//! While a plain pin is held the shell refuses `remove`, unless that says `force`: [`in_the_way`].

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use mm::addr::{PAGE_SIZE, PfnRange, VirtAddr};
use mm::gup::GupFlags;
use mm::pins::PinnedPages;
use mm::region::{MemoryRegion, Notice, RegionOwner, Terms};
use mm::space::Access;
use mm::sync::Mutex;

use super::files;
use super::tasks::{self, find};
use super::words::{Words, address, count, number};
use crate::console::{self, report};
use crate::mem::machine::KernelMachine;

/// Pins at a time, of all tasks together.
const MOST: usize = 64;
/// What a registration's owner has to give it back, in nanoseconds. It never does.
const GRACE_NS: u64 = 1_000_000;

enum Kind {
    Plain(PinnedPages<KernelMachine>),
    LongTerm(
        MemoryRegion<KernelMachine>,
        #[expect(dead_code, reason = "the registration knows it weakly")] Arc<dyn RegionOwner>,
    ),
}

/// A pin that a task holds.
struct Held {
    task: u64,
    name: Arc<str>,
    va: VirtAddr,
    nr_pages: u64,
    kind: Kind,
}

impl Held {
    fn in_words(&self, nr: u64) -> String {
        let Self { name, va, nr_pages, .. } = self;
        let term = match &self.kind {
            Kind::Plain(_) => String::new(),
            Kind::LongTerm(region, _) => match region.reference().check(Access::Read) {
                Ok(()) => format!(", long-term by registration {}", region.key()),
                Err(error) => format!(", of which nothing is left: {error}"),
            },
        };
        format!("pin {nr} of {name}: {} at {va}{term}", count(*nr_pages, "page"))
    }
}

/// By number; and the next number. Pins are dropped outside the lock.
static HELD: Mutex<(BTreeMap<u64, Held>, u64)> = Mutex::new((BTreeMap::new(), 1));

/// `task pin`.
pub fn pin(args: &[&str]) -> Result<(), String> {
    let words = Words::sort(args, &["cpu"])?;
    let (mut flags, mut long_term) = (GupFlags::empty(), false);
    let expected = || String::from("expected: task pin ID ADDR PAGES [write] [longterm] [cpu=N]");
    let [id, start, pages, rest @ ..] = &words.plain[..] else { return Err(expected()) };
    for word in rest {
        match *word {
            "write" => flags |= GupFlags::WRITE,
            "longterm" => long_term = true,
            _ => return Err(expected()),
        }
    }
    let (driven, va, nr_pages, cpu) = (find(id)?, address(start)?.align_down(PAGE_SIZE), number(pages)?, words.cpu()?);
    if HELD.lock().0.len() >= MOST {
        return Err(format!("{MOST} pins are held already: give one back first"));
    }
    let space = Arc::clone(&driven.space);
    files::refuse_while_frozen(&space, va, nr_pages.saturating_mul(PAGE_SIZE))?;
    let kind = driven.does(cpu, move || {
        if !long_term {
            return PinnedPages::pin(&space, va, nr_pages, flags).map(Kind::Plain).map_err(|error| format!("{error}"));
        }
        let owner: Arc<dyn RegionOwner> = Arc::new(|_: &Notice| ());
        let account = space.account();
        let terms = Terms { flags, grace_ns: GRACE_NS, account: &account };
        let region = MemoryRegion::register(&space, va, nr_pages, &terms, Arc::downgrade(&owner));
        region.map(|region| Kind::LongTerm(region, owner)).map_err(|error| format!("{error}"))
    });
    let kind = kind.map_err(|error| format!("{} cannot pin: {error}", driven.space.name()))?;
    let (task, name) = (driven.space.id(), Arc::clone(driven.space.shared_name()));
    let nr = keep(Held { task, name, va, nr_pages, kind })?;
    let term = if long_term { "long" } else { "transient" };
    console::line(format_args!(
        "pin {nr}: {} at {va}, pinned by {} on CPU {cpu}",
        count(nr_pages, "page"),
        driven.space.name()
    ));
    report!("user_task id={task} act=pin pin={nr} addr={va} pages={nr_pages} term={term} cpu={cpu}");
    Ok(())
}

/// Puts it on the list; answers its number.
fn keep(held: Held) -> Result<u64, String> {
    let task = held.task;
    let nr = {
        let (list, next) = &mut *HELD.lock();
        let nr = *next;
        *next += 1;
        list.insert(nr, held);
        nr
    };
    // Whoever has ended the task meanwhile may have missed it.
    if !tasks::is_there(task) {
        let gone = HELD.lock().0.remove(&nr);
        drop(gone);
        return Err("the task has ended meanwhile".into());
    }
    Ok(nr)
}

/// `task unpin`.
pub fn unpin(args: &[&str]) -> Result<(), String> {
    let [word] = args else { return Err("expected: task unpin PIN".into()) };
    let nr = number(word)?;
    let held = HELD.lock().0.remove(&nr);
    let held = held.ok_or_else(|| format!("there is no pin {nr} (task list lists them)"))?;
    let (task, words) = (held.task, held.in_words(nr));
    drop(held);
    files::settle();
    console::line(format_args!("{words}: given back"));
    report!("user_task id={task} act=unpin pin={nr}");
    Ok(())
}

/// A line for each pin.
pub fn list() {
    let lines: Vec<_> = HELD.lock().0.iter().map(|(&nr, held)| held.in_words(nr)).collect();
    lines.iter().for_each(|line| console::line(format_args!("{line}")));
}

/// How many pins a task holds.
pub fn count_of(task: u64) -> u64 {
    HELD.lock().0.values().filter(|held| held.task == task).count() as u64
}

/// Gives back the pins of a task; answers how many.
pub fn give_back_of(task: u64) -> u64 {
    take_out(&|held| held.task == task)
}

/// Gives back every pin for which a removal would wait.
pub fn give_back_plain() -> u64 {
    take_out(&|held| matches!(held.kind, Kind::Plain(_)))
}

fn take_out(which: &dyn Fn(&Held) -> bool) -> u64 {
    let mut nr = 0;
    loop {
        let next = {
            let list = &mut HELD.lock().0;
            let found = list.iter().find(|(_, held)| which(held)).map(|(&nr, _)| nr);
            found.and_then(|nr| list.remove(&nr))
        };
        if next.is_none() {
            return nr;
        }
        nr += 1;
    }
}

/// A pin that is waited for by whoever takes its frames away.
pub struct PlainPin {
    /// Its number.
    pub nr: u64,
    /// In words.
    pub words: String,
    /// What it holds.
    pub frames: Vec<PfnRange>,
}

/// All of these.
pub fn plain() -> Vec<PlainPin> {
    let list = HELD.lock();
    let plain = list.0.iter().filter_map(|(&nr, held)| match &held.kind {
        Kind::Plain(pins) => Some(PlainPin { nr, words: held.in_words(nr), frames: pins.frames().to_vec() }),
        Kind::LongTerm(..) => None,
    });
    plain.collect()
}

/// A pin that a removal of these frames would wait for, in words; `None` where there is none.
pub fn in_the_way(frames: PfnRange) -> Option<(u64, String)> {
    let list = HELD.lock();
    let holds = |held: &Held| match &held.kind {
        Kind::Plain(pins) => pins.frames().iter().any(|run| run.overlaps(frames)),
        Kind::LongTerm(..) => false,
    };
    list.0.iter().find(|(_, held)| holds(held)).map(|(&nr, held)| (nr, held.in_words(nr)))
}
