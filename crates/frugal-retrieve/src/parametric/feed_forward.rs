//! The matrices that documents are written into: `gate_proj`, `up_proj` and `down_proj` of every
//! block.

use frugal_nn::{BackboneInfo, SiteId, SiteKind, SiteTable};

use super::error::ParametricError;

/// Names of the matrices of a block, in their order.
const MODULES: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// One matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where it is in the model.
    pub site: SiteId,
    /// Its path, for example `model.layers.0.mlp.gate_proj`.
    pub path: String,
    /// Block number.
    pub layer: usize,
    /// Input width.
    pub d_in: usize,
    /// Output width.
    pub d_out: usize,
}

/// The feed-forward matrices of a model, block by block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedForward {
    places: Vec<Place>,
    hidden_size: usize,
    sites: usize,
}

impl FeedForward {
    /// Those of a model.
    ///
    /// # Errors
    /// A model whose blocks have no such layers, or several (experts).
    pub fn of(info: &BackboneInfo, sites: &SiteTable) -> Result<Self, ParametricError> {
        let refused = |reason: String| ParametricError::Model {
            model_type: info.model_type,
            reason,
        };
        let mut places = Vec::with_capacity(MODULES.len() * info.num_hidden_layers);
        for layer in 0..info.num_hidden_layers {
            for module in MODULES {
                let mut found = sites.iter().filter(|(_, site)| {
                    site.layer == Some(layer)
                        && site.kind == SiteKind::Linear
                        && site.name() == module
                });
                let Some((id, site)) = found.next() else {
                    return Err(refused(format!("block {layer} has no `{module}`")));
                };
                if found.next().is_some() {
                    return Err(refused(format!(
                        "block {layer} has several `{module}` (experts)"
                    )));
                }
                places.push(Place {
                    site: id,
                    path: site.path.clone(),
                    layer,
                    d_in: site.d_in,
                    d_out: site.d_out,
                });
            }
        }
        if places.is_empty() {
            return Err(refused("it has no blocks".into()));
        }
        Ok(Self {
            places,
            hidden_size: info.hidden_size,
            sites: sites.len(),
        })
    }

    /// The matrices, in the order in which parameters are listed.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// Width of the residual stream, and of a document's embedding.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// Sites of the whole model.
    pub(super) fn sites(&self) -> usize {
        self.sites
    }

    /// Numbers of a document at this rank: `3 L r (d + f)`.
    pub fn num_parameters(&self, rank: usize) -> usize {
        let sides = self.places.iter().map(|place| place.d_in + place.d_out);
        rank * sides.sum::<usize>()
    }

    /// Refuses a rank that no matrix has room for.
    ///
    /// # Errors
    /// A rank above the shorter side of a matrix.
    pub(super) fn check_rank(&self, rank: usize) -> Result<(), ParametricError> {
        let sides = self.places.iter().map(|place| place.d_in.min(place.d_out));
        let least = sides.min().unwrap_or(0);
        if rank <= least {
            return Ok(());
        }
        Err(ParametricError::Settings {
            field: "r",
            reason: format!(
                "it is {rank}, but the feed-forward matrices of this model have a side of {least}"
            ),
        })
    }
}
