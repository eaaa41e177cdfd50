//! How much a group matters.

/// What is known of one group's `A` and `B`.
#[derive(Clone, Default)]
pub(super) struct Score {
    /// Smoothed importance of every element of `A` and of `B`, and its uncertainty; empty before
    /// the first gradient.
    pub sides: [[Vec<f32>; 2]; 2],
    /// Gradients of the step that is computed.
    pub gradients: [Vec<f32>; 2],
    pub stopped: bool,
}

impl Score {
    /// After a step, with the values that it gave.
    pub fn update(&mut self, values: [Vec<f32>; 2], betas: [f32; 2]) {
        let gradients = std::mem::take(&mut self.gradients);
        for ((side, values), gradient) in self.sides.iter_mut().zip(values).zip(gradients) {
            if gradient.len() != values.len() {
                continue;
            }
            let [importance, uncertainty] = side;
            importance.resize(values.len(), 0.0);
            uncertainty.resize(values.len(), 0.0);
            for (n, (value, gradient)) in values.iter().zip(gradient).enumerate() {
                let now = (value * gradient).abs();
                let far = (now - importance[n]).abs();
                uncertainty[n] = betas[1] * uncertainty[n] + (1.0 - betas[1]) * far;
                importance[n] = betas[0] * importance[n] + (1.0 - betas[0]) * now;
            }
        }
    }

    /// How much the group matters; nothing before its first gradient.
    pub fn value(&self) -> Option<f32> {
        let mean = |[importance, uncertainty]: &[Vec<f32>; 2]| {
            let products = importance.iter().zip(uncertainty).map(|(i, u)| i * u);
            (!importance.is_empty()).then(|| products.sum::<f32>() / importance.len() as f32)
        };
        Some(mean(&self.sides[0])? + mean(&self.sides[1])?)
    }
}
