//! Backbones of stages: patches of an image at a quarter of its sides, and from stage to stage half the
//! sides and twice the width.

use std::ops::Range;
use std::sync::Arc;

use burn::prelude::*;
use frugal_nn::state::DecodeState;
use frugal_nn::{
    Backbone, BackboneInfo, BlockAction, BlockState, Frozen, ImageInput, Input, Linear, ModelError,
    Norm, Pass, RouterState, Rows, SequenceLayout, SiteInfo, SiteKind, SiteTable, SubLayer,
    SubLayerIo,
};
use serde_json::{Value, json};

use super::batch_norm::{BatchNorm, BatchNormSettings};
use super::checks::check_range;
use super::controlled::refuse_control;
use super::image_blocks::{BlockKind, ImageBlock, Lattice};
use super::mixer_init::{by_inputs, within};
use super::scan2d::Scan2d;
use super::sites::Sites;
use crate::architecture::{Architecture, Cost, FirstValues, ModelConfig};
use crate::vision::pixels::{Pixels, check_pass, embed};
use crate::weights::WeightLoader;

const BASE: &str = "backbone";

/// Blocks of one kind and width.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Stage {
    /// Number of blocks.
    pub depth: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// What the blocks are.
    pub kind: BlockKind,
}

/// What differs between models of stages.
#[derive(Clone, Debug)]
pub(crate) struct Pyramid {
    /// Images and the patches of the first stage.
    pub pixels: Pixels,
    /// The stages.
    pub stages: Vec<Stage>,
    /// How often the last block's branch is left out in training; earlier ones in proportion.
    pub drop_path_rate: f64,
    /// Epsilon of layer norms.
    pub eps: f64,
    /// Of batch norms.
    pub batch_norm: BatchNormSettings,
}

fn block_path(stage: usize, block: usize) -> String {
    format!("{BASE}.stages.{stage}.blocks.{block}")
}

fn merging_path(stage: usize) -> String {
    format!("{BASE}.stages.{stage}.downsample")
}

impl Pyramid {
    /// Blocks of all stages.
    pub(crate) fn depth(&self) -> usize {
        self.stages.iter().map(|stage| stage.depth).sum()
    }

    /// Rows and columns of a stage.
    fn grid(&self, stage: usize) -> [usize; 2] {
        // An odd line or column that has no neighbour is merged with zeros.
        let halved = |grid: [usize; 2], _| grid.map(|side| side.div_ceil(2));
        (0..stage).fold(self.pixels.grid(), halved)
    }

    /// The stage and the place in it of each block.
    fn places(&self) -> impl Iterator<Item = (usize, usize)> {
        let stages = self.stages.iter().enumerate();
        stages.flat_map(|(s, stage)| (0..stage.depth).map(move |b| (s, b)))
    }

    /// How often the branch of a block is left out in training.
    fn drop_path(&self, layer: usize) -> f64 {
        match self.depth() {
            0 | 1 => self.drop_path_rate,
            depth => self.drop_path_rate * layer as f64 / (depth - 1) as f64,
        }
    }
}

impl Architecture for Pyramid {
    fn arithmetic(&self, _config: &ModelConfig) -> Value {
        let ImageInput { height, width } = self.pixels.image;
        json!({
            "image_size": [height, width], "patch_size": self.pixels.patch,
            "stages": format!("{:?}", self.stages), "eps": [self.eps, self.batch_norm.eps],
        })
    }

    fn sites(&self, c: &ModelConfig) -> Vec<SiteInfo> {
        let mut sites = Sites::default();
        let path = format!("{BASE}.patch_embed.projection");
        let (size, [height, width]) = (
            [self.pixels.patch_width(), self.stages[0].width],
            self.pixels.patch,
        );
        sites.add(path, SiteKind::Conv2d, None, size, true).stored =
            Some(vec![size[1], 3, height, width]);
        sites.layer_norm(format!("{BASE}.patch_embed.norm"), None, size[1]);
        let mut layer = 0;
        for (s, stage) in self.stages.iter().enumerate() {
            if s > 0 {
                let (path, before) = (merging_path(s), self.stages[s - 1].width);
                sites.layer_norm(format!("{path}.norm"), Some(layer), 4 * before);
                let size = [4 * before, stage.width];
                sites.linear(format!("{path}.reduction"), layer, size, false);
            }
            for b in 0..stage.depth {
                ImageBlock::sites(
                    &mut sites,
                    &block_path(s, b),
                    layer,
                    stage.width,
                    stage.kind,
                );
                layer += 1;
            }
        }
        sites.layer_norm(format!("{BASE}.norm"), None, c.hidden_size);
        sites.finish()
    }

