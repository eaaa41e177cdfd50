//! Many runs side by side: one table, quality against cost, learning curves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use super::chart::{self, Chart, ChartError, Mark, Series};
use super::html::{document, escape, lower_is_better, score, section, title, wrapped};
use super::radar::{self, Axis};
use super::scatter::{Point, Scatter};
use super::{Evaluation, RunRecord, Status, curves};
use crate::efficiency::{Efficiency, normalised};
use frugal_core::events::{Scalars, names};
use frugal_core::{human, metrics};

/// A run to compare.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Name without the seed; runs of one name are averaged.
    pub name: String,
    /// What it cost and gained.
    pub record: RunRecord,
    /// Its log.
    pub log: Vec<Scalars>,
    /// What was sampled while it ran, where it was.
    pub efficiency: Option<Efficiency>,
}

/// What `frugal eval --tasks` wrote for a model.
#[derive(Clone, Debug, Default)]
pub struct TaskScores {
    /// Name of the folder.
    pub name: String,
    /// The content of its `results.json`.
    pub results: Value,
}

/// Mean and standard deviation over seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Sample standard deviation; absent for one value.
    pub deviation: Option<f64>,
    /// Number of values.
    pub count: usize,
}

impl Spread {
    /// Of these values; `None` without any.
    pub fn new(values: &[f64]) -> Option<Self> {
        let mean = metrics::mean(values)?;
        let count = values.len();
        let sum: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        Some(Self {
            mean,
            deviation: (count > 1).then(|| (sum / (count - 1) as f64).sqrt()),
            count,
        })
    }

    fn text(self) -> String {
        self.deviation.map_or_else(
            || score(self.mean),
            |d| format!("{} \u{b1} {}", score(self.mean), score(d)),
        )
    }
}

/// The runs of one name together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// Name.
    pub name: String,
    /// Method.
    pub method: String,
    /// Runs that finished.
    pub runs: usize,
    /// The deciding metric.
    pub quality: Option<Spread>,
    /// Where the runs lack it, the first usual one that they have: runs of another task stand in
    /// one table with the rest.
    pub otherwise: Option<(&'static str, Spread)>,
    /// Trained parameters of a run that finished.
    pub num_trainable_params: Option<u64>,
    /// Saved bytes of a run that finished.
    pub file_size: Option<u64>,
    /// Bytes; the median.
    pub peak_memory: Option<f64>,
    /// Seconds of training; the median.
    pub train_time: Option<f64>,
    /// The median.
    pub tokens_per_second: Option<f64>,
    /// Bytes on average over the run, where it was sampled; the median.
    pub average_memory: Option<f64>,
    /// Watts on average over the run, where it was sampled; the median.
    pub average_power: Option<f64>,
    /// What was lost on unrelated text: `adapted - base` of the measure of forgetting.
    pub forgetting: Option<Spread>,
    /// That measure, `perplexity` or `probe_accuracy`.
    pub forgetting_measure: Option<String>,
    /// Why runs failed.
    pub errors: Vec<String>,
}

/// Many runs, grouped by name and sorted by quality.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Heading of the page.
    pub title: String,
    /// One line below it.
    pub subtitle: String,
    /// The metric that decides.
    pub metric: String,
    runs: Vec<Run>,
    rows: Vec<Compared>,
    tasks: Vec<TaskScores>,
}

/// Metrics that decide unless one is named, the first that there is.
const USUAL: [&str; 3] = ["accuracy", "perplexity", "loss"];

/// What quality is read from: the test part, or the last one there is.
fn judged(record: &RunRecord) -> Option<&Evaluation> {
    record
        .evaluation
        .iter()
        .find(|e| e.split == "test")
        .or_else(|| record.evaluation.last())
}

