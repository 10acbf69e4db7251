//! Names: create, link, unlink, rename, directories, stat.

use alloc::vec::Vec;

use crate::dir::{Entry, check_len, check_name};
use crate::error::FsError;
use crate::format::{INODE_DAX, Kind, MAX_LINKS, ROOT_INO};
use crate::tx::Tx;
use crate::volume::Volume;

/// What `stat` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Number.
    pub ino: u64,
    /// File or directory.
    pub kind: Kind,
    /// Is it mapped by DAX?
    pub dax: bool,
    /// Bytes.
    pub size: u64,
    /// Blocks of 4096 bytes that it holds.
    pub blocks: u64,
    /// Links.
    pub nlink: u32,
    /// How many lives the number has had: it and this one tell a file from one that had its number before.
    pub generation: u32,
    /// Last change of the contents, in nanoseconds of the kernel's clock.
    pub mtime_ns: u64,
    /// Last change of the inode.
    pub ctime_ns: u64,
}

/// What `readdir` tells of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Name, without `/` and zero bytes; any other bytes.
    pub name: Vec<u8>,
    /// Inode.
    pub ino: u64,
    /// File or directory.
    pub kind: Kind,
}

/// The names of a path, from the root.
fn names_of(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/').filter(|name| !name.is_empty())
}

impl Volume {
    /// The inode that `name` leads to in directory `dir`.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotDirectory`], [`FsError::NameTooLong`], damage, or the medium.
    pub fn lookup(&mut self, dir: u64, name: &[u8]) -> Result<u64, FsError> {
        self.entry(dir, name).map(|entry| entry.ino)
    }

    fn entry(&mut self, dir: u64, name: &[u8]) -> Result<Entry, FsError> {
        let names = self.dir(dir)?.names()?;
        check_len(name)?;
        names.by_name.get(name).copied().ok_or(FsError::NotFound)
    }

    /// The inode at the end of a path from the root. Empty parts are skipped, `.` is the directory itself, `..` the one
    /// above it (the root's is the root), and what a `/` follows has to be a directory.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup).
    pub fn resolve(&mut self, path: &[u8]) -> Result<u64, FsError> {
        let ino = self.walk(names_of(path))?;
        self.check_slash(path, ino)?;
        Ok(ino)
    }

