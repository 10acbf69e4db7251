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
    refused_by(env!("CARGO_BIN_EXE_boot"), args, word);
}

/// As [`refused`], of the program.
fn refused_by(program: &str, args: &[&str], word: &str) {
    let output = Command::new(program).args(args).env_remove("ACCEL").output().expect("it starts");
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
    refused(&["--mem", "72M"], "between 100M and 512G");
    refused(&["--pmem", "100T"], "above 64T");
    refused(&["test", "--smp", "8"], "--smp has no use in test");
    refused_by(env!("CARGO_BIN_EXE_fsimage"), &["fs", "dance"], "dance");
    refused_by(env!("CARGO_BIN_EXE_fsimage"), &["fs", "check"], "<IMAGE>");
    refused(&["--pmem", "16M"], "the demonstration needs a device of 20M with 4 CPUs, and the first one has 16M");
    refused(&["bench", "--pmem", "16M"], "bench needs a device of 1G");
    refused(&["--save", "x"], "--save has no use in run");
    refused(&["bench", "--save", "x", "--append", "bench=gup"], "--save stores all rows");
    refused(&["bench", "--linux=5.10"], "the kernels that can be measured are 6.1 and 6.12");
    refused(&["bench", "--linux", "--pmem", "16M"], "bench needs a device of 1G");
    refused(&["--pmem", "64M"].repeat(33), "33 NVDIMMs, and the kernel keeps 32");
    refused(&["--pmem", "4097"], "not a multiple of the page size");
    refused(&["--dimm", "64M"].repeat(17), "17 modules, and there is room for 16");
    refused(&["--dimm", "2M", "--dimm", "64M"], "the demonstration needs memory modules of 4M with 4 CPUs");
    refused(&["--dimm", "none", "--dimm-file", "x"], "--dimm none and --dimm-file contradict each other");
    refused(&["--pull-every", "5"], "--pull-every is for --mode shell, and this is demo");
    refused(&["bench", "--dimm", "64M", "--pull-every", "5"], "--pull-every has no use in bench");
    refused(&["--timeout", "-1"], "-1");
    let words = "quiet=0 ".repeat(128);
    refused(&["shell", "--append", &words, "--append", "inject=attach:1"], "bytes in all, and the kernel reads 1024");
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
    refused(&["bench", "--baseline", &path("absent")], "absent: No such file");
    refused(&["bench", "--save", &path("absent/baseline.json")], "absent/baseline.json cannot be written");
    std::fs::write(path("damaged"), "{\"build\": \"checked\", \"cpus\": 4").expect("written");
    refused(&["bench", "--baseline", &path("damaged")], "is no baseline of bench");
    let kept = root().join("boot/bench-baseline.json").display().to_string();
    refused(&["bench", "--release", "--baseline", &kept], "cannot be compared with the release build");
    refused(&["bench", "--smp", "2", "--baseline", &kept], "with 2 CPUs");
    std::fs::write(path("odd"), [0; 5000]).expect("written");
    refused(&["--pmem-file", &path("odd")], "5000 bytes");
    refused(&["--dimm-file", &path("odd")], "5000 bytes");
    std::fs::write(path("foreign"), [1; 4096]).expect("written");
    refused(&["--dimm-file", &path("foreign")], "holds data of an unknown kind");
    refused(&["bench", "--dimm-file", &path("foreign")], "holds data of an unknown kind");
    std::fs::write(path("small"), vec![0; (1 << 20) + (128 << 10)]).expect("written");
    refused(&["--mode", "shell", "--pmem", "2M", "--pmem-file", &path("small")], "holds an NVDIMM of 1M, not of 2M");
}

/// The report has a command line of its own.
#[test]
fn a_report_of_nothing_is_one_line_and_status_2() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let refused = |args: &[&str], word: &str| refused_by(env!("CARGO_BIN_EXE_report"), args, word);
    refused(&["report", "--colour"], "--colour");
    refused(&["report", "--records", &path("absent")], "absent: No such file");
    std::fs::write(path("empty"), "").expect("written");
    refused(&["report", "--records", &path("empty")], "it holds no records of a report");
    refused(&["report", "--output", &path("absent/page.html")], "absent/page.html cannot be written");
    assert_eq!(std::fs::read_dir(directory.path()).expect("listed").count(), 1, "no page is written");
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

