//! Media that Linux made, in a guest: its namespaces are devices, and nothing is written to them unasked.

use crate::support::{ask, assert_good, command, exit, has, machine, refused, run, shell, start_shell, tail};
use boot::backing::Nvdimm;
use boot::cli::Mode;
use boot::guest::Guest;
use boot::machine::Machine;
use boot::medium;
use boot::outcome::Status;
use boot::records;
use std::path::Path;

#[path = "../media/unpack.rs"]
mod unpack;
use unpack::unpack;

fn over(image: &Path, machine: Machine) -> Machine {
    let nvdimm = Nvdimm::kept(image, None, 0).unwrap_or_else(|error| panic!("{error:#}"));
    Machine { smp: 2, pmem: vec![nvdimm], ..machine }
}

/// What the host lists of the file, as JSON.
fn listed(image: &Path) -> serde_json::Value {
    let mut out = Vec::new();
    medium::job(image, &mut out).expect("it can be looked at");
    serde_json::from_slice(&out).expect("JSON")
}

/// What the guest's `namespaces` says, in the same form.
fn listed_in(guest: &mut Guest) -> serde_json::Value {
    let answer = command(guest, "namespaces");
    let object = |record: records::Record| {
        // A space is an escape there.
        let value = |text: &str| {
            text.parse::<u64>().map_or_else(|_| text.replace("\\x20", " ").into(), serde_json::Value::from)
        };
        let text = record.to_string();
        let fields = text.split(' ').filter_map(|word| word.split_once('='));
        fields.map(|(key, text)| (key.to_string(), value(text))).collect::<serde_json::Map<_, _>>()
    };
    records::of_topic(&answer, "namespace").map(object).collect::<Vec<_>>().into()
}

/// What the shell runs on devices that are not attached and would write over, without the word that lets it.
const FREE: [&str; 4] = ["badblocks init 0", "demo", "test mm.*", "fuzz 1 1"];
/// And what it runs on an attached one.
const ATTACHED: [&str; 4] = ["mkfs 0", "pmem write 0 0x100000 hello", "pmem write 0 0 hello", "zero 0 0 4096"];

/// covers: M1 M2 M3
#[test]
fn images_of_linux_are_listed_and_left_as_they_are() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (name, size, kind, inside) in [
        ("fsdax", 266_338_304, "fsdax", "ext4 at 0x400"),
        ("xfs", 526_385_152, "fsdax", "XFS at 0x0"),
        ("devdax2m", 132_120_576, "devdax", "a labelled namespace (devdax) at 0x0"),
        ("sector", 0, "", "a namespace in sector mode at 0x1000"),
    ] {
        let image = unpack(name, directory.path());
        let before = std::fs::read(&image).expect("read");
        let mut guest = start_shell(&over(&image, shell()));
        assert_eq!(listed_in(&mut guest), listed(&image), "{name}");
        has(&ask(&mut guest, "namespaces"), &[inside]);
        // Sector mode is left alone, with force or without.
        for line in if kind.is_empty() { &FREE[1..] } else { &FREE[..] } {
            has(&refused(&mut guest, line), &["pmem0", "holds", "(force writes over it)"]);
        }
        if kind.is_empty() {
            has(&refused(&mut guest, "attach 0"), &["sector mode", "left alone"]);
        } else {
            // What a name says and what the mode is must agree.
            let other = if kind == "fsdax" { "devdax" } else { "fsdax" };
            has(&refused(&mut guest, &format!("attach 0 {other}")), &["is a namespace for"]);
            let attached = ask(&mut guest, "attach 0");
            has(&attached, &[&format!("kind={kind} dax=1 size={size}"), "@media device=pmem0 found="]);
            for line in if kind == "fsdax" { &ATTACHED[..] } else { &ATTACHED[1..] } {
                has(&refused(&mut guest, line), &["pmem0 holds", inside, "(force writes over it)"]);
            }
            for line in ["mount 0", "fsck 0 --repair", "demo", "badblocks init 0", "badblocks drop 0"] {
                refused(&mut guest, line);
            }
        }
        assert_good(&exit(guest));
        assert!(std::fs::read(&image).expect("read") == before, "{name} was changed");
    }
}

/// Each namespace is a device with its own mode; nothing but what may be written is.
/// covers: M1 M2 M3
#[test]
fn several_namespaces_are_as_many_devices() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (name, devdax, sectors, raw) in
        [("several11", "pmem0.1", "pmem0.2s", "pmem0.3"), ("several12", "pmem0.2", "pmem0.3s", "pmem0.5")]
    {
        let image = unpack(name, directory.path());
        let before = std::fs::read(&image).expect("read");
        let mut guest = start_shell(&over(&image, shell()));
        assert_eq!(listed_in(&mut guest), listed(&image), "{name}");
        // What the last of three writes has put into these bytes, and what nobody has written.
        let text = ask(&mut guest, &format!("pmem read {sectors} 0x30000 33"));
        has(&text, &["/dev/pmem0.3s sector 48 turn 2\\n/d"]);
        has(&ask(&mut guest, &format!("pmem read {sectors} 0x800000 4")), &["\\x00\\x00\\x00\\x00"]);
        has(&refused(&mut guest, &format!("pmem read {sectors} 0x10000000 4")), &["out of range: its sectors have"]);
        for line in ["pmem write", "zero", "attach", "badblocks init"] {
            let words = match line {
                "pmem write" => " 0 hello force",
                "zero" => " 0 512 force",
                "badblocks init" => " force",
                _ => "",
            };
            let said = refused(&mut guest, &format!("{line} {sectors}{words}"));
            has(&said, &["sector mode", "a write would need the log", "left alone"]);
        }
        ask(&mut guest, "attach pmem0");
        has(&refused(&mut guest, "mkfs pmem0"), &["pmem0 holds ext4 at 0x400", "(force writes over it)"]);
        has(&ask(&mut guest, &format!("attach {devdax}")), &["kind=devdax dax=1 size=48234496"]);
        has(&refused(&mut guest, &format!("badblocks init {raw}")), &["(raw)", "(force writes over it)"]);
        assert_good(&exit(guest));
        assert!(std::fs::read(&image).expect("read") == before, "{name} was changed");
    }
}

