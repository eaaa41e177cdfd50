use super::*;
use crate::support::test_model::{self, TestModel};
use frugal_nn::{SiteTable, Weight};

fn close(found: &[f32], expected: &[f32]) {
    test_model::close(found, expected, 1e-5);
}

#[test]
fn sparsity_rises_as_the_cube() {
    let config = PstConfig::default();
    let expected = [
        (0, 0.0),
        (100, 0.0),
        (101, 0.004_493),
        (250, 0.520_312),
        (400, 0.7875),
        (550, 0.885_938),
        (700, 0.9),
        (1000, 0.9),
    ];
    for (step, value) in expected {
        assert!(
            (config.sparsity(step, 1000) - value).abs() < 1e-6,
            "{step}: {}",
            config.sparsity(step, 1000)
        );
    }
    assert!((0..1000).all(|step| config.sparsity(step, 1000) <= config.sparsity(step + 1, 1000)));
}

#[test]
fn the_smallest_scores_are_pruned_and_ties_from_the_left() {
    assert_eq!(
        keep(&[0.8, 0.1, 4.0, 5.8, 2.5, 3.1], 0.5),
        [0.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    );
    assert_eq!(keep(&[1.0, 1.0, 1.0, 0.5], 0.5), [0.0, 1.0, 1.0, 0.0]);
    let zeros = |n: usize, share: f64| {
        keep(&vec![1.0; n], share)
            .iter()
            .filter(|k| **k == 0.0)
            .count()
    };
    assert_eq!(
        (zeros(10, 0.7), zeros(7, 0.5), zeros(100, 0.999)),
        (7, 3, 99)
    );
}

/// On a model whose first layer is 2 x 3.
fn small(settings: Value) -> (Result<Pst, AdaptError>, SiteTable) {
    let raw = json!({"model_type": "llama", "hidden_size": 3, "head_dim": 2, "intermediate_size": 3, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 4});
    let model = TestModel::new(raw);
    let config = PstConfig::parse(settings.as_object().unwrap()).unwrap();
    (Pst::new(config, &model.context()), model.sites)
}

/// One 2 x 3 map with the worked example's values.
fn worked() -> (Pst, Linear) {
    let (pst, sites) =
        small(json!({"r": 1, "score_r": 1, "target_modules": ["q_proj"], "current_sparsity": 0.5}));
    let mut pst = pst.unwrap();
    let values: [&[f32]; 6] = [
        &[1.0, -1.0],
        &[0.0; 3],
        &[1.0, 0.0],
        &[0.0, -1.9, 0.0],
        &[0.0, 2.0],
        &[-0.2, 0.0, 1.0],
    ];
    pst.parameters_mut()
        .into_iter()
        .zip(values)
        .for_each(|(p, v)| p.set(v.to_vec()));
    let weight = Tensor::<2>::from_data([[1.0, -2.0, 3.0], [-4.0, 0.5, 0.1]], &Device::default());
    (
        pst,
        Linear {
            site: sites.find("model.layers.0.self_attn.q_proj").unwrap(),
            weight: Weight::Dense(weight),
            bias: None,
        },
    )
}

#[test]
fn mask_and_straight_through_gradients_are_those_of_the_worked_example() {
    let (pst, base) = worked();
    let merged = pst.merged_linear(&base).unwrap().unwrap();
    assert_eq!(to_vec(merged.weight), [0.0, 0.0, 3.0, -4.0, 0.0, 0.1]);
    assert!(pst.unmerged_linear(&base).is_err());

    let device = Device::default();
    let x = Tensor::<2>::eye(3, &device.clone().autodiff());
    let y = pst.pass(Mode::Train { seed: 0 }).linear(&base, x);
    close(&to_vec(y.clone().inner()), &[0.0, -4.0, 0.0, 0.0, 3.0, 0.1]);
    // y = Ŵᵀ, so weights on y are the gradient of Ŵ transposed: G = [[1, 2, 3], [4, 5, 6]].
    let mut gradients = (y * Tensor::<2>::from_data([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]], &device))
        .sum()
        .backward();
    let mut gradient =
        |i: usize| to_vec(pst.parameters()[i].take_gradient(&mut gradients).unwrap());
    close(&gradient(4), &[6.0, -12.9]);
    close(&gradient(5), &[-15.0, -1.5, 9.6]);
    close(&gradient(3), &[1.0, -4.0, 9.0]);
    // ∂L/∂(UV) = G ⊙ M + sign(W) ⊙ G ⊙ W, and V gets Uᵀ of it.
    let (g, m, w) = (
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        [0.0, 0.0, 1.0, 1.0, 0.0, 1.0],
        [1.0f32, -2.0, 3.0, -4.0, 0.5, 0.1],
    );
    let full: Vec<f32> = (0..6)
        .map(|i| g[i] * m[i] + w[i].signum() * g[i] * w[i])
        .collect();
    close(
        &gradient(1),
        &[full[0] - full[3], full[1] - full[4], full[2] - full[5]],
    );
}

