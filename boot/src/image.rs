//! The disk image: the UEFI loader of the `bootloader` crate and the kernel, in a FAT partition. The package
//! `diskimage` makes it; here is decided when.

use crate::paths::{self, Profile};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::UNIX_EPOCH;

/// Brings the disk image for `kernel` up to date and says where it is. Nothing is written when the image is of this
/// very kernel and was made by this very image maker.
///
/// # Errors
/// When a file cannot be read or written, or where [`crate::build`] has not built the image maker.
pub fn make(kernel: &Path) -> Result<PathBuf> {
    make_at(kernel, paths::target().join("unplug.img"))
}

/// The disk image of a kernel of this `profile`, which is where it is looked for.
///
/// # Errors
/// As [`make`].
pub fn make_for(kernel: &Path, profile: Profile) -> Result<PathBuf> {
    match profile {
        Profile::Trace => make_at(kernel, paths::target().join("unplug-trace.img")),
        Profile::Zoo => make_at(kernel, paths::target().join("unplug-zoo.img")),
        Profile::Dev | Profile::Release => make(kernel),
    }
}

/// As [`make`], in the file `image`.
///
/// # Errors
/// As [`make`].
pub fn make_at(kernel: &Path, image: PathBuf) -> Result<PathBuf> {
    let stamp = image.with_extension("stamp");
    let made_of = format!("{}\n{}\n", identity(kernel)?, identity(&paths::image_maker())?);
    if !image.exists() || fs::read_to_string(&stamp).ok().as_ref() != Some(&made_of) {
        write(kernel, &image)?;
        fs::write(&stamp, made_of).with_context(|| stamp.display().to_string())?;
    }
    Ok(image)
}

/// The kernel that the disk image `image` was made of, as its stamp says; `None` where there is no stamp, or the kernel
/// is no more.
pub(crate) fn made_of(image: &Path) -> Option<PathBuf> {
    let stamp = fs::read_to_string(image.with_extension("stamp")).ok()?;
    // The place, then size and date: none of which has a space.
    let kernel = PathBuf::from(stamp.lines().next()?.rsplitn(3, ' ').nth(2)?);
    kernel.exists().then_some(kernel)
}

/// What tells a file from its earlier self: its place, size and date.
fn identity(file: &Path) -> Result<String> {
    let meta = file.metadata().with_context(|| file.display().to_string())?;
    let age = meta.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(format!("{} {} {}", file.display(), meta.len(), age.as_nanos()))
}

fn write(kernel: &Path, image: &Path) -> Result<()> {
    let maker = paths::image_maker();
    let made = Command::new(&maker).arg(kernel).arg(image).stdin(Stdio::null()).status();
    let made = made.with_context(|| format!("{} cannot be started: run-qemu.sh builds it", maker.display()))?;
    ensure!(made.success(), "the disk image {} was not made", image.display());
    Ok(())
}
