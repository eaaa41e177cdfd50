//! The model, and what each arm learns.

use std::sync::Arc;
use std::time::Instant;

use burn::prelude::Device;
use frugal_adapt::methods::full::{Full, FullConfig};
use frugal_adapt::methods::low_rank::lora::{Lora, LoraConfig};
use frugal_core::encode::IGNORE_INDEX;
use frugal_core::tokenizer::TextTokenizer;
use frugal_models::{MemorySource, ModelConfig, build, random_weights};
use frugal_nn::{Adapter, AdapterSet, Backbone, BuildContext, LoadedAdapter, named_rng};
use frugal_retrieve::perk::{Episode, MetaTrainConfig, MetaTrainer, PerkConfig, PerkState, Texts};
use frugal_train::{
    CausalLm, Event, Scheduler, Target, Tokenized, TrainConfig, TrainRun, train_with,
};
use rand::Rng;
use rand::seq::SliceRandom;
use serde_json::json;

use super::size::Size;
use super::world::{Facts, story, tokenizer};
use super::{StudyError, StudyRequest};

/// Rank of all adapters, at scale 1.
const RANK: usize = 16;
/// Questions of a step of learning, in every arm.
const QUESTIONS: usize = 8;
/// Learning rate of all adapters.
const LR: f64 = 1e-3;

pub(super) fn failed<E: std::error::Error + Send + Sync + 'static>(
    arm: &'static str,
) -> impl Fn(E) -> StudyError {
    move |error| StudyError::arm(arm, error)
}

/// The decoder of our own with its language.
pub(super) struct Base {
    pub backbone: Arc<dyn Backbone>,
    pub tokenizer: TextTokenizer,
}

impl Base {
    pub fn texts(&self) -> Result<Texts<'_>, StudyError> {
        let longest = self.backbone.info().max_sequence;
        Texts::new(&self.tokenizer, longest).map_err(failed("texts"))
    }

    fn context(&self, seed: u64) -> BuildContext<'_> {
        context(self.backbone.as_ref(), seed)
    }
}

fn context(backbone: &dyn Backbone, seed: u64) -> BuildContext<'_> {
    BuildContext {
        info: backbone.info(),
        sites: backbone.sites(),
        backbone: Some(backbone),
        device: backbone.device().clone(),
        seed,
        tokenize: None,
    }
}

/// Tokens of which those behind the first `masked` are predicted.
fn example(ids: Vec<u32>, masked: usize) -> Tokenized {
    let next = ids.iter().skip(1).enumerate();
    let mut labels: Vec<i32> = next
        .map(|(i, &id)| {
            if i + 1 < masked {
                IGNORE_INDEX
            } else {
                id as i32
            }
        })
        .collect();
    labels.push(IGNORE_INDEX);
    Tokenized {
        input_ids: ids,
        token_type_ids: Vec::new(),
        labels: Target::Tokens(labels),
    }
}

fn train(
    backbone: &dyn Backbone,
    adapter: &mut dyn Adapter,
    examples: &[Tokenized],
    config: &TrainConfig,
    request: &StudyRequest<'_>,
) -> Result<(), StudyError> {
    let run = TrainRun {
        backbone,
        adapter,
        head: None,
        train: examples,
        validation: None,
        config,
        folder: None,
        resume: false,
        stop: request.stop,
        observer: &mut |_: &Event| {},
    };
    train_with(run, Box::new(CausalLm::default())).map_err(failed("training"))?;
    request.check()
}

fn settings(lr: f64, batch_size: usize, seed: u64) -> TrainConfig {
    TrainConfig {
        lr,
        epochs: 1.0,
        batch_size,
        weight_decay: 0.01,
        adam_beta2: 0.95,
        lr_scheduler_type: Scheduler::Cosine,
        warmup_ratio: 0.03,
        seed,
        ..TrainConfig::default()
    }
}

