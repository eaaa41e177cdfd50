//! Worked values of small tables, and recall on large ones.

use faer::Mat;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::pseudo_inverse::pseudo_inverse;
use super::*;
use crate::vector::{Encoding, Metric, VectorBuilder, VectorIndex};

/// Rank 2: the third row is the sum of the other two.
fn small() -> ScoreTable {
    let values = [
        [1.0, 0.0, 2.0, 1.0],
        [0.0, 1.0, 1.0, 3.0],
        [1.0, 1.0, 3.0, 4.0],
    ];
    ScoreTable::new(3, 4, values.concat()).unwrap()
}

fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
}

fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (u, v): (f64, f64) = (rng.random_range(1e-12..1.0), rng.random());
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// Rank 20 with deviation 1 and noise of 0.3, as the table on which plain pseudo-inverses were seen to fail.
fn noisy(rows: usize, columns: usize, seed: u64) -> ScoreTable {
    const RANK: usize = 20;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = |count: usize| (0..count).map(|_| normal(&mut rng)).collect::<Vec<f64>>();
    let (left, right, noise) = (
        draw(rows * RANK),
        draw(RANK * columns),
        draw(rows * columns),
    );
    let values = (0..rows * columns).map(|at| {
        let (i, j) = (at / columns, at % columns);
        let product: f64 = (0..RANK)
            .map(|r| left[i * RANK + r] * right[r * columns + j])
            .sum();
        product / (RANK as f64).sqrt() + 0.3 * noise[at]
    });
    ScoreTable::new(rows, columns, values.collect()).unwrap()
}

#[test]
fn scores_of_a_table_of_low_rank_are_exact() {
    let table = small();
    let anchors = table.select(&[0, 1]);
    let plain = Regularization::Plain;
    let index = CurIndex::new(&anchors, &[0, 1], plain, false).unwrap();
    close(&index.approximate(&[1.0, 1.0]).unwrap(), table.row(2));
    // Also with anchors whose table is not the identity.
    let index = CurIndex::new(&anchors, &[2, 3], plain, false).unwrap();
    close(&index.approximate(&[3.0, 4.0]).unwrap(), table.row(2));
}

#[test]
fn anchors_of_too_low_rank_reproduce_what_they_can() {
    let table = small();
    let index = CurIndex::new(&table.select(&[0, 1]), &[2], Regularization::Plain, false).unwrap();
    let embeddings: Vec<f64> = (0..4).map(|i| f64::from(index.embedding(i)[0])).collect();
    close(&embeddings, &[0.4, 0.2, 1.0, 1.0]);
    close(&index.approximate(&[3.0]).unwrap(), &[1.2, 0.6, 3.0, 3.0]);
}

#[test]
fn all_items_as_anchors_project_on_the_anchor_queries() {
    let table = small();
    let anchors = table.select(&[0, 1]);
    let all = CurIndex::new(&anchors, &[0, 1, 2, 3], Regularization::Plain, false).unwrap();
    for row in 0..2 {
        close(
            &all.approximate(anchors.row(row)).unwrap(),
            anchors.row(row),
        );
    }
    // [0, 0, 0, 1] on the rows (1,0,2,1) and (0,1,1,3), by the normal equations: weights -2/41 and 13/41 of
    // the Gram matrix [[6, 5], [5, 11]].
    let (a, b) = (-4.0 / 41.0, 13.0 / 41.0);
    let projection = [a, b, 2.0 * a + b, a + 3.0 * b];
    close(
        &all.approximate(&[0.0, 0.0, 0.0, 1.0]).unwrap(),
        &projection,
    );
}

#[test]
fn pseudo_inverses_fulfil_their_identities() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (rows, columns) in [(7, 4), (4, 7), (5, 5)] {
        let mut w = Mat::from_fn(rows, columns, |_, _| normal(&mut rng));
        // Not of full rank.
        for i in 0..rows {
            w[(i, 1)] = 2.0 * w[(i, 0)];
        }
        let u = pseudo_inverse(&w, Regularization::Cutoff(1e-9)).unwrap();
        let wu = &w * &u;
        for (a, b) in [
            (&wu * &w, w.clone()),
            (&u * &wu, u.clone()),
            (wu.transpose().to_owned(), wu.clone()),
        ] {
            assert!((a - b).norm_max() < 1e-10);
        }
    }
    // The ridge by its definition: (1·1 + 2·2 + 1)⁻¹ (1, 2).
    let w = Mat::from_fn(2, 1, |i, _| (i + 1) as f64);
    let u = pseudo_inverse(&w, Regularization::Ridge(1.0)).unwrap();
    close(&[u[(0, 0)], u[(0, 1)]], &[1.0 / 6.0, 2.0 / 6.0]);
}

