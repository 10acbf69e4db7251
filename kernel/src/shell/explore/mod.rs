//! Commands to explore with: a task that the user drives, and questions about addresses, pages, spaces and TLBs.
//!
//! No question changes anything, and none does work in proportion to page frames. What is found under a lock is a bounded
//! number of facts; they are printed when the lock is free again. So an answer is true of a moment, and not of one moment as
//! a whole.

pub mod files;
pub mod frame;
pub mod held;
pub mod rmap;
pub mod spaces;
pub mod tasks;
pub mod tlb;
pub mod walk;
pub mod who;
mod words;
mod worker;

use crate::console::command::Command;

/// The questions. What drives a task is [`tasks::COMMANDS`].
pub const COMMANDS: &[Command] = &[
    Command {
        name: "walk",
        args: "[ID] ADDRESS",
        help: "each level of the page table at an address, and the page behind it; without ID the kernel's own",
        example: "walk alpha 0x4000000000",
        run: walk::run,
    },
    Command {
        name: "page",
        args: "PFN",
        help: "what a page frame is, and its metadata in words",
        example: "page 0x100000",
        run: frame::run,
    },
    Command {
        name: "who",
        args: "PFN",
        help: "who maps, pins, reaches and owns a page frame",
        example: "who 0x100000",
        run: who::run,
    },
    Command {
        name: "rmap",
        args: "DEVICE|PFN",
        help: "who maps a device or a page frame, by extent",
        example: "rmap pmem0",
        run: rmap::run,
    },
    Command {
        name: "tlb",
        args: "",
        help: "each CPU: the space it has loaded, how far it has flushed",
        example: "tlb",
        run: tlb::run,
    },
    Command {
        name: "space",
        args: "[ID]",
        help: "the address spaces; of one, its mappings as a map",
        example: "space 2",
        run: spaces::run,
    },
];
