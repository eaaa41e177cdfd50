//! Fast weights: low-rank pairs whose values are given to each pass, beside a frozen model.

use burn::prelude::*;
use burn::tensor::Gradients;
use frugal_adapt::Names;
use frugal_adapt::methods::low_rank::lora::{Lora, LoraConfig};
use frugal_nn::{
    AdaptError, Adapter, Backbone, BuildContext, Linear, LinearChange, LowRankChange, Pass,
    SiteTable, to_vec,
};

use super::config::PerkConfig;
use super::error::PerkError;
use super::unroll::Tensors;
use super::weights::WIDTH;

/// Where a pair acts.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// Path of the layer.
    pub path: String,
    /// Its number among the sites.
    site: usize,
    rank: usize,
    d_in: usize,
    d_out: usize,
    scale: f32,
}

/// Low-rank pairs of a model's layers, outside of any module.
#[derive(Clone, Debug)]
pub struct FastWeights {
    places: Vec<Place>,
    sites: usize,
    /// `A [r, d_in]` and `B [d_out, r]` of each place in turn, row by row.
    pub values: Tensors<f32>,
}

/// What building an adapter of a model needs.
pub(crate) fn context(backbone: &dyn Backbone, seed: u64) -> BuildContext<'_> {
    BuildContext {
        info: backbone.info(),
        sites: backbone.sites(),
        backbone: Some(backbone),
        device: backbone.device().clone(),
        seed,
        tokenize: None,
    }
}

fn settings(config: &PerkConfig) -> LoraConfig {
    let mut settings = LoraConfig {
        r: config.r,
        lora_alpha: config.lora_alpha,
        use_rslora: true,
        ..LoraConfig::default()
    };
    if !config.target_modules.is_empty() {
        settings.target_modules = Names::List(config.target_modules.clone());
    }
    settings
}

/// A fresh LoRA of these settings: `A` Kaiming-uniform, `B` zero.
fn lora(config: &PerkConfig, backbone: &dyn Backbone, seed: u64) -> Result<Lora, PerkError> {
    Ok(Lora::new(settings(config), &context(backbone, seed))?)
}

/// Learnt values of a state, known before anything is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Of the adapter.
    pub adapter: usize,
    /// Of the network of token weights.
    pub token_weights: usize,
    /// Learning rates.
    pub rates: usize,
}

impl Sizes {
    /// Of a state with these settings for a model.
    ///
    /// # Errors
    /// Settings that cannot be, targets that the model does not have.
    pub fn of(
        config: &PerkConfig,
        sites: &SiteTable,
        hidden_size: usize,
    ) -> Result<Self, PerkError> {
        config.validate()?;
        let chosen = settings(config).targets().select(sites);
        let chosen = chosen.map_err(AdaptError::from)?;
        let sides = chosen.iter().map(|&id| {
            let site = sites.info(id);
            site.d_in + site.d_out
        });
        let tensors = 2 * chosen.len();
        Ok(Self {
            adapter: sides.sum::<usize>().saturating_mul(config.r),
            token_weights: match config.token_weights {
                true => WIDTH * (hidden_size + 2) + 1,
                false => 0,
            },
            rates: match config.learned_rates {
                true => tensors * (config.inner_steps + 1),
                false => 0,
            },
        })
    }
}

impl FastWeights {
    /// Fresh ones.
    ///
    /// # Errors
    /// Settings that do not fit the model.
    pub fn new(config: &PerkConfig, backbone: &dyn Backbone, seed: u64) -> Result<Self, PerkError> {
        Self::of(&lora(config, backbone, seed)?, backbone)
    }

