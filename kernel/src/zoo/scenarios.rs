//! The scenarios: who does what, and what must not come of it.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mm::addr::{PageSize, Pfn, VirtAddr};
use mm::entry::Entry;
use mm::gup::{GupFlags, PageArray, pin_user_pages_fast, unpin};
use mm::machine::{IrqOff, Machine, Point};
use mm::space::Access;

use crate::ktest::fixtures::{BASE, Device, at, new_space, page};
use crate::mem::machine::steps::Step;
use crate::mem::machine::{Space, mm};
use crate::mem::paging;
use crate::task::user;
use crate::zoo::conductor::{self, Event, Observer, When};

/// A scenario.
pub struct Scenario {
    /// Its name, after `scenario=`.
    pub name: &'static str,
    /// What each player does, in a few words.
    pub parts: &'static [&'static str],
    /// Makes one run ready.
    pub make: fn(&Device) -> Result<Play, String>,
}

/// What a player does. An error says what must not have happened.
pub type Part = Box<dyn FnOnce() -> Result<(), String> + Send>;

/// A run that is ready.
pub struct Play {
    /// The address space that every player has loaded.
    pub space: Arc<Space>,
    /// The players.
    pub parts: Vec<Part>,
    /// What watches them.
    pub observer: Observer,
    /// What must hold when all are done.
    pub check: Box<dyn FnOnce() -> Result<(), String>>,
}

/// All of them.
pub static ALL: &[Scenario] = &[
    Scenario { name: "gup-against-unmap", parts: &["pins a page", "unmaps it"], make: gup_against_unmap },
    Scenario {
        name: "gup-against-table",
        parts: &["pins a page", "unmaps all that its page table maps"],
        make: gup_against_table,
    },
    Scenario {
        name: "read-against-unmap",
        parts: &["reads a page, three times", "unmaps it"],
        make: |device| read_against_unmap(device, false),
    },
    Scenario {
        name: "flush-against-unmap",
        parts: &["reads a page, three times", "unmaps it, and asks whether player 0 has flushed"],
        make: |device| read_against_unmap(device, true),
    },
    Scenario {
        name: "idle-against-unmap",
        parts: &["reads a page, goes idle, wakes and reads", "unmaps it"],
        make: idle_against_unmap,
    },
    Scenario {
        name: "switch-against-unmap",
        parts: &["loads the address space and reads a page", "unmaps it"],
        make: switch_against_unmap,
    },
    Scenario {
        name: "get-against-last-put",
        parts: &["takes a reference on a frame, three times", "unmaps the page, and drops the last one"],
        make: get_against_last_put,
    },
    Scenario { name: "put-against-put", parts: &["drops a reference", "drops the other"], make: put_against_put },
    Scenario { name: "two-pins", parts: &["pins a page and unpins it", "pins it and holds it"], make: two_pins },
];

/// The page that all is about; its neighbours keep its page table.
const PAGE: u64 = 1;
/// Pages that are mapped.
const PAGES: u64 = 3;
/// The page that keeps the tables above: in the next 2 MiB.
const FAR: u64 = 512;
/// Fast path or nothing.
const FAST: GupFlags = GupFlags::WRITE.union(GupFlags::FAST_ONLY);

fn va() -> VirtAddr {
    at(page(PAGE))
}

/// A space that maps a few pages of the device, all of them installed; and one more, so far away that it has a page table of
/// its own, and keeps the tables above.
fn mapped(device: &Device) -> Result<(Arc<Space>, Pfn), String> {
    let space = new_space("zoo")?;
    for (first, nr) in [(0, PAGES), (FAR, 1)] {
        device.map(&space, at(page(first)), page(first), page(nr), PageSize::Size4K)?;
        space.populate(at(page(first)), page(nr), Access::Write).map_err(|error| format!("populate: {error}"))?;
    }
    Ok((space, device.pfn(PAGE)))
}

/// Is a leaf at `va`? Reads the table as it is, and takes no lock: for an observer, while everybody else stands still.
fn is_mapped(space: &Space, va: VirtAddr) -> bool {
    let mut table = space.tlb().root();
    for level in (1..=4).rev() {
        let entry = Entry::from_bits(paging::entry(table, va.index(level)).load(Ordering::Relaxed));
        if !entry.is_table(level) {
            return entry.is_leaf(level);
        }
        table = entry.pfn();
    }
    false
}