/// A decoder of two blocks and 128 features, trained on stories from random values.
pub(super) fn base(request: &StudyRequest<'_>, size: &Size) -> Result<Base, StudyError> {
    const NAME: &str = "2 blocks";
    let tokenizer = tokenizer().map_err(failed(NAME))?;
    let config = json!({"model_type": "llama", "hidden_size": 128, "intermediate_size": 352,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
        "vocab_size": tokenizer.vocab_size(), "max_position_embeddings": 1024,
        "tie_word_embeddings": true, "initializer_range": 0.04});
    let config = ModelConfig::from_json(config, NAME).map_err(failed(NAME))?;
    let device = Device::flex();
    let start = random_weights(&config, 17, &device);
    let random = build(config.clone(), &start, &device).map_err(failed(NAME))?;
    let mut rng = named_rng(17, "perk stories");
    let mut examples = Vec::with_capacity(size.stories);
    for _ in 0..size.stories {
        let ids = tokenizer
            .encode(&story(&mut rng), true)
            .map_err(failed(NAME))?;
        examples.push(example(ids, 1));
    }
    let full = Full::new(FullConfig {}, &context(random.as_ref(), 17));
    let mut full = full.map_err(failed(NAME))?;
    let settings = settings(2e-3, 32, 17);
    train(random.as_ref(), &mut full, &examples, &settings, request)?;
    let mut source = MemorySource::default();
    for parameter in full.parameters() {
        let value = parameter.value().inner().to_device(&device);
        let name = parameter.name().to_owned();
        match parameter.shape() {
            [rows, columns] => source.insert_matrix(name, value.reshape([*rows, *columns])),
            _ => source.insert_vector(name, value),
        }
    }
    let backbone = build(config, &source, &device).map_err(failed(NAME))?;
    Ok(Base {
        backbone,
        tokenizer,
    })
}

/// An arm that learns to write.
pub(super) struct Arm {
    pub name: &'static str,
    pub retained: usize,
    /// Whether token weights and rates are learnt.
    pub learned: bool,
}

/// Learns a state; returns it with the seconds it took.
pub(super) fn meta_learned(
    request: &StudyRequest<'_>,
    base: &Base,
    arm: &Arm,
    size: &Size,
    seed: u64,
) -> Result<(PerkState, f64), StudyError> {
    let failed = failed(arm.name);
    let config = PerkConfig {
        r: RANK,
        lora_alpha: (RANK as f64).sqrt(),
        inner_lr: 5e-3,
        learned_rates: arm.learned,
        token_weights: arm.learned,
        ..PerkConfig::default()
    };
    let settings = MetaTrainConfig {
        retained_steps: arm.retained,
        lr: LR,
        rates_lr: Some(1e-4),
        seed,
        ..MetaTrainConfig::default()
    };
    let backbone = base.backbone.as_ref();
    let texts = base.texts()?;
    let mut state = PerkState::new(config, backbone, seed).map_err(&failed)?;
    let mut trainer = MetaTrainer::new(settings, &state, size.steps as u64).map_err(&failed)?;
    let start = Instant::now();
    for step in 0..size.steps {
        request.check()?;
        let mut rng = named_rng(seed, &format!("perk task {step}"));
        let count = rng.random_range(size.trained.clone());
        let task = Facts::draw(&mut rng, count).task(&mut rng, QUESTIONS);
        let episode = Episode::shuffled(&texts, &task, rng.random()).map_err(&failed)?;
        trainer
            .step(backbone, &mut state, &episode)
            .map_err(&failed)?;
    }
    Ok((state, start.elapsed().as_secs_f64()))
}

/// Learns to answer with the facts in the prompt, by a LoRA of the same rank in as many steps of as
/// many questions; returns it with the seconds it took.
pub(super) fn in_context(
    request: &StudyRequest<'_>,
    base: &Base,
    size: &Size,
    seed: u64,
) -> Result<(AdapterSet, f64), StudyError> {
    const NAME: &str = "FT-ICR";
    let mut examples = Vec::with_capacity(size.steps * QUESTIONS);
    for step in 0..size.steps {
        let mut rng = named_rng(seed, &format!("perk task {step}"));
        let count = rng.random_range(size.trained.clone());
        let facts = Facts::draw(&mut rng, count);
        let mut numbers: Vec<usize> = (0..count).collect();
        numbers.shuffle(&mut rng);
        for question in facts.task(&mut rng, QUESTIONS).questions {
            let prompt = facts.prompt(&numbers) + &Texts::prompt_text(count, &question.question);
            let encode = |text: &str, special| base.tokenizer.encode(text, special);
            let mut ids = encode(&prompt, true).map_err(failed(NAME))?;
            let masked = ids.len();
            let answer = encode(&format!(" {}<eos>", question.answer), false);
            ids.extend(answer.map_err(failed(NAME))?);
            examples.push(example(ids, masked));
        }
    }
    let settings = settings(LR, QUESTIONS, seed);
    let lora = LoraConfig {
        r: RANK,
        lora_alpha: (RANK as f64).sqrt(),
        use_rslora: true,
        ..LoraConfig::default()
    };
    let mut lora = Lora::new(lora, &base.context(seed)).map_err(failed(NAME))?;
    let start = Instant::now();
    train(
        base.backbone.as_ref(),
        &mut lora,
        &examples,
        &settings,
        request,
    )?;
    let seconds = start.elapsed().as_secs_f64();
    let mut set = AdapterSet::default();
    let entry = LoadedAdapter {
        adapter: Box::new(lora),
        head: None,
    };
    set.insert(NAME, entry);
    Ok((set, seconds))
}