    /// Those of an adapter.
    ///
    /// # Errors
    /// An adapter that is more than low-rank pairs on layers of this model.
    pub fn of(adapter: &dyn Adapter, backbone: &dyn Backbone) -> Result<Self, PerkError> {
        let sites = backbone.sites();
        let factors = adapter
            .low_rank_factors()
            .ok_or_else(|| PerkError::Config {
                key: "adapter",
                reason: format!("`{}` is not a plain LoRA", adapter.method()),
            })?;
        let (mut places, mut values) = (Vec::new(), Vec::new());
        for factor in factors {
            let site = sites.find(factor.path).ok_or_else(|| PerkError::Config {
                key: "adapter",
                reason: format!("the model has no layer `{}`", factor.path),
            })?;
            let (&[rank, d_in], &[d_out, _]) = (factor.a.shape(), factor.b.shape()) else {
                return Err(PerkError::Config {
                    key: "adapter",
                    reason: format!("the pair of `{}` is not of two matrices", factor.path),
                });
            };
            if !sites.info(site).kind.is_inner_linear() {
                return Err(PerkError::Config {
                    key: "target_modules",
                    reason: format!("`{}` is no linear layer of a block", factor.path),
                });
            }
            places.push(Place {
                path: factor.path.to_owned(),
                site: site.index(),
                rank,
                d_in,
                d_out,
                scale: factor.scale,
            });
            values.extend([factor.a.to_vec(), factor.b.to_vec()]);
        }
        Ok(Self {
            places,
            sites: sites.len(),
            values,
        })
    }

    /// The places of an adapter of these settings.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(super) fn shapes_of(
        config: &PerkConfig,
        backbone: &dyn Backbone,
    ) -> Result<Vec<Place>, PerkError> {
        Ok(Self::of(&lora(config, backbone, 0)?, backbone)?.places)
    }

    /// Where the pairs act.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// Keys of the tensors without the wrapper's prefix, in the order of [`Self::values`].
    pub fn names(&self) -> impl Iterator<Item = String> {
        let of =
            |place: &Place| ["A", "B"].map(|which| format!("{}.lora_{which}.weight", place.path));
        self.places.iter().flat_map(of)
    }

    /// Number of values.
    pub fn num_parameters(&self) -> usize {
        self.values.iter().map(Vec::len).sum()
    }

    /// The adapter of these settings with the given values, to save it or to write text with it.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn adapter(
        &self,
        config: &PerkConfig,
        backbone: &dyn Backbone,
        values: &[Vec<f32>],
    ) -> Result<Box<dyn Adapter>, PerkError> {
        let mut adapter = lora(config, backbone, 0)?;
        let parameters = adapter.parameters_mut();
        if parameters.len() != values.len() {
            return Err(PerkError::Steps(format!(
                "{} tensors for {} of the adapter",
                values.len(),
                parameters.len()
            )));
        }
        for (parameter, values) in parameters.into_iter().zip(values) {
            parameter.set(values.clone());
        }
        Ok(Box::new(adapter))
    }

    /// Hooks of one forward pass with these values in place of the own ones; in the gradient graph
    /// where `graph` says so.
    pub(super) fn pass(&self, values: &[Vec<f32>], device: &Device, graph: bool) -> FastPass {
        let device = device.clone().inner();
        let leaf = |values: &[f32], shape: [usize; 2]| {
            let data = TensorData::new(values.to_vec(), shape);
            match graph {
                true => Tensor::<2>::from_data(data, &device.clone().autodiff()).require_grad(),
                false => Tensor::<2>::from_data(data, &device),
            }
        };
        let mut changes = vec![None; self.sites];
        let mut leaves = Vec::with_capacity(values.len());
        for (place, pair) in self.places.iter().zip(values.chunks_exact(2)) {
            let a = leaf(&pair[0], [place.rank, place.d_in]);
            let b = leaf(&pair[1], [place.d_out, place.rank]);
            leaves.extend([a.clone(), b.clone()]);
            changes[place.site] = Some(LowRankChange {
                a,
                b,
                scale: place.scale,
            });
        }
        FastPass { changes, leaves }
    }
}

/// One forward pass with fast weights.
pub(super) struct FastPass {
    /// By site.
    changes: Vec<Option<LowRankChange>>,
    leaves: Vec<Tensor<2>>,
}

impl FastPass {
    /// The gradients of the values, 0 where the loss does not depend on them.
    pub fn gradients(&self, found: &mut Gradients) -> Tensors<f32> {
        let of = |leaf: &Tensor<2>| match leaf.grad_remove(found) {
            Some(gradient) => to_vec(gradient),
            None => vec![0.0; leaf.dims().iter().product()],
        };
        self.leaves.iter().map(of).collect()
    }
}

impl Pass for FastPass {
    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        match self.changes.get(base.site.index()) {
            Some(Some(change)) => LinearChange::LowRank(change.clone()),
            _ => LinearChange::None,
        }
    }
}