/// References and pins of the folio of `pfn`; zero where there is none.
fn counts(pfn: Pfn) -> (u32, u32) {
    mm().meta.inspect(pfn).map_or((0, 0), |folio| (folio.counts.refs, folio.counts.pins))
}

fn unwatched() -> Observer {
    Arc::new(|_, _, _| Ok(()))
}

/// Nothing of the device is in use any more.
fn all_given_back() -> Result<(), String> {
    let totals = mm().meta.totals();
    if (totals.folios, totals.refs, totals.pins) == (0, 0, 0) {
        return Ok(());
    }
    Err(format!(
        "the books: {} folios with {} references and {} pins are left when nobody uses any",
        totals.folios, totals.refs, totals.pins
    ))
}

/// Unmaps all that is left, and asks for the books.
fn end(space: Arc<Space>) -> Box<dyn FnOnce() -> Result<(), String>> {
    Box::new(move || {
        space.unmap(BASE, page(FAR + 1)).map_err(|error| format!("unmap: {error}"))?;
        drop(space);
        all_given_back()
    })
}

/// Unmaps pages, and says when that is done.
fn unmap(space: &Arc<Space>, first: u64, nr: u64, gone: &Arc<AtomicBool>) -> Part {
    let (space, gone) = (Arc::clone(space), Arc::clone(gone));
    Box::new(move || {
        conductor::comes_to("unmap");
        space.unmap(at(page(first)), page(nr)).map_err(|error| format!("unmap: {error}"))?;
        gone.store(true, Ordering::Release);
        conductor::comes_to("unmapped");
        Ok(())
    })
}

fn gup_against_unmap(device: &Device) -> Result<Play, String> {
    gup_against(device, PAGE, 1)
}

fn gup_against_table(device: &Device) -> Result<Play, String> {
    gup_against(device, 0, PAGES)
}

/// The table pages in which a player has looked since it turned interrupts off, by level.
#[derive(Default)]
struct Walked {
    tables: [AtomicU64; 8],
    nr: AtomicU64,
}

impl Walked {
    fn comes_to(&self, table: Pfn) {
        let nr = self.nr.fetch_add(1, Ordering::Relaxed) as usize % self.tables.len();
        self.tables[nr].store(table.as_u64(), Ordering::Relaxed);
    }
    fn forget(&self) {
        self.nr.store(0, Ordering::Relaxed);
    }
    fn has(&self, table: Pfn) -> bool {
        let nr = (self.nr.load(Ordering::Relaxed) as usize).min(self.tables.len());
        self.tables[..nr].iter().any(|walked| walked.load(Ordering::Relaxed) == table.as_u64())
    }
}

/// Player 0 pins a page, player 1 unmaps `nr` pages from `first` on.
fn gup_against(device: &Device, first: u64, nr: u64) -> Result<Play, String> {
    let (space, pfn) = mapped(device)?;
    let late = Arc::new(AtomicBool::new(false));
    let walked = Arc::new(Walked::default());
    let observer = {
        let (space, late) = (Arc::clone(&space), Arc::clone(&late));
        move |player: usize, when: When, event: Event| match (player, when, event) {
            // It takes its reference next: was the entry cleared before?
            (0, When::GoesOn, Event::Machine(Step::At(Point::GupLeafRead))) => {
                late.store(!is_mapped(&space, va()), Ordering::Relaxed);
                Ok(())
            }
            (0, When::Comes, Event::Machine(Step::Entry(table))) => {
                if !arch::cpu::irqs_on() {
                    walked.comes_to(table);
                }
                Ok(())
            }
            (0, When::Comes, Event::Machine(Step::IrqsOn)) => {
                walked.forget();
                Ok(())
            }
            (1, When::GoesOn, Event::Machine(Step::FreeTable(table))) if walked.has(table) => {
                Err(format!("player 1 frees page table {table}, in which player 0 walks with interrupts off"))
            }
            _ => Ok(()),
        }
    };
    let pins = {
        let space = Arc::clone(&space);
        Box::new(move || {
            conductor::comes_to("pin");
            let mut frames = [Pfn::new(0)];
            let got = pin_user_pages_fast(&space, va(), 1, FAST, &mut PageArray::new(&mut frames));
            if got != Ok(1) {
                return Ok(());
            }
            let late = late.load(Ordering::Relaxed);
            conductor::comes_to("pinned");
            let (_, pins) = counts(pfn);
            unpin(mm(), frames[0], 1);
            if late {
                return Err(format!(
                    "player 0 has pinned frame {pfn} through an entry that was cleared before it took its reference"
                ));
            }
            if pins == 0 { Err(format!("frame {pfn} counts no pin while player 0 holds one")) } else { Ok(()) }
        })
    };
    let gone = Arc::new(AtomicBool::new(false));
    let unmaps = unmap(&space, first, nr, &gone);
    Ok(Play { parts: alloc::vec![pins, unmaps], observer: Arc::new(observer), check: end(Arc::clone(&space)), space })
}

