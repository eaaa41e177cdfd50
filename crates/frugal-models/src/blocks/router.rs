//! Routers: what a mixture of experts chooses its experts by.
//!
//! A router sees the token and what the routers of the blocks before have left of it in a
//! [`RouterState`], so that it may be one of its own in every block (Mixtral), one for all blocks, or
//! a recurrence over depth (RMoE, *Layerwise Recurrent Router for Mixture-of-Experts*, arXiv
//! 2408.06793).

use burn::prelude::*;
use burn::tensor::activation::{sigmoid, tanh};
use frugal_nn::layers::Linear;
use frugal_nn::{Frozen, ModelError, Pass, RouterState};
use serde::{Deserialize, Serialize};

use crate::blocks::shared::Shared;
use crate::blocks::sites::Sites;
use crate::weights::WeightLoader;

/// Scores the experts.
pub trait Router: Send + Sync {
    /// The logits of the experts for each token; what the next router may want to know goes into
    /// `state`.
    ///
    /// # Shapes
    /// x: `[tokens, d_model] -> [tokens, experts]`
    fn logits(&self, x: &Tensor<2>, state: &mut RouterState, pass: &mut dyn Pass) -> Tensor<2>;
    /// Visits all weights.
    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>));
}

/// `G x`.
pub struct LinearRouter {
    gate: Linear,
}

impl LinearRouter {
    /// Its site under `path`, from this width.
    pub fn sites(sites: &mut Sites, [width, experts]: [usize; 2], layer: usize, path: &str) {
        sites.linear(format!("{path}.gate"), layer, [width, experts], false);
    }

    /// Takes the weight under `path`.
    ///
    /// # Errors
    /// Whatever reading a tensor gives.
    pub fn load(loader: &mut WeightLoader<'_>, path: &str) -> Result<Self, ModelError> {
        let gate = loader.linear(&format!("{path}.gate"))?;
        Ok(Self { gate })
    }
}

impl Router for LinearRouter {
    fn logits(&self, x: &Tensor<2>, _state: &mut RouterState, pass: &mut dyn Pass) -> Tensor<2> {
        pass.linear(&self.gate, x.clone())
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        visit(Frozen::Linear(&self.gate));
    }
}

impl<T: Router> Router for Shared<T> {
    fn logits(&self, x: &Tensor<2>, state: &mut RouterState, pass: &mut dyn Pass) -> Tensor<2> {
        (**self).logits(x, state, pass)
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        if let Some(part) = self.shown() {
            part.visit_weights(visit);
        }
    }
}

/// What goes from one block to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CellKind {
    /// Gated recurrent unit.
    Gru,
    /// `h' = tanh(W x + U h + b)`.
    Rnn,
    /// Long short-term memory.
    Lstm,
}

impl CellKind {
    /// Maps of the input, and as many of the hidden state.
    fn maps(self) -> usize {
        match self {
            Self::Gru => 3,
            Self::Rnn => 1,
            Self::Lstm => 4,
        }
    }
}

/// A recurrent cell with the weights of PyTorch's `GRUCell`, `RNNCell` or `LSTMCell`: `ih` is its
/// `weight_ih` and `bias_ih`, `hh` its `weight_hh` and `bias_hh`, gates in its order.
pub struct RecurrentCell {
    kind: CellKind,
    ih: Linear,
    hh: Linear,
}

impl RecurrentCell {
    /// Its sites under `path`, in no block.
    pub fn sites(sites: &mut Sites, kind: CellKind, width: usize, path: &str) {
        let size = [width, kind.maps() * width];
        sites.of_no_block(|sites| {
            sites.linear(format!("{path}.ih"), 0, size, true);
            sites.linear(format!("{path}.hh"), 0, size, true);
        });
    }

