//! What optimizers remember, in memory and on its way to files.

use std::collections::BTreeMap;

use burn::prelude::*;
use frugal_nn::to_vec;

/// A tensor of an optimizer's state on its way to a file.
#[derive(Clone, Copy, Debug)]
pub enum StateTensor<'a> {
    /// Numbers on the host.
    Values(&'a [f32]),
    /// Numbers on the device of the parameter.
    Device(&'a Tensor<1>),
    /// Codes of a byte each.
    Codes(&'a [u8]),
    /// One whole number.
    Count(u64),
}

/// A tensor of an optimizer's state out of a file.
#[derive(Clone, Debug, PartialEq)]
pub enum SavedTensor {
    /// Numbers.
    Values(Vec<f32>),
    /// Codes of a byte each.
    Codes(Vec<u8>),
    /// One whole number.
    Count(u64),
}

/// One number for each element of a parameter, on the host until a device needs it.
#[derive(Clone, Debug)]
pub enum Moment {
    /// On the host.
    Host(Vec<f32>),
    /// On the device of the parameter.
    Device(Tensor<1>),
}

impl Moment {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        Self::Host(vec![0.0; len])
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::Host(values) => values.len(),
            Self::Device(tensor) => tensor.dims()[0],
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements, on the host from now on.
    pub fn host(&mut self) -> &mut [f32] {
        if let Self::Device(tensor) = self {
            *self = Self::Host(to_vec(tensor.clone()));
        }
        match self {
            Self::Host(values) => values,
            Self::Device(_) => unreachable!("it was taken to the host just before"),
        }
    }

    /// The elements as a tensor of this device.
    pub fn tensor(&self, device: &Device) -> Tensor<1> {
        match self {
            Self::Host(values) => Tensor::from_data(TensorData::from(values.as_slice()), device),
            Self::Device(tensor) => tensor.clone(),
        }
    }

    /// The elements on their way to a file.
    pub fn stored(&self) -> StateTensor<'_> {
        match self {
            Self::Host(values) => StateTensor::Values(values),
            Self::Device(tensor) => StateTensor::Device(tensor),
        }
    }
}

/// Takes the numbers of this name out of a saved state.
pub(super) fn take_values(
    state: &mut BTreeMap<String, SavedTensor>,
    name: &str,
) -> Result<Vec<f32>, String> {
    match state.remove(name) {
        Some(SavedTensor::Values(values)) => Ok(values),
        Some(_) => Err(format!(
            "`{name}` does not hold numbers of single precision"
        )),
        None => Err(format!("there is no `{name}`")),
    }
}

/// Takes the whole numbers whose names begin with `step.` out of a saved state: updates so far by
/// parameter.
pub(super) fn take_steps(
    state: &mut BTreeMap<String, SavedTensor>,
) -> Result<Vec<(String, u64)>, String> {
    let names: Vec<String> = state
        .keys()
        .filter_map(|name| name.strip_prefix("step.").map(str::to_owned))
        .collect();
    names
        .into_iter()
        .map(|name| match state.remove(&format!("step.{name}")) {
            Some(SavedTensor::Count(step)) => Ok((name, step)),
            _ => Err(format!("`step.{name}` is not one number")),
        })
        .collect()
}

/// That nothing is left of a saved state: the rest would be lost without a word.
pub(super) fn check_taken(state: &BTreeMap<String, SavedTensor>) -> Result<(), String> {
    match state.keys().next() {
        Some(name) => Err(format!("`{name}` is not part of this optimizer's state")),
        None => Ok(()),
    }
}
