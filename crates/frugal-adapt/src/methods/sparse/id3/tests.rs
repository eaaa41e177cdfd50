use super::*;
use crate::methods::sparse::id3::select::{score, smallest_first};
use crate::support::test_model::{TestModel, close};
use frugal_nn::{Weight, to_vec};

fn model() -> TestModel {
    TestModel::new(
        serde_json::json!({"model_type": "llama", "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 16}),
    )
}

fn build(settings: Value) -> Result<Id3, AdaptError> {
    Id3::new(
        Id3Config::parse(settings.as_object().unwrap())?,
        &model().context(),
    )
}

const QUERY: &str = "model.layers.0.self_attn.q_proj";

#[test]
fn tables_are_refused() {
    let message = build(serde_json::json!({"target_modules": ["q_proj", "embed_tokens"]}))
        .err()
        .unwrap()
        .to_string();
    assert!(
        message.contains("`model.embed_tokens` is a table"),
        "{message}"
    );
}

#[test]
fn counts_and_places_of_damaged_files_do_no_harm() {
    let with =
        |n: usize| build(serde_json::json!({"target_modules": ["q_proj"], "counts": {QUERY: n}}));
    let message = with(17).err().unwrap().to_string();
    assert!(
        message.contains("`counts`") && message.contains("has 16 weights, not 17"),
        "{message}"
    );
    let mut adapter = with(2).unwrap();
    let site = adapter.sites.iter_mut().next().unwrap();
    for (parameter, values) in site
        .parameters_mut()
        .into_iter()
        .zip([vec![-3.0, 1.0, 1e30, 1e30], vec![1.0, 2.0]])
    {
        parameter.set(values);
    }
    let mut expected = [0.0f32; 16];
    (expected[1], expected[15]) = (1.0, 2.0);
    close(&to_vec(site.delta(Mode::Eval)), &expected, 1e-5);
}

#[test]
fn other_maps_are_left_alone() {
    let adapter = build(serde_json::json!({"target_modules": ["q_proj"]})).unwrap();
    let sites = model().sites;
    let map = |path: &str| {
        let weight = Weight::Dense(Tensor::<2>::zeros([4, 4], &Device::default()));
        Linear {
            site: sites.find(path).unwrap(),
            weight,
            bias: None,
        }
    };
    let mut pass = adapter.pass(Mode::Eval);
    assert!(
        !matches!(pass.linear_change(&map(QUERY)), LinearChange::None)
            && matches!(
                pass.linear_change(&map("model.layers.0.self_attn.k_proj")),
                LinearChange::None
            )
    );
}

#[test]
fn released_weights_are_not_released_again() {
    let mut adapter = build(serde_json::json!({"target_modules": ["q_proj"], "exp": 0.0})).unwrap();
    let mut gradients = GradientSum::default();
    gradients.insert(
        &format!("{QUERY}.id3_delta"),
        (0..16).map(|i| i as f32).collect::<Vec<f32>>(),
    );
    let site = adapter.sites.iter_mut().next().unwrap();
    site.base = Some(Tensor::<2>::ones([4, 4], &Device::default()));
    for count in [2, 3] {
        adapter.release(count, &gradients);
    }
    let released = adapter.state().remove(QUERY).unwrap();
    assert_eq!(released, [f32::from(0b1111_1000_0000_0000u16)]);
}

const GRADIENT: [f32; 4] = [0.5, -1.0, 0.2, 0.05];
const WEIGHT: [f32; 4] = [0.9, 3.0, 0.0, 0.01];

fn scores(exp: f64) -> Vec<f32> {
    GRADIENT
        .iter()
        .zip(WEIGHT)
        .map(|(&g, w)| score(g, w, exp, 0.1))
        .collect()
}

#[test]
fn scores_weigh_gradient_against_magnitude() {
    close(&scores(0.0), &[0.5, 1.0, 0.2, 0.05], 1e-5);
    close(&scores(1.0), &[0.5, 0.322_581, 2.0, 0.454_545], 1e-5);
    close(&scores(2.0), &[0.5, 0.104_058, 20.0, 4.132_231], 1e-5);
    // A large exponent with equal gradients prefers the smallest weights.
    let small_first: Vec<f32> = WEIGHT.iter().map(|&w| score(1.0, w, 50.0, 1.0)).collect();
    assert!(
        small_first[2] > small_first[3]
            && small_first[3] > small_first[0]
            && small_first[0] > small_first[1]
    );
}

#[test]
fn the_highest_scores_win_and_ties_go_to_the_earlier() {
    let pick = |scores: &[f32], count: usize| {
        highest(count, |each| {
            scores
                .iter()
                .enumerate()
                .for_each(|(i, &s)| each(i / 2, i % 2, s))
        })
        .into_iter()
        .map(|(t, i)| 2 * t + i)
        .collect::<Vec<_>>()
    };
    for (exp, first, second) in [(0.0, 1, 0), (1.0, 2, 0), (2.0, 2, 3)] {
        assert_eq!(pick(&scores(exp), 1), [first]);
        let mut both = pick(&scores(exp), 2);
        both.sort_unstable();
        let mut expected = [first, second];
        expected.sort_unstable();
        assert_eq!(both, expected);
    }
    assert_eq!(pick(&[1.0, 2.0, 1.0, 1.0], 3), [1, 0, 2]);
    assert_eq!(pick(&[0.0, 0.0], 5), [0, 1]);
    // Scores that share a bin are told apart.
    let close_by = [1.000_01, 1.000_03, 1.000_02];
    assert_eq!(pick(&close_by, 2), [1, 2]);
    // As a sort would choose, over many scores.
    let many: Vec<f32> = (0..5000u64)
        .map(|i| (i.wrapping_mul(2_654_435_761) % 977) as f32 * 1e-3)
        .collect();
    let mut order: Vec<usize> = (0..many.len()).collect();
    order.sort_by(|&a, &b| many[b].total_cmp(&many[a]));
    let (mut found, mut expected) = (pick(&many, 1234), order[..1234].to_vec());
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
}

#[test]
fn the_budget_is_spent_evenly_and_exactly() {
    let per_step = |budget: usize, total: u64| {
        let config = Id3Config {
            budget,
            ..Id3Config::default()
        };
        let sums: Vec<usize> = (0..total)
            .map(|t| config.released(t, total, 1_000_000))
            .collect();
        sums.iter()
            .scan(0, |before, &sum| Some(sum - std::mem::replace(before, sum)))
            .collect::<Vec<_>>()
    };
    assert_eq!(per_step(10, 4), [3, 3, 2, 2]);
    assert_eq!(per_step(3, 5), [1, 1, 1, 0, 0]);
    // Scalar updates: half of training a mask of this size from the start.
    let config = Id3Config {
        budget: 100_000,
        ..Id3Config::default()
    };
    assert_eq!(
        (0..1000)
            .map(|t| config.released(t, 1000, 1_000_000))
            .sum::<usize>(),
        50_050_000
    );
    let fixed = Id3Config {
        schedule: Schedule::Static,
        ..config
    };
    assert_eq!(
        (0..1000)
            .map(|t| fixed.released(t, 1000, 1_000_000))
            .sum::<usize>(),
        100_000_000
    );
}

#[test]
fn every_arm_trains_what_pytorch_chooses() {
    let golden: Value =
        serde_json::from_str(include_str!("../../../../../../fixtures/methods/id3.json")).unwrap();
    let floats = |value: &Value| -> Vec<f32> {
        let numbers = value.as_array().unwrap().iter();
        numbers.map(|n| n.as_f64().unwrap() as f32).collect()
    };
    let steps = golden["steps"].as_u64().unwrap();
    let layers = ["q_proj", "k_proj"];
    for (arm, expected) in golden["arms"].as_object().unwrap() {
        let (criterion, schedule) = arm.split_once(' ').unwrap();
        let mut adapter = build(serde_json::json!({
            "target_modules": layers, "budget": golden["budget"], "exp": golden["exp"], "eps": golden["eps"],
            "criterion": criterion, "schedule": schedule,
        }))
        .unwrap();
        let names: Vec<String> = adapter
            .all_mut()
            .map(|site| {
                let layer = layers
                    .iter()
                    .find(|name| site.path.ends_with(**name))
                    .unwrap();
                let weight = TensorData::new(floats(&golden["weights"][layer]), [4, 4]);
                site.base = Some(Tensor::from_data(weight, &Device::default()));
                format!("{}.id3_delta", site.path)
            })
            .collect();
        assert!(
            names[0].contains("q_proj") && names[1].contains("k_proj"),
            "{names:?}"
        );
        for (step, expected) in expected.as_array().unwrap().iter().enumerate() {
            let mut gradients = GradientSum::default();
            for (name, layer) in names.iter().zip(layers) {
                gradients.insert(name, floats(&golden["gradients"][step][layer]));
            }
            let at = StepContext {
                step: step as u64,
                total_steps: steps,
                seed: 0,
                lr_factor: 1.0,
            };
            adapter.before_step(&at, &mut gradients);
            let trained: Vec<u64> = names
                .iter()
                .flat_map(|name| gradients.get(name).unwrap().to_vec())
                .enumerate()
                .filter(|(_, g)| *g != 0.0)
                .map(|(i, _)| i as u64)
                .collect();
            assert_eq!(serde_json::json!(trained), *expected, "{arm}, step {step}");
        }
        assert!(adapter.is_complete(), "{arm}");
    }
}

#[test]
fn the_smallest_weights_come_first_exactly() {
    let weights = [0.0, 1e-30, 1e-3, 0.001, 0.5, 2.0, f32::MAX];
    let scores = weights.map(smallest_first);
    assert!(
        scores
            .windows(2)
            .all(|w| w[0] > w[1] || w[0] == w[1] && w[0] > 0.0),
        "{scores:?}"
    );
    assert_eq!(smallest_first(-0.5), smallest_first(0.5));
    assert!(scores.iter().all(|s| s.is_finite() && *s >= 0.0));
}

#[test]
fn a_random_choice_is_the_same_in_every_run() {
    let chosen = |criterion: &str| {
        let settings = serde_json::json!({"target_modules": ["q_proj"], "budget": 5, "criterion": criterion, "schedule": "static"});
        let mut adapter = build(settings).unwrap();
        for site in adapter.all_mut() {
            site.base = Some(Tensor::<2>::ones([4, 4], &Device::default()));
        }
        // It needs no gradient.
        adapter.release(5, &GradientSum::default());
        (adapter.released(), adapter.state())
    };
    assert_eq!(chosen("random"), chosen("random"));
    assert_eq!(chosen("random").0, 5);
    assert_eq!(chosen("d3").0, 0);
}
