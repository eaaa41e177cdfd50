//! What the training of a model's own weights needs beside gradients: means of losses over blocks,
//! statistics that follow the data, branches that are left out.

use std::sync::{Mutex, PoisonError};

use burn::prelude::*;
use frugal_nn::{Param, Parameter, SiteId, SiteInfo, named_rng, to_vec};
use rand::Rng;

/// A mean over blocks: what has come so far, and of how many.
#[derive(Default)]
pub(crate) struct MeanLoss(Option<(Tensor<1>, usize)>);

impl MeanLoss {
    pub(crate) fn add(&mut self, loss: Tensor<1>) {
        self.0 = Some(match self.0.take() {
            Some((sum, blocks)) => (sum + loss, blocks + 1),
            None => (loss, 1),
        });
    }

    pub(crate) fn take(&mut self) -> Option<Tensor<1>> {
        self.0.take().map(|(sum, blocks)| sum / blocks as f64)
    }
}

/// The shape that a bare parameter is held in.
pub(crate) fn param_shape(site: &SiteInfo) -> Vec<usize> {
    match site.is_vector {
        true => vec![site.d_out],
        false => vec![site.d_out, site.d_in],
    }
}

/// What a statistic of the data moves towards, and by how much.
pub(crate) struct Moved {
    /// The statistic.
    pub site: SiteId,
    of_batch: Vec<f32>,
    momentum: f64,
}

impl Moved {
    /// Moves the values.
    pub(crate) fn apply(self, running: &mut Parameter) {
        let momentum = self.momentum as f32;
        let pairs = running.to_vec().into_iter().zip(self.of_batch);
        let moved = pairs.map(|(old, new)| (1.0 - momentum) * old + momentum * new);
        let moved = moved.collect();
        running.set(moved);
    }
}

/// The statistics of the batches of a step so far.
#[derive(Default)]
pub(crate) struct Statistics(Mutex<Vec<Moved>>);

impl Statistics {
    /// Those of a batch.
    pub(crate) fn add(&self, running: [&Param; 2], of_batch: [Tensor<1>; 2], momentum: f64) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (param, values) in running.into_iter().zip(of_batch) {
            all.push(Moved {
                site: param.site,
                of_batch: to_vec(values),
                momentum,
            });
        }
    }

    /// All of them; none are left.
    pub(crate) fn take(&mut self) -> Vec<Moved> {
        let all = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(all)
    }
}

/// Factors of a branch for each sequence: 0 at this rate, and elsewhere what keeps the mean.
pub(crate) fn drop_path(seed: u64, layer: usize, rate: f64, sequences: usize) -> Option<Vec<f32>> {
    if rate <= 0.0 {
        return None;
    }
    let mut rng = named_rng(seed, &format!("drop path {layer}"));
    let kept = (1.0 / (1.0 - rate)) as f32;
    let draw = |_| match rng.random_bool(rate) {
        true => 0.0,
        false => kept,
    };
    Some((0..sequences).map(draw).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_are_left_out_as_often_as_asked_and_keep_their_mean() {
        let factors = drop_path(3, 1, 0.25, 20_000).unwrap();
        let dropped = factors.iter().filter(|f| **f == 0.0).count() as f64 / 20_000.0;
        let mean = factors.iter().map(|f| f64::from(*f)).sum::<f64>() / 20_000.0;
        assert!((dropped - 0.25).abs() < 0.015, "{dropped}");
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        assert_eq!(drop_path(3, 1, 0.0, 4), None);
        assert_eq!(drop_path(3, 1, 0.25, 9).unwrap(), factors[..9]);
        assert_ne!(drop_path(3, 2, 0.25, 64).unwrap(), factors[..64]);
    }
}
