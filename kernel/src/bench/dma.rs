//! What it costs to let a device reach pages, and to take that back: a registration of one large leaf, many scattered
//! pages, and a removal with registrations over all of a device. The device is whichever there is: none transfers anything.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use dax::removal::{Method, Step};
use iommu::entry::Rights;
use mm::account::PinAccount;
use mm::addr::{PAGE_SHIFT, PageSize, PfnRange};
use mm::gup::GupFlags;
use mm::region::{Notice, RegionOwner, Terms};

use crate::bench::figures::{Bound, Cost, Figures, median, once};
use crate::bench::gup::{loaded, space_of};
use crate::bench::removal::{file, remove, size_name};
use crate::io::dma::{self, DmaDevice, DmaRegion};
use crate::ktest::fixtures::{BASE, Device, at, new_space, page};
use crate::ktest::idle::attach;
use crate::mem::machine::{Space, mm};
use crate::mem::paging;
use crate::pmem::devices;
use mm::entry::Prot;
use mm::machine::IrqOff;
use mm::space::Access;

/// How often each is done, after one time that does not count.
const REPEATS: usize = 5;
/// Scattered pages: one GiB of them.
const SCATTERED: u64 = PageSize::Size1G.nr_pages();
/// Registrations over a whole device.
const REGISTRATIONS: u64 = 16;

const MAP: Bound = Bound::at_most(1500);
const ONE_COMMAND: Bound = Bound::at_most(1);
const REVOKE_PAGE: Bound = Bound::at_most(12);

/// Measures `device`, the first one.
pub fn run(figures: &mut Figures, device: &Device) -> Result<(), String> {
    let Some(dma) = dma::devices().next() else {
        for (name, bound) in [("dma_map_1g_leaf", MAP), ("dma_revoke_scattered_4k_each_page", REVOKE_PAGE)] {
            figures.cannot(name, bound, "no device does DMA (start without --iommu=off)");
        }
        return Ok(());
    };
    dma::speak(false);
    let measured = huge(figures, device, dma).and_then(|()| scattered(figures, device, dma));
    dma::speak(true);
    measured
}

/// Measures removals of slot `slot` with registrations over all of it.
pub fn removals(figures: &mut Figures, slot: usize) -> Result<(), String> {
    let Some(dma) = dma::devices().next().filter(|_| paging::has_gib_leaves()) else { return Ok(()) };
    dma::speak(false);
    let measured = registered_throughout(figures, slot, dma);
    dma::speak(true);
    measured
}

/// Who registers, and is not there any more when it is asked.
struct Registrar {
    account: Arc<PinAccount>,
    owner: Arc<dyn RegionOwner>,
}

impl Registrar {
    fn new() -> Self {
        let owner: Arc<dyn RegionOwner> = Arc::new(|_: &Notice| ());
        Self { account: mm().pins.open_account("bench", 1 << 40), owner }
    }

    fn register(&self, dma: &Arc<DmaDevice>, space: &Space, first: u64, nr_pages: u64) -> Result<DmaRegion, String> {
        let terms = Terms { flags: GupFlags::WRITE, grace_ns: 0, account: &self.account };
        let region = dma.register(space, at(page(first)), nr_pages, &terms, Arc::downgrade(&self.owner));
        region.map_err(|error| format!("register: {error}"))
    }
}

/// One GiB behind one leaf: registering it with everything that belongs to it, and giving it back.
fn huge(figures: &mut Figures, device: &Device, dma: &'static Arc<DmaDevice>) -> Result<(), String> {
    if !paging::has_gib_leaves() {
        return Ok(());
    }
    let pages = PageSize::Size1G.nr_pages();
    let space = space_of(device, pages, PageSize::Size1G)?;
    let (maps, revokes, commands) = loaded(&space, move |space| {
        let registrar = Registrar::new();
        let (mut maps, mut revokes) = (Vec::new(), Vec::new());
        drop(registrar.register(dma, space, 0, pages)?);
        let before = dma.domain().stats().commands;
        for _ in 0..REPEATS {
            let (cost, region) = once(|| registrar.register(dma, space, 0, pages));
            let region = region?;
            maps.push(cost);
            revokes.push(once(|| drop(region)).0);
        }
        let told_on_map = if dma.is_told_of_mappings() { REPEATS as u64 } else { 0 };
        Ok((maps, revokes, dma.domain().stats().commands - before - told_on_map))
    })?;
    figures.median("dma_map_1g_leaf", maps, MAP, "");
    figures.median("dma_revoke_1g_leaf", revokes, Bound::None, "");
    let each = Cost::of(commands, REPEATS as u64);
    figures.add("dma_revoke_1g_leaf_commands", "commands", each, ONE_COMMAND, "");
    Ok(())
}

