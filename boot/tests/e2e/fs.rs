//! File systems, driven from the shell: every command, bad input, what one boot wrote read by the next and by the host,
//! and the device removed from under one.

use crate::support::{ask, assert_good, command, exit, has, refused, shell, start_shell};
use boot::backing::{LARGEST_FILE_BYTES, Nvdimm};
use boot::fsimage;
use boot::guest::Guest;
use boot::machine::Machine;
use boot::records;
use boot::size::{GIB, MIB};
use std::path::Path;

fn kept(file: &Path) -> Machine {
    let nvdimm = Nvdimm::kept(file, None, 64 * MIB).unwrap_or_else(|error| panic!("{error:#}"));
    Machine { smp: 2, pmem: vec![nvdimm], ..shell() }
}

/// What the host's own checker says of an image: 0 where nothing is wrong.
fn check_image(image: &Path) -> u8 {
    let words = ["boot".as_ref(), "fs".as_ref(), "check".as_ref(), image.as_os_str()];
    fsimage::job(words.map(ToOwned::to_owned)).expect("its own words").expect("it can be opened")
}

/// Free blocks.
fn free(guest: &mut Guest) -> u64 {
    let answer = command(guest, "df 0");
    records::of_topic(&answer, "df").find_map(|df| df.number("free")).unwrap_or_else(|| panic!("{answer:?}"))
}

/// Makes a file system in a fresh boot, and changes it by every command there is.
fn change_all(guest: &mut Guest) {
    has(&ask(guest, "attach 0 fsdax"), &["@attached device=pmem0 provider=nvdimm kind=fsdax dax=1"]);
    has(&ask(guest, "mkfs 0 kept"), &["blocks of 4096 bytes"]);
    has(&ask(guest, "mount 0"), &["@mounted fs=pmem0"]);
    ask(guest, "mkdir 0 /d");
    ask(guest, "mkdir 0 /d/e");
    has(&ask(guest, "write 0 /d/a 0 hello there"), &["11 bytes written"]);
    has(&ask(guest, "write 0 /d/a 6 world"), &["5 bytes written"]);
    has(&ask(guest, "cat 0 /d/a"), &["hello world"]);
    has(&ask(guest, "cat 0 /d/a 6 3"), &["wor"]);
    ask(guest, "ln 0 /d/a /b");
    ask(guest, "mv 0 /d/a /d/e/c");
    has(&ask(guest, "stat 0 /b"), &["kind=file dax=1 size=11 blocks=1 nlink=2"]);
    has(&ask(guest, "ls 0 /d"), &["dir", " e"]);
    // Longer, mapped and stored to by a task, synced; a hole in the middle; cut.
    let before = free(guest);
    ask(guest, "truncate 0 /b 0x8000");
    has(&ask(guest, "touch 0 /b"), &["pages=8 leaves_4k=8 leaves_2m=0"]);
    // The task's end has written back already what it had stored.
    has(&ask(guest, "fsync 0 /b"), &["ranges=0 fenced=0"]);
    assert_eq!(free(guest), before - 7, "blocks of the holes that were filled");
    ask(guest, "punch 0 /b 0x2000 0x2000");
    assert_eq!(free(guest), before - 5);
    ask(guest, "truncate 0 /b 0x5000");
    assert_eq!(free(guest), before - 2);
    has(&ask(guest, "stat 0 /d/e/c"), &["size=20480 blocks=3 nlink=2"]);
    has(&ask(guest, "cat 0 /b 0x1000 1"), &["\\x01"]);
    // A file can hold what a console has said, and is not the kernel that says so.
    for (text, shown) in [
        ("error: boom", "\\x65rror: boom"),
        ("unplug> x", "\\x75nplug> x"),
        ("@attached size=1", "\\x40attached size=1"),
        ("not ok 1 a", "\\x6eot ok 1 a"),
        ("KTAP version 1", "\\x4bTAP version 1"),
        ("  1..3", "  \\x31..3"),
        ("an error: no", "an error: no"),
    ] {
        has(&ask(guest, &format!("write 0 /said 0 '{text}'")), &["bytes written"]);
        assert_eq!(ask(guest, "cat 0 /said"), shown);
        ask(guest, "rm 0 /said");
    }
    has(&ask(guest, "cat 0 /b 0x2000 1"), &["\\x00"]);
    // A large file is mapped by large leaves.
    ask(guest, "write 0 /large 0 x");
    ask(guest, "truncate 0 /large 0x400000");
    has(&ask(guest, "touch 0 /large"), &["pages=1024", "leaves_2m=1"]);
    ask(guest, "rm 0 /large");
    ask(guest, "rm 0 /d/e/c");
    ask(guest, "rmdir 0 /d/e");
    has(&ask(guest, "stat 0 /b"), &["nlink=1"]);
    // The directory that is gone had a block, too.
    assert_eq!(free(guest), before - 1);
}

