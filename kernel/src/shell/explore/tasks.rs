//! `task`: a task with an address space of its own that the user drives.
//!
//! It goes by the number of its address space. What it reads, writes and pins is done by a task of the kernel on the CPU of
//! choice ([`worker`](super::worker)), which has that space loaded and faults as any other does.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use dax::devdax::OpenOptions;
use mm::addr::{PAGE_SHIFT, PAGE_SIZE, PageSize, VirtAddr, VirtRange};
use mm::entry::Prot;
use mm::gather::ZapStats;
use mm::machine::{CpuId, Machine};
use mm::pagemap::MemoryKind;
use mm::pins::Word;
use mm::space::VmOps;
use mm::sync::{Mutex, SleepLock};

use super::files;
use super::held;
use super::spaces;
use super::words::{Place, Words, address, count, leaf_word, number, rights};
use super::worker::Worker;
use crate::console::command::{Command, forced};
use crate::console::{self, report};
use crate::mem::machine::{KernelMachine, Space, mm};
use crate::mem::paging;
use crate::pmem::contents::{self, Over};
use crate::pmem::devices;
use crate::shell::args::device;
use crate::task::user;

/// The commands.
pub const COMMANDS: &[Command] = &[
    Command {
        name: "task",
        args: "new [NAME]",
        help: "a task that you drive; answers its ID",
        example: "task new alpha",
        run,
    },
    Command { name: "task", args: "list", help: "these tasks, and the pins that they hold", example: "task list", run },
    Command {
        name: "task",
        args: "map ID DEVICE [PATH] [at=ADDR] [pages=N] [offset=PAGE] [leaf=4k|2m|1g] [read|write] [force]",
        help: "it maps pages of a device, or of a file on it: all, for reading, with the largest leaves that fit, where nothing else is said",
        example: "task map alpha 0 pages=16 leaf=4k write",
        run,
    },
    Command {
        name: "task",
        args: "unmap ID ADDR PAGES",
        help: "it unmaps pages",
        example: "task unmap alpha 0x4000000000 1",
        run,
    },
    Command {
        name: "task",
        args: "protect ID ADDR PAGES read|write [force]",
        help: "it changes their rights",
        example: "task protect alpha 0x4000000000 1 read",
        run,
    },
    Command {
        name: "task",
        args: "read ID ADDR [cpu=N]",
        help: "it reads eight bytes, on that CPU",
        example: "task read alpha 0x4000000000 cpu=1",
        run,
    },
    Command {
        name: "task",
        args: "write ID ADDR VALUE [cpu=N]",
        help: "it writes eight bytes",
        example: "task write alpha 0x4000000000 7",
        run,
    },
    Command {
        name: "task",
        args: "pin ID ADDR PAGES [write] [longterm] [cpu=N]",
        help: "it pins pages; answers the pin's number",
        example: "task pin alpha 0x4000000000 2 write",
        run,
    },
    Command { name: "task", args: "unpin PIN", help: "it gives a pin back", example: "task unpin 1", run },
    Command { name: "task", args: "end ID", help: "it gives back its pins, and ends", example: "task end alpha", run },
];

/// Where a device is mapped if nothing is said: here, or behind what is mapped already.
const BASE: u64 = 0x40_0000_0000;
/// Tasks at a time.
const MOST: usize = 32;
/// Longest name.
const LONGEST_NAME: usize = 32;

/// A task that is driven from here.
pub struct Driven {
    /// Its address space, whose number and name are its own.
    pub space: Arc<Space>,
    /// Those who work for it; `None` once it has ended. Held while one is started.
    workers: SleepLock<Option<Vec<Arc<Worker>>>>,
}

