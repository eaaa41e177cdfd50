//! The bridge to Burn's tensors: unwrapping inputs, recording a backward step.

use std::fmt::Debug;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::{Autodiff, BackendTensor, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind, Flex, tensor::FloatTensor};
use burn::tensor::{Bytes, DType, Shape, Tensor};

use super::matrix::Matrix;

type AutodiffTensor = FloatTensor<Autodiff<Flex>>;

/// An input of a kernel: its values, and its place in the gradient graph when it has one.
pub(crate) struct Operand {
    /// The values, in a layout the kernels accept: rows or columns are contiguous.
    pub(crate) tensor: FlexTensor,
    autodiff: Option<AutodiffTensor>,
    context: DispatchAutodiffContext,
}

impl Operand {
    /// `None` when the tensor is not `f32` on Flex.
    pub(crate) fn new<const D: usize>(tensor: &Tensor<D>) -> Option<Self> {
        let DispatchTensor { kind, autodiff: context } = tensor.clone().into_dispatch();
        let (tensor, autodiff) = match kind {
            DispatchTensorKind::Flex(BackendTensor::Float(tensor)) => (tensor, None),
            DispatchTensorKind::Autodiff(inner) => match *inner {
                DispatchTensorKind::Flex(BackendTensor::Autodiff(tensor)) => (tensor.primitive().clone(), Some(tensor)),
                _ => return None,
            },
            _ => return None,
        };
        if tensor.dtype() != DType::F32 {
            return None;
        }
        Some(Self { tensor: dense(tensor), autodiff, context })
    }

    /// [`Operand::new`] of a tensor that may be absent.
    pub(crate) fn optional<const D: usize>(tensor: Option<&Tensor<D>>) -> Option<Option<Self>> {
        tensor.map_or(Some(None), |tensor| Self::new(tensor).map(Some))
    }

    /// Whether a gradient is wanted for this input.
    pub(crate) fn is_tracked(&self) -> bool {
        self.autodiff.as_ref().is_some_and(AutodiffTensor::is_tracked)
    }
}

/// The tensor itself when its rows or its columns are contiguous and do not overlap, else a copy.
fn dense(tensor: FlexTensor) -> FlexTensor {
    let layout = tensor.layout();
    let usable = match (layout.strides(), layout.shape().as_slice()) {
        (&[row, col], &[rows, cols]) => (col == 1 && row >= cols as isize) || (row == 1 && col >= rows as isize),
        _ => layout.is_contiguous(),
    };
    if usable { tensor } else { tensor.to_contiguous() }
}

/// The tensor laid out row by row without gaps; a copy when it is not.
pub(crate) fn contiguous(tensor: &FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() { tensor.clone() } else { tensor.to_contiguous() }
}

/// A matrix with contiguous rows; a copy when it has none.
pub(crate) fn dense_rows(tensor: &FlexTensor) -> FlexTensor {
    if Matrix::of(tensor).has_dense_rows() { tensor.clone() } else { tensor.to_contiguous() }
}

/// The values of a contiguous tensor.
pub(crate) fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().unwrap_or_else(|| panic!("a kernel needs contiguous f32 values, not {tensor:?}"))
}

/// A tensor that owns `data`, laid out row by row.
pub(crate) fn tensor_of<const D: usize>(data: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    debug_assert_eq!(data.len(), shape.iter().product::<usize>());
    FlexTensor::new(Bytes::from_elems(data), Layout::contiguous(Shape::from(shape)), DType::F32)
}

/// The gradients for the inputs, given what the forward pass saved, the gradient of the output and
/// which inputs want one.
pub(crate) type BackwardFn<S, const N: usize> = fn(S, FlexTensor, [bool; N]) -> [Option<FlexTensor>; N];

/// Runs `forward` and, when an input is tracked, records `backward`.
///
/// `forward` learns which inputs want a gradient and returns the output and what to keep for
/// `backward`. An absent input is `None`; `N` counts it all the same.
pub(crate) fn record<S, const N: usize, const D: usize>(
    inputs: [Option<&Operand>; N],
    forward: impl FnOnce([bool; N]) -> (FlexTensor, S),
    backward: BackwardFn<S, N>,
) -> Tensor<D>
where
    S: Clone + Debug + Send + 'static,
{
    let present = inputs.iter().flatten();
    let context = present.fold(DispatchAutodiffContext::Disabled, |context, input| context.merge(input.context));
    if context == DispatchAutodiffContext::Disabled {
        let (output, _) = forward([false; N]);
        let kind = DispatchTensorKind::Flex(BackendTensor::Float(output));
        return Tensor::from_dispatch(DispatchTensor { kind, autodiff: context });
    }
    let nodes = inputs.map(|input| match input.and_then(|input| input.autodiff.as_ref()) {
        Some(tensor) => tensor.node(),
        None => AutodiffTensor::new(tensor_of(Vec::new(), [0])).node(),
    });
    let output = match Step(backward).prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(step) => {
            let (output, saved) = forward(inputs.map(|input| input.is_some_and(Operand::is_tracked)));
            step.finish(saved, output)
        }
        OpsKind::UnTracked(step) => step.finish(forward([false; N]).0),
    };
    let kind = DispatchTensorKind::Autodiff(Box::new(DispatchTensorKind::Flex(BackendTensor::Autodiff(output))));
    Tensor::from_dispatch(DispatchTensor { kind, autodiff: context })
}

#[derive(Debug)]
struct Step<S, const N: usize>(BackwardFn<S, N>);

impl<S, const N: usize> Backward<Flex, N> for Step<S, N>
where
    S: Clone + Debug + Send + 'static,
{
    type State = S;

    fn backward(self, ops: Ops<S, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = dense(grads.consume::<Flex>(&ops.node));
        let wanted = ops.parents.each_ref().map(Option::is_some);
        for (parent, grad) in ops.parents.into_iter().zip((self.0)(ops.state, grad, wanted)) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<Flex>(parent.id, grad);
            }
        }
    }
}
