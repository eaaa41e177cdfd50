//! Running many operations in a row on a thread of the pool.

use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a thread looks for work without a pause, which the gaps between operations seldom exceed.
const BUSY: Duration = Duration::from_millis(2);
/// The longest pause after that.
const PAUSE: Duration = Duration::from_millis(5);
/// Threads that stay awake at most: more would disturb each other.
const AWAKE: usize = 16;

/// Runs `f` on a thread of the pool; a program does best to run whole in it. Operations inside hand work to the other threads
/// without sleeping and waking on this one, which for operations of a few microseconds is most of their time, and a thirtieth
/// of a step of training.
///
/// Nor do the other threads sleep: they look for work all the time, and less and less often when there is none for 2 ms.
pub fn on_pool<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    if rayon::current_thread_index().is_some() {
        return f();
    }
    rayon::scope(|_| {
        let finished = Arc::new(AtomicBool::new(false));
        let _finish = Finish(finished.clone());
        let caller = rayon::current_thread_index();
        // Not of this scope, whose end must not wait for what they have found to do.
        rayon::spawn_broadcast(move |context| {
            if context.index() < AWAKE && Some(context.index()) != caller {
                stay_awake(&finished);
            }
        });
        f()
    })
}

/// Works off what the pool has to do until `finished` is set.
fn stay_awake(finished: &AtomicBool) {
    let mut last_work = Instant::now();
    while !finished.load(Ordering::Relaxed) {
        if rayon::yield_now() == Some(rayon::Yield::Executed) {
            last_work = Instant::now();
            continue;
        }
        let idle = last_work.elapsed();
        if idle < BUSY {
            (0..16).for_each(|_| spin_loop());
        } else {
            thread::sleep((idle / 16).min(PAUSE));
        }
    }
}

/// Lets the others go, also where `f` panics.
struct Finish(Arc<AtomicBool>);

impl Drop for Finish {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_program_does_not_wait_for_another() {
        if rayon::current_num_threads() < 2 {
            return;
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        thread::scope(|scope| {
            // Work of another thread that ends after this one, whoever of the pool has taken it.
            scope.spawn(move || on_pool(move || receiver.recv().unwrap()));
            let inner = on_pool(|| on_pool(|| rayon::join(|| 20, || 22)));
            sender.send(inner).unwrap();
            assert_eq!(inner, (20, 22));
        });
    }
}
