use std::ops::Range;

use burn::tensor::{Device, Tensor};
use frugal_kernels::{
    AttentionSpec, CacheType, KeyValues, ScoreBias, attention, biased_attention, cached_attention,
    portable,
};

use crate::support::{Array, assert_close, check, check_finite, random};

/// A batch of sequences with these numbers of queries and keys.
fn spec(
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    lengths: &[(usize, usize)],
) -> AttentionSpec {
    let boundaries = |pick: fn(&(usize, usize)) -> usize| {
        let ends = lengths.iter().scan(0, |end, length| {
            *end += pick(length);
            Some(*end)
        });
        std::iter::once(0).chain(ends).collect::<Vec<_>>().into()
    };
    AttentionSpec {
        num_heads: heads,
        num_kv_heads: kv_heads,
        head_dim,
        scale: (head_dim as f32).sqrt().recip(),
        causal: false,
        window: None,
        cu_q: boundaries(|l| l.0),
        cu_k: boundaries(|l| l.1),
        softcap: None,
    }
}

/// The keys a query sees, from the definition.
fn sees(spec: &AttentionSpec, query: usize, key: usize, q_len: usize, k_len: usize) -> bool {
    let distance = (query + k_len - q_len) as i64 - key as i64;
    let window = spec.window.map_or(i64::MAX, |w| w as i64);
    (!spec.causal || distance >= 0) && distance.abs() < window
}

fn reference(q: &[f64], k: &[f64], v: &[f64], spec: &AttentionSpec) -> Vec<f64> {
    biased_reference(q, k, v, &|_, _, _| 0.0, spec)
}

/// With a bias for each head, query of its sequence and key row.
fn biased_reference(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    bias: &dyn Fn(usize, usize, usize) -> f64,
    spec: &AttentionSpec,
) -> Vec<f64> {
    let (heads, kv_heads, dim) = (spec.num_heads, spec.num_kv_heads, spec.head_dim);
    let mut out = vec![0.0; q.len()];
    for (cu_q, cu_k) in spec.cu_q.windows(2).zip(spec.cu_k.windows(2)) {
        let (q_len, k_len) = (cu_q[1] - cu_q[0], cu_k[1] - cu_k[0]);
        for i in 0..q_len {
            for head in 0..heads {
                let at = |row: usize, width: usize, head: usize| -> Range<usize> {
                    (row * width + head) * dim..(row * width + head + 1) * dim
                };
                let query = &q[at(cu_q[0] + i, heads, head)];
                let kv_head = head / (heads / kv_heads);
                let score = |j: usize| {
                    let key = &k[at(cu_k[0] + j, kv_heads, kv_head)];
                    let dot: f64 = query.iter().zip(key).map(|(q, k)| q * k).sum();
                    let score = dot * f64::from(spec.scale);
                    spec.softcap
                        .map(f64::from)
                        .map_or(score, |cap| cap * (score / cap).tanh())
                        + bias(head, i, cu_k[0] + j)
                };
                let scores: Vec<(usize, f64)> = (0..k_len)
                    .filter(|&j| sees(spec, i, j, q_len, k_len))
                    .map(|j| (j, score(j)))
                    .collect();
                let max = scores.iter().map(|s| s.1).fold(f64::MIN, f64::max);
                let sum: f64 = scores.iter().map(|s| (s.1 - max).exp()).sum();
                for (j, score) in scores {
                    let value = &v[at(cu_k[0] + j, kv_heads, kv_head)];
                    let out = &mut out[at(cu_q[0] + i, heads, head)];
                    out.iter_mut()
                        .zip(value)
                        .for_each(|(out, v)| *out += (score - max).exp() / sum * v);
                }
            }
        }
    }
    out
}

fn inputs(spec: &AttentionSpec, scale: f32) -> [Array; 3] {
    let (tokens_q, tokens_k) = (*spec.cu_q.last().unwrap(), *spec.cu_k.last().unwrap());
    let width = spec.num_kv_heads * spec.head_dim;
    [
        random(tokens_q, spec.num_heads * spec.head_dim, scale, 1),
        random(tokens_k, width, scale, 2),
        random(tokens_k, width, 1.0, 3),
    ]
}

