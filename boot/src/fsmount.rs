//! The job `fs mount`: an image file as a directory of this machine. Ordinary tools look into it there, and outside testers
//! judge the file system by it (`tests/judges`). Between the two is FUSE: the host's kernel asks, and the file
//! system's own code, the one that our kernel runs, answers.
//!
//! Linux: `fs/fuse/dev.c`, `include/uapi/linux/fuse.h`. The host's kernel numbers the root 1 and ours is 2; our 1, the
//! inode table, nobody sees.

use crate::fsimage::{Image, view};
use anyhow::{Context, Result, ensure};
use fs::error::FsError;
use fs::format::{BLOCK_SIZE, Kind, MAX_NAME, ROOT_INO};
use fs::mount::{MountOptions, mount as mount_volume};
use fs::names::Stat;
use fs::pmem::Pmem;
use fs::volume::Volume;
use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, Session, SessionUnmounter, TimeOrNow, WriteFlags,
};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long the host's kernel may take what it was told for true: all changes go through it.
const TTL: Duration = Duration::from_secs(3600);
/// `fallocate` for a hole: `FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE`.
const PUNCH: i32 = 2 | 1;
/// The part of a mode that says what a file is, and what it says of a regular one.
const KIND_BITS: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;

/// What is mounted.
struct State {
    volume: Volume,
    /// How often the host's kernel has been told of an inode and not forgotten it: what has lost its last name stays
    /// until then.
    known: BTreeMap<u64, u64>,
    /// What open directories list, by handle: entries that go meanwhile do not move the others.
    listings: BTreeMap<u64, Vec<(u64, FileType, Vec<u8>)>>,
    next_handle: u64,
}

/// A file system, as the host's kernel asks it.
struct Adaptor(Arc<Mutex<State>>);

/// A mounted image.
pub struct Mounted {
    session: Session<Adaptor>,
    state: Arc<Mutex<State>>,
}

/// Mounts an image on `dir`, says so, and returns when it is unmounted: by `umount`, or by the first Ctrl-C when nobody
/// uses it.
///
/// # Errors
/// One line: the image cannot be opened or mounted, `dir` is none, there is no /dev/fuse; what the last sync met.
pub fn mount(image: &Path, log: Option<&Path>, dir: &Path, write: bool, out: &mut impl Write) -> Result<()> {
    let mut mounted = Mounted::new(image, log, dir, write)?;
    let mut unmounter = mounted.unmounter();
    let name = dir.display().to_string();
    ctrlc::set_handler(move || {
        if let Err(error) = unmounter.unmount() {
            eprintln!("run-qemu: {name} stays mounted ({error}): end what uses it, then `umount {name}`");
        }
    })?;
    let how = if write { "for reading and writing" } else { "for reading" };
    writeln!(out, "{} is mounted on {} {how}; `umount` or Ctrl-C ends it", image.display(), dir.display())?;
    out.flush()?;
    mounted.run()
}

impl Mounted {
    /// Mounts an image on `dir`. From now on somebody has to answer: see [`run`](Self::run).
    ///
    /// # Errors
    /// As [`mount`].
    pub fn new(image: &Path, log: Option<&Path>, dir: &Path, write: bool) -> Result<Self> {
        ensure!(dir.is_dir(), "{} is not a directory to mount on", dir.display());
        let open = |path: &Path| if write { writable(path) } else { view(path) };
        let options = MountOptions { log: log.map(open).transpose()?, ..MountOptions::default() };
        let volume = mount_volume(&open(image)?, &options);
        let volume = volume.with_context(|| format!("{} cannot be mounted", image.display()))?;
        let (known, listings) = Default::default();
        let state = Arc::new(Mutex::new(State { volume, known, listings, next_handle: 1 }));
        let mut config = Config::default();
        let name = image.display().to_string();
        let access = if write { MountOption::RW } else { MountOption::RO };
        config.mount_options = vec![access, MountOption::FSName(name), MountOption::Subtype("unplug".into())];
        let session = Session::new(Adaptor(Arc::clone(&state)), dir, &config);
        let session = session.with_context(|| format!("{}: nothing is mounted on it through /dev/fuse", dir.display()));
        match session {
            Ok(session) => Ok(Self { session, state }),
            Err(error) => come_to_rest(&state).and(Err(error)),
        }
    }

