//! Data, and training and measuring models on them.

use std::path::Path;
use std::sync::Arc;

use burn::prelude::Device;
use frugal_adapt::methods::full::{Full, FullConfig};
use frugal_core::encode::Tokenized;
use frugal_core::tokenizer::TextTokenizer;
use frugal_models::merge::{self, Weights};
use frugal_models::random_weights;
use frugal_nn::{Adapter, Backbone, BuildContext};
use frugal_train::{
    CausalLm, Event, Scheduler, StopReason, TrainConfig, TrainError, TrainRun, evaluate_observed,
    train,
};

use super::size::Size;
use crate::run::corpus::{Corpus, pieces};
use crate::run::study::{StudyError, StudyRequest};
use crate::run::{PretrainConfig, width};

/// Share of the text that is not learnt from.
const HELD_OUT: f64 = 0.1;

/// Examples to learn from, to pick settings by, and to report.
pub(super) struct Parts {
    pub training: Vec<Tokenized>,
    tuning: Vec<Tokenized>,
    test: Vec<Tokenized>,
}

/// Which part of what is held out.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Tuning,
    Test,
}

impl Parts {
    fn new(training: Vec<Tokenized>, held_out: Vec<Tokenized>) -> Self {
        let (mut tuning, mut test) = (Vec::new(), Vec::new());
        for (i, piece) in held_out.into_iter().enumerate() {
            let part = if i % 2 == 0 { &mut tuning } else { &mut test };
            part.push(piece);
        }
        Self {
            training,
            tuning,
            test,
        }
    }
}

/// The texts as tokens, and how long is learnt from them.
pub(super) struct Rig<'a> {
    pub request: &'a StudyRequest<'a>,
    pub size: &'a Size,
    tokenizer: TextTokenizer,
    /// What models learn first.
    pub text: Parts,
    /// What they are to be good at in the end.
    pub target: Parts,
    /// Examples of both, those of the text first.
    pub both: Vec<Tokenized>,
    device: Device,
}

/// A model with what it has learnt.
pub(super) struct Trained {
    backbone: Arc<dyn Backbone>,
    adapter: Full,
}

fn failed<E>(arm: &str) -> impl Fn(E) -> StudyError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |error| StudyError::arm(arm, error)
}

impl<'a> Rig<'a> {
    /// Reads the texts; which parts are which does not depend on the seed of a run.
    pub(super) fn new(request: &'a StudyRequest<'a>, size: &'a Size) -> Result<Self, StudyError> {
        let path = request.data("tinyshakespeare/input.txt")?;
        let config = PretrainConfig {
            data: path.display().to_string(),
            validation_share: HELD_OUT,
            max_length: size.max_length,
            ..size.config(size.model, true)
        };
        let corpus = Corpus::read(&config, &mut |_| {}).map_err(failed("the text"))?;
        let target = |file: &str, count| {
            let path = request.data(format!("gsm8k/{file}.jsonl"))?;
            let documents = answers(&path, count)?;
            let documents = documents.iter().map(String::as_str);
            pieces(documents, &corpus.tokenizer, size.max_length).map_err(failed("the target"))
        };
        let [learnt, held_out] = size.documents;
        let target = Parts::new(target("train", learnt)?, target("test", held_out)?);
        let mut both = corpus.training.clone();
        both.extend(target.training.iter().cloned());
        Ok(Self {
            request,
            size,
            tokenizer: corpus.tokenizer,
            text: Parts::new(corpus.training, corpus.validation),
            target,
            both,
            device: Device::flex(),
        })
    }

    /// Tokens of the text to learn from, and of the target.
    pub(super) fn tokens(&self) -> [usize; 2] {
        [&self.text, &self.target].map(|part| part.training.iter().map(Tokenized::len).sum())
    }

    /// A new model of this width and depth.
    pub(super) fn fresh(
        &self,
        model: [usize; 2],
        rules: bool,
        seed: u64,
    ) -> Result<Weights, StudyError> {
        let config = self.size.config(model, rules).model(&self.tokenizer);
        let config = config.map_err(failed("a new model"))?;
        let tensors = random_weights(&config, seed, &self.device);
        Ok(Weights { config, tensors })
    }

