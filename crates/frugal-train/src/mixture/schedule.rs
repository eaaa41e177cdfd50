//! When arms are measured.

/// When arms are measured, and from when on the controller decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Steps with every arm as likely as any other.
    pub uniform_steps: u64,
    /// Steps after which arms are measured.
    pub evaluations: Vec<u64>,
    /// Behind the last of these: every so many steps, never for 0.
    pub every: u64,
}

impl Schedule {
    /// Whether arms are measured after so many steps: before the first, at the listed ones, and
    /// regularly behind them.
    pub fn is_due(&self, step: u64) -> bool {
        if step == 0 || self.evaluations.contains(&step) {
            return true;
        }
        let last = self.evaluations.iter().copied().max().unwrap_or(0);
        self.every > 0 && step > last && (step - last).is_multiple_of(self.every)
    }

    /// Whether the controller decides after so many steps.
    pub fn decides(&self, step: u64) -> bool {
        step >= self.uniform_steps
    }
}
