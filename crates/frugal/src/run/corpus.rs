//! The text that a model is pre-trained on: read, held out, cut into tokens.

use std::path::Path;

use frugal_core::data::{self, Dataset, Example, LoadOptions};
use frugal_core::encode::{IGNORE_INDEX, Target, Tokenized};
use frugal_core::tokenizer::{TextTokenizer, train_bpe};
use frugal_eval::report::DatasetInfo;

use super::held_out::hold_out;
use super::pretrain_config::{END, PretrainConfig};
use super::{Observe, Progress, RunError};

/// The text of a run as tokens, and what makes tokens of it.
pub(super) struct Corpus {
    pub(super) tokenizer: TextTokenizer,
    pub(super) training: Vec<Tokenized>,
    pub(super) validation: Vec<Tokenized>,
    sha256: String,
}

impl Corpus {
    /// Reads the text, trains the tokenizer, and tells of both.
    pub(super) fn read(config: &PretrainConfig, observe: Observe<'_>) -> Result<Self, RunError> {
        Self::read_with(config, None, observe)
    }

    /// [`Corpus::read`] with a tokenizer that there is, if one is given.
    pub(super) fn read_with(
        config: &PretrainConfig,
        given: Option<&TextTokenizer>,
        observe: Observe<'_>,
    ) -> Result<Self, RunError> {
        observe(&Progress::Begin {
            what: format!("reading {}", config.data),
        });
        let dataset = data::load(
            Path::new(&config.data),
            &LoadOptions {
                format: Some(data::Format::Text),
                ..LoadOptions::default()
            },
        )?;
        let help = "more text, or another `validation_share`";
        let [training, validation] =
            hold_out(&dataset, config.validation_share, config.seed, help)?;
        let tokenizer = match given {
            Some(tokenizer) => tokenizer.clone(),
            None => {
                let size = config.shape.vocab_size;
                observe(&Progress::Begin {
                    what: format!("training a tokenizer of {size} tokens"),
                });
                train_bpe(texts(&training).map(str::to_owned), size, &[END])?
            }
        };
        let corpus = Self {
            training: pieces(&training, &tokenizer, config.max_length)?,
            validation: pieces(&validation, &tokenizer, config.max_length)?,
            sha256: dataset.sha256,
            tokenizer,
        };
        let part = |name: &str, part: &[Tokenized]| {
            let lengths = || part.iter().map(Tokenized::len);
            let longest = lengths().max().unwrap_or(0);
            (name.to_owned(), part.len(), lengths().sum(), longest)
        };
        let first = corpus.training.first();
        observe(&Progress::Data {
            parts: vec![
                part("train", &corpus.training),
                part("validation", &corpus.validation),
            ],
            truncated: 0,
            example: first
                .map(|e| frugal_core::encode::show(e, &corpus.tokenizer, false))
                .transpose()?
                .unwrap_or_default(),
        });
        Ok(corpus)
    }

    pub(super) fn describe(&self, config: &PretrainConfig) -> Vec<DatasetInfo> {
        let part = |split: &str, examples: usize| DatasetInfo {
            split: split.into(),
            source: config.data.clone(),
            examples,
            sha256: self.sha256.clone(),
        };
        vec![
            part("train", self.training.len()),
            part("validation", self.validation.len()),
        ]
    }
}

fn texts(dataset: &Dataset) -> impl Iterator<Item = &str> + Send {
    dataset.examples.iter().filter_map(|e| {
        if let Example::Text { text } = e {
            Some(text.as_str())
        } else {
            None
        }
    })
}

/// Documents, each ended by [`END`] or what ends texts for a given tokenizer, in pieces of at most `max_length` tokens.
fn pieces(
    dataset: &Dataset,
    tokenizer: &TextTokenizer,
    max_length: usize,
) -> Result<Vec<Tokenized>, RunError> {
    let end = tokenizer
        .id(END)
        .or_else(|| tokenizer.eos_ids().first().copied());
    let mut out = Vec::new();
    for text in texts(dataset) {
        let mut ids = tokenizer.encode(text, false)?;
        ids.extend(end);
        for piece in ids.chunks(max_length).filter(|p| p.len() > 1) {
            let targets = piece[1..]
                .iter()
                .map(|&id| id as i32)
                .chain([IGNORE_INDEX])
                .collect();
            out.push(Tokenized {
                input_ids: piece.to_vec(),
                token_type_ids: Vec::new(),
                labels: Target::Tokens(targets),
            });
        }
    }
    Ok(out)
}
