//! NVMe as bytes and rings (NVM Express Base Specification 1.4): everything of a driver that touches neither a register nor
//! memory, so that it can be tested on the host.
//!
//! | module | what it is |
//! |---|---|
//! | [`registers`] | where the controller's registers are, and what their bits say |
//! | [`command`] | submission entries, 64 bytes each |
//! | [`completion`] | completion entries, 16 bytes each, and their status in words |
//! | [`ring`] | a pair of queues: whose turn it is, which command is in flight, what a completion may say |
//! | [`prp`] | an I/O virtual range as physical region pages |
//! | [`identify`] | what the controller and its namespace say of themselves |
//! | [`request`] | whether a read or a write can be done at all |
//!
//! What the device writes is not believed: a command id, a queue's number or a ring's index that cannot be is
//! [`ring::Broken`], one clear line, after which the controller is reset. No bytes of it lead to a panic or outside a
//! ring.
#![no_std]
#![forbid(unsafe_code)]

pub mod command;
pub mod completion;
pub mod identify;
pub mod mutant;
pub mod prp;
pub mod registers;
pub mod request;
pub mod ring;
