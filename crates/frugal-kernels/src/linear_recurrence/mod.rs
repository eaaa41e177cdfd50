//! Linear recurrence with gates that were computed before.

mod spec;

use burn::tensor::Tensor;

pub use spec::LinearRecurrence;

use crate::flex;

/// The states of a [`LinearRecurrence`], `[tokens, d]`. Gradients flow to decays, inputs and initial
/// states.
///
/// # Panics
/// When the shapes do not fit together.
pub fn linear_recurrence(recurrence: LinearRecurrence) -> Tensor<2> {
    recurrence.check();
    flex::linear_recurrence(&recurrence).unwrap_or_else(|| portable::linear_recurrence(recurrence))
}

pub(crate) mod portable {
    use burn::tensor::{Tensor, TensorData};

    use super::LinearRecurrence;

    /// Tokens whose partial products exist at once.
    const CHUNK: usize = 64;

    /// [`linear_recurrence`](crate::linear_recurrence()) as a composition of Burn operations: chunk by
    /// chunk, and within one by doubling the reach of each token's sum (Hillis and Steele, *Data
    /// Parallel Algorithms*, 1986), in which only products of decays occur.
    pub fn linear_recurrence(recurrence: LinearRecurrence) -> Tensor<2> {
        let ([tokens, d], device) = (recurrence.a.dims(), recurrence.a.device());
        let rows: Vec<_> = recurrence.rows().collect();
        let LinearRecurrence {
            mut a,
            b,
            initial_state,
            resets,
            reverse,
            ..
        } = recurrence;
        if let Some(resets) = resets {
            let kept = resets.iter().map(|reset| f32::from(!reset));
            let kept = TensorData::new(kept.collect::<Vec<f32>>(), [tokens, 1]);
            a = a * Tensor::<2>::from_data(kept, &device);
        }
        let turned = |x: Tensor<2>| if reverse { x.flip([0]) } else { x };
        let mut outputs = Vec::new();
        for (sequence, rows) in rows.into_iter().enumerate() {
            let own = |t: &Tensor<2>| turned(t.clone().narrow(0, rows.start, rows.len()));
            if rows.is_empty() {
                continue;
            }
            let (a, b) = (own(&a), own(&b));
            let mut state = match &initial_state {
                Some(initial) => initial.clone().narrow(0, sequence, 1),
                None => Tensor::zeros([1, d], &device),
            };
            let mut found = Vec::new();
            for start in (0..rows.len()).step_by(CHUNK) {
                let len = CHUNK.min(rows.len() - start);
                let [mut decay, mut sums] = [&a, &b].map(|t| t.clone().narrow(0, start, len));
                let mut reach = 1;
                while reach < len {
                    let left = len - reach;
                    let [first, tail] = [[0, reach], [reach, left]].map(|[from, count]| {
                        [&decay, &sums].map(|t| t.clone().narrow(0, from, count))
                    });
                    let [before, sums_before] =
                        [&decay, &sums].map(|t| t.clone().narrow(0, 0, left));
                    let [decay_first, sums_first] = first;
                    let [decay_tail, sums_tail] = tail;
                    sums = Tensor::cat(
                        vec![sums_first, sums_tail + decay_tail.clone() * sums_before],
                        0,
                    );
                    decay = Tensor::cat(vec![decay_first, decay_tail * before], 0);
                    reach *= 2;
                }
                let h = sums + decay * state;
                state = h.clone().narrow(0, len - 1, 1);
                found.push(h);
            }
            outputs.push(turned(Tensor::cat(found, 0)));
        }
        match outputs.is_empty() {
            true => b,
            false => Tensor::cat(outputs, 0),
        }
    }
}
