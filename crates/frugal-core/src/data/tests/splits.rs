//! Labels and parts of data sets.

use super::*;

#[test]
fn labels_are_ordered_by_value_if_they_are_numbers() {
    let labels = |values: &[&str]| {
        let rows = values
            .iter()
            .map(|v| format!("{{\"text\":\"t\",\"label\":{v}}}\n"))
            .collect::<String>();
        read("a.jsonl", &rows).unwrap().labels()
    };
    assert_eq!(labels(&["10", "9", "-1", "9"]), ["-1", "9", "10"]);
    assert_eq!(labels(&["\"10\"", "\"9\"", "\"b\""]), ["10", "9", "b"]);
    assert_eq!(labels(&["true", "false"]), ["false", "true"]);
    assert!(read("a.txt", "x").unwrap().labels().is_empty());
}

#[test]
fn splits_are_disjoint_stratified_and_repeatable() {
    let rows = (0..200)
        .map(|i| format!("{{\"text\":\"{i}\",\"label\":{}}}\n", u8::from(i % 5 == 0)))
        .collect::<String>();
    let data = read("a.jsonl", &rows).unwrap();
    let parts = data.split(&[0.7, 0.1, 0.2], 7).unwrap();
    assert_eq!(
        parts.iter().map(Dataset::len).collect::<Vec<_>>(),
        [140, 20, 40]
    );
    let spam = |d: &Dataset| {
        d.examples
            .iter()
            .filter(|e| matches!(e, Example::Classification { label, .. } if label == "1"))
            .count()
    };
    assert_eq!(parts.iter().map(spam).collect::<Vec<_>>(), [28, 4, 8]);
    let lines: HashSet<usize> = parts.iter().flat_map(|p| p.lines.clone()).collect();
    assert_eq!(lines.len(), 200);
    assert!(parts.iter().all(|p| p.lines.is_sorted() && p.rows == 200));
    assert_eq!(parts, data.split(&[0.7, 0.1, 0.2], 7).unwrap());
    assert_ne!(parts, data.split(&[0.7, 0.1, 0.2], 8).unwrap());
    assert_eq!(
        data.split(&[1.0 / 3.0; 3], 0)
            .unwrap()
            .iter()
            .map(Dataset::len)
            .sum::<usize>(),
        200
    );
    for bad in [&[0.5, 0.6][..], &[0.5, 0.0], &[f64::NAN], &[0.9, 0.0001]] {
        assert!(data.split(bad, 0).is_err(), "{bad:?}");
    }
    assert_eq!(data.take(3).lines, [1, 2, 3]);
    assert_eq!(data.take(1000).len(), 200);
}

#[test]
fn the_built_in_parts_share_no_message() {
    let data = builtin("sms-spam").unwrap();
    let key = |e: &Example| match e {
        Example::Classification { text, .. } => text
            .to_lowercase()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" "),
        other => panic!("{other:?}"),
    };
    let parts = [&data.train, &data.validation, &data.test];
    let keys: Vec<HashSet<String>> = parts
        .iter()
        .map(|p| p.examples.iter().map(key).collect())
        .collect();
    assert!(
        keys[0].is_disjoint(&keys[1])
            && keys[0].is_disjoint(&keys[2])
            && keys[1].is_disjoint(&keys[2])
    );
    assert_eq!(parts.map(Dataset::len), [3902, 558, 1114]);
    for part in parts {
        assert_eq!(part.labels(), ["ham", "spam"]);
        let spam = part
            .examples
            .iter()
            .filter(|e| matches!(e, Example::Classification { label, .. } if label == "spam"))
            .count();
        assert!((spam as f64 / part.len() as f64 - 0.134).abs() < 0.001);
    }
    assert!(
        builtin("sst2")
            .unwrap_err()
            .to_string()
            .contains("sms-spam")
    );
}
