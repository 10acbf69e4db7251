//! What interrupts a task: exceptions, interrupts, machine checks; and the panic that ends the kernel.
//! May import: cpu, console, mem, task.

pub mod events;
pub mod memory_error;
pub mod panic;
pub mod vectors;
