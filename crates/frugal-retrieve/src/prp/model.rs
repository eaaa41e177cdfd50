//! Comparisons by a language model of the library.

use std::collections::BTreeMap;
use std::sync::Arc;

use frugal_core::tokenizer::TextTokenizer;
use frugal_decode::{DecodeError, SequenceId, Session, StateOptions};
use frugal_nn::{ActiveAdapters, AdapterSet, Backbone, ModelError, StateError};

use super::judge::{Answer, Comparator};
use super::options::{PrpMode, PrpOptions};
use super::parse::parse;
use super::prompt::{Prompt, PrpPrompt, common};
use crate::error::RetrieveError;

/// A language model that compares passages.
pub struct PrpModel<'t> {
    session: Session,
    adapters: ActiveAdapters,
    tokenizer: &'t TextTokenizer,
    prompt: PrpPrompt<'t>,
    options: PrpOptions,
}

impl<'t> PrpModel<'t> {
    /// A model with adapters of `set` that act on every comparison.
    ///
    /// # Errors
    /// A model without a language-model head, settings that do not fit it.
    pub fn new(
        backbone: Arc<dyn Backbone>,
        set: Arc<AdapterSet>,
        adapters: ActiveAdapters,
        tokenizer: &'t TextTokenizer,
        options: PrpOptions,
    ) -> Result<Self, RetrieveError> {
        Ok(Self {
            session: Session::new(backbone, set, StateOptions::default())?,
            adapters,
            tokenizer,
            prompt: PrpPrompt::new(tokenizer, &options)?,
            options,
        })
    }

    /// What it is asked of the passages of one query; they are cut to the tokens that are shown.
    ///
    /// # Errors
    /// Texts that the tokenizer cannot spell.
    pub fn query<'m>(
        &'m mut self,
        query: &'m str,
        passages: &[&str],
    ) -> Result<PrpQuery<'m, 't>, RetrieveError> {
        let passages = passages
            .iter()
            .map(|passage| self.prompt.cut(passage).map(str::to_owned))
            .collect::<Result<_, _>>()?;
        Ok(PrpQuery {
            model: self,
            query,
            passages,
            kept: BTreeMap::new(),
            asked: 0,
            computed_tokens: 0,
            prompt_tokens: 0,
        })
    }
}

/// The comparisons of one query. What prompts with the same passage A begin with is computed once,
/// which changes no answer.
pub struct PrpQuery<'m, 't> {
    model: &'m mut PrpModel<'t>,
    query: &'m str,
    passages: Vec<String>,
    /// Beginnings by passage A, with when they were last used.
    kept: BTreeMap<usize, (SequenceId, u64)>,
    asked: u64,
    computed_tokens: usize,
    prompt_tokens: usize,
}

impl PrpQuery<'_, '_> {
    /// Tokens that were computed, and tokens of all prompts.
    pub fn tokens(&self) -> [usize; 2] {
        [self.computed_tokens, self.prompt_tokens]
    }

    /// The difference of the log-likelihoods of `Passage A` and `Passage B` for each question.
    ///
    /// # Errors
    /// Prompts that are too long for the model, outputs that are no numbers.
    pub fn log_odds(&mut self, questions: &[(usize, usize)]) -> Result<Vec<f64>, RetrieveError> {
        let prompts = self.prompts(questions, |prompt, query, a, b| prompt.scored(query, a, b))?;
        let mut odds = Vec::with_capacity(prompts.len());
        for (questions, prompts) in self.batches(questions, &prompts) {
            let (ids, logits) = self.start(questions, prompts)?;
            for ((id, logits), prompt) in ids.iter().zip(&logits).zip(prompts) {
                let [a, b] = &prompt.answers;
                odds.push(match (a.as_slice(), b.as_slice()) {
                    (&[a], &[b]) => f64::from(logits[a as usize]) - f64::from(logits[b as usize]),
                    (a, b) => {
                        self.log_likelihood(*id, logits, a)?
                            - self.log_likelihood(*id, logits, b)?
                    }
                });
            }
            self.leave(&ids)?;
        }
        Ok(odds)
    }

    /// `log p` of tokens that follow a sequence, of which the logits behind it are known.
    fn log_likelihood(
        &mut self,
        id: SequenceId,
        logits: &[f32],
        tokens: &[u32],
    ) -> Result<f64, RetrieveError> {
        let session = &mut self.model.session;
        let fork = session.fork(id)?;
        let mut sum = 0.0;
        let mut logits = logits.to_vec();
        for (i, &token) in tokens.iter().enumerate() {
            sum += log_softmax(&logits, token);
            if i + 1 < tokens.len() {
                logits = session.append_to(fork, &[token])?;
                self.computed_tokens += 1;
            }
        }
        session.remove(fork)?;
        Ok(sum)
    }

