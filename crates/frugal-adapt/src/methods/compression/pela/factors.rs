//! The two thin matrices of a layer, and trained norms.

use burn::prelude::*;
use frugal_nn::linalg::{randomised_svd, svd};
use frugal_nn::{BuildContext, Frozen, Mode, Parameter, SiteId, SiteInfo, to_vec};

use crate::methods::compression::pela::config::PelaConfig;

const OVERSAMPLING: usize = 10;
const POWER_ITERATIONS: usize = 2;

/// `Lᵀ [r, d_in]` and `R [d_out, r]` of the balanced decomposition of a weight.
pub(crate) fn factorise(
    weight: &[f32],
    d_out: usize,
    d_in: usize,
    rank: usize,
    seed: u64,
) -> (Vec<f32>, Vec<f32>) {
    let found = if 2 * rank <= d_out.min(d_in) {
        randomised_svd(
            weight,
            d_out,
            d_in,
            rank,
            OVERSAMPLING,
            POWER_ITERATIONS,
            seed,
        )
    } else {
        svd(weight, d_out, d_in)
    };
    let k = found.s.len();
    let roots: Vec<f32> = found.s[..rank].iter().map(|s| s.max(0.0).sqrt()).collect();
    let l = found
        .vt
        .chunks_exact(d_in)
        .zip(&roots)
        .flat_map(|(row, root)| row.iter().map(move |v| v * root))
        .collect();
    let r = found
        .u
        .chunks_exact(k)
        .flat_map(|row| row.iter().zip(&roots).map(|(v, root)| v * root))
        .collect();
    (l, r)
}

/// The factors of one layer.
pub(crate) struct Factors {
    /// `[r, d_in]`.
    pub(crate) l: Parameter,
    /// `[d_out, r]`.
    pub(crate) r: Parameter,
    /// `[d_out]`.
    pub(crate) bias: Option<Parameter>,
}

impl Factors {
    pub(crate) fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        [Some(&self.l), Some(&self.r), self.bias.as_ref()]
            .into_iter()
            .flatten()
    }

    pub(crate) fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        [Some(&mut self.l), Some(&mut self.r), self.bias.as_mut()]
            .into_iter()
            .flatten()
    }

    /// `R Lᵀ`, `[d_out, d_in]`.
    pub(crate) fn weight(&self, mode: Mode) -> Tensor<2> {
        self.r.get::<2>(mode).matmul(self.l.get::<2>(mode))
    }
}

/// Trained gain and bias of a norm.
pub(crate) struct TrainedNorm {
    pub(crate) weight: Parameter,
    pub(crate) bias: Option<Parameter>,
}

/// Biases of layers and norms, and gains of norms, by site; all absent when planning.
pub(crate) fn vectors(
    context: &BuildContext<'_>,
) -> (Vec<Option<Vec<f32>>>, Vec<Option<Vec<f32>>>) {
    let (mut biases, mut gains) = (
        vec![None; context.sites.len()],
        vec![None; context.sites.len()],
    );
    if let Some(backbone) = context.backbone {
        backbone.visit_weights(&mut |part| match part {
            Frozen::Linear(l) => biases[l.site.index()] = l.bias.clone().map(to_vec),
            Frozen::Norm(n) => {
                gains[n.site.index()] = Some(to_vec(n.weight.clone()));
                biases[n.site.index()] = n.bias.clone().map(to_vec);
            }
            Frozen::Embedding(_) | Frozen::Conv(_) | Frozen::Param(_) => {}
        });
    }
    (biases, gains)
}

pub(crate) fn factors(
    config: &PelaConfig,
    context: &BuildContext<'_>,
    id: SiteId,
    (l, r): (Vec<f32>, Vec<f32>),
    bias: Option<&[f32]>,
) -> Factors {
    let (info, device) = (context.sites.info(id), &context.device);
    let (path, d_in, d_out) = (&info.path, info.d_in, info.d_out);
    let rank = config.rank(d_in, d_out);
    let bias = (config.train_norms && info.has_bias)
        .then(|| bias.map_or_else(|| vec![0.0; d_out], <[f32]>::to_vec));
    Factors {
        l: Parameter::new(format!("{path}.0.weight"), &[rank, d_in], l, device),
        r: Parameter::new(format!("{path}.1.weight"), &[d_out, rank], r, device),
        bias: bias.map(|bias| Parameter::new(format!("{path}.1.bias"), &[d_out], bias, device)),
    }
}

pub(crate) fn norm(
    context: &BuildContext<'_>,
    info: &SiteInfo,
    gain: Option<&[f32]>,
    bias: Option<&[f32]>,
) -> TrainedNorm {
    let (path, d) = (&info.path, info.d_out);
    let make = |name: &str, values: Option<&[f32]>| {
        let values = values.map_or_else(|| vec![0.0; d], <[f32]>::to_vec);
        Parameter::new(format!("{path}.{name}"), &[d], values, &context.device)
    };
    TrainedNorm {
        weight: make("weight", gain),
        bias: info.has_bias.then(|| make("bias", bias)),
    }
}
