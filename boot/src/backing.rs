//! What stands behind an NVDIMM or a memory module on the host: a file, or memory that the host does not reserve.

use crate::size::{self, GIB, KIB, MIB, PAGE_BYTES};
use anyhow::{Context, Result, bail, ensure};
use std::fs::{File, OpenOptions, TryLockError};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

/// Bytes that QEMU keeps at the end of the backing for the NVDIMM's labels (its smallest allowed size). They come on
/// top of the size that was asked for, so that the guest sees exactly that size.
pub const LABEL_BYTES: u64 = 128 * KIB;

/// The largest device for which a temporary sparse file is made, in bytes. File systems are slow to read through the
/// holes of a much larger one, and some cannot make it.
pub const LARGEST_FILE_BYTES: u64 = 64 * GIB;

/// A kind of memory device whose contents are in a file of the host.
pub trait Kind {
    /// What one is called.
    const WHAT: &'static str;
    /// The option that names the file of the first one.
    const OPTION: &'static str;
    /// How the name of a temporary file begins.
    const FILE: &'static str;
    /// What its backing has beside what the guest sees, in bytes.
    const MORE_BYTES: u64;
}

/// See [`Nvdimm`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NvdimmKind {}

impl Kind for NvdimmKind {
    const WHAT: &'static str = "an NVDIMM";
    const OPTION: &'static str = "--pmem-file";
    const FILE: &'static str = "pmem";
    const MORE_BYTES: u64 = LABEL_BYTES;
}

/// See [`Dimm`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DimmKind {}

impl Kind for DimmKind {
    const WHAT: &'static str = "a module";
    const OPTION: &'static str = "--dimm-file";
    const FILE: &'static str = "dimm";
    const MORE_BYTES: u64 = 0;
}

/// One NVDIMM of the machine.
pub type Nvdimm = OverFile<NvdimmKind>;
/// One memory module of the machine: it can leave while the guest runs, and come back with its contents.
pub type Dimm = OverFile<DimmKind>;

/// A memory device whose contents are in a file of the host.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OverFile<K> {
    /// What the guest sees, in bytes: of an NVDIMM without the labels.
    pub size_bytes: u64,
    /// The file to keep its contents in; `None` for contents that go with the run.
    pub file: Option<PathBuf>,
    /// An NVDIMM says of itself that it is not armed: what is written would not survive a power loss.
    pub unarmed: bool,
    kind: PhantomData<K>,
}

/// The memory of a device whose backing is ready for QEMU. The file stays locked while this lives.
#[derive(Debug)]
pub struct Ready {
    /// The value of QEMU's `-object` option, but for the `id`.
    pub object: String,
    _lock: Option<File>,
}

impl<K: Kind> OverFile<K> {
    /// A device whose contents go with the run.
    #[must_use]
    pub fn temporary(size_bytes: u64) -> Self {
        Self { size_bytes, file: None, unarmed: false, kind: PhantomData }
    }

    /// A device that is kept in `file`, which is not made yet. With no size, an existing file says it, and a new one will get
    /// `default_bytes`.
    ///
    /// # Errors
    /// One line that names the file: it cannot be opened for writing, its size is none that such a device has, or is not
    /// the one asked for.
    pub fn kept(file: &Path, size_bytes: Option<u64>, default_bytes: u64) -> Result<Self> {
        let (option, name) = (K::OPTION, file.display());
        let existing = match OpenOptions::new().read(true).write(true).open(file) {
            Ok(opened) => {
                let meta = opened.metadata()?;
                ensure!(meta.is_file(), "{option} {name}: not a regular file");
                Some(meta.len()).filter(|len| *len != 0)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => bail!("{option} {name}: cannot be opened for reading and writing: {error}"),
        };
        let wanted = size_bytes.unwrap_or(default_bytes);
        let size_bytes = existing.map_or(Ok(wanted), |len| {
            let holds = len.checked_sub(K::MORE_BYTES).filter(|holds| *holds != 0 && len.is_multiple_of(PAGE_BYTES));
            let holds = holds.with_context(|| {
                let labels = size::show(K::MORE_BYTES);
                let after =
                    if K::MORE_BYTES == 0 { String::new() } else { format!(" and {labels} of labels after them") };
                format!("{option} {name}: {len} bytes are not pages of {PAGE_BYTES} bytes{after}")
            })?;
            let (has, asked) = (size::show(holds), size::show(wanted));
            ensure!(
                size_bytes.is_none_or(|asked| asked == holds),
                "{option} {name}: holds {} of {has}, not of {asked}",
                K::WHAT
            );
            Ok(holds)
        })?;
        Ok(Self { file: Some(file.to_path_buf()), ..Self::temporary(size_bytes) })
    }

    /// Makes the file that its contents are to be kept in, if it is not there.
    ///
    /// # Errors
    /// One line that names it: its directory is missing, or it cannot have that size.
    pub fn make(&self) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        // One that is there has its size.
        if file.metadata().is_ok_and(|meta| meta.len() != 0) {
            return Ok(());
        }
        let made = make_sparse(file, self.backing_bytes());
        made.with_context(|| format!("{} {}", K::OPTION, file.display()))
    }

