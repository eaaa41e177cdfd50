//! Muon: momentum of matrices, made orthogonal by a Newton-Schulz iteration; AdamW for the rest.
//!
//! Jordan et al.: Muon: An optimizer for hidden layers in neural networks, 2024; follows
//! `torch.optim.Muon` of PyTorch 2.15, which iterates in bf16 where this does in single precision.
//! Embeddings and output heads, by their names, and all that is no matrix follow AdamW at the same
//! rate, for which `adjust_lr_fn` is "match_rms_adamw" unless it is set.

use burn::prelude::*;
use frugal_nn::{Gradient, Parameter, to_vec};
use serde::{Deserialize, Serialize};

use super::adamw::AdamW;
use super::remembered::Remembered;
use super::state::StateTensor;
use super::{Optimizer, SavedState, Update};
use crate::config::TrainConfig;

/// Coefficients of the iteration.
const COEFFICIENTS: [f64; 3] = [3.4445, -4.775, 2.0315];
const TINY: f32 = 1e-7;
/// Parts of names of matrices whose rows are tokens or classes.
const NOT_HIDDEN: [&str; 8] = [
    "embed",
    "wte",
    "wpe",
    "lm_head",
    "score",
    "classifier",
    "embd",
    "output_projection",
];

/// How the learning rate follows the shape of a matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdjustLr {
    /// Times `√max(1, rows / columns)`.
    Original,
    /// Times `0.2 √max(rows, columns)`: updates as large as those of AdamW.
    #[default]
    MatchRmsAdamw,
}

/// Settings of [`Muon`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MuonConfig {
    /// Share of the momentum that is kept at each step.
    pub momentum: f64,
    /// Look ahead by one step of momentum.
    pub nesterov: bool,
    /// Iterations.
    pub ns_steps: usize,
    /// How the learning rate follows the shape.
    pub adjust_lr_fn: AdjustLr,
}

impl Default for MuonConfig {
    fn default() -> Self {
        Self {
            momentum: 0.95,
            nesterov: true,
            ns_steps: 5,
            adjust_lr_fn: AdjustLr::default(),
        }
    }
}

/// The optimizer.
#[derive(Debug)]
pub struct Muon {
    config: MuonConfig,
    momenta: Remembered,
    others: AdamW,
}

impl Muon {
    /// One that remembers nothing.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn new(config: MuonConfig, train: &TrainConfig) -> Result<Self, String> {
        if !(0.0..1.0).contains(&config.momentum) {
            return Err(format!(
                "`muon`: momentum {} given, but it must be within 0 and 1 (excluded)",
                config.momentum
            ));
        }
        if !(1..100).contains(&config.ns_steps) {
            return Err(format!(
                "`muon`: `ns_steps` {} given, but there must be 1 to 99",
                config.ns_steps
            ));
        }
        Ok(Self {
            config,
            momenta: Remembered::default(),
            others: AdamW::new(train),
        })
    }
}

/// The nearest orthogonal matrix, about: singular values come near one.
fn orthogonal(matrix: Tensor<2>, steps: usize) -> Tensor<2> {
    let [rows, cols] = matrix.dims();
    let tall = rows > cols;
    let mut x = if tall { matrix.transpose() } else { matrix };
    let norm = to_vec((x.clone() * x.clone()).sum())[0].sqrt();
    x = x / norm.max(TINY);
    let [a, b, c] = COEFFICIENTS;
    for _ in 0..steps {
        let gram = x.clone().matmul(x.clone().transpose());
        let update = gram.clone() * b + gram.clone().matmul(gram) * c;
        x = x.clone() * a + update.matmul(x);
    }
    if tall { x.transpose() } else { x }
}

fn is_hidden(name: &str, shape: &[usize]) -> bool {
    shape.len() == 2 && !NOT_HIDDEN.iter().any(|part| name.contains(part))
}

impl Optimizer for Muon {
    fn name(&self) -> &'static str {
        "muon"
    }

    fn check(&self, parameters: &[&Parameter]) -> Result<(), String> {
        if parameters.iter().any(|p| is_hidden(p.name(), p.shape())) {
            return Ok(());
        }
        Err("`muon`: no trained parameter is a matrix of a hidden layer, so that all would follow AdamW".into())
    }

    fn update(&mut self, parameter: &mut Parameter, gradient: &Gradient, update: &Update) {
        let (&[rows, cols], true) = (
            parameter.shape(),
            is_hidden(parameter.name(), parameter.shape()),
        ) else {
            return self.others.update(parameter, gradient, update);
        };
        let value = parameter.value();
        let device = value.device();
        let gradient = gradient.tensor(&device) * update.grad_scale;
        let kept = self.config.momentum;
        let slots = self.momenta.next(parameter.name());
        let momentum = slots.get("momentum_buffer", rows * cols, &device) * kept
            + gradient.clone() * (1.0 - kept);
        slots.set("momentum_buffer", momentum.clone());
        let direction = if self.config.nesterov {
            gradient * (1.0 - kept) + momentum * kept
        } else {
            momentum
        };
        let change = orthogonal(direction.reshape([rows, cols]), self.config.ns_steps);
        let (r, c) = (rows as f64, cols as f64);
        let factor = match self.config.adjust_lr_fn {
            AdjustLr::Original => (r / c).max(1.0).sqrt(),
            AdjustLr::MatchRmsAdamw => 0.2 * r.max(c).sqrt(),
        };
        let kept = value * (1.0 - update.lr * update.weight_decay);
        parameter.set_value(kept - change.reshape([rows * cols]) * (update.lr * factor));
    }

    fn state_bytes(&self, name: &str, shape: &[usize]) -> u64 {
        let moments = if is_hidden(name, shape) { 1 } else { 2 };
        super::bytes_of(moments * super::numel(shape))
    }

    fn state(&self) -> Vec<(String, StateTensor<'_>)> {
        let muon = self.momenta.state().into_iter();
        let muon = muon.map(|(name, tensor)| (format!("muon.{name}"), tensor));
        muon.chain(self.others.state()).collect()
    }

    fn restore(&mut self, state: SavedState) -> Result<(), String> {
        let (mut momenta, mut others) = (SavedState::new(), SavedState::new());
        for (name, tensor) in state {
            match name.strip_prefix("muon.") {
                Some(rest) => momenta.insert(rest.to_owned(), tensor),
                None => others.insert(name, tensor),
            };
        }
        let momenta = Remembered::restored(momenta, &["momentum_buffer"])?;
        self.others.restore(others)?;
        self.momenta = momenta;
        Ok(())
    }
}
