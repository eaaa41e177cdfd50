//! Panics of crates that should have been errors.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static EXPECTED: Cell<usize> = const { Cell::new(0) };
}

/// Runs `work`, which calls code of others that panics on damaged input; a panic becomes an error
/// with its message.
///
/// # Errors
/// The panic's message.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    EXPECTED.set(EXPECTED.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(work));
    EXPECTED.set(EXPECTED.get() - 1);
    result.map_err(|payload| message(payload.as_ref()))
}

/// Whether a panic on this thread will be caught by [`caught`], so that a panic hook has nothing to
/// report.
pub fn is_expected() -> bool {
    EXPECTED.get() > 0
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message")
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_with_its_message() {
        let found = caught(|| -> u32 { panic!("index {} is outside", 3) });
        assert_eq!(found, Err("index 3 is outside".to_owned()));
        assert_eq!((caught(is_expected), is_expected()), (Ok(true), false));
    }
}
