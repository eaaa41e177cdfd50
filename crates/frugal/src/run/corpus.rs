//! The text that a model is pre-trained on: read, held out, cut into tokens.

use std::path::Path;

use frugal_core::data::{self, Dataset, Example, LoadOptions};
use frugal_core::encode::{IGNORE_INDEX, Target, Tokenized};
use frugal_core::tokenizer::{TextTokenizer, train_bpe};
use frugal_eval::report::DatasetInfo;

use super::decay_data::documents;
use super::held_out::hold_out;
use super::pretrain_config::{END, PretrainConfig};
use super::{Observe, Progress, RunError};

/// The text of a run as tokens, and what makes tokens of it.
pub(super) struct Corpus {
    pub(super) tokenizer: TextTokenizer,
    /// Those of `decay_data` behind those of the corpus.
    pub(super) training: Vec<Tokenized>,
    /// How many examples each of `decay_data` has, and the fingerprint of its file.
    decay: Vec<(usize, String)>,
    pub(super) validation: Vec<Tokenized>,
    sha256: String,
}

impl Corpus {
    /// Reads the text, trains the tokenizer, and tells of both.
    pub(super) fn read(config: &PretrainConfig, observe: Observe<'_>) -> Result<Self, RunError> {
        Self::read_with(config, None, &[], observe)
    }

    /// [`Corpus::read`] with a tokenizer that there is, if one is given; a new one has these special
    /// tokens too.
    pub(super) fn read_with(
        config: &PretrainConfig,
        given: Option<&TextTokenizer>,
        special: &[String],
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
                {
                    let special = special.iter().map(String::as_str);
                    let special: Vec<&str> = std::iter::once(END).chain(special).collect();
                    train_bpe(texts(&training).map(str::to_owned), size, &special)?
                }
            }
        };
        let max_length = config.max_length;
        let mut learnt = pieces(texts(&training), &tokenizer, max_length)?;
        let mut decay = Vec::new();
        for part in &config.decay_data {
            let (documents, sha256) = documents(part, observe)?;
            let documents = documents.iter().map(String::as_str);
            let more = pieces(documents, &tokenizer, max_length)?;
            decay.push((more.len(), sha256));
            learnt.extend(more);
        }
        let corpus = Self {
            training: learnt,
            decay,
            validation: pieces(texts(&validation), &tokenizer, max_length)?,
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

    /// How many examples there are of the text, and of each of `decay_data`.
    pub(super) fn parts(&self) -> (usize, Vec<usize>) {
        let more: Vec<usize> = self.decay.iter().map(|(examples, _)| *examples).collect();
        (self.training.len() - more.iter().sum::<usize>(), more)
    }

    pub(super) fn describe(&self, config: &PretrainConfig) -> Vec<DatasetInfo> {
        let part = |split: &str, source: &str, examples: usize, sha256: &str| DatasetInfo {
            split: split.into(),
            source: source.into(),
            examples,
            sha256: sha256.into(),
        };
        let sha256 = &self.sha256;
        let mut all = vec![
            part("train", &config.data, self.parts().0, sha256),
            part("validation", &config.data, self.validation.len(), sha256),
        ];
        for (given, (examples, sha256)) in config.decay_data.iter().zip(&self.decay) {
            all.push(part("decay", &given.data, *examples, sha256));
        }
        all
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
pub(super) fn pieces<'a>(
    documents: impl Iterator<Item = &'a str>,
    tokenizer: &TextTokenizer,
    max_length: usize,
) -> Result<Vec<Tokenized>, RunError> {
    let end = tokenizer
        .id(END)
        .or_else(|| tokenizer.eos_ids().first().copied());
    let mut out = Vec::new();
    for text in documents {
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