impl Comparison {
    /// Groups runs by name. Without `metric` it is `accuracy` where the runs have it, otherwise
    /// `perplexity`, otherwise `loss`.
    pub fn new(
        title: impl Into<String>,
        subtitle: impl Into<String>,
        metric: Option<&str>,
        runs: Vec<Run>,
    ) -> Self {
        let has = |name: &&&str| {
            runs.iter()
                .any(|r| judged(&r.record).is_some_and(|e| e.adapted.contains_key(**name)))
        };
        let metric = metric
            .or_else(|| USUAL.iter().find(has).copied())
            .unwrap_or("accuracy")
            .to_owned();
        let names: BTreeSet<&str> = runs.iter().map(|r| r.name.as_str()).collect();
        let mut rows: Vec<Compared> = names
            .iter()
            .map(|name| row(name, &metric, runs.iter().filter(|r| r.name == *name)))
            .collect();
        let signed = |mean: f64| {
            if lower_is_better(&metric) {
                -mean
            } else {
                mean
            }
        };
        let quality = |row: &Compared| {
            row.quality
                .map(|q| signed(q.mean))
                .filter(|q| !q.is_nan())
                .unwrap_or(f64::NEG_INFINITY)
        };
        rows.sort_by(|a, b| {
            quality(b)
                .total_cmp(&quality(a))
                .then_with(|| a.name.cmp(&b.name))
        });
        Self {
            title: title.into(),
            subtitle: subtitle.into(),
            metric,
            runs,
            rows,
            tasks: Vec::new(),
        }
    }

    /// The same page with the scores of models on tasks.
    pub fn with_tasks(mut self, tasks: Vec<TaskScores>) -> Self {
        self.tasks = tasks;
        self
    }

    /// The groups, best first.
    pub fn rows(&self) -> &[Compared] {
        &self.rows
    }

    /// What the runs that finished can be judged by.
    pub fn metrics(&self) -> BTreeSet<&str> {
        let done = self
            .runs
            .iter()
            .filter(|r| r.record.train_info.status == Status::Success);
        done.filter_map(|r| judged(&r.record))
            .flat_map(|e| e.adapted.keys().map(String::as_str))
            .collect()
    }

    /// What forgetting is measured by, where it is.
    fn forgetting_measures(&self) -> BTreeSet<&str> {
        self.rows
            .iter()
            .filter_map(|row| row.forgetting_measure.as_deref())
            .collect()
    }

