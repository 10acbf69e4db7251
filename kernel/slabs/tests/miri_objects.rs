//! What is handed out is nobody else's, large and aligned enough; what comes back can be handed out again, and pages go back
//! where they came from.

use std::alloc::Layout;
use std::collections::BTreeSet;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::mpsc;

use proptest::prelude::*;
use slabs::class::{Class, MAX_ALIGN, MAX_BYTES};
use slabs::{PAGE_BYTES, Pages, Slabs};

const PAGE: Layout = match Layout::from_size_align(PAGE_BYTES, PAGE_BYTES) {
    Ok(layout) => layout,
    Err(_) => panic!("a page is a layout"),
};

/// So many pages, and the addresses of those that are out.
struct Host {
    most: usize,
    out: Mutex<BTreeSet<NonNull<u8>>>,
}

// SAFETY: the pages are the host's alone.
unsafe impl Send for Host {}
// SAFETY: as above; they are behind a lock.
unsafe impl Sync for Host {}

impl Host {
    fn new(most: usize) -> Self {
        Self { most, out: Mutex::default() }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // What the slabs kept. After a test that panicked, too: nobody looks into it any more.
        let out = self.out.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        // SAFETY: they were allocated with this layout.
        out.iter().for_each(|page| unsafe { std::alloc::dealloc(page.as_ptr(), PAGE) });
    }
}

// SAFETY: the host's allocator answers memory that is nobody else's, of that size and alignment.
unsafe impl Pages for Host {
    fn page(&self) -> Option<NonNull<u8>> {
        let mut out = self.out.lock().unwrap();
        (out.len() < self.most).then(|| {
            // SAFETY: the layout is not empty.
            let page = NonNull::new(unsafe { std::alloc::alloc(PAGE) }).unwrap();
            out.insert(page);
            page
        })
    }

    unsafe fn give_back(&self, page: NonNull<u8>) {
        assert!(self.out.lock().unwrap().remove(&page), "{page:?} is not out");
        // SAFETY: it was allocated with this layout.
        unsafe { std::alloc::dealloc(page.as_ptr(), PAGE) };
    }
}

/// An object, full of a byte of its own.
struct Object {
    place: NonNull<u8>,
    layout: Layout,
    fill: u8,
}

// SAFETY: the object is its owner's alone.
unsafe impl Send for Object {}

fn class(layout: &Layout) -> Class {
    Class::of(layout).expect("within what the classes serve")
}

fn take<const CPUS: usize>(slabs: &Slabs<Host, CPUS>, cpu: usize, layout: Layout, fill: u8) -> Option<Object> {
    // SAFETY: each CPU's number is used by one thread alone.
    let place = unsafe { slabs.alloc(cpu, class(&layout)) }?;
    assert!(place.as_ptr().addr().is_multiple_of(layout.align()), "{place:?} for {layout:?}");
    // SAFETY: the object is ours, and so large.
    unsafe { place.write_bytes(fill, layout.size()) };
    Some(Object { place, layout, fill })
}

fn give<const CPUS: usize>(slabs: &Slabs<Host, CPUS>, cpu: usize, object: Object) {
    let Object { place, layout, fill } = object;
    // SAFETY: the object is ours, and all of it was written.
    let bytes = unsafe { std::slice::from_raw_parts(place.as_ptr(), layout.size()) };
    assert!(bytes.iter().all(|&byte| byte == fill), "somebody else wrote to {place:?} of {layout:?}");
    // SAFETY: as in `take`; it came from there, for the same class.
    unsafe { slabs.free(cpu, class(&layout), place) };
}

/// Nothing is in use: the CPUs give back what they have, and each class keeps a page at most.
fn settle<const CPUS: usize>(slabs: &Slabs<Host, CPUS>) {
    assert_eq!(slabs.usage().used_bytes, 0);
    // SAFETY: no other thread uses these CPUs' numbers now.
    (0..CPUS).for_each(|cpu| unsafe { slabs.drain(cpu) });
    assert!(slabs.usage().nr_pages <= Class::all().count() as u64, "{:?}", slabs.usage());
}

#[test]
fn each_size_has_the_smallest_class_that_serves_it() {
    for size in (0..=MAX_BYTES).step_by(if cfg!(miri) { 101 } else { 1 }) {
        let class = class(&Layout::from_size_align(size, 8).unwrap());
        assert!(class.bytes() >= size);
        let smaller = Class::all().find(|other| other.bytes() >= size).unwrap();
        assert_eq!(class, smaller, "{size}");
    }
    for align in [16, 32, MAX_ALIGN] {
        let class = class(&Layout::from_size_align(align + 1, align).unwrap());
        assert_eq!((class.bytes() % align, class.bytes() >= 2 * align), (0, true), "{align}");
    }
    for (size, align) in [(MAX_BYTES + 1, 8), (8, 2 * MAX_ALIGN), (2000, MAX_ALIGN)] {
        assert_eq!(Class::of(&Layout::from_size_align(size, align).unwrap()), None, "{size} {align}");
    }
}

