//! `f32` to the element types that the writer offers.

use half::{bf16, f16};

use super::{GgmlType, GgufProblem};

/// The bytes of `values` as `ggml_type`: F32, F16, BF16, Q8_0, Q4_0 or Q4_1, rounded as GGML's
/// reference does.
///
/// # Errors
/// [`GgufProblem::Unsupported`] for another type, or when the values are not a whole number of
/// blocks.
pub fn quantize(ggml_type: GgmlType, values: &[f32]) -> Result<Vec<u8>, GgufProblem> {
    let block: fn(&[f32], &mut Vec<u8>) = match ggml_type {
        GgmlType::F32 => |x, out| out.extend(x[0].to_le_bytes()),
        GgmlType::F16 => |x, out| out.extend(f16::from_f32(x[0]).to_le_bytes()),
        GgmlType::BF16 => |x, out| out.extend(bf16::from_f32(x[0]).to_le_bytes()),
        GgmlType::Q8_0 => q8_0,
        GgmlType::Q4_0 => q4_0,
        GgmlType::Q4_1 => q4_1,
        _ => {
            return Err(GgufProblem::Unsupported(format!(
                "cannot write {ggml_type}; use F32, F16, BF16, Q8_0, Q4_0 or Q4_1"
            )));
        }
    };
    let len = ggml_type.block_len();
    if !values.len().is_multiple_of(len) {
        return Err(GgufProblem::Unsupported(format!(
            "cannot write {} values as {ggml_type}, whose blocks hold {len}",
            values.len()
        )));
    }
    let mut out = Vec::with_capacity(values.len() / len * ggml_type.block_bytes());
    values
        .chunks_exact(len)
        .for_each(|values| block(values, &mut out));
    Ok(out)
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
    // The first value of the largest magnitude gets code 0 (that is, -8).
    let extreme = x.iter().fold(
        0.0_f32,
        |extreme, &v| if v.abs() > extreme.abs() { v } else { extreme },
    );
    let d = extreme / -8.0;
    let id = inverse(d);
    push_half(d, out);
    push_nibbles(x, |v| v * id + 8.5, out);
}

fn q4_1(x: &[f32], out: &mut Vec<u8>) {
    let (min, max) = x
        .iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), &v| {
            (min.min(v), max.max(v))
        });
    let d = (max - min) / 15.0;
    let id = inverse(d);
    push_half(d, out);
    push_half(min, out);
    push_nibbles(x, |v| (v - min) * id + 0.5, out);
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
