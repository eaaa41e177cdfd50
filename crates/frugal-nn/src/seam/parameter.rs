//! What an adapter trains: named tensors of any rank, kept flat.

use std::cell::Cell;

use burn::prelude::*;
use burn::tensor::Gradients;

thread_local! {
    static RECORDS: Cell<bool> = const { Cell::new(true) };
}

/// Whether a forward pass records gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Parameters enter the gradient graph; dropout is active.
    Train {
        /// Decides all randomness of this pass.
        seed: u64,
    },
    /// Plain evaluation.
    Eval,
}

impl Mode {
    /// Whether gradients are recorded.
    pub fn is_train(self) -> bool {
        matches!(self, Self::Train { .. })
    }
}

/// Runs a forward pass on this thread that records no gradients, whatever its [`Mode`]: dropout is
/// that of training. A pass whose gradients nobody asks for would keep what it saves until the next
/// backward pass, wherever that is.
pub fn no_grad<T>(forward: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            RECORDS.set(self.0);
        }
    }
    let _restore = Restore(RECORDS.replace(false));
    forward()
}

/// A named tensor that an adapter owns.
///
/// The values are one flat leaf of the gradient graph: optimisers, checkpoints and files see
/// `[len]` whatever the rank, and a method views it with [`Parameter::get`].
#[derive(Clone, Debug)]
pub struct Parameter {
    name: String,
    shape: Vec<usize>,
    value: Tensor<1>,
    trainable: bool,
    lr_scale: f64,
    whole_numbers: bool,
    /// Whether files hold these in as few bytes as their limit needs.
    in_few_bytes: bool,
    /// What the indices of each row must be below; empty where the values are no indices.
    limits: Vec<usize>,
    /// Whether the limits are those of columns.
    limits_of_columns: bool,
    also: Vec<String>,
}

impl Parameter {
    /// A trainable tensor; `name` is its key in adapter files without the wrapper's prefix.
    ///
    /// # Panics
    /// If `values` does not have as many elements as `shape`: a broken invariant of the calling
    /// method.
    pub fn new(
        name: impl Into<String>,
        shape: &[usize],
        values: Vec<f32>,
        device: &Device,
    ) -> Self {
        let (name, len) = (name.into(), shape.iter().product::<usize>());
        assert_eq!(
            values.len(),
            len,
            "parameter {name}: {} values for shape {shape:?}",
            values.len()
        );
        let value = leaf(values, device);
        Self {
            name,
            shape: shape.to_vec(),
            value,
            trainable: true,
            lr_scale: 1.0,
            whole_numbers: false,
            in_few_bytes: false,
            limits: Vec::new(),
            limits_of_columns: false,
            also: Vec::new(),
        }
    }

    /// The same, stored in files but not trained.
    pub fn frozen(
        name: impl Into<String>,
        shape: &[usize],
        values: Vec<f32>,
        device: &Device,
    ) -> Self {
        Self {
            trainable: false,
            ..Self::new(name, shape, values, device)
        }
    }

    /// The same, trained at `lr_scale` times the learning rate.
    pub fn with_lr_scale(self, lr_scale: f64) -> Self {
        Self { lr_scale, ..self }
    }

    /// The same, not trained from now on.
    pub fn freeze(self) -> Self {
        Self {
            trainable: false,
            ..self
        }
    }

    /// The same, stored in files as 32-bit whole numbers: indices below 2²⁴.
    pub fn as_whole_numbers(self) -> Self {
        Self {
            whole_numbers: true,
            ..self
        }
    }

    /// The same, all of whose values are indices below this limit, stored in as few bytes as it
    /// needs.
    pub fn as_indices_below(self, limit: usize) -> Self {
        Self {
            whole_numbers: true,
            in_few_bytes: true,
            limits: vec![limit],
            ..self
        }
    }

    /// The limit of indices that are stored in as few bytes as it needs.
    pub fn stored_below(&self) -> Option<usize> {
        self.limits.first().copied().filter(|_| self.in_few_bytes)
    }

    /// The same, whose rows hold indices below these limits.
    pub fn indices_below(self, limits: &[usize]) -> Self {
        Self {
            limits: limits.to_vec(),
            ..self
        }
    }

    /// The same, whose columns hold indices below these limits.
    pub fn columns_below(self, limits: &[usize]) -> Self {
        Self {
            limits: limits.to_vec(),
            limits_of_columns: true,
            ..self
        }
    }

    /// The first of these values for it that is no index, with what it must be below.
    pub fn outside(&self, values: &[f32]) -> Option<(f32, usize)> {
        let count = self.limits.len();
        if count == 0 {
            return None;
        }
        let width = (values.len() / count).max(1);
        let limit_of = |i: usize| {
            let line = if self.limits_of_columns {
                i % count
            } else {
                (i / width).min(count - 1)
            };
            self.limits[line]
        };
        let mut all = values.iter().enumerate().map(|(i, &v)| (v, limit_of(i)));
        all.find(|&(value, limit)| !(value >= 0.0 && value.fract() == 0.0 && value < limit as f32))
    }

