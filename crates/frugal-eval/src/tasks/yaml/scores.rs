//! `metric_list` and `filter_list`.

use std::collections::BTreeMap;

use serde_json::Value as Json;
use serde_yaml_ng::{Mapping, Value};

use super::super::filter::{Filter, Form, Step, Vote};
use super::super::functions;
use super::super::kind::Kind;
use super::super::metric::{Aggregation, Metric};
use super::keys::Keys;

/// The entries of `metric_list`, or those that go with the kind of task.
pub(super) fn metric_list(keys: &mut Keys<'_>, kind: Kind) -> Result<Vec<Mapping>, String> {
    let entry = |name: &str| Mapping::from_iter([("metric".into(), name.into())]);
    let Some(list) = keys.value("metric_list") else {
        let names: &[&str] = match kind {
            Kind::MultipleChoice => &["acc", "acc_norm"],
            Kind::GenerateUntil => &["exact_match"],
            Kind::Loglikelihood => &["perplexity", "acc"],
            Kind::LoglikelihoodRolling => &["word_perplexity", "byte_perplexity", "bits_per_byte"],
        };
        return Ok(names.iter().map(|name| entry(name)).collect());
    };
    let Value::Sequence(items) = list else {
        return Err("`metric_list` must be a list".into());
    };
    let mapping = |item: Value| match item {
        Value::Mapping(map) => Ok(map),
        other => Err(format!("`metric_list` holds {other:?}")),
    };
    items.into_iter().map(mapping).collect()
}

/// Metrics with what their scores come to.
#[derive(Default)]
pub(super) struct Measures {
    pub metrics: Vec<Metric>,
    pub aggregations: BTreeMap<String, Aggregation>,
    pub directions: BTreeMap<String, bool>,
}

impl Measures {
    pub(super) fn add(
        &mut self,
        mut entry: Mapping,
        kind: Kind,
        by_function: bool,
        keys: &Keys<'_>,
    ) -> Result<(), String> {
        let given = entry
            .remove("metric")
            .ok_or("`metric_list`: an entry has no `metric`")?;
        let aggregation = entry.remove("aggregation");
        let better = entry.remove("higher_is_better").and_then(|v| v.as_bool());
        if entry
            .remove("hf_evaluate")
            .is_some_and(|v| v != Value::Bool(false))
        {
            return Err(
                "`metric_list`: metrics of `evaluate` (`hf_evaluate: true`) are not supported"
                    .into(),
            );
        }
        let programs = keys.function("metric_list", &given)?;
        if let Some(name) = programs.filter(|name| !functions::runs_programs(name)) {
            return Err(format!("`metric_list`: `{name}` is no metric"));
        }
        let name = match (programs, given.as_str()) {
            (Some(_), _) => "pass@k",
            (None, Some(name)) => name,
            _ => return Err(format!("`metric_list`: {given:?} is no metric")),
        };
        let options: serde_json::Map<String, Json> =
            serde_yaml_ng::from_value(Value::Mapping(entry))
                .map_err(|e| format!("metric `{name}`: {e}"))?;
        for metric in metrics(name, options, kind, by_function, better)? {
            let name = metric.name().into_owned();
            if let Some(better) = better.filter(|better| *better != metric.higher_is_better()) {
                self.directions.insert(name.clone(), better);
            }
            if let Some(rule) = aggregation_of(&metric, aggregation.as_ref(), keys)? {
                self.aggregations.insert(name, rule);
            }
            self.metrics.push(metric);
        }
        Ok(())
    }
}

/// A metric; pass@k is one for each `k`.
fn metrics(
    name: &str,
    mut options: serde_json::Map<String, Json>,
    kind: Kind,
    by_function: bool,
    better: Option<bool>,
) -> Result<Vec<Metric>, String> {
    let rolling = ["word_perplexity", "byte_perplexity", "bits_per_byte"].contains(&name);
    if by_function && !(rolling && kind == Kind::LoglikelihoodRolling) {
        return Ok(vec![Metric::Function {
            metric: name.to_owned(),
            higher_is_better: better.unwrap_or(true),
        }]);
    }
    let ks = match options.remove("k") {
        None => vec![None],
        Some(Json::Array(all)) => all.into_iter().map(Some).collect(),
        Some(k) => vec![Some(k)],
    };
    options.insert("name".into(), name.into());
    let metric = |k: Option<Json>| {
        let mut options = options.clone();
        options.extend(k.map(|k| ("k".to_owned(), k)));
        serde_json::from_value::<Metric>(Json::Object(options))
            .map_err(|e| format!("metric `{name}`: {e}"))
    };
    ks.into_iter().map(metric).collect()
}

