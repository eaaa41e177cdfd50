//! The page: what is said, in which order, as HTML.

use std::fmt::Write;

use serde_json::Value;

use super::axes::ChartError;
use super::curves;
use super::markup::{document, escape, lower_is_better, score, section, title, wrapped};
use super::{Confusion, Evaluation, Example, RunRecord, RunReport, Status};
use crate::baselines::{CHANCE, MAJORITY};
use frugal_core::human;

impl RunReport {
    /// The page: HTML with its style and charts inside, without scripts, fonts or links to other
    /// files.
    ///
    /// # Errors
    /// If the plotting library cannot draw a chart.
    pub fn to_html(&self) -> Result<String, ChartError> {
        page(self)
    }
}

fn page(report: &RunReport) -> Result<String, ChartError> {
    let record = &report.record;
    let sections = [
        section("Quality", &quality(&record.evaluation)),
        section("Cost", &cost(record)),
        section(
            "Curves",
            &wrapped("charts", &curves::figures(&report.log, peak_rate(record))?),
        ),
        section(
            "One training example",
            &report.example.as_ref().map_or(String::new(), example),
        ),
        section("Data", &data(record)),
        section("Configuration", &configuration(record)),
        section("Command line", &command(&record.run_info.command)),
        section("Environment", &environment(record)),
    ];
    Ok(document(&report.title, &header(report), &sections.concat()))
}

/// The peak learning rate of the schedule that a run was configured with.
fn peak_rate(record: &RunRecord) -> Option<f64> {
    let train = &record.run_info.train_config["train"];
    ["lr", "peak_rate", "learning_rate"]
        .iter()
        .find_map(|name| train[*name].as_f64())
        .filter(|rate| *rate > 0.0)
}

fn header(report: &RunReport) -> String {
    let run = &report.record.run_info;
    let (class, status) = match report.record.train_info.status {
        Status::Running => ("running", "running"),
        Status::Success => ("success", "finished"),
        Status::Failed => ("failed", "failed"),
        Status::Cancelled => ("cancelled", "cancelled"),
    };
    let mut html = format!(
        "<header>\n<h1>{} <span class=\"status {class}\">{status}</span></h1>\n",
        escape(&report.title)
    );
    let started = run.created_at.replace('T', " ").replace('Z', " UTC");
    let lines = [
        report.subtitle.clone(),
        if started.is_empty() {
            String::new()
        } else {
            format!("started {started}")
        },
    ];
    let line: Vec<String> = lines
        .iter()
        .filter(|l| !l.is_empty())
        .map(|l| escape(l))
        .collect();
    let _ = writeln!(html, "<p>{}</p>", line.join(" · "));
    if !run.error_msg.is_empty() {
        let _ = writeln!(html, "<p class=\"error\">{}</p>", escape(&run.error_msg));
    }
    for note in &run.notes {
        let _ = writeln!(html, "<p class=\"warning\">{}</p>", escape(note));
    }
    html + "</header>\n"
}

/// Base against adapted, a row for each metric of each part, with what needs no model beside them.
fn quality(evaluations: &[Evaluation]) -> String {
    // In this order: what is hard to beat first.
    let known = [MAJORITY, CHANCE];
    let baselines: Vec<&str> = known
        .into_iter()
        .filter(|name| evaluations.iter().any(|e| e.baselines.contains_key(*name)))
        .collect();
    let untrained = if baselines.is_empty() {
        "Base"
    } else {
        "Untrained"
    };
    let mut rows = String::new();
    for evaluation in evaluations {
        rows += &quality_rows(evaluation, &baselines, untrained);
    }
    if rows.is_empty() {
        return rows;
    }
    let heading = |name: &str| format!("<th class=\"n\">{}</th>", escape(&title(name)));
    let headings: String = baselines.iter().copied().map(heading).collect();
    format!(
        "<div class=\"scroll\"><table class=\"cards\">\n<thead><tr><th>Metric</th>{headings}<th class=\"n\">{untrained}</th><th class=\"n\">Adapted</th>\
         <th class=\"n\">Change</th></tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n{}",
        confusions(evaluations)
    )
}

