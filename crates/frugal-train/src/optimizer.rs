//! AdamW over named parameters, with global-norm clipping.
//!
//! Weight decay skips biases and vectors (norm gains, scales), as Hugging Face's trainer skips
//! biases and norms. A parameter without a gradient in a step is left alone, with moments and step
//! count of its own, as in PyTorch. Moments of eight bits are those of bitsandbytes, which keeps
//! those of small parameters in single precision.

use std::collections::BTreeMap;

use frugal_kernels::{AdamWStep, Blockwise, adamw_8bit_step, adamw_step, grad_norm_sq};
use frugal_nn::{GradientSum, Parameter};
use thiserror::Error;

use crate::config::{Optimizer, TrainConfig};

/// What an optimiser step refuses.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OptimizerError {
    /// A gradient has an infinite element or one that is not a number.
    #[error("the gradient of `{name}` is not finite")]
    NonFinite {
        /// The parameter.
        name: String,
    },
}

/// Elements from which on moments may have eight bits.
const EIGHT_BIT_FROM: usize = 4096;

/// First and second moment of one parameter.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Moments {
    Single(Vec<f32>, Vec<f32>),
    EightBit(Blockwise, Blockwise),
}

impl Moments {
    fn zeros(n: usize, optim: Optimizer) -> Self {
        match optim {
            Optimizer::AdamW8bit if n >= EIGHT_BIT_FROM => {
                Self::EightBit(Blockwise::zeros(n, true), Blockwise::zeros(n, false))
            }
            Optimizer::AdamW | Optimizer::AdamW8bit => Self::Single(vec![0.0; n], vec![0.0; n]),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Single(exp_avg, _) => exp_avg.len(),
            Self::EightBit(exp_avg, _) => exp_avg.len(),
        }
    }
}

/// What the optimiser knows of one parameter.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct History {
    pub(super) moments: Moments,
    /// Updates so far.
    pub(super) step: u64,
}

/// The AdamW optimiser.
#[derive(Clone, Debug)]
pub struct AdamW {
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    max_grad_norm: f64,
    optim: Optimizer,
    pub(super) histories: BTreeMap<String, History>,
}

impl AdamW {
    /// An optimiser without history.
    pub fn new(config: &TrainConfig) -> Self {
        Self {
            beta1: config.adam_beta1,
            beta2: config.adam_beta2,
            eps: config.adam_epsilon,
            weight_decay: config.weight_decay,
            max_grad_norm: config.max_grad_norm,
            optim: config.optim,
            histories: BTreeMap::new(),
        }
    }

    /// Updates every trainable parameter that has a gradient; returns the global gradient norm
    /// before clipping.
    ///
    /// # Errors
    /// A gradient that is not finite; nothing has changed then.
    pub(super) fn step(
        &mut self,
        parameters: Vec<&mut Parameter>,
        gradients: &GradientSum,
        lr: f64,
    ) -> Result<f64, OptimizerError> {
        let mut sum = 0.0;
        for (name, gradient) in gradients.iter() {
            let square = grad_norm_sq(gradient);
            if !square.is_finite() {
                return Err(OptimizerError::NonFinite {
                    name: name.to_owned(),
                });
            }
            sum += square;
        }
        let norm = sum.sqrt();
        // The epsilon and the comparison are those of torch.nn.utils.clip_grad_norm_.
        let scale = if self.max_grad_norm > 0.0 {
            (self.max_grad_norm / (norm + 1e-6)).min(1.0)
        } else {
            1.0
        };
        for parameter in parameters.into_iter().filter(|p| p.is_trainable()) {
            let Some(gradient) = gradients.get(parameter.name()) else {
                continue;
            };
            let n = gradient.len();
            let new = || History {
                moments: Moments::zeros(n, self.optim),
                step: 0,
            };
            let history = self
                .histories
                .entry(parameter.name().to_owned())
                .or_insert_with(new);
            if history.moments.len() != n {
                *history = new();
            }
            history.step += 1;
            let mut values = parameter.to_vec();
            let step = AdamWStep {
                lr: lr * parameter.lr_scale(),
                beta1: self.beta1,
                beta2: self.beta2,
                eps: self.eps,
                weight_decay: if decays(parameter) {
                    self.weight_decay
                } else {
                    0.0
                },
                step: history.step,
                grad_scale: scale as f32,
            };
            match &mut history.moments {
                Moments::Single(exp_avg, exp_avg_sq) => {
                    adamw_step(&mut values, gradient, exp_avg, exp_avg_sq, &step)
                }
                Moments::EightBit(exp_avg, exp_avg_sq) => {
                    adamw_8bit_step(&mut values, gradient, exp_avg, exp_avg_sq, &step)
                }
            }
            parameter.set(values);
        }
        Ok(norm)
    }
}

