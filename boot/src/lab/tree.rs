//! The kernel's sources as a lab has them: without the host side, which no part is of, and with what makes a build quick.

use super::catalog::Lab;
use super::markers;
use crate::paths;
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

/// Files by their place below the root.
pub type Files = BTreeMap<PathBuf, Vec<u8>>;

/// What is copied as it is.
const PLAIN: [&str; 4] = ["Cargo.lock", "LICENSE", "rustfmt.toml", "x86_64-target.json"];
/// Directories that hold nothing of a lab.
const LEFT_OUT: [&str; 2] = ["fuzz", "target"];
/// Members of the workspace that are not in the tree.
const NO_MEMBERS: [&str; 2] = ["boot", "boot/diskimage"];
/// What the workspace's table of profiles says of `mm`, for measuring.
const MEASURED: &str = "[profile.dev.package.mm]\nopt-level = 3\n";
/// Packages that are built quickly, because they are built again for each grade: `mm` and all that is made of it. The others
/// stay as the project's own build has them, which has built them.
const REBUILT: [&str; 8] = ["arch", "dax", "fs", "iommu", "kernel", "nvdimm", "sched", "mm"];
/// For the tests on the host: their builds are waited for, and nothing in them is measured.
const HOST_PROFILE: &str = "
[profile.lab]
inherits = \"dev\"
opt-level = 0
debug = false
incremental = true
";

/// The project's sources, with the parts as they are.
///
/// # Errors
/// One of them cannot be read, or the workspace's table is not as it was.
pub fn sources() -> Result<Files> {
    let root = paths::root();
    let mut files = Files::new();
    for name in PLAIN {
        files.insert(name.into(), read(&root.join(name))?);
    }
    collect(&root, Path::new("kernel"), &mut files)?;
    let table = String::from_utf8(read(&root.join("Cargo.toml"))?).context("Cargo.toml")?;
    files.insert("Cargo.toml".into(), workspace(&table)?.into_bytes());
    Ok(files)
}

/// The same for a grade: without what the graded tests are not made of, and takes long to build.
///
/// # Errors
/// As [`sources`].
pub fn for_grading() -> Result<Files> {
    let mut files = sources()?;
    let manifest = files.get_mut(Path::new("kernel/mm/Cargo.toml")).context("mm has no manifest")?;
    let text = String::from_utf8_lossy(manifest).replace("proptest.workspace = true\n", "");
    *manifest = text.into_bytes();
    Ok(files)
}

/// The sources that `lab` is about with each part as `text_of` says by its name.
///
/// # Errors
/// A source or a comment is missing, or `text_of` fails.
pub fn with_parts(
    files: &mut Files,
    lab: &Lab,
    text_of: &dyn Fn(&super::catalog::Place) -> Result<String>,
) -> Result<()> {
    for place in lab.parts {
        let source = files.get_mut(Path::new(place.file)).with_context(|| format!("there is no {}", place.file))?;
        let before = String::from_utf8(std::mem::take(source)).with_context(|| place.file.to_string())?;
        let part = markers::part(&before, lab.number, place.name).with_context(|| place.file.to_string())?;
        *source = part.replace(&before, &text_of(place)?).into_bytes();
    }
    Ok(())
}

/// Is there a tree at `place`? Its files were written by [`write`] then.
pub fn is_there(place: &Path) -> bool {
    place.join("kernel").exists()
}

/// Makes the tree at `place` be these files: what is as it should be is left alone, and keeps its date.
///
/// # Errors
/// A file cannot be written or removed.
pub fn write(place: &Path, files: &Files) -> Result<()> {
    let mut there = Files::new();
    let is_new = !is_there(place);
    if !is_new {
        collect(place, Path::new("kernel"), &mut there)?;
    }
    for path in there.keys().filter(|path| !files.contains_key(*path)) {
        fs::remove_file(place.join(path)).with_context(|| path.display().to_string())?;
    }
    for (path, bytes) in files {
        let to = place.join(path);
        if fs::read(&to).is_ok_and(|old| old == *bytes) {
            continue;
        }
        let directory = to.parent().unwrap_or(place);
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        fs::write(&to, bytes).with_context(|| to.display().to_string())?;
        // Cargo judges by dates: what the project's own build has made of this very file is not older than the file. Where
        // something was built here meanwhile, nothing may look older than that.
        let origin = paths::root().join(path);
        if is_new && fs::read(&origin).is_ok_and(|old| old == *bytes) {
            let date = fs::metadata(&origin).and_then(|of| of.modified());
            let file = fs::File::options().write(true).open(&to);
            date.and_then(|date| file?.set_modified(date)).with_context(|| to.display().to_string())?;
        }
    }
    Ok(())
}

