//! On images that Linux made: they are listed as `ndctl` lists them, and nothing writes to them unasked.

use super::*;
use crate::cli::{Cli, Mode};
use clap::Parser;
use media::btt::Table;
use media::info::Parent;
use std::path::PathBuf;

#[path = "../../tests/media/unpack.rs"]
mod unpack;
use unpack::unpack;

const IMAGES: [&str; 6] = ["fsdax", "xfs", "sector", "devdax2m", "several11", "several12"];

fn facts(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/media").join(name)).unwrap()
}

/// What the job `media` prints, and its status.
fn listed(path: &Path) -> (u8, String) {
    let mut out = Vec::new();
    let status = job(path, &mut out).unwrap();
    (status, String::from_utf8(out).unwrap())
}

/// The parts of a file that are no holes, and their bytes: small, where the whole is not.
fn bytes_of(path: &Path) -> Vec<(u64, Vec<u8>)> {
    let file = File::open(path).unwrap();
    let (len, mut at, mut parts) = (file.metadata().unwrap().len(), 0, vec![]);
    while let Ok(data) = rustix::fs::seek(&file, SeekFrom::Data(at)) {
        at = rustix::fs::seek(&file, SeekFrom::Hole(data)).unwrap();
        let mut bytes = vec![0; (at - data) as usize];
        file.read_exact_at(&mut bytes, data).unwrap();
        parts.push((data, bytes));
    }
    parts.push((len, vec![]));
    parts
}

// covers: M2 M3 M6
#[test]
fn images_of_linux_are_listed_as_ndctl_lists_them() {
    let dir = tempfile::tempdir().unwrap();
    for name in IMAGES {
        let image = unpack(name, dir.path());
        assert_eq!(listed(&image), (0, facts(&format!("{name}.json"))), "{name}");
    }
}

/// What the guest wrote to the sectors of `several11` and `several12`, three times over, by the name of the device there.
fn written(device: &str, at: usize) -> Vec<u8> {
    let turn = (1..=3).rev().find(|turn| (0..120).any(|nth| (nth * 37 * turn + turn) % 401 == at));
    let text = |turn| format!("{device} sector {at} turn {turn}\n").repeat(200).into_bytes();
    turn.map_or(vec![0; 4096], |turn| text(turn)[..4096].to_vec())
}

/// Every byte of the sectors is what Linux has shown of them (its sums are in the README beside the images).
// covers: M3
#[test]
fn the_sectors_of_linux_are_read_by_their_table() {
    let dir = tempfile::tempdir().unwrap();
    for (name, id, device, len) in [
        ("sector", 0, "", 133_005_312),
        ("several11", 2, "/dev/pmem0.3s", 29_459_968),
        ("several12", 3, "/dev/pmem0.3s", 33_134_592),
        ("several12", 4, "/dev/pmem0.4s", 15_683_584),
    ] {
        let file = open(&unpack(name, dir.path())).unwrap();
        let listing = look(&file).unwrap().listing;
        let namespace = &listing.namespaces[id];
        let backing = Backing { file: &file, len_bytes: file.metadata().unwrap().len() };
        let part = Part::new(&backing, namespace.start, namespace.len_bytes).unwrap();
        let table = Table::open(&part, Parent::Label(namespace.raw_uuid().unwrap())).unwrap();
        assert_eq!((table.len_bytes(), namespace.size()), (len, len), "{name}.{id}");
        for at in 0..len as usize / 4096 {
            let mut bytes = vec![0; 4096];
            table.read(&part, at as u64 * 4096, &mut bytes).unwrap();
            let filled = if (3..7).contains(&at) { b'S' } else { 0 };
            let want = if device.is_empty() { vec![filled; 4096] } else { written(device, at) };
            assert!(bytes == want, "{name}.{id}, at {at} times 4096");
        }
    }
}

