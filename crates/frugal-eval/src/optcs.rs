//! Choosing items with a bound on the share of wrong ones among the chosen: conformal selection,
//! and its extension to scores that were themselves chosen or trained on the same data.
//!
//! # What it does
//! There are calibration items whose outcome is known and test items whose outcome is not. An item
//! is *good* if its outcome exceeds a threshold. The procedures choose test items so that the
//! expected share of items among the chosen that are not good (the false discovery rate) is at most
//! `q`, for any model behind the scores and any sample size, as long as calibration and test items
//! are exchangeable.
//!
//! | procedure | scores come from |
//! |---|---|
//! | [`conformal_selection`] | one model that has not seen the calibration items |
//! | [`model_selection`] | several such models, of which the best one is chosen for each test item |
//! | [`full`] | a model that is trained on the calibration items themselves |
//! | [`full_model_selection`] | several such models |
//! | [`full_per_item`] | a model that is trained anew for each test item, on it and the calibration items |
//!
//! Choosing the model that finds most and then selecting as if it had been given (the naive way)
//! breaks the bound; so does calibrating on the training data. Splitting the data keeps it at the
//! price of power.
//!
//! # Update rule
//! `V_i = M·[good_i] − μ(x_i)` for calibration, `V̂_j = −μ(x_j)` for test items;
//! `p_j = (1 + #{i: V_i ≤ V̂_j}) / (n + 1)`. With one fixed model, the Benjamini-Hochberg procedure
//! at level `q` on these. With a model chosen for `j` by a rule that is symmetric in `j` and the
//! calibration items, with `R_j` rejections in that symmetric world: `C = {j: p_j ≤ q R_j / m}`,
//! `r* = max{r: #{j ∈ C: ξ_j R_j ≤ r} ≥ r}`, selected are `{j ∈ C: ξ_j R_j ≤ r*}`.
//!
//! # When to use, when not
//! For keeping the answers of a model that can be trusted, for pseudo-labels, for shortlists. Not
//! where test items come from elsewhere than the calibration items, and not with scores that were
//! tuned on the calibration outcomes outside of these procedures. With `n` calibration items no
//! p-value is below `1 / (n + 1)`.
//!
//! # Cost
//! `O(K m² + K (n + m) log(n + m))` for `K` models, `n` calibration and `m` test items.
//!
//! # Defaults and where they come from
//! `M` is infinite here: a good calibration item never counts, which any `M > 2 max|μ|` gives (the
//! reference uses 1000). Pruning is `homo`: one uniform number for all items, drawn from the seed.
//! `dtm` (all 1) may select nothing although `C` is large. Trained models are ridge regressions,
//! plain or with a Gaussian kernel, with weights that balance the classes, exact leave-one-out from
//! one fit.
//!
//! # Departures from the paper
//! The reference counts `V_i < V̂_j` where the model is chosen, which is exact only without ties;
//! here `≤` counts everywhere. Among models with equally many rejections the first one is taken,
//! which is symmetric too, instead of a random one. Random oversampling of the rarer class is
//! replaced by weights, its expectation. Where a model is trained for each test item, the reference
//! scores the other test items by the model that leaves that item out, which is not symmetric; here
//! it is the model of all.
//!
//! # References
//! Bai, Jin: Optimized Conformal Selection: Powerful Selective Inference After Conformity Score
//! Optimization, 2024, arXiv 2411.17983. Jin, Candès: Selection by Prediction with Conformal
//! p-values, 2023, arXiv 2210.01408. Wang, Ramdas: False Discovery Rate Control with E-values,
//! 2022, arXiv 2009.02824.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

pub use error::SelectError;
pub use learner::{Kernel, Learner, Ridge};

mod error;
mod learner;

/// How items are thinned out between the first stage and the selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pruning {
    /// A uniform number for each item.
    Hete,
    /// One uniform number for all items.
    Homo,
    /// None: the number is 1.
    Dtm,
}

/// What was selected and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Selection {
    /// Selected test items, by number from 0.
    pub selected: Vec<usize>,
    /// Conformal p-value of each test item: small for items that are probably good.
    pub p_values: Vec<f64>,
    /// The model that was chosen for each test item.
    pub models: Vec<usize>,
    /// Rejections in the symmetric world of each test item, `R_j`.
    pub auxiliary: Vec<usize>,
    /// Items of the first stage.
    pub candidates: Vec<usize>,
}

