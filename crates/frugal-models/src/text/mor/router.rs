//! Routing over depth: which tokens take part in a recursion step.

use burn::prelude::*;
use burn::tensor::activation::{log_sigmoid, sigmoid, softmax};
use frugal_nn::{ModelError, Param, ParamChange, Pass, Rows, SiteKind};

use super::active::Active;
use super::settings::{CommonSpec, Gating, RouterFunc, RouterType};
use crate::architecture::ModelConfig;
use crate::blocks::sites::Sites;
use crate::weights::WeightLoader;

/// A router over depth: scores of tokens.
pub(super) struct DepthRouter {
    /// One map, or two with a GELU between them; each `[d_out, d_in]`.
    maps: Vec<Param>,
    /// What the input is divided by.
    temperature: f64,
}

impl DepthRouter {
    fn shapes(kind: RouterType, width: usize, outputs: usize) -> Vec<(&'static str, [usize; 2])> {
        match kind {
            RouterType::Linear => vec![("router.weight", [width, outputs])],
            RouterType::Mlp | RouterType::WideMlp => vec![
                ("router.0.weight", [width, 2 * width]),
                ("router.2.weight", [2 * width, outputs]),
            ],
        }
    }

    /// Its sites under `path`, for so many outputs.
    pub fn sites(sites: &mut Sites, c: &ModelConfig, kind: RouterType, path: &str, outputs: usize) {
        for (name, size) in Self::shapes(kind, c.hidden_size, outputs) {
            sites.add(format!("{path}.{name}"), SiteKind::Param, None, size, false);
        }
    }

    /// Takes the maps under `path`.
    ///
    /// # Errors
    /// Whatever reading a tensor gives.
    pub fn load(
        loader: &mut WeightLoader<'_>,
        kind: RouterType,
        path: &str,
        temperature: f64,
    ) -> Result<Self, ModelError> {
        let names = Self::shapes(kind, 1, 1).into_iter();
        let maps = names.map(|(name, _)| loader.param(&format!("{path}.{name}")));
        Ok(Self {
            maps: maps.collect::<Result<_, _>>()?,
            temperature,
        })
    }

    /// Its maps.
    pub fn maps(&self) -> &[Param] {
        &self.maps
    }

    /// Scores `[active, outputs]` of tokens `[active, d_model]`.
    pub fn logits(&self, x: Tensor<2>, active: &Active, pass: &mut dyn Pass) -> Tensor<2> {
        let x = if self.temperature == 1.0 {
            x
        } else {
            x / self.temperature
        };
        let mut maps = self.maps.iter();
        if !maps.any(|map| matches!(pass.param_change(map), ParamChange::BySequence)) {
            return self.map(x, Rows::Tokens, pass);
        }
        let ranges = active.layout.cu_seqlens.windows(2);
        let each = active
            .sequences
            .iter()
            .zip(ranges)
            .map(|(&sequence, range)| {
                let own = x.clone().slice(range[0]..range[1]);
                self.map(own, Rows::OfSequence(sequence), pass)
            });
        Tensor::cat(each.collect(), 0)
    }

    fn map(&self, x: Tensor<2>, rows: Rows, pass: &mut dyn Pass) -> Tensor<2> {
        let maps = self.maps.iter().enumerate();
        maps.fold(x, |x, (i, map)| {
            let x = if i == 0 { x } else { frugal_kernels::gelu(x) };
            frugal_kernels::linear(x, pass.param(map, rows), None)
        })
    }
}

impl CommonSpec {
    /// What scores come to: what the shared layers' output is multiplied by.
    pub fn values(&self, logits: Tensor<2>) -> Tensor<2> {
        let values = match self.router_func {
            RouterFunc::Sigmoid => sigmoid(logits),
            RouterFunc::Tanh => logits.tanh(),
            RouterFunc::Softmax => softmax(logits, 1),
        };
        if self.router_alpha == 1.0 {
            values
        } else {
            values * self.router_alpha
        }
    }

    /// `x` times the router's `values` `[rows, 1]`.
    pub fn gate(&self, x: Tensor<2>, values: Tensor<2>) -> Tensor<2> {
        match self.router_gating {
            Gating::Weighted => x * values,
            Gating::None => x,
        }
    }

    /// The weighted mean of `logsumexp(logits)²`, `[1]`, where it is asked for.
    pub fn z_loss(&self, logits: &Tensor<2>) -> Option<Tensor<1>> {
        if self.z_loss == 0.0 {
            return None;
        }
        let largest = logits.clone().max_dim(1).detach();
        let sum = (logits.clone() - largest.clone()).exp().sum_dim(1).log() + largest;
        Some((sum.clone() * sum).mean() * self.z_loss)
    }
}

/// The mean over tokens of the binary cross-entropy of `logits` `[tokens, 1]` with who was chosen:
/// `[1]`.
pub(super) fn chosen_loss(logits: &Tensor<2>, chosen: &[bool]) -> Tensor<1> {
    let count = chosen.len();
    let target: Vec<f32> = chosen.iter().map(|&chosen| f32::from(chosen)).collect();
    let device = logits.device().inner();
    let target = Tensor::<2>::from_data(TensorData::new(target, [count, 1]), &device);
    let yes = log_sigmoid(logits.clone()) * target.clone();
    let no = log_sigmoid(-logits.clone()) * (-target + 1.0);
    -(yes + no).mean()
}

