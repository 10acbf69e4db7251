//! A pair of queues, against a device that does what is asked, and against one that does not.

use nvme::completion::{Completion, Status};
use nvme::ring::{Broken, Outcome, Pair, Ticket};

const SLOTS: usize = 4;
const ENTRIES: u16 = 6;

fn pair() -> Pair<SLOTS> {
    Pair::new(1, ENTRIES)
}

/// What a device writes for command `id`, into the next entry.
fn answer(pair: &Pair<SLOTS>, id: u16) -> Completion {
    let (phase, sq_head) = (pair.phase(), 0);
    Completion { result: u32::from(id), sq_head, sq_id: 1, command: id, phase, status: Status::SUCCESS }
}

fn begin(pair: &mut Pair<SLOTS>) -> Ticket {
    pair.begin().expect("a free slot")
}

#[test]
fn round_and_round() {
    let mut pair = pair();
    // As a device counts: it begins with phase 1, and changes it at the end of its queue.
    let mut written = 0_u64;
    for round in 0..1000_u16 {
        let tickets: Vec<_> = (0..=round % 4).map(|_| begin(&mut pair)).collect();
        assert_eq!(pair.in_flight(), tickets.len());
        assert!(
            tickets.iter().all(|ticket| ticket.place() < ENTRIES && ticket.tail() == (ticket.place() + 1) % ENTRIES)
        );
        for ticket in tickets.iter().rev() {
            assert_eq!(u64::from(pair.head()), written % u64::from(ENTRIES));
            let phase = (written / u64::from(ENTRIES)).is_multiple_of(2);
            let words = Completion { phase, ..answer(&pair, ticket.id()) }.encode();
            assert!(pair.is_new(words[3]) && !pair.is_new(words[3] ^ 1 << 16));
            assert_eq!(pair.outcome(ticket), Outcome::Pending);
            assert_eq!(pair.take(words), Ok(true));
            written += 1;
            // The entry behind it is of the round before.
            let phase = !(written / u64::from(ENTRIES)).is_multiple_of(2);
            assert_eq!(pair.take(Completion { phase, ..answer(&pair, 0) }.encode()), Ok(false));
        }
        for ticket in tickets {
            let Outcome::Done(found) = pair.outcome(&ticket) else { panic!("round {round}: not done") };
            assert_eq!(found.result, u32::from(ticket.id()));
            assert_eq!(pair.outcome(&ticket), Outcome::Lost, "a ticket is worth one answer");
        }
    }
}

#[test]
fn as_many_as_there_are_slots_are_in_flight() {
    let mut pair = pair();
    let tickets: Vec<_> = std::iter::from_fn(|| pair.begin()).collect();
    assert_eq!(tickets.len(), SLOTS);
    let words = answer(&pair, tickets[2].id()).encode();
    assert_eq!(pair.take(words), Ok(true));
    assert!(pair.begin().is_none(), "nobody has asked how it went");
    assert!(matches!(pair.outcome(&tickets[2]), Outcome::Done(_)));
    let next = begin(&mut pair);
    assert_eq!((next.slot(), pair.begin()), (tickets[2].slot(), None));
}

#[test]
fn an_index_out_of_range_is_one_clear_line() {
    type Change = fn(Completion) -> Completion;
    let cases: [(Change, &str); 5] = [
        (
            |good| Completion { command: good.command | 0x7f, ..good },
            "with command id 0x017f, whose slot is not below 4",
        ),
        (|good| Completion { command: good.command + 1, ..good }, "of command 0x0101, which is not in flight"),
        (|good| Completion { sq_id: 9, ..good }, "for submission queue 9, expected 1"),
        (|good| Completion { sq_head: ENTRIES, ..good }, "with submission queue head 6, and the queue has 6 entries"),
        (|good| Completion { command: 0xff00, ..good }, "of command 0xff00, which is not in flight"),
    ];
    for (change, line) in cases {
        let mut pair = pair();
        let ticket = begin(&mut pair);
        let bad = change(answer(&pair, ticket.id()));
        let error = pair.take(bad.encode()).expect_err(line);
        assert_eq!(error.to_string(), format!("the device wrote a completion {line}"));
        assert_eq!(pair.outcome(&ticket), Outcome::Pending, "the command is not done by it");
        pair.reset();
        assert_eq!(pair.outcome(&ticket), Outcome::Lost);
    }
}

#[test]
fn a_completion_that_comes_twice_is_not_the_next_commands() {
    let mut pair = pair();
    let first = begin(&mut pair);
    assert_eq!(pair.take(answer(&pair, first.id()).encode()), Ok(true));
    assert_eq!(pair.take(answer(&pair, first.id()).encode()), Err(Broken::NotInFlight { command: first.id() }));
    assert!(matches!(pair.outcome(&first), Outcome::Done(_)));
    let second = begin(&mut pair);
    assert_eq!(second.slot(), first.slot());
    assert_eq!(pair.take(answer(&pair, first.id()).encode()), Err(Broken::NotInFlight { command: first.id() }));
    assert_eq!((pair.outcome(&first), pair.outcome(&second)), (Outcome::Lost, Outcome::Pending));
    pair.abandon(&first);
    assert_eq!(pair.take(answer(&pair, second.id()).encode()), Ok(true));
    assert!(matches!(pair.outcome(&second), Outcome::Done(_)));
}

#[test]
fn an_abandoned_command_keeps_its_slot_until_it_is_done() {
    let mut pair = pair();
    let tickets: Vec<_> = std::iter::from_fn(|| pair.begin()).collect();
    tickets.iter().for_each(|ticket| pair.abandon(ticket));
    assert!(pair.begin().is_none());
    assert_eq!(pair.take(answer(&pair, tickets[0].id()).encode()), Ok(true));
    let next = begin(&mut pair);
    assert!(next.slot() == 0 && next.id() != tickets[0].id());
    // Of one that is done the slot is free at once.
    assert_eq!(pair.take(answer(&pair, next.id()).encode()), Ok(true));
    pair.abandon(&next);
    assert_eq!(begin(&mut pair).slot(), 0);
}

#[test]
fn a_reset_fails_what_was_in_flight() {
    let mut pair = pair();
    let (done, waiting, abandoned) = (begin(&mut pair), begin(&mut pair), begin(&mut pair));
    assert_eq!(pair.take(answer(&pair, done.id()).encode()), Ok(true));
    pair.abandon(&abandoned);
    pair.reset();
    assert_eq!((pair.head(), pair.phase(), pair.in_flight()), (0, true, 0));
    assert!(matches!(pair.outcome(&done), Outcome::Done(_)));
    assert_eq!(pair.outcome(&waiting), Outcome::Lost);
    // All slots are free again, and the first place is the first.
    let tickets: Vec<_> = std::iter::from_fn(|| pair.begin()).collect();
    assert_eq!((tickets.len(), tickets[0].place()), (SLOTS, 0));
}

/// The line in `docs/dma-devices.md` is the one that the kernel says, with a ring of 16.
#[test]
fn the_line_in_the_docs_is_what_is_said() {
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/dma-devices.md")).expect("the page");
    let error = Broken::CommandOutOfRange { command: 0xffff, slots: 16 };
    assert!(page.contains(&format!("\nnvme0: {error}; the controller is reset\n")), "{error}");
}
