//! Whether a run fits the memory of the machine, and with which settings it would.

use frugal_models::Quantize;
use frugal_nn::SiteTable;
use frugal_train::Memory;

use super::estimate::{Sizes, Work, predicted};
use super::prepare::Prepared;
use super::spelling::name;
use super::{RunError, TuneConfig};

/// What to do about a run that needs more memory than there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryCheck {
    /// Refuse it before any weight is read, and say what would help.
    #[default]
    Refuse,
    /// Change settings until it fits.
    Fit,
    /// Begin it all the same.
    Ignore,
}

/// Bytes that this process can have in all, with the `process` bytes that it has.
pub(super) fn available(process: u64) -> Option<u64> {
    frugal_core::events::available_memory_bytes().map(|bytes| bytes + process)
}

/// What is said of a run that fits, but not into what a control group gives without slowing it down.
pub(super) fn hindered(needed: u64, process: u64) -> Option<String> {
    let free = frugal_core::events::unhindered_memory_bytes()?;
    slowed(needed, free.saturating_add(process))
}

fn slowed(needed: u64, free: u64) -> Option<String> {
    let bytes = frugal_core::human::bytes;
    (needed > free).then(|| {
        format!(
            "the run needs about {}, and beyond {} its control group slows it down (`memory.high`)",
            bytes(needed),
            bytes(free)
        )
    })
}

/// Settings with which a run fits.
pub(super) struct Fitted {
    pub(super) config: TuneConfig,
    /// What was changed, as flags.
    pub(super) flags: Vec<String>,
}

/// The least change of the settings with which the run fits into `available` bytes: first what
/// leaves the result as it is (less kept for the backward pass, smaller micro-batches that are
/// accumulated), then weights in few bits. A run that `is_resumed` may only change the first.
pub(super) fn fitting(
    config: &TuneConfig,
    prepared: &Prepared,
    sites: &SiteTable,
    sizes: &Sizes,
    process: u64,
    available: u64,
    is_resumed: bool,
) -> Option<Fitted> {
    let mut held = vec![config.quantize];
    let packable = !sizes.full && config.quantize == Quantize::None && !is_resumed;
    // A start from what rounding lost goes with its own number of bits.
    if packable && !config.method.settings.contains_key("loftq_config") {
        held.extend([Quantize::Int8, Quantize::Nf4]);
    }
    for quantize in held {
        for batches in smaller_batches(config, is_resumed) {
            let work = Work::new(&batches, prepared);
            for &memory in at_most(config.train.memory) {
                let mut candidate = batches.clone();
                (candidate.quantize, candidate.train.memory) = (quantize, memory);
                let tokens = work.micro_batch_tokens;
                let needed = predicted(prepared, sites, sizes, &candidate, tokens, process);
                if needed.peak() <= available {
                    let flags = changes(config, &candidate);
                    return Some(Fitted {
                        config: candidate,
                        flags,
                    });
                }
            }
        }
    }
    None
}

/// This policy and those that keep less.
fn at_most(memory: Memory) -> &'static [Memory] {
    match memory {
        Memory::Fast => &[Memory::Fast, Memory::Balanced, Memory::Low],
        Memory::Balanced => &[Memory::Balanced, Memory::Low],
        Memory::Low => &[Memory::Low],
    }
}

/// The configuration, and the same with micro-batches of half the size, a quarter and so on, so
/// many of which are accumulated that a step is as large as before.
fn smaller_batches(config: &TuneConfig, is_resumed: bool) -> Vec<TuneConfig> {
    let mut all = vec![config.clone()];
    if is_resumed {
        return all;
    }
    let mut next = config.clone();
    loop {
        let size = if next.train.packing {
            &mut next.train.max_tokens
        } else {
            &mut next.train.batch_size
        };
        if *size < 2 {
            return all;
        }
        *size = size.div_ceil(2);
        next.train.gradient_accumulation_steps *= 2;
        all.push(next.clone());
    }
}

