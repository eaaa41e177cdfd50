use std::sync::atomic::Ordering;

use super::*;
use crate::run::Shape;
use frugal_train::{Event, TrainConfig};

/// A tiny model, evaluated after every step.
pub(in crate::run) fn config(folder: &Path) -> PretrainConfig {
    let data = folder.join("text.txt");
    let words = ["house", "boat", "tree", "road", "bird", "coat", "lamp"];
    let line = |i: usize| {
        format!(
            "the {} by the {} has a {}\n",
            words[i % 7],
            words[i * i % 5],
            words[(i + i / 7) % 6]
        )
    };
    std::fs::write(&data, (0..120).map(line).collect::<String>()).unwrap();
    let shape = Shape {
        vocab_size: 300,
        hidden_size: 16,
        intermediate_size: 32,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        max_position_embeddings: 32,
        ..Shape::default()
    };
    let mut config = PretrainConfig {
        data: data.display().to_string(),
        validation_share: 0.1,
        max_length: 16,
        out: folder.join("run"),
        shape,
        ..PretrainConfig::default()
    };
    config.train = TrainConfig {
        max_steps: 4,
        max_tokens: 128,
        eval_steps: 1,
        ..config.train
    };
    config.resolve();
    config
}

pub(in crate::run) fn go(config: &PretrainConfig, resume: bool) -> Result<Pretrained, RunError> {
    pretrain(config, &[], resume, &AtomicBool::new(false), &mut |_| {})
}

#[test]
fn the_record_is_of_the_weights_that_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.train.load_best_model_at_end = true;
    // It rises until the model is much worse than after the first step.
    (
        config.train.lr,
        config.train.warmup_ratio,
        config.train.max_steps,
    ) = (3.0, 1.0, 6);
    let mut evaluated = Vec::new();
    let mut observe = |progress: &Progress| {
        if let Progress::Train(Event::Evaluated { metrics, .. }) = progress {
            evaluated.push(metrics["loss"]);
        }
    };
    let made = pretrain(&config, &[], false, &AtomicBool::new(false), &mut observe).unwrap();
    let best = evaluated.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(
        evaluated.last().is_some_and(|last| *last > best),
        "{evaluated:?}"
    );
    assert!(
        (made.metrics["loss"] - best).abs() < 1e-9,
        "{} of {evaluated:?}",
        made.metrics["loss"]
    );
    // Nothing is left to train, but the weights are the same.
    assert_eq!(go(&config, true).unwrap().metrics, made.metrics);
}

#[test]
fn a_state_space_model_has_the_parameters_that_are_counted_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.shape = Shape {
        arch: "mamba".into(),
        own: toml::toml! { state_size = 4 },
        ..config.shape
    };
    config.train.max_steps = 40;
    assert!(config.problems().is_empty(), "{:?}", config.problems());
    let made = go(&config, false).unwrap();
    // Norm, way in, convolution of 4 taps, projections of a rank of 1 and 4 states, steps,
    // decays, what goes past, way out; table and last norm.
    let block = 16 + 16 * 64 + 32 * 5 + 32 * 9 + 32 * 2 + 32 * 4 + 32 + 32 * 16;
    assert_eq!(made.parameters, 300 * 16 + block + 16);
    let written = std::fs::read_to_string(config.out.join("config.json")).unwrap();
    assert!(written.contains("\"model_type\": \"mamba\""), "{written}");
    assert!(made.metrics["loss"] < (300f64).ln(), "{:?}", made.metrics);
    config
        .shape
        .own
        .insert("num_local_experts".into(), 2.into());
    let problems = config.problems();
    assert!(
        problems
            .iter()
            .any(|(key, _)| key == "shape.num_local_experts"),
        "{problems:?}"
    );
}

