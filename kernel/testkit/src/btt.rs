//! A block translation table that is written to as Linux writes to one, as far as it gets.
//!
//! Linux: `drivers/nvdimm/btt.c` (`btt_write_pg`, `btt_log_init`, `alloc_arena`).

use media::Uuid;

use crate::media::{Sparse, arena_of};

const PAGE: u64 = 4096;
/// Lanes, each with a free block.
pub const LANES: u32 = 256;

/// How far a write gets before the power is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Until {
    /// The bytes are in the free block.
    Data,
    /// And the first half of the log's entry is written.
    HalfLog,
    /// And all of it.
    Log,
    /// And the map's entry: it is complete.
    Map,
}

/// What a table is made of.
#[derive(Clone, Copy, Debug)]
pub struct TableOf {
    /// UUID of the namespace's label.
    pub parent: Uuid,
    /// Where it begins in the namespace: 4096 (version 1.1) or 0 (version 2.0).
    pub at: u64,
    /// Bytes of a sector, with those that Linux keeps behind it.
    pub sector_bytes: u32,
    /// Sectors of each arena.
    pub nr_sectors: u32,
    /// Arenas.
    pub nr_arenas: u32,
    /// The place of a lane's second entry: 1, or 2 as before Linux 4.15.
    pub second: u64,
}

impl Default for TableOf {
    fn default() -> Self {
        Self { parent: Uuid::NIL, at: 4096, sector_bytes: 4096, nr_sectors: 40, nr_arenas: 1, second: 1 }
    }
}

/// The state of one lane: its free block, the place and the sequence number of its next entry in the log.
#[derive(Clone, Copy, Debug)]
struct Lane {
    block: u32,
    place: u64,
    sequence: u32,
}

/// A namespace with a table, and who writes to it.
#[derive(Clone, Debug)]
pub struct Writer {
    /// The bytes of the namespace.
    pub namespace: Sparse,
    of: TableOf,
    arena_bytes: u64,
    lanes: Vec<Lane>,
}

impl Writer {
    /// A table nobody has written to yet.
    #[must_use]
    pub fn new(of: TableOf) -> Self {
        let data = u64::from(of.nr_sectors + LANES) * block_bytes(&of);
        let map = (u64::from(of.nr_sectors) * 4).next_multiple_of(PAGE);
        let arena_bytes = 2 * PAGE + data.next_multiple_of(PAGE) + map + u64::from(LANES) * 64;
        let mut namespace = Sparse::new(of.at + u64::from(of.nr_arenas) * arena_bytes);
        let mut writer = Self { namespace: Sparse::default(), of, arena_bytes, lanes: Vec::new() };
        for arena in 0..of.nr_arenas {
            let next = if arena + 1 < of.nr_arenas { arena_bytes } else { 0 };
            let version = if of.at == 0 { (2, 0) } else { (1, 1) };
            let block = arena_of(of.parent, version, (of.sector_bytes, of.nr_sectors), arena_bytes, next, LANES);
            let begin = writer.begin(arena);
            namespace.put(begin, &block);
            namespace.put(begin + arena_bytes - PAGE, &block);
            for lane in 0..LANES {
                let block = of.nr_sectors + lane;
                let entry = [lane, block, block, 1].map(u32::to_le_bytes).concat();
                namespace.put(writer.log(arena) + u64::from(lane) * 64, &entry);
                writer.lanes.push(Lane { block, place: of.second, sequence: 2 });
            }
        }
        writer.namespace = namespace;
        writer
    }

    fn begin(&self, arena: u32) -> u64 {
        self.of.at + u64::from(arena) * self.arena_bytes
    }

    fn log(&self, arena: u32) -> u64 {
        self.begin(arena) + self.arena_bytes - PAGE - u64::from(LANES) * 64
    }

    /// Where the map's entry of a sector is.
    #[must_use]
    pub fn map(&self, sector: u32) -> u64 {
        let map = (u64::from(self.of.nr_sectors) * 4).next_multiple_of(PAGE);
        self.log(sector / self.of.nr_sectors) - map + u64::from(sector % self.of.nr_sectors) * 4
    }

    /// Where a block of the arena of a sector is.
    #[must_use]
    pub fn block(&self, sector: u32, block: u32) -> u64 {
        self.begin(sector / self.of.nr_sectors) + PAGE + u64::from(block) * block_bytes(&self.of)
    }

    /// Writes a sector by way of a lane. One that is cut off is the lane's last.
    pub fn write(&mut self, lane: u32, sector: u32, bytes: &[u8], until: Until) {
        let arena = sector / self.of.nr_sectors;
        let Lane { block, place, sequence } = self.lanes[(arena * LANES + lane) as usize];
        self.namespace.put(self.block(sector, block), bytes);
        let own = sector % self.of.nr_sectors;
        let entry = self.namespace.number(self.map(sector));
        let old = if entry >> 30 == 0 { own } else { entry & ((1 << 30) - 1) };
        let entry = [own, old, block, sequence].map(u32::to_le_bytes).concat();
        let at = self.log(arena) + u64::from(lane) * 64 + place * 16;
        let written = match until {
            Until::Data => 0,
            Until::HalfLog => 8,
            Until::Log | Until::Map => 16,
        };
        self.namespace.put(at, &entry[..written]);
        if until == Until::Map {
            self.namespace.put(self.map(sector), &(block | 3 << 30).to_le_bytes());
        }
        let next = Lane { block: old, place: self.of.second - place, sequence: sequence % 3 + 1 };
        self.lanes[(arena * LANES + lane) as usize] = next;
    }
}

fn block_bytes(of: &TableOf) -> u64 {
    u64::from(of.sector_bytes).next_multiple_of(64)
}
