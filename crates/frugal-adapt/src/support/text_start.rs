//! Prompts and prefixes that start from real text.

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Backbone, BuildContext, Input, Linear, NoAdapter, Pass, SequenceLayout,
    StateOptions, lookup, named_rng, to_vec,
};
use rand::Rng;

use crate::support::orthogonal::invert;
use crate::support::prompt::token_table;

/// The text that prompts and prefixes start from where the settings name none.
pub(crate) const DEFAULT_TEXT: &str = "Read the following text with care and answer.";

/// Added to the diagonal of Gram matrices, as a share of its mean.
const RIDGE: f64 = 1e-6;

/// Token ids of `text`, repeated or cut to `rows`; without a tokenizer, ids drawn from the
/// vocabulary.
///
/// # Errors
/// A text without tokens.
fn ids(
    method: &'static str,
    text: &str,
    rows: usize,
    context: &BuildContext<'_>,
) -> Result<Vec<u32>, AdaptError> {
    let Some(tokenize) = context.tokenize else {
        let mut rng = named_rng(context.seed, "init_text");
        let size = context.info.vocab_size.max(1) as u32;
        return Ok((0..rows).map(|_| rng.random_range(0..size)).collect());
    };
    let ids = tokenize(text);
    if ids.is_empty() {
        return Err(AdaptError::Config {
            method,
            field: "init_text",
            reason: "the text has no tokens".into(),
        });
    }
    Ok(ids.into_iter().cycle().take(rows).collect())
}

/// Embeddings of a text, `[rows, d_model]`; `None` when planning and without a text.
///
/// # Errors
/// A text without tokens.
pub(crate) fn embeddings(
    method: &'static str,
    text: Option<&str>,
    rows: usize,
    context: &BuildContext<'_>,
) -> Result<Option<Vec<f32>>, AdaptError> {
    let table = context.backbone.and_then(token_table);
    let (Some(text), Some(table)) = (text.filter(|text| !text.is_empty()), table) else {
        return Ok(None);
    };
    let ids = ids(method, text, rows, context)?;
    Ok(Some(to_vec(lookup(table, &ids))))
}

/// Keys and values that a model computes of a text.
pub(crate) struct TextKeyValues {
    /// `[rows, layers * 2 * width]`: key and value of each block.
    pub values: Vec<f32>,
    /// Their root mean square by block, of keys and of values: `[layers * 2]`.
    pub sizes: Vec<f32>,
}

/// Keys and values of a text in every block, `width` each; `None` when planning, without a text and
/// for models whose attention is of another kind.
///
/// # Errors
/// A text without tokens, or longer than the model's positions.
pub(crate) fn key_values(
    method: &'static str,
    text: Option<&str>,
    (rows, width): (usize, usize),
    context: &BuildContext<'_>,
) -> Result<Option<TextKeyValues>, AdaptError> {
    let (Some(text), Some(backbone)) = (text.filter(|text| !text.is_empty()), context.backbone)
    else {
        return Ok(None);
    };
    let ids = ids(method, text, rows, context)?;
    let found = if context.info.is_encoder {
        of_encoder(backbone, &ids)
    } else {
        of_decoder(backbone, &ids)
    };
    let found = found.map_err(|error| AdaptError::Config {
        method,
        field: "init_text",
        reason: error.to_string(),
    })?;
    let fits = |part: &Option<Tensor<2>>| part.as_ref().is_some_and(|p| p.dims() == [rows, width]);
    if !found.iter().all(fits) {
        return Ok(None);
    }
    let parts: Vec<Vec<f32>> = found.into_iter().flatten().map(to_vec).collect();
    let sizes = parts
        .iter()
        .map(|part| {
            let squares: f64 = part.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
            (squares / part.len().max(1) as f64).sqrt() as f32
        })
        .collect();
    let values = (0..rows)
        .flat_map(|row| {
            parts
                .iter()
                .flat_map(move |part| part[row * width..(row + 1) * width].iter().copied())
        })
        .collect();
    Ok(Some(TextKeyValues { values, sizes }))
}

