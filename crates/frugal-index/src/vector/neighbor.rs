//! What a search over vectors finds.

/// A vector that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbor {
    /// Its key.
    pub key: u64,
    /// How near it is by the metric; higher is nearer.
    pub score: f64,
}
