//! Submission entries (1.4 §4.2, §5, §6).

use crate::prp::Prps;

/// Words of a submission entry.
pub const WORDS: usize = 16;
/// Bytes of a submission entry.
pub const ENTRY_BYTES: usize = 4 * WORDS;

/// Admin: delete an I/O submission queue.
const DELETE_SUBMISSION: u8 = 0x00;
/// Admin: create an I/O submission queue.
const CREATE_SUBMISSION: u8 = 0x01;
/// Admin: delete an I/O completion queue.
const DELETE_COMPLETION: u8 = 0x04;
/// Admin: create an I/O completion queue.
const CREATE_COMPLETION: u8 = 0x05;
/// Admin: identify.
const IDENTIFY: u8 = 0x06;
/// I/O: flush.
const FLUSH: u8 = 0x00;
/// I/O: write.
const WRITE: u8 = 0x01;
/// I/O: read.
const READ: u8 = 0x02;

/// A queue's memory is in one piece.
const CONTIGUOUS: u32 = 1;

/// A submission entry as little-endian words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Submission {
    words: [u32; WORDS],
}

impl Submission {
    const fn new(opcode: u8, namespace: u32) -> Self {
        let mut words = [0; WORDS];
        words[0] = opcode as u32;
        words[1] = namespace;
        Self { words }
    }

    const fn with_data(mut self, data: Prps) -> Self {
        self.words[6] = data.first as u32;
        self.words[7] = (data.first >> 32) as u32;
        self.words[8] = data.second as u32;
        self.words[9] = (data.second >> 32) as u32;
        self
    }

    const fn with(mut self, word: usize, value: u32) -> Self {
        self.words[word] = value;
        self
    }

    /// Its words, as command `id`.
    #[must_use]
    pub const fn words(&self, id: u16) -> [u32; WORDS] {
        let mut words = self.words;
        words[0] |= (id as u32) << 16;
        words
    }

    /// What the controller says of itself, into the page at `page`.
    #[must_use]
    pub const fn identify_controller(page: u64) -> Self {
        Self::new(IDENTIFY, 0).with_data(Prps { first: page, second: 0 }).with(10, 1)
    }

    /// What namespace `namespace` is, into the page at `page`.
    #[must_use]
    pub const fn identify_namespace(namespace: u32, page: u64) -> Self {
        Self::new(IDENTIFY, namespace).with_data(Prps { first: page, second: 0 })
    }

    /// Makes completion queue `id` with `entries` entries in the memory at `memory`. It interrupts nobody.
    #[must_use]
    pub const fn create_completion(id: u16, entries: u16, memory: u64) -> Self {
        Self::queue(CREATE_COMPLETION, id, entries, memory).with(11, CONTIGUOUS)
    }

    /// Makes submission queue `id` with `entries` entries in the memory at `memory`, whose completions go to the completion
    /// queue of the same number.
    #[must_use]
    pub const fn create_submission(id: u16, entries: u16, memory: u64) -> Self {
        Self::queue(CREATE_SUBMISSION, id, entries, memory).with(11, (id as u32) << 16 | CONTIGUOUS)
    }

    /// Ends submission queue `id`: what was in flight there is done or aborted when this is done.
    #[must_use]
    pub const fn delete_submission(id: u16) -> Self {
        Self::new(DELETE_SUBMISSION, 0).with(10, id as u32)
    }

    /// Ends completion queue `id`, which no submission queue uses any more.
    #[must_use]
    pub const fn delete_completion(id: u16) -> Self {
        Self::new(DELETE_COMPLETION, 0).with(10, id as u32)
    }

    /// The number of entries is written as one less.
    const fn queue(opcode: u8, id: u16, entries: u16, memory: u64) -> Self {
        let size = entries.saturating_sub(1) as u32;
        Self::new(opcode, 0).with_data(Prps { first: memory, second: 0 }).with(10, size << 16 | id as u32)
    }

    /// Reads `blocks` blocks from block `lba` on; 1 to 65,536, written as one less.
    #[must_use]
    pub const fn read(namespace: u32, lba: u64, blocks: u32, data: Prps) -> Self {
        Self::transfer(READ, namespace, lba, blocks, data)
    }

    /// Writes; otherwise as [`read`](Self::read).
    #[must_use]
    pub const fn write(namespace: u32, lba: u64, blocks: u32, data: Prps) -> Self {
        Self::transfer(WRITE, namespace, lba, blocks, data)
    }

    const fn transfer(opcode: u8, namespace: u32, lba: u64, blocks: u32, data: Prps) -> Self {
        let count = blocks.saturating_sub(1) & 0xffff;
        Self::new(opcode, namespace).with_data(data).with(10, lba as u32).with(11, (lba >> 32) as u32).with(12, count)
    }

    /// Everything that was written before lasts once this is done.
    #[must_use]
    pub const fn flush(namespace: u32) -> Self {
        Self::new(FLUSH, namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: Prps = Prps { first: 0x1_2345_6000, second: 0x2_0000_1000 };

    #[test]
    fn a_read_is_laid_out_as_the_specification_has_it() {
        let words = Submission::read(1, 0x7_0000_0009, 8, DATA).words(0xbeef);
        assert_eq!(words[0], 0xbeef_0002);
        assert_eq!((words[1], words[6], words[7], words[8], words[9]), (1, 0x2345_6000, 1, 0x1000, 2));
        assert_eq!((words[10], words[11], words[12]), (9, 7, 7));
        assert_eq!([words[2], words[3], words[4], words[5], words[13], words[14], words[15]], [0; 7]);
        assert_eq!(Submission::write(1, 0, 65_536, DATA).words(0)[12], 0xffff);
        assert_eq!(Submission::write(1, 0, 1, DATA).words(3)[0], 0x0003_0001);
        assert_eq!(Submission::flush(2).words(1)[..2], [0x0001_0000, 2]);
    }

    #[test]
    fn queues_and_identify() {
        let words = Submission::create_submission(1, 32, 0x5000).words(2);
        assert_eq!((words[0], words[6], words[10], words[11]), (0x0002_0001, 0x5000, 31 << 16 | 1, 1 << 16 | 1));
        let words = Submission::create_completion(1, 32, 0x6000).words(1);
        assert_eq!((words[0], words[6], words[10], words[11]), (0x0001_0005, 0x6000, 31 << 16 | 1, 1));
        for (command, opcode) in [(Submission::delete_submission(9), 0), (Submission::delete_completion(9), 4)] {
            let words = command.words(1);
            assert_eq!((words[0], words[1], words[10], words[11]), (1 << 16 | opcode, 0, 9, 0));
        }
        let words = Submission::identify_controller(0x7000).words(0);
        assert_eq!((words[0], words[1], words[6], words[10]), (6, 0, 0x7000, 1));
        let words = Submission::identify_namespace(1, 0x7000).words(0);
        assert_eq!((words[0], words[1], words[10]), (6, 1, 0));
    }
}
