//! The best of many scores.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// A score with what it belongs to. Greater is better: a higher score, then a lower item.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scored<T> {
    pub(crate) score: f64,
    pub(crate) item: T,
}

impl<T: Ord> Eq for Scored<T> {}

impl<T: Ord> PartialOrd for Scored<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: Ord> Ord for Scored<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_score = self.score.total_cmp(&other.score);
        by_score.then_with(|| other.item.cmp(&self.item))
    }
}

/// Keeps the `k` best of what it is given. The result does not depend on the order.
#[derive(Clone, Debug)]
pub(crate) struct TopK<T> {
    k: usize,
    heap: BinaryHeap<std::cmp::Reverse<Scored<T>>>,
}

impl<T: Ord + Copy> TopK<T> {
    pub(crate) fn new(k: usize) -> Self {
        Self {
            k,
            heap: BinaryHeap::new(),
        }
    }

    /// A score below this cannot get in.
    pub(crate) fn threshold(&self) -> f64 {
        match self.heap.peek() {
            _ if self.k == 0 => f64::INFINITY,
            Some(worst) if self.heap.len() >= self.k => worst.0.score,
            _ => f64::NEG_INFINITY,
        }
    }

    pub(crate) fn push(&mut self, score: f64, item: T) {
        let new = Scored { score, item };
        if self.heap.len() < self.k {
            self.heap.push(std::cmp::Reverse(new));
        } else if let Some(mut worst) = self.heap.peek_mut()
            && new > worst.0
        {
            *worst = std::cmp::Reverse(new);
        }
    }

    pub(crate) fn merge(mut self, other: Self) -> Self {
        for scored in other.heap {
            self.push(scored.0.score, scored.0.item);
        }
        self
    }

    /// The best first.
    pub(crate) fn into_sorted(self) -> Vec<Scored<T>> {
        let sorted = self.heap.into_sorted_vec();
        sorted.into_iter().map(|scored| scored.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_are_kept_whatever_the_order_and_equal_ones_by_item() {
        let scores = [(3, 1.0), (1, 2.0), (2, 2.0), (0, 0.5), (4, 2.0)];
        let best = |scores: &[(u32, f64)]| {
            let mut top = TopK::new(3);
            scores
                .iter()
                .for_each(|(item, score)| top.push(*score, *item));
            let sorted = top.into_sorted();
            sorted.into_iter().map(|s| s.item).collect::<Vec<_>>()
        };
        let mut reversed = scores;
        reversed.reverse();
        assert_eq!(
            (best(&scores), best(&reversed)),
            (vec![1, 2, 4], vec![1, 2, 4])
        );
        let mut none = TopK::new(0);
        none.push(1.0, 1);
        assert!(none.into_sorted().is_empty());
    }
}
