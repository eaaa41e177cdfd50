//! What an adapted model lost on text that has nothing to do with its task.
//!
//! A decoder is asked how surprising everyday messages are to it: the perplexity of the legitimate
//! texts among the built-in SMS messages. An encoder has no such measure; instead a ridge
//! regression from its mean hidden states tells spam from legitimate messages, once with the model
//! as it was and once as it is now: the accuracy of that probe says how much of what the
//! representation held is still there.

use std::sync::atomic::AtomicBool;

use burn::prelude::*;
use frugal_core::data::{self, Dataset, Example};
use frugal_core::encode::{IGNORE_INDEX, Target, Tokenized};
use frugal_eval::report::Forgetting;
use frugal_models::load::ModelFiles;
use frugal_nn::{Adapter, Backbone, Fixed, Input, mean_pool, to_vec};
use frugal_train::{CausalLm, evaluate};

use super::RunError;

/// Messages whose perplexity is measured.
const TEXTS: usize = 200;
/// Messages that a probe learns from, and as many that it is judged on.
const PROBED: usize = 400;
/// Longest message in tokens.
const LONGEST: usize = 64;
/// Sequences of a forward pass.
const BATCH: usize = 32;
/// Weight of the ridge, relative to the mean square of a feature.
const RIDGE: f64 = 1.0;

/// Measures the backbone without and with the adapter; `None` if `stop` was set before the end.
///
/// # Errors
/// When the model cannot read the texts.
pub fn forgetting(
    files: &ModelFiles,
    backbone: &dyn Backbone,
    adapter: &dyn Adapter,
    max_tokens: usize,
    stop: &AtomicBool,
) -> Result<Option<Forgetting>, RunError> {
    let messages = data::builtin("sms-spam")?;
    let measured = |measure: &str, data: &str, (base, adapted): (f64, f64)| Forgetting {
        measure: measure.into(),
        data: data.into(),
        base,
        adapted,
    };
    if backbone.lm_head().is_some() {
        let texts = texts(files, &messages.test)?;
        let perplexity = |adapter: Option<&dyn Adapter>| -> Result<Option<f64>, RunError> {
            let found = evaluate(
                backbone,
                adapter,
                &CausalLm::default(),
                &texts,
                max_tokens,
                stop,
            )?;
            Ok(found.map(|f| f.metrics["loss"].exp()))
        };
        let found = perplexity(None)?.zip(perplexity(Some(adapter))?);
        return Ok(
            found.map(|pair| measured("perplexity", "legitimate messages of sms-spam", pair))
        );
    }
    let (learn, judge) = (
        labelled(files, &messages.train)?,
        labelled(files, &messages.test)?,
    );
    let accuracy = |adapter: Option<&dyn Adapter>| -> Result<f64, RunError> {
        let features = |rows: &[(Vec<u32>, f64)]| features(backbone, adapter, rows);
        let weights = ridge(
            &features(&learn)?,
            &learn.iter().map(|(_, y)| *y).collect::<Vec<_>>(),
        );
        let judged = features(&judge)?;
        let right = judged
            .iter()
            .zip(&judge)
            .filter(|(x, (_, y))| (dot(&weights, x) > 0.0) == (*y > 0.0))
            .count();
        Ok(right as f64 / judge.len() as f64)
    };
    Ok(Some(measured(
        "probe_accuracy",
        "sms-spam",
        (accuracy(None)?, accuracy(Some(adapter))?),
    )))
}

/// Token ids, cut to the longest length.
fn ids(files: &ModelFiles, text: &str) -> Result<Vec<u32>, RunError> {
    let mut ids = files.tokenizer()?.encode(text, true)?;
    ids.truncate(LONGEST.min(files.config().max_sequence()));
    Ok(ids)
}

/// Legitimate messages, every token a target.
fn texts(files: &ModelFiles, dataset: &Dataset) -> Result<Vec<Tokenized>, RunError> {
    let ham = dataset.examples.iter().filter_map(|example| match example {
        Example::Classification { text, label, .. } if label == "ham" => Some(text),
        _ => None,
    });
    let example = |text: &String| {
        let input_ids = ids(files, text)?;
        let targets = input_ids[1..]
            .iter()
            .map(|&id| id as i32)
            .chain([IGNORE_INDEX])
            .collect();
        Ok(Tokenized {
            token_type_ids: Vec::new(),
            labels: Target::Tokens(targets),
            input_ids,
        })
    };
    ham.take(TEXTS)
        .map(example)
        .filter(|e| {
            e.as_ref()
                .map_or(true, |e: &Tokenized| e.input_ids.len() > 1)
        })
        .collect()
}

