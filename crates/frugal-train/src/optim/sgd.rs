//! Stochastic gradient descent with momentum, as `torch.optim.SGD`.
//!
//! Sutskever, Martens, Dahl, Hinton: On the Importance of Initialization and Momentum in Deep
//! Learning, ICML 2013; in PyTorch's form, where the learning rate scales the momentum buffer.

use std::collections::BTreeMap;

use frugal_nn::{Gradient, Parameter};
use serde::{Deserialize, Serialize};

use super::state::{Moment, StateTensor, check_taken, take_values};
use super::{Optimizer, SavedState, Update};

/// Settings of [`Sgd`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SgdConfig {
    /// Share of the momentum buffer that is kept at each step.
    pub momentum: f64,
    /// Share of the gradient that is held back from the buffer.
    pub dampening: f64,
    /// Look ahead by one step of momentum.
    pub nesterov: bool,
}

impl Default for SgdConfig {
    fn default() -> Self {
        Self {
            momentum: 0.9,
            dampening: 0.0,
            nesterov: false,
        }
    }
}

/// The optimizer.
#[derive(Debug)]
pub struct Sgd {
    config: SgdConfig,
    /// The momentum buffer of each parameter.
    buffers: BTreeMap<String, Moment>,
}

impl Sgd {
    /// One that remembers nothing.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn new(config: SgdConfig) -> Result<Self, String> {
        let share = |x: f64| (0.0..1.0).contains(&x);
        if !share(config.momentum) || !share(config.dampening) {
            return Err(format!(
                "`sgd`: momentum {} and dampening {} given, but both must be within 0 and 1 (excluded)",
                config.momentum, config.dampening
            ));
        }
        if config.nesterov && (config.momentum == 0.0 || config.dampening != 0.0) {
            return Err("`sgd`: `nesterov` needs a momentum and no dampening".into());
        }
        Ok(Self {
            config,
            buffers: BTreeMap::new(),
        })
    }
}

impl Optimizer for Sgd {
    fn name(&self) -> &'static str {
        "sgd"
    }

    fn update(&mut self, parameter: &mut Parameter, gradient: &Gradient, update: &Update) {
        let value = parameter.value();
        let device = value.device();
        let mut gradient = gradient.tensor(&device) * update.grad_scale;
        if update.weight_decay != 0.0 {
            gradient = gradient + value.clone() * update.weight_decay;
        }
        let SgdConfig {
            momentum,
            dampening,
            nesterov,
        } = self.config;
        let mut direction = gradient.clone();
        if momentum != 0.0 {
            let before = self.buffers.get(parameter.name());
            // The first buffer is the gradient itself, whatever the dampening.
            let buffer = match before.filter(|buffer| buffer.len() == gradient.dims()[0]) {
                Some(buffer) => {
                    buffer.tensor(&device) * momentum + gradient.clone() * (1.0 - dampening)
                }
                None => gradient.clone(),
            };
            direction = if nesterov {
                gradient + buffer.clone() * momentum
            } else {
                buffer.clone()
            };
            let name = parameter.name().to_owned();
            self.buffers.insert(name, Moment::Device(buffer));
        }
        parameter.set_value(value - direction * update.lr);
    }

    fn state_bytes(&self, _: &str, shape: &[usize]) -> u64 {
        let kept = self.config.momentum != 0.0;
        super::bytes_of(u64::from(kept) * super::numel(shape))
    }

    fn state(&self) -> Vec<(String, StateTensor<'_>)> {
        self.buffers
            .iter()
            .map(|(name, buffer)| (format!("momentum_buffer.{name}"), buffer.stored()))
            .collect()
    }

    fn restore(&mut self, mut state: SavedState) -> Result<(), String> {
        let names: Vec<String> = state
            .keys()
            .filter_map(|key| key.strip_prefix("momentum_buffer.").map(str::to_owned))
            .collect();
        let mut buffers = BTreeMap::new();
        for name in names {
            let values = take_values(&mut state, &format!("momentum_buffer.{name}"))?;
            buffers.insert(name, Moment::Host(values));
        }
        check_taken(&state)?;
        self.buffers = buffers;
        Ok(())
    }
}
