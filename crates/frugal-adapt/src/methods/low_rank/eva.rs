//! # EVA: explained variance adaptation
//!
//! ## What it does
//! LoRA whose `A` starts at the main directions of what each layer reads, and whose ranks go to the
//! layers whose inputs these directions explain best.
//!
//! ## Update rule
//! LoRA's. `A₀` are the first principal components of the rows that the layer reads in the first
//! `calibration_steps` batches, in which nothing moves (`whiten`: each divided by the root of its singular value), and `B₀ = 0`. Of
//! all components, at most `rho r` in a layer, those with the largest shares of their layer's variance stay, as many as
//! `r` in every layer would be; a layer without any is left alone.
//!
//! ## When to use, when not
//! As LoRA, from the same number of components: it learns faster at first. Data that say little about
//! the task (a few sequences) give arbitrary directions.
//!
//! ## Cost
//! Trainable: `Σ r (d_in + d_out)` with the ranks found. While looking: `d_in²` numbers per layer, once for layers
//! that read the same. Extra compute: LoRA's. None after merging.
//!
//! ## Defaults and where they come from
//! `rho = 2`, no whitening and scales that stay those of rank `r` (`adjust_scaling_factors`): Hugging Face `peft`.
//! 16 steps of looking, or a quarter of the run if that is less.
//!
//! ## Departures from the paper
//! The components are those of all rows looked at; the paper and `peft` update truncated ones from batch to batch until
//! they stay the same within `tau`, which has no effect here, like `use_label_mask` and
//! `label_mask_value`: all tokens of the texts count. With one batch the results are equal. Files of `peft` are read
//! with the ranks and values that they hold.
//!
//! ## References
//! - Paischer, Hauzenberger, Schmied, Alkin, Deisenroth, Hochreiter: One Initialization to Rule them All:
//!   Fine-tuning via Explained Variance Adaptation, 2024, arXiv 2410.07170.

use std::collections::BTreeMap;

use frugal_nn::linalg::{Svd, randomised_svd};
use frugal_nn::{AdaptError, Adapter, BuildContext};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::method::{Family, Method, MethodConfig};
use crate::methods::low_rank::lora::{self, Init, Lora, LoraConfig};
use crate::settings::Settings;
use crate::support::data_start::{DataStart, FromData, Look, STEPS, Seen};
use crate::support::per_linear::{bad, linear_maps};
use crate::support::sparse::Place;

const NAME: &str = "eva";

/// Registry entry.
pub const METHOD: Method = Method::of::<EvaConfig>(
    Family::LowRank,
    "LoRA that starts from the main directions of what each layer reads",
    include_str!("eva.rs"),
)
.default_lr(5e-4)
.peft_variant(|config| config.get("init_lora_weights") == Some(&json!("eva")));

/// The start, with `peft`'s names.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Start {
    /// Most components of a layer, as a multiple of its rank.
    pub rho: f64,
    /// Without effect.
    pub tau: f64,
    /// Without effect.
    pub use_label_mask: bool,
    /// Without effect.
    pub label_mask_value: i64,
    /// Divide each component by the root of its singular value.
    pub whiten: bool,
    /// Scale every layer as with its rank before.
    pub adjust_scaling_factors: bool,
}

impl Default for Start {
    fn default() -> Self {
        Self {
            rho: 2.0,
            tau: 0.99,
            use_label_mask: true,
            label_mask_value: -100,
            whiten: false,
            adjust_scaling_factors: true,
        }
    }
}

/// Settings: those of LoRA and of the start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EvaConfig {
    /// The start.
    pub eva_config: Start,
    /// Steps that look at inputs, at most a quarter of the run; 0 where the values come from a file.
    pub calibration_steps: u64,
    /// The rest.
    #[serde(flatten)]
    pub lora: LoraConfig,
}

impl Default for EvaConfig {
    fn default() -> Self {
        Self {
            eva_config: Start::default(),
            calibration_steps: STEPS,
            lora: LoraConfig::default(),
        }
    }
}

impl MethodConfig for EvaConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "LORA";

    fn validate(&self) -> Result<(), AdaptError> {
        let Start { rho, tau, .. } = self.eva_config;
        if !(rho >= 1.0 && rho.is_finite() && (0.0..=1.0).contains(&tau)) {
            let reason = "`rho` must be at least 1 and `tau` within 0 and 1";
            return bad(NAME, "eva_config", reason);
        }
        if self.lora.init_lora_weights != Init::Default(true) {
            let reason = "the initial values are this method's own";
            return bad(NAME, "init_lora_weights", reason);
        }
        self.lora.validate_for(NAME)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        self.validate()?;
        let targets = self.lora.targets();
        linear_maps(NAME, &targets, context)?;
        let mut adapter = Lora::named(NAME, self.lora, context)?;
        // As files have it.
        adapter.config.init_lora_weights = Init::Named(NAME.into());
        let start = Components {
            start: self.eva_config,
            seed: context.seed,
        };
        let steps = self.calibration_steps;
        let all = FromData::new(NAME, adapter, start, &targets, steps, context)?;
        Ok(Box::new(all))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        let mut settings = lora::variant_from_peft(NAME, config, &[])?;
        let start = config.get("eva_config").filter(|v| !v.is_null());
        settings.extend(start.map(|v| ("eva_config".to_owned(), v.clone())));
        settings.insert("calibration_steps".into(), json!(0));
        Ok(settings)
    }
}

struct Components {
    start: Start,
    seed: u64,
}

/// The components of one layer.
struct Found {
    svd: Svd,
    /// Sum of the squared distances from the mean.
    variance: f32,
}

