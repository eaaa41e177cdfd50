//! # HRA: Householder reflection adaptation
//!
//! ## What it does
//! Multiplies each weight by a chain of trained reflections: an orthogonal change that is low-rank
//! as well.
//!
//! ## Update rule
//! `W' = W Π (I − 2 uᵢ uᵢᵀ / ‖uᵢ‖²)` over `r` trained vectors `u [d_in, r]`; with `apply_GS` the
//! vectors are made orthogonal first and all reflections act at once, `W' = W (I − 2 U Uᵀ)`.
//!
//! ## When to use, when not
//! As LoRA, where lengths and angles of the weights should stay. Without biases or norms in
//! between, reflections cannot scale.
//!
//! ## Cost
//! Trainable: `r d_in` per layer, half of LoRA's on a square layer. Extra compute: `2 r d_in`
//! multiply-adds per token forward, one reflection after the other. None after merging.
//!
//! ## Defaults and where they come from
//! `r = 8`, vectors in equal pairs so that their reflections cancel, Kaiming-uniform with
//! `a = sqrt(5)`: Hugging Face `peft`. An odd `r` starts at random and so changes the model.
//!
//! ## Departures from the paper
//! With `apply_GS` the vectors start at random: equal pairs cannot be made orthogonal, where `peft`
//! divides by zero. The paper's orthogonality penalty is not offered, as in `peft`.
//!
//! ## References
//! - Yuan, Liu, Xu: Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder
//!   Reflection Adaptation, 2024, arXiv 2405.17484.

use burn::prelude::*;
use frugal_nn::{AdaptError, Adapter, BuildContext, MergedLinear, Mode, Parameter, named_rng};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::per_linear::{self, LinearAdapter, LinearSite, PerLinear, bad};
use crate::support::values::kaiming;
use crate::target::Targets;

const NAME: &str = "hra";

/// Registry entry.
pub const METHOD: Method = Method::of::<HraConfig>(
    Family::Orthogonal,
    "A chain of trained reflections of each layer's input",
    include_str!("hra.rs"),
)
.aliases(&["householder"])
.default_lr(2e-3);

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HraConfig {
    /// Number of reflections.
    pub r: usize,
    /// Make the vectors orthogonal (Gram-Schmidt).
    #[serde(rename = "apply_GS")]
    pub apply_gs: bool,
    /// Start without a change; otherwise with random reflections, for tests.
    pub init_weights: bool,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for HraConfig {
    fn default() -> Self {
        Self {
            r: 8,
            apply_gs: false,
            init_weights: true,
            targets: Targets::default(),
        }
    }
}

impl MethodConfig for HraConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "HRA";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.r == 0 {
            bad(NAME, "r", "must be at least 1")
        } else {
            Ok(())
        }
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft_without_bias::<HraConfig>(NAME, config)
    }
}

fn build(
    config: HraConfig,
    context: &BuildContext<'_>,
) -> Result<PerLinear<Reflections>, AdaptError> {
    config.validate()?;
    let (r, paired) = (
        config.r,
        config.init_weights && !config.apply_gs && config.r.is_multiple_of(2),
    );
    PerLinear::new(
        &METHOD,
        &config.targets,
        context,
        &config,
        json!({"bias": "none"}),
        |_, info| {
            if config.apply_gs && r > info.d_in {
                return bad(
                    NAME,
                    "r",
                    format!(
                        "`{}` has room for {} orthogonal vectors",
                        info.path, info.d_in
                    ),
                );
            }
            let mut rng = named_rng(context.seed, &info.path);
            let different = if paired { r / 2 } else { r };
            let drawn = kaiming(&mut rng, info.d_in * different, different);
            let column = |j: usize| if paired { j / 2 } else { j };
            let values = (0..info.d_in * r)
                .map(|n| drawn[n / r * different + column(n % r)])
                .collect();
            let u = Parameter::new(
                format!("{}.hra_u", info.path),
                &[info.d_in, r],
                values,
                &context.device,
            );
            Ok(Reflections {
                u,
                orthogonal: config.apply_gs,
            })
        },
    )
}

/// The reflections of one layer.
struct Reflections {
    /// `[d_in, r]`.
    u: Parameter,
    orthogonal: bool,
}

impl Reflections {
    /// Unit vectors, each `[d_in, 1]`.
    fn vectors(&self, mode: Mode) -> Vec<Tensor<2>> {
        let u = self.u.get::<2>(mode);
        let unit = |v: Tensor<2>| v.clone() / v.powi_scalar(2).sum_dim(0).sqrt();
        let mut out: Vec<Tensor<2>> = Vec::with_capacity(self.u.shape()[1]);
        for i in 0..self.u.shape()[1] {
            let mut v = u.clone().narrow(1, i, 1);
            for earlier in out.iter().filter(|_| self.orthogonal) {
                let share = (earlier.clone() * v.clone()).sum_dim(0);
                v = v - earlier.clone() * share;
            }
            out.push(unit(v));
        }
        out
    }

    /// `x H₁ H₂ ...` for these unit vectors.
    fn reflect(x: Tensor<2>, vectors: impl Iterator<Item = Tensor<2>>) -> Tensor<2> {
        vectors.fold(x, |x, v| {
            let share = x.clone().matmul(v.clone());
            x - share.matmul(v.transpose()) * 2.0
        })
    }

    fn reflected(&self, at: &LinearSite<'_>, inverse: bool) -> MergedLinear {
        let (weight, vectors) = (at.base.weight.dense(), self.vectors(Mode::Eval).into_iter());
        let weight = if inverse {
            Self::reflect(weight, vectors.rev())
        } else {
            Self::reflect(weight, vectors)
        };
        MergedLinear {
            weight,
            bias: at.base.bias.clone(),
        }
    }
}

impl LinearAdapter for Reflections {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.u]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.u]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        self.merged(at).weight - at.base.weight.dense()
    }

    fn materializes_weight(&self) -> bool {
        false
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        // x (W H₁ ... H_r)ᵀ = (x H_r ... H₁) Wᵀ.
        at.base.forward(Self::reflect(
            x,
            at.keep(|| self.vectors(at.mode)).into_iter().rev(),
        ))
    }

    fn merged(&self, at: &LinearSite<'_>) -> MergedLinear {
        self.reflected(at, false)
    }

    fn unmerged(&self, at: &LinearSite<'_>) -> Result<MergedLinear, String> {
        Ok(self.reflected(at, true))
    }
}
