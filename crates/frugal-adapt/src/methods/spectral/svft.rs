//! # SVFT: a sparse matrix between all singular vectors
//!
//! ## What it does
//! Trains a few elements of the matrix that stands between a weight's singular vectors, of which only the
//! diagonal is not zero before.
//!
//! ## Update rule
//! `W = U Σ Vᵀ`, `W' = U (Σ + M) Vᵀ`, where `M [k, k]`, `k = min(d_in, d_out)`, is trained in chosen places: `"plain"` on the
//! diagonal, `"banded"` up to `band` beside it as well, `"random"` in as many random places as the band has.
//!
//! ## When to use, when not
//! Where a few hundred numbers per layer should act in all directions of a weight. Each step costs as
//! much as two further weights, and both sets of vectors are kept: LoRA-XS is lighter.
//!
//! ## Cost
//! Trainable: `k` per layer, about `k (2 band + 1)` for the others. Extra memory: `k (d_in + d_out)` frozen
//! numbers per layer. Extra compute: `k (d_in + d_out)` multiply-adds per token forward. None after merging.
//!
//! ## Defaults and where they come from
//! `"plain"`, zero at the start, and a band of 1 for the others: paper. The rate is far above LoRA's,
//! because each number scales one atom of unit norm.
//!
//! ## Departures from the paper
//! The choice of the largest elements by how well the vectors agree (its fourth variant) is not
//! offered. The vectors are stored in the file.
//!
//! ## References
//! - Lingam, Tejaswi, Vavre, Shetty, Gudur, Ghosh, Dimakis, Choi, Bojchevski, Sanghavi: SVFT:
//!   Parameter-Efficient Fine-Tuning with Singular Vectors, 2024, arXiv 2405.19597.

use burn::prelude::*;
use burn::tensor::IndexingUpdateOp;
use frugal_nn::{AdaptError, Adapter, BuildContext, Mode, Parameter, SiteInfo, named_rng};
use rand::seq::index::sample;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::support::base_weights::linear_weights;
use crate::support::per_linear::{LinearAdapter, LinearSite, PerLinear, bad};
use crate::support::singular::{kept, triples};
use crate::target::Targets;

const NAME: &str = "svft";

/// Registry entry.
pub const METHOD: Method = Method::of::<SvftConfig>(
    Family::Spectral,
    "A few trained elements between all of each weight's singular vectors",
    include_str!("svft.rs"),
)
.default_lr(5e-2)
.files_hold_what_follows_from_weights();

/// Which elements are trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pattern {
    /// The diagonal.
    #[default]
    Plain,
    /// The diagonal and its neighbours.
    Banded,
    /// As many random ones as the band has.
    Random,
}

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SvftConfig {
    /// Which elements are trained.
    pub pattern: Pattern,
    /// Neighbours on each side of the diagonal.
    pub band: usize,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for SvftConfig {
    fn default() -> Self {
        Self {
            pattern: Pattern::Plain,
            band: 1,
            targets: Targets::default(),
        }
    }
}

impl MethodConfig for SvftConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "SVFT";

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }
}

/// Places in `[k, k]`, row by row.
fn places(config: &SvftConfig, info: &SiteInfo, k: usize, seed: u64) -> Vec<usize> {
    let band = match config.pattern {
        Pattern::Plain => 0,
        _ => config.band.min(k - 1),
    };
    let of_row = |row: usize| {
        let last = (row + band).min(k - 1);
        (row.saturating_sub(band)..=last).map(move |column| row * k + column)
    };
    let all: Vec<usize> = (0..k).flat_map(of_row).collect();
    match config.pattern {
        Pattern::Random => {
            let mut rng = named_rng(seed, &info.path);
            let mut drawn = sample(&mut rng, k * k, all.len()).into_vec();
            drawn.sort_unstable();
            drawn
        }
        _ => all,
    }
}

fn build(config: SvftConfig, context: &BuildContext<'_>) -> Result<PerLinear<Core>, AdaptError> {
    let weights = linear_weights(context);
    PerLinear::new(
        &METHOD,
        &config.targets,
        context,
        &config,
        json!({}),
        |id, info| {
            let k = info.d_in.min(info.d_out);
            if k > 1 << 12 {
                let reason = format!("`{}` has {k} singular vectors: at most 4096", info.path);
                return bad(NAME, "target_modules", reason);
            }
            let found = triples(weights[id.index()].as_ref(), info, k, context.seed);
            let places = places(&config, info, k, context.seed);
            let new = |name: &str, values: Vec<f32>| {
                let name = format!("{}.svft_{name}", info.path);
                Parameter::new(name, &[values.len()], values, &context.device)
            };
            Ok(Core {
                u: kept(info, "svft_U", [info.d_out, k], found.u, &context.device),
                vt: kept(info, "svft_V", [k, info.d_in], found.vt, &context.device),
                elements: new("M", vec![0.0; places.len()]),
                places: new("indices", places.into_iter().map(|p| p as f32).collect())
                    .freeze()
                    .as_whole_numbers()
                    .indices_below(&[k * k]),
            })
        },
    )
}

/// The elements of one layer and the vectors that they lie between.
struct Core {
    /// `[d_out, k]`.
    u: Parameter,
    /// `[k, d_in]`.
    vt: Parameter,
    /// `[n]`.
    elements: Parameter,
    /// `[n]`.
    places: Parameter,
}

impl Core {
    /// `M`, `[k, k]`.
    fn matrix(&self, mode: Mode) -> Tensor<2> {
        let (elements, k) = (self.elements.get::<1>(mode), self.vt.shape()[0]);
        let places: Vec<i64> = self.places.to_vec().into_iter().map(|p| p as i64).collect();
        let places = Tensor::<1, Int>::from_data(
            TensorData::from(places.as_slice()),
            &elements.device().inner(),
        );
        Tensor::<1>::zeros([k * k], &elements.device())
            .select_assign(0, places, elements, IndexingUpdateOp::Add)
            .reshape([k, k])
    }
}

impl LinearAdapter for Core {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.u, &self.vt, &self.elements, &self.places]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![
            &mut self.u,
            &mut self.vt,
            &mut self.elements,
            &mut self.places,
        ]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        let left = self.u.get::<2>(Mode::Eval).matmul(self.matrix(at.mode));
        left.matmul(self.vt.get::<2>(Mode::Eval))
    }

    fn materializes_weight(&self) -> bool {
        false
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        let y = at.base.forward(x.clone());
        let low = frugal_kernels::linear(x, self.vt.get::<2>(Mode::Eval), None);
        let low = frugal_kernels::linear(low, self.matrix(at.mode), None);
        y + frugal_kernels::linear(low, self.u.get::<2>(Mode::Eval), None)
    }
}
