//! Simulated persistent memory for hosts: remembers stores, write-backs and fences, and gives the images that a power
//! cut may leave.
//!
//! # The model
//! A store goes to the cache. The cache may write a line to the medium at any moment; it must have done so when a
//! fence follows a write-back that follows the store. Stores to one line reach the medium in their order; words of
//! eight bytes within one store in any order, each as a whole. So just before a fence each line with stores that are
//! not yet durable holds one of: what is durable, and that plus the first, the first two, … of its later stores, the
//! last of them perhaps in part. Lines are independent of each other.
//!
//! The states that are possible at some earlier moment since the last fence are among those just before the next
//! one, so that looking there is looking everywhere. What was acknowledged by then is less at the earlier moment,
//! which makes the check at the fence the stricter one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fs::error::FsError;
use fs::pmem::{LINE, Pmem, check_bounds};
use fs::presence::Presence;
use mm::sync::Mutex;

/// What was done to the memory.
#[derive(Clone, Debug)]
enum Event {
    Store(u64, Vec<u8>),
    WriteBack(u64, u64),
    Fence,
    Mark(u64),
}

/// How often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Calls of `store`.
    pub stores: u64,
    /// Cache lines written back.
    pub lines: u64,
    /// Fences.
    pub fences: u64,
}

#[derive(Default)]
struct Inner {
    bytes: Vec<u8>,
    stats: Stats,
    /// `None`: nothing is remembered.
    log: Option<Vec<Event>>,
    bad: Option<(u64, u64)>,
    /// Is nothing confirmed any more?
    unconfirmed: bool,
}

/// The memory.
#[derive(Default)]
pub struct SimPmem {
    inner: Mutex<Inner>,
}

impl SimPmem {
    /// `len` bytes of zeroes.
    pub fn new(len: usize) -> Self {
        Self::from_bytes(vec![0; len])
    }
    /// An image.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { inner: Mutex::new(Inner { bytes, ..Inner::default() }) }
    }
    /// What loads see now.
    pub fn bytes(&self) -> Vec<u8> {
        self.inner.lock().bytes.clone()
    }
    /// What was done so far.
    pub fn stats(&self) -> Stats {
        self.inner.lock().stats
    }
    /// Remembers from now on. What is there now counts as durable.
    pub fn record(&self) -> Recorder {
        let mut inner = self.inner.lock();
        inner.log = Some(Vec::new());
        Recorder { durable: inner.bytes.clone(), lines: BTreeMap::new() }
    }
    /// Notes that the caller has been told something: `number` of it survives from here on.
    pub fn mark(&self, number: u64) {
        if let Some(log) = &mut self.inner.lock().log {
            log.push(Event::Mark(number));
        }
    }
    fn take_events(&self) -> Vec<Event> {
        self.inner.lock().log.as_mut().map(std::mem::take).unwrap_or_default()
    }
    /// From now on the bytes `from..to` cannot be read, until they are renewed.
    pub fn break_range(&self, from: u64, to: u64) {
        self.inner.lock().bad = Some((from, to));
    }
}

impl SimPmem {
    /// From now on no fence is confirmed, as by a host that cannot write its file.
    pub fn fail_fences(&self) {
        self.inner.lock().unconfirmed = true;
    }
}

