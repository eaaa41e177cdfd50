//! How much a test has used, for tests that hold hostile input to a limit.

use std::time::{Duration, Instant};

/// Processor time of this process so far, which other programs on the machine do not change; time on
/// the wall where the system does not tell it.
pub(crate) fn used_time(start: Instant) -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    // utime and stime, in hundredths of a second.
    let ticks: Vec<u64> = fields
        .split(' ')
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse().ok())
        .collect();
    match ticks[..] {
        [user, system] => Duration::from_millis(10 * (user + system)),
        _ => start.elapsed(),
    }
}
