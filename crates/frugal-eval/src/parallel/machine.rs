//! What a machine can do: memory, peak, links.

use std::path::Path;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A kind of connection between devices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// What it is called.
    pub name: String,
    /// Devices in a row that it connects: those of a package, of a node; 0 for any number, which
    /// the last one must have.
    pub gpus: u64,
    /// Bytes that a device can send in a second.
    pub bandwidth: f64,
    /// Seconds before the first byte arrives.
    pub latency: f64,
}

/// A machine of equal devices, as its TOML file says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// What it is called.
    pub name: String,
    /// Devices of a node, within which tensor parallelism should stay.
    pub gpus_per_node: u64,
    /// Memory of a device.
    pub memory_bytes: f64,
    /// Memory that the runtime and the buffers of its collectives take.
    pub reserved_bytes: f64,
    /// Peak of a device, in floating-point operations a second, at the precision of the products.
    pub peak_flops: f64,
    /// Share of the peak that a step's products of large matrices reach.
    pub compute_efficiency: f64,
    /// A product whose three sizes have this geometric mean reaches half of that share.
    pub half_size: f64,
    /// Share of a link's bandwidth that collectives reach.
    pub link_efficiency: f64,
    /// From the closest to the farthest.
    pub links: Vec<Link>,
}

/// A profile that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MachineError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] frugal_core::fs::FileError),
    /// It is not TOML with these keys.
    #[error("{source_name}: {message}")]
    Syntax {
        /// The file.
        source_name: String,
        /// What the parser says.
        message: String,
    },
    /// A value that no machine has.
    #[error("{source_name}: `{key}`: {reason}")]
    Value {
        /// The file.
        source_name: String,
        /// The key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
}

const FRONTIER: &str = include_str!("frontier.toml");

impl Machine {
    /// The supercomputer of the Frontier paper; each half of an MI250X counts as a device.
    ///
    /// # Errors
    /// None, unless the profile in the source is broken.
    pub fn frontier() -> Result<Self, MachineError> {
        Self::parse("frontier.toml", FRONTIER)
    }

    /// Reads a profile.
    ///
    /// # Errors
    /// A file that cannot be read, unknown or missing keys, values out of range.
    pub fn read(path: &Path) -> Result<Self, MachineError> {
        let bytes = frugal_core::fs::read(path)?;
        let name = path.display().to_string();
        let text = std::str::from_utf8(&bytes).map_err(|e| MachineError::Syntax {
            source_name: name.clone(),
            message: e.to_string(),
        })?;
        Self::parse(&name, text)
    }

