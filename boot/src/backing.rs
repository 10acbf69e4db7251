//! What stands behind an NVDIMM on the host: a file, or memory that the host does not reserve.

use crate::size::{self, GIB, KIB, MIB, PAGE_BYTES};
use anyhow::{Context, Result, bail, ensure};
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

/// Bytes that QEMU keeps at the end of the backing for the NVDIMM's labels (its smallest allowed size). They come on
/// top of the size that was asked for, so that the guest sees exactly that size.
pub const LABEL_BYTES: u64 = 128 * KIB;

/// The largest NVDIMM for which a temporary sparse file is made, in bytes. File systems are slow to read through the
/// holes of a much larger one, and some cannot make it.
pub const LARGEST_FILE_BYTES: u64 = 64 * GIB;

/// One NVDIMM of the machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Nvdimm {
    /// What the guest sees, in bytes: without the labels.
    pub size_bytes: u64,
    /// The file to keep its contents in; `None` for contents that go with the run.
    pub file: Option<PathBuf>,
    /// It says of itself that it is not armed: what is written would not survive a power loss.
    pub unarmed: bool,
}

/// The memory of a device whose backing is ready for QEMU. The file stays locked while this lives.
#[derive(Debug)]
pub struct Ready {
    /// The value of QEMU's `-object` option, but for the `id`.
    pub object: String,
    _lock: Option<File>,
}

impl Nvdimm {
    /// An NVDIMM whose contents go with the run.
    #[must_use]
    pub fn temporary(size_bytes: u64) -> Self {
        Self { size_bytes, file: None, unarmed: false }
    }

    /// An NVDIMM that is kept in `file`. With no size, an existing file says it, and a new one gets `default_bytes`.
    ///
    /// # Errors
    /// One line that names the file: it cannot be opened for writing, its directory is missing, its size is not that of
    /// an NVDIMM, or is not the one asked for.
    pub fn kept(file: &Path, size_bytes: Option<u64>, default_bytes: u64) -> Result<Self> {
        let name = file.display();
        let existing = match OpenOptions::new().read(true).write(true).open(file) {
            Ok(opened) => {
                let meta = opened.metadata()?;
                ensure!(meta.is_file(), "--pmem-file {name}: not a regular file");
                Some(meta.len())
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => bail!("--pmem-file {name}: cannot be opened for reading and writing: {error}"),
        };
        let wanted = size_bytes.unwrap_or(default_bytes);
        let size_bytes = match existing {
            None | Some(0) => wanted,
            Some(len) => {
                ensure!(
                    len > LABEL_BYTES && len.is_multiple_of(PAGE_BYTES),
                    "--pmem-file {name}: {len} bytes are not pages of {PAGE_BYTES} bytes and 128K of labels after them"
                );
                let holds = len - LABEL_BYTES;
                ensure!(
                    size_bytes.is_none_or(|asked| asked == holds),
                    "--pmem-file {name}: holds an NVDIMM of {}, not of {}",
                    size::show(holds),
                    size::show(wanted)
                );
                holds
            }
        };
        if existing.is_none_or(|len| len == 0) {
            make_sparse(file, size_bytes + LABEL_BYTES).with_context(|| format!("--pmem-file {name}"))?;
        }
        Ok(Self { size_bytes, file: Some(file.to_path_buf()), unarmed: false })
    }

    /// The same, not armed.
    #[must_use]
    pub fn not_armed(self) -> Self {
        Self { unarmed: true, ..self }
    }

    /// The alignment of its base in the guest, in bytes: the largest leaf that divides its size, so that a range that
    /// could be mapped by large leaves is not kept from it by the NVDIMM that was plugged in before it.
    #[must_use]
    pub fn align_bytes(&self) -> u64 {
        align_of(self.size_bytes)
    }

    /// Makes the backing ready; a temporary file goes into `directory`, which the caller removes.
    ///
    /// # Errors
    /// When a file cannot be made or is in use by another run.
    pub fn prepare(&self, directory: &Path, index: usize) -> Result<Ready> {
        let total = self.size_bytes + LABEL_BYTES;
        if self.file.is_none() && self.size_bytes > LARGEST_FILE_BYTES {
            return Ok(Ready { object: format!("memory-backend-ram,reserve=off,size={total}"), _lock: None });
        }
        let path = match &self.file {
            Some(path) => path.clone(),
            None => {
                let path = directory.join(format!("pmem{index}"));
                make_sparse(&path, total).with_context(|| format!("a file for the NVDIMM, {}", path.display()))?;
                path
            }
        };
        let held = File::open(&path).with_context(|| path.display().to_string())?;
        lock(&held, &path)?;
        let (align, path) = (self.align_bytes(), qemu_value(&path)?);
        let object = format!("memory-backend-file,mem-path={path},share=on,align={align},size={total}");
        Ok(Ready { object, _lock: Some(held) })
    }
}

/// Keeps every other run, and every command that writes to a backing file, away from one for as long as `file` is open.
///
/// # Errors
/// One of them has it.
pub(crate) fn lock(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => bail!("{} is in use by another run or command", path.display()),
        // A file system without locks is no reason not to go on.
        Err(TryLockError::Error(_)) | Ok(()) => Ok(()),
    }
}

