//! The demonstration: load on every CPU, the device pulled out under it, and nothing left behind.

use crate::support::{assert_good, has_line, machine, records, run, tail};
use boot::backing::{Dimm, Nvdimm, VirtioPmem};
use boot::machine::Machine;
use boot::outcome::Outcome;
use boot::records::Record;
use boot::size::{MIB, TIB};

/// The steps of a removal whose order the specification says; others may stand between them.
const STEPS: [&str; 8] =
    ["stop_io", "kill_dax", "invalidate", "shootdown", "drain", "free_metadata", "unmap_direct_map", "release"];

/// How many steps an attach or a removal has, as each of its lines says.
fn nr_steps(outcome: &Outcome, topic: &str) -> u64 {
    records(outcome, topic)[0].number("of").unwrap_or_else(|| panic!("no number of steps\n{}", tail(outcome)))
}

/// What every demonstration shows, whatever the machine: four removals, by range, by frame, from a task that maps one
/// page, and from under a file system, each with all its steps.
// covers: R1 R2 R3 R7 R10 L6
fn assert_whole_story(outcome: &Outcome, cpus: usize, raised_by: &str) {
    assert_good(outcome);
    let online = records(outcome, "cpu").iter().filter(|cpu| cpu.get("state") == Some("online")).count();
    assert_eq!(online, cpus, "{}", tail(outcome));
    // Of the device that goes under load: others, which the bystanders use, go at the end.
    let steps: Vec<_> =
        records(outcome, "removal").into_iter().filter(|step| step.get("device") == Some("pmem0")).collect();
    let of = nr_steps(outcome, "removal");
    assert!(steps.iter().map(|step| step.number("n")).eq((0..4).flat_map(|_| (1..=of).map(Some))), "{steps:#?}");
    let names: Vec<_> = steps.iter().filter_map(|step| step.get("step").filter(|name| STEPS.contains(name))).collect();
    assert_eq!(names, [STEPS; 4].concat());
    let troubled = steps.iter().find(|step| step.number("problem") != Some(0));
    assert_eq!(troubled, None);
    let mut shootdowns = steps.iter().filter(|step| step.get("step") == Some("shootdown"));
    let [ranged, perframe] = [(); 2].map(|()| shootdowns.next().and_then(|step| step.number("rounds")));
    assert_eq!(ranged, Some(1), "one shootdown for the whole device");
    assert!(perframe.is_some());
    // One long-term pin in each round, whose owner does not listen.
    let states: Vec<_> =
        records(outcome, "registration").iter().filter_map(|one| one.get("state").map(String::from)).collect();
    assert_eq!(states, ["asked", "revoked", "asked", "revoked"]);
    assert_table(outcome);
    let ledger: Vec<_> =
        records(outcome, "ledger").into_iter().filter(|entry| entry.get("kind") != Some("ram_frames")).collect();
    assert!(!ledger.is_empty(), "no ledger\n{}", tail(outcome));
    let left: Vec<_> =
        ledger.iter().filter(|entry| entry.number("count") != Some(0)).map(ToString::to_string).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    assert_page(outcome);
    assert_raised(outcome, raised_by);
    assert_files(outcome, cpus as u64);
    assert_tasks(outcome);
    assert_lines_are_whole(outcome);
}

/// Tasks on all CPUs print while the remover does: no line has a part of another in it.
fn assert_lines_are_whole(outcome: &Outcome) {
    for line in &outcome.console {
        let whole = if let Some(record) = line.strip_prefix('@') {
            let is_pair = |word: &str| word.split('=').count() == 2;
            record.split(' ').skip(1).all(is_pair)
        } else if let Some((time, rest)) = line.strip_prefix('[').and_then(|line| line.split_once("] ")) {
            time.trim_start().parse::<f64>().is_ok() && !rest.contains(['@', '[']) && rest.contains(": ")
        } else {
            // The table, and what is said below it.
            !line.contains(['@', '[', '='])
        };
        assert!(whole, "{line:?} is not one line\n{}", tail(outcome));
    }
}

