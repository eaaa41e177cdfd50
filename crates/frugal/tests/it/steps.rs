//! Steps of training against `peft`: loss and gradients of one batch, and AdaLoRA's choices over a
//! run.

use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::activation::log_softmax;
use frugal::adapt::Rows;
use frugal::adapt::{
    Adapter, GradientSum, Head, HeadConfig, Mode, Parameter, Pooling, StepContext, registry, to_vec,
};
use frugal::model::load::read_json;
use frugal::model::{Backbone, Input};
use serde_json::Value;

use crate::support::{Golden, context, device, fixture, max_difference, model};

struct Setup {
    name: String,
    golden: Golden,
    rate: f32,
    backbone: Arc<dyn Backbone>,
    adapter: Box<dyn Adapter>,
    head: Option<Head>,
}

impl Setup {
    /// The adapter that `peft` trained, at the values it began with.
    fn new(name: &str) -> Self {
        let folder = fixture("adapters").join(name);
        let description = read_json(&folder.join("train.json")).unwrap();
        let backbone = model(
            description["model"]
                .as_str()
                .unwrap()
                .strip_prefix("fixtures/models/")
                .unwrap(),
            "config.json",
        );
        let Value::Object(mut config) = read_json(&folder.join("adapter_config.json")).unwrap()
        else {
            panic!("{name}")
        };
        config.remove("rank_pattern");
        let method = registry::find_peft(config["peft_type"].as_str().unwrap(), &config).unwrap();
        let mut settings = (method.from_peft)(&config).unwrap();
        settings.remove("inference_mode");
        let adapter = (method.build)(&settings, &context(backbone.as_ref(), 0)).unwrap();
        let head = description["model_class"]
            .as_str()
            .unwrap()
            .contains("SequenceClassification")
            .then(|| {
                let labels = ["0", "1", "2"].map(str::to_owned).to_vec();
                Head::new(
                    HeadConfig {
                        labels,
                        pooling: Pooling::Cls,
                        problem_type: Default::default(),
                    },
                    backbone.info(),
                    &device(),
                    0,
                )
            });
        let golden = Golden::read(&folder.join("train.safetensors"));
        let rate = description["rate"].as_f64().unwrap() as f32;
        let mut setup = Self {
            name: name.into(),
            golden,
            rate,
            backbone,
            adapter,
            head,
        };
        let golden = std::mem::take(&mut setup.golden.floats);
        for parameter in setup.parameters_mut() {
            let (shape, values) = golden
                .get(&format!("init.{}", key(parameter)))
                .unwrap_or_else(|| panic!("{name}: {}", parameter.name()));
            assert_eq!(shape, parameter.shape(), "{name}: {}", parameter.name());
            parameter.set(values.clone());
        }
        setup.golden.floats = golden;
        setup
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.adapter
            .parameters()
            .into_iter()
            .chain(self.head.iter().flat_map(Head::parameters))
            .collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.adapter
            .parameters_mut()
            .into_iter()
            .chain(self.head.iter_mut().flat_map(Head::parameters_mut))
            .collect()
    }

    /// Loss with what the method adds, and all gradients.
    fn backward(&self) -> (f32, GradientSum) {
        let ids = &self.golden.ids["input_ids"];
        let length = ids.len() / 2;
        let input = Input::new(ids, &[length, length]);
        let mode = Mode::Train { seed: 0 };
        let mut pass = self.adapter.pass(mode);
        let hidden = self.backbone.forward(&input, pass.as_mut(), None).unwrap();
        let labels = &self.golden.ids["labels"];
        let (logits, targets): (Tensor<2>, Vec<i32>) = match &self.head {
            Some(head) => {
                let logits = head.forward(
                    hidden,
                    &input.layout,
                    self.backbone.as_ref(),
                    pass.as_mut(),
                    mode,
                );
                (logits, labels.iter().map(|&l| l as i32).collect())
            }
            None => {
                let rows: Vec<usize> = (0..ids.len()).filter(|i| (i + 1) % length != 0).collect();
                let targets = rows.iter().map(|i| labels[i + 1] as i32).collect();
                let logits = self
                    .backbone
                    .logits(
                        frugal::model::select_rows(hidden, &rows),
                        Rows::Chosen,
                        pass.as_mut(),
                    )
                    .unwrap();
                (logits, targets)
            }
        };
        let rows = targets.len();
        let index = Tensor::<2, Int>::from_data(TensorData::new(targets, [rows, 1]), &device());
        let mut loss = -log_softmax(logits, 1).gather(1, index).mean();
        if let Some(added) = pass.auxiliary_loss() {
            loss = loss + added;
        }
        let value = to_vec(loss.clone().inner())[0];
        let mut gradients = GradientSum::default();
        gradients.add(self.parameters().into_iter(), &mut loss.backward());
        (value, gradients)
    }

