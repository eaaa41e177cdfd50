//! # SVFit: training singular values
//!
//! ## What it does
//! Takes each weight's own singular vectors as a frozen basis and trains only its `r` largest
//! singular values.
//!
//! ## Update rule
//! With `W = U Σ Vᵀ`: `y = x Wᵀ + ((x V_r) ⊙ δ) U_rᵀ`, where `δ = σ − σ_r` is trained from 0. The
//! gradient of `σᵢ` is `uᵢᵀ (∂L/∂W') vᵢ`. In general `W' = W + U_r C V_rᵀ` with a core `C [r, r]`
//! that is diagonal here; `core = "banded"` trains `C_ij` for `|i − j| ≤ band` (SVFT), and `"dense"`
//! all of it, with `relative` as `Σ_r C` (LoRA-XS).
//!
//! ## When to use, when not
//! When a handful of numbers per layer is all there is room for, and the task is close to what the
//! model knows: stretching existing directions cannot turn them, so it teaches little that is new.
//! LoRA of the same rank learns more with `d_in + d_out` times the parameters. `basis = "random"` has
//! random orthonormal vectors in place of the weight's own, to tell what these are worth.
//!
//! ## Cost
//! Trainable: `r` per layer, `r²` with a dense core. Extra memory: `r (d_in + d_out)` frozen numbers per layer, and `r` numbers
//! per token while training. Extra compute: that of LoRA of rank `r`; before training one singular
//! value decomposition per layer. None after merging.
//!
//! ## Defaults and where they come from
//! Query and value maps: with all 768 singular values of RoBERTa-base they give 18,432 parameters,
//! one sixteenth of LoRA of rank 8, which is the ratio that the abstract states; the body of the
//! paper was not available. `r = 64` keeps the decomposition short; a rank at or above a layer's
//! smaller side means all of them. `energy` chooses the rank by the share of the squared singular
//! values instead (the paper speaks of 99 % of the information). The rate is far above that of
//! LoRA, because each number scales one atom of unit norm.
//!
//! ## Departures from the paper
//! The paper keeps the residual `W − W_r` as base weight; adding the change `δ` to the whole weight
//! is the same function, exact before training, and leaves a shared base alone. `relative` trains
//! `σ = σ_r (1 + δ)`; `nonnegative` keeps `σ ≥ 0`. Ranks of at most half the smaller side come from
//! a randomised decomposition, unless `exact_svd` asks for the whole. The vectors are stored in the file, because those of close singular
//! values depend on rounding.
//!
//! ## References
//! - Sun, Wei, Wu, Shi, He, Ma, Xie, Yang: SVFit: Parameter-Efficient Fine-Tuning of Large
//!   Pre-Trained Models Using Singular Values, 2024, arXiv 2409.05926.
//! - Lingam, Tejaswi, Vavre, Shetty, Gudur, Ghosh, Dimakis, Choi, Bojchevski, Sanghavi: SVFT:
//!   Parameter-Efficient Fine-Tuning with Singular Vectors, 2024, arXiv 2405.19597.
//! - Bałazy, Banaei, Aberer, Tabor: LoRA-XS: Low-Rank Adaptation with Extremely Small Number of
//!   Parameters, 2024, arXiv 2405.17604.

use std::collections::BTreeMap;

use burn::prelude::*;
use frugal_nn::linalg::{Svd, leading_qr, randomised_svd, svd};
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Linear, LinearChange, LowRankChange, Mode, Parameter, Pass,
    SiteId, named_rng, standard_normal, to_vec,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::per_linear::linear_maps;
use crate::support::sparse::scatter;
use crate::support::{base_weights, low_rank, own_files};
use crate::target::{Names, Targets};

const NAME: &str = "svfit";
const PEFT_TYPE: &str = "SVFIT";
const OVERSAMPLING: usize = 10;
const POWER_ITERATIONS: usize = 3;

/// Registry entry.
pub const METHOD: Method = Method::of::<SvfitConfig>(
    Family::Spectral,
    "Trains the largest singular values of each weight",
    include_str!("svfit.rs"),
)
.aliases(&["singular-values"])
.default_lr(1e-1)
.files_hold_what_follows_from_weights();

/// What is trained between the frozen vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Core {
    /// One number per pair of vectors.
    #[default]
    Diagonal,
    /// The diagonal and its neighbours.
    Banded,
    /// A whole matrix.
    Dense,
}

