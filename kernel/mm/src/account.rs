//! Who may hold how many pins: an account for each owner, with a limit (Linux: `mm->pinned_vm` and `RLIMIT_MEMLOCK`).
//!
//! # Protocol
//! Pages are charged *before* they are pinned, and a `Charge` that is dropped gives them back: so at no moment are
//! more pages pinned than are charged, and no path out of an error leaves a charge behind. The sum is checked in the
//! one atomic step that makes it: two requests at once cannot both find room that is there once, and a sum that would
//! wrap is over every limit.
//!
//! Pages of memory that is reserved as a whole can be left out of the limit, by policy
//! ([`PinLedger::exempt_reserved`](crate::pins::PinLedger::exempt_reserved)). They are counted all the same, beside the
//! others, so that whoever lists the accounts sees them.
//!
//! Every pin that is a value ([`PinnedPages`](crate::pins::PinnedPages), a registration) is charged, long or short, so the
//! sum of what an owner keeps is bounded. Each address space has an account of its own
//! ([`AddressSpace::account`](crate::space::AddressSpace::account)). The bare
//! [`pin_user_pages_fast`](crate::gup::pin_user_pages_fast) is in nobody's books, and nothing here is on its way: it is for
//! whoever gives the pages back before he returns, and is bounded by what a folio's count can hold.

use alloc::string::String;
use core::fmt;

use crate::mutant::Mutant;
use crate::sync::{Arc, AtomicU64, Ordering};

/// The limit where nobody says anything else, in pages: 8 MiB, as Linux's `MLOCK_LIMIT`.
pub const DEFAULT_LIMIT_PAGES: u64 = (8 << 20) >> crate::addr::PAGE_SHIFT;

/// The pins of one owner, and how many it may have.
#[derive(Debug)]
pub struct PinAccount {
    owner: String,
    limit_pages: AtomicU64,
    /// Pages charged against the limit.
    used_pages: AtomicU64,
    /// Pages charged, but left out of the limit.
    exempt_pages: AtomicU64,
}

/// A request that its owner's limit does not allow. All in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverLimit {
    /// What the owner may have pinned.
    pub limit_pages: u64,
    /// What it has.
    pub used_pages: u64,
    /// What it asked for besides.
    pub wanted_pages: u64,
}

impl fmt::Display for OverLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit_pages, used_pages, wanted_pages } = self;
        write!(f, "over the owner's pin limit: {wanted_pages} pages wanted, {used_pages} of {limit_pages} used")
    }
}

impl core::error::Error for OverLimit {}

impl PinAccount {
    pub(crate) fn new(owner: &str, limit_pages: u64) -> Arc<Self> {
        let [used_pages, exempt_pages] = [0, 0].map(AtomicU64::new);
        Arc::new(Self { owner: owner.into(), limit_pages: AtomicU64::new(limit_pages), used_pages, exempt_pages })
    }
    /// Whose it is.
    pub fn owner(&self) -> &str {
        &self.owner
    }
    /// How many pages may be charged against the limit.
    pub fn limit_pages(&self) -> u64 {
        self.limit_pages.load(Ordering::Relaxed)
    }
    /// Sets the limit. One below what is used takes nothing back; it refuses what comes next.
    pub fn set_limit_pages(&self, limit_pages: u64) {
        self.limit_pages.store(limit_pages, Ordering::Relaxed);
    }
    /// Pages that are charged against the limit.
    pub fn used_pages(&self) -> u64 {
        self.used_pages.load(Ordering::Relaxed)
    }
    /// Pages that are charged, but left out of the limit.
    pub fn exempt_pages(&self) -> u64 {
        self.exempt_pages.load(Ordering::Relaxed)
    }

    /// Charges `counted` pages against the limit, and `exempt` pages beside it.
    ///
    /// # Errors
    /// [`OverLimit`]; nothing is charged then.
    pub(crate) fn charge(self: &Arc<Self>, counted: u64, exempt: u64) -> Result<Charge, OverLimit> {
        let mut charge = Charge { account: Arc::clone(self), counted: 0, exempt: 0 };
        charge.settle(counted, exempt)?;
        Ok(charge)
    }

