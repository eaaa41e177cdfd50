//! # Compacter: bottleneck adapters made of Kronecker products
//!
//! ## What it does
//! Puts small networks behind both halves of every block, as serial adapters do, but builds their
//! matrices from sums of Kronecker products whose left factors all networks share. A network then
//! costs hundreds of numbers, not thousands.
//!
//! ## Update rule
//! What a half adds to the residual stream becomes `h + f(h W_d + b_d) W_u + b_u`, where each
//! matrix is `W = Σᵢ Aᵢ ⊗ (sᵢ tᵢᵀ)` with `phm_dim` terms, `Aᵢ [phm_dim, phm_dim]` shared by the
//! whole model, `sᵢ [d_in / phm_dim, phm_rank]` and `tᵢ [d_out / phm_dim, phm_rank]`.
//!
//! ## When to use, when not
//! When an adapter must be very small and need not be merged. It is close to serial adapters at a
//! hundredth of their parameters. The matrices are built in every pass, which costs time on short
//! inputs.
//!
//! ## Cost
//! Trainable: `phm_dim³` once, per network `2 · phm_rank · (d_model + b) + d_model + b` with the
//! bottleneck `b`, and the norms of the blocks. Extra compute: that of serial adapters, also after
//! training; it cannot be merged.
//!
//! ## Defaults and where they come from
//! `phm_dim = 4`, rank 1, GELU, a bottleneck of `d_model / 32`, norms trained: the settings of the
//! paper's experiments.
//!
//! ## Departures from the paper
//! The bottleneck is rounded up to a multiple of `phm_dim`, which it must be. Initial values are
//! scaled so that the layer down starts with the size of an ordinary one, and the factors `tᵢ` of the
//! map up start at zero, so that nothing changes before training; the released code starts with
//! values near zero in all shared factors.
//!
//! ## References
//! - Mahabadi, Henderson, Ruder: Compacter: Efficient Low-Rank Hypercomplex Adapter Layers, 2021,
//!   arXiv 2106.04647.
//! - Zhang, Tay, Zhang, Chan, Luu, Hui, Fu: Beyond Fully-Connected Layers with Quaternions:
//!   Parameterization of Hypercomplex Multiplications with 1/n Parameters, 2021, arXiv 2102.08597.

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Linear, Mode, Norm, NormChange, Parameter, Pass, SubLayer,
    SubLayerIo, named_rng, standard_normal,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::method::{Family, Method, MethodConfig};
use crate::support::bottleneck::{NonLinearity, PerSubLayer, TrainedNorms, not_linear};
use crate::support::own_files;
use crate::target::Layers;

const NAME: &str = "compacter";

/// Registry entry.
pub const METHOD: Method = Method::of::<CompacterConfig>(
    Family::Bottleneck,
    "Serial adapters made of Kronecker products with shared factors",
    include_str!("compacter.rs"),
)
.aliases(&["phm-adapter"])
.default_lr(3e-3)
.without_merge();

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CompacterConfig {
    /// Terms of the sums, and sides of the shared factors; divides `d_model`.
    pub phm_dim: usize,
    /// Rank of the factors that are not shared.
    pub phm_rank: usize,
    /// `d_model` divided by the width of the bottleneck.
    pub reduction_factor: usize,
    /// What stands between the layers.
    pub non_linearity: NonLinearity,
    /// Train the norms of the blocks too.
    pub train_layer_norm: bool,
    /// Only these blocks.
    pub layers_to_transform: Option<Layers>,
}

impl Default for CompacterConfig {
    fn default() -> Self {
        Self {
            phm_dim: 4,
            phm_rank: 1,
            reduction_factor: 32,
            non_linearity: NonLinearity::GeluNew,
            train_layer_norm: true,
            layers_to_transform: None,
        }
    }
}

impl MethodConfig for CompacterConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "COMPACTER";

    fn validate(&self) -> Result<(), AdaptError> {
        for (field, value) in [
            ("phm_dim", self.phm_dim),
            ("phm_rank", self.phm_rank),
            ("reduction_factor", self.reduction_factor),
        ] {
            if value == 0 {
                return Err(AdaptError::Config {
                    method: NAME,
                    field,
                    reason: "must be at least 1".into(),
                });
            }
        }
        Ok(())
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(Compacter::new(self, context)?))
    }
}

