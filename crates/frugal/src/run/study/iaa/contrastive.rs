//! Training an adapter so that a query's vector is nearest to that of its passage.

use std::time::Instant;

use burn::prelude::*;
use burn::tensor::activation::log_softmax;
use frugal_adapt::registry;
use frugal_kernels::on_pool;
use frugal_nn::{
    Adapter, Backbone, BuildContext, GradientSum, Input, Mode, ModelError, Pass, SequenceLayout,
    mean_pool, named_rng, to_vec,
};
use frugal_train::TrainConfig;
use frugal_train::optim::{AdamW, Optimizer, Update};
use rand::seq::SliceRandom;

use super::arms::Arm;
use super::pairs::{Pair, Pairs};
use super::{StudyError, StudyRequest};

/// Divides the cosines.
const TEMPERATURE: f32 = 0.05;
/// Texts that are embedded together.
const BATCH: usize = 64;

/// How an arm is trained.
#[derive(Clone, Copy)]
pub(super) struct Settings {
    pub steps: usize,
    /// Steps between two measurements.
    pub every: usize,
    pub batch: usize,
    pub lr: f64,
    pub seed: u64,
}

/// What training gave.
pub(super) struct Trained {
    pub adapter: Box<dyn Adapter>,
    /// Steps and MRR@10, from before the first step.
    pub curve: Vec<(usize, f64)>,
    pub recall: f64,
    /// Standard deviation of the loss in the last third.
    pub loss_spread: f64,
    pub seconds: f64,
}

/// Trains an arm.
pub(super) fn train(
    request: &StudyRequest<'_>,
    backbone: &dyn Backbone,
    pairs: &Pairs,
    arm: &Arm,
    settings: Settings,
) -> Result<Trained, StudyError> {
    let failed = |error: ModelError| StudyError::arm(arm.name, error);
    let mut adapter = adapter(backbone, arm, settings.seed)?;
    let mut optimizer = AdamW::new(&TrainConfig::default());
    let mut losses = Vec::with_capacity(settings.steps);
    let mut curve = Vec::new();
    let mut seconds = 0.0;
    let mut order = order(pairs.training.len(), settings);
    measure(&mut curve, 0, backbone, adapter.as_ref(), pairs).map_err(failed)?;
    for step in 0..settings.steps {
        request.check()?;
        let batch: Vec<&Pair> = (0..settings.batch)
            .filter_map(|_| Some(&pairs.training[order.next()?]))
            .collect();
        let start = Instant::now();
        let seed = settings
            .seed
            .wrapping_mul(100_003)
            .wrapping_add(step as u64);
        let (loss, gradients) =
            on_pool(|| gradients(backbone, adapter.as_ref(), &batch, seed)).map_err(failed)?;
        if !loss.is_finite() {
            return Err(StudyError::arm(
                arm.name,
                format!("the loss of step {step} is {loss}"),
            ));
        }
        // Rises over the first tenth, then falls to zero.
        let warm = (settings.steps / 10).max(1);
        let rate = match step < warm {
            true => (step + 1) as f64 / warm as f64,
            false => (settings.steps - step) as f64 / (settings.steps - warm).max(1) as f64,
        };
        let norm: f64 = gradients
            .iter()
            .flat_map(|(_, g)| g)
            .map(|g| f64::from(*g).powi(2))
            .sum();
        let update = Update {
            lr: settings.lr * rate,
            weight_decay: 0.0,
            grad_scale: (1.0 / (norm.sqrt() + 1e-6)).min(1.0) as f32,
        };
        for parameter in adapter.parameters_mut() {
            if let Some(gradient) = gradients.gradient(parameter.name()) {
                optimizer.update(parameter, gradient, &update);
            }
        }
        seconds += start.elapsed().as_secs_f64();
        losses.push(loss);
        let done = step + 1;
        if done % settings.every == 0 || done == settings.steps {
            measure(&mut curve, done, backbone, adapter.as_ref(), pairs).map_err(failed)?;
        }
    }
    let ranks = ranks(backbone, adapter.as_ref(), pairs).map_err(failed)?;
    let found = ranks.iter().filter(|rank| **rank <= 100).count();
    Ok(Trained {
        adapter,
        curve,
        recall: found as f64 / ranks.len().max(1) as f64,
        loss_spread: spread(&losses[losses.len() - losses.len() / 3..]),
        seconds,
    })
}

fn adapter(backbone: &dyn Backbone, arm: &Arm, seed: u64) -> Result<Box<dyn Adapter>, StudyError> {
    let failed = |error: frugal_nn::AdaptError| StudyError::arm(arm.name, error);
    let context = BuildContext {
        info: backbone.info(),
        sites: backbone.sites(),
        backbone: Some(backbone),
        device: backbone.device().clone(),
        seed,
        tokenize: None,
    };
    let method = registry::find(arm.method).map_err(failed)?;
    let settings = arm.settings.as_object().cloned().unwrap_or_default();
    (method.build)(&settings, &context).map_err(failed)
}

