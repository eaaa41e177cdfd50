//! Learning a state: the gradient of answers through the writing of their context.

use frugal_kernels::{AdamWStep, adamw_step};
use frugal_nn::{Backbone, named_rng};
use frugal_train::{Schedule, Scheduler, TrainConfig};
use rand::seq::SliceRandom;

use super::config::MetaTrainConfig;
use super::error::PerkError;
use super::losses::{ContextLoss, answer_gradient};
use super::state::PerkState;
use super::text::{Batch, Task, Texts};
use super::unroll::{Differences, MetaGradient, norm};

/// A context and questions about it, as tokens.
#[derive(Clone, Debug)]
pub struct Episode {
    /// What is written.
    pub segments: Batch,
    /// What is asked, with its answers.
    pub questions: Batch,
}

impl Episode {
    /// Of a task, with these numbers of its segments.
    ///
    /// # Errors
    /// Texts that make no batch.
    pub fn of(texts: &Texts<'_>, task: &Task, numbers: &[usize]) -> Result<Self, PerkError> {
        let segments: Vec<&str> = task.context.iter().map(String::as_str).collect();
        Ok(Self {
            segments: texts.segments(&segments, numbers)?,
            questions: texts.questions(segments.len(), &task.questions)?,
        })
    }

    /// The same with the numbers in an order of the seed, as in training, so that no number says
    /// where a segment stood.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn shuffled(texts: &Texts<'_>, task: &Task, seed: u64) -> Result<Self, PerkError> {
        let mut numbers: Vec<usize> = (0..task.context.len()).collect();
        numbers.shuffle(&mut named_rng(seed, "perk numbers of documents"));
        Self::of(texts, task, &numbers)
    }
}

/// The gradient of one episode.
#[derive(Clone, Debug)]
pub struct EpisodeGradient {
    /// Mean cross-entropy of the answers after the context was written.
    pub loss: f64,
    /// Loss of the context before each step.
    pub inner: Vec<f64>,
    /// By the state.
    pub gradient: MetaGradient<f32>,
}

/// The gradient of an episode's answers by the state, through the last `retained` steps of writing.
///
/// # Errors
/// What the model refuses, losses that are not finite.
pub fn episode_gradient(
    backbone: &dyn Backbone,
    state: &PerkState,
    episode: &Episode,
    retained: usize,
    differences: &mut Differences,
) -> Result<EpisodeGradient, PerkError> {
    let weights = state.weights.as_ref();
    let mut loss = ContextLoss::new(backbone, &state.fast, weights, &episode.segments, 1);
    let unroll = state.config.unroll(retained);
    let tape = unroll.adapt(&mut loss, &state.fast.values, &state.rates)?;
    let (answers, outer) = answer_gradient(backbone, &state.fast, &tape.fast, &episode.questions)?;
    let gradient = unroll.backward(&mut loss, &tape, &state.rates, &outer, differences)?;
    Ok(EpisodeGradient {
        loss: answers,
        inner: tape.losses,
        gradient,
    })
}

/// AdamW over tensors of plain values.
pub struct Adam {
    moments: Vec<[Vec<f32>; 2]>,
    steps: u64,
}

impl Adam {
    /// With no memory of any of these tensors.
    pub fn new(tensors: &[Vec<f32>]) -> Self {
        let zeros = |t: &Vec<f32>| [vec![0.0; t.len()], vec![0.0; t.len()]];
        Self {
            moments: tensors.iter().map(zeros).collect(),
            steps: 0,
        }
    }

    /// One step with `β = (0.9, 0.95)`; `grad_scale` is a factor on the gradients.
    pub fn step(
        &mut self,
        tensors: &mut [Vec<f32>],
        gradients: &[Vec<f32>],
        lr: f64,
        weight_decay: f64,
        grad_scale: f64,
    ) {
        self.steps += 1;
        let step = AdamWStep {
            lr,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay,
            step: self.steps,
            grad_scale: grad_scale as f32,
        };
        let each = tensors.iter_mut().zip(gradients).zip(&mut self.moments);
        for ((values, gradient), [first, second]) in each {
            adamw_step(values, gradient, first, second, &step);
        }
    }
}

