//! The disk image: the UEFI loader of the `bootloader` crate and the kernel, in a FAT partition.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Brings the disk image for `kernel` up to date and says where it is. Nothing is written when the image is of this
/// very kernel and was made by this very program.
///
/// # Errors
/// When a file cannot be read or written, or when this program was built without the feature `image`.
pub fn make(kernel: &Path) -> Result<PathBuf> {
    make_at(kernel, crate::paths::target().join("unplug.img"))
}

/// As [`make`], in the file `image`.
///
/// # Errors
/// As [`make`].
pub fn make_at(kernel: &Path, image: PathBuf) -> Result<PathBuf> {
    let stamp = image.with_extension("stamp");
    let made_of = format!("{}\n{}\n", identity(kernel)?, identity(&std::env::current_exe()?)?);
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

#[cfg(feature = "image")]
fn write(kernel: &Path, image: &Path) -> Result<()> {
    let mut config = bootloader::BootConfig::default();
    // The console belongs to the kernel from its first line on.
    config.serial_logging = false;
    config.frame_buffer_logging = false;
    let mut builder = bootloader::DiskImageBuilder::new(kernel.to_path_buf());
    // Written beside its place and renamed, so that a guest which is running keeps the image that it has, and an
    // interrupted build leaves no half image with a new date.
    let part = image.with_extension("part");
    builder
        .set_boot_config(&config)
        .create_uefi_image(&part)
        .and_then(|()| Ok(fs::rename(&part, image)?))
        .with_context(|| format!("the disk image {} cannot be made", image.display()))
}

#[cfg(not(feature = "image"))]
fn write(_kernel: &Path, _image: &Path) -> Result<()> {
    anyhow::bail!("this program was built without the feature `image`: use run-qemu.sh")
}
