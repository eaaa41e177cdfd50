//! Ctrl-C while answers come in: the work ends within a second, whatever it is doing. Answers are
//! written as they come, so nothing is lost but the batch in the making.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::ui::interrupt;

/// How often the flag is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Time for the work to end by itself.
const PATIENCE: Duration = Duration::from_millis(500);
/// Status of a program that was interrupted.
const INTERRUPTED: i32 = 130;

/// Watches for Ctrl-C as long as it lives.
pub(super) struct Stop {
    asked: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
}

impl Stop {
    /// Begins to watch.
    pub(super) fn new() -> Self {
        let asked = interrupt::flag("stopping; the same command goes on with what was answered");
        let over = Arc::new(AtomicBool::new(false));
        let (seen, ended) = (asked.clone(), over.clone());
        std::thread::spawn(move || {
            while !ended.load(Ordering::SeqCst) {
                std::thread::sleep(LOOK);
                if interrupt::asked(&seen) {
                    std::thread::sleep(PATIENCE);
                    if !ended.load(Ordering::SeqCst) {
                        std::process::exit(INTERRUPTED);
                    }
                    return;
                }
            }
        });
        Self { asked, over }
    }

    /// Whether the work was asked to stop.
    pub(super) fn asked(&self) -> bool {
        interrupt::asked(&self.asked)
    }

    /// The flag itself.
    pub(super) fn flag(&self) -> &Arc<AtomicBool> {
        &self.asked
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}
