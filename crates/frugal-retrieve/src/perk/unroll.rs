//! Optimiser steps that can be differentiated: a few steps on an inner loss, and the gradient of what
//! comes of them by where they began, by their learning rates and by what else the inner loss
//! depends on.
//!
//! With `n` counted from 1, `m` and `v` zero at the start, `g` the gradient of the inner loss and `α`
//! the rate of a tensor in a step, AdamW is
//!
//! ```text
//! m ← β1 m + (1 − β1) g        v ← β2 v + (1 − β2) g²
//! D = √v / √(1 − β2ⁿ) + ε      u = m / (1 − β1ⁿ) / D      φ ← φ (1 − α wd) − α u
//! ```
//!
//! Backwards from `λφ`, the gradient by the last `φ`, with `λm = λv = 0`, for each step from the last:
//!
//! ```text
//! ∂α  = ⟨λφ, −wd φ − u⟩
//! λm += −α λφ / ((1 − β1ⁿ) D)
//! λv += α λφ u / (2 D √v √(1 − β2ⁿ))               0 where v is 0
//! λg  = (1 − β1) λm + 2 (1 − β2) g λv
//! λφ  = λφ (1 − α wd) + H λg                       λm = β1 λm, λv = β2 λv
//! ```
//!
//! `H λg`, and beside it the mixed derivative by the other parameters, is a central difference of two
//! first-order gradients, so that no engine has to differentiate a backward pass, and one step is in
//! memory at a time. It is formed for the last `retained` steps only: in those before them the
//! *gradient* counts as a constant, not `φ`, whose decay and rates keep their part.
//!
//! Finn, Abbeel, Levine: Model-Agnostic Meta-Learning, 2017, arXiv 1703.03400; the truncation follows
//! eric11eca/perk.

use thiserror::Error;

/// A number as it is kept. All arithmetic is in double precision.
pub trait Element: Copy + Default + Send + Sync {
    /// In double precision.
    fn get(self) -> f64;
    /// Rounded.
    fn of(value: f64) -> Self;
}

impl Element for f32 {
    fn get(self) -> f64 {
        f64::from(self)
    }
    fn of(value: f64) -> Self {
        value as f32
    }
}

impl Element for f64 {
    fn get(self) -> f64 {
        self
    }
    fn of(value: f64) -> Self {
        value
    }
}

/// Values of several tensors, each flat.
pub type Tensors<F> = Vec<Vec<F>>;

/// An inner loss and its gradients.
#[derive(Clone, Debug)]
pub struct InnerGradient<F> {
    /// The loss.
    pub loss: f64,
    /// By the fast weights, in their shapes.
    pub fast: Tensors<F>,
    /// By the other parameters, always in the same shapes; empty where there are none.
    pub other: Tensors<F>,
}

/// What the inner steps make small.
pub trait InnerLoss<F> {
    /// What can go wrong.
    type Error;

    /// Loss and gradients at these fast weights.
    ///
    /// # Errors
    /// Whatever the model refuses.
    fn gradient(&mut self, fast: &[Vec<F>]) -> Result<InnerGradient<F>, Self::Error>;
}

/// How fast weights follow the gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum InnerOptimizer {
    /// `φ ← φ − α g`.
    Sgd,
    /// AdamW from zero moments.
    AdamW {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the denominator.
        eps: f64,
        /// Decoupled weight decay.
        weight_decay: f64,
    },
}

impl InnerOptimizer {
    /// That of PERK.
    pub const ADAMW: Self = Self::AdamW {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.01,
    };
}

/// How many steps, and how they are differentiated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unroll {
    /// The optimiser.
    pub optimizer: InnerOptimizer,
    /// Steps.
    pub steps: usize,
    /// Steps at the end through whose gradient the outer gradient goes; 0 is first-order MAML.
    pub retained: usize,
}

/// Why steps could not be taken or differentiated.
#[derive(Debug, Error)]
pub enum UnrollError<E> {
    /// What the inner loss says.
    #[error(transparent)]
    Loss(E),
    /// A loss or a gradient that is infinite or not a number.
    #[error(
        "the inner loss of step {step} or its gradient is not finite: lower the inner learning rates"
    )]
    NotFinite {
        /// The step, from 1.
        step: usize,
    },
    /// Tensors that do not fit together.
    #[error("{0}")]
    Shapes(String),
}

