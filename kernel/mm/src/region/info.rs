//! The nouns of registrations: terms, notices, errors, and what the lists say.

use core::fmt;
use core::panic::Location;

use super::device::CutOff;
use crate::account::PinAccount;
use crate::addr::PfnRange;
use crate::gup::{GupError, GupFlags};
use crate::sync::Arc;

/// The longest grace period that an owner can have, in nanoseconds. A removal waits no longer than this for owners.
pub const MAX_GRACE_NS: u64 = 1_000_000_000;

/// How a range is registered.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// [`GupFlags::WRITE`] where it will be written to. `LONGTERM` goes without saying.
    pub flags: GupFlags,
    /// How long the owner has to give it back once it is asked to, in nanoseconds; at most [`MAX_GRACE_NS`].
    pub grace_ns: u64,
    /// Who pays.
    pub account: &'a Arc<PinAccount>,
}

/// The kernel wants a registration back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Which one.
    pub key: u64,
    /// By when, in nanoseconds since boot. It is revoked then.
    pub deadline_ns: u64,
}

/// Who has registered something.
pub trait RegionOwner: Send + Sync {
    /// Called once for each registration, in the task of whoever wants the pages back, with no lock held. It may give
    /// the registration back here and now; it must not wait, for its answer is not what the kernel waits for. In a race
    /// with its making this may come first, and the making fail.
    fn asked(&self, notice: &Notice);
}

impl<F: Fn(&Notice) + Send + Sync> RegionOwner for F {
    fn asked(&self, notice: &Notice) {
        self(notice);
    }
}

/// Why a range was not registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionError {
    /// Its pages were not pinned.
    Pin(GupError),
    /// The grace period is longer than the kernel waits.
    Grace {
        /// What was wanted, in nanoseconds.
        wanted_ns: u64,
    },
}

impl From<GupError> for RegionError {
    fn from(error: GupError) -> Self {
        Self::Pin(error)
    }
}

impl fmt::Display for RegionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pin(error) => error.fmt(f),
            Self::Grace { wanted_ns } => {
                write!(f, "a grace period of {wanted_ns} ns; expected at most {MAX_GRACE_NS}")
            }
        }
    }
}

/// Why a registration cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UseError {
    /// The kernel has taken it back.
    Revoked {
        /// Which one.
        key: u64,
    },
    /// Its owner has given it back.
    GivenBack {
        /// Which one.
        key: u64,
    },
    /// It was registered for reading only.
    ReadOnly {
        /// Which one.
        key: u64,
    },
    /// It has a device that reaches its pages already.
    Occupied {
        /// Which one.
        key: u64,
    },
}

impl fmt::Display for UseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Revoked { key } => write!(f, "registration {key} was taken back by the kernel"),
            Self::GivenBack { key } => write!(f, "registration {key} was given back by its owner"),
            Self::ReadOnly { key } => write!(f, "registration {key} is for reading only"),
            Self::Occupied { key } => write!(f, "registration {key} has a device already; expected one without"),
        }
    }
}

/// What the lists say of a registration.
#[derive(Clone, Debug)]
pub struct RegionInfo<'r> {
    /// Its number, not used twice.
    pub key: u64,
    /// Number of the address space through which it was made.
    pub space: u64,
    /// Name of the address space through which it was made.
    pub owner: &'r str,
    /// Where in the code.
    pub place: &'static Location<'static>,
    /// When, in nanoseconds since boot.
    pub since_ns: u64,
    /// How many pages.
    pub nr_pages: u64,
    /// Their frames, in the order of the addresses.
    pub frames: &'r [PfnRange],
    /// What its owner has to give it back, in nanoseconds.
    pub grace_ns: u64,
    /// When it is revoked, in nanoseconds since boot, where its owner was asked to give it back.
    pub deadline_ns: Option<u64>,
    /// Uses in flight.
    pub uses: u64,
}

impl fmt::Display for RegionInfo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, owner, place, nr_pages, frames, .. } = self;
        let first = frames.first().map_or(0, |run| run.start().as_u64());
        let (file, line) = (place.file(), place.line());
        write!(f, "registration {key} of {owner} ({nr_pages} pages from frame {first:#x}, made at {file}:{line})")
    }
}

/// What [`Regions::ask`](super::Regions::ask) did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Registrations that were asked for.
    pub asked: u64,
    /// Registrations that were looked at for that.
    pub looked_at: u64,
}

/// What [`Regions::take_back`](super::Regions::take_back) has to say.
#[derive(Clone, Debug)]
pub enum TakeBack<'r> {
    /// It waits longer than a use should take, for this one: said ever more seldom while it does.
    Waits(RegionInfo<'r>),
    /// A registration was revoked.
    Revoked(Revoked<'r>),
}

/// A registration that was revoked.
#[derive(Clone, Debug)]
pub struct Revoked<'r> {
    /// Which one, as it was before.
    pub region: RegionInfo<'r>,
    /// Uses that were in flight when it was closed, and have been waited for.
    pub uses: u64,
    /// What cutting its device off has cost, where it had one.
    pub cut_off: Option<CutOff>,
    /// How long the owner had, in nanoseconds.
    pub after_ns: u64,
}
