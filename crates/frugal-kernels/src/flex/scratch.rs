//! Memory for the intermediate results of a task, which each thread keeps for the next one.
//!
//! Tasks of a few microseconds that ask the allocator wait for each other there.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

const LINE: usize = 16;

/// A line of the cache, so that vectors lie within one.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

thread_local! {
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Values that go back to the thread that drops them.
pub(super) struct Scratch {
    lines: Vec<Line>,
    len: usize,
}

impl Scratch {
    /// Memory for `len` values, which hold whatever was left there.
    pub(super) fn new(len: usize) -> Self {
        if len == 0 {
            return Self {
                lines: Vec::new(),
                len,
            };
        }
        let mut lines = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
        if lines.len() * LINE < len {
            lines = vec![Line([0.0; LINE]); len.div_ceil(LINE)];
        }
        Self { lines, len }
    }

    /// Memory for `len` values, all of them 0.
    pub(super) fn zeros(len: usize) -> Self {
        let mut values = Self::new(len);
        values.fill(0.0);
        values
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.lines.is_empty() {
            return;
        }
        // A thread that ends keeps nothing.
        _ = FREE.try_with(|free| free.borrow_mut().push(std::mem::take(&mut self.lines)));
    }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: the lines hold at least `len` values.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: the lines hold at least `len` values and are borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_in_use_is_not_handed_out_again() {
        let mut outer = Scratch::new(100);
        outer.fill(1.0);
        for _ in 0..3 {
            let mut inner = Scratch::zeros(50);
            assert!(inner.len() == 50 && inner.iter().all(|&value| value == 0.0));
            inner.fill(2.0);
        }
        assert!(outer.len() == 100 && outer.iter().all(|&value| value == 1.0));
        drop(outer);
        assert!(Scratch::zeros(1000).iter().all(|&value| value == 0.0));
    }
}
