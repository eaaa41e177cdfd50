//! Groups of tasks: files of lm-evaluation-harness that name others, and what their scores come to
//! together.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde_yaml_ng::{Mapping, Value};

use super::task::Task;
use super::{EvalError, yaml};

/// Groups within groups, at most.
const DEEPEST: usize = 8;
/// Files that are looked through for the tasks of a group, at most.
const MAX_FILES: usize = 20_000;
/// Folders above that of a group in which its tasks may be.
const FOLDERS_ABOVE: usize = 2;

/// Tasks that are scored together.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// The name that is shown.
    pub alias: String,
    /// Changes whenever scores do.
    pub version: String,
    /// Names of the tasks and groups in it.
    pub members: Vec<String>,
    /// Names of all tasks in it and in its groups.
    pub tasks: Vec<String>,
    /// What is scored over all of them.
    pub metrics: Vec<GroupMetric>,
}

/// A score over the tasks of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMetric {
    /// Metric of the tasks.
    pub metric: String,
    /// Filters; all that the tasks have if there are none.
    pub filters: Vec<String>,
    /// Whether a task counts by its number of samples.
    pub weight_by_size: bool,
}

/// All tasks of a run, and the groups that they belong to.
#[derive(Debug, Default)]
pub struct Plan {
    /// Tasks, each with the folder of its file.
    pub tasks: Vec<(Task, Option<PathBuf>)>,
    /// Groups, an outer one before those in it.
    pub groups: Vec<Group>,
}

impl Plan {
    /// The tasks that texts name, each as [`Task::find`] reads it or the file of a group with
    /// `:FOLDER` behind it for the data of its tasks.
    ///
    /// # Errors
    /// Unknown names, files that are neither tasks nor groups, names that occur twice.
    pub fn new(texts: &[String]) -> Result<Self, EvalError> {
        let mut plan = Self::default();
        for text in texts {
            let (name, data) = text
                .split_once(':')
                .map_or((text.as_str(), None), |(n, d)| (n, Some(d)));
            let path = Path::new(name);
            let is_yaml = path.extension().is_some_and(|e| e == "yaml" || e == "yml");
            let keys = if is_yaml {
                Some(yaml::keys(path)?)
            } else {
                None
            };
            match keys.filter(is_group) {
                Some(keys) => {
                    let mut reader = Reader {
                        file: path,
                        data,
                        known: BTreeMap::new(),
                        looked_in: None,
                        plan: &mut plan,
                    };
                    reader.group(&keys, "", &Mapping::new(), DEEPEST)?;
                }
                None => plan.add(text, Task::find(text)?)?,
            }
        }
        Ok(plan)
    }

    fn add(&mut self, named: &str, task: (Task, Option<PathBuf>)) -> Result<(), EvalError> {
        if self
            .tasks
            .iter()
            .any(|(other, _)| other.name == task.0.name)
        {
            return Err(EvalError::Task {
                task: named.to_owned(),
                reason: format!(
                    "the task `{}` is named twice: results have one entry for each name",
                    task.0.name
                ),
            });
        }
        self.tasks.push(task);
        Ok(())
    }
}

fn is_group(keys: &Mapping) -> bool {
    keys.contains_key("group") && keys.get("task").is_some_and(Value::is_sequence)
}

fn text(keys: &Mapping, key: &str) -> Option<String> {
    keys.get(key).and_then(Value::as_str).map(str::to_owned)
}

/// What a name in a group may stand for.
#[derive(Clone, Default)]
struct Known {
    /// The file of a task or group.
    file: Option<PathBuf>,
    /// Tasks that have the name as a tag.
    tagged: Vec<PathBuf>,
}

struct Reader<'a> {
    /// The group's file.
    file: &'a Path,
    /// Folder with the data of its tasks.
    data: Option<&'a str>,
    known: BTreeMap<String, Known>,
    /// How many folders up the names are known from.
    looked_in: Option<usize>,
    plan: &'a mut Plan,
}

/// Keys of a group that say nothing about its tasks.
const OF_GROUP: [&str; 6] = [
    "group",
    "group_alias",
    "task",
    "aggregate_metric_list",
    "metadata",
    "tag",
];

