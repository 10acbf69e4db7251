//! What is taken, and what is refused with one line.

use super::*;
use crate::size::GIB;
use std::collections::BTreeSet;

fn read(args: &[&str]) -> Result<Cli, Refusal> {
    Cli::read(std::iter::once(&"run-qemu.sh").chain(args))
}

fn refused(args: &[&str]) -> String {
    match read(args) {
        Ok(cli) => panic!("{args:?} was taken: {cli:?}"),
        Err(Refusal::Show(error)) => panic!("{args:?}: {error}"),
        Err(Refusal::Bad(line)) => line,
    }
}

fn taken(args: &[&str]) -> Cli {
    read(args).unwrap_or_else(|_| panic!("{args:?} was refused"))
}

#[test]
fn nothing_asked_for_is_a_demonstration_on_four_cpus() {
    let cli = taken(&[]);
    assert_eq!(cli.job(), Command::Run);
    assert_eq!((cli.options.smp, cli.options.mem, cli.options.mode), (4, 512 * MIB, Mode::Demo));
}

#[test]
fn shell_is_a_run_in_that_mode() {
    let cli = taken(&["shell", "--smp", "2"]);
    assert_eq!((cli.job(), cli.options.mode, cli.options.smp), (Command::Shell, Mode::Shell, 2));
    assert!(refused(&["shell", "--mode", "demo"]).contains("--mode has no use in shell"));
}

/// covers: T5
#[test]
fn results_for_others_are_those_of_the_in_kernel_tests() {
    let cli = taken(&["run", "--mode", "test", "--tap", "--junit", "results.xml"]);
    assert!(cli.options.tap && cli.options.junit.is_some());
    assert!(refused(&["--tap"]).contains("--mode test, and this is demo"));
    assert!(refused(&["shell", "--junit", "x"]).contains("--junit has no use in shell"));
    assert!(refused(&["test", "--tap"]).contains("--tap has no use in test"));
    assert!(refused(&["--mode", "test", "--tap", "--verbose"]).contains("leaves out"));
}

#[test]
fn a_build_is_of_one_kernel_and_starts_no_machine() {
    let profile = |args: &[&str]| taken(args).options.build();
    assert_eq!((profile(&["build"]), profile(&["build", "--trace"])), (Profile::Dev, Profile::Trace));
    assert!(refused(&["build", "--smp", "2"]).contains("--smp has no use in build"));
    assert!(refused(&["build", "--bug", "none"]).contains("there is no bug"));
}

#[test]
fn options_stand_before_or_after_the_job() {
    for args in [&["--smp", "8", "bench"], &["bench", "--smp", "8"]] {
        let cli = taken(args);
        assert_eq!((cli.job(), cli.options.smp), (Command::Bench, 8));
    }
}

/// Those behind the job would count alone.
#[test]
fn an_option_does_not_stand_before_and_after_the_job() {
    for (args, option) in [
        (&["--pmem", "64M", "shell", "--pmem", "64M"][..], "--pmem"),
        (&["--append", "tests=mm.*", "run", "--mode", "test", "--append", "quiet=1"], "--append"),
        (&["--smp", "4", "bench", "--smp", "4"], "--smp"),
        (&["--quiet", "build", "--quiet"], "--quiet"),
        (&["--iommu", "bench", "--iommu=off"], "--iommu"),
    ] {
        let line = refused(args);
        assert!(line.contains(&format!("{option} stands before and after {}", cli_job(args))), "{args:?}: {line}");
    }
    assert_eq!(taken(&["--pmem", "64M", "shell", "--smp", "4"]).options.pmem, [64 * MIB]);
    assert_eq!(taken(&["shell", "--pmem", "64M", "--pmem", "64M"]).options.pmem.len(), 2);
    assert_eq!(taken(&["--pmem", "64M", "--pmem", "64M", "shell"]).options.pmem.len(), 2);
}

fn cli_job<'a>(args: &[&'a str]) -> &'a str {
    args.iter().find(|word| matches!(**word, "shell" | "run" | "bench" | "build")).expect("there is a job")
}

#[test]
fn the_seed_of_an_exploration_is_not_that_of_pulls() {
    let cli = taken(&["explore", "--bug", "no_shootdown", "--seed", "3", "--scenario", "two-zaps"]);
    assert_eq!(cli.options.seed, Some(3));
    let Command::Explore(asked) = cli.job() else { panic!("another job") };
    assert_eq!((cli.options.bug.as_deref(), asked.scenario.as_deref()), (Some("no_shootdown"), Some("two-zaps")));
    assert!(refused(&["explore", "--smp", "2"]).contains("--smp has no use in explore"));
    assert!(refused(&["--seed", "3"]).contains("--pull-every"));
}