    /// The same, stored in files once more under this key: what tied places share.
    pub fn also_as(mut self, name: impl Into<String>) -> Self {
        self.also.push(name.into());
        self
    }

    /// Whether files hold it as whole numbers.
    pub fn is_whole_numbers(&self) -> bool {
        self.whole_numbers
    }

    /// Further keys in adapter files.
    pub fn further_names(&self) -> impl Iterator<Item = &str> {
        self.also.iter().map(String::as_str)
    }

    /// Factor on the learning rate.
    pub fn lr_scale(&self) -> f64 {
        self.lr_scale
    }

    /// Key in adapter files.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the optimiser updates it.
    pub fn is_trainable(&self) -> bool {
        self.trainable
    }

    /// The tensor with its shape; in the gradient graph when training, unless within [`no_grad`].
    pub fn get<const D: usize>(&self, mode: Mode) -> Tensor<D> {
        let shape: [usize; D] = self
            .shape
            .as_slice()
            .try_into()
            .expect("a method asks for the rank that it created");
        let value = if mode.is_train() && self.trainable && RECORDS.get() {
            self.value.clone()
        } else {
            self.value.clone().inner()
        };
        value.reshape(shape)
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        self.value.clone().inner().device()
    }

    /// All elements in row-major order.
    pub fn to_vec(&self) -> Vec<f32> {
        to_vec(self.value.clone().inner())
    }

    /// Replaces all elements.
    ///
    /// # Panics
    /// If the number of elements differs: callers check shapes first.
    pub fn set(&mut self, values: Vec<f32>) {
        assert_eq!(
            values.len(),
            self.len(),
            "parameter {}: wrong number of values",
            self.name
        );
        self.value = leaf(values, &self.value.device());
    }

    /// Lets go of the elements, which someone else keeps: from now on it is empty, until
    /// [`Parameter::set`] gives it elements again. Name, shape and size stay.
    pub fn release(&mut self) {
        self.value = leaf(Vec::new(), &self.value.device());
    }

    /// Whether its elements were let go of.
    pub fn is_released(&self) -> bool {
        !self.is_empty() && self.value.dims() == [0]
    }

    /// All elements `[len]` where they are, outside of the gradient graph.
    pub fn value(&self) -> Tensor<1> {
        self.value.clone().inner()
    }

    /// Replaces all elements by a tensor `[len]` of the same device, which is not copied.
    ///
    /// # Panics
    /// If the number of elements differs: callers form it from [`Parameter::value`].
    pub fn set_value(&mut self, value: Tensor<1>) {
        assert_eq!(
            value.dims(),
            [self.len()],
            "parameter {}: wrong number of values",
            self.name
        );
        self.value = value.autodiff().require_grad();
    }

    /// Whether its values are in the memory of this process, where reading them costs no transfer.
    pub fn is_on_host(&self) -> bool {
        on_host(&self.value)
    }

    /// Computes with this tensor `[len]` from now on, which may be part of someone else's gradient
    /// graph.
    pub fn bind(&mut self, value: Tensor<1>) {
        self.value = value;
    }

    /// Takes this parameter's gradient `[len]` out of a backward pass.
    pub fn take_gradient(&self, gradients: &mut Gradients) -> Option<Tensor<1>> {
        if self.trainable {
            self.value.grad_remove(gradients)
        } else {
            None
        }
    }
}

fn leaf(values: Vec<f32>, device: &Device) -> Tensor<1> {
    Tensor::<1>::from_data(
        TensorData::from(values.as_slice()),
        &device.clone().inner().autodiff(),
    )
    .require_grad()
}

/// Whether a tensor is in the memory of this process: that of the CPU backend.
pub(crate) fn on_host<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.device().inner() == Device::flex()
}

/// Elements of a tensor in row-major order.
pub fn to_vec<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor
        .into_data()
        .convert::<f32>()
        .try_into_vec::<f32>()
        .expect("converted to f32 just before")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_let_go_of_can_be_given_back() {
        let mut parameter = Parameter::new("w", &[1, 2], vec![1.0, 2.0], &Device::flex());
        parameter.release();
        assert!(parameter.is_released() && parameter.to_vec().is_empty());
        assert_eq!((parameter.len(), parameter.shape()), (2, [1, 2].as_slice()));
        parameter.set(vec![3.0, 4.0]);
        assert!(!parameter.is_released());
        assert_eq!(to_vec(parameter.get::<2>(Mode::Eval)), [3.0, 4.0]);
    }

    #[test]
    fn nothing_is_recorded_without_gradients_and_everything_after() {
        let parameter = Parameter::new("w", &[1, 2], vec![1.0, 2.0], &Device::flex().autodiff());
        let is_tracked = || parameter.get::<2>(Mode::Train { seed: 1 }).is_tracked();
        assert!(is_tracked());
        no_grad(|| {
            assert!(!is_tracked());
            assert!(!no_grad(is_tracked));
            assert!(!is_tracked());
        });
        assert!(is_tracked());
        let caught = std::panic::catch_unwind(|| no_grad(|| panic!("a pass that fails")));
        assert!(caught.is_err() && is_tracked());
    }
}
