//! An adapted layer of IncreLoRA: groups of components, the last of them perhaps a reserve.

use burn::prelude::*;
use frugal_nn::{GradientSum, Mode, Parameter};

use crate::methods::low_rank::increlora::schedule::{Clock, Importance};

/// Components that came together.
#[derive(Clone)]
pub(crate) struct Group {
    pub(crate) size: usize,
    /// `[size, d_in]`.
    pub(crate) a: Parameter,
    /// `[size, 1]`.
    pub(crate) e: Parameter,
    /// `[d_out, size]`.
    pub(crate) b: Parameter,
    /// Learning rate of `a` and `b`.
    pub(crate) directions: Clock,
    /// Learning rate of `e`.
    pub(crate) weights: Clock,
}

/// One adapted layer.
#[derive(Clone)]
pub(crate) struct Module {
    pub(crate) path: String,
    pub(crate) d_in: usize,
    pub(crate) d_out: usize,
    pub(crate) groups: Vec<Group>,
    /// Whether the last group is a reserve.
    pub(crate) reserve: bool,
    pub(crate) importance: Importance,
    /// Zeros `[d_out, d_in]` added to the change while it grows, for the gradient there.
    pub(crate) probe: Option<Parameter>,
}

impl Module {
    /// Active components.
    pub(crate) fn rank(&self) -> usize {
        let all: usize = self.groups.iter().map(|g| g.size).sum();
        if self.reserve {
            all - self.groups.last().map_or(0, |g| g.size)
        } else {
            all
        }
    }

    pub(crate) fn scale(&self, alpha: f64) -> f32 {
        (alpha / (self.rank() as f64 + 1e-5)) as f32
    }

    /// `E ⊙ A [k, d_in]` and `B [d_out, k]` of all components, the reserve included.
    pub(crate) fn factors(&self, mode: Mode) -> (Tensor<2>, Tensor<2>) {
        let a = self
            .groups
            .iter()
            .map(|g| g.a.get::<2>(mode) * g.e.get::<2>(mode))
            .collect();
        (Tensor::cat(a, 0), self.directions(mode).1)
    }

    /// `A [k, d_in]` and `B [d_out, k]`.
    pub(crate) fn directions(&self, mode: Mode) -> (Tensor<2>, Tensor<2>) {
        let a = self.groups.iter().map(|g| g.a.get::<2>(mode)).collect();
        let b = self.groups.iter().map(|g| g.b.get::<2>(mode)).collect();
        (Tensor::cat(a, 0), Tensor::cat(b, 1))
    }

    /// `ΔW [d_out, d_in]`.
    pub(crate) fn delta(&self, alpha: f64, mode: Mode) -> Tensor<2> {
        let (a, b) = self.factors(mode);
        b.matmul(a) * self.scale(alpha)
    }

    /// Turns the first `count` components of the reserve active, and keeps this step's gradients of
    /// these alone.
    pub(crate) fn promote(
        &mut self,
        count: usize,
        step: u64,
        device: &Device,
        gradients: &mut GradientSum,
    ) {
        let Some(last) = self.groups.pop() else {
            return;
        };
        let (d_in, d_out) = (self.d_in, self.d_out);
        let rows =
            |values: &[f32]| -> Vec<f32> { values[..values.len() / last.size * count].to_vec() };
        let columns = |values: &[f32]| -> Vec<f32> {
            values
                .chunks_exact(last.size)
                .flat_map(|row| row[..count].to_vec())
                .collect()
        };
        let mut cut =
            |parameter: &Parameter, shape: [usize; 2], kept: &dyn Fn(&[f32]) -> Vec<f32>| {
                // The optimiser wants gradients as long as the values.
                if let Some(gradient) = gradients.remove(parameter.name()) {
                    gradients.insert(parameter.name(), kept(&gradient));
                }
                Parameter::new(parameter.name(), &shape, kept(&parameter.to_vec()), device)
            };
        self.groups.push(Group {
            size: count,
            a: cut(&last.a, [count, d_in], &rows),
            e: cut(&last.e, [count, 1], &rows),
            b: cut(&last.b, [d_out, count], &columns),
            // Without advance learning the directions begin with their components.
            directions: if last.a.is_trainable() {
                last.directions
            } else {
                Clock::starting_at(step)
            },
            weights: Clock::starting_at(step),
        });
        self.reserve = false;
    }
}
