//! PERK: questions answered from an adapter that the facts were written into, against the facts in
//! the prompt, by the number of facts and the place of the right one.

mod arms;
mod size;
mod world;

use std::sync::Arc;
use std::time::Instant;

use frugal_decode::{CacheType, GenerateConfig, SamplerConfig, generate};
use frugal_kernels::on_pool;
use frugal_nn::{ActiveAdapters, AdapterSet};
use frugal_retrieve::perk::{PerkState, Question, Texts};
use rand::Rng;

use super::run::{Study, StudyKind};
use super::{Outcome, StudyError, StudyEvent, StudyRequest};
use arms::{Arm, Base, base, failed, in_context, meta_learned};
use size::Size;
use world::{Facts, MOST, ROOMS};

/// The study.
pub static PERK: Study = Study {
    name: "perk",
    kind: StudyKind::Rag,
    about: "exact match of answers from facts written into an adapter, and from facts in the prompt, learnt with 8 to 16 facts and asked with 8 to 64; first, middle and last fact; without retained steps, without learnt weights and rates",
    source: "Chen et al., PERK: Long-Context Reasoning as Parameter-Efficient Test-Time Learning, 2025, arXiv 2507.06415 (eric11eca/perk)",
    run,
};

const PERK_ARM: &str = "PERK";
const FIRST_ORDER: &str = "PERK, first order";
const PLAIN: &str = "PERK, plain loss and one rate";
const IN_CONTEXT: &str = "FT-ICR";
const UNWRITTEN: &str = "PERK, nothing written";

fn run(
    request: &StudyRequest<'_>,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<Outcome, StudyError> {
    let size = Size::of(request.smoke);
    let arms = [
        Arm {
            name: PERK_ARM,
            retained: 2,
            learned: true,
        },
        Arm {
            name: FIRST_ORDER,
            retained: 0,
            learned: true,
        },
        Arm {
            name: PLAIN,
            retained: 2,
            learned: false,
        },
    ];
    let steps = 1 + request.seeds.len() * (arms.len() + 1);
    observe(StudyEvent::Planned {
        steps: steps as u64,
    });
    let base = base(request, &size)?;
    observe(StudyEvent::Step {
        what: "the decoder of our own is trained".into(),
    });
    let mut outcome = Outcome::default();
    for &seed in &request.seeds {
        let asked = Asked::draw(&size, seed);
        for arm in &arms {
            let (state, seconds) = meta_learned(request, &base, arm, &size, seed)?;
            outcome.add(arm.name, "seconds to learn", seed, seconds);
            written(request, &base, &state, arm.name, &asked, seed, &mut outcome)?;
            if arm.name == PERK_ARM {
                unwritten(request, &base, &state, &asked, seed, &mut outcome)?;
            }
            observe(StudyEvent::Step {
                what: format!("{}, seed {seed}", arm.name),
            });
        }
        let (set, seconds) = in_context(request, &base, &size, seed)?;
        outcome.add(IN_CONTEXT, "seconds to learn", seed, seconds);
        prompted(request, &base, set, &asked, seed, &mut outcome)?;
        observe(StudyEvent::Step {
            what: format!("{IN_CONTEXT}, seed {seed}"),
        });
    }
    if !request.smoke {
        claims(&mut outcome);
    }
    notes(&mut outcome, &size);
    Ok(outcome)
}

/// A context and the facts that are asked for: its first, middle and last, then others.
struct Context {
    facts: Facts,
    asked: Vec<usize>,
}

/// What all arms of a seed are asked, by number of facts.
struct Asked(Vec<(usize, Vec<Context>)>);

impl Asked {
    fn draw(size: &Size, seed: u64) -> Self {
        let contexts = |&length: &usize| {
            let one = |i: usize| {
                let name = format!("perk context {length} {i}");
                let mut rng = frugal_nn::named_rng(seed, &format!("{name} questions"));
                let mut asked = vec![0, length / 2, length - 1];
                asked.extend((0..size.questions).map(|_| rng.random_range(0..length)));
                Context {
                    facts: Facts::named(seed, &name, length),
                    asked,
                }
            };
            (length, (0..size.contexts).map(one).collect())
        };
        Self(size.lengths.iter().map(contexts).collect())
    }
}

/// Right answers of an arm with so many facts.
#[derive(Default)]
struct Counted {
    /// First, middle, last, others: right, and all.
    right: [[usize; 2]; 4],
    seconds: f64,
    contexts: usize,
}

impl Counted {
    fn add(&mut self, right: &[bool], seconds: f64) {
        for (i, &right) in right.iter().enumerate() {
            let [found, all] = &mut self.right[i.min(3)];
            *found += usize::from(right);
            *all += 1;
        }
        self.seconds += seconds;
        self.contexts += 1;
    }

