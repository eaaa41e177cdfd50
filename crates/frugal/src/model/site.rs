//! Sites: the places of a backbone that a method can act on, known from the configuration alone.

use std::collections::HashMap;

use super::config::{LatentConfig, ModelConfig, ModelType, SparseConfig};

/// Index of a site in its backbone's [`SiteTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteId(pub u32);

impl SiteId {
    /// Position in the table.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What kind of parameters a site holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SiteKind {
    /// A linear map stored `[d_out, d_in]`.
    Linear,
    /// A linear map that files store transposed, `[d_in, d_out]` (GPT-2).
    Conv1d,
    /// The output head over the vocabulary.
    LmHead,
    /// A table of rows, `[rows, d]`.
    Embedding,
    /// Gain, and for layer norm bias, of a normalisation.
    Norm,
}

impl SiteKind {
    /// Whether `all-linear` covers it: every linear map but the output head.
    pub fn is_inner_linear(self) -> bool {
        matches!(self, Self::Linear | Self::Conv1d)
    }
}

/// One site.
#[derive(Clone, Debug)]
pub struct SiteInfo {
    /// Path in the Hugging Face model, for example `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// Kind of parameters.
    pub kind: SiteKind,
    /// Block number, where it belongs to one.
    pub layer: Option<usize>,
    /// Input width; for a table its number of rows; for a norm 1.
    pub d_in: usize,
    /// Output width.
    pub d_out: usize,
    /// Whether it has a bias.
    pub has_bias: bool,
    /// Whether the weight is another site's (a head tied to the token table).
    pub tied: bool,
}

impl SiteInfo {
    /// Number of its own parameters.
    pub fn num_parameters(&self) -> usize {
        let weight = if self.tied { 0 } else { self.d_in * self.d_out };
        weight + if self.has_bias { self.d_out } else { 0 }
    }

    /// Last component of the path, for example `q_proj`.
    pub fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or(&self.path)
    }
}

/// All sites of a backbone in the order of the forward pass.
#[derive(Clone, Debug, Default)]
pub struct SiteTable {
    sites: Vec<SiteInfo>,
    by_path: HashMap<String, SiteId>,
}

impl SiteTable {
    /// The sites of a model with this configuration; reads no weights.
    pub fn new(config: &ModelConfig) -> Self {
        let mut table = Self::default();
        match config.model_type {
            ModelType::Gpt2 => table.gpt2(config),
            t if t.is_encoder() => table.encoder(config),
            _ => table.decoder(config),
        }
        table
    }

    /// These sites, in this order.
    pub fn of(sites: Vec<SiteInfo>) -> Self {
        let by_path = sites
            .iter()
            .zip(0..)
            .map(|(site, i)| (site.path.clone(), SiteId(i)))
            .collect();
        Self { sites, by_path }
    }

    /// All sites.
    pub fn iter(&self) -> impl Iterator<Item = (SiteId, &SiteInfo)> {
        self.sites
            .iter()
            .enumerate()
            .map(|(i, s)| (SiteId(i as u32), s))
    }

    /// Number of sites.
    pub fn len(&self) -> usize {
        self.sites.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sites.is_empty()
    }

    /// A site's description.
    pub fn info(&self, id: SiteId) -> &SiteInfo {
        &self.sites[id.index()]
    }

    /// The site at this path.
    pub fn find(&self, path: &str) -> Option<SiteId> {
        self.by_path.get(path).copied()
    }

    /// Parameters of the whole backbone.
    pub fn num_parameters(&self) -> usize {
        self.sites.iter().map(SiteInfo::num_parameters).sum()
    }

    fn add(
        &mut self,
        path: String,
        kind: SiteKind,
        layer: Option<usize>,
        d_in: usize,
        d_out: usize,
        has_bias: bool,
    ) {
        self.by_path
            .insert(path.clone(), SiteId(self.sites.len() as u32));
        self.sites.push(SiteInfo {
            path,
            kind,
            layer,
            d_in,
            d_out,
            has_bias,
            tied: false,
        });
    }

    fn add_lm_head(&mut self, c: &ModelConfig) {
        self.add(
            "lm_head".into(),
            SiteKind::LmHead,
            None,
            c.hidden_size,
            c.vocab_size,
            false,
        );
        if let Some(head) = self.sites.last_mut() {
            head.tied = c.tie_word_embeddings;
        }
    }

