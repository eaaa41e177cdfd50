//! # FRoD: a full-rank change in a basis that layers of a kind share
//!
//! ## What it does
//! Layers of the same kind in all blocks are written in one common basis, each with its own scale of
//! every basis vector. These scales are trained, and a few entries that turn basis vectors into one
//! another: a change of full rank with fewer numbers than LoRA has.
//!
//! ## Update rule
//! `W = U diag(λ₀) Vᵀ` with `V [d_in, d_in]` shared by the layers of a kind and columns of `U [d_out, d_in]`
//! of unit length; `W' = W + U (S + diag(λ - λ₀)) Vᵀ` with `λ [d_in]` and the entries of a sparse `S` outside
//! of its diagonal trained.
//!
//! ## When to use, when not
//! Where the change must have full rank and the adapter must be small. The common basis is found
//! before training, in time that grows with the cube of a layer's width, and each step costs more
//! than the layer itself: it is for small and middle-sized models.
//!
//! ## Cost
//! Trainable: `d_in + sparse_rate d_in²` per layer. Extra memory: `d_in²` numbers per kind of layer and
//! `d_in d_out` per layer, frozen. Extra compute: `d_in (d_in + d_out)` multiply-adds per token forward.
//! None after merging.
//!
//! ## Defaults and where they come from
//! `sparse_rate = 0.01`, `regularization_alpha = 1e-3`, `S` zero: Hugging Face `peft`. Places of `S` are drawn
//! by PyTorch's generator from `projection_prng_key`, as `peft` draws them. With `W₁ ... Wₙ` below each
//! other as `Q R`, `V = Rᵀ E`, where `E` are the eigenvectors of the mean of `(QᵢᵀQᵢ + α I)⁻¹`; where the
//! stack has fewer rows than columns, `V` are its right singular vectors.
//!
//! ## Departures from the paper
//! None of `peft`'s reading: files hold `V` and the places (`save_projection`); files without them are
//! refused, because eigenvectors have no sign. `λ₀` is what it is without training, so that before
//! it nothing changes to the last bit. `peft` forms `U` from a basis that it computes itself while it
//! reads a file, not from the file's `V`: it misreads what is trained here, without an error, so merge
//! the adapter to use it in Python. What `peft` wrote is read. `runtime_offload_base_weight` and
//! `progressbar` have no effect.
//!
//! ## References
//! - Full-Rank Efficient Fine-Tuning with Rotational Degrees, AAAI 2026, doi
//!   10.1609/aaai.v40i31.39813; the arithmetic follows Hugging Face `peft`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::prelude::*;
use burn::tensor::IndexingUpdateOp;
use frugal_nn::linalg::{qr, svd};
use frugal_nn::{
    AdaptError, Adapter, BuildContext, MergedLinear, Mode, Parameter, named_rng, standard_normal,
    to_vec,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::base_weights::linear_weights;
use crate::support::dropout::dropout;
use crate::support::layer_targets::LayerTargets;
use crate::support::orthogonal::invert;
use crate::support::per_linear::{
    self, LinearAdapter, LinearSite, PerLinear, bad, check_dropout, linear_maps,
};
use crate::support::torch_random::TorchGenerator;

const NAME: &str = "frod";

/// Indices are exact in single precision below this.
const MAX_WIDTH: usize = 1 << 24;

/// Registry entry.
pub const METHOD: Method = Method::of::<FrodConfig>(
    Family::Spectral,
    "Scales and a few rotations in a basis that layers of a kind share",
    include_str!("frod.rs"),
)
.default_lr(5e-3)
.files_hold_what_follows_from_weights()
.check_file(check_sizes);

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FrodConfig {
    /// Trained share of the elements outside of the diagonal.
    pub sparse_rate: f64,
    /// Added to the diagonal of the matrices that are inverted for the basis.
    pub regularization_alpha: f64,
    /// Seed of the places of trained elements.
    pub projection_prng_key: u64,
    /// Whether files hold the basis and the places: always.
    pub save_projection: bool,
    /// Probability of dropping an input element on the adapted path while training.
    pub frod_dropout: f64,
    /// Start without a change; otherwise with a random one, for tests.
    pub init_weights: bool,
    /// Of no effect.
    pub progressbar: bool,
    /// Of no effect.
    pub runtime_offload_base_weight: bool,
    /// Which layers.
    #[serde(flatten)]
    pub targets: LayerTargets,
}

impl Default for FrodConfig {
    fn default() -> Self {
        Self {
            sparse_rate: 0.01,
            regularization_alpha: 1e-3,
            projection_prng_key: 0,
            save_projection: true,
            frod_dropout: 0.0,
            init_weights: true,
            progressbar: true,
            runtime_offload_base_weight: false,
            targets: LayerTargets::default(),
        }
    }
}

impl MethodConfig for FrodConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "FROD";

    fn validate(&self) -> Result<(), AdaptError> {
        if !(self.sparse_rate > 0.0 && self.sparse_rate <= 1.0) {
            return bad(NAME, "sparse_rate", "must be above 0 and at most 1");
        }
        if !(self.regularization_alpha > 0.0 && self.regularization_alpha.is_finite()) {
            return bad(NAME, "regularization_alpha", "must be a positive number");
        }
        if !self.save_projection {
            let reason = "the basis is not found again here: it must be in the file";
            return bad(NAME, "save_projection", reason);
        }
        check_dropout(NAME, "frod_dropout", self.frod_dropout)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft_without_bias::<FrodConfig>(NAME, config)
    }
}

