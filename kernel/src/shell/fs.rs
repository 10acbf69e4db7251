//! The shell's commands about file systems. `N` is the device's number, or its name.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;

use cli::shown::shown;
use fs::error::FsError;
use fs::format::Kind;
use fs::freeze::FreezeHolder;
use fs::lock_order::Context;
use fs::mounted::FreezeError;
use mm::addr::{PAGE_SIZE, PageSize};
use mm::entry::Prot;
use mm::pins::Word;

use crate::console;
use crate::console::command::{Command, forced};
use crate::mem::machine::{Space, mm};
use crate::pmem::contents::{self, Over};
use crate::pmem::mounts::{self, File, Fs};
use crate::shell::args::{device, number};
use crate::shell::explore::files;
use crate::shell::jobs;
use crate::task::tcb::Signal;
use crate::task::{sched, user};

/// The commands.
pub const COMMANDS: &[Command] = &[
    Command {
        name: "mkfs",
        args: "N [LABEL] [force]",
        help: "make a file system on device N, which holds nothing",
        example: "mkfs 0 data",
        run: mkfs,
    },
    Command { name: "mount", args: "N", help: "mount the file system of device N", example: "mount 0", run: mount },
    Command { name: "umount", args: "N", help: "unmount it", example: "umount 0", run: umount },
    Command { name: "mounts", args: "", help: "what is mounted, and how it fares", example: "mounts", run: mounted },
    Command { name: "fsck", args: "N", help: "look for damage; it is not mounted", example: "fsck 0", run: fsck },
    Command {
        name: "fsck",
        args: "N --repair",
        help: "first write a lost superblock anew, from its copy",
        example: "fsck 0 --repair",
        run: fsck,
    },
    Command { name: "df", args: "N", help: "blocks and inodes, and free ones", example: "df 0", run: df },
    Command { name: "ls", args: "N PATH", help: "the entries of a directory", example: "ls 0 /", run: ls },
    Command { name: "stat", args: "N PATH", help: "size, blocks, links", example: "stat 0 /a", run: stat },
    Command {
        name: "cat",
        args: "N PATH [OFFSET [LEN]]",
        help: "a file's contents, as text",
        example: "cat 0 /a 0 64",
        run: cat,
    },
    Command {
        name: "write",
        args: "N PATH OFFSET TEXT",
        help: "write, durably; the file is made if needed",
        example: "write 0 /a 0 'some text'",
        run: write,
    },
    Command {
        name: "truncate",
        args: "N PATH SIZE",
        help: "cut a file, or make it longer",
        example: "truncate 0 /a 2097152",
        run: truncate,
    },
    Command {
        name: "punch",
        args: "N PATH OFFSET LEN",
        help: "make a hole",
        example: "punch 0 /a 4096 4096",
        run: punch,
    },
    Command {
        name: "fsync",
        args: "N PATH",
        help: "make durable what tasks stored through mappings",
        example: "fsync 0 /a",
        run: fsync,
    },
    Command {
        name: "touch",
        args: "N PATH",
        help: "a task maps the file, stores a word in each page, and closes it, which makes that durable",
        example: "touch 0 /a",
        run: touch,
    },
    Command { name: "mkdir", args: "N PATH", help: "make a directory", example: "mkdir 0 /d", run: mkdir },
    Command { name: "rmdir", args: "N PATH", help: "remove an empty one", example: "rmdir 0 /d", run: rmdir },
    Command { name: "mv", args: "N PATH NEW", help: "rename", example: "mv 0 /a /b", run: mv },
    Command { name: "ln", args: "N PATH NEW", help: "another name for a file", example: "ln 0 /a /c", run: ln },
    Command {
        name: "rm",
        args: "N PATH",
        help: "take a name away; the last one takes the file along",
        example: "rm 0 /c",
        run: rm,
    },
    Command { name: "freeze", args: "N", help: "let no change happen until thaw", example: "freeze 0", run: freeze },
    Command { name: "thaw", args: "N", help: "take one freeze back", example: "thaw 0", run: thaw },
];

/// A command's words do not fit: what was expected.
fn expected(usage: &str) -> String {
    format!("expected: {usage}")
}

fn mounted_at(word: &str) -> Result<Arc<Fs>, String> {
    mounts::get(device(word)?)
}

/// The same, for a change: one that is frozen would let the shell, which alone can thaw it, wait for ever.
fn to_change(word: &str) -> Result<Arc<Fs>, String> {
    let fs = mounted_at(word)?;
    match fs.freeze_holders() {
        (0, 0) => Ok(fs),
        _ => Err(format!("device {word} is frozen (thaw {word} first)")),
    }
}

