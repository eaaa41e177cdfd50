//! Measurements of models as pages: a table and a plot for each kind, and for each data that it was
//! measured on.

use std::collections::{BTreeMap, BTreeSet};

use super::axes::ChartError;
use super::bars::{self, Bar};
use super::chart::{Chart, Mark, Series};
use super::curves;
use super::html::confusion;
use super::markup::{document, escape, lower_is_better, score, section, title, wrapped};
use super::radar::COLOURS;
use super::rows::Rows;
use super::scatter::{Point, Scatter};
use crate::measurement::{Basis, Kind, Measurement, PowerSource};
use frugal_core::human;

/// What measurements are shown as a page.
pub struct MeasuredReport<'a> {
    /// Heading of the page.
    pub title: &'a str,
    /// The measurements.
    pub measurements: &'a [Measurement],
}

impl MeasuredReport<'_> {
    /// The page: HTML with its style and charts inside, without links to other files.
    ///
    /// # Errors
    /// If the plotting library cannot draw a chart.
    pub fn to_html(&self) -> Result<String, ChartError> {
        let machines: BTreeSet<String> = self.measurements.iter().map(machine).collect();
        let machines: Vec<String> = machines.into_iter().collect();
        let header = format!(
            "<header>\n<h1>{}</h1>\n<p>{}</p>\n</header>\n",
            escape(self.title),
            escape(&machines.join("; "))
        );
        Ok(document(self.title, &header, &sections(self.measurements)?))
    }
}

/// Processor and threads.
fn machine(measurement: &Measurement) -> String {
    let system = &measurement.system;
    let processor = system.processor.as_deref().unwrap_or(&system.machine);
    let threads = match measurement.threads {
        1 => "1 thread".to_owned(),
        n => format!("{n} threads"),
    };
    format!("{processor}, {threads}, {}", system.accelerator)
}

/// Measurements that can be ranked with each other.
struct Group<'a> {
    label: String,
    rows: Vec<&'a Measurement>,
}

/// The measure that orders the rows of a kind, and whether less of it is better; none where an order
/// would say nothing.
fn deciding(kind: Kind, rows: &[&Measurement]) -> Option<(&'static str, bool)> {
    let has = |name: &&&str| rows.iter().any(|row| row.values.contains_key(**name));
    match kind {
        Kind::Capacity => Some(("information_capacity", false)),
        Kind::Runtime => Some(("seconds_per_token", true)),
        Kind::Code => Some(("eff@1", false)),
        Kind::Evaluation => ["accuracy", "perplexity", "micro_f1", "pearson", "loss"]
            .iter()
            .find(has)
            .map(|name| (*name, lower_is_better(name))),
        Kind::Tasks | Kind::Spectrum | Kind::Selection => None,
    }
}

fn groups<'a>(kind: Kind, measurements: &'a [Measurement]) -> Vec<Group<'a>> {
    let mut found: BTreeMap<Basis, Vec<&Measurement>> = BTreeMap::new();
    for measurement in measurements.iter().filter(|m| m.kind == kind) {
        found
            .entry(measurement.basis())
            .or_default()
            .push(measurement);
    }
    let sorted = |mut rows: Vec<&'a Measurement>| {
        let order = deciding(kind, &rows);
        let key = |m: &Measurement| {
            let (name, lower) = order?;
            let value = m.values.get(name)?;
            Some(if lower { *value } else { -value })
        };
        rows.sort_by(|a, b| {
            let (x, y) = (
                key(a).unwrap_or(f64::INFINITY),
                key(b).unwrap_or(f64::INFINITY),
            );
            x.total_cmp(&y).then_with(|| a.name().cmp(&b.name()))
        });
        rows
    };
    found
        .into_values()
        .map(sorted)
        .filter_map(|rows| {
            Some(Group {
                label: rows.first()?.basis_label(),
                rows,
            })
        })
        .collect()
}

/// A section for each kind that was measured; scores on tasks have a table elsewhere.
pub(super) fn sections(measurements: &[Measurement]) -> Result<String, ChartError> {
    let kinds: BTreeSet<Kind> = measurements.iter().map(|m| m.kind).collect();
    let mut html = String::new();
    for kind in kinds.into_iter().filter(|kind| *kind != Kind::Tasks) {
        let groups = groups(kind, measurements);
        let mut body = String::new();
        if groups.len() > 1 {
            body += "<p class=\"warning\">Measured on different data or with different settings, so not ranked together.</p>\n";
        }
        for group in &groups {
            if !group.label.is_empty() {
                body += &format!("<h3 class=\"basis\">{}</h3>\n", escape(&group.label));
            }
            body += &table(group).to_html(&without_model(group));
            body += &classes(group);
            body += &wrapped("charts", &plots(kind, group)?);
        }
        if kind == Kind::Runtime {
            body += &wrapped("charts", &against_capability(measurements)?);
        }
        html += &section(kind.title(), &body);
    }
    Ok(html)
}