    fn decoder(&mut self, c: &ModelConfig) {
        use SiteKind::{Embedding, Linear, Norm};
        let (d, ff) = (c.hidden_size, c.intermediate_size);
        let (q, kv) = (
            c.num_attention_heads * c.head_dim,
            c.num_key_value_heads * c.head_dim,
        );
        let gemma = c.model_type == ModelType::Gemma3Text;
        self.add(
            "model.embed_tokens".into(),
            Embedding,
            None,
            c.vocab_size,
            d,
            false,
        );
        for i in 0..c.num_hidden_layers {
            let p = |name: &str| format!("model.layers.{i}.{name}");
            let l = Some(i);
            self.add(p("input_layernorm"), Norm, l, 1, d, false);
            match (&c.latent, &c.sparse) {
                (Some(latent), _) => self.latent(c, latent, i),
                (None, Some(sparse)) => self.sparse(c, sparse, i),
                (None, None) => {
                    self.add(p("self_attn.q_proj"), Linear, l, d, q, c.qkv_bias);
                    self.add(p("self_attn.k_proj"), Linear, l, d, kv, c.qkv_bias);
                    self.add(p("self_attn.v_proj"), Linear, l, d, kv, c.qkv_bias);
                }
            }
            if matches!(c.model_type, ModelType::Qwen3 | ModelType::Gemma3Text) {
                self.add(p("self_attn.q_norm"), Norm, l, 1, c.head_dim, false);
                self.add(p("self_attn.k_norm"), Norm, l, 1, c.head_dim, false);
            }
            let heads = c
                .latent
                .map_or(q, |latent| c.num_attention_heads * latent.v_head_dim);
            self.add(p("self_attn.o_proj"), Linear, l, heads, d, c.output_bias);
            self.add(p("post_attention_layernorm"), Norm, l, 1, d, false);
            if gemma {
                self.add(p("pre_feedforward_layernorm"), Norm, l, 1, d, false);
            }
            match &c.experts {
                Some(experts) => {
                    self.add(
                        p("block_sparse_moe.gate"),
                        Linear,
                        l,
                        d,
                        experts.num_local_experts,
                        false,
                    );
                    for e in 0..experts.num_local_experts {
                        self.add(
                            p(&format!("block_sparse_moe.experts.{e}.w1")),
                            Linear,
                            l,
                            d,
                            ff,
                            false,
                        );
                        self.add(
                            p(&format!("block_sparse_moe.experts.{e}.w3")),
                            Linear,
                            l,
                            d,
                            ff,
                            false,
                        );
                        self.add(
                            p(&format!("block_sparse_moe.experts.{e}.w2")),
                            Linear,
                            l,
                            ff,
                            d,
                            false,
                        );
                    }
                }
                None => {
                    self.add(p("mlp.gate_proj"), Linear, l, d, ff, c.mlp_bias);
                    self.add(p("mlp.up_proj"), Linear, l, d, ff, c.mlp_bias);
                    self.add(p("mlp.down_proj"), Linear, l, ff, d, c.mlp_bias);
                }
            }
            if gemma {
                self.add(p("post_feedforward_layernorm"), Norm, l, 1, d, false);
            }
        }
        self.add("model.norm".into(), Norm, None, 1, d, false);
        self.add_lm_head(c);
    }

    fn latent(&mut self, c: &ModelConfig, latent: &LatentConfig, layer: usize) {
        use SiteKind::{Linear, Norm};
        let p = |name: &str| format!("model.layers.{layer}.self_attn.{name}");
        let (d, l, queries) = (
            c.hidden_size,
            Some(layer),
            c.num_attention_heads * c.head_dim,
        );
        match latent.q_lora_rank {
            Some(rank) => {
                self.add(p("q_a_proj"), Linear, l, d, rank, c.qkv_bias);
                self.add(p("q_a_layernorm"), Norm, l, 1, rank, false);
                self.add(p("q_b_proj"), Linear, l, rank, queries, false);
            }
            None => self.add(p("q_proj"), Linear, l, d, queries, false),
        }
        self.add(
            p("kv_a_proj_with_mqa"),
            Linear,
            l,
            d,
            latent.kv_lora_rank + latent.qk_rope_head_dim,
            c.qkv_bias,
        );
        self.add(p("kv_a_layernorm"), Norm, l, 1, latent.kv_lora_rank, false);
        let expanded = c.num_attention_heads * (latent.qk_nope_head_dim + latent.v_head_dim);
        self.add(
            p("kv_b_proj"),
            Linear,
            l,
            latent.kv_lora_rank,
            expanded,
            false,
        );
    }

