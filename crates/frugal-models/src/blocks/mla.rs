//! Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, equations 9 to 19; names as in
//! `transformers`' DeepSeek V3).
//!
//! A token is remembered as one narrow vector `c` and one rotated key part that all heads share.
//! While training, every head's keys and values are made from `c`. While generating, the matrices
//! that would make them move to the other side: to the query (`qᵀ W_UK c`) and behind the weighted
//! sum (`W_UV Σ a c`), so that what is cached stays narrow.

use burn::prelude::*;
use frugal_nn::layers::{Linear, Norm};
use frugal_nn::state::{DecodeState, LayerState, StateError};
use frugal_nn::{Frozen, LinearChange, ModelError, Pass, RotaryTable};
use serde::Serialize;

use crate::architecture::ModelConfig;
use crate::blocks::attention::{Attend, SelfAttention, attend};
use crate::blocks::sites::Sites;
use crate::weights::WeightLoader;

/// Widths of latent attention: what is remembered of a token is one narrow vector, from which all
/// heads' keys and values are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MlaSpec {
    /// Width of the queries' narrow vector; `None` for queries straight from the hidden states.
    pub q_lora_rank: Option<usize>,
    /// Width of the keys' and values' narrow vector.
    pub kv_lora_rank: usize,
    /// Part of a query or key head without position.
    pub qk_nope_head_dim: usize,
    /// Part of a query or key head that is rotated; the key's is shared by all heads.
    pub qk_rope_head_dim: usize,
    /// Width of a value head.
    pub v_head_dim: usize,
    /// Whether rotated pairs are neighbours rather than halves apart.
    pub rope_interleave: bool,
    /// Whether the projections from and to the residual stream have biases.
    pub attention_bias: bool,
}

enum Queries {
    Direct(Linear),
    Narrow(Linear, Norm, Linear),
}

/// Latent attention of one block.
pub struct Mla {
    config: MlaSpec,
    heads: usize,
    queries: Queries,
    kv_a_proj: Linear,
    kv_a_norm: Norm,
    kv_b_proj: Linear,
    o_proj: Linear,
}

impl Mla {
    /// Its sites under `path`.
    pub fn sites(sites: &mut Sites, c: &ModelConfig, spec: &MlaSpec, layer: usize, path: &str) {
        let p = |name: &str| format!("{path}.{name}");
        let (d, heads, l) = (c.hidden_size, c.num_attention_heads, Some(layer));
        let (queries, rank) = (heads * c.head_dim, spec.kv_lora_rank);
        match spec.q_lora_rank {
            Some(rank) => {
                sites.linear(p("q_a_proj"), layer, [d, rank], spec.attention_bias);
                sites.norm(p("q_a_layernorm"), l, rank);
                sites.linear(p("q_b_proj"), layer, [rank, queries], false);
            }
            None => sites.linear(p("q_proj"), layer, [d, queries], false),
        }
        let narrow = rank + spec.qk_rope_head_dim;
        let bias = spec.attention_bias;
        sites.linear(p("kv_a_proj_with_mqa"), layer, [d, narrow], bias);
        sites.norm(p("kv_a_layernorm"), l, rank);
        let expanded = heads * (spec.qk_nope_head_dim + spec.v_head_dim);
        sites.linear(p("kv_b_proj"), layer, [rank, expanded], false);
        sites.output(p("o_proj"), layer, [heads * spec.v_head_dim, d], bias);
    }

    /// Takes the weights under `path`.
    ///
    /// # Errors
    /// Whatever reading a tensor gives.
    pub fn load(
        config: MlaSpec,
        model: &ModelConfig,
        loader: &mut WeightLoader<'_>,
        path: &str,
    ) -> Result<Self, ModelError> {
        let p = |name: &str| format!("{path}.{name}");
        // The norms inside have an epsilon of their own in the reference.
        const EPS: f64 = 1e-6;
        let queries = match config.q_lora_rank {
            Some(_) => Queries::Narrow(
                loader.linear(&p("q_a_proj"))?,
                loader.rms_norm(&p("q_a_layernorm"), EPS, 0.0)?,
                loader.linear(&p("q_b_proj"))?,
            ),
            None => Queries::Direct(loader.linear(&p("q_proj"))?),
        };
        Ok(Self {
            config,
            heads: model.num_attention_heads,
            queries,
            kv_a_proj: loader.linear(&p("kv_a_proj_with_mqa"))?,
            kv_a_norm: loader.rms_norm(&p("kv_a_layernorm"), EPS, 0.0)?,
            kv_b_proj: loader.linear(&p("kv_b_proj"))?,
            o_proj: loader.linear(&p("o_proj"))?,
        })
    }