impl Reader<'_> {
    fn fail(&self, reason: String) -> EvalError {
        EvalError::Task {
            task: self.file.display().to_string(),
            reason,
        }
    }

    /// Reads a group with all that is in it; gives its name and those of its tasks.
    fn group(
        &mut self,
        keys: &Mapping,
        outer: &str,
        overrides: &Mapping,
        depth: usize,
    ) -> Result<(String, Vec<String>), EvalError> {
        let own = text(keys, "group").ok_or_else(|| self.fail("`group` must be a name".into()))?;
        let name = format!("{outer}{own}");
        if depth == 0 {
            return Err(self.fail(format!(
                "`{name}`: more than {DEEPEST} groups are in one another"
            )));
        }
        let version = keys.get("metadata").and_then(|m| m.get("version"));
        let place = self.plan.groups.len();
        self.plan.groups.push(Group {
            alias: text(keys, "group_alias").unwrap_or_else(|| name.clone()),
            name: name.clone(),
            version: version.map_or("N/A".into(), |v| {
                v.as_str().map_or_else(|| scalar(v), str::to_owned)
            }),
            metrics: self.metrics(keys)?,
            ..Group::default()
        });
        // What is said for the group holds for its tasks, unless an outer group says otherwise.
        let mut all: Mapping = keys
            .iter()
            .filter(|(key, _)| !key.as_str().is_some_and(|key| OF_GROUP.contains(&key)))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        all.extend(overrides.clone());
        let (mut members, mut tasks) = (Vec::new(), Vec::new());
        let items = keys.get("task").and_then(Value::as_sequence).cloned();
        for item in items.unwrap_or_default() {
            for (member, leaves) in self.member(&item, &name, &all, depth)? {
                members.push(member);
                tasks.extend(leaves);
            }
        }
        if tasks.is_empty() {
            return Err(self.fail(format!("the group `{name}` has no tasks")));
        }
        let group = &mut self.plan.groups[place];
        (group.members, group.tasks) = (members, tasks.clone());
        Ok((name, tasks))
    }

    fn metrics(&self, keys: &Mapping) -> Result<Vec<GroupMetric>, EvalError> {
        let entries = match keys.get("aggregate_metric_list") {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Sequence(entries)) => entries.clone(),
            Some(one) => vec![one.clone()],
        };
        let metric = |entry: &Value| -> Result<GroupMetric, EvalError> {
            let mut entry = entry.as_mapping().cloned().unwrap_or_default();
            let fail = |reason: &str| self.fail(format!("`aggregate_metric_list`: {reason}"));
            let metric = text(&entry, "metric").ok_or_else(|| fail("an entry has no `metric`"))?;
            match entry.remove("aggregation") {
                None => {}
                Some(rule) if rule == "mean" => {}
                Some(_) => return Err(fail("only `aggregation: mean` is supported")),
            }
            let filters = match entry.remove("filter_list") {
                None | Some(Value::Null) => Vec::new(),
                Some(Value::Sequence(names)) => names
                    .iter()
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect(),
                Some(name) => name.as_str().map(str::to_owned).into_iter().collect(),
            };
            let weight_by_size = match entry.remove("weight_by_size") {
                None => true,
                Some(value) => value
                    .as_bool()
                    .ok_or_else(|| fail("`weight_by_size` must be true or false"))?,
            };
            entry.remove("metric");
            if let Some(key) = entry.keys().find_map(Value::as_str) {
                return Err(fail(&format!("`{key}` is not supported")));
            }
            Ok(GroupMetric {
                metric,
                filters,
                weight_by_size,
            })
        };
        entries.iter().map(metric).collect()
    }

    /// What an item of the list `task` stands for: names, each with those of its tasks.
    fn member(
        &mut self,
        item: &Value,
        group: &str,
        overrides: &Mapping,
        depth: usize,
    ) -> Result<Vec<(String, Vec<String>)>, EvalError> {
        if let Some(name) = item.as_str() {
            return self.by_name(name, overrides, depth);
        }
        let Some(keys) = item.as_mapping() else {
            return Err(self.fail(format!("`task` of `{group}` holds {item:?}")));
        };
        if let Some(name) = text(keys, "group") {
            if self.lookup(&name).is_none_or(|known| known.file.is_none()) {
                let found = self.group(keys, &format!("{group}::"), overrides, depth - 1)?;
                return Ok(vec![found]);
            }
            let mut all = overrides.clone();
            all.extend(keys.clone());
            all.remove("group");
            return self.by_name(&name, &all, depth);
        }
        let name = text(keys, "task").ok_or_else(|| {
            self.fail(format!("`task` of `{group}` holds an entry without a name"))
        })?;
        let mut all = overrides.clone();
        all.extend(keys.clone());
        if self.lookup(&name).is_some() {
            all.remove("task");
            return self.by_name(&name, &all, depth);
        }
        let name = format!("{group}::{name}");
        all.insert("task".into(), name.as_str().into());
        let file = self.file.to_owned();
        self.task(all, &file)?;
        Ok(vec![(name.clone(), vec![name])])
    }

    fn by_name(
        &mut self,
        name: &str,
        overrides: &Mapping,
        depth: usize,
    ) -> Result<Vec<(String, Vec<String>)>, EvalError> {
        let Some(known) = self.lookup(name) else {
            return Err(self.fail(format!(
                "`{name}` is neither a task nor a group in the folder of {} or in those above it",
                self.file.display()
            )));
        };
        if let Some(file) = known.file {
            let keys = yaml::keys(&file)?;
            if is_group(&keys) {
                return self
                    .group(&keys, "", overrides, depth - 1)
                    .map(|found| vec![found]);
            }
            return self
                .overridden(keys, overrides, &file)
                .map(|name| vec![(name.clone(), vec![name])]);
        }
        let mut found = Vec::new();
        for file in known.tagged {
            let name = self.overridden(yaml::keys(&file)?, overrides, &file)?;
            found.push((name.clone(), vec![name]));
        }
        Ok(found)
    }

    fn overridden(
        &mut self,
        mut keys: Mapping,
        overrides: &Mapping,
        file: &Path,
    ) -> Result<String, EvalError> {
        let changes = overrides
            .iter()
            .filter(|(key, _)| key.as_str() != Some("task"));
        keys.extend(changes.map(|(key, value)| (key.clone(), value.clone())));
        self.task(keys, file)
    }

    fn task(&mut self, keys: Mapping, file: &Path) -> Result<String, EvalError> {
        let mut task = yaml::task_of(keys, file)?;
        if let Some(data) = self.data {
            if task.source.hub.path.is_empty() && task.source.hub.test.is_empty() {
                return Err(self.fail(format!(
                    "`{}` has no splits to look for in {data}",
                    task.name
                )));
            }
            task.source.test = data.to_owned();
            task.source.fewshot.clear();
        }
        let name = task.name.clone();
        // A task may belong to several groups and is asked once.
        if self.plan.tasks.iter().all(|(other, _)| other.name != name) {
            self.plan
                .tasks
                .push((task, file.parent().map(Path::to_owned)));
        }
        Ok(name)
    }

    /// What a name stands for, looked for in the group's folder and, if need be, in those above.
    fn lookup(&mut self, name: &str) -> Option<Known> {
        loop {
            if let Some(known) = self.known.get(name) {
                return Some(known.clone());
            }
            let up = self.looked_in.map_or(0, |up| up + 1);
            if up > FOLDERS_ABOVE {
                return None;
            }
            self.looked_in = Some(up);
            let folder = self.file.parent().unwrap_or(Path::new(""));
            let folder = if folder.as_os_str().is_empty() {
                Path::new(".")
            } else {
                folder
            };
            let folder = folder.canonicalize().ok()?;
            if let Some(folder) = folder.ancestors().nth(up) {
                self.look_through(folder);
            }
        }
    }

    fn look_through(&mut self, folder: &Path) {
        let mut files = Vec::new();
        yaml_files(folder, DEEPEST, &mut files);
        files.sort();
        let mut tags: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
        let mut seen = HashSet::new();
        for file in files {
            // Files that are no tasks are nobody's business here.
            let Ok(keys) = yaml::keys(&file) else {
                continue;
            };
            let name = text(&keys, if is_group(&keys) { "group" } else { "task" });
            let Some(name) = name.filter(|name| seen.insert(name.clone())) else {
                continue;
            };
            let tag = keys.get("tag").cloned().unwrap_or_default();
            let names = match tag {
                Value::Sequence(names) => names,
                one => vec![one],
            };
            for tag in names.iter().filter_map(Value::as_str) {
                tags.entry(tag.to_owned()).or_default().push(file.clone());
            }
            self.known.entry(name).or_default().file.get_or_insert(file);
        }
        for (tag, files) in tags {
            self.known.entry(tag).or_default().tagged = files;
        }
    }
}

fn scalar(value: &Value) -> String {
    serde_yaml_ng::from_value::<serde_json::Value>(value.clone())
        .map_or_else(|_| "N/A".into(), |v| v.to_string())
}

fn yaml_files(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        if files.len() >= MAX_FILES {
            return;
        }
        if path.is_dir() && !path.is_symlink() && depth > 0 {
            yaml_files(&path, depth - 1, files);
        } else if path.extension().is_some_and(|e| e == "yaml") {
            files.push(path);
        }
    }
}

#[cfg(test)]
mod tests;
