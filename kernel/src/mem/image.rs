//! The kernel's own ELF file, which the loader leaves in memory: segments for the page tables, symbols for epitaphs.

use core::fmt;

use elf::ElfBytes;
use elf::abi::{PF_W, PF_X, PT_LOAD};
use elf::endian::LittleEndian;
use mm::addr::{PhysAddr, VirtAddr, VirtRange};
use mm::entry::Prot;
use spin::Once;

use crate::mem::layout;

struct Image {
    file: &'static [u8],
    base: u64,
}

static IMAGE: Once<Image> = Once::new();

/// Remembers where the file is (`len` bytes at physical `addr`) and that its address 0 runs at `base`.
///
/// # Safety
/// The range is RAM that nobody writes any more, in the direct map for ever.
pub unsafe fn init(addr: PhysAddr, len: u64, base: u64) {
    // SAFETY: by this function's contract.
    let file = unsafe { core::slice::from_raw_parts(layout::direct_ptr::<u8>(addr), len as usize) };
    IMAGE.call_once(|| Image { file, base });
}

/// Where the image's address 0 is.
pub fn base() -> u64 {
    IMAGE.get().map_or(0, |image| image.base)
}

fn parse() -> Option<(&'static Image, ElfBytes<'static, LittleEndian>)> {
    let image = IMAGE.get()?;
    Some((image, ElfBytes::minimal_parse(image.file).ok()?))
}

/// Calls `each` with every loaded segment, page by page rounded outwards, and its rights.
pub fn for_each_segment(mut each: impl FnMut(VirtRange, Prot)) {
    let Some((image, elf)) = parse() else { return };
    for segment in elf.segments().into_iter().flatten().filter(|segment| segment.p_type == PT_LOAD) {
        let start = VirtAddr::new(image.base + segment.p_vaddr).align_down(mm::addr::PAGE_SIZE);
        let end = (image.base + segment.p_vaddr + segment.p_memsz).next_multiple_of(mm::addr::PAGE_SIZE);
        let prot = Prot { write: segment.p_flags & PF_W != 0, exec: segment.p_flags & PF_X != 0, user: false };
        if let Some(range) = VirtRange::new(start, end - start.as_u64()) {
            each(range, prot);
        }
    }
}

/// The function that holds the code address `addr`, and the offset into it; `None` where the file has no symbols or
/// none fits. Allocates nothing.
fn symbol(addr: u64) -> Option<(&'static str, u64)> {
    let (image, elf) = parse()?;
    let wanted = addr.checked_sub(image.base)?;
    let (symbols, names) = elf.symbol_table().ok()??;
    let best = symbols.iter().filter(|symbol| {
        symbol.st_symtype() <= elf::abi::STT_FUNC
            && symbol.st_shndx != elf::abi::SHN_UNDEF
            && symbol.st_value <= wanted
            && (symbol.st_size == 0 || wanted < symbol.st_value + symbol.st_size)
    });
    let best = best.max_by_key(|symbol| (symbol.st_value, symbol.st_size != 0))?;
    Some((names.get(best.st_name as usize).ok()?, wanted - best.st_value))
}

/// Prints a code address with its symbol, or relative to the image where there is none: the host can look it up.
pub struct Symbolised(pub u64);

impl fmt::Display for Symbolised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match symbol(self.0) {
            Some((name, offset)) => write!(f, "{:#x} {:#}+{offset:#x}", self.0, rustc_demangle::demangle(name)),
            None => write!(f, "{:#x} (image+{:#x})", self.0, self.0.wrapping_sub(base())),
        }
    }
}
