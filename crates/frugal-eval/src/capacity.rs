//! Information capacity: how many bits a model saves for the compute that a token costs.
//!
//! # What it does
//! A text has so many bits for each token of a tokenizer; coding with the model's probabilities
//! takes fewer. The difference, divided by the logarithm of the operations that a token costs, says
//! how much a model makes of its compute. Unlike perplexity it credits a tokenizer that spells a
//! text with few tokens.
//!
//! # Update rule
//! `TS` = bits of the text / tokens, `H` = bits that the model needs / tokens, `N` = operations for
//! each generated token: `IC = (TS − H + b) / log2 N`.
//!
//! # When to use, when not
//! To compare models on one text in one language. `b` belongs to a collection of texts; with
//! another one the values have another scale and may be negative. Texts that the model was trained
//! on raise it.
//!
//! # Cost
//! One forward pass over the text.
//!
//! # Defaults and where they come from
//! Samples of 1024 tokens, the tokenizer's special tokens in front included, of which the first
//! only serves as context; texts in JSONL are samples of their own, cut to that length; `N` of generating 1024
//! tokens with a growing cache; `b` = −24, the reference's value for its mixed texts. [`fit_bias`]
//! finds the value for a text of one's own from models of one family.
//!
//! # Departures from the paper
//! The bytes of a sample are counted in the text itself, not in what its tokens decode to, and `TS`
//! weighs samples by their tokens like `H` does; both agree with the reference for samples of full
//! length in plain text. Beside the reference's count of operations, which takes the width of a
//! head from the hidden size, there is one with the real width.
//!
//! # References
//! Yuan et al.: Information Capacity: Evaluating the Efficiency of Large Language Models via Text
//! Compression, 2025, arXiv 2511.08066.

use serde::{Deserialize, Serialize};

use super::linear_algebra::{Matrix, least_squares};

/// What the number of operations depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Width of the residual stream.
    pub hidden: u64,
    /// Blocks.
    pub layers: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Width of a head.
    pub head_dim: u64,
    /// Width of the feed-forward layer.
    pub intermediate: u64,
    /// Whether it is gated, with three matrices instead of two.
    pub gated: bool,
    /// Experts of the feed-forward layer; 1 for a plain one.
    pub experts: u64,
    /// Experts that each token goes through.
    pub active_experts: u64,
    /// Tokens of the vocabulary.
    pub vocab: u64,
    /// Multi-head latent attention in place of grouped heads.
    pub latent: Option<LatentShape>,
}

/// Sizes of multi-head latent attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatentShape {
    /// Width of the queries' narrow vector; `None` for queries straight from the hidden states.
    pub query_rank: Option<u64>,
    /// Width of the keys' and values' narrow vector.
    pub rank: u64,
    /// Part of a head without position.
    pub plain: u64,
    /// Part of a head that is rotated; the key's is shared by all heads.
    pub rotated: u64,
    /// Width of a value head.
    pub value: u64,
}

impl LatentShape {
    /// Multiply-adds of the projections of a token, and of each token in its cache: scores and
    /// values are formed against the narrow vectors themselves, so the map from these to keys and
    /// values is used once for each new token.
    fn multiply_adds(&self, hidden: u64, heads: u64) -> (u64, u64) {
        let head = self.plain + self.rotated;
        let query = match self.query_rank {
            Some(rank) => hidden * rank + rank * heads * head,
            None => hidden * heads * head,
        };
        let narrow = hidden * (self.rank + self.rotated);
        let widen = self.rank * heads * (self.plain + self.value);
        let output = heads * self.value * hidden;
        let cached = heads * (self.rank + self.rotated) + heads * self.rank;
        (query + narrow + widen + output, cached)
    }
}

