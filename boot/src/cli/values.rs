//! The values of options, each with the sentence that says what is wrong with it.

use super::LEAST_MEM_BYTES;
use crate::size::{self, GIB, MIB, PAGE_BYTES};

pub(super) fn parse_smp(text: &str) -> Result<u32, String> {
    let known = text.parse().ok().filter(|smp| (1..=64).contains(smp));
    known.ok_or_else(|| "the number of CPUs is between 1 and 64".into())
}

pub(super) fn parse_timeout(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "a time limit is a whole number of seconds, 0 for none".into())
}

pub(super) fn parse_mem(text: &str) -> Result<u64, String> {
    let bytes = size::parse(text)?;
    if !(LEAST_MEM_BYTES..=512 * GIB).contains(&bytes) || !bytes.is_multiple_of(MIB) {
        return Err(format!("RAM is between {} and 512G, in whole megabytes", size::show(LEAST_MEM_BYTES)));
    }
    Ok(bytes)
}

pub(super) fn parse_pmem(text: &str) -> Result<u64, String> {
    if text == "none" {
        return Ok(0);
    }
    let bytes = size::parse(text)?;
    if !bytes.is_multiple_of(PAGE_BYTES) {
        return Err(format!("{bytes} bytes are not a multiple of the page size, {PAGE_BYTES}"));
    }
    Ok(bytes)
}

pub(super) fn parse_virtio_pmem(text: &str) -> Result<u64, String> {
    match parse_pmem(text)? {
        0 => Err("a virtio-pmem device has at least one page".into()),
        bytes => Ok(bytes),
    }
}

/// Blocks of 512 bytes are what QEMU's disks have; with less than a mebibyte there is nothing to try.
pub(super) fn parse_nvme(text: &str) -> Result<u64, String> {
    match parse_pmem(text)? {
        0 => Ok(0),
        bytes if (MIB..=size::TIB).contains(&bytes) => Ok(bytes),
        _ => Err("an NVMe disk has between 1M and 1T".into()),
    }
}

pub(super) fn parse_pull(text: &str) -> Result<u64, String> {
    let seconds = text.parse().ok().filter(|seconds| (1..=3600).contains(seconds));
    seconds.ok_or_else(|| "the module is pulled once in so many seconds, from 1 to 3600".into())
}

pub(super) fn parse_append(text: &str) -> Result<String, String> {
    // QEMU's own option parser would take a comma as the start of its next property, and the kernel splits on spaces.
    if text.chars().any(|c| c == ',' || c.is_control()) {
        return Err("a boot option has no comma and no control character".into());
    }
    Ok(text.trim().to_string())
}
