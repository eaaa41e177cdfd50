//! Results in the shape that lm-evaluation-harness writes, as JSON and as a table in Markdown.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Prepared;
use super::group::Group;
use super::task::Task;
use crate::measurement::sha256;

/// One number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Metric.
    pub metric: String,
    /// Filter, or `none`.
    pub filter: String,
    /// Value.
    pub value: f64,
    /// Its standard error, where there is one.
    pub stderr: Option<f64>,
    /// Whether more is better.
    pub higher_is_better: bool,
}

/// What a task came to.
#[derive(Clone, Debug)]
pub struct TaskResult {
    /// The task.
    pub task: Task,
    /// Numbers, metric by metric and filter by filter.
    pub measured: Vec<Measured>,
    /// Examples in front of each question.
    pub num_fewshot: usize,
    /// Records in the file.
    pub original: usize,
    /// Records that were measured.
    pub effective: usize,
    /// SHA-256 over the hashes of all samples.
    pub task_hash: String,
    /// SHA-256 of the task's templates.
    pub template_hash: String,
    /// The first prompt as the model read it.
    pub example: String,
    /// SHA-256 of the data file.
    pub data_sha256: String,
    /// Answers that an earlier run had given.
    pub resumed: usize,
}

/// What a whole evaluation came to.
#[derive(Clone, Debug, Default)]
pub struct EvalResults {
    /// Task by task.
    pub tasks: Vec<TaskResult>,
    /// Groups that the tasks belong to; one is scored when all of its tasks are there.
    pub groups: Vec<Group>,
    /// What was evaluated and how: becomes `config`.
    pub config: Map<String, Value>,
    /// Source of the chat template, if one was applied.
    pub chat_template: Option<String>,
    /// Seconds that it took.
    pub seconds: f64,
    /// When it began, in seconds since 1970.
    pub date: u64,
}

impl TaskResult {
    pub(super) fn new(task: &Task, prepared: &Prepared) -> Self {
        let hashes: String = prepared.samples.iter().map(|s| s.hash.as_str()).collect();
        let template = serde_json::to_string(&task.prompt).unwrap_or_default();
        let example = prepared.samples.first().map(|s| match &s.request {
            super::Request::Choices { context, .. } | super::Request::Generate { context, .. } => {
                context.clone()
            }
            super::Request::Pairs { pairs } => pairs
                .first()
                .map(|(context, _)| context.clone())
                .unwrap_or_default(),
            super::Request::Rolling { text } => text.chars().take(1000).collect(),
        });
        Self {
            task: task.clone(),
            measured: Vec::new(),
            num_fewshot: prepared.num_fewshot,
            original: prepared.original,
            effective: prepared.samples.len(),
            task_hash: sha256(hashes.as_bytes()),
            template_hash: sha256(template.as_bytes()),
            example: example.unwrap_or_default(),
            data_sha256: prepared.sha256.clone(),
            resumed: 0,
        }
    }

    /// Numbers alone.
    #[cfg(test)]
    pub(super) fn of_numbers(task: Task, measured: Vec<Measured>, effective: usize) -> Self {
        Self {
            task,
            measured,
            num_fewshot: 0,
            original: effective,
            effective,
            task_hash: String::new(),
            template_hash: String::new(),
            example: String::new(),
            data_sha256: String::new(),
            resumed: 0,
        }
    }
}

impl EvalResults {
    /// The JSON that lm-evaluation-harness's readers know; template, its hash and the first prompt
    /// are additions.
    pub fn to_json(&self) -> Value {
        let by_task = |value: &dyn Fn(&TaskResult) -> Value| -> Value {
            Value::Object(
                self.tasks
                    .iter()
                    .map(|t| (t.task.name.clone(), value(t)))
                    .collect(),
            )
        };
        let scores = |t: &TaskResult| scores(&t.task.name, t.effective, &t.measured);
        let groups = self.measured_groups();
        let mut results = by_task(&scores);
        let mut members = by_task(&|_| json!([]));
        let mut versions = by_task(&|t| json!(t.task.version));
        let mut group_scores = Map::new();
        for (group, size, measured) in &groups {
            let scores = self::scores(&group.alias, *size, measured);
            results[&group.name] = scores.clone();
            group_scores.insert(group.name.clone(), scores);
            members[&group.name] = json!(group.members);
            versions[&group.name] = json!(group.version);
        }
        let config = |t: &TaskResult| {
            let mut config = json!(t.task);
            config["num_fewshot"] = json!(t.num_fewshot);
            config["template_sha256"] = json!(t.template_hash);
            config["data_sha256"] = json!(t.data_sha256);
            config["example"] = json!(t.example);
            config
        };
        let better = |t: &TaskResult| {
            Value::Object(
                t.measured
                    .iter()
                    .map(|m| (m.metric.clone(), json!(m.higher_is_better)))
                    .collect(),
            )
        };
        json!({
            "results": results,
            "groups": group_scores,
            "group_subtasks": members,
            "configs": by_task(&config),
            "versions": versions,
            "n-shot": by_task(&|t| json!(t.num_fewshot)),
            "higher_is_better": by_task(&better),
            "n-samples": by_task(&|t| json!({ "original": t.original, "effective": t.effective })),
            "config": self.config,
            "date": self.date,
            "chat_template": self.chat_template,
            "chat_template_sha": self.chat_template.as_ref().map(|t| sha256(t.as_bytes())),
            "task_hashes": by_task(&|t| json!(t.task_hash)),
            "total_evaluation_time_seconds": self.seconds.to_string(),
        })
    }

