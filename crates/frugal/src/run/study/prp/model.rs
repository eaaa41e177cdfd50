//! A small language model as comparator, as it is and tuned to compare.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use burn::prelude::Device;
use frugal_adapt::methods::low_rank::lora::{Lora, LoraConfig};
use frugal_models::load::Lookup;
use frugal_nn::{ActiveAdapters, AdapterSet, LoadedAdapter};
use frugal_retrieve::RetrieveError;
use frugal_retrieve::prp::{
    Answer, Comparator, Judge, PrpAlgorithm, PrpModel, PrpOptions, PrpPrompt, rank,
};
use frugal_train::{Event, Tokenized, TrainConfig, TrainRun, train};

use super::ranked::{ALGORITHMS, ORDERS, mean, ndcg, order, ranked, spread};
use crate::run::study::scifact::{Case, Scifact};
use crate::run::study::{Outcome, StudyError, StudyEvent, StudyRequest};
use crate::run::{OpenOptions, Opened, open};

const MODEL: &str = "smollm2-135m";
/// Candidates of a query.
const COUNT: usize = 10;
/// Tokens of a passage.
const PASSAGE: usize = 64;

/// Queries of a seed.
fn queries(request: &StudyRequest<'_>) -> usize {
    if request.smoke { 1 } else { 25 }
}

pub(super) fn steps(request: &StudyRequest<'_>) -> u64 {
    (request.seeds.len() * (2 * queries(request) + 1)) as u64
}

fn failed<E: std::error::Error + Send + Sync + 'static>(error: E) -> StudyError {
    StudyError::arm(MODEL, error)
}

pub(super) fn run(
    request: &StudyRequest<'_>,
    outcome: &mut Outcome,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<(), StudyError> {
    let data = Scifact::read(request)?;
    let lookup = Lookup::default();
    let options = OpenOptions {
        needs_tokenizer: true,
        ..OpenOptions::new(&lookup, Device::flex())
    };
    let opened = open(MODEL, &[], &options, &mut |_| {}).map_err(failed)?;
    outcome.notes.push(format!(
        "Model: {MODEL} on SciFact, {} test queries a seed of which BM25 finds an answer among its first {COUNT}, passages of {PASSAGE} tokens; tuned: LoRA, 200 steps of 4 comparisons from training queries.",
        queries(request)
    ));
    for &seed in &request.seeds {
        let cases = data.cases(&data.test, seed, queries(request), COUNT)?;
        let bench = Bench {
            opened: &opened,
            data: &data,
            cases: &cases,
            seed,
            request,
        };
        let untuned = measure(&bench, MODEL, Arc::default(), outcome, observe)?;
        let set = tuned(&opened, &data, seed, request)?;
        observe(StudyEvent::Step {
            what: format!("tuned with seed {seed}"),
        });
        let tuned = measure(
            &bench,
            &format!("{MODEL} tuned"),
            Arc::new(set),
            outcome,
            observe,
        )?;
        let gained: Vec<f64> = tuned.iter().zip(&untuned).map(|(t, u)| t - u).collect();
        outcome.judge_differences(
            format!("seed {seed}: tuning the comparator raises nDCG@10 of all pairs"),
            &gained,
        );
    }
    Ok(())
}

/// What is measured of one seed.
struct Bench<'a> {
    opened: &'a Opened,
    data: &'a Scifact,
    cases: &'a [Case],
    seed: u64,
    request: &'a StudyRequest<'a>,
}

