//! What gup costs: fast and slow, by leaf, as an array and as ranges.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use core::hint::black_box;

use mm::addr::{PAGE_SIZE, PageSize, Pfn, VirtAddr};
use mm::gup::{
    GupError, GupFlags, IRQS_OFF_STEPS, PageArray, RangeArray, get_user_pages_fast, pin_user_pages_fast, put_page,
    unpin,
};
use mm::space::Access;

use crate::bench::figures::{Bound, Cost, Figures, TURNS, each, each_call, once};
use crate::ktest::fixtures::{BASE, Device, at, here, new_space, page, run_in};
use crate::mem::machine::{Space, mm};
use crate::mem::paging;

const MIB2: u64 = PageSize::Size2M.bytes();
/// Pages of the requests for many pages.
pub const MANY: u64 = 512;
/// Rounds of those.
const MANY_TURNS: u64 = 50;

/// What a page may cost in a call for 512 whose frames are far apart.
const SCATTERED: Bound = Bound::at_most(25);

/// Fast path or nothing.
const FAST: GupFlags = GupFlags::WRITE.union(GupFlags::FAST_ONLY);

/// Measures gup on `device`.
pub fn run(figures: &mut Figures, device: &Device) -> Result<(), String> {
    let small = space_of(device, MANY, PageSize::Size4K)?;
    let single = small_pages(&small, figures)?;
    many(&small, figures)?;
    scattered(device, figures)?;
    irqs_off(device, figures)?;
    slow(&small, device, single, figures)?;
    drop(small);
    let large = space_of(device, MANY, PageSize::Size2M)?;
    one(&large, figures, "pin_2m_called", Bound::at_most(80), "695")?;
    many_under_2m(&large, figures)?;
    drop(large);
    if paging::has_gib_leaves() {
        let huge = space_of(device, PageSize::Size1G.nr_pages(), PageSize::Size1G)?;
        one(&huge, figures, "pin_1g_called", Bound::at_most(75), "633")?;
    }
    Ok(())
}

/// A space that maps the first pages of the device, all of them present.
pub fn space_of(device: &Device, nr_pages: u64, size: PageSize) -> Result<Arc<Space>, String> {
    let space = new_space("bench")?;
    let len = page(nr_pages).max(size.bytes());
    device.map(&space, BASE, 0, len, size)?;
    space.populate(BASE, len, Access::Write).map_err(|error| format!("populate: {error}"))?;
    Ok(space)
}

/// Measures in a task that has `space` loaded.
pub fn loaded<R: Send + 'static>(
    space: &Arc<Space>,
    work: impl FnOnce(&Space) -> Result<R, String> + Send + 'static,
) -> Result<R, String> {
    let inner = Arc::clone(space);
    run_in(here(), space, move || work(&inner))
}

/// A call of a driver that knows how it wants a page. Apart from the loop that measures it, so that what a call costs by
/// itself is in it: arguments, saved registers.
#[inline(never)]
fn pin_called(space: &Space, va: VirtAddr, sink: &mut PageArray<'_>) -> Result<u64, GupError> {
    pin_user_pages_fast(space, va, 1, FAST, sink)
}

/// The same where the walk is part of its caller, as it is meant to be.
#[inline(always)]
fn pin_fast(space: &Space, va: VirtAddr, sink: &mut PageArray<'_>) -> Result<u64, GupError> {
    pin_user_pages_fast(space, va, 1, FAST, sink)
}

