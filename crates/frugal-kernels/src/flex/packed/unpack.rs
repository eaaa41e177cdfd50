//! Codes as the numbers they stand for, a panel at a time.

use super::super::matrix::MatrixMut;
use crate::packed::{Codes, NF4, Numbers, Offset, PANEL};
use crate::simd::bytes::{Bytes, CODES, multiversion_bytes};
use crate::simd::{LANES, Lanes};

/// Bytes of codes that are worth a thread.
pub(super) const TASK_BYTES: usize = 1 << 16;

/// Writes a panel transposed, `[cols, PANEL]`.
pub(super) fn unpack(out: MatrixMut<'_>, weight: &Codes, panel: usize) {
    if weight.bits == 4 {
        unpack_bits::<4>(out, weight, panel)
    } else {
        unpack_bits::<8>(out, weight, panel)
    }
}

multiversion_bytes!(fn unpack_bits<const BITS: u32>(out: MatrixMut<'_>, weight: &Codes, panel: usize) = unpack_body);

/// Writes a panel transposed, `[cols, PANEL]`.
#[inline(always)]
fn unpack_body<B: Bytes, const BITS: u32>(mut out: MatrixMut<'_>, weight: &Codes, panel: usize) {
    let (group, groups) = (weight.group, weight.groups());
    let codes = weight.codes[panel * weight.panel_bytes()..][..weight.panel_bytes()]
        .as_chunks::<CODES>()
        .0;
    let per_group = codes.len() / groups;
    for (g, codes) in codes.chunks_exact(per_group).enumerate() {
        let at = (panel * groups + g) * PANEL;
        let scales = lanes_at::<B>(&weight.scales, at);
        let none = B::Lanes::splat(0.0);
        let terms = match &weight.offset {
            Offset::Zero(zero) => Terms::Codes {
                zero: B::Lanes::splat(-f32::from(*zero)),
                scales,
                minima: none,
            },
            Offset::Minimum(minima) => Terms::Codes {
                zero: none,
                scales,
                minima: lanes_at::<B>(minima, at),
            },
            Offset::Table => Terms::Table { scales },
        };
        for (j, codes) in codes.iter().enumerate() {
            let codes = B::load(codes);
            let first = g * group + 4 * j;
            if BITS == 4 {
                unpack_vector::<B>(&mut out, first, B::low(codes), &terms);
                unpack_vector::<B>(&mut out, first + 4 * per_group, B::high(codes), &terms);
            } else {
                unpack_vector::<B>(&mut out, first, codes, &terms);
            }
        }
    }
}

/// What codes of a group stand for.
enum Terms<L> {
    /// `(code + zero) · scale + minimum`.
    Codes { zero: L, scales: L, minima: L },
    /// The number of a table at that place, times the scale.
    Table { scales: L },
}

/// Writes four columns from `first`, as far as there are so many.
#[inline(always)]
fn unpack_vector<B: Bytes>(
    out: &mut MatrixMut<'_>,
    first: usize,
    codes: B::Codes,
    terms: &Terms<B::Lanes>,
) {
    for i in 0..4 {
        if first + i < out.rows() {
            let values = match terms {
                Terms::Codes {
                    zero,
                    scales,
                    minima,
                } => B::code(codes, i).add(*zero).mul_add(*scales, *minima),
                Terms::Table { scales } => B::look_up(&NF4, codes, i).mul(*scales),
            };
            values.store(
                out.row_mut(first + i)
                    .try_into()
                    .expect("a panel has sixteen rows"),
            );
        }
    }
}

/// Sixteen scales or minima. A function rather than a closure, which would not be compiled for the
/// instruction set.
#[inline(always)]
pub(super) fn lanes_at<B: Bytes>(numbers: &Numbers, at: usize) -> B::Lanes {
    match numbers {
        Numbers::F16(values) => B::halves(values[at..][..LANES].try_into().expect("sixteen")),
        Numbers::F32(values) => B::Lanes::load(values[at..][..LANES].try_into().expect("sixteen")),
        Numbers::Byte(codes, mean) => {
            B::Lanes::load(&std::array::from_fn(|lane| codes.at(at + lane) + mean))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Baseline;

    /// Every instruction set unpacks the numbers that a row read by itself has, for all formats and
    /// widths with a rest.
    #[test]
    fn every_instruction_set_unpacks_the_same_numbers() {
        use frugal_formats::gguf::GgmlType;
        let values = |cols: usize| -> Vec<f32> {
            (0..3 * PANEL * cols)
                .map(|i| (0.37 * i as f32).sin() * (1.0 + (i % 5) as f32))
                .collect()
        };
        let ggml = |ggml_type| Codes::to_ggml(ggml_type, &values(64), 64).unwrap();
        let packings = [
            Codes::int8(&values(70), 70),
            Codes::nf4(&values(150), 150),
            Codes::nf4_double(&values(150), 150),
            ggml(GgmlType::Q8_0),
            ggml(GgmlType::Q4_0),
            ggml(GgmlType::Q4_1),
        ];
        for packed in packings {
            let cols = packed.dims()[1];
            let mut expected = vec![0.0; packed.dims()[0] * cols];
            let rows = expected.chunks_exact_mut(cols).enumerate();
            rows.for_each(|(row, out)| packed.read_row(row, out));
            let check = |name: &str, unpack: &dyn Fn(MatrixMut<'_>, usize)| {
                for panel in 0..3 {
                    let mut tile = vec![f32::NAN; cols * PANEL];
                    unpack(MatrixMut::new(&mut tile, cols, PANEL), panel);
                    for (i, row) in expected
                        .chunks(cols)
                        .skip(panel * PANEL)
                        .take(PANEL)
                        .enumerate()
                    {
                        let found: Vec<f32> = (0..cols).map(|k| tile[k * PANEL + i]).collect();
                        assert_eq!(found, row, "{name}: {}", packed.format());
                    }
                }
            };
            check("the processor's", &|out, panel| unpack(out, &packed, panel));
            let baseline = |out: MatrixMut<'_>, panel| match packed.bits {
                4 => unpack_body::<Baseline, 4>(out, &packed, panel),
                _ => unpack_body::<Baseline, 8>(out, &packed, panel),
            };
            check("baseline", &baseline);
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2<const BITS: u32>(out: MatrixMut<'_>, weight: &Codes, panel: usize) {
                    unpack_body::<crate::simd::Avx2, BITS>(out, weight, panel);
                }
                // SAFETY: the processor has the features, as just detected.
                check("AVX2", &|out, panel| unsafe {
                    if packed.bits == 4 {
                        avx2::<4>(out, &packed, panel)
                    } else {
                        avx2::<8>(out, &packed, panel)
                    }
                });
            }
        }
    }
}