/// Where the frozen vectors come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// Singular vectors of the weight.
    #[default]
    Weight,
    /// Random orthonormal vectors.
    Random,
}

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SvfitConfig {
    /// Singular values per layer; at most its smaller side.
    pub r: usize,
    /// Choose the rank of each layer as the smallest whose squared singular values make up this
    /// share.
    pub energy: Option<f64>,
    /// Rank by path, as found by `energy`; wins over both.
    pub rank_pattern: BTreeMap<String, usize>,
    /// What is trained between the frozen vectors.
    pub core: Core,
    /// Neighbours on each side of the diagonal that a banded core has.
    pub band: usize,
    /// Where the frozen vectors come from.
    pub basis: Basis,
    /// Decompose each weight as a whole, however small the rank is.
    pub exact_svd: bool,
    /// Train the change relative to each singular value.
    pub relative: bool,
    /// Do not let a singular value fall below 0.
    pub nonnegative: bool,
    /// Decompose the weights; `false` leaves the vectors to the adapter file.
    pub init_weights: bool,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for SvfitConfig {
    fn default() -> Self {
        // The names of query and value in all supported architectures.
        let query_and_value = ["q_proj", "v_proj", "query", "value", "c_attn"]
            .map(str::to_owned)
            .to_vec();
        Self {
            r: 64,
            energy: None,
            rank_pattern: BTreeMap::new(),
            core: Core::Diagonal,
            band: 1,
            basis: Basis::Weight,
            exact_svd: false,
            relative: false,
            nonnegative: false,
            init_weights: true,
            targets: Targets {
                target_modules: Names::List(query_and_value),
                ..Targets::default()
            },
        }
    }
}

impl MethodConfig for SvfitConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = PEFT_TYPE;

    fn validate(&self) -> Result<(), AdaptError> {
        let bad = |field, reason: String| {
            Err(AdaptError::Config {
                method: NAME,
                field,
                reason,
            })
        };
        if self.r == 0 || self.rank_pattern.values().any(|&r| r == 0) {
            return bad("r", "the rank must be at least 1".into());
        }
        if self.basis == Basis::Random && (self.relative || self.energy.is_some()) {
            let field = if self.relative { "relative" } else { "energy" };
            return bad(
                field,
                "a random basis has no singular values: leave it out".into(),
            );
        }
        if self.nonnegative && (self.core != Core::Diagonal || self.basis == Basis::Random) {
            return bad(
                "nonnegative",
                "needs `core = \"diagonal\"` and `basis = \"weight\"`".into(),
            );
        }
        match self.energy {
            Some(share) if !(share > 0.0 && share <= 1.0) => bad(
                "energy",
                format!("{share} is not a share above 0 and up to 1"),
            ),
            _ => Ok(()),
        }
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(Svfit::new(self, context)?))
    }

    fn parse(settings: &Settings) -> Result<Self, AdaptError> {
        own_files::parse(NAME, settings)
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        let mut settings = own_files::from_file::<SvfitConfig>(config);
        settings.insert("init_weights".into(), json!(false));
        Ok(settings)
    }
}

/// The frozen basis of one layer and the change of its singular values.
struct Atoms {
    path: String,
    rank: usize,
    /// Left vectors, `[d_out, r]`.
    u: Parameter,
    /// Right vectors, `[r, d_in]`.
    vt: Parameter,
    /// Singular values of the base, `[r]`.
    sigma: Parameter,
    /// Their trained change, `[r]`; of other cores the elements, `[r, r]` or those of the band.
    delta: Parameter,
}

/// Positions in a core `[r, r]` that a band has, row by row.
fn in_band(r: usize, band: usize) -> impl Iterator<Item = usize> {
    (0..r).flat_map(move |row| {
        let last = row.saturating_add(band).min(r - 1);
        (row.saturating_sub(band)..=last).map(move |column| row * r + column)
    })
}

/// `r` random orthonormal vectors of this length, `[r, len]`.
fn orthonormal(seed: u64, name: &str, len: usize, r: usize) -> Vec<f32> {
    let mut rng = named_rng(seed, name);
    let values: Vec<f32> = (0..len * r).map(|_| standard_normal(&mut rng)).collect();
    let q = leading_qr(&values, len, r, r).q;
    (0..r * len).map(|i| q[i % len * r + i / len]).collect()
}