    fn report(&self, outcome: &mut Outcome, arm: &str, facts: usize, seed: u64) {
        let share = |[right, all]: [usize; 2]| right as f64 / all.max(1) as f64;
        let all = self
            .right
            .iter()
            .fold([0, 0], |a, b| [a[0] + b[0], a[1] + b[1]]);
        outcome.add(arm, &exact(facts), seed, share(all));
        for (i, place) in ["first", "middle", "last"].iter().enumerate() {
            let name = format!("{place} of {facts}");
            outcome.add(arm, &name, seed, share(self.right[i]));
        }
        let seconds = self.seconds / self.contexts.max(1) as f64;
        outcome.add(arm, &format!("seconds, {facts} facts"), seed, seconds);
    }
}

fn exact(facts: usize) -> String {
    format!("exact match, {facts} facts")
}

/// Answers, the likeliest token at a time, and which of them are right.
fn answers(
    base: &Base,
    set: &Arc<AdapterSet>,
    choice: &ActiveAdapters,
    prompts: &[Vec<u32>],
    questions: &[Question],
    arm: &'static str,
) -> Result<Vec<bool>, StudyError> {
    let config = GenerateConfig {
        max_tokens: 4,
        sampler: SamplerConfig {
            temperature: 0.0,
            ..SamplerConfig::default()
        },
        eos_token_ids: base.tokenizer.eos_ids().to_vec(),
        seed: 0,
        cache_type: CacheType::default(),
    };
    let found = generate(
        &base.backbone,
        set,
        choice,
        prompts,
        &config,
        &mut |_, _| true,
    );
    let found = found.map_err(failed(arm))?;
    let mut right = Vec::with_capacity(questions.len());
    for (found, question) in found.iter().zip(questions) {
        let text = base
            .tokenizer
            .decode(&found.tokens, true)
            .map_err(failed(arm))?;
        right.push(text.trim() == question.answer);
    }
    Ok(right)
}

/// Answers from facts that were written.
fn written(
    request: &StudyRequest<'_>,
    base: &Base,
    state: &PerkState,
    arm: &'static str,
    asked: &Asked,
    seed: u64,
    outcome: &mut Outcome,
) -> Result<(), StudyError> {
    let backbone = base.backbone.as_ref();
    for (length, contexts) in &asked.0 {
        let mut counted = Counted::default();
        for context in contexts {
            request.check()?;
            let start = Instant::now();
            let texts = context.facts.texts();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let numbers: Vec<usize> = (0..texts.len()).collect();
            let segments = base
                .texts()?
                .segments(&texts, &numbers)
                .map_err(failed(arm))?;
            let written = state.write(backbone, &segments, 1).map_err(failed(arm))?;
            let right = from_adapter(base, state, &written.values, context, *length, arm)?;
            counted.add(&right, start.elapsed().as_secs_f64());
        }
        counted.report(outcome, arm, *length, seed);
    }
    Ok(())
}

/// Answers by the adapter that nothing was written into.
fn unwritten(
    request: &StudyRequest<'_>,
    base: &Base,
    state: &PerkState,
    asked: &Asked,
    seed: u64,
    outcome: &mut Outcome,
) -> Result<(), StudyError> {
    for (length, contexts) in &asked.0 {
        let mut counted = Counted::default();
        for context in contexts {
            request.check()?;
            let start = Instant::now();
            let values = &state.fast.values;
            let right = from_adapter(base, state, values, context, *length, UNWRITTEN)?;
            counted.add(&right, start.elapsed().as_secs_f64());
        }
        counted.report(outcome, UNWRITTEN, *length, seed);
    }
    Ok(())
}

fn from_adapter(
    base: &Base,
    state: &PerkState,
    values: &[Vec<f32>],
    context: &Context,
    length: usize,
    arm: &'static str,
) -> Result<Vec<bool>, StudyError> {
    let (set, choice) = state
        .adapters(base.backbone.as_ref(), values)
        .map_err(failed(arm))?;
    let questions: Vec<Question> = context
        .asked
        .iter()
        .map(|&i| context.facts.question(i))
        .collect();
    let texts = base.texts()?;
    let prompts = questions.iter().map(|q| texts.prompt(length, &q.question));
    let prompts = prompts
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed(arm))?;
    on_pool(|| answers(base, &Arc::new(set), &choice, &prompts, &questions, arm))
}

