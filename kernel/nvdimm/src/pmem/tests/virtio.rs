//! virtio-pmem, over a queue that answers as the test says. What lasts is what the host had in memory when it answered
//! a flush with success.

use std::collections::VecDeque;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::nfit::{ByteRange, Limits, Owner, Taken};
use crate::virtio_pmem::{self, Region, RegionError, RequestQueue};

const START: u64 = 0x100000;

/// The usual device.
const LENT: Config<'static> =
    Config { name: "vpmem0", ranges: &[RANGE], kind: MemoryKind::FsDax, bad_blocks: &[], read_only: None };
const RANGE: PfnRange = PfnRange::new(Pfn::new(START), 16).unwrap();

/// What the device does with a request.
#[derive(Clone, Copy)]
enum Answer {
    /// It writes so many bytes of this word.
    Word(u32, usize),
    /// No answer, for this reason.
    None(FlushError),
}

#[derive(Default)]
struct FakeQueue {
    host: Arc<Host>,
    started: AtomicBool,
    refuse_start: Mutex<Option<FlushError>>,
    /// Answers to the next requests; success afterwards.
    answers: Mutex<VecDeque<Answer>>,
    asked: AtomicUsize,
    /// The host's file.
    kept: Mutex<Vec<u8>>,
    /// Called once, in the middle of the next request.
    meanwhile: Mutex<Option<Meanwhile>>,
}

impl FakeQueue {
    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
    fn answer(&self, answer: Answer) {
        self.answers.lock().push_back(answer);
    }
}

impl RequestQueue for FakeQueue {
    fn start(&self) -> Result<(), FlushError> {
        if let Some(error) = *self.refuse_start.lock() {
            return Err(error);
        }
        assert!(!self.started.swap(true, Ordering::SeqCst), "started twice");
        Ok(())
    }
    fn stop(&self) {
        assert!(self.started.swap(false, Ordering::SeqCst), "stopped twice");
    }
    fn transact(&self, request: &[u8; 4], answer: &mut [u8; 4]) -> Result<usize, FlushError> {
        assert!(self.started.load(Ordering::SeqCst), "a request to a queue that is not started");
        assert_eq!(*request, [0; 4], "not a flush request");
        self.asked.fetch_add(1, Ordering::SeqCst);
        let next = self.answers.lock().pop_front();
        // It may come back here: the lock is free by then.
        let meanwhile = self.meanwhile.lock().take();
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
        let (word, len) = match next.unwrap_or(Answer::Word(0, 4)) {
            Answer::Word(word, len) => (word, len),
            Answer::None(error) => return Err(error),
        };
        answer[..len].copy_from_slice(&word.to_le_bytes()[..len]);
        if (word, len) == (0, 4) {
            let memory = self.host.memory(START);
            assert!(memory.pending.lock().is_empty(), "asked before the CPU's own fence");
            *self.kept.lock() = memory.durable.lock().clone();
        }
        Ok(len)
    }
}

struct Lender {
    bench: Bench,
    queue: Arc<FakeQueue>,
    driver: PmemDriver<EmuMachine>,
}

fn lender(cache: DataCache) -> Lender {
    let bench = bench(cache);
    let queue = Arc::new(FakeQueue { host: Arc::clone(&bench.host), ..FakeQueue::default() });
    let (kernel, dyn_queue) = (Arc::clone(&bench.host), Arc::clone(&queue));
    let driver = virtio_pmem::driver(&bench.driver, kernel, dyn_queue);
    Lender { bench, queue, driver }
}

impl Lender {
    fn try_attach(&self, config: &Config<'_>) -> Result<PmemDevice<EmuMachine>, (Step, AttachError)> {
        self.driver.attach(config, &mut |_| Ok(()))
    }
    fn attach(&self) -> PmemDevice<EmuMachine> {
        self.try_attach(&LENT).unwrap()
    }
    fn assert_nothing_left(&self, when: &str) {
        assert!(!self.queue.started.load(Ordering::SeqCst), "the queue runs {when}");
        assert!(!self.bench.driver.names.is_taken("vpmem0"), "the name is taken {when}");
        self.bench.assert_nothing_left(when);
    }
}