/// One memory module of the machine: it can leave while the guest runs, and come back with its contents.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Dimm {
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The file to keep its contents in; `None` for contents that go with the run.
    pub file: Option<PathBuf>,
}

impl Dimm {
    /// A module whose contents go with the run.
    #[must_use]
    pub fn temporary(size_bytes: u64) -> Self {
        Self { size_bytes, file: None }
    }

    /// A module that is kept in `file`. With no size, an existing file says it, and a new one gets `default_bytes`.
    ///
    /// # Errors
    /// One line that names the file.
    pub fn kept(file: &Path, size_bytes: Option<u64>, default_bytes: u64) -> Result<Self> {
        let name = file.display();
        let existing = match OpenOptions::new().read(true).write(true).open(file) {
            Ok(opened) => {
                let meta = opened.metadata()?;
                ensure!(meta.is_file(), "--dimm-file {name}: not a regular file");
                Some(meta.len()).filter(|len| *len != 0)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => bail!("--dimm-file {name}: cannot be opened for reading and writing: {error}"),
        };
        let wanted = size_bytes.or(existing).unwrap_or(default_bytes);
        let holds = existing.unwrap_or(wanted);
        let (has, asked) = (size::show(holds), size::show(wanted));
        ensure!(holds == wanted, "--dimm-file {name}: holds a module of {has}, not of {asked}");
        ensure!(
            wanted.is_multiple_of(PAGE_BYTES),
            "--dimm-file {name}: {wanted} bytes are not pages of {PAGE_BYTES} bytes"
        );
        if existing.is_none() {
            make_sparse(file, wanted).with_context(|| format!("--dimm-file {name}"))?;
        }
        Ok(Self { size_bytes: wanted, file: Some(file.to_path_buf()) })
    }

    /// The alignment of its base, as [`Nvdimm::align_bytes`].
    #[must_use]
    pub fn align_bytes(&self) -> u64 {
        align_of(self.size_bytes)
    }

    /// Makes the backing ready; a temporary file goes into `directory`, which the caller removes.
    ///
    /// # Errors
    /// When a file cannot be made or is in use by another run.
    pub fn prepare(&self, directory: &Path, index: usize) -> Result<Ready> {
        let path = match &self.file {
            Some(path) => path.clone(),
            None => {
                let path = directory.join(format!("dimm{index}"));
                make_sparse(&path, self.size_bytes)
                    .with_context(|| format!("a file for the memory module, {}", path.display()))?;
                path
            }
        };
        let held = File::open(&path).with_context(|| path.display().to_string())?;
        lock(&held, &path)?;
        let (align, size, path) = (self.align_bytes(), self.size_bytes, qemu_value(&path)?);
        let object = format!("memory-backend-file,mem-path={path},share=on,align={align},size={size}");
        Ok(Ready { object, _lock: Some(held) })
    }
}

/// The largest leaf that divides a size, in bytes.
fn align_of(size_bytes: u64) -> u64 {
    [GIB, 2 * MIB].into_iter().find(|leaf| size_bytes.is_multiple_of(*leaf)).unwrap_or(PAGE_BYTES)
}

/// One virtio-pmem device of the machine. Its contents go with the run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VirtioPmem {
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Whether QEMU can flush it: it can where there is a file. Where there is only memory, every flush is an error.
    pub can_flush: bool,
}