/// Top-10-Recall of the best 100 estimates of the rows that are not anchors.
fn recall_of(table: &ScoreTable, queries: usize, anchors: usize, reg: Regularization) -> f64 {
    let rows: Vec<usize> = (0..queries).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let chosen = rand::seq::index::sample(&mut rng, table.columns(), anchors).into_vec();
    let index = CurIndex::new(&table.select(&rows), &chosen, reg, false).unwrap();
    let tested = queries..table.rows();
    let count = tested.len() as f64;
    let recalls = tested.map(|row| {
        let row = table.row(row);
        let scores: Vec<f64> = chosen.iter().map(|i| row[*i]).collect();
        let estimates = index.approximate(&scores).unwrap();
        recall(&best(row, 10), &best(&estimates, 100))
    });
    recalls.sum::<f64>() / count
}

#[test]
fn a_square_table_of_anchors_needs_regularization() {
    let table = noisy(400, 1000, 7);
    let of = |queries, anchors, reg| recall_of(&table, queries, anchors, reg);
    let plain = of(100, 100, Regularization::Plain);
    // Independent values of the same experiment: .209 plain, .995 with 0.1, .996 with λ = 10, .959
    // plain with 50 anchors, .985 with 200.
    assert!(plain < 0.5, "{plain}");
    for reg in [
        Regularization::Cutoff(0.1),
        Regularization::Cutoff(0.2),
        Regularization::Ridge(10.0),
    ] {
        let found = of(100, 100, reg);
        assert!(found >= 0.98, "{reg:?} {found}");
    }
    assert!((of(100, 50, Regularization::Plain) - 0.959).abs() < 0.03);
    assert!((of(100, 200, Regularization::Plain) - 0.985).abs() < 0.02);
    // The default never falls behind however many anchors there are.
    for anchors in [20, 50, 90, 100, 110, 200] {
        let plain = of(100, anchors, Regularization::Plain);
        let found = of(100, anchors, Regularization::default());
        assert!(found > plain - 0.02, "{anchors}: {found} {plain}");
    }
}

#[test]
fn calls_are_counted_once_for_each_pair() {
    let table = noisy(60, 300, 3);
    let queries: Vec<usize> = (0..40).collect();
    for (rounds, choice) in [
        (1, AnchorChoice::Random { seed: 1 }),
        (1, AnchorChoice::FirstStage { seed: 1 }),
        (4, AnchorChoice::Random { seed: 1 }),
    ] {
        let options = Options {
            anchors: 30,
            rounds,
            choice,
            depth: Depth::Retrieved(50),
            ..Options::default()
        };
        let mut scorer = Counted::new(&table);
        let anncur = Anncur::build(&mut scorer, &queries, 300, options).unwrap();
        assert_eq!(scorer.calls(), 40 * 300);
        let first: Vec<usize> = (0..300).rev().collect();
        let answer = anncur.search(&mut scorer, 50, &first).unwrap();
        assert_eq!(scorer.calls(), 40 * 300 + answer.calls);
        assert_eq!(answer.retrieved.len(), 50);
        // Anchors that are retrieved are not paid for again; in one round it is known which they are.
        if let Some(index) = anncur.index() {
            let twice = index
                .anchors()
                .iter()
                .filter(|a| answer.retrieved.contains(a));
            assert_eq!(answer.calls, 30 + 50 - twice.count());
        }
        assert!(answer.calls <= 80);
        let budget = Options {
            depth: Depth::Budget(64),
            ..options
        };
        let anncur = Anncur::from_scores(table.select(&queries), budget).unwrap();
        let answer = anncur.search(&mut scorer, 50, &first).unwrap();
        assert_eq!(answer.calls, 64);
    }
    let mut scorer = Counted::new(&table);
    let answer = rerank(&mut scorer, 3, &[5, 9, 5, 7, 2], 3, 2).unwrap();
    assert_eq!(
        (answer.calls, scorer.calls(), answer.retrieved),
        (3, 3, vec![5, 9, 7])
    );
}

