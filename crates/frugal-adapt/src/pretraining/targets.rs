//! Settings that all reparameterisations have: which layers, of which rank, and how often they
//! begin anew.

use frugal_nn::{AdaptError, BuildContext, SiteId};

/// What all of them share.
pub(super) struct Shared<'a> {
    /// The reparameterisation.
    pub(super) name: &'static str,
    pub(super) rank: usize,
    pub(super) lora_alpha: f64,
    pub(super) target_modules: &'a [String],
    pub(super) restart_steps: u64,
}

/// A layer that is reparameterised.
pub(super) struct Place<'a> {
    pub(super) site: SiteId,
    pub(super) path: &'a str,
    /// `[d_out, d_in]`.
    pub(super) shape: [usize; 2],
}

impl Shared<'_> {
    /// Refuses what no layer can have.
    pub(super) fn check(&self) -> Result<(), AdaptError> {
        let refused = |field, reason| {
            Err(AdaptError::Config {
                method: self.name,
                field,
                reason,
            })
        };
        if self.rank == 0 {
            return refused("rank", "0 given, but it must be positive".into());
        }
        let alpha = self.lora_alpha;
        if !(alpha.is_finite() && alpha > 0.0) {
            let reason = format!("{alpha} given, but it must be a positive number");
            return refused("lora_alpha", reason);
        }
        if self.target_modules.iter().any(String::is_empty) {
            let reason = "an empty name given; without any, all linear layers of blocks are meant";
            return refused("target_modules", reason.into());
        }
        Ok(())
    }

    /// The linear layers of the blocks, those that all share among them, that have one of the names and
    /// are wider than `rank`.
    ///
    /// # Errors
    /// That there is none, or none of one of the names.
    pub(super) fn places<'c>(
        &self,
        context: &'c BuildContext<'_>,
    ) -> Result<Vec<Place<'c>>, AdaptError> {
        let inner = || {
            let sites = context.sites.iter();
            sites.filter(|(_, site)| site.kind.is_inner_linear())
        };
        let is_unknown =
            |part: &&String| !inner().any(|(_, site)| site.path.contains(part.as_str()));
        if let Some(part) = self.target_modules.iter().find(is_unknown) {
            let mut names: Vec<&str> = inner().map(|(_, site)| site.name()).collect();
            names.sort_unstable();
            names.dedup();
            let reason = format!(
                "no linear layer of a block has `{part}` in its name; there are {}",
                names.join(", ")
            );
            return Err(AdaptError::Config {
                method: self.name,
                field: "target_modules",
                reason,
            });
        }
        let is_named = |path: &str| {
            let names = self.target_modules;
            names.is_empty() || names.iter().any(|part| path.contains(part.as_str()))
        };
        let found = inner()
            .filter(|(_, site)| self.rank < site.d_in.min(site.d_out) && is_named(&site.path));
        let places: Vec<Place<'_>> = found
            .map(|(id, site)| Place {
                site: id,
                path: &site.path,
                shape: [site.d_out, site.d_in],
            })
            .collect();
        if places.is_empty() {
            let reason = format!(
                "no linear layer of a block is wider than {} on both sides{}: lower it",
                self.rank,
                if self.target_modules.is_empty() {
                    String::new()
                } else {
                    format!(" with one of {:?} in its name", self.target_modules)
                }
            );
            return Err(AdaptError::Config {
                method: self.name,
                field: "rank",
                reason,
            });
        }
        Ok(places)
    }
}