// covers: M1
#[test]
fn what_lies_in_an_image_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for (name, words) in [
        ("fsdax", "a labelled namespace (fsdax) at 0x0, an fsdax namespace at 0x1000, ext4 at 0x200400"),
        ("xfs", "a labelled namespace (fsdax) at 0x0, an fsdax namespace at 0x1000, XFS at 0xa00000"),
        ("sector", "a labelled namespace (sector) at 0x0, a namespace in sector mode at 0x1000"),
        ("devdax2m", "a labelled namespace (devdax) at 0x0, a devdax namespace at 0x1000"),
        (
            "several11",
            "a labelled namespace (fsdax) at 0x0, an fsdax namespace at 0x1000, ext4 at 0x200400, a labelled",
        ),
        (
            "several12",
            "a labelled namespace (fsdax) at 0x0, an fsdax namespace at 0x1000, ext4 at 0x200400, a labelled",
        ),
    ] {
        let found = look(&open(&unpack(name, dir.path())).unwrap()).unwrap().findings.to_string();
        assert!(found.starts_with(words), "{name}: {found}");
    }
}

/// Everything that a command line can start and that writes, but for `--force`.
fn writers(image: &Path) -> Vec<(&'static str, Result<u8>)> {
    let path = image.to_str().unwrap();
    let run = |args: &[&str]| {
        let cli = Cli::parse_from(std::iter::once("run-qemu.sh").chain(args.iter().copied()));
        crate::run::machine(&cli, &cli.options).map(|_| 0)
    };
    let mut all = vec![
        ("demo", run(&["--pmem-file", path])),
        ("test", run(&["--pmem-file", path, "--mode", "test"])),
        ("bench", run(&["bench", "--pmem-file", path])),
        ("demo on a module", run(&["--dimm-file", path])),
        ("test on a module", run(&["--dimm-file", path, "--mode", "test"])),
        ("bench beside a module", run(&["bench", "--dimm-file", path])),
    ];
    if cfg!(feature = "fs") {
        let other = image.with_extension("other");
        let words = |words: &[&str]| crate::fsimage::job(words.iter().map(Into::into)).unwrap();
        all.push(("fs make", words(&["boot", "fs", "make", path])));
        all.push(("fs make --size", words(&["boot", "fs", "make", path, "--size", "1M"])));
        let log = words(&["boot", "fs", "make", other.to_str().unwrap(), "--size", "1M", "--log", path]);
        all.push(("fs make --log", log));
        assert!(!other.exists(), "a file was made before the refusal");
    }
    all
}

// covers: M1
#[test]
fn nothing_writes_to_an_image_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let ours = dir.path().join("ours.img");
    let unknown = dir.path().join("unknown.img");
    File::create(&ours).and_then(|file| file.set_len(64 * MIB)).unwrap();
    File::options().write(true).open(&ours).and_then(|file| file.write_all_at(b"UPSB", 0)).unwrap();
    // One byte where the probe does not look, in a page of its own.
    let file = File::create(&unknown).unwrap();
    file.set_len(64 * MIB).and_then(|()| file.write_all_at(&[1], 33 * MIB + 77)).unwrap();
    let foreign = IMAGES.iter().map(|name| unpack(name, dir.path()));
    let images: Vec<PathBuf> = foreign.chain([ours, unknown]).collect();
    for image in &images {
        let before = bytes_of(image);
        for (what, done) in writers(image) {
            let line = format!("{:#}", done.expect_err(what));
            assert!(line.contains(" holds ") && line.contains("--force") && !line.contains('\n'), "{what}: {line}");
            assert!(bytes_of(image) == before, "{what} has changed {}", image.display());
        }
        // The shell asks later, and looking changes nothing.
        for option in ["--pmem-file", "--dimm-file"] {
            let cli = Cli::parse_from(["run-qemu.sh", "--mode", "shell", option, image.to_str().unwrap()]);
            assert_eq!(cli.options.mode, Mode::Shell);
            crate::run::machine(&cli, &cli.options).unwrap();
        }
        listed(image);
        assert!(bytes_of(image) == before, "looking has changed {}", image.display());
    }
}

