//! Who uses which physical memory: a range has one user at a time (Linux: `request_mem_region`).

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use core::fmt;

use mm::addr::{Pfn, PfnRange};
use mm::ledger::{Kind, Ledger};
use mm::sync::{Arc, Mutex};

/// Why a range could not be claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The range that was asked for.
    pub wanted: PfnRange,
    /// The range that is taken and shares a frame with it.
    pub range: PfnRange,
    /// Who has it.
    pub by: String,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wanted, range, by } = self;
        write!(
            f,
            "frames {}..{} overlap {}..{}, which {by} has claimed",
            wanted.start(),
            wanted.end(),
            range.start(),
            range.end()
        )
    }
}

impl core::error::Error for Taken {}

/// The claims of one machine.
#[derive(Debug)]
pub struct Claims {
    /// By first frame; disjoint.
    taken: Mutex<BTreeMap<Pfn, (PfnRange, String)>>,
    ledger: Arc<Ledger>,
}

impl Claims {
    /// No claim yet. Each one that is made is charged to `ledger`.
    #[must_use]
    pub fn new(ledger: &Arc<Ledger>) -> Arc<Self> {
        Arc::new(Self { taken: Mutex::new(BTreeMap::new()), ledger: Arc::clone(ledger) })
    }

    /// Claims `range` for `by` until the claim is dropped.
    ///
    /// # Errors
    /// [`Taken`] if it shares a frame with a claimed range.
    pub fn claim(self: &Arc<Self>, range: PfnRange, by: &str) -> Result<Claim, Taken> {
        let mut taken = self.taken.lock();
        // Ranges are disjoint, so of those that begin before the end only the last can reach into it.
        if let Some((_, (other, owner))) = taken.range(..range.end()).next_back()
            && other.overlaps(range)
        {
            return Err(Taken { wanted: range, range: *other, by: owner.clone() });
        }
        taken.insert(range.start(), (range, by.to_string()));
        self.ledger.charge(Kind::Claims, 1);
        Ok(Claim { claims: Arc::clone(self), range })
    }

    /// Calls `visit` with each claim, in rising order.
    pub fn for_each(&self, mut visit: impl FnMut(PfnRange, &str)) {
        self.taken.lock().values().for_each(|(range, by)| visit(*range, by));
    }
}

/// A range that nobody else can claim while this lives.
#[derive(Debug)]
#[must_use = "the range is free again when this is dropped"]
pub struct Claim {
    claims: Arc<Claims>,
    range: PfnRange,
}

impl Claim {
    /// What is claimed.
    #[must_use]
    pub fn range(&self) -> PfnRange {
        self.range
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.taken.lock().remove(&self.range.start());
        self.claims.ledger.charge(Kind::Claims, -1);
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    fn range(start: u64, nr_pages: u64) -> PfnRange {
        PfnRange::new(Pfn::new(start), nr_pages).unwrap()
    }

    #[test]
    fn a_frame_has_one_user_at_a_time() {
        let ledger = Arc::new(Ledger::new());
        let claims = Claims::new(&ledger);
        let first = claims.claim(range(100, 10), "pmem0").unwrap();
        let below = claims.claim(range(90, 10), "below").unwrap();
        let above = claims.claim(range(110, 1), "above").unwrap();
        for (start, nr_pages) in [(100, 10), (99, 2), (109, 1), (105, 1), (0, 1000), (80, 11)] {
            assert!(claims.claim(range(start, nr_pages), "late").is_err(), "{start}+{nr_pages}");
        }
        let error = claims.claim(range(105, 1), "late").unwrap_err();
        assert!(error.to_string().ends_with("which pmem0 has claimed"), "{error}");
        assert_eq!(ledger.count(Kind::Claims), 3);
        drop(first);
        assert_eq!(claims.claim(range(100, 10), "again").unwrap().range(), range(100, 10));
        drop((below, above));
        assert_eq!(ledger.count(Kind::Claims), 0);
        claims.for_each(|_, by| panic!("{by} still has a claim"));
    }
}
