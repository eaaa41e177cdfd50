//! Rankings from comparisons.

use super::judge::{Comparator, Judge, Preference};
use super::options::PrpAlgorithm;

/// Candidates in their new order.
#[derive(Clone, Debug, PartialEq)]
pub struct PrpRanking {
    /// Numbers of the candidates, the best first.
    pub order: Vec<usize>,
    /// For each candidate a number that is greater the better it is: wins and half the ties of all
    /// pairs, or else how many candidates come behind it.
    pub scores: Vec<f64>,
}

impl PrpRanking {
    fn of_order(order: Vec<usize>) -> Self {
        let mut scores = vec![0.0; order.len()];
        for (rank, &candidate) in order.iter().enumerate() {
            scores[candidate] = (order.len() - 1 - rank) as f64;
        }
        Self { order, scores }
    }
}

/// Ranks candidates 0 to `count - 1`, which stand in the order of the first stage; ties keep that
/// order. Sorting brings the best `top_k` to the front and leaves the others as they were.
///
/// # Errors
/// Those of the comparator.
pub fn rank<C: Comparator>(
    algorithm: PrpAlgorithm,
    count: usize,
    top_k: usize,
    judge: &mut Judge<'_, C>,
) -> Result<PrpRanking, C::Error> {
    match algorithm {
        PrpAlgorithm::Allpair => allpair(count, judge),
        PrpAlgorithm::Sorting => heapsort(count, top_k, judge),
        PrpAlgorithm::Sliding(passes) => sliding(count, passes, judge),
    }
}

/// `s_i = Σ_j 1[i ≻ j] + ½ Σ_j 1[i ~ j]`.
fn allpair<C: Comparator>(count: usize, judge: &mut Judge<'_, C>) -> Result<PrpRanking, C::Error> {
    let pairs: Vec<(usize, usize)> = (0..count)
        .flat_map(|a| (a + 1..count).map(move |b| (a, b)))
        .collect();
    let mut scores = vec![0.0_f64; count];
    for (&(a, b), preference) in pairs.iter().zip(judge.prefer(&pairs)?) {
        match preference {
            Preference::First => scores[a] += 1.0,
            Preference::Second => scores[b] += 1.0,
            Preference::Tie => {
                scores[a] += 0.5;
                scores[b] += 0.5;
            }
        }
    }
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    Ok(PrpRanking { order, scores })
}

fn heapsort<C: Comparator>(
    count: usize,
    top_k: usize,
    judge: &mut Judge<'_, C>,
) -> Result<PrpRanking, C::Error> {
    let mut heap: Vec<usize> = (0..count).collect();
    for root in (0..count / 2).rev() {
        sift_down(&mut heap, root, judge)?;
    }
    let mut order = Vec::with_capacity(count);
    while order.len() < top_k && !heap.is_empty() {
        order.push(heap.swap_remove(0));
        if order.len() < top_k {
            sift_down(&mut heap, 0, judge)?;
        }
    }
    heap.sort_unstable();
    order.extend(heap);
    Ok(PrpRanking::of_order(order))
}

fn sift_down<C: Comparator>(
    heap: &mut [usize],
    mut root: usize,
    judge: &mut Judge<'_, C>,
) -> Result<(), C::Error> {
    loop {
        let mut best = root;
        for child in [2 * root + 1, 2 * root + 2] {
            if child < heap.len() && is_better(heap[child], heap[best], judge)? {
                best = child;
            }
        }
        if best == root {
            return Ok(());
        }
        heap.swap(root, best);
        root = best;
    }
}

/// A tie goes to the one that the first stage had in front.
fn is_better<C: Comparator>(
    a: usize,
    b: usize,
    judge: &mut Judge<'_, C>,
) -> Result<bool, C::Error> {
    let preference = judge.prefer(&[(a, b)])?;
    Ok(match preference.first() {
        Some(Preference::First) => true,
        Some(Preference::Second) => false,
        Some(Preference::Tie) | None => a < b,
    })
}

fn sliding<C: Comparator>(
    count: usize,
    passes: usize,
    judge: &mut Judge<'_, C>,
) -> Result<PrpRanking, C::Error> {
    let mut list: Vec<usize> = (0..count).collect();
    for pass in 0..passes.min(count) {
        for i in (pass + 1..count).rev() {
            if judge.prefer(&[(list[i], list[i - 1])])? == [Preference::First] {
                list.swap(i, i - 1);
            }
        }
    }
    Ok(PrpRanking::of_order(list))
}
