//! Native sparse attention (arXiv 2502.11089): each head adds up, with gates of its own, attention
//! to compressed blocks, to a few selected blocks, and to a window of recent tokens.
//!
//! `o = Σ g · Attn(q, K, V)` over the three branches, which have keys and values of their own;
//! `g = σ(W x + b)`.
//!
//! - Compressed: blocks of `l` tokens, every `s` tokens, become one key and value each by a small
//!   network `φ` with positions within the block. A block is visible once it is complete; before
//!   the first one this branch is silent.
//! - Selected: what the compressed attention gives to the blocks that overlap one of `l'` tokens is
//!   that block's score, summed over the heads that share keys. The first, the query's own and the
//!   one before it are always in, the best others fill up the count.
//! - Window: the last `w` tokens.
//!
//! Open in the paper and chosen here: `φ` is two linear layers with a SiLU between them, twice a head
//! wide; its keys get no rotary positions, since the block's place is not one position; queries and
//! the keys of the other branches are rotated. This is the arithmetic of the method, for comparing
//! what models learn with it: selection is by a mask, so it saves no time.

use burn::prelude::*;
use burn::tensor::activation::{sigmoid, silu, softmax};
use frugal_nn::layers::{Embedding, Linear};
use frugal_nn::state::{DecodeState, LayerState};
use frugal_nn::{Frozen, ModelError, Pass, RotaryTable, Rows, SiteKind, select_rows, to_vec};
use serde::Serialize;

use crate::architecture::ModelConfig;
use crate::blocks::attention::{Attend, SelfAttention};
use crate::blocks::sites::Sites;
use crate::weights::WeightLoader;

/// Blocks and window of native sparse attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct NsaSpec {
    /// Tokens of a compressed block.
    pub compress_block: usize,
    /// Tokens between the starts of two compressed blocks.
    pub compress_stride: usize,
    /// Tokens of a block that is selected as a whole.
    pub select_block: usize,
    /// Blocks selected for each query, the first and the two most recent ones among them.
    pub select_count: usize,
    /// Tokens of the window.
    pub window: usize,
}

/// The network that compresses a block's keys or values.
struct Compress {
    position: Embedding,
    up: Linear,
    down: Linear,
}

/// Native sparse attention of one block.
pub struct Nsa {
    config: NsaSpec,
    q_proj: Linear,
    /// Key and value projections of the compressed, selected and window branch.
    branches: [[Linear; 2]; 3],
    compress: [Compress; 2],
    gate: Linear,
    o_proj: Linear,
}

impl Nsa {
    /// Its sites under `path`.
    pub fn sites(sites: &mut Sites, c: &ModelConfig, spec: &NsaSpec, layer: usize, path: &str) {
        let p = |name: &str| format!("{path}.{name}");
        let (d, dim) = (c.hidden_size, c.head_dim);
        let (q, kv) = (c.num_attention_heads * dim, c.num_key_value_heads * dim);
        sites.linear(p("q_proj"), layer, [d, q], false);
        for branch in ["compress", "select", "window"] {
            sites.linear(p(&format!("{branch}.k_proj")), layer, [d, kv], false);
            sites.linear(p(&format!("{branch}.v_proj")), layer, [d, kv], false);
        }
        for what in ["key", "value"] {
            let p = |name: &str| p(&format!("compress.{what}_{name}"));
            let block = spec.compress_block;
            let (table, l) = (SiteKind::Embedding, Some(layer));
            sites.add(p("position"), table, l, [block, dim], false);
            sites.linear(p("up"), layer, [block * dim, 2 * dim], true);
            sites.linear(p("down"), layer, [2 * dim, dim], true);
        }
        sites.linear(p("gate"), layer, [d, 3 * c.num_attention_heads], true);
        sites.output(p("o_proj"), layer, [q, d], false);
    }

