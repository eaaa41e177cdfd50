//! Training and measuring models in memory.

use burn::prelude::*;
use frugal_adapt::methods::full::{Full, FullConfig};
use frugal_core::encode::{IGNORE_INDEX, Target, Tokenized};
use frugal_core::pretext::{Special, find, fitted, prefix_length, special_names};
use frugal_core::tokenizer::TextTokenizer;
use frugal_models::merge::{self, Weights};
use frugal_models::{ModelConfig, random_weights};
use frugal_nn::{
    Adapter, AttentionControl, AttentionMask, Backbone, BuildContext, ControlledPass, Input,
    NoAdapter, Rows, named_rng, select_rows, to_vec,
};
use frugal_train::mixture::{Mixture, MixtureConfig, MixtureKind, MixtureText};
use frugal_train::objective::PrefixedLm;
use frugal_train::{
    CausalLm, Event, Objective, ParamGroup, StopReason, TrainConfig, TrainError, TrainRun,
    TrainSummary, evaluate_observed, train_from, train_with,
};

use super::phone_book::{Book, DIGITS};
use super::size::Size;
use crate::run::PretrainConfig;
use crate::run::corpus::Corpus;
use crate::run::pretrain_mixture::{as_next_tokens, stream};
use crate::run::study::{StudyError, StudyRequest};

/// Share of the text that is not learnt from.
const HELD_OUT: f64 = 0.1;
/// Sentinels of the vocabulary.
const SENTINELS: usize = 96;

/// What an arm learns from.
#[derive(Clone, Copy)]
pub(super) struct Recipe {
    pub name: &'static str,
    pub kind: MixtureKind,
    /// Whether prompts are read in both directions.
    pub bidirectional: bool,
    pub transformer: bool,
}

/// The text as tokens, and how long is learnt from it.
pub(super) struct Rig<'a> {
    request: &'a StudyRequest<'a>,
    size: &'a Size,
    tokenizer: TextTokenizer,
    special: Special,
    pub(super) book: Book,
    corpus: Corpus,
    streams: [Vec<u32>; 2],
    device: Device,
}

/// Which part of what is held out.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Tuning,
    Test,
}

/// Which shares a mixture had, by step.
pub(super) type Trajectory = Vec<(u64, std::collections::BTreeMap<String, f64>)>;

fn failed<E>(arm: &str) -> impl Fn(E) -> StudyError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |error| StudyError::arm(arm, error)
}

impl<'a> Rig<'a> {
    /// Reads the text; which parts are which does not depend on the seed of a run.
    pub(super) fn new(request: &'a StudyRequest<'a>, size: &'a Size) -> Result<Self, StudyError> {
        let path = request.data("tinyshakespeare/input.txt")?;
        let config = PretrainConfig {
            data: path.display().to_string(),
            validation_share: HELD_OUT,
            ..size.config(false)
        };
        let names = special_names(SENTINELS);
        let corpus = Corpus::read_with(&config, None, &names, &mut |_| {});
        let corpus = corpus.map_err(failed("the text"))?;
        let tokenizer = corpus.tokenizer.clone();
        let special = Special::find(SENTINELS, |name| tokenizer.id(name));
        let special = special.map_err(failed("the tokenizer"))?;
        let book = Book::new(&tokenizer, size.vocab_size, special.generate);
        Ok(Self {
            request,
            size,
            book: book.map_err(failed("phone books"))?,
            streams: [stream(&corpus.training), stream(&corpus.validation)],
            corpus,
            special,
            tokenizer,
            device: Device::flex(),
        })
    }

    /// Tokens to learn from.
    pub(super) fn tokens(&self) -> usize {
        self.streams[0].len()
    }

    /// A new model; those of one architecture and seed have the same weights whatever they learn.
    pub(super) fn fresh(&self, recipe: Recipe, seed: u64) -> Result<Weights, StudyError> {
        let config = self.size.config(recipe.transformer).model(&self.tokenizer);
        let mut config = config.map_err(failed(recipe.name))?;
        if recipe.bidirectional && !recipe.transformer {
            let mut raw = config.raw.clone();
            raw["reverse_size"] = (self.size.state_size / 2).into();
            raw["gen_token_id"] = self.special.generate.into();
            config = ModelConfig::from_json(raw, "the study").map_err(failed(recipe.name))?;
        }
        let tensors = random_weights(&config, seed, &self.device);
        Ok(Weights { config, tensors })
    }

    fn objective(&self, recipe: Recipe) -> Box<dyn Objective> {
        let inner = CausalLm::default();
        match recipe.bidirectional {
            true => Box::new(PrefixedLm {
                inner,
                generate: self.special.generate,
            }),
            false => Box::new(inner),
        }
    }

