use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::encode::{IGNORE_INDEX, Target};

fn special(sentinels: usize) -> Special {
    let names = special_names(sentinels);
    let id = |name: &str| Some(1000 + names.iter().position(|n| n == name)? as u32);
    Special::find(sentinels, id).unwrap()
}

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Texts without two equal tokens, so that each token says where it stood.
fn text(length: usize) -> Vec<u32> {
    (0..length as u32).map(|i| (i * 7919) % 997).collect()
}

fn is_sentinel(special: &Special, id: u32) -> bool {
    special.sentinels.contains(&id)
}

/// Every arm with texts of its shortest and longest length.
fn for_all(class: &str, scale: f64, mut check: impl FnMut(&[u32], Pair, &Special, &dyn Objective)) {
    let special = special(400);
    for objective in (find(class).unwrap().grid)(scale) {
        let [low, high] = objective.lengths();
        for (seed, length) in [low, high, (low + high) / 2].into_iter().enumerate() {
            let text = text(length.min(990));
            let pair = objective.build(&text, &special, &mut rng(seed as u64));
            check(&text, pair, &special, objective.as_ref());
        }
    }
}

#[test]
fn the_full_grid_has_the_96_arms_of_the_paper() {
    let counts: Vec<(&str, usize)> = CLASSES
        .iter()
        .map(|class| (class.name, (class.grid)(1.0).len()))
        .collect();
    assert_eq!(
        counts,
        [
            ("infilling", 36),
            ("next_token", 1),
            ("prefix_lm", 1),
            ("selective_copying", 16),
            ("copying", 2),
            ("deshuffling", 4),
            ("autoencoding", 36)
        ]
    );
    let all = grid(1.0);
    assert_eq!(all.len(), 96);
    let names: std::collections::BTreeSet<String> = all.iter().map(|arm| arm.name()).collect();
    assert_eq!(names.len(), 96, "every arm has a name of its own");
    let scaled: Vec<[usize; 2]> = (find("copying").unwrap().grid)(0.125)
        .iter()
        .map(|arm| arm.lengths())
        .collect();
    assert_eq!(scaled, [[8, 32], [32, 252]]);
}

#[test]
fn a_sequence_is_that_of_the_papers_example() {
    let pair = Pair {
        input: vec![4, 5, 6],
        label: vec![7, 8, 9],
    };
    let example = sequence(&pair, 1);
    assert_eq!(example.input_ids, [4, 5, 6, 1, 7, 8]);
    let ignored = IGNORE_INDEX;
    let targets = vec![ignored, ignored, ignored, 7, 8, 9];
    assert_eq!(example.labels, Target::Tokens(targets));
    assert_eq!(prefix_length(&example.input_ids, 1), 3);
    assert_eq!(prefix_length(&[4, 5], 1), 0);
}

#[test]
fn infilling_gives_the_text_when_sentinels_are_put_back() {
    for scale in [1.0, 0.125, 0.01] {
        for_all("infilling", scale, |text, pair, special, _| {
            let mut spans = std::collections::BTreeMap::new();
            let mut current = None;
            for &id in &pair.label {
                if is_sentinel(special, id) {
                    assert!(spans.insert(id, Vec::new()).is_none(), "used twice");
                    current = Some(id);
                } else if let Some(sentinel) = current {
                    spans.get_mut(&sentinel).unwrap().push(id);
                }
            }
            assert!(!spans.is_empty() && spans.values().all(|span| !span.is_empty()));
            let restored: Vec<u32> = pair
                .input
                .iter()
                .flat_map(|id| spans.get(id).cloned().unwrap_or(vec![*id]))
                .collect();
            assert_eq!(restored, text);
        });
    }
}

#[test]
fn as_much_is_taken_out_as_the_rate_says() {
    for_all("infilling", 1.0, |text, pair, special, arm| {
        let setting = arm.setting();
        let rate: f64 = ["5 %", "15 %", "50 %"]
            .into_iter()
            .find(|rate| setting.contains(&format!(", {rate}")))
            .and_then(|rate| rate.trim_end_matches(" %").parse().ok())
            .unwrap();
        let sentinels = pair.label.iter().filter(|id| is_sentinel(special, **id));
        let masked = pair.label.len() - sentinels.count();
        let wanted = text.len() as f64 * rate / 100.0;
        assert!((masked as f64 - wanted).abs() <= 1.0, "{setting}: {masked}");
    });
}

#[test]
fn too_few_sentinels_are_not_exceeded() {
    let special = special(2);
    for arm in (find("infilling").unwrap().grid)(0.125) {
        let text = text(60);
        let pair = arm.build(&text, &special, &mut rng(1));
        let found = pair.label.iter().filter(|id| **id >= 1000).count();
        assert!((1..=2).contains(&found), "{found}");
    }
}

#[test]
fn prefixes_go_on_with_their_targets() {
    for_all("prefix_lm", 0.1, |text, pair, _, _| {
        assert!(!pair.input.is_empty() && !pair.label.is_empty());
        assert_eq!([pair.input, pair.label].concat(), text);
    });
    let ul2 = PrefixLm::new(0.1, Some(0.75));
    let pair = ul2.build(&text(200), &special(1), &mut rng(0));
    assert_eq!([pair.input.len(), pair.label.len()], [150, 50]);
    for_all("next_token", 0.1, |text, pair, _, _| {
        assert!(pair.input.is_empty() && pair.label == text);
    });
}

