//! A recursive model that begins with the weights of a Llama, to be trained on.
//!
//! The ways are those of the official code (raymin0223/mixture_of_recursions, options `stepwise`,
//! `average`, `lower` and `upper` of its recursive initialisation); relaxed recursive transformers
//! (arXiv 2410.20672) compare them.

use burn::prelude::*;
use frugal_nn::{ModelError, SiteInfo};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::sharing::Plan;
use crate::architecture::ModelConfig;
use crate::init::random_weights;
use crate::keys::bad;
use crate::source::{MemorySource, WeightSource, read_values};

/// Which of a Llama's layers a shared layer begins as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecursiveInit {
    /// Layers at even distances, the first and the last of the shared ones among them.
    #[default]
    Stepwise,
    /// The mean of the layers that it stands for.
    Average,
    /// The first ones.
    Lower,
    /// The last ones.
    Upper,
}

impl RecursiveInit {
    /// The layers of the Llama, whose mean is taken, by the first unrolled layer with the weights;
    /// `shared` are as many of them as the plan's shared part stands for.
    fn layers(self, plan: &Plan, layers: usize, first: usize) -> Vec<usize> {
        let part = plan.shared();
        let ends = part.start;
        if !part.contains(&first) {
            return vec![place(plan, layers, first)];
        }
        let shared = layers - 2 * ends;
        let unique: Vec<usize> = plan.unique().filter(|l| part.contains(l)).collect();
        let at = unique.iter().position(|&l| l == first).unwrap_or(0);
        match self {
            Self::Average => {
                let mut all: Vec<usize> = plan
                    .tied(first)
                    .map(|layer| place(plan, layers, layer))
                    .collect();
                all.dedup();
                all
            }
            Self::Stepwise => vec![ends + spaced(at, unique.len(), shared)],
            Self::Lower => vec![ends + at],
            Self::Upper => vec![ends + shared - unique.len() + at],
        }
    }
}

/// The `at`th of `count` whole numbers at even distances from 0 to `of - 1`.
fn spaced(at: usize, count: usize, of: usize) -> usize {
    if count < 2 {
        return 0;
    }
    let exact = at as f64 * (of - 1) as f64 / (count - 1) as f64;
    exact.round_ties_even() as usize
}

/// The Llama's layer that an unrolled layer stands for: itself where there are as many.
fn place(plan: &Plan, layers: usize, layer: usize) -> usize {
    let part = plan.shared();
    if layer < part.start {
        return layer;
    }
    if layer >= part.end {
        return layers - (plan.layers() - layer);
    }
    let shared = layers - 2 * part.start;
    part.start + spaced(layer - part.start, part.len(), shared)
}

/// Configuration and weights of a model of type `mor` that begins as this Llama, whose tensors are
/// in `weights` under their Hugging Face names. `own` are keys that a Llama has not (`num_recursion`,
/// `mor_type`, ...); routers are drawn.
///
/// # Errors
/// A model that is no Llama, keys that do not fit, tensors that cannot be read.
pub fn mor_from_llama(
    base: &ModelConfig,
    weights: &dyn WeightSource,
    own: &Map<String, Value>,
    init: RecursiveInit,
    seed: u64,
    device: &Device,
) -> Result<(ModelConfig, MemorySource), ModelError> {
    if base.family.model_type != "llama" {
        let reason = format!(
            "{} is a model of type `{}`, recursive models begin as `llama` ones",
            base.source, base.family.model_type
        );
        return Err(bad(&base.source, "model_type", reason));
    }
    let mut raw = base.raw.clone();
    if let Some(keys) = raw.as_object_mut() {
        // What a Llama means by a key that is not there is not what this model means.
        let meant = json!({
            "rms_norm_eps": base.norm_eps, "tie_word_embeddings": base.tie_word_embeddings,
            "max_position_embeddings": base.max_position_embeddings, "head_dim": base.head_dim,
            "num_key_value_heads": base.num_key_value_heads,
        });
        keys.extend(meant.as_object().cloned().unwrap_or_default());
        keys.extend(own.clone());
        keys.insert("model_type".into(), json!(super::MOR.model_type));
        keys.insert("architectures".into(), json!([super::MOR.class]));
    }
    let config = ModelConfig::from_json(raw, &base.source)?;
    let Some((plan, shares_norms)) = super::shared_layers(&config) else {
        return Err(bad(&base.source, "model_type", "it shares no layers"));
    };
    let layers = base.num_hidden_layers;
    let mut all = random_weights(&config, seed, device);
    let sites = config.sites();
    for (_, site) in sites.iter().filter(|(_, site)| !site.tied) {
        if site.path.contains("_router") {
            continue;
        }
        let from = match (site.layer, site.kind) {
            (None, _) => Vec::new(),
            (Some(layer), frugal_nn::SiteKind::Norm) if !shares_norms => {
                vec![place(&plan, layers, layer)]
            }
            (Some(layer), _) => init.layers(&plan, layers, layer),
        };
        copy(&mut all, weights, site, &from, device)?;
    }
    Ok((config, all))
}

