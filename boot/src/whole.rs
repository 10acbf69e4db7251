//! Files that are there as a whole or not at all.

use anyhow::{Context, Result, bail};
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use tempfile::{Builder, NamedTempFile};

/// How the name of what is not whole begins, in the directory where it will be.
pub const UNFINISHED: &str = "unfinished-";

/// Writes a file: all of it, and then in the place of what was there.
///
/// # Errors
/// One line; what was there is as before.
pub fn write(path: &Path, text: &str) -> Result<()> {
    Place::reserve(path)?.write(text)
}

/// All that were reserved in this process. Most are whole by now, and no longer there under these names.
static RESERVED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Removes what is not whole, in a process that ends without dropping it.
pub(crate) fn remove_unfinished() {
    for path in RESERVED.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        let _ = std::fs::remove_file(path);
    }
}

/// A place for a file.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    file: NamedTempFile,
}

impl Place {
    /// Sees to it that a file can be written there, before minutes are spent on what it is to hold.
    ///
    /// # Errors
    /// One line.
    pub fn reserve(path: &Path) -> Result<Self> {
        let shown = path.display();
        if path.is_dir() {
            bail!("{shown} is a directory");
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Others may read it, as they may what else is built.
        let file = Builder::new().prefix(UNFINISHED).permissions(Permissions::from_mode(0o644)).tempfile_in(parent);
        let file = file.with_context(|| format!("{shown} cannot be written"))?;
        RESERVED.lock().unwrap_or_else(PoisonError::into_inner).push(file.path().to_path_buf());
        Ok(Self { path: path.into(), file })
    }

    /// Writes it: all of it, and then in the place of what was there.
    ///
    /// # Errors
    /// One line; what was there is as before.
    pub fn write(mut self, text: &str) -> Result<()> {
        let cannot = || format!("{} cannot be written", self.path.display());
        let file = self.file.as_file_mut();
        file.write_all(text.as_bytes()).with_context(cannot)?;
        file.sync_all().with_context(cannot)?;
        let path = self.path.display().to_string();
        self.file
            .persist(&self.path)
            .map(drop)
            .map_err(|error| error.error)
            .with_context(|| format!("{path} cannot be written"))
    }
}
