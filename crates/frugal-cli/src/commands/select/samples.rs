//! Samples of `frugal eval --tasks` as items: what a model's answers say of themselves, as columns.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};

type Item = Map<String, Value>;

/// Whether these are samples of an evaluation.
fn are_samples(items: &[Item]) -> bool {
    let known = ["doc_id", "resps", "filtered_resps"];
    !items.is_empty()
        && items
            .iter()
            .all(|item| known.iter().all(|k| item.contains_key(*k)))
}

/// Samples with columns of their answers, one for each question; other items as they are.
///
/// # Errors
/// Samples of several filters of which none is chosen, or of which the chosen one is none.
pub fn prepared(items: Vec<Item>, filter: Option<&str>, path: &Path) -> Result<Vec<Item>> {
    if !are_samples(&items) {
        if let Some(filter) = filter {
            bail!(
                "--filter {filter}: {} does not hold samples of `frugal eval --tasks`",
                path.display()
            );
        }
        return Ok(items);
    }
    let name = |item: &Item| {
        item.get("filter")
            .and_then(Value::as_str)
            .unwrap_or("none")
            .to_owned()
    };
    let filters: BTreeSet<String> = items.iter().map(name).collect();
    let listed = || filters.iter().cloned().collect::<Vec<_>>().join(", ");
    let chosen = match filter {
        Some(filter) if filters.contains(filter) => filter.to_owned(),
        Some(filter) => bail!(
            "--filter {filter}: {} has the filters {}",
            path.display(),
            listed()
        ),
        None if filters.len() == 1 => listed(),
        None => bail!(
            "{}: each answer is there once for every filter; choose one by `--filter`: {}",
            path.display(),
            listed()
        ),
    };
    let one = |mut item: Item| {
        for (column, value) in columns(&item) {
            item.entry(column).or_insert_with(|| json!(value));
        }
        item
    };
    Ok(items
        .into_iter()
        .filter(|item| name(item) == chosen)
        .map(one)
        .collect())
}

