//! ANNCUR: items that a cross-encoder likes, found from few of its scores, at equal numbers of calls.

mod scorers;
mod tables;

use frugal_index::anncur::{
    AnchorChoice, Anncur, AnncurError, Answer, Counted, Depth, Options, ScoreTable, best, low_rank,
    recall, rerank, singular_values,
};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::{Outcome, Study, StudyError, StudyEvent, StudyKind, StudyRequest};
use tables::Case;

/// The study.
pub static ANNCUR: Study = Study {
    name: "anncur",
    kind: StudyKind::Retrieve,
    about: "Top-k-Recall under a cross-encoder against the number of its calls: CUR decomposition, with adaptive rounds, reranked first stages, and the best approximation of a rank",
    source: "Yadav et al., Efficient Nearest Neighbor Search for Cross-Encoder Models using Matrix Factorization, EMNLP 2022, arXiv 2210.12579 (iesl/anncur); adaptive rounds: arXiv 2305.02996",
    run,
};

/// Calls for a query.
const BUDGETS: [usize; 4] = [20, 50, 100, 200];
/// How much of the exact answer counts.
const DEPTHS: [usize; 2] = [1, 10];

fn run(
    request: &StudyRequest<'_>,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<Outcome, StudyError> {
    let mut outcome = Outcome::default();
    let mut cases = vec![tables::synthetic(request.smoke)?];
    match tables::real(request, observe)? {
        Ok(case) => cases.push(case),
        Err(left_out) => outcome.notes.push(left_out),
    }
    let steps = cases.len() * request.seeds.len();
    observe(StudyEvent::Planned {
        steps: steps as u64,
    });
    for case in &cases {
        outcome.notes.push(case.note.clone());
        outcome.notes.push(decay(case)?);
        for seed in &request.seeds {
            request.check()?;
            measure(case, *seed, &mut outcome)?;
            let what = format!("{}, seed {seed}", case.name);
            observe(StudyEvent::Step { what });
        }
        judge(case, &mut outcome);
    }
    Ok(outcome)
}

/// How fast singular values fall: what makes success or failure.
fn decay(case: &Case) -> Result<String, StudyError> {
    let failed = |e: AnncurError| StudyError::arm(&case.name, e);
    let values = singular_values(&case.table).map_err(failed)?;
    let total: f64 = values.iter().map(|v| v * v).sum();
    let mut sum = 0.0;
    let mut parts = Vec::new();
    for (i, value) in values.iter().enumerate() {
        sum += value * value;
        if [1, 5, 10, 20, 50, 100].contains(&(i + 1)) {
            parts.push(format!(
                "{}: {:.4}",
                i + 1,
                sum / total.max(f64::MIN_POSITIVE)
            ));
        }
    }
    Ok(format!(
        "{}: part of the squared norm of the scores in the first singular values: {}",
        case.name,
        parts.join(", ")
    ))
}

