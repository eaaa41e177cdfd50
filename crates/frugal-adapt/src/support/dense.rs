//! A trained linear layer, for the small networks that methods put beside a model.

use burn::prelude::*;
use frugal_nn::{Mode, Parameter, named_rng};
use rand::Rng;

/// `y = x Wᵀ + b`.
#[derive(Clone)]
pub(crate) struct Dense {
    /// `[d_out, d_in]`.
    pub weight: Parameter,
    /// `[d_out]`.
    pub bias: Option<Parameter>,
}

impl Dense {
    /// Uniform within `±1/sqrt(d_in)`, weight and bias, as PyTorch initialises its linear layers.
    pub fn uniform(name: &str, d_in: usize, d_out: usize, seed: u64, device: &Device) -> Self {
        let bound = 1.0 / (d_in as f32).sqrt();
        let mut rng = named_rng(seed, name);
        let mut draw = |n: usize| {
            (0..n)
                .map(|_| rng.random_range(-bound..bound))
                .collect::<Vec<f32>>()
        };
        Self {
            weight: Parameter::new(
                format!("{name}.weight"),
                &[d_out, d_in],
                draw(d_in * d_out),
                device,
            ),
            bias: Some(Parameter::new(
                format!("{name}.bias"),
                &[d_out],
                draw(d_out),
                device,
            )),
        }
    }

    /// All zero.
    pub fn zero(name: &str, d_in: usize, d_out: usize, device: &Device) -> Self {
        Self {
            weight: Parameter::new(
                format!("{name}.weight"),
                &[d_out, d_in],
                vec![0.0; d_in * d_out],
                device,
            ),
            bias: Some(Parameter::new(
                format!("{name}.bias"),
                &[d_out],
                vec![0.0; d_out],
                device,
            )),
        }
    }

    /// `[rows, d_in]` to `[rows, d_out]`.
    pub fn forward(&self, x: Tensor<2>, mode: Mode) -> Tensor<2> {
        frugal_kernels::linear(
            x,
            self.weight.get::<2>(mode),
            self.bias.as_ref().map(|b| b.get::<1>(mode)),
        )
    }

    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        std::iter::once(&self.weight).chain(&self.bias)
    }

    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        std::iter::once(&mut self.weight).chain(&mut self.bias)
    }
}
