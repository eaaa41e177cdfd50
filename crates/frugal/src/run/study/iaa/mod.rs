//! IAA against adapters of the same size, LoRA, biases and full fine-tuning, on finding a declaration
//! of Mathlib by its description.

mod arms;
mod contrastive;
mod pairs;

use std::sync::Arc;

use burn::prelude::Device;
use frugal_models::load::{Lookup, ModelFiles};
use frugal_models::{MemorySource, ModelConfig, build, random_weights};
use frugal_nn::Backbone;
use serde_json::json;

use super::run::{Study, StudyKind};
use super::{Outcome, StudyError, StudyEvent, StudyRequest};
use arms::{Arm, BEST, FULL, SCATTERED, arms};
use contrastive::{Settings, Trained, train};
use pairs::{Corpus, Pairs};

/// The study.
pub static IAA: Study = Study {
    name: "iaa",
    kind: StudyKind::Retrieve,
    about: "adapters in one connected path against scattered ones of the same size, on Mathlib's descriptions and declarations",
    source: "Ma et al. 2022, Scattered or Connected?, arXiv 2208.09847",
    run,
};

/// What the second claim is about.
const STEPS_OF_GAIN: &str = "steps to 90 % of full's gain";

/// An encoder that is adapted.
struct Base {
    name: &'static str,
    backbone: Arc<dyn Backbone>,
}

fn run(
    request: &StudyRequest<'_>,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<Outcome, StudyError> {
    let size = Size::of(request.smoke);
    let path = request.data("mathlib3-decls/decls.jsonl.gz")?;
    let files = ModelFiles::open("minilm-l6", &Lookup::default())
        .map_err(|error| StudyError::arm("minilm-l6", error))?;
    let corpus = Corpus::mathlib(&path, &files, size.length)?;
    let runs = request.seeds.len() * 2 * arms(1).len();
    observe(StudyEvent::Planned {
        steps: runs as u64 + 1,
    });
    let bases = [minilm(&files)?, own(request, &files, &corpus, &size)?];
    observe(StudyEvent::Step {
        what: "the encoder of our own is trained".into(),
    });
    let mut outcome = Outcome::default();
    for &seed in &request.seeds {
        let pairs = corpus.draw(seed, size.training, size.queries, size.passages)?;
        for base in &bases {
            measure(request, base, &pairs, &size, seed, &mut outcome, observe)?;
        }
    }
    claims(&mut outcome, &bases);
    notes(&mut outcome, &size);
    Ok(outcome)
}

/// How much is trained and measured.
struct Size {
    training: usize,
    queries: usize,
    passages: usize,
    length: usize,
    own_steps: usize,
    training_settings: Settings,
}

impl Size {
    fn of(smoke: bool) -> Self {
        let settings = |steps, every| Settings {
            steps,
            every,
            batch: if smoke { 4 } else { 16 },
            lr: 1e-3,
            seed: 0,
        };
        match smoke {
            true => Self {
                training: 8,
                queries: 4,
                passages: 8,
                length: 16,
                own_steps: 2,
                training_settings: settings(2, 1),
            },
            false => Self {
                training: 640,
                queries: 300,
                passages: 300,
                length: 48,
                own_steps: 300,
                training_settings: settings(40, 5),
            },
        }
    }
}

fn minilm(files: &ModelFiles) -> Result<Base, StudyError> {
    let backbone = files.load(&Device::flex());
    Ok(Base {
        name: "minilm-l6",
        backbone: backbone.map_err(|error| StudyError::arm("minilm-l6", error))?,
    })
}

/// A post-norm encoder of four blocks with the tokenizer of MiniLM, trained from random values on
/// pairs that no arm sees.
fn own(
    request: &StudyRequest<'_>,
    files: &ModelFiles,
    corpus: &Corpus,
    size: &Size,
) -> Result<Base, StudyError> {
    const NAME: &str = "4 blocks";
    let failed = |error: frugal_nn::ModelError| StudyError::arm(NAME, error);
    let config = json!({"model_type": "bert", "hidden_size": 256, "intermediate_size": 1024,
        "num_hidden_layers": 4, "num_attention_heads": 4, "type_vocab_size": 2,
        "vocab_size": files.info().vocab_size, "max_position_embeddings": 128});
    let config = ModelConfig::from_json(config, NAME).map_err(failed)?;
    let device = Device::flex();
    let start = random_weights(&config, 17, &device);
    let random = build(config.clone(), &start, &device).map_err(failed)?;
    let settings = Settings {
        steps: size.own_steps,
        every: size.own_steps,
        lr: 5e-4,
        ..size.training_settings
    };
    let pairs = corpus.reserved(size.own_steps * settings.batch);
    let arm = Arm {
        name: NAME,
        method: "full",
        settings: json!({}),
        lr: settings.lr,
    };
    let trained = train(request, random.as_ref(), &pairs, &arm, settings)?;
    let backbone = build(config, &weights(&trained, &device), &device).map_err(failed)?;
    Ok(Base {
        name: NAME,
        backbone,
    })
}

