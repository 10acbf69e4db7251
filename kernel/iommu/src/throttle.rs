//! When the interrupt for faults is masked, so that a storm of them does not starve the CPU that takes it (D6).
//!
//! | state | an interrupt | the poll, every [`POLL_NS`] |
//! |---|---|---|
//! | open | the [`PER_WINDOW`]th within [`WINDOW_NS`]: mask | |
//! | masked | does not come | nothing found: unmask |
//!
//! A fault between the poll and the unmasking is not lost: the unit keeps it pending while masked, and interrupts when it is
//! unmasked (VT-d §7.3, the field IP of the fault event control register).

/// As many interrupts within a window are taken.
pub const PER_WINDOW: u32 = 16;
/// How long a window is, in nanoseconds.
pub const WINDOW_NS: u64 = 10_000_000;
/// While the interrupt is masked, somebody asks the unit this often, in nanoseconds.
pub const POLL_NS: u64 = 10_000_000;

/// Counts interrupts.
///
/// ```
/// use iommu::throttle::{PER_WINDOW, Throttle};
///
/// let mut throttle = Throttle::new();
/// let taken = (1..).take_while(|nth| !throttle.on_interrupt(nth * 1000)).count();
/// assert_eq!(taken as u32 + 1, PER_WINDOW, "a storm is masked");
/// assert!(!throttle.on_poll(true), "while it lasts");
/// assert!(throttle.on_poll(false));
/// assert!(!throttle.on_interrupt(1_000_000));
/// ```
#[derive(Debug, Default)]
pub struct Throttle {
    window_from_ns: u64,
    nr: u32,
    masked: bool,
}

impl Throttle {
    /// Open.
    pub const fn new() -> Self {
        Self { window_from_ns: 0, nr: 0, masked: false }
    }
    /// An interrupt has come. Is it to be masked?
    #[must_use]
    pub fn on_interrupt(&mut self, now_ns: u64) -> bool {
        if now_ns.saturating_sub(self.window_from_ns) >= WINDOW_NS {
            (self.window_from_ns, self.nr) = (now_ns, 0);
        }
        self.nr = self.nr.saturating_add(1);
        if self.nr >= PER_WINDOW {
            self.masked = true;
        }
        self.masked
    }
    /// The unit was asked, and had recorded something or not. Is the interrupt to be unmasked?
    #[must_use]
    pub fn on_poll(&mut self, found: bool) -> bool {
        if !self.masked || found {
            return false;
        }
        *self = Self::new();
        true
    }
    /// Is it masked?
    pub fn is_masked(&self) -> bool {
        self.masked
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    /// covers: D6
    #[test]
    fn faults_now_and_then_are_not_masked() {
        let mut throttle = Throttle::new();
        for nth in 0..10_000 {
            assert!(!throttle.on_interrupt(nth * WINDOW_NS / u64::from(PER_WINDOW - 1)), "{nth}");
        }
    }

    /// covers: D6
    #[test]
    fn a_storm_costs_a_bounded_number_of_interrupts() {
        // 10,000 faults a second for a second: what of them interrupts is bounded, and it ends.
        let (mut throttle, mut interrupts, mut polled_at) = (Throttle::new(), 0, 0);
        for nth in 0..10_000_u64 {
            let now = nth * 100_000;
            if !throttle.is_masked() {
                interrupts += 1;
                _ = throttle.on_interrupt(now);
                polled_at = now;
            } else if now - polled_at >= POLL_NS {
                polled_at = now;
                assert!(!throttle.on_poll(true));
            }
        }
        assert_eq!(interrupts, PER_WINDOW);
        assert!(throttle.on_poll(false) && !throttle.is_masked());
    }
}
