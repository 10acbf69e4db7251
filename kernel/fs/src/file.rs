//! Files: read, write, truncate both ways, punch, map in blocks for a fault, free.

use alloc::vec::Vec;

use crate::error::FsError;
use crate::format::{BLOCK_SIZE, GIANT_BLOCKS, HUGE_BLOCKS, Kind, MAX_ATTR, MAX_FILE, RawAttrHead, view};
use crate::mutant::Mutant;
use crate::node::{Change, Node, Piece};
use crate::place::{take_for, take_whole};
use crate::pmem::{WrittenBack, store};
use crate::space::Run;
use crate::tx::{BlockKind, Store, Tx};
use crate::volume::Volume;
use zerocopy::IntoBytes;

/// Most blocks that one operation writes: longer writes are several operations.
pub(crate) const WRITE_BLOCKS: u64 = 2048;

static ZEROES: [u8; BLOCK_SIZE as usize] = [0; BLOCK_SIZE as usize];

impl Store {
    /// Stores data, and starts writing it back.
    fn put(&self, tx: &mut Tx, at: u64, bytes: &[u8]) -> Result<(), FsError> {
        tx.add_data(store(&*self.pmem, at, bytes)?.write_back(&*self.pmem));
        Ok(())
    }

    /// Stores zeroes over `from..to`, byte offsets of the device.
    fn put_zeroes(&self, tx: &mut Tx, from: u64, to: u64) -> Result<(), FsError> {
        let mut at = from;
        while at < to {
            let len = (to - at).min(BLOCK_SIZE);
            self.put(tx, at, &ZEROES[..len as usize])?;
            at += len;
        }
        Ok(())
    }
}

impl Volume {
    /// Reads up to `buf.len()` bytes from `offset` on; answers how many there were before the end. A hole reads as
    /// zeroes.
    ///
    /// # Errors
    /// Not a file, damage, or the medium.
    pub fn read(&mut self, ino: u64, offset: u64, buf: &mut [u8]) -> Result<usize, FsError> {
        let size = self.file(ino)?.raw.size.get();
        let len = size.saturating_sub(offset).min(buf.len() as u64);
        // Nothing to read: the offset may be any number, and is none to reckon with.
        if len == 0 {
            return Ok(0);
        }
        let end = offset + len;
        let node = self.nodes.get(&ino).ok_or(FsError::NotFound)?;
        for piece in node.pieces(offset / BLOCK_SIZE, Self::blocks(end)) {
            let (from, to) = clip(piece, offset, end);
            let part = &mut buf[(from - offset) as usize..(to - offset) as usize];
            match piece.physical {
                Some(first) => {
                    self.store.pmem.read(first * BLOCK_SIZE + (from - piece.logical * BLOCK_SIZE), part)?;
                }
                None => part.fill(0),
            }
        }
        Ok(len as usize)
    }

    /// Writes `bytes` at `offset`, makes the file as long as it takes, and answers how many were written: fewer than all
    /// where space runs out, where the medium fails in a run of blocks after the first, or where another error comes after
    /// the first operation (up to 8 MiB). Those are durable when it returns. What was there is overwritten in place: a power
    /// cut in the middle leaves each byte old or new. What is added is there wholly or not at all, up to 8 MiB at a time.
    ///
    /// # Errors
    /// [`FsError::NoSpace`] where there is none for the first byte, [`FsError::TooLarge`], not a file: nothing has been
    /// written. The medium in the first run, in a block that is to fill a hole, or in the metadata, or damage: what the
    /// operation overwrote in place before may be old or new, byte by byte, and nothing else of it has happened. Damage comes
    /// also after a part of it was written.
    pub fn write(&mut self, ino: u64, offset: u64, bytes: &[u8]) -> Result<usize, FsError> {
        self.finish_old_cut(ino)?;
        let end = offset.checked_add(bytes.len() as u64).filter(|&end| end <= MAX_FILE).ok_or(FsError::TooLarge)?;
        let mut at = offset;
        while at < end {
            let limit = end.min((at / BLOCK_SIZE + WRITE_BLOCKS) * BLOCK_SIZE);
            let rest = &bytes[(at - offset) as usize..(limit - offset) as usize];
            match self.operation(|volume, tx| volume.write_part(tx, ino, at, rest)) {
                Ok(nr) => at += nr,
                Err(error) if at == offset || matches!(error, FsError::Damaged(_)) => return Err(error),
                Err(_) => break,
            }
        }
        Ok((at - offset) as usize)
    }

