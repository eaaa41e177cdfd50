//! VMamba: stages of blocks with a selective scan in four directions over all pixels, and nothing beside
//! it (Liu et al., *VMamba: Visual State Space Model*, arXiv 2401.10166, first version).
//!
//! transformers has no such class: names of tensors and keys are this program's own, those of
//! `efficientvmamba` without convolutions and gates.

use frugal_nn::{HeadLayout, ModelError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::efficientvmamba::{TARGETS, config_of, product, width_of_stage};
use super::pixels::{Pixels, Sides};
use crate::architecture::{Family, KeyTable, ModelConfig};
use crate::blocks::batch_norm::BatchNormSettings;
use crate::blocks::image_blocks::BlockKind;
use crate::blocks::pyramid::{Pyramid, Stage};
use crate::blocks::scan2d::ScanSizes;
use crate::blocks::sub_grids::ScanPattern;
use crate::fresh::{Fresh, FreshSizes, Own};
use crate::keys::{self, Size};

/// VMamba.
pub static VMAMBA: Family = Family {
    model_type: "vmamba",
    class: "VMambaModel",
    classifier_class: "VMambaForImageClassification",
    base_prefix: "backbone.",
    is_encoder: true,
    in_transformers: false,
    head: HeadLayout::MeanClassifier,
    usual_targets: TARGETS,
    read,
    fresh: Some(Fresh {
        about: "selective scans in four directions over images",
        config: fresh,
    }),
    keys: KeyTable {
        honored: keys::names::<VMambaConfig>,
        refused: &[],
        without_effect: &[],
    },
};

/// Keys of `config.json`. Defaults are those of the smallest published model.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct VMambaConfig {
    image_size: Sides,
    patch_size: Sides,
    num_channels: Size,
    /// Width of the first stage; each further one has twice as much.
    embed_dim: Size,
    /// Blocks of each stage.
    depths: Vec<Size>,
    /// As of `efficientvmamba`.
    ssm_state_size: Size,
    ssm_expand: Size,
    ssm_dt_rank: Option<Size>,
    drop_path_rate: f64,
    layer_norm_eps: f64,
    initializer_range: f64,
}

impl Default for VMambaConfig {
    fn default() -> Self {
        Self {
            image_size: Sides([224; 2]),
            patch_size: Sides([4; 2]),
            num_channels: Size(3),
            embed_dim: Size(96),
            depths: [2, 2, 9, 2].map(Size).into(),
            ssm_state_size: Size(16),
            ssm_expand: Size(2),
            ssm_dt_rank: None,
            drop_path_rate: 0.0,
            layer_norm_eps: 1e-5,
            initializer_range: 0.02,
        }
    }
}

/// The blocks in two stages, for images of CIFAR-10's size.
fn fresh(sizes: &FreshSizes, own: &Own<'_>) -> Result<Value, ModelError> {
    let depth = sizes.num_hidden_layers.max(2);
    let depths: Vec<usize> = own.or("depths", vec![depth.div_ceil(2), depth / 2])?;
    Ok(json!({
        "image_size": 32, "patch_size": 2, "num_channels": 3, "embed_dim": sizes.hidden_size,
        "depths": depths, "ssm_state_size": 16, "ssm_expand": 2, "drop_path_rate": 0.0,
        "layer_norm_eps": 1e-5, "initializer_range": 0.02,
    }))
}

fn read(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    let k: VMambaConfig = keys::read(raw, source, &["embed_dim", "depths"])?;
    let mut stages = Vec::new();
    for (stage, depth) in k.depths.iter().enumerate() {
        let width = width_of_stage(k.embed_dim.0, stage, source)?;
        let scan = ScanSizes {
            width,
            inner: product(k.ssm_expand, width, "ssm_expand", source)?,
            state: k.ssm_state_size.0,
            rank: k.ssm_dt_rank.map_or(width.div_ceil(16), |rank| rank.0),
            pattern: ScanPattern::Cross,
            eps: k.layer_norm_eps,
        };
        let kind = BlockKind::Scan {
            scan: Some(scan),
            convolution: false,
            gates: 0,
        };
        let depth = depth.0;
        stages.push(Stage { depth, width, kind });
    }
    let pyramid = Pyramid {
        pixels: Pixels::read(raw, k.image_size, k.patch_size, k.num_channels.0, source)?,
        stages,
        drop_path_rate: k.drop_path_rate,
        eps: k.layer_norm_eps,
        // There is no such norm.
        batch_norm: BatchNormSettings {
            eps: 1e-5,
            momentum: 0.1,
        },
    };
    config_of(&VMAMBA, pyramid, raw, source)
}
