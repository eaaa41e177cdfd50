use super::optimizers::saved;
use super::*;
use crate::optim::{self, OptimizerStep, SavedTensor};

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    settings: Map<String, Value>,
    parameter: String,
    shape: Vec<usize>,
    lr: f64,
    weight_decay: f64,
    start: Vec<f32>,
    gradients: Vec<Vec<f32>>,
    after: Vec<Vec<f32>>,
}

fn cases() -> Vec<Case> {
    let file = read_json(&fixture("training/memory_optimizers.json")).unwrap();
    serde_json::from_value(file["cases"].clone()).unwrap()
}

pub(super) fn made(name: &str, settings: &Map<String, Value>, weight_decay: f64) -> OptimizerStep {
    let settings = settings.clone();
    // One decay for all, as the authors' optimizers have it.
    let group = ParamGroup {
        pattern: ".".into(),
        lr_scale: 1.0,
        weight_decay: Some(weight_decay),
    };
    let config = TrainConfig {
        optim: Named {
            name: name.to_owned(),
            settings,
        },
        max_grad_norm: 0.0,
        param_groups: vec![group],
        ..TrainConfig::default()
    };
    OptimizerStep::new(optim::made(&config).unwrap(), &config).unwrap()
}

pub(super) fn step(
    optimizer: &mut OptimizerStep,
    parameter: &mut Parameter,
    gradient: &[f32],
    lr: f64,
) {
    let mut gradients = GradientSum::default();
    gradients.insert(parameter.name(), gradient.to_vec());
    optimizer
        .step(
            vec![parameter],
            &gradients,
            &crate::optim::squares(&gradients),
            lr,
        )
        .unwrap();
}

#[test]
fn optimizers_of_less_memory_move_as_their_authors_code_does() {
    let cases = cases();
    for name in ["galore", "fira", "apollo", "adafactor", "adam_mini", "muon"] {
        assert!(cases.iter().any(|case| case.name == name), "{name}");
    }
    for case in cases {
        // PyTorch's Muon iterates in bf16, of which five iterations leave two digits.
        let tolerance = if case.name == "muon" { 5e-3 } else { 2e-5 };
        let new = || made(&case.name, &case.settings, case.weight_decay);
        let device = Device::flex();
        let start = case.start.clone();
        let mut p = Parameter::new(case.parameter.as_str(), &case.shape, start, &device);
        let mut optimizer = new();
        for (step_no, (gradient, after)) in case.gradients.iter().zip(&case.after).enumerate() {
            // Between two projections the state goes through a checkpoint.
            if step_no == 2 || step_no == 5 {
                let state = saved(&optimizer);
                optimizer = new();
                optimizer.optimizer_mut().restore(state).unwrap();
            }
            step(&mut optimizer, &mut p, gradient, case.lr);
            for (found, expected) in p.to_vec().iter().zip(after) {
                assert!(
                    (found - expected).abs() < tolerance,
                    "{} {:?} of {} {:?}, step {step_no}: {found} instead of {expected}",
                    case.name,
                    case.settings,
                    case.parameter,
                    case.shape
                );
            }
        }
    }
}

/// A matrix and gradients of it that mean nothing in particular.
pub(super) fn noise(rows: usize, cols: usize, salt: usize) -> Vec<f32> {
    let at = |i: usize| ((i * 7919 + salt * 104_729 + 13) % 1009) as f32 / 504.5 - 1.0;
    (0..rows * cols).map(at).collect()
}