    fn expect(&self, kind: &str, parameter: &Parameter, found: &[f32]) {
        let expected = self
            .golden
            .float(&format!("{kind}.{}", key(parameter)))
            .unwrap();
        let size = expected.iter().map(|e| e * e).sum::<f32>().sqrt().max(1e-6);
        let worst = max_difference(found, expected) / size;
        assert!(
            worst < 1e-4,
            "{}: {kind} of {}: {worst:e} of its norm",
            self.name,
            parameter.name()
        );
    }

    fn check_gradients(&self) {
        let (loss, gradients) = self.backward();
        let expected = self.golden.float("losses").unwrap()[0];
        assert!(
            (loss - expected).abs() / expected < 1e-4,
            "{}: loss {loss} instead of {expected}",
            self.name
        );
        for parameter in self.parameters().into_iter().filter(|p| p.is_trainable()) {
            self.expect("grad", parameter, gradients.get(parameter.name()).unwrap());
        }
    }

    /// Plain gradient descent; AdaLoRA chooses after every step.
    fn check_run(&mut self) {
        let losses = self.golden.float("losses").unwrap().to_vec();
        for (step, expected) in losses.iter().enumerate() {
            let (loss, mut gradients) = self.backward();
            assert!(
                (loss - expected).abs() / expected < 1e-4,
                "{}: step {step}: loss {loss} instead of {expected}",
                self.name
            );
            let mut at = StepContext {
                step: step as u64,
                total_steps: losses.len() as u64,
                seed: 0,
                lr_factor: 1.0,
            };
            self.adapter.before_step(&at, &mut gradients);
            let rate = self.rate;
            for parameter in self.parameters_mut() {
                let gradient = gradients.get(parameter.name()).unwrap();
                parameter.set(
                    parameter
                        .to_vec()
                        .iter()
                        .zip(gradient)
                        .map(|(p, g)| p - rate * g)
                        .collect(),
                );
            }
            at.step += 1;
            self.adapter.after_step(&at);
            let mut entries: Vec<&Parameter> = self
                .adapter
                .parameters()
                .into_iter()
                .filter(|p| p.name().ends_with("lora_E"))
                .collect();
            entries.sort_by_key(|p| p.name());
            let alive: Vec<u32> = entries
                .iter()
                .flat_map(|p| p.to_vec())
                .map(|e| u32::from(e != 0.0))
                .collect();
            assert_eq!(
                alive,
                self.golden.ids[&format!("mask.{}", at.step)],
                "{}: after step {}",
                self.name,
                at.step
            );
        }
        for parameter in self.parameters() {
            self.expect("final", parameter, &parameter.to_vec());
        }
    }
}

/// A parameter's key in the golden file: as trained, where files have only what came of it.
fn key(parameter: &Parameter) -> &str {
    if parameter.name() == "prompt_embeddings" {
        "embedding.weight"
    } else {
        parameter.name()
    }
}

#[test]
fn loss_and_gradients_of_prompts_and_prefixes_equal_those_of_peft() {
    let names = [
        "llama-prompt-step",
        "llama-prefix",
        "llama-prefix-projection",
        "gpt2-prefix",
        "qwen3-prefix",
        "llama-cartridge",
        "llama-cpt",
    ];
    names
        .into_iter()
        .chain(["llama-p-tuning-mlp", "llama-p-tuning-lstm"])
        .for_each(|name| Setup::new(name).check_gradients());
}

#[test]
fn loss_and_gradients_of_adalora_equal_those_of_peft() {
    ["llama-adalora", "bert-adalora-seqcls"]
        .into_iter()
        .for_each(|name| Setup::new(name).check_gradients());
}

#[test]
fn adalora_chooses_the_triplets_that_peft_chooses() {
    ["llama-adalora", "bert-adalora-seqcls"]
        .into_iter()
        .for_each(|name| Setup::new(name).check_run());
}

#[test]
fn a_finished_prompt_is_what_peft_saves() {
    for name in [
        "llama-prefix-projection",
        "llama-p-tuning-mlp",
        "llama-p-tuning-lstm",
        "llama-cartridge",
        "llama-cpt",
    ] {
        let finished = Setup::new(name).adapter.to_inference().unwrap();
        let stored = Golden::read(
            &fixture("adapters")
                .join(name)
                .join("adapter_model.safetensors"),
        );
        let difference = max_difference(
            &finished.parameters()[0].to_vec(),
            stored.float("prompt_embeddings").unwrap(),
        );
        assert!(difference < 1e-5, "{name}: {difference:e}");
    }
}
