//! Token-parameter attention: tokens attend to learnt key and value tokens in place of a projection.
//!
//! Wang et al., *TokenFormer: Rethinking Transformer Scaling with Tokenized Model Parameters*, ICLR
//! 2025, arXiv 2410.23168, equations 3 to 8 and 16; `Pattention` in the official repository
//! `Haiyang-W/TokenFormer`, `megatron/model/tokenformer.py`.

use burn::prelude::*;
use burn::tensor::activation::softmax;
use frugal_nn::state::DecodeState;
use frugal_nn::{Frozen, Linear, ModelError, Pass, RotaryTable, SiteKind};
use serde::{Deserialize, Serialize};

use crate::blocks::attention::{Attend, SelfAttention, attend};
use crate::blocks::gated_mlp::FeedForward;
use crate::blocks::sites::Sites;
use crate::rope::rotate;
use crate::weights::WeightLoader;

/// Name of the learnt keys, `[tokens, d_in]` in files.
pub const KEYS: &str = "key_param_tokens";
/// Name of the learnt values, `[tokens, d_out]` in files.
pub const VALUES: &str = "value_param_tokens";

/// What becomes of the scores `A = X K^T`, in place of softmax. `tau` is the root of
/// [`PattentionSpec::scale_tokens`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParamNorm {
    /// `GELU(tau A / ||A||)`, the paper's.
    #[default]
    L2NormGelu,
    /// `tau GELU(A) / ||GELU(A)||`.
    GeluL2Norm,
    /// `tau^2 exp(A) / ||exp(A)||_1`.
    Softmax,
}

impl ParamNorm {
    /// Whether a key token of zeros has no part in the output, so that tokens can be appended
    /// without changing it.
    pub fn ignores_zero_keys(self) -> bool {
        // exp(0) is 1: it takes from the others, and its value is added.
        self != Self::Softmax
    }
}

/// What one such layer computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PattentionSpec {
    /// Pairs of key and value tokens.
    pub tokens: usize,
    /// The number of pairs that the scale is made for: what there was when the model was made.
    pub scale_tokens: usize,
    /// What becomes of the scores.
    pub norm: ParamNorm,
    /// Added to the norm of the scores.
    pub eps: f64,
    /// Whether numbers are added to the scores and to the output.
    pub bias: bool,
}

impl PattentionSpec {
    /// Weights of the values: `[rows, tokens]` to the same.
    ///
    /// A row that is 0 throughout stays so, and its gradient is finite. Scores of 0 at the end change
    /// no bit of the others.
    pub fn weigh(&self, scores: Tensor<2>) -> Tensor<2> {
        let tau = (self.scale_tokens as f64).sqrt();
        match self.norm {
            ParamNorm::L2NormGelu => frugal_kernels::gelu(self.scaled(scores, tau)),
            ParamNorm::GeluL2Norm => self.scaled(frugal_kernels::gelu(scores), tau),
            ParamNorm::Softmax => softmax(scores, 1) * self.scale_tokens as f64,
        }
    }

    /// `tau X / (||X|| + eps)` for each row.
    fn scaled(&self, x: Tensor<2>, tau: f64) -> Tensor<2> {
        // The root's slope at 0 is infinite; this is below what single precision adds to any other
        // sum.
        let norm = sum_of_squares(x.clone()).add_scalar(1e-30).sqrt();
        x * (norm.add_scalar(self.eps).recip() * tau)
    }
}

/// Widths that rows are summed in: the largest step of vector instructions. Within whole steps
/// every lane has its own sum, which zeros behind the row do not change.
const STEP: usize = 128;

/// `[rows, n]` to `[rows, 1]`.
fn sum_of_squares(x: Tensor<2>) -> Tensor<2> {
    let [rows, n] = x.dims();
    let squares = x.clone() * x;
    let missing = n.next_multiple_of(STEP) - n;
    if missing == 0 {
        return squares.sum_dim(1);
    }
    let zeros = Tensor::zeros([rows, missing], &squares.device());
    Tensor::cat(vec![squares, zeros], 1).sum_dim(1)
}

/// Attention to learnt tokens: `weigh(X K^T) V`.
///
/// Keys and values are linear layers to methods: the keys one with `tokens` outputs, the values one
/// with `tokens` inputs that files store transposed.
pub struct Pattention {
    spec: PattentionSpec,
    keys: Linear,
    values: Linear,
}

impl Pattention {
    /// Its sites under `path`; `size` is its input and output width.
    pub fn sites(
        sites: &mut Sites,
        spec: &PattentionSpec,
        layer: usize,
        path: &str,
        [d_in, d_out]: [usize; 2],
        writes_to_residual: bool,
    ) {
        sites.linear(
            format!("{path}.{KEYS}"),
            layer,
            [d_in, spec.tokens],
            spec.bias,
        );
        let (path, size) = (format!("{path}.{VALUES}"), [spec.tokens, d_out]);
        sites
            .add(path, SiteKind::Conv1d, Some(layer), size, spec.bias)
            .writes_to_residual = writes_to_residual;
    }

