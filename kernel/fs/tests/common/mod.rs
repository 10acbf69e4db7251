//! A plain model of the file system, random operations, and the comparison of the two.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::sync::Arc;

use fs::check::check;
use fs::error::FsError;
use fs::format::{BLOCK_SIZE, Kind};
use fs::mount::{MakeOptions, MountOptions, make, mount};
use fs::pmem::Pmem;
use fs::volume::Volume;
use testkit::sim::{Random, SimPmem};

/// A memory with a file system on it. The checker runs over it when the test is done, unless it has failed.
pub struct Medium(Arc<SimPmem>);

impl std::ops::Deref for Medium {
    type Target = Arc<SimPmem>;
    fn deref(&self) -> &Arc<SimPmem> {
        &self.0
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_clean(&self.0);
        }
    }
}

/// A memory of `blocks` blocks with a new file system on it.
pub fn new_fs(blocks: u64) -> Medium {
    let sim = Arc::new(SimPmem::new((blocks * BLOCK_SIZE) as usize));
    let options =
        MakeOptions { uuid: *b"0123456789abcdef", label: "test".parse().expect("short"), ..MakeOptions::default() };
    make(&pmem(&sim), &options).expect("it is large enough");
    Medium(sim)
}

/// As the file system sees it.
pub fn pmem(sim: &Arc<SimPmem>) -> Arc<dyn Pmem> {
    sim.clone()
}

/// Mounts without ado.
pub fn mounted(sim: &Arc<SimPmem>) -> Volume {
    mount(&pmem(sim), &MountOptions::default()).expect("a new file system can be mounted")
}

/// The checker has nothing to say.
pub fn assert_clean(sim: &Arc<SimPmem>) {
    let report = check(&pmem(sim), None);
    assert!(report.is_clean(), "{report:#?}");
}

/// What a path leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Thing {
    /// A directory.
    Dir,
    /// A file, by its number in [`Model::files`].
    File(u64),
}

/// The model: paths and contents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    /// By path, `/`-separated, without a leading one; the root is not in it.
    pub paths: BTreeMap<Vec<u8>, Thing>,
    /// Contents by number.
    pub files: BTreeMap<u64, Vec<u8>>,
    next: u64,
}

/// An operation.
#[derive(Clone, Debug)]
pub enum Op {
    Create(Vec<u8>),
    Mkdir(Vec<u8>),
    Write(Vec<u8>, u64, Vec<u8>),
    Truncate(Vec<u8>, u64),
    Punch(Vec<u8>, u64, u64),
    Unlink(Vec<u8>),
    Rmdir(Vec<u8>),
    Link(Vec<u8>, Vec<u8>),
    Rename(Vec<u8>, Vec<u8>),
}

fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.len() > dir.len() && path.starts_with(dir) && path[dir.len()] == b'/'
}

