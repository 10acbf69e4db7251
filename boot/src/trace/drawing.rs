//! The lanes as SVG: a column for each CPU, a row for each event, time downwards. Rows and not a scale of time: events come in
//! bursts, and it is their order that one wants to read. The times stand beside them.

use super::capture::Capture;
use super::slices::{Slice, Story};
use mm::machine::CpuId;
use mm::trace::lanes::Words;
use mm::trace::{Event, Group, Kind, Role, Span};
use svg::Document;
use svg::node::element::{Circle, Definitions, Group as Together, Line, Marker, Path, Rectangle, Text, Title};

/// Pixels.
const TIME: usize = 96;
const LANE: usize = 216;
const ROW: usize = 20;
const HEAD: usize = 44;
/// How much further inside a slice is than what it is in.
const INDENT: usize = 8;
/// A silence of so many nanoseconds is drawn as one.
const SILENCE: u64 = 20_000;

/// The colour of what takes time.
pub fn shade(span: Span) -> &'static str {
    match span {
        Span::Gup => "#cfe3f7",
        Span::Zap => "#fbdcc4",
        Span::Shootdown => "#f6c9cf",
        Span::Handler => "#d9d2ee",
    }
}

/// The colour of an event's dot.
pub fn colour(group: Group) -> &'static str {
    match group {
        Group::Gup => "#1f5fa8",
        Group::Zap => "#b4531a",
        Group::Ipi => "#a51f35",
        Group::Fault => "#8a6d00",
        Group::Pin => "#2f6f3e",
        Group::Dma => "#6b3fa0",
        Group::Removal => "#333333",
    }
}

/// What an event is, in words, for who rests the mouse on it.
pub fn in_words(event: &Event, since: u64) -> String {
    let kind = event.mark.kind;
    let mut words = format!("{} us, CPU {}: {kind:?}", micros(event.ns.saturating_sub(since)), event.cpu);
    for (name, value) in kind.arguments().into_iter().zip(event.mark.arguments).filter(|(name, _)| !name.is_empty()) {
        words.push_str(&format!(", {name} {value:#x}"));
    }
    words
}

fn micros(ns: u64) -> String {
    format!("{}.{:03}", ns / 1000, ns % 1000)
}

/// Where things are.
struct Layout {
    cpus: Vec<CpuId>,
}

impl Layout {
    fn left(&self, cpu: CpuId) -> usize {
        TIME + LANE * self.cpus.iter().position(|lane| *lane == cpu).unwrap_or(0)
    }
    fn y(row: usize) -> usize {
        HEAD + ROW * row + ROW / 2
    }
    /// Where the dot of an event is that is in so many slices.
    fn dot(&self, cpu: CpuId, depth: usize) -> usize {
        self.left(cpu) + INDENT * depth.min(4) + 10
    }
}

/// The picture.
pub fn svg(capture: &Capture, story: &Story) -> String {
    let events = &capture.events;
    let since = events.first().map_or(0, |event| event.ns);
    let mut cpus: Vec<CpuId> = events.iter().map(|event| event.cpu).collect();
    cpus.extend(story.arrows.iter().map(|arrow| arrow.to));
    cpus.sort_unstable();
    cpus.dedup();
    let layout = Layout { cpus };
    let (width, height) = (TIME + LANE * layout.cpus.len() + 10, HEAD + ROW * events.len() + 10);
    let mut document = Document::new()
        .set("viewBox", (0, 0, width, height))
        .set("width", width)
        .set("height", height)
        .set("font-family", "ui-monospace, Menlo, Consolas, monospace")
        .set("font-size", 12)
        .add(heads())
        .add(Rectangle::new().set("width", width).set("height", height).set("fill", "#ffffff"));
    document = lanes(document, &layout, height);
    for slice in by_depth(story) {
        document = document.add(box_of(slice, &layout));
    }
    for arrow in &story.arrows {
        document = document.add(arrow_of(arrow, events, story, &layout));
    }
    let mut before = since;
    for (row, event) in events.iter().enumerate() {
        if event.ns.saturating_sub(before) >= SILENCE {
            document = document.add(silence(row, width));
        }
        before = event.ns;
        document = document.add(row_of(row, event, since, depth_of(row, event, story), &layout));
    }
    document.to_string()
}

/// The outer ones first, so that the inner ones lie on them.
fn by_depth(story: &Story) -> Vec<&Slice> {
    let mut slices: Vec<&Slice> = story.slices.iter().collect();
    slices.sort_by_key(|slice| slice.depth);
    slices
}

