//! How many processes do what, and who is who among them.

use serde::Serialize;

use super::error::ParallelError;

/// How a step is divided among processes.
///
/// Rank `replica · pipeline + stage` has stage `stage` of replica `replica`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Layout {
    /// Replicas, each of which computes a share of the rows of a step.
    pub data: usize,
    /// Stages, each of which has a part of the blocks.
    pub pipeline: usize,
    /// Parts that a replica's rows of a micro-batch are divided into, which go through the stages one
    /// behind another; 1 without a pipeline.
    pub micro_batches: usize,
    /// What the replicas of a stage share out (ZeRO): 0 nothing, 1 optimizer states, 2 gradients as
    /// well, 3 weights as well.
    pub zero: u8,
}

impl Layout {
    /// Data parallelism alone.
    pub fn data(data: usize, zero: u8) -> Self {
        Self {
            data,
            pipeline: 1,
            micro_batches: 1,
            zero,
        }
    }

    /// Number of processes.
    pub fn world(self) -> usize {
        self.data * self.pipeline
    }

    /// The stage of a rank.
    pub fn stage(self, rank: usize) -> usize {
        rank % self.pipeline
    }

    /// The replica of a rank.
    pub fn replica(self, rank: usize) -> usize {
        rank / self.pipeline
    }

    /// That the parts go together.
    ///
    /// # Errors
    /// The constraint that they break.
    pub fn check(self) -> Result<(), ParallelError> {
        let refused = |reason: String| Err(ParallelError::Join { reason });
        if self.zero > 3 {
            return refused(format!(
                "`zero={}`: the stages of ZeRO are 0 to 3",
                self.zero
            ));
        }
        if self.data == 0 || self.pipeline == 0 || self.micro_batches == 0 {
            return refused("`data`, `pipeline` and `micro` are at least 1".into());
        }
        if self.zero > 1 && self.pipeline > 1 {
            return refused(format!(
                "`zero={}` with `pipeline={}`: a stage of a pipeline keeps its gradients and weights for all micro-batches of a step; with a pipeline `zero` is 0 or 1",
                self.zero, self.pipeline
            ));
        }
        if self.micro_batches > 1 && self.pipeline == 1 {
            return refused(format!(
                "`micro={}` needs a pipeline: without one `train.gradient_accumulation_steps` has the micro-batches of a step",
                self.micro_batches
            ));
        }
        Ok(())
    }

    /// Whether no process has all that a checkpoint needs.
    pub(crate) fn is_divided(self) -> bool {
        self.zero > 0 || self.pipeline > 1
    }
}

/// The blocks of a stage: those of earlier stages are as many or one fewer, since the last stage has
/// the output over the vocabulary beside them.
pub(crate) fn blocks_of(layers: usize, stages: usize, stage: usize) -> std::ops::Range<usize> {
    stage * layers / stages..(stage + 1) * layers / stages
}

/// What a stage does next with a micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Its forward pass.
    Forward(usize),
    /// Its backward pass.
    Backward(usize),
}

/// 1F1B (Narayanan et al., arXiv 2104.04473, figure 4): as many forward passes as there are stages
/// behind, then a forward and a backward pass in turn, then the backward passes that are left.
pub(crate) fn one_forward_one_backward(
    stages: usize,
    stage: usize,
    micro_batches: usize,
) -> Vec<Action> {
    let ahead = (stages - 1 - stage).min(micro_batches);
    let mut actions: Vec<Action> = (0..ahead).map(Action::Forward).collect();
    for i in 0..micro_batches {
        if ahead + i < micro_batches {
            actions.push(Action::Forward(ahead + i));
        }
        actions.push(Action::Backward(i));
    }
    actions
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Live activations of 1F1B with four stages and eight micro-batches: 4, 3, 2 and 1.
    #[test]
    fn a_stage_keeps_as_many_micro_batches_as_there_are_stages_from_it_on() {
        for (stage, most) in [4, 3, 2, 1].into_iter().enumerate() {
            let (mut live, mut highest) = (0, 0);
            let actions = one_forward_one_backward(4, stage, 8);
            assert_eq!(actions.len(), 16);
            for action in actions {
                match action {
                    Action::Forward(_) => live += 1,
                    Action::Backward(_) => live -= 1,
                }
                highest = highest.max(live);
            }
            assert_eq!((live, highest), (0, most), "stage {stage}");
        }
        let few = one_forward_one_backward(4, 0, 2);
        use Action::{Backward, Forward};
        assert_eq!(few, [Forward(0), Forward(1), Backward(0), Backward(1)]);
    }

    #[test]
    fn stages_have_all_blocks_between_them() {
        for (layers, stages) in [(2, 2), (5, 2), (7, 4)] {
            let of: Vec<_> = (0..stages).map(|s| blocks_of(layers, stages, s)).collect();
            assert!(of.iter().all(|blocks| !blocks.is_empty()), "{of:?}");
            let all: Vec<usize> = of.into_iter().flatten().collect();
            assert_eq!(all, (0..layers).collect::<Vec<_>>());
        }
    }

    #[test]
    fn layouts_that_do_not_go_together_say_why() {
        let whole = Layout {
            data: 2,
            pipeline: 2,
            micro_batches: 4,
            zero: 1,
        };
        assert!(whole.check().is_ok());
        assert_eq!((whole.world(), whole.stage(3), whole.replica(3)), (4, 1, 1));
        for (layout, word) in [
            (Layout { zero: 3, ..whole }, "`zero=3`"),
            (
                Layout {
                    zero: 4,
                    ..Layout::data(2, 0)
                },
                "`zero=4`",
            ),
            (
                Layout {
                    pipeline: 1,
                    ..whole
                },
                "`micro=4`",
            ),
        ] {
            let error = layout.check().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
