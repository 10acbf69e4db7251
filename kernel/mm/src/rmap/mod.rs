//! The reverse map: intervals of offsets, and which of them a range of offsets touches (Linux: `i_mmap`,
//! `mm/interval_tree.c`).
//!
//! A height-balanced tree (AVL) ordered by start, in which each node also knows the largest end below it. Nodes
//! live in one `Vec` and name each other by index, so that the whole is safe code and a node never moves: an
//! [`IntervalId`] stays good until its interval is removed.
//!
//! Insertion and removal take O(log n); a query takes O(log n + k) for k answers. Why: a subtree whose largest end
//! is not past the query's start is left at once, and everything to the right of the first interval that starts
//! past the query's end is never entered; what remains is one path, and paths to answers.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use core::cmp::Ordering;

use arrayvec::ArrayVec;

/// Places that an empty tree keeps.
const KEPT: usize = 64;
/// Nodes on the longest way down, with fewer than 2^32 of them: a height-balanced tree is at most 1.44 times as high as need
/// be.
const DEEPEST: usize = 48;
/// No node.
const NIL: u32 = u32::MAX;

/// Names one interval in the tree that gave it out. An old name is never mistaken for a new interval's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IntervalId {
    index: u32,
    generation: u32,
}

#[derive(Debug)]
struct Node<V> {
    start: u64,
    end: u64,
    /// Largest end in this subtree.
    max_end: u64,
    left: u32,
    right: u32,
    /// Nodes on the longest way down, this one included.
    height: u8,
    /// How often this place was given out before.
    generation: u32,
    /// `None` while the place is free.
    value: Option<V>,
}

/// Half-open intervals `start .. end`, each with a value. The same interval may be there more than once.
#[derive(Debug)]
pub struct IntervalTree<V> {
    nodes: Vec<Node<V>>,
    /// Places in `nodes` that are free.
    free: Vec<u32>,
    root: u32,
    /// Generation of a place that was never given out: past all those that were, before the places were given back.
    fresh: u32,
    /// The latest generation of a place that is free.
    latest: u32,
    /// Nodes that were looked at or changed.
    #[cfg(test)]
    looks: core::cell::Cell<usize>,
}

