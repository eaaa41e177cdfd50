//! The runs of a suite: checked before the first one starts, each in a process of its own, taken up
//! again where they stopped.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use frugal::run::{PretrainConfig, TuneConfig};
use frugal_core::config;
use frugal_core::fs::{is_temporary, write_atomic};
use frugal_core::human;
use frugal_core::lock::{FolderLock, LOCK_FILE};
use frugal_eval::efficiency::{EFFICIENCY_FILE, Efficiency, GENERATION_FILE, PowerModel, watch};
use frugal_eval::report::{RECORD_FILE, RunRecord, Status};
use frugal_eval::suite::{Job, Suite, Work, matches};
use indicatif::{ProgressBar, ProgressDrawTarget};
use serde_json::Value;

use super::Flags;
use super::score::{self, ScoreConfig};
use crate::args::Output;
use crate::cli::END_WITH_STDIN;
use crate::commands::measure::efficiency::with_flops;
use crate::ui::progress::{Phase, style};
use crate::ui::{self, interrupt};

/// A run with its settings resolved.
pub struct Resolved {
    pub job: Job,
    pub settings: Settings,
}

/// The configuration of a run's command.
pub enum Settings {
    Tune(Box<TuneConfig>),
    Pretrain(Box<PretrainConfig>),
    Score(ScoreConfig),
}

impl Settings {
    fn to_toml(&self) -> Result<String> {
        Ok(match self {
            Self::Tune(config) => config::to_toml(config)?,
            Self::Pretrain(config) => config::to_toml(config)?,
            Self::Score(config) => config::to_toml(config)?,
        })
    }

    fn to_json(&self) -> Result<Value> {
        Ok(match self {
            Self::Tune(config) => serde_json::to_value(config)?,
            Self::Pretrain(config) => serde_json::to_value(config)?,
            Self::Score(config) => serde_json::to_value(config)?,
        })
    }

    /// Data files.
    fn files(&self) -> Vec<&str> {
        match self {
            Self::Tune(c) => [
                Some(&c.data.train),
                c.data.validation.as_ref(),
                c.data.test.as_ref(),
            ]
            .into_iter()
            .flatten()
            .flat_map(|names| names.lines())
            .collect(),
            Self::Pretrain(c) => vec![&c.data],
            Self::Score(c) => vec![&c.data],
        }
    }

    /// What a list of runs says about this one.
    pub fn summary(&self) -> String {
        match self {
            Self::Tune(c) => format!("{} on {}, lr {:e}", c.method.name, c.model, c.train.lr),
            Self::Pretrain(c) => format!("pretrain, lr {:e}", c.train.lr),
            Self::Score(c) => format!("{} held as {}", c.model, c.quantize_name()),
        }
    }
}

/// Every run's configuration, checked before the first of them starts; those that `--only` and
/// `--seeds` leave.
pub fn resolve(
    suite: &Suite,
    flags: &Flags,
    out: &Path,
    allowed: &[Work],
) -> Result<Vec<Resolved>> {
    let jobs = suite.jobs(&flags.data_dir);
    if let Some(other) = jobs.iter().find(|job| !allowed.contains(&job.work)) {
        let (work, other) = (other.work.name(), &other.name);
        bail!(
            "run `{other}` is one of `frugal {work}`, which this comparison does not take; `frugal bench efficiency` takes all kinds"
        );
    }
    if let Some(unknown) = flags
        .only
        .iter()
        .find(|pattern| jobs.iter().all(|job| !matches(pattern, &job.name)))
    {
        let mut names: Vec<&str> = jobs.iter().map(|job| job.name.as_str()).collect();
        names.dedup();
        let more = if names.len() > SHOWN_NAMES {
            ", ..."
        } else {
            ""
        };
        names.truncate(SHOWN_NAMES);
        bail!(
            "the suite has no run `{unknown}`; it has: {}{more}",
            names.join(", ")
        );
    }
    let wanted = |job: &Job| {
        let named =
            flags.only.is_empty() || flags.only.iter().any(|pattern| matches(pattern, &job.name));
        named && (flags.seeds.is_empty() || flags.seeds.contains(&job.seed))
    };
    let jobs: Vec<Job> = jobs.into_iter().filter(wanted).collect();
    if jobs.is_empty() {
        bail!("no run is left: the suite's seeds are {:?}", suite.seeds);
    }
    jobs.into_iter()
        .map(|job| one_resolved(job, flags, out))
        .collect()
}

/// More names than this help nobody to find the right one.
const SHOWN_NAMES: usize = 60;

