//! What LoRA-GA, CorDA and EVA start from after looking at data, against `peft`.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::activation::log_softmax;
use frugal::adapt::{Adapter, GradientSum, Mode, Rows, StepContext, registry};
use frugal::model::{Backbone, Input};
use serde_json::{Value, json};

use crate::support::{Golden, context, device, fixture, model};

struct Setup {
    backbone: Arc<dyn Backbone>,
    golden: Golden,
}

impl Setup {
    fn new() -> Self {
        Self {
            backbone: model("llama", "config.json"),
            golden: Golden::read(&fixture("data_starts").join("golden.safetensors")),
        }
    }

    /// Mean loss over the next tokens of a sequence in training.
    fn loss(&self, adapter: &dyn Adapter, sequence: usize) -> Tensor<1> {
        let ids = self.golden.input_ids(sequence);
        let mut pass = adapter.pass(Mode::Train { seed: 0 });
        let input = Input::new(ids, &[ids.len()]);
        let hidden = self.backbone.forward(&input, pass.as_mut(), None).unwrap();
        let logits = self.backbone.logits(hidden, Rows::Tokens, pass.as_mut());
        let next: Vec<i64> = ids[1..].iter().map(|&id| i64::from(id)).collect();
        let rows = next.len();
        let index = Tensor::<2, Int>::from_data(TensorData::new(next, [rows, 1]), &device());
        let logits = log_softmax(logits.unwrap().narrow(0, 0, rows), 1);
        logits.gather(1, index).mean().neg()
    }

    /// The adapter after one step that looked at these sequences.
    fn started(&self, method: &str, settings: Value, sequences: &[usize]) -> Box<dyn Adapter> {
        let context = context(self.backbone.as_ref(), 0);
        let settings = settings.as_object().unwrap();
        let method = registry::find(method).unwrap();
        let mut adapter = (method.build)(settings, &context).unwrap();
        assert!(!adapter.is_complete());
        let mut gradients = GradientSum::default();
        for &sequence in sequences {
            let loss = self.loss(adapter.as_ref(), sequence);
            if !adapter.probes().is_empty() {
                gradients.add(adapter.probes().into_iter(), &mut loss.backward());
            }
        }
        let at = StepContext {
            step: 0,
            total_steps: 4,
            seed: 0,
            lr_factor: 1.0,
        };
        adapter.before_step(&at, &mut gradients);
        assert!(adapter.is_complete() && gradients.iter().next().is_none());
        adapter
    }

    /// Compares rows of `A` and columns of `B`, which have no sign.
    fn check(&self, name: &str, adapter: &dyn Adapter, allowed: f32) {
        let of_name = |key: &&String| key.starts_with(&format!("{name}."));
        let keys: Vec<&String> = self.golden.floats.keys().filter(of_name).collect();
        assert!(keys.len() >= 6, "{name}: {keys:?}");
        let parameters: BTreeMap<&str, (Vec<usize>, Vec<f32>)> = adapter
            .parameters()
            .into_iter()
            .map(|p| (p.name(), (p.shape().to_vec(), p.to_vec())))
            .collect();
        for key in keys {
            let (shape, expected) = &self.golden.floats[key];
            let (path, letter) = key[name.len() + 1..].rsplit_once('.').unwrap();
            let parameter = format!("{path}.lora_{letter}.weight");
            let (found_shape, found) = &parameters[parameter.as_str()];
            assert_eq!(found_shape, shape, "{key}");
            let [rows, columns] = [shape[0], shape[1]];
            let vectors = if letter == "A" { rows } else { columns };
            let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
            for v in 0..vectors {
                let pick = |all: &[f32]| -> Vec<f32> {
                    match letter {
                        "A" => all[v * columns..(v + 1) * columns].to_vec(),
                        _ => (0..rows).map(|i| all[i * columns + v]).collect(),
                    }
                };
                let (one, other) = (pick(found), pick(expected));
                let product: f32 = one.iter().zip(&other).map(|(a, b)| a * b).sum();
                let worst = one
                    .iter()
                    .zip(&other)
                    .map(|(a, b)| (product.signum() * a - b).abs())
                    .fold(0f32, f32::max);
                assert!(
                    worst < allowed * largest,
                    "{key} {v}: {worst:e} of {largest:e}"
                );
            }
        }
    }
}

const TARGETS: [&str; 3] = ["q_proj", "k_proj", "down_proj"];

#[test]
fn lora_ga_starts_where_peft_does() {
    let setup = Setup::new();
    let starts = [
        ("ArBr", json!({"direction": "ArBr"})),
        ("A2rBr", json!({"direction": "A2rBr"})),
        ("ArB2r", json!({"direction": "ArB2r"})),
        ("weight_svd", json!({"scale": "weight_svd"})),
        ("gd_scale", json!({"scale": "gd_scale"})),
        ("unit", json!({"scale": "unit"})),
    ];
    for (name, start) in starts {
        let settings =
            json!({"r": 3, "lora_alpha": 6.0, "target_modules": TARGETS, "lora_ga_config": start});
        let adapter = setup.started("lora-ga", settings, &[0]);
        // `peft` finds the largest singular value of the weight by few iterations.
        let allowed = if name == "weight_svd" { 0.05 } else { 2e-3 };
        setup.check(&format!("lora_ga_{name}"), adapter.as_ref(), allowed);
    }
}

#[test]
fn corda_starts_where_peft_does() {
    let setup = Setup::new();
    for name in ["ipm", "kpm"] {
        let start = json!({"corda_method": name});
        let settings =
            json!({"r": 3, "lora_alpha": 6.0, "target_modules": TARGETS, "corda_config": start});
        let adapter = setup.started("corda", settings, &[0, 1]);
        setup.check(&format!("corda_{name}"), adapter.as_ref(), 2e-3);
    }
}

#[test]
fn eva_starts_where_peft_does_with_the_ranks_that_it_gives_out() {
    let setup = Setup::new();
    let settings = |targets: &[&str], whiten: bool| {
        json!({"r": 3, "lora_alpha": 6.0, "target_modules": targets,
            "eva_config": {"rho": 1.6, "whiten": whiten}})
    };
    let targets = ["q_proj", "down_proj", "o_proj", "k_proj"];
    // It reads its batch again to see whether anything changes.
    for (name, whiten) in [("eva", false), ("eva_whiten", true)] {
        let adapter = setup.started(
            "eva",
            settings(&targets[..if whiten { 3 } else { 4 }], whiten),
            &[0, 0],
        );
        setup.check(name, adapter.as_ref(), 2e-3);
        let config = adapter.peft_config();
        let ranks =
            json!({"model.layers.0.self_attn.o_proj": 2, "model.layers.1.mlp.down_proj": 4});
        let alphas =
            json!({"model.layers.0.self_attn.o_proj": 4, "model.layers.1.mlp.down_proj": 8});
        assert_eq!(
            (&config["rank_pattern"], &config["alpha_pattern"]),
            (&ranks, &alphas)
        );
    }
}
