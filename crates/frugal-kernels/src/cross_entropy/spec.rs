//! What the loss is asked for.

/// Variations of the cross-entropy loss; the default is the plain loss.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CrossEntropyOptions {
    /// Share of the target probability spread evenly over the vocabulary.
    pub label_smoothing: f32,
    /// Weight of `log(sum(exp(logits)))^2`, which keeps the logits from drifting.
    pub z_loss: f32,
    /// Logits become `cap * tanh(logit / cap)` first.
    pub logit_softcap: Option<f32>,
}
