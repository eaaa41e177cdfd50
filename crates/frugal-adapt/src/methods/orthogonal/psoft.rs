//! # PSOFT: orthogonal fine-tuning in the principal subspace
//!
//! ## What it does
//! Rotates what each weight does along its largest singular directions, and leaves the rest alone.
//!
//! ## Update rule
//! `y = x Wᵀ + s B (R − I) A x` with `A = V_rᵀ`, `B = U_r diag(σ_r) / s` of the `r` largest singular triples of `W`, frozen
//! (`ab_svd_init = "pissa_init"`: the root of `σ / s` on both sides), and `R = diag(b) C diag(a)`, where `C` is the Cayley
//! transform `(I + Q)(I − Q)⁻¹` of a skew-symmetric `Q`, and `a`, `b` are vectors of length `r`.
//!
//! ## When to use, when not
//! Where OFT's idea, keeping the angles between neurons, is wanted at the size of LoRA: a rank of 32
//! to 256 costs `r² / 2` numbers per layer, whatever its width. Each weight is decomposed when the adapter is
//! made and whenever a file is read.
//!
//! ## Cost
//! Trainable: `r (r − 1) / 2 + 2r` per layer. Extra memory: `r (d_in + d_out)` frozen numbers. Extra compute: LoRA's,
//! and `r²` per token. None after merging.
//!
//! ## Defaults and where they come from
//! `r = 32`, `psoft_alpha = 32`, both vectors, the exact transform and decomposition: Hugging Face `peft`. `Q` starts at zero
//! and the vectors at one. `psoft_svd = "lowrank"` decomposes by random projections with
//! `psoft_svd_lowrank_niter` power iterations. `use_cayley_neumann` sums `num_cayley_neumann_terms` terms of Neumann's series
//! instead of inverting, and scales `Q` down to `cayley_neumann_eps` where that is set. `psoft_orth = false` trains a matrix
//! `R` without constraint.
//!
//! ## Departures from the paper
//! Files of `peft` hold `R` and neither `A` nor `B`, whose signs depend on the library that decomposed the weight: what
//! `R` means there nothing in the file tells, so they are refused. Files here have a `peft_type` of their own; in each
//! left singular vector the element of largest magnitude is positive.
//!
//! ## References
//! - Efficient Orthogonal Fine-Tuning with Principal Subspace Adaptation, 2025, arXiv 2505.11235.

use burn::prelude::*;
use frugal_nn::linalg::{randomised_svd, svd};
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Mode, Parameter, SiteInfo, named_rng, standard_normal,
    to_vec,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::support::base_weights::linear_weights;
use crate::support::dropout::dropout;
use crate::support::orthogonal::{cayley, cayley_neumann, skew};
use crate::support::per_linear::{LinearAdapter, LinearSite, PerLinear, bad, check_dropout};
use crate::target::Targets;

const NAME: &str = "psoft";

/// Registry entry.
pub const METHOD: Method = Method::of::<PsoftConfig>(
    Family::Orthogonal,
    "A rotation within each weight's largest singular directions",
    include_str!("psoft.rs"),
)
.default_lr(4e-3);

/// How the singular values are shared out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sides {
    /// All in `B`.
    #[default]
    PsoftInit,
    /// Half in each.
    PissaInit,
}