    fn parse(source_name: &str, text: &str) -> Result<Self, MachineError> {
        let machine: Self = toml::from_str(text).map_err(|e| MachineError::Syntax {
            source_name: source_name.into(),
            message: e.to_string(),
        })?;
        let wrong = |key: &str, reason: &str| {
            Err(MachineError::Value {
                source_name: source_name.into(),
                key: key.into(),
                reason: reason.into(),
            })
        };
        let positive = |v: f64| v.is_finite() && v > 0.0;
        for (key, value) in [
            ("memory_bytes", machine.memory_bytes),
            ("peak_flops", machine.peak_flops),
        ] {
            if !positive(value) {
                return wrong(key, "must be a positive number");
            }
        }
        for (key, value) in [
            ("compute_efficiency", machine.compute_efficiency),
            ("link_efficiency", machine.link_efficiency),
        ] {
            if !(positive(value) && value <= 1.0) {
                return wrong(key, "must be above 0 and at most 1");
            }
        }
        for (key, value) in [
            ("reserved_bytes", machine.reserved_bytes),
            ("half_size", machine.half_size),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return wrong(key, "must be 0 or a positive number");
            }
        }
        if machine.gpus_per_node == 0 {
            return wrong("gpus_per_node", "must be at least 1");
        }
        let Some((last, closer)) = machine.links.split_last() else {
            return wrong("links", "there must be one at least");
        };
        if last.gpus != 0 {
            return wrong("links", "the last one must connect any number: `gpus = 0`");
        }
        let rising = closer.is_sorted_by(|a, b| a.gpus < b.gpus);
        if !rising || closer.first().is_some_and(|link| link.gpus < 2) {
            return wrong("links", "`gpus` must rise from 2 or more, 0 coming last");
        }
        if machine.links.iter().any(|l| !positive(l.bandwidth)) {
            return wrong("links.bandwidth", "must be a positive number");
        }
        if machine
            .links
            .iter()
            .any(|l| !(l.latency.is_finite() && l.latency >= 0.0))
        {
            return wrong("links.latency", "must be 0 or a positive number");
        }
        Ok(machine)
    }

    /// The closest link that connects the devices from `first` to `last`.
    pub fn link(&self, first: u64, last: u64) -> Option<&Link> {
        let connects = |link: &&Link| link.gpus == 0 || first / link.gpus == last / link.gpus;
        self.links.iter().find(connects)
    }

    fn seconds(&self, link: Option<&Link>, bytes: f64, messages: f64) -> f64 {
        link.map_or(0.0, |link| {
            bytes / (link.bandwidth * self.link_efficiency) + messages * link.latency
        })
    }

    /// Seconds of a ring all-reduce of `bytes` among `ranks` that stand `stride` apart.
    pub fn all_reduce_seconds(&self, bytes: f64, ranks: u64, stride: u64) -> f64 {
        if ranks < 2 {
            return 0.0;
        }
        let link = self.link(0, (ranks - 1) * stride);
        let messages = 2.0 * (ranks - 1) as f64;
        self.seconds(link, ring_all_reduce(bytes, ranks), messages)
    }

    /// Seconds of a message of `bytes` from one device to another.
    pub fn send_seconds(&self, bytes: f64, from: u64, to: u64) -> f64 {
        if from == to {
            return 0.0;
        }
        let link = self.link(from.min(to), from.max(to));
        self.seconds(link, bytes, 1.0)
    }

    /// Share of the peak that a product of matrices of these sizes reaches.
    pub fn product_efficiency(&self, sizes: [f64; 3]) -> f64 {
        let mean = sizes.iter().product::<f64>().cbrt();
        self.compute_efficiency * mean / (mean + self.half_size)
    }
}

/// What each of `ranks` sends in a ring all-reduce of `amount`: `2(N−1)/N` of it.
pub fn ring_all_reduce(amount: f64, ranks: u64) -> f64 {
    let n = ranks.max(1) as f64;
    2.0 * (n - 1.0) / n * amount
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_all_reduce_of_four_sends_one_and_a_half_times_the_data() {
        assert_eq!(ring_all_reduce(1e6, 4), 1.5e6);
        assert_eq!(ring_all_reduce(1e6, 1), 0.0);
    }

    #[test]
    fn the_closest_link_that_spans_a_group_is_taken() {
        let machine = Machine::frontier().unwrap();
        let name = |first, last| machine.link(first, last).unwrap().name.clone();
        assert_eq!(name(0, 1), machine.links[0].name);
        assert_eq!(name(1, 2), name(0, 3));
        assert_eq!(name(4, 7), name(0, 3));
        assert_eq!((name(0, 7), name(3, 4)), ("node".into(), "node".into()));
        assert_eq!(name(7, 8), machine.links.last().unwrap().name);
        // Ranks eight apart are on different nodes.
        let near = machine.all_reduce_seconds(1e9, 2, 1);
        assert!(machine.all_reduce_seconds(1e9, 2, 8) > 4.0 * near);
    }

    #[test]
    fn profiles_that_cannot_be_are_refused_with_their_key() {
        let broken = |from: &str, to: &str| {
            assert!(FRONTIER.contains(from), "{from}");
            let text = FRONTIER.replace(from, to);
            Machine::parse("m.toml", &text).unwrap_err().to_string()
        };
        assert!(broken("peak_flops", "peak_flop").contains("peak_flop"));
        assert!(broken("gpus = 0", "gpus = 4096").contains("any number"));
        assert!(broken("gpus = 2", "gpus = 1").contains("rise from 2"));
        assert!(broken("peak_flops = 191.5e12", "peak_flops = nan").contains("`peak_flops`"));
        assert!(broken("bandwidth = 200e9", "bandwidth = -1.0").contains("bandwidth"));
        let missing = Machine::read(Path::new("/nowhere/machine.toml")).unwrap_err();
        assert!(missing.to_string().contains("machine.toml"));
    }
}