#[track_caller]
fn check_spec(name: &str, spec: &AttentionSpec) {
    check(
        name,
        &inputs(spec, 2.0),
        &[true; 3],
        &|t| attention(t[0].clone(), t[1].clone(), t[2].clone(), spec),
        &|t| portable::attention(t[0].clone(), t[1].clone(), t[2].clone(), spec),
        &|v| reference(&v[0], &v[1], &v[2], spec),
        2e-5,
    );
}

/// Every kind of mask on one batch.
fn check_masks(name: &str, base: &AttentionSpec) {
    check_spec(&format!("{name}, bidirectional"), base);
    check_spec(
        &format!("{name}, causal"),
        &AttentionSpec {
            causal: true,
            ..base.clone()
        },
    );
    for window in [1, 3, 70] {
        let local = AttentionSpec {
            window: Some(window),
            ..base.clone()
        };
        check_spec(&format!("{name}, window {window}"), &local);
        check_spec(
            &format!("{name}, causal window {window}"),
            &AttentionSpec {
                causal: true,
                ..local
            },
        );
    }
    check_spec(
        &format!("{name}, softcap"),
        &AttentionSpec {
            causal: true,
            softcap: Some(1.5),
            ..base.clone()
        },
    );
}

#[test]
fn small_batches_match_the_reference() {
    check_masks("one token", &spec(1, 1, 3, &[(1, 1)]));
    check_masks("two sequences", &spec(2, 1, 5, &[(3, 3), (2, 2)]));
    check_masks("grouped", &spec(4, 2, 6, &[(2, 2), (3, 3)]));
}

/// Lengths around the tile sizes.
#[test]
fn large_batches_match_the_reference() {
    check_masks(
        "tiles",
        &spec(2, 1, 8, &[(64, 64), (65, 65), (1, 1), (300, 300)]),
    );
    check_masks("head of 64", &spec(3, 3, 64, &[(129, 129), (40, 40)]));
}

#[test]
fn queries_after_a_cache_match_the_reference() {
    check_masks(
        "single queries",
        &spec(4, 2, 16, &[(1, 7), (1, 300), (1, 2100)]),
    );
    check_masks(
        "a few queries",
        &spec(2, 2, 8, &[(5, 9), (3, 290), (1, 40), (70, 600)]),
    );
}

/// Queries of one text over the keys of another, of which there may be fewer.
#[test]
fn cross_attention_matches_the_reference() {
    check_spec(
        "more and fewer keys",
        &spec(4, 2, 6, &[(2, 5), (70, 3), (1, 1), (3, 280)]),
    );
}

#[test]
fn a_bias_on_scores_matches_the_reference() {
    for (name, lengths) in [
        ("small", &[(2, 2), (3, 3)][..]),
        ("tiles", &[(65, 65), (1, 300)]),
        ("crossed", &[(5, 2), (1, 7), (0, 2)]),
    ] {
        let base = spec(4, 2, 6, lengths);
        let own = name != "crossed";
        let plain = AttentionSpec {
            causal: own,
            ..base
        };
        for spec in [
            plain.clone(),
            AttentionSpec {
                window: own.then_some(3),
                softcap: Some(1.5),
                ..plain
            },
        ] {
            let tokens_k = *spec.cu_k.last().unwrap();
            let [q, k, v] = inputs(&spec, 2.0);
            let at =
                |t: &[Tensor<2>], bias: ScoreBias| (t[0].clone(), t[1].clone(), t[2].clone(), bias);
            let keys = |t: &[Tensor<2>]| at(t, ScoreBias::Keys(t[3].clone().reshape([tokens_k])));
            check(
                &format!("{name}, by key"),
                &[q.clone(), k.clone(), v.clone(), random(1, tokens_k, 1.0, 4)],
                &[true; 4],
                &|t| {
                    let (q, k, v, bias) = keys(t);
                    biased_attention(q, k, v, &bias, &spec)
                },
                &|t| {
                    let (q, k, v, bias) = keys(t);
                    portable::biased_attention(q, k, v, &bias, &spec)
                },
                &|x| biased_reference(&x[0], &x[1], &x[2], &|_, _, row| x[3][row], &spec),
                2e-5,
            );
            let (longest_q, longest_k) = lengths
                .iter()
                .fold((0, 0), |(a, b), &(q, k)| (a.max(q), b.max(k)));
            for heads in [1, 4] {
                let positions = |t: &[Tensor<2>]| {
                    at(
                        t,
                        ScoreBias::Positions(t[3].clone().reshape([heads, longest_q, longest_k])),
                    )
                };
                // Where a sequence begins among the keys, by a row of it.
                let start = |row: usize| *spec.cu_k.iter().rfind(|&&start| start <= row).unwrap();
                check(
                    &format!("{name}, by position, {heads} heads"),
                    &[
                        q.clone(),
                        k.clone(),
                        v.clone(),
                        random(heads * longest_q, longest_k, 1.0, 5),
                    ],
                    &[true; 4],
                    &|t| {
                        let (q, k, v, bias) = positions(t);
                        biased_attention(q, k, v, &bias, &spec)
                    },
                    &|t| {
                        let (q, k, v, bias) = positions(t);
                        portable::biased_attention(q, k, v, &bias, &spec)
                    },
                    &|x| {
                        let bias = |head: usize, i: usize, row: usize| {
                            x[3][(head % heads * longest_q + i) * longest_k + row - start(row)]
                        };
                        biased_reference(&x[0], &x[1], &x[2], &bias, &spec)
                    },
                    2e-5,
                );
            }
        }
    }
}

