//! The model that foretells rewards: a small Gated SSM over the evaluations of a run.
//!
//! The paper has a causal Gated SSM of 4 blocks, 256 wide; the released code has attention in its place
//! behind the same interface. Here it is the recurrence: one pass over the history gives a state, from
//! which each of thousands of candidate distributions is one step.

use std::collections::BTreeMap;

use burn::prelude::*;
use burn::tensor::activation::sigmoid;
use frugal_kernels::{LinearRecurrence, linear_recurrence, rms_norm};
use frugal_nn::{named_rng, standard_normal, to_vec};

use super::state::{take, to_whole, whole};

/// What one evaluation was: the losses before, the distribution until it, the rewards that came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluated {
    /// Losses before, `[arms]`.
    pub losses: Vec<f32>,
    /// Distribution that was drawn from, `[arms]`.
    pub action: Vec<f32>,
    /// Rewards, `[arms]`.
    pub rewards: Vec<f32>,
}

const EPS: f64 = 1e-6;
const BETAS: [f64; 2] = [0.9, 0.999];
const WEIGHT_DECAY: f64 = 0.1;
const MAX_GRAD_NORM: f64 = 1.0;

/// Tensors of a block: gain, f, i, z, o, way out.
const OF_BLOCK: usize = 6;

/// A small Gated SSM with weights on the host.
#[derive(Clone, Debug)]
pub struct RewardModel {
    arms: usize,
    width: usize,
    layers: usize,
    lr: f64,
    /// Gains of losses and actions, way in, blocks, last gain, way out.
    parameters: Vec<Values>,
    moments: [Vec<Vec<f32>>; 2],
    steps: u64,
}

#[derive(Clone, Debug)]
struct Values {
    shape: [usize; 2],
    values: Vec<f32>,
    decays: bool,
}

impl RewardModel {
    /// A fresh one; weights are N(0, 1 / inputs), gains 1, the way out 0.
    pub fn new(arms: usize, [layers, width]: [usize; 2], lr: f64, seed: u64) -> Self {
        let mut parameters = Vec::new();
        let mut add = |shape: [usize; 2], scale: Option<f64>| {
            let name = format!("reward model {}", parameters.len());
            let mut rng = named_rng(seed, &name);
            let draw = |_| match scale {
                Some(scale) => scale as f32 * standard_normal(&mut rng),
                None => 1.0,
            };
            parameters.push(Values {
                shape,
                values: (0..shape[0] * shape[1]).map(draw).collect(),
                // As in the large model, the gate of forgetting is left alone, and so are gains.
                decays: scale.is_some(),
            });
        };
        let by = |inputs: usize| Some((1.0 / inputs as f64).sqrt());
        add([1, arms], None);
        add([1, arms], None);
        add([width, 2 * arms], by(2 * arms));
        for _ in 0..layers {
            add([1, width], None);
            for _ in 0..4 {
                add([width, width], by(width));
            }
            add([width, width], by(width));
        }
        add([1, width], None);
        add([arms, width], Some(0.0));
        for layer in 0..layers {
            parameters[3 + layer * OF_BLOCK + 1].decays = false;
        }
        let zeros = || {
            let len = |p: &Values| vec![0.0; p.values.len()];
            parameters.iter().map(len).collect::<Vec<_>>()
        };
        Self {
            arms,
            width,
            layers,
            lr,
            moments: [zeros(), zeros()],
            parameters,
            steps: 0,
        }
    }

    /// Fits it to the history for so many steps of AdamW (as in the released code: weight decay 0.1,
    /// gradients clipped at 1); returns the mean squared error before the last.
    pub fn fit(&mut self, history: &[Evaluated], steps: usize) -> f64 {
        let (inputs, rewards) = (self.rows(history), history.iter().flat_map(|e| &e.rewards));
        let device = Device::flex();
        let target: Vec<f32> = rewards.copied().collect();
        let target =
            Tensor::<2>::from_data(TensorData::new(target, [history.len(), self.arms]), &device);
        let mut error = 0.0;
        for _ in 0..steps {
            if history.is_empty() {
                break;
            }
            let leaves: Vec<Tensor<2>> = self
                .parameters
                .iter()
                .map(|p| Tensor::from_inner(p.tensor(&device)).require_grad())
                .collect();
            let (found, _) = self.forward(&leaves, inputs.clone(), None);
            let loss = (found - target.clone()).square().mean();
            error = f64::from(to_vec(loss.clone().inner())[0]);
            let gradients = loss.backward();
            let gradients: Vec<Vec<f32>> = leaves
                .iter()
                .zip(&self.parameters)
                .map(|(leaf, p)| match leaf.grad(&gradients) {
                    Some(gradient) => to_vec(gradient),
                    None => vec![0.0; p.values.len()],
                })
                .collect();
            self.update(&gradients);
        }
        error
    }

    /// Foretold rewards `[candidates][arms]` of distributions that would follow these losses.
    pub fn predict(
        &self,
        history: &[Evaluated],
        losses: &[f32],
        candidates: &[Vec<f32>],
    ) -> Vec<Vec<f32>> {
        let device = Device::flex();
        let weights: Vec<Tensor<2>> = self.parameters.iter().map(|p| p.tensor(&device)).collect();
        let state = match history.is_empty() {
            true => vec![Tensor::zeros([1, self.width], &device); self.layers],
            false => self.forward(&weights, self.rows(history), None).1,
        };
        let rows: Vec<Evaluated> = candidates
            .iter()
            .map(|action| Evaluated {
                losses: losses.to_vec(),
                action: action.clone(),
                rewards: Vec::new(),
            })
            .collect();
        let (found, _) = self.forward(&weights, self.rows(&rows), Some(&state));
        to_vec(found)
            .chunks(self.arms)
            .map(<[f32]>::to_vec)
            .collect()
    }

