//! Lion: the sign of a momentum that was looked up with the newest gradient in it.
//!
//! Chen et al.: Symbolic Discovery of Optimization Algorithms, 2023, arXiv 2302.06675, algorithm 2.
//! Every element moves by the learning rate, so that this wants to be three to ten times smaller
//! than AdamW's, and the weight decay as much larger.

use std::collections::BTreeMap;

use frugal_nn::{Gradient, Parameter};
use serde::{Deserialize, Serialize};

use super::state::{Moment, StateTensor, check_taken, take_values};
use super::{Optimizer, SavedState, Update};

/// Settings of [`Lion`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LionConfig {
    /// Share of the momentum in what decides the sign.
    pub beta1: f64,
    /// Share of the momentum that is kept.
    pub beta2: f64,
}

impl Default for LionConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.99,
        }
    }
}

/// The optimizer.
#[derive(Debug)]
pub struct Lion {
    config: LionConfig,
    /// The momentum of each parameter.
    moments: BTreeMap<String, Moment>,
}

impl Lion {
    /// One that remembers nothing.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn new(config: LionConfig) -> Result<Self, String> {
        let share = |x: f64| (0.0..1.0).contains(&x);
        if !share(config.beta1) || !share(config.beta2) {
            return Err(format!(
                "`lion`: beta1 {} and beta2 {} given, but both must be within 0 and 1 (excluded)",
                config.beta1, config.beta2
            ));
        }
        Ok(Self {
            config,
            moments: BTreeMap::new(),
        })
    }
}

impl Optimizer for Lion {
    fn name(&self) -> &'static str {
        "lion"
    }

    fn update(&mut self, parameter: &mut Parameter, gradient: &Gradient, update: &Update) {
        let value = parameter.value();
        let device = value.device();
        let gradient = gradient.tensor(&device) * update.grad_scale;
        let before = self.moments.get(parameter.name());
        let moment = match before.filter(|moment| moment.len() == gradient.dims()[0]) {
            Some(moment) => moment.tensor(&device),
            None => gradient.zeros_like(),
        };
        let LionConfig { beta1, beta2 } = self.config;
        let direction = (moment.clone() * beta1 + gradient.clone() * (1.0 - beta1)).sign();
        let kept = value * (1.0 - update.lr * update.weight_decay);
        parameter.set_value(kept - direction * update.lr);
        let moment = moment * beta2 + gradient * (1.0 - beta2);
        let name = parameter.name().to_owned();
        self.moments.insert(name, Moment::Device(moment));
    }

    fn state_bytes(&self, _: &str, shape: &[usize]) -> u64 {
        super::bytes_of(super::numel(shape))
    }

    fn state(&self) -> Vec<(String, StateTensor<'_>)> {
        self.moments
            .iter()
            .map(|(name, moment)| (format!("exp_avg.{name}"), moment.stored()))
            .collect()
    }

    fn restore(&mut self, mut state: SavedState) -> Result<(), String> {
        let names: Vec<String> = state
            .keys()
            .filter_map(|key| key.strip_prefix("exp_avg.").map(str::to_owned))
            .collect();
        let mut moments = BTreeMap::new();
        for name in names {
            let values = take_values(&mut state, &format!("exp_avg.{name}"))?;
            moments.insert(name, Moment::Host(values));
        }
        check_taken(&state)?;
        self.moments = moments;
        Ok(())
    }
}
