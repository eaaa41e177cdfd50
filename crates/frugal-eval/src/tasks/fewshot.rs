//! Which records stand in front of a question as examples.

use rand::SeedableRng;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use super::record::Record;
use super::task::{Sampler, Task};
use super::{Context, EvalError, records};

/// Records that examples are taken from.
pub(super) enum Pool {
    /// Those that are measured, each but for its own question.
    Measured(usize),
    /// Others.
    Own(Vec<Record>),
}

impl Pool {
    /// The pool of a task, checked to have `wanted` examples for each question.
    pub(super) fn new(
        task: &Task,
        context: &Context,
        measured: &[Record],
        wanted: usize,
    ) -> Result<Self, EvalError> {
        let pool = if wanted == 0 {
            Self::Measured(measured.len())
        } else if !task.fewshot.samples.is_empty() {
            Self::Own(task.fewshot.samples.clone())
        } else {
            records::fewshot(task, context)?.map_or(Self::Measured(measured.len()), Self::Own)
        };
        let available = match &pool {
            Self::Measured(records) => records.saturating_sub(1),
            Self::Own(records) => records.len(),
        };
        if wanted > available {
            return Err(EvalError::Task {
                task: task.name.clone(),
                reason: format!("{wanted} examples wanted, but there are {available}"),
            });
        }
        Ok(pool)
    }

    fn len(&self) -> usize {
        match self {
            Self::Measured(records) => *records,
            Self::Own(records) => records.len(),
        }
    }

    pub(super) fn record<'a>(&'a self, measured: &'a [Record], place: usize) -> &'a Record {
        match self {
            Self::Measured(_) => &measured[place],
            Self::Own(records) => &records[place],
        }
    }
}

/// Places of the examples of a question: the first ones, or drawn for each question anew; never the
/// question itself.
pub(super) fn shots(
    task: &Task,
    context: &Context,
    pool: &Pool,
    doc_id: usize,
    count: usize,
) -> Vec<usize> {
    if count == 0 {
        return Vec::new();
    }
    let own = matches!(pool, Pool::Measured(_)).then_some(doc_id);
    let first = match task.fewshot.sampler {
        Sampler::FirstN => !context.random_shots,
        Sampler::Default => context.first_shots,
    };
    let all = pool.len();
    if first || context.first_shots {
        return (0..all).filter(|i| Some(*i) != own).take(count).collect();
    }
    let digest =
        Sha256::digest(format!("examples {} {} {doc_id}", context.seed, task.name).as_bytes());
    let mut seed = [0; 32];
    seed.copy_from_slice(&digest);
    let mut rng = ChaCha8Rng::from_seed(seed);
    let drawn = sample(&mut rng, all, (count + 1).min(all));
    drawn
        .into_iter()
        .filter(|i| Some(*i) != own)
        .take(count)
        .collect()
}
