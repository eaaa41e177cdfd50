//! AdamW: the moments of each parameter in single precision.
//!
//! Loshchilov, Hutter: Decoupled Weight Decay Regularization, 2019, arXiv 1711.05101. A parameter
//! has a step count of its own, as in PyTorch.

use std::collections::BTreeMap;

use frugal_kernels::{AdamWStep, adamw_step};
use frugal_nn::{Gradient, Parameter};

use super::state::{Moment, StateTensor, check_taken, take_steps, take_values};
use super::{Optimizer, SavedState, Update};
use crate::config::TrainConfig;

/// The optimizer. On the CPU a fused kernel does its arithmetic, on other devices tensors do.
#[derive(Debug)]
pub struct AdamW {
    betas: Betas,
    histories: BTreeMap<String, History>,
}

/// The settings of AdamW.
#[derive(Clone, Copy, Debug)]
pub(super) struct Betas {
    beta1: f64,
    beta2: f64,
    eps: f64,
}

impl Betas {
    pub(super) fn new(config: &TrainConfig) -> Self {
        Self {
            beta1: config.adam_beta1,
            beta2: config.adam_beta2,
            eps: config.adam_epsilon,
        }
    }

    /// The numbers of one update, the `step`th of its parameter.
    pub(super) fn step(self, update: &Update, step: u64) -> AdamWStep {
        AdamWStep {
            lr: update.lr,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            weight_decay: update.weight_decay,
            step,
            grad_scale: update.grad_scale,
        }
    }
}

/// What is remembered of one parameter.
#[derive(Clone, Debug)]
pub(super) struct History {
    exp_avg: Moment,
    exp_avg_sq: Moment,
    /// Updates so far.
    step: u64,
}

