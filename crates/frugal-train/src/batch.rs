//! Which examples meet in which micro-batch: a pure function of configuration, data lengths and
//! epoch.
//!
//! A resume therefore needs no more than an epoch and a step within it.

use std::ops::Range;

use frugal_nn::named_rng;
use rand::seq::SliceRandom;

use crate::Tokenized;
use crate::config::TrainConfig;
use crate::decay_mixture::Mixture;

/// Batches of examples sorted together by length, as in Hugging Face's length-grouped sampler.
const GROUP_BATCHES: usize = 50;

/// The batches of all epochs of a run.
#[derive(Clone, Debug)]
pub struct Batches {
    /// Rows of the data that have something to predict; of a mixture those of its first part.
    rows: Vec<u32>,
    /// Of a mixture: the rows of each part that have something to predict, and its weight.
    decay: Vec<(Vec<u32>, f64)>,
    /// Tokens of every row of the data.
    lengths: Vec<u32>,
    seed: u64,
    batch_size: usize,
    /// Token budget when packing.
    max_tokens: Option<usize>,
    group_by_length: bool,
    accumulation: usize,
}

/// The batches of one epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epoch {
    order: Vec<u32>,
    micro_batches: Vec<Range<usize>>,
    accumulation: usize,
}

impl Batches {
    /// Examples without any target are left out.
    pub fn new(train: &[Tokenized], config: &TrainConfig) -> Self {
        let trained = |rows: Range<usize>| {
            let rows = rows.start as u32..rows.end as u32;
            rows.filter(|&i| train[i as usize].trained() > 0).collect()
        };
        let mut decay: Vec<(Vec<u32>, f64)> = Vec::new();
        let mut first: usize = 0;
        for part in &config.decay_mixture {
            let end = first.saturating_add(part.examples).min(train.len());
            decay.push((trained(first..end), part.weight));
            first = end;
        }
        Self {
            rows: match decay.first() {
                Some((rows, _)) => rows.clone(),
                None => trained(0..train.len()),
            },
            decay,
            lengths: train.iter().map(|e| e.input_ids.len() as u32).collect(),
            seed: config.seed,
            batch_size: config.batch_size,
            max_tokens: config.packing.then_some(config.max_tokens),
            group_by_length: config.group_by_length,
            accumulation: config.gradient_accumulation_steps,
        }
    }

    /// Number of examples of an epoch.
    pub fn examples(&self) -> usize {
        self.rows.len()
    }

    /// The batches of epoch `epoch`, counting from 0.
    pub fn epoch(&self, epoch: u64) -> Epoch {
        let mut order = self.rows.clone();
        order.shuffle(&mut named_rng(
            self.seed,
            &format!("order of epoch {epoch}"),
        ));
        if self.group_by_length {
            self.group(&mut order);
        }
        let micro_batches = match self.max_tokens {
            Some(budget) => pack(&order, budget, |row| self.length(row)),
            None => (0..order.len())
                .step_by(self.batch_size)
                .map(|i| i..(i + self.batch_size).min(order.len()))
                .collect(),
        };
        Epoch {
            order,
            micro_batches,
            accumulation: self.accumulation,
        }
    }

    /// Whether the decay learns from a mixture.
    pub(crate) fn has_decay(&self) -> bool {
        !self.decay.is_empty()
    }

    /// The batches of so many optimiser steps of the decay. A longer decay begins with the same.
    pub(crate) fn decay(&self, steps: u64) -> Epoch {
        let length = |row| self.length(row);
        let parts = self.decay.iter().cloned();
        let rows = Mixture::new(self.seed, parts, &length);
        let wanted = (steps as usize).saturating_mul(self.accumulation);
        let (mut order, mut micro_batches) = (Vec::new(), Vec::new());
        let (mut start, mut tokens) = (0, 0);
        for row in rows {
            let length = self.length(row);
            let full = match self.max_tokens {
                Some(budget) => order.len() > start && tokens + length > budget,
                None => order.len() - start == self.batch_size,
            };
            if full {
                micro_batches.push(start..order.len());
                (start, tokens) = (order.len(), 0);
            }
            if micro_batches.len() == wanted {
                break;
            }
            order.push(row);
            tokens += length;
        }
        Epoch {
            order,
            micro_batches,
            accumulation: self.accumulation,
        }
    }

    /// Optimiser steps of a run: `max_steps`, or those of the epochs, the last one in part.
    pub fn total_steps(&self, config: &TrainConfig) -> u64 {
        if config.max_steps > 0 {
            return config.max_steps;
        }
        let (whole, part) = (config.epochs.floor() as u64, config.epochs.fract());
        let of_part = |steps: u64| (part * steps as f64).ceil() as u64;
        if self.max_tokens.is_none() {
            let steps = self
                .rows
                .len()
                .div_ceil(self.batch_size)
                .div_ceil(self.accumulation) as u64;
            return whole * steps + of_part(steps);
        }
        let last = if part > 0.0 {
            of_part(self.epoch(whole).steps())
        } else {
            0
        };
        (0..whole)
            .map(|epoch| self.epoch(epoch).steps())
            .sum::<u64>()
            + last
    }

    fn length(&self, row: u32) -> usize {
        self.lengths[row as usize] as usize
    }

    /// Sorts spans of the order by falling length; the span with the longest example comes first,
    /// so that a run that does not fit in memory fails at once.
    fn group(&self, order: &mut [u32]) {
        let batches = (order.len() / (4 * self.batch_size)).clamp(1, GROUP_BATCHES);
        let span = batches * self.batch_size;
        for chunk in order.chunks_mut(span) {
            chunk.sort_by_key(|&row| std::cmp::Reverse(self.length(row)));
        }
        let heads = (0..order.len()).step_by(span);
        if let Some(longest) = heads.max_by_key(|&i| (self.length(order[i]), std::cmp::Reverse(i)))
        {
            order.swap(0, longest);
        }
    }
}

