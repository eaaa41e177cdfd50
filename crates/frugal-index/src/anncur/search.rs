//! Retrieval and reranking within a budget of calls.

use std::collections::HashMap;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::cur::{CurIndex, estimate};
use super::error::AnncurError;
use super::pseudo_inverse::Regularization;
use super::recall::best;
use super::scores::{Counted, PairScorer, ScoreTable};

/// Which items a query is scored with first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnchorChoice {
    /// The same for all queries, drawn uniformly.
    Random {
        /// Seed of the draw.
        seed: u64,
    },
    /// The best of a first stage, of each query its own; drawn ones where it has too few.
    FirstStage {
        /// Seed of the draw.
        seed: u64,
    },
}

/// How many items are scored exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The best estimates of this number; anchors among them cost nothing more.
    Retrieved(usize),
    /// So many of the best estimates that this number of calls is made, anchors included.
    Budget(usize),
}

/// How a query is answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Number of anchor items over all rounds.
    pub anchors: usize,
    /// Which they are in the first round.
    pub choice: AnchorChoice,
    /// Rounds among which the anchors are divided: each after the first takes the best estimates.
    pub rounds: usize,
    /// What is done with small singular values.
    pub regularization: Regularization,
    /// Whether a constant column is added to the anchors.
    pub intercept: bool,
    /// How many items are scored exactly.
    pub depth: Depth,
    /// How many items are wanted.
    pub top_k: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            anchors: 50,
            choice: AnchorChoice::Random { seed: 0 },
            rounds: 1,
            regularization: Regularization::default(),
            intercept: false,
            depth: Depth::Budget(100),
            top_k: 10,
        }
    }
}

/// What was found for a query.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Items and exact scores, the best first.
    pub top: Vec<(usize, f64)>,
    /// Items whose estimates were the best, the best first.
    pub retrieved: Vec<usize>,
    /// Pairs that were scored.
    pub calls: usize,
}

/// The index: scores of the anchor queries with all items.
#[derive(Clone, Debug)]
pub struct Anncur {
    table: ScoreTable,
    options: Options,
    /// Items in the order in which they are drawn as anchors.
    drawn: Vec<usize>,
    /// Where one decomposition serves all queries.
    fixed: Option<CurIndex>,
}

impl Anncur {
    /// Scores all items with the anchor queries, `anchor_queries.len() * items` calls, and decomposes.
    ///
    /// # Errors
    /// As [`Anncur::from_scores`]; a scorer that fails.
    pub fn build<S: PairScorer>(
        scorer: &mut Counted<S>,
        anchor_queries: &[usize],
        items: usize,
        options: Options,
    ) -> Result<Self, AnncurError> {
        check(&options, anchor_queries.len(), items)?;
        let table = ScoreTable::score(scorer, anchor_queries, items)?;
        Self::from_scores(table, options)
    }

    /// Decomposes scores of anchor queries that are there already.
    ///
    /// # Errors
    /// More anchors than items, no rounds, a budget that the anchors exceed, a regularization outside
    /// its range.
    pub fn from_scores(table: ScoreTable, options: Options) -> Result<Self, AnncurError> {
        check(&options, table.rows(), table.columns())?;
        let (AnchorChoice::Random { seed } | AnchorChoice::FirstStage { seed }) = options.choice;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut drawn =
            rand::seq::index::sample(&mut rng, table.columns(), options.anchors).into_vec();
        let fixed = match (options.choice, options.rounds) {
            (AnchorChoice::Random { .. }, 1) => {
                drawn.sort_unstable();
                let (reg, intercept) = (options.regularization, options.intercept);
                Some(CurIndex::new(&table, &drawn, reg, intercept)?)
            }
            _ => None,
        };
        Ok(Self {
            table,
            options,
            drawn,
            fixed,
        })
    }

    /// The embeddings of the items, where all queries share the same anchors.
    pub fn index(&self) -> Option<&CurIndex> {
        self.fixed.as_ref()
    }

    /// The best items for a query. `first_stage` are items by another ranking, the best first; it may
    /// be empty where anchors are drawn.
    ///
    /// # Errors
    /// A scorer that fails; items that there are not.
    pub fn search<S: PairScorer>(
        &self,
        scorer: &mut Counted<S>,
        query: usize,
        first_stage: &[usize],
    ) -> Result<Answer, AnncurError> {
        let options = &self.options;
        let before = scorer.calls();
        let mut scored = Scored::new(query);
        let mut estimates = Vec::new();
        for round in 0..options.rounds {
            let share = options.anchors / options.rounds;
            let rest = options.anchors % options.rounds;
            let count = share + usize::from(round < rest);
            let new = match round {
                0 => self.first_anchors(first_stage, count)?,
                _ => scored.next(&estimates, count),
            };
            scored.add(scorer, &new)?;
            estimates = self.estimates(&scored)?;
        }
        let retrieved = match options.depth {
            Depth::Retrieved(depth) => best(&estimates, depth),
            Depth::Budget(budget) => {
                let new = scored.next(&estimates, budget - options.anchors);
                let worst = new.last().map_or(f64::INFINITY, |item| estimates[*item]);
                let known = |item: &usize| estimates[*item] >= worst && scored.has(*item);
                let known = (0..estimates.len()).filter(known);
                let mut all: Vec<usize> = known.chain(new).collect();
                all.sort_by(|a, b| estimates[*b].total_cmp(&estimates[*a]).then(a.cmp(b)));
                all
            }
        };
        let new: Vec<usize> = (retrieved.iter().copied())
            .filter(|item| !scored.has(*item))
            .collect();
        scored.add(scorer, &new)?;
        Ok(Answer {
            top: scored.best(options.top_k),
            retrieved,
            calls: scorer.calls() - before,
        })
    }

