//! The shell's command about namespaces.

use alloc::format;
use alloc::string::String;

use media::info::Info;
use media::namespace::{Mode, Namespace, list};

use crate::console;
use crate::console::command::Command;
use crate::pmem::{contents, devices, namespaces};

/// The commands.
pub const COMMANDS: &[Command] = &[Command {
    name: "namespaces",
    args: "",
    help: "the namespaces of the NVDIMMs, as ndctl lists them, and what lies in them",
    run: show,
}];

fn show(_: &[&str]) -> Result<(), String> {
    for (at, slot) in devices::slots().iter().enumerate() {
        match &slot.namespace {
            Some((region, namespace)) => line(*region, namespace),
            None => {
                let listing = contents::look(at, |medium| list(medium, None, 0)).unwrap_or_default();
                listing.namespaces.iter().for_each(|namespace| line(at, namespace));
                listing.notices.iter().for_each(|notice| console::line(format_args!("{}: {notice}", slot.name)));
            }
        }
        match contents::found(at) {
            Ok(findings) if findings.is_empty() => {}
            Ok(findings) => console::line(format_args!("{} holds {findings}", slot.name)),
            Err(error) => console::line(format_args!("{}: {error}", slot.name)),
        }
    }
    Ok(())
}

/// One namespace, with the keys of `ndctl`.
fn line(region: usize, namespace: &Namespace) {
    let (id, mode) = (namespace.id, namespace.mode());
    let mut text = format!("dev=namespace{region}.{id} mode={}", mode.name());
    let mut add = |key: &str, value: String| text.push_str(&format!(" {key}={value}"));
    let pages = match namespace.info {
        Some(Info::Pages(pages)) => Some(pages),
        _ => None,
    };
    pages.into_iter().for_each(|pages| add("map", pages.map.name().into()));
    add("size", format!("{}", namespace.size()));
    namespace.uuid().into_iter().for_each(|uuid| add("uuid", format!("{uuid}")));
    let raw = namespace.raw_uuid().filter(|raw| namespace.uuid() != Some(*raw));
    raw.into_iter().for_each(|uuid| add("raw_uuid", format!("{uuid}")));
    match mode {
        Mode::DevDax => add("chardev", format!("dax{region}.{id}")),
        _ => add("sector_size", format!("{}", namespace.sector_bytes())),
    }
    pages.into_iter().for_each(|pages| add("align", format!("{}", pages.align)));
    if mode != Mode::DevDax {
        add("blockdev", namespaces::block_device(region, namespace));
    }
    if !namespace.name().is_empty() {
        // No value has a space.
        add("name", format!("{}", namespace.name().escape_default()).replace(' ', "\\x20"));
    }
    console::report!("namespace {text}");
    if let Some(why) = namespace.fault {
        console::line(format_args!("namespace{region}.{id}: {why}; it is left alone"));
    }
}
