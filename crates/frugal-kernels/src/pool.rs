//! Running many operations in a row on a thread of the pool.

/// Runs `f` on a thread of the pool; a program does best to run whole in it. Operations inside hand work to the other threads
/// without sleeping and waking on this one, which for operations of a few microseconds is most of their time, and a thirtieth
/// of a step of training.
pub fn on_pool<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| f())
}
