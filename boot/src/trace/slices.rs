//! What events tell together: what took time on each CPU, and which interrupt was answered where.

use mm::machine::CpuId;
use mm::trace::lanes::Words;
use mm::trace::{Event, Kind, Role, Span};

/// Something that took time on a CPU. Of two on one CPU one contains the other, or they have no moment in common but an end.
#[derive(Clone, Debug)]
pub struct Slice {
    pub cpu: CpuId,
    pub span: Span,
    /// Nanoseconds, as the events have them.
    pub start: u64,
    pub end: u64,
    /// The events that begin and end it, by number; those next to it where its own are not in the capture.
    pub first: usize,
    pub last: usize,
    /// How many others it is in.
    pub depth: usize,
    /// What was said at its beginning.
    pub words: String,
}

impl Slice {
    /// Is this moment in it? Its end is not: a slice that took no time contains nothing.
    pub fn contains(&self, cpu: CpuId, ns: u64) -> bool {
        self.cpu == cpu && self.start <= ns && ns < self.end
    }
}

/// An interrupt from one CPU to another, and the run of the handler that answered it.
#[derive(Clone, Debug)]
pub struct Arrow {
    pub from: CpuId,
    pub to: CpuId,
    pub request: u64,
    /// When it was sent and received. Where the receiver was at it already when it was asked, it is said to be sent when it was
    /// received: what says so is the number of the request, not the later stamp of the sender.
    pub sent: u64,
    pub received: u64,
    /// The events, by number.
    pub sent_at: usize,
    pub received_at: usize,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Story {
    pub slices: Vec<Slice>,
    pub arrows: Vec<Arrow>,
    /// Interrupts of which no answer is in the capture.
    pub unanswered: usize,
}

impl Story {
    /// What these events tell, which are in the order of their times.
    pub fn of(events: &[Event]) -> Self {
        let mut story = Self::default();
        let mut cpus: Vec<CpuId> = events.iter().map(|event| event.cpu).collect();
        cpus.sort_unstable();
        cpus.dedup();
        for cpu in cpus {
            story.slices.extend(slices_of(events, cpu));
        }
        for (nr, event) in events.iter().enumerate().filter(|(_, event)| event.mark.kind == Kind::Sent) {
            let [to, request] = event.mark.arguments;
            // Numbers grow, so the first answer that is high enough is the one, wherever it stands.
            let answers = |(_, other): &(usize, &Event)| {
                other.mark.kind == Kind::Received && other.cpu as u64 == to && other.mark.arguments[0] >= request
            };
            let Some((received_at, answer)) = events.iter().enumerate().find(answers) else {
                story.unanswered += 1;
                continue;
            };
            let (sent, received) = (event.ns.min(answer.ns), answer.ns);
            let (from, to) = (event.cpu, answer.cpu);
            story.arrows.push(Arrow { from, to, request, sent, received, sent_at: nr, received_at });
        }
        story
    }

    /// The innermost slice at a moment.
    pub fn around(&self, cpu: CpuId, ns: u64) -> Option<&Slice> {
        self.slices.iter().filter(|slice| slice.contains(cpu, ns)).max_by_key(|slice| slice.depth)
    }
}

/// One CPU's. What began before the first event begins with it, or with what it is in; what has not ended ends with the last.
fn slices_of(events: &[Event], cpu: CpuId) -> Vec<Slice> {
    let (Some(first), Some(last)) = (events.first(), events.last()) else { return Vec::new() };
    let mut done: Vec<Slice> = Vec::new();
    let mut open: Vec<Slice> = Vec::new();
    for (nr, event) in events.iter().enumerate().filter(|(_, event)| event.cpu == cpu) {
        match event.mark.kind.role() {
            Role::Moment => {}
            Role::Begins(span) => {
                let (start, depth, words) = (event.ns, open.len(), Words(event.mark).to_string());
                open.push(Slice { cpu, span, start, end: start, first: nr, last: nr, depth, words });
            }
            Role::Ends(span) => {
                if let Some(at) = open.iter().rposition(|slice| slice.span == span) {
                    // Whatever is still open in it has lost its end, and ends with it.
                    done.extend(open.drain(at..).map(|slice| Slice { end: event.ns, last: nr, ..slice }));
                } else {
                    let (start, first) = open.last().map_or((first.ns, 0), |slice| (slice.start, slice.first));
                    let (depth, words) = (open.len(), Words(event.mark).to_string());
                    // What is done and lies in it is one deeper.
                    let inside = done.iter_mut().filter(|slice| slice.start >= start && slice.depth >= depth);
                    inside.for_each(|slice| slice.depth += 1);
                    done.push(Slice { cpu, span, start, end: event.ns, first, last: nr, depth, words });
                }
            }
        }
    }
    let at_end = events.len() - 1;
    done.extend(open.into_iter().map(|slice| Slice { end: last.ns, last: at_end, ..slice }));
    done
}