    /// Writes the first part of `bytes`, as much as fits into one operation and as there is space for.
    fn write_part(&mut self, tx: &mut Tx, ino: u64, offset: u64, bytes: &[u8]) -> Result<u64, FsError> {
        let (now_ns, budget) = (self.now_ns, self.budget());
        let mut found = None;
        let done = self.change(tx, ino, |node, change| {
            let size = node.raw.size.get();
            if offset > size {
                zero_tail(node, change, size, offset)?;
            }
            let end = offset + bytes.len() as u64;
            let mut at = offset;
            while at < end && change.tx.cost < budget {
                let piece = node.piece(at / BLOCK_SIZE, Self::blocks(end));
                let first = match piece.physical {
                    Some(first) => first,
                    None => {
                        let new = match fill_hole(node, change, piece, (at, end), size.max(end)) {
                            // What was overwritten up to here cannot be taken back: it is what was written.
                            Err(FsError::NoSpace) if at > offset => break,
                            new => new?,
                        };
                        // Small files do not follow a giant one into the 1 GiB that it has for itself.
                        if (new.0 ^ piece.logical) % GIANT_BLOCKS != 0 {
                            found = Some(new.0);
                        }
                        at = put_data(change, (piece.logical, new.0, new.1), (at, end), (offset, bytes))?;
                        continue;
                    }
                };
                at = match put_data(change, (piece.logical, first, piece.len), (at, end), (offset, bytes)) {
                    Err(FsError::Media(_)) if at > offset => break,
                    to => to?,
                };
            }
            node.raw.size = size.max(at).into();
            node.raw.mtime_ns = now_ns.into();
            Ok(at - offset)
        })?;
        if let Some(block) = found {
            self.note_hint(block);
        }
        Ok(done)
    }

    /// Makes the file `size` bytes long. Blocks beyond it are free when this returns; what is added reads as zeroes.
    ///
    /// # Errors
    /// [`FsError::TooLarge`], not a file, damage, or the medium.
    pub fn truncate(&mut self, ino: u64, size: u64) -> Result<(), FsError> {
        let old = self.file(ino)?.raw.size.get();
        if size > MAX_FILE {
            return Err(FsError::TooLarge);
        }
        self.finish_old_cut(ino)?;
        let (now_ns, budget, pending) = (self.now_ns, self.budget(), self.is_pending(ino));
        let first = Self::blocks(size);
        let done = self.operation(|volume, tx| {
            let done = volume.change(tx, ino, |node, change| {
                if size > old {
                    zero_tail(node, change, old, size)?;
                }
                node.raw.size = size.into();
                node.raw.mtime_ns = now_ns.into();
                let end = node.end();
                Ok(end <= first || node.cut(change, first, end, budget)? == first)
            })?;
            if !done && !pending {
                volume.link_pending(tx, ino)?;
            }
            Ok(done)
        })?;
        if !done {
            if !pending {
                self.pending.push(ino);
            }
            self.finish_cut(ino, pending)?;
        }
        self.clear_tail(ino, size)
    }

    /// A truncation that failed after its first step has left blocks behind the file's end, which are to be free before the file
    /// grows over them: what is in them was cut off.
    fn finish_old_cut(&mut self, ino: u64) -> Result<(), FsError> {
        let node = self.file(ino)?;
        let is_cut = node.end() <= Self::blocks(node.raw.size.get());
        if is_cut { Ok(()) } else { self.finish_cut(ino, true) }
    }

    /// Frees what lies beyond the size of a file on the pending list, and takes it off unless it is to `stay`.
    pub(crate) fn finish_cut(&mut self, ino: u64, stay: bool) -> Result<(), FsError> {
        loop {
            let (first, budget) = (Self::blocks(self.node(ino)?.raw.size.get()), self.budget());
            let done = self.operation(|volume, tx| {
                let done = volume.change(tx, ino, |node, change| {
                    let end = node.end();
                    Ok(end <= first || node.cut(change, first, end, budget)? == first)
                })?;
                if done && !stay {
                    volume.unlink_pending(tx, ino)?;
                }
                Ok(done)
            })?;
            if done {
                if !stay {
                    self.pending.retain(|&other| other != ino);
                }
                return Ok(());
            }
        }
    }