/// How the weight is decomposed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decomposition {
    /// Whole.
    #[default]
    Full,
    /// By random projections.
    Lowrank,
}

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PsoftConfig {
    /// Singular directions of a layer; at most its smaller side.
    pub r: usize,
    /// Scale numerator.
    pub psoft_alpha: f64,
    /// Probability of dropping an input element on the adapted path while training.
    pub psoft_dropout: f64,
    /// How the singular values are shared out.
    pub ab_svd_init: Sides,
    /// How the weight is decomposed.
    pub psoft_svd: Decomposition,
    /// Power iterations of random projections.
    pub psoft_svd_lowrank_niter: usize,
    /// Seed of random projections.
    pub random_seed: u64,
    /// Whether `R` is a rotation.
    pub psoft_orth: bool,
    /// Whether outputs of `R` are scaled.
    pub psoft_mag_b: bool,
    /// Whether inputs of `R` are scaled.
    pub psoft_mag_a: bool,
    /// Sum Neumann's series.
    pub use_cayley_neumann: bool,
    /// Its terms.
    pub num_cayley_neumann_terms: usize,
    /// Largest norm of `Q` in it.
    pub cayley_neumann_eps: Option<f64>,
    /// `false`: a random rotation, for tests.
    pub init_weights: bool,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for PsoftConfig {
    fn default() -> Self {
        Self {
            r: 32,
            psoft_alpha: 32.0,
            psoft_dropout: 0.0,
            ab_svd_init: Sides::PsoftInit,
            psoft_svd: Decomposition::Full,
            psoft_svd_lowrank_niter: 10,
            random_seed: 0,
            psoft_orth: true,
            psoft_mag_b: true,
            psoft_mag_a: true,
            use_cayley_neumann: false,
            num_cayley_neumann_terms: 5,
            cayley_neumann_eps: None,
            init_weights: true,
            targets: Targets::default(),
        }
    }
}

impl MethodConfig for PsoftConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "PSOFT_WITH_SIGNS";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.r == 0 {
            return bad(NAME, "r", "must be at least 1");
        }
        if !(self.psoft_alpha > 0.0 && self.psoft_alpha.is_finite()) {
            return bad(NAME, "psoft_alpha", "must be a positive number");
        }
        if self.num_cayley_neumann_terms == 0 {
            return bad(NAME, "num_cayley_neumann_terms", "must be at least 1");
        }
        if self
            .cayley_neumann_eps
            .is_some_and(|eps| !(eps > 0.0 && eps < 1.0))
        {
            return bad(NAME, "cayley_neumann_eps", "must be above 0 and below 1");
        }
        check_dropout(NAME, "psoft_dropout", self.psoft_dropout)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }
}

fn build(
    config: PsoftConfig,
    context: &BuildContext<'_>,
) -> Result<PerLinear<Subspace>, AdaptError> {
    config.validate()?;
    let weights = linear_weights(context);
    PerLinear::new(
        &METHOD,
        &config.targets,
        context,
        &config,
        json!({}),
        |id, info| subspace(&config, weights[id.index()].as_ref(), info, context),
    )
}

fn subspace(
    config: &PsoftConfig,
    weight: Option<&Tensor<2>>,
    info: &SiteInfo,
    context: &BuildContext<'_>,
) -> Result<Subspace, AdaptError> {
    let (r, d_in, d_out) = (config.r, info.d_in, info.d_out);
    if r > d_in.min(d_out) {
        let reason = format!(
            "{r} is more than the {} singular directions of `{}`",
            d_in.min(d_out),
            info.path
        );
        return bad(NAME, "r", reason);
    }
    let scale = (config.psoft_alpha / r as f64) as f32;
    let device = &context.device;
    let sides = weight.map(|weight| {
        let values = to_vec(weight.clone());
        let found = match config.psoft_svd {
            Decomposition::Full => svd(&values, d_out, d_in),
            Decomposition::Lowrank => {
                let turns = config.psoft_svd_lowrank_niter;
                randomised_svd(&values, d_out, d_in, r, 0, turns, config.random_seed)
            }
        };
        let k = found.s.len();
        let on = |i: usize| {
            let s = found.s[i] / scale;
            match config.ab_svd_init {
                Sides::PsoftInit => (1.0, s),
                Sides::PissaInit => (s.sqrt(), s.sqrt()),
            }
        };
        let a = (0..r * d_in)
            .map(|n| on(n / d_in).0 * found.vt[n])
            .collect();
        let b = (0..d_out * r)
            .map(|n| on(n % r).1 * found.u[n / r * k + n % r])
            .collect();
        let matrix = |values: Vec<f32>, shape: [usize; 2]| {
            Tensor::from_data(TensorData::new(values, shape), device)
        };
        [matrix(a, [r, d_in]), matrix(b, [d_out, r])]
    });
    let mut rng = named_rng(context.seed, &info.path);
    let mut noise = |len: usize| -> Vec<f32> {
        let by = if config.init_weights { 0.0 } else { 0.1 };
        (0..len).map(|_| by * standard_normal(&mut rng)).collect()
    };
    let (shape, values) = match config.psoft_orth {
        true => (vec![r * (r - 1) / 2], noise(r * (r - 1) / 2)),
        false => {
            let mut values = noise(r * r);
            (0..r).for_each(|i| values[i * (r + 1)] += 1.0);
            (vec![r, r], values)
        }
    };
    let name = |part: &str| format!("{}.psoft_R.{part}", info.path);
    let vector = |part: &str| Parameter::new(name(part), &[r], vec![1.0; r], device);
    Ok(Subspace {
        sides,
        weight: Parameter::new(name("weight"), &shape, values, device),
        on_b: config.psoft_mag_b.then(|| vector("vector_b")),
        on_a: config.psoft_mag_a.then(|| vector("vector_a")),
        r,
        orthogonal: config.psoft_orth,
        terms: config
            .use_cayley_neumann
            .then_some(config.num_cayley_neumann_terms),
        bound: config.cayley_neumann_eps.map(|eps| eps as f32),
        scale,
        dropout: config.psoft_dropout,
    })
}

