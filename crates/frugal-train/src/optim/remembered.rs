//! What an optimizer remembers of each parameter, by the parameter's name: some tensors and the
//! number of updates.

use std::collections::BTreeMap;

use burn::prelude::*;

use super::SavedState;
use super::state::{Moment, StateTensor, check_taken, take_steps, take_values};

/// Of all parameters.
#[derive(Debug, Default)]
pub(super) struct Remembered(BTreeMap<String, Slots>);

/// Of one parameter.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// Updates so far.
    pub(super) step: u64,
    tensors: BTreeMap<&'static str, Moment>,
}

impl Slots {
    /// A tensor of this length; zeros where there is none, or one of another length.
    pub(super) fn get(&self, key: &str, len: usize, device: &Device) -> Tensor<1> {
        match self.tensors.get(key).filter(|moment| moment.len() == len) {
            Some(moment) => moment.tensor(device),
            None => Tensor::zeros([len], device),
        }
    }

    /// Lets all tensors go, but not the count.
    pub(super) fn forget(&mut self) {
        self.tensors.clear();
    }

    pub(super) fn set(&mut self, key: &'static str, tensor: Tensor<1>) {
        self.tensors.insert(key, Moment::Device(tensor));
    }
}

impl Remembered {
    /// What is remembered of a parameter, one more update counted.
    pub(super) fn next(&mut self, name: &str) -> &mut Slots {
        let slots = self.0.entry(name.to_owned()).or_default();
        slots.step += 1;
        slots
    }

    pub(super) fn state(&self) -> Vec<(String, StateTensor<'_>)> {
        let mut all = Vec::new();
        for (name, slots) in &self.0 {
            all.push((format!("step.{name}"), StateTensor::Count(slots.step)));
            let tensors = slots.tensors.iter();
            all.extend(tensors.map(|(key, moment)| (format!("{key}.{name}"), moment.stored())));
        }
        all
    }

    /// Takes back what [`Remembered::state`] gave, of an optimizer with these tensors.
    pub(super) fn restored(mut state: SavedState, keys: &[&'static str]) -> Result<Self, String> {
        let mut all = BTreeMap::new();
        for (name, step) in take_steps(&mut state)? {
            let mut tensors = BTreeMap::new();
            for key in keys {
                let stored = format!("{key}.{name}");
                if state.contains_key(&stored) {
                    let values = take_values(&mut state, &stored)?;
                    tensors.insert(*key, Moment::Host(values));
                }
            }
            all.insert(name, Slots { step, tensors });
        }
        check_taken(&state)?;
        Ok(Self(all))
    }
}