/// covers: A7
#[test]
fn a_lent_region_attaches_as_an_nvdimm_does_and_each_write_is_flushed() {
    let lender = lender(DataCache::Coherent);
    let device = lender.attach();
    assert_eq!(device.pagemap().ranges(), [RANGE]);
    assert_eq!(device.dax().unwrap().kind(), MemoryKind::FsDax);
    device.block().write(9, &sectors(4, 3)).unwrap();
    assert_eq!(lender.queue.asked(), 1);
    assert_eq!(lender.queue.kept.lock()[9 * 512..12 * 512], sectors(4, 3));
    // What somebody stored through a mapping lasts after a flush, and not before.
    PmemMemory::write(&*lender.bench.host.memory(START), 0, &[9; 64]).unwrap();
    assert_eq!(lender.queue.kept.lock()[..64], [0; 64]);
    device.block().flush().unwrap();
    assert_eq!((lender.queue.asked(), &lender.queue.kept.lock()[..64]), (2, &[9; 64][..]));
    let report = device.remove(Vec::new(), Method::Ranged, &mut ());
    assert!(report.idle);
    lender.assert_nothing_left("after a removal");
}

/// covers: A1, A2, A7
#[test]
fn where_the_cache_aliases_it_comes_up_without_dax() {
    let lender = lender(DataCache::Aliasing);
    let device = lender.attach();
    assert!(device.dax().is_none());
    device.block().write(0, &sectors(1, 2)).unwrap();
    assert_eq!(lender.queue.kept.lock()[..1024], sectors(1, 2));
    drop(device);
    // As device-dax nobody would reach user data through an alias.
    let device = lender.try_attach(&Config { kind: MemoryKind::DevDax, ..LENT }).unwrap();
    assert!(device.dax().is_some());
    drop(device);
    lender.assert_nothing_left("after two devices");
}

/// covers: A6, A7
#[test]
fn after_a_failure_of_any_step_the_queue_is_stopped_and_the_device_attaches() {
    let lender = lender(DataCache::Coherent);
    for fail in Step::ALL {
        let mut supervisor = |step| if step == fail { Err(Refused::Injected) } else { Ok(()) };
        let result = lender.driver.attach(&LENT, &mut supervisor);
        assert_eq!(result.unwrap_err(), (fail, AttachError::Injected(fail)));
        lender.assert_nothing_left(&alloc::format!("after step {fail} failed"));
        drop(lender.attach());
        lender.assert_nothing_left(&alloc::format!("after the next attach and detach ({fail})"));
    }
    // The queue does not start: nothing was mapped.
    lender.bench.host.events.lock().clear();
    *lender.queue.refuse_start.lock() = Some(FlushError::Gone);
    let (step, error) = lender.try_attach(&LENT).unwrap_err();
    assert_eq!((step, &error), (Step::Map, &AttachError::Map(MapFailed::NoFlush(FlushError::Gone))));
    assert_eq!(error.to_string(), "the device is gone, or has stopped working");
    assert!(lender.bench.host.events.lock().is_empty());
    // The kernel has no room: the queue is stopped again.
    *lender.queue.refuse_start.lock() = None;
    *lender.bench.host.refuse.lock() = Some(Pfn::new(START));
    let (step, _) = lender.try_attach(&LENT).unwrap_err();
    assert_eq!(step, Step::Map);
    lender.assert_nothing_left("after a failure to map");
}

#[test]
fn two_providers_share_names_and_claims() {
    let lender = lender(DataCache::Coherent);
    let nvdimm = lender.bench.usual();
    let (step, error) = lender.try_attach(&Config { name: "pmem0", ..LENT }).unwrap_err();
    assert_eq!((step, error), (Step::Check, AttachError::NameTaken));
    let (step, error) = lender.try_attach(&LENT).unwrap_err();
    assert_eq!(step, Step::Claim);
    assert!(error.to_string().ends_with("which pmem0 has claimed"), "{error}");
    drop(nvdimm);
    drop(lender.attach());
    lender.assert_nothing_left("after both");
}

#[test]
fn every_kind_of_bad_answer_is_an_error_of_the_write_that_asked() {
    let answers = [
        (Answer::Word(1, 4), FlushError::Refused { code: 1 }),
        (Answer::Word(u32::MAX, 4), FlushError::Refused { code: u32::MAX }),
        (Answer::Word(0, 0), FlushError::ShortAnswer { bytes: 0 }),
        (Answer::Word(0, 3), FlushError::ShortAnswer { bytes: 3 }),
        (Answer::None(FlushError::Gone), FlushError::Gone),
        (Answer::None(FlushError::NoAnswer), FlushError::NoAnswer),
    ];
    for (answer, error) in answers {
        let lender = lender(DataCache::Coherent);
        let device = lender.attach();
        device.block().write(0, &sectors(1, 1)).unwrap();
        lender.queue.answer(answer);
        assert_eq!(device.block().write(0, &sectors(2, 1)), Err(BlockError::NotDurable(error)));
        assert_eq!(lender.queue.kept.lock()[..512], sectors(1, 1), "the host's file");
        // It was written, only not for good.
        let mut back = sectors(0, 1);
        device.block().read(0, &mut back).unwrap();
        assert_eq!(back, sectors(2, 1));
    }
}