/// What one step leaves for the way back: both moments follow from the gradients.
#[derive(Clone, Debug)]
struct Step<F> {
    /// Before the step.
    fast: Tensors<F>,
    gradient: Tensors<F>,
}

/// Steps that were taken.
#[derive(Clone, Debug)]
pub struct Tape<F> {
    steps: Vec<Step<F>>,
    /// The fast weights after the last step.
    pub fast: Tensors<F>,
    /// The inner loss before each step.
    pub losses: Vec<f64>,
}

/// The gradient of an outer loss through the inner steps.
#[derive(Clone, Debug)]
pub struct MetaGradient<F> {
    /// By the fast weights before the first step.
    pub fast: Tensors<F>,
    /// By the other parameters of the inner loss; empty where no step is retained.
    pub other: Tensors<F>,
    /// By the rates, by tensor and step.
    pub rates: Vec<Vec<f64>>,
}

fn dot<F: Element>(a: &[Vec<F>], b: &[Vec<F>]) -> f64 {
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs.map(|(a, b)| a.get() * b.get()).sum()
}

/// The Euclidean length of all values.
pub fn norm<F: Element>(tensors: &[Vec<F>]) -> f64 {
    dot(tensors, tensors).sqrt()
}

fn same_shapes<F>(a: &[Vec<F>], b: &[Vec<F>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.len() == b.len())
}

fn is_finite<F: Element>(tensors: &[Vec<F>]) -> bool {
    tensors.iter().flatten().all(|v| v.get().is_finite())
}

impl Unroll {
    fn check<F, E>(&self, start: &[Vec<F>], rates: &[Vec<F>]) -> Result<(), UnrollError<E>> {
        if self.retained > self.steps {
            return Err(UnrollError::Shapes(format!(
                "{} of {} inner steps cannot be retained",
                self.retained, self.steps
            )));
        }
        let short = rates.iter().any(|of| of.len() < self.steps);
        if rates.len() == start.len() && !short {
            return Ok(());
        }
        Err(UnrollError::Shapes(format!(
            "{} tensors and {} steps need a learning rate each; there are rates for {} tensors",
            start.len(),
            self.steps,
            rates.len()
        )))
    }

    /// Takes the steps and keeps what [`Self::backward`] needs: twice the fast weights for each.
    /// `rates[tensor][step]`; entries beyond the last step are without effect.
    ///
    /// # Errors
    /// What the inner loss says, a loss that is not finite, tensors that do not fit together.
    pub fn adapt<F: Element, L: InnerLoss<F>>(
        &self,
        loss: &mut L,
        start: &[Vec<F>],
        rates: &[Vec<F>],
    ) -> Result<Tape<F>, UnrollError<L::Error>> {
        self.run(loss, start, rates, true)
    }

    /// Takes the steps; returns the fast weights after the last, and the loss before each.
    ///
    /// # Errors
    /// As [`Self::adapt`].
    pub fn adapt_only<F: Element, L: InnerLoss<F>>(
        &self,
        loss: &mut L,
        start: &[Vec<F>],
        rates: &[Vec<F>],
    ) -> Result<(Tensors<F>, Vec<f64>), UnrollError<L::Error>> {
        let tape = self.run(loss, start, rates, false)?;
        Ok((tape.fast, tape.losses))
    }

