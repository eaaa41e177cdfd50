//! What the steps make small, and tensors as they see them.

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

fn dot<F: Element>(a: &[Vec<F>], b: &[Vec<F>]) -> f64 {
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs.map(|(a, b)| a.get() * b.get()).sum()
}

/// The Euclidean length of all values.
pub fn norm<F: Element>(tensors: &[Vec<F>]) -> f64 {
    dot(tensors, tensors).sqrt()
}

pub(super) fn same_shapes<F>(a: &[Vec<F>], b: &[Vec<F>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.len() == b.len())
}

pub(super) fn is_finite<F: Element>(tensors: &[Vec<F>]) -> bool {
    tensors.iter().flatten().all(|v| v.get().is_finite())
}

pub(super) fn add<F: Element>(sum: &mut [Vec<F>], more: &[Vec<F>]) {
    let pairs = sum.iter_mut().flatten().zip(more.iter().flatten());
    pairs.for_each(|(sum, more)| *sum = F::of(sum.get() + more.get()));
}