#[test]
fn copies_are_the_input_and_deshuffled_targets_its_tokens_in_order() {
    for_all("copying", 1.0, |text, pair, _, _| {
        assert!(pair.input == text && pair.label == text);
    });
    for_all("deshuffling", 1.0, |text, pair, _, arm| {
        assert_eq!(pair.label, text);
        let moved = pair.input.iter().zip(text).filter(|(a, b)| a != b).count();
        let half = arm.setting().contains("50 %");
        let share = moved as f64 / text.len() as f64;
        assert!(
            if half {
                share <= 0.51 && share > 0.4
            } else {
                share > 0.9
            },
            "{share}"
        );
        let sorted = |ids: &[u32]| {
            let mut ids = ids.to_vec();
            ids.sort_unstable();
            ids
        };
        assert_eq!(sorted(&pair.input), sorted(text));
    });
}

#[test]
fn autoencoding_has_the_whole_text_for_its_target_and_pieces_of_it_for_its_input() {
    for_all("autoencoding", 0.5, |text, pair, special, arm| {
        assert_eq!(pair.label, text);
        let pieces: Vec<&[u32]> = pair
            .input
            .split(|id| is_sentinel(special, *id))
            .filter(|piece| !piece.is_empty())
            .collect();
        let mut places = Vec::new();
        for piece in &pieces {
            let at = text.iter().position(|id| *id == piece[0]).unwrap();
            assert_eq!(&text[at..at + piece.len()], *piece);
            places.push(at);
        }
        if !arm.setting().contains("shuffled") {
            assert!(places.is_sorted(), "{places:?}");
        } else if places.len() > 8 {
            assert!(!places.is_sorted(), "{places:?}");
        }
    });
}

#[test]
fn selective_copies_stand_in_the_context_between_their_delimiters() {
    for scale in [1.0, 0.125] {
        for_all("selective_copying", scale, |text, pair, special, arm| {
            let [copy, start, end, context, done] = special.marks;
            let at = |mark: u32| pair.input.iter().position(|id| *id == mark).unwrap();
            let query_first = arm.setting().contains("query first");
            assert_eq!(at(copy) < at(context), query_first);
            let (query, given) = match query_first {
                true => (&pair.input[..at(context)], &pair.input[at(context) + 1..]),
                false => (&pair.input[at(copy)..], &pair.input[1..at(copy)]),
            };
            assert_eq!(given, text);
            let (last, mut rest) = pair.label.split_last().unwrap();
            assert_eq!(*last, done);
            let wanted: usize = arm
                .setting()
                .split(", ")
                .find_map(|part| part.strip_suffix(" spans")?.parse().ok())
                .unwrap();
            let asked: Vec<&[u32]> = query[1..].split(|id| *id == start).skip(1).collect();
            assert_eq!(asked.len(), wanted);
            for one in asked {
                let cut = one.iter().position(|id| *id == end).unwrap();
                let (before, after) = (&one[..cut], &one[cut + 1..]);
                assert!((1..=8).contains(&before.len()) && (1..=8).contains(&after.len()));
                // Tokens are unique, so that the delimiters say where the span is.
                let begin = text.iter().position(|id| *id == before[0]).unwrap();
                let stop = text.iter().position(|id| *id == after[0]).unwrap();
                let span = &text[begin + before.len()..stop];
                assert_eq!(&text[begin..begin + before.len()], before);
                assert_eq!(&text[stop..stop + after.len()], after);
                assert!((1..=32).contains(&span.len()), "{}", span.len());
                assert_eq!(&rest[..span.len()], span);
                rest = &rest[span.len()..];
            }
            assert!(rest.is_empty());
        });
    }
}

#[test]
fn samples_fit_the_length_name_their_class_and_follow_the_seed() {
    let (special, stream) = (special(64), text(900));
    for arm in grid(1.0) {
        let draw = |seed| fitted(arm.as_ref(), &stream, &special, 96, &mut rng(seed)).unwrap();
        let mut in_front = 0;
        for seed in 0..20 {
            let found = draw(seed);
            assert!(found.example.len() <= 96, "{}", arm.name());
            assert!(found.example.trained() > 0, "{}", arm.name());
            assert_eq!(found, draw(seed));
            let place = CLASSES.iter().position(|c| c.name == arm.class()).unwrap();
            let class = special.classes[place];
            let ids = &found.example.input_ids;
            let prefix = prefix_length(ids, special.generate);
            assert_eq!(ids.iter().filter(|id| **id == class).count(), 1);
            assert!(ids[0] == class || ids[prefix - 1] == class);
            in_front += usize::from(ids[0] == class);
        }
        if arm.class() != "next_token" {
            assert!((2..=18).contains(&in_front), "{}: {in_front}", arm.name());
        }
    }
    let copying = &(find("copying").unwrap().grid)(1.0)[0];
    assert!(fitted(copying.as_ref(), &[], &special, 96, &mut rng(0)).is_none());
    assert!(fitted(copying.as_ref(), &stream, &special, 2, &mut rng(0)).is_none());
}