#[test]
fn everything_retrieved_is_the_exact_answer() {
    let table = noisy(30, 120, 4);
    let queries: Vec<usize> = (0..20).collect();
    let (anchors, depth) = (5, Depth::Retrieved(120));
    let options = Options {
        anchors,
        depth,
        ..Options::default()
    };
    let anncur = Anncur::from_scores(table.select(&queries), options).unwrap();
    let answer = anncur.search(&mut Counted::new(&table), 25, &[]).unwrap();
    let items: Vec<usize> = answer.top.iter().map(|t| t.0).collect();
    assert_eq!(items, best(table.row(25), 10));
    assert_eq!(answer.calls, 120);
}

#[test]
fn the_embeddings_serve_any_search_by_inner_product() {
    let table = noisy(80, 400, 5);
    let rows: Vec<usize> = (0..60).collect();
    for intercept in [false, true] {
        let anchors: Vec<usize> = (0..40).map(|i| i * 9).collect();
        let reg = Regularization::default();
        let index = CurIndex::new(&table.select(&rows), &anchors, reg, intercept).unwrap();
        let scores: Vec<f64> = anchors.iter().map(|i| table.row(70)[*i]).collect();
        let estimates = index.approximate(&scores).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("items.vec");
        let mut builder = VectorBuilder::new(index.dimension(), Metric::Ip, Encoding::F32).unwrap();
        for item in 0..index.len() {
            builder.push(item as u64, index.embedding(item)).unwrap();
        }
        builder.write(&path).unwrap();
        let query = index.query_vector(&scores).unwrap();
        let found = VectorIndex::open(&path)
            .unwrap()
            .search(&query, 20)
            .unwrap();
        let keys: Vec<usize> = found[0].iter().map(|f| f.key as usize).collect();
        assert_eq!(keys, best(&estimates, 20));
        for near in &found[0] {
            assert!((near.score - estimates[near.key as usize]).abs() < 1e-4);
        }
    }
}

#[test]
fn an_intercept_follows_offsets_of_queries() {
    // Rank 1 and an offset of each query's own: one anchor and the constant tell both.
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let items: Vec<f64> = (0..50).map(|_| normal(&mut rng)).collect();
    let rows: Vec<Vec<f64>> = (0..12)
        .map(|_| {
            let offset = 3.0 * normal(&mut rng);
            items.iter().map(|item| item + offset).collect()
        })
        .collect();
    let table = ScoreTable::new(12, 50, rows.concat()).unwrap();
    let known: Vec<usize> = (0..10).collect();
    let (anchors, tight) = ([4, 8], Regularization::Cutoff(1e-6));
    let index = CurIndex::new(&table.select(&known), &anchors, tight, false).unwrap();
    let both = index.approximate(&[rows[11][4], rows[11][8]]).unwrap();
    for (found, wanted) in both.iter().zip(&rows[11]) {
        assert!((found - wanted).abs() < 1e-4);
    }
    let single = CurIndex::new(&table.select(&known), &[4], tight, true).unwrap();
    for (found, wanted) in single
        .approximate(&[rows[11][4]])
        .unwrap()
        .iter()
        .zip(&rows[11])
    {
        assert!((found - wanted).abs() < 1e-4);
    }
}

#[test]
fn a_new_item_costs_one_column() {
    let table = small();
    let anchors = ScoreTable::new(2, 3, vec![1.0, 0.0, 2.0, 0.0, 1.0, 1.0]).unwrap();
    let mut index = CurIndex::new(&anchors, &[0, 1], Regularization::Plain, false).unwrap();
    assert_eq!(index.add_item(&[1.0, 3.0]).unwrap(), 3);
    close(&index.approximate(&[1.0, 1.0]).unwrap(), table.row(2));
    assert!(index.add_item(&[1.0]).is_err() && index.add_item(&[1.0, f64::NAN]).is_err());
    assert_eq!(index.len(), 4);
}