/// What one step of learning came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MetaStep {
    /// Number of the step, from 1.
    pub step: u64,
    /// Mean cross-entropy of the answers.
    pub loss: f64,
    /// Loss of the context before the first inner step.
    pub inner: f64,
    /// Learning rate.
    pub lr: f64,
    /// Length of the gradient before it was clipped.
    pub grad_norm: f64,
}

/// Learns a state, an episode at a time.
pub struct MetaTrainer {
    config: MetaTrainConfig,
    schedule: Schedule,
    fast: Adam,
    weights: Adam,
    rates: Adam,
    steps: u64,
    differences: Differences,
}

/// The rate of each step: a rise, then half a cosine.
pub(crate) fn schedule(config: &MetaTrainConfig, steps: u64) -> Schedule {
    let train = TrainConfig {
        lr: config.lr,
        lr_scheduler_type: Scheduler::Cosine,
        warmup_ratio: config.warmup_ratio,
        warmup_steps: 0,
        min_lr: 0.0,
        min_lr_ratio: 0.0,
        ..TrainConfig::default()
    };
    Schedule::new(&train, steps)
}

impl MetaTrainer {
    /// For so many steps.
    ///
    /// # Errors
    /// Settings that cannot be.
    pub fn new(config: MetaTrainConfig, state: &PerkState, steps: u64) -> Result<Self, PerkError> {
        config.validate(&state.config)?;
        let weights = state.weights.as_ref();
        Ok(Self {
            schedule: schedule(&config, steps),
            fast: Adam::new(&state.fast.values),
            weights: Adam::new(weights.map_or(&[], |net| &net.values)),
            rates: Adam::new(&state.rates),
            steps: 0,
            differences: Differences::searched(1e-2),
            config,
        })
    }

    /// One step on an episode.
    ///
    /// # Errors
    /// What the model refuses, losses or gradients that are not finite; the state is then as it was.
    pub fn step(
        &mut self,
        backbone: &dyn Backbone,
        state: &mut PerkState,
        episode: &Episode,
    ) -> Result<MetaStep, PerkError> {
        let config = &self.config;
        if self.steps.is_multiple_of(config.difference_every) {
            self.differences.forget();
        }
        let retained = config.retained_steps;
        let number = self.steps + 1;
        let found = episode_gradient(backbone, state, episode, retained, &mut self.differences);
        let found = found.map_err(|error| not_finite(error, number))?;
        let mut gradient = found.gradient;
        let learned = state.config.learned_rates;
        let rates: Vec<Vec<f32>> = gradient
            .rates
            .iter()
            .zip(&state.rates)
            .map(|(of, like)| {
                let mut of: Vec<f32> = of.iter().map(|&v| v as f32).collect();
                of.resize(like.len(), 0.0);
                of
            })
            .collect();
        if let (true, Some(net)) = (gradient.other.is_empty(), &state.weights) {
            gradient.other = net.values.iter().map(|t| vec![0.0; t.len()]).collect();
        }
        let squares = |tensors: &[Vec<f32>]| norm(tensors).powi(2);
        let mut square = squares(&gradient.fast) + squares(&gradient.other);
        if learned {
            square += squares(&rates);
        }
        let grad_norm = square.sqrt();
        if !grad_norm.is_finite() || !found.loss.is_finite() {
            return Err(PerkError::NotFinite {
                step: number,
                what: "the loss of the answers or its gradient".into(),
                advice: advice(number, 1 + state.config.inner_steps),
            });
        }
        let scale = (config.max_grad_norm / (grad_norm + 1e-6)).min(1.0);
        let factor = self.schedule.factor(self.steps);
        let (lr, decay) = (config.lr * factor, config.weight_decay);
        self.fast
            .step(&mut state.fast.values, &gradient.fast, lr, decay, scale);
        if let Some(net) = &mut state.weights {
            self.weights
                .step(&mut net.values, &gradient.other, lr, decay, scale);
        }
        if learned {
            let lr = config.rates_lr.unwrap_or(config.lr) * factor;
            self.rates.step(&mut state.rates, &rates, lr, 0.0, scale);
        }
        self.steps = number;
        Ok(MetaStep {
            step: number,
            loss: found.loss,
            inner: found.inner.first().copied().unwrap_or(f64::NAN),
            lr,
            grad_norm,
        })
    }
}

