//! In which types the tensors of a file are written.

use super::GgmlType;

/// What a GGUF file is called by: the type of most of its tensors, or one of llama.cpp's mixes.
#[allow(non_camel_case_types, reason = "llama.cpp's own names")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    /// One type where it can be.
    Mostly(GgmlType),
    /// Q4_K, with Q6_K for half of the value and down projections.
    Q4_K_M,
    /// Q5_K, with Q6_K for half of the value and down projections.
    Q5_K_M,
}

impl From<GgmlType> for FileType {
    fn from(ggml_type: GgmlType) -> Self {
        Self::Mostly(ggml_type)
    }
}

impl FileType {
    /// llama.cpp's code, `general.file_type`.
    pub fn code(self) -> u32 {
        match self {
            Self::Mostly(ggml_type) => match ggml_type {
                GgmlType::F32 => 0,
                GgmlType::F16 => 1,
                GgmlType::Q4_0 => 2,
                GgmlType::Q4_1 => 3,
                GgmlType::Q8_0 => 7,
                GgmlType::Q5_0 => 8,
                GgmlType::Q5_1 => 9,
                GgmlType::Q4_K => 14,
                GgmlType::Q5_K => 16,
                GgmlType::Q6_K => 18,
                GgmlType::BF16 => 32,
            },
            Self::Q4_K_M => 15,
            Self::Q5_K_M => 17,
        }
    }

    /// The type that a tensor is written as.
    ///
    /// Vectors, norms and positions stay F32. The token table and the output head have 8 bits at
    /// least beside Q4_0 and Q4_1; beside 4-bit and 5-bit K-quants the head, or the table that
    /// serves as one, is Q6_K, as llama.cpp writes it. Rows that are no whole number of blocks of
    /// 256 get the next larger type with blocks of 32, and others F16.
    pub fn tensor_type(self, gguf_name: &str, shape: &[usize], model: &TensorsOf) -> GgmlType {
        let columns = shape.last().copied().unwrap_or(1);
        if shape.len() < 2
            || gguf_name.ends_with("_norm.weight")
            || gguf_name == "position_embd.weight"
        {
            return GgmlType::F32;
        }
        let wanted = self.wanted(gguf_name, model);
        let narrow = match wanted {
            GgmlType::Q4_K => GgmlType::Q5_0,
            GgmlType::Q5_K => GgmlType::Q5_1,
            GgmlType::Q6_K => GgmlType::Q8_0,
            other => other,
        };
        [wanted, narrow]
            .into_iter()
            .find(|ggml_type| columns.is_multiple_of(ggml_type.block_len()))
            .unwrap_or(GgmlType::F16)
    }

    /// The type if rows have any length.
    fn wanted(self, gguf_name: &str, model: &TensorsOf) -> GgmlType {
        let table = gguf_name == "token_embd.weight";
        let head = gguf_name == "output.weight" || (table && !model.has_output);
        let most = match self {
            Self::Mostly(GgmlType::Q4_0 | GgmlType::Q4_1) if head || table => {
                return GgmlType::Q8_0;
            }
            Self::Mostly(ggml_type) => ggml_type,
            Self::Q4_K_M => GgmlType::Q4_K,
            Self::Q5_K_M => GgmlType::Q5_K,
        };
        if head && matches!(most, GgmlType::Q4_K | GgmlType::Q5_K) {
            return GgmlType::Q6_K;
        }
        let is_mix = matches!(self, Self::Q4_K_M | Self::Q5_K_M);
        let Some((layer, part)) = in_layer(gguf_name).filter(|_| is_mix) else {
            return most;
        };
        match part {
            "attn_v" | "ffn_down" if has_more_bits(layer, model.layers) => GgmlType::Q6_K,
            "attn_qkv" if self == Self::Q4_K_M => GgmlType::Q5_K,
            "attn_qkv" => GgmlType::Q6_K,
            _ => most,
        }
    }
}

/// What the type of one tensor depends on beside its own name and shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorsOf {
    /// Number of layers.
    pub layers: usize,
    /// Whether there is an output head beside the token table.
    pub has_output: bool,
}

/// Layer and name of a matrix in a layer.
fn in_layer(gguf_name: &str) -> Option<(usize, &str)> {
    let (layer, part) = gguf_name.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, part.strip_suffix(".weight")?))
}

/// The first and the last eighth of the layers, and every third between them.
fn has_more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}
