//! What the console says of a registration, which a removal asks for and takes back.

use core::fmt;

use dax::removal::Registration;
use mm::pins::Word;
use mm::region::device::CutOff;
use mm::region::{RegionInfo, Revoked, TakeBack};

use crate::console::report;

/// A registration as ` key=value` words.
pub struct Fields<'r>(pub &'r RegionInfo<'r>);

impl fmt::Display for Fields<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RegionInfo { key, owner, place, nr_pages, grace_ns, .. } = self.0;
        let (file, line) = (place.file(), place.line());
        write!(f, "key={key} owner={} place={file}:{line} pages={nr_pages} grace_ns={grace_ns}", Word(owner))
    }
}

/// A removal of `device` asks for a registration.
pub fn say_asked(device: &str, region: &RegionInfo<'_>) {
    log::info!(target: "devices", "{device}: wants {region} back within {} us", region.grace_ns / 1000);
    report!("registration {} state=asked device={device}", Fields(region));
}

/// A removal of `device`, which has gone, calls a registration in.
pub fn say_called_in(device: &str, region: &Registration) {
    let Registration { key, owner, place, nr_pages, .. } = region;
    let (file, line) = (place.file(), place.line());
    log::info!(target: "devices", "{device}: calls registration {key} of {owner} ({nr_pages} pages) in: its owner is not asked, and has no time");
    report!(
        "registration key={key} owner={} place={file}:{line} pages={nr_pages} grace_ns=0 state=called-in device={device}",
        Word(owner)
    );
}

/// It was not given back in time, or one of its uses takes long.
pub fn say_taking_back(device: &str, told: &TakeBack<'_>) {
    match told {
        TakeBack::Waits(region) => {
            log::warn!(target: "devices", "{device}: waits for {} uses in flight of {region}", region.uses);
        }
        TakeBack::Revoked(Revoked { region, uses, cut_off, after_ns }) => {
            let (us, fields) = (after_ns / 1000, Fields(region));
            log::info!(target: "devices", "{device}: {region} is revoked after {us} us, and {uses} uses in flight");
            if let Some(CutOff { ranges, commands, ns, .. }) = cut_off {
                let us = ns / 1000;
                log::info!(target: "devices", "{device}: its device is cut off: {ranges} range, {commands} invalidation commands, {us} us");
            }
            let ranges = cut_off.map_or(0, |cut_off| cut_off.ranges);
            report!(
                "registration {fields} state=revoked device={device} uses={uses} after_ns={after_ns} cut_off={ranges}"
            );
        }
    }
}
