//! A pair of queues (1.4 §4.1): places in both rings, commands in flight, and what a completion may say.
//!
//! # Ids
//! At most `N` commands are in flight, each in a slot. A command's id is its slot in the lower bits and above it a number
//! that changes each time the slot is used, so that a completion which comes twice, or too late, is not taken for that of
//! the next command (Linux: `nvme_cid`, since 5.14).
//!
//! # Room
//! Both rings have more than `N` entries. Entries are taken in order, and a command that is done was taken: so there is
//! always room for a command that has a slot, and for every completion. What the device says of its place in the
//! submission queue is checked and used for nothing.

use core::fmt;

use crate::completion::{Completion, WORDS, phase_of};
use crate::mutant::Mutant;

/// Bits of an id that name the slot.
const SLOT_BITS: u32 = 8;

/// What a completion said that cannot be. After it the device is not to be trusted with its queues: it is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// An id that no command has ever had.
    CommandOutOfRange {
        /// The id.
        command: u16,
        /// How many slots there are.
        slots: usize,
    },
    /// The id of a command that is not in flight.
    NotInFlight {
        /// The id.
        command: u16,
    },
    /// The number of another submission queue.
    WrongQueue {
        /// What it said.
        queue: u16,
        /// Which queue this is.
        expected: u16,
    },
    /// A place beyond the submission queue's end.
    HeadOutOfRange {
        /// What it said.
        head: u16,
        /// How many entries the queue has.
        entries: u16,
    },
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the device wrote a completion ")?;
        match self {
            Self::CommandOutOfRange { command, slots } => {
                write!(f, "with command id {command:#06x}, whose slot is not below {slots}")
            }
            Self::NotInFlight { command } => write!(f, "of command {command:#06x}, which is not in flight"),
            Self::WrongQueue { queue, expected } => write!(f, "for submission queue {queue}, expected {expected}"),
            Self::HeadOutOfRange { head, entries } => {
                write!(f, "with submission queue head {head}, and the queue has {entries} entries")
            }
        }
    }
}

impl core::error::Error for Broken {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    InFlight,
    /// In flight, and nobody waits for it.
    Abandoned,
    Done(Completion),
    /// It was in flight when the controller was reset.
    Lost,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    generation: u8,
    state: State,
}

/// The right to hear of one command. It goes back by [`Pair::outcome`] once that is no longer pending, or by
/// [`Pair::abandon`].
#[must_use = "the slot is taken until somebody asks how the command went"]
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket {
    id: u16,
    place: u16,
    tail: u16,
}

impl Ticket {
    /// The command's id.
    #[must_use]
    pub const fn id(&self) -> u16 {
        self.id
    }
    /// Its slot, below the number of slots.
    #[must_use]
    pub const fn slot(&self) -> usize {
        (self.id & ((1 << SLOT_BITS) - 1)) as usize
    }
    /// Where in the submission queue its entry goes.
    #[must_use]
    pub const fn place(&self) -> u16 {
        self.place
    }
    /// What the tail doorbell is told once the entry is there.
    #[must_use]
    pub const fn tail(&self) -> u16 {
        self.tail
    }
}

/// How a command goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is in flight.
    Pending,
    /// The device has answered.
    Done(Completion),
    /// The controller was reset before it did.
    Lost,
}

/// A submission queue with its completion queue, for at most `N` commands at a time.
#[derive(Debug)]
pub struct Pair<const N: usize> {
    id: u16,
    entries: u16,
    tail: u16,
    head: u16,
    phase: bool,
    slots: [Slot; N],
}

impl<const N: usize> Pair<N> {
    /// Queue `id`, both of whose rings have `entries` entries: more than there are slots.
    ///
    /// # Panics
    /// When they have not.
    #[must_use]
    pub const fn new(id: u16, entries: u16) -> Self {
        assert!(N > 0 && N < entries as usize && N <= 1 << SLOT_BITS);
        let slots = [Slot { generation: 0, state: State::Free }; N];
        Self { id, entries, tail: 0, head: 0, phase: true, slots }
    }

    /// Its number.
    #[must_use]
    pub const fn id(&self) -> u16 {
        self.id
    }

    const fn after(&self, place: u16) -> u16 {
        if place + 1 == self.entries { 0 } else { place + 1 }
    }

