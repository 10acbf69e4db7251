//! Making a file system, mounting and unmounting it.
//!
//! Mounting reads the superblock, the state, the journal's first records and the inode table's inode: nothing that
//! grows with the device. After a power cut it replays the journal, works off the pending list and counts free
//! blocks by descriptor (32 bytes for 128 MiB). That is tried out in memory first: a damaged file system is refused
//! without a byte being written.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use mm::sync::Arc;
use zerocopy::IntoBytes;

use crate::error::{FsError, ShutdownReason};
use crate::format::{
    BLOCK_SIZE, FLAG_NO_REVERSE_MAP, INODE_SIZE, INODES_PER_BLOCK, Kind, ROOT_INO, RawDesc, RawExtent, RawState,
    STATE_MAGIC, TABLE_INO, is_sealed, seal, view,
};
use crate::inode_table::{free_block, free_inode};
use crate::journal::{Area, Change, Journal};
use crate::layout::{DESCS_PER_BLOCK, Label, Layout, STATE_BLOCK, TABLE_CHUNK};
use crate::mutant::{Faults, Mutant};
use crate::node::Node;
use crate::owner::{Owner, ReverseMap};
use crate::pmem::{Dirty, Overlay, Pmem, store};
use crate::space::first_desc;
use crate::superblock;
use crate::tx::{BlockKind, Store, Tx};
use crate::volume::Volume;

/// How a file system is made.
#[derive(Clone, Default)]
pub struct MakeOptions {
    /// Tells file systems apart: choose it at random.
    pub uuid: [u8; 16],
    /// For people.
    pub label: Label,
    /// The journal's device, if it is another one.
    pub log: Option<Arc<dyn Pmem>>,
    /// Keep no reverse map: failure notifications are answered by "not supported".
    pub no_reverse_map: bool,
}

/// How a file system is mounted.
#[derive(Clone, Default)]
pub struct MountOptions {
    /// The journal's device, if it is another one.
    pub log: Option<Arc<dyn Pmem>>,
    /// The deliberate fault to mount with, for tests.
    pub faults: Faults,
}

/// Makes a file system. What the device held is lost. Durable when it returns; the superblock comes last, so that a
/// power cut leaves no half-made file system that looks whole.
///
/// # Errors
/// [`FsError::TooSmall`], or the medium.
pub fn make(pmem: &Arc<dyn Pmem>, options: &MakeOptions) -> Result<Layout, FsError> {
    let nr_blocks = pmem.len_bytes() / BLOCK_SIZE;
    let log_blocks = options.log.as_ref().map(|log| log.len_bytes() / BLOCK_SIZE);
    let flags = if options.no_reverse_map { FLAG_NO_REVERSE_MAP } else { 0 };
    let mut layout = Layout::plan(nr_blocks, log_blocks, flags)?;
    layout.uuid = options.uuid;
    layout.label = options.label.0;
    let p = &**pmem;
    // No superblock while the rest is made.
    let void = [0; BLOCK_SIZE as usize];
    let old = store(p, 0, &void)?.and(store(p, layout.copy_block() * BLOCK_SIZE, &void)?);
    let _none = old.write_back(p).fence(p)?;
    let mut dirty = Dirty::default();
    for block in 0..layout.nr_groups().div_ceil(DESCS_PER_BLOCK) {
        let mut bytes = Vec::with_capacity(BLOCK_SIZE as usize);
        for group in (block * DESCS_PER_BLOCK..layout.nr_groups()).take(DESCS_PER_BLOCK as usize) {
            bytes.extend_from_slice(first_desc(&layout, group).as_bytes());
        }
        bytes.resize(BLOCK_SIZE as usize, 0);
        dirty = dirty.and(store(p, (layout.desc_start + block) * BLOCK_SIZE, &bytes)?);
    }
    dirty = dirty.and(make_table(p, &layout)?).and(store(p, STATE_BLOCK * BLOCK_SIZE, raw_state(&layout).as_bytes())?);
    area(pmem, options.log.as_ref(), &layout).make()?;
    let _rest = dirty.write_back(p).fence(p)?;
    superblock::write_all(p, &layout, &[0, layout.copy_block()])?;
    Ok(layout)
}

