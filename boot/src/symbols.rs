//! Addresses of the running kernel as names and source lines.

use crate::records;
use addr2line::gimli::{self, EndianArcSlice};
use anyhow::{Context, Result, anyhow};
use elf::endian::LittleEndian;
use elf::{ElfBytes, abi};
use std::path::Path;
use std::sync::Arc;

/// One section of the file. The reader keeps it, the file does not.
type Section = EndianArcSlice<gimli::LittleEndian>;

/// The kernel's symbols, and where the loader put it.
pub struct Symbols {
    lines: addr2line::Context<Section>,
    /// By address.
    functions: Vec<Function>,
    base: u64,
}

/// A symbol of the kernel's code, as its ELF file has it.
struct Function {
    start: u64,
    /// In bytes; 0 where assembly does not say.
    size: u64,
    name: String,
}

impl Symbols {
    /// Reads the kernel's ELF file. The kernel says in its `@kernel base=0x…` line where it was loaded.
    ///
    /// # Errors
    /// When the file cannot be read, is not ELF, or the console has no such line.
    pub fn load(kernel: &Path, console: &[String]) -> Result<Self> {
        let base = records::of_topic(console, "kernel").find_map(|record| record.number("base"));
        let base = base.ok_or_else(|| anyhow!("the kernel did not say where it was loaded"))?;
        Self::read(kernel, base).with_context(|| kernel.display().to_string())
    }

    fn read(kernel: &Path, base: u64) -> Result<Self> {
        let file = std::fs::read(kernel)?;
        let elf = ElfBytes::<LittleEndian>::minimal_parse(&file)?;
        let dwarf = gimli::Dwarf::load(|id| section(&elf, id.name()))?;
        Ok(Self { lines: addr2line::Context::from_dwarf(dwarf)?, functions: functions(&elf)?, base })
    }

    /// The function at an address of the running kernel, with its source line where that is known; `None` outside the
    /// kernel's code.
    #[must_use]
    pub fn name(&self, address: u64) -> Option<String> {
        let offset = address.checked_sub(self.base)?;
        let next = self.functions.partition_point(|function| function.start <= offset);
        let function = &self.functions[next.checked_sub(1)?];
        if function.size != 0 && offset - function.start >= function.size {
            return None;
        }
        let name = addr2line::demangle_auto(function.name.as_str().into(), None);
        Some(match self.place(offset) {
            Some(place) => format!("{name} ({place})"),
            None => name.into_owned(),
        })
    }

    /// The line of the function itself, and not of what was inlined into it: `wait_for_ack` says more than `spin_loop`.
    fn place(&self, offset: u64) -> Option<String> {
        let mut frames = self.lines.find_frames(offset).skip_all_loads().ok()?;
        let mut place = None;
        while let Ok(Some(frame)) = frames.next() {
            place = frame.location.and_then(|at| Some(format!("{}:{}", at.file?, at.line?)));
        }
        place
    }
}

/// A section's contents; nothing where the file does not have it, or has it compressed.
fn section(elf: &ElfBytes<'_, LittleEndian>, name: &str) -> Result<Section> {
    let data = match elf.section_header_by_name(name)? {
        Some(header) if header.sh_flags & u64::from(abi::SHF_COMPRESSED) == 0 => elf.section_data(&header)?.0,
        _ => &[],
    };
    Ok(Section::new(Arc::from(data), gimli::LittleEndian))
}

/// The symbols in sections of code, by address.
fn functions(elf: &ElfBytes<'_, LittleEndian>) -> Result<Vec<Function>> {
    let (symbols, names) = elf.symbol_table()?.context("it has no symbols")?;
    let headers = elf.section_headers().context("it has no sections")?;
    let is_code = |index| headers.get(index).is_ok_and(|header| header.sh_flags & u64::from(abi::SHF_EXECINSTR) != 0);
    let mut functions = Vec::new();
    for symbol in symbols.iter().filter(|symbol| matches!(symbol.st_symtype(), abi::STT_FUNC | abi::STT_NOTYPE)) {
        // Index 0 is the section of what is undefined, and has no flags.
        if is_code(symbol.st_shndx.into()) {
            let name = names.get(symbol.st_name as usize)?.to_string();
            functions.push(Function { start: symbol.st_value, size: symbol.st_size, name });
        }
    }
    functions.sort_by_key(|function| function.start);
    Ok(functions)
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
    fn what_is_no_elf_file_is_refused_by_name() {
        let console = [String::from("@kernel base=0x0")];
        let refused = |path: &str| Symbols::load(Path::new(path), &console).err().expect("refused");
        assert!(format!("{:#}", refused("/proc/self/maps")).starts_with("/proc/self/maps: "));
        assert!(format!("{:#}", refused("/no/such/kernel")).starts_with("/no/such/kernel: "));
    }

    #[test]
    fn without_the_kernels_word_there_is_no_guess() {
        assert!(Symbols::load(Path::new("/proc/self/exe"), &["@unplug version=0.1.0".into()]).is_err());
    }
}
