//! End-to-end tests: QEMU, the firmware, the loader and the kernel, as a user starts them.
//!
//! They boot the image that `UNPLUG_IMAGE` names, or the one that `run-qemu.sh` made last; `./run-qemu.sh test` makes
//! it first. Without an image each of them fails and says so.

mod bench;
mod cli;
mod demo;
mod demo_bad;
mod depart;
mod dma;
mod excerpts;
mod explore;
mod faults;
mod fs;
mod fuzz;
mod gdb;
mod inject;
mod kills;
mod mce;
mod media;
mod nfit;
mod pins;
mod pmem;
mod screen;
mod support;
mod trace;
mod typed;
mod virtio;
mod zoo;
