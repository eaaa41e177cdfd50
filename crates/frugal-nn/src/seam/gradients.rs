//! Gradients of one optimiser step.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use burn::prelude::*;
use burn::tensor::Gradients;

use crate::seam::parameter::{Parameter, on_host, to_vec};

/// The gradient of one parameter, where the parameter is: plain values on the CPU, a tensor on any
/// other device, which is copied to the host only if somebody looks at its elements.
#[derive(Debug)]
pub struct Gradient(Place);

#[derive(Debug)]
enum Place {
    Host(Vec<f32>),
    Device {
        tensor: Tensor<1>,
        copy: OnceLock<Vec<f32>>,
    },
}

impl From<Vec<f32>> for Gradient {
    fn from(values: Vec<f32>) -> Self {
        Self(Place::Host(values))
    }
}

impl From<Tensor<1>> for Gradient {
    /// A tensor outside of the gradient graph.
    fn from(tensor: Tensor<1>) -> Self {
        if on_host(&tensor) {
            Self::from(to_vec(tensor))
        } else {
            Self::on_device(tensor)
        }
    }
}

impl Gradient {
    /// Stays a tensor, whatever its device.
    pub fn on_device(tensor: Tensor<1>) -> Self {
        Self(Place::Device {
            tensor,
            copy: OnceLock::new(),
        })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match &self.0 {
            Place::Host(values) => values.len(),
            Place::Device { tensor, .. } => tensor.dims()[0],
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements, if they are on the host already.
    pub fn host(&self) -> Option<&[f32]> {
        match &self.0 {
            Place::Host(values) => Some(values),
            Place::Device { .. } => None,
        }
    }

    /// The elements; copied once from another device.
    pub fn as_slice(&self) -> &[f32] {
        match &self.0 {
            Place::Host(values) => values,
            Place::Device { tensor, copy } => copy.get_or_init(|| to_vec(tensor.clone())),
        }
    }

    /// The elements, to change; from then on they are on the host.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        if let Place::Device { .. } = self.0 {
            self.0 = Place::Host(std::mem::replace(self, Vec::new().into()).into_vec());
        }
        match &mut self.0 {
            Place::Host(values) => values,
            Place::Device { .. } => unreachable!("it was taken to the host just before"),
        }
    }

    /// The elements.
    pub fn into_vec(self) -> Vec<f32> {
        match self.0 {
            Place::Host(values) => values,
            Place::Device { tensor, copy } => copy.into_inner().unwrap_or_else(|| to_vec(tensor)),
        }
    }

    /// The gradient as a tensor `[len]` of this device.
    pub fn tensor(&self, device: &Device) -> Tensor<1> {
        match &self.0 {
            Place::Host(values) => Tensor::from_data(TensorData::from(values.as_slice()), device),
            Place::Device { tensor, .. } => tensor.clone(),
        }
    }

    fn add(&mut self, tensor: Tensor<1>) {
        match &mut self.0 {
            Place::Host(sum) => {
                let more = to_vec(tensor);
                sum.iter_mut().zip(&more).for_each(|(sum, g)| *sum += g);
            }
            Place::Device { tensor: sum, copy } => {
                *sum = sum.clone() + tensor;
                *copy = OnceLock::new();
            }
        }
    }
}

/// Gradients by parameter name, summed over the micro-batches of a step; each `[len]` like its
/// parameter's values.
#[derive(Debug, Default)]
pub struct GradientSum(BTreeMap<String, Gradient>);

impl GradientSum {
    /// Adds what a backward pass found.
    pub fn add<'a>(
        &mut self,
        parameters: impl Iterator<Item = &'a Parameter>,
        gradients: &mut Gradients,
    ) {
        for parameter in parameters {
            let Some(gradient) = parameter.take_gradient(gradients) else {
                continue;
            };
            match self.0.get_mut(parameter.name()) {
                Some(sum) => sum.add(gradient),
                None => {
                    let first = Gradient::from(gradient);
                    self.0.insert(parameter.name().to_owned(), first);
                }
            }
        }
    }

    /// The gradient of a parameter, if it has one in this step.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.0.get(name).map(Gradient::as_slice)
    }

    /// The same, to change.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut [f32]> {
        self.0.get_mut(name).map(Gradient::as_mut_slice)
    }

    /// The gradient of a parameter where it is.
    pub fn gradient(&self, name: &str) -> Option<&Gradient> {
        self.0.get(name)
    }

    /// Takes a gradient out, so that the optimiser does not see it.
    pub fn remove(&mut self, name: &str) -> Option<Vec<f32>> {
        self.0.remove(name).map(Gradient::into_vec)
    }

    /// Sets the gradient of a parameter.
    pub fn insert(&mut self, name: &str, gradient: Vec<f32>) {
        self.set(name, gradient.into());
    }

    /// Sets the gradient of a parameter, which may be on another device.
    pub fn set(&mut self, name: &str, gradient: Gradient) {
        self.0.insert(name.to_owned(), gradient);
    }

    /// Names and gradients, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[f32])> {
        self.gradients()
            .map(|(name, gradient)| (name, gradient.as_slice()))
    }

    /// Names and gradients where they are, sorted by name.
    pub fn gradients(&self) -> impl Iterator<Item = (&str, &Gradient)> {
        self.0
            .iter()
            .map(|(name, gradient)| (name.as_str(), gradient))
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_device(values: [f32; 2]) -> Gradient {
        Gradient::on_device(Tensor::from_floats(values, &Device::flex()))
    }

    #[test]
    fn a_gradient_of_another_device_stays_there_until_it_is_changed() {
        let mut gradient = on_device([1.0, -2.0]);
        gradient.add(Tensor::from_floats([0.5, 0.5], &Device::flex()));
        assert_eq!(gradient.as_slice(), [1.5, -1.5]);
        assert_eq!(gradient.host(), None);
        gradient.add(Tensor::from_floats([0.5, 0.5], &Device::flex()));
        assert_eq!(gradient.as_slice(), [2.0, -1.0]);
        gradient.as_mut_slice()[0] = 7.0;
        assert_eq!(gradient.host(), Some([7.0, -1.0].as_slice()));
        assert_eq!(to_vec(gradient.tensor(&Device::flex())), [7.0, -1.0]);
    }
}