/// What needs no model on the same examples, as far as a measurement says it.
fn without_model(group: &Group<'_>) -> String {
    type Scores = BTreeMap<String, f64>;
    let details = group.rows.iter().filter_map(|m| m.details.get("baselines"));
    let mut known = details
        .filter_map(|found| serde_json::from_value::<BTreeMap<String, Scores>>(found.clone()).ok());
    let found = known.find(|found| !found.is_empty()).unwrap_or_default();
    let one = |(name, scores): (&String, &Scores)| {
        let scores = scores
            .iter()
            .map(|(metric, value)| format!("{} {}", title(metric), score(*value)));
        format!("{}: {}", title(name), scores.collect::<Vec<_>>().join(", "))
    };
    found.iter().map(one).collect::<Vec<_>>().join(". ")
}

/// How often each class was taken for each.
fn classes(group: &Group<'_>) -> String {
    let table = |m: &&Measurement| {
        let labels: Vec<String> = serde_json::from_value(m.details.get("labels")?.clone()).ok()?;
        let counts: Vec<Vec<usize>> =
            serde_json::from_value(m.details.get("confusion")?.clone()).ok()?;
        Some(confusion(&m.name(), &labels, &counts))
    };
    group.rows.iter().filter_map(table).collect()
}

/// A value as the column of its name shows it.
fn shown(name: &str, value: f64) -> String {
    match name {
        "flops_per_token" => format!("{value:.3e}"),
        "selected" | "candidates" | "test_items" | "calibration_items" => {
            human::count(value as u64)
        }
        _ if name.starts_with("seconds") => human::duration(value),
        _ => score(value),
    }
}

fn table(group: &Group<'_>) -> Rows {
    let names: BTreeSet<&str> = group
        .rows
        .iter()
        .flat_map(|m| m.values.keys().map(String::as_str))
        .collect();
    let energy = |m: &Measurement, source: PowerSource| {
        let energy = m.cost.energy.filter(|e| e.source == source)?;
        Some(format!("{} J", human::significant(energy.joules, 3)))
    };
    type Cell<'a> = Box<dyn Fn(&Measurement) -> Option<String> + 'a>;
    let mut columns: Vec<(String, Cell<'_>)> = vec![(
        "Precision".into(),
        Box::new(|m| Some(m.precision.clone()).filter(|p| !p.is_empty())),
    )];
    for name in names {
        let cell: Cell<'_> = Box::new(move |m| Some(shown(name, *m.values.get(name)?)));
        columns.push((title(name), cell));
    }
    columns.push((
        "Time".into(),
        Box::new(|m| Some(human::duration(m.cost.seconds))),
    ));
    columns.push((
        "Peak memory".into(),
        Box::new(|m| m.cost.peak_memory.map(human::bytes)),
    ));
    for source in [PowerSource::Measured, PowerSource::Modelled] {
        columns.push((
            format!("Energy, {}", source.name()),
            Box::new(move |m| energy(m, source)),
        ));
    }
    columns.retain(|(_, cell)| group.rows.iter().any(|m| cell(m).is_some()));
    let row = |m: &&Measurement| {
        let cells = columns
            .iter()
            .map(|(_, cell)| cell(m).unwrap_or("-".into()));
        std::iter::once(m.name()).chain(cells).collect()
    };
    Rows::new(
        std::iter::once("Model").chain(columns.iter().map(|(name, _)| name.as_str())),
        group.rows.iter().map(row).collect(),
    )
}

fn plots(kind: Kind, group: &Group<'_>) -> Result<String, ChartError> {
    let bars = |names: &[&str]| -> String {
        let one = |name: &&str| {
            let bar = |m: &&Measurement| {
                Some(Bar {
                    name: m.name(),
                    value: *m.values.get(*name)?,
                })
            };
            let found: Vec<Bar> = group.rows.iter().filter_map(bar).collect();
            bars::figure(&title(name), &found)
        };
        names.iter().map(one).collect()
    };
    match kind {
        Kind::Capacity => Ok(compression(group)? + &bars(&["information_capacity"])),
        Kind::Spectrum => Ok(bars(&["matrix_nuclear_norm", "matrix_entropy"])),
        Kind::Runtime => group.rows.iter().map(|m| times(m)).collect(),
        Kind::Selection => group.rows.iter().map(|m| p_values(m)).collect(),
        Kind::Code => Ok(bars(&["eff@1", "pass@1"])),
        Kind::Evaluation => {
            let name = deciding(kind, &group.rows).map(|(name, _)| name);
            Ok(name.map_or_else(String::new, |name| bars(&[name])))
        }
        Kind::Tasks => Ok(String::new()),
    }
}