    /// How many commands are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.iter().filter(|slot| matches!(slot.state, State::InFlight | State::Abandoned)).count()
    }

    /// Takes a slot and a place for a command; `None` where all slots are taken.
    pub fn begin(&mut self) -> Option<Ticket> {
        let at = self.slots.iter().position(|slot| slot.state == State::Free)?;
        let slot = &mut self.slots[at];
        slot.generation = slot.generation.wrapping_add(1);
        slot.state = State::InFlight;
        let id = u16::from(slot.generation) << SLOT_BITS | at as u16;
        let place = self.tail;
        self.tail = self.after(place);
        Some(Ticket { id, place, tail: self.tail })
    }

    /// Which entry of the completion queue is the next: what the head doorbell is told, too.
    #[must_use]
    pub const fn head(&self) -> u16 {
        self.head
    }

    /// Is the next entry new, by its last word?
    #[must_use]
    pub const fn is_new(&self, last_word: u32) -> bool {
        phase_of(last_word) == self.phase
    }

    /// The phase of the next entry once it is new.
    #[must_use]
    pub const fn phase(&self) -> bool {
        self.phase
    }

    /// Takes the next entry, and goes on to the one after it; `false` where it is not new.
    ///
    /// # Errors
    /// [`Broken`]: no command is done by it.
    pub fn take(&mut self, words: [u32; WORDS]) -> Result<bool, Broken> {
        let found = Completion::decode(words);
        if found.phase != self.phase {
            return Ok(false);
        }
        self.head = self.after(self.head);
        if self.head == 0 && !Mutant::PhaseStays.is_on() {
            self.phase = !self.phase;
        }
        let Completion { command, sq_head, sq_id, .. } = found;
        if sq_id != self.id && !Mutant::QueueNotChecked.is_on() {
            return Err(Broken::WrongQueue { queue: sq_id, expected: self.id });
        }
        if sq_head >= self.entries {
            return Err(Broken::HeadOutOfRange { head: sq_head, entries: self.entries });
        }
        let at = usize::from(command & ((1 << SLOT_BITS) - 1));
        let at = if Mutant::CommandNotChecked.is_on() { at % N } else { at };
        let slot = self.slots.get_mut(at).ok_or(Broken::CommandOutOfRange { command, slots: N })?;
        let same = command >> SLOT_BITS == u16::from(slot.generation) || Mutant::GenerationNotChecked.is_on();
        match slot.state {
            State::InFlight if same => slot.state = State::Done(found),
            State::Abandoned if same => slot.state = State::Free,
            _ => return Err(Broken::NotInFlight { command }),
        }
        Ok(true)
    }

    /// How the command went. Unless it is pending its slot is free for others afterwards, and the ticket worth nothing:
    /// whoever asks with it once more hears that the command is lost.
    pub fn outcome(&mut self, ticket: &Ticket) -> Outcome {
        let Some(slot) = self.mine(ticket) else { return Outcome::Lost };
        let outcome = match slot.state {
            State::InFlight => return Outcome::Pending,
            State::Done(completion) => Outcome::Done(completion),
            State::Free | State::Abandoned | State::Lost => Outcome::Lost,
        };
        slot.state = State::Free;
        outcome
    }

    /// What the device has answered to a command whose outcome nobody has asked for yet. It stays to be asked for.
    pub fn answer(&self, ticket: &Ticket) -> Option<Completion> {
        let slot = self.slots.get(ticket.slot())?;
        match slot.state {
            State::Done(completion) if u16::from(slot.generation) == ticket.id >> SLOT_BITS => Some(completion),
            _ => None,
        }
    }

    /// Nobody waits for the command any more. Its slot stays taken until the device has answered: it may still use the
    /// slot's memory.
    pub fn abandon(&mut self, ticket: &Ticket) {
        let Some(slot) = self.mine(ticket) else { return };
        slot.state = match slot.state {
            State::InFlight if !Mutant::AbandonedIsFree.is_on() => State::Abandoned,
            State::Abandoned => State::Abandoned,
            _ => State::Free,
        };
    }

    /// The ticket's slot, unless a later command has it.
    fn mine(&mut self, ticket: &Ticket) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(ticket.slot())?;
        (u16::from(slot.generation) == ticket.id >> SLOT_BITS && slot.state != State::Free).then_some(slot)
    }

    /// The controller has been stopped: whatever was in flight is lost, and both rings begin anew. The completion queue's
    /// memory has to be zeroed before the controller starts again.
    pub fn reset(&mut self) {
        (self.tail, self.head, self.phase) = (0, 0, true);
        for slot in &mut self.slots {
            slot.state = match slot.state {
                State::InFlight if !Mutant::ResetForgets.is_on() => State::Lost,
                State::Abandoned => State::Free,
                other => other,
            };
        }
    }
}
