//! A backbone, with or without adapter, as the evaluation harness sees it.
//!
//! Tokens, truncation and windows are those of lm-evaluation-harness for causal models: spaces at
//! the end of a context belong to the continuation, context and continuation are tokenized
//! together, what is too long loses its beginning, and whole texts are scored in disjoint windows
//! of the model's length.

use std::collections::HashMap;
use std::sync::Arc;

use frugal_core::data::Message;
use frugal_core::tokenizer::TextTokenizer;
use frugal_decode::{DecodeError, Sampler, SamplerConfig, SequenceId, Session, StateOptions};
use frugal_eval::capacity::TextCost;
use frugal_eval::tasks::{
    Continuations, Generation, LanguageModel, ModelFailure, Sink, ToContinue, Written,
};
use frugal_nn::{
    ActiveAdapters, AdapterSet, Backbone, Input, Mode, Rows, SequenceLayout, select_rows, to_vec,
};

/// Rows of vocabulary logits formed at a time.
const LOGIT_ROWS: usize = 128;
/// Most prompts that are continued together.
const MAX_PROMPTS: usize = 64;

/// A model for the harness.
pub struct HarnessModel<'a> {
    /// The frozen model.
    pub backbone: Arc<dyn Backbone>,
    /// Adapters that it may use.
    pub adapters: Arc<AdapterSet>,
    /// Which of them act.
    pub choice: ActiveAdapters,
    /// Its tokenizer.
    pub tokenizer: &'a TextTokenizer,
    /// Most tokens of a batch; a longer text is a batch of its own.
    pub batch_tokens: usize,
    /// Identifies model and adapter by content.
    pub fingerprint: String,
}

/// Some consecutive tokens of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The tokens.
    pub ids: Vec<u32>,
    /// Bytes of the text that all but the first of them stand for.
    pub bytes: u64,
}

/// A forward pass: what is read, and the tokens that its last rows predict.
struct Scored {
    input: Vec<u32>,
    targets: Vec<u32>,
}

/// A text to continue, in tokens.
struct Asked {
    request: usize,
    ids: Vec<u32>,
    seed: u64,
}

/// Log-likelihood of a row of targets in nats, and whether each was the likeliest token.
type Likelihood = (f64, bool);