fn changes(before: &TuneConfig, after: &TuneConfig) -> Vec<String> {
    let (old, new) = (&before.train, &after.train);
    [
        (
            old.memory != new.memory,
            format!("--memory {}", name(&new.memory)),
        ),
        (
            old.batch_size != new.batch_size,
            format!("--batch-size {}", new.batch_size),
        ),
        (
            old.max_tokens != new.max_tokens,
            format!("--set train.max_tokens={}", new.max_tokens),
        ),
        (
            old.gradient_accumulation_steps != new.gradient_accumulation_steps,
            format!(
                "--gradient-accumulation-steps {}",
                new.gradient_accumulation_steps
            ),
        ),
        (
            before.quantize != after.quantize,
            format!("--quantize {}", name(&after.quantize)),
        ),
    ]
    .into_iter()
    .filter_map(|(changed, flag)| changed.then_some(flag))
    .collect()
}

/// What is said of a run that does not fit.
pub(super) fn refusal(needed: u64, available: u64, fitted: Option<&Fitted>) -> RunError {
    let way_out = match fitted {
        Some(fitted) => format!(
            "it fits with `{}`, which `--fit` sets",
            fitted.flags.join(" ")
        ),
        None => "no setting of batches, `--memory` or `--quantize` makes it fit: take a smaller model, shorter examples (`--max-length`) or another method".into(),
    };
    RunError::Memory {
        needed,
        available,
        way_out,
    }
}

#[cfg(test)]
mod tests {
    use burn::prelude::Device;

    use super::*;
    use crate::run::{DataConfig, prepare};
    use frugal_models::load::Lookup;

    #[test]
    fn the_least_change_with_which_a_run_fits_is_found() {
        let mut config = TuneConfig {
            data: DataConfig {
                train: "sms-spam".into(),
                max_train_rows: 256,
                max_eval_rows: 4,
                ..DataConfig::default()
            },
            ..TuneConfig::default()
        };
        (config.train.batch_size, config.train.memory) = (64, Memory::Fast);
        let prepared = prepare(&config, &Lookup::default()).unwrap();
        let sites = prepared.files.sites();
        let sizes = Sizes::new(&config, &prepared, &sites, &Device::flex()).unwrap();
        let peak = |config: &TuneConfig| {
            let tokens = Work::new(config, &prepared).micro_batch_tokens;
            predicted(&prepared, &sites, &sizes, config, tokens, 0).peak()
        };
        let fit =
            |available, resumed| fitting(&config, &prepared, &sites, &sizes, 0, available, resumed);
        let flags = |available| fit(available, false).map(|fitted| fitted.flags);
        let with = |memory, batch_size, quantize| {
            let mut other = config.clone();
            other.train.memory = memory;
            other.train.batch_size = batch_size;
            other.quantize = quantize;
            peak(&other)
        };
        assert_eq!(flags(peak(&config)), Some(Vec::new()));
        assert_eq!(
            flags(peak(&config) - 1),
            Some(vec!["--memory balanced".into()])
        );
        let low = with(Memory::Low, 64, Quantize::None);
        assert_eq!(flags(low), Some(vec!["--memory low".into()]));
        let smaller = fit(low - 1, false).unwrap();
        assert!(peak(&smaller.config) < low);
        assert_eq!(
            (
                smaller.config.train.batch_size,
                smaller.config.train.gradient_accumulation_steps
            ),
            (32, 2)
        );
        // What changes the result comes last, and a resumed run may not change it.
        assert!(fit(low - 1, true).is_none() && fit(low, true).is_some());
        let least = with(Memory::Low, 1, Quantize::None);
        let packed = fit(least - 1, false).unwrap();
        assert_eq!(packed.config.quantize, Quantize::Int8);
        assert!(peak(&packed.config) < least);
        assert!(flags(1000).is_none());
        assert_eq!(slowed(1 << 30, 1 << 30), None);
        let said = slowed(3 << 30, 1 << 30).unwrap();
        assert!(said.contains("3.0 GiB, and beyond 1.0 GiB") && said.contains("`memory.high`"));
        let told = refusal(3 << 30, 1 << 30, Some(&smaller)).to_string();
        assert!(
            told.contains("needs about 3.0 GiB, and 1.0 GiB are available")
                && told.contains("--batch-size 32 --gradient-accumulation-steps 2"),
            "{told}"
        );
    }
}
