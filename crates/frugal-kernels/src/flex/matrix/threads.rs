//! Who shares the work.

/// Who shares the work of a product. The result does not depend on it.
#[derive(Clone, Copy)]
pub(crate) enum Threads {
    /// The calling thread; for products inside a parallel loop.
    One,
    /// All threads, when the product is large enough.
    All,
}
