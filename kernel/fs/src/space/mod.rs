//! Free space: one bitmap block and one descriptor for each group of 128 MiB, looked at only when needed.
//!
//! Large requests get runs that begin at a multiple of 2 MiB as long as there are any. Small ones are put into
//! 2 MiB areas that are broken already, so that whole ones stay whole as the file system ages: a huge leaf needs one.
//! Where a giant leaf could be had, `place` asks for what lies at one place.

use core::ops::Range;

use zerocopy::IntoBytes;

use crate::error::FsError;
use crate::format::{
    BLOCK_SIZE, DESC_MAGIC, GIANT_BLOCKS, GROUP_BLOCKS, HUGE_BLOCKS, RawDesc, crc_of, is_sealed, seal, view,
};
use crate::layout::Layout;
use crate::tx::{BlockKind, Bytes, Store, Tx};

/// Groups in 1 GiB.
const GIANT_GROUPS: u64 = GIANT_BLOCKS / GROUP_BLOCKS;

/// A run of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First block.
    pub first: u64,
    /// Blocks.
    pub nr: u64,
}

/// Bits of one bitmap. 1: in use.
pub(crate) struct Bits<'b>(pub(crate) &'b mut Bytes);

impl Bits<'_> {
    pub(crate) fn get(&self, bit: u64) -> bool {
        self.0[(bit / 8) as usize] & 1 << (bit % 8) != 0
    }
    /// Sets or clears a run; `false` where a bit had that value already. Whole bytes at a time.
    pub(crate) fn set(&mut self, first: u64, nr: u64, value: bool) -> bool {
        let (mut bit, end, mut all) = (first, first + nr, true);
        while bit < end {
            let nr = (8 - bit % 8).min(end - bit);
            let mask = (((1_u16 << nr) - 1) as u8) << (bit % 8);
            let byte = &mut self.0[(bit / 8) as usize];
            all &= *byte & mask == if value { 0 } else { mask };
            *byte = if value { *byte | mask } else { *byte & !mask };
            bit += nr;
        }
        all
    }
    /// Bytes of the 2 MiB area `area`.
    fn area(&self, area: u64) -> &[u8] {
        &self.0[(area * HUGE_BLOCKS / 8) as usize..][..(HUGE_BLOCKS / 8) as usize]
    }
    /// The first run of up to `want` free blocks in `from..to`: of `want`, or else the longest.
    fn find(&self, from: u64, to: u64, want: u64) -> Option<(u64, u64)> {
        let mut best: Option<(u64, u64)> = None;
        let mut bit = from;
        while bit < to {
            if bit.is_multiple_of(8) && self.0[(bit / 8) as usize] == 0xff {
                bit += 8;
                continue;
            }
            if self.get(bit) {
                bit += 1;
                continue;
            }
            let first = bit;
            while bit < to && bit - first < want && !self.get(bit) {
                bit += 1;
            }
            if best.is_none_or(|(_, nr)| bit - first > nr) {
                best = Some((first, bit - first));
            }
            if bit - first == want {
                break;
            }
        }
        best
    }
    fn is_free_area(&self, area: u64) -> bool {
        self.area(area).iter().all(|&byte| byte == 0)
    }
    /// Whole free areas in a row, as many as `want` blocks need.
    fn find_areas(&self, nr_bits: u64, want: u64) -> Option<(u64, u64)> {
        let first = (0..nr_bits / HUGE_BLOCKS).find(|&area| self.is_free_area(area))?;
        self.areas_from(first, nr_bits, want)
    }
    /// The same from the area `first` on, which is free or there are none.
    fn areas_from(&self, first: u64, nr_bits: u64, want: u64) -> Option<(u64, u64)> {
        let free = (first..nr_bits / HUGE_BLOCKS).take_while(|&area| self.is_free_area(area));
        let end = free.take(want.div_ceil(HUGE_BLOCKS) as usize).last()? + 1;
        Some((first * HUGE_BLOCKS, ((end - first) * HUGE_BLOCKS).min(want)))
    }
    /// A small run, from an area that is in use in part where there is one.
    fn find_small(&self, nr_bits: u64, want: u64) -> Option<(u64, u64)> {
        let mut broken: Option<(u64, u64)> = None;
        for area in 0..nr_bits.div_ceil(HUGE_BLOCKS) {
            let bytes = self.area(area);
            if bytes.iter().all(|&byte| byte == 0) || bytes.iter().all(|&byte| byte == 0xff) {
                continue;
            }
            let end = ((area + 1) * HUGE_BLOCKS).min(nr_bits);
            if let Some((first, nr)) = self.find(area * HUGE_BLOCKS, end, want)
                && broken.is_none_or(|(_, best)| nr > best)
            {
                broken = Some((first, nr));
                if nr == want {
                    break;
                }
            }
        }
        broken.or_else(|| self.find(0, nr_bits, want))
    }
}