/// The sizes of `S` that a file states are those of `V`.
fn check_sizes(adapter: &dyn Adapter) -> Result<(), AdaptError> {
    let all = adapter.parameters();
    for sizes in &all {
        let Some(kind) = sizes.name().strip_prefix("base_model.frod_s_size.") else {
            continue;
        };
        let v = format!("base_model.frod_V.{kind}");
        let shape = all.iter().find(|p| p.name() == v).map(|p| p.shape());
        let (found, wanted) = (sizes.to_vec(), shape.unwrap_or_default());
        if !found
            .iter()
            .map(|&n| f64::from(n))
            .eq(wanted.iter().map(|&n| n as f64))
        {
            let reason = format!(
                "`{}` is {found:?}, and `{v}` has the sizes {wanted:?}",
                sizes.name()
            );
            return bad(NAME, "s_size", reason);
        }
    }
    Ok(())
}

/// What kind of layer a path is of, as `peft` calls it: its last two names.
fn kind_of(path: &str) -> String {
    let parts: Vec<&str> = path.split('.').collect();
    match parts.as_slice() {
        [.., "attention", "output", "dense"] => "attention_output".into(),
        [.., number, name] if number.bytes().all(|b| b.is_ascii_digit()) => (*name).into(),
        [.., parent, name] => format!("{parent}_{name}"),
        _ => path.into(),
    }
}

/// Layers of one kind.
#[derive(Default)]
struct Kind {
    /// Their weights `[d_out, d_in]`, block after block; none in planning.
    weights: Vec<Vec<f32>>,
    d_in: usize,
}

fn build(config: FrodConfig, context: &BuildContext<'_>) -> Result<PerLinear<Scales>, AdaptError> {
    config.validate()?;
    let targets = config.targets.all();
    let weights = linear_weights(context);
    let mut kinds: BTreeMap<String, Kind> = BTreeMap::new();
    for id in linear_maps(NAME, &targets, context)? {
        let info = context.sites.info(id);
        let kind = kinds.entry(kind_of(&info.path)).or_default();
        if info.d_in >= MAX_WIDTH || (kind.d_in > 0 && kind.d_in != info.d_in) {
            let reason = format!("`{}` is not as wide as others of its kind", info.path);
            return bad(NAME, "target_modules", reason);
        }
        kind.d_in = info.d_in;
        kind.weights.extend(weights[id.index()].clone().map(to_vec));
    }
    let mut generator = TorchGenerator::new(config.projection_prng_key);
    let mut shared: Vec<Parameter> = Vec::new();
    let mut bases: BTreeMap<String, (Inverse, usize, usize)> = BTreeMap::new();
    for (name, kind) in &kinds {
        let d = kind.d_in;
        let frozen = |what: &str, shape: &[usize], values| {
            let name = format!("base_model.frod_{what}.{name}");
            Parameter::frozen(name, shape, values, &context.device)
        };
        let places = places(d, config.sparse_rate, &mut generator);
        let count = places.len();
        let lines = places.iter().map(|p| (p / d) as f32);
        let places = lines.chain(places.iter().map(|p| (p % d) as f32)).collect();
        let basis = basis(kind, config.regularization_alpha);
        bases.insert(
            name.clone(),
            (Arc::new(Mutex::new(None)), shared.len(), count),
        );
        shared.push(frozen("V", &[d, d], basis));
        shared.push(
            frozen("s_indices", &[2, count], places)
                .as_whole_numbers()
                .indices_below(&[d, d]),
        );
        shared.push(frozen("s_size", &[2], vec![d as f32; 2]).as_whole_numbers());
    }
    let constants = json!({"bias": "none", "fan_in_fan_out": false});
    let maps = PerLinear::new(
        &METHOD,
        &targets,
        context,
        &config,
        constants,
        |id, info| {
            let (inverse, first, count) = bases[&kind_of(&info.path)].clone();
            let mut rng = named_rng(context.seed, &info.path);
            let mut draw = |n: usize| -> Vec<f32> {
                let deviation = if config.init_weights { 0.0 } else { 0.1 };
                (0..n)
                    .map(|_| deviation * standard_normal(&mut rng))
                    .collect()
            };
            let (mut lambda, values) = (draw(info.d_in), draw(count));
            let frame = Frame::default();
            if let Some(weight) = &weights[id.index()] {
                let (_, start) = frame.of(&inverse, &shared[first], || weight.clone());
                lambda
                    .iter_mut()
                    .zip(to_vec(start))
                    .for_each(|(l, s)| *l += s);
            }
            let new = |name: &str, values: Vec<f32>| {
                let name = format!("{}.frod_lambda_{name}", info.path);
                Parameter::new(name, &[values.len()], values, &context.device)
            };
            Ok(Scales {
                lambda: new("l", lambda),
                values: new("s_values", values),
                first,
                inverse,
                frame,
                dropout: config.frod_dropout,
            })
        },
    )?;
    Ok(maps.with_shared(shared, true))
}

