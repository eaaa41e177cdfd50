//! The forward pass: layers that several recursion steps share, each over the tokens that are still
//! in.

use std::ops::Range;
use std::sync::Arc;

use burn::prelude::*;
use frugal_nn::layers::{Embedding, Linear, Norm};
use frugal_nn::rows::drop_prepended;
use frugal_nn::state::{DecodeState, StateOptions};
use frugal_nn::{
    Backbone, BackboneInfo, BlockState, Frozen, Input, LayerState, ModelError, Pass, RouterState,
    SiteTable,
};

use super::active::Active;
use super::keys_values::Shared;
use super::routes::Routes;
use super::settings::{RouterSpec, Routing};
use super::spec::MorSpec;
use super::stack::{At, Stack};
use crate::architecture::ModelConfig;
use crate::blocks::checks::{check_range, look_up};
use crate::blocks::controlled::refuse_control;
use crate::keys::bad;
use crate::rope::rotary_table;
use crate::weights::WeightLoader;

/// A frozen decoder of shared layers.
pub(super) struct MorBackbone {
    config: ModelConfig,
    info: BackboneInfo,
    sites: Arc<SiteTable>,
    device: Device,
    embed_tokens: Embedding,
    stack: Stack,
    routes: Option<Routes>,
    norm: Norm,
    lm_head: Option<Linear>,
}

impl MorBackbone {
    /// Takes the weights from `loader`.
    ///
    /// # Errors
    /// Whatever reading a tensor gives.
    pub fn load(
        config: &ModelConfig,
        spec: &MorSpec,
        sites: Arc<SiteTable>,
        loader: &mut WeightLoader<'_>,
    ) -> Result<Arc<dyn Backbone>, ModelError> {
        let stack = Stack::load(config, spec, loader)?;
        let routes = match &spec.router {
            Some(router) => Some(Routes::load(loader, router, &spec.plan)?),
            None => None,
        };
        let embed_tokens = loader.embedding("model.embed_tokens")?;
        let lm_head = loader.lm_head(&embed_tokens)?;
        Ok(Arc::new(Self {
            norm: loader.rms_norm("model.norm", config.norm_eps, 0.0)?,
            info: config.info(),
            device: loader.device().clone(),
            config: config.clone(),
            sites,
            embed_tokens,
            stack,
            routes,
            lm_head,
        }))
    }

    /// Layers that all tokens go through, in order.
    fn plain(
        &self,
        layers: Range<usize>,
        state: &mut BlockState,
        pass: &mut dyn Pass,
        mut cache: Option<&mut DecodeState>,
        shared: &mut Shared,
    ) {
        for layer in layers {
            let active = Active::all(&state.layout).with_past(layer, cache.as_deref());
            let at = At {
                active: &active,
                whole: false,
                rotary: state.rotary[0].clone(),
            };
            let x = state.hidden_states.clone();
            let cache = cache.as_deref_mut();
            state.hidden_states = self.stack.layer(layer, &at, x, pass, cache, shared);
        }
    }

    fn refused(&self, reason: &str) -> ModelError {
        ModelError::Method {
            model_type: self.config.model_type(),
            reason: reason.into(),
        }
    }
}

impl Backbone for MorBackbone {
    fn info(&self) -> &BackboneInfo {
        &self.info
    }

    fn sites(&self) -> &Arc<SiteTable> {
        &self.sites
    }

    fn device(&self) -> &Device {
        &self.device
    }

    /// A recursion step holds keys and values of its own tokens only; with `kv_sharing` all steps
    /// read the first one's.
    fn new_state(
        &self,
        sequences: usize,
        options: StateOptions,
    ) -> Result<DecodeState, ModelError> {
        if let Some(RouterSpec::Expert(spec)) = &self.stack.spec().router
            && spec.inference_routing == Routing::TopK
        {
            let reason = "top_k chooses among the tokens of a whole text, of which generation does not know the rest: set it to threshold";
            return Err(bad(&self.config.source, "inference_routing", reason));
        }
        let plan = &self.stack.spec().plan;
        let layers = (0..plan.layers()).map(|layer| {
            let repeats = plan.first(layer) != layer;
            let routed = self.routes.is_some() && plan.shared().contains(&layer);
            let begins_with_all = match &self.stack.spec().router {
                Some(RouterSpec::Expert(spec)) => spec.begins_with_all(),
                _ => true,
            };
            if (repeats && (routed || self.stack.spec().kv_sharing)) || (routed && !begins_with_all)
            {
                LayerState::routed()
            } else {
                LayerState::key_value()
            }
        });
        Ok(DecodeState::new(layers.collect(), sequences, options))
    }

    fn stem(&self, input: &Input<'_>, pass: &mut dyn Pass) -> Result<BlockState, ModelError> {
        let c = &self.config;
        let rows = look_up(c, &self.embed_tokens, None, input, pass)?;
        if pass.prefix_length() > 0 && self.stack.spec().kv_sharing {
            return Err(self.refused(
                "with `kv_sharing` the steps have no keys and values of their own that others could be put in front of: use a method that changes weights or the input",
            ));
        }
        let mut layout = input.layout.clone();
        let hidden_states = pass.embed(rows, &mut layout);
        refuse_control(c.model_type(), &layout, pass)?;
        let (offset, positions) = (pass.prefix_length() as u32, c.max_position_embeddings);
        let table = rotary_table(
            &self.stack.spec().rope,
            c.head_dim,
            positions,
            &layout,
            offset,
            &self.device,
        );
        Ok(BlockState {
            hidden_states,
            layout,
            rotary: vec![table],
            attention: None,
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
            cache.check(&state.layout, self.stack.spec().plan.layers())?;
        }
        let mut shared = Shared::default();
        let part = self.stack.spec().plan.shared();
        let inside = range.start.max(part.start)..range.end.min(part.end);
        let together = self.routes.is_some() || self.stack.spec().kv_sharing;
        if together && !inside.is_empty() && inside != part {
            return Err(self.refused(&format!(
                "blocks {} to {} are steps of one stack, which runs as a whole or not at all",
                part.start,
                part.end - 1
            )));
        }
        let Some(routes) = self.routes.as_ref().filter(|_| !inside.is_empty()) else {
            self.plain(range, &mut state, pass, cache, &mut shared);
            return Ok(state);
        };
        let before = range.start..part.start;
        self.plain(before, &mut state, pass, cache.as_deref_mut(), &mut shared);
        routes.run(
            &self.stack,
            &mut state,
            pass,
            cache.as_deref_mut(),
            &mut shared,
        );
        self.plain(part.end..range.end, &mut state, pass, cache, &mut shared);
        Ok(state)
    }

    fn readout(&self, state: BlockState, pass: &mut dyn Pass) -> Tensor<2> {
        drop_prepended(pass.norm(&self.norm, state.hidden_states), &state.layout)
    }

    fn lm_head(&self) -> Option<&Linear> {
        self.lm_head.as_ref()
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        visit(Frozen::Embedding(&self.embed_tokens));
        self.stack.visit_weights(visit);
        if let Some(routes) = &self.routes {
            routes
                .params()
                .for_each(|param| visit(Frozen::Param(param)));
        }
        visit(Frozen::Norm(&self.norm));
        if let Some(head) = &self.lm_head {
            visit(Frozen::Linear(head));
        }
    }
}