/// Refuses items that are in both files: an outcome that is known is not to be guessed, and such
/// items are not exchangeable with others.
pub fn disjoint(known: &[Item], new: &[Item], new_path: &Path) -> Result<()> {
    let id = |item: &Item| {
        item.get("sample_hash")
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let seen: BTreeSet<String> = known.iter().filter_map(id).collect();
    if let Some(i) = new
        .iter()
        .position(|item| id(item).is_some_and(|id| seen.contains(&id)))
    {
        bail!(
            "{}: item {} is in the calibration file, too",
            new_path.display(),
            i + 1
        );
    }
    Ok(())
}

fn columns(item: &Item) -> Vec<(&'static str, f64)> {
    let mut found = choices(item).map_or_else(Vec::new, |lls| of_choices(&lls));
    found.extend(of_texts(item));
    found
}

/// Log-likelihoods of the choices: a list with one `[[log-likelihood, greedy]]` for each.
fn choices(item: &Item) -> Option<Vec<f64>> {
    let all = item.get("resps")?.as_array()?;
    let number = |choice: &Value| {
        let pair = choice.get(0)?;
        pair.get(1)?.as_bool()?;
        pair.get(0)?.as_f64().filter(|v| v.is_finite())
    };
    all.iter()
        .take(answers_to_the_question(item, all.len()))
        .map(number)
        .collect::<Option<Vec<f64>>>()
        .filter(|lls| !lls.is_empty())
}

/// Of so many log-likelihoods those that are not the choices' own, without any question, which
/// mutual information needs behind the others.
fn answers_to_the_question(item: &Item, count: usize) -> usize {
    let context = |i: usize| {
        let arguments = item.get("arguments")?.get(format!("gen_args_{i}"))?;
        arguments.get("arg_0")?.as_str()
    };
    let half = count / 2;
    let alone = |mut places: std::ops::Range<usize>| places.all(|i| context(i) == Some(""));
    if count == 2 * half && half > 0 && alone(half..count) && !alone(0..half) {
        half
    } else {
        count
    }
}

fn of_choices(lls: &[f64]) -> Vec<(&'static str, f64)> {
    let mut sorted = lls.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let best = sorted[0];
    let mut found = vec![("logprob", best)];
    if lls.len() > 1 {
        let sum: f64 = lls.iter().map(|l| (l - best).exp()).sum();
        let shares = lls.iter().map(|l| (l - best).exp() / sum);
        let entropy: f64 = shares.filter(|s| *s > 0.0).map(|s| -s * s.ln()).sum();
        found.extend([
            ("confidence", 1.0 / sum),
            ("margin", best - sorted[1]),
            ("certainty", 1.0 - entropy / (lls.len() as f64).ln()),
        ]);
    }
    found
}

fn of_texts(item: &Item) -> Vec<(&'static str, f64)> {
    let texts = |value: &Value| -> Option<Vec<String>> {
        let list = value.as_array()?;
        // One list of answers within the list, or the answers themselves.
        let list = list.first().and_then(Value::as_array).unwrap_or(list);
        let text = |v: &Value| v.as_str().map(str::to_owned);
        list.iter()
            .map(text)
            .collect::<Option<Vec<_>>>()
            .filter(|t| !t.is_empty())
    };
    let answers = item.get("resps").and_then(texts);
    let Some(answers) = answers else {
        return Vec::new();
    };
    let filtered = item.get("filtered_resps").and_then(texts);
    let mut found = vec![("brevity", -(answers[0].chars().count() as f64))];
    let compared = filtered
        .filter(|f| f.len() == answers.len())
        .unwrap_or(answers);
    if compared.len() > 1 {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        compared
            .iter()
            .for_each(|text| *counts.entry(text).or_default() += 1);
        let most = counts.values().copied().max().unwrap_or(0);
        found.push(("agreement", most as f64 / compared.len() as f64));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(value: Value) -> Item {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn answers_say_how_sure_they_are() {
        let sample = item(json!({
            "doc_id": 0, "filter": "none", "filtered_resps": [],
            "resps": [[[0.5f64.ln(), true]], [[0.25f64.ln(), false]], [[0.25f64.ln(), false]]],
        }));
        let found: BTreeMap<&str, f64> = columns(&sample).into_iter().collect();
        assert!((found["logprob"] - 0.5f64.ln()).abs() < 1e-12);
        assert!((found["confidence"] - 0.5).abs() < 1e-12);
        assert!((found["margin"] - 2f64.ln()).abs() < 1e-12);
        // The entropy is 1.5 bits of log2 3.
        assert!((found["certainty"] - (1.0 - 1.5 / 3f64.log2())).abs() < 1e-12);
        let texts = item(json!({
            "doc_id": 0, "resps": [["it is 4", "4", "5"]], "filtered_resps": ["4", "4", "5"],
        }));
        let found: BTreeMap<&str, f64> = columns(&texts).into_iter().collect();
        assert!((found["agreement"] - 2.0 / 3.0).abs() < 1e-12 && found["brevity"] == -7.0);
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn likelihoods_without_a_question_are_no_answers_to_it() {
        let arguments = |second: &str| {
            json!({
                "gen_args_0": { "arg_0": "Q", "arg_1": "a" }, "gen_args_1": { "arg_0": "Q", "arg_1": "b" },
                "gen_args_2": { "arg_0": second, "arg_1": "a" }, "gen_args_3": { "arg_0": second, "arg_1": "b" },
            })
        };
        let sample = |second: &str| {
            item(json!({
                "doc_id": 0, "arguments": arguments(second), "filtered_resps": [],
                "resps": [[[-2.0, true]], [[-3.0, false]], [[-0.5, false]], [[-0.25, false]]],
            }))
        };
        assert_eq!(choices(&sample("")).unwrap(), [-2.0, -3.0]);
        assert_eq!(choices(&sample("R")).unwrap().len(), 4);
    }

    #[test]
    fn one_filter_is_chosen_and_known_items_are_refused() {
        let sample = |filter: &str, hash: &str| {
            item(
                json!({ "doc_id": 0, "filter": filter, "resps": [["a"]], "filtered_resps": ["a"], "sample_hash": hash }),
            )
        };
        let path = Path::new("samples_gsm8k.jsonl");
        let both = || vec![sample("strict", "1"), sample("flexible", "1")];
        let error = prepared(both(), None, path).unwrap_err().to_string();
        assert!(
            error.contains("flexible, strict") && error.contains("--filter"),
            "{error}"
        );
        assert!(prepared(both(), Some("loose"), path).is_err());
        assert_eq!(prepared(both(), Some("strict"), path).unwrap().len(), 1);
        assert!(prepared(vec![item(json!({ "x": 1 }))], Some("strict"), path).is_err());
        assert!(disjoint(&both(), &[sample("strict", "2")], path).is_ok());
        let error = disjoint(
            &both(),
            &[sample("strict", "2"), sample("strict", "1")],
            path,
        );
        assert!(error.unwrap_err().to_string().contains("item 2"));
    }
}
