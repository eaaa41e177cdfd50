//! EfficientVMamba: early stages of an atrous selective scan beside a depth-wise convolution, late ones
//! of inverted residuals (Pei, Huang and Xu, *EfficientVMamba: Atrous Selective Scan for Light Weight
//! Visual Mamba*, AAAI 2025, arXiv 2403.09977; behaviour as in TerryPei/EfficientVMamba where that differs
//! from the paper: a step of 2, scans that all go forward, one gate for both branches, base width 64 of
//! the small model).
//!
//! transformers has no such class: names of tensors and keys are this program's own.
//!
//! | tensor | of |
//! |---|---|
//! | `backbone.patch_embed.{projection, norm}` | patches |
//! | `backbone.stages.S.downsample.{norm, reduction}` | four neighbours to one, in front of stage S |
//! | `backbone.stages.S.blocks.B.norm`, `.ss2d.{in_proj, conv2d, out_norm, out_proj}`, `.ss2d.scans.K.{x_proj, dt_proj, A_log, D}` | the scan of an `evss` block and its sequence K |
//! | `....conv.{depthwise, norm, pointwise}`, `....gate.{norm, fc1, fc2}`, `....conv_gate.*` | its convolution, its gates |
//! | `....{expand, norm1, depthwise, norm2, se.squeeze, se.excite, project, norm3}` | an `inverted_residual` block |
//! | `backbone.norm`, `classifier` | behind the last stage |

use std::sync::Arc;

use frugal_nn::{HeadLayout, ModelError, UsualTargets};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::pixels::{COLORS, Pixels, Sides};
use crate::activation::Activation;
use crate::architecture::{Family, KeyTable, ModelConfig};
use crate::blocks::batch_norm::BatchNormSettings;
use crate::blocks::image_blocks::BlockKind;
use crate::blocks::pyramid::{Pyramid, Stage};
use crate::blocks::scan2d::ScanSizes;
use crate::blocks::sub_grids::ScanPattern;
use crate::fresh::{Fresh, FreshSizes, Own};
use crate::keys::{self, Size, bad};

/// EfficientVMamba.
pub static EFFICIENT_VMAMBA: Family = Family {
    model_type: "efficientvmamba",
    class: "EfficientVMambaModel",
    classifier_class: "EfficientVMambaForImageClassification",
    base_prefix: "backbone.",
    is_encoder: true,
    in_transformers: false,
    head: HeadLayout::MeanClassifier,
    usual_targets: TARGETS,
    read,
    fresh: Some(Fresh {
        about: "atrous selective scans over images, inverted residuals behind them",
        config: fresh,
    }),
    keys: KeyTable {
        honored: keys::names::<EfficientVMambaConfig>,
        refused: &[],
        without_effect: &[],
    },
};

/// Without keys and values: what a scan reads, and what it gives.
pub(super) const TARGETS: UsualTargets = UsualTargets {
    ia3: &["x_proj", "out_proj"],
    ia3_feedforward: "out_proj",
};

/// Blocks of a stage by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum BlockType {
    /// Efficient visual state space block: scan and convolution.
    Evss,
    /// Inverted residual.
    InvertedResidual,
}

/// Gates of an `evss` block by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum GateType {
    /// One for both branches, as the published code has it.
    Shared,
    /// One of each branch, as the paper has it.
    Separate,
    /// None.
    None,
}

/// Keys of `config.json`. Defaults are those of the smallest published model.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct EfficientVMambaConfig {
    image_size: Sides,
    patch_size: Sides,
    num_channels: Size,
    /// Width of the first stage; each further one has twice as much.
    embed_dim: Size,
    /// Blocks of each stage.
    depths: Vec<Size>,
    /// Kind of the blocks of each stage.
    block_types: Vec<BlockType>,
    /// Which pixels a sequence of the scan has.
    scan_pattern: ScanPattern,
    /// Whether `evss` blocks have the scan, and the convolution.
    use_scan: bool,
    use_conv_branch: bool,
    gate_type: GateType,
    /// Numbers that a channel of the scan remembers, its channels as a multiple of the width, and the
    /// width from which its steps are projected (null: a sixteenth of the width, rounded up).
    ssm_state_size: Size,
    ssm_expand: Size,
    ssm_dt_rank: Option<Size>,
    /// Channels of an inverted residual as a multiple of the width.
    inverted_residual_expand: Size,
    drop_path_rate: f64,
    layer_norm_eps: f64,
    batch_norm_eps: f64,
    batch_norm_momentum: f64,
    initializer_range: f64,
}