fn quality_rows(evaluation: &Evaluation, baselines: &[&str], untrained: &str) -> String {
    let part = escape(&evaluation.split);
    let examples = if evaluation.examples == 1 {
        "1 example".into()
    } else {
        format!("{} examples", human::count(evaluation.examples as u64))
    };
    let mut rows = format!(
        "<tr class=\"group\"><th colspan=\"{}\" scope=\"rowgroup\">{part} <span class=\"quiet\">{examples}</span></th></tr>\n",
        4 + baselines.len()
    );
    let only_adapted = evaluation
        .adapted
        .keys()
        .filter(|name| !evaluation.base.contains_key(*name));
    for name in evaluation.base.keys().chain(only_adapted) {
        let (base, adapted) = (evaluation.base.get(name), evaluation.adapted.get(name));
        let value = |v: Option<&f64>| v.map_or("-".to_owned(), |v| score(*v));
        let baseline = |of: &&str| {
            let found = evaluation.baselines.get(*of).and_then(|m| m.get(name));
            let heading = escape(&title(of));
            format!(
                "<td class=\"n\" data-label=\"{heading}\">{}</td>",
                value(found)
            )
        };
        let _ = writeln!(
            rows,
            "<tr><th scope=\"row\">{}</th>{}<td class=\"n\" data-label=\"{untrained}\">{}</td><td class=\"n strong\" data-label=\"Adapted\">{}</td>{}</tr>",
            escape(&title(name)),
            baselines.iter().map(baseline).collect::<String>(),
            value(base),
            value(adapted),
            change(name, base, adapted)
        );
    }
    rows
}

/// More classes than this make a table that nobody reads.
const SHOWN_CLASSES: usize = 20;

/// How often each class was taken for each, for each part that says.
fn confusions(evaluations: &[Evaluation]) -> String {
    let table = |evaluation: &Evaluation| {
        let Confusion { labels, counts } = evaluation.confusion.as_ref()?;
        Some(confusion(&evaluation.split, labels, counts))
    };
    evaluations.iter().filter_map(table).collect()
}

/// How often each class was taken for each; nothing of too many classes.
pub(super) fn confusion(of: &str, labels: &[String], counts: &[Vec<usize>]) -> String {
    if !(2..=SHOWN_CLASSES).contains(&labels.len()) {
        return String::new();
    }
    let head: String = labels
        .iter()
        .map(|label| format!("<th class=\"n\">as {}</th>", escape(label)))
        .collect();
    let mut rows = String::new();
    for (i, (label, row)) in labels.iter().zip(counts).enumerate() {
        let cell = |(j, count): (usize, &usize)| {
            let right = if i == j { " right" } else { "" };
            format!(
                "<td class=\"n{right}\">{}</td>",
                human::count(*count as u64)
            )
        };
        let cells: String = row.iter().enumerate().map(cell).collect();
        let _ = writeln!(
            rows,
            "<tr><th scope=\"row\">{}</th>{cells}</tr>",
            escape(label)
        );
    }
    format!(
        "<h3 class=\"basis\">Classes of {0}</h3>\n<div class=\"scroll\"><table class=\"confusion\">\n<thead><tr><th>Examples of</th>{head}</tr></thead>\n\
         <tbody>\n{rows}</tbody>\n</table></div>\n",
        escape(of)
    )
}

fn change(name: &str, base: Option<&f64>, adapted: Option<&f64>) -> String {
    let Some((base, adapted)) = base.zip(adapted) else {
        return "<td class=\"n\" data-label=\"Change\">-</td>".into();
    };
    let gain = if lower_is_better(name) {
        base - adapted
    } else {
        adapted - base
    };
    let class = if gain > 0.0 {
        "better"
    } else if gain < 0.0 {
        "worse"
    } else {
        ""
    };
    let difference = adapted - base;
    let sign = if difference > 0.0 {
        "+"
    } else if difference < 0.0 {
        "\u{2212}"
    } else {
        "\u{b1}"
    };
    format!(
        "<td class=\"n {class}\" data-label=\"Change\">{sign}{}</td>",
        score(difference.abs())
    )
}

fn cost(record: &RunRecord) -> String {
    let train = &record.train_info;
    let share = human::share(train.num_trainable_params, train.num_total_params);
    let speed = train
        .tokens_per_second()
        .map(|speed| format!("{} tokens/s", human::significant(speed, 3)));
    let tokens = format!("{} tokens in training", human::count(train.train_tokens));
    let base = record.meta_info.model_info.file_size;
    let tiles = [
        (
            "Trainable parameters",
            human::count(train.num_trainable_params),
            format!("{share} of {}", human::count(train.num_total_params)),
        ),
        (
            "Peak memory",
            train.peak_memory.map_or("-".into(), human::bytes),
            "resident, whole process".into(),
        ),
        (
            "Training time",
            human::duration(train.train_time),
            format!(
                "{} with loading and evaluation",
                human::duration(record.run_info.total_time)
            ),
        ),
        ("Throughput", speed.unwrap_or("-".into()), tokens),
        (
            "Saved file",
            human::bytes(train.file_size),
            if base == 0 {
                String::new()
            } else {
                format!("base model {}", human::bytes(base))
            },
        ),
    ];
    let tile = |(label, value, detail): &(&str, String, String)| {
        format!(
            "<div><dt>{}</dt><dd>{}<small>{}</small></dd></div>\n",
            escape(label),
            escape(value),
            escape(detail)
        )
    };
    format!(
        "<dl class=\"tiles\">\n{}</dl>\n",
        tiles.iter().map(tile).collect::<String>()
    )
}

