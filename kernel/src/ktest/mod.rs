//! The in-kernel tests: what a test is, the runner, fixtures, and a file for each area. The list of all is here.
//! May import: cpu, console, mem, task, trap, bringup, io, pmem, shell.

pub mod contents;
pub mod dax;
pub mod dax_pages;
pub mod dax_race;
pub mod dax_tells;
pub mod depart;
pub mod dma;
pub mod dma_blocked;
pub mod dma_edu;
pub mod dma_nvme;
pub mod explore;
pub mod fail;
pub mod fixtures;
pub mod fs;
pub mod fs_ends;
pub mod fs_mounts;
pub mod fs_removal;
pub mod fs_sync;
pub mod heap;
pub mod idle;
pub mod iommu;
pub mod locks;
pub mod mm_gup;
pub mod mm_map;
pub mod mm_tlb;
pub mod pins;
pub mod platform;
pub mod protection;
pub mod random;
pub mod read_only;
pub mod roots;
pub mod runner;
pub mod signals;
pub mod stress;
pub mod tasks;
pub mod test;
pub mod trace;
pub mod virtio;

/// The areas, in the order in which they are run: a new one is a file, its `mod` above and its line here.
static AREAS: &[&[test::Test]] = &[
    platform::TESTS,
    roots::TESTS,
    heap::TESTS,
    protection::TESTS,
    tasks::TESTS,
    locks::TESTS,
    signals::TESTS,
    mm_map::TESTS,
    mm_gup::TESTS,
    mm_tlb::TESTS,
    dax::TESTS,
    dax_pages::TESTS,
    dax_tells::TESTS,
    dax_race::TESTS,
    read_only::TESTS,
    pins::TESTS,
    iommu::TESTS,
    fail::TESTS,
    fs::TESTS,
    fs_ends::TESTS,
    fs_mounts::TESTS,
    fs_removal::TESTS,
    fs_sync::TESTS,
    contents::TESTS,
    explore::TESTS,
    stress::TESTS,
    virtio::TESTS,
    dma_edu::TESTS,
    dma_nvme::TESTS,
    dma_blocked::TESTS,
    depart::TESTS,
    trace::TESTS,
];