impl Components {
    /// The main directions of these rows about their mean.
    fn of(&self, seen: &Seen, d_in: usize, most: usize) -> Found {
        let centred: Vec<f32> = (0..d_in * d_in)
            .map(|n| {
                let (i, j) = (n / d_in, n % d_in);
                let mean = f64::from(seen.sum[i]) * f64::from(seen.sum[j]) / f64::from(seen.rows);
                (f64::from(seen.products[n]) - mean) as f32
            })
            .collect();
        let variance = (0..d_in).map(|i| centred[i * d_in + i]).sum();
        let svd = randomised_svd(&centred, d_in, d_in, most, most.max(8), 4, self.seed);
        Found { svd, variance }
    }
}

/// How many components of each layer stay: of all, the `budget` with the largest shares of their
/// layer's variance, the earlier of equals.
fn ranks(shares: &[Vec<f32>], budget: usize) -> Vec<usize> {
    let mut all: Vec<(usize, f32)> = shares
        .iter()
        .enumerate()
        .flat_map(|(layer, shares)| shares.iter().map(move |share| (layer, *share)))
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut counts = vec![0; shares.len()];
    all.iter()
        .take(budget)
        .for_each(|(layer, _)| counts[*layer] += 1);
    counts
}

impl DataStart for Components {
    type Adapter = Lora;
    const LOOK: Look = Look::Inputs;

    fn start(&self, adapter: &mut Lora, places: &[Place], seen: &[Seen]) {
        let mut budget = 0;
        let mut layers = Vec::new();
        let mut new = Vec::new();
        for (place, seen) in places.iter().zip(seen) {
            let Some(pair) = adapter.at(place.site) else {
                continue;
            };
            let rank = pair.a.shape()[0];
            // A component needs as many rows.
            let most = ((rank as f64 * self.start.rho).round_ties_even() as usize)
                .min(place.d_in)
                .min(seen.rows as usize);
            if most < rank {
                // Of a layer that the data hardly reach nothing is known: it stays LoRA's.
                new.push((place.site, rank, pair.a.to_vec()));
                continue;
            }
            budget += rank;
            layers.push((place, self.of(seen, place.d_in, most)));
        }
        let shares: Vec<Vec<f32>> = layers
            .iter()
            .map(|(_, found)| {
                let of = |s: &f32| s / found.variance.max(f32::MIN_POSITIVE);
                found.svd.s.iter().map(of).collect()
            })
            .collect();
        let kept = ranks(&shares, budget);
        new.extend(layers.iter().zip(kept).map(|((place, found), rank)| {
            let d_in = place.d_in;
            let mut values = found.svd.vt[..rank * d_in].to_vec();
            if self.start.whiten {
                // Values of the products are squares of the rows' singular values.
                for (row, square) in values.chunks_mut(d_in).zip(&found.svd.s) {
                    let root = square.max(f32::MIN_POSITIVE).powf(0.25);
                    row.iter_mut().for_each(|v| *v /= root);
                }
            }
            (place.site, rank, values)
        }));
        adapter.set_ranks(new, self.start.adjust_scaling_factors);
    }

    fn fields(&self) -> Map<String, Value> {
        Map::from_iter([("eva_config".to_owned(), json!(self.start))])
    }

    fn state(&self, adapter: &Lora, places: &[Place]) -> BTreeMap<String, Vec<f32>> {
        let rank = |place: &Place| {
            let rank = adapter.at(place.site).map_or(0, |pair| pair.a.shape()[0]);
            (format!("rank.{}", place.path), vec![rank as f32])
        };
        places.iter().map(rank).collect()
    }

    fn restore(
        &self,
        adapter: &mut Lora,
        places: &[Place],
        state: &BTreeMap<String, Vec<f32>>,
    ) -> Result<(), String> {
        let mut ranks = Vec::new();
        for place in places {
            let key = format!("rank.{}", place.path);
            let rank = match state.get(&key).map(Vec::as_slice) {
                Some([rank]) if (0.0..=place.d_in as f32).contains(rank) => *rank as usize,
                _ => return Err(format!("`{key}` is missing or no rank")),
            };
            ranks.push((place.site, rank, vec![0.0; rank * place.d_in]));
        }
        adapter.set_ranks(ranks, self.start.adjust_scaling_factors);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_go_where_components_explain_most() {
        let shares = [vec![0.5, 0.4, 0.05], vec![0.3, 0.2, 0.1], vec![0.04]];
        assert_eq!(ranks(&shares, 4), [2, 2, 0]);
        assert_eq!(ranks(&shares, 100), [3, 3, 1]);
    }

    #[test]
    fn the_components_of_points_on_a_line_about_their_mean() {
        // (1, 1), (2, 3), (3, 5): mean (2, 3), direction (1, 2) / √5, squared distances 2 (1 + 4).
        let points = [[1.0f32, 1.0], [2.0, 3.0], [3.0, 5.0]];
        let mut seen = Seen {
            products: vec![0.0; 4],
            sum: vec![0.0; 2],
            rows: 3.0,
            count: 1.0,
        };
        for point in points {
            for i in 0..2 {
                seen.sum[i] += point[i];
                (0..2).for_each(|j| seen.products[2 * i + j] += point[i] * point[j]);
            }
        }
        let components = Components {
            start: Start::default(),
            seed: 0,
        };
        let found = components.of(&seen, 2, 1);
        assert!((found.variance - 10.0).abs() < 1e-5);
        assert!((found.svd.s[0] - 10.0).abs() < 1e-4);
        let root = 5f32.sqrt();
        assert!((found.svd.vt[0].abs() - 1.0 / root).abs() < 1e-5);
        assert!((found.svd.vt[1].abs() - 2.0 / root).abs() < 1e-5);
    }
}
