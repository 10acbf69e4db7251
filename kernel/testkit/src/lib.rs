//! What the tests are made with, and no product has.
//!
//! | module | feature | what it is |
//! |---|---|---|
//! | `sim` | `sim` | persistent memory that remembers stores, write-backs and fences, and what a power cut may leave |
//! | `damage` | `sim` | damaged file systems, and what must hold whatever the bytes say |
//!
//! Packages name this one as a dev-dependency, with the features that their tests need: so that the tests of `mm`, say, do
//! not wait for the file system to be built.
#![forbid(unsafe_code)]

#[cfg(feature = "sim")]
pub mod damage;
#[cfg(feature = "sim")]
pub mod sim;
