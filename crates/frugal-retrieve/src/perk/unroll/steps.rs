//! The steps, forwards and backwards.

use super::differences::{Differences, product};
use super::error::UnrollError;
use super::inner::{Element, InnerLoss, InnerOptimizer, Tensors, add, is_finite, same_shapes};

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