/// What a byte of the text costs in bits, against what a token costs in operations.
fn compression(group: &Group<'_>) -> Result<String, ChartError> {
    let point = |m: &&Measurement| {
        Some(Point {
            name: m.name(),
            x: *m.values.get("flops_per_token")?,
            y: *m.values.get("bits_per_byte")?,
        })
    };
    Scatter {
        title: "Compression against compute",
        cost: "Operations for each token",
        unit: 1.0,
        cost_label: |v| format!("{v:.0e}"),
        quality: "Bits for each byte",
        points: group.rows.iter().filter_map(point).collect(),
        lower_is_better: true,
    }
    .figure()
}

/// Measured times and the fit through them.
fn times(m: &Measurement) -> Result<String, ChartError> {
    let number = |value: &serde_json::Value| value.as_f64();
    let mut by_prompt: BTreeMap<u64, Vec<(f64, f64)>> = BTreeMap::new();
    for cell in m.details["cells"].as_array().into_iter().flatten() {
        let known = (
            cell["prompt"].as_u64(),
            number(&cell["output"]),
            number(&cell["seconds"]),
        );
        if let (Some(prompt), Some(output), Some(seconds)) = known {
            by_prompt.entry(prompt).or_default().push((output, seconds));
        }
    }
    // Few lines can be told apart: the shortest and the longest prompts among them.
    let step = by_prompt.len().div_ceil(COLOURS.len()).max(1);
    let series = by_prompt
        .into_iter()
        .step_by(step)
        .zip(COLOURS)
        .map(|((prompt, mut points), colour)| {
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Series {
                label: format!("prompt of {prompt}"),
                colour,
                mark: Mark::Dotted,
                points,
            }
        })
        .collect();
    let beta = m.values.get("seconds_per_token").copied();
    let note = beta.map_or_else(String::new, |beta| {
        format!(
            "{}: {} for each further token",
            m.name(),
            human::duration(beta)
        )
    });
    let chart = Chart {
        title: "Time of answers",
        unit: "Seconds".into(),
        across: "Answer tokens",
        series,
        from_zero: true,
    };
    curves::figure(&chart, &note)
}

/// What generating costs against what the model can do, for models of which both was measured.
fn against_capability(measurements: &[Measurement]) -> Result<String, ChartError> {
    let mut html = String::new();
    for group in groups(Kind::Evaluation, measurements) {
        let Some((metric, lower)) = deciding(Kind::Evaluation, &group.rows) else {
            continue;
        };
        let point = |m: &&Measurement| {
            let same = |r: &&Measurement| {
                r.kind == Kind::Runtime && r.model.name == m.model.name && r.adapter == m.adapter
            };
            let runtime = measurements.iter().find(same)?;
            Some(Point {
                name: m.name(),
                x: *runtime.values.get("seconds_per_token")?,
                y: *m.values.get(metric)?,
            })
        };
        html += &Scatter {
            title: "Efficiency against capability",
            cost: "Time of a token",
            unit: 1e-3,
            cost_label: human::duration,
            quality: &title(metric),
            points: group.rows.iter().filter_map(point).collect(),
            lower_is_better: lower,
        }
        .figure()?;
    }
    Ok(html)
}

