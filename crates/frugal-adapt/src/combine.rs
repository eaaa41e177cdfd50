//! Several adapters as one, and any change of weights as a LoRA.
//!
//! The ways to combine, their names and their arithmetic are those of `peft`'s
//! `add_weighted_adapter`: on the factors `A` and `B` of LoRA adapters (`linear`, `cat`, `ties`,
//! ...), or on whole weight changes `ΔW`, which every mergeable method has, followed by a truncated
//! singular value decomposition (`svd`, `ties_svd`, ...).
//!
//! - Task arithmetic (`linear`, `svd`): Ilharco et al., arXiv 2212.04089.
//! - TIES: Yadav et al., arXiv 2306.01708: keep the largest elements, elect a sign, average what
//!   agrees.
//! - DARE: Yu et al., arXiv 2311.03099: drop elements at random, rescale the rest.

use std::collections::BTreeMap;

use frugal_nn::linalg::randomised_svd;
use frugal_nn::{
    AdaptError, Adapter, Backbone, BuildContext, Frozen, Head, Operation, named_rng, to_vec,
};
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::methods::low_rank::lora::{Factors, Lora};
use crate::registry;

/// How adapters become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CombinationType {
    /// The exact weighted sum of the changes, by stacking factors; ranks add up.
    Cat,
    /// The weighted sum of the factors.
    Linear,
    /// TIES on the factors.
    Ties,
    /// DARE and a weighted sum on the factors.
    DareLinear,
    /// DARE and TIES on the factors.
    DareTies,
    /// The weighted sum of the largest elements of the factors.
    MagnitudePrune,
    /// The weighted sum of the changes, truncated.
    Svd,
    /// TIES on the changes, truncated.
    TiesSvd,
    /// DARE and a weighted sum on the changes, truncated.
    DareLinearSvd,
    /// DARE and TIES on the changes, truncated.
    DareTiesSvd,
    /// The weighted sum of the largest elements of the changes, truncated.
    MagnitudePruneSvd,
}

impl CombinationType {
    /// Whether it works on whole weight changes, so that every mergeable method can take part.
    pub fn on_weights(self) -> bool {
        matches!(
            self,
            Self::Svd
                | Self::TiesSvd
                | Self::DareLinearSvd
                | Self::DareTiesSvd
                | Self::MagnitudePruneSvd
        )
    }

    /// Whether it is a weighted sum, as that of classification heads is.
    pub fn is_sum(self) -> bool {
        self.prunes().is_none()
    }

    fn prunes(self) -> Option<Pruning> {
        match self {
            Self::Cat | Self::Linear | Self::Svd => None,
            Self::Ties | Self::TiesSvd | Self::MagnitudePrune | Self::MagnitudePruneSvd => {
                Some(Pruning::Magnitude)
            }
            Self::DareLinear | Self::DareLinearSvd | Self::DareTies | Self::DareTiesSvd => {
                Some(Pruning::Random)
            }
        }
    }