/// Cuts an order of rows wherever the next row would exceed the budget of tokens.
pub(super) fn pack(
    order: &[u32],
    budget: usize,
    length: impl Fn(u32) -> usize,
) -> Vec<Range<usize>> {
    let mut batches = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for (i, &row) in order.iter().enumerate() {
        if i > start && tokens + length(row) > budget {
            batches.push(start..i);
            (start, tokens) = (i, 0);
        }
        tokens += length(row);
    }
    if start < order.len() {
        batches.push(start..order.len());
    }
    batches
}

impl Epoch {
    /// Number of optimiser steps; the last one may have fewer micro-batches.
    pub fn steps(&self) -> u64 {
        self.micro_batches.len().div_ceil(self.accumulation) as u64
    }

    /// The micro-batches of a step of this epoch, as rows of the data.
    pub fn step(&self, step: u64) -> impl Iterator<Item = &[u32]> {
        let start = (step as usize)
            .saturating_mul(self.accumulation)
            .min(self.micro_batches.len());
        let end = (start + self.accumulation).min(self.micro_batches.len());
        self.micro_batches[start..end]
            .iter()
            .map(|range| &self.order[range.clone()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Target;
    use frugal_kernels::IGNORE_INDEX;
    use proptest::prelude::*;

    fn examples(lengths: &[usize]) -> Vec<Tokenized> {
        let example = |&n: &usize| Tokenized {
            input_ids: vec![1; n],
            token_type_ids: vec![],
            labels: Target::Class(0),
        };
        lengths.iter().map(example).collect()
    }

    fn rows(epoch: &Epoch) -> Vec<Vec<u32>> {
        (0..epoch.steps())
            .flat_map(|s| epoch.step(s).map(<[u32]>::to_vec).collect::<Vec<_>>())
            .collect()
    }

    proptest! {
        #[test]
        fn every_example_comes_once_and_budgets_hold(
            lengths in prop::collection::vec(1usize..40, 1..60), packing: bool, group_by_length: bool,
            batch_size in 1usize..6, gradient_accumulation_steps in 1usize..4, max_tokens in 20usize..80, epoch in 0u64..3,
        ) {
            let config = TrainConfig { packing, group_by_length, batch_size, gradient_accumulation_steps, max_tokens, ..TrainConfig::default() };
            let data = examples(&lengths);
            let epoch = Batches::new(&data, &config).epoch(epoch);
            let batches = rows(&epoch);
            let mut seen: Vec<u32> = batches.concat();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len() as u32).collect::<Vec<_>>());
            for (step, count) in (0..epoch.steps()).map(|s| (s, epoch.step(s).count())) {
                prop_assert!(count == gradient_accumulation_steps || step + 1 == epoch.steps() && count > 0);
            }
            for batch in &batches {
                let tokens: usize = batch.iter().map(|&r| lengths[r as usize]).sum();
                let fits = if packing { tokens <= max_tokens || batch.len() == 1 } else { batch.len() <= batch_size };
                prop_assert!(fits);
            }
        }
    }

    #[test]
    fn the_order_follows_from_seed_and_epoch() {
        let data = examples(&[3; 30]);
        let with = |seed| {
            Batches::new(
                &data,
                &TrainConfig {
                    seed,
                    ..TrainConfig::default()
                },
            )
        };
        assert_eq!(with(1).epoch(4), with(1).epoch(4));
        assert_ne!(with(1).epoch(4), with(1).epoch(5));
        assert_ne!(with(1).epoch(4), with(2).epoch(4));
    }

    #[test]
    fn totals_follow_epochs_and_max_steps() {
        let data = examples(&[10; 21]);
        let config = TrainConfig {
            epochs: 2.5,
            batch_size: 4,
            gradient_accumulation_steps: 2,
            ..TrainConfig::default()
        };
        // 6 micro-batches, 3 steps an epoch; half an epoch rounds up to 2.
        assert_eq!(Batches::new(&data, &config).total_steps(&config), 8);
        let packed = TrainConfig {
            packing: true,
            max_tokens: 40,
            ..config.clone()
        };
        assert_eq!(Batches::new(&data, &packed).total_steps(&packed), 8);
        let fixed = TrainConfig {
            max_steps: 5,
            ..config
        };
        assert_eq!(Batches::new(&data, &fixed).total_steps(&fixed), 5);
    }

    #[test]
    fn grouped_batches_start_with_the_longest_and_have_similar_lengths() {
        let lengths: Vec<usize> = (1..=64).collect();
        let config = TrainConfig {
            group_by_length: true,
            batch_size: 4,
            ..TrainConfig::default()
        };
        let spread = |config: &TrainConfig| -> usize {
            let span = |batch: &Vec<u32>| batch.iter().max().unwrap() - batch.iter().min().unwrap();
            rows(&Batches::new(&examples(&lengths), config).epoch(0))
                .iter()
                .map(|b| span(b) as usize)
                .sum()
        };
        assert_eq!(
            rows(&Batches::new(&examples(&lengths), &config).epoch(0))[0][0],
            63
        );
        assert!(
            spread(&config) * 2
                < spread(&TrainConfig {
                    group_by_length: false,
                    ..config.clone()
                })
        );
    }

    #[test]
    fn examples_without_targets_are_left_out() {
        let mut data = examples(&[3, 3]);
        data[0].labels = Target::Tokens(vec![IGNORE_INDEX; 3]);
        assert_eq!(Batches::new(&data, &TrainConfig::default()).examples(), 1);
    }
}