    fn written(&mut self, questions: &[(usize, usize)]) -> Result<Vec<Answer>, RetrieveError> {
        let prompts = self.prompts(questions, |prompt, query, a, b| prompt.written(query, a, b))?;
        let mut answers = Vec::with_capacity(prompts.len());
        for (questions, prompts) in self.batches(questions, &prompts) {
            let (ids, logits) = self.start(questions, prompts)?;
            answers.extend(self.write(&ids, logits)?);
            self.leave(&ids)?;
        }
        Ok(answers)
    }

    /// Greedy decoding of all sequences until each has named a passage or ended.
    fn write(
        &mut self,
        ids: &[SequenceId],
        logits: Vec<Vec<f32>>,
    ) -> Result<Vec<Answer>, RetrieveError> {
        let model = &mut *self.model;
        let mut texts: Vec<Vec<u32>> = vec![Vec::new(); ids.len()];
        let mut answers = vec![Answer::Neither; ids.len()];
        let mut going: Vec<usize> = (0..ids.len()).collect();
        let mut logits: BTreeMap<usize, Vec<f32>> = logits.into_iter().enumerate().collect();
        for _ in 0..model.options.max_tokens {
            let mut next = Vec::new();
            for i in std::mem::take(&mut going) {
                let Some(token) = logits.get(&i).and_then(|logits| largest(logits)) else {
                    continue;
                };
                if model.tokenizer.eos_ids().contains(&token) {
                    continue;
                }
                texts[i].push(token);
                answers[i] = parse(&model.tokenizer.decode(&texts[i], true)?);
                if answers[i] == Answer::Neither && model.session.remaining(ids[i])? > 0 {
                    next.push((i, [token]));
                }
            }
            if next.is_empty() {
                break;
            }
            self.computed_tokens += next.len();
            let new: Vec<(SequenceId, &[u32])> = next
                .iter()
                .map(|(i, token)| (ids[*i], token.as_slice()))
                .collect();
            let found = model.session.append(&new)?;
            going = next.iter().map(|(i, _)| *i).collect();
            logits = going.iter().copied().zip(found).collect();
        }
        Ok(answers)
    }

    fn prompts(
        &self,
        questions: &[(usize, usize)],
        make: impl Fn(&PrpPrompt<'_>, &str, &str, &str) -> Result<Prompt, RetrieveError>,
    ) -> Result<Vec<Prompt>, RetrieveError> {
        let texts = &self.passages;
        questions
            .iter()
            .map(|&(a, b)| make(&self.model.prompt, self.query, &texts[a], &texts[b]))
            .collect()
    }

    /// Questions and prompts that are computed together.
    fn batches<'p>(
        &self,
        questions: &'p [(usize, usize)],
        prompts: &'p [Prompt],
    ) -> Vec<(&'p [(usize, usize)], &'p [Prompt])> {
        let (mut batches, mut start, mut tokens) = (Vec::new(), 0, 0);
        for (i, prompt) in prompts.iter().enumerate() {
            if i > start && tokens + prompt.ids.len() > self.model.options.batch_tokens {
                batches.push((&questions[start..i], &prompts[start..i]));
                (start, tokens) = (i, 0);
            }
            tokens += prompt.ids.len();
        }
        if start < prompts.len() {
            batches.push((&questions[start..], &prompts[start..]));
        }
        batches
    }

    /// A sequence for each prompt, and the logits behind it.
    fn start(
        &mut self,
        questions: &[(usize, usize)],
        prompts: &[Prompt],
    ) -> Result<(Vec<SequenceId>, Vec<Vec<f32>>), RetrieveError> {
        let limit = self.model.session.backbone().info().max_sequence;
        if let Some(prompt) = prompts.iter().find(|prompt| prompt.ids.len() >= limit) {
            let length = prompt.ids.len() + 1;
            return Err(ModelError::TooLong { length, limit }.into());
        }
        let mut ids = Vec::with_capacity(prompts.len());
        let mut rest = Vec::with_capacity(prompts.len());
        for (&(a, _), prompt) in questions.iter().zip(prompts) {
            let id = self.beginning(a, &prompt.ids)?;
            let kept = self.fork_at(id, &prompt.ids)?;
            ids.push(kept.0);
            rest.push(&prompt.ids[kept.1..]);
            self.prompt_tokens += prompt.ids.len();
            self.computed_tokens += prompt.ids.len() - kept.1;
        }
        let new: Vec<(SequenceId, &[u32])> = ids.iter().copied().zip(rest).collect();
        let logits = self.model.session.append(&new)?;
        Ok((ids, logits))
    }

