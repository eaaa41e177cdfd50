//! What the adapters with a bottleneck share: the network, where it stands in a block, and trained
//! copies of norms.

use burn::prelude::*;
use frugal_nn::{
    AdaptError, BuildContext, Frozen, Mode, Norm, NormChange, Parameter, Pass, SiteId, SiteKind,
    SiteTable, SubLayer, SubLayerIo, TargetError, to_vec,
};
use serde::{Deserialize, Serialize};

use crate::support::dense::Dense;
use crate::target::Layers;

/// What stands between the two layers of a bottleneck.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NonLinearity {
    /// `max(x, 0)`.
    #[default]
    Relu,
    /// `x Φ(x)`.
    Gelu,
    /// The same by the hyperbolic tangent.
    GeluNew,
    /// `x σ(x)`.
    Swish,
    /// Hyperbolic tangent.
    Tanh,
}

impl NonLinearity {
    pub(crate) fn apply(self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Relu => burn::tensor::activation::relu(x),
            Self::Gelu => frugal_kernels::gelu(x),
            Self::GeluNew => frugal_kernels::gelu_tanh(x),
            Self::Swish => frugal_kernels::silu(x),
            Self::Tanh => x.tanh(),
        }
    }
}

/// `f(x W_dᵀ + b_d) W_uᵀ + b_u`.
pub(crate) struct Bottleneck {
    down: Dense,
    up: Dense,
    activation: NonLinearity,
}

impl Bottleneck {
    /// A uniform layer down as in PyTorch, with zero bias, and a zero layer up, so that nothing changes
    /// at first.
    pub fn new(
        name: &str,
        dim: usize,
        activation: NonLinearity,
        context: &BuildContext<'_>,
    ) -> Self {
        let (d, device) = (context.info.hidden_size, &context.device);
        let mut down = Dense::uniform(&format!("{name}.down"), d, dim, context.seed, device);
        down.bias
            .iter_mut()
            .for_each(|bias| bias.set(vec![0.0; dim]));
        Self {
            down,
            up: Dense::zero(&format!("{name}.up"), dim, d, device),
            activation,
        }
    }

    /// The same with no more than the two products.
    pub fn without_bias(mut self) -> Self {
        (self.down.bias, self.up.bias) = (None, None);
        self
    }

    /// `[tokens, d_model]` to the same.
    pub fn forward(&self, x: Tensor<2>, mode: Mode) -> Tensor<2> {
        self.up
            .forward(self.activation.apply(self.down.forward(x, mode)), mode)
    }

    pub fn copy(&self) -> Self {
        Self {
            down: self.down.clone(),
            up: self.up.clone(),
            activation: self.activation,
        }
    }

    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.down.parameters().chain(self.up.parameters())
    }

    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        self.down.parameters_mut().chain(self.up.parameters_mut())
    }
}

/// One thing for each half of each chosen block.
pub(crate) struct PerSubLayer<T> {
    at: Vec<[Option<T>; 2]>,
}

impl<T> PerSubLayer<T> {
    /// Calls `make` with names like `model.layers.0.mlp_adapter` for these halves of these blocks.
    pub fn new(
        method: &'static str,
        layers: Option<&Layers>,
        parts: &[SubLayer],
        context: &BuildContext<'_>,
        mut make: impl FnMut(&str) -> T,
    ) -> Result<Self, AdaptError> {
        let (info, count) = (context.info, context.info.num_hidden_layers);
        if info.is_attention_only && parts.contains(&SubLayer::Mlp) {
            return Err(no_feed_forward(method, info.model_type));
        }
        let mut at: Vec<[Option<T>; 2]> = (0..count).map(|_| [None, None]).collect();
        for layer in chosen_layers(layers, count)? {
            let block = block_path(context.sites, layer);
            for &part in parts {
                let half = match part {
                    SubLayer::Attention => "attention_adapter",
                    SubLayer::Mlp => "mlp_adapter",
                };
                at[layer][part as usize] = Some(make(&format!("{block}.{half}")));
            }
        }
        Ok(Self { at })
    }

    pub fn get(&self, layer: usize, part: SubLayer) -> Option<&T> {
        self.at.get(layer)?[part as usize].as_ref()
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.at.iter().flatten().flatten()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.at.iter_mut().flatten().flatten()
    }

