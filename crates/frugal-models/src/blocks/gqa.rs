//! Grouped-query attention: queries that share keys and values in groups, one group per head, one
//! for all, or anything between.

use burn::prelude::*;
use frugal_nn::state::DecodeState;
use frugal_nn::{Frozen, Linear, ModelError, Norm, Pass, RotaryTable, Rows};
use serde::Serialize;

use crate::architecture::ModelConfig;
use crate::blocks::attention::{Attend, SelfAttention, attend};
use crate::blocks::sites::Sites;
use crate::rope::rotate;
use crate::weights::WeightLoader;

/// What differs between architectures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct GqaSpec {
    /// Whether query, key and value projections have biases.
    #[serde(rename = "attention_bias")]
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    #[serde(rename = "attention_bias of `o_proj`")]
    pub output_bias: bool,
    /// Whether single query and key heads are normalised.
    pub qk_norm: bool,
}

/// Grouped-query attention of one block.
pub struct GroupedQueryAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    qk_norm: Option<(Norm, Norm)>,
}

impl GroupedQueryAttention {
    /// Its sites under `path`.
    pub fn sites(sites: &mut Sites, c: &ModelConfig, spec: GqaSpec, layer: usize, path: &str) {
        let p = |name: &str| format!("{path}.{name}");
        let d = c.hidden_size;
        let (q, kv) = (
            c.num_attention_heads * c.head_dim,
            c.num_key_value_heads * c.head_dim,
        );
        sites.linear(p("q_proj"), layer, [d, q], spec.qkv_bias);
        sites.linear(p("k_proj"), layer, [d, kv], spec.qkv_bias);
        sites.linear(p("v_proj"), layer, [d, kv], spec.qkv_bias);
        if spec.qk_norm {
            sites.norm(p("q_norm"), Some(layer), c.head_dim);
            sites.norm(p("k_norm"), Some(layer), c.head_dim);
        }
        sites.output(p("o_proj"), layer, [q, d], spec.output_bias);
    }

    /// Takes the weights under `path`.
    ///
    /// # Errors
    /// Whatever reading a tensor gives.
    pub fn load(
        c: &ModelConfig,
        spec: GqaSpec,
        loader: &mut WeightLoader<'_>,
        path: &str,
    ) -> Result<Self, ModelError> {
        let p = |name: &str| format!("{path}.{name}");
        let mut norm = |name: &str| {
            let offset = c.architecture.norm_offset();
            loader.rms_norm(&p(name), c.norm_eps, offset)
        };
        let qk_norm = if spec.qk_norm {
            Some((norm("q_norm")?, norm("k_norm")?))
        } else {
            None
        };
        Ok(Self {
            q_proj: loader.linear(&p("q_proj"))?,
            k_proj: loader.linear(&p("k_proj"))?,
            v_proj: loader.linear(&p("v_proj"))?,
            o_proj: loader.linear(&p("o_proj"))?,
            qk_norm,
        })
    }
}

impl GroupedQueryAttention {
    /// Queries of `x` `[tokens, d_model]`, rotated: `[tokens, heads * head_dim]`.
    pub fn queries(
        &self,
        head_dim: usize,
        rotary: &RotaryTable,
        x: Tensor<2>,
        pass: &mut dyn Pass,
    ) -> Tensor<2> {
        let mut q = pass.linear(&self.q_proj, x);
        if let Some((q_norm, _)) = &self.qk_norm {
            q = per_head(q, head_dim, |q, rows| pass.norm_rows(q_norm, q, rows));
        }
        rotate(q, rotary, head_dim)
    }

    /// Keys of `x` `[tokens, d_model]`, rotated, and values: each `[tokens, kv_heads * head_dim]`.
    pub fn keys_and_values(
        &self,
        head_dim: usize,
        rotary: &RotaryTable,
        x: Tensor<2>,
        pass: &mut dyn Pass,
    ) -> [Tensor<2>; 2] {
        let mut k = pass.linear(&self.k_proj, x.clone());
        let v = pass.linear(&self.v_proj, x);
        if let Some((_, k_norm)) = &self.qk_norm {
            k = per_head(k, head_dim, |k, rows| pass.norm_rows(k_norm, k, rows));
        }
        let k = rotate(k, rotary, head_dim);
        [k, v]
    }

    /// What heads `[tokens, heads * head_dim]` come to: `[tokens, d_model]`.
    pub fn output(&self, heads: Tensor<2>, pass: &mut dyn Pass) -> Tensor<2> {
        pass.linear(&self.o_proj, heads)
    }
}

impl SelfAttention for GroupedQueryAttention {
    fn forward(
        &self,
        at: &Attend<'_>,
        rotary: &RotaryTable,
        x: Tensor<2>,
        pass: &mut dyn Pass,
        cache: Option<&mut DecodeState>,
    ) -> Tensor<2> {
        let head_dim = at.heads[2];
        let q = self.queries(head_dim, rotary, x.clone(), pass);
        let [k, v] = self.keys_and_values(head_dim, rotary, x, pass);
        let y = attend(at, q, k, v, pass, cache);
        self.output(y, pass)
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        self.qk_norm
            .iter()
            .flat_map(|(q, k)| [q, k])
            .for_each(|n| visit(Frozen::Norm(n)));
        [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj]
            .into_iter()
            .for_each(|l| visit(Frozen::Linear(l)));
    }

    fn takes_prefix(&self) -> bool {
        true
    }

    fn takes_control(&self) -> bool {
        true
    }
}

/// Applies `f` to single heads: `[tokens, heads * head_dim]` viewed as
/// `[tokens * heads, head_dim]`.
fn per_head(
    x: Tensor<2>,
    head_dim: usize,
    f: impl FnOnce(Tensor<2>, Rows) -> Tensor<2>,
) -> Tensor<2> {
    let [tokens, width] = x.dims();
    let heads = width / head_dim;
    f(x.reshape([tokens * heads, head_dim]), Rows::PerToken(heads)).reshape([tokens, width])
}
