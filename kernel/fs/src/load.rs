//! A write load whose every state is known: what tasks do to a file system that is then killed, and the proof of what
//! the file system has to hold afterwards.
//!
//! Each task works in a directory of its own, and begins with what it finds there. Its steps follow from that, a seed, the
//! task's number and the step's, so that whoever knows where it began and how many steps were acknowledged knows every
//! byte. After a kill the directory holds the state after the last acknowledged step or a later one (an acknowledgement
//! may be lost on its way); a step that was under way is there wholly or not at all, but for bytes that it overwrites in
//! place, each of which is old or new.
//!
//! The kernel's command `fsload` runs the steps; the end-to-end test kills the machine and calls [`Load::find`] on the
//! image. Only for tests, and here because both sides need the same code.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use mm::machine::Machine;
use mm::sync::Arc;

use crate::error::FsError;
use crate::format::Kind;
use crate::lock_order::Context;
use crate::mounted::Mounted;
use crate::volume::Volume;

/// Files of one task, at most.
const MAX_FILES: u64 = 6;
/// Bytes of one file, at most.
const MAX_SIZE: u64 = 20_000;

/// The lowest bit of each byte.
const ODD: u64 = 0x0101_0101_0101_0101;

/// The directory of a task's directory.
pub const TOP: &str = "load";

/// One task's share of the load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Of everything. Another one for each time that it goes on: it is a part of the files' names.
    pub seed: u64,
    /// The task, from 0.
    pub task: u64,
}

/// What a step does, to files in the task's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes an empty file.
    Create(String),
    /// Writes bytes at an offset, and makes them durable.
    Write(String, u64, Vec<u8>),
    /// Sets the size.
    Truncate(String, u64),
    /// Makes a hole: offset, bytes.
    Punch(String, u64, u64),
    /// Moves a name; what had the new one is gone.
    Rename(String, String),
    /// Takes a file away.
    Unlink(String),
}

/// What a task's directory holds: contents by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files(pub BTreeMap<String, Vec<u8>>);

/// The state of a task's directory after some steps.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Steps so far.
    pub nr: u64,
    /// What is there.
    pub files: Files,
}

/// A number that follows from three.
fn mix(a: u64, b: u64, c: u64) -> u64 {
    let mut x = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ c.wrapping_add(1);
    for _ in 0..3 {
        x ^= x >> 30;
        x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 27;
    }
    x
}

impl Load {
    /// The task's directory.
    pub fn dir(&self) -> String {
        format!("{TOP}/task{}", self.task)
    }

    /// The step `nr` (from 0) on what the directory holds after the steps before it. It always succeeds where there is
    /// space.
    pub fn step(&self, files: &Files, nr: u64) -> Step {
        let random = |what: u64, below: u64| mix(self.seed, self.task << 40 | nr, what) % below;
        let nr_files = files.0.len() as u64;
        let fresh = format!("{:x}-{nr}", self.seed);
        if nr_files == 0 || nr_files < MAX_FILES && random(0, 6) == 0 {
            return Step::Create(fresh);
        }
        let names: Vec<_> = files.0.keys().collect();
        let name = names[random(1, nr_files) as usize].clone();
        let size = files.0.get(&name).map_or(0, |bytes| bytes.len() as u64);
        match random(2, 12) {
            0..=5 => {
                let at = random(3, MAX_SIZE);
                let len = 1 + random(4, [100, 4096, MAX_SIZE][random(5, 3) as usize]).min(MAX_SIZE - at);
                // No zero among them, so that they differ from a hole.
                let words = (0..len.div_ceil(8)).flat_map(|word| (mix(nr, word, self.seed) | ODD).to_le_bytes());
                Step::Write(name, at, words.take(len as usize).collect())
            }
            6 | 7 => Step::Truncate(name, random(3, MAX_SIZE)),
            8 if size != 0 => Step::Punch(name, random(3, size), 1 + random(4, size)),
            9 => Step::Rename(name, names[random(6, nr_files) as usize].clone()),
            10 if nr_files > 2 => Step::Unlink(name),
            _ => Step::Rename(name, fresh),
        }
    }

    /// Finds out how many steps were done, given what a directory holds, a state on the way, and how many steps were
    /// acknowledged: it is that many, or up to `most` more. The step after those may be there in part, where it
    /// overwrites. `known` follows.
    ///
    /// # Errors
    /// It is none of these states: how it differs from the one that was acknowledged.
    pub fn find(&self, known: &mut Known, got: &Files, acked: u64, most: u64) -> Result<u64, String> {
        known.go_on(self, acked);
        let difference = known.files.difference(got);
        let mut next = known.clone();
        while next.nr <= acked + most {
            let step = self.step(&next.files, next.nr);
            *known = next.clone();
            next.go_on(self, known.nr + 1);
            if got.is_between(&known.files, &next.files, &step) {
                return Ok(known.nr);
            }
        }
        Err(format!("task {}: not the state after {acked} steps or {most} more: {difference}", self.task))
    }
}

impl Known {
    /// Does steps until there are `nr`.
    pub fn go_on(&mut self, load: &Load, nr: u64) {
        while self.nr < nr {
            let step = load.step(&self.files, self.nr);
            self.files.apply(&step);
            self.nr += 1;
        }
    }
}