impl HarnessModel<'_> {
    fn encode(&self, text: &str) -> Result<Vec<u32>, ModelFailure> {
        // A chat template has written the start token already.
        let bos = self
            .tokenizer
            .settings()
            .bos_token
            .as_deref()
            .filter(|b| !b.is_empty());
        Ok(self
            .tokenizer
            .encode(text, !bos.is_some_and(|bos| text.starts_with(bos)))?)
    }

    /// The token before a text that has nothing before it.
    fn prefix(&self) -> Result<u32, ModelFailure> {
        let id = self
            .tokenizer
            .bos_id()
            .or(self.tokenizer.eos_ids().first().copied());
        id.ok_or_else(|| {
            "the tokenizer has neither a start nor an end token to put in front of a text".into()
        })
    }

    /// Without a context the start token is one, and the continuation has none of its own.
    fn pair(&self, context: &str, continuation: &str) -> Result<Scored, ModelFailure> {
        let (context, targets) = if context.is_empty() {
            let prefix = self.prefix()?;
            let targets = self.tokenizer.encode(continuation, false)?;
            match targets.split_first() {
                Some((first, rest)) if *first == prefix => (vec![prefix], rest.to_vec()),
                _ => (vec![prefix], targets),
            }
        } else {
            let stem = context.trim_end();
            let whole = self.encode(&format!("{stem}{}{continuation}", &context[stem.len()..]))?;
            let context = self.encode(stem)?;
            let from = context.len().min(whole.len());
            if from == 0 {
                (vec![self.prefix()?], whole)
            } else {
                (whole[..from].to_vec(), whole[from..].to_vec())
            }
        };
        if targets.is_empty() {
            return Err(
                format!("the continuation {continuation:?} has no tokens of its own").into(),
            );
        }
        let limit = self.backbone.info().max_sequence;
        if targets.len() > limit {
            return Err(format!(
                "a continuation of {} tokens is longer than the model's {limit} positions",
                targets.len()
            )
            .into());
        }
        let mut input = [context.as_slice(), &targets[..targets.len() - 1]].concat();
        let cut = input.len().saturating_sub(limit);
        input.drain(..cut);
        Ok(Scored { input, targets })
    }

    /// Windows of a text that together predict each of its tokens once; the last one reads as much
    /// before it as fits.
    fn windows(&self, text: &str) -> Result<Vec<Scored>, ModelFailure> {
        Ok(windows(
            &self.encode(text)?,
            self.prefix()?,
            self.backbone.info().max_sequence,
        ))
    }

    /// Negative log-likelihood in nats of all tokens but the first of each sequence, given those
    /// before.
    ///
    /// # Errors
    /// Sequences of fewer than two tokens or longer than the model's positions, models without
    /// output head.
    pub fn negative_log_likelihoods(&self, sequences: &[&[u32]]) -> Result<Vec<f64>, ModelFailure> {
        let scored = |ids: &&[u32]| match ids.len() {
            0 | 1 => Err("a sequence needs two tokens to be scored".to_owned()),
            n => Ok(Scored {
                input: ids[..n - 1].to_vec(),
                targets: ids[1..].to_vec(),
            }),
        };
        let requests = sequences
            .iter()
            .map(scored)
            .collect::<Result<Vec<_>, _>>()?;
        let mut sums = vec![0.0; sequences.len()];
        self.score(&requests, &mut |i, (sum, _)| {
            sums[i] = -sum;
            true
        })?;
        Ok(sums)
    }

    /// Hidden states after the final norm, `[tokens, d_model]` row by row.
    ///
    /// # Errors
    /// Sequences that are empty or longer than the model's positions.
    pub fn hidden_states(&self, ids: &[u32]) -> Result<Vec<f32>, ModelFailure> {
        let layout = SequenceLayout::new(&[ids.len()]);
        let mut pass = self.adapters.pass(&self.choice, &layout, Mode::Eval)?;
        Ok(to_vec::<2>(self.backbone.forward(
            &Input::tokens(ids, layout),
            pass.as_mut(),
            None,
        )?))
    }

    /// What stretches of a text cost.
    ///
    /// # Errors
    /// As [`Self::negative_log_likelihoods`].
    pub fn text_cost(&self, stretches: &[Stretch]) -> Result<TextCost, ModelFailure> {
        let ids: Vec<&[u32]> = stretches.iter().map(|s| s.ids.as_slice()).collect();
        Ok(TextCost {
            tokens: stretches.iter().map(|s| s.ids.len() as u64 - 1).sum(),
            bytes: stretches.iter().map(|s| s.bytes).sum(),
            nats: self.negative_log_likelihoods(&ids)?.iter().sum(),
        })
    }

    /// Scores all requests, longest first; equal inputs are computed once.
    fn score(&self, requests: &[Scored], answer: Sink<'_, Likelihood>) -> Result<(), ModelFailure> {
        let mut same: HashMap<&[u32], Vec<usize>> = HashMap::new();
        requests
            .iter()
            .enumerate()
            .for_each(|(i, r)| same.entry(&r.input).or_default().push(i));
        let mut groups: Vec<(&[u32], Vec<usize>)> = same.into_iter().collect();
        groups.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.1.cmp(&b.1)));
        for batch in budgeted(&groups, self.batch_tokens, |(input, _)| input.len()) {
            let lengths: Vec<usize> = batch.iter().map(|(input, _)| input.len()).collect();
            let ids: Vec<u32> = batch
                .iter()
                .flat_map(|(input, _)| input.iter().copied())
                .collect();
            let layout = SequenceLayout::new(&lengths);
            let ends = layout.cu_seqlens.clone();
            let mut pass = self.adapters.pass(&self.choice, &layout, Mode::Eval)?;
            let hidden =
                self.backbone
                    .forward(&Input::tokens(&ids, layout), pass.as_mut(), None)?;
            // Which rows predict which tokens of which request.
            let mut rows: Vec<(usize, Vec<(usize, u32)>)> = Vec::new();
            for (n, (_, members)) in batch.iter().enumerate() {
                let longest = members
                    .iter()
                    .map(|&i| requests[i].targets.len())
                    .max()
                    .unwrap_or(0);
                for back in (1..=longest).rev() {
                    let targets = members.iter().filter_map(|&i| {
                        let targets = &requests[i].targets;
                        targets.len().checked_sub(back).map(|at| (i, targets[at]))
                    });
                    rows.push((ends[n + 1] - back, targets.collect()));
                }
            }
            let mut sums: HashMap<usize, Likelihood> = HashMap::new();
            for part in rows.chunks(LOGIT_ROWS) {
                let indices: Vec<usize> = part.iter().map(|(row, _)| *row).collect();
                let logits = self
                    .backbone
                    .logits(
                        select_rows(hidden.clone(), &indices),
                        Rows::Chosen,
                        pass.as_mut(),
                    )
                    .ok_or_else(|| DecodeError::NoHead {
                        why: self.backbone.info().why_no_head(),
                    })?;
                let vocab = logits.dims()[1];
                let logits = to_vec::<2>(logits);
                self.backbone.info().check_finite("logits", &logits)?;
                for (logits, (_, targets)) in logits.chunks(vocab).zip(part) {
                    let row = Row::new(logits)?;
                    for (request, token) in targets {
                        let sum = sums.entry(*request).or_insert((0.0, true));
                        sum.0 += row.log_probability(logits, *token);
                        sum.1 &= row.likeliest == *token;
                    }
                }
            }
            let mut done: Vec<(usize, Likelihood)> = sums.into_iter().collect();
            done.sort_by_key(|(i, _)| *i);
            if !done
                .into_iter()
                .all(|(i, likelihood)| answer(i, likelihood))
            {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Continues some prompts together.
    fn continue_batch(
        &self,
        prompts: &[Asked],
        generation: &Generation,
        answer: Sink<'_, Written>,
    ) -> Result<bool, ModelFailure> {
        let config = SamplerConfig {
            temperature: generation.temperature,
            top_p: generation.top_p,
            top_k: generation.top_k,
            min_p: generation.min_p,
            repetition_penalty: generation.repetition_penalty,
            ..SamplerConfig::default()
        };
        let mut samplers = prompts
            .iter()
            .map(|p| Sampler::new(config.clone(), p.seed))
            .collect::<Result<Vec<_>, DecodeError>>()?;
        let options = StateOptions::default();
        let mut session = Session::new(self.backbone.clone(), self.adapters.clone(), options)?;
        let ids = prompts
            .iter()
            .map(|_| session.add(self.choice.clone()))
            .collect::<Result<Vec<SequenceId>, _>>()?;
        // A stop text of n bytes ends within the last n tokens; a few more, since a decoder treats
        // a beginning in its own way.
        let tail = generation.until.iter().map(String::len).max().unwrap_or(0) + 4;
        let mut written: Vec<Vec<u32>> = vec![Vec::new(); prompts.len()];
        let mut sums = vec![(0.0, 0); prompts.len()];
        let mut active: Vec<usize> = (0..prompts.len()).collect();
        let begin = ids
            .iter()
            .zip(prompts)
            .map(|(id, p)| (*id, p.ids.as_slice()));
        let mut logits = session.append(&begin.collect::<Vec<_>>())?;
        loop {
            let mut next: Vec<(usize, [u32; 1])> = Vec::new();
            for (&i, logits) in active.iter().zip(&mut logits) {
                let room = session.remaining(ids[i])?;
                let row = Row::new(logits)?;
                // Only a penalty changes them.
                let before = (config.repetition_penalty != 1.0).then(|| logits.clone());
                let token = samplers[i].next(logits, &prompts[i].ids, &written[i]);
                sums[i].0 += row.log_probability(before.as_deref().unwrap_or(logits), token);
                sums[i].1 += 1;
                let mut goes_on = !self.tokenizer.eos_ids().contains(&token);
                if goes_on {
                    written[i].push(token);
                    let end = &written[i][written[i].len().saturating_sub(tail)..];
                    let text = self.tokenizer.decode(end, true)?;
                    goes_on = room > 0
                        && written[i].len() < generation.max_tokens
                        && !generation
                            .until
                            .iter()
                            .any(|stop| text.contains(stop.as_str()));
                }
                if goes_on {
                    next.push((i, [token]));
                } else {
                    session.remove(ids[i])?;
                    let found = Written {
                        text: self.finish(&written[i], generation)?,
                        likelihood: Some(sums[i]),
                    };
                    if !answer(prompts[i].request, found) {
                        return Ok(false);
                    }
                }
            }
            active = next.iter().map(|(i, _)| *i).collect();
            if active.is_empty() {
                return Ok(true);
            }
            let new = next.iter().map(|(i, token)| (ids[*i], token.as_slice()));
            logits = session.append(&new.collect::<Vec<_>>())?;
        }
    }

    fn finish(&self, tokens: &[u32], generation: &Generation) -> Result<String, ModelFailure> {
        let text = self.tokenizer.decode(tokens, true)?;
        let end = generation
            .until
            .iter()
            .filter_map(|stop| text.find(stop.as_str()))
            .min()
            .unwrap_or(text.len());
        Ok(text[..end].to_owned())
    }
}

impl LanguageModel for HarnessModel<'_> {
    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn loglikelihood(
        &mut self,
        requests: &[Continuations<'_>],
        answer: Sink<'_, Vec<(f64, bool)>>,
    ) -> Result<(), ModelFailure> {
        let mut owners = Vec::new();
        let mut scored = Vec::new();
        for (owner, request) in requests.iter().enumerate() {
            for continuation in request.continuations {
                owners.push(owner);
                scored.push(self.pair(request.context, continuation)?);
            }
        }
        let first: Vec<usize> = (0..requests.len())
            .map(|r| owners.partition_point(|o| *o < r))
            .collect();
        let mut found: Vec<Vec<Option<Likelihood>>> = requests
            .iter()
            .map(|r| vec![None; r.continuations.len()])
            .collect();
        self.score(&scored, &mut |i, likelihood| {
            let owner = owners[i];
            found[owner][i - first[owner]] = Some(likelihood);
            let complete: Option<Vec<Likelihood>> = found[owner].iter().copied().collect();
            complete.is_none_or(|all| answer(owner, all))
        })
    }

    fn loglikelihood_rolling(
        &mut self,
        texts: &[&str],
        answer: Sink<'_, (f64, usize)>,
    ) -> Result<(), ModelFailure> {
        let mut owners = Vec::new();
        let mut scored = Vec::new();
        let mut left = vec![0; texts.len()];
        let mut sums = vec![(0.0, 0); texts.len()];
        for (owner, text) in texts.iter().enumerate() {
            let windows = self.windows(text)?;
            if windows.is_empty() && !answer(owner, (0.0, 0)) {
                return Ok(());
            }
            left[owner] = windows.len();
            owners.resize(owners.len() + windows.len(), owner);
            scored.extend(windows);
        }
        self.score(&scored, &mut |i, (sum, _)| {
            let owner = owners[i];
            sums[owner].0 += sum;
            sums[owner].1 += scored[i].targets.len();
            left[owner] -= 1;
            left[owner] > 0 || answer(owner, sums[owner])
        })
    }

    fn generate_until(
        &mut self,
        requests: &[ToContinue<'_>],
        generation: &Generation,
        answer: Sink<'_, Written>,
    ) -> Result<(), ModelFailure> {
        let limit = self.backbone.info().max_sequence;
        let room = limit.checked_sub(generation.max_tokens).filter(|r| *r > 0).ok_or_else(|| {
            format!("answers of {} tokens leave no room for a prompt in the model's {limit} positions", generation.max_tokens)
        })?;
        let mut prompts = Vec::with_capacity(requests.len());
        for (i, request) in requests.iter().enumerate() {
            let mut ids = self.encode(request.context)?;
            if ids.is_empty() {
                ids.push(self.prefix()?);
            }
            ids.drain(..ids.len().saturating_sub(room));
            prompts.push(Asked {
                request: i,
                ids,
                seed: request.seed,
            });
        }
        prompts.sort_by(|a, b| {
            b.ids
                .len()
                .cmp(&a.ids.len())
                .then(a.request.cmp(&b.request))
        });
        for batch in budgeted(&prompts, self.batch_tokens, |asked| {
            asked.ids.len() + generation.max_tokens
        }) {
            for part in batch.chunks(MAX_PROMPTS) {
                if !self.continue_batch(part, generation, answer)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn chat(&self, messages: &[Message]) -> Result<String, ModelFailure> {
        Ok(self.tokenizer.render_chat(messages, true)?)
    }
}

fn windows(tokens: &[u32], prefix: u32, limit: usize) -> Vec<Scored> {
    let mut windows = Vec::new();
    let mut predicted = 0;
    while predicted < tokens.len() {
        let end = tokens.len().min(predicted + limit);
        let input = match predicted {
            0 => [&[prefix], &tokens[..end - 1]].concat(),
            _ => tokens[end - 1 - limit..end - 1].to_vec(),
        };
        windows.push(Scored {
            input,
            targets: tokens[predicted..end].to_vec(),
        });
        predicted = end;
    }
    windows
}

/// Cuts a list wherever the next item would exceed the budget.
fn budgeted<T>(items: &[T], budget: usize, size: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let mut parts = Vec::new();
    let (mut start, mut sum) = (0, 0);
    for (i, item) in items.iter().enumerate() {
        if i > start && sum + size(item) > budget {
            parts.push(&items[start..i]);
            (start, sum) = (i, 0);
        }
        sum += size(item);
    }
    if start < items.len() {
        parts.push(&items[start..]);
    }
    parts
}

/// What one row of logits needs to give probabilities.
struct Row {
    log_sum: f64,
    likeliest: u32,
}

impl Row {
    fn new(logits: &[f32]) -> Result<Self, ModelFailure> {
        let (likeliest, most) =
            logits
                .iter()
                .enumerate()
                .fold((0, f32::NEG_INFINITY), |best, (i, &l)| {
                    if l > best.1 { (i, l) } else { best }
                });
        // In f64: the sum has as many terms as the vocabulary has tokens.
        let sum: f64 = logits.iter().map(|&l| f64::from(l - most).exp()).sum();
        let log_sum = f64::from(most) + sum.ln();
        if !log_sum.is_finite() {
            return Err("the model's logits are not finite: its weights are damaged, or its format cannot hold its values".into());
        }
        Ok(Self {
            log_sum,
            likeliest: likeliest as u32,
        })
    }

    fn log_probability(&self, logits: &[f32], token: u32) -> f64 {
        logits
            .get(token as usize)
            .map_or(f64::NEG_INFINITY, |&l| f64::from(l))
            - self.log_sum
    }
}

#[cfg(test)]
mod tests;
