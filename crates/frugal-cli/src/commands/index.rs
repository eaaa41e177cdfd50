//! `frugal index`: documents that can be searched.

mod args;
mod report;
mod stored;

use std::time::Instant;

use anyhow::{Result, bail};
use frugal::index::{Index, IndexError};
use frugal::retrieve::{BuildReport, Encoder, build};
use serde_json::json;

use crate::outcome::Outcome;
use crate::ui::progress::{Counter, Phase};
use crate::ui::{self, interrupt};
pub use args::Args;
use report::warn_of;

/// Reads, embeds, writes.
pub fn run(args: &Args) -> Result<Outcome> {
    if let Some(target) = &args.store {
        return stored::run(args, target);
    }
    let out = args.folder()?;
    let mut deleted = 0;
    if !args.delete.is_empty() {
        let index = Index::open(out)?;
        let mut writer = index.writer()?;
        for id in &args.delete {
            if !writer.delete(id)? {
                bail!("--delete {id}: {} has no such document", out.display());
            }
            deleted += 1;
        }
        writer.commit()?;
    }
    let begin = Instant::now();
    let mut report = match &args.data {
        None => BuildReport::default(),
        Some(data) => {
            let options = args.options()?;
            let encoder = match args.request()? {
                None => None,
                Some(request) => {
                    let phase = Phase::new(args.output, format!("reading {}", request.model));
                    let encoder =
                        Encoder::open(&request, &args.machine.lookup(), &args.machine.device()?)?;
                    drop(phase);
                    Some((encoder, request))
                }
            };
            // Before the first documents are there nothing could be kept, and they may never come.
            interrupt::reading();
            let stop = interrupt::flag(
                "the next commit keeps what is done; run the command again to go on",
            );
            let mut counter = Counter::new(args.output, "documents", 0, 0);
            build(
                out,
                data,
                encoder
                    .as_ref()
                    .map(|(encoder, request)| (encoder, request)),
                &options,
                &mut |done| {
                    interrupt::begun();
                    if done > 0 {
                        counter.advance(done);
                    }
                    !interrupt::asked(&stop)
                },
            )?
        }
    };
    interrupt::begun();
    report.deleted += deleted;
    let opened = Index::open(out);
    if report.interrupted && matches!(opened, Err(IndexError::NotAnIndex { .. })) {
        return Ok(Outcome::Interrupted);
    }
    let mut index = opened?;
    if args.compact {
        index.writer()?.compact()?;
        index.reload()?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    if args.output.json {
        let value = json!({
            "index": out,
            "documents": index.len(),
            "report": report,
            "encoder": index.settings().encoder.as_ref().map(|e| &e.model),
            "seconds": seconds,
        });
        ui::print(&value.to_string());
    } else {
        let vectors = match &index.settings().encoder {
            Some(encoder) => format!(
                "words and vectors of {} ({} dimensions)",
                encoder.model, encoder.dimension
            ),
            None => "words only: vectors come with `--model`, for example minilm-l6".into(),
        };
        ui::print(&format!(
            "{}: {} documents, {vectors}\n{} added, {} updated, {} unchanged, {} deleted in {seconds:.1} s",
            out.display(),
            index.len(),
            report.added,
            report.updated,
            report.unchanged,
            report.deleted
        ));
    }
    warn_of(&report, args.output);
    Ok(match report.interrupted {
        true => Outcome::Interrupted,
        false => Outcome::Done,
    })
}
