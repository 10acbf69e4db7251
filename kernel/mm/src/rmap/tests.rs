//! The tree against a plain list, and the number of nodes that its verbs look at.

use proptest::prelude::*;

use super::*;

impl<V> IntervalTree<V> {
    /// Every invariant of the tree: order, balance, largest ends, and no node lost.
    fn check(&self) {
        fn below<V>(tree: &IntervalTree<V>, index: u32, seen: &mut Vec<u32>) -> (u8, u64) {
            if index == NIL {
                return (0, 0);
            }
            let node = tree.at(index);
            assert!(node.value.is_some(), "a free place is linked");
            let (left_height, left_max) = below(tree, node.left, seen);
            if let Some(&before) = seen.last() {
                assert_eq!(tree.order(before, index), Ordering::Less, "out of order");
            }
            seen.push(index);
            let (right_height, right_max) = below(tree, node.right, seen);
            assert!(left_height.abs_diff(right_height) <= 1, "out of balance");
            assert_eq!(node.height, 1 + left_height.max(right_height));
            assert_eq!(node.max_end, node.end.max(left_max).max(right_max));
            (node.height, node.max_end)
        }
        let mut seen = Vec::new();
        below(self, self.root, &mut seen);
        assert_eq!(seen.len(), self.len());
    }

    fn overlaps(&self, start: u64, end: u64) -> Vec<(u64, u64, V)>
    where
        V: Copy + Ord,
    {
        let mut found = Vec::new();
        self.for_each_overlap(start, end, |start, end, &value| found.push((start, end, value)));
        assert!(found.is_sorted_by_key(|&(start, ..)| start));
        found.sort_unstable();
        found
    }
}

/// Who cuts a VMA has asked for room for the parts, and allocates nothing: also where the tree was larger once.
#[test]
fn what_is_replaced_leaves_its_room() {
    let mut tree = IntervalTree::new();
    let ids: Vec<_> = (0..=KEPT as u64).map(|nr| tree.insert(2 * nr, 2 * nr + 1, nr)).collect();
    ids[1..].iter().for_each(|id| assert!(tree.remove(*id).is_some()));
    tree.make_room(2).unwrap();
    let room = (tree.nodes.capacity(), tree.free.capacity());
    assert_eq!(tree.take(ids[0]), Some(0));
    let parts = [tree.insert(0, 1, 0), tree.insert(1, 2, 1)];
    assert_eq!((tree.nodes.capacity(), tree.free.capacity()), room);
    tree.check();
    // Giving them back allocates nothing either, and then what many took is given back, too.
    assert!(tree.free.capacity() >= tree.nodes.len());
    parts.iter().for_each(|id| assert!(tree.remove(*id).is_some()));
    assert_eq!((tree.nodes.capacity(), tree.free.capacity()), (0, 0));
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u64, u64),
    /// The n-th of those that are there (modulo their number).
    Remove(usize),
    Query(u64, u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Mostly close together, so that intervals touch, nest and repeat; sometimes at the end of the offsets.
    let bound = prop_oneof![8 => 0..40_u64, 1 => u64::MAX - 8..=u64::MAX];
    let step = prop_oneof![
        4 => (bound.clone(), bound.clone()).prop_map(|(a, b)| Step::Insert(a.min(b), a.max(b))),
        3 => any::<usize>().prop_map(Step::Remove),
        3 => (bound.clone(), bound).prop_map(|(a, b)| Step::Query(a, b)),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    /// covers: R2
    #[test]
    fn agrees_with_a_list(steps in steps()) {
        let mut tree = IntervalTree::new();
        let mut list: Vec<(u64, u64, usize, IntervalId)> = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Insert(start, end) if start < end => {
                    let id = tree.insert(start, end, number);
                    list.push((start, end, number, id));
                }
                Step::Remove(n) if !list.is_empty() => {
                    let (start, end, value, id) = list.swap_remove(n % list.len());
                    prop_assert_eq!(tree.get(id), Some((start, end, &value)));
                    prop_assert_eq!(tree.remove(id), Some(value));
                    prop_assert_eq!(tree.remove(id), None, "an old name finds nothing");
                    prop_assert_eq!(tree.get(id), None);
                }
                Step::Query(start, end) => {
                    let mut expected: Vec<_> = list
                        .iter()
                        .filter(|entry| start < end && entry.0 < end && start < entry.1)
                        .map(|entry| (entry.0, entry.1, entry.2))
                        .collect();
                    expected.sort_unstable();
                    prop_assert_eq!(tree.overlaps(start, end), expected);
                }
                _ => {}
            }
            tree.check();
        }
        prop_assert_eq!(tree.len(), list.len());
    }
}

/// log2 of `n`, rounded up.
fn log2(n: usize) -> usize {
    n.next_power_of_two().trailing_zeros() as usize
}

