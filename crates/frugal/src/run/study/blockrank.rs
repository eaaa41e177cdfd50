//! BlockRank: what ranking from attention is worth after little training, and what it costs.

use std::sync::Arc;
use std::time::Instant;

use burn::prelude::Device;
use frugal_adapt::methods::low_rank::lora::{Lora, LoraConfig};
use frugal_models::load::Lookup;
use frugal_nn::{ActiveAdapters, AdapterSet, LoadedAdapter, named_rng};
use frugal_retrieve::blockrank::{BlockPrompts, BlockRank, BlockRankObjective, BlockRankOptions};
use frugal_train::{Event, Tokenized, TrainConfig, TrainRun, train_with};
use rand::seq::SliceRandom;

use super::scifact::{Case, Scifact};
use super::{Outcome, Study, StudyError, StudyEvent, StudyKind, StudyRequest};
use crate::run::{OpenOptions, Opened, open};

/// The study.
pub static BLOCKRANK: Study = Study {
    name: "blockrank",
    kind: StudyKind::Retrieve,
    about: "P@1 and MRR of ranking by attention with SmolLM2-135M on SciFact: untrained, trained with blocks, without the auxiliary loss, with full attention; seconds for 8 to 256 documents",
    source: "Gupta et al., Scalable In-context Ranking with Generative Models, 2025, arXiv 2510.05396 (nilesh2797/BlockRank)",
    run,
};

const MODEL: &str = "smollm2-135m";
/// Documents of a prompt.
const COUNT: usize = 8;
/// Tokens of a document.
const DOCUMENT: usize = 64;
/// Numbers of documents whose time is taken.
const SIZES: [usize; 6] = [8, 16, 32, 64, 128, 256];

fn failed<E: std::error::Error + Send + Sync + 'static>(error: E) -> StudyError {
    StudyError::arm(MODEL, error)
}

/// What is trained in an arm.
fn arms() -> [(&'static str, Option<BlockRankOptions>); 4] {
    let blocks = BlockRankOptions {
        document_tokens: DOCUMENT,
        ..BlockRankOptions::default()
    };
    let without = BlockRankOptions {
        auxiliary_weight: 0.0,
        ..blocks.clone()
    };
    let full = BlockRankOptions {
        full_attention: true,
        auxiliary_weight: 0.0,
        ..blocks.clone()
    };
    [
        ("blocks, untrained", None),
        ("blocks", Some(blocks)),
        ("blocks without auxiliary loss", Some(without)),
        ("full attention", Some(full)),
    ]
}

fn run(
    request: &StudyRequest<'_>,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<Outcome, StudyError> {
    let sizes = if request.smoke { &SIZES[..2] } else { &SIZES };
    let steps = request.seeds.len() * (arms().len() + sizes.len());
    observe(StudyEvent::Planned {
        steps: steps as u64,
    });
    let data = Scifact::read(request)?;
    let lookup = Lookup::default();
    let options = OpenOptions {
        needs_tokenizer: true,
        ..OpenOptions::new(&lookup, Device::flex())
    };
    let opened = open(MODEL, &[], &options, &mut |_| {}).map_err(failed)?;
    let (queries, prompts) = if request.smoke { (2, 2) } else { (60, 400) };
    let mut outcome = Outcome::default();
    outcome.notes.push(format!(
        "{MODEL}, SciFact: BM25's first {COUNT} documents that hold an answer, shuffled, {DOCUMENT} tokens each; LoRA on {prompts} training prompts, {queries} test queries a seed."
    ));
    for &seed in &request.seeds {
        let test = data.cases(&data.test, seed, queries, COUNT)?;
        let train = data.cases(&data.train, seed, prompts, COUNT)?;
        for (arm, settings) in arms() {
            request.check()?;
            let set = match &settings {
                Some(options) => trained(&opened, &data, &train, options, seed, request)?,
                None => AdapterSet::default(),
            };
            let options = settings.unwrap_or(BlockRankOptions {
                document_tokens: DOCUMENT,
                ..BlockRankOptions::default()
            });
            let ranker = ranker(&opened, set, &options)?;
            let ranks = test
                .iter()
                .map(|case| reciprocal_rank(&ranker, &data, case, seed));
            let ranks = ranks.collect::<Result<Vec<f64>, StudyError>>()?;
            let first = ranks.iter().filter(|&&r| r == 1.0).count();
            let count = ranks.len().max(1) as f64;
            outcome.add(arm, "MRR", seed, ranks.iter().sum::<f64>() / count);
            outcome.add(arm, "P@1", seed, first as f64 / count);
            observe(StudyEvent::Step {
                what: format!("{arm}, seed {seed}"),
            });
        }
        latency(&opened, &data, sizes, seed, request, &mut outcome, observe)?;
    }
    let blocks = "blocks";
    outcome.judge(
        "training with blocks raises the reciprocal rank",
        "MRR",
        blocks,
        "blocks, untrained",
        false,
    );
    outcome.judge(
        "the auxiliary loss raises it",
        "MRR",
        blocks,
        "blocks without auxiliary loss",
        false,
    );
    outcome.judge(
        "blocks rank no worse than full attention",
        "MRR",
        blocks,
        "full attention",
        false,
    );
    Ok(outcome)
}

fn ranker<'o>(
    opened: &'o Opened,
    set: AdapterSet,
    options: &BlockRankOptions,
) -> Result<BlockRank<'o>, StudyError> {
    let choice = match set.names().first() {
        Some(name) => ActiveAdapters::One((*name).to_owned()),
        None => ActiveAdapters::Base,
    };
    let tokenizer = opened.files.tokenizer().map_err(failed)?;
    let backbone = opened.backbone.clone();
    BlockRank::new(backbone, Arc::new(set), choice, tokenizer, options).map_err(failed)
}

