//! The sites of each architecture, known from the configuration alone.

use frugal_nn::{SiteInfo, SiteKind, SiteTable};

use crate::config::{LatentConfig, ModelConfig, ModelType, SparseConfig};

impl ModelConfig {
    /// The sites of a model with this configuration; reads no weights.
    pub fn sites(&self) -> SiteTable {
        let mut sites = Sites::default();
        match self.model_type {
            ModelType::Gpt2 => sites.gpt2(self),
            t if t.is_encoder() => sites.encoder(self),
            _ => sites.decoder(self),
        }
        SiteTable::of(sites.0)
    }
}

/// Sites in the order of the forward pass.
#[derive(Default)]
struct Sites(Vec<SiteInfo>);

impl Sites {
    fn add(
        &mut self,
        path: String,
        kind: SiteKind,
        layer: Option<usize>,
        d_in: usize,
        d_out: usize,
        has_bias: bool,
    ) {
        self.0.push(SiteInfo {
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
        if let Some(head) = self.0.last_mut() {
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
