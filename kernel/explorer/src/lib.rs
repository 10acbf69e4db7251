//! The schedule explorer: runs scenarios with the real code of `mm`, `iommu` and `fs` on `testkit`'s emulated machine,
//! decides at each event which CPU, or which device, goes on, and so finds the order in which a deliberate fault strikes. See
//! `docs/explorer.md`.
//!
//! | module | what it is |
//! |---|---|
//! | [`scenario`] | what the CPUs do, and what must not happen |
//! | [`board`] | the machine that a schedule runs on |
//! | [`conductor`] | who goes on at each mark, and what came of it |
//! | [`strategy`] | how that is decided: at random, by priorities, all ways, as it is written |
//! | [`schedule`] | a schedule as text |
//! | [`run`], [`search`] | one schedule; many, and how one is made short |
//! | [`fault`] | the deliberate faults that it knows |
//! | [`lanes`] | what has happened, as text |
//! | [`coroutine`] | the one door to raw memory |
#![deny(unsafe_code)]
#![cfg(not(any(loom, shuttle)))]

pub mod board;
pub mod conductor;
pub mod coroutine;
pub mod fault;
pub mod lanes;
pub mod run;
pub mod scenario;
pub mod schedule;
pub mod search;
pub mod strategy;
