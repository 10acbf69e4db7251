//! What others may do while a device leaves, at random; and a file over the device that no file system knows of.

use std::sync::Arc;

use dax::device::DaxDevice;
use mm::addr::{PAGE_SIZE, PageSize};
use mm::pagemap::MemoryKind;
use mm::space::{FaultError, FaultRequest, FaultTarget, MapError, Mapping, SigBusCause, VmOps};
use proptest::prelude::*;
use testkit::emu::EmuMachine;

use crate::rig::EmuContext;

/// Pages of the device, and of its one file.
pub const DEVICE_PAGES: u64 = 128;
pub const FILE_PAGES: u64 = 16;
/// Tasks; each has its own CPU, after that of the removal.
pub const TASKS: usize = 2;
/// What somebody does.
#[derive(Clone, Debug)]
pub enum Op {
    Mount,
    /// A mount that waits in its first read, with the device held alive.
    MountSlowly,
    /// That mount goes on to its end.
    GoOn,
    Unmount,
    /// Opens the file and maps it; the handle goes with the mapping.
    Map {
        task: usize,
        at: u64,
    },
    /// The same with a file of a holder that asks nobody whether the device lives.
    MapStray {
        task: usize,
        at: u64,
        careful: bool,
    },
    Unmap {
        task: usize,
        at: u64,
    },
    Fault {
        task: usize,
        page: u64,
        write: bool,
    },
    Pin {
        task: usize,
        page: u64,
        nr: u64,
    },
    Unpin {
        which: usize,
    },
    Freeze,
    Thaw,
    /// A holder that answers this, ready at once or later.
    Register {
        answer: usize,
        ready: bool,
    },
    GetReady {
        which: usize,
    },
    LetGo {
        which: usize,
    },
    /// The device is told of a failure that is none, by somebody else.
    Told,
}

/// Places at which a task maps the file.
pub const SLOTS: u64 = 4;

fn op() -> impl Strategy<Value = Op> {
    let (task, at) = (0..TASKS, 0..SLOTS);
    let touched = 0..SLOTS * FILE_PAGES;
    prop_oneof![
        2 => Just(Op::Mount),
        1 => Just(Op::MountSlowly),
        3 => Just(Op::GoOn),
        1 => Just(Op::Unmount),
        4 => (task.clone(), at.clone()).prop_map(|(task, at)| Op::Map { task, at }),
        2 => (task.clone(), at.clone(), any::<bool>()).prop_map(|(task, at, careful)| Op::MapStray { task, at, careful }),
        1 => (task.clone(), at).prop_map(|(task, at)| Op::Unmap { task, at }),
        8 => (task.clone(), touched.clone(), any::<bool>()).prop_map(|(task, page, write)| Op::Fault { task, page, write }),
        3 => (task, touched, 1..4_u64).prop_map(|(task, page, nr)| Op::Pin { task, page, nr }),
        2 => any::<usize>().prop_map(|which| Op::Unpin { which }),
        1 => Just(Op::Freeze),
        1 => Just(Op::Thaw),
        1 => (0..5_usize, any::<bool>()).prop_map(|(answer, ready)| Op::Register { answer, ready }),
        1 => any::<usize>().prop_map(|which| Op::GetReady { which }),
        1 => any::<usize>().prop_map(|which| Op::LetGo { which }),
        1 => Just(Op::Told),
    ]
}

/// A case: what is done before the removal, what during it and at which point (so many after the last), and whether a
/// change of the file system does not end.
#[derive(Clone, Debug)]
pub struct Case {
    pub before: Vec<Op>,
    pub during: Vec<(u8, Op)>,
    pub stuck: bool,
}

/// Any case.
pub fn case() -> impl Strategy<Value = Case> {
    let during = prop::collection::vec((0..4_u8, op()), 0..40);
    (prop::collection::vec(op(), 4..24), during, any::<bool>()).prop_map(|(before, during, stuck)| Case {
        before,
        during,
        stuck,
    })
}

/// A file over the device that no file system knows of.
pub struct StrayFile {
    mapping: Arc<Mapping<EmuMachine>>,
    device: Arc<DaxDevice>,
    careful: bool,
}

impl StrayFile {
    /// `careful`: it asks whether the device lives.
    pub fn over(mm: &Arc<EmuContext>, device: &Arc<DaxDevice>, careful: bool) -> Arc<dyn VmOps<EmuMachine>> {
        Arc::new(Self { mapping: Mapping::new(mm, device.pagemap()), device: device.clone(), careful })
    }
}

impl VmOps<EmuMachine> for StrayFile {
    fn fault(
        &self,
        request: &FaultRequest,
        install: &mut dyn FnMut(FaultTarget) -> Result<(), FaultError>,
    ) -> Result<(), FaultError> {
        let live = self.device.read_lock();
        if self.careful && live.is_err() {
            let (addr, cause) = (request.addr, SigBusCause::DeviceGone);
            return Err(FaultError::SigBus { addr, len_bytes: PAGE_SIZE, cause });
        }
        let pfn = self.device.pagemap().ranges()[0].start().add(request.offset_pages);
        install(FaultTarget { pfn, size: PageSize::Size4K })
    }
    fn mmap(&self, _: u64, _: u64, insert: &mut dyn FnMut()) -> Result<(), MapError> {
        insert();
        Ok(())
    }
    fn mapping(&self) -> &Arc<Mapping<EmuMachine>> {
        &self.mapping
    }
    fn kind(&self) -> MemoryKind {
        MemoryKind::FsDax
    }
}
