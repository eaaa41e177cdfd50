//! The weights of ONNX models.
//!
//! An ONNX file is a graph of operations with constants, not a model of named modules. Exporters of
//! PyTorch keep the names of parameters where they can; a linear layer's matrix is mostly stored
//! transposed under a made-up name, and the module's path stands in the name of the node that
//! multiplies by it. Files that ONNX Runtime quantized dynamically hold 8-bit codes with scales and
//! zero points, for a whole tensor or for each column, and integer products in place of products;
//! their weights are worth `(code - zero_point) * scale`.
//!
//! [`Onnx`] reads all this back: weights in `f32`, linear layers `[out, in]`, names of modules.
//! Operations are not computed. What is refused: weights in other files, in sparse form, in blocks,
//! and those inside operations of optimizers, whose layout is their own.
//!
//! Reference: <https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>; operators `MatMulInteger`,
//! `DequantizeLinear` of <https://onnx.ai/onnx/operators/>.

mod convert;
mod error;
mod file;
mod graph;
mod tensor;
mod weights;
mod wire;

pub use convert::{ConvertError, Converted, to_safetensors};
pub use error::{OnnxError, OnnxProblem};
pub use file::Onnx;
pub use weights::{Weight, Weights};

#[cfg(test)]
mod tests;