/// The demonstration, the tests and the benchmarks do not begin.
/// covers: M1
#[test]
fn whatever_writes_over_a_whole_device_does_not_begin() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let image = unpack("devdax2m", directory.path());
    // Without its labels the info block is what is found.
    let bare = directory.path().join("bare.img");
    std::fs::copy(&image, &bare).expect("copied");
    let file = std::fs::File::options().write(true).open(&bare).expect("opened");
    let len = file.metadata().expect("there").len();
    file.set_len(len - boot::backing::LABEL_BYTES).and_then(|()| file.set_len(len)).expect("cut and made longer");
    for (image, mode, words) in [
        (&image, Mode::Demo, "a labelled namespace (devdax)"),
        (&bare, Mode::Test, "a devdax namespace at 0x1000"),
        (&bare, Mode::Bench, "a devdax namespace at 0x1000"),
    ] {
        let before = std::fs::read(image).expect("read");
        let outcome = run(&over(image, Machine { mode, ..machine() }));
        let Status::Refused(line) = &outcome.status else { panic!("{}", tail(&outcome)) };
        assert!(line.contains("pmem0 holds") && line.contains(words), "{line}");
        assert!(std::fs::read(image).expect("read") == before, "{mode:?} has written");
    }
}

/// The word lets `mkfs` go on: what is written lies in the namespace's data, and Linux's own structures stay.
/// covers: M1 M3
#[test]
fn force_writes_into_the_namespace_and_nowhere_else() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let image = unpack("fsdax", directory.path());
    let (before, listing) = (std::fs::read(&image).expect("read"), listed(&image));
    let mut guest = start_shell(&over(&image, shell()));
    ask(&mut guest, "attach 0");
    has(&refused(&mut guest, "mkfs 0 label"), &["pmem0 holds ext4 at 0x400"]);
    has(&ask(&mut guest, "mkfs 0 label force"), &["65024 blocks of 4096 bytes"]);
    for line in ["mount 0", "write 0 /a 0 hello", "umount 0"] {
        ask(&mut guest, line);
    }
    // It is ours by now, and that is somebody's as well.
    has(&refused(&mut guest, "mkfs 0"), &["pmem0 holds a file system of Unplug at 0x0"]);
    has(&ask(&mut guest, "fsck 0"), &["problems=0 files=1"]);
    assert_good(&exit(guest));
    let after = std::fs::read(&image).expect("read");
    let (data, end) = (2 << 20, 256 << 20);
    assert!(after[..data] == before[..data] && after[end..] == before[end..], "outside the data");
    assert!(after[data..end] != before[data..end]);
    assert_eq!(listed(&image), listing);
}

/// The same image behind another NVDIMM than the one that its labels were made for: they give nothing out.
/// covers: M2
#[test]
fn labels_that_were_made_for_another_nvdimm_leave_the_range_alone() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let image = unpack("fsdax", directory.path());
    let before = std::fs::read(&image).expect("read");
    let second = Nvdimm::kept(&image, None, 0).unwrap_or_else(|error| panic!("{error:#}"));
    let mut guest = start_shell(&Machine { smp: 2, pmem: vec![Nvdimm::temporary(64 << 20), second], ..shell() });
    let why = "it names the interleave set 0x2468ac00123456, and this is 0x2468ae00123457; it is left alone";
    has(&refused(&mut guest, "attach 1"), &[why]);
    has(&refused(&mut guest, "badblocks init 1 force"), &["left alone"]);
    ask(&mut guest, "attach 0");
    let outcome = exit(guest);
    assert_good(&outcome);
    let told = outcome.console.iter().filter(|line| line.contains(why)).count();
    assert_eq!(told, 3, "at boot, and each time that it was asked for");
    assert!(std::fs::read(&image).expect("read") == before, "it was changed");
}

/// Labels are not looked at where the boot option says so: the range is one device, as without them.
#[test]
fn force_among_the_boot_options_takes_the_whole_range() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let image = unpack("sector", directory.path());
    let mut guest = start_shell(&over(&image, Machine { force: true, ..shell() }));
    has(&ask(&mut guest, "attach 0 fsdax"), &["size=134217728", "a namespace in sector mode at 0x1000"]);
    ask(&mut guest, "mkfs 0");
    assert_good(&exit(guest));
}