#[test]
fn a_restored_optimizer_goes_on_with_the_same_bits() {
    let settings = |text: &str| serde_json::from_str::<Map<String, Value>>(text).unwrap();
    let low = r#"{"rank": 4, "update_proj_gap": 3}"#;
    let all = [
        ("galore", low),
        (
            "golore",
            r#"{"rank": 4, "update_proj_gap": 3, "svd_steps": 3}"#,
        ),
        ("fira", low),
        ("apollo", low),
        ("muon", "{}"),
        ("adafactor", "{}"),
        ("adam_mini", r#"{"head_dim": 2}"#),
        (
            "spam",
            r#"{"delta_t": 3, "warmup_steps": 2, "threshold": 2, "clip_after": 1}"#,
        ),
        ("stable_spam", r#"{"update_proj_gap": 3, "total_t": 6}"#),
    ];
    for (name, text) in all {
        let new = || made(name, &settings(text), 0.1);
        let run = |stop_at: Option<usize>| {
            let name = "model.layers.0.mlp.down_proj.weight";
            let mut p = Parameter::new(name, &[10, 6], noise(10, 6, 0), &Device::flex());
            let mut optimizer = new();
            for i in 1..8 {
                if stop_at == Some(i) {
                    let state = saved(&optimizer);
                    optimizer = new();
                    optimizer.optimizer_mut().restore(state).unwrap();
                }
                step(&mut optimizer, &mut p, &noise(10, 6, i), 0.01);
            }
            p.to_vec()
        };
        let whole = run(None);
        for stop_at in [2, 4, 6] {
            assert_eq!(
                run(Some(stop_at)),
                whole,
                "{name}, stopped before {stop_at}"
            );
        }
    }
}

#[test]
fn the_state_of_galore_is_as_large_as_the_paper_says() {
    // 512 x 1376 of rank 128: 2 · 128 · 1376 numbers of moments and 128 · 512 of directions.
    let settings = serde_json::from_str(r#"{"rank": 8}"#).unwrap();
    let mut optimizer = made("galore", &settings, 0.0);
    let (m, n, rank) = (32, 86, 8);
    let name = "model.layers.0.mlp.up_proj.weight";
    let mut p = Parameter::new(name, &[m, n], noise(m, n, 0), &Device::flex());
    step(&mut optimizer, &mut p, &noise(m, n, 1), 0.01);
    let numbers: usize = saved(&optimizer)
        .values()
        .map(|tensor| match tensor {
            SavedTensor::Values(values) => values.len(),
            _ => 0,
        })
        .sum();
    // The same formula that gives 417,792 for 512 x 1376 and 128.
    let of = |m: usize, n: usize, r: usize| 2 * r * m.max(n) + r * m.min(n);
    assert_eq!(of(512, 1376, 128), 417_792);
    assert_eq!(numbers, of(m, n, rank));
}

#[test]
fn the_leading_direction_of_a_small_matrix_is_found() {
    // G = [[3, 0], [0, 1], [0, 0]] of rank 1: only the element at (0, 0) moves, by 0.999989 of the
    // rate with epsilon 1e-6 before the correction of bias.
    let settings = serde_json::from_str(r#"{"rank": 1, "scale": 1.0}"#).unwrap();
    for name in ["galore", "fira"] {
        let config = TrainConfig {
            optim: Named {
                name: name.to_owned(),
                settings: Map::clone(&settings),
            },
            adam_epsilon: 1e-6,
            max_grad_norm: 0.0,
            ..TrainConfig::default()
        };
        let mut optimizer = OptimizerStep::new(optim::made(&config).unwrap(), &config).unwrap();
        let mut p = Parameter::new("mlp.w", &[3, 2], vec![0.0; 6], &Device::flex());
        step(&mut optimizer, &mut p, &[3.0, 0.0, 0.0, 1.0, 0.0, 0.0], 1.0);
        for (found, expected) in p.to_vec().iter().zip([-0.999_989, 0.0, 0.0, 0.0, 0.0, 0.0]) {
            assert!((found - expected).abs() < 2e-6, "{name}: {:?}", p.to_vec());
        }
    }
}

#[test]
fn projections_that_cannot_be_are_refused_by_name() {
    let problem = |name: &str, text: &str| {
        let config = TrainConfig {
            optim: Named {
                name: name.to_owned(),
                settings: serde_json::from_str(text).unwrap(),
            },
            ..TrainConfig::default()
        };
        config.validate().unwrap_err()[0].to_string()
    };
    for name in ["galore", "golore", "fira", "apollo"] {
        assert!(
            problem(name, r#"{"rank": 0}"#).contains("`rank` 0"),
            "{name}"
        );
        assert!(problem(name, r#"{"update_proj_gap": 0}"#).contains("`update_proj_gap` 0"));
        assert!(problem(name, r#"{"scale": -1}"#).contains("`scale` -1"));
        assert!(problem(name, r#"{"target_modules": []}"#).contains("`target_modules`"));
        assert!(problem(name, r#"{"gap": 3}"#).contains("gap"));
    }
    assert!(problem("spam", r#"{"threshold": -1}"#).contains("`threshold` -1"));
    assert!(problem("spam", r#"{"density": 0.5}"#).contains("density"));
    assert!(problem("stable_spam", r#"{"gamma1": 1.0}"#).contains("`gamma1` 1"));
    assert!(problem("loro", r#"{"update_k": 0}"#).contains("`update_k` 0"));
    assert!(problem("adam_mini", "{}").contains("`optim.head_dim`"));
    assert!(problem("muon", r#"{"momentum": 1.0}"#).contains("momentum 1"));
    assert!(problem("adafactor", r#"{"beta2_decay": 0.5}"#).contains("`beta2_decay` 0.5"));
}

#[test]
fn an_optimizer_that_would_be_adamw_under_another_name_is_refused() {
    let (backbone, data) = (backbone("llama"), counting(&[5, 4]));
    for name in ["galore", "golore", "fira", "apollo"] {
        let config = TrainConfig {
            optim: name.into(),
            ..TrainConfig::default()
        };
        let mut setup = Setup::new(&*backbone, lora(&*backbone, 0.0), &data, config);
        let error = setup.run().unwrap_err().to_string();
        assert!(
            error.contains("no trained matrix is wider than `rank` 128"),
            "{error}"
        );
    }
}

#[test]
fn names_that_no_trained_matrix_has_are_not_blamed_on_the_rank() {
    let (backbone, data) = (backbone("llama"), counting(&[5, 4]));
    let refused = |name: &str, settings: &str| {
        let config = TrainConfig {
            optim: Named {
                name: name.into(),
                settings: serde_json::from_str(settings).unwrap(),
            },
            ..TrainConfig::default()
        };
        let mut setup = Setup::new(&*backbone, lora(&*backbone, 0.0), &data, config);
        setup.run().unwrap_err().to_string()
    };
    for name in ["galore", "golore", "fira", "apollo"] {
        let error = refused(name, r#"{"rank": 2, "target_modules": ["atention"]}"#);
        assert!(
            error.contains("`optim.target_modules`") && !error.contains("`rank`"),
            "{error}"
        );
    }
    let error = refused("adam_mini", r#"{"head_dim": 1000}"#);
    assert!(error.contains("`optim.head_dim` 1000"), "{error}");
}