/// Every algorithm from every order; nDCG@10 of all pairs by query.
fn measure(
    bench: &Bench<'_>,
    arm: &str,
    set: Arc<AdapterSet>,
    outcome: &mut Outcome,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<Vec<f64>, StudyError> {
    let &Bench {
        opened,
        data,
        cases,
        seed,
        request,
    } = bench;
    let tokenizer = opened.files.tokenizer().map_err(failed)?;
    let choice = match set.names().first() {
        Some(name) => ActiveAdapters::One((*name).to_owned()),
        None => ActiveAdapters::Base,
    };
    let options = PrpOptions {
        passage_tokens: PASSAGE,
        ..PrpOptions::default()
    };
    let mut model =
        PrpModel::new(opened.backbone.clone(), set, choice, tokenizer, options).map_err(failed)?;
    let mut found: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
    let (mut conflicts, mut circles, mut computed, mut seconds) = (vec![], vec![], vec![], vec![]);
    let mut first_stage = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        request.check()?;
        let texts: Vec<&str> = case
            .candidates
            .iter()
            .map(|&i| data.texts[i].as_str())
            .collect();
        let start = Instant::now();
        let mut asked = Recorded {
            inner: model.query(&case.query, &texts).map_err(failed)?,
            answers: BTreeMap::new(),
        };
        let mut judge = Judge::new(&mut asked);
        rank(PrpAlgorithm::Allpair, texts.len(), 10, &mut judge).map_err(failed)?;
        conflicts.extend(judge.conflict_rate());
        circles.extend(judge.cycle_rate());
        seconds.push(start.elapsed().as_secs_f64());
        let [own, all] = asked.inner.tokens();
        computed.push(own as f64 / all.max(1) as f64);
        let answers = asked.answers;
        first_stage.push(ndcg(&case.grades, &case.all));
        for (name, algorithm) in ALGORITHMS {
            for from in ORDERS {
                let start = order(from, texts.len(), seed, &case.query);
                let (list, _) = ranked(algorithm, &answers, &start);
                let list: Vec<f64> = list.iter().map(|&i| case.grades[i]).collect();
                found
                    .entry((name, from))
                    .or_default()
                    .push(ndcg(&list, &case.all));
            }
        }
        observe(StudyEvent::Step {
            what: format!("{arm}, seed {seed}, query {} of {}", i + 1, cases.len()),
        });
    }
    outcome.add("BM25", "nDCG@10", seed, mean(&first_stage));
    let mut spreads = Vec::new();
    for (name, _) in ALGORITHMS {
        let mut by_order = Vec::new();
        for from in ORDERS {
            let values = found.get(&(name, from)).cloned().unwrap_or_default();
            outcome.add(
                &format!("{arm}: {name}, {from}"),
                "nDCG@10",
                seed,
                mean(&values),
            );
            by_order.push(values);
        }
        spreads.push(spread(&by_order));
    }
    for (measure, values) in [
        ("pairs that conflict", &conflicts),
        ("triples in a circle", &circles),
        ("share of prompt tokens computed", &computed),
        ("seconds per query", &seconds),
    ] {
        outcome.add(&format!("{arm}: all answers"), measure, seed, mean(values));
    }
    let differences: Vec<f64> = spreads[2]
        .iter()
        .zip(&spreads[0])
        .map(|(s, a)| s - a)
        .collect();
    outcome.judge_differences(
        format!("{arm}, seed {seed}: the first order matters less to all pairs than to sliding-10"),
        &differences,
    );
    Ok(found
        .remove(&("all pairs", "first stage"))
        .unwrap_or_default())
}

/// Keeps what was answered.
struct Recorded<C> {
    inner: C,
    answers: BTreeMap<(usize, usize), Answer>,
}

impl<C: Comparator<Error = RetrieveError>> Comparator for Recorded<C> {
    type Error = RetrieveError;

    fn answer(&mut self, questions: &[(usize, usize)]) -> Result<Vec<Answer>, RetrieveError> {
        let found = self.inner.answer(questions)?;
        self.answers
            .extend(questions.iter().copied().zip(found.iter().copied()));
        Ok(found)
    }
}

/// LoRA that learns to name the passage that answers a training query.
fn tuned(
    opened: &Opened,
    data: &Scifact,
    seed: u64,
    request: &StudyRequest<'_>,
) -> Result<AdapterSet, StudyError> {
    let steps = if request.smoke { 1 } else { 200 };
    let tokenizer = opened.files.tokenizer().map_err(failed)?;
    let options = PrpOptions {
        passage_tokens: PASSAGE,
        ..PrpOptions::default()
    };
    let prompt = PrpPrompt::new(tokenizer, &options).map_err(failed)?;
    let mut examples: Vec<Tokenized> = Vec::new();
    for case in data.cases(&data.train, seed, 2 * steps, COUNT)? {
        let right = case.grades.iter().position(|&g| g > 0.0);
        let wrong = case.grades.iter().position(|&g| g <= 0.0);
        if let Some((right, wrong)) = right.zip(wrong) {
            let text = |i: usize| data.texts[case.candidates[i]].as_str();
            examples.extend(
                prompt
                    .examples(&case.query, text(right), text(wrong))
                    .map_err(failed)?,
            );
        }
    }
    let mut adapter = Lora::new(LoraConfig::default(), &opened.context()).map_err(failed)?;
    let config = TrainConfig {
        max_steps: steps as u64,
        batch_size: 4,
        lr: 5e-4,
        seed,
        ..TrainConfig::default()
    };
    train(TrainRun {
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
    })
    .map_err(failed)?;
    request.check()?;
    let mut set = AdapterSet::default();
    set.insert(
        "tuned",
        LoadedAdapter {
            adapter: Box::new(adapter),
            head: None,
        },
    );
    Ok(set)
}
