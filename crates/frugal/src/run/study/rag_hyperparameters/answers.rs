//! What a small model answers from the passages of a few arms.

use std::time::Instant;

use frugal_core::data::Message;
use frugal_decode::SamplerConfig;
use frugal_eval::rag::{
    JudgeError, ProxyJudge, RagSample, exact_match, id_precision, id_recall, score, token_f1,
};
use frugal_retrieve::rag::{
    Corrective, CorrectiveOptions, Passage, PromptOptions, build_prompt, correct, expand_query,
    question_coverage,
};

use super::super::{Outcome, StudyError, StudyEvent, StudyRequest};
use super::arms::{ANSWERED, CONTEXT};
use super::questions::{Question, Questions};
use super::retrieval::Retrieved;
use super::rig::Rig;
use crate::run::{GenerateRequest, Prompt, Rerank, RunError, generate};

/// Most tokens of an answer, and of a prompt with its frame.
const ANSWER: usize = 40;
const PROMPT: usize = CONTEXT + 256;
/// Temperatures besides 0, for the best arm.
const TEMPERATURES: [f32; 3] = [0.2, 0.7, 1.0];
/// Candidates of the cross-encoder.
const RERANKED: usize = 20;
/// Share of a question's words from which a passage counts as relevant.
const COVERAGE: f64 = 0.5;
const NAMES: [&str; 6] = [
    "faithfulness (proxy)",
    "answer relevancy (proxy)",
    "context precision (proxy)",
    "context recall (proxy)",
    "answer similarity",
    "answer correctness (proxy)",
];

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Way {
    corrective: bool,
    rerank: bool,
    temperature: f32,
}

impl Way {
    fn name(self, arm: &str) -> String {
        let mut name = format!("answers: {arm}");
        for (is, text) in [
            (self.corrective, ", corrective"),
            (self.rerank, ", reranked"),
        ] {
            if is {
                name += text;
            }
        }
        if self.temperature > 0.0 {
            name += &format!(", temperature {}", self.temperature);
        }
        name
    }
}

/// Most steps that there will be.
pub(super) fn steps(request: &StudyRequest<'_>) -> usize {
    if request.smoke {
        6
    } else {
        6 + TEMPERATURES.len() + 1
    }
}

