//! Ordering candidates by a language model that is asked, or that reads them in its context.

use frugal_core::tokenizer::TextTokenizer;
use frugal_retrieve::blockrank::{BlockRank, BlockRankOptions};
use frugal_retrieve::prp::{
    Answer, Comparator, Judge, PrpAlgorithm, PrpModel, PrpOptions, PrpQuery, rank,
};

use super::rerank::Rerank;
use super::{Opened, RunError};

/// Questions between two looks at whether the work should end.
const QUESTIONS: usize = 32;

/// How a language model ranks.
#[derive(Clone, Debug)]
pub enum PromptedMode {
    /// Pairwise ranking prompting.
    Prp {
        /// How a ranking is made of comparisons.
        algorithm: PrpAlgorithm,
        /// How they are asked.
        options: PrpOptions,
        /// Candidates that need the right place.
        top_k: usize,
    },
    /// Block attention.
    BlockRank(BlockRankOptions),
}

/// What pairwise ranking cost, and how consistent the answers were.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PrpCost {
    /// Questions that the model was asked.
    pub calls: usize,
    /// Questions with those that were answered before.
    pub questions: usize,
    /// Tokens that were computed.
    pub computed_tokens: usize,
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// Share of the pairs that are ties.
    pub conflict_rate: Option<f64>,
    /// Share of the known triples that go round in a circle.
    pub cycle_rate: Option<f64>,
}

/// A language model that ranks candidates.
pub struct PromptedReranker {
    opened: Opened,
    mode: PromptedMode,
}

impl PromptedReranker {
    /// A model with its adapters.
    ///
    /// # Errors
    /// No tokenizer, no language-model head, an adapter that classifies, settings that do not fit.
    pub fn new(opened: Opened, mode: PromptedMode) -> Result<Self, RunError> {
        opened.refuse_classifiers()?;
        let found = Self { opened, mode };
        let tokenizer = found.opened.files.tokenizer()?;
        match &found.mode {
            PromptedMode::Prp { options, .. } => {
                found.prp(tokenizer, options.clone())?;
            }
            PromptedMode::BlockRank(options) => {
                found.blockrank(tokenizer, options)?;
            }
        }
        Ok(found)
    }

    /// The model.
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    fn prp<'t>(
        &self,
        tokenizer: &'t TextTokenizer,
        options: PrpOptions,
    ) -> Result<PrpModel<'t>, RunError> {
        let (backbone, set) = (self.opened.backbone.clone(), self.opened.adapters.clone());
        let choice = self.opened.choice();
        Ok(PrpModel::new(backbone, set, choice, tokenizer, options)?)
    }

    fn blockrank<'t>(
        &self,
        tokenizer: &'t TextTokenizer,
        options: &BlockRankOptions,
    ) -> Result<BlockRank<'t>, RunError> {
        let (backbone, set) = (self.opened.backbone.clone(), self.opened.adapters.clone());
        let choice = self.opened.choice();
        Ok(BlockRank::new(backbone, set, choice, tokenizer, options)?)
    }

    /// Scores of the candidates, and what pairwise ranking cost.
    ///
    /// # Errors
    /// As [`Rerank::scores`].
    pub fn scores_and_cost(
        &self,
        query: &str,
        candidates: &[&str],
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<(Vec<f32>, Option<PrpCost>), RunError> {
        let tokenizer = self.opened.files.tokenizer()?;
        let (scores, cost) = match &self.mode {
            PromptedMode::BlockRank(options) => {
                let model = self.blockrank(tokenizer, options)?;
                (model.scores(query, candidates)?, None)
            }
            PromptedMode::Prp {
                algorithm,
                options,
                top_k,
            } => {
                let mut model = self.prp(tokenizer, options.clone())?;
                let mut asked = Watched {
                    inner: model.query(query, candidates)?,
                    progress: &mut *progress,
                };
                let mut judge = Judge::new(&mut asked);
                let ranking = rank(*algorithm, candidates.len(), *top_k, &mut judge)?;
                let (calls, questions) = (judge.calls(), judge.questions());
                let (conflict_rate, cycle_rate) = (judge.conflict_rate(), judge.cycle_rate());
                let [computed_tokens, prompt_tokens] = asked.inner.tokens();
                let cost = PrpCost {
                    calls,
                    questions,
                    computed_tokens,
                    prompt_tokens,
                    conflict_rate,
                    cycle_rate,
                };
                let scores = ranking.scores.iter().map(|&score| score as f32);
                (scores.collect(), Some(cost))
            }
        };
        if !progress(candidates.len()) {
            return Err(RunError::Interrupted);
        }
        Ok((scores, cost))
    }
}

impl Rerank for PromptedReranker {
    fn scores(
        &self,
        query: &str,
        candidates: &[&str],
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Vec<f32>, RunError> {
        Ok(self.scores_and_cost(query, candidates, progress)?.0)
    }

    fn scale(&self) -> &'static str {
        match &self.mode {
            PromptedMode::Prp {
                algorithm: PrpAlgorithm::Allpair,
                ..
            } => "comparisons won",
            PromptedMode::Prp { .. } => "candidates behind",
            PromptedMode::BlockRank(_) => "share of attention",
        }
    }
}

/// Comparisons that can be stopped.
struct Watched<'w, 'm, 't> {
    inner: PrpQuery<'m, 't>,
    progress: &'w mut dyn FnMut(usize) -> bool,
}

impl Comparator for Watched<'_, '_, '_> {
    type Error = RunError;

    fn answer(&mut self, questions: &[(usize, usize)]) -> Result<Vec<Answer>, RunError> {
        let mut answers = Vec::with_capacity(questions.len());
        for questions in questions.chunks(QUESTIONS) {
            if !(self.progress)(0) {
                return Err(RunError::Interrupted);
            }
            answers.extend(self.inner.answer(questions)?);
        }
        Ok(answers)
    }
}