    fn run<F: Element, L: InnerLoss<F>>(
        &self,
        loss: &mut L,
        start: &[Vec<F>],
        rates: &[Vec<F>],
        keep: bool,
    ) -> Result<Tape<F>, UnrollError<L::Error>> {
        self.check(start, rates)?;
        let mut fast = start.to_vec();
        let zeros = || -> Tensors<f64> { start.iter().map(|t| vec![0.0; t.len()]).collect() };
        let (mut first, mut second) = match self.optimizer {
            InnerOptimizer::Sgd => (Vec::new(), Vec::new()),
            InnerOptimizer::AdamW { .. } => (zeros(), zeros()),
        };
        let (mut steps, mut losses) = (Vec::new(), Vec::with_capacity(self.steps));
        for n in 1..=self.steps {
            let found = loss.gradient(&fast).map_err(UnrollError::Loss)?;
            if !same_shapes(&found.fast, &fast) {
                return Err(UnrollError::Shapes(
                    "the gradient has other shapes than the fast weights".into(),
                ));
            }
            if !found.loss.is_finite() || !is_finite(&found.fast) {
                return Err(UnrollError::NotFinite { step: n });
            }
            losses.push(found.loss);
            let before = keep.then(|| fast.clone());
            for (p, values) in fast.iter_mut().enumerate() {
                let (g, rate) = (&found.fast[p], rates[p][n - 1].get());
                match self.optimizer {
                    InnerOptimizer::Sgd => {
                        for (value, g) in values.iter_mut().zip(g) {
                            *value = F::of(value.get() - rate * g.get());
                        }
                    }
                    InnerOptimizer::AdamW {
                        beta1,
                        beta2,
                        eps,
                        weight_decay,
                    } => {
                        let adam = Moments::new(beta1, beta2, eps, n);
                        for (i, value) in values.iter_mut().enumerate() {
                            let g = g[i].get();
                            let m = beta1 * first[p][i] + (1.0 - beta1) * g;
                            let v = beta2 * second[p][i] + (1.0 - beta2) * g * g;
                            (first[p][i], second[p][i]) = (m, v);
                            let u = adam.update(m, v);
                            let kept = value.get() * (1.0 - rate * weight_decay);
                            *value = F::of(kept - rate * u);
                        }
                    }
                }
            }
            if let Some(before) = before {
                steps.push(Step {
                    fast: before,
                    gradient: found.fast,
                });
            }
        }
        Ok(Tape {
            steps,
            fast,
            losses,
        })
    }

    /// From the gradient of an outer loss by the fast weights after the last step to its gradient by
    /// everything that the steps rest on. Two evaluations of the inner loss for each retained step,
    /// and those that `differences` takes to find a distance.
    ///
    /// # Errors
    /// As [`Self::adapt`].
    pub fn backward<F: Element, L: InnerLoss<F>>(
        &self,
        loss: &mut L,
        tape: &Tape<F>,
        rates: &[Vec<F>],
        outer: &[Vec<F>],
        differences: &mut Differences,
    ) -> Result<MetaGradient<F>, UnrollError<L::Error>> {
        self.check(outer, rates)?;
        if tape.steps.len() != self.steps || !same_shapes(outer, &tape.fast) {
            return Err(UnrollError::Shapes(
                "the gradient does not belong to the steps that were taken".into(),
            ));
        }
        let mut back = outer.to_vec();
        let zeros = || -> Vec<[f64; 2]> { vec![[0.0; 2]; outer.iter().map(Vec::len).sum()] };
        let mut moments = zeros();
        let mut other: Tensors<F> = Vec::new();
        let mut by_rate = vec![vec![0.0; self.steps]; outer.len()];
        for n in (1..=self.steps).rev() {
            let step = &tape.steps[n - 1];
            let retained = n + self.retained > self.steps;
            let mut direction: Tensors<F> = Vec::new();
            let mut moments = moments.iter_mut();
            for (p, back) in back.iter_mut().enumerate() {
                let rate = rates[p][n - 1].get();
                let mut by_gradient = Vec::with_capacity(if retained { back.len() } else { 0 });
                for (i, (back, moments)) in back.iter_mut().zip(&mut moments).enumerate() {
                    let gradients = tape.steps[..n].iter().map(|s| s.gradient[p][i].get());
                    let element = Reversed {
                        by_value: back.get(),
                        value: step.fast[p][i].get(),
                        rate,
                    };
                    let (by_value, by_one, by_rate_of) =
                        element.through(&self.optimizer, gradients, n, moments);
                    *back = F::of(by_value);
                    by_rate[p][n - 1] += by_rate_of;
                    if retained {
                        by_gradient.push(F::of(by_one));
                    }
                }
                if retained {
                    direction.push(by_gradient);
                }
            }
            if retained {
                let distance = differences.distance(n, loss, &step.fast, &direction)?;
                let product = product(loss, &step.fast, &direction, distance, n)?;
                add(&mut back, &product.fast);
                match other.is_empty() {
                    true => other = product.other,
                    false => add(&mut other, &product.other),
                }
            }
        }
        Ok(MetaGradient {
            fast: back,
            other,
            rates: by_rate,
        })
    }
}