/// What is trained between the singular vectors of one layer.
struct Subspace {
    /// `A [r, d_in]` and `B [d_out, r]`; nothing when planning.
    sides: Option<[Tensor<2>; 2]>,
    /// Entries of `Q` above the diagonal, `[r (r − 1) / 2]`, or a free `R [r, r]`.
    weight: Parameter,
    /// `b [r]`.
    on_b: Option<Parameter>,
    /// `a [r]`.
    on_a: Option<Parameter>,
    r: usize,
    orthogonal: bool,
    /// Terms of the series; exact if none.
    terms: Option<usize>,
    /// Largest norm of `Q` in the series.
    bound: Option<f32>,
    scale: f32,
    dropout: f64,
}

impl Subspace {
    /// `R − I`, `[r, r]`.
    fn change(&self, mode: Mode) -> Tensor<2> {
        let r = self.r;
        let mut matrix = match self.orthogonal {
            false => self.weight.get::<2>(mode),
            true => {
                let entries = self.weight.get::<1>(mode).unsqueeze::<2>();
                let mut q = skew(entries, r);
                let found = match self.terms {
                    // With Q for −Q.
                    None => cayley(q.neg()),
                    Some(terms) => {
                        if let Some(bound) = self.bound {
                            let norm = q.clone().powi_scalar(2).sum().sqrt();
                            let value: f32 = norm.clone().into_scalar();
                            if value.is_finite() && value > bound {
                                q = q * ((norm + 1e-12).recip() * bound).reshape([1, 1, 1]);
                            }
                        }
                        cayley_neumann(q, terms)
                    }
                };
                found.squeeze_dim::<2>(0)
            }
        };
        if let Some(b) = &self.on_b {
            matrix = matrix * b.get::<1>(mode).reshape([r, 1]);
        }
        if let Some(a) = &self.on_a {
            matrix = matrix * a.get::<1>(mode).reshape([1, r]);
        }
        let device = matrix.device().inner();
        matrix - Tensor::<2>::eye(r, &device)
    }
}

impl LinearAdapter for Subspace {
    fn parameters(&self) -> Vec<&Parameter> {
        let vectors = self.on_b.iter().chain(&self.on_a);
        [&self.weight].into_iter().chain(vectors).collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let vectors = self.on_b.iter_mut().chain(&mut self.on_a);
        [&mut self.weight].into_iter().chain(vectors).collect()
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        match &self.sides {
            Some([a, b]) => {
                let change = self.change(at.mode) * self.scale;
                b.clone().matmul(change).matmul(a.clone())
            }
            None => at.base.weight.dense().zeros_like(),
        }
    }

    fn materializes_weight(&self) -> bool {
        false
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        let y = at.base.forward(x.clone());
        let Some([a, b]) = &self.sides else {
            return y;
        };
        let x = match at.mode {
            Mode::Train { seed } if self.dropout > 0.0 => dropout(x, self.dropout, seed, at.path),
            _ => x,
        };
        let change = match at.mode.is_train() {
            true => self.change(at.mode),
            false => at.keep(|| self.change(Mode::Eval)),
        };
        let low = frugal_kernels::linear(x, a.clone(), None);
        let low = frugal_kernels::linear(low, change, None);
        y + frugal_kernels::linear(low, b.clone(), None) * self.scale
    }
}