/// Sorted p-values under the line that decides.
fn p_values(m: &Measurement) -> Result<String, ChartError> {
    let values = m.details["p_values"].as_array().into_iter().flatten();
    let mut values: Vec<f64> = values.filter_map(serde_json::Value::as_f64).collect();
    values.sort_by(f64::total_cmp);
    let count = values.len() as f64;
    let ranked = |(i, value): (usize, &f64)| ((i + 1) as f64, *value);
    let mut series = vec![Series {
        label: "p-values".into(),
        colour: COLOURS[0],
        mark: Mark::Line,
        points: values.iter().enumerate().map(ranked).collect(),
    }];
    if let Some(fdr) = m.details["fdr"].as_f64() {
        series.push(Series {
            label: "level of Benjamini-Hochberg".into(),
            colour: COLOURS[1],
            mark: Mark::Line,
            points: (1..=values.len())
                .map(|i| (i as f64, fdr * i as f64 / count))
                .collect(),
        });
    }
    let chart = Chart {
        title: "Conformal p-values",
        unit: "p-value".into(),
        across: "Items, best first",
        series,
        from_zero: true,
    };
    curves::figure(&chart, m.details["procedure"].as_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::measurement::Cost;
    use crate::report::{DatasetInfo, ModelInfo};

    fn measured(kind: Kind, model: &str, data: &str, values: &[(&str, f64)]) -> Measurement {
        Measurement {
            kind,
            model: ModelInfo {
                name: model.into(),
                ..ModelInfo::default()
            },
            precision: "f32".into(),
            data: vec![DatasetInfo {
                source: data.into(),
                examples: 4,
                ..DatasetInfo::default()
            }],
            cost: Cost {
                seconds: 2.0,
                peak_memory: Some(1 << 30),
                energy: Some(crate::measurement::Energy {
                    joules: 50.0,
                    source: PowerSource::Modelled,
                }),
                ..Cost::default()
            },
            values: values.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect(),
            ..Measurement::default()
        }
    }

    fn capacity(model: &str, data: &str, value: f64) -> Measurement {
        let values = [
            ("information_capacity", value),
            ("bits_per_byte", 1.5 - value),
            ("flops_per_token", 1e8 + 1e8 * value),
        ];
        measured(Kind::Capacity, model, data, &values)
    }

    fn page(measurements: &[Measurement]) -> String {
        let html = MeasuredReport {
            title: "M & N",
            measurements,
        }
        .to_html()
        .unwrap();
        // FRUGAL_REPORT_OUT=FILE keeps the page to be looked at.
        if let Some(path) = std::env::var_os("FRUGAL_REPORT_OUT") {
            std::fs::write(path, &html).unwrap();
        }
        html
    }

    #[test]
    fn measurements_on_different_data_are_not_ranked_together() {
        let all = [
            capacity("small", "a.txt", 0.2),
            capacity("large", "a.txt", 0.4),
            capacity("other", "b.txt", 0.9),
        ];
        let html = page(&all);
        assert!(html.contains("not ranked together"), "{html}");
        let at = |text: &str| html.find(text).unwrap_or_else(|| panic!("{text}"));
        assert!(at(">a.txt (4)<") < at("<td data-label=\"Model\">large"));
        assert!(at("<td data-label=\"Model\">large") < at("<td data-label=\"Model\">small"));
        assert!(at("<td data-label=\"Model\">small") < at(">b.txt (4)<"));
        assert!(!page(&all[..2]).contains("not ranked together"));
    }

    #[test]
    fn every_kind_has_a_table_and_a_plot() {
        let mut runtime = measured(Kind::Runtime, "m", "", &[("seconds_per_token", 0.01)]);
        runtime.details = json!({ "cells": [
            { "prompt": 1, "output": 1, "seconds": 0.1 }, { "prompt": 1, "output": 9, "seconds": 0.2 },
            { "prompt": 8, "output": 1, "seconds": 0.2 }, { "prompt": 8, "output": 9, "seconds": 0.3 },
        ] });
        let mut selection = measured(Kind::Selection, "", "new.csv", &[("selected", 2.0)]);
        selection.details =
            json!({ "p_values": [0.3, 0.1, 0.9], "fdr": 0.2, "procedure": "OptCS-MSel" });
        let all = [
            capacity("m", "a.txt", 0.2),
            measured(
                Kind::Spectrum,
                "m",
                "a.txt",
                &[("matrix_nuclear_norm", 0.4)],
            ),
            measured(
                Kind::Code,
                "m",
                "enamel.csv",
                &[("eff@1", 0.4), ("pass@1", 0.9)],
            ),
            measured(Kind::Evaluation, "m", "dev.tsv", &[("accuracy", 0.8)]),
            runtime,
            selection,
        ];
        let html = page(&all);
        for text in [
            "M &amp; N",
            "<h2>Information capacity</h2>",
            "Compression against compute",
            "<h2>Matrix nuclear-norm</h2>",
            "<h2>Generated code (ENAMEL)</h2>",
            "<h2>Idealized runtime</h2>",
            "prompt of 8",
            "Efficiency against capability",
            "Conformal p-values",
            "Energy, modelled",
            "1.0 GiB",
        ] {
            assert!(html.contains(text), "the page lacks {text}");
        }
        assert!(!html.contains("Energy, measured") && !html.contains("NaN"));
        assert_eq!(html.matches("<figure>").count(), 9);
    }
}