/// One value on the way back through one step.
struct Reversed {
    /// The outer gradient by it after the step.
    by_value: f64,
    /// It before the step.
    value: f64,
    /// Its learning rate.
    rate: f64,
}

impl Reversed {
    /// The outer gradient by the value before the step (without the way through the gradient), by its
    /// inner gradient, and by its rate. `moments` are the outer gradients by both moments, after the
    /// step and then before it.
    fn through(
        &self,
        optimizer: &InnerOptimizer,
        gradients: impl Iterator<Item = f64>,
        n: usize,
        moments: &mut [f64; 2],
    ) -> (f64, f64, f64) {
        let (of, rate) = (self.by_value, self.rate);
        let InnerOptimizer::AdamW {
            beta1,
            beta2,
            eps,
            weight_decay,
        } = *optimizer
        else {
            let g = gradients.last().unwrap_or(0.0);
            return (of, -rate * of, -of * g);
        };
        // In double precision from the gradients: in a first step the two ways through the moments
        // cancel but for ε.
        let (mut m, mut v, mut g) = (0.0, 0.0, 0.0);
        for next in gradients {
            g = next;
            m = beta1 * m + (1.0 - beta1) * g;
            v = beta2 * v + (1.0 - beta2) * g * g;
        }
        let adam = Moments::new(beta1, beta2, eps, n);
        let (u, d) = (adam.update(m, v), adam.denominator(v));
        let slope = match v > 0.0 {
            true => 1.0 / (2.0 * v.sqrt() * adam.bias2),
            false => 0.0,
        };
        let by_m = moments[0] - rate * of / (adam.bias1 * d);
        let by_v = moments[1] + rate * of * u / d * slope;
        *moments = [beta1 * by_m, beta2 * by_v];
        (
            of * (1.0 - rate * weight_decay),
            (1.0 - beta1) * by_m + (1.0 - beta2) * 2.0 * g * by_v,
            of * (-weight_decay * self.value - u),
        )
    }
}

/// How far apart the gradients of a central difference are, along a direction of length 1.
#[derive(Clone, Debug)]
pub struct Differences {
    fixed: Option<f64>,
    tolerance: f64,
    /// By step, as far as they were searched for.
    found: Vec<Option<f64>>,
}

impl Differences {
    /// Always so far.
    pub fn fixed(distance: f64) -> Self {
        Self {
            fixed: Some(distance),
            tolerance: 0.0,
            found: Vec::new(),
        }
    }

    /// Searched for once for each step, until a product with the Hessian is stable to `tolerance`.
    pub fn searched(tolerance: f64) -> Self {
        Self {
            fixed: None,
            tolerance,
            found: Vec::new(),
        }
    }

    /// Forgets what was found, so that it is searched for again.
    pub fn forget(&mut self) {
        self.found.clear();
    }

    /// The distance of a step. A search begins at a hundredth of the length of the weights, and at
    /// 0.01 at least.
    fn distance<F: Element, L: InnerLoss<F>>(
        &mut self,
        step: usize,
        loss: &mut L,
        fast: &[Vec<F>],
        direction: &[Vec<F>],
    ) -> Result<f64, UnrollError<L::Error>> {
        if let Some(fixed) = self.fixed {
            return Ok(fixed);
        }
        if self.found.len() < step {
            self.found.resize(step, None);
        }
        if let Some(found) = self.found[step - 1] {
            return Ok(found);
        }
        let start = 1e-2 * norm(fast).max(1.0);
        let found = stable_difference(loss, fast, direction, start, self.tolerance)?;
        self.found[step - 1] = Some(found);
        Ok(found)
    }
}