/// Conformal p-values of test items from the scores of calibration items; larger scores are better.
///
/// `(1 + #{i not good: μ_i ≥ μ_j}) / (n + 1)`, with `n` counting all calibration items.
pub fn conformal_p_values(calibration: &[f64], good: &[bool], test: &[f64]) -> Vec<f64> {
    let failures = failures(calibration, good);
    test.iter()
        .map(|score| (1 + at_least(&failures, *score)) as f64 / (calibration.len() + 1) as f64)
        .collect()
}

/// The randomised form: ties, the item itself among them, count in part, so that p-values are
/// uniform under the null.
pub fn randomised_p_values(
    calibration: &[f64],
    good: &[bool],
    test: &[f64],
    rng: &mut impl Rng,
) -> Vec<f64> {
    let failures = failures(calibration, good);
    let mut value = |score: &f64| {
        let (above, from) = (
            failures.len() - failures.partition_point(|f| f <= score),
            at_least(&failures, *score),
        );
        (above as f64 + rng.random::<f64>() * (1 + from - above) as f64)
            / (calibration.len() + 1) as f64
    };
    test.iter().map(&mut value).collect()
}

/// Scores of items that are not good, in rising order.
fn failures(scores: &[f64], good: &[bool]) -> Vec<f64> {
    let mut failures: Vec<f64> = scores
        .iter()
        .zip(good)
        .filter(|(_, good)| !**good)
        .map(|(s, _)| *s)
        .collect();
    failures.sort_by(f64::total_cmp);
    failures
}

fn at_least(sorted: &[f64], score: f64) -> usize {
    sorted.len() - sorted.partition_point(|s| *s < score)
}

/// Room for rounding in comparisons of multiples.
const ROUNDING: f64 = 1.0 + 1e-12;

/// The Benjamini-Hochberg procedure: which hypotheses are rejected at level `q`, by number in
/// rising order.
pub fn benjamini_hochberg(p_values: &[f64], q: f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|a, b| p_values[*a].total_cmp(&p_values[*b]));
    let m = p_values.len() as f64;
    let last = (0..order.len())
        .rev()
        .find(|&k| p_values[order[k]] <= q * (k + 1) as f64 / m * ROUNDING);
    order.truncate(last.map_or(0, |k| k + 1));
    order.sort_unstable();
    order
}

/// The same for e-values: rejects the largest ones, as many as their size allows.
pub fn e_benjamini_hochberg(e_values: &[f64], q: f64) -> Vec<usize> {
    let inverse: Vec<f64> = e_values
        .iter()
        .map(|e| if *e > 0.0 { 1.0 / e } else { f64::INFINITY })
        .collect();
    benjamini_hochberg(&inverse, q)
}

/// From p-values and auxiliary rejections to the selection: first stage, then thinning.
fn prune(
    p_values: Vec<f64>,
    auxiliary: Vec<usize>,
    models: Vec<usize>,
    q: f64,
    pruning: Pruning,
    seed: u64,
) -> Selection {
    let m = p_values.len();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let common: f64 = rng.random();
    let xi: Vec<f64> = match pruning {
        Pruning::Hete => (0..m).map(|_| rng.random()).collect(),
        Pruning::Homo => vec![common; m],
        Pruning::Dtm => vec![1.0; m],
    };
    let candidates: Vec<usize> = (0..m)
        .filter(|&j| p_values[j] <= q * auxiliary[j] as f64 / m as f64 * ROUNDING)
        .collect();
    let size = |j: usize| xi[j] * auxiliary[j] as f64;
    let fits = |r: &usize| candidates.iter().filter(|&&j| size(j) <= *r as f64).count() >= *r;
    let most = (1..=m).rev().find(fits).unwrap_or(0);
    let selected = candidates
        .iter()
        .copied()
        .filter(|&j| size(j) <= most as f64)
        .collect();
    Selection {
        selected,
        p_values,
        models,
        auxiliary,
        candidates,
    }
}

/// Scores by one fixed model: Benjamini-Hochberg on conformal p-values.
///
/// # Errors
/// Input of the wrong size or with values that are not finite.
pub fn conformal_selection(
    calibration: &[f64],
    good: &[bool],
    test: &[f64],
    q: f64,
) -> Result<Selection, SelectError> {
    check(&[calibration.to_vec()], good, &[test.to_vec()], q)?;
    let p_values = conformal_p_values(calibration, good, test);
    let selected = benjamini_hochberg(&p_values, q);
    Ok(Selection {
        models: vec![0; test.len()],
        auxiliary: vec![selected.len(); test.len()],
        candidates: selected.clone(),
        selected,
        p_values,
    })
}

