use super::memory_optimizers::{made, noise, step};
use super::optimizers::saved;
use super::*;
use crate::optim::{OPTIMIZERS, OptimizerStep, SavedTensor};

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

#[derive(serde::Deserialize)]
struct Pair {
    shape: [usize; 3],
    lr: f64,
    a: Vec<f32>,
    b: Vec<f32>,
    gradients: Vec<[Vec<f32>; 2]>,
    near: Vec<[Vec<f32>; 2]>,
    product: Vec<f32>,
    singular_values: Vec<f32>,
}

fn part<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let file = read_json(&fixture("training/pretraining_memory.json")).unwrap();
    serde_json::from_value(file[name].clone()).unwrap()
}

fn close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (x, y) in found.iter().zip(expected) {
        assert!((x - y).abs() < tolerance, "{what}: {x} instead of {y}");
    }
}

#[test]
fn spam_and_stable_spam_move_as_their_authors_code_does() {
    let cases: Vec<Case> = part("cases");
    for name in ["spam", "stable_spam"] {
        assert!(cases.iter().any(|case| case.name == name), "{name}");
    }
    for case in cases {
        let new = || made(&case.name, &case.settings, case.weight_decay);
        let start = case.start.clone();
        let mut p = Parameter::new(case.parameter.as_str(), &case.shape, start, &Device::flex());
        let mut optimizer = new();
        for (i, (gradient, after)) in case.gradients.iter().zip(&case.after).enumerate() {
            // At a reset of some cases and between those of others.
            if i == 4 || i == 7 {
                let state = saved(&optimizer);
                optimizer = new();
                optimizer.optimizer_mut().restore(state).unwrap();
            }
            step(&mut optimizer, &mut p, gradient, case.lr);
            let what = format!(
                "{} {:?} of {:?}, step {i}",
                case.name, case.settings, case.shape
            );
            close(&p.to_vec(), after, 3e-5, &what);
        }
    }
}

/// `b [m, r] a [r, n]`.
fn product(a: &[f32], b: &[f32], [m, n, r]: [usize; 3]) -> Vec<f32> {
    let at = |i: usize, j: usize| (0..r).map(|k| b[i * r + k] * a[k * n + j]).sum();
    (0..m * n).map(|i| at(i / n, i % n)).collect()
}

const A: &str = "layers.0.mlp.up_proj.lora_A.weight";
const B: &str = "layers.0.mlp.up_proj.lora_B.weight";

fn factors(pair: &Pair) -> [Parameter; 2] {
    let [m, n, r] = pair.shape;
    [
        Parameter::new(A, &[r, n], pair.a.clone(), &Device::flex()),
        Parameter::new(B, &[m, r], pair.b.clone(), &Device::flex()),
    ]
}

fn step_pair(optimizer: &mut OptimizerStep, factors: &mut [Parameter; 2], g: &[Vec<f32>], lr: f64) {
    let mut gradients = GradientSum::default();
    for (name, g) in [A, B].into_iter().zip(g) {
        gradients.insert(name, g.clone());
    }
    let parameters = factors.iter_mut().collect();
    optimizer
        .step(
            parameters,
            &gradients,
            &crate::optim::squares(&gradients),
            lr,
        )
        .unwrap();
}