/// The weights of a model that was trained in full.
fn weights(trained: &Trained, device: &Device) -> MemorySource {
    let mut source = MemorySource::default();
    for parameter in trained.adapter.parameters() {
        let value = parameter.value().inner().to_device(device);
        let name = parameter.name().to_owned();
        match parameter.shape() {
            [rows, columns] => source.insert_matrix(name, value.reshape([*rows, *columns])),
            _ => source.insert_vector(name, value),
        }
    }
    source
}

fn measure(
    request: &StudyRequest<'_>,
    base: &Base,
    pairs: &Pairs,
    size: &Size,
    seed: u64,
    outcome: &mut Outcome,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<(), StudyError> {
    let mut targets = None;
    for arm in arms(base.backbone.info().num_hidden_layers) {
        request.check()?;
        let settings = Settings {
            lr: arm.lr,
            seed,
            ..size.training_settings
        };
        let trained = train(request, base.backbone.as_ref(), pairs, &arm, settings)?;
        let name = label(base.name, arm.name);
        let start = trained.curve.first().map_or(0.0, |point| point.1);
        let end = trained.curve.last().map_or(0.0, |point| point.1);
        // The first arm is full fine-tuning.
        let [whole, gain] =
            *targets.get_or_insert([0.9 * end, start + 0.9 * (end - start).max(0.0)]);
        let steps_to = |target: f64| {
            let reached = trained.curve.iter().find(|point| point.1 >= target);
            reached.map_or(settings.steps + settings.every, |point| point.0) as f64
        };
        outcome.add(
            &name,
            "parameters",
            seed,
            trained.adapter.num_trainable() as f64,
        );
        outcome.add(&name, "MRR@10 before", seed, start);
        outcome.add(&name, "MRR@10", seed, end);
        outcome.add(&name, "recall@100", seed, trained.recall);
        outcome.add(&name, "steps to 90 % of full", seed, steps_to(whole));
        outcome.add(&name, STEPS_OF_GAIN, seed, steps_to(gain));
        outcome.add(&name, "spread of the loss", seed, trained.loss_spread);
        outcome.add(&name, "seconds", seed, trained.seconds);
        observe(StudyEvent::Step {
            what: format!("{name}, seed {seed}: MRR@10 {end:.3}"),
        });
    }
    Ok(())
}

fn label(base: &str, arm: &str) -> String {
    format!("{base}: {arm}")
}

fn claims(outcome: &mut Outcome, bases: &[Base]) {
    for base in bases {
        let (best, scattered, full) = (
            label(base.name, BEST),
            label(base.name, SCATTERED),
            label(base.name, FULL),
        );
        outcome.judge(
            format!(
                "{}: IAA-L is better than scattered adapters of its size",
                base.name
            ),
            "MRR@10",
            &best,
            &scattered,
            false,
        );
        outcome.judge(
            format!(
                "{}: IAA-L reaches 90 % of what full fine-tuning gains in fewer steps than scattered adapters",
                base.name
            ),
            STEPS_OF_GAIN,
            &best,
            &scattered,
            true,
        );
        outcome.judge(
            format!("{}: IAA-L is better than full fine-tuning", base.name),
            "MRR@10",
            &best,
            &full,
            false,
        );
        outcome.judge(
            format!(
                "{}: the loss of IAA-L varies less than that of scattered adapters",
                base.name
            ),
            "spread of the loss",
            &best,
            &scattered,
            true,
        );
    }
}

fn notes(outcome: &mut Outcome, size: &Size) {
    let settings = size.training_settings;
    outcome.notes.push(format!(
        "Queries are descriptions, passages are declarations without their names; {} pairs are trained on, {} queries are \
         searched in {} passages of other pairs. Texts of at most {} tokens, mean pooling, cosine over 0.05, the other passages \
         of the batch as negatives; {} steps of {} pairs, AdamW with 1e-3, full fine-tuning with 1e-4.",
        size.training, size.queries, size.passages, size.length, settings.steps, settings.batch
    ));
    outcome.notes.push(format!(
        "MRR is measured every {} steps; an arm that does not reach 90 % counts as {} steps. An encoder that begins near its end has 90 % of full fine-tuning \
         at once; the gain is what full fine-tuning adds to its beginning.",
        settings.every,
        settings.steps + settings.every
    ));
    outcome.notes.push(format!(
        "The encoder of four blocks and 256 features was trained by us from random values, for {} steps on pairs that no arm sees.",
        size.own_steps
    ));
}