    /// Takes the weights under `path`.
    ///
    /// # Errors
    /// Whatever reading a tensor gives.
    pub fn load(
        spec: PattentionSpec,
        loader: &mut WeightLoader<'_>,
        path: &str,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            spec,
            keys: loader.linear(&format!("{path}.{KEYS}"))?,
            values: loader.linear(&format!("{path}.{VALUES}"))?,
        })
    }

    /// `[rows, d_in]` to `[rows, d_out]`.
    pub fn forward(&self, x: Tensor<2>, pass: &mut dyn Pass) -> Tensor<2> {
        let scores = pass.linear(&self.keys, x);
        pass.linear(&self.values, self.spec.weigh(scores))
    }

    /// Visits all weights.
    pub fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        visit(Frozen::Linear(&self.keys));
        visit(Frozen::Linear(&self.values));
    }
}

impl FeedForward for Pattention {
    fn forward(&self, _layer: usize, x: Tensor<2>, pass: &mut dyn Pass) -> Tensor<2> {
        Pattention::forward(self, x, pass)
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        Pattention::visit_weights(self, visit);
    }
}

/// Self-attention whose projections are attention to learnt tokens.
pub struct PattentionHeads {
    /// Of queries, keys, values, and of what the heads give.
    maps: [Pattention; 4],
}

impl PattentionHeads {
    /// What its layers are called.
    pub const NAMES: [&'static str; 4] = ["query", "key", "value", "proj"];

    /// Its sites under `path`, all of them `width` wide.
    pub fn sites(
        sites: &mut Sites,
        [qkv, proj]: [&PattentionSpec; 2],
        layer: usize,
        path: &str,
        width: usize,
    ) {
        for name in Self::NAMES {
            let (path, last) = (format!("{path}.{name}"), name == "proj");
            let spec = if last { proj } else { qkv };
            Pattention::sites(sites, spec, layer, &path, [width, width], last);
        }
    }

    /// Takes the weights under `path`.
    ///
    /// # Errors
    /// Whatever reading a tensor gives.
    pub fn load(
        [qkv, proj]: [PattentionSpec; 2],
        loader: &mut WeightLoader<'_>,
        path: &str,
    ) -> Result<Self, ModelError> {
        let mut map = |spec, name: &str| Pattention::load(spec, loader, &format!("{path}.{name}"));
        let [query, key, value, last] = Self::NAMES;
        Ok(Self {
            maps: [
                map(qkv, query)?,
                map(qkv, key)?,
                map(qkv, value)?,
                map(proj, last)?,
            ],
        })
    }
}

impl SelfAttention for PattentionHeads {
    fn forward(
        &self,
        at: &Attend<'_>,
        rotary: &RotaryTable,
        x: Tensor<2>,
        pass: &mut dyn Pass,
        cache: Option<&mut DecodeState>,
    ) -> Tensor<2> {
        let ([query, key, value, proj], head_dim) = (&self.maps, at.heads[2]);
        let q = rotate(query.forward(x.clone(), pass), rotary, head_dim);
        let k = rotate(key.forward(x.clone(), pass), rotary, head_dim);
        let v = value.forward(x, pass);
        let y = attend(at, q, k, v, pass, cache);
        proj.forward(y, pass)
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        self.maps.iter().for_each(|map| map.visit_weights(visit));
    }

    fn takes_prefix(&self) -> bool {
        true
    }

    fn takes_control(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use frugal_nn::to_vec;

    const PAPER: PattentionSpec = PattentionSpec {
        tokens: 3,
        scale_tokens: 3,
        norm: ParamNorm::L2NormGelu,
        eps: 0.0,
        bias: false,
    };

    fn matrix<const R: usize, const C: usize>(rows: [[f32; C]; R]) -> Tensor<2> {
        Tensor::from_data(TensorData::from(rows), &Device::flex())
    }

    fn output(spec: PattentionSpec, x: Tensor<2>, keys: Tensor<2>, values: Tensor<2>) -> Vec<f32> {
        to_vec(spec.weigh(x.matmul(keys.transpose())).matmul(values))
    }

    fn close(found: &[f32], expected: &[f32]) {
        let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
        assert_eq!(found.len(), expected.len());
        assert!(
            worst.fold(0.0, f32::max) < 2e-6,
            "{found:?}, not {expected:?}"
        );
    }

    fn keys() -> Tensor<2> {
        matrix([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]])
    }

