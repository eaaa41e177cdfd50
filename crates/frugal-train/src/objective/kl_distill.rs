//! Learning from a teacher how its scores divide over the texts of an anchor.

use burn::prelude::*;
use burn::tensor::activation::log_softmax;
use serde::Deserialize;

use super::text_sets::{Similarity, TextSets, constant};
use super::vector_loss::{Kind, VectorLoss};

/// Settings of [`KlDistill`].
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KlDistillConfig {
    /// What both scores are divided by.
    pub temperature: f64,
    /// What the similarities are divided by, where it is another.
    pub student_temperature: Option<f64>,
    /// What the teacher's scores are divided by, where it is another.
    pub teacher_temperature: Option<f64>,
    /// How near two vectors are.
    pub similarity: Similarity,
}

impl Default for KlDistillConfig {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            student_temperature: None,
            teacher_temperature: None,
            similarity: Similarity::Dot,
        }
    }
}

/// KL divergence of the similarities from a teacher's scores (mostly those of a cross-encoder), both
/// through a softmax over the texts of an anchor, as sentence-transformers' `DistillKLDivLoss`.
pub struct KlDistill {
    student: f64,
    teacher: f64,
    similarity: Similarity,
}

impl KlDistill {
    /// From its settings.
    ///
    /// # Errors
    /// A temperature that is none.
    pub fn new(config: KlDistillConfig) -> Result<Self, String> {
        let student = config.student_temperature.unwrap_or(config.temperature);
        let teacher = config.teacher_temperature.unwrap_or(config.temperature);
        if [student, teacher].iter().all(|t| *t > 0.0 && t.is_finite()) {
            return Ok(Self {
                student,
                teacher,
                similarity: config.similarity,
            });
        }
        Err("`temperature` must be a positive number".into())
    }

    /// The teacher's shares, and their negative entropy.
    fn shares(&self, scores: &[f32]) -> (Vec<f32>, f64) {
        let scaled = scores.iter().map(|s| f64::from(*s) / self.teacher);
        let largest = scaled.clone().fold(f64::NEG_INFINITY, f64::max);
        let parts: Vec<f64> = scaled.map(|s| (s - largest).exp()).collect();
        let sum: f64 = parts.iter().sum();
        let shares: Vec<f64> = parts.iter().map(|p| p / sum).collect();
        let entropy = |p: &f64| if *p > 0.0 { p * p.ln() } else { 0.0 };
        let negative_entropy = shares.iter().map(entropy).sum();
        (shares.iter().map(|p| *p as f32).collect(), negative_entropy)
    }
}

impl VectorLoss for KlDistill {
    fn name(&self) -> &'static str {
        "kl_distill"
    }

    fn kind(&self) -> Kind {
        Kind::Taught
    }

    fn check(&self, texts: usize, scores: &[f32]) -> Result<(), String> {
        if texts < 3 {
            return Err("it has one text beside its anchor: `kl_distill` divides a teacher's scores over several".into());
        }
        if scores.len() == texts - 1 {
            return Ok(());
        }
        Err(format!(
            "it has {} scores, but `kl_distill` needs one of a teacher for each of the {} texts beside the anchor",
            scores.len(),
            texts - 1
        ))
    }

    fn similarity(&self) -> Similarity {
        self.similarity
    }

    fn loss(&self, examples: &TextSets<'_>) -> Tensor<1> {
        let scores = examples.to_anchors(self.similarity) / self.student;
        let (mut start, mut parts, mut constants) = (0, Vec::new(), 0.0);
        for set in examples.sets {
            let count = set.texts.len() - 1;
            let (shares, negative_entropy) = self.shares(&set.scores);
            constants += negative_entropy;
            let own = scores.clone().slice([start..start + count, 0..1]);
            let shares = constant(shares, [count, 1], &own);
            parts.push((log_softmax(own, 0) * shares).sum());
            start += count;
        }
        (Tensor::cat(parts, 0).sum().neg() + constants) * self.student.powi(2)
    }
}
