//! The selective scan over images: SS2D of VMamba, and ES2D of EfficientVMamba, which scans each pixel
//! once.

use burn::prelude::*;
use frugal_kernels::{SelectiveScan, depthwise_conv2d, selective_scan, silu};
use frugal_nn::{
    Conv, Frozen, Linear, ModelError, Norm, Param, ParamChange, Pass, Rows, SiteInfo, SiteKind,
};

use super::mixer_init::{MixerInit, by_inputs, within};
use super::sites::Sites;
use super::sub_grids::{DIRECTIONS, ScanPattern, SubGrids};
use crate::architecture::FirstValues;
use crate::weights::WeightLoader;

/// Sizes of a scan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ScanSizes {
    /// Width of the rows.
    pub width: usize,
    /// Channels of the recurrence.
    pub inner: usize,
    /// Numbers that each channel remembers.
    pub state: usize,
    /// Width from which the steps are projected.
    pub rank: usize,
    /// Which pixels a sequence has.
    pub pattern: ScanPattern,
    /// Epsilon of the norm.
    pub eps: f64,
}

/// The parameters of one sequence.
struct Direction {
    x_proj: Linear,
    dt_proj: Linear,
    a_log: Param,
    d: Param,
    /// `-exp(A_log)` of the base.
    a: Tensor<2>,
}

/// Projection, depth-wise convolution, four scans with parameters of their own, norm, gate, projection.
pub(crate) struct Scan2d {
    sizes: ScanSizes,
    in_proj: Linear,
    conv: Conv,
    directions: Vec<Direction>,
    norm: Norm,
    out_proj: Linear,
}

/// What fresh steps are drawn from.
const INIT: MixerInit = MixerInit {
    std: 0.02,
    min: 1e-3,
    max: 0.1,
    floor: 1e-4,
    residual: 1.0,
};

impl Scan2d {
    /// The sites under `path`.
    pub(crate) fn sites(sites: &mut Sites, path: &str, layer: usize, sizes: ScanSizes) {
        let ScanSizes {
            width,
            inner,
            state,
            rank,
            ..
        } = sizes;
        let p = |name: &str| format!("{path}.{name}");
        sites.linear(p("in_proj"), layer, [width, 2 * inner], false);
        sites
            .add(p("conv2d"), SiteKind::Conv, Some(layer), [9, inner], true)
            .stored = Some(vec![inner, 1, 3, 3]);
        for k in 0..DIRECTIONS {
            let p = |name: &str| format!("{path}.scans.{k}.{name}");
            sites.linear(p("x_proj"), layer, [inner, rank + 2 * state], false);
            sites.linear(p("dt_proj"), layer, [rank, inner], true);
            let param = SiteKind::Param;
            sites.add(p("A_log"), param, Some(layer), [state, inner], false);
            sites
                .add(p("D"), param, Some(layer), [1, inner], false)
                .is_vector = true;
        }
        sites.layer_norm(p("out_norm"), Some(layer), inner);
        sites.linear(p("out_proj"), layer, [inner, width], false);
    }

    /// As the published code begins; `None` for what has no rule of its own.
    pub(crate) fn first_values(
        site: &SiteInfo,
        tensor: FirstValues,
        seed: u64,
    ) -> Option<Vec<f32>> {
        let len = site.d_in * site.d_out;
        match (site.name(), tensor) {
            ("A_log", FirstValues::Weight) => {
                let row = |n: usize| ((n % site.d_in + 1) as f32).ln();
                Some((0..len).map(row).collect())
            }
            ("D", FirstValues::Weight) => Some(vec![1.0; len]),
            ("dt_proj", FirstValues::Weight) => Some(within(by_inputs(site), site, seed)),
            ("dt_proj", FirstValues::Bias) => {
                let name = format!("{}.bias", site.path);
                Some(INIT.steps(&name, site.d_out, seed))
            }
            _ => None,
        }
    }

