//! # Lily: low-rank interconnected adaptation across layers
//!
//! ## What it does
//! Layers of a kind share their factors: neighbouring ones the first, all of them several second ones,
//! of which each layer takes a mixture that follows from what it reads.
//!
//! ## Update rule
//! `y = x Wᵀ + s (x Aᵀ) Σₑ pₑ Bₑ` with `A [r, d_in]` shared by `stride_A` layers in a row, `Bₑ [r, d_out]`, `e ≤ num_B`, by all
//! layers of a kind, and `p` the mean over the tokens of a sequence of `softmax(x Aᵀ Rᵀ)`, `R [num_B, r]` the layer's
//! own.
//!
//! ## When to use, when not
//! Where LoRA's rank is too low at a budget: shared factors allow one two to four times as high. The
//! mixture of a sequence depends on all of its tokens, those behind too, so what a decoder computes of a prompt
//! changes with the prompt's end, and generation mixes for each new token by that token alone. It cannot be merged.
//!
//! ## Cost
//! Trainable, for each kind of `n` layers: `⌈n / stride_A⌉ r d_in + num_B r d_out + n num_B r`. Extra compute: LoRA's, and
//! mixing `Bₑ` for every sequence.
//!
//! ## Defaults and where they come from
//! `r = 32`, `stride_A = 1`, `num_B = 2`, `scaling = 1`: Hugging Face `peft`. `A` and `R` are Kaiming-uniform, `B` zero. Layers are
//! of a kind where the same entry of `target_modules` selects them (one expression is one kind) and their sides are equal.
//!
//! ## Departures from the paper
//! Padding does not count and sequences of a batch do not mix: `peft` takes the mean over all
//! positions of a batch. For one sequence the results are equal.
//!
//! ## References
//! - Zhong, Zhou: Low-Rank Interconnected Adaptation Across Layers, 2024, arXiv 2407.09946.

use burn::prelude::*;
use burn::tensor::activation::softmax;
use frugal_nn::{AdaptError, Adapter, BuildContext, Parameter, SiteInfo, mean_pool, named_rng};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::sizes::most_rank;
use crate::support::per_linear::{self, LinearAdapter, LinearSite, PerLinear, bad, linear_maps};
use crate::support::values::kaiming;
use crate::target::{Names, Targets};

const NAME: &str = "lily";

/// Registry entry.
pub const METHOD: Method = Method::of::<LilyConfig>(
    Family::Shared,
    "Low-rank factors that layers share, mixed by what each layer reads",
    include_str!("lily.rs"),
)
.default_lr(1e-3)
.without_merge()
.without_causality();

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LilyConfig {
    /// Rank.
    pub r: usize,
    /// Layers in a row that share `A`.
    #[serde(rename = "stride_A")]
    pub stride_a: usize,
    /// Second factors of a kind of layers.
    #[serde(rename = "num_B")]
    pub num_b: usize,
    /// Factor on the change.
    pub scaling: f64,
    /// `true`: zero `B`. `false`: random, for tests.
    pub init_weights: bool,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for LilyConfig {
    fn default() -> Self {
        Self {
            r: 32,
            stride_a: 1,
            num_b: 2,
            scaling: 1.0,
            init_weights: true,
            targets: Targets::default(),
        }
    }
}

impl MethodConfig for LilyConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "LILY";

    fn validate(&self) -> Result<(), AdaptError> {
        for (field, value, least) in [
            ("r", self.r, 1),
            ("stride_A", self.stride_a, 1),
            ("num_B", self.num_b, 2),
        ] {
            if value < least {
                return bad(NAME, field, format!("must be at least {least}"));
            }
        }
        match self.scaling.is_finite() {
            true => Ok(()),
            false => bad(NAME, "scaling", "must be a finite number"),
        }
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        let settings = per_linear::from_peft::<LilyConfig>(NAME, config, json!({}), &[])?;
        // The values come from the file.
        let own = [("init_weights".to_owned(), json!(true))];
        Ok(settings.into_iter().chain(own).collect())
    }
}

/// What the entry of the targets is called that selects this layer: the longest of several.
fn kind(targets: &Targets, info: &SiteInfo) -> String {
    let path = &info.path;
    let last = || path.rsplit('.').next().unwrap_or(path).to_owned();
    match &targets.target_modules {
        // Spelled out in files.
        Names::Pattern(all) if all == "all-linear" => last(),
        Names::Pattern(pattern) => pattern.clone(),
        Names::List(names) => {
            let matching = names.iter().filter(|name| path.ends_with(name.as_str()));
            matching
                .max_by_key(|n| n.len())
                .cloned()
                .unwrap_or_else(last)
        }
    }
}

