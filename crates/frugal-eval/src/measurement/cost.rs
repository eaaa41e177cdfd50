//! What a measurement costs itself: time, memory, energy.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::efficiency::{EnergyCounter, PowerModel, processor_seconds};
use frugal_core::events::{current_rss_bytes, peak_rss_bytes};

/// Where an energy comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PowerSource {
    /// The processors' own counters.
    Measured,
    /// Reckoned from the time and the processors' use: no measurement.
    Modelled,
}

impl PowerSource {
    /// As a column's heading says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Modelled => "modelled",
        }
    }
}

/// Energy and how it is known.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Energy {
    /// Joules.
    pub joules: f64,
    /// Whether they were measured.
    pub source: PowerSource,
}

/// Time, memory and energy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Seconds that passed.
    pub seconds: f64,
    /// Seconds of all processors, those of ended children included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processor_seconds: Option<f64>,
    /// Most resident memory of the process in this time, in bytes, where the system says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<u64>,
    /// Energy, where it can be measured or modelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy: Option<Energy>,
}

/// Measures what this process costs from one moment to another.
#[derive(Debug)]
pub struct Meter {
    begin: Instant,
    processor: Option<f64>,
    counter: Option<EnergyCounter>,
    /// Whether the system forgot the peak of before, so that it is the peak of this time.
    fresh: bool,
}

impl Meter {
    /// Begins.
    pub fn start() -> Self {
        // Where it cannot be reset, only a peak above what was there before says something.
        let fresh = std::fs::write("/proc/self/clear_refs", "5").is_ok()
            && peak_rss_bytes()
                .zip(current_rss_bytes())
                .is_some_and(|(peak, now)| peak <= now + (now >> 3) + (64 << 20));
        Self {
            begin: Instant::now(),
            processor: processor_seconds(),
            counter: EnergyCounter::open(),
            fresh,
        }
    }

    /// What it cost so far.
    pub fn stop(mut self) -> Cost {
        let seconds = self.begin.elapsed().as_secs_f64();
        let processor_seconds = processor_seconds()
            .zip(self.processor)
            .map(|(now, before)| (now - before).max(0.0));
        let measured = self.counter.as_mut().and_then(EnergyCounter::joules);
        let model = PowerModel::default();
        let energy = match (measured, processor_seconds) {
            (Some(joules), _) => Some(Energy {
                joules,
                source: PowerSource::Measured,
            }),
            (None, Some(busy)) => Some(Energy {
                joules: model.idle * seconds + model.processor * busy,
                source: PowerSource::Modelled,
            }),
            (None, None) => None,
        };
        Cost {
            seconds,
            processor_seconds,
            peak_memory: peak_rss_bytes().filter(|_| self.fresh),
            energy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_peak_is_that_of_the_measured_time() {
        // Memory of before that is given back must not count for what comes after.
        let block = vec![1u8; 512 << 20];
        assert!(block.iter().map(|b| u64::from(*b)).sum::<u64>() > 0);
        drop(block);
        let meter = Meter::start();
        let mut sum = 0u64;
        let begin = Instant::now();
        while begin.elapsed().as_millis() < 200 {
            sum = sum.wrapping_add(sum.rotate_left(3) ^ 7);
        }
        let cost = meter.stop();
        assert!(sum != 1 && cost.seconds >= 0.2, "{cost:?}");
        assert!(cost.processor_seconds.unwrap() > 0.05, "{cost:?}");
        assert!(cost.energy.unwrap().joules > 0.0, "{cost:?}");
        if let Some(peak) = cost.peak_memory {
            assert!(peak < 400 << 20, "{cost:?}");
        }
    }
}
