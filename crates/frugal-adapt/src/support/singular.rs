//! Singular vectors of a layer's weight, for methods that keep them in their files.

use burn::prelude::*;
use frugal_nn::linalg::{randomised_svd, svd};
use frugal_nn::{Parameter, SiteInfo, to_vec};

/// The largest singular triples of a weight `[d_out, d_in]`.
pub(crate) struct Triples {
    /// `[d_out, r]`.
    pub u: Vec<f32>,
    /// `[r]`.
    pub s: Vec<f32>,
    /// `[r, d_in]`.
    pub vt: Vec<f32>,
}

/// The `r` largest triples, by a randomised decomposition where `r` is small; zeros where there is no
/// weight (planning). `r` is at most the smaller side.
pub(crate) fn triples(weight: Option<&Tensor<2>>, info: &SiteInfo, r: usize, seed: u64) -> Triples {
    let (d_in, d_out) = (info.d_in, info.d_out);
    let Some(weight) = weight else {
        return Triples {
            u: vec![0.0; d_out * r],
            s: vec![0.0; r],
            vt: vec![0.0; r * d_in],
        };
    };
    let values = to_vec(weight.clone());
    let found = match 4 * r > d_in.min(d_out) {
        true => svd(&values, d_out, d_in),
        false => randomised_svd(&values, d_out, d_in, r, r.max(8), 4, seed),
    };
    let k = found.s.len();
    Triples {
        u: (0..d_out * r).map(|n| found.u[n / r * k + n % r]).collect(),
        s: found.s[..r].to_vec(),
        vt: found.vt[..r * d_in].to_vec(),
    }
}

/// A matrix that files hold and nothing trains.
pub(crate) fn kept(
    info: &SiteInfo,
    name: &str,
    shape: [usize; 2],
    values: Vec<f32>,
    device: &Device,
) -> Parameter {
    Parameter::frozen(format!("{}.{name}", info.path), &shape, values, device)
}
