//! The list of optimizers.

use super::adafactor::Adafactor;
use super::adam_mini::AdamMini;
use super::adamw::AdamW;
use super::adamw_8bit::AdamW8bit;
use super::apollo::Apollo;
use super::fira::Fira;
use super::galore::GaLore;
use super::golore::GoLore;
use super::lion::Lion;
use super::loro::Loro;
use super::muon::Muon;
use super::sgd::Sgd;
use super::spam::Spam;
use super::stable_spam::StableSpam;
use super::{Optimizer, projected};
use crate::config::TrainConfig;
use crate::named::Named;

/// An optimizer as the list knows it.
pub struct OptimizerEntry {
    /// Its name in configurations.
    pub name: &'static str,
    /// What transformers calls it, or others do.
    pub alias: &'static str,
    make: fn(&Named, &TrainConfig) -> Result<Box<dyn Optimizer>, String>,
}

/// All optimizers; the first one is meant where none is named.
pub const OPTIMIZERS: &[OptimizerEntry] = &[
    OptimizerEntry {
        name: "adamw",
        alias: "adamw_torch",
        make: |named, train| {
            named.read::<NoSettings>()?;
            Ok(Box::new(AdamW::new(train)))
        },
    },
    OptimizerEntry {
        name: "adamw_8bit",
        alias: "adamw_bnb_8bit",
        make: |named, train| {
            named.read::<NoSettings>()?;
            Ok(Box::new(AdamW8bit::new(train)))
        },
    },
    OptimizerEntry {
        name: "sgd",
        alias: "sgd_torch",
        make: |named, _| Ok(Box::new(Sgd::new(named.read()?)?)),
    },
    OptimizerEntry {
        name: "lion",
        alias: "lion_32bit",
        make: |named, _| Ok(Box::new(Lion::new(named.read()?)?)),
    },
    OptimizerEntry {
        name: "adafactor",
        alias: "adafactor_torch",
        make: |named, _| Ok(Box::new(Adafactor::new(named.read()?)?)),
    },
    OptimizerEntry {
        name: "adam_mini",
        alias: "adam_mini_torch",
        make: |named, train| Ok(Box::new(AdamMini::new(named.read()?, train)?)),
    },
    OptimizerEntry {
        name: "muon",
        alias: "muon_torch",
        make: |named, train| Ok(Box::new(Muon::new(named.read()?, train)?)),
    },
    OptimizerEntry {
        name: "galore",
        alias: "galore_adamw",
        make: projected::made::<GaLore>,
    },
    OptimizerEntry {
        name: "golore",
        alias: "golore_adamw",
        make: projected::made::<GoLore>,
    },
    OptimizerEntry {
        name: "fira",
        alias: "fira_adamw",
        make: projected::made::<Fira>,
    },
    OptimizerEntry {
        name: "apollo",
        alias: "apollo_adamw",
        make: projected::made::<Apollo>,
    },
    OptimizerEntry {
        name: "spam",
        alias: "spam_adamw",
        make: |named, train| Ok(Box::new(Spam::new(named.read()?, train)?)),
    },
    OptimizerEntry {
        name: "stable_spam",
        alias: "stablespam",
        make: |named, train| Ok(Box::new(StableSpam::new(named.read()?, train)?)),
    },
    OptimizerEntry {
        name: "loro",
        alias: "loro_adamw",
        make: |named, train| Ok(Box::new(Loro::new(named.read()?, train)?)),
    },
];

/// For optimizers whose settings are those of the run.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct NoSettings {}

/// The entry of a name, in which a hyphen is as good as an underscore.
///
/// # Errors
/// A name that is none.
pub fn find(name: &str) -> Result<&'static OptimizerEntry, String> {
    let spelled = name.to_ascii_lowercase().replace('-', "_");
    let is_it = |entry: &&OptimizerEntry| entry.name == spelled || entry.alias == spelled;
    OPTIMIZERS.iter().find(is_it).ok_or_else(|| {
        let known: Vec<&str> = OPTIMIZERS.iter().map(|entry| entry.name).collect();
        format!("{name:?} is no optimizer; there are {}", known.join(", "))
    })
}

/// The optimizer of a run, which remembers nothing yet.
///
/// # Errors
/// A name that is none, settings that it does not have or that are out of range.
pub fn made(train: &TrainConfig) -> Result<Box<dyn Optimizer>, String> {
    if train.optim.name.is_empty() {
        let known: Vec<&str> = OPTIMIZERS.iter().map(|entry| entry.name).collect();
        return Err(format!(
            "settings of an optimizer that is not named: give its `name`, or `--optim NAME`; there are {}",
            known.join(", ")
        ));
    }
    (find(&train.optim.name)?.make)(&train.optim, train)
}