/// Messages as token ids, with 1 for spam and -1 for the rest; as many of each as there are, up to
/// a half of all.
fn labelled(files: &ModelFiles, dataset: &Dataset) -> Result<Vec<(Vec<u32>, f64)>, RunError> {
    let mut left = [PROBED / 2; 2];
    let mut rows = Vec::new();
    for example in &dataset.examples {
        if let Example::Classification { text, label, .. } = example {
            let spam = label == "spam";
            if left[usize::from(spam)] > 0 {
                left[usize::from(spam)] -= 1;
                rows.push((ids(files, text)?, if spam { 1.0 } else { -1.0 }));
            }
        }
    }
    Ok(rows)
}

/// Mean hidden states and a constant, one row for each text.
fn features(
    backbone: &dyn Backbone,
    adapter: Option<&dyn Adapter>,
    rows: &[(Vec<u32>, f64)],
) -> Result<Vec<Vec<f64>>, RunError> {
    let fixed = Fixed::new(adapter);
    let mut all = Vec::with_capacity(rows.len());
    for batch in rows.chunks(BATCH) {
        let lengths: Vec<usize> = batch.iter().map(|(ids, _)| ids.len()).collect();
        let tokens: Vec<u32> = batch
            .iter()
            .flat_map(|(ids, _)| ids.iter().copied())
            .collect();
        let mut pass = fixed.pass();
        let input = Input::new(&tokens, &lengths);
        let hidden = backbone.forward(&input, pass.as_mut(), None)?;
        let pooled: Tensor<2> = mean_pool(hidden, &input.layout.cu_seqlens);
        let width = pooled.dims()[1];
        let values = to_vec(pooled);
        all.extend(values.chunks(width).map(|row| {
            row.iter()
                .map(|&v| f64::from(v))
                .chain([1.0])
                .collect::<Vec<f64>>()
        }));
    }
    Ok(all)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// The weights `w` that minimise `Σ (w·x − y)² + λ |w|²`, by Cholesky's factorisation of the normal
/// equations.
fn ridge(x: &[Vec<f64>], y: &[f64]) -> Vec<f64> {
    let width = x.first().map_or(0, Vec::len);
    let mut gram = vec![vec![0.0; width]; width];
    let mut right = vec![0.0; width];
    for (row, &target) in x.iter().zip(y) {
        for i in 0..width {
            right[i] += row[i] * target;
            for j in 0..=i {
                gram[i][j] += row[i] * row[j];
            }
        }
    }
    let trace: f64 = (0..width).map(|i| gram[i][i]).sum();
    let lambda = RIDGE * trace / (width * x.len().max(1)) as f64;
    for i in 0..width {
        gram[i][i] += lambda;
        for j in 0..=i {
            let known = dot(&gram[i][..j], &gram[j][..j]);
            gram[i][j] = if i == j {
                (gram[i][i] - known).sqrt()
            } else {
                (gram[i][j] - known) / gram[j][j]
            };
        }
    }
    for i in 0..width {
        right[i] = (right[i] - dot(&gram[i][..i], &right[..i])) / gram[i][i];
    }
    for i in (0..width).rev() {
        let known: f64 = (i + 1..width).map(|k| gram[k][i] * right[k]).sum();
        right[i] = (right[i] - known) / gram[i][i];
    }
    right
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ridge_solves_its_normal_equations() {
        let x: Vec<Vec<f64>> = (0..9)
            .map(|i| vec![(f64::from(i) * 0.7).sin(), (f64::from(i) * 1.3).cos(), 1.0])
            .collect();
        let y: Vec<f64> = (0..9).map(|i| f64::from(i % 3) - 1.0).collect();
        let w = ridge(&x, &y);
        let lambda = RIDGE * x.iter().flatten().map(|v| v * v).sum::<f64>() / 27.0;
        for j in 0..3 {
            // The gradient of the objective at its minimum.
            let gradient: f64 = x
                .iter()
                .zip(&y)
                .map(|(row, y)| row[j] * (dot(&w, row) - y))
                .sum::<f64>()
                + lambda * w[j];
            assert!(gradient.abs() < 1e-12, "{gradient}");
        }
    }
}