/// A layer `[d_in, d_out]` as a sum of Kronecker products.
struct Phm {
    /// `[phm_dim, d_in / phm_dim, phm_rank]`.
    left: Parameter,
    /// `[phm_dim, phm_rank, d_out / phm_dim]`.
    right: Parameter,
    /// `[d_out]`.
    bias: Parameter,
}

impl Phm {
    fn new(
        name: &str,
        [d_in, d_out]: [usize; 2],
        zero: bool,
        config: &CompacterConfig,
        context: &BuildContext<'_>,
    ) -> Self {
        let (n, rank, device) = (config.phm_dim, config.phm_rank, &context.device);
        let mut rng = named_rng(context.seed, name);
        // With shared factors of variance 1/n, elements of the product have variance 1/d_in.
        let mut draw = |count: usize, std: f32| {
            (0..count)
                .map(|_| std * standard_normal(&mut rng))
                .collect::<Vec<f32>>()
        };
        let left = draw(n * rank * (d_in / n), 1.0);
        let right = draw(
            n * rank * (d_out / n),
            if zero {
                0.0
            } else {
                1.0 / ((rank * d_in) as f32).sqrt()
            },
        );
        Self {
            left: Parameter::new(format!("{name}.left"), &[n, d_in / n, rank], left, device),
            right: Parameter::new(
                format!("{name}.right"),
                &[n, rank, d_out / n],
                right,
                device,
            ),
            bias: Parameter::new(format!("{name}.bias"), &[d_out], vec![0.0; d_out], device),
        }
    }

    /// `[d_in, d_out]`.
    fn weight(&self, rule: &Tensor<2>, mode: Mode) -> Tensor<2> {
        let ([n, p, _], [_, _, q]) = (shape(&self.left), shape(&self.right));
        let parts = self
            .left
            .get::<3>(mode)
            .matmul(self.right.get::<3>(mode))
            .reshape([n, p * q]);
        kronecker_sum(rule.clone(), parts, p, q)
    }

    fn forward(&self, x: Tensor<2>, rule: &Tensor<2>, mode: Mode) -> Tensor<2> {
        x.matmul(self.weight(rule, mode)) + self.bias.get::<1>(mode).unsqueeze::<2>()
    }

    fn parameters(&self) -> [&Parameter; 3] {
        [&self.left, &self.right, &self.bias]
    }

    fn parameters_mut(&mut self) -> [&mut Parameter; 3] {
        [&mut self.left, &mut self.right, &mut self.bias]
    }
}

fn shape(parameter: &Parameter) -> [usize; 3] {
    [0, 1, 2].map(|i| parameter.shape()[i])
}

/// `Σᵢ Aᵢ ⊗ Bᵢ`, `[n p, n q]`, of `rule` `[n, n n]` and `parts` `[n, p q]`.
fn kronecker_sum(rule: Tensor<2>, parts: Tensor<2>, p: usize, q: usize) -> Tensor<2> {
    let n = rule.dims()[0];
    rule.transpose()
        .matmul(parts)
        .reshape([n, n, p, q])
        .swap_dims(1, 2)
        .reshape([n * p, n * q])
}

/// A compacter adapter.
pub struct Compacter {
    config: CompacterConfig,
    /// `[phm_dim, phm_dim, phm_dim]`, shared by all layers.
    rule: Parameter,
    networks: PerSubLayer<[Phm; 2]>,
    norms: TrainedNorms,
}