fn example(example: &Example) -> String {
    let mut html = String::from("<pre class=\"example\">");
    for segment in &example.segments {
        let _ = write!(
            html,
            "<span class=\"{}\">{}</span>",
            if segment.trained { "trained" } else { "read" },
            escape(&segment.text)
        );
    }
    html.push_str("</pre>\n");
    let mut notes = vec![format!("{} tokens", human::count(example.tokens as u64))];
    if example.trained_tokens > 0 {
        notes.push(format!(
            "<span class=\"trained\">{} count in the loss</span>",
            human::count(example.trained_tokens as u64)
        ));
    }
    notes.extend(
        example
            .label
            .as_ref()
            .map(|label| format!("label <b>{}</b>", escape(label))),
    );
    let _ = writeln!(html, "<p class=\"note\">{}</p>", notes.join(" · "));
    html
}

fn data(record: &RunRecord) -> String {
    let row = |d: &super::DatasetInfo| {
        let (split, source, hash) = (escape(&d.split), escape(&d.source), escape(&d.sha256));
        let examples = human::count(d.examples as u64);
        format!(
            "<tr><td>{split}</td><td>{source}</td><td class=\"n\">{examples}</td><td class=\"hash\">{hash}</td></tr>\n"
        )
    };
    let rows: String = record.meta_info.dataset_info.iter().map(row).collect();
    if rows.is_empty() {
        return rows;
    }
    format!(
        "<div class=\"scroll\"><table>\n<thead><tr><th>Part</th><th>Source</th><th class=\"n\">Examples</th><th>SHA-256</th></tr></thead>\n\
         <tbody>\n{rows}</tbody>\n</table></div>\n"
    )
}

/// The configuration as dotted keys, the form in which each can be overridden.
fn configuration(record: &RunRecord) -> String {
    let mut keys = Vec::new();
    flatten("", &record.run_info.train_config, &mut keys);
    pairs(&keys)
}

fn flatten(prefix: &str, value: &Value, keys: &mut Vec<(String, String)>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                flatten(
                    &if prefix.is_empty() {
                        key.clone()
                    } else {
                        format!("{prefix}.{key}")
                    },
                    value,
                    keys,
                );
            }
        }
        Value::Null => {}
        value => keys.push((prefix.to_owned(), value.to_string())),
    }
}

fn pairs(pairs: &[(String, String)]) -> String {
    let row = |(key, value): &(String, String)| {
        format!(
            "<div><dt>{}</dt><dd>{}</dd></div>\n",
            escape(key),
            escape(value)
        )
    };
    let rows: String = pairs.iter().map(row).collect();
    if rows.is_empty() {
        rows
    } else {
        format!("<dl class=\"pairs\">\n{rows}</dl>\n")
    }
}

/// The words of the command, quoted where a POSIX shell needs it.
fn command(words: &[String]) -> String {
    if words.is_empty() {
        return String::new();
    }
    let plain = |word: &str| {
        !word.is_empty()
            && word
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c))
    };
    let quote = |word: &String| {
        if plain(word) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    format!(
        "<pre>{}</pre>\n",
        escape(&words.iter().map(quote).collect::<Vec<_>>().join(" "))
    )
}