/// What tells these files from others.
#[must_use]
pub fn fingerprint(files: &Files) -> String {
    let mut hasher = DefaultHasher::new();
    files.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

fn collect(root: &Path, below: &Path, into: &mut Files) -> Result<()> {
    let directory = root.join(below);
    for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
        let entry = entry?;
        let (name, path) = (entry.file_name(), below.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            if !LEFT_OUT.iter().any(|left_out| name == *left_out) {
                collect(root, &path, into)?;
            }
        } else {
            into.insert(path.clone(), read(&root.join(&path))?);
        }
    }
    Ok(())
}

/// The workspace's table without the host side, and with profiles for quick builds.
fn workspace(table: &str) -> Result<String> {
    let named = |member: &str| format!("\"{member}\"");
    let mut gone = BTreeSet::new();
    let mut lines = Vec::new();
    // How packages of the host side are built: cargo warns of what matches none.
    let mut of_host = false;
    for line in table.lines() {
        if line.starts_with('[') {
            of_host = line.starts_with("[profile.dev.package.") && line != "[profile.dev.package.mm]";
        }
        if of_host {
            continue;
        }
        let member = NO_MEMBERS.iter().find(|member| line.trim() == format!("{},", named(member)));
        match member {
            Some(member) => _ = gone.insert(*member),
            None if line.starts_with("default-members") => lines.push(line.replace("\"boot\", ", "")),
            None => lines.push(line.into()),
        }
    }
    let text = lines.join("\n") + "\n";
    let as_it_was = gone.len() == NO_MEMBERS.len() && text.contains(MEASURED) && !text.contains(&named("boot"));
    ensure!(as_it_was, "the workspace's table is not what a lab's can be made of");
    let quick = |package: &str| format!("\n[profile.dev.package.{package}]\nopt-level = 0\ndebug = false\n");
    Ok(text.replace(MEASURED, "") + &REBUILT.map(quick).concat() + HOST_PROFILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// covers: T5
    #[test]
    fn a_tree_has_the_kernel_and_not_the_host_side() {
        let files = for_grading().expect("the project is there");
        assert!(files.contains_key(Path::new("kernel/mm/src/gup/recheck.rs")));
        assert!(
            !files
                .keys()
                .any(|path| path.starts_with("boot") || path.components().any(|part| part.as_os_str() == "fuzz"))
        );
        let text = |path: &str| String::from_utf8_lossy(&files[Path::new(path)]).into_owned();
        assert!(!text("kernel/mm/Cargo.toml").contains("proptest"));
        let table = text("Cargo.toml");
        assert!(!table.contains("\"boot") && table.matches("[profile.dev.package.mm]").count() == 1);
        assert!(!table.contains("profile.dev.package.svgbob"), "cargo warns of it");
    }

    /// covers: T5
    #[test]
    fn a_tree_is_written_again_only_where_it_differs() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let files = |text: &str| Files::from([("a".into(), b"1".to_vec()), ("kernel/b".into(), text.into())]);
        let date =
            |name: &str| fs::metadata(place.path().join(name)).and_then(|meta| meta.modified()).expect("it is there");
        write(place.path(), &files("2")).expect("written");
        fs::write(place.path().join("kernel/left"), "over").expect("written");
        let before = date("a");
        write(place.path(), &files("3")).expect("written");
        assert_eq!((date("a"), fs::read(place.path().join("kernel/b")).expect("there")), (before, b"3".to_vec()));
        assert!(!place.path().join("kernel/left").exists());
        assert_ne!(fingerprint(&files("2")), fingerprint(&files("3")));
    }

    /// What the project has built of a file counts for the same file of a new tree. Where there was another one before, which
    /// something was built of, it has to look changed. covers: T5
    #[test]
    fn a_file_is_as_old_as_the_projects_own_unless_it_was_another_one_here() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let name = "kernel/mm/src/lib.rs";
        let date = |root: &Path| fs::metadata(root.join(name)).and_then(|meta| meta.modified()).expect("it is there");
        let model = Files::from([(name.into(), read(&paths::root().join(name)).expect("it is there"))]);
        write(place.path(), &model).expect("written");
        assert_eq!(date(place.path()), date(&paths::root()));
        write(place.path(), &Files::from([(name.into(), b"a student's".to_vec())])).expect("written");
        let theirs = date(place.path());
        assert!(theirs > date(&paths::root()));
        write(place.path(), &model).expect("written");
        assert!(date(place.path()) >= theirs);
    }
}
