//! Events in the format of Chrome's trace viewer, which Perfetto reads too: "Trace Event Format", Google, 2016.
//!
//! Viewers bind each end of an arrow to the slice that is around it, and drop it where there is none: so an interrupt becomes an
//! arrow only where both its ends have one.

use super::capture::Capture;
use super::slices::{Arrow, Slice, Story};
use mm::trace::lanes::Words;
use mm::trace::{Event, Role};
use serde_json::{Value, json};

/// All CPUs are threads of one process.
const PROCESS: u32 = 1;

/// The file's contents. Times are microseconds since the first event.
pub fn json(capture: &Capture, story: &Story) -> Value {
    let since = capture.events.first().map_or(0, |event| event.ns);
    let us = |ns: u64| ns.saturating_sub(since) as f64 / 1000.0;
    let mut all = vec![json!({"ph": "M", "name": "process_name", "pid": PROCESS, "args": {"name": "Unplug"}})];
    let mut cpus: Vec<_> = capture.events.iter().map(|event| event.cpu).collect();
    cpus.sort_unstable();
    cpus.dedup();
    for cpu in cpus {
        let name = format!("CPU {cpu}");
        all.push(json!({"ph": "M", "name": "thread_name", "pid": PROCESS, "tid": cpu, "args": {"name": name}}));
        all.push(
            json!({"ph": "M", "name": "thread_sort_index", "pid": PROCESS, "tid": cpu, "args": {"sort_index": cpu}}),
        );
    }
    all.extend(story.slices.iter().map(|slice: &Slice| {
        json!({
            "ph": "X", "pid": PROCESS, "tid": slice.cpu, "name": slice.span.word(), "cat": slice.span.word(),
            "ts": us(slice.start), "dur": us(slice.end) - us(slice.start), "args": {"says": slice.words},
        })
    }));
    let moments = capture.events.iter().filter(|event| event.mark.kind.role() == Role::Moment);
    all.extend(moments.map(|event: &Event| {
        let kind = event.mark.kind;
        let mut arguments = serde_json::Map::new();
        for (name, value) in kind.arguments().into_iter().zip(event.mark.arguments).filter(|(name, _)| !name.is_empty())
        {
            arguments.insert(name.into(), format!("{value:#x}").into());
        }
        json!({
            "ph": "i", "s": "t", "pid": PROCESS, "tid": event.cpu, "name": Words(event.mark).to_string(),
            "cat": kind.group().word(), "ts": us(event.ns), "args": arguments,
        })
    }));
    let bound = |arrow: &&Arrow| {
        story.around(arrow.from, arrow.sent).is_some() && story.around(arrow.to, arrow.received).is_some()
    };
    for (id, arrow) in story.arrows.iter().filter(bound).enumerate() {
        let end = |ph, cpu, ns| json!({"ph": ph, "pid": PROCESS, "tid": cpu, "id": id, "name": "ipi", "cat": "ipi", "ts": us(ns), "bp": "e"});
        all.push(end("s", arrow.from, arrow.sent));
        all.push(end("f", arrow.to, arrow.received));
    }
    json!({"displayTimeUnit": "ns", "traceEvents": all})
}
