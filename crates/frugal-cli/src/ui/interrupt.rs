//! Ctrl-C: the first one asks the work to stop, the second ends the program at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Installs the handler once and returns the flag that it sets. `note` is shown when it does.
pub fn flag(note: &'static str) -> Arc<AtomicBool> {
    STOP.get_or_init(|| {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let handler = move || {
            if seen.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            if !note.is_empty() {
                eprintln!("\n{note}");
            }
        };
        // Without a handler Ctrl-C ends the program, which is what the second one does anyway.
        let _ = ctrlc::set_handler(handler);
        stop
    })
    .clone()
}

/// Whether work was asked to stop.
pub fn asked(flag: &AtomicBool) -> bool {
    flag.load(Ordering::SeqCst)
}
