//! Several rankings of the same documents made one.

use std::collections::HashMap;
use std::hash::Hash;

use crate::error::IndexError;

/// How the scores of several rankings are joined.
#[derive(Clone, Debug, PartialEq)]
pub enum Fusion {
    /// Reciprocal rank fusion: the sum of `1 / (k + rank)`, ranks from 1.
    ReciprocalRank {
        /// How little the first ranks stand out.
        k: f64,
    },
    /// The weighted sum of the scores, each ranking's brought to 0 to 1. A document that a ranking
    /// lacks gets 0 from it, as its last one does.
    MinMax {
        /// One weight for each ranking.
        weights: Vec<f64>,
    },
}

impl Default for Fusion {
    fn default() -> Self {
        Self::ReciprocalRank { k: 60.0 }
    }
}

/// Joins rankings, each the best first without repetitions; the result is the best first, equal
/// scores in the order of the items.
///
/// ```
/// use frugal_index::{Fusion, fuse};
/// let found = fuse(&[vec![("a", 9.0), ("b", 3.0)], vec![("b", 0.9), ("a", 0.8)]], &Fusion::default())?;
/// assert!((found[0].1 - 0.032_522_5).abs() < 1e-7);
/// # Ok::<(), frugal_index::IndexError>(())
/// ```
///
/// # Errors
/// Weights that are not one for each ranking, or not finite and at least 0.
pub fn fuse<T: Clone + Eq + Hash + Ord>(
    rankings: &[Vec<(T, f64)>],
    fusion: &Fusion,
) -> Result<Vec<(T, f64)>, IndexError> {
    check(rankings.len(), fusion)?;
    let mut scores: HashMap<&T, f64> = HashMap::new();
    for (which, ranking) in rankings.iter().enumerate() {
        let bounds = bounds(ranking.iter().map(|(_, score)| *score));
        for (i, (item, score)) in ranking.iter().enumerate() {
            *scores.entry(item).or_default() += match fusion {
                Fusion::ReciprocalRank { k } => 1.0 / (k + (i + 1) as f64),
                Fusion::MinMax { weights } => weights[which] * between(*score, bounds),
            };
        }
    }
    let mut found: Vec<(T, f64)> = scores.into_iter().map(|(t, s)| (t.clone(), s)).collect();
    found.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    Ok(found)
}

fn check(rankings: usize, fusion: &Fusion) -> Result<(), IndexError> {
    let wrong = |problem: String| Err(IndexError::Query(problem));
    match fusion {
        Fusion::ReciprocalRank { k } if !(k.is_finite() && *k >= 0.0) => wrong(format!(
            "reciprocal rank fusion needs a constant of at least 0, not {k}"
        )),
        Fusion::MinMax { weights } if weights.len() != rankings => wrong(format!(
            "{} weights for {rankings} rankings; give one for each",
            weights.len()
        )),
        Fusion::MinMax { weights } if weights.iter().any(|w| !(w.is_finite() && *w >= 0.0)) => {
            wrong("the weights of rankings must be at least 0".into())
        }
        _ => Ok(()),
    }
}

fn bounds(scores: impl Iterator<Item = f64>) -> (f64, f64) {
    scores.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), s| {
        (low.min(s), high.max(s))
    })
}

/// Where a score lies between the lowest and the highest; 1 where all are equal.
fn between(score: f64, (low, high): (f64, f64)) -> f64 {
    match high > low {
        true => (score - low) / (high - low),
        false => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worked_value_of_reciprocal_ranks_holds() {
        let found = fuse(
            &[vec![(1, 5.0), (2, 4.0)], vec![(2, 0.3), (1, 0.2), (3, 0.1)]],
            &Fusion::default(),
        );
        let found = found.unwrap();
        assert_eq!(found.iter().map(|f| f.0).collect::<Vec<_>>(), [1, 2, 3]);
        assert!((found[0].1 - 0.032_522_5).abs() < 1e-7);
        assert!((found[2].1 - 1.0 / 63.0).abs() < 1e-12);
    }

    #[test]
    fn min_max_brings_every_ranking_to_the_same_range() {
        let rankings = [
            vec![("a", 30.0), ("b", 20.0), ("c", 10.0)],
            vec![("c", -0.1)],
        ];
        let weights = vec![0.5, 0.4];
        let found = fuse(&rankings, &Fusion::MinMax { weights }).unwrap();
        assert_eq!(found, [("a", 0.5), ("c", 0.4), ("b", 0.25)]);
        for weights in [vec![1.0], vec![1.0, -1.0], vec![1.0, f64::NAN]] {
            assert!(fuse(&rankings, &Fusion::MinMax { weights }).is_err());
        }
        assert!(fuse(&rankings, &Fusion::ReciprocalRank { k: -2.0 }).is_err());
    }
}