/// The first chunk of the inode table: itself, the root, and free inodes.
fn make_table(pmem: &dyn Pmem, layout: &Layout) -> Result<Dirty, FsError> {
    let mut dirty = Dirty::default();
    for nr in 0..TABLE_CHUNK {
        let first = nr * INODES_PER_BLOCK;
        let after = if nr + 1 == TABLE_CHUNK { 0 } else { first + INODES_PER_BLOCK };
        let mut bytes = [0; BLOCK_SIZE as usize];
        free_block(first, after, &mut bytes);
        if nr == 0 {
            let mut table = free_inode(TABLE_INO, 1, 0);
            table.kind = Kind::Table as u8;
            table.nlink = 1.into();
            table.size = (TABLE_CHUNK * BLOCK_SIZE).into();
            table.blocks = TABLE_CHUNK.into();
            table.free_head = (ROOT_INO + 1).into();
            table.extents[0] =
                RawExtent { logical: 0.into(), len: (TABLE_CHUNK as u32).into(), physical: layout.table_start.into() };
            let mut root = free_inode(ROOT_INO, 1, 0);
            root.kind = Kind::Directory as u8;
            root.nlink = 2.into();
            root.parent = ROOT_INO.into();
            for raw in [&mut table, &mut root] {
                let ino = raw.ino.get();
                seal(raw.as_mut_bytes(), ino);
                bytes[(ino * INODE_SIZE) as usize..][..INODE_SIZE as usize].copy_from_slice(raw.as_bytes());
            }
        }
        dirty = dirty.and(store(pmem, (layout.table_start + nr) * BLOCK_SIZE, &bytes)?);
    }
    Ok(dirty)
}

/// The state of a new file system.
fn raw_state(layout: &Layout) -> RawState {
    let mut state = RawState {
        magic: STATE_MAGIC.into(),
        crc: 0.into(),
        clean: 1.into(),
        mounts: 0.into(),
        free_blocks: (layout.copy_block() - layout.data_start).into(),
        reserved: 0.into(),
    };
    seal(state.as_mut_bytes(), STATE_BLOCK);
    state
}

fn area(pmem: &Arc<dyn Pmem>, log: Option<&Arc<dyn Pmem>>, layout: &Layout) -> Area {
    Area {
        pmem: Arc::clone(log.unwrap_or(pmem)),
        base: layout.journal_start * BLOCK_SIZE,
        len: layout.journal_blocks * BLOCK_SIZE,
        salt: layout.journal_salt(),
    }
}

/// Mounts a file system.
///
/// # Errors
/// Damage, named; [`FsError::NotSupported`] where the journal is on another device and that is not given, or the
/// other way round; the medium. Nothing has been written then, unless the medium failed in the middle.
///
/// A superblock that is lost is written anew from the other: see [`Volume::renewed`].
pub fn mount(pmem: &Arc<dyn Pmem>, options: &MountOptions) -> Result<Volume, FsError> {
    let (layout, found) = Layout::find(&**pmem)?;
    if layout.has_external_log() != options.log.is_some() {
        return Err(FsError::NotSupported);
    }
    // On copies first: what cannot be mounted is not touched.
    let trial: Arc<dyn Pmem> = Overlay::new(pmem);
    let trial_log = options.log.as_ref().map(|log| -> Arc<dyn Pmem> { Overlay::new(log) });
    drop(Volume::mount_on(&trial, trial_log.as_ref(), layout, options.faults)?);
    let mut volume = Volume::mount_on(pmem, options.log.as_ref(), layout, options.faults)?;
    volume.renewed = superblock::renew(&**pmem, &layout, found)?;
    Ok(volume)
}

impl Volume {
    pub(crate) fn mount_on(
        pmem: &Arc<dyn Pmem>,
        log: Option<&Arc<dyn Pmem>>,
        layout: Layout,
        faults: Faults,
    ) -> Result<Self, FsError> {
        let area = area(pmem, log, &layout);
        if area.pmem.len_bytes() < area.base + area.len {
            return Err(FsError::damaged("journal device smaller than the journal, in blocks", layout.journal_blocks));
        }
        let (mut journal, replay) = Journal::open(area, faults)?;
        let store = Store { pmem: Arc::clone(pmem), layout, faults };
        check_replay(&layout, &replay)?;
        journal.replay(&**pmem, &replay)?;
        let mut volume = Self {
            store,
            journal,
            nodes: BTreeMap::new(),
            owners: ReverseMap::default(),
            pending: Vec::new(),
            free_blocks: 0,
            used_inodes: None,
            broken: None,
            now_ns: 0,
            hint: 0,
            renewed: None,
        };
        volume.begin()?;
        Ok(volume)
    }

    /// Everything after the journal.
    fn begin(&mut self) -> Result<(), FsError> {
        let layout = self.store.layout;
        self.owners.insert(0, layout.data_start, Owner::Metadata);
        self.owners.insert(layout.copy_block(), 1, Owner::Metadata);
        self.node(TABLE_INO)?;
        self.dir(ROOT_INO)?;
        let state = self.state(&mut Tx::default())?;
        self.free_blocks = if state.clean.get() == 1 { state.free_blocks.get() } else { self.count_free()? };
        if self.free_blocks > layout.copy_block() - layout.data_start {
            return Err(FsError::damaged("number of free blocks", self.free_blocks));
        }
        self.set_state(RawState { clean: 0.into(), mounts: state.mounts.get().wrapping_add(1).into(), ..state })?;
        self.pending = self.read_pending()?;
        if !self.store.faults.has(Mutant::PendingForgotten) {
            for ino in self.pending.clone() {
                match self.node(ino)?.raw.nlink.get() {
                    0 => self.free(ino)?,
                    _ => self.finish_cut(ino, false)?,
                }
            }
        }
        Ok(())
    }

