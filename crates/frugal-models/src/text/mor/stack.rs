//! The layers of a model that shares them, over the tokens that are still in.

use burn::prelude::*;
use frugal_nn::layers::Norm;
use frugal_nn::state::DecodeState;
use frugal_nn::{BlockAction, Frozen, ModelError, Pass, RotaryTable, SubLayer, SubLayerIo};

use super::active::Active;
use super::keys_values::{Shared, attend_to_first, spread};
use super::spec::MorSpec;
use crate::architecture::ModelConfig;
use crate::blocks::attention::{Attend, SelfAttention, attend};
use crate::blocks::gated_mlp::{FeedForward, GatedMlp};
use crate::blocks::gqa::GroupedQueryAttention;
use crate::weights::WeightLoader;

/// The weights of one layer, which several unrolled layers may have.
struct Layer {
    attention: GroupedQueryAttention,
    mlp: GatedMlp,
}

/// All layers.
pub(super) struct Stack {
    config: ModelConfig,
    spec: MorSpec,
    /// By the first unrolled layer that has them.
    layers: Vec<Option<Layer>>,
    /// In front of attention and feed-forward layer, by the first unrolled layer that has them.
    norms: Vec<Option<[Norm; 2]>>,
}

/// Where a layer is computed.
pub(super) struct At<'a> {
    /// The tokens that attend and are attended to.
    pub active: &'a Active,
    /// Whether all rows of the batch go through, of which only `active`'s count: for passes that tell
    /// sequences apart by their rows.
    pub whole: bool,
    /// Angles of the rows that go through.
    pub rotary: RotaryTable,
}

impl Stack {
    /// Takes the weights from `loader`.
    ///
    /// # Errors
    /// Whatever reading a tensor gives.
    pub fn load(
        config: &ModelConfig,
        spec: &MorSpec,
        loader: &mut WeightLoader<'_>,
    ) -> Result<Self, ModelError> {
        let (plan, eps) = (&spec.plan, config.norm_eps);
        let (mut layers, mut norms) = (Vec::new(), Vec::new());
        for l in 0..plan.layers() {
            let path = format!("model.layers.{l}");
            layers.push(if plan.first(l) == l {
                let p = format!("{path}.self_attn");
                Some(Layer {
                    attention: GroupedQueryAttention::load(config, spec.attention, loader, &p)?,
                    mlp: GatedMlp::load(config.activation, loader, &format!("{path}.mlp"))?,
                })
            } else {
                None
            });
            norms.push(if spec.norm_layer(l) == l {
                let mut norm = |name: &str| loader.rms_norm(&format!("{path}.{name}"), eps, 0.0);
                Some([norm("input_layernorm")?, norm("post_attention_layernorm")?])
            } else {
                None
            });
        }
        Ok(Self {
            config: config.clone(),
            spec: spec.clone(),
            layers,
            norms,
        })
    }

    /// What it is.
    pub fn spec(&self) -> &MorSpec {
        &self.spec
    }

    /// One layer: rows `[rows, d_model]` of the residual stream to the same.
    pub fn layer(
        &self,
        layer: usize,
        at: &At<'_>,
        x: Tensor<2>,
        pass: &mut dyn Pass,
        cache: Option<&mut DecodeState>,
        shared: &mut Shared,
    ) -> Tensor<2> {
        let first = self.spec.plan.first(layer);
        let norms = self.norms[self.spec.norm_layer(layer)].as_ref();
        let (Some(weights), Some([input_norm, mlp_norm])) = (&self.layers[first], norms) else {
            unreachable!("a layer's weights are where the plan has them first");
        };
        if pass.before_block(layer, &x) == BlockAction::Skip {
            return x;
        }
        let y = pass.norm(input_norm, x.clone());
        pass.before_sub_layer(layer, SubLayer::Attention, &y);
        let a = self.attention(
            layer,
            &weights.attention,
            at,
            y.clone(),
            pass,
            cache,
            shared,
        );
        let a = pass.sub_layer(SubLayerIo {
            layer,
            kind: SubLayer::Attention,
            input: &y,
            output: a,
            residual: &x,
            norm_behind: None,
        });
        let [h, y] = pass.add_norm(mlp_norm, x, a);
        pass.before_sub_layer(layer, SubLayer::Mlp, &y);
        let m = weights.mlp.forward(layer, y.clone(), pass);
        let m = pass.sub_layer(SubLayerIo {
            layer,
            kind: SubLayer::Mlp,
            input: &y,
            output: m,
            residual: &h,
            norm_behind: None,
        });
        let x = frugal_kernels::add(h, m);
        pass.after_block(layer, &x);
        x
    }

    #[allow(clippy::too_many_arguments, reason = "a layer's inputs")]
    fn attention(
        &self,
        layer: usize,
        weights: &GroupedQueryAttention,
        at: &At<'_>,
        x: Tensor<2>,
        pass: &mut dyn Pass,
        mut cache: Option<&mut DecodeState>,
        shared: &mut Shared,
    ) -> Tensor<2> {
        let (active, first) = (at.active, self.spec.plan.first(layer));
        let attend_at = Attend {
            sequences: Some(&active.sequences),
            ..Attend::new(&self.config, &active.layout, layer, true)
        };
        let of_active = |rows: Tensor<2>| {
            if at.whole { active.select(rows) } else { rows }
        };
        let head_dim = self.config.head_dim;
        let q = of_active(weights.queries(head_dim, &at.rotary, x.clone(), pass));
        let kept = (self.spec.kv_sharing && first != layer)
            .then(|| shared.of(first, active, cache.as_deref(), &q.device().inner()))
            .flatten();
        let heads = if let Some(kept) = kept {
            attend_to_first(&attend_at, q, kept)
        } else {
            let own = weights.keys_and_values(head_dim, &at.rotary, x, pass);
            let [k, v] = own.map(of_active);
            if self.spec.kv_sharing && cache.is_none() {
                shared.keep(layer, active, [k.clone(), v.clone()]);
            }
            if let Some(cache) = cache.as_deref_mut() {
                active.route(layer, cache);
            }
            attend(&attend_at, q, k, v, pass, cache)
        };
        let heads = if at.whole {
            spread(active, heads)
        } else {
            heads
        };
        weights.output(heads, pass)
    }

    /// Shows every frozen part once.
    pub fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        for (layer, norms) in self.layers.iter().zip(&self.norms) {
            let norms = norms.iter().flatten();
            norms.for_each(|norm| visit(Frozen::Norm(norm)));
            if let Some(layer) = layer {
                layer.attention.visit_weights(visit);
                layer.mlp.visit_weights(visit);
            }
        }
    }
}
