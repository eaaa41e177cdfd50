//! A decoder whose blocks are one norm and one mixer each, as state space models have it.

use std::ops::Range;
use std::sync::Arc;

use burn::prelude::*;
use frugal_nn::layers::{Embedding, Linear, Norm};
use frugal_nn::layout::Input;
use frugal_nn::rows::drop_prepended;
use frugal_nn::site::SiteTable;
use frugal_nn::state::{DecodeState, StateOptions};
use frugal_nn::{
    Backbone, BackboneInfo, BlockAction, BlockState, Frozen, LayerState, ModelError, Pass,
    RouterState, SequenceLayout, SubLayer, SubLayerIo,
};

use crate::architecture::ModelConfig;
use crate::blocks::checks::{check_range, look_up};
use crate::blocks::controlled::refuse_control;
use crate::blocks::prefix::{TwoWays, control_of};
use crate::weights::WeightLoader;

/// What mixes the tokens of a block.
pub trait Mixer: Send + Sync {
    /// `[tokens, hidden_size]` to the same; sequences do not see each other. With a state, each goes
    /// on from what `layer` remembers of it.
    fn forward(
        &self,
        layer: usize,
        layout: &SequenceLayout,
        x: Tensor<2>,
        pass: &mut dyn Pass,
        cache: Option<&mut DecodeState>,
    ) -> Tensor<2>;

    /// [`Mixer::forward`] where a pass may say which part of each sequence is read in both
    /// directions; only mixers of a decoder that is loaded for it are asked.
    fn forward_controlled(
        &self,
        layer: usize,
        state: &BlockState,
        x: Tensor<2>,
        pass: &mut dyn Pass,
        cache: Option<&mut DecodeState>,
    ) -> Tensor<2> {
        self.forward(layer, &state.layout, x, pass, cache)
    }

    /// Shows every frozen part once.
    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>));
}

struct Block {
    norm: Norm,
    mixer: Box<dyn Mixer>,
}

/// A frozen decoder of mixers, under the names of `MambaForCausalLM`.
pub struct MixerDecoder {
    config: ModelConfig,
    info: BackboneInfo,
    sites: Arc<SiteTable>,
    device: Device,
    embeddings: Embedding,
    blocks: Vec<Block>,
    norm_f: Norm,
    lm_head: Option<Linear>,
    /// Of mixers that may read in both directions.
    two_ways: Option<TwoWays>,
}

