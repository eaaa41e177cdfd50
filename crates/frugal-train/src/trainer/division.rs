//! Whether a run may be divided among processes as it is asked to be.

use std::collections::BTreeMap;

use frugal_nn::SiteKind;

use super::Trainer;
use super::places::{Reader, readers};
use crate::error::TrainError;
use crate::parallel::Layout;

impl Trainer<'_, '_> {
    /// What reads each parameter.
    pub(super) fn readers(&self) -> BTreeMap<String, Reader> {
        readers(self.run.backbone.sites(), &self.parameters())
    }

    /// Whether the model, the method and the objective allow this division of work.
    pub(super) fn check_layout(&self, layout: Layout) -> Result<(), TrainError> {
        let refuse = |reason: String| Err(TrainError::Setup(reason));
        let optimizer = self.optimizer.optimizer().name();
        let name = match layout {
            Layout { pipeline: 2.., .. } => format!("pipeline={}", layout.pipeline),
            _ => format!("zero={}", layout.zero),
        };
        if layout.is_divided() && optimizer == "loro" {
            return refuse(format!(
                "`{name}` divides the optimizer by parameters, and `loro` updates two at once: leave it out"
            ));
        }
        if layout.zero < 2 && layout.pipeline == 1 {
            return Ok(());
        }
        if !self.run.adapter.replaces_weights() || self.run.head.is_some() {
            return refuse(format!(
                "`{name}`: the weights of a model themselves must be what is trained, without a reparameterisation, an adapter or a head: `data` and `zero=1` run"
            ));
        }
        if layout.zero < 3 && layout.pipeline == 1 {
            return Ok(());
        }
        let objective = self.objective.name();
        if objective != "causal_lm" {
            return refuse(format!(
                "`{name}` computes a model in parts, which `causal_lm` alone does, and not `{objective}`"
            ));
        }
        let info = self.run.backbone.info();
        let sites = self.run.backbone.sites();
        let bare = sites.iter().find(|(_, s)| s.kind == SiteKind::Param);
        if let Some((_, site)) = bare {
            return refuse(format!(
                "`{name}`: `{}` of `{}` is a parameter of no layer, which is not divided: `data` with `zero` up to 2 runs",
                site.path, info.model_type
            ));
        }
        let layers = info.num_hidden_layers;
        if layout.pipeline > layers {
            return refuse(format!(
                "`{name}`: P ≤ layers: there are {layers} blocks to divide among {} stages",
                layout.pipeline
            ));
        }
        self.check_micro_batches(layout)
    }

    /// That a batch of so many rows divides evenly. Batches that are packed by tokens have about equal
    /// parts, whatever their number.
    fn check_micro_batches(&self, layout: Layout) -> Result<(), TrainError> {
        let config = self.run.config;
        let parts = layout.data * layout.micro_batches;
        let is_even = config.packing || config.batch_size.is_multiple_of(parts);
        match layout.pipeline == 1 || is_even {
            true => Ok(()),
            false => Err(TrainError::Setup(format!(
                "`micro={}`: N·m | train.batch_size: {} sequences do not divide among {} replicas into {} micro-batches each",
                layout.micro_batches, config.batch_size, layout.data, layout.micro_batches
            ))),
        }
    }
}
