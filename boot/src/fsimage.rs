//! The job `fs`: makes, checks, lists, mounts and dumps a file system in an image file, with the code that the kernel
//! runs. An image is an NVDIMM's backing file, as `--pmem-file` takes it: the last 128 KiB are QEMU's, for labels. Only
//! `make`, `check --repair` and `mount --write` write: everything else works on copies in memory, so that looking at a file
//! system that was not unmounted leaves it as it is.

use crate::backing::LABEL_BYTES;
use crate::cli::Refusal;
use crate::medium::{self, Contents};
use crate::{backing, fsmount, size};
use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use fs::check::check;
use fs::error::FsError;
use fs::format::{BLOCK_SIZE, Kind, ROOT_INO};
use fs::layout::{Label, Layout};
use fs::mount::{MakeOptions, MountOptions, make, mount};
use fs::owner::Owned;
use fs::pmem::{Overlay, Pmem, check_bounds};
use fs::superblock;
use fs::volume::Volume;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug, Parser)]
#[command(
    name = "fs",
    bin_name = "./run-qemu.sh fs",
    about = "Makes, checks, lists, mounts and dumps a file system in an image file"
)]
struct Cli {
    /// The image with the journal, where that is on another device.
    #[arg(long, global = true, value_name = "IMAGE")]
    log: Option<PathBuf>,
    #[command(subcommand)]
    job: Job,
}

#[derive(Debug, Subcommand)]
enum Job {
    /// Make an empty file system in an image that holds nothing.
    Make {
        /// The image; made where there is none.
        image: PathBuf,
        /// Size of the file system; the image becomes at least as large, and 128K more for the NVDIMM's labels. Without
        /// it: the image's, less the labels.
        #[arg(long, value_parser = size::parse)]
        size: Option<u64>,
        /// A name for people, up to 32 bytes.
        #[arg(long, default_value = "")]
        label: Label,
        /// Write over whatever the image holds, namespaces with their labels included.
        #[arg(long)]
        force: bool,
    },
    /// Check everything, and write nothing but what --repair says. Status 1 where something is wrong.
    Check {
        /// The image.
        image: PathBuf,
        /// First write a superblock that is lost or damaged anew, from its copy.
        #[arg(long)]
        repair: bool,
    },
    /// List a directory, and what is in it.
    #[command(visible_alias = "list")]
    Ls {
        /// The image.
        image: PathBuf,
        /// The directory.
        #[arg(default_value = "/")]
        path: String,
    },
    /// Write a file's contents to standard output.
    Cat {
        /// The image.
        image: PathBuf,
        /// The file.
        path: String,
    },
    /// Show it as a directory of this machine, until `umount DIR` or Ctrl-C. Needs /dev/fuse.
    Mount {
        /// The image.
        image: PathBuf,
        /// The directory to mount it on.
        dir: PathBuf,
        /// Let it be changed. Without this, what the image lacks since a power cut is made up in memory.
        #[arg(long)]
        write: bool,
    },
    /// Say where everything lies: the layout, and the owner of each run of blocks.
    Dump {
        /// The image.
        image: PathBuf,
    },
}

/// Runs the job if `args` (with the program's name) ask for it. Says with which status this program ends.
///
/// # Errors
/// The image cannot be read, written or mounted.
pub fn job(args: impl IntoIterator<Item = OsString>) -> Option<Result<u8>> {
    let mut args = args.into_iter();
    let _program = args.next()?;
    if args.next()? != "fs" {
        return None;
    }
    let cli = match Cli::try_parse_from([OsString::from("fs")].into_iter().chain(args)) {
        Ok(cli) => cli,
        Err(error) => Refusal::from(error).exit("fs --help"),
    };
    Some(run(&cli.job, cli.log.as_deref(), &mut std::io::stdout().lock()))
}

