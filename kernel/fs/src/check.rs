//! The checker: reads everything, believes nothing, writes nothing.
//!
//! It works on a copy-on-write view on which the journal is replayed and the pending list worked off, as a mount would
//! do, and then compares: each inode with its blocks, all blocks with each other and with the bitmaps, the names with
//! the link counts, the lists with the inodes.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use mm::sync::Arc;

use crate::format::{BLOCK_SIZE, GROUP_BLOCKS, INODES_PER_BLOCK, Kind, ROOT_INO, TABLE_INO};
use crate::layout::Layout;
use crate::mutant::Faults;
use crate::node::Node;
use crate::pmem::{Overlay, Pmem};
use crate::space::Bits;
use crate::tx::Tx;
use crate::volume::Volume;

/// Problems that are listed; more are only counted.
const MAX_LISTED: usize = 64;

/// What the checker found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What is wrong, in words; at most 64.
    pub problems: Vec<String>,
    /// How many problems there are.
    pub nr_problems: u64,
    /// Files.
    pub files: u64,
    /// Directories, the root included.
    pub directories: u64,
    /// Blocks that inodes hold.
    pub blocks: u64,
    /// Extents.
    pub extents: u64,
}

impl Report {
    /// Is everything as it should be?
    pub fn is_clean(&self) -> bool {
        self.nr_problems == 0
    }
    fn add(&mut self, problem: String) {
        self.nr_problems += 1;
        if self.problems.len() < MAX_LISTED {
            self.problems.push(problem);
        }
    }
}

/// Checks a file system that is not mounted. `log`: the journal's device, if it is another one.
pub fn check(pmem: &Arc<dyn Pmem>, log: Option<&Arc<dyn Pmem>>) -> Report {
    let mut report = Report::default();
    let layout = match Layout::read(&**pmem) {
        Ok(layout) => layout,
        Err(error) => {
            report.add(format!("{error}"));
            return report;
        }
    };
    if layout.has_external_log() != log.is_some() {
        report.add(match log {
            None => "its journal is on another device, which is not given".into(),
            Some(_) => "its journal is on its own device, and another is given".into(),
        });
        return report;
    }
    for block in [0, layout.copy_block()] {
        match Layout::read_at(&**pmem, block) {
            Ok(copy) if copy == layout => {}
            Ok(_) => report.add(format!("the superblock at block {block} differs from the other")),
            Err(error) => report.add(format!("superblock at block {block}: {error}")),
        }
    }
    let view: Arc<dyn Pmem> = Overlay::new(pmem);
    let log: Option<Arc<dyn Pmem>> = log.map(|log| -> Arc<dyn Pmem> { Overlay::new(log) });
    match Volume::mount_on(&view, log.as_ref(), layout, Faults::none()) {
        Ok(mut volume) => volume.check_into(&mut report),
        Err(error) => report.add(format!("cannot be mounted: {error}")),
    }
    report
}

/// What the walk over the inode table gives.
#[derive(Default)]
struct Inodes {
    /// Links that each inode in use says it has, and its kind.
    used: BTreeMap<u64, (u32, Kind)>,
    free: BTreeSet<u64>,
    /// First block, blocks, inode.
    runs: Vec<(u64, u64, u64)>,
}

impl Volume {
    fn check_into(&mut self, report: &mut Report) {
        let inodes = self.check_inodes(report);
        self.check_blocks(&inodes.runs, report);
        self.check_names(&inodes, report);
        self.check_free_list(&inodes, report);
        if !self.pending.is_empty() {
            report.add(format!("{} inodes stay on the pending list", self.pending.len()));
        }
    }

    fn check_inodes(&mut self, report: &mut Report) -> Inodes {
        let mut inodes = Inodes::default();
        let nr = self.nodes.get(&TABLE_INO).map_or(0, Node::end) * INODES_PER_BLOCK;
        for ino in TABLE_INO..nr {
            match self.raw_inode(&mut Tx::default(), ino) {
                Err(error) => report.add(format!("inode {ino}: {error}")),
                Ok(raw) if raw.kind == Kind::Free as u8 => {
                    inodes.free.insert(ino);
                }
                Ok(_) => self.check_inode(ino, &mut inodes, report),
            }
            self.forget(ino);
        }
        inodes
    }

    fn check_inode(&mut self, ino: u64, inodes: &mut Inodes, report: &mut Report) {
        if let Err(error) = self.attributes(ino) {
            report.add(format!("attributes of inode {ino}: {error}"));
        }
        let start = self.store.layout.table_start;
        let node = match self.node(ino) {
            Ok(node) => node,
            Err(error) => return report.add(format!("inode {ino}: {error}")),
        };
        let (size, end) = (node.raw.size.get(), node.end());
        match node.kind {
            Kind::File => report.files += 1,
            Kind::Directory => report.directories += 1,
            Kind::Table | Kind::Free => {}
        }
        if end > Self::blocks(size) {
            report.add(format!("inode {ino} has blocks beyond its size of {size} bytes"));
        }
        let extents = node.extents.values().map(|extent| (extent.physical, extent.len, ino));
        let extents = extents.filter(|&(first, ..)| first != start);
        inodes.runs.extend(extents.chain(node.own_blocks().map(|block| (block, 1, ino))));
        inodes.used.insert(ino, (node.raw.nlink.get(), node.kind));
        report.extents += node.extents.len() as u64;
    }