impl Default for EfficientVMambaConfig {
    fn default() -> Self {
        use BlockType::{Evss, InvertedResidual};
        Self {
            image_size: Sides([224; 2]),
            patch_size: Sides([4; 2]),
            num_channels: Size(3),
            embed_dim: Size(48),
            depths: [2, 2, 4, 2].map(Size).into(),
            block_types: vec![Evss, Evss, InvertedResidual, InvertedResidual],
            scan_pattern: ScanPattern::Atrous,
            use_scan: true,
            use_conv_branch: true,
            gate_type: GateType::Shared,
            ssm_state_size: Size(16),
            ssm_expand: Size(2),
            ssm_dt_rank: None,
            inverted_residual_expand: Size(4),
            drop_path_rate: 0.0,
            layer_norm_eps: 1e-5,
            batch_norm_eps: 1e-5,
            batch_norm_momentum: 0.1,
            initializer_range: 0.02,
        }
    }
}

/// Halves of the blocks in each of two stages of either kind, for images of CIFAR-10's size.
fn fresh(sizes: &FreshSizes, own: &Own<'_>) -> Result<Value, ModelError> {
    let depth = sizes.num_hidden_layers.max(2);
    let depths: Vec<usize> = own.or("depths", vec![depth.div_ceil(2), depth / 2])?;
    let count = depths.len();
    let kind = |stage: usize| match stage < count.div_ceil(2) {
        true => "evss",
        false => "inverted_residual",
    };
    Ok(json!({
        "image_size": 32, "patch_size": 2, "num_channels": 3, "embed_dim": sizes.hidden_size,
        "depths": depths, "block_types": (0..count).map(kind).collect::<Vec<_>>(),
        "scan_pattern": "atrous", "use_scan": true, "use_conv_branch": true, "gate_type": "shared",
        "ssm_state_size": 16, "ssm_expand": 2, "inverted_residual_expand": 4, "drop_path_rate": 0.0,
        "layer_norm_eps": 1e-5, "batch_norm_eps": 1e-5, "batch_norm_momentum": 0.1,
        "initializer_range": 0.02,
    }))
}

fn read(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    let k: EfficientVMambaConfig = keys::read(raw, source, &["embed_dim", "depths"])?;
    if k.block_types.len() != k.depths.len() {
        let reason = format!(
            "{} kinds for the {} stages of `depths`",
            k.block_types.len(),
            k.depths.len()
        );
        return Err(bad(source, "block_types", reason));
    }
    if !k.use_scan && !k.use_conv_branch {
        let reason = "a block needs the scan or the convolution, and `use_scan` is false too";
        return Err(bad(source, "use_conv_branch", reason));
    }
    let gates = match k.gate_type {
        GateType::None => 0,
        GateType::Separate if k.use_scan && k.use_conv_branch => 2,
        GateType::Shared | GateType::Separate => 1,
    };
    let mut stages = Vec::new();
    for (stage, (depth, block)) in k.depths.iter().zip(&k.block_types).enumerate() {
        let width = width_of_stage(k.embed_dim.0, stage, source)?;
        if !width.is_multiple_of(8) {
            let reason = format!("{width} channels of a stage are no multiple of 8");
            return Err(bad(source, "embed_dim", reason));
        }
        let kind = match block {
            BlockType::Evss => BlockKind::Scan {
                scan: k.use_scan.then_some(ScanSizes {
                    width,
                    inner: product(k.ssm_expand, width, "ssm_expand", source)?,
                    state: k.ssm_state_size.0,
                    rank: k.ssm_dt_rank.map_or(width.div_ceil(16), |rank| rank.0),
                    pattern: k.scan_pattern,
                    eps: k.layer_norm_eps,
                }),
                convolution: k.use_conv_branch,
                gates,
            },
            BlockType::InvertedResidual => {
                let expand = k.inverted_residual_expand;
                let expanded = product(expand, width, "inverted_residual_expand", source)?;
                BlockKind::InvertedResidual {
                    squeezed: (expanded / 8).max(1),
                    expanded,
                }
            }
        };
        let depth = depth.0;
        stages.push(Stage { depth, width, kind });
    }
    let pyramid = Pyramid {
        pixels: Pixels::read(raw, k.image_size, k.patch_size, k.num_channels.0, source)?,
        stages,
        drop_path_rate: k.drop_path_rate,
        eps: k.layer_norm_eps,
        batch_norm: BatchNormSettings {
            eps: k.batch_norm_eps,
            momentum: k.batch_norm_momentum,
        },
    };
    config_of(&EFFICIENT_VMAMBA, pyramid, raw, source)
}