/// A machine with nothing but the most basic programs on its path, and what a test puts there.
struct Bare(tempfile::TempDir);

impl Bare {
    fn new() -> Self {
        let bare = Self(tempfile::tempdir().expect("a temporary directory"));
        for program in ["bash", "env", "cat", "dirname", "readlink", "realpath", "sed", "mkdir", "head", "rm"] {
            let from = ["/usr/bin", "/bin"].iter().map(|bin| Path::new(bin).join(program)).find(|path| path.exists());
            std::os::unix::fs::symlink(from.expect("it is on every system"), bare.path(program)).expect("linked");
        }
        bare
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Puts a program there, with the directories that it needs.
    fn put(&self, name: &str, script: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("it is in a directory")).expect("made");
        std::fs::write(&path, format!("#!/usr/bin/env bash\n{script}\n")).expect("written");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("made executable");
    }

    /// A rustup toolchain of this version, with the library's source or without; its cargo can fetch and nothing else:
    /// it fails with the words that it was called with.
    fn put_toolchain(&self, name: &str, version: &str, has_source: bool) {
        let root = format!(".rustup/toolchains/{name}");
        let sysroot = self.path(&root);
        let rustc = format!(
            "case $1 in --version) echo 'rustc {version} (made up)' ;; *) echo '{}' ;; esac",
            sysroot.display()
        );
        self.put(&format!("{root}/bin/rustc"), &rustc);
        self.put(&format!("{root}/bin/cargo"), &format!("echo \"cargo of {name}: $*\" >&2; [[ $1 = fetch ]]"));
        self.put(&format!("{root}/bin/cargo-fmt"), "exit 1");
        self.put(&format!("{root}/lib/rustlib/some-host/bin/rust-lld"), "exit 1");
        if has_source {
            let library = sysroot.join("lib/rustlib/src/rust/library/core");
            std::fs::create_dir_all(&library).expect("made");
            std::fs::write(library.join("Cargo.toml"), "").expect("written");
        }
    }

    /// Runs the front door there. Says how it ended, and what it printed on standard error.
    fn run(&self) -> (Option<i32>, String) {
        self.run_into(&self.path("target"))
    }

    /// As [`run`](Self::run), with this directory for what is built.
    fn run_into(&self, target: &Path) -> (Option<i32>, String) {
        Self::ended(self.door(target).env("HOME", self.0.path()))
    }

    /// The front door there, of a user without a home.
    fn door(&self, target: &Path) -> Command {
        let mut door = Command::new(root().join("run-qemu.sh"));
        door.env_clear().env("PATH", self.0.path()).env("OVMF_CODE", "somewhere").env("CARGO_TARGET_DIR", target);
        door
    }

