//! What can be said without an emulated unit; the rest is in `tests/`.

extern crate std;

use core::sync::atomic::AtomicUsize;
use std::boxed::Box;
use std::string::ToString;
use std::vec::Vec;

use super::*;

/// Table memory, and a unit that forgets everything at once.
struct Tables {
    frames: Vec<Box<[AtomicU64; 512]>>,
    free: Mutex<Vec<u64>>,
    commands: Mutex<Vec<Command>>,
    stores_seen: AtomicUsize,
}

impl Tables {
    fn new(nr: u64) -> Arc<Self> {
        Arc::new(Self {
            frames: (0..nr).map(|_| Box::new([const { AtomicU64::new(0) }; 512])).collect(),
            free: Mutex::new((0..nr).rev().collect()),
            commands: Mutex::new(Vec::new()),
            stores_seen: AtomicUsize::new(0),
        })
    }
}

impl Hardware for Tables {
    fn alloc_table(&self) -> Option<Pfn> {
        self.free.lock().pop().map(Pfn::new)
    }
    fn free_table(&self, table: Pfn) {
        (0..512).for_each(|nth| self.entry(table, nth).store(0, Ordering::Relaxed));
        self.free.lock().push(table.as_u64());
    }
    fn entry(&self, table: Pfn, index: usize) -> &AtomicU64 {
        &self.frames[table.as_u64() as usize][index]
    }
    fn write_back(&self, _: Pfn, _: usize, count: usize) {
        self.stores_seen.fetch_add(count, core::sync::atomic::Ordering::Relaxed);
    }
    fn invalidate(&self, commands: &[Command]) -> Result<(), QueueError> {
        self.commands.lock().extend(commands);
        Ok(())
    }
    fn relax(&self) {
        unreachable!("one thread");
    }
}

/// As QEMU's unit.
fn capabilities() -> Capabilities {
    Capabilities::decode(0x00d2_008c_222f_0606, 0xf0_0f42, 0x10)
}

fn run(start: u64, nr: u64) -> PfnRange {
    PfnRange::new(Pfn::new(start), nr).unwrap()
}

#[test]
fn a_mapping_is_walked_to_its_frames_and_is_gone_after_its_revocation() {
    let domain = Domain::new(Tables::new(16), 3, Levels::Four, &capabilities()).unwrap();
    let mapping = domain.map(&[run(0x1000, 3), run(0x2000, 1)], Rights::READ, 77).unwrap();
    let dma = mapping.dma();
    assert_eq!((dma.bytes, dma.rights, dma.at(0x4000)), (0x4000, Rights::READ, None));
    let reached = |offset| domain.walk(dma.at(offset).unwrap()).reaches;
    assert_eq!(reached(0x2010), Some((mm::addr::PhysAddr::new(0x100_2010), Rights::READ, 0x1000)));
    assert_eq!(reached(0x3000).map(|to| to.0.as_u64()), Some(0x200_0000));
    assert_eq!(domain.owner_of(dma.address + 5).map(|owner| (owner.tag, owner.revoked)), Some((77, false)));

    let done = domain.revoke(&mapping);
    assert_eq!((done.leaves, done.commands, done.ranges, done.first, done.failed), (4, 1, 1, true, None));
    assert_eq!(domain.revoke(&mapping), Revocation::default(), "the second finds nothing to do");
    assert_eq!(domain.walk(dma.address).reaches, None);
    assert_eq!(domain.owner_of(dma.address).map(|owner| (owner.tag, owner.revoked)), Some((77, true)));
    assert_eq!(domain.owner_of(dma.address + dma.bytes), None);
}

#[test]
fn bad_requests_are_one_line_each_and_leave_nothing() {
    let hw = Tables::new(16);
    let limits = capabilities().with_host_bits(46);
    let domain = Domain::new(hw.clone(), 1, Levels::Three, &limits).unwrap();
    let one = [run(0x1000, 1)];
    let text = |result: Result<Mapping, MapError>| result.unwrap_err().to_string();
    assert_eq!(text(domain.map(&[], Rights::READ, 0)), "no memory was named to be mapped for DMA");
    assert_eq!(text(domain.map(&one, Rights::empty(), 0)), "a mapping for DMA that allows neither reading nor writing");
    assert_eq!(
        text(domain.map(&[run(0, 1 << 27)], Rights::READ, 0)),
        "549755813888 bytes are more than the I/O address space of 39 bits"
    );
    let all: Vec<PfnRange> = std::iter::repeat_n(run(0, 1 << 34), 1 << 19).collect();
    assert!(matches!(domain.map(&all, Rights::READ, 0), Err(MapError::TooLarge { .. })), "the sum does not wrap");
    assert_eq!(
        text(domain.map(&[run(1 << 34, 1)], Rights::READ, 0)),
        "memory up to 0x400000001000 is beyond the 46 bits that the IOMMU reaches"
    );
    assert_eq!(domain.close(), Revocation::default());
    assert_eq!(text(domain.map(&one, Rights::READ, 0)), "the device's domain is closed");
    assert_eq!((domain.stats(), hw.free.lock().len()), (Stats { tables: 1, ..Stats::default() }, 15));
}
