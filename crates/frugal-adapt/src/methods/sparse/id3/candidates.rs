//! What may be released.

use burn::prelude::*;
use frugal_nn::{AdaptError, BuildContext, Frozen, SiteId, SiteInfo, SiteKind};

use crate::methods::sparse::id3::config::{Candidate, Id3Config, NAME};
use crate::support::per_linear::linear_maps;
use crate::target::{Names, Targets};

/// The frozen values of all sites, as matrices: weights (tables, gains) and biases; all absent when
/// planning.
pub(crate) fn frozen(context: &BuildContext<'_>) -> [Vec<Option<Tensor<2>>>; 2] {
    let (mut weights, mut biases) = (
        vec![None; context.sites.len()],
        vec![None; context.sites.len()],
    );
    let row = |vector: &Tensor<1>| vector.clone().unsqueeze::<2>();
    if let Some(backbone) = context.backbone {
        backbone.visit_weights(&mut |part| match part {
            Frozen::Linear(l) => {
                weights[l.site.index()] = Some(l.weight.dense());
                biases[l.site.index()] = l.bias.as_ref().map(row);
            }
            Frozen::Embedding(e) => weights[e.site.index()] = Some(e.weight.dense()),
            Frozen::Norm(n) => {
                weights[n.site.index()] = Some(row(&n.weight));
                biases[n.site.index()] = n.bias.as_ref().map(row);
            }
            // Never chosen.
            Frozen::Conv(_) | Frozen::Param(_) => {}
        });
    }
    [weights, biases]
}

/// The tensors of candidates at a site: `(rows, columns)` of its weight, and its bias's length.
pub(crate) fn shapes(
    config: &Id3Config,
    info: &SiteInfo,
) -> (Option<(usize, usize)>, Option<usize>) {
    let (wanted, shape) = match info.kind {
        SiteKind::Embedding => (Candidate::Embedding, (info.d_in, info.d_out)),
        SiteKind::Norm => (Candidate::Norm, (1, info.d_out)),
        _ => (Candidate::Linear, (info.d_out, info.d_in)),
    };
    let is_chosen = config.chooses(wanted);
    let has_bias = info.has_bias && config.chooses(Candidate::Bias);
    // A norm is a whole; a linear layer's bias may be a candidate without its weight.
    let bias = has_bias && (is_chosen || info.kind != SiteKind::Norm);
    (is_chosen.then_some(shape), bias.then_some(info.d_out))
}

/// The sites that have candidates, and those among them that `target_modules` names.
pub(crate) fn chosen_sites(
    config: &Id3Config,
    context: &BuildContext<'_>,
) -> Result<(Vec<SiteId>, Vec<SiteId>), AdaptError> {
    let linear = match config.chooses(Candidate::Linear) || config.chooses(Candidate::Bias) {
        true => linear_maps(NAME, &config.targets, context)?,
        false => Vec::new(),
    };
    let others = Targets {
        target_modules: Names::Pattern(".*".into()),
        ..config.targets.clone()
    };
    let wanted = |site: &SiteInfo| match site.kind {
        SiteKind::Norm => config.chooses(Candidate::Norm),
        SiteKind::Embedding => config.chooses(Candidate::Embedding),
        _ => false,
    };
    let mut all = linear.clone();
    if context.sites.iter().any(|(_, site)| wanted(site)) {
        all.extend(others.choose(context.sites, wanted)?);
    }
    Ok((all, linear))
}