#[test]
fn adaptive_rounds_find_the_best_item_more_often_at_the_same_cost() {
    // Half of the norm of the table is noise, so that few random anchors tell little of the top.
    let table = noisy(300, 1500, 11);
    let queries: Vec<usize> = (0..100).collect();
    let of = |rounds: usize| {
        let options = Options {
            anchors: 40,
            rounds,
            depth: Depth::Budget(50),
            ..Options::default()
        };
        let anncur = Anncur::from_scores(table.select(&queries), options).unwrap();
        let mut scorer = Counted::new(&table);
        let hits = (100..200).filter(|query| {
            let answer = anncur.search(&mut scorer, *query, &[]).unwrap();
            assert_eq!(answer.calls, 50);
            answer.top[0].0 == best(table.row(*query), 1)[0]
        });
        hits.count()
    };
    let (once, adaptive) = (of(1), of(4));
    // By numpy in the same experiment: 82 once, 95 adaptively.
    assert!(adaptive > once + 5, "{adaptive} {once}");
}

#[test]
fn the_best_approximation_of_a_rank_is_that_of_the_singular_values() {
    // diag(3, 2) has these singular values, and (3, 0) is left of it at rank 1.
    let table = ScoreTable::new(2, 2, vec![0.0, 3.0, 2.0, 0.0]).unwrap();
    close(&singular_values(&table).unwrap(), &[3.0, 2.0]);
    let one = low_rank(&table, 1).unwrap();
    close(&[one.row(0), one.row(1)].concat(), &[0.0, 3.0, 0.0, 0.0]);
    let noisy = noisy(40, 60, 1);
    let values = singular_values(&noisy).unwrap();
    // What is lost are the other singular values (Eckart and Young).
    let rest: f64 = values[15..].iter().map(|v| v * v).sum();
    let near = low_rank(&noisy, 15).unwrap();
    let lost = |row: usize| {
        let pairs = noisy.row(row).iter().zip(near.row(row));
        pairs.map(|(a, b)| (a - b) * (a - b)).sum::<f64>()
    };
    let lost: f64 = (0..40).map(lost).sum();
    assert!((lost - rest).abs() < 1e-8 * rest, "{lost} {rest}");
}

#[test]
fn scores_and_options_that_cannot_be_used_are_refused_by_name() {
    struct Wrong(Vec<f32>);
    impl PairScorer for Wrong {
        fn score(
            &mut self,
            _: usize,
            _: &[usize],
        ) -> Result<Vec<f32>, Box<dyn std::error::Error + Send + Sync>> {
            Ok(self.0.clone())
        }
    }
    let message = |error: AnncurError| error.to_string();
    let error = Counted::new(Wrong(vec![1.0, f32::NAN]))
        .score(4, &[7, 9])
        .unwrap_err();
    assert_eq!(
        message(error),
        "the score of query 4 and item 9 is NaN, which is not finite"
    );
    let error = Counted::new(Wrong(vec![1.0]))
        .score(4, &[7, 9])
        .unwrap_err();
    assert!(message(error).contains("2 items were asked for, but 1 scores"));
    let error = Counted::new(&small()).score(9, &[0]).unwrap_err();
    assert!(message(error).contains("scoring query 9"));
    assert!(ScoreTable::new(2, 2, vec![0.0; 3]).is_err());
    let base = Options {
        anchors: 2,
        ..Options::default()
    };
    for (options, part) in [
        (
            Options { anchors: 5, ..base },
            "5 anchors cannot be chosen among 4 items",
        ),
        (Options { anchors: 0, ..base }, "at least one"),
        (Options { rounds: 3, ..base }, "not 3"),
        (
            Options {
                depth: Depth::Budget(1),
                ..base
            },
            "a budget of 1 calls",
        ),
        (
            Options {
                regularization: Regularization::Cutoff(1.5),
                ..base
            },
            "not 1.5",
        ),
        (
            Options {
                regularization: Regularization::Ridge(f64::NAN),
                ..base
            },
            "not NaN",
        ),
    ] {
        let error = message(Anncur::from_scores(small(), options).unwrap_err());
        assert!(error.contains(part), "{error}");
    }
    let reg = Regularization::Plain;
    for anchors in [&[][..], &[4], &[1, 1]] {
        assert!(CurIndex::new(&small(), anchors, reg, false).is_err());
    }
    let choice = AnchorChoice::FirstStage { seed: 0 };
    let anncur = Anncur::from_scores(small(), Options { choice, ..base }).unwrap();
    assert!(
        anncur
            .search(&mut Counted::new(&small()), 2, &[99])
            .is_err()
    );
}
