//! Devices by name.

use burn::prelude::*;
pub use frugal_kernels::{InstructionSet, InstructionSetError, keep_freed_memory, on_pool};
use thiserror::Error;

/// Names that this build understands.
pub const NAMES: &[&str] = &[
    "cpu",
    #[cfg(feature = "cuda")]
    "cuda",
    #[cfg(feature = "rocm")]
    "rocm",
    #[cfg(feature = "vulkan")]
    "vulkan",
    #[cfg(feature = "metal")]
    "metal",
    #[cfg(feature = "webgpu")]
    "webgpu",
];

/// A device that this build does not have.
#[derive(Debug, Error)]
#[error("`device`: `{name}` is not available in this build (it has: {}); other devices come with the cargo features cuda, rocm, vulkan, metal, webgpu", NAMES.join(", "))]
pub struct UnknownDevice {
    name: String,
}

/// The device of this name: `cpu`, or with the cargo feature of that name `cuda`, `rocm`, `vulkan`,
/// `metal`, `webgpu`.
///
/// # Errors
/// Names that this build does not have.
pub fn device(name: &str) -> Result<Device, UnknownDevice> {
    Ok(match name {
        "cpu" => Device::flex(),
        #[cfg(feature = "cuda")]
        "cuda" => Device::cuda(0),
        #[cfg(feature = "rocm")]
        "rocm" => Device::rocm(0),
        #[cfg(feature = "vulkan")]
        "vulkan" => Device::vulkan(burn::tensor::DeviceKind::default()),
        #[cfg(feature = "metal")]
        "metal" => Device::metal(burn::tensor::DeviceKind::default()),
        #[cfg(feature = "webgpu")]
        "webgpu" => Device::webgpu(burn::tensor::DeviceKind::default()),
        _ => return Err(UnknownDevice { name: name.into() }),
    })
}
