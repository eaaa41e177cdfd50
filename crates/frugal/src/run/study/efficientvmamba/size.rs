//! How large models are and how long they learn.

/// How large models are and how long they learn.
pub(super) struct Size {
    /// Sides of images and of patches.
    pub image: usize,
    pub patch: usize,
    /// Width of the first stage of the first arm.
    pub width: usize,
    /// Blocks of each of two stages.
    pub depth: usize,
    /// Numbers that a channel of a scan remembers.
    pub state: usize,
    pub steps: u64,
    pub batch_size: usize,
    pub crop_padding: usize,
    /// Images of each class to pick rates by.
    pub tuning: usize,
    /// Images of each class, 0 for all: to learn from and pick rates by, to report on.
    pub images: [usize; 2],
    /// Multiples of the rate that are tried.
    pub factors: &'static [f64],
}

impl Size {
    pub fn of(smoke: bool) -> Self {
        let full = Self {
            image: 32,
            patch: 4,
            width: 32,
            depth: 2,
            state: 16,
            steps: 700,
            batch_size: 64,
            crop_padding: 4,
            tuning: 100,
            images: [0, 0],
            factors: &[1.0 / 3.0, 1.0, 3.0],
        };
        match smoke {
            false => full,
            true => Self {
                patch: 8,
                width: 16,
                depth: 1,
                state: 4,
                steps: 2,
                batch_size: 8,
                tuning: 1,
                images: [3, 2],
                factors: &[1.0],
                ..full
            },
        }
    }
}