fn one_resolved(job: Job, flags: &Flags, out: &Path) -> Result<Resolved> {
    let mut settings =
        check(&job, &flags.overrides).with_context(|| format!("run `{}`", job.name))?;
    for file in settings.files() {
        let is_file = Path::new(file).exists() && !Path::new(file).is_dir();
        if !is_file && frugal_core::data::builtin(file).is_err() {
            bail!(
                "{file}: no such file in {}: say where the suite's data are with `--data-dir`",
                flags.data_dir.display()
            );
        }
    }
    let folder = out.join(job.folder());
    match &mut settings {
        Settings::Tune(config) => config.out = folder,
        Settings::Pretrain(config) => config.out = folder,
        Settings::Score(_) => {}
    }
    Ok(Resolved { job, settings })
}

/// A run's configuration; its output folder is not known yet.
pub fn check(job: &Job, overrides: &[String]) -> Result<Settings> {
    match job.work {
        Work::Tune => {
            let mut config = config::load_with::<TuneConfig>(
                None,
                &job.settings,
                overrides,
                TuneConfig::problems,
            )?;
            config.resolve();
            Ok(Settings::Tune(Box::new(config)))
        }
        Work::Pretrain => {
            // No setting of a suite, but a run without one would be refused.
            let mut table = job.settings.clone();
            table.insert("out".into(), "runs".into());
            let mut config = config::load_with::<PretrainConfig>(
                None,
                &table,
                overrides,
                PretrainConfig::problems,
            )?;
            config.resolve();
            Ok(Settings::Pretrain(Box::new(config)))
        }
        Work::Eval => Ok(Settings::Score(config::load_with(
            None,
            &job.settings,
            overrides,
            ScoreConfig::problems,
        )?)),
    }
}

