//! What mapping and revoking cost, in entries that are read or written and in commands: by range, not by page.

mod common;

use common::{GIB, RW, Rig, run, scattered};
use iommu::domain::Mapping;
use testkit::iommu::{Make, Unit};

const TIB: u64 = GIB << 10;

/// What `act` costs: entries touched, waits, IOTLB commands.
fn cost<R>(unit: &Unit, act: impl FnOnce() -> R) -> (R, u64, u64, u64) {
    let (before, touched) = (unit.counts(), unit.touched());
    let result = act();
    let after = unit.counts();
    let commands = |counts: testkit::iommu::Counts| counts.ranges + counts.domains + counts.globals;
    (result, unit.touched() - touched, after.waits - before.waits, commands(after) - commands(before))
}

fn make() -> Make {
    Make { tables: 1 << 16, ..Make::default() }
}

// covers: D2, D7
#[test]
fn pages_far_apart_cost_one_store_each_and_their_revocation_none() {
    let rig = Rig::new(make());
    let runs = scattered(1 << 20, GIB);
    let (mapping, touched, waits, _) = cost(&rig.unit, || rig.domain.map(&runs, RW, 1).unwrap());
    // The leaves, 512 tables and what leads there.
    assert!((GIB + 512..GIB + 520).contains(&touched) && waits == 0, "{touched}");
    rig.assert_reaches(&mapping, GIB - 1, (1 << 20) + 2 * GIB - 2);
    let (done, touched, waits, commands) = cost(&rig.unit, || rig.domain.revoke(&mapping));
    assert_eq!((done.leaves, done.tables, done.commands, waits, commands), (GIB, 513, 1, 1, 1));
    assert!(touched <= 512 + 4, "the tables are found, and no leaf is looked at: {touched}");
    assert_eq!(rig.unit.counts().ranges, 1, "by range");
}

// covers: D7
#[test]
fn a_leaf_of_one_gibibyte_costs_a_few_entries() {
    let rig = Rig::new(make());
    let _tables_are_there = rig.domain.map(&[run(0, GIB)], RW, 0).unwrap();
    let (mapping, touched, waits, _) = cost(&rig.unit, || rig.domain.map(&[run(GIB, GIB)], RW, 1).unwrap());
    assert!(touched <= 3 && waits == 0, "{touched}");
    let (done, touched, waits, commands) = cost(&rig.unit, || rig.domain.revoke(&mapping));
    assert!(touched <= 2 && (waits, commands, done.leaves) == (1, 1, 1), "{touched} {done:?}");
}

// covers: R4, D7
#[test]
fn six_tebibytes_are_a_leaf_for_each_gibibyte_and_go_with_twelve_stores() {
    let rig = Rig::new(make());
    let (mapping, touched, _, _) = cost(&rig.unit, || rig.domain.map(&[run(1 << 28, 6 * TIB)], RW, 1).unwrap());
    assert!((6144..6144 + 30).contains(&touched), "{touched}");
    rig.assert_reaches(&mapping, 6 * TIB - 1, (1 << 28) + 6 * TIB - 1);
    let (done, touched, waits, commands) = cost(&rig.unit, || rig.domain.revoke(&mapping));
    assert_eq!((done.leaves, done.tables, waits, commands), (6144, 12, 1, 1));
    assert!(touched <= 13, "{touched}");
}

// covers: R4, D5, D7
#[test]
fn sixteen_registrations_over_six_tebibytes_are_revoked_by_range() {
    let rig = Rig::new(make());
    let part = 6 * TIB / 16;
    let of = |nth| rig.domain.map(&[run((1 << 28) + nth * part + 3, part - 3)], RW, nth).unwrap();
    let mappings: Vec<Mapping> = (0..16).map(of).collect();
    for (nth, mapping) in mappings.iter().enumerate() {
        rig.assert_reaches(mapping, part - 4, (1 << 28) + (nth as u64 + 1) * part - 1);
    }
    let all: Vec<&Mapping> = mappings.iter().collect();
    let (done, touched, waits, commands) = cost(&rig.unit, || rig.domain.revoke_all(&all));
    assert_eq!((done.ranges, waits, commands, done.failed), (16, 1, 16, None));
    // Each is 384 GiB less three pages: for its first gigabyte a table of 2 MiB leaves and one of pages.
    assert_eq!(done.leaves, 16 * (383 + 511 + 509));
    assert!(touched <= 16 * (2 * 512 + 4), "in two tables of each others are looked for: {touched}");
    mappings.iter().for_each(|mapping| rig.assert_blocked(mapping, part - 4));
    assert_eq!(rig.domain.revoke_all(&all), iommu::domain::Revocation::default());
}

// covers: D7
#[test]
fn a_domain_of_many_registrations_costs_no_more_for_each() {
    let rig = Rig::new(make());
    let mappings: Vec<Mapping> = (0..20_000).map(|nth| rig.one(0x1000 + nth)).collect();
    rig.assert_reaches(&mappings[19_999], 0, 0x1000 + 19_999);
    let (mapping, touched, _, _) = cost(&rig.unit, || rig.one(7));
    assert!(touched <= 5, "{touched}");
    let (_, touched, waits, commands) = cost(&rig.unit, || rig.domain.revoke(&mapping));
    assert!(touched <= 5 && (waits, commands) == (1, 1), "{touched}");
    let done = rig.domain.close();
    assert_eq!((done.ranges, done.leaves), (20_000, 20_000));
    rig.assert_blocked(&mappings[0], 0);
}

// covers: D1, D7
#[test]
fn memory_above_512_gib_is_reached_and_not_below_its_width() {
    let rig = Rig::new(make());
    let high = [run(1 << 35, 3), run((1 << 36) - 1, 1)];
    let mapping = rig.domain.map(&high, RW, 1).unwrap();
    rig.assert_reaches(&mapping, 2, (1 << 35) + 2);
    rig.assert_reaches(&mapping, 3, (1 << 36) - 1);
    let narrow = Rig::new(Make { bits: 39, ..make() });
    let refused = narrow.domain.map(&high, RW, 1).unwrap_err().to_string();
    assert_eq!(refused, "memory up to 0x800000003000 is beyond the 39 bits that the IOMMU reaches");
}