    /// Ends it from elsewhere, where nobody uses it.
    pub fn unmounter(&mut self) -> SessionUnmounter {
        self.session.unmount_callable()
    }

    /// Answers until it is unmounted, and brings the image to rest.
    ///
    /// # Errors
    /// The connection to the host's kernel, or the image, fails.
    pub fn run(self) -> Result<()> {
        let ran = self.session.run().context("the host's kernel is not understood");
        come_to_rest(&self.state).and(ran)
    }
}

/// Nobody asks any more: what has lost its last name is freed, and the journal is empty.
fn come_to_rest(state: &Mutex<State>) -> Result<()> {
    let state = &mut *state.lock().unwrap_or_else(PoisonError::into_inner);
    let freed = state.let_go_of_all();
    let rested = state.volume.quiesce();
    freed.and(rested).context("the image is not at rest")
}

/// An image that is changed.
fn writable(path: &Path) -> Result<Arc<dyn Pmem>> {
    Ok(Arc::new(Image::open(path, true, false)?))
}

/// The error as POSIX calls it.
fn errno(error: FsError) -> Errno {
    match error {
        FsError::NotFound => Errno::ENOENT,
        FsError::Exists => Errno::EEXIST,
        FsError::NotDirectory => Errno::ENOTDIR,
        FsError::IsDirectory => Errno::EISDIR,
        FsError::NotEmpty => Errno::ENOTEMPTY,
        FsError::NoSpace | FsError::TooSmall | FsError::JournalTooSmall => Errno::ENOSPC,
        FsError::BadName | FsError::Invalid | FsError::NoFileSystem => Errno::EINVAL,
        FsError::NameTooLong => Errno::ENAMETOOLONG,
        FsError::TooLarge => Errno::EFBIG,
        FsError::AttributesTooLarge => Errno::E2BIG,
        FsError::TooManyLinks => Errno::EMLINK,
        FsError::Busy => Errno::EBUSY,
        FsError::NotSupported => Errno::EOPNOTSUPP,
        FsError::DeviceGone => Errno::ENODEV,
        FsError::Damaged(_) | FsError::Media(_) | FsError::NotDurable | FsError::ShutDown(_) => Errno::EIO,
    }
}

/// Our number of an inode; 0, which is none, for what the host's kernel cannot have been told of.
fn ours(ino: INodeNo) -> u64 {
    match ino {
        INodeNo::ROOT => ROOT_INO,
        INodeNo(ROOT_INO) => 0,
        INodeNo(ino) => ino,
    }
}

fn theirs(ino: u64) -> INodeNo {
    if ino == ROOT_INO { INodeNo::ROOT } else { INodeNo(ino) }
}

fn file_type(kind: Kind) -> FileType {
    if kind == Kind::Directory { FileType::Directory } else { FileType::RegularFile }
}

/// The file system keeps no owner and no permissions: everything belongs to who has mounted it.
fn attributes(stat: &Stat) -> FileAttr {
    let time = |ns| UNIX_EPOCH + Duration::from_nanos(ns);
    FileAttr {
        ino: theirs(stat.ino),
        size: stat.size,
        blocks: stat.blocks * (BLOCK_SIZE / 512),
        atime: time(stat.mtime_ns),
        mtime: time(stat.mtime_ns),
        ctime: time(stat.ctime_ns),
        crtime: UNIX_EPOCH,
        kind: file_type(stat.kind),
        perm: if stat.kind == Kind::Directory { 0o755 } else { 0o644 },
        nlink: stat.nlink,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        rdev: 0,
        blksize: BLOCK_SIZE as u32,
        flags: 0,
    }
}

