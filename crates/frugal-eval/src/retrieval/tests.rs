//! Values of trec_eval, from `scripts/golden/retrieval.py`, and of the worked example.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Golden {
    cases: BTreeMap<String, Case>,
    permutation: Vec<Permutation>,
    holm: Holm,
}

#[derive(Deserialize)]
struct Case {
    measures: Vec<String>,
    queries: BTreeMap<String, Vec<f64>>,
}

#[derive(Deserialize)]
struct Permutation {
    first: Vec<f64>,
    second: Vec<f64>,
    difference: f64,
    p: f64,
}

#[derive(Deserialize)]
struct Holm {
    p: Vec<f64>,
    corrected: Vec<f64>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/retrieval")
        .join(name)
}

fn golden() -> Golden {
    let file = std::fs::File::open(fixture("golden.json.gz")).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(file)
        .read_to_string(&mut text)
        .unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The judgements of Cranfield, which are not part of the repository.
#[allow(clippy::print_stderr)]
fn cranfield() -> Option<Qrels> {
    let data = std::env::var_os("FRUGAL_DATA").map(PathBuf::from);
    let path = data.map(|data| data.join("cranfield/cranqrel"));
    let Some(path) = path.filter(|path| path.exists()) else {
        eprintln!("skipped: no `cranfield/cranqrel` in FRUGAL_DATA");
        return None;
    };
    Some(Qrels::read(&path).unwrap())
}

fn assert_case(qrels: &Qrels, run: &str, case: &Case, options: &Options) {
    let run = Run::read(&fixture(run)).unwrap();
    let measures: Vec<Measure> = case.measures.iter().map(|m| m.parse().unwrap()).collect();
    let found = evaluate(qrels, &run, &measures, options).unwrap();
    let ids: Vec<&str> = found.queries.iter().map(|q| q.id.as_str()).collect();
    assert_eq!(ids, case.queries.keys().collect::<Vec<_>>());
    let mut worst = (0.0, String::new());
    for query in &found.queries {
        for (i, value) in query.values.iter().enumerate() {
            let difference = (value - case.queries[&query.id][i]).abs();
            if difference >= worst.0 {
                worst = (difference, format!("{} of {}", case.measures[i], query.id));
            }
        }
    }
    assert!(worst.0 < 1e-6, "{} differs by {:e}", worst.1, worst.0);
}

#[test]
fn every_measure_of_a_bm25_run_on_cranfield_is_that_of_trec_eval() {
    let Some(qrels) = cranfield() else { return };
    let golden = golden();
    let options = Options::default();
    let cases = [
        ("default", options),
        (
            "level 3",
            Options {
                level: 3,
                ..options
            },
        ),
        (
            "judged only",
            Options {
                judged_only: true,
                ..options
            },
        ),
        (
            "depth 10",
            Options {
                depth: Some(10),
                ..options
            },
        ),
    ];
    for (name, options) in cases {
        assert_case(&qrels, "bm25.run.gz", &golden.cases[name], &options);
    }
    let case = &golden.cases["unstemmed"];
    assert_case(&qrels, "bm25-unstemmed.run.gz", case, &options);
}

#[test]
fn a_query_that_found_nothing_counts_as_zero_only_when_all_queries_count() {
    let Some(qrels) = cranfield() else { return };
    let run = Run::read(&fixture("bm25.run.gz")).unwrap();
    let measures = [Measure::Ndcg(Some(10))];
    let of = |all_queries| {
        let options = Options {
            all_queries,
            ..Options::default()
        };
        evaluate(&qrels, &run, &measures, &options).unwrap()
    };
    let (some, all) = (of(false), of(true));
    assert_eq!((some.queries.len(), all.queries.len()), (224, 225));
    assert_eq!(all.missing, ["7"]);
    assert!((some.means[0] - 0.324_844_755_287).abs() < 1e-9);
    assert!((all.means[0] - 0.324_844_755_287 * 224.0 / 225.0).abs() < 1e-9);
}

fn worked() -> (Qrels, Run) {
    let qrels = "q1 0 d1 2\nq1 0 d2 0\nq1 0 d3 1\nq1 0 d9 1\nq2 0 d2 1\nq3 0 d5 1\n";
    let run = "q1 Q0 d2 4 3.0 x\nq1 Q0 d1 1 2.0 x\nq1 Q0 d4 2 2.0 x\nq1 Q0 d3 3 1.0 x\n\
               q2 Q0 d1 1 1.0 x\nq2 Q0 d3 2 0.5 x\n";
    let path = Path::new("memory");
    (
        Qrels::parse(path, qrels).unwrap(),
        Run::parse(path, run).unwrap(),
    )
}

fn measures(names: &[&str]) -> Vec<Measure> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

#[test]
fn the_worked_example_of_trec_eval_holds_with_equal_scores_by_descending_identifier() {
    let (qrels, run) = worked();
    let order: Vec<&str> = run
        .ranking("q1")
        .unwrap()
        .iter()
        .map(|hit| hit.id.as_str())
        .collect();
    assert_eq!(order, ["d2", "d4", "d1", "d3"]);
    let measures = measures(&[
        "ndcg_cut_1",
        "ndcg_cut_3",
        "ndcg_cut_10",
        "map",
        "map_cut_3",
        "recall_3",
        "recall_10",
        "P_3",
        "recip_rank",
        "mrr@2",
        "ndcg_exp@10",
    ]);
    let found = evaluate(&qrels, &run, &measures, &Options::default()).unwrap();
    // The last: (3/2 + 1/log2(5)) / (3 + 1/log2(3) + 1/2).
    let expected = [
        0.0, 0.319_394, 0.456_949, 0.277_778, 0.111_111, 0.333_333, 0.666_667, 0.333_333,
        0.333_333, 0.0, 0.467_371,
    ];
    for ((value, expected), measure) in found.queries[0].values.iter().zip(expected).zip(&measures)
    {
        assert!((value - expected).abs() < 1e-6, "{measure}: {value}");
    }
    assert!(found.queries[1].values.iter().all(|v| *v == 0.0));
    assert!((found.means[2] - 0.228_475).abs() < 1e-6);
    let all = Options {
        all_queries: true,
        ..Options::default()
    };
    let found = evaluate(&qrels, &run, &measures, &all).unwrap();
    assert!((found.mean(Measure::Ndcg(Some(10))).unwrap() - 0.152_316).abs() < 1e-6);
}

#[test]
fn scores_that_are_equal_in_32_bits_are_equal_as_in_trec_eval() {
    let mut run = Run::new("x");
    run.insert("q", "a", 1.0 + 1e-10).unwrap();
    run.insert("q", "b", 1.0).unwrap();
    run.insert("q", "c", -0.0).unwrap();
    run.insert("q", "d", 0.0).unwrap();
    let ranking = run.ranking("q").unwrap();
    let ids: Vec<&str> = ranking.iter().map(|h| h.id.as_str()).collect();
    assert_eq!(ids, ["b", "a", "d", "c"]);
}

#[test]
fn the_ideal_order_has_ndcg_1_whatever_follows_it() {
    let (qrels, _) = worked();
    let mut run = Run::new("ideal");
    for (i, id) in ["d1", "d3", "d9"].iter().enumerate() {
        run.insert("q1", id, 9.0 - i as f64).unwrap();
    }
    let measures = measures(&["ndcg", "ndcg@3", "map", "Rprec", "P@1"]);
    let value = |run: &Run| evaluate(&qrels, run, &measures, &Options::default()).unwrap();
    let before = value(&run);
    assert_eq!(before.queries[0].values, [1.0; 5]);
    run.insert("q1", "other", -5.0).unwrap();
    assert_eq!(value(&run).queries[0].values, before.queries[0].values);
}

#[test]
fn map_is_the_mean_of_the_precisions_at_relevant_ranks() {
    let qrels = Qrels::parse(Path::new("m"), "q\ta\t1\nq\tb\t1\n").unwrap();
    let mut run = Run::new("x");
    for (i, id) in ["x", "a", "y", "z", "b"].iter().enumerate() {
        run.insert("q", id, -(i as f64)).unwrap();
    }
    let found = evaluate(
        &qrels,
        &run,
        &measures(&["map", "P@2", "P@5"]),
        &Options::default(),
    );
    let values = &found.unwrap().queries[0].values;
    assert!((values[0] - (values[1] + values[2]) / 2.0).abs() < 1e-12);
}

#[test]
fn a_written_run_gives_the_same_measures_with_its_rank_column_shuffled() {
    let Some(qrels) = cranfield() else { return };
    let run = Run::read(&fixture("bm25.run.gz")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.run");
    run.write(&path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let shuffled: Vec<String> = text
        .lines()
        .rev()
        .enumerate()
        .map(|(i, line)| {
            let mut cells: Vec<&str> = line.split(' ').collect();
            let rank = (i * 7919 % 50).to_string();
            cells[3] = &rank;
            cells.join(" ")
        })
        .collect();
    let again = Run::parse(&path, &shuffled.join("\n")).unwrap();
    let measures = beir_measures(&[1, 10, 100]);
    let of = |run: &Run| {
        evaluate(&qrels, run, &measures, &Options::default())
            .unwrap()
            .means
    };
    assert_eq!(of(&run), of(&again));
}

#[test]
fn both_kinds_of_judgements_are_read_with_identifiers_as_strings() {
    let dir = tempfile::tempdir().unwrap();
    let beir = "query-id\tcorpus-id\tscore\n007\t7\t1\n7\ta b\t0\n";
    let path = dir.path().join("test.tsv");
    std::fs::write(&path, beir).unwrap();
    let qrels = Qrels::read(&path).unwrap();
    assert_eq!(qrels.len(), 2);
    assert_eq!(qrels.get("007").unwrap()["7"], 1);
    assert_eq!(qrels.get("7").unwrap()["a b"], 0);
    let trec = "# a comment\n\n1 0 d#1 2\r\n#2 0 d 1\n";
    let qrels = Qrels::parse(&path, trec).unwrap();
    assert_eq!(qrels.get("1").unwrap()["d#1"], 2);
    assert_eq!(qrels.get("#2").unwrap()["d"], 1);
    qrels.write_trec(&path).unwrap();
    assert_eq!(Qrels::read(&path).unwrap(), qrels);
    qrels.write_beir(&path).unwrap();
    assert_eq!(Qrels::read(&path).unwrap(), qrels);
}

#[test]
fn broken_lines_are_refused_with_file_and_line() {
    let qrels = |text: &str| {
        Qrels::parse(Path::new("q.tsv"), text)
            .unwrap_err()
            .to_string()
    };
    let run = |text: &str| {
        Run::parse(Path::new("a.run"), text)
            .unwrap_err()
            .to_string()
    };
    let starts = [
        (
            qrels("1 0 d 1\n1 0 d 1\n"),
            "q.tsv:2: the document `d` appears twice for the query `1`",
        ),
        (qrels("1 0 d 1\n1 d 1\n"), "q.tsv:2: three columns and four"),
        (
            qrels("1 d 1\n1 e 1.5\n"),
            "q.tsv:2: the grade `1.5` is not a whole number",
        ),
        (
            qrels("1 d 1\nquery-id e score\n"),
            "q.tsv:2: the grade `score`",
        ),
        (
            qrels("     1     28\t0\t0.000000\n"),
            "q.tsv:1: the grade `0.000000`",
        ),
        (qrels("1 2\n"), "q.tsv:1: 2 columns; expected three"),
        (qrels("query-id\tcorpus-id\tscore\n"), "q.tsv: no judgement"),
        (
            run("1 Q0 d 1 2.0 x\n1 Q0 d 2 1.0 x\n"),
            "a.run:2: the document `d` appears twice",
        ),
        (
            run("1 Q0 d 1 nan x\n"),
            "a.run:1: the score of the document `d` for the query `1` is NaN",
        ),
        (
            run("1 Q0 d 1 high x\n"),
            "a.run:1: the score `high` is not a number",
        ),
        (run("1 Q0 d 1 2.0\n"), "a.run:1: 5 columns; expected six"),
        (run("\n"), "a.run: no ranked document"),
    ];
    for (found, start) in starts {
        assert!(found.starts_with(start), "{found}\n{start}");
    }
    let mut odd = Run::new("x");
    odd.insert("q 1", "d", 1.0).unwrap();
    let path = std::env::temp_dir().join("never-written.run");
    assert!(odd.write(&path).unwrap_err().to_string().contains("`q 1`"));
}

#[test]
fn a_run_of_another_data_set_is_refused() {
    let (qrels, _) = worked();
    let mut run = Run::new("x");
    run.insert("77", "d", 1.0).unwrap();
    let error = evaluate(&qrels, &run, &measures(&["map"]), &Options::default());
    let text = error.unwrap_err().to_string();
    assert!(
        text.starts_with("none of the 1 queries of the run is among the 3"),
        "{text}"
    );
    run.insert("q1", "d1", 1.0).unwrap();
    let found = evaluate(&qrels, &run, &measures(&["map"]), &Options::default()).unwrap();
    assert_eq!(found.without_judgements, ["77"]);
    assert_eq!(found.missing, ["q2", "q3"]);
}

#[test]
fn the_document_with_the_id_of_the_query_is_left_out_as_by_beir() {
    let qrels = Qrels::parse(Path::new("m"), "a\tb\t1\n").unwrap();
    let mut run = Run::new("x");
    run.insert("a", "a", 2.0).unwrap();
    run.insert("a", "b", 1.0).unwrap();
    let measures = measures(&["P@1"]);
    let value = |options: &Options| evaluate(&qrels, &run, &measures, options).unwrap().means[0];
    assert_eq!(value(&Options::default()), 0.0);
    assert_eq!(value(&beir_options()), 1.0);
}

#[test]
fn names_of_measures_are_those_of_trec_eval_and_of_papers() {
    for (name, shown) in [
        ("ndcg_cut_10", "ndcg@10"),
        ("nDCG@10", "ndcg@10"),
        ("recip_rank", "mrr"),
        ("MRR@10", "mrr@10"),
        ("P_5", "P@5"),
        ("map_cut_100", "map@100"),
        ("ndcg_exp", "ndcg_exp"),
        ("Rprec", "Rprec"),
        ("success_1", "success@1"),
    ] {
        assert_eq!(name.parse::<Measure>().unwrap().to_string(), shown);
    }
    for (name, part) in [
        ("ndgc@10", "did you mean `ndcg`"),
        ("ndcg@0", "at least 1"),
        ("ndcg@ten", "at least 1"),
        ("recall", "as in `recall@10`"),
        ("Rprec@3", "cut-off of its own"),
    ] {
        let error = name.parse::<Measure>().unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn p_values_are_those_of_scipy_and_their_correction_that_of_holm() {
    let golden = golden();
    for case in &golden.permutation {
        let found = paired_permutation(&case.first, &case.second, 20_000, 3).unwrap();
        assert!((found.difference - case.difference).abs() < 1e-12);
        // Up to 16 pairs both try every change of signs.
        let tolerance = if case.first.len() <= 16 { 1e-12 } else { 1e-3 };
        assert!(
            (found.p_value - case.p).abs() <= tolerance,
            "{found:?} {}",
            case.p
        );
        assert_eq!(found.wins + found.losses + found.ties, case.first.len());
    }
    for (found, expected) in holm(&golden.holm.p).iter().zip(&golden.holm.corrected) {
        assert!((found - expected).abs() < 1e-12);
    }
    assert_eq!(paired_permutation(&[1.0], &[1.0, 2.0], 10, 0), None);
    assert_eq!(paired_permutation(&[], &[], 10, 0), None);
    assert_eq!(paired_permutation(&[f64::NAN], &[1.0], 10, 0), None);
    assert_eq!(
        paired_permutation(&[0.5], &[0.5], 10, 0).unwrap().p_value,
        1.0
    );
}

#[test]
fn runs_over_different_queries_are_not_compared() {
    let Some(qrels) = cranfield() else { return };
    let read = |name: &str| Run::read(&fixture(name)).unwrap();
    let (stemmed, plain) = (read("bm25.run.gz"), read("bm25-unstemmed.run.gz"));
    let measure = Measure::Ndcg(Some(10));
    let of = |run: &Run, all_queries| {
        let options = Options {
            all_queries,
            ..Options::default()
        };
        evaluate(&qrels, run, &[measure], &options).unwrap()
    };
    let error = compare(&of(&plain, false), &[&of(&stemmed, false)], measure, 100, 0);
    assert!(error.unwrap_err().to_string().contains("(225 and 224)"));
    let (plain, stemmed) = (of(&plain, true), of(&stemmed, true));
    let found = compare(&plain, &[&stemmed, &plain], measure, 2000, 0).unwrap();
    assert!(found[0].test.difference > 0.0 && found[0].corrected_p >= found[0].test.p_value);
    assert_eq!(found[1].test.p_value, 1.0);
    assert_eq!(
        found[0].test.wins + found[0].test.losses + found[0].test.ties,
        225
    );
}