/// As the cache holds them: keys are rotated.
fn of_decoder(
    backbone: &dyn Backbone,
    ids: &[u32],
) -> Result<Vec<Option<Tensor<2>>>, frugal_nn::ModelError> {
    let layers = backbone.info().num_hidden_layers;
    // Nothing is let go of, however narrow a sliding window is.
    let options = StateOptions {
        rewindable: ids.len(),
        ..StateOptions::default()
    };
    let mut cache = backbone.new_state(1, options)?;
    let input = Input::tokens(ids, SequenceLayout::new(&[ids.len()]));
    backbone.forward(&input, &mut NoAdapter, Some(&mut cache))?;
    let of_layer = |layer| match cache.tensors(layer, 0, backbone.device()) {
        Some((key, value)) => [Some(key), Some(value)],
        None => [None, None],
    };
    Ok((0..layers).flat_map(of_layer).collect())
}

/// Collects what the key and value layers of an encoder give.
struct Projections<'a> {
    backbone: &'a dyn Backbone,
    found: Vec<Option<Tensor<2>>>,
}

impl Pass for Projections<'_> {
    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        let y = base.forward(x);
        let info = self.backbone.sites().info(base.site);
        let part = ["attention.self.key", "attention.self.value"]
            .iter()
            .position(|ending| info.path.ends_with(ending));
        if let (Some(layer), Some(part)) = (info.layer, part) {
            self.found[2 * layer + part] = Some(y.clone());
        }
        y
    }

    fn linear_change(&mut self, _base: &Linear) -> frugal_nn::LinearChange {
        // Without it, layers that are computed together would pass this by.
        frugal_nn::LinearChange::Opaque
    }
}

fn of_encoder(
    backbone: &dyn Backbone,
    ids: &[u32],
) -> Result<Vec<Option<Tensor<2>>>, frugal_nn::ModelError> {
    let mut pass = Projections {
        backbone,
        found: vec![None; 2 * backbone.info().num_hidden_layers],
    };
    let input = Input::tokens(ids, SequenceLayout::new(&[ids.len()]));
    backbone.forward(&input, &mut pass, None)?;
    Ok(pass.found)
}

/// The smallest weight `[d, h]` with `x Wᵀ = y`, for rows `x [rows, h]` and `y [rows, d]` (nearly,
/// where there are more rows than columns of `x`).
pub(crate) fn fit(x: &[f32], y: &[f32], rows: usize) -> Vec<f32> {
    let (h, d) = (x.len() / rows, y.len() / rows);
    let product = |i: usize, j: usize| -> f64 {
        let (a, b) = (&x[i * h..(i + 1) * h], &x[j * h..(j + 1) * h]);
        a.iter()
            .zip(b)
            .map(|(&a, &b)| f64::from(a) * f64::from(b))
            .sum()
    };
    let mut gram: Vec<f64> = (0..rows * rows)
        .map(|n| product(n / rows, n % rows))
        .collect();
    let mean = (0..rows).map(|i| gram[i * rows + i]).sum::<f64>() / rows as f64;
    (0..rows).for_each(|i| gram[i * rows + i] += RIDGE * mean.max(f64::MIN_POSITIVE));
    let inverse = invert(&gram, rows);
    // (X Xᵀ)⁻¹ X, [rows, h].
    let mut solved = vec![0.0f64; rows * h];
    for i in 0..rows {
        for j in 0..rows {
            let share = inverse[i * rows + j];
            for (out, &value) in solved[i * h..(i + 1) * h].iter_mut().zip(&x[j * h..]) {
                *out += share * f64::from(value);
            }
        }
    }
    let mut weight = vec![0.0f64; d * h];
    for row in 0..rows {
        for (out, &target) in weight.chunks_exact_mut(h).zip(&y[row * d..(row + 1) * d]) {
            for (w, s) in out.iter_mut().zip(&solved[row * h..(row + 1) * h]) {
                *w += f64::from(target) * s;
            }
        }
    }
    weight.into_iter().map(|w| w as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fitted_layer_gives_the_rows() {
        let wave = |n: usize, phase: f32| -> Vec<f32> {
            (0..n)
                .map(|i| (1.7 * (i * i) as f32 + phase).sin())
                .collect()
        };
        let (rows, h, d) = (3, 5, 4);
        let (x, y) = (wave(rows * h, 0.3), wave(rows * d, 2.0));
        let weight = fit(&x, &y, rows);
        for row in 0..rows {
            for out in 0..d {
                let found: f32 = (0..h).map(|i| x[row * h + i] * weight[out * h + i]).sum();
                assert!((found - y[row * d + out]).abs() < 1e-4, "{found}");
            }
        }
    }
}
