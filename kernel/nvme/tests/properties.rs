//! Whatever a device writes: no panic, nothing outside a ring, no command done that was not in flight. Whatever range is
//! asked for: its PRPs name every byte of it once.

use nvme::completion::{Completion, Status};
use nvme::identify::{Controller, Namespace};
use nvme::prp::{self, LIST_ENTRIES, MOST_BYTES};
use nvme::registers::{Capabilities, PAGE_BYTES};
use nvme::request::Limits;
use nvme::ring::{Outcome, Pair, Ticket};
use proptest::prelude::*;
use std::collections::BTreeSet;

const SLOTS: usize = 5;
const ENTRIES: u16 = 8;

#[derive(Clone, Debug)]
enum Step {
    Begin,
    /// The device answers one of those in flight.
    Answer(usize),
    /// The device writes anything.
    Write([u32; 4], bool),
    Ask(usize),
    Abandon(usize),
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let near =
        (any::<u32>(), 0..12_u32, 0..3_u32, 0..0x800_u32, 0..8_u32).prop_map(|(result, head, queue, id, code)| {
            [result, 0, queue << 16 | head, code << 17 | (id & 0x700 | id & 7)]
        });
    prop_oneof![
        4 => Just(Step::Begin),
        4 => (0..SLOTS).prop_map(Step::Answer),
        2 => (prop_oneof![near, any::<[u32; 4]>()], any::<bool>()).prop_map(|(words, new)| Step::Write(words, new)),
        3 => (0..SLOTS).prop_map(Step::Ask),
        1 => (0..SLOTS).prop_map(Step::Abandon),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #[test]
    fn no_completion_leads_outside(steps in prop::collection::vec(step(), 0..200)) {
        let mut pair = Pair::<SLOTS>::new(1, ENTRIES);
        let mut tickets: Vec<Ticket> = Vec::new();
        // Ids that are in flight, whoever waits for them.
        let mut flying: BTreeSet<u16> = BTreeSet::new();
        for step in steps {
            match step {
                Step::Begin => if let Some(ticket) = pair.begin() {
                    prop_assert!(ticket.slot() < SLOTS && ticket.place() < ENTRIES && ticket.tail() < ENTRIES);
                    prop_assert!(flying.insert(ticket.id()), "an id that is in flight is given out again");
                    tickets.push(ticket);
                },
                Step::Answer(nth) => if let Some(&id) = flying.iter().nth(nth) {
                    let (phase, status) = (pair.phase(), Status::SUCCESS);
                    let words = Completion { result: 0, sq_head: 0, sq_id: 1, command: id, phase, status }.encode();
                    prop_assert_eq!(pair.take(words), Ok(true));
                    flying.remove(&id);
                },
                Step::Write(mut words, new) => {
                    words[3] = words[3] & !(1 << 16) | u32::from(pair.phase() == new) << 16;
                    let found = Completion::decode(words);
                    let legal = flying.contains(&found.command) && found.sq_id == 1 && found.sq_head < ENTRIES;
                    match pair.take(words) {
                        Ok(false) => prop_assert!(!new),
                        Ok(true) => prop_assert!(legal && new && flying.remove(&found.command)),
                        Err(error) => prop_assert!(!legal && new, "{}", error),
                    }
                }
                Step::Ask(nth) => if nth < tickets.len() {
                    let pending = flying.contains(&tickets[nth].id());
                    let found = pair.outcome(&tickets[nth]);
                    prop_assert_eq!(found == Outcome::Pending, pending);
                    if !pending {
                        drop(tickets.remove(nth));
                    }
                },
                Step::Abandon(nth) => if nth < tickets.len() {
                    let ticket = tickets.remove(nth);
                    pair.abandon(&ticket);
                },
                Step::Reset => {
                    pair.reset();
                    flying.clear();
                }
            }
            prop_assert!(pair.head() < ENTRIES);
            prop_assert_eq!(pair.in_flight(), flying.len());
        }
    }

    #[test]
    fn prps_name_every_byte_once(
        page in 0..1_u64 << 40,
        inside in prop_oneof![Just(0), (0..PAGE_BYTES / 4).prop_map(|word| word * 4)],
        len in prop_oneof![1..=3 * PAGE_BYTES, 1..=MOST_BYTES, Just(MOST_BYTES)],
    ) {
        let iova = page * PAGE_BYTES + inside;
        let mut list = Vec::new();
        let prps = prp::build(iova, len, 0x5000, |at, entry| {
            assert_eq!(at, list.len());
            list.push(entry);
        }).expect("a range that can be written");
        prop_assert!(list.len() <= LIST_ENTRIES);
        // As a device reads them: the first to the end of its page, then the second or what the list has.
        let mut places = vec![prps.first];
        let nr_pages = (inside + len).div_ceil(PAGE_BYTES);
        match nr_pages {
            1 => {}
            2 => places.push(prps.second),
            _ => {
                prop_assert_eq!(prps.second, 0x5000);
                places.extend(&list);
            }
        }
        prop_assert!(nr_pages > 2 || list.is_empty());
        let (mut next, mut left) = (iova, len);
        for place in places {
            prop_assert_eq!(place, next);
            let here = left.min(PAGE_BYTES - place % PAGE_BYTES);
            (next, left) = (next + here, left - here);
        }
        prop_assert_eq!(left, 0);
    }

    #[test]
    fn no_bytes_of_identify_panic(
        len in prop_oneof![Just(4096_usize), 0..5000_usize],
        fill in any::<u8>(),
        patches in prop::collection::vec((prop_oneof![0..80_usize, 128..200_usize, 512..530_usize], any::<u8>()), 0..60),
        iova in any::<u64>(), target in any::<u64>(), lba in any::<u64>(), blocks in any::<u64>(), offset in any::<u64>(),
    ) {
        let mut page = vec![fill; len];
        for (at, byte) in patches {
            if let Some(place) = page.get_mut(at) {
                *place = byte;
            }
        }
        let controller = Controller::parse(&page);
        let namespace = Namespace::parse(&page);
        if let Ok(found) = &controller {
            prop_assert!(found.model.len() <= 40 && found.serial.bytes().all(|byte| (b' '..0x7f).contains(&byte)));
        }
        if let Ok(found) = namespace {
            prop_assert!(found.block_bytes.is_power_of_two() && found.len_bytes() / found.block_bytes == found.nr_blocks);
            let limits = match &controller {
                Ok(controller) => Limits::new(controller, found),
                Err(_) => Limits { nr_blocks: found.nr_blocks, block_bytes: found.block_bytes, max_transfer_bytes: MOST_BYTES },
            };
            if let Ok((start, bytes)) = limits.check((lba, blocks), (iova, target), offset) {
                prop_assert!(start.checked_add(bytes).is_some() && bytes <= MOST_BYTES && offset + bytes <= target);
            }
        }
    }

    #[test]
    fn no_capabilities_panic(word in any::<u64>(), id in any::<u16>(), entries in 2..=u16::MAX) {
        let found = Capabilities(word);
        prop_assert!(found.timeout_ns() > 0 && found.stride() >= 4 && found.doorbells_end(id) > 0x1000);
        if found.check(entries).is_ok() {
            prop_assert!(found.most_entries() >= u32::from(entries) && found.min_page_bytes() <= PAGE_BYTES);
        }
    }
}
