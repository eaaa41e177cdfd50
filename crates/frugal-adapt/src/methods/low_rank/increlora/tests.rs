use crate::support::test_model::{self, TestModel};
use frugal_nn::{LinearChange, Weight};

use super::*;

fn model() -> TestModel {
    TestModel::new(
        json!({"model_type": "bert", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 2, "vocab_size": 16, "max_position_embeddings": 8, "type_vocab_size": 2}),
    )
}

fn try_build(settings: Value) -> Result<Increlora, AdaptError> {
    Increlora::new(
        IncreloraConfig::parse(settings.as_object().unwrap()).unwrap(),
        &model().context(),
    )
}

fn build(settings: Value) -> Increlora {
    try_build(settings).unwrap()
}

/// What a backward pass would leave for everything that is trained.
fn gradients(adapter: &Increlora) -> GradientSum {
    let mut gradients = GradientSum::default();
    for parameter in adapter
        .parameters()
        .into_iter()
        .filter(|p| p.is_trainable())
    {
        gradients.insert(parameter.name(), parameter.to_vec());
    }
    gradients
}

fn close(found: &[f32], expected: &[f32]) {
    test_model::close(found, expected, 2e-6);
}

#[test]
fn importance_is_that_of_the_worked_example() {
    let device = Device::default();
    let component = |name: &str, a: Vec<f32>, e: f32, b: Vec<f32>| Group {
        size: 1,
        a: Parameter::new(format!("{name}a"), &[1, 2], a, &device),
        e: Parameter::new(format!("{name}e"), &[1, 1], vec![e], &device),
        b: Parameter::new(format!("{name}b"), &[2, 1], b, &device),
        directions: Clock::default(),
        weights: Clock::default(),
    };
    let module = Module {
        path: "m".into(),
        d_in: 2,
        d_out: 2,
        groups: vec![
            component("0", vec![1.0, 2.0], 0.5, vec![1.0, -1.0]),
            component("1", vec![0.0, 1.0], 1e-5, vec![0.0, 2.0]),
        ],
        reserve: true,
        importance: Importance::default(),
        probe: None,
    };
    let delta = to_vec(module.delta(2.0, Mode::Eval));
    close(&delta, &[0.999_99, 1.999_98, -0.999_99, -1.999_94]);
    close(&[sensitivity(&delta, &[0.1, -0.2, 0.3, 0.4])], &[0.799_984]);
    let (a, b) = module.directions(Mode::Eval);
    let (a, b) = (
        to_vec(orthogonality(a))[0],
        to_vec(orthogonality(b.transpose()))[0],
    );
    close(
        &[a, b, (a + b) / 2.0],
        &[4.898_979_5, 4.242_640_5, 4.570_81],
    );
}

#[test]
fn importance_and_regulariser_are_those_of_pytorch() {
    let golden: Value = serde_json::from_str(include_str!(
        "../../../../../../fixtures/methods/increlora.json"
    ))
    .unwrap();
    let golden = &golden["importance"];
    let numbers = |value: &Value| -> Vec<f32> {
        let rows = value.as_array().unwrap().iter();
        rows.flat_map(|row| row.as_array().cloned().unwrap_or_else(|| vec![row.clone()]))
            .map(|number| number.as_f64().unwrap() as f32)
            .collect()
    };
    let (device, alpha) = (Device::default(), golden["lora_alpha"].as_f64().unwrap());
    let mut terms = Vec::new();
    for layer in golden["layers"].as_array().unwrap() {
        let size = |name: &str| layer[name].as_u64().unwrap() as usize;
        let (d_in, d_out, active) = (size("d_in"), size("d_out"), size("active"));
        let (a, e, b) = (
            numbers(&layer["a"]),
            numbers(&layer["e"]),
            numbers(&layer["b"]),
        );
        let all = e.len();
        let group = |rows: std::ops::Range<usize>| Group {
            size: rows.len(),
            a: Parameter::new(
                "a",
                &[rows.len(), d_in],
                a[rows.start * d_in..rows.end * d_in].to_vec(),
                &device,
            ),
            e: Parameter::new("e", &[rows.len(), 1], e[rows.clone()].to_vec(), &device),
            b: Parameter::new(
                "b",
                &[d_out, rows.len()],
                b.chunks_exact(all)
                    .flat_map(|row| row[rows.clone()].to_vec())
                    .collect(),
                &device,
            ),
            directions: Clock::default(),
            weights: Clock::default(),
        };
        let module = Module {
            path: "m".into(),
            d_in,
            d_out,
            groups: vec![group(0..active), group(active..all)],
            reserve: true,
            importance: Importance::default(),
            probe: None,
        };
        let delta = to_vec(module.delta(alpha, Mode::Eval));
        let mut importance = Importance::default();
        for step in layer["steps"].as_array().unwrap() {
            let found = sensitivity(&delta, &numbers(&step["gradient"]));
            close(&[found], &[step["sensitivity"].as_f64().unwrap() as f32]);
            importance.update(found, 0.85, 0.85);
            close(
                &[importance.score()],
                &[step["score"].as_f64().unwrap() as f32],
            );
        }
        let (a, b) = module.directions(Mode::Eval);
        terms.extend([
            to_vec(orthogonality(a))[0],
            to_vec(orthogonality(b.transpose()))[0],
        ]);
    }
    let mean = terms.iter().sum::<f32>() / terms.len() as f32;
    assert!(
        (mean - golden["regulariser"].as_f64().unwrap() as f32).abs() < 1e-5,
        "{mean}"
    );
}