/// Plain and corrective for every arm; temperatures and the cross-encoder for the first.
pub(super) fn measure(
    arms: &[&Retrieved],
    rig: &Rig,
    questions: &Questions,
    request: &StudyRequest<'_>,
    outcome: &mut Outcome,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<(), StudyError> {
    let mut plain = Vec::new();
    for (number, arm) in arms.iter().enumerate() {
        let mut ways = vec![
            Way::default(),
            Way {
                corrective: true,
                ..Way::default()
            },
        ];
        if number == 0 && !request.smoke {
            ways.extend(TEMPERATURES.map(|temperature| Way {
                temperature,
                ..Way::default()
            }));
        }
        if number == 0 && rig.reranker.is_some() {
            ways.push(Way {
                rerank: true,
                ..Way::default()
            });
        }
        let mut of_arm = Vec::new();
        for way in ways {
            request.check()?;
            of_arm.push((way, one(arm, way, rig, questions, request, outcome)?));
            observe(StudyEvent::Step {
                what: way.name(&arm.arm.name()),
            });
        }
        judge(arm, &of_arm, outcome);
        plain.push((of_arm[0].1.f1(), of_arm[1].1.f1()));
    }
    let kept = plain
        .windows(2)
        .filter(|w| (w[0].0 >= w[1].0) == (w[0].1 >= w[1].1))
        .count();
    outcome.notes.push(format!(
        "order of the arms by F1 of their answers: the corrective loop keeps {kept} of {} neighbors in order",
        plain.len().saturating_sub(1)
    ));
    if rig.reranker.is_none() {
        outcome.notes.push(
            "reranking was left out: `ms-marco-minilm-l12` is not there (see `frugal models`)"
                .into(),
        );
    }
    Ok(())
}

/// Values question by question.
struct Values {
    f1: Vec<f64>,
    precision: Vec<f64>,
    seconds: Vec<f64>,
}

impl Values {
    fn f1(&self) -> f64 {
        self.f1.iter().sum::<f64>() / self.f1.len().max(1) as f64
    }
}

fn judge(arm: &Retrieved, ways: &[(Way, Values)], outcome: &mut Outcome) {
    let plain = &ways[0].1;
    let difference = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>();
    let name = arm.arm.name();
    for (way, values) in &ways[1..] {
        if way.corrective {
            outcome.judge_differences(
                format!("{name}: the corrective loop raises the share of right passages"),
                &difference(&values.precision, &plain.precision),
            );
        }
        if way.rerank {
            outcome.judge_differences(
                format!("{name}: reranking raises the share of right passages"),
                &difference(&values.precision, &plain.precision),
            );
        }
        if way.temperature > 0.2 {
            outcome.judge_differences(
                format!(
                    "{name}: temperature 0 has a higher F1 than {}",
                    way.temperature
                ),
                &difference(&plain.f1, &values.f1),
            );
        }
        let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len().max(1) as f64;
        outcome.notes.push(format!(
            "{}: {:.2} times the time of a plain answer",
            way.name(&name),
            mean(&values.seconds) / mean(&plain.seconds).max(1e-9)
        ));
    }
}

/// Search, perhaps grading and reranking, over the pieces of an arm.
struct Finder<'a> {
    arm: &'a Retrieved,
    rig: &'a Rig,
    rerank: bool,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Finder<'_> {
    fn find(&self, query: &str, k: usize) -> Result<Vec<Passage>, Failure> {
        let vector = self.rig.embed(&[query])?;
        let depth = if self.rerank { RERANKED.max(k) } else { k };
        let found = self.arm.search(&vector[0], depth)?;
        let mut found: Vec<Passage> = found
            .into_iter()
            .map(|piece| self.arm.pieces[piece].passage.clone())
            .collect();
        if let Some(reranker) = self.rig.reranker.as_ref().filter(|_| self.rerank) {
            let texts: Vec<&str> = found.iter().map(|p| p.text.as_str()).collect();
            let scores = reranker.scores(query, &texts, &mut |_| true)?;
            for (passage, score) in found.iter_mut().zip(scores) {
                passage.score = score.into();
            }
            found.sort_by(|a, b| b.score.total_cmp(&a.score));
        }
        found.truncate(k);
        Ok(found)
    }
}

impl Corrective for Finder<'_> {
    type Error = Failure;

    fn retrieve(&mut self, query: &str) -> Result<Vec<Passage>, Failure> {
        self.find(query, self.arm.k)
    }

    fn grade(&mut self, question: &str, passages: &[Passage]) -> Result<Vec<bool>, Failure> {
        let graded = passages.iter();
        Ok(graded
            .map(|p| question_coverage(question, p) >= COVERAGE)
            .collect())
    }

    fn rewrite(
        &mut self,
        question: &str,
        _: &str,
        _: &[Passage],
    ) -> Result<Option<String>, Failure> {
        Ok(expand_query(question, &self.find(question, 50)?, 3, 5))
    }
}

