//! The parser of NFITs: one test for each fault of its table of faults, and properties.

mod devices;
mod properties;
mod ranges;
mod structures;

use nvdimm::nfit::{
    ByteRange, DeviceFlags, DeviceHandle, Guid, Level, Limits, MAX_DEVICES, MAX_NOTICES, MAX_RANGES, MemoryAttributes,
    Nfit, Notice, OtherStructures, Owner, PAGE_BYTES, PlatformCapabilities, RangeKind, Taken,
};
use testkit::nfit::{DeviceRow, FIRST_STRUCTURE, NfitBuilder, check, ram, seal, spoil};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
const RAM: [Taken; 2] = [ram(0, 2 * GIB), ram(4 * GIB, 512 * MIB)];
const LIMITS: Limits<'static> = Limits { phys_bits: 40, taken: &RAM };

fn read(table: &[u8]) -> Nfit {
    check(&[table], LIMITS)
}

fn keys(nfit: &Nfit) -> Vec<&'static str> {
    nfit.notices.iter().map(Notice::key).collect()
}

/// The only notice there is, as its line.
fn only_line(nfit: &Nfit) -> String {
    assert_eq!(nfit.notices.len(), 1, "{:?}", nfit.notices);
    nfit.notices[0].to_string()
}

fn bases(nfit: &Nfit) -> Vec<u64> {
    nfit.ranges.iter().map(|range| range.base).collect()
}

/// A table of a fault between two sound ranges: the fault must cost neither.
fn around(fault: impl FnOnce(NfitBuilder) -> NfitBuilder) -> Vec<u8> {
    let before = NfitBuilder::new().persistent(1, 8 * GIB, GIB);
    fault(before).persistent(2, 16 * GIB, GIB).finish()
}

fn assert_both_survive(nfit: &Nfit) {
    assert_eq!(bases(nfit), [8 * GIB, 16 * GIB]);
}
