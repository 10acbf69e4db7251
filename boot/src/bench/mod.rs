//! The job `bench`: the machine that it measures, and what becomes of the figures.

use crate::size::{GIB, TIB};

/// The NVDIMMs that `bench` brings where none are asked for, in bytes: a small one, and a large one to compare it with.
/// Neither takes room on the host for what is only mapped.
pub const PMEM_BYTES: [u64; 2] = [6 * GIB, 6 * TIB];