impl MixerDecoder {
    /// Takes the weights from `loader`; the mixer of each block comes from this function, which is
    /// given the path that it is under.
    ///
    /// # Errors
    /// Whatever reading a tensor gives.
    pub fn load(
        config: &ModelConfig,
        sites: Arc<SiteTable>,
        loader: &mut WeightLoader<'_>,
        mixer: impl Fn(&mut WeightLoader<'_>, &str) -> Result<Box<dyn Mixer>, ModelError>,
    ) -> Result<Arc<dyn Backbone>, ModelError> {
        Self::load_two_ways(config, sites, loader, None, |loader, path, _| {
            mixer(loader, path)
        })
    }

    /// [`MixerDecoder::load`] with mixers that may read in both directions, which are given the
    /// number of their block.
    ///
    /// # Errors
    /// Whatever reading a tensor gives.
    pub(crate) fn load_two_ways(
        config: &ModelConfig,
        sites: Arc<SiteTable>,
        loader: &mut WeightLoader<'_>,
        two_ways: Option<TwoWays>,
        mixer: impl Fn(&mut WeightLoader<'_>, &str, usize) -> Result<Box<dyn Mixer>, ModelError>,
    ) -> Result<Arc<dyn Backbone>, ModelError> {
        let eps = config.norm_eps;
        let mut blocks = Vec::with_capacity(config.num_hidden_layers);
        for i in 0..config.num_hidden_layers {
            let path = format!("backbone.layers.{i}");
            blocks.push(Block {
                norm: loader.rms_norm(&format!("{path}.norm"), eps, 0.0)?,
                mixer: mixer(loader, &format!("{path}.mixer"), i)?,
            });
        }
        let embeddings = loader.embedding("backbone.embeddings")?;
        let lm_head = loader.lm_head(&embeddings)?;
        Ok(Arc::new(Self {
            norm_f: loader.rms_norm("backbone.norm_f", eps, 0.0)?,
            info: config.info(),
            device: loader.device().clone(),
            config: config.clone(),
            sites,
            embeddings,
            blocks,
            lm_head,
            two_ways,
        }))
    }

    fn block(
        &self,
        layer: usize,
        state: &mut BlockState,
        pass: &mut dyn Pass,
        cache: Option<&mut DecodeState>,
    ) {
        let block = &self.blocks[layer];
        let x = state.hidden_states.clone();
        if pass.before_block(layer, &x) == BlockAction::Skip {
            return;
        }
        let y = pass.norm(&block.norm, x.clone());
        pass.before_sub_layer(layer, SubLayer::Attention, &y);
        let mixed = block
            .mixer
            .forward_controlled(layer, state, y.clone(), pass, cache);
        let mixed = pass.sub_layer(SubLayerIo {
            layer,
            kind: SubLayer::Attention,
            input: &y,
            output: mixed,
            residual: &x,
            norm_behind: None,
        });
        state.hidden_states = frugal_kernels::add(x, mixed);
        pass.after_block(layer, &state.hidden_states);
    }
}

impl Backbone for MixerDecoder {
    fn info(&self) -> &BackboneInfo {
        &self.info
    }

    fn new_state(
        &self,
        sequences: usize,
        options: StateOptions,
    ) -> Result<DecodeState, ModelError> {
        let layers = vec![LayerState::recurrent(); self.blocks.len()];
        Ok(DecodeState::new(layers, sequences, options))
    }

    fn sites(&self) -> &Arc<SiteTable> {
        &self.sites
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn stem(&self, input: &Input<'_>, pass: &mut dyn Pass) -> Result<BlockState, ModelError> {
        let rows = look_up(&self.config, &self.embeddings, None, input, pass)?;
        if pass.prefix_length() > 0 {
            let reason = "there is no attention that keys and values could be put in front of: use a method that changes weights or the input";
            return Err(ModelError::Method {
                model_type: self.config.model_type(),
                reason: reason.into(),
            });
        }
        let mut layout = input.layout.clone();
        let hidden_states = pass.embed(rows, &mut layout);
        let attention = match self.two_ways {
            Some(two_ways) => control_of(two_ways, self.blocks.len(), input, &layout, pass)?,
            None => refuse_control(self.config.model_type(), &layout, pass).map(|()| None)?,
        };
        Ok(BlockState {
            hidden_states,
            layout,
            rotary: Vec::new(),
            attention,
            routing: RouterState::default(),
        })
    }

    fn blocks(
        &self,
        range: Range<usize>,
        mut state: BlockState,
        pass: &mut dyn Pass,
        mut cache: Option<&mut DecodeState>,
    ) -> Result<BlockState, ModelError> {
        check_range(&self.config, &range)?;
        if let Some(cache) = &cache {
            cache.check(&state.layout, self.blocks.len())?;
        }
        for layer in range {
            self.block(layer, &mut state, pass, cache.as_deref_mut());
        }
        Ok(state)
    }

    fn readout(&self, state: BlockState, pass: &mut dyn Pass) -> Tensor<2> {
        drop_prepended(pass.norm(&self.norm_f, state.hidden_states), &state.layout)
    }

    fn lm_head(&self) -> Option<&Linear> {
        self.lm_head.as_ref()
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        visit(Frozen::Embedding(&self.embeddings));
        for block in &self.blocks {
            visit(Frozen::Norm(&block.norm));
            block.mixer.visit_weights(visit);
        }
        visit(Frozen::Norm(&self.norm_f));
        if let Some(head) = &self.lm_head {
            visit(Frozen::Linear(head));
        }
    }
}
