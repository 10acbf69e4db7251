//! What can be found under a device's name: its block device, and the DAX device that this host has.
//!
//! Linux: `dax_add_host()` and `fs_dax_get_by_bdev()` in `drivers/dax/super.c`, `device_add_disk()`.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use core::fmt;

use mm::sync::{Arc, Mutex};

/// Things by name, each owned by an [`Entry`].
pub struct Registry<T> {
    entries: Mutex<BTreeMap<String, Arc<T>>>,
}

impl<T> Default for Registry<T> {
    fn default() -> Self {
        Self { entries: Mutex::new(BTreeMap::new()) }
    }
}

impl<T> Registry<T> {
    /// What has this name.
    pub(super) fn find(&self, name: &str) -> Option<Arc<T>> {
        self.entries.lock().get(name).cloned()
    }
    /// Enters a thing; `None` where the name is taken.
    pub(super) fn add(self: &Arc<Self>, name: &str, thing: &Arc<T>) -> Option<Entry<T>> {
        let mut entries = self.entries.lock();
        if entries.contains_key(name) {
            return None;
        }
        entries.insert(name.to_string(), Arc::clone(thing));
        Some(Entry { registry: Arc::clone(self), name: name.to_string() })
    }
}

/// A place in a [`Registry`].
#[must_use = "what is entered can be found no more when this is dropped"]
pub struct Entry<T> {
    registry: Arc<Registry<T>>,
    name: String,
}

impl<T> fmt::Debug for Entry<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<T> Drop for Entry<T> {
    fn drop(&mut self) {
        // What is dropped here may take locks of its own: not under this one.
        let gone = self.registry.entries.lock().remove(&self.name);
        drop(gone);
    }
}
