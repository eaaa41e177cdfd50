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
use super::muon::Muon;
use super::sgd::Sgd;
use super::{Optimizer, projected};
use crate::config::TrainConfig;
use crate::named::Named;

/// An optimizer as the list knows it.
pub struct OptimizerEntry {
    /// Its name in configurations.
    pub name: &'static str,
    /// What transformers calls it.
    pub alias: &'static str,
    /// Bytes that it remembers of each trained number, at most: where moments are kept in fewer
    /// directions, those of parameters that are not.
    pub state_bytes: u64,
    make: fn(&Named, &TrainConfig) -> Result<Box<dyn Optimizer>, String>,
}

/// All optimizers; the first one is meant where none is named.
pub const OPTIMIZERS: &[OptimizerEntry] = &[
    OptimizerEntry {
        name: "adamw",
        alias: "adamw_torch",
        state_bytes: 8,
        make: |named, train| {
            named.read::<NoSettings>()?;
            Ok(Box::new(AdamW::new(train)))
        },
    },
    OptimizerEntry {
        name: "adamw_8bit",
        alias: "adamw_bnb_8bit",
        state_bytes: 2,
        make: |named, train| {
            named.read::<NoSettings>()?;
            Ok(Box::new(AdamW8bit::new(train)))
        },
    },
    OptimizerEntry {
        name: "sgd",
        alias: "sgd_torch",
        state_bytes: 4,
        make: |named, _| Ok(Box::new(Sgd::new(named.read()?)?)),
    },
    OptimizerEntry {
        name: "lion",
        alias: "lion_32bit",
        state_bytes: 4,
        make: |named, _| Ok(Box::new(Lion::new(named.read()?)?)),
    },
    OptimizerEntry {
        name: "adafactor",
        alias: "adafactor_torch",
        state_bytes: 0,
        make: |named, _| Ok(Box::new(Adafactor::new(named.read()?)?)),
    },
    OptimizerEntry {
        name: "adam_mini",
        alias: "adam_mini_torch",
        state_bytes: 4,
        make: |named, train| Ok(Box::new(AdamMini::new(named.read()?, train)?)),
    },
    OptimizerEntry {
        name: "muon",
        alias: "muon_torch",
        state_bytes: 8,
        make: |named, train| Ok(Box::new(Muon::new(named.read()?, train)?)),
    },
    OptimizerEntry {
        name: "galore",
        alias: "galore_adamw",
        state_bytes: 8,
        make: projected::made::<GaLore>,
    },
    OptimizerEntry {
        name: "golore",
        alias: "golore_adamw",
        state_bytes: 8,
        make: projected::made::<GoLore>,
    },
    OptimizerEntry {
        name: "fira",
        alias: "fira_adamw",
        state_bytes: 8,
        make: projected::made::<Fira>,
    },
    OptimizerEntry {
        name: "apollo",
        alias: "apollo_adamw",
        state_bytes: 8,
        make: projected::made::<Apollo>,
    },
];

/// For optimizers whose settings are those of the run.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct NoSettings {}

/// The entry of a name.
///
/// # Errors
/// A name that is none.
pub fn find(name: &str) -> Result<&'static OptimizerEntry, String> {
    let is_it = |entry: &&OptimizerEntry| entry.name == name || entry.alias == name;
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
    (find(&train.optim.name)?.make)(&train.optim, train)
}
