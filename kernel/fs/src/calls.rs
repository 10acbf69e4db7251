//! The calls: what tasks ask of a mounted file system, by path and by open file.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use mm::addr::VirtAddr;
use mm::gather::ZapStats;
use mm::machine::Machine;
use mm::space::{AddressSpace, MapError};
use mm::sync::Arc;

use crate::error::FsError;
use crate::file::WRITE_BLOCKS;
use crate::format::{BLOCK_SIZE, Kind, MAX_FILE};
use crate::gate;
use crate::handle::File;
use crate::inode::Inode;
use crate::lock_order::{Context, LockOrder};
use crate::mounted::Mounted;
use crate::mutant::Mutant;
use crate::names::{DirEntry, Stat};
use crate::volume::Volume;

/// Most bytes that a call reads or writes before it lets go of what a freeze and a removal wait for: as much as one
/// operation of [`Volume::write`] takes.
pub const CHUNK_BYTES: u64 = WRITE_BLOCKS * BLOCK_SIZE;

/// How many of `len` bytes from `at` on are done next.
fn chunk(at: u64, len: usize) -> usize {
    len.min((CHUNK_BYTES - at % BLOCK_SIZE) as usize)
}

impl<M: Machine> Mounted<M> {
    /// Makes an empty file and opens it. `dax`: it can be mapped.
    ///
    /// # Errors
    /// As [`Volume::create`]; [`FsError::ShutDown`], [`FsError::DeviceGone`].
    pub fn create(self: &Arc<Self>, context: &Context, path: &str, dax: bool) -> Result<Arc<File<M>>, FsError> {
        let _write = self.begin_write(context)?;
        // Made and opened in one step: by its name it could be another one by then.
        let mut inodes = context.lock(&self.mm.machine, LockOrder::Table, &self.inodes);
        let ino = self.change_with(context, |volume| {
            let (dir, name) = volume.resolve_parent(path.as_bytes())?;
            volume.create(dir, name, dax)
        })?;
        let inode = inodes.entry(ino).or_insert_with(|| self.new_inode(ino, dax));
        Ok(File::new(self, inode))
    }

    /// Opens a file.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::IsDirectory`]; [`FsError::ShutDown`], [`FsError::DeviceGone`].
    pub fn open(self: &Arc<Self>, context: &Context, path: &str) -> Result<Arc<File<M>>, FsError> {
        // The table first: who frees an inode looks there, and at the name's absence, before it does.
        let mut inodes = context.lock(&self.mm.machine, LockOrder::Table, &self.inodes);
        let (ino, dax) = self.read_with(context, |volume| {
            let ino = volume.resolve(path.as_bytes())?;
            let node = volume.file(ino)?;
            Ok((ino, node.is_dax()))
        })?;
        let inode = inodes.entry(ino).or_insert_with(|| self.new_inode(ino, dax));
        Ok(File::new(self, inode))
    }

    /// An inode that comes into memory.
    fn new_inode(&self, ino: u64, dax: bool) -> Arc<Inode<M>> {
        Inode::new(&self.mm, self.source.device.pagemap(), self.faults, ino, dax)
    }

