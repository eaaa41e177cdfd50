//! What single methods promise beyond what all must hold.

use frugal::adapt::{
    Adapter, BuildContext, GradientSum, Mode, StepContext, merge, registry, to_vec,
};
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
        // 12 behind each half and 8 beside each block, without biases.
        ("iaa", json!({}), 30 * 576 * (4 * 12 + 2 * 8)),
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

#[test]
fn biases_that_an_adapter_adds_to_a_llama_are_merged() {
    let backbone = model("llama", "config.json");
    let mut bitfit = build("bitfit", json!({}), &context(backbone.as_ref(), 0));
    assert!(
        bitfit.parameters().len() == 14,
        "{}",
        bitfit.parameters().len()
    );
    let same = hidden(backbone.as_ref(), bitfit.as_ref());
    let mut plain = frugal::adapt::NoAdapter;
    let input = Input::new(&[3, 7, 1, 12, 30], &[2, 3]);
    let base = to_vec(backbone.forward(&input, &mut plain, None).unwrap());
    assert!(max_difference(&same, &base) < 1e-6);
    for parameter in bitfit.parameters_mut() {
        parameter.set(
            (0..parameter.len())
                .map(|i| 0.3 * (i as f32).sin())
                .collect(),
        );
    }
    let weights = merge::weights(backbone.as_ref(), Some(bitfit.as_ref())).unwrap();
    // What transformers reads.
    assert_eq!(weights.config.raw["attention_bias"], json!(true));
    assert_eq!(weights.config.raw["mlp_bias"], json!(true));
    let merged = weights.build(&device()).unwrap();
    let found = to_vec(merged.forward(&input, &mut plain, None).unwrap());
    let expected = hidden(backbone.as_ref(), bitfit.as_ref());
    assert!(max_difference(&found, &expected) < 1e-5);
    assert!(max_difference(&found, &base) > 1e-2);

    // One bias among many: the others of the architecture's setting are zeros.
    let one = json!({"target_modules": ["layers.0.mlp.up_proj"]});
    let mut one = build("bitfit", one, &context(backbone.as_ref(), 0));
    for parameter in one.parameters_mut() {
        parameter.set(vec![0.5; parameter.len()]);
    }
    let weights = merge::weights(backbone.as_ref(), Some(one.as_ref())).unwrap();
    assert_ne!(weights.config.raw["attention_bias"], json!(true));
    let merged = weights.build(&device()).unwrap();
    let found = to_vec(merged.forward(&input, &mut plain, None).unwrap());
    assert!(max_difference(&found, &hidden(backbone.as_ref(), one.as_ref())) < 1e-5);
}

#[test]
fn a_prefix_from_a_text_is_the_text_in_front_of_a_decoder() {
    let backbone = model("llama", "config.json");
    let text = [5u32, 11, 2, 40];
    let tokenize = |_: &str| text.to_vec();
    let context = BuildContext {
        tokenize: Some(&tokenize),
        ..context(backbone.as_ref(), 0)
    };
    let input = [3u32, 7, 1, 12, 30];
    let whole = [&text[..], &input].concat();
    let mut plain = frugal::adapt::NoAdapter;
    let expected = to_vec(
        backbone
            .forward(&Input::new(&whole, &[whole.len()]), &mut plain, None)
            .unwrap(),
    );
    let width = expected.len() / whole.len();
    for settings in [
        json!({"num_virtual_tokens": 4, "init_text": "a text"}),
        json!({"num_virtual_tokens": 4, "init_text": "a text", "prefix_projection": true}),
    ] {
        let prefix = build("prefix-tuning", settings, &context);
        let finished = prefix.to_inference().unwrap();
        for adapter in [prefix.as_ref(), finished.as_ref()] {
            let mut pass = adapter.pass(Mode::Eval);
            let found = backbone
                .forward(&Input::new(&input, &[input.len()]), pass.as_mut(), None)
                .unwrap();
            let worst = max_difference(&to_vec(found), &expected[text.len() * width..]);
            assert!(worst < 1e-3, "{worst:e}");
        }
    }
}

