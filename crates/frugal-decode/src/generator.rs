//! Continuing prompts that come and go, a token budget at a time.

use std::collections::VecDeque;
use std::sync::Arc;

use frugal_nn::{ActiveAdapters, AdapterSet, Backbone, ModelError, StateOptions};

use crate::config::{FinishReason, GenerateConfig};
use crate::{DecodeError, Sampler, SamplerConfig, SequenceId, Session};

/// How much is computed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneratorOptions {
    /// Most tokens of one step, where a longer prompt is a step of its own.
    pub batch_tokens: usize,
    /// Most sequences that are continued at a time; further prompts wait.
    pub max_sequences: usize,
    /// How what is computed is kept.
    pub state: StateOptions,
}

impl Default for GeneratorOptions {
    fn default() -> Self {
        Self {
            batch_tokens: 2048,
            max_sequences: 64,
            state: StateOptions::default(),
        }
    }
}

/// How one prompt is continued.
#[derive(Clone, Debug, Default)]
pub struct SequenceOptions {
    /// Most tokens to add.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampler: SamplerConfig,
    /// Tokens that end the sequence.
    pub eos_token_ids: Vec<u32>,
    /// Decides the choices.
    pub seed: u64,
}

impl SequenceOptions {
    /// Those of `config`, with a seed of the sequence's own.
    pub(crate) fn of(config: &GenerateConfig, seed: u64) -> Self {
        Self {
            max_tokens: config.max_tokens,
            sampler: config.sampler.clone(),
            eos_token_ids: config.eos_token_ids.clone(),
            seed,
        }
    }
}

/// What a step did for a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Produced {
    /// The sequence.
    pub sequence: SequenceId,
    /// Its next token; none where the model ended it.
    pub token: Option<u32>,
    /// Why it ended, if it did; it has left then.
    pub finish: Option<FinishReason>,
}

/// Continues prompts, each with its own adapters and settings. New ones join while others are being
/// written; what is written does not depend on who else is there.
pub struct Generator {
    session: Session,
    options: GeneratorOptions,
    /// Prompts that nothing is computed of yet.
    waiting: VecDeque<Job>,
    running: VecDeque<Job>,
}

struct Job {
    id: SequenceId,
    prompt: Vec<u32>,
    generated: Vec<u32>,
    sampler: Sampler,
    max_tokens: usize,
    eos_token_ids: Vec<u32>,
}

impl Job {
    /// What is to be computed next.
    fn next(&self) -> &[u32] {
        match self.generated.len() {
            0 => &self.prompt,
            n => &self.generated[n - 1..],
        }
    }

    /// Chooses a token.
    fn produce(&mut self, logits: &mut [f32], room: usize) -> Produced {
        let token = self.sampler.next(logits, &self.prompt, &self.generated);
        let sequence = self.id;
        if self.eos_token_ids.contains(&token) {
            return Produced {
                sequence,
                token: None,
                finish: Some(FinishReason::Stop),
            };
        }
        self.generated.push(token);
        let full = room == 0 || self.generated.len() >= self.max_tokens;
        Produced {
            sequence,
            token: Some(token),
            finish: full.then_some(FinishReason::Length),
        }
    }
}

impl Generator {
    /// Nothing to do yet.
    ///
    /// # Errors
    /// A model that cannot generate; limits of 0.
    pub fn new(
        backbone: Arc<dyn Backbone>,
        adapters: Arc<AdapterSet>,
        options: GeneratorOptions,
    ) -> Result<Self, DecodeError> {
        for (field, value) in [
            ("batch_tokens", options.batch_tokens),
            ("max_sequences", options.max_sequences),
        ] {
            if value == 0 {
                let reason = "must be at least 1".into();
                return Err(DecodeError::Config { field, reason });
            }
        }
        Ok(Self {
            session: Session::new(backbone, adapters, options.state)?,
            options,
            waiting: VecDeque::new(),
            running: VecDeque::new(),
        })
    }