/// A bias of minus infinity hides a key, and may hide all those that are read first.
#[test]
fn keys_that_a_bias_hides_leave_the_others_as_they_are() {
    for (queries, keys, hidden) in [(2, 300, 256), (1, 1100, 1024)] {
        let spec = spec(2, 1, 4, &[(queries, keys)]);
        let [q, k, v] = inputs(&spec, 1.0).map(|array| array.tensor(&Device::flex()));
        let bias: Vec<f32> = (0..keys)
            .map(|i| if i < hidden { f32::NEG_INFINITY } else { 0.0 })
            .collect();
        let bias = ScoreBias::Keys(Tensor::from_data(bias.as_slice(), &Device::flex()));
        let found = biased_attention(q.clone(), k.clone(), v.clone(), &bias, &spec);
        let seen = AttentionSpec {
            cu_k: [0, keys - hidden].into(),
            ..spec
        };
        let rest = |t: Tensor<2>| t.slice([hidden..keys, 0..4]);
        let expected = attention(q, rest(k), rest(v), &seen);
        let distance: f32 = (found - expected).abs().max().into_scalar();
        assert!(
            distance < 1e-6,
            "{distance} with {hidden} of {keys} keys hidden"
        );
    }
}

/// A cache that lets go of its first positions, and one that goes on from a clone.
#[test]
fn a_cache_without_what_a_window_hides_gives_the_same_attention() {
    let (kv_heads, dim, window, len) = (2, 32, 300, 900);
    let device = Device::flex();
    let spec = AttentionSpec {
        window: Some(window),
        ..spec(6, kv_heads, dim, &[(1, len)])
    };
    let rows = |seed| random(len, kv_heads * dim, 1.0, seed).tensor(&device);
    let (k, v) = (rows(1), rows(2));
    let q = random(1, 6 * dim, 1.0, 3).tensor(&device);
    for cache_type in [CacheType::F32, CacheType::F16, CacheType::Int8] {
        let mut whole = KeyValues::new(kv_heads * dim, cache_type);
        let mut ring = whole.clone();
        let mut at = 0;
        // Pieces that end within blocks and at their ends.
        for piece in [1, 255, 256, 87, 1, 300] {
            let [k, v] = [&k, &v].map(|rows| rows.clone().slice(at..at + piece));
            at += piece;
            assert!(whole.append(&k, &v) && ring.append(&k, &v));
            ring.keep_last(window);
            assert_eq!(ring.len(), at.min(window));
            assert!(ring.bytes() <= 3 * 256 * ring.bytes_per_position());
        }
        assert_eq!(at, len);
        let found = cached_attention(q.clone(), &[&ring], &spec);
        let expected = cached_attention(q.clone(), &[&whole], &spec);
        let distance: f32 = (found - expected).abs().max().into_scalar();
        assert!(distance < 1e-6, "{cache_type:?}: {distance}");
        let [held, all] = [&ring, &whole].map(|cache| cache.tensors(&device));
        let last = all.0.slice(len - window..len);
        assert_eq!(last.into_data(), held.0.into_data(), "{cache_type:?}");

        // A clone shares its blocks until it differs, and does not see what the original gets.
        let clone = ring.clone();
        let before = clone.tensors(&device).1.into_data();
        assert!(clone.block_ids().eq(ring.block_ids()));
        assert!(ring.append(&k.clone().slice(0..40), &v.clone().slice(0..40)));
        ring.truncate(20);
        assert_eq!(clone.tensors(&device).1.into_data(), before);
        assert_eq!(clone.len(), window);
    }
}

