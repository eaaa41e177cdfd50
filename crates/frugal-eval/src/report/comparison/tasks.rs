//! Models on tasks: a row for each model, a column for each score on the same records.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde_json::Value;

use crate::measurement::{Measurement, PowerSource, sha256};
use crate::report::markup::{escape, score};
use frugal_core::human;

/// What `frugal eval --tasks` wrote for a model.
#[derive(Clone, Debug, Default)]
pub struct TaskScores {
    /// Name of the folder.
    pub name: String,
    /// The content of its `results.json`.
    pub results: Value,
    /// Model, machine and cost, where they were kept.
    pub measurement: Option<Measurement>,
}

/// What scores must share to stand in one column.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Column {
    task: String,
    /// Records, examples and templates of the task.
    form: String,
    metric: String,
    /// The model whose tokens are counted, for metrics of tokens.
    tokens_of: String,
}

type Scores = BTreeMap<Column, (f64, Option<f64>)>;

/// The beginning of a hash, enough to tell two apart.
fn short(text: &str) -> String {
    text.chars().take(8).collect()
}

impl TaskScores {
    fn model(&self) -> String {
        self.measurement
            .as_ref()
            .map(Measurement::name)
            .or_else(|| {
                let name = &self.results["config"]["model_args"]["pretrained"];
                name.as_str().map(str::to_owned)
            })
            .unwrap_or_default()
    }

    /// What decides the records, prompts and answers of a task, or of all tasks of a group.
    fn form(&self, task: &str) -> String {
        let members = self.results["group_subtasks"][task].as_array();
        match members.filter(|members| !members.is_empty()) {
            // A group within itself cannot be read, but a file may say so.
            Some(_) => {
                let mut forms = BTreeSet::new();
                self.add_forms(task, &mut BTreeSet::new(), &mut forms);
                let all = forms.into_iter().collect::<Vec<_>>().join("; ");
                format!("tasks {}", short(&sha256(all.as_bytes())))
            }
            None => self.form_of_task(task),
        }
    }

    fn add_forms(&self, name: &str, seen: &mut BTreeSet<String>, forms: &mut BTreeSet<String>) {
        if !seen.insert(name.to_owned()) {
            return;
        }
        let members = self.results["group_subtasks"][name].as_array();
        let members = members.into_iter().flatten().filter_map(Value::as_str);
        let mut alone = true;
        for member in members {
            alone = false;
            self.add_forms(member, seen, forms);
        }
        if alone {
            forms.insert(format!("{name}: {}", self.form_of_task(name)));
        }
    }

