//! `frugal doctor`: what this machine and this build can do.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use frugal::device;
use frugal::measure::machine::{Ceilings, ceilings};
use frugal::measure::threads;
use frugal_core::events::{available_memory_bytes, unhindered_memory_bytes};
use frugal_core::human;
use frugal_eval::report::SystemInfo;
use frugal_formats::fetch;
use serde_json::json;

use crate::args::{Machine, Output};
use crate::outcome::Outcome;
use crate::ui::progress::Phase;
use crate::ui::{self, table};

const EXAMPLES: &str = "\
Examples:
  frugal doctor                  look and measure, about 2 seconds
  frugal doctor --json > machine.json

Exit status: 0 if everything is as it should be, 1 if something needs attention.";

/// How long to measure.
const BUDGET: Duration = Duration::from_secs(2);

/// Show what this machine and this build can do, and measure its limits
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    output: Output,
}

/// Looks, measures and prints.
pub fn run(args: &Args) -> Result<Outcome> {
    let device = args.machine.device()?;
    let ceilings = {
        let _phase = Phase::new(
            args.output,
            "measuring matrix products and memory for 2 seconds",
        );
        ceilings(&device, BUDGET)
    };
    let cache = fetch::cache_dir();
    let models: Vec<&str> = fetch::MODELS
        .iter()
        .map(|m| m.name)
        .filter(|name| fetch::resolve(name, &cache).is_some())
        .collect();
    let cache_bytes = folder_bytes(&cache);
    let problems = problems(&cache);
    let device_name = args.machine.device_name();
    let system = SystemInfo::detect(device_name);
    let available = available_memory_bytes();
    let unhindered = unhindered_memory_bytes();
    if args.output.json {
        ui::print_json(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "system": system,
            "threads_used": threads(),
            "simd": simd(),
            "available_memory": available,
            "unhindered_memory": unhindered,
            "device": device_name,
            "devices": device::NAMES,
            "cache": { "path": cache, "bytes": cache_bytes, "models": models },
            "gemm_gflops": ceilings.gemm_gflops,
            "gemm_gflops_sustained": ceilings.gemm_gflops_sustained,
            "read_gb_per_s": ceilings.read_gb_per_s,
            "problems": problems,
        }))?;
    } else {
        let Ceilings {
            gemm_gflops,
            gemm_gflops_sustained,
            read_gb_per_s,
        } = ceilings;
        let [best, sustained] =
            [gemm_gflops, gemm_gflops_sustained].map(|rate| human::significant(rate, 3));
        let none = || "unknown".to_owned();
        let memory = match (system.memory, available) {
            (Some(total), Some(available)) => format!(
                "{}, {} available",
                human::bytes(total),
                human::bytes(available)
            ),
            (total, _) => total.map_or_else(none, human::bytes),
        };
        // A control group may slow down before it ends a process.
        let memory = match unhindered.filter(|bytes| available.is_none_or(|all| *bytes < all)) {
            Some(bytes) => format!("{memory}, {} before it is slowed down", human::bytes(bytes)),
            None => memory,
        };
        ui::print(&table::pairs(&[
            (
                "frugal",
                format!(
                    "{} ({} {})",
                    env!("CARGO_PKG_VERSION"),
                    system.system,
                    system.machine
                ),
            ),
            ("processor", system.processor.clone().unwrap_or_else(none)),
            ("threads", shown_threads(system.threads, threads())),
            ("vector units", simd().join(", ")),
            ("memory", memory),
            ("devices", device::NAMES.join(", ")),
            (
                "matrix products",
                format!("{best} GFLOP/s at best, {sustained} sustained, in f32 on {device_name}"),
            ),
            (
                "memory reads",
                format!("{} GB/s", human::significant(read_gb_per_s, 3)),
            ),
            (
                "cache",
                format!("{}, {}", cache.display(), human::bytes(cache_bytes)),
            ),
            (
                "models in it",
                if models.is_empty() {
                    "none".into()
                } else {
                    models.join(", ")
                },
            ),
        ]));
        problems
            .iter()
            .for_each(|problem| ui::print(&format!("problem: {problem}")));
    }
    Ok(if problems.is_empty() {
        Outcome::Done
    } else {
        Outcome::Negative
    })
}

/// What would get in the way of work.
fn problems(cache: &Path) -> Vec<String> {
    let existing = cache
        .ancestors()
        .find(|p| p.exists())
        .unwrap_or(Path::new("."));
    let mut found = Vec::new();
    if let Err(error) = tempfile::tempfile_in(existing) {
        found.push(format!(
            "the cache cannot be written: {}: {error}; set FRUGAL_CACHE to a folder that can",
            existing.display()
        ));
    }
    found
}

/// How many threads there are, and how many take part where it is another number.
fn shown_threads(all: usize, used: usize) -> String {
    if used == all {
        all.to_string()
    } else {
        format!("{all}, {used} used")
    }
}

/// Vector instruction sets that kernels can choose from at run time.
fn simd() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let found = [
        ("sse4.2", std::arch::is_x86_feature_detected!("sse4.2")),
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("f16c", std::arch::is_x86_feature_detected!("f16c")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        (
            "avx512vnni",
            std::arch::is_x86_feature_detected!("avx512vnni"),
        ),
        (
            "avx512bf16",
            std::arch::is_x86_feature_detected!("avx512bf16"),
        ),
    ];
    #[cfg(target_arch = "aarch64")]
    let found = [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("fp16", std::arch::is_aarch64_feature_detected!("fp16")),
        (
            "dotprod",
            std::arch::is_aarch64_feature_detected!("dotprod"),
        ),
        ("sve", std::arch::is_aarch64_feature_detected!("sve")),
    ];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let found: [(&'static str, bool); 0] = [];
    found
        .into_iter()
        .filter(|(_, has)| *has)
        .map(|(name, _)| name)
        .collect()
}

fn folder_bytes(folder: &Path) -> u64 {
    let mut folders = vec![PathBuf::from(folder)];
    let mut total = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            // Links are not followed, so that nothing is counted twice.
            match entry.metadata() {
                Ok(m) if m.is_dir() => folders.push(entry.path()),
                Ok(m) if m.is_file() => total += m.len(),
                _ => {}
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_stand_aside_are_told() {
        assert_eq!(
            [shown_threads(2, 2), shown_threads(2, 1)],
            ["2", "2, 1 used"]
        );
    }
}
