//! The write load of the kill test: tasks that change a file system until somebody kills the machine, and say what is
//! durable. What they do, and how an image is judged afterwards, is in [`fs::load`].

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use fs::error::FsError;
use fs::load::Load;
use fs::lock_order::Context;
use fs::mounted::Mounted;

use crate::console::command::Command;
use crate::cpu::percpu;
use crate::mem::machine::KernelMachine;
use crate::pmem::mounts;
use crate::shell::devices::{device, number};
use crate::task::sched::{self, NoStack};
use crate::task::tcb::Task;

/// The commands.
pub const COMMANDS: &[Command] = &[Command {
    name: "fsload",
    args: "N SEED TASKS STEPS",
    help: "a write load on device N, as many steps for each task (0: no end)",
    example: "fsload 0 1 2 0 &",
    run: fsload,
}];

/// Tasks at most.
const MAX_TASKS: u64 = 16;

fn fsload(args: &[&str]) -> Result<(), String> {
    let [at, seed, tasks, steps] = args else { return Err("expected: fsload N SEED TASKS STEPS".into()) };
    let (at, seed, nr_tasks, steps) = (device(at)?, number(seed)?, number(tasks)?, number(steps)?);
    if !(1..=MAX_TASKS).contains(&nr_tasks) {
        return Err(format!("{nr_tasks} tasks; expected 1 to {MAX_TASKS}"));
    }
    let mounted = mounts::mount(at)?;
    crate::console::answer!("fsload mounted device={} seed={seed} tasks={nr_tasks}", mounted.name());
    let end = Arc::new(AtomicU64::new(if steps == 0 { u64::MAX } else { steps }));
    let failures = Arc::new(AtomicU64::new(0));
    let (mut tasks, mut started) = (Vec::new(), Ok(()));
    for task in 0..nr_tasks {
        match start(&mounted, Load { seed, task }, &end, &failures) {
            Ok(task) => tasks.push(task),
            Err(error) => {
                // Not some of them: those that work already stop.
                end.store(0, Ordering::Relaxed);
                started = Err(format!("{error}"));
                break;
            }
        }
    }
    for task in &tasks {
        let _only_the_end_matters = sched::join(task);
    }
    mounts::unmount(at)?;
    crate::console::answer!("fsload unmounted device={}", mounted.name());
    started?;
    match failures.load(Ordering::Relaxed) {
        0 => Ok(()),
        nr => Err(format!("{nr} tasks failed")),
    }
}

/// Starts one task of the load on a CPU of its own, as far as there are any.
fn start(
    mounted: &Arc<Mounted<KernelMachine>>,
    load: Load,
    end: &Arc<AtomicU64>,
    failures: &Arc<AtomicU64>,
) -> Result<Arc<Task>, NoStack> {
    let (mounted, failures, end) = (Arc::clone(mounted), Arc::clone(failures), Arc::clone(end));
    let cpu = load.task as usize % percpu::all().count();
    sched::try_spawn(&format!("fsload-{}", load.task), cpu, None, move || {
        if let Err((nr, error)) = run(&mounted, &load, &end) {
            failures.fetch_add(1, Ordering::Relaxed);
            crate::console::report!("fsload task={} failed={nr}", load.task);
            log::error!("task {}: step {nr}: {error}", load.task);
        }
        Ok(())
    })
}

/// Steps for one acknowledgement: to say it takes about as long as a step.
const BATCH: u64 = 4;

/// Does the steps up to `end`, and acknowledges them.
fn run(mounted: &Arc<Mounted<KernelMachine>>, load: &Load, end: &AtomicU64) -> Result<(), (u64, FsError)> {
    let context = Context::new();
    let files = mounted.prepare_load(&context, load).and_then(|()| mounted.read_load(&context, load));
    let mut files = files.map_err(|error| (0, error))?;
    let mut nr = 0;
    while nr < end.load(Ordering::Relaxed) {
        let step = load.step(&files, nr);
        mounted.do_load_step(&context, load, &step).map_err(|error| (nr, error))?;
        files.apply(&step);
        nr += 1;
        if nr.is_multiple_of(BATCH) || nr == end.load(Ordering::Relaxed) {
            crate::console::report!("fsload task={} acked={nr}", load.task);
        }
    }
    Ok(())
}