    fn elects(self) -> bool {
        matches!(
            self,
            Self::Ties | Self::TiesSvd | Self::DareTies | Self::DareTiesSvd
        )
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Pruning {
    Magnitude,
    Random,
}

/// Rank of a truncated change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rank {
    /// This rank everywhere.
    Fixed(usize),
    /// That of each change, but no more than this.
    AtMost(usize),
    /// At each place the smallest rank that keeps this share of the change's squared norm.
    Energy(f64),
}

/// How adapters are combined.
#[derive(Clone, Copy, Debug)]
pub struct CombineOptions {
    /// Way.
    pub combination_type: CombinationType,
    /// Share of elements that pruning keeps.
    pub density: f64,
    /// Rank of the result, for the ways that truncate.
    pub rank: Rank,
    /// Decides which elements DARE drops.
    pub seed: u64,
}

/// A combined adapter.
pub struct Combined {
    /// The result.
    pub adapter: Lora,
    /// What truncation lost: the norm of the cut part relative to the norm of the whole change.
    pub relative_error: f64,
    /// Rank at each place.
    pub ranks: BTreeMap<String, usize>,
}

fn unsupported(adapter: &dyn Adapter, reason: impl Into<String>) -> AdaptError {
    AdaptError::Unsupported {
        method: adapter.method(),
        action: "be turned into a LoRA this way",
        reason: reason.into(),
    }
}

/// A LoRA that changes the weights as `adapter` does, up to truncation.
///
/// # Errors
/// A method that no weight can express, or that changes more than linear layers.
pub fn to_lora(
    adapter: &dyn Adapter,
    rank: Rank,
    backbone: &dyn Backbone,
    context: &BuildContext<'_>,
) -> Result<Combined, AdaptError> {
    let options = CombineOptions {
        combination_type: CombinationType::Svd,
        density: 1.0,
        rank,
        seed: 0,
    };
    combine(&[(adapter, 1.0)], &options, backbone, context)
}

/// Combines adapters of one backbone with these weights.
///
/// # Errors
/// Adapters without the form that the way works on, ranks that do not agree, settings out of range.
pub fn combine(
    parts: &[(&dyn Adapter, f32)],
    options: &CombineOptions,
    backbone: &dyn Backbone,
    context: &BuildContext<'_>,
) -> Result<Combined, AdaptError> {
    check(options)?;
    for (adapter, _) in parts {
        adapter.allow(Operation::Combine)?;
    }
    if options.combination_type.on_weights() {
        on_weights(parts, options, backbone, context)
    } else {
        on_factors(parts, options, context)
    }
}

/// The classification head beside adapters that are combined in this way: the sum of theirs with
/// the same weights.
///
/// # Errors
/// Ways that are no sum, heads that have none.
pub fn combine_heads(
    heads: &[(&Head, f32)],
    combination_type: CombinationType,
) -> Result<Head, AdaptError> {
    let refused = |reason| AdaptError::Heads { reason };
    if !combination_type.is_sum() {
        let reason = format!(
            "{} is no weighted sum: use `linear`, `cat` or `svd`",
            serde_json::json!(combination_type)
        );
        return Err(refused(reason));
    }
    Head::weighted_sum(heads).map_err(refused)
}

fn check(options: &CombineOptions) -> Result<(), AdaptError> {
    let bad = |field, reason: String| {
        Err(AdaptError::Config {
            method: "lora",
            field,
            reason,
        })
    };
    if !(options.density > 0.0 && options.density <= 1.0) {
        return bad(
            "density",
            format!("{} is not above 0 and at most 1", options.density),
        );
    }
    match options.rank {
        Rank::Fixed(0) | Rank::AtMost(0) => bad("r", "the rank must be at least 1".into()),
        Rank::Energy(share) if !(share > 0.0 && share <= 1.0) => {
            bad("energy", format!("{share} is not above 0 and at most 1"))
        }
        _ => Ok(()),
    }
}

fn on_factors(
    parts: &[(&dyn Adapter, f32)],
    options: &CombineOptions,
    context: &BuildContext<'_>,
) -> Result<Combined, AdaptError> {
    // For each path: rank, weights, A and B of the adapters that change it.
    type Place = Vec<(usize, f32, Vec<f32>, Vec<f32>)>;
    let mut places: BTreeMap<String, Place> = BTreeMap::new();
    for (adapter, weight) in parts {
        let factors = adapter.low_rank_factors().ok_or_else(|| {
            let of_weights = registry::find(adapter.method()).is_ok_and(|method| method.capabilities.merge);
            let reason = if of_weights {
                "it is more than low-rank factors of linear layers: use one of the ways that end in `svd`"
            } else {
                "it is no change of weights: only the others can be combined"
            };
            unsupported(*adapter, reason)
        })?;
        for f in factors {
            places.entry(f.path.to_owned()).or_default().push((
                f.a.shape()[0],
                weight * f.scale,
                f.a.to_vec(),
                f.b.to_vec(),
            ));
        }
    }
    let combined = places.into_iter().map(|(path, place)| {
        if options.combination_type == CombinationType::Cat {
            let rank = place.iter().map(|(r, ..)| r).sum();
            return Ok(stack(path, rank, &place));
        }
        let rank = place[0].0;
        if let Some((other, ..)) = place.iter().find(|(r, ..)| *r != rank) {
            let reason = format!("the adapters have ranks {rank} and {other} at `{path}`: use `cat` or `svd`, which bear different ranks");
            return Err(AdaptError::Config { method: "lora", field: "r", reason });
        }
        // The sign goes to one side only, or it would cancel itself.
        let root = |w: f32| w.abs().sqrt();
        let a: Vec<(Vec<f32>, f32)> = place.iter().map(|(_, w, a, _)| (a.clone(), root(*w) * if *w < 0.0 { -1.0 } else { 1.0 })).collect();
        let b: Vec<(Vec<f32>, f32)> = place.iter().map(|(_, w, _, b)| (b.clone(), root(*w))).collect();
        let (a, b) = (mix(a, options, &format!("{path} A")), mix(b, options, &format!("{path} B")));
        Ok(Factors { path, rank, a, b })
    });
    let factors: Vec<Factors> = combined.collect::<Result<_, AdaptError>>()?;
    let ranks = factors.iter().map(|f| (f.path.clone(), f.rank)).collect();
    Ok(Combined {
        adapter: Lora::from_factors(factors, context)?,
        relative_error: 0.0,
        ranks,
    })
}

/// Factors one after the other: `A` by rows, `B` by columns, weights on `A`.
fn stack(path: String, rank: usize, place: &[(usize, f32, Vec<f32>, Vec<f32>)]) -> Factors {
    let a = place
        .iter()
        .flat_map(|(_, w, a, _)| a.iter().map(move |v| v * w))
        .collect();
    let rows = place[0].3.len() / place[0].0;
    let b = (0..rows)
        .flat_map(|i| {
            place
                .iter()
                .flat_map(move |(r, _, _, b)| b[i * r..(i + 1) * r].iter().copied())
        })
        .collect();
    Factors { path, rank, a, b }
}

fn on_weights(
    parts: &[(&dyn Adapter, f32)],
    options: &CombineOptions,
    backbone: &dyn Backbone,
    context: &BuildContext<'_>,
) -> Result<Combined, AdaptError> {
    let (mut factors, mut failure) = (Vec::new(), None);
    let (mut lost, mut whole) = (0.0, 0.0);
    backbone.visit_weights(&mut |part| {
        if failure.is_some() {
            return;
        }
        match change(&part, parts, backbone) {
            Err(error) => failure = Some(error),
            Ok(None) => {}
            Ok(Some((path, [rows, cols], changes))) => {
                let delta = mix(changes, options, &path);
                let (rank, a, b, error) = truncate(&delta, rows, cols, options.rank);
                let norm: f64 = delta.iter().map(|&v| f64::from(v).powi(2)).sum();
                whole += norm;
                lost += error;
                if norm > 0.0 {
                    factors.push(Factors { path, rank, a, b });
                }
            }
        }
    });
    if let Some(error) = failure {
        return Err(error);
    }
    if factors.is_empty() {
        return Err(AdaptError::Config {
            method: "lora",
            field: "weights",
            reason: "the combined change is zero everywhere".into(),
        });
    }
    let ranks = factors.iter().map(|f| (f.path.clone(), f.rank)).collect();
    let relative_error = if whole > 0.0 {
        (lost / whole).max(0.0).sqrt()
    } else {
        0.0
    };
    Ok(Combined {
        adapter: Lora::from_factors(factors, context)?,
        relative_error,
        ranks,
    })
}

/// Path, sides `[d_out, d_in]` and weighted changes of a linear layer that at least one adapter
/// changes.
type Change = (String, [usize; 2], Vec<(Vec<f32>, f32)>);

fn change(
    part: &Frozen<'_>,
    parts: &[(&dyn Adapter, f32)],
    backbone: &dyn Backbone,
) -> Result<Option<Change>, AdaptError> {
    let mut changes = Vec::new();
    for (adapter, weight) in parts {
        match part {
            Frozen::Linear(base) => {
                let Some(merged) = adapter.merged_linear(base)? else {
                    continue;
                };
                let same_bias = match (&merged.bias, &base.bias) {
                    (None, None) => true,
                    (Some(a), Some(b)) => to_vec(a.clone()) == to_vec(b.clone()),
                    _ => false,
                };
                if !same_bias {
                    return Err(unsupported(
                        *adapter,
                        "it changes biases, which low-rank factors cannot hold: merge it instead",
                    ));
                }
                let delta = adapter
                    .weight_delta(base)?
                    .unwrap_or_else(|| merged.weight - base.weight.dense());
                changes.push((to_vec(delta), *weight));
            }
            Frozen::Norm(norm) if adapter.merged_norm(norm).is_some() => {
                return Err(unsupported(
                    *adapter,
                    "it changes norms, which low-rank factors cannot hold: merge it instead",
                ));
            }
            Frozen::Embedding(table) if adapter.merged_embedding(table).is_some() => {
                return Err(unsupported(
                    *adapter,
                    "it changes the token table: merge it instead",
                ));
            }
            _ => {}
        }
    }
    let Frozen::Linear(base) = part else {
        return Ok(None);
    };
    if changes.is_empty() {
        return Ok(None);
    }
    Ok(Some((
        backbone.sites().info(base.site).path.clone(),
        base.weight.dims(),
        changes,
    )))
}

/// The mixture of equally long vectors with these weights.
fn mix(mut parts: Vec<(Vec<f32>, f32)>, options: &CombineOptions, place: &str) -> Vec<f32> {
    let kind = options.combination_type;
    for (index, (values, _)) in parts
        .iter_mut()
        .enumerate()
        .filter(|_| options.density < 1.0)
    {
        match kind.prunes() {
            Some(Pruning::Magnitude) => keep_largest(values, options.density),
            Some(Pruning::Random) => drop_at_random(
                values,
                options.density,
                options.seed,
                &format!("{place} {index}"),
            ),
            None => {}
        }
    }
    let len = parts.first().map_or(0, |(values, _)| values.len());
    if !kind.elects() {
        return (0..len)
            .map(|i| {
                parts
                    .iter()
                    .map(|(values, weight)| values[i] * weight)
                    .sum()
            })
            .collect();
    }
    let elect = |i: usize| {
        // As peft does, the sign is elected before weighting, and ties are positive.
        let sign = if parts.iter().map(|(values, _)| values[i]).sum::<f32>() >= 0.0 {
            1.0
        } else {
            -1.0
        };
        let agreeing = parts
            .iter()
            .filter(|(values, _)| values[i] != 0.0 && values[i].signum() == sign);
        let (sum, count) = agreeing.fold((0.0, 0.0_f32), |(sum, count), (values, weight)| {
            (sum + values[i] * weight, count + 1.0)
        });
        sum / count.max(1.0)
    };
    (0..len).map(elect).collect()
}

/// Zeroes all but the largest elements by magnitude.
fn keep_largest(values: &mut [f32], density: f64) {
    let keep = (density * values.len() as f64) as usize;
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].abs().total_cmp(&values[a].abs()));
    order[keep..].iter().for_each(|&i| values[i] = 0.0);
}