/// Numbers of pairs, in a new order each time all have been there.
fn order(pairs: usize, settings: Settings) -> impl Iterator<Item = usize> {
    let mut rng = named_rng(settings.seed, "iaa batches");
    let rounds = (settings.steps * settings.batch).div_ceil(pairs.max(1));
    let orders = (0..rounds).flat_map(move |_| {
        let mut order: Vec<usize> = (0..pairs).collect();
        order.shuffle(&mut rng);
        order
    });
    orders.collect::<Vec<_>>().into_iter()
}

fn gradients(
    backbone: &dyn Backbone,
    adapter: &dyn Adapter,
    batch: &[&Pair],
    seed: u64,
) -> Result<(f64, GradientSum), ModelError> {
    let texts: Vec<&[u32]> = (0..2)
        .flat_map(|side| batch.iter().map(move |pair| pair[side].as_slice()))
        .collect();
    let mut pass = adapter.pass(Mode::Train { seed });
    let vectors = vectors(backbone, pass.as_mut(), &texts)?;
    let n = batch.len();
    let (queries, passages) = (vectors.clone().slice(0..n), vectors.slice(n..2 * n));
    let scores = queries.matmul(passages.transpose()) / TEMPERATURE;
    let right = Tensor::<2>::eye(n, &scores.device());
    let mut loss = (log_softmax(scores, 1) * right).sum() / -(n as f32);
    let value = f64::from(
        to_vec(loss.clone().inner())
            .first()
            .copied()
            .unwrap_or(f32::NAN),
    );
    if let Some(more) = pass.auxiliary_loss() {
        loss = loss + more;
    }
    drop(pass);
    let mut found = loss.backward();
    let mut sum = GradientSum::default();
    sum.add(adapter.parameters().into_iter(), &mut found);
    Ok((value, sum))
}

/// Vectors of length 1, `[texts, d_model]`.
fn vectors(
    backbone: &dyn Backbone,
    pass: &mut dyn Pass,
    texts: &[&[u32]],
) -> Result<Tensor<2>, ModelError> {
    let ids: Vec<u32> = texts.iter().flat_map(|ids| ids.iter().copied()).collect();
    let lengths: Vec<usize> = texts.iter().map(|ids| ids.len()).collect();
    let layout = SequenceLayout::new(&lengths);
    let input = Input::tokens(&ids, layout.clone());
    let hidden_states = backbone.forward(&input, pass, None)?;
    if let Some(error) = pass.take_error() {
        return Err(error);
    }
    let pooled = mean_pool(hidden_states, &layout.cu_seqlens);
    let length = pooled.clone().powi_scalar(2).sum_dim(1).sqrt() + 1e-6;
    Ok(pooled / length)
}

fn measure(
    curve: &mut Vec<(usize, f64)>,
    step: usize,
    backbone: &dyn Backbone,
    adapter: &dyn Adapter,
    pairs: &Pairs,
) -> Result<(), ModelError> {
    if pairs.queries == 0 {
        return Ok(());
    }
    let ranks = ranks(backbone, adapter, pairs)?;
    let reciprocal = |rank: &usize| if *rank <= 10 { 1.0 / *rank as f64 } else { 0.0 };
    let mean = ranks.iter().map(reciprocal).sum::<f64>() / ranks.len().max(1) as f64;
    curve.push((step, mean));
    Ok(())
}

/// The rank of each query's own passage, from 1.
fn ranks(
    backbone: &dyn Backbone,
    adapter: &dyn Adapter,
    pairs: &Pairs,
) -> Result<Vec<usize>, ModelError> {
    let side = |side: usize, n: usize| -> Result<Vec<Vec<f32>>, ModelError> {
        let texts: Vec<&[u32]> = pairs.test[..n].iter().map(|p| p[side].as_slice()).collect();
        let mut rows = Vec::with_capacity(n);
        for part in texts.chunks(BATCH) {
            let found = on_pool(|| {
                let mut pass = adapter.pass(Mode::Eval);
                vectors(backbone, pass.as_mut(), part).map(to_vec)
            })?;
            let width = found.len() / part.len();
            rows.extend(found.chunks_exact(width).map(<[f32]>::to_vec));
        }
        Ok(rows)
    };
    let (queries, passages) = (side(0, pairs.queries)?, side(1, pairs.test.len())?);
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let rank = |(own, query): (usize, &Vec<f32>)| {
        let right = dot(query, &passages[own]);
        let better = |(i, passage): (usize, &Vec<f32>)| i != own && dot(query, passage) >= right;
        1 + passages
            .iter()
            .enumerate()
            .filter(|p| better((p.0, p.1)))
            .count()
    };
    Ok(queries.iter().enumerate().map(rank).collect())
}

fn spread(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n.max(1.0);
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (squares / (n - 1.0).max(1.0)).sqrt()
}
