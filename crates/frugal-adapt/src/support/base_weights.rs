//! Weights of the backbone, for methods that start from them.

use burn::prelude::*;
use frugal_nn::{BuildContext, Frozen};

/// Weight `[d_out, d_in]` of every linear layer by site, shared with the backbone; all `None` when
/// planning.
pub(crate) fn linear_weights(context: &BuildContext<'_>) -> Vec<Option<Tensor<2>>> {
    let mut weights = vec![None; context.sites.len()];
    if let Some(backbone) = context.backbone {
        backbone.visit_weights(&mut |part| {
            if let Frozen::Linear(linear) = part {
                weights[linear.site.index()] = Some(linear.weight.dense());
            }
        });
    }
    weights
}