/// Zeroes elements with probability `1 - density` and divides the rest by it.
fn drop_at_random(values: &mut [f32], density: f64, seed: u64, place: &str) {
    let mut rng = named_rng(seed, place);
    for value in values {
        *value = if rng.random::<f64>() < density {
            *value / density as f32
        } else {
            0.0
        };
    }
}

/// Directions beyond the rank, and turns towards the leading ones, of the random projection. Pruned
/// changes have spectra that fall slowly, which takes more turns than weights do.
const OVERSAMPLING: usize = 16;
const POWER_ITERATIONS: usize = 4;
/// Up to this side a decomposition is exact.
const EXACT: usize = 128;

/// A singular value below this share of the largest is rounding.
const NOTHING: f32 = 1e-6;

/// `[rows, cols]` as rank, `A [rank, cols]`, `B [rows, rank]`, and the squared norm of what is cut
/// off.
fn truncate(
    delta: &[f32],
    rows: usize,
    cols: usize,
    rank: Rank,
) -> (usize, Vec<f32>, Vec<f32>, f64) {
    let whole: f64 = delta.iter().map(|&v| f64::from(v).powi(2)).sum();
    let full = rows.min(cols);
    let mut tried = match rank {
        Rank::Fixed(rank) | Rank::AtMost(rank) => rank.min(full),
        Rank::Energy(_) => 8.min(full),
    };
    loop {
        let oversampling = if full <= EXACT { full } else { OVERSAMPLING };
        let svd = randomised_svd(delta, rows, cols, tried, oversampling, POWER_ITERATIONS, 0);
        let energies: Vec<f64> = svd
            .s
            .iter()
            .scan(0.0, |sum, &s| {
                *sum += f64::from(s).powi(2);
                Some(*sum)
            })
            .collect();
        let kept = match rank {
            Rank::Fixed(_) => Some(tried),
            Rank::AtMost(_) => Some(
                svd.s
                    .iter()
                    .take_while(|&&s| s > NOTHING * svd.s[0])
                    .count()
                    .max(1),
            ),
            Rank::Energy(share) => energies
                .iter()
                .position(|&e| e >= share * whole * (1.0 - 1e-6))
                .map(|i| i + 1),
        };
        let Some(kept) = kept.or((tried == full).then_some(full)) else {
            tried = (2 * tried).min(full);
            continue;
        };
        let k = svd.s.len();
        let root: Vec<f32> = svd.s.iter().map(|s| s.sqrt()).collect();
        let a = (0..kept)
            .flat_map(|j| svd.vt[j * cols..(j + 1) * cols].iter().map(move |v| (v, j)))
            .map(|(v, j)| v * root[j])
            .collect();
        let b = (0..rows)
            .flat_map(|i| (0..kept).map(move |j| (i, j)))
            .map(|(i, j)| svd.u[i * k + j] * root[j])
            .collect();
        return (
            kept,
            a,
            b,
            (whole - energies.get(kept - 1).copied().unwrap_or(0.0)).max(0.0),
        );
    }
}

#[cfg(test)]
mod tests;
