//! A mixture of experts in place of the feed-forward layer (Mixtral, arXiv 2401.04088), with any
//! [`Router`].

use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::activation::softmax;
use frugal_kernels::{NO_ROW, combine_rows, gather_rows};
use frugal_nn::layers::Linear;
use frugal_nn::{Frozen, ModelError, Pass, RouterState, RouterTraining, to_vec};
use serde::Serialize;

use crate::activation::Activation;
use crate::blocks::gated_mlp::{FeedForward, gated_mlp};
use crate::blocks::router::Router;
use crate::blocks::shared::Shared;
use crate::blocks::sites::Sites;
use crate::keys::{bad, not_negative};
use crate::weights::WeightLoader;

/// What is made for each expert must not grow with a number in the file.
const MAX_EXPERTS: usize = 1 << 18;

/// Experts of a block, and how tokens get to them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MoeSpec {
    /// Experts of a block.
    pub num_local_experts: usize,
    /// Experts that each token goes through.
    pub num_experts_per_tok: usize,
    /// Weight of the loss that keeps the load even, a mean over the blocks.
    pub router_aux_loss_coef: f64,
    /// Whether the probabilities of a token's experts are scaled to sum to 1.
    #[serde(skip)]
    pub norm_topk_prob: bool,
    /// While the router is trained, an expert takes this many times the tokens of an even load, the
    /// first of the batch; those beyond go past it.
    #[serde(skip)]
    pub capacity_factor: Option<f64>,
    /// What else happens then.
    #[serde(skip)]
    pub training: RouterTraining,
}

impl MoeSpec {
    /// Mixtral's: scaled to sum to 1, and all tokens reach their experts.
    pub fn new([count, per_token]: [usize; 2], router_aux_loss_coef: f64) -> Self {
        Self {
            num_local_experts: count,
            num_experts_per_tok: per_token,
            router_aux_loss_coef,
            norm_topk_prob: true,
            capacity_factor: None,
            training: RouterTraining::default(),
        }
    }

    /// No token goes through more experts than there are, no model has more than can be listed, and
    /// none rewards an uneven load.
    ///
    /// # Errors
    /// [`ModelError::Config`] that names the key.
    pub fn check(self, layers: usize, source: &str) -> Result<Self, ModelError> {
        let (chosen, count) = (self.num_experts_per_tok, self.num_local_experts);
        if count.saturating_mul(layers) > MAX_EXPERTS {
            let reason = format!("{count} in {layers} blocks are more than any known model has");
            return Err(bad(source, "num_local_experts", reason));
        }
        if chosen > count {
            let reason = format!("{chosen} of {count} experts");
            return Err(bad(source, "num_experts_per_tok", reason));
        }
        not_negative("router_aux_loss_coef", self.router_aux_loss_coef, source)?;
        Ok(self)
    }

    /// Tokens that an expert takes of a batch of so many.
    fn capacity(&self, tokens: usize) -> Option<usize> {
        let even = (self.num_experts_per_tok * tokens) as f64 / self.num_local_experts as f64;
        self.capacity_factor.map(|factor| (factor * even) as usize)
    }

    /// The experts of each token, `[tokens, num_experts_per_tok]`, the likeliest first.
    fn choose(&self, probabilities: &[f32]) -> Vec<usize> {
        let mut order = vec![0; self.num_local_experts];
        let mut chosen = Vec::with_capacity(
            probabilities.len() / self.num_local_experts * self.num_experts_per_tok,
        );
        for row in probabilities.chunks(self.num_local_experts) {
            order.iter_mut().enumerate().for_each(|(e, o)| *o = e);
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            chosen.extend_from_slice(&order[..self.num_experts_per_tok]);
        }
        chosen
    }
}

/// The feed-forward layers of a mixture: gate, up and down projection of each.
pub struct Experts(Vec<[Linear; 3]>);

