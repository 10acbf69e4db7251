//! A capture becomes pictures, and what is none becomes a line.

use super::capture::Capture;
use super::perfetto::json;
use super::slices::Story;
use super::*;
use mm::trace::Kind;
use serde_json::Value;

/// One gup against one zap: CPU 0 takes the page away, 1 pins it, 2 looks on.
const EVENTS: &[&str] = &[
    "cpu=1 ns=1000 kind=gup a=0x4000000000 b=0x1",
    "cpu=1 ns=1100 kind=read a=0x8000000100000867 b=0x1",
    "cpu=0 ns=1150 kind=zap a=0x4000000000 b=0x4000001000",
    "cpu=1 ns=1200 kind=ref a=0x100000 b=0x1",
    "cpu=0 ns=1250 kind=clear a=0x100000 b=0x1",
    "cpu=0 ns=1280 kind=zapped a=0x4000000000 b=0x4000001000",
    "cpu=1 ns=1300 kind=stale a=0x100000 b=0x1",
    "cpu=0 ns=1350 kind=shoot a=0x7 b=0x0",
    "cpu=0 ns=1400 kind=ipi a=0x1 b=0x5",
    "cpu=0 ns=1420 kind=ipi a=0x2 b=0x9",
    "cpu=1 ns=1500 kind=got a=0x0 b=0x0",
    "cpu=1 ns=1600 kind=recv a=0x5 b=0x0",
    "cpu=2 ns=1390 kind=recv a=0x9 b=0x0",
    "cpu=1 ns=1650 kind=flush a=0x4000000000 b=0x1",
    "cpu=1 ns=1700 kind=ack a=0x5 b=0x0",
    "cpu=2 ns=1800 kind=ack a=0x9 b=0x0",
    "cpu=0 ns=41900 kind=sync a=0x6 b=0x0",
    "cpu=0 ns=42000 kind=put a=0x1 b=0x0",
];

fn console(events: &[&str]) -> String {
    let nr = events.len();
    let mut text = format!("unplug> trace show\r\n@trace events={nr} shown={nr} overwritten=0 lost=0 cpus=3\r\n");
    events.iter().for_each(|event| text.push_str(&format!("@trace {event}\r\n")));
    text + &format!("@trace ended={nr}\r\n       us CPU 0\r\n")
}

fn story(events: &[&str]) -> (Capture, Story) {
    let capture = Capture::parse(&console(events)).unwrap_or_else(|error| panic!("{error:#}"));
    let story = Story::of(&capture.events);
    (capture, story)
}

fn refused(text: &str) -> String {
    let error = Capture::parse(text).expect_err(text);
    let line = format!("{error:#}");
    assert!(!line.contains('\n'), "{line}");
    line
}

// covers: T2
#[test]
fn a_capture_is_read_by_time() {
    let (capture, _) = story(EVENTS);
    assert_eq!(capture.events.len(), EVENTS.len());
    assert!(capture.events.is_sorted_by_key(|event| event.ns));
    assert_eq!(capture.events.iter().filter(|event| event.mark.kind == Kind::Sent).count(), 2);
}

#[test]
fn the_last_of_several_counts() {
    let text = console(&EVENTS[..1]) + &console(EVENTS);
    assert_eq!(Capture::parse(&text).map(|capture| capture.events.len()).ok(), Some(EVENTS.len()));
}

#[test]
fn what_is_no_capture_is_refused_with_a_line() {
    assert!(refused("").contains("no @trace lines"));
    assert!(refused("[    0.000000] boot: hello\n@cpu id=0\n@tracer a=1\n").contains("no @trace lines"));
    assert!(refused("@trace cpu=0 ns=1 kind=gup a=0x0 b=0x0\n").contains("line 1"));
    let whole = console(EVENTS);
    let lines: Vec<_> = whole.lines().collect();
    // Cut after any of its lines.
    for end in 2..lines.len() - 2 {
        let line = refused(&lines[..end].join("\n"));
        assert!(line.contains(&format!("ends after {} of {} events", end - 2, EVENTS.len())), "{line}");
    }
    // Without any one of its events.
    for gone in 2..2 + EVENTS.len() {
        let rest: Vec<_> = lines.iter().enumerate().filter(|(nr, _)| *nr != gone).map(|(_, line)| *line).collect();
        assert!(refused(&rest.join("\n")).contains("some are missing"));
    }
    for (bad, word) in [
        ("cpu=1 ns=1000 kind=gupp a=0x4000000000 b=0x1", "\"gupp\" is no kind of event"),
        ("cpu=64 ns=1000 kind=gup a=0x4000000000 b=0x1", "CPU 64; there are at most 64"),
        ("cpu=1 ns=10x0 kind=gup a=0x4000000000 b=0x1", "a number after ns="),
        ("cpu=1 ns=1000 kind=gup a=0x4000000000", "a number after b="),
        ("cpu=1 ns=1000 ki", "a word after kind="),
        ("cpu=1 ns=1000 kind=gup a=0x10000000000000000 b=0x1", "a number after a="),
    ] {
        let line = refused(&console(&[EVENTS[0], bad]));
        assert!(line.contains("line 4") && line.contains(word), "{line}");
    }
    assert!(refused(&console(&[])).contains("nothing was recorded"));
    assert!(refused("@trace events=5 shown= overwritten=0 lost=0 cpus=1\n").contains("a number after shown="));
}

