//! The parameter translator: a hypernetwork from a document's embedding to its parameters.
//!
//! For every matrix m of block ℓ a pair of two-layer networks without bias reads `z = [e; ℓ]`, the
//! embedding with the number of the block behind it: `A = V^A relu(U^A z)` as `[r, d_in]` and
//! `B = V^B relu(U^B z)` as `[d_out, r]`.

use burn::prelude::*;
use burn::tensor::activation::relu;
use frugal_kernels::linear;
use frugal_nn::{Mode, Parameter, named_rng, standard_normal};

use super::config::{TranslatorConfig, TranslatorInit};
use super::error::ParametricError;
use super::feed_forward::{FeedForward, Place};
use super::weights::{DocumentWeights, Factors};

/// Deviation of the official start.
const OFFICIAL_DEVIATION: f32 = 1e-7;
/// Deviation of our start, times `1/√fan_in`.
const DEVIATION: f32 = 1e-2;
/// Most weights of a translator: 16 GiB of them.
const LARGEST: u64 = 1 << 32;

/// Weights of a translator: `Σ 2(d+1)p + p r (d_in + d_out)` over all matrices.
pub fn num_translator_parameters(places: &FeedForward, width: usize, rank: usize) -> u64 {
    let (d, p, r) = (places.hidden_size() as u64, width as u64, rank as u64);
    let of = |place: &Place| 2 * (d + 1) * p + p * r * (place.d_in + place.d_out) as u64;
    places.places().iter().map(of).sum()
}

/// The two networks of one matrix.
#[derive(Clone, Debug)]
struct Networks {
    /// `U^A` `[p, d + 1]`, `V^A` `[r d_in, p]`, `U^B` `[p, d + 1]`, `V^B` `[d_out r, p]`.
    weights: [Parameter; 4],
    layer: usize,
}

/// Names of a matrix's four weights behind its path.
const NAMES: [&str; 4] = ["a.0.weight", "a.1.weight", "b.0.weight", "b.1.weight"];

/// A parameter translator.
#[derive(Clone, Debug)]
pub struct Translator {
    config: TranslatorConfig,
    places: FeedForward,
    networks: Vec<Networks>,
}

/// Names and shapes of a matrix's weights.
fn shapes(place: &Place, config: &TranslatorConfig, hidden: usize) -> [(String, [usize; 2]); 4] {
    let (p, r) = (config.width, config.parameters.r);
    let name = |i: usize| format!("{}.{}", place.path, NAMES[i]);
    [
        (name(0), [p, hidden + 1]),
        (name(1), [r * place.d_in, p]),
        (name(2), [p, hidden + 1]),
        (name(3), [place.d_out * r, p]),
    ]
}

impl Translator {
    /// One that nothing was taught. `seed` decides its weights.
    ///
    /// # Errors
    /// Settings out of range, sizes beyond all use.
    pub fn new(
        places: &FeedForward,
        config: TranslatorConfig,
        seed: u64,
        device: &Device,
    ) -> Result<Self, ParametricError> {
        Self::check(places, &config)?;
        Self::of(places, config, &mut |index, name, [rows, fan_in]| {
            let deviation = match config.init {
                TranslatorInit::Official => OFFICIAL_DEVIATION,
                TranslatorInit::NoChange if index == 3 => 0.0,
                TranslatorInit::NoChange => DEVIATION / (fan_in as f32).sqrt(),
            };
            let mut rng = named_rng(seed, name);
            let values = (0..rows * fan_in).map(|_| deviation * standard_normal(&mut rng));
            let values = values.collect();
            Ok(Parameter::new(name, &[rows, fan_in], values, device))
        })
    }

    /// Whether there can be one of these settings for these matrices, before anything is made.
    ///
    /// # Errors
    /// Settings out of range, sizes beyond all use.
    pub fn check(places: &FeedForward, config: &TranslatorConfig) -> Result<(), ParametricError> {
        config.validate()?;
        places.check_rank(config.parameters.r)?;
        let count = num_translator_parameters(places, config.width, config.parameters.r);
        if count <= LARGEST {
            return Ok(());
        }
        Err(ParametricError::Settings {
            field: "width",
            reason: format!(
                "it is {}, which makes {count} weights for this model, more than {LARGEST}",
                config.width
            ),
        })
    }

    /// One with these weights: `make` gets the number (0 to 3), name and shape of each.
    pub(super) fn of(
        places: &FeedForward,
        config: TranslatorConfig,
        make: &mut dyn FnMut(usize, &str, [usize; 2]) -> Result<Parameter, ParametricError>,
    ) -> Result<Self, ParametricError> {
        let mut networks = Vec::with_capacity(places.places().len());
        for place in places.places() {
            let mut weights = Vec::with_capacity(4);
            for (index, (name, shape)) in shapes(place, &config, places.hidden_size())
                .into_iter()
                .enumerate()
            {
                weights.push(make(index, &name, shape)?);
            }
            let weights = weights
                .try_into()
                .expect("four weights were made just before");
            networks.push(Networks {
                weights,
                layer: place.layer,
            });
        }
        Ok(Self {
            config,
            places: places.clone(),
            networks,
        })
    }

    /// Names and shapes of all weights.
    pub(super) fn expected(
        places: &FeedForward,
        config: &TranslatorConfig,
    ) -> Vec<(String, Vec<usize>)> {
        let of = |place| shapes(place, config, places.hidden_size());
        let all = places.places().iter().flat_map(of);
        all.map(|(name, shape)| (name, shape.to_vec())).collect()
    }

    /// What it is.
    pub fn config(&self) -> &TranslatorConfig {
        &self.config
    }

    /// The matrices that it writes for.
    pub fn places(&self) -> &FeedForward {
        &self.places
    }

    /// Its weights.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.networks.iter().flat_map(|n| &n.weights)
    }

    /// The same, to update.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        self.networks.iter_mut().flat_map(|n| &mut n.weights)
    }

    /// Number of its weights.
    pub fn num_parameters(&self) -> usize {
        self.parameters().map(Parameter::len).sum()
    }

    /// The parameters of a document with this embedding, `[hidden_size]`.
    ///
    /// # Errors
    /// An embedding of another width.
    pub fn translate(
        &self,
        embedding: &[f32],
        mode: Mode,
    ) -> Result<DocumentWeights, ParametricError> {
        let width = self.places.hidden_size();
        if embedding.len() != width {
            return Err(ParametricError::Settings {
                field: "embedding",
                reason: format!(
                    "it has {} numbers, but the model has states of {width}",
                    embedding.len()
                ),
            });
        }
        let rank = self.config.parameters.r;
        let factors = self.networks.iter().zip(self.places.places());
        let factors = factors.map(|(networks, place)| {
            let [a0, a1, b0, b1] = &networks.weights;
            let device = a0.value().device();
            let mut z = embedding.to_vec();
            z.push(networks.layer as f32);
            let z = Tensor::<2>::from_data(TensorData::new(z, [1, width + 1]), &device);
            let through = |first: &Parameter, second: &Parameter| {
                let hidden = relu(linear(z.clone(), first.get(mode), None));
                linear(hidden, second.get(mode), None)
            };
            Factors {
                a: through(a0, a1).reshape([rank, place.d_in]),
                b: through(b0, b1).reshape([place.d_out, rank]),
            }
        });
        Ok(DocumentWeights {
            rank,
            factors: factors.collect(),
        })
    }
}