#[test]
fn every_architecture_of_the_list_makes_a_model_that_trains() {
    for (arch, _) in crate::run::architectures() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        config.shape.arch = arch.into();
        config.shape.num_hidden_layers = 4;
        config.train.max_steps = 12;
        assert!(config.problems().is_empty(), "{:?}", config.problems());
        let made = go(&config, false).unwrap();
        assert!(
            made.metrics["loss"] < (300f64).ln(),
            "{arch}: {:?}",
            made.metrics
        );
        let written = std::fs::read_to_string(config.out.join("config.json")).unwrap();
        let told = format!("\"model_type\": \"{arch}\"");
        assert!(written.contains(&told), "{written}");
    }
}

#[test]
fn keys_of_the_architecture_are_read_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    let own = |config: &mut PretrainConfig, arch: &str, own: toml::Table| {
        config.shape.arch = arch.into();
        config.shape.own = own;
        config.problems()
    };
    let theta = toml::toml! { rope_theta = 500.0 };
    assert_eq!(own(&mut config, "llama", theta), []);
    for (arch, given, key, says) in [
        ("llama", "state_size = 8", "shape.state_size", "no such key"),
        (
            "mamba",
            "state_sizes = 8",
            "shape.state_sizes",
            "`state_size`",
        ),
        ("mamba", "expand = 0", "shape.expand", "1 to"),
        ("mamba2", "head_dim = 3", "shape.num_heads", "heads of 3"),
        (
            "mixtral",
            "num_experts_per_tok = 9",
            "shape.num_experts_per_tok",
            "9",
        ),
        ("deepseek_v3", "qk_rope_head_dim = 3", "shape.", "even"),
        ("bert", "", "shape.arch", "no new `bert` models"),
        ("lama", "", "shape.arch", "did you mean `llama`"),
    ] {
        let found = own(&mut config, arch, given.parse().unwrap());
        let told = |(at, why): &(String, String)| at.starts_with(key) && why.contains(says);
        assert!(found.iter().any(told), "{arch}, {given}: {found:?}");
    }
}

/// What folders of earlier versions say of every model is no key of another architecture.
#[test]
fn configurations_of_earlier_versions_are_read() {
    let said = "attention = \"grouped\"\nnum_local_experts = 0\nnum_experts_per_tok = 2\n\
                router_aux_loss_coef = 0.01\nstate_size = 16\nexpand = 2\nconv_kernel = 4\n";
    let read = |text: String| {
        let shape = toml::from_str(&text).unwrap();
        let mut config = PretrainConfig {
            shape,
            ..PretrainConfig::default()
        };
        config.resolve();
        config.shape
    };
    assert_eq!(read(said.into()), Shape::default());
    let shape = read(format!("arch = \"mamba\"\n{said}"));
    assert!(shape.own.is_empty(), "{shape:?}");
    // Elsewhere the same value may be another than that without it.
    let shape = read("arch = \"rmoe\"\nrouter_aux_loss_coef = 0.01\n".into());
    assert_eq!(shape.own.len(), 1, "{shape:?}");
}

#[test]
fn another_shape_is_not_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    let stop = AtomicBool::new(false);
    let mut observe = |progress: &Progress| {
        if matches!(progress, Progress::Train(Event::Step { step: 2, .. })) {
            stop.store(true, Ordering::Relaxed);
        }
    };
    config.train.logging_steps = 1;
    assert!(
        pretrain(&config, &[], false, &stop, &mut observe)
            .unwrap()
            .interrupted
    );
    let stored = std::fs::read(config.out.join(CONFIG_FILE)).unwrap();
    config.shape.num_key_value_heads = 2;
    let error = go(&config, true).unwrap_err().to_string();
    assert!(
        error.contains("`shape.num_key_value_heads` was 1") && error.contains("is 2"),
        "{error}"
    );
    config.shape.num_key_value_heads = 1;
    // Only the trainer knows that this is refused.
    let lr = std::mem::replace(&mut config.train.lr, 0.5);
    assert!(matches!(go(&config, true), Err(RunError::Train(_))));
    assert_eq!(std::fs::read(config.out.join(CONFIG_FILE)).unwrap(), stored);
    config.train.lr = lr;
    assert!(!go(&config, true).unwrap().interrupted);
}