impl State {
    /// Tells the host's kernel of an inode: it is known once more.
    fn entry(&mut self, ino: u64) -> Result<(FileAttr, Generation), FsError> {
        let stat = self.volume.stat(ino)?;
        *self.known.entry(ino).or_default() += 1;
        Ok((attributes(&stat), Generation(stat.generation.into())))
    }

    /// An inode may have lost its last name: it is freed, now or when it is forgotten.
    fn gone(&mut self, ino: Option<u64>) -> Result<(), FsError> {
        match ino.filter(|ino| !self.known.contains_key(ino)) {
            Some(ino) => self.volume.free(ino),
            None => Ok(()),
        }
    }

    fn forget(&mut self, ino: u64, times: u64) -> Result<(), FsError> {
        let left = self.known.get(&ino).map_or(0, |known| known.saturating_sub(times));
        if left > 0 {
            self.known.insert(ino, left);
            return Ok(());
        }
        self.known.remove(&ino);
        if self.volume.stat(ino)?.nlink == 0 { self.volume.free(ino) } else { Ok(()) }
    }

    /// On unmount the host's kernel need not say what it forgets.
    fn let_go_of_all(&mut self) -> Result<(), FsError> {
        let mut done = Ok(());
        while let Some((&ino, &times)) = self.known.first_key_value() {
            // One that cannot be freed keeps no other.
            done = done.and(self.forget(ino, times));
        }
        done
    }

    fn list(&mut self, dir: u64) -> Result<Vec<(u64, FileType, Vec<u8>)>, FsError> {
        let mut list = Vec::new();
        for name in [".", ".."] {
            list.push((self.volume.step(dir, name.as_bytes())?, FileType::Directory, name.into()));
        }
        let entries = self.volume.readdir(dir)?.into_iter();
        list.extend(entries.map(|entry| (entry.ino, file_type(entry.kind), entry.name)));
        Ok(list)
    }

    fn rename(&mut self, from: (u64, &[u8]), to: (u64, &[u8]), flags: RenameFlags) -> Result<(), FsError> {
        if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
            return Err(FsError::Invalid);
        }
        if flags.contains(RenameFlags::RENAME_NOREPLACE) && self.volume.lookup(to.0, to.1).is_ok() {
            return Err(FsError::Exists);
        }
        let gone = self.volume.rename(from, to)?;
        self.gone(gone)
    }
}

impl Adaptor {
    fn with<R>(&self, work: impl FnOnce(&mut State) -> Result<R, FsError>) -> Result<R, Errno> {
        let state = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        state.volume.set_time(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
        work(state).map_err(errno)
    }
}

/// Answers with a value, or with the error.
macro_rules! answer {
    ($reply:ident, $done:expr, |$value:pat_param| $good:expr) => {
        match $done {
            Ok($value) => $good,
            Err(error) => $reply.error(error),
        }
    };
}

impl Filesystem for Adaptor {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.with(|state| {
            let ino = state.volume.lookup(ours(parent), name.as_bytes())?;
            state.entry(ino)
        });
        answer!(reply, found, |(attr, generation)| reply.entry(&TTL, &attr, generation));
    }

