//! Each run of a suite in a process of its own, so that its peak memory is its own and a crash loses
//! no other.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use frugal::measure::machine::with_flops;
use frugal::run::bench::{
    Assignment, BenchError, BenchSettings, PlannedRun, RunEnd, Runner, ScoreConfig, score_record,
};
use frugal_core::fs::write_atomic;
use frugal_eval::efficiency::{EFFICIENCY_FILE, Efficiency, GENERATION_FILE, PowerModel, watch};
use frugal_eval::report::{RECORD_FILE, RunRecord};

use crate::args::END_WITH_STDIN;
use crate::ui::interrupt;

/// What is said when the user asks to stop.
pub(super) const STOPPING: &str =
    "stopping this run with a checkpoint; press Ctrl-C again to end at once";

/// Between two looks whether the user asked to stop.
const LOOK: Duration = Duration::from_millis(50);

/// Starts this program again for each run.
pub(super) struct Processes;

impl Runner for Processes {
    fn check(&mut self, run: &PlannedRun) -> Result<RunEnd, BenchError> {
        planned(run).map(|ended| ended.end()).map_err(runner_error)
    }

    fn run(&mut self, assignment: &Assignment<'_>) -> Result<RunEnd, BenchError> {
        let ended = match &assignment.run.settings {
            BenchSettings::Score(config) => score(config, assignment.folder),
            _ => train(assignment),
        };
        ended.map(|ended| ended.end()).map_err(runner_error)
    }
}

fn runner_error(error: anyhow::Error) -> BenchError {
    BenchError::Runner(error.into())
}

/// Plans a run of `frugal tune`, in a process of its own, since what a plan of all weights takes
/// would stay with this one.
fn planned(run: &PlannedRun) -> Result<Ended> {
    let mut settings = tempfile::NamedTempFile::new()
        .context("the settings of a run cannot be kept for a check")?;
    settings.write_all(run.settings.to_toml()?.as_bytes())?;
    let mut command = this_program()?;
    command
        .args(["plan", "--quiet", "--json", "--config"])
        .arg(settings.path());
    process(command, None)
}

/// A run of `frugal tune` or `frugal pretrain`, gone on with where it was stopped.
fn train(assignment: &Assignment<'_>) -> Result<Ended> {
    let folder = assignment.folder;
    let mut command = this_program()?;
    command
        .arg(assignment.run.job.work.name())
        .arg("--config")
        .arg(assignment.settings_file)
        .args(["--quiet", "--json", "--out"])
        .arg(folder);
    if assignment.resume {
        command.arg("--resume");
        if matches!(assignment.run.settings, BenchSettings::Tune(_)) {
            command.arg(folder);
        }
    }
    let sampled = assignment.sampled;
    let ended = process(command, sampled.then_some(folder))?;
    let is_new_model = matches!(assignment.run.settings, BenchSettings::Pretrain(_));
    if sampled && ended.status.success() && is_new_model {
        return process(generation(&folder.to_string_lossy(), None, folder)?, None);
    }
    Ok(ended)
}

/// Scores and times, and leaves a record of it.
fn score(config: &ScoreConfig, folder: &Path) -> Result<Ended> {
    let begin = Instant::now();
    let quantize = config.quantize_name();
    let results = folder.join("eval");
    let mut command = this_program()?;
    command.args([
        "eval",
        "--quiet",
        "--json",
        "--model",
        &config.model,
        "--quantize",
        &quantize,
    ]);
    command
        .args([
            "--tasks",
            &format!("perplexity:{}", config.data),
            "--limit",
            &config.limit.to_string(),
            "--out",
        ])
        .arg(&results);
    let scored = process(command, None)?;
    if !scored.status.success() {
        return Ok(scored);
    }
    let timed = process(
        generation(&config.model, Some(&quantize), folder)?,
        Some(folder),
    )?;
    if timed.status.success() {
        score_record(config, folder, &results, begin.elapsed().as_secs_f64())?
            .write(&folder.join(RECORD_FILE))?;
    }
    Ok(timed)
}

/// The command that times a model at generating 33 tokens after prompts of 32 and keeps what it
/// found in the folder.
fn generation(model: &str, quantize: Option<&str>, folder: &Path) -> Result<Command> {
    let mut command = this_program()?;
    command.args([
        "measure",
        "runtime",
        "--quiet",
        "--json",
        "--model",
        model,
        "--quantize",
        quantize.unwrap_or("none"),
    ]);
    command
        .args([
            "--prompts",
            "32",
            "--outputs",
            "1,33",
            "--held-out",
            "17",
            "--trials",
            "3",
            "--save",
        ])
        .arg(folder.join(GENERATION_FILE));
    Ok(command)
}

/// How a process ended.
struct Ended {
    status: ExitStatus,
    message: String,
}

impl Ended {
    fn end(&self) -> RunEnd {
        if self.status.success() {
            RunEnd::Done
        } else if self.status.code() == Some(130) {
            RunEnd::Interrupted
        } else {
            RunEnd::Failed(self.reason())
        }
    }

    /// What it said about its failure.
    fn reason(&self) -> String {
        let said = self.message.trim().trim_start_matches("error: ");
        if said.is_empty() {
            format!("ended with {}", self.status)
        } else {
            said.to_owned()
        }
    }
}

/// A command line of this program, for a process that ends with this one.
fn this_program() -> Result<Command> {
    let mut command =
        Command::new(std::env::current_exe().context("this program's own file cannot be found")?);
    // What it says on standard error is the reason if it fails.
    command.arg(END_WITH_STDIN).env_remove(crate::log::VARIABLE);
    Ok(command)
}

/// Runs a process to its end; with a folder, what it cost is kept there.
fn process(mut command: Command, sampled: Option<&Path>) -> Result<Ended> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context("the run cannot be started")?;
    // Open while this process lives and is not asked to stop: its end is what tells the other one,
    // which a signal to this process alone does not reach.
    let stdin = child.stdin.take();
    let over = Arc::new(AtomicBool::new(false));
    let passed_on = std::thread::spawn({
        let (stop, over) = (interrupt::flag(STOPPING), Arc::clone(&over));
        move || {
            while !interrupt::asked(&stop) && !over.load(Ordering::SeqCst) {
                std::thread::sleep(LOOK);
            }
            drop(stdin);
        }
    });
    let stderr = child.stderr.take();
    // Read beside the run, which would wait for a full pipe.
    let message = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What cannot be read is not told.
        let _ = stderr.map(|mut pipe| pipe.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let status = match sampled {
        None => child.wait()?,
        Some(folder) => {
            let (status, samples) = watch(&mut child)?;
            let processors = std::thread::available_parallelism().map_or(1, usize::from);
            if let (true, Some(found)) = (
                status.success(),
                Efficiency::new(&samples, processors, PowerModel::default()),
            ) {
                let found = match RunRecord::read(&folder.join(RECORD_FILE)) {
                    Ok(record) => with_flops(found, &record, None),
                    Err(_) => found,
                };
                let text = serde_json::to_string_pretty(&found)? + "\n";
                write_atomic(&folder.join(EFFICIENCY_FILE), text.as_bytes())?;
            }
            status
        }
    };
    over.store(true, Ordering::SeqCst);
    // It only sleeps.
    let _ = passed_on.join();
    Ok(Ended {
        status,
        message: message.join().unwrap_or_default(),
    })
}