    /// Takes the weights under `path`.
    ///
    /// # Errors
    /// Whatever reading a tensor gives.
    pub fn load(
        config: NsaSpec,
        loader: &mut WeightLoader<'_>,
        path: &str,
    ) -> Result<Self, ModelError> {
        let p = |name: &str| format!("{path}.{name}");
        let q_proj = loader.linear(&p("q_proj"))?;
        let mut branch = |name: &str| -> Result<[Linear; 2], ModelError> {
            Ok([
                loader.linear(&p(&format!("{name}.k_proj")))?,
                loader.linear(&p(&format!("{name}.v_proj")))?,
            ])
        };
        let branches = [branch("compress")?, branch("select")?, branch("window")?];
        let mut compress = |what: &str| -> Result<Compress, ModelError> {
            Ok(Compress {
                position: loader.embedding(&p(&format!("compress.{what}_position")))?,
                up: loader.linear(&p(&format!("compress.{what}_up")))?,
                down: loader.linear(&p(&format!("compress.{what}_down")))?,
            })
        };
        let compress = [compress("key")?, compress("value")?];
        Ok(Self {
            config,
            q_proj,
            branches,
            compress,
            gate: loader.linear(&p("gate"))?,
            o_proj: loader.linear(&p("o_proj"))?,
        })
    }

    /// One sequence: queries `[q_len, heads * dim]`, without and with rotation, against keys and
    /// values `[k_len, 3 * kv_heads * dim]`; the queries are the last of the keys' tokens.
    fn sequence(
        &self,
        at: &Attend<'_>,
        rows: Rows,
        [plain, rotated]: [Tensor<2>; 2],
        [key, value]: [Tensor<2>; 2],
        gates: Tensor<3>,
        pass: &mut dyn Pass,
    ) -> Tensor<2> {
        let ([heads, kv_heads, dim], q_len, k_len) = (at.heads, plain.dims()[0], key.dims()[0]);
        let branch = |x: &Tensor<2>, i: usize| {
            x.clone()
                .slice([0..k_len, i * kv_heads * dim..(i + 1) * kv_heads * dim])
        };
        let queries = |q: Tensor<2>| {
            q.reshape([q_len, kv_heads, heads / kv_heads, dim])
                .permute([1, 2, 0, 3])
        };
        let of_head = |x: Tensor<2>| x.reshape([k_len, kv_heads, dim]).swap_dims(0, 1);
        let first = k_len - q_len;
        let scale = at.scale;

        let (compressed, probabilities) = self.compressed(
            queries(plain),
            [branch(&key, 0), branch(&value, 0)],
            rows,
            first,
            scale,
            pass,
        );
        let chosen = self.select(
            probabilities.as_deref().unwrap_or_default(),
            [kv_heads, heads / kv_heads, q_len],
            first,
            k_len,
        );
        let block = self.config.select_block;
        let selected = masked(
            queries(rotated.clone()),
            of_head(branch(&key, 1)),
            of_head(branch(&value, 1)),
            scale,
            |head, i, j| j <= first + i && chosen[head * q_len + i].contains(&(j / block)),
        );
        let window = masked(
            queries(rotated),
            of_head(branch(&key, 2)),
            of_head(branch(&value, 2)),
            scale,
            |_, i, j| j <= first + i && first + i - j < self.config.window,
        );
        let gated = [compressed, Some(selected), Some(window)]
            .into_iter()
            .enumerate()
            .filter_map(|(i, y)| {
                let y = y?.permute([2, 0, 1, 3]).reshape([q_len, heads, dim]);
                Some(y * gates.clone().slice([0..q_len, 0..heads, i..i + 1]))
            });
        gated
            .reduce(|a, b| a + b)
            .expect("two branches are always there")
            .reshape([q_len, heads * dim])
    }