impl Shape {
    /// Operations for each token when `length` tokens are generated from an empty cache, a
    /// multiply-add counting two.
    pub fn flops_per_token(&self, length: u64) -> f64 {
        let (query, key) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let forward =
            if self.gated { 6 } else { 4 } * self.hidden * self.intermediate * self.active_experts;
        let router = if self.experts > 1 {
            2 * self.hidden * self.experts
        } else {
            0
        };
        let (projections, cached) = self.latent.map_or_else(
            || (self.hidden * (2 * query + 2 * key), 2 * query),
            |latent| latent.multiply_adds(self.hidden, self.heads),
        );
        let matrices = 2 * projections + forward + router;
        // Scores and values over the mean number of tokens before.
        let attention = 2 * cached * (length.saturating_sub(1));
        (self.layers * matrices + 2 * self.hidden * self.vocab) as f64
            + (self.layers * attention) as f64 / 2.0
    }

    /// The same as the reference implementation counts: heads share the hidden size evenly. With
    /// latent attention it takes the width of the narrow vector for the number of tokens in the
    /// cache and knows none of the projections to it.
    pub fn reference_flops_per_token(&self, length: u64) -> f64 {
        let even = Self {
            head_dim: self.hidden / self.heads.max(1),
            gated: true,
            latent: None,
            ..*self
        };
        match self.latent {
            None => even.flops_per_token(length),
            Some(latent) => {
                let scores = 4 * self.heads * even.head_dim * latent.rank * self.layers;
                even.flops_per_token(1) + scores as f64
            }
        }
    }
}

/// Sums over samples of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct TextCost {
    /// Tokens that were predicted.
    pub tokens: u64,
    /// Bytes that they stand for.
    pub bytes: u64,
    /// Negative log-likelihood of them, in nats.
    pub nats: f64,
}

impl TextCost {
    /// Bits of the text for each token.
    pub fn text_size(&self) -> f64 {
        8.0 * self.bytes as f64 / self.tokens as f64
    }

    /// Bits that the model needs for each token.
    pub fn bits(&self) -> f64 {
        self.nats / std::f64::consts::LN_2 / self.tokens as f64
    }

    /// Bits that it needs for each byte.
    pub fn bits_per_byte(&self) -> f64 {
        self.nats / std::f64::consts::LN_2 / self.bytes as f64
    }

    /// Bits saved for each token.
    pub fn gain(&self) -> f64 {
        self.text_size() - self.bits()
    }

    /// Information capacity at `flops` operations for each token, with the bias of the collection
    /// of texts.
    pub fn information_capacity(&self, flops: f64, bias: f64) -> f64 {
        information_capacity(self.text_size(), self.bits(), flops, bias)
    }
}

/// `(TS − H + b) / log2 N`.
pub fn information_capacity(text_size: f64, bits: f64, flops: f64, bias: f64) -> f64 {
    (text_size - bits + bias) / flops.log2()
}