    /// The directory of a path's last name, and that name. Where a `/` follows, the name has to lead to a directory.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup); [`FsError::BadName`] for the root, and where the last name is `.` or `..`.
    pub fn resolve_parent<'p>(&mut self, path: &'p [u8]) -> Result<(u64, &'p [u8]), FsError> {
        let (dir, name) = self.resolve_directory(path)?;
        if path.ends_with(b"/") {
            let ino = self.lookup(dir, name)?;
            self.check_slash(path, ino)?;
        }
        Ok((dir, name))
    }

    /// The same for a name that a directory has or gets: whether a `/` follows does not matter.
    ///
    /// # Errors
    /// As [`resolve_parent`](Self::resolve_parent).
    pub fn resolve_directory<'p>(&mut self, path: &'p [u8]) -> Result<(u64, &'p [u8]), FsError> {
        let mut names = names_of(path);
        let last = names.next_back().filter(|&name| name != b"." && name != b"..").ok_or(FsError::BadName)?;
        Ok((self.walk(names)?, last))
    }

    fn walk<'p>(&mut self, names: impl Iterator<Item = &'p [u8]>) -> Result<u64, FsError> {
        let mut ino = ROOT_INO;
        for name in names {
            ino = self.step(ino, name)?;
        }
        Ok(ino)
    }

    /// The inode that one name of a path leads to from directory `dir`; `.` and `..` among them.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup).
    pub fn step(&mut self, dir: u64, name: &[u8]) -> Result<u64, FsError> {
        match name {
            b"." => Ok(self.dir(dir)?.ino),
            b".." => Ok(self.dir(dir)?.raw.parent.get()),
            name => self.lookup(dir, name),
        }
    }

    /// What a path leads to, `ino`, is a directory if the path ends with a `/`.
    fn check_slash(&mut self, path: &[u8], ino: u64) -> Result<(), FsError> {
        if path.ends_with(b"/") { self.dir(ino).map(drop) } else { Ok(()) }
    }

    /// What an inode is.
    ///
    /// # Errors
    /// [`FsError::NotFound`], damage, or the medium.
    pub fn stat(&mut self, ino: u64) -> Result<Stat, FsError> {
        let node = self.node(ino)?;
        let raw = &node.raw;
        Ok(Stat {
            ino,
            kind: node.kind,
            dax: raw.flags & INODE_DAX != 0,
            size: raw.size.get(),
            blocks: raw.blocks.get(),
            nlink: raw.nlink.get(),
            generation: raw.generation.get(),
            mtime_ns: raw.mtime_ns.get(),
            ctime_ns: raw.ctime_ns.get(),
        })
    }

    /// The entries of a directory, by name.
    ///
    /// # Errors
    /// [`FsError::NotDirectory`], damage, or the medium.
    pub fn readdir(&mut self, dir: u64) -> Result<Vec<DirEntry>, FsError> {
        let names = self.dir(dir)?.names()?;
        let entry =
            |(name, entry): (&Vec<u8>, &Entry)| DirEntry { name: name.clone(), ino: entry.ino, kind: entry.kind };
        Ok(names.by_name.iter().map(entry).collect())
    }

    /// Is there room for a new name in `dir`?
    fn check_new(&mut self, dir: u64, name: &[u8]) -> Result<(), FsError> {
        check_name(name)?;
        match self.entry(dir, name) {
            Err(FsError::NotFound) if self.node(dir)?.raw.nlink.get() == 0 => Err(FsError::NotFound),
            Err(FsError::NotFound) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(FsError::Exists),
        }
    }

    fn set_links(&mut self, tx: &mut Tx, ino: u64, delta: i32) -> Result<u32, FsError> {
        self.change(tx, ino, |node, _| {
            let links = node.raw.nlink.get().checked_add_signed(delta);
            let links = links.ok_or(FsError::damaged("link count of inode", node.ino))?;
            if delta > 0 && links > MAX_LINKS {
                return Err(FsError::TooManyLinks);
            }
            node.raw.nlink = links.into();
            Ok(links)
        })
    }

    fn add_entry(&mut self, tx: &mut Tx, dir: u64, name: &[u8], ino: u64, kind: Kind) -> Result<(), FsError> {
        self.dir(dir)?;
        let now_ns = self.now_ns;
        self.change(tx, dir, |node, change| {
            node.raw.mtime_ns = now_ns.into();
            node.add_name(change, name, ino, kind)
        })
    }

    fn remove_entry(&mut self, tx: &mut Tx, dir: u64, name: &[u8]) -> Result<Entry, FsError> {
        self.dir(dir)?;
        let now_ns = self.now_ns;
        self.change(tx, dir, |node, change| {
            node.raw.mtime_ns = now_ns.into();
            node.remove_name(change, name)
        })
    }

    /// Makes an empty file. `dax`: it can be mapped.
    ///
    /// # Errors
    /// [`FsError::Exists`], [`FsError::BadName`], [`FsError::NameTooLong`], [`FsError::NoSpace`],
    /// [`FsError::NotDirectory`], damage, the medium.
    pub fn create(&mut self, dir: u64, name: &[u8], dax: bool) -> Result<u64, FsError> {
        self.check_new(dir, name)?;
        self.operation(|volume, tx| {
            let ino = volume.make_inode(tx, Kind::File, 0, dax)?;
            volume.set_links(tx, ino, 1)?;
            volume.add_entry(tx, dir, name, ino, Kind::File)?;
            Ok(ino)
        })
    }

    /// Makes an empty directory.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn mkdir(&mut self, dir: u64, name: &[u8]) -> Result<u64, FsError> {
        self.check_new(dir, name)?;
        self.operation(|volume, tx| {
            let ino = volume.make_inode(tx, Kind::Directory, dir, false)?;
            volume.set_links(tx, ino, 2)?;
            volume.set_links(tx, dir, 1)?;
            volume.add_entry(tx, dir, name, ino, Kind::Directory)?;
            Ok(ino)
        })
    }

    /// Adds a name for a file.
    ///
    /// # Errors
    /// As [`create`](Self::create); [`FsError::IsDirectory`], [`FsError::TooManyLinks`].
    pub fn link(&mut self, ino: u64, dir: u64, name: &[u8]) -> Result<(), FsError> {
        if self.file(ino)?.raw.nlink.get() == 0 {
            return Err(FsError::NotFound);
        }
        self.check_new(dir, name)?;
        self.operation(|volume, tx| {
            volume.set_links(tx, ino, 1)?;
            volume.add_entry(tx, dir, name, ino, Kind::File)
        })
    }

    /// An inode has lost a link: puts it on the pending list if it was the last.
    fn lose_link(&mut self, tx: &mut Tx, ino: u64) -> Result<Option<u64>, FsError> {
        if self.set_links(tx, ino, -1)? != 0 {
            return Ok(None);
        }
        if !self.is_pending(ino) {
            self.link_pending(tx, ino)?;
        }
        Ok(Some(ino))
    }

    /// `self.pending` follows the medium.
    fn now_pending(&mut self, gone: Option<u64>) {
        if let Some(ino) = gone
            && !self.is_pending(ino)
        {
            self.pending.push(ino);
        }
    }

    /// An entry says what its inode is: where that is not so, one of the two is damaged.
    fn check_kind(&mut self, entry: Entry) -> Result<(), FsError> {
        let is_so = self.node(entry.ino)?.kind == entry.kind;
        if is_so { Ok(()) } else { Err(FsError::damaged("kind of the entry of inode", entry.ino)) }
    }

    /// Takes a file's name away. Answers the inode where that was its last link: it is on the pending list, and whoever
    /// has seen to it that nobody uses it calls [`free`](Self::free).
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::IsDirectory`], damage, or the medium.
    pub fn unlink(&mut self, dir: u64, name: &[u8]) -> Result<Option<u64>, FsError> {
        let entry = self.entry(dir, name)?;
        if entry.kind == Kind::Directory {
            return Err(FsError::IsDirectory);
        }
        self.check_kind(entry)?;
        let gone = self.operation(|volume, tx| {
            volume.remove_entry(tx, dir, name)?;
            volume.lose_link(tx, entry.ino)
        })?;
        self.now_pending(gone);
        Ok(gone)
    }

    /// Removes an empty directory. As for [`unlink`](Self::unlink), it is pending afterwards.
    ///
    /// # Errors
    /// [`FsError::NotEmpty`], [`FsError::NotFound`], [`FsError::NotDirectory`], damage, or the medium.
    pub fn rmdir(&mut self, dir: u64, name: &[u8]) -> Result<u64, FsError> {
        let ino = self.lookup(dir, name)?;
        self.check_empty(ino)?;
        let gone = self.operation(|volume, tx| {
            volume.remove_entry(tx, dir, name)?;
            volume.drop_directory(tx, dir, ino)
        })?;
        self.now_pending(Some(gone));
        Ok(gone)
    }

    fn check_empty(&mut self, ino: u64) -> Result<(), FsError> {
        if self.dir(ino)?.names()?.by_name.is_empty() { Ok(()) } else { Err(FsError::NotEmpty) }
    }

    fn drop_directory(&mut self, tx: &mut Tx, parent: u64, ino: u64) -> Result<u64, FsError> {
        self.set_links(tx, parent, -1)?;
        self.set_links(tx, ino, -1)?;
        self.lose_link(tx, ino)?.ok_or(FsError::damaged("link count of directory", ino))
    }

    /// Is `ino` the directory `dir` or one above it?
    fn is_above(&mut self, ino: u64, dir: u64) -> Result<bool, FsError> {
        let (mut at, mut steps) = (dir, 0_u64);
        while at != ino {
            if at == ROOT_INO {
                return Ok(false);
            }
            steps += 1;
            at = self.node(at)?.raw.parent.get();
            if steps > self.store.layout.nr_blocks {
                return Err(FsError::damaged("parents of directory", dir));
            }
        }
        Ok(true)
    }

    /// Moves a name, in one step: at every moment the file has the old name or the new one. What the new name led to
    /// before loses it; answers its inode where that was its last link, as [`unlink`](Self::unlink).
    ///
    /// # Errors
    /// [`FsError::NotFound`]; [`FsError::Invalid`] for a directory moved into itself; [`FsError::IsDirectory`],
    /// [`FsError::NotDirectory`], [`FsError::NotEmpty`] where the two do not go together; [`FsError::BadName`],
    /// [`FsError::NameTooLong`], [`FsError::NoSpace`], damage, the medium.
    pub fn rename(&mut self, from: (u64, &[u8]), to: (u64, &[u8])) -> Result<Option<u64>, FsError> {
        check_name(to.1)?;
        let moved = self.entry(from.0, from.1)?;
        self.check_kind(moved)?;
        if moved.kind == Kind::Directory && self.is_above(moved.ino, to.0)? {
            return Err(FsError::Invalid);
        }
        let replaced = match self.check_new(to.0, to.1) {
            Ok(()) => None,
            Err(FsError::Exists) => Some(self.entry(to.0, to.1)?),
            Err(error) => return Err(error),
        };
        if let Some(old) = replaced {
            if old.ino == moved.ino {
                return Ok(None);
            }
            self.check_kind(old)?;
            match (moved.kind, old.kind) {
                (Kind::Directory, Kind::Directory) => self.check_empty(old.ino)?,
                (Kind::Directory, _) => return Err(FsError::NotDirectory),
                (_, Kind::Directory) => return Err(FsError::IsDirectory),
                _ => {}
            }
        }
        let gone = self.operation(|volume, tx| volume.rename_in(tx, from, to, moved, replaced))?;
        self.now_pending(gone);
        Ok(gone)
    }

    fn rename_in(
        &mut self,
        tx: &mut Tx,
        from: (u64, &[u8]),
        to: (u64, &[u8]),
        moved: Entry,
        replaced: Option<Entry>,
    ) -> Result<Option<u64>, FsError> {
        let mut gone = None;
        match replaced {
            Some(old) => {
                self.dir(to.0)?;
                self.change(tx, to.0, |node, change| {
                    node.redirect_name(change, to.1, moved.ino, moved.kind).map(drop)
                })?;
                gone = match old.kind {
                    Kind::Directory => Some(self.drop_directory(tx, to.0, old.ino)?),
                    _ => self.lose_link(tx, old.ino)?,
                };
            }
            None => self.add_entry(tx, to.0, to.1, moved.ino, moved.kind)?,
        }
        self.remove_entry(tx, from.0, from.1)?;
        if moved.kind == Kind::Directory && from.0 != to.0 {
            self.set_links(tx, from.0, -1)?;
            self.set_links(tx, to.0, 1)?;
            self.change(tx, moved.ino, |node, _| {
                node.raw.parent = to.0.into();
                Ok(())
            })?;
        }
        // The inode notes the time of the change.
        self.change(tx, moved.ino, |_, _| Ok(()))?;
        Ok(gone)
    }
}