/// Smallest rank whose squared singular values make up this share of the sum of all.
fn rank_of_energy(s: &[f32], share: f64) -> usize {
    let squares = s.iter().map(|&v| f64::from(v).powi(2));
    let total: f64 = squares.clone().sum();
    let mut sum = 0.0;
    // The slack forgives the rounding of a sum that should reach the share exactly.
    let enough = squares.map(|square| {
        sum += square;
        sum >= total * (share - 1e-7)
    });
    enough.take_while(|enough| !enough).count() + 1
}

fn decompose(
    config: &SvfitConfig,
    weight: &Tensor<2>,
    rank: Option<usize>,
    seed: u64,
) -> (Svd, usize) {
    let [rows, cols] = weight.dims();
    let (side, values) = (rows.min(cols), to_vec(weight.clone()));
    match (rank, config.energy) {
        (Some(rank), _) if 2 * rank <= side && !config.exact_svd => (
            randomised_svd(
                &values,
                rows,
                cols,
                rank,
                OVERSAMPLING,
                POWER_ITERATIONS,
                seed,
            ),
            rank,
        ),
        (rank, energy) => {
            let all = svd(&values, rows, cols);
            let by_energy = energy.map(|share| rank_of_energy(&all.s, share));
            let rank = rank.or(by_energy).unwrap_or(side).min(side);
            (all, rank)
        }
    }
}

impl Atoms {
    fn new(
        config: &SvfitConfig,
        context: &BuildContext<'_>,
        id: SiteId,
        weight: Option<&Tensor<2>>,
    ) -> Self {
        let (info, device) = (context.sites.info(id), &context.device);
        let (path, d_in, d_out) = (info.path.clone(), info.d_in, info.d_out);
        let known = config.rank_pattern.get(&path).copied();
        let asked = known
            .or_else(|| config.energy.is_none().then_some(config.r))
            .map(|r| r.min(d_in.min(d_out)));
        let (u, s, vt, rank) = match weight.filter(|_| config.init_weights) {
            Some(_) if config.basis == Basis::Random => {
                let rank = asked.unwrap_or(d_in.min(d_out));
                let left = orthonormal(context.seed, &format!("{path} svfit U"), d_out, rank);
                let u = (0..d_out * rank).map(|i| left[i % rank * d_out + i / rank]);
                let vt = orthonormal(context.seed, &format!("{path} svfit V"), d_in, rank);
                (u.collect(), vec![0.0; rank], vt, rank)
            }
            Some(weight) => {
                let (found, rank) = decompose(config, weight, asked, context.seed);
                let k = found.s.len();
                let u = found
                    .u
                    .chunks_exact(k)
                    .flat_map(|row| &row[..rank])
                    .copied()
                    .collect();
                (
                    u,
                    found.s[..rank].to_vec(),
                    found.vt[..rank * d_in].to_vec(),
                    rank,
                )
            }
            None => {
                let rank = asked.unwrap_or(d_in.min(d_out));
                (
                    vec![0.0; d_out * rank],
                    vec![0.0; rank],
                    vec![0.0; rank * d_in],
                    rank,
                )
            }
        };
        let core = match config.core {
            Core::Diagonal => vec![rank],
            Core::Banded => vec![in_band(rank, config.band).count()],
            Core::Dense => vec![rank, rank],
        };
        Self {
            u: Parameter::frozen(format!("{path}.svfit_U"), &[d_out, rank], u, device),
            vt: Parameter::frozen(format!("{path}.svfit_Vt"), &[rank, d_in], vt, device),
            sigma: Parameter::frozen(format!("{path}.svfit_sigma"), &[rank], s, device),
            delta: Parameter::new(
                format!("{path}.svfit_delta"),
                &core,
                vec![0.0; core.iter().product()],
                device,
            ),
            rank,
            path,
        }
    }

    /// `C V_rᵀ`, `[r, d_in]`.
    fn a(&self, config: &SvfitConfig, mode: Mode) -> Tensor<2> {
        let (sigma, vt) = (self.sigma.get::<1>(mode), self.vt.get::<2>(mode));
        let core = match config.core {
            Core::Diagonal => return vt * self.diagonal(config, mode).unsqueeze_dim::<2>(1),
            Core::Dense => self.delta.get::<2>(mode),
            Core::Banded => scatter(
                in_band(self.rank, config.band),
                self.delta.get::<1>(mode),
                self.rank,
                self.rank,
            ),
        };
        let core = match config.relative {
            true => core * sigma.unsqueeze_dim::<2>(1),
            false => core,
        };
        core.matmul(vt)
    }

