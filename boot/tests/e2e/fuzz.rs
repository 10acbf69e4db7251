//! Lines at random for the shell: each is done or refused, and the kernel goes on.

use crate::support::{ask, has, shell, start_shell};
use boot::backing::Nvdimm;
use boot::machine::Machine;
use boot::size::MIB;

/// covers: X3
#[test]
fn every_line_is_done_or_refused() {
    const LINES: u64 = 400;
    for (seed, kind) in [(1, "fsdax"), (2, "devdax")] {
        let mut guest = start_shell(&Machine { smp: 2, pmem: vec![Nvdimm::temporary(32 * MIB)], ..shell() });
        ask(&mut guest, &format!("attach 0 {kind}"));
        if kind == "fsdax" {
            ask(&mut guest, "mkfs 0");
            ask(&mut guest, "mount 0");
        }
        // It ends with a line of its own, whatever came before: errors among it are what it is for.
        let said =
            guest.command(&format!("fuzz {seed} {LINES} force")).unwrap_or_else(|error| panic!("{error:#}")).join("\n");
        has(&said, &[&format!("@fuzz seed={seed} lines={LINES}"), &format!("fuzz {}: ", LINES - 1)]);
        has(&ask(&mut guest, "mem"), &["RAM"]);
    }
}