    /// What the runs that lack the deciding metric are judged by.
    fn other_metrics(&self) -> BTreeSet<&'static str> {
        self.rows
            .iter()
            .filter_map(|row| Some(row.otherwise?.0))
            .collect()
    }

    fn headings(&self) -> Vec<String> {
        let mut all: Vec<String> = vec!["Run".into(), title(&self.metric)];
        all.extend(self.other_metrics().into_iter().map(title));
        all.extend(
            [
                "Trainable parameters",
                "File",
                "Peak memory",
                "Training time",
                "Tokens/s",
            ]
            .map(str::to_owned),
        );
        all.extend(
            self.forgetting_measures()
                .into_iter()
                .map(|m| format!("Change of {} elsewhere", m.replace('_', " "))),
        );
        all
    }

    /// Cells of a row: what is shown, and the number that it is sorted by.
    fn cells(&self, row: &Compared) -> Vec<(String, Option<f64>)> {
        let shown = |value: Option<f64>, text: &dyn Fn(f64) -> String| {
            (value.map_or("-".into(), text), value)
        };
        let spread = |found: Option<Spread>| {
            (
                found.map_or("-".into(), Spread::text),
                found.map(|q| q.mean),
            )
        };
        let mut cells = vec![spread(row.quality)];
        cells.extend(
            self.other_metrics()
                .into_iter()
                .map(|metric| spread(row.otherwise.filter(|o| o.0 == metric).map(|o| o.1))),
        );
        cells.extend([
            shown(row.num_trainable_params.map(|n| n as f64), &|v| {
                human::count(v as u64)
            }),
            shown(row.file_size.map(|b| b as f64), &|v| human::bytes(v as u64)),
            shown(row.peak_memory, &|v| human::bytes(v as u64)),
            shown(row.train_time, &human::duration),
            shown(row.tokens_per_second, &|v| human::count(v.round() as u64)),
        ]);
        let signed = |s: Spread| format!("{}{}", if s.mean > 0.0 { "+" } else { "" }, s.text());
        cells.extend(self.forgetting_measures().into_iter().map(|measure| {
            let found = row
                .forgetting
                .filter(|_| row.forgetting_measure.as_deref() == Some(measure));
            (found.map_or("-".into(), signed), found.map(|f| f.mean))
        }));
        cells
    }

    /// The table in Markdown.
    pub fn to_markdown(&self) -> String {
        let headings = self.headings();
        let mut text = format!(
            "| {} |\n|---|{}\n",
            headings.join(" | "),
            "---:|".repeat(headings.len() - 1)
        );
        for row in &self.rows {
            let cells: Vec<String> = self
                .cells(row)
                .into_iter()
                .map(|(shown, _)| shown)
                .collect();
            let _ = writeln!(text, "| {} | {} |", row.name, cells.join(" | "));
        }
        text
    }

    /// The page: HTML with its style, charts and a script that sorts the table inside, without
    /// links to other files.
    ///
    /// # Errors
    /// If the plotting library cannot draw a chart.
    pub fn to_html(&self) -> Result<String, ChartError> {
        let header = format!(
            "<header>\n<h1>{}</h1>\n<p>{}</p>\n</header>\n",
            escape(&self.title),
            escape(&self.subtitle)
        );
        let body = [
            section(
                "Runs",
                &if self.rows.is_empty() {
                    String::new()
                } else {
                    self.table()
                },
            ),
            section("Tasks", &self.task_table()),
            section("All measures on one scale", &self.radar()),
            section(
                &format!("{} against cost", title(&self.metric)),
                &wrapped("charts", &self.scatters()?),
            ),
            section("Learning curves", &wrapped("charts", &self.curves()?)),
            section("Failures", &self.failures()),
        ];
        Ok(document(&self.title, &header, &body.concat()))
    }

    fn table(&self) -> String {
        let heading = |(i, text): (usize, &String)| {
            let class = if i == 0 { "" } else { " class=\"n\"" };
            format!(
                "<th{class}><button type=\"button\" data-column=\"{i}\">{}</button></th>",
                escape(text)
            )
        };
        let mut html =
            String::from("<div class=\"scroll\"><table class=\"sortable\">\n<thead><tr>");
        html.extend(self.headings().iter().enumerate().map(heading));
        html.push_str("</tr></thead>\n<tbody>\n");
        for row in &self.rows {
            let _ = write!(
                html,
                "<tr><th scope=\"row\" data-value=\"{0}\">{0}</th>",
                escape(&row.name)
            );
            for (shown, value) in self.cells(row) {
                let value = value.map_or(String::new(), |v| v.to_string());
                let _ = write!(
                    html,
                    "<td class=\"n\" data-value=\"{value}\">{}</td>",
                    escape(&shown)
                );
            }
            html.push_str("</tr>\n");
        }
        let seeds = self.rows.iter().map(|r| r.runs).max().unwrap_or(0);
        let spread = if seeds > 1 {
            " Quality is mean \u{b1} standard deviation over seeds; costs are medians."
        } else {
            ""
        };
        let _ = write!(
            html,
            "</tbody>\n</table></div>\n<p class=\"note\">A click on a heading sorts by it.{spread}</p>\n"
        );
        let _ = writeln!(html, "<script>\n{}</script>", include_str!("sort.js"));
        html
    }

    /// A row for each model, a column for each task's metric.
    fn task_table(&self) -> String {
        let scores = |task: &TaskScores| -> BTreeMap<(String, String), (f64, Option<f64>)> {
            let mut found = BTreeMap::new();
            for (name, values) in task.results["results"].as_object().into_iter().flatten() {
                for (key, value) in values.as_object().into_iter().flatten() {
                    let (Some((metric, filter)), Some(value)) =
                        (key.split_once(','), value.as_f64())
                    else {
                        continue;
                    };
                    if metric.ends_with("_stderr") {
                        continue;
                    }
                    let error = values[&format!("{metric}_stderr,{filter}")].as_f64();
                    let filter = if filter == "none" {
                        String::new()
                    } else {
                        format!(" ({filter})")
                    };
                    found.insert((name.clone(), format!("{metric}{filter}")), (value, error));
                }
            }
            found
        };
        let all: Vec<_> = self.tasks.iter().map(|t| (&t.name, scores(t))).collect();
        let columns: BTreeSet<&(String, String)> = all.iter().flat_map(|(_, s)| s.keys()).collect();
        if columns.is_empty() {
            return String::new();
        }
        let mut html = String::from("<div class=\"scroll\"><table>\n<thead><tr><th>Model</th>");
        for (task, metric) in &columns {
            let _ = write!(
                html,
                "<th class=\"n\">{}<br>{}</th>",
                escape(task),
                escape(metric)
            );
        }
        html.push_str("</tr></thead>\n<tbody>\n");
        for (name, scores) in &all {
            let _ = write!(html, "<tr><th scope=\"row\">{}</th>", escape(name));
            for column in &columns {
                let shown = scores
                    .get(*column)
                    .map_or("-".to_owned(), |(value, error)| {
                        error.map_or_else(
                            || score(*value),
                            |e| format!("{} \u{b1} {}", score(*value), score(e)),
                        )
                    });
                let _ = write!(html, "<td class=\"n\">{shown}</td>");
            }
            html.push_str("</tr>\n");
        }
        html + "</tbody>\n</table></div>\n<p class=\"note\">With standard errors.</p>\n"
    }

    /// The best runs by all measures that they have, each from the worst to the best of them.
    fn radar(&self) -> String {
        let rated: Vec<&Compared> = self.rows.iter().filter(|r| r.quality.is_some()).collect();
        let measures: [(&str, bool, fn(&Compared) -> Option<f64>); 8] = [
            ("quality", lower_is_better(&self.metric), |r| {
                r.quality.map(|q| q.mean)
            }),
            ("few parameters", true, |r| {
                r.num_trainable_params.map(|n| n as f64)
            }),
            ("small file", true, |r| r.file_size.map(|b| b as f64)),
            ("little memory", true, |r| r.peak_memory),
            ("little time", true, |r| r.train_time),
            ("throughput", false, |r| r.tokens_per_second),
            ("little memory on average", true, |r| r.average_memory),
            ("little power", true, |r| r.average_power),
        ];
        let axis = |(name, lower, value): (&str, bool, fn(&Compared) -> Option<f64>)| Axis {
            name: name.to_owned(),
            values: normalised(&rated.iter().map(|r| value(r)).collect::<Vec<_>>(), lower),
        };
        let names: Vec<&str> = rated.iter().map(|r| r.name.as_str()).collect();
        radar::figure(&measures.map(axis), &names, "The best runs by all measures")
    }

    fn scatters(&self) -> Result<String, ChartError> {
        let quality = title(&self.metric);
        let costs: [(
            &str,
            &str,
            f64,
            fn(f64) -> String,
            fn(&Compared) -> Option<f64>,
        ); 3] = [
            (
                "Parameters",
                "Trainable parameters",
                1.0,
                |v| human::count(v.round() as u64),
                |r| r.num_trainable_params.map(|n| n as f64),
            ),
            (
                "Memory",
                "Peak memory",
                f64::from(1 << 20),
                |v| human::bytes(v as u64),
                |r| r.peak_memory,
            ),
            ("Time", "Training time", 1.0, human::duration, |r| {
                r.train_time
            }),
        ];
        let mut html = String::new();
        for (name, cost, unit, cost_label, value) in costs {
            let point = |r: &Compared| {
                Some(Point {
                    name: r.name.clone(),
                    x: value(r)?,
                    y: r.quality?.mean,
                })
            };
            let points = self.rows.iter().filter_map(point).collect();
            let lower_is_better = lower_is_better(&self.metric);
            let scatter = Scatter {
                title: name,
                cost,
                unit,
                cost_label,
                quality: &quality,
                points,
                lower_is_better,
            };
            if let Some(svg) = scatter.svg()? {
                let label = format!("{quality} against {}", cost.to_lowercase());
                let svg = svg.replacen(
                    "<svg ",
                    &format!("<svg role=\"img\" aria-label=\"{}\" ", escape(&label)),
                    1,
                );
                let _ = writeln!(
                    html,
                    "<figure><figcaption><h3>{name}</h3></figcaption><div class=\"chart\">{svg}</div><p class=\"note\">Named: \
                     runs that no other beats in both.</p></figure>"
                );
            }
        }
        Ok(html)
    }

    /// Loss of the best groups, of the first finished run of each that logged it, in the colours
    /// that the radar chart has.
    fn curves(&self) -> Result<String, ChartError> {
        let mut html = String::new();
        for (title, name) in [
            ("Training loss", names::LOSS),
            ("Validation loss", names::EVAL_LOSS),
        ] {
            let log = |row: &Compared| {
                let done = self.runs.iter().filter(|r| {
                    r.name == row.name && r.record.train_info.status == Status::Success
                });
                done.map(|r| curves::points(&r.log, name))
                    .find(|points| !points.is_empty())
                    .unwrap_or_default()
            };
            let rated = self.rows.iter().filter(|r| r.quality.is_some());
            let series: Vec<Series> = rated
                .zip(radar::COLOURS)
                .map(|(row, colour)| {
                    let points = log(row);
                    let points = if points.len() < 40 {
                        points
                    } else {
                        chart::smooth(&points)
                    };
                    let mark = if name == names::LOSS {
                        Mark::Line
                    } else {
                        Mark::Dotted
                    };
                    Series {
                        label: row.name.clone(),
                        colour,
                        mark,
                        points,
                    }
                })
                .filter(|series| !series.points.is_empty())
                .collect();
            let chart = Chart {
                title,
                unit: "Cross-entropy (nats)".into(),
                series,
                from_zero: false,
            };
            html += &curves::figure(&chart, "The best runs, one seed of each")?;
        }
        Ok(html)
    }

    fn failures(&self) -> String {
        let line = |row: &Compared| -> String {
            row.errors
                .iter()
                .map(|e| format!("<p><b>{}</b> {}</p>\n", escape(&row.name), escape(e)))
                .collect()
        };
        self.rows.iter().map(line).collect()
    }
}