    /// `δ`, `[r]`.
    fn diagonal(&self, config: &SvfitConfig, mode: Mode) -> Tensor<1> {
        let (delta, sigma) = (self.delta.get::<1>(mode), self.sigma.get::<1>(mode));
        let delta = if config.relative {
            delta * sigma.clone()
        } else {
            delta
        };
        if config.nonnegative {
            burn::tensor::activation::relu(delta + sigma.clone()) - sigma
        } else {
            delta
        }
    }

    fn parameters(&self) -> [&Parameter; 4] {
        [&self.u, &self.vt, &self.sigma, &self.delta]
    }

    fn parameters_mut(&mut self) -> [&mut Parameter; 4] {
        [&mut self.u, &mut self.vt, &mut self.sigma, &mut self.delta]
    }
}

/// An SVFit adapter.
pub struct Svfit {
    config: SvfitConfig,
    /// Indexed by site.
    sites: Vec<Option<Atoms>>,
    saved_targets: Value,
}

impl Svfit {
    /// Decomposes every selected layer.
    ///
    /// # Errors
    /// Bad settings, no matching layer, tables among the targets.
    pub fn new(config: SvfitConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        config.validate()?;
        let mut targets = config.targets.clone();
        // The usual names are those of several architectures.
        let usual = SvfitConfig::default().targets.target_modules;
        if let Some(known) = usual
            .of_model(context.sites)
            .filter(|_| targets.target_modules == usual)
        {
            targets.target_modules = known;
        }
        let chosen = linear_maps(NAME, &targets, context)?;
        let weights = base_weights::linear_weights(context);
        let mut sites: Vec<Option<Atoms>> = (0..context.sites.len()).map(|_| None).collect();
        for &id in &chosen {
            sites[id.index()] = Some(Atoms::new(
                &config,
                context,
                id,
                weights[id.index()].as_ref(),
            ));
        }
        let saved_targets = crate::target::saved_targets(&targets, context.sites, &chosen);
        Ok(Self {
            config,
            sites,
            saved_targets,
        })
    }

    fn at(&self, site: SiteId) -> Option<&Atoms> {
        self.sites.get(site.index())?.as_ref()
    }
}

struct SvfitPass<'a> {
    adapter: &'a Svfit,
    mode: Mode,
}

impl Pass for SvfitPass<'_> {
    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        let Some(atoms) = self.adapter.at(base.site) else {
            return base.forward(x);
        };
        let (a, u) = (
            atoms.a(&self.adapter.config, self.mode),
            atoms.u.get::<2>(self.mode),
        );
        low_rank::forward(
            base,
            x,
            a,
            u,
            1.0,
            &low_rank::Dropping {
                p: 0.0,
                mode: self.mode,
                path: &atoms.path,
            },
        )
    }

    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        match self.adapter.at(base.site) {
            None => LinearChange::None,
            Some(atoms) => LinearChange::LowRank(LowRankChange {
                a: atoms.a(&self.adapter.config, self.mode),
                b: atoms.u.get(self.mode),
                scale: 1.0,
            }),
        }
    }
}

impl Adapter for Svfit {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.sites
            .iter()
            .flatten()
            .flat_map(Atoms::parameters)
            .collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.sites
            .iter_mut()
            .flatten()
            .flat_map(Atoms::parameters_mut)
            .collect()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(SvfitPass {
            adapter: self,
            mode,
        })
    }

    fn peft_config(&self) -> Map<String, Value> {
        let mut fields = own_files::to_file(PEFT_TYPE, &self.config, &self.saved_targets);
        if self.config.energy.is_some() {
            let ranks: BTreeMap<&str, usize> = self
                .sites
                .iter()
                .flatten()
                .map(|a| (a.path.as_str(), a.rank))
                .collect();
            fields.insert("rank_pattern".into(), json!(ranks));
        }
        fields
    }

    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        let delta = |atoms: &Atoms| {
            atoms
                .u
                .get::<2>(Mode::Eval)
                .matmul(atoms.a(&self.config, Mode::Eval))
        };
        Ok(self.at(base.site).map(delta))
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
