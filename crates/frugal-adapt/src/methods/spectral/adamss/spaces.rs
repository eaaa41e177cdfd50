//! The groups of a layer and what is trained of them.

use burn::prelude::*;
use burn::tensor::TensorData;
use frugal_nn::linalg::svd;
use frugal_nn::{
    AdaptError, BuildContext, Linear, MergedLinear, Mode, Parameter, SiteInfo, named_rng,
    standard_normal, to_vec,
};

use crate::methods::spectral::adamss::clusters::{clusters, svd_lowrank};
use crate::methods::spectral::adamss::config::{AdamssConfig, NAME};
use crate::methods::spectral::adamss::score::Score;
use crate::support::per_linear::{LinearAdapter, LinearSite, bad};

/// The groups of one layer.
pub(super) struct Spaces {
    /// `V_rᵀ [r, d_in (+ 1)]`.
    basis: Parameter,
    /// `Aᵢ [rᵢ, r]`.
    pub a: Vec<Parameter>,
    /// `Bᵢ [rows, rᵢ]`.
    pub b: Vec<Parameter>,
    /// For each output its place among those of all groups, one after another.
    places: Vec<i64>,
    has_bias: bool,
    /// What is known of the groups, where some are to stop.
    pub scores: Vec<Score>,
}

impl Spaces {
    /// Groups of a layer, as `peft` finds them.
    pub fn new(
        config: &AdamssConfig,
        base: Option<&Linear>,
        info: &SiteInfo,
        context: &BuildContext<'_>,
    ) -> Result<Self, AdaptError> {
        let (path, d_out) = (&info.path, info.d_out);
        let columns = info.d_in + usize::from(info.has_bias);
        // With as many directions as outputs, all outputs would be equally far from each other.
        let r = config.r.min(columns).min((d_out - 1).max(1));
        let count = config.num_subspaces.min(d_out);
        let (u, vt, labels) = match base {
            Some(base) => {
                let weight = to_vec(base.weight.dense());
                let bias = base.bias.clone().map(to_vec);
                let with_bias: Vec<f32> = weight
                    .chunks_exact(info.d_in)
                    .enumerate()
                    .flat_map(|(i, row)| {
                        let own = bias.as_ref().map(|bias| bias[i]);
                        row.iter().copied().chain(own)
                    })
                    .collect();
                let found = svd_lowrank(&with_bias, d_out, columns, r, config.random_seed);
                let labels = clusters(&found.u, r, count);
                (found.u, found.vt, labels)
            }
            // Planning: groups of one size.
            None => (
                vec![0.0; d_out * r],
                vec![0.0; r * columns],
                (0..d_out).map(|i| i * count / d_out).collect(),
            ),
        };
        let device = &context.device;
        let mut rng = named_rng(context.seed, path);
        let (mut a, mut b, mut order) = (Vec::new(), Vec::new(), Vec::new());
        for group in 0..count {
            let rows: Vec<usize> = (0..d_out).filter(|&i| labels[i] == group).collect();
            if rows.is_empty() {
                let reason = format!(
                    "the outputs of `{path}` fall into fewer than {count} groups: use a smaller number"
                );
                return bad(NAME, "num_subspaces", reason);
            }
            let own: Vec<f32> = rows
                .iter()
                .flat_map(|&i| u[i * r..(i + 1) * r].iter().copied())
                .collect();
            let found = svd(&own, rows.len(), r);
            let mut rank = config.subspace_rank.min(rows.len());
            if config.use_dynamic_rank {
                let least = config.svd_threshold as f32 * found.s[0] * found.s[0];
                let kept = found.s.iter().filter(|s| **s * **s > least).count();
                rank = rank.min(kept).max(1);
            }
            // A group of few rows has as many directions.
            let directions = (0..rank * r).map(|n| found.vt.get(n).copied().unwrap_or(0.0));
            let values = match config.init_weights {
                Some(_) => vec![0.0; rows.len() * rank],
                None => (0..rows.len() * rank)
                    .map(|_| 0.01 * standard_normal(&mut rng))
                    .collect(),
            };
            let new = |letter: char, shape: &[usize], values| {
                let name = format!("{path}.adamss_{letter}.{group}");
                Parameter::new(name, shape, values, device)
            };
            a.push(new('A', &[rank, r], directions.collect()));
            b.push(new('B', &[rows.len(), rank], values));
            order.extend(rows);
        }
        let mut places = vec![0; d_out];
        order
            .iter()
            .enumerate()
            .for_each(|(place, &output)| places[output] = place as i64);
        let name = format!("{path}.adamss_newB");
        Ok(Self {
            basis: Parameter::frozen(name, &[r, columns], vt, device),
            scores: vec![Score::default(); count],
            has_bias: info.has_bias,
            a,
            b,
            places,
        })
    }