impl Store {
    /// The descriptor of a group, as this operation sees it.
    pub(crate) fn desc(&self, tx: &mut Tx, group: u64) -> Result<RawDesc, FsError> {
        let (block, at) = self.layout.desc_place(group);
        let bytes = self.image(tx, block, BlockKind::Descs)?;
        let bytes = &bytes[at..at + size_of::<RawDesc>()];
        let desc: RawDesc = view(bytes, "group descriptor", group)?;
        let free = u64::from(desc.free.get());
        if !is_sealed(bytes, DESC_MAGIC, group) || free > self.layout.blocks_in(group) || desc.written.get() > 1 {
            return Err(FsError::damaged("group descriptor", group));
        }
        Ok(desc)
    }

    fn set_desc(&self, tx: &mut Tx, group: u64, mut desc: RawDesc) -> Result<(), FsError> {
        let (block, at) = self.layout.desc_place(group);
        let bytes = self.image(tx, block, BlockKind::Descs)?;
        seal(desc.as_mut_bytes(), group);
        bytes[at..at + size_of::<RawDesc>()].copy_from_slice(desc.as_bytes());
        Ok(())
    }

    /// The bitmap of a group, checked when it is first read.
    pub(crate) fn bitmap<'t>(&self, tx: &'t mut Tx, group: u64) -> Result<&'t mut Bytes, FsError> {
        let block = self.layout.bitmap_start + group;
        if !tx.images.contains_key(&block) {
            let desc = self.desc(tx, group)?;
            if desc.written.get() == 0 {
                let data = data_bits(&self.layout, group);
                let mut bits = Bits(tx.fresh(block, BlockKind::Bitmap(group)));
                bits.set(0, data.start, true);
                bits.set(data.end, GROUP_BLOCKS - data.end, true);
            } else {
                let bytes = self.image(tx, block, BlockKind::Bitmap(group))?;
                if crc_of(&bytes[..], group) != desc.bitmap_crc.get() {
                    tx.images.remove(&block);
                    return Err(FsError::damaged("bitmap of group", group));
                }
            }
        }
        self.image(tx, block, BlockKind::Bitmap(group))
    }

    /// Takes a run of up to `want` free blocks. `aligned`: whole 2 MiB areas, or nothing.
    fn take_in(&self, tx: &mut Tx, group: u64, want: u64, aligned: bool) -> Result<Option<Run>, FsError> {
        let desc = self.desc(tx, group)?;
        if u64::from(desc.free.get()) < if aligned { HUGE_BLOCKS.min(want) } else { 1 } {
            return Ok(None);
        }
        let nr_bits = self.layout.blocks_in(group);
        let mut bits = Bits(self.bitmap(tx, group)?);
        let found = if aligned {
            bits.find_areas(nr_bits, want)
        } else if want >= HUGE_BLOCKS {
            bits.find(0, nr_bits, want)
        } else {
            bits.find_small(nr_bits, want)
        };
        let Some((first, nr)) = found else {
            return Ok(None);
        };
        bits.set(first, nr, true);
        self.book(tx, group, desc, Run { first: group * GROUP_BLOCKS + first, nr })
    }

    /// Takes the free blocks, up to `want` of them, that begin exactly at `first`; `None` where it is in use.
    pub(crate) fn take_at(&self, tx: &mut Tx, first: u64, want: u64) -> Result<Option<Run>, FsError> {
        if !self.layout.is_data(first, 1) {
            return Ok(None);
        }
        let (group, bit) = (first / GROUP_BLOCKS, first % GROUP_BLOCKS);
        let desc = self.desc(tx, group)?;
        let end = self.layout.blocks_in(group).min(bit + want);
        let mut bits = Bits(self.bitmap(tx, group)?);
        let nr = (bit..end).take_while(|&bit| !bits.get(bit)).count() as u64;
        if nr == 0 {
            return Ok(None);
        }
        bits.set(bit, nr, true);
        self.book(tx, group, desc, Run { first, nr })
    }

    /// Takes up to `want` blocks from `first` on, a multiple of 2 MiB, out of whole free areas; `None` where the one there
    /// is in use.
    pub(crate) fn take_areas_at(&self, tx: &mut Tx, first: u64, want: u64) -> Result<Option<Run>, FsError> {
        if !self.layout.is_data(first, 1) {
            return Ok(None);
        }
        let (group, bit) = (first / GROUP_BLOCKS, first % GROUP_BLOCKS);
        let desc = self.desc(tx, group)?;
        let mut bits = Bits(self.bitmap(tx, group)?);
        let Some((bit, nr)) = bits.areas_from(bit / HUGE_BLOCKS, self.layout.blocks_in(group), want) else {
            return Ok(None);
        };
        bits.set(bit, nr, true);
        self.book(tx, group, desc, Run { first, nr })
    }

    /// Gives back a block that this very operation has taken, and not used.
    pub(crate) fn give_back(&self, tx: &mut Tx, block: u64) -> Result<(), FsError> {
        let group = block / GROUP_BLOCKS;
        let desc = self.desc(tx, group)?;
        Bits(self.bitmap(tx, group)?).set(block % GROUP_BLOCKS, 1, false);
        self.set_desc(tx, group, RawDesc { free: (desc.free.get() + 1).into(), ..desc })?;
        tx.taken -= 1;
        Ok(())
    }

    /// The first block of a free 1 GiB that begins at a multiple of 1 GiB; `None` where there is none. Looks at one
    /// descriptor for each 1 GiB, and at all of those that may be free.
    pub(crate) fn free_giant(&self, tx: &mut Tx) -> Result<Option<u64>, FsError> {
        for giant in 0..self.layout.nr_blocks / GIANT_BLOCKS {
            let mut free = true;
            for group in (0..GIANT_GROUPS).map(|nr| giant * GIANT_GROUPS + nr) {
                free = free && u64::from(self.desc(tx, group)?.free.get()) == GROUP_BLOCKS;
                if !free {
                    break;
                }
            }
            if free {
                return Ok(Some(giant * GIANT_BLOCKS));
            }
        }
        Ok(None)
    }

    /// Books a run that was taken from a group.
    fn book(&self, tx: &mut Tx, group: u64, desc: RawDesc, run: Run) -> Result<Option<Run>, FsError> {
        let free = desc.free.get().checked_sub(run.nr as u32);
        let Some(free) = free.filter(|_| self.layout.is_data(run.first, run.nr)) else {
            return Err(FsError::damaged("bitmap of group", group));
        };
        // A block that was lost while it was free, or while it belonged to a file that is gone, serves again.
        self.pmem.renew(run.first * BLOCK_SIZE, run.nr * BLOCK_SIZE)?;
        self.set_desc(tx, group, RawDesc { free: free.into(), ..desc })?;
        tx.taken += run.nr;
        tx.cost += 128 + run.nr as usize / 8;
        Ok(Some(run))
    }

    /// Takes up to `want` blocks in a row, at least one, starting the search in group `hint`; `aligned`: at a multiple
    /// of 2 MiB where that can be had.
    ///
    /// # Errors
    /// [`FsError::NoSpace`], or damage.
    pub(crate) fn take(&self, tx: &mut Tx, want: u64, hint: u64, aligned: bool) -> Result<Run, FsError> {
        let groups = self.layout.nr_groups();
        let passes: &[bool] = if aligned { &[true, false] } else { &[false] };
        for &aligned in passes {
            for group in (0..groups).map(|nr| (hint + nr) % groups) {
                if let Some(run) = self.take_in(tx, group, want.min(GROUP_BLOCKS), aligned)? {
                    return Ok(run);
                }
            }
        }
        Err(FsError::NoSpace)
    }

    /// Takes a whole free area of 2 MiB, starting the search in group `hint`; `None` where there is none.
    pub(crate) fn take_whole(&self, tx: &mut Tx, hint: u64) -> Result<Option<Run>, FsError> {
        let groups = self.layout.nr_groups();
        for group in (0..groups).map(|nr| (hint + nr) % groups) {
            if let Some(run) = self.take_in(tx, group, HUGE_BLOCKS, true)? {
                return Ok(Some(run));
            }
        }
        Ok(None)
    }

    /// Gives the operation's freed blocks back and brings the bitmaps' checksums up to date: its last step.
    pub(crate) fn settle_space(&self, tx: &mut Tx) -> Result<(), FsError> {
        for freed in core::mem::take(&mut tx.freed) {
            let (mut first, end) = (freed.first, freed.first + freed.nr);
            while first < end {
                let group = first / GROUP_BLOCKS;
                let next = end.min((group + 1) * GROUP_BLOCKS);
                let nr = next - first;
                let desc = self.desc(tx, group)?;
                let mut bits = Bits(self.bitmap(tx, group)?);
                if !bits.set(first % GROUP_BLOCKS, nr, false) {
                    return Err(FsError::damaged("a block that is freed is free already, at or after", first));
                }
                self.set_desc(tx, group, RawDesc { free: (desc.free.get() + nr as u32).into(), ..desc })?;
                first = next;
            }
            tx.freed.push(freed);
        }
        let range = self.layout.bitmap_start..self.layout.bitmap_start + self.layout.nr_groups();
        let sums = tx.images.range(range).map(|(&block, image)| {
            let group = block - self.layout.bitmap_start;
            (group, crc_of(&image.bytes[..], group))
        });
        for (group, crc) in sums.collect::<alloc::vec::Vec<_>>() {
            let desc = self.desc(tx, group)?;
            self.set_desc(tx, group, RawDesc { bitmap_crc: crc.into(), written: 1.into(), ..desc })?;
        }
        Ok(())
    }
}

/// The blocks of a group that files can hold, as bits of its bitmap. What is before them belongs to the file system; so
/// does what is behind them, or there is nothing.
fn data_bits(layout: &Layout, group: u64) -> Range<u64> {
    let start = group * GROUP_BLOCKS;
    let bit = |block: u64| block.clamp(start, start + GROUP_BLOCKS) - start;
    bit(layout.data_start)..bit(layout.copy_block())
}

/// The descriptor of a group in which nothing is in use but what is fixed.
pub(crate) fn first_desc(layout: &Layout, group: u64) -> RawDesc {
    let data = data_bits(layout, group);
    let mut desc = RawDesc {
        magic: DESC_MAGIC.into(),
        crc: 0.into(),
        free: ((data.end - data.start) as u32).into(),
        written: 0.into(),
        bitmap_crc: 0.into(),
        reserved: [0; 12],
    };
    seal(desc.as_mut_bytes(), group);
    desc
}

const _: () = assert!(GROUP_BLOCKS == BLOCK_SIZE * 8);

#[cfg(test)]
mod tests;