    fn forget(&self, _: &Request, ino: INodeNo, times: u64) {
        // Nobody waits for an answer. What could not be freed, the next mount frees.
        if let Err(error) = self.with(|state| state.forget(ours(ino), times)) {
            eprintln!("run-qemu: inode {} is not freed yet: {error:?}", ours(ino));
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let stat = self.with(|state| state.volume.stat(ours(ino)));
        answer!(reply, stat, |stat| reply.attr(&TTL, &attributes(&stat)));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changed = self.with(|state| {
            let old = attributes(&state.volume.stat(ours(ino))?);
            let same = mode.is_none_or(|mode| mode & !KIND_BITS == u32::from(old.perm))
                && uid.is_none_or(|uid| uid == old.uid)
                && gid.is_none_or(|gid| gid == old.gid);
            if !same || atime.is_some() || mtime.is_some() {
                return Err(FsError::NotSupported);
            }
            size.map_or(Ok(()), |size| state.volume.truncate(ours(ino), size))?;
            state.volume.stat(ours(ino))
        });
        answer!(reply, changed, |stat| reply.attr(&TTL, &attributes(&stat)));
    }

    fn mknod(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: u32, reply: ReplyEntry) {
        if mode & KIND_BITS != REGULAR {
            return reply.error(Errno::EPERM);
        }
        let made = self.with(|state| {
            let ino = state.volume.create(ours(parent), name.as_bytes(), true)?;
            state.entry(ino)
        });
        answer!(reply, made, |(attr, generation)| reply.entry(&TTL, &attr, generation));
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let made = self.with(|state| {
            let ino = state.volume.create(ours(parent), name.as_bytes(), true)?;
            state.entry(ino)
        });
        answer!(reply, made, |(attr, generation)| {
            reply.created(&TTL, &attr, generation, FileHandle(0), FopenFlags::empty());
        });
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let made = self.with(|state| {
            let ino = state.volume.mkdir(ours(parent), name.as_bytes())?;
            state.entry(ino)
        });
        answer!(reply, made, |(attr, generation)| reply.entry(&TTL, &attr, generation));
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let linked = self.with(|state| {
            state.volume.link(ours(ino), ours(parent), name.as_bytes())?;
            state.entry(ours(ino))
        });
        answer!(reply, linked, |(attr, generation)| reply.entry(&TTL, &attr, generation));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = self.with(|state| {
            let gone = state.volume.unlink(ours(parent), name.as_bytes())?;
            state.gone(gone)
        });
        answer!(reply, done, |()| reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = self.with(|state| {
            let gone = state.volume.rmdir(ours(parent), name.as_bytes())?;
            state.gone(Some(gone))
        });
        answer!(reply, done, |()| reply.ok());
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = ((ours(parent), name.as_bytes()), (ours(new_parent), new_name.as_bytes()));
        answer!(reply, self.with(|state| state.rename(from, to, flags)), |()| reply.ok());
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut bytes = vec![0; size as usize];
        let read = self.with(|state| state.volume.read(ours(ino), offset, &mut bytes));
        answer!(reply, read, |len| reply.data(&bytes[..len]));
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.with(|state| state.volume.write(ours(ino), offset, data));
        // The host's kernel asks for no more than fits into 32 bits.
        answer!(reply, written, |len| reply.written(len as u32));
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let done = self.with(|state| match mode {
            PUNCH => state.volume.punch(ours(ino), offset, length),
            _ => Err(FsError::NotSupported),
        });
        answer!(reply, done, |()| reply.ok());
    }

    /// A call that writes is durable when it returns.
    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let opened = self.with(|state| {
            let list = state.list(ours(ino))?;
            let handle = state.next_handle;
            state.next_handle += 1;
            state.listings.insert(handle, list);
            Ok(handle)
        });
        answer!(reply, opened, |handle| reply.opened(FileHandle(handle), FopenFlags::empty()));
    }

    fn readdir(&self, _: &Request, ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let read = self.with(|state| {
            // From the start again: what it holds now.
            if offset == 0 {
                let list = state.list(ours(ino))?;
                state.listings.insert(handle.0, list);
            }
            let list = state.listings.get(&handle.0).ok_or(FsError::Invalid)?;
            for (at, (ino, kind, name)) in list.iter().enumerate().skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
                if reply.add(theirs(*ino), at as u64 + 1, *kind, OsStr::from_bytes(name)) {
                    break;
                }
            }
            Ok(())
        });
        answer!(reply, read, |()| reply.ok());
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        let released = self.with(|state| Ok(state.listings.remove(&handle.0)));
        answer!(reply, released, |_| reply.ok());
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let block = BLOCK_SIZE as u32;
        answer!(reply, self.with(|state| state.volume.statfs()), |sizes| reply.statfs(
            sizes.data_blocks,
            sizes.free_blocks,
            sizes.free_blocks,
            sizes.nr_inodes,
            sizes.free_inodes,
            block,
            MAX_NAME as u32,
            block,
        ));
    }
}