/// Who gives blocks of the file back waits for pins of them; where it is the shell that holds one, and not a job that waits,
/// it would wait for ever.
fn refuse_to_wait(word: &str, fs: &Fs, path: &str) -> Result<(), String> {
    if jobs::is_one() { Ok(()) } else { files::refuse_while_pinned(device(word)?, fs, path) }
}

/// An error, with the path it is about.
fn about(path: &str) -> impl Fn(FsError) -> String + '_ {
    move |error| format!("{path}: {error}")
}

fn open(fs: &Arc<Fs>, context: &Context, path: &str) -> Result<Arc<File>, String> {
    fs.open(context, path).map_err(about(path))
}

/// Does `work` with an open file, and lets go of it.
fn with_file(
    word: &str,
    path: &str,
    work: impl FnOnce(&Fs, &Context, &File) -> Result<(), FsError>,
) -> Result<(), String> {
    let (fs, context) = (mounted_at(word)?, Context::new());
    let file = open(&fs, &context, path)?;
    let done = work(&fs, &context, &file);
    drop(file);
    files::settle();
    done.map_err(about(path))
}

fn mkfs(args: &[&str]) -> Result<(), String> {
    let (args, force) = forced(args);
    let (nr, label) = match args {
        [nr] => (nr, ""),
        [nr, label] => (nr, *label),
        _ => return Err(expected("mkfs N [LABEL] [force]")),
    };
    let label = label.parse().map_err(|error| format!("mkfs: {error}"))?;
    let at = device(nr)?;
    mounts::can_be_made(at)?;
    contents::ask(at, Over::Everything, force)?;
    let layout = mounts::mkfs(at, label)?;
    console::line(format_args!("{} blocks of 4096 bytes", layout.nr_blocks));
    Ok(())
}

fn mount(args: &[&str]) -> Result<(), String> {
    let [nr] = args else { return Err(expected("mount N")) };
    let fs = mounts::mount(device(nr)?)?;
    // It is mounted, whether or not it can be asked how full it is.
    match fs.statfs() {
        Ok(sizes) => {
            crate::console::answer!("mounted fs={} blocks={} free={}", fs.name(), sizes.nr_blocks, sizes.free_blocks);
        }
        Err(error) => {
            crate::console::answer!("mounted fs={}", fs.name());
            console::line(format_args!("{}: mounted; how full it is cannot be said: {error}", fs.name()));
        }
    }
    Ok(())
}

fn umount(args: &[&str]) -> Result<(), String> {
    let [nr] = args else { return Err(expected("umount N")) };
    files::refuse_unmount(device(nr)?)?;
    mounts::unmount(device(nr)?)?;
    crate::console::answer!("unmounted device={nr}");
    Ok(())
}

fn mounted(_: &[&str]) -> Result<(), String> {
    for (at, fs) in mounts::all() {
        let state = match (fs.shutdown_reason(), fs.freeze_holders()) {
            (Some(reason), _) => format!("shut down: {reason}"),
            (None, (0, 0)) => String::from("in use"),
            (None, (kernel, user)) => format!("frozen (kernel {kernel}, user {user})"),
        };
        console::line(format_args!("{at}: {}: {state}", fs.name()));
        if let Some(report) = fs.last_notification() {
            console::line(format_args!("{at}: {}: last notification: {report}", fs.name()));
        }
    }
    Ok(())
}

fn fsck(args: &[&str]) -> Result<(), String> {
    let (nr, repair) = match args {
        [nr] => (nr, false),
        [nr, "--repair"] => (nr, true),
        _ => return Err(expected("fsck N, or fsck N --repair")),
    };
    if repair && let Some(renewed) = mounts::repair(device(nr)?)? {
        console::line(format_args!("{renewed}"));
    }
    let report = mounts::fsck(device(nr)?)?;
    report.problems.iter().for_each(|problem| console::line(format_args!("{problem}")));
    let (files, directories) = (report.files, report.directories);
    crate::console::answer!(
        "fsck device={nr} problems={} files={files} directories={directories} blocks={} extents={}",
        report.nr_problems,
        report.blocks,
        report.extents
    );
    if report.is_clean() { Ok(()) } else { Err(format!("{} problems", report.nr_problems)) }
}