    /// The same with `copy` of each.
    pub fn copy(&self, copy: impl Fn(&T) -> T) -> Self {
        Self {
            at: self
                .at
                .iter()
                .map(|[attention, mlp]| [attention.as_ref().map(&copy), mlp.as_ref().map(&copy)])
                .collect(),
        }
    }

    /// Whether a block has any.
    pub fn has(&self, layer: usize) -> bool {
        self.at
            .get(layer)
            .is_some_and(|halves| halves.iter().any(Option::is_some))
    }
}

impl PerSubLayer<Bottleneck> {
    /// The output of a sub-layer, and `scaling` times that of the network beside it.
    pub fn beside(&self, io: SubLayerIo<'_>, scaling: f64, mode: Mode) -> Tensor<2> {
        match self.get(io.layer, io.kind) {
            Some(network) => io.output + network.forward(io.input.clone(), mode) * scaling,
            None => io.output,
        }
    }
}

/// Why networks beside or behind the feed-forward layer have no place in a model without it.
fn no_feed_forward(method: &'static str, model_type: &str) -> AdaptError {
    let reason = format!(
        "the blocks of `{model_type}` models have no feed-forward layer to put a network at: use a method that changes linear \
         layers"
    );
    AdaptError::Unsupported {
        method,
        action: "be used here",
        reason,
    }
}

/// Block numbers that `layers_to_transform` means; all without it.
pub(crate) fn chosen_layers(
    layers: Option<&Layers>,
    count: usize,
) -> Result<Vec<usize>, AdaptError> {
    let chosen = match layers {
        None => (0..count).collect(),
        Some(Layers::One(layer)) => vec![*layer],
        Some(Layers::Many(layers)) => layers.clone(),
    };
    match chosen.iter().find(|layer| **layer >= count) {
        Some(&layer) => Err(TargetError::Layer {
            layer,
            last: count.saturating_sub(1),
        }
        .into()),
        None => Ok(chosen),
    }
}

/// Path of a block, for example `model.layers.0`; a block whose layers all belong to others has the
/// path that it would have.
pub(crate) fn block_path(sites: &SiteTable, layer: usize) -> String {
    let path_of = |path: &str, number: usize| {
        let number = number.to_string();
        let components: Vec<&str> = path.split('.').collect();
        let at = components.iter().position(|c| *c == number)?;
        Some(components[..at].join("."))
    };
    let numbered = || sites.iter().filter_map(|(_, s)| Some((s, s.layer?)));
    let own = numbered().filter(|(_, number)| *number == layer);
    let before = own
        .chain(numbered())
        .find_map(|(site, number)| path_of(&site.path, number));
    format!("{}.{layer}", before.as_deref().unwrap_or("model.layers"))
}

/// Trained copies of the norms of some blocks, indexed by site.
#[derive(Default)]
pub(crate) struct TrainedNorms {
    at: Vec<Option<(Parameter, Option<Parameter>)>>,
}

impl TrainedNorms {
    /// Copies the norms of the blocks for which `wanted`; without a backbone (planning) they start
    /// at one and zero.
    pub fn new(context: &BuildContext<'_>, wanted: impl Fn(usize) -> bool) -> Self {
        let mut at: Vec<Option<(Parameter, Option<Parameter>)>> =
            (0..context.sites.len()).map(|_| None).collect();
        let mut set = |id: SiteId, weight: Vec<f32>, bias: Option<Vec<f32>>| {
            let info = context.sites.info(id);
            if info.layer.is_some_and(&wanted) {
                let new = |kind: &str, values: Vec<f32>| {
                    Parameter::new(
                        format!("{}.{kind}", info.path),
                        &[values.len()],
                        values,
                        &context.device,
                    )
                };
                at[id.index()] = Some((new("weight", weight), bias.map(|bias| new("bias", bias))));
            }
        };
        match context.backbone {
            Some(backbone) => backbone.visit_weights(&mut |part| {
                if let Frozen::Norm(norm) = part {
                    set(
                        norm.site,
                        to_vec(norm.weight.clone()),
                        norm.bias.clone().map(to_vec),
                    );
                }
            }),
            None => {
                for (id, info) in context
                    .sites
                    .iter()
                    .filter(|(_, info)| info.kind == SiteKind::Norm)
                {
                    set(
                        id,
                        vec![1.0; info.d_out],
                        info.has_bias.then(|| vec![0.0; info.d_out]),
                    );
                }
            }
        }
        Self { at }
    }