#[test]
fn loro_steps_beside_the_manifold_and_on_it_as_a_dense_computation_does() {
    let pair: Pair = part("loro");
    let settings = serde_json::from_str(r#"{"update_k": 3}"#).unwrap();
    let mut optimizer = made("loro", &settings, 0.0);
    let mut factors = factors(&pair);
    for (g, near) in pair.gradients.iter().zip(&pair.near) {
        step_pair(&mut optimizer, &mut factors, g, pair.lr);
        for (factor, expected) in factors.iter().zip(near) {
            close(&factor.to_vec(), expected, 1e-5, factor.name());
        }
    }
    step_pair(&mut optimizer, &mut factors, &pair.gradients[2], pair.lr);
    let [a, b] = [factors[0].to_vec(), factors[1].to_vec()];
    close(
        &product(&a, &b, pair.shape),
        &pair.product,
        2e-4,
        "the product",
    );
    // Both factors have the singular values, by half each.
    let [_, n, r] = pair.shape;
    for (k, s) in pair.singular_values.iter().enumerate() {
        let of_a: f32 = a[k * n..(k + 1) * n].iter().map(|v| v * v).sum();
        let of_b: f32 = b.chunks_exact(r).map(|row| row[k] * row[k]).sum();
        close(&[of_a, of_b], &[*s, *s], 1e-3, "balance");
    }
    // What was remembered was of the factors before.
    for (name, tensor) in saved(&optimizer) {
        match tensor {
            SavedTensor::Values(values) => assert!(values.iter().all(|&v| v == 0.0), "{name}"),
            SavedTensor::Count(count) => assert_eq!(count, 0, "{name}"),
            SavedTensor::Codes(_) => panic!("{name}"),
        }
    }
}

#[test]
fn loro_goes_on_with_the_same_bits_and_is_refused_without_pairs() {
    let pair: Pair = part("loro");
    let settings = serde_json::from_str(r#"{"update_k": 3}"#).unwrap();
    let run = |stop_at: Option<usize>| {
        let mut optimizer = made("loro", &settings, 0.1);
        let mut factors = factors(&pair);
        for i in 0..7 {
            if stop_at == Some(i) {
                let state = saved(&optimizer);
                optimizer = made("loro", &settings, 0.1);
                optimizer.optimizer_mut().restore(state).unwrap();
            }
            step_pair(
                &mut optimizer,
                &mut factors,
                &pair.gradients[i % 3],
                pair.lr,
            );
        }
        factors.map(|p| p.to_vec())
    };
    let whole = run(None);
    assert!(whole.iter().flatten().all(|v| v.is_finite()));
    for stop_at in [2, 3, 5] {
        assert_eq!(run(Some(stop_at)), whole, "stopped before {stop_at}");
    }
    let optimizer = made("loro", &settings, 0.0);
    let alone = Parameter::new(A, &[2, 2], vec![0.0; 4], &Device::flex());
    let refused = optimizer.optimizer().check(&[&alone]).unwrap_err();
    assert!(refused.contains("`lora_A` and `lora_B`"), "{refused}");
}

/// Bytes of the tensors of a state.
fn bytes(optimizer: &OptimizerStep) -> u64 {
    let of = |tensor: SavedTensor| match tensor {
        SavedTensor::Values(values) => 4 * values.len() as u64,
        SavedTensor::Codes(codes) => codes.len() as u64,
        SavedTensor::Count(_) => 0,
    };
    saved(optimizer).into_values().map(of).sum()
}

/// Names and shapes of all kinds: projected on either side, too narrow for it, of heads, an
/// embedding, vectors, a bias, a convolution, some larger than blocks of eight bits.
fn parameters() -> Vec<Parameter> {
    let shapes: [(&str, &[usize]); 9] = [
        ("model.embed_tokens.weight", &[70, 12]),
        ("model.layers.0.self_attn.q_proj.weight", &[12, 12]),
        ("model.layers.0.mlp.up_proj.weight", &[90, 50]),
        ("model.layers.0.mlp.down_proj.weight", &[12, 30]),
        ("model.layers.0.mlp.gate.weight", &[3, 12]),
        ("model.layers.0.mlp.up_proj.bias", &[30]),
        ("model.norm.weight", &[12]),
        ("model.layers.0.mixer.conv1d.weight", &[12, 1, 4]),
        ("model.layers.0.mlp.lora_A.weight", &[4, 12]),
    ];
    let made = |(name, shape): (&str, &[usize])| {
        let len: usize = shape.iter().product();
        Parameter::new(name, shape, noise(1, len, len), &Device::flex())
    };
    let mut made: Vec<Parameter> = shapes.into_iter().map(made).collect();
    made.push(Parameter::new(
        "model.layers.0.mlp.lora_B.weight",
        &[12, 4],
        noise(12, 4, 1),
        &Device::flex(),
    ));
    made
}

#[test]
fn every_optimizer_keeps_as_many_bytes_as_it_says() {
    for entry in OPTIMIZERS {
        let text = match entry.name {
            "galore" | "golore" | "fira" | "apollo" => r#"{"rank": 4, "update_proj_gap": 2}"#,
            "adam_mini" => r#"{"head_dim": 3}"#,
            "spam" => r#"{"delta_t": 2}"#,
            "loro" => r#"{"update_k": 2}"#,
            "stable_spam" => r#"{"update_proj_gap": 2}"#,
            _ => "{}",
        };
        let mut optimizer = made(entry.name, &serde_json::from_str(text).unwrap(), 0.0);
        let mut all = parameters();
        assert_eq!(bytes(&optimizer), 0, "{}", entry.name);
        let says: u64 = all
            .iter()
            .map(|p| optimizer.optimizer().state_bytes(p.name(), p.shape()))
            .sum();
        for i in 0..3 {
            let mut gradients = GradientSum::default();
            for p in &all {
                gradients.insert(p.name(), noise(1, p.len(), p.len() + i));
            }
            optimizer
                .step(
                    all.iter_mut().collect(),
                    &gradients,
                    &crate::optim::squares(&gradients),
                    1e-3,
                )
                .unwrap();
            assert_eq!(bytes(&optimizer), says, "{}, step {i}", entry.name);
        }
        // An empty state is one that remembers nothing.
        let empty = optim::SavedState::new();
        optimizer.optimizer_mut().restore(empty).unwrap();
        assert_eq!(bytes(&optimizer), 0, "{}", entry.name);
    }
    let plain = made(
        "sgd",
        &serde_json::from_str(r#"{"momentum": 0}"#).unwrap(),
        0.0,
    );
    assert_eq!(plain.optimizer().state_bytes("w", &[3, 4]), 0);
}

#[test]
fn states_are_as_large_as_the_published_counts() {
    // LLaMA of 60 million: 8 blocks of width 512 and 1376; of 1 billion: 24 of 2048 and 5461.
    let numbers = |optimizer: &OptimizerStep, layers: u64, h: usize, f: usize| {
        let of =
            |name: &str, shape: [usize; 2]| optimizer.optimizer().state_bytes(name, &shape) / 4;
        layers * (4 * of("self_attn.q_proj", [h, h]) + 3 * of("mlp.up_proj", [f, h]))
    };
    let galore = |rank: usize| {
        let text = format!(r#"{{"rank": {rank}}}"#);
        made("galore", &serde_json::from_str(&text).unwrap(), 0.0)
    };
    let adam = made("adamw", &Map::new(), 0.0);
    assert_eq!(numbers(&adam, 8, 512, 1376), 50_593_792);
    assert_eq!(numbers(&galore(128), 8, 512, 1376), 16_318_464);
    assert_eq!(numbers(&adam, 24, 2048, 5461), 2_415_820_800);
    assert_eq!(numbers(&galore(512), 24, 2048, 5461), 780_115_968);
}

#[test]
fn names_of_optimizers_are_read_as_the_field_spells_them() {
    for (given, name) in [
        ("adam-mini", "adam_mini"),
        ("adamw-8bit", "adamw_8bit"),
        ("adamw_bnb_8bit", "adamw_8bit"),
        ("GaLore", "galore"),
        ("galore_adamw", "galore"),
        ("stable-spam", "stable_spam"),
        ("StableSPAM", "stable_spam"),
        ("SPAM", "spam"),
    ] {
        assert_eq!(optim::find(given).map(|e| e.name), Ok(name), "{given}");
    }
    assert!(optim::find("ga lore").is_err() && optim::find("").is_err());
}

#[test]
fn a_run_whose_moments_begin_anew_resumes_to_the_same_bits() {
    let (backbone, data) = (backbone("llama"), counting(&[5, 9, 3, 7, 4, 6]));
    let run = |reset: u64, folder: Option<(&Path, Option<u64>, bool)>| {
        let config = TrainConfig {
            lr: 1e-3,
            epochs: 3.0,
            batch_size: 2,
            logging_steps: 1,
            save_total_limit: 0,
            load_best_model_at_end: false,
            moment_reset_steps: reset,
            reset_recovery_steps: 2,
            ..TrainConfig::default()
        };
        let mut setup = Setup::new(&*backbone, lora(&*backbone, 0.0), &data, config);
        if let Some((path, stop_at, resume)) = folder {
            (setup.folder, setup.stop_at, setup.resume) = (Some(path), stop_at, resume);
        }
        setup.run().unwrap();
        setup.bits()
    };
    let whole = run(4, None);
    assert!(whole != run(0, None));
    for stop_at in [3, 4, 5] {
        let folder = tempfile::tempdir().unwrap();
        run(4, Some((folder.path(), Some(stop_at), false)));
        let resumed = run(4, Some((folder.path(), None, true)));
        assert_eq!(resumed, whole, "stopped at {stop_at}");
    }
}