fn df(args: &[&str]) -> Result<(), String> {
    let [nr] = args else { return Err(expected("df N")) };
    let fs = mounted_at(nr)?;
    let sizes = fs.statfs().map_err(|error| error.to_string())?;
    crate::console::answer!(
        "df fs={} blocks={} data={} free={} inodes={} free_inodes={}",
        fs.name(),
        sizes.nr_blocks,
        sizes.data_blocks,
        sizes.free_blocks,
        sizes.nr_inodes,
        sizes.free_inodes
    );
    Ok(())
}

fn kind_word(kind: Kind) -> &'static str {
    if kind == Kind::Directory { "dir" } else { "file" }
}

fn ls(args: &[&str]) -> Result<(), String> {
    let [nr, path] = args else { return Err(expected("ls N PATH")) };
    for entry in mounted_at(nr)?.readdir(&Context::new(), path).map_err(about(path))? {
        console::line(format_args!("{:<4} {:>6} {}", kind_word(entry.kind), entry.ino, entry.name.escape_ascii()));
    }
    Ok(())
}

fn stat(args: &[&str]) -> Result<(), String> {
    let [nr, path] = args else { return Err(expected("stat N PATH")) };
    let stat = mounted_at(nr)?.stat(&Context::new(), path).map_err(about(path))?;
    crate::console::answer!(
        "stat path={} ino={} kind={} dax={} size={} blocks={} nlink={} generation={}",
        Word(path),
        stat.ino,
        kind_word(stat.kind),
        u8::from(stat.dax),
        stat.size,
        stat.blocks,
        stat.nlink,
        stat.generation
    );
    Ok(())
}

fn cat(args: &[&str]) -> Result<(), String> {
    /// Longest piece that is shown.
    const MOST: u64 = 4096;
    let (nr, path, offset, len) = match args {
        [nr, path] => (nr, path, 0, MOST),
        [nr, path, offset] => (nr, path, number(offset)?, MOST),
        [nr, path, offset, len] => (nr, path, number(offset)?, number(len)?.min(MOST)),
        _ => return Err(expected("cat N PATH [OFFSET [LEN]]")),
    };
    with_file(nr, path, |fs, context, file| {
        let mut bytes = vec![0; len as usize];
        let got = fs.read(context, file, offset, &mut bytes)?;
        console::line(format_args!("{}", shown(&bytes[..got])));
        Ok(())
    })
}

fn write(args: &[&str]) -> Result<(), String> {
    let [nr, path, offset, text @ ..] = args else { return Err(expected("write N PATH OFFSET TEXT")) };
    let (offset, text) = (number(offset)?, text.join(" "));
    let (fs, context) = (to_change(nr)?, Context::new());
    let file = match fs.create(&context, path, true) {
        Err(FsError::Exists) => open(&fs, &context, path)?,
        made => made.map_err(about(path))?,
    };
    let done = fs.write(&context, &file, offset, text.as_bytes());
    drop(file);
    files::settle();
    match done.map_err(about(path))? {
        written if written < text.len() => console::line(format_args!("{written} of {} bytes written", text.len())),
        written => console::line(format_args!("{written} bytes written")),
    }
    Ok(())
}

fn truncate(args: &[&str]) -> Result<(), String> {
    let [nr, path, size] = args else { return Err(expected("truncate N PATH SIZE")) };
    let size = number(size)?;
    let fs = to_change(nr)?;
    refuse_to_wait(nr, &fs, path)?;
    with_file(nr, path, |fs, context, file| fs.truncate(context, file, size))
}

fn punch(args: &[&str]) -> Result<(), String> {
    let [nr, path, offset, len] = args else { return Err(expected("punch N PATH OFFSET LEN")) };
    let (offset, len) = (number(offset)?, number(len)?);
    let fs = to_change(nr)?;
    refuse_to_wait(nr, &fs, path)?;
    with_file(nr, path, |fs, context, file| fs.punch(context, file, offset, len))
}

fn fsync(args: &[&str]) -> Result<(), String> {
    let [nr, path] = args else { return Err(expected("fsync N PATH")) };
    with_file(nr, path, |fs, context, file| {
        let synced = fs.fsync(context, file)?;
        crate::console::report!(
            "fsync path={} ranges={} fenced={}",
            Word(path),
            synced.ranges,
            u8::from(synced.fenced)
        );
        match synced.ranges {
            0 => console::line(format_args!("{path}: nothing was stored since the last time")),
            nr => console::line(format_args!("{path}: {nr} runs of pages that tasks have stored to are durable now")),
        }
        Ok(())
    })
}