/// The rule of `aggregation`, where it is not the metric's own.
fn aggregation_of(
    metric: &Metric,
    given: Option<&Value>,
    keys: &Keys<'_>,
) -> Result<Option<Aggregation>, String> {
    let name = metric.name();
    let Some(given) = given.filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    if let Some(function) = keys.function("aggregation", given)? {
        let classes = functions::class_f1(function).filter(|_| *metric == Metric::F1);
        return classes
            .map(|classes| Some(Aggregation::ClassF1(classes)))
            .ok_or_else(|| format!("metric `{name}`: `{function}` is no aggregation of it"));
    }
    let own = match metric {
        Metric::Mcc => "matthews_corrcoef",
        Metric::F1 => "f1",
        Metric::BrierScore => "brier_score",
        Metric::Perplexity => "perplexity",
        Metric::WordPerplexity | Metric::BytePerplexity | Metric::TokenPerplexity => {
            "weighted_perplexity"
        }
        Metric::BitsPerByte => "bits_per_byte",
        _ => "mean",
    };
    match (given.as_str(), own) {
        (Some(rule), own) if rule == own => Ok(None),
        (Some("nanmean"), "mean") => Ok(Some(Aggregation::Nanmean)),
        (Some("median"), "mean") => Ok(Some(Aggregation::Median)),
        _ => Err(format!(
            "metric `{name}`: the aggregation {} is not supported, only `{own}`",
            given
                .as_str()
                .map_or_else(|| format!("{given:?}"), |rule| format!("`{rule}`"))
        )),
    }
}

pub(super) fn filters(
    keys: &mut Keys<'_>,
    kind: Kind,
    repeats: usize,
) -> Result<Vec<Filter>, String> {
    let first = Step::Take { take: 1 };
    let Some(list) = keys.value("filter_list") else {
        // Of several answers the first counts.
        let name = "none".to_owned();
        let steps = vec![first];
        return Ok(if repeats > 1 {
            vec![Filter { name, steps }]
        } else {
            Vec::new()
        });
    };
    let Value::Sequence(entries) = list else {
        return Err("`filter_list` must be a list".into());
    };
    let mut filters = Vec::new();
    for entry in entries {
        let name = entry.get("name").and_then(Value::as_str);
        let name = name
            .ok_or("`filter_list`: an entry has no `name`")?
            .to_owned();
        let steps = entry.get("filter").and_then(Value::as_sequence);
        let steps = steps.ok_or_else(|| format!("filter `{name}` has no list `filter`"))?;
        let steps = steps.iter().map(|step| filter_step(&name, step, keys));
        let steps = steps.collect::<Result<Vec<_>, _>>()?;
        filters.push(Filter { name, steps });
    }
    if kind != Kind::GenerateUntil {
        return match filters
            .iter()
            .find(|f| f.steps.iter().any(|step| *step != first))
        {
            Some(filter) => Err(format!(
                "filter `{}`: only `take_first` has a meaning where nothing is written",
                filter.name
            )),
            None => Ok(Vec::new()),
        };
    }
    Ok(filters)
}

fn filter_step(name: &str, step: &Value, keys: &Keys<'_>) -> Result<Step, String> {
    let fail = |reason: String| format!("filter `{name}`: {reason}");
    let Value::Mapping(step) = step else {
        return Err(fail(format!("{step:?} is no step")));
    };
    let mut own = Keys {
        map: step.clone(),
        path: keys.path,
        dataset: keys.dataset.clone(),
    };
    let function: String = own
        .take("function")
        .map_err(fail)?
        .ok_or_else(|| fail("a step has no `function`".into()))?;
    let step = match function.as_str() {
        "regex" => Step::Regex {
            regex: own
                .take("regex_pattern")
                .map_err(fail)?
                .unwrap_or_else(|| r"#### (\-?[0-9\.\,]+)".into()),
            select: own.take("group_select").map_err(fail)?.unwrap_or(0),
            fallback: own.take("fallback").map_err(fail)?,
        },
        "remove_whitespace" => Step::Form {
            form: Form::Stripped,
        },
        "lowercase" => Step::Form { form: Form::Lower },
        "uppercase" => Step::Form { form: Form::Upper },
        "take_first" => Step::Take { take: 1 },
        "take_first_k" => Step::Take {
            take: own
                .take("k")
                .map_err(fail)?
                .ok_or_else(|| fail("`take_first_k` needs a `k`".into()))?,
        },
        "majority_vote" => Step::Majority {
            vote: Vote::MostFrequent,
        },
        "map" => Step::Map {
            map: own.take("mapping_dict").map_err(fail)?.unwrap_or_default(),
            default: own
                .take("default_value")
                .map_err(fail)?
                .ok_or_else(|| fail("`map` needs a `default_value` that is text".into()))?,
        },
        "custom" => Step::Function {
            function: own.named("filter_fn").map_err(fail)?,
        },
        other => {
            return Err(fail(format!(
                "`{other}` is none of regex, remove_whitespace, lowercase, uppercase, map, take_first, take_first_k, majority_vote"
            )));
        }
    };
    own.finish("filter_list.", &[])?;
    Ok(step)
}
