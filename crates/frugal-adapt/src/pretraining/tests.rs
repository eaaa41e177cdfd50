use std::path::Path;
use std::sync::Arc;

use burn::prelude::*;
use frugal_models::load::read_json;
use frugal_models::{ModelConfig, build, random_weights};
use frugal_nn::{Adapter, Backbone, BuildContext, Linear, Mode, Parameter, StepContext, to_vec};
use serde_json::{Value, json};

use super::factors::Factors;
use super::layer::Layer;
use super::sltrain::SparsePlusLowRank;
use super::{REPARAMETERIZATIONS, find};
use crate::settings::Settings;
use crate::support::test_model::{TestModel, close};

fn part(name: &str) -> Value {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    let file = read_json(&fixtures.join("training/pretraining_memory.json")).unwrap();
    file[name].clone()
}

fn numbers(value: &Value) -> Vec<f32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn settings(value: Value) -> Settings {
    serde_json::from_value(value).unwrap()
}

/// LLaMA with an untied head, as the benchmark's configurations.
fn llama(hidden: usize, ff: usize, layers: usize, heads: usize, vocab: usize) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab,
        "hidden_size": hidden, "intermediate_size": ff, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": heads,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "hidden_act": "silu",
        "tie_word_embeddings": false,
    })
}

fn factors(case: &Value, alpha: f64) -> Factors {
    let shape: [usize; 3] = serde_json::from_value(case["shape"].clone()).unwrap();
    let [m, n, r] = shape;
    let model = TestModel::new(llama(16, 32, 1, 2, 32));
    let mut factors = Factors::new("w", [m, n], r, alpha, true, &model.context());
    factors.a.set(numbers(&case["a"]));
    factors.b.set(numbers(&case["b"]));
    factors
}

#[test]
fn balanced_factors_share_the_singular_values_of_the_same_product() {
    let case = part("balanced");
    // lora_alpha as large as the rank: the product itself.
    let mut factors = factors(&case, 2.0);
    let expected = numbers(&case["product"]);
    close(&to_vec(factors.product(Mode::Eval)), &expected, 1e-5);
    factors.balance();
    close(&to_vec(factors.product(Mode::Eval)), &expected, 1e-5);
    let (a, b) = (factors.a.to_vec(), factors.b.to_vec());
    let s = numbers(&case["singular_values"]);
    let (n, r) = (5, 2);
    for i in 0..r {
        for j in 0..r {
            let of_a: f32 = (0..n).map(|k| a[i * n + k] * a[j * n + k]).sum();
            let of_b: f32 = b.chunks_exact(r).map(|row| row[i] * row[j]).sum();
            let wanted = if i == j { s[i] } else { 0.0 };
            close(&[of_a, of_b], &[wanted, wanted], 1e-5);
        }
    }
}

#[test]
fn a_layer_of_sltrain_computes_and_learns_as_the_authors_does() {
    let case = part("sltrain");
    let [m, n, _]: [usize; 3] = serde_json::from_value(case["shape"].clone()).unwrap();
    let device = Device::flex();
    let values = numbers(&case["values"]);
    let layer = SparsePlusLowRank {
        factors: factors(&case, 32.0),
        values: Parameter::new("v", &[values.len()], values, &device),
        entries: serde_json::from_value(case["entries"].clone()).unwrap(),
        shape: [m, n],
    };
    let rows = |key: &str, width: usize| {
        let values = numbers(&case[key]);
        let shape = [values.len() / width, width];
        Tensor::<2>::from_data(TensorData::new(values, shape), &device)
    };
    let y = layer.forward(rows("x", n), None, Mode::Eval);
    close(&to_vec(y), &numbers(&case["y"]), 1e-4);
    let mode = Mode::Train { seed: 0 };
    let device = layer.values.get::<1>(mode).device();
    let place = |tensor: Tensor<2>| {
        let dims = tensor.dims();
        Tensor::<2>::from_data(TensorData::new(to_vec(tensor), dims), &device)
    };
    let y = layer.forward(place(rows("x", n)), None, mode);
    let loss = (y * place(rows("weight", m))).sum();
    let mut gradients = loss.backward();
    let parts = [
        ("a", &layer.factors.a),
        ("b", &layer.factors.b),
        ("values", &layer.values),
    ];
    for (key, parameter) in parts {
        let found = parameter.take_gradient(&mut gradients).unwrap();
        close(&to_vec(found), &numbers(&case["gradients"][key]), 1e-3);
    }
}

/// Trained parameters, and those of sparse matrices among them, without any weight.
fn counted(name: &str, settings: Settings, config: Value) -> (usize, usize) {
    let model = TestModel::new(config);
    let made = (find(name).unwrap().make)(&settings, &model.context()).unwrap();
    let sparse = made.parameters().into_iter();
    let sparse = sparse.filter(|p| p.name().ends_with("sparse_value"));
    (made.num_trainable(), sparse.map(Parameter::len).sum())
}

#[test]
fn models_have_as_many_parameters_as_the_paper_counts() {
    let of_9m = || llama(128, 352, 4, 4, 32_000);
    let of_60m = || llama(512, 1376, 8, 8, 32_000);
    let low = settings(json!({ "rank": 32 }));
    assert_eq!(counted("low_rank", low, of_9m()), (8_508_544, 0));
    let low = settings(json!({ "rank": 128 }));
    assert_eq!(counted("low-rank", low, of_60m()), (42_770_944, 0));
    let sparse = settings(json!({ "rank": 128, "sparsity": 0.03 }));
    assert_eq!(counted("sltrain", sparse, of_60m()), (43_529_832, 758_888));
}

