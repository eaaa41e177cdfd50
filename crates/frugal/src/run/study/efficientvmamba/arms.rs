//! What is compared.

use frugal_models::{ModelConfig, ScanPattern};
use serde_json::{Value, json};

use super::operations::{Operations, of};
use super::size::Size;
use crate::run::study::StudyError;

pub(super) const ES2D: &str = "ES2D";
pub(super) const SS2D: &str = "SS2D";
pub(super) const NO_CONV: &str = "ES2D without convolution";
pub(super) const CONV_ONLY: &str = "convolution only";
pub(super) const FIRST: &str = "inverted residuals first";
pub(super) const SCANS: &str = "no inverted residuals";
pub(super) const INVERTED: &str = "inverted residuals only";
pub(super) const VMAMBA: &str = "VMamba";
pub(super) const VIT: &str = "ViT";

/// One model.
pub(super) struct Arm {
    pub name: &'static str,
    /// Width of its first stage.
    pub width: usize,
    pub operations: Operations,
    pub config: ModelConfig,
}

/// The keys of an arm of this width.
fn keys(name: &str, size: &Size, width: usize) -> Value {
    let mut keys = json!({"image_size": size.image, "patch_size": size.patch});
    let depths = [size.depth; 2];
    let own = match name {
        VIT => json!({
            "model_type": "vit", "hidden_size": width, "num_hidden_layers": 2 * size.depth,
            "num_attention_heads": 4, "intermediate_size": 4 * width,
        }),
        VMAMBA => json!({
            "model_type": "vmamba", "embed_dim": width, "depths": depths,
            "ssm_state_size": size.state,
        }),
        _ => {
            let (evss, inverted) = ("evss", "inverted_residual");
            let types = match name {
                FIRST => [inverted, evss],
                SCANS => [evss, evss],
                INVERTED => [inverted, inverted],
                _ => [evss, inverted],
            };
            json!({
                "model_type": "efficientvmamba", "embed_dim": width, "depths": depths,
                "block_types": types, "ssm_state_size": size.state,
                "scan_pattern": if name == SS2D { "cross" } else { "atrous" },
                "use_conv_branch": name != NO_CONV, "use_scan": name != CONV_ONLY,
            })
        }
    };
    if let (Some(keys), Some(own)) = (keys.as_object_mut(), own.as_object()) {
        keys.extend(own.clone());
    }
    keys
}

fn made(name: &'static str, size: &Size, width: usize) -> Result<Arm, StudyError> {
    let config = ModelConfig::from_json(keys(name, size, width), name);
    let config = config.map_err(|error| StudyError::arm(name, error))?;
    let pattern = match name {
        SS2D | VMAMBA => ScanPattern::Cross,
        _ => ScanPattern::Atrous,
    };
    Ok(Arm {
        name,
        width,
        operations: of(&config, size, pattern),
        config,
    })
}

/// All arms: each in the width whose operations are nearest to those of the first.
pub(super) fn arms(size: &Size) -> Result<Vec<Arm>, StudyError> {
    let first = made(ES2D, size, size.width)?;
    let target = first.operations.all;
    let mut all = vec![first];
    for name in [
        SS2D, NO_CONV, CONV_ONLY, FIRST, SCANS, INVERTED, VMAMBA, VIT,
    ] {
        let mut best = made(name, size, 8)?;
        for width in (2..=32).map(|n| 8 * n) {
            let next = made(name, size, width)?;
            if next.operations.all.abs_diff(target) < best.operations.all.abs_diff(target) {
                best = next;
            }
        }
        all.push(best);
    }
    Ok(all)
}
