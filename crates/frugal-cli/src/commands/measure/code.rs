//! `frugal measure code`: correctness and efficiency of Python solutions.

use std::path::PathBuf;

use anyhow::{Result, bail};
use frugal_core::fs::write_atomic;
use frugal_core::table::{Column, Table};
use frugal_eval::enamel::{self, Clock, LEFT_OUT, Measured, MeasuredLog, Problem, Settings};
use frugal_eval::sandbox::Sandbox;
use serde_json::{Value, json};

use crate::args::Output;
use crate::commands::sandbox;
use crate::folder::{RESULTS_FILE, claim};
use crate::outcome::Outcome;
use crate::ui::progress::Counter;
use crate::ui::{self, interrupt, table};

const EXAMPLES: &str = "\
Examples:
  frugal measure code --problems enamel.csv --solutions samples.json --allow-code-execution
  frugal measure code --problems enamel.csv --solutions a.json,b.json --subset 0,1,3 --k 1,10 --json

The problems are those of ENAMEL: a CSV with prompt, input generator, levels, expert solution and \
checker of each. A file of solutions is a JSON list with a list of Python sources for each problem, \
or an object of such lists by problem number.

Solutions are programs from elsewhere: they run only with --allow-code-execution, each in a process \
of its own that reaches neither files nor network, with limits on time, memory, processes and \
output. Where the kernel cannot do that nothing runs unless --no-isolation says so too. \
Times are the processor's; a machine that does nothing else meanwhile gives the best ones.";

/// What was measured, in the folder of `--out`.
const LOG: &str = "measured.jsonl";

/// Measure whether generated code is right and how fast it is (ENAMEL)
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Problems
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    problems: PathBuf,
    /// Files of solutions, with commas between
    #[arg(
        long,
        value_name = "FILES",
        value_delimiter = ',',
        required = true,
        help_heading = "Data"
    )]
    solutions: Vec<PathBuf>,
    /// Numbers of the problems to measure [default: the 142 of the benchmark]
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        help_heading = "Data"
    )]
    subset: Vec<usize>,
    /// Solutions that are tried for each problem; what exceeds their number is left out
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [1, 10, 100], help_heading = "Measure")]
    k: Vec<usize>,
    /// Time limit as a multiple of the slowest reference
    #[arg(
        long,
        value_name = "X",
        default_value_t = 2.0,
        help_heading = "Measure"
    )]
    timeout_factor: f64,
    /// Weight of each level
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [0.0, 3.0, 3.0, 4.0], help_heading = "Measure")]
    hardness: Vec<f64>,
    /// Tests of each level
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [8, 4, 4, 4], help_heading = "Measure")]
    tests: Vec<usize>,
    /// Runs of each test
    #[arg(long, value_name = "N", default_value_t = 6, help_heading = "Measure")]
    repeats: usize,
    /// Measure the time that passes instead of the processor's, as the reference implementation
    /// does
    #[arg(long, help_heading = "Measure")]
    wall_clock: bool,
    /// Memory of a solution, in GiB
    #[arg(
        long,
        value_name = "GIB",
        default_value_t = 4.0,
        help_heading = "Measure"
    )]
    memory: f64,
    /// Seed of the inputs
    #[arg(
        long,
        value_name = "N",
        default_value_t = 998_244_353,
        help_heading = "Measure"
    )]
    seed: u64,
    /// Keep results in this folder; the same command goes on where it was stopped
    #[arg(long, short, value_name = "DIR", help_heading = "Data")]
    out: Option<PathBuf>,
    /// Run the solutions on this machine
    #[arg(long, help_heading = "Sandbox")]
    allow_code_execution: bool,
    /// Run them even where the kernel cannot keep them from your files and network
    #[arg(long, requires = "allow_code_execution", help_heading = "Sandbox")]
    no_isolation: bool,
    /// Interpreter [default: python3]
    #[arg(long, value_name = "FILE", help_heading = "Sandbox")]
    python: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

/// What a file of solutions came to.
struct Scores {
    file: PathBuf,
    /// Results of each problem.
    problems: Vec<(usize, Vec<Measured>)>,
}

