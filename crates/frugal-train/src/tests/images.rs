//! Models that read images: gradients of every weight against PyTorch (`scripts/golden/vision.py`),
//! statistics of batch norms, learning, files.

use frugal_adapt::methods::full::{Full, FullConfig};
use frugal_models::merge;
use frugal_models::random_weights;
use frugal_nn::{Adapter, ImageInput, Input, NoAdapter, SiteKind, to_vec};
use rand::Rng;
use safetensors::SafeTensors;
use serde_json::json;

use super::*;
use crate::objective::ImageClassification;

fn folder(name: &str) -> PathBuf {
    fixture("vision").join(name)
}

fn read(name: &str) -> Arc<dyn Backbone> {
    let folder = folder(name);
    let raw = read_json(&folder.join("config.json")).unwrap();
    let config = ModelConfig::from_json(raw, name).unwrap();
    build(
        config,
        &SafetensorsSource::open(&folder).unwrap(),
        &Device::flex(),
    )
    .unwrap()
}

struct Golden {
    floats: BTreeMap<String, Vec<f32>>,
    shape: Vec<usize>,
    classes: Vec<i64>,
}

impl Golden {
    fn read(name: &str) -> Self {
        let bytes = std::fs::read(folder(name).join("golden.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mut floats = BTreeMap::new();
        for (name, view) in file.tensors() {
            if view.dtype() == safetensors::Dtype::F32 {
                let data = view.data().chunks_exact(4);
                let values = data.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                floats.insert(name, values.collect());
            }
        }
        let classes = file.tensor("classes").unwrap().data().chunks_exact(8);
        let classes = classes.map(|b| i64::from_le_bytes(b.try_into().unwrap()));
        Self {
            floats,
            shape: file.tensor("pixels").unwrap().shape().to_vec(),
            classes: classes.collect(),
        }
    }
}

fn close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1.0f32, |m, v| m.max(v.abs()));
    for (found, expected) in found.iter().zip(expected) {
        let far = (found - expected).abs() / largest;
        assert!(far < tolerance, "{what}: {found} for {expected}");
    }
}