impl Compacter {
    /// Builds the networks.
    ///
    /// # Errors
    /// Bad settings, blocks that the model lacks, a width that `phm_dim` does not divide.
    pub fn new(config: CompacterConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        config.validate()?;
        let (n, d) = (config.phm_dim, context.info.hidden_size);
        if !d.is_multiple_of(n) {
            return Err(AdaptError::Config {
                method: NAME,
                field: "phm_dim",
                reason: format!("{n} does not divide the model's width {d}"),
            });
        }
        let dim = (d / config.reduction_factor).max(1).next_multiple_of(n);
        let make = |name: &str| {
            [
                Phm::new(&format!("{name}.down"), [d, dim], false, &config, context),
                Phm::new(&format!("{name}.up"), [dim, d], true, &config, context),
            ]
        };
        let halves = [SubLayer::Attention, SubLayer::Mlp];
        let networks = PerSubLayer::new(
            NAME,
            config.layers_to_transform.as_ref(),
            &halves,
            context,
            make,
        )?;
        let norms = if config.train_layer_norm {
            TrainedNorms::new(context, |layer| networks.has(layer))
        } else {
            TrainedNorms::default()
        };
        let mut rng = named_rng(context.seed, "phm_rule");
        let rule = (0..n * n * n)
            .map(|_| standard_normal(&mut rng) / (n as f32).sqrt())
            .collect();
        Ok(Self {
            rule: Parameter::new("phm_rule", &[n, n, n], rule, &context.device),
            config,
            networks,
            norms,
        })
    }
}

struct CompacterPass<'a> {
    adapter: &'a Compacter,
    mode: Mode,
    /// `[phm_dim, phm_dim²]`.
    rule: Tensor<2>,
}

impl Pass for CompacterPass<'_> {
    fn sub_layer(&mut self, io: SubLayerIo<'_>) -> Tensor<2> {
        let SubLayerIo {
            layer,
            kind,
            output,
            ..
        } = io;
        let Some([down, up]) = self.adapter.networks.get(layer, kind) else {
            return output;
        };
        let hidden = self.adapter.config.non_linearity.apply(down.forward(
            output.clone(),
            &self.rule,
            self.mode,
        ));
        output + up.forward(hidden, &self.rule, self.mode)
    }

    fn norm_change(&mut self, base: &Norm) -> NormChange {
        self.adapter.norms.change(base, self.mode)
    }
}

impl Adapter for Compacter {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        let networks = self.networks.iter().flatten().flat_map(Phm::parameters);
        std::iter::once(&self.rule)
            .chain(networks)
            .chain(self.norms.parameters())
            .collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let networks = self
            .networks
            .iter_mut()
            .flatten()
            .flat_map(Phm::parameters_mut);
        std::iter::once(&mut self.rule)
            .chain(networks)
            .chain(self.norms.parameters_mut())
            .collect()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        let n = self.config.phm_dim;
        Box::new(CompacterPass {
            adapter: self,
            mode,
            rule: self.rule.get::<3>(mode).reshape([n, n * n]),
        })
    }

    fn peft_config(&self) -> Map<String, Value> {
        own_files::all_to_file("COMPACTER", &self.config)
    }

    fn weight_delta(&self, _base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Err(not_linear(NAME))
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use frugal_nn::to_vec;

    #[test]
    fn sums_of_kronecker_products_equal_those_of_numpy() {
        // numpy 2.4: sum(np.kron(A[i], B[i])) with A = arange(8).reshape(2, 2, 2), B =
        // arange(12).reshape(2, 2, 3) / 10.
        let device = Device::default();
        let range = |n: usize, scale: f32| (0..n).map(|i| i as f32 * scale).collect::<Vec<f32>>();
        let rule = Tensor::<2>::from_data(TensorData::new(range(8, 1.0), [2, 4]), &device);
        let parts = Tensor::<2>::from_data(TensorData::new(range(12, 0.1), [2, 6]), &device);
        let found = to_vec(kronecker_sum(rule, parts, 2, 3));
        for (found, expected) in found.iter().zip(NUMPY) {
            assert!(
                (found - expected).abs() < 1e-5,
                "{found} instead of {expected}"
            );
        }
    }
    #[rustfmt::skip]
    const NUMPY: [f32; 24] = [
        2.4, 2.8, 3.2, 3.0, 3.6, 4.2,
        3.6, 4.0, 4.4, 4.8, 5.4, 6.0,
        3.6, 4.4, 5.2, 4.2, 5.2, 6.2,
        6.0, 6.8, 7.6, 7.2, 8.2, 9.2,
    ];
}