    /// Takes a prompt in.
    ///
    /// # Errors
    /// Empty prompts and those that are longer than the model allows, settings out of range, what
    /// [`Session::add`] refuses.
    pub fn add(
        &mut self,
        prompt: Vec<u32>,
        adapters: ActiveAdapters,
        options: SequenceOptions,
    ) -> Result<SequenceId, DecodeError> {
        let info = self.session.backbone().info();
        let (length, vocab_size, limit) = (prompt.len(), info.vocab_size, info.max_sequence);
        if length == 0 {
            return Err(DecodeError::EmptyPrompt { index: 0 });
        }
        if let Some(position) = prompt.iter().position(|&id| id as usize >= vocab_size) {
            let id = prompt[position];
            return Err(ModelError::TokenId {
                id,
                position,
                vocab_size,
            }
            .into());
        }
        if options.max_tokens == 0 {
            return Err(DecodeError::Config {
                field: "max_tokens",
                reason: "must be at least 1".into(),
            });
        }
        let sampler = Sampler::new(options.sampler, options.seed)?;
        let id = self.session.add(adapters)?;
        let room = self.session.remaining(id)?;
        if length > room {
            self.session.remove(id)?;
            let length = length + (limit - room);
            return Err(ModelError::TooLong { length, limit }.into());
        }
        self.waiting.push_back(Job {
            id,
            prompt,
            generated: Vec::new(),
            sampler,
            max_tokens: options.max_tokens,
            eos_token_ids: options.eos_token_ids,
        });
        Ok(id)
    }

    /// Lets a sequence leave before its end, frees what was kept for it, and gives what was written.
    ///
    /// # Errors
    /// [`DecodeError::UnknownSequence`], also for one that has ended.
    pub fn cancel(&mut self, id: SequenceId) -> Result<Vec<u32>, DecodeError> {
        self.session.remove(id)?;
        for jobs in [&mut self.running, &mut self.waiting] {
            if let Some(i) = jobs.iter().position(|job| job.id == id) {
                let job = jobs.remove(i);
                return Ok(job.map(|job| job.generated).unwrap_or_default());
            }
        }
        Err(DecodeError::UnknownSequence { id })
    }

    /// Whether every prompt has been continued to its end.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Prompts that wait, and sequences that are being written.
    pub fn load(&self) -> (usize, usize) {
        (self.waiting.len(), self.running.len())
    }

    /// Bytes kept.
    pub fn bytes(&self) -> usize {
        self.session.bytes()
    }

    /// Computes the next token of as many sequences as the budget allows; nothing when idle.
    ///
    /// # Errors
    /// Those of [`Session::append`]; everything is then as before the step, so that
    /// [`Generator::cancel`] can take out what is at fault.
    pub fn step(&mut self) -> Result<Vec<Produced>, DecodeError> {
        let [going_on, joining] = self.choose();
        let jobs = self.running.iter().take(going_on);
        let jobs = jobs.chain(self.waiting.iter().take(joining));
        let new: Vec<(SequenceId, &[u32])> = jobs.map(|job| (job.id, job.next())).collect();
        let mut logits = self.session.append(&new)?;
        // Those that had to stand back are the first of the next step.
        self.running.rotate_left(going_on);
        let from = self.running.len() - going_on;
        self.running.extend(self.waiting.drain(..joining));
        let mut produced = Vec::with_capacity(logits.len());
        for (job, logits) in self.running.iter_mut().skip(from).zip(&mut logits) {
            let room = self.session.remaining(job.id)?;
            produced.push(job.produce(logits, room));
        }
        for ended in produced.iter().filter(|p| p.finish.is_some()) {
            self.session.remove(ended.sequence)?;
            self.running.retain(|job| job.id != ended.sequence);
        }
        Ok(produced)
    }

    /// How many of the running sequences go on in the next step, and how many of the waiting ones
    /// join: prompts that fit beside the running ones; a prompt that never will is computed without
    /// them, so that nobody waits for ever.
    fn choose(&self) -> [usize; 2] {
        let GeneratorOptions {
            batch_tokens,
            max_sequences,
            ..
        } = self.options;
        let places = max_sequences.saturating_sub(self.running.len());
        let fitting = |mut room: usize| {
            let waiting = self.waiting.iter().take(places);
            waiting
                .take_while(|job| {
                    let fits = job.prompt.len() <= room;
                    room = room.saturating_sub(job.prompt.len());
                    fits
                })
                .count()
        };
        let going_on = self.running.len().min(batch_tokens);
        match fitting(batch_tokens - going_on) {
            0 if places > 0 && !self.waiting.is_empty() => [0, fitting(batch_tokens).max(1)],
            joining => [going_on, joining],
        }
    }
}
