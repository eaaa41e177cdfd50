//! The table of a comparison: cells and Markdown.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::{Compared, Comparison, Group};
use crate::report::markup::title;
use crate::report::spread::Spread;
use crate::report::sweep::SweepReport;
use frugal_core::human;

impl Comparison {
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

    /// What differs between runs without being a measure: a column each.
    pub(super) fn descriptions(&self) -> Vec<(&'static str, fn(&Compared) -> &str)> {
        let all: [(&'static str, fn(&Compared) -> &str); 2] =
            [("Model", |r| &r.model), ("Budget", |r| &r.budget)];
        let differs = |value: fn(&Compared) -> &str| {
            let distinct: BTreeSet<&str> = self.rows.iter().map(value).collect();
            distinct.len() > 1
        };
        all.into_iter()
            .filter(|(_, value)| differs(*value))
            .collect()
    }

    /// The headings of a group's table: columns in which none of its runs has a value are left out.
    pub(super) fn headings_of(&self, group: &Group<'_>) -> Vec<String> {
        let (all, words) = (self.headings(), 1 + self.descriptions().len());
        let (words, numbers) = all.split_at(words);
        let kept = numbers.iter().zip(self.kept(group));
        let numbers = kept.filter(|(_, kept)| *kept).map(|(name, _)| name);
        words.iter().chain(numbers).cloned().collect()
    }

    /// The numbers of a row in its group's table.
    pub(super) fn cells_of(&self, group: &Group<'_>, row: &Compared) -> Vec<(String, Option<f64>)> {
        let kept = self.cells(row).into_iter().zip(self.kept(group));
        kept.filter(|(_, kept)| *kept)
            .map(|(cell, _)| cell)
            .collect()
    }

    /// Which columns of numbers the table of a group has.
    fn kept(&self, group: &Group<'_>) -> Vec<bool> {
        let rows: Vec<_> = group.rows.iter().map(|row| self.cells(row)).collect();
        let columns = rows.first().map_or(0, Vec::len);
        // What the references are measured by comes first.
        (0..columns)
            .map(|i| {
                let referred = i == 0 && !group.references.is_empty();
                referred || rows.iter().any(|cells| cells[i].1.is_some())
            })
            .collect()
    }

    fn headings(&self) -> Vec<String> {
        let mut all: Vec<String> = vec!["Run".into()];
        all.extend(
            self.descriptions()
                .into_iter()
                .map(|(name, _)| name.to_owned()),
        );
        all.push(title(&self.metric));
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

    /// Numbers of a row: what is shown, and what it is sorted by.
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

    /// The tables in Markdown, one for each data that runs were measured on.
    pub fn to_markdown(&self) -> String {
        let groups = self.groups();
        let table = |group: &Group<'_>| {
            let table = self.markdown_of(group);
            if groups.len() > 1 {
                format!("On {}:\n\n{table}", group.data)
            } else {
                table
            }
        };
        let tables = groups.iter().map(table).collect::<Vec<_>>().join("\n");
        tables
            + &self
                .sweep
                .iter()
                .map(SweepReport::to_markdown)
                .collect::<String>()
    }

    fn markdown_of(&self, group: &Group<'_>) -> String {
        let headings = self.headings_of(group);
        let words = self.descriptions().len();
        let mut text = format!(
            "| {} |\n|---|{}{}\n",
            headings.join(" | "),
            "---|".repeat(words),
            "---:|".repeat(headings.len() - 1 - words)
        );
        for row in &group.rows {
            let words = self
                .descriptions()
                .into_iter()
                .map(|(_, value)| value(row).to_owned());
            let numbers = self
                .cells_of(group, row)
                .into_iter()
                .map(|(shown, _)| shown);
            let cells: Vec<String> = words.chain(numbers).collect();
            let _ = writeln!(text, "| {} | {} |", row.name, cells.join(" | "));
        }
        for (name, value) in &group.references {
            let mut cells = vec![String::new(); headings.len() - 1];
            cells[words] = crate::report::markup::score(*value);
            let _ = writeln!(text, "| *{name}* | {} |", cells.join(" | "));
        }
        text
    }
}
