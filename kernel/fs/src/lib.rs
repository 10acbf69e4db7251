//! The file system on DAX.
//!
//! A file's blocks *are* the memory that tasks map, so that this package answers two questions at once: what is on
//! the medium after a power cut, and who can still reach a block when it is freed.
//!
//! How to read it. What is on the medium: [`format`], [`layout`], then [`pmem`] (how a store becomes durable),
//! `journal` and `tx` (how several stores become one), `space`, `place`, `node`, `dir`, `table`. The operations: [`volume`]
//! with `file`, `names` and [`mount`]; [`check`] is the checker. The life around them: [`mounted`].
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod batch;
mod break_layouts;
pub mod calls;
pub mod check;
mod dir;
pub mod error;
mod file;
pub mod format;
pub mod freeze;
pub mod gate;
pub mod handle;
mod inode;
mod inode_table;
mod journal;
pub mod layout;
mod life;
pub mod load;
pub mod lock_order;
pub mod mount;
pub mod mounted;
pub mod mutant;
pub mod names;
mod node;
pub mod notify;
pub mod owner;
mod place;
pub mod pmem;
pub mod presence;
mod space;
pub mod superblock;
mod tx;
pub mod volume;
pub mod who;

pub use node::Piece;
pub use space::Run;