    fn rotate(&self, x: Tensor<2>, rotary: &RotaryTable) -> Tensor<2> {
        let width = self.config.qk_rope_head_dim;
        let x = if self.config.rope_interleave {
            halves(x, width)
        } else {
            x
        };
        frugal_kernels::rope(x, rotary.cos.clone(), rotary.sin.clone(), width)
    }

    /// Keys and values of every head.
    fn expanded(
        &self,
        at: &Attend<'_>,
        [q_nope, q_rope, c, k_rope]: [Tensor<2>; 4],
        pass: &mut dyn Pass,
        cache: Option<&mut DecodeState>,
    ) -> Tensor<2> {
        let MlaSpec {
            qk_nope_head_dim: nope,
            qk_rope_head_dim: rope,
            v_head_dim,
            ..
        } = self.config;
        let (heads, tokens) = (self.heads, c.dims()[0]);
        let [k_nope, v] = split_heads(pass.linear(&self.kv_b_proj, c), heads, [nope, v_head_dim]);
        let k_rope = k_rope
            .reshape([tokens, 1, rope])
            .expand([tokens, heads, rope])
            .reshape([tokens, heads * rope]);
        // One width for all: zeros add nothing to scores, and what they give in values is cut off.
        let width = (nope + rope).max(v_head_dim);
        let q = join_heads(heads, [(q_nope, nope), (q_rope, rope)], width);
        let k = join_heads(heads, [(k_nope, nope), (k_rope, rope)], width);
        let v = join_heads(heads, [(v, v_head_dim)], width);
        let at = Attend {
            heads: [heads, heads, width],
            ..*at
        };
        let y = attend(&at, q, k, v, pass, cache);
        split_heads(y, heads, [v_head_dim, width - v_head_dim])[0].clone()
    }

    /// All heads attend to the narrow vectors themselves.
    fn absorbed(
        &self,
        at: &Attend<'_>,
        weight: Tensor<2>,
        [q_nope, q_rope, c, k_rope]: [Tensor<2>; 4],
        pass: &mut dyn Pass,
        cache: &mut DecodeState,
    ) -> Tensor<2> {
        let MlaSpec {
            kv_lora_rank: rank,
            qk_nope_head_dim: nope,
            qk_rope_head_dim: rope,
            v_head_dim,
            ..
        } = self.config;
        let (heads, tokens) = (self.heads, c.dims()[0]);
        let weight = weight.reshape([heads, nope + v_head_dim, rank]);
        let up_key = weight.clone().slice([0..heads, 0..nope, 0..rank]);
        let up_value = weight.slice([0..heads, nope..nope + v_head_dim, 0..rank]);
        let q_nope = q_nope
            .reshape([tokens, heads, nope])
            .swap_dims(0, 1)
            .matmul(up_key);
        let q = join_heads(
            heads,
            [
                (q_nope.swap_dims(0, 1).reshape([tokens, heads * rank]), rank),
                (q_rope, rope),
            ],
            rank + rope,
        );
        let memory = Tensor::cat(vec![c, k_rope], 1);
        let at = Attend {
            heads: [heads, 1, rank + rope],
            values_are_keys: true,
            ..*at
        };
        let y = attend(&at, q, memory.clone(), memory, pass, Some(cache));
        let y = y
            .reshape([tokens, heads, rank + rope])
            .slice([0..tokens, 0..heads, 0..rank])
            .swap_dims(0, 1);
        y.matmul(up_value.swap_dims(1, 2))
            .swap_dims(0, 1)
            .reshape([tokens, heads * v_head_dim])
    }
}

