//! Learning to write contexts into an adapter: what `frugal meta-train` does, for programs.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use frugal_core::data::{DataError, records};
use frugal_core::fs::write_atomic;
use frugal_core::stage::Stage;
use frugal_retrieve::perk::{
    Episode, MetaStep, MetaTrainConfig, PerkConfig, PerkState, Question, Task, Texts, files,
    meta_train,
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Opened, RunError, base};

/// What a run of meta-training is.
pub struct MetaTrainRequest<'a> {
    /// The model.
    pub opened: &'a Opened,
    /// Tasks, one record each.
    pub data: &'a Path,
    /// Folder of the state.
    pub out: &'a Path,
    /// What is learnt.
    pub state: PerkConfig,
    /// How.
    pub train: MetaTrainConfig,
    /// Ends the run after the step that it is in.
    pub stop: &'a AtomicBool,
}

/// What a run of meta-training came to.
#[derive(Clone, Debug, Serialize)]
pub struct MetaTrained {
    /// Folder of the state.
    pub out: PathBuf,
    /// Whether it was stopped before its end; the state is what had been learnt by then.
    pub interrupted: bool,
    /// Why it could not go on, if so; the state is then the last that gave a finite loss.
    pub failed: Option<String>,
    /// Tasks.
    pub tasks: usize,
    /// Steps that the state has learnt from.
    pub steps: u64,
    /// Mean loss of the answers in the first and in the last tenth of the steps.
    pub loss: [f64; 2],
    /// Learnt values: adapter, token weights, learning rates.
    pub parameters: [usize; 3],
    /// Seconds of training.
    pub seconds: f64,
}

/// The file beside a state that says how it was learnt.
pub const META_TRAIN_FILE: &str = "meta_train.json";

struct ReadError(RunError);

impl From<DataError> for ReadError {
    fn from(error: DataError) -> Self {
        Self(error.into())
    }
}

fn text(fields: &Map<String, Value>, name: &str) -> Result<String, String> {
    match fields.get(name) {
        Some(Value::String(text)) if !text.trim().is_empty() => Ok(text.clone()),
        Some(Value::Number(number)) => Ok(number.to_string()),
        Some(_) => Err(format!("`{name}` is not a text, or empty")),
        None => Err(format!("`{name}` is missing")),
    }
}

fn texts(fields: &Map<String, Value>, name: &str) -> Result<Option<Vec<String>>, String> {
    let wrong = || format!("`{name}` is not a list of texts, or one of them is empty");
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) => {
            let one = |value: &Value| value.as_str().map(str::to_owned);
            let all: Option<Vec<String>> = list.iter().map(one).collect();
            let all = all.filter(|all| all.iter().all(|text| !text.trim().is_empty()));
            all.map(Some).ok_or_else(wrong)
        }
        Some(_) => Err(wrong()),
    }
}

fn task(fields: &Map<String, Value>) -> Result<Task, String> {
    const KNOWN: [&str; 5] = ["context", "question", "answer", "support", "id"];
    if let Some(other) = fields.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        return Err(format!(
            "`{other}` is not expected; the columns are {}",
            KNOWN.join(", ")
        ));
    }
    let context = texts(fields, "context")?.filter(|all| !all.is_empty());
    Ok(Task {
        context: context.ok_or("`context`, the list of segments, is missing or empty")?,
        questions: vec![Question {
            question: text(fields, "question")?,
            answer: text(fields, "answer")?,
            support: texts(fields, "support")?.unwrap_or_default(),
        }],
    })
}

/// Tasks of a file: `context` (a list of segments), `question`, `answer`, and where the answer is to
/// be written behind what it rests on, `support` (a list of texts). `id` is without effect.
///
/// # Errors
/// A file that cannot be read, a record without its columns.
pub fn read_tasks(path: &Path) -> Result<Vec<Task>, RunError> {
    Ok(read_placed(path)?
        .into_iter()
        .map(|(_, task)| task)
        .collect())
}

/// The same with their lines.
fn read_placed(path: &Path) -> Result<Vec<(usize, Task)>, RunError> {
    let mut found = Vec::new();
    let read = records(path, |line, fields| -> Result<(), ReadError> {
        let task = task(&fields).map_err(|reason| {
            ReadError(RunError::Invalid(format!(
                "{}:{line}: {reason}",
                path.display()
            )))
        })?;
        found.push((line, task));
        Ok(())
    });
    read.map_err(|ReadError(error)| error)?;
    if found.is_empty() {
        return Err(RunError::Invalid(format!("{}: no task", path.display())));
    }
    Ok(found)
}

