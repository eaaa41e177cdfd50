//! Running many operations in a row on a thread of the pool.

use std::cell::Cell;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a thread looks for work without a pause, which the gaps between operations seldom
/// exceed.
const BUSY: Duration = Duration::from_millis(2);
/// The longest pause after that.
const PAUSE: Duration = Duration::from_millis(5);
/// Threads that stay awake at most: more would disturb each other.
const AWAKE: usize = 16;

/// Calls of [`on_pool`] that are running.
static PROGRAMS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Whether this thread runs such a call, or stays awake for one: then it must not begin to stay
    /// awake.
    static ENGAGED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` on a thread of the pool; a program does best to run whole in it. Operations inside hand
/// work to the other threads without sleeping and waking on this one, which for operations of a few
/// microseconds is most of their time, and a thirtieth of a step of training.
///
/// Up to 16 threads look for work meanwhile instead of sleeping; where there is none for 2 ms they
/// pause, for 5 ms at most. `f` must not wait for another thread that needs the pool.
pub fn on_pool<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    if rayon::current_thread_index().is_some() {
        return f();
    }
    rayon::scope(|_| {
        let _engaged = Engaged::new();
        let _program = Program::begin();
        f()
    })
}

/// A running call, also where it panics.
struct Program;

impl Program {
    fn begin() -> Self {
        if PROGRAMS.fetch_add(1, Ordering::Relaxed) == 0 {
            // Not of the call's scope, whose end must not wait for what they have found to do.
            rayon::spawn_broadcast(|context| {
                if context.index() < AWAKE && !ENGAGED.get() {
                    stay_awake();
                }
            });
        }
        Self
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        PROGRAMS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Marks the thread as long as it lives.
struct Engaged {
    before: bool,
}

impl Engaged {
    fn new() -> Self {
        Self {
            before: ENGAGED.replace(true),
        }
    }
}

impl Drop for Engaged {
    fn drop(&mut self) {
        ENGAGED.set(self.before);
    }
}

/// Works off what the pool has to do until no call is running.
fn stay_awake() {
    let _engaged = Engaged::new();
    let mut last_work = Instant::now();
    while PROGRAMS.load(Ordering::Relaxed) > 0 {
        if rayon::yield_now() == Some(rayon::Yield::Executed) {
            last_work = Instant::now();
            continue;
        }
        let idle = last_work.elapsed();
        if idle < BUSY {
            (0..16).for_each(|_| spin_loop());
            // Other processes may want the processor.
            thread::yield_now();
        } else {
            thread::sleep((idle / 16).min(PAUSE));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_several_threads_all_come_to_an_end() {
        // Fails where another test has begun to use the pool, which then has as many threads as
        // processors.
        _ = rayon::ThreadPoolBuilder::new()
            .num_threads(4)
            .build_global();
        let sum = |n: u64| on_pool(|| on_pool(|| rayon::join(|| (0..n).sum::<u64>(), || n))).0;
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    (0..200).for_each(|n| assert_eq!(sum(n), n * n.saturating_sub(1) / 2))
                });
            }
        });
        assert!(std::panic::catch_unwind(|| on_pool(|| panic!("of the program"))).is_err());
        assert_eq!(PROGRAMS.load(Ordering::Relaxed), 0);
        assert!(!ENGAGED.get());
    }
}
