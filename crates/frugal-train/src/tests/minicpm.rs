//! Matrices that learn at a rate of their own: MiniCPM's rule for widths.

use super::*;
use crate::optim::{self, OPTIMIZERS, OptimizerStep};
use frugal_models::ModelConfig;

fn config() -> ModelConfig {
    let file = fixture("models/minicpm/config.json");
    ModelConfig::from_json(read_json(&file).unwrap(), "config.json").unwrap()
}

/// Full training with the rates of the architecture, or without them.
fn trained(backbone: &dyn Backbone, by_width: bool) -> Box<dyn Adapter> {
    let mut full = Full::new(FullConfig::default(), &context(backbone)).unwrap();
    if by_width {
        let model = config();
        let sites = model.sites();
        full.scale_rates(|site| model.architecture.lr_scale(&model, sites.info(site)));
    }
    Box::new(full)
}

/// Both sequences of the fixture, with the next token as target.
fn sequences() -> Vec<Tokenized> {
    let file = std::fs::read(fixture("models/minicpm/golden.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let example = |name: &str| {
        let tensor = tensors.tensor(name).unwrap();
        let ids = tensor.data().chunks_exact(8);
        let ids = ids.map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32);
        let input_ids: Vec<u32> = ids.collect();
        let next = input_ids[1..].iter().map(|&id| id as i32);
        Tokenized {
            labels: Target::Tokens(next.chain([IGNORE_INDEX]).collect()),
            token_type_ids: vec![],
            input_ids,
        }
    };
    vec![example("seq0.input_ids"), example("seq1.input_ids")]
}

/// Largest difference to the weights after three steps of `torch.optim.AdamW`.
fn worst(by_width: bool) -> f32 {
    let (backbone, data) = (backbone("minicpm"), sequences());
    let settings = TrainConfig {
        lr: 0.01,
        lr_scheduler_type: Scheduler::Constant,
        warmup_ratio: 0.0,
        max_steps: 3,
        batch_size: 2,
        weight_decay: 0.1,
        adam_beta2: 0.95,
        max_grad_norm: 1.0,
        ..TrainConfig::default()
    };
    let mut setup = Setup::new(&*backbone, trained(&*backbone, by_width), &data, settings);
    setup.run().unwrap();
    let file = std::fs::read(fixture("models/minicpm/steps.safetensors")).unwrap();
    let expected = safetensors::SafeTensors::deserialize(&file).unwrap();
    let parameters = setup.adapter.parameters();
    assert_eq!(parameters.len(), expected.len());
    let mut worst = 0.0f32;
    for parameter in parameters {
        let tensor = expected.tensor(parameter.name()).unwrap();
        assert_eq!(tensor.shape(), parameter.shape());
        let values = tensor.data().chunks_exact(4);
        let values = values.map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        for (found, expected) in parameter.to_vec().into_iter().zip(values) {
            worst = worst.max((found - expected).abs());
        }
    }
    worst
}

#[test]
fn steps_by_width_are_those_of_torch_with_a_group_for_each_rate() {
    let (with, without) = (worst(true), worst(false));
    assert!(with < 1e-4, "{with:e}");
    assert!(without > 0.01, "{without:e}");
}

/// Weight decay follows, as every optimizer multiplies it by the rate.
#[test]
fn a_matrix_with_a_factor_moves_as_one_at_that_rate_under_every_optimizer() {
    for entry in OPTIMIZERS {
        let config = TrainConfig {
            optim: Named {
                name: entry.name.into(),
                settings: match entry.name {
                    "adam_mini" => serde_json::from_str(r#"{"head_dim": 4}"#).unwrap(),
                    _ => Map::new(),
                },
            },
            weight_decay: 0.3,
            ..TrainConfig::default()
        };
        let moved = |lr: f64, scale: f64| {
            let mut optimizer = OptimizerStep::new(optim::made(&config).unwrap(), &config).unwrap();
            let values = (0..96).map(|i| (i as f32 * 0.37).sin()).collect();
            let name = "model.layers.0.mlp.up_proj.weight";
            let mut p =
                Parameter::new(name, &[8, 12], values, &Device::flex()).with_lr_scale(scale);
            for step in 0..3 {
                let gradient: Vec<f32> = (0..96)
                    .map(|i| ((i + 7 * step) as f32 * 0.71).cos())
                    .collect();
                let mut gradients = GradientSum::default();
                gradients.insert(name, gradient);
                optimizer
                    .step(
                        vec![&mut p],
                        &gradients,
                        &crate::optim::squares(&gradients),
                        lr,
                    )
                    .unwrap();
            }
            p.to_vec()
        };
        let (by_factor, by_rate, plain) =
            (moved(0.09, 1.0 / 9.0), moved(0.01, 1.0), moved(0.09, 1.0));
        let apart = |a: &[f32], b: &[f32]| {
            let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
            differences.fold(0.0, f32::max)
        };
        let worst = apart(&by_factor, &by_rate);
        assert!(worst < 1e-6, "{}: {worst:e}", entry.name);
        assert!(apart(&by_factor, &plain) > 1e-4, "{}", entry.name);
    }
}
