//! Named random streams: what one thing draws does not depend on the order in which things are
//! made.

/// A random stream for one named thing, independent of the order in which things are made.
pub fn named_rng(seed: u64, name: &str) -> rand_chacha::ChaCha8Rng {
    use rand::SeedableRng;
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update(name.as_bytes());
    rand_chacha::ChaCha8Rng::from_seed(hash.finalize().into())
}

/// A number from 0 up to 1.
pub fn uniform(rng: &mut impl rand::Rng) -> f64 {
    rng.random()
}

/// A standard normal number (Box-Muller).
pub fn standard_normal(rng: &mut impl rand::Rng) -> f32 {
    let u: f64 = 1.0 - rng.random::<f64>();
    let v: f64 = rng.random();
    ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
}