#[test]
fn after_an_error_no_later_success_is_believed_until_the_device_is_attached_again() {
    let lender = lender(DataCache::Coherent);
    let device = lender.attach();
    lender.queue.answer(Answer::Word(5, 4));
    let lost = Err(BlockError::NotDurable(FlushError::Refused { code: 5 }));
    assert_eq!(device.block().flush(), lost);
    // The next flush would succeed; the host has forgotten what it lost.
    assert_eq!((device.block().flush(), device.block().write(0, &sectors(1, 1))), (lost, lost));
    assert_eq!(lender.queue.asked(), 1);
    // A bad block is not healed by a write that may not last.
    lose(&device, SectorRun { first: 2, nr_sectors: 1 });
    assert_eq!(device.block().write(2, &sectors(1, 1)), lost);
    assert!(is_lost(&device, 2));
    assert!(device.remove(Vec::new(), Method::Ranged, &mut ()).idle);
    lender.assert_nothing_left("after the removal of a device that failed");
    let device = lender.attach();
    assert_eq!((device.block().flush(), device.block().write(0, &sectors(1, 1))), (Ok(()), Ok(())));
}

/// Two CPUs flush at the same time, and the host tells the other one: both have lost.
#[test]
fn an_error_that_another_cpu_was_told_is_an_error_of_both() {
    let lender = lender(DataCache::Coherent);
    let device = lender.attach();
    let block = Arc::clone(device.block());
    lender.queue.answer(Answer::Word(0, 4));
    lender.queue.answer(Answer::Word(1, 4));
    let lost = Err(BlockError::NotDurable(FlushError::Refused { code: 1 }));
    let other = move || assert_eq!(block.flush(), lost);
    *lender.queue.meanwhile.lock() = Some(alloc::boxed::Box::new(other));
    assert_eq!(device.block().flush(), lost);
    assert_eq!(lender.queue.asked(), 2);
}

#[test]
fn a_region_that_cannot_be_used_is_refused_with_a_reason() {
    let ram = [(0, 0x10_0000), (1 << 32, 0x1000)]
        .map(|(base, len_bytes)| Taken { range: ByteRange { base, len_bytes }, by: Owner::Ram });
    let limits = Limits { phys_bits: 40, taken: &ram };
    let frames_of = |start, len_bytes| Region { start, len_bytes }.frames(limits);
    assert_eq!(frames_of(0x10_0000, 0x2000), Ok(frames(0x100, 2)));
    assert_eq!(frames_of((1 << 40) - 0x1000, 0x1000), Ok(frames((1 << 28) - 1, 1)));
    let unreachable = Err(RegionError::Unreachable { phys_bits: 40 });
    for (start, len_bytes, wanted) in [
        (0x10_0000, 0, Err(RegionError::Empty)),
        (0x10_0001, 0x1000, Err(RegionError::Misaligned)),
        (0x10_0000, 0x1fff, Err(RegionError::Misaligned)),
        (1 << 40, 0x1000, unreachable),
        ((1 << 40) - 0x1000, 0x2000, unreachable),
        (u64::MAX - 0xfff, 0x1000, unreachable),
        (0x1000, u64::MAX - 0xfff, unreachable),
        (0xf_f000, 0x1000, Err(RegionError::Overlaps(ram[0]))),
        ((1 << 32) - 0x1000, 0x2000, Err(RegionError::Overlaps(ram[1]))),
        (0x10_0000, 1 << 33, Err(RegionError::Overlaps(ram[1]))),
    ] {
        assert_eq!(frames_of(start, len_bytes), wanted, "{start:#x}+{len_bytes:#x}");
    }
    let region = Region::from_words([0x4000_0000, 0x1, 0x2000, 0x2]);
    assert_eq!(region, Region { start: 0x1_4000_0000, len_bytes: 0x2_0000_2000 });
}