/// Trained places outside of the diagonal of a matrix `[d, d]`, flat.
fn places(d: usize, rate: f64, generator: &mut TorchGenerator) -> Vec<usize> {
    let most = d * (d - 1);
    let mut count = ((d * d) as f64 * rate) as usize;
    if rate > 0.0 {
        count = count.max(1);
    }
    let chosen = generator.permutation(most, count.min(most));
    // Row i has d - 1 places, without the one on the diagonal.
    let place = |n: usize| {
        let (i, j) = (n / (d - 1), n % (d - 1));
        i * d + j + usize::from(j >= i)
    };
    chosen.into_iter().map(place).collect()
}

/// The common basis `V [d_in, d_in]` of layers of a kind; the identity in planning.
fn basis(kind: &Kind, alpha: f64) -> Vec<f32> {
    let d = kind.d_in;
    let stacked = kind.weights.concat();
    let rows = stacked.len() / d;
    if rows == 0 {
        return (0..d * d)
            .map(|n| f32::from(u8::from(n / d == n % d)))
            .collect();
    }
    let gram = |matrix: &[f32]| -> Vec<f64> {
        let mut sum = vec![0.0; d * d];
        for row in matrix.chunks_exact(d) {
            for (i, &a) in row.iter().enumerate() {
                let line = sum[i * d..(i + 1) * d].iter_mut().zip(row);
                line.for_each(|(s, &b)| *s += f64::from(a) * f64::from(b));
            }
        }
        sum
    };
    let single = |matrix: Vec<f64>| -> Vec<f32> { matrix.into_iter().map(|v| v as f32).collect() };
    if rows < d {
        return eigenvectors(&single(gram(&stacked)), d);
    }
    let found = qr(&stacked, rows, d);
    let mut mean = vec![0.0; d * d];
    let (mut start, layers) = (0, kind.weights.len() as f64);
    for weight in &kind.weights {
        let mut own = gram(&found.q[start..start + weight.len()]);
        start += weight.len();
        (0..d).for_each(|i| own[i * d + i] += alpha);
        let inverse = invert(&own, d);
        mean.iter_mut()
            .zip(inverse)
            .for_each(|(m, v)| *m += v / layers);
    }
    let vectors = eigenvectors(&single(mean), d);
    // Rᵀ E, with R an upper triangle.
    let mut out = vec![0.0_f64; d * d];
    for k in 0..d {
        for i in k..d {
            let share = f64::from(found.r[k * d + i]);
            let row = out[i * d..(i + 1) * d].iter_mut();
            row.zip(&vectors[k * d..(k + 1) * d])
                .for_each(|(o, &e)| *o += share * f64::from(e));
        }
    }
    single(out)
}

/// Eigenvectors of a symmetric matrix without negative eigenvalues, in columns.
fn eigenvectors(matrix: &[f32], d: usize) -> Vec<f32> {
    // Where an eigenvalue is zero, its vector is any that is orthogonal to the others.
    let found = svd(matrix, d, d);
    qr(&found.u, d, d).q
}

/// `V⁻¹` in double precision, with the `V` that it is of.
type Inverse = Arc<Mutex<Option<(Tensor<1>, Arc<Vec<f64>>)>>>;

/// `U` and `λ₀` of a layer, which follow from its weight and `V`, with this `V`: files replace the one
/// that the adapter was built with.
#[derive(Default)]
struct Frame(Mutex<Option<(Tensor<1>, Tensor<2>, Tensor<1>)>>);

