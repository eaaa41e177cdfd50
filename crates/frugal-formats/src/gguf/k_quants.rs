//! `f32` to GGML's K-quants: blocks of 256 with scales that are quantised themselves.
//!
//! Scales are searched for as GGML's reference does, without an importance matrix: the codes of
//! several candidates are taken, each with the scale (and minimum) that fits them best by weighted
//! least squares, and the one with the smallest weighted error wins.

use half::f16;

/// Elements with one scale and minimum in Q4_K and Q5_K.
const AFFINE_GROUP: usize = 32;
/// Elements with one scale in Q6_K.
const SYMMETRIC_GROUP: usize = 16;
/// Distance of the candidates, in codes.
const STEP: f32 = 0.1;
/// Groups whose values or scales are below it count as zero.
const NEGLIGIBLE: f32 = 1e-15;

/// Which candidates are tried for a scale and a minimum.
#[derive(Clone, Copy)]
struct Search {
    /// The largest code.
    top: f32,
    /// The range of the first candidate is that of `top + first` codes.
    first: f32,
    steps: u8,
}

const FOUR_BITS: Search = Search {
    top: 15.0,
    first: -1.0,
    steps: 20,
};
const FIVE_BITS: Search = Search {
    top: 31.0,
    first: -0.5,
    steps: 15,
};

pub(super) fn q4_k(x: &[f32], out: &mut Vec<u8>) {
    let codes = affine_block(x, FOUR_BITS, out);
    push_nibbles(&codes, out);
}

pub(super) fn q5_k(x: &[f32], out: &mut Vec<u8>) {
    let codes = affine_block(x, FIVE_BITS, out);
    // The fifth bit of group j is bit j.
    let mut high = [0_u8; AFFINE_GROUP];
    for (j, group) in codes.chunks_exact(AFFINE_GROUP).enumerate() {
        for (high, code) in high.iter_mut().zip(group) {
            *high |= (code >> 4) << j;
        }
    }
    out.extend(high);
    push_nibbles(&codes, out);
}

/// Groups in pairs share their bytes.
fn push_nibbles(codes: &[u8], out: &mut Vec<u8>) {
    for pair in codes.chunks_exact(2 * AFFINE_GROUP) {
        let (low, high) = pair.split_at(AFFINE_GROUP);
        let bytes = low.iter().zip(high);
        out.extend(bytes.map(|(low, high)| (low & 0x0f) | (high & 0x0f) << 4));
    }
}

/// Writes scales and minima; gives the codes.
fn affine_block(x: &[f32], search: Search, out: &mut Vec<u8>) -> Vec<u8> {
    let fits: Vec<Affine> = x
        .chunks_exact(AFFINE_GROUP)
        .map(|group| fit_affine(group, search))
        .collect();
    let scales = SixBits::of(fits.iter().map(|fit| fit.scale));
    let minima = SixBits::of(fits.iter().map(|fit| fit.minimum));
    out.extend(scales.unit.to_le_bytes());
    out.extend(minima.unit.to_le_bytes());
    push_six_bits(&scales.codes, &minima.codes, out);
    let groups = x.chunks_exact(AFFINE_GROUP).enumerate();
    groups
        .flat_map(|(j, group)| {
            let (scale, minimum) = (scales.value(j), minima.value(j));
            group.iter().map(move |v| {
                if scale == 0.0 {
                    0
                } else {
                    nearest((v + minimum) / scale, 0.0, search.top) as u8
                }
            })
        })
        .collect()
}

/// Eight numbers of six bits that share a unit.
struct SixBits {
    unit: f16,
    codes: [u8; 8],
}

impl SixBits {
    const TOP: f32 = 63.0;

    /// None of the values is negative.
    fn of(values: impl Iterator<Item = f32> + Clone) -> Self {
        let max = values.clone().fold(0.0, f32::max);
        let inverse = if max > 0.0 { Self::TOP / max } else { 0.0 };
        let mut codes = [0; 8];
        for (code, value) in codes.iter_mut().zip(values) {
            *code = nearest(inverse * value, 0.0, Self::TOP) as u8;
        }
        Self {
            unit: f16::from_f32(max / Self::TOP),
            codes,
        }
    }

    fn value(&self, index: usize) -> f32 {
        self.unit.to_f32() * f32::from(self.codes[index])
    }
}

/// Twelve bytes: six bits each of the first four, then four low bits of the last four, whose high
/// bits fill up the first eight bytes.
fn push_six_bits(scales: &[u8; 8], minima: &[u8; 8], out: &mut Vec<u8>) {
    for codes in [scales, minima] {
        out.extend((0..4).map(|j| codes[j] | (codes[j + 4] >> 4) << 6));
    }
    out.extend((4..8).map(|j| (scales[j] & 0x0f) | (minima[j] & 0x0f) << 4));
}

/// A group is `scale * code - minimum`.
struct Affine {
    scale: f32,
    minimum: f32,
}

