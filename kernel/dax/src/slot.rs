//! The place of one device: empty, attached, or being removed. A removal happens once.

use core::fmt;

use mm::lock_check;
use mm::sync::Mutex;

use crate::mutant::Mutant;

/// Why something could not be put in or taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotError {
    /// There is no device.
    Empty,
    /// There is a device already.
    Occupied,
    /// A removal is under way; [`DeviceSlot::wait`] waits for its end.
    Removing,
}

impl fmt::Display for SlotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "no device is attached here",
            Self::Occupied => "a device is attached here already",
            Self::Removing => "the device is being removed",
        })
    }
}

impl core::error::Error for SlotError {}

enum State<T> {
    Empty,
    Attached(T),
    Removing,
}

/// The place of a device `T`, for all CPUs.
///
/// ```
/// use dax::slot::{DeviceSlot, SlotError};
///
/// let slot = DeviceSlot::new();
/// slot.attach("pmem0").unwrap();
/// let (device, removing) = slot.begin_removal().unwrap();
/// assert_eq!(device, "pmem0");
/// assert_eq!(slot.begin_removal().err(), Some(SlotError::Removing), "of two callers one gets it");
/// drop(removing);
/// assert_eq!(slot.with(|_| ()), Err(SlotError::Empty));
/// ```
pub struct DeviceSlot<T> {
    state: Mutex<State<T>>,
}

impl<T> Default for DeviceSlot<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> DeviceSlot<T> {
    /// An empty place.
    pub fn new() -> Self {
        Self { state: Mutex::new(State::Empty) }
    }

    /// Puts a device in.
    ///
    /// # Errors
    /// [`SlotError::Occupied`] or [`SlotError::Removing`], with the device.
    pub fn attach(&self, device: T) -> Result<(), (SlotError, T)> {
        let mut state = self.state.lock();
        match *state {
            State::Empty => {
                *state = State::Attached(device);
                Ok(())
            }
            State::Attached(_) => Err((SlotError::Occupied, device)),
            State::Removing => Err((SlotError::Removing, device)),
        }
    }

    /// Looks at the device. `look` runs under a spin lock: it copies what it needs and leaves.
    ///
    /// # Errors
    /// [`SlotError::Empty`] or [`SlotError::Removing`].
    pub fn with<R>(&self, look: impl FnOnce(&T) -> R) -> Result<R, SlotError> {
        match &*self.state.lock() {
            State::Empty => Err(SlotError::Empty),
            State::Attached(device) => Ok(look(device)),
            State::Removing => Err(SlotError::Removing),
        }
    }

    /// Takes the device out for its removal, which is over when the [`Removing`] is dropped. Of several callers one
    /// gets it.
    ///
    /// # Errors
    /// [`SlotError::Empty`] or [`SlotError::Removing`].
    pub fn begin_removal(&self) -> Result<(T, Removing<'_, T>), SlotError> {
        self.begin_removal_if(|_| true)
    }

    /// As [`begin_removal`](Self::begin_removal), if it is the device that `is_meant` knows: for who has put one in and cannot
    /// say whether another stands there by now. `is_meant` runs under a spin lock.
    ///
    /// # Errors
    /// [`SlotError::Empty`], also where another device is there, or [`SlotError::Removing`].
    pub fn begin_removal_if(&self, is_meant: impl FnOnce(&T) -> bool) -> Result<(T, Removing<'_, T>), SlotError> {
        let mut state = self.state.lock();
        match core::mem::replace(&mut *state, State::Removing) {
            State::Attached(device) if is_meant(&device) => Ok((device, Removing { slot: self })),
            State::Removing => Err(SlotError::Removing),
            other => {
                *state = other;
                Err(SlotError::Empty)
            }
        }
    }

    /// Waits until no removal is under way. `relax` is called in every round.
    pub fn wait(&self, mut relax: impl FnMut()) {
        lock_check::might_sleep("a removal");
        while matches!(*self.state.lock(), State::Removing) && !Mutant::SecondDoesNotWait.is_on() {
            relax();
        }
    }
}

/// A removal is under way for as long as this lives; the place is empty afterwards.
#[must_use = "the place counts as empty when this is dropped"]
pub struct Removing<'b, T> {
    slot: &'b DeviceSlot<T>,
}

impl<T> Drop for Removing<'_, T> {
    fn drop(&mut self) {
        *self.slot.state.lock() = State::Empty;
    }
}