impl Driven {
    /// Lets its worker on `cpu` do `work`, with the space loaded; waits for its answer.
    ///
    /// # Errors
    /// That of `work`; or the task has ended; or there is no memory for a worker.
    pub fn does<R: Send + 'static>(
        &self,
        cpu: CpuId,
        work: impl FnOnce() -> Result<R, String> + Send + 'static,
    ) -> Result<R, String> {
        self.worker(cpu)?.does(work)
    }

    fn worker(&self, cpu: CpuId) -> Result<Arc<Worker>, String> {
        let mut workers = self.workers.take(|| mm().machine.relax());
        let workers = workers.as_mut().ok_or("the task has ended")?;
        if let Some(worker) = workers.iter().find(|worker| worker.cpu == cpu) {
            return Ok(Arc::clone(worker));
        }
        let new = Arc::new(Worker::start(&self.space, cpu)?);
        workers.push(Arc::clone(&new));
        Ok(new)
    }

    fn end(&self) {
        let workers = self.workers.take(|| mm().machine.relax()).take();
        workers.iter().flatten().for_each(|worker| worker.end());
    }
}

/// By number. Held for a look only; whoever is taken out is dropped outside.
static DRIVEN: Mutex<BTreeMap<u64, Arc<Driven>>> = Mutex::new(BTreeMap::new());

/// All of them.
pub fn all() -> Vec<Arc<Driven>> {
    DRIVEN.lock().values().cloned().collect()
}

/// The task with this number or name.
///
/// # Errors
/// There is none.
pub fn find(word: &str) -> Result<Arc<Driven>, String> {
    let id = number(word).ok();
    let found = all().into_iter().find(|driven| Some(driven.space.id()) == id || driven.space.name() == word);
    found.ok_or_else(|| format!("there is no task \"{word}\" (task list lists them)"))
}

/// The commands, by their second word.
pub fn run(args: &[&str]) -> Result<(), String> {
    const EXPECTED: &str = "expected: task new, list, map, unmap, protect, read, write, pin, unpin or end (see help)";
    let Some((&verb, args)) = args.split_first() else { return Err(EXPECTED.into()) };
    match verb {
        "new" => new(args),
        "list" => list(args),
        "map" => map(args),
        "unmap" => unmap(args),
        "protect" => protect(args),
        "read" | "write" => access(verb, args),
        "pin" => held::pin(args),
        "unpin" => held::unpin(args),
        "end" => end(args),
        _ => Err(EXPECTED.into()),
    }
}

fn new(args: &[&str]) -> Result<(), String> {
    let name = match args {
        [] => "user",
        [name] if name.len() > LONGEST_NAME => {
            return Err(format!("expected a name of {LONGEST_NAME} letters at most"));
        }
        [name] if name.as_bytes().first().is_some_and(|first| !first.is_ascii_alphabetic()) => {
            return Err(format!("\"{name}\" is no name: expected one that begins with a letter"));
        }
        [name] if find(name).is_ok() => return Err(format!("there is a task {name} already")),
        [name] => *name,
        _ => return Err("expected: task new [NAME]".into()),
    };
    let full = || format!("there are {MOST} tasks already: end one first");
    if DRIVEN.lock().len() >= MOST {
        return Err(full());
    }
    let space = Space::new(mm(), name).map_err(|error| format!("no address space: {error}"))?;
    let id = space.id();
    let driven = Arc::new(Driven { space, workers: SleepLock::new(Some(Vec::new())) });
    DRIVEN.lock().insert(id, driven);
    console::line(format_args!("task {id}: {name}"));
    report!("user_task id={id} act=new name={}", Word(name));
    Ok(())
}

fn list(args: &[&str]) -> Result<(), String> {
    if !args.is_empty() {
        return Err("expected: task list".into());
    }
    let all = all();
    for driven in &all {
        let (id, name) = (driven.space.id(), driven.space.name());
        let (vmas, loaded) = (driven.space.nr_vmas(), spaces::cpus(driven.space.tlb().cpus()));
        let pins = held::count_of(id);
        console::line(format_args!(
            "task {id}: {name}, {}, {}, loaded on CPUs: {loaded}",
            count(vmas as u64, "mapping"),
            count(pins, "pin")
        ));
        report!("user_task id={id} act=list name={} vmas={vmas} pins={pins}", Word(name));
    }
    if all.is_empty() {
        console::line(format_args!("there is no task (task new makes one)"));
    }
    held::list();
    Ok(())
}

