//! The parameters of a document: a low-rank pair for each feed-forward matrix.

use burn::prelude::*;
use frugal_nn::{named_rng, to_vec};
use rand::Rng;

use super::config::ParametricConfig;
use super::error::ParametricError;
use super::feed_forward::FeedForward;

/// The pair of one matrix; the change is `scale · B A`.
#[derive(Clone, Debug)]
pub struct Factors {
    /// A, `[r, d_in]`.
    pub a: Tensor<2>,
    /// B, `[d_out, r]`.
    pub b: Tensor<2>,
}

/// The pairs of all matrices, in the order of [`FeedForward::places`]. Tensors of a gradient graph
/// stay in it.
#[derive(Clone, Debug)]
pub struct DocumentWeights {
    /// Rank of every pair.
    pub rank: usize,
    /// The pairs.
    pub factors: Vec<Factors>,
}

impl DocumentWeights {
    /// Where all documents begin: A uniform within `±1/√d_in` (PEFT's Kaiming-uniform with `a = √5`),
    /// B zero.
    ///
    /// # Errors
    /// Settings out of range, a rank that the model has no room for.
    pub fn start(
        places: &FeedForward,
        config: &ParametricConfig,
        device: &Device,
    ) -> Result<Self, ParametricError> {
        config.validate()?;
        places.check_rank(config.r)?;
        let factors = places.places().iter().map(|place| {
            let bound = 1.0 / (place.d_in as f32).sqrt();
            let mut rng = named_rng(config.seed, &format!("start of {}", place.path));
            let a: Vec<f32> = (0..config.r * place.d_in)
                .map(|_| rng.random_range(-bound..bound))
                .collect();
            Factors {
                a: Tensor::from_data(TensorData::new(a, [config.r, place.d_in]), device),
                b: Tensor::zeros([place.d_out, config.r], device),
            }
        });
        Ok(Self {
            rank: config.r,
            factors: factors.collect(),
        })
    }

    /// Checks that there is a pair of the right shape for every matrix.
    ///
    /// # Errors
    /// The first that does not fit.
    pub(super) fn check(&self, places: &FeedForward) -> Result<(), ParametricError> {
        if self.factors.len() != places.places().len() {
            return Err(ParametricError::Merge(format!(
                "there are {} pairs for {} matrices",
                self.factors.len(),
                places.places().len()
            )));
        }
        for (place, Factors { a, b }) in places.places().iter().zip(&self.factors) {
            if a.dims() != [self.rank, place.d_in] || b.dims() != [place.d_out, self.rank] {
                return Err(ParametricError::Merge(format!(
                    "`{}`: a pair of {:?} and {:?} at rank {}",
                    place.path,
                    a.dims(),
                    b.dims(),
                    self.rank
                )));
            }
        }
        Ok(())
    }

    /// The same outside of the gradient graph.
    pub fn detached(&self) -> Self {
        let factors = self.factors.iter().map(|pair| Factors {
            a: pair.a.clone().inner(),
            b: pair.b.clone().inner(),
        });
        Self {
            rank: self.rank,
            factors: factors.collect(),
        }
    }

    /// Whether all numbers are finite.
    pub(super) fn is_finite(&self) -> bool {
        let finite = |tensor: &Tensor<2>| to_vec(tensor.clone()).iter().all(|v| v.is_finite());
        self.factors
            .iter()
            .all(|pair| finite(&pair.a) && finite(&pair.b))
    }
}
