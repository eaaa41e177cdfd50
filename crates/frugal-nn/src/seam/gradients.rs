//! Gradients of one optimiser step.

use std::collections::BTreeMap;

use burn::tensor::Gradients;

use crate::seam::parameter::{Parameter, to_vec};

/// Gradients by parameter name, summed over the micro-batches of a step; each `[len]` like its
/// parameter's values.
#[derive(Debug, Default)]
pub struct GradientSum(BTreeMap<String, Vec<f32>>);

impl GradientSum {
    /// Adds what a backward pass found.
    pub fn add<'a>(
        &mut self,
        parameters: impl Iterator<Item = &'a Parameter>,
        gradients: &mut Gradients,
    ) {
        for parameter in parameters {
            let Some(gradient) = parameter.take_gradient(gradients).map(to_vec) else {
                continue;
            };
            match self.0.get_mut(parameter.name()) {
                Some(sum) => sum.iter_mut().zip(&gradient).for_each(|(sum, g)| *sum += g),
                None => self.insert(parameter.name(), gradient),
            }
        }
    }

    /// The gradient of a parameter, if it has one in this step.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.0.get(name).map(Vec::as_slice)
    }

    /// The same, to change.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut [f32]> {
        self.0.get_mut(name).map(Vec::as_mut_slice)
    }

    /// Takes a gradient out, so that the optimiser does not see it.
    pub fn remove(&mut self, name: &str) -> Option<Vec<f32>> {
        self.0.remove(name)
    }

    /// Sets the gradient of a parameter.
    pub fn insert(&mut self, name: &str, gradient: Vec<f32>) {
        self.0.insert(name.to_owned(), gradient);
    }

    /// Names and gradients, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[f32])> {
        self.0
            .iter()
            .map(|(name, gradient)| (name.as_str(), gradient.as_slice()))
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}