    /// Adds to what is used, as far as the limit allows.
    fn add(&self, pages: u64) -> Result<(), OverLimit> {
        let limit_pages = self.limit_pages();
        let sum = |used: u64| match Mutant::LimitWraps.is_on() {
            true => Some(used.wrapping_add(pages)),
            false => used.checked_add(pages),
        };
        let within = |used: u64| sum(used).filter(|&sum| sum <= limit_pages);
        // Relaxed: the number is all that the word protects.
        let result = self.used_pages.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within);
        result.map(drop).map_err(|used_pages| OverLimit { limit_pages, used_pages, wanted_pages: pages })
    }
}

/// Pages charged to an account, until this is dropped.
#[derive(Debug)]
#[must_use = "the charge is given back when this is dropped"]
pub(crate) struct Charge {
    account: Arc<PinAccount>,
    counted: u64,
    exempt: u64,
}

impl Charge {
    pub(crate) fn account(&self) -> &PinAccount {
        &self.account
    }
    /// Pages charged against the limit.
    pub(crate) fn counted(&self) -> u64 {
        self.counted
    }
    /// Pages left out of it.
    pub(crate) fn exempt(&self) -> u64 {
        self.exempt
    }

    /// Changes what is charged.
    ///
    /// # Errors
    /// [`OverLimit`]; what was charged stays charged then.
    pub(crate) fn settle(&mut self, counted: u64, exempt: u64) -> Result<(), OverLimit> {
        match counted.checked_sub(self.counted) {
            Some(more) => self.account.add(more)?,
            None => _ = self.account.used_pages.fetch_sub(self.counted - counted, Ordering::Relaxed),
        }
        self.counted = counted;
        // No limit, so the sum may be as large as it likes; modulo 2^64 it comes back to what it was.
        self.account.exempt_pages.fetch_add(exempt.wrapping_sub(self.exempt), Ordering::Relaxed);
        self.exempt = exempt;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.used_pages.fetch_sub(self.counted, Ordering::Relaxed);
        self.account.exempt_pages.fetch_sub(self.exempt, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// covers: L5
    #[test]
    fn a_limit_holds_for_sums_that_would_wrap_too() {
        let account = PinAccount::new("owner", 100);
        let first = account.charge(60, 7).expect("room for 60");
        assert_eq!((account.used_pages(), account.exempt_pages()), (60, 7));
        for wanted in [41, u64::MAX - 60, u64::MAX - 59, u64::MAX] {
            let refused = account.charge(wanted, 0).expect_err("there is room for 40");
            assert_eq!(refused, OverLimit { limit_pages: 100, used_pages: 60, wanted_pages: wanted });
        }
        let text = account.charge(41, 0).expect_err("no room").to_string();
        assert_eq!(text, "over the owner's pin limit: 41 pages wanted, 60 of 100 used");
        let rest = account.charge(40, 0).expect("the last 40");
        drop(first);
        assert_eq!((account.used_pages(), account.exempt_pages()), (40, 0));
        drop(rest);
        assert_eq!((account.used_pages(), account.exempt_pages()), (0, 0));
    }

    #[test]
    fn what_is_charged_can_change_sides() {
        let account = PinAccount::new("owner", 10);
        let mut charge = account.charge(0, 12).expect("exempt");
        assert_eq!(charge.settle(11, 1).expect_err("11 of 10").wanted_pages, 11);
        assert_eq!((account.used_pages(), account.exempt_pages()), (0, 12));
        charge.settle(10, 2).expect("10 of 10");
        charge.settle(4, 8).expect("fewer");
        assert_eq!((account.used_pages(), account.exempt_pages()), (4, 8));
        drop(charge);
        assert_eq!((account.used_pages(), account.exempt_pages()), (0, 0));
    }

    /// covers: L5
    #[test]
    fn a_lower_limit_takes_nothing_back_and_refuses_what_comes_next() {
        let account = PinAccount::new("owner", DEFAULT_LIMIT_PAGES);
        assert_eq!(DEFAULT_LIMIT_PAGES, 2048);
        let charge = account.charge(2048, 0).expect("all of it");
        account.set_limit_pages(5);
        assert_eq!(account.charge(1, 0).expect_err("full").limit_pages, 5);
        drop(charge);
        assert!(account.charge(5, 0).is_ok());
    }
}