/// For each of these scores, whether it is among the `capacity` highest of its sequence; of equals
/// the earlier token is taken.
pub(super) fn highest(
    scores: &[f32],
    boundaries: &[usize],
    capacity: impl Fn(usize) -> usize,
) -> Vec<bool> {
    let mut chosen = vec![false; scores.len()];
    for (sequence, range) in boundaries.windows(2).enumerate() {
        let mut order: Vec<usize> = (range[0]..range[1]).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let taken = order.into_iter().take(capacity(sequence));
        taken.for_each(|row| chosen[row] = true);
    }
    chosen
}

/// For each token the number with the highest value, with a bias that only the choice sees; of equals
/// the first.
pub(super) fn best(values: &[f32], bias: Option<&[f32]>, choices: usize) -> Vec<usize> {
    let of = |row: &[f32]| {
        let value = |i: usize| row[i] + bias.map_or(0.0, |bias| bias[i]);
        (1..choices).fold(0, |best, i| if value(i) > value(best) { i } else { best })
    };
    values.chunks(choices).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::super::settings::{ExpertSpec, Routing, Sampling};
    use super::*;
    use frugal_nn::to_vec;

    fn column(values: &[f32]) -> Tensor<2> {
        let data = TensorData::new(values.to_vec(), [values.len(), 1]);
        Tensor::from_data(data, &Device::flex())
    }

    fn spec(func: RouterFunc, alpha: f64) -> CommonSpec {
        CommonSpec {
            router_type: RouterType::Linear,
            router_func: func,
            router_alpha: alpha,
            router_temperature: 1.0,
            router_gating: Gating::Weighted,
            z_loss: 1.0,
            aux_loss: 0.0,
        }
    }

    #[test]
    fn steps_take_whole_shares_of_a_sequence() {
        let expert = ExpertSpec {
            common: spec(RouterFunc::Sigmoid, 0.1),
            capacity_factors: None,
            sampling: Sampling::AuxLoss,
            inference_routing: Routing::TopK,
            router_threshold: 0.5,
        };
        let of = |tokens: usize| [0, 1, 2].map(|step| expert.capacity(step, 3, tokens));
        assert_eq!(of(8), [8, 5, 2]);
        assert_eq!(of(6), [6, 4, 2]);
        assert_eq!(of(1), [1, 1, 1]);
        assert_eq!(of(2), [2, 1, 1]);
        let halves = ExpertSpec {
            capacity_factors: Some(vec![1.0, 0.5, 0.5]),
            ..expert
        };
        assert_eq!([0, 1, 2].map(|step| halves.capacity(step, 3, 7)), [7, 3, 3]);
    }

    /// Numbers of the paper's equation 2.1 and of `BCEWithLogitsLoss` and `logsumexp` in PyTorch.
    #[test]
    fn gates_and_losses_are_those_of_the_paper() {
        let gates = spec(RouterFunc::Sigmoid, 0.1);
        let value = gates.values(column(&[0.5]));
        assert!((to_vec(value.clone())[0] - 0.062_245_9).abs() < 1e-7);
        let data = TensorData::new(vec![3.0f32, -1.0], [1, 2]);
        let f = Tensor::<2>::from_data(data, &Device::flex());
        let changed = to_vec(gates.gate(f, value));
        assert!((1.0 + changed[0] - 1.186_738).abs() < 1e-6);
        assert!((2.0 + changed[1] - 1.937_754).abs() < 1e-6);

        let logits = column(&[2.0, -1.0, 0.5, 0.0]);
        let loss = chosen_loss(&logits, &[true, false, true, false]);
        assert!((to_vec(loss)[0] - 0.401_853_5).abs() < 1e-6);
        // Far from 0 the loss is the score itself.
        let far = chosen_loss(&column(&[300.0]), &[false]);
        assert!((to_vec(far)[0] - 300.0).abs() < 1e-3);

        let data = TensorData::new(vec![1.0f32, 2.0, 0.0, -1.0], [2, 2]);
        let logits = Tensor::<2>::from_data(data, &Device::flex());
        let z = gates.z_loss(&logits).unwrap();
        // logsumexp: 2.3132617, 0.3132617.
        assert!((to_vec(z)[0] - 2.724_656_3).abs() < 1e-5);
    }

    #[test]
    fn the_highest_of_each_sequence_are_taken_in_order_of_their_places() {
        let scores = [0.1, 0.9, 0.5, 0.5, -3.0, 2.0];
        let chosen = highest(&scores, &[0, 4, 6], |sequence| [2, 1][sequence]);
        assert_eq!(chosen, [false, true, true, false, false, true]);
        let values = [0.2, 0.5, 0.3, 0.4, 0.4, 0.2];
        assert_eq!(best(&values, None, 3), [1, 0]);
        assert_eq!(best(&values, Some(&[0.0, 0.0, 0.25]), 3), [2, 2]);
    }
}
