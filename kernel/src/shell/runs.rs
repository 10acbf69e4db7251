//! What the commands `test` and `demo` start: it is further right than the shell, and is handed in.

use alloc::vec::Vec;

use spin::Once;

/// The two.
pub struct Runs {
    /// Runs the in-kernel tests whose names match a glob; answers how many failed.
    pub tests: fn(&str) -> usize,
    /// The names of the tests that match a glob.
    pub list: fn(&str) -> Vec<&'static str>,
    /// Runs the demonstration; answers whether the verdict is good.
    pub demo: fn() -> bool,
}

static RUNS: Once<Runs> = Once::new();

/// Keeps them, before the first command.
pub fn set(runs: Runs) {
    RUNS.call_once(|| runs);
}

/// The two.
///
/// # Panics
/// Before [`set`].
pub fn get() -> &'static Runs {
    RUNS.get().expect("the shell runs, so it was told what it starts")
}