#[test]
fn a_prompt_encoder_starts_from_the_embeddings_of_its_text() {
    let backbone = model("llama", "config.json");
    let text = [5u32, 11, 2, 40];
    let tokenize = |_: &str| text.to_vec();
    let context = BuildContext {
        tokenize: Some(&tokenize),
        ..context(backbone.as_ref(), 0)
    };
    let prompt = build(
        "prompt-tuning",
        json!({"num_virtual_tokens": 4, "prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "a text"}),
        &context,
    );
    let expected = prompt.parameters()[0].to_vec();
    for kind in ["MLP", "LSTM"] {
        let settings = json!({"num_virtual_tokens": 4, "init_text": "a text", "encoder_reparameterization_type": kind});
        let encoded = build("p-tuning", settings, &context)
            .to_inference()
            .unwrap();
        let worst = max_difference(&encoded.parameters()[0].to_vec(), &expected);
        assert!(worst < 1e-3, "{kind}: {worst:e}");
    }
}

#[test]
fn a_small_model_of_two_thin_matrices_per_layer_needs_no_base() {
    let backbone = model("llama", "config.json");
    let mut pela = build(
        "pela",
        json!({"compression_ratio": 2.0, "feature_weight": 0.0}),
        &context(backbone.as_ref(), 0),
    );
    for parameter in pela.parameters_mut() {
        let values = parameter.to_vec().into_iter().enumerate();
        parameter.set(values.map(|(i, v)| v + 0.01 * (i as f32).sin()).collect());
    }
    let expected = hidden(backbone.as_ref(), pela.as_ref());
    let small = merge::weights_as(
        merge::Form::Factored,
        backbone.as_ref(),
        Some(pela.as_ref()),
    );
    let small = small.unwrap();
    assert!(small.is_factored());
    let size = |weights: &merge::Weights| -> usize {
        weights
            .tensors
            .iter()
            .map(|(_, shape, _)| shape.iter().product::<usize>())
            .sum()
    };
    let small_backbone = small.build(&device()).unwrap();
    let mut plain = frugal::adapt::NoAdapter;
    let input = Input::new(&[3, 7, 1, 12, 30], &[2, 3]);
    let found = to_vec(small_backbone.forward(&input, &mut plain, None).unwrap());
    assert!(max_difference(&found, &expected) < 1e-5);

    // Whole again, for other programs.
    let whole = merge::weights(small_backbone.as_ref(), None).unwrap();
    assert!(!whole.is_factored() && whole.config.raw.get("quantization_config").is_none());
    let rebuilt = whole.build(&device()).unwrap();
    let found = to_vec(rebuilt.forward(&input, &mut plain, None).unwrap());
    assert!(max_difference(&found, &expected) < 1e-5);
    assert!(size(&small) < size(&whole));

    // The downstream stage: what is trained from it, and stays small with `full`.
    for name in ["full", "lora", "ia3"] {
        let adapter = build(name, json!({}), &context(small_backbone.as_ref(), 0));
        let found = hidden(small_backbone.as_ref(), adapter.as_ref());
        assert!(max_difference(&found, &expected) < 1e-5, "{name}");
        let again = merge::weights_as(
            merge::Form::Factored,
            small_backbone.as_ref(),
            Some(adapter.as_ref()),
        )
        .unwrap();
        // LoRA changes every layer, (IA)³ some of them.
        assert_eq!(again.is_factored(), name != "lora", "{name}");
        if name == "full" {
            assert_eq!(size(&again), size(&small));
            assert_eq!(adapter.num_trainable(), size(&small));
        }
        let merged = again.build(&device()).unwrap();
        let found = to_vec(merged.forward(&input, &mut plain, None).unwrap());
        assert!(max_difference(&found, &expected) < 1e-5, "{name}");
    }
}

#[test]
fn distillation_of_logits_is_zero_at_full_rank_and_refused_without_a_head() {
    let llama = model("llama", "config.json");
    let loss = |settings: Value| {
        let pela = build("pela", settings, &context(llama.as_ref(), 0));
        let mut pass = pela.pass(Mode::Train { seed: 0 });
        let input = Input::new(&[3, 7, 1, 12, 30], &[2, 3]);
        llama.forward(&input, pass.as_mut(), None).unwrap();
        assert!(pass.take_error().is_none());
        to_vec(pass.auxiliary_loss().unwrap().inner())[0]
    };
    let off = json!({"feature_weight": 0.0, "perturbation_weight": 0.0});
    let with = |ratio: f64, beta: f64| {
        let mut settings = off.clone();
        settings["compression_ratio"] = json!(ratio);
        settings["kd_beta"] = json!(beta);
        settings
    };
    // A ratio this low leaves every rank.
    assert!(loss(with(0.1, 1.0)) < 1e-8);
    let (one, three) = (loss(with(3.0, 1.0)), loss(with(3.0, 3.0)));
    assert!(
        one > 1e-3 && (three / one - 3.0).abs() < 1e-4,
        "{one} {three}"
    );
    let bert = model("bert", "config.json");
    let settings = with(2.0, 1.0);
    let error = (registry::find("pela").unwrap().build)(
        settings.as_object().unwrap(),
        &context(bert.as_ref(), 0),
    )
    .err()
    .unwrap();
    assert!(error.to_string().contains("`kd_beta`"), "{error}");
}

#[test]
fn every_kind_of_tensor_may_be_a_candidate_of_id3() {
    for (name, kinds) in [
        ("llama", json!(["linear", "norm", "embedding"])),
        ("bert", json!(["linear", "bias", "norm", "embedding"])),
        ("bert", json!(["bias"])),
    ] {
        let backbone = model(name, "config.json");
        let settings = json!({"budget": 1_000_000, "candidates": kinds, "criterion": "random"});
        let mut id3 = build("id3", settings, &context(backbone.as_ref(), 0));
        let at = StepContext {
            step: 0,
            total_steps: 1,
            seed: 0,
            lr_factor: 1.0,
        };
        let all: usize = id3.parameters().iter().map(|p| p.len()).sum();
        id3.before_step(&at, &mut GradientSum::default());
        assert!(id3.is_complete(), "{name} {kinds}");
        for parameter in id3.parameters_mut() {
            let values = (0..parameter.len()).map(|i| 0.05 * (i as f32).sin());
            parameter.set(values.collect());
        }
        let expected = hidden(backbone.as_ref(), id3.as_ref());
        let finished = id3.to_inference().unwrap();
        let kept: u64 = finished.peft_config()["counts"]
            .as_object()
            .unwrap()
            .values()
            .map(|n| n.as_u64().unwrap())
            .sum();
        assert_eq!(kept, all as u64, "{name} {kinds}");
        assert!(max_difference(&hidden(backbone.as_ref(), finished.as_ref()), &expected) < 1e-6);
        let merged = merge::weights(backbone.as_ref(), Some(finished.as_ref())).unwrap();
        let merged = merged.build(&device()).unwrap();
        let mut plain = frugal::adapt::NoAdapter;
        let input = Input::new(&[3, 7, 1, 12, 30], &[2, 3]);
        let found = to_vec(merged.forward(&input, &mut plain, None).unwrap());
        assert!(max_difference(&found, &expected) < 1e-5, "{name} {kinds}");
        let base = to_vec(backbone.forward(&input, &mut plain, None).unwrap());
        assert!(max_difference(&base, &expected) > 1e-3, "{name} {kinds}");
    }
}
