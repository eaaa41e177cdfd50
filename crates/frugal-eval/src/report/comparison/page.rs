//! The page of a comparison.

use std::fmt::Write;

use super::tasks;
use super::{Compared, Comparison, Group};
use crate::efficiency::normalised_beyond;
use crate::report::axes::ChartError;
use crate::report::chart::{self, Chart, Mark, Series};
use crate::report::markup::{document, escape, lower_is_better, score, section, title, wrapped};
use crate::report::radar::{self, Axis};
use crate::report::scatter::{Point, Scatter};
use crate::report::sweep::SweepReport;
use crate::report::{Status, curves, measured};
use frugal_core::events::names;
use frugal_core::human;

/// Rows that have the deciding metric.
fn rated<'a>(group: &Group<'a>) -> Vec<&'a Compared> {
    group
        .rows
        .iter()
        .copied()
        .filter(|r| r.quality.is_some())
        .collect()
}

impl Comparison {
    /// The page: HTML with its style, charts and a script that sorts the tables inside, without
    /// links to other files.
    ///
    /// # Errors
    /// If the plotting library cannot draw a chart.
    pub fn to_html(&self) -> Result<String, ChartError> {
        let groups = self.groups();
        let alone = groups.len() < 2;
        let mut body = self
            .sweep
            .iter()
            .map(SweepReport::sections)
            .collect::<String>();
        for group in &groups {
            let heading = |name: &str| {
                if alone {
                    name.to_owned()
                } else {
                    format!("{name}: {}", group.data)
                }
            };
            let against = format!("{} against cost", title(&self.metric));
            body += &section(&heading("Runs"), &self.table(group));
            body += &section(&heading("All measures on one scale"), &self.radar(group));
            body += &section(
                &heading(&against),
                &wrapped("charts", &self.scatters(group)?),
            );
            body += &section(
                &heading("Learning curves"),
                &wrapped("charts", &self.curves(group)?),
            );
        }
        body += &section("Tasks", &tasks::table(&self.tasks));
        body += &measured::sections(&self.measurements)?;
        body += &section("Failures", &self.failures());
        if !self.rows.is_empty() {
            let _ = writeln!(body, "<script>\n{}</script>", include_str!("../sort.js"));
        }
        Ok(document(&self.title, &self.header(), &body))
    }

    fn header(&self) -> String {
        let fact = |(name, value): &(&str, String)| {
            format!("<p>{}: {}</p>\n", escape(name), escape(value))
        };
        let facts: String = self.facts().iter().map(fact).collect();
        let apart = self.ranked_apart().map_or_else(String::new, |why| {
            format!("<p class=\"warning\">Runs {}.</p>\n", escape(&why))
        });
        format!(
            "<header>\n<h1>{}</h1>\n<p>{}</p>\n{facts}{apart}</header>\n",
            escape(&self.title),
            escape(&self.subtitle)
        )
    }

    fn table(&self, group: &Group<'_>) -> String {
        let words = self.descriptions();
        let headings = self.headings_of(group);
        let heading = |(i, text): (usize, &String)| {
            let class = if i <= words.len() { "" } else { " class=\"n\"" };
            format!(
                "<th{class}><button type=\"button\" data-column=\"{i}\">{}</button></th>",
                escape(text)
            )
        };
        let mut html =
            String::from("<div class=\"scroll\"><table class=\"sortable cards\">\n<thead><tr>");
        html.extend(headings.iter().enumerate().map(heading));
        html.push_str("</tr></thead>\n<tbody>\n");
        for row in &group.rows {
            let _ = write!(
                html,
                "<tr><th scope=\"row\" data-value=\"{0}\">{0}</th>",
                escape(&row.name)
            );
            for (name, value) in &words {
                let value = escape(value(row));
                let _ = write!(
                    html,
                    "<td data-label=\"{name}\" data-value=\"{value}\">{value}</td>"
                );
            }
            for (label, (shown, value)) in headings[1 + words.len()..]
                .iter()
                .zip(self.cells_of(group, row))
            {
                let value = value.map_or(String::new(), |v| v.to_string());
                let _ = write!(
                    html,
                    "<td class=\"n\" data-label=\"{}\" data-value=\"{value}\">{}</td>",
                    escape(label),
                    escape(&shown)
                );
            }
            html.push_str("</tr>\n");
        }
        html.push_str("</tbody>\n");
        html += &self.reference_rows(group, headings.len(), words.len());
        let seeds = group.rows.iter().map(|r| r.runs).max().unwrap_or(0);
        let spread = if seeds > 1 {
            " Quality is mean \u{b1} standard deviation over seeds; costs are medians."
        } else {
            ""
        };
        let references = if group.references.is_empty() {
            ""
        } else {
            " Below the runs: what any of them has to beat."
        };
        let _ = writeln!(
            html,
            "</table></div>\n<p class=\"note\">A click on a heading sorts by it.{spread}{references}</p>"
        );
        html
    }

    /// What any run has to beat, below the runs.
    fn reference_rows(&self, group: &Group<'_>, columns: usize, words: usize) -> String {
        if group.references.is_empty() {
            return String::new();
        }
        let metric = escape(&title(&self.metric));
        let row = |(name, value): &(String, f64)| {
            format!(
                "<tr><th scope=\"row\">{}</th>{}<td class=\"n\" data-label=\"{metric}\">{}</td>{}</tr>\n",
                escape(name),
                "<td></td>".repeat(words),
                score(*value),
                "<td></td>".repeat(columns.saturating_sub(words + 2)),
            )
        };
        let rows: String = group.references.iter().map(row).collect();
        format!("<tfoot>\n{rows}</tfoot>\n")
    }

    /// The best runs by all measures that they have, each from the worst to the best of them.
    pub(super) fn radar(&self, group: &Group<'_>) -> String {
        let rated = rated(group);
        let power = if rated.iter().any(|r| r.power_is_modelled) {
            "little power, modelled"
        } else {
            "little power"
        };
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
            (power, true, |r| r.average_power),
        ];
        let deviations: Vec<Option<f64>> = rated.iter().map(|r| r.quality?.deviation).collect();
        let axis = |(name, lower, value): (&str, bool, fn(&Compared) -> Option<f64>)| {
            let noise = if name == "quality" {
                &deviations[..]
            } else {
                &[]
            };
            Axis {
                name: name.to_owned(),
                values: normalised_beyond(
                    &rated.iter().map(|r| value(r)).collect::<Vec<_>>(),
                    noise,
                    lower,
                ),
            }
        };
        let names: Vec<&str> = rated.iter().map(|r| r.name.as_str()).collect();
        radar::figure(&measures.map(axis), &names, "The best runs by all measures")
    }

    fn scatters(&self, group: &Group<'_>) -> Result<String, ChartError> {
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
            let points = group.rows.iter().copied().filter_map(point).collect();
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
            html += &scatter.figure()?;
        }
        Ok(html)
    }

    /// Loss of the best groups, of the first finished run of each that logged it, in the colours
    /// that the radar chart has.
    pub(super) fn curves(&self, group: &Group<'_>) -> Result<String, ChartError> {
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
            let series: Vec<Series> = rated(group)
                .into_iter()
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
                across: "Optimiser step",
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