/// 100,000 extents, one is asked for: a handful of nodes is looked at, not 100,000. covers: R2
#[test]
fn a_query_looks_at_few_nodes() {
    const N: u64 = 100_000;
    let mut tree = IntervalTree::new();
    // In an order that a tree without balance would not survive.
    for i in 0..N {
        tree.insert(i * 10, i * 10 + 10, i);
    }
    let depth = 3 * log2(N as usize) / 2;
    assert!(usize::from(tree.height(tree.root)) <= depth);
    let mut most = 0;
    for i in (0..N).step_by(97) {
        let mut found = Vec::new();
        let looks = tree.for_each_overlap(i * 10 + 3, i * 10 + 4, |_, _, &value| found.push(value));
        assert_eq!(found, [i]);
        most = most.max(looks);
    }
    assert!(most <= 2 * depth, "{most} looks for one answer among {N}");
    let looks = tree.for_each_overlap(5_000, 6_000, |_, _, _| {});
    assert!(looks <= 100 + 4 * depth, "{looks} looks for 100 answers");
    assert_eq!(tree.for_each_overlap(N * 10, u64::MAX, |_, _, _| panic!("nothing is there")), 1);
}

/// A tree of 100,000 changes by one interval at a time: each time a path of it is looked at, whatever the order in which
/// they come and go. covers: R2
#[test]
fn a_change_looks_at_few_nodes() {
    const N: u64 = 100_000;
    // Odd, so that it meets every number once.
    const STRIDE: u64 = 61_803;
    let orders: [fn(u64) -> u64; 3] = [|i| i, |i| N - 1 - i, |i| i * STRIDE % N];
    // The way down and up again, at each level some looks to compare, to bring up to date and to rotate.
    let most_allowed = 24 * (3 * log2(N as usize) / 2);
    for (nr, order) in orders.into_iter().enumerate() {
        let mut tree = IntervalTree::new();
        let (mut inserting, mut removing) = (0, 0);
        let looks_of = |tree: &mut IntervalTree<u64>, change: &mut dyn FnMut(&mut IntervalTree<u64>)| {
            tree.looks.set(0);
            change(tree);
            tree.looks.get()
        };
        let mut ids = Vec::new();
        for start in (0..N).map(order) {
            let looks = looks_of(&mut tree, &mut |tree| ids.push(tree.insert(start, start + 5, start)));
            inserting = inserting.max(looks);
        }
        // In another order than they came: every third first.
        for id in (0..3).flat_map(|first| ids.iter().skip(first).step_by(3)) {
            let looks = looks_of(&mut tree, &mut |tree| assert!(tree.remove(*id).is_some()));
            removing = removing.max(looks);
        }
        assert!(tree.is_empty());
        let most = inserting.max(removing);
        assert!(most <= most_allowed, "order {nr}: {inserting} looks to insert, {removing} to remove, of {N}");
        // And not of none: what is counted is the tree's own steps.
        assert!(inserting.min(removing) > log2(N as usize), "order {nr}: {inserting} and {removing} looks");
    }
}

/// One interval over everything must not make the others' queries slow.
#[test]
fn a_long_interval_does_not_spoil_the_queries() {
    let mut tree = IntervalTree::new();
    for i in 0..10_000_u64 {
        tree.insert(i, i + 1, i);
    }
    tree.insert(0, u64::MAX, u64::MAX);
    let mut found = Vec::new();
    let looks = tree.for_each_overlap(9_000, 9_001, |_, _, &value| found.push(value));
    assert_eq!(found, [u64::MAX, 9_000]);
    assert!(looks <= 4 * log2(10_000), "{looks} looks");
}

#[test]
fn a_place_is_used_again_under_another_name() {
    let mut tree = IntervalTree::new();
    let old = tree.insert(0, 1, 'a');
    assert_eq!(tree.remove(old), Some('a'));
    let new = tree.insert(0, 1, 'b');
    assert_ne!(old, new);
    assert_eq!(tree.nodes.len(), 1);
    assert_eq!(tree.remove(old), None);
    assert_eq!(tree.get(new), Some((0, 1, &'b')));
}

#[test]
fn an_empty_query_finds_nothing() {
    let mut tree = IntervalTree::new();
    tree.insert(0, 10, ());
    for (start, end) in [(5, 5), (7, 3), (10, 20)] {
        tree.for_each_overlap(start, end, |_, _, ()| panic!("{start}..{end} touches nothing"));
    }
}

#[test]
#[should_panic(expected = "0x5..0x5 is empty")]
fn an_empty_interval_is_refused() {
    IntervalTree::new().insert(5, 5, ());
}

#[test]
fn an_empty_tree_gives_its_memory_back_and_knows_no_old_name() {
    let mut tree = IntervalTree::new();
    let fill = |tree: &mut IntervalTree<u64>| (0..1000).map(|n| tree.insert(n, n + 1, n)).collect::<Vec<_>>();
    let first = fill(&mut tree);
    first.iter().for_each(|&id| assert!(tree.remove(id).is_some()));
    assert_eq!((tree.nodes.capacity(), tree.free.capacity()), (0, 0));
    assert_eq!(tree.remove(first[0]), None, "a place that is not there");
    // The same places, which were all given back: no old name is one of them.
    let second = fill(&mut tree);
    assert!(first.iter().all(|&id| tree.get(id).is_none() && !second.contains(&id)));
    assert_eq!(tree.make_room(10).map(|()| tree.nodes.capacity() >= 1010 && tree.free.capacity() >= 1010), Ok(true));
    tree.check();
}