#[test]
fn several_nvdimms_none_and_very_large_ones() {
    assert_eq!(taken(&["--pmem", "1G", "--pmem", "6T"]).options.pmem, [GIB, 6 << 40]);
    assert_eq!(taken(&["--pmem", "none"]).options.pmem, [0]);
    assert_eq!(taken(&["--pmem", "0"]).options.pmem, [0]);
    assert_eq!(taken(&["--dimm", "none"]).options.dimm, [0]);
}

#[test]
fn devices_that_do_dma_are_there_unless_they_are_left_out() {
    let devices = |args: &[&str]| {
        let options = taken(args).options;
        (options.iommu, options.edu, options.nvme)
    };
    assert_eq!(devices(&[]), (Switch::On, Switch::On, None));
    assert_eq!(devices(&["--iommu", "--edu", "--nvme", "1G"]), (Switch::On, Switch::On, Some(GIB)));
    assert_eq!(devices(&["--iommu=off", "--edu=off", "--nvme", "none"]), (Switch::Off, Switch::Off, Some(0)));
    assert_eq!(devices(&["--iommu", "bench", "--edu=on"]), (Switch::On, Switch::On, None));
}

#[test]
fn bad_input_is_one_line_that_names_it() {
    for (args, word) in [
        (&["--smp", "0"][..], "--smp"),
        (&["--smp", "many"], "many"),
        (&["--smp", "256"], "256"),
        (&["--mem", "1X"], "1X"),
        (&["--mem", "4096"], "4096"),
        (&["--pmem", "4097"], "4097"),
        (&["--pmem", "-1"], "-1"),
        (&["--pmem", "none", "--pmem", "1G"], "none"),
        (&["--pmem", "none", "--pmem-file", "x"], "--pmem-file"),
        (&["--force"], "--pmem-file or --dimm-file"),
        (&["--trace", "--release"], "go without --release"),
        (&["--bug", "no-look-again", "--release"], "go without --release"),
        (&["--bug", "no-look-again", "--trace"], "one goes without the other"),
        (&["--bug", "no_shootdown"], "there is no bug \"no_shootdown\" (expected one of no-look-again, "),
        (&["bench", "--trace"], "--trace has no use in bench"),
        (&["media"], "<FILE>"),
        (&["media", "x", "--smp", "2"], "--smp has no use in media"),
        (&["--virtio-pmem", "4097"], "4097"),
        (&["--virtio-pmem", "0"], "at least one page"),
        (&["--virtio-pmem", "none"], "at least one page"),
        (&["--nvme", "4097"], "4097"),
        (&["--nvme", "64K"], "between 1M and 1T"),
        (&["--nvme", "2T"], "between 1M and 1T"),
        (&["--iommu=maybe"], "maybe"),
        (&["--edu=1"], "--edu"),
        (&["test", "--iommu"], "--iommu has no use in test"),
        (&["--dimm", "4097"], "4097"),
        (&["--dimm", "none", "--dimm", "1G"], "--dimm none cannot stand beside another --dimm"),
        (&["--dimm", "none", "--dimm-file", "x"], "--dimm none and --dimm-file contradict each other"),
        (&["--pmem-file", "x", "--dimm-file", "x"], "the same file"),
        (&["--mode", "shell", "--pull-every", "5"], "--dimm"),
        (&["--mode", "shell", "--dimm", "none", "--pull-every", "5"], "--dimm"),
        (&["--dimm", "64M", "--pull-every", "0"], "from 1 to 3600"),
        (&["--mode", "shell", "--dimm", "64M", "--pull-every", "5", "--deterministic"], "--deterministic"),
        (&["--pull-every", "5"], "--pull-every is for --mode shell, and this is demo"),
        (&["--dimm", "64M", "--pull-every", "5"], "--pull-every is for --mode shell, and this is demo"),
        (&["--mode", "test", "--dimm", "64M", "--pull-every", "5"], "and this is test"),
        (&["--mode", "bench", "--dimm", "64M", "--pull-every", "5"], "and this is bench"),
        (&["bench", "--dimm", "64M", "--pull-every", "5"], "--pull-every has no use in bench"),
        (&["bench", "--dimm", "64M", "--seed", "5"], "--seed has no use in bench"),
        (&["--dimm", "64M", "--seed", "5"], "--pull-every"),
        (&["--accel", "xen"], "xen"),
        (&["--accel", "kvm", "--deterministic"], "--deterministic"),
        (&["--smp", "x"], "between 1 and 64"),
        (&["--mem", "99M"], "between 100M and 512G"),
        (&["--timeout", "soon"], "soon"),
        (&["--timeout", "-1"], "whole number of seconds"),
        (&["--mode", "party"], "party"),
        (&["--mode", "shell", "--step"], "--step is for the demonstration, and this is --mode shell"),
        (&["--quiet", "--step"], "--quiet leaves out what"),
        (&["-v", "--quiet"], "--quiet leaves out what"),
        (&["bench", "--step"], "--step has no use in bench"),
        (&["test", "--verbose"], "--verbose has no use in test"),
        (&["--append", "a=1,b=2"], "comma"),
        (&["--colour"], "--colour"),
        (&["--full"], "--full"),
        (&["test", "--release"], "--release has no use in test"),
        (&["test", "--smp", "8"], "--smp has no use in test"),
        (&["--smp", "8", "test"], "--smp has no use in test"),
        (&["bench", "--mode", "shell"], "--mode has no use in bench"),
        (&["mutants", "--quiet"], "--quiet has no use in mutants"),
        (&["run", "--full"], "--full is for test"),
        (&["--baseline", "x"], "--baseline has no use in run"),
        (&["test", "--save", "x"], "--save has no use in test"),
        (&["bench", "--save"], "--save"),
        (&["run", "--linux"], "--linux for bench"),
        (&["bench", "--linux=5.10"], "6.1 and 6.12"),
        (&["bench", "--linux", "6.1"], "6.1"),
        (&["bench", "--linux", "--accel", "kvm"], "--linux counts emulated instructions"),
        (&["bench", "--linux", "--save", "x"], "--baseline and --save go without it"),
        (&["bench", "--linux=6.1", "--baseline", "x"], "--baseline and --save go without it"),
        (&["dance"], "dance"),
    ] {
        let line = refused(args);
        assert!(line.contains(word) && !line.contains('\n'), "{args:?}: {line:?}");
    }
}

