//! Pseudo-random numbers, the same in every run: what tasks do at random can be done again.

/// A generator (xorshift64: Marsaglia, "Xorshift RNGs", 2003). The seed is its state, and must not be 0.
pub struct Random(pub u64);

impl Random {
    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) % limit
    }

    /// Yes, once in so many times.
    pub fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }
}