impl History {
    pub(super) fn zeros(len: usize) -> Self {
        Self {
            exp_avg: Moment::zeros(len),
            exp_avg_sq: Moment::zeros(len),
            step: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.exp_avg.len()
    }

    /// Updates a parameter where it is.
    pub(super) fn update(
        &mut self,
        parameter: &mut Parameter,
        gradient: &Gradient,
        betas: Betas,
        update: &Update,
    ) {
        self.step += 1;
        let step = betas.step(update, self.step);
        if !parameter.is_on_host() {
            self.update_on_device(parameter, gradient, &step);
            return;
        }
        let mut values = parameter.to_vec();
        let (exp_avg, exp_avg_sq) = (self.exp_avg.host(), self.exp_avg_sq.host());
        adamw_step(&mut values, gradient.as_slice(), exp_avg, exp_avg_sq, &step);
        parameter.set(values);
    }

    /// The arithmetic of [`adamw_step`] in tensors.
    fn update_on_device(&mut self, parameter: &mut Parameter, gradient: &Gradient, h: &AdamWStep) {
        let value = parameter.value();
        let device = value.device();
        let bias1 = 1.0 - h.beta1.powf(h.step as f64);
        let bias2 = 1.0 - h.beta2.powf(h.step as f64);
        let gradient = gradient.tensor(&device) * h.grad_scale;
        let exp_avg = self.exp_avg.tensor(&device);
        let exp_avg = exp_avg.clone() + (gradient.clone() - exp_avg) * (1.0 - h.beta1);
        let exp_avg_sq = self.exp_avg_sq.tensor(&device) * h.beta2
            + gradient.clone() * gradient * (1.0 - h.beta2);
        let denominator = exp_avg_sq.clone().sqrt() / bias2.sqrt() + h.eps;
        let kept = value * (1.0 - h.lr * h.weight_decay);
        parameter.set_value(kept - exp_avg.clone() * (h.lr / bias1) / denominator);
        self.exp_avg = Moment::Device(exp_avg);
        self.exp_avg_sq = Moment::Device(exp_avg_sq);
    }

    pub(super) fn stored(&self, name: &str) -> [(String, StateTensor<'_>); 3] {
        [
            (format!("step.{name}"), StateTensor::Count(self.step)),
            (format!("exp_avg.{name}"), self.exp_avg.stored()),
            (format!("exp_avg_sq.{name}"), self.exp_avg_sq.stored()),
        ]
    }

    pub(super) fn restored(state: &mut SavedState, name: &str, step: u64) -> Result<Self, String> {
        let exp_avg = take_values(state, &format!("exp_avg.{name}"))?;
        let exp_avg_sq = take_values(state, &format!("exp_avg_sq.{name}"))?;
        if exp_avg.len() != exp_avg_sq.len() {
            return Err(format!("the two moments of `{name}` differ in size"));
        }
        Ok(Self {
            exp_avg: Moment::Host(exp_avg),
            exp_avg_sq: Moment::Host(exp_avg_sq),
            step,
        })
    }
}

impl AdamW {
    /// One that remembers nothing.
    pub fn new(config: &TrainConfig) -> Self {
        Self {
            betas: Betas::new(config),
            histories: BTreeMap::new(),
        }
    }
}

impl Optimizer for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn update(&mut self, parameter: &mut Parameter, gradient: &Gradient, update: &Update) {
        let len = parameter.len();
        let history = self
            .histories
            .entry(parameter.name().to_owned())
            .or_insert_with(|| History::zeros(len));
        if history.len() != len {
            *history = History::zeros(len);
        }
        history.update(parameter, gradient, self.betas, update);
    }

    fn state_bytes(&self, _: &str, shape: &[usize]) -> u64 {
        super::bytes_of(2 * super::numel(shape))
    }

    fn state(&self) -> Vec<(String, StateTensor<'_>)> {
        self.histories
            .iter()
            .flat_map(|(name, history)| history.stored(name))
            .collect()
    }

    fn restore(&mut self, mut state: SavedState) -> Result<(), String> {
        let mut histories = BTreeMap::new();
        for (name, step) in take_steps(&mut state)? {
            let history = History::restored(&mut state, &name, step)?;
            histories.insert(name, history);
        }
        check_taken(&state)?;
        self.histories = histories;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::{OptimizerError, OptimizerStep, ParamGroup, squares};
    use burn::prelude::*;
    use frugal_nn::GradientSum;

    fn new(config: &TrainConfig) -> OptimizerStep {
        OptimizerStep::new(Box::new(AdamW::new(config)), config).unwrap()
    }

    fn step(
        optimizer: &mut OptimizerStep,
        parameter: &mut Parameter,
        gradient: &[f32],
    ) -> Result<f64, OptimizerError> {
        let mut gradients = GradientSum::default();
        gradients.insert(parameter.name(), gradient.to_vec());
        optimizer.step(vec![parameter], &gradients, &squares(&gradients), 0.1)
    }

    fn state(optimizer: &OptimizerStep) -> String {
        format!("{:?}", optimizer.optimizer().state())
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
        let mut optimizer = new(&config);
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
            step(&mut new(&TrainConfig::default()), &mut p, &[0.5]).unwrap();
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
            step(&mut new(&config), &mut p, &[0.0]).unwrap();
            p.to_vec()[0]
        };
        assert_eq!(after("x.weight", &[1, 1]), 0.95);
        assert_eq!(after("x.weight", &[1]), 1.0);
        assert_eq!(after("x.bias", &[1, 1]), 1.0);
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let mut p = Parameter::new("w", &[1, 2], vec![1.0, 2.0], &Device::default());
        let mut optimizer = new(&TrainConfig::default());
        step(&mut optimizer, &mut p, &[0.5, 0.5]).unwrap();
        let before = (p.to_vec(), state(&optimizer));
        let error = step(&mut optimizer, &mut p, &[0.5, f32::NAN]).unwrap_err();
        assert_eq!(error.to_string(), "the gradient of `w` is not finite");
        assert_eq!((p.to_vec(), state(&optimizer)), before);
    }

    /// The host's kernel is the oracle of the tensors: the same values within a rounding or two.
    #[test]
    fn tensors_of_a_device_are_updated_as_by_the_kernel_of_the_host() {
        let wave = |f: f64| (0..777).map(move |i| (f64::from(i) * f).sin() as f32);
        let parameter = || {
            let values = wave(0.3).collect();
            Parameter::new("w", &[777], values, &Device::flex())
        };
        let betas = Betas::new(&TrainConfig::default());
        let (mut on_host, mut on_device) = (parameter(), parameter());
        let (mut host, mut device) = (History::zeros(777), History::zeros(777));
        for step in 1..=5 {
            let update = Update {
                lr: 0.01 * f64::from(step),
                weight_decay: 0.1,
                grad_scale: 0.7,
            };
            let gradient: Vec<f32> = wave(0.7 + f64::from(step)).collect();
            host.update(&mut on_host, &gradient.clone().into(), betas, &update);
            device.step += 1;
            let h = betas.step(&update, device.step);
            let tensor = Tensor::from_data(TensorData::from(gradient.as_slice()), &Device::flex());
            device.update_on_device(&mut on_device, &Gradient::on_device(tensor), &h);
        }
        let close = |a: &[f32], b: &[f32]| {
            let apart = a.iter().zip(b).map(|(a, b)| (a - b).abs());
            apart.fold(0.0, f32::max) < 1e-6
        };
        assert!(close(&on_host.to_vec(), &on_device.to_vec()));
        assert!(close(host.exp_avg.host(), device.exp_avg.host()));
        assert!(close(host.exp_avg_sq.host(), device.exp_avg_sq.host()));
        assert!(on_device.to_vec() != parameter().to_vec());
    }

    #[test]
    fn gradients_of_a_device_are_clipped_by_the_norm_of_all() {
        let config = TrainConfig::default();
        let tensor = |values: [f32; 2]| Tensor::from_floats(values, &Device::flex());
        let mut p = Parameter::new("a", &[1, 2], vec![1.0, -2.0], &Device::flex());
        let mut gradients = GradientSum::default();
        gradients.insert("a", Gradient::on_device(tensor([2.0, 4.0])));
        gradients.insert("b", vec![4.0, 0.0]);
        gradients.insert("c", Gradient::on_device(tensor([0.0, 8.0])));
        assert_eq!(
            new(&config).step(vec![&mut p], &gradients, &squares(&gradients), 0.1),
            Ok(10.0)
        );
        gradients.insert("c", Gradient::on_device(tensor([0.0, f32::INFINITY])));
        let error = new(&config).step(vec![&mut p], &gradients, &squares(&gradients), 0.1);
        assert_eq!(error, Err(OptimizerError::NonFinite { name: "c".into() }));
    }

    #[test]
    fn groups_of_parameters_have_a_rate_and_a_decay_of_their_own() {
        let group = |pattern: &str, lr_scale, weight_decay| ParamGroup {
            pattern: pattern.into(),
            lr_scale,
            weight_decay,
        };
        let config = TrainConfig {
            weight_decay: 0.5,
            param_groups: vec![
                group("lora_B", 4.0, Some(0.0)),
                group(r"layers\.[01]\.", 0.0, None),
            ],
            ..TrainConfig::default()
        };
        let after = |name: &str, gradient: f32| {
            let mut p = Parameter::new(name, &[1, 1], vec![1.0], &Device::flex());
            step(&mut new(&config), &mut p, &[gradient]).unwrap();
            p.to_vec()[0]
        };
        // The first step of Adam is the learning rate, here 0.1; without a gradient only the decay
        // is left.
        assert!((after("layers.0.lora_B", 0.5) - 0.6).abs() < 1e-6);
        assert_eq!(after("layers.0.lora_B", 0.0), 1.0);
        assert_eq!(after("layers.1.lora_A", 0.5), 1.0);
        assert_eq!(after("layers.2.lora_A", 0.0), 0.95);
        let p = Parameter::new("layers.0.lora_B", &[1], vec![1.0], &Device::flex());
        assert_eq!(new(&config).unused_group(&[&p]), Some(r"layers\.[01]\."));
    }
}