    /// Groups of which all tasks are there, with the number of samples and the scores.
    fn measured_groups(&self) -> Vec<(&Group, usize, Vec<Measured>)> {
        let by_name = |name: &str| self.tasks.iter().find(|t| t.task.name == name);
        let mut all = Vec::new();
        for group in &self.groups {
            let parts: Option<Vec<&TaskResult>> = group.tasks.iter().map(|n| by_name(n)).collect();
            if let Some(parts) = parts {
                let samples = parts.iter().map(|t| t.effective).sum();
                all.push((group, samples, group.measure(by_name)));
            }
        }
        all
    }

    /// The tables that lm-evaluation-harness prints: of tasks, and of groups if there are any.
    pub fn to_markdown(&self) -> String {
        let tasks: Vec<Row<'_>> = self
            .tasks
            .iter()
            .map(|t| Row {
                name: &t.task.name,
                version: &t.task.version,
                shots: t.num_fewshot.to_string(),
                measured: &t.measured,
            })
            .collect();
        let groups = self.measured_groups();
        let groups: Vec<Row<'_>> = groups
            .iter()
            .filter(|(_, _, measured)| !measured.is_empty())
            .map(|(group, _, measured)| Row {
                name: &group.alias,
                version: &group.version,
                shots: String::new(),
                measured,
            })
            .collect();
        let mut out = table("Tasks", &tasks);
        if !groups.is_empty() {
            out.push('\n');
            out += &table("Groups", &groups);
        }
        out
    }
}

fn scores(alias: &str, samples: usize, measured: &[Measured]) -> Value {
    let mut scores = Map::from_iter([
        ("alias".to_owned(), json!(alias)),
        ("sample_len".to_owned(), json!(samples)),
    ]);
    for m in measured {
        scores.insert(format!("{},{}", m.metric, m.filter), json!(m.value));
        scores.insert(
            format!("{}_stderr,{}", m.metric, m.filter),
            m.stderr.map_or(json!("N/A"), |e| json!(e)),
        );
    }
    Value::Object(scores)
}

/// The scores of a task or a group.
struct Row<'a> {
    name: &'a str,
    version: &'a str,
    shots: String,
    measured: &'a [Measured],
}

fn table(of: &str, all: &[Row<'_>]) -> String {
    let mut rows = vec![
        [
            of, "Version", "Filter", "n-shot", "Metric", "", "Value", "", "Stderr",
        ]
        .map(str::to_owned),
    ];
    for t in all {
        let mut first = true;
        let mut measured: Vec<&Measured> = t.measured.iter().collect();
        measured.sort_by(|a, b| (&a.metric, &a.filter).cmp(&(&b.metric, &b.filter)));
        for m in measured {
            let [name, version] = if first {
                [t.name, t.version].map(str::to_owned)
            } else {
                Default::default()
            };
            first = false;
            let arrow = if m.higher_is_better { "↑" } else { "↓" };
            let stderr = m.stderr.map_or("N/A".to_owned(), |e| format!("{e:.4}"));
            let value = format!("{:.4}", m.value);
            let shots = t.shots.clone();
            rows.push([
                name,
                version,
                m.filter.clone(),
                shots,
                m.metric.clone(),
                arrow.into(),
                value,
                "±".into(),
                stderr,
            ]);
        }
    }
    let widths: Vec<usize> = (0..9)
        .map(|i| {
            rows.iter()
                .map(|r| r[i].chars().count())
                .max()
                .unwrap_or(0)
                .max(1)
        })
        .collect();
    let number = |i: usize| matches!(i, 1 | 3 | 6 | 8);
    let mut out = String::new();
    for (n, row) in rows.iter().enumerate() {
        for (i, cell) in row.iter().enumerate() {
            let gap = " ".repeat(widths[i] - cell.chars().count());
            out += &if number(i) && n > 0 {
                format!("|{gap}{cell}")
            } else {
                format!("|{cell}{gap}")
            };
        }
        out.push_str("|\n");
        if n == 0 {
            for (i, width) in widths.iter().enumerate() {
                let rule = "-".repeat((*width).saturating_sub(1).max(2));
                out += &if number(i) {
                    format!("|{rule}:")
                } else {
                    format!("|{rule}-")
                };
            }
            out.push_str("|\n");
        }
    }
    out
}
