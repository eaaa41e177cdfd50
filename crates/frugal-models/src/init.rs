//! Freshly initialised weights, for pre-training and for tests.

use burn::prelude::*;
use frugal_nn::site::SiteKind;
use frugal_nn::{named_rng, standard_normal};

use crate::architecture::{FirstValues, ModelConfig};
use crate::source::MemorySource;

/// Random weights for this configuration under their Hugging Face names.
///
/// Matrices and tables are drawn from N(0, `initializer_range`²), 0.02² unless the configuration
/// says otherwise; the projections that write to the residual stream are divided by
/// `sqrt(2 * num_hidden_layers)`, as GPT-2 does. Gains are 1 and biases 0. Architectures may begin
/// otherwise ([`first_values`](crate::architecture::Architecture::first_values)). Each tensor depends on the seed and its own name
/// only.
pub fn random_weights(config: &ModelConfig, seed: u64, device: &Device) -> MemorySource {
    let mut source = MemorySource::default();
    let std = config
        .raw
        .get("initializer_range")
        .and_then(serde_json::Value::as_f64)
        .unwrap_or(0.02) as f32;
    let residual = std / (2.0 * config.num_hidden_layers as f32).sqrt();
    let gain = 1.0 - config.architecture.norm_offset();
    let sites = config.sites();
    for (_, site) in sites.iter().filter(|(_, s)| !s.tied) {
        let name = site.weight_name();
        let own = |tensor| config.architecture.first_values(config, site, tensor, seed);
        let weight = own(FirstValues::Weight);
        if let Some(values) = weight {
            insert(&mut source, name, values, site.stored_shape(), device);
        } else if site.kind == SiteKind::Norm {
            source.insert_vector(name, Tensor::full([site.d_out], gain, device));
        } else {
            let shape = site.stored_shape();
            let scale = if site.writes_to_residual {
                residual
            } else {
                std
            };
            let mut rng = named_rng(seed, &name);
            let values: Vec<f32> = (0..shape.iter().product())
                .map(|_| scale * standard_normal(&mut rng))
                .collect();
            insert(&mut source, name, values, shape, device);
        }
        if site.has_bias {
            let name = format!("{}.bias", site.path);
            let values = own(FirstValues::Bias).unwrap_or_else(|| vec![0.0; site.d_out]);
            insert(&mut source, name, values, vec![site.d_out], device);
        }
    }
    source
}

/// Zeros in the place of all weights of this configuration, one number in memory for each: a model of
/// them tells shapes and names where an adapter has the weights.
pub fn hollow_weights(config: &ModelConfig, device: &Device) -> MemorySource {
    let mut source = MemorySource::default();
    for (_, site) in config.sites().iter().filter(|(_, s)| !s.tied) {
        let (name, shape) = (site.weight_name(), site.stored_shape());
        let matrix =
            |rows: usize, cols: usize| Tensor::<2>::zeros([1, 1], device).expand([rows, cols]);
        let vector = |len: usize| Tensor::<1>::zeros([1], device).expand([len]);
        match *shape {
            [n] => source.insert_vector(name, vector(n)),
            [rows, cols] => source.insert_matrix(name, matrix(rows, cols)),
            _ => {
                let all: usize = shape.iter().product();
                let rows = shape[0];
                source.insert_shaped(name, matrix(rows, all / rows.max(1)), shape);
            }
        }
        if site.has_bias {
            source.insert_vector(format!("{}.bias", site.path), vector(site.d_out));
        }
    }
    source
}

/// Adds a tensor of any number of dimensions.
pub(crate) fn insert(
    source: &mut MemorySource,
    name: String,
    values: Vec<f32>,
    shape: Vec<usize>,
    device: &Device,
) {
    let tensor =
        |shape: [usize; 2], values| Tensor::<2>::from_data(TensorData::new(values, shape), device);
    match *shape {
        [n] => {
            let vector = Tensor::from_data(TensorData::new(values, [n]), device);
            source.insert_vector(name, vector);
        }
        [rows, cols] => source.insert_matrix(name, tensor([rows, cols], values)),
        _ => {
            let rows = shape[0];
            let matrix = tensor([rows, values.len() / rows.max(1)], values);
            source.insert_shaped(name, matrix, shape);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Loaded, WeightSource};
    use frugal_nn::to_vec;

    fn config() -> ModelConfig {
        let raw = serde_json::json!({"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": true});
        ModelConfig::from_json(raw, "test").unwrap()
    }

    fn matrix(source: &MemorySource, name: &str) -> Vec<f32> {
        match source.load(name).unwrap() {
            Loaded::Matrix(m) => to_vec(m),
            _ => unreachable!("matrices were inserted"),
        }
    }

    #[test]
    fn spread_and_seed_are_as_documented_and_the_model_builds() {
        let source = random_weights(&config(), 3, &Device::flex());
        let table = matrix(&source, "model.embed_tokens.weight");
        let deviation = |v: &[f32]| (v.iter().map(|x| x * x).sum::<f32>() / v.len() as f32).sqrt();
        assert!((deviation(&table) / 0.02 - 1.0).abs() < 0.02);
        assert!(
            (deviation(&matrix(&source, "model.layers.1.mlp.down_proj.weight")) / 0.01 - 1.0).abs()
                < 0.05
        );
        assert_eq!(
            table,
            matrix(
                &random_weights(&config(), 3, &Device::flex()),
                "model.embed_tokens.weight"
            )
        );
        assert_ne!(
            table,
            matrix(
                &random_weights(&config(), 4, &Device::flex()),
                "model.embed_tokens.weight"
            )
        );
        crate::build::build(config(), &source, &Device::flex()).unwrap();
    }
}