    fn values() -> Tensor<2> {
        matrix([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    }

    /// Scores 1, 2, -1, whose norm is the root of 6; by hand and by `math.erf`.
    #[test]
    fn a_worked_example_has_the_numbers_of_the_formula() {
        let x = || matrix([[1.0, 2.0]]);
        let scores = x().matmul(keys().transpose());
        close(
            &to_vec(PAPER.weigh(scores)),
            &[0.537578, 1.302986, -0.169529],
        );
        close(&output(PAPER, x(), keys(), values()), &[0.368049, 1.133457]);
        let more_keys = Tensor::cat(vec![keys(), matrix([[0.0, 0.0]])], 0);
        let more_values = Tensor::cat(vec![values(), matrix([[5.0, -7.0]])], 0);
        let kept = PattentionSpec { tokens: 4, ..PAPER };
        close(
            &output(kept, x(), more_keys.clone(), more_values.clone()),
            &[0.368049, 1.133457],
        );
        let renewed = PattentionSpec {
            scale_tokens: 4,
            ..kept
        };
        close(
            &output(renewed, x(), more_keys, more_values),
            &[0.478290, 1.380223],
        );
    }

    #[test]
    fn rows_have_no_scale_and_nothing_comes_of_nothing() {
        let x = || matrix([[1.0, 2.0], [-0.5, 0.25]]);
        let plain = output(PAPER, x(), keys(), values());
        close(&output(PAPER, x() * 3.0, keys(), values()), &plain);
        let with_eps = PattentionSpec { eps: 1e-5, ..PAPER };
        for spec in [PAPER, with_eps] {
            let nothing = output(spec, matrix([[0.0, 0.0]]), keys(), values());
            assert_eq!(nothing, [0.0, 0.0]);
        }
        let x = matrix([[0.0, 0.0]]).autodiff().require_grad();
        let y = with_eps
            .weigh(x.clone().matmul(keys().transpose()))
            .matmul(values());
        let mut gradients = y.sum().backward();
        let gradient = to_vec(x.grad_remove(&mut gradients).unwrap());
        // The slope of GELU at 0 is a half, and the sums of the values' rows are 1, 1 and 2.
        let slope = 0.5 * 3f32.sqrt() / 1e-5;
        let worst = (gradient[0] / (3.0 * slope) - 1.0)
            .abs()
            .max((gradient[1] / -slope - 1.0).abs());
        assert!(worst < 1e-4, "{gradient:?}");
    }

    #[test]
    fn pairs_have_no_order() {
        let x = || matrix([[0.3, -1.2], [2.0, 0.7]]);
        let turn = |m: Tensor<2>| m.flip([0]);
        for norm in [
            ParamNorm::L2NormGelu,
            ParamNorm::GeluL2Norm,
            ParamNorm::Softmax,
        ] {
            let spec = PattentionSpec { norm, ..PAPER };
            close(
                &output(spec, x(), turn(keys()), turn(values())),
                &output(spec, x(), keys(), values()),
            );
        }
    }

    /// Of the scores 1, 2, -1: GELU is 0.841345, 1.954500, -0.158655, whose norm is 2.133780;
    /// exponentials are 2.718282, 7.389056, 0.367879.
    #[test]
    fn other_normalisations_are_those_of_the_official_code() {
        let scores = || matrix([[1.0, 2.0, -1.0]]);
        let of = |norm| to_vec(PattentionSpec { norm, ..PAPER }.weigh(scores()));
        close(&of(ParamNorm::GeluL2Norm), &[0.682937, 1.586509, -0.128784]);
        close(&of(ParamNorm::Softmax), &[0.778489, 2.116154, 0.105357]);
    }

    #[test]
    fn zeros_behind_the_scores_change_no_bit() {
        let bits = |m: Tensor<2>| to_vec(m).iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        for norm in [ParamNorm::L2NormGelu, ParamNorm::GeluL2Norm] {
            for (n, m) in [(3, 1), (7, 9), (48, 48), (100, 29), (130, 300), (1000, 24)] {
                let wave = |i: usize| ((i * i) as f32 * 0.37).sin();
                let values: Vec<f32> = (0..5 * n).map(wave).collect();
                let scores =
                    Tensor::<2>::from_data(TensorData::new(values, [5, n]), &Device::flex());
                let zeros = Tensor::zeros([5, m], &Device::flex());
                let longer = Tensor::cat(vec![scores.clone(), zeros], 1);
                let spec = PattentionSpec {
                    tokens: n,
                    scale_tokens: n,
                    norm,
                    eps: 1e-5,
                    bias: false,
                };
                let found = spec.weigh(longer);
                assert_eq!(
                    bits(found.clone().narrow(1, 0, n)),
                    bits(spec.weigh(scores)),
                    "{n} and {m}"
                );
                assert!(to_vec(found.narrow(1, n, m)).iter().all(|v| *v == 0.0));
            }
        }
    }
}
