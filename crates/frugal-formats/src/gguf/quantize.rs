//! `f32` to the element types that the writer offers.

use half::{bf16, f16};
use rayon::prelude::*;

use super::{GgmlType, GgufProblem, k_quants};

/// Blocks that one thread encodes at a time.
const TASK: usize = 256;
/// No type overflows where all values are smaller.
const SMALL: f32 = 60_000.0;
/// No type with blocks holds more: the largest scale of Q6_K, a half times 127, times its largest
/// code. The sums of a search stay finite up to it.
const LARGEST_IN_BLOCKS: f32 = 65_504.0 * 127.0 * 32.0;

/// The bytes of `values` as `ggml_type`, rounded as GGML's reference does.
///
/// # Errors
/// [`GgufProblem::Unsupported`] when the values are not a whole number of blocks, or the type
/// cannot hold one of them.
pub fn quantize(ggml_type: GgmlType, values: &[f32]) -> Result<Vec<u8>, GgufProblem> {
    let block: fn(&[f32], &mut Vec<u8>) = match ggml_type {
        GgmlType::F32 => |x, out| out.extend(x[0].to_le_bytes()),
        GgmlType::F16 => |x, out| out.extend(f16::from_f32(x[0]).to_le_bytes()),
        GgmlType::BF16 => |x, out| out.extend(bf16::from_f32(x[0]).to_le_bytes()),
        GgmlType::Q8_0 => q8_0,
        GgmlType::Q4_0 => q4_0,
        GgmlType::Q4_1 => q4_1,
        GgmlType::Q5_0 => q5_0,
        GgmlType::Q5_1 => q5_1,
        GgmlType::Q4_K => k_quants::q4_k,
        GgmlType::Q5_K => k_quants::q5_k,
        GgmlType::Q6_K => k_quants::q6_k,
    };
    let len = ggml_type.block_len();
    if !values.len().is_multiple_of(len) {
        return Err(GgufProblem::Unsupported(format!(
            "cannot write {} values as {ggml_type}, whose blocks hold {len}",
            values.len()
        )));
    }
    if len > 1 {
        if values.iter().any(|v| !v.is_finite()) {
            return Err(GgufProblem::Unsupported(format!(
                "cannot write values that are not finite as {ggml_type}"
            )));
        }
        if let Some(value) = values.iter().find(|v| v.abs() > LARGEST_IN_BLOCKS) {
            return Err(too_large(ggml_type, *value));
        }
    }
    let encode = |values: &[f32]| {
        let mut out = Vec::with_capacity(values.len() / len * ggml_type.block_bytes());
        values
            .chunks_exact(len)
            .for_each(|values| block(values, &mut out));
        out
    };
    let parts: Vec<Vec<u8>> = values.par_chunks(TASK * len).map(encode).collect();
    let bytes = parts.concat();
    check_range(ggml_type, values, &bytes)?;
    Ok(bytes)
}

/// Numbers that overflow would come back as infinite or as no numbers at all.
fn check_range(ggml_type: GgmlType, values: &[f32], bytes: &[u8]) -> Result<(), GgufProblem> {
    if ggml_type == GgmlType::F32 || values.iter().all(|v| v.abs() < SMALL) {
        return Ok(());
    }
    let read = super::dequantize(ggml_type, bytes);
    match values
        .iter()
        .zip(read)
        .find(|(v, r)| v.is_finite() && !r.is_finite())
    {
        None => Ok(()),
        Some((value, _)) => Err(too_large(ggml_type, *value)),
    }
}

fn too_large(ggml_type: GgmlType, value: f32) -> GgufProblem {
    GgufProblem::Unsupported(format!(
        "cannot write {value:e} as {ggml_type}: it is too large"
    ))
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn push_half(value: f32, out: &mut Vec<u8>) {
    out.extend(f16::from_f32(value).to_le_bytes());
}

fn q8_0(x: &[f32], out: &mut Vec<u8>) {
    let d = x.iter().fold(0.0_f32, |max, v| max.max(v.abs())) / 127.0;
    let id = inverse(d);
    push_half(d, out);
    // `round` takes halves away from zero, as the reference does.
    out.extend(x.iter().map(|v| (v * id).round() as i8 as u8));
}

fn q4_0(x: &[f32], out: &mut Vec<u8>) {
    let d = symmetric_step(x, 8.0);
    let id = inverse(d);
    push_half(d, out);
    push_nibbles(x, |v| v * id + 8.5, out);
}

fn q4_1(x: &[f32], out: &mut Vec<u8>) {
    let (d, min) = affine_step(x, 15.0);
    let id = inverse(d);
    push_half(d, out);
    push_half(min, out);
    push_nibbles(x, |v| (v - min) * id + 0.5, out);
}

fn q5_0(x: &[f32], out: &mut Vec<u8>) {
    let d = symmetric_step(x, 16.0);
    let id = inverse(d);
    push_half(d, out);
    push_five_bits(x, |v| v * id + 16.5, out);
}

fn q5_1(x: &[f32], out: &mut Vec<u8>) {
    let (d, min) = affine_step(x, 31.0);
    let id = inverse(d);
    push_half(d, out);
    push_half(min, out);
    push_five_bits(x, |v| (v - min) * id + 0.5, out);
}

/// The step at which the first value of the largest magnitude gets code 0, `codes` below zero.
fn symmetric_step(x: &[f32], codes: f32) -> f32 {
    let extreme = x.iter().fold(
        0.0_f32,
        |extreme, &v| if v.abs() > extreme.abs() { v } else { extreme },
    );
    extreme / -codes
}

/// The step and the minimum.
fn affine_step(x: &[f32], codes: f32) -> (f32, f32) {
    let (min, max) = x
        .iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), &v| {
            (min.min(v), max.max(v))
        });
    ((max - min) / codes, min)
}

fn push_nibbles(x: &[f32], code: impl Fn(f32) -> f32, out: &mut Vec<u8>) {
    let code = |v: f32| (code(v) as u8).min(15);
    let (low, high) = x.split_at(x.len() / 2);
    out.extend(
        low.iter()
            .zip(high)
            .map(|(&low, &high)| code(low) | code(high) << 4),
    );
}

/// The fifth bits of all codes, then nibbles.
fn push_five_bits(x: &[f32], code: impl Fn(f32) -> f32, out: &mut Vec<u8>) {
    let codes: Vec<u8> = x.iter().map(|&v| (code(v) as u8).min(31)).collect();
    let high = codes
        .iter()
        .enumerate()
        .fold(0_u32, |high, (i, code)| high | u32::from(code >> 4) << i);
    out.extend(high.to_le_bytes());
    let (first, second) = codes.split_at(codes.len() / 2);
    out.extend(
        first
            .iter()
            .zip(second)
            .map(|(low, high)| (low & 0x0f) | (high & 0x0f) << 4),
    );
}
