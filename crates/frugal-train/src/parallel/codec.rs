//! What processes hand to each other beside gradients, as bytes.

use burn::prelude::*;
use frugal_nn::to_vec;

use super::collective::{floats, to_bytes};
use crate::optim::{SavedState, SavedTensor, StateTensor};

const COUNT: u8 = 0;
const VALUES: u8 = 1;
const CODES: u8 = 2;

/// Writes values one after the other.
#[derive(Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn number(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend(bytes);
    }

    pub(super) fn floats(&mut self, values: &[f32]) {
        self.bytes(&to_bytes(values));
    }

    /// The state of an optimizer, or a part of it.
    pub(super) fn state(&mut self, state: &[(String, StateTensor<'_>)]) {
        self.number(state.len() as u64);
        for (name, tensor) in state {
            self.bytes(name.as_bytes());
            match tensor {
                StateTensor::Count(count) => {
                    self.0.push(COUNT);
                    self.bytes(&count.to_le_bytes());
                }
                StateTensor::Values(values) => {
                    self.0.push(VALUES);
                    self.floats(values);
                }
                StateTensor::Device(tensor) => {
                    let tensor: &Tensor<1> = tensor;
                    self.0.push(VALUES);
                    self.floats(&to_vec(tensor.clone()));
                }
                StateTensor::Codes(codes) => {
                    self.0.push(CODES);
                    self.bytes(codes);
                }
            }
        }
    }
}

/// Reads them again.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self
            .0
            .split_at_checked(n)
            .ok_or_else(|| "a message that ends too early".to_owned())?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn number(&mut self) -> Result<u64, String> {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.take(8)?);
        Ok(u64::from_le_bytes(bytes))
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], String> {
        let length = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        self.take(length)
    }

    pub(super) fn text(&mut self) -> Result<String, String> {
        let bytes = self.bytes()?;
        String::from_utf8(bytes.to_vec()).map_err(|_| "a name that is no text".to_owned())
    }

    pub(super) fn floats(&mut self) -> Result<Vec<f32>, String> {
        Ok(floats(self.bytes()?).collect())
    }

    pub(super) fn state(&mut self) -> Result<SavedState, String> {
        let mut state = SavedState::new();
        for _ in 0..self.number()? {
            let name = self.text()?;
            let kind = self.take(1)?[0];
            let tensor = match kind {
                COUNT => {
                    let bytes = self.bytes()?.try_into();
                    let bytes = bytes.map_err(|_| format!("`{name}` is not one number"))?;
                    SavedTensor::Count(u64::from_le_bytes(bytes))
                }
                VALUES => SavedTensor::Values(self.floats()?),
                CODES => SavedTensor::Codes(self.bytes()?.to_vec()),
                other => return Err(format!("`{name}` is of kind {other}")),
            };
            state.insert(name, tensor);
        }
        Ok(state)
    }
}

/// A tensor that was received, on its way to a file.
pub(crate) fn stored(tensor: &SavedTensor) -> StateTensor<'_> {
    match tensor {
        SavedTensor::Values(values) => StateTensor::Values(values),
        SavedTensor::Codes(codes) => StateTensor::Codes(codes),
        SavedTensor::Count(count) => StateTensor::Count(*count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_back_as_it_was_and_damage_is_named() {
        let values = [1.5, f32::MIN_POSITIVE, -0.0];
        let given = [
            ("step.w".to_owned(), StateTensor::Count(u64::MAX)),
            ("exp_avg.w".to_owned(), StateTensor::Values(&values)),
            ("codes.w".to_owned(), StateTensor::Codes(&[0, 255])),
        ];
        let mut writer = Writer::default();
        writer.state(&given);
        let state = Reader(&writer.0).state().unwrap();
        assert_eq!(state.len(), 3);
        assert_eq!(state["step.w"], SavedTensor::Count(u64::MAX));
        assert_eq!(state["exp_avg.w"], SavedTensor::Values(values.to_vec()));
        assert_eq!(state["codes.w"], SavedTensor::Codes(vec![0, 255]));
        for end in 0..writer.0.len() {
            assert!(Reader(&writer.0[..end]).state().is_err(), "{end}");
        }
        let mut huge = Writer::default();
        huge.number(1);
        huge.number(u64::MAX);
        assert!(Reader(&huge.0).state().is_err());
    }
}
