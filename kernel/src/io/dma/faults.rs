//! Faults: what the IOMMU has blocked, whose it was, and that it is told.
//!
//! A unit records a blocked request and interrupts (or is asked, by [`collect`]). The record goes to the log of the device
//! whose request it was; a task says it on the console with the registration that it belongs to. Records are few: QEMU's
//! unit has one, and one that finds none free is lost, which the unit says (D6). It is counted then, and counts against
//! every transfer that was under way.
//!
//! A storm of them must not starve the CPU: the interrupt is masked by [`Throttle`], and the task asks instead, at
//! intervals, until nobody has found a fault for one: drivers ask, too, so that the task itself finds none is not enough.
//! The task's lines are bounded, too, by [`LINES_PER_SECOND`]: what is not told one by one is told as a number, later.

use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arrayvec::ArrayVec;
use iommu::completion::{Against, Counts};
use iommu::domain::Owner;
use iommu::fault::Fault;
use iommu::throttle::{POLL_NS, Throttle};
use mm::addr::PfnRange;
use mm::machine::Machine;
use mm::pins::Word;
use mm::space::Access;
use spin::Once;

use super::devices::{DmaDevice, OWN, TRANSIENT, devices};
use super::past::{self, Registered};
use super::{DmaError, DmaTarget};
use crate::console::report;
use crate::cpu::lock::IrqLock;
use crate::io::vtd;
use crate::mem::machine::mm;
use crate::task::sched;
use crate::task::tcb::{Exit, Task};

/// As many faults of a device are remembered; of earlier ones there is a number.
const REMEMBERED: usize = 16;
/// As many are said one by one in one go.
const SAID_AT_ONCE: u64 = 8;
/// As many lines are said in a second, about: a few more where the last ones belong together.
pub const LINES_PER_SECOND: u64 = 64;
const SECOND_NS: u64 = 1_000_000_000;

/// Faults that no record was free for: at least so many, for a unit says that there were some, not how many.
static OVERFLOWS: AtomicU64 = AtomicU64::new(0);
/// Faults of functions that no driver has.
static STRAYS: AtomicU64 = AtomicU64::new(0);
/// Faults that were read from a unit, and times that one said it had lost some.
static FOUND: AtomicU64 = AtomicU64::new(0);
/// Interrupts that were taken.
static INTERRUPTS: AtomicU64 = AtomicU64::new(0);
static THROTTLE: IrqLock<Throttle> = IrqLock::new(Throttle::new());
static TASK: Once<Arc<Task>> = Once::new();
/// What happens to mappings and faults is said on the console.
static SPEAKS: AtomicBool = AtomicBool::new(true);

/// Says whether memory is still there.
static PRESENCE: Once<fn(&[PfnRange]) -> bool> = Once::new();

/// From now on `are_there` is asked after each transfer whether the memory at all of its frames is still there. Called once.
pub fn ask_presence(are_there: fn(&[PfnRange]) -> bool) {
    PRESENCE.call_once(|| are_there);
}

fn are_there(runs: &[PfnRange]) -> bool {
    PRESENCE.get().is_none_or(|ask| ask(runs))
}

/// Is what happens said on the console?
pub fn speaks() -> bool {
    SPEAKS.load(Ordering::Relaxed)
}

/// Says it from now on, or does not: for measurements.
pub fn speak(speaks: bool) {
    SPEAKS.store(speaks, Ordering::Relaxed);
}

/// How often a unit has said that it had no record free.
pub fn overflows() -> u64 {
    OVERFLOWS.load(Ordering::Relaxed)
}

/// Faults of functions that no driver has.
pub fn strays() -> u64 {
    STRAYS.load(Ordering::Relaxed)
}

/// What telling the faults has cost since boot.
///
/// A fault of a device is in exactly one of `singly`, `as_number` and `unsaid`, at any time: whoever finds nothing unsaid
/// finds all of them counted. While nothing is said ([`speak`]) they count as if it were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Interrupts that were taken.
    pub interrupts: u64,
    /// Faults that are said one by one: a line each.
    pub singly: u64,
    /// Faults that are said as a number only.
    pub as_number: u64,
    /// How often such a number is said.
    pub numbers: u64,
    /// Faults of devices of which nothing is said yet.
    pub unsaid: u64,
    /// The interrupt is masked: there is a storm.
    pub masked: bool,
}