    /// The alignment of its base in the guest, in bytes: the largest leaf that divides its size, so that a range that
    /// could be mapped by large leaves is not kept from it by the device that was plugged in before it.
    #[must_use]
    pub fn align_bytes(&self) -> u64 {
        [GIB, 2 * MIB].into_iter().find(|leaf| self.size_bytes.is_multiple_of(*leaf)).unwrap_or(PAGE_BYTES)
    }

    fn backing_bytes(&self) -> u64 {
        self.size_bytes + K::MORE_BYTES
    }

    /// Makes the backing ready; a temporary file goes into `directory`, which the caller removes.
    ///
    /// # Errors
    /// When a file cannot be made or is in use by another run.
    pub fn prepare(&self, directory: &Path, index: usize) -> Result<Ready> {
        let size = self.backing_bytes();
        if self.file.is_none() && self.size_bytes > LARGEST_FILE_BYTES {
            return Ok(Ready { object: format!("memory-backend-ram,reserve=off,size={size}"), _lock: None });
        }
        let path = match &self.file {
            Some(path) => path.clone(),
            None => {
                let path = directory.join(format!("{}{index}", K::FILE));
                make_sparse(&path, size).with_context(|| format!("a file for {}, {}", K::WHAT, path.display()))?;
                path
            }
        };
        self.make()?;
        let held = File::open(&path).with_context(|| path.display().to_string())?;
        lock(&held, &path)?;
        let (align, path) = (self.align_bytes(), qemu_value(&path)?);
        let object = format!("memory-backend-file,mem-path={path},share=on,align={align},size={size}");
        Ok(Ready { object, _lock: Some(held) })
    }
}

/// One of so many bytes, whose contents go with the run.
impl<K: Kind> From<u64> for OverFile<K> {
    fn from(size_bytes: u64) -> Self {
        Self::temporary(size_bytes)
    }
}

impl Nvdimm {
    /// The same, not armed.
    #[must_use]
    pub fn not_armed(self) -> Self {
        Self { unarmed: true, ..self }
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

/// One virtio-pmem device of the machine. Its contents go with the run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VirtioPmem {
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Whether QEMU can flush it: it can where there is a file. Where there is only memory, every flush is an error.
    pub can_flush: bool,
}

/// One of so many bytes, which works.
impl From<u64> for VirtioPmem {
    fn from(size_bytes: u64) -> Self {
        Self::new(size_bytes)
    }
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
    use std::fmt::Debug;

    fn scratch() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory")
    }

    fn a_new_file_gets_the_size_and_an_old_one_keeps_it_of<K: Kind + Debug + PartialEq>(what: &str) {
        let dir = scratch();
        let file = dir.path().join("kept");
        let asked = OverFile::<K>::kept(&file, Some(2 * MIB), GIB).expect("taken");
        assert!(!file.exists(), "made before it was known whether the machine is");
        asked.make().expect("made");
        assert_eq!(file.metadata().expect("there").len(), 2 * MIB + K::MORE_BYTES);
        assert_eq!(OverFile::kept(&file, None, GIB).expect("opened"), asked);
        let error = OverFile::<K>::kept(&file, Some(4 * MIB), GIB).expect_err("another size").to_string();
        assert!(error.ends_with(&format!("holds {what} of 2M, not of 4M")), "{error}");
        std::fs::write(&file, "kept").expect("written");
        asked.make().expect("there");
        assert_eq!(std::fs::read(&file).expect("there"), b"kept");
    }

    #[test]
    fn a_new_file_gets_the_size_and_an_old_one_keeps_it() {
        a_new_file_gets_the_size_and_an_old_one_keeps_it_of::<NvdimmKind>("an NVDIMM");
        a_new_file_gets_the_size_and_an_old_one_keeps_it_of::<DimmKind>("a module");
    }

    fn a_file_that_cannot_be_had_is_one_line_of<K: Kind + Debug>() {
        let dir = scratch();
        let odd = dir.path().join("odd");
        std::fs::write(&odd, vec![0; 5000]).expect("written");
        for file in [dir.path().join("no/such/dir"), dir.path().to_path_buf(), odd] {
            let refused = OverFile::<K>::kept(&file, None, GIB).and_then(|device| device.make());
            let error = format!("{:#}", refused.expect_err("refused"));
            let named = format!("{} {}", K::OPTION, file.display());
            assert!(error.starts_with(&named) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_had_is_one_line_with_its_name() {
        a_file_that_cannot_be_had_is_one_line_of::<NvdimmKind>();
        a_file_that_cannot_be_had_is_one_line_of::<DimmKind>();
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