/// Pins one page many times; answers the cost of a pin and of an unpin.
#[inline(always)]
fn pin_one(
    space: &Space,
    pin: impl Fn(&Space, VirtAddr, &mut PageArray<'_>) -> Result<u64, GupError>,
) -> Result<(Cost, Cost), String> {
    let mut frames = [Pfn::new(0); 1];
    let mut failed = 0;
    let pins = each_call(TURNS, || {
        let mut sink = PageArray::new(&mut frames);
        // Nothing is known of the address or of the room, so nothing is computed before the clock is read.
        let (va, sink) = (black_box(BASE), black_box(&mut sink));
        let (cost, pinned) = once(|| pin(space, va, sink));
        failed += u64::from(pinned.is_err());
        cost
    });
    let unpins = each(TURNS, |_| unpin(mm(), frames[0], 1));
    if failed != 0 {
        return Err(format!("{failed} of {TURNS} pins failed"));
    }
    Ok((pins, unpins))
}

fn small_pages(space: &Arc<Space>, figures: &mut Figures) -> Result<Cost, String> {
    let (inlined, _) = loaded(space, |space| pin_one(space, pin_fast))?;
    figures.cost("pin_4k_inlined", inlined, Bound::None, "");
    let (called, unpin) = loaded(space, |space| pin_one(space, pin_called))?;
    figures.cost("pin_4k_called", called, Bound::at_most(80), "748");
    figures.cost("unpin_4k", unpin, Bound::at_most(18), "118");
    let (get, put) = loaded(space, |space| {
        let mut frames = [Pfn::new(0); 1];
        let get = each_call(TURNS, || {
            let mut sink = PageArray::new(&mut frames);
            let (va, sink) = (black_box(BASE), black_box(&mut sink));
            // A reference that is not taken here is missed below.
            once(|| get_user_pages_fast(space, va, 1, FAST, sink)).0
        });
        let put = each(TURNS, |_| put_page(mm(), frames[0], 1));
        Ok((get, put))
    })?;
    figures.cost("get_4k_inlined", get, Bound::None, "");
    figures.cost("put_4k", put, Bound::None, "");
    Ok(inlined)
}

fn one(space: &Arc<Space>, figures: &mut Figures, name: &str, bound: Bound, linux: &str) -> Result<(), String> {
    let (pin, _) = loaded(space, |space| pin_one(space, pin_called))?;
    figures.cost(name, pin, bound, linux);
    Ok(())
}

/// What many pages cost in a call, all together.
pub struct Many {
    /// To pin them into an array.
    pub array: Cost,
    /// To pin them as ranges.
    pub range: Cost,
    unpin_array: Cost,
    unpin_range: Cost,
}

/// 512 pages over 4 KiB leaves whose frames follow each other.
fn many(space: &Arc<Space>, figures: &mut Figures) -> Result<(), String> {
    let Many { array, range, unpin_array, unpin_range } = loaded(space, |space| pin_many(space, MANY, 2))?;
    let a_page = |cost: Cost| cost.shared_by(MANY);
    figures.cost("pin_512_of_4k_array_each", a_page(array), Bound::at_most(13), "244");
    figures.cost("pin_512_of_4k_range_each", a_page(range), Bound::at_most(10), "");
    figures.cost("unpin_512_of_4k_one_by_one_each", a_page(unpin_array), Bound::None, "88");
    figures.cost("unpin_512_of_4k_as_range_each", a_page(unpin_range), Bound::None, "");
    Ok(())
}

/// 512 pages under one 2 MiB leaf.
fn many_under_2m(space: &Arc<Space>, figures: &mut Figures) -> Result<(), String> {
    let Many { array, range, unpin_array, unpin_range } = loaded(space, |space| pin_many(space, MANY, 2))?;
    figures.cost("pin_512_under_2m_range", range, Bound::at_most(90), "");
    figures.cost("pin_512_under_2m_array_each", array.shared_by(MANY), Bound::at_most_hundredths(270), "119");
    figures.cost("unpin_512_under_2m_one_by_one_each", unpin_array.shared_by(MANY), Bound::None, "11");
    figures.cost("unpin_512_under_2m_as_range", unpin_range, Bound::None, "");
    Ok(())
}

/// 512 pages that follow each other in the address space and nowhere else: each frame is far from all others, with
/// metadata in a block of its own.
fn scattered(device: &Device, figures: &mut Figures) -> Result<(), String> {
    let stride = device.frames.nr_pages() / MANY;
    if stride <= PageSize::Size2M.nr_pages() {
        figures.cannot("pin_512_scattered_each", SCATTERED, "NVDIMM 0 has no 512 pages that far apart (2G has)");
        return Ok(());
    }
    let space = new_space("scattered")?;
    for nth in 0..MANY {
        device.map(&space, at(page(nth)), page(nth * stride), PAGE_SIZE, PageSize::Size4K)?;
    }
    space.populate(BASE, page(MANY), Access::Write).map_err(|error| format!("populate: {error}"))?;
    let pinned = loaded(&space, |space| pin_many(space, MANY, MANY as usize))?;
    figures.cost("pin_512_scattered_each", pinned.array.shared_by(MANY), SCATTERED, "");
    figures.cost("unpin_512_scattered_each", pinned.unpin_array.shared_by(MANY), Bound::None, "");
    Ok(())
}

/// Pins `nr` pages in a call, as an array and as at most `most` ranges, and unpins them.
pub fn pin_many(space: &Space, nr: u64, most: usize) -> Result<Many, String> {
    let mut frames = vec![Pfn::new(0); nr as usize];
    let mut failed = 0;
    let array = each_call(MANY_TURNS, || {
        let mut sink = PageArray::new(&mut frames);
        let (cost, pinned) = once(|| pin_user_pages_fast(space, BASE, nr, FAST, &mut sink));
        failed += u64::from(pinned != Ok(nr));
        cost
    });
    let unpin_array = each(MANY_TURNS, |_| frames.iter().for_each(|&pfn| unpin(mm(), pfn, 1)));
    let mut runs = vec![None; most];
    let range = each_call(MANY_TURNS, || {
        let mut sink = RangeArray::new(&mut runs);
        let (cost, pinned) = once(|| pin_user_pages_fast(space, BASE, nr, FAST, &mut sink));
        failed += u64::from(pinned != Ok(nr));
        cost
    });
    if failed != 0 {
        return Err(format!("{failed} of {} pins of {nr} pages failed", 2 * MANY_TURNS));
    }
    let unpin_range = each(MANY_TURNS, |_| {
        for run in runs.iter().flatten() {
            unpin(mm(), run.start(), run.nr_pages());
        }
    });
    Ok(Many { array, range, unpin_array, unpin_range })
}

/// The dearest stretch with interrupts off: as many small pages as a walk takes at once, over two page tables, frame by
/// frame. All of the call is in it.
fn irqs_off(device: &Device, figures: &mut Figures) -> Result<(), String> {
    let space = space_of(device, 2 * MANY, PageSize::Size4K)?;
    let start = at(page(MANY / 2));
    let cost = loaded(&space, move |space| {
        let mut frames = vec![Pfn::new(0); IRQS_OFF_STEPS as usize];
        let mut failed = 0;
        let cost = each_call(MANY_TURNS, || {
            let mut sink = PageArray::new(&mut frames);
            let (cost, pinned) = once(|| pin_user_pages_fast(space, start, IRQS_OFF_STEPS, FAST, &mut sink));
            failed += u64::from(pinned != Ok(IRQS_OFF_STEPS));
            sink.as_slice().iter().for_each(|&pfn| unpin(mm(), pfn, 1));
            cost
        });
        if failed == 0 { Ok(cost) } else { Err(format!("{failed} pins failed")) }
    })?;
    figures.cost("gup_fast_irqs_off_most", cost, Bound::at_most(13_000), "");
    Ok(())
}

/// The slow path on the page of which `fast` is the cost by the fast one: where it is present but the space is not
/// loaded, and where it has to be faulted in.
fn slow(space: &Arc<Space>, device: &Device, fast: Cost, figures: &mut Figures) -> Result<(), String> {
    let (present, _) = pin_one(space, |space, va, sink| pin_user_pages_fast(space, va, 1, GupFlags::WRITE, sink))?;
    figures.cost("gup_slow_4k_present", present, Bound::None, "");
    // Each turn another page that is mapped and absent; the first of each block makes its metadata, which is measured
    // nowhere else, so the block is there before.
    let absent = new_space("absent")?;
    device.map(&absent, BASE, 0, MIB2, PageSize::Size4K)?;
    let inner = Arc::clone(&absent);
    let faulted = loaded(&absent, move |_| {
        inner.populate(at(MIB2 - PAGE_SIZE), PAGE_SIZE, Access::Write).map_err(|error| format!("populate: {error}"))?;
        let mut frames = vec![Pfn::new(0); 256];
        let mut failed = 0;
        let cost = each(256, |turn| {
            let mut sink = PageArray::new(&mut frames[turn as usize..][..1]);
            let va = VirtAddr::new(BASE.as_u64() + page(turn));
            failed += u64::from(pin_user_pages_fast(&inner, va, 1, GupFlags::WRITE, &mut sink) != Ok(1));
        });
        frames.iter().for_each(|&pfn| unpin(mm(), pfn, 1));
        if failed == 0 { Ok(cost) } else { Err(format!("{failed} pages were not faulted in")) }
    })?;
    figures.cost("gup_slow_4k_fault_in", faulted, Bound::None, "");
    let unit = "times_pin_4k_inlined";
    figures.add("gup_slow_present_over_fast", unit, present.times(fast), Bound::None, "");
    figures.add("gup_slow_over_fast", unit, faulted.times(fast), Bound::at_least(5), "");
    Ok(())
}
