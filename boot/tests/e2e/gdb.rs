//! The gdb script: it finds the kernel, and walks page tables.

use crate::support::{machine, start};
use boot::machine::Machine;
use boot::paths;
use std::process::{Command, Stdio};

#[test]
fn gdb_stops_at_the_kernels_entry_and_walks_its_page_tables() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let socket = directory.path().join("gdb");
    let gdb = Some(format!("unix:{},server=on,wait=off", socket.display()));
    let _guest = start(&Machine { smp: 1, gdb, ..machine() });
    // QEMU makes its sockets in the order of its command line, and the monitor's is there before any test's patience.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(300);
    while !socket.exists() {
        assert!(std::time::Instant::now() < deadline, "QEMU did not make {}", socket.display());
        std::thread::yield_now();
    }
    let output = Command::new("gdb")
        .args(["-nx", "-batch"])
        .arg(paths::kernel())
        .arg("-x")
        .arg(paths::root().join("boot/gdb/unplug.py"))
        .args(["-ex", "info symbol $pc", "-ex", "pagewalk $pc", "-ex", "pagewalk 0xdead00000000"])
        .env("UNPLUG_GDB", &socket)
        .stdin(Stdio::null())
        .output()
        .expect("gdb is installed: it is one of the packages that run-qemu.sh installs");
    let text = String::from_utf8_lossy(&output.stdout);
    let context = format!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("_start in section .text"), "{context}");
    assert!(text.contains("leaf of 4 KiB") && text.contains(" is physical 0x"), "{context}");
    assert!(text.contains("0xdead00000000 is not mapped"), "{context}");
}
