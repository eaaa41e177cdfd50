//! LoRA on the real models against `peft`: one step's loss and gradients, and twenty steps of
//! `torch.optim.AdamW`.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use burn::prelude::*;
use burn::tensor::activation::log_softmax;
use frugal::adapt::{Adapter, Head, HeadConfig, Mode, Parameter, Pooling, registry, to_vec};
use frugal::model::{Backbone, Input};
use frugal::train::{Event, Scheduler, Target, Tokenized, TrainConfig, TrainRun, train};
use frugal_kernels::{CrossEntropyOptions, IGNORE_INDEX, linear_cross_entropy};
use serde_json::{Map, Value, json};

use crate::real::{files, smollm2};
use crate::support::{Golden, context, device, fixture, max_difference};

/// A golden step with the model, adapter and head that it is about, at the values of the golden
/// file's formula.
struct Setup {
    golden: Golden,
    /// Keys of the matrices in the order of the golden file.
    matrices: Vec<String>,
    backbone: Arc<dyn Backbone>,
    adapter: Box<dyn Adapter>,
    head: Option<Head>,
    examples: Vec<Tokenized>,
}

impl Setup {
    fn new(name: &str, backbone: Arc<dyn Backbone>, head: Option<HeadConfig>) -> Self {
        let folder = fixture("real").join(name);
        let description: Value =
            serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
        let matrices = description["matrices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m["key"].as_str().unwrap().to_owned())
            .collect();
        let golden = Golden::read(&folder.join("golden.safetensors"));
        let settings = Map::from_iter([
            ("r".to_owned(), json!(8)),
            ("lora_alpha".to_owned(), json!(16)),
        ]);
        let adapter =
            (registry::find("lora").unwrap().build)(&settings, &context(backbone.as_ref(), 0))
                .unwrap();
        let head = head.map(|h| Head::new(h, backbone.info(), &device(), 0));
        let examples = golden
            .sequences()
            .into_iter()
            .map(|s| example(&golden, s))
            .collect();
        let mut setup = Self {
            golden,
            matrices,
            adapter,
            head,
            examples,
            backbone: backbone.clone(),
        };
        let order = setup.matrices.clone();
        for parameter in setup
            .adapter
            .parameters_mut()
            .into_iter()
            .chain(setup.head.iter_mut().flat_map(Head::parameters_mut))
        {
            initialise(parameter, index(&order, parameter.name()));
        }
        assert_eq!(setup.parameters().len(), order.len());
        setup
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.adapter
            .parameters()
            .into_iter()
            .chain(self.head.iter().flat_map(|h| h.parameters()))
            .collect()
    }

    fn losses(&self) -> &[f32] {
        self.golden.float("losses").unwrap()
    }

    fn loss(&self) -> Tensor<1> {
        let ids: Vec<u32> = self
            .examples
            .iter()
            .flat_map(|e| e.input_ids.clone())
            .collect();
        let lengths: Vec<usize> = self.examples.iter().map(Tokenized::len).collect();
        let input = Input::new(&ids, &lengths);
        let mode = Mode::Train { seed: 0 };
        let mut pass = self.adapter.pass(mode);
        let hidden = self.backbone.forward(&input, pass.as_mut(), None).unwrap();
        let Some(head) = &self.head else {
            let targets: Vec<i32> = self
                .examples
                .iter()
                .flat_map(|e| tokens(&e.labels))
                .collect();
            let count = targets.iter().filter(|t| **t != IGNORE_INDEX).count();
            let weight = self.backbone.lm_head().unwrap().weight.dense();
            return linear_cross_entropy(
                hidden,
                weight,
                None,
                &targets,
                &CrossEntropyOptions::default(),
            ) / count as f32;
        };
        let logits = head.forward(
            hidden,
            &input.layout,
            self.backbone.as_ref(),
            pass.as_mut(),
            mode,
        );
        let worst = max_difference(
            &to_vec(logits.clone().inner()),
            self.golden.float("logits").unwrap(),
        );
        assert!(worst < 1e-5, "logits differ by {worst:e}");
        let classes: Vec<i32> = self
            .examples
            .iter()
            .map(|e| {
                if let Target::Class(c) = e.labels {
                    c as i32
                } else {
                    -1
                }
            })
            .collect();
        let index =
            Tensor::<2, Int>::from_data(TensorData::new(classes, [lengths.len(), 1]), &device());
        -log_softmax(logits, 1).gather(1, index).mean()
    }

    fn check_gradients(&self) {
        let loss = self.loss();
        let (found, expected): (f32, f32) = (loss.clone().into_scalar(), self.losses()[0]);
        assert!(
            (found - expected).abs() / expected < 1e-4,
            "loss {found} instead of {expected}"
        );
        let mut gradients = loss.backward();
        let (samples, norms) = (
            self.golden.float("grad.sample").unwrap(),
            self.golden.float("grad.norm").unwrap(),
        );
        let indices = &self.golden.ids["sample_index"];
        for parameter in self.parameters() {
            let (name, m) = (parameter.name(), index(&self.matrices, parameter.name()));
            let gradient = to_vec(parameter.take_gradient(&mut gradients).unwrap());
            let norm = gradient
                .iter()
                .map(|g| f64::from(*g) * f64::from(*g))
                .sum::<f64>()
                .sqrt() as f32;
            assert!(
                (norm - norms[m]).abs() / norms[m] < 1e-4,
                "{name}: norm {norm} instead of {}",
                norms[m]
            );
            // Errors are relative to the size of a typical element.
            let typical = norms[m] / (gradient.len() as f32).sqrt();
            let picked: Vec<f32> = indices[16 * m..16 * (m + 1)]
                .iter()
                .map(|&i| gradient[i as usize])
                .collect();
            let worst = max_difference(&picked, &samples[16 * m..16 * (m + 1)]) / typical;
            assert!(
                worst < 1e-3,
                "{name}: an element differs by {worst:e} of a typical one"
            );
            if let Some(all) = self.golden.float(&format!("grad.{}", key(name))) {
                let difference: f64 = gradient
                    .iter()
                    .zip(all)
                    .map(|(a, b)| f64::from(a - b).powi(2))
                    .sum::<f64>()
                    .sqrt();
                assert!(
                    difference / f64::from(norms[m]) < 1e-4,
                    "{name}: {difference:e} of {}",
                    norms[m]
                );
            }
        }
    }

    fn check_steps(&mut self, lr: f64) {
        let expected = self.losses().to_vec();
        let config = TrainConfig {
            lr,
            max_steps: expected.len() as u64,
            batch_size: self.examples.len(),
            max_grad_norm: 0.0,
            weight_decay: 0.01,
            lr_scheduler_type: Scheduler::Constant,
            warmup_ratio: 0.0,
            logging_steps: 1,
            load_best_model_at_end: false,
            ..TrainConfig::default()
        };
        let mut losses = Vec::new();
        let mut observer = |event: &Event| {
            if let Event::Step { loss, .. } = event {
                losses.push(*loss as f32);
            }
        };
        train(TrainRun {
            backbone: self.backbone.as_ref(),
            adapter: self.adapter.as_mut(),
            head: self.head.as_mut(),
            train: &self.examples,
            validation: None,
            config: &config,
            folder: None,
            resume: false,
            stop: &AtomicBool::new(false),
            observer: &mut observer,
        })
        .unwrap();
        assert_eq!(losses.len(), expected.len());
        for (step, (found, expected)) in losses.iter().zip(expected).enumerate() {
            assert!(
                (found - expected).abs() / expected < 1e-3,
                "step {step}: {found} instead of {expected}"
            );
        }
    }
}

fn key(name: &str) -> String {
    format!("base_model.model.{name}")
}

fn index(matrices: &[String], name: &str) -> usize {
    matrices
        .iter()
        .position(|m| *m == key(name))
        .unwrap_or_else(|| panic!("{name}"))
}

/// Element k of matrix m is `scale * sin(0.37 k + 0.61 m + 0.003 k²)`.
fn initialise(parameter: &mut Parameter, m: usize) {
    let scale = match parameter.name() {
        name if name.contains("lora_A") => 1.0 / (parameter.shape()[1] as f64).sqrt(),
        name if name.contains("lora_B") => 0.02,
        _ => 0.05,
    };
    let value = |k: usize| {
        let k = k as f64;
        (scale * (0.37 * k + 0.61 * m as f64 + 0.003 * k * k).sin()) as f32
    };
    parameter.set((0..parameter.len()).map(value).collect());
}

/// With a class if the file has labels, else with the next tokens as targets.
fn example(golden: &Golden, sequence: usize) -> Tokenized {
    let input_ids = golden.input_ids(sequence).to_vec();
    let labels = match golden.ids.get("labels") {
        Some(labels) => Target::Class(labels[sequence] as usize),
        None => Target::Tokens(
            input_ids[1..]
                .iter()
                .map(|&id| id as i32)
                .chain([IGNORE_INDEX])
                .collect(),
        ),
    };
    Tokenized {
        input_ids,
        token_type_ids: vec![],
        labels,
    }
}

fn tokens(target: &Target) -> Vec<i32> {
    if let Target::Tokens(targets) = target {
        targets.clone()
    } else {
        Vec::new()
    }
}

fn language_model() -> Setup {
    Setup::new("smollm2-lora-step", smollm2(), None)
}

fn classifier() -> Setup {
    let head = HeadConfig {
        labels: vec!["0".into(), "1".into()],
        pooling: Pooling::Cls,
        problem_type: Default::default(),
    };
    Setup::new(
        "minilm-lora-step",
        files("minilm-l6").load(&device()).unwrap(),
        Some(head),
    )
}

#[test]
fn smollm2_loss_and_gradients_equal_those_of_peft() {
    language_model().check_gradients();
}

#[test]
fn smollm2_twenty_steps_give_the_losses_of_torch() {
    language_model().check_steps(1e-3);
}

#[test]
fn minilm_classifier_loss_and_gradients_equal_those_of_peft() {
    classifier().check_gradients();
}

#[test]
fn minilm_classifier_twenty_steps_give_the_losses_of_torch() {
    classifier().check_steps(2e-4);
}
