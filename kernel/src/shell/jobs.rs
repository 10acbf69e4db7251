//! Commands that run beside the shell: a line that ends in `&`, and one that somebody at a terminal does not wait for any
//! longer.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use mm::sync::Mutex;

use crate::console::command::Command;
use crate::console::{self, report};
use crate::cpu::percpu;
use crate::shell::args::number;
use crate::shell::input;
use crate::task::sched;

/// The commands.
pub const COMMANDS: &[Command] = &[
    Command {
        name: "jobs",
        args: "",
        help: "the commands that were started with & at their end; of one that has ended, once",
        example: "jobs",
        run: jobs,
    },
    Command {
        name: "wait",
        args: "[JOB]",
        help: "wait until a job has ended, or all of them, and say how; control-C ends the wait, not the job",
        example: "wait 1",
        run: wait,
    },
];

/// What ends the machine, wants all devices for itself, or is about the line that is typed.
const NOT: &[&str] = &["demo", "exit", "fuzz", "hang", "jobs", "overflow", "panic", "test", "wait"];
/// How the name of a job's task begins.
const NAME: &str = "job-";
/// The name of the task of a command that somebody at a terminal waits for.
const WATCHED: &str = "command";
/// At most so many run at a time.
const MOST: usize = 16;

/// How far a job is.
#[derive(Clone, Debug)]
enum State {
    Running,
    Done,
    /// With what was to be said of it.
    Failed(String),
}

impl State {
    const fn word(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed(_) => "failed",
        }
    }
}

/// A command that runs beside the shell.
struct Job {
    nr: u64,
    /// Its words, for people.
    line: String,
    state: Mutex<State>,
}

impl Job {
    fn runs(&self) -> bool {
        matches!(*self.state.lock(), State::Running)
    }

    /// It has ended: says so. Whoever sees that it runs no more finds it said.
    fn end(&self, state: State) {
        let mut now = self.state.lock();
        self.say(&state);
        *now = state;
    }

    /// Says how far it is.
    fn say(&self, state: &State) {
        let (nr, line) = (self.nr, &self.line);
        match state {
            State::Failed(message) => console::line(format_args!("error: job {nr} ({line}): {message}")),
            state => console::line(format_args!("job {nr} is {}: {line}", state.word())),
        }
        report!("job id={nr} state={}", state.word());
    }
}

/// Those that run, and those that have ended and were not listed since; with the last one's number.
static JOBS: Mutex<(u64, Vec<Arc<Job>>)> = Mutex::new((0, Vec::new()));

/// Does a job ask, and not the shell?
pub fn is_one() -> bool {
    sched::with_current(|task| task.name.starts_with(NAME)) == Some(true)
}

/// A job of this line, if there is room for one more.
fn enter(line: String) -> Result<Arc<Job>, String> {
    let mut jobs = JOBS.lock();
    let running = jobs.1.iter().filter(|job| job.runs()).count();
    if running >= MOST {
        return Err(format!("{running} jobs run already (wait waits for them)"));
    }
    jobs.0 += 1;
    let job = Arc::new(Job { nr: jobs.0, line, state: Mutex::new(State::Running) });
    jobs.1.push(Arc::clone(&job));
    Ok(job)
}

fn forget(nr: u64) {
    JOBS.lock().1.retain(|job| job.nr != nr);
}

/// How many there are.
pub fn count() -> usize {
    JOBS.lock().1.len()
}

fn in_place(command: &Command, words: &[String]) -> Result<(), String> {
    let args: Vec<&str> = words.iter().skip(1).map(String::as_str).collect();
    (command.run)(&args)
}

fn run(command: &Command, words: &[String]) -> State {
    in_place(command, words).map_or_else(State::Failed, |()| State::Done)
}