#[test]
fn slices_nest_and_arrows_go_from_the_sender_to_who_answered() {
    let (_, story) = story(EVENTS);
    let names: Vec<_> =
        story.slices.iter().map(|slice| (slice.cpu, slice.span.word(), slice.start, slice.end)).collect();
    for slice in
        [(0, "zap", 1150, 1280), (0, "shootdown", 1350, 41900), (1, "gup", 1000, 1500), (1, "handler", 1600, 1700)]
    {
        assert!(names.contains(&slice), "{slice:?} is not in {names:?}");
    }
    let arrows: Vec<_> = story.arrows.iter().map(|arrow| (arrow.from, arrow.to, arrow.sent, arrow.received)).collect();
    // CPU 2 was at it already, and answered before its sender had written down that it asked.
    assert_eq!(arrows, [(0, 1, 1400, 1600), (0, 2, 1390, 1390)]);
    assert_eq!(story.unanswered, 0);
}

/// No two slices of a CPU overlap but where one contains the other.
fn nest(story: &Story) {
    for (nr, one) in story.slices.iter().enumerate() {
        assert!(one.start <= one.end);
        for other in story.slices[nr + 1..].iter().filter(|other| other.cpu == one.cpu) {
            let apart = one.end <= other.start || other.end <= one.start;
            let within =
                |inner: &slices::Slice, outer: &slices::Slice| outer.start <= inner.start && inner.end <= outer.end;
            assert!(apart || within(one, other) || within(other, one), "{one:?} and {other:?}");
        }
    }
}

/// Any part of a capture, and any order of kinds, gives slices that nest and arrows that viewers can bind.
// covers: T2
#[test]
fn every_flow_event_lies_inside_a_slice() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = move |limit: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 8) % limit
    };
    let mut cases: Vec<Vec<String>> = vec![EVENTS.iter().map(|event| event.to_string()).collect()];
    for _ in 0..400 {
        let nr = 1 + below(40);
        let event = |_| {
            let kind = Kind::ALL[below(Kind::ALL.len() as u64) as usize].word();
            format!("cpu={} ns={} kind={kind} a={:#x} b={:#x}", below(4), below(200), below(4), below(6))
        };
        cases.push((0..nr).map(event).collect());
    }
    let mut flows = 0;
    for events in &cases {
        let (capture, story) = story(&events.iter().map(String::as_str).collect::<Vec<_>>());
        nest(&story);
        let file = json(&capture, &story);
        flows += check_flows(&file);
        drawing::svg(&capture, &story);
    }
    assert!(flows > 10, "{flows} arrows were looked at");
    let (capture, story) = story(EVENTS);
    assert_eq!(check_flows(&json(&capture, &story)), 2, "both interrupts of the example are arrows");
}

/// How many arrows there are, each with both its ends, in this order, each inside a slice of its thread.
fn check_flows(file: &Value) -> usize {
    let all = file["traceEvents"].as_array().expect("a list of events");
    let of = |phase: &str| all.iter().filter(|event| event["ph"] == phase).collect::<Vec<_>>();
    let time = |event: &Value, key: &str| event[key].as_f64().expect("a number");
    let inside = |end: &Value| {
        of("X").iter().any(|slice| {
            let start = time(slice, "ts");
            slice["tid"] == end["tid"] && start <= time(end, "ts") && time(end, "ts") < start + time(slice, "dur")
        })
    };
    let (starts, ends) = (of("s"), of("f"));
    assert_eq!(starts.len(), ends.len());
    for start in &starts {
        let end = ends.iter().find(|end| end["id"] == start["id"]).expect("its end");
        assert!(inside(start) && inside(end) && end["bp"] == "e", "{start} and {end}");
        assert!(time(start, "ts") <= time(end, "ts"), "{start} comes after {end}");
    }
    starts.len()
}

#[test]
fn the_page_needs_no_other_file_and_says_what_its_words_mean() {
    let (capture, _) = story(EVENTS);
    let [svg, page, json] = draw(&capture).unwrap_or_else(|error| panic!("{error:#}"));
    for text in [&svg, &page] {
        let outside = text.replace("http://www.w3.org/2000/svg", "");
        assert!(!outside.contains("http") && !outside.contains("src=") && !outside.contains("<script"), "{outside}");
        for word in ["stale 100000", "ipi 1 #5", "request 5: 0.200 us on its way", "CPU 2"] {
            assert!(text.contains(word), "{word:?} is not in {text}");
        }
    }
    assert!(page.contains(&svg) && page.contains("the references go back"));
    assert!(svg.contains("stroke-dasharray"), "a silence of 40 us is drawn");
    assert!(serde_json::from_str::<Value>(&json).is_ok());
}

#[test]
fn three_files_or_none() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("a.b.log");
    std::fs::write(&file, console(EVENTS)).unwrap();
    let cli = |out: Option<PathBuf>| Cli { file: file.clone(), out };
    let names: Vec<_> = places(&cli(None)).unwrap().into_iter().map(|(path, _)| path).collect();
    assert_eq!(names, ["a.b.svg", "a.b.html", "a.b.json"].map(|name| scratch.path().join(name)));
    std::fs::create_dir(scratch.path().join("a.b.json")).unwrap();
    let error = format!("{:#}", places(&cli(None)).unwrap_err());
    assert!(error.contains("is a directory"), "{error}");
    let left: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}: nothing unfinished is left");
    assert!(places(&cli(Some("/nowhere/at/all".into()))).is_err());
}
