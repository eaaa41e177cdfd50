//! Selective scan: a linear recurrence whose coefficients follow from the input.

mod spec;

use burn::tensor::Tensor;

pub use spec::SelectiveScan;

use crate::flex;

/// The outputs of a [`SelectiveScan`], `[tokens, d_inner]`.
///
/// # Panics
/// When the shapes do not fit together.
pub fn selective_scan(scan: SelectiveScan) -> Tensor<2> {
    scan.check();
    flex::selective_scan(&scan, false).unwrap_or_else(|| portable::selective_scan(scan))
}

/// The outputs of a [`SelectiveScan`], `[tokens, d_inner]`, and the states behind the last token of
/// each sequence, `[sequences * d_state, d_inner]`, from which a later call goes on. Gradients flow
/// through both.
///
/// # Panics
/// When the shapes do not fit together.
pub fn selective_scan_with_state(scan: SelectiveScan) -> [Tensor<2>; 2] {
    scan.check();
    let ([tokens, _], states) = (scan.x.dims(), scan.sequences() * scan.d_state());
    match flex::selective_scan(&scan, true) {
        Some(both) => [
            both.clone().narrow(0, 0, tokens),
            both.narrow(0, tokens, states),
        ],
        None => portable::selective_scan_with_state(scan),
    }
}

pub(crate) mod portable {
    use burn::tensor::{Tensor, activation};

    use super::SelectiveScan;

    /// Tokens whose states exist at once.
    const CHUNK: usize = 64;

    /// [`selective_scan`](crate::selective_scan()) as a composition of Burn operations.
    pub fn selective_scan(scan: SelectiveScan) -> Tensor<2> {
        let [y, _] = selective_scan_with_state(scan);
        y
    }

    /// [`selective_scan_with_state`](crate::selective_scan_with_state) as a composition of Burn
    /// operations: chunk by chunk, and within one by doubling the reach of each token's sum (Hillis
    /// and Steele, *Data Parallel Algorithms*, 1986), in which only products of decays occur.
    pub fn selective_scan_with_state(scan: SelectiveScan) -> [Tensor<2>; 2] {
        let ([tokens, d_inner], d_state) = (scan.x.dims(), scan.d_state());
        let device = scan.x.device();
        let rows: Vec<_> = scan.rows().collect();
        let SelectiveScan {
            x,
            delta,
            a,
            b,
            c,
            d,
            z,
            delta_bias,
            softplus,
            initial_state,
            ..
        } = scan;
        let delta = match delta_bias {
            Some(bias) => delta + bias.unsqueeze::<2>(),
            None => delta,
        };
        let delta = if softplus {
            log_one_plus_exp(delta)
        } else {
            delta
        };
        let [_, decays] = a.dims();
        let a = a.reshape([1, d_inner, decays]);
        let (mut outputs, mut states) = (Vec::new(), Vec::new());
        for (sequence, rows) in rows.into_iter().enumerate() {
            let mut state: Tensor<3> = match &initial_state {
                Some(initial) => initial
                    .clone()
                    .narrow(0, sequence * d_state, d_state)
                    .transpose()
                    .reshape([1, d_inner, d_state]),
                None => Tensor::zeros([1, d_inner, d_state], &device),
            };
            for start in rows.clone().step_by(CHUNK) {
                let len = CHUNK.min(rows.end - start);
                let part = |t: &Tensor<2>| t.clone().narrow(0, start, len);
                let delta = part(&delta).reshape([len, d_inner, 1]);
                let mut decay = (delta.clone() * a.clone()).exp();
                let mut sums = delta
                    * part(&x).reshape([len, d_inner, 1])
                    * part(&b).reshape([len, 1, d_state]);
                let mut reach = 1;
                while reach < len {
                    let left = len - reach;
                    let [first, tail] = [0, reach].map(|from| {
                        let count = if from == 0 { reach } else { left };
                        let cut = |t: &Tensor<3>| t.clone().narrow(0, from, count);
                        [cut(&decay), cut(&sums)]
                    });
                    let [before, sums_before] =
                        [&decay, &sums].map(|t| t.clone().narrow(0, 0, left));
                    sums = Tensor::cat(
                        vec![
                            first[1].clone(),
                            tail[1].clone() + tail[0].clone() * sums_before,
                        ],
                        0,
                    );
                    decay = Tensor::cat(vec![first[0].clone(), tail[0].clone() * before], 0);
                    reach *= 2;
                }
                let h = sums + decay * state;
                let y = (h.clone() * part(&c).reshape([len, 1, d_state])).sum_dim(2);
                outputs.push(y.reshape([len, d_inner]));
                state = h.narrow(0, len - 1, 1);
            }
            states.push(state.reshape([d_inner, d_state]).transpose());
        }
        let mut y = if outputs.is_empty() {
            Tensor::zeros([tokens, d_inner], &device)
        } else {
            Tensor::cat(outputs, 0)
        };
        if let Some(d) = d {
            y = y + x * d.unsqueeze::<2>();
        }
        if let Some(z) = z {
            y = y * activation::silu(z);
        }
        let states = if states.is_empty() {
            Tensor::zeros([0, d_inner], &device)
        } else {
            Tensor::cat(states, 0)
        };
        [y, states]
    }

    /// `ln(1 + e^x)` without overflow.
    fn log_one_plus_exp(x: Tensor<2>) -> Tensor<2> {
        let positive = activation::relu(x.clone());
        positive + (x.abs() * -1.0).exp().log1p()
    }
}
