//! `diskimage KERNEL IMAGE`: makes a disk image with the UEFI loader of the `bootloader` crate and the kernel, in a FAT
//! partition.
//!
//! A program of its own because that crate builds the loader for a target of its own, from the standard library's
//! source: `boot`, which asks for it, is there long before, and builds the kernel at the same time.

use anyhow::{Context, Result, bail};
use bootloader::{BootConfig, DiskImageBuilder};
use std::path::{Path, PathBuf};

fn main() -> Result<()> {
    let mut words = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(kernel), Some(image), None) = (words.next(), words.next(), words.next()) else {
        bail!("usage: diskimage KERNEL IMAGE");
    };
    make(kernel, &image)
}

fn make(kernel: PathBuf, image: &Path) -> Result<()> {
    let mut config = BootConfig::default();
    // The console belongs to the kernel from its first line on.
    config.serial_logging = false;
    config.frame_buffer_logging = false;
    let mut builder = DiskImageBuilder::new(kernel);
    // Written beside its place and renamed, so that a guest which is running keeps the image that it has, and an
    // interrupted build leaves no half image with a new date.
    let part = image.with_extension("part");
    builder
        .set_boot_config(&config)
        .create_uefi_image(&part)
        .and_then(|()| Ok(std::fs::rename(&part, image)?))
        .with_context(|| format!("the disk image {} cannot be made", image.display()))
}