impl Frame {
    /// `U [d_out, d_in]` and `λ₀ [d_in]` of a weight `[d_out, d_in]`.
    fn of(
        &self,
        inverse: &Inverse,
        v: &Parameter,
        weight: impl FnOnce() -> Tensor<2>,
    ) -> (Tensor<2>, Tensor<1>) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, u, start)) = held.as_ref()
            && same(of, v)
        {
            return (u.clone(), start.clone());
        }
        let (u, start) = decompose(weight(), &inverse_of(inverse, v));
        *held = Some((v.value(), u.clone(), start.clone()));
        (u, start)
    }
}

/// Whether a basis is this one, in all of its elements.
fn same(of: &Tensor<1>, v: &Parameter) -> bool {
    let differs = of.clone().not_equal(v.value()).any();
    !differs.into_scalar::<bool>()
}

/// `V⁻¹`, formed once for the layers of a kind.
fn inverse_of(inverse: &Inverse, v: &Parameter) -> Arc<Vec<f64>> {
    let mut held = inverse.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((of, found)) = held.as_ref()
        && same(of, v)
    {
        return found.clone();
    }
    let (values, d) = (v.to_vec(), v.shape()[0]);
    let values: Vec<f64> = values.into_iter().map(f64::from).collect();
    let mut found = invert(&values, d);
    if found.iter().any(|v| !v.is_finite()) {
        found = pseudo_inverse(&values, d);
    }
    let found = Arc::new(found);
    *held = Some((v.value(), found.clone()));
    found
}

/// `(VᵀV + ε I)⁻¹ Vᵀ`, for a basis whose vectors are not independent.
fn pseudo_inverse(v: &[f64], d: usize) -> Vec<f64> {
    let mut gram = vec![0.0; d * d];
    for row in v.chunks_exact(d) {
        for (i, &a) in row.iter().enumerate() {
            let line = gram[i * d..(i + 1) * d].iter_mut().zip(row);
            line.for_each(|(g, &b)| *g += a * b);
        }
    }
    let mean = (0..d).map(|i| gram[i * d + i]).sum::<f64>() / d as f64;
    (0..d).for_each(|i| gram[i * d + i] += 1e-12 * mean.max(f64::MIN_POSITIVE));
    let inverse = invert(&gram, d);
    let mut out = vec![0.0; d * d];
    for i in 0..d {
        for j in 0..d {
            out[i * d + j] = (0..d).map(|k| inverse[i * d + k] * v[j * d + k]).sum();
        }
    }
    out
}

/// `W V⁻ᵀ` as columns of unit length and their lengths.
fn decompose(weight: Tensor<2>, inverse: &[f64]) -> (Tensor<2>, Tensor<1>) {
    let ([d_out, d], device) = (weight.dims(), weight.device().inner());
    let values = to_vec(weight.inner());
    let mut product: Vec<f64> = Vec::with_capacity(d_out * d);
    for row in values.chunks_exact(d) {
        let column = |line: &[f64]| {
            row.iter()
                .zip(line)
                .map(|(&w, v)| f64::from(w) * v)
                .sum::<f64>()
        };
        product.extend(inverse.chunks_exact(d).map(column));
    }
    let mut lengths = vec![0.0_f64; d];
    for row in product.chunks_exact(d) {
        lengths.iter_mut().zip(row).for_each(|(l, v)| *l += v * v);
    }
    lengths.iter_mut().for_each(|l| *l = l.sqrt());
    for row in product.chunks_exact_mut(d) {
        for (value, &length) in row.iter_mut().zip(&lengths) {
            *value = if length > 1e-12 { *value / length } else { 0.0 };
        }
    }
    let u: Vec<f32> = product.into_iter().map(|v| v as f32).collect();
    let lengths: Vec<f32> = lengths.into_iter().map(|v| v as f32).collect();
    (
        Tensor::from_data(TensorData::new(u, [d_out, d]), &device),
        Tensor::from_data(TensorData::new(lengths, [d]), &device),
    )
}

/// What is trained of one layer.
struct Scales {
    /// `[d_in]`.
    lambda: Parameter,
    /// Trained entries of `S`.
    values: Parameter,
    /// Which of the shared tensors is `V`; the places of `S` follow.
    first: usize,
    inverse: Inverse,
    frame: Frame,
    dropout: f64,
}

