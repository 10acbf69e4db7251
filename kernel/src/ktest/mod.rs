//! The in-kernel tests: what a test is, the runner with the list of all, fixtures, and a file for each area.
//! May import: cpu, console, mem, task, trap, bringup, pmem.

pub mod dax;
pub mod dax_pages;
pub mod dax_race;
pub mod fail;
pub mod fixtures;
pub mod fs;
pub mod fs_removal;
pub mod fs_sync;
pub mod idle;
pub mod mm_gup;
pub mod mm_map;
pub mod mm_tlb;
pub mod pins;
pub mod platform;
pub mod protection;
pub mod random;
pub mod runner;
pub mod signals;
pub mod stress;
pub mod tasks;
pub mod test;
pub mod virtio;