    /// A task that maps the last block shall not read there what was cut off. Not needed for the file itself: growing
    /// over it writes zeroes first.
    fn clear_tail(&mut self, ino: u64, size: u64) -> Result<(), FsError> {
        let node = self.nodes.get(&ino).ok_or(FsError::NotFound)?;
        let logical = size / BLOCK_SIZE;
        if let Some(block) = node.piece(logical, logical + 1).physical {
            let at = block * BLOCK_SIZE;
            self.store.put_zeroes(&mut Tx::default(), at + size % BLOCK_SIZE, at + BLOCK_SIZE)?;
        }
        Ok(())
    }

    /// Makes a hole: `len` bytes from `offset` read as zeroes, and whole blocks among them are free when this returns.
    /// The size stays. Needs no free block. A power cut in the middle leaves each byte old or zero.
    ///
    /// # Errors
    /// [`FsError::Invalid`] where the range is empty or wraps, or not a file: nothing has changed. Damage, or the medium:
    /// each byte is old or zero then. The blocks go from the back, as many at a time as the journal takes; the parts of
    /// blocks at the edges become zero when all of them have gone.
    pub fn punch(&mut self, ino: u64, offset: u64, len: u64) -> Result<(), FsError> {
        let end = offset.checked_add(len).filter(|_| len != 0).ok_or(FsError::Invalid)?;
        let end = end.min(self.file(ino)?.raw.size.get());
        if end <= offset {
            return Ok(());
        }
        let (first, last) = (Self::blocks(offset), end / BLOCK_SIZE);
        let (now_ns, budget) = (self.now_ns, self.budget());
        let mut to = last;
        while first < to {
            to = self.operation(|volume, tx| {
                volume.change(tx, ino, |node, change| {
                    node.raw.mtime_ns = now_ns.into();
                    node.cut(change, first, to, budget)
                })
            })?;
        }
        let edges = [(offset, end.min(first * BLOCK_SIZE)), (offset.max(last * BLOCK_SIZE), end)];
        if edges.iter().all(|(from, to)| from >= to) {
            return Ok(());
        }
        // Last, and by themselves: what is zero cannot be taken back where a cut fails.
        self.operation(|volume, tx| {
            volume.change(tx, ino, |node, change| {
                node.raw.mtime_ns = now_ns.into();
                edges.iter().try_for_each(|&(from, to)| zero_range(node, change, from, to))
            })
        })
    }

    /// The blocks behind a page that is mapped: there, or made now, as zeroes. A hole that spans a whole 2 MiB of the
    /// file gets 2 MiB as long as such an area is free, and a page otherwise.
    ///
    /// # Errors
    /// [`FsError::Invalid`] beyond the end of the file; [`FsError::NoSpace`]; not a file, damage, or the medium.
    pub fn map_block(&mut self, ino: u64, logical: u64, huge: bool) -> Result<Piece, FsError> {
        let blocks = Self::blocks(self.file(ino)?.raw.size.get());
        if logical >= blocks {
            return Err(FsError::Invalid);
        }
        let node = self.node(ino)?;
        if node.piece(logical, logical + 1).physical.is_none() {
            let start = logical & !(HUGE_BLOCKS - 1);
            let hole = node.piece(start, start + HUGE_BLOCKS);
            let whole = huge && start + HUGE_BLOCKS <= blocks && hole.physical.is_none() && hole.len == HUGE_BLOCKS;
            let filled = whole
                && match self.operation(|volume, tx| volume.fill_with_zeroes(tx, ino, hole, true)) {
                    // The area was the last that was free, and its extent needs a mapping block: a page may still fit.
                    Err(FsError::NoSpace) => false,
                    filled => filled?,
                };
            if !filled {
                let page = Piece { logical, len: 1, physical: None };
                self.operation(|volume, tx| volume.fill_with_zeroes(tx, ino, page, false))?;
            }
        }
        let run = self.run_around(ino, logical);
        // A truncation that failed may have left blocks behind the end, which are free to go: nobody may map them.
        Ok(Piece { len: run.len.min(blocks - run.logical), ..run })
    }

    /// Fills a hole. `whole`: it is of 2 MiB, and is filled by one area that a huge leaf can map, or not at all: `false`
    /// where there is none free.
    fn fill_with_zeroes(&mut self, tx: &mut Tx, ino: u64, hole: Piece, whole: bool) -> Result<bool, FsError> {
        let end = hole.logical + hole.len;
        self.change(tx, ino, |node, change| {
            let mut at = hole.logical;
            while at < end {
                let (size, want) = (node.raw.size.get(), end - at);
                let run = match whole {
                    true => take_whole(node, change, at, size)?,
                    false => Some(take_for(node, change, at, want, size)?),
                };
                let Some(run) = run else { return Ok(false) };
                change.store.put_zeroes(change.tx, run.first * BLOCK_SIZE, (run.first + run.nr) * BLOCK_SIZE)?;
                node.add(change, at, run.first, run.nr)?;
                at += run.nr;
            }
            Ok(true)
        })
    }

