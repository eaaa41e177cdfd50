//! Models that score texts.

use std::path::Path;

use frugal_index::anncur::{PairScorer, best};
use frugal_models::Quantize;
use frugal_models::load::Lookup;
use frugal_retrieve::{EmbedOptions, Encoder, EncoderRequest};

use crate::device::device;
use crate::run::{Rerank, Reranker};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A cross-encoder over numbered texts.
pub(super) struct CrossEncoder<'a> {
    reranker: Reranker,
    queries: &'a [String],
    items: &'a [String],
}

impl<'a> CrossEncoder<'a> {
    pub(super) fn open(
        model: &Path,
        queries: &'a [String],
        items: &'a [String],
        lookup: &Lookup,
    ) -> Result<Self, Failure> {
        let model = model.to_string_lossy();
        Ok(Self {
            reranker: Reranker::open(&model, None, "cpu", lookup, &mut |_| {})?,
            queries,
            items,
        })
    }
}

impl PairScorer for CrossEncoder<'_> {
    fn score(&mut self, query: usize, items: &[usize]) -> Result<Vec<f32>, Failure> {
        let query = self.queries.get(query).ok_or("no such query")?;
        let items = items.iter().map(|item| self.items.get(*item));
        let items: Option<Vec<&str>> = items.map(|item| item.map(String::as_str)).collect();
        let items = items.ok_or("no such item")?;
        let scores = self.reranker.scores(query, &items, &mut |_| true)?;
        Ok(match self.reranker.scale() {
            // The order is the same, and logits are what a few factors can explain.
            "probability" => scores.into_iter().map(logit).collect(),
            "tanh" => scores.into_iter().map(f32::atanh).collect(),
            _ => scores,
        })
    }
}

fn logit(probability: f32) -> f32 {
    let p = f64::from(probability).clamp(1e-12, 1.0 - 1e-12);
    (p / (1.0 - p)).ln() as f32
}

/// Items by the cosine of a bi-encoder, for each query.
pub(super) fn dense_rankings(
    queries: &[String],
    items: &[String],
) -> Result<Vec<Vec<usize>>, Failure> {
    let request = EncoderRequest {
        model: "minilm-l6".into(),
        adapter: None,
        max_length: None,
        quantize: Quantize::None,
    };
    let encoder = Encoder::open(&request, &Lookup::default(), &device("cpu")?)?;
    let options = EmbedOptions {
        normalize: true,
        ..EmbedOptions::default()
    };
    let embed = |texts: &[String]| {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        encoder.embed(&texts, &options, &mut |_| true)
    };
    let (queries, items) = (embed(queries)?, embed(items)?);
    let rankings = queries.rows().map(|query| {
        let dot = |item: &[f32]| -> f64 {
            let pairs = item.iter().zip(query);
            pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let scores: Vec<f64> = items.rows().map(dot).collect();
        best(&scores, scores.len())
    });
    Ok(rankings.collect())
}
