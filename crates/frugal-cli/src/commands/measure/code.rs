//! `frugal measure code`: correctness and efficiency of Python solutions.

use std::path::PathBuf;

use anyhow::{Result, bail};
use frugal_core::table::{Column, Table};
use frugal_eval::enamel::{self, Clock, LEFT_OUT, Measured, Settings};
use frugal_eval::sandbox::Sandbox;
use serde_json::{Value, json};

use crate::Outcome;
use crate::args::Output;
use crate::ui::progress::Counter;
use crate::ui::{self, interrupt, table};

const EXAMPLES: &str = "\
Examples:
  frugal measure code --problems enamel.csv --solutions samples.json --allow-code-execution
  frugal measure code --problems enamel.csv --solutions a.json,b.json --subset 0,1,3 --k 1,10 --json

The problems are those of ENAMEL: a CSV with prompt, input generator, levels, expert solution and
checker of each. A file of solutions is a JSON list with a list of Python sources for each problem,
or an object of such lists by problem number.

Solutions are programs from elsewhere: they run in a sandbox with limits on time, memory, processes,
files and output, without network where the system permits it, and only with --allow-code-execution.
Times are the processor's; a machine that does nothing else meanwhile gives the best ones.";

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
    /// Run the solutions on this machine
    #[arg(long, help_heading = "Sandbox")]
    allow_code_execution: bool,
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
    let sandbox = Sandbox::new(args.python.as_deref())?;
    ui::note(
        args.output,
        &format!(
            "sandbox: {}; {}",
            sandbox.python().display(),
            sandbox.isolation().describe()
        ),
    );
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
        // All files together share the inputs and the references.
        let samples: Vec<&str> = solutions
            .iter()
            .flat_map(|s| s[index].iter().map(String::as_str))
            .collect();
        let mut found =
            enamel::measure(&sandbox, index, &problems[index], &samples, &settings)?.into_iter();
        for (scores, own) in all.iter_mut().zip(&solutions) {
            scores
                .problems
                .push((index, found.by_ref().take(own[index].len()).collect()));
        }
        counter.step();
        if interrupt::asked(&stop) {
            return Ok(Outcome::Interrupted);
        }
    }
    drop(counter);
    if args.output.json {
        let files = all
            .iter()
            .map(|s| file_json(s, &args.k))
            .collect::<Vec<_>>();
        let sandbox = json!({ "python": sandbox.python(), "isolation": sandbox.isolation() });
        ui::print_json(&json!({ "settings": settings, "sandbox": sandbox, "files": files }))?;
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
