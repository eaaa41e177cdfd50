//! Time and memory of each stage.

use std::time::Instant;

use frugal_core::events::{current_rss_bytes, peak_rss_bytes};
use serde::Serialize;

/// What one stage took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stage {
    /// Its name.
    pub name: &'static str,
    /// Times that it ran.
    pub calls: usize,
    /// Seconds of all of them.
    pub seconds: f64,
    /// Resident memory of the process after the last of them; absent where the system does not say.
    pub resident_bytes: Option<u64>,
    /// The most resident memory that the process had until then.
    pub peak_bytes: Option<u64>,
}

/// The stages of some work, in the order in which they first ran.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Stages(Vec<Stage>);

impl Stages {
    /// Does the work of a stage and counts what it took.
    pub fn time<T>(&mut self, name: &'static str, work: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        let done = work();
        self.add(name, begin.elapsed().as_secs_f64());
        done
    }

    /// Counts a stage that was timed elsewhere.
    pub fn add(&mut self, name: &'static str, seconds: f64) {
        let (resident_bytes, peak_bytes) = (current_rss_bytes(), peak_rss_bytes());
        match self.0.iter_mut().find(|stage| stage.name == name) {
            Some(stage) => {
                stage.calls += 1;
                stage.seconds += seconds;
                (stage.resident_bytes, stage.peak_bytes) = (resident_bytes, peak_bytes);
            }
            None => self.0.push(Stage {
                name,
                calls: 1,
                seconds,
                resident_bytes,
                peak_bytes,
            }),
        }
    }

    /// The stages.
    pub fn iter(&self) -> impl Iterator<Item = &Stage> {
        self.0.iter()
    }

    /// Seconds of a stage; 0 for one that did not run.
    pub fn seconds(&self, name: &str) -> f64 {
        let found = self.0.iter().find(|stage| stage.name == name);
        found.map_or(0.0, |stage| stage.seconds)
    }

    /// Seconds of all stages.
    pub fn total(&self) -> f64 {
        self.0.iter().map(|stage| stage.seconds).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_that_runs_again_is_counted_under_its_name() {
        let mut stages = Stages::default();
        stages.add("search", 0.5);
        stages.add("generate", 2.0);
        stages.add("search", 0.25);
        let found: Vec<(&str, usize, f64)> = stages
            .iter()
            .map(|s| (s.name, s.calls, s.seconds))
            .collect();
        assert_eq!(found, [("search", 2, 0.75), ("generate", 1, 2.0)]);
        assert_eq!((stages.total(), stages.seconds("rerank")), (2.75, 0.0));
        assert_eq!(stages.time("work", || 7), 7);
    }
}