/// What makes no sense is one line that says so, and the next command works.
fn say_nonsense(guest: &mut Guest) {
    for (line, words) in [
        ("mount", "expected: mount N"),
        ("mount 0", "device 0 is mounted (umount 0 first)"),
        ("mount 7", "there is no NVDIMM 7 (there are 1)"),
        ("mkfs 0", "umount 0 first"),
        ("fsck 0", "umount 0 first"),
        ("cat 0", "expected: cat N PATH [OFFSET [LEN]]"),
        ("cat 0 /nothing", "/nothing: no such file or directory"),
        ("cat 0 /d", "/d: is a directory"),
        ("cat 0 /b many", "\"many\" is not a number"),
        ("ls 0 /b", "/b: not a directory"),
        ("write 0 /b", "expected: write N PATH OFFSET TEXT"),
        ("write 0 /b 0xffffffffffffff00 x", "/b: past the largest file offset"),
        ("truncate 0 /b 0xffffffffffffffff", "/b: past the largest file offset"),
        ("punch 0 /b 0 0", "/b: invalid argument"),
        ("mkdir 0 /d", "/d: the name is taken"),
        ("rmdir 0 /b", "/b: not a directory"),
        ("rmdir 0 /", "error: /: "),
        ("rmdir 0 /nothing", "/nothing: no such file or directory"),
        ("mv 0 /d /d/inside", "/d: invalid argument"),
        ("ln 0 /d /other", "/d: is a directory"),
        ("rm 0 /d", "/d: is a directory"),
        ("thaw 0", "device 0 is not frozen (try freeze 0)"),
        ("umount 3", "nothing is mounted from device 3 (try mount 3)"),
        ("attach 0", "attached"),
    ] {
        has(&refused(guest, line), &[words]);
    }
    ask(guest, "mkdir 0 /d/e");
    has(&refused(guest, "rmdir 0 /d"), &["/d: the directory is not empty"]);
    ask(guest, "rmdir 0 /d/e");
    has(&refused(guest, &format!("mkdir 0 /{}", "n".repeat(256))), &["longer than 255 bytes"]);
    has(&refused(guest, "rm 0 /d/."), &["bad name"]);
    has(&refused(guest, "cat 0 /b/"), &["/b/: not a directory"]);
    // A line that does not fit is no command: not the one that its beginning would be, either.
    has(
        &refused(guest, &format!("rm 0 /b{}", " ".repeat(600))),
        &["a line of more than 512 characters; nothing was done"],
    );
    // A map that cannot be filled ends the task that touches it, and takes no longer than that.
    ask(guest, "write 0 /hole 0 x");
    ask(guest, "truncate 0 /hole 0x80000000000");
    has(&refused(guest, "touch 0 /hole"), &["the task ended by"]);
    // Nothing is free now: what of a write has a place is written, and a hole can be made.
    assert_eq!(free(guest), 0);
    has(&ask(guest, "write 0 /b 0x4ffa twelve bytes"), &["6 of 12 bytes written"]);
    has(&refused(guest, "write 0 /b 0x5000 twelve bytes"), &["/b: no space left"]);
    ask(guest, "punch 0 /hole 0x1000 0x1000");
    has(&ask(guest, "write 0 /b 0x5000 twelve bytes"), &["12 bytes written"]);
    ask(guest, "truncate 0 /b 0x5000");
    ask(guest, "rm 0 /hole");
    // While it is frozen, reading goes on and changes are refused.
    ask(guest, "freeze 0");
    has(&ask(guest, "mounts"), &["0: pmem0: frozen (kernel 0, user 1)"]);
    // The task has stored eight bytes over "hello wo".
    has(&ask(guest, "cat 0 /b 8 3"), &["rld"]);
    for line in ["write 0 /b 0 x", "mkdir 0 /x", "rm 0 /b", "truncate 0 /b 0", "touch 0 /b"] {
        has(&refused(guest, line), &["frozen (thaw 0 first)"]);
    }
    has(&refused(guest, "umount 0"), &["busy"]);
    ask(guest, "thaw 0");
    has(&ask(guest, "mounts"), &["0: pmem0: in use"]);
}

