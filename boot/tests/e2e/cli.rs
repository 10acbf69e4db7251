//! The front door: what it says, and with which status it ends.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is in the workspace").to_path_buf()
}

/// The program behind the front door.
fn boot(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_boot")).args(args).env_remove("ACCEL").output().expect("it starts")
}

/// Expects status 2 and one line on standard error with the word, and nothing on standard output.
fn refused(args: &[&str], word: &str) {
    let output = boot(args);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {message}");
    assert_eq!(message.lines().count(), 1, "{args:?}: {message}");
    assert!(message.starts_with("run-qemu: ") && message.contains(word), "{args:?}: {message}");
    assert!(output.stdout.is_empty(), "{args:?}");
}

#[test]
fn a_wrong_command_line_is_one_line_and_status_2() {
    refused(&["--colour"], "--colour");
    refused(&["dance"], "dance");
    refused(&["--smp", "0"], "--smp");
    refused(&["--mem", "lots"], "lots");
    refused(&["--mem", "64M"], "between 72M and 512G");
    refused(&["--pmem", "100T"], "above 64T");
    refused(&["test", "--smp", "8"], "--smp has no use in test");
    refused(&["fs", "dance"], "dance");
    refused(&["fs", "check"], "<IMAGE>");
    refused(&["--pmem", "4097"], "not a multiple of the page size");
    refused(&["--timeout", "-1"], "-1");
}

#[test]
fn a_file_that_cannot_be_used_is_one_line_and_status_2() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    refused(&["--pmem-file", &path("no/such/directory")], "no/such/directory");
    refused(&["--pmem-file", &path("")], "directory");
    // Nobody may write to a program that runs, not even root.
    refused(&["--pmem-file", env!("CARGO_BIN_EXE_boot")], "cannot be opened for reading and writing");
    refused(&["--acpitable", &path("absent")], "absent");
    refused(&["--acpitable", &path("")], "not a regular file");
    std::fs::write(path("odd"), [0; 5000]).expect("written");
    refused(&["--pmem-file", &path("odd")], "5000 bytes");
    std::fs::write(path("small"), vec![0; (1 << 20) + (128 << 10)]).expect("written");
    refused(&["--pmem", "2M", "--pmem-file", &path("small")], "holds an NVDIMM of 1M, not of 2M");
}

#[test]
fn help_is_the_same_text_from_the_program_and_from_the_script() {
    let text = include_str!("../../help.txt");
    assert_eq!(String::from_utf8_lossy(&boot(&["--help"]).stdout).trim_end(), text.trim_end());
    let script =
        Command::new(root().join("run-qemu.sh")).args(["test", "--help"]).current_dir("/").output().expect("bash");
    assert!(script.status.success());
    assert_eq!(String::from_utf8_lossy(&script.stdout), text);
}

/// With nothing but the most basic programs on the path, and no way to install any, the script says what it needs.
#[test]
fn the_script_says_what_is_missing_and_stops() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for program in ["bash", "env", "cat", "dirname", "readlink", "realpath", "sed"] {
        let from = ["/usr/bin", "/bin"].iter().map(|bin| Path::new(bin).join(program)).find(|path| path.exists());
        std::os::unix::fs::symlink(from.expect("it is on every system"), directory.path().join(program))
            .expect("linked");
    }
    let output = Command::new(root().join("run-qemu.sh"))
        .env_clear()
        .env("PATH", directory.path())
        .env("HOME", directory.path())
        .output()
        .expect("bash");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("qemu-system-x86_64") && message.contains("apt-get install -y rustc-web"), "{message}");
}