fn small() -> Arc<dyn Backbone> {
    let config = ModelConfig::from_json(llama(16, 24, 2, 2, 40), "test").unwrap();
    let weights = random_weights(&config, 3, &Device::flex());
    build(config, &weights, &Device::flex()).unwrap()
}

fn context(backbone: &dyn Backbone) -> BuildContext<'_> {
    BuildContext {
        info: backbone.info(),
        sites: backbone.sites(),
        backbone: Some(backbone),
        device: Device::flex(),
        seed: 5,
        tokenize: None,
    }
}

fn linear(backbone: &dyn Backbone, path: &str) -> Linear {
    let mut found = None;
    backbone.visit_weights(&mut |part| {
        if let frugal_nn::Frozen::Linear(linear) = part
            && backbone.sites().info(linear.site).path == path
        {
            found = Some(linear.clone());
        }
    });
    found.unwrap()
}

fn after_step(adapter: &mut dyn Adapter, step: u64) {
    adapter.after_step(&StepContext {
        step,
        total_steps: 100,
        seed: 11,
        lr_factor: 1.0,
    });
}

#[test]
fn restarts_keep_the_merged_weight_and_change_what_makes_it() {
    let backbone = small();
    let path = "model.layers.1.mlp.down_proj";
    let base = linear(backbone.as_ref(), path);
    for entry in REPARAMETERIZATIONS {
        let given = settings(json!({ "rank": 4, "restart_steps": 10 }));
        let mut made = (entry.make)(&given, &context(backbone.as_ref())).unwrap();
        assert_eq!(made.method(), entry.name);
        // Factors that are zero at the start have nothing to keep.
        for parameter in made.parameters_mut() {
            if parameter.name().ends_with("lora_B.weight") {
                let values = (0..parameter.len()).map(|i| ((i * 7 % 11) as f32 - 5.0) / 9.0);
                parameter.set(values.collect());
            }
        }
        let merged =
            |made: &dyn Adapter| to_vec(made.merged_linear(&base).unwrap().unwrap().weight);
        let factors = |made: &dyn Adapter| -> Vec<Vec<f32>> {
            let all = made.parameters().into_iter();
            all.filter(|p| p.name().contains("lora_"))
                .map(Parameter::to_vec)
                .collect()
        };
        let (weight, before) = (merged(&made), factors(&made));
        after_step(&mut made, 9);
        assert_eq!(factors(&made), before, "{}", entry.name);
        after_step(&mut made, 10);
        assert!(factors(&made) != before, "{}", entry.name);
        close(&merged(&made), &weight, 1e-5);
        // The pass computes what is merged.
        let x: Vec<f32> = (0..48).map(|i| ((i * 5 % 13) as f32 - 6.0) / 7.0).collect();
        let x = Tensor::<2>::from_data(TensorData::new(x, [2, 24]), &Device::flex());
        let found = to_vec(made.pass(Mode::Eval).linear(&base, x.clone()));
        let dense = Tensor::<2>::from_data(TensorData::new(weight, [16, 24]), &Device::flex());
        close(&found, &to_vec(x.matmul(dense.transpose())), 1e-4);
    }
}

#[test]
fn what_is_zero_at_the_start_leaves_the_rest_alone() {
    let backbone = small();
    let path = "model.layers.0.self_attn.q_proj";
    let base = linear(backbone.as_ref(), path);
    let weight = |name: &str| {
        let given = settings(json!({ "rank": 4 }));
        let made = (find(name).unwrap().make)(&given, &context(backbone.as_ref())).unwrap();
        to_vec(made.merged_linear(&base).unwrap().unwrap().weight)
    };
    assert_eq!(weight("relora"), to_vec(base.weight.dense()));
    // 3 % of 256 entries, each within 1 / √16.
    let sparse: Vec<f32> = weight("sltrain")
        .into_iter()
        .filter(|v| *v != 0.0)
        .collect();
    assert_eq!(sparse.len(), 7);
    assert!(sparse.iter().all(|v| v.abs() <= 0.25));
    assert!(weight("low_rank").iter().all(|v| *v != 0.0));
}

#[test]
fn settings_that_cannot_be_are_refused_by_name() {
    let model = TestModel::new(llama(16, 24, 2, 2, 40));
    let refused = |name: &str, value: Value| {
        let made = (find(name).unwrap().make)(&settings(value), &model.context());
        made.err().unwrap().to_string()
    };
    for entry in REPARAMETERIZATIONS {
        let name = entry.name;
        assert!(refused(name, json!({ "rank": 0 })).contains("`rank`"));
        assert!(refused(name, json!({ "lora_alpha": -1 })).contains("`lora_alpha`"));
        assert!(refused(name, json!({ "rank": 16 })).contains("wider than 16"));
        assert!(refused(name, json!({ "rnak": 4 })).contains("did you mean `rank`"));
        let nowhere = json!({ "rank": 4, "target_modules": ["attention"] });
        let nowhere = refused(name, nowhere);
        let said = ["`target_modules`", "`attention`", "q_proj"];
        assert!(said.iter().all(|part| nowhere.contains(part)), "{nowhere}");
        let one_is_none = json!({ "rank": 4, "target_modules": ["q_proj", "attention"] });
        assert!(refused(name, one_is_none).contains("`attention`"));
        assert!(
            (entry.restart_steps)(&settings(json!({ "restart_steps": 7 }))).is_ok_and(|s| s == 7)
        );
    }
    assert!(refused("sltrain", json!({ "sparsity": 1.5 })).contains("`sparsity`"));
    assert!(refused("sltrain", json!({ "rank": 4, "sparsity": 0.001 })).contains("`sparsity`"));
    let unknown = find("sl-trian").err().unwrap().to_string();
    assert!(
        unknown.contains("sltrain") && unknown.contains("relora"),
        "{unknown}"
    );
}