    fn first_anchors(
        &self,
        first_stage: &[usize],
        count: usize,
    ) -> Result<Vec<usize>, AnncurError> {
        let own: &[usize] = match self.options.choice {
            AnchorChoice::Random { .. } => &[],
            AnchorChoice::FirstStage { .. } => first_stage,
        };
        let items = self.table.columns();
        if let Some(item) = own.iter().find(|item| **item >= items) {
            return Err(AnncurError::Option(format!(
                "the first stage found item {item}, but there are {items}"
            )));
        }
        let mut anchors = Vec::with_capacity(count);
        for item in own.iter().chain(&self.drawn) {
            if anchors.len() < count && !anchors.contains(item) {
                anchors.push(*item);
            }
        }
        Ok(anchors)
    }

    fn estimates(&self, scored: &Scored) -> Result<Vec<f64>, AnncurError> {
        match &self.fixed {
            Some(index) => index.approximate(&scored.scores),
            None => estimate(
                &self.table,
                &scored.items,
                &scored.scores,
                self.options.regularization,
                self.options.intercept,
            ),
        }
    }
}

/// The baseline: the first `budget` of a first stage, scored exactly.
///
/// # Errors
/// A scorer that fails.
pub fn rerank<S: PairScorer>(
    scorer: &mut Counted<S>,
    query: usize,
    first_stage: &[usize],
    budget: usize,
    top_k: usize,
) -> Result<Answer, AnncurError> {
    let before = scorer.calls();
    let mut retrieved: Vec<usize> = Vec::new();
    for item in first_stage {
        if retrieved.len() < budget && !retrieved.contains(item) {
            retrieved.push(*item);
        }
    }
    let mut scored = Scored::new(query);
    scored.add(scorer, &retrieved)?;
    Ok(Answer {
        top: scored.best(top_k),
        retrieved,
        calls: scorer.calls() - before,
    })
}

/// Items of a query that were paid for.
struct Scored {
    query: usize,
    items: Vec<usize>,
    scores: Vec<f64>,
    known: HashMap<usize, f64>,
}

impl Scored {
    fn new(query: usize) -> Self {
        Self {
            query,
            items: Vec::new(),
            scores: Vec::new(),
            known: HashMap::new(),
        }
    }

    fn has(&self, item: usize) -> bool {
        self.known.contains_key(&item)
    }

    fn add<S: PairScorer>(
        &mut self,
        scorer: &mut Counted<S>,
        items: &[usize],
    ) -> Result<(), AnncurError> {
        let scores = scorer.score(self.query, items)?;
        self.items.extend(items);
        self.known
            .extend(items.iter().copied().zip(scores.iter().copied()));
        self.scores.extend(scores);
        Ok(())
    }

    /// The best estimates of items that were not scored yet.
    fn next(&self, estimates: &[f64], count: usize) -> Vec<usize> {
        let ranked = best(estimates, count.saturating_add(self.known.len()));
        let new = ranked.into_iter().filter(|item| !self.has(*item));
        new.take(count).collect()
    }

    fn best(&self, k: usize) -> Vec<(usize, f64)> {
        let mut all: Vec<(usize, f64)> = self.known.iter().map(|(i, s)| (*i, *s)).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        all.truncate(k);
        all
    }
}

fn check(options: &Options, queries: usize, items: usize) -> Result<(), AnncurError> {
    let wrong = |problem: String| Err(AnncurError::Option(problem));
    options.regularization.check()?;
    let anchors = options.anchors;
    if queries == 0 || anchors == 0 {
        return wrong("at least one anchor query and one anchor item are needed".into());
    }
    if anchors > items {
        return wrong(format!(
            "{anchors} anchors cannot be chosen among {items} items"
        ));
    }
    if options.rounds == 0 || options.rounds > anchors {
        return wrong(format!(
            "{anchors} anchors can be divided among 1 to {anchors} rounds, not {}",
            options.rounds
        ));
    }
    match options.depth {
        Depth::Budget(budget) if budget < anchors => wrong(format!(
            "a budget of {budget} calls does not suffice for {anchors} anchors"
        )),
        _ => Ok(()),
    }
}
