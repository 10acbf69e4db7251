//! What the tests of gup share: a space with every page present on two CPUs, and races at chosen points.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use mm::addr::{PAGE_SIZE, PageSize};
use mm::gup::GupFlags;
use mm::machine::Point;
use mm::sync::Arc;
use testkit::emu::{Background, EmuMachine, Event};

use super::{Device, EmuContext, Space, counts, machine, page, space_with, store_to};

/// The lockless walk or nothing.
pub const FAST: GupFlags = GupFlags::FAST_ONLY.union(GupFlags::WRITE);

/// A device, and a space that maps it.
pub struct Rig {
    pub emu: EmuMachine,
    pub mm: Arc<EmuContext>,
    pub device: Arc<Device>,
    pub space: Arc<Space>,
}

/// A space of `nr_pages` in leaves of at most `leaf`, loaded on CPUs 0 and 1, with every page present.
pub fn rig(nr_pages: u64, leaf: PageSize) -> Rig {
    let (emu, mm) = machine(2);
    let device = Device::dax_with(&mm, 4 << 18, leaf);
    let space = space_with(&mm, &device, nr_pages, &[0, 1]);
    (0..nr_pages).step_by(leaf.nr_pages() as usize).for_each(|nr| store_to(&space, &emu, page(nr), nr).unwrap());
    emu.reset_stats();
    Rig { emu, mm, device, space }
}

/// What another CPU does meanwhile.
pub type Running = Arc<Mutex<Option<Background<()>>>>;

impl Rig {
    /// While CPU 0 is at `point` inside gup-fast, CPU 1 starts `other`; answers where to find it.
    pub fn race(&self, point: Point, other: impl FnOnce() + Send + 'static) -> Running {
        let running = Running::default();
        let (emu, started) = (self.emu.clone(), running.clone());
        self.emu.at(0, Event::At(point), 1, move || *started.lock().unwrap() = Some(emu.start(1, other)));
        running
    }

    pub fn unmap(&self, first: u64, nr_pages: u64) -> impl FnOnce() + Send + use<> {
        let space = self.space.clone();
        move || _ = space.unmap(page(first), nr_pages * PAGE_SIZE).unwrap()
    }

    pub fn finish(&self, running: &Running) {
        self.emu.assert_hooks_ran();
        self.emu.finish(running.lock().unwrap().take().unwrap());
        self.emu.assert_no_stale();
    }

    pub fn pins(&self, nr: u64) -> u32 {
        counts(&self.mm.meta, self.device.pfn(nr)).1
    }
}

/// The message of the panic that `f` ends with.
pub fn panic_of(f: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(f)).expect_err("it was let pass");
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string())).unwrap_or_default()
}