#[test]
fn every_command_and_bad_input_and_contents_that_outlive_the_boot() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let image = directory.path().join("image");
    let mut first = start_shell(&kept(&image));
    change_all(&mut first);
    say_nonsense(&mut first);
    ask(&mut first, "write 0 /b 0 until then");
    has(&ask(&mut first, "umount 0"), &["@unmounted device=0"]);
    has(&ask(&mut first, "fsck 0"), &["problems=0 files=1 directories=2"]);
    assert_good(&exit(first));
    assert_eq!(check_image(&image), 0);

    let mut second = start_shell(&kept(&image));
    ask(&mut second, "attach 0 fsdax");
    ask(&mut second, "mount 0");
    has(&ask(&mut second, "cat 0 /b 0 10"), &["until then"]);
    has(&ask(&mut second, "ls 0 /"), &["file", " b", "dir", " d"]);
    // This time nobody unmounts.
    ask(&mut second, "write 0 /b 0 and again");
    assert_good(&exit(second));
    assert_eq!(check_image(&image), 0);
}

/// The device leaves while the file system is mounted: calls fail and say why, the notification is on the console, and
/// it comes back with all that was acknowledged.
// covers: N5 N11 N15 R9
#[test]
fn the_device_is_removed_from_under_it() {
    let mut guest = start_shell(&Machine { smp: 2, pmem: vec![Nvdimm::temporary(64 * MIB)], ..shell() });
    for line in ["attach 0 fsdax", "mkfs 0", "mount 0", "write 0 /a 0 acknowledged", "freeze 0"] {
        ask(&mut guest, line);
    }
    // What a user has frozen does not stop a removal, and is lifted by it.
    let removed = ask(&mut guest, "remove 0");
    has(&removed, &["@notify fs=pmem0 pre_remove=1 gone=0 frozen=1", "errors=0", "shut down: forced unmount"]);
    for line in ["cat 0 /a", "write 0 /a 0 late", "df 0", "umount 0", "thaw 0"] {
        has(&refused(&mut guest, line), &["nothing is mounted from device 0"]);
    }
    has(&refused(&mut guest, "mount 0"), &["no device is attached"]);
    ask(&mut guest, "attach 0 fsdax");
    has(&ask(&mut guest, "fsck 0"), &["problems=0"]);
    ask(&mut guest, "mount 0");
    has(&ask(&mut guest, "cat 0 /a"), &["acknowledged"]);
    // As device-dax it has no file system.
    ask(&mut guest, "umount 0");
    ask(&mut guest, "remove 0");
    ask(&mut guest, "attach 0");
    has(&refused(&mut guest, "mount 0"), &["attach 0 fsdax"]);
    ask(&mut guest, "remove 0");
    has(&ask(&mut guest, "ledger"), &["kind=mappings count=0", "kind=holders count=0", "kind=pins count=0"]);
    assert_good(&exit(guest));
}

/// A file whose size was given before it is filled lies in one gibibyte, which the next task maps by one leaf.
#[test]
fn a_preallocated_file_is_mapped_by_one_leaf_of_a_gibibyte() {
    // In memory, so that a gibibyte of zeroes does not go to the host's disk.
    let nvdimm = Nvdimm::temporary(LARGEST_FILE_BYTES + GIB);
    let mut guest = start_shell(&Machine { smp: 2, pmem: vec![nvdimm], ..shell() });
    for line in ["attach 0 fsdax", "mkfs 0", "mount 0", "write 0 /pool 0 x"] {
        ask(&mut guest, line);
    }
    ask(&mut guest, "truncate 0 /pool 0");
    ask(&mut guest, "truncate 0 /pool 0x40000000");
    has(&ask(&mut guest, "touch 0 /pool"), &["leaves_4k=0 leaves_2m=512 leaves_1g=0"]);
    has(&ask(&mut guest, "touch 0 /pool"), &["leaves_4k=0 leaves_2m=0 leaves_1g=1"]);
    has(&ask(&mut guest, "cat 0 /pool 0x3ffff000 2"), &["\\xff\\xff"]);
    // Cut to a half, nothing of the leaf is left, and the rest is there.
    ask(&mut guest, "truncate 0 /pool 0x20000000");
    has(&ask(&mut guest, "touch 0 /pool"), &["leaves_4k=0 leaves_2m=256 leaves_1g=0"]);
    ask(&mut guest, "umount 0");
    has(&ask(&mut guest, "fsck 0"), &["problems=0 files=1"]);
    ask(&mut guest, "remove 0");
    has(&ask(&mut guest, "ledger"), &["kind=mappings count=0", "kind=folios count=0"]);
    assert_good(&exit(guest));
}