/// What telling the faults has cost since boot.
pub fn told() -> Told {
    let (interrupts, masked) = (INTERRUPTS.load(Ordering::Relaxed), THROTTLE.lock().is_masked());
    devices().fold(Told { interrupts, singly: 0, as_number: 0, numbers: 0, unsaid: 0, masked }, |sum, device| {
        let log = device.faults.0.lock();
        Told {
            singly: sum.singly + log.singly,
            as_number: sum.as_number + log.as_number,
            numbers: sum.numbers + log.numbers,
            unsaid: sum.unsaid + log.unsaid(),
            ..sum
        }
    })
}

/// A fault of a device, and what it touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultRecord {
    /// As it was recorded.
    pub fault: Fault,
    /// When it was read, in nanoseconds since boot.
    pub at_ns: u64,
    /// The mapping that has, or had until lately, its address.
    pub owner: Option<Owner>,
    /// Who has registered that, if it is a registration of which that is still known.
    pub registered: Option<Registered>,
}

impl fmt::Display for FaultRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.fault)?;
        let whose = Of(self.registered.as_ref());
        match self.owner {
            None => f.write_str(", where nothing was mapped lately"),
            Some(Owner { tag: OWN, .. }) => f.write_str(", in the driver's own memory"),
            Some(Owner { tag: TRANSIENT, revoked, .. }) => {
                write!(f, ", in pages that {} pinned for a transfer", if revoked { "were" } else { "are" })
            }
            Some(Owner { tag, revoked: true, .. }) => write!(f, ", in registration {tag}{whose}, which is over"),
            Some(Owner { tag, revoked: false, .. }) => write!(f, ", in registration {tag}{whose}"),
        }
    }
}

/// ` of OWNER, made at PLACE`, where that is known.
struct Of<'r>(Option<&'r Registered>);

impl fmt::Display for Of<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Registered { owner, place, .. }) = self.0 else { return Ok(()) };
        write!(f, " of {owner} (made at {}:{})", place.file(), place.line())
    }
}

/// The faults of one device. Written by interrupt handlers.
pub(super) struct FaultLog(IrqLock<Log>);

struct Log {
    count: u64,
    /// How many of them were taken to be said one by one, and as a number; and how many numbers that makes.
    singly: u64,
    as_number: u64,
    numbers: u64,
    last: ArrayVec<(Fault, u64), REMEMBERED>,
}

impl Log {
    fn unsaid(&self) -> u64 {
        self.count - self.singly - self.as_number
    }
}

impl FaultLog {
    pub(super) fn new() -> Self {
        Self(IrqLock::new(Log { count: 0, singly: 0, as_number: 0, numbers: 0, last: ArrayVec::new_const() }))
    }
    pub(super) fn count(&self) -> u64 {
        self.0.lock().count
    }
    fn add(&self, fault: Fault, at_ns: u64) {
        let mut log = self.0.lock();
        log.count += 1;
        if log.last.is_full() {
            log.last.remove(0);
        }
        log.last.push((fault, at_ns));
    }
    fn last(&self) -> Option<(Fault, u64)> {
        self.0.lock().last.last().copied()
    }
    /// Those that were not said yet, at most the last few, and how many more there were. They count as said from here on.
    fn take_unsaid(&self) -> (ArrayVec<(Fault, u64), REMEMBERED>, u64) {
        let log = &mut *self.0.lock();
        let unsaid = log.unsaid();
        let shown = unsaid.min(SAID_AT_ONCE).min(log.last.len() as u64);
        let more = unsaid - shown;
        log.singly += shown;
        log.as_number += more;
        log.numbers += u64::from(more > 0);
        let from = log.last.len() - shown as usize;
        (log.last[from..].iter().copied().collect(), more)
    }
}