impl Model {
    fn file(&self, path: &[u8]) -> Result<u64, FsError> {
        match self.paths.get(path) {
            Some(Thing::File(nr)) => Ok(*nr),
            Some(Thing::Dir) => Err(FsError::IsDirectory),
            None => Err(FsError::NotFound),
        }
    }
    fn contents(&mut self, path: &[u8]) -> Result<&mut Vec<u8>, FsError> {
        self.has_parent(path)?;
        let nr = self.file(path)?;
        Ok(self.files.get_mut(&nr).expect("a name leads to contents"))
    }
    fn check_new(&self, path: &[u8]) -> Result<(), FsError> {
        if self.paths.contains_key(path) { Err(FsError::Exists) } else { Ok(()) }
    }
    fn has_parent(&self, path: &[u8]) -> Result<(), FsError> {
        for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            match self.paths.get(&path[..at]) {
                Some(Thing::Dir) => {}
                Some(Thing::File(_)) => return Err(FsError::NotDirectory),
                None => return Err(FsError::NotFound),
            }
        }
        Ok(())
    }
    fn is_empty_dir(&self, path: &[u8]) -> bool {
        !self.paths.keys().any(|other| is_below(other, path))
    }
    fn forget_files(&mut self) {
        let paths = &self.paths;
        self.files.retain(|&nr, _| paths.values().any(|thing| *thing == Thing::File(nr)));
    }

    /// Does it. An error changes nothing.
    pub fn apply(&mut self, op: &Op) -> Result<(), FsError> {
        match op {
            Op::Create(path) => {
                self.has_parent(path)?;
                self.check_new(path)?;
                self.next += 1;
                self.paths.insert(path.clone(), Thing::File(self.next));
                self.files.insert(self.next, Vec::new());
            }
            Op::Mkdir(path) => {
                self.has_parent(path)?;
                self.check_new(path)?;
                self.paths.insert(path.clone(), Thing::Dir);
            }
            Op::Write(path, at, bytes) => {
                let (file, end) = (self.contents(path)?, *at as usize + bytes.len());
                if !bytes.is_empty() && file.len() < end {
                    file.resize(end, 0);
                }
                // Nothing written beyond the end is nothing at all.
                if !bytes.is_empty() {
                    file[*at as usize..end].copy_from_slice(bytes);
                }
            }
            Op::Truncate(path, size) => self.contents(path)?.resize(*size as usize, 0),
            Op::Punch(path, at, len) => {
                let file = self.contents(path)?;
                let (from, to) = ((*at as usize).min(file.len()), ((at + len) as usize).min(file.len()));
                file[from..to].fill(0);
            }
            Op::Unlink(path) => {
                self.has_parent(path)?;
                self.file(path)?;
                self.paths.remove(path);
                self.forget_files();
            }
            Op::Rmdir(path) => {
                self.has_parent(path)?;
                match self.paths.get(path) {
                    None => return Err(FsError::NotFound),
                    Some(Thing::File(_)) => return Err(FsError::NotDirectory),
                    Some(Thing::Dir) if !self.is_empty_dir(path) => return Err(FsError::NotEmpty),
                    Some(Thing::Dir) => self.paths.remove(path),
                };
            }
            Op::Link(path, new) => {
                self.has_parent(path)?;
                self.has_parent(new)?;
                let nr = self.file(path)?;
                self.check_new(new)?;
                self.paths.insert(new.clone(), Thing::File(nr));
            }
            Op::Rename(from, to) => self.rename(from, to)?,
        }
        Ok(())
    }

    fn rename(&mut self, from: &[u8], to: &[u8]) -> Result<(), FsError> {
        self.has_parent(from)?;
        self.has_parent(to)?;
        let moved = self.paths.get(from).cloned().ok_or(FsError::NotFound)?;
        if moved == Thing::Dir && is_below(to, from) {
            return Err(FsError::Invalid);
        }
        match (&moved, self.paths.get(to)) {
            _ if from == to => return Ok(()),
            (_, None) => {}
            (Thing::File(a), Some(Thing::File(b))) if a == b => return Ok(()),
            (Thing::Dir, Some(Thing::Dir)) if !self.is_empty_dir(to) => return Err(FsError::NotEmpty),
            (Thing::Dir, Some(Thing::File(_))) => return Err(FsError::NotDirectory),
            (Thing::File(_), Some(Thing::Dir)) => return Err(FsError::IsDirectory),
            _ => {}
        }
        self.paths.remove(from);
        self.paths.insert(to.to_vec(), moved);
        let below: Vec<_> = self.paths.keys().filter(|path| is_below(path, from)).cloned().collect();
        for path in below {
            let thing = self.paths.remove(&path).unwrap();
            self.paths.insert([to, &path[from.len()..]].concat(), thing);
        }
        self.forget_files();
        Ok(())
    }
}

/// Does it to the file system.
pub fn apply(volume: &mut Volume, op: &Op) -> Result<(), FsError> {
    let gone = match op {
        Op::Create(path) => {
            let (dir, name) = volume.resolve_parent(path)?;
            volume.create(dir, name, true).map(|_| None)
        }
        Op::Mkdir(path) => {
            let (dir, name) = volume.resolve_directory(path)?;
            volume.mkdir(dir, name).map(|_| None)
        }
        Op::Write(path, at, bytes) => {
            let ino = volume.resolve(path)?;
            // All of it, or space has run out.
            let written = volume.write(ino, *at, bytes)?;
            if written == bytes.len() { Ok(None) } else { Err(FsError::NoSpace) }
        }
        Op::Truncate(path, size) => {
            let ino = volume.resolve(path)?;
            volume.truncate(ino, *size).map(|()| None)
        }
        Op::Punch(path, at, len) => {
            let ino = volume.resolve(path)?;
            volume.punch(ino, *at, *len).map(|()| None)
        }
        Op::Unlink(path) => {
            let (dir, name) = volume.resolve_parent(path)?;
            volume.unlink(dir, name)
        }
        Op::Rmdir(path) => {
            let (dir, name) = volume.resolve_parent(path)?;
            volume.rmdir(dir, name).map(Some)
        }
        Op::Link(path, new) => {
            let ino = volume.resolve(path)?;
            let (dir, name) = volume.resolve_parent(new)?;
            volume.link(ino, dir, name).map(|()| None)
        }
        Op::Rename(from, to) => {
            let (dir, name) = volume.resolve_parent(from)?;
            let (new_dir, new_name) = volume.resolve_parent(to)?;
            volume.rename((dir, name), (new_dir, new_name))
        }
    }?;
    gone.map_or(Ok(()), |ino| volume.free(ino))
}

