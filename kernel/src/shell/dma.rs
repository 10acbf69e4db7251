//! What devices reach of memory, and what was blocked.
//!
//! Each line for people has one for programs beside it, that begins with `@`.

use alloc::format;
use alloc::string::String;

use iommu::domain::MappingInfo;
use mm::pins::Word;

use crate::console::command::Command;
use crate::console::{self, report};
use crate::io::{dma, vtd};

/// The commands.
pub const COMMANDS: &[Command] = &[
    Command {
        name: "dma",
        args: "",
        help: "devices, what they reach of memory, and what was blocked",
        example: "dma",
        run: list,
    },
    Command {
        name: "iommu",
        args: "walk DEVICE ADDRESS",
        help: "how the IOMMU translates an address of a device",
        example: "iommu walk edu0 0x1000",
        run: iommu,
    },
];

fn list(args: &[&str]) -> Result<(), String> {
    if !args.is_empty() {
        return Err("expected: dma".into());
    }
    if let Some(why) = vtd::why_none() {
        return Err(format!("{why}: no device does DMA"));
    }
    // What nobody was told of yet is in the numbers, too.
    dma::collect();
    for device in dma::devices() {
        let (faults, stopped) = (device.nr_faults(), device.is_stopped());
        let (name, source, id) = (device.name(), device.source(), device.domain().id());
        let state = if stopped { "stopped" } else { "live" };
        console::line(format_args!("{name} at {source}: domain {id}, {faults} faults, {state}"));
        report!("dma device={} source={source} domain={id} faults={faults} state={state}", Word(name));
        device.domain().for_each(&mut |mapping| {
            let MappingInfo { address, bytes, rights, tag, leaves: [small, large, huge], revoked } = *mapping;
            let state = if revoked { ", revoked" } else { "" };
            console::line(format_args!(
                "  {address:#x}..{:#x} {rights}, {}{state}, leaves {small} of 4K, {large} of 2M, {huge} of 1G",
                address + bytes,
                dma::Whose(tag)
            ));
            report!(
                "dma_mapping device={} iova={address:#x} bytes={bytes} rights={rights} whose={} 4k={small} 2m={large} 1g={huge} revoked={}",
                Word(name),
                dma::Whose(tag).word(),
                u8::from(revoked)
            );
        });
        device.for_each_fault(&mut |record| console::line(format_args!("  {record}")));
    }
    let (strays, lost) = (dma::strays(), dma::overflows());
    console::line(format_args!("{strays} faults of functions without a driver; records were short {lost} times"));
    Ok(())
}

fn iommu(args: &[&str]) -> Result<(), String> {
    let ["walk", name, address] = args else { return Err("expected: iommu walk DEVICE ADDRESS".into()) };
    if let Some(why) = vtd::why_none() {
        return Err(format!("{why}: no device does DMA"));
    }
    let device = dma::devices()
        .find(|device| device.name() == *name)
        .ok_or_else(|| format!("there is no device \"{name}\" that does DMA (dma lists them)"))?;
    let wrong = || format!("\"{address}\": expected 0x and up to 16 hexadecimal digits");
    // A sign would pass for a number.
    let digits = address.strip_prefix("0x").filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let address = u64::from_str_radix(digits.ok_or_else(wrong)?, 16).map_err(|_| wrong())?;
    let walk = device.domain().walk(address);
    format!("{walk}").lines().for_each(|line| console::line(format_args!("{line}")));
    Ok(())
}