fn run(job: &Job, log: Option<&Path>, out: &mut impl Write) -> Result<u8> {
    match job {
        Job::Make { image, size, label, force } => {
            make_image(image, &Make { size: *size, label: *label, log, force: *force }, out)?;
        }
        Job::Check { image, repair } => return check_image(image, *repair, log, out),
        Job::Ls { image, path } => list(&mut open(image, log)?, path, out)?,
        Job::Cat { image, path } => cat(&mut open(image, log)?, path, out)?,
        Job::Mount { image, dir, write } => fsmount::mount(image, log, dir, *write, out)?,
        Job::Dump { image } => dump(&mut open(image, log)?, out)?,
    }
    Ok(0)
}

/// An image file as persistent memory: a fence is the file's own.
pub(crate) struct Image {
    pub(crate) file: File,
    len: u64,
}

impl Image {
    /// `create`: makes it where there is none. One that is to be written to is kept from all others meanwhile.
    pub(crate) fn open(path: &Path, write: bool, create: bool) -> Result<Self> {
        // Before it is opened: some of what is no image would wait for somebody at its other end.
        if let Ok(metadata) = path.metadata() {
            ensure!(!metadata.is_dir(), "{} is a directory, not an image file", path.display());
            ensure!(metadata.is_file(), "{} is not a regular file", path.display());
        }
        let file = OpenOptions::new().read(true).write(write).create(create).truncate(false).open(path);
        let file = file.with_context(|| format!("{} cannot be opened", path.display()))?;
        if write {
            backing::lock(&file, path)?;
        }
        let len = file.metadata()?.len().saturating_sub(LABEL_BYTES);
        Ok(Self { file, len })
    }
}

impl Pmem for Image {
    fn len_bytes(&self) -> u64 {
        self.len
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), FsError> {
        check_bounds(offset, buf.len(), self.len)?;
        self.file.read_exact_at(buf, offset).map_err(|_| FsError::Media(offset))
    }
    fn store(&self, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        check_bounds(offset, bytes.len(), self.len)?;
        self.file.write_all_at(bytes, offset).map_err(|_| FsError::Media(offset))
    }
    fn write_back(&self, _offset: u64, _len: u64) {}
    fn fence(&self) -> Result<(), FsError> {
        self.file.sync_data().map_err(|_| FsError::NotDurable)
    }
}

/// What is to be made.
struct Make<'a> {
    size: Option<u64>,
    label: Label,
    log: Option<&'a Path>,
    force: bool,
}

fn make_image(path: &Path, make_as: &Make<'_>, out: &mut impl Write) -> Result<()> {
    let is_new = !path.exists();
    if let Some(size) = make_as.size {
        ensure!(size.is_multiple_of(BLOCK_SIZE), "--size: {size} bytes are not a multiple of {BLOCK_SIZE}");
    } else {
        ensure!(!is_new, "there is no {}: say with --size how large it is to be", path.display());
    }
    let log = make_as.log.map(|log| Ok::<_, anyhow::Error>((Image::open(log, true, false)?, log))).transpose()?;
    let image = Image::open(path, true, make_as.size.is_some())?;
    let made = make_open_image(image, path, log, make_as);
    if made.is_err() && is_new {
        // Whose error is told is the first one.
        let _ = std::fs::remove_file(path);
    }
    writeln!(out, "{}: {} blocks of {BLOCK_SIZE} bytes", path.display(), made?.nr_blocks)?;
    Ok(())
}