    /// The whole run that holds block `logical` of a loaded inode, or that block alone, as a hole.
    pub(crate) fn run_around(&self, ino: u64, logical: u64) -> Piece {
        let hole = Piece { logical, len: 1, physical: None };
        let Some(node) = self.nodes.get(&ino) else {
            return hole;
        };
        match node.extents.range(..=logical).next_back() {
            Some((&first, extent)) if logical < first + extent.len => {
                Piece { logical: first, len: extent.len, physical: Some(extent.physical) }
            }
            _ => hole,
        }
    }

    /// The runs of blocks that a file has in `first..end`, in file blocks.
    ///
    /// # Errors
    /// No such inode, or damage.
    pub fn runs(&mut self, ino: u64, first: u64, end: u64) -> Result<Vec<Piece>, FsError> {
        let node = self.node(ino)?;
        let end = end.min(node.end());
        Ok(node.pieces(first, end).filter(|piece| piece.physical.is_some()).collect())
    }

    /// Frees an inode without a link, with everything it has.
    ///
    /// # Errors
    /// [`FsError::Busy`] where it still has a link; damage, or the medium.
    pub fn free(&mut self, ino: u64) -> Result<(), FsError> {
        if self.node(ino)?.raw.nlink.get() != 0 {
            return Err(FsError::Busy);
        }
        let budget = self.budget();
        loop {
            let done = self.operation(|volume, tx| {
                let done = volume.change(tx, ino, |node, change| {
                    node.raw.size = 0.into();
                    let done = node.cut(change, 0, node.end(), budget)? == 0;
                    if done {
                        node.set_attr(change, None);
                    }
                    Ok(done)
                })?;
                if done {
                    volume.unlink_pending(tx, ino)?;
                    volume.unmake_inode(tx, ino)?;
                }
                Ok(done)
            })?;
            if done {
                self.pending.retain(|&other| other != ino);
                self.forget(ino);
                return Ok(());
            }
        }
    }

    /// Sets the attributes of an inode, a string of bytes that the file system does not look into. Empty: none.
    ///
    /// # Errors
    /// [`FsError::AttributesTooLarge`] beyond [`MAX_ATTR`]; [`FsError::NoSpace`]; [`FsError::NotFound`] where it is neither
    /// a file nor a directory (the inode table is no concern of callers); damage, or the medium.
    pub fn set_attributes(&mut self, ino: u64, bytes: &[u8]) -> Result<(), FsError> {
        if !matches!(self.node(ino)?.kind, Kind::File | Kind::Directory) {
            return Err(FsError::NotFound);
        }
        if bytes.len() > MAX_ATTR {
            return Err(FsError::AttributesTooLarge);
        }
        self.operation(|volume, tx| {
            volume.change(tx, ino, |node, change| {
                if bytes.is_empty() {
                    node.set_attr(change, None);
                    return Ok(());
                }
                // Always a new block: the old attributes stay until the new ones are there.
                let block = change.store.take(change.tx, 1, change.hint, false)?.first;
                let head = RawAttrHead {
                    magic: 0.into(),
                    crc: 0.into(),
                    ino: node.ino.into(),
                    len: (bytes.len() as u64).into(),
                };
                let image = change.tx.fresh(block, BlockKind::Attr);
                image[..size_of::<RawAttrHead>()].copy_from_slice(head.as_bytes());
                image[size_of::<RawAttrHead>()..][..bytes.len()].copy_from_slice(bytes);
                node.set_attr(change, Some(block));
                Ok(())
            })
        })
    }

    /// The attributes of an inode.
    ///
    /// # Errors
    /// No such inode, damage, or the medium.
    pub fn attributes(&mut self, ino: u64) -> Result<Vec<u8>, FsError> {
        let block = self.node(ino)?.raw.attr_block.get();
        if block == 0 {
            return Ok(Vec::new());
        }
        let bytes = self.store.read(block, BlockKind::Attr)?;
        let head: RawAttrHead = view(&bytes[..], "attribute block", block)?;
        let body = &bytes[size_of::<RawAttrHead>()..];
        let body = usize::try_from(head.len.get()).ok().and_then(|len| body.get(..len));
        match body {
            Some(body) if head.ino.get() == ino => Ok(body.to_vec()),
            _ => Err(FsError::damaged("attribute block", block)),
        }
    }