impl Pmem for SimPmem {
    fn len_bytes(&self) -> u64 {
        self.inner.lock().bytes.len() as u64
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), FsError> {
        let inner = self.inner.lock();
        check_bounds(offset, buf.len(), inner.bytes.len() as u64)?;
        if inner.bad.is_some_and(|(from, to)| offset < to && from < offset + buf.len() as u64) {
            return Err(FsError::Media(offset));
        }
        buf.copy_from_slice(&inner.bytes[offset as usize..][..buf.len()]);
        Ok(())
    }
    fn store(&self, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        let mut inner = self.inner.lock();
        check_bounds(offset, bytes.len(), inner.bytes.len() as u64)?;
        inner.bytes[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        inner.stats.stores += 1;
        if let Some(log) = &mut inner.log {
            log.push(Event::Store(offset, bytes.to_vec()));
        }
        Ok(())
    }
    fn renew(&self, offset: u64, len: u64) -> Result<(), FsError> {
        let mut inner = self.inner.lock();
        // All of what is bad, or nothing: a test breaks whole blocks.
        if inner.bad.is_some_and(|(from, to)| offset <= from && to <= offset + len) {
            inner.bad = None;
        }
        Ok(())
    }
    fn write_back(&self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let (first, last) = (offset / LINE, (offset + len - 1) / LINE);
        let mut inner = self.inner.lock();
        inner.stats.lines += last - first + 1;
        if let Some(log) = &mut inner.log {
            log.push(Event::WriteBack(first, last));
        }
    }
    fn fence(&self) -> Result<(), FsError> {
        let mut inner = self.inner.lock();
        if inner.unconfirmed {
            return Err(FsError::NotDurable);
        }
        inner.stats.fences += 1;
        if let Some(log) = &mut inner.log {
            log.push(Event::Fence);
        }
        Ok(())
    }
}

/// Memory that leaves without a word: from some access on, loads give 0, and stores and fences do nothing. An access is one
/// of these, or the question whether it is there.
pub struct Leaves {
    sim: Arc<SimPmem>,
    /// How many accesses it is there for still.
    stays: AtomicU64,
    missed: AtomicBool,
}

impl Leaves {
    /// Leaves just before access `access`, counted from 0.
    pub fn before(sim: &Arc<SimPmem>, access: u64) -> Arc<Self> {
        Arc::new(Self { sim: Arc::clone(sim), stays: AtomicU64::new(access), missed: AtomicBool::new(false) })
    }
    /// Leaves just before access `access`, counted from now on.
    pub fn leave_before(&self, access: u64) {
        self.stays.store(access, Ordering::SeqCst);
    }
    /// Was it there for every access so far, but for starting to write back?
    pub fn was_here(&self) -> bool {
        !self.missed.load(Ordering::SeqCst)
    }
    /// One access; says whether the memory is there for it.
    fn access(&self) -> bool {
        let step = |left: u64| left.checked_sub(1);
        let is_there = self.stays.fetch_update(Ordering::SeqCst, Ordering::SeqCst, step).is_ok();
        self.missed.fetch_or(!is_there, Ordering::SeqCst);
        is_there
    }
}

impl Presence for Leaves {
    fn is_there(&self) -> bool {
        self.access()
    }
}

impl Pmem for Leaves {
    fn len_bytes(&self) -> u64 {
        self.sim.len_bytes()
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), FsError> {
        if self.access() {
            return self.sim.read(offset, buf);
        }
        buf.fill(0);
        Ok(())
    }
    fn store(&self, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        if self.access() { self.sim.store(offset, bytes) } else { Ok(()) }
    }
    fn write_back(&self, offset: u64, len: u64) {
        // It has no answer that could be believed: missing it alone is no reason to say anything.
        let missed = self.missed.load(Ordering::SeqCst);
        if self.access() {
            self.sim.write_back(offset, len);
        }
        self.missed.store(missed, Ordering::SeqCst);
    }
    fn fence(&self) -> Result<(), FsError> {
        if self.access() { self.sim.fence() } else { Ok(()) }
    }
}

/// What is durable, and what is not yet.
pub struct Recorder {
    durable: Vec<u8>,
    lines: BTreeMap<u64, Line>,
}

/// How many images are looked at.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Where a point has at most this many images (torn stores not counted), all of them are looked at; else this
    /// many, chosen at random.
    pub per_point: u64,
    /// Besides, this many with one or more torn stores.
    pub torn: u64,
    /// Of the random choices.
    pub seed: u64,
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Points: fences, and the end.
    pub points: u64,
    /// Points of which all images were looked at.
    pub exhausted: u64,
    /// Images.
    pub images: u64,
}

/// Stores to one line that are not yet durable.
#[derive(Default)]
struct Line {
    /// Place in the line, and bytes; in order.
    stores: Vec<(usize, Vec<u8>)>,
    /// The first so many are written back.
    written_back: usize,
}

/// A small random-number generator (xorshift64*), so that a seed gives the same images on every host.
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        (self.next_u64() >> 11) % end
    }
}

struct Walk<'v> {
    state: &'v mut Recorder,
    limits: Limits,
    random: Random,
    counts: Counts,
    mark: u64,
    visit: &'v mut dyn FnMut(&[u8], u64) -> bool,
}

impl Recorder {
    /// Goes through what was done to `sim` since the last call without looking: what is durable, and what is still in
    /// the cache.
    pub fn skip(&mut self, sim: &SimPmem) {
        for event in sim.take_events() {
            self.follow(event);
        }
    }