/// The bias that gives models of one family the same capacity, from (gain, operations) of each;
/// with that capacity.
///
/// `None` of fewer than two sizes.
pub fn fit_bias(models: &[(f64, f64)]) -> Option<(f64, f64)> {
    let x = Matrix::from_rows(
        &models
            .iter()
            .map(|(_, flops)| vec![1.0, flops.log2()])
            .collect::<Vec<_>>(),
    );
    let line = least_squares(
        &x,
        &models.iter().map(|(gain, _)| *gain).collect::<Vec<_>>(),
    )?;
    Some((-line[0], line[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMOLLM2: Shape = Shape {
        hidden: 576,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        intermediate: 1536,
        gated: true,
        experts: 1,
        active_experts: 1,
        vocab: 49152,
        latent: None,
    };

    #[test]
    fn operations_of_two_models() {
        assert_eq!(SMOLLM2.flops_per_token(1024), 304_314_624.0);
        assert_eq!(SMOLLM2.flops_per_token(1), 268_959_744.0);
        assert_eq!(
            SMOLLM2.flops_per_token(1024) - SMOLLM2.flops_per_token(1),
            35_354_880.0
        );
        assert!((SMOLLM2.flops_per_token(1024).log2() - 28.18099).abs() < 5e-6);
        let llama3 = Shape {
            hidden: 4096,
            layers: 32,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            intermediate: 14336,
            gated: true,
            experts: 1,
            active_experts: 1,
            vocab: 128256,
            latent: None,
        };
        assert_eq!(llama3.reference_flops_per_token(1024), 15_277_490_176.0);
        assert_eq!(llama3.flops_per_token(1024), 15_277_490_176.0);
        // Twice as wide heads: the count of the reference does not see them.
        let wide = Shape {
            head_dim: 256,
            ..llama3
        };
        assert_eq!(wide.reference_flops_per_token(1024), 15_277_490_176.0);
        assert!(wide.flops_per_token(1024) > 16e9);
    }

    /// Reference: `mla_model_theoretical_flops` of the official `flops.py` on this shape, 1,024
    /// tokens generated, divided by 1,024.
    #[test]
    fn latent_attention_is_counted() {
        let deepseek = Shape {
            hidden: 2048,
            layers: 27,
            heads: 16,
            kv_heads: 16,
            head_dim: 192,
            intermediate: 10944,
            gated: true,
            experts: 1,
            active_experts: 1,
            vocab: 102400,
            latent: Some(LatentShape {
                query_rank: None,
                rank: 512,
                plain: 128,
                rotated: 64,
                value: 128,
            }),
        };
        assert_eq!(deepseek.reference_flops_per_token(1024), 5_069_602_816.0);
        // By hand: projections 2048·16·192 + 2048·576 + 512·16·256 + 16·128·2048, of each cached
        // token 16·576 + 16·512.
        let projections = 2048 * 16 * 192 + 2048 * 576 + 512 * 16 * 256 + 16 * 128 * 2048;
        let layer = f64::from(2 * projections + 6 * 2048 * 10944);
        let cached = f64::from(2 * (16 * 576 + 16 * 512));
        let expected = 27.0 * (layer + cached * 1023.0 / 2.0) + 2.0 * 2048.0 * 102400.0;
        assert_eq!(deepseek.flops_per_token(1024), expected);
    }

    #[test]
    fn only_the_experts_that_a_token_meets_count() {
        let mixture = Shape {
            experts: 8,
            active_experts: 2,
            ..SMOLLM2
        };
        // One more expert for each token, and a router over eight, in thirty layers.
        let more = 30.0 * (6.0 * 576.0 * 1536.0 + 2.0 * 576.0 * 8.0);
        assert_eq!(
            mixture.flops_per_token(1024) - SMOLLM2.flops_per_token(1024),
            more
        );
    }

    #[test]
    fn worked_capacities() {
        let flops = SMOLLM2.flops_per_token(1024);
        assert!((information_capacity(36.0, 4.0, flops, -24.0) - 0.283879).abs() < 5e-7);
        let cost = TextCost {
            tokens: 1000,
            bytes: 4500,
            nats: 4.0 * std::f64::consts::LN_2 * 1000.0,
        };
        assert!((cost.text_size() - 36.0).abs() < 1e-12 && (cost.bits() - 4.0).abs() < 1e-12);
        assert!((cost.information_capacity(flops, -24.0) - 0.283879).abs() < 5e-7);
        assert!((cost.bits_per_byte() - 4.0 / 4.5).abs() < 1e-12);
        // A uniform guess over V tokens takes log2 V bits.
        let uniform = TextCost {
            tokens: 10,
            bytes: 40,
            nats: 10.0 * 49152f64.ln(),
        };
        assert!((uniform.bits() - 49152f64.log2()).abs() < 1e-12);
        // Twice the samples change nothing.
        let twice = TextCost {
            tokens: 2000,
            bytes: 9000,
            nats: 2.0 * cost.nats,
        };
        assert_eq!(
            twice.information_capacity(flops, -24.0),
            cost.information_capacity(flops, -24.0)
        );
    }

    #[test]
    fn the_bias_of_a_family_is_found() {
        let models: Vec<(f64, f64)> = [1e8, 4e8, 1e9, 7e9]
            .map(|n: f64| (0.41 * n.log2() + 21.5, n))
            .to_vec();
        let (bias, capacity) = fit_bias(&models).unwrap();
        assert!((bias + 21.5).abs() < 1e-9 && (capacity - 0.41).abs() < 1e-9);
        for (gain, flops) in models {
            assert!(((gain + bias) / flops.log2() - capacity).abs() < 1e-9);
        }
        assert!(fit_bias(&[(1.0, 1e9)]).is_none());
    }
}
