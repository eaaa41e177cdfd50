//! What is meta-learned, and writing a context with it.

use frugal_nn::{ActiveAdapters, Adapter, AdapterSet, Backbone, LoadedAdapter};

use super::config::PerkConfig;
use super::error::PerkError;
use super::fast::FastWeights;
use super::losses::ContextLoss;
use super::text::Batch;
use super::unroll::Tensors;
use super::weights::TokenWeights;

/// A meta-learned state: where adapters begin, how fast they learn in each step, and which tokens
/// count how much.
#[derive(Clone, Debug)]
pub struct PerkState {
    /// Its settings.
    pub config: PerkConfig,
    /// Where adapters begin, `φ(0)`.
    pub fast: FastWeights,
    /// The network of token weights, where there is one.
    pub weights: Option<TokenWeights>,
    /// Learning rates by tensor and step, `inner_steps + 1` for each tensor, of which the last is
    /// without effect, as in eric11eca/perk.
    pub rates: Vec<Vec<f32>>,
}

/// A context in the form of adapter values.
#[derive(Clone, Debug)]
pub struct Written {
    /// The adapter's values, `φ(N)`.
    pub values: Tensors<f32>,
    /// The loss of the context before each step.
    pub losses: Vec<f64>,
    /// Segments.
    pub documents: usize,
}

impl PerkState {
    /// A state that has learnt nothing.
    ///
    /// # Errors
    /// Settings that cannot be or do not fit the model, a model without a head over its vocabulary.
    pub fn new(config: PerkConfig, backbone: &dyn Backbone, seed: u64) -> Result<Self, PerkError> {
        config.validate()?;
        if backbone.lm_head().is_none() {
            return Err(PerkError::Text(backbone.info().why_no_head()));
        }
        let fast = FastWeights::new(&config, backbone, seed)?;
        let hidden_size = backbone.info().hidden_size;
        let weights = config
            .token_weights
            .then(|| TokenWeights::new(hidden_size, seed));
        let rates = vec![vec![config.inner_lr as f32; config.inner_steps + 1]; fast.values.len()];
        Ok(Self {
            config,
            fast,
            weights,
            rates,
        })
    }

    /// Whether all its values are finite.
    pub fn is_finite(&self) -> bool {
        let weights = self.weights.iter().flat_map(|net| &net.values);
        let all = self.fast.values.iter().chain(&self.rates).chain(weights);
        all.flatten().all(|value| value.is_finite())
    }

    /// Writes segments into an adapter that begins here; the state stays as it is. They are computed
    /// in `groups` parts: more of them need less memory, and give the same up to rounding.
    ///
    /// # Errors
    /// What the model refuses, a loss that is not finite.
    pub fn write(
        &self,
        backbone: &dyn Backbone,
        segments: &Batch,
        groups: usize,
    ) -> Result<Written, PerkError> {
        let weights = self.weights.as_ref();
        let mut loss = ContextLoss::new(backbone, &self.fast, weights, segments, groups);
        let unroll = self.config.unroll(0);
        let (values, losses) = unroll.adapt_only(&mut loss, &self.fast.values, &self.rates)?;
        Ok(Written {
            values,
            losses,
            documents: segments.sequences(),
        })
    }

    /// The adapter of these values, to write text with or to save.
    ///
    /// # Errors
    /// Values that are not those of this model's adapter.
    pub fn adapter(
        &self,
        backbone: &dyn Backbone,
        values: &[Vec<f32>],
    ) -> Result<Box<dyn Adapter>, PerkError> {
        self.fast.adapter(&self.config, backbone, values)
    }

    /// The same as the only one of a set, with the choice of it.
    ///
    /// # Errors
    /// As [`Self::adapter`].
    pub fn adapters(
        &self,
        backbone: &dyn Backbone,
        values: &[Vec<f32>],
    ) -> Result<(AdapterSet, ActiveAdapters), PerkError> {
        let mut set = AdapterSet::default();
        let adapter = self.adapter(backbone, values)?;
        set.insert(
            "written",
            LoadedAdapter {
                adapter,
                head: None,
            },
        );
        Ok((set, ActiveAdapters::One("written".to_owned())))
    }
}