    /// What holds for all runs: the optimizer of the paper's code of other models, 10 % of warm-up.
    pub(super) fn settings(&self, rate: f64, steps: u64, seed: u64) -> TrainConfig {
        TrainConfig {
            lr: rate,
            lr_scheduler_type: Scheduler::Cosine,
            max_steps: steps,
            max_tokens: self.size.batch_tokens,
            warmup_ratio: 0.0,
            warmup_steps: (self.size.lengths[0] / 10).min(steps / 10).max(1),
            min_lr_ratio: 0.1,
            load_best_model_at_end: false,
            logging_steps: steps,
            save_steps: u64::MAX,
            save_total_limit: 0,
            seed,
            ..PretrainConfig::default().train
        }
    }

    /// The model trained on from what is in `folder`, or from the start; nothing where the loss or a
    /// gradient was not finite.
    pub(super) fn trained(
        &self,
        arm: &str,
        start: &Weights,
        data: &[Tokenized],
        config: &TrainConfig,
        folder: Option<&Path>,
    ) -> Result<Option<Trained>, StudyError> {
        self.request.check()?;
        let backbone = start.build(&self.device).map_err(failed(arm))?;
        let context = BuildContext {
            info: backbone.info(),
            sites: backbone.sites(),
            backbone: Some(backbone.as_ref()),
            device: self.device.clone(),
            seed: config.seed,
            tokenize: None,
        };
        let mut adapter = Full::new(FullConfig {}, &context).map_err(failed(arm))?;
        width::scale_rates(&mut adapter, &start.config);
        let ending = train(TrainRun {
            backbone: backbone.as_ref(),
            adapter: &mut adapter,
            head: None,
            train: data,
            validation: None,
            config,
            folder,
            resume: true,
            stop: self.request.stop,
            observer: &mut |_: &Event| {},
        });
        match ending {
            Err(TrainError::NonFinite { .. } | TrainError::Diverged { .. }) => Ok(None),
            Err(error) => Err(StudyError::arm(arm, error)),
            Ok(summary) if summary.ending == StopReason::Interrupted => Err(StudyError::Stopped),
            Ok(_) => Ok(Some(Trained { backbone, adapter })),
        }
    }

    /// What a model has learnt as weights.
    pub(super) fn weights(&self, arm: &str, model: &Trained) -> Result<Weights, StudyError> {
        let adapter: &dyn Adapter = &model.adapter;
        merge::weights(model.backbone.as_ref(), Some(adapter)).map_err(failed(arm))
    }

    /// Mean loss of the next token.
    pub(super) fn loss(
        &self,
        arm: &str,
        model: &Trained,
        parts: &Parts,
        part: Part,
    ) -> Result<f64, StudyError> {
        let examples = match part {
            Part::Tuning => &parts.tuning,
            Part::Test => &parts.test,
        };
        let found = evaluate_observed(
            model.backbone.as_ref(),
            Some(&model.adapter as &dyn Adapter),
            &CausalLm::default(),
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
}

/// Questions with their answers, the first ones of a file of GSM8K.
fn answers(path: &Path, count: usize) -> Result<Vec<String>, StudyError> {
    let refused = |reason: String| StudyError::Data {
        path: path.to_owned(),
        reason,
    };
    let text = std::fs::read_to_string(path).map_err(|error| refused(error.to_string()))?;
    let mut documents = Vec::new();
    for (line, record) in text.lines().take(count).enumerate() {
        let record: serde_json::Value = serde_json::from_str(record)
            .map_err(|error| refused(format!("line {}: {error}", line + 1)))?;
        let [question, answer] = ["question", "answer"].map(|key| record[key].as_str());
        let (Some(question), Some(answer)) = (question, answer) else {
            let reason = format!("line {}: no `question` with an `answer`", line + 1);
            return Err(refused(reason));
        };
        documents.push(format!("{question}\n{answer}"));
    }
    Ok(documents)
}
