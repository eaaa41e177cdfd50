//! How tasks are run.

use std::path::PathBuf;

use crate::sandbox::Sandbox;

/// How tasks are run.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// Folder that holds data sets.
    pub data: Option<PathBuf>,
    /// Folder of the task's file.
    pub task_folder: Option<PathBuf>,
    /// Only the first records; 0 for all.
    pub limit: usize,
    /// Examples in front of each question instead of the task's own number.
    pub num_fewshot: Option<usize>,
    /// Take the first records as examples instead of drawing them.
    pub first_shots: bool,
    /// Draw examples also where the task takes the first ones.
    pub random_shots: bool,
    /// Decides what is drawn.
    pub seed: u64,
    /// Write prompts by the model's chat template.
    pub chat_template: bool,
    /// Examples as turns of the conversation instead of one message.
    pub fewshot_as_multiturn: bool,
    /// Instruction in front of everything.
    pub system: String,
    /// Folder for answers, samples and results.
    pub out: Option<PathBuf>,
    /// Where programs that the model writes may run; without it, tasks that run some are refused.
    pub sandbox: Option<Sandbox>,
}