fn one(
    arm: &Retrieved,
    way: Way,
    rig: &Rig,
    questions: &Questions,
    request: &StudyRequest<'_>,
    outcome: &mut Outcome,
) -> Result<Values, StudyError> {
    let name = way.name(&arm.arm.name());
    let failed = |e: Failure| StudyError::arm(name.clone(), e);
    let mut embed = |texts: &[&str]| {
        rig.embed(texts)
            .map_err(|e| JudgeError::Failed(e.to_string()))
    };
    let mut judge = ProxyJudge::new(&mut embed);
    let mut values = Values {
        f1: Vec::new(),
        precision: Vec::new(),
        seconds: Vec::new(),
    };
    let count = if request.smoke { 2 } else { ANSWERED };
    for seed in &request.seeds {
        let mut rows: Vec<[Option<f64>; 11]> = Vec::new();
        for number in questions.drawn(*seed, count) {
            request.check()?;
            let question = &questions.questions[number];
            let begin = Instant::now();
            let found = passages(arm, way, rig, question).map_err(failed)?;
            let answer = write(rig, question, &found, way, *seed).map_err(|e| failed(e.into()))?;
            let seconds = begin.elapsed().as_secs_f64();
            let right = right(arm, question);
            let right: Vec<&str> = right.iter().map(String::as_str).collect();
            let given: Vec<&str> = found.iter().map(|p| p.id.as_str()).collect();
            let sample = RagSample {
                question: question.text.clone(),
                contexts: found.iter().map(|p| p.text.clone()).collect(),
                reference: question.answer.clone(),
                answer,
            };
            let scores = score(&mut judge, &sample);
            let f1 = token_f1(&sample.answer, &sample.reference);
            let precision = id_precision(&given, &right);
            values.f1.push(f1);
            values.precision.push(precision.unwrap_or(0.0));
            values.seconds.push(seconds);
            let [a, b, c, d, e, f] = scores.named().map(|(_, value)| value);
            let exact = exact_match(&sample.answer, &sample.reference);
            let own = [
                Some(f64::from(u8::from(exact))),
                Some(f1),
                precision,
                id_recall(&given, &right),
                Some(seconds),
            ];
            rows.push([a, b, c, d, e, f, own[0], own[1], own[2], own[3], own[4]]);
        }
        let own = ["exact match", "F1", "id precision", "id recall", "s/answer"];
        for (column, measure) in NAMES.iter().chain(&own).enumerate() {
            let found: Vec<f64> = rows.iter().filter_map(|row| row[column]).collect();
            if !found.is_empty() {
                let mean = found.iter().sum::<f64>() / found.len() as f64;
                outcome.add(&name, measure, *seed, mean);
            }
        }
    }
    Ok(values)
}

fn passages(
    arm: &Retrieved,
    way: Way,
    rig: &Rig,
    question: &Question,
) -> Result<Vec<Passage>, Failure> {
    let mut finder = Finder {
        arm,
        rig,
        rerank: way.rerank,
    };
    if !way.corrective {
        return finder.find(&question.text, arm.k);
    }
    let options = CorrectiveOptions {
        keep: arm.k,
        ..CorrectiveOptions::default()
    };
    Ok(correct(&mut finder, &question.text, options)?.passages)
}

/// Identifiers of the pieces that have the whole answer.
fn right(arm: &Retrieved, question: &Question) -> Vec<String> {
    let all = 0..arm.pieces.len();
    let right = all.filter(|piece| arm.is_right(*piece, question));
    right
        .map(|piece| arm.pieces[piece].passage.id.clone())
        .collect()
}

/// The model's answer; empty where there are no passages.
fn write(
    rig: &Rig,
    question: &Question,
    passages: &[Passage],
    way: Way,
    seed: u64,
) -> Result<String, RunError> {
    if passages.is_empty() {
        return Ok(String::new());
    }
    let tokenizer = rig.generator.files.tokenizer()?;
    let chat = tokenizer.has_chat_template();
    let mut count = |text: &str| -> Result<usize, RunError> {
        let text = match chat {
            true => tokenizer.render_chat(&[Message::new("user", text)], true)?,
            false => text.to_owned(),
        };
        Ok(tokenizer.encode(&text, !chat)?.len())
    };
    let options = PromptOptions {
        instructions: "Answer the question in a few words, using only the passages below.".into(),
        ..PromptOptions::within(PROMPT)
    };
    let built = build_prompt(&question.text, passages, &options, &mut count);
    let built = built.map_err(|e| RunError::Invalid(e.to_string()))?;
    let request = GenerateRequest {
        prompts: vec![Prompt {
            text: built.text,
            adapter: None,
        }],
        chat,
        system: None,
        stop: vec!["\n".into()],
        max_tokens: ANSWER,
        sampler: SamplerConfig {
            temperature: way.temperature,
            ..SamplerConfig::default()
        },
        seed,
        cache_type: Default::default(),
    };
    let found = generate(&rig.generator, &request, &mut |_| true)?;
    let first = found.into_iter().next();
    Ok(first.map_or_else(String::new, |continued| continued.text.trim().to_owned()))
}
