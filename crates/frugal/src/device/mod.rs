//! Devices by name.

mod self_test;

use std::sync::{Mutex, PoisonError};

use burn::prelude::*;
use frugal_core::caught::caught;
pub use frugal_kernels::{InstructionSet, InstructionSetError, keep_freed_memory, on_pool};
pub use self_test::self_test;
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

/// Why there is no device.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum DeviceError {
    /// This build has none of that name.
    #[error("`device`: `{name}` is not available in this build (it has: {}); other devices come with the cargo features cuda, rocm, vulkan, metal, webgpu", NAMES.join(", "))]
    Unknown {
        /// The name.
        name: String,
    },
    /// It does not open on this machine.
    #[error(
        "`device`: `{name}` does not open on this machine: {reason}; `--device cpu` computes without it"
    )]
    Unavailable {
        /// The name.
        name: &'static str,
        /// What its driver or library says.
        reason: String,
    },
    /// It opens and computes something else than the CPU.
    #[error(
        "`device`: `{name}` computes a wrong {operation} (off by {difference:.1e}), so nothing that it computes can be relied on; another driver may be right, and `--device cpu` is"
    )]
    Wrong {
        /// The name.
        name: &'static str,
        /// What was computed.
        operation: &'static str,
        /// Largest difference from the CPU's result, relative to the largest value.
        difference: f32,
    },
}

/// Refuses a name that this build does not understand, without opening anything.
///
/// # Errors
/// [`DeviceError::Unknown`].
pub fn known(name: &str) -> Result<&'static str, DeviceError> {
    let found = NAMES.iter().find(|known| **known == name);
    found
        .copied()
        .ok_or_else(|| DeviceError::Unknown { name: name.into() })
}

/// Opens the device of this name: `cpu`, or with the cargo feature of that name `cuda`, `rocm`,
/// `vulkan` (shaders in SPIR-V), `metal`, or `webgpu` (shaders in WGSL, over whichever of Vulkan,
/// Metal and DirectX 12 the machine has).
///
/// Any device but the CPU has to pass [`self_test`] first. It is opened once in a process; who asks
/// again gets the same.
///
/// # Errors
/// A name that this build does not have, a device that does not open, one that computes wrongly.
pub fn device(name: &str) -> Result<Device, DeviceError> {
    let name = known(name)?;
    if name == "cpu" {
        return Ok(Device::flex());
    }
    // Their libraries refuse to be set up twice, and the self-test is needed once.
    static OPENED: Mutex<Vec<(&str, Result<Device, DeviceError>)>> = Mutex::new(Vec::new());
    let mut all = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, found)) = all.iter().find(|(opened, _)| *opened == name) {
        return found.clone();
    }
    let found = open_and_test(name);
    all.push((name, found.clone()));
    found
}

fn open_and_test(name: &'static str) -> Result<Device, DeviceError> {
    // Drivers are opened by libraries that report by panicking as well as by errors.
    let opened = caught(|| -> Result<Device, DeviceError> {
        let device = open(name).map_err(|reason| DeviceError::Unavailable { name, reason })?;
        self_test(name, &device)?;
        Ok(device)
    });
    opened.unwrap_or_else(|reason| Err(DeviceError::Unavailable { name, reason }))
}

#[cfg(any(feature = "vulkan", feature = "metal", feature = "webgpu"))]
fn wgpu(api: burn::tensor::wgpu::WgpuBackend) -> Result<Device, String> {
    Device::wgpu_options()
        .graphics_api(api)
        .init()
        .map_err(|e| e.to_string())
}

fn open(name: &str) -> Result<Device, String> {
    match name {
        #[cfg(feature = "cuda")]
        "cuda" => Ok(Device::cuda(0)),
        #[cfg(feature = "rocm")]
        "rocm" => Ok(Device::rocm(0)),
        #[cfg(feature = "vulkan")]
        "vulkan" => wgpu(burn::tensor::wgpu::WgpuBackend::Vulkan),
        #[cfg(feature = "metal")]
        "metal" => wgpu(burn::tensor::wgpu::WgpuBackend::Metal),
        #[cfg(feature = "webgpu")]
        "webgpu" => wgpu(burn::tensor::wgpu::WgpuBackend::Auto),
        _ => Err("it has no driver in this build".into()),
    }
}