/// Every step failed once, without a leak; sectors held what was written; a lost page cost the task that mapped it, was an
/// I/O error by sector, and usable again after a write. The report of the removal is printed as it is kept.
// covers: A6 R5 P1 P3
fn assert_page(outcome: &Outcome) {
    let [act] = &records(outcome, "page")[..] else { panic!("not one line of the page\n{}", tail(outcome)) };
    let number = |key| act.number(key).unwrap_or_else(|| panic!("no {key} in {act}"));
    // Each step of attach, the device-dax file that comes after them, and each of removal.
    let (attach, removal) = (nr_steps(outcome, "attach"), nr_steps(outcome, "removal"));
    let faults = attach + 1 + removal;
    assert_eq!(["faults", "leaks", "users", "sigbus", "bad_sectors"].map(number), [faults, 0, 2, 2, 8], "{act}");
    assert_eq!(["same", "told", "read_on", "io_error", "healed"].map(number), [1; 5], "{act}");
    assert_eq!(records(outcome, "memory_failure").len(), 1, "{}", tail(outcome));
    let ends = [format!("  1/{removal} stop_io: "), format!("  {removal}/{removal} release: ")];
    for words in ends.iter().map(String::as_str).chain(["  mapped by neighbour (space ", "  used by neighbour (task "])
    {
        assert!(outcome.console.iter().any(|line| line.starts_with(words)), "{words:?}\n{}", tail(outcome));
    }
}

/// The page was lost by one machine check, which its handler noted, and which these have raised.
// covers: P2
fn assert_raised(outcome: &Outcome, by: &str) {
    let [check] = &records(outcome, "machine_check")[..] else { panic!("not one machine check\n{}", tail(outcome)) };
    let lost = records(outcome, "memory_failure").iter().find_map(|lost| lost.number("pfn"));
    assert_eq!((check.get("by"), check.number("len")), (Some(by), Some(4096)), "{check}");
    assert!(lost.is_some() && check.number("addr") == lost.map(|pfn| pfn << 12), "{check}");
}

/// How many requests the kernel had.
fn host_requests(outcome: &Outcome) -> usize {
    records(outcome, "host_request").len()
}

/// The file system was told before the device died, and told every task in its turn; each task ended as its kind has to;
/// afterwards nothing was damaged, and what had been synced was there.
// covers: N5 N10 N11 N15 R9
fn assert_files(outcome: &Outcome, cpus: u64) {
    let [act] = &records(outcome, "files")[..] else { panic!("not one line of files\n{}", tail(outcome)) };
    let number = |key| act.number(key).unwrap_or_else(|| panic!("no {key} in {act}"));
    for (kind, ended) in
        [("programs", "sigbus"), ("databases", "caught"), ("callers", "refused"), ("bystanders", "went_on")]
    {
        assert_eq!((number(kind), number(ended)), (cpus, cpus), "{kind}: {act}");
    }
    assert!(["syncs", "calls", "pins"].into_iter().all(|key| number(key) > 0), "{act}");
    assert_eq!(["wrong", "nothing", "damage", "lost"].map(number), [0; 4], "{act}");
    let [told] = &records(outcome, "notify")[..] else { panic!("not one notification\n{}", tail(outcome)) };
    let told = |key| told.number(key).unwrap_or_else(|| panic!("no {key} in {told}"));
    assert_eq!(["pre_remove", "frozen", "rounds", "poisoned", "errors"].map(told), [1, 1, 1, 0, 0]);
    // A program and a database on each CPU.
    assert_eq!((told("mappings"), told("told")), (2 * cpus, 2 * cpus));
    assert_eq!(records(outcome, "lost").len() as u64, 2 * cpus);
    for step in 1..=7 {
        assert!(has_line(outcome, &[&format!("notified: {step}/7")]), "step {step}\n{}", tail(outcome));
    }
}

/// By range the work is for each extent, by frame for each frame: so the baseline visits more entries and makes more
/// rounds for each frame that it covers.
fn assert_table(outcome: &Outcome) {
    let table = records(outcome, "table");
    let row = |name: &str| {
        let row = table.iter().find(|row| row.get("row") == Some(name));
        let both = row.and_then(|row| row.number("ranged").zip(row.number("perframe")));
        both.unwrap_or_else(|| panic!("no row {name}\n{}", tail(outcome)))
    };
    let frames = row("frames_covered");
    for name in ["entries_visited", "rounds"] {
        let (ranged, perframe) = row(name);
        let (ranged, perframe) =
            (u128::from(ranged) * u128::from(frames.1), u128::from(perframe) * u128::from(frames.0));
        assert!(ranged < perframe, "{name}: by range is no better than by frame\n{}", tail(outcome));
    }
}

/// Every task that used the device ended with SIGBUS, and no other did.
fn assert_tasks(outcome: &Outcome) {
    let rounds = records(outcome, "round");
    assert_eq!(rounds.iter().filter_map(|round| round.get("method")).collect::<Vec<_>>(), ["ranged", "per-frame"]);
    let mut ended = 0;
    for round in &rounds {
        let number = |key| round.number(key).unwrap_or_else(|| panic!("no {key} in {round}"));
        assert!(number("users") > 0 && number("pins") > 0, "{round}");
        assert_eq!(number("sigbus"), number("users"), "{round}");
        assert_eq!(number("went_on"), number("bystanders"), "{round}");
        ended += number("sigbus");
    }
    ended += records(outcome, "page").iter().filter_map(|act| act.number("sigbus")).sum::<u64>();
    ended += records(outcome, "files").iter().filter_map(|act| act.number("sigbus")).sum::<u64>();
    let said = records(outcome, "task").iter().filter(|task| task.get("exit") == Some("sigbus")).count();
    assert_eq!(said as u64, ended, "{}", tail(outcome));
}

