use super::*;
use frugal_models::ModelConfig;
use frugal_nn::Weight;

fn close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    found
        .iter()
        .zip(expected)
        .for_each(|(f, e)| assert!((f - e).abs() < 1e-6, "{found:?} instead of {expected:?}"));
}

fn logits(rows: usize) -> Tensor<2> {
    let values: Vec<f32> = (0..rows).flat_map(|_| [2.0, 1.0, 0.0, -1.0]).collect();
    Tensor::from_data(TensorData::new(values, [rows, 4]), &Device::default())
}

fn build(
    hidden: usize,
    ff: usize,
    layers: usize,
    heads: (usize, usize),
    config: MolaConfig,
) -> Mola {
    let raw = serde_json::json!({"model_type": "llama", "hidden_size": hidden, "intermediate_size": ff, "num_hidden_layers": layers,
        "num_attention_heads": heads.0, "num_key_value_heads": heads.1, "vocab_size": 64});
    let model = ModelConfig::from_json(raw, "test").unwrap();
    let sites = model.sites();
    let context = BuildContext {
        info: &model.info(),
        sites: &sites,
        backbone: None,
        device: Device::default(),
        seed: 3,
        tokenize: None,
    };
    Mola::new(config, &context).unwrap()
}

#[test]
fn tokens_go_to_their_most_probable_experts() {
    let routing = route(logits(1), 2);
    close(
        &to_vec(routing.probabilities),
        &[0.643_914, 0.236_883, 0.087_144, 0.032_059],
    );
    close(&to_vec(routing.weights), &[0.731_059, 0.268_941, 0.0, 0.0]);
    let equal = route(Tensor::zeros([1, 3], &Device::default()), 2);
    close(&to_vec(equal.weights), &[0.5, 0.5, 0.0]);
    let all = route(logits(1), 4);
    close(&to_vec(all.weights), &to_vec(all.probabilities));
}

#[test]
fn the_balance_term_is_one_when_balanced() {
    let loss = |routing: &Routing| to_vec(Load::new(routing).balance());
    close(&loss(&route(logits(4), 2)), &[1.761_594]);
    // Two tokens whose choices and probabilities mirror each other.
    let mirrored = Tensor::<2>::from_data(
        [[5.0, 5.0, 0.0, 0.0], [0.0, 0.0, 5.0, 5.0]],
        &Device::default(),
    );
    close(&loss(&route(mirrored, 2)), &[1.0]);
    let joined = Load::new(&route(logits(1), 2)).join(Load::new(&route(logits(3), 2)));
    close(&to_vec(joined.balance()), &[1.761_594]);
}

#[test]
fn counts_follow_the_allocation() {
    let smollm = |num_experts: Vec<usize>| {
        build(
            576,
            1536,
            30,
            (9, 3),
            MolaConfig {
                num_experts: PerBlock::Shares(num_experts),
                ..MolaConfig::default()
            },
        )
        .num_trainable()
    };
    assert_eq!(smollm(vec![2, 4, 6, 8]), 12_787_200);
    assert_eq!(smollm(vec![5]), 12_960_000);
    let config = MolaConfig::default();
    let llama: Vec<usize> = (0..32)
        .map(|layer| config.num_experts.at(Some(layer), 32))
        .collect();
    assert_eq!(
        (llama[7], llama[8], llama[24], llama.iter().sum::<usize>()),
        (2, 4, 8, 160)
    );
}

/// A small adapter with nothing zero, a layer of its and an input.
fn filled(num_experts: usize, top_k: usize) -> (Mola, Linear, Tensor<2>) {
    let config = MolaConfig {
        num_experts: PerBlock::All(num_experts),
        top_k: PerBlock::All(top_k),
        lora_dropout: 0.0,
        ..MolaConfig::default()
    };
    let mut mola = build(16, 24, 1, (4, 2), config);
    for parameter in mola.parameters_mut() {
        parameter.set(
            (0..parameter.len())
                .map(|i| (i as f32 * 0.37).sin())
                .collect(),
        );
    }
    let index = mola.sites.iter().position(Option::is_some).unwrap();
    let device = Device::default();
    let wave = |rows: usize, f: f32| {
        Tensor::<2>::from_data(
            TensorData::new(
                (0..rows * 16)
                    .map(|i| (i as f32 * f).cos())
                    .collect::<Vec<_>>(),
                [rows, 16],
            ),
            &device,
        )
    };
    (
        mola,
        Linear {
            site: SiteId(index as u32),
            weight: Weight::Dense(wave(16, 0.11)),
            bias: None,
        },
        wave(5, 0.53),
    )
}

#[test]
fn one_expert_is_lora_bit_for_bit() {
    let (mola, base, x) = filled(1, 1);
    let site = mola.at(base.site).unwrap();
    let (a, b) = (site.a.get::<2>(Mode::Eval), site.b.get::<2>(Mode::Eval));
    let lora = Linear {
        bias: None,
        ..base.clone()
    }
    .forward_low_rank(x.clone(), a, b, 2.0);
    assert_eq!(to_vec(mola.pass(Mode::Eval).linear(&base, x)), to_vec(lora));
}

