//! Walks along the links of one level.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use super::super::error::VectorError;
use super::links::Links;
use super::rows::{Rows, Target};

/// A row and how far it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Near {
    pub(super) distance: f32,
    pub(super) row: u32,
}

impl Eq for Near {}

impl PartialOrd for Near {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Near {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_distance = self.distance.total_cmp(&other.distance);
        by_distance.then(self.row.cmp(&other.row))
    }
}

/// Down from the entry to a level: the nearest row that is reached by going nearer with each step.
pub(super) fn descend(
    links: &Links,
    rows: &mut Rows<'_>,
    target: &Target,
    to: u32,
) -> Result<Near, VectorError> {
    let row = links.entry;
    let mut at = Near {
        distance: rows.distance(target, row)?,
        row,
    };
    for level in (to + 1..=links.level(row)).rev() {
        loop {
            let from = at;
            for row in links.of(from.row, level) {
                let distance = rows.distance(target, *row)?;
                at = at.min(Near {
                    distance,
                    row: *row,
                });
            }
            if at == from {
                break;
            }
        }
    }
    Ok(at)
}

/// The `ef` nearest rows that `allowed` says, the nearest first, as far as links lead to them.
pub(super) fn around(
    links: &Links,
    rows: &mut Rows<'_>,
    target: &Target,
    start: &[Near],
    level: u32,
    ef: usize,
    allowed: &dyn Fn(u32) -> bool,
) -> Result<Vec<Near>, VectorError> {
    let mut seen = vec![0u64; links.rows().div_ceil(64)];
    let mut is_new = |row: u32| {
        let (word, bit) = (row as usize / 64, 1 << (row % 64));
        let new = seen[word] & bit == 0;
        seen[word] |= bit;
        new
    };
    let mut ahead = BinaryHeap::new();
    let mut best: BinaryHeap<Near> = BinaryHeap::new();
    for near in start {
        if is_new(near.row) {
            ahead.push(Reverse(*near));
            if allowed(near.row) {
                best.push(*near);
            }
        }
    }
    while let Some(Reverse(from)) = ahead.pop() {
        if best.len() >= ef && best.peek().is_some_and(|worst| from > *worst) {
            break;
        }
        for row in links.of(from.row, level) {
            if !is_new(*row) {
                continue;
            }
            let distance = rows.distance(target, *row)?;
            let near = Near {
                distance,
                row: *row,
            };
            if best.len() >= ef && best.peek().is_some_and(|worst| near > *worst) {
                continue;
            }
            ahead.push(Reverse(near));
            if allowed(*row) {
                best.push(near);
                if best.len() > ef {
                    best.pop();
                }
            }
        }
    }
    Ok(best.into_sorted_vec())
}
