use super::*;

fn options(combination_type: CombinationType, density: f64) -> CombineOptions {
    CombineOptions {
        combination_type,
        density,
        rank: Rank::Fixed(1),
        seed: 3,
    }
}

#[test]
fn ties_keeps_elects_and_averages() {
    // Worked by hand: density 0.5 keeps {4, -3} and {-5, 2}; signs of the sums (4, -5, 2 - 3):
    // +, -, -.
    let parts = vec![
        (vec![4.0, 0.5, -3.0, 0.1], 1.0),
        (vec![0.2, -5.0, 2.0, 0.1], 2.0),
    ];
    assert_eq!(
        mix(parts.clone(), &options(CombinationType::Ties, 0.5), ""),
        [4.0, -10.0, -3.0, 0.0]
    );
    assert_eq!(
        mix(
            parts.clone(),
            &options(CombinationType::MagnitudePrune, 0.5),
            ""
        ),
        [4.0, -10.0, 1.0, 0.0]
    );
    assert_eq!(
        mix(parts, &options(CombinationType::Linear, 0.5), ""),
        [4.4, -9.5, 1.0, 0.3]
    );
}

#[test]
fn dropping_keeps_the_expected_value() {
    let mut values = vec![1.0; 100_000];
    drop_at_random(&mut values, 0.2, 1, "x");
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / 1e5;
    // Standard error of the mean: sqrt((1 - 0.2) / 0.2 / 1e5) = 0.0063.
    assert!((mean - 1.0).abs() < 0.03, "{mean}");
    assert!(values.iter().all(|&v| v == 0.0 || v == 5.0));
}

#[test]
fn a_rank_that_the_change_does_not_have_is_not_kept() {
    // Of rank 2, with entries that round.
    let delta: Vec<f32> = (0..20)
        .flat_map(|i| {
            (0..12).map(move |j| (0.3 * i as f32).sin() * (j as f32 + 0.1) + 0.7 * j as f32)
        })
        .collect();
    for (rank, kept) in [
        (Rank::AtMost(8), 2),
        (Rank::AtMost(1), 1),
        (Rank::Fixed(8), 8),
    ] {
        assert_eq!(truncate(&delta, 20, 12, rank).0, kept, "{rank:?}");
    }
    assert_eq!(truncate(&[0.0; 12], 4, 3, Rank::AtMost(2)).0, 1);
}

#[test]
fn energy_chooses_the_smallest_rank_that_is_enough() {
    // Singular values 3, 2, 1: shares 9/14, 13/14, 1.
    let delta = [3.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0];
    for (share, rank, lost) in [(0.6, 1, 5.0), (0.9, 2, 1.0), (0.95, 3, 0.0)] {
        let (found, a, b, error) = truncate(&delta, 4, 3, Rank::Energy(share));
        assert_eq!((found, a.len(), b.len()), (rank, rank * 3, rank * 4));
        assert!((error - lost).abs() < 1e-5, "{error}");
        let at = |i: usize, j: usize| {
            (0..rank)
                .map(|k| b[i * rank + k] * a[k * 3 + j])
                .sum::<f32>()
        };
        assert!(
            (at(0, 0) - 3.0).abs() < 1e-5
                && (at(2, 2) - if rank == 3 { 1.0 } else { 0.0 }).abs() < 1e-5
        );
    }
}