    fn state(&self, tx: &mut Tx) -> Result<RawState, FsError> {
        let bytes = self.store.image(tx, STATE_BLOCK, BlockKind::State)?;
        if !is_sealed(&bytes[..size_of::<RawState>()], STATE_MAGIC, STATE_BLOCK) {
            return Err(FsError::damaged("state", STATE_BLOCK));
        }
        view(&bytes[..], "state", STATE_BLOCK)
    }

    fn set_state(&mut self, mut state: RawState) -> Result<(), FsError> {
        self.operation(|volume, tx| {
            seal(state.as_mut_bytes(), STATE_BLOCK);
            let bytes = volume.store.image(tx, STATE_BLOCK, BlockKind::State)?;
            bytes[..size_of::<RawState>()].copy_from_slice(state.as_bytes());
            Ok(())
        })
    }

    fn count_free(&self) -> Result<u64, FsError> {
        let (mut free, mut tx) = (0, Tx::default());
        for group in 0..self.store.layout.nr_groups() {
            let desc: RawDesc = self.store.desc(&mut tx, group)?;
            free += u64::from(desc.free.get());
            if (group + 1).is_multiple_of(DESCS_PER_BLOCK) {
                tx = Tx::default();
            }
        }
        Ok(free)
    }

    /// Brings the medium into the state of an unmounted file system: everything in its place, the journal empty. The
    /// volume can still be used; the first change after [`resume`](Self::resume) makes it a mounted one again.
    ///
    /// # Errors
    /// [`FsError::ShutDown`] where a change failed half-way before; the medium.
    pub fn quiesce(&mut self) -> Result<(), FsError> {
        let state = self.state(&mut Tx::default())?;
        self.set_state(RawState { clean: 1.into(), free_blocks: self.free_blocks.into(), ..state })?;
        let emptied = self.journal.empty(&*self.store.pmem);
        self.break_unless(&emptied);
        emptied
    }

    /// What goes on after that would go on with a medium that calls itself clean, or a journal that is neither old nor new.
    fn break_unless(&mut self, done: &Result<(), FsError>) {
        let reason = match done {
            Ok(()) => return,
            Err(FsError::DeviceGone) => ShutdownReason::DeviceGone,
            Err(_) => ShutdownReason::MetadataIo,
        };
        self.broken.get_or_insert(reason);
    }

    /// Takes [`quiesce`](Self::quiesce) back.
    ///
    /// # Errors
    /// As [`quiesce`](Self::quiesce).
    pub fn resume(&mut self) -> Result<(), FsError> {
        let resumed =
            self.state(&mut Tx::default()).and_then(|state| self.set_state(RawState { clean: 0.into(), ..state }));
        self.break_unless(&resumed);
        resumed
    }

    /// How often it was mounted, this time included.
    ///
    /// # Errors
    /// Damage, or the medium.
    pub fn nr_mounts(&self) -> Result<u32, FsError> {
        self.state(&mut Tx::default()).map(|state| state.mounts.get())
    }

    /// Unmounts: the next mount has nothing to recover.
    ///
    /// # Errors
    /// As [`quiesce`](Self::quiesce).
    pub fn unmount(mut self) -> Result<(), FsError> {
        self.quiesce()
    }

    /// Loads every inode, so that the reverse map knows the owner of every block. Inodes that cannot be loaded are
    /// skipped; answers how many those were.
    pub fn load_all(&mut self) -> u64 {
        let nr = self.nodes.get(&TABLE_INO).map_or(0, Node::end) * INODES_PER_BLOCK;
        let mut bad = 0;
        for ino in ROOT_INO..nr {
            match self.node(ino) {
                Ok(_) | Err(FsError::NotFound) => {}
                Err(_) => bad += 1,
            }
        }
        bad
    }
}

/// Does the journal change only what a journal may change?
fn check_replay(layout: &Layout, replay: &[Change]) -> Result<(), FsError> {
    for change in replay {
        let (first, len) = (change.offset / BLOCK_SIZE, change.bytes.len() as u64);
        let inside = len != 0 && change.offset % BLOCK_SIZE + len <= BLOCK_SIZE;
        let journal = layout.journal_start..layout.journal_start + layout.journal_blocks;
        let in_journal = layout.journal_start != 0 && journal.contains(&first);
        if !inside || first < STATE_BLOCK || first >= layout.copy_block() || in_journal {
            return Err(FsError::damaged("journal record that changes block", first));
        }
    }
    Ok(())
}
