//! Architectures that read text, one file each.

pub mod bert;
pub mod deepseek;
pub mod gated_ssm;
pub mod gemma3;
pub mod gpt2;
pub mod hawk;
pub mod llama;
pub mod mamba;
pub mod mamba2;
pub mod minicpm;
pub mod mixtral;
pub mod mor;
pub mod native_sparse;
pub mod phi3;
pub mod qwen;
pub mod recurrent_gemma;
pub mod rmoe;
pub mod tokenformer;
pub mod widenet;
