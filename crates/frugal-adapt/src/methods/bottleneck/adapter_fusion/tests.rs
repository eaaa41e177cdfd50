use serde_json::json;

use super::*;
use crate::peft;
use frugal_models::ModelConfig;
use frugal_nn::BackboneInfo;
use frugal_nn::SiteTable;
use frugal_nn::{LoadedAdapter, to_vec};

fn model() -> (BackboneInfo, SiteTable) {
    let config = json!({"model_type": "llama", "hidden_size": 6, "intermediate_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 3, "num_key_value_heads": 3, "vocab_size": 16});
    let config = ModelConfig::from_json(config, "test").unwrap();
    let sites = config.sites();
    (config.info(), sites)
}

fn context<'a>((info, sites): &'a (BackboneInfo, SiteTable), seed: u64) -> BuildContext<'a> {
    BuildContext {
        info,
        sites,
        backbone: None,
        device: Device::flex(),
        seed,
        tokenize: None,
    }
}

fn fusion(settings: Value, context: &BuildContext<'_>) -> Result<AdapterFusion, AdaptError> {
    AdapterFusion::new(
        AdapterFusionConfig::parse(settings.as_object().unwrap())?,
        context,
    )
}

/// A folder with an adapter whose values are a wave.
fn trained(folder: &Path, model: &(BackboneInfo, SiteTable), dim: usize, phase: f32) {
    let mut adapter = (pfeiffer::METHOD.build)(
        json!({"bottleneck_dim": dim}).as_object().unwrap(),
        &context(model, 0),
    )
    .unwrap();
    for (i, parameter) in adapter.parameters_mut().into_iter().enumerate() {
        parameter.set(
            (0..parameter.len())
                .map(|j| (phase + i as f32 + 0.7 * j as f32).sin())
                .collect(),
        );
    }
    peft::save(
        folder,
        &LoadedAdapter {
            adapter,
            head: None,
        },
        &model.0,
        "test",
    )
    .unwrap();
}

#[test]
fn it_is_the_attention_of_the_formula_over_the_adapters_of_the_folders() {
    let (model, folder) = (model(), tempfile::tempdir().unwrap());
    let paths = ["a", "b", "c"].map(|name| folder.path().join(name));
    for (path, dim, phase) in [
        (&paths[0], 2, 0.1),
        (&paths[1], 3, 1.1),
        (&paths[2], 2, 2.3),
    ] {
        trained(path, &model, dim, phase);
    }
    let fused = fusion(json!({"adapters": paths}), &context(&model, 5)).unwrap();
    let (d, rows) = (6, 4);
    let x: Vec<f32> = (0..rows * d).map(|i| (1.9 * i as f32).cos()).collect();
    let found = fused
        .added(
            1,
            Tensor::from_data(TensorData::new(x.clone(), [rows, d]), &Device::flex()),
            Mode::Eval,
        )
        .unwrap();

    let by_name = |name: &str| {
        fused
            .parameters()
            .into_iter()
            .find(|p| p.name().ends_with(name))
            .unwrap()
            .to_vec()
    };
    let block = "layers.1.mlp_adapter";
    // x Wᵀ of one row.
    let map = |x: &[f32], w: &[f32]| {
        w.chunks(x.len())
            .map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum())
            .collect::<Vec<f32>>()
    };
    let weights = |name: &str| by_name(&format!("{block}.fusion_{name}.weight"));
    let mut expected = Vec::new();
    for x in x.chunks(d) {
        let output = |path: &std::path::PathBuf| {
            let (entry, _) = peft::load(path, &context(&model, 0), false).unwrap();
            let of = |name: &str| {
                let name = format!("{block}.{name}");
                entry
                    .adapter
                    .parameters()
                    .into_iter()
                    .find(|p| p.name().ends_with(&name))
                    .unwrap()
                    .to_vec()
            };
            let plus = |y: Vec<f32>, b: Vec<f32>| {
                y.iter().zip(b).map(|(y, b)| y + b).collect::<Vec<f32>>()
            };
            let hidden: Vec<f32> = plus(map(x, &of("down.weight")), of("down.bias"))
                .iter()
                .map(|v| v.max(0.0))
                .collect();
            plus(map(&hidden, &of("up.weight")), of("up.bias"))
        };
        let outputs: Vec<Vec<f32>> = paths.iter().map(output).collect();
        let query = map(x, &weights("query"));
        let score = |z: &Vec<f32>| {
            map(z, &weights("key"))
                .iter()
                .zip(&query)
                .map(|(k, q)| k * q)
                .sum::<f32>()
                .exp()
        };
        let scores: Vec<f32> = outputs.iter().map(score).collect();
        let total: f32 = scores.iter().sum();
        let mixed: Vec<f32> = (0..d)
            .map(|i| {
                outputs
                    .iter()
                    .zip(&scores)
                    .map(|(z, s)| z[i] * s / total)
                    .sum()
            })
            .collect();
        expected.extend(map(&mixed, &weights("value")));
    }
    for (found, expected) in to_vec(found).iter().zip(&expected) {
        assert!(
            (found - expected).abs() < 1e-5,
            "{found} instead of {expected}"
        );
    }
    // 3 d² + d in each of two blocks.
    assert_eq!(fused.num_trainable(), 2 * (3 * d * d + d));
}

#[test]
fn the_penalty_is_the_distance_of_the_values_from_the_identity() {
    let model = model();
    let mut fused = fusion(
        json!({"members": [{}, {}], "regularization": 0.5}),
        &context(&model, 5),
    )
    .unwrap();
    for parameter in fused
        .parameters_mut()
        .into_iter()
        .filter(|p| p.name().contains("fusion_value"))
    {
        // 2 on the diagonal, 0.5 beside it.
        parameter.set(
            (0..36)
                .map(|i| if i / 6 == i % 6 { 2.0 } else { 0.5 })
                .collect(),
        );
    }
    let loss: f32 = BlockNetworks::auxiliary_loss(&fused, Mode::Train { seed: 0 })
        .unwrap()
        .into_scalar();
    assert!(
        (loss - 0.5 * 2.0 * (6.0 + 30.0 * 0.25)).abs() < 1e-4,
        "{loss}"
    );
}

#[test]
fn other_adapters_and_lonely_ones_are_refused() {
    let (model, folder) = (model(), tempfile::tempdir().unwrap());
    let adapter = (crate::methods::low_rank::lora::METHOD.build)(
        json!({"r": 2}).as_object().unwrap(),
        &context(&model, 0),
    )
    .unwrap();
    peft::save(
        folder.path(),
        &LoadedAdapter {
            adapter,
            head: None,
        },
        &model.0,
        "test",
    )
    .unwrap();
    let message = fusion(
        json!({"adapters": [folder.path(), folder.path()]}),
        &context(&model, 5),
    )
    .err()
    .unwrap()
    .to_string();
    assert!(message.contains("holds a `lora` adapter"), "{message}");
    let message = fusion(json!({"adapters": ["one"]}), &context(&model, 5))
        .err()
        .unwrap()
        .to_string();
    assert!(message.contains("at least two"), "{message}");
}