impl Experts {
    /// Their sites under `path`.
    pub fn sites(sites: &mut Sites, [d, ff]: [usize; 2], count: usize, layer: usize, path: &str) {
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
        count: usize,
        loader: &mut WeightLoader<'_>,
        path: &str,
    ) -> Result<Self, ModelError> {
        let mut expert = |e: usize| {
            let mut linear = |name: &str| loader.linear(&format!("{path}.experts.{e}.{name}"));
            Ok([linear("w1")?, linear("w3")?, linear("w2")?])
        };
        let experts: Result<_, ModelError> = (0..count).map(&mut expert).collect();
        experts.map(Self)
    }
}

/// `Σ wₑ FFNₑ(x)` over the experts with the highest router probabilities, by which they are weighted.
pub struct SparseMoe {
    spec: MoeSpec,
    activation: Activation,
    router: Box<dyn Router>,
    experts: Shared<Experts>,
}

/// Which tokens go to which expert.
struct Dispatch {
    /// The tokens of each.
    rows: Vec<Vec<u32>>,
    /// Where the row of each choice is among those of all experts one behind the other.
    places: Arc<[u32]>,
}

impl Dispatch {
    /// Of the choices of each token; an expert takes no more than `capacity`.
    fn new(chosen: &[usize], [count, per_token]: [usize; 2], capacity: Option<usize>) -> Self {
        let mut rows = vec![Vec::new(); count];
        let mut places = vec![NO_ROW; chosen.len()];
        for (slot, &e) in chosen.iter().enumerate() {
            let own: &mut Vec<u32> = &mut rows[e];
            if capacity.is_none_or(|capacity| own.len() < capacity) {
                places[slot] = own.len() as u32;
                own.push((slot / per_token) as u32);
            }
        }
        let mut firsts = Vec::with_capacity(count);
        let mut first = 0;
        for own in &rows {
            firsts.push(first);
            first += own.len() as u32;
        }
        for (place, &e) in places.iter_mut().zip(chosen) {
            if *place != NO_ROW {
                *place += firsts[e];
            }
        }
        Self {
            rows,
            places: places.into(),
        }
    }
}

impl SparseMoe {
    /// These experts, chosen by this router.
    pub fn new(
        spec: MoeSpec,
        activation: Activation,
        router: Box<dyn Router>,
        experts: Shared<Experts>,
    ) -> Self {
        Self {
            spec,
            activation,
            router,
            experts,
        }
    }

    fn expert(&self, e: usize, x: Tensor<2>, pass: &mut dyn Pass) -> Tensor<2> {
        gated_mlp(self.activation, self.experts.0[e].each_ref(), x, pass)
    }

    /// The sum with every expert on every token, for passes that tell sequences apart by their
    /// rows.
    fn all(
        &self,
        weights: Tensor<2>,
        chosen: &[usize],
        dispatch: &Dispatch,
        x: &Tensor<2>,
        pass: &mut dyn Pass,
    ) -> Tensor<2> {
        let ([tokens, k], count) = (weights.dims(), self.spec.num_local_experts);
        // Where the weight of each expert is among those of the token's choices, behind which is 0.
        let mut columns = vec![k as i64; tokens * count];
        for (slot, (&e, &place)) in chosen.iter().zip(dispatch.places.iter()).enumerate() {
            if place != NO_ROW {
                columns[slot / k * count + e] = (slot % k) as i64;
            }
        }
        let device = x.device().inner();
        let columns =
            Tensor::<2, Int>::from_data(TensorData::new(columns, [tokens, count]), &device);
        let zeros = Tensor::zeros([tokens, 1], &device);
        let weights = Tensor::cat(vec![weights, zeros], 1).gather(1, columns);
        let terms = (0..count).map(|e| {
            self.expert(e, x.clone(), pass) * weights.clone().slice([0..tokens, e..e + 1])
        });
        terms
            .reduce(|a, b| a + b)
            .expect("a configuration has at least one expert")
    }

