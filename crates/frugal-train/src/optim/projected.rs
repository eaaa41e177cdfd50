//! What optimizers share that keep the moments of a matrix in a subspace: GaLore, GoLore, Fira and
//! APOLLO.
//!
//! A gradient `G [m, n]` is projected to its first `rank` directions on the smaller side: with
//! `m >= n` to `R = G Pᵀ [m, rank]`, else to `R = Pᵀ G [rank, n]`. The projection is drawn anew
//! every `update_proj_gap` updates; moments stay as they are, in the old directions. As in the
//! official codes epsilon is added before the correction of bias, and weights decay after the
//! update. Matrices that no name of `target_modules` is part of, those not wider than `rank`,
//! vectors and biases follow AdamW.

use std::collections::BTreeMap;

use burn::prelude::*;
use frugal_nn::linalg::{randomised_svd, svd};
use frugal_nn::rng::{named_rng, standard_normal};
use frugal_nn::{Gradient, Parameter, to_vec};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::adamw::{Betas, History};
use super::state::{Moment, SavedTensor, StateTensor, check_taken, take_steps, take_values};
use super::{Optimizer, SavedState, Update};
use crate::config::TrainConfig;
use crate::named::Named;

/// Growth of an update's norm from step to step that is allowed.
const MAX_GROWTH: f64 = 1.01;
/// Beside a norm that divides.
const TINY: f64 = 1e-8;
/// Sides from which on the leading directions are found by a randomised decomposition.
const RANDOMISED_FROM: usize = 512;

/// Settings that all have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProjectionConfig {
    /// Directions that are kept.
    pub rank: usize,
    /// Updates after which the directions are chosen anew.
    pub update_proj_gap: u64,
    /// Matrices with one of these in their name are projected.
    pub target_modules: Vec<String>,
    /// Factor on the update, of which APOLLO takes the root; the optimizer's own where it is not set.
    pub scale: Option<f64>,
}

impl Default for ProjectionConfig {
    fn default() -> Self {
        let names = ["attn", "attention", "mlp", "intermediate", "output.dense"];
        Self {
            rank: 128,
            update_proj_gap: 200,
            target_modules: names.map(str::to_owned).to_vec(),
            scale: None,
        }
    }
}

impl ProjectionConfig {
    /// The settings that all have, and those that one optimizer has beside them.
    fn read<O: DeserializeOwned>(named: &Named) -> Result<(Self, O), String> {
        const SHARED: [&str; 4] = ["rank", "update_proj_gap", "target_modules", "scale"];
        let mut own = named.clone();
        let mut shared = Named::from(named.name.as_str());
        for key in SHARED {
            if let Some(value) = own.settings.shift_remove(key) {
                shared.settings.insert(key.to_owned(), value);
            }
        }
        let all_have = |error| format!("{error}; all projections have {}", SHARED.join(", "));
        Ok((shared.read()?, own.read().map_err(all_have)?))
    }

    /// Refuses what no projection has.
    fn check(&self, name: &str, scale: f64) -> Result<(), String> {
        if self.rank == 0 || self.update_proj_gap == 0 {
            return Err(format!(
                "`{name}`: `rank` {} and `update_proj_gap` {} given, but both must be positive",
                self.rank, self.update_proj_gap
            ));
        }
        if self.target_modules.is_empty() || self.target_modules.iter().any(String::is_empty) {
            return Err(format!("`{name}`: `target_modules` needs parts of names"));
        }
        if !(scale.is_finite() && scale > 0.0) {
            return Err(format!(
                "`{name}`: `scale` {scale} given, but it must be a positive number"
            ));
        }
        Ok(())
    }

    fn takes(&self, name: &str, shape: &[usize]) -> bool {
        let [m, n] = *shape else {
            return false;
        };
        self.rank < m.min(n) && self.is_named(name)
    }

    fn is_named(&self, name: &str) -> bool {
        let is_part = |part: &String| name.contains(part.as_str());
        self.target_modules.iter().any(is_part)
    }
}

/// Where the directions come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Directions {
    /// The leading singular vectors of the gradient.
    Svd,
    /// Random orthonormal ones.
    Orthonormal,
    /// Normal numbers of variance `1 / rank`.
    Random,
}

/// Directions of one matrix.
#[derive(Clone, Debug)]
pub(super) struct Projection {
    /// `[rank, n]` where rows are projected, else `[m, rank]`.
    matrix: Tensor<2>,
    rows: bool,
}

