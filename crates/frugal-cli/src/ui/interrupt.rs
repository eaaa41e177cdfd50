//! Requests to end: Ctrl-C, a closed terminal, a standard error that takes nothing any more, a
//! parent process that is gone.
//!
//! The first Ctrl-C asks the work to stop, the second ends the program at once. A closed terminal
//! tells of itself in several ways and often more than once, so it only ever asks.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::output::say;
use super::stop::{GONE, STOP, hang_up, is_gone};

/// Installs the handler once and returns the flag that it sets. `note` is shown when it does.
pub fn flag(note: &'static str) -> Arc<AtomicBool> {
    let stop = STOP.get_or_init(|| {
        let stop = Arc::new(AtomicBool::new(false));
        // Without a handler Ctrl-C ends the program, which is what the second one does anyway.
        let _ = install(stop.clone(), note);
        stop
    });
    // It may have come before there was a flag.
    if is_gone() {
        stop.store(true, Ordering::SeqCst);
    }
    stop.clone()
}

/// Whether work was asked to stop.
pub fn asked(flag: &AtomicBool) -> bool {
    flag.load(Ordering::SeqCst)
}

/// While a run reads, and has taken no step that could be kept.
static READING: AtomicBool = AtomicBool::new(false);

/// Until [`begun`], a request ends the program at once: nothing would be kept by going on to the next
/// step, and what is read may never come.
pub fn reading() {
    READING.store(true, Ordering::SeqCst);
}

/// From now on there is something to keep.
pub fn begun() {
    READING.store(false, Ordering::SeqCst);
}

/// Ends a program that only reads, with no folder left in the way.
fn end_if_reading() {
    if READING.load(Ordering::SeqCst) {
        frugal::run::abandon();
        std::process::exit(130);
    }
}

/// What is done at a request of the user.
fn on_request(stop: &AtomicBool, seen: &AtomicBool, note: &str) {
    if seen.swap(true, Ordering::SeqCst) {
        std::process::exit(130);
    }
    end_if_reading();
    stop.store(true, Ordering::SeqCst);
    if !note.is_empty() {
        say(&format!("\n{note}"));
    }
}

#[cfg(unix)]
fn install(stop: Arc<AtomicBool>, note: &'static str) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU};
    let mut wanted = vec![SIGINT, SIGTERM, SIGXCPU, SIGUSR1, SIGUSR2];
    if !hang_up_is_ignored() {
        wanted.push(SIGHUP);
    }
    let mut signals = signal_hook::iterator::Signals::new(wanted)?;
    let watch = move || {
        let seen = AtomicBool::new(false);
        for signal in signals.forever() {
            match signal {
                SIGINT | SIGTERM => on_request(&stop, &seen, note),
                SIGHUP => {
                    GONE.store(true, Ordering::SeqCst);
                    stop.store(true, Ordering::SeqCst);
                    end_if_reading();
                }
                // A limit of time, or a scheduler that tells of one: both tell more than once, and
                // never mean that the checkpoint is not to be written.
                _ => {
                    end_if_reading();
                    if !stop.swap(true, Ordering::SeqCst) && !note.is_empty() {
                        say(&format!("\n{note}"));
                    }
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(watch)
        .map(|_| ())
}

/// A file that may grow no further is an error of the write, which is told, and not the end of the
/// program.
#[cfg(unix)]
pub fn fail_at_file_limits() {
    let ignored = Arc::new(AtomicBool::new(false));
    // Without the handler the program ends at the limit, as others do.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, ignored);
}

/// Other systems have no such limit.
#[cfg(not(unix))]
pub fn fail_at_file_limits() {}

#[cfg(not(unix))]
fn install(stop: Arc<AtomicBool>, note: &'static str) -> Result<(), ctrlc::Error> {
    let seen = AtomicBool::new(false);
    ctrlc::set_handler(move || on_request(&stop, &seen, note))
}

/// Whether the program was started to outlive its terminal (`nohup`).
#[cfg(unix)]
fn hang_up_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal_hook::consts::SIGHUP - 1)) != 0)
}

/// How long work that was asked to stop may take to write its checkpoint.
const GRACE: Duration = Duration::from_secs(120);

/// Ends this process when the other end of its standard input is closed, which is when the process
/// that started it is gone, however that ended.
pub fn end_with_parent() {
    let watch = || {
        let mut input = std::io::stdin().lock();
        let mut ignored = [0; 64];
        loop {
            match input.read(&mut ignored) {
                Ok(0) => break,
                Err(error) if error.kind() != std::io::ErrorKind::Interrupted => break,
                _ => {}
            }
        }
        if hang_up() {
            end_if_reading();
            std::thread::sleep(GRACE);
        }
        std::process::exit(130);
    };
    // Without the thread the process ends by itself, only later.
    let _ = std::thread::Builder::new()
        .name("parent".into())
        .spawn(watch);
}