    /// Gain and bias of the norm, trained where there is a copy.
    pub fn change(&self, base: &Norm, mode: Mode) -> NormChange {
        match self.at.get(base.site.index()).and_then(Option::as_ref) {
            Some((weight, bias)) => {
                NormChange::Parameters(weight.get(mode), bias.as_ref().map(|bias| bias.get(mode)))
            }
            None => NormChange::None,
        }
    }

    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.at
            .iter()
            .flatten()
            .flat_map(|(weight, bias)| std::iter::once(weight).chain(bias))
    }

    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        self.at
            .iter_mut()
            .flatten()
            .flat_map(|(weight, bias)| std::iter::once(weight).chain(bias))
    }
}

/// What stands behind the feed-forward of some blocks and adds to the residual stream.
pub(crate) trait BlockNetworks {
    /// Whether a block has any.
    fn has(&self, layer: usize) -> bool;

    /// What it adds for its input `[tokens, d_model]`.
    fn added(&self, layer: usize, x: Tensor<2>, mode: Mode) -> Option<Tensor<2>>;

    /// What it adds to the loss.
    fn auxiliary_loss(&self, _mode: Mode) -> Option<Tensor<1>> {
        None
    }
}

/// A pass with networks behind the feed-forward: encoders with norms behind the sum compute
/// `norm(x + m + a(norm(x + m)))`, decoders with norms in front `x + m + a(x + m)`.
pub(crate) struct BehindPass<'a, T> {
    networks: &'a T,
    mode: Mode,
    /// The norm behind the sum that comes next, and its block.
    pending: Option<(SiteId, usize)>,
}

impl<'a, T> BehindPass<'a, T> {
    pub fn new(networks: &'a T, mode: Mode) -> Self {
        Self {
            networks,
            mode,
            pending: None,
        }
    }
}

impl<T: BlockNetworks> Pass for BehindPass<'_, T> {
    fn norm(&mut self, base: &Norm, x: Tensor<2>) -> Tensor<2> {
        let normed = |x: Tensor<2>| base.apply(x, base.weight.clone(), base.bias.clone());
        let pending = self.pending.take_if(|(site, _)| *site == base.site);
        let added =
            pending.and_then(|(_, layer)| self.networks.added(layer, normed(x.clone()), self.mode));
        match added {
            Some(added) => normed(x + added),
            None => normed(x),
        }
    }

    fn norm_change(&mut self, base: &Norm) -> NormChange {
        match self.pending {
            Some((site, _)) if site == base.site => NormChange::Opaque,
            _ => NormChange::None,
        }
    }

    fn sub_layer(&mut self, io: SubLayerIo<'_>) -> Tensor<2> {
        if io.kind != SubLayer::Mlp || !self.networks.has(io.layer) {
            return io.output;
        }
        if let Some(norm) = io.norm_behind {
            self.pending = Some((norm.site, io.layer));
            return io.output;
        }
        let sum = io.residual.clone() + io.output.clone();
        match self.networks.added(io.layer, sum, self.mode) {
            Some(added) => io.output + added,
            None => io.output,
        }
    }

    fn auxiliary_loss(&mut self) -> Option<Tensor<1>> {
        self.networks.auxiliary_loss(self.mode)
    }
}

/// Why a network with a non-linearity cannot be merged.
pub(crate) fn not_linear(method: &'static str) -> AdaptError {
    let reason = "its networks are not linear, so no weight can express them; ship the adapter beside the model".into();
    AdaptError::Unsupported {
        method,
        action: "be merged",
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use frugal_models::ModelConfig;

    #[test]
    fn blocks_have_the_path_that_their_maps_share() {
        let config = serde_json::json!({"model_type": "bert", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 12,
            "num_attention_heads": 4, "vocab_size": 64, "max_position_embeddings": 64, "type_vocab_size": 2});
        let sites = ModelConfig::from_json(config, "test").unwrap().sites();
        assert_eq!(block_path(&sites, 11), "bert.encoder.layer.11");
    }

    #[test]
    fn a_block_that_is_not_there_is_named() {
        let message = chosen_layers(Some(&Layers::Many(vec![0, 7])), 6)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("block 7") && message.contains("0 to 5"),
            "{message}"
        );
    }
}
