//! Attaching, and failing to.

use super::*;

#[test]
fn a_range_of_the_nfit_becomes_a_device() {
    let bench = bench(DataCache::Coherent);
    let table = NfitBuilder::new().persistent(1, 4 << 30, 1 << 20).finish();
    let nfit = crate::nfit::parse([table.as_slice()], crate::nfit::Limits { phys_bits: 40, taken: &[] });
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
    for fail in [Step::AddHost, Step::RegisterBlock, Step::Announce] {
        let result = bench.driver.attach(&config(&range), &mut |step| {
            if step == fail {
                at_announce = Some(dax_devices(&bench));
                return Err(Refused::Injected);
            }
            Ok(())
        });
        assert!(result.is_err());
        assert_eq!((at_announce.take(), dax_devices(&bench)), (Some(1), 0), "{fail}");
    }
}

/// The host itself refuses, with an error of its own.
///
/// covers: A4
#[test]
fn a_host_that_refuses_the_dax_device_unwinds_the_real_object() {
    let bench = bench(DataCache::Coherent);
    let range = [frames(0x100000, 16)];
    let other = DevPagemap::new(MemoryKind::DevDax, [frames(0x300000, 1)]).unwrap();
    let foreign = alloc_dax("foreign", &other, DataCache::Coherent, &bench.mm.ledger).unwrap();
    let taken = bench.driver.hosts.add("pmem0", foreign.device()).unwrap();
    let (step, error) = bench.attach(&config(&range)).unwrap_err();
    assert_eq!((step, error), (Step::AddHost, AttachError::NameTaken));
    assert_eq!(bench.mm.ledger.count(Kind::DaxDevices), 1, "the DAX device of the attach that failed is left");
    drop((taken, foreign));
    drop(bench.usual());
    bench.assert_nothing_left("after a host refused");
}

#[test]
fn a_device_is_found_by_its_name_from_the_last_step_on_and_until_its_removal_begins() {
    let bench = bench(DataCache::Coherent);
    let range = [frames(0x100000, 16)];
    let found = |name| (bench.driver.find_block(name).is_some(), bench.driver.find_dax(name).is_some());
    let device = bench.driver.attach(&config(&range), &mut |step| {
        assert_eq!(found("pmem0"), (false, false), "before {step}");
        Ok(())
    });
    let device = device.unwrap();
    assert!(Arc::ptr_eq(&bench.driver.find_block("pmem0").unwrap(), device.block()));
    assert!(Arc::ptr_eq(&bench.driver.find_dax("pmem0").unwrap(), device.dax().unwrap()));
    assert_eq!(found("pmem1"), (false, false));
    // Another provider's driver finds it too.
    let sibling = bench.driver.sibling(Arc::clone(&bench.host) as Arc<dyn PmemHost>);
    assert!(sibling.find_block("pmem0").is_some() && sibling.find_dax("pmem0").is_some());
    struct Look<'b>(&'b Bench);
    impl RemovalWatch<EmuMachine> for Look<'_> {
        fn observe(&mut self, record: &StepRecord) {
            let driver = &self.0.driver;
            assert!(driver.names.is_taken("pmem0") || record.step == dax::removal::Step::Release);
            assert!(driver.find_block("pmem0").is_none() && driver.find_dax("pmem0").is_none(), "{}", record.step);
        }
    }
    let _ = device.remove(Vec::new(), Method::Ranged, &mut Look(&bench));
    bench.assert_nothing_left("after a removal");
    let without = super::bench(DataCache::Aliasing);
    let device = without.attach(&Config { kind: MemoryKind::FsDax, ..config(&range) }).unwrap();
    assert!(without.driver.find_block("pmem0").is_some() && without.driver.find_dax("pmem0").is_none());
    drop(device);
}
