//! How fast work goes, and how long the rest of it takes.

use std::time::{Duration, Instant};

use frugal_core::human::duration;

/// Time after which what was measured counts for a third.
const MEMORY: f64 = 30.0;

/// A rate from sums that fade: what was long ago counts less, and a pause (an evaluation, a
/// checkpoint) counts as the time that it takes.
pub struct Rate {
    last: Instant,
    done: f64,
    work: f64,
    time: f64,
}

impl Rate {
    /// Work of which so much is done already begins now.
    pub fn new(now: Instant, done: f64) -> Self {
        Self {
            last: now,
            done,
            work: 0.0,
            time: 0.0,
        }
    }

    /// So much is done now.
    pub fn update(&mut self, now: Instant, done: f64) {
        let seconds = now.saturating_duration_since(self.last).as_secs_f64();
        let fade = (-seconds / MEMORY).exp();
        self.work = self.work * fade + (done - self.done).max(0.0);
        self.time = self.time * fade + seconds;
        (self.last, self.done) = (now, done);
    }

    /// Pieces of work a second; none before the first.
    pub fn per_second(&self) -> Option<f64> {
        (self.work > 0.0 && self.time > 0.0).then(|| self.work / self.time)
    }

    /// Time that the rest takes at this rate, less what passed since it was measured; never 0
    /// while there is a rest.
    pub fn left(&self, now: Instant, total: f64) -> Option<Duration> {
        let rest = total - self.done;
        if rest <= 0.0 {
            return Some(Duration::ZERO);
        }
        let waited = now.saturating_duration_since(self.last).as_secs_f64();
        let seconds = (rest / self.per_second()? - waited).clamp(1.0, 1e9);
        Some(Duration::from_secs_f64(seconds))
    }

    /// ` · 3 min 05 s left`, or nothing where that is not known.
    pub fn left_text(&self, now: Instant, total: f64) -> String {
        let left = self.left(now, total).filter(|left| !left.is_zero());
        left.map_or_else(String::new, |left| {
            format!(" · {} left", duration(left.as_secs_f64()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_steady_rate_is_found_and_the_rest_counted_down() {
        let start = Instant::now();
        let mut rate = Rate::new(start, 10.0);
        assert_eq!(rate.left(start, 100.0), None);
        assert_eq!(rate.left_text(start, 100.0), "");
        for i in 1..=20 {
            rate.update(at(start, 0.5 * f64::from(i)), 10.0 + f64::from(i));
        }
        // 2 a second, 70 left.
        assert!((rate.per_second().unwrap() - 2.0).abs() < 1e-9);
        let left = |seconds| rate.left(at(start, seconds), 100.0).unwrap().as_secs_f64();
        assert!((left(10.0) - 35.0).abs() < 1e-6 && (left(15.0) - 30.0).abs() < 1e-6);
        // A step that takes longer than was thought does not end at 0.
        assert_eq!(left(1000.0), 1.0);
        assert_eq!(rate.left(at(start, 10.0), 30.0), Some(Duration::ZERO));
    }

    #[test]
    fn a_change_of_speed_shows_and_one_slow_piece_does_not_rule() {
        let start = Instant::now();
        let mut rate = Rate::new(start, 0.0);
        let mut now = 0.0;
        for i in 1..=100 {
            now += 1.0;
            rate.update(at(start, now), f64::from(i));
        }
        now += 10.0;
        rate.update(at(start, now), 101.0);
        let after_pause = rate.per_second().unwrap();
        assert!((0.6..0.9).contains(&after_pause), "{after_pause}");
        for i in 1..=1000 {
            now += 0.1;
            rate.update(at(start, now), 101.0 + f64::from(i));
        }
        let fast = rate.per_second().unwrap();
        assert!((9.0..10.01).contains(&fast), "{fast}");
    }
}