/// Answers with the facts in the prompt.
fn prompted(
    request: &StudyRequest<'_>,
    base: &Base,
    set: AdapterSet,
    asked_of: &Asked,
    seed: u64,
    outcome: &mut Outcome,
) -> Result<(), StudyError> {
    let set = Arc::new(set);
    let choice = ActiveAdapters::One(IN_CONTEXT.to_owned());
    for (length, contexts) in &asked_of.0 {
        let mut counted = Counted::default();
        for context in contexts {
            request.check()?;
            let start = Instant::now();
            let numbers: Vec<usize> = (0..*length).collect();
            let facts = context.facts.prompt(&numbers);
            let questions: Vec<Question> = context
                .asked
                .iter()
                .map(|&i| context.facts.question(i))
                .collect();
            let prompts = questions.iter().map(|q| {
                let text = format!("{facts}{}", Texts::prompt_text(*length, &q.question));
                base.tokenizer.encode(&text, true)
            });
            let prompts = prompts
                .collect::<Result<Vec<_>, _>>()
                .map_err(failed(IN_CONTEXT))?;
            let right = on_pool(|| answers(base, &set, &choice, &prompts, &questions, IN_CONTEXT))?;
            counted.add(&right, start.elapsed().as_secs_f64());
        }
        counted.report(outcome, IN_CONTEXT, *length, seed);
    }
    Ok(())
}

fn claims(outcome: &mut Outcome) {
    let (long, trained) = (exact(MOST), exact(16));
    let mut judge = |claim: &str, measure: &str, better: &str, than: &str| {
        outcome.judge(claim, measure, better, than, false);
    };
    judge(
        "with 64 facts, four times as many as in learning, writing is right more often than facts in the prompt",
        &long,
        PERK_ARM,
        IN_CONTEXT,
    );
    judge(
        "with 16 facts, as in learning, writing is right more often than facts in the prompt",
        &trained,
        PERK_ARM,
        IN_CONTEXT,
    );
    judge(
        "gradients through the last two steps of four are better than first-order ones, with 16 facts",
        &trained,
        PERK_ARM,
        FIRST_ORDER,
    );
    judge(
        "learnt token weights and rates are better than none, with 64 facts",
        &long,
        PERK_ARM,
        PLAIN,
    );
    judge(
        "answers rest on what was written, with 16 facts",
        &trained,
        PERK_ARM,
        UNWRITTEN,
    );
    let lost = |outcome: &Outcome, arm: &str| -> Vec<f64> {
        let (short, long) = (outcome.of(arm, &trained), outcome.of(arm, &long));
        short
            .iter()
            .filter_map(|(seed, value)| Some(value - long.get(seed)?))
            .collect()
    };
    let differences: Vec<f64> = lost(outcome, IN_CONTEXT)
        .iter()
        .zip(lost(outcome, PERK_ARM))
        .map(|(prompt, written)| prompt - written)
        .collect();
    outcome.judge_differences(
        "from 16 to 64 facts, writing loses less than facts in the prompt",
        &differences,
    );
    let spread = |outcome: &Outcome, arm: &str| -> Vec<f64> {
        let of = |place: &str| outcome.of(arm, &format!("{place} of 16"));
        let (first, middle, last) = (of("first"), of("middle"), of("last"));
        let seeds = first.iter().filter_map(|(seed, first)| {
            let all = [*first, *middle.get(seed)?, *last.get(seed)?];
            let most = all.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            Some(most - all.iter().copied().fold(f64::INFINITY, f64::min))
        });
        seeds.collect()
    };
    let differences: Vec<f64> = spread(outcome, IN_CONTEXT)
        .iter()
        .zip(spread(outcome, PERK_ARM))
        .map(|(prompt, written)| prompt - written)
        .collect();
    outcome.judge_differences(
        "with 16 facts, the place of the right one matters less than in the prompt",
        &differences,
    );
}

fn notes(outcome: &mut Outcome, size: &Size) {
    outcome.notes.push(format!(
        "A decoder of our own (2 blocks, 128 features, a token for each word), trained once on {} stories of up to 8 facts with questions; \
         seeds draw adapters, contexts and questions. A guess among {} rooms is right {:.3} of the time.",
        size.stories,
        ROOMS.len(),
        1.0 / ROOMS.len() as f64
    ));
    outcome.notes.push(format!(
        "{} steps of learning in every arm, a context of {} to {} facts and eight questions each, LoRA of rank 16 on all layers. \
         Writing takes four steps of AdamW; {} contexts of each length are asked for first, middle, last and {} other facts.",
        size.steps,
        size.trained.start(),
        size.trained.end(),
        size.contexts,
        size.questions
    ));
    outcome.notes.push(format!(
        "`{IN_CONTEXT}` is fine-tuned with the facts in the prompt. `{UNWRITTEN}` asks the meta-learned adapter without writing. \
         Seconds are for a context with all its questions, which `{IN_CONTEXT}` reads once for each question."
    ));
}
