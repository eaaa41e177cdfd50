//! What single methods promise beyond what all must hold.

use frugal::adapt::{Adapter, BuildContext, Mode, registry, to_vec};
use frugal::model::{Backbone, Input, ModelConfig};
use frugal_kernels::{AttentionSpec, attention};
use serde_json::{Map, Value, json};

use crate::support::{context, device, max_difference, model};

fn build(name: &str, settings: Value, context: &BuildContext<'_>) -> Box<dyn Adapter> {
    let Value::Object(settings) = settings else {
        panic!("{settings}")
    };
    (registry::find(name).unwrap().build)(&settings, context).unwrap()
}

/// SmolLM2-135M by its sizes.
fn smollm2() -> ModelConfig {
    let config = json!({"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": true});
    ModelConfig::from_json(config, "test").unwrap()
}

#[test]
fn parameters_are_as_many_as_counted_by_hand() {
    let config = smollm2();
    let sites = config.sites();
    let context = BuildContext {
        info: &config.info(),
        sites: &sites,
        backbone: None,
        device: device(),
        seed: 0,
        tokenize: None,
    };
    let network = 2 * 576 * 64 + 576 + 64;
    let cases = [
        ("houlsby", json!({"train_layer_norm": false}), 60 * network),
        ("houlsby", json!({}), 60 * network + 60 * 576),
        ("pfeiffer", json!({}), 30 * network),
        ("parallel-adapter", json!({}), 30 * network),
        ("prompt-tuning", json!({}), 11_520),
        ("prefix-tuning", json!({}), 230_400),
        ("mam", json!({}), 30 * 2 * 30 * 192 + 30 * network),
        // A bottleneck of 576 / 32 = 18, rounded up to 20: per network 2 (576 + 20) factors and 576
        // + 20 biases.
        (
            "compacter",
            json!({"train_layer_norm": false}),
            64 + 60 * 3 * (576 + 20),
        ),
        // Maps of 3 x 576 + 2 x 192 + 2 x 1536 outputs per block (no biases), and norms.
        (
            "ssf",
            json!({}),
            30 * (3 * 576 + 2 * 192 + 2 * 1536 + 2 * 576) + 576,
        ),
        // Half a per cent of 106 168 320 entries.
        ("fish-mask", json!({}), 530_841),
        (
            "diff-pruning",
            json!({"target_modules": ["q_proj"], "density": 0.25}),
            30 * 576 * 576 / 4,
        ),
        (
            "adalora",
            json!({"target_modules": ["q_proj", "v_proj"]}),
            12 * 30 * (576 + 576 + 1 + 576 + 192 + 1),
        ),
    ];
    for (name, settings, expected) in cases {
        assert_eq!(
            build(name, settings.clone(), &context).num_trainable(),
            expected,
            "{name} {settings}"
        );
    }
}

#[test]
fn a_prefix_mixes_its_own_attention_with_that_of_the_tokens() {
    let (heads, dim, tokens, rows) = (2, 4, 5, 3);
    let wave = |n: usize, phase: f32| -> Vec<f32> {
        (0..n).map(|i| (0.7 * i as f32 + phase).sin()).collect()
    };
    let tensor = |values: &[f32]| {
        burn::prelude::Tensor::<2>::from_data(
            burn::prelude::TensorData::new(
                values.to_vec(),
                [values.len() / (heads * dim), heads * dim],
            ),
            &device(),
        )
    };
    let (q, k, v) = (
        wave(tokens * heads * dim, 0.1),
        wave(tokens * heads * dim, 1.3),
        wave(tokens * heads * dim, 2.9),
    );
    let (pk, pv) = (wave(rows * heads * dim, 4.2), wave(rows * heads * dim, 5.5));
    let run = |k: &[f32], v: &[f32]| {
        let cu_k = vec![0, k.len() / (heads * dim)];
        let spec = AttentionSpec {
            num_heads: heads,
            num_kv_heads: heads,
            head_dim: dim,
            scale: 0.5,
            causal: false,
            window: None,
            cu_q: vec![0, tokens].into(),
            cu_k: cu_k.into(),
            softcap: None,
        };
        to_vec(attention(tensor(&q), tensor(k), tensor(v), &spec))
    };
    let (joined, own, prefix) = (
        run(&[&pk[..], &k].concat(), &[&pv[..], &v].concat()),
        run(&k, &v),
        run(&pk, &pv),
    );
    for t in 0..tokens {
        for h in 0..heads {
            // The share of the softmax on the prefix, by hand.
            let mass = |keys: &[f32]| -> f32 {
                let at = |i: usize| t * heads * dim + h * dim + i;
                keys.chunks(heads * dim)
                    .map(|key| {
                        (0.5 * (0..dim).map(|i| q[at(i)] * key[h * dim + i]).sum::<f32>()).exp()
                    })
                    .sum()
            };
            let share = mass(&pk) / (mass(&pk) + mass(&k));
            for i in t * heads * dim + h * dim..t * heads * dim + (h + 1) * dim {
                let mixed = (1.0 - share) * own[i] + share * prefix[i];
                assert!((joined[i] - mixed).abs() < 1e-6, "{} {mixed}", joined[i]);
            }
        }
    }
}

