//! The sizes of a transformer that decide what a step costs.

use serde::{Deserialize, Serialize};

use super::error::{MAX_COUNT, PlanError};

/// Sizes of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransformerShape {
    /// Blocks, `L`.
    pub layers: u64,
    /// Width of the residual stream, `h`.
    pub hidden: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub key_value_heads: u64,
    /// Width of a head.
    pub head_dim: u64,
    /// Width of the feed-forward layer.
    pub ffn: u64,
    /// Whether the feed-forward layer has a gate beside its first matrix.
    pub gated: bool,
    /// Vocabulary, `V`.
    pub vocab: u64,
    /// Tokens of a sequence, `s`.
    pub sequence: u64,
    /// Whether positions are learnt, a vector each.
    pub learned_positions: bool,
    /// Whether linear layers have biases and norms both scale and bias.
    pub biases: bool,
    /// Whether the output head is the token table.
    pub tied: bool,
}

const fn gpt(layers: u64, hidden: u64, heads: u64) -> TransformerShape {
    TransformerShape {
        layers,
        hidden,
        heads,
        key_value_heads: heads,
        head_dim: hidden / heads,
        ffn: 4 * hidden,
        gated: false,
        vocab: 51_200,
        sequence: 2048,
        learned_positions: true,
        biases: true,
        tied: true,
    }
}

/// 22 billion parameters; as Megatron-LM's model of this size (arXiv 2205.05198), with 64 heads.
pub const GPT_22B: TransformerShape = gpt(48, 6144, 64);
/// 175 billion parameters, the size of GPT-3 (arXiv 2005.14165), with 96 heads.
pub const GPT_175B: TransformerShape = gpt(96, 12_288, 96);
/// A trillion parameters; as Megatron-LM's model of this size (arXiv 2104.04473), with 160 heads.
pub const GPT_1T: TransformerShape = gpt(128, 25_600, 160);

impl TransformerShape {
    /// Whether the sizes are such that sums and products of them can be computed with.
    ///
    /// # Errors
    /// A size of 0, or one that no machine has.
    pub fn check(&self) -> Result<(), PlanError> {
        let sizes = [
            ("the number of layers", self.layers),
            ("the hidden size", self.hidden),
            ("the number of heads", self.heads),
            ("the number of key-value heads", self.key_value_heads),
            ("the width of a head", self.head_dim),
            ("the feed-forward width", self.ffn),
            ("the vocabulary", self.vocab),
            ("the length of a sequence", self.sequence),
        ];
        match sizes
            .into_iter()
            .find(|(_, v)| !(1..=MAX_COUNT).contains(v))
        {
            Some((name, value)) => Err(PlanError::Range { name, value }),
            None => Ok(()),
        }
    }

    /// Weights of the matrices of a block: four of attention, two or three of the feed-forward
    /// layer.
    pub fn matrix_parameters_per_layer(&self) -> f64 {
        let [h, heads, kv, d, f] = [
            self.hidden,
            self.heads,
            self.key_value_heads,
            self.head_dim,
            self.ffn,
        ]
        .map(|v| v as f64);
        let feed_forward = if self.gated { 3.0 } else { 2.0 };
        2.0 * h * heads * d + 2.0 * h * kv * d + feed_forward * h * f
    }

    /// Biases and norms of a block: with biases `13h` for a block of GPT.
    pub fn vector_parameters_per_layer(&self) -> f64 {
        let [h, heads, kv, d, f] = [
            self.hidden,
            self.heads,
            self.key_value_heads,
            self.head_dim,
            self.ffn,
        ]
        .map(|v| v as f64);
        if !self.biases {
            return 2.0 * h;
        }
        let first = if self.gated { 2.0 * f } else { f };
        4.0 * h + (heads + 2.0 * kv) * d + h + first + h
    }

    /// Parameters of a block.
    pub fn parameters_per_layer(&self) -> f64 {
        self.matrix_parameters_per_layer() + self.vector_parameters_per_layer()
    }

    /// Token table and learnt positions.
    pub fn embedding_parameters(&self) -> f64 {
        let positions = if self.learned_positions {
            self.sequence
        } else {
            0
        };
        ((self.vocab + positions) * self.hidden) as f64
    }

    /// The output head, where it is not the token table.
    pub fn head_parameters(&self) -> f64 {
        if self.tied {
            0.0
        } else {
            (self.vocab * self.hidden) as f64
        }
    }

    /// All parameters: for a GPT `12Lh²(1 + 13/(12h) + (V+s)/(12Lh))` (arXiv 2104.04473, eq. 2).
    /// The last norm, `2h`, is left out there and here.
    pub fn parameters(&self) -> f64 {
        self.layers as f64 * self.parameters_per_layer()
            + self.embedding_parameters()
            + self.head_parameters()
    }

    /// Floating-point operations of the forward pass of a block for one sequence: two for each
    /// weight and token, and for the scores and the weighted values of all pairs of tokens.
    pub fn forward_flops_per_layer(&self) -> f64 {
        let tokens = self.sequence as f64;
        let width = (self.heads * self.head_dim) as f64;
        tokens * (2.0 * self.matrix_parameters_per_layer() + 4.0 * tokens * width)
    }

    /// Floating-point operations of the forward pass of the output head for one sequence.
    pub fn forward_flops_of_head(&self) -> f64 {
        2.0 * (self.sequence * self.vocab) as f64 * self.hidden as f64
    }

    /// Floating-point operations of a training step over `batch` sequences: a backward pass is two
    /// forward passes, and blocks are computed once more where they are recomputed. For a GPT
    /// `96·B·s·L·h²(1 + s/(6h) + V/(16Lh))` with recomputation (arXiv 2104.04473, eq. 3).
    pub fn step_flops(&self, batch: u64, recompute: bool) -> f64 {
        let passes = if recompute { 4.0 } else { 3.0 };
        batch as f64
            * (passes * self.layers as f64 * self.forward_flops_per_layer()
                + 3.0 * self.forward_flops_of_head())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_and_operations_are_those_of_the_published_formulas() {
        let cases = [
            (GPT_22B, 21_743_271_936.0, 22_074_261_504.0),
            (GPT_175B, 173_946_175_488.0, 174_615_822_336.0),
            (GPT_1T, 1_006_632_960_000.0, 1_008_038_707_200.0),
        ];
        for (shape, matrices, all) in cases {
            let of_matrices = shape.layers as f64 * shape.matrix_parameters_per_layer();
            assert_eq!(of_matrices, matrices);
            assert_eq!(shape.parameters(), all);
        }
        let flops = GPT_1T.step_flops(1, true);
        assert!((flops / 1.67287e16 - 1.0).abs() < 1e-5, "{flops}");
        // 3 of 4 passes of the blocks without recomputation; the head counts the same.
        let head = 3.0 * GPT_1T.forward_flops_of_head();
        let plain = GPT_1T.step_flops(1, false);
        assert!((((plain - head) / (flops - head)) - 0.75).abs() < 1e-12);
    }

    /// SmolLM2-135M has 134,515,008 parameters by its model card's files.
    #[test]
    fn a_llama_has_the_parameters_of_its_files() {
        let smollm = TransformerShape {
            layers: 30,
            hidden: 576,
            heads: 9,
            key_value_heads: 3,
            head_dim: 64,
            ffn: 1536,
            gated: true,
            vocab: 49_152,
            sequence: 2048,
            learned_positions: false,
            biases: false,
            tied: true,
        };
        assert_eq!(smollm.parameters() + 576.0, 134_515_008.0);
    }
}