/// The documents of a case in an order of its own, and which of them answer.
fn shuffled<'d>(data: &'d Scifact, case: &Case, seed: u64) -> (Vec<&'d str>, Vec<usize>) {
    let mut order: Vec<usize> = (0..case.candidates.len()).collect();
    order.shuffle(&mut named_rng(
        seed,
        &format!("blockrank order {}", case.query),
    ));
    let texts = order
        .iter()
        .map(|&i| data.texts[case.candidates[i]].as_str());
    let positives = (0..order.len()).filter(|&place| case.grades[order[place]] > 0.0);
    (texts.collect(), positives.collect())
}

fn reciprocal_rank(
    ranker: &BlockRank<'_>,
    data: &Scifact,
    case: &Case,
    seed: u64,
) -> Result<f64, StudyError> {
    let (texts, positives) = shuffled(data, case, seed);
    let scores = ranker.scores(&case.query, &texts).map_err(failed)?;
    let best = positives
        .iter()
        .map(|&p| scores[p])
        .fold(f32::NEG_INFINITY, f32::max);
    let ahead = (0..scores.len()).filter(|i| !positives.contains(i) && scores[*i] >= best);
    Ok(1.0 / (1 + ahead.count()) as f64)
}

fn trained(
    opened: &Opened,
    data: &Scifact,
    cases: &[Case],
    options: &BlockRankOptions,
    seed: u64,
    request: &StudyRequest<'_>,
) -> Result<AdapterSet, StudyError> {
    let tokenizer = opened.files.tokenizer().map_err(failed)?;
    let prompts = BlockPrompts::new(tokenizer, options);
    let examples = cases.iter().map(|case| {
        let (texts, positives) = shuffled(data, case, seed);
        BlockRankObjective::example(&prompts, &case.query, &texts, &positives)
    });
    let examples: Vec<Tokenized> = examples.collect::<Result<_, _>>().map_err(failed)?;
    let objective = BlockRankObjective::new(options.clone())
        .map_err(|reason| StudyError::arm(MODEL, reason))?;
    let mut adapter = Lora::new(LoraConfig::default(), &opened.context()).map_err(failed)?;
    let config = TrainConfig {
        lr: 5e-4,
        epochs: 1.0,
        batch_size: 4,
        seed,
        ..TrainConfig::default()
    };
    let run = TrainRun {
        backbone: opened.backbone.as_ref(),
        adapter: &mut adapter,
        head: None,
        train: &examples,
        validation: None,
        config: &config,
        folder: None,
        resume: false,
        stop: request.stop,
        observer: &mut |_: &Event| {},
    };
    train_with(run, Box::new(objective)).map_err(failed)?;
    request.check()?;
    let mut set = AdapterSet::default();
    let adapter = LoadedAdapter {
        adapter: Box::new(adapter),
        head: None,
    };
    set.insert("trained", adapter);
    Ok(set)
}

/// Seconds of one ranking, by blocks and by full attention up to the model's positions.
fn latency(
    opened: &Opened,
    data: &Scifact,
    sizes: &[usize],
    seed: u64,
    request: &StudyRequest<'_>,
    outcome: &mut Outcome,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<(), StudyError> {
    for &size in sizes {
        request.check()?;
        let texts: Vec<&str> = data.texts.iter().take(size).map(String::as_str).collect();
        for (arm, full_attention) in [("blocks", false), ("full attention", true)] {
            let options = BlockRankOptions {
                document_tokens: DOCUMENT,
                full_attention,
                ..BlockRankOptions::default()
            };
            let ranker = ranker(opened, AdapterSet::default(), &options)?;
            let prompt = ranker.prompts().prompt("wing flutter", &texts);
            let prompt = prompt.map_err(failed)?;
            if full_attention && prompt.ids.len() > opened.backbone.info().max_sequence {
                continue;
            }
            let start = Instant::now();
            ranker.scores_of(&prompt).map_err(failed)?;
            let seconds = start.elapsed().as_secs_f64();
            let arm = format!("{arm}, {size} documents");
            outcome.add(&arm, "seconds", seed, seconds);
            outcome.add(&arm, "tokens", seed, prompt.ids.len() as f64);
        }
        observe(StudyEvent::Step {
            what: format!("time of {size} documents, seed {seed}"),
        });
    }
    Ok(())
}