fn with_cpus(smp: u32) {
    let outcome = run(&Machine { smp, ..machine() });
    assert_whole_story(&outcome, smp as usize, "host");
    assert_eq!(host_requests(&outcome), 1, "{}", tail(&outcome));
}

/// A promise that is not kept: nobody raises the machine check that the kernel asks for, and so it does so itself. (That
/// it does so at once where nothing was promised is seen in deterministic mode.)
#[test]
fn one_cpu_and_nobody_who_grants_a_host_request() {
    let outcome =
        run(&Machine { smp: 1, grants_host_requests: false, append: vec!["host_requests=1".into()], ..machine() });
    assert_whole_story(&outcome, 1, "kernel");
    assert_eq!(host_requests(&outcome), 1, "{}", tail(&outcome));
}

/// Only lines for programs are left, and warnings: the demonstration has one, of the page that it loses.
#[test]
fn quiet() {
    let outcome = run(&Machine { smp: 1, append: vec!["quiet=1".into()], ..machine() });
    assert_good(&outcome);
    assert_raised(&outcome, "host");
    assert_eq!(records(&outcome, "round").len(), 2, "{}", tail(&outcome));
    for line in &outcome.console {
        assert!(line.starts_with('@') || line.contains("warning: frame "), "{line:?}");
    }
}

#[test]
fn two_cpus() {
    with_cpus(2);
}

#[test]
fn four_cpus() {
    with_cpus(4);
}

#[test]
fn eight_cpus() {
    with_cpus(8);
}

/// Lent memory goes through the same driver, and holds what was written to it.
// covers: A7
#[test]
fn with_lent_memory_beside_the_nvdimm() {
    let outcome = run(&Machine { smp: 2, virtio_pmem: vec![VirtioPmem::new(64 * MIB)], ..machine() });
    assert_whole_story(&outcome, 2, "host");
    let lent: Vec<_> = records(&outcome, "lent").iter().map(ToString::to_string).collect();
    assert!(lent.len() == 1 && lent[0].ends_with("device=vpmem0 dax=1 same=1"), "{lent:?}\n{}", tail(&outcome));
}

/// Deterministic mode on one CPU is what its name says: two runs print the same bytes. With several CPUs QEMU 7.2 lets
/// the host's clock into the turns that they take, in ways that docs/testing.md lists as far as they are known. The
/// kernel asks for nothing then: the host would grant it at another instruction each time.
#[test]
fn deterministic_twice_is_the_same_to_the_byte() {
    let machine = Machine { smp: 1, deterministic: true, ..machine() };
    let (first, second) = (run(&machine), run(&machine));
    assert_whole_story(&first, 1, "kernel");
    assert_eq!(host_requests(&first), 0, "{}", tail(&first));
    for (number, (one, other)) in first.console.iter().zip(&second.console).enumerate() {
        assert_eq!(one, other, "line {}", number + 1);
    }
    assert_eq!(first.console.len(), second.console.len());
}

/// With several CPUs the clock still counts instructions, and the story is the same.
#[test]
fn deterministic_on_four_cpus() {
    let outcome = run(&Machine { deterministic: true, ..machine() });
    assert_whole_story(&outcome, 4, "kernel");
}

/// A 6 TiB device has 1,610,612,736 frames, and goes as fast as a small one.
// covers: R4
#[test]
fn six_tebibytes_attached_and_removed() {
    let outcome = run(&Machine { pmem: vec![Nvdimm::temporary(6 * TIB)], ..machine() });
    assert_whole_story(&outcome, 4, "host");
    let nvdimms = records(&outcome, "nvdimm");
    assert_eq!(nvdimms.iter().filter_map(|nvdimm| nvdimm.number("size")).next(), Some(6 * TIB), "{}", tail(&outcome));
}