/// Scores by several models that have not seen the calibration items, `calibration[model][item]`
/// and `test[model][item]`.
///
/// # Errors
/// Input of the wrong size or with values that are not finite.
pub fn model_selection(
    calibration: &[Vec<f64>],
    good: &[bool],
    test: &[Vec<f64>],
    q: f64,
    pruning: Pruning,
    seed: u64,
) -> Result<Selection, SelectError> {
    check(calibration, good, test, q)?;
    let m = test[0].len();
    let n = good.len();
    let (mut auxiliary, mut models) = (vec![0; m], vec![0; m]);
    for (k, (calibration, test)) in calibration.iter().zip(test).enumerate() {
        for (j, rejections) in symmetric_rejections(calibration, good, test, q)
            .into_iter()
            .enumerate()
        {
            if rejections > auxiliary[j] {
                (auxiliary[j], models[j]) = (rejections, k);
            }
        }
    }
    let sorted: Vec<Vec<f64>> = calibration
        .iter()
        .map(|scores| failures(scores, good))
        .collect();
    let p_values = (0..m)
        .map(|j| (1 + at_least(&sorted[models[j]], test[models[j]][j])) as f64 / (n + 1) as f64)
        .collect();
    Ok(prune(p_values, auxiliary, models, q, pruning, seed))
}

/// For each test item `j` the rejections among all test items when `j`, with its outcome taken as
/// not good, joins the calibration items: `p_l = (#{i: V_i ≤ V̂_l} + [V̂_j ≤ V̂_l]) / (n + 1)` for
/// the others, 0 for `j`.
fn symmetric_rejections(calibration: &[f64], good: &[bool], test: &[f64], q: f64) -> Vec<usize> {
    let (n, m) = (calibration.len(), test.len());
    let failures = failures(calibration, good);
    // Best first: the p-values rise along this order, with or without the item's own count.
    let mut order: Vec<usize> = (0..m).collect();
    order.sort_by(|a, b| test[*b].total_cmp(&test[*a]));
    let counts: Vec<usize> = order
        .iter()
        .map(|&l| at_least(&failures, test[l]))
        .collect();
    let limit = |rank: usize| q * rank as f64 / m as f64 * ROUNDING * (n + 1) as f64;
    (0..m)
        .map(|j| {
            let mut most = 1;
            let mut rank = 1;
            for (&l, &count) in order.iter().zip(&counts) {
                if l != j {
                    rank += 1;
                    if (count + usize::from(test[j] >= test[l])) as f64 <= limit(rank) {
                        most = rank;
                    }
                }
            }
            most
        })
        .collect()
}

/// Scores of all items by a model that was trained on all others, test items counting as not good.
fn trained_scores(
    calibration: &[Vec<f64>],
    good: &[bool],
    test: &[Vec<f64>],
    learner: &(impl Learner + ?Sized),
) -> Result<(Vec<f64>, Vec<f64>), SelectError> {
    let all: Vec<Vec<f64>> = calibration.iter().chain(test).cloned().collect();
    let labels: Vec<bool> = good
        .iter()
        .copied()
        .chain(test.iter().map(|_| false))
        .collect();
    let mut scores = learner.leave_one_out(&all, &labels)?;
    let of_test = scores.split_off(calibration.len());
    Ok((scores, of_test))
}

/// Scores by a model that is trained on the labelled items themselves; rows are items, columns
/// features.
///
/// # Errors
/// Input of the wrong size or with values that are not finite, a regression without solution.
pub fn full(
    calibration: &[Vec<f64>],
    good: &[bool],
    test: &[Vec<f64>],
    learner: &(impl Learner + ?Sized),
    q: f64,
) -> Result<Selection, SelectError> {
    check_features(calibration, good, test, q)?;
    let (of_calibration, of_test) = trained_scores(calibration, good, test, learner)?;
    conformal_selection(&of_calibration, good, &of_test, q)
}

/// Scores by several such models; the best one is chosen for each test item.
///
/// # Errors
/// Input of the wrong size or with values that are not finite, a regression without solution.
pub fn full_model_selection(
    calibration: &[Vec<f64>],
    good: &[bool],
    test: &[Vec<f64>],
    learners: &[impl Learner],
    q: f64,
    pruning: Pruning,
    seed: u64,
) -> Result<Selection, SelectError> {
    check_features(calibration, good, test, q)?;
    let scores = learners
        .iter()
        .map(|l| trained_scores(calibration, good, test, l))
        .collect::<Result<Vec<_>, _>>()?;
    let (of_calibration, of_test): (Vec<_>, Vec<_>) = scores.into_iter().unzip();
    model_selection(&of_calibration, good, &of_test, q, pruning, seed)
}

fn check_level(q: f64) -> Result<(), SelectError> {
    if q > 0.0 && q < 1.0 {
        Ok(())
    } else {
        Err(SelectError::Level(q))
    }
}

