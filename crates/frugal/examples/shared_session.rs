//! Two conversations share one model, each with an adapter of its own. They join at different times,
//! one tries two answers from the same point, and memory is freed as they leave.
//!
//! `cargo run --release --example shared_session`

#![allow(clippy::print_stdout, reason = "its output is the point")]

use std::error::Error;
use std::sync::Arc;

use frugal::adapt::{ActiveAdapters, AdapterSet, BuildContext, LoadedAdapter, registry};
use frugal::decode::{SequenceId, Session, StateOptions};
use frugal::device::device;
use frugal::model::Backbone;
use frugal::model::load::{Lookup, ModelFiles};

/// A LoRA that changes something. `peft::load` reads a trained one from its folder.
fn adapter(backbone: &dyn Backbone, seed: u64) -> Result<LoadedAdapter, Box<dyn Error>> {
    let lora = registry::find("lora")?;
    let context = BuildContext {
        info: backbone.info(),
        sites: backbone.sites(),
        backbone: Some(backbone),
        device: backbone.device().clone(),
        seed,
        tokenize: None,
    };
    let mut adapter = (lora.build)(&(lora.defaults)(), &context)?;
    for parameter in adapter.parameters_mut() {
        let values = (0..parameter.len()).map(|i| 0.05 * (0.37 * i as f32 + seed as f32).sin());
        parameter.set(values.collect());
    }
    Ok(LoadedAdapter {
        adapter,
        head: None,
    })
}

/// The likeliest token.
fn best(logits: &[f32]) -> u32 {
    let ids = 0..logits.len() as u32;
    ids.max_by(|&a, &b| logits[a as usize].total_cmp(&logits[b as usize]))
        .unwrap_or(0)
}

/// Writes some tokens to each of these sequences, all in one pass per token.
fn write(
    session: &mut Session,
    mut next: Vec<(SequenceId, u32)>,
    tokens: usize,
) -> Result<(), Box<dyn Error>> {
    for _ in 0..tokens {
        let new: Vec<(SequenceId, &[u32])> = next
            .iter()
            .map(|(id, token)| (*id, std::slice::from_ref(token)))
            .collect();
        let logits = session.append(&new)?;
        for ((_, token), logits) in next.iter_mut().zip(&logits) {
            *token = best(logits);
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let files = ModelFiles::open("builtin", &Lookup::default())?;
    let (backbone, tokenizer) = (files.load(&device("cpu")?)?, files.tokenizer()?);
    let mut adapters = AdapterSet::default();
    adapters.insert("first", adapter(backbone.as_ref(), 1)?);
    adapters.insert("second", adapter(backbone.as_ref(), 2)?);

    let mut session = Session::new(backbone, Arc::new(adapters), StateOptions::default())?;
    let first = session.add(ActiveAdapters::One("first".into()))?;
    let logits = session.append_to(first, &tokenizer.encode("a small house", true)?)?;
    write(&mut session, vec![(first, best(&logits))], 4)?;

    // The second begins while the first goes on: one pass reads its prompt and writes a token.
    let second = session.add(ActiveAdapters::One("second".into()))?;
    let prompt = tokenizer.encode("the old tree", true)?;
    let last = session.append(&[(first, &prompt[prompt.len() - 1..]), (second, &prompt)])?;

    // The second tries another continuation from here.
    let before = session.snapshot(second)?;
    let other = session.fork(second)?;
    println!("kept by both conversations: {} bytes", session.bytes());
    let next = vec![
        (first, best(&last[0])),
        (second, best(&last[1])),
        (other, 5),
    ];
    write(&mut session, next, 6)?;
    for (who, id) in [("first", first), ("second", second), ("other", other)] {
        println!(
            "{who:>6}: {:?}",
            tokenizer.decode(session.tokens(id)?, true)?
        );
    }
    session.rollback(second, &before)?;
    assert_eq!(session.tokens(second)?, prompt);

    for id in [first, second, other] {
        session.remove(id)?;
    }
    drop(before);
    assert_eq!(session.bytes(), 0);
    Ok(())
}
