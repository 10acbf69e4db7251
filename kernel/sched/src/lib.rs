//! What a CPU's tasks and interrupt handlers leave for each other, where it can be tested on the host and model-checked:
//! [`queue`] is who runs, [`wait`] how a task waits for a condition, [`ring`] what an interrupt handler notes for the
//! console, [`recorder`] what is kept of the latest events, for traces.
//!
//! Nothing here switches a stack, sets a timer or sends an interrupt: the kernel does, where these say so.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod mutant;
pub mod queue;
pub mod recorder;
pub mod ring;
pub mod wait;