fn check(
    calibration: &[Vec<f64>],
    good: &[bool],
    test: &[Vec<f64>],
    q: f64,
) -> Result<(), SelectError> {
    check_level(q)?;
    if good.is_empty() {
        return Err(SelectError::Empty("calibration items"));
    }
    if calibration.is_empty() {
        return Err(SelectError::Empty("scores"));
    }
    if calibration.len() != test.len() {
        return Err(SelectError::Length {
            what: "models of the test items".into(),
            found: test.len(),
            expected: calibration.len(),
        });
    }
    let items = test[0].len();
    if items == 0 {
        return Err(SelectError::Empty("test items"));
    }
    for (part, rows, expected) in [
        ("calibration", calibration, good.len()),
        ("test", test, items),
    ] {
        for (k, scores) in rows.iter().enumerate() {
            let what = format!("{part} scores of model {k}");
            if scores.len() != expected {
                return Err(SelectError::Length {
                    what,
                    found: scores.len(),
                    expected,
                });
            }
            if let Some(index) = scores.iter().position(|s| !s.is_finite()) {
                return Err(SelectError::NotFinite { what, index });
            }
        }
    }
    Ok(())
}

fn check_features(
    calibration: &[Vec<f64>],
    good: &[bool],
    test: &[Vec<f64>],
    q: f64,
) -> Result<(), SelectError> {
    check_level(q)?;
    if calibration.len() != good.len() {
        return Err(SelectError::Length {
            what: "outcomes".into(),
            found: good.len(),
            expected: calibration.len(),
        });
    }
    let Some(first) = calibration.first() else {
        return Err(SelectError::Empty("calibration items"));
    };
    if test.is_empty() {
        return Err(SelectError::Empty("test items"));
    }
    for (part, rows) in [("calibration", calibration), ("test", test)] {
        for (i, row) in rows.iter().enumerate() {
            let what = format!("features of {part} item {i}");
            if row.len() != first.len() {
                return Err(SelectError::Length {
                    what,
                    found: row.len(),
                    expected: first.len(),
                });
            }
            if let Some(index) = row.iter().position(|s| !s.is_finite()) {
                return Err(SelectError::NotFinite { what, index });
            }
        }
    }
    Ok(())
}

/// Scores by a model that is trained for each test item anew, on the labelled items and that item
/// alone, with e-values (the version of OptCS-Full that needs no test item but the one in question).
///
/// For item `j` the model is trained on the calibration items and `j` as if it were not good; scores
/// of these `n + 1` are leave-one-out, those of the other test items by the model of all `n + 1`,
/// which is symmetric in them. `p_j = (1 + #{i: V_i ≤ V̂_j}) / (n + 1)`, and `R_j` rejections come from
/// the procedure on `(#{i: V_i ≤ V̂_l} + [V̂_j ≤ V̂_l]) / (n + 1)` for the others and 0 for `j`.
///
/// # Errors
/// Input of the wrong size or with values that are not finite, a regression without solution.
pub fn full_per_item(
    calibration: &[Vec<f64>],
    good: &[bool],
    test: &[Vec<f64>],
    learner: &(impl Learner + ?Sized),
    q: f64,
    pruning: Pruning,
    seed: u64,
) -> Result<Selection, SelectError> {
    check_features(calibration, good, test, q)?;
    let (n, m) = (good.len(), test.len());
    let (mut p_values, mut auxiliary) = (Vec::with_capacity(m), Vec::with_capacity(m));
    for j in 0..m {
        let mut rows = calibration.to_vec();
        rows.push(test[j].clone());
        let labels: Vec<bool> = good.iter().copied().chain([false]).collect();
        let others: Vec<Vec<f64>> = (0..m)
            .filter(|l| *l != j)
            .map(|l| test[l].clone())
            .collect();
        let mut scores = learner.leave_one_out(&rows, &labels)?;
        let own = scores.pop().unwrap_or(0.0);
        let failures = failures(&scores, good);
        p_values.push((1 + at_least(&failures, own)) as f64 / (n + 1) as f64);
        let of_others = learner.fit_predict(&rows, &labels, &others)?;
        let mut all: Vec<f64> = of_others
            .iter()
            .map(|score| {
                let count = at_least(&failures, *score) + usize::from(own >= *score);
                count as f64 / (n + 1) as f64
            })
            .collect();
        all.push(0.0);
        auxiliary.push(benjamini_hochberg(&all, q).len());
    }
    Ok(prune(p_values, auxiliary, vec![0; m], q, pruning, seed))
}

#[cfg(test)]
mod tests;