    /// The sum with each expert on its own tokens, which are gathered once.
    fn chosen(
        &self,
        weights: Tensor<2>,
        dispatch: &Dispatch,
        x: &Tensor<2>,
        pass: &mut dyn Pass,
    ) -> Tensor<2> {
        let mut outputs = Vec::new();
        for (e, rows) in dispatch.rows.iter().enumerate() {
            if !rows.is_empty() {
                let own = gather_rows(x.clone(), &rows.as_slice().into());
                outputs.push(self.expert(e, own, pass));
            }
        }
        match outputs.len() {
            // Nothing fits where the capacity is below one token.
            0 => Tensor::zeros(x.dims(), &x.device().inner()),
            1 => combine_rows(outputs.remove(0), weights, &dispatch.places),
            _ => combine_rows(Tensor::cat(outputs, 0), weights, &dispatch.places),
        }
    }
}

impl FeedForward for SparseMoe {
    fn forward(&self, layer: usize, x: Tensor<2>, pass: &mut dyn Pass) -> Tensor<2> {
        self.forward_routed(layer, x, &mut RouterState::default(), pass)
    }

    fn forward_routed(
        &self,
        layer: usize,
        x: Tensor<2>,
        routing: &mut RouterState,
        pass: &mut dyn Pass,
    ) -> Tensor<2> {
        let (spec, tokens) = (&self.spec, x.dims()[0]);
        let sizes = [spec.num_local_experts, spec.num_experts_per_tok];
        let logits = self.router.logits(&x, routing, pass);
        let trained = pass.router_logits(layer, &logits, spec.training);
        let capacity = spec.capacity(tokens).filter(|_| trained.is_some());
        let probabilities = softmax(trained.unwrap_or(logits), 1);
        let chosen = spec.choose(&to_vec(probabilities.clone().inner()));
        pass.router(layer, &probabilities, &chosen, spec.router_aux_loss_coef);

        let indices: Vec<i64> = chosen.iter().map(|&e| e as i64).collect();
        let indices = TensorData::new(indices, [tokens, sizes[1]]);
        let indices = Tensor::<2, Int>::from_data(indices, &x.device().inner());
        let mut weights = probabilities.gather(1, indices);
        if spec.norm_topk_prob {
            weights = weights.clone() / weights.sum_dim(1);
        }
        let dispatch = Dispatch::new(&chosen, sizes, capacity);
        match pass.needs_token_rows() {
            true => self.all(weights, &chosen, &dispatch, &x, pass),
            false => self.chosen(weights, &dispatch, &x, pass),
        }
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        self.router.visit_weights(visit);
        if let Some(experts) = self.experts.shown() {
            let linears = experts.0.iter().flatten();
            linears.for_each(|linear| visit(Frozen::Linear(linear)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `⌊1.2 · 2 · 8 / 4⌋` is 4 slots of each expert (equation 5 of arXiv 2107.11817); those of the
    /// first tokens are taken.
    #[test]
    fn an_expert_takes_the_first_tokens_up_to_its_capacity() {
        let spec = MoeSpec {
            capacity_factor: Some(1.2),
            ..MoeSpec::new([4, 2], 0.0)
        };
        assert_eq!(spec.capacity(8), Some(4));
        assert_eq!(MoeSpec::new([4, 2], 0.0).capacity(8), None);
        // All tokens choose expert 2 first, and one of the others.
        let chosen = [2, 0, 2, 1, 2, 3, 2, 0, 2, 1, 2, 3, 2, 0, 2, 1];
        let dispatch = Dispatch::new(&chosen, [4, 2], Some(4));
        assert_eq!(
            dispatch.rows,
            [vec![0, 3, 6], vec![1, 4, 7], vec![0, 1, 2, 3], vec![2, 5]]
        );
        let n = NO_ROW;
        let places = [6, 0, 7, 3, 8, 10, 9, 1, n, 4, n, 11, n, 2, n, 5];
        assert_eq!(dispatch.places.as_ref(), places);
        let all = Dispatch::new(&chosen, [4, 2], None);
        assert_eq!(all.rows[2], (0..8).collect::<Vec<u32>>());
        assert!(!all.places.contains(&NO_ROW));
    }

    #[test]
    fn the_likeliest_experts_are_chosen_and_the_first_of_equal_ones() {
        let spec = MoeSpec::new([3, 2], 0.0);
        assert_eq!(spec.choose(&[0.2, 0.5, 0.3, 0.4, 0.2, 0.4]), [1, 2, 0, 2]);
    }
}
