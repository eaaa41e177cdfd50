//! The bridge to Burn's tensors: unwrapping inputs, recording a backward step.

use std::fmt::{self, Debug, Formatter};
use std::sync::Arc;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::retro_forward::RetroForward;
use burn::backend::autodiff::checkpoint::state::BackwardStates;
use burn::backend::autodiff::checkpoint::strategy::BalancedCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::{
    Autodiff, BackendTensor, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind, Flex,
    tensor::FloatTensor,
};
use burn::tensor::{DType, Tensor};

use super::sum::sum;
use super::tensor::{contiguous, dense, tensor_of, untracked, values};
use super::waiting::{self, Place};
use crate::save_policy::Cost;

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
        let DispatchTensor {
            kind,
            autodiff: context,
        } = tensor.clone().into_dispatch();
        let (tensor, autodiff) = match kind {
            DispatchTensorKind::Flex(BackendTensor::Float(tensor)) => (tensor, None),
            DispatchTensorKind::Autodiff(inner) => match *inner {
                DispatchTensorKind::Flex(BackendTensor::Autodiff(tensor)) => {
                    (tensor.primitive().clone(), Some(tensor))
                }
                _ => return None,
            },
            _ => return None,
        };
        if tensor.dtype() != DType::F32 {
            return None;
        }
        Some(Self {
            tensor: dense(tensor),
            autodiff,
            context,
        })
    }

    /// [`Operand::new`] of a tensor that may be absent.
    pub(crate) fn optional<const D: usize>(tensor: Option<&Tensor<D>>) -> Option<Option<Self>> {
        tensor.map_or(Some(None), |tensor| Self::new(tensor).map(Some))
    }

    /// Whether a gradient is wanted for this input.
    pub(crate) fn is_tracked(&self) -> bool {
        self.tracked().is_some()
    }

    fn tracked(&self) -> Option<&AutodiffTensor> {
        self.autodiff.as_ref().filter(|tensor| tensor.is_tracked())
    }

    fn source(&self) -> Source {
        self.tracked().map_or_else(
            || Source::Values(self.tensor.clone()),
            |tensor| Source::Node(tensor.id()),
        )
    }
}

/// The gradients for the inputs, given those that were kept, what else the forward pass saved, the
/// gradient of the output, which inputs want one and what these have got from elsewhere so far. A
/// pass that takes from there gives the sum.
pub(crate) type BackwardFn<S, const N: usize> = fn(
    [Option<FlexTensor>; N],
    S,
    FlexTensor,
    [bool; N],
    &mut [Option<FlexTensor>; N],
) -> [Option<FlexTensor>; N];

/// An operation on `N` inputs: how it is computed and differentiated. An absent input counts all
/// the same.
pub(crate) struct Op<F, S, const N: usize> {
    /// What it costs to compute the output again.
    pub(crate) cost: Cost,
    /// Which inputs the backward pass reads, given which want a gradient.
    pub(crate) reads: fn([bool; N]) -> [bool; N],
    /// The output, and what to keep for the backward pass besides inputs, given which inputs want a
    /// gradient.
    pub(crate) forward: F,
    /// The gradients.
    pub(crate) backward: BackwardFn<S, N>,
}

/// Runs an operation and, when an input is tracked, records its backward pass.
pub(crate) fn record<F, S, const N: usize, const D: usize>(
    inputs: [Option<&Operand>; N],
    op: Op<F, S, N>,
) -> Tensor<D>
where
    F: Fn(&[Option<FlexTensor>; N], [bool; N]) -> (FlexTensor, S) + Clone + Send + 'static,
    S: Clone + Debug + Send + 'static,
{
    record_computed(inputs, op, None)
}