/// Reads the page as a task does; with an answer it looks whether it may have had one.
fn read(pfn: Pfn, gone: &AtomicBool) -> Result<(), String> {
    let late = gone.load(Ordering::Acquire);
    if user::read_u64(va()).is_err() {
        return Ok(());
    }
    if late {
        return Err(format!("player 0 has read frame {pfn} through a translation that was taken away: it is stale"));
    }
    if counts(pfn).0 == 0 {
        return Err(format!("player 0 has read frame {pfn}, which nobody holds any more: it may be somebody else's"));
    }
    Ok(())
}

/// Since when player 0 may have the translation, and has not flushed: counted in its reads.
#[derive(Default)]
struct Cached(AtomicU64);

/// `asks`: not only what is read counts, but whether a CPU has flushed since it had the translation.
fn read_against_unmap(device: &Device, asks: bool) -> Result<Play, String> {
    let (space, pfn) = mapped(device)?;
    let gone = Arc::new(AtomicBool::new(false));
    let cached = Arc::new(Cached::default());
    let observer = {
        let (cached, gone) = (Arc::clone(&cached), Arc::clone(&gone));
        move |player: usize, when: When, event: Event| match (player, when, event) {
            (0, When::Comes, Event::Machine(Step::Flushed)) => {
                cached.0.store(0, Ordering::Relaxed);
                Ok(())
            }
            (1, When::Comes, Event::Part("unmapped"))
                if asks && gone.load(Ordering::Relaxed) && cached.0.load(Ordering::Relaxed) != 0 =>
            {
                Err("the unmap has returned, and player 0 has not flushed since it read the page".into())
            }
            _ => Ok(()),
        }
    };
    let reads = {
        let gone = Arc::clone(&gone);
        Box::new(move || {
            for _ in 0..3 {
                conductor::comes_to("read");
                read(pfn, &gone)?;
                if !gone.load(Ordering::Relaxed) {
                    cached.0.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(())
        })
    };
    let unmaps = unmap(&space, PAGE, 1, &gone);
    Ok(Play { parts: alloc::vec![reads, unmaps], observer: Arc::new(observer), check: end(Arc::clone(&space)), space })
}

fn idle_against_unmap(device: &Device) -> Result<Play, String> {
    let (space, pfn) = mapped(device)?;
    let gone = Arc::new(AtomicBool::new(false));
    let idles = {
        let gone = Arc::clone(&gone);
        Box::new(move || {
            read(pfn, &gone)?;
            mm().shootdown.enter_lazy(&IrqOff::new(&mm().machine));
            conductor::comes_to("idle");
            mm().shootdown.leave_lazy(&IrqOff::new(&mm().machine));
            conductor::comes_to("awake");
            read(pfn, &gone)
        })
    };
    let unmaps = unmap(&space, PAGE, 1, &gone);
    Ok(Play { parts: alloc::vec![idles, unmaps], observer: unwatched(), check: end(Arc::clone(&space)), space })
}

fn switch_against_unmap(device: &Device) -> Result<Play, String> {
    let (space, pfn) = mapped(device)?;
    let gone = Arc::new(AtomicBool::new(false));
    let comes_back = Arc::new(AtomicBool::new(false));
    let switches = {
        let (space, gone, comes_back) = (Arc::clone(&space), Arc::clone(&gone), Arc::clone(&comes_back));
        Box::new(move || {
            mm().shootdown.switch_to(&IrqOff::new(&mm().machine), None);
            conductor::comes_to("elsewhere");
            comes_back.store(true, Ordering::Relaxed);
            mm().shootdown.switch_to(&IrqOff::new(&mm().machine), Some(space.tlb()));
            conductor::comes_to("back");
            read(pfn, &gone)
        })
    };
    let observer = {
        let space = Arc::clone(&space);
        move |player: usize, when: When, event: Event| {
            // A CPU may fetch a translation as soon as the root is loaded (SDM vol. 3A, 4.10.2.3); this stands in for that.
            let loads = (player, when, event) == (0, When::Comes, Event::Machine(Step::RootLoaded));
            let loaded = loads && comes_back.load(Ordering::Relaxed);
            if loaded && is_mapped(&space, va()) {
                _ = arch::user::read_u64(va().as_u64());
            }
            Ok(())
        }
    };
    let unmaps = unmap(&space, PAGE, 1, &gone);
    let parts = alloc::vec![switches as Part, unmaps];
    Ok(Play { parts, observer: Arc::new(observer), check: end(Arc::clone(&space)), space })
}

fn get_against_last_put(device: &Device) -> Result<Play, String> {
    let (space, pfn) = mapped(device)?;
    let gets = Box::new(move || {
        for _ in 0..3 {
            conductor::comes_to("get");
            let before = mm().meta.inspect(pfn).map_or(0, |folio| folio.counts.refs);
            let got = mm().meta.with_page(pfn, |page| page.try_get(1).is_ok()) == Some(true);
            if got && before == 0 {
                return Err(format!("player 0 has taken a reference on frame {pfn}, which is free"));
            }
            conductor::comes_to("got");
            if got {
                mm().meta.put(pfn, 1);
            }
        }
        Ok(())
    });
    let gone = Arc::new(AtomicBool::new(false));
    let unmaps = unmap(&space, PAGE, 1, &gone);
    Ok(Play { parts: alloc::vec![gets, unmaps], observer: unwatched(), check: end(Arc::clone(&space)), space })
}

fn put_against_put(device: &Device) -> Result<Play, String> {
    let (space, pfn) = mapped(device)?;
    mm().meta.get_mapped(pfn, 1).map_err(|error| format!("get: {error}"))?;
    space.unmap(BASE, page(PAGES)).map_err(|error| format!("unmap: {error}"))?;
    mm().meta.get_mapped(pfn, 1).map_err(|error| format!("get: {error}"))?;
    let observer = move |player: usize, when: When, event: Event| {
        if (when, event) == (When::GoesOn, Event::Fault) && counts(pfn).0 == 0 {
            return Err(format!(
                "player {player} looks at the metadata of frame {pfn} again, which was freed since it dropped its reference"
            ));
        }
        Ok(())
    };
    let put = || {
        Box::new(move || {
            conductor::comes_to("put");
            mm().meta.put_run(pfn, 1, PageSize::Size4K);
            Ok(())
        })
    };
    Ok(Play { parts: alloc::vec![put(), put()], observer: Arc::new(observer), check: end(Arc::clone(&space)), space })
}

/// Waits, and lets the others go on meanwhile.
fn until(done: &AtomicBool) {
    while !done.load(Ordering::Acquire) {
        mm().machine.relax();
    }
}

fn two_pins(device: &Device) -> Result<Play, String> {
    let (space, pfn) = mapped(device)?;
    let pin = |space: &Space| {
        let mut frames = [Pfn::new(0)];
        let got = pin_user_pages_fast(space, va(), 1, FAST, &mut PageArray::new(&mut frames));
        if got == Ok(1) { Ok(frames[0]) } else { Err(format!("a pin of a mapped page was refused: {got:?}")) }
    };
    let (held, unpinned) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let unpins = {
        let (space, held, unpinned) = (Arc::clone(&space), Arc::clone(&held), Arc::clone(&unpinned));
        Box::new(move || {
            conductor::comes_to("pin");
            let frame = pin(&space)?;
            until(&held);
            conductor::comes_to("unpin");
            unpin(mm(), frame, 1);
            unpinned.store(true, Ordering::Release);
            Ok(())
        })
    };
    let holds = {
        let space = Arc::clone(&space);
        Box::new(move || {
            conductor::comes_to("pin");
            let frame = pin(&space)?;
            held.store(true, Ordering::Release);
            conductor::comes_to("holds");
            until(&unpinned);
            let (_, pins) = counts(pfn);
            if pins == 0 {
                return Err(format!("frame {pfn} counts no pin, and player 1 holds one"));
            }
            unpin(mm(), frame, 1);
            Ok(())
        })
    };
    Ok(Play { parts: alloc::vec![unpins, holds as Part], observer: unwatched(), check: end(Arc::clone(&space)), space })
}
