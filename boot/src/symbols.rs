//! Addresses of the running kernel as names and source lines.

use crate::records;
use anyhow::{Result, anyhow};
use std::path::Path;

/// The kernel's symbols, and where the loader put it.
pub struct Symbols {
    loader: addr2line::Loader,
    base: u64,
}

impl Symbols {
    /// Reads the kernel's ELF file. The kernel says in its `@kernel base=0x…` line where it was loaded.
    ///
    /// # Errors
    /// When the file cannot be read, is not ELF, or the console has no such line.
    pub fn load(kernel: &Path, console: &[String]) -> Result<Self> {
        let base = records::of_topic(console, "kernel").find_map(|record| record.number("base"));
        let base = base.ok_or_else(|| anyhow!("the kernel did not say where it was loaded"))?;
        let loader = addr2line::Loader::new(kernel).map_err(|error| anyhow!("{}: {error}", kernel.display()))?;
        Ok(Self { loader, base })
    }

    /// The function at an address of the running kernel, with its source line where that is known; `None` outside the
    /// kernel's code.
    #[must_use]
    pub fn name(&self, address: u64) -> Option<String> {
        let offset = address.checked_sub(self.base)?;
        let name = self.loader.find_symbol(offset)?;
        let name = addr2line::demangle_auto(name.into(), None);
        Some(match self.place(offset) {
            Some(place) => format!("{name} ({place})"),
            None => name.into_owned(),
        })
    }

    /// The line of the function itself, and not of what was inlined into it: `wait_for_ack` says more than `spin_loop`.
    fn place(&self, offset: u64) -> Option<String> {
        let mut frames = self.loader.find_frames(offset).ok()?;
        let mut place = None;
        while let Ok(Some(frame)) = frames.next() {
            place = frame.location.and_then(|at| Some(format!("{}:{}", at.file?, at.line?)));
        }
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This very test program is an ELF file with symbols too; its own address tells where it was loaded.
    #[inline(never)]
    fn landmark() -> u64 {
        std::hint::black_box(landmark as *const () as u64)
    }

    fn at(base: u64) -> Result<Symbols> {
        let console = [String::from("@unplug version=0.1.0"), format!("@kernel base={base:#x}")];
        Symbols::load(&std::env::current_exe()?, &console)
    }

    #[test]
    fn a_function_is_found_by_its_address_less_the_base() {
        let start = std::fs::read_to_string("/proc/self/maps").expect("Linux");
        let base = start.split('-').next().and_then(|text| u64::from_str_radix(text, 16).ok()).expect("an address");
        let name = at(base).expect("symbols").name(landmark()).expect("a name");
        assert!(name.contains("landmark") && name.contains("symbols.rs:"), "{name}");
    }

    #[test]
    fn an_address_outside_the_kernel_has_no_name() {
        assert_eq!(at(0x1000_0000_0000).expect("symbols").name(0x1000), None);
    }

    #[test]
    fn without_the_kernels_word_there_is_no_guess() {
        assert!(Symbols::load(Path::new("/proc/self/exe"), &["@unplug version=0.1.0".into()]).is_err());
    }
}
