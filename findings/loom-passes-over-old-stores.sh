#!/usr/bin/env bash
# loom 0.7.2: a load returns one of the seven newest stores of an atomic only, and nothing says that there were more.
#
# Expected: in "concurrency permutation testing" of the C11 model a relaxed load that is not ordered behind the stores may
# return each of them, the first value too; and a model that exceeds a bound of the checker fails, as it does with too
# many branches or threads.
# Seen: with nine stores behind the first value the load returns the last seven. The model passes, in silence, over the
# three other legal values: an assertion that they break holds (`MAX_ATOMIC_HISTORY`, rt/atomic.rs).
#
# One thread stores 1 to n to an atomic, and then "finished" to another, all relaxed; the other loads first "finished" and
# then the value. What it may have loaded in executions that saw "finished" is printed.
#
# Needs cargo 1.73 or later and crates.io. Exit status: see common.sh.
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/common.sh"
need cargo

mkdir -- "$work/src"
cat >"$work/Cargo.toml" <<'TOML'
[package]
name = "old-stores"
version = "0.0.0"
edition = "2021"

[dependencies]
loom = "=0.7.2"

[workspace]
TOML
cat >"$work/src/main.rs" <<'RUST'
use std::collections::BTreeSet;
use std::sync::{Arc as Shared, Mutex};

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use loom::sync::Arc;

fn seen(stores: usize) -> Vec<usize> {
    let seen = Shared::new(Mutex::new(BTreeSet::new()));
    let all = seen.clone();
    loom::model(move || {
        let shared = Arc::new((AtomicUsize::new(0), AtomicBool::new(false)));
        let writer = shared.clone();
        let thread = loom::thread::spawn(move || {
            (1..=stores).for_each(|value| writer.0.store(value, Relaxed));
            writer.1.store(true, Relaxed);
        });
        if shared.1.load(Relaxed) {
            all.lock().unwrap().insert(shared.0.load(Relaxed));
        }
        thread.join().unwrap();
    });
    let seen = seen.lock().unwrap().iter().copied().collect();
    seen
}

fn main() {
    let (six, nine) = (seen(6), seen(9));
    println!("six stores: {six:?}\nnine stores: {nine:?}");
    let same = six == (0..=6).collect::<Vec<_>>() && nine == (3..=9).collect::<Vec<_>>();
    println!("{}", if same { "as found" } else { "it has CHANGED" });
    std::process::exit(i32::from(!same));
}
RUST
cd -- "$work"
cargo fetch --quiet 2>fetch.log || not_to_be_had 'the crate loom 0.7.2' fetch.log
echo 'loom 0.7.2'
CARGO_TARGET_DIR=$work/target cargo run --release --quiet --offline