/// Does the runs that are not done; whether it was stopped before the last. With `sampled`, memory,
/// processor time and power of each are sampled, and models are timed at generating.
pub fn run_all(jobs: &[Resolved], out: &Path, output: Output, sampled: bool) -> Result<bool> {
    let mut open = Vec::new();
    for resolved in jobs {
        if !finished(
            &out.join(resolved.job.folder()),
            &resolved.settings,
            sampled,
        )? {
            open.push(resolved);
        }
    }
    let stop = interrupt::flag(STOPPING);
    if !planned(&open, output, &stop)? {
        return Ok(true);
    }
    let bar = progress_bar(jobs.len() as u64, output);
    bar.inc((jobs.len() - open.len()) as u64);
    let started = Instant::now();
    let mut stopped = false;
    for (done, resolved) in (1u32..).zip(&open) {
        let name = resolved.job.folder();
        bar.set_message(format!("{name} · "));
        let line = one(resolved, &out.join(&name), sampled)?;
        if interrupt::asked(&stop) {
            stopped = true;
            break;
        }
        let left = started.elapsed().as_secs_f64() / f64::from(done)
            * (open.len() as f64 - f64::from(done));
        report_line(
            &bar,
            output,
            &format!("{name}: {line} · about {} left", human::duration(left)),
        );
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(stopped)
}

/// Plans the runs of `frugal tune`, so that a method that does not fit the model is found before
/// the first of them starts; false if it was stopped. Seeds of one name are alike. In processes of
/// their own, since what a plan of all weights takes would stay with this one.
fn planned(open: &[&Resolved], output: Output, stop: &AtomicBool) -> Result<bool> {
    let mut names = BTreeSet::new();
    let tuned: Vec<&&Resolved> = open
        .iter()
        .filter(|r| r.job.work == Work::Tune && names.insert(r.job.name.as_str()))
        .collect();
    if tuned.is_empty() {
        return Ok(true);
    }
    let _phase = Phase::new(
        output,
        format!("checking the runs of `frugal tune`: {}", tuned.len()),
    );
    for resolved in tuned {
        let mut settings = tempfile::NamedTempFile::new()
            .context("the settings of a run cannot be kept for a check")?;
        settings.write_all(resolved.settings.to_toml()?.as_bytes())?;
        let mut command = this_program()?;
        command
            .args(["plan", "--quiet", "--json", "--config"])
            .arg(settings.path());
        let ended = run(command, None)?;
        if interrupt::asked(stop) {
            return Ok(false);
        }
        if !ended.status.success() {
            bail!("run `{}`: {}", resolved.job.name, ended.reason());
        }
    }
    Ok(true)
}

/// Whether a run is done; one with other settings is not to be mixed in.
fn finished(folder: &Path, settings: &Settings, sampled: bool) -> Result<bool> {
    let Ok(record) = RunRecord::read(&folder.join(RECORD_FILE)) else {
        return Ok(false);
    };
    if record.train_info.status != Status::Success {
        return Ok(false);
    }
    let plain = |mut value: Value| {
        if let Some(map) = value.as_object_mut() {
            map.remove("out");
        }
        value
    };
    // Numbers of the record went through text, so the given ones do too.
    let given: Value = serde_json::from_str(&settings.to_json()?.to_string())?;
    if plain(record.run_info.train_config) != plain(given) {
        bail!(
            "{}: this run was made with other settings: give another `--out`, or remove the folder",
            folder.display()
        );
    }
    let timed = matches!(settings, Settings::Tune(_)) || folder.join(GENERATION_FILE).exists();
    Ok(!sampled || timed && folder.join(EFFICIENCY_FILE).exists())
}

/// Does one run in a process of its own; returns what is said about it.
fn one(resolved: &Resolved, folder: &Path, sampled: bool) -> Result<String> {
    wait_for_orphan(folder)?;
    if sampled && folder.exists() {
        // What a part of a run costs says nothing about the whole.
        std::fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    // Names may hold dots.
    let settings = PathBuf::from(format!("{}.toml", folder.display()));
    write_atomic(&settings, resolved.settings.to_toml()?.as_bytes())?;
    let ended = match &resolved.settings {
        Settings::Score(config) => score::run(config, folder)?,
        _ => train(resolved, &settings, folder, sampled)?,
    };
    if ended.status.success() {
        let record = RunRecord::read(&folder.join(RECORD_FILE))?;
        let scores = record
            .evaluation
            .last()
            .map(|e| crate::ui::run::scores(&e.adapted))
            .unwrap_or_default();
        return Ok(format!(
            "{scores} · {}",
            human::duration(record.run_info.total_time)
        ));
    }
    if ended.status.code() == Some(130) {
        return Ok("interrupted".into());
    }
    let reason = ended.reason();
    let mut record = RunRecord::default();
    record.run_info.experiment_name = resolved.job.folder();
    record.run_info.train_config = resolved.settings.to_json()?;
    record.run_info.error_msg.clone_from(&reason);
    record.train_info.status = Status::Failed;
    record.write(&folder.join(RECORD_FILE))?;
    Ok(format!("failed: {reason}"))
}

/// A run of `frugal tune` or `frugal pretrain`, gone on with where it was stopped.
fn train(resolved: &Resolved, settings: &Path, folder: &Path, sampled: bool) -> Result<Ended> {
    let mut command = this_program()?;
    command
        .arg(resolved.job.work.name())
        .arg("--config")
        .arg(settings)
        .args(["--quiet", "--json", "--out"])
        .arg(folder);
    if folder.exists() {
        // A failed attempt has nothing to go on from but its checkpoints.
        let record = folder.join(RECORD_FILE);
        if record.exists() {
            std::fs::remove_file(&record).with_context(|| record.display().to_string())?;
        }
        if is_begun(folder) {
            command.arg("--resume");
            if matches!(resolved.settings, Settings::Tune(_)) {
                command.arg(folder);
            }
        }
    }
    let ended = run(command, sampled.then_some(folder))?;
    if sampled && ended.status.success() && matches!(resolved.settings, Settings::Pretrain(_)) {
        return run(
            score::generation(&folder.to_string_lossy(), None, folder)?,
            None,
        );
    }
    Ok(ended)
}

/// Whether a run left something in its folder.
fn is_begun(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .any(|name| name != LOCK_FILE && !is_temporary(&name))
}

/// Time that the run of a comparison that was killed gets to write its checkpoint.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for a process that still writes to the folder of a run, begun by an earlier one of this
/// comparison.
fn wait_for_orphan(folder: &Path) -> Result<()> {
    if folder.exists() {
        drop(FolderLock::acquire_within(folder, PATIENCE)?);
    }
    Ok(())
}

/// What is said when the user asks to stop.
const STOPPING: &str = "stopping this run with a checkpoint; press Ctrl-C again to end at once";
/// Between two looks whether it was asked for.
const LOOK: Duration = Duration::from_millis(50);

/// How a process ended.
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    message: String,
}

impl Ended {
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
pub(super) fn this_program() -> Result<Command> {
    let mut command =
        Command::new(std::env::current_exe().context("this program's own file cannot be found")?);
    command.arg(END_WITH_STDIN);
    Ok(command)
}

/// Runs a process to its end; with a folder, what it cost is kept there.
pub(super) fn run(mut command: Command, sampled: Option<&Path>) -> Result<Ended> {
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

fn progress_bar(length: u64, output: Output) -> ProgressBar {
    if output.quiet || !ui::stderr_is_terminal() {
        return ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::hidden());
    }
    let template = "{pos}/{len} {wide_bar:.cyan} {msg}{elapsed}";
    ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr())
        .with_style(style(template))
}

fn report_line(bar: &ProgressBar, output: Output, text: &str) {
    if !output.quiet {
        bar.suspend(|| ui::say(text));
    }
}