fn touch(args: &[&str]) -> Result<(), String> {
    let [nr, path] = args else { return Err(expected("touch N PATH")) };
    let (fs, context) = (to_change(nr)?, Context::new());
    let size = fs.stat(&context, path).map_err(about(path))?.size;
    let len = size.next_multiple_of(PAGE_SIZE);
    if len == 0 {
        return Err(format!("{path}: it is empty (try truncate {nr} {path} SIZE)"));
    }
    let file = open(&fs, &context, path)?;
    let space = Space::new(mm(), "touch").map_err(|error| format!("no address space: {error}"))?;
    let base = mm::addr::VirtAddr::new(PageSize::Size1G.bytes());
    let mapped = space.map(base, len, Prot::USER_WRITE, &file.ops(), 0);
    let told = mapped.map_err(|error| format!("{path}: {error}")).and_then(|()| {
        let task = sched::try_spawn("touch", arch::percpu::cpu(), Some(Arc::clone(&space)), move || {
            for page in 0..len / PAGE_SIZE {
                user::write_u64(mm::addr::VirtAddr::new(base.as_u64() + page * PAGE_SIZE), page)?;
            }
            Ok(())
        });
        let task = task.map_err(|error| format!("{error}"))?;
        sched::join(&task).map_err(|signal: Signal| format!("the task ended by {signal}"))
    });
    let mut leaves = [0u64; 3];
    let mut at = base.as_u64();
    while at < base.as_u64() + len {
        // Where the task came to an end, so do the pages that it has touched.
        let Some(found) = space.translate(mm::addr::VirtAddr::new(at)) else { break };
        leaves[found.size.level() as usize - 1] += 1;
        at += found.size.bytes();
    }
    let [small, medium, large] = leaves;
    crate::console::answer!(
        "touch path={} pages={} leaves_4k={small} leaves_2m={medium} leaves_1g={large}",
        Word(path),
        len / PAGE_SIZE
    );
    // Whoever closes a file last makes it durable: done here, it can be said how much that was.
    let synced = fs.fsync(&context, &file);
    drop((file, space));
    files::settle();
    told?;
    console::line(format_args!("{path}: {} runs of its pages are durable now", synced.map_err(about(path))?.ranges));
    Ok(())
}

fn mkdir(args: &[&str]) -> Result<(), String> {
    let [nr, path] = args else { return Err(expected("mkdir N PATH")) };
    to_change(nr)?.mkdir(&Context::new(), path).map_err(about(path))
}

fn rmdir(args: &[&str]) -> Result<(), String> {
    let [nr, path] = args else { return Err(expected("rmdir N PATH")) };
    to_change(nr)?.rmdir(&Context::new(), path).map_err(about(path))
}

fn mv(args: &[&str]) -> Result<(), String> {
    let [nr, path, new] = args else { return Err(expected("mv N PATH NEW")) };
    let fs = to_change(nr)?;
    refuse_to_wait(nr, &fs, new)?;
    fs.rename(&Context::new(), path, new).map_err(about(path))
}

fn ln(args: &[&str]) -> Result<(), String> {
    let [nr, path, new] = args else { return Err(expected("ln N PATH NEW")) };
    to_change(nr)?.link(&Context::new(), path, new).map_err(about(path))
}

fn rm(args: &[&str]) -> Result<(), String> {
    let [nr, path] = args else { return Err(expected("rm N PATH")) };
    let fs = to_change(nr)?;
    refuse_to_wait(nr, &fs, path)?;
    fs.unlink(&Context::new(), path).map_err(about(path))
}

fn freeze(args: &[&str]) -> Result<(), String> {
    let [nr] = args else { return Err(expected("freeze N")) };
    mounted_at(nr)?.freeze(FreezeHolder::User).map_err(|error| match error {
        FreezeError::NotFrozen(error) => format!("not frozen: {error}"),
        FreezeError::NotAtRest(error) => format!("frozen, but the medium is not at rest: {error}"),
    })
}

fn thaw(args: &[&str]) -> Result<(), String> {
    let [nr] = args else { return Err(expected("thaw N")) };
    let fs = mounted_at(nr)?;
    if fs.freeze_holders().1 == 0 {
        return Err(format!("device {nr} is not frozen (try freeze {nr})"));
    }
    fs.thaw(FreezeHolder::User).map_err(|error| format!("not thawed: {error}"))?;
    files::settle();
    Ok(())
}