#[test]
fn computing_all_experts_at_once_equals_computing_the_chosen_ones() {
    let (mola, base, x) = filled(4, 2);
    let found = to_vec(mola.pass(Mode::Eval).linear(&base, x.clone()));
    let site = mola.at(base.site).unwrap();
    let (a, b, r) = (
        site.a.get::<2>(Mode::Eval),
        site.b.get::<2>(Mode::Eval),
        site.r,
    );
    let routing = route(
        frugal_kernels::linear(x.clone(), site.router.get::<2>(Mode::Eval), None),
        2,
    );
    for token in 0..5 {
        let x = x.clone().slice(token..token + 1);
        let weights = to_vec(routing.weights.clone().slice(token..token + 1));
        let mut y = base.forward(x.clone());
        for (expert, &weight) in weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
            let range = expert * r..(expert + 1) * r;
            let low = x.clone().matmul(a.clone().slice(range.clone()).transpose());
            y = y + low.matmul(b.clone().slice([0..16, range]).transpose()) * (2.0 * weight);
        }
        let expected = to_vec(y);
        found[token * 16..(token + 1) * 16]
            .iter()
            .zip(&expected)
            .for_each(|(f, e)| assert!((f - e).abs() < 1e-4, "{f} {e}"));
    }
}

#[test]
fn blocks_may_have_a_rank_and_a_choice_of_their_own() {
    let config = |settings: Value| MolaConfig::parse(settings.as_object().unwrap()).unwrap();
    let settings = serde_json::json!({"r": [2, 4], "top_k": [1, 3], "num_experts": [3, 5], "target_modules": ["q_proj"]});
    let mola = build(16, 24, 4, (4, 2), config(settings.clone()));
    let found: Vec<(usize, usize, usize)> = mola
        .sites
        .iter()
        .flatten()
        .map(|s| (s.count, s.r, s.top_k))
        .collect();
    assert_eq!(found, [(3, 2, 1), (3, 2, 1), (5, 4, 3), (5, 4, 3)]);
    // N (r (d_in + d_out) + d_in) per layer.
    let of = |n: usize, r: usize| n * (r * 32 + 16);
    assert_eq!(mola.num_trainable(), 2 * of(3, 2) + 2 * of(5, 4));
    // Files say it in the same words, and mean the same.
    let saved = own_files::from_file::<MolaConfig>(&mola.peft_config());
    assert_eq!(saved["r"], settings["r"]);
    let again = build(16, 24, 4, (4, 2), MolaConfig::parse(&saved).unwrap());
    assert_eq!(again.num_trainable(), mola.num_trainable());
    for (field, value) in [
        ("r", serde_json::json!([2, 0])),
        ("top_k", serde_json::json!([])),
    ] {
        let settings = Map::from_iter([(field.to_owned(), value)]);
        let message = (METHOD.check)(&settings).unwrap_err().to_string();
        assert!(message.contains(&format!("`{field}`")), "{message}");
    }
}

#[test]
fn outputs_and_balance_over_blocks_and_layers_are_those_of_pytorch() {
    let golden: Value =
        serde_json::from_str(include_str!("../../../../../../fixtures/methods/mola.json")).unwrap();
    let size = |key: &str| golden[key].as_u64().unwrap() as usize;
    let (tokens, d) = (size("tokens"), size("d"));
    let device = Device::default();
    for (balance, key) in [(Balance::Block, "block"), (Balance::Layer, "layer")] {
        let config = MolaConfig {
            r: PerBlock::All(size("r")),
            lora_alpha: golden["lora_alpha"].as_f64().unwrap(),
            lora_dropout: 0.0,
            num_experts: PerBlock::All(size("experts")),
            top_k: PerBlock::All(size("top_k")),
            router_aux_loss_coef: 1.0,
            balance,
            targets: Targets {
                target_modules: crate::target::Names::List(vec!["q_proj".into(), "o_proj".into()]),
                ..Targets::default()
            },
        };
        let mut mola = build(d, 24, 1, (4, 2), config);
        let mut inputs = Vec::new();
        let layers = golden["layers"].as_array().unwrap();
        for ((index, site), layer) in mola
            .sites
            .iter_mut()
            .enumerate()
            .filter_map(|(i, s)| Some((i, s.as_mut()?)))
            .zip(layers)
        {
            let floats = |key: &str| -> Vec<f32> {
                let numbers = layer[key].as_array().unwrap().iter();
                numbers.map(|n| n.as_f64().unwrap() as f32).collect()
            };
            site.a.set(floats("a"));
            site.b.set(floats("b"));
            site.router.set(floats("router"));
            let x = Tensor::<2>::from_data(TensorData::new(floats("x"), [tokens, d]), &device);
            inputs.push((SiteId(index as u32), x, floats("y")));
        }
        assert_eq!(inputs.len(), 2);
        let mut pass = mola.pass(Mode::Train { seed: 0 });
        for (site, x, y) in inputs {
            let base = Linear {
                site,
                weight: Weight::Dense(Tensor::zeros([d, d], &device)),
                bias: None,
            };
            for (found, expected) in to_vec(pass.linear(&base, x).inner()).iter().zip(&y) {
                assert!(
                    (found - expected).abs() < 1e-3,
                    "{found} instead of {expected}"
                );
            }
        }
        let found = to_vec(pass.auxiliary_loss().unwrap().inner())[0];
        let expected = golden[key].as_f64().unwrap() as f32;
        assert!(
            (found - expected).abs() < 1e-5,
            "{key}: {found} instead of {expected}"
        );
    }
}
