//! Does a small model use more names that there are when it is shown definitions?

use frugal_decode::SamplerConfig;
use frugal_models::load::Lookup;
use frugal_retrieve::cramf::{Checker, Definition, NameChecker, PromptOptions, prompt};

use super::arms::{ARMS, Searcher};
use super::data::{Library, drawn};
use super::{Outcome, StudyError, StudyEvent, StudyRequest};
use crate::run::{GenerateRequest, OpenOptions, Opened, Prompt, generate, open};

const MODEL: &str = "smollm2-135m";
const WITHOUT: &str = "mathlib: code without definitions";
const WITH: &str = "mathlib: code with definitions";
const MEASURE: &str = "valid names";
/// What the code is of, and how it begins.
const TASK: &str = "The same as one line of Lean:\ntheorem main :";
/// Words of the language and of the task.
const KEYWORDS: &[&str] = &[
    "theorem",
    "lemma",
    "def",
    "example",
    "main",
    "begin",
    "end",
    "sorry",
    "fun",
    "let",
    "have",
    "show",
    "from",
    "forall",
    "exists",
    "Type",
    "Prop",
    "Sort",
    "variable",
    "variables",
    "import",
    "open",
    "The",
    "the",
    "same",
    "one",
    "line",
    "Lean",
];

/// Lets the model write a line for some statements, with and without the definitions that were found.
pub(super) fn measure(
    request: &StudyRequest<'_>,
    searcher: &Searcher<'_>,
    library: &Library,
    statements: usize,
    outcome: &mut Outcome,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<(), StudyError> {
    let lookup = Lookup::default();
    let options = OpenOptions::new(&lookup, burn::prelude::Device::flex());
    let model =
        open(MODEL, &[], &options, &mut |_| {}).map_err(|error| StudyError::arm(MODEL, error))?;
    let checker = NameChecker::new(&library.base, library.base.version(), KEYWORDS)
        .map_err(|error| StudyError::arm(MODEL, error))?;
    for &seed in &request.seeds {
        let mut shares = [Vec::new(), Vec::new()];
        for question in drawn(&library.questions, statements, seed, "written") {
            request.check()?;
            let found = searcher.find(ARMS[0], &question.text);
            let found = found.map_err(|error| StudyError::arm(WITH, error))?;
            let definitions: Vec<&Definition> = found
                .iter()
                .map(|id| &library.base.definitions()[*id as usize])
                .collect();
            for (shares, definitions) in shares.iter_mut().zip([&[], definitions.as_slice()]) {
                let options = PromptOptions::default();
                let text = prompt(&question.text, definitions, TASK, options);
                let code = line(&model, text, seed)?;
                let report = checker.check(&code);
                let report = report.map_err(|error| StudyError::arm(MODEL, error))?;
                shares.extend(report.validity());
            }
        }
        for (arm, shares) in [WITHOUT, WITH].into_iter().zip(shares) {
            if !shares.is_empty() {
                let mean = shares.iter().sum::<f64>() / shares.len() as f64;
                outcome.add(arm, MEASURE, seed, mean);
            }
        }
        observe(StudyEvent::Step {
            what: format!("seed {seed}: code written"),
        });
    }
    let claim = "mathlib: more of the names in the code are real when definitions are shown";
    outcome.judge(claim, MEASURE, WITH, WITHOUT, false);
    outcome.notes.push(format!(
        "Code is one line by {MODEL}, {statements} statements with each seed. A name of at least three letters is valid where a \
         definition has it, or ends with it; lines without such names count for neither side."
    ));
    Ok(())
}

/// What the model writes up to the end of the line.
fn line(model: &Opened, text: String, seed: u64) -> Result<String, StudyError> {
    let request = GenerateRequest {
        prompts: vec![Prompt {
            text,
            adapter: None,
        }],
        chat: false,
        system: None,
        stop: vec!["\n".into()],
        max_tokens: 40,
        sampler: SamplerConfig::default(),
        seed,
        cache_type: frugal_decode::CacheType::default(),
    };
    let found =
        generate(model, &request, &mut |_| true).map_err(|error| StudyError::arm(MODEL, error))?;
    Ok(found.into_iter().map(|continued| continued.text).collect())
}
