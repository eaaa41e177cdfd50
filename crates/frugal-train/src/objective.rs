//! What is minimised: next-token prediction, or the cross-entropy of a classification head.

use burn::prelude::*;
use burn::tensor::activation::log_softmax;
use frugal_kernels::{
    CrossEntropyOptions, IGNORE_INDEX, linear_cross_entropy, quantized_cross_entropy,
};
use frugal_nn::{
    Backbone, Head, Input, LinearChange, Mode, ModelError, Pass, Rows, SequenceLayout, Weight,
    select_rows,
};

use crate::error::{Set, TrainError};
use crate::{Target, Tokenized};

/// What is minimised.
#[derive(Clone, Copy)]
pub enum Objective<'a> {
    /// Predicting the target token at every position that has one.
    CausalLm,
    /// Predicting the class of a sequence.
    Classification(&'a Head),
}

/// Examples one after another, without padding.
#[derive(Debug, Default)]
pub(super) struct MicroBatch {
    input_ids: Vec<u32>,
    token_type_ids: Vec<u32>,
    lengths: Vec<usize>,
    /// A target per token or per sequence.
    pub(super) targets: Vec<i32>,
}

impl MicroBatch {
    pub(super) fn new<'a>(examples: impl Iterator<Item = &'a Tokenized>) -> Self {
        let mut batch = Self::default();
        for example in examples {
            batch.input_ids.extend(&example.input_ids);
            batch.lengths.push(example.input_ids.len());
            if !example.token_type_ids.is_empty() {
                // Examples before this one had segment 0 throughout.
                batch
                    .token_type_ids
                    .resize(batch.input_ids.len() - example.input_ids.len(), 0);
                batch.token_type_ids.extend(&example.token_type_ids);
            }
            match &example.labels {
                Target::Tokens(targets) => batch.targets.extend(targets),
                Target::Class(class) => batch.targets.push(*class as i32),
            }
        }
        if !batch.token_type_ids.is_empty() {
            batch.token_type_ids.resize(batch.input_ids.len(), 0);
        }
        batch
    }

    fn forward(
        &self,
        backbone: &dyn Backbone,
        pass: &mut dyn Pass,
    ) -> Result<(Tensor<2>, SequenceLayout), ModelError> {
        let layout = SequenceLayout::new(&self.lengths);
        let input = Input {
            token_type_ids: &self.token_type_ids,
            ..Input::tokens(&self.input_ids, layout.clone())
        };
        Ok((backbone.forward(&input, pass, None)?, layout))
    }

    /// Logits of a head `[sequences, labels]`.
    pub(super) fn class_logits(
        &self,
        head: &Head,
        backbone: &dyn Backbone,
        pass: &mut dyn Pass,
        mode: Mode,
    ) -> Result<Tensor<2>, ModelError> {
        let (hidden_states, layout) = self.forward(backbone, pass)?;
        Ok(head.forward(hidden_states, &layout, backbone, pass, mode))
    }
}

