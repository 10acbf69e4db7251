//! Attaching, and failing to.

use super::*;

#[test]
fn a_range_of_the_nfit_becomes_a_device() {
    let bench = bench(DataCache::Coherent);
    let table = NfitBuilder::new().persistent(1, 4 << 30, 1 << 20).finish();
    let nfit = crate::nfit::parse([table.as_slice()], crate::nfit::Limits { phys_bits: 40, ram: &[] });
    let range = frames_of(&nfit.ranges[0]).unwrap();
    let device = bench.attach(&config(&[range])).unwrap();
    assert_eq!((device.name(), device.size_bytes()), ("pmem0", 1 << 20));
    assert_eq!(device.pagemap().ranges(), [range]);
    assert_eq!(device.dax().unwrap().size_bytes(), 1 << 20);
    assert_eq!(bench.mm.ledger.count(Kind::Claims), 1);
    drop(device);
    bench.assert_nothing_left("after a detach");
}

/// covers: A6
#[test]
fn after_a_failure_of_any_step_nothing_is_left_and_the_device_attaches() {
    let bench = bench(DataCache::Coherent);
    let ranges = [frames(0x100000, 16), frames(0x200000, 8)];
    for fail in Step::ALL {
        let mut seen = Vec::new();
        let result = bench.driver.attach(&config(&ranges), &mut |step| {
            seen.push(step);
            if step == fail { Err(Refused::Injected) } else { Ok(()) }
        });
        assert_eq!(result.unwrap_err(), (fail, AttachError::Injected(fail)));
        let steps_before = Step::ALL.iter().copied().take_while(|step| *step <= fail).collect::<Vec<_>>();
        assert_eq!(seen, steps_before);
        bench.assert_nothing_left(&alloc::format!("after step {fail} failed"));
        drop(bench.attach(&config(&ranges)).unwrap());
        bench.assert_nothing_left(&alloc::format!("after the next attach and detach ({fail})"));
    }
}

/// covers: A6
#[test]
fn a_step_that_fails_by_itself_unwinds_too() {
    let bench = bench(DataCache::Coherent);
    let ranges = [frames(0x100000, 16), frames(0x200000, 8)];
    // The second range cannot be mapped: the first is unmapped again.
    *bench.host.refuse.lock() = Some(Pfn::new(0x200000));
    let (step, error) = bench.attach(&config(&ranges)).unwrap_err();
    assert_eq!((step, error), (Step::Map, AttachError::Map(MapFailed::NoRoom)));
    assert_eq!(*bench.host.events.lock(), ["map", "unmap"]);
    bench.assert_nothing_left("after a failure to map");
    // Somebody else has registered a page map over the same frames.
    *bench.host.refuse.lock() = None;
    let foreign = DevPagemap::new(MemoryKind::DevDax, [frames(0x200004, 1)]).unwrap();
    bench.mm.meta.register(&foreign).unwrap();
    let (step, _) = bench.attach(&config(&ranges)).unwrap_err();
    assert_eq!(step, Step::PageMap);
    bench.mm.meta.unregister(&foreign).unwrap();
    bench.assert_nothing_left("after a failure to register");
    // A bad block that is not on the device.
    let bad = [SectorRun { first: 24 * 8 - 1, nr_sectors: 2 }];
    let (step, error) = bench.attach(&Config { bad_blocks: &bad, ..config(&ranges) }).unwrap_err();
    assert_eq!(
        (step, error.to_string().as_str()),
        (Step::BadBlocks, "list of bad blocks: out of range: the device has 192 sectors")
    );
    bench.assert_nothing_left("after a bad list of bad blocks");
}

/// covers: A5
#[test]
fn what_can_refuse_cheaply_comes_before_anything_is_mapped() {
    let bench = bench(DataCache::Coherent);
    let range = [frames(0x100000, 16)];
    let first = bench.attach(&config(&range)).unwrap();
    bench.host.events.lock().clear();
    let refuse = |config: Config<'_>, step| {
        let (at, error) = bench.attach(&config).unwrap_err();
        assert_eq!(at, step, "{error}");
        error.to_string()
    };
    assert_eq!(refuse(config(&[frames(0x300000, 1)]), Step::Check), "a device of this name is attached already");
    let long = "x".repeat(33);
    for name in ["", "PMEM", "a b", "a/b", "ü", long.as_str()] {
        let line = refuse(Config { name, ..config(&range) }, Step::Check);
        assert!(line.starts_with("a name is 1 to 32"), "{line}");
    }
    assert_eq!(refuse(Config { name: "pmem1", ..config(&[]) }, Step::Check), "a page map needs at least one range");
    let twice = [frames(0x300000, 4), frames(0x300003, 4)];
    assert!(refuse(Config { name: "pmem1", ..config(&twice) }, Step::Check).contains("share frame"));
    let overlap = [frames(0x300000, 4), frames(0x10000f, 4)];
    assert!(refuse(Config { name: "pmem1", ..config(&overlap) }, Step::Claim).contains("which pmem0 has claimed"));
    assert!(bench.host.events.lock().is_empty(), "something was mapped");
    drop(first);
    bench.assert_nothing_left("after refusals");
}

/// covers: A1, A2, A3
#[test]
fn a_cpu_with_an_aliasing_cache_costs_dax_and_nothing_else() {
    let bench = bench(DataCache::Aliasing);
    let range = [frames(0x100000, 16)];
    let fs = bench.attach(&Config { kind: MemoryKind::FsDax, ..config(&range) }).unwrap();
    assert!(fs.dax().is_none());
    fs.block().write(3, &sectors(7, 2)).unwrap();
    let mut back = sectors(0, 2);
    fs.block().read(3, &mut back).unwrap();
    assert_eq!(back, sectors(7, 2));
    drop(fs);
    // Device-dax never reaches user data through the kernel's alias.
    assert!(bench.usual().dax().is_some());
    bench.assert_nothing_left("after two devices");
}

/// covers: A4
#[test]
fn a_failure_to_announce_finds_the_dax_device_and_kills_it() {
    let bench = bench(DataCache::Coherent);
    let range = [frames(0x100000, 16)];
    let dax_devices = |bench: &Bench| bench.mm.ledger.count(Kind::DaxDevices);
    let mut at_announce = None;
    let result = bench.driver.attach(&config(&range), &mut |step| {
        if step == Step::Announce {
            at_announce = Some(dax_devices(&bench));
            return Err(Refused::Injected);
        }
        Ok(())
    });
    assert!(result.is_err());
    assert_eq!((at_announce, dax_devices(&bench)), (Some(1), 0));
}