    /// Output `[kv_heads, group, q_len, dim]` and probabilities of the compressed branch; none
    /// while no block is complete.
    fn compressed(
        &self,
        q: Tensor<4>,
        [key, value]: [Tensor<2>; 2],
        rows_of: Rows,
        first: usize,
        scale: f32,
        pass: &mut dyn Pass,
    ) -> (Option<Tensor<4>>, Option<Vec<f32>>) {
        let NsaSpec {
            compress_block: length,
            compress_stride: stride,
            ..
        } = self.config;
        let ([kv_heads, _, q_len, dim], k_len) = (q.dims(), key.dims()[0]);
        if k_len < length {
            return (None, None);
        }
        let count = (k_len - length) / stride + 1;
        let rows: Vec<usize> = (0..count)
            .flat_map(|j| j * stride..j * stride + length)
            .collect();
        let mut shrink = |x: Tensor<2>, net: &Compress| {
            let blocks = select_rows(x, &rows)
                .reshape([count, length, kv_heads, dim])
                .swap_dims(1, 2);
            let all: Vec<u32> = (0..length as u32).collect();
            let position = pass
                .embedding_rows(&net.position, &all, rows_of)
                .reshape([1, 1, length, dim]);
            let flat = (blocks + position).reshape([count * kv_heads, length * dim]);
            let hidden = silu(pass.linear_rows(&net.up, flat, rows_of));
            pass.linear_rows(&net.down, hidden, rows_of)
                .reshape([count, kv_heads, dim])
                .swap_dims(0, 1)
        };
        let (k, v) = (
            shrink(key, &self.compress[0]),
            shrink(value, &self.compress[1]),
        );
        let visible = |i: usize, j: usize| j * stride + length <= first + i + 1;
        let (output, probabilities) = attention(q, k, v, scale, |_, i, j| visible(i, j));
        // Rows that see nothing were spread evenly over everything.
        let silent: Vec<f32> = (0..q_len)
            .map(|i| f32::from(u8::from(visible(i, 0))))
            .collect();
        let device = output.device().inner();
        let silent = Tensor::<4>::from_data(TensorData::new(silent, [1, 1, q_len, 1]), &device);
        (
            Some(output * silent.clone()),
            Some(to_vec(probabilities.inner() * silent)),
        )
    }

    /// The blocks that each query of each key head attends to in full, `[kv_heads * q_len]`.
    fn select(
        &self,
        probabilities: &[f32],
        [kv_heads, group, q_len]: [usize; 3],
        first: usize,
        k_len: usize,
    ) -> Vec<Vec<usize>> {
        let NsaSpec {
            compress_block: length,
            compress_stride: stride,
            select_block,
            select_count,
            ..
        } = self.config;
        let compressed = probabilities.len() / (kv_heads * group * q_len);
        let mut all = Vec::with_capacity(kv_heads * q_len);
        for head in 0..kv_heads {
            for i in 0..q_len {
                let own = (first + i) / select_block;
                let mut scores = vec![0.0f32; k_len.div_ceil(select_block)];
                for member in 0..group {
                    let row = &probabilities[((head * group + member) * q_len + i) * compressed..]
                        [..compressed];
                    for (j, p) in row.iter().enumerate() {
                        let overlapping =
                            j * stride / select_block..=(j * stride + length - 1) / select_block;
                        scores[overlapping].iter_mut().for_each(|score| *score += p);
                    }
                }
                let mut chosen = vec![0, own.saturating_sub(1), own];
                chosen.dedup();
                let mut rest: Vec<usize> = (1..own.saturating_sub(1)).collect();
                rest.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
                chosen.extend(
                    rest.into_iter()
                        .take(select_count.saturating_sub(chosen.len())),
                );
                all.push(chosen);
            }
        }
        all
    }
}

