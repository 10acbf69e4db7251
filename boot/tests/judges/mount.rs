//! The adaptor by itself: what ordinary programs meet in a mounted image.

use super::{Done, Failed, Place, Trial, job};
use boot::fsmount::Mounted;
use std::fs::{self, File};
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

/// `ENOSPC`, `EROFS`, `ENAMETOOLONG`.
const NO_SPACE: i32 = 28;
const READ_ONLY: i32 = 30;
const NAME_TOO_LONG: i32 = 36;

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::test("mount::ordinary_programs_work_in_it", ordinary),
        Trial::test("mount::a_full_one_says_how_much_was_written_and_is_emptied_by_punching", full),
        Trial::test("mount::read_only_leaves_the_image_as_it_is", read_only),
    ]
}

pub fn trial_without_fuse() -> Trial {
    Trial::test("mount::what_cannot_be_mounted_is_one_line", refused)
}

/// Fails the test, with where and what, unless `what` holds.
macro_rules! check {
    ($what:expr) => {
        if !$what {
            return Err(Failed::from(concat!("line ", line!(), ": not so: ", stringify!($what))));
        }
    };
}

fn code<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

fn names(dir: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn run(program: &str, args: &[&str]) -> Done {
    let done = Command::new(program).args(args).output()?;
    let said = String::from_utf8_lossy(&done.stderr);
    if done.status.success() { Ok(()) } else { Err(format!("{program} {args:?}: {said}").into()) }
}

fn ordinary() -> Done {
    let place = Place::new("32M")?;
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 7) as u8).collect();
    place.mounted(true, |root| {
        fs::create_dir_all(root.join("a/b"))?;
        fs::write(root.join("a/file"), &bytes)?;
        check!(fs::read(root.join("a/file"))? == bytes);
        fs::hard_link(root.join("a/file"), root.join("a/b/link"))?;
        let (file, link) = (fs::metadata(root.join("a/file"))?, fs::metadata(root.join("a/b/link"))?);
        check!((file.ino(), file.nlink(), file.len()) == (link.ino(), 2, 3_000_000));
        check!(file.blocks() >= 3_000_000 / 512 && file.modified()?.elapsed().is_ok_and(|age| age.as_secs() < 3600));
        // A file that has lost its last name lives as long as it is open, and its number is not given out again.
        let mut open = File::options().read(true).write(true).open(root.join("a/file"))?;
        fs::remove_file(root.join("a/file"))?;
        fs::write(root.join("a/new"), b"new")?;
        fs::rename(root.join("a/new"), root.join("a/b/link"))?;
        fs::write(root.join("a/other"), b"other")?;
        check!(fs::metadata(root.join("a/other"))?.ino() != file.ino());
        open.seek(SeekFrom::Start(10))?;
        open.write_all(b"still here")?;
        let mut some = [0; 20];
        open.read_exact_at(&mut some, 0)?;
        check!(some[..10] == bytes[..10] && some[10..] == *b"still here");
        drop(open);
        check!(fs::read(root.join("a/b/link"))? == b"new");
        check!(names(&root.join("a"))? == ["b", "other"]);
        check!(fs::remove_dir(root.join("a")).is_err_and(|error| error.kind() == ErrorKind::DirectoryNotEmpty));
        check!(code(fs::write(root.join("x".repeat(256)), b"")) == Some(NAME_TOO_LONG));
        // More names than fit into one answer, and each is listed once, also while they go.
        fs::create_dir(root.join("many"))?;
        (0..1000).try_for_each(|nr| fs::write(root.join(format!("many/{nr}")), b""))?;
        check!(names(&root.join("many"))?.len() == 1000);
        run("rm", &["-r", root.join("many").to_str().expect("it is ours")])?;
        run(
            "cp",
            &["-r", root.join("a").to_str().expect("it is ours"), root.join("copy").to_str().expect("it is ours")],
        )
    })?;
    place.mounted(true, |root| {
        check!(names(root)? == ["a", "copy"]);
        check!(fs::read(root.join("copy/b/link"))? == b"new");
        fs::remove_dir_all(root.join("a"))?;
        fs::remove_dir_all(root.join("copy"))?;
        Ok(())
    })
}

/// The host's kernel passes on what `write` has answered.
fn full() -> Done {
    let place = Place::new("4M")?;
    place.mounted(true, |root| {
        let path = root.join("a");
        let mut file = File::create(&path)?;
        let bytes = vec![1; 8 << 20];
        let written = file.write(&bytes)?;
        check!((3 << 20..4 << 20).contains(&written) && written % 4096 == 0);
        check!(code(file.write(&bytes)) == Some(NO_SPACE));
        check!(file.metadata()?.len() == written as u64);
        // Every other block with a little of those beside it, then the rest.
        let path = path.to_str().expect("it is ours");
        let mut want = vec![1; written];
        for nr in 0..20 {
            let from = 4096 * (2 * nr + 1) - 9;
            want[from..from + 4110].fill(0);
            run("fallocate", &["--punch-hole", "--offset", &from.to_string(), "--length", "4110", path])?;
        }
        check!(fs::read(path)? == want);
        check!(file.metadata()?.blocks() < written as u64 / 512 - 8 * 15);
        let len = written.to_string();
        run("fallocate", &["--punch-hole", "--offset", "0", "--length", &len, path])?;
        check!(file.metadata()?.blocks() == 0 && file.metadata()?.len() == written as u64);
        Ok(())
    })
}

fn read_only() -> Done {
    let place = Place::new("8M")?;
    place.mounted(true, |root| Ok(fs::write(root.join("a"), b"hello")?))?;
    let before = fs::read(place.image())?;
    place.mounted(false, |root| {
        check!(fs::read(root.join("a"))? == b"hello");
        check!(code(fs::write(root.join("a"), b"x")) == Some(READ_ONLY));
        check!(code(fs::remove_file(root.join("a"))) == Some(READ_ONLY));
        Ok(())
    })?;
    check!(fs::read(place.image())? == before);
    Ok(())
}

fn refused() -> Done {
    let place = Place::new("8M")?;
    let image = place.image();
    let mount = |dir: &Path, write: bool| match Mounted::new(&image, None, dir, write) {
        Ok(_) => "it is mounted".into(),
        Err(error) => format!("{error:#}"),
    };
    let no_dir = mount(&image, true);
    check!(no_dir.ends_with("is not a directory to mount on") && no_dir.lines().count() == 1);
    // By a guest, say.
    let other = File::open(&image)?;
    other.lock()?;
    let (path, before) = (image.to_str().expect("it is ours"), fs::read(&image)?);
    check!(job(&["make", path, "--force"]).is_err() && job(&["check", path, "--repair"]).is_err());
    check!(fs::read(&image)? == before);
    check!(mount(&place.at(), true).ends_with("is in use by another run or command"));
    other.unlock()?;
    fs::write(&image, vec![7; 1 << 20])?;
    check!(mount(&place.at(), false).contains("cannot be mounted"));
    check!(job(&["mount", image.to_str().expect("it is ours"), "/no/such/directory"]).is_err());
    Ok(())
}