    fn form_of_task(&self, task: &str) -> String {
        let text = |value: &Value| match value {
            Value::String(text) => short(text),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        let (config, run) = (&self.results["configs"][task], &self.results["config"]);
        let effective = &self.results["n-samples"][task]["effective"];
        let shots = &self.results["n-shot"][task];
        let digest = |value: &Value| match value {
            Value::Null => String::new(),
            Value::String(text) if text.is_empty() => String::new(),
            other => short(&sha256(other.to_string().as_bytes())),
        };
        let drawn = shots.as_u64().is_some_and(|k| k > 0);
        let seed = &run["random_seed"];
        let seed = Some(seed).filter(|seed| drawn && seed.as_u64() != Some(0));
        let order = Some(&run["fewshot_order"]).filter(|_| drawn);
        let writes = config["kind"] == "generate_until";
        let generation = Some(&config["generation"]).filter(|_| writes);
        let chat = match (
            &self.results["chat_template"],
            &run["fewshot_as_multiturn"] == true,
        ) {
            (Value::Null, _) => "",
            (_, true) => "in turns",
            (_, false) => "template",
        };
        let parts = [
            ("data", text(&config["data_sha256"])),
            ("prompt", text(&config["template_sha256"])),
            ("records", text(effective)),
            ("shots", text(shots)),
            ("seed", seed.map_or_else(String::new, text)),
            ("order", order.map_or_else(String::new, text)),
            ("generation", generation.map_or_else(String::new, digest)),
            ("chat", chat.to_owned()),
            ("instruction", digest(&run["system_instruction"])),
        ];
        let known = parts.iter().filter(|(_, value)| !value.is_empty());
        known
            .map(|(name, value)| format!("{name} {value}"))
            .collect::<Vec<_>>()
            .join(", ")
    }

    fn scores(&self) -> Scores {
        let mut found = BTreeMap::new();
        for (task, values) in self.results["results"].as_object().into_iter().flatten() {
            for (key, value) in values.as_object().into_iter().flatten() {
                let (Some((metric, filter)), Some(value)) = (key.split_once(','), value.as_f64())
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
                let by_token = metric.starts_with("token_");
                let column = Column {
                    task: task.clone(),
                    form: self.form(task),
                    metric: format!("{metric}{filter}"),
                    tokens_of: if by_token {
                        self.model()
                    } else {
                        String::new()
                    },
                };
                found.insert(column, (value, error));
            }
        }
        found
    }
}

/// Columns that describe a model and what its evaluation cost; those that nobody knows are left
/// out.
fn described(tasks: &[TaskScores]) -> Vec<(String, Vec<String>)> {
    let of = |value: &dyn Fn(&Measurement) -> Option<String>| -> Vec<String> {
        let one = |t: &TaskScores| t.measurement.as_ref().and_then(value);
        tasks.iter().map(|t| one(t).unwrap_or_default()).collect()
    };
    let energy = |source: PowerSource| {
        of(&|m| {
            let energy = m.cost.energy.filter(|e| e.source == source)?;
            Some(format!("{} J", human::significant(energy.joules, 3)))
        })
    };
    let columns = [
        (
            "Model".to_owned(),
            tasks.iter().map(TaskScores::model).collect(),
        ),
        ("Precision".to_owned(), of(&|m| Some(m.precision.clone()))),
        (
            "Peak memory".to_owned(),
            of(&|m| m.cost.peak_memory.map(human::bytes)),
        ),
        (
            "Time".to_owned(),
            of(&|m| Some(human::duration(m.cost.seconds))),
        ),
        ("Energy, measured".to_owned(), energy(PowerSource::Measured)),
        ("Energy, modelled".to_owned(), energy(PowerSource::Modelled)),
    ];
    let known = |(_, cells): &(String, Vec<String>)| cells.iter().any(|cell| !cell.is_empty());
    columns.into_iter().filter(known).collect()
}

/// The table; nothing without scores.
pub(super) fn table(tasks: &[TaskScores]) -> String {
    let all: Vec<(&TaskScores, Scores)> = tasks.iter().map(|t| (t, t.scores())).collect();
    let columns: BTreeSet<&Column> = all.iter().flat_map(|(_, s)| s.keys()).collect();
    if columns.is_empty() {
        return String::new();
    }
    let forms = |column: &Column| {
        let same = columns.iter().filter(|c| c.task == column.task);
        same.map(|c| &c.form).collect::<BTreeSet<_>>().len()
    };
    let apart = columns.iter().any(|column| forms(column) > 1);
    let heading = |column: &Column| {
        let mut lines = vec![column.task.clone(), column.metric.clone()];
        if forms(column) > 1 {
            lines.push(column.form.clone());
        }
        if !column.tokens_of.is_empty() {
            lines.push(format!("tokens of {}", column.tokens_of));
        }
        lines
    };
    let described = described(tasks);
    let mut html = String::from(
        "<div class=\"scroll\"><table class=\"cards\">\n<thead><tr><th>Evaluation</th>",
    );
    for (name, _) in &described {
        let _ = write!(html, "<th>{}</th>", escape(name));
    }
    for column in &columns {
        let lines: Vec<String> = heading(column).iter().map(|line| escape(line)).collect();
        let _ = write!(html, "<th class=\"n\">{}</th>", lines.join("<br>"));
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    for (i, (task, scores)) in all.iter().enumerate() {
        let _ = write!(html, "<tr><th scope=\"row\">{}</th>", escape(&task.name));
        for (name, cells) in &described {
            let (name, cell) = (escape(name), escape(&cells[i]));
            let _ = write!(html, "<td data-label=\"{name}\">{cell}</td>");
        }
        for column in &columns {
            let shown = scores
                .get(*column)
                .map_or("-".to_owned(), |(value, error)| {
                    error.map_or_else(
                        || score(*value),
                        |e| format!("{} \u{b1} {}", score(*value), score(e)),
                    )
                });
            let label = escape(&heading(column).join(" "));
            let _ = write!(html, "<td class=\"n\" data-label=\"{label}\">{shown}</td>");
        }
        html.push_str("</tr>\n");
    }
    let apart = if apart {
        " Scores on other records, prompts or examples of a task have a column of their own: they cannot be compared."
    } else {
        ""
    };
    let _ = writeln!(
        html,
        "</tbody>\n</table></div>\n<p class=\"note\">With standard errors.{apart}</p>"
    );
    html
}