    /// Back from the order of the groups, along this side.
    fn ordered(&self, x: Tensor<2>, side: usize) -> Tensor<2> {
        let device = x.device().inner();
        let places = Tensor::<1, Int>::from_data(TensorData::from(self.places.as_slice()), &device);
        x.select(side, places)
    }

    /// What is added to `[W b]`, `[d_out, d_in (+ 1)]`.
    fn change(&self, mode: Mode) -> Tensor<2> {
        let parts = self.a.iter().zip(&self.b);
        let parts = parts.map(|(a, b)| b.get::<2>(mode).matmul(a.get::<2>(mode)));
        let all = self.ordered(Tensor::cat(parts.collect(), 0), 0);
        all.matmul(self.basis.get::<2>(mode))
    }
}

impl LinearAdapter for Spaces {
    fn parameters(&self) -> Vec<&Parameter> {
        let basis = std::iter::once(&self.basis);
        self.a.iter().chain(&self.b).chain(basis).collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let basis = std::iter::once(&mut self.basis);
        self.a.iter_mut().chain(&mut self.b).chain(basis).collect()
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        let d_in = self.basis.shape()[1] - usize::from(self.has_bias);
        self.change(at.mode).narrow(1, 0, d_in)
    }

    fn materializes_weight(&self) -> bool {
        false
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        let y = at.base.forward(x.clone());
        let d_in = self.basis.shape()[1] - usize::from(self.has_bias);
        let basis = self.basis.get::<2>(at.mode);
        let offset = self
            .has_bias
            .then(|| basis.clone().narrow(1, d_in, 1).flatten::<1>(0, 1));
        let low = frugal_kernels::linear(x, basis.narrow(1, 0, d_in), offset);
        let parts = self.a.iter().zip(&self.b).map(|(a, b)| {
            let own = frugal_kernels::linear(low.clone(), a.get::<2>(at.mode), None);
            frugal_kernels::linear(own, b.get::<2>(at.mode), None)
        });
        y + self.ordered(Tensor::cat(parts.collect(), 1), 1)
    }

    fn merged(&self, at: &LinearSite<'_>) -> MergedLinear {
        self.shifted(at, 1.0)
    }

    fn unmerged(&self, at: &LinearSite<'_>) -> Result<MergedLinear, String> {
        Ok(self.shifted(at, -1.0))
    }
}

impl Spaces {
    /// The layer with the change added so many times.
    fn shifted(&self, at: &LinearSite<'_>, times: f32) -> MergedLinear {
        let change = self.change(at.mode) * times;
        let d_in = self.basis.shape()[1] - usize::from(self.has_bias);
        let bias = at.base.bias.clone().map(|bias| match self.has_bias {
            true => bias + change.clone().narrow(1, d_in, 1).flatten::<1>(0, 1),
            false => bias,
        });
        MergedLinear {
            weight: at.base.weight.dense() + change.narrow(1, 0, d_in),
            bias,
        }
    }
}
