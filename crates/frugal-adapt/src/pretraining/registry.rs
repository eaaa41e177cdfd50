//! The list of reparameterisations.

use frugal_core::suggest::did_you_mean;
use frugal_nn::{AdaptError, BuildContext};

use super::low_rank::LowRankConfig;
use super::relora::ReLoraConfig;
use super::rule::Rule;
use super::sltrain::SlTrainConfig;
use crate::methods::full::{Full, FullConfig};
use crate::settings::{self, Settings};

/// A reparameterisation as the list knows it.
pub struct Reparameterization {
    /// Its name in configurations.
    pub name: &'static str,
    /// What it is, in a sentence.
    pub about: &'static str,
    /// Refuses settings that it does not have or that are out of range; the steps between restarts
    /// otherwise, 0 for none.
    pub restart_steps: fn(&Settings) -> Result<u64, AdaptError>,
    /// Trainable parameters of a model whose layers are these instead of weights.
    pub make: fn(&Settings, &BuildContext<'_>) -> Result<Full, AdaptError>,
}

/// All of them, one line each.
pub static REPARAMETERIZATIONS: &[Reparameterization] = &[
    of::<LowRankConfig>("Every weight is a product of two thin matrices"),
    of::<SlTrainConfig>("A product of two thin matrices and a sparse matrix"),
    of::<ReLoraConfig>("Low-rank changes that are merged every so often"),
];

/// The reparameterisation of a name, in which a hyphen is as good as an underscore.
///
/// # Errors
/// A name that is none.
pub fn find(name: &str) -> Result<&'static Reparameterization, AdaptError> {
    let spelled = name.to_ascii_lowercase().replace('-', "_");
    let found = REPARAMETERIZATIONS.iter().find(|r| r.name == spelled);
    found.ok_or_else(|| {
        let known: Vec<&str> = REPARAMETERIZATIONS.iter().map(|r| r.name).collect();
        AdaptError::UnknownMethod {
            name: name.to_owned(),
            suggestion: did_you_mean(&spelled, known.iter().copied()).map(str::to_owned),
            known: known.join(", "),
        }
    })
}

const fn of<R: Rule>(about: &'static str) -> Reparameterization {
    Reparameterization {
        name: R::NAME,
        about,
        restart_steps: |settings| Ok(read::<R>(settings)?.shared().restart_steps),
        make: make::<R>,
    }
}

fn read<R: Rule>(settings: &Settings) -> Result<R, AdaptError> {
    let rule: R = settings::parse(R::NAME, settings)?;
    rule.shared().check()?;
    rule.check()?;
    Ok(rule)
}

fn make<R: Rule>(settings: &Settings, context: &BuildContext<'_>) -> Result<Full, AdaptError> {
    let rule: R = read(settings)?;
    let shared = rule.shared();
    let places = shared.places(context)?;
    let mut full = Full::new(FullConfig {}, context)?;
    full.restarts_as(R::NAME, shared.restart_steps);
    for place in &places {
        let dense = full.take_weight(place.site).ok_or_else(|| {
            let path = place.path;
            AdaptError::Unsupported {
                method: R::NAME,
                action: "train this model",
                reason: format!("`{path}` is no plain weight"),
            }
        })?;
        full.put_layer(place.site, rule.layer(place, dense, context)?);
    }
    Ok(full)
}