    fn check_blocks(&mut self, runs: &[(u64, u64, u64)], report: &mut Report) {
        let mut runs = runs.to_vec();
        runs.sort_unstable();
        for pair in runs.windows(2) {
            if pair[0].0 + pair[0].1 > pair[1].0 {
                report.add(format!("block {} belongs to inode {} and to inode {}", pair[1].0, pair[0].2, pair[1].2));
            }
        }
        report.blocks = runs.iter().map(|run| run.1).sum();
        let (mut next, mut free) = (0, 0);
        for group in 0..self.store.layout.nr_groups() {
            let end = (group + 1) * GROUP_BLOCKS;
            // A run may reach into the next group.
            while next < runs.len() && runs[next].0 + runs[next].1 <= group * GROUP_BLOCKS {
                next += 1;
            }
            // Where runs overlap, one that has ended before the group may come behind one that reaches into it.
            let here = runs[next..].iter().take_while(|run| run.0 < end);
            let here = here.filter(|run| run.0 + run.1 > group * GROUP_BLOCKS);
            let here: Vec<_> = here.map(|run| (run.0, run.1)).collect();
            free += self.check_group(group, &here, report);
        }
        if free != self.free_blocks {
            report.add(format!("{} blocks are free, not {}", free, self.free_blocks));
        }
    }

    /// Compares one group's bitmap with the runs in it; answers how many blocks are free.
    fn check_group(&self, group: u64, runs: &[(u64, u64)], report: &mut Report) -> u64 {
        let layout = &self.store.layout;
        let (start, len) = (group * GROUP_BLOCKS, layout.blocks_in(group));
        let mut tx = Tx::default();
        let desc = match self.store.desc(&mut tx, group) {
            Ok(desc) => desc,
            Err(error) => {
                report.add(format!("{error}"));
                return 0;
            }
        };
        if desc.written.get() == 0 && runs.is_empty() && start >= layout.data_start && start + len < layout.nr_blocks {
            if u64::from(desc.free.get()) != len {
                report.add(format!("group {group} is untouched, and yet not all free"));
            }
            return len;
        }
        let mut bytes = [0; BLOCK_SIZE as usize];
        let mut expected = Bits(&mut bytes);
        (0..GROUP_BLOCKS).filter(|&bit| bit >= len || layout.is_fixed(start + bit)).for_each(|bit| {
            expected.set(bit, 1, true);
        });
        for &(first, nr) in runs {
            let (from, to) = (first.max(start), (first + nr).min(start + len));
            expected.set(from - start, to - from, true);
        }
        let free = (0..len).filter(|&bit| !expected.get(bit)).count() as u64;
        match self.store.bitmap(&mut tx, group) {
            Ok(actual) if actual[..] == expected.0[..] => {}
            Ok(actual) => {
                let actual = Bits(actual);
                let bit = (0..GROUP_BLOCKS).find(|&bit| actual.get(bit) != expected.get(bit)).unwrap_or(0);
                let (is, should) = if actual.get(bit) { ("in use", "free") } else { ("free", "in use") };
                report.add(format!("block {} is marked {is} and is {should}", start + bit));
            }
            Err(error) => report.add(format!("{error}")),
        }
        if u64::from(desc.free.get()) != free {
            report.add(format!("group {group} has {free} free blocks, and says {}", desc.free.get()));
        }
        free
    }

    fn check_names(&mut self, inodes: &Inodes, report: &mut Report) {
        let mut links: BTreeMap<u64, u32> = BTreeMap::from([(ROOT_INO, 2)]);
        let mut seen = BTreeSet::from([ROOT_INO]);
        let mut to_do = Vec::from([ROOT_INO]);
        while let Some(dir) = to_do.pop() {
            let entries = match self.readdir(dir) {
                Ok(entries) => entries,
                Err(error) => {
                    report.add(format!("directory {dir}: {error}"));
                    continue;
                }
            };
            for entry in entries {
                let name = String::from_utf8_lossy(&entry.name).into_owned();
                if inodes.used.get(&entry.ino).is_none_or(|&(_, kind)| kind != entry.kind) {
                    report.add(format!("name {name:?} in directory {dir} leads to a wrong inode {}", entry.ino));
                    continue;
                }
                *links.entry(entry.ino).or_default() += 1;
                if entry.kind == Kind::Directory {
                    *links.entry(entry.ino).or_default() += 1;
                    *links.entry(dir).or_default() += 1;
                    let parent = self.node(entry.ino).map(|node| node.raw.parent.get());
                    if !seen.insert(entry.ino) {
                        report.add(format!("directory {} has more than one name", entry.ino));
                        continue;
                    }
                    if parent != Ok(dir) {
                        report.add(format!("directory {} is in {dir} and does not say so", entry.ino));
                    }
                    to_do.push(entry.ino);
                }
            }
            self.forget(dir);
        }
        for (&ino, &(nlink, kind)) in inodes.used.iter().filter(|(_, (_, kind))| *kind != Kind::Table) {
            let found = links.get(&ino).copied().unwrap_or(0);
            if found == 0 {
                report.add(format!("inode {ino} ({kind:?}) has no name"));
            } else if found != nlink {
                report.add(format!("inode {ino} has {found} links, and says {nlink}"));
            }
        }
    }

    fn check_free_list(&mut self, inodes: &Inodes, report: &mut Report) {
        let mut seen = BTreeSet::new();
        let mut ino = self.nodes.get(&TABLE_INO).map_or(0, |table| table.raw.free_head.get());
        while ino != 0 {
            if !inodes.free.contains(&ino) || !seen.insert(ino) {
                report.add(format!("the list of free inodes is broken at inode {ino}"));
                return;
            }
            ino = match self.raw_inode(&mut Tx::default(), ino) {
                Ok(raw) => raw.next.get(),
                Err(error) => return report.add(format!("the list of free inodes, at inode {ino}: {error}")),
            };
        }
        if seen.len() != inodes.free.len() {
            report.add(format!("{} inodes are free, and {} of them on the list", inodes.free.len(), seen.len()));
        }
    }
}