    fn ended(door: &mut Command) -> (Option<i32>, String) {
        let output = door.output().expect("bash");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// What a service runs may have none.
#[test]
fn the_script_needs_no_home() {
    let bare = Bare::new();
    let (status, message) = Bare::ended(&mut bare.door(&bare.path("target")));
    assert_eq!(status, Some(1), "{message}");
    assert!(message.contains("run-qemu: missing: ") && !message.contains("unbound"), "{message}");
}

/// `./run-qemu.sh lab list | true`
#[test]
fn a_reader_that_has_gone_away_is_no_failure() {
    let bare = Bare::new();
    bare.put("cargo", "exit 1");
    let (boot, lab) = (env!("CARGO_BIN_EXE_boot"), env!("CARGO_BIN_EXE_lab"));
    for (program, args, status) in
        [(lab, &["lab", "list"][..], 0), (lab, &["lab", "new", "1", "copy"], 0), (boot, &["test"], 1)]
    {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = Command::new(program);
        command.args(args).current_dir(bare.0.path()).env("PATH", bare.0.path()).stdout(writer).env_remove("ACCEL");
        let output = command.env("CARGO_TARGET_DIR", bare.path("target")).output().expect("it starts");
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {message}");
        assert!(!message.contains("panicked"), "{args:?}: {message}");
    }
}

/// What was to become a file is not left behind.
#[test]
fn an_interrupt_before_the_guest_runs_leaves_nothing_behind() {
    let bare = Bare::new();
    // It goes on until the program has ended, and somebody else is its parent.
    bare.put(
        "cargo",
        "kill -INT $PPID; while read -r _ _ _ parent _ < /proc/self/stat && [[ $parent == $PPID ]]; do :; done; exit 1",
    );
    let results = bare.path("results");
    std::fs::create_dir(&results).expect("made");
    let mut boot = Command::new(env!("CARGO_BIN_EXE_boot"));
    boot.args(["bench", "--save"]).arg(results.join("rows.json"));
    boot.env("PATH", bare.0.path()).env("CARGO_TARGET_DIR", bare.path("target")).env_remove("ACCEL");
    let output = boot.env_remove("UNPLUG_KERNEL").output().expect("it starts");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{message}");
    let left: Vec<_> = std::fs::read_dir(&results).expect("it is there").flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// With no way to install anything, the script says what it needs.
#[test]
fn the_script_says_what_is_missing_and_stops() {
    let (status, message) = Bare::new().run();
    assert_eq!(status, Some(1), "{message}");
    let command = "apt-get install -y --no-install-recommends rustc-web";
    assert!(message.contains("qemu-system-x86_64") && message.contains(command), "{message}");
}

/// Whatever word an option's value is, and the file of a job.
#[test]
fn the_script_takes_no_value_for_a_job() {
    let bare = Bare::new();
    let needs_gdb = |args: &[&str]| {
        let (status, message) = Bare::ended(bare.door(&bare.path("target")).args(args));
        assert_eq!(status, Some(1), "{args:?}: {message}");
        assert!(message.contains("On Debian 12, as root:"), "{args:?}: {message}");
        message.contains("gdb")
    };
    for args in [&["shell", "--dimm-file", "test"][..], &["shell", "--pmem-file", "test"], &["media", "test"]] {
        assert!(!needs_gdb(args), "{args:?}");
    }
    assert!(needs_gdb(&["--quiet", "test"]) && needs_gdb(&["shell", "--dimm-file", "test", "--debug"]));
}

/// Where it can install, it says what, and does; where that fails, it says what is needed.
#[test]
fn the_script_says_what_it_installs() {
    let bare = Bare::new();
    bare.put("apt-get", "echo \"apt-get $*\" >&2; [[ $1 = update ]]");
    bare.put("sudo", "shift; exec \"$@\"");
    let (status, message) = bare.run();
    assert_eq!(status, Some(1), "{message}");
    let wanted =
        ["missing: ", "installing Debian packages: ", "apt-get update", "apt-get install", "On Debian 12, as root:"];
    let found = wanted.iter().filter_map(|words| message.find(words)).collect::<Vec<_>>();
    assert!(found.len() == wanted.len() && found.is_sorted(), "{message}");
}

/// The version that is known to work, if rustup has it with the source; never one without.
#[test]
fn the_script_takes_a_rustup_toolchain_that_has_the_source() {
    let bare = Bare::new();
    bare.put("cc", "exit 1");
    bare.put("qemu-system-x86_64", "exit 1");
    bare.put_toolchain("a-no-source", "1.96.1", false);
    bare.put_toolchain("b-other", "1.99.0", true);
    bare.put_toolchain("c-wanted", "1.96.0", true);
    let (status, message) = bare.run();
    assert_eq!(status, Some(1), "{message}");
    assert!(message.contains("cargo of c-wanted: build") && !message.contains("cargo of b-other"), "{message}");
    // Without the linker it is of no use, and that is said.
    let linker = bare.path(".rustup/toolchains/c-wanted/lib/rustlib/some-host/bin/rust-lld");
    std::fs::rename(&linker, linker.with_extension("away")).expect("renamed");
    let (status, without) = bare.run();
    assert!(status == Some(1) && without.contains("missing: a linker"), "{without}");
    // A toolchain that cannot build it: which compiler it was.
    assert!(message.contains("rustc 1.96.0"), "{message}");
}

/// Whatever stops the first build is said by its own name, not blamed on the compiler.
#[test]
fn the_script_says_what_stopped_the_first_build() {
    let bare = Bare::new();
    bare.put("cc", "exit 1");
    bare.put("qemu-system-x86_64", "exit 1");
    bare.put_toolchain("a", "1.96.0", true);
    let cargo = ".rustup/toolchains/a/bin/cargo";
    let last = |message: &str| message.lines().next_back().unwrap_or_default().to_string();

    // A directory that cannot be written: a file stands where it would have to be.
    std::fs::write(bare.path("file"), "").expect("written");
    let (status, message) = bare.run_into(&bare.path("file/target"));
    let line = last(&message);
    assert!(status == Some(1) && line.contains("cannot be written (Not a directory)"), "{message}");
    assert!(line.contains("CARGO_TARGET_DIR") && !message.contains("cargo of a"), "{message}");

    // A registry that cannot be reached, or a certificate that it does not trust: cargo's innermost reason.
    let fetch = "[[ $* != *--offline* ]] || echo 'help: retry without `--offline`' >&2
        echo 'error: failed to download' >&2; echo '  [60] SSL certificate problem' >&2; exit 101";
    bare.put(cargo, fetch);
    let (status, message) = bare.run();
    let line = last(&message);
    assert!(status == Some(1) && line.contains("cannot be fetched ([60] SSL certificate problem)"), "{message}");
    assert!(line.contains("CARGO_HTTP_CAINFO") && !line.contains("rustc"), "{message}");

    // Code that does not compile, where all that is needed is there: the network has nothing to do with it.
    bare.put(cargo, "echo 'error[E0308]: mismatched types' >&2; exit 101");
    let (status, message) = bare.run();
    let line = last(&message);
    assert!(status == Some(1) && line.contains("rustc 1.96.0") && !line.contains("fetched"), "{message}");

    // A full disk comes first: cargo cannot fetch there either.
    std::fs::remove_file(bare.path("head")).expect("removed");
    bare.put("head", "echo 'head: write error: No space left on device' >&2; exit 1");
    let (status, message) = bare.run();
    let line = last(&message);
    assert!(status == Some(1) && line.contains("16 MiB more (No space left on device)"), "{message}");
}

/// `bench --linux` where nothing can be installed or fetched: one line of what it needs, and nothing is left behind.
#[test]
fn linux_is_not_measured_without_its_tools_or_the_network() {
    let bare = Bare::new();
    let bench = || {
        let mut boot = Command::new(env!("CARGO_BIN_EXE_boot"));
        boot.args(["bench", "--linux", "--quiet"]).env("PATH", bare.0.path());
        boot.env("CARGO_TARGET_DIR", bare.path("target")).env_remove("ACCEL");
        let output = boot.output().expect("it starts");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), message.lines().count()), (Some(5), 1), "{message}");
        message
    };
    let message = bench();
    assert!(
        message.contains("apt-get install") && message.contains(" apt dpkg coreutils gcc-12 make xz-utils"),
        "{message}"
    );
    assert!(!bare.path("target").exists());

