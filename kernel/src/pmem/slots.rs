//! Slots: each a range of persistent memory, and the place of its device, which comes and goes.
//!
//! A slot is a range of the NFIT (or a namespace in it), the memory of a virtio-pmem device, or that of a memory module. Those
//! that are found at boot come first; what arrives while the kernel runs is put behind them. None ever goes: memory that has
//! left comes back to the slot that it had.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use dax::devdax::DevDax;
use dax::removal::RemovalReport;
use dax::slot::DeviceSlot;
use media::namespace::{Mode, Namespace};
use mm::addr::PfnRange;
use mm::pagemap::MemoryKind;
use nvdimm::nfit::DeviceFlags;
use nvdimm::pmem::{PmemDevice, PmemDriver};
use spin::{Mutex, Once};

use crate::mem::machine::KernelMachine;
use crate::pmem::dimms::{Dimm, Watched};
use crate::pmem::namespaces::Given;

/// So many can be added while the kernel runs.
const LATER: usize = 32;

/// A range of persistent memory, and the place of its device.
pub struct Slot {
    /// The device's name: `pmem0`, `pmem1`, … for what the NFIT reports, `vpmem0`, … for virtio-pmem, `dimm0`, … for modules.
    pub name: String,
    /// The frames that the provider reports; of a namespace, those of its data.
    pub frames: PfnRange,
    /// Why the memory takes no writes; `None` where it takes them.
    pub read_only: Option<DeviceFlags>,
    /// The number of its region, which is that of its range among the NFIT's; `None` for what the NFIT does not name.
    pub region: Option<usize>,
    /// The namespace that it is; `None` for a range without labels.
    pub namespace: Option<Namespace>,
    pub(super) provider: Provider,
    pub(super) occupancy: DeviceSlot<Attached>,
    /// The report of the last removal. At most one of all has parts in the reserve: see
    /// [`last_removal`](crate::pmem::last_removal).
    pub(super) last: mm::sync::Mutex<Option<Arc<RemovalReport>>>,
    /// When the last removal's shootdown was done, in nanoseconds since the first line; 0 before the first.
    pub(super) shot_down_ns: AtomicU64,
    /// How the device was used when its module left; `None` once it is used so again, or somebody has decided otherwise.
    pub(super) left_as: Mutex<Option<LeftAs>>,
}

/// How a device was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeftAs {
    /// What for.
    pub(super) kind: MemoryKind,
    /// A file system was mounted from it.
    pub(super) mounted: bool,
}

/// Where a slot's memory comes from.
pub(super) enum Provider {
    /// The NFIT.
    Nvdimm,
    /// A virtio-pmem device, with the driver that it has for itself.
    Virtio(PmemDriver<KernelMachine>),
    /// A memory module, with its driver.
    Dimm(PmemDriver<KernelMachine>, &'static Dimm),
}

impl Slot {
    pub(super) fn new(given: Given, provider: Provider) -> Self {
        Self {
            name: given.name,
            frames: given.frames,
            read_only: given.read_only,
            region: given.region,
            namespace: given.namespace,
            provider,
            occupancy: DeviceSlot::new(),
            last: mm::sync::Mutex::default(),
            shot_down_ns: AtomicU64::new(0),
            left_as: Mutex::new(None),
        }
    }

    /// When the shootdown of its last removal was done, in nanoseconds since the first line; 0 before the first.
    pub fn shot_down_ns(&self) -> u64 {
        self.shot_down_ns.load(Ordering::Relaxed)
    }

    /// Where its memory comes from, in a word.
    pub fn provider(&self) -> &'static str {
        match self.provider {
            Provider::Nvdimm => "nvdimm",
            Provider::Virtio(_) => "virtio-pmem",
            Provider::Dimm(..) => "dimm",
        }
    }

    pub(super) fn driver(&self) -> &PmemDriver<KernelMachine> {
        match &self.provider {
            Provider::Nvdimm => driver(),
            Provider::Virtio(own) | Provider::Dimm(own, _) => own,
        }
    }

    /// The module, where it is one.
    pub fn dimm(&self) -> Option<&'static Dimm> {
        match self.provider {
            Provider::Dimm(_, dimm) => Some(dimm),
            Provider::Nvdimm | Provider::Virtio(_) => None,
        }
    }

    /// Has it its frames, as far as notice was taken? Those of a module that has left are free for whatever comes next.
    pub fn is_in(&self) -> bool {
        self.dimm().is_none_or(|dimm| dimm.place.current().is_some_and(|stay| stay.is_of(self.frames)))
    }

    /// What its memory is used for, where nobody says anything else. Lent memory lasts only by flushes, which a file
    /// system does and a program that maps the device may forget.
    pub fn kind(&self) -> MemoryKind {
        match self.provider {
            Provider::Nvdimm if self.mode() == Some(Mode::FsDax) => MemoryKind::FsDax,
            Provider::Nvdimm | Provider::Dimm(..) => MemoryKind::DevDax,
            Provider::Virtio(_) => MemoryKind::FsDax,
        }
    }
}

