//! What every schedule of a scenario runs on: an emulated machine with its context, and a file whose pages are mapped.
//! Making one takes longer than a schedule, so each thread has one, and a schedule leaves it as it was.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use mm::addr::{PAGE_SIZE, PageSize, Pfn, PfnRange, VirtAddr};
use mm::context::MmContext;
use mm::entry::Prot;
use mm::machine::{CpuId, IrqOff};
use mm::mapping::Mapping;
use mm::pagemap::{DevPagemap, MemoryKind};
use mm::space::{Access, AddressSpace, FaultError, FaultRequest, FaultTarget, MapError, SigBusCause, VmOps};
use testkit::emu::{self, Config, EmuMachine};

use crate::conductor;

/// An address space of the emulated machine.
pub type Space = AddressSpace<EmuMachine>;
/// Its context.
pub type Context = MmContext<EmuMachine>;

/// First frame of the file.
const FIRST: Pfn = Pfn::new(0x10_0000);
/// Its pages: two 2 MiB leaves.
const FILE_PAGES: u64 = 1024;
/// Where it is mapped: 2 MiB-aligned.
const BASE: u64 = 0x40_0000_0000;
/// Table pages of a machine: many times what a scenario needs, so that a freed one stays empty for a while.
const TABLE_PAGES: usize = 64;
/// What a page holds that was given to somebody else.
const ANOTHERS: u64 = 0xa11e;

/// The address of page `nr`.
pub fn page(nr: u64) -> VirtAddr {
    VirtAddr::new(BASE + nr * PAGE_SIZE)
}

/// A file whose pages are frames in a row, in leaves of one size.
pub struct File {
    frames: PfnRange,
    mapping: Arc<Mapping<EmuMachine>>,
    map: Arc<DevPagemap>,
    leaf: PageSize,
    notes_stores: bool,
}

impl File {
    /// One of frames that nobody else has, from now on.
    ///
    /// # Panics
    /// Somebody has them.
    pub fn new(mm: &Arc<Context>, first: Pfn, nr_pages: u64, shape: Shape) -> Arc<Self> {
        let frames = PfnRange::new(first, nr_pages).expect("there are frames");
        let map = DevPagemap::new(MemoryKind::DevDax, [frames]).expect("one range");
        mm.meta.register(&map).expect("they are nobody else's");
        let mapping = Mapping::new(mm, &map);
        Arc::new(Self { frames, mapping, map, leaf: shape.leaf, notes_stores: shape.notes_stores })
    }

    /// Its page map.
    pub fn page_map(&self) -> &Arc<DevPagemap> {
        &self.map
    }
}

impl VmOps<EmuMachine> for File {
    fn fault(
        &self,
        request: &FaultRequest,
        install: &mut dyn FnMut(FaultTarget) -> Result<(), FaultError>,
    ) -> Result<(), FaultError> {
        if request.offset_pages >= self.frames.nr_pages() {
            let cause = SigBusCause::BeyondEnd;
            return Err(FaultError::SigBus { addr: request.addr, len_bytes: PAGE_SIZE, cause });
        }
        install(FaultTarget { pfn: self.frames.start().add(request.offset_pages), size: self.leaf })
    }
    fn mmap(&self, _offset_pages: u64, _nr_pages: u64, insert: &mut dyn FnMut()) -> Result<(), MapError> {
        insert();
        Ok(())
    }
    fn mapping(&self) -> &Arc<Mapping<EmuMachine>> {
        &self.mapping
    }
    fn kind(&self) -> MemoryKind {
        MemoryKind::DevDax
    }
    fn notes_stores(&self) -> bool {
        self.notes_stores
    }
}

/// The shape of a board.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// CPUs.
    pub cpus: usize,
    /// Devices that do DMA. To the conductor each is one more CPU, which loads no space.
    pub devices: usize,
    /// The file's leaves.
    pub leaf: PageSize,
    /// Does the file want to know what is stored to?
    pub notes_stores: bool,
}

impl Shape {
    /// So many CPUs, small leaves.
    pub const fn small(cpus: usize) -> Self {
        Self { cpus, devices: 0, leaf: PageSize::Size4K, notes_stores: false }
    }
    /// So many CPUs, leaves of 2 MiB.
    pub const fn huge(cpus: usize) -> Self {
        Self { cpus, devices: 0, leaf: PageSize::Size2M, notes_stores: false }
    }
    /// So many CPUs, small leaves, and a device.
    pub const fn with_device(cpus: usize) -> Self {
        Self { devices: 1, ..Self::small(cpus) }
    }

    /// CPUs and devices.
    pub const fn players(&self) -> usize {
        self.cpus + self.devices
    }
    /// The name of each, whose number is its own: devices come behind CPUs.
    pub fn names(&self) -> Vec<String> {
        let name = |nr| format!("{} {nr}", if nr < self.cpus { "CPU" } else { "device" });
        (0..self.players()).map(name).collect()
    }
}

/// The machine and the file.
pub struct Board {
    /// The machine.
    pub emu: EmuMachine,
    /// Its context.
    pub mm: Arc<Context>,
    /// The file.
    pub file: Arc<File>,
    /// A space in which nothing is mapped: freeing one and making one takes longer than a schedule.
    spare: RefCell<Option<Arc<Space>>>,
}

