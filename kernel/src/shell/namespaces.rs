//! The shell's command about namespaces.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use media::namespace::{Field, Namespace, list};

use crate::console;
use crate::console::command::Command;
use crate::pmem::{contents, devices};

/// The commands.
pub const COMMANDS: &[Command] = &[Command {
    name: "namespaces",
    args: "",
    help: "the namespaces of the NVDIMMs, as ndctl lists them, and what lies in them",
    example: "namespaces",
    run: show,
}];

fn show(_: &[&str]) -> Result<(), String> {
    for (at, slot) in devices::slots().iter().enumerate() {
        // What virtio-pmem lends is no NVDIMM.
        let Some(region) = slot.region else { continue };
        match &slot.namespace {
            Some(namespace) => line(region, namespace),
            None => {
                let listing = contents::look(at, |medium| list(medium, None, 0)).unwrap_or_default();
                listing.namespaces.iter().for_each(|namespace| line(region, namespace));
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
    let word = |(key, value)| match value {
        // No value has a space.
        Field::Text(text) => format!("{key}={}", text.escape_default()).replace(' ', "\\x20"),
        Field::Number(number) => format!("{key}={number}"),
    };
    let text = namespace.fields(region).into_iter().map(word).collect::<Vec<_>>().join(" ");
    let id = namespace.id;
    console::report!("namespace {text}");
    if let Some(why) = namespace.fault {
        console::line(format_args!("namespace{region}.{id}: {why}; it is left alone"));
    }
}