#[test]
fn the_count_before_growth_is_what_is_trained_in_the_end() {
    // The square layers of attention, so that it does not matter which of them grow.
    let settings = json!({"target_rank": 3, "target_modules": ["query", "key", "value"]});
    let mut adapter = build(settings);
    let planned = adapter.num_trainable();
    let mut step = 0;
    while adapter.is_growing() {
        step += 10;
        adapter.grow(2, step, &mut GradientSum::default());
    }
    let trained: usize = adapter.parameters().iter().map(|p| p.len()).sum();
    assert_eq!(planned, trained);
    assert_eq!(planned, adapter.num_trainable());
    assert_eq!(planned, 6 * 3 * (8 + 8 + 1));
}

#[test]
fn rates_of_groups_survive_a_resume() {
    let mut adapter = build(json!({"target_modules": ["query"], "target_rank": 4, "top_h": 1}));
    let run = |step: u64| 1.0 - step as f64 / 40.0;
    let at = |step: u64| StepContext {
        step,
        total_steps: 40,
        seed: 0,
        lr_factor: run(step),
    };
    for step in 0..12 {
        let mut found = gradients(&adapter);
        adapter.before_step(&at(step), &mut found);
    }
    let mut resumed = build(json!({"target_modules": ["query"], "target_rank": 4, "top_h": 1}));
    resumed.restore(&adapter.state()).unwrap();
    for step in 12..14 {
        adapter.before_step(&at(step), &mut gradients(&adapter));
        resumed.before_step(&at(step), &mut gradients(&resumed));
        let scales = |adapter: &Increlora| -> Vec<f64> {
            adapter.parameters().iter().map(|p| p.lr_scale()).collect()
        };
        assert_eq!(scales(&adapter), scales(&resumed), "step {step}");
        assert!(scales(&adapter).iter().any(|scale| *scale != 1.0));
    }
}

#[test]
fn growth_spends_the_budget_exactly_on_the_most_important() {
    for (target_rank, incre_rank_num, top_h) in [(2, 1, 5), (4, 2, 3), (3, 4, 2)] {
        let settings = json!({"target_rank": target_rank, "incre_rank_num": incre_rank_num, "exclude_modules": ["pooler.dense"]});
        let mut adapter = build(settings);
        let modules = adapter.modules.iter().flatten().count();
        assert_eq!(modules, 12);
        for (i, module) in adapter.modules.iter_mut().flatten().enumerate() {
            // Two layers are more important than all others, which are equal.
            let mean = if i == 3 || i == 7 { 2.0 } else { 1.0 };
            module.importance = Importance {
                mean,
                uncertainty: 1.0,
            };
        }
        adapter.grow(top_h, 10, &mut GradientSum::default());
        let ranks: Vec<usize> = adapter.modules.iter().flatten().map(Module::rank).collect();
        assert!(
            ranks[3] == 1 + incre_rank_num && ranks[7] == 1 + incre_rank_num,
            "{ranks:?}"
        );
        let mut rounds = 1;
        while adapter.is_growing() {
            adapter.grow(top_h, 10 * (rounds + 1), &mut GradientSum::default());
            rounds += 1;
            assert!(adapter.total() <= 12 * target_rank);
        }
        assert_eq!(adapter.total(), 12 * target_rank);
        assert_eq!(
            rounds as usize,
            (12 * (target_rank - 1))
                .div_ceil(incre_rank_num)
                .div_ceil(top_h)
        );
        assert!(adapter.modules.iter().flatten().all(|m| !m.reserve));
        let widths: usize = adapter
            .modules
            .iter()
            .flatten()
            .map(|m| m.rank() * (m.d_in + m.d_out + 1))
            .sum();
        assert_eq!(adapter.num_trainable(), widths);
    }
}