    /// Takes the weights under `path`.
    ///
    /// # Errors
    /// Whatever reading a tensor gives.
    pub fn load(
        kind: CellKind,
        loader: &mut WeightLoader<'_>,
        path: &str,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            kind,
            ih: loader.linear(&format!("{path}.ih"))?,
            hh: loader.linear(&format!("{path}.hh"))?,
        })
    }

    /// The next hidden state, and the cell state of an LSTM.
    ///
    /// # Shapes
    /// x, h, c: `[tokens, width] -> [tokens, width]`
    fn step(
        &self,
        x: Tensor<2>,
        h: Tensor<2>,
        c: Tensor<2>,
        pass: &mut dyn Pass,
    ) -> (Tensor<2>, Option<Tensor<2>>) {
        let width = h.dims()[1];
        let from_x = pass.linear(&self.ih, x);
        let from_h = pass.linear(&self.hh, h.clone());
        let part = |of: &Tensor<2>, i: usize| of.clone().narrow(1, i * width, width);
        let sum = |i: usize| part(&from_x, i) + part(&from_h, i);
        match self.kind {
            CellKind::Gru => {
                let (r, z) = (sigmoid(sum(0)), sigmoid(sum(1)));
                let n = tanh(part(&from_x, 2) + r * part(&from_h, 2));
                // (1 - z) n + z h
                (n.clone() + z * (h - n), None)
            }
            CellKind::Rnn => (tanh(from_x + from_h), None),
            CellKind::Lstm => {
                let (i, f, o) = (sigmoid(sum(0)), sigmoid(sum(1)), sigmoid(sum(3)));
                let c = f * c + i * tanh(sum(2));
                (o * tanh(c.clone()), Some(c))
            }
        }
    }
}

/// What a recurrent router may do otherwise (ablations of the paper, tables 4 to 7).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RecurrentSpec {
    /// Whether a block sees the state of those before; without, every block begins from zeros (`NP`).
    #[serde(rename = "moe_router_recurrent")]
    pub recurrent: bool,
    /// Whether no gradient goes to the blocks before (`detach`).
    #[serde(rename = "moe_router_detach")]
    pub detach: bool,
    /// Factor on the scores of the block before, which are added (`r-α`); 0 for none.
    #[serde(rename = "moe_router_residual")]
    pub residual: f64,
}

/// `G h` of the state `h = cell(P x, h of the block before)`.
pub struct RecurrentRouter {
    /// What differs.
    pub spec: RecurrentSpec,
    /// The cell of all blocks.
    pub cell: Shared<RecurrentCell>,
    /// P.
    pub projection: Shared<Linear>,
    /// G.
    pub gate: Linear,
}

impl Router for RecurrentRouter {
    fn logits(&self, x: &Tensor<2>, state: &mut RouterState, pass: &mut dyn Pass) -> Tensor<2> {
        let x = pass.linear(&self.projection, x.clone());
        let zeros = || Tensor::zeros(x.dims(), &x.device().inner());
        let before = |state: &Option<Tensor<2>>| match state {
            Some(state) if self.spec.recurrent && self.spec.detach => state.clone().detach(),
            Some(state) if self.spec.recurrent => state.clone(),
            _ => zeros(),
        };
        let (h, c) = (before(&state.hidden), before(&state.cell));
        let (h, c) = self.cell.step(x, h, c, pass);
        let mut logits = pass.linear(&self.gate, h.clone());
        if self.spec.residual != 0.0 {
            if let Some(scores) = &state.scores {
                logits = logits + scores.clone() * self.spec.residual;
            }
            state.scores = Some(logits.clone());
        }
        (state.hidden, state.cell) = (Some(h), c);
        logits
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        if let Some(cell) = self.cell.shown() {
            visit(Frozen::Linear(&cell.ih));
            visit(Frozen::Linear(&cell.hh));
        }
        if let Some(projection) = self.projection.shown() {
            visit(Frozen::Linear(projection));
        }
        visit(Frozen::Linear(&self.gate));
    }
}

#[cfg(test)]
mod tests {
    use frugal_nn::{NoAdapter, SiteId, Weight, to_vec};

    use super::*;