/// An attached device.
pub(super) struct Attached {
    pub(super) device: PmemDevice<KernelMachine>,
    /// Its device-dax file; `None` where it is for file systems.
    pub(super) file: Option<Arc<DevDax<KernelMachine>>>,
    /// Whether its module is still there is looked at again and again; `None` where it cannot leave.
    pub(super) watched: Option<Watched>,
}

/// A list that grows at its end, up to a length that is fixed when it is made; what is on it stays where it is.
struct AppendOnly<T> {
    places: Box<[UnsafeCell<MaybeUninit<T>>]>,
    /// So many of them, from the first on, hold a `T` that is not changed any more.
    len: AtomicUsize,
    adding: Mutex<()>,
}

// SAFETY: a place is written once, under `adding`, before `len` covers it; from then on it is shared. So the list is like an
// `Arc<[T]>` to who reads, and takes a `T` from whichever CPU adds it.
unsafe impl<T: Send + Sync> Sync for AppendOnly<T> {}
// SAFETY: it owns its `T`s.
unsafe impl<T: Send> Send for AppendOnly<T> {}

impl<T> AppendOnly<T> {
    /// These, and room for `more`.
    fn new(first: Vec<T>, more: usize) -> Self {
        let len = first.len();
        let places = first.into_iter().map(MaybeUninit::new).chain((0..more).map(|_| MaybeUninit::uninit()));
        let places = places.map(UnsafeCell::new).collect();
        Self { places, len: AtomicUsize::new(len), adding: Mutex::new(()) }
    }

    fn as_slice(&self) -> &[T] {
        // Acquire; pairs with the Release in `push`.
        let len = self.len.load(Ordering::Acquire);
        // SAFETY: the first `len` places hold a `T` each, which nobody changes any more; `UnsafeCell` and `MaybeUninit` have
        // the layout of what is in them.
        unsafe { core::slice::from_raw_parts(self.places.as_ptr().cast(), len) }
    }

    /// Puts one at the end; answers its number. `None`: there is no room, and it is dropped.
    fn push(&self, value: T) -> Option<usize> {
        let _one_at_a_time = self.adding.lock();
        let at = self.len.load(Ordering::Relaxed);
        let place = self.places.get(at)?;
        // SAFETY: nobody reads a place at or behind `len`, and of writers there is one.
        unsafe { (*place.get()).write(value) };
        self.len.store(at + 1, Ordering::Release);
        Some(at)
    }
}

static DRIVER: Once<PmemDriver<KernelMachine>> = Once::new();
static SLOTS: Once<AppendOnly<Slot>> = Once::new();

/// Makes the list, with what was found at boot. Called once.
pub(super) fn init(driver: PmemDriver<KernelMachine>, slots: impl FnOnce(&PmemDriver<KernelMachine>) -> Vec<Slot>) {
    let driver = DRIVER.call_once(|| driver);
    SLOTS.call_once(|| AppendOnly::new(slots(driver), LATER));
}

/// The NVDIMMs' driver, whose names and claims all share.
///
/// # Panics
/// Before [`init`].
pub(super) fn driver() -> &'static PmemDriver<KernelMachine> {
    DRIVER.get().expect("the driver is made before the first slot")
}

/// The slots, NVDIMMs first; empty where there is no persistent memory.
pub fn slots() -> &'static [Slot] {
    SLOTS.get().map_or(&[], AppendOnly::as_slice)
}

/// Adds a slot for what has arrived; answers its number. `None`: there is no room for more.
pub(super) fn add(slot: Slot) -> Option<usize> {
    let added = SLOTS.get()?.push(slot);
    if added.is_none() {
        log::error!(target: "devices", "there is no room for more than {LATER} devices that arrive: one is not used");
    }
    added
}

/// How the device of slot `at` was used when its module left is of no interest any more: it is used.
pub(super) fn forget_use(at: usize) {
    if let Some(slot) = slots().get(at) {
        *slot.left_as.lock() = None;
    }
}

/// The slot, other than `but`, that has some of these frames now.
pub(super) fn in_the_way(frames: PfnRange, but: Option<&Slot>) -> Option<&'static Slot> {
    let is_other = |slot: &Slot| but.is_none_or(|but| !core::ptr::eq(but, slot));
    slots().iter().find(|slot| slot.frames.overlaps(frames) && slot.is_in() && is_other(slot))
}

/// The slot of the device of this name.
pub fn slot_named(name: &str) -> Option<usize> {
    slots().iter().position(|slot| slot.name == name)
}