/// Where there are no labels, their place is looked at like every other.
// covers: M1
#[test]
fn what_lies_where_labels_would_be_is_somebodys() {
    let dir = tempfile::tempdir().unwrap();
    let [small, large] = ["small", "large"].map(|name| dir.path().join(name));
    std::fs::write(&small, "somebody's text\n".repeat(3000)).unwrap();
    let file = File::create(&large).unwrap();
    file.set_len(64 * MIB).and_then(|()| file.write_all_at(b"x", 64 * MIB - 77)).unwrap();
    for path in [small, large] {
        let line = refuse(&path).unwrap_err().to_string();
        assert!(line.contains("holds data of an unknown kind"), "{line}");
    }
}

// covers: M1
#[test]
fn force_goes_on_and_a_file_that_was_made_here_needs_none() {
    let dir = tempfile::tempdir().unwrap();
    let image = unpack("devdax2m", dir.path());
    let path = image.to_str().unwrap();
    let machine = |args: &[&str]| {
        let cli = Cli::parse_from(["run-qemu.sh"].iter().chain(args).copied());
        crate::run::machine(&cli, &cli.options).unwrap()
    };
    for (option, size) in [("--pmem-file", "--pmem"), ("--dimm-file", "--dimm")] {
        assert!(machine(&[option, path, "--force"]).boot_options().contains("force=1"));
        let new = dir.path().join(option);
        // Made, and taken again.
        (0..2).for_each(|_| drop(machine(&[option, new.to_str().unwrap(), size, "32M"])));
    }
    if cfg!(feature = "fs") {
        let words = |words: &[&str]| crate::fsimage::job(words.iter().map(Into::into)).unwrap();
        // What cannot be made leaves all as it is, and makes no file.
        let (before, absent) = (bytes_of(&image), dir.path().join("absent"));
        let [no_log, no_image] = [absent.to_str().unwrap(); 2];
        for args in [["--size", "40K"], ["--log", no_log], ["--log", path]] {
            assert!(words(&[&["boot", "fs", "make", path, "--force"][..], &args].concat()).is_err(), "{args:?}");
            assert!(bytes_of(&image) == before, "{args:?}");
        }
        assert!(words(&["boot", "fs", "make", no_image, "--size", "40K"]).is_err() && !absent.exists());
        assert_eq!(words(&["boot", "fs", "make", path, "--force"]).unwrap(), 0);
        assert_eq!(words(&["boot", "fs", "check", path]).unwrap(), 0);
        // The namespace went with its labels: the file system is found in the whole range.
        let contents = look(&open(&image).unwrap()).unwrap();
        assert!(!contents.listing.is_labelled);
        assert!(contents.findings.iter().any(|found| found.what == What::OurFileSystem));
        let empty = dir.path().join("empty");
        File::create(&empty).and_then(|file| file.set_len(2 * MIB)).unwrap();
        assert_eq!(words(&["boot", "fs", "make", empty.to_str().unwrap()]).unwrap(), 0);
    }
}

// covers: M2
#[test]
fn labels_that_are_damaged_are_said_and_leave_everything_alone() {
    let dir = tempfile::tempdir().unwrap();
    let image = unpack("devdax2m", dir.path());
    let file = File::options().write(true).open(&image).unwrap();
    let labels = file.metadata().unwrap().len() - LABEL_BYTES;
    // The current index block: the one before it lists a label that was not written to its end.
    for index in [0, 256] {
        file.write_all_at(&[0xff], labels + index + 30).unwrap();
        let (status, text) = listed(&image);
        assert!(status == 1 && text.contains("\"mode\":\"raw\""), "{index}: {text}");
        let line = refuse(&image).unwrap_err().to_string();
        assert!(line.contains(&format!("damaged namespace labels at {labels:#x}")), "{index}: {line}");
    }
}

#[test]
fn what_is_no_file_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    // Nobody is at its other end, and nobody waits for one.
    let pipe = dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for path in [dir.path(), &dir.path().join("absent"), &pipe] {
        let line = format!("{:#}", job(path, &mut Vec::new()).unwrap_err());
        assert!(line.contains(path.to_str().unwrap()) && !line.contains('\n'), "{line}");
    }
    let tiny = dir.path().join("tiny");
    std::fs::write(&tiny, b"x").unwrap();
    assert!(listed(&tiny).1.contains("\"size\":0"));
}