/// Large values count more: the weight is the root mean square and the magnitude.
fn fit_affine(x: &[f32], search: Search) -> Affine {
    let squares: f32 = x.iter().map(|v| v * v).sum();
    let usual = (squares / x.len() as f32).sqrt();
    let weighted = || x.iter().map(|&v| (usual + v.abs(), v));
    let least = x.iter().fold(0.0, |min: f32, &v| min.min(v));
    let most = x.iter().fold(f32::NEG_INFINITY, |max: f32, &v| max.max(v));
    let range = most - least;
    if range <= 0.0 || usual == 0.0 {
        return Affine {
            scale: 0.0,
            minimum: -least,
        };
    }
    let (mut sum_w, mut sum_x) = (0.0, 0.0);
    for (w, v) in weighted() {
        sum_w += w;
        sum_x += w * v;
    }
    let code = |inverse: f32, v: f32| nearest(inverse * (v - least), 0.0, search.top);
    let error = |inverse: f32, scale: f32, least: f32| -> f32 {
        weighted()
            .map(|(w, v)| {
                let difference = scale * code(inverse, v) + least - v;
                w * difference * difference
            })
            .sum()
    };
    let (mut scale, mut minimum) = (range / search.top, least);
    let mut best = error(search.top / range, scale, minimum);
    for step in 0..=search.steps {
        let inverse = (search.first + STEP * f32::from(step) + search.top) / range;
        let (mut sum_l, mut sum_ll, mut sum_xl) = (0.0, 0.0, 0.0);
        for (w, v) in weighted() {
            let l = code(inverse, v);
            sum_l += w * l;
            sum_ll += w * l * l;
            sum_xl += w * l * v;
        }
        let determinant = sum_w * sum_ll - sum_l * sum_l;
        if determinant <= 0.0 {
            continue;
        }
        let mut fitted = (
            (sum_w * sum_xl - sum_x * sum_l) / determinant,
            (sum_ll * sum_x - sum_l * sum_xl) / determinant,
        );
        if fitted.1 > 0.0 {
            // Minima are stored without a sign.
            fitted = (sum_xl / sum_ll, 0.0);
        }
        let found = error(inverse, fitted.0, fitted.1);
        if found < best {
            best = found;
            (scale, minimum) = fitted;
        }
    }
    Affine {
        scale,
        minimum: -minimum,
    }
}

/// Codes of Q6_K, before 32 is added.
const SIX_BITS: (f32, f32) = (-32.0, 31.0);

pub(super) fn q6_k(x: &[f32], out: &mut Vec<u8>) {
    let fits: Vec<f32> = x.chunks_exact(SYMMETRIC_GROUP).map(fit_symmetric).collect();
    let largest = extreme(&fits);
    let inverse = if largest.abs() < NEGLIGIBLE {
        0.0
    } else {
        -128.0 / largest
    };
    let unit = f16::from_f32(if inverse == 0.0 { 0.0 } else { 1.0 / inverse });
    let scales: Vec<i8> = fits
        .iter()
        .map(|fit| nearest(inverse * fit, -128.0, 127.0) as i8)
        .collect();
    let groups = x.chunks_exact(SYMMETRIC_GROUP).zip(&scales);
    let codes: Vec<u8> = groups
        .flat_map(|(group, &code)| {
            let scale = unit.to_f32() * f32::from(code);
            group.iter().map(move |v| {
                let (low, high) = SIX_BITS;
                let code = if scale == 0.0 {
                    0.0
                } else {
                    nearest(v / scale, low, high)
                };
                (code - low) as u8
            })
        })
        .collect();
    push_six_bit_codes(&codes, out);
    out.extend(scales.iter().map(|&scale| scale as u8));
    out.extend(unit.to_le_bytes());
}

/// For each half of 128 codes 64 bytes of low nibbles, then for each half 32 bytes of high pairs of
/// bits.
fn push_six_bit_codes(codes: &[u8], out: &mut Vec<u8>) {
    for half in codes.chunks_exact(128) {
        let (first, second) = half.split_at(64);
        let bytes = first.iter().zip(second);
        out.extend(bytes.map(|(low, high)| (low & 0x0f) | (high & 0x0f) << 4));
    }
    for half in codes.chunks_exact(128) {
        out.extend(
            (0..32).map(|i| (0..4).fold(0, |byte, q| byte | (half[32 * q + i] >> 4) << (2 * q))),
        );
    }
}

/// The scale whose codes fit best; the weights are the squares of the values.
fn fit_symmetric(x: &[f32]) -> f32 {
    let extreme = extreme(x);
    if extreme.abs() < NEGLIGIBLE {
        return 0.0;
    }
    let (low, high) = SIX_BITS;
    let sums = |inverse: f32| {
        let (mut xl, mut ll) = (0.0, 0.0);
        for &v in x {
            let l = nearest(inverse * v, low, high);
            let w = v * v;
            xl += w * v * l;
            ll += w * l * l;
        }
        (xl, ll)
    };
    let (xl, ll) = sums(low / extreme);
    let mut scale = if ll > 0.0 { xl / ll } else { 0.0 };
    let mut best = scale * xl;
    for step in (-9_i8..=9).filter(|&step| step != 0) {
        let (xl, ll) = sums((low - STEP * f32::from(step)) / extreme);
        if ll > 0.0 && xl * xl > best * ll {
            scale = xl / ll;
            best = scale * xl;
        }
    }
    scale
}

/// The first value of the largest magnitude.
fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(
        0.0,
        |extreme: f32, &v| if v.abs() > extreme.abs() { v } else { extreme },
    )
}

/// The nearest whole number, halves to the even one, within the bounds.
fn nearest(value: f32, low: f32, high: f32) -> f32 {
    value.round_ties_even().clamp(low, high)
}
