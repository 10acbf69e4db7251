//! Memory: frames, the heap and its reserve, the kernel's page tables, stacks; and the kernel as `mm`'s machine.
//! May import: cpu.

pub mod books;
pub mod heap;
pub mod image;
pub mod kstack;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod paging;
pub mod reserve;
