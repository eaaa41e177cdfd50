//! Indexing into a database.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use frugal::index::store::{StoreOptions, StoreTarget, open_store};
use frugal::retrieve::{BuildReport, Encoder, build_store, encoder_of_store};
use serde_json::json;

use super::args::Args;
use super::report::warn_of;
use crate::outcome::Outcome;
use crate::ui::progress::{Counter, Phase};
use crate::ui::{self, interrupt};

/// Deletes, reads, embeds, sends.
pub(super) fn run(args: &Args, target: &StoreTarget) -> Result<Outcome> {
    let options = StoreOptions {
        timeout: Duration::from_secs(args.store_timeout.into()),
        ..StoreOptions::default()
    };
    let begin = Instant::now();
    let deleted = delete(args, target, options)?;
    let (mut report, count) = match args.data {
        Some(_) => build(args, target, options)?,
        None => {
            let count = open_store(target, None, options)?.count()?;
            (BuildReport::default(), count)
        }
    };
    report.deleted += deleted;
    let seconds = begin.elapsed().as_secs_f64();
    match args.output.json {
        true => ui::print(
            &json!({
                "store": target.to_string(),
                "documents": count,
                "report": report,
                "seconds": seconds,
            })
            .to_string(),
        ),
        false => ui::print(&format!(
            "{target}: {count} documents with vectors\n{} added, {} updated, {} unchanged, {} deleted in {seconds:.1} s",
            report.added, report.updated, report.unchanged, report.deleted
        )),
    }
    warn_of(&report, args.output);
    Ok(match report.interrupted {
        true => Outcome::Interrupted,
        false => Outcome::Done,
    })
}

fn delete(args: &Args, target: &StoreTarget, options: StoreOptions) -> Result<usize> {
    if args.delete.is_empty() {
        return Ok(0);
    }
    let mut store = open_store(target, None, options)?;
    let there = store.documents(&args.delete)?;
    let missing = args.delete.iter().zip(&there).find(|(_, d)| d.is_none());
    if let Some((id, _)) = missing {
        bail!("--delete {id}: {target} has no such document");
    }
    store.delete(&args.delete)?;
    Ok(args.delete.len())
}

fn build(args: &Args, target: &StoreTarget, options: StoreOptions) -> Result<(BuildReport, usize)> {
    let data = args.data.as_ref().context("--data: name the documents")?;
    let request = match args.request()? {
        Some(request) => request,
        None => encoder_of_store(target, options)
            .context("--store: without `--model` the store must be there, and says its encoder")?,
    };
    let phase = Phase::new(args.output, format!("reading {}", request.model));
    let encoder = Encoder::open(&request, &args.machine.lookup(), &args.machine.device()?)?;
    drop(phase);
    interrupt::reading();
    let stop = interrupt::flag("what was sent is kept; run the command again to go on");
    let mut counter = Counter::new(args.output, "documents", 0, 0);
    Ok(build_store(
        target,
        data,
        (&encoder, &request),
        &args.options()?,
        options,
        &mut |done| {
            interrupt::begun();
            counter.advance(done);
            !interrupt::asked(&stop)
        },
    )?)
}