#[test]
#[should_panic(expected = "rows of a cache are not 4 wide")]
fn a_cache_of_other_heads_is_refused() {
    let cache = {
        let mut cache = KeyValues::new(8, CacheType::F32);
        let rows = random(1, 8, 1.0, 1).tensor(&Device::flex());
        assert!(cache.append(&rows, &rows));
        cache
    };
    let spec = spec(2, 1, 4, &[(1, 1)]);
    cached_attention(
        random(1, 8, 1.0, 2).tensor(&Device::flex()),
        &[&cache],
        &spec,
    );
}

/// A key that stands for two, with the logarithm of two, does what two keys do.
#[test]
fn a_merged_key_counts_as_often_as_it_stands_for() {
    let device = Device::flex();
    let whole = spec(2, 1, 8, &[(3, 5)]);
    let [q, k, v] = inputs(&whole, 1.0).map(|a| a.tensor(&device));
    // The last two keys and values are the same.
    let twice = |t: Tensor<2>| Tensor::cat(vec![t.clone().narrow(0, 0, 4), t.narrow(0, 3, 1)], 0);
    let expected = attention(q.clone(), twice(k.clone()), twice(v.clone()), &whole);
    let bias = ScoreBias::Keys(Tensor::from_floats([0.0, 0.0, 0.0, 2f32.ln()], &device));
    let found = biased_attention(
        q,
        k.narrow(0, 0, 4),
        v.narrow(0, 0, 4),
        &bias,
        &spec(2, 1, 8, &[(3, 4)]),
    );
    let expected: Vec<f64> = expected
        .into_data()
        .try_into_vec::<f32>()
        .unwrap()
        .into_iter()
        .map(f64::from)
        .collect();
    assert_close(
        "merged",
        &found.into_data().try_into_vec::<f32>().unwrap(),
        &expected,
        1e-5,
    );
}

#[test]
fn a_sequence_without_queries_is_skipped() {
    check_spec(
        "empty in the middle",
        &spec(2, 1, 4, &[(3, 3), (0, 2), (0, 0), (4, 4)]),
    );
}

#[test]
fn queries_one_by_one_agree_with_all_at_once() {
    let device = Device::flex();
    let whole = AttentionSpec {
        causal: true,
        ..spec(4, 2, 16, &[(90, 90)])
    };
    let [q, k, v] = inputs(&whole, 1.0).map(|a| a.tensor(&device));
    let all = attention(q.clone(), k.clone(), v.clone(), &whole);
    for i in [0, 1, 63, 64, 89] {
        let one = AttentionSpec {
            causal: true,
            ..spec(4, 2, 16, &[(1, i + 1)])
        };
        let out = attention(
            q.clone().narrow(0, i, 1),
            k.clone().narrow(0, 0, i + 1),
            v.clone().narrow(0, 0, i + 1),
            &one,
        );
        let values = |t: Tensor<2>| t.into_data().try_into_vec::<f32>().unwrap();
        let expected: Vec<f64> = values(all.clone().narrow(0, i, 1))
            .into_iter()
            .map(f64::from)
            .collect();
        assert_close(&format!("query {i}"), &values(out), &expected, 1e-5);
    }
}

