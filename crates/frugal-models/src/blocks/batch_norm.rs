//! Batch normalisation of rows (Ioffe and Szegedy, *Batch Normalization*, arXiv 1502.03167).

use burn::prelude::*;
use frugal_nn::{Frozen, ModelError, Param, Pass, Rows, SiteInfo, SiteKind};

use crate::architecture::FirstValues;
use crate::blocks::sites::Sites;
use crate::weights::WeightLoader;

const WEIGHT: &str = "weight";
const BIAS: &str = "bias";
const MEAN: &str = "running_mean";
const VARIANCE: &str = "running_var";

/// Each channel of a batch without its mean and divided by its deviation, with a gain and a bias.
///
/// Where the model itself is trained, mean and variance are those of the batch, and the values that
/// files keep follow them; else they are those that files keep. Names are those of PyTorch.
pub(crate) struct BatchNorm {
    weight: Param,
    bias: Param,
    running_mean: Param,
    running_var: Param,
    eps: f64,
    momentum: f64,
}

/// Numbers that all of a model's batch norms share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct BatchNormSettings {
    /// Added to the variance.
    pub eps: f64,
    /// How far the kept values move towards those of a batch.
    pub momentum: f64,
}

impl BatchNorm {
    /// The sites of a norm of so many channels.
    pub(crate) fn sites(sites: &mut Sites, path: &str, layer: Option<usize>, width: usize) {
        for name in [WEIGHT, BIAS, MEAN, VARIANCE] {
            let path = format!("{path}.{name}");
            let site = sites.add(path, SiteKind::Param, layer, [1, width], false);
            site.is_vector = true;
            site.is_statistic = [MEAN, VARIANCE].contains(&name);
        }
    }

    /// Gains and variances begin at 1, biases and means at 0; `None` for other sites.
    pub(crate) fn first_values(site: &SiteInfo, tensor: FirstValues) -> Option<Vec<f32>> {
        if site.kind != SiteKind::Param || tensor != FirstValues::Weight {
            return None;
        }
        let value = match site.name() {
            WEIGHT | VARIANCE => 1.0,
            BIAS | MEAN => 0.0,
            _ => return None,
        };
        Some(vec![value; site.d_out])
    }

    /// # Errors
    /// When a tensor cannot be read.
    pub(crate) fn load(
        loader: &mut WeightLoader<'_>,
        path: &str,
        settings: BatchNormSettings,
    ) -> Result<Self, ModelError> {
        let mut param = |name: &str| loader.param(&format!("{path}.{name}"));
        Ok(Self {
            weight: param(WEIGHT)?,
            bias: param(BIAS)?,
            running_mean: param(MEAN)?,
            running_var: param(VARIANCE)?,
            eps: settings.eps,
            momentum: settings.momentum,
        })
    }

    /// `[rows, channels]` to the same.
    pub(crate) fn forward(&self, x: Tensor<2>, pass: &mut dyn Pass) -> Tensor<2> {
        let [rows, width] = x.dims();
        let row = |param: &Param, pass: &mut dyn Pass| {
            pass.param(param, Rows::Chosen).reshape([1, width])
        };
        let (weight, bias) = (row(&self.weight, pass), row(&self.bias, pass));
        // One row has no variance of its own.
        if !pass.trains_model() || rows < 2 {
            let mean = row(&self.running_mean, pass);
            let variance = row(&self.running_var, pass);
            let scale = weight / (variance + self.eps).sqrt();
            return x * scale.clone() + (bias - mean * scale);
        }
        let mean = x.clone().mean_dim(0);
        let centered = x - mean.clone();
        let variance = (centered.clone() * centered.clone()).mean_dim(0);
        let unbiased = rows as f64 / (rows - 1) as f64;
        let of_batch = [mean, variance.clone() * unbiased];
        pass.batch_statistics(
            [&self.running_mean, &self.running_var],
            of_batch.map(|values| values.detach().reshape([width])),
            self.momentum,
        );
        centered * (weight / (variance + self.eps).sqrt()) + bias
    }

    pub(crate) fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        let all = [
            &self.weight,
            &self.bias,
            &self.running_mean,
            &self.running_var,
        ];
        all.into_iter()
            .for_each(|param| visit(Frozen::Param(param)));
    }
}
