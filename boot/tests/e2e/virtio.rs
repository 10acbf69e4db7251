//! virtio-pmem, the second kind of persistent memory; and CPUs that cannot have DAX.

use crate::support::{ask, assert_good, exit, has, refused, shell, start_shell};
use boot::backing::{Nvdimm, VirtioPmem};
use boot::machine::Machine;
use boot::size::MIB;

/// covers: A7
#[test]
fn a_virtio_pmem_device_is_attached_written_flushed_removed_and_attached_again() {
    let machine = Machine {
        smp: 2,
        pmem: vec![Nvdimm::temporary(64 * MIB)],
        virtio_pmem: vec![VirtioPmem::new(32 * MIB)],
        ..shell()
    };
    let mut guest = start_shell(&machine);
    has(&ask(&mut guest, "nvdimm"), &["0: pmem0 (nvdimm)", "1: vpmem0 (virtio-pmem)"]);
    let attached = ask(&mut guest, "attach 1");
    has(&attached, &["@attached device=vpmem0 provider=virtio-pmem kind=fsdax dax=1 size=33554432"]);
    // Across two sectors, and over the last bytes of the device.
    ask(&mut guest, "pmem write 1 509 kept-by-the-host");
    ask(&mut guest, "pmem write 1 33554428 end.");
    has(&ask(&mut guest, "pmem flush 1"), &["flushed"]);
    has(&ask(&mut guest, "pmem read 1 509 16"), &["kept-by-the-host"]);
    has(&ask(&mut guest, "pmem read 1 33554428 4"), &["end."]);
    has(&refused(&mut guest, "pmem read 1 33554430 4"), &["out of range"]);
    // Two devices of two providers, side by side.
    has(&ask(&mut guest, "attach 0"), &["@attached device=pmem0 provider=nvdimm kind=devdax dax=1"]);
    ask(&mut guest, "remove 1");
    refused(&mut guest, "pmem read 1 509 16");
    refused(&mut guest, "pmem flush 1");
    has(&ask(&mut guest, "attach 1"), &["dax=1"]);
    has(&ask(&mut guest, "pmem read 1 509 16"), &["kept-by-the-host"]);
    ask(&mut guest, "remove 1");
    ask(&mut guest, "remove 0");
    has(&ask(&mut guest, "ledger"), &["@ledger kind=claims count=0", "@ledger kind=dax_devices count=0"]);
    assert_good(&exit(guest));
}

/// Its list of bad blocks is written while the host is waited for.
/// covers: A7 P3
#[test]
fn a_list_of_bad_blocks_is_kept_in_lent_memory() {
    let machine = Machine { smp: 2, pmem: vec![], virtio_pmem: vec![VirtioPmem::new(32 * MIB)], ..shell() };
    let mut guest = start_shell(&machine);
    ask(&mut guest, "badblocks init 0");
    ask(&mut guest, "attach 0");
    ask(&mut guest, "poison 0 8192");
    has(&ask(&mut guest, "badblocks 0"), &["sectors 16..24", "8 sectors are lost; kept on the device"]);
    ask(&mut guest, "remove 0");
    has(&ask(&mut guest, "attach 0"), &["@attached"]);
    has(&ask(&mut guest, "badblocks 0"), &["sectors 16..24"]);
    ask(&mut guest, "zero 0 8192 4096 force");
    has(&ask(&mut guest, "badblocks 0"), &["0 sectors are lost"]);
    ask(&mut guest, "remove 0");
    assert_good(&exit(guest));
}

/// A file system on lent memory acknowledges what the host has confirmed, and nothing else. QEMU refuses every flush or none:
/// a host that refuses from some moment on is in `doors::what_is_not_confirmed_is_not_acknowledged` of the package `fs`.
/// covers: A7
#[test]
fn a_file_system_on_lent_memory_asks_the_host_before_it_acknowledges() {
    let machine = Machine { smp: 2, pmem: vec![], virtio_pmem: vec![VirtioPmem::new(32 * MIB)], ..shell() };
    let mut guest = start_shell(&machine);
    for line in ["attach 0", "mkfs 0", "mount 0", "write 0 /a 0 confirmed", "touch 0 /a", "fsync 0 /a"] {
        ask(&mut guest, line);
    }
    ask(&mut guest, "remove 0");
    for line in ["attach 0", "fsck 0", "mount 0"] {
        ask(&mut guest, line);
    }
    // The task's store was to the bytes before the last one.
    assert_eq!(ask(&mut guest, "cat 0 /a 8 1"), "d");
    ask(&mut guest, "umount 0");
    ask(&mut guest, "remove 0");
    assert_good(&exit(guest));
    // A host that refuses every flush: already making the file system fails.
    let lent = VirtioPmem { size_bytes: 4 * MIB, can_flush: false };
    let mut guest = start_shell(&Machine { smp: 1, pmem: vec![], virtio_pmem: vec![lent], ..shell() });
    ask(&mut guest, "attach 0");
    has(&refused(&mut guest, "mkfs 0"), &["what was written may not last"]);
    refused(&mut guest, "mount 0");
    ask(&mut guest, "remove 0");
    assert_good(&exit(guest));
}

/// QEMU cannot flush memory that is no file, and answers each request with an error.
#[test]
fn a_flush_that_fails_is_an_error_of_the_write_and_does_not_go_away() {
    let lent = VirtioPmem { size_bytes: 4 * MIB, can_flush: false };
    let mut guest = start_shell(&Machine { smp: 1, pmem: vec![], virtio_pmem: vec![lent], ..shell() });
    ask(&mut guest, "attach 0");
    let lost = "what was written may not last: the device could not flush (code 1)";
    has(&refused(&mut guest, "pmem write 0 0 hello"), &[lost]);
    has(&refused(&mut guest, "pmem flush 0"), &[lost]);
    // It is there all the same, for as long as the power is.
    has(&ask(&mut guest, "pmem read 0 0 5"), &["hello"]);
    ask(&mut guest, "remove 0");
    ask(&mut guest, "attach 0");
    ask(&mut guest, "remove 0");
    assert_good(&exit(guest));
}

/// covers: A1, A2, A3, A7, R11
#[test]
fn where_the_cache_aliases_both_kinds_come_up_without_dax() {
    let machine = Machine {
        smp: 1,
        pmem: vec![Nvdimm::temporary(64 * MIB)],
        virtio_pmem: vec![VirtioPmem::new(32 * MIB)],
        append: vec!["dax.aliasing=1".into()],
        ..shell()
    };
    let mut guest = start_shell(&machine);
    for (at, provider) in [(0, "nvdimm"), (1, "virtio-pmem")] {
        let answer = ask(&mut guest, &format!("attach {at} fsdax"));
        has(&answer, &["comes up without DAX: not supported: the data cache of this CPU aliases"]);
        has(&answer, &[&format!("provider={provider} kind=fsdax dax=0")]);
        ask(&mut guest, &format!("pmem write {at} 4096 by-sectors"));
        has(&ask(&mut guest, &format!("pmem read {at} 4096 10")), &["by-sectors"]);
        has(&ask(&mut guest, &format!("remove {at}")), &[]);
    }
    // Device-dax never touches user data through an alias of the kernel's.
    for at in [0, 1] {
        has(&ask(&mut guest, &format!("attach {at} devdax")), &["kind=devdax dax=1"]);
        ask(&mut guest, &format!("remove {at}"));
    }
    assert_good(&exit(guest));
}