    fn sparse(&mut self, c: &ModelConfig, sparse: &SparseConfig, layer: usize) {
        use SiteKind::{Embedding, Linear};
        let p = |name: &str| format!("model.layers.{layer}.self_attn.{name}");
        let (d, l) = (c.hidden_size, Some(layer));
        let (q, kv) = (
            c.num_attention_heads * c.head_dim,
            c.num_key_value_heads * c.head_dim,
        );
        self.add(p("q_proj"), Linear, l, d, q, false);
        for branch in ["compress", "select", "window"] {
            self.add(p(&format!("{branch}.k_proj")), Linear, l, d, kv, false);
            self.add(p(&format!("{branch}.v_proj")), Linear, l, d, kv, false);
        }
        for what in ["key", "value"] {
            self.add(
                p(&format!("compress.{what}_position")),
                Embedding,
                l,
                sparse.compress_block,
                c.head_dim,
                false,
            );
            self.add(
                p(&format!("compress.{what}_up")),
                Linear,
                l,
                sparse.compress_block * c.head_dim,
                2 * c.head_dim,
                true,
            );
            self.add(
                p(&format!("compress.{what}_down")),
                Linear,
                l,
                2 * c.head_dim,
                c.head_dim,
                true,
            );
        }
        self.add(p("gate"), Linear, l, d, 3 * c.num_attention_heads, true);
    }

    fn gpt2(&mut self, c: &ModelConfig) {
        use SiteKind::{Conv1d, Embedding, Norm};
        let (d, ff) = (c.hidden_size, c.intermediate_size);
        self.add(
            "transformer.wte".into(),
            Embedding,
            None,
            c.vocab_size,
            d,
            false,
        );
        self.add(
            "transformer.wpe".into(),
            Embedding,
            None,
            c.max_position_embeddings,
            d,
            false,
        );
        for i in 0..c.num_hidden_layers {
            let p = |name: &str| format!("transformer.h.{i}.{name}");
            let l = Some(i);
            self.add(p("ln_1"), Norm, l, 1, d, true);
            self.add(p("attn.c_attn"), Conv1d, l, d, 3 * d, true);
            self.add(p("attn.c_proj"), Conv1d, l, d, d, true);
            self.add(p("ln_2"), Norm, l, 1, d, true);
            self.add(p("mlp.c_fc"), Conv1d, l, d, ff, true);
            self.add(p("mlp.c_proj"), Conv1d, l, ff, d, true);
        }
        self.add("transformer.ln_f".into(), Norm, None, 1, d, true);
        self.add_lm_head(c);
    }

    fn encoder(&mut self, c: &ModelConfig) {
        use SiteKind::{Embedding, Linear, Norm};
        let (d, ff) = (c.hidden_size, c.intermediate_size);
        let base = c.model_type.base_prefix();
        self.add(
            format!("{base}embeddings.word_embeddings"),
            Embedding,
            None,
            c.vocab_size,
            d,
            false,
        );
        self.add(
            format!("{base}embeddings.position_embeddings"),
            Embedding,
            None,
            c.max_position_embeddings,
            d,
            false,
        );
        self.add(
            format!("{base}embeddings.token_type_embeddings"),
            Embedding,
            None,
            c.type_vocab_size,
            d,
            false,
        );
        self.add(
            format!("{base}embeddings.LayerNorm"),
            Norm,
            None,
            1,
            d,
            true,
        );
        for i in 0..c.num_hidden_layers {
            let p = |name: &str| format!("{base}encoder.layer.{i}.{name}");
            let l = Some(i);
            self.add(p("attention.self.query"), Linear, l, d, d, true);
            self.add(p("attention.self.key"), Linear, l, d, d, true);
            self.add(p("attention.self.value"), Linear, l, d, d, true);
            self.add(p("attention.output.dense"), Linear, l, d, d, true);
            self.add(p("attention.output.LayerNorm"), Norm, l, 1, d, true);
            self.add(p("intermediate.dense"), Linear, l, d, ff, true);
            self.add(p("output.dense"), Linear, l, ff, d, true);
            self.add(p("output.LayerNorm"), Norm, l, 1, d, true);
        }
        if c.model_type == ModelType::Bert {
            self.add(format!("{base}pooler.dense"), Linear, None, d, d, true);
        }
    }
}
