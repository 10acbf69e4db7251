//! The exhaustive search visits every interleaving once: counted by other means.
#![cfg(not(any(loom, shuttle)))]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use explorer::conductor::{Act, Done, Program, conduct, step};
use explorer::schedule::Schedule;
use explorer::strategy::{Pilot, Tree};

/// Runs CPUs of so many parts each, between which there is a mark, under one pilot; the order in which the parts came.
fn order(parts: &[usize], pilot: Pilot) -> (String, Done) {
    let order = Rc::new(RefCell::new(String::new()));
    let program = |(cpu, parts): (usize, &usize)| -> Program {
        let (order, parts) = (order.clone(), *parts);
        Box::new(move || {
            for part in 0..parts {
                if part > 0 {
                    step("between two parts");
                }
                order.borrow_mut().push((b'a' + cpu as u8) as char);
            }
        })
    };
    let programs = parts.iter().enumerate().map(program).collect();
    let done = conduct(Act { programs, machine: None, fetched: Vec::new() }, pilot, false);
    assert_eq!(done.struck, None);
    (order.take(), done)
}

/// All orders that a search within a bound visits, and how many schedules that took.
fn visited(parts: &[usize], preemptions: u32) -> (BTreeSet<String>, usize) {
    let (mut orders, mut nr) = (BTreeSet::new(), 0);
    let mut tree = Tree::new(preemptions);
    loop {
        let (order, done) = order(parts, Pilot::Exhaustive(tree));
        orders.insert(order);
        nr += 1;
        let Pilot::Exhaustive(back) = done.pilot else { panic!("another pilot comes back") };
        tree = back;
        if !tree.advance() {
            return (orders, nr);
        }
    }
}

/// Every order of the parts, made without the explorer.
fn all(parts: &[usize], so_far: &str, orders: &mut BTreeSet<String>) {
    if parts.iter().all(|left| *left == 0) {
        orders.insert(so_far.into());
    }
    for cpu in (0..parts.len()).filter(|cpu| parts[*cpu] > 0) {
        let mut left = parts.to_vec();
        left[cpu] -= 1;
        all(&left, &format!("{so_far}{}", (b'a' + cpu as u8) as char), orders);
    }
}

/// How often a CPU that had something left to do did not go on.
fn preemptions(parts: &[usize], order: &str) -> usize {
    let mut left = parts.to_vec();
    let cpus: Vec<usize> = order.bytes().map(|letter| (letter - b'a') as usize).collect();
    cpus.iter()
        .zip(cpus.iter().skip(1).map(Some).chain([None]))
        .filter(|(cpu, next)| {
            left[**cpu] -= 1;
            next.is_some_and(|next| next != *cpu) && left[**cpu] > 0
        })
        .count()
}

fn factorial(n: usize) -> usize {
    (1..=n).product()
}

#[test]
fn every_interleaving_is_visited_once() {
    for parts in [&[3, 4][..], &[1, 1, 1], &[2, 3, 2], &[5]] {
        let mut expected = BTreeSet::new();
        all(parts, "", &mut expected);
        let multinomial = factorial(parts.iter().sum()) / parts.iter().map(|nr| factorial(*nr)).product::<usize>();
        assert_eq!(expected.len(), multinomial, "{parts:?}");
        let (orders, nr) = visited(parts, u32::MAX);
        assert_eq!(orders, expected, "{parts:?}");
        assert_eq!(nr, multinomial, "{parts:?}: no order twice");
    }
}

#[test]
fn a_bound_leaves_out_what_has_more_preemptions_and_nothing_else() {
    let parts = [3, 3, 2];
    let mut every = BTreeSet::new();
    all(&parts, "", &mut every);
    for bound in 0..4 {
        let expected: BTreeSet<_> = every.iter().filter(|order| preemptions(&parts, order) <= bound).cloned().collect();
        let (orders, nr) = visited(&parts, bound as u32);
        assert_eq!(orders, expected, "at most {bound}");
        assert_eq!(nr, expected.len(), "at most {bound}: no order twice");
    }
}

/// What is replayed comes in the same order, from its departures alone.
#[test]
fn departures_are_all_that_a_schedule_is() {
    let parts = [3, 2, 2];
    let mut tree = Tree::new(u32::MAX);
    loop {
        let (first, done) = order(&parts, Pilot::Exhaustive(tree));
        let text = done.schedule.to_string();
        let schedule: Schedule = text.parse().unwrap();
        let (again, replayed) = order(&parts, Pilot::Replay(schedule));
        assert_eq!((again, replayed.schedule), (first, done.schedule), "{text}");
        let Pilot::Exhaustive(back) = done.pilot else { panic!("another pilot comes back") };
        tree = back;
        if !tree.advance() {
            return;
        }
    }
}
