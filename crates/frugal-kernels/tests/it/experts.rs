use std::sync::Arc;

use frugal_kernels::{NO_ROW, combine_rows, gather_rows, portable};

use crate::support::{check, random};

#[test]
fn gathered_rows_match_the_reference() {
    for (tokens, d, rows) in [
        (1, 1, vec![0]),
        (5, 3, vec![4, 0, 2, 2, 1, 4]),
        (9, 130, vec![]),
        (700, 33, (0..900).map(|i| i * 7 % 700).collect()),
    ] {
        let rows: Arc<[u32]> = rows.into();
        check(
            &format!("{} of {tokens} rows of {d}", rows.len()),
            &[random(tokens, d, 1.0, 1)],
            &[true],
            &|t| gather_rows(t[0].clone(), &rows),
            &|t| portable::gather_rows(t[0].clone(), &rows),
            &|v| {
                let row = |&row: &u32| v[0][row as usize * d..][..d].to_vec();
                rows.iter().flat_map(row).collect()
            },
            1e-6,
        );
    }
}

/// The rows of several experts: gradients come to x from each, and from a use that is none of them.
#[test]
fn gradients_of_several_uses_are_summed() {
    let parts: [Arc<[u32]>; 3] = [[0, 2, 5].into(), [5, 1].into(), [3, 3, 0, 4].into()];
    let sum = |parts: Vec<burn::tensor::Tensor<2>>| burn::tensor::Tensor::cat(parts, 0);
    check(
        "three experts",
        &[random(6, 20, 1.0, 1), random(6, 20, 1.0, 2)],
        &[true, true],
        &|t| {
            let x = frugal_kernels::add(t[0].clone(), t[1].clone());
            let own = parts.iter().map(|rows| gather_rows(x.clone(), rows));
            sum(own.chain([x.clone() * 2.0]).collect())
        },
        &|t| {
            let x = t[0].clone() + t[1].clone();
            let own = parts
                .iter()
                .map(|rows| portable::gather_rows(x.clone(), rows));
            sum(own.chain([x.clone() * 2.0]).collect())
        },
        &|v| {
            let x: Vec<f64> = v[0].iter().zip(&v[1]).map(|(a, b)| a + b).collect();
            let rows = parts.iter().flat_map(|rows| rows.iter());
            let own = rows.flat_map(|&row| x[row as usize * 20..][..20].to_vec());
            own.chain(x.iter().map(|x| 2.0 * x)).collect()
        },
        1e-6,
    );
}

#[test]
fn combined_rows_match_the_reference() {
    let dropped = vec![2, 0, NO_ROW, 1, NO_ROW, NO_ROW, 3, 4];
    let many = (0..600).map(|slot| (slot * 7) % 600).collect();
    for (k, d, places) in [
        (1, 1, vec![0]),
        (2, 5, vec![3, 1, 0, 2]),
        (2, 17, dropped),
        (3, 131, many),
    ] {
        let places: Arc<[u32]> = places.into();
        let rows = places.iter().filter(|&&place| place != NO_ROW).count();
        let tokens = places.len() / k;
        check(
            &format!("{tokens} tokens of {k} rows of {d}"),
            &[random(rows, d, 1.0, 1), random(tokens, k, 1.0, 2)],
            &[true, true],
            &|t| combine_rows(t[0].clone(), t[1].clone(), &places),
            &|t| portable::combine_rows(t[0].clone(), t[1].clone(), &places),
            &|v| {
                let mut out = vec![0.0; tokens * d];
                for (slot, &place) in places.iter().enumerate() {
                    if place != NO_ROW {
                        for j in 0..d {
                            out[slot / k * d + j] += v[1][slot] * v[0][place as usize * d + j];
                        }
                    }
                }
                out
            },
            1e-5,
        );
    }
}

#[test]
#[should_panic(expected = "given twice")]
fn a_row_has_one_place() {
    let device = burn::tensor::Device::flex();
    let (y, weights) = (random(2, 3, 1.0, 1), random(1, 2, 1.0, 2));
    combine_rows(y.tensor(&device), weights.tensor(&device), &[1, 1].into());
}
