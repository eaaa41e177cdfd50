//! Tensor names: GGUF's to Hugging Face's and back, and how the stored values differ.

use serde_json::Value as Json;

use super::{Architecture, GgufProblem};

/// How a tensor in a GGUF file differs from the Hugging Face tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Not at all.
    Same,
    /// Its rows, the elements of a vector, are in another order: see [`rotary_to_hf`] and
    /// [`rotary_to_gguf`].
    RotaryRows {
        /// Heads among the rows (key/value heads for a key projection).
        heads: usize,
    },
    /// It is larger by one in every element (Gemma's norms, which Hugging Face stores as gain - 1).
    PlusOne,
    /// It is `[out, in]`, the Hugging Face tensor `[in, out]` (GPT-2's `Conv1D`).
    Transposed,
}

/// A tensor's name on the other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The name.
    pub name: String,
    /// How the GGUF tensor differs.
    pub layout: Layout,
}

impl Architecture {
    fn tables(self) -> (&'static [Pair], &'static [Pair], &'static str) {
        match self {
            Self::Llama | Self::Qwen2 | Self::Qwen3 => (DECODER, DECODER_LAYER, "model.layers."),
            Self::Gemma3 => (DECODER, GEMMA_LAYER, "model.layers."),
            Self::Gpt2 => (GPT2, GPT2_LAYER, "transformer.h."),
        }
    }
}

/// The tensor names of one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameMap {
    architecture: Architecture,
    heads: usize,
    kv_heads: usize,
}

/// GGUF name, Hugging Face name; without `.weight` and `.bias`.
type Pair = (&'static str, &'static str);

const DECODER: &[Pair] = &[
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
];
const DECODER_LAYER: &[Pair] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];
const GEMMA_LAYER: &[Pair] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];
const GPT2: &[Pair] = &[
    ("token_embd", "transformer.wte"),
    ("position_embd", "transformer.wpe"),
    ("output_norm", "transformer.ln_f"),
    ("output", "lm_head"),
];
const GPT2_LAYER: &[Pair] = &[
    ("attn_norm", "ln_1"),
    ("attn_qkv", "attn.c_attn"),
    ("attn_output", "attn.c_proj"),
    ("ffn_norm", "ln_2"),
    ("ffn_up", "mlp.c_fc"),
    ("ffn_down", "mlp.c_proj"),
];

impl NameMap {
    /// The names of the model that a Hugging Face `config.json` describes.
    ///
    /// # Errors
    /// [`GgufProblem`] for a family without GGUF form or a config without head counts.
    pub fn from_config(config: &Json) -> Result<Self, GgufProblem> {
        let architecture = super::hf::architecture(config)?;
        let heads = super::hf::count(
            config,
            if architecture == Architecture::Gpt2 {
                "n_head"
            } else {
                "num_attention_heads"
            },
        )?;
        let kv_heads = if config
            .get("num_key_value_heads")
            .is_some_and(|n| !n.is_null())
        {
            super::hf::count(config, "num_key_value_heads")?
        } else {
            heads
        };
        Ok(Self {
            architecture,
            heads,
            kv_heads,
        })
    }

    /// The family.
    pub fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// The Hugging Face name of a tensor in a GGUF file; `None` for one that no model of this
    /// family has.
    ///
    /// `rope_freqs.weight` has none: the config's `rope_scaling` says the same.
    pub fn to_hf(&self, name: &str) -> Option<Mapped> {
        let (whole, layer, prefix) = self.architecture.tables();
        let (stem, kind) = name.rsplit_once('.')?;
        let hf = match stem.strip_prefix("blk.") {
            None => whole.iter().find(|pair| pair.0 == stem)?.1.to_owned(),
            Some(rest) => {
                let (index, stem) = rest.split_once('.')?;
                let index: usize = index.parse().ok()?;
                format!(
                    "{prefix}{index}.{}",
                    layer.iter().find(|pair| pair.0 == stem)?.1
                )
            }
        };
        Some(Mapped {
            name: format!("{hf}.{kind}"),
            layout: self.layout(stem, kind)?,
        })
    }

    /// The GGUF name of a Hugging Face tensor; `None` for one that no model of this family has.
    pub fn to_gguf(&self, name: &str) -> Option<Mapped> {
        let (whole, layer, prefix) = self.architecture.tables();
        let (stem, kind) = name.rsplit_once('.')?;
        let gguf = match stem.strip_prefix(prefix) {
            None => whole.iter().find(|pair| pair.1 == stem)?.0.to_owned(),
            Some(rest) => {
                let (index, stem) = rest.split_once('.')?;
                let index: usize = index.parse().ok()?;
                format!(
                    "blk.{index}.{}",
                    layer.iter().find(|pair| pair.1 == stem)?.0
                )
            }
        };
        let layout = self.layout(&gguf, kind)?;
        Some(Mapped {
            name: format!("{gguf}.{kind}"),
            layout,
        })
    }