/// What to do where a value is not finite: at the first step nothing was learnt yet, and before the
/// first inner step nothing was written.
fn advice(step: u64, inner: usize) -> &'static str {
    match (step, inner) {
        (0 | 1, 0 | 1) => "the model itself gives no finite loss for this task",
        (0 | 1, _) => "lower the learning rate of writing (`inner_lr`)",
        (_, 0 | 1) => "lower the learning rate (`lr`)",
        _ => "lower the learning rates (`lr`, and `rates_lr` or `inner_lr`)",
    }
}

/// The same error with the step of meta-training in it.
fn not_finite(error: PerkError, step: u64) -> PerkError {
    match error {
        PerkError::Writing { inner } => PerkError::NotFinite {
            step,
            what: format!("the loss of the context or its gradient in inner step {inner}"),
            advice: advice(step, inner),
        },
        other => other,
    }
}

/// Learns a state from tasks, in an order of the seed; `observe` sees each step and ends the run by
/// returning false. Returns the number of steps.
///
/// # Errors
/// No tasks, texts that make no batch, and as [`MetaTrainer::step`]. After an error in a step, `state`
/// is the last one that gave a finite loss: what the last update made of it is taken back.
pub fn meta_train(
    backbone: &dyn Backbone,
    texts: &Texts<'_>,
    state: &mut PerkState,
    tasks: &[Task],
    config: &MetaTrainConfig,
    observe: &mut dyn FnMut(MetaStep, u64) -> bool,
) -> Result<u64, PerkError> {
    if tasks.is_empty() {
        return Err(PerkError::Text("there is no task to learn from".into()));
    }
    config.validate(&state.config)?;
    let steps = match config.max_steps {
        0 => ((config.epochs * tasks.len() as f64).ceil() as u64).max(1),
        given => given,
    };
    // All texts are looked at before the first step.
    for (i, task) in tasks.iter().enumerate() {
        Episode::shuffled(texts, task, 0)
            .map_err(|error| PerkError::Text(format!("task {}: {error}", i + 1)))?;
    }
    let mut trainer = MetaTrainer::new(config.clone(), state, steps)?;
    let mut order: Vec<usize> = Vec::new();
    // The state before the last update.
    let mut sound = None;
    for step in 0..steps {
        if order.is_empty() {
            order = (0..tasks.len()).collect();
            let pass = format!("perk order {}", step / tasks.len() as u64);
            order.shuffle(&mut named_rng(config.seed, &pass));
        }
        let task = &tasks[order.pop().unwrap_or(0)];
        let seed = config.seed.wrapping_mul(1_000_003).wrapping_add(step);
        let episode = Episode::shuffled(texts, task, seed)?;
        let before = state.clone();
        let done = match trainer.step(backbone, state, &episode) {
            Ok(done) => done,
            Err(error) => {
                if let Some(sound) = sound {
                    *state = sound;
                }
                return Err(error);
            }
        };
        let goes_on = observe(done, steps);
        if !state.is_finite() {
            *state = before;
            return Err(PerkError::NotFinite {
                step: step + 1,
                what: "what the update makes of the state".into(),
                advice: advice(step + 2, 1),
            });
        }
        sound = Some(before);
        if !goes_on {
            return Ok(step + 1);
        }
    }
    Ok(steps)
}