    fn settings(&self, rate: f64, steps: u64, tokens: usize, seed: u64) -> TrainConfig {
        TrainConfig {
            lr: rate,
            max_steps: steps,
            max_tokens: tokens,
            warmup_ratio: 0.1,
            min_lr_ratio: 0.1,
            load_best_model_at_end: false,
            logging_steps: steps,
            seed,
            ..PretrainConfig::default().train
        }
    }

    /// The model trained; nothing where the loss or a gradient was not finite.
    fn run(
        &self,
        recipe: Recipe,
        start: &Weights,
        train: impl FnOnce(&dyn Backbone, &mut dyn Adapter) -> Result<TrainSummary, TrainError>,
        seed: u64,
    ) -> Result<Option<Weights>, StudyError> {
        self.request.check()?;
        let arm = recipe.name;
        let backbone = start.build(&self.device).map_err(failed(arm))?;
        let context = BuildContext {
            info: backbone.info(),
            sites: backbone.sites(),
            backbone: Some(backbone.as_ref()),
            device: self.device.clone(),
            seed,
            tokenize: None,
        };
        let mut adapter = Full::new(FullConfig {}, &context).map_err(failed(arm))?;
        match train(backbone.as_ref(), &mut adapter) {
            Err(TrainError::NonFinite { .. }) => return Ok(None),
            Err(error) => return Err(StudyError::arm(arm, error)),
            Ok(summary) if summary.ending == StopReason::Interrupted => {
                return Err(StudyError::Stopped);
            }
            Ok(_) => {}
        }
        let trained = merge::weights(backbone.as_ref(), Some(&adapter as &dyn Adapter));
        trained.map(Some).map_err(failed(arm))
    }

    /// Pre-trains a new model; the second of the answer are the shares of classes over the steps.
    pub(super) fn pretrained(
        &self,
        recipe: Recipe,
        rate: f64,
        seed: u64,
    ) -> Result<(Option<Weights>, Trajectory), StudyError> {
        let start = self.fresh(recipe, seed)?;
        let size = self.size;
        let settings = MixtureConfig {
            bidirectional: recipe.bidirectional,
            length_scale: Some(0.125),
            eval_samples: 2,
            controller: size.controller.clone(),
            ..MixtureConfig::default()
        };
        let text = MixtureText {
            train: &self.streams[0],
            validation: &self.streams[1],
            max_length: size.max_length,
            max_tokens: size.batch_tokens,
            micro_batches: 1,
        };
        let mut source = Mixture::new(recipe.kind, &settings, self.special.clone(), &text, seed)
            .map_err(failed(recipe.name))?;
        let mut config = self.settings(rate, size.steps, size.batch_tokens, seed);
        if !recipe.transformer {
            config.param_groups.push(ParamGroup {
                pattern: "f_proj".into(),
                lr_scale: 1.0,
                weight_decay: Some(0.0),
            });
        }
        let mut trajectory = Vec::new();
        let mut observe = |event: &Event| {
            if let Event::Measured { step, metrics, .. } = event {
                trajectory.push((*step, metrics.clone()));
            }
        };
        let train = |backbone: &dyn Backbone, adapter: &mut dyn Adapter| {
            let run = TrainRun {
                backbone,
                adapter,
                head: None,
                train: &self.corpus.training,
                validation: None,
                config: &config,
                folder: None,
                resume: false,
                stop: self.request.stop,
                observer: &mut observe,
            };
            train_from(run, self.objective(recipe), &mut source)
        };
        let trained = self.run(recipe, &start, train, seed)?;
        Ok((trained, trajectory))
    }

    /// A model trained on with phone books.
    pub(super) fn on_books(
        &self,
        recipe: Recipe,
        start: &Weights,
        rate: f64,
        seed: u64,
    ) -> Result<Option<Weights>, StudyError> {
        let size = self.size;
        let (mut books, mut tokens, budget) = (
            Vec::new(),
            0,
            size.book_tokens * (size.book_steps as usize + 1),
        );
        while tokens < budget {
            let book = self
                .book
                .example(size, "training", books.len() as u64, seed);
            tokens += book.len();
            books.push(book);
        }
        let config = self.settings(rate, size.book_steps, size.book_tokens, seed);
        let train = |backbone: &dyn Backbone, adapter: &mut dyn Adapter| {
            let run = TrainRun {
                backbone,
                adapter,
                head: None,
                train: &books,
                validation: None,
                config: &config,
                folder: None,
                resume: false,
                stop: self.request.stop,
                observer: &mut |_: &Event| {},
            };
            train_with(run, self.objective(recipe))
        };
        self.run(recipe, start, train, seed)
    }

    /// Books that are measured on.
    pub(super) fn books(&self, part: Part) -> Vec<Tokenized> {
        let (name, seed) = match part {
            Part::Tuning => ("tuning", 1),
            Part::Test => ("test", 2),
        };
        let number = 0..self.size.measured as u64;
        number
            .map(|i| self.book.example(self.size, name, i, seed))
            .collect()
    }

