//! Kernels that are not ours: Debian's Linux, with an initial file system whose only program tests the machine, prints KTAP and
//! reads commands; and our own disk image, driven as if nothing were known of what is in it.

use super::{Done, passed_over, trial};
use boot::ktap::{Counts, Verdict};
use boot::peer::packages;
use boot::size::{GIB, MIB};
use boot::{Error, Guest, Status, junit, paths};
use libtest_mimic::{Completion, Failed, Trial};
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const META: &str = "linux-image-cloud-amd64";
/// Patience alone.
const LIMIT: Duration = Duration::from_secs(300);

pub fn trials() -> Vec<Trial> {
    vec![trial("foreign::linux_tests_the_machine_and_is_driven", linux), trial("foreign::a_disk_image", disk)]
}

/// Linux, its initial file system, and its release.
struct Guests {
    vmlinuz: PathBuf,
    initrd: PathBuf,
    release: String,
}

/// Fetches Debian's kernel and busybox, and makes the file system. The error is why not.
fn fetch(work: &Path) -> anyhow::Result<Guests> {
    let image = super::with_apt(|apt| {
        let meta = apt.find(META)?;
        let image = meta.needs("linux-image-", "-cloud-amd64").unwrap_or_default();
        for package in [&apt.find(image)?, &apt.find("busybox-static")?] {
            packages::unpack(&apt.fetch(package)?, work)?;
        }
        Ok(image.to_string())
    })?;
    let release = image.trim_start_matches("linux-image-").to_string();
    Ok(Guests { vmlinuz: work.join("boot").join(format!("vmlinuz-{release}")), initrd: work.join("initrd"), release })
}

/// The initial file system: busybox and `init.sh`.
fn pack(work: &Path, initrd: &Path) -> Result<(), Failed> {
    let (root, busybox) = (work.join("root"), work.join("bin/busybox"));
    fs::create_dir_all(root.join("bin"))?;
    fs::copy(&busybox, root.join("bin/busybox"))?;
    fs::copy(paths::root().join("boot/tests/harness/init.sh"), root.join("init"))?;
    fs::set_permissions(root.join("init"), Permissions::from_mode(0o755))?;
    let mut cpio = Command::new(busybox);
    cpio.args(["cpio", "-o", "-H", "newc"]).current_dir(&root).stdin(Stdio::piped()).stdout(fs::File::create(initrd)?);
    let mut cpio = cpio.stderr(Stdio::null()).spawn()?;
    cpio.stdin.take().ok_or("a pipe")?.write_all(b".\nbin\nbin/busybox\ninit\n")?;
    if cpio.wait()?.success() { Ok(()) } else { Err("busybox cpio failed".into()) }
}

/// covers: T5
fn linux() -> Done {
    let work = tempfile::tempdir()?;
    let linux = match fetch(work.path()) {
        Ok(linux) => linux,
        Err(why) => return passed_over(format!("{why:#}")),
    };
    pack(work.path(), &linux.initrd)?;
    let mut guest = Guest::builder()
        .kernel(&linux.vmlinuz)
        .initrd(&linux.initrd)
        .command_line("console=ttyS0 quiet loglevel=1 panic=-1 test.cpus=2 test.mib=512")
        .cpus(2)
        .memory(512 * MIB)
        .nvdimm(GIB)
        .prompt("linux# ")
        .time_limit(LIMIT)
        .start()?;
    drive(&mut guest, &linux.release)?;
    guest.send("poweroff -f")?;
    let outcome = guest.finish()?;
    check(outcome.status == Status::Ended(0), || outcome.status.to_string())?;
    let report = outcome.ktap();
    let counts = Counts { passed: 5, failed: 1, skipped: 1 };
    check(report.problems.is_empty() && report.counts() == counts, || format!("{report:#?}"))?;
    let failed = report.tests.iter().find(|test| test.verdict == Verdict::Failed);
    check(failed.is_some_and(|test| test.name == "linux.fails" && test.output == ["# on purpose"]), || {
        format!("{failed:?}")
    })?;
    check(report.tests[1].subtests.len() == 2 && !report.is_success(), || format!("{report:#?}"))?;
    let xml = junit::xml("others", &[("linux", &outcome)])?;
    check(xml.contains("classname=\"linux.linux.memory\""), || xml.clone())?;
    Ok(Completion::Completed)
}

/// What can be done with a guest of any kind while it runs.
fn drive(guest: &mut Guest, release: &str) -> Result<(), Failed> {
    guest.expect("KTAP version 1", LIMIT)?;
    guest.expect_text("linux# ", LIMIT)?;
    let answer = guest.command("echo $((6 * 7)); uname -r")?;
    check(answer == ["42", release], || format!("{answer:?}"))?;
    let cpus = guest.qmp("query-cpus-fast", boot::json!({}))?;
    check(cpus.as_array().is_some_and(|cpus| cpus.len() == 2), || cpus.to_string())?;
    let refused = guest.qmp("no-such-command", boot::json!({})).err();
    check(matches!(&refused, Some(Error::Qmp { .. })), || format!("{refused:?}"))?;
    // Nothing of what it has yet to print is that: the wait ends, and says what was seen instead.
    guest.send("echo something else")?;
    guest.expect("something else", LIMIT)?;
    let late = guest.expect("what never comes", Duration::from_millis(50)).err();
    let seen = |error: &Error| error.seen().iter().any(|line| line.contains("something else"));
    check(late.as_ref().is_some_and(|error| matches!(error, Error::TimedOut { .. }) && seen(error)), || {
        format!("{late:?}")
    })
}

/// covers: T5
fn disk() -> Done {
    let image = paths::image();
    let mut guest = Guest::builder().disk(image).begins_with("@unplug ").memory(256 * MIB).time_limit(LIMIT).start()?;
    // It was told nothing, and so it shows its demonstration.
    let line = guest.expect("@boot ", LIMIT)?;
    check(line.contains("cpus=4"), || line.clone())?;
    let first = guest.console().lines().first().cloned().unwrap_or_default();
    check(first.starts_with("@unplug "), || first.clone())?;
    let no_prompt = guest.prompt().err();
    check(matches!(no_prompt, Some(Error::Machine(_))), || format!("{no_prompt:?}"))?;
    Ok(Completion::Completed)
}

fn check(is_so: bool, what: impl FnOnce() -> String) -> Result<(), Failed> {
    if is_so { Ok(()) } else { Err(what().into()) }
}