    /// `stem` is the GGUF name without `kind`.
    fn layout(&self, stem: &str, kind: &str) -> Option<Layout> {
        if !matches!(kind, "weight" | "bias") {
            return None;
        }
        let part = stem.rsplit('.').next()?;
        Some(match self.architecture {
            Architecture::Llama if part == "attn_q" => Layout::RotaryRows { heads: self.heads },
            Architecture::Llama if part == "attn_k" => Layout::RotaryRows {
                heads: self.kv_heads,
            },
            Architecture::Gemma3 if part.ends_with("norm") => Layout::PlusOne,
            Architecture::Gpt2
                if kind == "weight"
                    && matches!(part, "attn_qkv" | "attn_output" | "ffn_up" | "ffn_down") =>
            {
                Layout::Transposed
            }
            _ => Layout::Same,
        })
    }
}

/// For each row of the Hugging Face tensor the row of the GGUF tensor that holds it, for
/// [`Layout::RotaryRows`].
///
/// Llama-family GGUF files interleave the two halves of each head that rotate together; whole rows
/// move, so packed rows can be moved as they are. `None` when `rows` is not `heads` times an even
/// number.
pub fn rows_to_hf(rows: usize, heads: usize) -> Option<Vec<usize>> {
    row_map(rows, heads, |half, pair, side| {
        (side * half + pair, 2 * pair + side)
    })
}

/// For each row of the GGUF tensor the row of the Hugging Face tensor: the inverse of
/// [`rows_to_hf`].
pub fn rows_to_gguf(rows: usize, heads: usize) -> Option<Vec<usize>> {
    row_map(rows, heads, |half, pair, side| {
        (2 * pair + side, side * half + pair)
    })
}

/// The values of a [`Layout::RotaryRows`] tensor of this shape, from the order of the GGUF file to
/// that of Hugging Face.
///
/// A vector, the bias of a projection, is one column. `None` as in [`rows_to_hf`].
pub fn rotary_to_hf(values: &[f32], shape: &[usize], heads: usize) -> Option<Vec<f32>> {
    let rows = shape.first().copied().unwrap_or(1);
    Some(moved(values, &rows_to_hf(rows, heads)?))
}

/// The inverse of [`rotary_to_hf`].
pub fn rotary_to_gguf(values: &[f32], shape: &[usize], heads: usize) -> Option<Vec<f32>> {
    let rows = shape.first().copied().unwrap_or(1);
    Some(moved(values, &rows_to_gguf(rows, heads)?))
}

/// The rows in this order.
fn moved(values: &[f32], order: &[usize]) -> Vec<f32> {
    let columns = values.len() / order.len().max(1);
    order
        .iter()
        .flat_map(|row| values[row * columns..(row + 1) * columns].iter().copied())
        .collect()
}