/// Learns a state and writes its folder; `observe` sees each step and the number of steps. The folder
/// is this process's from the start, and its files appear together at the end.
///
/// Where learning cannot go on after a step or more, what was learnt is written all the same, and
/// [`MetaTrained::failed`] says why it ended.
///
/// # Errors
/// A folder that is in use or cannot be written to, tasks or settings that cannot be (tasks by file
/// and line), a loss that is not finite before anything was learnt.
pub fn run_meta_train(
    request: &MetaTrainRequest<'_>,
    observe: &mut dyn FnMut(MetaStep, u64),
) -> Result<MetaTrained, RunError> {
    let MetaTrainRequest {
        opened, out, train, ..
    } = request;
    let stage = Stage::begin(out)?;
    let placed = read_placed(request.data)?;
    let backbone = opened.backbone.as_ref();
    let tokenizer = opened.files.tokenizer()?;
    let texts = Texts::new(tokenizer, backbone.info().max_sequence)?;
    for (line, task) in &placed {
        Episode::shuffled(&texts, task, 0).map_err(|error| {
            RunError::Invalid(format!("{}:{line}: {error}", request.data.display()))
        })?;
    }
    let tasks: Vec<Task> = placed.into_iter().map(|(_, task)| task).collect();
    let mut state = PerkState::new(request.state.clone(), backbone, train.seed)?;
    let start = Instant::now();
    let mut losses: Vec<f64> = Vec::new();
    let mut planned = 0;
    let learned = meta_train(
        backbone,
        &texts,
        &mut state,
        &tasks,
        train,
        &mut |step, of| {
            losses.push(step.loss);
            planned = of;
            observe(step, of);
            !request.stop.load(Ordering::Relaxed)
        },
    );
    // The last update of a run that failed was taken back.
    let (steps, failed) = match learned {
        Ok(steps) => (steps, None),
        Err(error) => match losses.len() as u64 {
            0 | 1 => return Err(error.into()),
            seen => (seen - 1, Some(error.to_string())),
        },
    };
    let trained = MetaTrained {
        out: out.to_path_buf(),
        interrupted: failed.is_none() && steps < planned,
        failed,
        tasks: tasks.len(),
        steps,
        loss: ends(&losses),
        parameters: parameters(&state),
        seconds: start.elapsed().as_secs_f64(),
    };
    files::write(stage.path(), &state, backbone, opened.files.name())?;
    base::keep_with_adapter(stage.path(), &opened.files.fingerprint())?;
    let record = json!({
        "model": opened.files.name(),
        "data": request.data,
        "train": train,
        "result": trained,
        "losses": losses,
        "version": env!("CARGO_PKG_VERSION"),
    });
    write_atomic(
        &stage.path().join(META_TRAIN_FILE),
        format!("{record:#}\n").as_bytes(),
    )?;
    stage.finish(files::CONFIG_FILE)?;
    Ok(trained)
}

/// The means of the first and of the last tenth.
fn ends(losses: &[f64]) -> [f64; 2] {
    let tenth = losses.len().div_ceil(10);
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
    [
        mean(&losses[..tenth]),
        mean(&losses[losses.len() - tenth..]),
    ]
}

/// Learnt values of adapter, token weights and learning rates.
fn parameters(state: &PerkState) -> [usize; 3] {
    let rates = state.rates.iter().map(Vec::len).sum();
    [
        state.fast.num_parameters(),
        state.weights.as_ref().map_or(0, |net| net.num_parameters()),
        if state.config.learned_rates { rates } else { 0 },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Task>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tasks.jsonl");
        std::fs::write(&path, text).unwrap();
        read_tasks(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn perk_tasks_are_read_with_and_without_support() {
        let found = read(concat!(
            "{\"id\": 1, \"context\": [\"a\", \"b\"], \"question\": \"q\", \"answer\": 7}\n",
            "{\"context\": [\"c\"], \"question\": \"q\", \"answer\": \"x\", \"support\": [\"c\"]}\n"
        ))
        .unwrap();
        assert_eq!(found[0].context, ["a", "b"]);
        assert_eq!(found[0].questions[0].answer, "7");
        assert_eq!(found[1].questions[0].support, ["c"]);
    }

    #[test]
    fn perk_a_task_that_lacks_something_is_named_with_its_line() {
        let good = "{\"context\": [\"a\"], \"question\": \"q\", \"answer\": \"x\"}\n";
        for (line, named) in [
            ("{\"question\": \"q\", \"answer\": \"x\"}", "`context`"),
            (
                "{\"context\": [], \"question\": \"q\", \"answer\": \"x\"}",
                "`context`",
            ),
            (
                "{\"context\": \"a\", \"question\": \"q\", \"answer\": \"x\"}",
                "list of texts",
            ),
            (
                "{\"context\": [\" \"], \"question\": \"q\", \"answer\": \"x\"}",
                "empty",
            ),
            (
                "{\"context\": [\"a\"], \"question\": \"\", \"answer\": \"x\"}",
                "`question`",
            ),
            (
                "{\"context\": [\"a\"], \"question\": \"q\"}",
                "`answer` is missing",
            ),
            (
                "{\"context\": [\"a\"], \"question\": \"q\", \"answer\": \"x\", \"label\": 1}",
                "`label` is not expected",
            ),
        ] {
            let error = read(&format!("{good}{line}\n")).unwrap_err();
            assert!(error.contains(named) && error.contains(":2:"), "{error}");
        }
    }
}