/// What a device is mapped with.
struct Mapped {
    va: VirtAddr,
    bytes: u64,
    offset: u64,
    prot: Prot,
    leaf: Option<PageSize>,
}

fn map(args: &[&str]) -> Result<(), String> {
    let (args, force) = forced(args);
    let mut words = Words::sort(args, &["at", "pages", "offset", "leaf"])?;
    let write = words.take_last(&["read", "write"]) == Some("write");
    let (id, word, path) = match words.plain[..] {
        [id, word] => (id, word, None),
        [id, word, path] => (id, word, Some(path)),
        _ => {
            return Err("expected: task map ID DEVICE [PATH] [at=ADDR] [pages=N] [offset=PAGE] [leaf=4k|2m|1g] \
                        [read|write]"
                .into());
        }
    };
    let (driven, at, leaf) = (find(id)?, device(word)?, words.leaf()?);
    let space = Arc::clone(&driven.space);
    let Opened { ops, pages: there, name, path } = open(at, path, leaf)?;
    let offset = words.number("offset")?.unwrap_or(0);
    let align = leaf.unwrap_or(PageSize::Size4K);
    let rest = there.saturating_sub(offset) & !(align.nr_pages() - 1);
    let pages = words.number("pages")?.unwrap_or(rest);
    let too_many = || format!("{pages} pages from page {offset} on: {name} has {}", count(there, "page"));
    let bytes = pages.checked_mul(PAGE_SIZE).filter(|&bytes| bytes != 0).ok_or_else(too_many)?;
    offset.checked_add(pages).filter(|&end| end <= there).ok_or_else(too_many)?;
    if write && path.is_none() {
        contents::ask(at, Over::Bytes, force)?;
    }
    let va = match words.get("at") {
        Some(word) => address(word)?,
        None => free_place(&space, bytes, leaf.unwrap_or_else(|| largest_for(bytes)))?,
    };
    let prot = if write { Prot::USER_WRITE } else { Prot::USER_READ };
    space.map(va, bytes, prot, &ops, offset).map_err(|error| format!("map at {va}: {error}"))?;
    drop(ops);
    say_mapped(&space, (&name, at, path), &Mapped { va, bytes, offset, prot, leaf });
    Ok(())
}

/// What is mapped: a device, opened for leaves of a size, or a file on it.
struct Opened<'w> {
    ops: Arc<dyn VmOps<KernelMachine>>,
    pages: u64,
    name: String,
    path: Option<&'w str>,
}

fn open<'w>(at: usize, path: Option<&'w str>, leaf: Option<PageSize>) -> Result<Opened<'w>, String> {
    let Some(path) = path else {
        let (ops, pages, name) = open_device(at, leaf)?;
        return Ok(Opened { ops, pages, name: name.into(), path: None });
    };
    if leaf.is_some() {
        return Err("leaf= is for a device: a file is mapped with the largest leaves that its blocks allow".into());
    }
    let (file, pages) = files::open(at, path)?;
    let device = devices::slots().get(at).map_or("?", |slot| &slot.name);
    Ok(Opened { ops: file.ops(), pages, name: format!("{path} on {device}"), path: Some(path) })
}