fn row<'a>(name: &str, metric: &str, runs: impl Iterator<Item = &'a Run>) -> Compared {
    let runs: Vec<&Run> = runs.collect();
    let done: Vec<&RunRecord> = runs
        .iter()
        .map(|r| &r.record)
        .filter(|r| r.train_info.status == Status::Success)
        .collect();
    let all = |value: &dyn Fn(&RunRecord) -> Option<f64>| {
        done.iter().filter_map(|r| value(r)).collect::<Vec<f64>>()
    };
    let median = |value: &dyn Fn(&RunRecord) -> Option<f64>| metrics::median(&all(value));
    let sampled = |value: &dyn Fn(&Efficiency) -> f64| {
        runs.iter()
            .filter_map(|r| r.efficiency.as_ref())
            .map(value)
            .collect::<Vec<f64>>()
    };
    let method = runs
        .first()
        .and_then(|r| r.record.run_info.train_config["method"]["name"].as_str())
        .unwrap_or_default()
        .to_owned();
    let of_metric = |metric: &str| Spread::new(&all(&|r| judged(r)?.adapted.get(metric).copied()));
    let quality = of_metric(metric);
    let forgetting_measure = done
        .iter()
        .find_map(|r| Some(r.forgetting.as_ref()?.measure.clone()));
    let lost = all(&|r| {
        r.forgetting
            .as_ref()
            .filter(|f| Some(&f.measure) == forgetting_measure.as_ref())
            .map(|f| f.adapted - f.base)
    });
    Compared {
        name: name.to_owned(),
        method,
        runs: done.len(),
        quality,
        otherwise: if quality.is_some() {
            None
        } else {
            USUAL
                .into_iter()
                .find_map(|metric| Some((metric, of_metric(metric)?)))
        },
        num_trainable_params: done.first().map(|r| r.train_info.num_trainable_params),
        file_size: done.first().map(|r| r.train_info.file_size),
        peak_memory: median(&|r| r.train_info.peak_memory.map(|b| b as f64)),
        train_time: median(&|r| Some(r.train_info.train_time)),
        tokens_per_second: median(&|r| r.train_info.tokens_per_second()),
        average_memory: metrics::median(&sampled(&|e| e.average_memory)),
        average_power: metrics::median(&sampled(&|e| e.average_power)),
        forgetting: Spread::new(&lost),
        forgetting_measure,
        errors: runs
            .iter()
            .map(|r| r.record.run_info.error_msg.clone())
            .filter(|e| !e.is_empty())
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::html::hex;
    use crate::report::{Forgetting, sample};

    fn run(name: &str, accuracy: f64, parameters: u64) -> Run {
        let report = sample::report();
        let mut record = report.record;
        record.evaluation[1]
            .adapted
            .insert("accuracy".into(), accuracy);
        record.train_info.num_trainable_params = parameters;
        record.forgetting = Some(Forgetting {
            measure: "perplexity".into(),
            data: "d".into(),
            base: 20.0,
            adapted: 21.0,
        });
        Run {
            name: name.into(),
            record,
            log: report.log,
            efficiency: None,
        }
    }

    fn comparison() -> Comparison {
        let mut broken = run("broken", 0.0, 5);
        broken.record.train_info.status = Status::Failed;
        broken.record.run_info.error_msg = "out of <memory>".into();
        Comparison::new(
            "Two & one",
            "on sst2",
            None,
            vec![
                run("a", 0.8, 1000),
                run("b", 0.9, 90_000),
                run("a", 0.84, 1000),
                broken,
            ],
        )
    }

    #[test]
    fn runs_of_one_name_are_averaged_and_the_best_comes_first() {
        let found = comparison();
        assert_eq!(found.metric, "accuracy");
        let names: Vec<&str> = found.rows().iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, ["b", "a", "broken"]);
        let a = found.rows()[1].quality.unwrap();
        assert!(
            (a.mean - 0.82).abs() < 1e-12
                && (a.deviation.unwrap() - 0.028_284_271).abs() < 1e-8
                && a.count == 2
        );
        assert_eq!(
            (found.rows()[2].quality, found.rows()[2].errors.len()),
            (None, 1)
        );
        assert_eq!(found.rows()[0].forgetting.unwrap().mean, 1.0);
    }

    #[test]
    fn runs_of_another_task_show_what_they_are_judged_by() {
        let mut texts = run("texts", 0.0, 7);
        texts.record.evaluation[1].adapted = [("perplexity".to_owned(), 3.25)].into();
        let found = Comparison::new("", "", None, vec![run("a", 0.8, 1000), texts]);
        let table = found.to_markdown();
        assert!(
            table.starts_with("| Run | Accuracy | Perplexity | Trainable parameters"),
            "{table}"
        );
        assert!(
            table.contains("| a | 0.8000 | - |") && table.contains("| texts | - | 3.2500 |"),
            "{table}"
        );
    }

    #[test]
    fn each_measure_of_forgetting_has_a_column() {
        let mut encoder = run("encoder", 0.7, 10);
        encoder.record.forgetting = Some(Forgetting {
            measure: "probe_accuracy".into(),
            data: "d".into(),
            base: 0.5,
            adapted: 0.25,
        });
        let table = Comparison::new("", "", None, vec![run("a", 0.8, 1000), encoder]).to_markdown();
        assert!(
            table.contains(
                "| Change of perplexity elsewhere | Change of probe accuracy elsewhere |"
            ),
            "{table}"
        );
        let cells = |name: &str| {
            table
                .lines()
                .find(|l| l.starts_with(&format!("| {name} |")))
                .unwrap()
                .to_owned()
        };
        assert!(
            cells("a").ends_with("| +1.0000 | - |")
                && cells("encoder").ends_with("| - | \u{2212}0.2500 |"),
            "{table}"
        );
    }

    #[test]
    fn curves_are_those_of_finished_runs_in_the_colour_of_their_row() {
        let mut failed = run("a", 0.8, 10);
        failed.record.train_info.status = Status::Failed;
        failed.log = vec![Scalars::new(1).with(names::LOSS, 1e6)];
        let mut silent = run("b", 0.9, 10);
        silent.log.clear();
        let html = Comparison::new("T", "", None, vec![failed, run("a", 0.8, 10), silent])
            .curves()
            .unwrap();
        assert!(
            html.contains(&hex(radar::COLOURS[1]))
                && !html.contains(&hex(radar::COLOURS[0]))
                && !html.contains("1000000"),
            "{html}"
        );
    }

    #[test]
    fn the_scale_is_that_of_all_runs_even_when_not_all_are_drawn() {
        let radar = |last: u64| {
            let runs = (0..6u8).map(|i| {
                run(
                    &format!("r{i}"),
                    0.9 - 0.1 * f64::from(i),
                    if i == 5 { last } else { 100 },
                )
            });
            Comparison::new("T", "", None, runs.collect()).radar()
        };
        assert!(radar(100).contains("The first five are shown."));
        assert_ne!(
            radar(100),
            radar(1),
            "the sixth run has the fewest parameters"
        );
    }

    #[test]
    fn the_page_shows_everything_and_escapes_it() {
        let html = comparison().to_html().unwrap();
        // FRUGAL_REPORT_OUT=FILE keeps the page to be looked at.
        if let Some(path) = std::env::var_os("FRUGAL_REPORT_OUT") {
            std::fs::write(path, &html).unwrap();
        }
        for text in [
            "Two &amp; one",
            "0.8200 \u{b1} 0.0283",
            "90,000",
            "out of &lt;memory&gt;",
            "data-value=\"0.9\"",
            "Validation loss",
            "+1.0000",
        ] {
            assert!(html.contains(text), "the page lacks {text}");
        }
        assert_eq!(html.matches("<figure>").count(), 6);
        let outside = html.replace("http://www.w3.org/2000/svg", "");
        for reference in ["http:", "https:", "<link", "@import", "url(", "src="] {
            assert!(
                !outside.contains(reference),
                "the page refers to {reference}"
            );
        }
    }

    #[test]
    fn models_on_tasks_have_a_table_of_their_own() {
        let results = serde_json::json!({ "results": {
            "gsm8k": { "alias": "gsm8k", "exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": 0.0433 },
            "sst<2>": { "acc,none": 0.575, "acc_stderr,none": "N/A" },
        } });
        let tasks = vec![
            TaskScores {
                name: "small".into(),
                results,
            },
            TaskScores::default(),
        ];
        let html = Comparison::new("T", "", None, Vec::new())
            .with_tasks(tasks)
            .to_html()
            .unwrap();
        for text in [
            "<h2>Tasks</h2>",
            "exact_match (strict-match)",
            "0.2500 \u{b1} 0.0433",
            "sst&lt;2&gt;",
            ">0.5750<",
        ] {
            assert!(html.contains(text), "the page lacks {text}");
        }
        assert!(!html.contains("<h2>Runs</h2>") && !html.contains("<figure>"));
    }

    #[test]
    fn sampled_runs_are_compared_by_their_averages_too() {
        let sampled = |name: &str, memory: f64, power: f64| Run {
            efficiency: Some(Efficiency {
                seconds: 1.0,
                average_memory: memory,
                peak_memory: memory,
                utilisation: 0.5,
                average_power: power,
                power_is_modelled: true,
                energy: power,
            }),
            ..run(name, 0.8, 10)
        };
        let found = Comparison::new(
            "T",
            "",
            None,
            vec![
                sampled("a", 2e9, 30.0),
                sampled("a", 4e9, 40.0),
                sampled("b", 1e9, 20.0),
            ],
        );
        let a = found.rows().iter().find(|r| r.name == "a").unwrap();
        assert_eq!((a.average_memory, a.average_power), (Some(3e9), Some(35.0)));
        assert!(found.to_html().unwrap().contains("little power"));
        assert!(!comparison().to_html().unwrap().contains("little power"));
    }

    #[test]
    fn the_markdown_table_has_a_row_for_each_name() {
        let text = comparison().to_markdown();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5);
        assert!(
            lines[0].starts_with("| Run | Accuracy | Trainable parameters |"),
            "{text}"
        );
        assert!(lines[2].starts_with("| b | 0.9000 | 90,000 |"), "{text}");
        // A run that failed has trained and saved nothing.
        assert!(lines[4].starts_with("| broken | - | - | - | - |"), "{text}");
    }

    #[test]
    fn what_finished_runs_can_be_judged_by_is_known() {
        let mut failed = run("a", 0.5, 1);
        failed.record.train_info.status = Status::Failed;
        failed.record.evaluation[1]
            .adapted
            .insert("half_done".into(), 1.0);
        let found = Comparison::new("", "", None, vec![run("a", 0.5, 1), failed]);
        let metrics = found.metrics();
        assert!(
            metrics.contains("accuracy")
                && !metrics.contains("half_done")
                && !metrics.contains("foo"),
            "{metrics:?}"
        );
    }
}
