//! What fresh mixers of state space models are drawn from.

use frugal_nn::{ModelError, SiteInfo, SiteKind, named_rng, standard_normal, uniform};

use crate::keys::positive;

/// Settings of `MambaPreTrainedModel._init_weights` that all such models have.
#[derive(Clone, Copy, Debug)]
pub struct MixerInit {
    /// Standard deviation of what has no rule of its own.
    pub std: f64,
    /// Smallest step.
    pub min: f64,
    /// Largest step.
    pub max: f64,
    /// Below which no step is drawn.
    pub floor: f64,
    /// What the way back to the residual stream is divided by.
    pub residual: f64,
}

impl MixerInit {
    /// Every number must be above 0.
    ///
    /// # Errors
    /// The key that is not.
    pub(crate) fn check(&self, source: &str) -> Result<(), ModelError> {
        let all = [
            ("initializer_range", self.std),
            ("time_step_min", self.min),
            ("time_step_max", self.max),
            ("time_step_floor", self.floor),
        ];
        all.into_iter()
            .try_for_each(|(key, value)| positive(key, value, source).map(|_| ()))
    }

    /// A weight that mixers of all kinds have, or one without a rule of its own; `None` for norms.
    pub(crate) fn weight(&self, site: &SiteInfo, seed: u64) -> Option<Vec<f32>> {
        let len = site.d_in * site.d_out;
        match site.name() {
            "D" => Some(vec![1.0; len]),
            "conv1d" => Some(within(by_inputs(site), site, seed)),
            "out_proj" => Some(within(by_inputs(site) / self.residual, site, seed)),
            _ if site.kind == SiteKind::Norm => None,
            _ => {
                let mut rng = named_rng(seed, &site.weight_name());
                let draw = |_| self.std as f32 * standard_normal(&mut rng);
                Some((0..len).map(draw).collect())
            }
        }
    }

    /// What the softplus makes steps of, whose logarithms are evenly spread.
    pub(crate) fn steps(&self, name: &str, count: usize, seed: u64) -> Vec<f32> {
        let mut rng = named_rng(seed, name);
        let (low, high) = (self.min.ln(), self.max.ln());
        let draw = |_| {
            let step = (low + (high - low) * uniform(&mut rng)).exp();
            let step = step.max(self.floor);
            (step + (-(-step).exp_m1()).ln()) as f32
        };
        (0..count).map(draw).collect()
    }
}

/// The bound of Kaiming's uniform distribution with a = √5.
pub(crate) fn by_inputs(site: &SiteInfo) -> f64 {
    1.0 / (site.d_in as f64).sqrt()
}

/// A weight evenly spread within a bound.
pub(crate) fn within(bound: f64, site: &SiteInfo, seed: u64) -> Vec<f32> {
    let mut rng = named_rng(seed, &site.weight_name());
    let draw = |_| (bound * (2.0 * uniform(&mut rng) - 1.0)) as f32;
    (0..site.d_in * site.d_out).map(draw).collect()
}
