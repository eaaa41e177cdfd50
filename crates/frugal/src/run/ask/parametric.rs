//! Answers from passages that are in the weights of the model: trained for each, or translated.

use frugal_nn::Mode;
use frugal_retrieve::parametric::{
    DocumentStore, DocumentWeights, FastWeights, FeedForward, Prompts, Translator, WITH_PASSAGES,
    document_embedding, merge,
};
use frugal_retrieve::rag::{Passage, PromptOptions, cite};

use super::answer::AskAnswer;
use super::mode::AskMode;
use super::session::{Ask, titled};
use crate::run::RunError;
use crate::run::base::other_base;

/// Parameters that were trained for each passage.
pub(super) const PRAG: AskMode = AskMode {
    name: "prag",
    about: "the best passages as parameters of the model that were trained for each",
    answer: prag,
};

/// Parameters that a translator writes.
pub(super) const DYPRAG: AskMode = AskMode {
    name: "dyprag",
    about: "the best passages as parameters of the model that a translator writes",
    answer: dyprag,
};

/// The folder of parameters for the model as it was opened.
fn store(ask: &Ask<'_>) -> Result<DocumentStore, RunError> {
    let Some(folder) = &ask.options().parametric.parameters else {
        return Err(RunError::Invalid(
            "name the folder of the documents' parameters with `--parameters`; `frugal parametrize` makes it".into(),
        ));
    };
    let opened = ask.opened();
    if let Some(name) = opened.adapters.names().first() {
        return Err(RunError::Invalid(format!(
            "{name}: documents' parameters are trained for the model as it is: leave out the adapter, or merge it into the model \
             first (`frugal merge`) and make the parameters anew"
        )));
    }
    let backbone = opened.backbone.as_ref();
    let places = FeedForward::of(backbone.info(), backbone.sites())?;
    Ok(DocumentStore::open(folder, &places, backbone.device())?)
}

/// What to say where the parameters were trained on other weights than the model's as they are now.
fn warnings(store: &DocumentStore, ask: &Ask<'_>) -> Vec<String> {
    let (folder, config) = (store.folder(), store.config());
    let found = match config.base_sha256.as_str() {
        "" => Some(format!(
            "{}: it does not say on which weights of `{}` it was trained",
            folder.display(),
            config.model
        )),
        before => other_base(folder, before, &ask.opened().files),
    };
    found.into_iter().collect()
}

fn prag(ask: &mut Ask<'_>, question: &str) -> Result<AskAnswer, RunError> {
    let store = store(ask)?;
    let passages = ask.retrieve(question)?;
    let (mut found, mut used, mut missing) = (Vec::new(), Vec::new(), Vec::new());
    ask.stages().time("read parameters", || {
        for passage in passages {
            match store.get(&passage.id, &titled(&passage))? {
                Some(weights) => {
                    found.push(weights);
                    used.push(passage);
                }
                None => missing.push(passage.id),
            }
        }
        Ok::<_, RunError>(())
    })?;
    let mut notes = Vec::new();
    if !missing.is_empty() {
        let what = format!(
            "no parameters were trained for {}, as it is in the index now",
            missing.join(", ")
        );
        if found.is_empty() {
            return Err(RunError::Invalid(format!(
                "{what}: run `frugal parametrize` on this index"
            )));
        }
        notes.push(what);
    }
    let scale = store.config().parameters.scale();
    from_weights(ask, question, used, &found, (&store, scale), notes)
}

fn dyprag(ask: &mut Ask<'_>, question: &str) -> Result<AskAnswer, RunError> {
    let store = store(ask)?;
    let (backbone, folder) = (ask.opened().backbone.clone(), store.translator());
    if !Translator::is_in(&folder) {
        return Err(RunError::Invalid(format!(
            "{}: no translator was trained on these parameters: run `frugal parametrize --translator`",
            folder.display()
        )));
    }
    let passages = ask.retrieve(question)?;
    let tokenizer = ask.opened().files.tokenizer()?;
    let (found, scale) = ask.stages().time("translate", || {
        let translator = Translator::load(&folder, store.places(), backbone.device())?;
        let mut found = Vec::with_capacity(passages.len());
        for passage in &passages {
            let ids = tokenizer.encode(&titled(passage), true)?;
            let embedding = document_embedding(backbone.as_ref(), &ids)
                .map_err(|error| error.of_document(&passage.id))?;
            found.push(translator.translate(&embedding, Mode::Eval)?);
        }
        Ok::<_, RunError>((found, translator.config().parameters.translated_scale()))
    })?;
    from_weights(ask, question, passages, &found, (&store, scale), Vec::new())
}

/// Answers with the passages in the weights, and where that is wanted in the prompt too.
fn from_weights(
    ask: &mut Ask<'_>,
    question: &str,
    passages: Vec<Passage>,
    weights: &[DocumentWeights],
    (store, scale): (&DocumentStore, f32),
    mut notes: Vec<String>,
) -> Result<AskAnswer, RunError> {
    if passages.is_empty() {
        // Nothing is generated: a model would answer from memory.
        return ask.answer_from(question, &[]);
    }
    let settings = ask.options().parametric.clone();
    let all: Vec<&DocumentWeights> = weights.iter().collect();
    let merged = merge(&all, settings.merge)?;
    let change = FastWeights::new(store.places(), &merged, scale)?;
    let (text, used, dropped) = if settings.combine {
        let options = PromptOptions {
            instructions: WITH_PASSAGES.into(),
            ..PromptOptions::within(ask.budget()?)
        };
        let built = ask.build(question, &passages, &options)?;
        notes.extend(built.notes);
        (built.text, built.used, built.dropped)
    } else {
        (Prompts::text(question, &[]), passages, 0)
    };
    let prompt = Prompts::new(ask.opened().files.tokenizer()?).asked(&text)?;
    let continued = ask.generate_changed(change, prompt)?;
    let answer = continued.text.trim().to_owned();
    Ok(AskAnswer {
        citations: cite(&answer, &used),
        answer,
        passages: used,
        queries: vec![question.to_owned()],
        left_out: dropped,
        prompt_tokens: continued.prompt_tokens,
        tokens: continued.tokens.len(),
        finish: Some(continued.finish),
        warnings: warnings(store, ask),
        notes,
        ..AskAnswer::default()
    })
}
