//! Tasks: what runs, the scheduler, waiting, signals, and user memory as a task sees it.
//! May import: cpu, console, mem.

pub mod preempt;
pub mod runner;
pub mod sched;
pub mod services;
pub mod tcb;
pub mod user;
pub mod wait;
pub mod watch;