/// The last act, in which two modules leave without a word: whoever used them is told, and no transfer to them counts.
fn fallen(machine: &Machine) -> Outcome {
    let dimms = vec![Dimm::temporary(128 * MIB); 2];
    let outcome = run(&Machine { dimms, ..machine.clone() });
    assert_good(&outcome);
    assert_lines_are_whole(&outcome);
    let cpus = u64::from(machine.smp);
    let files = records(&outcome, "files").into_iter().find(|act| act.get("act") == Some("desk"));
    let files = files.unwrap_or_else(|| panic!("nothing has fallen\n{}", tail(&outcome)));
    for (kind, ended) in
        [("programs", "sigbus"), ("databases", "caught"), ("callers", "refused"), ("bystanders", "went_on")]
    {
        assert_eq!([kind, ended].map(|key| files.number(key)), [Some(cpus); 2], "{kind}: {files}");
    }
    assert_eq!(files.number("wrong"), Some(0), "{files}");
    let gone = records(&outcome, "departed").into_iter().filter(|one| one.get("cause") == Some("gone"));
    assert_eq!(gone.count(), 2, "{}", tail(&outcome));
    // The registration of the transfer is told from its making to the fault after its end, with whose it is.
    let of_edu = |topic| {
        let mut lines = records(&outcome, topic).into_iter();
        lines.rfind(|line| line.get("device") == Some("edu0")).unwrap_or_else(|| panic!("no {topic}"))
    };
    let (mapped, revoked, fault) = (of_edu("dma_mapped"), of_edu("dma_revoked"), of_edu("dma_fault"));
    for line in [&mapped, &revoked, &fault] {
        assert_eq!((line.get("key"), line.get("owner")), (mapped.get("key"), Some("transfers")), "{line}");
        assert!(
            line.get("place").is_some_and(|place| place.contains("demo/")) && line.number("at_ns") > Some(0),
            "{line}"
        );
    }
    assert_eq!((revoked.get("cause"), revoked.number("commands")), (Some("revoked"), Some(1)), "{revoked}");
    assert_eq!((fault.get("target"), fault.get("access")), (Some("revoked"), Some("write")), "{fault}");
    let (from, bytes) = (mapped.number("iova").expect("a place"), mapped.number("bytes").expect("a length"));
    let at = fault.number("iova").expect("a place");
    assert!((from..from + bytes).contains(&at), "{fault} is outside of {mapped}");
    outcome
}

/// Runs of the demonstration in which the modules may leave too late for a transfer that takes 100 ms of the host's time.
const MOST_RUNS: u32 = 3;

/// The one line of the desk.
fn desk(outcome: &Outcome) -> Record {
    let [desk] = &records(outcome, "desk")[..] else { panic!("not one line of the desk\n{}", tail(outcome)) };
    desk.clone()
}

/// The last act where the modules leave while the transfer is in flight, so that it is known whether it has landed; or after
/// that, where the host was too slow in each of the runs: then nobody knows.
fn fallen_in_time(machine: &Machine) -> Outcome {
    let mut outcome = fallen(machine);
    for _ in 1..MOST_RUNS {
        if desk(&outcome).get("edu_landed") != Some("none") {
            break;
        }
        outcome = fallen(machine);
    }
    outcome
}

/// covers: D3 D4 D5 S1 S2 S3 S5
#[test]
fn the_chassis_falls_off_the_desk_and_is_put_back() {
    let outcome = fallen_in_time(&machine());
    let desk = desk(&outcome);
    let number = |key| desk.number(key).unwrap_or_else(|| panic!("no {key} in {desk}"));
    assert_eq!(["edu_refused", "read_refused", "back", "kept"].map(number), [1; 4], "{desk}");
    assert!(matches!(desk.get("edu_landed"), Some("0" | "none")), "{desk}");
    assert!(number("reads") > 0 && number("blocked") > 0, "{desk}");
    let files = records(&outcome, "files");
    assert!(files.iter().all(|act| ["damage", "lost"].map(|key| act.number(key)) == [Some(0); 2]), "{files:?}");
    assert_eq!(records(&outcome, "arrived").len(), 2, "{}", tail(&outcome));
}

/// Nobody puts the modules back, and nobody claims to know what is on them.
/// covers: D3 D4 S1
#[test]
fn the_chassis_falls_off_the_desk_for_good() {
    let outcome = fallen(&Machine { deterministic: true, smp: 2, ..machine() });
    let desk = desk(&outcome);
    // Nor is there a disk in this mode, unless it is asked for.
    assert_eq!(["edu_landed", "kept", "reads"].map(|key| desk.get(key)), [Some("none"); 3], "{desk}");
    assert_eq!(["edu_refused", "back"].map(|key| desk.number(key)), [Some(1), Some(0)], "{desk}");
    let files = records(&outcome, "files").into_iter().find(|act| act.get("act") == Some("desk"));
    let files = files.expect("it was looked at before");
    assert_eq!(["damage", "lost"].map(|key| files.get(key)), [Some("none"); 2], "{files}");
}
