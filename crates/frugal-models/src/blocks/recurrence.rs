//! What the mixers of state space models share: what is remembered of a sequence, and parameters
//! that may differ from one sequence to the next.

use std::ops::Range;

use burn::prelude::*;
use frugal_kernels::{SelectiveScan, causal_conv1d, selective_scan, selective_scan_with_state};
use frugal_nn::state::DecodeState;
use frugal_nn::{Conv, ConvChange, Param, ParamChange, Pass, Rows, SequenceLayout};

use crate::activation::Activation;
use crate::blocks::checks::activate;

/// What the sequences of a pass have begun with, one after another.
#[derive(Default)]
pub(crate) struct Begun {
    /// Inputs of the convolution before the first token, `[sequences * (taps - 1), channels]`.
    pub conv: Option<Tensor<2>>,
    /// States of the scan, `[sequences * d_state, channels]`.
    pub scan: Option<Tensor<2>>,
}

/// Sizes of what is remembered of one sequence: rows and columns for the convolution and the scan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StateSizes {
    pub conv: [usize; 2],
    pub scan: [usize; 2],
}

/// What `layer` remembers of the sequences; zeros for those that have not begun, nothing if none
/// has.
pub(crate) fn begun(
    layer: usize,
    layout: &SequenceLayout,
    sizes: StateSizes,
    cache: &DecodeState,
    device: &Device,
) -> Begun {
    let sequences = 0..layout.sequences();
    let is_new = |s: usize| cache.recurrent(layer, s).is_none();
    if sequences.clone().all(is_new) {
        return Begun::default();
    }
    let of = |part: usize, size: [usize; 2]| {
        let parts = sequences.clone().map(|s| match cache.recurrent(layer, s) {
            Some(parts) => parts[part].clone(),
            None => Tensor::zeros(size, device),
        });
        Tensor::cat(parts.collect(), 0)
    };
    Begun {
        conv: (sizes.conv[0] > 0).then(|| of(0, sizes.conv)),
        scan: Some(of(1, sizes.scan)),
    }
}

/// Makes these what `layer` remembers of the sequences of the pass.
pub(crate) fn remember(
    layer: usize,
    layout: &SequenceLayout,
    sizes: StateSizes,
    [conv, scan]: [Tensor<2>; 2],
    cache: &mut DecodeState,
) {
    let ([taps, _], [states, _]) = (sizes.conv, sizes.scan);
    for sequence in 0..layout.sequences() {
        let before = match taps {
            0 => conv.clone(),
            _ => conv.clone().narrow(0, sequence * taps, taps),
        };
        let state = scan.clone().narrow(0, sequence * states, states);
        cache.set_recurrent(layer, sequence, vec![before, state]);
    }
}

/// The convolution that the pass makes of this one, and the activation behind it.
pub(crate) fn convolve(
    conv: &Conv,
    activation: Activation,
    layout: &SequenceLayout,
    x: Tensor<2>,
    state: Option<Tensor<2>>,
    pass: &mut dyn Pass,
) -> Tensor<2> {
    let y = convolve_plain(conv, layout, x, state, pass);
    match activation {
        Activation::Silu => frugal_kernels::silu(y),
        other => activate(other, y),
    }
}

/// The convolution that the pass makes of this one.
pub(crate) fn convolve_plain(
    conv: &Conv,
    layout: &SequenceLayout,
    x: Tensor<2>,
    state: Option<Tensor<2>>,
    pass: &mut dyn Pass,
) -> Tensor<2> {
    let cu = &layout.cu_seqlens;
    if matches!(pass.conv_change(conv), ConvChange::BySequence) {
        let kept = conv.weight.dims()[1] - 1;
        let outputs = cu.windows(2).enumerate().map(|(sequence, w)| {
            let (weight, bias) = pass.conv(conv, Rows::OfSequence(sequence));
            let state = state
                .clone()
                .map(|state| state.narrow(0, sequence * kept, kept));
            let len = w[1] - w[0];
            let own = x.clone().narrow(0, w[0], len);
            causal_conv1d(own, weight, bias, state, &[0, len])
        });
        Tensor::cat(outputs.collect(), 0)
    } else {
        let (weight, bias) = pass.conv(conv, Rows::Tokens);
        causal_conv1d(x, weight, bias, state, cu)
    }
}

/// The outputs of a scan and, `with_state`, the states behind, whose parameters `parameters` puts in
/// for the rows that it is given: for all at once, or sequence by sequence where the pass has
/// `params` of its own for each.
pub(crate) fn scan(
    scan: SelectiveScan,
    params: &[&Param],
    with_state: bool,
    pass: &mut dyn Pass,
    parameters: impl Fn(SelectiveScan, Rows, &mut dyn Pass) -> SelectiveScan,
) -> (Tensor<2>, Option<Tensor<2>>) {
    let mut changes = params.iter().map(|param| pass.param_change(param));
    if !changes.any(|change| matches!(change, ParamChange::BySequence)) {
        return run(parameters(scan, Rows::Tokens, pass), with_state);
    }
    let cu = scan.cu_seqlens.clone();
    let each = cu.windows(2).enumerate().map(|(sequence, w)| {
        let one = of_sequence(&scan, sequence, w[0]..w[1]);
        run(
            parameters(one, Rows::OfSequence(sequence), pass),
            with_state,
        )
    });
    let (outputs, states): (Vec<_>, Vec<_>) = each.unzip();
    let states: Option<Vec<Tensor<2>>> = states.into_iter().collect();
    (
        Tensor::cat(outputs, 0),
        states.map(|states| Tensor::cat(states, 0)),
    )
}

fn of_sequence(scan: &SelectiveScan, sequence: usize, rows: Range<usize>) -> SelectiveScan {
    let part = |t: &Tensor<2>| t.clone().narrow(0, rows.start, rows.len());
    let [_, d_state] = scan.b.dims();
    let initial_state = scan
        .initial_state
        .clone()
        .map(|state| state.narrow(0, sequence * d_state, d_state));
    SelectiveScan {
        x: part(&scan.x),
        delta: part(&scan.delta),
        b: part(&scan.b),
        c: part(&scan.c),
        z: scan.z.as_ref().map(part),
        initial_state,
        cu_seqlens: [0, rows.len()].into(),
        ..scan.clone()
    }
}

fn run(scan: SelectiveScan, with_state: bool) -> (Tensor<2>, Option<Tensor<2>>) {
    if !with_state {
        return (selective_scan(scan), None);
    }
    let [y, state] = selective_scan_with_state(scan);
    (y, Some(state))
}