impl Files {
    /// Does a step.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Create(name) => drop(self.0.insert(name.clone(), Vec::new())),
            Step::Unlink(name) => drop(self.0.remove(name)),
            Step::Rename(from, to) => {
                if let Some(bytes) = self.0.remove(from) {
                    self.0.insert(to.clone(), bytes);
                }
            }
            Step::Write(name, at, new) => {
                let (at, bytes) = (*at as usize, self.0.entry(name.clone()).or_default());
                bytes.resize(bytes.len().max(at + new.len()), 0);
                bytes[at..at + new.len()].copy_from_slice(new);
            }
            Step::Truncate(name, size) => self.0.entry(name.clone()).or_default().resize(*size as usize, 0),
            Step::Punch(name, at, len) => {
                let bytes = self.0.entry(name.clone()).or_default();
                let end = (at + len).min(bytes.len() as u64);
                bytes[*at as usize..end as usize].fill(0);
            }
        }
    }

    /// Is it `old`, or `old` with a part of the bytes that `step` overwrites on the way to `new`? The state `new`
    /// itself is the next step's `old`.
    fn is_between(&self, old: &Self, new: &Self, step: &Step) -> bool {
        let (name, from, to) = match step {
            Step::Write(name, at, bytes) => (name, *at as usize, *at as usize + bytes.len()),
            Step::Punch(name, at, len) => (name, *at as usize, (at + len) as usize),
            _ => return self == old,
        };
        let same_rest = |(other, bytes): (&String, &Vec<u8>)| other == name || self.0.get(other) == Some(bytes);
        let [Some(got), Some(old_bytes), Some(new_bytes)] = [self, old, new].map(|files| files.0.get(name)) else {
            return false;
        };
        let fits = |(at, &byte): (usize, &u8)| {
            byte == old_bytes[at] || (from..to).contains(&at) && Some(&byte) == new_bytes.get(at)
        };
        let same = self.0.len() == old.0.len() && old.0.iter().all(same_rest);
        same && got.len() == old_bytes.len() && got.iter().enumerate().all(fits)
    }

    /// How `got` differs, in words.
    fn difference(&self, got: &Self) -> String {
        for (name, bytes) in &self.0 {
            let Some(other) = got.0.get(name) else { return format!("{name} is missing") };
            if let Some(at) = bytes.iter().zip(other).position(|(a, b)| a != b) {
                return format!("{name} has {:#x} and not {:#x} at byte {at}", other[at], bytes[at]);
            }
            if bytes.len() != other.len() {
                return format!("{name} has {} bytes, and not {}", other.len(), bytes.len());
            }
        }
        match got.0.keys().find(|name| !self.0.contains_key(*name)) {
            Some(name) => format!("{name} should not be there"),
            None => "it is that state, and a later one was expected".to_string(),
        }
    }

    /// What a task's directory holds on a volume; nothing where there is no such directory.
    ///
    /// # Errors
    /// Damage, or the medium; [`FsError::TooLarge`] of a file that is none of the load's.
    pub fn read(volume: &mut Volume, dir: &str) -> Result<Self, FsError> {
        let mut files = Self::default();
        let ino = match volume.resolve(dir.as_bytes()) {
            Err(FsError::NotFound) => return Ok(files),
            ino => ino?,
        };
        for entry in volume.readdir(ino)?.into_iter().filter(|entry| entry.kind == Kind::File) {
            let mut bytes = alloc::vec![0; checked(volume.stat(entry.ino)?.size)?];
            volume.read(entry.ino, 0, &mut bytes)?;
            files.0.insert(String::from_utf8_lossy(&entry.name).into_owned(), bytes);
        }
        Ok(files)
    }
}

/// The size of a file in a directory of a load, where it can be one of its own.
fn checked(size: u64) -> Result<usize, FsError> {
    // A write ends a byte behind it at most.
    if size <= MAX_SIZE + 1 { Ok(size as usize) } else { Err(FsError::TooLarge) }
}

impl<M: Machine> Mounted<M> {
    /// Makes the directories of `load` where there are none.
    ///
    /// # Errors
    /// Those of [`mkdir`](Self::mkdir).
    pub fn prepare_load(&self, context: &Context, load: &Load) -> Result<(), FsError> {
        for dir in [TOP, &load.dir()] {
            match self.mkdir(context, dir) {
                Ok(()) | Err(FsError::Exists) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What the directory of `load` holds.
    ///
    /// # Errors
    /// Those of the calls; [`FsError::TooLarge`] of a file that is none of the load's.
    pub fn read_load(self: &Arc<Self>, context: &Context, load: &Load) -> Result<Files, FsError> {
        let mut files = Files::default();
        for entry in self.readdir(context, &load.dir())? {
            let name = String::from_utf8_lossy(&entry.name).into_owned();
            let path = format!("{}/{name}", load.dir());
            let mut bytes = alloc::vec![0; checked(self.stat(context, &path)?.size)?];
            self.read(context, &*self.open(context, &path)?, 0, &mut bytes)?;
            files.0.insert(name, bytes);
        }
        self.reap(context);
        Ok(files)
    }

    /// Does a step of `load`. It is durable when this returns.
    ///
    /// # Errors
    /// Those of the calls.
    pub fn do_load_step(self: &Arc<Self>, context: &Context, load: &Load, step: &Step) -> Result<(), FsError> {
        let path = |name: &String| format!("{}/{name}", load.dir());
        let done = match step {
            Step::Create(name) => self.create(context, &path(name), true).map(drop),
            Step::Write(name, at, bytes) => self.open(context, &path(name)).and_then(|file| {
                self.write_all(context, &file, *at, bytes)?;
                self.fsync(context, &file).map(drop)
            }),
            Step::Truncate(name, size) => {
                self.open(context, &path(name)).and_then(|file| self.truncate(context, &file, *size))
            }
            Step::Punch(name, at, len) => {
                self.open(context, &path(name)).and_then(|file| self.punch(context, &file, *at, *len))
            }
            Step::Rename(from, to) => self.rename(context, &path(from), &path(to)),
            Step::Unlink(name) => self.unlink(context, &path(name)),
        };
        // The handle is dropped by now: what follows from that is a part of the step.
        self.reap(context);
        done
    }
}