/// In how many slices an event is, those that it begins or ends too.
fn depth_of(row: usize, event: &Event, story: &Story) -> usize {
    let around = |slice: &&Slice| slice.cpu == event.cpu && slice.first <= row && row <= slice.last;
    story.slices.iter().filter(around).count()
}

fn heads() -> Definitions {
    let head = Path::new().set("d", "M0,0 L8,4 L0,8 z").set("fill", colour(Group::Ipi));
    let marker = Marker::new()
        .set("id", "head")
        .set("markerWidth", 8)
        .set("markerHeight", 8)
        .set("refX", 8)
        .set("refY", 4)
        .set("orient", "auto")
        .add(head);
    Definitions::new().add(marker)
}

fn lanes(mut document: Document, layout: &Layout, height: usize) -> Document {
    let time = Text::new("us").set("x", TIME - 14).set("y", 26).set("text-anchor", "end").set("fill", "#555555");
    document = document.add(time);
    for &cpu in &layout.cpus {
        let left = layout.left(cpu);
        let name = Text::new(format!("CPU {cpu}")).set("x", left + 6).set("y", 26).set("font-weight", "bold");
        let edge = Line::new().set("x1", left).set("x2", left).set("y1", 8).set("y2", height - 6);
        document = document.add(name).add(edge.set("stroke", "#dddddd"));
    }
    document
}

fn box_of(slice: &Slice, layout: &Layout) -> Together {
    let inset = INDENT * slice.depth.min(4) + 3;
    let (top, bottom) = (Layout::y(slice.first) - ROW / 2 + 1, Layout::y(slice.last) + ROW / 2 - 1);
    let rectangle = Rectangle::new()
        .set("x", layout.left(slice.cpu) + inset)
        .set("y", top)
        .set("width", LANE - inset - 6)
        .set("height", bottom - top)
        .set("rx", 3)
        .set("fill", shade(slice.span))
        .set("stroke", "#00000030");
    let words =
        format!("{} on CPU {}, {} us: {}", slice.span.word(), slice.cpu, micros(slice.end - slice.start), slice.words);
    Together::new().add(Title::new(words)).add(rectangle)
}

fn arrow_of(arrow: &super::slices::Arrow, events: &[Event], story: &Story, layout: &Layout) -> Together {
    let dot = |row: usize| layout.dot(events[row].cpu, depth_of(row, &events[row], story));
    let (x1, y1) = (dot(arrow.sent_at), Layout::y(arrow.sent_at));
    let (x2, y2) = (dot(arrow.received_at), Layout::y(arrow.received_at));
    // Short of the dot on the side that it comes from.
    let x2 = if x2 > x1 { x2 - 6 } else { x2 + 6 };
    let line = Line::new()
        .set("x1", x1)
        .set("y1", y1)
        .set("x2", x2)
        .set("y2", y2)
        .set("stroke", colour(Group::Ipi))
        .set("stroke-width", 1.5)
        .set("stroke-opacity", 0.75)
        .set("marker-end", "url(#head)");
    let words = format!(
        "interrupt from CPU {} to CPU {}, request {}: {} us on its way",
        arrow.from,
        arrow.to,
        arrow.request,
        micros(arrow.received - arrow.sent)
    );
    Together::new().add(Title::new(words)).add(line)
}

fn silence(row: usize, width: usize) -> Line {
    let y = Layout::y(row) - ROW / 2;
    let line = Line::new().set("x1", 8).set("x2", width - 8).set("y1", y).set("y2", y);
    line.set("stroke", "#999999").set("stroke-dasharray", "2 5")
}

fn row_of(row: usize, event: &Event, since: u64, depth: usize, layout: &Layout) -> Together {
    let (x, y) = (layout.dot(event.cpu, depth), Layout::y(row));
    let kind = event.mark.kind;
    let time = Text::new(micros(event.ns.saturating_sub(since)))
        .set("x", TIME - 14)
        .set("y", y + 4)
        .set("text-anchor", "end")
        .set("fill", "#555555");
    let dot = Circle::new().set("cx", x).set("cy", y).set("r", 3.5).set("fill", colour(kind.group()));
    let weight = if matches!(kind.role(), Role::Begins(_)) || kind == Kind::Stale { "bold" } else { "normal" };
    // A halo, so that an arrow below it does not cross it out.
    let words = Text::new(Words(event.mark).to_string())
        .set("x", x + 9)
        .set("y", y + 4)
        .set("font-weight", weight)
        .set("fill", "#111111")
        .set("stroke", "#ffffff")
        .set("stroke-opacity", 0.7)
        .set("stroke-width", 3)
        .set("paint-order", "stroke");
    Together::new().add(Title::new(in_words(event, since))).add(time).add(dot).add(words)
}
