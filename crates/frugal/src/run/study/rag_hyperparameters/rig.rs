//! The models of the study.

use frugal_core::tokenizer::TextTokenizer;
use frugal_models::load::Lookup;
use frugal_models::{LoadOptions, Quantize};
use frugal_retrieve::rag::{Chunker, Passage, SemanticOptions, Splitter, Units, semantic_chunks};
use frugal_retrieve::{EmbedOptions, Encoder, EncoderRequest, RetrieveError};

use super::super::StudyError;
use super::arms::{Arm, Cutter};
use crate::run::{OpenOptions, Opened, Reranker, open};

/// Encoder, generator and, where it is there, the cross-encoder.
const ENCODER: &str = "minilm-l6";
const GENERATOR: &str = "smollm2-135m";
const RERANKER: &str = "ms-marco-minilm-l12";

pub(super) struct Rig {
    pub(super) encoder: Encoder,
    pub(super) generator: Opened,
    pub(super) reranker: Option<Reranker>,
}

impl Rig {
    pub(super) fn open() -> Result<Self, StudyError> {
        let lookup = Lookup::default();
        let device = crate::device::device("cpu").map_err(|e| StudyError::arm("device", e))?;
        let request = EncoderRequest {
            model: ENCODER.into(),
            adapter: None,
            max_length: None,
            quantize: Quantize::None,
        };
        let encoder = Encoder::open(&request, &lookup, &device);
        let options = OpenOptions {
            load: LoadOptions {
                quantize: Quantize::Stored,
                ..LoadOptions::for_generation()
            },
            needs_tokenizer: true,
            ..OpenOptions::new(&lookup, device)
        };
        let generator = open(GENERATOR, &[], &options, &mut |_| {});
        Ok(Self {
            encoder: encoder.map_err(|e| StudyError::arm(ENCODER, e))?,
            generator: generator.map_err(|e| StudyError::arm(GENERATOR, e))?,
            reranker: Reranker::open(RERANKER, None, "cpu", &lookup, &mut |_| {}).ok(),
        })
    }

    pub(super) fn tokenizer(&self) -> Result<&TextTokenizer, StudyError> {
        let found = self.generator.files.tokenizer();
        found.map_err(|e| StudyError::arm(GENERATOR, e))
    }

    /// Unit vectors.
    pub(super) fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, RetrieveError> {
        let options = EmbedOptions {
            normalize: true,
            ..EmbedOptions::default()
        };
        let found = self.encoder.embed(texts, &options, &mut |_| true)?;
        Ok(found.rows().map(<[f32]>::to_vec).collect())
    }

    /// The chunks of a document, each with its bytes.
    pub(super) fn cut(
        &self,
        arm: &Arm,
        number: usize,
        text: &str,
    ) -> Result<Vec<Piece>, StudyError> {
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| StudyError::arm(arm.name(), e);
        let units = Units::tokens(text, self.tokenizer()?).map_err(|e| failed(e.into()))?;
        let chunker = |splitter| {
            Chunker::new(splitter, arm.size, arm.overlap_tokens()).map_err(|e| failed(e.into()))
        };
        let found = match arm.cutter {
            Cutter::Fixed => chunker(Splitter::Fixed)?.cut(text, &units),
            Cutter::Recursive => chunker(Splitter::Recursive)?.cut(text, &units),
            Cutter::Semantic(q) => {
                let options = SemanticOptions {
                    breakpoint: frugal_retrieve::rag::Breakpoint::Percentile(q.into()),
                    longest: Some(chunker(Splitter::Recursive)?),
                    ..SemanticOptions::default()
                };
                semantic_chunks(text, &units, &options, &mut |texts| self.embed(texts))
                    .map_err(|e| failed(e.into()))?
            }
        };
        let piece = |(i, bytes): (usize, std::ops::Range<usize>)| Piece {
            document: number,
            passage: Passage {
                id: format!("{number}#{i}"),
                document: number.to_string(),
                text: text[bytes.clone()].to_owned(),
                ..Passage::default()
            },
            bytes,
        };
        Ok(found.into_iter().enumerate().map(piece).collect())
    }
}

/// A chunk of a document.
#[derive(Clone)]
pub(super) struct Piece {
    pub(super) document: usize,
    pub(super) bytes: std::ops::Range<usize>,
    pub(super) passage: Passage,
}
