//! The page: one file that needs no other, with the picture in it, and what its words mean.

use super::capture::Capture;
use super::drawing::{colour, shade};
use super::slices::Story;
use mm::trace::{Kind, Span};
use std::collections::BTreeSet;
use std::fmt::Write;

const STYLE: &str = "body{font-family:sans-serif;margin:1.5em;color:#111;background:#fff;line-height:1.45}\
.of{overflow-x:auto;border:1px solid #ccc}ul{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:.3em 1.6em;max-width:70em}\
i{display:inline-block;width:1em;height:1em;vertical-align:-.15em;margin-right:.4em;border:1px solid #0003}\
i.dot{border-radius:50%;width:.7em;height:.7em;border:0;vertical-align:0}\
table{border-collapse:collapse}td,th{text-align:left;padding:.1em 1em .1em 0;vertical-align:top}code{font-size:1.05em}";

/// What a kind of event means, for the legend: as its documentation says, in a line.
fn meaning(kind: Kind) -> &'static str {
    match kind {
        Kind::GupBegun => "gup is called: address, pages wanted",
        Kind::EntryRead => "gup-fast has read a present leaf, and has no reference yet",
        Kind::RefTaken => "it has its references, and has not looked again yet",
        Kind::RefRefused => "it cannot have them without a lock",
        Kind::Kept => "it has looked again, and nothing has changed",
        Kind::Stale => "it has looked again, and an entry has changed: the references go back",
        Kind::GupDone => "gup returns with so many pages; 0: it has failed, or has nothing without a lock",
        Kind::ZapBegun => "translations of a range are being taken out of one address space",
        Kind::Cleared => "a leaf is cleared: frame, pages",
        Kind::Unlinked => "a table page is unlinked with all below it: frame, level",
        Kind::ZapDone => "the range has no translation any more; nothing is freed yet",
        Kind::LeavesPut => "the references of so many leaves are given back",
        Kind::TableFreed => "a table page is freed",
        Kind::Shootdown => "a shootdown begins: CPUs that may hold a translation",
        Kind::Sent => "a CPU was asked to flush, and is interrupted: which, its request",
        Kind::Received => "the handler runs: the last request that it answers",
        Kind::Flushed => "pages are flushed from this CPU's TLB",
        Kind::Acknowledged => "the handler is done, and says so",
        Kind::Synced => "all who were asked have acknowledged",
        Kind::Switched => "an address space is loaded: its root table",
        Kind::Faulted => "a page fault is served: page; r load, w store, x fetch",
        Kind::PinnedSlow => "pages are pinned with the address space locked",
        Kind::Unpinned => "pins or references are given back",
        Kind::DmaMapped => "pages are mapped for a device",
        Kind::DmaRevoked => "a device is cut off from pages",
        Kind::RemovalStep => "a step of a removal is over",
    }
}

/// The text of the page.
pub fn page(capture: &Capture, story: &Story, svg: &str) -> String {
    let mut text = String::from("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    _ = writeln!(text, "<title>Unplug: a trace</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>A trace</h1>");
    let shown = capture.events.len();
    let span = capture.events.last().zip(capture.events.first()).map_or(0, |(last, first)| last.ns - first.ns);
    let interrupts = story.arrows.len();
    let mut summary = format!(
        "{shown} events in {}.{:03} microseconds, {interrupts} interrupts from CPU to CPU. One column for each CPU, one row for \
         each event, time downwards: rows are in the order of time, and not a scale of it. A dashed line is a silence of 20 \
         microseconds or more. Rest the mouse on anything to read it in full.",
        span / 1000,
        span % 1000
    );
    if capture.all > shown as u64 {
        _ = write!(summary, " There had been {} events, of which these are the latest.", capture.all);
    }
    if capture.lost > 0 {
        _ = write!(summary, " {} events were lost while they were being written.", capture.lost);
    }
    if story.unanswered > 0 {
        _ = write!(
            summary,
            " {} interrupts are without an arrow: their answers are not among these events.",
            story.unanswered
        );
    }
    _ = writeln!(text, "<p>{summary}</p>\n<ul>");
    for (span, words) in [
        (Span::Gup, "a call of gup"),
        (Span::Zap, "a zap"),
        (Span::Shootdown, "a shootdown, until all have acknowledged"),
        (Span::Handler, "the shootdown handler"),
    ] {
        _ = writeln!(text, "<li><i style=\"background:{}\"></i>{words}</li>", shade(span));
    }
    _ = writeln!(text, "</ul>\n<div class=\"of\">\n{}\n</div>\n<h2>Words</h2>\n<table>", svg.trim());
    let kinds: BTreeSet<Kind> = capture.events.iter().map(|event| event.mark.kind).collect();
    for kind in kinds {
        let colour = colour(kind.group());
        _ = writeln!(
            text,
            "<tr><td><i class=\"dot\" style=\"background:{colour}\"></i><code>{}</code></td><td>{}</td></tr>",
            kind.word(),
            meaning(kind)
        );
    }
    text.push_str(
        "</table>\n<p>Addresses and frames are numbers of pages, in hexadecimal; <code>x8</code> is eight pages, \
         <code>#5</code> the fifth request to that CPU.</p>\n</body>\n</html>\n",
    );
    text
}