#[test]
fn a_final_sparsity_of_many_decimals_is_reached() {
    let mut pst = small(json!({"final_sparsity": 2.0 / 3.0})).0.unwrap();
    assert!(!pst.is_complete());
    pst.after_step(&StepContext {
        step: 10,
        total_steps: 10,
        seed: 0,
        lr_factor: 1.0,
    });
    assert!(pst.is_complete());
    let state = pst.state();
    pst.restore(&state).unwrap();
    assert!(pst.is_complete());
}

#[test]
fn shares_are_within_0_and_1_and_tables_refused() {
    let message = |settings: Value| {
        (METHOD.check)(settings.as_object().unwrap())
            .unwrap_err()
            .to_string()
    };
    for (field, value) in [
        ("current_sparsity", 1.5),
        ("current_sparsity", -0.1),
        ("final_sparsity", 0.999_999_9),
    ] {
        assert!(
            message(json!({field: value})).contains(field),
            "{field} {value}"
        );
    }
    let message = small(json!({"target_modules": ["q_proj", "embed_tokens"]}))
        .0
        .err()
        .unwrap()
        .to_string();
    assert!(
        message.contains("`model.embed_tokens` is a table"),
        "{message}"
    );
}

#[test]
fn counts_are_those_of_the_factors() {
    let count = |raw: Value, settings: Value| {
        let model = TestModel::new(raw);
        let context = model.context();
        Pst::new(
            PstConfig::parse(settings.as_object().unwrap()).unwrap(),
            &context,
        )
        .unwrap()
        .num_trainable()
    };
    let bert = json!({"model_type": "bert", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "vocab_size": 16, "max_position_embeddings": 8, "type_vocab_size": 2});
    assert_eq!(
        count(bert.clone(), json!({"exclude_modules": ["pooler.dense"]})),
        2_820_096
    );
    assert_eq!(
        count(
            bert,
            json!({"r": 4, "score_r": 4, "exclude_modules": ["pooler.dense"]})
        ),
        1_492_992
    );
    let smollm = json!({"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 64});
    assert_eq!(count(smollm, json!({})), 5_189_760);
}

#[test]
fn magnitude_and_movement_pruning_train_what_they_say() {
    let golden: Value =
        serde_json::from_str(include_str!("../../../../../../fixtures/methods/pst.json")).unwrap();
    let floats = |value: &Value| -> Vec<f32> {
        let numbers = value.as_array().unwrap().iter();
        numbers.map(|n| n.as_f64().unwrap() as f32).collect()
    };
    let device = Device::default();
    for (score, of) in golden["scores"].as_object().unwrap() {
        let (pst, sites) = small(json!({
            "change": "full", "score": score, "target_modules": ["q_proj"], "current_sparsity": golden["sparsity"],
        }));
        let mut pst = pst.unwrap();
        let trained = if score == "movement" { 2 * 6 } else { 6 };
        assert_eq!(pst.num_trainable(), trained, "{score}");
        let values = [floats(&golden["change"]), floats(&golden["movement"])];
        for (parameter, values) in pst.parameters_mut().into_iter().zip(values) {
            parameter.set(values);
        }
        let base = Linear {
            site: sites.find("model.layers.0.self_attn.q_proj").unwrap(),
            weight: Weight::Dense(Tensor::from_data(
                TensorData::new(floats(&golden["weight"]), [2, 3]),
                &device,
            )),
            bias: None,
        };
        let merged = pst.merged_linear(&base).unwrap().unwrap();
        close(&to_vec(merged.weight), &floats(&of["masked"]));
        let x = Tensor::<2>::eye(3, &device.clone().autodiff());
        let y = pst.pass(Mode::Train { seed: 0 }).linear(&base, x);
        let upstream = TensorData::new(floats(&golden["upstream"]), [2, 3]);
        let mut gradients = (y * Tensor::<2>::from_data(upstream, &device).transpose())
            .sum()
            .backward();
        for (parameter, key) in pst.parameters().into_iter().zip(["change", "movement"]) {
            let found = to_vec(parameter.take_gradient(&mut gradients).unwrap());
            close(&found, &floats(&of[key]));
        }
    }
}
