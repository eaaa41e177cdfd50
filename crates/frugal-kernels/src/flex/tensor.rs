//! Tensors of Flex as the kernels see them.

use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::{BackendTensor, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind};
use burn::tensor::{Bytes, DType, Shape, Tensor};

use super::matrix::Matrix;

/// The tensor itself when its rows or its columns are contiguous and do not overlap, else a copy.
pub(super) fn dense(tensor: FlexTensor) -> FlexTensor {
    let layout = tensor.layout();
    let usable = match (layout.strides(), layout.shape().as_slice()) {
        (&[row, col], &[rows, cols]) => {
            (col == 1 && row >= cols as isize) || (row == 1 && col >= rows as isize)
        }
        _ => layout.is_contiguous(),
    };
    if usable {
        tensor
    } else {
        tensor.to_contiguous()
    }
}

/// The tensor laid out row by row without gaps; a copy when it is not.
pub(crate) fn contiguous(tensor: &FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() {
        tensor.clone()
    } else {
        tensor.to_contiguous()
    }
}

/// The tensor, row by row in memory of its own that may be written to; a copy when it is not.
pub(crate) fn owned(tensor: FlexTensor) -> FlexTensor {
    if is_writable(&tensor) {
        tensor
    } else {
        shaped(
            values(&contiguous(&tensor)).to_vec(),
            tensor.layout().shape().clone(),
        )
    }
}

/// A matrix with contiguous rows; a copy when it has none.
pub(crate) fn dense_rows(tensor: &FlexTensor) -> FlexTensor {
    if Matrix::of(tensor).has_dense_rows() {
        tensor.clone()
    } else {
        tensor.to_contiguous()
    }
}

/// The values of a contiguous tensor.
pub(crate) fn values(tensor: &FlexTensor) -> &[f32] {
    tensor
        .as_slice()
        .unwrap_or_else(|| panic!("a kernel needs contiguous f32 values, not {tensor:?}"))
}

/// A tensor that owns `data`, laid out row by row.
pub(crate) fn tensor_of<const D: usize>(data: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    shaped(data, Shape::from(shape))
}

/// [`tensor_of`] with a shape whose number of dimensions is not known.
pub(crate) fn shaped(data: Vec<f32>, shape: Shape) -> FlexTensor {
    assert_eq!(
        data.len(),
        shape.num_elements(),
        "the values of a tensor {shape:?}"
    );
    FlexTensor::new(
        Bytes::from_elems(data),
        Layout::contiguous(shape),
        DType::F32,
    )
}

/// A gradient that waits for the rest of its sum, to be added to in place; `None` when there is
/// none or something else reads it too.
pub(crate) fn take_writable(waiting: &mut Option<FlexTensor>) -> Option<FlexTensor> {
    waiting.take_if(|gradient| is_writable(gradient))
}

/// Whether the tensor is all of its memory, and nothing else reads it.
pub(super) fn is_writable(tensor: &FlexTensor) -> bool {
    tensor.is_unique()
        && tensor.layout().contiguous_offsets() == Some((0, tensor.storage::<f32>().len()))
}

/// A tensor of the plain device.
pub(crate) fn untracked<const D: usize>(output: FlexTensor) -> Tensor<D> {
    let kind = DispatchTensorKind::Flex(BackendTensor::Float(output));
    Tensor::from_dispatch(DispatchTensor {
        kind,
        autodiff: DispatchAutodiffContext::Disabled,
    })
}