fn gradients(name: &str) {
    let (backbone, golden) = (read(name), Golden::read(name));
    let info = backbone.info();
    let source = SafetensorsSource::open(&folder(name)).unwrap();
    let mut head = head(backbone.as_ref(), 5);
    for parameter in head.parameters_mut() {
        let values = frugal_models::read_values(&source, parameter.name(), parameter.shape());
        parameter.set(values.unwrap());
    }
    let mut adapter = Full::new(FullConfig {}, &context(backbone.as_ref())).unwrap();
    let [images, height, width, _] = golden.shape[..] else {
        panic!("images have four dimensions")
    };
    assert_eq!(info.image, Some(ImageInput { height, width }));
    let rows = TensorData::new(
        golden.floats["pixels"].clone(),
        [images * height * width, 3],
    );
    let rows = Tensor::<2>::from_data(rows, &Device::flex());
    let input = Input::rows(rows, [height, width], &vec![height * width; images]);
    let classify = |adapter: &Full, mode: Mode| {
        let mut pass = adapter.pass(mode);
        head.classify(&input, backbone.as_ref(), pass.as_mut(), mode)
            .unwrap()
    };
    let logits = to_vec(classify(&adapter, Mode::Eval));
    close("logits", &logits, &golden.floats["logits"], 1e-4);

    let logits = classify(&adapter, Mode::Train { seed: 1 });
    let log_probs = burn::tensor::activation::log_softmax(logits, 1);
    let picked = TensorData::new(golden.classes.clone(), [images, 1]);
    let picked = Tensor::<2, Int>::from_data(picked, &Device::flex());
    let loss = log_probs.gather(1, picked).mean().neg();
    close(
        "loss",
        &to_vec(loss.clone()),
        &golden.floats["train.loss"],
        1e-4,
    );
    let mut found = loss.backward();
    let mut seen = 0;
    for parameter in adapter.parameters().into_iter().chain(head.parameters()) {
        let name = parameter.name();
        let Some(expected) = golden.floats.get(&format!("grad.{name}")) else {
            assert!(name.contains("running_"), "{name} has no gradient");
            assert!(!parameter.is_trainable());
            continue;
        };
        let gradient = parameter.take_gradient(&mut found);
        let gradient = gradient.unwrap_or_else(|| panic!("{name} got no gradient"));
        close(name, &to_vec(gradient), expected, 2e-3);
        seen += 1;
    }
    let all = golden
        .floats
        .keys()
        .filter(|name| name.starts_with("grad."));
    assert_eq!(all.count(), seen);

    // What the batch moved.
    adapter.after_step(&StepContext {
        step: 1,
        total_steps: 1,
        seed: 0,
        lr_factor: 1.0,
    });
    let mut moved = 0;
    for parameter in adapter.parameters() {
        if let Some(expected) = golden
            .floats
            .get(&format!("statistic.{}", parameter.name()))
        {
            close(parameter.name(), &parameter.to_vec(), expected, 1e-5);
            moved += 1;
        }
    }
    let statistics = golden
        .floats
        .keys()
        .filter(|name| name.starts_with("statistic."));
    assert_eq!(statistics.count(), moved);

    // What is written has the names and shapes that were read.
    let weights = merge::weights(backbone.as_ref(), None).unwrap();
    let written: BTreeMap<String, Vec<usize>> = weights
        .tensors
        .iter()
        .map(|(name, shape, _)| (name, shape))
        .collect();
    let stored = std::fs::read(folder(name).join("model.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&stored).unwrap();
    let own = stored.tensors().into_iter();
    let own = own.filter(|(name, _)| !name.starts_with("classifier."));
    let own: BTreeMap<String, Vec<usize>> = own
        .map(|(name, view)| (name, view.shape().to_vec()))
        .collect();
    assert_eq!(written, own);
}

#[test]
fn gradients_of_vit_are_those_of_transformers() {
    gradients("vit");
}

#[test]
fn gradients_and_statistics_of_efficientvmamba_are_those_of_the_formulas() {
    gradients("efficientvmamba");
}

#[test]
fn gradients_of_the_variants_are_those_of_the_formulas() {
    for name in [
        "efficientvmamba-separate",
        "efficientvmamba-conv",
        "efficientvmamba-scan",
    ] {
        gradients(name);
    }
}

#[test]
fn gradients_of_vmamba_are_those_of_the_formulas() {
    gradients("vmamba");
}

/// A new model of 8 x 8 pixels.
fn fresh(raw: Value, seed: u64) -> Arc<dyn Backbone> {
    let config = ModelConfig::from_json(raw, "new").unwrap();
    let weights = random_weights(&config, seed, &Device::flex());
    build(config, &weights, &Device::flex()).unwrap()
}

fn small() -> [Value; 3] {
    [
        json!({"model_type": "vit", "image_size": 8, "patch_size": 2, "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 32}),
        json!({"model_type": "efficientvmamba", "image_size": 8, "patch_size": 1, "embed_dim": 16, "depths": [1, 1],
            "block_types": ["evss", "inverted_residual"], "ssm_state_size": 4, "drop_path_rate": 0.1}),
        json!({"model_type": "vmamba", "image_size": 8, "patch_size": 2, "embed_dim": 16, "depths": [1], "ssm_state_size": 4}),
    ]
}

/// Red or blue, of any brightness, with noise.
fn tinted(count: usize, seed: u64) -> Vec<Tokenized> {
    let mut rng = frugal_nn::named_rng(seed, "images");
    let mut example = |i: usize| {
        let class = i % 2;
        let bright: u32 = rng.random_range(150..250);
        let mut pixel = |_| {
            let (tint, other) = (bright - rng.random_range(0..50), rng.random_range(0..60));
            let green = rng.random_range(0..255u32);
            match class {
                0 => tint << 16 | green << 8 | other,
                _ => other << 16 | green << 8 | tint,
            }
        };
        Tokenized {
            input_ids: (0..64).map(&mut pixel).collect(),
            token_type_ids: vec![],
            labels: Target::Class(class),
        }
    };
    (0..count).map(&mut example).collect()
}

fn steps(
    backbone: &dyn Backbone,
    adapter: &mut dyn Adapter,
    head: &mut Head,
    lr: f64,
    max_steps: u64,
) {
    let train_data = tinted(64, 1);
    let config = TrainConfig {
        lr,
        max_steps,
        batch_size: 16,
        max_tokens: 16 * 64,
        ..TrainConfig::default()
    };
    let run = TrainRun {
        backbone,
        adapter,
        head: Some(head),
        train: &train_data,
        validation: None,
        config: &config,
        folder: None,
        resume: false,
        stop: &AtomicBool::new(false),
        observer: &mut |_: &Event| {},
    };
    train(run).unwrap();
}

fn learn(backbone: &dyn Backbone, adapter: &mut dyn Adapter, head: &mut Head, lr: f64) -> f64 {
    steps(backbone, adapter, head, lr, 40);
    let held_out = tinted(32, 2);
    let model = ModelParts::new(backbone, Some(head));
    let stop = AtomicBool::new(false);
    let objective = ImageClassification::default();
    let found = evaluate_observed(
        model,
        Some(&*adapter),
        &objective,
        &held_out,
        2048,
        &stop,
        &mut |_, _| {},
    );
    found.unwrap().unwrap().metrics["accuracy"]
}

#[test]
fn every_architecture_of_images_learns_with_all_its_weights_and_with_lora() {
    for raw in small() {
        let name = raw["model_type"].as_str().unwrap().to_owned();
        let backbone = fresh(raw, 3);
        let mut all = full(backbone.as_ref());
        let mut head_of_all = head(backbone.as_ref(), 2);
        let accuracy = learn(backbone.as_ref(), all.as_mut(), &mut head_of_all, 3e-3);
        assert!(accuracy > 0.9, "{name}: {accuracy}");
        let targets = backbone.sites().iter();
        let targets: Vec<String> = targets
            .filter(|(_, site)| site.kind == SiteKind::Linear)
            .map(|(_, site)| site.path.clone())
            .collect();
        assert!(!targets.is_empty());
        let config: LoraConfig =
            serde_json::from_value(json!({"target_modules": "all-linear", "lora_dropout": 0.0}))
                .unwrap();
        let mut lora: Box<dyn Adapter> =
            Box::new(Lora::new(config, &context(backbone.as_ref())).unwrap());
        assert_eq!(lora.parameters().len(), 2 * targets.len(), "{name}");
        let mut head_of_lora = head(backbone.as_ref(), 2);
        let accuracy = learn(backbone.as_ref(), lora.as_mut(), &mut head_of_lora, 1e-2);
        assert!(accuracy > 0.9, "{name} with LoRA: {accuracy}");
        merged_is_adapted(&name, backbone.as_ref(), lora.as_ref());
        merged_is_adapted(&name, backbone.as_ref(), all.as_ref());
    }
}

fn merged_is_adapted(name: &str, backbone: &dyn Backbone, adapter: &dyn Adapter) {
    let merged = merge::weights(backbone, Some(adapter)).unwrap();
    let merged = merged.build(&Device::flex()).unwrap();
    let data = tinted(3, 9);
    let ids: Vec<u32> = data.iter().flat_map(|e| e.input_ids.clone()).collect();
    let input = Input::new(&ids, &[64; 3]);
    let mut pass = adapter.pass(Mode::Eval);
    let adapted = to_vec(backbone.forward(&input, pass.as_mut(), None).unwrap());
    let plain = merged.forward(&input, &mut NoAdapter, None).unwrap();
    close(name, &to_vec(plain), &adapted, 1e-4);
}

/// Methods that say so act on every architecture of images: nothing changes before training where that
/// is promised, they learn, and merged weights compute the same.
#[test]
fn methods_on_images_learn_and_merge() {
    for raw in small() {
        let model = raw["model_type"].as_str().unwrap().to_owned();
        let backbone = fresh(raw, 5);
        let targets = match model.as_str() {
            "vit" => json!(["query", "value", "output.dense"]),
            "vmamba" => json!(["in_proj", "out_proj"]),
            _ => json!(["in_proj", "out_proj", "pointwise", "expand"]),
        };
        let ids: Vec<u32> = tinted(2, 4)
            .iter()
            .flat_map(|e| e.input_ids.clone())
            .collect();
        let input = Input::new(&ids, &[64; 2]);
        let hidden = |pass: &mut dyn Pass| to_vec(backbone.forward(&input, pass, None).unwrap());
        let base = hidden(&mut NoAdapter);
        for name in frugal_adapt::ON_IMAGES {
            let method = frugal_adapt::registry::find(name).unwrap();
            let mut settings = (method.defaults)();
            for (key, value) in [
                ("target_modules", targets.clone()),
                ("r", json!(2)),
                ("group_size", json!(8)),
            ] {
                // Norms are other layers than these.
                if settings.contains_key(key) && (*name, key) != ("ln-tuning", "target_modules") {
                    settings.insert(key.into(), value);
                }
            }
            let built = (method.build)(&settings, &context(backbone.as_ref()));
            let mut adapter = built.unwrap_or_else(|error| panic!("{name} on {model}: {error}"));
            let what = format!("{name} on {model}");
            if method.capabilities.identity_at_init {
                let mut pass = adapter.pass(Mode::Eval);
                close(&what, &hidden(pass.as_mut()), &base, 1e-4);
            }
            let mut head = head(backbone.as_ref(), 2);
            steps(backbone.as_ref(), adapter.as_mut(), &mut head, 1e-2, 3);
            let adapted = {
                let mut pass = adapter.pass(Mode::Eval);
                hidden(pass.as_mut())
            };
            let moved = adapted.iter().zip(&base).any(|(a, b)| (a - b).abs() > 1e-5);
            assert!(moved, "{what} learnt nothing");
            merged_is_adapted(&what, backbone.as_ref(), adapter.as_ref());
        }
        for name in ["prompt-tuning", "houlsby"] {
            let method = frugal_adapt::registry::find(name).unwrap();
            let built = (method.build)(&(method.defaults)(), &context(backbone.as_ref()));
            let error = built.err().unwrap().to_string();
            assert!(error.contains(name) && error.contains("images"), "{error}");
        }
    }
}
