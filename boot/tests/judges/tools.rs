//! Programs of others that know what a file system has to do.

use super::{Done, Failed, Place, Trial, pjdfstest};
use boot::paths;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The versions that were tried. They are no dependencies of ours: whoever does not ask for them does not build them.
const FSX: (&str, &str) = ("fsx", "0.3.2");
const PJDFSTEST: (&str, &str) = ("pjdfstest", "0.2.2");
/// Sequences of operations of fsx.
const SEEDS: u64 = 8;

/// What fsx does, by weight; the file system makes holes and fills them.
const FSX_TOML: &str = "
flen = 1048576
[opsize]
max = 65536
[weights]
close_open = 1
invalidate = 1
truncate = 10
fsync = 1
fdatasync = 1
punch_hole = 10
sendfile = 1
";

/// A program on the path.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// A program of cargo's registry, built where nothing else is.
fn built((name, version): (&str, &str)) -> Result<PathBuf, String> {
    let root = paths::target().join("judges").join(format!("{name}-{version}"));
    let program = root.join("bin").join(name);
    if !program.is_file() {
        let mut cargo = Command::new("cargo");
        cargo.args(["install", "--locked", "--quiet", "--version", version, "--root"]).arg(&root).arg(name);
        let built = cargo.env("CARGO_TARGET_DIR", root.join("build")).stdout(Stdio::null()).status();
        if !built.is_ok_and(|status| status.success()) {
            return Err(format!("{name} {version} cannot be had (cargo install {name})"));
        }
        // What it was made of is larger than all the rest.
        let _ = std::fs::remove_dir_all(root.join("build"));
    }
    Ok(program)
}

/// fsx, fio and pjdfstest, as far as they can be had.
pub fn trials() -> Vec<Trial> {
    let fio = find("fio").ok_or_else(|| String::from("fio is not installed (Debian's package fio)"));
    let pjdfstest = trial("pjdfstest", built(PJDFSTEST), pjdfstest::judge);
    vec![trial("fsx", built(FSX), fsx), trial("fio", fio, verify), pjdfstest]
}

fn trial(name: &str, program: Result<PathBuf, String>, judge: fn(&Path) -> Done) -> Trial {
    let name = format!("judges::{name}");
    match program {
        Ok(program) => Trial::test(name, move || judge(&program)),
        Err(why) => {
            eprintln!("{name} is passed over: {why}");
            Trial::test(name, || Ok(())).with_ignored_flag(true)
        }
    }
}

/// Runs a judge; what it says is shown where it is not content.
pub fn run(command: &mut Command) -> Result<String, Failed> {
    let done = command.stdin(Stdio::null()).output()?;
    let said = [&done.stdout[..], &done.stderr[..]].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    if done.status.success() { Ok(said) } else { Err(format!("{command:?}: {}\n{said}", done.status).into()) }
}

/// Reads, writes, mapped reads and writes, truncates, holes: each read is compared with what has to be there.
fn fsx(program: &Path) -> Done {
    let place = Place::new("16M")?;
    let config = place.dir.path().join("fsx.toml");
    std::fs::write(&config, FSX_TOML)?;
    for seed in 1..=SEEDS {
        place.mounted(true, |root| {
            let mut command = Command::new(program);
            command.arg("-f").arg(&config).arg("-P").arg(place.dir.path());
            command.args(["-N", "20000", "-S", &seed.to_string()]).arg(root.join(format!("fsx-{seed}")));
            run(&mut command).map(drop)
        })?;
    }
    Ok(())
}

/// Blocks with checksums, written at random by several jobs and read back; once more after a mount.
fn verify(program: &Path) -> Done {
    let place = Place::new("96M")?;
    let fio = |root: &Path, more: &[&str]| {
        let mut command = Command::new(program);
        // Its record of what it has written is a file in the directory that it stands in.
        command.current_dir(place.dir.path());
        command.args(["--name=judge", "--rw=randwrite", "--bsrange=512-96k", "--bs_unaligned=1", "--size=16m"]);
        command.args(["--numjobs=3", "--ioengine=psync", "--fallocate=none", "--verify=crc32c", "--randseed=1"]);
        run(command.arg("--group_reporting").arg(format!("--directory={}", root.display())).args(more)).map(drop)
    };
    place.mounted(true, |root| {
        // The files are there, all holes: else it fills them first.
        (0..3).try_for_each(|nr| File::create(root.join(format!("judge.{nr}.0")))?.set_len(16 << 20))?;
        fio(root, &["--do_verify=1"])
    })?;
    place.mounted(true, |root| fio(root, &["--verify_only"]))
}