    /// Writes back the bytes of `pieces` (file blocks) that tasks may have stored through mappings.
    pub(crate) fn write_back(&mut self, ino: u64, ranges: &[(u64, u64)]) -> Result<WrittenBack, FsError> {
        let node = self.node(ino)?;
        let runs: Vec<_> = ranges.iter().flat_map(|&(first, end)| node.pieces(first, end.min(node.end()))).collect();
        let mut written = WrittenBack::default();
        for piece in runs {
            if let Some(first) = piece.physical {
                let dirty = crate::pmem::stored_by_others(first * BLOCK_SIZE, piece.len * BLOCK_SIZE);
                written = written.and(dirty.write_back(&*self.store.pmem));
            }
        }
        Ok(written)
    }
}

/// The bytes of `piece` within `offset..end`.
fn clip(piece: Piece, offset: u64, end: u64) -> (u64, u64) {
    ((piece.logical * BLOCK_SIZE).max(offset), ((piece.logical + piece.len) * BLOCK_SIZE).min(end))
}

/// Fills the front of a hole, for a write of `at..end`: takes blocks, and zeroes what of them is not written. Answers
/// where they are and how many.
fn fill_hole(
    node: &mut Node,
    change: &mut Change<'_>,
    hole: Piece,
    (at, end): (u64, u64),
    size: u64,
) -> Result<(u64, u64), FsError> {
    let Run { first, nr } = add_run(node, change, hole, size)?;
    let base = first * BLOCK_SIZE;
    let start = hole.logical * BLOCK_SIZE;
    let stop = start + nr * BLOCK_SIZE;
    change.store.put_zeroes(change.tx, base, base + at.max(start) - start)?;
    change.store.put_zeroes(change.tx, base + (end.min(stop) - start), base + nr * BLOCK_SIZE)?;
    Ok((first, nr))
}

/// Takes blocks for the front of a hole, and makes them the file's.
fn add_run(node: &mut Node, change: &mut Change<'_>, hole: Piece, size: u64) -> Result<Run, FsError> {
    let Run { first, nr } = take_for(node, change, hole.logical, hole.len, size)?;
    match node.add(change, hole.logical, first, nr) {
        Err(FsError::NoSpace) => {}
        added => return added.map(|()| Run { first, nr }),
    }
    // The run was the last that was free, and needs a mapping block: that is one block of its own.
    let nr = nr - 1;
    change.store.give_back(change.tx, first + nr)?;
    if nr == 0 {
        return Err(FsError::NoSpace);
    }
    node.add(change, hole.logical, first, nr).map(|()| Run { first, nr })
}

/// Stores the part of a write that lies in one run (file block, device block, blocks); answers where it ends.
fn put_data(
    change: &mut Change<'_>,
    (logical, first, nr): (u64, u64, u64),
    (at, end): (u64, u64),
    (offset, bytes): (u64, &[u8]),
) -> Result<u64, FsError> {
    let to = end.min((logical + nr) * BLOCK_SIZE);
    let part = &bytes[(at - offset) as usize..(to - offset) as usize];
    change.store.put(change.tx, first * BLOCK_SIZE + (at - logical * BLOCK_SIZE), part)?;
    Ok(to)
}

/// Zeroes the bytes `from..to` of a file, where there are blocks.
fn zero_range(node: &Node, change: &mut Change<'_>, from: u64, to: u64) -> Result<(), FsError> {
    if from >= to {
        return Ok(());
    }
    for piece in node.pieces(from / BLOCK_SIZE, Volume::blocks(to)) {
        if let Some(first) = piece.physical {
            let base = first * BLOCK_SIZE;
            let (start, end) = clip(piece, from, to);
            let origin = piece.logical * BLOCK_SIZE;
            change.store.put_zeroes(change.tx, base + (start - origin), base + (end - origin))?;
        }
    }
    Ok(())
}

/// A file of `size` bytes is to reach beyond `to`: the rest of its last block, which may hold anything, becomes zero.
fn zero_tail(node: &Node, change: &mut Change<'_>, size: u64, to: u64) -> Result<(), FsError> {
    if change.store.faults.has(Mutant::TailNotZeroed) {
        return Ok(());
    }
    zero_range(node, change, size, to.min(size.next_multiple_of(BLOCK_SIZE)))
}