impl<V> Default for IntervalTree<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V> IntervalTree<V> {
    /// No interval; allocates nothing.
    pub const fn new() -> Self {
        Self {
            nodes: Vec::new(),
            free: Vec::new(),
            root: NIL,
            fresh: 0,
            latest: 0,
            #[cfg(test)]
            looks: core::cell::Cell::new(0),
        }
    }
    /// How many intervals.
    pub fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }
    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes room for so many more intervals, so that as many calls of [`insert`](Self::insert) allocate nothing.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn make_room(&mut self, more: usize) -> Result<(), TryReserveError> {
        let new = more.saturating_sub(self.free.len());
        self.nodes.try_reserve(new)?;
        // Every node may become free.
        let most = self.nodes.len().saturating_add(new).saturating_sub(self.free.len());
        self.free.try_reserve(most)
    }

    /// Adds `start .. end`.
    ///
    /// # Panics
    /// The interval is empty.
    pub fn insert(&mut self, start: u64, end: u64, value: V) -> IntervalId {
        assert!(start < end, "reverse map: the interval {start:#x}..{end:#x} is empty");
        let index = self.place(start, end, value);
        self.root = self.insert_below(self.root, index);
        IntervalId { index, generation: self.at(index).generation }
    }

    /// Removes an interval; answers its value, or `None` where it was removed before. With the last one goes what many took.
    pub fn remove(&mut self, id: IntervalId) -> Option<V> {
        let value = self.take(id)?;
        if self.root == NIL && self.nodes.capacity() > KEPT {
            (self.nodes, self.free) = (Vec::new(), Vec::new());
            self.fresh = self.latest;
        }
        Some(value)
    }

    /// The same for one who puts others in its place: the [room that was made](Self::make_room) stays.
    pub fn take(&mut self, id: IntervalId) -> Option<V> {
        self.get(id)?;
        self.root = self.remove_below(self.root, id.index);
        self.free.push(id.index);
        let node = self.at_mut(id.index);
        node.generation = node.generation.wrapping_add(1);
        let (generation, value) = (node.generation, node.value.take());
        self.latest = self.latest.max(generation);
        value
    }

    /// An interval by name: start, end and value.
    pub fn get(&self, id: IntervalId) -> Option<(u64, u64, &V)> {
        let node = self.nodes.get(id.index as usize)?;
        let value = node.value.as_ref()?;
        (node.generation == id.generation).then_some((node.start, node.end, value))
    }

    /// Calls `visit` with start, end and value of each interval that shares an offset with `start .. end`, in the
    /// order of their starts. Answers how many nodes it looked at, which is what the work is proportional to.
    pub fn for_each_overlap(&self, start: u64, end: u64, mut visit: impl FnMut(u64, u64, &V)) -> usize {
        self.overlaps_while(start, end, |from, to, value| {
            visit(from, to, value);
            true
        })
    }

    /// The same for as long as `visit` answers that it wants more.
    #[inline]
    pub fn overlaps_while(&self, start: u64, end: u64, mut visit: impl FnMut(u64, u64, &V) -> bool) -> usize {
        let mut looks = 0;
        // Nodes whose left side was gone through, the lowest last.
        let mut path = ArrayVec::<&Node<V>, DEEPEST>::new();
        let mut next = if start < end { self.root } else { NIL };
        loop {
            while next != NIL {
                looks += 1;
                let node = self.at(next);
                if node.max_end <= start {
                    break;
                }
                path.push(node);
                next = node.left;
            }
            // What is left on the path begins later still.
            let Some(node) = path.pop().filter(|node| node.start < end) else { return looks };
            if node.end > start
                && let Some(value) = &node.value
                && !visit(node.start, node.end, value)
            {
                return looks;
            }
            next = node.right;
        }
    }

    /// Calls `visit` with every interval, in the order of their starts.
    pub fn for_each(&self, visit: impl FnMut(u64, u64, &V)) {
        self.for_each_overlap(0, u64::MAX, visit);
    }

    // ---- nodes ----

    #[inline(always)]
    fn count_look(&self) {
        #[cfg(test)]
        self.looks.set(self.looks.get() + 1);
    }
    fn at(&self, index: u32) -> &Node<V> {
        self.count_look();
        &self.nodes[index as usize]
    }
    fn at_mut(&mut self, index: u32) -> &mut Node<V> {
        self.count_look();
        &mut self.nodes[index as usize]
    }
    /// A leaf node, in a free place if there is one.
    fn place(&mut self, start: u64, end: u64, value: V) -> u32 {
        let generation = self.free.last().map_or(self.fresh, |&index| self.at(index).generation);
        let node = Node { start, end, max_end: end, left: NIL, right: NIL, height: 1, generation, value: Some(value) };
        if let Some(index) = self.free.pop() {
            *self.at_mut(index) = node;
            return index;
        }
        let index = u32::try_from(self.nodes.len()).ok().filter(|&index| index != NIL);
        self.nodes.push(node);
        index.expect("reverse map: fewer than 2^32 - 1 intervals")
    }
    /// The tree's order. The index makes it total where intervals are equal.
    fn order(&self, a: u32, b: u32) -> Ordering {
        let key = |index: u32| (self.at(index).start, self.at(index).end, index);
        key(a).cmp(&key(b))
    }

    // ---- balance ----

    fn height(&self, index: u32) -> u8 {
        if index == NIL { 0 } else { self.at(index).height }
    }
    /// Brings height and largest end up to date with the children.
    fn update(&mut self, index: u32) {
        let (left, right) = (self.at(index).left, self.at(index).right);
        let below = |child: u32| {
            if child == NIL { 0 } else { self.at(child).max_end }
        };
        let max_end = self.at(index).end.max(below(left)).max(below(right));
        let height = 1 + self.height(left).max(self.height(right));
        let node = self.at_mut(index);
        (node.max_end, node.height) = (max_end, height);
    }
    /// Left child up; answers it.
    fn rotate_right(&mut self, index: u32) -> u32 {
        let up = self.at(index).left;
        self.at_mut(index).left = self.at(up).right;
        self.at_mut(up).right = index;
        self.update(index);
        self.update(up);
        up
    }
    /// Right child up; answers it.
    fn rotate_left(&mut self, index: u32) -> u32 {
        let up = self.at(index).right;
        self.at_mut(index).right = self.at(up).left;
        self.at_mut(up).left = index;
        self.update(index);
        self.update(up);
        up
    }
    /// Repairs a subtree one of whose sides has changed by at most one; answers its root.
    fn balance(&mut self, index: u32) -> u32 {
        self.update(index);
        let (left, right) = (self.at(index).left, self.at(index).right);
        let (left_height, right_height) = (self.height(left), self.height(right));
        if left_height > right_height + 1 {
            if self.height(self.at(left).left) < self.height(self.at(left).right) {
                let left = self.rotate_left(left);
                self.at_mut(index).left = left;
            }
            return self.rotate_right(index);
        }
        if right_height > left_height + 1 {
            if self.height(self.at(right).right) < self.height(self.at(right).left) {
                let right = self.rotate_right(right);
                self.at_mut(index).right = right;
            }
            return self.rotate_left(index);
        }
        index
    }

    // ---- descents; each answers the subtree's new root, and goes at most 46 deep ----

    fn insert_below(&mut self, root: u32, new: u32) -> u32 {
        if root == NIL {
            return new;
        }
        if self.order(new, root) == Ordering::Less {
            let left = self.insert_below(self.at(root).left, new);
            self.at_mut(root).left = left;
        } else {
            let right = self.insert_below(self.at(root).right, new);
            self.at_mut(root).right = right;
        }
        self.balance(root)
    }

    fn remove_below(&mut self, root: u32, old: u32) -> u32 {
        let (left, right) = (self.at(root).left, self.at(root).right);
        match self.order(old, root) {
            Ordering::Less => {
                let left = self.remove_below(left, old);
                self.at_mut(root).left = left;
            }
            Ordering::Greater => {
                let right = self.remove_below(right, old);
                self.at_mut(root).right = right;
            }
            Ordering::Equal if left == NIL => return right,
            Ordering::Equal if right == NIL => return left,
            Ordering::Equal => {
                // The next one in order takes the place; values stay where they are, so names stay good.
                let (next, right) = self.take_first(right);
                let node = self.at_mut(next);
                (node.left, node.right) = (left, right);
                return self.balance(next);
            }
        }
        self.balance(root)
    }

    /// Takes the first node of a subtree out; answers it and what remains.
    fn take_first(&mut self, root: u32) -> (u32, u32) {
        let left = self.at(root).left;
        if left == NIL {
            return (root, self.at(root).right);
        }
        let (first, left) = self.take_first(left);
        self.at_mut(root).left = left;
        (first, self.balance(root))
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
