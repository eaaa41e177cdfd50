//! Extremely randomised trees (Geurts et al., 2006): a regression whose trees disagree where little
//! is known.

use rand::Rng;

/// A node of a tree.
enum Node {
    Leaf(f64),
    Split {
        feature: usize,
        threshold: f64,
        below: Box<Node>,
        above: Box<Node>,
    },
}

/// Trees, each grown on all rows.
pub(super) struct Forest {
    trees: Vec<Node>,
}

/// Rows below which a node is not split.
const LEAST_ROWS: usize = 2;

impl Forest {
    /// Fits `trees` trees to rows of features and their values.
    pub(super) fn fit(rows: &[Vec<f64>], values: &[f64], trees: usize, rng: &mut impl Rng) -> Self {
        let all: Vec<usize> = (0..rows.len()).collect();
        Self {
            trees: (0..trees).map(|_| grow(rows, values, &all, rng)).collect(),
        }
    }

    /// Mean and standard deviation of what the trees say.
    pub(super) fn predict(&self, row: &[f64]) -> (f64, f64) {
        let n = self.trees.len().max(1) as f64;
        let found: Vec<f64> = self.trees.iter().map(|tree| value(tree, row)).collect();
        let mean = found.iter().sum::<f64>() / n;
        let variance = found.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        (mean, variance.sqrt())
    }
}

fn value(mut node: &Node, row: &[f64]) -> f64 {
    loop {
        match node {
            Node::Leaf(value) => return *value,
            Node::Split {
                feature,
                threshold,
                below,
                above,
            } => {
                node = if row[*feature] < *threshold {
                    below
                } else {
                    above
                }
            }
        }
    }
}

/// Sum of squared distances from the mean.
fn spread(values: &[f64], of: &[usize]) -> f64 {
    let mean = of.iter().map(|&i| values[i]).sum::<f64>() / of.len().max(1) as f64;
    of.iter().map(|&i| (values[i] - mean).powi(2)).sum()
}

/// One random threshold for each feature; the one that leaves the least spread is taken.
fn grow(rows: &[Vec<f64>], values: &[f64], of: &[usize], rng: &mut impl Rng) -> Node {
    let mean = of.iter().map(|&i| values[i]).sum::<f64>() / of.len().max(1) as f64;
    if of.len() < LEAST_ROWS || spread(values, of) == 0.0 {
        return Node::Leaf(mean);
    }
    let at = |i: usize, feature: usize| rows[i][feature];
    let mut best: Option<(f64, usize, f64, Vec<usize>, Vec<usize>)> = None;
    for feature in 0..rows[of[0]].len() {
        let column = of.iter().map(|&i| at(i, feature));
        let (low, high) = column.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| {
            (l.min(v), h.max(v))
        });
        if low >= high {
            continue;
        }
        // Above the lowest and up to the highest: both sides have a row.
        let threshold = high - (high - low) * rng.random::<f64>() * (1.0 - 1e-12);
        let (below, above): (Vec<usize>, Vec<usize>) =
            of.iter().partition(|&&i| at(i, feature) < threshold);
        if below.is_empty() || above.is_empty() {
            continue;
        }
        let left = spread(values, &below) + spread(values, &above);
        if best.as_ref().is_none_or(|b| left < b.0) {
            best = Some((left, feature, threshold, below, above));
        }
    }
    match best {
        None => Node::Leaf(mean),
        Some((_, feature, threshold, below, above)) => Node::Split {
            feature,
            threshold,
            below: Box::new(grow(rows, values, &below, rng)),
            above: Box::new(grow(rows, values, &above, rng)),
        },
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn trees_learn_a_surface_and_disagree_where_they_have_seen_nothing() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let truth = |x: f64, y: f64| (3.0 * x).sin() + y * y;
        let rows: Vec<Vec<f64>> = (0..300)
            .map(|_| vec![rng.random::<f64>(), rng.random::<f64>() * 0.5])
            .collect();
        let values: Vec<f64> = rows.iter().map(|r| truth(r[0], r[1])).collect();
        let forest = Forest::fit(&rows, &values, 50, &mut rng);
        let mut worst = 0.0f64;
        for _ in 0..100 {
            let (x, y) = (
                0.05 + 0.9 * rng.random::<f64>(),
                0.02 + 0.46 * rng.random::<f64>(),
            );
            let (mean, _) = forest.predict(&[x, y]);
            worst = worst.max((mean - truth(x, y)).abs());
        }
        assert!(worst < 0.12, "{worst}");
        // What was seen is known exactly.
        let (mean, deviation) = forest.predict(&rows[0]);
        assert!((mean - values[0]).abs() < 1e-12 && deviation < 1e-12);
        assert!(Forest::fit(&[], &[], 3, &mut rng).predict(&[0.0]).0 == 0.0);
    }
}
