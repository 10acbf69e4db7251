//! `page`: what a page frame is, and its metadata in words.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use mm::addr::{PAGE_SIZE, Pfn};
use mm::meta::LiveFolio;
use mm::pagemap::{DevPagemap, LongTermPin, MapState};

use super::words::{Place, count, frame};
use crate::console::{self, report};
use crate::mem::machine::mm;
use crate::mem::memory;

/// The command.
pub fn run(args: &[&str]) -> Result<(), String> {
    let [word] = args else { return Err("expected: page PFN".into()) };
    tell(frame(word)?);
    Ok(())
}

/// What is known of a frame, at one moment each.
pub struct Facts {
    /// Where in persistent memory it is.
    pub place: Option<Place>,
    /// The page map that has it; `None`: its frames have no metadata.
    pub map: Option<Arc<DevPagemap>>,
    /// The folio that covers it; `None`: nobody uses it, and there is none.
    pub folio: Option<LiveFolio>,
}

impl Facts {
    /// Looks.
    pub fn of(pfn: Pfn) -> Self {
        let map = mm().meta.find_map(pfn);
        let folio = map.as_ref().and_then(|_| mm().meta.inspect(pfn));
        Self { place: Place::of(pfn), map, folio }
    }
}

/// Prints what is known.
pub fn tell(pfn: Pfn) {
    let facts = Facts::of(pfn);
    let (start, end) = (pfn.addr(), pfn.addr().as_u64() + PAGE_SIZE);
    console::line(format_args!("frame {pfn} (bytes {start}..{end:#x}): {}", what_it_is(pfn, facts.place)));
    if let Some(map) = &facts.map {
        tell_map(map, pfn);
        match &facts.folio {
            Some(folio) => tell_folio(folio, map, pfn),
            None => console::line(format_args!("  no metadata: nobody maps the page or has it pinned")),
        }
    } else if facts.place.is_some() {
        let why = "no page map has it: its device is not attached, or it holds the driver's own records";
        console::line(format_args!("  no metadata: {why}"));
    } else {
        console::line(format_args!("  no metadata: only persistent memory has"));
    }
    report_frame(pfn, &facts);
}

fn what_it_is(pfn: Pfn, place: Option<Place>) -> String {
    if let Some(place) = place {
        let left = if place.has_left { ", which has left" } else { "" };
        return format!("page {} of {}{left}", place.page, place.name());
    }
    let at = pfn.addr().as_u64();
    match memory::regions().iter().find(|region| (region.start..region.end).contains(&at)) {
        Some(region) if memory::is_ram(region.kind) => "RAM".into(),
        Some(_) => "reserved by the firmware".into(),
        None => "no memory that the kernel knows".into(),
    }
}

fn tell_map(map: &DevPagemap, pfn: Pfn) {
    let state = match map.state() {
        MapState::Live => "in use",
        MapState::Dying => "being removed: it gets no new metadata",
        MapState::Unregistered => "removed",
    };
    let lost = if map.any_poisoned(pfn, 1) { "some of the frame's data is lost" } else { "the frame's data is whole" };
    let long_term = match map.kind().long_term() {
        LongTermPin::Revocable => "a long-term pin must be a registration",
        LongTermPin::Refused => "no long-term pins",
    };
    let folios = count(map.live_folios(), "folio");
    console::line(format_args!(
        "  page map: {}, {state}, {folios} in use in all of it; {lost}; {long_term}",
        map.kind()
    ));
}

fn tell_folio(folio: &LiveFolio, map: &DevPagemap, pfn: Pfn) {
    let LiveFolio { head, size, counts, owner, .. } = *folio;
    let (refs, pins) = (u64::from(counts.refs), u64::from(counts.pins));
    let mappings = refs.saturating_sub(pins);
    let inside = pfn.as_u64().saturating_sub(head.as_u64());
    let of = if head == pfn { String::new() } else { format!(", of which this is page {inside}") };
    console::line(format_args!(
        "  metadata: a folio of {size} from frame {head} on{of}; {}: {} and {}",
        count(refs, "reference"),
        count(mappings, "mapping leaf reference"),
        count(pins, "pin")
    ));
    let gone = if mm().find_mapping(map, owner.mapping).is_none() { ", which is gone" } else { "" };
    let page = owner.offset.saturating_add(inside);
    console::line(format_args!("  owner: page {page} of mapping {}{gone}", owner.mapping));
    if folio.poisoned {
        console::line(format_args!("  poisoned: the folio has lost data"));
    }
}

fn report_frame(pfn: Pfn, facts: &Facts) {
    let device = facts.place.map_or("none", |place| place.name());
    let page = facts.place.map_or(0, |place| place.page);
    let kind = facts.map.as_ref().map_or("none", |map| map.kind().name());
    let lost = u8::from(facts.map.as_ref().is_some_and(|map| map.any_poisoned(pfn, 1)));
    match &facts.folio {
        Some(folio) => {
            let LiveFolio { head, size, counts, owner, .. } = *folio;
            report!(
                "frame pfn={pfn} device={device} page={page} kind={kind} metadata=1 lost={lost} head={head} folio={size} refs={} pins={} mapping={} offset={}",
                counts.refs,
                counts.pins,
                owner.mapping,
                owner.offset
            );
        }
        None => report!("frame pfn={pfn} device={device} page={page} kind={kind} metadata=0 lost={lost}"),
    }
}