    /// The sequence that prompts with this passage A, such as this one, go on from.
    fn beginning(&mut self, a: usize, prompt: &[u32]) -> Result<SequenceId, RetrieveError> {
        self.asked += 1;
        if let Some((id, used)) = self.kept.get_mut(&a) {
            *used = self.asked;
            return Ok(*id);
        }
        let mut ids = self.model.prompt.shared(self.query, &self.passages[a])?;
        // Its last tokens may join what follows.
        ids.truncate(common(&ids, prompt).min(prompt.len().saturating_sub(1)));
        self.make_room(ids.len())?;
        // Every beginning has the query in common with the others.
        let (id, from) = match self.kept.values().next() {
            Some(&(other, _)) => self.fork_at(other, &ids)?,
            None => (self.model.session.add(self.model.adapters.clone())?, 0),
        };
        if from < ids.len() {
            self.model.session.append_to(id, &ids[from..])?;
            self.computed_tokens += ids.len() - from;
        }
        self.kept.insert(a, (id, self.asked));
        Ok(id)
    }

    /// Lets beginnings go that were not used for long, so that another one has room.
    fn make_room(&mut self, tokens: usize) -> Result<(), RetrieveError> {
        loop {
            let mut held = 0;
            for (id, _) in self.kept.values() {
                held += self.model.session.tokens(*id)?.len();
            }
            let oldest = self.kept.iter().min_by_key(|(_, (_, used))| *used);
            match oldest.map(|(&a, &(id, _))| (a, id)) {
                // One stays, for the query that it begins with.
                Some((a, id))
                    if held + tokens > self.model.options.kept_tokens && self.kept.len() > 1 =>
                {
                    self.kept.remove(&a);
                    self.model.session.remove(id)?;
                }
                _ => return Ok(()),
            }
        }
    }

    /// A new sequence with as much of another one as these tokens begin with, and how much that is;
    /// at least one token is left to compute.
    fn fork_at(
        &mut self,
        id: SequenceId,
        tokens: &[u32],
    ) -> Result<(SequenceId, usize), RetrieveError> {
        let session = &mut self.model.session;
        let shared = common(session.tokens(id)?, tokens).min(tokens.len().saturating_sub(1));
        let fork = session.fork(id)?;
        match session.crop(fork, shared) {
            Ok(()) => Ok((fork, shared)),
            Err(DecodeError::Model(ModelError::State(StateError::OutsideWindow { .. }))) => {
                session.crop(fork, 0)?;
                Ok((fork, 0))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn leave(&mut self, ids: &[SequenceId]) -> Result<(), RetrieveError> {
        for id in ids {
            self.model.session.remove(*id)?;
        }
        Ok(())
    }
}

impl Comparator for PrpQuery<'_, '_> {
    type Error = RetrieveError;

    fn answer(&mut self, questions: &[(usize, usize)]) -> Result<Vec<Answer>, RetrieveError> {
        if self.model.options.mode == PrpMode::Generation {
            return self.written(questions);
        }
        let of = |odds: f64| match odds.partial_cmp(&0.0) {
            Some(std::cmp::Ordering::Greater) => Answer::A,
            Some(std::cmp::Ordering::Less) => Answer::B,
            _ => Answer::Neither,
        };
        Ok(self.log_odds(questions)?.into_iter().map(of).collect())
    }
}

impl Drop for PrpQuery<'_, '_> {
    fn drop(&mut self) {
        for id in self.model.session.sequences().collect::<Vec<_>>() {
            // All of them are there, so that none can fail to leave.
            let _ = self.model.session.remove(id);
        }
    }
}

fn log_softmax(logits: &[f32], token: u32) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - largest).exp()).sum();
    f64::from(logits[token as usize] - largest) - sum.ln()
}

fn largest(logits: &[f32]) -> Option<u32> {
    let all = logits.iter().enumerate();
    // The first of equal ones.
    all.rev()
        .max_by(|a, b| a.1.total_cmp(b.1))
        .map(|(i, _)| i as u32)
}