/// Every arm at every budget, over queries that are not anchors.
fn measure(case: &Case, seed: u64, outcome: &mut Outcome) -> Result<(), StudyError> {
    let mut order: Vec<usize> = (0..case.table.rows()).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let (anchors, tested) = order.split_at(case.anchor_queries);
    let known = case.table.select(anchors);
    for budget in BUDGETS.into_iter().filter(|b| *b < case.table.columns()) {
        for (arm, rounds, first) in [
            ("ANNCUR", 1, None),
            ("ADACUR, 4 rounds", 4, None),
            ("ADACUR from the first stage", 4, case.first_stages.first()),
        ] {
            let name = format!("{}: {arm}", case.name);
            let failed = |e: AnncurError| StudyError::arm(&name, e);
            let choice = match first {
                None => AnchorChoice::Random { seed },
                Some(_) => AnchorChoice::FirstStage { seed },
            };
            let options = Options {
                anchors: budget / 2,
                choice,
                rounds,
                depth: Depth::Budget(budget),
                ..Options::default()
            };
            let anncur = Anncur::from_scores(known.clone(), options).map_err(failed)?;
            let mut scorer = Counted::new(&case.table);
            let answers = tested.iter().map(|query| {
                let ranking = first.map_or(&[][..], |(_, rankings)| &rankings[*query]);
                anncur.search(&mut scorer, *query, ranking)
            });
            let answers: Vec<Answer> = answers.collect::<Result<_, _>>().map_err(failed)?;
            record(case, &name, budget, tested, &answers, seed, outcome);
        }
        for (stage, rankings) in &case.first_stages {
            let name = format!("{}: reranked {stage}", case.name);
            let mut scorer = Counted::new(&case.table);
            let answers = tested.iter().map(|query| {
                let most = DEPTHS.into_iter().max().unwrap_or_default();
                rerank(&mut scorer, *query, &rankings[*query], budget, most)
            });
            let answers = answers.collect::<Result<Vec<Answer>, _>>();
            let answers = answers.map_err(|e| StudyError::arm(&name, e))?;
            record(case, &name, budget, tested, &answers, seed, outcome);
        }
        let name = format!("{}: best of rank {} (bound)", case.name, budget / 2);
        let estimates = low_rank(&case.table, budget / 2).map_err(|e| StudyError::arm(&name, e))?;
        let bound = bound(case, &estimates, tested, budget - budget / 2);
        let name = format!("{}: best of a rank (bound)", case.name);
        record(case, &name, budget, tested, &bound, seed, outcome);
    }
    Ok(())
}

/// What the best estimates of a rank would find with the calls that are left for reranking.
fn bound(case: &Case, estimates: &ScoreTable, tested: &[usize], depth: usize) -> Vec<Answer> {
    let of = |query: &usize| {
        let retrieved = best(estimates.row(*query), depth);
        let row = case.table.row(*query);
        let mut top: Vec<(usize, f64)> = retrieved.iter().map(|i| (*i, row[*i])).collect();
        top.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        Answer {
            top,
            retrieved,
            calls: depth,
        }
    };
    tested.iter().map(of).collect()
}

fn record(
    case: &Case,
    arm: &str,
    budget: usize,
    tested: &[usize],
    answers: &[Answer],
    seed: u64,
    outcome: &mut Outcome,
) {
    for k in DEPTHS {
        let recalls = tested.iter().zip(answers).map(|(query, answer)| {
            let exact = best(case.table.row(*query), k);
            let found: Vec<usize> = answer.top.iter().take(k).map(|t| t.0).collect();
            recall(&exact, &found)
        });
        let mean = recalls.sum::<f64>() / tested.len() as f64;
        outcome.add(arm, &measure_name(k, budget), seed, mean);
    }
}

fn measure_name(k: usize, budget: usize) -> String {
    format!("Top-{k}-Recall@{budget}")
}

/// The claim of the paper, against the strongest first stage there is.
fn judge(case: &Case, outcome: &mut Outcome) {
    let budgets = BUDGETS.into_iter().filter(|b| *b < case.table.columns());
    for budget in budgets {
        for (stage, _) in &case.first_stages {
            let measure = measure_name(10, budget);
            let (ours, theirs) = (
                format!("{}: ANNCUR", case.name),
                format!("{}: reranked {stage}", case.name),
            );
            let claim = format!(
                "{}: with {budget} calls ANNCUR finds more of the 10 best items than reranking those of {stage}",
                case.name
            );
            outcome.judge(claim, &measure, &ours, &theirs, false);
            let adaptive = format!("{}: ADACUR, 4 rounds", case.name);
            let claim = format!(
                "{}: with {budget} calls adaptive rounds find the best item more often than one round",
                case.name
            );
            if stage == &case.first_stages[0].0 {
                let measure = measure_name(1, budget);
                outcome.judge(claim, &measure, &adaptive, &ours, false);
            }
        }
    }
}