    /// Makes an empty directory.
    ///
    /// # Errors
    /// As [`Volume::mkdir`]; [`FsError::ShutDown`], [`FsError::DeviceGone`].
    pub fn mkdir(&self, context: &Context, path: &str) -> Result<(), FsError> {
        self.write_with(context, |volume| {
            let (dir, name) = volume.resolve_directory(path.as_bytes())?;
            volume.mkdir(dir, name).map(drop)
        })
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// As [`Volume::rmdir`]; [`FsError::ShutDown`], [`FsError::DeviceGone`].
    pub fn rmdir(&self, context: &Context, path: &str) -> Result<(), FsError> {
        self.write_with(context, |volume| {
            let (dir, name) = volume.resolve_directory(path.as_bytes())?;
            let gone = volume.rmdir(dir, name)?;
            volume.free(gone)
        })
    }

    /// Adds a name for a file.
    ///
    /// # Errors
    /// As [`Volume::link`]; [`FsError::ShutDown`], [`FsError::DeviceGone`].
    pub fn link(&self, context: &Context, path: &str, new: &str) -> Result<(), FsError> {
        self.write_with(context, |volume| {
            let ino = volume.resolve(path.as_bytes())?;
            let (dir, name) = volume.resolve_parent(new.as_bytes())?;
            volume.link(ino, dir, name)
        })
    }

    /// Takes a name away. The file goes at once if it was the last and nobody has it open, after waiting for those who
    /// have pinned pages of it; else when the last handle is let go.
    ///
    /// # Errors
    /// As [`Volume::unlink`]; [`FsError::ShutDown`], [`FsError::DeviceGone`].
    pub fn unlink(&self, context: &Context, path: &str) -> Result<(), FsError> {
        context.may_wait("pins of a file that is removed");
        let gone = self.write_with(context, |volume| {
            let (dir, name) = volume.resolve_parent(path.as_bytes())?;
            volume.unlink(dir, name)
        })?;
        self.gone(context, gone)
    }

    /// Moves a name; see [`Volume::rename`].
    ///
    /// # Errors
    /// As [`Volume::rename`]; [`FsError::ShutDown`], [`FsError::DeviceGone`].
    pub fn rename(&self, context: &Context, from: &str, to: &str) -> Result<(), FsError> {
        context.may_wait("pins of a file that is replaced");
        let gone = self.write_with(context, |volume| {
            let (dir, name) = volume.resolve_parent(from.as_bytes())?;
            let ino = volume.lookup(dir, name)?;
            let (new_dir, new_name) = match volume.stat(ino)?.kind {
                Kind::Directory => volume.resolve_directory(to.as_bytes())?,
                _ => volume.resolve_parent(to.as_bytes())?,
            };
            let gone = volume.rename((dir, name), (new_dir, new_name))?;
            match gone {
                // A directory has no pages that anybody maps.
                Some(ino) if volume.stat(ino)?.kind == Kind::Directory => volume.free(ino).map(|()| None),
                gone => Ok(gone),
            }
        })?;
        self.gone(context, gone)
    }

    /// An inode may have lost its last link.
    fn gone(&self, context: &Context, gone: Option<u64>) -> Result<(), FsError> {
        match gone {
            Some(ino) => self.let_go_of(context, ino, true),
            None => Ok(()),
        }
    }

    /// The entries of a directory, by name.
    ///
    /// # Errors
    /// As [`Volume::readdir`]; [`FsError::ShutDown`], [`FsError::DeviceGone`].
    pub fn readdir(&self, context: &Context, path: &str) -> Result<Vec<DirEntry>, FsError> {
        self.read_with(context, |volume| {
            let ino = volume.resolve(path.as_bytes())?;
            volume.readdir(ino)
        })
    }

    /// What a path leads to.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotDirectory`]; [`FsError::ShutDown`], [`FsError::DeviceGone`].
    pub fn stat(&self, context: &Context, path: &str) -> Result<Stat, FsError> {
        self.read_with(context, |volume| {
            let ino = volume.resolve(path.as_bytes())?;
            volume.stat(ino)
        })
    }

    /// Reads; see [`Volume::read`]. No more than [`CHUNK_BYTES`] at a time keep the device from leaving. Other calls on
    /// the file come before it or after it.
    ///
    /// # Errors
    /// As [`Volume::read`]; [`FsError::ShutDown`], [`FsError::DeviceGone`].
    pub fn read(&self, context: &Context, file: &File<M>, offset: u64, buf: &mut [u8]) -> Result<usize, FsError> {
        let _inode = context.lock(&self.mm.machine, LockOrder::Inode, &file.inode.lock);
        let mut done = 0;
        loop {
            let at = offset.saturating_add(done as u64);
            let len = if self.faults.has(Mutant::ReadAtOneGo) { buf.len() } else { chunk(at, buf.len() - done) };
            let part = &mut buf[done..done + len];
            let nr = self.read_with(context, |volume| volume.read(file.inode.ino, at, part))?;
            done += nr;
            if nr < len || done == buf.len() {
                return Ok(done);
            }
        }
    }

    /// Writes, durably, and answers how much; see [`Volume::write`]. A freeze, and so a removal, waits for no more than
    /// [`CHUNK_BYTES`] of it. Other calls on the file come before it or after it, unless it is longer than that and a freeze
    /// comes in between: then also where it waits for the thaw.
    ///
    /// # Errors
    /// As [`Volume::write`]; [`FsError::ShutDown`], [`FsError::DeviceGone`]. Where a part was written before, how much that
    /// is comes instead, and the error with the next call.
    pub fn write(&self, context: &Context, file: &File<M>, offset: u64, bytes: &[u8]) -> Result<usize, FsError> {
        let fits = offset.checked_add(bytes.len() as u64).is_some_and(|end| end <= MAX_FILE);
        // One that is too long is refused as a whole.
        let whole = !fits || self.faults.has(Mutant::WriteAtOneGo);
        let lock = || context.lock(&self.mm.machine, LockOrder::Inode, &file.inode.lock);
        let mut done = 0;
        let mut write = self.begin_write(context)?;
        let mut inode = lock();
        loop {
            let at = offset.saturating_add(done as u64);
            let rest = bytes.len() - done;
            let part = &bytes[done..done + if whole { rest } else { chunk(at, rest) }];
            match self.change_with(context, |volume| volume.write(file.inode.ino, at, part)) {
                Ok(nr) => done += nr,
                Err(_) if done > 0 => return Ok(done),
                Err(error) => return Err(error),
            }
            if done == bytes.len() {
                return Ok(done);
            }
            drop(write);
            write = match self.freeze.try_write() {
                Ok(Some(write)) => write,
                Ok(None) => {
                    // Nobody waits for a thaw with the inode locked: reading goes on meanwhile.
                    drop(inode);
                    let Ok(write) = self.begin_write(context) else { return Ok(done) };
                    inode = lock();
                    write
                }
                Err(_) => return Ok(done),
            };
        }
    }

    /// Writes all of it, durably.
    ///
    /// # Errors
    /// As [`write`](Self::write); what was written before stays.
    pub fn write_all(&self, context: &Context, file: &File<M>, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        let mut done = 0;
        loop {
            done += self.write(context, file, offset.saturating_add(done as u64), &bytes[done..])?;
            if done == bytes.len() {
                return Ok(());
            }
        }
    }

    /// Makes the file `size` bytes long. When it returns nobody reaches what was cut off, by whatever way: it waits for
    /// pins first.
    ///
    /// # Errors
    /// As [`Volume::truncate`]; [`FsError::ShutDown`], [`FsError::DeviceGone`].
    pub fn truncate(&self, context: &Context, file: &File<M>, size: u64) -> Result<(), FsError> {
        let inode = &file.inode;
        let cut = |volume: &mut Volume| volume.truncate(inode.ino, size);
        {
            let _write = self.begin_write(context)?;
            let _inode = context.lock(&self.mm.machine, LockOrder::Inode, &inode.lock);
            // Under the lock, which whoever makes the file longer holds too.
            let old = self.read_with(context, |volume| volume.stat(inode.ino))?.size;
            if size >= old || !inode.dax {
                return self.change_with(context, cut);
            }
        }
        let first = Volume::blocks(size);
        inode.set_limit(first);
        let result = self.break_layouts(context, inode, first, u64::MAX).and_then(|_broken| {
            let _inode = context.lock(&self.mm.machine, LockOrder::Inode, &inode.lock);
            let cut = self.change_with(context, cut);
            // Under the lock: the pages of who makes the file longer again are not those that were cut off.
            inode.set_limit(u64::MAX);
            cut
        });
        if result.is_err() {
            inode.set_limit(u64::MAX);
        }
        result
    }

    /// Makes a hole; see [`Volume::punch`]. When it returns nobody reaches the blocks that were freed.
    ///
    /// # Errors
    /// As [`Volume::punch`]; [`FsError::ShutDown`], [`FsError::DeviceGone`].
    pub fn punch(&self, context: &Context, file: &File<M>, offset: u64, len: u64) -> Result<(), FsError> {
        let inode = &file.inode;
        let end = offset.checked_add(len).filter(|_| len != 0).ok_or(FsError::Invalid)?;
        let (first, last) = (Volume::blocks(offset), end / BLOCK_SIZE);
        let cut = |volume: &mut Volume| volume.punch(inode.ino, offset, len);
        if first >= last || !inode.dax {
            let _write = self.begin_write(context)?;
            let _inode = context.lock(&self.mm.machine, LockOrder::Inode, &inode.lock);
            return self.change_with(context, cut);
        }
        let _broken = self.break_layouts(context, inode, first, last)?;
        let _inode = context.lock(&self.mm.machine, LockOrder::Inode, &inode.lock);
        self.change_with(context, cut)
    }

    // ---- letting go ----

    /// Ends mappings, and what follows from that: the last handle of a file may have gone with them.
    ///
    /// # Errors
    /// See [`AddressSpace::unmap`].
    pub fn unmap(
        &self,
        context: &Context,
        space: &Arc<AddressSpace<M>>,
        va: VirtAddr,
        len_bytes: u64,
    ) -> Result<ZapStats, MapError> {
        let stats = space.unmap(va, len_bytes)?;
        self.reap(context);
        Ok(stats)
    }

    /// Sees to the inodes whose last handle was dropped since the last call: an unlinked one is freed, now, after
    /// waiting for those who have pinned pages of it; any other is forgotten. One that another CPU is letting go of is
    /// left to that one. Whoever drops handles calls this as soon as it holds no lock, and no pin, for which it might wait
    /// itself. What goes wrong is said on the console; the next mount tries again.
    pub fn reap(&self, context: &Context) {
        let let_go = core::mem::take(&mut *self.let_go.lock());
        for ino in let_go {
            match self.let_go_of(context, ino, false) {
                Ok(()) | Err(FsError::ShutDown(_) | FsError::DeviceGone) => {}
                Err(error) => {
                    self.source.host.line(format_args!("fs {}: cannot let go of inode {ino}: {error}", self.name()));
                }
            }
        }
    }

    /// Frees or forgets an inode that nobody has open; leaves one alone that somebody has. Where another CPU is at it
    /// already, that one does it, and is waited for if `wait`.
    fn let_go_of(&self, context: &Context, ino: u64, wait: bool) -> Result<(), FsError> {
        match self.turn_to_let_go(context, ino)? {
            Eviction::Nothing => Ok(()),
            Eviction::Ours(inode) => self.let_go_in_turn(context, &inode),
            Eviction::Theirs(inode) => {
                while wait && inode.handles.is_leaving() {
                    context.may_wait("another CPU that frees the file");
                    self.mm.machine.relax();
                }
                Ok(())
            }
        }
    }

    /// Who lets go of the inode? Two who did would free it twice, and with its second life another file.
    fn turn_to_let_go(&self, context: &Context, ino: u64) -> Result<Eviction<M>, FsError> {
        let mut inodes = context.lock(&self.mm.machine, LockOrder::Table, &self.inodes);
        if let Some(inode) = inodes.get(&ino) {
            return Ok(match inode.handles.ask() {
                gate::Evictor::InUse => Eviction::Nothing,
                gate::Evictor::Ours => Eviction::Ours(Arc::clone(inode)),
                gate::Evictor::Theirs => Eviction::Theirs(Arc::clone(inode)),
            });
        }
        self.freeze.check()?;
        let _live = self.live()?;
        let mut volume = self.volume(context)?;
        match volume.node(ino) {
            Ok(node) if node.raw.nlink.get() == 0 => {
                let inode = self.new_inode(ino, node.is_dax());
                inode.handles.ask();
                inodes.insert(ino, Arc::clone(&inode));
                Ok(Eviction::Ours(inode))
            }
            Ok(_) => {
                volume.forget(ino);
                Ok(Eviction::Nothing)
            }
            // Another was faster.
            Err(FsError::NotFound) => Ok(Eviction::Nothing),
            Err(error) => Err(error),
        }
    }

    /// It is our turn. The inode stays in the table until all of it is done: whoever opens it meanwhile finds the same.
    fn let_go_in_turn(&self, context: &Context, inode: &Arc<Inode<M>>) -> Result<(), FsError> {
        loop {
            let saved = self.save(context, inode);
            let mut inodes = context.lock(&self.mm.machine, LockOrder::Table, &self.inodes);
            if !inode.handles.may_go() {
                // Somebody has opened it, and lets go of it in turn.
                return saved;
            }
            if saved.is_ok() && inode.is_touched() {
                // Somebody had it open for a moment.
                continue;
            }
            if saved.is_err() && !matches!(saved, Err(FsError::ShutDown(_) | FsError::DeviceGone)) {
                // It stays, with what is to be written back: who opens it next hears of it, and the next reap tries again.
                inode.set_unsaved(true);
                inode.handles.end();
                self.let_go.lock().push(inode.ino);
                return saved;
            }
            let links = saved.and_then(|()| {
                let mut volume = self.volume(context)?;
                let links = volume.node(inode.ino)?.raw.nlink.get();
                if links != 0 {
                    volume.forget(inode.ino);
                }
                Ok(links)
            });
            let links = self.noted(links);
            if links != Ok(0) {
                self.leave(&mut inodes, inode);
                return links.map(drop);
            }
            break;
        }
        let freed = self.evict(context, inode);
        if freed.is_err() {
            self.leave(&mut context.lock(&self.mm.machine, LockOrder::Table, &self.inodes), inode);
        }
        freed
    }

    /// Writes back what tasks have stored through mappings that are gone. Where that fails, whoever opens the file hears of it
    /// by a sync of his own.
    fn save(&self, context: &Context, inode: &Inode<M>) -> Result<(), FsError> {
        self.freeze.check()?;
        let _live = self.live()?;
        let ranges = inode.take_touched();
        let saved = self.write_back_ranges(context, inode.ino, &ranges);
        if saved.is_err() {
            self.note_again(inode, &ranges);
        }
        saved.map(drop)
    }

    /// The inode is no longer in memory.
    fn leave(&self, inodes: &mut BTreeMap<u64, Arc<Inode<M>>>, inode: &Inode<M>) {
        inodes.remove(&inode.ino);
        inode.handles.end();
    }

    /// The end of an inode without link and without handle: break layouts, cut to nothing, free. Its number may have a
    /// second life at once, so that it leaves the table in the same step.
    fn evict(&self, context: &Context, inode: &Inode<M>) -> Result<(), FsError> {
        context.may_wait("pins of a file that is freed");
        // What is not mapped by DAX nobody can have pinned.
        let _broken = inode.dax.then(|| self.break_layouts(context, inode, 0, u64::MAX)).transpose()?;
        let _write = (!inode.dax).then(|| self.begin_write(context)).transpose()?;
        let mut inodes = context.lock(&self.mm.machine, LockOrder::Table, &self.inodes);
        self.change_with(context, |volume| volume.free(inode.ino))?;
        self.leave(&mut inodes, inode);
        Ok(())
    }
}

/// Who lets go of an inode.
enum Eviction<M: Machine> {
    /// Nobody need: somebody has it open, or it is not in memory.
    Nothing,
    /// Who asks.
    Ours(Arc<Inode<M>>),
    /// Another CPU, which has begun.
    Theirs(Arc<Inode<M>>),
}