    /// # Errors
    /// When a tensor cannot be read.
    pub(crate) fn load(
        loader: &mut WeightLoader<'_>,
        path: &str,
        sizes: ScanSizes,
    ) -> Result<Self, ModelError> {
        let p = |name: &str| format!("{path}.{name}");
        let mut directions = Vec::with_capacity(DIRECTIONS);
        for k in 0..DIRECTIONS {
            let p = |name: &str| format!("{path}.scans.{k}.{name}");
            let a_log = loader.param(&p("A_log"))?;
            directions.push(Direction {
                x_proj: loader.linear(&p("x_proj"))?,
                dt_proj: loader.linear(&p("dt_proj"))?,
                a: decay(a_log.value.clone()),
                a_log,
                d: loader.param(&p("D"))?,
            });
        }
        Ok(Self {
            sizes,
            in_proj: loader.linear(&p("in_proj"))?,
            conv: loader.conv(&p("conv2d"))?,
            directions,
            norm: loader.layer_norm(&p("out_norm"), sizes.eps)?,
            out_proj: loader.linear(&p("out_proj"))?,
        })
    }

    /// `[images * height * width, d]` to the same.
    pub(crate) fn forward(&self, x: Tensor<2>, grid: [usize; 2], pass: &mut dyn Pass) -> Tensor<2> {
        let inner = self.sizes.inner;
        let both = pass.linear_rows(&self.in_proj, x, Rows::Chosen);
        let (u, z) = (
            both.clone().narrow(1, 0, inner),
            both.narrow(1, inner, inner),
        );
        let (weight, bias) = pass.conv(&self.conv, Rows::Chosen);
        let u = silu(depthwise_conv2d(u, weight, bias, grid));
        let y = self.scans(u, grid, pass);
        let y = pass.norm_rows(&self.norm, y, Rows::Chosen) * silu(z);
        pass.linear_rows(&self.out_proj, y, Rows::Chosen)
    }

    /// What the four scans give of each pixel: `[images * pixels, inner]` to the same.
    pub(crate) fn scans(&self, u: Tensor<2>, grid: [usize; 2], pass: &mut dyn Pass) -> Tensor<2> {
        let images = u.dims()[0] / (grid[0] * grid[1]);
        let grids = SubGrids::of(self.sizes.pattern, grid, images);
        let mut sequences = grids.split(u).into_iter();
        let outputs = std::array::from_fn(|k| {
            let sequence = sequences
                .next()
                .unwrap_or_else(|| unreachable!("there are four"));
            self.scan(&self.directions[k], sequence, &grids, pass)
        });
        grids.merge(outputs)
    }

    fn scan(
        &self,
        direction: &Direction,
        x: Tensor<2>,
        grids: &SubGrids,
        pass: &mut dyn Pass,
    ) -> Tensor<2> {
        let ScanSizes {
            inner, state, rank, ..
        } = self.sizes;
        let projected = pass.linear_rows(&direction.x_proj, x.clone(), Rows::Chosen);
        let part = |from: usize, width: usize| projected.clone().narrow(1, from, width);
        let delta = pass.linear_rows(&direction.dt_proj, part(0, rank), Rows::Chosen);
        let a = match pass.param_change(&direction.a_log) {
            ParamChange::None => direction.a.clone(),
            _ => decay(pass.param(&direction.a_log, Rows::Chosen)),
        };
        let d = pass.param(&direction.d, Rows::Chosen).reshape([inner]);
        selective_scan(SelectiveScan {
            x,
            delta,
            a,
            b: part(rank, state),
            c: part(rank + state, state),
            d: Some(d),
            z: None,
            delta_bias: None,
            softplus: true,
            initial_state: None,
            cu_seqlens: grids.cu_seqlens.clone(),
        })
    }

    pub(crate) fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        visit(Frozen::Linear(&self.in_proj));
        visit(Frozen::Conv(&self.conv));
        for direction in &self.directions {
            visit(Frozen::Linear(&direction.x_proj));
            visit(Frozen::Linear(&direction.dt_proj));
            visit(Frozen::Param(&direction.a_log));
            visit(Frozen::Param(&direction.d));
        }
        visit(Frozen::Norm(&self.norm));
        visit(Frozen::Linear(&self.out_proj));
    }
}

/// `-exp(A_log)`.
fn decay(a_log: Tensor<2>) -> Tensor<2> {
    a_log.exp().neg()
}