    fn linear(weight: &[f32], d_in: usize) -> Linear {
        let shape = [weight.len() / d_in, d_in];
        let device = Device::flex();
        Linear {
            site: SiteId(0),
            weight: Weight::Dense(Tensor::from_data(
                TensorData::new(weight.to_vec(), shape),
                &device,
            )),
            bias: None,
        }
    }

    fn row(values: &[f32]) -> Tensor<2> {
        let shape = [values.len(), 1];
        Tensor::from_data(TensorData::new(values.to_vec(), shape), &Device::flex())
    }

    /// Width 1 without biases, computed by hand in double precision.
    #[test]
    fn a_gru_gives_what_its_equations_give() {
        let cell = RecurrentCell {
            kind: CellKind::Gru,
            ih: linear(&[0.3, 0.4, 0.8], 1),
            hh: linear(&[-0.2, 0.1, 0.5], 1),
        };
        let zero = || row(&[0.0]);
        let (first, _) = cell.step(row(&[0.5]), zero(), zero(), &mut NoAdapter);
        assert!((to_vec(first.clone())[0] - 0.171_040_1).abs() < 1e-6);
        let (second, _) = cell.step(row(&[-1.0]), first, zero(), &mut NoAdapter);
        assert!((to_vec(second)[0] + 0.313_330_1).abs() < 1e-6);
    }

    fn router(spec: RecurrentSpec) -> RecurrentRouter {
        RecurrentRouter {
            spec,
            cell: RecurrentCell {
                kind: CellKind::Gru,
                ih: linear(&[0.3, 0.4, 0.8], 1),
                hh: linear(&[-0.2, 0.1, 0.5], 1),
            }
            .into(),
            projection: linear(&[0.7], 1).into(),
            gate: linear(&[1.0, -2.0], 1),
        }
    }

    const PLAIN: RecurrentSpec = RecurrentSpec {
        recurrent: true,
        detach: false,
        residual: 0.0,
    };

    /// Two blocks in a row: whether the logits of the second have a gradient by what the first saw.
    #[test]
    fn gradients_cross_blocks_but_where_the_ablations_cut_them() {
        let cut = RecurrentSpec {
            detach: true,
            ..PLAIN
        };
        let none = RecurrentSpec {
            recurrent: false,
            ..PLAIN
        };
        for (spec, crosses) in [(PLAIN, true), (cut, false), (none, false)] {
            let router = router(spec);
            let mut state = RouterState::default();
            let first = Tensor::from_inner(row(&[0.5, -0.3])).require_grad();
            router.logits(&first, &mut state, &mut NoAdapter);
            let second = Tensor::from_inner(row(&[0.2, 0.9])).require_grad();
            let logits = router.logits(&second, &mut state, &mut NoAdapter);
            let gradients = logits.slice([0..2, 0..1]).sum().backward();
            let of_first = first.grad(&gradients).map(to_vec);
            let size = of_first
                .iter()
                .flatten()
                .fold(0.0f32, |m, g| m.max(g.abs()));
            assert_eq!(size > 1e-3, crosses, "{spec:?}: {of_first:?}");
            assert!(second.grad(&gradients).is_some());
        }
    }

    /// The recurrence is over blocks alone: tokens in another order have their states in that order.
    #[test]
    fn tokens_do_not_see_each_other() {
        let router = router(PLAIN);
        let run = |tokens: [&[f32]; 2]| {
            let mut state = RouterState::default();
            tokens.map(|x| to_vec(router.logits(&row(x), &mut state, &mut NoAdapter)))
        };
        let straight = run([&[0.5, -0.3, 0.1], &[0.2, 0.9, -0.6]]);
        let turned = run([&[0.1, -0.3, 0.5], &[-0.6, 0.9, 0.2]]);
        for (straight, turned) in straight.iter().zip(&turned) {
            let back: Vec<f32> = turned.chunks(2).rev().flatten().copied().collect();
            assert_eq!(&back, straight);
        }
        assert_ne!(straight[0], straight[1]);
    }
}
