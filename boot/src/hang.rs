//! Where a guest is that took too long: what QEMU's monitor says of each CPU, in the kernel's own names.

use crate::console::Console;
use crate::qmp::Qmp;
use crate::symbols::Symbols;
use anyhow::Result;
use serde_json::json;
use std::path::Path;

/// How many of the last console lines a report has.
const TAIL_LINES: usize = 20;

/// How many callers of the function that a CPU is in a report has at most.
const MOST_CALLERS: usize = 12;

/// One CPU, as far as a report needs it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Cpu {
    id: u32,
    rip: u64,
    /// The frame pointer: the kernel is built with one in every function.
    rbp: u64,
    /// RFLAGS.IF.
    interrupts: bool,
    /// In `hlt`.
    halted: bool,
}

/// Stops the guest and says where it is, by the names in its `kernel`'s ELF file if that is known. What cannot be found out is said too, instead: a report never fails.
#[must_use]
pub fn report(qmp_socket: &Path, console: &Console, kernel: Option<&Path>) -> Vec<String> {
    let mut lines = vec!["the guest's last console lines:".to_string()];
    lines.extend(console.tail(TAIL_LINES).into_iter().map(|line| format!("    {line}")));
    lines.push("Its CPUs:".into());
    let symbols = kernel.map(|kernel| Symbols::load(kernel, &console.lines()));
    if let Some(Err(error)) = &symbols {
        lines.push(format!("    no names of functions: {error:#}"));
    }
    let symbols = symbols.and_then(Result::ok);
    if let Err(error) = describe_cpus(qmp_socket, symbols.as_ref(), &mut lines) {
        lines.push(format!("    unknown: {error:#}"));
    }
    lines
}

fn describe_cpus(qmp_socket: &Path, symbols: Option<&Symbols>, lines: &mut Vec<String>) -> Result<()> {
    let mut qmp = Qmp::connect(qmp_socket)?;
    qmp.execute("stop", json!({}))?;
    for cpu in cpus(&qmp.monitor("info registers -a")?) {
        lines.push(format!("    {}", cpu.describe(symbols)));
        let Some(symbols) = symbols.filter(|symbols| symbols.name(cpu.rip).is_some()) else { continue };
        let read = |frame: u64| {
            let request = json!({ "command-line": format!("x /2gx {frame:#x}"), "cpu-index": cpu.id });
            let text = qmp.execute("human-monitor-command", request).ok()?;
            two_words(text.as_str()?)
        };
        let callers = callers(cpu.rbp, read).into_iter().map_while(|address| symbols.name(address));
        lines.extend(callers.map(|name| format!("        called from {name}")));
    }
    Ok(())
}

/// The return addresses on a stack, from the chain of frame pointers that begins with `frame`; `read` gives the two
/// words at an address: the next frame pointer and the return address. The stack grows down, so a chain that does not
/// lead up is at its end, or broken.
fn callers(mut frame: u64, mut read: impl FnMut(u64) -> Option<(u64, u64)>) -> Vec<u64> {
    let mut found = Vec::new();
    while found.len() < MOST_CALLERS && frame != 0 && frame.is_multiple_of(8) {
        let Some((next, address)) = read(frame) else { break };
        // A return address is of the instruction after the call: one less is inside the call's own line.
        found.push(address.wrapping_sub(1));
        if next <= frame {
            break;
        }
        frame = next;
    }
    found
}

/// Reads the monitor's answer to `x /2gx`: an address, a colon, two words.
fn two_words(text: &str) -> Option<(u64, u64)> {
    let (_, words) = text.split_once(':')?;
    let mut words = words.split_whitespace().map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok());
    Some((words.next()??, words.next()??))
}