impl VirtioPmem {
    /// A device that works, over a sparse file.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        Self { size_bytes, can_flush: true }
    }

    /// Makes the backing ready; a file goes into `directory`, which the caller removes.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn prepare(&self, directory: &Path, index: usize) -> Result<Ready> {
        let size = self.size_bytes;
        if !self.can_flush {
            return Ok(Ready { object: format!("memory-backend-ram,reserve=off,size={size}"), _lock: None });
        }
        let path = directory.join(format!("vpmem{index}"));
        make_sparse(&path, size).with_context(|| format!("a file for the virtio-pmem device, {}", path.display()))?;
        let path = qemu_value(&path)?;
        Ok(Ready { object: format!("memory-backend-file,mem-path={path},share=on,size={size}"), _lock: None })
    }
}

/// Makes the sparse file behind the NVMe disk, of `size_bytes` bytes, in `directory`, which the caller removes; its contents
/// go with the run.
///
/// # Errors
/// When the file cannot be made.
pub fn nvme_file(directory: &Path, size_bytes: u64) -> Result<PathBuf> {
    let path = directory.join("nvme0");
    make_sparse(&path, size_bytes).with_context(|| format!("a file for the NVMe disk, {}", path.display()))?;
    Ok(path)
}

/// Writes a path as the value of a QEMU property, where a comma is doubled.
///
/// # Errors
/// When the path is not UTF-8.
pub fn qemu_value(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(text.replace(',', ",,"))
}

fn make_sparse(path: &Path, bytes: u64) -> std::io::Result<()> {
    OpenOptions::new().create(true).truncate(false).write(true).open(path)?.set_len(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory")
    }

    #[test]
    fn a_new_file_gets_the_size_and_an_old_one_keeps_it() {
        let dir = scratch();
        let file = dir.path().join("pmem");
        let made = Nvdimm::kept(&file, Some(2 * MIB), GIB).expect("made");
        assert_eq!(file.metadata().expect("there").len(), 2 * MIB + LABEL_BYTES);
        assert_eq!(Nvdimm::kept(&file, None, GIB).expect("opened"), made);
        let error = Nvdimm::kept(&file, Some(4 * MIB), GIB).expect_err("another size").to_string();
        assert!(error.contains("holds an NVDIMM of 2M, not of 4M"), "{error}");
    }

    #[test]
    fn a_file_that_cannot_be_had_is_one_line_with_its_name() {
        let dir = scratch();
        let odd = dir.path().join("odd");
        std::fs::write(&odd, vec![0; 5000]).expect("written");
        for file in [dir.path().join("no/such/dir"), dir.path().to_path_buf(), odd] {
            let error = format!("{:#}", Nvdimm::kept(&file, None, GIB).expect_err("refused"));
            assert!(error.contains(file.to_str().expect("UTF-8")) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_small_one_is_a_sparse_file_and_a_large_one_unreserved_memory() {
        let dir = scratch();
        let small = Nvdimm::temporary(GIB).prepare(dir.path(), 0).expect("ready");
        assert!(small.object.starts_with("memory-backend-file,") && small.object.contains("align=1073741824"));
        let large = Nvdimm::temporary(6 << 40).prepare(dir.path(), 1).expect("ready");
        assert_eq!(large.object, format!("memory-backend-ram,reserve=off,size={}", (6u64 << 40) + LABEL_BYTES));
    }

    #[test]
    fn a_file_in_use_is_refused_until_it_is_let_go() {
        let dir = scratch();
        let nvdimm = Nvdimm::kept(&dir.path().join("pmem"), Some(PAGE_BYTES), GIB).expect("made");
        let first = nvdimm.prepare(dir.path(), 0).expect("ready");
        let error = nvdimm.prepare(dir.path(), 0).expect_err("locked").to_string();
        assert!(error.contains("in use"), "{error}");
        drop(first);
        nvdimm.prepare(dir.path(), 0).expect("free again");
    }

    #[test]
    fn the_alignment_is_the_largest_leaf_that_divides_the_size() {
        for (bytes, align) in [(GIB, GIB), (6 << 40, GIB), (GIB + 2 * MIB, 2 * MIB), (GIB + 4096, 4096)] {
            assert_eq!(Nvdimm::temporary(bytes).align_bytes(), align, "{bytes}");
        }
    }
}