/// What it takes for a job or an option of its own makes it install more.
#[test]
fn the_script_knows_which_options_and_jobs_take_a_value() {
    let mut command = Cli::command();
    command.build();
    let jobs: Vec<_> = command.get_subcommands().collect();
    let options = jobs.iter().flat_map(|job| job.get_arguments()).chain(command.get_arguments());
    let takes_next = |arg: &&clap::Arg| arg.get_action().takes_values() && !arg.is_require_equals_set();
    let mut known: BTreeSet<_> =
        options.filter(takes_next).filter_map(|arg| arg.get_long()).map(|long| format!("--{long}:*")).collect();
    // A dash there begins an option.
    known.extend(jobs.iter().filter(|job| job.get_positionals().count() > 0).map(|job| {
        let name = job.get_name();
        format!("{name}:[!-]*")
    }));
    let script = include_str!("../../../run-qemu.sh");
    let (_, after) = script.split_once("case $before:$arg in").expect("it reads its arguments");
    let (list, _) = after.split_once(") ;;").expect("values come first");
    let list: String = list.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    let named: BTreeSet<_> =
        list.split(['|', '\\']).map(|word| word.trim().to_string()).filter(|word| !word.is_empty()).collect();
    assert_eq!(named, known);
}

#[test]
fn the_help_text_names_every_option_and_no_other() {
    let mut command = Cli::command();
    command.build();
    let of_jobs = command.get_subcommands().flat_map(clap::Command::get_arguments);
    let all = command.get_arguments().chain(of_jobs);
    let known: BTreeSet<_> = all.filter_map(|arg| arg.get_long()).map(|long| format!("--{long}")).collect();
    let heads = include_str!("../../help.txt").lines().filter(|line| line.trim_start().starts_with('-'));
    let described: BTreeSet<_> = heads
        .flat_map(|line| line.trim_start().split("  ").next().unwrap_or(line).split([' ', ',', '[']))
        .filter(|word| word.starts_with("--"))
        .map(ToString::to_string)
        .collect();
    assert_eq!(known, described);
    for job in command.get_subcommands() {
        assert!(include_str!("../../help.txt").contains(&format!("\n  {} ", job.get_name())), "{}", job.get_name());
    }
}
