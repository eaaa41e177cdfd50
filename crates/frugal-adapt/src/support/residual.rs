//! Low-rank adapters that start from a part of the weight itself.
//!
//! The frozen layer is `W − s B₀ A₀`, where `A₀` and `B₀` are the initial factors; with the trained
//! ones the layer is `W + s (B A − B₀ A₀)`, which is LoRA of twice the rank with `[A; A₀]` and
//! `[B, −B₀]`. So the backbone is never changed, and files are plain LoRA files for the original
//! model, as `peft` writes them when it is given the initial adapter.

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Linear, LinearChange, LowRankChange, Mode, Parameter, Pass,
    SiteId, named_rng, to_vec,
};
use serde_json::{Map, Value};

use crate::methods::low_rank::lora::{self, Init, Lora, LoraConfig};
use crate::support::low_rank;
use crate::support::pair::Pair;
use crate::support::per_linear::{bad, frozen_maps, linear_maps};
use crate::support::sparse::Place;
use crate::support::values::kaiming;

/// Initial factors of a weight `[d_out, d_in]`: `A₀ [r, d_in]` and `B₀ [d_out, r]`.
pub(crate) struct Factors {
    pub a: Vec<f32>,
    pub b: Vec<f32>,
}

/// One weight to factorise.
pub(crate) struct Weight {
    /// Row-major `[d_out, d_in]`.
    pub values: Vec<f32>,
    pub d_out: usize,
    pub d_in: usize,
    pub rank: usize,
    /// `s`.
    pub scale: f32,
}

/// An adapter that starts from a part of the weights.
pub(crate) struct Residual {
    method: &'static str,
    lora: Lora,
    /// `A₀` and `−B₀`, indexed by site.
    initial: Vec<Option<(Tensor<2>, Tensor<2>)>>,
}

/// Checks LoRA's settings for such a method.
pub(crate) fn validate(method: &'static str, config: &LoraConfig) -> Result<(), AdaptError> {
    config.validate_for(method)?;
    if config.bias != lora::Bias::None || config.lora_bias {
        return bad(
            method,
            "bias",
            "only the weights are trained: use `bias = \"none\"` and `lora_bias = false`",
        );
    }
    match config.init_lora_weights {
        Init::Default(true) => Ok(()),
        _ => bad(
            method,
            "init_lora_weights",
            "the initial values are this method's own",
        ),
    }
}

impl Residual {
    /// Factorises every selected layer; without a backbone (planning) the factors are zero.
    pub fn new(
        method: &'static str,
        config: LoraConfig,
        context: &BuildContext<'_>,
        factorise: impl Fn(&Weight) -> Factors,
    ) -> Result<Self, AdaptError> {
        let mut adapter = Self::without_start(method, config, context)?;
        let chosen: Vec<SiteId> = context.sites.iter().map(|(id, _)| id).collect();
        for base in frozen_maps(context, &chosen).iter().flatten() {
            let Some(weight) = adapter.weight(base) else {
                continue;
            };
            adapter.begin(base.site, factorise(&weight));
        }
        Ok(adapter)
    }

    /// The same with factors of zero, which leave the weights alone until [`Residual::begin`].
    pub fn without_start(
        method: &'static str,
        config: LoraConfig,
        context: &BuildContext<'_>,
    ) -> Result<Self, AdaptError> {
        validate(method, &config)?;
        let chosen = linear_maps(method, &config.targets(), context)?;
        let mut lora = Lora::named(method, config, context)?;
        let mut initial: Vec<Option<(Tensor<2>, Tensor<2>)>> = vec![None; context.sites.len()];
        for &id in &chosen {
            let (info, Some(pair)) = (context.sites.info(id), lora.pairs[id.index()].as_mut())
            else {
                continue;
            };
            let (rank, d_out, d_in) = (pair.a.shape()[0], info.d_out, info.d_in);
            if 2 * rank > d_in.min(d_out) {
                let reason = format!(
                    "{rank} is more than half of the smaller side of `{}` ({d_out} x {d_in}), and files hold twice the rank: use at most {}",
                    info.path,
                    d_in.min(d_out) / 2
                );
                return bad(method, "r", reason);
            }
            pair.a.set(vec![0.0; rank * d_in]);
            pair.b.set(vec![0.0; d_out * rank]);
            initial[id.index()] = Some(start_of(pair));
        }
        Ok(Self {
            method,
            lora,
            initial,
        })
    }

    /// A layer's weight, where it is adapted.
    pub fn weight(&self, base: &Linear) -> Option<Weight> {
        let pair = self.lora.at(base.site)?;
        Some(Weight {
            values: to_vec(base.weight.dense()),
            d_out: pair.b.shape()[0],
            d_in: pair.a.shape()[1],
            rank: pair.a.shape()[0],
            scale: pair.scale,
        })
    }