impl Projection {
    fn new(gradient: &Tensor<2>, rank: usize, kind: Directions, seed: u64, name: &str) -> Self {
        let [m, n] = gradient.dims();
        let (rows, side) = (m >= n, m.min(n));
        let values = match kind {
            Directions::Svd => leading(gradient, rank, rows, seed),
            Directions::Orthonormal => {
                let drawn = normal(side * rank, seed, name);
                let q = frugal_nn::linalg::qr(&drawn, side, rank).q;
                if rows { transposed(&q, side, rank) } else { q }
            }
            Directions::Random => {
                let scale = (rank as f32).sqrt();
                let drawn = normal(side * rank, seed, name);
                drawn.into_iter().map(|v| v / scale).collect()
            }
        };
        Self::of(values, rank, [m, n], &gradient.device())
    }

    fn of(values: Vec<f32>, rank: usize, [m, n]: [usize; 2], device: &Device) -> Self {
        let rows = m >= n;
        let shape = if rows { [rank, n] } else { [m, rank] };
        let matrix = Tensor::from_data(TensorData::new(values, shape), device);
        Self { matrix, rows }
    }

    fn project(&self, gradient: Tensor<2>) -> Tensor<2> {
        if self.rows {
            gradient.matmul(self.matrix.clone().transpose())
        } else {
            self.matrix.clone().transpose().matmul(gradient)
        }
    }

    /// A matrix of the subspace as one of full size.
    pub(super) fn back(&self, low: Tensor<2>) -> Tensor<2> {
        if self.rows {
            low.matmul(self.matrix.clone())
        } else {
            self.matrix.clone().matmul(low)
        }
    }

    /// Norms of what one row has in the subspace, or one column: `[m, 1]` or `[1, n]`.
    pub(super) fn norms(&self, low: &Tensor<2>) -> Tensor<2> {
        let dim = usize::from(self.rows);
        (low.clone() * low.clone()).sum_dim(dim).sqrt()
    }
}

fn leading(gradient: &Tensor<2>, rank: usize, rows: bool, seed: u64) -> Vec<f32> {
    let [m, n] = gradient.dims();
    let values = to_vec(gradient.clone());
    let found = if m.min(n) < RANDOMISED_FROM {
        svd(&values, m, n)
    } else {
        randomised_svd(&values, m, n, rank, 8, 2, seed)
    };
    let triples = found.s.len();
    if rows {
        return found.vt[..rank * n].to_vec();
    }
    let row = |r: &[f32]| r[..rank].to_vec();
    found.u.chunks_exact(triples).flat_map(row).collect()
}

fn normal(count: usize, seed: u64, name: &str) -> Vec<f32> {
    let mut rng = named_rng(seed, name);
    (0..count).map(|_| standard_normal(&mut rng)).collect()
}

fn transposed(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let at = |i: usize| values[(i % rows) * cols + i / rows];
    (0..values.len()).map(at).collect()
}

/// One update of one matrix on its way.
pub(super) struct Projected<'a> {
    /// `[m, n]`.
    pub(super) gradient: Tensor<2>,
    /// The gradient in the subspace.
    pub(super) low: Tensor<2>,
    /// Adam's direction in the subspace.
    pub(super) direction: Tensor<2>,
    pub(super) projection: &'a Projection,
    /// Norm of the last limited update.
    pub(super) norm: &'a mut Option<f32>,
}

impl Projected<'_> {
    /// Keeps the norm of a tensor from growing by more than one percent from step to step.
    pub(super) fn limited(&mut self, change: Tensor<2>) -> Tensor<2> {
        let square = to_vec((change.clone() * change.clone()).sum())[0];
        let norm = f64::from(square).sqrt();
        let limiter = match *self.norm {
            Some(before) => (norm / (f64::from(before) + TINY)).max(MAX_GROWTH) / MAX_GROWTH,
            None => 1.0,
        };
        *self.norm = Some((norm / limiter) as f32);
        change / limiter
    }
}

/// What makes one of these optimizers: its own settings and what they do.
pub(super) trait Rule: DeserializeOwned + Send + 'static {
    const NAME: &'static str;
    /// Factor on the update where none is set.
    const SCALE: f64 = 0.25;
    /// Whether it keeps the norm of an update, by which the next is limited.
    const LIMITS: bool = false;

    /// Where the directions of an update come from, `step` updates having gone before.
    fn directions(&self, step: u64) -> Directions;

    /// The change of the weights, before the learning rate.
    fn change(&self, projected: Projected<'_>, scale: f64) -> Tensor<2>;
}

