//! The portable heart of Unplug: page tables, page metadata, gup-fast, gather and shootdown.
//!
//! Nothing here names a CPU instruction. What `mm` needs of the machine below it is the trait
//! [`machine::Machine`]; the kernel implements it with real registers, and the package `testkit`
//! with an emulated machine in which stale translations persist until they are flushed, so that every algorithm in
//! this package runs unchanged under host tests, property tests and loom.
//!
//! How to read it: [`addr`] and [`entry`] are the nouns; [`table`] walks, installs and zaps; [`meta`] is what
//! Linux calls `struct page`; [`shootdown`] and [`gather`] are how a translation dies; [`space`] is an address
//! space; [`gup`] pins pages without a lock; [`pins`], [`account`] and [`region`] are pins that somebody keeps;
//! [`losses`] is how lost frames come to [`failure`], which takes pages away; [`trace`] is what happens, told as events.
//!
//! # In another kernel
//! A kernel implements [`Machine`](machine::Machine) for its CPUs, makes one context, and has providers (drivers, file
//! systems) whose memory its tasks map. Here is all of it, for a board with one CPU and sixteen frames for tables:
//! ```
//! # use std::sync::Arc;
//! # use mm::addr::{PAGE_SIZE, PageSize, Pfn, PfnRange, PhysAddr, VirtAddr};
//! # use mm::machine::{CpuId, CpuMask, IrqOff, Machine};
//! # use mm::sync::{AtomicU64, Mutex, Ordering::Relaxed};
//! # use mm::{entry::Prot, gather::Gather, gup, mapping::unmap_mapping_range, context::MmContext};
//! # use mm::pagemap::{DevPagemap, MemoryKind};
//! # use mm::space::{AddressSpace, FaultError, FaultRequest, FaultTarget, MapError, Mapping, VmOps};
//! struct Board { tables: Vec<[AtomicU64; 512]>, free: Mutex<Vec<Pfn>>, irqs_on: AtomicU64, root: AtomicU64 }
//! impl Machine for Board {
//!     fn cpu(&self) -> CpuId { 0 }
//!     fn irq_disable(&self) -> bool { self.irqs_on.swap(0, Relaxed) == 1 }     // cli
//!     fn irq_enable(&self) { self.irqs_on.store(1, Relaxed) }                  // sti
//!     fn irqs_on(&self) -> bool { self.irqs_on.load(Relaxed) == 1 }
//!     fn loaded(&self) -> PhysAddr { PhysAddr::new(self.root.load(Relaxed)) }
//!     fn set_loaded(&self, root: PhysAddr) { self.root.store(root.as_u64(), Relaxed) }
//!     fn relax(&self) { core::hint::spin_loop() }
//!     fn alloc_table(&self) -> Option<Pfn> { self.free.lock().pop() }          // it is zeroed
//!     fn free_table(&self, table: Pfn) {
//!         (0..512).for_each(|nth| self.entry(table, nth).store(0, Relaxed));
//!         self.free.lock().push(table);
//!     }
//!     fn entry(&self, table: Pfn, index: usize) -> &AtomicU64 { &self.tables[table.as_u64() as usize][index] }
//!     fn init_root(&self, _: Pfn) {}                                           // this board has no kernel half
//!     fn load_root(&self, _: Option<Pfn>) {}                                   // mov cr3
//!     fn flush_page(&self, _: VirtAddr) {}                                     // invlpg
//!     fn flush_all(&self) {}
//!     fn flush_global(&self) {}
//!     fn send_shootdown_ipi(&self, _: CpuMask) {}                              // no other CPU
//!     fn now_ns(&self) -> u64 { 0 }
//! }
//! struct Device { map: Arc<DevPagemap>, mapping: Arc<Mapping<Board>> }
//! impl VmOps<Board> for Device {
//!     fn fault(&self, request: &FaultRequest, install: &mut dyn FnMut(FaultTarget) -> Result<(), FaultError>)
//!         -> Result<(), FaultError> {
//!         let pfn = self.map.ranges()[0].start().add(request.offset_pages);
//!         install(FaultTarget { pfn, size: PageSize::Size4K })
//!     }
//!     fn mmap(&self, _: u64, _: u64, insert: &mut dyn FnMut()) -> Result<(), MapError> { Ok(insert()) }
//!     fn mapping(&self) -> &Arc<Mapping<Board>> { &self.mapping }
//!     fn kind(&self) -> MemoryKind { self.map.kind() }
//! }
//! # let tables = std::iter::repeat_with(|| [const { AtomicU64::new(0) }; 512]).take(17).collect();
//! # let free = Mutex::new((1..17).map(Pfn::new).collect());
//! # let board = Board { tables, free, irqs_on: AtomicU64::new(1), root: AtomicU64::new(0) };
//! # let frames = PfnRange::new(Pfn::new(0x10_0000), 8).unwrap();
//! let mm = MmContext::new(board, 1);
//! let map = DevPagemap::new(MemoryKind::DevDax, [frames]).unwrap();
//! mm.meta.register(&map).unwrap();
//! let device = Arc::new(Device { mapping: Mapping::new(&mm, &map), map });
//! // A task maps the device, and a page of it is pinned for a transfer.
//! let (space, va) = (AddressSpace::new(&mm, "task").unwrap(), VirtAddr::new(0x40_0000_0000));
//! let provider: Arc<dyn VmOps<Board>> = device.clone();
//! space.map(va, 8 * PAGE_SIZE, Prot::USER_WRITE, &provider, 0).unwrap();
//! mm.shootdown.switch_to(&IrqOff::new(&mm.machine), Some(space.tlb()));
//! let mut frame = [Pfn::new(0)];
//! let mut sink = gup::PageArray::new(&mut frame);
//! gup::pin_user_pages_fast(&space, va, 1, gup::GupFlags::WRITE, &mut sink).unwrap();
//! // The device goes: no new folio, no translation on any CPU, then wait for the pins, then forget its pages.
//! mm.meta.kill(&device.map);
//! let mut gather = Gather::new(&mm);
//! unmap_mapping_range(&device.mapping, 0, u64::MAX, &mut gather);
//! assert_eq!(gather.finish().leaves, 1);
//! assert!(!device.map.is_drained());
//! gup::unpin(&mm, frame[0], 1);
//! assert!(device.map.is_drained() && mm.meta.unregister(&device.map).is_ok());
//! # mm.shootdown.switch_to(&IrqOff::new(&mm.machine), None);
//! ```
//! The package `dax` does the last part for whole devices, in eight steps that cannot fail.
#![cfg_attr(not(any(test, feature = "hosted", loom, shuttle)), no_std)]

extern crate alloc;

pub mod access;
pub mod account;
pub mod addr;
pub mod context;
pub mod entry;
pub mod failure;
pub mod fault;
pub mod frame;
pub mod gather;
pub mod gup;
pub mod ledger;
pub mod lock_check;
pub mod look;
pub mod losses;
pub mod machine;
pub mod mapping;
pub mod meta;
pub mod mutant;
pub mod pagemap;
pub mod pins;
mod promote;
pub mod reach;
pub mod region;
pub mod rmap;
pub mod run_set;
pub mod shootdown;
pub mod space;
pub mod sync;
pub mod table;
pub mod tlb;
pub mod trace;
pub mod vma;