    /// Examples of selective copying of held-out text, all arms of the class in turn.
    pub(super) fn copies(&self) -> Vec<Tokenized> {
        let arms = find("selective_copying").map_or_else(Vec::new, |class| (class.grid)(0.125));
        let example = |i: usize| {
            let mut rng = named_rng(7, &format!("selective copying {i}"));
            let arm = arms[i % arms.len()].as_ref();
            let (text, longest) = (&self.streams[1], self.size.max_length);
            fitted(arm, text, &self.special, longest, &mut rng).map(|found| found.example)
        };
        (0..self.size.measured).filter_map(example).collect()
    }

    /// Mean loss of the next token of held-out text, as the arms of that class have it.
    pub(super) fn text_loss(&self, recipe: Recipe, model: &Weights) -> Result<f64, StudyError> {
        let pieces = &self.corpus.validation;
        let examples = as_next_tokens(pieces, &self.special, self.size.max_length);
        self.loss(recipe, model, &examples)
    }

    /// Mean loss of the targets.
    pub(super) fn loss(
        &self,
        recipe: Recipe,
        model: &Weights,
        examples: &[Tokenized],
    ) -> Result<f64, StudyError> {
        let arm = recipe.name;
        let backbone = model.build(&self.device).map_err(failed(arm))?;
        let found = evaluate_observed(
            backbone.as_ref(),
            None,
            self.objective(recipe).as_ref(),
            examples,
            4 * self.size.batch_tokens,
            self.request.stop,
            &mut |_, _| {},
        );
        match found {
            Ok(Some(evaluation)) => Ok(evaluation.metrics["loss"]),
            Ok(None) => Err(StudyError::Stopped),
            Err(error) => Err(StudyError::arm(arm, error)),
        }
    }

    /// For each example which of its targets are the most likely token, given those before.
    fn right(
        &self,
        recipe: Recipe,
        model: &Weights,
        examples: &[Tokenized],
    ) -> Result<Vec<Vec<bool>>, StudyError> {
        let arm = recipe.name;
        let backbone = model.build(&self.device).map_err(failed(arm))?;
        let mut all = Vec::with_capacity(examples.len());
        for chunk in examples.chunks(16) {
            self.request.check()?;
            let ids: Vec<u32> = chunk.iter().flat_map(|e| e.input_ids.clone()).collect();
            let lengths: Vec<usize> = chunk.iter().map(Tokenized::len).collect();
            let prefix = |e: &Tokenized| prefix_length(&e.input_ids, self.special.generate);
            let mask = match recipe.bidirectional {
                true => AttentionMask::Prefix(chunk.iter().map(prefix).collect()),
                false => AttentionMask::Model,
            };
            let mut none = NoAdapter;
            let control = AttentionControl {
                mask,
                ..AttentionControl::default()
            };
            let input = Input::new(&ids, &lengths);
            let hidden = match recipe.bidirectional {
                true => {
                    let mut pass = ControlledPass::new(&mut none, control);
                    backbone.forward(&input, &mut pass, None)
                }
                false => backbone.forward(&input, &mut none, None),
            };
            let hidden = hidden.map_err(failed(arm))?;
            let mut start = 0;
            for example in chunk {
                let Target::Tokens(targets) = &example.labels else {
                    continue;
                };
                let places = (0..targets.len()).filter(|i| targets[*i] != IGNORE_INDEX);
                let places: Vec<usize> = places.collect();
                let rows: Vec<usize> = places.iter().map(|i| start + i).collect();
                let rows = select_rows(hidden.clone(), &rows);
                let logits = backbone.logits(rows, Rows::Chosen, &mut NoAdapter);
                let logits = logits.ok_or_else(|| failed(arm)("there is no output head"))?;
                let [_, vocab] = logits.dims();
                let logits = to_vec(logits);
                let found = logits.chunks(vocab).map(|row| {
                    let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
                    best.map_or(0, |(id, _)| id) as i32
                });
                let found = found.zip(&places).map(|(id, place)| id == targets[*place]);
                all.push(found.collect());
                start += example.len();
            }
        }
        Ok(all)
    }

    /// Share of the tokens of targets that are right.
    pub(super) fn token_accuracy(
        &self,
        recipe: Recipe,
        model: &Weights,
        examples: &[Tokenized],
    ) -> Result<f64, StudyError> {
        let right = self.right(recipe, model, examples)?.concat();
        Ok(right.iter().filter(|r| **r).count() as f64 / right.len().max(1) as f64)
    }

    /// Share of the numbers of phone books of which every digit is right.
    pub(super) fn number_accuracy(
        &self,
        recipe: Recipe,
        model: &Weights,
        books: &[Tokenized],
    ) -> Result<f64, StudyError> {
        let right = self.right(recipe, model, books)?.concat();
        let numbers = right.chunks(DIGITS);
        let count = numbers.len().max(1) as f64;
        Ok(numbers.filter(|digits| digits.iter().all(|r| *r)).count() as f64 / count)
    }
}