type OpenedDevice = (Arc<dyn VmOps<KernelMachine>>, u64, &'static str);

fn open_device(at: usize, leaf: Option<PageSize>) -> Result<OpenedDevice, String> {
    let file = devices::file(at).map_err(|error| format!("{error}"))?;
    let name = devices::slots().get(at).map_or("?", |slot| slot.name.as_str());
    if leaf == Some(PageSize::Size1G) && !paging::has_gib_leaves() {
        return Err("this CPU has no leaves of 1GiB".into());
    }
    let options = leaf.map_or_else(OpenOptions::default, OpenOptions::exactly);
    let opened = file.open(options).map_err(|error| match leaf {
        Some(leaf) if leaf > file.largest_leaf() => {
            let start = file.device().pagemap().ranges()[0].start().addr();
            format!(
                "{name} begins at {start}: it is mapped with leaves of {} at most, not of {leaf}",
                file.largest_leaf()
            )
        }
        _ => format!("open {name}: {error}"),
    })?;
    Ok((opened, file.size_bytes() >> PAGE_SHIFT, name))
}

fn say_mapped(space: &Space, (name, at, path): (&str, usize, Option<&str>), mapped: &Mapped) {
    let &Mapped { va, bytes, offset, prot, leaf } = mapped;
    let (id, end, last) = (space.id(), va.as_u64() + bytes, offset + (bytes >> PAGE_SHIFT) - 1);
    let by = match leaf {
        Some(leaf) => format!("leaves of {leaf}"),
        None => "the largest leaves that fit".into(),
    };
    console::line(format_args!(
        "{} maps pages {offset} to {last} of {name} at {va}..{end:#x}, {}, with {by} when it touches them",
        space.name(),
        rights(prot)
    ));
    report!(
        "user_task id={id} act=map device={} path={} start={va} end={end:#x} first={offset} rights={} leaf={}",
        Word(devices::slots().get(at).map_or("?", |slot| &slot.name)),
        Word(path.unwrap_or("none")),
        rights(prot),
        leaf.map_or("any", leaf_word)
    );
}

/// The largest leaf that as many bytes fill.
fn largest_for(bytes: u64) -> PageSize {
    PageSize::ALL.into_iter().rev().find(|size| size.bytes() <= bytes).unwrap_or(PageSize::Size4K)
}

/// The lowest place from [`BASE`] on where nothing is mapped.
fn free_place(space: &Space, bytes: u64, align: PageSize) -> Result<VirtAddr, String> {
    let none = || format!("there is no room for {bytes} bytes");
    let mut at = BASE;
    loop {
        at = at.checked_next_multiple_of(align.bytes()).ok_or_else(none)?;
        let end = at.checked_add(bytes).filter(|&end| end <= space.user_end().as_u64()).ok_or_else(none)?;
        match space.vmas_from::<1>(VirtAddr::new(at)).first().map(|vma| vma.range) {
            Some(range) if range.start().as_u64() < end => at = range.end().as_u64(),
            _ => return Ok(VirtAddr::new(at)),
        }
    }
}

/// The range that `ADDR PAGES` says.
fn range(start: &str, pages: &str) -> Result<(VirtAddr, u64), String> {
    let (va, nr_pages) = (address(start)?, number(pages)?);
    let bytes = nr_pages.checked_mul(PAGE_SIZE).ok_or_else(|| format!("{nr_pages} pages: expected fewer"))?;
    Ok((va, bytes))
}

fn unmap(args: &[&str]) -> Result<(), String> {
    let [id, start, pages] = args else { return Err("expected: task unmap ID ADDR PAGES".into()) };
    let driven = find(id)?;
    let (va, bytes) = range(start, pages)?;
    let stats = driven.space.unmap(va, bytes).map_err(|error| format!("unmap at {va}: {error}"))?;
    files::settle();
    say_zapped(&driven.space, "unmap", &stats);
    Ok(())
}

fn protect(args: &[&str]) -> Result<(), String> {
    let (args, force) = forced(args);
    let (id, start, pages, prot) = match args {
        [id, start, pages, "read"] => (id, start, pages, Prot::USER_READ),
        [id, start, pages, "write"] => (id, start, pages, Prot::USER_WRITE),
        _ => return Err("expected: task protect ID ADDR PAGES read|write".into()),
    };
    let driven = find(id)?;
    let (va, bytes) = range(start, pages)?;
    if prot.write
        && let Some(range) = VirtRange::new(va, bytes)
    {
        ask_for_all_in(&driven.space, range, force)?;
    }
    let stats = driven.space.protect(va, bytes, prot).map_err(|error| format!("protect at {va}: {error}"))?;
    say_zapped(&driven.space, "protect", &stats);
    Ok(())
}

/// May what the range maps be written to?
fn ask_for_all_in(space: &Space, range: VirtRange, force: bool) -> Result<(), String> {
    let mut from = range.start();
    while let Some(vma) = space.vmas_from::<1>(from).first().filter(|vma| vma.range.start() < range.end()) {
        from = vma.range.end();
        let map = vma.mapping.pagemap();
        if map.kind() == MemoryKind::FsDax {
            // A file, which is not written over by being written to.
            continue;
        }
        let place = map.ranges().first().and_then(|frames| Place::of(frames.start()));
        if let Some(place) = place.filter(|place| devices::block(place.at).is_ok()) {
            contents::ask(place.at, Over::Bytes, force)?;
        }
    }
    Ok(())
}

fn say_zapped(space: &Space, act: &str, stats: &ZapStats) {
    let ZapStats { leaves, table_pages, rounds, ipis, .. } = *stats;
    let (name, tables) = (space.name(), count(table_pages, "table page"));
    let gone = if leaves == 1 { "leaf" } else { "leaves" };
    let (rounds_word, ipis_word) = (count(rounds, "shootdown"), count(ipis, "CPU"));
    console::line(format_args!(
        "{name}: {leaves} {gone} and {tables} gone; {rounds_word}, {ipis_word} interrupted for it"
    ));
    report!("user_task id={} act={act} leaves={leaves} tables={table_pages} rounds={rounds} ipis={ipis}", space.id());
}

fn access(verb: &str, args: &[&str]) -> Result<(), String> {
    let words = Words::sort(args, &["cpu"])?;
    let (id, va, value) = match (verb, &words.plain[..]) {
        ("read", [id, va]) => (id, va, None),
        ("write", [id, va, value]) => (id, va, Some(number(value)?)),
        ("read", _) => return Err("expected: task read ID ADDR [cpu=N]".into()),
        _ => return Err("expected: task write ID ADDR VALUE [cpu=N]".into()),
    };
    let (driven, va, cpu) = (find(id)?, address(va)?, words.cpu()?);
    let (space, name) = (&driven.space, driven.space.name());
    files::refuse_while_frozen(space, va, size_of::<u64>() as u64)?;
    let done = driven.does(cpu, move || {
        let done = match value {
            None => user::read_u64(va),
            Some(value) => user::write_u64(va, value).map(|()| value),
        };
        done.map_err(|signal| format!("{}", signal.in_words()))
    });
    let value = done.map_err(|why| format!("{name} cannot {verb} at {va} on CPU {cpu}: {why}"))?;
    let found = space.translate(va).map(|found| found.size);
    let asked = space.vmas_from::<1>(va).first().map(|vma| vma.alignment);
    let smaller = match asked.filter(|&asked| found.is_some_and(|found| found < asked)) {
        Some(asked) => format!(" (not of {asked}: its frames are in use as smaller folios)"),
        None => String::new(),
    };
    let (did, leaf) = (if verb == "read" { "reads" } else { "writes" }, found.map_or("none", leaf_word));
    console::line(format_args!("{name} {did} {value:#x} at {va} on CPU {cpu}, through a leaf of {leaf}{smaller}"));
    report!("user_task id={} act={verb} addr={va} value={value:#x} cpu={cpu} leaf={leaf}", space.id());
    Ok(())
}

fn end(args: &[&str]) -> Result<(), String> {
    let [id] = args else { return Err("expected: task end ID".into()) };
    let driven = find(id)?;
    let (id, pins) = (driven.space.id(), give_up(&driven));
    drop(driven);
    files::settle();
    console::line(format_args!("task {id} has ended, {} given back", count(pins, "pin")));
    report!("user_task id={id} act=end pins={pins}");
    Ok(())
}

/// Ends a task; answers how many pins it has held.
fn give_up(driven: &Arc<Driven>) -> u64 {
    let id = driven.space.id();
    // The list first: who looks for it from here on finds none, and pins nothing more.
    let gone = DRIVEN.lock().remove(&id);
    drop(gone);
    driven.end();
    held::give_back_of(id)
}

/// Ends all of them: for who leaves nothing behind.
pub fn end_all() {
    all().iter().for_each(|driven| _ = give_up(driven));
}

/// Is it still there? Asked under the lock of the pins by who adds one.
pub fn is_there(id: u64) -> bool {
    DRIVEN.lock().contains_key(&id)
}
