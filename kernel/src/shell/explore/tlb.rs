//! `tlb`: what each CPU has loaded, and how far it has flushed.

use alloc::format;
use alloc::string::String;

use mm::machine::IrqOff;
use mm::shootdown::CpuLook;

use super::words::count;
use crate::console::{self, report};
use crate::cpu::percpu;
use crate::mem::machine::mm;

/// The command.
pub fn run(args: &[&str]) -> Result<(), String> {
    if !args.is_empty() {
        return Err("expected: tlb".into());
    }
    for cpu in percpu::online().iter() {
        // The guard ends with the statement: what is printed is printed with interrupts on.
        let look = mm().shootdown.look(&IrqOff::new(&mm().machine), cpu);
        if let Some(look) = look {
            show(cpu, &look);
        }
    }
    let stats = mm().shootdown.stats();
    console::line(format_args!(
        "{}, {} sent; on all CPUs {} flushed one by one, and everything {} times",
        count(stats.rounds, "shootdown"),
        count(stats.ipis, "interrupt"),
        count(stats.page_flushes, "page"),
        stats.full_flushes
    ));
    Ok(())
}

fn show(cpu: usize, look: &CpuLook) {
    let CpuLook { space, lazy, generation, flushed, kernel_generation, kernel_flushed, .. } = *look;
    let CpuLook { requests, answered, .. } = *look;
    let loaded = match space {
        None => String::from("has the kernel's own tables loaded"),
        Some(id) if lazy => format!("idles with space {id} loaded, flushed up to {flushed} of generation {generation}"),
        Some(id) => format!("has space {id} loaded, flushed up to {flushed} of generation {generation}"),
    };
    console::line(format_args!(
        "CPU {cpu}: {loaded}; kernel half {kernel_flushed} of {kernel_generation}; interrupted {requests} times to flush ({answered} answered)"
    ));
    report!(
        "tlb cpu={cpu} space={} lazy={} generation={generation} flushed={flushed} kernel_generation={kernel_generation} kernel_flushed={kernel_flushed} requests={requests} answered={answered}",
        space.unwrap_or(0),
        u8::from(lazy)
    );
}
