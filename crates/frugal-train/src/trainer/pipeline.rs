//! A step whose micro-batches go through stages one behind another (1F1B).

use std::collections::BTreeMap;

use burn::prelude::*;
use frugal_nn::{BlockState, to_vec};

use super::Trainer;
use super::segments::{Segments, leaf, with_gradient};
use crate::Tokenized;
use crate::error::TrainError;
use crate::event::Event;
use crate::parallel::{Action, ParallelError, blocks_of, one_forward_one_backward};

/// A micro-batch between its forward and its backward pass.
struct Live {
    /// What came from the stage before.
    input: Option<Tensor<2>>,
    output: Output,
}

enum Output {
    /// What goes to the next stage.
    Hidden(Tensor<2>),
    /// Of the last stage.
    Loss(Tensor<1>),
}

/// What is sent: to the next stage or back to the one before.
enum Message {
    Nothing,
    Ahead(Vec<u8>),
    Back(Vec<u8>),
}

impl Trainer<'_, '_> {
    /// Adds the gradients of a step on this stage; returns the loss on the last stage, 0 on others.
    pub(super) fn pipelined(
        &mut self,
        micro_batches: &[Vec<u32>],
        pool: &[Tokenized],
        targets: f64,
    ) -> Result<f64, TrainError> {
        let Some(layout) = self.group.as_ref().map(|group| group.layout()) else {
            return Ok(0.0);
        };
        let rank = self.group.as_ref().map_or(0, |group| group.rank());
        let (stages, stage) = (layout.pipeline, layout.stage(rank));
        let tokens = |row: u32| pool[row as usize].input_ids.len();
        let mut parts: Vec<(u64, Vec<u32>)> = Vec::new();
        for (index, rows) in micro_batches.iter().enumerate() {
            let own = self.own_rows(rows);
            let cut = self.group.as_ref().map(|g| g.micro_batches(own, tokens));
            for (part, rows) in cut.into_iter().flatten().enumerate() {
                // The stages of a replica draw the same.
                let replica = layout.replica(rank);
                let place = format!("micro-batch {index} of step {}", self.state.step);
                let seed = self.seed(&format!("{place}, part {part} of replica {replica}"));
                parts.push((seed, rows.to_vec()));
            }
        }
        let actions = one_forward_one_backward(stages, stage, parts.len());
        let mut live: BTreeMap<usize, Live> = BTreeMap::new();
        let (mut loss, mut message, mut done) = (0.0, Message::Nothing, 0);
        for action in actions {
            let (Action::Forward(index) | Action::Backward(index)) = action;
            let (seed, rows) = &parts[index];
            let examples: Vec<&Tokenized> = rows.iter().map(|&row| &pool[row as usize]).collect();
            let of = Segments {
                rows,
                examples: &examples,
                seed: *seed,
                targets,
            };
            let count: usize = rows.iter().map(|&row| tokens(row)).sum();
            let from = match action {
                Action::Forward(_) => (stage > 0).then(|| rank - 1),
                Action::Backward(_) => (stage + 1 < stages).then(|| rank + 1),
            };
            let came = self.pass_on(
                std::mem::replace(&mut message, Message::Nothing),
                from,
                count,
            )?;
            match action {
                Action::Forward(_) => {
                    let made = self.forward_on(&of, stage, stages, came)?;
                    if let Output::Hidden(hidden) = &made.output {
                        message = Message::Ahead(bytes(hidden.clone().inner()));
                    }
                    live.insert(index, made);
                }
                Action::Backward(_) => {
                    let Some(Live { input, output }) = live.remove(&index) else {
                        continue;
                    };
                    let (scalar, is_loss) = match (output, came) {
                        (Output::Hidden(hidden), Some(g)) => (with_gradient(hidden, g), false),
                        (Output::Loss(loss), _) => (loss, true),
                        (Output::Hidden(_), None) => continue,
                    };
                    let (value, back) = self.backward(&of, scalar, input.as_ref())?;
                    loss += if is_loss { value } else { 0.0 };
                    if let Some(back) = back {
                        message = Message::Back(bytes(back));
                    }
                    done += 1;
                    self.emit(Event::MicroBatch {
                        step: self.state.step,
                        total_steps: self.total_steps,
                        done,
                        of: parts.len(),
                    });
                }
            }
            if let Some(group) = &mut self.group {
                group.note_memory();
            }
        }
        self.pass_on(message, None, 0)?;
        Ok(loss)
    }

    fn forward_on(
        &mut self,
        of: &Segments<'_>,
        stage: usize,
        stages: usize,
        came: Option<Tensor<2>>,
    ) -> Result<Live, TrainError> {
        let (state, input) = match came {
            None => (of.stem(&self.run)?, None),
            Some(hidden_states) => {
                let input = leaf(hidden_states);
                let frame = of.frame(self.run.backbone)?;
                let state = BlockState {
                    hidden_states: input.clone(),
                    ..frame
                };
                (state, Some(input))
            }
        };
        let layers = self.run.backbone.info().num_hidden_layers;
        let state = of.blocks(&self.run, blocks_of(layers, stages, stage), state)?;
        let output = if stage + 1 < stages {
            Output::Hidden(state.hidden_states)
        } else {
            Output::Loss(of.loss(&self.run, self.objective.as_ref(), state)?)
        };
        Ok(Live { input, output })
    }

    /// Sends what is to be sent while hidden states, or their gradient, of so many tokens come.
    fn pass_on(
        &mut self,
        message: Message,
        from: Option<usize>,
        tokens: usize,
    ) -> Result<Option<Tensor<2>>, TrainError> {
        const DOING: &str = "passing a micro-batch on";
        let width = self.run.backbone.info().hidden_size;
        let device = self.run.backbone.device().clone();
        let Some(group) = &mut self.group else {
            return Ok(None);
        };
        let rank = group.rank();
        let to = match &message {
            Message::Nothing => None,
            Message::Ahead(bytes) => Some((rank + 1, bytes.as_slice())),
            Message::Back(bytes) => Some((rank - 1, bytes.as_slice())),
        };
        let size = 4 * tokens * width;
        let Some(came) = group.pass_on(to, from, size as u64, DOING)? else {
            return Ok(None);
        };
        if came.len() != size {
            return Err(ParallelError::Protocol {
                rank: from.unwrap_or_default(),
                doing: DOING,
                expected: format!("{size} bytes"),
                found: format!("{} bytes", came.len()),
            }
            .into());
        }
        let (values, _) = came.as_chunks::<4>();
        let values: Vec<f32> = values.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let data = TensorData::new(values, [tokens, width]);
        Ok(Some(Tensor::from_data(data, &device)))
    }
}

fn bytes(tensor: Tensor<2>) -> Vec<u8> {
    let values = to_vec(tensor);
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}
