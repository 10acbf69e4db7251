//! The block path.

use super::*;

#[test]
fn what_was_written_is_read_across_ranges() {
    let bench = bench(DataCache::Coherent);
    // Given out of order: sectors run from the lowest frame up.
    let device = bench.attach(&config(&[frames(0x200000, 2), frames(0x100000, 1)])).unwrap();
    let block = device.block();
    assert_eq!(block.nr_sectors(), 24);
    block.write(6, &sectors(1, 5)).unwrap();
    let mut back = vec![0; 24 * 512];
    block.read(0, &mut back).unwrap();
    assert_eq!(back[6 * 512..11 * 512], sectors(1, 5));
    assert!(back[..6 * 512].iter().chain(&back[11 * 512..]).all(|byte| *byte == 0));
    // Two sectors in the lower range, three in the upper one.
    assert_eq!(bench.host.memory(0x100000).live.lock()[7 * 512], 2);
    assert_eq!(bench.host.memory(0x200000).live.lock()[..3 * 512], sectors(3, 3));
}

#[test]
fn requests_beyond_the_end_or_of_odd_length_are_refused() {
    let bench = bench(DataCache::Coherent);
    let device = bench.usual();
    let block = device.block();
    let out = Err(BlockError::OutOfRange { nr_sectors: 128 });
    let mut buffer = [0; 1024];
    for sector in [127, 128, u64::MAX, u64::MAX - 1] {
        assert_eq!(block.read(sector, &mut buffer), out);
        assert_eq!(block.write(sector, &buffer), out);
    }
    assert_eq!(block.read(126, &mut buffer), Ok(()));
    assert_eq!(block.read(0, &mut buffer[..511]), Err(BlockError::Misaligned { len_bytes: 511 }));
    assert_eq!(block.write(0, &buffer[..513]), Err(BlockError::Misaligned { len_bytes: 513 }));
    // Nothing from the very end is something that the device has.
    assert_eq!(block.read(128, &mut []), Ok(()));
    assert_eq!(block.read(129, &mut []), out);
}

#[test]
fn a_write_that_has_returned_survives_a_power_cut() {
    let bench = bench(DataCache::Coherent);
    let device = bench.usual();
    device.block().write(9, &sectors(4, 3)).unwrap();
    let memory = bench.host.memory(0x100000);
    assert_eq!(memory.durable.lock()[9 * 512..12 * 512], sectors(4, 3));
    // What another CPU has written back is made durable by a flush.
    PmemMemory::write(&*memory, 0, &[9; 64]).unwrap();
    assert_eq!(memory.durable.lock()[0], 0);
    device.block().flush().unwrap();
    assert_eq!(memory.durable.lock()[..64], [9; 64]);
}

/// covers: P3
#[test]
fn a_bad_block_is_an_io_error_until_it_is_written() {
    let bench = bench(DataCache::Coherent);
    let bad = [SectorRun { first: 10, nr_sectors: 3 }];
    let device = bench.attach(&Config { bad_blocks: &bad, ..config(&[frames(0x100000, 16)]) }).unwrap();
    let block = device.block();
    assert_eq!(block.read(0, &mut sectors(0, 16)), Err(BlockError::Io { sector: 10 }));
    assert_eq!(block.read(11, &mut sectors(0, 8)), Err(BlockError::Io { sector: 11 }));
    assert_eq!(block.read(0, &mut sectors(0, 10)), Ok(()));
    block.write(11, &sectors(1, 1)).unwrap();
    assert_eq!([10, 11, 12, 13].map(|sector| is_lost(&device, sector)), [true, false, true, false]);
    block.write(0, &sectors(1, 16)).unwrap();
    assert_eq!(block.read(0, &mut sectors(0, 16)), Ok(()));
    assert!(block.bad_blocks().is_empty());
}

/// covers: P3
#[test]
fn a_poisoned_page_is_an_io_error_until_all_of_it_is_written() {
    let bench = bench(DataCache::Coherent);
    let device = bench.attach(&config(&[frames(0x100000, 2), frames(0x200000, 2)])).unwrap();
    let block = device.block();
    // Page 2 of the device is the first of the upper range: sectors 16 to 23. Its folio is in use.
    let pfn = Pfn::new(0x200000);
    let owner = Owner { mapping: 0, offset: 2 };
    bench.mm.meta.get_or_create(pfn, PageSize::Size4K, owner, 1).unwrap();
    mm::failure::memory_failure(&bench.mm, pfn, mm::failure::FailureKind::Media).unwrap();
    assert!(bench.mm.meta.inspect(pfn).unwrap().poisoned);
    assert_eq!(block.bad_blocks(), [SectorRun { first: 16, nr_sectors: 8 }]);
    assert_eq!(block.read(14, &mut sectors(0, 4)), Err(BlockError::Io { sector: 16 }));
    assert_eq!(block.read(20, &mut sectors(0, 1)), Err(BlockError::Io { sector: 20 }));
    assert_eq!(block.read(8, &mut sectors(0, 8)), Ok(()));
    // A part of it does not heal it, not even in two writes.
    for (first, nr) in [(16, 7), (17, 7), (10, 10), (20, 4)] {
        let error = BlockError::Io { sector: first.max(16) };
        assert_eq!(block.write(first, &sectors(1, nr)), Err(error));
    }
    block.write(15, &sectors(1, 9)).unwrap();
    assert_eq!(block.read(0, &mut sectors(0, 32)), Ok(()));
    assert!(!bench.mm.meta.inspect(pfn).unwrap().poisoned);
    assert!(block.bad_blocks().is_empty());
    bench.mm.meta.put(pfn, 1);
}