fn make_open_image(mut image: Image, path: &Path, log: Option<(Image, &Path)>, make_as: &Make<'_>) -> Result<Layout> {
    let mut contents = Vec::new();
    for (old, name) in [(&image, path)].into_iter().chain(log.as_ref().map(|(log, name)| (log, *name))) {
        if !make_as.force {
            medium::refuse_open(&old.file, name)?;
        }
        contents.push((old.file.try_clone()?, medium::look(&old.file)?));
    }
    let no_room = || format!("{}: no file system made", path.display());
    let nr_blocks = make_as.size.unwrap_or(image.len) / BLOCK_SIZE;
    // Whether it can be made at all, before anything is changed.
    Layout::plan(nr_blocks, log.as_ref().map(|(log, _)| log.len / BLOCK_SIZE), 0).with_context(no_room)?;
    contents.iter().try_for_each(|(file, contents)| drop_labels(file, contents))?;
    if let Some(size) = make_as.size {
        if image.len < size {
            let longer = image.file.set_len(size + LABEL_BYTES);
            longer.with_context(|| format!("{} cannot be made larger", path.display()))?;
        }
        image.len = size;
    }
    let mut uuid = [0; 16];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut uuid)).context("no random numbers")?;
    let file = image.file.try_clone()?;
    let pmem: Arc<dyn Pmem> = Arc::new(image);
    let log = log.map(|(log, _)| -> Arc<dyn Pmem> { Arc::new(log) });
    let options = MakeOptions { uuid, label: make_as.label, log, ..MakeOptions::default() };
    let layout = make(&pmem, &options).with_context(no_room)?;
    file.sync_all()?;
    Ok(layout)
}

/// Makes an end of namespaces that are to be written over: with their labels nobody would find what is made.
fn drop_labels(file: &File, contents: &Contents) -> Result<()> {
    if contents.listing.is_labelled {
        let label_bytes = file.metadata()?.len().saturating_sub(contents.range_bytes);
        file.write_all_at(&vec![0; usize::try_from(label_bytes)?], contents.range_bytes)?;
    }
    Ok(())
}

/// The image, on which nothing can be written.
pub(crate) fn view(path: &Path) -> Result<Arc<dyn Pmem>> {
    let image: Arc<dyn Pmem> = Arc::new(Image::open(path, false, false)?);
    Ok(Overlay::new(&image))
}

fn open(path: &Path, log: Option<&Path>) -> Result<Volume> {
    let options = MountOptions { log: log.map(view).transpose()?, ..MountOptions::default() };
    mount(&view(path)?, &options).with_context(|| format!("{} cannot be mounted", path.display()))
}

fn check_image(path: &Path, repair: bool, log: Option<&Path>, out: &mut impl Write) -> Result<u8> {
    if repair {
        let renewed = superblock::repair(&Image::open(path, true, false)?);
        if let Some(renewed) = renewed.with_context(|| format!("{} cannot be repaired", path.display()))? {
            writeln!(out, "{renewed}")?;
        }
    }
    let report = check(&view(path)?, log.map(view).transpose()?.as_ref());
    for problem in &report.problems {
        writeln!(out, "{problem}")?;
    }
    writeln!(
        out,
        "{}: {} files, {} directories, {} blocks in {} extents; {} problems",
        path.display(),
        report.files,
        report.directories,
        report.blocks,
        report.extents,
        report.nr_problems
    )?;
    Ok(u8::from(!report.is_clean()))
}

fn list(volume: &mut Volume, dir: &str, out: &mut impl Write) -> Result<()> {
    let ino = volume.resolve(dir.as_bytes()).with_context(|| dir.to_string())?;
    for entry in volume.readdir(ino).with_context(|| dir.to_string())? {
        let stat = volume.stat(entry.ino)?;
        let kind = if stat.kind == Kind::Directory { 'd' } else { '-' };
        let name = String::from_utf8_lossy(&entry.name);
        writeln!(out, "{kind} {:>8} {:>5} {:>14} {}", stat.ino, stat.nlink, stat.size, name.escape_debug())?;
    }
    Ok(())
}

fn cat(volume: &mut Volume, file: &str, out: &mut impl Write) -> Result<()> {
    let ino = volume.resolve(file.as_bytes()).with_context(|| file.to_string())?;
    let (mut at, mut buf) = (0, vec![0; 1 << 20]);
    loop {
        match volume.read(ino, at, &mut buf).with_context(|| file.to_string())? {
            0 => return Ok(()),
            len => out.write_all(&buf[..len])?,
        }
        at += buf.len() as u64;
    }
}

