//! Who has registered what a device reaches, or reached until lately: a fault mostly comes when the registration is over.

use alloc::sync::Arc;
use core::fmt;
use core::panic::Location;

use arrayvec::ArrayVec;
use mm::pins::Word;
use mm::sync::Mutex;

use crate::mem::machine::mm;

/// As many registrations that are over are remembered, of all devices together.
const REMEMBERED: usize = 64;

/// A registration that a device had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Its number.
    pub key: u64,
    /// Name of the address space through which it was made.
    pub owner: Arc<str>,
    /// Where in the code.
    pub place: &'static Location<'static>,
}

/// Those that are over, oldest first.
static PAST: Mutex<ArrayVec<Registered, REMEMBERED>> = Mutex::new(ArrayVec::new_const());

/// A registration is over. Needs no memory.
pub fn remember(registered: Registered) {
    let mut past = PAST.lock();
    // Dropped when the lock is free again: it may be the last that has the name.
    let _oldest = past.is_full().then(|| past.remove(0));
    past.push(registered);
    drop(past);
}

/// Who has made registration `key`, if it is there or was until lately.
pub fn find(key: u64) -> Option<Registered> {
    let past = PAST.lock().iter().find(|registered| registered.key == key).cloned();
    past.or_else(|| {
        let mut found = None;
        mm().regions.for_each(&mut |region| {
            if region.key == key {
                found = Some(Registered { key, owner: region.owner.into(), place: region.place });
            }
        });
        found
    })
}

/// As ` key=value` words; none where it is not known.
pub struct Fields<'r>(pub Option<&'r Registered>);

impl fmt::Display for Fields<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Registered { owner, place, .. }) = self.0 else { return Ok(()) };
        write!(f, " owner={} place={}:{}", Word(owner), place.file(), place.line())
    }
}
