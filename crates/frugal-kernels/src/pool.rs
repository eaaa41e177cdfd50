//! Running many small operations in a row on a thread of the pool.

/// Runs `f` on a thread of the pool. Operations inside hand work to the other threads without waking this one first, which for
/// operations of a few microseconds is most of their time.
pub fn on_pool<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| f())
}