    fn cost(&self, config: &ModelConfig) -> Cost {
        Cost {
            cache_width: 0,
            key_value_width: 0,
            ..Cost::of_decoder(config)
        }
    }

    fn is_attention_only(&self) -> bool {
        true
    }

    fn image(&self) -> Option<ImageInput> {
        Some(self.pixels.image)
    }

    /// As the published code begins: convolutions evenly within the root of a weight's inputs, linear
    /// layers narrowly.
    fn first_values(
        &self,
        _config: &ModelConfig,
        site: &SiteInfo,
        tensor: FirstValues,
        seed: u64,
    ) -> Option<Vec<f32>> {
        let own = BatchNorm::first_values(site, tensor)
            .or_else(|| Scan2d::first_values(site, tensor, seed));
        if own.is_some() {
            return own;
        }
        let is_conv = matches!(site.kind, SiteKind::Conv | SiteKind::Conv2d)
            || ImageBlock::is_pointwise(site.name());
        if !is_conv {
            return None;
        }
        let bound = by_inputs(site);
        Some(match tensor {
            FirstValues::Weight => within(bound, site, seed),
            FirstValues::Bias => {
                let path = format!("{}.bias", site.path);
                let size = [1, site.d_out];
                let bias = SiteInfo::new(path, SiteKind::Param, None, size, false);
                within(bound, &bias, seed)
            }
        })
    }

    fn build(
        &self,
        config: &ModelConfig,
        sites: Arc<SiteTable>,
        loader: &mut WeightLoader<'_>,
    ) -> Result<Arc<dyn Backbone>, ModelError> {
        let mut blocks = Vec::with_capacity(self.depth());
        let mut mergings = Vec::new();
        for (s, stage) in self.stages.iter().enumerate() {
            if s > 0 {
                let path = merging_path(s);
                mergings.push(Merging {
                    norm: loader.layer_norm(&format!("{path}.norm"), self.eps)?,
                    reduction: loader.linear(&format!("{path}.reduction"))?,
                });
            }
            for b in 0..stage.depth {
                let path = block_path(s, b);
                let made = ImageBlock::load(loader, &path, stage.kind, self.eps, self.batch_norm)?;
                blocks.push(made);
            }
        }
        Ok(Arc::new(Stages {
            projection: loader.patch_conv(&format!("{BASE}.patch_embed.projection"))?,
            patch_norm: loader.layer_norm(&format!("{BASE}.patch_embed.norm"), self.eps)?,
            norm: loader.layer_norm(&format!("{BASE}.norm"), self.eps)?,
            places: self.places().collect(),
            pyramid: self.clone(),
            device: loader.device().clone(),
            info: config.info(),
            config: config.clone(),
            sites,
            mergings,
            blocks,
        }))
    }
}

/// Four neighbours become one row of twice the width.
struct Merging {
    norm: Norm,
    reduction: Linear,
}

impl Merging {
    /// `[images * h * w, d]` to `[images * ceil(h / 2) * ceil(w / 2), d']`; neighbours by columns, as
    /// Swin has them: (0, 0), (1, 0), (0, 1), (1, 1).
    fn forward(&self, x: Tensor<2>, on: Lattice, pass: &mut dyn Pass) -> Tensor<2> {
        let (d, [h, w], images) = (x.dims()[1], on.grid, on.images);
        let [height, width] = on.grid.map(|side| side.div_ceil(2));
        let mut x = x.reshape([images, h, w, d]);
        let device = x.device();
        if h % 2 == 1 {
            x = Tensor::cat(vec![x, Tensor::zeros([images, 1, w, d], &device)], 1);
        }
        if w % 2 == 1 {
            let zeros = Tensor::zeros([images, 2 * height, 1, d], &device);
            x = Tensor::cat(vec![x, zeros], 2);
        }
        let x = x
            .reshape([images, height, 2, width, 2, d])
            .permute([0, 1, 3, 4, 2, 5])
            .reshape([images * height * width, 4 * d]);
        let x = pass.norm_rows(&self.norm, x, Rows::Chosen);
        pass.linear_rows(&self.reduction, x, Rows::Chosen)
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        visit(Frozen::Norm(&self.norm));
        visit(Frozen::Linear(&self.reduction));
    }
}