#[test]
fn large_scores_stay_finite() {
    for lengths in [[(5, 5), (70, 300)], [(1, 1), (1, 2000)]] {
        let spec = spec(2, 1, 8, &lengths);
        check_finite("large scores", &inputs(&spec, 1e5), &[true; 3], &|t| {
            attention(t[0].clone(), t[1].clone(), t[2].clone(), &spec)
        });
    }
}

/// Caches that end within a block, at its end and after it, of sequences that are in one batch.
#[test]
fn attention_to_a_cache_is_that_to_its_keys() {
    let (heads, kv_heads, dim) = (6, 2, 32);
    // The numbers lie in [-1, 1]: a half has eleven bits, eight bits are off by half of 1/127.
    for (cache_type, rounding) in [
        (CacheType::F32, 0.0),
        (CacheType::F16, 0.5f32.powi(11)),
        (CacheType::Int8, 0.505 / 127.0),
    ] {
        for (window, shared) in [(None, false), (Some(300), false), (None, true)] {
            let lengths = [1usize, 255, 256, 257, 700];
            let mut caches = Vec::new();
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for (i, &len) in lengths.iter().enumerate() {
                let [k, v] = [1, 2].map(|n| {
                    random(len, kv_heads * dim, 1.0, 10 * i as u64 + n).tensor(&Device::flex())
                });
                let v = if shared { k.clone() } else { v };
                let mut cache = if shared {
                    KeyValues::shared
                } else {
                    KeyValues::new
                }(kv_heads * dim, cache_type);
                // All but the last at once, then what will be taken back, then the last.
                let [first, last] = [0..len - 1, len - 1..len]
                    .map(|rows| (k.clone().slice(rows.clone()), v.clone().slice(rows)));
                if len > 1 {
                    assert!(cache.append(&first.0, &first.1));
                    assert!(cache.append(&first.0, &first.1));
                    cache.truncate(len - 1);
                }
                assert!(cache.append(&last.0, &last.1));
                assert_eq!(cache.len(), len);
                // Blocks of 256 positions, once or twice.
                let row = match cache_type {
                    CacheType::F32 => kv_heads * dim * 4,
                    CacheType::F16 => kv_heads * dim * 2,
                    CacheType::Int8 => kv_heads * dim + kv_heads * dim / 32 * 2,
                };
                assert_eq!(cache.bytes_per_position(), row * if shared { 1 } else { 2 });
                assert_eq!(
                    cache.bytes(),
                    len.div_ceil(256) * 256 * cache.bytes_per_position()
                );
                let copied = cache.tensors(&Device::flex());
                for (copied, original) in [(&copied.0, k), (&copied.1, v)] {
                    let [copied, original] = [copied.clone(), original]
                        .map(|t| t.into_data().try_into_vec::<f32>().unwrap());
                    let largest = copied
                        .iter()
                        .zip(&original)
                        .fold(0f32, |largest, (a, b)| largest.max((a - b).abs()));
                    assert!(
                        copied.len() == original.len() && largest <= rounding,
                        "{cache_type:?} is off by {largest}"
                    );
                }
                caches.push(cache);
                keys.push(copied.0);
                values.push(copied.1);
            }
            let cu_k: Vec<usize> = std::iter::once(0)
                .chain(
                    lengths
                        .iter()
                        .scan(0, |sum, len| Some((*sum += len, *sum).1)),
                )
                .collect();
            let spec = AttentionSpec {
                num_heads: heads,
                num_kv_heads: kv_heads,
                head_dim: dim,
                scale: 0.2,
                causal: true,
                window,
                cu_q: (0..=lengths.len()).collect(),
                cu_k: cu_k.into(),
                softcap: None,
            };
            let q = random(lengths.len(), heads * dim, 1.0, 99).tensor(&Device::flex());
            let found = cached_attention(q.clone(), &caches.iter().collect::<Vec<_>>(), &spec);
            let expected =
                portable::attention(q, Tensor::cat(keys, 0), Tensor::cat(values, 0), &spec);
            let expected: Vec<f64> = expected
                .into_data()
                .try_into_vec::<f32>()
                .unwrap()
                .into_iter()
                .map(f64::from)
                .collect();
            assert_close(
                "cached attention",
                &found.into_data().try_into_vec::<f32>().unwrap(),
                &expected,
                2e-5,
            );
        }
    }
}