impl SelfAttention for Mla {
    fn forward(
        &self,
        at: &Attend<'_>,
        rotary: &RotaryTable,
        x: Tensor<2>,
        pass: &mut dyn Pass,
        cache: Option<&mut DecodeState>,
    ) -> Tensor<2> {
        let MlaSpec {
            kv_lora_rank: rank,
            qk_nope_head_dim: nope,
            qk_rope_head_dim: rope,
            ..
        } = self.config;
        let q = match &self.queries {
            Queries::Direct(q_proj) => pass.linear(q_proj, x.clone()),
            Queries::Narrow(a, norm, b) => {
                let narrow = pass.linear(a, x.clone());
                let narrow = pass.norm(norm, narrow);
                pass.linear(b, narrow)
            }
        };
        let [q_nope, q_rope] = split_heads(q, self.heads, [nope, rope]);
        let [c, k_rope] = split_heads(pass.linear(&self.kv_a_proj, x), 1, [rank, rope]);
        let c = pass.norm(&self.kv_a_norm, c);
        let (q_rope, k_rope) = (self.rotate(q_rope, rotary), self.rotate(k_rope, rotary));
        // Sequences go on as they were begun.
        let narrow = cache
            .as_ref()
            .is_some_and(|cache| !held(cache, at.layer).any(LayerState::is_expanded));
        let weight = if narrow {
            pass.linear_change(&self.kv_b_proj).weight(&self.kv_b_proj)
        } else {
            None
        };
        let y = match (cache, weight) {
            (Some(cache), Some(weight)) => {
                self.absorbed(at, weight, [q_nope, q_rope, c, k_rope], pass, cache)
            }
            (cache, _) => self.expanded(at, [q_nope, q_rope, c, k_rope], pass, cache),
        };
        pass.linear(&self.o_proj, y)
    }

    fn new_state(&self, _window: Option<usize>) -> LayerState {
        LayerState::latent()
    }

    fn check_state(
        &self,
        layer: usize,
        state: &DecodeState,
        pass: &mut dyn Pass,
    ) -> Result<(), ModelError> {
        let begun = || held(state, layer).filter(|of| !of.rows().is_empty());
        let expanded = begun().filter(|of| of.is_expanded()).count();
        let narrow = begun().count() - expanded;
        let mut stays_narrow = || {
            let change = pass.linear_change(&self.kv_b_proj);
            matches!(change, LinearChange::None | LinearChange::Weight(_))
        };
        if narrow > 0 && (expanded > 0 || !stays_narrow()) {
            return Err(StateError::OtherAdapter { layer }.into());
        }
        Ok(())
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        match &self.queries {
            Queries::Direct(q_proj) => visit(Frozen::Linear(q_proj)),
            Queries::Narrow(a, norm, b) => {
                visit(Frozen::Linear(a));
                visit(Frozen::Norm(norm));
                visit(Frozen::Linear(b));
            }
        }
        visit(Frozen::Linear(&self.kv_a_proj));
        visit(Frozen::Norm(&self.kv_a_norm));
        visit(Frozen::Linear(&self.kv_b_proj));
        visit(Frozen::Linear(&self.o_proj));
    }
}

/// What a layer remembers of each sequence.
fn held(state: &DecodeState, layer: usize) -> impl Iterator<Item = &LayerState> {
    let sequences = state.sequences().iter();
    sequences.filter_map(move |sequence| sequence.layers().get(layer))
}

/// `[tokens, heads * (a + b)]` as `[tokens, heads * a]` and `[tokens, heads * b]`.
fn split_heads(x: Tensor<2>, heads: usize, [a, b]: [usize; 2]) -> [Tensor<2>; 2] {
    let tokens = x.dims()[0];
    let x = x.reshape([tokens, heads, a + b]);
    let part = |from: usize, width: usize| {
        x.clone()
            .slice([0..tokens, 0..heads, from..from + width])
            .reshape([tokens, heads * width])
    };
    [
        part(0, a),
        if b > 0 {
            part(a, b)
        } else {
            Tensor::empty([tokens, 0], &x.device())
        },
    ]
}

/// Parts of heads side by side, filled up with zeros to `width`: `[tokens, heads * width]`.
fn join_heads<const N: usize>(
    heads: usize,
    parts: [(Tensor<2>, usize); N],
    width: usize,
) -> Tensor<2> {
    let tokens = parts[0].0.dims()[0];
    let device = parts[0].0.device().inner();
    let used: usize = parts.iter().map(|(_, width)| width).sum();
    let mut parts: Vec<Tensor<3>> = parts
        .into_iter()
        .map(|(x, width)| x.reshape([tokens, heads, width]))
        .collect();
    if used < width {
        parts.push(Tensor::zeros([tokens, heads, width - used], &device));
    }
    Tensor::cat(parts, 2).reshape([tokens, heads * width])
}

/// Neighbouring pairs `(x0, x1), (x2, x3), ...` of every head as halves
/// `(x0, x2, ..., x1, x3, ...)`.
fn halves(x: Tensor<2>, width: usize) -> Tensor<2> {
    let [tokens, total] = x.dims();
    x.reshape([tokens, total / width, width / 2, 2])
        .swap_dims(2, 3)
        .reshape([tokens, total])
}