/// A random operation over a few names, so that they meet.
pub fn random_op(random: &mut Random, max_size: u64) -> Op {
    let name = |random: &mut Random| -> Vec<u8> {
        let long = "long-".repeat(20);
        let names = ["a", "b", "c", "dir", "other", &long];
        let mut path = Vec::new();
        while random.below(3) == 0 && path.len() < 300 {
            path.extend_from_slice(["dir/", "other/"][random.below(2) as usize].as_bytes());
        }
        path.extend_from_slice(names[random.below(6) as usize].as_bytes());
        path
    };
    let path = name(random);
    let at = random.below(max_size);
    let most = [100, 3 * BLOCK_SIZE, max_size / 2 + 1][random.below(3) as usize];
    let len = random.below(most);
    match random.below(16) {
        0..=1 => Op::Create(path),
        2 => Op::Mkdir(path),
        3..=7 => {
            let stamp = random.next_u64() as u8;
            Op::Write(path, at, (0..len).map(|i| stamp.wrapping_add(i as u8) | 1).collect())
        }
        8..=9 => Op::Truncate(path, at),
        10..=11 => Op::Punch(path, at, len + 1),
        12 => Op::Unlink(path),
        13 => Op::Rmdir(path),
        14 => Op::Link(path, name(random)),
        _ => Op::Rename(path, name(random)),
    }
}

/// Everything that the file system holds, as a model: numbers are those of the inodes.
pub fn read_all(volume: &mut Volume) -> Result<Model, FsError> {
    let mut model = Model::default();
    let mut to_do = vec![Vec::new()];
    while let Some(dir) = to_do.pop() {
        let ino = volume.resolve(&dir)?;
        for entry in volume.readdir(ino)? {
            let path = if dir.is_empty() { entry.name } else { [&dir[..], &entry.name].join(&b'/') };
            if entry.kind == Kind::Directory {
                model.paths.insert(path.clone(), Thing::Dir);
                to_do.push(path);
                continue;
            }
            let size = volume.stat(entry.ino)?.size;
            let mut bytes = vec![0; size as usize];
            assert_eq!(volume.read(entry.ino, 0, &mut bytes)?, bytes.len());
            model.paths.insert(path, Thing::File(entry.ino));
            model.files.insert(entry.ino, bytes);
        }
    }
    Ok(model)
}

/// Where the two differ, but for the numbers of files; `None`: nowhere. Bytes for which `free` answers true may be
/// anything.
pub fn difference(got: &Model, want: &Model, free: &dyn Fn(&[u8], usize, u8) -> bool) -> Option<String> {
    let (a, b): (Vec<_>, Vec<_>) = (got.paths.keys().collect(), want.paths.keys().collect());
    if a != b {
        return Some(format!("paths {:?}, not {:?}", names(&a), names(&b)));
    }
    let mut numbers = BTreeMap::new();
    for (path, thing) in &got.paths {
        match (thing, &want.paths[path]) {
            (Thing::Dir, Thing::Dir) => {}
            (Thing::File(a), Thing::File(b)) => {
                if *numbers.entry(*b).or_insert(*a) != *a {
                    return Some(format!("{:?} is not the same file any more", String::from_utf8_lossy(path)));
                }
                let (a, b) = (&got.files[a], &want.files[b]);
                let place = a.iter().zip(b).enumerate().position(|(i, (a, b))| a != b && !free(path, i, *a));
                if a.len() != b.len() || place.is_some() {
                    let path = String::from_utf8_lossy(path);
                    return Some(format!("{path:?}: {} bytes, not {}; differs at {place:?}", a.len(), b.len()));
                }
            }
            _ => return Some(format!("{:?} is of another kind", String::from_utf8_lossy(path))),
        }
    }
    None
}

fn names(paths: &[&Vec<u8>]) -> Vec<String> {
    paths.iter().map(|path| String::from_utf8_lossy(path).into_owned()).collect()
}
