//! Which part of a model reads which of its parameters, for processes that have some of them.

use std::collections::BTreeMap;

use frugal_nn::{Parameter, SiteTable};

use crate::parallel::blocks_of;

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

#[cfg(test)]
mod tests {
    use burn::prelude::Device;
    use frugal_nn::{SiteInfo, SiteKind};

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