impl Board {
    /// A board on which nothing has happened.
    ///
    /// # Panics
    /// Never: what it asks for is there.
    pub fn new(shape: Shape) -> Rc<Self> {
        let mm = emu::context_on(Config { cpus: shape.players(), table_pages: TABLE_PAGES, ..Config::default() });
        let emu = mm.machine.clone();
        emu.set_conductor(conductor::at_event);
        let file = File::new(&mm, FIRST, FILE_PAGES, shape);
        Rc::new(Self { emu, mm, file, spare: RefCell::default() })
    }

    /// Number of CPUs, and devices.
    pub fn cpus(&self) -> usize {
        self.emu.cpu_count()
    }

    /// The frame of page `nr`.
    pub fn frame(&self, nr: u64) -> Pfn {
        FIRST.add(nr)
    }

    /// A space that maps the first `nr_pages`, all of them present.
    ///
    /// # Panics
    /// Never: there is memory.
    pub fn space(&self, nr_pages: u64) -> Arc<Space> {
        let space = self.empty_space();
        self.map(&space, 0, nr_pages);
        let leaves = (0..nr_pages).step_by(self.file.leaf.nr_pages() as usize);
        leaves.for_each(|nr| space.handle_fault(page(nr), Access::Write).expect("the page is there"));
        for nr in 0..nr_pages.min(4) {
            self.emu.set_stamp(self.frame(nr), self.stamp(nr));
        }
        space
    }

    /// A space that maps nothing.
    ///
    /// # Panics
    /// Never: there is memory.
    pub fn empty_space(&self) -> Arc<Space> {
        let made = || AddressSpace::new(&self.mm, "explored").expect("memory for a root");
        self.spare.take().unwrap_or_else(made)
    }

    /// Maps page `first` and those behind it, to where they belong.
    ///
    /// # Panics
    /// Something is mapped there.
    pub fn map(&self, space: &Arc<Space>, first: u64, nr_pages: u64) {
        self.map_file(space, &self.file, first, nr_pages);
    }

    /// Maps pages of another file than the usual one, in the same way.
    ///
    /// # Panics
    /// Something is mapped there.
    pub fn map_file(&self, space: &Arc<Space>, file: &Arc<File>, first: u64, nr_pages: u64) {
        let file: Arc<dyn VmOps<EmuMachine>> = file.clone();
        space.map(page(first), nr_pages * PAGE_SIZE, Prot::USER_WRITE, &file, first).expect("nothing is mapped there");
    }

    /// What page `nr` holds.
    pub fn stamp(&self, nr: u64) -> u64 {
        0x57a_0000 + nr
    }

    /// Loads a space, or nothing, on the running CPU.
    pub fn load(&self, space: Option<&Arc<Space>>) {
        self.mm.shootdown.switch_to(&IrqOff::new(&self.mm.machine), space.map(|space| space.tlb()));
    }
    /// The running CPU goes idle with what it has loaded.
    pub fn go_idle(&self) {
        self.mm.shootdown.enter_lazy(&IrqOff::new(&self.mm.machine));
    }
    /// The running CPU works again.
    pub fn wake(&self) {
        self.mm.shootdown.leave_lazy(&IrqOff::new(&self.mm.machine));
    }

    /// Loads a space on `cpu`, and has these pages in its TLB, writable.
    ///
    /// # Panics
    /// One of them is not there.
    pub fn warm(&self, cpu: CpuId, space: &Arc<Space>, pages: &[u64]) {
        self.emu.on_cpu(cpu, || {
            self.load(Some(space));
            for nr in pages {
                self.emu.write(page(*nr), self.stamp(*nr), true).expect("the page is there");
            }
        });
    }

    /// What [`File`] counts as mapped, or pinned.
    pub fn live_folios(&self) -> u64 {
        self.file.map.live_folios()
    }

    /// Frame `nr` belongs to somebody else from now on, who writes to it, if nobody holds it any more.
    pub fn reuse(&self, nr: u64) {
        if self.mm.meta.inspect(self.frame(nr)).is_none() {
            self.emu.set_stamp(self.frame(nr), ANOTHERS);
            conductor::note(|| format!("page {nr} is given to somebody else"));
        }
    }

    /// The end of a schedule: every CPU forgets what it has loaded, and nothing is mapped any more.
    ///
    /// # Panics
    /// Something is broken.
    pub fn clear(&self, spaces: Vec<Arc<Space>>) {
        for cpu in 0..self.cpus() {
            self.emu.on_cpu(cpu, || self.load(None));
        }
        for space in spaces {
            space.unmap(page(0), FILE_PAGES * PAGE_SIZE).expect("what is mapped there can go");
            self.spare.replace(Some(space));
        }
    }

    /// After everything is given back there is nothing left.
    ///
    /// # Panics
    /// There is.
    pub fn assert_empty(&self) {
        self.spare.take();
        let totals = self.mm.meta.totals();
        let left = (totals.folios, totals.refs, totals.pins);
        assert!(
            left == (0, 0, 0),
            "at the end there are {} folios with {} references and {} pins",
            left.0,
            left.1,
            left.2
        );
        let tables = self.emu.live_tables();
        assert!(tables == 0, "at the end {tables} table pages are in use");
    }
}
