//! How many operations an image takes.

use frugal_models::{ModelConfig, ScanPattern};
use frugal_nn::{SiteInfo, SiteKind};

use super::size::Size;

/// Of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operations {
    /// Multiply-adds.
    pub all: u64,
    /// Tokens of all sequences of a block's scan in the first stage that has one.
    pub scanned: u64,
}

/// The operations of a model of an arm; norms and what is done to each number by itself are left
/// out.
pub(super) fn of(config: &ModelConfig, size: &Size, pattern: ScanPattern) -> Operations {
    let side = size.image / size.patch;
    let is_vit = config.model_type() == "vit";
    // Of a site of this block: sides of its stage.
    let sides = |layer: Option<usize>| match layer {
        Some(layer) if !is_vit && layer >= size.depth => side.div_ceil(2),
        _ => side,
    };
    let (mut all, mut scanned) = (0u64, 0u64);
    for (_, site) in config.sites().iter() {
        let side = sides(site.layer);
        let pixels = (side * side) as u64;
        let of_block = if is_vit && site.layer.is_some() {
            pixels + 1
        } else {
            pixels
        };
        let sequence = pattern.tokens([side; 2]) as u64 / 4;
        let weights = (site.d_in * site.d_out) as u64;
        let in_scan = site.path.contains(".scans.");
        let pooled = ["fc1", "fc2", "squeeze", "excite"].contains(&site.name());
        all += match site.kind {
            SiteKind::Linear | SiteKind::Conv | SiteKind::Conv2d => {
                let rows = match (in_scan, pooled) {
                    (true, _) => sequence,
                    (_, true) => 1,
                    _ => of_block,
                };
                rows * weights
            }
            // The recurrence, of which this has a number for each channel and state.
            SiteKind::Param if site.name() == "A_log" => {
                if scanned == 0 {
                    scanned = 4 * sequence;
                }
                9 * sequence * weights / 2
            }
            _ => 0,
        };
        all += attention(config, site, of_block);
    }
    Operations { all, scanned }
}

/// Scores and sums of a block's attention.
fn attention(config: &ModelConfig, site: &SiteInfo, tokens: u64) -> u64 {
    match site.name() {
        "query" => 2 * tokens * tokens * config.hidden_size as u64,
        _ => 0,
    }
}