/// What is remembered of a projected matrix.
struct LowRank {
    projection: Moment,
    exp_avg: Moment,
    exp_avg_sq: Moment,
    norm: Option<f32>,
    step: u64,
}

enum Memory {
    Full(History),
    LowRank(LowRank),
}

/// An optimizer by its rule.
struct ProjectedOptimizer<R> {
    config: ProjectionConfig,
    scale: f64,
    rule: R,
    betas: Betas,
    seed: u64,
    memories: BTreeMap<String, Memory>,
}

/// The optimizer of a rule, which remembers nothing yet.
///
/// # Errors
/// Settings that it does not have or that are out of range.
pub(super) fn made<R: Rule>(
    named: &Named,
    train: &TrainConfig,
) -> Result<Box<dyn Optimizer>, String> {
    let (config, rule) = ProjectionConfig::read::<R>(named)?;
    let scale = config.scale.unwrap_or(R::SCALE);
    config.check(R::NAME, scale)?;
    Ok(Box::new(ProjectedOptimizer {
        config,
        scale,
        rule,
        betas: Betas::new(train),
        seed: train.seed,
        memories: BTreeMap::new(),
    }))
}

impl<R: Rule> ProjectedOptimizer<R> {
    fn update_projected(&mut self, parameter: &mut Parameter, gradient: &Gradient, by: &Update) {
        let [m, n] = *parameter.shape() else {
            unreachable!("only matrices are projected")
        };
        let config = &self.config;
        let (rank, name) = (config.rank, parameter.name().to_owned());
        let value = parameter.value();
        let device = value.device();
        let gradient = gradient.tensor(&device).reshape([m, n]) * by.grad_scale;
        let found = self.memories.remove(&name);
        let mut memory = match found {
            Some(Memory::LowRank(memory)) if memory.exp_avg.len() == m.max(n) * rank => memory,
            _ => LowRank::zeros(m.max(n) * rank),
        };
        let step = memory.step;
        let projection = if step.is_multiple_of(config.update_proj_gap) {
            let kind = self.rule.directions(step);
            let name = format!("projection {step} of {name}");
            Projection::new(&gradient, rank, kind, self.seed, &name)
        } else {
            let kept = to_vec(memory.projection.tensor(&device));
            Projection::of(kept, rank, [m, n], &device)
        };
        let low = projection.project(gradient.clone());
        let shape = low.dims();
        memory.step += 1;
        let h = self.betas.step(by, memory.step);
        let (exp_avg, exp_avg_sq) = (
            memory.exp_avg.tensor(&device).reshape(shape) * h.beta1 + low.clone() * (1.0 - h.beta1),
            memory.exp_avg_sq.tensor(&device).reshape(shape) * h.beta2
                + low.clone() * low.clone() * (1.0 - h.beta2),
        );
        let projected = Projected {
            gradient,
            low,
            direction: exp_avg.clone() / (exp_avg_sq.clone().sqrt() + h.eps),
            projection: &projection,
            norm: &mut memory.norm,
        };
        let change = self.rule.change(projected, self.scale);
        let bias1 = 1.0 - h.beta1.powf(memory.step as f64);
        let bias2 = 1.0 - h.beta2.powf(memory.step as f64);
        let moved = value - change.reshape([m * n]) * (by.lr * bias2.sqrt() / bias1);
        parameter.set_value(moved * (1.0 - by.lr * by.weight_decay));
        memory.exp_avg = Moment::Device(exp_avg.reshape([m.max(n) * rank]));
        memory.exp_avg_sq = Moment::Device(exp_avg_sq.reshape([m.max(n) * rank]));
        memory.projection = Moment::Device(projection.matrix.reshape([m.min(n) * rank]));
        self.memories.insert(name, Memory::LowRank(memory));
    }
}

impl LowRank {
    fn zeros(len: usize) -> Self {
        Self {
            projection: Moment::zeros(0),
            exp_avg: Moment::zeros(len),
            exp_avg_sq: Moment::zeros(len),
            norm: None,
            step: 0,
        }
    }