#[test]
fn where_there_is_no_page_there_is_no_object_and_afterwards_there_is() {
    let slabs: Slabs<Host, 1> = Slabs::new(Host::new(1));
    let layout = Layout::new::<[u8; 1000]>();
    let all: Vec<Object> = std::iter::from_fn(|| take(&slabs, 0, layout, 1)).collect();
    assert_eq!((all.len(), slabs.usage().used_bytes), (4, 4 * 1008));
    assert!(take(&slabs, 0, Layout::new::<u64>(), 1).is_none(), "another class");
    all.into_iter().for_each(|object| give(&slabs, 0, object));
    // SAFETY: nobody else uses this CPU's number.
    unsafe { slabs.drain(0) };
    assert!(take(&slabs, 0, layout, 2).map(|object| give(&slabs, 0, object)).is_some());
    assert_eq!(slabs.usage().nr_pages, 1);
}

#[test]
#[should_panic(expected = "what is no object of 64 bytes")]
fn what_never_was_an_object_is_seen() {
    let slabs: Slabs<Host, 1> = Slabs::new(Host::new(2));
    let object = take(&slabs, 0, Layout::new::<[u8; 64]>(), 3).unwrap();
    // SAFETY: inside the page; this breaks the contract of `free`, which is what is tested.
    let wrong = unsafe { object.place.add(16) };
    // SAFETY: it is memory of ours that nobody uses, if not an object.
    unsafe {
        slabs.free(0, class(&object.layout), wrong);
        slabs.drain(0);
    }
}

/// Objects that one thread takes and another gives back.
#[test]
fn what_is_taken_on_one_cpu_is_given_back_on_another() {
    const CPUS: usize = 3;
    let rounds = if cfg!(miri) { 15 } else { 20_000 };
    let slabs: Slabs<Host, CPUS> = Slabs::new(Host::new(10_000));
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..CPUS).map(|_| mpsc::sync_channel::<Object>(64)).unzip();
    std::thread::scope(|scope| {
        let slabs = &slabs;
        for (cpu, receiver) in receivers.into_iter().enumerate() {
            let next = senders[(cpu + 1) % CPUS].clone();
            scope.spawn(move || {
                for round in 0..rounds {
                    let size = (round * 37 + cpu * 11) % if cfg!(miri) { 50 } else { 400 };
                    let layout = Layout::from_size_align(size, 8).unwrap();
                    let object = take(slabs, cpu, layout, (round % 251) as u8).expect("pages are left");
                    // Where the neighbour's room is full it comes back at once.
                    if let Err(error) = next.try_send(object) {
                        let (mpsc::TrySendError::Full(object) | mpsc::TrySendError::Disconnected(object)) = error;
                        give(slabs, cpu, object);
                    }
                    receiver.try_iter().for_each(|object| give(slabs, cpu, object));
                }
                drop(next);
                receiver.iter().for_each(|object| give(slabs, cpu, object));
            });
        }
        drop(senders);
    });
    settle(&slabs);
}

/// Bytes of the largest object that a property asks for, less one.
const LARGEST: usize = if cfg!(miri) { 300 } else { 1_900 };

#[derive(Clone, Debug)]
enum Step {
    Take { cpu: usize, size: usize, align: usize },
    Give { cpu: usize, which: prop::sample::Index },
    Drain(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let cpu = 0..2usize;
    let size = prop_oneof![4 => 0..LARGEST / 10, 1 => 0..LARGEST];
    prop_oneof![
        6 => (cpu.clone(), size, 0..5u32).prop_map(|(cpu, size, align)| Step::Take { cpu, size, align: 1 << align }),
        5 => (cpu.clone(), any::<prop::sample::Index>()).prop_map(|(cpu, which)| Step::Give { cpu, which }),
        1 => cpu.prop_map(Step::Drain),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 1 } else { 200 }, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn objects_never_overlap_and_pages_come_back(
        steps in prop::collection::vec(step(), 0..if cfg!(miri) { 30 } else { 2_000 }),
        most in prop_oneof![Just(4usize), Just(1000)],
    ) {
        let slabs: Slabs<Host, 2> = Slabs::new(Host::new(most));
        let mut live: Vec<Object> = Vec::new();
        let mut used = 0;
        for (nth, step) in steps.into_iter().enumerate() {
            match step {
                Step::Take { cpu, size, align } => {
                    let layout = Layout::from_size_align(size, align).unwrap();
                    if let Some(object) = take(&slabs, cpu, layout, nth as u8) {
                        used += class(&layout).bytes() as u64;
                        live.push(object);
                    }
                }
                Step::Give { cpu, which } if !live.is_empty() => {
                    let object = live.swap_remove(which.index(live.len()));
                    used -= class(&object.layout).bytes() as u64;
                    give(&slabs, cpu, object);
                }
                Step::Give { .. } => {}
                // SAFETY: this thread is both CPUs.
                Step::Drain(cpu) => unsafe { slabs.drain(cpu) },
            }
            prop_assert_eq!(slabs.usage().used_bytes, used);
            prop_assert_eq!(slabs.usage().nr_pages as usize, slabs.pages().out.lock().unwrap().len());
        }
        live.into_iter().for_each(|object| give(&slabs, 0, object));
        settle(&slabs);
    }
}