fn add<F: Element>(sum: &mut [Vec<F>], more: &[Vec<F>]) {
    let pairs = sum.iter_mut().flatten().zip(more.iter().flatten());
    pairs.for_each(|(sum, more)| *sum = F::of(sum.get() + more.get()));
}

/// The numbers of AdamW in one step.
struct Moments {
    bias1: f64,
    /// `√(1 − β2ⁿ)`.
    bias2: f64,
    eps: f64,
}

impl Moments {
    fn new(beta1: f64, beta2: f64, eps: f64, n: usize) -> Self {
        Self {
            bias1: 1.0 - beta1.powi(n as i32),
            bias2: (1.0 - beta2.powi(n as i32)).sqrt(),
            eps,
        }
    }

    fn denominator(&self, v: f64) -> f64 {
        v.sqrt() / self.bias2 + self.eps
    }

    fn update(&self, m: f64, v: f64) -> f64 {
        m / self.bias1 / self.denominator(v)
    }
}

/// The derivative of both gradients along a direction, times its length: `H λ` and the mixed one.
fn product<F: Element, L: InnerLoss<F>>(
    loss: &mut L,
    fast: &[Vec<F>],
    direction: &[Vec<F>],
    difference: f64,
    step: usize,
) -> Result<InnerGradient<F>, UnrollError<L::Error>> {
    let length = norm(direction);
    if !length.is_finite() {
        return Err(UnrollError::NotFinite { step });
    }
    let mut at = |offset: f64| {
        let scale = if length > 0.0 { offset / length } else { 0.0 };
        let moved: Tensors<F> = fast
            .iter()
            .zip(direction)
            .map(|(values, along)| {
                let pairs = values.iter().zip(along);
                pairs
                    .map(|(value, along)| F::of(value.get() + scale * along.get()))
                    .collect()
            })
            .collect();
        loss.gradient(&moved).map_err(UnrollError::Loss)
    };
    let (ahead, behind) = (at(difference)?, at(-difference)?);
    let factor = length / (2.0 * difference);
    let apart = |ahead: Tensors<F>, behind: Tensors<F>| -> Tensors<F> {
        let mut ahead = ahead;
        let pairs = ahead.iter_mut().flatten().zip(behind.iter().flatten());
        pairs.for_each(|(a, b)| *a = F::of((a.get() - b.get()) * factor));
        ahead
    };
    let found = InnerGradient {
        loss: 0.0,
        fast: apart(ahead.fast, behind.fast),
        other: apart(ahead.other, behind.other),
    };
    match is_finite(&found.fast) && is_finite(&found.other) {
        true => Ok(found),
        false => Err(UnrollError::NotFinite { step }),
    }
}

/// A distance for the differences of an inner loss at which halving it changes the product with a
/// direction by less than `tolerance` of its length: from `start`, it is halved and doubled in turn,
/// at most so many times as make a factor of 2⁸ either way. The least change that was seen decides
/// where none is that small.
///
/// # Errors
/// As [`Unroll::adapt`].
pub fn stable_difference<F: Element, L: InnerLoss<F>>(
    loss: &mut L,
    fast: &[Vec<F>],
    direction: &[Vec<F>],
    start: f64,
    tolerance: f64,
) -> Result<f64, UnrollError<L::Error>> {
    let mut best = (f64::INFINITY, start);
    if norm(direction) == 0.0 {
        return Ok(start);
    }
    let offsets = (0..=8).flat_map(|i| [i, -i]).skip(1);
    for exponent in offsets {
        let wide = start * 2f64.powi(exponent);
        let a = product(loss, fast, direction, wide, 0)?.fast;
        let b = product(loss, fast, direction, wide / 2.0, 0)?.fast;
        let length = norm(&b);
        let apart: f64 = a
            .iter()
            .flatten()
            .zip(b.iter().flatten())
            .map(|(a, b)| (a.get() - b.get()).powi(2))
            .sum();
        let change = match length > 0.0 {
            true => apart.sqrt() / length,
            false => apart.sqrt(),
        };
        if change < best.0 {
            best = (change, wide / 2.0);
        }
        if best.0 <= tolerance {
            break;
        }
    }
    Ok(best.1)
}