impl Scales {
    /// `U` and `S + diag(λ - λ₀)`.
    fn change(&self, at: &LinearSite<'_>) -> (Tensor<2>, Tensor<2>) {
        let v = &at.shared[self.first];
        let weight = || at.base.weight.dense();
        let (u, start) = self.frame.of(&self.inverse, v, weight);
        let lambda = self.lambda.get::<1>(at.mode) - start;
        let d = lambda.dims()[0];
        let device = lambda.device().inner();
        let diagonal = Tensor::<2>::eye(d, &device) * lambda.unsqueeze::<2>();
        if self.values.is_empty() {
            return (u, diagonal);
        }
        let places = at.shared[self.first + 1].to_vec();
        let (rows, cols) = places.split_at(self.values.len());
        let flat: Vec<i64> = rows
            .iter()
            .zip(cols)
            .map(|(&i, &j)| (i as usize * d + j as usize) as i64)
            .collect();
        let flat = Tensor::<1, Int>::from_data(TensorData::from(flat.as_slice()), &device);
        let values = self.values.get::<1>(at.mode);
        let sum = diagonal
            .reshape([d * d])
            .select_assign(0, flat, values, IndexingUpdateOp::Add);
        (u, sum.reshape([d, d]))
    }
}

impl LinearAdapter for Scales {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.lambda, &self.values]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.lambda, &mut self.values]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        let (u, change) = self.change(at);
        let v = at.shared[self.first].get::<2>(Mode::Eval);
        u.matmul(change).matmul(v.transpose())
    }

    fn materializes_weight(&self) -> bool {
        false
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        let y = at.base.forward(x.clone());
        let x = match at.mode {
            Mode::Train { seed } if self.dropout > 0.0 => dropout(x, self.dropout, seed, at.path),
            _ => x,
        };
        let (u, change) = match at.mode {
            Mode::Train { .. } => self.change(at),
            Mode::Eval => at.keep(|| self.change(at)),
        };
        let z = x.matmul(at.shared[self.first].get::<2>(Mode::Eval));
        let turned = frugal_kernels::linear(z, change, None);
        y + frugal_kernels::linear(turned, u, None)
    }

    fn unmerged(&self, _at: &LinearSite<'_>) -> Result<MergedLinear, String> {
        Err("the scales of the base follow from its weights: load the base model instead".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_called_as_peft_calls_them() {
        for (path, kind) in [
            ("model.layers.3.self_attn.q_proj", "self_attn_q_proj"),
            ("bert.encoder.layer.0.attention.self.query", "self_query"),
            (
                "bert.encoder.layer.0.attention.output.dense",
                "attention_output",
            ),
            ("bert.encoder.layer.0.output.dense", "output_dense"),
            ("transformer.h.1.c_attn", "c_attn"),
        ] {
            assert_eq!(kind_of(path), kind);
        }
    }

    /// `W = U diag(λ₀) Vᵀ` for each basis, also where two differ behind their first elements only.
    #[test]
    fn a_basis_was_recognised_by_its_first_elements() {
        let (d, device) = (20, Device::flex());
        let wave = |n: usize| {
            (0..n)
                .map(|i| (0.7 * (i * i) as f32).sin())
                .collect::<Vec<f32>>()
        };
        let weight = Tensor::<2>::from_data(TensorData::new(wave(6 * d), [6, d]), &device);
        let mut basis: Vec<f32> = wave(d * d);
        (0..d).for_each(|i| basis[i * d + i] += 4.0);
        let (inverse, frame) = (Inverse::default(), Frame::default());
        for last in [1.0, -7.0] {
            basis[d * d - 1] = last;
            let v = Parameter::frozen("V", &[d, d], basis.clone(), &device);
            let (u, start) = frame.of(&inverse, &v, || weight.clone());
            let product = (u * start.unsqueeze::<2>()).matmul(v.get::<2>(Mode::Eval).transpose());
            let worst: f32 = (product - weight.clone()).abs().max().into_scalar();
            assert!(worst < 1e-4, "{last}: {worst:e}");
        }
    }

    #[test]
    fn a_basis_spans_all_directions() {
        // Two layers of four rows and one of two rows, of width 4: more rows than columns, and fewer.
        let wave = |n: usize, phase: f32| -> Vec<f32> {
            (0..n)
                .map(|i| (1.7 * (i * i) as f32 + phase).sin())
                .collect()
        };
        for weights in [vec![wave(16, 0.3), wave(16, 1.1)], vec![wave(8, 0.2)]] {
            let kind = Kind { weights, d_in: 4 };
            let v: Vec<f64> = basis(&kind, 1e-3).into_iter().map(f64::from).collect();
            let inverse = invert(&v, 4);
            assert!(inverse.iter().all(|v| v.abs() < 1e3), "{inverse:?}");
        }
    }
}