impl Objective<'_> {
    /// The loss summed over the targets of a batch, `[1]`. At most `max_rows` rows of logits are
    /// formed at a time.
    pub(super) fn loss(
        &self,
        batch: &MicroBatch,
        backbone: &dyn Backbone,
        pass: &mut dyn Pass,
        mode: Mode,
        label_smoothing: f64,
        max_rows: usize,
    ) -> Result<Tensor<1>, ModelError> {
        match self {
            Self::CausalLm => {
                let (hidden_states, _) = batch.forward(backbone, pass)?;
                Ok(token_loss(
                    hidden_states,
                    &batch.targets,
                    backbone,
                    pass,
                    label_smoothing,
                    max_rows,
                ))
            }
            Self::Classification(head) => Ok(cross_entropy(
                batch.class_logits(head, backbone, pass, mode)?,
                &batch.targets,
                label_smoothing,
            )),
        }
    }

    /// Checks that every example fits the task and the model, and that there is something to
    /// predict.
    ///
    /// # Errors
    /// A backbone without the output head that it takes, or the first example at fault.
    pub(super) fn check(
        &self,
        set: Set,
        backbone: &dyn Backbone,
        examples: &[Tokenized],
    ) -> Result<(), TrainError> {
        if matches!(self, Self::CausalLm) && backbone.lm_head().is_none() {
            let why = backbone.info().why_no_head();
            return Err(TrainError::Setup(format!(
                "{why}; to train without one, give labels and a classification head"
            )));
        }
        let mut any = false;
        for (row, example) in examples.iter().enumerate() {
            self.check_example(example, backbone)
                .map_err(|reason| TrainError::Example { set, row, reason })?;
            any = any || crate::batch::num_targets(example) > 0;
        }
        if any {
            Ok(())
        } else {
            Err(TrainError::Empty { set })
        }
    }

    fn check_example(&self, example: &Tokenized, backbone: &dyn Backbone) -> Result<(), String> {
        let (tokens, types, vocab) = (
            example.input_ids.len(),
            example.token_type_ids.len(),
            backbone.info().vocab_size,
        );
        if tokens == 0 {
            return Err("it has no tokens".into());
        }
        if types != 0 && types != tokens {
            return Err(format!("{types} segment ids for {tokens} tokens"));
        }
        if let Some(id) = example.input_ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(format!(
                "token id {id} is outside the vocabulary of {vocab}: the tokenizer does not belong to this model"
            ));
        }
        match (self, &example.labels) {
            (Self::CausalLm, Target::Tokens(targets)) => {
                if targets.len() != tokens {
                    return Err(format!("{} targets for {tokens} tokens", targets.len()));
                }
                let bad = targets
                    .iter()
                    .find(|&&t| t != IGNORE_INDEX && !(0..vocab as i64).contains(&i64::from(t)));
                bad.map_or(Ok(()), |t| {
                    Err(format!("target {t} is outside the vocabulary of {vocab}"))
                })
            }
            (Self::Classification(head), Target::Class(class)) => {
                let labels = head.config().labels.len();
                if *class < labels {
                    Ok(())
                } else {
                    Err(format!("class {class}, but the head has {labels} labels"))
                }
            }
            (Self::CausalLm, Target::Class(_)) => {
                Err("it has a class, but language modelling needs target tokens".into())
            }
            (Self::Classification(_), Target::Tokens(_)) => {
                Err("it has target tokens, but a classification head needs a class".into())
            }
        }
    }
}

fn token_loss(
    hidden_states: Tensor<2>,
    targets: &[i32],
    backbone: &dyn Backbone,
    pass: &mut dyn Pass,
    label_smoothing: f64,
    max_rows: usize,
) -> Tensor<1> {
    let head = backbone
        .lm_head()
        .expect("a run checks first that the model has an output head");
    let rows: Vec<usize> = (0..targets.len())
        .filter(|&i| targets[i] != IGNORE_INDEX)
        .collect();
    let options = CrossEntropyOptions {
        label_smoothing: label_smoothing as f32,
        logit_softcap: backbone
            .info()
            .final_logit_softcapping
            .map(|cap| cap as f32),
        ..CrossEntropyOptions::default()
    };
    let change = pass.linear_change(head);
    let packed = match (&head.weight, &change) {
        (Weight::Packed { packed, .. }, LinearChange::None) => Some(packed),
        _ => None,
    };
    let weight = if packed.is_some() {
        None
    } else {
        change.weight(head)
    };
    let parts = rows.chunks(max_rows.max(1)).map(|rows| {
        let targets: Vec<i32> = rows.iter().map(|&i| targets[i]).collect();
        let hidden_states = select_rows(hidden_states.clone(), rows);
        if let Some(packed) = packed {
            return quantized_cross_entropy(
                hidden_states,
                packed,
                head.bias.clone(),
                &targets,
                &options,
            );
        }
        match &weight {
            Some(weight) => linear_cross_entropy(
                hidden_states,
                weight.clone(),
                head.bias.clone(),
                &targets,
                &options,
            ),
            None => {
                let logits = backbone
                    .logits(hidden_states, Rows::Chosen, pass)
                    .expect("the output head was there just before");
                cross_entropy(logits, &targets, label_smoothing)
            }
        }
    });
    parts
        .reduce(|sum, part| sum + part)
        .expect("batches without any target are not made")
}

/// Cross-entropy of logits `[rows, classes]`, summed over the rows; `[1]`.
pub(super) fn cross_entropy(logits: Tensor<2>, targets: &[i32], label_smoothing: f64) -> Tensor<1> {
    let device = logits.device().inner();
    let classes = logits.dims()[1];
    let targets = Tensor::<2, Int>::from_data(
        TensorData::new(targets.to_vec(), [targets.len(), 1]),
        &device,
    );
    let log_probs = log_softmax(logits, 1);
    let loss = log_probs.clone().gather(1, targets).sum() * (label_smoothing - 1.0);
    if label_smoothing == 0.0 {
        loss
    } else {
        loss - log_probs.sum() * (label_smoothing / classes as f64)
    }
}