#[test]
fn counts_at_uniform_rank_are_those_of_the_paper() {
    // DeBERTaV3-base, 72 maps: 331,776 numbers of directions at rank 2 and 1,327,104 at rank 8.
    let raw = json!({"model_type": "bert", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "vocab_size": 16, "max_position_embeddings": 8, "type_vocab_size": 2});
    let model = TestModel::new(raw);
    let context = model.context();
    for (rank, expected) in [(2, 331_776), (8, 1_327_104)] {
        let settings =
            json!({"init_r": rank, "target_rank": rank, "exclude_modules": ["pooler.dense"]});
        let adapter = Increlora::new(
            IncreloraConfig::parse(settings.as_object().unwrap()).unwrap(),
            &context,
        )
        .unwrap();
        assert_eq!(adapter.num_trainable(), expected + 72 * rank);
    }
}

#[test]
fn gradients_of_a_group_that_is_cut_to_the_budget_are_cut_with_it() {
    // Two layers of one component, 6 wanted: the round gives 3 and the 1 that is left.
    let mut adapter = build(
        json!({"target_rank": 3, "incre_rank_num": 3, "top_h": 2, "target_modules": ["query"]}),
    );
    let mut found = gradients(&adapter);
    adapter.grow(2, 10, &mut found);
    assert_eq!(
        adapter
            .modules
            .iter()
            .flatten()
            .map(Module::rank)
            .collect::<Vec<_>>(),
        [4, 2]
    );
    let parameters = adapter.parameters();
    let mut left = 0;
    for (parameter, gradient) in parameters
        .iter()
        .filter_map(|p| Some((p, found.get(p.name())?)))
    {
        // They were made of the values, and still go with them.
        assert_eq!(gradient, parameter.to_vec(), "{}", parameter.name());
        left += 1;
    }
    // The weights of the new components had none yet.
    assert_eq!(left, 2 * (3 + 2));
}

#[test]
fn tables_are_refused() {
    let message = try_build(json!({"target_modules": ["query", "word_embeddings"]}))
        .err()
        .unwrap()
        .to_string();
    assert!(message.contains("word_embeddings` is a table"), "{message}");
}

#[test]
fn groups_of_damaged_files_are_refused() {
    let path = "bert.encoder.layer.0.attention.self.query";
    let with =
        |sizes: Value| try_build(json!({"target_modules": ["query"], "groups": {path: sizes}}));
    for sizes in [
        json!([]),
        json!([1, 0]),
        json!([1, 64]),
        json!([1, u64::MAX]),
    ] {
        let message = with(sizes).err().unwrap().to_string();
        assert!(
            message.contains("`groups`") && message.contains(path),
            "{message}"
        );
    }
    assert_eq!(
        with(json!([1, 2]))
            .unwrap()
            .modules
            .iter()
            .flatten()
            .next()
            .unwrap()
            .rank(),
        3
    );
}

#[test]
fn orthogonal_directions_have_a_finite_gradient() {
    let rows = Parameter::new("a", &[2, 2], vec![1.0, 0.0, 0.0, 1.0], &Device::default());
    let mut found = orthogonality(rows.get::<2>(Mode::Train { seed: 0 })).backward();
    let gradient = to_vec(rows.take_gradient(&mut found).unwrap());
    assert!(gradient.iter().all(|g| g.is_finite()), "{gradient:?}");
}

#[test]
fn other_maps_are_left_alone() {
    let (adapter, sites) = (build(json!({"target_modules": ["query"]})), model().sites);
    let map = |name: &str| {
        let weight = Weight::Dense(Tensor::<2>::zeros([8, 8], &Device::default()));
        Linear {
            site: sites
                .find(&format!("bert.encoder.layer.0.attention.self.{name}"))
                .unwrap(),
            weight,
            bias: None,
        }
    };
    let mut pass = adapter.pass(Mode::Eval);
    assert!(
        !matches!(pass.linear_change(&map("query")), LinearChange::None)
            && matches!(pass.linear_change(&map("key")), LinearChange::None)
    );
}
