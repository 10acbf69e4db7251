//! The words of these commands: numbers, options, rights, leaves, CPUs.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use mm::addr::{PageSize, Pfn, VirtAddr};
use mm::entry::Prot;
use mm::machine::{CpuId, MAX_CPUS};

use crate::cpu::percpu;
use crate::pmem::devices;
pub use crate::shell::args::number;

/// What a line says after the command: words in their order, and `name=value` in any order.
pub struct Words<'w> {
    /// The words.
    pub plain: Vec<&'w str>,
    named: Vec<(&'w str, &'w str)>,
}

impl<'w> Words<'w> {
    /// Sorts them. `known` are the names that may be given.
    ///
    /// # Errors
    /// A name that is not known, or is given twice.
    pub fn sort(args: &[&'w str], known: &[&str]) -> Result<Self, String> {
        let mut words = Self { plain: Vec::new(), named: Vec::new() };
        for arg in args {
            let Some((name, value)) = arg.split_once('=') else {
                words.plain.push(arg);
                continue;
            };
            if !known.contains(&name) {
                let may = if known.is_empty() { "none".into() } else { known.join("=, ") + "=" };
                return Err(format!("\"{name}=\" is not understood here (expected: {may})"));
            }
            if words.get(name).is_some() {
                return Err(format!("{name}= is given twice"));
            }
            words.named.push((name, value));
        }
        Ok(words)
    }

    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&'w str> {
        self.named.iter().find(|(known, _)| *known == name).map(|&(_, value)| value)
    }

    /// The same, as a number.
    ///
    /// # Errors
    /// It is none.
    pub fn number(&self, name: &str) -> Result<Option<u64>, String> {
        self.get(name).map(number).transpose()
    }

    /// Takes the last of these words away, if the line ends in one of them.
    pub fn take_last(&mut self, of: &[&str]) -> Option<&'w str> {
        let last = self.plain.last().copied().filter(|last| of.contains(last))?;
        self.plain.pop();
        Some(last)
    }

    /// The CPU that `cpu=` says, or this one.
    ///
    /// # Errors
    /// There is no such CPU.
    pub fn cpu(&self) -> Result<CpuId, String> {
        let Some(cpu) = self.number("cpu")? else { return Ok(arch::percpu::cpu()) };
        let online = |&cpu: &CpuId| cpu < MAX_CPUS && percpu::online().contains(cpu);
        usize::try_from(cpu).ok().filter(online).ok_or_else(|| format!("there is no CPU {cpu} (cpus lists them)"))
    }

    /// The leaf size that `leaf=` says.
    ///
    /// # Errors
    /// There is no such leaf.
    pub fn leaf(&self) -> Result<Option<PageSize>, String> {
        self.get("leaf")
            .map(|word| match word {
                "4k" => Ok(PageSize::Size4K),
                "2m" => Ok(PageSize::Size2M),
                "1g" => Ok(PageSize::Size1G),
                _ => Err(format!("\"{word}\" is no leaf: expected 4k, 2m or 1g")),
            })
            .transpose()
    }
}

/// An address.
///
/// # Errors
/// It is no number.
pub fn address(word: &str) -> Result<VirtAddr, String> {
    number(word).map(VirtAddr::new)
}

/// A page frame.
///
/// # Errors
/// It is no number, or beyond the physical addresses.
pub fn frame(word: &str) -> Result<Pfn, String> {
    const END: u64 = 1 << 40;
    let pfn = number(word)?;
    match pfn < END {
        true => Ok(Pfn::new(pfn)),
        false => Err(format!("frame {pfn:#x}: expected less than {END:#x}, for physical addresses have 52 bits")),
    }
}

/// How a leaf of this size is asked for.
pub const fn leaf_word(size: PageSize) -> &'static str {
    match size {
        PageSize::Size4K => "4k",
        PageSize::Size2M => "2m",
        PageSize::Size1G => "1g",
    }
}

/// So many of something.
pub fn count(nr: u64, what: &str) -> impl fmt::Display + '_ {
    fmt::from_fn(move |f| write!(f, "{nr} {what}{}", if nr == 1 { "" } else { "s" }))
}

/// Rights as `rwx`.
pub fn rights(prot: Prot) -> impl fmt::Display {
    let letter = |is: bool, letter| if is { letter } else { '-' };
    fmt::from_fn(move |f| write!(f, "r{}{}", letter(prot.write, 'w'), letter(prot.exec, 'x')))
}

/// Where in persistent memory a frame is.
#[derive(Clone, Copy)]
pub struct Place {
    /// The number of the device's slot.
    pub at: usize,
    /// The page of the device, counted in its slot.
    pub page: u64,
    /// Its module has left.
    pub has_left: bool,
}

impl Place {
    /// The slot that has `pfn`: one that is in goes before one whose module has left, whose frames may be another's by now.
    pub fn of(pfn: Pfn) -> Option<Self> {
        let holding = || devices::slots().iter().enumerate().filter(|(_, slot)| slot.frames.contains(pfn));
        let (at, slot) = holding().find(|(_, slot)| slot.is_in()).or_else(|| holding().next())?;
        Some(Self { at, page: pfn.as_u64() - slot.frames.start().as_u64(), has_left: !slot.is_in() })
    }

    /// The device's name.
    pub fn name(&self) -> &'static str {
        devices::slots().get(self.at).map_or("?", |slot| &slot.name)
    }
}