impl SelfAttention for Nsa {
    fn forward(
        &self,
        at: &Attend<'_>,
        rotary: &RotaryTable,
        x: Tensor<2>,
        pass: &mut dyn Pass,
        mut cache: Option<&mut DecodeState>,
    ) -> Tensor<2> {
        let ([heads, _, dim], tokens) = (at.heads, x.dims()[0]);
        let rotate =
            |x: Tensor<2>| frugal_kernels::rope(x, rotary.cos.clone(), rotary.sin.clone(), dim);
        let q = pass.linear(&self.q_proj, x.clone());
        let gates = sigmoid(pass.linear(&self.gate, x.clone())).reshape([tokens, heads, 3]);
        let mut maps = |i: usize| {
            self.branches
                .each_ref()
                .map(|branch| pass.linear(&branch[i], x.clone()))
        };
        let ([compress_k, select_k, window_k], values) = (maps(0), maps(1));
        // The cache holds the branches side by side.
        let keys = Tensor::cat(vec![compress_k, rotate(select_k), rotate(window_k)], 1);
        let values = Tensor::cat(values.into(), 1);
        let (plain, rotated) = (q.clone(), rotate(q));

        let mut outputs = Vec::new();
        for (sequence, range) in at
            .layout
            .cu_seqlens
            .windows(2)
            .enumerate()
            .filter(|(_, range)| range[0] < range[1])
        {
            let rows = |x: &Tensor<2>| x.clone().slice(range[0]..range[1]);
            let (mut key, mut value) = (rows(&keys), rows(&values));
            if let Some(cache) = cache.as_deref_mut() {
                (key, value) = cache.extend(at.layer, sequence, key, value);
            }
            let gates = gates.clone().slice([range[0]..range[1], 0..heads, 0..3]);
            outputs.push(self.sequence(
                at,
                Rows::OfSequence(sequence),
                [rows(&plain), rows(&rotated)],
                [key, value],
                gates,
                pass,
            ));
        }
        pass.linear(&self.o_proj, Tensor::cat(outputs, 0))
    }

    fn new_state(&self, _window: Option<usize>) -> LayerState {
        // Compression and selection read every token.
        LayerState::key_value()
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        visit(Frozen::Linear(&self.q_proj));
        self.branches
            .iter()
            .flatten()
            .for_each(|linear| visit(Frozen::Linear(linear)));
        for net in &self.compress {
            visit(Frozen::Embedding(&net.position));
            visit(Frozen::Linear(&net.up));
            visit(Frozen::Linear(&net.down));
        }
        visit(Frozen::Linear(&self.gate));
        visit(Frozen::Linear(&self.o_proj));
    }
}

fn masked(
    q: Tensor<4>,
    k: Tensor<3>,
    v: Tensor<3>,
    scale: f32,
    visible: impl Fn(usize, usize, usize) -> bool,
) -> Tensor<4> {
    attention(q, k, v, scale, visible).0
}

/// Queries `[kv_heads, group, q_len, dim]` against keys and values `[kv_heads, k_len, dim]`, where
/// `visible(kv_head, query, key)`; output and probabilities.
fn attention(
    q: Tensor<4>,
    k: Tensor<3>,
    v: Tensor<3>,
    scale: f32,
    visible: impl Fn(usize, usize, usize) -> bool,
) -> (Tensor<4>, Tensor<4>) {
    let ([kv_heads, group, q_len, dim], k_len) = (q.dims(), k.dims()[1]);
    let scores = q
        .reshape([kv_heads, group * q_len, dim])
        .matmul(k.swap_dims(1, 2))
        * scale;
    let scores = scores.reshape([kv_heads, group, q_len, k_len]);
    let hidden = (0..kv_heads)
        .flat_map(|h| (0..q_len).flat_map(move |i| (0..k_len).map(move |j| (h, i, j))));
    let hidden: Vec<bool> = hidden.map(|(h, i, j)| !visible(h, i, j)).collect();
    let mask = Tensor::<4, Bool>::from_data(
        TensorData::new(hidden, [kv_heads, 1, q_len, k_len]),
        &scores.device(),
    );
    let shape = scores.shape();
    let probabilities = softmax(scores.mask_fill(mask.expand(shape), -1e30), 3);
    let output = probabilities
        .clone()
        .reshape([kv_heads, group * q_len, k_len])
        .matmul(v)
        .reshape([kv_heads, group, q_len, dim]);
    (output, probabilities)
}