/// A frozen backbone of stages.
struct Stages {
    pyramid: Pyramid,
    config: ModelConfig,
    info: BackboneInfo,
    sites: Arc<SiteTable>,
    device: Device,
    projection: Linear,
    patch_norm: Norm,
    /// In front of each stage but the first.
    mergings: Vec<Merging>,
    /// Of all stages.
    blocks: Vec<ImageBlock>,
    /// The stage of each block and its place in it.
    places: Vec<(usize, usize)>,
    norm: Norm,
}

impl Stages {
    fn block(&self, layer: usize, state: &mut BlockState, pass: &mut dyn Pass) {
        let (stage, place) = self.places[layer];
        let images = state.layout.sequences();
        if place == 0 && stage > 0 {
            let grid = self.pyramid.grid(stage - 1);
            let x = state.hidden_states.clone();
            let merging = &self.mergings[stage - 1];
            state.hidden_states = merging.forward(x, Lattice { grid, images }, pass);
            let rows = self.pyramid.grid(stage).iter().product();
            state.layout = SequenceLayout::new(&vec![rows; images]);
        }
        let grid = self.pyramid.grid(stage);
        let on = Lattice { grid, images };
        let (block, x) = (&self.blocks[layer], state.hidden_states.clone());
        if pass.before_block(layer, &x) == BlockAction::Skip {
            return;
        }
        let y = block.reads(x.clone(), pass);
        pass.before_sub_layer(layer, SubLayer::Attention, &y);
        let mixed = block.forward(y.clone(), on, pass);
        let mixed = pass.sub_layer(SubLayerIo {
            layer,
            kind: SubLayer::Attention,
            input: &y,
            output: mixed,
            residual: &x,
            norm_behind: None,
        });
        let mixed = match pass.drop_path(layer, self.pyramid.drop_path(layer), images) {
            Some(factors) => on.scaled(mixed, factors),
            None => mixed,
        };
        state.hidden_states = frugal_kernels::add(x, mixed);
        pass.after_block(layer, &state.hidden_states);
    }
}

impl Backbone for Stages {
    fn info(&self) -> &BackboneInfo {
        &self.info
    }

    fn sites(&self) -> &Arc<SiteTable> {
        &self.sites
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn stem(&self, input: &Input<'_>, pass: &mut dyn Pass) -> Result<BlockState, ModelError> {
        check_pass(&self.config, pass)?;
        let pixels = &self.pyramid.pixels;
        let patches = pixels.patches(&self.config, input, &self.device)?;
        let x = embed(&self.projection, patches, pass);
        let x = pass.norm_rows(&self.patch_norm, x, Rows::Chosen);
        let rows = self.pyramid.grid(0).iter().product();
        let mut layout = SequenceLayout::new(&vec![rows; input.layout.sequences()]);
        let hidden_states = pass.embed(x, &mut layout);
        if layout.prepended > 0 {
            return Err(ModelError::Method {
                model_type: self.config.model_type(),
                reason: "rows lie on a grid, which nothing can be put in front of: use a method that changes weights".into(),
            });
        }
        refuse_control(self.config.model_type(), &layout, pass)?;
        Ok(BlockState {
            hidden_states,
            layout,
            rotary: Vec::new(),
            attention: None,
            routing: RouterState::default(),
        })
    }

    fn blocks(
        &self,
        range: Range<usize>,
        mut state: BlockState,
        pass: &mut dyn Pass,
        cache: Option<&mut DecodeState>,
    ) -> Result<BlockState, ModelError> {
        check_range(&self.config, &range)?;
        if cache.is_some() {
            return Err(ModelError::NotCausal {
                model_type: self.config.model_type(),
            });
        }
        range.for_each(|layer| self.block(layer, &mut state, pass));
        Ok(state)
    }

    fn readout(&self, state: BlockState, pass: &mut dyn Pass) -> Tensor<2> {
        pass.norm_rows(&self.norm, state.hidden_states, Rows::Chosen)
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        visit(Frozen::Linear(&self.projection));
        visit(Frozen::Norm(&self.patch_norm));
        for (block, (stage, place)) in self.blocks.iter().zip(&self.places) {
            if *place == 0 && *stage > 0 {
                self.mergings[stage - 1].visit_weights(visit);
            }
            block.visit_weights(visit);
        }
        visit(Frozen::Norm(&self.norm));
    }
}