    /// Lets a layer start from these factors.
    pub fn begin(&mut self, site: SiteId, factors: Factors) {
        if let Some(pair) = self.lora.pairs[site.index()].as_mut() {
            pair.a.set(factors.a);
            pair.b.set(factors.b);
            self.initial[site.index()] = Some(start_of(pair));
        }
    }

    /// Rank, scale and outputs of a layer.
    pub fn rank_scale_outputs(&self, site: SiteId) -> Option<(usize, f32, usize)> {
        let pair = self.lora.at(site)?;
        Some((pair.a.shape()[0], pair.scale, pair.b.shape()[0]))
    }

    /// Lets a layer of which nothing was seen start as LoRA does.
    pub fn begin_plain(&mut self, place: &Place, seed: u64) {
        let Some((rank, _, d_out)) = self.rank_scale_outputs(place.site) else {
            return;
        };
        let mut rng = named_rng(seed, &place.path);
        let factors = Factors {
            a: kaiming(&mut rng, rank * place.d_in, place.d_in),
            b: vec![0.0; d_out * rank],
        };
        self.begin(place.site, factors);
    }

    /// The initial factors of a layer, `A₀` and `B₀`.
    pub fn start(&self, site: SiteId) -> Option<Factors> {
        let (a, b) = self.initial[site.index()].clone()?;
        Some(Factors {
            a: to_vec(a),
            b: to_vec(b.neg()),
        })
    }

    /// The pair of an adapted layer, and both pairs as one: `[A; A₀]` and `[B, −B₀]`.
    fn at(&self, site: SiteId, mode: Mode) -> Option<(&Pair, Tensor<2>, Tensor<2>)> {
        let (pair, (a0, b0)) = (self.lora.at(site)?, self.initial[site.index()].as_ref()?);
        let a = Tensor::cat(vec![pair.a.get::<2>(mode), same_side(a0, mode)], 0);
        let b = Tensor::cat(vec![pair.b.get::<2>(mode), same_side(b0, mode)], 1);
        Some((pair, a, b))
    }
}

/// `A₀` and `−B₀` of a pair that is as it starts.
fn start_of(pair: &Pair) -> (Tensor<2>, Tensor<2>) {
    let (a, b) = (pair.a.get::<2>(Mode::Eval), pair.b.get::<2>(Mode::Eval));
    (a, b.neg())
}

/// A constant beside trained tensors.
fn same_side(tensor: &Tensor<2>, mode: Mode) -> Tensor<2> {
    if mode.is_train() {
        Tensor::from_inner(tensor.clone())
    } else {
        tensor.clone()
    }
}

struct ResidualPass<'a> {
    adapter: &'a Residual,
    mode: Mode,
}

impl Pass for ResidualPass<'_> {
    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        let Some((pair, a, b)) = self.adapter.at(base.site, self.mode) else {
            return base.forward(x);
        };
        let dropping = low_rank::Dropping {
            p: self.adapter.lora.config.lora_dropout,
            mode: self.mode,
            path: &pair.path,
        };
        low_rank::forward(base, x, a, b, pair.scale, &dropping)
    }

    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        let Some((pair, a, b)) = self.adapter.at(base.site, self.mode) else {
            return LinearChange::None;
        };
        if self.mode.is_train() && self.adapter.lora.config.lora_dropout > 0.0 {
            return LinearChange::Opaque;
        }
        LinearChange::LowRank(LowRankChange {
            a,
            b,
            scale: pair.scale,
        })
    }
}

impl Adapter for Residual {
    fn method(&self) -> &'static str {
        self.method
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.lora.parameters()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.lora.parameters_mut()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(ResidualPass {
            adapter: self,
            mode,
        })
    }

    fn peft_config(&self) -> Map<String, Value> {
        self.lora.peft_config()
    }

    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Ok(self
            .at(base.site, Mode::Eval)
            .map(|(pair, a, b)| b.matmul(a) * pair.scale))
    }

    fn to_inference(&self) -> Option<Box<dyn Adapter>> {
        let doubled = |site: usize| {
            let (pair, a, b) = self.at(SiteId(site as u32), Mode::Eval)?;
            let parameter = |old: &Parameter, value: Tensor<2>| {
                let shape = value.dims();
                Parameter::new(old.name(), &shape, to_vec(value.clone()), &value.device())
            };
            Some((parameter(&pair.a, a), parameter(&pair.b, b)))
        };
        Some(Box::new(self.lora.with_doubled_rank(doubled)))
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}
