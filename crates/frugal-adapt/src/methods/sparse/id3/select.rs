//! Which candidates are released.

/// Orders magnitudes from the smallest: larger for a smaller `|θ|`, exactly, and never negative.
pub(crate) fn smallest_first(weight: f32) -> f32 {
    f32::from_bits(f32::MAX.to_bits() - weight.abs().min(f32::MAX).to_bits())
}

/// A number of its own for every element of a tensor, the same in every run of this seed.
pub(crate) fn random(seed: u64, tensor: &str, len: usize) -> Vec<f32> {
    let mut rng = frugal_nn::named_rng(seed, &format!("{tensor} id3"));
    (0..len)
        .map(|_| rand::Rng::random::<f32>(&mut rng))
        .collect()
}

/// `|g| / (|θ| + eps)^exp`.
pub(crate) fn score(gradient: f32, weight: f32, exp: f64, eps: f64) -> f32 {
    let magnitude = f64::from(weight.abs()) + eps;
    let divisor = if exp == 1.0 {
        magnitude
    } else {
        magnitude.powf(exp)
    };
    (f64::from(gradient.abs()) / divisor) as f32
}

/// The `count` highest scores, as (tensor, index); ties go to the earlier. `scores` calls back with
/// tensor, index and score of every candidate, in order, each time it is called.
pub(crate) fn highest(
    count: usize,
    mut scores: impl FnMut(&mut dyn FnMut(usize, usize, f32)),
) -> Vec<(usize, usize)> {
    // Scores are not negative, so their bits are in the order of their values; the upper half sorts
    // them into bins.
    let bin = |score: f32| (score.to_bits() >> 16) as usize;
    let mut bins = vec![0usize; 1 << 16];
    scores(&mut |_, _, score| bins[bin(score)] += 1);
    let (mut above, mut cutoff) = (0, bins.len());
    while cutoff > 0 && above < count {
        cutoff -= 1;
        above += bins[cutoff];
    }
    let (mut chosen, mut last) = (Vec::new(), Vec::new());
    scores(&mut |tensor, index, score| match bin(score).cmp(&cutoff) {
        std::cmp::Ordering::Greater => chosen.push((tensor, index)),
        std::cmp::Ordering::Equal => last.push((score, tensor, index)),
        std::cmp::Ordering::Less => {}
    });
    last.sort_by(|a, b| b.0.total_cmp(&a.0));
    let missing = count.saturating_sub(chosen.len());
    chosen.extend(
        last.into_iter()
            .take(missing)
            .map(|(_, tensor, index)| (tensor, index)),
    );
    chosen
}