fn build(config: LilyConfig, context: &BuildContext<'_>) -> Result<PerLinear<Mixed>, AdaptError> {
    config.validate()?;
    let mut shared: Vec<Parameter> = Vec::new();
    // Kind, sides, layers so far, where the last `A` and `B` are.
    let mut kinds: Vec<(String, [usize; 2], usize, usize, usize)> = Vec::new();
    let (r, num_b) = (config.r, config.num_b);
    let mut places = vec![(0, 0); context.sites.len()];
    for id in linear_maps(NAME, &config.targets, context)? {
        let info = context.sites.info(id);
        let (path, d_in, d_out) = (&info.path, info.d_in, info.d_out);
        if r > most_rank(d_in, d_out) {
            let reason = format!("rank {r} is more than `{path}` ({d_out} x {d_in}) has a use for");
            return bad(NAME, "r", reason);
        }
        if num_b.saturating_mul(r) > most_rank(d_in, d_out) {
            let reason = format!("{num_b} factors are more than `{path}` has a use for");
            return bad(NAME, "num_B", reason);
        }
        let kind = kind(&config.targets, info);
        let mut rng = named_rng(context.seed, path);
        let mut add = |name: &str, shape: [usize; 2], values: Vec<f32>| {
            let name = format!("{path}.lily_{name}.weight");
            shared.push(Parameter::new(name, &shape, values, &context.device));
            shared.len() - 1
        };
        let sides = [d_in, d_out];
        let known = kinds
            .iter_mut()
            .find(|(k, s, ..)| *k == kind && *s == sides);
        let a = kaiming(&mut rng, r * d_in, d_in);
        let (a, b) = match known {
            Some((_, _, count, at_a, at_b)) => {
                if count.is_multiple_of(config.stride_a) {
                    *at_a = add("A", [r, d_in], a);
                } else {
                    shared[*at_a] = shared[*at_a]
                        .clone()
                        .also_as(format!("{path}.lily_A.weight"));
                }
                shared[*at_b] = shared[*at_b]
                    .clone()
                    .also_as(format!("{path}.lily_B.weight"));
                *count += 1;
                (*at_a, *at_b)
            }
            None => {
                let at_a = add("A", [r, d_in], a);
                let values = match config.init_weights {
                    true => vec![0.0; num_b * r * d_out],
                    false => kaiming(&mut rng, num_b * r * d_out, d_out),
                };
                let at_b = add("B", [num_b * r, d_out], values);
                kinds.push((kind, sides, 1, at_a, at_b));
                (at_a, at_b)
            }
        };
        places[id.index()] = (a, b);
    }
    let adapter = PerLinear::new(
        &METHOD,
        &config.targets,
        context,
        &config,
        json!({}),
        |id, info| {
            let mut rng = named_rng(context.seed, &format!("{}.lily_router", info.path));
            let values = kaiming(&mut rng, num_b * r, r);
            let name = format!("{}.lily_router.weight", info.path);
            let (a, b) = places[id.index()];
            Ok(Mixed {
                router: Parameter::new(name, &[num_b, r], values, &context.device),
                a,
                b,
                scale: config.scaling as f32,
            })
        },
    )?;
    Ok(adapter.with_shared(shared, true))
}

/// How one layer mixes what it shares.
struct Mixed {
    /// `[num_B, r]`.
    router: Parameter,
    /// Number of `A [r, d_in]` among what is shared.
    a: usize,
    /// Number of all `Bₑ [num_B r, d_out]` among what is shared.
    b: usize,
    scale: f32,
}

impl LinearAdapter for Mixed {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.router]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.router]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        // Nothing that one weight could hold.
        at.base.weight.dense().zeros_like()
    }

    fn mixes(&self) -> Option<&'static str> {
        Some("it mixes by what a sequence reads; ship the adapter beside the model")
    }

    fn materializes_weight(&self) -> bool {
        false
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        let y = at.base.forward(x.clone());
        let [num_b, r] = [self.router.shape()[0], self.router.shape()[1]];
        let (a, b) = (&at.shared[self.a], &at.shared[self.b]);
        let d_out = b.shape()[1];
        let low = frugal_kernels::linear(x, a.get::<2>(at.mode), None);
        let logits = frugal_kernels::linear(low.clone(), self.router.get::<2>(at.mode), None);
        let bounds = at.sequences(low.dims()[0]);
        if low.dims()[0] == 0 {
            return y;
        }
        let shares = mean_pool(softmax(logits, 1), &bounds);
        let mixed = shares.matmul(b.get::<2>(at.mode).reshape([num_b, r * d_out]));
        let change = bounds.windows(2).enumerate().map(|(i, bounds)| {
            let own = mixed.clone().slice(i..i + 1).reshape([r, d_out]);
            low.clone().slice(bounds[0]..bounds[1]).matmul(own)
        });
        y + Tensor::cat(change.collect(), 0) * self.scale
    }
}