impl DmaDevice {
    /// What was counted of it up to now.
    fn counts(&self) -> Counts {
        Counts { faults: self.faults.count(), overflows: overflows(), halts: self.nr_halts() }
    }
    fn attribute(&self, (fault, at_ns): (Fault, u64)) -> FaultRecord {
        let owner = self.domain.owner_of(fault.address);
        let key = owner.map(|owner| owner.tag).filter(|tag| ![OWN, TRANSIENT].contains(tag));
        FaultRecord { fault, at_ns, owner, registered: key.and_then(past::find) }
    }

    /// Calls `each` with its last faults, oldest first.
    pub fn for_each_fault(&self, each: &mut dyn FnMut(&FaultRecord)) {
        let last = self.faults.0.lock().last.clone();
        last.into_iter().for_each(|fault| each(&self.attribute(fault)));
    }
}

/// Reads what the units have recorded since this was last done. `false`: more came all the while, and some is left.
pub fn collect() -> bool {
    let (now, mut is_all) = (mm().machine.now_ns(), true);
    for unit in vtd::units() {
        is_all &= unit.take_faults(&mut |found| {
            FOUND.fetch_add(1, Ordering::Relaxed);
            let Some(fault) = found else {
                OVERFLOWS.fetch_add(1, Ordering::Relaxed);
                return;
            };
            match devices().find(|device| device.source() == fault.source) {
                Some(device) => device.faults.add(fault, now),
                None => _ = STRAYS.fetch_add(1, Ordering::Relaxed),
            }
        });
    }
    is_all
}

/// Transfers of devices that were blocked since boot, up to now.
pub fn nr_blocked() -> u64 {
    collect();
    devices().map(|device| device.nr_faults()).sum()
}

/// A unit has interrupted.
pub fn on_interrupt() {
    INTERRUPTS.fetch_add(1, Ordering::Relaxed);
    collect();
    {
        // The registers say what the throttle says: both are changed with its lock held.
        let mut throttle = THROTTLE.lock();
        if throttle.on_interrupt(mm().machine.now_ns()) {
            vtd::units().for_each(|unit| unit.mask_faults(true));
        }
    }
    if let Some(task) = TASK.get() {
        sched::unpark(task);
    }
}

/// Starts the task that says faults on the console. Called once, when tasks run and before a device is attached.
pub fn start() {
    TASK.call_once(|| sched::spawn("dma-faults", 0, None, work));
    vtd::units().for_each(|unit| unit.mask_faults(false));
}

/// How many lines may still be said in this second.
struct Budget {
    from_ns: u64,
    left: u64,
}

impl Budget {
    fn renew(&mut self) {
        let now = mm().machine.now_ns();
        if now - self.from_ns >= SECOND_NS {
            *self = Self { from_ns: now, left: LINES_PER_SECOND };
        }
    }
    fn spend(&mut self, lines: u64) {
        self.left = self.left.saturating_sub(lines);
    }
}

fn work() -> Exit {
    let mut budget = Budget { from_ns: 0, left: LINES_PER_SECOND };
    loop {
        budget.renew();
        // Who was interrupted may have left some, for which there is no other interrupt.
        let is_all = collect();
        if budget.left > 0 {
            say_all(&mut budget);
        }
        let masked = THROTTLE.lock().is_masked();
        if masked || budget.left == 0 || !is_all {
            sit_out_the_storm();
        } else {
            sched::park();
        }
    }
}

/// Asks the units for a second. Where they do not interrupt, and nobody has found anything for [`POLL_NS`], they do so
/// again, and it is over.
fn sit_out_the_storm() {
    let mut seen = FOUND.load(Ordering::Relaxed);
    for _ in 0..SECOND_NS / POLL_NS {
        sched::sleep_ns(POLL_NS);
        collect();
        let now = FOUND.load(Ordering::Relaxed);
        let goes_on = core::mem::replace(&mut seen, now) != now;
        let mut throttle = THROTTLE.lock();
        if throttle.on_poll(goes_on) {
            return vtd::units().for_each(|unit| unit.mask_faults(false));
        }
    }
}

