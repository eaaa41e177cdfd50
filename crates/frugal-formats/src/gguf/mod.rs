//! GGUF model files: reading, dequantising, writing, and their names in Hugging Face terms.
//!
//! [`Gguf::parse`] reads the header of a file that the caller has mapped or read; tensor data stays
//! where it is. [`hf_config`] and [`NameMap`] say what the file is in Hugging Face terms;
//! [`write()`] with [`gguf_metadata`] goes the other way. Layout:
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod architecture;
mod blocks;
mod codes;
mod container;
mod content;
mod error;
mod export;
mod file_type;
mod foreign;
mod hf;
mod import;
mod k_quants;
mod names;
mod quantize;
mod rope;
mod split;
mod tokenizer;
mod value;
mod writer;

pub use architecture::Architecture;
pub use blocks::{GgmlType, dequantize};
pub use codes::{CodeLayout, unpack_codes};
pub use container::{Gguf, TensorInfo};
pub use content::{Content, Parts};
pub use error::{GgufError, GgufProblem};
pub use export::{gguf_metadata, rope_freqs};
pub use file_type::{FileType, TensorsOf};
pub use import::hf_config;
pub use names::{Layout, Mapped, NameMap, rotary_to_gguf, rotary_to_hf, rows_to_gguf, rows_to_hf};
pub use quantize::quantize;
pub use split::{files_of, model_name, part_paths};
pub use tokenizer::{GgufTokenizer, tokenizer, tokenizer_metadata};
pub use value::{Array, Value};
pub use writer::{TensorSpec, WriteError, lora_metadata, write};

/// The alignment of tensor data when `general.alignment` does not give another, in bytes.
pub const DEFAULT_ALIGNMENT: u64 = 32;

#[cfg(test)]
mod config_tests;
#[cfg(test)]
mod container_tests;
#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod k_quants_tests;
#[cfg(test)]
mod real_tests;
#[cfg(test)]
mod split_tests;
