//! Tests of the roots: what is mapped for a large device is the same in every address space, whenever that was made.

use alloc::format;
use alloc::string::String;
use core::sync::atomic::Ordering;

use arch::features::Features;
use mm::addr::{PageSize, Pfn, PfnRange, PhysAddr, VirtAddr};

use crate::ktest::fixtures::new_space;
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::mem::{layout, memory, paging};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test { name: "platform.roots.agree_whatever_comes_and_goes", covers: "", run: roots_agree },
    Test { name: "platform.roots.a_table_that_was_kept_is_not_believed", covers: "", run: another_device },
];

/// Leaves of a GiB below one root entry.
const ENTRIES: u64 = 512;
const GIB: u64 = PageSize::Size1G.nr_pages();

/// Physical addresses below one root entry, where there is no memory: the last that the direct map has room for.
fn unused(first_gib: u64, nr_gib: u64) -> Result<PfnRange, String> {
    let bits = Features::detect().phys_bits.min(layout::DIRECT_MAP_BYTES.ilog2() as u8);
    let start = PhysAddr::new((1 << bits) - (ENTRIES << 30)).pfn();
    PfnRange::new(start.add(first_gib * GIB), nr_gib * GIB).ok_or_else(|| String::from("the range is empty"))
}

/// How many roots there are. Each has the kernel's own entries, and maps what `expected` says: a GiB of the unused half TiB, and the
/// frame at its begin.
fn roots_map(expected: &[(u64, Option<Pfn>)]) -> Result<usize, String> {
    let kernel = paging::root();
    let (mut nr, mut wrong) = (0, None);
    let base = layout::direct(unused(0, 1)?.start().addr());
    paging::for_each_root(|root| {
        nr += 1;
        for index in 256..ENTRIES as usize {
            let (ours, its) = [kernel, root].map(|root| paging::entry(root, index).load(Ordering::Acquire)).into();
            if ours != its && !paging::is_link(index) {
                wrong.get_or_insert(format!("root {root}: entry {index} is {its:#x}, and the kernel's {ours:#x}"));
            }
        }
        for &(gib, frame) in expected {
            let va = VirtAddr::new(base.as_u64() + (gib << 30));
            let found = paging::lookup(root, va).map(|(leaf, size)| (leaf.pfn(), size));
            if found != frame.map(|frame| (frame, PageSize::Size1G)) {
                wrong.get_or_insert(format!("root {root}: GiB {gib} is mapped to {found:?}, and not to {frame:?}"));
            }
        }
    });
    wrong.map_or(Ok(nr), Err)
}

fn roots_agree(ctx: &mut Ctx) -> Result<(), String> {
    if !paging::has_gib_leaves() {
        ctx.skip("this CPU has no 1 GiB leaves");
        return Ok(());
    }
    let device = unused(0, ENTRIES)?;
    let (first, last) = (device.start(), device.start().add((ENTRIES - 1) * GIB));
    let (there, gone) = ([(0, Some(first)), (511, Some(last))], [(0, None), (511, None)]);
    let used = memory::used_frames();
    let before = new_space("before")?;
    let nr = roots_map(&gone)?;
    // Three times: filled anew, and then as it was kept.
    for _ in 0..3 {
        check_eq!(paging::map_device(device), Ok(ENTRIES), "leaves of half a TiB");
        check_eq!(roots_map(&there)?, nr, "roots while it is mapped");
        let meanwhile = new_space("meanwhile")?;
        check_eq!(roots_map(&there)?, nr + 1, "roots with one more");
        check_eq!(paging::unmap_device(device), ENTRIES, "leaves that were unmapped");
        let after = new_space("after")?;
        check_eq!(roots_map(&gone)?, nr + 2, "roots once it is unmapped");
        // One from the middle of the list, and then its end.
        drop(meanwhile);
        check_eq!(roots_map(&gone)?, nr + 1, "roots without one");
        drop(after);
    }
    drop(before);
    check_eq!(roots_map(&gone)?, nr - 1, "roots afterwards");
    check_eq!(memory::used_frames(), used, "frames in use afterwards");
    Ok(())
}

/// A smaller device at another place below the same root entry, then two of them, of which one goes.
fn another_device(ctx: &mut Ctx) -> Result<(), String> {
    if !paging::has_gib_leaves() {
        ctx.skip("this CPU has no 1 GiB leaves");
        return Ok(());
    }
    let used = memory::used_frames();
    let whole = unused(0, ENTRIES)?;
    let (low, high) = (unused(100, 50)?, unused(300, 200)?);
    let at = |gib: u64| Some(whole.start().add(gib * GIB));
    check_eq!(paging::map_device(whole), Ok(ENTRIES), "leaves of half a TiB");
    check_eq!(paging::unmap_device(whole), ENTRIES, "leaves that were unmapped");
    check_eq!(paging::map_device(low), Ok(50), "leaves of the low device");
    roots_map(&[(99, None), (100, at(100)), (149, at(149)), (150, None), (300, None)])?;
    check_eq!(paging::map_device(high), Ok(200), "leaves of the high device");
    roots_map(&[(99, None), (100, at(100)), (149, at(149)), (150, None), (300, at(300)), (499, at(499)), (500, None)])?;
    check_eq!(paging::map_device(whole), Err(paging::MapError::Occupied), "mapping over both");
    check_eq!(paging::unmap_device(low), 50, "leaves of the low device");
    roots_map(&[(100, None), (149, None), (300, at(300)), (499, at(499))])?;
    check_eq!(paging::unmap_device(high), 200, "leaves of the high device");
    roots_map(&[(100, None), (300, None), (499, None)])?;
    // As many leaves in a row as were kept, elsewhere; and as many in the same place, of which a part is smaller leaves.
    let elsewhere = unused(200, 200)?;
    check_eq!(paging::map_device(elsewhere), Ok(200), "leaves elsewhere");
    roots_map(&[(199, None), (200, at(200)), (399, at(399)), (400, None), (499, None)])?;
    check_eq!(paging::unmap_device(elsewhere), 200, "leaves elsewhere");
    let small = PfnRange::new(whole.start().add(200 * GIB), 512).ok_or("an empty range")?;
    check_eq!(paging::map_device(small), Ok(1), "one leaf of 2 MiB");
    roots_map(&[(201, None), (399, None)])?;
    check_eq!(paging::map_device(elsewhere), Err(paging::MapError::Occupied), "mapping over it");
    check_eq!(paging::unmap_device(small), 1, "one leaf of 2 MiB");
    check!(!paging::is_mapped(layout::direct(small.start().addr()).as_u64()), "it is still mapped");
    check_eq!(memory::used_frames(), used, "frames in use afterwards");
    Ok(())
}
