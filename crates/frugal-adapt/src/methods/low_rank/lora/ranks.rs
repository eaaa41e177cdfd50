//! Other ranks for the layers of an adapter that has not learned yet.

use burn::prelude::*;
use frugal_nn::{Parameter, SiteId};
use serde_json::json;

use crate::methods::low_rank::lora::Lora;

impl Lora {
    /// Gives layers these ranks and `A [rank, d_in]`, with `B` zero; rank 0 takes a layer out. The
    /// scale of a layer stays where `keeps_scale`, and its `lora_alpha` elsewhere.
    pub(crate) fn set_ranks(&mut self, ranks: Vec<(SiteId, usize, Vec<f32>)>, keeps_scale: bool) {
        let rslora = self.config.use_rslora;
        let root = |rank: usize| match rslora {
            true => (rank as f32).sqrt(),
            false => rank as f32,
        };
        let (mut other_ranks, mut other_alphas) = (Vec::new(), Vec::new());
        let mut left_out = false;
        for (site, rank, values) in ranks {
            let Some(pair) = self.pairs[site.index()].as_mut() else {
                continue;
            };
            if rank == 0 {
                self.pairs[site.index()] = None;
                left_out = true;
                continue;
            }
            let (before, d_in, d_out) = (pair.a.shape()[0], pair.a.shape()[1], pair.b.shape()[0]);
            let device: Device = pair.a.device();
            let mut alpha = f64::from(pair.scale * root(before));
            if keeps_scale {
                alpha *= rank as f64 / before as f64;
            }
            pair.scale = (alpha / f64::from(root(rank))) as f32;
            let name = pair.a.name().to_owned();
            pair.a = Parameter::new(name, &[rank, d_in], values, &device);
            if rank != before {
                let (name, values) = (pair.b.name().to_owned(), vec![0.0; d_out * rank]);
                pair.b = Parameter::new(name, &[d_out, rank], values, &device);
            }
            if rank != self.config.r {
                other_ranks.push((pair.path.clone(), rank));
            }
            if (alpha - self.config.lora_alpha).abs() > 1e-5 * alpha.abs() {
                other_alphas.push((pair.path.clone(), alpha));
            }
        }
        self.config.rank_pattern = other_ranks.into_iter().collect();
        self.config.alpha_pattern = other_alphas.into_iter().collect();
        if left_out {
            let paths = self.pairs.iter().flatten().map(|pair| &pair.path);
            self.saved_targets = json!(paths.collect::<Vec<_>>());
        }
    }
}
