//! File formats and where files come from: GGUF, what is expected of a safetensors file, and named
//! models that are fetched and checked. It links no tensors; the fuzzers link it.
#![forbid(unsafe_code)]

pub mod fetch;
pub mod gguf;
pub mod safetensors;