fn row_map(
    rows: usize,
    heads: usize,
    places: impl Fn(usize, usize, usize) -> (usize, usize),
) -> Option<Vec<usize>> {
    if heads == 0 || !rows.is_multiple_of(heads) || !(rows / heads).is_multiple_of(2) {
        return None;
    }
    let (head_rows, half) = (rows / heads, rows / heads / 2);
    let mut map = vec![0; rows];
    for head in 0..heads {
        for pair in 0..half {
            for side in 0..2 {
                let (to, from) = places(half, pair, side);
                map[head * head_rows + to] = head * head_rows + from;
            }
        }
    }
    Some(map)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(model_type: &str) -> NameMap {
        let config = json!({"model_type": model_type, "num_attention_heads": 4, "num_key_value_heads": 2, "n_head": 4});
        NameMap::from_config(&config).unwrap()
    }

    #[test]
    fn names_map_both_ways() {
        let cases = [
            (
                "llama",
                "blk.11.attn_q.weight",
                "model.layers.11.self_attn.q_proj.weight",
                Layout::RotaryRows { heads: 4 },
            ),
            (
                "mistral",
                "blk.0.attn_k.bias",
                "model.layers.0.self_attn.k_proj.bias",
                Layout::RotaryRows { heads: 2 },
            ),
            (
                "llama",
                "blk.0.attn_v.weight",
                "model.layers.0.self_attn.v_proj.weight",
                Layout::Same,
            ),
            ("llama", "output.weight", "lm_head.weight", Layout::Same),
            (
                "qwen2",
                "blk.0.attn_q.bias",
                "model.layers.0.self_attn.q_proj.bias",
                Layout::Same,
            ),
            (
                "qwen3",
                "blk.0.attn_q_norm.weight",
                "model.layers.0.self_attn.q_norm.weight",
                Layout::Same,
            ),
            (
                "qwen3",
                "blk.0.ffn_norm.weight",
                "model.layers.0.post_attention_layernorm.weight",
                Layout::Same,
            ),
            (
                "gemma3_text",
                "blk.0.ffn_norm.weight",
                "model.layers.0.pre_feedforward_layernorm.weight",
                Layout::PlusOne,
            ),
            (
                "gemma3_text",
                "blk.0.post_attention_norm.weight",
                "model.layers.0.post_attention_layernorm.weight",
                Layout::PlusOne,
            ),
            (
                "gemma3_text",
                "blk.0.attn_k_norm.weight",
                "model.layers.0.self_attn.k_norm.weight",
                Layout::PlusOne,
            ),
            (
                "gemma3_text",
                "output_norm.weight",
                "model.norm.weight",
                Layout::PlusOne,
            ),
            (
                "gemma3_text",
                "token_embd.weight",
                "model.embed_tokens.weight",
                Layout::Same,
            ),
            (
                "gpt2",
                "blk.1.attn_qkv.weight",
                "transformer.h.1.attn.c_attn.weight",
                Layout::Transposed,
            ),
            (
                "gpt2",
                "blk.1.attn_qkv.bias",
                "transformer.h.1.attn.c_attn.bias",
                Layout::Same,
            ),
            (
                "gpt2",
                "position_embd.weight",
                "transformer.wpe.weight",
                Layout::Same,
            ),
        ];
        for (model_type, gguf, hf, layout) in cases {
            let map = map(model_type);
            assert_eq!(
                map.to_hf(gguf),
                Some(Mapped {
                    name: hf.into(),
                    layout
                }),
                "{model_type} {gguf}"
            );
            assert_eq!(
                map.to_gguf(hf),
                Some(Mapped {
                    name: gguf.into(),
                    layout
                }),
                "{model_type} {hf}"
            );
        }
        for unknown in [
            "rope_freqs.weight",
            "blk.x.attn_q.weight",
            "blk.0.attn_q.scale",
            "blk.0",
            "",
            ".",
        ] {
            assert_eq!(map("llama").to_hf(unknown), None, "{unknown}");
        }
    }

    /// Every tensor of the tiny Hugging Face models has a GGUF name that leads back.
    #[test]
    fn every_tensor_of_real_models_maps() {
        let mut seen = 0;
        for model in [
            "llama",
            "llama-rope-linear",
            "qwen2",
            "qwen3",
            "gemma3_text",
            "gpt2",
        ] {
            let folder = format!(
                "{}/../../fixtures/models/{model}",
                env!("CARGO_MANIFEST_DIR")
            );
            let config: Json =
                serde_json::from_slice(&std::fs::read(format!("{folder}/config.json")).unwrap())
                    .unwrap();
            let map = NameMap::from_config(&config).unwrap();
            let bytes = std::fs::read(format!("{folder}/model.safetensors")).unwrap();
            let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let header: Json = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
            for name in header
                .as_object()
                .unwrap()
                .keys()
                .filter(|name| *name != "__metadata__")
            {
                let gguf = map
                    .to_gguf(name)
                    .unwrap_or_else(|| panic!("{model}: {name}"));
                assert_eq!(map.to_hf(&gguf.name).unwrap().name, *name);
                seen += 1;
            }
        }
        assert!(seen > 100, "{seen}");
    }

    #[test]
    fn rotary_rows_follow_the_worked_example() {
        // Two heads of four rows: reshape(heads, 2 pairs, 2 sides).swap(1, 2).
        assert_eq!(rows_to_hf(8, 2).unwrap(), [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(rows_to_hf(6, 1).unwrap(), [0, 2, 4, 1, 3, 5]);
        let (to_hf, to_gguf) = (rows_to_hf(48, 4).unwrap(), rows_to_gguf(48, 4).unwrap());
        assert!((0..48).all(|row| to_gguf[to_hf[row]] == row));
        assert!(
            rows_to_hf(8, 3).is_none() && rows_to_hf(9, 3).is_none() && rows_to_hf(8, 0).is_none()
        );
    }

    #[test]
    fn a_vector_is_one_column_of_rows() {
        let values = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
        let stored = rotary_to_gguf(&values, &[6], 1).unwrap();
        assert_eq!(stored, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(rotary_to_hf(&stored, &[6], 1).unwrap(), values);
        assert_eq!(rotary_to_gguf(&values, &[6, 1], 1).unwrap(), stored);
        // Rows of two columns move whole.
        let wide: Vec<f32> = (0..8u8).map(f32::from).collect();
        assert_eq!(
            rotary_to_gguf(&wide, &[4, 2], 1).unwrap(),
            [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0]
        );
        assert!(
            rotary_to_gguf(&values, &[6], 4).is_none() && rotary_to_hf(&values, &[6], 2).is_none()
        );
    }
}