fn dump(volume: &mut Volume, out: &mut impl Write) -> Result<()> {
    let bad = volume.load_all();
    let (layout, sizes) = (*volume.layout(), volume.statfs()?);
    let label = layout.label.split(|&byte| byte == 0).next().unwrap_or_default();
    writeln!(out, "label            {:?}", String::from_utf8_lossy(label))?;
    writeln!(out, "blocks           {} of {BLOCK_SIZE} bytes, {} free", sizes.nr_blocks, sizes.free_blocks)?;
    match layout.has_external_log() {
        true => writeln!(out, "journal          {} blocks on another device", layout.journal_blocks)?,
        false => writeln!(out, "journal          {} blocks from {}", layout.journal_blocks, layout.journal_start)?,
    }
    writeln!(out, "descriptors      from {}, for {} groups", layout.desc_start, layout.nr_groups())?;
    writeln!(out, "bitmaps          from {}", layout.bitmap_start)?;
    writeln!(out, "inode table      from {}, root directory is inode {ROOT_INO}", layout.table_start)?;
    writeln!(out, "data             from {}", layout.data_start)?;
    let mut runs: Vec<Owned> = Vec::new();
    volume.owners(0, layout.nr_blocks, |run| runs.push(run));
    for (first, end, owner) in runs {
        writeln!(out, "{first:>10} ..{end:>10}  {owner:?}")?;
    }
    if bad > 0 {
        bail!("{bad} inodes cannot be loaded");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(job: &Job) -> (u8, String) {
        output_with(job, None)
    }

    fn output_with(job: &Job, log: Option<&Path>) -> (u8, String) {
        let mut out = Vec::new();
        let status = run(job, log, &mut out).unwrap();
        (status, String::from_utf8(out).unwrap())
    }

    #[test]
    fn an_image_is_made_checked_listed_and_dumped_and_only_made_images_change() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let label = "tray".parse().expect("short");
        let made = output(&Job::Make { image: image.clone(), size: Some(8 << 20), label, force: false });
        assert!(made.1.ends_with("2048 blocks of 4096 bytes\n"));
        // The NVDIMM that QEMU makes of it is exactly as large.
        assert_eq!(crate::backing::Nvdimm::kept(&image, None, 0).unwrap().size_bytes, 8 << 20);
        // As a guest leaves it that was killed: mounted, with a file.
        let pmem: Arc<dyn Pmem> = Arc::new(Image::open(&image, true, false).unwrap());
        let mut volume = mount(&pmem, &MountOptions::default()).unwrap();
        let ino = volume.create(ROOT_INO, b"greeting", true).unwrap();
        volume.write(ino, 0, b"hello").unwrap();
        drop(volume);
        let before = std::fs::read(&image).unwrap();
        let (status, text) = output(&Job::Check { image: image.clone(), repair: false });
        assert_eq!(status, 0, "{text}");
        assert!(text.contains("1 files, 1 directories"), "{text}");
        let (_, text) = output(&Job::Ls { image: image.clone(), path: "/".into() });
        assert!(text.ends_with(" 5 greeting\n"), "{text}");
        assert_eq!(output(&Job::Cat { image: image.clone(), path: "greeting".into() }).1, "hello");
        assert_eq!(output(&Job::Ls { image: image.clone(), path: ".".into() }).1, text);
        for path in ["greeting/", "greeting/."] {
            let cat = run(&Job::Cat { image: image.clone(), path: path.into() }, None, &mut Vec::new());
            assert_eq!(format!("{:#}", cat.unwrap_err()), format!("{path}: not a directory"));
        }
        let (_, text) = output(&Job::Dump { image: image.clone() });
        assert!(text.contains("\"tray\"") && text.contains("Data { ino: 3, logical: 0 }"), "{text}");
        assert!(std::fs::read(&image).unwrap() == before, "looking has changed the image");
        // Damage is found.
        pmem.store(4096, &[0xff; 64]).unwrap();
        let (status, text) = output(&Job::Check { image, repair: false });
        assert_eq!(status, 1, "{text}");
    }

    /// covers: M5 M6
    #[test]
    fn a_check_that_is_to_repair_writes_a_superblock_anew_and_nothing_that_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        output(&Job::Make { image: image.clone(), size: Some(1 << 20), label: Label::default(), force: false });
        let whole = std::fs::read(&image).unwrap();
        let store = |bytes: &[u8]| Image::open(&image, true, false).unwrap().store(0, bytes).unwrap();
        let check = |repair| output(&Job::Check { image: image.clone(), repair });
        store(&[0; BLOCK_SIZE as usize]);
        let (status, text) = check(false);
        assert!(status == 1 && text.contains("superblock at block 0"), "{text}");
        let (status, text) = check(true);
        assert!(status == 0 && text.starts_with("the superblock at block 0 was lost: written anew"), "{text}");
        assert!(std::fs::read(&image).unwrap() == whole, "the image is not as it was made");
        // Somebody else's first block, and our copy behind it.
        store(b"not ours");
        let before = std::fs::read(&image).unwrap();
        let refused = run(&Job::Check { image: image.clone(), repair: true }, None, &mut Vec::new()).unwrap_err();
        assert!(format!("{refused:#}").contains("there is no file system of Unplug's"), "{refused:#}");
        assert!(std::fs::read(&image).unwrap() == before, "a refusal has changed the image");
    }

    #[test]
    fn a_journal_in_another_image_is_needed_wherever_the_file_system_is() {
        let dir = tempfile::tempdir().unwrap();
        let [image, log] = ["image", "log"].map(|name| dir.path().join(name));
        std::fs::write(&log, vec![0; (1 << 18) + LABEL_BYTES as usize]).unwrap();
        let make = Job::Make { image: image.clone(), size: Some(1 << 20), label: Label::default(), force: false };
        output_with(&make, Some(&log));
        assert_eq!(output_with(&Job::Check { image: image.clone(), repair: false }, Some(&log)).0, 0);
        let (status, text) = output(&Job::Check { image: image.clone(), repair: false });
        assert!(status == 1 && text.contains("its journal is on another device"), "{text}");
        assert!(run(&Job::Dump { image: image.clone() }, None, &mut Vec::new()).is_err());
        let (_, text) = output_with(&Job::Dump { image }, Some(&log));
        assert!(text.contains("64 blocks on another device"), "{text}");
    }

    #[test]
    fn bad_arguments_are_named_and_leave_no_file_behind() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let refused = |image: &Path, size: Option<u64>| {
            let make = Job::Make { image: image.into(), size, label: Label::default(), force: false };
            format!("{:#}", run(&make, None, &mut Vec::new()).unwrap_err())
        };
        assert!(refused(&image, None).contains("say with --size"));
        assert!(refused(&image, Some(12345)).contains("not a multiple of 4096"));
        assert!(refused(&image, Some(40 << 10)).contains("at least 112 KiB"));
        assert!(!image.exists());
        assert!(refused(dir.path(), None).contains("is a directory"));
        let check = run(&Job::Check { image: dir.path().into(), repair: false }, None, &mut Vec::new());
        assert!(format!("{:#}", check.unwrap_err()).contains("is a directory, not an image file"));
        let long = "x".repeat(33);
        let made = Cli::try_parse_from(["fs", "make", "image", "--label", &long]);
        assert!(made.is_err_and(|error| error.to_string().contains("a label has at most 32 bytes, not 33")));
    }

    #[test]
    fn only_the_word_fs_is_ours() {
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        assert!(job(words(&["run-qemu"])).is_none());
        assert!(job(words(&["run-qemu", "test", "--full"])).is_none());
        assert!(job(words(&["run-qemu", "fs", "check", "/no/such/image"])).is_some_and(|done| done.is_err()));
    }
}
