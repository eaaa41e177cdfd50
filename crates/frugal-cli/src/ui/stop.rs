//! The one request to stop that all work of this process looks at.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// The flag that work looks at, once there is work.
pub(super) static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();
/// Nobody looks on any more.
pub(super) static GONE: AtomicBool = AtomicBool::new(false);

/// Whether the terminal was closed.
pub(super) fn is_gone() -> bool {
    GONE.load(Ordering::SeqCst)
}

/// Asks the work to stop because nobody looks on any more; whether there was work to ask.
pub(super) fn hang_up() -> bool {
    GONE.store(true, Ordering::SeqCst);
    match STOP.get() {
        Some(stop) => {
            stop.store(true, Ordering::SeqCst);
            true
        }
        None => false,
    }
}