    fn restored(state: &mut SavedState, name: &str, step: u64) -> Result<Self, String> {
        let mut take = |what: &str| take_values(state, &format!("{what}.{name}")).map(Moment::Host);
        let (projection, exp_avg) = (take("projection")?, take("exp_avg")?);
        let exp_avg_sq = take("exp_avg_sq")?;
        if exp_avg.len() != exp_avg_sq.len() {
            return Err(format!("the two moments of `{name}` differ in size"));
        }
        let norm = match state.remove(&format!("update_norm.{name}")) {
            None => None,
            Some(SavedTensor::Values(values)) if values.len() == 1 => Some(values[0]),
            Some(_) => return Err(format!("`update_norm.{name}` is not one number")),
        };
        Ok(Self {
            projection,
            exp_avg,
            exp_avg_sq,
            norm,
            step,
        })
    }

    fn stored(&self, name: &str) -> Vec<(String, StateTensor<'_>)> {
        let mut stored = vec![
            (format!("step.{name}"), StateTensor::Count(self.step)),
            (format!("projection.{name}"), self.projection.stored()),
            (format!("exp_avg.{name}"), self.exp_avg.stored()),
            (format!("exp_avg_sq.{name}"), self.exp_avg_sq.stored()),
        ];
        if let Some(norm) = &self.norm {
            let norm = StateTensor::Values(std::slice::from_ref(norm));
            stored.push((format!("update_norm.{name}"), norm));
        }
        stored
    }
}

impl<R: Rule> Optimizer for ProjectedOptimizer<R> {
    fn name(&self) -> &'static str {
        R::NAME
    }

    fn check(&self, parameters: &[&Parameter]) -> Result<(), String> {
        let config = &self.config;
        if parameters.iter().any(|p| config.takes(p.name(), p.shape())) {
            return Ok(());
        }
        let is_named = |p: &&Parameter| config.is_named(p.name()) && p.shape().len() == 2;
        if !parameters.iter().copied().any(|p| is_named(&p)) {
            return Err(format!(
                "`{}`: no trained matrix has one of {:?} in its name (`optim.target_modules`), so that all would follow AdamW; one is `{}`",
                R::NAME,
                config.target_modules,
                parameters.first().map_or("-", |p| p.name())
            ));
        }
        Err(format!(
            "`{}`: no trained matrix is wider than `rank` {} on both sides with one of {:?} in its name, so that all would follow AdamW; lower `optim.rank`, or set `optim.target_modules`",
            R::NAME,
            config.rank,
            config.target_modules
        ))
    }

    fn update(&mut self, parameter: &mut Parameter, gradient: &Gradient, update: &Update) {
        if self.config.takes(parameter.name(), parameter.shape()) {
            return self.update_projected(parameter, gradient, update);
        }
        let len = parameter.len();
        let memory = self
            .memories
            .entry(parameter.name().to_owned())
            .or_insert_with(|| Memory::Full(History::zeros(len)));
        let history = match memory {
            Memory::Full(history) if history.len() == len => history,
            _ => {
                *memory = Memory::Full(History::zeros(len));
                let Memory::Full(history) = memory else {
                    unreachable!("it was set just before")
                };
                history
            }
        };
        history.update(parameter, gradient, self.betas, update);
    }

    fn state_bytes(&self, name: &str, shape: &[usize]) -> u64 {
        let (config, len) = (&self.config, super::numel(shape));
        super::bytes_of(match *shape {
            [m, n] if config.takes(name, shape) => {
                let [r, m, n] = [config.rank, m, n].map(|side| side as u64);
                r * (2 * m.max(n) + m.min(n)) + u64::from(R::LIMITS)
            }
            _ => 2 * len,
        })
    }

    fn state(&self) -> Vec<(String, StateTensor<'_>)> {
        let mut all = Vec::new();
        for (name, memory) in &self.memories {
            all.extend(match memory {
                Memory::Full(history) => history.stored(name).into(),
                Memory::LowRank(memory) => memory.stored(name),
            });
        }
        all
    }

    fn restore(&mut self, mut state: SavedState) -> Result<(), String> {
        let mut memories = BTreeMap::new();
        for (name, step) in take_steps(&mut state)? {
            let memory = if state.contains_key(&format!("projection.{name}")) {
                Memory::LowRank(LowRank::restored(&mut state, &name, step)?)
            } else {
                Memory::Full(History::restored(&mut state, &name, step)?)
            };
            memories.insert(name, memory);
        }
        check_taken(&state)?;
        self.memories = memories;
        Ok(())
    }
}