    fn follow(&mut self, event: Event) {
        match event {
            Event::Store(offset, bytes) => self.store(offset, &bytes),
            Event::WriteBack(first, last) => {
                let lines = self.lines.range_mut(first..=last);
                lines.for_each(|(_, line)| line.written_back = line.stores.len());
            }
            Event::Fence => self.fence(),
            Event::Mark(_) => {}
        }
    }

    /// Goes through what was done to `sim` since the last call. At each fence, and at the end, calls `visit` with
    /// images that a power cut may leave there and with the latest mark before it (0: none since the last call),
    /// until it answers `false`.
    pub fn crash_images(&mut self, sim: &SimPmem, limits: Limits, visit: &mut dyn FnMut(&[u8], u64) -> bool) -> Counts {
        let random = Random::new(limits.seed);
        let mut walk = Walk { state: self, limits, random, counts: Counts::default(), mark: 0, visit };
        for event in sim.take_events() {
            match event {
                Event::Mark(mark) => walk.mark = mark,
                Event::Fence if !walk.point() => return walk.counts,
                event => walk.state.follow(event),
            }
        }
        walk.point();
        walk.counts
    }

    fn store(&mut self, offset: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let inside = (at % LINE) as usize;
            let len = (LINE as usize - inside).min(bytes.len() - done);
            let line = self.lines.entry(at / LINE).or_default();
            line.stores.push((inside, bytes[done..done + len].to_vec()));
            done += len;
        }
    }

    fn fence(&mut self) {
        for (&number, line) in &mut self.lines {
            for (at, bytes) in line.stores.drain(..line.written_back) {
                self.durable[(number * LINE) as usize + at..][..bytes.len()].copy_from_slice(&bytes);
            }
            line.written_back = 0;
        }
        self.lines.retain(|_, line| !line.stores.is_empty());
    }
}

impl Walk<'_> {
    /// Looks at the images of this point; answers whether to go on.
    fn point(&mut self) -> bool {
        self.counts.points += 1;
        let sizes: Vec<u64> = self.state.lines.values().map(|line| line.stores.len() as u64 + 1).collect();
        let all = sizes.iter().try_fold(1_u64, |product, &size| product.checked_mul(size));
        let all = all.filter(|&all| all <= self.limits.per_point);
        let mut go_on = true;
        if let Some(all) = all {
            self.counts.exhausted += 1;
            for nr in 0..all {
                let mut rest = nr;
                let choice = sizes.iter().map(|&size| {
                    let prefix = rest % size;
                    rest /= size;
                    prefix
                });
                let choice: Vec<_> = choice.collect();
                go_on = go_on && self.look(&choice, false);
            }
        } else {
            for nr in 0..self.limits.per_point {
                let choice = self.choose(&sizes, nr);
                go_on = go_on && self.look(&choice, false);
            }
        }
        if !sizes.is_empty() {
            for nr in 0..self.limits.torn {
                let choice = self.choose(&sizes, 2 + nr);
                go_on = go_on && self.look(&choice, true);
            }
        }
        go_on
    }

    /// For each line how many of its stores survive: none, all, all or none of each, or anything.
    fn choose(&mut self, sizes: &[u64], nr: u64) -> Vec<u64> {
        let odd = self.random.below(sizes.len() as u64) as usize;
        let pick = |(line, &size): (usize, &u64)| match nr {
            0 => 0,
            1 => size - 1,
            nr if nr % 4 == 0 => (size - 1) * u64::from(line == odd),
            nr if nr % 4 == 1 => (size - 1) * u64::from(line != odd),
            nr if nr % 4 == 2 => (size - 1) * self.random.below(2),
            _ => self.random.below(size),
        };
        sizes.iter().enumerate().map(pick).collect()
    }

    fn look(&mut self, choice: &[u64], torn: bool) -> bool {
        let mut image = self.state.durable.clone();
        for ((&number, line), &prefix) in self.state.lines.iter().zip(choice) {
            let base = (number * LINE) as usize;
            for (at, bytes) in &line.stores[..prefix as usize] {
                image[base + at..][..bytes.len()].copy_from_slice(bytes);
            }
            if torn && let Some((at, bytes)) = line.stores.get(prefix as usize) {
                let words = self.random.next_u64();
                for (nr, byte) in (*at..).zip(bytes) {
                    if words & 1 << (nr / 8) != 0 {
                        image[base + nr] = *byte;
                    }
                }
            }
        }
        self.counts.images += 1;
        (self.visit)(&image, self.mark)
    }
}
