//! The example of the documentation, as a package outside the workspace with a target directory of its own.

use super::{Done, output, trial};
use boot::paths;
use libtest_mimic::{Completion, Failed, Trial};
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The example is shorter than so many lines.
const SHORT: usize = 20;

pub fn trials() -> Vec<Trial> {
    vec![trial("example::docs_have_it_as_it_is", docs), trial("example::a_new_package_boots_and_checks", package)]
}

/// The first block of Rust in `docs/harness.md`.
fn in_docs() -> Result<String, Failed> {
    let page = fs::read_to_string(paths::root().join("docs/harness.md"))?;
    let block = page.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next());
    Ok(block.ok_or("docs/harness.md has no example")?.into())
}

/// covers: T5
fn docs() -> Done {
    let example = fs::read_to_string(paths::root().join("boot/examples/harness.rs"))?;
    let shown = in_docs()?;
    if shown != example {
        return Err(
            "docs/harness.md shows another example than boot/examples/harness.rs, which the crate's docs have".into()
        );
    }
    let lines = example.lines().filter(|line| !line.is_empty()).count();
    if lines >= SHORT { Err(format!("{lines} lines").into()) } else { Ok(Completion::Completed) }
}

/// What the manifest in `docs/harness.md` says, with the place of this package in it.
fn manifest() -> Result<String, Failed> {
    let page = fs::read_to_string(paths::root().join("docs/harness.md"))?;
    let block = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    let shown = block.ok_or("docs/harness.md has no dependency")?;
    let place = paths::root().join("boot");
    let ours = shown.replace("/path/to/unplug/boot", place.to_str().ok_or("a path that is not UTF-8")?);
    if ours == shown {
        return Err(format!("no place to put in {shown:?}").into());
    }
    Ok(format!("[package]\nname = \"outside\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n{ours}"))
}

/// covers: T5
fn package() -> Done {
    let dir = tempfile::tempdir()?;
    fs::create_dir(dir.path().join("src"))?;
    fs::write(dir.path().join("src/main.rs"), in_docs()?)?;
    fs::write(dir.path().join("Cargo.toml"), manifest()?)?;
    // The versions that are tested, and that are here.
    fs::copy(paths::root().join("Cargo.lock"), dir.path().join("Cargo.lock"))?;
    let printed = output(&mut cargo_run(dir.path()))?;
    let counts = printed.lines().find_map(|line| line.strip_prefix("Counts { passed: "));
    let passed: usize = counts.and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or(0);
    let is_good = passed > 3 && printed.contains("failed: 0");
    if is_good { Ok(Completion::Completed) } else { Err(format!("it printed {printed:?}").into()) }
}

/// `cargo run` there, with nothing of this project's in the environment, but for the image where that is not where a user
/// has it.
fn cargo_run(dir: &Path) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["run", "--quiet", "--offline"]).current_dir(dir);
    let ours = |name: &OsString| name.to_str().is_some_and(|name| name.starts_with("UNPLUG_"));
    std::env::vars_os().filter(|(name, _)| ours(name)).for_each(|(name, _)| {
        command.env_remove(name);
    });
    command.env("CARGO_TARGET_DIR", dir.join("own")).env("CARGO_PROFILE_DEV_DEBUG", "0");
    if !paths::root().join("target/unplug.img").exists() {
        command.env("UNPLUG_IMAGE", paths::image());
    }
    command
}
