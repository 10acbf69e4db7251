//! Where things are in the kernel half of every address space (4-level paging).
//!
//! | from                    | what                                                                |
//! |-------------------------|---------------------------------------------------------------------|
//! | `0xffff_8000_0000_0000` | direct map: physical address + this; RAM at boot, devices on demand |
//! | `0xffff_c000_0000_0000` | stacks, each with an unmapped guard page below it                   |
//! | `0xffff_d000_0000_0000` | device registers, uncached                                          |
//! | `0xffff_e000_0000_0000` | what the loader set up for the first instructions; gone afterwards  |
//! | `0xffff_f000_0000_0000` | never mapped: the two root entries are links between roots            |
//! | `0xffff_ffff_8000_0000` | the kernel image                                                    |

use mm::addr::{PhysAddr, VirtAddr};

/// First address of the kernel half.
pub const KERNEL_HALF: u64 = 0xffff_8000_0000_0000;
/// Start of the direct map. The loader is told to put its own there, so that no pointer changes when the kernel's
/// tables take over.
pub const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
/// Bytes of physical address space that the direct map has room for (64 TiB).
pub const DIRECT_MAP_BYTES: u64 = 1 << 46;
/// Start of the stacks.
pub const STACKS: u64 = 0xffff_c000_0000_0000;
/// Start of uncached device registers.
pub const REGISTERS: u64 = 0xffff_d000_0000_0000;
/// Where the loader puts its stack for us, its information block and the frame buffer.
pub const LOADER_STACK: u64 = 0xffff_e000_0000_0000;
/// See [`LOADER_STACK`].
pub const LOADER_INFO: u64 = 0xffff_e100_0000_0000;
/// See [`LOADER_STACK`].
pub const LOADER_FRAMEBUFFER: u64 = 0xffff_e200_0000_0000;
/// A TiB that is never mapped, whose two root entries link the roots to each other.
pub const ROOT_LINKS: u64 = 0xffff_f000_0000_0000;
/// Where the kernel image is loaded.
pub const KERNEL_IMAGE: u64 = 0xffff_ffff_8000_0000;

/// Where the direct map has `addr`. That it is mapped is not implied.
#[inline]
pub const fn direct(addr: PhysAddr) -> VirtAddr {
    VirtAddr::new(DIRECT_MAP + addr.as_u64())
}

/// [`direct`] as a pointer.
#[inline]
pub const fn direct_ptr<T>(addr: PhysAddr) -> *mut T {
    direct(addr).as_u64() as *mut T
}
