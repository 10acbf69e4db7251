//! Tests of a device that takes no writes, where there is one: an NVDIMM that is not armed, say.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use dax::devdax::OpenOptions;
use dax::removal::Method;
use fs::layout::Label;
use mm::addr::{PAGE_SIZE, PageSize};
use mm::entry::Prot;
use mm::gup::{GupFlags, PageArray, pin_user_pages_fast};
use mm::pagemap::MemoryKind;
use mm::space::{MapError, VmOps};
use nvdimm::pmem::block::{BlockError, SECTOR_BYTES};

use crate::ktest::fixtures::{BASE, Books, here, new_space, run_in};
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::mem::machine::KernelMachine;
use crate::pmem::{bytes, devices, mounts};
use crate::task::tcb::Signal;
use crate::task::user;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "dax.read_only.is_mapped_for_reading_alone",
        covers: "M4",
        run: |ctx| with_device(ctx, MemoryKind::DevDax, mapping),
    },
    Test {
        name: "dax.read_only.sectors_are_read_alone",
        covers: "M4",
        run: |ctx| with_device(ctx, MemoryKind::DevDax, sectors),
    },
    Test {
        name: "fs.read_only.nothing_is_made_or_mended",
        covers: "M4",
        run: |ctx| with_device(ctx, MemoryKind::FsDax, file_system),
    },
];

fn in_words(error: impl core::fmt::Display) -> String {
    format!("{error}")
}

/// Does `work` with the first device that takes no writes, attached for such a use.
fn with_device(ctx: &mut Ctx, kind: MemoryKind, work: fn(usize) -> Result<(), String>) -> Result<(), String> {
    let Some(at) = devices::slots().iter().position(|slot| slot.read_only.is_some()) else {
        ctx.skip("every device takes writes (start with --unarmed)");
        return Ok(());
    };
    let before = Books::now();
    devices::attach_as(at, kind).map_err(in_words)?;
    let worked = work(at);
    devices::remove(at, Method::Ranged).map_err(in_words)?;
    worked.and_then(|()| before.compare())
}

fn mapping(at: usize) -> Result<(), String> {
    let file = devices::file(at).map_err(in_words)?;
    let ops: Arc<dyn VmOps<KernelMachine>> = file.open(OpenOptions::exactly(PageSize::Size4K)).map_err(in_words)?;
    let space = new_space("reader")?;
    let refused = Err(MapError::ReadOnly);
    check_eq!(space.map(BASE, PAGE_SIZE, Prot::USER_WRITE, &ops, 0), refused, "a mapping for writing");
    space.map(BASE, PAGE_SIZE, Prot::USER_READ, &ops, 0).map_err(in_words)?;
    check_eq!(space.protect(BASE, PAGE_SIZE, Prot::USER_WRITE).map(drop), refused, "more rights for the mapping");
    run_in(here(), &space, || user::read_u64(BASE).map(drop).map_err(|signal| format!("read: {signal}")))?;
    let stored = run_in(here(), &space, || match user::write_u64(BASE, 1) {
        Err(Signal::SigSegv { .. }) => Ok(()),
        other => Err(format!("a store is answered by {other:?}")),
    });
    let mut frames = [mm::addr::Pfn::new(0); 1];
    let pinned = pin_user_pages_fast(&space, BASE, 1, GupFlags::WRITE, &mut PageArray::new(&mut frames));
    check!(pinned.is_err(), "a page is pinned for writing");
    stored
}

fn sectors(at: usize) -> Result<(), String> {
    let block = devices::block(at).map_err(in_words)?;
    let mut before = [0; SECTOR_BYTES as usize];
    block.read(1, &mut before).map_err(in_words)?;
    let refused = block.write(1, &before.map(|byte| !byte));
    check!(matches!(refused, Err(BlockError::ReadOnly(_))), "a write is answered by {refused:?}");
    let line = bytes::write(at, 0, b"hello").err().unwrap_or_default();
    check!(line.contains("takes no writes: a memory device behind it"), "the refusal says {line:?}");
    let mut after = [0; SECTOR_BYTES as usize];
    block.read(1, &mut after).map_err(in_words)?;
    check!(before == after, "the sector has changed");
    check_eq!(block.flush(), Ok(()), "a flush");
    Ok(())
}

/// Whoever would write is refused for that reason before he looks at what is there.
fn file_system(at: usize) -> Result<(), String> {
    let repaired = mounts::repair(at).map(|renewed| format!("{}", renewed.is_some()));
    let made = mounts::mkfs(at, Label::default()).map(|layout| format!("{} blocks", layout.nr_blocks));
    let mounted = mounts::mount(at).map(|fs| String::from(fs.name()));
    for (what, done) in [("repair", repaired), ("mkfs", made), ("mount", mounted)] {
        let refused = done.as_ref().is_err_and(|line| line.contains("takes no writes: a memory device behind it"));
        check!(refused, "{what} is answered by {done:?}");
    }
    Ok(())
}