fn say_all(budget: &mut Budget) {
    static STRAYS_SAID: AtomicU64 = AtomicU64::new(0);
    static OVERFLOWS_SAID: AtomicU64 = AtomicU64::new(0);
    for device in devices() {
        let (shown, more) = device.faults.take_unsaid();
        budget.spend(shown.len() as u64 + u64::from(more > 0));
        for fault in shown {
            say(device, &device.attribute(fault));
        }
        if more > 0 && speaks() {
            log::warn!(target: "dma", "{}: {more} more faults", device.name());
            report!("dma_faults device={} more={more}", Word(device.name()));
        }
    }
    let news = |total: u64, said: &AtomicU64| total - said.swap(total, Ordering::Relaxed);
    let (strays, lost) = (news(strays(), &STRAYS_SAID), news(overflows(), &OVERFLOWS_SAID));
    budget.spend(u64::from(strays > 0) + u64::from(lost > 0));
    if strays > 0 {
        log::warn!(target: "dma", "{strays} faults of functions that no driver has");
    }
    if lost > 0 {
        log::warn!(target: "dma", "the IOMMU had no record free {lost} times: faults are lost, and count against every transfer under way");
        report!("dma_faults_lost times={lost}");
    }
}

fn say(device: &DmaDevice, record: &FaultRecord) {
    if !speaks() {
        return;
    }
    log::warn!(target: "dma", "{}: {record}", device.name());
    let FaultRecord { fault, at_ns, owner, registered } = record;
    let (key, state) = match owner {
        None => (0, "none"),
        Some(Owner { tag: OWN, .. }) => (0, "driver"),
        Some(Owner { tag: TRANSIENT, .. }) => (0, "transient"),
        Some(Owner { tag, revoked, .. }) => (*tag, if *revoked { "revoked" } else { "mapped" }),
    };
    report!(
        "dma_fault device={} source={} iova={:#x} access={} reason={} key={key} target={state}{} at_ns={at_ns}",
        Word(device.name()),
        fault.source,
        fault.address,
        fault.kind,
        fault.reason.number(),
        past::Fields(registered.as_ref()),
    );
}

/// A transfer under way, and what may speak against it.
#[must_use = "a completion is not believed by itself"]
pub struct Watch {
    device: Arc<DmaDevice>,
    before: Counts,
}

impl Watch {
    pub(super) fn begin(device: &Arc<DmaDevice>) -> Self {
        // Earlier ones are no business of this transfer.
        collect();
        Self { device: Arc::clone(device), before: device.counts() }
    }

    /// The device says that its transfer from or to `target` has ended well. Did it?
    ///
    /// # Errors
    /// A fault of the device since the watch began, whatever its address; or faults that were lost; or the target was
    /// revoked, or is memory that has left; or the device had no right to do DMA in between, of which no fault tells.
    pub fn end(self, target: &dyn DmaTarget) -> Result<(), DmaError> {
        let is_all = collect();
        target.check(Access::Read)?;
        let Self { device, before } = self;
        if device.is_stopped() {
            return Err(DmaError::Stopped);
        }
        match device.counts().against(&before) {
            None if is_all => {}
            // What is left may be one of this device.
            None => return Err(DmaError::FaultsLost),
            Some(Against::Halt) => return Err(DmaError::Stopped),
            Some(Against::FaultsLost) => return Err(DmaError::FaultsLost),
            // The last one is there: it was counted.
            Some(Against::Fault) => {
                let last = device.faults.last();
                return Err(last.map_or(DmaError::FaultsLost, |last| DmaError::Fault(device.attribute(last))));
            }
        }
        // After the transfer: memory that leaves without a word takes stores and gives zeroes, and no fault tells.
        if !are_there(target.frames()) {
            return Err(DmaError::Gone);
        }
        // Once more: since the first look it may have left, and something come in its place that is there now. That is a new
        // stay, and one begins only after every registration of what has left was closed.
        target.check(Access::Read)
    }
}