/// Reads the monitor's `info registers -a`: a heading `CPU#n` for each CPU, a line with `RBP=`, and after it a line with
/// `RIP=`, `RFL=` and `HLT=`.
fn cpus(text: &str) -> Vec<Cpu> {
    let mut found = Vec::new();
    let (mut id, mut rbp) = (0, 0);
    for line in text.lines() {
        if let Some(number) = line.trim().strip_prefix("CPU#") {
            id = number.parse().unwrap_or(id);
        }
        let field = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name));
        let hex = |name| field(name).and_then(|digits| u64::from_str_radix(digits, 16).ok());
        rbp = hex("RBP=").or(hex("EBP=")).unwrap_or(rbp);
        if let (Some(rip), Some(flags)) = (hex("RIP=").or(hex("EIP=")), hex("RFL=").or(hex("EFL="))) {
            found.push(Cpu { id, rip, rbp, interrupts: flags & (1 << 9) != 0, halted: field("HLT=") == Some("1") });
        }
    }
    found
}

impl Cpu {
    fn describe(&self, symbols: Option<&Symbols>) -> String {
        let name = symbols.and_then(|symbols| symbols.name(self.rip));
        let place = name.map_or_else(String::new, |name| format!(" {name}"));
        let state = if self.halted { "halted" } else { "running" };
        let interrupts = if self.interrupts { "on" } else { "off" };
        format!("CPU {}: {state}, interrupts {interrupts}, at {:#x}{place}", self.id, self.rip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\nCPU#0\nRAX=0000000000000000 RBX=00000000000003f8\nRSI=1 RDI=2 RBP=00000080000f1000 RSP=3\n\
        RIP=0000008000005030 RFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0\nES =0030\n\
        \nCPU#3\nRAX=0000000000000000\nRSI=1 RDI=2 RBP=0 RSP=3\n\
        RIP=000000000e1a2b3c RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\n\
        \nCPU#4\nESI=1 EDI=2 EBP=00000004 ESP=3\nEIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=1\n";

    #[test]
    fn every_cpu_is_found_with_its_state() {
        assert_eq!(
            cpus(TEXT),
            [
                Cpu { id: 0, rip: 0x80_0000_5030, rbp: 0x80_000f_1000, interrupts: false, halted: false },
                Cpu { id: 3, rip: 0xe1a_2b3c, rbp: 0, interrupts: true, halted: true },
                Cpu { id: 4, rip: 0xfff0, rbp: 4, interrupts: false, halted: true },
            ]
        );
    }

    #[test]
    fn the_chain_of_frames_is_followed_up_and_no_further() {
        let stack = [(0x1000, (0x1020, 0xa)), (0x1020, (0x1040, 0xb)), (0x1040, (0x1000, 0xc))];
        let read = |frame| stack.iter().find(|(at, _)| *at == frame).map(|(_, words)| *words);
        assert_eq!(callers(0x1000, read), [0x9, 0xa, 0xb]);
        assert_eq!(callers(0x1040, read), [0xb]);
        assert!(callers(0, read).is_empty());
        assert!(callers(0x1004, read).is_empty());
        assert_eq!(callers(0x1000, |frame| Some((frame + 16, 7))).len(), MOST_CALLERS);
    }

    #[test]
    fn the_monitors_words_are_read() {
        assert_eq!(two_words("0000008000001000: 0x0000000000000010 0x00000000000000ff\n"), Some((16, 255)));
        assert_eq!(two_words("Cannot access memory at address 0x1000\n"), None);
        assert_eq!(two_words("0000008000001000: 0x10"), None);
    }

    #[test]
    fn a_cpu_without_symbols_is_still_described() {
        assert_eq!(cpus(TEXT)[1].describe(None), "CPU 3: halted, interrupts on, at 0xe1a2b3c");
    }

    #[test]
    fn a_report_says_what_it_could_not_find_out() {
        let lines = report(Path::new("/nonexistent/qmp"), &Console::default(), Some(Path::new("/nonexistent/kernel")));
        assert!(lines.last().is_some_and(|line| line.contains("unknown: QEMU's monitor")), "{lines:?}");
    }
}
