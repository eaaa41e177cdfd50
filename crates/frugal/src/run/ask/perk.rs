//! Answers without passages in the prompt: they are written into an adapter, which answers.

use std::sync::Arc;

use frugal_retrieve::perk::{PerkError, Texts, files};
use frugal_retrieve::rag::{Chunker, Splitter, Units, cite};

use super::answer::AskAnswer;
use super::mode::AskMode;
use super::session::{Ask, titled};
use crate::run::{RunError, base_warning};

/// The best passages in the weights of an adapter.
pub(super) const PERK: AskMode = AskMode {
    name: "perk",
    about: "the best passages are written into an adapter by a few gradient steps, and it answers",
    answer: perk,
};

fn perk(ask: &mut Ask<'_>, question: &str) -> Result<AskAnswer, RunError> {
    let Some(options) = ask.options().perk.clone() else {
        return Err(RunError::Invalid(
            "mode `perk` needs a meta-learned state: name its folder with `--perk-state` (`frugal meta-train` makes one)".into(),
        ));
    };
    if options.segment_tokens == 0 || options.groups == 0 {
        return Err(RunError::Invalid(
            "segments have one token at least, and are computed in one part at least".into(),
        ));
    }
    let opened = ask.opened();
    if !opened.adapters.names().is_empty() {
        return Err(RunError::Invalid(
            "mode `perk` writes into an adapter of its own: leave out `--adapter`".into(),
        ));
    }
    let state = files::load(&options.state, opened.backbone.as_ref())?;
    let warnings = base_warning(&options.state, &opened.files)
        .into_iter()
        .collect();
    let passages = ask.retrieve(question)?;
    if passages.is_empty() {
        return ask.answer_from(question, &passages);
    }
    let tokenizer = opened.files.tokenizer()?;
    let texts = Texts::new(tokenizer, opened.backbone.info().max_sequence)?;
    let chunker = Chunker::new(Splitter::Sentence, options.segment_tokens, 0);
    let chunker = chunker.map_err(|error| RunError::Invalid(error.to_string()))?;
    let whole: Vec<String> = passages.iter().map(titled).collect();
    let mut segments: Vec<&str> = Vec::new();
    for text in &whole {
        let pieces = chunker.cut(text, &Units::tokens(text, tokenizer)?);
        segments.extend(pieces.into_iter().map(|range| text[range].trim()));
    }
    segments.retain(|segment| !segment.is_empty());
    let numbers: Vec<usize> = (0..segments.len()).collect();
    let batch = texts.segments(&segments, &numbers)?;
    let set = ask.stages().time("write", || -> Result<_, PerkError> {
        let backbone = opened.backbone.as_ref();
        let written = state.write(backbone, &batch, options.groups)?;
        Ok(state.adapters(backbone, &written.values)?.0)
    })?;
    let prompt = Texts::prompt_text(segments.len(), question);
    let continued = ask.generate_by(&Arc::new(set), prompt)?;
    let answer = Texts::answer_in(&continued.text).to_owned();
    Ok(AskAnswer {
        citations: cite(&answer, &passages),
        answer,
        passages,
        queries: vec![question.to_owned()],
        prompt_tokens: continued.prompt_tokens,
        tokens: continued.tokens.len(),
        finish: Some(continued.finish),
        warnings,
        notes: vec![format!(
            "{} segments, {} tokens, were written into the adapter",
            segments.len(),
            batch.ids.len()
        )],
        ..AskAnswer::default()
    })
}
