//! File formats and where files come from: GGUF, weights of ONNX files, safetensors as they are
//! written and what is expected of them, and named models that are fetched and checked. It links no tensors; the fuzzers link it.
#![forbid(unsafe_code)]

pub mod fetch;
pub mod gguf;
pub mod onnx;
pub mod safetensors;