/// Most stages of a model; each doubles the width.
const STAGES: usize = 8;

/// Width of a stage.
pub(super) fn width_of_stage(
    embed_dim: usize,
    stage: usize,
    source: &str,
) -> Result<usize, ModelError> {
    let width = embed_dim.checked_mul(1 << stage.min(STAGES));
    match width.filter(|width| stage < STAGES && *width < 1 << 20) {
        Some(width) => Ok(width),
        None => Err(bad(
            source,
            "depths",
            format!(
                "stage {stage} of a width of {embed_dim} in the first is more than any known model has"
            ),
        )),
    }
}

/// A multiple of a width.
pub(super) fn product(
    times: Size,
    width: usize,
    key: &str,
    source: &str,
) -> Result<usize, ModelError> {
    match times.0.checked_mul(width).filter(|n| *n < 1 << 24) {
        Some(product) => Ok(product),
        None => {
            let reason = format!(
                "{} times the width {width} is more than any known model has",
                times.0
            );
            Err(bad(source, key, reason))
        }
    }
}

/// The configuration of a model of stages.
///
/// # Errors
/// No stage, and settings outside of their range.
pub(super) fn config_of(
    family: &'static Family,
    pyramid: Pyramid,
    raw: &Value,
    source: &str,
) -> Result<ModelConfig, ModelError> {
    let Some(last) = pyramid.stages.last() else {
        return Err(bad(source, "depths", "there is no stage"));
    };
    keys::layers("depths", Size(pyramid.depth()), source)?;
    let within = [
        ("drop_path_rate", pyramid.drop_path_rate, 0.0..1.0),
        (
            "batch_norm_momentum",
            pyramid.batch_norm.momentum,
            0.0..1.000_001,
        ),
        ("batch_norm_eps", pyramid.batch_norm.eps, 0.0..f64::MAX),
        ("layer_norm_eps", pyramid.eps, 0.0..f64::MAX),
    ];
    if let Some((key, value, _)) = within.iter().find(|(_, v, range)| !range.contains(v)) {
        return Err(bad(source, key, format!("{value} is outside of its range")));
    }
    Ok(ModelConfig {
        family,
        hidden_size: last.width,
        intermediate_size: last.width,
        num_hidden_layers: pyramid.depth(),
        // There are no heads.
        num_attention_heads: 1,
        num_key_value_heads: 1,
        head_dim: last.width,
        vocab_size: COLORS,
        max_position_embeddings: pyramid.pixels.image.pixels(),
        norm_eps: pyramid.eps,
        activation: Activation::Gelu,
        tie_word_embeddings: true,
        pad_token_id: None,
        architecture: Arc::new(pyramid),
        raw: raw.clone(),
        source: source.into(),
    })
}

#[cfg(test)]
mod tests;
