//! What a machine can do: memory, peak, links.

use std::path::Path;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::error::MAX_COUNT;

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

// Far beyond what any machine has on either side, and near enough that no time or size that is computed
// of them leaves the numbers.
const MEMORY: [f64; 2] = [1.0, 1e18];
const PEAK: [f64; 2] = [1.0, 1e24];
const SHARE: [f64; 2] = [1e-6, 1.0];
const HALF_SIZE: [f64; 2] = [0.0, 1e9];
const BANDWIDTH: [f64; 2] = [1.0, 1e18];
const LATENCY: [f64; 2] = [0.0, 3600.0];

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
        let bytes = frugal_core::fs::read_data(path)?;
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
        let wrong = |key: &str, reason: &str| -> Result<(), MachineError> {
            Err(MachineError::Value {
                source_name: source_name.into(),
                key: key.into(),
                reason: reason.into(),
            })
        };
        let within = |key: &str, value: f64, [low, high]: [f64; 2]| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            let reason = format!("{value:e} given, but it must be between {low:e} and {high:e}");
            wrong(key, &reason)
        };
        for (key, value, bounds) in [
            ("memory_bytes", machine.memory_bytes, MEMORY),
            ("peak_flops", machine.peak_flops, PEAK),
            ("compute_efficiency", machine.compute_efficiency, SHARE),
            ("link_efficiency", machine.link_efficiency, SHARE),
            ("half_size", machine.half_size, HALF_SIZE),
        ] {
            within(key, value, bounds)?;
        }
        let reserved = machine.reserved_bytes;
        within("reserved_bytes", reserved, [0.0, machine.memory_bytes])?;
        if !(1..=MAX_COUNT).contains(&machine.gpus_per_node) {
            let reason = format!(
                "{} given, but it must be between 1 and {MAX_COUNT}",
                machine.gpus_per_node
            );
            wrong("gpus_per_node", &reason)?;
        }
        if machine.links.last().is_none_or(|last| last.gpus != 0) {
            wrong("links", "the last one must connect any number: `gpus = 0`")?;
        }
        let closer = machine
            .links
            .split_last()
            .map_or(&[][..], |(_, closer)| closer);
        let rising = closer.is_sorted_by(|a, b| a.gpus < b.gpus);
        if !rising || closer.first().is_some_and(|link| link.gpus < 2) {
            wrong("links", "`gpus` must rise from 2 or more, 0 coming last")?;
        }
        if let Some(link) = closer.last().filter(|link| link.gpus > MAX_COUNT) {
            let reason = format!("{} given, but it must be at most {MAX_COUNT}", link.gpus);
            wrong("links.gpus", &reason)?;
        }
        for link in &machine.links {
            within("links.bandwidth", link.bandwidth, BANDWIDTH)?;
            within("links.latency", link.latency, LATENCY)?;
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

    /// Infinite speeds and times that came of them went into the plan.
    #[test]
    fn values_that_no_machine_has_were_planned_with() {
        let keys = [
            ("gpus_per_node = 8", "gpus_per_node"),
            ("memory_bytes = 68719476736.0", "memory_bytes"),
            ("reserved_bytes = 3e9", "reserved_bytes"),
            ("peak_flops = 191.5e12", "peak_flops"),
            ("compute_efficiency = 0.433", "compute_efficiency"),
            ("link_efficiency = 0.567", "link_efficiency"),
            ("half_size = 256.0", "half_size"),
            ("gpus = 4", "gpus"),
            ("bandwidth = 100e9", "bandwidth"),
            ("latency = 1e-5", "latency"),
        ];
        for (line, key) in keys {
            assert!(FRONTIER.contains(line), "{line}");
            for value in [
                "0",
                "-1",
                "nan",
                "inf",
                "1e300",
                "1e-300",
                "9223372036854775807",
            ] {
                // Numbers that may be nothing or as good as nothing, and one that may be so large.
                let may_be = ["reserved_bytes", "half_size", "latency"].contains(&key)
                    && ["0", "1e-300"].contains(&value)
                    || key == "peak_flops" && value.starts_with('9');
                let text = FRONTIER.replacen(line, &format!("{key} = {value}"), 1);
                let found = Machine::parse("m.toml", &text);
                if may_be {
                    assert!(found.is_ok(), "{key} = {value}: {found:?}");
                    continue;
                }
                let error = found.unwrap_err().to_string();
                assert!(
                    error.contains("m.toml") && error.contains(key),
                    "{key} = {value}: {error}"
                );
            }
        }
    }
}