    /// Losses and distributions of evaluations, `[evaluations, arms]` each.
    fn rows(&self, evaluated: &[Evaluated]) -> [Tensor<2>; 2] {
        let device = Device::flex();
        let losses: fn(&Evaluated) -> &Vec<f32> = |e| &e.losses;
        let actions: fn(&Evaluated) -> &Vec<f32> = |e| &e.action;
        [losses, actions].map(|of| {
            let values: Vec<f32> = evaluated.iter().flat_map(|e| of(e).clone()).collect();
            Tensor::from_data(
                TensorData::new(values, [evaluated.len(), self.arms]),
                &device,
            )
        })
    }

    /// Foretold rewards of all rows, and the states of all blocks behind the last; with `states` each
    /// row is a step from these.
    fn forward(
        &self,
        weights: &[Tensor<2>],
        [losses, actions]: [Tensor<2>; 2],
        states: Option<&[Tensor<2>]>,
    ) -> (Tensor<2>, Vec<Tensor<2>>) {
        let gain = |at: usize| {
            let [_, n] = weights[at].dims();
            weights[at].clone().reshape([n])
        };
        let linear = |x: Tensor<2>, at: usize| frugal_kernels::linear(x, weights[at].clone(), None);
        let parts = vec![
            rms_norm(losses, gain(0), EPS),
            rms_norm(actions, gain(1), EPS),
        ];
        let mut x = linear(Tensor::cat(parts, 1), 2);
        let [rows, _] = x.dims();
        let mut last = Vec::new();
        for layer in 0..self.layers {
            let at = 3 + layer * OF_BLOCK;
            let y = rms_norm(x.clone(), gain(at), EPS);
            let f = sigmoid(linear(y.clone(), at + 1));
            let input = sigmoid(linear(y.clone(), at + 2)) * linear(y.clone(), at + 3);
            let o = frugal_kernels::gelu(linear(y, at + 4));
            let h = match states {
                Some(states) => f * states[layer].clone() + input,
                None => linear_recurrence(LinearRecurrence {
                    a: f,
                    b: input,
                    initial_state: None,
                    resets: None,
                    reverse: false,
                    cu_seqlens: [0, rows].into(),
                }),
            };
            if states.is_none() {
                last.push(h.clone().narrow(0, rows - 1, 1));
            }
            x = x + linear(o * h, at + 5);
        }
        let at = 3 + self.layers * OF_BLOCK;
        (linear(rms_norm(x, gain(at), EPS), at + 1).tanh(), last)
    }

    fn update(&mut self, gradients: &[Vec<f32>]) {
        self.steps += 1;
        let squares = gradients.iter().flatten().map(|g| f64::from(*g).powi(2));
        let norm = squares.sum::<f64>().sqrt();
        let clip = (MAX_GRAD_NORM / norm.max(1e-12)).min(1.0);
        let corrections = BETAS.map(|beta| 1.0 - beta.powf(self.steps as f64));
        let [first, second] = &mut self.moments;
        for (i, p) in self.parameters.iter_mut().enumerate() {
            let decay = if p.decays { WEIGHT_DECAY } else { 0.0 };
            for (j, value) in p.values.iter_mut().enumerate() {
                let gradient = f64::from(gradients[i][j]) * clip;
                let moved = |old: f32, beta: f64, new: f64| {
                    (beta * f64::from(old) + (1.0 - beta) * new) as f32
                };
                first[i][j] = moved(first[i][j], BETAS[0], gradient);
                second[i][j] = moved(second[i][j], BETAS[1], gradient * gradient);
                let mean = f64::from(first[i][j]) / corrections[0];
                let root = (f64::from(second[i][j]) / corrections[1]).sqrt() + 1e-8;
                let step = self.lr * (mean / root + decay * f64::from(*value));
                *value = (f64::from(*value) - step) as f32;
            }
        }
    }

    /// Everything that a resumed run needs.
    pub(super) fn save(&self, state: &mut BTreeMap<String, Vec<f32>>) {
        for (i, p) in self.parameters.iter().enumerate() {
            state.insert(format!("reward_model.{i}.weight"), p.values.clone());
            for (j, moments) in self.moments.iter().enumerate() {
                state.insert(format!("reward_model.{i}.moment{j}"), moments[i].clone());
            }
        }
        state.insert("reward_model.steps".into(), whole(self.steps));
    }

    /// Goes on from what [`RewardModel::save`] gave.
    pub(super) fn restore(&mut self, state: &BTreeMap<String, Vec<f32>>) -> Result<(), String> {
        let mut read = self.clone();
        for (i, p) in read.parameters.iter_mut().enumerate() {
            let len = p.values.len();
            p.values = take(&format!("reward_model.{i}.weight"), len, state)?.to_vec();
            for (j, moments) in read.moments.iter_mut().enumerate() {
                moments[i] = take(&format!("reward_model.{i}.moment{j}"), len, state)?.to_vec();
            }
        }
        read.steps = to_whole("reward_model.steps", state)?;
        *self = read;
        Ok(())
    }
}

impl Values {
    fn tensor(&self, device: &Device) -> Tensor<2> {
        Tensor::from_data(TensorData::new(self.values.clone(), self.shape), device)
    }
}