fn environment(record: &RunRecord) -> String {
    let (model, system) = (&record.meta_info.model_info, &record.meta_info.system_info);
    let mut rows: Vec<(&str, String)> = vec![(
        "model",
        format!(
            "{} {}",
            model.name,
            if model.model_type.is_empty() {
                String::new()
            } else {
                format!("({})", model.model_type)
            }
        ),
    )];
    rows.extend(model.sha256.clone().map(|hash| ("model SHA-256", hash)));
    rows.push((
        "system",
        [
            Some(system.system.clone()),
            system.release.clone(),
            Some(system.machine.clone()),
        ]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(" "),
    ));
    rows.push((
        "processor",
        format!(
            "{} ({} threads)",
            system.processor.as_deref().unwrap_or("unknown"),
            system.threads
        ),
    ));
    rows.extend(system.memory.map(|bytes| ("memory", human::bytes(bytes))));
    rows.push(("device", system.accelerator.clone()));
    let own = rows
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()));
    let packages = record
        .meta_info
        .package_info
        .iter()
        .map(|(name, version)| (name.clone(), version.clone()));
    pairs(
        &own.chain(packages)
            .filter(|(_, value)| !value.is_empty())
            .collect::<Vec<_>>(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;
    use frugal_core::events::{Scalars, names};

    #[test]
    fn the_peak_learning_rate_is_that_of_the_schedule() {
        // Logged every ten steps around a peak of 5e-4 at step 5: none of these reaches it.
        let mut report = sample::report();
        report.record.run_info.train_config["train"]["lr"] = 5e-4.into();
        report.log = [(1, 1e-4), (10, 3.18e-4), (20, 1e-4)]
            .map(|(step, rate)| Scalars::new(step).with(names::LEARNING_RATE, rate))
            .to_vec();
        let html = report.to_html().unwrap();
        assert!(html.contains("Peak of the schedule 5e-4") && !html.contains("Peak 3.18e-4"));
        // Where no rate is configured, what is known is what was logged.
        report.record.run_info.train_config = Value::Null;
        assert!(report.to_html().unwrap().contains("Highest logged 3.18e-4"));
    }

    #[test]
    fn the_report_is_complete_and_self_contained() {
        let html = sample::report().to_html().unwrap();
        // FRUGAL_REPORT_OUT=FILE keeps the page to be looked at.
        if let Some(path) = std::env::var_os("FRUGAL_REPORT_OUT") {
            std::fs::write(path, &html).unwrap();
        }
        let shown = [
            "<h2>Quality</h2>",
            "Macro F1",
            // 216 of 436 examples of the test part belong to the commonest class of training.
            "<th class=\"n\">Majority class</th><th class=\"n\">Chance</th><th class=\"n\">Untrained</th>",
            "<td class=\"n\" data-label=\"Majority class\">0.4954</td><td class=\"n\" data-label=\"Chance\">0.5000</td><td class=\"n\" data-label=\"Untrained\">0.5206</td>",
            "<th scope=\"row\">negative</th><td class=\"n right\">196</td><td class=\"n\">20</td>",
            "Peak of the schedule 2e-4",
            "0.8910",
            "+0.3704",
            "487,424",
            "0.362 % of 134,515,008",
            "1.1 GiB",
            "train.lr",
            "0.0002",
            "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "frugal tune --model smollm2-135m",
            "&lt;|im_start|&gt;",
            ">Loss</h3>",
            ">Learning rate</h3>",
            ">Throughput</h3>",
            ">Memory</h3>",
            "Training, smoothed",
            "tokens/s",
        ];
        for text in shown {
            assert!(html.contains(text), "the report lacks {text}");
        }
        assert_eq!(html.matches("<figure>").count(), 4);
        let outside = html.replace("http://www.w3.org/2000/svg", "");
        for reference in [
            "http:", "https:", "<script", "<link", "@import", "url(", "src=",
        ] {
            assert!(
                !outside.contains(reference),
                "the report refers to {reference}"
            );
        }
    }

    #[test]
    fn whatever_the_user_wrote_is_text() {
        let hostile = "<script>alert('x')</script>\"&";
        let mut report = sample::report();
        report.title = hostile.into();
        report.subtitle = hostile.into();
        let record = &mut report.record;
        record.run_info.command.push(hostile.into());
        record.run_info.error_msg = hostile.into();
        record.run_info.train_config = serde_json::json!({ hostile: { hostile: hostile } });
        record.evaluation[0].split = hostile.into();
        record.evaluation[0].base.insert(hostile.into(), 1.0);
        record.meta_info.dataset_info[0].source = hostile.into();
        record.meta_info.model_info.name = hostile.into();
        record
            .meta_info
            .package_info
            .insert(hostile.into(), hostile.into());
        if let Some(example) = &mut report.example {
            example.segments[0].text = hostile.into();
            example.label = Some(hostile.into());
        }
        let html = report.to_html().unwrap().to_lowercase();
        assert!(!html.contains("<script"));
        assert_eq!(
            escape(hostile),
            "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot;&amp;"
        );
        assert!(html.matches("&lt;script&gt;").count() >= 12);
    }

    #[test]
    fn an_empty_run_still_has_a_page() {
        let html = RunReport {
            title: "Empty".into(),
            ..RunReport::default()
        }
        .to_html()
        .unwrap();
        assert!(
            html.contains("<h1>Empty")
                && !html.contains("<figure>")
                && !html.contains("<h2>Quality")
        );
    }

    #[test]
    fn a_loss_that_falls_is_an_improvement() {
        assert!(
            change("eval_loss", Some(&2.0), Some(&1.5))
                .contains("better\" data-label=\"Change\">\u{2212}0.5000")
        );
        assert!(
            change("accuracy", Some(&0.9), Some(&0.8))
                .contains("worse\" data-label=\"Change\">\u{2212}0.1000")
        );
        assert!(change("accuracy", Some(&0.9), Some(&0.9)).contains("\u{b1}0.0000"));
    }

    #[test]
    fn the_command_can_be_pasted_into_a_shell() {
        let words = ["frugal", "tune", "--out", "my run", "it's", ""].map(str::to_owned);
        assert_eq!(
            command(&words),
            "<pre>frugal tune --out &#39;my run&#39; &#39;it&#39;\\&#39;&#39;s&#39; &#39;&#39;</pre>\n"
        );
    }
}