/// Every other page of the device, mapped to one range: the domain's part alone, for what pins cost is measured elsewhere.
fn scattered(figures: &mut Figures, device: &Device, dma: &Arc<DmaDevice>) -> Result<(), String> {
    if device.frames.nr_pages() < 2 * SCATTERED {
        figures.cannot("dma_revoke_scattered_4k_each_page", REVOKE_PAGE, "NVDIMM 0 has fewer than 2 GiB");
        return Ok(());
    }
    let runs: Vec<_> = (0..SCATTERED).filter_map(|nr| PfnRange::new(device.pfn(2 * nr), 1)).collect();
    let (domain, mut maps, mut revokes, mut commands) = (dma.domain(), Vec::new(), Vec::new(), 0);
    for turn in 0..=REPEATS {
        let (cost, mapping) = once(|| domain.map(&runs, Rights::READ | Rights::WRITE, 1));
        let mapping = mapping.map_err(|error| format!("map: {error}"))?;
        // A tick of the timer would be more than a hundredth of it, in some turns and not in others. With interrupts off:
        // the IOMMU is waited for, and no other CPU.
        let off = IrqOff::new(&mm().machine);
        let (revoked, done) = once(|| domain.revoke(&mapping));
        drop(off);
        if turn > 0 {
            maps.push(cost);
            revokes.push(revoked);
        }
        commands = done.commands;
        if (done.leaves, done.failed) != (SCATTERED, None) {
            return Err(format!("{SCATTERED} pages were revoked as {done:?}"));
        }
    }
    figures.cost("dma_map_scattered_4k_each_page", Cost::of(median(maps), SCATTERED), Bound::None, "");
    figures.cost("dma_revoke_scattered_4k_each_page", Cost::of(median(revokes), SCATTERED), REVOKE_PAGE, "");
    figures.add("dma_revoke_scattered_4k_commands", "commands", Cost::of(commands, 1), ONE_COMMAND, "");
    Ok(())
}

/// All of a device is registered, by several; it is removed.
fn registered_throughout(figures: &mut Figures, slot: usize, dma: &Arc<DmaDevice>) -> Result<(), String> {
    let pages = devices::slots()[slot].frames.nr_pages();
    if !pages.is_multiple_of(REGISTRATIONS << (30 - PAGE_SHIFT)) {
        return Ok(());
    }
    attach(slot)?;
    let space = new_space("registered")?;
    let ops = file(slot, PageSize::Size1G)?;
    space.map(BASE, page(pages), Prot::USER_WRITE, &ops, 0).map_err(|error| format!("map: {error}"))?;
    space.populate(BASE, page(pages), Access::Write).map_err(|error| format!("populate: {error}"))?;
    drop(ops);
    let (registrar, each) = (Registrar::new(), pages / REGISTRATIONS);
    let regions: Vec<_> =
        (0..REGISTRATIONS).map(|nr| registrar.register(dma, &space, nr * each, each)).collect::<Result<_, String>>()?;
    let report = remove(slot, Method::Ranged)?;
    let fact = |name| report.step(Step::Drain).and_then(|step| step.facts.get(name)).unwrap_or(0);
    if fact("device_ranges_revoked") != REGISTRATIONS {
        return Err(format!("{} ranges were revoked instead of {REGISTRATIONS}", fact("device_ranges_revoked")));
    }
    let size = size_name(slot);
    let cost = Cost::of(report.instructions(), 1);
    figures.cost(&format!("removal_{size}_of_16_registrations"), cost, Bound::None, "");
    let commands = Cost::of(fact("invalidation_commands"), 1);
    let bound = Bound::at_most(REGISTRATIONS);
    figures.add(&format!("removal_{size}_of_16_registrations_commands"), "commands", commands, bound, "");
    drop(regions);
    Ok(())
}