/// Starts a command with all of its words as a job.
pub fn start(command: &'static Command, words: &[String]) -> Result<(), String> {
    if NOT.contains(&command.name) {
        return Err(format!("{} cannot be a job; nothing was done", command.name));
    }
    let job = enter(words.join(" "))?;
    let (theirs, words): (_, Vec<String>) = (Arc::clone(&job), words.to_vec());
    // Not where the shell runs, as far as there is another.
    let cpus: Vec<_> = percpu::online().iter().collect();
    let cpu = cpus.get(job.nr as usize % cpus.len().max(1)).copied().unwrap_or(0);
    let name = format!("{NAME}{}", job.nr);
    // It cannot say that it has ended before it was said that it runs.
    let state = job.state.lock();
    let task = sched::try_spawn(&name, cpu, None, move || {
        let state = run(command, &words);
        theirs.end(state);
        Ok(())
    });
    if let Err(error) = task {
        drop(state);
        forget(job.nr);
        return Err(format!("{error}"));
    }
    job.say(&state);
    Ok(())
}

/// A command that somebody waits for, or has waited for.
enum Watched {
    /// It runs, and is waited for.
    Waited,
    /// It runs, and is a job now.
    Left(Arc<Job>),
    /// It has ended while it was waited for.
    Ended(State),
}

/// Runs a command for somebody at a terminal, in a task of its own: Control-C gives the prompt back, and the command, which
/// may hold what only it can give back, goes on as a job.
pub fn watch(command: &'static Command, words: &[String]) -> Result<(), String> {
    if NOT.contains(&command.name) {
        return in_place(command, words);
    }
    let watched = Arc::new(Mutex::new(Watched::Waited));
    let (theirs, line) = (Arc::clone(&watched), words.to_vec());
    let task = sched::try_spawn(WATCHED, percpu::this().id(), None, move || {
        let state = run(command, &line);
        let mut watched = theirs.lock();
        if let Watched::Left(job) = &*watched {
            job.end(state);
        } else {
            *watched = Watched::Ended(state);
        }
        Ok(())
    });
    if task.is_err() {
        // It may be the one that gives memory back.
        return in_place(command, words);
    }
    loop {
        {
            let mut watched = watched.lock();
            match &*watched {
                Watched::Ended(State::Failed(message)) => return Err(message.clone()),
                Watched::Ended(_) => return Ok(()),
                _ if !input::is_interrupted() => {}
                // Where there is no room for one more, it is waited for.
                _ => match enter(words.join(" ")) {
                    Err(error) => console::line(format_args!("{error}")),
                    Ok(job) => {
                        job.say(&State::Running);
                        *watched = Watched::Left(job);
                        return Ok(());
                    }
                },
            }
        }
        sched::sleep_ns(input::POLL_NS);
    }
}

/// Lists them, and forgets those that have ended.
fn jobs(_: &[&str]) -> Result<(), String> {
    let jobs = JOBS.lock().1.clone();
    if jobs.is_empty() {
        console::line(format_args!("no job"));
    }
    for job in &jobs {
        let state = job.state.lock().clone();
        job.say(&state);
        if !matches!(state, State::Running) {
            forget(job.nr);
        }
    }
    Ok(())
}

fn wait(args: &[&str]) -> Result<(), String> {
    let all = JOBS.lock().1.clone();
    let wanted: Vec<_> = match args {
        [] => all,
        [nr] => {
            let nr = number(nr)?;
            let found = all.into_iter().find(|job| job.nr == nr);
            Vec::from([found.ok_or_else(|| format!("there is no job {nr} (jobs lists them)"))?])
        }
        _ => return Err("expected: wait, or wait JOB".into()),
    };
    // Who has ended before has said so to another command.
    let wanted: Vec<_> = wanted.into_iter().map(|job| (job.runs(), job)).collect();
    for (ran, job) in &wanted {
        while job.runs() {
            if input::is_interrupted() {
                return Err(format!("interrupted; job {} goes on", job.nr));
            }
            sched::sleep_ns(input::POLL_NS);
        }
        if !ran {
            let state = job.state.lock().clone();
            job.say(&state);
        }
        forget(job.nr);
    }
    Ok(())
}
