//! The shell's commands to explore with, in one session: what they say is what was done.

use crate::support::{ask, assert_good, exit, has, refused, shell, start_shell};
use boot::backing::Nvdimm;
use boot::guest::Guest;
use boot::machine::Machine;
use boot::size::MIB;

/// covers: T1
#[test]
fn a_session_of_one_who_explores() {
    let mut session = start_shell(&Machine { smp: 2, pmem: vec![Nvdimm::temporary(64 * MIB); 2], ..shell() });
    let guest = &mut session;
    ask(guest, "attach 0");
    has(&ask(guest, "task new alpha"), &["task 2: alpha", "@user_task id=2 act=new name=alpha"]);
    let mapped = ask(guest, "task map alpha 0 pages=3 leaf=4k write");
    has(&mapped, &["pages 0 to 2 of pmem0 at 0x4000000000..0x4000003000, rw-, with leaves of 4KiB"]);
    // The second device begins where the first one ends.
    ask(guest, "attach 1");
    let line = refused(guest, "task map alpha 1 leaf=1g");
    has(&line, &["pmem1 begins at 0x", "it is mapped with leaves of", "at most, not of 1GiB"]);
    ask(guest, "remove 1");
    has(&ask(guest, "task write alpha 0x4000000000 0x1234"), &["alpha writes 0x1234 at 0x4000000000"]);
    has(&ask(guest, "task read alpha 0x4000000000 cpu=1"), &["alpha reads 0x1234", "on CPU 1", "a leaf of 4k"]);
    let walked = ask(guest, "walk alpha 0x4000000000");
    has(&walked, &["level 4 (PML4E)", "level 3 (PDPTE)", "level 2 (PDE)", "level 1 (PTE): entry 0 of the table"]);
    has(
        &walked,
        &["present, writable, user, accessed, dirty, no execute (XD)", "kind=4k pfn=0x100000", "page 0 of pmem0"],
    );
    has(&ask(guest, "walk alpha 0x4000002000"), &["not present", "reaches nothing yet", "maps pmem0, rw-"]);
    has(&ask(guest, "walk alpha 0x5000000000"), &["nothing is mapped there: an access is SIGSEGV"]);
    has(&ask(guest, "walk 0xffff800000000000"), &["in the kernel's own table", "supervisor"]);
    has(
        &ask(guest, "task pin alpha 0x4000001000 2 cpu=1"),
        &["pin 1: 2 pages at 0x4000001000, pinned by alpha on CPU 1"],
    );
    has(
        &ask(guest, "page 0x100001"),
        &["page 1 of pmem0", "2 references: 1 mapping leaf reference and 1 pin", "refs=2 pins=1"],
    );
    has(&ask(guest, "page 0x100000"), &["1 reference: 1 mapping leaf reference and 0 pins"]);
    has(&ask(guest, "page 0x100007"), &["no metadata: nobody maps the page or has it pinned"]);
    let who = ask(guest, "who 0x100001");
    has(&who, &["page 1 of pmem0 as device-dax", "mapped at 0x4000001000 of alpha (space 2), by a leaf of 4KiB"]);
    has(&who, &["pinned by alpha", "kernel/src/shell/explore/held.rs", "1 mapping, 1 pin holder, 0 registrations"]);
    has(
        &ask(guest, "rmap pmem0"),
        &["pages 0 to 2 at 0x4000000000..0x4000003000 of alpha (space 2)", "1 mapping of pmem0"],
    );
    has(&ask(guest, "space"), &["space 2: alpha, 1 mapping", "@space id=2 name=alpha vmas=1 tasks=2"]);
    has(&ask(guest, "space alpha"), &["3 leaves of 4KiB, 0 of 2MiB", "rights=rw- first=0"]);
    has(&ask(guest, "tlb"), &["@tlb cpu=0 ", "@tlb cpu=1 space=2 lazy=1"]);
    the_device_goes(guest);
    a_file_system_is_an_owner(guest);
    assert_good(&exit(session));
}

/// A plain pin is in the way; a registration is taken back.
fn the_device_goes(guest: &mut Guest) {
    let line = refused(guest, "remove 0");
    has(
        &line,
        &["pin 1 of alpha: 2 pages at 0x4000001000 is held", "task unpin 1 first, or remove 0 &, or remove 0 force"],
    );
    has(&ask(guest, "task unpin 1"), &["given back"]);
    has(&ask(guest, "task pin alpha 0x4000001000 2 longterm"), &["pin 2: 2 pages"]);
    has(&ask(guest, "who 0x100002"), &["registered at 0x4000002000 of alpha (space 2): registration 1, live"]);
    has(&ask(guest, "remove 0"), &["state=revoked device=pmem0", "step=release"]);
    has(&refused(guest, "task read alpha 0x4000000000"), &["alpha cannot read at 0x4000000000", "its device is gone"]);
    has(&ask(guest, "space alpha"), &["pmem0, which has left"]);
    has(&refused(guest, "rmap 0"), &["pmem0 is not attached"]);
    has(&ask(guest, "task end alpha"), &["task 2 has ended, 1 pin given back"]);
    has(&ask(guest, "task list"), &["there is no task"]);
    has(&ask(guest, "ledger"), &["kind=address_spaces count=0", "kind=pins count=0", "kind=table_pages count=0"]);
}

/// Blocks of a file system are its own, and not the device's as a file.
fn a_file_system_is_an_owner(guest: &mut Guest) {
    for line in ["attach 0 fsdax", "mkfs 0 force", "mount 0"] {
        ask(guest, line);
    }
    has(&ask(guest, "who 0x100000"), &["metadata of the file system on pmem0", "0 mappings, 0 pin holders"]);
    has(&ask(guest, "task new beta"), &["act=new name=beta"]);
    has(&refused(guest, "task map beta 0"), &["attached for a file system: there is no device-dax file"]);
    ask(guest, "task end beta");
    ask(guest, "umount 0");
}
