//! A mixture of experts in place of the feed-forward layer (Mixtral, arXiv 2401.04088).

use burn::prelude::*;
use burn::tensor::activation::softmax;
use frugal_nn::layers::Linear;
use frugal_nn::{Frozen, ModelError, Pass, select_rows, to_vec};
use serde::Serialize;

use crate::activation::Activation;
use crate::architecture::ModelConfig;
use crate::blocks::gated_mlp::{FeedForward, gated_mlp};
use crate::blocks::sites::Sites;
use crate::weights::WeightLoader;

/// Experts of a block.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MoeSpec {
    /// Experts of a block.
    pub num_local_experts: usize,
    /// Experts that each token goes through.
    pub num_experts_per_tok: usize,
    /// Weight of the loss that keeps the load even.
    pub router_aux_loss_coef: f64,
}

/// `Σ wₑ FFNₑ(x)` over the experts with the highest router probabilities, which are scaled to sum
/// to 1.
pub struct SparseMoe {
    config: MoeSpec,
    activation: Activation,
    gate: Linear,
    /// Gate, up and down projection of each.
    experts: Vec<[Linear; 3]>,
}

impl SparseMoe {
    /// Its sites under `path`.
    pub fn sites(sites: &mut Sites, c: &ModelConfig, spec: &MoeSpec, layer: usize, path: &str) {
        let (d, ff) = (c.hidden_size, c.intermediate_size);
        let count = spec.num_local_experts;
        sites.linear(format!("{path}.gate"), layer, [d, count], false);
        for e in 0..count {
            let p = |name: &str| format!("{path}.experts.{e}.{name}");
            sites.linear(p("w1"), layer, [d, ff], false);
            sites.linear(p("w3"), layer, [d, ff], false);
            sites.output(p("w2"), layer, [ff, d], false);
        }
    }

    /// Takes the weights under `path`.
    ///
    /// # Errors
    /// Whatever reading a tensor gives.
    pub fn load(
        config: MoeSpec,
        activation: Activation,
        loader: &mut WeightLoader<'_>,
        path: &str,
    ) -> Result<Self, ModelError> {
        let gate = loader.linear(&format!("{path}.gate"))?;
        let mut expert = |e: usize| {
            let mut linear = |name: &str| loader.linear(&format!("{path}.experts.{e}.{name}"));
            Ok([linear("w1")?, linear("w3")?, linear("w2")?])
        };
        let experts = (0..config.num_local_experts)
            .map(&mut expert)
            .collect::<Result<_, ModelError>>()?;
        Ok(Self {
            config,
            activation,
            gate,
            experts,
        })
    }

    /// The same with every expert on every token, for passes that tell sequences apart by their
    /// rows.
    fn all(
        &self,
        probabilities: &Tensor<2>,
        chosen: &[usize],
        x: &Tensor<2>,
        pass: &mut dyn Pass,
    ) -> Tensor<2> {
        let ([tokens, count], k) = (probabilities.dims(), self.config.num_experts_per_tok);
        let mut mask = vec![0.0f32; tokens * count];
        chosen
            .iter()
            .enumerate()
            .for_each(|(slot, e)| mask[slot / k * count + e] = 1.0);
        let weights = probabilities.clone()
            * Tensor::from_data(TensorData::new(mask, [tokens, count]), &x.device().inner());
        let weights = weights.clone() / weights.sum_dim(1);
        let terms = self
            .experts
            .iter()
            .enumerate()
            .map(|(e, [gate, up, down])| {
                gated_mlp(self.activation, [gate, up, down], x.clone(), pass)
                    * weights.clone().slice([0..tokens, e..e + 1])
            });
        terms
            .reduce(|a, b| a + b)
            .expect("a configuration has at least one expert")
    }

    /// The experts of each token, `[tokens, num_experts_per_tok]`, the likeliest first.
    fn choose(&self, probabilities: &[f32]) -> Vec<usize> {
        let best = |row: &[f32]| {
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            order.truncate(self.config.num_experts_per_tok);
            order
        };
        probabilities
            .chunks(self.config.num_local_experts)
            .flat_map(best)
            .collect()
    }
}

impl FeedForward for SparseMoe {
    fn forward(&self, layer: usize, x: Tensor<2>, pass: &mut dyn Pass) -> Tensor<2> {
        let probabilities = softmax(pass.linear(&self.gate, x.clone()), 1);
        let chosen = self.choose(&to_vec(probabilities.clone().inner()));
        pass.router(
            layer,
            &probabilities,
            &chosen,
            self.config.router_aux_loss_coef,
        );
        if pass.needs_token_rows() {
            return self.all(&probabilities, &chosen, &x, pass);
        }
        let ([tokens, width], k) = (x.dims(), self.config.num_experts_per_tok);
        let device = x.device().inner();
        let indices: Vec<i64> = chosen.iter().map(|&e| e as i64).collect();
        let indices = Tensor::<2, Int>::from_data(TensorData::new(indices, [tokens, k]), &device);
        let weights = probabilities.gather(1, indices);
        let weights = (weights.clone() / weights.sum_dim(1)).reshape([tokens * k, 1]);

        // One product for all tokens of an expert; then back into the order of the tokens.
        let (mut outputs, mut order) = (Vec::new(), Vec::with_capacity(tokens * k));
        for (e, [gate, up, down]) in self.experts.iter().enumerate() {
            let slots: Vec<usize> = (0..tokens * k).filter(|&slot| chosen[slot] == e).collect();
            if slots.is_empty() {
                continue;
            }
            let rows: Vec<usize> = slots.iter().map(|slot| slot / k).collect();
            let y = gated_mlp(
                self.activation,
                [gate, up, down],
                select_rows(x.clone(), &rows),
                pass,
            );
            outputs.push(y * select_rows(weights.clone(), &slots));
            order.extend(slots);
        }
        let mut place = vec![0; order.len()];
        order
            .iter()
            .enumerate()
            .for_each(|(i, &slot)| place[slot] = i);
        select_rows(Tensor::cat(outputs, 0), &place)
            .reshape([tokens, k, width])
            .sum_dim(1)
            .reshape([tokens, width])
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        visit(Frozen::Linear(&self.gate));
        self.experts
            .iter()
            .flatten()
            .for_each(|linear| visit(Frozen::Linear(linear)));
    }
}