/// Measures and prints.
pub fn run(args: &Args) -> Result<Outcome> {
    if !args.allow_code_execution {
        bail!(
            "this runs the solutions, which are programs from elsewhere: give `--allow-code-execution` if you mean it"
        );
    }
    let settings = Settings {
        timeout_factor: args.timeout_factor,
        hardness: args.hardness.clone(),
        tests: args.tests.clone(),
        repeats: args.repeats,
        memory: (args.memory * f64::from(1 << 30)) as u64,
        seed: args.seed,
        clock: if args.wall_clock {
            Clock::Wall
        } else {
            Clock::Processor
        },
        ..Settings::default()
    };
    settings.check()?;
    let problems = enamel::problems(&args.problems)?;
    let subset: Vec<usize> = match args.subset.as_slice() {
        [] => (0..problems.len())
            .filter(|i| !LEFT_OUT.contains(i))
            .collect(),
        given => given.to_vec(),
    };
    if let Some(unknown) = subset.iter().find(|i| **i >= problems.len()) {
        bail!(
            "--subset: there is no problem {unknown}, only 0 to {}",
            problems.len() - 1
        );
    }
    let solutions = args
        .solutions
        .iter()
        .map(|f| enamel::solutions(f, problems.len()))
        .collect::<Result<Vec<_>, _>>()?;
    let mut log = match &args.out {
        Some(out) => {
            claim(out, "files", |name| name == LOG)?;
            Some(MeasuredLog::open(&out.join(LOG))?)
        }
        None => None,
    };
    let sandbox = sandbox::open(args.python.as_deref(), args.no_isolation, args.output)?;
    let stop = interrupt::flag("stopping after this problem; press Ctrl-C again to end at once");
    let mut all: Vec<Scores> = args
        .solutions
        .iter()
        .map(|f| Scores {
            file: f.clone(),
            problems: Vec::new(),
        })
        .collect();
    let mut counter = Counter::new(args.output, "problems", subset.len() as u64, 0);
    for &index in &subset {
        let problem = (index, &problems[index]);
        for (scores, own) in all.iter_mut().zip(&solutions) {
            let found = measure(&sandbox, problem, &own[index], &settings, log.as_mut())?;
            scores.problems.push((index, found));
        }
        counter.step();
        if interrupt::asked(&stop) {
            return Ok(Outcome::Interrupted);
        }
    }
    drop(counter);
    let files = all
        .iter()
        .map(|s| file_json(s, &args.k))
        .collect::<Vec<_>>();
    let isolation = json!({ "python": sandbox.python(), "isolation": sandbox.isolation() });
    let results = json!({ "settings": settings, "sandbox": isolation, "files": files });
    if let Some(out) = &args.out {
        let text = serde_json::to_string_pretty(&results)? + "\n";
        write_atomic(&out.join(RESULTS_FILE), text.as_bytes())?;
    }
    if args.output.json {
        ui::print_json(&results)?;
    } else {
        let mut shown = Table::new([
            Column::text("solutions"),
            Column::number("k"),
            Column::number("eff@k"),
            Column::number("pass@k"),
        ]);
        for scores in &all {
            for (k, eff, pass) in scores.at(&args.k) {
                shown.row([
                    scores.file.display().to_string(),
                    k.to_string(),
                    format!("{eff:.3}"),
                    format!("{pass:.3}"),
                ]);
            }
        }
        table::print(&shown);
    }
    Ok(Outcome::Done)
}

/// Results of a problem, from the log where they are in it.
fn measure(
    sandbox: &Sandbox,
    (index, problem): (usize, &Problem),
    samples: &[String],
    settings: &Settings,
    log: Option<&mut MeasuredLog>,
) -> Result<Vec<Measured>> {
    let key = enamel::key(sandbox, index, problem, samples, settings);
    if let Some(known) = log.as_ref().and_then(|log| log.get(&key)) {
        return Ok(known.to_vec());
    }
    let codes: Vec<&str> = samples.iter().map(String::as_str).collect();
    let found = enamel::measure(sandbox, index, problem, &codes, settings)?;
    if let Some(log) = log {
        log.push(&key, &found)?;
    }
    Ok(found)
}

impl Scores {
    /// `k`, eff@k and pass@k, for each `k` that every problem has enough solutions for.
    fn at(&self, ks: &[usize]) -> Vec<(usize, f64, f64)> {
        let mean = |value: &dyn Fn(&[Measured]) -> Option<f64>| -> Option<f64> {
            let values = self
                .problems
                .iter()
                .map(|(_, m)| value(m))
                .collect::<Option<Vec<f64>>>()?;
            frugal_core::metrics::mean(&values)
        };
        ks.iter()
            .filter_map(|&k| {
                let eff = mean(&|m| {
                    enamel::eff_at_k(&m.iter().map(|s| s.efficiency).collect::<Vec<_>>(), k)
                })?;
                let pass = mean(&|m| {
                    enamel::pass_at_k(m.len(), m.iter().filter(|s| s.passed).count(), k)
                })?;
                Some((k, eff, pass))
            })
            .collect()
    }
}

fn file_json(scores: &Scores, ks: &[usize]) -> Value {
    let mut value = json!({ "file": scores.file });
    for (k, eff, pass) in scores.at(ks) {
        value[format!("eff@{k}")] = json!(eff);
        value[format!("pass@{k}")] = json!(pass);
    }
    value["problems"] = scores
        .problems
        .iter()
        .map(|(i, m)| json!({ "problem": i, "samples": m }))
        .collect();
    value
}