/// covers: P3
#[test]
fn a_page_that_fails_during_a_write_of_a_part_of_it_stays_poisoned() {
    let bench = bench(DataCache::Coherent);
    let device = bench.usual();
    let map = Arc::clone(device.pagemap());
    let fail_two = move || assert!(map.poison(Pfn::new(0x100001)) && map.poison(Pfn::new(0x100002)));
    *bench.host.memory(0x100000).during_write.lock() = Some(alloc::boxed::Box::new(fail_two));
    // All of page 1, and the first half of page 2.
    device.block().write(8, &sectors(1, 12)).unwrap();
    assert_eq!(device.block().bad_blocks(), [SectorRun { first: 16, nr_sectors: 8 }]);
}

/// covers: P3
#[test]
fn what_the_medium_has_lost_goes_on_the_list() {
    let bench = bench(DataCache::Coherent);
    let device = bench.attach(&config(&[frames(0x100000, 1), frames(0x200000, 1)])).unwrap();
    let memory = bench.host.memory(0x200000);
    *memory.lost.lock() = Some(3 * 512 + 7);
    assert_eq!(device.block().read(0, &mut sectors(0, 16)), Err(BlockError::Io { sector: 11 }));
    *memory.lost.lock() = None;
    assert_eq!(device.block().bad_blocks(), [SectorRun { first: 11, nr_sectors: 1 }]);
    assert!(is_lost(&device, 11) && !is_lost(&device, 12));
}

/// covers: M5
#[test]
fn what_is_lost_by_sector_cannot_be_mapped_until_it_is_written() {
    let bench = bench(DataCache::Coherent);
    let device = bench.attach(&config(&[frames(0x100000, 512)])).unwrap();
    let (mm, block) = (&bench.mm, device.block());
    let file = dax::devdax::DevDax::new(mm, device.dax().unwrap(), PageSize::Size4K).unwrap();
    let ops: Arc<dyn mm::space::VmOps<EmuMachine>> = file.open(dax::devdax::OpenOptions::default()).unwrap();
    let space = mm::space::AddressSpace::new(mm, "task").unwrap();
    let at = |page: u64| mm::addr::VirtAddr::new(0x40_0000_0000 + page * 4096);
    space.map(at(0), 16 * 4096, mm::entry::Prot::USER_WRITE, &ops, 0).unwrap();
    let fault = |page: u64| space.handle_fault(at(page), mm::space::Access::Read);
    lose(&device, SectorRun { first: 29, nr_sectors: 1 });
    let cause = mm::space::SigBusCause::Poisoned;
    let sigbus = mm::space::FaultError::SigBus { addr: at(3), len_bytes: 4096, cause };
    assert_eq!((fault(3), fault(2), fault(4)), (Err(sigbus), Ok(()), Ok(())));
    block.write(28, &sectors(1, 1)).unwrap();
    assert_eq!(fault(3), Err(sigbus), "the sector beside it was written");
    block.write(29, &sectors(1, 1)).unwrap();
    assert_eq!(fault(3), Ok(()));
    drop(space);
    drop((ops, file));
}

/// Requests from several threads while the device goes: none touches memory that is no longer mapped (the memory
/// panics then), and each that began too late is refused. covers: R12
#[test]
fn no_request_touches_the_memory_of_a_removed_device() {
    for _ in 0..50 {
        let bench = bench(DataCache::Coherent);
        let device = bench.usual();
        let block = Arc::clone(device.block());
        let started = std::sync::Barrier::new(3);
        std::thread::scope(|scope| {
            for thread in 0..2_u64 {
                let (block, started) = (&block, &started);
                scope.spawn(move || {
                    let mut buffer = sectors(1, 8);
                    started.wait();
                    let served = (0_u64..).take_while(|i| {
                        let sector = (i * 8 + thread) % 120;
                        let result = match i % 3 {
                            0 => block.read(sector, &mut buffer),
                            1 => block.write(sector, &buffer),
                            _ => block.flush(),
                        };
                        assert!(matches!(result, Ok(()) | Err(BlockError::NoSuchDevice)), "{result:?}");
                        result.is_ok()
                    });
                    served.count()
                });
            }
            started.wait();
            device.remove(Vec::new(), Method::Ranged, &mut ());
            assert_eq!(block.flush(), Err(BlockError::NoSuchDevice));
        });
        drop(block);
        bench.assert_nothing_left("after a removal under requests");
    }
}