    for program in ["apt-cache", "dpkg-deb", "sha256sum", "gcc-12", "make", "xz"] {
        bare.put(program, "exit 1");
    }
    bare.put("apt-get", "echo 'Err:1 the mirror' ; echo 'E: Could not resolve the mirror' >&2; exit 100");
    let message = bench();
    // A machine may lack the two libraries, which are not looked for on the path.
    if !message.contains("libelf1") && !message.contains("libc6-dev") {
        let wanted = "linux-image-amd64 is in no list of apt: it needs the network";
        assert!(message.contains(wanted) && message.contains("(E: Could not resolve the mirror)"), "{message}");
    }

    // What apt brings is cut off: it does not get its name, nor does what would be made of it.
    let shown = "case $* in
        *linux-image-amd64) echo Depends: linux-image-6.1.0-1-amd64 ;;
        *linux-headers-6.1.0-1-amd64) echo 'Depends: linux-headers-6.1.0-1-common, linux-kbuild-6.1' ;;
        esac
        echo \"Package: ${!#}\"; echo Version: 1; echo SHA256: 00";
    bare.put("apt-cache", shown);
    bare.put("apt-get", "[[ $* = *update* ]] || echo half >package.deb");
    bare.put("sha256sum", "echo 11 $1");
    bare.put("qemu-system-x86_64", "echo QEMU emulator version 7.2");
    let message = bench();
    if !message.contains("libelf1") && !message.contains("libc6-dev") {
        assert!(message.contains("was not fetched whole: its checksum is 11, not 00"), "{message}");
        let left =
            |place: &str| std::fs::read_dir(bare.path(place)).expect("made").flatten().map(|entry| entry.file_name());
        assert_eq!(left("target/peer/apt/debs").count(), 0);
        let mut left: Vec<_> = left("target/peer").collect();
        left.sort();
        assert_eq!(left, ["apt", "lock"]);
    }
}
