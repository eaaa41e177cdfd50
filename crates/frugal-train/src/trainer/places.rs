//! Which part of a model reads which of its parameters, for processes that have some of them.

use std::collections::BTreeMap;

use frugal_nn::{Parameter, SiteKind, SiteTable};

use super::Trainer;
use crate::error::TrainError;
use crate::parallel::{Layout, blocks_of};

/// The parts of a model that read a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// What is in front of the blocks.
    Stem,
    /// The stem, and the output head, which is tied to the token table.
    StemAndHead,
    /// A block.
    Block(usize),
    /// What is behind the blocks.
    Readout,
    /// Blocks that share it, or unknown ones.
    All,
}

impl Reader {
    /// The stages of a pipeline that read it.
    pub(super) fn stages(self, layers: usize, stages: usize) -> Vec<usize> {
        match self {
            Self::Stem => vec![0],
            Self::StemAndHead => match stages {
                1 => vec![0],
                _ => vec![0, stages - 1],
            },
            Self::Block(layer) => {
                let has = |stage: &usize| blocks_of(layers, stages, *stage).contains(&layer);
                (0..stages).filter(has).collect()
            }
            Self::Readout => vec![stages - 1],
            Self::All => (0..stages).collect(),
        }
    }
}

/// What reads each parameter, by its name.
pub(super) fn readers(sites: &SiteTable, parameters: &[&Parameter]) -> BTreeMap<String, Reader> {
    let in_block: Vec<usize> = sites
        .iter()
        .filter(|(_, site)| site.layer.is_some())
        .map(|(id, _)| id.index())
        .collect();
    let first = in_block.first().copied().unwrap_or(sites.len());
    let last = in_block.last().copied().unwrap_or(0);
    let is_tied = sites.iter().any(|(_, site)| site.tied);
    let of = |name: &str| {
        // `model.norm.weight` and `model.norm.bias`, and a bare parameter under its path.
        let whole = sites.find(name);
        let path = name.rsplit_once('.').map_or(name, |(path, _)| path);
        let Some(id) = whole.or_else(|| sites.find(path)) else {
            return Reader::All;
        };
        let site = sites.info(id);
        match site.layer {
            Some(layer) => Reader::Block(layer),
            None if site.token_table && is_tied => Reader::StemAndHead,
            None if id.index() < first => Reader::Stem,
            None if id.index() > last => Reader::Readout,
            None => Reader::All,
        }
    };
    let all = parameters.iter();
    all.map(|p| (p.name().to_owned(), of(p.name()))).collect()
}

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

#[cfg(test)]
mod tests {
    use burn::prelude::Device;
    use frugal_nn::SiteInfo;

    use super::*;

    #[test]
    fn parameters_are_read_where_their_sites_stand() {
        let site = |path: &str, kind, layer| SiteInfo::new(path, kind, layer, [4, 4], false);
        let mut table = site("embed", SiteKind::Embedding, None);
        table.token_table = true;
        let mut head = site("lm_head", SiteKind::LmHead, None);
        head.tied = true;
        let all = vec![
            table,
            site("positions", SiteKind::Embedding, None),
            site("layers.0.q", SiteKind::Linear, Some(0)),
            site("shared", SiteKind::Norm, None),
            site("layers.1.q", SiteKind::Linear, Some(1)),
            site("norm", SiteKind::Norm, None),
            head,
        ];
        let sites = SiteTable::of(all);
        let names = [
            "embed",
            "positions",
            "layers.0.q",
            "shared",
            "layers.1.q",
            "norm",
            "other",
        ];
        let parameters: Vec<Parameter> = names
            .map(|name| Parameter::new(format!("{name}.weight"), &[1], vec![0.0], &Device::flex()))
            .into();
        let readers = readers(&sites, &parameters.iter().collect::<Vec<_>>());
        let of = |name: &str| readers[&format!("{name}.weight")];
        assert_eq!(of("embed"), Reader::StemAndHead);
        assert_eq!(of("positions"), Reader::Stem);
        assert_eq!(of("layers.1.q"), Reader::Block(1));
        assert_eq!(of("shared"), Reader::All);
        assert_eq!(of("norm"), Reader::Readout);
        assert_eq!(of("other"), Reader::All);
        assert_eq!(of("embed").stages(2, 2), [0, 1]);
        assert_eq!(of("layers.0.q").stages(2, 2), [0]);
        assert_eq!(of("layers.1.q").stages(2, 2), [1]);
        assert_eq!(of("norm").stages(2, 2), [1]);
    }
}