fn decays(parameter: &Parameter) -> bool {
    parameter.shape().len() > 1 && !parameter.name().ends_with("bias")
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::prelude::Device;

    fn step(
        optimizer: &mut AdamW,
        parameter: &mut Parameter,
        gradient: &[f32],
    ) -> Result<f64, OptimizerError> {
        let mut gradients = GradientSum::default();
        gradients.insert(parameter.name(), gradient.to_vec());
        optimizer.step(vec![parameter], &gradients, 0.1)
    }

    #[test]
    fn steps_equal_those_of_torch() {
        // Written by torch 2.15.0: AdamW(lr=0.1, weight_decay=0.1) on [[1.0, -2.0]] with
        // clip_grad_norm_(1.0) of the gradients [[3.0, 4.0]], then [[0.1, -0.2]].
        let config = TrainConfig {
            weight_decay: 0.1,
            max_grad_norm: 1.0,
            ..TrainConfig::default()
        };
        let mut p = Parameter::new("w", &[1, 2], vec![1.0, -2.0], &Device::default());
        let mut optimizer = AdamW::new(&config);
        assert_eq!(step(&mut optimizer, &mut p, &[3.0, 4.0]), Ok(5.0));
        step(&mut optimizer, &mut p, &[0.1, -0.2]).unwrap();
        for (got, expected) in p.to_vec().into_iter().zip(TORCH) {
            assert!((got - expected).abs() < 1e-6, "{got} instead of {expected}");
        }
    }
    const TORCH: [f32; 2] = [0.802_767_3, -2.106_146_8];

    #[test]
    fn a_parameter_may_learn_at_a_rate_of_its_own() {
        let moved = |p: Parameter| {
            let mut p = p;
            step(&mut AdamW::new(&TrainConfig::default()), &mut p, &[0.5]).unwrap();
            1.0 - p.to_vec()[0]
        };
        let p = Parameter::new("w", &[1], vec![1.0], &Device::default());
        // The first step of Adam is the learning rate, here 0.1.
        assert!((moved(p.clone()) - 0.1).abs() < 1e-6);
        assert!((moved(p.with_lr_scale(4.0)) - 0.4).abs() < 1e-6);
    }

    #[test]
    fn decay_skips_vectors_and_biases() {
        let config = TrainConfig {
            weight_decay: 0.5,
            ..TrainConfig::default()
        };
        let after = |name: &str, shape: &[usize]| {
            let mut p = Parameter::new(name, shape, vec![1.0], &Device::default());
            step(&mut AdamW::new(&config), &mut p, &[0.0]).unwrap();
            p.to_vec()[0]
        };
        assert_eq!(after("x.weight", &[1, 1]), 0.95);
        assert_eq!(after("x.weight", &[1]), 1.0);
        assert_eq!(after("x.bias", &[1, 1]), 1.0);
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let mut p = Parameter::new("w", &[1, 2], vec![1.0, 2.0], &Device::default());
        let mut optimizer = AdamW::new(&TrainConfig::default());
        step(&mut optimizer, &mut p, &[0.5, 0.5]).unwrap();
        let (values, histories) = (p.to_vec(), optimizer.histories.clone());
        let error = step(&mut optimizer, &mut p, &[0.5, f32::NAN]).unwrap_err();
        assert_eq!(error.to_string(), "the gradient of `w` is not finite");
        assert_eq!((p.to_vec(), optimizer.histories), (values, histories));
    }
}