/// [`record`] of an operation whose forward pass something else may have computed.
pub(crate) fn record_computed<F, S, const N: usize, const D: usize>(
    inputs: [Option<&Operand>; N],
    op: Op<F, S, N>,
    computed: Option<(FlexTensor, S)>,
) -> Tensor<D>
where
    F: Fn(&[Option<FlexTensor>; N], [bool; N]) -> (FlexTensor, S) + Clone + Send + 'static,
    S: Clone + Debug + Send + 'static,
{
    let present = inputs.iter().flatten();
    let context = present.fold(DispatchAutodiffContext::Disabled, |context, input| {
        context.merge(input.context)
    });
    let values = inputs.map(|input| input.map(|input| input.tensor.clone()));
    let run = |wanted: [bool; N]| computed.unwrap_or_else(|| (op.forward)(&values, wanted));
    if context == DispatchAutodiffContext::Disabled {
        return untracked(run([false; N]).0);
    }
    let nodes = inputs.map(
        |input| match input.and_then(|input| input.autodiff.as_ref()) {
            Some(tensor) => tensor.node(),
            None => AutodiffTensor::new(tensor_of(Vec::new(), [0])).node(),
        },
    );
    let wanted = inputs.map(|input| input.is_some_and(Operand::is_tracked));
    let place = Arc::new(Place::default());
    let step = Step {
        backward: op.backward,
        _place: place.clone(),
    }
    .prepare::<BalancedCheckpointing>(nodes);
    let step = if wanted.contains(&true) && op.cost.is_repeated() {
        let again = Again {
            forward: op.forward.clone(),
            inputs: inputs.map(|input| input.map(Operand::source)),
        };
        step.memory_bound()
            .retro_forward(again)
            .parents(inputs.iter().flatten().filter_map(|input| input.tracked()))
    } else {
        step.compute_bound()
    };
    let output = match step.stateful() {
        OpsKind::Tracked(mut step) => {
            let (output, saved) = run(wanted);
            let reads = (op.reads)(wanted);
            let kept = std::array::from_fn(|i| {
                let input = inputs[i].filter(|_| reads[i])?;
                Some(match input.tracked() {
                    // The node decides: its values, or how to compute them again.
                    Some(tensor) => Source::Node(step.checkpoint(tensor)),
                    None => input.source(),
                })
            });
            let output = step.finish((Kept(kept), saved), output);
            place.is_of(output.id());
            output
        }
        OpsKind::UnTracked(step) => step.finish(run([false; N]).0),
    };
    let kind = DispatchTensorKind::Autodiff(Box::new(DispatchTensorKind::Flex(
        BackendTensor::Autodiff(output),
    )));
    Tensor::from_dispatch(DispatchTensor {
        kind,
        autodiff: context,
    })
}

/// All elements of a tensor on Flex, row by row; `None` for another backend or type.
pub(crate) fn host_rows(tensor: &Tensor<2>) -> Option<Vec<f32>> {
    let operand = Operand::new(tensor)?;
    Some(values(&contiguous(&operand.tensor)).to_vec())
}

/// An input that every caller gives.
pub(crate) fn present(input: &Option<FlexTensor>) -> &FlexTensor {
    input.as_ref().expect("this input is never absent")
}

/// Where the backward pass finds an input.
#[derive(Clone, Debug)]
enum Source {
    Values(FlexTensor),
    Node(NodeId),
}

#[derive(Clone, Debug)]
struct Kept<const N: usize>([Option<Source>; N]);

/// How an output is computed again.
struct Again<F, const N: usize> {
    forward: F,
    inputs: [Option<Source>; N],
}

impl<F, const N: usize> Debug for Again<F, N> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Again")
            .field("inputs", &self.inputs)
            .finish_non_exhaustive()
    }
}

impl<F, S, const N: usize> RetroForward for Again<F, N>
where
    F: Fn(&[Option<FlexTensor>; N], [bool; N]) -> (FlexTensor, S) + Send + 'static,
{
    fn forward(&self, states: &mut BackwardStates, node: NodeId) {
        let inputs = self.inputs.each_ref().map(|input| {
            input.as_ref().map(|input| match input {
                Source::Values(tensor) => tensor.clone(),
                Source::Node(id) => dense(states.get_state::<FlexTensor>(id)),
            })
        });
        states.save(node, (self.forward)(&inputs, [false; N]).0);
    }
}

#[derive(Debug)]
struct Step<S, const N: usize> {
    backward: BackwardFn<S, N>,
    /// Given up with the step.
    _place: Arc<Place>,
}

impl<S, const N: usize> Backward<Flex, N> for Step<S, N>
where
    S: Clone + Debug + Send + 'static,
{
    type State = (Kept<N>, S);

    fn backward(
        self,
        ops: Ops<Self::State, N>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad = dense(grads.consume::<Flex>(&ops.node));
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let (Kept(kept), saved) = ops.state;
        let inputs = kept.map(|input| {
            input.map(|input| match input {
                Source::Values(tensor) => tensor,
                Source::Node(id) => dense(checkpointer.retrieve_node_output::<FlexTensor>(id)),
            })
        });
        let mut waiting = ops.parents.each_ref().map(|parent| {
            let parent = parent.as_ref().filter(|parent| waiting::take(parent.id))?;
            Some(grads.consume::<Flex>(parent))
        });
        let own = (self.backward)(inputs, saved, grad, wanted, &mut waiting);
        for ((parent, own), waiting) in ops.parents.into_iter().zip(own).zip(waiting) {
            let grad = match (own, waiting) {
                (Some(own), Some(waiting)) => Some(sum(own, waiting)),
                (own, waiting) => own.or(waiting),
            };
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<Flex>(parent.id, grad);
                waiting::came(parent.id);
            }
        }
    }
}