fn hidden(backbone: &dyn Backbone, adapter: &dyn Adapter) -> Vec<f32> {
    let mut pass = adapter.pass(Mode::Eval);
    to_vec(
        backbone
            .forward(
                &Input::new(&[3, 7, 1, 12, 30], &[2, 3]),
                pass.as_mut(),
                None,
            )
            .unwrap(),
    )
}

#[test]
fn mam_without_a_prefix_and_before_training_is_the_model_itself() {
    let backbone = model("llama", "config.json");
    let mut plain = frugal::adapt::NoAdapter;
    let base = to_vec(
        backbone
            .forward(&Input::new(&[3, 7, 1, 12, 30], &[2, 3]), &mut plain, None)
            .unwrap(),
    );
    let mam = build(
        "mam",
        json!({"num_virtual_tokens": 0}),
        &context(backbone.as_ref(), 0),
    );
    assert!(max_difference(&base, &hidden(backbone.as_ref(), mam.as_ref())) < 1e-6);
}

#[test]
fn unipelt_with_closed_gates_is_a_prefix_of_zeros() {
    for name in ["llama", "bert"] {
        let backbone = model(name, "config.json");
        let mut unipelt = build(
            "unipelt",
            json!({"num_virtual_tokens": 4}),
            &context(backbone.as_ref(), 0),
        );
        let open = hidden(backbone.as_ref(), unipelt.as_ref());
        for parameter in unipelt.parameters_mut() {
            if parameter.name().ends_with("gate.bias") {
                parameter.set(vec![-200.0]);
            } else if parameter.name().ends_with("up.weight")
                || parameter.name().ends_with("lora_B.weight")
            {
                parameter.set(vec![0.3; parameter.len()]);
            }
        }
        let zeros = build(
            "prefix-tuning",
            json!({"num_virtual_tokens": 4, "init_weights": "zero"}),
            &context(backbone.as_ref(), 0),
        );
        let (closed, zeros) = (
            hidden(backbone.as_ref(), unipelt.as_ref()),
            hidden(backbone.as_ref(), zeros.as_ref()),
        );
        assert!(max_difference(&closed, &zeros) < 1e-5, "{name}");
        assert!(max_difference(&open, &zeros) > 1e-3, "{name}");
    }
}

#[test]
fn sparse_methods_keep_as_many_entries_as_they_promise() {
    let backbone = model("llama", "config.json");
    for name in ["fish-mask", "diff-pruning"] {
        let adapter = build(
            name,
            json!({"density": 0.1}),
            &context(backbone.as_ref(), 0),
        );
        let finished = adapter.to_inference().unwrap();
        let config = finished.peft_config();
        let counts: u64 = config["nnz"]
            .as_object()
            .unwrap_or(&Map::new())
            .values()
            .map(|n| n.as_u64().unwrap())
            .sum();
        let entries = 2 * (32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 48);
        // Nothing was chosen yet by the one; the other chooses when it is saved.
        let expected = if name == "fish-mask" { 0 } else { entries / 10 };
        assert_eq!(counts, expected, "{name}");
    }
}