/// Puts the mean of a site's tensors in these layers of the Llama in its place, or the tensors of the
/// same name.
fn copy(
    all: &mut MemorySource,
    weights: &dyn WeightSource,
    site: &SiteInfo,
    from: &[usize],
    device: &Device,
) -> Result<(), ModelError> {
    let bias = (format!("{}.bias", site.path), vec![site.d_out]);
    let tensors = std::iter::once((site.weight_name(), site.stored_shape()));
    for (name, shape) in tensors.chain(site.has_bias.then_some(bias)) {
        let read = |layer: Option<usize>| {
            let name = match (layer, site.layer) {
                (Some(from), Some(to)) => name.replacen(
                    &format!("model.layers.{to}."),
                    &format!("model.layers.{from}."),
                    1,
                ),
                _ => name.clone(),
            };
            read_values(weights, &name, &shape)
        };
        let mut values = read(from.first().copied())?;
        for &layer in from.iter().skip(1) {
            let more = read(Some(layer))?;
            values.iter_mut().zip(more).for_each(|(sum, x)| *sum += x);
        }
        let count = from.len().max(1) as f32;
        values.iter_mut().for_each(|value| *value /= count);
        match *shape.as_slice() {
            [rows, cols] => {
                let data = TensorData::new(values, [rows, cols]);
                all.insert_matrix(name, Tensor::from_data(data, device));
            }
            _ => {
                let length = values.len();
                let data = TensorData::new(values, [length]);
                all.insert_vector(name, Tensor::from_data(data, device));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::sharing::{Rounding, Sharing};
    use super::*;
    use crate::build;
    use frugal_nn::{Input, NoAdapter, to_vec};

    fn layers(
        init: RecursiveInit,
        sharing: Sharing,
        steps: usize,
        count: usize,
    ) -> Vec<Vec<usize>> {
        let plan = Plan::new(sharing, steps, count, Rounding::Ceil).unwrap();
        let unique = plan.unique().collect::<Vec<_>>();
        let of = unique.iter().map(|&l| init.layers(&plan, count, l));
        of.collect()
    }

    /// SmolLM2-135M has 30 layers; `np.linspace(1, 28, 14).round()` and what the tied layers are.
    #[test]
    fn shared_layers_begin_as_the_official_code_has_it() {
        let two = |init| layers(init, Sharing::MiddleCycle, 2, 30);
        let stepwise = [1, 3, 5, 7, 9, 11, 13, 16, 18, 20, 22, 24, 26, 28];
        let found = two(RecursiveInit::Stepwise);
        let middle: Vec<usize> = found[1..15].iter().map(|of| of[0]).collect();
        assert_eq!(middle, stepwise);
        assert_eq!((&found[0], &found[15]), (&vec![0], &vec![29]));
        let average = two(RecursiveInit::Average);
        assert_eq!((&average[1], &average[14]), (&vec![1, 15], &vec![14, 28]));
        assert_eq!(two(RecursiveInit::Lower)[1..3], [[1], [2]]);
        assert_eq!(two(RecursiveInit::Upper)[1..3], [[15], [16]]);
        // Layers that are added for three steps stand for their neighbours.
        let three = layers(RecursiveInit::Average, Sharing::MiddleCycle, 3, 30);
        assert_eq!((three.len(), &three[11]), (12, &vec![29]));
        assert_eq!(three[10], [9, 19, 28]);
        let sequence = layers(RecursiveInit::Average, Sharing::Sequence, 3, 6);
        assert_eq!(sequence, [vec![0, 1, 2], vec![3, 4, 5]]);
    }

    /// A Llama whose layers are alike already is what it was; its mean is the mean of its tensors.
    #[test]
    fn a_model_of_equal_layers_computes_what_it_did() {
        let device = Device::flex();
        let raw = json!({"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 6,
            "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 48, "tie_word_embeddings": true,
            "attention_bias": true, "initializer_range": 0.3});
        let llama = ModelConfig::from_json(raw, "llama").unwrap();
        let drawn = random_weights(&llama, 3, &device);
        let mut equal = random_weights(&llama, 3, &device);
        for (name, shape, values) in drawn
            .iter()
            .filter(|(name, ..)| name.contains(".layers.1."))
        {
            for layer in 2..5 {
                let name = name.replace(".layers.1.", &format!(".layers.{layer}."));
                let data = TensorData::new(values(), shape.clone());
                match shape.len() {
                    1 => equal.insert_vector(name, Tensor::from_data(data, &device)),
                    _ => equal.insert_matrix(name, Tensor::from_data(data, &device)),
                }
            }
        }
        let own = json!({"num_recursion": 2, "mor_type": "none"});
        let own = own.as_object().unwrap();
        let ids: Vec<u32> = (0..9).map(|i| (i * 7 + 3) % 48).collect();
        let hidden = |config: &ModelConfig, source: &MemorySource| {
            let model = build(config.clone(), source, &device).unwrap();
            let input = Input::new(&ids, &[9]);
            to_vec(model.forward(&input, &mut NoAdapter, None).unwrap())
        };
        let expected = hidden(&llama, &equal);
        for init in [
            RecursiveInit::Stepwise,
            RecursiveInit::Average,
            RecursiveInit::Lower,
            RecursiveInit::Upper,
        ] {
            let (config, made) = mor_from_llama(&llama, &equal, own, init, 0, &device).unwrap();
            let found = hidden(&config, &made);
            let pairs = found.iter().zip(&expected);
            let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-5, "{init:?}: {worst:e}");
        }
        let average = RecursiveInit::Average;
        let (config, made) = mor_from_llama(&llama, &drawn, own, average, 0, &device).unwrap();
        let read = |source: &MemorySource, layer: usize| {
            let name = format!("model.layers.{layer}.mlp.up_proj.weight");
            read_values(source, &name, &[24, 16]).unwrap()
        };
        let (one, two) = (read(&drawn, 2), read(&drawn, 4));
        for ((found, one), two) in read(&made, 2).iter().zip(one).zip(two) {
            assert!((found - (one + two) / 2.0).abs() < 1e-7);
        }
        // With routers, and norms of their own.
        let own = json!({"share_layer_norm": false, "num_recursion": 4});
        let own = own.as_object().unwrap();
        let (routed, made) =
            mor_from_llama(&llama, &drawn, own, RecursiveInit::Stepwise, 0, &device).unwrap();
        assert_eq!(routed.num_hidden_layers, 6);
        assert_eq!(hidden(&routed, &made).len(), 9 * 16);
        let error = mor_from_llama(&config, &made, own, average, 0, &device).err();
        let error = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("`mor`"), "{error}");
    }
}
